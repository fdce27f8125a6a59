"""What the notebooks show besides their figures: pieces of a chapter, made from YAML and records."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from statistics import fmean

from IPython.display import HTML, Markdown

from ...metrics import METRICS
from ..records import Record, Row, Search
from ..run import Replication
from ..trials.base import ORIGINAL
from . import tables
from .figures import Shown, figure, strip
from .margins import forest

__all__ = [
    "claims",
    "deviations",
    "first",
    "notes",
    "opening",
    "provenance",
    "rerun",
    "results",
    "said",
    "search",
    "setup",
    "strips",
    "superseded",
    "targets",
    "verdicts",
]


def opening(run: Replication) -> Markdown:
    """The paper in a paragraph, what could be read of it, and how to cite it."""
    p = run.file.paper
    links = []
    if p.doi:
        links.append(f"[doi:{p.doi}](https://doi.org/{p.doi})")
    if p.arxiv:
        links.append(f"[arXiv:{p.arxiv}](https://arxiv.org/abs/{p.arxiv})")
    if p.code:
        links.append(f"[authors’ code]({p.code.url}) ({p.code.licence}, read at `{p.code.commit}`)")
    bib = bibtex(run.root / "book" / "references.bib", p.cite)
    return Markdown(
        f"**{p.authors}**, *{p.title}*, {p.venue} {p.year}. {' · '.join(links)}\n\n"
        f"{p.summary}\n\n**What this replication could read.** {p.basis}\n\n"
        f"```bibtex\n{bib}\n```"
    )


def bibtex(file, key: str) -> str:
    """One entry of a BibTeX file, as it stands there."""
    text = file.read_text(encoding="utf-8")
    start = text.find("{" + key + ",")
    if start < 0:
        raise KeyError(f"no entry {key!r} in {file.name}")
    start = text.rindex("@", 0, start)
    depth = 0
    for i in range(text.index("{", start), len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[start : i + 1]
    raise ValueError(f"the entry {key!r} in {file.name} does not end")


def claims(run: Replication) -> HTML:
    """The paper's claims as a table."""
    return tables.claims_table(run.file)


def setup(run: Replication) -> Markdown:
    """The profile in words and its experiments in a table, those of one setting together."""
    profile = run.profile
    groups: dict[str, list[list[str]]] = {}
    for name, e in profile.experiments.items():
        skip = next((s for s in run.skips if s.experiment == name), None)
        made_of = {"Data": e.data, "Model": e.model, "Training": e.train}
        setting = "<br>".join(
            f"<b>{k}</b> {html.escape(_spec(v))}" for k, v in made_of.items() if v
        )
        methods = ", ".join(e.methods)
        if skip is not None:
            methods = f"{methods}; {skip}" if skip.seeds else f"skipped: {skip.reason}"
        groups.setdefault(setting, []).append(
            [f"<b>{html.escape(e.title)}</b>", *map(html.escape, (_spec(e.forget), methods))]
        )
    wanted = {kind for e in profile.experiments.values() for kind in e.forget}
    what = "Order of tasks" if wanted == {"order"} else "To forget"
    head = ["Setting", "Experiment", what, "Methods"]
    seeds = ", ".join(map(str, run.seeds))
    shared = [e.title for e in profile.experiments.values() if e.original_seed is not None]
    fixes = (
        "each has its own order of tasks and fixes the method's own randomness; the model before the "
        "first task is the same for all of them."
        if wanted == {"order"}
        else "each fixes the method's own randomness; the original and the retrained model are the same "
        "for all of them."
        if len(shared) == len(profile.experiments)
        else "each fixes the original's training, the retrained model's, a random forget set's draw "
        "and the method's own randomness."
        + (f" One original serves all seeds of: {'; '.join(shared)}." if shared else "")
    )
    rehearsal = "**This is a rehearsal: a few steps on made-up data.** " if run.rehearsal else ""
    return Markdown(
        f"{rehearsal}Profile **{run.profile_name}** ({profile.purpose}). {profile.shrunk} "
        f"Seeds: {seeds}; {fixes} Hardware it is meant for: "
        f"{profile.hardware}, {profile.memory_gb:g} GB of memory, about {profile.minutes:g} "
        f"minutes.\n\n{tables.grouped(head, groups.items(), kind='setup').data}"
    )


