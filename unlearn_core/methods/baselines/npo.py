r"""Negative preference optimisation (Zhang, Lin, Bai and Mei, COLM 2024; arXiv 2404.05868).

The half of DPO that dislikes an answer. With the summed log-probability :math:`\log p` of an answer,

.. math:: L = -\frac2\beta\;\mathbb E_{D_f}\log\sigma\Big(-\beta\log\frac{p_\theta(y\mid x)}
              {p_{\theta_0}(y\mid x)}\Big).

As the answer becomes improbable its gradient fades, unlike gradient ascent's. NPO-RT adds the loss on
the retain set. Without the original model, and per token, it is SimNPO (Fan et al., 2024; arXiv
2410.07163):

.. math:: L = -\frac2\beta\;\mathbb E_{D_f}\log\sigma\Big(-\frac\beta{|y|}\log p_\theta(y\mid x)
              - \beta\delta\Big).

Code: github.com/locuslab/open-unlearning, ``trainer/unlearn/{npo,simnpo}.py``, commit d3d7cf9;
github.com/UCSC-REAL/FLAT, ``dataloader.py``. The original's log-probabilities are computed once and
the original is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ...data import Answering, ForgetSplit, Task
from ...fields import NotNegative, Positive
from ...models import TrainConfig
from ..base import FORGET_TEXT, IMAGES, TEXT, Method
from ..forget_pairs import Paired, log_probs_before

__all__ = ["NPO", "NPORetain", "SimNPO", "npo_loss", "simnpo_loss"]


def npo_loss(log_probs: Tensor, before: Tensor, beta: float) -> Tensor:
    """NPO's loss of summed log-probabilities (n,), now and before: a scalar."""
    return 2 / beta * nn.functional.softplus(beta * (log_probs - before)).mean()


def simnpo_loss(log_probs: Tensor, tokens: Tensor, beta: float, delta: float) -> Tensor:
    """SimNPO's loss of summed log-probabilities (n,) over ``tokens`` (n,) each: a scalar."""
    return 2 / beta * nn.functional.softplus(beta * (log_probs / tokens + delta)).mean()


@dataclass(frozen=True)
class NPO(Paired, Method):
    """Make the true answers less probable than the original finds them.

    Attributes
    ----------
    beta : :math:`\\beta`; towards 0 it becomes gradient ascent
    """

    name: ClassVar[str] = "npo"
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "reference"})
    draws: ClassVar[bool] = True
    works_on: ClassVar[frozenset[str]] = IMAGES | TEXT

    train: TrainConfig = FORGET_TEXT
    beta: Positive = 0.1

    def loss(self, task: Task, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """Of a batch of "forget", "before" and, with the retain set, "retain": a scalar."""
        now = task.log_probs(model, batch["forget"])
        gone = npo_loss(now, batch["before"], self.beta)
        return gone + task.loss(model, batch["retain"]) if "retain" in self.needs else gone

    def epochs(
        self, model: nn.Module, split: ForgetSplit, seed: int, **beside: Any
    ) -> Callable[[int], Iterable[dict[str, Any]]]:
        known = log_probs_before(model, split.task, split.forget, self.train.batch_size)
        return super().epochs(model, split, seed, before=lambda _: {"before": known}, **beside)


@dataclass(frozen=True)
class NPORetain(NPO):
    """NPO with the loss on the retain set beside it (NPO-RT, also NPO-GD)."""

    name: ClassVar[str] = "npo_retain"
    needs: ClassVar[frozenset[str]] = NPO.needs | {"retain"}


@dataclass(frozen=True)
class SimNPO(Paired, Method):
    """NPO without the original model, by the mean over an answer's tokens, beside the retain set.

    Attributes
    ----------
    beta, delta : :math:`\\beta` and :math:`\\delta`
    gamma : weight of the forget term; that of the retain set's loss is 1
    """

    name: ClassVar[str] = "simnpo"
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})
    draws: ClassVar[bool] = True
    works_on: ClassVar[frozenset[str]] = TEXT

    train: TrainConfig = FORGET_TEXT
    beta: Positive = 4.5
    delta: float = 0.0
    gamma: NotNegative = 0.125

    def loss(self, task: Answering, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """Of a batch of pairs "forget" and "retain": a scalar."""
        now, tokens = task.log_probs(model, batch["forget"]), task.answer_tokens(batch["forget"])
        gone = simnpo_loss(now, tokens, self.beta, self.delta)
        return self.gamma * gone + task.loss(model, batch["retain"])
