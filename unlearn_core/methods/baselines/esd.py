r"""ESD, erased Stable Diffusion (Gandikota, Materzynska, Fiotto-Kaufman and Bau, ICCV 2023; arXiv 2303.07345).

The model learns to predict, for the concept :math:`c`, what the original :math:`\theta_0` would predict if
it were guided away from it,

.. math:: L = \Big\Vert \epsilon_\theta(x_t, c) - \big[\epsilon_{\theta_0}(x_t, \varnothing)
              - \eta\,(\epsilon_{\theta_0}(x_t, c) - \epsilon_{\theta_0}(x_t, \varnothing))\big]
              \Big\Vert^2,

a mean over all elements. There are no images: :math:`x_t` is drawn from noise by the model that is being
trained, with guidance, up to a step that is drawn uniformly; then t is drawn from that step's interval.

Code: github.com/rohitgandikota/erasing, ``train-scripts/train-esd.py``, commit b8aeab6, with its
settings; the rewrite of 2025 (``esd_sd.py``) has another target and other settings. Deviations: the
authors' sampler skips its first step and stops two intervals further down than t is drawn from, where
ours stops in that interval; the authors train on the concept's name, we on all templates of the request.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ...data import ForgetSplit
from ...fields import Count, NotNegative
from ...models import Diffusion, TrainConfig, device_of, train
from ...seeding import generator
from ..base import DIFFUSION, Method
from ..cross_attention_training import training_only
from ..forget_pairs import frozen_copy

__all__ = ["ESD", "cross_attention_only", "esd_target"]


def esd_target(empty: Tensor, concept: Tensor, eta: float) -> Tensor:
    """What is to be predicted, from the original's epsilon without and with the concept."""
    return empty - eta * (concept - empty)


def cross_attention_only(name: str) -> bool:
    """Is a UNet's parameter of this name part of its cross-attention?"""
    return ".attn2." in name


def _others(name: str) -> bool:
    """All but cross-attention, the embedding of time, and what makes the output."""
    outside = ("unet.time_embedding.", "unet.conv_norm_out.", "unet.conv_out.")
    return not (cross_attention_only(name) or name.startswith(outside))


@dataclass(frozen=True)
class ESD(Method):
    """Learn to be guided away from the concepts.

    Attributes
    ----------
    which : what is trained: "x", all of cross-attention (for names and styles); or "u", everything else
        but the embedding of time and the output's layers
    eta : :math:`\\eta`
    guidance : with which :math:`x_t` is drawn
    steps : of the sampler that draws it
    train : an epoch is one step, on ``batch_size`` prompts
    """

    name: ClassVar[str] = "esd"
    needs: ClassVar[frozenset[str]] = frozenset({"concepts", "reference"})
    draws: ClassVar[bool] = True
    works_on: ClassVar[frozenset[str]] = DIFFUSION

    train: TrainConfig = TrainConfig(epochs=1000, lr=1e-5, batch_size=1, optimizer="adam")
    which: Literal["x", "u"] = "x"
    eta: NotNegative = 1.0
    guidance: NotNegative = 3.0
    steps: Count = 50

    @torch.no_grad()
    def drawn(self, model: Diffusion, condition: list[Any]) -> tuple[Tensor, Tensor]:
        """:math:`x_t` of each condition and its t, (n,), from the global state."""
        done, n = int(torch.randint(self.steps, ())), len(condition)
        x_t = torch.randn(n, *model.shape).to(device_of(model))
        path = model.denoising(x_t, model.guide(condition, self.guidance), self.steps)
        for x_t in islice(path, done):  # noqa: B007
            pass
        width = model.steps // self.steps
        low = (self.steps - 1 - done) * width
        return x_t, torch.randint(low, low + width, (n,)).to(x_t.device)

    def errors(self, original: Diffusion, model: Diffusion, condition: list[Any]) -> Tensor:
        """The loss of each prompt, drawn once: (n,)."""
        x_t, t = self.drawn(model, condition)
        with torch.no_grad():
            empty = original(x_t, t, original.nothing(len(condition)))
            wanted = esd_target(empty, original(x_t, t, condition), self.eta)
        return (model(x_t, t, condition) - wanted).square().flatten(1).mean(dim=1)

    def loss(
        self, prompts: list[Any], original: Diffusion, model: Diffusion, batch: Tensor
    ) -> Tensor:
        """Of positions among ``prompts`` (n,): a scalar."""
        return self.errors(original, model, [prompts[i] for i in batch.tolist()]).mean()

    def unlearn(self, model: Diffusion, split: ForgetSplit, seed: int) -> Diffusion:
        prompts = split.task.concepts.prompts()

        def batches(epoch: int) -> list[Tensor]:
            draw = generator(seed, "prompts", epoch)
            return [torch.randint(len(prompts), (self.train.batch_size,), generator=draw)]

        loss = partial(self.loss, prompts, frozen_copy(model))
        with training_only(model, cross_attention_only if self.which == "x" else _others):
            return train(model, batches, loss, self.train, seed=seed, name=self.name)
