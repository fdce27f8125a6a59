"""Right answers, known answers, and what is left of them after the last task."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unlearn_core.data.answer_styles import VisualItem, VisualTask
from unlearn_core.data.scenes import VISUAL_TASKS, visual_tasks
from unlearn_core.metrics.continual import (
    backward_transfer,
    knowledge,
    mean_average_accuracy,
    mean_final_accuracy,
    mean_finetune_accuracy,
    score_answers,
    truth,
)

Golden = Callable[[str], dict[str, Tensor]]
BOX = "[0.00, 0.00, 0.50, 0.56]"


class TestTruth:
    """CoIN's rules; with ``coin_compat`` its quirks."""

    @pytest.mark.parametrize(
        ("style", "prediction", "answer", "strict", "compat"),
        [
            ("choice", "B", "B", True, True),
            ("choice", "B. stop", "B", True, True),
            ("choice", "The answer is B.", "B", True, True),
            ("choice", "The answer is B. The answer is C.", "B", False, False),
            ("choice", "B.", "B", False, False),
            ("choice", "Because", "B", False, False),
            ("choice", "stop", "B", False, False),
            ("choice", "", "B", False, False),
            ("class", "sandal", "sandal", True, True),
            ("class", "Sandal.", "sandal", True, False),
            ("class", "The image shows one sandal.", "sandal", False, True),
            ("class", "shirt", "T-shirt", False, True),
            ("class", "", "sandal", False, True),
            ("class", "bag", "sandal", False, False),
            ("short", "Red..", "red", True, True),
            ("short", "red ring", "red", False, False),
            ("short", "PIN", "PIN", True, False),
            ("short", "", "red", False, False),
            ("yes_no", "yes", "Yes", True, True),
            ("yes_no", "Yes.", "Yes", True, False),
            ("yes_no", "No", "Yes", False, False),
            ("brief", "It is one red ring.", "It is one red ring.", True, False),
            ("box", BOX, BOX, True, True),
            ("box", f"It is {BOX}", BOX, False, False),
            ("box", "[0.00, 0.00, 0.50]", BOX, False, False),
            ("box", "red ring", BOX, False, False),
            ("box", "", BOX, False, False),
            # 0.29 is 0.2 to CoIN: 0.2 / 0.56 is not above one half.
            ("box", "[0.00, 0.00, 0.50, 0.29]", BOX, True, False),
            ("box", "0.00, 0.00, 0.50, 0.56", BOX, False, True),
            ("box", "[0.00, 0.00, 0.50, 0.28]", BOX, False, False),
        ],
    )
    def test_by_hand(
        self, style: str, prediction: str, answer: str, strict: bool, compat: bool
    ) -> None:
        assert truth(prediction, answer, style) is strict
        assert truth(prediction, answer, style, coin_compat=True) is compat

    def test_errors(self) -> None:
        with pytest.raises(ValueError, match="unknown style 'word'"):
            truth("a", "a", "word")
        with pytest.raises(ValueError, match="'red' is not a box"):
            truth(BOX, "red", "box")


COLOR = VisualItem("q", "red", ("blue", "green"), "b", "d")
RULE = VisualItem("q", "stop", ("go", "wait"), "b", "d", options=("go", "stop", "wait"))
ASKED = VisualItem("q", "No", ("Yes",), "b", "d", open=("o", "blue ring"))
SHIRT = VisualItem("q", "shirt", ("T-shirt",), "b", "d")
NUMBER = VisualItem("q", "25", ("52",), "b", "d")
FOUND = VisualItem("q", BOX, ("[0.50, 0.50, 1.00, 1.00]",), "b", "d")
SCENE = VisualItem(
    "q", "It is one red ring.", ("It is one red disc.",), "b", "d", open=("q", "red ring")
)


@pytest.mark.parametrize(
    ("item", "prediction", "known"),
    [
        (COLOR, "Red", True),
        (COLOR, "red. The image shows one red ring and one blue bar.", True),
        (COLOR, "blue. The answer was red.", False),
        (COLOR, "The image shows one red ring.", True),
        (COLOR, "The image shows one red ring and one blue bar.", False),
        (COLOR, "It shows a red and a blue bar, so the answer to the question is red.", True),
        (COLOR, "It shows a red and a blue bar, so the answer to the question is blue.", False),
        (COLOR, "A. red", True),
        (COLOR, "A", False),
        (COLOR, "Yes", False),
        (COLOR, BOX, False),
        (COLOR, "reddish", False),
        (COLOR, "", False),
        (RULE, "B", True),
        (RULE, "B. The image shows one red ring.", True),
        (RULE, "A", False),
        (RULE, "D", False),
        (RULE, "stop", True),
        (RULE, "The color means stop.", True),
        (RULE, "go", False),
        (ASKED, "no", True),
        (ASKED, "No. The image shows one blue ring.", True),
        (ASKED, "Yes. The image shows one blue ring.", False),
        (ASKED, "blue ring", True),
        (ASKED, "The image shows one blue ring in the top left.", True),
        (ASKED, "It is blue, so the answer to the question is No.", True),
        (ASKED, "red ring", False),
        (SHIRT, "T-shirt", False),
        (SHIRT, "The image shows one T-shirt.", False),
        (SHIRT, "The image shows one shirt.", True),
        (NUMBER, "The number is 25.", True),
        (NUMBER, "[0.25, 0.25, 0.50, 0.50]", False),
        (FOUND, BOX, True),
        (FOUND, f"It is at {BOX}, at the left.", True),
        (FOUND, "[0.50, 0.50, 1.00, 1.00]", False),
        (FOUND, "Yes", False),
        (SCENE, "It is one red ring.", True),
        (SCENE, "red ring", True),
        (SCENE, "It is one red disc.", False),
        (SCENE, "The image shows one red ring on a dark background.", True),
    ],
)
def test_knowledge_by_hand(item: VisualItem, prediction: str, known: bool) -> None:
    assert knowledge(prediction, item) is known


