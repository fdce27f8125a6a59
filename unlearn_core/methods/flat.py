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
length instead of the answer's (``normalize="padded"``) and takes the batch's mean of a and b before
:math:`g^*` and :math:`f^*`.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn

from ..models.chat import IGNORED

__all__ = ["DIVERGENCES", "answer_probability", "divergence_loss"]

DIVERGENCES = ("tv", "js", "pearson", "kl")


def divergence_loss(a: Tensor, b: Tensor, divergence: str) -> Tensor:
    r"""The loss of the probabilities ``a`` of templates and ``b`` of true answers, elementwise.

    Its slopes are the weights: :math:`\partial L/\partial b` of unlearning the answer,
    :math:`-\partial L/\partial a` of learning the template.
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
    logits: Tensor, labels: Tensor, normalize: Literal["answer", "padded"] = "answer"
) -> Tensor:
    """The mean probability of the tokens of each answer: (n,).

    ``logits`` (n, length, vocabulary) at a position predict the token at the next one; ``labels``
    (n, length) are -100 for what is no answer. "padded" divides by length - 1, whatever the answer.

    Raises
    ------
    ValueError
        A sequence without an answer, under "answer".
    """
    targets = labels[:, 1:]
    said = targets != IGNORED
    if normalize == "answer" and not said.any(dim=1).all():
        raise ValueError("a sequence has no answer")
    chosen = logits[:, :-1].gather(2, targets.clamp(min=0)[:, :, None])[:, :, 0]
    probability = (chosen - logits[:, :-1].logsumexp(dim=2)).exp() * said
    total = probability.sum(dim=1)
    return total / (said.sum(dim=1) if normalize == "answer" else targets.shape[1])
