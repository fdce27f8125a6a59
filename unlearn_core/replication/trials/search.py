"""One rule by which every method's hyper-parameters are chosen, the paper's own and its rivals'.

Every value of a grid is tried on a class, concept, order or seed that no verdict uses. The best is
taken *among settings that keep what must be kept*; where the best of them lies at an end of its
grid, the grid goes on beyond that end, as often as the experiment allows. What still lies at an end
is noted, and claims that read rows made with it are not tested. Rows of a search are rows.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from ...metrics import METRICS
from ...registry import ConfigError
from ..records import NotMadeError, Row, Search
from ..run import Replication

if TYPE_CHECKING:
    from .base import Trial

__all__ = ["SearchGoesOnError", "choose"]


class SearchGoesOnError(NotMadeError):
    """A search needs rows that are not made, and no new one is asked for.

    Attributes
    ----------
    rows : of each the trial, the method and its settings (neither for the original), and what its
        making raised
    """

    def __init__(
        self, tuning: str, rows: list[tuple[Trial, str | None, dict[str, Any], NotMadeError]]
    ) -> None:
        super().__init__(f"{tuning} has not chosen yet: {rows[0][-1]}")
        self.rows = rows


def choose(kind: type[Trial], run: Replication, tuning: str) -> dict[str, dict[str, Any]]:
    """The hyper-parameters that an experiment's search chooses: method -> name -> value.

    Parameters
    ----------
    kind : the trial of the experiment's modality
    tuning : an experiment with ``search``; its ``choose`` says by what (the gap to the retrained
        model, where it says nothing), what must be kept and how far grids may go on

    Raises
    ------
    NotMadeError
        No new row is asked for, and the search's are not all made: a `SearchGoesOnError` with those
        of them that are known to be needed.
    """
    if tuning not in run.shared:
        experiment = run.experiment(tuning)
        trials = [
            kind(run, tuning, seed, target)
            for seed in run.seeds_of(tuning)
            for target in run.targets(tuning)
        ]
        if not trials:  # of what is made so far, this search is not
            raise NotMadeError(f"{tuning} has not chosen yet")
        chosen, unmade = {}, []
        for label, grid in experiment.search.items():
            try:
                chosen[label] = _searched(trials, label, grid)
            except SearchGoesOnError as error:
                unmade += error.rows
        if unmade:
            raise SearchGoesOnError(tuning, unmade)
        run.shared[tuning] = chosen
    return run.shared[tuning]


def _searched(trials: list[Trial], label: str, grid: dict[str, list[Any]]) -> dict[str, Any]:
    """Search one method's grid on all trials, and record what was found."""
    run, name = trials[0].run, trials[0].name
    rule = run.experiment(name).choose
    sign = -1.0 if METRICS[rule.by].better == "higher" else 1.0
    names, values = tuple(grid), [list(v) for v in grid.values()]
    left = dict.fromkeys(names, rule.widen)
    scores: dict[tuple[Any, ...], float] = {}
    kept: dict[tuple[Any, ...], bool] = {}
    unmade: list[tuple[Trial, str | None, dict[str, Any], NotMadeError]] = []

    def look(at: tuple[Any, ...]) -> None:
        if at in scores:
            return
        rows, settings = [], dict(zip(names, at, strict=True))
        for trial in trials:
            try:
                rows.append(trial.measure_method(label, **settings))
            except NotMadeError as error:
                unmade.append((trial, label, settings, error))
        if len(rows) < len(trials):
            return
        kept[at] = True
        for trial, row in zip(trials, rows, strict=True):
            try:
                kept[at] = kept[at] and _keeps(trial, row, rule.keep)
            except NotMadeError as error:
                unmade.append((trial, None, {}, error))
        scores[at] = sum(_value(r, rule.by) for r in rows) / len(rows)

    while True:
        for at in itertools.product(*values):
            look(at)
        if unmade:
            raise SearchGoesOnError(name, unmade)
        among = [at for at in scores if kept[at]] or list(scores)
        best = min(among, key=lambda at: sign * scores[at])  # the earlier one of equals
        edges = [
            (i, end)
            for i, v in enumerate(values)
            if len(v) > 2 and _ordered(v)
            for end in (0, -1)
            if best[i] == v[end]
        ]
        wider = [(i, end) for i, end in edges if left[names[i]]]
        if not wider:
            break
        for i, end in wider:
            left[names[i]] -= 1
            new = _beyond(values[i], end)
            values[i] = [new, *values[i]] if end == 0 else [*values[i], new]
    run.searches[name, label] = Search(
        experiment=name,
        method=label,
        names=names,
        tried=tuple(scores),
        scores=tuple(scores.values()),
        kept=tuple(kept.values()),
        chosen=best,
        edges=tuple(names[i] for i, _ in edges),
    )
    return dict(zip(names, best, strict=True))


def _value(row: Row, metric: str) -> float:
    if metric not in row.metrics:
        raise ConfigError(f"{row.experiment}: the search is by {metric!r}, which no row has")
    return row.metrics[metric].value


def _keeps(trial: Trial, row: Row, keep: dict[str, float]) -> bool:
    """Is every metric that must be kept within its limit of the original's?"""
    if not keep:
        return True
    original = trial.measure_original()
    for metric, limit in keep.items():
        lost = _value(original, metric) - _value(row, metric)
        if (-lost if METRICS[metric].better == "lower" else lost) > limit:
            return False
    return True


def _ordered(values: list[Any]) -> bool:
    """Numbers, from the least to the largest or the other way round: a grid that has ends."""
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return False
    return values in (sorted(values), sorted(values, reverse=True))


def _beyond(values: list[Any], end: int) -> Any:
    """The next value beyond an end: by the ratio of the last two, or by their step around zero."""
    last, before = (values[0], values[1]) if end == 0 else (values[-1], values[-2])
    new = last * last / before if last * before > 0 else 2 * last - before
    whole = all(isinstance(v, int) for v in values)
    return max(round(new), 1) if whole else float(f"{new:.3g}")
