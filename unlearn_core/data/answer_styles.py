"""Answer Style Diversification (SEFE): a share of a task's answers in the styles of other tasks.

SEFE (Chen et al., ICML 2025; arXiv 2505.02486), section 3 and appendix B; no generator model is
asked here, since each `VisualItem` brings its distractors and explanations along.

Deviations: explanations have about 8 and 20 words instead of 20 and 50. A question that is yes/no
by itself has no candidate to judge, so its prompt is the second half of the paper's (`YES_OR_NO`).
What the paper does with ScienceQA is done with every task of letters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..fields import check_fields
from ..registry import did_you_mean
from ..seeding import derive_seed
from .image_questions import VisualSet

__all__ = [
    "DESCRIBE",
    "DIRECTLY",
    "PROMPTS",
    "STYLES",
    "YES_OR_NO",
    "AnswerStyleDiversification",
    "VisualItem",
    "VisualTask",
    "as_set",
    "box_iou",
    "format_valid",
    "in_own_style",
    "parse_box",
    "style_of",
]

#: The five styles of SEFE's diversification.
STYLES = ("yes_no", "choice", "short", "brief", "detailed")

#: The style of a task's own answers -> which of the five it is.
NATIVE = {s: s for s in STYLES} | {"class": "short", "box": "short"}

#: The response format prompts; the last line of a question. (The paper's figures print "Is this
#: answer correct?".)
PROMPTS = {
    "yes_no": "Is the answer correct? Answer 'Yes' or 'No'.",
    "choice": "Answer with the option's letter from the given choices directly.",
    "short": "Answer the question using a single word or phrase.",
    "brief": "Answer the question and provide a brief explanation.",
    "detailed": "Answer the question and provide a detailed explanation.",
}
#: Those of a question whose answer is a description.
DESCRIBE = {
    "brief": "Answer the question using a brief description",
    "detailed": "Answer the question using a detailed description",
}
#: In the place of PROMPTS["short"] where options were given.
DIRECTLY = "Directly give the answer."
#: What a question that is answered with yes or no ends with.
YES_OR_NO = "Answer 'Yes' or 'No'."

Box = tuple[float, float, float, float]

_NUMBER = r"\s*(\d+(?:\.\d+)?)\s*"
BOX = re.compile(r"\[" + ",".join([_NUMBER] * 4) + r"\]")
#: A short answer has at most so many words (the paper's limit), a brief one at most so many: the
#: middle between what is called brief here and what is called detailed.
LONGEST_SHORT, LONGEST_BRIEF = 10, 16


def parse_box(text: str) -> Box | None:
    """The box ``[x1, y1, x2, y2]`` that a text consists of; None where it is anything else."""
    found = BOX.fullmatch(text.strip())
    return tuple(map(float, found.groups())) if found else None  # type: ignore[return-value]


def box_iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2); 0 where one of them is empty."""

    def area(x1: float, y1: float, x2: float, y2: float) -> float:
        return max(x2 - x1, 0.0) * max(y2 - y1, 0.0)

    if area(*a) == 0 or area(*b) == 0:
        return 0.0
    both = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    return both / (area(*a) + area(*b) - both)


def style_of(answer: str) -> str:
    """Which style an answer is in: one of `STYLES`, or "box".

    Yes or no; one capital letter; ``[x1, y1, x2, y2]``; a sentence (four words or more and a full
    stop), brief or detailed by its length; or else up to ten words.

    Raises
    ------
    ValueError
        It is in none of the styles: empty, not a whole box, or long without being a sentence.
    """
    text = answer.strip()
    words = text.split()
    if text.rstrip(".").lower() in ("yes", "no"):
        return "yes_no"
    if re.fullmatch("[A-Z]", text):
        return "choice"
    if parse_box(text):
        return "box"
    if re.search(r"\w", text) and not text.startswith("["):
        if text.endswith(".") and len(words) >= 4:
            return "brief" if len(words) <= LONGEST_BRIEF else "detailed"
        if len(words) <= LONGEST_SHORT:
            return "short"
    raise ValueError(f"the answer {answer!r} is in none of the styles {', '.join(STYLES)}")


