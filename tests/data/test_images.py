from __future__ import annotations

import gzip
import io
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from unlearn_core.data import (
    DATASETS,
    ImageData,
    ImageSet,
    MissingSourceError,
    batches,
    cifar10,
    cifar100,
    digits,
    fashion_cifar,
    fashion_mnist,
    image_folder,
    shapes,
)
from unlearn_core.data.images import (
    AUGMENTATIONS,
    CIFAR20,
    CIFAR_MEAN,
    CIFAR_STD,
    FASHION_CIFAR_GROUPS,
    FASHION_CLASSES,
    FolderPixels,
)

CIFAR10 = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
CIFAR100 = tuple(sorted(name for names in CIFAR20.values() for name in names))


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def write_parquet(
    file: Path,
    pixels: np.ndarray,
    labels: Sequence[int],
    names: Sequence[str],
    image: str,
    label: str,
) -> None:
    """Images and labels in the hub's schema."""
    file.parent.mkdir(parents=True, exist_ok=True)
    cell = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": png(p), "path": f"{i}.png"} for i, p in enumerate(pixels)]
    features = {
        image: {"_type": "Image"},
        label: {"names": list(names), "_type": "ClassLabel"},
    }
    schema = pa.schema(
        [(image, cell), (label, pa.int64())],
        {"huggingface": json.dumps({"info": {"features": features}})},
    )
    pq.write_table(pa.table([pa.array(rows, cell), pa.array(list(labels))], schema), file)


