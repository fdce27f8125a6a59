"""What is published in the repository: clean, complete, and its verdicts can be worked out again."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from unlearn_core.methods import METHODS
from unlearn_core.replication.claims import Rule
from unlearn_core.replication.papers import Profile, load_paper
from unlearn_core.replication.publish import LIMIT, check_publishable
from unlearn_core.replication.records import Record, Rows

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
    assert record.seeds == paper.profile(record.profile).seeds
    assert {row.seed for row in record.rows} == set(record.seeds)
    assert missing_rows(record) == []
    assert record.invariants
    assert all(i.holds for i in record.invariants)
    measured = {key for key, deviation in paper.deviations.items() if deviation.measured}
    assert set(record.effects) == measured


class RecordedRun:
    """Of a `Replication`, what the rules use: the profile, and the rows that were published."""

    def __init__(self, profile: Profile, record: Record) -> None:
        self.profile, self.record, self.seeds = profile, record, record.seeds
        self.rules: dict[str, Rule] = {}

    def claim(self, key: str) -> Callable[[Rule], Rule]:
        def keep(rule: Rule) -> Rule:
            assert key not in self.rules
            self.rules[key] = rule
            return rule

        return keep

    def experiments(self, prefix: str = "") -> list[str]:
        skipped = {skip.experiment for skip in self.record.skips}
        return [n for n in self.profile.experiments if n.startswith(prefix) and n not in skipped]

    def targets(self, name: str) -> list[Any]:
        ((_, wanted),) = self.profile.experiments[name].forget.items()
        if wanted != "all":
            return wanted if isinstance(wanted, list) else [wanted]
        rows = (r for r in self.record.rows if r.experiment == name)
        return list(dict.fromkeys(r.variant["forget"] for r in rows))

    def grid(self, name: str, *keys: str) -> list[list[Any]]:
        return [self.profile.experiments[name].grid[key] for key in keys]


class RecordedTrial:
    """Of a `ClassificationTrial`, what the rules use: hyper-parameters and two sizes.

    The sizes are those of the invariant that compares them, so no data are loaded here.
    """

    def __init__(self, run: RecordedRun, experiment: str, seed: int, target: Any) -> None:
        self.run, self.experiment, self.seed = run, experiment, seed

    @property
    def methods(self) -> dict[str, Any]:
        out = {}
        for label, spec in self.run.profile.experiments[self.experiment].methods.items():
            fields = dataclasses.fields(METHODS[spec["use"]])
            out[label] = SimpleNamespace(**{f.name: f.default for f in fields} | spec)
        return out

    @cached_property
    def sizes(self) -> tuple[int, int]:
        """Forget set and training set."""
        found = {
            (int(m[1]), int(m[3]))
            for i in self.run.record.invariants
            if (i.experiment, i.seed) == (self.experiment, self.seed)
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


def test_the_verdicts_are_what_the_rules_give(record: Record) -> None:
    """Fails where a rule or a limit was changed after publishing, or a record by hand."""
    notebook = json.loads((ROOT / "notebooks" / f"{record.paper}.ipynb").read_text())
    (cell,) = (c for c in notebook["cells"] if "claims" in c["metadata"].get("tags", []))
    paper = load_paper(record.paper)
    run = RecordedRun(paper.profile(record.profile), record)
    names = {"run": run, "ORIGINAL": "Original", "ClassificationTrial": RecordedTrial}
    exec("".join(cell["source"]), names)
    assert [v.claim for v in record.verdicts] == list(paper.claims) == list(run.rules)
    rows = Rows(record.rows)
    for verdict in record.verdicts:
        judged = record.profile in paper.claims[verdict.claim].judged_at
        rule = run.rules[verdict.claim]
        margins = {seed: rule(rows, seed) for seed in record.seeds if judged}
        assert verdict.margins == pytest.approx(margins, abs=1e-9), verdict.claim
        held = sum(margin >= 0 for margin in margins.values())
        word = {0: "fails", len(margins): "holds"}.get(held, "holds in part")
        assert verdict.verdict == (word if judged else "not tested at this scale"), verdict.claim