def format_valid(answer: str, style: str) -> bool:
    """Whether an answer, right or wrong, is in the style of a task's own answers."""
    try:
        return style_of(answer) == ("short" if style == "class" else style)
    except ValueError:
        return False


@dataclass(frozen=True)
class VisualItem:
    """What is known of one question about an image, whatever the style that it is answered in.

    Attributes
    ----------
    question : without options and without a response format prompt
    answer : the content: a word, a number, a box, Yes or No, what the right option says
    wrong : wrong answers of the same kind; a choice takes three, unless the task has ``options``
    brief, detailed : both are needed to convert an item: an explanation of about 8 and one of about 20 words; of a box, a description
        of what is in it
    options : what the options say, in the order of their letters, where the task has them
    open : a question about the same with an answer that is neither yes nor no, where the answer
        is; where it is a description, the question and its answer in ten words at most
    """

    question: str
    answer: str
    wrong: tuple[str, ...]
    brief: str
    detailed: str
    options: tuple[str, ...] = ()
    open: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        if self.answer in self.wrong:
            raise ValueError(f"the answer {self.answer!r} is among the wrong ones: {self.question}")
        if self.options and self.answer not in self.options:
            raise ValueError(f"the answer {self.answer!r} is none of the options {self.options}")


@dataclass(frozen=True)
class VisualTask:
    """A task of a sequence: questions about images, answered in a style of its own.

    Attributes
    ----------
    style : "yes_no", "choice", "short", "class" (a short answer that names a class), "box",
        "brief" or "detailed"
    train, test : the questions and answers, each as `in_own_style` writes it
    train_items, test_items : one for each of them; none for a training set that can't be converted
    """

    name: str
    style: str
    train: VisualSet
    test: VisualSet
    train_items: tuple[VisualItem, ...]
    test_items: tuple[VisualItem, ...]

    def __post_init__(self) -> None:
        if self.style not in NATIVE:
            raise ValueError(f"unknown style {self.style!r}; {did_you_mean(self.style, NATIVE)}")
        for part in ("train", "test"):
            n, items = len(getattr(self, part)), getattr(self, f"{part}_items")
            if n != len(items) and (items or part == "test"):
                raise ValueError(f"{self.name}: {n} questions in {part}, but {len(items)} items")
            for i, item in enumerate(items if part == "train" else ()):
                lacks = {
                    "options": self.style == "choice" and not item.options,
                    "an open question": self.style in ("yes_no", *DESCRIBE) and not item.open,
                    "three wrong answers": len(item.wrong) < (1 if self.style == "yes_no" else 3),
                }
                if any(lacks.values()):
                    missing = ", ".join(k for k, v in lacks.items() if v)
                    raise ValueError(f"{self.name}: item {i} of {part} lacks {missing}")


def _lettered(options: Sequence[str], right: str) -> tuple[list[str], str]:
    """Options as lines, and the letter of the right one."""
    letters = [chr(ord("A") + i) for i in range(len(options))]
    lines = [f"{letter}. {option}" for letter, option in zip(letters, options, strict=True)]
    return lines, letters[list(options).index(right)]


def in_own_style(item: VisualItem, style: str) -> tuple[str, str]:
    """Question and answer as a task of this style has them: options and the prompt for the form included.

    Parameters
    ----------
    style : as of `VisualTask`
    """
    options, answer = (
        _lettered(item.options, item.answer) if style == "choice" else ([], item.answer)
    )
    own = {"choice": [PROMPTS["choice"]], "yes_no": [YES_OR_NO], "box": []}
    own |= {k: [prompt] for k, prompt in DESCRIBE.items()}
    return "\n".join([item.question, *options, *own.get(style, [PROMPTS["short"]])]), answer


def as_set(images: Tensor, pairs: Sequence[tuple[str, str]]) -> VisualSet:
    """Questions and answers about one image each: (n, H, W, 3) uint8."""
    questions, answers = zip(*pairs, strict=True) if pairs else ((), ())
    return VisualSet(images, torch.arange(len(pairs)), questions, answers)