def colours(n: int, size: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def write_cifar10(hub: Path, labels: Sequence[int], test_labels: Sequence[int]) -> np.ndarray:
    """Write both splits and return the training pixels."""
    folder = hub / "uoft-cs/cifar10/plain_text"
    pixels = colours(len(labels))
    for stem, p, y in (
        ("train", pixels, labels),
        ("test", colours(len(test_labels), seed=1), test_labels),
    ):
        file = folder / f"{stem}-00000-of-00001.parquet"
        write_parquet(file, p, y, CIFAR10, "img", "label")
    return pixels


def write_idx(file: Path, array: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    file.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


def write_fashion(hub: Path, labels: Sequence[int], test_labels: Sequence[int]) -> np.ndarray:
    """Write both splits as IDX files and return the training pixels."""
    folder = hub / "zalando-datasets/fashion_mnist"
    rng = np.random.default_rng(2)
    out = []
    for stem, y in (("train", labels), ("t10k", test_labels)):
        out.append(rng.integers(0, 256, (len(y), 28, 28), dtype=np.uint8))
        write_idx(folder / f"{stem}-images-idx3-ubyte.gz", out[-1])
        write_idx(folder / f"{stem}-labels-idx1-ubyte.gz", np.array(y))
    return out[0]


def image_set(n: int = 6, size: int = 4, **options: object) -> ImageSet:
    pixels = torch.from_numpy(colours(n, size))
    labels = torch.arange(n) % 3
    return ImageSet(pixels, labels, labels * 2, (0.5,) * 3, (0.25,) * 3, **options)


def everything(data: ImageSet) -> tuple[Tensor, Tensor]:
    return data.batch_of(range(len(data)))


class TestImageSet:
    def test_a_batch_is_normalised_by_channel(self) -> None:
        pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
        label = torch.tensor([4])
        data = ImageSet(pixels, label, label, mean=(0.0, 0.1, 0.5), std=(1.0, 0.2, 0.25))
        x, y = data.batch_of([0])
        assert x.shape == (1, 3, 1, 1)
        assert x.dtype == torch.float32
        torch.testing.assert_close(x.flatten(), torch.tensor([0.0, 0.5, 2.0]))
        assert y.tolist() == [4]

    def test_one_mean_serves_every_channel(self) -> None:
        data = ImageSet(
            torch.full((1, 2, 2, 3), 255, dtype=torch.uint8),
            *[torch.tensor([0])] * 2,
            (0.5,),
            (0.5,),
        )
        assert everything(data)[0].eq(1).all()

    def test_a_batch_keeps_the_asked_order_and_is_channels_last(self) -> None:
        data = image_set()
        x, y = data.batch_of([4, 0])
        assert torch.equal(x, torch.stack([data[4][0], data[0][0]]))
        assert y.tolist() == [1, 0]
        assert x.is_contiguous(memory_format=torch.channels_last)

    def test_the_loader_gives_the_same_batches(self) -> None:
        data = image_set()
        x, y = zip(*batches(data, 4), strict=True)
        assert [len(b) for b in y] == [4, 2]
        assert torch.equal(torch.cat(x), everything(data)[0])
        assert torch.equal(torch.cat(y), data.labels)

    def test_a_subset_carries_labels_subclasses_and_positions(self) -> None:
        data = image_set()
        twice = data.subset(torch.tensor([5, 1, 3])).subset(torch.tensor([2, 0]))
        assert twice.index.tolist() == [3, 5]
        assert torch.equal(twice.pixels, data.pixels[[3, 5]])
        assert twice.labels.tolist() == [0, 2]
        assert twice.subclasses.tolist() == [0, 4]

    def test_a_sum_is_one_after_the_other(self) -> None:
        data = image_set()
        both = data.subset(torch.tensor([4, 5])) + data.subset(torch.tensor([0]))
        assert both.index.tolist() == [4, 5, 0]
        assert torch.equal(both.pixels, data.pixels[[4, 5, 0]])
        assert both.labels.tolist() == [1, 2, 0]
        assert both.subclasses.tolist() == [2, 4, 0]

    def test_other_labels_leave_the_set_alone(self) -> None:
        data = image_set()
        other = data.with_labels(torch.full((6,), 9))
        assert everything(other)[1].tolist() == [9] * 6
        assert data.labels.tolist() == [0, 1, 2, 0, 1, 2]
        assert torch.equal(other.subclasses, data.subclasses)

    @pytest.mark.parametrize("short", ["labels", "subclasses", "index"])
    def test_lengths_must_agree(self, short: str) -> None:
        columns = {name: torch.arange(4) for name in ("labels", "subclasses", "index")}
        columns[short] = torch.arange(3)
        with pytest.raises(ValueError, match="same length"):
            ImageSet(torch.zeros(4, 2, 2, 1), mean=(0.0,), std=(1.0,), **columns)

    @pytest.mark.parametrize(
        ("change", "error", "says"),
        [
            ({"pixels": torch.rand(4, 5, 5, 3)}, TypeError, r"float32: .* by \(255 \* pixels\)"),
            ({"pixels": torch.zeros(4, 5, 5, 3, dtype=torch.int64)}, TypeError, "must be uint8"),
            ({"pixels": np.zeros((4, 5, 5, 3), np.uint8)}, TypeError, "pixels .*not of type ndarr"),
            ({"pixels": torch.zeros(4, 5, 3, dtype=torch.uint8)}, ValueError, r"\(4, 5, 3\)"),
            (
                {"pixels": torch.zeros(4, 3, 5, 5, dtype=torch.uint8)},
                ValueError,
                "by pixels.permute",
            ),
            ({"labels": torch.tensor([0, 1, 2, -100])}, ValueError, "the labels .* one is -100"),
            ({"labels": torch.arange(4).int()}, TypeError, r"int32: convert them by \.long\(\)"),
            ({"labels": torch.rand(4)}, TypeError, "labels .* must be int64, not torch.float32"),
            ({"labels": [0, 1, 2, 0]}, TypeError, "labels .* a tensor, not of type list"),
            ({"labels": torch.zeros(4, 10).long()}, ValueError, r"shape \(N,\), not \(4, 10\)"),
            ({"subclasses": torch.rand(4)}, TypeError, "the subclasses of images must be int64"),
            ({"index": torch.tensor([0, 1, 2, -1])}, ValueError, "the index .* one is -1"),
            ({"std": (0.0,), "mean": (0.5,)}, ValueError, r"std positive, .* not \(0.5,\) and \(0"),
            ({"std": (0.1, -0.1, 0.1)}, ValueError, "std positive"),
            ({"mean": (0.1, math.nan, 0.1)}, ValueError, "mean must be finite"),
            (
                {"mean": (0.5,) * 2, "std": (0.5,) * 2},
                ValueError,
                "2 and 2 values: one .* 3 channels",
            ),
            ({"mean": (0.5,)}, ValueError, "mean and std have 1 and 3 values"),
        ],
    )
    def test_what_makes_no_sense_is_refused(
        self, change: dict, error: type[Exception], says: str
    ) -> None:
        """Fails where floats from 0 to 1 are taken for 0 to 255, say: every image is black, and each
        method and metric goes on with that."""
        given = {f.name: getattr(image_set(4, 5), f.name) for f in fields(ImageSet)}
        ImageSet(**given)
        with pytest.raises(error, match=says):
            ImageSet(**given | change)

    def test_an_unknown_augmentation_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"\['mirror'\]; known: \['crop', 'flip', 'rotate'\]"):
            image_set().augmented(("flip", "mirror"))


class TestFingerprint:
    def test_it_repeats(self) -> None:
        assert image_set().fingerprint() == image_set().fingerprint()

    @pytest.mark.parametrize(
        "change",
        ["pixel", "label", "subclass", "order", "fewer", "mean", "std", "augment", "layout"],
    )
    def test_it_changes_with_all_that_a_model_sees(self, change: str) -> None:
        """Fails if part of the set is left out: a cache would hand out another set's model."""
        data = image_set()
        before = data.fingerprint()
        pixels, labels, subclasses = (
            t.clone() for t in (data.pixels, data.labels, data.subclasses)
        )
        if change == "pixel":
            pixels[3, 1, 2, 0] ^= 1
        elif change == "label":
            labels[5] += 1
        elif change == "subclass":
            subclasses[0] += 1
        elif change == "layout":
            pixels = pixels.reshape(6, 2, 8, 3)
        changed = ImageSet(
            pixels,
            labels,
            subclasses,
            (0.5, 0.5, 0.4 if change == "mean" else 0.5),
            (0.25, 0.25, 0.2 if change == "std" else 0.25),
            augment=("flip",) if change == "augment" else (),
        )
        if change == "order":
            changed = data.subset(torch.tensor([0, 1, 2, 3, 5, 4]))
        elif change == "fewer":
            changed = data.subset(torch.arange(5))
        assert changed.fingerprint() != before

    @pytest.mark.parametrize("change", ["pixel", "label", "order", "size"])
    def test_it_changes_for_a_folder_too(self, tmp_path: Path, change: str) -> None:
        """Fails if only names and file sizes are hashed: bitmaps of one size all have the same."""
        files = [tmp_path / f"{i}.bmp" for i in range(2)]
        for file, pixels in zip(files, colours(2, 4), strict=True):
            Image.fromarray(pixels).save(file)

        def fingerprint(files: list[Path], size: int = 4, label: int = 0) -> str:
            labels = torch.tensor([0, label])
            return ImageSet(FolderPixels(files, size), labels, labels, (0.5,), (0.5,)).fingerprint()

        before = fingerprint(files)
        if change == "pixel":
            Image.fromarray(colours(1, 4, seed=9)[0]).save(files[0])
            after = fingerprint(files)
        elif change == "label":
            after = fingerprint(files, label=1)
        elif change == "order":
            after = fingerprint(files[::-1])
        else:
            after = fingerprint(files, size=8)
        assert after != before


class TestAugmentation:
    def draw(self, data: ImageSet, seed: int, *names: str) -> Tensor:
        return everything(data.augmented(names or data.augment, seed))[0]

    def test_nothing_touches_the_global_state(self) -> None:
        before = torch.get_rng_state()
        everything(image_set(augment=("crop", "flip", "rotate")))
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("name", ["crop", "flip", "rotate"])
    def test_it_is_drawn_for_every_image(self, name: str) -> None:
        """Fails if one draw serves the whole batch."""
        one = torch.from_numpy(colours(1, 12))
        labels = torch.zeros(16, dtype=torch.long)
        data = ImageSet(one.repeat(16, 1, 1, 1), labels, labels, (0.5,), (0.5,), augment=(name,))
        assert len(self.draw(data, 0).flatten(1).unique(dim=0)) > 1
        assert torch.equal(self.draw(data, 0), self.draw(data, 0))
        assert not torch.equal(self.draw(data, 0), self.draw(data, 1))

    def test_an_image_s_draws_are_a_matter_of_its_position_alone(self) -> None:
        """Fails if they depend on the batch that it comes in, or on what was loaded before."""
        data = image_set(32, 9).augmented(("crop", "flip", "rotate"), 5)
        whole = everything(data)[0]
        for few in ([7], [31, 7, 2], [*range(9, 20)]):
            assert torch.equal(data.batch_of(few)[0], whole[few])

    def test_operations_draw_apart(self) -> None:
        """Fails if a number serves two of them: a mirrored image would always turn one way."""
        data = image_set(400, augment=("crop", "flip", "rotate"))
        numbers = torch.cat([*data._draws], dim=1).T
        assert torch.corrcoef(numbers).fill_diagonal_(0).abs().max() < 0.2
        assert numbers.min() >= 0
        assert numbers.max() < 1

    def test_a_flip_is_the_image_or_its_mirror_image(self) -> None:
        data = image_set(32)
        plain, drawn = everything(data)[0], self.draw(data, 0, "flip")
        same = (drawn == plain).flatten(1).all(1)
        mirrored = (drawn == plain.flip(3)).flatten(1).all(1)
        assert (same ^ mirrored).all()
        assert 0 < same.sum() < 32

    def test_a_crop_moves_by_up_to_four_pixels_over_black(self) -> None:
        size = 9
        pixels = torch.zeros(400, size, size, 1, dtype=torch.uint8)
        pixels[:, 4, 4] = 255
        labels = torch.zeros(400, dtype=torch.long)
        data = ImageSet(pixels, labels, labels, (0.0,), (1.0,), augment=("crop",))
        x = self.draw(data, 0)[:, 0]
        assert x.shape == (400, size, size)
        assert x.sum(dim=(1, 2)).eq(1).all()
        _, row, column = x.nonzero(as_tuple=True)
        assert set(row.tolist()) == set(column.tolist()) == set(range(9))
        assert 0 < ((row - column) == 0).float().mean() < 0.3  # two draws, not one

    def test_a_crop_is_that_of_torchvision(self) -> None:
        data = image_set(20, 11)
        drawn = self.draw(data, 3, "crop")
        top, left = (replace(data, augment=("crop",), draw=3)._draws[0] * 9).long().unbind(1)
        padded = v2.functional.pad(data.pixels.permute(0, 3, 1, 2), [4])
        for i in range(20):
            image = v2.functional.crop(padded[i], int(top[i]), int(left[i]), 11, 11)
            torch.testing.assert_close(drawn[i], (image / 255 - 0.5) / 0.25)

    @pytest.mark.parametrize("shape", [(32, 32), (9, 20)])
    def test_a_rotation_is_that_of_torchvision(self, shape: tuple[int, int]) -> None:
        """Fails for a rotation about a corner, one that shears what is no square, or other angles."""
        pixels = np.random.default_rng(0).integers(0, 256, (20, *shape, 3), dtype=np.uint8)
        labels = torch.zeros(20, dtype=torch.long)
        data = ImageSet(torch.from_numpy(pixels), labels, labels, (0.0,), (1.0,), None, ("rotate",))
        turned = everything(data)[0]
        for image, x, u in zip(data.pixels, turned, data._draws[0, :, 0], strict=True):
            angle = 30 * float(u) - 15
            right = v2.functional.rotate(image.permute(2, 0, 1), angle) / 255
            # A nearest pixel is a matter of rounding where two are equally near.
            assert (x == right).all(0).float().mean() > 0.99

    def test_a_rotation_is_at_most_15_degrees(self) -> None:
        pixels = torch.zeros(200, 41, 41, 1, dtype=torch.uint8)
        pixels[:, 20, 40] = 255
        labels = torch.zeros(200, dtype=torch.long)
        data = ImageSet(pixels, labels, labels, (0.0,), (1.0,), augment=("rotate",))
        _, row, column = self.draw(data, 0)[:, 0].nonzero(as_tuple=True)
        angle = torch.atan2((row - 20.0).abs(), column - 20.0).rad2deg()
        assert 10 < angle.max() < 15 + 2  # a pixel is 1.4 degrees wide out there
        assert {-1, 1} <= set((row - 20).sign().tolist())

    def test_operations_come_in_the_order_of_their_names(self) -> None:
        """Fails if a rotation is made of an image that is cropped afterwards, or the other way."""
        data = image_set(8, 16)
        for names in (("crop", "rotate"), ("rotate", "crop")):
            drawn = data.augmented(names, 1)
            by_hand = data.pixels
            for name, numbers in zip(names, drawn._draws, strict=True):
                by_hand = AUGMENTATIONS[name](by_hand, numbers)
            right = (by_hand.permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
            torch.testing.assert_close(everything(drawn)[0], right)

    def test_two_draws_of_one_set_are_two_identities(self) -> None:
        data = image_set(augment=("flip",))
        assert data.fingerprint() != data.augmented(("flip",), 1).fingerprint()
        assert image_set().augmented((), 1).fingerprint() == image_set().fingerprint()

    def test_no_image_can_be_augmented_too(self) -> None:
        none = torch.tensor([], dtype=torch.long)
        x, y = image_set(augment=("flip",)).batch_of(none)
        assert (x.shape, y.shape) == ((0, 3, 4, 4), (0,))

    def test_labels_stay(self) -> None:
        data = image_set(augment=("crop", "flip", "rotate"))
        assert torch.equal(everything(data)[1], data.labels)


class TestImageData:
    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"classes": ("a", "b")}, "the labels of train must be below 2, .* one is 2"),
            ({"subclasses": ("a", "b", "c", "d")}, "the subclasses of train must be below 4"),
            ({"classes": ("a", "b", "a")}, "two classes are called 'a'"),
            ({"test": image_set(6, 5)}, r"test and train differ in image_shape: \(5, 5, 3\)"),
            ({"test": replace(image_set(), std=(0.5,) * 3)}, "test and train differ in std"),
            ({"validation": replace(image_set(), mean=(0.1,) * 3)}, "validation .* differ in mean"),
            ({"validation": image_set().with_labels(torch.full((6,), 3))}, "labels of validation"),
        ],
    )
    def test_what_does_not_fit_together_is_refused(self, change: dict, says: str) -> None:
        """Fails where a model is judged on images of another scale, or a label has no name."""
        subclasses = ("a", "b", "c", "d", "e")
        whole = ImageData(image_set(), image_set(), ("x", "y", "z"), subclasses)
        with pytest.raises(ValueError, match=says):
            replace(whole, **change)


