r"""RealEra (Liu et al., 2024; arXiv 2410.09140): erasing a concept and what lies around it.

There is no authors' code, and the text could not be read: this is the published description, carried out on
MACE, which it builds on. Reconstructed, that is ours, are the exact terms of both stages and their weights,
:math:`N` and :math:`M` of the closed form, how rows correspond, what images :math:`x_t` comes from, and how
several concepts are fused; steps and rank are MACE's, the learning rate that of its celebrities (see the
chapter's deviations). A prompt of the concept has
text states :math:`e` (all rows, as one vector), the same prompt with the anchor :math:`e^*`.

*Neighbours.* With :math:`v \sim \mathcal N(0, I)` and :math:`r \sim U[0, D]`,

.. math:: \eta = r\,\frac{v - e}{\lVert v - e\rVert},\qquad
          \text{a neighbour where } S_1 \le \cos(e, e + \eta) < S_2,\quad
          \text{beyond the concept where it is less than } S_1 .

*Stage 1*, for every key and value matrix of cross-attention, N neighbours and M beyond, row by row:

.. math:: \min_{W'} \lVert W'e - We^*\rVert^2
          + \tfrac{\lambda_n}{N}\sum_j \lVert W'(e+\eta_j) - We^*\rVert^2
          + \tfrac{\lambda_b}{M}\sum_k \lVert (W'-W)(e+\eta_k')\rVert^2
          + \lambda_p \sum_p \lVert (W'-W)e^p\rVert^2 + \lambda_0 \lVert W'-W\rVert^2 .

*Stage 2*, a LoRA on the same matrices, the original :math:`\theta` being the teacher:

.. math:: \lVert\epsilon_{\theta'}(x_t, e) - \epsilon_\theta(x_t, e^*)\rVert^2
          + \lVert\epsilon_{\theta'}(x_t, e+\eta) - \epsilon_\theta(x_t, e^*)\rVert^2
          + \lambda\,\lVert\epsilon_{\theta'}(x_t, e+\eta') - \epsilon_\theta(x_t, e+\eta')\rVert^2,

:math:`x_t` being noised images of the concept that the original draws, at uniform steps or, ``focal``, at MACE's. One concept's LoRA is added to the
matrices, as it has to act on the neighbours, too; of several concepts each has its own, and they are fused in closed form
as MACE does it.

The sampler is that of the authors of CRCE (arXiv 2503.14232), ``srcs/realera_tools.py``, whose D of 400 is
:math:`1.16\,\mathbb E\lVert v-e\rVert` for Stable Diffusion; here D is given as that factor, rows that only fill up
are left out, and means are taken over neighbours, so that their number does not set the strength.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..data import ForgetSplit
from ..fields import Cosine, Count, Natural, NotNegative, Positive
from ..models import TextConditional, TrainConfig, shuffled_epochs
from ..seeding import derive_seed, generator
from .base import DIFFUSION, Method
from .baselines.ablating_concepts import draw_images
from .baselines.mace import noised
from .cross_attention import (
    Weights,
    edit,
    fuse,
    low_rank,
    original_epsilon,
    projections,
    shared_rows,
    text_rows,
    whole,
)

__all__ = ["RealEra", "disturbed", "mine"]

#: So many rounds of candidates are drawn before a sampler gives up.
ROUNDS = 200


def disturbed(e: Tensor, n: int, radius: float, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Candidates :math:`e + \\eta`, and the cosine of each to ``e``: (n, rows * d), (n,), float64, on the CPU."""
    flat = e.flatten().cpu().double()
    v = torch.randn(n, flat.numel(), generator=draw).double() - flat
    reach = radius * (flat.square().sum() + flat.numel()).sqrt()
    r = reach * torch.rand(n, 1, generator=draw).double()
    found = flat + r * v / v.norm(dim=1, keepdim=True)
    return found, nn.functional.cosine_similarity(found, flat[None])


