"""Relearning: how much of the forget set comes back when a little of it is shown again?"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import nn

from ..data import ForgetSplit, batches
from ..models import Chat, TrainConfig, predict, train
from ..seeding import generator
from .catalogue import Estimate, mean
from .classification import accuracy

__all__ = ["relearned_accuracy", "relearned_probability"]


def _parts(data: Any, examples: int, seed: int) -> tuple[Any, Any]:
    """The examples that are shown, and the rest of the set."""
    n = len(data)
    if examples >= n:
        raise ValueError(f"relearning from {examples} examples leaves none of {n} to judge by")
    order = torch.randperm(n, generator=generator(seed, "relearn"))
    return data.subset(order[:examples]), data.subset(order[examples:])


def _relearn(
    model: nn.Module, shown: Any, split: ForgetSplit, config: TrainConfig, seed: int
) -> nn.Module:
    loader = batches(shown, config.batch_size)
    work = copy.deepcopy(model)
    return train(work, lambda _: loader, split.task.loss, config, seed=seed, name="relearning")


def relearned_accuracy(
    model: nn.Module,
    split: ForgetSplit,
    seed: int,
    steps: int = 10,
    examples: int = 32,
    lr: float = 0.01,
    of: Literal["forget", "retain"] = "forget",
) -> Estimate:
    """Accuracy on the other forget images, in per cent, after fine-tuning on a few of them.

    A copy of ``model`` takes ``steps`` full-batch steps (SGD, momentum 0.9, training mode) on
    ``examples`` random images of the forget set with their true labels. A model that has only
    hidden what it knew recovers faster than one that was trained without the forget set: compare
    with the retrained model's value. With ``of="retain"`` the examples are of the retain set, and
    all forget images are judged: what comes back then was never shown.

    Raises
    ------
    ValueError
        The set has nothing beside the ``examples``, or it is another one than these two.
    TrainingError
        The loss is not finite.
    """
    if of not in ("forget", "retain"):
        raise ValueError(f"of is 'forget' or 'retain', not {of!r}")
    shown, others = _parts(getattr(split, of), examples, seed)
    if of == "retain":
        others = split.forget
    config = TrainConfig(epochs=steps, lr=lr, batch_size=examples, momentum=0.9)
    relearned = _relearn(model, shown, split, config, seed)
    out = predict(relearned, others, task=split.task)
    return accuracy(out.logits, out.labels)


def relearned_probability(
    chat: Chat,
    split: ForgetSplit,
    seed: int,
    steps: int = 5,
    examples: int = 8,
    lr: float = 1e-4,
) -> Estimate:
    """Mean token probability of the other forget answers, after fine-tuning on a few of them.

    As `relearned_accuracy`, with AdamW and without weight decay. Questions about one author share
    few facts, so what comes back was hidden rather than learned anew. Whoever can train a model has
    its weights: give a method that stands around them without what it adds (`Chat.bare`).

    Raises
    ------
    ValueError
        The forget set has nothing beside the ``examples``.
    TrainingError
        The loss is not finite.
    """
    shown, others = _parts(split.forget, examples, seed)
    config = TrainConfig(epochs=steps, lr=lr, batch_size=examples, optimizer="adamw")
    relearned = _relearn(chat, shown, split, config, seed)
    pairs = [others.questions[i] for i in range(len(others))]
    return mean(torch.stack([p.double().exp().mean() for p in relearned.log_probs(pairs)]))
