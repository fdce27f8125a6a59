"""Image data sets: real ones from the three places, and two that need nothing at all."""

from __future__ import annotations

import functools
import gzip
import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..seeding import generator
from .checks import check_numbers
from .image_files import decoded
from .registered import table_of
from .sources import MissingSourceError, Source, file_sha256, resolve
from .tables import images_by_class, parts, read

if TYPE_CHECKING:
    from .labelled import Labelled

__all__ = [
    "DATASETS",
    "ImageData",
    "ImageSet",
    "cifar10",
    "cifar100",
    "digits",
    "fashion_cifar",
    "fashion_mnist",
    "image_folder",
    "shapes",
]

Batch = tuple[Tensor, Tensor]


class FolderPixels:
    """Pixels of image files, decoded when a batch asks for them: RGB, stretched to a square."""

    def __init__(self, files: Sequence[Path], size: int) -> None:
        self.files, self.size = np.array([str(f) for f in files]), size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Tensor) -> Tensor:
        images = np.empty((len(index), self.size, self.size, 3), np.uint8)
        for row, file in enumerate(self.files[index.numpy()]):
            images[row] = np.asarray(decoded(Path(file)).resize((self.size, self.size)))
        return torch.from_numpy(images)

    def select(self, index: Tensor) -> FolderPixels:
        return FolderPixels([Path(f) for f in self.files[index.numpy()]], self.size)


def check_pixels(pixels: Any) -> None:
    """Hold pixels to (N, H, W, C) uint8.

    Raises
    ------
    TypeError
        They are no tensor, or of another dtype.
    ValueError
        Another shape, or channels that come first.
    """
    if not isinstance(pixels, Tensor):
        kind = type(pixels).__name__
        raise TypeError(f"pixels must be a tensor, not of type {kind}: make one by torch.tensor")
    if pixels.dtype != torch.uint8:
        raise TypeError(
            f"pixels must be uint8, from 0 to 255, not {pixels.dtype}: those from 0 to 1 become so by "
            "(255 * pixels).round().to(torch.uint8)"
        )
    if pixels.ndim != 4:
        raise ValueError(f"pixels must have the shape (N, H, W, C), not {tuple(pixels.shape)}")
    if pixels.shape[1] <= 4 < pixels.shape[3]:
        raise ValueError(
            f"pixels must have the shape (N, H, W, C): with {tuple(pixels.shape)} channels seem to come "
            "first, and become last by pixels.permute(0, 2, 3, 1)"
        )