class TestSuperclassed:
    def data(self) -> ImageData:
        labels = torch.tensor([2, 0, 1, 2])
        pixels = torch.zeros(4, 1, 1, 1, dtype=torch.uint8)
        images = ImageSet(pixels, labels, labels, (0.0,), (1.0,))
        names = ("cat", "rose", "dog")
        return ImageData(images, images.subset(torch.tensor([1, 2])), names, names)

    def test_the_old_classes_become_subclasses(self) -> None:
        coarse = self.data().superclassed({"plants": ("rose",), "animals": ("dog", "cat")})
        assert coarse.classes == ("plants", "animals")
        assert coarse.subclasses == ("cat", "rose", "dog")
        assert coarse.train.labels.tolist() == [1, 1, 0, 1]
        assert coarse.train.subclasses.tolist() == [2, 0, 1, 2]
        assert coarse.test.labels.tolist() == [1, 0]
        assert coarse.test.subclasses.tolist() == [0, 1]

    @pytest.mark.parametrize(
        "groups",
        [
            {"animals": ("cat", "dog")},
            {"animals": ("cat", "dog"), "plants": ("rose", "cat")},
            {"animals": ("cat", "dog"), "plants": ("tulip",)},
            {},
        ],
        ids=["incomplete", "twice", "unknown", "none"],
    )
    def test_incomplete_groups_are_refused(self, groups: dict) -> None:
        with pytest.raises(ValueError, match="every class exactly once"):
            self.data().superclassed(groups)


