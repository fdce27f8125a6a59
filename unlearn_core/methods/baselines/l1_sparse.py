r"""Fine-tuning with an l1 penalty (Jia et al., NeurIPS 2023), as the SalUn paper runs it.

On the retain set, in epoch e = 0, 1, ... of E:
:math:`\ell(\theta; D_r) + a\,(1 - e/E)\,\lVert\theta\rVert_1`, over all parameters
(github.com/OPTML-Group/Unlearn-Saliency, ``Classification/unlearn/FT.py``, ``FT_l1``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ...data import ForgetSplit
from ...fields import NotNegative
from ...models import TrainConfig, shuffled_epochs, train
from ..base import Method

__all__ = ["L1Sparse"]


@dataclass(frozen=True)
class L1Sparse(Method):
    """Go on training on the retain set, towards sparse weights.

    Attributes
    ----------
    a : the weight of the penalty in the first epoch; it falls linearly, epoch by epoch
    """

    name: ClassVar[str] = "l1_sparse"
    needs: ClassVar[frozenset[str]] = frozenset({"retain"})
    draws: ClassVar[bool] = True

    train: TrainConfig = TrainConfig(
        epochs=10, lr=0.01, batch_size=256, momentum=0.9, weight_decay=5e-4
    )
    a: NotNegative = 1e-4

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        epochs = shuffled_epochs(split.retain, self.train, seed)
        weight = self.a

        def weighted(epoch: int) -> Iterable[Any]:
            nonlocal weight
            weight = self.a * (1 - epoch / self.train.epochs)
            return epochs(epoch)

        def loss(model: nn.Module, batch: Any) -> Tensor:
            size = sum(p.abs().sum() for p in model.parameters())
            return split.task.loss(model, batch) + weight * size

        return train(model, weighted, loss, self.train, seed=seed, name=self.name)
