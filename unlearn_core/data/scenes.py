"""Drawn images with questions of several answer styles (SEFE), for models made from nothing.

A sequence of `visual_tasks` stands in for CoIN's (SEFE, Chen et al., ICML 2025); what such a model
learns before, `stage_zero`, is about other shapes, colours and numbers; only its vision tower has seen
those of the tasks, on images with `captions`, as LLaVA's has seen nearly everything. There is one object an
image, or one kind of object, but for the relations: which colour is whose takes a small model long.
Real text in images, and the words that CoIN gives of it, have no counterpart.

=============  =============  =======================================================
task           in place of    asks for
=============  =============  =======================================================
science        ScienceQA      what a colour means, by a rule: the letter of one of four
reading        TextVQA        a number of two digits
naming         ImageNet       shape and filling: a class name; of `shapes`, in grey
fashion        ImageNet       the class name of an image of `fashion_mnist`
attributes     GQA            colour, shape, number of objects, or where one of two is
counting       GQA            the number of objects alone
grounding      RefCOCO        where an object is: ``[x1, y1, x2, y2]``, shares of the side
presence       VQAv2          whether there is such an object: yes or no
describing     none           what the image shows, in a sentence
=============  =============  =======================================================
"""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..registry import did_you_mean
from ..seeding import derive_seed
from .answer_styles import (
    AnswerStyleDiversification,
    VisualItem,
    VisualTask,
    as_set,
    box_iou,
    in_own_style,
    parse_box,
)
from .image_questions import VisualSet
from .images import _FILLS, _SHAPES, FASHION_CLASSES, ImageSet, fashion_mnist, shapes

__all__ = ["VISUAL_TASKS", "VOCABULARY", "captions", "stage_zero", "visual_tasks"]

#: Height and width of an image.
SIZE = 32

Canvas = np.ndarray
Drawn = tuple[Canvas, VisualItem]
#: Images (n, H, W, 3) uint8, and what is asked about each.
Made = tuple[Tensor, tuple[VisualItem, ...]]
#: Of how many, a seed, "train" or "test", and what may be drawn.
Maker = Callable[[int, int, str, "Things"], Made]
#: x1, y1, x2, y2 in pixels.
Pixels = tuple[int, int, int, int]


class Things(NamedTuple):
    """What may be drawn: names of colours and shapes, and numbers."""

    colors: tuple[str, ...]
    shapes: tuple[str, ...]
    numbers: tuple[str, ...]


#: What tasks are about, and what the model is trained on before.
TASKS = Things(
    ("red", "green", "blue", "yellow", "purple"),
    ("ring", "square", "triangle", "plus", "cross", "column"),
    tuple(str(i) for i in range(10, 100) if i % 3),
)
ZERO = Things(
    ("orange", "cyan", "pink", "white"),
    ("disc", "frame", "diamond", "bar"),
    tuple(str(i) for i in range(10, 100) if i % 3 == 0),
)

#: Those of the classes that are named.
FILLS = tuple(_FILLS)[:2]

#: Colour -> its value, and what it means.
COLORS = {
    "red": ((230, 40, 40), "stop"),
    "green": ((40, 190, 60), "go"),
    "blue": ((50, 80, 240), "turn"),
    "yellow": ((240, 220, 40), "wait"),
    "purple": ((150, 40, 190), "park"),
    "orange": ((245, 140, 30), "sing"),
    "cyan": ((40, 215, 225), "swim"),
    "pink": ((250, 150, 190), "dance"),
    "white": ((240, 240, 240), "rest"),
}

