"""The common ground of language models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from bs4 import BeautifulSoup

from unlearn_core.replication.pages.grounds import (
    ANSWERING,
    FORGET_ONLY,
    LANGUAGE_COLUMNS,
    RETAIN,
    language_tables,
)
from unlearn_core.replication.records import Record, Row

MakeRecord = Callable[..., Record]


@pytest.fixture
def row(make_row: Callable[..., Row]) -> Callable[..., Row]:
    def make(experiment: str, method: str, is_: str | None, seed: int = 0, **metrics: float) -> Row:
        known = {"model_utility": 0.5, "forget_quality": 0.1, "changed_weights": 99.0}
        made = make_row(
            experiment,
            method,
            seed,
            {"forget": 2},
            **known | {"relearned_probability": 0.9} | metrics,
        )
        spec = {
            "recipe": {"model": {"is": "SmolLM2"}},
            "train": "a",
            "forget": "b",
            "asked": "c",
            "method": {"is": is_} if is_ else None,
        }
        return made.model_copy(update={"key": f"{experiment} {method} {seed}", "spec": spec})

    return make


def tables(html: str) -> list[dict[str, list[str]]]:
    found = []
    for table in BeautifulSoup(html, "html.parser").select("table"):
        rows = [
            [" ".join(c.get_text(" ").split()) for c in tr.select("th, td")]
            for tr in table.select("tr")
        ]
        found.append({first: rest for first, *rest in rows})
    return found


def test_methods_of_two_chapters_stand_together(
    make_record: MakeRecord, row: Callable[..., Row]
) -> None:
    """Fails where a row that both chapters hold counts twice, or a method has another's value."""
    at = LANGUAGE_COLUMNS.index("model_utility")
    original = row("tofu_main", "Original", None, model_utility=0.6)
    again = row("guard_main", "Original", None, model_utility=0.6)
    one = make_record(
        paper="flat", rows=(original, row("tofu_main", "GA", "GradientAscent", model_utility=0.2))
    )
    guard = row("guard_main", "GUARD", "GUARD", model_utility=0.7, changed_weights=0.0)
    two = make_record(paper="guard", rows=(again, original, guard))
    every, needs = tables(language_tables([one, two]))
    assert list(every) == ["Method", "Original", "GA", "GUARD"]
    assert [every[m][at] for m in ("Original", "GA", "GUARD")] == ["0.6", "0.2", "0.7"]
    assert needs["GA"] == ["forget", FORGET_ONLY]
    assert needs["GUARD"] == ["forget, retain", ANSWERING]


def test_a_method_that_reads_more_is_called_so(
    make_record: MakeRecord, row: Callable[..., Row]
) -> None:
    record = make_record(
        paper="flat",
        rows=(row("tofu_main", "PO", "PreferenceOptimization"), row("tofu_main", "R", "Retrain")),
    )
    _, needs = tables(language_tables([record]))
    assert needs["PO"] == ["forget, retain, templates", RETAIN]
    assert needs["R"] == ["fresh_model, retain", ""]


@pytest.mark.parametrize("change", [{"train": "z"}, {"asked": "z"}, {"forget": "z"}])
def test_other_questions_are_another_ground(
    make_record: MakeRecord, row: Callable[..., Row], change: dict[str, Any]
) -> None:
    """Fails where rows are compared that were asked something else."""
    one, two = row("tofu_main", "GA", "GradientAscent"), row("tofu_b", "NPO", "NPO")
    two = two.model_copy(update={"spec": two.spec | change, "variant": {"forget": 5}})
    page = language_tables([make_record(paper="flat", rows=(one, two))])
    assert [list(t)[1:] for t in tables(page)] == [["GA"], ["GA"], ["NPO"], ["NPO"]]
    # Under the experiment's title, or under its name where no experiment is called so any more.
    headings = [h.get_text() for h in BeautifulSoup(page, "html.parser").select("h2")]
    assert headings == ["Five of sixteen drawn authors", "tofu_b: 5"]


def test_captions_name_the_profiles_that_rows_are_from(
    make_record: MakeRecord, row: Callable[..., Row]
) -> None:
    """Fails where a caption names one of two profiles alone, or one whose rows are on another ground."""
    one = make_record(
        paper="flat", profile="workstation", rows=(row("tofu_main", "GA", "GradientAscent"),)
    )
    npo = row("tofu_main", "NPO", "NPO")
    other = npo.model_copy(update={"key": "other", "spec": npo.spec | {"asked": "z"}})
    two = make_record(paper="guard", profile="laptop", rows=(npo, other))
    page = BeautifulSoup(language_tables([one, two]), "html.parser")
    found = [c.get_text() for c in page.select("caption") if "Every" in c.get_text()]
    assert [c.split(")")[0] for c in found] == [
        "Every method (laptop and workstation",
        "Every method (laptop",
    ]


def test_rows_without_the_probe_are_left_out(
    make_record: MakeRecord, make_row: Callable[..., Row], row: Callable[..., Row]
) -> None:
    part = make_row("parts", "GUARD", 0, {"forget": 2}, model_utility=0.1, changed_weights=0.0)
    every, _ = tables(
        language_tables([make_record(paper="flat", rows=(part, row("a", "GA", "GradientAscent")))])
    )
    assert list(every) == ["Method", "GA"]


def test_the_picture_tells_its_numbers(make_record: MakeRecord, row: Callable[..., Row]) -> None:
    rows = (
        row("a", "Original", None, model_utility=0.25, forget_quality=0.03),
        row("a", "GA", "GradientAscent", model_utility=0.0, forget_quality=1e-40),
    )
    page = BeautifulSoup(language_tables([make_record(paper="flat", rows=rows)]), "html.parser")
    said = page.select_one("svg")["aria-label"]
    assert "Original: utility 0.25, forget quality 0.03" in said
    assert "GA: utility 0.00, forget quality 1e-30" in said
