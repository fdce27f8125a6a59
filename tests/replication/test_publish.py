from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unlearn_core.registry import ConfigError
from unlearn_core.replication.publish import (
    LIMIT,
    check_kept,
    check_publishable,
    machine_paths,
    publish,
)
from unlearn_core.replication.records import Record

ROOT = Path(__file__).resolve().parents[2]

MakeRecord = Callable[..., Record]
Pair = tuple[Path, Path]


def notebook(text: str = "42", kind: str = "stream") -> dict[str, Any]:
    output = {"output_type": kind, "name": "stdout", "text": text}
    return {"cells": [{"cell_type": "code", "source": "run()", "outputs": [output]}]}


@pytest.fixture
def pair(tmp_path: Path, make_record: MakeRecord) -> Pair:
    """A notebook and a record that may be published."""
    files = tmp_path / "tiny.ipynb", tmp_path / "tiny.json"
    files[0].write_text(json.dumps(notebook()))
    make_record().write(files[1])
    return files


class TestCheckPublishable:
    def test_a_good_pair_passes(self, pair: Pair) -> None:
        check_publishable(*pair)

    def test_a_dirty_row(self, pair: Pair, make_record: MakeRecord, make_row: Any) -> None:
        """Fails where only the last commit counts: rows may be older than it."""
        make_record(rows=(make_row(zrf=1.0), make_row(seed=1, dirty=True, zrf=1.0))).write(pair[1])
        with pytest.raises(ConfigError, match=r"tiny\.json: 1 rows were made with uncommitted"):
            check_publishable(*pair)

    def test_a_dirty_run_of_clean_rows(self, pair: Pair, make_record: MakeRecord) -> None:
        make_record(dirty=True).write(pair[1])
        with pytest.raises(ConfigError, match="made with uncommitted changes"):
            check_publishable(*pair)

    def test_a_rehearsal(self, pair: Pair, make_record: MakeRecord) -> None:
        make_record(rehearsal=True).write(pair[1])
        with pytest.raises(ConfigError, match="a rehearsal is not published"):
            check_publishable(*pair)

    @pytest.mark.parametrize("where", [0, 1])
    def test_a_path_of_this_machine(self, pair: Pair, make_record: MakeRecord, where: int) -> None:
        """Fails where only one of the two files is looked at."""
        if where:
            make_record(effects={"D1": "see /home/ann/data"}).write(pair[1])
        else:
            pair[0].write_text(json.dumps(notebook("File /home/ann/data/x.py, line 1")))
        message = rf"{pair[where].name} names paths of this machine: /home/ann/data"
        with pytest.raises(ConfigError, match=message):
            check_publishable(*pair)

    def test_a_notebook_that_is_too_large(self, pair: Pair) -> None:
        pair[0].write_text(json.dumps(notebook("x" * LIMIT)))
        with pytest.raises(ConfigError, match=r"tiny\.ipynb is 1,500,\d+ bytes, over 1,500,000"):
            check_publishable(*pair)

    def test_a_cell_that_failed(self, pair: Pair) -> None:
        pair[0].write_text(json.dumps(notebook(kind="error")))
        with pytest.raises(ConfigError, match="has a cell that failed"):
            check_publishable(*pair)

    def test_a_record_of_another_schema(self, pair: Pair) -> None:
        pair[1].write_text(json.dumps(json.loads(pair[1].read_text()) | {"schema_version": 0}))
        with pytest.raises(ConfigError, match="schema 0"):
            check_publishable(*pair)


