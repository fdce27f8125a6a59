"""What a run of profile ci leaves: executed notebooks, records, verdicts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unlearn_core.metrics import METRICS
from unlearn_core.replication.papers import load_paper
from unlearn_core.replication.records import Record

ROOT = Path(__file__).resolve().parents[2]
SLUGS = sorted(file.stem for file in (ROOT / "notebooks").glob("*.yaml"))
FOLDER = ROOT / "build" / "tests" / "ci"


@pytest.fixture(params=SLUGS)
def slug(request: pytest.FixtureRequest, site: Any) -> str:
    """A paper, after the run."""
    return request.param


@pytest.fixture
def record(slug: str) -> Record:
    return Record.read(FOLDER / f"{slug}.json")


def states(output: str) -> dict[str, str]:
    """{paper: state} of the table that ends a run."""
    rows = (line.split() for line in output.splitlines())
    return {row[0]: " ".join(row[1:-1]) for row in rows if row and row[0] in SLUGS and len(row) > 2}


def test_it_says_how_it_ended(site: Any) -> None:
    found = states(site.output)
    assert list(found) == SLUGS
    assert set(found.values()) <= {"ran", "up to date"}
    assert "The book: build/tests/site/_build/html/index.html" in site.output
    assert (site.html / "index.html").exists()


def test_the_notebook_was_executed_without_an_error(slug: str) -> None:
    """Fails where a failed or half-executed notebook passes for one that ran, and where it holds
    anything that was printed or warned beside what it displays."""
    notebook = json.loads((FOLDER / f"{slug}.ipynb").read_text())
    code = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    assert [c["execution_count"] for c in code] == list(range(1, len(code) + 1))
    outputs = [o for c in code for o in c["outputs"]]
    assert outputs
    assert {o["output_type"] for o in outputs} <= {"display_data", "execute_result"}


def test_the_record_is_of_this_run(
    slug: str, record: Record, record_property: Callable[[str, object], None]
) -> None:
    assert (record.paper, record.profile, record.rehearsal) == (slug, "ci", False)
    assert record.seeds == load_paper(slug).profile("ci").seeds
    assert record.seconds > 0
    # Noted in a JUnit report; a time is a matter for benchmarks.
    record_property(f"{slug}: seconds of the notebook", round(record.seconds, 1))


def test_every_claim_is_in_the_record(slug: str, record: Record) -> None:
    assert [v.claim for v in record.verdicts] == list(load_paper(slug).claims)
    assert all(v.rule for v in record.verdicts)


def test_claims_judged_at_ci_do_not_fail(slug: str, record: Record) -> None:
    """The seeds are fixed: a claim that turns is a change in what the code does."""
    judged = {key for key, claim in load_paper(slug).claims.items() if "ci" in claim.judged_at}
    assert judged
    for verdict in record.verdicts:
        if verdict.claim in judged:
            assert tuple(verdict.margins) == record.seeds, verdict.claim
            assert min(m.value for m in verdict.margins.values()) >= 0, verdict
            assert verdict.verdict in ("holds", "tie"), verdict.claim
        else:
            assert verdict.verdict == "not tested", verdict.claim
            assert not verdict.margins


def test_every_invariant_holds(slug: str, record: Record) -> None:
    """Fails where an experiment runs without its checks, too: none broken is not enough."""
    assert not [i for i in record.invariants if not i.holds]
    checked = {(i.experiment, i.seed) for i in record.invariants}
    experiments = load_paper(slug).profile("ci").experiments
    wanted = {(name, s) for name, e in experiments.items() for s in e.seeds or record.seeds}
    assert wanted - checked == set()


def test_every_row_is_there_and_finite(
    record: Record, missing_rows: Callable[[Record], list[str]]
) -> None:
    assert missing_rows(record) == []
    for row in record.rows:
        assert row.metrics, row
        assert set(row.metrics) <= set(METRICS)
        for value in row.metrics.values():
            assert math.isfinite(value.value)
            assert value.stderr is None or (math.isfinite(value.stderr) and value.stderr >= 0)


def test_a_second_run_executes_nothing(site: Any, run_reproduce: Callable[..., str]) -> None:
    """Fails where something that differs between two runs decides what is out of date."""
    files = [FOLDER / f"{slug}.{suffix}" for slug in SLUGS for suffix in ("ipynb", "json", "log")]
    before = {file.name: file.stat().st_mtime_ns for file in files}
    output = run_reproduce("--no-book")
    assert states(output) == dict.fromkeys(SLUGS, "up to date")
    assert "running" not in output
    assert {file.name: file.stat().st_mtime_ns for file in files} == before
