"""Data sets that nobody here wrote, as the methods read them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    random_split,
)
from torchvision.transforms import v2

from unlearn_core.data import (
    Classification,
    ForgetSplit,
    ImageData,
    ImageSet,
    LabelledSet,
    SplitError,
    batch_of,
    batches,
    forget_class,
    forget_indices,
    forget_random,
    forget_subclass,
    labelled,
)
from unlearn_core.models import TrainConfig, shuffled_epochs

NAMES = ("cat", "dog", "heron")
TO_TENSOR = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


def images(n: int = 12, size: int = 6) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def labels(n: int = 12) -> Tensor:
    return torch.arange(n) % 3


def pictures(n: int = 12, size: int = 6) -> list[Image.Image]:
    pixels = (255 * images(n, size)).permute(0, 2, 3, 1).round().to(torch.uint8)
    return [Image.fromarray(p.numpy()) for p in pixels]


@pytest.fixture
def pairs() -> TensorDataset:
    return TensorDataset(images(), labels())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, picture in enumerate(pictures()):
        file = tmp_path / NAMES[i % 3] / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        picture.save(file)
    return tmp_path


def hub(**columns: Any) -> datasets.Dataset:
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))}
    data = {"image": pictures(), "label": labels().tolist(), **columns}
    features = {k: kinds.get(k, datasets.ClassLabel(names=["a", "b"])) for k in data}
    return datasets.Dataset.from_dict(data, features=datasets.Features(features))


class Own(Dataset):
    """Samples as a function has them, each of which is counted when it is read."""

    def __init__(self, sample: Callable[[int], Any], n: int = 12) -> None:
        self.sample, self.n, self.read = sample, n, 0

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Any:
        if not 0 <= i < self.n:
            raise IndexError(i)
        self.read += 1
        return self.sample(i)


class Listed(Own):
    """One with a list of labels, which need not be what its samples say."""

    def __init__(self, sample: Callable[[int], Any], name: str, listed: Any) -> None:
        super().__init__(sample)
        setattr(self, name, listed)


def check(data: LabelledSet, x: Tensor | None = None) -> None:
    found, y = data.batch_of(range(len(data)))
    assert torch.equal(y, labels())
    assert y.dtype == torch.int64
    torch.testing.assert_close(found, images() if x is None else x, rtol=0, atol=0.51 / 255)


class TestWhatIsTaken:
    def test_tensors(self, pairs: TensorDataset) -> None:
        check(LabelledSet(pairs))

    def test_inputs_and_labels_apart(self) -> None:
        check(LabelledSet(images(), labels()))
        check(LabelledSet(images().double().numpy(), labels().numpy().astype(np.int16)))
        check(LabelledSet(TensorDataset(images()), labels().tolist()))

    def test_numpys_floats_become_torchs(self) -> None:
        rows = LabelledSet(np.ones((4, 5)), [0, 1, 0, 1])
        assert rows[0][0].dtype == torch.float32
        assert LabelledSet(torch.ones(4, 5).double(), [0, 1, 0, 1])[0][0].dtype == torch.float64

    def test_a_list_of_samples(self) -> None:
        check(LabelledSet(list(zip(images(), labels().tolist(), strict=True))))

    def test_what_comes_after_a_label_is_not_read(self) -> None:
        check(LabelledSet(TensorDataset(images(), labels(), torch.arange(12) * 7)))
        check(LabelledSet(Own(lambda i: (images()[i], i % 3, "seen", {"id": i}))))

    def test_a_part_and_a_part_of_it(self, pairs: TensorDataset) -> None:
        part = Subset(Subset(pairs, range(11, -1, -1)), [3, 0, 5])
        data = LabelledSet(part)
        assert data.index.tolist() == [8, 11, 6]
        x, y = data.batch_of([0, 1, 2])
        assert torch.equal(x, images()[[8, 11, 6]])
        assert y.tolist() == [2, 2, 0]

    def test_joined_sets(self, pairs: TensorDataset) -> None:
        parts = [Subset(pairs, range(5)), Own(lambda i: pairs[i + 5], 7)]
        check(LabelledSet(ConcatDataset(parts)))

    def test_names_of_joined_sets_are_numbered_together(self) -> None:
        """Fails where each part numbers the names that it has."""
        parts = [list(zip(images(2), names, strict=True)) for names in (("b", "c"), ("a", "b"))]
        data = LabelledSet(ConcatDataset(parts))
        assert data.classes == ("a", "b", "c")
        assert data.labels.tolist() == [1, 2, 0, 1]

    def test_a_folder_of_torchvision(self, folder: Path) -> None:
        data = LabelledSet(torchvision.datasets.ImageFolder(str(folder), TO_TENSOR))
        assert data.classes == NAMES
        x, y = data.batch_of([0, 11])
        assert y.tolist() == [0, 2]
        torch.testing.assert_close(x, images()[[0, 8]], rtol=0, atol=0.51 / 255)

    def test_a_data_set_of_the_hub(self) -> None:
        data = LabelledSet(hub(), transform=TO_TENSOR)
        assert data.classes == NAMES
        check(data)

    def test_one_with_a_transform_of_its_own(self) -> None:
        def prepare(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
            return {"pixel_values": [TO_TENSOR(i) for i in batch["image"]], "label": batch["label"]}

        data = LabelledSet(hub().with_transform(prepare))
        assert data.classes == NAMES
        check(data)

    def test_of_several_columns_of_labels_one_is_given(self) -> None:
        data = hub(coarse=[0, 1] * 6)
        with pytest.raises(
            ValueError, match=r"label and coarse: say which by labels=dataset\['lab"
        ):
            LabelledSet(data, transform=TO_TENSOR)
        own = LabelledSet(data, data["coarse"], transform=TO_TENSOR)
        assert own.labels.tolist() == [0, 1] * 6
        assert own.classes is None  # the others' names are not theirs

    def test_mappings(self) -> None:
        """The input is pixel_values, or what alone is neither number nor text, or what is asked for."""
        for sample, inputs in (
            (lambda i: {"pixel_values": images()[i], "mask": images()[i], "labels": i % 3}, None),
            (lambda i: {"id": f"{i}", "seen": images()[i], "target": torch.tensor(i % 3)}, None),
            (lambda i: {"a": images()[i] + 1, "b": images()[i], "label": i % 3}, "b"),
        ):
            check(LabelledSet(Own(sample), inputs=inputs))

    def test_another_entry_of_a_tuple(self) -> None:
        data = Own(lambda i: (f"{i}.png", i % 3, images()[i]))
        check(LabelledSet(data, inputs=2))

    def test_names_for_labels(self) -> None:
        data = LabelledSet(Own(lambda i: (images()[i], NAMES[i % 3])))
        assert data.classes == NAMES
        check(data)
        other = LabelledSet(Own(lambda i: (images()[i], NAMES[i % 3])), classes=NAMES[::-1])
        assert other.labels[:3].tolist() == [2, 1, 0]

    def test_spectrograms_and_tables(self) -> None:
        for shape in ((1, 20, 7), (5,)):
            data = LabelledSet(torch.randn(12, *shape), labels())
            assert data.shape == shape
            assert data.batch_of([3, 1])[0].shape == (2, *shape)

    def test_a_class_may_have_several_names(self, pairs: TensorDataset) -> None:
        pairs.classes = [("tench", "Tinca"), ("goldfish",), ("shark", "white shark")]
        assert LabelledSet(pairs).classes == ("tench, Tinca", "goldfish", "shark, white shark")


class TestLabels:
    @pytest.mark.parametrize("name", ["targets", "labels"])
    def test_a_list_saves_the_reading(self, name: str) -> None:
        data = Listed(lambda i: (images()[i], i % 3), name, labels().tolist())
        assert torch.equal(LabelledSet(data).labels, labels())
        assert data.read == 13  # the first for its shape, and all of a few for their labels
        data = Listed(lambda i: (images()[i % 12], i % 3), name, [i % 3 for i in range(1000)])
        data.n = 1000
        assert torch.equal(LabelledSet(data).labels, labels(1000))
        assert data.read == 1 + 32

    def test_a_list_that_is_right_at_both_ends_alone_is_not_believed(self) -> None:
        """Fails where the list is taken, whose order is another one between the ends."""
        listed = [0, *labels(998).tolist(), 0]
        data = Listed(lambda i: (images()[i % 12], i % 3), "targets", listed)
        data.n = 1000
        assert (listed[0], listed[-1]) == (0, 999 % 3)
        assert torch.equal(LabelledSet(data).labels, labels(1000))

    def test_a_list_that_the_samples_contradict_is_not_believed(self) -> None:
        data = Listed(lambda i: (images()[i], i % 3), "targets", [7] * 12)
        assert torch.equal(LabelledSet(data).labels, labels())

    def test_nor_one_before_a_transform_of_labels(self) -> None:
        """Both ends agree here, and what is between them doesn't."""
        data = Listed(lambda i: (images()[i], int(0 < i < 11)), "targets", [0] * 12)
        data.target_transform = lambda y: y
        assert LabelledSet(data).labels.tolist() == [0, *[1] * 10, 0]

    def test_every_sample_is_read_once_where_there_is_no_list(self) -> None:
        data = Own(lambda i: (images()[i], i % 3))
        assert torch.equal(LabelledSet(data).labels, labels())
        assert data.read == 13

    @pytest.mark.parametrize(
        ("given", "error", "says"),
        [
            (torch.nn.functional.one_hot(labels()), ValueError, r"\(12, 3\).*labels.argmax\(1\)"),
            (
                labels()[:, None],
                ValueError,
                r"\(12, 1\), and must have \(N,\): labels\[:, 0\] gives",
            ),
            (
                labels().float(),
                TypeError,
                r"whole numbers, not torch.float32: give labels.long\(\)",
            ),
            (labels() + 1, ValueError, "must be below 3, as they count from 0: one is 3"),
            (labels() - 1, ValueError, "must be at least 0: one is -1"),
            (labels()[:5], ValueError, "12 examples have 5 labels"),
            ([None] * 12, TypeError, "whole numbers or names, not of type NoneType"),
            (["cat"] * 11 + ["dgo"], ValueError, "unknown class 'dgo'; did you mean 'dog'"),
        ],
    )
    def test_what_is_refused(self, given: Any, error: type[Exception], says: str) -> None:
        with pytest.raises(error, match=says):
            LabelledSet(images(), given, NAMES)

    def test_none_to_be_found(self) -> None:
        with pytest.raises(ValueError, match="no label that can be found: give labels"):
            LabelledSet(images())

    def test_classes(self) -> None:
        assert LabelledSet(images(), labels(), 5).classes == ("0", "1", "2", "3", "4")
        for classes, error, says in (
            ("cat", TypeError, "classes is one text"),
            (1, ValueError, "two classes at least, not 1"),
            (["cat", 2], TypeError, "number 1 is of type int"),
        ):
            with pytest.raises(error, match=says):
                LabelledSet(images(), labels(), classes)

    def test_other_names_for_the_data_sets_own_numbers(self, folder: Path) -> None:
        """Fails where the names are taken, and another class than the one that is named is forgotten."""
        own = torchvision.datasets.ImageFolder(str(folder), TO_TENSOR)
        others = ["heron", "dog", "cat"]
        says = (
            r"stand for \['cat', 'dog', 'heron'\], and classes= .*\['heron', 'dog', 'cat'\]: leave"
        )
        with pytest.raises(ValueError, match=says):
            LabelledSet(own, classes=others)
        with pytest.raises(ValueError, match=says):
            forget_class(own, "heron", classes=others)
        with pytest.raises(ValueError, match=says):
            LabelledSet(hub(), classes=others, transform=TO_TENSOR)
        assert LabelledSet(own, classes=NAMES).classes == NAMES
        assert forget_class(own, 2, classes=3).name == "class 2"
        assert LabelledSet(own, own.targets, ["a", "b", "c"]).classes == ("a", "b", "c")