class TestMachinePaths:
    @pytest.mark.parametrize(
        "text",
        [
            "/home/ann/x",
            "in /root/.cache/huggingface",
            '"/tmp/ipykernel_12/1.py"',
            "(/scratch/clone/a.py)",
            "path=/Users/ann/b",
            "['/mnt/disk/c']",
            "/content/unlearn",
            "\\n/var/tmp/x",
            # What clusters use, and what nobody has thought of.
            "/scratch/ann/run",
            "/gpfs/project/a-b",
            "/lustre/x",
            "/p/home/juser",
            "/Volumes/Data/x",
            "/net/nfs+1/@a/b",
            "host:/export/data",
            "<td>/srv/data</td>",
            "`/srv/data`",
            "|/srv/data|",
            "\x1b[0;32m/srv/data/x.py\x1b[0m",
            "an image ;base64,iVBOR/w0KG/goAAA= of /srv/data",
            # Other forms.
            "C:\\Users\\ann",
            "d:/data/x",
            'File "C:\\\\Program Files\\\\Python\\\\x.py"',
            "~/data",
            "in ~ann/data/x",
            "file:///data",
            "FILE:/srv/data",
        ],
    )
    def test_found(self, text: str) -> None:
        """Fails where a path is known by a list of roots: clusters have others."""
        assert len(machine_paths(text)) == 1
        assert len(machine_paths(json.dumps({"text": ["first\n", text]}))) == 1

    @pytest.mark.parametrize(
        "text",
        [
            "https://example.org/data/home/x",
            "http://localhost:8888/a/b?c=/d",
            "https://example.org/~ann/x",
            "build/tmp/x",
            "../data/hub/x",
            "./home/x",
            "**/a/b",
            "and/or",
            "forget/retain/test",
            "a ratio of 3/4",
            "about ~3/4 of 1/2/3",
            "on 2025/11/30 or 30/11/2025",
            "text/html, application/vnd.jupyter.widget-view+json",
            "</div></data/>",
            "<br/><hr />",
            "uoft-cs/cifar10",
            "p(a)/b/c",
            "[D]/n/m and {x}/y/z",
            "/tmp or / alone, //, /*/",
            "$f:\\mathcal{X}\\to Y$ and \\(g:\\R\\to\\R\\)",
            "$$\nf:\\R\\to\\R/n/m\n$$",
            "\\begin{align*}\nf:\\R\\to\\R\n\\end{align*}",
            "```{math}\nf:\\R\\to\\R\n```",
            "$\\frac{a}{b}/c/d$",
            "at 12:/ or 10:30/11:00",
            "KL(p||q)/T^2",
        ],
    )
    def test_not_found(self, text: str) -> None:
        """Fails where a link counts as a path: nothing with a bibliography could be published."""
        assert machine_paths(text) == []
        assert machine_paths(json.dumps({"text": text.splitlines(keepends=True)})) == []

    def test_an_image_is_no_text(self) -> None:
        output = {"data": {"image/png": "iVB/OR/w0/KGgo=", "image/svg+xml": "<svg>/srv/a</svg>"}}
        assert machine_paths(json.dumps(output)) == ["/srv/a"]

    def test_each_once_and_in_order(self) -> None:
        assert machine_paths("/tmp/b /tmp/a /tmp/b") == ["/tmp/a", "/tmp/b"]


def test_everything_published_may_be() -> None:
    records = sorted((ROOT / "book" / "published").glob("*/*.json"))
    if not records:
        pytest.skip("nothing is published yet")
    for record in records:
        check_publishable(record.with_suffix(".ipynb"), record)
        found = Record.read(record)
        assert found.profile == record.parent.name
        assert found.paper == record.stem
        assert all(i.holds for i in found.invariants)


CHAPTER = """
from unlearn_core.replication.run import Replication

run = Replication(paper, profile, out)

@run.claim("C1")
def rule(rows, seed):
    return 1.0

run.finish().commit
"""


#: As a cache would give it.
MAKES_A_ROW = """import os
from unlearn_core.replication.records import Provenance, Row

run.rows.add(Row(
    experiment="full_class", method="SSD", seed=0, key="k", spec={}, metrics={},
    provenance=Provenance(
        commit=os.environ["ROW_OF"], dirty=False, date="2025-01-01T00:00:00+00:00", device="cpu",
        threads=1, versions={}, sources=(), seconds=1.0,
    ),
))
run.finish()"""

Git = Callable[..., str]


