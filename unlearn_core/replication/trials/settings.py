"""What the rules of FLAT and GUARD read: one thing to forget, in the experiments that share it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from uncertainties import UFloat

from ..cache import digest
from ..records import MissingRowError, Rows
from ..run import Replication
from .base import ORIGINAL

__all__ = ["Setting", "settings"]


@dataclass(frozen=True)
class Setting:
    """One model and one thing to forget, in as many experiments as share them."""

    run: Replication
    experiments: tuple[str, ...]
    target: Any

    def value(self, rows: Rows, method: str, metric: str, seed: int) -> float:
        """A metric of a method; the original and the retrained model may have one seed for all.

        Raises
        ------
        MissingRowError
            The method was not run on that seed.
        """
        return self.measured(rows, method, metric, seed).nominal_value

    def measured(self, rows: Rows, method: str, metric: str, seed: int) -> UFloat:
        """The same with its standard error, to calculate with (`Rows.measured`)."""
        for name in self.experiments:
            own = self.run.originals(name)
            shared = own != self.run.seeds_of(name)
            oracle = self.run.experiment(name).oracle
            wanted = own[0] if shared and method in (ORIGINAL, oracle) else seed
            if any(r.seed == wanted for r in rows.where(name, method)):
                return rows.measured(name, method, metric, wanted, forget=self.target)
        raise MissingRowError(f"{method} was not run on seed {seed}")

    def off(self, rows: Rows, method: str, metric: str, seed: int) -> float:
        """The distance of a metric to the retrained model's."""
        oracle = self.run.experiment(self.experiments[0]).oracle
        mine, aim = (self.value(rows, m, metric, seed) for m in (method, oracle))
        return abs(mine - aim)

    def seeds_with(self, *methods: str) -> tuple[int, ...]:
        """The seeds on which all of these methods run."""
        ran = [
            {
                seed
                for name in self.experiments
                if method in self.run.experiment(name).methods
                for seed in self.run.seeds_of(name)
            }
            for method in methods
        ]
        return tuple(sorted(set.intersection(*ran)))


def settings(run: Replication, *prefixes: str) -> list[Setting]:
    """The settings of all experiments whose names begin so; one a model and target."""
    found: dict[str, tuple[list[str], Any]] = {}
    for prefix in prefixes:
        for name in run.experiments(prefix):
            for target in run.targets(name):
                key = digest([run.experiment(name).model, target])
                found.setdefault(key, ([], target))[0].append(name)
    return [Setting(run, tuple(names), target) for names, target in found.values()]
