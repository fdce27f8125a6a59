"""What data are held to when they are made: one sentence that names the cure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["check_numbers", "check_texts"]


def check_numbers(values: Any, what: str, below: int | None = None) -> None:
    """Hold labels or positions to (N,) int64, at least 0 and, where it is given, ``below``.

    Raises
    ------
    TypeError
        They are no tensor, or of another dtype.
    ValueError
        Another shape, or a number out of range.
    """
    if not isinstance(values, Tensor):
        kind = type(values).__name__
        raise TypeError(f"{what} must be a tensor, not of type {kind}: make one by torch.tensor")
    if values.dtype != torch.int64:
        raise TypeError(f"{what} must be int64, not {values.dtype}: convert them by .long()")
    if values.ndim != 1:
        raise ValueError(f"{what} must have the shape (N,), not {tuple(values.shape)}")
    if not len(values):
        return
    least, most = int(values.min()), int(values.max())
    if least < 0:
        raise ValueError(f"{what} must be at least 0: one is {least}")
    if below is not None and most >= below:
        raise ValueError(f"{what} must be below {below}, as they count from 0: one is {most}")


def check_texts(values: Sequence[str], what: str, *, empty: bool = False) -> None:
    """Hold texts to be that, and, where ``empty`` doesn't allow it, not to be empty.

    Raises
    ------
    TypeError
        One text in the place of several, whose letters would be texts, or something else.
    ValueError
        An empty text.
    """
    if isinstance(values, str):
        raise TypeError(f"{what} is one text, not a sequence of texts")
    for i, text in enumerate(values):
        if not isinstance(text, str):
            raise TypeError(f"{what} must be texts: number {i} is of type {type(text).__name__}")
        if not (empty or text.strip()):
            raise ValueError(f"text {i} of {what} is empty")
