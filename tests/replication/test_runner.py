from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import papermill
import psutil
import pytest

from unlearn_core.registry import ConfigError
from unlearn_core.replication import runner
from unlearn_core.replication.__main__ import main
from unlearn_core.replication.runner import (
    Outcome,
    execute,
    fingerprint,
    out_of_date,
    pair,
    parameters_of,
    reproduce,
    settle,
    summary,
)

#: Stands for a launcher, or for Python itself: it notes what it was called with and leaves what a
#: notebook's run leaves. The paper "bad" fails.
FAKE = """#!/bin/bash
while [ "$1" != execute ]; do shift; done
slug=$2 profile=$4
echo "$slug $profile OMP=$OMP_NUM_THREADS REHEARSE=$UNLEARN_REHEARSE MORE=$MORE" >> {log}
{more}
if [ $slug = bad ]; then echo "it went wrong" >&2; exit 3; fi
exec {python} -c '
import os, sys
from unlearn_core.replication.runner import *
from unlearn_core.replication.runner import fingerprint, pair, settle

slug, profile = sys.argv[1:]
folder = run_folder(profile, rehearsal := os.environ.get("UNLEARN_REHEARSE") == "1")
for file in pair(folder / "running", slug):
    file.parent.mkdir(exist_ok=True)
    file.touch()
settle(folder, slug, fingerprint(slug, profile, rehearsal))
' $slug $profile
"""


