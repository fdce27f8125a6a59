"""Answer Style Diversification: each conversion by hand, and the shares."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from unlearn_core.data.answer_styles import (
    STYLES,
    AnswerStyleDiversification,
    VisualItem,
    VisualTask,
    _converted,
    as_set,
    box_iou,
    format_valid,
    in_own_style,
    parse_box,
    style_of,
)

SHORT = VisualItem("What color is it?", "red", ("blue", "green", "pink"), "It is all red.", "D.")
LETTER = VisualItem(
    "What does it mean?",
    "stop",
    ("go", "wait", "turn"),
    "Red does mean stop.",
    "D.",
    options=("go", "stop", "wait", "turn"),
)
ASKED = VisualItem(
    "Is it red?", "No", ("Yes",), "It is all blue.", "D.", open=("What color is it?", "blue")
)
BOXED = VisualItem(
    "Where is it?",
    "[0.00, 0.25, 0.50, 0.75]",
    ("[0.50, 0.50, 1.00, 1.00]", "[0.25, 0.50, 0.75, 1.00]", "[0.00, 0.00, 0.25, 0.25]"),
    "The region shows a ring.",
    "D.",
)
DESCRIBED = VisualItem(
    "What is there?",
    "It is one red ring.",
    ("It is one blue ring.", "It is one red disc.", "It is one pink bar."),
    "It is one red ring.",
    "D.",
    open=("What is there?", "red ring"),
)
ITEMS = {"short": SHORT, "class": SHORT, "choice": LETTER, "yes_no": ASKED, "box": BOXED}
ITEMS["brief"] = DESCRIBED

JUDGE = "Is the answer correct? Answer 'Yes' or 'No'."
CHOOSE = "Answer with the option's letter from the given choices directly."
WORD = "Answer the question using a single word or phrase."
BRIEF = "Answer the question and provide a brief explanation."
DETAILED = "Answer the question and provide a detailed explanation."
OPTIONS = "A. go\nB. stop\nC. wait\nD. turn"
REGION = "What is in the region [0.00, 0.25, 0.50, 0.75] of the image?"


def task_of(style: str, n: int = 40, **changes: Any) -> VisualTask:
    item = ITEMS[style]
    images = torch.zeros(n, 2, 2, 3, dtype=torch.uint8)
    data = as_set(images, [in_own_style(item, style)] * n)
    test = data.subset(range(4))
    task = VisualTask("t", style, data, test, (item,) * n, (item,) * 4)
    return dataclasses.replace(task, **changes)


@pytest.mark.parametrize(
    ("answer", "style"),
    [
        ("Yes", "yes_no"),
        ("no.", "yes_no"),
        ("B", "choice"),
        ("[0.10, 0.20, 0.30, 1.00]", "box"),
        ("red", "short"),
        ("red.", "short"),
        ("47", "short"),
        ("a ring left of a square", "short"),
        ("The image shows one red ring.", "brief"),
        ("B. The image shows one red ring, whose color means stop.", "brief"),
        ("one " * 16 + "ring.", "detailed"),
    ],
)
def test_style_of(answer: str, style: str) -> None:
    assert style_of(answer) == style
    assert format_valid(answer, style)
    assert not format_valid(answer, "choice" if style == "box" else "box")


@pytest.mark.parametrize(
    "answer", ["", " ", "?!", "[0.1, 0.2, 0.3]", "[0.1, 0.2, 0.3, x]", "one " * 11]
)
def test_in_none_of_the_styles(answer: str) -> None:
    assert not any(format_valid(answer, style) for style in (*STYLES, "class", "box"))
    with pytest.raises(ValueError, match="in none of the styles yes_no, choice, short"):
        style_of(answer)


def test_a_class_is_a_short_answer() -> None:
    assert format_valid("ankle boot", "class")
    assert not format_valid("The image shows one ankle boot.", "class")


def test_boxes() -> None:
    a = parse_box(" [0.00, 0.00, 0.50, 1] ")
    assert a == (0, 0, 0.5, 1)
    assert parse_box("here: [0.00, 0.00, 0.50, 1.00]") is None
    assert box_iou(a, (0.25, 0, 0.75, 1)) == pytest.approx(0.25 / 0.75)
    assert box_iou(a, a) == 1
    assert box_iou(a, (0.5, 0, 1, 1)) == 0
    assert box_iou((0.5, 0, 0.25, 1), (0.5, 0, 0.25, 1)) == 0


@pytest.mark.parametrize(
    ("style", "question", "answer"),
    [
        ("short", f"What color is it?\n{WORD}", "red"),
        ("class", f"What color is it?\n{WORD}", "red"),
        ("choice", f"What does it mean?\n{OPTIONS}\n{CHOOSE}", "B"),
        ("yes_no", "Is it red?\nAnswer 'Yes' or 'No'.", "No"),
        ("box", "Where is it?", "[0.00, 0.25, 0.50, 0.75]"),
        (
            "brief",
            "What is there?\nAnswer the question using a brief description",
            "It is one red ring.",
        ),
    ],
)
def test_own_style(style: str, question: str, answer: str) -> None:
    assert in_own_style(ITEMS[style], style) == (question, answer)


@pytest.mark.parametrize(
    ("native", "style", "first", "question", "answer"),
    [
        ("short", "yes_no", True, f"What color is it?\nAnswer: red\n{JUDGE}", "Yes"),
        ("short", "brief", True, f"What color is it?\n{BRIEF}", "red. It is all red."),
        ("class", "detailed", True, f"What color is it?\n{DETAILED}", "red. D."),
        ("choice", "yes_no", True, f"What does it mean?\nAnswer: stop\n{JUDGE}", "Yes"),
        (
            "choice",
            "short",
            True,
            "What does it mean?\ngo, stop, wait, or turn\nDirectly give the answer.",
            "stop",
        ),
        (
            "choice",
            "brief",
            True,
            f"What does it mean?\n{OPTIONS}\n{BRIEF}",
            "B. Red does mean stop.",
        ),
        ("yes_no", "choice", True, f"Is it red?\nA. Yes\nB. No\n{CHOOSE}", "B"),
        ("yes_no", "short", True, f"Is it red?\n{WORD}", "No"),
        ("yes_no", "short", False, f"What color is it?\n{WORD}", "blue"),
        ("yes_no", "brief", True, f"Is it red?\n{BRIEF}", "No. It is all blue."),
        (
            "box",
            "yes_no",
            True,
            f"Where is it?\nAnswer: [0.00, 0.25, 0.50, 0.75]\n{JUDGE}",
            "Yes",
        ),
        (
            "box",
            "brief",
            True,
            f"{REGION}\nAnswer the question using a brief description",
            "The region shows a ring.",
        ),
        (
            "box",
            "detailed",
            True,
            f"{REGION}\nAnswer the question using a detailed description",
            "D.",
        ),
        ("brief", "short", True, f"What is there?\n{WORD}", "red ring"),
        (
            "brief",
            "detailed",
            True,
            "What is there?\nAnswer the question using a detailed description",
            "D.",
        ),
    ],
)
def test_conversions_by_hand(
    native: str, style: str, first: bool, question: str, answer: str
) -> None:
    rng = np.random.default_rng(0)
    assert _converted(ITEMS[native], native, style, first, rng) == (question, answer)


@pytest.mark.parametrize("native", ["short", "box", "brief"])
class TestDrawnDistractors:
    def test_a_wrong_candidate_is_one_of_the_item(self, native: str) -> None:
        item, rng = ITEMS[native], np.random.default_rng(0)
        seen = set()
        for _ in range(60):
            question, answer = _converted(item, native, "yes_no", False, rng)
            asked, candidate, prompt = question.split("\n")
            assert (asked, prompt, answer) == (item.question, JUDGE, "No")
            seen.add(candidate.removeprefix("Answer: "))
        assert seen == set(item.wrong)

    def test_options_are_shuffled(self, native: str) -> None:
        item, rng = ITEMS[native], np.random.default_rng(0)
        letters = Counter()
        for _ in range(60):
            question, letter = _converted(item, native, "choice", True, rng)
            asked, *options, prompt = question.split("\n")
            assert (asked, prompt) == (item.question, CHOOSE)
            assert sorted(o[3:] for o in options) == sorted([item.answer, *item.wrong])
            assert [o[:3] for o in options] == ["A. ", "B. ", "C. ", "D. "]
            assert dict(o.split(". ", 1) for o in options)[letter] == item.answer
            letters[letter] += 1
        assert min(letters[x] for x in "ABCD") > 5


#: How a converted question ends -> its style.
ENDS = {JUDGE: "yes_no", CHOOSE: "choice", WORD: "short", "Directly give the answer.": "short"}
ENDS |= {BRIEF: "brief", DETAILED: "detailed"}
ENDS |= {f"Answer the question using a {s} description": s for s in ("brief", "detailed")}


class TestShares:
    @pytest.mark.parametrize("style", ["short", "class", "choice", "yes_no", "box", "brief"])
    @pytest.mark.parametrize("ratio", [0, 20, 50, 100])
    def test_each_of_the_other_styles_has_a_quarter(self, style: str, ratio: int) -> None:
        """Fails where items are added instead of replaced, or the task's own style gets a share."""
        task = task_of(style)
        made = AnswerStyleDiversification(ratio)(task, seed=3)
        own = "short" if style in ("class", "box") else style
        pairs = zip(made.train.questions, task.train.questions, strict=True)
        found = Counter(ENDS[q.split("\n")[-1]] for q, was in pairs if q != was)
        assert found == {s: ratio // 10 for s in STYLES if s != own and ratio}
        assert len(made.train) == 40
        assert made.train.which.equal(task.train.which)
        assert (made.test, made.train_items) == (task.test, task.train_items)

    @pytest.mark.parametrize(
        ("style", "prompt", "answers"),
        [
            ("yes_no", WORD, {"No": 4, "blue": 4}),
            ("box", JUDGE, {"Yes": 4, "No": 4}),
            ("choice", JUDGE, {"Yes": 4, "No": 4}),
        ],
    )
    def test_halves(self, style: str, prompt: str, answers: dict[str, int]) -> None:
        made = AnswerStyleDiversification(80)(task_of(style), 0).train
        pairs = zip(made.questions, made.answers, strict=True)
        assert Counter(a for q, a in pairs if q.endswith(prompt)) == answers

    def test_what_does_not_divide_is_left(self) -> None:
        task = task_of("short", n=39)
        made = AnswerStyleDiversification(20)(task, 0)
        changed = [a != b for a, b in zip(made.train.questions, task.train.questions, strict=True)]
        assert sum(changed) == 4 * (39 * 20 // 400)

    def test_nothing_at_ratio_0(self) -> None:
        task = task_of("choice")
        made = AnswerStyleDiversification(0)(task, 5)
        assert made.train.fingerprint() == task.train.fingerprint()

    def test_the_seed_draws(self) -> None:
        task, styles = task_of("short"), AnswerStyleDiversification(20)
        a, b, c = (styles(task, seed).train.fingerprint() for seed in (0, 0, 1))
        assert a == b != c


class TestErrors:
    def test_what_is_converted_is_a_task(self) -> None:
        with pytest.raises(TypeError, match=r"a VisualTask is converted, .* not one of type list"):
            AnswerStyleDiversification()([])  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"ratio must be a whole number, not 0.2"):
            AnswerStyleDiversification(ratio=0.2)  # type: ignore[arg-type]

    @pytest.mark.parametrize("ratio", [-1, 101])
    def test_ratio(self, ratio: int) -> None:
        with pytest.raises(ValueError, match=f"0..100, not {ratio}"):
            AnswerStyleDiversification(ratio)

    def test_an_answer_in_none_of_the_styles(self) -> None:
        task = task_of("short")
        answers = ["one " * 11, *task.train.answers[1:]]
        task = dataclasses.replace(task, train=task.train.with_answers(answers))
        with pytest.raises(ValueError, match="in none of the styles"):
            AnswerStyleDiversification(0)(task)

    def test_a_task_that_was_converted_before(self) -> None:
        task = AnswerStyleDiversification(100)(task_of("short"))
        with pytest.raises(ValueError, match=r"t: training answer \d is in style .*, not short"):
            AnswerStyleDiversification()(task)

    @pytest.mark.parametrize(
        ("style", "change", "match"),
        [
            ("choice", {"options": ()}, "item 0 of train lacks options"),
            ("yes_no", {"open": None}, "lacks an open question"),
            ("brief", {"open": None}, "lacks an open question"),
            ("short", {"wrong": ("blue", "pink")}, "lacks three wrong answers"),
        ],
    )
    def test_an_item_that_lacks_something(
        self, style: str, change: dict[str, Any], match: str
    ) -> None:
        items = (dataclasses.replace(ITEMS[style], **change),) * 40
        with pytest.raises(ValueError, match=match):
            task_of(style, train_items=items)

    def test_a_task(self) -> None:
        with pytest.raises(ValueError, match="unknown style 'chioce'; did you mean 'choice'"):
            dataclasses.replace(task_of("short"), style="chioce")
        with pytest.raises(ValueError, match="40 questions in train, but 1 items"):
            task_of("short", train_items=(SHORT,))

    def test_an_item(self) -> None:
        with pytest.raises(ValueError, match="'red' is among the wrong ones"):
            dataclasses.replace(SHORT, wrong=("red",))
        with pytest.raises(ValueError, match="'stop' is none of the options"):
            dataclasses.replace(LETTER, options=("go", "wait"))
