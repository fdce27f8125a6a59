"""Tables for pages, made from records: HTML, with every seed's value in sight."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

from IPython.display import HTML

from ...metrics import METRICS
from ..papers import Claim, PaperFile, Target
from ..records import Record, Row, Verdict

__all__ = [
    "claims_table",
    "count",
    "deviations_table",
    "grouped",
    "heading",
    "invariants_table",
    "number",
    "results_table",
    "seed_cell",
    "signed",
    "spread",
    "table",
    "targets_table",
    "verdict_badge",
    "verdicts_table",
]

#: Verdict -> (CSS class, sign).
MARKS = {
    "holds": ("holds", "✓"),
    "tie": ("tie", "≈"),
    "holds in part": ("part", "◐"),
    "fails": ("fails", "✗"),
    "not tested": ("none", "–"),
}

ARROWS = {"higher": "↑", "lower": "↓", "retrained": "→ retrained", "none": ""}


def number(value: float) -> str:
    """Three significant digits, and at least one decimal for what is below 100."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 1:
        return f"{value:.1f}"
    return f"{value:.3g}"


def spread(values: Iterable[float]) -> str:
    """The mean of a few seeds and, where they differ in what is shown, from where to where: "89.1 (88 to 90)"."""
    found = list(values)
    mean, low, high = (number(v) for v in (sum(found) / len(found), min(found), max(found)))
    return mean if low == high else f"{mean} ({low} to {high})"


def count(n: int, thing: str) -> str:
    """ "1 seed", "3 seeds" """
    return f"{n} {thing}{'s' if n != 1 else ''}"


def signed(value: float, stderr: float | None, unit: str = "") -> str:
    """A margin with its sign and, where it is known, its standard error, to the same digit."""
    size = stderr if stderr else abs(value)
    digits = 2 if size == 0 else max(0, 1 - math.floor(math.log10(size)))
    digits = min(digits, 4)
    error = "" if stderr is None else f" ± {stderr:.{digits}f}"
    return f"{value:+.{digits}f}{error} {unit}".rstrip()


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str = "", kind: str = ""
) -> HTML:
    """An HTML table; cells are HTML, the first one of a row is its heading."""
    out = [f'<div class="unlearn-table {kind}"><table>']
    if caption:
        out.append(f"<caption><span>{html.escape(caption)}</span></caption>")
    out.append("<thead><tr>" + "".join(f'<th scope="col">{h}</th>' for h in head) + "</tr></thead>")
    out.append("<tbody>")
    for first, *rest in rows:
        cells = "".join(f"<td>{c}</td>" for c in rest)
        out.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    out.append("</tbody></table></div>")
    return HTML("".join(out))


def grouped(
    head: Sequence[str], groups: Iterable[tuple[str, Sequence[Sequence[str]]]], *, kind: str
) -> HTML:
    """An HTML table whose first cell stands for several lines; a short line's last cell is wide."""
    out = [f'<div class="unlearn-table {kind}"><table>']
    out.append("<thead><tr>" + "".join(f'<th scope="col">{h}</th>' for h in head) + "</tr></thead>")
    for first, lines in groups:
        out.append("<tbody>")
        for i, line in enumerate(lines):
            name = f'<th scope="rowgroup" rowspan="{len(lines)}">{first}</th>' if i == 0 else ""
            *cells, last = line
            plain = "".join(f"<td>{c}</td>" for c in cells)
            out.append(f'<tr>{name}{plain}<td colspan="{len(head) - len(line)}">{last}</td></tr>')
        out.append("</tbody>")
    out.append("</table></div>")
    return HTML("".join(out))


def _alike(values: Sequence[float]) -> list[str]:
    """Numbers to the same digit: three of the largest, two decimals where it is a few units."""
    largest = max(map(abs, values))
    if largest >= 100:
        return [number(v) for v in values]
    small = any(0 < abs(v) < 1 for v in values)
    digits = 1 + (largest < 10 and small)
    if 0 < largest < 1:
        digits = 2 - math.floor(math.log10(largest))
    return ["0" if v == 0 else f"{v:.{digits}f}" for v in values]