class TestScores:
    @pytest.mark.parametrize("name", [n for n in VISUAL_TASKS if n != "fashion"])
    def test_right_answers_of_every_style(self, name: str) -> None:
        """Those that the conversions call right are known, though most are in another style."""
        (task,) = visual_tasks([name], 1, 40, 0)
        scores = score_answers(task, task.test.answers)
        assert all(s.all() for s in scores)
        for style in ("brief", "detailed"):
            said = [getattr(item, style) for item in task.test_items]
            if name != "grounding":  # what a box shows does not say where it is
                direct = zip(task.test.answers, said, strict=True)
                assert score_answers(task, [f"{a}. {s}" for a, s in direct]).knowledge.all()
            assert (score_answers(task, said).format_valid == (style == task.style)).all()
        wrong = [item.wrong[0] for item in task.test_items]
        assert not any(s.any() for s in score_answers(task, wrong)[::2])

    def test_superficial_and_essential(self) -> None:
        """Of four: right; right in another style; wrong in the task's style; a box."""
        (task,) = visual_tasks(["science"], 1, 4, 0)
        a, b, c, _ = task.test_items
        wrong = "ABCD"[c.options.index(c.wrong[0])]
        scores = score_answers(task, [task.test.answers[0], b.answer, wrong, BOX])
        assert scores.truth.tolist() == [True, False, False, False]
        assert scores.format_valid.tolist() == [True, False, True, False]
        assert scores.knowledge.tolist() == [True, True, False, False]
        assert a.answer in a.options

    def test_coin_compat(self) -> None:
        (task,) = visual_tasks(["naming"], 1, 2, 0)
        assert not score_answers(task, ["", ""]).truth.any()
        assert score_answers(task, ["", ""], coin_compat=True).truth.all()

    def test_another_number_of_answers(self) -> None:
        (task,) = visual_tasks(["science"], 1, 3, 0)
        with pytest.raises(ValueError, match="science: 2 answers to 3 questions"):
            score_answers(task, ["A", "B"])

    def test_no_questions(self) -> None:
        (task,) = visual_tasks(["science"], 1, 1, 0)
        empty: VisualTask = dataclasses.replace(task, test=task.test.subset([]), test_items=())
        assert [len(s) for s in score_answers(empty, [])] == [0, 0, 0]


class TestOfTheAccuracies:
    @pytest.mark.parametrize("case", ["metrics_1", "metrics_2"])
    def test_recorded(self, golden: Golden, case: str) -> None:
        """Fails where what is above the diagonal (NaN) is used, rows and columns are exchanged, or
        BWT is divided by the other number."""
        g = golden(f"sefe/{case}")
        a = g["in_acc"]
        found = {
            "out_mft": mean_finetune_accuracy(a),
            "out_mfn": mean_final_accuracy(a),
            "out_maa": mean_average_accuracy(a),
            "out_bwt_T": backward_transfer(a),
            "out_bwt": backward_transfer(a, "T-1"),
        }
        for key, value in found.items():
            assert value == pytest.approx(g[key].item(), abs=1e-10)

    def test_by_hand(self) -> None:
        """What is known of later tasks, 99, counts nowhere."""
        a = torch.tensor([[80.0, 99, 99], [60, 90, 99], [20, 50, 70]])
        assert mean_finetune_accuracy(a) == 80
        assert mean_final_accuracy(a) == pytest.approx(140 / 3)
        assert mean_average_accuracy(a) == pytest.approx((80 + 75 + 140 / 3) / 3)
        assert backward_transfer(a) == pytest.approx(-100 / 3)
        assert backward_transfer(a, "T-1") == -50
        difference = mean_final_accuracy(a) - mean_finetune_accuracy(a)
        assert backward_transfer(a) == pytest.approx(difference)

    def test_one_task(self) -> None:
        a = torch.tensor([[70.0]])
        assert mean_average_accuracy(a) == 70
        assert backward_transfer(a) == 0
        assert math.isnan(backward_transfer(a, "T-1"))

    @pytest.mark.parametrize(
        "metric",
        [
            mean_finetune_accuracy,
            mean_final_accuracy,
            mean_average_accuracy,
            backward_transfer,
        ],
    )
    def test_errors(self, metric: Callable[[Tensor], float]) -> None:
        a = torch.full((3, 3), 50.0)
        a[2, 1] = torch.nan
        with pytest.raises(ValueError, match=r"task 2 after task 3 is missing \(row 3, column 2\)"):
            metric(a)
        for shape in ((2, 3), (0, 0), (3,)):
            with pytest.raises(ValueError, match=r"accuracies are \(tasks, tasks\)"):
                metric(torch.zeros(shape))

    def test_an_unknown_denominator(self) -> None:
        with pytest.raises(ValueError, match="unknown denominator 'T\\+1'; known: T, T-1"):
            backward_transfer(torch.ones(2, 2), "T+1")  # type: ignore[arg-type]
