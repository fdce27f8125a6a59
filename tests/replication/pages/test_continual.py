"""Pictures and tables of tasks in a sequence, from rows that were written by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from bs4 import BeautifulSoup

from unlearn_core.replication.pages import continual as sequence
from unlearn_core.replication.trials.continual import BEFORE


def row(method: str, truth: list[list[float]], known: list[list[float]], seed: int = 0) -> Any:
    said = [
        {"task": task, "question": f"{task}?\nShortly.", "answer": "red", "said": f"{method} {i}"}
        for task in ("naming", "presence", "boxes")
        for i in range(2)
    ]
    detail = {
        "order": ["naming", "presence", "boxes"],
        "truth": truth,
        "knowledge": known,
        "format_valid": known,
        "said": said,
    }
    return SimpleNamespace(method=method, seed=seed, detail=detail)


@pytest.fixture
def run() -> Any:
    lora = row("LoRA", [[81], [33, 72], [17, 64, 95]], [[88], [79, 72], [46, 66, 95]])
    sefe = row("SEFE", [[82], [81, 71], [74, 69, 93]], [[82], [81, 71], [75, 69, 93]])
    other = row("LoRA", [[1], [1, 1], [1, 1, 1]], [[1], [1, 1], [1, 1, 1]], seed=1)
    before = SimpleNamespace(method=BEFORE, seed=0, detail={"order": []})
    return SimpleNamespace(rows=[before, lora, other, sefe], profile_name="ci")


def texts(shown: Any) -> list[str]:
    return [t.get_text().strip() for t in BeautifulSoup(shown.data, "html.parser").select("text")]


def test_matrices_have_every_number_of_that_seed(run: Any) -> None:
    found = texts(sequence.matrices(run, ["LoRA", "not run", "SEFE"], 0))
    numbers = [t for t in found if t.isdigit()]
    assert numbers == ["81", "33", "72", "17", "64", "95", "82", "81", "71", "74", "69", "93"]
    assert {"LoRA", "SEFE", "naming", "presence", "boxes"} <= {*found}
    assert sequence.matrices(run, ["not run"], 0) is None


def test_forgetting_is_about_former_tasks_alone(run: Any) -> None:
    found = texts(sequence.forgetting(run, ["LoRA", "SEFE"], 0))
    assert {"naming", "presence", "scored right", "known, not scored right"} <= {*found}
    assert "boxes" not in found
    assert sequence.forgetting(run, ["not run"], 0) is None


def test_answers_are_to_the_first_question_of_each_task(run: Any) -> None:
    page = BeautifulSoup(sequence.answers(run, ["SEFE", "LoRA"], 0).data, "html.parser")
    lines = [[c.get_text() for c in tr.select("th, td")] for tr in page.select("tbody tr")]
    question = "{}?Shortly."
    assert lines == [
        [task, question.format(task), "red", "SEFE 0", "LoRA 0"]
        for task in ("naming", "presence", "boxes")
    ]
    assert [th.get_text() for th in page.select("thead th")][3:] == ["SEFE", "LoRA"]
    assert sequence.answers(run, ["not run"], 0).data == ""


def test_over_learned_tasks_alone(run: Any) -> None:
    # Presence is not learned by the bound. LoRA: (81 + 95) / 2 then, (17 + 95) / 2 at the end,
    # and on average (81 + 33 + 56) / 3; a seed on which a method has no row is left out.
    joint = [
        row("Joint", [[90], [90, 50], [90, 50, 60]], [[90], [90, 50], [90, 50, 60]], s)
        for s in (0, 1)
    ]
    bounded = SimpleNamespace(
        rows=[*run.rows, *joint], profile_name="ci", seeds_of=lambda experiment: [0, 1]
    )
    found = sequence.learned(bounded, "orders", ["LoRA", "SEFE", "not run"], "Joint")
    page = BeautifulSoup(found.data, "html.parser")
    lines = [[c.get_text() for c in tr.select("th, td")] for tr in page.select("tbody tr")]
    assert lines == [
        ["LoRA", "88.0 · 1.0", "56.0 · 1.0", "56.7 · 1.0", "-32.0 · 0"],
        ["SEFE", "87.5", "83.5", "82.2", "-4.0"],
    ]
    run.seeds_of = lambda experiment: [0]
    assert "Joint was not run" in sequence.learned(run, "orders", ["LoRA"], "Joint").data
    none = SimpleNamespace(rows=[*run.rows, *joint], profile_name="ci", seeds_of=run.seeds_of)
    assert "learned no task" in sequence.learned(none, "orders", ["LoRA"], "Joint", least=95).data
