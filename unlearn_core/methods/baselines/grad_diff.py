r"""Gradient difference (Liu, Liu and Stone, CoLLAs 2022), as TOFU's and FLAT's authors run it.

.. math:: L = -\ell(D_f) + \lambda\,\ell(D_r), \qquad \lambda = 1,

with a retain example beside every forget example (github.com/UCSC-REAL/FLAT, ``dataloader.py``,
loss ``grad_diff``; github.com/locuslab/open-unlearning, ``trainer/unlearn/grad_diff.py``). Called GD,
GradDiff or Grad. Diff.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ...data import Task
from ...fields import NotNegative
from ...models import TrainConfig
from ..base import ANY, FORGET_TEXT, Method
from ..forget_pairs import Paired

__all__ = ["GradDiff"]


@dataclass(frozen=True)
class GradDiff(Paired, Method):
    """Raise the loss on the forget set and lower it on the retain set, in one step.

    Attributes
    ----------
    weight : of the retain set's loss
    """

    name: ClassVar[str] = "grad_diff"
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})
    draws: ClassVar[bool] = True
    works_on: ClassVar[frozenset[str]] = ANY

    train: TrainConfig = FORGET_TEXT
    weight: NotNegative = 1.0

    def loss(self, task: Task, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """Of a batch of pairs "forget" and "retain": a scalar."""
        gone, kept = task.loss(model, batch["forget"]), task.loss(model, batch["retain"])
        return -gone + self.weight * kept
