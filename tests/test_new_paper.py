"""`make new-paper`: what it writes passes every test that walks over the papers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from unlearn_core.registry import ConfigError
from unlearn_core.replication import new_paper as scaffold
from unlearn_core.replication.new_paper import exported, new_paper

ROOT = Path(__file__).parents[1]
SLUG, NAME = "our_tenth", "OurTenth"
#: Where tests loop over papers, methods or files.
WALKS = (
    *(
        "test_packaging.py",
        "test_exports.py",
        "methods",
        "replication/pages/test_map.py",
    ),
    *(
        "replication/test_papers.py",
        "replication/test_notebooks.py",
        "replication/test_strict_yaml.py",
    ),
    "replication/trials/test_plan.py",
)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, without what runs made, in which the command has run."""
    there = tmp_path_factory.mktemp("project") / "copy"
    skip = shutil.ignore_patterns("published", "__pycache__", "data_files", "build", ".*")
    for name in ("unlearn_core", "notebooks", "tests", "book"):
        shutil.copytree(ROOT / name, there / name, ignore=skip)
    for name in (
        "pyproject.toml",
        "constraints.txt",
        "README.md",
        "CHANGELOG.md",
        "CITATION.cff",
        "LICENSE",
    ):
        shutil.copy(ROOT / name, there)
    shutil.copytree(ROOT / ".ci", there / ".ci")
    command = [sys.executable, "-m", "unlearn_core.replication", "new-paper", SLUG]
    done = subprocess.run(command, cwd=there, env=inside(there), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        f"unlearn_core/methods/{SLUG}.py",
        f"notebooks/{SLUG}.yaml",
        f"notebooks/{SLUG}.ipynb",
        f"tests/methods/test_{SLUG}.py",
        "unlearn_core/methods/__init__.py",
        "book/references.bib",
        "README.md",
    ]
    return there


def inside(folder: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(folder), "UNLEARN_ROOT": str(folder)}


def test_the_tests_that_walk_over_papers_pass(copy: Path) -> None:
    """Fails where a list must be lengthened by hand, or a test counts what there is."""
    files = [f"tests/{name}" for name in WALKS]
    chosen = f"{SLUG} or {NAME} or method_is_exported or readme or written_out"
    command = [sys.executable, "-m", "pytest", "-n0", "-vv", "-p", "no:cacheprovider", *files]
    command += ["-k", f"({chosen}) and not readme_example"]
    done = subprocess.run(command, cwd=copy, env=inside(copy), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    for test in (
        f"test_papers.py::TestProjectPapers::test_everything_can_be_built[{SLUG}-paper]",
        f"test_papers.py::TestRehearsed::test_every_training_ends_after_two_steps[{SLUG}]",
        f"test_notebooks.py::test_every_chapter_has_the_same_anatomy[{SLUG}]",
        f"test_contract.py::test_every_method_keeps_the_contract[{SLUG}-images]",
        f"test_{SLUG}.py::test_the_step",
        "test_packaging.py::test_readme_tells_chapters_that_are_here_from_planned_ones",
        "test_exports.py::test_every_method_is_exported",
    ):
        assert f"{test} PASSED" in done.stdout, test


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["nbstripout", "--verify", "--keep-id", f"notebooks/{SLUG}.ipynb"],
    ],
    ids=" ".join,
)
def test_it_is_written_as_lint_wants_it(copy: Path, command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=copy, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_every_cell_but_the_story_is_hidden_or_a_result(copy: Path) -> None:
    cells = json.loads((copy / "notebooks" / f"{SLUG}.ipynb").read_text())["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    assert [c for c in cells if c["cell_type"] == "code" and "$" in "".join(c["source"])] == []


@pytest.mark.parametrize("slug", ["", "Two", "two words", "9th", "a__b", "../x", "x_"])
def test_a_slug_is_a_module_s_name(slug: str) -> None:
    with pytest.raises(ConfigError, match="a slug is of small letters"):
        new_paper(slug)


@pytest.mark.parametrize(
    ("slug", "message"),
    [
        ("ssd", r"there is a unlearn_core/methods/ssd\.py already"),
        ("baselines", "there is a unlearn_core/methods/baselines already"),
        ("random_label", "there is a method 'random_label' already"),
        ("lota", "there is a method 'lota' already"),
        ("stage", "unlearn_core.methods has a Stage already"),
        ("register", "unlearn_core.methods has a register already"),
        ("class", "class is a word of Python's"),
    ],
)
def test_nothing_is_written_over(slug: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a module could not be imported, or would hide or double what has the name."""
    monkeypatch.setattr(scaffold, "project_root", lambda: ROOT)
    written: list[Any] = []
    monkeypatch.setattr(Path, "write_text", lambda *given, **_: written.append(given))
    with pytest.raises(ConfigError, match=message):
        new_paper(slug)
    assert written == []


def test_an_export_comes_to_its_place() -> None:
    text = 'from .base import A\nfrom .c import C\n\n__all__ = [\n    "A",\n    "C",\n]\n'
    middle = 'from .base import A\nfrom .bb import BB\nfrom .c import C\n\n__all__ = [\n    "A",\n    "BB",\n    "C",\n]\n'
    assert exported(text, "bb", "BB") == middle
    assert exported(text, "d", "D").splitlines()[2] == "from .d import D"
    assert exported(text, "d", "D").splitlines()[-2] == '    "D",'
