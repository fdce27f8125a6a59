"""Rows, and the record that a run of one notebook leaves: versioned JSON, and views of it."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import platform
import secrets
import subprocess
import time
import warnings
from collections.abc import Container, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from uncertainties import UFloat, ufloat

from ..registry import ConfigError

__all__ = [
    "ROW_SCHEMA",
    "SCHEMA",
    "Fact",
    "Invariant",
    "Margin",
    "MissingRowError",
    "NotMadeError",
    "Presupposed",
    "Provenance",
    "Record",
    "Row",
    "Rows",
    "Search",
    "Skip",
    "Value",
    "Verdict",
    "git",
    "git_state",
    "whatever_version",
    "with_error",
]

#: Raised when the layout of the JSON changes.
SCHEMA = 2

#: Part of every row's key: raised only when all rows are to be made again.
ROW_SCHEMA = 1

VERSIONS = ("torch", "torchvision", "numpy", "scikit-learn", "accelerate", "transformers")


class Model(BaseModel):
    # What is not a finite number is refused when it is read as when it is made.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def faults(error: ValidationError) -> str:
    """What is wrong with some data, in one line: where, and what."""
    lines = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    return "; ".join(dict.fromkeys(lines))


#: The method column's word for the model before unlearning.
ORIGINAL = "Original"


class MissingRowError(LookupError):
    """A rule or a figure asks for a row that the run does not have."""


class NotMadeError(MissingRowError):
    """A row was not made before, and no new one is asked for.

    Attributes
    ----------
    key : what identifies the row: the same for rows that are alike
    row : what it is called
    """

    def __init__(self, message: str, key: str = "", row: str = "") -> None:
        super().__init__(message)
        self.key, self.row = key, row


class Value(Model):
    """A metric's value, the number of examples it was measured on, and its standard error."""

    value: float
    n: int | None = None
    stderr: float | None = None


class Provenance(Model):
    """Where a row comes from; each row has its own."""

    commit: str | None
    dirty: bool
    date: str
    device: str
    threads: int
    versions: dict[str, str]
    sources: tuple[dict[str, str], ...]
    seconds: float


class Row(Model):
    """The unit of running, caching and publishing: one method, once, in one experiment."""

    experiment: str
    method: str
    seed: int
    variant: dict[str, Any] = {}
    key: str
    spec: dict[str, Any]
    metrics: dict[str, Value]
    detail: dict[str, Any] = {}
    provenance: Provenance

    @property
    def superseded(self) -> tuple[str, ...]:
        """The methods behind it that have another version by now: it would be made again."""
        known = _versions()
        found = {p["is"]: p["version"] for p in _described(self.spec) if "version" in p}
        return tuple(name for name, own in found.items() if known.get(name, own) != own)


def _versions() -> dict[str, int]:
    """The version of every method and selection rule, by its class's name."""
    # Imported here: whoever only lists papers needs no PyTorch.
    from ..methods import CONTINUAL, METHODS
    from ..methods.worst_case import SELECTORS
    from ..methods.worst_prompts import PROMPT_SELECTORS

    kinds: tuple[Mapping[str, Any], ...] = (METHODS, CONTINUAL, SELECTORS, PROMPT_SELECTORS)
    return {cls.__name__: cls.version for kind in kinds for cls in kind.values()}


def _described(spec: Any) -> Iterator[dict[str, Any]]:
    """Every object that a row's spec describes (`registry.describe`), those inside others, too."""
    if isinstance(spec, dict):
        if "is" in spec:
            yield spec
        spec = list(spec.values())
    if isinstance(spec, list | tuple):
        for part in spec:
            yield from _described(part)


def whatever_version(spec: Any) -> Any:
    """A row's spec without the versions of methods."""
    if isinstance(spec, Mapping):
        left_out = {"version"} if spec.get("is") in _versions() else set()
        return {k: whatever_version(v) for k, v in spec.items() if k not in left_out}
    return [whatever_version(v) for v in spec] if isinstance(spec, list | tuple) else spec


class Margin(Model):
    """By how much a claim holds on one seed, and the standard error of that, where it is known."""

    value: float
    stderr: float | None = None


class Presupposed(Model):
    """What a claim presupposes, whether it is so on one seed, and what was found, in words."""

    name: str
    seed: int
    holds: bool
    found: str