@pytest.fixture
def git(project: Any) -> Git:
    """Git in the project, which is committed with the paper "tiny"."""

    def git(*args: str) -> str:
        who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        command = ["git", "-C", str(project.root), *who, *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    project.paper("tiny", None, CHAPTER)
    (project.root / ".gitignore").write_text("build/\n")
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--no-verify", "-m", "all")
    return git


def test_publish_takes_head_and_leaves_the_tree_alone(project: Any, git: Git) -> None:
    """Fails where what is published was made from uncommitted sources, or where publishing
    needs a tree without changes."""
    edited = project.root / "notebooks" / "tiny.ipynb"
    edited.write_text(edited.read_text().replace("return 1.0", "return -1.0"))

    (outcome,) = publish("ci", ["tiny"])
    assert outcome.state == "ran", outcome.log.read_text()
    record = Record.read(project.root / "book" / "published" / "ci" / "tiny.json")
    assert (record.commit, record.dirty) == (git("rev-parse", "HEAD"), False)
    assert record.verdicts[0].verdict == "holds"
    assert "return -1.0" in edited.read_text()
    assert len(git("worktree", "list").splitlines()) == 1
    assert not list((project.root / "build").glob("publish-*/"))


class TestEnvironment:
    @pytest.fixture
    def seen(self, project: Any, git: Git, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
        """``seen(**options)``: the environment that `publish` gives a notebook; none is run."""

        def look(**options: Any) -> dict[str, str]:
            environments = []
            run = subprocess.run

            def fake(command: list[str], **given: Any) -> Any:
                if "unlearn_core.replication" not in command:
                    return run(command, **given)
                environments.append(given["env"])
                return subprocess.CompletedProcess(command, 1)

            with monkeypatch.context() as patch:
                patch.setattr(subprocess, "run", fake)
                publish("ci", ["tiny"], **options)
            return environments[0]

        return look

    def test_the_cache_is_not_in_the_checkout(
        self, project: Any, seen: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """Fails where a relative UNLEARN_CACHE is one in the checkout: nothing that was cached is
        found, and a night's rows are deleted with it."""
        assert seen()["UNLEARN_CACHE"] == str(project.root / "build" / "cache")
        monkeypatch.setenv("UNLEARN_CACHE", "build/mine")
        monkeypatch.chdir(tmp_path)
        assert seen()["UNLEARN_CACHE"] == str(project.root / "build" / "mine")
        monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "apart"))
        assert seen()["UNLEARN_CACHE"] == str(tmp_path / "apart")

    def test_folders_that_the_reader_supplies_are_where_they_were(
        self, project: Any, seen: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (project.root / "hub").mkdir()
        (project.root / "build" / "apart").mkdir(parents=True)
        monkeypatch.setenv("UNLEARN_HUB", "hub")
        monkeypatch.setenv("UNLEARN_PINS", "")
        monkeypatch.setenv("UNLEARN_BUILD", "build/apart")
        found = seen()
        assert found["UNLEARN_BUILD"] == "build/apart", "it would not be in the checkout"
        assert found["UNLEARN_HUB"] == str(project.root / "hub")
        assert found["UNLEARN_PINS"] == ""

    def test_no_new_rows(self, seen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Fails where a chapter that is published again for its text may get a new number."""
        monkeypatch.delenv("UNLEARN_ROWS", raising=False)
        assert "UNLEARN_ROWS" not in seen()
        assert seen(rows="published")["UNLEARN_ROWS"] == "published"

    def test_a_hook_s_repository_is_left_alone(
        self, project: Any, seen: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """Fails where publishing from a git hook checks out another repository."""
        monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
        monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
        assert seen()["UNLEARN_ROOT"].startswith(f"{project.root}/build/publish-")


def test_a_commit_that_no_branch_holds_is_no_source(project: Any, git: Git) -> None:
    """Fails where a record names a commit that nobody who clones the repository will have."""
    first = git("rev-parse", "HEAD")
    git("checkout", "--quiet", "--detach")
    check_kept(project.root, [first])
    git("commit", "--quiet", "--no-verify", "--allow-empty", "-m", "on no branch")
    lost = git("rev-parse", "HEAD")
    with pytest.raises(
        ConfigError, match=f"no branch or tag holds {lost}, .*git branch kept {lost}"
    ):
        publish("ci", ["tiny"])
    assert not (project.root / "book" / "published").exists()
    with pytest.raises(ConfigError, match=f"holds {'0' * 40}, {lost},"):  # git never knew the first
        check_kept(project.root, [lost, first, "0" * 40])
    git("branch", "kept")
    git("checkout", "--quiet", "--detach", first)
    check_kept(project.root, [first, lost])


def test_rows_of_a_lost_commit_are_not_published(
    project: Any, git: Git, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where only the record's own commit is looked at: rows come from a cache."""
    git("checkout", "--quiet", "--detach")
    git("commit", "--quiet", "--no-verify", "--allow-empty", "-m", "on no branch")
    lost = git("rev-parse", "HEAD")
    git("checkout", "--quiet", "-")
    project.paper("tiny", None, CHAPTER.replace("run.finish()", MAKES_A_ROW))
    git("commit", "--quiet", "--no-verify", "--all", "-m", "a row")
    monkeypatch.setenv("ROW_OF", lost)
    (outcome,) = publish("ci", ["tiny"])
    assert outcome.state == "failed"
    assert f"not published: no branch or tag holds {lost}" in outcome.log.read_text()


def test_what_is_no_repository_is_said(project: Any) -> None:
    with pytest.raises(ConfigError, match=r"HEAD can't be checked out .*not a git repository"):
        publish("ci", ["tiny"])
    assert not list((project.root / "build").glob("publish-*"))
