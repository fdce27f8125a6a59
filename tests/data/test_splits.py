from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unlearn_core.data import (
    Answering,
    CaptionedSet,
    Classification,
    Concepts,
    Denoising,
    ForgetSplit,
    ImageData,
    ImageSet,
    LabelledSet,
    SplitError,
    Task,
    WithheldDataError,
    forget_class,
    forget_indices,
    forget_random,
    forget_subclass,
    make_split,
    shapes,
)
from unlearn_core.data.images import FolderPixels


@pytest.fixture(scope="module")
def fine() -> ImageData:
    return shapes(per_class=4, test_per_class=2, fills=1, size=8)


@pytest.fixture(scope="module")
def coarse() -> ImageData:
    return shapes(per_class=3, test_per_class=2, fills=2, size=8, coarse=True)


def check_parts(split: ForgetSplit, data: ImageData) -> None:
    """Disjoint, complete, and every image still the one that its index says."""
    forget, retain = split.forget.index, split.retain.index
    assert torch.cat([forget, retain]).sort().values.tolist() == list(range(len(data.train)))
    for part in (split.forget, split.retain):
        assert torch.equal(part.pixels, data.train.pixels[part.index])
        assert torch.equal(part.labels, data.train.labels[part.index])
        assert torch.equal(part.subclasses, data.train.subclasses[part.index])
    assert split.test is data.test


def check_test_sides(split: ForgetSplit, data: ImageData, forgotten: torch.Tensor) -> None:
    assert torch.equal(split.test_forget.index, forgotten.nonzero()[:, 0])
    assert torch.equal(split.test_retain.index, (~forgotten).nonzero()[:, 0])
    assert torch.equal(split.test_forget.pixels, data.test.pixels[forgotten])


class TestForgetClass:
    @pytest.mark.parametrize("target", [4, "solid diamond"])
    def test_all_of_the_class_and_nothing_else(self, fine: ImageData, target: int | str) -> None:
        split = forget_class(fine, target)
        check_parts(split, fine)
        assert split.forget.labels.tolist() == [4] * 4
        assert 4 not in split.retain.labels
        assert split.name == "class solid diamond"
        assert split.task.classes == 10

    def test_the_test_set_is_cut_too(self, fine: ImageData) -> None:
        check_test_sides(forget_class(fine, 0), fine, fine.test.labels == 0)

    def test_a_superclass_takes_all_its_subclasses(self, coarse: ImageData) -> None:
        split = forget_class(coarse, "ring")
        check_parts(split, coarse)
        assert split.forget.subclasses.unique().tolist() == [2, 3]


class TestForgetSubclass:
    @pytest.mark.parametrize("target", [3, "striped ring"])
    def test_one_fill_goes_and_its_sibling_stays(
        self, coarse: ImageData, target: int | str
    ) -> None:
        split = forget_subclass(coarse, target)
        check_parts(split, coarse)
        assert split.forget.subclasses.tolist() == [3] * 3
        assert split.forget.labels.tolist() == [1] * 3
        assert (split.retain.subclasses == 2).sum() == 3
        assert split.name == "sub-class striped ring"
        assert split.task.classes == 10
        check_test_sides(split, coarse, coarse.test.subclasses == 3)

    def test_a_set_without_subclasses_is_refused(self, fine: ImageData) -> None:
        with pytest.raises(SplitError, match="no sub-classes"):
            forget_subclass(fine, 0)

    def test_any_data_set_has_no_sub_classes(self, fine: ImageData) -> None:
        says = r"a LabelledSet doesn't say .* ImageData\(train, test, classes, subclasses\)"
        with pytest.raises(SplitError, match=says):
            forget_subclass(LabelledSet(fine.train), "ring")


