"""A short form of ``tests/kill_reproduce.py``, on a paper of a few seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kill_reproduce import FOLDER, Runs, campaign, faults_of

from unlearn_core.replication.records import Record

CELLS = (
    """
from unlearn_core.replication.run import Replication
from unlearn_core.replication.trials.plan import make

run = Replication(paper, profile, out)
make(run, "full_class")
""",
    """
@run.claim("C1")
def it_works(rows, seed):
    return rows.measured("full_class", "Original", "test_accuracy", seed)


run.finish()
""",
)


def test_what_was_killed_ends_with_the_numbers_of_what_was_not(
    project: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """Fails where a kill leaves something half-made that is believed, or that stays for good."""
    project.paper("tiny", None, *CELLS)
    faults = campaign(2, ["tiny"], seed=23)  # late: it takes most of the time to begin
    log = project.root / FOLDER / "killed" / "log"
    assert faults == [], log.read_text() if log.exists() else "no run was killed"
    said = capfd.readouterr().out
    assert said.count("\nkill ") == 2
    assert "2 kills, " in said


class TestComparison:
    @pytest.fixture
    def runs(self, project: Any, make_record: Callable[..., Record]) -> Runs:
        made = Runs("killed", ["tiny"])
        made.clear()
        make_record().write(made.folder / "ci" / "tiny.json")
        return made

    def test_the_same(self, runs: Runs) -> None:
        """Of time and memory no run finds another's."""
        assert sorted(name for _, _, name in runs.metrics()) == ["forget_accuracy", "zrf"]
        assert faults_of(runs, runs.metrics(), 0) == []

    @pytest.mark.parametrize("change", ["another value", "one less", "one more"])
    def test_others(self, runs: Runs, change: str) -> None:
        """Fails where a number may differ, or be missing, without a word."""
        expected = runs.metrics()
        at = ("tiny", "k", "zrf")
        if change == "another value":
            expected[at] += 1e-12
        elif change == "one less":
            del expected[at]
        else:
            expected[("tiny", "k", "gap")] = 1.0
        (fault,) = faults_of(runs, expected, 0)
        assert "in the place of" in fault
        assert (" gap: None" in fault) == (change == "one more")

    def test_a_run_that_failed_a_record_that_is_cut_and_litter(
        self, runs: Runs, tmp_path: Path
    ) -> None:
        expected = runs.metrics()
        assert "ended with 3" in faults_of(runs, expected, 3)[0]
        shard = runs.folder / "cache" / "models" / "ab"
        shard.mkdir(parents=True)
        (shard / f"{'ab' * 32}.checkpoint.part").touch()
        (shard / f"{'ab' * 32}.lock").touch()
        assert faults_of(runs, expected, 0) == [f"{'ab' * 32}.checkpoint.part is left in the cache"]
        file = runs.folder / "ci" / "tiny.json"
        file.write_bytes(file.read_bytes()[:100])
        assert "a record can't be read" in faults_of(runs, expected, 0)[0]