class Verdict(Model):
    """What a claim's rule says of the rows; `unlearn_core.replication.claims` has the arithmetic.

    ``ours`` is our number in words, as the claim's ``paper_value`` is the paper's.
    """

    claim: str
    verdict: Literal["holds", "tie", "fails", "holds in part", "not tested"]
    margins: dict[int, Margin] = {}
    mean: float | None = None
    stderr: float | None = None
    reason: str = ""
    presupposes: tuple[Presupposed, ...] = ()
    ours: str = ""
    rule: str = ""
    rows: int = 0
    age: Literal["older", "younger", "unknown"] = "unknown"
    rule_commit: str | None = None

    @property
    def text(self) -> str:
        """The verdict in words, with the share of seeds where it holds in some."""
        if self.verdict != "holds in part":
            return self.verdict
        held = sum(m.value >= 0 for m in self.margins.values())
        return f"holds in {held} of {len(self.margins)} seeds"


class Search(Model):
    """What was tried for one method's hyper-parameters, and what was chosen."""

    experiment: str
    method: str
    names: tuple[str, ...]
    tried: tuple[tuple[Any, ...], ...] = ()
    scores: tuple[float, ...] = ()
    kept: tuple[bool, ...] = ()
    chosen: tuple[Any, ...] = ()
    edges: tuple[str, ...] = ()


class Fact(Model):
    """A line of the box that sets our regime beside the paper's."""

    name: str
    ours: str
    paper: str


class Invariant(Model):
    """Something that must be true whatever the method does; it catches a broken oracle."""

    name: str
    experiment: str
    seed: int
    holds: bool
    detail: str


class Skip(Model):
    """An experiment, or some of its seeds, that did not run, and what would lift that.

    ``seeds`` are those that are left out; where none is named, all are.
    """

    experiment: str
    reason: str
    seeds: tuple[int, ...] = ()

    def __str__(self) -> str:
        which = f"seed{'s' * (len(self.seeds) > 1)} {', '.join(map(str, self.seeds))}: "
        return f"{which if self.seeds else ''}{self.reason}"


