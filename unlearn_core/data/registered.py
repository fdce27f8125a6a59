"""The problems that a YAML's ``data`` may name, by what they give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

from ..registry import Plugins, Table

__all__ = ["register", "table_of"]

Function = TypeVar("Function", bound=Callable[..., Any])

#: Kind of data -> the functions that give it.
TABLES: dict[type, Table[Callable[..., Any]]] = {}


def register(function: Function) -> Function:
    """Make a data set of one's own known by the function's name, as a YAML's ``data`` names it. The
    function is given back, so this may decorate it.

    What the function gives says its annotation: `ImageData`, `QuestionData`, `BookData` or
    `CaptionData`. Its arguments are those of the YAML, held to their annotations too. An installed
    package need not call this: its entry points of the group ``unlearn_core.data`` are registered
    when they are looked for.

    Raises
    ------
    TypeError
        It is no function, or its annotation names none of these.
    ValueError
        Another data set of the kind has the name.
    """
    given = get_type_hints(function).get("return") if callable(function) else None
    for kind, table in TABLES.items():
        if isinstance(given, type) and issubclass(given, kind):
            table.add(function.__name__, function)
            return function
    known = ", ".join(kind.__name__ for kind in TABLES)
    raise TypeError(
        f"{function!r} is registered as data and must be annotated to give one of {known}"
    )


_others = Plugins("unlearn_core.data", lambda _, function: register(function))


def table_of(kind: type, *functions: Callable[..., Any]) -> Table[Callable[..., Any]]:
    """A table of the functions that give one kind of data, which `register` adds to."""
    table = TABLES[kind] = Table("data set", _others)
    for function in functions:
        table.add(function.__name__, function)
    return table
