"""Progress of long work: rows done of rows planned, the row in progress, the time left."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unlearn_core.replication import progress
from unlearn_core.replication.progress import Lines, Progress, State, planned_rows, row_name
from unlearn_core.replication.records import Record
from unlearn_core.replication.run import Replication


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    monkeypatch.delenv("UNLEARN_PROGRESS", raising=False)
    return made


def make(progress: Progress, clock: Clock, name: str, seconds: float) -> None:
    with progress.making(name):
        clock.now += seconds


def test_rows_are_counted_once(clock: Clock) -> None:
    """The retrained model's row is asked for beside every method's."""
    at = Progress({"a": 10.0, "b": 20.0, "c": None, "d": 30.0})
    assert at.state == State(planned=4, left=60.0)
    at.found("a")
    make(at, clock, "b", 20.0)
    at.found("a")
    at.found("b")
    assert at.state == State(planned=4, made=1, cached=1, left=30.0)
    at.found("e")  # not in the plan
    assert at.state.planned == 5


def test_the_row_in_progress(clock: Clock) -> None:
    """One that needs another one first waits for it."""
    at = Progress({"a": 10.0, "b": 5.0})
    with at.making("a"):
        assert at.state == State(planned=2, row="a", since=1000.0, left=15.0)
        clock.now += 2
        with at.making("b"):
            assert at.state == State(planned=2, row="b", since=1002.0, left=15.0)
        assert (at.state.row, at.state.since, at.state.made) == ("a", 1000.0, 1)
    assert at.state.row is None


def test_a_row_that_fails_is_not_made(clock: Clock) -> None:
    at = Progress({})
    with pytest.raises(ValueError, match="no"), at.making("a"):
        raise ValueError("no")
    assert at.state == State()


def test_the_time_left_goes_by_this_machine(clock: Clock) -> None:
    """Rows that were made here took three times what the plan says: so will the others."""
    at = Progress({"a": 10.0, "b": 10.0, "c": 70.0, "d": 1000.0})
    at.found("d")  # out of the cache in no time: it says nothing of the pace
    make(at, clock, "a", 25.0)
    make(at, clock, "b", 35.0)
    assert at.state.left == 210.0


def test_nothing_is_known(clock: Clock) -> None:
    at = Progress({})
    at.found("a")
    make(at, clock, "b", 3.0)
    assert at.state == State(planned=None, made=1, cached=1, left=None)


def test_rows_that_were_never_made_are_expected(clock: Clock) -> None:
    """What is declared says how many there are at least; a search may go on with more."""
    at = Progress({})
    at.expect(2)
    assert at.state.planned == 2
    for name in ("a", "b", "c"):
        make(at, clock, name, 1.0)
    assert at.state == State(planned=3, made=3)
    known = Progress({"a": 1.0})
    known.expect(5)
    assert known.state.planned == 1


def test_what_a_reader_is_told() -> None:
    state = State(planned=87, made=3, cached=9, row="a / SSD / seed 0", since=100.0, left=500.0)
    said = "12 of 87 rows (9 from the cache); a / SSD / seed 0 for 60 s; about 7 min left"
    assert state.line(160.0) == said
    assert state.line(9000.0).endswith("; about 0 s left")
    assert State().line(0.0) == "0 rows"
    assert State(planned=2, made=1, left=20000.0).line(0.0) == "1 of 2 rows; about 5.6 h left"


def test_the_file(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the runner reads is whole at any moment, and there from the first row on."""
    file = tmp_path / "tiny.progress"
    monkeypatch.setenv("UNLEARN_PROGRESS", str(file))
    assert State.read(file) is None
    at = Progress({"a": 1.0})
    with at.making("a"):
        assert State.read(file) == at.state
    assert State.read(file) == at.state == State(planned=1, made=1, left=0.0)
    assert list(tmp_path.iterdir()) == [file]


