"""The common ground: every classification method on the same models, splits, seeds and metrics.

Chapters include the experiments from ``notebooks/shared/classifiers.yaml``, under the same names, so
their records hold the same rows. Nothing is computed here.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

from ..methods import METHODS
from . import tables
from .records import Record, Row

__all__ = ["BASES", "ground_tables"]

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

DETAIL = (
    "forget_accuracy",
    "retain_accuracy",
    "test_accuracy",
    "confidence_mia",
    "gap",
    "relearned_accuracy",
    "seconds",
    "peak_memory",
)


def _rows(records: Iterable[Record], experiment: str) -> list[Row]:
    """The experiment's rows in all records, each once."""
    found = {r.key: r for record in records for r in record.rows if r.experiment == experiment}
    return [r for r in found.values() if "retain_accuracy" in r.metrics]


def _values(rows: list[Row], method: str, metric: str) -> list[float]:
    mine = sorted((r for r in rows if r.method == method), key=lambda r: r.seed)
    return [r.metrics[metric].value for r in mine if metric in r.metrics]


def _needs(rows: list[Row], method: str) -> str:
    spec = next(r.spec.get("method") for r in rows if r.method == method)
    by_class = {cls.__name__: cls for cls in METHODS.values()}
    return ", ".join(sorted(by_class[spec["is"]].needs)) if spec else "–"


def _overview(parts: dict[str, list[Row]], caption: str) -> str:
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


def ground_tables(records: Iterable[Record]) -> str:
    """The page's tables, from records of one profile; HTML."""
    records = list(records)
    out = []
    for title, experiments in BASES.items():
        out.append(f"<h2>{html.escape(title)}</h2>")
        parts = {kind: _rows(records, name) for kind, name in experiments.items()}
        missing = [kind for kind, rows in parts.items() if not rows]
        if missing:
            out.append(f"<p>Not run yet on this base: {html.escape(', '.join(missing))}.</p>")
        parts = {kind: rows for kind, rows in parts.items() if rows}
        if not parts:
            continue
        out.append(_overview(parts, f"Every method on this base ({records[0].profile})"))
        for kind, rows in parts.items():
            detail = tables.results_table(rows, DETAIL, f"Forgetting: {kind}").data
            out.append(
                f"<details><summary>{html.escape(kind)}: all metrics</summary>{detail}</details>"
            )
    return "".join(out)
