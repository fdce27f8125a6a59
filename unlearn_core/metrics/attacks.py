"""Attacks on a model that was made to forget how to draw something: is it gone, or only unnamed?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..data import Denoising
from ..models import (
    Diffusion,
    TextConditional,
    TrainConfig,
    device_of,
    evaluating,
    shuffled_epochs,
    train,
)
from ..seeding import derive_seed, seeded

__all__ = ["relearned_drawing", "search_embedding"]


def search_embedding(
    model: TextConditional,
    images: Tensor,
    start: str,
    *,
    steps: int = 100,
    lr: float = 0.05,
    batch_size: int = 16,
    seed: int = 0,
) -> Tensor:
    """The text states under which ``model`` finds ``images`` most likely: (1, length, dimensions).

    As textual inversion (Gal et al., 2023), in the space of the text encoder's states: the states
    of the prompt ``start``, all of its rows, follow the gradient of the denoising loss (Adam), the
    model being fixed. A concept that can be drawn from what is found was hidden, not removed.

    Parameters
    ----------
    images : (n, C, H, W) in [-1, 1], of what is looked for; n at least 1

    Raises
    ------
    ValueError
        No image.
    """
    if not len(images):
        raise ValueError("there is no image of what is looked for")
    device = device_of(model)
    found = model.embed([start]).clone().requires_grad_()
    optimizer = torch.optim.Adam([found], lr)
    with evaluating(model), seeded(seed, "search"):
        for _ in range(steps):
            chosen = torch.randint(len(images), (batch_size,))
            x = images[chosen].to(device)
            latents, noise, t = Denoising.noised(model, x)
            x_t = model.add_noise(latents, noise, t)
            predicted = model.denoise(x_t, t, found.expand(batch_size, -1, -1))
            loss = torch.nn.functional.mse_loss(predicted, noise)
            (found.grad,) = torch.autograd.grad(loss, [found])
            optimizer.step()
    return found.detach()


def relearned_drawing(
    model: Diffusion,
    shown: Any,
    look: Callable[[Diffusion], float],
    at: Sequence[int],
    *,
    lr: float,
    batch_size: int = 16,
    seed: int = 0,
) -> list[tuple[int, float]]:
    """``look`` at a copy of ``model`` after so many steps of fine-tuning on ``shown``.

    Points (steps, what ``look`` gives), the first one before any step.

    Parameters
    ----------
    shown : images under their conditions, a data set of the model's
    at : numbers of steps, rising
    """
    work = copy.deepcopy(model)
    points = [(0, look(work))]
    per_epoch = -(-len(shown) // batch_size)
    config = TrainConfig(
        epochs=-(-max(at) // per_epoch),
        lr=lr,
        batch_size=batch_size,
        optimizer="adamw",
        max_steps=max(at),
    )

    def after(trained: Any, step: int) -> None:
        if step in at:
            points.append((step, look(trained)))

    epochs = shuffled_epochs(shown, config, derive_seed(seed, "relearn"))
    train(work, epochs, Denoising().loss, config, seed=seed, name="relearning", after_step=after)
    return points
