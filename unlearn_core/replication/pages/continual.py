"""What the chapter on SEFE shows: the tasks in a sequence, and what is left of each in the end."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

from IPython.display import HTML

from ..records import Row
from ..run import Replication
from ..trials.continual import BEFORE, ContinualTrial
from . import tables
from .figures import COLOURS, Shown, figure, literal

__all__ = ["answers", "forgetting", "learned", "matrices", "orders", "tasks"]

#: What a sentence is called, and so on.
FORMS = {
    "choice": "a letter",
    "short": "a word or a number",
    "class": "a class name",
    "box": "a box",
    "yes_no": "yes or no",
    "brief": "a sentence",
}


def _lines(text: str) -> str:
    return html.escape(text).replace("\n", "<br>")


def tasks(trial: ContinualTrial, before: Row) -> HTML:
    """A line a task, in the trial's order: an image, its question and answer, and what the model can
    do before the first one."""
    from PIL import Image

    lines = []
    for j, task in enumerate(trial.tasks):
        question, answer, image = task.test[0]
        out = io.BytesIO()
        Image.fromarray(image.numpy()).resize((64, 64), Image.Resampling.NEAREST).save(out, "PNG")
        picture = base64.b64encode(out.getvalue()).decode()
        scores = (f"{before.detail[kind][j]:.0f}" for kind in ("truth", "format_valid"))
        lines.append(
            [
                html.escape(task.name),
                f'<img class="drawn dark-light" src="data:image/png;base64,{picture}" '
                f'alt="The first image of {html.escape(task.name)}">',
                _lines(question),
                f"<i>{_lines(answer)}</i>",
                FORMS[task.style],
                *scores,
            ]
        )
    head = ["Task", "", "Question", "Answer", "Form", "right before, %", "in form before, %"]
    caption = f"The tasks in the order of seed {trial.seed} ({trial.run.profile_name})"
    return tables.table(head, lines, caption=caption, kind="wide")


def orders(run: Replication, experiment: str) -> HTML:
    """The order of tasks that each seed has."""
    lines = [
        [str(trial.seed), " → ".join(trial.order)] for trial in ContinualTrial.each(run, experiment)
    ]
    return tables.table(["Seed", "Order"], lines, kind="facts")


def _rows(run: Replication, methods: Sequence[str], seed: int) -> dict[str, Row]:
    """The row of each method on that seed, in the order of ``methods``."""
    found = {r.method: r for r in run.rows if r.seed == seed and r.method != BEFORE}
    return {m: found[m] for m in methods if m in found}


def matrices(
    run: Replication, methods: Sequence[str], seed: int, kind: str = "truth"
) -> Shown | None:
    """Accuracy on each task (columns) after each task (rows), one panel a method."""
    rows = _rows(run, methods, seed)
    if not rows:
        return None
    columns = min(3, len(rows))
    lines = -(-len(rows) // columns)
    with figure(
        f"Accuracy in per cent on each task (columns) after each task (rows, from top to bottom), seed {seed} "
        f"({run.profile_name}): right and in the task's form. A column that fades downwards is a task that "
        "is forgotten.",
        f"Triangular tables of accuracies, one for each of {', '.join(rows)}; the numbers are written in them.",
        size=(9.0, 2.9 * lines + 0.3),
        columns=columns,
        rows=lines,
    ) as (axes, shown):
        for ax, (method, row) in zip(axes, rows.items(), strict=False):
            names = [literal(n[:12]) for n in row.detail["order"]]
            for t, line in enumerate(row.detail[kind]):
                for j, value in enumerate(line):
                    ax.bar(j, 1, 1, t - 0.5, color=COLOURS[0], alpha=0.6 * value / 100, lw=0)
                    ax.text(j, t, f"{value:.0f}", ha="center", va="center", fontsize=9)
            ax.set_xlim(-0.5, len(names) - 0.5)
            ax.set_ylim(len(names) - 0.5, -0.5)
            ax.grid(visible=False)
            ax.set_xticks(range(len(names)), names, rotation=50, ha="right")
            ax.set_yticks(range(len(names)), names)
            ax.tick_params(labelsize=8.5, length=0)
            ax.set_title(literal(method))
        for ax in axes[len(rows) :]:
            ax.set_visible(False)
    return shown


def forgetting(run: Replication, methods: Sequence[str], seed: int) -> Shown | None:
    """Of each former task at the end: what is still right, what is lost in form, what is lost."""
    rows = {m: r for m, r in _rows(run, methods, seed).items() if len(r.detail["order"]) > 1}
    if not rows:
        return None
    parts = ("scored right", "known, not scored right", "known once, not any more")
    with figure(
        f"What has become of each former task at the end, seed {seed} ({run.profile_name}), in per cent of its "
        "answers. The middle part holds the right content, in another form or beside something wrong (a description "
        "with the right thing in the wrong place). The last one was known right after the task, and is lost or cannot be "
        "read any more: a letter, a broken box and a bare yes say nothing of another task's question.",
        f"Stacked bars, a line a task, one panel for each of {', '.join(rows)}.",
        size=(9.0, 0.36 * len(next(iter(rows.values())).detail["order"]) + 1.5),
        columns=len(rows),
    ) as (axes, shown):
        for i, (ax, (method, row)) in enumerate(zip(axes, rows.items(), strict=True)):
            d, names = row.detail, [literal(n) for n in row.detail["order"][:-1]]
            truth, known = d["truth"][-1][:-1], d["knowledge"][-1][:-1]
            then = [d["knowledge"][j][j] for j in range(len(names))]
            widths = [
                truth,
                [k - t for k, t in zip(known, truth, strict=True)],
                [max(0.0, a - k) for a, k in zip(then, known, strict=True)],
            ]
            left = [0.0] * len(names)
            for part, width, colour, hatch in zip(
                parts, widths, COLOURS, ("", "///", "..."), strict=False
            ):
                ax.barh(names, width, left=left, color=colour, label=part, height=0.7, hatch=hatch)
                left = [a + w for a, w in zip(left, width, strict=True)]
            ax.invert_yaxis()
            ax.set_xlim(0, 100)
            ax.set_title(literal(method))
            ax.set_xlabel("% of answers")
            if i:
                ax.set_yticklabels([])
        axes[0].figure.legend(
            *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9
        )
    return shown


def learned(
    run: Replication, experiment: str, methods: Sequence[str], bound: str, least: float = 60.0
) -> HTML:
    """MFT, MFN, MAA and BWT of truth, over those tasks alone that the ``bound`` has right for ``least`` per cent.

    Tasks that nobody learns stay near chance, whatever is forgotten, and dilute all four.
    """
    seeds = run.seeds_of(experiment)
    tables_of = {seed: _rows(run, (*methods, bound), seed) for seed in seeds}
    known = {
        seed: {
            name for name, share in zip(d["order"], d["truth"][-1], strict=True) if share >= least
        }
        for seed, rows in tables_of.items()
        if bound in rows
        for d in [rows[bound].detail]
    }
    if not any(known.values()):
        return HTML(
            f"<p>{bound} was not run for {html.escape(experiment)}, or learned no task of it.</p>"
        )
    lines = []
    for method in methods:
        found = []
        for seed, rows in tables_of.items():
            if method not in rows or not known.get(seed):
                continue
            d = rows[method].detail
            kept = [j for j, name in enumerate(d["order"]) if name in known[seed]]
            then = [d["truth"][j][j] for j in kept]
            now = [d["truth"][-1][j] for j in kept]
            stages = [[line[j] for j in kept if j < len(line)] for line in d["truth"]]
            means = [sum(s) / len(s) for s in stages if s]
            mft, mfn, maa = (sum(x) / len(x) for x in (then, now, means))
            found.append((mft, mfn, maa, mfn - mft))
        cells = [" · ".join(map(tables.number, column)) for column in zip(*found, strict=True)]
        if found:
            lines.append([html.escape(method), *cells])
    caption = (
        f"The same over the tasks that {bound.lower()} has right for {least:.0f} % at least, each seed with a method's "
        f"row ({run.profile_name})"
    )
    head = ["Method", "MFT, %", "MFN, %", "MAA, %", "BWT, points"]
    return tables.table(head, lines, caption=caption, kind="results")


def answers(run: Replication, methods: Sequence[str], seed: int) -> HTML:
    """What each model says, at the end, to the first test question of every task."""
    rows = _rows(run, methods, seed)
    if not rows:
        return HTML("")
    asked = zip(*map(_firsts, rows.values()), strict=True)
    lines = [
        [
            html.escape(first["task"]),
            _lines(first["question"]),
            f"<i>{_lines(first['answer'])}</i>",
            *(_lines(x["said"]) or "–" for x in (first, *others)),
        ]
        for first, *others in asked
    ]
    head = ["Task", "Question", "Answer", *map(html.escape, rows)]
    caption = (
        f"What is said after the last task to the first test question of each, "
        f"seed {seed} ({run.profile_name})"
    )
    return tables.table(head, lines, caption=caption, kind="wide")


def _firsts(row: Row) -> list[dict[str, str]]:
    """The first question of each task among those that a row keeps."""
    found: dict[str, dict[str, str]] = {}
    for shown in row.detail["said"]:
        found.setdefault(shown["task"], shown)
    return list(found.values())
