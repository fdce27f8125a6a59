"""Building objects from plain data (a YAML mapping), with no silent fallback."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any, TypeVar, get_type_hints

__all__ = [
    "ADDED",
    "ConfigError",
    "Plugins",
    "Table",
    "altered",
    "bind",
    "brief",
    "build",
    "describe",
    "did_you_mean",
    "named",
    "within",
]

#: Metadata of a field that came later: `describe` leaves it out while it has its default, so
#: that what was described before keeps its identity, and its cached results.
ADDED = {"added": True}

#: Characters of a value that an error message repeats.
LONGEST = 60


class ConfigError(ValueError):
    """A configuration that names something that is not there, or lacks something that must be."""


T = TypeVar("T")


class Plugins:
    """What installed packages add: their entry points of one group, each handed to ``register`` under
    its name.

    They are loaded once, when the instance is first called.
    """

    def __init__(self, group: str, register: Callable[[str, Any], object]) -> None:
        self.group, self.register, self.loaded = group, register, False

    def __call__(self) -> None:
        """Load and register them.

        Raises
        ------
        ConfigError
            One that can't be loaded, or that is refused; it names the package.
        """
        if self.loaded:
            return
        self.loaded = True  # before: what is loaded may read the table itself
        for point in entry_points(group=self.group):
            try:
                self.register(point.name, point.load())
            except Exception as error:
                self.loaded = False
                package = point.dist.name if point.dist else "a package"
                raise ConfigError(
                    f"{package}: its entry point {point.name!r} of {self.group}: {error}"
                ) from error


class Table(Mapping[str, T]):
    """What names stand for: the package's own things, and what others `add`.

    Parameters
    ----------
    what : the word for a thing in error messages ("method", ...)
    plugins : called when a name is unknown, and before all names are listed
    """

    def __init__(self, what: str, plugins: Callable[[], None]) -> None:
        self.what, self.plugins = what, plugins
        self.known: dict[str, T] = {}

    def add(self, name: str, thing: T) -> None:
        """Give ``thing`` a name. What is defined again, as when a cell is run twice, takes its place.

        Raises
        ------
        ValueError
            Another thing has this name, or another one is defined under the same name in code:
            `describe` tells classes apart by it.
        """
        for known, other in self.known.items():
            same_name = getattr(other, "__name__", None) == getattr(thing, "__name__", ())
            if (known == name or same_name) and not _same(other, thing):
                raise ValueError(f"there is a {self.what} {known!r} already: {other!r}")
        self.known[name] = thing

    def __getitem__(self, name: str) -> T:
        if name not in self.known:
            self.plugins()
        return self.known[name]

    def __iter__(self) -> Iterator[str]:
        self.plugins()
        return iter(self.known)

    def __len__(self) -> int:
        self.plugins()
        return len(self.known)


def _same(one: Any, other: Any) -> bool:
    where = [
        (getattr(x, "__module__", None), getattr(x, "__qualname__", None)) for x in (one, other)
    ]
    return one == other or (where[0] == where[1] and None not in where[0])


def brief(value: object) -> str:
    """A value as it stands in error messages: not longer than a line."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The tail of an error message: the close names, or else all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name)[:LONGEST], known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known) or 'none'}"