def seed_cell(values: Sequence[float], *, alone: str = "n = 1") -> str:
    """Every seed's value, in the order of the seeds; the mean above them if there are several.

    ``alone`` stands beside the only value where there is one seed.
    """
    if not values:
        return '<span class="muted">–</span>'
    if len(values) == 1:
        return number(values[0]) + (f' <span class="muted">{alone}</span>' if alone else "")
    mean, *seeds = _alike([sum(values) / len(values), *values])
    return f'{mean}<br><span class="seeds">{" · ".join(seeds)}</span>'


def heading(metric: str) -> str:
    """A metric's column: its label, its unit, and which way is good."""
    info = METRICS[metric]
    unit = f", {info.unit}" if info.unit else ""
    arrow = f' <span class="muted">{ARROWS[info.better]}</span>' if info.better != "none" else ""
    return f"{html.escape(info.label)}{unit}{arrow}"


def results_table(rows: Sequence[Row], metrics: Sequence[str], caption: str) -> HTML:
    """One line a method and variant; the mean, and below it every seed's value.

    What does not vary between the rows is left out of the labels.
    """
    varied = [
        key
        for key in dict.fromkeys(k for row in rows for k in row.variant)
        if len({str(row.variant.get(key)) for row in rows}) > 1
    ]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        label = html.escape(row.method)
        if why := row.detail.get("collapsed"):
            label += (
                f'<br><span class="muted" title="{html.escape(why, quote=True)}">came apart</span>'
            )
        if row.superseded:
            label += '<br><span class="muted">by an earlier version of the method</span>'
        own = [f"{k} = {row.variant[k]}" for k in varied if k in row.variant]
        if own:
            label += "<br>" + html.escape(", ".join(own))
        groups.setdefault(label, []).append(row)
    values = {
        label: [[m.metrics[name].value for m in members if name in m.metrics] for name in metrics]
        for label, members in groups.items()
    }
    single = all(len(v) < 2 for cells in values.values() for v in cells)
    lines = [
        [label, *(seed_cell(v, alone="" if single else "n = 1") for v in cells)]
        for label, cells in values.items()
    ]
    caption += ", one seed" * single
    return table(["Method", *map(heading, metrics)], lines, caption=caption, kind="results")


def claims_table(paper: PaperFile) -> HTML:
    """Each claim with its sentence, source and rule."""
    rows = [
        [
            html.escape(key),
            f"<b>{html.escape(c.title)}.</b> {html.escape(c.statement)}",
            html.escape(c.where),
        ]
        for key, c in paper.claims.items()
    ]
    return table(["", "Claim", "Where it comes from"], rows, kind="wide")


def verdict_badge(verdict: Verdict) -> str:
    """A verdict in words, with its sign and colour."""
    kind, sign = MARKS[verdict.verdict]
    return f'<span class="verdict {kind}">{sign} {html.escape(verdict.text)}</span>'


def verdicts_table(paper: PaperFile, verdicts: Iterable[Verdict]) -> HTML:
    """A line a claim: what it presupposes and what was found of it, its margin, its rule."""
    rows = []
    for v in verdicts:
        claim = paper.claims[v.claim]
        seeds = "".join(f"<br>seed {s}: {signed(m.value, m.stderr)}" for s, m in v.margins.items())
        if len(v.margins) == 1:
            seeds = f"<br>seed {next(iter(v.margins))} alone"
        margins = "–"
        if v.mean is not None:
            margin = signed(v.mean, v.stderr, html.escape(claim.unit))
            margins = f'<b>{margin}</b><span class="seeds">{seeds}</span>'
        rows.append([html.escape(v.claim), _told(claim, v), margins, _sign(claim, v)])
    head = ["", "Claim, and what its margin is", "Margin ± error", "Verdict"]
    return table(head, rows, kind="wide verdicts")


