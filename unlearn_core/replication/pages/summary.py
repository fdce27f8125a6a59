"""What a reader meets first: headlines with their verdicts, findings, the regime, the list of claims."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Sequence

from ..papers import PROFILES, Claim, PaperFile
from ..records import Record, Verdict
from . import tables
from .margins import ladder

__all__ = ["all_claims", "evidence", "first_screen", "front_page", "size_of"]

#: Headlines of one paper on the front page, all nine of which fit on one screen.
ON_FRONT = 2

AGES = {
    "older": "before its result",
    "younger": "after its result",
    "unknown": "not known",
}


def size_of(record: Record) -> str:
    """ "laptop, 3 seeds" """
    return f"{record.profile}, {tables.count(len(record.seeds), 'seed')}"


#: A paper in the pages about all of them: its slug, its YAML, the record that its chapter shows, and
#: those of every published size.
Told = tuple[str, PaperFile, Record, Sequence[Record]]


def evidence(record: Record, published: Sequence[Record]) -> list[tuple[Verdict, Record]]:
    """On every claim of a record the verdict of the largest published size that judges it, and whose
    that is; the record's own where none does."""
    sizes = sorted(published, key=lambda r: -PROFILES.index(r.profile))
    out = []
    for own in record.verdicts:
        at = ((v, r) for r in sizes for v in r.verdicts if v.claim == own.claim)
        out.append(next(((v, r) for v, r in at if v.verdict != "not tested"), (own, record)))
    return out


def _headlines(
    file: PaperFile, record: Record, published: Sequence[Record]
) -> list[tuple[Claim, Verdict, Record]]:
    """The abstract's sentences, in the YAML's order, with the best evidence on them and whose it is."""
    found = {v.claim: (v, r) for v, r in evidence(record, published)}
    return [(c, *found[k]) for k, c in file.claims.items() if c.headline and k in found]


def _counts(record: Record) -> str:
    """How many claims hold, fail and so on, in a sentence; where no headline says more."""
    kinds = Counter(v.verdict for v in record.verdicts)
    words = {
        "holds": ("holds", "hold"),
        "holds in part": ("holds in some seeds", "hold in some seeds"),
        "tie": ("is a tie", "are ties"),
        "fails": ("fails", "fail"),
        "not tested": ("is not tested", "are not tested"),
    }
    parts = [
        f"{kinds[k]} {one if kinds[k] == 1 else more}"
        for k, (one, more) in words.items()
        if kinds[k]
    ]
    return f"Of {len(record.verdicts)} claims, at {record.profile} size: {', '.join(parts)}."


def _paper_number(claim: Claim) -> str:
    if claim.paper_value:
        return html.escape(claim.paper_value)
    if claim.paper_margin is not None:
        return f"margin {tables.signed(claim.paper_margin, None, html.escape(claim.unit))}"
    return '<span class="muted">not available</span>'


def _our_number(claim: Claim, v: Verdict, judge: Record, shown: Record) -> str:
    """Our number in words, where the chapter gives it, the margin with its error, and its size where that
    is not the one shown."""
    found = _number(claim, v, judge)
    return found if judge is shown else f'{found} <span class="muted">({judge.profile})</span>'


def _number(claim: Claim, v: Verdict, judge: Record) -> str:
    if (
        v.mean is None or v.verdict == "not tested"
    ):  # a margin there says nothing, and would be quoted
        return html.escape(v.ours) or '<span class="muted">–</span>'
    found = tables.signed(v.mean, v.stderr).replace(" ", "&nbsp;")
    margin = f"margin {found} {html.escape(claim.unit)}".rstrip() + _alone(v, judge)
    return f'{html.escape(v.ours)} <span class="muted">{margin}</span>' if v.ours else margin


def _alone(v: Verdict, record: Record) -> str:
    """Of a margin on fewer seeds than its record has, or on one, whose error is that of its examples: which."""
    seeds = list(v.margins)
    if len(seeds) > 1 and len(seeds) >= len(record.seeds):
        return ""
    return f", seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))} alone"


def _judged(v: Verdict) -> str:
    """The badge, and whether the rule is younger than its rows."""
    return tables.verdict_badge(v) + tables.age_of_rule(v)


def _why_not(v: Verdict) -> str:
    """Why a claim is not tested, in a few words; its reason in full stands in the chapter and the list."""
    if v.verdict != "not tested":
        return ""
    missed = not all(p.holds for p in v.presupposes)
    why = "a precondition does not hold" if missed else v.reason
    return f'<br><span class="muted">{html.escape(why)}</span>'


# --- the front page --------------------------------------------------------------------------


