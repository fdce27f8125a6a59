r"""MACE, Mass Concept Erasure (Lu, Wang, Li, Liu and Kong, CVPR 2024; arXiv 2403.06135).

*Refinement*, in closed form: the rows of the words around a concept (what stands before it and behind it,
and what fills up) get the keys and values that they have around the anchor; the concept's own are left alone,

.. math:: \min_{W'} \sum_i \lVert W'e_i - We_i^*\rVert^2 + \lambda_1 \sum_p \lVert (W'-W)e^p\rVert^2
          + \lambda \lVert W'-W\rVert^2 .

*Suppression*, a LoRA a concept: on noised images of it, which the original draws, attention to its words and to
the token that ends the text is pressed down, :math:`\sum_\ell \lVert A_\ell[\cdot, c]\rVert`, at steps that are drawn where objects form,
:math:`p(t) \propto \sigma(\gamma(t - t_1)) - \sigma(\gamma(t - t_2))`.

*Fusion*, in closed form: the rows :math:`e_j` of every concept's prompts get what they get with its own LoRA
:math:`\Delta_i`, one concept's, too, so that a LoRA acts on its concept's prompts and not on all text,

.. math:: \min_{W^*} \sum_i \sum_j \lVert W^*e_j - (W' + \Delta_i)e_j\rVert^2
          + \lambda_1 \sum_p \lVert (W^*-W)e^p\rVert^2 + \lambda \lVert W^*-W'\rVert^2 .

Code: github.com/Shilin-LU/MACE, commit 057e7a6 (non-commercial; read, not copied), whose norm is not squared as the
paper's is; its settings for objects are the defaults, which keep no prompts. Deviations: no segmentation, so attention
is pressed down at all pixels and not at the object's alone; what is kept are the request's prompts, not all captions of
COCO, and with one scale in both closed forms (the code's refinement has its square); images are drawn by DDIM,
not DPM-Solver++, and normalised as the model's are, not with ImageNet's mean and deviation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...data import Denoising, ForgetSplit
from ...fields import Count, NotNegative
from ...models import TextConditional, TrainConfig, shuffled_epochs
from ...models.diffusion import PromptEncoder
from ...seeding import derive_seed
from ..base import DIFFUSION, Method
from ..cross_attention import edit, fuse, low_rank, projections, whole
from ..cross_attention_training import attention_maps, concept_tokens
from .ablating_concepts import draw_images

__all__ = ["MACE", "around", "focal_weights", "noised"]


def focal_weights(steps: int, first: float = 200, last: float = 400, gamma: float = 0.05) -> Tensor:
    """:math:`p(t)`, not normalised: (steps,) float64."""
    t = torch.arange(steps, dtype=torch.float64)
    return torch.sigmoid(gamma * (t - first)) - torch.sigmoid(gamma * (t - last))


def noised(model: TextConditional, x: Tensor, focal: bool) -> tuple[Tensor, Tensor]:
    """:math:`x_t` of images, and their steps (n,): uniform, or by :math:`p(t)`; from the global state."""
    latents, noise, t = Denoising.noised(model, x)
    if focal:
        t = torch.multinomial(focal_weights(model.steps), len(x), replacement=True).to(t.device)
    return model.add_noise(latents, noise, t), t


def around(old: list[int], new: list[int], length: int) -> tuple[list[int], list[int]]:
    """Which rows correspond in two prompts that differ in the middle: two lists of positions.

    Common beginning and common end, and then what fills up to ``length``, as far as both have it.

    Parameters
    ----------
    old, new : token ids, those that begin and end a text included
    length : rows of a prompt; 0 where what fills up does not count
    """
    shorter = min(len(old), len(new))
    before = next((i for i in range(shorter) if old[i] != new[i]), shorter)
    left = shorter - before
    behind = next((i for i in range(left) if old[-1 - i] != new[-1 - i]), left)
    filled = max(length - max(len(old), len(new)), 0)
    return tuple(
        [*range(before), *range(len(ids) - behind, len(ids) + filled)] for ids in (old, new)
    )


@dataclass(frozen=True)
class MACE(Method):
    """Refine the words around the concepts, and press down the attention to their own.

    Attributes
    ----------
    ridge : :math:`\\lambda`
    keep_scale : :math:`\\lambda_1`
    stages : "both", or "closed_form" for the refinement alone
    focal : draw steps by :math:`p(t)`; uniformly otherwise
    rank : of the LoRAs
    images, steps, guidance : what the original draws of a concept
    train : of a LoRA
    """

    name: ClassVar[str] = "mace"
    needs: ClassVar[frozenset[str]] = frozenset({"concepts", "keep"})
    draws: ClassVar[bool] = True
    works_on: ClassVar[frozenset[str]] = DIFFUSION
    trains: ClassVar[bool] = False
    version: ClassVar[int] = 2  # 1 added a single concept's LoRA to the matrices

    ridge: NotNegative = 10.0
    keep_scale: NotNegative = 0.0
    stages: Literal["both", "closed_form"] = "both"
    focal: bool = True
    rank: Count = 1
    images: Count = 8
    steps: Count = 30
    guidance: NotNegative = 7.5
    train: TrainConfig = TrainConfig(
        epochs=50,
        lr=1e-5,
        batch_size=1,
        optimizer="adamw",
        weight_decay=0.01,
        clip=1.0,
        max_steps=50,
    )

    def rows(self, encoder: PromptEncoder, prompt: str, anchor: str) -> tuple[Tensor, Tensor]:
        """The rows that are edited, and those whose values they get: (rows, d) each."""
        ids, mask = encoder.tokens([prompt, anchor])
        old, new = (row[text.bool()].tolist() for row, text in zip(ids, mask, strict=True))
        mine, theirs = around(old, new, 0 if encoder.masked else encoder.length)
        states = encoder([prompt, anchor])
        return states[0][mine], states[1][theirs]

    def suppression(
        self,
        prompts: list[str],
        tokens: Tensor,
        model: TextConditional,
        batch: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Of images and their prompts' positions: a scalar."""
        x, which = batch
        x_t, t = noised(model, x, self.focal)
        with attention_maps(model) as maps:
            model(x_t, t, [prompts[i] for i in which.tolist()])
        chosen = tokens.to(x.device)[which][:, None, None]
        return sum(m.float()[chosen.expand_as(m)].norm() for m in maps.values())

    def unlearn(self, model: TextConditional, split: ForgetSplit, seed: int) -> TextConditional:
        original = {n: p.detach().clone() for n, p in projections(model).items()}
        concepts, encoder = split.task.concepts, model.prompts
        requests = [
            [(t.format(name), t.format(anchor)) for t in concepts.templates]
            for name, anchor in concepts.erased
        ]
        drawn = []
        if self.stages == "both":  # by the original, which is about to change
            for i, pairs in enumerate(requests):
                asked, own = [prompt for prompt, _ in pairs], derive_seed(seed, "concept", i)
                drawn.append(draw_images(model, asked, self.images, own, self.steps, self.guidance))
        pairs = [self.rows(encoder, *pair) for request in requests for pair in request]
        kept = whole(encoder, concepts.keep)
        rows = torch.cat([*(a for a, _ in pairs), kept])
        scale = torch.ones(len(rows), dtype=torch.float64)
        scale[len(rows) - len(kept) :] = self.keep_scale
        edit(model, rows, torch.cat([*(b for _, b in pairs), kept]), scale, self.ridge)
        added = []
        for i, data in enumerate(drawn):
            prompts = [prompt for prompt, _ in requests[i]]
            words = [concepts.erased[i][0]] * len(prompts)
            tokens = concept_tokens(encoder, prompts, words, ending=True)
            own = derive_seed(seed, "lora", i)
            epochs = shuffled_epochs(data, self.train, own)
            loss = partial(self.suppression, prompts, tokens)
            added.append(low_rank(model, epochs, loss, self.train, self.rank, own, self.name))
        if added:
            fuse(model, original, added, requests, concepts.keep, self.keep_scale, self.ridge)
        return model