class TestTurned:
    def data(self) -> ImageData:
        """Nine images of two classes, whose top left pixel alone is bright."""
        labels = torch.tensor([0, 1, 0, 0, 1, 0, 0, 1, 1])
        pixels = torch.zeros(9, 2, 2, 1, dtype=torch.uint8)
        pixels[:, 0, 0] = torch.arange(1, 10, dtype=torch.uint8)[:, None]
        images = ImageSet(pixels, labels, labels, (0.0,), (1.0,))
        return ImageData(
            images, images.subset(torch.tensor([1, 4])), ("cat", "dog"), ("cat", "dog")
        )

    def test_every_class_comes_in_four_positions(self) -> None:
        """Fails if a quarter is turned the other way than it is called, images of one class are not
        spread over the positions, or the images that were given are turned in place."""
        plain = self.data()
        data = plain.turned()
        assert data.classes == ("cat", "dog")
        assert data.subclasses[:5] == (
            *("cat, turned 0", "cat, turned 90", "cat, turned 180", "cat, turned 270"),
            "dog, turned 0",
        )
        assert data.train.labels.tolist() == plain.train.labels.tolist()
        assert data.train.subclasses.tolist() == [0, 4, 1, 2, 5, 3, 0, 6, 7]
        bright = [tuple(p[..., 0].nonzero()[0].tolist()) for p in data.train.pixels]
        # To the left: the top left corner goes to the bottom left one.
        corners = {0: (0, 0), 1: (1, 0), 2: (1, 1), 3: (0, 1)}
        assert bright == [corners[k % 4] for k in data.train.subclasses.tolist()]
        assert data.train.pixels.sum(dim=(1, 2, 3)).tolist() == list(range(1, 10))
        assert data.test.subclasses.tolist() == [4, 5]
        assert plain.train.pixels[:, 0, 0, 0].tolist() == list(range(1, 10))

    def test_what_was_held_out_is_turned_too(self) -> None:
        data = self.data().hold_out(1).turned()
        assert data.validation.subclasses.tolist() == [0, 4]
        assert len(data.train) == 7

    def test_sub_classes_are_not_turned_again(self) -> None:
        with pytest.raises(ValueError, match="have sub-classes already"):
            self.data().turned().turned()


