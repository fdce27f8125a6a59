"""The common grounds: every method of a modality on the same models, requests, seeds and metrics.

Chapters include the experiments from ``notebooks/shared``, under the same names, so their records
hold the same rows. Nothing is computed here.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

from scipy.stats import rankdata, spearmanr

from ...methods import METHODS
from ..cache import digest
from ..outcomes import STILL, left_alone
from ..papers import PROFILES, load_paper
from ..records import ORIGINAL, Record, Row
from . import tables
from .figures import COLOURS, figure, literal

__all__ = ["BASES", "classifier_tables", "drawing_tables", "language_tables", "needs_of"]

MARKS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h")


def _profiles(records: Iterable[Record], rows: Iterable[Row]) -> str:
    """Where rows come from: the profiles of the records that hold any of them."""
    shown = {r.key for r in rows}
    found = {record.profile for record in records if any(r.key in shown for r in record.rows)}
    return " and ".join(sorted(found, key=PROFILES.index))


# --- image classifiers: notebooks/shared/classifiers.yaml ------------------------------------

#: The two bases: title -> what is forgotten -> the experiment's name.
BASES = {
    "Trained to the end of its schedule": {
        "random": "random",
        "class": "class_wise",
        "worst case": "worst_case",
    },
    "Stopped early, trained with gradient restriction": {
        "random": "early_random",
        "class": "early_class_wise",
        "worst case": "early_worst_case",
    },
}

#: How a column names a base.
SHORT = dict(zip(BASES, ("fitted", "early"), strict=True))

CLASSIFIER_DETAIL = (
    "gap",
    "forget_accuracy",
    "retain_accuracy",
    "test_accuracy",
    "confidence_mia",
    "relearned_accuracy",
    "seconds",
    "peak_memory",
)


def _classifier_rows(records: Iterable[Record], experiment: str) -> list[Row]:
    """The experiment's rows in all records, each once."""
    found = {r.key: r for record in records for r in record.rows if r.experiment == experiment}
    return [r for r in found.values() if "retain_accuracy" in r.metrics]


def _values(rows: list[Row], method: str, metric: str) -> list[float]:
    """Seed by seed, of the method as it is: a variant of it is another method."""
    mine = sorted(
        (r for r in rows if r.method == method and r.variant.keys() <= {"forget"}),
        key=lambda r: r.seed,
    )
    return [r.metrics[metric].value for r in mine if metric in r.metrics]


def needs_of(row: Row) -> frozenset[str]:
    """What the method of a row requires; nothing of the original's."""
    spec = row.spec.get("method")
    by_class = {cls.__name__: cls for cls in METHODS.values()}
    return by_class[spec["is"]].needs if spec else frozenset()


def _needs(rows: list[Row], method: str) -> str:
    return ", ".join(sorted(needs_of(next(r for r in rows if r.method == method)))) or "–"


def _classifier_overview(parts: dict[str, list[Row]], caption: str) -> str:
    """A line a method: its gap on each kind of request, what comes back, what it costs."""
    methods = dict.fromkeys(r.method for rows in parts.values() for r in rows)
    every = [r for rows in parts.values() for r in rows]
    # What the gap, the relearning and the cost are shown on; requests that were not run have none.
    first = next(iter(parts.values()))
    lines = []
    for method in methods:
        gaps = [tables.seed_cell(_values(rows, method, "gap")) for rows in parts.values()]
        costs = [
            tables.seed_cell(_values(first, method, m))
            for m in ("relearned_accuracy", "seconds", "peak_memory")
        ]
        needs = html.escape(_needs(every, method))
        lines.append([html.escape(method), *gaps, *costs, needs])
    name = html.escape(next(iter(parts)))
    head = [
        "Method",
        *(f"Gap, {html.escape(kind)}, points ↓" for kind in parts),
        f"Relearned ({name}), % → retrained",
        f"Time ({name}), s ↓",
        f"Memory ({name}), MB ↓",
        "Needs",
    ]
    return tables.table(head, lines, caption=caption, kind="results").data


def _mean_gaps(rows: list[Row]) -> dict[str, float]:
    """Each method's mean gap over the seeds; the oracle, whose gap is 0, left out."""
    oracle = {r.method for r in rows if (r.spec.get("method") or {}).get("is") == "Retrain"}
    gaps = {m: _values(rows, m, "gap") for m in dict.fromkeys(r.method for r in rows)}
    return {m: sum(v) / len(v) for m, v in gaps.items() if v and m not in oracle}


