"""Gradient ascent on the forget set (Thudi et al., EuroS&P 2022), as the SalUn paper runs it.

SGD on minus the training loss, five epochs (github.com/OPTML-Group/Unlearn-Saliency,
``Classification/unlearn/GA.py``). Nothing bounds that objective: too large a learning rate
ruins the model, and the authors advise to search between 1e-4 and 1e-3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ...data import ForgetSplit, Task
from ...models import TrainConfig, shuffled_epochs, train
from ..base import ANY, Method
from ..forget_pairs import Beside, Paired

__all__ = ["GradientAscent"]


@dataclass(frozen=True)
class GradientAscent(Paired, Method):
    """Raise the loss on the forget set."""

    name: ClassVar[str] = "gradient_ascent"
    needs: ClassVar[frozenset[str]] = frozenset({"forget"})
    draws: ClassVar[bool] = True
    works_on: ClassVar[frozenset[str]] = ANY

    train: TrainConfig = TrainConfig(
        epochs=5, lr=1e-4, batch_size=256, momentum=0.9, weight_decay=5e-4
    )

    def loss(self, task: Task, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """Of a batch of "forget": a scalar."""
        return -task.loss(model, batch["forget"])

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        epochs = shuffled_epochs(Beside(forget=split.forget), self.train, seed)
        loss = self.objective(split.task, model)
        return train(model, epochs, loss, self.train, seed=seed, name=self.name)
