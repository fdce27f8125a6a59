r"""TOFU's metrics (Maini et al., 2024; arXiv 2401.06121), from losses of answers.

With the length-normalised loss :math:`\ell(a\mid q)` of an answer (the mean over its tokens, the
end of sequence included), the probability of an answer is :math:`e^{-\ell}` and the truth ratio of
a question compares its wrong answers :math:`\hat a_j` with the paraphrase :math:`\tilde a` of the
true one:

.. math:: R = \exp\Big(\ell(\tilde a) - \tfrac1m\sum_j \ell(\hat a_j)\Big).

Authors' code: github.com/locuslab/tofu, ``aggregate_eval_stat.py``, ``data_module.py``, commit
bdc209e. The paper's formula, and an older helper of the code, take the arithmetic mean of the wrong
answers' probabilities; the code that makes the tables takes the geometric one. Model utility differs
by 0.03 to 0.04 between the two. github.com/locuslab/open-unlearning adds 1e-10 to denominators,
which decides the value once a model has collapsed; here everything stays in logarithms instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..data import IGNORED
from ..models import NotFiniteError
from .checks import alike, finite

__all__ = [
    "AnswerLosses",
    "ForgetQuality",
    "answer_losses",
    "choice_probability",
    "deviation_score",
    "forget_quality",
    "model_utility",
    "truth_ratio",
    "truth_ratio_score",
]


class AnswerLosses(NamedTuple):
    """Of each sequence: the summed loss of its answer, and how many tokens that is."""

    total: Tensor
    tokens: Tensor

    @property
    def mean(self) -> Tensor:
        """The length-normalised losses."""
        return self.total / self.tokens


def answer_losses(logits: Tensor, labels: Tensor) -> AnswerLosses:
    """The negative log-likelihood of the labelled tokens of each sequence, in float64.

    ``logits`` (n, length, vocabulary) at a position predict the token at the next one; ``labels``
    (n, length) are -100 for what is no answer.

    Raises
    ------
    ValueError
        A sequence without an answer, or one whose first token is labelled: nothing predicts it.
    """
    if (labels[:, 0] != IGNORED).any():
        raise ValueError("the first token of a sequence is labelled, but nothing predicts it")
    tokens = (labels != IGNORED).sum(dim=1)
    if (tokens == 0).any():
        raise ValueError(f"sequence {int((tokens == 0).nonzero()[0])} has no answer")
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].double().transpose(1, 2),
        labels[:, 1:],
        ignore_index=IGNORED,
        reduction="none",
    )
    return AnswerLosses(finite("losses of answers", losses.sum(dim=1)), tokens)


def truth_ratio(
    paraphrased: Tensor,
    wrong: Tensor,
    average: Literal["geometric", "arithmetic"] = "geometric",
) -> Tensor:
    """The truth ratio of each question: (n,) float64, below 1 where the truth is more probable.

    ``paraphrased`` (n,) and ``wrong`` (n, m) are length-normalised losses. ``average`` is the mean
    over the wrong answers' probabilities.

    Raises
    ------
    ValueError
        Another ``average``.
    """
    alike(**{"paraphrases": paraphrased, "sets of wrong answers": wrong})
    paraphrased = finite("losses of paraphrases", paraphrased).double()
    wrong = finite("losses of wrong answers", wrong).double()
    if average == "geometric":
        log_wrong = -wrong.mean(dim=1)
    elif average == "arithmetic":
        log_wrong = torch.logsumexp(-wrong, dim=1) - torch.tensor(wrong.shape[1]).double().log()
    else:
        raise ValueError(f"average is 'geometric' or 'arithmetic', not {average!r}")
    return (log_wrong + paraphrased).exp()


def truth_ratio_score(ratios: Tensor, forgotten: bool) -> Tensor:
    """What a truth ratio is worth, for each question, in [0, 1].

    On questions to be forgotten ``min(R, 1/R)``: 1 where the model can't tell the truth from the
    wrong answers. On all others ``max(0, 1 - R)``.

    Raises
    ------
    NotFiniteError
        A ratio is not a number.
    """
    if ratios.isnan().any():
        raise NotFiniteError("a truth ratio is not a number")
    return torch.minimum(ratios, 1 / ratios) if forgotten else (1 - ratios).clamp(min=0)


def choice_probability(correct: Tensor, wrong: Tensor) -> Tensor:
    """The probability of the right answer among the given ones: (n,) float64.

    ``correct`` (n,) and ``wrong`` (n, m) are length-normalised losses. TOFU's probability on real
    authors and world facts.
    """
    alike(**{"right answers": correct, "sets of wrong answers": wrong})
    every = finite("losses of answers", torch.cat([correct[:, None], wrong], dim=1)).double()
    return (-every).softmax(dim=1)[:, 0]


def model_utility(components: Mapping[str, float]) -> float:
    """The harmonic mean of the components, in [0, 1]; 0 if one of them is 0.

    TOFU's are nine: probability, ROUGE-L recall and truth ratio score on the retained questions, on
    real authors and on world facts.

    Raises
    ------
    ValueError
        No component, or one that is not a number in [0, 1].
    """
    from scipy.stats import hmean

    if not components:
        raise ValueError("model utility of nothing")
    for name, value in components.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}, not in [0, 1]")
    return float(hmean(list(components.values())))


class ForgetQuality(NamedTuple):
    """The Kolmogorov-Smirnov test between two models' truth ratios."""

    p_value: float
    statistic: float


def forget_quality(ratios: Tensor, retained: Tensor) -> ForgetQuality:
    """Whether a model's truth ratios on the forget set look like the retained model's.

    ``ratios`` and ``retained`` (n,) are of the **same questions**; the two-sided two-sample test
    does not use that, and the authors' published logs, compared as they are, hold different ones.
    With n questions on each side, p can't be smaller than at full separation: 1.9e-23 for 40.

    Raises
    ------
    ValueError
        Different numbers of questions, none, or a ratio that is not a number.
    """
    from scipy.stats import ks_2samp

    if ratios.shape != retained.shape or ratios.dim() != 1 or len(ratios) == 0:
        raise ValueError(
            f"truth ratios of the same questions are compared, not {tuple(ratios.shape)} with "
            f"{tuple(retained.shape)}"
        )
    if ratios.isnan().any() or retained.isnan().any():
        raise ValueError("a truth ratio is not a number")
    test = ks_2samp(ratios.numpy(), retained.numpy())
    return ForgetQuality(float(test.pvalue), float(test.statistic))


def deviation_score(forget_recall: float, retain_recall: float) -> float:
    """DRAGON's score of both sides: 0 is nothing left of the forget set and all of the rest.

    ``100 * sqrt(f**2 + (1 - r)**2)`` of the ROUGE-L recall on forget and on retain answers, each
    in [0, 1] (Wang et al., 2025; arXiv 2511.05784).

    Raises
    ------
    ValueError
        A recall outside [0, 1], or that is no number.
    """
    for name, value in (("forget", forget_recall), ("retain", retain_recall)):
        if not 0 <= value <= 1:
            raise ValueError(f"the recall on {name} is {value}, not in [0, 1]")
    return 100 * (forget_recall**2 + (1 - retain_recall) ** 2) ** 0.5