def test_in_a_notebook_a_line_is_written_over(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_in_notebook", lambda: True)
    at = Progress({"a long name": 1000.0})
    make(at, clock, "a long name", 1.0)
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.removeprefix("\r").split("\r")
    assert first == "0 of 1 rows; a long name for 0 s; about 17 min left"
    assert second.rstrip() == "1 of 1 rows; about 0 s left"
    assert len(second) == len(first), "the end of the longer line would stay"


def test_elsewhere_nothing_is_said(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    make(Progress({"a": 1.0}), clock, "a", 1.0)
    assert capsys.readouterr() == ("", "")


class TestLines:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        return tmp_path / "ssd.progress"

    def test_a_line_a_minute(
        self, clock: Clock, file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Where the output is no terminal: a log that grows by ten lines a second is no help."""
        lines = Lines()
        lines.tell("ssd", file)
        for _ in range(700):
            clock.now += 0.1
            lines.tell("ssd", file)
        State(planned=2, made=1, left=30.0).write(file)
        for _ in range(600):
            clock.now += 0.1
            lines.tell("ssd", file)
        lines.end("ssd", "ssd: ran")
        assert capsys.readouterr().out.splitlines() == [
            "ssd: no row yet",
            "ssd: 1 of 2 rows; about 30 s left",
            "ssd: ran",
        ]

    def test_a_terminal(
        self,
        clock: Clock,
        file: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        State(planned=2, made=1).write(file)
        lines = Lines()
        for _ in range(3):
            lines.tell("ssd", file)
            clock.now += 2
        lines.end("ssd", "ssd: ran")
        out, err = capsys.readouterr()
        assert out == "ssd: ran\n"
        assert "\rssd: 1 of 2 rows" in err

    def test_something_is_said_once(self, capsys: pytest.CaptureFixture[str]) -> None:
        lines = Lines()
        for _ in range(3):
            lines.once("waiting")
        assert capsys.readouterr().out == "waiting\n"


PLAN = {
    "full_class / SSD / seed 0": 1.5,
    "full_class / SSD / forget ring / alpha 5 / seed 1": 1.5,
}


class TestPlan:
    """Until rows are declared, the last record of the same size says what is to come."""

    @pytest.fixture
    def record(self, make_record: Callable[..., Record]) -> Record:
        return make_record()

    def test_the_names_of_rows(self) -> None:
        """The same of a row that is asked for and of one that was read back from JSON."""
        assert (
            row_name("a", "SSD", 1, {"order": ("x", "y")}) == 'a / SSD / order ["x", "y"] / seed 1'
        )
        assert (
            row_name("a", "SSD", 1, {"order": ["x", "y"]}) == 'a / SSD / order ["x", "y"] / seed 1'
        )

    def test_ones_own_comes_before_the_published(self, project: Any, record: Record) -> None:
        assert planned_rows(Replication("tiny", "ci", "build/ci")) == {}
        published = project.root / "book" / "published" / "ci"
        published.mkdir(parents=True)
        record.write(published / "tiny.json")
        assert planned_rows(Replication("tiny", "ci", "build/ci")) == PLAN
        folder = project.root / "build" / "ci"
        folder.mkdir(parents=True)
        record.model_copy(update={"rows": record.rows[:1]}).write(folder / "tiny.json")
        for out in ("build/ci", "build/ci/running"):
            assert list(planned_rows(Replication("tiny", "ci", out))) == list(PLAN)[:1]

    def test_a_rehearsal_and_another_size_have_none(
        self, project: Any, record: Record, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        published = project.root / "book" / "published" / "laptop"
        published.mkdir(parents=True)
        record.write(published / "tiny.json")
        assert planned_rows(Replication("tiny", "ci", "build/ci")) == {}
        published.rename(published.with_name("ci"))
        monkeypatch.setenv("UNLEARN_REHEARSE", "1")
        assert planned_rows(Replication("tiny", "ci", "build/ci")) == {}

    @pytest.mark.parametrize("content", ["", "{", '{"schema_version": 0}'])
    def test_a_damaged_record_is_no_plan(self, project: Any, content: str) -> None:
        folder = project.root / "build" / "ci"
        folder.mkdir(parents=True)
        (folder / "tiny.json").write_text(content)
        assert planned_rows(Replication("tiny", "ci", "build/ci")) == {}