class TestForgetRandom:
    def test_by_count_and_by_fraction(self, fine: ImageData) -> None:
        a, b = forget_random(fine, count=10, seed=1), forget_random(fine, fraction=0.25, seed=1)
        check_parts(a, fine)
        assert len(a.forget) == 10
        assert torch.equal(a.forget.index, b.forget.index)
        assert a.name == "random 10"

    def test_no_test_sides(self, fine: ImageData) -> None:
        split = forget_random(fine, count=1)
        assert split.test_forget is None
        assert split.test_retain is None

    def test_the_seed_decides_and_nothing_else(self, fine: ImageData) -> None:
        before = torch.get_rng_state()
        a, b, c = (forget_random(fine, count=10, seed=s).forget.index for s in (0, 0, 1))
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
        assert torch.equal(torch.get_rng_state(), before)

    def test_every_image_is_as_likely(self, fine: ImageData) -> None:
        """Fails if the draw favours a part of the set, its first images for instance."""
        hits = torch.zeros(40)
        for seed in range(300):
            hits[forget_random(fine, count=10, seed=seed).forget.index] += 1
        assert abs(hits / 300 - 0.25).max() < 5 * (0.25 * 0.75 / 300) ** 0.5

    @pytest.mark.parametrize(
        "request_",
        [{"count": 0}, {"count": 40}, {"count": -1}, {"fraction": 0.001}, {"fraction": 1.5}],
    )
    def test_nothing_or_everything_is_refused(self, fine: ImageData, request_: dict) -> None:
        with pytest.raises(SplitError, match=r"cannot forget -?[0-9]+ of 40"):
            forget_random(fine, **request_)

    @pytest.mark.parametrize(
        "request_",
        [{"count": 2.5}, {"count": True}, {"fraction": "0.1"}, {"fraction": float("nan")}],
    )
    def test_a_size_is_a_number(self, fine: ImageData, request_: dict) -> None:
        with pytest.raises(SplitError, match=r"(count is a whole|fraction is a) number, not "):
            forget_random(fine, **request_)

    @pytest.mark.parametrize("request_", [{}, {"count": 1, "fraction": 0.1}])
    def test_exactly_one_size(self, fine: ImageData, request_: dict) -> None:
        with pytest.raises(SplitError, match="either fraction or count"):
            forget_random(fine, **request_)


class TestForgetIndices:
    def test_the_given_images(self, fine: ImageData) -> None:
        split = forget_indices(fine, torch.tensor([7, 0, 39]))
        check_parts(split, fine)
        assert split.forget.index.tolist() == [0, 7, 39]
        assert split.test_forget is None
        assert split.name == "3 chosen"

    def test_with_the_other_side(self, fine: ImageData) -> None:
        split = forget_indices(fine, torch.tensor([1, 0]), torch.arange(2, 40))
        check_parts(split, fine)
        assert split.forget.index.tolist() == [0, 1]

    @pytest.mark.parametrize(
        ("forget", "retain", "message"),
        [
            ([], None, "the forget set is empty"),
            ([], list(range(40)), "the forget set is empty"),
            (list(range(40)), None, "whole training set"),
            ([3, 3], None, "given twice"),
            ([0], [*range(1, 39), 38], "given twice"),
            (5, None, r"positions are several: \[5\], not 5"),
            ([40], None, "outside the training set of 40"),
            ([-1], None, "outside the training set of 40"),
            ([0], [*range(1, 39), 40], "outside the training set of 40"),
            ([0, 1], list(range(1, 40)), "overlap in 1 images"),
            ([0], list(range(3, 40)), "2 training images are in neither"),
        ],
    )
    def test_what_cannot_be(
        self, fine: ImageData, forget: list[int], retain: list[int] | None, message: str
    ) -> None:
        with pytest.raises(SplitError, match=message):
            forget_indices(fine, forget, retain)