@dataclass(frozen=True)
class ImageSet(Dataset):
    """A labelled set of images, each of which comes normalised and with its label.

    Parameters
    ----------
    pixels : (N, H, W, C) uint8; channels last is the layout in which convolutions run fastest
    labels : (N,) int64, the classes that the classifier learns
    subclasses : (N,) int64, a finer labelling (equal to ``labels`` where there is none)
    index : (N,) int64, each image's position in the set that this one was cut from
    mean, std : per channel, in units of [0, 1] pixel values
    augment : names of the random operations applied to each image ("crop", "flip", "rotate")
    draw : what they draw for an image is a matter of this seed and of its position in the set alone,
        whoever loads it and in which order: another pass over the images needs another seed

    Raises
    ------
    TypeError
        Pixels that are not uint8, or numbers that are not int64.
    ValueError
        Other shapes, a negative number, a mean or a deviation that makes no sense, or an unknown
        operation.
    """

    pixels: Tensor | FolderPixels
    labels: Tensor
    subclasses: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    index: Tensor = None  # type: ignore[assignment]
    augment: tuple[str, ...] = ()
    draw: int = 0

    def __post_init__(self) -> None:
        n = len(self.labels)
        if self.index is None:
            object.__setattr__(self, "index", torch.arange(n))
        if not n == len(self.pixels) == len(self.subclasses) == len(self.index):
            raise ValueError("pixels, labels, subclasses and index must have the same length")
        for name in ("labels", "subclasses", "index"):
            check_numbers(getattr(self, name), f"the {name} of images")
        if not isinstance(self.pixels, FolderPixels):
            check_pixels(self.pixels)
        channels = self.image_shape[-1]
        if not len(self.mean) == len(self.std) in (1, channels):
            raise ValueError(
                f"mean and std have {len(self.mean)} and {len(self.std)} values: one for each of "
                f"{channels} channels, or one for all"
            )
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise ValueError(
                "mean must be finite and std positive, in units of [0, 1] pixel values, not "
                f"{self.mean} and {self.std}"
            )
        unknown = set(self.augment) - set(AUGMENTATIONS)
        if unknown:
            raise ValueError(f"unknown augmentation {sorted(unknown)}; known: {[*AUGMENTATIONS]}")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        if isinstance(self.pixels, FolderPixels):
            return self.pixels.size, self.pixels.size, 3
        return tuple(self.pixels.shape[1:])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> Batch:
        x, y = self.batch_of([i])
        return x[0], y[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Batch]:
        """These images, one by one, for a loader that collates them."""
        return list(zip(*self.batch_of(indices), strict=True))

    def batch_of(self, indices: Sequence[int]) -> Batch:
        """A whole batch at once: ``x`` (B, C, H, W) float32, normalised; ``y`` (B,) int64."""
        index = torch.as_tensor(indices)
        x = self.pixels[index]
        if len(x):
            for name, drawn in zip(self.augment, self._draws, strict=True):
                x = AUGMENTATIONS[name](x, drawn[index])
        x = x.permute(0, 3, 1, 2)
        shape = (1, -1, 1, 1)
        x = (x.float() / 255 - torch.tensor(self.mean).view(shape)) / torch.tensor(self.std).view(
            shape
        )
        return x.contiguous(memory_format=torch.channels_last), self.labels[index]

    @functools.cached_property
    def _draws(self) -> Tensor:
        """For every operation and image two numbers from [0, 1): (operations, N, 2)."""
        g = generator(self.draw, "augment")
        return torch.rand(len(self.augment), len(self), 2, generator=g, dtype=torch.float64)

    def subset(self, positions: Tensor) -> ImageSet:
        """The images at these positions, in that order."""
        pixels = self.pixels
        return replace(
            self,
            pixels=pixels.select(positions)
            if isinstance(pixels, FolderPixels)
            else pixels[positions],
            labels=self.labels[positions],
            subclasses=self.subclasses[positions],
            index=self.index[positions],
        )

    def with_labels(self, labels: Tensor, subclasses: Tensor | None = None) -> ImageSet:
        """The same images under other labels (N,); without ``subclasses``, the old ones."""
        fine = self.subclasses if subclasses is None else subclasses
        return replace(self, labels=labels, subclasses=fine)

    def augmented(self, names: tuple[str, ...], draw: int = 0) -> ImageSet:
        """The same images under these operations, as the seed ``draw`` has them."""
        return replace(self, augment=tuple(names), draw=draw)

    def __add__(self, other: ImageSet) -> ImageSet:
        """This set followed by ``other``, which was cut from the same one."""
        if isinstance(self.pixels, FolderPixels):
            pixels = FolderPixels([*self.pixels.files, *other.pixels.files], self.pixels.size)
        else:
            pixels = torch.cat([self.pixels, other.pixels])
        return replace(
            self,
            pixels=pixels,
            labels=torch.cat([self.labels, other.labels]),
            subclasses=torch.cat([self.subclasses, other.subclasses]),
            index=torch.cat([self.index, other.index]),
        )

    def fingerprint(self) -> str:
        """SHA-256 of everything a model can see of this set, order included."""
        digest = hashlib.sha256(repr((self.mean, self.std, self.augment)).encode())
        if self.augment:
            digest.update(str(self.draw).encode())
        if isinstance(self.pixels, FolderPixels):
            files = [Path(f) for f in self.pixels.files]
            for file in files:
                digest.update(f"{file.parent.name}/{file.name}\0".encode())
                digest.update(hashlib.sha256(file.read_bytes()).digest())
            digest.update(str(self.pixels.size).encode())
        else:
            digest.update(repr(tuple(self.pixels.shape)).encode())
            digest.update(self.pixels.contiguous().numpy())
        for labels in (self.labels, self.subclasses):
            digest.update(labels.contiguous().numpy())
        return digest.hexdigest()