def _spec(spec: dict) -> str:
    name = spec.get("use")
    rest = ", ".join(f"{k} {_words(v)}" for k, v in spec.items() if k != "use")
    return f"{name} ({rest})" if name and rest else name or rest


def _words(value) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def results(
    run: Replication,
    prefix: str,
    *metrics: Sequence[str],
    says: str = "",
    methods: Sequence[str] = (),
    where: Callable[[Row], bool] = lambda row: True,
    caption: str | None = None,
    texts: int = 0,
) -> HTML:
    """A table of each list of metrics, for each experiment whose name begins with ``prefix``.

    Tables of several experiments say which is which, also under a ``caption``.

    Parameters
    ----------
    says : what there is to see in them, in a sentence, its numbers read from ``run.rows``; every
        table of a chapter should have one
    methods : show these alone, in this order (a method that the paper does not have is the common
        ground's), with their variants, which are called "SSD, known importances"
    where : show only rows of which this is true
    texts : also show what every model `said` to that many questions, of the first target and seed
    """
    out, names = [], run.experiments(prefix)
    for name in names:
        rows = _of(methods, [r for r in run.rows_of(name) if where(r)])
        own = run.experiment(name).title
        title = f"{caption}: {own}" if caption and len(names) > 1 else caption or own
        title = f"{title} ({run.profile_name})"
        out += [tables.results_table(rows, columns, title).data for columns in metrics]
        if texts:
            first = run.targets(name)[0], run.seeds_of(name)[0]
            out.append(said(run, name, *first, count=texts, methods=methods).data)
    if not out:
        return unmade(run, prefix) or HTML("<p>This profile has no such experiment.</p>")
    return HTML("".join(out) + (f'<p class="says">{html.escape(says)}</p>' if says else ""))


def _of(methods: Sequence[str], rows: list[Row]) -> list[Row]:
    """The rows of these methods and of their variants, in this order; all rows where none is named."""
    if not methods:
        return rows
    return [
        r
        for m in methods
        for r in rows
        if r.method == m or r.method.startswith((f"{m}, ", f"{m} ("))
    ]


def search(run: Replication, tuning: str) -> HTML:
    """What a search tried: what it chose for every method, how much worse the next best is, edges.

    Where the original is measured too, its line says what a method that does nothing scores.

    Fails where ``choose(run, tuning)`` has not been asked yet.
    """
    experiment, seeds = run.experiment(tuning), run.seeds_of(tuning)
    by = METRICS[experiment.choose.by]
    lines = []
    for method in experiment.search:
        found = run.searches[tuning, method]
        at = found.tried.index(found.chosen)
        best = found.scores[at]
        others = [
            s
            for i, (s, kept) in enumerate(zip(found.scores, found.kept, strict=True))
            if kept and i != at
        ]
        after = min(others, key=lambda s: abs(s - best), default=None)
        lines.append(
            [
                html.escape(method),
                _setting(found.names, found.chosen),
                tables.number(best) if found.kept[at] else f"{tables.number(best)}, none is kept",
                "–" if after is None else f"{after - best:+.2g}",
                _tried(found),
                html.escape(", ".join(found.edges)) or "–",
            ]
        )
    metrics = (r.metrics for r in run.rows_of(tuning) if r.method == ORIGINAL)
    if untouched := [m[experiment.choose.by].value for m in metrics if experiment.choose.by in m]:
        score = tables.number(fmean(untouched))
        lines.append([f"{ORIGINAL}, nothing done", "–", score, "–", "–", "–"])
    unit = f", {by.unit}" if by.unit else ""
    head = [
        "Method",
        "Chosen",
        f"{html.escape(by.label)}{unit}",
        "Next best",
        "Tried (in brackets: does not keep what must be kept)",
        "At an edge",
    ]
    words = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    caption = f"{experiment.title}, {words} ({run.profile_name})"
    return tables.table(head, lines, caption=caption, kind="search")


