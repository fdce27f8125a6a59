from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from unlearn_core.registry import ADDED, ConfigError, build, describe, did_you_mean


@dataclass(frozen=True)
class Point:
    x: float
    y: float = 2.0
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Line:
    version: ClassVar[int] = 3
    start: Point
    widths: dict[str, float]


@dataclass(frozen=True)
class Grown:
    """A class that got two fields after results were cached."""

    x: float = 1.0
    limit: int | None = field(default=None, metadata=ADDED)
    marks: tuple[str, ...] = field(default=("a",), metadata=ADDED)


def make(size: int, device: str = "cpu") -> tuple[int, str]:
    return size, device


TABLE = {"point": Point, "make": make}


def test_build_passes_the_arguments() -> None:
    assert build(TABLE, {"use": "point", "x": 1.0}, "shape") == Point(1.0, 2.0)
    assert build(TABLE, {"use": "make", "size": 3}, "shape") == (3, "cpu")


def test_build_turns_lists_into_tuples() -> None:
    point = build(TABLE, {"use": "point", "x": 1.0, "marks": ["a", "b"]}, "shape")
    assert point.marks == ("a", "b")
    assert hash(point)


def test_build_gives_only_what_is_declared() -> None:
    spec = {"use": "make", "size": 1}
    assert build(TABLE, spec, "shape", device="cuda", unwanted=1) == (1, "cuda")


def test_build_leaves_the_specification_alone() -> None:
    spec = {"use": "point", "x": 1.0}
    build(TABLE, spec, "shape")
    assert spec == {"use": "point", "x": 1.0}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"x": 1.0}, "shape: the key 'use' is missing"),
        ({"use": "pont", "x": 1.0}, "unknown shape 'pont'; did you mean 'point'?"),
        ({"use": "zzz"}, "unknown shape 'zzz'; known: make, point"),
        ({"use": "point", "x": 1.0, "mark": []}, "no argument 'mark'; did you mean 'marks'?"),
        ({"use": "point"}, "shape 'point'.*'x'"),
    ],
)
def test_build_names_what_is_wrong(spec: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        build(TABLE, spec, "shape")


def test_build_refuses_an_argument_that_the_caller_gives() -> None:
    with pytest.raises(ConfigError, match="no argument 'device'"):
        build(TABLE, {"use": "make", "size": 1, "device": "cpu"}, "shape", device="cuda")


def test_did_you_mean_takes_the_closest_or_lists_all() -> None:
    assert did_you_mean("alpa", ["alpha", "beta"]) == "did you mean 'alpha'?"
    assert did_you_mean("q", {"beta": 0, "alpha": 0}) == "known: alpha, beta"


def test_describe_holds_every_field_and_the_version() -> None:
    assert describe(Line(Point(1.0, marks=("a",)), {"thin": 0.5})) == {
        "is": "Line",
        "version": 3,
        "start": {"is": "Point", "x": 1.0, "y": 2.0, "marks": ["a"]},
        "widths": {"thin": 0.5},
    }


@pytest.mark.parametrize("value", [None, True, 3, 0.5, "text"])
def test_describe_keeps_plain_values(value: object) -> None:
    assert describe(value) is value


@pytest.mark.parametrize("value", [object(), {1, 2}, Point, [object()]])
def test_describe_refuses_what_has_no_plain_form(value: object) -> None:
    with pytest.raises(TypeError, match="no plain description"):
        describe(value)


@pytest.mark.parametrize(
    ("value", "described"),
    [
        (Grown(), {}),
        (Grown(limit=3), {"limit": 3}),
        (Grown(limit=0), {"limit": 0}),
        (Grown(marks=()), {"marks": []}),
        (Grown(limit=3, marks=("b",)), {"limit": 3, "marks": ["b"]}),
    ],
)
def test_describe_leaves_out_an_added_field_while_it_has_its_default(
    value: Grown, described: dict
) -> None:
    """Fails where a new field changes the identity of what was cached before it, or where a value
    of it that matters (0, nothing) is left out: two different things would share a cache key."""
    assert describe(value) == {"is": "Grown", "x": 1.0, **described}
    assert describe({"inside": [value]}) == {"inside": [{"is": "Grown", "x": 1.0, **described}]}
