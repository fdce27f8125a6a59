r"""Worst-case sets of prompts (Fan, Liu, Hero and Liu, ECCV 2024; arXiv 2403.07362).

The search of `worst_case` for a model that draws: which prompts are the hardest to erase? With a weight
:math:`w_i` a prompt, the lower level erases by ESD,

.. math:: \theta_u(w) = \arg\min_\theta \sum_i w_i\,\ell_{\text{ESD}}(\theta; p_i),

in cross-attention alone, and the upper one asks how well the model still predicts the noise of images of
each prompt: the smaller that loss, the less is erased. Otherwise as there: projected gradient steps on the
weights, and the largest are the set.

Authors' code: github.com/OPTML-Group/Unlearn-WorstCase, ``prompt-wise/``, commit fc727ce. Deviations: there
prompts and the losses are in different orders (object by object, and style by style), so that weights meet
the losses of other prompts, the evaluation's prompts are worded otherwise, and noise is divided by 1000;
here each prompt has its own images and its own words. Its optimizer is called a sign one and takes plain
steps of SGD, with momentum and weight decay; so does this one, because a step is of one prompt, and the sign
of :math:`w_i \nabla \ell_i` does not know how large :math:`w_i` is. The upper step's derivation asks for
signs; with SGD it leaves out how the erased model depends on the weights. The upper losses are taken at ten
steps of diffusion, as there, but with the same noise in every iteration instead of new one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..fields import Count, NotNegative, Positive, check_fields
from ..models import Diffusion, TrainConfig, device_of, evaluating, train
from ..seeding import derive_seed, generator
from .baselines.esd import ESD, cross_attention_only
from .cross_attention_training import training_only
from .forget_pairs import frozen_copy
from .worst_case import Selection, outer_loop

__all__ = [
    "PROMPT_SELECTORS",
    "LowestLossPrompts",
    "RandomPrompts",
    "WorstPrompts",
    "prompt_losses",
]

#: The steps of diffusion at which the upper level looks, of a thousand (``selection.py``).
LOOKS = tuple(range(0, 1000, 100))


@torch.no_grad()
def prompt_losses(
    model: Diffusion, prompts: Sequence[Any], images: Sequence[Tensor], seed: int
) -> Tensor:
    """How badly the model predicts the noise of images under each prompt: (N,) float64.

    A mean over the images, ten steps of diffusion and all elements; in evaluation mode.

    Parameters
    ----------
    images : for each prompt (n, C, H, W) in [-1, 1]
    seed : of the noise, which is the same for every model

    Raises
    ------
    ValueError
        A prompt without images.
    """
    if empty := [p for p, own in zip(prompts, images, strict=True) if not len(own)]:
        raise ValueError(f"there is no image of {empty[0]!r}")
    device, out = device_of(model), []
    with evaluating(model):
        for prompt, own in zip(prompts, images, strict=True):
            draw = generator(seed, "noise", str(prompt))
            latents = model.codec.encode(own.to(device))
            errors = []
            for t in (look * model.steps // 1000 for look in LOOKS):
                noise = torch.randn(latents.shape, generator=draw).to(device)
                at = torch.full((len(latents),), t, device=device)
                found = model(model.add_noise(latents, noise, at), at, [prompt] * len(latents))
                errors.append((found - noise).double().square().mean())
            out.append(torch.stack(errors).mean())
    return torch.stack(out).cpu()


@dataclass(frozen=True)
class WorstPrompts:
    """The search for the prompts that are hardest, or easiest, to erase.

    Attributes
    ----------
    iterations, alpha, gamma : of the outer loop, as in `worst_case.WorstCase`
    eta, guidance, steps : of the lower level's ESD: how it aims, and how it draws
    train : the lower level's SGD; an epoch is one step, on ``batch_size`` images of one prompt, the prompts
        taking turns
    direction : "worst", the smallest losses after erasing; "easiest", the largest
    """

    version: ClassVar[int] = 2

    iterations: Count = 10
    alpha: Positive = 100.0
    gamma: NotNegative = 1e-4
    eta: NotNegative = 1.0
    guidance: NotNegative = 3.0
    steps: Count = 50
    train: TrainConfig = TrainConfig(
        epochs=1000, lr=1e-5, batch_size=1, momentum=0.9, weight_decay=5e-4
    )
    direction: Literal["worst", "easiest"] = "worst"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.train.optimizer != "sgd":
            raise ValueError("the lower level takes SGD: others forget how large a weight is")

    def erased(
        self, model: Diffusion, prompts: Sequence[Any], weights: Tensor, seed: int, name: str
    ) -> Diffusion:
        """The lower level: a copy of ``model``, from which each prompt is erased as much as it weighs."""
        work, original = copy.deepcopy(model), frozen_copy(model)
        esd = ESD(eta=self.eta, guidance=self.guidance, steps=self.steps)
        n = self.train.batch_size

        def batches(epoch: int) -> list[Tensor]:
            return [torch.tensor(epoch % len(prompts))]

        def loss(changing: Diffusion, i: Tensor) -> Tensor:
            errors = esd.errors(original, changing, [prompts[int(i)]] * n)
            return weights[int(i)].to(errors) * errors.mean()

        with training_only(work, cross_attention_only):
            return train(work, batches, loss, self.train, seed=seed, name=name)

    def select(
        self,
        model: Diffusion,
        prompts: Sequence[Any],
        images: Sequence[Tensor],
        budget: int,
        seed: int,
    ) -> Selection:
        """Select ``budget`` of the prompts; ``model`` stays as it is.

        The log's last entry also has ``objective_before``: the weighted losses under ``model`` itself, by the
        same noise. Where ``objective`` is no larger, nothing was erased.

        Parameters
        ----------
        images : for each prompt, what it should draw: (n, C, H, W) in [-1, 1]

        Raises
        ------
        ValueError
            A budget that leaves nothing to select or to keep, a prompt twice, or one without images.
        """
        n = len(prompts)
        _check(prompts, budget)
        look = derive_seed(seed, "look")
        before = prompt_losses(model, prompts, images, look)

        def losses(weights: Tensor, own: int, name: str) -> Tensor:
            erased = self.erased(model, prompts, weights, own, name)
            return prompt_losses(erased, prompts, images, look)

        found = outer_loop(
            losses,
            n,
            budget,
            seed,
            iterations=self.iterations,
            alpha=self.alpha,
            gamma=self.gamma,
            direction=self.direction,
            name="worst_prompts",
        )
        *log, last = found.log
        last = {**last, "objective_before": (found.weights * before).sum().item()}
        return replace(found, log=(*log, last))


def _check(prompts: Sequence[Any], budget: int) -> None:
    n = len(prompts)
    if not 0 < budget < n:
        raise ValueError(f"cannot select {budget} of {n} prompts")
    if len(set(prompts)) < n:
        raise ValueError("a prompt stands twice among those to select from")


def _marked(index: Tensor, n: int) -> Selection:
    """The chosen positions, without a search."""
    weights = torch.zeros(n, dtype=torch.float64)
    weights[index] = 1
    return Selection(index.sort().values, weights, ())


@dataclass(frozen=True)
class LowestLossPrompts:
    """The control without a search: the prompts with the smallest losses under the model as it is, by the
    noise of `WorstPrompts`."""

    version: ClassVar[int] = 1

    def select(
        self,
        model: Diffusion,
        prompts: Sequence[Any],
        images: Sequence[Tensor],
        budget: int,
        seed: int,
    ) -> Selection:
        """As `WorstPrompts.select`; the weights are 0 and 1, and there is no iteration to log."""
        _check(prompts, budget)
        losses = prompt_losses(model, prompts, images, derive_seed(seed, "look"))
        return _marked(losses.argsort(stable=True)[:budget], len(prompts))


@dataclass(frozen=True)
class RandomPrompts:
    """The control: prompts drawn by the seed."""

    version: ClassVar[int] = 1

    def select(
        self,
        model: Diffusion,
        prompts: Sequence[Any],
        images: Sequence[Tensor],
        budget: int,
        seed: int,
    ) -> Selection:
        """As `WorstPrompts.select`; the weights are 0 and 1, and there is no iteration to log."""
        _check(prompts, budget)
        index = torch.randperm(len(prompts), generator=generator(seed, "prompts"))[:budget]
        return _marked(index, len(prompts))


#: What can choose prompts, by the name in a profile's ``select``.
PROMPT_SELECTORS = {
    "worst_prompts": WorstPrompts,
    "lowest_loss_prompts": LowestLossPrompts,
    "random_prompts": RandomPrompts,
}
