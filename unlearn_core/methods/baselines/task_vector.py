r"""Task vectors (Ilharco et al., ICLR 2023; arXiv 2212.04089): learn it more, then go the other way.

.. math:: \theta = \theta_0 - \alpha\,(\theta_{\text{more}} - \theta_0),

where :math:`\theta_{\text{more}}` is the model trained on the forget set once more. MUSE
(github.com/jaechan-repo/muse_bench, ``baselines/baselines/task_vector.py``) takes the first of
:math:`\alpha = 1, 2, 4, 8, 16` at which the forget set is known no better than by the retrained model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ...data import ForgetSplit
from ...fields import NotNegative
from ...models import TrainConfig, shuffled_epochs, single_precision, train
from ..base import ANY, FORGET_TEXT, Method

__all__ = ["TaskVector"]


@dataclass(frozen=True)
class TaskVector(Method):
    """Subtract what training on the forget set once more would add.

    Attributes
    ----------
    alpha : :math:`\\alpha`
    """

    name: ClassVar[str] = "task_vector"
    needs: ClassVar[frozenset[str]] = frozenset({"forget"})
    draws: ClassVar[bool] = True
    works_on: ClassVar[frozenset[str]] = ANY

    train: TrainConfig = FORGET_TEXT
    alpha: NotNegative = 1.0

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        if any("lora" in name for name, _ in model.named_parameters()):
            raise TypeError("task_vector subtracts weights; those of adapters are factors of them")
        epochs = shuffled_epochs(split.forget, self.train, seed)
        trained = [p for p in model.parameters() if p.requires_grad]
        # What is added is not what is left of it after rounding.
        with single_precision(trained, self.name):
            before = [p.detach().clone() for p in trained]
            train(model, epochs, split.task.loss, self.train, seed=seed, name=self.name)
            with torch.no_grad():
                for p, first in zip(trained, before, strict=True):
                    p.copy_(first - self.alpha * (p - first))
        return model
