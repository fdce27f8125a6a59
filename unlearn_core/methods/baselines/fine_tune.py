"""Fine-tuning on the retain set, in the hope that the rest fades.

As in the SSD authors' ``src/forget_full_class_strategies.py``: SGD, five epochs at 0.02.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ...data import ForgetSplit
from ...models import TrainConfig, shuffled_epochs, train
from ..base import ANY, Method

__all__ = ["FineTune"]


@dataclass(frozen=True)
class FineTune(Method):
    """Go on training on the retain set."""

    name: ClassVar[str] = "fine_tune"
    needs: ClassVar[frozenset[str]] = frozenset({"retain"})
    draws: ClassVar[bool] = True
    works_on: ClassVar[frozenset[str]] = ANY

    train: TrainConfig = TrainConfig(epochs=5, lr=0.02, momentum=0.9, weight_decay=5e-4)

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        epochs = shuffled_epochs(split.retain, self.train, seed)
        return train(model, epochs, split.task.loss, self.train, seed=seed, name=self.name)
