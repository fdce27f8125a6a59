"""Any data set of PyTorch's form, as the methods read it."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import numbers
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)

from ..registry import brief, did_you_mean
from ..seeding import derive_seed, generator
from .checks import check_numbers, check_texts
from .images import AUGMENTATIONS, Batch, ImageSet

__all__ = ["Labelled", "LabelledSet", "labelled"]

#: What a label is called in a sample that is a mapping.
LABELS = ("label", "labels", "target")

#: How many samples, at equal distances, must say what a list of labels says of them.
COMPARED = 32


class LabelledSet(Dataset):
    """Inputs of one shape, and the label of each, out of any data set that gives samples by number.

    That is a ``TensorDataset``, a data set of torchvision or of Hugging Face's ``datasets``, a
    ``Subset`` or a ``ConcatDataset`` of such, a list of samples or a class of one's own. A sample is a
    pair of input and label (of more than two, the rest isn't read), a mapping, or an input alone. The
    inputs are images (C, H, W), normalised as the model wants them, or anything else that is a float
    tensor: spectrograms, the rows of a table.

    A transform may draw random numbers, from the global state of torch, NumPy or Python, as augmentation
    does. While a model is trained or measured here, what is drawn for an example is a matter of a seed
    and of its position in the data set alone, another one in every epoch, and no global state
    changes. A loader of one's own draws as the data set itself does.

    Parameters
    ----------
    dataset : has a length, and a sample for each number below it
    labels : (N,) whole numbers that count from 0, or names of classes. Where None they are the data
        set's ``targets`` or ``labels``, if its samples have the same, its column of class labels, or
        what its samples say, each of which is read once for that
    classes : the names of the classes in the order of their numbers, or how many classes there are.
        Where None the names that the data set has for the labels that it has; with labels of its own
        no other names than these
    inputs : where in a sample the input is: a position, or a key. Where None the first one, and in a
        mapping "pixel_values" or whatever alone is neither a number nor a text
    transform : from what is there to the float tensor

    Attributes
    ----------
    labels : (N,) int64
    subclasses : (N,) int64, a finer labelling, where there is any; else the labels
    classes : their names; None where none are known
    index : (N,) int64, each example's position in the data set that this one was cut from
    shape : of one input

    Raises
    ------
    TypeError
        No data set that gives samples by number, inputs that are not float tensors, or labels that are
        not whole numbers.
    ValueError
        No examples; labels that are not there, of another number or shape, or out of range; other
        names than the data set's own for its own labels; no such entry in a sample.
    """

    def __init__(
        self,
        dataset: Any,
        labels: Tensor | Sequence[Any] | None = None,
        classes: Sequence[str] | int | None = None,
        *,
        inputs: str | int | None = None,
        transform: Callable[[Any], Tensor] | None = None,
    ) -> None:
        _check_samples(dataset)
        names = class_names(classes)
        own = names_of(dataset) if labels is None else None
        if own is not None and names != own and not isinstance(classes, int | None):
            raise ValueError(
                f"the data set's own numbers stand for {brief(list(own))}, and classes= names them "
                f"{brief(list(names))}: leave it out, or give your labels with your names, "
                "LabelledSet(dataset, labels, classes)"
            )
        names = own if names is None else names
        dataset, index = _cut_from(dataset)
        self.dataset, self.index = dataset, index
        self.inputs, self.transform = inputs, transform
        self.augment: tuple[str, ...] = ()
        self.draw = 0
        with _seeded_draws() as at:
            at(0)
            self.shape = self._input(int(index[0])).shape
            found = _labels(dataset, index) if labels is None else labels
        self.labels, self.classes = _numbered(found, names)
        if len(self.labels) != len(index):
            raise ValueError(f"{len(index)} examples have {len(self.labels)} labels")
        self.subclasses = self.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> Batch:
        return self._input(int(self.index[i])), self.labels[i]

    def batch_of(self, indices: Sequence[int]) -> Batch:
        """A whole batch: ``x`` (B, ...) and ``y`` (B,) int64."""
        rows = torch.as_tensor(indices, dtype=torch.long)
        at, y = self.index[rows], self.labels[rows]
        if type(self.dataset) is TensorDataset and not (self.inputs or self.transform):
            x = self.dataset.tensors[0][at].contiguous()
        else:
            own = derive_seed(self.draw, "samples")
            with _seeded_draws() as seed:
                found = []
                for row in at.tolist():
                    seed(derive_seed(own, row))
                    found.append(self._input(row))
            x = torch.stack(found) if found else torch.empty(0, *self.shape)
        if self.augment and len(x):
            x = self._augmented(x, rows)
        return x, y

    def subset(self, positions: Tensor | Sequence[int]) -> LabelledSet:
        """The examples at these positions, in that order."""
        rows = torch.as_tensor(positions, dtype=torch.long)
        return self._with(
            index=self.index[rows], labels=self.labels[rows], subclasses=self.subclasses[rows]
        )

    def with_labels(self, labels: Tensor, subclasses: Tensor | None = None) -> LabelledSet:
        """The same examples under other labels (N,); without ``subclasses``, the old ones."""
        fine = self.subclasses if subclasses is None else subclasses
        return self._with(labels=labels, subclasses=fine, classes=None)

    def augmented(self, names: tuple[str, ...], draw: int = 0) -> LabelledSet:
        """The same images under `ImageSet`'s operations, over 0, as the seed ``draw`` has them.

        Raises
        ------
        ValueError
            An unknown operation, or inputs that are no images.
        """
        if unknown := sorted(set(names) - set(AUGMENTATIONS)):
            raise ValueError(f"unknown augmentation {unknown}; known: {[*AUGMENTATIONS]}")
        if names and len(self.shape) != 3:
            raise ValueError(
                f"{' and '.join(names)} are for images (C, H, W), not for inputs of the shape "
                f"{tuple(self.shape)}: let the data set's own transform augment them"
            )
        return self._with(augment=tuple(names), draw=draw)

    def redrawn(self, draw: int) -> LabelledSet:
        """The same examples, as random transforms make them by another seed."""
        return self._with(draw=draw)

    def __add__(self, other: Labelled) -> LabelledSet:
        """This set followed by ``other``."""
        if isinstance(other, LabelledSet) and self._reads_as(other):
            both = {"index": torch.cat([self.index, other.index])}
        else:
            joined = ConcatDataset([self, other])
            both = {"index": torch.arange(len(joined)), "dataset": joined}
            both |= {"inputs": None, "transform": None, "augment": ()}
        return self._with(
            labels=torch.cat([self.labels, other.labels]),
            subclasses=torch.cat([self.subclasses, other.subclasses]),
            **both,
        )

    def shared_with(self, other: LabelledSet) -> int:
        """How many of these examples are in ``other`` too, cut from the same data set.

        Of two data sets, equal inputs count as two examples: tables have equal rows.
        """
        same = self.dataset is other.dataset
        return int(torch.isin(self.index, other.index).sum()) if same else 0

    def fingerprint(self) -> str:
        """SHA-256 of everything a model can see of this set, order included."""
        digest = hashlib.sha256(repr((self.augment, self.draw, tuple(self.shape))).encode())
        for rows in torch.arange(len(self)).split(256):
            x, y = self.batch_of(rows.tolist())
            digest.update(x.cpu().contiguous().view(torch.uint8).numpy() if x.numel() else b"")
            digest.update(y.contiguous().numpy())
        digest.update(self.subclasses.contiguous().numpy())
        return digest.hexdigest()

    def _with(self, **changes: Any) -> LabelledSet:
        other = copy.copy(self)
        vars(other).update(changes)
        return other

    def _reads_as(self, other: LabelledSet) -> bool:
        same = self.dataset is other.dataset and self.transform is other.transform
        own, others = ((s.inputs, s.augment, s.draw) for s in (self, other))
        return same and own == others

    def _input(self, row: int) -> Tensor:
        """The input of the data set's sample ``row``."""
        found = _input_of(self.dataset[row], self.inputs)
        if self.transform is not None:
            found = self.transform(found)
        if isinstance(found, np.ndarray | list):
            found = torch.as_tensor(found)
            if found.dtype == torch.float64:  # as NumPy has it where nobody chose
                found = found.to(torch.get_default_dtype())
        cure = "make them so by the data set's transform or by that of LabelledSet, such as"
        if not isinstance(found, Tensor):
            raise TypeError(
                f"the inputs are of type {type(found).__name__}, not tensors: {cure} "
                "v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]) of "
                "torchvision.transforms"
            )
        if not found.is_floating_point():
            raise TypeError(
                f"the inputs are {found.dtype}, not float: {cure} lambda x: x.float() / 255 for pixels"
            )
        if not found.ndim:
            raise ValueError(
                "an input is a single number: the models take tensors of a dimension or more"
            )
        shape = vars(self).get("shape", found.shape)
        if found.shape != shape:
            raise ValueError(
                f"input {row} has the shape {tuple(found.shape)}, the first one {tuple(shape)}: "
                "one shape is what a transform makes of them, such as v2.Resize((224, 224)) of "
                "torchvision.transforms"
            )
        return found

    def _augmented(self, x: Tensor, rows: Tensor) -> Tensor:
        g = generator(self.draw, "augment")
        drawn = torch.rand(len(self.augment), len(self), 2, generator=g, dtype=torch.float64)
        x = x.permute(0, 2, 3, 1)
        for name, own in zip(self.augment, drawn, strict=True):
            x = AUGMENTATIONS[name](x.contiguous(), own[rows])
        return x.permute(0, 3, 1, 2)


#: What a method reads: images held as pixels, or any other data set.
Labelled = ImageSet | LabelledSet


def labelled(data: Any, classes: Sequence[str] | int | None = None) -> Labelled:
    """A data set as the methods read it: itself, if it is so already.

    Raises
    ------
    TypeError, ValueError
        As of `LabelledSet`.
    """
    if isinstance(data, ImageSet | LabelledSet):
        return data
    if type(data) is Subset:
        whole, rows = _cut_from(data)
        if isinstance(whole, ImageSet | LabelledSet):
            return whole.subset(rows)
    return LabelledSet(data, classes=classes)


def _cut_from(dataset: Any) -> tuple[Any, Tensor]:
    """What a data set is a part of, and at which positions: (N,) int64."""
    rows = torch.arange(len(dataset))
    while type(dataset) is Subset:
        rows = torch.as_tensor(dataset.indices, dtype=torch.long)[rows]
        dataset = dataset.dataset
    return dataset, rows


@contextlib.contextmanager
def _seeded_draws() -> Iterator[Callable[[int], None]]:
    """A function that seeds whatever a transform draws from; all is as it was after the block."""
    states = torch.default_generator.get_state(), random.getstate(), np.random.get_state()

    def seed(value: int) -> None:
        torch.default_generator.manual_seed(value)
        random.seed(value)
        np.random.seed(value % 2**32)

    try:
        yield seed
    finally:
        torch.default_generator.set_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


def _check_samples(dataset: Any) -> None:
    kind = type(dataset).__name__
    if isinstance(dataset, DataLoader):
        raise TypeError("a DataLoader makes batches: give the data set that it loads, its .dataset")
    by_number = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if isinstance(dataset, IterableDataset) or (hasattr(dataset, "__iter__") and not by_number):
        raise TypeError(
            f"{kind} gives its samples in turn, and here they are asked for by number: give list(dataset)"
        )
    if isinstance(dataset, Mapping):
        raise TypeError(f"{kind} has several parts: give one of {', '.join(map(repr, dataset))}")
    if isinstance(dataset, tuple) and all(isinstance(d, Tensor | np.ndarray) for d in dataset):
        raise TypeError("a tuple of tensors is no data set: give TensorDataset(inputs, labels)")
    if isinstance(dataset, str) or not by_number:
        raise TypeError(
            f"{kind} is no data set: one has a length, and a sample for each number below it"
        )
    if not len(dataset):
        raise ValueError("the data set is empty")


def _labels(data: Any, rows: Tensor) -> Tensor | list[Any]:
    """The labels that a data set lists for these samples, or that the samples have."""
    if type(data) is Subset:
        return _labels(data.dataset, torch.as_tensor(data.indices, dtype=torch.long)[rows])
    if type(data) is ConcatDataset:
        found = [_labels(d, torch.arange(len(d))) for d in data.datasets]
        listed = [label for part in found for label in _listed(part)]
        return [listed[row] for row in rows.tolist()]
    if type(data) is TensorDataset and len(data.tensors) > 1:
        return data.tensors[1][rows]
    if columns := _label_columns(data):
        if len(columns) > 1:
            raise ValueError(
                f"there are several columns of labels, {' and '.join(columns)}: say which by "
                f"labels=dataset[{columns[0]!r}]"
            )
        listed = list(data.with_format(None)[columns[0]])
        return [listed[row] for row in rows.tolist()]
    some = rows[torch.linspace(0, len(rows) - 1, COMPARED).round().long().unique()].tolist()
    for name in ("targets", "labels"):
        found = getattr(data, name, None)
        if not isinstance(found, Tensor | np.ndarray | list | tuple) or len(found) != len(data):
            continue
        listed = _listed(found)
        if getattr(data, "target_transform", None) is None and all(
            _alike(listed[row], _label_of(data[row])) for row in some
        ):
            return [listed[row] for row in rows.tolist()]
    said = [_label_of(data[row]) for row in rows.tolist()]
    if any(label is None for label in said):
        raise ValueError(
            "the samples have no label that can be found: give labels, one for each example, to LabelledSet"
        )
    return said


def _listed(labels: Any) -> list[Any]:
    return labels.tolist() if isinstance(labels, Tensor | np.ndarray) else list(labels)


def class_names(classes: Sequence[str] | int | None) -> tuple[str, ...] | None:
    """The names of classes that are given by name, or by how many there are."""
    if classes is None:
        return None
    if isinstance(classes, int):
        if classes < 2:
            raise ValueError(f"there are two classes at least, not {classes}")
        return tuple(map(str, range(classes)))
    check_texts(classes, "classes")
    return tuple(classes)


def names_of(dataset: Any) -> tuple[str, ...] | None:
    """What a data set calls its classes, where it says so."""
    if type(dataset) is Subset:
        return names_of(dataset.dataset)
    if type(dataset) is ConcatDataset:
        found = {names_of(d) for d in dataset.datasets}
        if len(found) > 1:
            raise ValueError(
                f"the joined data sets have other classes, {' and '.join(map(str, found))}: their labels "
                "mean different things"
            )
        return found.pop()
    names = getattr(dataset, "classes", None)
    if columns := _label_columns(dataset):
        names = getattr(dataset.features[columns[0]], "names", None)
    if not isinstance(names, list | tuple) or not names:
        return None
    # In torchvision's ImageNet a class has several names.
    return tuple(", ".join(n) if isinstance(n, list | tuple) else str(n) for n in names)


def _label_columns(dataset: Any) -> list[str]:
    """The columns that may be labels in one of Hugging Face's data sets; none of any other."""
    features = getattr(dataset, "features", None)
    if not isinstance(features, Mapping) or not hasattr(dataset, "with_format"):
        return []
    named = [name for name, kind in features.items() if type(kind).__name__ == "ClassLabel"]
    return named or [name for name in LABELS if name in features][:1]


def _input_of(sample: Any, entry: str | int | None) -> Any:
    if isinstance(sample, Mapping):
        if entry is None:
            rest = [k for k, v in sample.items() if k not in LABELS and not _is_number_or_text(v)]
            entry = (
                "pixel_values" if "pixel_values" in sample else rest[0] if len(rest) == 1 else None
            )
        if entry not in sample:
            asked = "" if entry is None else f"no {entry!r} "
            raise ValueError(
                f"there is {asked or 'more than one or no input '}in a sample of {', '.join(sample)}: "
                "say by inputs= which of them it is"
            )
        return sample[entry]
    if isinstance(sample, tuple | list) and sample:
        place = entry or 0
        if not isinstance(place, int) or not place < len(sample):
            raise ValueError(f"there is no entry {entry!r} in a sample of {len(sample)} entries")
        return sample[place]
    return sample


def _label_of(sample: Any) -> Any:
    """What a sample says of its class; None if nothing."""
    if isinstance(sample, Mapping):
        named = [sample[k] for k in LABELS if k in sample]
        rest = [v for v in sample.values() if _is_number_or_text(v)]
        return named[0] if named else rest[0] if len(rest) == 1 else None
    return sample[1] if isinstance(sample, tuple | list) and len(sample) > 1 else None


def _is_number_or_text(value: Any) -> bool:
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim == 0
    return value is None or isinstance(value, numbers.Number | str | bytes)


def _alike(listed: Any, said: Any) -> bool:
    """Whether a sample says what a list of labels says of it; where it says nothing, yes."""
    return said is None or np.array_equal(np.asarray(listed), np.asarray(said))


def _numbered(
    labels: Any, classes: tuple[str, ...] | None
) -> tuple[Tensor, tuple[str, ...] | None]:
    """Labels as int64 tensor, and the names of the classes."""
    if not isinstance(labels, Tensor):
        labels = list(labels)
        if labels and all(isinstance(label, str) for label in labels):
            names = tuple(sorted(set(labels))) if classes is None else classes
            known = {name: number for number, name in enumerate(names)}
            for label in labels:
                if label not in known:
                    raise ValueError(f"unknown class {label!r}; {did_you_mean(label, list(names))}")
            return torch.tensor([known[label] for label in labels]), names
        try:
            labels = torch.as_tensor(np.asarray(labels))
        except (TypeError, ValueError) as error:
            kinds = " and ".join(sorted({type(label).__name__ for label in labels}))
            raise TypeError(
                f"labels must be whole numbers or names, not of type {kinds}"
            ) from error
    if labels.is_floating_point():
        raise TypeError(f"the labels must be whole numbers, not {labels.dtype}: give labels.long()")
    if labels.ndim == 2:
        one = labels.shape[1] == 1
        cure = "labels[:, 0]" if one else "of one-hot rows labels.argmax(1)"
        raise ValueError(
            f"the labels have the shape {tuple(labels.shape)}, and must have (N,): {cure} gives them"
        )
    labels = labels.long().cpu()
    check_numbers(labels, "the labels", None if classes is None else len(classes))
    return labels, classes
