"""Examples: where they come from, and how they are split into forget, retain and test."""

from .images import (
    DATASETS,
    ImageData,
    ImageSet,
    cifar10,
    cifar100,
    digits,
    fashion_cifar,
    fashion_mnist,
    image_folder,
    shapes,
)
from .loading import Consecutive, batches, evenly_spaced
from .sources import MissingSourceError, Source, resolve
from .splits import (
    ForgetSplit,
    SplitError,
    WithheldDataError,
    forget_class,
    forget_indices,
    forget_random,
    forget_subclass,
    make_split,
)
from .tasks import Classification

__all__ = [
    "DATASETS",
    "Classification",
    "Consecutive",
    "ForgetSplit",
    "ImageData",
    "ImageSet",
    "MissingSourceError",
    "Source",
    "SplitError",
    "WithheldDataError",
    "batches",
    "cifar10",
    "cifar100",
    "digits",
    "evenly_spaced",
    "fashion_cifar",
    "fashion_mnist",
    "forget_class",
    "forget_indices",
    "forget_random",
    "forget_subclass",
    "image_folder",
    "make_split",
    "resolve",
    "shapes",
]
