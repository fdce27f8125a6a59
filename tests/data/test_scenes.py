"""Drawn images with questions: what is asked is what is drawn."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from unlearn_core.data import VisualSet
from unlearn_core.data.answer_styles import (
    STYLES,
    AnswerStyleDiversification,
    VisualItem,
    VisualTask,
    box_iou,
    format_valid,
    parse_box,
    style_of,
)
from unlearn_core.data.images import FASHION_CLASSES
from unlearn_core.data.scenes import (
    COLORS,
    TASKS,
    VISUAL_TASKS,
    VOCABULARY,
    ZERO,
    captions,
    stage_zero,
    visual_tasks,
)

DRAWN = tuple(name for name in VISUAL_TASKS if name != "fashion")


@pytest.fixture(scope="module")
def tasks() -> dict[str, VisualTask]:
    return {task.name: task for task in visual_tasks(DRAWN, 120, 40, 0)}


@pytest.fixture(scope="module")
def general() -> VisualSet:
    return stage_zero(1600, 0)


def colored(image: torch.Tensor) -> dict[str, np.ndarray]:
    """Colour -> where the image has it: (H, W) bool."""
    pixels = image.numpy().astype(int)
    return {
        name: mask
        for name, (value, _) in COLORS.items()
        if (mask := (abs(pixels - value) < 25).all(axis=2)).sum() > 20
    }


def pictured(task: VisualTask) -> list[tuple[VisualItem, torch.Tensor]]:
    return [(item, task.train[i][2]) for i, item in enumerate(task.train_items)]


class TestTasks:
    def test_sizes_and_styles(self, tasks: dict[str, VisualTask]) -> None:
        assert {t.style for t in tasks.values()} == {
            *["choice", "short", "class", "box", "yes_no", "brief"]
        }
        for task in tasks.values():
            assert task.train.images.shape == (120, 32, 32, 3)
            assert (len(task.train), len(task.test), len(task.test_items)) == (120, 40, 40)
            assert all(format_valid(a, task.style) for a in task.train.answers + task.test.answers)

    def test_train_and_test_and_seeds_differ(self) -> None:
        def made(seed: int) -> VisualTask:
            return visual_tasks(["reading"], 8, 8, seed)[0]

        a, b, c = made(0), made(0), made(1)
        assert a.train.fingerprint() == b.train.fingerprint() != c.train.fingerprint()
        assert a.test.fingerprint() != a.train.fingerprint()

    def test_explanations(self, tasks: dict[str, VisualTask]) -> None:
        """Brief ones have about 8 words, detailed ones about 20."""
        for task in tasks.values():
            for item in task.train_items:
                assert style_of(item.brief) == "brief"
                assert style_of(item.detailed) == "detailed"
                assert 5 <= len(item.brief.split()) <= 13
                assert 17 <= len(item.detailed.split()) <= 26

    def test_the_answer_is_no_distractor_and_they_are_of_its_kind(
        self, tasks: dict[str, VisualTask]
    ) -> None:
        kinds = (TASKS.colors, TASKS.shapes, TASKS.numbers, "1234")
        kinds += (("left", "right", "above", "below"),)
        for name in ("attributes", "reading"):
            for item in tasks[name].train_items:
                assert any({item.answer, *item.wrong} <= set(kind) for kind in kinds)
        for item in tasks["grounding"].train_items:
            gold = parse_box(item.answer)
            assert len({*item.wrong, item.answer}) == 4
            assert all(box_iou(gold, parse_box(w)) < 0.5 for w in item.wrong)


class TestTruth:
    """The answers against the pixels."""

    def test_boxes_are_tight(self, tasks: dict[str, VisualTask]) -> None:
        """Fails where rows and columns are exchanged, or the last of them is left out."""
        for item, image in pictured(tasks["grounding"]):
            color = re.search(r"the (\w+) \w+'", item.question)[1]
            ys, xs = colored(image)[color].nonzero()
            box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / 32
            np.testing.assert_allclose(parse_box(item.answer), box, atol=0.0051)

    def test_colours_of_attributes(self, tasks: dict[str, VisualTask]) -> None:
        kinds = Counter()
        for item, image in pictured(tasks["attributes"]):
            kinds[item.question.split()[3] if "What" in item.question else item.question[:3]] += 1
            if item.question.startswith("What is the color"):
                assert [*colored(image)] == [item.answer]
        assert set(kinds) == {"color", "shape", "How", "On "}
        assert min(kinds.values()) > 15

    def test_counts(self, tasks: dict[str, VisualTask]) -> None:
        for item, image in pictured(tasks["attributes"]):
            if item.question.startswith("How many"):
                (mask,) = colored(image).values()
                cells = [mask[y : y + 16, x : x + 16].sum() > 20 for y in (0, 16) for x in (0, 16)]
                assert sum(cells) == int(item.answer)

    def test_relations(self, tasks: dict[str, VisualTask]) -> None:
        """Fails where "left" and "right" are exchanged."""
        seen = set()
        for item, image in pictured(tasks["attributes"]):
            if item.question.startswith("On which side"):
                first, second = re.findall(r"one (\w+) \w+", item.brief)
                masks = colored(image)
                dy, dx = np.array(
                    [
                        [m.nonzero()[axis].mean() for m in (masks[first], masks[second])]
                        for axis in (0, 1)
                    ]
                ) @ [1, -1]
                sides = {"left": dx < -10, "right": dx > 10, "above": dy < -10, "below": dy > 10}
                assert [s for s, so in sides.items() if so] == [item.answer]
                assert re.search(rf"is the {item.brief.split()[5]}\?", item.question)
                seen.add(item.answer)
        assert seen == set(sides)

    def test_meanings(self, tasks: dict[str, VisualTask]) -> None:
        for item, image in pictured(tasks["science"]):
            (color,) = colored(image)
            assert item.answer == COLORS[color][1]
            assert sorted(item.options) == sorted((item.answer, *item.wrong))
        letters = Counter(tasks["science"].train.answers)
        assert min(letters[x] for x in "ABCD") > 15

    def test_presence(self, tasks: dict[str, VisualTask]) -> None:
        answers = Counter()
        for item, image in pictured(tasks["presence"]):
            asked = re.search(r"a (\w+ \w+) in", item.question)[1]
            assert (asked == item.open[1]) == (item.answer == "Yes")
            assert [*colored(image)] == [item.open[1].split()[0]]
            assert item.open[1] in item.brief
            answers[item.answer] += 1
        assert min(answers["Yes"], answers["No"]) > 40

    def test_digits(self) -> None:
        """Of the 15 cells of a digit, 12 pixels each, those that its segments fill are lit."""
        cells = {
            "0": 12,
            "1": 5,
            "2": 11,
            "3": 11,
            "4": 9,
            "5": 11,
            "6": 12,
            "7": 7,
            "8": 13,
            "9": 12,
        }
        (task,) = visual_tasks(["reading"], 60, 1, 4)
        for item, image in pictured(task):
            (mask,) = colored(image).values()
            assert mask.sum() == 12 * sum(cells[d] for d in item.answer)

    def test_classes(self, tasks: dict[str, VisualTask]) -> None:
        """Stripes leave about half of a shape."""
        lit: dict[str, list[int]] = {"solid": [], "striped": []}
        for item, image in pictured(tasks["naming"]):
            fill, shape = item.answer.split()
            assert shape in TASKS.shapes
            lit[fill].append(int((image[..., 0] > 130).sum()))
        assert 0.3 < np.mean(lit["striped"]) / np.mean(lit["solid"]) < 0.7

    def test_fashion(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ten images of 28 by 28 that are as bright as their label."""
        from unlearn_core.data import ImageData, ImageSet, scenes

        labels = torch.arange(10).repeat(3)
        pixels = (20 * labels[:, None, None, None]).expand(-1, 28, 28, 1).to(torch.uint8)
        images = ImageSet(pixels, labels, labels, (0.5,), (0.5,))
        data = ImageData(images, images, FASHION_CLASSES, FASHION_CLASSES)
        monkeypatch.setattr(scenes, "fashion_mnist", lambda *_: data)
        (task,) = visual_tasks(["fashion"], 25, 10, 0)
        assert task.style == "class"
        for item, image in pictured(task):
            label = FASHION_CLASSES.index(item.answer)
            assert (image[2:30, 2:30] == 20 * label).all()
            assert image.sum() == 3 * 28 * 28 * 20 * label
            assert len(item.wrong) == 9


