"""The common ground of language models: every method on the same model, questions and metrics.

Chapters include the experiments from ``notebooks/shared/language.yaml``; what a chapter adds to them
on the same questions stands beside them. Nothing is computed here.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

from . import tables
from .cache import digest
from .figures import COLOURS, figure
from .ground import needs_of
from .papers import load_paper
from .records import Record, Row
from .trial import ORIGINAL

__all__ = ["language_tables"]

COLUMNS = (
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
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")

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


def _grounds(records: Iterable[Record]) -> dict[str, list[Row]]:
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


def _picture(title: str, rows: list[Row], profile: str) -> str:
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
        f"{profile}).",
        f"A scatter plot of forget quality on a logarithmic scale over model utility. {said}.",
        size=(8.4, 7.2),
    ) as ((ax,), shown):
        for colour, (kind, methods) in zip(COLOURS, kinds.items(), strict=False):
            for mark, method in zip(MARKS * 2, methods, strict=False):
                xs, ys = drawn(points[method])
                label = f"{method} ({kind})"
                ax.plot(
                    xs, ys, ls="", marker=mark, color=colour, ms=8, mew=0, alpha=0.85, label=label
                )
        for mark, method in (("$O$", ORIGINAL), *(("$R$", m) for m in oracle)):
            if method in points:
                xs, ys = drawn(points[method])
                ax.plot(xs, ys, ls="", marker=mark, color=COLOURS[3], ms=11, label=method)
        if ORIGINAL in points:
            ax.axvline(points[ORIGINAL][0][0], ls=":", lw=1, color="gray")
        ax.axhline(0.05, ls="--", lw=1, color="gray")
        ax.set_yscale("log")
        ax.set_xlabel("model utility")
        ax.set_ylabel("forget quality, p")
        ax.legend(fontsize=9.5, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    return shown.data


def language_tables(records: Iterable[Record]) -> str:
    """The page's figures and tables, from records of one profile; HTML."""
    records = list(records)
    out = []
    for title, rows in _grounds(records).items():
        profile = records[0].profile
        out.append(f"<h2>{html.escape(title)}</h2>")
        out.append(_picture(title, rows, profile))
        out.append(tables.results_table(rows, COLUMNS, f"Every method ({profile})").data)
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
