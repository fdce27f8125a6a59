"""What metrics refuse: numbers that are not finite, sets that are empty, and rows without a partner."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from torch import Tensor

from ..data.checks import check_numbers
from ..models import NotFiniteError

__all__ = ["alike", "finite", "predictions", "told_apart"]


def _tensor(what: str, values: Any) -> None:
    if not isinstance(values, Tensor):
        kind = type(values).__name__
        raise TypeError(f"{what} must be a tensor, not of type {kind}: make one by torch.tensor")


def finite(what: str, values: Tensor) -> Tensor:
    """``values``, each of which is a finite number.

    Raises
    ------
    TypeError
        No tensor.
    NotFiniteError
        Says how many of ``what`` are not.
    """
    _tensor(what, values)
    sound = values.isfinite()
    if not sound.all():
        raise NotFiniteError(f"{int((~sound).sum())} of {values.numel()} {what} are not finite")
    return values


def predictions(logits: Tensor) -> Tensor:
    """``logits`` (n, classes), of which every row says something: minus infinity is a class that
    can't be, and all else is finite.

    Raises
    ------
    TypeError
        No tensor.
    NotFiniteError
        Says how many predictions are not finite.
    ValueError
        Another shape.
    """
    _tensor("logits", logits)
    if logits.ndim != 2:
        raise ValueError(f"logits are (n, classes), not {tuple(logits.shape)}")
    finite("predictions", logits.amax(dim=1))  # of NaN, of infinity, and of nothing possible
    return logits


def alike(**sides: Sized) -> None:
    """Raise where things that belong together are not equally many.

    Raises
    ------
    ValueError
        Names both, and how many they are.
    """
    (first, a), *others = sides.items()
    for name, b in others:
        if len(a) != len(b):
            raise ValueError(f"{len(a)} {first} and {len(b)} {name} don't belong together")


def told_apart(logits: Tensor, labels: Tensor) -> None:
    """Raise where labels (n,) are not of the classes that logits (n, classes) tell apart.

    Raises
    ------
    TypeError
        No tensors, or labels that are not int64.
    ValueError
        Not equally many, other shapes, or a label that is no class.
    NotFiniteError
        As of `predictions`.
    """
    alike(predictions=logits, labels=labels)
    check_numbers(labels, "the labels", predictions(logits).shape[1])
