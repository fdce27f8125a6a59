"""Relearning: how much of the forget set comes back when a little of it is shown again?"""

from __future__ import annotations

import copy

import torch
from torch import nn

from ..data import ForgetSplit, batches
from ..models import TrainConfig, predict, train
from ..seeding import generator
from .catalogue import Estimate
from .classification import accuracy

__all__ = ["relearned_accuracy"]


def relearned_accuracy(
    model: nn.Module,
    split: ForgetSplit,
    seed: int,
    steps: int = 10,
    examples: int = 32,
    lr: float = 0.01,
) -> Estimate:
    """Accuracy on the other forget images, in per cent, after fine-tuning on a few of them.

    A copy of ``model`` takes ``steps`` full-batch steps (SGD, momentum 0.9, training mode) on
    ``examples`` random images of the forget set with their true labels. A model that has only
    hidden what it knew recovers faster than one that was trained without the forget set: compare
    with the retrained model's value.

    Raises
    ------
    ValueError
        The forget set has no image beside the ``examples``.
    TrainingError
        The loss is not finite.
    """
    n = len(split.forget)
    if examples >= n:
        raise ValueError(f"relearning from {examples} images leaves none of {n} to judge by")
    order = torch.randperm(n, generator=generator(seed, "relearn"))
    shown, others = split.forget.subset(order[:examples]), split.forget.subset(order[examples:])
    config = TrainConfig(epochs=steps, lr=lr, batch_size=examples, momentum=0.9)
    loader = batches(shown, examples)
    relearned = train(
        copy.deepcopy(model),
        lambda _: loader,
        split.task.loss,
        config,
        seed=seed,
        name="relearning",
    )
    out = predict(relearned, others)
    return accuracy(out.logits, out.labels)
