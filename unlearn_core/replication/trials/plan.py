"""What a run measures: rows declared in the YAML, listed before they are made, made in one line.

An experiment's ``measure`` names what is measured, in order: the name of a ``measure_...`` method of
the modality's trial, and of what::

    measure:
      - original
      - methods                                        # every method of the experiment
      - method: SalUn                                  # one of them, with other hyper-parameters:
        keep: [0.1, 0.5]                               # lists are a grid
        mask: grid                                   # or the one of that name in ``grid``
      - {relearning: [Original, SalUn], seeds: [0]}    # on some of the seeds only

Without it an experiment with a search is made of its search, and any other one of its original and
its methods. `plan` lists the rows; `make` makes those of a section.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ...data import BOOKS
from ...models import DIFFUSION_MODELS, LANGUAGE_MODELS, MODELS, MULTIMODAL_MODELS
from ...registry import ConfigError, did_you_mean
from ..papers import Experiment
from ..records import NotMadeError
from ..run import Replication
from .base import Trial
from .books import CompletionTrial
from .classifiers import ClassificationTrial
from .continual import ContinualTrial
from .diffusion import erasing_kind
from .language import AnsweringTrial
from .safety import safety_kind
from .search import choose

__all__ = ["Planned", "kind_of", "make", "plan", "rows_of", "searches", "trials"]


@dataclass(frozen=True)
class Planned:
    """A row that is to be made (a search may go on with more, and some measures make several)."""

    experiment: str
    seed: int
    target: Any
    measure: str
    label: str | None = None
    changes: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        what = [self.measure, *([self.label] if self.label else [])]
        what += [f"{k} = {v}" for k, v in self.changes.items()]
        return f"{self.experiment} / {self.target} / seed {self.seed}: {', '.join(what)}"

    def make(self, trial: Trial) -> None:
        """Make it on its trial, or take it from the cache."""
        labels = () if self.label is None else (self.label,)
        getattr(trial, f"measure_{self.measure}")(*labels, **self.changes)


def kind_of(experiment: Experiment) -> type[Trial]:
    """The trial that an experiment goes through: what its model is decides.

    Raises
    ------
    ConfigError
        The model is unknown.
    """
    model = experiment.model.get("use")
    if model in MODELS:
        return ClassificationTrial
    if model in LANGUAGE_MODELS:
        return CompletionTrial if experiment.data.get("use") in BOOKS else AnsweringTrial
    if model in DIFFUSION_MODELS:
        return erasing_kind(experiment)
    if model in MULTIMODAL_MODELS:
        return ContinualTrial if "order" in experiment.forget else safety_kind(experiment)
    known = [*MODELS, *LANGUAGE_MODELS, *DIFFUSION_MODELS, *MULTIMODAL_MODELS]
    raise ConfigError(f"unknown model {model!r}; {did_you_mean(str(model), known)}")


def trials(run: Replication, prefix: str = "") -> Iterator[Trial]:
    """Every experiment whose name begins with ``prefix``, on each of its seeds and targets."""
    for name in run.experiments(prefix):
        yield from kind_of(run.experiment(name)).each(run, name)


def plan(run: Replication, prefix: str = "") -> list[Planned]:
    """The rows of every experiment whose name begins with ``prefix``, in the order of making."""
    return [
        row
        for name in run.experiments(prefix)
        for seed, target in kind_of(run.experiment(name)).sites(run, name)
        for row in rows_of(run.experiment(name), name, seed, target)
    ]


def make(run: Replication, *prefixes: str) -> None:
    """Make the rows of these experiments, or take them from the cache; those of all where none is named."""
    run.progress.expect(len(plan(run)))
    for prefix in prefixes or ("",):
        unmade: dict[str, set[int]] = {}
        for trial in trials(run, prefix):
            left_out = unmade.setdefault(trial.name, set())
            rows = rows_of(trial.experiment, trial.name, trial.seed, trial.target)
            steps = [partial(row.make, trial) for row in rows]
            if searches(trial.experiment):  # it may go on beyond its grid
                steps.append(partial(choose, type(trial), run, trial.name))
            for step in steps:
                try:
                    step()
                except NotMadeError:
                    if run.rows_asked != "made":
                        raise
                    left_out.add(trial.seed)
        if run.rows_asked == "made":
            for name, seeds in unmade.items():
                run.leave_out(name, seeds)


def searches(e: Experiment) -> bool:
    """Whether a search is part of what an experiment measures."""
    return "search" in _entries(e)


def _entries(e: Experiment) -> tuple[str | dict[str, Any], ...]:
    """What is measured in an experiment: its own word, or what goes without saying."""
    return e.measure or (("search",) if e.search else ("original", "methods"))


def rows_of(e: Experiment, name: str, seed: int, target: Any) -> Iterator[Planned]:
    """The rows of one trial."""
    row = partial(Planned, name, seed, target)
    for entry in _entries(e):
        whole = {entry: None} if isinstance(entry, str) else dict(entry)
        if whole == {"methods": None}:
            whole = {"method": list(e.methods)}
        seeds = whole.pop("seeds", None)
        if seeds is not None and seed not in seeds:
            continue
        (measure, labels), *grid = whole.items()
        if measure == "search":  # what it tries at first
            for label, tried in e.search.items():
                for at in itertools.product(*tried.values()):
                    yield row("method", label, dict(zip(tried, at, strict=True)))
            continue
        names = [k for k, _ in grid]
        values = [e.grid[k] if v == "grid" else v for k, v in grid]
        values = [v if isinstance(v, list) else [v] for v in values]
        for label in labels if isinstance(labels, list) else [labels]:
            for at in itertools.product(*values):
                yield row(measure, label, dict(zip(names, at, strict=True)))
