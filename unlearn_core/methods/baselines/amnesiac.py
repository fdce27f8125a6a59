"""Amnesiac unlearning (Graves, Nagisetty and Ganesh, AAAI 2021), as the SSD paper runs it.

Every forget image gets one wrong label, drawn once; the model is trained on these and the whole
retain set (``src/forget_full_class_strategies.py``: Adam, 1e-4, three epochs).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ...data import ForgetSplit
from ...models import TrainConfig, shuffled_epochs, train
from ...seeding import generator
from ..base import Method

__all__ = ["Amnesiac"]


@dataclass(frozen=True)
class Amnesiac(Method):
    """Learn wrong labels for the forget set beside right ones for the retain set."""

    name: ClassVar[str] = "amnesiac"
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})
    draws: ClassVar[bool] = True

    train: TrainConfig = TrainConfig(epochs=3, lr=1e-4, batch_size=128, optimizer="adam")

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        wrong = split.task.relabel(split.forget, generator(seed, "relabel"))
        epochs = shuffled_epochs(split.retain + wrong, self.train, seed)
        return train(model, epochs, split.task.loss, self.train, seed=seed, name=self.name)