class Endless(IterableDataset):
    def __iter__(self) -> Any:
        yield images()[0], 0


class TestInputs:
    @pytest.mark.parametrize(
        ("data", "error", "says"),
        [
            (pictures(), TypeError, "of type Image, not tensors: .*v2.ToImage"),
            ((255 * images()).byte(), TypeError, r"uint8, not float: .*x.float\(\) / 255"),
            (torch.rand(12), ValueError, "single number"),
            ([images()[0], images(1, 7)[0]] * 6, ValueError, r"input 1 .*\(3, 7, 7\).*v2.Resize"),
            (
                Own(lambda i: {"a": images()[i], "b": images()[i]}),
                ValueError,
                "a, b: say by inputs=",
            ),
        ],
    )
    def test_what_is_refused(self, data: Any, error: type[Exception], says: str) -> None:
        with pytest.raises(error, match=says):
            LabelledSet(data, labels()).batch_of(range(12))

    @pytest.mark.parametrize(
        ("data", "says"),
        [
            ((images(), labels()), r"give TensorDataset\(inputs, labels\)"),
            (DataLoader(TensorDataset(images(), labels())), "give the data set that it loads"),
            (Endless(), r"Endless gives its samples in turn.*list\(dataset\)"),
            (datasets.DatasetDict({"train": hub(), "test": hub()}), "give one of 'train', 'test'"),
            (hub().to_iterable_dataset(), "gives its samples in turn"),
            ("cat", "str is no data set"),
            (7, "int is no data set"),
        ],
    )
    def test_what_is_no_data_set(self, data: Any, says: str) -> None:
        with pytest.raises(TypeError, match=says):
            forget_class(data, 0)

    def test_an_empty_one(self) -> None:
        with pytest.raises(ValueError, match="the data set is empty"):
            LabelledSet([])

    @pytest.mark.parametrize("inputs", ["c", 5])
    def test_an_entry_that_is_not_there(self, inputs: Any) -> None:
        data = Own(lambda i: {"a": images()[i], "label": 0}) if inputs == "c" else list(images())
        with pytest.raises(ValueError, match="there is no "):
            LabelledSet([(x, 0) for x in data] if inputs == 5 else data, inputs=inputs)


