"""What is published in the repository: clean, complete, and its verdicts can be worked out again."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from unlearn_core.methods import METHODS
from unlearn_core.replication.claims import judge
from unlearn_core.replication.papers import load_paper
from unlearn_core.replication.publish import LIMIT, check_publishable
from unlearn_core.replication.records import Record, Row, Rows
from unlearn_core.replication.run import UNMADE
from unlearn_core.replication.trials.search import choose

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "book" / "published"
RECORDS = sorted(PUBLISHED.glob("*/*.json"))


@pytest.fixture(params=RECORDS, ids=lambda file: f"{file.parent.name}-{file.stem}")
def file(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def record(file: Path) -> Record:
    return Record.read(file)


@pytest.mark.parametrize("suffix", ["json", "ipynb"])
def test_the_ssd_chapter_is_published(suffix: str) -> None:
    assert (PUBLISHED / "laptop" / f"ssd.{suffix}").is_file()


def test_nothing_else_lies_there() -> None:
    """Fails where a record has no notebook, or a log or a stamp was copied along."""
    found = {f.relative_to(PUBLISHED) for f in PUBLISHED.rglob("*") if f.is_file()}
    pairs = {f.relative_to(PUBLISHED).with_suffix(s) for f in RECORDS for s in (".json", ".ipynb")}
    assert found == pairs


def test_it_may_be_published(file: Path) -> None:
    notebook = file.with_suffix(".ipynb")
    check_publishable(notebook, file)
    assert notebook.stat().st_size < LIMIT <= 1_500_000


def test_every_row_comes_from_a_clean_commit(record: Record) -> None:
    """Fails where the code that made a number can't be looked up, or a model's that it rests on."""
    for where in (record, *(row.provenance for row in record.rows)):
        assert not where.dirty
        assert re.fullmatch("[0-9a-f]{40}", where.commit or "")
    assert not [r for r in record.rows if r.detail.get("model", {}).get("dirty")]
    assert len({row.key for row in record.rows}) == len(record.rows)


def test_it_is_complete(
    file: Path, record: Record, missing_rows: Callable[[Record], list[str]]
) -> None:
    """Fails where the profile was enlarged and nobody published the rest."""
    assert (record.profile, record.paper) == (file.parent.name, file.stem)
    paper = load_paper(record.paper)
    profile = paper.profile(record.profile)
    assert record.seeds == profile.seeds
    own = {seed for e in profile.experiments.values() for seed in e.seeds}
    assert {row.seed for row in record.rows} == own | set(record.seeds)
    assert missing_rows(record) == []
    assert record.invariants
    assert all(i.holds for i in record.invariants)
    measured = {key for key, deviation in paper.deviations.items() if deviation.measured}
    assert set(record.effects) == measured


class RecordedTrial:
    """Of a `ClassificationTrial`, what the rules use: hyper-parameters, two sizes and the rows.

    The sizes are those of the invariant that compares them, so no data are loaded here.
    """

    def __init__(
        self, record: Record, run: Any, experiment: str, seed: int, target: Any = None
    ) -> None:
        self.record, self.run, self.seed, self.target = record, run, seed, target
        self.name, self.experiment = experiment, run.experiment(experiment)

    @property
    def methods(self) -> dict[str, Any]:
        out, chosen, kind = {}, {}, functools.partial(RecordedTrial, self.record)
        for tuning in self.experiment.tuned:
            chosen |= choose(kind, self.run, tuning)
        for label, spec in self.experiment.methods.items():
            known = {f.name: f.default for f in dataclasses.fields(METHODS[spec["use"]])}
            out[label] = SimpleNamespace(**known | spec | chosen.get(label, {}))
        return out

    def measure_method(self, label: str, **changes: Any) -> Row:
        return self.run.rows.row(self.name, label, self.seed, forget=self.target, **changes)

    @cached_property
    def sizes(self) -> tuple[int, int]:
        """Forget set and training set."""
        found = {
            (int(m[1]), int(m[3]))
            for i in self.record.invariants
            if (i.experiment, i.seed) == (self.name, self.seed)
            and (m := re.fullmatch(r"(\d+) \+ (\d+) of (\d+)", i.detail))
        }
        (sizes,) = found  # one for all targets
        return sizes

    @property
    def data(self) -> Any:
        return SimpleNamespace(train=range(self.sizes[1]))

    @property
    def split(self) -> Any:
        return SimpleNamespace(forget=range(self.sizes[0]))


def test_the_verdicts_are_what_the_rules_give(record: Record, rules_of: Callable[..., Any]) -> None:
    """Fails where a rule or a limit was changed after publishing, or a record by hand."""
    trial = functools.partial(RecordedTrial, record)
    paper, rows = load_paper(record.paper), Rows(record.rows)
    unmade = {s.experiment: set(s.seeds) for s in record.skips if s.reason == UNMADE}
    skipped = {skip.experiment for skip in record.skips} - set(unmade)
    known = paper.profile(record.profile).experiments
    ran = {name: e for name, e in known.items() if name not in skipped}
    run = rules_of(record.paper, ran, record.seeds, trial, rows, unmade)
    assert [v.claim for v in record.verdicts] == list(paper.claims) == list(run.rules)
    for verdict in record.verdicts:
        claim = paper.claims[verdict.claim]
        judged = record.profile in claim.judged_at
        found, _ = judge(
            verdict.claim,
            run.rules[verdict.claim],
            rows,
            run.asked[verdict.claim] if judged else (),
            preconditions={paper.preconditions[n]: run.preconditions[n] for n in claim.needs},
            partial=judged and bool(unmade),
        )
        assert list(found.margins) == list(verdict.margins), verdict.claim
        for seed, margin in found.margins.items():
            assert verdict.margins[seed].value == pytest.approx(margin.value, abs=1e-9)
            assert verdict.margins[seed].stderr == pytest.approx(margin.stderr, abs=1e-9)
        at_an_edge = "at an edge of its grid" in verdict.reason
        assert at_an_edge or verdict.verdict == found.verdict, verdict.claim
