"""The common ground of models that draw: every method on the same model, concepts, noise and judge.

Chapters include the experiments from ``notebooks/shared/erasing.yaml``. Nothing is computed here.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

from . import tables
from .figures import COLOURS, figure
from .ground import needs_of
from .records import Record, Row
from .trial import ORIGINAL

__all__ = ["erasure_tables"]

COLUMNS = (
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
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h")

#: What is asked for -> how well it is gone, and how well the rest is still there.
PANELS = {
    "by name": ("erased_accuracy", "kept_accuracy"),
    "by other words": ("general_accuracy", "relative_accuracy"),
}


def _grounds(records: Iterable[Record]) -> dict[str, list[Row]]:
    """Concept -> the rows of every method that drew for it, each once; whatever has synonyms."""
    found: dict[str, dict[str, Row]] = {}
    for record in records:
        for row in record.rows:
            if row.experiment.startswith("erase_") and "general_accuracy" in row.metrics:
                found.setdefault(str(row.variant["forget"]), {}).setdefault(row.key, row)
    return {concept: list(rows.values()) for concept, rows in found.items()}


def _picture(concept: str, rows: list[Row], profile: str) -> str:
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
        f"given; right by synonyms, which those that read no images are not. A mark a seed ({concept}, {profile}).",
        f"Two scatter plots of how much of the concept is gone over how much of the rest is kept. {said}.",
        size=(9.0, 5.6),
        columns=2,
    ) as (axes, shown):
        for ax, (words, pair) in zip(axes, PANELS.items(), strict=True):
            for k, method in enumerate(methods):
                xs, ys = points(method, *pair)
                mark = "$O$" if method == ORIGINAL else MARKS[k % len(MARKS)]
                colour = COLOURS[k % len(COLOURS)]
                ax.plot(
                    xs,
                    ys,
                    ls="",
                    marker=mark,
                    color=colour,
                    ms=8,
                    mfc="none",
                    mew=1.5,
                    label=method,
                )
            ax.set_title(words)
            ax.set_xlim(-4, 104)
            ax.set_ylim(-4, 104)
            ax.set_xlabel("others named as asked for, %")
        axes[0].set_ylabel("concept not named where it is asked for, %")
        handles, labels = axes[0].get_legend_handles_labels()
        axes[0].figure.legend(handles, labels, fontsize=9.5, ncols=4, loc="outside lower center")
    return shown.data


def erasure_tables(records: Iterable[Record]) -> str:
    """The page's figures and tables, from records of one profile; HTML."""
    records = list(records)
    out = []
    for concept, rows in _grounds(records).items():
        profile = records[0].profile
        out.append(f"<h2>{html.escape(concept.capitalize())}</h2>")
        out.append(_picture(concept, rows, profile))
        shown = [c for c in COLUMNS if any(c in r.metrics for r in rows)]
        out.append(tables.results_table(rows, shown, f"Every method ({profile})").data)
    needs = {
        row.method: [html.escape(row.method), html.escape(", ".join(sorted(needs_of(row))))]
        for rows in _grounds(records).values()
        for row in rows
        if row.spec.get("method")
    }
    if needs:
        head = ["Method", "Needs"]
        out.append(tables.table(head, needs.values(), caption="What each needs", kind="wide").data)
    return "".join(out)