class TestAsASet:
    def test_a_loader_gives_the_same(self, pairs: TensorDataset) -> None:
        data = LabelledSet(Own(lambda i: pairs[i]))
        for loader in (batches(data, 5), DataLoader(data, 5), batches(pairs, 5)):
            x, y = (torch.cat(part) for part in zip(*loader, strict=True))
            assert torch.equal(x, images())
            assert torch.equal(y, labels())

    def test_a_part_under_other_labels(self, pairs: TensorDataset) -> None:
        part = LabelledSet(pairs, classes=NAMES).subset([7, 2]).subset(torch.tensor([1, 0]))
        assert part.index.tolist() == [2, 7]
        other = part.with_labels(torch.tensor([40, 50]))
        assert other.batch_of([1])[1].tolist() == [50]
        assert other.subclasses.tolist() == [2, 1]
        assert torch.equal(other.batch_of([1])[0][0], images()[7])
        assert part.labels.tolist() == [2, 1]

    def test_an_empty_part(self, pairs: TensorDataset) -> None:
        none = LabelledSet(Own(lambda i: pairs[i])).subset([])
        assert len(none) == 0
        assert none.batch_of([])[0].shape == (0, 3, 6, 6)

    def test_a_sum_is_one_after_the_other(self, pairs: TensorDataset) -> None:
        whole = LabelledSet(pairs)
        other = LabelledSet(Own(lambda i: (10 + images()[i], 1), 2))
        for both in (whole.subset([5, 1]) + whole.subset([0]), whole.subset([5]) + other):
            x, y = both.batch_of(range(len(both)))
            assert torch.equal(y, both.labels)
            expected = (
                images()[[5, 1, 0]]
                if x.max() < 2
                else torch.stack([images()[5], *(10 + images()[:2])])
            )
            assert torch.equal(x, expected)
        assert (whole + other).labels.tolist() == [*labels().tolist(), 1, 1]

    def test_images_are_augmented_as_ours(self, pairs: TensorDataset) -> None:
        data = LabelledSet(Own(lambda i: pairs[i]))
        x, _ = data.augmented(("flip",), 3).batch_of(range(12))
        flipped = [not torch.equal(a, b) for a, b in zip(x, images(), strict=True)]
        assert 0 < sum(flipped) < 12
        assert torch.equal(x[flipped], images().flip(3)[flipped])
        again, _ = data.augmented(("flip",), 3).batch_of([11, 4])
        assert torch.equal(again, x[[11, 4]])
        assert not torch.equal(data.augmented(("flip",), 4).batch_of(range(12))[0], x)
        with pytest.raises(ValueError, match=r"for images \(C, H, W\)"):
            LabelledSet(torch.rand(3, 5), [0, 1, 0]).augmented(("crop",))
        with pytest.raises(ValueError, match="unknown augmentation"):
            data.augmented(("mirror",))

    def test_the_fingerprint_is_of_all_that_a_model_sees(self, pairs: TensorDataset) -> None:
        data = LabelledSet(Own(lambda i: pairs[i]))
        same = LabelledSet(images().clone(), labels())
        assert data.fingerprint() == same.fingerprint()
        others = (
            data.subset(range(11)),
            data.subset([1, 0, *range(2, 12)]),
            data.with_labels(labels().flip(0)),
            LabelledSet(images() + 1e-3, labels()),
        )
        assert len({d.fingerprint() for d in (data, *others)}) == 5


