"""Which of a paper's published runs its chapter shows."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest

from unlearn_core.replication.pages import book
from unlearn_core.replication.records import Record, Verdict
from unlearn_core.replication.runner import pair, settle


@pytest.mark.parametrize(
    ("judged", "shown"),
    [
        ({"ci": 1, "laptop": 1}, "laptop"),
        # A measurement that is on its way says less than what is there.
        ({"ci": 0, "laptop": 2, "workstation": 1}, "laptop"),
        ({"ci": 2, "laptop": 0, "workstation": 1, "paper": 2}, "paper"),
        ({"ci": 0, "laptop": 0}, "laptop"),
    ],
)
def test_the_largest_that_judges_no_fewer_claims_than_a_smaller_one(
    project: Any,
    tiny: dict[str, Any],
    make_record: Callable[..., Record],
    judged: dict[str, int],
    shown: str,
) -> None:
    """Fails where a chapter shows a size of which hardly anything is made yet."""
    claims = list(tiny["claims"])
    while len(claims) < 2:
        claims.append(f"C{len(claims) + 1}")
        tiny["claims"][claims[-1]] = tiny["claims"][claims[0]]
    project.paper("tiny", tiny)
    for profile, count in judged.items():
        folder = project.root / "book" / "published" / profile
        folder.mkdir(parents=True)
        verdicts = tuple(
            Verdict(claim=c, verdict="tie" if i < count else "not tested")
            for i, c in enumerate(claims)
        )
        make_record(profile=profile, verdicts=verdicts).write(folder / "tiny.json")
        shutil.copy(project.root / "notebooks" / "tiny.ipynb", folder / "tiny.ipynb")
    (chapter,) = book.find_chapters(project.root)
    assert chapter.shown.record.profile == shown
    others = [p for p in ("paper", "workstation", "laptop", "ci") if p in judged and p != shown]
    assert [e.record.profile for e in chapter.others] == others


def test_of_ones_own_runs_only_whole_ones(project: Any, make_record: Callable[..., Record]) -> None:
    """Fails where a notebook that a kill left in its middle is shown beside the record of another run."""
    own = project.root / "build" / "ci"
    (own / "running").mkdir(parents=True)
    notebook, record = pair(own / "running", "tiny")
    shutil.copy(project.root / "notebooks" / "tiny.ipynb", notebook)
    make_record().write(record)
    settle(own, "tiny", "made of this")
    (chapter,) = book.find_chapters(project.root)
    assert chapter.shown.notebook == own / "tiny.ipynb"
    other = chapter.shown.notebook.read_text() + " "
    chapter.shown.notebook.write_text(other)
    assert book.find_chapters(project.root) == []
