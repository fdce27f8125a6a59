"""One run of one notebook: its profile, its rows, its claims, and the record that it leaves."""

from __future__ import annotations

import inspect
import logging
import math
import os
import textwrap
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import torch
from pydantic import ValidationError

from ..data import DATASETS, ImageData
from ..metrics import METRICS, Estimate
from ..registry import ConfigError, build, did_you_mean
from .cache import Cache, digest
from .claims import Precondition, Rule, judge, rule_parts
from .history import notebook_code, rule_age
from .papers import Experiment, load_paper, paper_sources, project_root, rehearsed
from .progress import Progress, planned_rows, row_name
from .records import (
    ORIGINAL,
    ROW_SCHEMA,
    Fact,
    Invariant,
    MissingRowError,
    NotMadeError,
    Provenance,
    Record,
    Row,
    Rows,
    Search,
    Skip,
    Value,
    Verdict,
    environment,
    faults,
    git_state,
    now,
    whatever_version,
)

__all__ = ["InvariantError", "Replication", "finite_values"]

log = logging.getLogger(__name__)

#: What a row is called.
NAMES = ("experiment", "method", "seed", "variant")

#: Why an experiment, or some of its seeds, is left out where only made rows are asked for.
UNMADE = "not all of its rows are made yet"


class InvariantError(AssertionError):
    """Something that must be true is not: the run's numbers mean nothing until it is mended."""


