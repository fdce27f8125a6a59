"""Random labelling (Golatkar, Achille and Soatto, CVPR 2020), as the SalUn paper runs it.

The forget images get random labels, drawn anew in every epoch, and the retain images keep
theirs (github.com/OPTML-Group/Unlearn-Saliency, ``Classification/unlearn/RL.py``: SGD, ten
epochs). It is SalUn without its mask.

In that code the order of the images changed. Until 30 January 2024, the paper's acceptance
included, every data set's forget and retain images were shuffled together, as the worst-case
paper's repository (``data-wise/unlearn/RL.py``) does to this day; from 4 April 2024 (commit
f31f82e) a CIFAR-10 epoch is all of the forget set and then all of the retain set. Users of the
former code report the values of the SalUn paper's table, users of the latter forget a fifth of
that, so the published table is very probably of the mixed order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from ...data import Consecutive, ForgetSplit
from ...models import TrainConfig, shuffled_epochs, train
from ...seeding import derive_seed, generator
from ..base import Method

__all__ = ["RandomLabel"]


@dataclass(frozen=True)
class RandomLabel(Method):
    """Learn random labels for the forget set beside right ones for the retain set.

    Attributes
    ----------
    order : of an epoch: "mixed", both sets shuffled together; "forget_first", all of the forget
        set before all of the retain set, which mends at once what the forget set has done
    wrong : draw from the other classes, as the paper's formula says; the authors' code draws
        from all of them, so that one label in ``classes`` is right
    """

    name: ClassVar[str] = "random_label"
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})
    draws: ClassVar[bool] = True

    train: TrainConfig = TrainConfig(
        epochs=10, lr=0.013, batch_size=256, momentum=0.9, weight_decay=5e-4
    )
    order: Literal["mixed", "forget_first"] = "mixed"
    wrong: bool = False

    def epochs(self, split: ForgetSplit, seed: int) -> Callable[[int], Iterable[Any]]:
        """Epoch -> its batches, in which every image of both sets comes once."""
        both = split.forget + split.retain if self.order == "mixed" else None

        def batches_of(epoch: int) -> Iterable[Any]:
            drawn = split.task.relabel(
                split.forget, generator(seed, "relabel", epoch), wrong=self.wrong
            )
            if both is not None:
                labels = torch.cat([drawn.labels, split.retain.labels])
                return shuffled_epochs(both.with_labels(labels), self.train, seed)(epoch)
            return Consecutive(
                shuffled_epochs(drawn, self.train, derive_seed(seed, "forget"))(epoch),
                shuffled_epochs(split.retain, self.train, derive_seed(seed, "retain"))(epoch),
            )

        return batches_of

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        epochs = self.epochs(split, seed)
        return train(model, epochs, split.task.loss, self.train, seed=seed, name=self.name)