class Noisy(Own):
    """What is drawn in a sample from each of three global states."""

    def __init__(self) -> None:
        super().__init__(
            lambda i: (
                torch.tensor([torch.rand(()).item(), random.random(), np.random.rand()]),
                i % 3,
            )
        )


class TestRandomTransforms:
    def test_what_is_drawn_is_a_matter_of_seed_and_position(self) -> None:
        data = LabelledSet(Noisy())
        x, _ = data.batch_of(range(12))
        assert len(x.unique()) == 36
        assert torch.equal(data.batch_of([7, 3])[0], x[[7, 3]])
        assert torch.equal(data.subset([5]).batch_of([0])[0][0], x[5])
        other, _ = data.redrawn(1).batch_of(range(12))
        assert not (other == x).any()

    def test_no_global_state_moves(self) -> None:
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
        LabelledSet(Noisy()).batch_of([0, 1])
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1] == random.getstate()
        assert (before[2] == np.random.get_state()[1]).all()

    def test_a_loader_of_ones_own_draws_as_the_data_set_does(self) -> None:
        data = LabelledSet(Noisy())
        assert not torch.equal(data[0][0], data[0][0])

    @pytest.mark.parametrize("workers", [0, 2])
    def test_every_epoch_draws_anew(self, workers: int) -> None:
        config = TrainConfig(epochs=2, lr=0.1, batch_size=4, workers=workers)
        epochs = shuffled_epochs(LabelledSet(Noisy()), config, 0)

        def read(epoch: int) -> list[float]:
            return sorted(torch.cat([x for x, _ in epochs(epoch)]).flatten().tolist())

        assert read(0) == read(0)
        assert not set(read(0)) & set(read(1))
        alone = shuffled_epochs(LabelledSet(Noisy()), TrainConfig(2, 0.1, 4), 0)
        assert read(1) == sorted(torch.cat([x for x, _ in alone(1)]).flatten().tolist())