class TestUnknownTargets:
    def test_a_close_name_is_offered(self, fine: ImageData) -> None:
        with pytest.raises(
            SplitError, match="unknown class 'solid rin'; did you mean 'solid ring'"
        ):
            forget_class(fine, "solid rin")

    def test_else_all_names_are(self, coarse: ImageData) -> None:
        with pytest.raises(SplitError, match="unknown class 'xyz'; known: bar, column, "):
            forget_class(coarse, "xyz")

    def test_a_subclass_too(self, coarse: ImageData) -> None:
        with pytest.raises(SplitError, match=r"unknown sub-class .*; did you mean 'striped ring'"):
            forget_subclass(coarse, "stripy ring")

    @pytest.mark.parametrize("target", [10, -1])
    def test_a_number_out_of_range(self, fine: ImageData, target: int) -> None:
        with pytest.raises(SplitError, match=f"unknown class {target}: there are 10"):
            forget_class(fine, target)

    def test_true_is_not_class_1(self, fine: ImageData) -> None:
        with pytest.raises(SplitError, match="unknown class True"):
            forget_class(fine, True)

    def test_a_class_without_training_images(self, fine: ImageData) -> None:
        from dataclasses import replace

        data = replace(fine, classes=(*fine.classes, "ghost"))
        with pytest.raises(SplitError, match="class ghost: the forget set is empty"):
            forget_class(data, "ghost")


class TestMakeSplit:
    @pytest.mark.parametrize(
        ("request_", "expected"),
        [
            ({"class": "ring"}, lambda d: forget_class(d, "ring")),
            ({"subclass": "solid ring"}, lambda d: forget_subclass(d, "solid ring")),
            ({"fraction": 0.1}, lambda d: forget_random(d, fraction=0.1, seed=7)),
            ({"count": 5}, lambda d: forget_random(d, count=5, seed=7)),
        ],
    )
    def test_the_four_requests(
        self, coarse: ImageData, request_: dict, expected: Callable[[ImageData], ForgetSplit]
    ) -> None:
        split, by_hand = make_split(coarse, request_, seed=7), expected(coarse)
        assert split.name == by_hand.name
        assert torch.equal(split.forget.index, by_hand.forget.index)
        assert torch.equal(split.retain.index, by_hand.retain.index)

    @pytest.mark.parametrize("request_", [{}, {"class": "ring", "count": 1}])
    def test_one_thing_at_a_time(self, coarse: ImageData, request_: dict) -> None:
        with pytest.raises(SplitError, match="names one thing"):
            make_split(coarse, request_, seed=0)

    def test_an_unknown_request_is_named(self, coarse: ImageData) -> None:
        with pytest.raises(SplitError, match="unknown forget request 'klass'; known: class, "):
            make_split(coarse, {"klass": "ring"}, seed=0)


class TestOnly:
    @pytest.mark.parametrize(
        ("needs", "hidden"),
        [
            ({"retain"}, {"forget"}),
            ({"forget", "fresh_model"}, {"retain"}),
            ({"forget", "retain"}, set()),
            (set(), {"forget", "retain"}),
        ],
    )
    @pytest.mark.parametrize(
        "touch",
        [len, iter, bool, lambda d: d[0], lambda d: d.labels, lambda d: d.batch_of([0])],
        ids=["len", "iter", "bool", "item", "labels", "batch"],
    )
    def test_what_is_not_declared_raises_when_touched(
        self, fine: ImageData, needs: set, hidden: set, touch: Callable[[ImageSet], object]
    ) -> None:
        """Fails if `needs` is documentation only: a method could read data that it denies."""
        view = forget_class(fine, 0).only(frozenset(needs), "Sneaky")
        for name in ("forget", "retain", "test", "test_forget", "test_retain"):
            part = getattr(view, name)
            if name in ("forget", "retain") and name not in hidden:
                touch(part)
            else:
                with pytest.raises(WithheldDataError, match=f"Sneaky does not declare '{name}'"):
                    touch(part)

    def test_neither_can_it_be_added_to_something(self, fine: ImageData) -> None:
        view = forget_class(fine, 0).only(frozenset({"retain"}), "Sneaky")
        for add in (lambda: view.retain + view.forget, lambda: view.forget + view.retain):
            with pytest.raises(WithheldDataError):
                add()

    @pytest.mark.parametrize("request_", [{"class": 0}, {"fraction": 0.5}, {"count": 3}])
    def test_validation_images_are_never_withheld(self, fine: ImageData, request_: dict) -> None:
        """Fails if early stopping inside a method can't look at what was held out for it, or if
        held-out images get into what is forgotten or kept."""
        data = fine.hold_out(1)
        split = make_split(data, request_, seed=0)
        assert split.validation is data.validation
        assert split.only(frozenset(), "Modest").validation is data.validation
        assert len(split.forget) + len(split.retain) == len(data.train) == 30

    def test_without_validation_images_there_are_none(self, fine: ImageData) -> None:
        split = forget_indices(fine, torch.tensor([0]))
        assert split.validation is None
        assert split.only(frozenset(), "Modest").validation is None

    def test_declared_parts_and_the_task_are_the_same_objects(self, fine: ImageData) -> None:
        split = forget_class(fine, 0)
        view = split.only(frozenset({"forget"}), "M")
        assert view.forget is split.forget
        assert view.task is split.task
        assert len(split.retain) == 36


