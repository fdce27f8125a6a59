"""Was a rule there before its data? Git's history is the witness; nobody types an answer.

A rule is older than its data where every row that it judges was made on a commit that already
held the rule's text, word for word: the commit is an ancestor of the row's, or the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from .records import Row, git

__all__ = ["Age", "notebook_code", "rule_age"]


class Age(NamedTuple):
    """Whether a rule is older than its rows, and the commit that brought it (None: not committed)."""

    age: Literal["older", "younger", "unknown"]
    commit: str | None


def notebook_code(text: str) -> str:
    """The code of a notebook (its JSON), cell after cell."""
    cells = json.loads(text)["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")


@cache
def _versions(root: Path, file: str) -> tuple[tuple[str, str], ...]:
    """(commit, code) of a notebook at every commit that changed it, newest first."""
    commits = git(root, "log", "--format=%H", "--", file).split()
    return tuple((c, notebook_code(git(root, "show", f"{c}:{file}"))) for c in commits)


@cache
def _within(root: Path, commit: str, later: str) -> bool | None:
    """Is ``commit`` an ancestor of ``later``, or the same? None where git knows one of them not."""
    try:
        base = git(root, "merge-base", commit, later)
    except OSError:
        return None
    return base == commit


def rule_age(root: Path, file: str, parts: Sequence[str], rows: Iterable[Row]) -> Age:
    """How old a rule is beside the rows that it judges.

    Parameters
    ----------
    root : the repository
    file : the notebook that holds the rule, relative to the root
    parts : the statements that make up the rule (`claims.rule_parts`)
    rows : what it judges
    """
    brought = None
    try:
        for commit, code in _versions(root, file):
            if not all(part in code for part in parts):
                break
            brought = commit
    except OSError:
        return Age("unknown", None)
    if brought is None:
        return Age("unknown", None)
    found = {_within(root, brought, c) if c else None for c in {r.provenance.commit for r in rows}}
    if False in found:
        return Age("younger", brought)
    return Age("unknown" if None in found or not found else "older", brought)