class TestSplits:
    def test_a_class_by_name(self, pairs: TensorDataset) -> None:
        test = TensorDataset(images(6) + 1, labels(6))
        split = forget_class(
            pairs, "dog", classes=NAMES, test=test, validation=Subset(test, [0, 3])
        )
        assert split.name == "class dog"
        assert split.task == Classification(3)
        assert split.forget.index.tolist() == [1, 4, 7, 10]
        assert split.retain.index.tolist() == [0, 2, 3, 5, 6, 8, 9, 11]
        assert split.test_forget.index.tolist() == [1, 4]
        assert torch.equal(split.test_retain.batch_of([1])[0][0], images(6)[2] + 1)
        assert split.validation.labels.tolist() == [0, 0]

    def test_classes_that_nobody_named(self, pairs: TensorDataset) -> None:
        split = forget_class(pairs, 2)
        assert split.name == "class 2"
        assert split.test is None
        assert split.test_forget is None
        assert forget_class(pairs, 2, classes=10).task == Classification(10)

    def test_our_images_as_they_are(self, tiny_data: ImageData) -> None:
        split = forget_class(tiny_data.train, "3", test=tiny_data.test)
        assert isinstance(split.forget, ImageSet)
        assert len(split.test_forget) == 4

    def test_a_random_part_and_chosen_ones(self, pairs: TensorDataset) -> None:
        assert len(forget_random(pairs, fraction=0.25).forget) == 3
        chosen = forget_indices(pairs, [4, 1], test=pairs)
        assert chosen.forget.index.tolist() == [1, 4]
        assert len(chosen.test) == 12

    def test_a_mask_for_positions(self, pairs: TensorDataset) -> None:
        for mask in (labels() == 1, (labels() == 1).numpy()):
            assert forget_indices(pairs, mask).forget.index.tolist() == [1, 4, 7, 10]
        with pytest.raises(
            SplitError, match=r"one entry for each of 12 training images, not \(5,\)"
        ):
            forget_indices(pairs, labels()[:5] == 1)
        with pytest.raises(SplitError, match=r"whole numbers, not torch.float32"):
            forget_indices(pairs, torch.tensor([1.0]))

    @pytest.mark.parametrize("target", [np.int64(1), torch.tensor(1), np.str_("dog")])
    def test_a_class_of_numpy_or_torch(self, pairs: TensorDataset, target: Any) -> None:
        assert forget_class(pairs, target, classes=NAMES).name == "class dog"

    @pytest.mark.parametrize("target", [["cat", "dog"], (0, 1), {1}, torch.arange(2)])
    def test_one_class_at_a_time(self, pairs: TensorDataset, target: Any) -> None:
        with pytest.raises(SplitError, match=r"one class is forgotten at a time.*forget_indices"):
            forget_class(pairs, target, classes=NAMES)

    def test_a_sub_class(self, pairs: TensorDataset) -> None:
        train = LabelledSet(pairs, classes=NAMES)
        groups = {"pet": ("cat", "dog"), "bird": ("heron",)}
        split = forget_subclass(ImageData(train, train, NAMES, NAMES).superclassed(groups), "dog")
        assert split.forget.index.tolist() == [1, 4, 7, 10]
        assert split.forget.labels.tolist() == [0] * 4
        assert split.task == Classification(2)
        assert len(split.test_forget) == 4

    def test_a_hold_out(self, pairs: TensorDataset) -> None:
        train = LabelledSet(pairs, classes=NAMES)
        data = ImageData(train, None, NAMES, NAMES).hold_out(1)
        assert data.validation.index.tolist() == [9, 10, 11]
        assert forget_class(data, "cat").forget.index.tolist() == [0, 3, 6]

    def test_a_test_set_of_other_classes(self, tmp_path: Path) -> None:
        """A class that the test set lacks would shift the numbers of those after it."""
        for name in ("cat", "heron"):
            (tmp_path / name).mkdir()
            Image.new("RGB", (6, 6)).save(tmp_path / name / "0.png")
        test = torchvision.datasets.ImageFolder(str(tmp_path), TO_TENSOR)
        train = LabelledSet(images(), labels(), NAMES)
        with pytest.raises(SplitError, match=r"classes of test are cat, heron.*different things"):
            forget_class(train, "cat", test=test)

    def test_names_in_the_place_of_labels_are_numbered_as_in_training(self) -> None:
        train = Own(lambda i: (images()[i], NAMES[i % 3]))
        test = Own(lambda i: (images()[i], ("heron", "cat")[i]), 2)
        split = forget_class(train, "cat", test=test)
        assert split.test.labels.tolist() == [2, 0]

    def test_what_the_data_have_already(self, tiny_data: ImageData, pairs: TensorDataset) -> None:
        with pytest.raises(SplitError, match="these data have their own test"):
            forget_class(tiny_data, 3, test=pairs)
        with pytest.raises(SplitError, match="give the classes to LabelledSet"):
            forget_class(LabelledSet(pairs), 1, classes=NAMES)

    def test_parts_of_different_shapes(self, pairs: TensorDataset) -> None:
        with pytest.raises(ValueError, match="test and train differ in shape"):
            forget_class(pairs, 1, test=TensorDataset(images(6, 7), labels(6)))


