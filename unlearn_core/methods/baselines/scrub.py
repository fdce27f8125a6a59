r"""SCRUB (Kurmanji, Triantafillou, Hayes and Triantafillou, NeurIPS 2023), as the worst-case paper runs it.

The student disobeys its teacher, the original model in evaluation mode, on the forget set, and
then learns the retain set close to it. With
:math:`\mathrm{KL}_T = T^2\,\mathrm{mean}_i\,\mathrm{KL}(p_T(\text{teacher})_i \Vert
p_T(\text{student})_i)` of softmaxes at temperature :math:`T`: (1) epochs 0 to ``m_steps``
minimise :math:`-\mathrm{KL}_T` on the forget set; (2) the later ones minimise
:math:`0.99\,\mathrm{CE} + 0.001\,\mathrm{KL}_T` on the retain set. The learning rate falls tenfold
*after* epochs 3, 5 and 9, counted from 0: it is lower from epochs 4, 6 and 10 on.
(``data-wise/unlearn/SCRUB.py`` of github.com/OPTML-Group/Unlearn-WorstCase.)

One thing differs from there: the two parts are two training runs, so momentum starts anew in the
second. Where teacher and student agree, the gradient of their divergence is zero: what sets the
first part off is BatchNorm (or dropout), which is in training mode in the student alone. A network
with neither does not leave its teacher until weight decay moves it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...data import ForgetSplit
from ...fields import Natural, NotNegative, Positive
from ...models import TrainConfig, shuffled_epochs, train
from ...seeding import derive_seed
from ..base import Method

__all__ = ["Scrub"]


@dataclass(frozen=True)
class Scrub(Method):
    r"""Away from the original on the forget set, then back to it on the retain set.

    Attributes
    ----------
    train : of both parts; the paper chose ``lr`` on a grid of 1e-4 to 1e-1, with a random forget
        set, and its authors' code mentions 5e-4
    m_steps : the last epoch, counted from 0, on the forget set
    temperature : :math:`T`
    ce_weight, kl_weight : of the cross-entropy and of :math:`\mathrm{KL}_T` on the retain set
    """

    name: ClassVar[str] = "scrub"
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "retain", "reference"})
    draws: ClassVar[bool] = True

    train: TrainConfig = TrainConfig(
        epochs=10,
        lr=5e-4,
        batch_size=256,
        momentum=0.9,
        weight_decay=5e-4,
        schedule="multistep",
        milestones=(4, 6, 10),
    )
    m_steps: Natural = 1
    temperature: Positive = 4.0
    ce_weight: NotNegative = 0.99
    kl_weight: NotNegative = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train.epochs < 2:
            raise ValueError("SCRUB needs two epochs at least, one for each of its parts, not 1")
        if not 0 <= self.m_steps < self.train.epochs - 1:
            raise ValueError(
                f"m_steps must lie in [0, {self.train.epochs - 2}], so that both parts of the "
                f"{self.train.epochs} epochs have some, not be {self.m_steps}"
            )
        if self.train.schedule == "cosine" or self.train.warmup_epochs:
            raise ValueError("SCRUB's schedule is constant or multistep, without warm-up")

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        teacher = copy.deepcopy(model).eval()

        def divergence(logits: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
            with torch.no_grad():
                target = (split.task.logits(teacher, batch) / self.temperature).log_softmax(dim=1)
            log_student = (logits / self.temperature).log_softmax(dim=1)
            value = nn.functional.kl_div(
                log_student, target, reduction="batchmean", log_target=True
            )
            return self.temperature**2 * value

        def disobey(student: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            return -divergence(split.task.logits(student, batch), batch)

        def obey(student: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            logits = split.task.logits(student, batch)
            loss = nn.functional.cross_entropy(logits, batch[1])
            return self.ce_weight * loss + self.kl_weight * divergence(logits, batch)

        first = self.m_steps + 1
        first_part = {"epochs": first, "milestones": ()}
        if self.train.schedule == "multistep":
            early = tuple(m for m in self.train.milestones if m <= first)
            first_part |= {"milestones": early} if early else {"schedule": "constant"}
        # The second run counts its epochs from 0: milestones come earlier, or are passed already.
        milestones = tuple(m - first for m in self.train.milestones)
        for part, data, loss, config in (
            ("forget", split.forget, disobey, replace(self.train, **first_part)),
            (
                "retain",
                split.retain,
                obey,
                replace(self.train, epochs=self.train.epochs - first, milestones=milestones),
            ),
        ):
            own = derive_seed(seed, part)
            epochs = shuffled_epochs(data, config, own)
            train(model, epochs, loss, config, seed=own, name=f"scrub, {part}")
        return model
