"""What the fields of a dataclass may hold, said in their annotations.

``alpha: Positive`` is a float to a reader and to a type checker, and `check_fields`, which a class
calls when it is made, holds the value to it. Nothing is converted.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

__all__ = [
    "Cosine",
    "Count",
    "Fraction",
    "Natural",
    "NotNegative",
    "Positive",
    "Rule",
    "Share",
    "check_fields",
]


class Rule:
    """A condition on a number, with the words for it: "must be ``words``"."""

    def __init__(self, words: str, holds: Callable[[Any], bool]) -> None:
        self.words, self.holds = words, holds

    def __repr__(self) -> str:  # what the reference shows in an annotation
        return self.words


#: A float above 0.
Positive = Annotated[float, Rule("positive", lambda v: v > 0)]
#: A float of at least 0.
NotNegative = Annotated[float, Rule("at least 0", lambda v: v >= 0)]
#: A float in (0, 1].
Share = Annotated[float, Rule("in (0, 1]", lambda v: 0 < v <= 1)]
#: A float in [0, 1).
Fraction = Annotated[float, Rule("in [0, 1)", lambda v: 0 <= v < 1)]
#: A float in [-1, 1].
Cosine = Annotated[float, Rule("in [-1, 1]", lambda v: -1 <= v <= 1)]
#: An int of at least 1.
Count = Annotated[int, Rule("at least 1", lambda v: v >= 1)]
#: An int of at least 0.
Natural = Annotated[int, Rule("at least 0", lambda v: v >= 0)]


def check_fields(instance: Any) -> None:
    """Hold every field of a dataclass to its annotation.

    A ``float`` is any finite number and an ``int`` any whole one, a bool neither; a `Literal` is one
    of its values; of a container only the container itself is looked at.

    Raises
    ------
    ValueError
        Names the class, the field, what it must be and what it is.
    """
    cls = type(instance)
    for name, hint in _hints(cls).items():
        value = getattr(instance, name)
        if wanted := _wanted(value, hint):
            raise ValueError(f"{cls.__name__}: {name} must be {wanted}, not {_said(value)}")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def _wanted(value: Any, hint: Any) -> str | None:
    """What a value must be by an annotation, in words; None where it is that."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind is Annotated:
        broken = (r.words for r in parts[1:] if isinstance(r, Rule) and not r.holds(value))
        return _wanted(value, parts[0]) or next(broken, None)
    if kind in (Union, UnionType):
        found = [_wanted(value, part) for part in parts]
        return None if None in found else " or ".join(found)
    if kind is Literal:
        same = any(type(value) is type(part) and value == part for part in parts)
        return None if same else " or ".join(map(repr, parts))
    if kind in (int, float):
        number = isinstance(value, Integral if kind is int else Real)
        if number and not isinstance(value, bool) and math.isfinite(value):
            return None
        return "a whole number" if kind is int else "a finite number"
    if not isinstance(kind, type) or kind is Any or getattr(kind, "_is_protocol", False):
        return None  # nothing that a value can be held to
    if isinstance(value, kind):
        return None
    if kind is NoneType:
        return "None"
    if isinstance(value, Mapping) and dataclasses.is_dataclass(kind):
        arguments = ", ".join(f"{k}={v!r}" for k, v in value.items())
        return f"of type {kind.__name__}, such as {kind.__name__}({arguments})"
    return f"of type {kind.__name__}"


def _said(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"a value of type {type(value).__name__}"
