"""What the tests of all chapters' rules do alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from unlearn_core.replication.records import Rows


def both_ways(
    rule: Callable[[Rows, int], Any],
    case: tuple[float, Mapping[Any, Any], float],
    good: dict[Any, Any],
    rows_of: Callable[[dict[Any, Any]], Rows],
) -> Iterator[tuple[Any, float]]:
    """The margins of a good run and of one that is changed so that the claim fails, each with what it
    must be.

    Parameters
    ----------
    case : the margin in the good run, what is changed, the margin that must come of it
    good : the values of the good run, by their names
    rows_of : values -> rows
    """
    holds, change, fails = case
    assert set(change) <= set(good), "the case changes something that is not there"
    for values, expected in ((good, holds), (good | change, fails)):
        yield rule(rows_of(values), 0), expected
