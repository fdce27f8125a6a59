r"""Random labelling of a diffusion model, as the SalUn paper runs it (Fan et al., ICLR 2024; arXiv 2310.12508).

On the images to be forgotten, the model learns to predict for their concept :math:`c` what it predicts for
another :math:`c'`, beside its training loss on the others,

.. math:: \mathbb E_{(x, c) \sim D_f}\big\Vert \epsilon_\theta(x_t, c)
          - \mathrm{sg}\,\epsilon_\theta(x_t, c') \big\Vert^2
          + \beta\; \mathbb E_{(x, c) \sim D_r}\big\Vert \epsilon_\theta(x_t, c) - \epsilon \big\Vert^2 .

:math:`c'` is what the request names to take the concept's place, and sg stops the gradient; in training,
conditions are left out as the model's ``drop`` says (never those of Stable Diffusion), in each of the three
predictions on its own.

Code: github.com/OPTML-Group/Unlearn-Saliency, ``DDPM/runners/diffusion.py``, ``SD/train-scripts``, commit
a6e89fd. The first term is a mean over all elements; in the DDPM's code the second is summed over an
image's elements, so that its :math:`\beta` of 0.001 weighs 3.07 for 3x32x32. Defaults are the DDPM's;
Stable Diffusion has Adam at 1e-5, 5 epochs, batches of 8, :math:`\beta` 0.5 (0.1 for nudity) and means.
Deviations: steps are drawn independently (the DDPM's code pairs t with T - 1 - t), the retain images of a
step with replacement and as many as of the forget set, so that both batches are short at an epoch's end; in
each epoch all forget images come once, where the code for Stable Diffusion saw the same batch at every step
until 2026.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ...data import Denoising, ForgetSplit
from ...fields import NotNegative
from ...models import Diffusion, TrainConfig
from ..base import DIFFUSION, Method
from ..forget_pairs import Paired

__all__ = ["ConceptRelabel"]


def unchanged(before: Any, after: Any) -> list[Any]:
    """The conditions of images that are the same in both."""
    kind = "captions" if hasattr(before, "captions") else "labels"
    pairs = zip(list(getattr(before, kind)), list(getattr(after, kind)), strict=True)
    return [int(a) if kind == "labels" else a for a, b in pairs if a == b]


@dataclass(frozen=True)
class ConceptRelabel(Paired, Method):
    """Predict for the concepts what is predicted for what takes their place.

    Attributes
    ----------
    train : a step takes ``batch_size`` images of each set
    beta : :math:`\\beta`
    reduction : of the retain loss over an image's elements: "sum", as of the authors' DDPM, or "mean"
    """

    name: ClassVar[str] = "concept_relabel"
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "retain", "concepts"})
    draws: ClassVar[bool] = True
    works_on: ClassVar[frozenset[str]] = DIFFUSION

    train: TrainConfig = TrainConfig(
        epochs=1000, lr=1e-4, batch_size=128, optimizer="adam", clip=1.0, max_steps=1000
    )
    beta: NotNegative = 1e-3
    reduction: Literal["mean", "sum"] = "sum"

    def loss(self, task: Denoising, model: Diffusion, batch: dict[str, Any]) -> Tensor:
        """Of a batch of "forget", its conditions' "template" and "retain": a scalar."""
        (x, concept), (_, other) = batch["forget"], batch["template"]
        latents, noise, t = task.noised(model, x)
        x_t = model.add_noise(latents, noise, t)
        with torch.no_grad():
            wanted = model.denoise(x_t, t, model.embed_dropping(other))
        found = model.denoise(x_t, t, model.embed_dropping(concept))
        kept = task.loss(model, batch["retain"])
        if self.reduction == "sum":
            kept = kept * math.prod(model.shape)
        return torch.nn.functional.mse_loss(found, wanted) + self.beta * kept

    def epochs(
        self, model: nn.Module, split: ForgetSplit, seed: int, **beside: Any
    ) -> Callable[[int], Iterable[dict[str, Any]]]:
        instead = split.task.relabel(split.forget)
        if same := unchanged(split.forget, instead):
            raise ValueError(f"nothing takes the place of {same[0]!r}, which is to be forgotten")
        return super().epochs(model, split, seed, template=lambda _: instead, **beside)