class Record(Model):
    """Everything that a run of a notebook found."""

    schema_version: int = SCHEMA
    paper: str
    profile: str
    rehearsal: bool = False
    config: str
    commit: str | None
    dirty: bool
    started: str
    finished: str
    seconds: float
    environment: dict[str, str]
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    verdicts: tuple[Verdict, ...]
    invariants: tuple[Invariant, ...]
    effects: dict[str, str] = {}
    skips: tuple[Skip, ...] = ()
    searches: tuple[Search, ...] = ()
    findings: tuple[str, ...] = ()
    regime: tuple[Fact, ...] = ()

    @property
    def seconds_spent(self) -> float:
        """Making the rows, and training the models that they name: each model once, and each row
        that two experiments share.

        A row that found its model trained took less time than the training did; where no row took
        longer, the training is in none.
        """
        spent, apart, seen = 0.0, {}, set()
        for row in self.rows:
            made = (row.seed, str(row.variant), str(row.spec), row.provenance.date)
            spent += 0.0 if made in seen else row.provenance.seconds
            seen.add(made)
            if model := row.detail.get("model"):
                own = (model["date"], model["seconds"])
                within = row.provenance.seconds >= model["seconds"]
                apart[own] = 0.0 if within else apart.get(own, model["seconds"])
        return spent + sum(apart.values())

    @classmethod
    def read(cls, file: Path) -> Record:
        """What a run left.

        Raises
        ------
        ConfigError
            The file is no record that this version reads; the message names it, and what mends it.
        FileNotFoundError
            There is no such file.
        """
        try:
            data = json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_number)
            if not isinstance(data, dict):
                raise ValueError("it is no mapping")
            schema = data.get("schema_version")
            if schema == 1:  # margins had no error, and verdicts no ties
                old = {"not tested at this scale": "not tested"}
                for v in data["verdicts"]:
                    v["verdict"] = old.get(v["verdict"], v["verdict"])
                    v["margins"] = {seed: {"value": m} for seed, m in v["margins"].items()}
            elif schema != SCHEMA:
                raise ValueError(f"it has schema {schema}, and this version reads {SCHEMA}")
            record = cls.model_validate(data)
            return record if schema == SCHEMA else record._with_means()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            why: object = faults(error) if isinstance(error, ValidationError) else error
            why = f"it lacks {why}" if isinstance(error, KeyError) else why
            raise ConfigError(
                f"{file} is no record that can be read ({why}). Delete it with the notebook beside "
                "it and run the paper again, or take both from git again"
            ) from error

    def _with_means(self) -> Record:
        """With the mean margins that the first schema did not have."""
        verdicts = tuple(
            v.model_copy(update={"mean": sum(m.value for m in v.margins.values()) / len(v.margins)})
            if v.margins
            else v
            for v in self.verdicts
        )
        return self.model_copy(update={"verdicts": verdicts})

    def of(self, claims: Container[str], config: str) -> Record:
        """The record without verdicts of claims that its paper no longer states.

        ``config`` is the `source_hash` of the paper's sources as they are.

        Raises
        ------
        ConfigError
            The sources are those that the record was made of, and never stated such a claim.
        """
        kept = tuple(v for v in self.verdicts if v.claim in claims)
        if len(kept) < len(self.verdicts) and self.config == config:
            unknown = next(v.claim for v in self.verdicts if v.claim not in claims)
            raise ConfigError(
                f"the record of {self.paper} at {self.profile} judges {unknown!r}, which "
                f"notebooks/{self.paper}.yaml does not state; run the paper again"
            )
        return self.model_copy(update={"verdicts": kept})

    def write(self, file: Path) -> None:
        """Write the record; a kill or a power cut leaves the former one or this one.

        Raises
        ------
        OSError
            The disk is full, say; the message names the file. Nothing half-written is left.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        for litter in (
            *file.parent.glob(f".{file.name}-*"),
            *file.parent.glob(f"{file.stem}.[0-9]*"),
        ):
            # Of a run that was killed while it wrote, which takes no second.
            with contextlib.suppress(FileNotFoundError):
                if time.time() - litter.stat().st_mtime > 60:
                    litter.unlink()
        aside = file.with_name(f".{file.name}-{secrets.token_hex(4)}")
        try:
            with aside.open("w", encoding="utf-8") as handle:
                handle.write(self.model_dump_json(indent=1))
                handle.flush()
                os.fsync(handle.fileno())
            aside.replace(file)
        except BaseException as error:
            aside.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise OSError(error.errno, error.strerror, str(file)) from error
            raise

    def to_csv(self) -> str:
        """One line a metric of a row."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        head = ("paper", "profile", "experiment", "method", "seed", "variant", "metric")
        writer.writerow((*head, "value", "n", "stderr", "commit", "date"))
        for row in self.rows:
            variant = ";".join(f"{k}={v}" for k, v in row.variant.items())
            for name, m in row.metrics.items():
                writer.writerow(
                    [
                        *(self.paper, self.profile, row.experiment, row.method, row.seed, variant),
                        *(name, m.value, m.n, m.stderr, row.provenance.commit, row.provenance.date),
                    ]
                )
        return out.getvalue()


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no number")