class TestHoldOut:
    def data(self) -> ImageData:
        """Eight images, whose only pixel says where they stood; three classes of two or more."""
        labels = torch.tensor([2, 0, 1, 2, 0, 1, 1, 2])
        pixels = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1)
        images = ImageSet(pixels, labels, labels, (0.0,), (1.0,))
        names = ("cat", "rose", "dog")
        return ImageData(images, images.subset(torch.tensor([1, 2])), names, names)

    def test_the_last_of_each_class_go(self) -> None:
        """Fails if the first ones go, or the last ones of the whole set (all of one class)."""
        whole = self.data()
        data = whole.hold_out(1)
        assert data.validation.pixels.flatten().tolist() == [4, 6, 7]
        assert data.validation.labels.tolist() == [0, 1, 2]
        assert data.train.pixels.flatten().tolist() == [0, 1, 2, 3, 5]
        assert data.train.labels.tolist() == [2, 0, 1, 2, 1]
        assert data.test is whole.test
        assert (data.classes, data.sources) == (whole.classes, whole.sources)

    def test_positions_in_the_training_set_count_from_0(self) -> None:
        """Fails if they are those of the set that was cut: `forget_indices` would miss."""
        data = self.data().hold_out(1)
        assert data.train.index.tolist() == [0, 1, 2, 3, 4]
        assert data.train.subset(torch.tensor([4])).index.tolist() == [4]

    def test_none_leaves_everything(self) -> None:
        data = self.data()
        assert data.hold_out(None) is data
        assert data.validation is None

    @pytest.mark.parametrize("n", [0, -1, 2, 3])
    def test_a_class_keeps_an_image_on_either_side(self, n: int) -> None:
        message = f"cannot hold out {n} of the 2 training images of a class"
        with pytest.raises(ValueError, match=message):
            self.data().hold_out(n)

    def test_a_class_without_images_has_none_to_hold_out(self) -> None:
        data = replace(self.data(), classes=("cat", "rose", "dog", "ghost"))
        with pytest.raises(ValueError, match="cannot hold out 1 of the 0 training images"):
            data.hold_out(1)

    def test_superclasses_hold_for_what_was_held_out_too(self) -> None:
        """Fails if it keeps the fine labels: validation would be of another task."""
        groups = {"plants": ("rose",), "animals": ("dog", "cat")}
        coarse = self.data().hold_out(1).superclassed(groups)
        assert coarse.validation.labels.tolist() == [1, 0, 1]
        assert coarse.validation.subclasses.tolist() == [0, 1, 2]
        assert coarse.validation.pixels.flatten().tolist() == [4, 6, 7]
        assert self.data().superclassed(groups).validation is None


class TestDigits:
    def test_all_1797_real_digits_with_their_values(self) -> None:
        from sklearn.datasets import load_digits

        raw, data = load_digits(), digits()
        assert len(data.train) + len(data.test) == 1797
        assert data.classes == tuple("0123456789")
        x, y = data.train[0]
        torch.testing.assert_close(
            x[0], torch.from_numpy(raw.images[0] / 16 * 2 - 1).float(), atol=4 / 255, rtol=0
        )
        assert y == raw.target[0]
        assert everything(data.train)[0].amax() == 1
        assert everything(data.train)[0].amin() == -1

    def test_later_writers_are_the_test_set(self) -> None:
        from sklearn.datasets import load_digits

        target, data = load_digits().target, digits(test_fraction=0.25)
        for label in range(10):
            count = int((target == label).sum())
            assert (data.train.labels == label).sum() == round(0.75 * count)
            assert (data.test.labels == label).sum() == count - round(0.75 * count)
        zeros = np.flatnonzero(target == 0)
        last = data.test.pixels[data.test.labels == 0][-1, ..., 0]
        expected = (load_digits().images[zeros[-1]] * 255 / 16).round()
        assert np.array_equal(last.numpy(), expected)

    def test_it_is_embedded(self) -> None:
        (source,) = digits().sources
        assert (source.kind, source.path) == ("embedded", None)