def _side_by_side(bases: dict[str, dict[str, list[Row]]], profiles: str) -> str:
    """A line a method: its mean gap and its rank on both bases, where a request ran on both.

    Ranks are among the methods that ran on both; the untouched original has none.
    """
    columns: dict[str, dict[str, str]] = {}
    orders = []
    one, two = bases.values()
    for kind in [k for k in one if k in two]:
        means = {SHORT[base]: _mean_gaps(parts[kind]) for base, parts in bases.items()}
        ranked = set.intersection(*map(set, means.values())) - {ORIGINAL}
        common = [m for m in next(iter(means.values())) if m in ranked]
        for base, gaps in means.items():
            ranks = dict(zip(common, rankdata([gaps[m] for m in common]), strict=True))
            columns[f"{kind}, {base}"] = {
                m: tables.number(gap)
                + (f' <span class="muted">({ranks[m]:g})</span>' if m in ranks else "")
                for m, gap in gaps.items()
            }
        if len(common) > 2:
            rho = spearmanr(*([gaps[m] for m in common] for gaps in means.values())).statistic
            orders.append(f"{kind} {rho:.2f} ({len(common)} methods)")
    if not columns:
        return ""
    missing = '<span class="muted">–</span>'
    table = tables.table(
        ["Method", *(f"{html.escape(name)}, points ↓" for name in columns)],
        [
            [html.escape(m), *(cells.get(m, missing) for cells in columns.values())]
            for m in dict.fromkeys(m for cells in columns.values() for m in cells)
        ],
        caption=f"Mean gap on both bases and, in brackets, the rank ({profiles})",
        kind="results",
    ).data
    words = html.escape("; ".join(orders))
    order = f"<p>Spearman’s correlation of the two orders: {words}.</p>" if orders else ""
    return f"<h2>Both bases side by side</h2>{table}{order}"


def classifier_tables(records: Iterable[Record]) -> str:
    """The page's tables, from records with the same experiments; HTML."""
    records = list(records)
    bases: dict[str, dict[str, list[Row]]] = {}
    for title, experiments in BASES.items():
        found = {kind: _classifier_rows(records, name) for kind, name in experiments.items()}
        bases[title] = {kind: rows for kind, rows in found.items() if rows}
    every = [r for parts in bases.values() for rows in parts.values() for r in rows]
    out = [_side_by_side(bases, _profiles(records, every))]
    for title, parts in bases.items():
        out.append(f"<h2>{html.escape(title)}</h2>")
        missing = [kind for kind in BASES[title] if kind not in parts]
        if missing:
            out.append(f"<p>Not run yet on this base: {html.escape(', '.join(missing))}.</p>")
        if not parts:
            continue
        profiles = _profiles(records, [r for rows in parts.values() for r in rows])
        out.append(_classifier_overview(parts, f"Every method on this base ({profiles})"))
        for kind, rows in parts.items():
            if still := left_alone(rows):
                out.append(
                    f"<p>Forgetting, {html.escape(kind)}: on every seed all four accuracies and rates of "
                    f"{html.escape(', '.join(still))} are within {STILL:g} points of the original's.</p>"
                )
        for kind, rows in parts.items():
            detail = tables.results_table(rows, CLASSIFIER_DETAIL, f"Forgetting: {kind}").data
            out.append(
                f"<details><summary>{html.escape(kind)}: all metrics</summary>{detail}</details>"
            )
    return "".join(out)


# --- language models: notebooks/shared/language.yaml -----------------------------------------

LANGUAGE_COLUMNS = (
    "forget_quality",
    "model_utility",
    "forget_rouge",
    "retain_rouge",
    "leak_rate",
    "privleak",
    "bare_privleak",
    "relearned_probability",
    "seconds",
    "peak_memory",
)

#: The least p-value that is drawn as it is: below it all are alike.
LEAST = 1e-4

#: What a method needs or does -> how the legend calls its like.
FORGET_ONLY, RETAIN, ANSWERING = "forget data alone", "retain data too", "while answering"


def _is(row: Row) -> str | None:
    return (row.spec.get("method") or {}).get("is")


def _kind(row: Row) -> str:
    if row.metrics["changed_weights"].value == 0:
        return ANSWERING
    return RETAIN if needs_of(row) & {"retain", "unrelated"} else FORGET_ONLY


