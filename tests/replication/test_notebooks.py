from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

#: The anatomy of a chapter: these headings, in this order; experiments stand between them.
ANATOMY = [
    "## The claims",
    "## The method",
    "## Setup, and what was shrunk",
    "## The paper's numbers, and other people's",
    "## Verdicts",
    "## Deviations",
    "## What was easy, what was hard, what we could not test",
    "## How this was made",
    "## Run it yourself",
]


@pytest.fixture(params=NOTEBOOKS, ids=lambda file: file.stem)
def file(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def cells(file: Path) -> list[dict[str, Any]]:
    return json.loads(file.read_text())["cells"]


def tagged(cells: list[dict[str, Any]], tag: str) -> list[str]:
    return ["".join(c["source"]) for c in cells if tag in c["metadata"].get("tags", [])]


def test_there_is_a_notebook() -> None:
    assert [f.stem for f in NOTEBOOKS] == [
        f.stem for f in sorted((ROOT / "notebooks").glob("*.yaml"))
    ]
    assert NOTEBOOKS


def test_no_outputs(cells: list[dict[str, Any]]) -> None:
    """Fails where somebody commits a notebook that they have run: results come from records."""
    for cell in cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_parameters_are_three_literals(file: Path, cells: list[dict[str, Any]]) -> None:
    """Fails on a parameter that the runner does not pass, or a value that is computed."""
    (source,) = tagged(cells, "parameters")
    found = {}
    for statement in ast.parse(source).body:
        assert isinstance(statement, ast.Assign)
        (name,) = statement.targets
        assert isinstance(name, ast.Name)
        found[name.id] = ast.literal_eval(statement.value)
    assert found == {"paper": file.stem, "profile": "ci", "out": "build/ci"}


def test_every_chapter_has_the_same_anatomy(cells: list[dict[str, Any]]) -> None:
    lines = [
        line
        for cell in cells
        if cell["cell_type"] == "markdown"
        for line in "".join(cell["source"]).splitlines()
    ]
    assert lines[0].startswith("# ")
    assert sum(line.startswith("# ") for line in lines) == 1
    assert [line for line in lines if line in ANATOMY] == ANATOMY
    last = max(i for i, line in enumerate(lines) if line.startswith("## "))
    assert lines[last] == ANATOMY[-1]


def test_claims_stand_in_one_cell(cells: list[dict[str, Any]]) -> None:
    (source,) = tagged(cells, "claims")
    others = [c for c in cells if "".join(c["source"]) != source]
    assert "@run.claim(" in source
    assert not any("@run.claim(" in "".join(c["source"]) for c in others)


def test_the_kernel_is_the_one_that_runs_it(file: Path) -> None:
    assert json.loads(file.read_text())["metadata"]["kernelspec"]["name"] == "python3"


def test_no_result_is_typed(cells: list[dict[str, Any]]) -> None:
    """Fails where a measured number stands in a chapter's prose: it would never be updated."""
    for cell in cells:
        if cell["cell_type"] == "markdown":
            assert not re.search(r"\d+\.\d+ ?%", "".join(cell["source"]))