class TestByHand:
    """Splits that no function of this package has made."""

    def images(self, fine: ImageData, *positions: int) -> ImageSet:
        """Cut by hand: positions count from 0."""
        return replace(fine.train.subset(torch.tensor(positions)), index=None)

    def test_one_that_is_right(self, fine: ImageData) -> None:
        """Fails where equal positions alone, of sets that were not cut from one, count as overlap."""
        forget, retain = self.images(fine, 0, 1), self.images(fine, 2, 3, 4)
        assert forget.index.tolist() == [0, 1]
        split = ForgetSplit("two", Classification(10), forget, retain)
        assert split.forget is forget

    @pytest.mark.parametrize("size", [8, 4])
    def test_the_same_images_in_both(self, fine: ImageData, size: int, tmp_path: Path) -> None:
        """Fails where what is to be forgotten is retained: every number means something else."""
        train = fine.train
        forget, retain = (
            train.subset(torch.tensor([7, 3, 5])),
            train.subset(torch.tensor([5, 6, 7])),
        )
        says = "half: forget and retain overlap in 2 examples"
        with pytest.raises(SplitError, match=says):
            ForgetSplit("half", Classification(10), forget, retain)
        texts = CaptionedSet(forget, ("a",) * 3), CaptionedSet(retain, ("b",) * 3)
        with pytest.raises(SplitError, match=says):
            ForgetSplit("half", Denoising(), *texts)
        files = [tmp_path / f"{i}.png" for i in range(len(train))]
        stored = replace(train, pixels=FolderPixels(files, size), mean=(0.5,), std=(0.5,))
        with pytest.raises(SplitError, match=says):
            ForgetSplit(
                "half",
                Classification(10),
                *(stored.subset(part.index) for part in (forget, retain)),
            )

    @pytest.mark.parametrize("task", [Classification(10), Answering()])
    def test_one_set_as_both(self, fine: ImageData, task: Task) -> None:
        with pytest.raises(SplitError, match="overlap in 40 examples"):
            ForgetSplit("all", task, fine.train, fine.train)

    def test_nothing_to_forget(self, fine: ImageData) -> None:
        """A concept by its name is enough."""
        nothing = fine.train.subset(torch.tensor([], dtype=torch.int64))
        for task in (Classification(10), Denoising(), Answering()):
            with pytest.raises(SplitError, match="nothing: the forget set is empty"):
                ForgetSplit("nothing", task, nothing, fine.train)
        named = Denoising(Concepts((("a cat", "a dog"),)))
        split = ForgetSplit("a cat", named, (), ())
        assert split.only(frozenset({"concepts"}), "it").task == named
        assert split.only(frozenset(), "it").task == Denoising()

    @pytest.mark.parametrize(
        "part", ["forget", "retain", "test", "test_forget", "test_retain", "validation"]
    )
    def test_labels_that_the_task_does_not_have(self, fine: ImageData, part: str) -> None:
        """Fails where they end in an IndexError of PyTorch's, or are relabelled into others."""
        split = forget_class(fine, 0)
        wrong = fine.test.with_labels(torch.full((len(fine.test),), 10))
        says = f"class solid disc: the labels of {part} must be below 10, .*one is 10; the task"
        with pytest.raises(SplitError, match=says):
            replace(split, **{part: wrong})