def front_page(chapters: Iterable[Told]) -> str:
    """Each paper's headlines: its number, ours with its error, the verdict."""
    groups = []
    for slug, file, record, published in chapters:
        paper = (
            f'<a href="papers/{slug}.html"><b>{html.escape(file.paper.short)}</b></a><br>'
            f'<span class="muted">{html.escape(file.paper.venue)} {file.paper.year}<br>'
            f"{html.escape(size_of(record))}</span>"
        )
        found = _headlines(file, record, published)
        lines = [
            [
                html.escape(c.title),
                _paper_number(c),
                _our_number(c, v, r, record),
                _judged(v) + _why_not(v),
            ]
            for c, v, r in found[:ON_FRONT]
        ]
        if len(found) > ON_FRONT:
            lines[-1][0] += f' <a href="papers/{slug}.html">and {len(found) - ON_FRONT} more</a>'
        groups.append((paper, lines or [[html.escape(_counts(record))]]))
    head = ["Paper, our size", "What it claims", "The paper’s number", "Ours", "Verdict"]
    return tables.grouped(head, groups, kind="front").data


# --- the list of claims ----------------------------------------------------------------------


def all_claims(chapters: Iterable[Told]) -> str:
    """MyST: a section a paper, a line a claim."""
    out = []
    for slug, file, record, published in chapters:
        rows = []
        for v, judge in evidence(record, published):
            claim = file.claims[v.claim]
            whose = "ours" if claim.whose == "ours" else "headline" if claim.headline else "paper’s"
            margin = "–"
            if v.mean is not None and v.verdict != "not tested":
                margin = tables.signed(v.mean, v.stderr, html.escape(claim.unit)) + _alone(v, judge)
            badge = tables.verdict_badge(v)
            if v.reason:
                badge += f'<br><span class="muted">{html.escape(v.reason)}</span>'
            key, title = html.escape(v.claim), html.escape(claim.title)
            age = "–" if v.verdict == "not tested" else AGES[v.age]
            rows.append([key, title, whose, judge.profile, margin, badge, age])
        head = ["", "Claim", "Whose", "Size", "Margin ± error", "Verdict", "Rule written"]
        shown = tables.table(head, rows, kind="claims").data
        out.append(
            f"## {file.paper.short}\n\n[{file.paper.title}](papers/{slug}.ipynb); {size_of(record)}, "
            f"{html.escape(record.finished[:10])}.\n\n```{{raw}} html\n{shown}\n```\n"
        )
    return "\n".join(out)


# --- a chapter's first screen ----------------------------------------------------------------


def first_screen(file: PaperFile, record: Record, published: Sequence[Record], of_all: bool) -> str:
    """MyST: what was found, our regime beside the paper's, the headlines and their ladders.

    Parameters
    ----------
    record : of the run that the page shows
    published : of every published size, which the ladders are made of
    of_all : whether a headline has the verdict of the largest of them that judges it, as in a chapter, or
        this run's own
    """
    # Their Markdown is the chapter's own, but what they read of the data may look like HTML.
    sentences = [sentence.replace("<", "&lt;") for sentence in record.findings]
    found = "\n".join(f"- {sentence}" for sentence in sentences) or _counts(record)
    parts = [
        "## What we found\n",
        "::::{div} first-screen",
        f":::{{div}} found\n{found}\n:::",
        f"```{{raw}} html\n{_regime(file, record)}\n```",
        "::::\n",
    ]
    if table := _headline_table(file, record, published, of_all):
        parts.append(f"```{{raw}} html\n{table}\n```")
    parts.append("\n## The paper")
    return "\n".join(parts)


def _regime(file: PaperFile, record: Record) -> str:
    """Our regime beside the paper's; what was shrunk, in words, where a record has no facts."""
    if record.regime:
        rows = [[html.escape(x) for x in (f.name, f.ours, f.paper)] for f in record.regime]
        head = ["", f"Here, {record.profile}", "The paper"]
        return tables.table(head, rows, kind="regime").data
    profile = file.profiles.get(record.profile)
    words = html.escape(profile.shrunk) if profile else "not known"
    return f'<div class="regime"><p><b>Our size, {record.profile}.</b> {words}</p></div>'


def _headline_table(
    file: PaperFile, record: Record, published: Sequence[Record], of_all: bool
) -> str:
    sizes = sorted(published, key=lambda r: PROFILES.index(r.profile))
    rows = []
    for claim, v, judge in _headlines(file, record, published if of_all else ()):
        steps = [(r.profile, w) for r in sizes for w in r.verdicts if w.claim == v.claim]
        sentence = f"<b>{html.escape(v.claim)}</b> {html.escape(claim.statement)}"
        if v.reason:
            sentence += f'<br><span class="muted">Not tested: {html.escape(v.reason)}</span>'
        steps_shown = ladder(f"{v.claim}, {claim.title}", steps, claim.paper_margin)
        rows.append(
            [
                sentence,
                _paper_number(claim),
                _our_number(claim, v, judge, record),
                _judged(v),
                steps_shown,
            ]
        )
    if not rows:
        return ""
    head = [
        "What the paper claims",
        "The paper’s number",
        f"Ours: {html.escape(size_of(record))}",
        "Verdict",
        "Margin by size",
    ]
    told = (
        '<p class="muted">± is one standard error, a bar in the last column two. '
        '<a href="../guide/how_to_read.html">How to read a verdict</a>, its margin and the age of its '
        'rule; <a href="../reference/metrics.html">what the metrics are</a>.</p>'
    )
    return tables.table(head, rows, kind="headlines").data + told