def _setting(names: Sequence[str], values: Sequence[object]) -> str:
    return html.escape(", ".join(f"{n} {_words(v)}" for n, v in zip(names, values, strict=True)))


def _tried(found: Search) -> str:
    """Every setting with its score; one that does not keep what must be kept in brackets."""
    cells = []
    for values, score, kept in zip(found.tried, found.scores, found.kept, strict=True):
        text = f"{', '.join(map(_words, values))}: {tables.number(score)}"
        text = html.escape(text if kept else f"({text})")
        cells.append(f"<b>{text}</b>" if values == found.chosen else text)
    if len(cells) <= 9:
        return "; ".join(cells)
    return f"<details><summary>{len(cells)} settings</summary>{'; '.join(cells)}</details>"


def said(
    run: Replication,
    experiment: str,
    target: object,
    seed: int,
    asked: str = "forget",
    count: int = 3,
    methods: Sequence[str] = (),
) -> HTML:
    """What every model said to the same few questions, one seed; a row a model.

    ``asked`` is the set of questions; ``methods`` are all of the experiment's where none is named.
    """
    labels = methods or (ORIGINAL, *run.experiment(experiment).methods)
    lines, questions = [], []
    for label in labels:
        row = next(
            (
                r
                for r in run.rows_of(experiment)
                if r.method == label
                and r.variant == {"forget": target}
                and r.seed in (seed, *run.originals(experiment))
            ),
            None,
        )
        if row is None:
            continue
        shown = row.detail["said"][asked][:count]
        questions = [
            f"{html.escape(x['question'])}<br><i>{html.escape(x['answer'])}</i>" for x in shown
        ]
        lines.append([html.escape(label), *(html.escape(x["said"]) or "–" for x in shown)])
    title = run.experiment(experiment).title
    caption = f"{title}: what is said to questions of the set “{asked}”, seed {seed}; the true answers in italics ({run.profile_name})"
    return tables.table(["", *questions], lines, caption=caption, kind="wide")


def strips(
    run: Replication,
    prefix: str,
    metrics: Sequence[str],
    *,
    caption: str,
    alt: str,
    methods: Sequence[str] = (),
    where: Callable[[Row], bool] = lambda row: True,
) -> Shown | HTML | None:
    """A dot plot of every method and seed, one panel a metric, for the first such experiment.

    The chapter's own methods, whose names begin as the paper is called, are in another colour;
    ``methods`` shows these alone, as in `results`.
    """
    names = run.experiments(prefix)
    if not names:
        return unmade(run, prefix)
    first = run.targets(names[0])[0]
    wanted = [r for r in run.rows_of(names[0]) if r.variant.get("forget") == first and where(r)]
    rows = _of(methods, wanted)
    height = 0.32 * len({r.method for r in rows}) + 1.1
    with figure(caption, alt, size=(8.4, height), columns=len(metrics)) as (axes, shown):
        for i, (ax, metric) in enumerate(zip(axes, metrics, strict=True)):
            strip(ax, rows, metric, run.file.paper.short)
            ax.set_title(METRICS[metric].label, fontsize=10)
            if i:
                ax.set_yticklabels([])
    return shown


def first(run: Replication, prefix: str, draw: Callable[[str], Shown]) -> Shown | HTML | None:
    """``draw(name)`` of the first experiment whose name begins with ``prefix``, if it has one."""
    names = run.experiments(prefix)
    return draw(names[0]) if names else unmade(run, prefix)