class Replication:
    """What a notebook holds while it runs.

    Parameters
    ----------
    paper : slug of the notebook and its YAML
    profile : one of `PROFILES`
    out : folder for the record, relative to the project's root

    Environment
    -----------
    UNLEARN_CACHE : the cache's folder, relative to the project's root (default ``build/cache``)
    UNLEARN_CLEAN : "1" accepts only rows that were made on a clean commit, and makes others again;
        what the cache lacks is taken from the records in ``book/published``
    UNLEARN_ROWS : "published" makes no row: one that was not made before ends the run, and one that an
        earlier version of its method has made is taken as it was published. "made" takes
        what is there of a long measurement: seeds and experiments whose rows are not all made are
        left out, and what needs them is not tested yet
    UNLEARN_REHEARSE : "1" runs the profile for a few steps (`make rehearse`)
    """

    def __init__(self, paper: str, profile: str, out: str) -> None:
        # No row's key says in what precision matrices are multiplied: it is always the same.
        torch.set_float32_matmul_precision("highest")
        if "NVIDIA_TF32_OVERRIDE" in os.environ:
            raise ConfigError("NVIDIA_TF32_OVERRIDE changes results under the same key: unset it")
        self.slug, self.profile_name = paper, profile
        self.root = project_root()
        self.file = load_paper(paper)
        self.rehearsal = os.environ.get("UNLEARN_REHEARSE") == "1"
        self.profile = self.file.profile(profile)
        if self.rehearsal:
            self.profile = rehearsed(self.profile)
        self.out = self.root / out
        self.cache = Cache(self.root / (os.environ.get("UNLEARN_CACHE") or "build/cache"))
        self.cache.sweep()
        self.clean_only = os.environ.get("UNLEARN_CLEAN") == "1"
        self.rows_asked = os.environ.get("UNLEARN_ROWS", "")
        if self.rows_asked not in ("", "published", "made"):
            raise ConfigError(
                f"UNLEARN_ROWS is published, made or nothing, not {self.rows_asked!r}"
            )
        #: None: every row that is asked for is made; else that with this key alone.
        self.only: str | None = None
        self._whole: dict[str, tuple[int, ...]] = {}  # seeds whose rows are all made
        self.commit, self.dirty = git_state(self.root)
        if self.clean_only and self.dirty:
            raise ConfigError("UNLEARN_CLEAN asks for a clean commit, but the tree has changes")
        self.rows = Rows([])
        self.verdicts: dict[str, Verdict] = {}
        self.preconditions: dict[str, Precondition] = {}
        self.searches: dict[tuple[str, str], Search] = {}
        self.findings: list[str] = []
        self.regime: list[Fact] = []
        self.invariants: list[Invariant] = []
        self.effects: dict[str, str] = {}
        self.progress = Progress(planned_rows(self))
        self._started, self._clock = now(), time.perf_counter()
        self.shared: dict[str, Any] = {}  # what trials make once for all of them
        self._data: dict[str, ImageData] = {}
        self._fingerprints: dict[str, tuple[str, str, str | None]] = {}

    @property
    def seeds(self) -> tuple[int, ...]:
        """The profile's seeds; where only made rows are asked for, those with a whole experiment."""
        if not self._whole:
            return self.profile.seeds
        whole = {s for name in self._whole for s in self._whole[name]}
        return tuple(s for s in self.profile.seeds if s in whole)

    def seeds_of(self, experiment: str) -> tuple[int, ...]:
        """The seeds of one experiment: its own where it names some, else the profile's.

        Where only made rows are asked for, those of them whose rows are all made.
        """
        return self._whole.get(experiment, self._asked(experiment))

    def leave_out(self, experiment: str, unmade: set[int]) -> None:
        """Note, after an experiment's rows were asked for, on which seeds some were not made."""
        own = self._asked(experiment)
        self._whole[experiment] = tuple(s for s in own if s not in unmade)

    def _asked(self, experiment: str) -> tuple[int, ...]:
        """The seeds that the YAML asks an experiment for."""
        return self.experiment(experiment).seeds or self.profile.seeds

    def originals(self, experiment: str) -> tuple[int, ...]:
        """The seeds that the rows of an experiment's originals and retrained models have."""
        e = self.experiment(experiment)
        shared = e.original_seed is not None and not e.drawn
        return (e.original_seed,) if shared else self.seeds_of(experiment)

    @property
    def skips(self) -> tuple[Skip, ...]:
        """Experiments whose requirement the environment does not meet, and what is not made yet."""
        unmet = [
            Skip(experiment=name, reason=f"{e.requires.env} is not set: {e.requires.why}")
            for name, e in self.profile.experiments.items()
            if e.requires is not None and not os.environ.get(e.requires.env)
        ]
        unmade = [
            Skip(experiment=name, reason=UNMADE, seeds=left if whole else ())
            for name, whole in self._whole.items()
            if (left := tuple(s for s in self._asked(name) if s not in whole))
        ]
        return (*unmet, *unmade)

    @cached_property
    def published(self) -> dict[str, Row]:
        """The rows that the book has published, by key: a row that two sizes share is one row.

        A run that publishes makes none of them again, so that one chapter's new row needs no
        second night for all others; any other run makes its own.
        """
        if not self.clean_only:
            return {}
        files = sorted((self.root / "book" / "published").glob("*/*.json"))
        return {row.key: row for file in files for row in Record.read(file).rows}

    @cached_property
    def _formers(self) -> dict[str, Row]:
        """The published rows by what they are, whatever version of its method made each."""
        return {
            _whatever_version(row.model_dump(include={*NAMES}), row.spec): row
            for row in self.published.values()
        }

    def experiments(self, prefix: str = "") -> list[str]:
        """The experiments that run in this profile: the one of that name, or those that begin so."""
        known, skipped = self.profile.experiments, {s.experiment for s in self.skips if not s.seeds}
        wanted = [prefix] if prefix in known else [n for n in known if n.startswith(prefix)]
        return [n for n in wanted if n not in skipped]

    def rows_of(self, name: str) -> list[Row]:
        """An experiment's rows, with the original's and the oracle's where another one has these."""
        own, e = self.rows.where(name), self.experiment(name)
        if name in self._whole:
            seeds = {*self._whole[name], *self.originals(name)}
            own = [r for r in own if r.seed in seeds]
        if e.originals_of is None:
            return own
        seeds, kinds = self.originals(name), (ORIGINAL, e.oracle)
        shared = self.rows.where(e.originals_of)
        return [r for r in shared if r.method in kinds and r.seed in seeds] + own

    def experiment(self, name: str) -> Experiment:
        """The experiment of that name; a `ConfigError` says which there are."""
        known = self.profile.experiments
        if name not in known:
            raise ConfigError(f"unknown experiment {name!r}; {did_you_mean(name, known)}")
        return known[name]

    def grid(self, name: str, *keys: str) -> list[list[Any]]:
        """The values that an experiment loops over; exactly these keys, or it raises."""
        grid = self.experiment(name).grid
        if set(grid) != set(keys):
            raise ConfigError(f"{name}: grid has {sorted(grid)}, the notebook reads {sorted(keys)}")
        return [grid[k] for k in keys]

    def data(self, name: str) -> ImageData:
        """The data of an experiment; experiments with the same data share it."""
        spec = self.experiment(name).data
        key = digest(spec)
        if key not in self._data:
            self._data[key] = build(DATASETS, spec, "data set")
        return self._data[key]

    def fingerprints(self, name: str) -> tuple[str, str, str | None]:
        """What identifies an experiment's training, test and (if any) validation images."""
        key = digest(self.experiment(name).data)
        if key not in self._fingerprints:
            data = self.data(name)
            held = data.validation.fingerprint() if data.validation is not None else None
            self._fingerprints[key] = data.train.fingerprint(), data.test.fingerprint(), held
        return self._fingerprints[key]

    def targets(self, name: str) -> list[Any]:
        """What an experiment forgets, one after the other: classes, or sizes of random sets."""
        ((kind, wanted),) = self.experiment(name).forget.items()
        if wanted == "all":
            return list(
                getattr(self.data(name), {"class": "classes", "subclass": "subclasses"}[kind])
            )
        return wanted if isinstance(wanted, list) else [wanted]

    def row(
        self,
        experiment: str,
        method: str,
        seed: int,
        spec: Mapping[str, Any],
        compute: Callable[[], tuple[Mapping[str, Estimate], Mapping[str, Any]]],
        *,
        sources: tuple[dict[str, str], ...],
        device: torch.device,
        variant: Mapping[str, Any] | None = None,
        alike: bool = False,
    ) -> Row:
        """One row, from the cache or from ``compute()``, which gives metrics and detail.

        ``spec`` must hold everything that determines the result besides the names and the seed.
        With ``alike`` a row that differs in the names of experiment and method alone, and was made
        before, is this one under its own names.
        """
        names = {
            "experiment": experiment,
            "method": method,
            "seed": seed,
            "variant": dict(variant or {}),
        }
        key = digest({"schema": ROW_SCHEMA, **names, "spec": dict(spec)})
        called = row_name(**names)
        row = self._made(key, self.cache.find("rows", key))
        content = digest([seed, names["variant"], dict(spec)]) if alike else None
        if row is None and content and (same := self._alike(content)):
            row = same.model_copy(update={**names, "key": key})
        if row is None and self.rows_asked == "published":
            row = self._formers.get(_whatever_version(names, spec))
        if row is not None:
            self.progress.found(called)
        elif self.rows_asked or self.only not in (None, content or key):
            who = "UNLEARN_ROWS asks for none" if self.rows_asked else "another one is to be made"
            raise NotMadeError(f"{called} would be a new row, and {who}", content or key, called)
        else:
            # A wait for another run that makes it, or one alike, is part of its time.
            with ExitStack() as held:
                held.enter_context(self.progress.making(called))
                held.enter_context(self.cache.lock("rows", key))
                row = self._made(key, self.cache.read("rows", key))
                if content:
                    held.enter_context(self.cache.lock("alike", content))
                if row is None and content and (same := self._alike(content)):
                    row = same.model_copy(update={**names, "key": key})
                elif row is None:
                    began = time.perf_counter()
                    metrics, detail = compute()
                    provenance = Provenance(
                        commit=self.commit,
                        dirty=self.dirty,
                        date=now(),
                        device=str(device),
                        threads=torch.get_num_threads(),
                        versions=environment(),
                        sources=sources,
                        seconds=time.perf_counter() - began,
                    )
                    row = Row(
                        **names,
                        key=key,
                        spec=dict(spec),
                        metrics=finite_values(f"{experiment} / {method}", metrics),
                        detail=dict(detail),
                        provenance=provenance,
                    )
                    if content:  # first: a kill in between leaves no row that its likes don't find
                        self.cache.write("alike", content, {"row": key})
                    self.cache.write("rows", key, row.model_dump(mode="json"))
                    log.info("%s / %s / seed %d: made", experiment, method, seed)
        self.rows.add(row)
        return row

    def _alike(self, content: str) -> Row | None:
        """A row of that content, whatever experiment and method are called."""
        known = self.cache.find("alike", content)
        return known and self._made(known["row"], self.cache.find("rows", known["row"]))

    def _made(self, key: str, cached: dict[str, Any] | None) -> Row | None:
        """The row of that key that was made before, in the cache or in the book, if it is fit."""
        if cached is not None:
            try:
                row = Row.model_validate(cached)
            except ValidationError as error:
                raise self.cache.error(
                    f"the row {key[:12]} was written by another version of this code; give each a "
                    f"cache of its own: {faults(error)}"
                ) from error
            if not (self.clean_only and row.provenance.dirty):
                return row
        return self.published.get(key)

    def invariant(self, name: str, experiment: str, seed: int, holds: bool, detail: str) -> None:
        """Record something that must be true; `finish` raises if one of them is not.

        What is checked again with the same outcome is recorded once.
        """
        found = Invariant(
            name=name, experiment=experiment, seed=seed, holds=bool(holds), detail=detail
        )
        if found not in self.invariants:
            self.invariants.append(found)

    def precondition(self, key: str) -> Callable[[Precondition], Precondition]:
        """Decorator: the rule ``(rows, seed) -> Check`` that says whether ``key`` is so.

        A claim names in its YAML's ``needs`` what it presupposes.
        """
        if key not in self.file.preconditions:
            raise ConfigError(
                f"unknown precondition {key!r}; {did_you_mean(key, self.file.preconditions)}"
            )

        def kept(rule: Precondition) -> Precondition:
            self.preconditions[key] = rule
            return rule

        return kept

    def claim(self, key: str, seeds: tuple[int, ...] | None = None) -> Callable[[Rule], Rule]:
        """Decorator: the rule ``(rows, seed) -> margin`` that judges the claim ``key``.

        It is asked for every seed of the profile, or for ``seeds``. What the claim needs must
        have been defined before.
        """
        if key not in self.file.claims:
            raise ConfigError(f"unknown claim {key!r}; {did_you_mean(key, self.file.claims)}")
        claim = self.file.claims[key]

        def judged(rule: Rule) -> Rule:
            tested = self.profile_name in claim.judged_at
            asked = (self.seeds if seeds is None else seeds) if tested else ()
            if asked and (left := [n for n in claim.needs if n not in self.preconditions]):
                raise ConfigError(f"claim {key} needs {left}, which the notebook has not defined")
            needs = {self.file.preconditions[n]: self.preconditions.get(n) for n in claim.needs}
            code = notebook_code((self.root / self._notebook).read_text(encoding="utf-8"))
            parts = rule_parts(code, rule.__name__, *(f.__name__ for f in needs.values() if f))
            verdict, read = judge(
                key,
                rule,
                self.rows,
                asked,
                preconditions=needs,
                unsettled=self.unsettled,
                partial=tested and self.rows_asked == "made",
                source=textwrap.dedent(inspect.getsource(rule)),
            )
            rows = [r for r in self.rows if r.key in read]
            age, commit = rule_age(self.root, self._notebook, parts, rows)
            self.verdicts[key] = verdict.model_copy(update={"age": age, "rule_commit": commit})
            return rule

        return judged

    def ours(self, key: str) -> Callable[[Callable[[Rows], str]], Callable[[Rows], str]]:
        """Decorator: our number for the claim ``key``, in words, as its ``paper_value`` is the paper's.

        It stands after the claim's rule and is no part of it; it is asked where the claim is judged.
        """
        if key not in self.verdicts:
            raise ConfigError(f"no claim {key!r} was judged yet")

        def said(number: Callable[[Rows], str]) -> Callable[[Rows], str]:
            if self.profile_name in self.file.claims[key].judged_at:
                found = {"ours": self._said(number) or ""}
                self.verdicts[key] = self.verdicts[key].model_copy(update=found)
            return number

        return said

    def _said(self, words: Callable[[Rows], str | None]) -> str | None:
        """What the rows say; None where only made rows are asked for, and one is missing."""
        try:
            return words(self.rows)
        except MissingRowError:
            if self.rows_asked != "made":
                raise
            return None

    @property
    def _notebook(self) -> str:
        return f"notebooks/{self.slug}.ipynb"

    def unsettled(self, keys: set[str]) -> str:
        """Why rows of these keys can't be judged yet: an earlier version of their method made them, or what
        chose their settings stands at an edge."""
        for row in self.rows:
            experiment = self.profile.experiments.get(row.experiment)
            if row.key not in keys or experiment is None:
                continue
            if row.superseded:
                return f"a row of {row.method} was made by an earlier version of the method"
            names = reversed(experiment.tuned or (row.experiment,))
            found = (self.searches.get((name, row.method)) for name in names)
            search = next(filter(None, found), None)  # of several the later one chose
            if search is not None and search.edges:
                return (
                    f"{search.method}'s {', '.join(search.edges)} was chosen at an edge of its grid"
                )
        return ""

    def finding(self, sentence: Callable[[Rows], str | None]) -> Callable[[Rows], str | None]:
        """Decorator: a sentence of *What we found*, its numbers read from the rows.

        None where this profile has nothing to say about it.
        """
        if found := self._said(sentence):
            self.findings.append(found)
        return sentence

    def regime_fact(self, name: str, ours: str, paper: str) -> None:
        """A line of the box that sets our regime beside the paper's."""
        self.regime.append(Fact(name=name, ours=ours, paper=paper))

    def effect(self, key: str) -> Callable[[Callable[[Rows], str]], Callable[[Rows], str]]:
        """Decorator: a function of the rows that says what the deviation ``key`` changes."""
        deviation = self.file.deviations.get(key)
        if deviation is None or not deviation.measured:
            raise ConfigError(f"no deviation {key!r} is marked as measured")

        def measured(function: Callable[[Rows], str]) -> Callable[[Rows], str]:
            self.effects[key] = self._said(function) or "not measured yet"
            return function

        return measured

    def finish(self) -> Record:
        """Write the record; every claim must have been judged and every invariant must hold.

        Raises
        ------
        ConfigError
            A claim or a measured deviation of the YAML was left out.
        InvariantError
            An invariant does not hold (the record is written first, so that it can be looked at).
        """
        left = set(self.file.claims) - set(self.verdicts)
        left |= {k for k, d in self.file.deviations.items() if d.measured} - set(self.effects)
        if left:
            raise ConfigError(f"the notebook never judged or measured {sorted(left)}")
        record = Record(
            paper=self.slug,
            profile=self.profile_name,
            rehearsal=self.rehearsal,
            config=source_hash(self.slug),
            commit=self.commit,
            dirty=self.dirty,
            started=self._started,
            finished=now(),
            seconds=time.perf_counter() - self._clock,
            environment=environment(),
            seeds=self.seeds,
            rows=tuple(self.rows),
            verdicts=tuple(self.verdicts[k] for k in self.file.claims),
            invariants=tuple(self.invariants),
            effects=self.effects,
            skips=self.skips,
            searches=tuple(self.searches.values()),
            findings=tuple(self.findings),
            regime=tuple(self.regime),
        )
        record.write(self.out / f"{self.slug}.json")
        broken = [i for i in self.invariants if not i.holds]
        if broken:
            raise InvariantError(
                "; ".join(f"{i.experiment}, seed {i.seed}: {i.name} ({i.detail})" for i in broken)
            )
        return record


def _whatever_version(names: Mapping[str, Any], spec: Mapping[str, Any]) -> str:
    """What identifies a row but for the versions of the methods behind it."""
    return digest({**names, "spec": whatever_version(spec)})


def finite_values(whose: str, metrics: Mapping[str, Estimate]) -> dict[str, Value]:
    """A row's metrics as they are kept.

    Raises
    ------
    ConfigError
        A metric that is not in the catalogue.
    ValueError
        A value or a standard error that is not a finite number.
    """
    if unknown := set(metrics) - set(METRICS):
        raise ConfigError(f"{whose}: unknown metrics {sorted(unknown)}")
    for name, estimate in metrics.items():
        for number in (estimate.value, estimate.stderr):
            if number is not None and not math.isfinite(number):
                raise ValueError(f"{whose}: {name} is {number}")
    return {k: Value(**v._asdict()) for k, v in metrics.items()}


def source_hash(slug: str) -> str:
    """A hash of what makes a notebook: a record with another one is older than its sources."""
    return digest([f.read_text(encoding="utf-8") for f in paper_sources(slug)])
