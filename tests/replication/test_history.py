"""Was a rule there before its data: a repository of three commits."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from unlearn_core.replication.history import rule_age
from unlearn_core.replication.records import Row

RULE = '@run.claim("C1")\ndef rule(rows, seed):\n    return rows.value("a", "b", "c", seed) - LIMIT'
FILE = "notebooks/tiny.ipynb"


def notebook(*cells: str) -> str:
    return json.dumps({"cells": [{"cell_type": "code", "source": [c]} for c in cells]})


@pytest.fixture
def commits(tmp_path: Path) -> list[str]:
    """No rule; the rule with a limit of 2; the same in another cell; the rule with a limit of 1."""

    def git(*args: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *args],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    git("init", "-q")
    (tmp_path / "notebooks").mkdir()
    found = []
    for cells in (
        ["x = 1"],
        ["LIMIT = 2", RULE],
        ["LIMIT = 2", "x = 1", RULE],
        ["LIMIT = 1", RULE],
    ):
        (tmp_path / FILE).write_text(notebook(*cells))
        git("add", "-A")
        git("commit", "-qm", "c")
        found.append(git("rev-parse", "HEAD"))
    return found


def made_at(make_row: Callable[..., Row], commit: str | None) -> Row:
    row = make_row(zrf=1.0)
    return row.model_copy(
        update={"provenance": row.provenance.model_copy(update={"commit": commit})}
    )


def test_ages(tmp_path: Path, commits: list[str], make_row: Callable[..., Row]) -> None:
    """Fails where a threshold that moved after the rows leaves the rule as old as it was, or where
    moving a cell makes it young."""

    def age(parts: list[str], *at: str | None) -> tuple[str, str | None]:
        return rule_age(tmp_path, FILE, parts, [made_at(make_row, c) for c in at])

    none, first, moved, last = commits
    # What it is now.
    assert age(["LIMIT = 1", RULE], last) == ("older", last)
    assert age(["LIMIT = 1", RULE], last, moved) == ("younger", last)
    # The function alone has been there since the second commit.
    assert age([RULE], first) == ("older", first)
    assert age([RULE], moved, last) == ("older", first)
    assert age([RULE], none) == ("younger", first)
    # Not committed; made nobody knows where; a commit that is not in this history.
    assert age(["LIMIT = 3", RULE], last) == ("unknown", None)
    assert age([RULE], None) == ("unknown", first)
    assert age([RULE], "0" * 40) == ("unknown", first)


def test_without_git_nobody_knows(tmp_path: Path, make_row: Callable[..., Row]) -> None:
    assert rule_age(tmp_path, FILE, [RULE], [made_at(make_row, None)]) == ("unknown", None)