def _told(claim: Claim, v: Verdict) -> str:
    """A claim's title, what its margin is, what it presupposes, what might explain it, its rule."""
    out = f"<b>{html.escape(claim.title)}.</b> Margin: {html.escape(claim.margin)}"
    if v.reason:
        out += f"<p><b>Not tested:</b> {html.escape(v.reason)}.</p>"
    found: dict[str, list[str]] = {}
    for p in v.presupposes:
        sign = "✓" if p.holds else "✗"
        found.setdefault(p.name, []).append(f"{sign} seed {p.seed}: {html.escape(p.found)}")
    for name, seeds in found.items():
        out += f"<p><b>Presupposes:</b> {html.escape(name)} ({'; '.join(seeds)})</p>"
    if v.verdict in ("fails", "tie", "holds in part"):
        out += f"<p><b>What might explain it.</b> {html.escape(claim.explanation)}</p>"
    if v.rule:
        out += f"<details><summary>rule</summary><pre>{html.escape(v.rule)}</pre></details>"
    return out


def age_of_rule(verdict: Verdict) -> str:
    """What stands beside a verdict whose rule was not there when its rows were made."""
    if verdict.age != "younger" or verdict.verdict == "not tested":
        return ""
    return '<br><span class="muted">rule written after its result</span>'


def _sign(claim: Claim, v: Verdict) -> str:
    """The badge, whose claim it is where it is ours, and whether its rule is younger than its rows."""
    out = verdict_badge(v)
    if claim.whose == "ours":
        out += '<br><span class="muted">our claim</span>'
    return out + age_of_rule(v)


#: What a target's kind is called.
KINDS = {
    "read": "the paper’s own",
    "read second-hand": "the paper’s own, read second-hand",
    "independent": "independent",
}


def targets_table(targets: Iterable[Target]) -> HTML:
    """The paper's numbers, and others', in their own digits: one table a setting and source.

    Each has a line a method and a column a metric.
    """
    groups: dict[tuple[str, str, str], dict[str, dict[str, str]]] = {}
    for t in targets:
        spread = f" ± {t.spread:g}" if t.spread is not None else ""
        lines = groups.setdefault((t.setting, t.kind, t.source), {})
        lines.setdefault(t.method, {})[t.metric] = f"{t.value:g}{spread}"
    out = []
    for (setting, kind, source), lines in groups.items():
        metrics = list(dict.fromkeys(m for cells in lines.values() for m in cells))
        rows = [
            [html.escape(method), *(cells.get(m, "") for m in metrics)]
            for method, cells in lines.items()
        ]
        caption = f"{setting}: {KINDS[kind]} ({source})"
        out.append(table(["Method", *map(html.escape, metrics)], rows, caption=caption).data)
    return HTML("".join(out))


def deviations_table(paper: PaperFile, effects: dict[str, str]) -> HTML:
    """A block a deviation: its name, then who says or does what."""
    out = ['<div class="unlearn-table deviations"><table>']
    for key, d in paper.deviations.items():
        title = html.escape(f"{key}. {d.what}")
        out.append(f'<tbody><tr><th scope="rowgroup" colspan="2">{title}</th></tr>')
        lines = {"Paper": d.paper, "Authors’ code": d.code, "Here": d.ours}
        lines["Measured effect"] = effects.get(key, "not measured")
        for label, text in lines.items():
            out.append(f'<tr><th scope="row">{label}</th><td>{html.escape(text)}</td></tr>')
        out.append("</tbody>")
    out.append("</table></div>")
    return HTML("".join(out))


def invariants_table(record: Record) -> HTML:
    """What was checked on the way, and how often it held."""
    groups: dict[tuple[str, str], list] = {}
    for i in record.invariants:
        groups.setdefault((i.name, i.experiment), []).append(i)
    rows = [
        [
            html.escape(name),
            html.escape(experiment),
            f"{sum(i.holds for i in items)} of {len(items)}",
            html.escape(items[0].detail),
        ]
        for (name, experiment), items in groups.items()
    ]
    head = ["Invariant", "Experiment", "Times it holds", "First"]
    return table(head, rows, kind="wide")
