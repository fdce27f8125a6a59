"""What a field may hold, by its annotation."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pytest

from unlearn_core.fields import (
    Cosine,
    Count,
    Fraction,
    Natural,
    NotNegative,
    Positive,
    Rule,
    Share,
    check_fields,
)


@dataclass(frozen=True)
class Inner:
    lr: float = 0.1


@dataclass(frozen=True)
class Outer:
    kind: ClassVar[str] = "of the class, not of the instance"

    plain: float = 1.0
    positive: Positive = 1.0
    weight: NotNegative | None = None
    share: Share = 1.0
    fraction: Fraction = 0.0
    cosine: Cosine = -1.0
    count: Count = 1
    natural: Natural = 0
    odd: Annotated[int, Rule("odd", lambda n: n % 2 == 1)] = 1
    mode: Literal["a", "b"] = "a"
    flag: bool = False
    text: str = ""
    names: tuple[str, ...] = ()
    inner: Inner = Inner()
    either: Inner | str = "x"
    anything: Any = None
    call: Callable[[int], int] = abs

    def __post_init__(self) -> None:
        check_fields(self)


def test_what_fits_stays_as_it_is() -> None:
    """Fails where an int becomes a float: the descriptions, and with them the keys, would change."""
    made = Outer(plain=1, positive=2, weight=3, share=1, cosine=-1, either=Inner(), anything=7)
    assert [type(v) for v in (made.plain, made.positive, made.weight, made.share)] == [int] * 4
    Outer(plain=-1e300, positive=np.float32(0.5), count=np.int64(3), weight=0.0, names=("a",))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        *(("plain", v, "a finite number") for v in (math.nan, math.inf, True, "1e-3", None, 1j)),
        *(("positive", v, "positive") for v in (0, -1.0)),
        ("positive", -math.inf, "a finite number"),
        ("weight", -1e-9, "at least 0 or None"),
        ("weight", "x", "a finite number or None"),
        *(("share", v, "in (0, 1]") for v in (0.0, 1.1)),
        *(("fraction", v, "in [0, 1)") for v in (-0.1, 1.0)),
        ("cosine", -1.1, "in [-1, 1]"),
        ("count", 0, "at least 1"),
        *(("count", v, "a whole number") for v in (1.0, True, "1", None, math.nan)),
        ("natural", -1, "at least 0"),
        ("odd", 2, "odd"),
        *(("mode", v, "'a' or 'b'") for v in ("c", None, ["a"])),
        *(("flag", v, "of type bool") for v in (1, "no", None)),
        ("text", 3, "of type str"),
        *(("names", v, "of type tuple") for v in ("a", ["a"])),
        ("inner", {"lr": 0.2}, "of type Inner, such as Inner(lr=0.2)"),
        ("inner", None, "of type Inner"),
        ("either", 3, "of type Inner or of type str"),
        ("call", 3, "of type Callable"),
    ],
)
def test_what_does_not_fit_is_named(field: str, value: Any, words: str) -> None:
    expected = re.escape(f"Outer: {field} must be {words}, not {value!r}")
    with pytest.raises(ValueError, match=f"^{expected}$"):
        Outer(**{field: value})


def test_a_long_value_is_not_printed() -> None:
    with pytest.raises(ValueError, match=r"mode must be 'a' or 'b', not a value of type str$"):
        Outer(mode="x" * 100_000)


def test_a_rule_reads_as_its_words() -> None:
    """The reference shows annotations: fails where it would show the address of a function."""
    assert str(Share) == "typing.Annotated[float, in (0, 1]]"