# Operations on (B, H, W, C) images, each by two numbers an image from [0, 1), (B, 2); as in the SSD
# authors' src/datasets.py: padding of 4, rotation of up to 15 degrees.


def _crop(x: Tensor, drawn: Tensor) -> Tensor:
    """Moved by up to four pixels each way, over black."""
    n, height, width, channels = x.shape
    padded = torch.nn.functional.pad(x, (0, 0, 4, 4, 4, 4))
    image = torch.arange(n).view(n, 1, 1) * (height + 8)
    top, left = (drawn * 9).long().view(n, 2, 1, 1).unbind(dim=1)
    rows = image + top + torch.arange(height).view(1, -1, 1)
    # Whole pixels from one long row of them: three times as fast as by three indices.
    at = rows * (width + 8) + left + torch.arange(width)
    return padded.view(-1, channels).index_select(0, at.flatten()).view(x.shape)


def _flip(x: Tensor, drawn: Tensor) -> Tensor:
    """Half of them the other way round."""
    return torch.where((drawn[:, 0] < 0.5).view(-1, 1, 1, 1), x.flip(2), x)


def _rotate(x: Tensor, drawn: Tensor) -> Tensor:
    """Turned by up to 15 degrees about the middle, over black; the nearest pixels, as float32."""
    n, height, width, channels = x.shape
    angle = torch.deg2rad(30 * drawn[:, 0] - 15)
    cos, sin, none = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # From pixels of the outcome to those of the image, in units of half its sides.
    there = torch.stack(
        [cos, -sin * height / width, none, sin * width / height, cos, none], dim=1
    ).view(n, 2, 3)
    grid = torch.nn.functional.affine_grid(
        there.float(), [n, channels, height, width], align_corners=False
    )
    turned = torch.nn.functional.grid_sample(
        x.permute(0, 3, 1, 2).float(), grid, mode="nearest", align_corners=False
    )
    return turned.permute(0, 2, 3, 1)


AUGMENTATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "crop": _crop,
    "flip": _flip,
    "rotate": _rotate,
}


