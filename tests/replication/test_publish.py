from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unlearn_core.registry import ConfigError
from unlearn_core.replication.publish import LIMIT, check_publishable, machine_paths, publish
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
        with pytest.raises(ValueError, match="schema 0"):
            check_publishable(*pair)


class TestMachinePaths:
    @pytest.mark.parametrize(
        "text",
        [
            "/home/ann/x",
            "in /root/.cache/huggingface",
            '"/tmp/ipykernel_12/1.py"',
            "(/work/clone/a.py)",
            "path=/Users/ann/b",
            "['/mnt/disk/c']",
            "/content/unlearn",
            "\\n/var/tmp/x",
        ],
    )
    def test_found(self, text: str) -> None:
        assert len(machine_paths(text)) == 1

    @pytest.mark.parametrize(
        "text",
        [
            "https://example.org/data/home/x",
            "build/tmp/x",
            "../data/hub/x",
            "./home/x",
            "and/or",
            "a ratio of 3/4",
            "</div></data/>",
            "uoft-cs/cifar10",
        ],
    )
    def test_not_found(self, text: str) -> None:
        """Fails where a link counts as a path: nothing with a bibliography could be published."""
        assert machine_paths(text) == []

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


def test_publish_takes_head_and_leaves_the_tree_alone(project: Any) -> None:
    """Fails where what is published was made from uncommitted sources, or where publishing
    needs a tree without changes."""

    def git(*args: str) -> str:
        who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        command = ["git", "-C", str(project.root), *who, *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    project.paper("tiny", None, CHAPTER)
    (project.root / ".gitignore").write_text("build/\n")
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--no-verify", "-m", "all")
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