class TestCaptions:
    def test_all_that_there_is(self) -> None:
        """Fails where the tower is shown less than the tasks have, or digits, which are no words."""
        found = captions(403, 0)
        assert len(found) == len(found.images) == 403
        words = {w for text in found.answers for w in re.findall(r"\w+", text)}
        for things in (TASKS, ZERO):
            assert {*things.shapes, *things.colors} <= words
        assert {"three", "nine", "bottom", "striped"} <= words
        assert not any(c.isdigit() for text in found.answers for c in text)

    def test_none(self) -> None:
        with pytest.raises(ValueError, match="not from 0"):
            captions(0, 0)


class TestStageZero:
    def test_every_style(self, general: VisualSet) -> None:
        """Eight kinds, a fifth of each in every style; half of the yes/no ones that become short
        stay yes/no, and boxes are short."""
        found = Counter(style_of(a) for a in general.answers)
        assert found == {
            "choice": 320, "yes_no": 340, "short": 260, "box": 40, "brief": 320, "detailed": 320,
        }  # fmt: skip
        assert set(found) == {*STYLES, "box"}

    def test_held_out(self, general: VisualSet) -> None:
        """No shape, colour or number of the tasks is drawn or asked for, but as a word."""
        asked = [q for q in general.questions if "is the word" not in q]
        words = {w for q in asked for w in re.findall(r"\w+", q)}
        assert not words & {*TASKS.shapes, *TASKS.colors}
        assert words >= {*ZERO.shapes, *ZERO.colors}
        numbers = [
            a for q, a in zip(general.questions, general.answers, strict=True)
            if "number" in q and a.isdigit()
        ]  # fmt: skip
        assert numbers
        assert all(int(n) % 3 == 0 for n in numbers)
        assert not any(set(colored(image)) & set(TASKS.colors) for image in general.images)

    def test_words(self, general: VisualSet) -> None:
        texts = (*general.questions, *general.answers)
        said = {w for text in texts for w in re.findall(r"[\w-]+", text)}
        words = {*TASKS.shapes, *TASKS.colors, *(COLORS[c][1] for c in TASKS.colors)}
        assert words | {"T-shirt", "boot"} <= said

    def test_seed(self) -> None:
        a, b, c = (stage_zero(30, seed).fingerprint() for seed in (0, 0, 1))
        assert a == b != c

    @pytest.mark.parametrize("n", [1, 3, 20])
    def test_any_number(self, n: int) -> None:
        assert len(stage_zero(n, 0)) == n