def unmade(run: Replication, prefix: str) -> HTML | None:
    """Why there is nothing to show of the experiments whose names begin with ``prefix``, where they are left out."""
    known = prefix in run.profile.experiments
    left_out = [
        s
        for s in run.skips
        if not s.seeds
        and (s.experiment == prefix or (not known and s.experiment.startswith(prefix)))
    ]
    said = "; ".join(f"{run.experiment(s.experiment).title}: {s.reason}" for s in left_out)
    return HTML(f"<p>{html.escape(said)}.</p>") if said else None


def targets(run: Replication) -> Markdown:
    """The paper's numbers, with where each was read."""
    return Markdown(f"{run.file.targets_note}\n\n{tables.targets_table(run.file.all_targets).data}")


def verdicts(run: Replication) -> HTML:
    """All margins on one axis, then each with its seeds, what it presupposes and its rule."""
    judged = list(run.verdicts.values())
    shown = forest(run.file, judged)
    return HTML((shown.data if shown else "") + tables.verdicts_table(run.file, judged).data)


def deviations(run: Replication) -> HTML:
    """Where the replication differs from the paper, with what was measured of it."""
    return tables.deviations_table(run.file, run.effects)


def notes(run: Replication) -> Markdown:
    """What was easy, what was hard, and what could not be tested."""
    n = run.file.notes
    return Markdown(
        f"**What was easy.** {n.easy}\n\n**What was hard.** {n.hard}\n\n"
        f"**What we could not test.** {n.untested}"
    )


def time_in_rows(record: Record) -> str:
    return (
        f"{record.seconds_spent / 60:.1f} minutes (the sum over all rows, whenever they were made, "
        "with each model's training once)"
    )


def superseded(record: Record) -> str:
    """Whose rows an earlier version of the method has made, in HTML; "" where none are such."""
    return html.escape("; ".join(dict.fromkeys(r.method for r in record.rows if r.superseded)))


def provenance(record: Record) -> HTML:
    """When, on what and from which commits; the invariants; every skip with its reason."""
    commits = sorted({(r.provenance.commit or "none", r.provenance.dirty) for r in record.rows})
    days = sorted(r.provenance.date for r in record.rows)
    sources = {
        (s["id"], s["kind"], s["sha256"][:12]) for r in record.rows for s in r.provenance.sources
    }
    threads = sorted({r.provenance.threads for r in record.rows})
    facts = [
        ["Run", f"{record.started} to {record.finished}, profile {record.profile}"],
        ["Rows", f"{len(record.rows)}, made from {days[0]} to {days[-1]}" if days else "0"],
        ["Time in rows", time_in_rows(record)],
        ["Commits", ", ".join(f"{c[:10]}{' (with changes)' if d else ''}" for c, d in commits)],
        ["Data", "; ".join(f"{i} ({kind}, sha256 {sha}…)" for i, kind, sha in sorted(sources))],
        ["Device", ", ".join(sorted({r.provenance.device for r in record.rows}))],
        ["Threads", ", ".join(map(str, threads))],
        *([k.capitalize(), v] for k, v in record.environment.items()),
        *(["Skipped", f"{s.experiment}: {s}"] for s in record.skips),
    ]
    rows = [[html.escape(k), html.escape(v)] for k, v in facts]
    if older := superseded(record):
        rows.append(["Of an earlier version of the method", older])
    return HTML(
        tables.table(["", ""], rows, kind="facts").data
        + "<p>Facts that must hold whatever a method does, checked on every run:</p>"
        + tables.invariants_table(record).data
    )


def rerun(run: Replication) -> HTML:
    """The command of every size, and what it needs."""
    lines = [
        [
            html.escape(name),
            f"<code>make reproduce PROFILE={html.escape(name)} PAPERS={run.slug}</code>",
            f"{p.minutes:g} min",
            f"{p.memory_gb:g} GB",
            html.escape(p.hardware),
        ]
        for name, p in run.file.profiles.items()
    ]
    return tables.table(["Profile", "Command", "About", "Memory", "Hardware"], lines)
