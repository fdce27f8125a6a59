from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import papermill
import pytest

from unlearn_core.registry import ConfigError
from unlearn_core.replication import runner
from unlearn_core.replication.__main__ import main
from unlearn_core.replication.runner import (
    Outcome,
    execute,
    fingerprint,
    out_of_date,
    parameters_of,
    reproduce,
    summary,
)

#: Stands for a launcher, or for Python itself: it notes what it was called with and makes what a
#: notebook's run leaves. The paper "bad" fails.
FAKE = """#!/bin/bash
while [ "$1" != execute ]; do shift; done
slug=$2 out=$6
echo "$slug $4 $out OMP=$OMP_NUM_THREADS REHEARSE=$UNLEARN_REHEARSE MORE=$MORE" >> {log}
{more}
if [ $slug = bad ]; then echo "it went wrong" >&2; exit 3; fi
touch $out/$slug.ipynb $out/$slug.json
"""


class Fake:
    """The script, and what it noted."""

    def __init__(self, folder: Path) -> None:
        self.script, self.log = folder / "fake", folder / "calls"
        self.write()

    def write(self, more: str = "") -> None:
        self.script.write_text(FAKE.format(log=self.log, more=more))
        self.script.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        return sorted(self.log.read_text().splitlines()) if self.log.exists() else []


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Notebooks are "run" by the script, in milliseconds."""
    made = Fake(tmp_path)
    monkeypatch.setattr(sys, "executable", str(made.script))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return made


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
            execute("tinny", "ci", Path("build/ci"))

    def test_unknown_profile(self, project: Any) -> None:
        with pytest.raises(ConfigError, match="unknown profile 'cii'; did you mean 'ci'"):
            execute("tiny", "cii", Path("build/ci"))

    @pytest.mark.parametrize("name", ["paper", "profile", "out"])
    def test_a_notebook_without_a_parameter(self, project: Any, name: str) -> None:
        """Fails where it is left to papermill, which warns and runs with the default."""
        file = project.root / "notebooks" / "tiny.ipynb"
        file.write_text(file.read_text().replace(f"{name} = ", f"{name}s = "))
        message = rf"notebooks/tiny\.ipynb has no parameter '{name}'; did you mean '{name}s'"
        with pytest.raises(ConfigError, match=message):
            execute("tiny", "ci", Path("build/ci"))

    def test_a_notebook_without_parameters(self, project: Any) -> None:
        file = project.root / "notebooks" / "tiny.ipynb"
        file.write_text(file.read_text().replace('"parameters"', '"others"'))
        with pytest.raises(ConfigError, match="no cell tagged 'parameters'"):
            execute("tiny", "ci", Path("build/ci"))

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
        folder.mkdir(parents=True)
        for suffix in ("ipynb", "json"):
            (folder / f"tiny.{suffix}").write_text("{}")
        (folder / "tiny.stamp").write_text(fingerprint("tiny", "ci", False))
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
        (made / "notebooks" / "other.yaml").write_text("")
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
            "other ci build/ci",
            "tiny ci build/ci",
            "tiny ci build/ci",
        ]

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

    def test_a_source_that_changes_during_the_run(self, project: Any, fake: Fake) -> None:
        """Fails where the stamp is taken after the run: a change made meanwhile is never run."""
        fake.write(more="echo >> notebooks/tiny.yaml")
        assert states(reproduce("ci")) == {"tiny": "ran"}
        assert out_of_date("tiny", "ci")

    def test_the_launcher_stands_before_every_command(
        self, project: Any, fake: Fake, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert states(reproduce("ci", launch="env 'MORE=a b'")) == {"tiny": "ran"}
        assert fake.calls == ["tiny ci build/ci OMP= REHEARSE= MORE=a b"]

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
        monkeypatch.setattr(os, "cpu_count", lambda: 6)
        reproduce("ci", jobs=jobs)
        assert fake.calls == [f"tiny ci build/ci OMP={threads} REHEARSE= MORE="]

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
        assert call.startswith("tiny ci build/rehearsal ")
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

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["reproduce", "--papers", "tinny"], "error: unknown paper 'tinny'; did you mean"),
            (["reproduce", "--profile", "cii"], "error: unknown profile 'cii'; did you mean"),
            (["list", "--papers", "x y"], "error: unknown paper 'x'"),
            (["execute", "tinny", "--out", "build"], "error: unknown paper 'tinny'"),
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
import os, sys
from pathlib import Path

Path(out, paper + ".json").write_text(profile + " " + str("torch" in sys.modules))
"""


def test_real_notebooks(project: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Papermill runs two: one writes its product, one raises. Fails where the values that a
    notebook runs with are not the ones asked for, or where its output names this machine."""
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
    text = (folder / "good.ipynb").read_text()
    assert str(project.root) not in text
    (injected,) = (
        c for c in json.loads(text)["cells"] if "injected-parameters" in c["metadata"]["tags"]
    )
    assert 'out = "build/ci"' in "".join(injected["source"])


def test_the_fake_is_called_as_the_runner_calls(
    project: Any, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line that the fake stands for is one that `main` understands."""
    seen: list[tuple[Any, ...]] = []
    record: Callable[..., None] = lambda *args: seen.append(args)  # noqa: E731
    monkeypatch.setattr(runner, "execute", record)
    assert main(["execute", "tiny", "--profile", "ci", "--out", "build/ci"]) == 0
    assert seen == [("tiny", "ci", Path("build/ci"))]
