r"""FLAT (Wang et al., ICLR 2025; arXiv 2410.11143): forget with template answers and nothing else.

Each question to be forgotten has its true answer :math:`y_f` and, drawn anew at every visit, a
template answer :math:`y_e` (a refusal). With the mean probability of an answer's tokens,

.. math::

    P(x, y) = \frac1{|y|}\sum_i p_\theta(y_i \mid x, y_{<i}), \qquad a = P(x, y_e),\; b = P(x, y_f),

the loss is minus the variational form of an f-divergence between the two kinds of answer, with the
optimal variational function :math:`g^*` and the conjugate :math:`f^*` put in:

.. math:: L = -\,\mathbb E\big[g^*(a) - f^*(g^*(b))\big].

Total variation, Jensen-Shannon, Pearson and KL give four losses (`divergence_loss`). How much the
model learns the template and unlearns the answer is so fixed by the divergence, and all four are
bounded. There is no retain data and no reference model.

Authors' code: github.com/UCSC-REAL/FLAT, ``dataloader.py``, commit bf2ef07. It divides by the padded
length instead of the answer's (``padded_to``) and takes the batch's mean of a and b before
:math:`g^*` and :math:`f^*`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..data import Answering, ForgetSplit
from ..fields import Rule
from ..models import TrainConfig
from ..seeding import generator
from .base import FORGET_TEXT, TEXT, Method
from .forget_pairs import Paired

__all__ = [
    "DIVERGENCES",
    "FLAT",
    "FLATRetain",
    "FixedWeights",
    "answer_probability",
    "divergence_loss",
]

#: Names of the f-divergences that have a loss.
DIVERGENCES = ("tv", "js", "pearson", "kl")


def divergence_loss(a: Tensor, b: Tensor, divergence: str) -> Tensor:
    r"""The loss of the probabilities ``a`` of templates and ``b`` of true answers, elementwise.

    Its slopes are the weights: :math:`\partial L/\partial b` of unlearning the answer,
    :math:`-\partial L/\partial a` of learning the template.

    Raises
    ------
    ValueError
        An unknown divergence.
    """
    if divergence == "tv":  # g* = tanh(v) / 2, f* = u
        return (b.tanh() - a.tanh()) / 2
    if divergence == "js":  # g* = log(2 / (1 + e^-v)), f* = -log(2 - e^u)
        softplus = nn.functional.softplus
        return softplus(-a) + softplus(b) - 2 * math.log(2)
    if divergence == "pearson":  # g* = v, f* = u^2 / 4 + u
        return -a + b.square() / 4 + b
    if divergence == "kl":  # g* = v, f* = e^(u - 1)
        return -a + (b - 1).exp()
    raise ValueError(f"unknown divergence {divergence!r}; known: {', '.join(DIVERGENCES)}")


def answer_probability(
    task: Answering,
    model: Callable[..., Tensor],
    batch: dict[str, Tensor],
    padded_to: int | None = None,
) -> Tensor:
    """The mean probability of the tokens of each answer: (n,).

    ``padded_to`` divides by that length less one instead, whatever the answer.

    Raises
    ------
    ValueError
        A sequence without an answer.
    """
    scores, rows = task.token_log_probs(model, batch)
    n = len(batch["labels"])
    total = scores.new_zeros(n).index_add(0, rows, scores.exp())
    if padded_to is not None:
        return total / (padded_to - 1)
    tokens = torch.bincount(rows, minlength=n)
    if not tokens.all():
        raise ValueError("a sequence has no answer")
    return total / tokens


@dataclass(frozen=True)
class FLAT(Paired, Method):
    """Learn template answers and unlearn the true ones, weighted by a divergence.

    Attributes
    ----------
    divergence : "tv", "js", "pearson" or "kl"
    padded_to : None for a mean over an answer's tokens (the paper); or the length that sequences
        are padded to, over which the authors' code takes it (500 on TOFU)
    reduce : the loss is a mean of each question's loss (the paper), or the loss of the batch's mean
        probabilities (the authors' code)
    """

    name: ClassVar[str] = "flat"
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "templates"})
    draws: ClassVar[bool] = True
    works_on: ClassVar[frozenset[str]] = TEXT

    divergence: Literal["tv", "js", "pearson", "kl"] = "tv"
    train: TrainConfig = FORGET_TEXT
    padded_to: Annotated[int, Rule("at least 2", lambda n: n >= 2)] | None = None
    reduce: Literal["sequence", "batch_mean"] = "sequence"

    def loss(self, task: Answering, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        r""":math:`L` of a batch of pairs "template" and "forget": a scalar."""
        a, b = (
            answer_probability(task, model, batch[side], self.padded_to)
            for side in ("template", "forget")
        )
        if self.reduce == "batch_mean":
            a, b = a.mean(), b.mean()
        return divergence_loss(a, b, self.divergence).mean()


@dataclass(frozen=True)
class FLATRetain(FLAT):
    """An ablation of the paper: a retain example in the place of the template."""

    name: ClassVar[str] = "flat_retain"
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})

    def epochs(
        self, model: nn.Module, split: ForgetSplit, seed: int, **beside: Any
    ) -> Callable[[int], Iterable[dict[str, Any]]]:
        def retained(epoch: int) -> Dataset:
            g = generator(seed, "retain", epoch)
            return split.retain.subset(
                torch.randint(len(split.retain), (len(split.forget),), generator=g)
            )

        return super().epochs(model, split, seed, retain=False, template=retained, **beside)


@dataclass(frozen=True)
class FixedWeights(Paired, Method):
    r"""An ablation of our own: no divergence, and both terms weigh one.

    Attributes
    ----------
    of : "probability" for :math:`b - a`; "loss" for :math:`\ell(x, y_e) - \ell(x, y_f)`, which has
        no bound
    """

    name: ClassVar[str] = "fixed_weights"
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "templates"})
    draws: ClassVar[bool] = True
    works_on: ClassVar[frozenset[str]] = TEXT

    train: TrainConfig = FORGET_TEXT
    of: Literal["probability", "loss"] = "probability"

    def loss(self, task: Answering, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """Of a batch of pairs "template" and "forget": a scalar."""
        if self.of == "loss":
            return task.loss(model, batch["template"]) - task.loss(model, batch["forget"])
        a, b = (answer_probability(task, model, batch[k]).mean() for k in ("template", "forget"))
        return b - a