class Rows:
    """The rows of a run, looked up by what they are."""

    def __init__(self, rows: tuple[Row, ...] | list[Row]) -> None:
        self._rows = {self._name(r.experiment, r.method, r.seed, r.variant): r for r in rows}
        self._read: list[set[str]] = []
        self._variables: dict[tuple[str, str], UFloat] = {}

    @staticmethod
    def _name(experiment: str, method: str, seed: int, variant: dict[str, Any]) -> tuple:
        return experiment, method, seed, tuple(sorted(variant.items()))

    def __iter__(self) -> Iterator[Row]:
        return iter(self._noted(self._rows.values()))

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: Row) -> None:
        """Keep a row; one of the same names before it is replaced."""
        self._rows[self._name(row.experiment, row.method, row.seed, row.variant)] = row

    @contextlib.contextmanager
    def reading(self) -> Iterator[set[str]]:
        """The keys of all rows that are looked at inside the block."""
        keys: set[str] = set()
        self._read.append(keys)
        try:
            yield keys
        finally:
            self._read.pop()

    def _noted(self, rows: Iterable[Row]) -> list[Row]:
        found = list(rows)
        for keys in self._read:
            keys.update(r.key for r in found)
        return found

    def row(self, experiment: str, method: str, seed: int, **variant: Any) -> Row:
        """The row whose variant is ``variant``, or else the only one whose variant has it.

        Raises
        ------
        MissingRowError
            There is no such row, or several.
        """
        exact = self._rows.get(self._name(experiment, method, seed, variant))
        if exact is not None:
            return self._noted([exact])[0]
        found = [
            r
            for r in self._rows.values()
            if (r.experiment, r.method, r.seed) == (experiment, method, seed)
            and variant.items() <= r.variant.items()
        ]
        if len(found) != 1:
            count = "several rows" if found else "no row"
            raise MissingRowError(f"{count} {experiment} / {method} / seed {seed} / {variant}")
        return self._noted(found)[0]

    def value(self, experiment: str, method: str, metric: str, seed: int, **variant: Any) -> float:
        """A metric's value in one row.

        Raises
        ------
        MissingRowError
            There is no such row, or it has no such metric.
        """
        return self._metric(experiment, method, metric, seed, variant)[1].value

    def measured(
        self, experiment: str, method: str, metric: str, seed: int, **variant: Any
    ) -> UFloat:
        """A metric's value with its standard error, to calculate with (package ``uncertainties``).

        The same metric of the same row is the same variable wherever it is looked up, so what is
        subtracted from itself has no error left. Where the metric has no standard error, that of
        whatever is calculated from it is NaN: not known. A share of nothing or all has one
        (`error_to_judge_by`).
        """
        row, found = self._metric(experiment, method, metric, seed, variant)
        if (row.key, metric) not in self._variables:
            error = error_to_judge_by(metric, found)
            self._variables[row.key, metric] = with_error(found.value, error)
        return self._variables[row.key, metric]

    def _metric(
        self, experiment: str, method: str, metric: str, seed: int, variant: dict[str, Any]
    ) -> tuple[Row, Value]:
        row = self.row(experiment, method, seed, **variant)
        if metric not in row.metrics:
            raise MissingRowError(f"{experiment} / {method} has no metric {metric!r}")
        return row, row.metrics[metric]

    def where(self, experiment: str, method: str | None = None) -> list[Row]:
        """The rows of an experiment (and of one method), in the order in which they were made."""
        return self._noted(
            r
            for r in self._rows.values()
            if r.experiment == experiment and (method is None or r.method == method)
        )


def error_to_judge_by(metric: str, found: Value) -> float | None:
    """The standard error with which a verdict reads a metric: its own, but for shares of 0 and 100 %.

    Theirs is 0 by the binomial formula, as if every other sample had to come out the same. Here two
    errors reach the far end of the Wilson interval of two: of n cases an error is 200 / (n + 4) points.
    """
    # Imported here: whoever only lists papers needs no PyTorch.
    from ..metrics import MEANS, METRICS

    a_share = metric in METRICS and METRICS[metric].unit == "%" and metric not in MEANS and found.n
    if found.stderr != 0 or found.value not in (0, 100) or not a_share:
        return found.stderr
    return 100 * error_of_none(found.n)


def error_of_none(n: int) -> float:
    """Half the way from no case of ``n`` to the far end of its Wilson interval of two errors."""
    from scipy import stats

    within_two = 2 * stats.norm.cdf(2) - 1
    return stats.binomtest(0, n).proportion_ci(within_two, method="wilson").high / 2


def with_error(value: float, stderr: float | None) -> UFloat:
    """A value to calculate with; an error that is not known (None) is NaN, and 0 is no error."""
    with warnings.catch_warnings():  # of 0: the package warns of what accuracies of 100 % have
        warnings.simplefilter("ignore", UserWarning)
        return ufloat(value, math.nan if stderr is None else stderr)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def git(root: Path, *args: str) -> str:
    """What git says of a folder's own repository, whatever the environment names (a hook's, say).

    Raises
    ------
    OSError
        There is no git, no repository, or no such thing in it.
    """
    own = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    # The folder's own repository, or none: not one that the folder merely lies in.
    command = ["git", "-C", str(root), "--git-dir=.git", *args]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=own)
    if done.returncode:
        raise OSError(done.stderr)
    return done.stdout.strip()


def git_state(root: Path) -> tuple[str | None, bool]:
    """The commit of a working tree and whether it differs from it (True where there is no git)."""
    try:
        changes = git(root, "status", "--porcelain", "--untracked-files=normal")
        return git(root, "rev-parse", "HEAD"), bool(changes)
    except OSError:
        return None, True


@cache
def environment() -> dict[str, str]:
    """Versions and hardware, in words."""
    import torch

    cuda = torch.cuda.is_available()
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(
        OSError, StopIteration
    ):  # elsewhere than on Linux: the platform's word
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next(x.split(":")[1].strip() for x in lines if x.startswith("model name"))
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in VERSIONS},
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": f"{cpu}, {os.cpu_count()} logical cores",
        "accelerator": torch.cuda.get_device_name() if cuda else "none",
    }
