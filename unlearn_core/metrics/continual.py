r"""Metrics of learning tasks one after another (SEFE, Chen et al., ICML 2025; CoIN).

Truth alignment asks whether an answer is right *in the style of its task*; `knowledge`, whether the
right content is in it, whatever its style. Where the second stays and the first falls, forgetting is
superficial. With :math:`a_{t,j}` the accuracy on task j after training on task t,

.. math::

    \text{MFT} = \frac1T \sum_j a_{j,j}, \quad \text{MFN} = \frac1T \sum_j a_{T,j}, \quad
    \text{MAA} = \frac1T \sum_t \frac1t \sum_{j \le t} a_{t,j}, \quad
    \text{BWT} = \frac1T \sum_j (a_{T,j} - a_{j,j}).

Scorers: github.com/jinpeng0528/SEFE, ``llava/eval/CoIN``, commit 2f61efe. Deviation: the authors'
judge of knowledge, a language model of 32 billion weights, is replaced by a rule.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..data.answer_styles import (
    BOX,
    NATIVE,
    Box,
    VisualItem,
    VisualTask,
    box_iou,
    format_valid,
    parse_box,
)
from ..registry import did_you_mean

__all__ = [
    "Scores",
    "backward_transfer",
    "knowledge",
    "mean_average_accuracy",
    "mean_final_accuracy",
    "mean_finetune_accuracy",
    "score_answers",
    "truth",
]


def _normal(text: str) -> str:
    return text.strip().lower().rstrip(".").strip()


def _letter(text: str) -> str | None:
    """The letter that is chosen by "B", "B. ..." or one "The answer is B."; else None."""
    if found := re.fullmatch(r"([A-Z])(\. .*)?", text.strip(), re.DOTALL):
        return found[1]
    found = re.findall(r"The answer is ([A-Z])\.", text)
    return found[0] if len(found) == 1 else None


def _coin_box(text: str) -> Box | None:
    """A box as CoIN reads it: without the first and the last character between the brackets."""
    try:
        numbers = [float(n) for n in text.replace("[", "").replace("]", "")[1:-1].split(",")]
    except ValueError:
        return None
    return tuple(numbers) if len(numbers) == 4 else None  # type: ignore[return-value]


def truth(prediction: str, answer: str, style: str, coin_compat: bool = False) -> bool:
    """Whether an answer is right in the style of its task: CoIN's rules.

    - "choice": a letter, "B. ..." or exactly one "The answer is B.".
    - "box": a box and nothing else, with an IoU above 0.5. (CoIN loses the first digit of x1 and
      the last one of y2.)
    - "class": the name. (CoIN: one text contains the other, by which no answer at all is right.)
    - else: the answer. (CoIN: as GQA's scorer, a capital in the *right* answer is never met; for
      yes/no as VQAv2's, "Yes." is wrong.)

    Case and full stops at the end don't matter. TextVQA's soft accuracy over ten people's answers is
    the last rule where there is one answer.

    Parameters
    ----------
    style : of the task, as of `VisualTask`
    coin_compat : with CoIN's quirks, in brackets above

    Raises
    ------
    ValueError
        An unknown style; a right answer that is no box where it must be one.
    """
    if style not in NATIVE:
        raise ValueError(f"unknown style {style!r}; {did_you_mean(style, NATIVE)}")
    if style == "choice":
        return _letter(prediction) == answer
    if style == "box":
        gold = parse_box(answer)
        if gold is None:
            raise ValueError(f"the right answer {answer!r} is not a box")
        found = _coin_box(prediction) if coin_compat else parse_box(prediction)
        return found is not None and box_iou(found, gold) > 0.5
    if not coin_compat:
        return _normal(prediction) == _normal(answer)
    if style == "class":
        return answer in prediction or prediction in answer
    if style == "yes_no":
        return prediction.lower() == answer.lower()
    return prediction.lower().rstrip(".") == answer


def _says(text: str, phrase: str) -> bool:
    """Whether whole words of a text are the phrase; "T-shirt" doesn't say "shirt", nor 0.25 25."""
    whole = rf"(?<![\w.-]){re.escape(phrase.lower())}(?![\w-]|\.\d)"
    return bool(re.search(whole, text.lower()))


def knowledge(prediction: str, item: VisualItem) -> bool:
    """Whether the right content can be read from an answer in any of the five styles.

    A letter counts by what its option says, a box (the first in the text) by an IoU above 0.5, and
    yes or no only if that was asked. Of other texts count, in this order, what stands before the
    first full stop, what "the answer to the question is" says, and everything that is said; the last
    only if no wrong answer is said. Yes/no questions are also right by the answer to the open
    question, descriptions by their condensed form.

    So a bare "Yes", a letter without options or a box says nothing of an open question: such an
    answer may hide knowledge that is there.
    """
    gold = parse_box(item.answer)
    if gold is not None:
        found = BOX.search(prediction)
        return found is not None and box_iou(tuple(map(float, found.groups())), gold) > 0.5
    letter = _letter(prediction)
    if letter and item.options:
        said = ord(letter) - ord("A")
        return said < len(item.options) and item.options[said] == item.answer
    conclusion = re.search(r"the answer to the question is (.*)", prediction)
    for text in (prediction.partition(". ")[0], conclusion[1] if conclusion else ""):
        if _normal(text) in map(_normal, (item.answer, *item.wrong)):
            return _normal(text) == _normal(item.answer)
    if item.open:
        return _says(prediction, item.open[1])
    return _says(prediction, item.answer) and not any(_says(prediction, w) for w in item.wrong)


def _in_form(prediction: str, answer: str, task: VisualTask) -> bool:
    """Some tasks of short answers also ask what is answered with yes or no."""
    yes_no = task.style == "short" and _normal(answer) in ("yes", "no")
    return format_valid(prediction, "yes_no" if yes_no else task.style)


class Scores(NamedTuple):
    """Of each answer, (N,) bool: whether it is right, in the task's style, and known."""

    truth: Tensor
    format_valid: Tensor
    knowledge: Tensor


def score_answers(
    task: VisualTask, predictions: Sequence[str], coin_compat: bool = False
) -> Scores:
    """`truth`, `format_valid` and `knowledge` of the answers to a task's test set, in its order.

    Raises
    ------
    ValueError
        Another number of answers than of questions.
    """
    if len(predictions) != len(task.test):
        raise ValueError(f"{task.name}: {len(predictions)} answers to {len(task.test)} questions")
    rows = [
        (truth(p, answer, task.style, coin_compat), _in_form(p, answer, task), knowledge(p, item))
        for p, answer, item in zip(predictions, task.test.answers, task.test_items, strict=True)
    ]
    return Scores(*torch.tensor(rows, dtype=torch.bool).reshape(-1, 3).T)


def _below(accuracies: Tensor) -> Tensor:
    """The matrix (T, T) in float64 with zeros above the diagonal, where nothing is used."""
    a = torch.as_tensor(accuracies, dtype=torch.float64)
    if a.ndim != 2 or a.shape[0] != a.shape[1] or not len(a):
        raise ValueError(f"accuracies are (tasks, tasks), not {tuple(a.shape)}")
    known = torch.ones(a.shape, dtype=torch.bool).tril()
    if len(missing := (~a.isfinite() & known).nonzero()):
        t, j = (missing[0] + 1).tolist()
        raise ValueError(
            f"the accuracy on task {j} after task {t} is missing (row {t}, column {j})"
        )
    return a.where(known, 0.0)


def mean_finetune_accuracy(accuracies: Tensor) -> float:
    """MFT: of each task right after training on it. ``accuracies`` (T, T): row t after task t."""
    return _below(accuracies).diagonal().mean().item()


def mean_final_accuracy(accuracies: Tensor) -> float:
    """MFN: of all tasks after the last one."""
    return _below(accuracies)[-1].mean().item()


def mean_average_accuracy(accuracies: Tensor) -> float:
    """MAA: the mean over the stages of the mean over the tasks so far."""
    a = _below(accuracies)
    return (a.sum(dim=1) / torch.arange(1, len(a) + 1)).mean().item()


def backward_transfer(accuracies: Tensor, denominator: Literal["T", "T-1"] = "T") -> float:
    """BWT: what the tasks lost, at the end, of what they had right after training (below 0).

    Divided by the number of tasks, as in the paper, whose last task loses nothing: MFN - MFT. Others
    divide by one less; of a single task that is NaN.

    Raises
    ------
    ValueError
        An unknown denominator.
    """
    if denominator not in ("T", "T-1"):
        raise ValueError(f"unknown denominator {denominator!r}; known: T, T-1")
    a = _below(accuracies)
    count = len(a) - (denominator == "T-1")
    return (a[-1] - a.diagonal()).sum().item() / count if count else math.nan
