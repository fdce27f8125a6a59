"""The common ground of models that draw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from bs4 import BeautifulSoup

from unlearn_core.replication.pages.book import linked
from unlearn_core.replication.pages.grounds import DRAWING_COLUMNS, drawing_tables, look_of
from unlearn_core.replication.records import Record, Row

MakeRecord = Callable[..., Record]


@pytest.fixture
def row(make_row: Callable[..., Row]) -> Callable[..., Row]:
    def make(method: str, is_: str | None, concept: str = "a bag", **more: Any) -> Row:
        experiment, seed = more.pop("experiment", "erase_main"), more.pop("seed", 0)
        known = {f"{k}_accuracy": 50.0 for k in ("erased", "general", "kept", "relative")}
        made = make_row(experiment, method, seed, {"forget": concept}, **known | more)
        spec = {"method": {"is": is_} if is_ else None}
        return made.model_copy(update={"key": f"{concept} {method} {seed}", "spec": spec})

    return make


def tables(html: str) -> list[dict[str, list[str]]]:
    found = []
    for table in BeautifulSoup(html, "html.parser").select("table"):
        cells = [
            [c.get_text(" ").strip() for c in tr.select("th, td")] for tr in table.select("tr")
        ]
        found.append({first: rest for first, *rest in cells})
    return found


def test_both_chapters_rows_stand_together(
    make_record: MakeRecord, row: Callable[..., Row]
) -> None:
    """Fails where a row that two chapters hold counts twice, concepts are mixed, or a part of a
    method or an attack is taken for a method."""
    original = row("Original", None)
    attacked = row("UCE", "UCE", experiment="parts", kept_accuracy=1.0)
    mine = [original, row("UCE", "UCE", kept_accuracy=80.0), row("UCE", "UCE", "a coat"), attacked]
    one = make_record(paper="realera", rows=mine)
    two = make_record(paper="salun", rows=(original, row("SalUn", "SalUnGeneration")))
    html = drawing_tables([one, two])
    bag, coat, needs = tables(html)
    assert list(bag) == ["Method", "Original", "UCE", "SalUn"]
    assert list(coat) == ["Method", "UCE"]
    shown = [c for c in DRAWING_COLUMNS if c.endswith("_accuracy")]
    assert bag["UCE"][shown.index("kept_accuracy")].startswith("80")
    assert needs["UCE"] == ["concepts, keep"]
    assert "Original" not in needs
    words = BeautifulSoup(html, "html.parser").select_one("svg")["aria-label"]
    assert "UCE, by name: 50 % gone, 80 % kept" in words


def captions(html: str) -> list[str]:
    return [c.get_text() for c in BeautifulSoup(html, "html.parser").select("caption")]


def test_captions_name_the_profiles_that_rows_are_from(
    make_record: MakeRecord, row: Callable[..., Row]
) -> None:
    """Fails where a row of two profiles counts twice, or a caption names a profile that has no row of its
    concept, or only one of two that have."""
    original = row("Original", None)
    large = make_record(profile="workstation", rows=(original, row("SalUn", "SalUnGeneration")))
    small = make_record(profile="laptop", rows=(original, row("UCE", "UCE", "a coat")))
    own = make_record(profile="paper", rows=(row("ESD-x", "ESD", experiment="prompts"),))
    html = drawing_tables([large, small, own])
    bag, coat, _ = tables(html)
    assert (list(bag)[1:], list(coat)[1:]) == (["Original", "SalUn"], ["UCE"])
    both, one, _ = captions(html)
    assert both.startswith("Every method (laptop and workstation)")
    assert one.startswith("Every method (laptop)")
    assert bag["Original"][0] == "50.0"


def test_nothing_to_show(make_record: MakeRecord) -> None:
    assert drawing_tables([make_record(paper="realera", rows=())]) == ""


def test_a_link_to_a_chapter_that_is_not_there_is_its_words() -> None:
    """Fails where a chapter that was not run makes the book's build fail, or a page in another folder
    links to nowhere."""

    class Chapter:
        slug = "flat"

    text = "See [FLAT](flat.ipynb), [a *b*](papers/guard.ipynb), [here](guard.ipynb), [x](y.md)."
    for folder in ("", "papers/", "../papers/"):
        found = linked(text, [Chapter()], folder)
        assert found == f"See [FLAT]({folder}flat.ipynb), a *b*, here, [x](y.md)."


def test_no_two_methods_look_alike() -> None:
    """Fails where the thirteenth has the first one's mark in the first one's colour."""
    looks = [look_of(k) for k in range(40)]
    assert len({*looks}) == 40
