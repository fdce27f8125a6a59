from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field

from unlearn_core.registry import (
    ADDED,
    ConfigError,
    Plugins,
    Table,
    altered,
    bind,
    brief,
    build,
    describe,
    did_you_mean,
    within,
)


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


@dataclass(frozen=True)
class Picky:
    size: int = 1
    mode: Literal["fast", "slow"] = "fast"
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    limit: int | None = None
    sizes: tuple[int, ...] = ()
    start: Point | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1, not {self.size}")


def broken(size: int) -> int:
    return len(size)  # type: ignore[arg-type]


TABLE = {"point": Point, "make": make, "picky": Picky, "broken": broken}


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
        ({"use": "zzz"}, "unknown shape 'zzz'; known: broken, make, picky, point"),
        ({"use": ["point"]}, r"shape: 'use' must be a name, not \['point'\]"),
        ({"use": None}, "shape: 'use' must be a name, not None"),
        ({"use": "point" * 999}, "unknown shape 'point.{,60}…; known"),
        (["point"], r"shape: must be a mapping with the key 'use', not \['point'\]"),
        ({"use": "point", "x": 1.0, "mark": []}, "no argument 'mark'; did you mean 'marks'?"),
        ({"use": "point"}, "shape 'point': missing a required argument: 'x'"),
        ({"use": "point", "x": "1e-3"}, "shape 'point': x: .*valid number, not '1e-3'"),
        ({"use": "point", "x": True}, "shape 'point': x: .*valid number, not True"),
        ({"use": "point", "x": float("nan")}, "shape 'point': x: .*finite number, not nan"),
        ({"use": "point", "x": float("inf")}, "shape 'point': x: .*finite number, not inf"),
        ({"use": "picky", "size": 6.0}, "shape 'picky': size: .*valid integer, not 6.0"),
        ({"use": "picky", "mode": "fats"}, "shape 'picky': mode: .*'fast' or 'slow', not 'fats'"),
        ({"use": "picky", "share": 0}, "shape 'picky': share: .*greater than 0, not 0"),
        ({"use": "picky", "limit": []}, r"shape 'picky': limit: .*integer, not \[\]"),
        ({"use": "picky", "sizes": [1, [2]]}, r"shape 'picky': sizes: .*, not \[1, \[2\]\]"),
        ({"use": "picky", "start": {"x": 1.0}}, "shape 'picky': start: .*instance of Point"),
        ({"use": "picky", "size": 0}, "shape 'picky': size must be at least 1, not 0"),
    ],
)
def test_build_names_what_is_wrong(spec: Any, message: str) -> None:
    """Fails where a text reaches a training as its rate, or where a class's own refusal leaves open which
    of many things it is about."""
    with pytest.raises(ConfigError, match=message):
        build(TABLE, spec, "shape")


def test_a_programming_error_is_no_configuration_error() -> None:
    """Fails where "object of type 'int' has no len()" is told as if the YAML were wrong."""
    with pytest.raises(TypeError, match="has no len"):
        build(TABLE, {"use": "broken", "size": 3}, "shape")


def test_build_keeps_numbers_as_they_are() -> None:
    """Fails where a whole number becomes a float: another description, another key of cached rows."""
    point = build(TABLE, {"use": "point", "x": 1}, "shape")
    assert type(point.x) is int


def test_bind_does_not_call() -> None:
    assert bind(broken, {"size": 3}, "x") == {"size": 3}
    assert bind(make, {"size": 3}, "x", device="cuda", other=1) == {"size": 3, "device": "cuda"}
    with pytest.raises(ConfigError, match="x has no argument 'device'; known: size"):
        bind(make, {"size": 3, "device": "cpu"}, "x", device="cuda")


def test_altered_checks_as_build_does() -> None:
    picky = Picky(start=Point(1.0))
    assert altered(picky, "it", size=3) == Picky(3, start=Point(1.0))
    for change, message in (
        ({"size": "3"}, "it: size: .*integer, not '3'"),
        ({"size": 0}, "it: size must be at least 1"),
        ({"seize": 3}, "it has no argument 'seize'; did you mean 'size'"),
    ):
        with pytest.raises(ConfigError, match=message):
            altered(picky, "it", **change)


def test_within_puts_the_place_before() -> None:
    with (
        pytest.raises(ConfigError, match=r"^outside: inside: wrong$"),
        within("outside"),
        within("inside"),
    ):
        raise ConfigError("wrong")
    with pytest.raises(KeyError), within("outside"):
        raise KeyError("another error")


def test_brief_is_not_longer_than_a_line() -> None:
    assert brief("a") == "'a'"
    assert len(brief(["word"] * 1000)) == 61


def test_build_refuses_an_argument_that_the_caller_gives() -> None:
    with pytest.raises(ConfigError, match="no argument 'device'"):
        build(TABLE, {"use": "make", "size": 1, "device": "cpu"}, "shape", device="cuda")