#: The words of all questions and answers, in every style; digits and signs aside.
_WORDS = (
    "A Answer B C D Directly How Is No On Please T The What Which Yes a above and ankle answer "
    "are background bag bar below beside blue boot bottom bounding box brief by choices coat "
    "color column coordinates correct cross cyan dance dark described description detailed "
    "diamond directly disc does drawn dress explanation format frame from give given go gray "
    "green image in is it left letter many mean means no number object objects of on one option "
    "or orange other park phrase pink plus provide pullover purple question red region "
    "rest right ring s sandal sentence shades shape shirt shows side sing single sneaker so "
    "solid square stop striped swim the there times to top triangle trouser turn using wait "
    "which white whose with word x y yellow"
)
#: Every word of the tasks' questions and answers.
VOCABULARY: tuple[str, ...] = tuple(_WORDS.split())


def _canvas(rng: np.random.Generator) -> Canvas:
    """A dark background with light noise: (H, W, 3) float, values from 0 to 255."""
    return rng.normal(45, 6, (SIZE, SIZE, 3))


def _put(
    rng: np.random.Generator, canvas: Canvas, shape: str, color: str, x: float, y: float, r: float
) -> Pixels:
    """Draw a shape of radius ``r`` around a centre; the box that it fills."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    inside = _SHAPES[shape]((columns - x) / r, (rows - y) / r)
    canvas[inside] = rng.normal(COLORS[color][0], 6, (inside.sum(), 3))
    (ys,), (xs,) = inside.any(axis=1).nonzero(), inside.any(axis=0).nonzero()
    return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1


def _pick(rng: np.random.Generator, values: Sequence[str], n: int, *but: str) -> list[str]:
    """``n`` different values, none of ``but``."""
    return rng.choice([v for v in values if v not in but], n, replace=False).tolist()


def _item(question: str, answer: str, values: Sequence[str], scene: str, **more: Any) -> VisualItem:
    """``values`` are the answers that there may be; ``scene`` is what the image shows."""
    shown = f"The image shows {scene}"
    return VisualItem(
        question,
        answer,
        tuple(v for v in values if v != answer),
        f"{shown}.",
        f"{shown}, on a dark background, so the answer to the question is {answer}.",
        **more,
    )


@dataclass(frozen=True)
class _One:
    """An image of one object, and words for it."""

    canvas: Canvas
    color: str
    shape: str
    place: str
    box: Pixels

    @classmethod
    def draw(cls, rng: np.random.Generator, things: Things) -> _One:
        canvas, (color,), (shape,) = _canvas(rng), *(_pick(rng, v, 1) for v in things[:2])
        x, y = rng.choice([7.5, 11.5, 19.5, 23.5], 2)
        place = f"{'top' if y < SIZE / 2 else 'bottom'} {'left' if x < SIZE / 2 else 'right'}"
        box = _put(rng, canvas, shape, color, x, y, rng.choice([6, 7.5]))
        return cls(canvas, color, shape, place, box)

    @property
    def scene(self) -> str:
        return f"one {self.color} {self.shape} in the {self.place}"


def _science(rng: np.random.Generator, things: Things) -> Drawn:
    one = _One.draw(rng, things)
    answer = COLORS[one.color][1]
    options = _pick(rng, [COLORS[c][1] for c in things.colors], 3, answer)
    options.insert(rng.integers(4), answer)
    scene = f"one {one.color} {one.shape}, whose color means {answer}"
    question = "What does the color of the object mean?"
    return one.canvas, _item(question, answer, options, scene, options=tuple(options))


#: Digits of three by five cells.
_DIGITS = (
    "111101101101111 001001001001001 111001111100111 111001111001111 101101111001001 "
    "111100111001111 111100111101111 111001001001001 111101111101111 111101111001111"
)


def _reading(rng: np.random.Generator, things: Things) -> Drawn:
    canvas, (color,) = _canvas(rng), _pick(rng, things.colors, 1)
    numbers = _pick(rng, things.numbers, 4)
    x, y = rng.integers(1, 11), rng.integers(1, 12)
    for i, digit in enumerate(numbers[0]):
        cells = np.array(list(_DIGITS.split()[int(digit)])).reshape(5, 3) == "1"
        inside = np.kron(cells, np.ones((4, 3))) > 0
        canvas[y : y + 20, x + 12 * i : x + 12 * i + 9][inside] = COLORS[color][0]
    scene = f"the number {numbers[0]} in {color}"
    return canvas, _item("What is the number in the image?", numbers[0], numbers, scene)


def _color(rng: np.random.Generator, things: Things) -> Drawn:
    one = _One.draw(rng, things)
    question = f"What is the color of the {one.shape}?"
    return one.canvas, _item(question, one.color, things.colors, one.scene)


def _shape(rng: np.random.Generator, things: Things) -> Drawn:
    one = _One.draw(rng, things)
    question = f"What is the shape of the {one.color} object?"
    return one.canvas, _item(question, one.shape, things.shapes, one.scene)


def _count(rng: np.random.Generator, things: Things) -> Drawn:
    canvas, (color,), (shape,) = _canvas(rng), *(_pick(rng, v, 1) for v in things[:2])
    n = int(rng.integers(1, 5))
    for cell in rng.permutation(4)[:n]:
        x, y = np.array([cell % 2, cell // 2]) * 16 + 7.5 + rng.integers(-1, 2, 2)
        _put(rng, canvas, shape, color, x, y, 6)
    scene = f"the {color} {shape} {n} times"
    return canvas, _item("How many objects are in the image?", str(n), "1234", scene)


def _relation(rng: np.random.Generator, things: Things) -> Drawn:
    canvas, sides = _canvas(rng), ("left", "right", "above", "below")
    (colors, names), (side,) = (_pick(rng, v, 2) for v in things[:2]), _pick(rng, sides, 1)
    across, along = rng.choice([7.5, 15.5, 23.5]), (7.5, 23.5)
    for name, color, p in zip(
        names, colors, along if side in ("left", "above") else along[::-1], strict=True
    ):
        x, y = (p, across) if side in ("left", "right") else (across, p)
        _put(rng, canvas, name, color, x, y, 6)
    scene = f"one {colors[0]} {names[0]} and one {colors[1]} {names[1]}"
    question = f"On which side of the {names[1]} is the {names[0]}?"
    return canvas, _item(question, side, sides, scene)


def _attributes(rng: np.random.Generator, things: Things) -> Drawn:
    return (_color, _shape, _count, _relation)[rng.integers(4)](rng, things)


def _box(pixels: Sequence[int]) -> str:
    return "[" + ", ".join(f"{p / SIZE:.2f}" for p in pixels) + "]"


def _grounding(rng: np.random.Generator, things: Things) -> Drawn:
    one = _One.draw(rng, things)
    gold, wrong = _box(one.box), list[str]()
    while len(wrong) < 3:
        side = rng.choice([12, 16])
        x, y = rng.choice([0, 4, 8, 12, 16], 2)
        other = _box((x, y, x + side, y + side))
        if box_iou(parse_box(gold), parse_box(other)) < 0.5 and other not in wrong:
            wrong.append(other)
    item = VisualItem(
        "Please provide the bounding box coordinates of the region described by the sentence "
        f"'the {one.color} {one.shape}' in the format [x1, y1, x2, y2].",
        gold,
        tuple(wrong),
        f"The region shows {one.scene}.",
        f"The region shows {one.scene} of the image, drawn on a dark background, with no other "
        "object beside it.",
    )
    return one.canvas, item


def _presence(rng: np.random.Generator, things: Things) -> Drawn:
    one = _One.draw(rng, things)
    color, shape, there = one.color, one.shape, rng.integers(2) == 1
    if not there and rng.integers(2):
        (color,) = _pick(rng, things.colors, 1, color)
    elif not there:
        (shape,) = _pick(rng, things.shapes, 1, shape)
    asked, answer = f"Is there a {color} {shape} in the image?", "Yes" if there else "No"
    other = ("What is in the image?", f"{one.color} {one.shape}")
    return one.canvas, _item(asked, answer, ("Yes", "No"), one.scene, open=other)


def _describing(rng: np.random.Generator, things: Things) -> Drawn:
    one = _One.draw(rng, things)
    said, others = f"The image shows {one.scene}.", list[str]()
    while len(others) < 3:
        scene = _One.draw(rng, things).scene
        if scene != one.scene and f"The image shows {scene}." not in others:
            others.append(f"The image shows {scene}.")
    item = VisualItem(
        "What is in the image?",
        said,
        tuple(others),
        said,
        f"{said[:-1]}, drawn on a dark background, with no other object beside it.",
        open=("What is in the image?", f"{one.color} {one.shape}"),
    )
    return one.canvas, item


def _copying(rng: np.random.Generator, things: Things) -> Drawn:
    """About no image: which of four words is the one in the question."""
    meanings = [meaning for _, meaning in COLORS.values()]
    options = _pick(rng, [*_SHAPES, *COLORS, *meanings, *FILLS, *FASHION_CLASSES], 4)
    (word,) = _pick(rng, options, 1)
    question = f"Which option is the word {word}?"
    scene = f"no object, and the word in the question is {word}"
    return _canvas(rng), _item(question, word, options, scene, options=tuple(options))


def _many(draw: Callable[[np.random.Generator, Things], Drawn]) -> Maker:
    def make(n: int, seed: int, part: str, things: Things) -> Made:
        rng = np.random.default_rng(derive_seed(seed, draw.__name__, part))
        canvases, items = zip(*(draw(rng, things) for _ in range(n)), strict=True)
        return torch.from_numpy(np.stack(canvases).clip(0, 255).astype(np.uint8)), items

    return make


def _classes(
    images: ImageSet, classes: Sequence[str], kept: Sequence[int], n: int, rng: np.random.Generator
) -> Made:
    """``n`` of the images whose labels are kept, at random, with a dark rim where they are small."""
    among = torch.isin(images.labels, torch.tensor(kept)).nonzero()[:, 0]
    chosen = images.subset(among[torch.from_numpy(rng.permutation(len(among))[:n])])
    rim = (SIZE - chosen.pixels.shape[1]) // 2
    pixels = torch.nn.functional.pad(chosen.pixels, (0, 0, rim, rim, rim, rim)).expand(
        -1, -1, -1, 3
    )
    names = [classes[label] for label in chosen.labels.tolist()]
    known = [classes[label] for label in kept]
    question = "What is the object in the image?"
    items = [_item(question, name, known, f"one {name} in shades of gray") for name in names]
    return pixels.contiguous(), tuple(items)


def _naming(n: int, seed: int, part: str, things: Things) -> Made:
    own = derive_seed(seed, "naming", part)
    each = math.ceil(n / (len(FILLS) * len(things.shapes)))
    data = shapes(each, 1, len(FILLS), size=SIZE, noise=0.05, spread=0.5, seed=own)
    kept = [i for i, name in enumerate(data.classes) if name.split()[1] in things.shapes]
    return _classes(data.train, data.classes, kept, n, np.random.default_rng(own))


def _fashion(n: int, seed: int, part: str, things: Things) -> Made:
    each = math.ceil(n / len(FASHION_CLASSES))
    images = getattr(fashion_mnist(each, each), part)
    rng = np.random.default_rng(derive_seed(seed, "fashion", part))
    return _classes(images, FASHION_CLASSES, range(len(FASHION_CLASSES)), n, rng)


#: Task -> the style of its answers, and what makes its images and items.
VISUAL_TASKS: dict[str, tuple[str, Maker]] = {
    "science": ("choice", _many(_science)),
    "reading": ("short", _many(_reading)),
    "naming": ("class", _naming),
    "fashion": ("class", _fashion),
    "attributes": ("short", _many(_attributes)),
    "counting": ("short", _many(_count)),
    "grounding": ("box", _many(_grounding)),
    "presence": ("yes_no", _many(_presence)),
    "describing": ("brief", _many(_describing)),
}


def _task(
    name: str, style: str, make: Maker, sizes: tuple[int, int], seed: int, things: Things
) -> VisualTask:
    made = [make(n, seed, part, things) for n, part in zip(sizes, ("train", "test"), strict=True)]
    sets = [as_set(images, [in_own_style(item, style) for item in items]) for images, items in made]
    return VisualTask(name, style, *sets, *(items for _, items in made))


def visual_tasks(
    names: Sequence[str], per_task: int, test_per_task: int, seed: int
) -> tuple[VisualTask, ...]:
    """A sequence of tasks of `VISUAL_TASKS`, in this order; one question an image.

    Raises
    ------
    ValueError
        A task that is unknown, or comes twice; no question.
    MissingSourceError
        "fashion" without Fashion-MNIST.
    """
    for i, name in enumerate(names):
        if name not in VISUAL_TASKS:
            raise ValueError(f"unknown task {name!r}; {did_you_mean(name, list(VISUAL_TASKS))}")
        if name in names[:i]:
            raise ValueError(f"the task {name!r} comes twice in {', '.join(names)}")
    if per_task < 1 or test_per_task < 1:
        raise ValueError(
            f"a task has questions, not {per_task} in train and {test_per_task} in test"
        )
    sizes = per_task, test_per_task
    return tuple(_task(name, *VISUAL_TASKS[name], sizes, seed, TASKS) for name in names)


def stage_zero(n: int, seed: int) -> VisualSet:
    """What a model learns before the first task: ``n`` questions, every kind in all five styles.

    Their shapes, colours and numbers are others than those of the tasks, as are the meanings of
    colours. An eighth of them is about no image, and shows each word of the tasks' answers.

    Raises
    ------
    ValueError
        ``n`` is less than 1.
    """
    left_out = ("fashion", "counting")  # clothes are a task's alone; "attributes" counts, too
    kinds = {name: made for name, made in VISUAL_TASKS.items() if name not in left_out}
    kinds["copying"] = ("choice", _many(_copying))
    own = derive_seed(seed, "stage zero")
    styles = AnswerStyleDiversification(ratio=80)
    parts = []
    for i, (name, (style, make)) in enumerate(kinds.items()):
        if size := n // len(kinds) + (i < n % len(kinds)):
            parts.append(styles(_task(name, style, make, (size, 1), own, ZERO), own).train)
    if not parts:
        raise ValueError(f"a model learns from questions, not from {n}")
    order = np.random.default_rng(own).permutation(n)
    return functools.reduce(operator.add, parts).subset(order)


#: A digit as a caption has it.
_SPOKEN = dict(
    enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
)


def captions(n: int, seed: int) -> VisualSet:
    """``n`` images of all kinds, shapes, colours and numbers, and what each shows, digits as words.

    For a vision tower alone: how questions are answered can't be learned from them.

    Raises
    ------
    ValueError
        ``n`` is less than 1.
    """
    if n < 1:
        raise ValueError(f"a tower learns from images, not from {n}")
    everything = Things(*(a + b for a, b in zip(TASKS, ZERO, strict=True)))
    own = derive_seed(seed, "captions")
    kinds = ("describing", "counting", "attributes", "naming", "reading")
    parts = []
    for i, name in enumerate(kinds):
        if size := n // len(kinds) + (i < n % len(kinds)):
            images, items = VISUAL_TASKS[name][1](size, own, "train", everything)
            said = [
                re.sub(r"\d", lambda d: f" {_SPOKEN[int(d[0])]} ", item.brief) for item in items
            ]
            parts.append(
                as_set(images, [(item.question, s) for item, s in zip(items, said, strict=True)])
            )
    return functools.reduce(operator.add, parts)
