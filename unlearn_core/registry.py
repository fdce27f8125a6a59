"""Building objects from plain data (a YAML mapping), with no silent fallback."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["ADDED", "ConfigError", "build", "describe", "did_you_mean"]

#: Metadata of a field that came later: `describe` leaves it out while it has its default, so
#: that what was described before keeps its identity, and its cached results.
ADDED = {"added": True}


class ConfigError(ValueError):
    """A configuration that names something that is not there, or lacks something that must be."""


def did_you_mean(name: str, known: Mapping[str, Any] | list[str]) -> str:
    """The tail of an error message: the close names, or else all of them."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"


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
        An unknown name, an unknown argument, or a missing one.
    """
    arguments = dict(spec)
    name = arguments.pop("use", None)
    if name is None:
        raise ConfigError(f"{what}: the key 'use' is missing in {dict(spec)}")
    if name not in table:
        raise ConfigError(f"unknown {what} {name!r}; {did_you_mean(str(name), table)}")
    target = table[name]
    parameters = inspect.signature(target).parameters
    for key in arguments:
        if key not in parameters or key in given:
            raise ConfigError(
                f"{what} {name!r} has no argument {key!r}; {did_you_mean(key, list(parameters))}"
            )
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
    arguments |= {k: v for k, v in given.items() if k in parameters}
    try:
        return target(**arguments)
    except TypeError as error:
        raise ConfigError(f"{what} {name!r}: {error}") from error


def describe(value: Any) -> Any:
    """Plain data that identifies a frozen dataclass: its type's name and every field, nested.

    Two objects with equal descriptions behave alike; cache keys and records are made of them. A
    class that changes its behaviour raises its ``version``, which is part of the description.
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