@contextlib.contextmanager
def within(place: str) -> Iterator[None]:
    """Put ``place`` before the words of a `ConfigError` that the block raises."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error


def build(
    table: Mapping[str, Callable[..., Any]], spec: Mapping[str, Any], what: str, **given: Any
) -> Any:
    """Call ``table[spec["use"]]`` with the rest of ``spec`` and those of ``given`` that it takes.

    Parameters
    ----------
    table : name -> class or function
    spec : ``{"use": name, **arguments}``; lists become tuples, so that frozen dataclasses hash
    what : the word for the thing in error messages ("method", "data set", ...)
    given : arguments that the caller has at hand; passed only to what declares them

    Raises
    ------
    ConfigError
        An unknown name; an unknown argument, a missing one or one of a wrong type; a value that
        the class or function itself refuses.
    """
    target, arguments = named(table, spec, what)
    words = f"{what} {spec['use']!r}"
    return _made(target, bind(target, arguments, words, **given), words)


def altered(value: Any, what: str, **changes: Any) -> Any:
    """A frozen dataclass with other values in some fields, checked as `build` checks them.

    Raises
    ------
    ConfigError
        A value of a wrong type, or one that the class refuses.
    """
    own = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
    return _made(type(value), bind(type(value), own | changes, what), what)


def _made(target: Callable[..., Any], arguments: Mapping[str, Any], what: str) -> Any:
    try:
        return target(**arguments)
    except ConfigError:
        raise  # of something inside, which it names
    except ValueError as error:
        raise ConfigError(f"{what}: {error}") from error


def named(
    table: Mapping[str, Callable[..., Any]], spec: Mapping[str, Any], what: str
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """What ``spec["use"]`` names, and the rest of ``spec``.

    Raises
    ------
    ConfigError
        ``spec`` is no mapping, says no ``use``, or an unknown one.
    """
    if not isinstance(spec, Mapping):
        raise ConfigError(f"{what}: must be a mapping with the key 'use', not {brief(spec)}")
    if "use" not in spec:
        raise ConfigError(f"{what}: the key 'use' is missing in {brief(dict(spec))}")
    name = spec["use"]
    if not isinstance(name, str):
        raise ConfigError(f"{what}: 'use' must be a name, not {brief(name)}")
    if name not in table:
        raise ConfigError(f"unknown {what} {brief(name)}; {did_you_mean(name, table)}")
    return table[name], {k: v for k, v in spec.items() if k != "use"}


def bind(
    target: Callable[..., Any], arguments: Mapping[str, Any], what: str, **given: Any
) -> dict[str, Any]:
    """The arguments of a call of ``target``, checked against its signature and its type hints.

    It is not called. ``given`` are arguments that the caller has at hand, as for `build`.

    Raises
    ------
    ConfigError
        An unknown argument, a missing one, or one of another type than is declared.
    """
    signature = inspect.signature(target)
    known = [k for k in signature.parameters if k not in given]
    for key in arguments:
        if key not in known:
            raise ConfigError(f"{what} has no argument {brief(key)}; {did_you_mean(key, known)}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
    for key, value in values.items():
        if error := _mistyped(target, key, value):
            raise ConfigError(f"{what}: {key}: {error}, not {brief(arguments[key])}")
    values |= {k: v for k, v in given.items() if k in signature.parameters}
    try:
        signature.bind(**values)
    except TypeError as error:
        raise ConfigError(f"{what}: {error}") from error
    return values


def _mistyped(target: Callable[..., Any], argument: str, value: Any) -> str | None:
    """What is wrong with the type of an argument's value, in pydantic's words."""
    from pydantic import ValidationError

    adapter = _adapter(target, argument)
    if adapter is None:
        return None
    try:
        adapter.validate_python((value,))
    except ValidationError as error:
        return error.errors()[0]["msg"]
    return None


@functools.cache
def _adapter(target: Callable[..., Any], argument: str) -> Any:
    """Pydantic's validator of one argument; None where it has no type hint."""
    from pydantic import ConfigDict, TypeAdapter

    hints = get_type_hints(target, include_extras=True)
    if argument not in hints:
        return None
    # Inside a tuple: of a dataclass's own validator the settings could not be changed.
    strictly = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
    return TypeAdapter(tuple[hints[argument]], config=strictly)  # type: ignore[misc]


def describe(value: Any) -> Any:
    """Plain data that identifies a frozen dataclass: its type's name and every field, nested.

    Two objects with equal descriptions behave alike; cache keys and records are made of them. A
    class that changes its behaviour raises its ``version``, which is part of the description.

    Raises
    ------
    TypeError
        Something in it has no plain description.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            f.name: describe(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if not (f.metadata.get("added") and getattr(value, f.name) == f.default)
        }
        version = getattr(value, "version", None)
        return {"is": type(value).__name__, **({"version": version} if version else {}), **fields}
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__} has no plain description")