class TestPartsByHand:
    def test_they_become_labelled_sets(self, pairs: TensorDataset) -> None:
        split = ForgetSplit(
            "hand", Classification(3), Subset(pairs, [0, 3]), list(pairs)[1:3], pairs
        )
        for part in (split.forget, split.retain, split.test):
            assert isinstance(part, LabelledSet)
        both = split.retain + split.forget
        assert both.labels.tolist() == [1, 2, 0, 0]
        assert torch.equal(both.batch_of([3])[0][0], images()[3])

    def test_parts_of_our_images_stay_what_they_are(self, tiny_data: ImageData) -> None:
        parts = random_split(tiny_data.train, [20, 60], torch.Generator().manual_seed(0))
        split = ForgetSplit("hand", Classification(10), *parts)
        assert isinstance(split.forget, ImageSet)
        assert len(split.retain + split.forget) == 80

    def test_both_parts_are_of_one_kind(self, tiny_data: ImageData) -> None:
        other = TensorDataset(torch.rand(3, 1, 12, 12), torch.tensor([1, 2, 3]))
        split = ForgetSplit("hand", Classification(10), other, tiny_data.train)
        both = split.retain + split.forget
        assert torch.equal(both.batch_of([5])[0][0], tiny_data.train[5][0])
        assert torch.equal(both.batch_of([81])[0][0], other[1][0])

    def test_an_overlap(self, pairs: TensorDataset) -> None:
        with pytest.raises(SplitError, match="hand: forget and retain overlap in 2 examples"):
            ForgetSplit(
                "hand", Classification(3), Subset(pairs, range(5)), Subset(pairs, range(3, 12))
            )

    def test_a_label_out_of_range(self, pairs: TensorDataset) -> None:
        with pytest.raises(
            SplitError, match=r"labels of forget must be below 2.*the task has these"
        ):
            ForgetSplit("hand", Classification(2), Subset(pairs, [2]), Subset(pairs, [0]))

    def test_what_a_part_is_not(self, pairs: TensorDataset) -> None:
        with pytest.raises(TypeError, match="hand, retain: a DataLoader makes batches"):
            ForgetSplit("hand", Classification(3), Subset(pairs, [2]), DataLoader(pairs))

    def test_each_part_with_numbers_of_its_own(self) -> None:
        """Fails where "dog" is 0 in a part that has no cat, and so is "cat" in the other."""
        forget, retain = (
            Own(lambda i, names=names: (images()[i], names[i % len(names)]))
            for names in (("dog",), ("cat", "heron"))
        )
        with pytest.raises(SplitError, match="the parts have other classes, cat, heron and dog"):
            ForgetSplit("hand", Classification(3), forget, retain)


