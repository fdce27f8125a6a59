"""Verdicts as pictures: all claims of a chapter on one axis, and one claim at every size (its ladder)."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.figure import Figure

from ..papers import PaperFile
from ..records import Verdict
from . import tables
from .figures import COLOURS, INK, Shown, figure, literal, styled, svg_of

__all__ = ["forest", "ladder"]

#: Verdict -> (colour, marker): told apart without colours, too.
LOOKS = {
    "holds": (COLOURS[2], "o"),
    "tie": (COLOURS[0], "s"),
    "holds in part": (COLOURS[4], "D"),
    "fails": (COLOURS[1], "X"),
    "not tested": (INK, "o"),
}

#: Standard errors: the axis' ticks, and where it ends.
TICKS = (-100, -30, -10, -4, -2, 0, 2, 4, 10, 30, 100)


def forest(file: PaperFile, verdicts: Sequence[Verdict]) -> Shown | None:
    """Every claim's mean margin in units of its own standard error, its seeds around it.

    Margins have many units, so what they share is how sure they are: beyond two errors a claim
    holds or fails, between them it is a tie. The margin itself stands at the line's end.
    """
    if not any(v.margins for v in verdicts):
        return None
    words = [f"{v.claim} {file.claims[v.claim].title}" for v in verdicts]
    counted = "; ".join(f"{v.claim} {v.text}" for v in verdicts)
    with figure(
        "Mean margins of all claims, in standard errors; small dots are seeds. In the grey band a margin "
        "is a tie: right of it the claim holds, left of it the claim fails. At the right the margin ± its "
        "standard error. Hollow: not tested, the reason stands below.",
        f"Mean margin over its standard error, a line a claim: {counted}.",
        size=(8.8, 0.31 * len(verdicts) + 0.9),
    ) as ((ax,), shown):
        ax.axvspan(-2, 2, color="gray", alpha=0.16, lw=0)
        ax.axvline(0, color=INK, lw=0.8, alpha=0.5)
        ax.set_xscale("asinh", linear_width=2)
        for y, v in enumerate(verdicts):
            text = _draw(ax, y, v, file.claims[v.claim].unit)
            place = {"transform": ax.get_yaxis_transform(), "va": "center", "fontsize": 9}
            ax.text(1.015, y, text, **place)
        ax.set_yticks(
            range(len(verdicts)),
            [literal(textwrap.shorten(w, 52, placeholder=" …")) for w in words],
        )
        ax.tick_params(axis="y", labelsize=9, length=0)
        reach = max([abs(x) for line in ax.lines for x in line.get_xdata()] + [6]) * 1.4
        ends = min(reach, 140)
        ax.set_xlim(-ends, ends)
        ticks = [t for t in TICKS if abs(t) < ends]
        ax.set_xticks(ticks, [f"{t:+d}" if t else "0" for t in ticks], fontsize=9)
        ax.minorticks_off()
        ax.set_ylim(len(verdicts) - 0.4, -0.6)
        ax.set_xlabel("mean margin / its standard error", fontsize=9)
        for x, side, word in ((0, "left", "fails"), (0.5, "center", "tie"), (1, "right", "holds")):
            ax.text(x, 1.01, word, transform=ax.transAxes, ha=side, fontsize=9, style="italic")
        ax.spines["left"].set_visible(False)
    return shown


def _draw(ax: mpl.axes.Axes, y: int, v: Verdict, unit: str) -> str:
    """One claim's line; returns what stands at its end."""
    if v.mean is None:
        return "not tested"
    colour, marker = LOOKS[v.verdict]
    text = tables.signed(v.mean, v.stderr, unit)
    if v.stderr is None:
        return f"{text}, error not known"
    if v.stderr == 0:  # no error: as sure as can be
        ax.plot(TICKS[-1] if v.mean >= 0 else TICKS[0], y, marker, color=colour, ms=7, mew=0)
        return f"{text}, exactly"

    def at(value: float) -> float:
        return min(max(value / v.stderr, TICKS[0]), TICKS[-1])

    face = "none" if v.verdict == "not tested" else colour
    if len(v.margins) > 1:
        dots = [at(m.value) for m in v.margins.values()]
        ax.plot(dots, [y] * len(dots), "o", color=colour, ms=3.5, mew=0, alpha=0.55)
    ax.plot(at(v.mean), y, marker, color=colour, mfc=face, ms=7.5, mew=1.2)
    return text


def ladder(title: str, steps: Sequence[tuple[str, Verdict]], paper: float | None) -> str:
    """A claim's margin at every published size, ± two standard errors, and the paper's own: an SVG.

    Parameters
    ----------
    title : the claim, for who cannot see it
    steps : (profile, verdict there), smallest size first
    paper : the margin that the paper's numbers give

    Returns
    -------
    "" where there is nothing to draw
    """
    steps = [(name, v) for name, v in steps if v.mean is not None]
    if not steps and paper is None:
        return ""
    said = [f"{name} {tables.signed(v.mean, v.stderr)}, {v.text}" for name, v in steps]
    said += [f"the paper {tables.signed(paper, None)}"] if paper is not None else []
    with styled(title):
        fig = Figure(figsize=(2.2, 0.86), layout="constrained")
        ax = fig.add_subplot()
        ax.axhline(0, color=INK, lw=0.8, alpha=0.6)
        ends = [0.0]
        for x, (_, v) in enumerate(steps):
            colour, marker = LOOKS[v.verdict]
            reach = 2 * (v.stderr or 0)
            ax.plot([x, x], [v.mean - reach, v.mean + reach], color=colour, lw=3, alpha=0.4)
            face = "none" if v.verdict == "not tested" else colour
            ax.plot(x, v.mean, marker, color=colour, mfc=face, ms=6, mew=1.2)
            _value(ax, x, v.mean)
            ends += [v.mean - reach, v.mean + reach]
        names = [name for name, _ in steps]
        if paper is not None:
            ax.plot(len(steps), paper, "*", color=INK, ms=8, mew=0)
            _value(ax, len(steps), paper)
            ends.append(paper)
            names.append("paper’s own")
        span = max(ends) - min(ends) or 1.0
        ax.set_ylim(min(ends) - 0.15 * span, max(ends) + 0.15 * span)
        ax.set_xlim(-0.5, max(len(names), 2) - 0.3)
        # Three names of that size would run into each other.
        ax.set_xticks(range(len(names)), names, fontsize=8 if len(names) < 3 else 6.5)
        ax.tick_params(axis="x", length=0, pad=1)
        ax.set_yticks([0], ["0"], fontsize=8)
        ax.tick_params(axis="y", length=0, pad=1)
        ax.grid(False)
        for side in ax.spines.values():
            side.set_visible(False)
        return svg_of(fig, f"{title}: the margin is {'; '.join(said)}.")


def _value(ax: mpl.axes.Axes, x: int, value: float) -> None:
    ax.annotate(
        tables.signed(value, None),
        (x, value),
        xytext=(5, 3),
        textcoords="offset points",
        fontsize=8,
    )