class Fake:
    """The script, and what it noted."""

    def __init__(self, folder: Path) -> None:
        self.script, self.log, self.python = folder / "fake", folder / "calls", sys.executable
        self.write()

    def write(self, more: str = "") -> None:
        python = shlex.quote(self.python)
        self.script.write_text(FAKE.format(log=self.log, more=more, python=python))
        self.script.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        return sorted(self.log.read_text().splitlines()) if self.log.exists() else []


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Notebooks are "run" by the script, in milliseconds."""
    made = Fake(tmp_path)
    monkeypatch.setattr(sys, "executable", str(made.script))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return made


ROOT = Path(__file__).resolve().parents[2]


def states(outcomes: list[Outcome]) -> dict[str, str]:
    return {o.paper: o.state for o in outcomes}


class TestExecute:
    @pytest.fixture(autouse=True)
    def _no_papermill(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> NoReturn:
            raise AssertionError("papermill was started")

        monkeypatch.setattr(papermill, "execute_notebook", refuse)

    def test_unknown_paper(self, project: Any) -> None:
        with pytest.raises(ConfigError, match="unknown paper 'tinny'; did you mean 'tiny'"):
            execute("tinny", "ci")

    def test_unknown_profile(self, project: Any) -> None:
        with pytest.raises(ConfigError, match="unknown profile 'cii'; did you mean 'ci'"):
            execute("tiny", "cii")

    def test_where_no_paper_is_named_those_without_the_profile_are_left_out(
        self, project: Any, tiny: dict[str, Any]
    ) -> None:
        """Fails where nothing runs at a size that one chapter does not have."""
        bigger = tiny | {"profiles": {**tiny["profiles"], "paper": tiny["profiles"]["ci"]}}
        project.paper("bigger", bigger)
        assert list(runner.chosen([], "paper")) == ["bigger"]
        assert list(runner.chosen([], "ci")) == ["bigger", "tiny"]
        with pytest.raises(ConfigError, match="unknown profile 'paper'; known: ci"):
            runner.chosen(["tiny"], "paper")
        with pytest.raises(ConfigError, match="unknown profile 'cii'; did you mean 'ci'"):
            runner.chosen([], "cii")

    @pytest.mark.parametrize("name", ["paper", "profile", "out"])
    def test_a_notebook_without_a_parameter(self, project: Any, name: str) -> None:
        """Fails where it is left to papermill, which warns and runs with the default."""
        file = project.root / "notebooks" / "tiny.ipynb"
        file.write_text(file.read_text().replace(f"{name} = ", f"{name}s = "))
        message = rf"notebooks/tiny\.ipynb has no parameter '{name}'; did you mean '{name}s'"
        with pytest.raises(ConfigError, match=message):
            execute("tiny", "ci")

    def test_a_notebook_without_parameters(self, project: Any) -> None:
        file = project.root / "notebooks" / "tiny.ipynb"
        file.write_text(file.read_text().replace('"parameters"', '"others"'))
        with pytest.raises(ConfigError, match="no cell tagged 'parameters'"):
            execute("tiny", "ci")

    def test_parameters_of(self) -> None:
        cells = [
            {"metadata": {}, "source": "z = 1"},
            {"metadata": {"tags": ["parameters"]}, "source": ["a = 1\n", "\n", "b = 'x=y'\n"]},
        ]
        assert parameters_of({"cells": cells}) == ["a", "b"]


class TestOutOfDate:
    @pytest.fixture
    def made(self, project: Any) -> Path:
        """The root of a project that was run, with a package of its own that may be changed."""
        root = project.root
        (root / "unlearn_core").unlink()
        (root / "unlearn_core" / "sub").mkdir(parents=True)
        (root / "unlearn_core" / "sub" / "a.py").write_text("x = 1\n")
        project.paper("other")
        folder = root / "build" / "ci"
        (folder / "running").mkdir(parents=True)
        for suffix in ("ipynb", "json"):
            (folder / "running" / f"tiny.{suffix}").write_text("{}")
        settle(folder, "tiny", fingerprint("tiny", "ci", False))
        return root

    def test_nothing_changed(self, made: Path) -> None:
        """Fails where a time decides: a fresh checkout would run everything again."""
        assert not out_of_date("tiny", "ci")
        for file in made.rglob("*.py"):
            os.utime(file)
        os.utime(made / "notebooks" / "tiny.ipynb")
        assert not out_of_date("tiny", "ci")

    @pytest.mark.parametrize(
        "file",
        [
            "notebooks/tiny.ipynb",
            "notebooks/tiny.yaml",
            "unlearn_core/sub/a.py",
            "book/references.bib",
        ],
    )
    def test_a_changed_source(self, made: Path, file: str) -> None:
        """Fails where a source is left out: an old page would pass for one of this code."""
        kept = (made / file).read_text()
        (made / file).write_text(kept + "\n")
        assert out_of_date("tiny", "ci")
        (made / file).write_text(kept)
        assert not out_of_date("tiny", "ci")

    def test_a_new_module(self, made: Path) -> None:
        (made / "unlearn_core" / "b.py").write_text("")
        assert out_of_date("tiny", "ci")

    def test_a_renamed_module(self, made: Path) -> None:
        folder = made / "unlearn_core" / "sub"
        (folder / "a.py").rename(folder / "b.py")
        assert out_of_date("tiny", "ci")

    @pytest.mark.parametrize("suffix", ["ipynb", "json", "stamp"])
    def test_a_missing_product(self, made: Path, suffix: str) -> None:
        (made / "build" / "ci" / f"tiny.{suffix}").unlink()
        assert out_of_date("tiny", "ci")

    def test_another_paper_and_another_kind_of_run(
        self, made: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails where the profile is not part of it: `laptop` would be taken for done."""
        assert not out_of_date("tiny", "ci")
        assert out_of_date("other", "ci")
        for folder, profile, rehearsal in (
            ("laptop", "laptop", False),
            ("rehearsal", "paper", True),
        ):
            shutil.copytree(made / "build" / "ci", made / "build" / folder)
            assert out_of_date("tiny", profile, rehearsal)
        monkeypatch.setenv("UNLEARN_CLEAN", "1")
        assert out_of_date("tiny", "ci")

    def test_data_that_the_reader_supplies_later(
        self, made: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails where an experiment that was skipped stays so when its data are there."""
        monkeypatch.setenv("UNLEARN_PINS", "/somewhere")
        assert out_of_date("tiny", "ci")


class TestOneAfterTheOther:
    """What a run leaves, whatever becomes of it: ``play`` stands for papermill."""

    @pytest.fixture
    def play(self, project: Any, monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
        """What happens in the middle of the next runs; each then leaves its number."""
        script: list[Callable[[], None]] = []
        played: list[Path] = []

        def papermill(source: Path, target: Path, parameters: dict[str, str]) -> None:
            played.append(target)
            assert parameters["out"] == target.parent.as_posix() == "build/ci/running"
            file = project.root / target
            file.write_text("half")
            if script:
                script.pop(0)()
            for made in (file, file.with_suffix(".json")):
                made.write_text(str(len(played)))

        monkeypatch.setattr(runner, "_papermill", papermill)
        return script

    @staticmethod
    def left(project: Any) -> list[str]:
        return [f.read_text() for f in pair(project.root / "build" / "ci", "tiny")]

    def test_notebook_and_record_come_together(self, project: Any, play: list[Any]) -> None:
        folder = project.root / "build" / "ci"
        seen: list[list[str]] = []
        execute("tiny", "ci")
        assert self.left(project) == ["1", "1"]
        yaml = project.root / "notebooks" / "tiny.yaml"
        yaml.write_text(yaml.read_text() + "\n")
        play.append(lambda: seen.append(self.left(project)))
        execute("tiny", "ci")
        assert seen == [["1", "1"]]
        assert self.left(project) == ["2", "2"]
        assert list((folder / "running").iterdir()) == []

    def test_a_run_that_ends_in_the_middle_leaves_the_former_one(
        self, project: Any, play: list[Any]
    ) -> None:
        """Fails where a half-executed notebook stands beside the record of an older run."""
        execute("tiny", "ci")
        yaml = project.root / "notebooks" / "tiny.yaml"
        kept = yaml.read_text()
        yaml.write_text(kept + "\n")

        def end() -> None:
            raise KeyboardInterrupt

        play.append(end)
        with pytest.raises(KeyboardInterrupt):
            execute("tiny", "ci")
        assert self.left(project) == ["1", "1"]
        assert out_of_date("tiny", "ci")
        yaml.write_text(kept)
        assert not out_of_date("tiny", "ci")

    def test_two_at_once(self, project: Any, play: list[Any]) -> None:
        """The second waits for the first, and finds its work done: only one notebook is executed."""
        begun, go_on = threading.Event(), threading.Event()
        play.append(lambda: (begun.set(), go_on.wait(30)))
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(execute, "tiny", "ci")
            assert begun.wait(30)
            assert runner.locked(project.root / "build" / "ci", "tiny")
            second = pool.submit(execute, "tiny", "ci")
            go_on.set()
            first.result(30)
            second.result(30)
        assert self.left(project) == ["1", "1"]
        assert not runner.locked(project.root / "build" / "ci", "tiny")

    def test_a_source_that_changes_during_the_run(self, project: Any, play: list[Any]) -> None:
        """Fails where the stamp is taken after the run: a change made meanwhile is never run."""
        yaml = project.root / "notebooks" / "tiny.yaml"
        play.append(lambda: yaml.write_text(yaml.read_text() + "\n"))
        execute("tiny", "ci")
        assert out_of_date("tiny", "ci")

    @pytest.mark.parametrize("suffix", ["ipynb", "json", "stamp"])
    @pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"null", b'{"sha256": 3}'])
    def test_what_is_not_as_the_run_left_it(
        self, project: Any, play: list[Any], suffix: str, content: bytes
    ) -> None:
        """A damaged file, or the record of a notebook that was then run by hand, is run again. Fails
        where it is up to date, for ever, and the book then stops at it."""
        execute("tiny", "ci")
        assert not out_of_date("tiny", "ci")
        (project.root / "build" / "ci" / f"tiny.{suffix}").write_bytes(content)
        assert out_of_date("tiny", "ci")
        execute("tiny", "ci")
        assert self.left(project) == ["2", "2"]


class TestJobs:
    """How many notebooks run at once where nobody says it, and which comes first."""

    SLOW = "echo begin $slug >> order; sleep 0.5; echo end $slug >> order"

    @pytest.fixture(autouse=True)
    def _machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runner, "cores", lambda: 2)
        monkeypatch.setattr(runner, "has_accelerator", lambda: False)
        monkeypatch.setattr(runner, "available_memory", lambda: 100.0)

    @pytest.fixture
    def papers(self, project: Any, tiny: dict[str, Any]) -> list[str]:
        """Four papers, by their minutes."""
        for slug, minutes in (("a", 1), ("b", 20), ("c", 3)):
            tiny["profiles"]["ci"] |= {"minutes": minutes, "memory_gb": 30 * minutes}
            project.paper(slug, tiny)
        return ["b", "c", "a", "tiny"]

    @staticmethod
    def events(project: Any) -> list[str]:
        return (project.root / "order").read_text().splitlines()

    def test_as_many_as_cores_the_longest_first(
        self, project: Any, fake: Fake, papers: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(runner, "available_memory", lambda: 1000.0)
        fake.write(more=self.SLOW)
        outcomes = reproduce("ci")
        assert [o.paper for o in outcomes] == ["a", "b", "c", "tiny"]
        events = self.events(project)
        assert sorted(events[:2]) == ["begin b", "begin c"]
        assert {call.split("OMP=")[1].split()[0] for call in fake.calls} == {"1"}

    def test_no_more_than_there_is_memory_for(
        self, project: Any, fake: Fake, papers: list[str]
    ) -> None:
        """b wants 600 GB of 100, so it runs alone; c 90, so only tiny (1 GB) runs beside it."""
        fake.write(more=self.SLOW)
        assert set(states(reproduce("ci")).values()) == {"ran"}
        events = self.events(project)
        assert events[:2] == ["begin b", "end b"]
        assert sorted(events[2:4]) == ["begin c", "begin tiny"]

    @pytest.mark.parametrize("why", ["accelerator", "launcher"])
    def test_one_at_a_time_where_cores_say_nothing(
        self, project: Any, fake: Fake, monkeypatch: pytest.MonkeyPatch, why: str
    ) -> None:
        """Two notebooks would share one GPU's memory; where a launcher puts them is its affair."""
        project.paper("other")
        if why == "accelerator":
            monkeypatch.setattr(runner, "has_accelerator", lambda: True)
        fake.write(more=self.SLOW)
        reproduce("ci", launch="env" if why == "launcher" else "")
        assert [e.split()[0] for e in self.events(project)] == ["begin", "end"] * 2

    def test_memory_of_this_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.undo()
        total = psutil.virtual_memory().total / 1e9
        assert 0 < runner.available_memory() <= total


class TestReproduce:
    def test_runs_what_is_out_of_date_and_only_that(self, project: Any, fake: Fake) -> None:
        project.paper("other")
        assert states(reproduce("ci")) == {"other": "ran", "tiny": "ran"}
        assert states(reproduce("ci")) == {"other": "up to date", "tiny": "up to date"}
        assert len(fake.calls) == 2
        yaml = project.root / "notebooks" / "tiny.yaml"
        yaml.write_text(yaml.read_text() + "\n")
        assert states(reproduce("ci")) == {"other": "up to date", "tiny": "ran"}
        assert states(reproduce("ci", ["tiny"])) == {"tiny": "up to date"}
        assert [call.split(" OMP")[0] for call in fake.calls] == [
            "other ci",
            "tiny ci",
            "tiny ci",
        ]

    def test_an_interruption_ends_the_notebooks_and_is_one_line(
        self, project: Any, fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        """Fails where notebooks run on behind the prompt, or the reader meets a traceback."""
        fake.write(more="echo $$ > pid; exec sleep 60")
        pid = project.root / "pid"

        def tell(*_: object) -> None:
            if pid.exists() and pid.read_text().strip():
                raise KeyboardInterrupt

        monkeypatch.setattr(runner.Lines, "tell", tell)
        assert main(["reproduce", "--no-book"]) == 130
        said = capsys.readouterr().err.splitlines()
        assert said == ["interrupted; the same command goes on where it was"]
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)

    def test_one_failure_does_not_stop_the_others(self, project: Any, fake: Fake) -> None:
        """Fails where an error ends the run, or where what failed is up to date the next time."""
        project.paper("bad")
        for _ in range(2):
            bad, tiny = reproduce("ci")
            assert (bad.paper, bad.state) == ("bad", "failed")
            assert tiny.paper == "tiny"
            assert "it went wrong" in bad.log.read_text()
        assert tiny.state == "up to date"
        assert [call.split()[0] for call in fake.calls] == ["bad", "bad", "tiny"]

    def test_the_launcher_stands_before_every_command(
        self, project: Any, fake: Fake, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert states(reproduce("ci", launch="env 'MORE=a b'")) == {"tiny": "ran"}
        assert fake.calls == ["tiny ci OMP= REHEARSE= MORE=a b"]

    @pytest.mark.parametrize(
        ("launch", "message"),
        [("'", "is not whole: '"), ("no-such-launcher -n 1", "was not found: no-such-launcher")],
    )
    def test_a_launcher_that_cannot_be(
        self, project: Any, fake: Fake, launch: str, message: str
    ) -> None:
        """Fails where the mistake is found when half of the notebooks run, or is a traceback."""
        with pytest.raises(ConfigError, match=message):
            reproduce("ci", launch=launch)
        assert fake.calls == []

    def test_what_was_killed_says_so(self, project: Any, fake: Fake) -> None:
        """Fails where the log of a notebook that the system has ended, for memory, ends in nothing."""
        fake.write(more="kill -KILL $$")
        (outcome,) = reproduce("ci")
        assert outcome.state == "failed"
        assert "ended by SIGKILL" in summary([outcome])

    def test_a_launcher_that_fails_is_a_failure(self, project: Any, fake: Fake) -> None:
        assert states(reproduce("ci", launch="false")) == {"tiny": "failed"}
        assert fake.calls == []

    @pytest.mark.parametrize(("jobs", "threads"), [(1, "6"), (2, "3"), (4, "1"), (100, "1")])
    def test_every_notebook_gets_its_share_of_the_cores(
        self,
        project: Any,
        fake: Fake,
        monkeypatch: pytest.MonkeyPatch,
        jobs: int,
        threads: str,
    ) -> None:
        """Fails where parallel notebooks each take every core, and slow one another down."""
        monkeypatch.setattr(runner, "cores", lambda: 6)
        reproduce("ci", jobs=jobs)
        assert fake.calls == [f"tiny ci OMP={threads} REHEARSE= MORE="]

    def test_two_jobs_run_at_once(self, project: Any, fake: Fake) -> None:
        """Fails where they run one after the other: each waits for the other's sign here."""
        project.paper("other")
        fake.write(
            more="""touch $slug.runs
            for i in $(seq 200); do
                if [ -e tiny.runs ] && [ -e other.runs ]; then break; fi
                if [ $i = 200 ]; then exit 1; fi
                sleep 0.1
            done"""
        )
        assert states(reproduce("ci", jobs=2)) == {"other": "ran", "tiny": "ran"}

    def test_one_job_is_one_at_a_time(self, project: Any, fake: Fake) -> None:
        for slug in ("a", "b", "c"):
            project.paper(slug)
        fake.write(more="mkdir running || exit 1; sleep 0.1; rmdir running")
        assert set(states(reproduce("ci", jobs=1)).values()) == {"ran"}

    @pytest.mark.parametrize("jobs", [0, -1])
    def test_no_jobs(self, project: Any, jobs: int) -> None:
        with pytest.raises(ConfigError, match=f"jobs must be at least 1, not {jobs}"):
            reproduce("ci", jobs=jobs)

    def test_a_rehearsal_has_its_own_folder_and_environment(
        self, project: Any, fake: Fake, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails where a rehearsal's pages could be taken for results, or its variables stay."""
        reproduce("ci", rehearsal=True, variables={"MORE": "hub"})
        (call,) = fake.calls
        assert call.startswith("tiny ci ")
        assert call.endswith("REHEARSE=1 MORE=hub")
        assert out_of_date("tiny", "ci")
        assert "MORE" not in os.environ
        assert "UNLEARN_REHEARSE" not in os.environ

    @pytest.mark.parametrize(
        ("profile", "papers", "message"),
        [
            ("cii", [], "unknown profile 'cii'"),
            ("ci", ["tiny", "tinny"], "unknown paper 'tinny'"),
        ],
    )
    def test_names_are_checked_before_anything_runs(
        self, project: Any, fake: Fake, profile: str, papers: list[str], message: str
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            reproduce(profile, papers)
        assert fake.calls == []
        assert not (project.root / "build").exists()


class TestCommandLine:
    def test_a_failure_is_a_non_zero_exit_and_a_table(
        self, project: Any, fake: Fake, capsys: pytest.CaptureFixture[str]
    ) -> None:
        project.paper("bad")
        assert main(["reproduce", "--no-book"]) == 1
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert ["paper", "state", "seconds"] in lines
        assert any(line[:2] == ["bad", "failed"] for line in lines)
        assert any(line[:2] == ["tiny", "ran"] for line in lines)
        assert ["it", "went", "wrong"] in lines
        assert main(["reproduce", "--no-book", "--papers", "tiny"]) == 0

    def test_list_runs_nothing(
        self, project: Any, fake: Fake, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["list"]) == 0
        line = "tiny             would run    about 0.1 min, 1 GB, any, seeds 0, 1"
        assert capsys.readouterr().out.splitlines() == [line]
        reproduce("ci")
        assert main(["list"]) == 0
        assert "up to date" in capsys.readouterr().out
        assert len(fake.calls) == 1

    @pytest.mark.parametrize("command", ["reproduce", "book"])
    def test_from_a_folder_below(
        self,
        project: Any,
        fake: Fake,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        command: str,
    ) -> None:
        """Fails where, after all the work, it is a traceback that the book lies outside that folder."""
        page = project.root / "build" / "site" / "index.html"
        monkeypatch.setattr("unlearn_core.replication.pages.book.build_book", lambda: page)
        monkeypatch.chdir(project.root / "notebooks")
        assert main([command]) == 0
        said = capsys.readouterr().out
        assert said.splitlines()[-1] == f"The book: {Path('..', 'build', 'site', 'index.html')}"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["reproduce", "--papers", "tinny"], "error: unknown paper 'tinny'; did you mean"),
            (["reproduce", "--profile", "cii"], "error: unknown profile 'cii'; did you mean"),
            (["list", "--papers", "x y"], "error: unknown paper 'x'"),
            (["execute", "tinny"], "error: unknown paper 'tinny'"),
        ],
    )
    def test_a_mistake_is_one_line(
        self,
        project: Any,
        capsys: pytest.CaptureFixture[str],
        arguments: list[str],
        message: str,
    ) -> None:
        """Fails where a misspelt name ends in a traceback, or in exit code 0."""
        assert main(arguments) == 2
        found = capsys.readouterr().err.splitlines()
        assert len(found) == 1
        assert found[0].startswith(message)


def test_the_summary_shows_the_end_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"\n".join(b"line %d" % i for i in range(100)) + b"\n\xff\n")
    text = summary([Outcome("a", "ran", 1.0, log), Outcome("b", "failed", 2.0, log)])
    assert "line 77" in text
    assert "line 70" not in text
    assert text.count("---") == 1


