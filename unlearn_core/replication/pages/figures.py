"""Figures for pages: inline SVG that takes the page's text colour, with caption and alt text."""

from __future__ import annotations

import contextlib
import hashlib
import html
import io
import re
from collections.abc import Iterator, Sequence

import matplotlib as mpl
import numpy as np
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...metrics import METRICS
from ..records import Row

__all__ = ["COLOURS", "MARKERS", "figure", "literal", "seed_dots", "strip"]

#: Okabe and Ito's colour-blind safe palette, less yellow and black (one page background each).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
#: Markers of a figure's series, in this order.
MARKERS = ("o", "s", "^", "D", "v", "P")
INK = "#123456"  # stands for the page's text colour until the SVG is written

STYLE = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.facecolor": "none",
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.18,
    "axes.axisbelow": True,
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "svg.fonttype": "none",
    "axes.prop_cycle": mpl.cycler(color=COLOURS),
    **{
        key: INK
        for key in (
            "text.color",
            "axes.labelcolor",
            "axes.edgecolor",
            "xtick.color",
            "ytick.color",
            "grid.color",
            "axes.titlecolor",
        )
    },
}


@contextlib.contextmanager
def styled(salt: str) -> Iterator[None]:
    """Draw in our style, whatever the reader's own matplotlibrc says; ``salt`` makes a figure's ids its own."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE | {"svg.hashsalt": salt})
        yield


class Shown(HTML):
    """A figure on its way to the page; filled when the `figure` block ends."""

    def __init__(self) -> None:
        super().__init__("")


@contextlib.contextmanager
def figure(
    caption: str,
    alt: str,
    *,
    size: tuple[float, float] = (8.4, 3.6),
    columns: int = 1,
    rows: int = 1,
) -> Iterator[tuple[list[Axes], Shown]]:
    """Draw into axes, then show the result.

    ``with figure(caption, alt) as (axes, shown): ...`` and, as the cell's last line, ``shown``.

    Parameters
    ----------
    caption : printed under the figure
    alt : what a reader who can't see it must know; not empty
    size : width and height in inches
    columns, rows : the axes, line by line
    """
    if not alt.strip() or not caption.strip():
        raise ValueError("a figure needs a caption and an alt text")
    shown = Shown()
    with styled(caption):
        fig = Figure(figsize=size, layout="constrained")
        axes = [fig.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]
        yield axes, shown
        svg = svg_of(fig, alt)
    shown.data = (
        f'<figure class="unlearn-figure" style="max-width:{size[0] * 96:.0f}px">{svg}'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def svg_of(fig: Figure, alt: str) -> str:
    """A drawn figure as an inline SVG in the page's colours, as wide as what holds it."""
    out = io.StringIO()
    fig.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    # The page may give each series colour another shade (the dark mode does).
    for i, colour in enumerate(COLOURS, 1):
        svg = svg.replace(colour.lower(), f"var(--unlearn-{i}, {colour})")
    # Ids are unique on a page only if they carry something of this figure.
    tag = "f" + hashlib.sha256((alt + svg).encode()).hexdigest()[:8]
    svg = re.sub(r'id="', f'id="{tag}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{tag}-", svg)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"([^>]*?) width="[^"]*"', r"\1\2", svg, count=1)
    label = html.escape(alt, quote=True)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def literal(name: str) -> str:
    """A name as a label: matplotlib takes what stands between two dollar signs for mathematics."""
    return name.replace("$", r"\$")


def seed_dots(
    ax: Axes,
    x: Sequence[float],
    values: Sequence[Sequence[float]],
    label: str,
    colour: str,
    marker: str,
) -> None:
    """A line through the means and a dot for every seed; ``values[i]`` are the seeds at ``x[i]``."""
    means = [np.mean(v) for v in values]
    ax.plot(x, means, color=colour, lw=1.6, label=literal(label), marker=marker, ms=0)
    for at, seeds in zip(x, values, strict=True):
        ax.plot([at] * len(seeds), seeds, marker, color=colour, ms=4.5, mew=0, alpha=0.75)


def strip(ax: Axes, rows: Sequence[Row], metric: str, own: str) -> None:
    """One line a method, from top to bottom: a dot for every seed and the range as a bar.

    Methods whose names begin with ``own`` are in another colour.
    """
    methods = list(dict.fromkeys(row.method for row in rows))
    every = [row.metrics[metric].value for row in rows if metric in row.metrics]
    if every and min(every) > 0 and max(every) > 1000 * min(every):
        ax.set_xscale("log")  # a model that came apart would press all others together
    for y, method in enumerate(methods):
        values = [
            r.metrics[metric].value for r in rows if r.method == method and metric in r.metrics
        ]
        if not values:
            continue
        colour = COLOURS[1] if method.startswith(own) else COLOURS[0]
        ax.plot([min(values), max(values)], [y, y], color=colour, lw=5, alpha=0.25)
        ax.plot(values, [y] * len(values), "o", color=colour, ms=5, mew=0, alpha=0.8)
    ax.set_yticks(range(len(methods)), [literal(m) for m in methods])
    ax.invert_yaxis()
    info = METRICS[metric]
    ax.set_title(info.label)
    ax.set_xlabel(info.unit)