def test_did_you_mean_takes_the_closest_or_lists_all() -> None:
    assert did_you_mean("alpa", ["alpha", "beta"]) == "did you mean 'alpha'?"
    assert did_you_mean("q", {"beta": 0, "alpha": 0}) == "known: alpha, beta"
    assert did_you_mean("q", []) == "known: none"
    assert did_you_mean(7, ["alpha"]) == "known: alpha"


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


# -- Tables that others add to ---------------------------------------------------------------------


def table_of(**known: Any) -> Table[Any]:
    table: Table[Any] = Table("shape", lambda: None)
    for name, thing in known.items():
        table.add(name, thing)
    return table


class TestTable:
    def test_it_is_a_mapping_that_build_takes(self) -> None:
        table = table_of(point=Point, make=make)
        assert build(table, {"use": "make", "size": 3}, "shape") == (3, "cpu")
        assert {**table} == {"point": Point, "make": make}
        assert (len(table), [*table], "line" in table) == (2, ["point", "make"], False)
        with pytest.raises(ConfigError, match="unknown shape 'pont'; did you mean 'point'"):
            build(table, {"use": "pont"}, "shape")

    def test_a_name_stands_for_one_thing(self) -> None:
        """Fails where a package's method takes the place of one of ours without a word."""
        table = table_of(point=Point)
        with pytest.raises(ValueError, match=r"there is a shape 'point' already: .*Point"):
            table.add("point", Line)
        table.add("point", Point)
        assert {**table} == {"point": Point}

    def test_two_classes_of_one_name_are_two(self) -> None:
        """Fails where `describe`, and so the cache, takes one for the other."""
        other = type("Point", (), {"__module__": "elsewhere"})
        with pytest.raises(ValueError, match="there is a shape 'point' already"):
            table_of(point=Point).add("other_point", other)

    def test_what_is_defined_again_takes_its_own_place(self) -> None:
        """Fails where a cell that defines a method can be run once only."""

        def define() -> type:
            class Round:
                pass

            return Round

        first, second = define(), define()
        table = table_of(round=first)
        table.add("round", second)
        assert table["round"] is second


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Install a package of one module, with its entry points."""

    def install(name: str, code: str, **points: str) -> None:
        (tmp_path / f"{name}.py").write_text(code)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{key} = {name}:{value}" for key, value in points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[some.shapes]", *lines]) + "\n")
        monkeypatch.delitem(sys.modules, name, raising=False)

    monkeypatch.syspath_prepend(tmp_path)
    return install


class TestPlugins:
    def table(self) -> Table[Any]:
        table: Table[Any] = Table(
            "shape", Plugins("some.shapes", lambda _, s: table.add(s.name, s))
        )
        return table

    def test_entry_points_are_registered_when_they_are_looked_for(
        self, installed: Callable[..., None]
    ) -> None:
        installed("one_shape", "class Ring:\n    name = 'ring'\n", ring="Ring")
        table = self.table()
        table.add("point", Point)
        assert table["point"] is Point
        assert "one_shape" not in sys.modules, "a known name loads nothing"
        assert table["ring"].__module__ == "one_shape"
        assert [*table] == ["point", "ring"]

    def test_a_list_of_all_holds_them(self, installed: Callable[..., None]) -> None:
        installed("listed_shape", "class Disc:\n    name = 'disc'\n", disc="Disc")
        assert [*self.table()] == ["disc"]

    @pytest.mark.parametrize(
        ("code", "error"),
        [
            ("import no_such_module", "No module named 'no_such_module'"),
            ("class Other:\n    pass", "has no attribute 'Ring'"),
            ("class Ring:\n    pass", "has no attribute 'name'"),
        ],
    )
    def test_one_that_is_broken_is_named(
        self, installed: Callable[..., None], code: str, error: str
    ) -> None:
        """Fails where a traceback leaves open which of the installed packages is at fault."""
        installed("broken_shape", code, ring="Ring")
        table = self.table()
        table.add("point", Point)
        assert table["point"] is Point
        said = f"broken_shape: its entry point 'ring' of some.shapes: .*{error}"
        for _ in range(2):
            with pytest.raises(ConfigError, match=said):
                table["ring"]

    def test_it_may_read_the_table_while_it_is_loaded(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails where a package that asks what is known never ends."""
        table = self.table()
        table.add("point", Point)

        class Ring:
            name = "ring"

        def load(point: EntryPoint) -> type:
            assert [*table] == ["point"]
            return Ring

        monkeypatch.setattr(EntryPoint, "load", load)
        points = (EntryPoint("ring", "nowhere:Ring", "some.shapes"),)
        monkeypatch.setattr("unlearn_core.registry.entry_points", lambda group: points)
        assert [*table] == ["point", "ring"]