GOOD = """
import logging, os, subprocess, sys, warnings
from pathlib import Path
from IPython.display import HTML, display

print("printed", sys.executable)
print("to stderr", file=sys.stderr)
warnings.warn("a warning")
logging.warning("logged")
os.write(1, b"below Python\\n")
os.write(2, b"below Python, to stderr\\n")
subprocess.run(["echo", "a child"])
display(HTML("gezeigt: ä漢"))
print("ä漢")
made = Path(out, paper + ".json").write_text(profile + " " + str("torch" in sys.modules))
"""
SAID = ["printed", "to stderr", "a warning", "logged", "below Python, to stderr", "a child"]


def test_real_notebooks(
    project: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Papermill runs two: one writes its product, one raises. Fails where the values that a
    notebook runs with are not the ones asked for; where its output names this machine, or has
    anything that it does not display; and where another Python runs it than runs this, or text is
    read and written in the locale's encoding."""
    spec = project.root / "elsewhere" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": ["false"], "display_name": "x", "language": "python"}))
    startup = project.root / "ipython" / "profile_default" / "startup" / "reader.py"
    startup.parent.mkdir(parents=True)
    startup.write_text("raise SystemExit('the reader's own')")
    monkeypatch.setenv("JUPYTER_PATH", str(project.root / "elsewhere"))
    monkeypatch.setenv("IPYTHONDIR", str(project.root / "ipython"))
    for name, value in (("LC_ALL", "C"), ("PYTHONUTF8", "0"), ("PYTHONCOERCECLOCALE", "0")):
        monkeypatch.setenv(name, value)  # letters beyond ASCII are none of the locale's
    monkeypatch.chdir(project.root / "notebooks")
    project.paper("good", None, GOOD)
    project.paper("bad", None, 'raise ValueError("on purpose")')
    options = ["--papers", "good bad", "--jobs", "2", "--no-book", "--launch", "env MORE=1"]
    assert main(["reproduce", *options]) == 1
    table = capsys.readouterr().out
    assert "on purpose" in table
    folder = project.root / "build" / "ci"
    assert (folder / "good.json").read_text() == "ci False"
    assert not out_of_date("good", "ci")
    assert out_of_date("bad", "ci")
    text = (folder / "good.ipynb").read_text(encoding="utf-8")
    assert str(project.root) not in text
    (injected,) = (
        c for c in json.loads(text)["cells"] if "injected-parameters" in c["metadata"]["tags"]
    )
    assert 'out = "build/ci/running"' in "".join(injected["source"])
    outputs = [o for c in json.loads(text)["cells"] for o in c.get("outputs", [])]
    assert [o.get("data", {}).get("text/html") for o in outputs] == [["gezeigt: ä漢"]]
    log = (folder / "good.log").read_text(encoding="utf-8")
    assert f"printed {sys.executable}" in log
    assert [words for words in SAID if words not in log] == []


def test_the_fake_is_called_as_the_runner_calls(
    project: Any, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line that the fake stands for is one that `main` understands."""
    seen: list[tuple[Any, ...]] = []
    record: Callable[..., None] = lambda *args: seen.append(args)  # noqa: E731
    monkeypatch.setattr(runner, "execute", record)
    assert main(["execute", "tiny", "--profile", "ci"]) == 0
    assert seen == [("tiny", "ci")]