class TestShapes:
    def test_the_same_seed_draws_the_same_pixels(self) -> None:
        a, b, c = (shapes(2, 1, fills=1, seed=s) for s in (0, 0, 1))
        assert torch.equal(a.train.pixels, b.train.pixels)
        assert torch.equal(a.test.pixels, b.test.pixels)
        assert a.sources == b.sources
        assert not torch.equal(a.train.pixels, c.train.pixels)
        assert a.sources[0].sha256 != c.sources[0].sha256

    def test_nothing_global_is_drawn_from(self) -> None:
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        shapes(1, 1, fills=1)
        assert torch.equal(before[0], torch.get_rng_state())
        assert np.array_equal(before[1], np.random.get_state()[1])

    def test_every_class_has_as_many_images_as_asked_for(self) -> None:
        data = shapes(per_class=3, test_per_class=2, fills=4, size=12)
        assert len(data.classes) == len(set(data.classes)) == 40
        assert data.train.labels.bincount().tolist() == [3] * 40
        assert data.test.labels.bincount().tolist() == [2] * 40
        assert data.train.pixels.shape == (120, 12, 12, 1)
        assert data.train.pixels.dtype == torch.uint8

    def test_coarse_has_the_shapes_as_classes_and_the_fills_within(self) -> None:
        data, fine = (shapes(2, 1, fills=2, coarse=c) for c in (True, False))
        assert len(data.classes) == 10
        assert data.subclasses == fine.classes
        assert data.train.subclasses.unique().tolist() == list(range(20))
        for label, subclass in zip(data.train.labels, data.train.subclasses, strict=True):
            assert data.subclasses[subclass].split()[1] == data.classes[label]
        assert torch.equal(data.train.pixels, fine.train.pixels)

    def test_the_classes_can_be_told_apart(self) -> None:
        """Fails if two classes are drawn alike: nearest mean must beat chance by far."""
        data = shapes(per_class=20, test_per_class=5, fills=1)
        x, y = everything(data.train)
        means = torch.stack([x[y == c].mean(0).flatten() for c in range(10)])
        test_x, test_y = everything(data.test)
        right = torch.cdist(test_x.flatten(1), means).argmin(1) == test_y
        assert right.float().mean() > 0.4

    def test_held_out_images_are_the_last_of_each_class(self) -> None:
        """Fails if holding out draws other images, or draws more of them."""
        options = {"per_class": 5, "test_per_class": 2, "fills": 1, "size": 8}
        whole, data = shapes(**options), shapes(**options, validation_per_class=2)
        by_class = whole.train.pixels.view(10, 5, 8, 8)
        assert torch.equal(data.train.pixels.view(10, 3, 8, 8), by_class[:, :3])
        assert torch.equal(data.validation.pixels.view(10, 2, 8, 8), by_class[:, 3:])
        assert torch.equal(data.test.pixels, whole.test.pixels)
        assert data.sources == whole.sources
        assert data.train.index.tolist() == list(range(30))

    def test_of_a_superclass_the_last_of_each_fill_are_held_out(self) -> None:
        data = shapes(4, 1, fills=2, size=8, coarse=True, validation_per_class=1)
        assert data.validation.subclasses.tolist() == list(range(20))
        assert data.validation.labels.tolist() == [n // 2 for n in range(20)]
        assert data.train.subclasses.bincount().tolist() == [3] * 20

    @pytest.mark.parametrize("fills", [0, 5])
    def test_the_number_of_fills_is_checked(self, fills: int) -> None:
        with pytest.raises(ValueError, match=r"fills must lie in 1\.\.4"):
            shapes(fills=fills)


class TestCifar10:
    def test_pixels_labels_and_names(self, hub: Path) -> None:
        labels = [*range(10), *range(10)]
        pixels = write_cifar10(hub, labels, range(10))
        data = cifar10()
        assert data.classes == data.subclasses == CIFAR10
        assert (len(data.train), len(data.test)) == (20, 10)
        x, y = data.train[7]
        expected = (pixels[7] / 255 - np.array(CIFAR_MEAN)) / np.array(CIFAR_STD)
        torch.testing.assert_close(x, torch.from_numpy(expected).permute(2, 0, 1).float())
        assert y == 7
        assert data.train.labels.tolist() == labels
        assert (data.sources[0].id, data.sources[0].kind) == ("uoft-cs/cifar10", "hub-folder")

    def test_per_class_takes_the_first_of_each_class(self, hub: Path) -> None:
        labels = [9, 9, 9, *range(9), *range(9)]
        pixels = write_cifar10(hub, labels, [*range(10), *range(10)])
        data = cifar10(per_class=2, test_per_class=1)
        assert data.train.labels.bincount().tolist() == [2] * 10
        assert data.test.labels.bincount().tolist() == [1] * 10
        nines = data.train.pixels[data.train.labels == 9]
        assert torch.equal(nines, torch.from_numpy(pixels[:2]))
        threes = data.train.pixels[data.train.labels == 3]
        assert torch.equal(threes, torch.from_numpy(pixels[[6, 15]]))

    def test_the_last_of_the_kept_are_held_out(self, hub: Path) -> None:
        """Fails if they are taken from beyond ``per_class``, or stay in the training set."""
        pixels = write_cifar10(hub, [*range(10)] * 4, range(10))
        data = cifar10(per_class=3, validation_per_class=1)
        assert torch.equal(data.validation.pixels, torch.from_numpy(pixels[20:30]))
        assert data.validation.labels.tolist() == list(range(10))
        kept = [p for label in range(10) for p in (label, 10 + label)]
        assert torch.equal(data.train.pixels, torch.from_numpy(pixels[kept]))
        assert (data.validation.mean, data.validation.std) == (CIFAR_MEAN, CIFAR_STD)
        assert cifar10(per_class=3).validation is None

    def test_more_than_there_are_is_an_error(self, hub: Path) -> None:
        write_cifar10(hub, [*range(10), 0], range(10))
        with pytest.raises(ValueError, match=r"2 examples a class .* the smallest has 1"):
            cifar10(per_class=2)

    def test_parts_are_read_in_order(self, hub: Path) -> None:
        write_cifar10(hub, range(10), range(10))
        first = hub / "uoft-cs/cifar10/plain_text/train-00000-of-00001.parquet"
        first = first.rename(first.with_name("train-00000-of-00002.parquet"))
        second = first.with_name("train-00001-of-00002.parquet")
        more = colours(10, seed=5)
        write_parquet(second, more, range(10), CIFAR10, "img", "label")
        data = cifar10()
        assert len(data.train) == 20
        assert torch.equal(data.train.pixels[10:], torch.from_numpy(more))

    def test_two_copies_of_a_split_are_not_one_set(self, hub: Path) -> None:
        """Fails where images are there twice: a forget set drawn from them would be retained, too."""
        write_cifar10(hub, range(10), range(10))
        file = hub / "uoft-cs/cifar10/plain_text/train-00000-of-00001.parquet"
        (file.parents[1] / file.name).write_bytes(file.read_bytes())
        with pytest.raises(ValueError, match=rf"plain_text/{file.name} and {file.name} belong to"):
            cifar10()

    def test_an_image_that_cannot_be_decoded_is_named_by_its_row(self, hub: Path) -> None:
        write_cifar10(hub, range(10), range(10))
        file = hub / "uoft-cs/cifar10/plain_text/test-00000-of-00001.parquet"
        table = pq.read_table(file).to_pydict()
        table["img"][3]["bytes"] = b"no image"
        schema = pq.read_schema(file)
        pq.write_table(pa.table(table, schema), file)
        with pytest.raises(ValueError, match="uoft-cs/cifar10: row 3 of test is no image"):
            cifar10()

    def test_a_missing_split_is_named(self, hub: Path) -> None:
        write_cifar10(hub, range(10), range(10))
        (hub / "uoft-cs/cifar10/plain_text/test-00000-of-00001.parquet").unlink()
        with pytest.raises(MissingSourceError, match=r"no file test-\*\.parquet"):
            cifar10()

    def test_a_missing_column_is_named(self, hub: Path) -> None:
        write_cifar10(hub, range(10), range(10))
        file = hub / "uoft-cs/cifar10/plain_text/train-00000-of-00001.parquet"
        write_parquet(file, colours(10), range(10), CIFAR10, "img", "coarse")
        with pytest.raises(MissingSourceError, match=r"no column \['label'\] in train"):
            cifar10()


class TestCifar100:
    def write(self, hub: Path) -> np.ndarray:
        pixels = colours(100)
        for stem in ("train", "test"):
            file = hub / f"uoft-cs/cifar100/cifar100/{stem}-00000-of-00001.parquet"
            write_parquet(file, pixels, range(100), CIFAR100, "img", "fine_label")
        return pixels

    def test_fine_labels(self, hub: Path) -> None:
        pixels = self.write(hub)
        data = cifar100(per_class=1)
        assert data.classes == CIFAR100
        assert data.train.labels.tolist() == list(range(100))
        assert torch.equal(data.train.pixels, torch.from_numpy(pixels))

    def test_coarse_labels_follow_the_superclass_map(self, hub: Path) -> None:
        self.write(hub)
        data = cifar100(coarse=True)
        assert data.classes == tuple(CIFAR20)
        assert data.subclasses == CIFAR100
        assert data.train.labels.bincount().tolist() == [5] * 20
        for name in ("rocket", "baby", "trout"):
            label = data.train.labels[CIFAR100.index(name)]
            assert name in CIFAR20[data.classes[label]]

    def test_the_hub_s_misspelt_class_is_a_crab(self, hub: Path) -> None:
        """Fails if class 26 keeps the hub's name, "cra": it would be in no superclass."""
        names = [*CIFAR100[:26], "cra", *CIFAR100[27:]]
        for stem in ("train", "test"):
            file = hub / f"uoft-cs/cifar100/cifar100/{stem}-00000-of-00001.parquet"
            write_parquet(file, colours(100), range(100), names, "img", "fine_label")
        data = cifar100(coarse=True)
        assert data.subclasses == CIFAR100
        assert data.subclasses[26] == "crab"

    def test_the_map_has_20_superclasses_of_5_distinct_classes(self) -> None:
        assert len(CIFAR20) == 20
        assert {len(names) for names in CIFAR20.values()} == {5}
        assert len(set(CIFAR100)) == 100

    def test_the_map_is_in_the_order_of_the_coarse_labels(self) -> None:
        """Fails if a superclass moves: CIFAR-100 numbers them in alphabetical order."""
        plain = [name.replace("-", "_") for name in CIFAR20]
        assert plain == sorted(plain)
        assert {"rocket", "tank"} <= set(CIFAR20["vehicles_2"])


class TestFashionMnist:
    def test_idx_files(self, hub: Path) -> None:
        labels = [*range(10), 3]
        pixels = write_fashion(hub, labels, range(10))
        data = fashion_mnist()
        assert data.classes == FASHION_CLASSES
        assert data.train.labels.tolist() == labels
        x, y = data.train[10]
        expected = (pixels[10] / 255 - 0.2860) / 0.3530
        torch.testing.assert_close(x, torch.from_numpy(expected)[None].float())
        assert y == 3

    def test_per_class(self, hub: Path) -> None:
        pixels = write_fashion(hub, [*range(10), *range(10)], range(10))
        data = fashion_mnist(per_class=1)
        assert torch.equal(data.train.pixels[..., 0], torch.from_numpy(pixels[:10]))
        data = fashion_mnist(validation_per_class=1)
        assert torch.equal(data.validation.pixels[..., 0], torch.from_numpy(pixels[10:]))

    def test_parquet_files(self, hub: Path) -> None:
        grey = colours(10, 28)[..., 0]
        for stem in ("train", "test"):
            file = (
                hub / f"zalando-datasets/fashion_mnist/fashion_mnist/{stem}-00000-of-00001.parquet"
            )
            write_parquet(file, grey, range(10), FASHION_CLASSES, "image", "label")
        data = fashion_mnist()
        assert torch.equal(data.train.pixels[..., 0], torch.from_numpy(grey))
        assert data.train.labels.tolist() == list(range(10))


class TestFashionCifar:
    def test_both_halves_in_32_pixels_and_three_channels(self, hub: Path) -> None:
        grey = write_fashion(hub, range(10), range(10))
        colour = write_cifar10(hub, range(10), range(10))
        data = fashion_cifar()
        assert data.classes == FASHION_CLASSES + CIFAR10
        assert data.train.labels.tolist() == list(range(20))
        pixels = data.train.pixels
        assert pixels.shape == (20, 32, 32, 3)
        for channel in range(3):
            assert np.array_equal(pixels[:10, 2:30, 2:30, channel].numpy(), grey)
        assert pixels[:10, :2].sum() == pixels[:10, :, 30:].sum() == 0
        assert np.array_equal(pixels[10:].numpy(), colour)
        assert (data.train.mean, data.train.std) == (CIFAR_MEAN, CIFAR_STD)
        assert [s.id for s in data.sources] == ["zalando-datasets/fashion_mnist", "uoft-cs/cifar10"]

    def test_coarse_pairs_every_class_once(self, hub: Path) -> None:
        write_fashion(hub, range(10), range(10))
        write_cifar10(hub, range(10), range(10))
        data = fashion_cifar(coarse=True)
        assert data.classes == tuple(FASHION_CIFAR_GROUPS)
        assert data.train.labels.bincount().tolist() == [2] * 10
        assert data.train.subclasses.tolist() == list(range(20))
        assert data.classes[data.train.labels[data.subclasses.index("dog")]] == "pets"

    def test_per_class_holds_for_both(self, hub: Path) -> None:
        write_fashion(hub, [*range(10)] * 3, [*range(10)] * 2)
        write_cifar10(hub, [*range(10)] * 3, [*range(10)] * 2)
        data = fashion_cifar(per_class=2, test_per_class=1)
        assert data.train.labels.bincount().tolist() == [2] * 20
        assert data.test.labels.bincount().tolist() == [1] * 20


class TestImageFolder:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Two classes of 10 and 5 flat images whose red value numbers them."""
        for label, (name, n) in enumerate((("ann", 10), ("bob", 5))):
            (tmp_path / "faces" / name).mkdir(parents=True)
            for i in range(n):
                pixels = np.full((6, 9, 3), (10 * i, 100 * label, 255), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "faces" / name / f"{i}.png")
        return tmp_path / "faces"

    def test_the_two_sides_are_disjoint_complete_and_a_share_of_each_class(
        self, folder: Path
    ) -> None:
        data = image_folder(str(folder), size=4, test_fraction=0.2)
        assert data.classes == ("ann", "bob")
        assert data.train.labels.bincount().tolist() == [8, 4]
        assert data.test.labels.bincount().tolist() == [2, 1]
        files = [*data.train.pixels.files, *data.test.pixels.files]
        assert len(set(files)) == 15

    def test_pixels_are_resized_and_normalised(self, folder: Path) -> None:
        data = image_folder(str(folder), size=4)
        for i in (0, len(data.train) - 1):
            x, y = data.train[i]
            number = int(Path(data.train.pixels.files[i]).stem)
            raw = np.array([10 * number, 100 * int(y), 255]) / 255
            expected = (raw - np.array(CIFAR_MEAN)) / np.array(CIFAR_STD)
            assert x.shape == (3, 4, 4)
            torch.testing.assert_close(x[:, 2, 2], torch.from_numpy(expected).float())

    def test_grey_images_become_rgb(self, folder: Path) -> None:
        for file in (folder / "ann").glob("*.png"):
            Image.fromarray(np.full((3, 3), 80, np.uint8)).save(file)
        data = image_folder(str(folder), size=3)
        assert data.train.pixels[torch.tensor([0])].eq(80).all()
        assert data.train[0][0].shape == (3, 3, 3)

    def test_per_class_comes_before_the_cut(self, folder: Path) -> None:
        data = image_folder(str(folder), per_class=5, test_fraction=0.4)
        assert data.train.labels.bincount().tolist() == [3, 3]
        assert data.test.labels.bincount().tolist() == [2, 2]

    def test_subset_and_sum(self, folder: Path) -> None:
        train = image_folder(str(folder), size=4).train
        parts = train.subset(torch.tensor([3, 1])) + train.subset(torch.tensor([0]))
        assert torch.equal(everything(parts)[0], train.batch_of([3, 1, 0])[0])
        assert parts.index.tolist() == [3, 1, 0]

    def test_no_image_gives_an_empty_batch(self, folder: Path) -> None:
        """Fails if decoding stacks an empty list: UNSIR's batches may hold noise only."""
        pixels = image_folder(str(folder), size=4).train.pixels
        assert pixels[torch.tensor([], dtype=torch.long)].shape == (0, 4, 4, 3)

    def test_the_source_names_no_path(self, folder: Path) -> None:
        (source,) = image_folder(str(folder)).sources
        assert source.record() == {"id": "faces", "kind": "user", "sha256": source.sha256}

    def test_the_source_changes_with_the_content(self, folder: Path) -> None:
        before = image_folder(str(folder)).sources[0].sha256
        Image.fromarray(np.zeros((6, 9, 3), np.uint8)).save(folder / "ann" / "4.png")
        assert image_folder(str(folder)).sources[0].sha256 != before

    def test_an_image_that_cannot_be_decoded_is_named(self, folder: Path) -> None:
        (folder / "ann" / "3.png").write_bytes(b"no image")
        data = image_folder(str(folder), test_fraction=0.0)
        with pytest.raises(ValueError, match=r"3\.png in ann is no image"):
            everything(data.train)

    def parts(self, folder: Path, *names: str) -> Path:
        """The first two images of each class in ``train``, one more in each other part."""
        root = folder.parent / "parts"
        for i, name in enumerate(("train", "train", *names)):
            for label in ("ann", "bob"):
                (root / name / label).mkdir(parents=True, exist_ok=True)
                (folder / label / f"{i}.png").rename(root / name / label / f"{i}.png")
        return root

    @pytest.mark.parametrize(
        ("names", "test", "validation"),
        [
            (["val"], ["2", "2"], None),
            (["test"], ["2", "2"], None),
            (["validation", "Test"], ["3", "3"], ["2", "2"]),
        ],
    )
    def test_the_usual_layout_is_known(
        self, folder: Path, names: list[str], test: list[str], validation: list[str] | None
    ) -> None:
        """Fails where the classes are called "train" and "val"."""
        data = image_folder(str(self.parts(folder, *names)))
        assert data.classes == ("ann", "bob")
        assert [Path(f).stem for f in data.train.pixels.files] == ["0", "1", "0", "1"]
        assert data.train.labels.tolist() == [0, 0, 1, 1]
        assert [Path(f).stem for f in data.test.pixels.files] == test
        assert data.test.labels.tolist() == [0, 1]
        held = data.validation and [Path(f).stem for f in data.validation.pixels.files]
        assert held == validation
        assert data.train.index.tolist() == [0, 1, 2, 3]

    def test_a_layout_that_does_not_fit_is_refused(self, folder: Path) -> None:
        root = self.parts(folder, "val", "validation")
        with pytest.raises(ValueError, match="val and validation of 'parts' are both validation"):
            image_folder(str(root))
        (root / "validation").rename(folder.parent / "away")
        with pytest.raises(ValueError, match="test images of its own: give no test_fraction"):
            image_folder(str(root), test_fraction=0.3)
        (root / "val" / "bob").rename(root / "val" / "eve")
        with pytest.raises(ValueError, match="the class 'eve' is in test of 'parts', not in train"):
            image_folder(str(root))

    def test_a_class_may_be_called_train(self, folder: Path) -> None:
        (folder / "bob").rename(folder / "train")
        assert image_folder(str(folder)).classes == ("ann", "train")

    def test_no_image_at_all(self, tmp_path: Path) -> None:
        (tmp_path / "ann").mkdir()
        with pytest.raises(MissingSourceError, match="has no image in a folder of a class"):
            image_folder(str(tmp_path))

    def test_the_path_may_name_a_variable(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FACES", str(folder.parent))
        assert len(image_folder("$FACES/faces").train) == 12

    def test_a_missing_folder_is_named_without_its_path(self, tmp_path: Path) -> None:
        with pytest.raises(MissingSourceError, match="'nowhere' is no folder") as caught:
            image_folder(str(tmp_path / "nowhere"))
        assert str(tmp_path) not in str(caught.value)


def test_every_loader_is_in_the_table() -> None:
    loaders = (digits, shapes, fashion_mnist, cifar10, cifar100, fashion_cifar, image_folder)
    assert {f.__name__: f for f in loaders} == DATASETS