def _converted(
    item: VisualItem, native: str, style: str, first: bool, rng: np.random.Generator
) -> tuple[str, str]:
    """Question and answer in another of the five styles.

    ``first`` says which half of the items this one is in: those whose candidate is right, and those
    yes/no questions that stay as they are when they become short.
    """
    options, direct = _lettered(item.options, item.answer) if item.options else ([], item.answer)
    if style == "yes_no":
        candidate = item.answer if first else item.wrong[rng.integers(len(item.wrong))]
        lines, answer = [item.question, f"Answer: {candidate}"], "Yes" if first else "No"
    elif style == "choice" and native == "yes_no":
        options, answer = _lettered(("Yes", "No"), item.answer)
        lines = [item.question, *options]
    elif style == "choice":
        wrong = rng.permutation(item.wrong)[:3]
        options, answer = _lettered(rng.permutation([item.answer, *wrong]).tolist(), item.answer)
        lines = [item.question, *options]
    elif style == "short" and native == "choice":
        *others, last = item.options
        return "\n".join([item.question, f"{', '.join(others)}, or {last}", DIRECTLY]), item.answer
    elif style == "short":
        question, answer = (
            (item.question, item.answer) if native == "yes_no" and first else item.open
        )
        lines = [question]
    else:
        text = getattr(item, style)
        if native == "box":
            question = f"What is in the region {item.answer} of the image?"
            return f"{question}\n{DESCRIBE[style]}", text
        if native in DESCRIBE:
            return f"{item.question}\n{DESCRIBE[style]}", text
        lines, answer = [item.question, *options], f"{direct}. {text}"
    return "\n".join([*lines, PROMPTS[style]]), answer


@dataclass(frozen=True)
class AnswerStyleDiversification:
    """Converts ``ratio`` per cent of a training set, a quarter of it to each of the other styles.

    Of n questions ``n * ratio // 400``, drawn by the seed, are *replaced* in each of the four
    styles that the task does not have (a box or a class is a short answer); the others, the order,
    the images and the test set stay.

    - To yes/no: the candidate is right in half of them, and a distractor in the others.
    - To a choice: the answer and three distractors, shuffled; of yes/no, "A. Yes" and "B. No".
    - To a short answer: what the right option says, with the options in a sentence. Of yes/no,
      half stay yes/no; the others are the item's open question ("What is in the image?").
    - To an explanation: the direct answer (of a choice, its letter) and the explanation, the options
      kept. For a box, a description of what is in it.

    Raises
    ------
    ValueError
        A ratio that is no whole number from 0 to 100. When called: a task without items; a training answer in none of the five styles, or in
        another one than the task's.
    """

    ratio: int = 20

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.ratio <= 100:
            raise ValueError(f"ratio is a share in per cent, 0..100, not {self.ratio}")

    def __call__(self, task: VisualTask, seed: int = 0) -> VisualTask:
        """The task with some of its training questions asked again, in other styles.

        Parameters
        ----------
        task : with its items, and all training answers in its own style
        seed : of which questions are asked in which style

        Raises
        ------
        TypeError
            What is given is no `VisualTask`.
        ValueError
            Nothing but questions and answers is known of the task, or an answer is in another style.
        """
        if not isinstance(task, VisualTask):
            raise TypeError(
                f"a VisualTask is converted, whose items say what else could be answered, not one of type "
                f"{type(task).__name__}"
            )
        if not task.train_items:
            raise ValueError(f"{task.name}: nothing but questions and answers is known of its data")
        for i, answer in enumerate(task.train.answers):
            if not format_valid(answer, task.style):
                raise ValueError(
                    f"{task.name}: training answer {i} is in style {style_of(answer)}, "
                    f"not {task.style}"
                )
        rng = np.random.default_rng(derive_seed(seed, "answer styles", task.name))
        questions, answers = list(task.train.questions), list(task.train.answers)
        n = len(questions)
        others = [style for style in STYLES if style != NATIVE[task.style]]
        drawn = iter(rng.permutation(n).tolist())
        for style in others:
            for k in range(n * self.ratio // 400):
                i = next(drawn)
                item, first = task.train_items[i], k % 2 == 0
                questions[i], answers[i] = _converted(item, task.style, style, first, rng)
        return replace(task, train=task.train.with_questions(questions).with_answers(answers))