class TestOurSetsElsewhere:
    """A data set here is one of torch's to everybody else."""

    def test_in_a_loader(self, tiny_data: ImageData) -> None:
        x, y = next(iter(DataLoader(tiny_data.train, 32)))
        expected = batch_of(tiny_data.train, range(32))
        assert torch.equal(x, expected[0])
        assert torch.equal(y, expected[1])

    def test_a_part_in_a_loader(self, tiny_data: ImageData) -> None:
        x, y = next(iter(DataLoader(Subset(tiny_data.train, [70, 3]), 2)))
        assert torch.equal(x[1], tiny_data.train[3][0])
        assert y.tolist() == [8, 0]
        parts = random_split(tiny_data.train, [8, 72], torch.Generator().manual_seed(0))
        assert next(iter(DataLoader(parts[1], 72)))[0].shape == (72, 1, 12, 12)

    def test_a_captioned_set(self) -> None:
        from unlearn_core.data import captioned_shapes

        data = captioned_shapes(2, 1).train
        x, captions = next(iter(DataLoader(Subset(data, [3, 1]), 2)))
        assert torch.equal(x[0], data[3][0])
        assert list(captions) == [data.captions[3], data.captions[1]]

    def test_labelled_leaves_them(self, tiny_data: ImageData) -> None:
        assert labelled(tiny_data.train) is tiny_data.train
        part = labelled(Subset(Subset(tiny_data.train, [5, 70, 3]), [1, 2]))
        assert isinstance(part, ImageSet)
        assert part.index.tolist() == [70, 3]