def mine(
    e: Tensor, n: int, low: float, high: float, radius: float, draw: torch.Generator
) -> Tensor:
    """Disturbed states whose cosine to ``e`` lies in [low, high): (n, rows, d).

    Parameters
    ----------
    e : (rows, d), of unit scale
    radius : :math:`D`, in units of :math:`\\mathbb E\\lVert v - e\\rVert`

    Raises
    ------
    ValueError
        Hardly any candidate is accepted: the radius is too small, or the interval too narrow.
    """
    found, size = [], max(4 * n, 16)
    for _ in range(ROUNDS):
        candidates, cosine = disturbed(e, size, radius, draw)
        found.append(candidates[(cosine >= low) & (cosine < high)])
        if sum(map(len, found)) >= n:
            return torch.cat(found)[:n].view(n, *e.shape).to(e)
    raise ValueError(
        f"of {ROUNDS * size} disturbed embeddings {sum(map(len, found))} have a cosine in "
        f"[{low}, {high}); a larger radius than {radius} or a wider interval is needed"
    )


@dataclass(frozen=True)
class RealEra(Method):
    """Erase concepts with their neighbourhoods.

    Attributes
    ----------
    low, high : :math:`S_1` and :math:`S_2`
    radius : :math:`D`, in units of :math:`\\mathbb E\\lVert v - e\\rVert`
    near, beyond : :math:`N` and :math:`M` of the closed form; 0 leaves the term out
    near_weight, beyond_weight, keep_weight, ridge : :math:`\\lambda_n, \\lambda_b, \\lambda_p, \\lambda_0`
    stages : "both", "closed_form" or "lora"
    rank : of the LoRA
    step_near, step_beyond : neighbours, and beyond, of a step of the LoRA; 0 where the term is left out
    step_weight : :math:`\\lambda`
    focal : draw steps by MACE's :math:`p(t)`; uniformly otherwise
    target : what the concept's noise is aligned with: "anchor"; or "negative_guidance", away from the
        concept, as the third party has it
    images, steps, guidance : what the original draws for the second stage
    train : of the LoRA; a step takes ``batch_size`` images
    """

    name: ClassVar[str] = "realera"
    needs: ClassVar[frozenset[str]] = frozenset({"concepts", "keep", "reference"})
    draws: ClassVar[bool] = True
    works_on: ClassVar[frozenset[str]] = DIFFUSION
    trains: ClassVar[bool] = False

    low: Cosine = 0.5
    high: Cosine = 0.9
    radius: Positive = 1.16
    near: Natural = 50
    beyond: Natural = 30
    near_weight: NotNegative = 1.0
    beyond_weight: NotNegative = 1.0
    keep_weight: NotNegative = 1.0
    ridge: NotNegative = 0.1
    stages: Literal["both", "closed_form", "lora"] = "both"
    rank: Count = 1
    step_near: Natural = 5
    step_beyond: Natural = 3
    step_weight: NotNegative = 1.0
    focal: bool = False
    target: Literal["anchor", "negative_guidance"] = "anchor"
    images: Count = 8
    steps: Count = 50
    guidance: NotNegative = 7.5
    train: TrainConfig = TrainConfig(
        epochs=50,
        lr=1e-4,
        batch_size=1,
        optimizer="adamw",
        weight_decay=0.01,
        clip=1.0,
        max_steps=50,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.low < self.high:
            raise ValueError(f"low and high are cosines, low < high, not {self.low}, {self.high}")

    def around(
        self, e: Tensor, near: int, beyond: int, draw: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Neighbours of ``e`` and states beyond its concept: (near, rows, d) and (beyond, rows, d)."""
        return (
            mine(e, near, self.low, self.high, self.radius, draw) if near else e[None][:0],
            mine(e, beyond, -1.0, self.low, self.radius, draw) if beyond else e[None][:0],
        )

    def closed_form(self, model: TextConditional, split: ForgetSplit, seed: int) -> None:
        """Stage 1, in place."""
        concepts, encoder = split.task.concepts, model.prompts
        draw = generator(seed, "neighbours")
        rows, instead, scale = [], [], []

        def add(e: Tensor, wanted: Tensor, weight: float) -> None:
            rows.append(e)
            instead.append(wanted)
            scale.append(torch.full((len(e),), weight, dtype=torch.float64))

        for name, anchor in concepts.erased:
            for t in concepts.templates:
                prompt, other = t.format(name), t.format(anchor)
                mine_, theirs = shared_rows(encoder, prompt, name, other, anchor)
                e, wanted = text_rows(encoder, prompt)[mine_], text_rows(encoder, other)[theirs]
                near, beyond = self.around(e, self.near, self.beyond, draw)
                add(e, wanted, 1.0)
                for x in near:
                    add(x, wanted, self.near_weight / self.near)
                for x in beyond:
                    add(x, x, self.beyond_weight / self.beyond)
        kept = whole(encoder, concepts.keep)
        add(kept, kept, self.keep_weight)
        edit(model, torch.cat(rows), torch.cat(instead), torch.cat(scale), self.ridge)

    def alignment(
        self,
        original: Weights,
        prompts: list[tuple[str, str]],
        draw: torch.Generator,
        model: TextConditional,
        batch: tuple[Tensor, Tensor],
    ) -> Tensor:
        """The loss of stage 2, of images and their prompts' positions: a scalar."""
        x, which = batch
        x_t, t = noised(model, x, self.focal)
        terms = []
        for i, at in enumerate(which.tolist()):
            prompt, other = prompts[at]
            (e,) = model.embed([prompt])
            n = len(text_rows(model.prompts, prompt))
            near, beyond = self.around(e[:n], self.step_near, self.step_beyond, draw)
            # What fills up stays as it is.
            states = torch.cat([e[None], *(_filled(part, e) for part in (near, beyond))])
            count = len(states)
            noisy, at_t = x_t[i : i + 1].expand(count, -1, -1, -1), t[i : i + 1].expand(count)
            aims = model.embed([other] if self.target == "anchor" else [prompt, ""])
            asked = torch.cat([aims, states[1 + len(near) :]])
            k = len(asked)
            taught = original_epsilon(
                model, original, noisy[:1].expand(k, -1, -1, -1), at_t[:1].expand(k), asked
            )
            wanted = taught[0]
            if self.target == "negative_guidance":  # as far from the concept as it is towards it
                wanted = 2 * taught[1] - taught[0]
            found = model.denoise(noisy, at_t, states)
            error = found[: 1 + len(near)] - wanted
            terms.append(error[0].square().mean())
            if len(near):
                terms.append(error[1:].square().mean())
            if len(beyond):
                far = found[1 + len(near) :] - taught[len(aims) :]
                terms.append(self.step_weight * far.square().mean())
        return torch.stack(terms).sum() / len(which)

    def lora(
        self, model: TextConditional, original: Weights, pairs: list[Any], data: Any, seed: int
    ) -> Weights:
        """Stage 2 for one concept: what its LoRA adds to each projection."""
        epochs = shuffled_epochs(data, self.train, seed)
        loss = partial(self.alignment, original, pairs, generator(seed, "disturbed"))
        return low_rank(model, epochs, loss, self.train, self.rank, seed, self.name)

    def unlearn(self, model: TextConditional, split: ForgetSplit, seed: int) -> TextConditional:
        concepts = split.task.concepts
        original = {n: p.detach().clone() for n, p in projections(model).items()}
        requests = [
            [(t.format(name), t.format(anchor)) for t in concepts.templates]
            for name, anchor in concepts.erased
        ]
        drawn = []
        if self.stages != "closed_form":  # by the original, which is about to change
            for i, pairs in enumerate(requests):
                asked = [prompt for prompt, _ in pairs]
                own = derive_seed(seed, "concept", i)
                drawn.append(draw_images(model, asked, self.images, own, self.steps, self.guidance))
        if self.stages != "lora":
            self.closed_form(model, split, seed)
        added = [
            self.lora(model, original, pairs, data, derive_seed(seed, "lora", i))
            for i, (pairs, data) in enumerate(zip(requests, drawn, strict=False))
        ]
        if len(added) == 1:
            with torch.no_grad():
                for name, w in projections(model).items():
                    w += added[0][name]
        elif added:
            fuse(model, original, added, requests, concepts.keep, self.keep_weight, self.ridge)
        return model


def _filled(part: Tensor, e: Tensor) -> Tensor:
    """Disturbed rows (n, rows, d) with the other rows of ``e`` (length, d) behind them."""
    rest = e[part.shape[1] :].expand(len(part), -1, -1)
    return torch.cat([part.to(e), rest], dim=1)
