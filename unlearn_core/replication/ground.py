"""The common ground: every classification method on the same models, splits, seeds and metrics.

Chapters include the experiments from ``notebooks/shared/classifiers.yaml``, under the same names, so
their records hold the same rows. Nothing is computed here.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

from scipy.stats import rankdata, spearmanr

from ..methods import METHODS
from . import tables
from .records import Record, Row
from .trial import ORIGINAL

__all__ = ["BASES", "ground_tables", "needs_of"]

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

DETAIL = (
    "gap",
    "forget_accuracy",
    "retain_accuracy",
    "test_accuracy",
    "confidence_mia",
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


def needs_of(row: Row) -> frozenset[str]:
    """What the method of a row requires; nothing of the original's."""
    spec = row.spec.get("method")
    by_class = {cls.__name__: cls for cls in METHODS.values()}
    return by_class[spec["is"]].needs if spec else frozenset()


def _needs(rows: list[Row], method: str) -> str:
    return ", ".join(sorted(needs_of(next(r for r in rows if r.method == method)))) or "–"


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


def _mean_gaps(rows: list[Row]) -> dict[str, float]:
    """Each method's mean gap over the seeds; the oracle, whose gap is 0, left out."""
    oracle = {r.method for r in rows if (r.spec.get("method") or {}).get("is") == "Retrain"}
    gaps = {m: _values(rows, m, "gap") for m in dict.fromkeys(r.method for r in rows)}
    return {m: sum(v) / len(v) for m, v in gaps.items() if v and m not in oracle}


def _side_by_side(bases: dict[str, dict[str, list[Row]]], profile: str) -> str:
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
        caption=f"Mean gap on both bases and, in brackets, the rank ({profile})",
        kind="results",
    ).data
    words = html.escape("; ".join(orders))
    order = f"<p>Spearman’s correlation of the two orders: {words}.</p>" if orders else ""
    return f"<h2>Both bases side by side</h2>{table}{order}"


def ground_tables(records: Iterable[Record]) -> str:
    """The page's tables, from records of one profile; HTML."""
    records = list(records)
    bases: dict[str, dict[str, list[Row]]] = {}
    for title, experiments in BASES.items():
        found = {kind: _rows(records, name) for kind, name in experiments.items()}
        bases[title] = {kind: rows for kind, rows in found.items() if rows}
    out = [_side_by_side(bases, records[0].profile)]
    for title, parts in bases.items():
        out.append(f"<h2>{html.escape(title)}</h2>")
        missing = [kind for kind in BASES[title] if kind not in parts]
        if missing:
            out.append(f"<p>Not run yet on this base: {html.escape(', '.join(missing))}.</p>")
        if not parts:
            continue
        out.append(_overview(parts, f"Every method on this base ({records[0].profile})"))
        for kind, rows in parts.items():
            detail = tables.results_table(rows, DETAIL, f"Forgetting: {kind}").data
            out.append(
                f"<details><summary>{html.escape(kind)}: all metrics</summary>{detail}</details>"
            )
    return "".join(out)