@dataclass(frozen=True)
class ImageData:
    """A classification problem: training and test images, and what their labels are called.

    The parts are sets of images, or other data sets as `LabelledSet` has them; there may be no test set.

    Raises
    ------
    ValueError
        A label that has no name, two classes of one name, or parts that differ in the size of images
        or in how they are normalised.
    """

    train: Labelled
    test: Labelled | None
    classes: tuple[str, ...]
    subclasses: tuple[str, ...]
    sources: tuple[Source, ...] = field(default=())
    validation: Labelled | None = None

    def __post_init__(self) -> None:
        for names in (self.classes, self.subclasses):
            if twice := sorted({n for n in names if names.count(n) > 1}):
                raise ValueError(f"two classes are called {twice[0]!r}")
        for part in ("train", "test", "validation"):
            images = getattr(self, part)
            if images is None and part != "train":
                continue
            check_numbers(images.labels, f"the labels of {part}", len(self.classes))
            check_numbers(images.subclasses, f"the subclasses of {part}", len(self.subclasses))
            alike = ("image_shape", "mean", "std") if isinstance(images, ImageSet) else ("shape",)
            for name in alike if type(images) is type(self.train) else ():
                own, trained = getattr(images, name), getattr(self.train, name)
                if own != trained:
                    raise ValueError(f"{part} and train differ in {name}: {own} and {trained}")

    def hold_out(self, per_class: int | None) -> ImageData:
        """Take the last ``per_class`` training images of every class for validation (None: as is).

        They are in neither the training nor the test set: for early stopping and for choosing
        hyper-parameters.

        Raises
        ------
        ValueError
            A class has no more images than that.
        """
        if per_class is None:
            return self
        smallest = int(self.train.labels.bincount(minlength=len(self.classes)).min())
        if not 0 < per_class < smallest:
            raise ValueError(
                f"cannot hold out {per_class} of the {smallest} training images of a class"
            )
        held = torch.zeros(len(self.train), dtype=torch.bool)
        for label in range(len(self.classes)):
            held[(self.train.labels == label).nonzero()[-per_class:, 0]] = True
        # Positions count from 0 again: they are those of the training set that is left.
        train = self.train.subset((~held).nonzero()[:, 0])
        if isinstance(train, ImageSet):
            train = replace(train, index=None)
        return replace(self, train=train, validation=self.train.subset(held.nonzero()[:, 0]))

    def turned(self) -> ImageData:
        """The same images, each turned by 0, 90, 180 or 270 degrees; the old classes have the four
        positions as sub-classes. In each class every fourth image has the same one.

        Raises
        ------
        ValueError
            There are sub-classes already.
        TypeError
            The images are not held as pixels.
        """
        if self.subclasses != self.classes:
            raise ValueError("these classes have sub-classes already")
        if not isinstance(self.train, ImageSet):
            raise TypeError("images are turned that are held as pixels, as an ImageSet has them")

        def turn(images: ImageSet) -> ImageSet:
            place = torch.empty(len(images), dtype=torch.long)
            for label in range(len(self.classes)):
                members = (images.labels == label).nonzero()[:, 0]
                place[members] = torch.arange(len(members)) % 4
            pixels = images.pixels.clone()
            for quarter in range(1, 4):
                pixels[place == quarter] = pixels[place == quarter].rot90(quarter, dims=(1, 2))
            return replace(images, pixels=pixels, subclasses=4 * images.labels + place)

        return replace(
            self,
            train=turn(self.train),
            test=self.test and turn(self.test),
            validation=self.validation and turn(self.validation),
            subclasses=tuple(f"{c}, turned {90 * q}" for c in self.classes for q in range(4)),
        )

    def superclassed(self, groups: dict[str, tuple[str, ...]]) -> ImageData:
        """The same images with the classes grouped: the old classes become sub-classes.

        Raises
        ------
        ValueError
            The groups leave out a class, or hold one twice.
        """
        coarse = torch.empty(len(self.classes), dtype=torch.long)
        members = [name for group in groups.values() for name in group]
        if sorted(members) != sorted(self.classes):
            raise ValueError("the groups must hold every class exactly once")
        for label, names in enumerate(groups.values()):
            for name in names:
                coarse[self.classes.index(name)] = label

        def grouped(images: Labelled) -> Labelled:
            return images.with_labels(coarse[images.labels], images.labels)

        return replace(
            self,
            train=grouped(self.train),
            test=self.test and grouped(self.test),
            validation=self.validation and grouped(self.validation),
            classes=tuple(groups),
            subclasses=self.classes,
        )


# CIFAR-100's channel statistics: the SSD authors normalise every data set with them.
CIFAR_MEAN, CIFAR_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


def _first_per_class(labels: np.ndarray, n: int | None) -> np.ndarray:
    """Positions of the first ``n`` examples of each class, class by class (all, where None)."""
    order = np.argsort(labels, kind="stable")
    if n is None:
        return np.arange(len(labels))
    counts = np.bincount(labels)
    if counts.min() < n:
        raise ValueError(f"{n} examples a class were asked for; the smallest has {counts.min()}")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.concatenate([order[s : s + n] for s in starts])


def _image_set(
    pixels: np.ndarray,
    labels: np.ndarray,
    subclasses: np.ndarray | None = None,
    mean: tuple[float, ...] = (0.5,),
    std: tuple[float, ...] = (0.5,),
) -> ImageSet:
    y = torch.from_numpy(labels.astype(np.int64))
    fine = y if subclasses is None else torch.from_numpy(subclasses.astype(np.int64))
    return ImageSet(torch.from_numpy(np.ascontiguousarray(pixels)), y, fine, mean, std)