def test_vocabulary(tasks: dict[str, VisualTask], general: VisualSet) -> None:
    """It has every word of every question and answer, and no other."""
    sets = [general, *(t.test for t in tasks.values())]
    sets += [
        AnswerStyleDiversification(r)(t, 0).train for t in tasks.values() for r in (0, 80, 100)
    ]
    texts = [text for s in sets for text in (*s.questions, *s.answers)]
    assert {w for text in texts for w in re.findall(r"[^\W\d_]+", text)} == set(VOCABULARY)
    assert len(VOCABULARY) == len(set(VOCABULARY))
    assert {c for text in texts for c in text if not c.isalnum()} <= set(" \n.,:?'[]-")
    assert {w for c in FASHION_CLASSES for w in re.findall(r"[^\W\d_]+", c)} <= set(VOCABULARY)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: visual_tasks(["grouding"], 5, 5, 0), "'grouding'; did you mean 'grounding'"),
        (
            lambda: visual_tasks(["science", "reading", "science"], 5, 5, 0),
            "'science' comes twice in science, reading, science",
        ),
        (lambda: visual_tasks(["science"], 0, 5, 0), "not 0 in train and 5 in test"),
        (lambda: visual_tasks(["science"], 5, 0, 0), "not 5 in train and 0 in test"),
        (lambda: stage_zero(0, 0), "not from 0"),
    ],
)
def test_errors(call: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()
