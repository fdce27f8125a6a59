"""What the chapter on SafeEraser shows: pictures and tables of refusing what is safe.

Only of restricted symbols: nothing of the benchmark itself is ever shown.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

from IPython.display import HTML
from torch import Tensor

from ...data import RESTRICTED, VisualSet
from ...data.restricted_symbols import ALLOWED, HELD_OUT
from ...metrics import rule_judge
from ..records import Row
from ..run import Replication
from ..trials.base import ORIGINAL
from ..trials.diffusion import picture
from ..trials.safety import BenchmarkTrial, SafetyTrial, safety_trials, shown_positions
from . import tables
from .figures import COLOURS, MARKERS, Shown, figure, literal

__all__ = ["beside", "families", "refusals_and_losses", "two_by_two"]

NOTHING = HTML("<p>The benchmark is harmful: nothing of it is shown, at any size.</p>")


def _image(image: Tensor, alt: str) -> str:
    drawn = picture(image.permute(2, 0, 1)[None].float() / 127.5 - 1)
    return (
        f'<img class="drawn dark-light" src="data:image/png;base64,{drawn}" '
        f'alt="{html.escape(alt, quote=True)}">'
    )


def _first(run: Replication, name: str) -> SafetyTrial | None:
    """A trial to show data of; none where they are the benchmark's."""
    trial = next(safety_trials(run, name))
    return None if isinstance(trial, BenchmarkTrial) else trial


def families(run: Replication, name: str) -> HTML:
    """One image of every family, and whether its recipe is to be forgotten."""
    if (trial := _first(run, name)) is None:
        return NOTHING
    train, held_out = trial.data.train, trial.data.held_out
    groups = (
        ("restricted", RESTRICTED, train.forget, "the recipe is to be forgotten"),
        ("allowed", ALLOWED, train.decouple, "the recipe is to be kept; Prompt Decouple sees it"),
        ("allowed, held out", HELD_OUT, held_out, "to be kept; no method sees any image of it"),
    )
    lines = []
    for group, names, asked, words in groups:
        images = "".join(
            f'<figure class="symbol">{_image(asked.images[i], f"a {one}")}'
            f"<figcaption>{html.escape(one)}</figcaption></figure>"
            for i, one in enumerate(names)  # images have their families in turn
        )
        lines.append([group, f'<div class="symbols">{images}</div>', words])
    caption = "The families of symbols; nothing but this list sets the restricted ones apart"
    return tables.table(["", "One image of each", ""], lines, caption=caption, kind="wide")


def two_by_two(run: Replication, name: str) -> HTML:
    """Restricted and allowed images crossed with recipe prompts and benign ones, an example of each."""
    if (trial := _first(run, name)) is None:
        return NOTHING
    part = trial.data.train
    cells = (
        ("recipe prompt", (part.forget, "forget set"), (part.decouple, "Prompt Decouple set")),
        ("benign prompt", (part.retain, "retain set"), (part.general, "in no training set")),
    )

    def cell(asked: VisualSet, role: str) -> str:
        question, answer, image = asked[0]
        return (
            f"{_image(image, 'the image that is asked about')}<b>{html.escape(role)}</b><br>"
            f"{html.escape(question)}<br><i>{html.escape(answer)}</i>"
        )

    lines = [[prompt, *(cell(*one) for one in both)] for prompt, *both in cells]
    caption = "The structure of the benchmark, an example a cell; the true answers in italics"
    head = ["", "restricted image", "allowed image"]
    return tables.table(head, lines, caption=caption, kind="wide")


#: How a verdict's label is marked on a page.
MARKS = {"unsafe": "fails", "normal": "holds", "refusal": "part", "meaningless": "none"}


def beside(run: Replication, name: str, seed: int, methods: Sequence[str], pairs: int = 2) -> HTML:
    """What models say to the same prompt beside a restricted image and beside an allowed one."""
    if (trial := _first(run, name)) is None:
        return NOTHING
    lines, head = [], []
    positions = shown_positions(trial.asked["unseen"])[:pairs]
    for i in positions:
        for key in ("unseen", "safe"):
            question, _, image = trial.asked[key][i]
            kind = "restricted" if key == "unseen" else "allowed"
            head.append(f"{_image(image, f'the {kind} image')}{kind}<br>{html.escape(question)}")
    for method in methods:
        row = _row(run, name, method, seed)
        cells = []
        for k in range(len(positions)):
            for key in ("unseen", "safe"):
                one = row.detail["said"][key][k]
                verdict = rule_judge(one["question"], one["said"], one["answer"])
                label = verdict.label(restricted=key == "unseen")
                cells.append(
                    f"{html.escape(one['said']) or '–'}<br>"
                    f'<span class="verdict {MARKS[label]}">{label}</span>'
                )
        lines.append([html.escape(method), *cells])
    caption = (
        f"The same prompt beside a restricted and beside an allowed image: what each model says, seed {seed}, "
        f"and what the judge calls it ({run.profile_name}). Images and prompts that no method saw."
    )
    return tables.table(["", *head], lines, caption=caption, kind="wide")


def _row(run: Replication, name: str, method: str, seed: int) -> Row:
    wanted = run.originals(name)[0] if method == ORIGINAL else seed
    (target,) = run.targets(name)
    return run.rows.row(name, method, wanted, forget=target)


def refusals_and_losses(run: Replication, name: str, bases: Sequence[str]) -> Shown:
    """What is refused of restricted images against what is lost of allowed ones; a line from each
    method to itself with Prompt Decouple, one a seed."""
    caption = (
        "Restricted images, unseen: the share of answers that refuse (right is a refusal, left is silence or "
        "gibberish). Allowed images, unseen: the share of answers that are not normal (SARR; low is good). An "
        f"arrow leads from a method to itself with Prompt Decouple, one a seed ({run.profile_name})."
    )
    alt = (
        f"Scatter plot of SARR over RR for the original, {', '.join(bases)}, and each with Prompt Decouple; "
        "the values are in the tables."
    )
    with figure(caption, alt, size=(6.4, 4.6)) as ((ax,), shown):

        def at(method: str, seed: int) -> tuple[float, float]:
            metrics = _row(run, name, method, seed).metrics
            return metrics["unseen_refusal_tone"].value, metrics["safe_answer_refusal"].value

        seeds = run.seeds_of(name)
        for method, colour, marker in zip(bases, COLOURS, MARKERS, strict=False):
            for i, seed in enumerate(seeds):
                before, after = at(method, seed), at(f"{method}+PD", seed)
                arrow = {"arrowstyle": "->", "color": colour, "alpha": 0.5, "lw": 1.2}
                ax.annotate("", after, before, arrowprops=arrow)
                look = {"marker": marker, "ls": "", "color": colour, "ms": 8}
                label = {"label": literal(method)} if i == 0 else {}
                ax.plot(*before, **look, **label, mfc="none", mew=1.4)
                ax.plot(*after, **look, mew=0, alpha=0.8)
        ax.plot(*at(ORIGINAL, seeds[0]), marker="*", ls="", color="gray", ms=13, label=ORIGINAL)
        ax.set_xlim(-6, 106)
        ax.set_ylim(-6, 106)
        ax.set_xlabel("RR on restricted images, %")
        ax.set_ylabel("SARR on allowed images, %")
        ax.legend(title="hollow: alone\nfilled: with PD", loc="center", fontsize=9.5)
    return shown