def digits(test_fraction: float = 0.25) -> ImageData:
    """scikit-learn's 1,797 real handwritten digits, 8x8, one channel; nothing to download.

    Every class is cut at ``1 - test_fraction``, in the file's order (later writers are the test).
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    pixels = (raw.images[..., None] * (255 / 16)).round().astype(np.uint8)
    test = np.zeros(len(raw.target), dtype=bool)
    for label in range(10):
        members = np.flatnonzero(raw.target == label)
        test[members[round(len(members) * (1 - test_fraction)) :]] = True
    names = tuple(str(d) for d in range(10))
    source = Source("scikit-learn/digits", "embedded", hashlib.sha256(pixels).hexdigest())
    return ImageData(
        _image_set(pixels[~test], raw.target[~test]),
        _image_set(pixels[test], raw.target[test]),
        names,
        names,
        (source,),
    )


_SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": lambda u, v: np.hypot(u, v) < 1,
    "ring": lambda u, v: (np.hypot(u, v) < 1) & (np.hypot(u, v) > 0.55),
    "square": lambda u, v: np.maximum(abs(u), abs(v)) < 0.85,
    "frame": lambda u, v: (np.maximum(abs(u), abs(v)) < 0.9) & (np.maximum(abs(u), abs(v)) > 0.5),
    "diamond": lambda u, v: abs(u) + abs(v) < 1.1,
    "triangle": lambda u, v: (v < 0.8) & (v > 2 * abs(u) - 1),
    "plus": lambda u, v: (np.minimum(abs(u), abs(v)) < 0.3) & (np.maximum(abs(u), abs(v)) < 1),
    "cross": lambda u, v: (abs(abs(u) - abs(v)) < 0.35) & (np.maximum(abs(u), abs(v)) < 0.95),
    "bar": lambda u, v: (abs(v) < 0.35) & (abs(u) < 1.1),
    "column": lambda u, v: (abs(u) < 0.35) & (abs(v) < 1.1),
}
_FILLS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "solid": lambda x, y: np.ones_like(x),
    "striped": lambda x, y: ((x + y) % 4 < 2) * 1.0,
    "dotted": lambda x, y: ((x % 2) * (y % 2) > 0) * 1.0,
    "hollow": lambda x, y: ((x % 4 < 2) ^ (y % 4 < 2)) * 1.0,
}


def shapes(
    per_class: int = 60,
    test_per_class: int = 20,
    fills: int = 2,
    size: int = 16,
    noise: float = 0.25,
    coarse: bool = False,
    seed: int = 0,
    validation_per_class: int | None = None,
    spread: float = 1.0,
) -> ImageData:
    """Drawn images whose classes have sub-classes: ten shapes, each in up to four fills.

    ``10 * fills`` classes ("striped ring"), or with ``coarse`` the ten shapes as classes and the
    fills as their sub-classes. Position, size and brightness vary, ``spread`` times as much as
    usual, and so does pixel noise. Of the training images of a class the last
    ``validation_per_class`` are held out.

    Raises
    ------
    ValueError
        ``fills`` is less than 1, or more than there are.
    """
    if not 1 <= fills <= len(_FILLS):
        raise ValueError(f"fills must lie in 1..{len(_FILLS)}, not {fills}")
    names = [(shape, fill) for shape in _SHAPES for fill in list(_FILLS)[:fills]]
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size].astype(float)

    def draw(shape: str, fill: str) -> np.ndarray:
        centre = size / 2 - 0.5 + spread * rng.uniform(-size / 8, size / 8, 2)
        radius = size * rng.uniform(0.4 - 0.12 * spread, 0.4)
        inside = _SHAPES[shape]((x - centre[0]) / radius, (y - centre[1]) / radius)
        brightness = _FILLS[fill](x, y) * rng.uniform(1 - 0.4 * spread, 1)
        image = inside * brightness + rng.normal(0, noise, x.shape)
        return (np.clip(image * 0.6 + 0.2, 0, 1) * 255).astype(np.uint8)[..., None]

    def make(n: int) -> ImageSet:
        pixels = np.stack([draw(*name) for name in names for _ in range(n)])
        return _image_set(pixels, np.repeat(np.arange(len(names)), n))

    classes = tuple(f"{fill} {shape}" for shape, fill in names)
    train, test = make(per_class), make(test_per_class)
    digest = hashlib.sha256(train.pixels.numpy()).hexdigest()
    data = ImageData(
        train, test, classes, classes, (Source("unlearn-core/shapes", "embedded", digest),)
    ).hold_out(validation_per_class)
    if not coarse:
        return data
    return data.superclassed({s: tuple(f"{f} {s}" for f in list(_FILLS)[:fills]) for s in _SHAPES})


def _read_idx(path: Path) -> np.ndarray:
    """An IDX file (the MNIST family's format), gzipped."""
    raw = gzip.decompress(path.read_bytes())
    dims = raw[3]
    shape = np.frombuffer(raw, ">i4", count=dims, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape)


def _labelled(
    source: Source, split: str, image: str, label: str, per_class: int | None
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Pixels (N, H, W[, C]), labels and class names of one split in the hub's parquet layout.

    Only the rows that are kept are decoded.
    """
    from datasets import Image

    rows = read("parquet", parts(source, split))
    if missing := {image, label} - set(rows.features):
        raise MissingSourceError(f"{source.id}: no column {sorted(missing)} in {split}")
    numbers = rows.select_columns([label]).with_format("numpy")
    labels = np.concatenate([batch[label] for batch in numbers.iter(1000)])
    keep = _first_per_class(labels, per_class)
    kept = np.zeros(len(labels), dtype=bool)
    kept[keep] = True
    pixels: dict[int, np.ndarray] = {}
    start = 0
    for table in rows.select_columns([image]).with_format("arrow").iter(1000):
        chosen = np.flatnonzero(kept[start : start + len(table)])
        for i, cell in zip(start + chosen, table[image].take(chosen).to_pylist(), strict=True):
            try:
                pixels[i] = np.asarray(Image().decode_example(cell))
            except Exception as error:  # decoders raise what they like at damaged bytes
                raise ValueError(f"{source.id}: row {i} of {split} is no image: {error}") from error
        start += len(table)
    return np.stack([pixels[i] for i in keep]), labels[keep], tuple(rows.features[label].names)


def _cifar(
    id: str, label: str, per_class: int | None, test_per_class: int | None
) -> tuple[Source, ImageSet, ImageSet, tuple[str, ...]]:
    source = resolve(id, repo_type="dataset", patterns=("**/*.parquet",))
    out = []
    for split, n in (("train", per_class), ("test", test_per_class)):
        pixels, labels, names = _labelled(source, split, "img", label, n)
        out.append(_image_set(pixels, labels, mean=CIFAR_MEAN, std=CIFAR_STD))
    return source, *out, names


def cifar10(
    per_class: int | None = None,
    test_per_class: int | None = None,
    validation_per_class: int | None = None,
    turned: bool = False,
) -> ImageData:
    """CIFAR-10, 32x32 RGB; ``per_class`` keeps that many images of each class.

    Of these, the last ``validation_per_class`` are held out. With ``turned`` each image is turned by
    one of four right angles, and a class in one position is a sub-class ("cat, turned 90"): forty of
    them, in ten superclasses of four.
    """
    source, train, test, names = _cifar("uoft-cs/cifar10", "label", per_class, test_per_class)
    data = ImageData(train, test, names, names, (source,)).hold_out(validation_per_class)
    return data.turned() if turned else data


# Superclasses of CIFAR-100 (Krizhevsky, 2009, section 3), in the order of their coarse labels.
CIFAR20 = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}


def cifar100(
    per_class: int | None = None, test_per_class: int | None = None, coarse: bool = False
) -> ImageData:
    """CIFAR-100; with ``coarse`` the task "CIFAR-20": its 20 superclasses, 100 sub-classes."""
    source, train, test, names = _cifar("uoft-cs/cifar100", "fine_label", per_class, test_per_class)
    names = tuple("crab" if n == "cra" else n for n in names)  # the hub misspells class 26
    data = ImageData(train, test, names, names, (source,))
    if not coarse:
        return data
    return data.superclassed(CIFAR20)


def fashion_mnist(
    per_class: int | None = None,
    test_per_class: int | None = None,
    validation_per_class: int | None = None,
) -> ImageData:
    """Fashion-MNIST, 28x28, one channel, from Debian's package or the hub; sizes as of `cifar10`."""
    source = resolve(
        "zalando-datasets/fashion_mnist",
        repo_type="dataset",
        patterns=("**/*.parquet", "*-ubyte.gz"),
    )
    out = []
    for split, idx, n in (("train", "train", per_class), ("test", "t10k", test_per_class)):
        if (source.path / f"{idx}-images-idx3-ubyte.gz").exists():
            labels = _read_idx(source.path / f"{idx}-labels-idx1-ubyte.gz")
            keep = _first_per_class(labels, n)
            pixels = _read_idx(source.path / f"{idx}-images-idx3-ubyte.gz")[keep]
            labels = labels[keep]
        else:
            pixels, labels, _ = _labelled(source, split, "image", "label", n)
        out.append(_image_set(pixels[..., None], labels, mean=(0.2860,), std=(0.3530,)))
    data = ImageData(*out, FASHION_CLASSES, FASHION_CLASSES, (source,))
    return data.hold_out(validation_per_class)


FASHION_CLASSES = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)

# Ten superclasses of two classes each: close relatives together, as CIFAR-20 does it.
FASHION_CIFAR_GROUPS = {
    "tops": ("T-shirt", "shirt"),
    "long garments": ("trouser", "dress"),
    "warm garments": ("pullover", "coat"),
    "light shoes": ("sandal", "sneaker"),
    "leather goods": ("ankle boot", "bag"),
    "road vehicles": ("automobile", "truck"),
    "craft": ("airplane", "ship"),
    "pets": ("cat", "dog"),
    "hoofed animals": ("deer", "horse"),
    "small animals": ("bird", "frog"),
}


def fashion_cifar(
    per_class: int | None = None, test_per_class: int | None = None, coarse: bool = False
) -> ImageData:
    """Fashion-MNIST and CIFAR-10 as one problem of 20 classes, 32x32 RGB.

    With ``coarse``: ten superclasses of two related classes each (`FASHION_CIFAR_GROUPS`).
    Twenty classes matter to SSD: nothing can be selected once alpha reaches ``|D| / |D_f|``.
    """
    fashion, cifar = (load(per_class, test_per_class) for load in (fashion_mnist, cifar10))

    def join(a: ImageSet, b: ImageSet) -> ImageSet:
        grown = torch.nn.functional.pad(a.pixels, (0, 0, 2, 2, 2, 2)).expand(-1, -1, -1, 3)
        labels = torch.cat([a.labels, b.labels + len(fashion.classes)])
        return ImageSet(torch.cat([grown, b.pixels]), labels, labels, CIFAR_MEAN, CIFAR_STD)

    names = fashion.classes + cifar.classes
    data = ImageData(
        join(fashion.train, cifar.train),
        join(fashion.test, cifar.test),
        names,
        names,
        fashion.sources + cifar.sources,
    )
    return data.superclassed(FASHION_CIFAR_GROUPS) if coarse else data


#: What the folders of the parts of a data set are called.
_PARTS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


def image_folder(
    path: str, size: int = 32, test_fraction: float | None = None, per_class: int | None = None
) -> ImageData:
    """A folder with one folder of images a class, for data that only its user may hold.

    A share of each class (in a seeded order) is held out as the test set. Where the folder has
    nothing but ``train`` and ``val`` (or ``validation``) or ``test``, each with a folder a class, these
    are the parts: what there is beside ``train`` is the test set, or of both ``val`` the validation set.

    Images become RGB and are stretched to a square. They are normalised by CIFAR-100's statistics
    (`CIFAR_MEAN`, `CIFAR_STD`), as the SSD authors do with every data set; for others use
    ``dataclasses.replace(data.train, mean=..., std=...)``.

    Parameters
    ----------
    path : may name environment variables (``$UNLEARN_PINS``)
    size : side of the square, in pixels
    test_fraction : of each class, 0.2 where None; not where the folder has parts
    per_class : training images of each class that are kept, the first in the order of their names,
        before the test set is cut from them

    Raises
    ------
    MissingSourceError
        It is no folder, or there is no image in it.
    ValueError
        A part is there under two names; a part has a class that ``train`` doesn't have; two classes
        are links to one folder.
    """
    root = Path(os.path.expandvars(path)).expanduser()
    if not root.is_dir():
        raise MissingSourceError(f"{root.name!r} is no folder; give one sub-folder a class")
    found = _files_by_part(root)
    names = tuple(dict.fromkeys(name for name, _ in found["train"]))
    if not names:
        raise MissingSourceError(f"{root.name!r} has no image in a folder of a class")
    for part, pairs in found.items():
        if unknown := sorted({name for name, _ in pairs} - set(names)):
            raise ValueError(
                f"the class {unknown[0]!r} is in {part} of {root.name!r}, not in train"
            )
    labels = {k: np.array([names.index(name) for name, _ in v]) for k, v in found.items()}
    keep = _first_per_class(labels["train"], per_class)
    found["train"], labels["train"] = [found["train"][i] for i in keep], labels["train"][keep]
    sets = {
        part: ImageSet(
            FolderPixels([file for _, file in pairs], size),
            *[torch.from_numpy(labels[part])] * 2,
            CIFAR_MEAN,
            CIFAR_STD,
        )
        for part, pairs in found.items()
    }
    if "test" not in sets:
        share = 0.2 if test_fraction is None else test_fraction
        test = torch.zeros(len(keep), dtype=torch.bool)
        for label in range(len(names)):
            members = (sets["train"].labels == label).nonzero()[:, 0]
            order = torch.randperm(len(members), generator=generator(0, "holdout", label))
            test[members[order[: round(len(members) * share)]]] = True
        whole = replace(sets["train"], index=None)
        sets |= {
            part: replace(whole.subset(mask.nonzero()[:, 0]), index=None)
            for part, mask in (("train", ~test), ("test", test))
        }
    elif test_fraction is not None:
        raise ValueError(f"{root.name!r} has test images of its own: give no test_fraction")
    files = [file for pairs in found.values() for _, file in pairs]
    source = Source(root.name, "user", file_sha256(files, root), root)
    return ImageData(sets["train"], sets["test"], names, names, (source,), sets.get("validation"))


def _files_by_part(root: Path) -> dict[str, list[tuple[str, Path]]]:
    """The images of "train", and of "test" and "validation" where there are any, with their classes."""
    folders = sorted(f for f in root.iterdir() if f.is_dir() and not f.name.startswith((".", "__")))
    named = [_PARTS.get(f.name.lower()) for f in folders]
    if None in named or "train" not in named:
        return {"train": images_by_class(root)}
    found: dict[str, Path] = {}
    for part, folder in zip(named, folders, strict=True):
        if part in found:
            raise ValueError(
                f"{found[part].name} and {folder.name} of {root.name!r} are both {part}"
            )
        found[part] = folder
    if "test" not in found and "validation" in found:
        found["test"] = found.pop("validation")
    return {part: images_by_class(folder) for part, folder in found.items()}


#: Problems of images, by the name in a profile's ``data``.
DATASETS = table_of(
    ImageData, digits, shapes, fashion_mnist, cifar10, cifar100, fashion_cifar, image_folder
)
