r"""UCE, Unified Concept Editing (Gandikota et al., WACV 2024; arXiv 2308.14761): a closed form.

Every key and value matrix of cross-attention gives the concept's rows what it gave the anchor's, and what
is to be kept what it gave that,

.. math:: W' = \Big(\lambda W + s_e \sum_i v_i c_i^\top + s_p \sum_j W p_j\, p_j^\top\Big)
               \Big(\lambda I + s_e \sum_i c_i c_i^\top + s_p \sum_j p_j p_j^\top\Big)^{-1},

with :math:`v_i = W a_i`, or, by the technique "tensor", the anchor's values without their component along the
concept's own.

Steps: (1) pair the rows of concept and anchor; (2) take all rows of the prompts to keep; (3) solve for every
matrix (`unlearn_core.methods.cross_attention`).

Code: github.com/rohitgandikota/unified-concept-editing, ``train-scripts/train_erase.py`` of 2023, whose numbers
are published (``release="2023"``), commit bd5fb51, and ``trainscripts/uce_sd_erase.py`` (``"2025"``), commit
28c81ed: one row a concept and a prompt, the last one of its words. Deviations: an encoder that reads both ways has
the concept in the rows before its last word as well, so the rows of 2023 are all of them there; the anchor stands
in the concept's template, where the code of 2023 has it alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...data import ForgetSplit
from ...fields import NotNegative
from ...models import TextConditional
from ...models.diffusion import PromptEncoder
from ..base import DIFFUSION, Method
from ..cross_attention import edit, projections, shared_rows, spans, text_rows, whole

__all__ = ["UCE", "without_component"]


def without_component(wanted: Tensor, own: Tensor) -> Tensor:
    """``wanted`` without its component along ``own``, both as one vector: (rows, out) each."""
    along = own / own.norm()
    return wanted - (along * wanted).sum() * along


@dataclass(frozen=True)
class UCE(Method):
    """Give the concepts' words the anchors' keys and values.

    Attributes
    ----------
    release : which rows are edited, "2023" or "2025"
    technique : "replace", the anchor's values; "tensor", these without the concept's component
    lam : :math:`\\lambda`
    erase_scale : :math:`s_e`
    keep_scale : :math:`s_p`; None for the release's default: in 2023 one over the number of prompts to keep,
        at least 0.1; in 2025 one
    """

    name: ClassVar[str] = "uce"
    needs: ClassVar[frozenset[str]] = frozenset({"concepts", "keep"})
    draws: ClassVar[bool] = False
    works_on: ClassVar[frozenset[str]] = DIFFUSION
    trains: ClassVar[bool] = False

    release: Literal["2023", "2025"] = "2023"
    technique: Literal["replace", "tensor"] = "replace"
    lam: NotNegative = 0.5
    erase_scale: NotNegative = 1.0
    keep_scale: NotNegative | None = None

    def rows(
        self, encoder: PromptEncoder, prompt: str, words: str, anchor: str, instead: str
    ) -> tuple[Tensor, Tensor]:
        """The rows that are edited, and those whose values they get: (rows, d) each."""
        (_, end), (_, stop) = spans(encoder, prompt, words, anchor, instead)
        mine, theirs = text_rows(encoder, prompt), text_rows(encoder, anchor)
        if self.release == "2025":
            return mine[end - 1 : end], theirs[stop - 1 : stop]
        if encoder.masked:
            here, there = shared_rows(encoder, prompt, words, anchor, instead)
            return mine[here], theirs[there]
        n = min(len(mine) - end, len(theirs) - stop) + 1
        return mine[end - 1 : end - 1 + n], theirs[stop - 1 : stop - 1 + n]

    def unlearn(self, model: TextConditional, split: ForgetSplit, seed: int) -> TextConditional:
        projections(model)  # a model of classes has none, and says so
        concepts, encoder = split.task.concepts, model.prompts
        pairs = [
            self.rows(encoder, t.format(name), name, t.format(anchor), anchor)
            for name, anchor in concepts.erased
            for t in concepts.templates
        ]
        if self.release == "2023":
            kept = list(dict.fromkeys(["", *concepts.keep]))  # the empty prompt is always kept
            keep_rows, default = whole(encoder, kept), max(0.1, 1 / len(kept))
        else:
            ends = [_last(encoder, prompt) for prompt in concepts.keep]
            keep_rows = torch.stack(ends) if ends else torch.empty(0, encoder.dimensions)
            default = 1.0
        scale = default if self.keep_scale is None else self.keep_scale
        solve_pairs(
            model, pairs, keep_rows, self.lam, self.erase_scale, scale, self.technique == "tensor"
        )
        return model


def _last(encoder: PromptEncoder, prompt: str) -> Tensor:
    """The row of the last token before the one that ends the text."""
    n = int(encoder.tokens([prompt])[1].sum())
    return encoder([prompt])[0, max(n - 2, 0)]


def solve_pairs(
    model: TextConditional,
    pairs: list[tuple[Tensor, Tensor]],
    kept: Tensor,
    lam: float,
    erase_scale: float,
    keep_scale: float,
    tensor: bool,
) -> None:
    """Edit ``model`` in place so that the first rows of each pair give what the second ones gave."""
    rows = torch.cat([*(a for a, _ in pairs), kept])
    scale = torch.full((len(rows),), erase_scale, dtype=torch.float64)
    scale[len(rows) - len(kept) :] = keep_scale
    if not tensor:
        edit(model, rows, torch.cat([*(b for _, b in pairs), kept]), scale, lam)
        return
    values = {}
    for name, w in projections(model).items():
        at = w.detach().double()
        own = [without_component(b.to(at) @ at.T, a.to(at) @ at.T) for a, b in pairs]
        values[name] = torch.cat([*own, kept.to(at) @ at.T])
    edit(model, rows, values, scale, lam)
