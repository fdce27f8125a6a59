"""What the chapters on RealEra, SalUn and Challenging Forgets show: what models drew."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

from IPython.display import HTML
from PIL import Image

from ...methods import RealEra
from ..records import Row
from ..run import Replication
from ..trials.base import ORIGINAL
from . import tables
from .figures import COLOURS, MARKERS, Shown, figure, literal

__all__ = ["each", "nouns", "pictures", "reach"]


#: Groups of prompts as a reader meets them.
ORDER = ("erased", "synonyms", "anchor", "kept")


def _rows(run: Replication, experiments: Sequence[str], target: object) -> dict[str, Row]:
    """The first row of each method that drew for that target, in the experiments' order."""
    found: dict[str, Row] = {}
    for name in experiments:
        for row in run.rows_of(name):
            if row.variant == {"forget": target} and "points" in row.detail:
                found.setdefault(row.method, row)
    return found


def nouns(run: Replication, experiment: str) -> HTML:
    """How well the original draws what each prompt asks for, before anything is erased."""
    lines, shown = [], set()
    for row in run.rows_of(experiment):
        target = row.variant.get("forget")
        if row.method != ORIGINAL or row.variant != {"forget": target}:
            continue  # the judge's row, or an attack's
        for p in row.detail["points"]:
            # More images are drawn of a target's own prompts than of the same prompts beside another.
            line = (p["prompt"], p["group"] not in ("kept", "relatives") and target)
            if line in shown:
                continue
            shown.add(line)
            if p["group"] == "anchor":
                says = f"anchor; drawn as {html.escape(str(target))}"
            else:
                says = "synonym" if p["group"] in ("synonyms", "relatives") else "name"
            lines.append([html.escape(str(p["prompt"])), says, f"{100 * p['own']:.0f}", p["n"]])
    caption = f"What the model draws before anything is erased ({run.profile_name})"
    head = ["Prompt", "", "named as what it says, %", "images"]
    return tables.table(head, lines, caption=caption, kind="results")


def each(run: Replication, experiments: Sequence[str], target: object) -> HTML:
    """How often each prompt is drawn as what it says: a line a model, one seed."""
    rows = _rows(run, experiments, target)
    points = next(iter(rows.values())).detail["points"]
    head = [
        f"{html.escape(p['prompt'])}<br><i>{html.escape(p['group'])}, {p['n']} images</i>"
        for p in points
    ]
    lines = [
        [html.escape(method), *(f"{100 * p['own']:.0f}" for p in row.detail["points"])]
        for method, row in rows.items()
    ]
    seeds = ", ".join(str(s) for s in sorted({row.seed for row in rows.values()}))
    caption = f"Images that are named as what was asked for, in per cent ({run.profile_name}, seed {seeds})"
    return tables.table(["Method", *head], lines, caption=caption, kind="results")


#: Pictures that fit beside each other on a page, each as wide as its table shows it.
ACROSS = 8


def _small(picture: str, count: int) -> str:
    """The first ``count`` squares of a row's PNG as WebP, base64: hundreds of noisy pictures in PNG
    would make too large a page."""
    strip = Image.open(io.BytesIO(base64.b64decode(picture)))
    strip = strip.crop((0, 0, min(count * strip.height, strip.width), strip.height))
    out = io.BytesIO()
    strip.save(out, "webp", quality=90, method=6)
    return base64.b64encode(out.getvalue()).decode()


def pictures(
    run: Replication,
    experiments: Sequence[str],
    target: object,
    called: str = "",
    methods: Sequence[str] = (),
) -> HTML:
    """A line a model, a column a prompt: the same noise in all of them, one seed.

    At most eight prompts, and as many images of each as there is room for, with the share of all
    images that are named as what was asked for. ``called`` says in words what is to be erased,
    where the target's name does not; ``methods`` are all that drew where none is named.
    """
    rows = _rows(run, experiments, target)
    rows = {m: rows[m] for m in methods or rows if m in rows}
    drawn = next(iter(rows.values())).detail["points"]
    shown = [p for p in drawn if "picture" in p]
    shown.sort(key=lambda p: (ORDER.index(p["group"]), p["distance"]))
    some, shown = len(shown) < len(drawn), shown[:ACROSS]
    each_has = max(1, ACROSS // len(shown))
    head = ["", *(f"{html.escape(p['prompt'])}<br><i>{p['group']}</i>" for p in shown)]
    lines = []
    for method, row in rows.items():
        known = {p["prompt"]: p for p in row.detail["points"]}
        cells = [
            f'<img class="drawn dark-light" src="data:image/webp;base64,{_small(p["picture"], each_has)}" '
            f'alt="{html.escape(method)}, {html.escape(p["prompt"])}: {p["own"]:.0%} of '
            f'{p["n"]} images are named right"><span class="muted">{p["own"]:.0%}</span>'
            for p in (known[s["prompt"]] for s in shown)
        ]
        lines.append([html.escape(method), *cells])
    caption = (
        f"What is drawn where {called or target} is to be erased ({run.profile_name}); all models from the "
        "same noise. Below a picture: of all images for that prompt, those named as what was asked for."
    )
    if some:
        caption += (
            " Of the prompts under “kept” the two nearest to the concept and the farthest one."
        )
    return tables.table(head, lines, caption=caption, kind="drawn")


def reach(
    run: Replication, experiments: Sequence[str], target: object, methods: Sequence[str]
) -> Shown:
    """How often each prompt is drawn as what it says, against its distance from the concept."""
    rows = _rows(run, experiments, target)
    chosen = [m for m in methods if m in rows]
    with figure(
        f"Left the prompts that mean {target}, right all others: the share of images that a classifier "
        "names as what the prompt says, against how far the prompt is from the concept's "
        f"(one minus the cosine of their embeddings; {run.profile_name}). Erasing should take the left "
        "side to what the anchor draws and leave the right one alone.",
        f"Scatter plots of accuracy over distance for {', '.join(chosen)}.",
        size=(9.0, 3.8),
        columns=2,
    ) as (axes, shown):
        for ax, groups in zip(axes, (("erased", "synonyms"), ("kept", "relatives")), strict=True):
            for method, colour, marker in zip(chosen, COLOURS, MARKERS, strict=False):
                points = [p for p in rows[method].detail["points"] if p["group"] in groups]
                ax.plot(
                    [p["distance"] for p in points],
                    [100 * p["own"] for p in points],
                    ls="",
                    marker=marker,
                    color=colour,
                    ms=7,
                    mew=1.3,
                    mfc="none",
                    label=literal(method),
                )
            ax.axvspan(1 - RealEra.high, 1 - RealEra.low, color="gray", alpha=0.15, lw=0)
            ax.set_ylim(-4, 104)
            ax.set_xlabel("distance from the concept")
        axes[0].set_ylabel("named as what was asked for, %")
        axes[0].set_title("the concept and its synonyms")
        axes[1].set_title("everything else")
        axes[1].legend(fontsize=9.5)
    return shown
