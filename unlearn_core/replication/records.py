"""Rows, and the record that a run of one notebook leaves: versioned JSON, and views of it."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict

__all__ = [
    "SCHEMA",
    "Invariant",
    "MissingRowError",
    "Provenance",
    "Record",
    "Row",
    "Rows",
    "Skip",
    "Value",
    "Verdict",
    "git_state",
]

#: Raised when the layout of the JSON changes.
SCHEMA = 1

VERSIONS = ("torch", "torchvision", "numpy", "scikit-learn", "accelerate", "transformers")


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


#: The method column's word for the model before unlearning.
ORIGINAL = "Original"


class MissingRowError(LookupError):
    """A rule or a figure asks for a row that the run does not have."""


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


class Verdict(Model):
    """A claim's verdict: arithmetic over the seeds' margins (a margin of 0 or more holds)."""

    claim: str
    verdict: Literal["holds", "holds in part", "fails", "not tested at this scale"]
    margins: dict[int, float] = {}
    rule: str = ""

    @property
    def text(self) -> str:
        if self.verdict != "holds in part":
            return self.verdict
        return f"holds in {sum(m >= 0 for m in self.margins.values())} of {len(self.margins)} seeds"


class Invariant(Model):
    """Something that must be true whatever the method does; it catches a broken oracle."""

    name: str
    experiment: str
    seed: int
    holds: bool
    detail: str


class Skip(Model):
    """An experiment that did not run, and what would lift that."""

    experiment: str
    reason: str


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

    @property
    def seconds_spent(self) -> float:
        """Making the rows, and training the models that they name: each model once.

        A row that found its model trained took less time than the training did; where no row took
        longer, the training is in none.
        """
        spent, apart = 0.0, {}
        for row in self.rows:
            spent += row.provenance.seconds
            if model := row.detail.get("model"):
                own = (model["date"], model["seconds"])
                within = row.provenance.seconds >= model["seconds"]
                apart[own] = 0.0 if within else apart.get(own, model["seconds"])
        return spent + sum(apart.values())

    @classmethod
    def read(cls, file: Path) -> Record:
        data = json.loads(file.read_text())
        if data.get("schema_version") != SCHEMA:
            raise ValueError(
                f"{file.name}: schema {data.get('schema_version')}, this version reads {SCHEMA}"
            )
        return cls.model_validate(data)

    def write(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(f".{os.getpid()}")
        aside.write_text(self.model_dump_json(indent=1))
        aside.replace(file)

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


class Rows:
    """The rows of a run, looked up by what they are."""

    def __init__(self, rows: tuple[Row, ...] | list[Row]) -> None:
        self._rows = {self._name(r.experiment, r.method, r.seed, r.variant): r for r in rows}

    @staticmethod
    def _name(experiment: str, method: str, seed: int, variant: dict[str, Any]) -> tuple:
        return experiment, method, seed, tuple(sorted(variant.items()))

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: Row) -> None:
        self._rows[self._name(row.experiment, row.method, row.seed, row.variant)] = row

    def row(self, experiment: str, method: str, seed: int, **variant: Any) -> Row:
        """The row whose variant is ``variant``, or else the only one whose variant has it.

        Raises
        ------
        MissingRowError
            There is no such row, or several.
        """
        exact = self._rows.get(self._name(experiment, method, seed, variant))
        if exact is not None:
            return exact
        found = [
            r
            for r in self.where(experiment, method)
            if r.seed == seed and variant.items() <= r.variant.items()
        ]
        if len(found) != 1:
            count = "several rows" if found else "no row"
            raise MissingRowError(f"{count} {experiment} / {method} / seed {seed} / {variant}")
        return found[0]

    def value(self, experiment: str, method: str, metric: str, seed: int, **variant: Any) -> float:
        """A metric's value in one row.

        Raises
        ------
        MissingRowError
            There is no such row, or it has no such metric.
        """
        metrics = self.row(experiment, method, seed, **variant).metrics
        if metric not in metrics:
            raise MissingRowError(f"{experiment} / {method} has no metric {metric!r}")
        return metrics[metric].value

    def where(self, experiment: str, method: str | None = None) -> list[Row]:
        """The rows of an experiment (and of one method), in the order in which they were made."""
        return [
            r for r in self if r.experiment == experiment and (method is None or r.method == method)
        ]


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def git_state(root: Path) -> tuple[str | None, bool]:
    """The commit of a working tree and whether it differs from it (True where there is no git)."""

    def git(*args: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True)
        if done.returncode:
            raise OSError(done.stderr)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    except OSError:
        return None, True


@cache
def environment() -> dict[str, str]:
    """Versions and hardware, in words."""
    cuda = torch.cuda.is_available()
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(x.split(":")[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux: the platform module's word is kept
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in VERSIONS},
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": f"{cpu}, {os.cpu_count()} logical cores",
        "accelerator": torch.cuda.get_device_name() if cuda else "none",
    }
