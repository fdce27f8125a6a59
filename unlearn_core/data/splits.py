"""What is to be forgotten, and what is to be kept.

A `ForgetSplit` is made by `forget_class`, `forget_subclass`, `forget_random` or
`forget_indices` of images (or of whatever a classifier learns from), and by `forget_questions` of
questions. Every one of them cuts the *training set* into two parts that are disjoint and complete;
the test set is cut too where the request names a class.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..registry import did_you_mean
from ..seeding import generator
from .books import BookData
from .captions import CaptionData, CaptionedSet
from .checks import check_numbers
from .images import FolderPixels, ImageData, ImageSet
from .labelled import Labelled, LabelledSet, class_names, labelled, names_of
from .objectives import Answering, Classification, Concepts, Denoising, Task
from .questions import QuestionData, QuestionSet

__all__ = [
    "ForgetSplit",
    "SplitError",
    "WithheldDataError",
    "forget_class",
    "forget_concepts",
    "forget_indices",
    "forget_questions",
    "forget_random",
    "forget_subclass",
    "make_split",
]


class SplitError(ValueError):
    """A forget request that cannot be met: empty, overlapping, incomplete or unknown."""


class WithheldDataError(RuntimeError):
    """A method reached for data that it does not declare in ``needs``."""


class _Withheld:
    def __init__(self, name: str, method: str) -> None:
        self._message = f"{method} does not declare {name!r} in `needs`, so it may not read it"

    def __getattr__(self, attribute: str) -> None:
        raise WithheldDataError(self._message)

    def _refuse(self, *_: object) -> None:
        raise WithheldDataError(self._message)

    __len__ = __getitem__ = __iter__ = __add__ = __radd__ = _refuse


@dataclass(frozen=True)
class ForgetSplit:
    """The training set cut in two, the test set, and the task that they belong to.

    Attributes
    ----------
    forget, retain : the two parts of the training set, disjoint and complete: questions as a model's
        tokens or, for a classifier, any data set that `LabelledSet` takes, which it becomes
    test : the whole test set, of images; what questions are evaluated on is no part of a split
    test_forget, test_retain : its two sides, for a request that names a (sub-)class; else None
    validation : held-out images, where the data has some: for early stopping; never withheld
    unrelated : examples that have nothing to do with either part, where there are any
    decouple : what is to be kept, under the prompts of what is to be forgotten, where there is any

    Raises
    ------
    TypeError
        The task is none, or a class of tasks.
    SplitError
        Nothing to forget, neither examples nor a concept; an example in both parts, where both were cut
        from one data set (each a `LabelledSet` of one object), or a question with its answer; a label that
        the task doesn't have.
    """

    name: str
    task: Task
    forget: Dataset
    retain: Dataset
    test: Labelled | None = None
    test_forget: Labelled | None = None
    test_retain: Labelled | None = None
    validation: Labelled | None = None
    unrelated: Dataset | None = None
    decouple: Dataset | None = None

    def __post_init__(self) -> None:
        if isinstance(self.task, type) or not hasattr(self.task, "modality"):
            raise TypeError(
                f"{self.name}: the task is one such as Classification(10) or Answering(), not {self.task!r}"
            )
        if isinstance(self.task, Classification):
            parts = ("forget", "retain", "test", "test_forget", "test_retain", "validation")
            names = {part: self._as_labelled(part) for part in parts}
            if len(said := {n for n in names.values() if n is not None}) > 1:
                raise SplitError(
                    f"{self.name}: the parts have other classes, "
                    f"{' and '.join(', '.join(n) for n in sorted(said))}: their labels mean different things"
                )
            kinds = {type(part) for part in (self.forget, self.retain)}
            if kinds == {ImageSet, LabelledSet}:  # one can't follow the other
                for part in ("forget", "retain"):
                    object.__setattr__(self, part, LabelledSet(getattr(self, part)))
        if isinstance(self.forget, _Withheld) or self.forget is None:
            return
        named = isinstance(self.task, Denoising) and self.task.concepts is not None
        if not len(self.forget) and not named:
            raise SplitError(f"{self.name}: the forget set is empty")
        if both := _in_both(self.forget, self.retain):
            raise SplitError(f"{self.name}: forget and retain overlap in {both} examples")
        if both := _asked_in_both(self.forget, self.retain):
            raise SplitError(f"{self.name}: forget and retain share {both} questions with answers")

    def _as_labelled(self, part: str) -> tuple[str, ...] | None:
        """Make a part a labelled set, of which the names of the classes are returned."""
        data = getattr(self, part)
        if data is None or isinstance(data, _Withheld):
            return None
        if not isinstance(data, ImageSet | LabelledSet):
            if isinstance(data, Sequence) and not len(data):
                raise SplitError(f"{self.name}: the {part} set is empty")
            try:
                data = labelled(data)
            except TypeError as error:
                raise TypeError(f"{self.name}, {part}: {error}") from error
            except ValueError as error:
                raise SplitError(f"{self.name}, {part}: {error}") from error
            object.__setattr__(self, part, data)
        try:
            check_numbers(data.labels, f"the labels of {part}", self.task.classes)
        except ValueError as error:
            raise SplitError(f"{self.name}: {error}; the task has these classes alone") from error
        return getattr(data, "classes", None)

    def only(self, needs: frozenset[str], method: str) -> ForgetSplit:
        """The view that a method gets: what it does not declare raises when it is touched."""
        parts = ("forget", "retain", "unrelated", "decouple")
        hidden = {name: _Withheld(name, method) for name in parts if name not in needs}
        sides = {s: _Withheld(s, method) for s in ("test", "test_forget", "test_retain")}
        if isinstance(self.task, Answering) and "templates" not in needs:
            hidden["task"] = replace(self.task, templates=())
        if isinstance(self.task, Denoising) and self.task.concepts is not None:
            if "concepts" not in needs:
                hidden["task"] = Denoising()
            elif "keep" not in needs:
                hidden["task"] = Denoising(replace(self.task.concepts, keep=()))
        return replace(self, **hidden, **sides)


def _asked_in_both(forget: Dataset, retain: Dataset | None) -> int:
    """How many questions have the same answer in both sets, as texts or encoded."""
    sides: list[set[tuple[str, str]]] = []
    for part in (forget, retain):
        texts = None if isinstance(part, _Withheld) else getattr(part, "questions", None)
        texts = part if isinstance(part, QuestionSet) else texts
        sides.append(set(texts) if isinstance(texts, QuestionSet) else set())
    return len(sides[0] & sides[1])


def _in_both(forget: Dataset, retain: Dataset | None) -> int:
    """How many examples of ``forget`` are in ``retain`` too.

    Images are the same where they have the same position in the set that they were cut from and the
    same pixels, or file: sets that were not cut from one count their positions from 0, each.
    """
    if forget is retain:
        return len(forget)
    if isinstance(forget, LabelledSet) and isinstance(retain, LabelledSet):
        return forget.shared_with(retain)
    one, other = (d.images if isinstance(d, CaptionedSet) else d for d in (forget, retain))
    if not (isinstance(one, ImageSet) and isinstance(other, ImageSet)):
        return 0
    shared = torch.isin(one.index, other.index).nonzero()[:, 0]
    if not len(shared) or one.image_shape != other.image_shape:
        return 0
    order = other.index.argsort()
    there = order[torch.searchsorted(other.index[order], one.index[shared])]
    a, b = one.pixels, other.pixels
    if isinstance(a, FolderPixels) and isinstance(b, FolderPixels):
        return int((a.files[shared.numpy()] == b.files[there.numpy()]).sum())
    if isinstance(a, FolderPixels) or isinstance(b, FolderPixels):
        return 0
    parts = zip(shared.split(1000), there.split(1000), strict=True)
    return sum(int((a[i] == b[j]).flatten(1).all(dim=1).sum()) for i, j in parts)


def _problem(
    data: Any, test: Any, validation: Any, classes: Sequence[str] | int | None
) -> ImageData:
    """Training data and what goes with them, whatever they were given as."""
    others = {"test": test, "validation": validation}
    if isinstance(data, ImageData):
        if given := [n for n, d in ({**others, "classes": classes}).items() if d is not None]:
            raise SplitError(
                f"these data have their own {given[0]}: dataclasses.replace gives them another"
            )
        return data
    names = class_names(classes)
    train = labelled(data, classes)
    if isinstance(train, LabelledSet):
        if classes is not None and train.classes != names:
            raise SplitError("give the classes to LabelledSet, when it is made")
        names = train.classes
    if names is None:
        names = tuple(map(str, range(int(train.labels.max()) + 1)))
    for part, held_out in others.items():
        if held_out is None:
            continue
        own = names_of(held_out)
        if own is not None and own != names:
            raise SplitError(
                f"the classes of {part} are {', '.join(own)}, and those of the training data "
                f"{', '.join(names)}: their labels mean different things"
            )
        others[part] = labelled(held_out, names)
    return ImageData(train, others["test"], names, names, validation=others["validation"])


def _cut(
    data: ImageData, forget: Tensor, name: str, test_forget: Tensor | None = None
) -> ForgetSplit:
    """Cut by a mask (N,) over the training set and, for classes, one over the test set."""
    if not forget.any():
        raise SplitError(f"{name}: the forget set is empty")
    if forget.all():
        raise SplitError(f"{name}: the forget set is the whole training set; nothing is retained")
    sides = {}
    if test_forget is not None:
        sides = {
            "test_forget": data.test.subset(test_forget.nonzero()[:, 0]),
            "test_retain": data.test.subset((~test_forget).nonzero()[:, 0]),
        }
    return ForgetSplit(
        name,
        Classification(len(data.classes)),
        data.train.subset(forget.nonzero()[:, 0]),
        data.train.subset((~forget).nonzero()[:, 0]),
        data.test,
        validation=data.validation,
        **sides,
    )


def _number(target: Any, names: tuple[str, ...], what: str) -> int:
    if isinstance(target, list | set | tuple) or getattr(target, "ndim", 0):
        raise SplitError(
            f"one {what} is forgotten at a time, not {target!r}: for several give forget_indices the "
            "positions of their images"
        )
    with contextlib.suppress(TypeError):  # what is no whole number is a name
        if not isinstance(target, bool):
            target = operator.index(target)
    if isinstance(target, int) and not isinstance(target, bool):
        if 0 <= target < len(names):
            return target
        raise SplitError(f"unknown {what} {target}: there are {len(names)}, numbered from 0")
    if target not in names:
        raise SplitError(f"unknown {what} {target!r}; {did_you_mean(str(target), list(names))}")
    return names.index(target)


def forget_class(
    data: ImageData | Any,
    target: int | str,
    *,
    test: Any = None,
    validation: Any = None,
    classes: Sequence[str] | int | None = None,
) -> ForgetSplit:
    """Forget every training image of one class, named or numbered.

    Parameters
    ----------
    data : `ImageData`, or the training set: any data set that `LabelledSet` takes
    test, validation : of such a training set; any data set, too
    classes : of such a training set, as of `LabelledSet`

    Raises
    ------
    SplitError
        There is no such class, no image of it, or none of another; the test set has other classes.
    TypeError, ValueError
        As of `LabelledSet`.
    """
    data = _problem(data, test, validation, classes)
    label = _number(target, data.classes, "class")
    name = f"class {data.classes[label]}"
    at_test = None if data.test is None else data.test.labels == label
    return _cut(data, data.train.labels == label, name, at_test)


def forget_subclass(data: ImageData, target: int | str) -> ForgetSplit:
    """Forget one sub-class; its images carry the label of their superclass.

    Raises
    ------
    SplitError
        The data are no `ImageData`, or have no sub-classes, or none of that name.
    """
    if not isinstance(data, ImageData):
        raise SplitError(
            f"a {type(data).__name__} doesn't say what sub-classes it has: make it "
            "ImageData(train, test, classes, subclasses), with the numbers of the sub-classes in the sets"
        )
    if data.subclasses == data.classes:
        raise SplitError("this data set has no sub-classes; use its coarse form")
    label = _number(target, data.subclasses, "sub-class")
    name = f"sub-class {data.subclasses[label]}"
    at_test = None if data.test is None else data.test.subclasses == label
    return _cut(data, data.train.subclasses == label, name, at_test)


def forget_random(
    data: ImageData | Any,
    *,
    fraction: float | None = None,
    count: int | None = None,
    seed: int = 0,
    test: Any = None,
    validation: Any = None,
    classes: Sequence[str] | int | None = None,
) -> ForgetSplit:
    """Forget a uniform random part of the training set, given as a fraction or as a count.

    ``data`` and what goes with them are as of `forget_class`.

    Raises
    ------
    SplitError
        Both are given or neither, one is no number, or nothing would be forgotten or kept.
    TypeError, ValueError
        As of `LabelledSet`.
    """
    data = _problem(data, test, validation, classes)
    if (fraction is None) == (count is None):
        raise SplitError("give either fraction or count")
    total = len(data.train)
    given, kind = (fraction, Real) if count is None else (count, Integral)
    if isinstance(given, bool) or not isinstance(given, kind) or not math.isfinite(given):
        what = "fraction is a number" if count is None else "count is a whole number"
        raise SplitError(f"{what}, not {given!r}")
    n = round(fraction * total) if count is None else count
    if not 0 < n < total:
        raise SplitError(f"cannot forget {n} of {total} training images")
    forget = torch.zeros(total, dtype=torch.bool)
    forget[torch.randperm(total, generator=generator(seed, "forget"))[:n]] = True
    return _cut(data, forget, f"random {n}")


def forget_indices(
    data: ImageData | Any,
    forget: Tensor | Sequence[int],
    retain: Tensor | Sequence[int] | None = None,
    *,
    test: Any = None,
    validation: Any = None,
    classes: Sequence[str] | int | None = None,
) -> ForgetSplit:
    """Forget the training images at the given positions (int64), or where a mask (N,) bool is True.

    ``retain``, where given, is checked against them: together they must be the training set. ``data``
    and what goes with them are as of `forget_class`.

    Raises
    ------
    SplitError
        A position twice or outside, a mask of another length, or parts that overlap or leave an image
        out.
    TypeError, ValueError
        As of `LabelledSet`.
    """
    data = _problem(data, test, validation, classes)
    total = len(data.train)
    forget = _positions(forget, total)
    chosen = [forget] if retain is None else [forget, _positions(retain, total)]
    for positions in chosen:
        if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < total:
            raise SplitError(f"an index lies outside the training set of {total}")
        if len(positions.unique()) != len(positions):
            raise SplitError("an index is given twice")
    if retain is not None:
        both = set(forget.tolist()) & set(chosen[1].tolist())
        if both:
            raise SplitError(f"forget and retain overlap in {len(both)} images")
        if len(forget) + len(chosen[1]) != total:
            missing = total - len(forget) - len(chosen[1])
            raise SplitError(f"{missing} training images are in neither forget nor retain")
    mask = torch.zeros(total, dtype=torch.bool)
    mask[forget] = True
    return _cut(data, mask, f"{len(forget)} chosen")


def _positions(given: Any, total: int) -> Tensor:
    given = torch.as_tensor(given)
    if not given.ndim:
        raise SplitError(f"positions are several: [{given.item()}], not {given.item()}")
    if given.dtype == torch.bool:
        if given.shape != (total,):
            raise SplitError(
                f"a mask has one entry for each of {total} training images, not {tuple(given.shape)}"
            )
        return given.nonzero()[:, 0]
    if given.is_floating_point() and len(given):
        raise SplitError(f"positions are whole numbers, not {given.dtype}")
    return given.long()


def forget_questions(
    data: QuestionData | BookData,
    encode: Callable[[QuestionSet], Dataset],
    templates: tuple[str, ...] = (),
) -> ForgetSplit:
    """Forget the questions that ``data`` says are to be forgotten.

    Parameters
    ----------
    encode : questions -> a model's tokens (`Chat.encoded`)
    templates : answers that say nothing, for the methods that learn them

    Raises
    ------
    TypeError
        A model in the place of its ``encoded``.
    SplitError
        A question is on both sides.
    """
    if isinstance(encode, torch.nn.Module):
        raise TypeError(
            "encode makes a model's tokens of questions: give the model's, chat.encoded"
        )
    gone = torch.zeros(len(data.train), dtype=torch.bool)
    gone[data.forget] = True
    forget, retain = (data.train.subset(side.nonzero()[:, 0]) for side in (gone, ~gone))
    if data.ask_forget.questions == forget.questions:
        forget = replace(forget, spans=data.ask_forget.spans)  # what must not be given away
    for side, what in ((forget, "forget"), (retain, "retain")):
        if not len(side):
            raise SplitError(f"the {what} set is empty")
    if both := set(forget.questions) & set(retain.questions):
        raise SplitError(f"forget and retain share {len(both)} questions: {min(both)!r}")
    return ForgetSplit(
        f"{len(forget)} questions",
        Answering(templates),
        encode(forget),
        encode(retain),
        unrelated=None if data.holdout is None else encode(data.holdout),
    )


def forget_concepts(data: CaptionData, concepts: Concepts) -> ForgetSplit:
    """Erase concepts that a model draws by name: their images are to be forgotten.

    These bear the concept's name in the templates, which take turns, whatever their captions were: a
    request names a concept, and what else it is called is for the evaluation to know.

    Raises
    ------
    SplitError
        A concept that no noun of the data is called, or nothing that is retained.
    TypeError
        The data say of no image which noun is in it.
    """
    if not isinstance(data, CaptionData):
        raise TypeError(
            f"images are found by the nouns of a CaptionData, which a {type(data).__name__} has not: "
            "cut it by hand, ForgetSplit(name, Denoising(concepts), forget, retain)"
        )
    try:
        gone = torch.tensor([data.label(name) for name, _ in concepts.erased])
    except ValueError as error:
        raise SplitError(str(error)) from error
    forget = torch.isin(data.labels, gone)
    if forget.all():
        raise SplitError("every image is to be forgotten; nothing is retained")
    at_test = torch.isin(data.test.labels, gone)
    forgotten = data.train.subset(forget.nonzero()[:, 0])
    names = [data.nouns[label].name for label in forgotten.images.labels.tolist()]
    turns = itertools.cycle(concepts.templates)
    return ForgetSplit(
        " and ".join(name for name, _ in concepts.erased),
        Denoising(concepts),
        forgotten.with_captions([next(turns).format(name) for name in names]),
        data.train.subset((~forget).nonzero()[:, 0]),
        data.test,
        data.test.subset(at_test.nonzero()[:, 0]),
        data.test.subset((~at_test).nonzero()[:, 0]),
    )


def make_split(data: ImageData, request: dict, seed: int) -> ForgetSplit:
    """The split that a profile's ``forget`` entry asks for.

    ``{"class": name}``, ``{"subclass": name}``, ``{"fraction": f}`` or ``{"count": n}``.

    Raises
    ------
    SplitError
        Another request, several, or as of the function that it names.
    """
    if len(request) != 1:
        raise SplitError(f"a forget request names one thing, not {sorted(request)}")
    ((kind, value),) = request.items()
    if kind == "class":
        return forget_class(data, value)
    if kind == "subclass":
        return forget_subclass(data, value)
    if kind in ("fraction", "count"):
        return forget_random(data, **{kind: value}, seed=seed)
    raise SplitError(f"unknown forget request {kind!r}; known: class, count, fraction, subclass")