def _language_grounds(records: Iterable[Record]) -> dict[str, list[Row]]:
    """The rows that share model, data, request and questions, under the first one's experiment."""
    found: dict[str, dict[str, Row]] = {}
    titles: dict[str, str] = {}
    for record in records:
        experiments = load_paper(record.paper).profile(record.profile).experiments
        for row in record.rows:
            if "relearned_probability" not in row.metrics:
                continue  # a part of a method, or a look at it, on fewer questions
            spec = row.spec
            key = digest([spec["recipe"], spec["train"], spec["forget"], spec["asked"]])
            e = experiments.get(row.experiment)  # None: it had another name when that was published
            title = e.title if e else row.experiment
            several = e is None or sum(map(len, e.forget.values())) > 1
            titles.setdefault(key, f"{title}: {row.variant['forget']}" if several else title)
            # Several experiments measure the original and the retrained model: the same rows.
            found.setdefault(key, {}).setdefault(digest([spec, row.method, row.seed]), row)
    return {titles[key]: list(rows.values()) for key, rows in found.items()}


def drawn(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Where points stand in the picture."""
    return [x for x, _ in points], [max(y, LEAST) for _, y in points]


def _utility_picture(title: str, rows: list[Row], profiles: str) -> str:
    """Forget quality against model utility: a mark a method and seed."""
    points: dict[str, list[tuple[float, float]]] = {}
    first: dict[str, Row] = {}
    for row in rows:
        m = row.metrics
        points.setdefault(row.method, []).append(
            (m["model_utility"].value, max(m["forget_quality"].value, 1e-30))
        )
        first.setdefault(row.method, row)
    oracle = [m for m, r in first.items() if _is(r) == "Retrain"]
    kinds: dict[str, list[str]] = {FORGET_ONLY: [], RETAIN: [], ANSWERING: []}
    for method, row in first.items():
        if method != ORIGINAL and method not in oracle:
            kinds[_kind(row)].append(method)
    said = "; ".join(
        f"{m}: utility {sum(x for x, _ in p) / len(p):.2f}, forget quality {min(y for _, y in p):.2g}"
        for m, p in points.items()
    )
    with figure(
        f"Up and to the right is better: as the retrained model by its truth ratios, and useful. Lines: the "
        f"original's utility, and p = 0.05; smaller values than {LEAST:g} stand there. A mark a seed ({title}, "
        f"{profiles}).",
        f"A scatter plot of forget quality on a logarithmic scale over model utility. {said}.",
        size=(8.4, 7.2),
    ) as ((ax,), shown):
        for colour, (kind, methods) in zip(COLOURS, kinds.items(), strict=False):
            for mark, method in zip(MARKS * 2, methods, strict=False):
                xs, ys = drawn(points[method])
                label = literal(f"{method} ({kind})")
                ax.plot(
                    xs, ys, ls="", marker=mark, color=colour, ms=8, mew=0, alpha=0.85, label=label
                )
        for mark, method in (("$O$", ORIGINAL), *(("$R$", m) for m in oracle)):
            if method in points:
                xs, ys = drawn(points[method])
                ax.plot(xs, ys, ls="", marker=mark, color=COLOURS[3], ms=11, label=literal(method))
        if ORIGINAL in points:
            ax.axvline(points[ORIGINAL][0][0], ls=":", lw=1, color="gray")
        ax.axhline(0.05, ls="--", lw=1, color="gray")
        ax.set_yscale("log")
        ax.set_xlabel("model utility")
        ax.set_ylabel("forget quality, p")
        ax.legend(fontsize=9.5, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    return shown.data


def language_tables(records: Iterable[Record]) -> str:
    """The page's figures and tables, from records with the same experiments; HTML."""
    records = list(records)
    out = []
    for title, rows in _language_grounds(records).items():
        profiles = _profiles(records, rows)
        out.append(f"<h2>{html.escape(title)}</h2>")
        out.append(_utility_picture(title, rows, profiles))
        out.append(tables.results_table(rows, LANGUAGE_COLUMNS, f"Every method ({profiles})").data)
        needs = {}
        for row in rows:
            if _is(row):
                needs[row.method] = [
                    html.escape(row.method),
                    html.escape(", ".join(sorted(needs_of(row)))),
                    html.escape(_kind(row)) if _is(row) != "Retrain" else "",
                ]
        head = ["Method", "Needs", "Kind"]
        out.append(tables.table(head, needs.values(), caption="What each needs", kind="wide").data)
    return "".join(out)


# --- models that draw: notebooks/shared/erasing.yaml -----------------------------------------

DRAWING_COLUMNS = (
    "harmonic_mean",
    "erased_accuracy",
    "general_accuracy",
    "kept_accuracy",
    "relative_accuracy",
    "changed_pixels",
    "classifier_fid",
    "clip_score",
    "seconds",
    "changed_weights",
)

#: What is asked for -> how well it is gone, and how well the rest is still there.
PANELS = {
    "by name": ("erased_accuracy", "kept_accuracy"),
    "by other words": ("general_accuracy", "relative_accuracy"),
}


def _drawing_grounds(records: Iterable[Record]) -> dict[str, list[Row]]:
    """Concept -> the rows of every method that drew for it, each once; whatever has synonyms."""
    found: dict[str, dict[str, Row]] = {}
    for record in records:
        for row in record.rows:
            if row.experiment.startswith("erase_") and "general_accuracy" in row.metrics:
                found.setdefault(str(row.variant["forget"]), {}).setdefault(row.key, row)
    return {concept: list(rows.values()) for concept, rows in found.items()}


def look_of(k: int) -> tuple[str, str]:
    """The marker and the colour of a picture's k-th method: no two are alike."""
    turn, at = divmod(k, len(MARKS))
    return MARKS[at], COLOURS[(at + turn) % len(COLOURS)]


def _erasing_picture(concept: str, rows: list[Row], profiles: str) -> str:
    """What is gone against what is still there: a mark a method and seed."""
    methods = list(dict.fromkeys(r.method for r in rows))

    def points(method: str, gone: str, kept: str) -> tuple[list[float], list[float]]:
        mine = [r.metrics for r in rows if r.method == method]
        return [m[kept].value for m in mine], [100 - m[gone].value for m in mine]

    said = "; ".join(
        f"{method}, {words}: {sum(ys) / len(ys):.0f} % gone, {sum(xs) / len(xs):.0f} % kept"
        for words, pair in PANELS.items()
        for method in methods
        for xs, ys in [points(method, *pair)]
    )
    with figure(
        f"Up and to the right is better. Left the concept and the others by their names, which methods are "
        f"given; right by synonyms, which those that read no images are not. A mark a seed ({concept}, {profiles}).",
        f"Two scatter plots of how much of the concept is gone over how much of the rest is kept. {said}.",
        size=(9.0, 5.6),
        columns=2,
    ) as (axes, shown):
        for ax, (words, pair) in zip(axes, PANELS.items(), strict=True):
            for k, method in enumerate(methods):
                xs, ys = points(method, *pair)
                mark, colour = look_of(k)
                mark = "$O$" if method == ORIGINAL else mark
                ax.plot(
                    xs,
                    ys,
                    ls="",
                    marker=mark,
                    color=colour,
                    ms=8,
                    mfc="none",
                    mew=1.5,
                    label=literal(method),
                )
            ax.set_title(words)
            ax.set_xlim(-4, 104)
            ax.set_ylim(-4, 104)
            ax.set_xlabel("others named as asked for, %")
        axes[0].set_ylabel("concept not named where it is asked for, %")
        handles, labels = axes[0].get_legend_handles_labels()
        axes[0].figure.legend(handles, labels, fontsize=9.5, ncols=4, loc="outside lower center")
    return shown.data


def drawing_tables(records: Iterable[Record]) -> str:
    """The page's figures and tables, from records with the same experiments; HTML."""
    records = list(records)
    out = []
    for concept, rows in _drawing_grounds(records).items():
        profiles = _profiles(records, rows)
        out.append(f"<h2>{html.escape(concept.capitalize())}</h2>")
        out.append(_erasing_picture(concept, rows, profiles))
        shown = [c for c in DRAWING_COLUMNS if any(c in r.metrics for r in rows)]
        out.append(tables.results_table(rows, shown, f"Every method ({profiles})").data)
    needs = {
        row.method: [html.escape(row.method), html.escape(", ".join(sorted(needs_of(row))))]
        for rows in _drawing_grounds(records).values()
        for row in rows
        if row.spec.get("method")
    }
    if needs:
        head = ["Method", "Needs"]
        out.append(tables.table(head, needs.values(), caption="What each needs", kind="wide").data)
    return "".join(out)
