r"""Direct preference optimisation (Rafailov et al., NeurIPS 2023), for template over true answers.

With the summed log-probabilities of a template answer :math:`\ell_e` and of the true one
:math:`\ell_f`, and those of the original model :math:`\ell^0`,

.. math:: L = -\frac2\beta\;\mathbb E\log\sigma\big(\beta[(\ell_e-\ell_e^0)-(\ell_f-\ell_f^0)]\big).

The factor two is TOFU's. FLAT's released code (github.com/UCSC-REAL/FLAT, ``dataloader.py``) sets the
original's part to 0, which is the ablation `ReferenceFreeDPO`; and SimPO (Meng, Xia and Chen, NeurIPS
2024) is that of means over tokens, :math:`\bar\ell`, with a margin:

.. math:: L = -\frac2\beta\;\mathbb E\log\sigma\big(\beta\bar\ell_e-\beta\bar\ell_f-\gamma\big).

DPO-RT adds the loss on the retain set. Template answers are drawn anew in every epoch; what the
original gives them is computed before training, and the original is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ...data import Answering, ForgetSplit
from ...fields import NotNegative, Positive
from ...models import TrainConfig
from ..base import FORGET_TEXT, TEXT, Method
from ..forget_pairs import Paired, log_probs_before, template_answers

__all__ = ["DPO", "DPORetain", "ReferenceFreeDPO", "SimPO", "dpo_loss"]


def dpo_loss(template: Tensor, true: Tensor, beta: float, margin: float = 0.0) -> Tensor:
    """The loss of what answers have gained, in log-probability, (n,) each: a scalar."""
    return 2 / beta * nn.functional.softplus(margin - beta * (template - true)).mean()


@dataclass(frozen=True)
class ReferenceFreeDPO(Paired, Method):
    """Prefer template answers to the true ones, whatever the original thought of either.

    Attributes
    ----------
    beta : :math:`\\beta`
    """

    name: ClassVar[str] = "dpo_without_reference"
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "templates"})
    draws: ClassVar[bool] = True
    works_on: ClassVar[frozenset[str]] = TEXT

    train: TrainConfig = FORGET_TEXT
    beta: Positive = 0.1

    def preference(self, task: Answering, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """Of a batch of pairs "template" and "forget": a scalar."""
        e, f = (task.log_probs(model, batch[k]) for k in ("template", "forget"))
        if "reference" in self.needs:
            e, f = e - batch["template_before"], f - batch["forget_before"]
        return dpo_loss(e, f, self.beta)

    def loss(self, task: Answering, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """The preference and, with the retain set, the loss on "retain"."""
        preference = self.preference(task, model, batch)
        return (
            preference + task.loss(model, batch["retain"]) if "retain" in self.needs else preference
        )

    def epochs(
        self, model: nn.Module, split: ForgetSplit, seed: int, **beside: Any
    ) -> Callable[[int], Iterable[dict[str, Any]]]:
        task = split.task
        before: dict[int, dict[str, Tensor]] = {}
        if "reference" in self.needs:
            size = self.train.batch_size
            true = log_probs_before(model, task, split.forget, size)
            for epoch in range(self.train.epochs):
                drawn = template_answers(split, seed, epoch)
                other = log_probs_before(model, task, drawn, size)
                before[epoch] = {"forget_before": true, "template_before": other}
        known = before.__getitem__ if before else None
        return super().epochs(model, split, seed, before=known, **beside)


@dataclass(frozen=True)
class DPO(ReferenceFreeDPO):
    """Prefer template answers to the true ones, compared with what the original prefers."""

    name: ClassVar[str] = "dpo"
    needs: ClassVar[frozenset[str]] = ReferenceFreeDPO.needs | {"reference"}


@dataclass(frozen=True)
class DPORetain(DPO):
    """DPO with the loss on the retain set beside it (DPO-RT)."""

    name: ClassVar[str] = "dpo_retain"
    needs: ClassVar[frozenset[str]] = DPO.needs | {"retain"}


@dataclass(frozen=True)
class SimPO(ReferenceFreeDPO):
    """Reference-free, by the mean over an answer's tokens, with a margin.

    Attributes
    ----------
    gamma : :math:`\\gamma`; neither it nor beta is given by FLAT's authors for their ablation
    """

    name: ClassVar[str] = "simpo"

    beta: Positive = 2.0
    gamma: NotNegative = 0.5

    def preference(self, task: Answering, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        e, f = (
            task.log_probs(model, batch[k]) / task.answer_tokens(batch[k])
            for k in ("template", "forget")
        )
        return dpo_loss(e, f, self.beta, self.gamma)
