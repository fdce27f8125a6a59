"""Every file of the package says in its first line what it is for, and the map shows that."""

from __future__ import annotations

from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from unlearn_core.replication.pages.map import FOLDERS, first_line, package_map
from unlearn_core.replication.papers import known_papers, load_paper

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = ROOT / "unlearn_core"
FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.fixture(scope="module")
def page() -> BeautifulSoup:
    papers = {slug: load_paper(slug) for slug in known_papers()}
    return BeautifulSoup(package_map(PACKAGE, papers), "html.parser")


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(PACKAGE).as_posix())
def test_the_first_line_says_what_a_file_is_for(file: Path) -> None:
    """Fails where a new file says nothing, or no more than its name."""
    line = first_line(file)
    assert line
    assert line[-1] in ".?!"
    assert len(line.split()) > 3
    assert len(line) <= 180


def test_every_file_is_on_the_map(page: BeautifulSoup) -> None:
    """Fails where a new folder is not among those that the map has."""
    shown = [code.text for code in page.select(".map tbody th code")]
    inside = [f for f in FILES if f.parent != PACKAGE and f.name != "__init__.py"]
    assert sorted(shown) == sorted(f.name for f in inside)
    assert {f.parent.relative_to(PACKAGE).as_posix() for f in inside} == set(FOLDERS)


@pytest.mark.parametrize(
    ("paper", "found"),
    [
        ("SEFE", ("data/answer_styles.py", "methods/sefe.py", "replication/trials/continual.py")),
        (
            "SafeEraser",
            ("data/safeeraser.py", "methods/safeeraser.py", "replication/trials/safety.py"),
        ),
        ("SSD", ("methods/ssd.py", "replication/trials/classifiers.py")),
        ("GUARD", ("data/questions.py", "methods/guard.py", "replication/trials/language.py")),
    ],
)
def test_a_newcomer_finds_a_paper_s_parts(
    page: BeautifulSoup, paper: str, found: tuple[str, ...]
) -> None:
    """Fails where a file that is about one paper does not say so in its first line."""
    rows = {
        tr.th.text: [c.text for c in tr.select("td code")] for tr in page.table.select("tbody tr")
    }
    assert set(found) <= set(rows[paper])
