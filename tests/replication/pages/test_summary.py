"""The front page, the list of claims, and a chapter's first screen, from made-up records."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
from bs4 import BeautifulSoup, Tag

from unlearn_core.replication.pages import summary, tables
from unlearn_core.replication.pages.margins import forest, ladder
from unlearn_core.replication.papers import PaperFile
from unlearn_core.replication.records import Fact, Margin, Presupposed, Record, Verdict

MakeRecord = Callable[..., Record]


@pytest.fixture
def file(tiny: dict[str, Any]) -> PaperFile:
    """A paper with two headlines, one other claim and one of ours."""
    claim = tiny["claims"]["C1"]
    for key, more in {
        "C1": {
            "headline": True,
            "paper_value": "0.15 <points>",
            "paper_margin": 2.1,
            "unit": "nats",
        },
        "C2": {"headline": True, "paper_margin": -0.5},
        "C3": {},
        "C4": {"whose": "ours"},
    }.items():
        own = {"title": f"Title of {key}", "statement": f"Sentence of {key}."}
        tiny["claims"][key] = deepcopy(claim) | own | more
    return PaperFile.model_validate(tiny)


def verdict(claim: str, word: str, mean: float | None = None, **more: Any) -> Verdict:
    margins = {} if mean is None else {s: Margin(value=mean, stderr=0.4) for s in (0, 1)}
    known = {} if mean is None else {"mean": mean, "stderr": 0.25}
    return Verdict(claim=claim, verdict=word, **{"margins": margins} | known | more)


VERDICTS = (
    verdict("C1", "holds", 1.75, ours="2.3 points", age="older"),
    verdict("C2", "fails", -1.5, age="younger"),
    verdict("C3", "tie", 0.25),
    verdict("C4", "not tested", reason="not judged at this size"),
)


@pytest.fixture
def record(make_record: MakeRecord) -> Record:
    facts = (Fact(name="test accuracy", ours="91 %", paper="94 %"),)
    return make_record(
        profile="laptop", verdicts=VERDICTS, findings=("SSD *works*.", "It is fast."), regime=facts
    )


def soup(text: str) -> BeautifulSoup:
    return BeautifulSoup(text, "html.parser")


def cells(row: Tag) -> list[str]:
    return [" ".join(c.get_text(" ").split()) for c in row.select("th, td")]


def test_the_front_page_has_a_line_a_headline(file: PaperFile, record: Record) -> None:
    """Fails where a headline has another one's number, or where what is no headline is shown."""
    page = soup(summary.front_page([("tiny", file, record, [record])]))
    first, second = page.select("tbody tr")
    assert cells(first) == [
        "Tiny nowhere 2024 laptop, 2 seeds",
        "Title of C1",
        "0.15 <points>",
        "2.3 points margin +1.75 ± 0.25 nats",
        "✓ holds",
    ]
    assert cells(second) == [
        "Title of C2",
        "margin -0.50",
        "margin -1.50 ± 0.25",
        "✗ fails rule written after its result",
    ]
    assert page.select_one('th[rowspan="2"] a[href="papers/tiny.html"]')


def test_the_front_page_counts_where_a_paper_has_no_headline(
    tiny: dict[str, Any], record: Record
) -> None:
    """Fails where a paper without headlines is left out, or gets a wall of badges."""
    page = soup(summary.front_page([("tiny", PaperFile.model_validate(tiny), record, [record])]))
    (row,) = page.select("tbody tr")
    words = "Of 4 claims, at laptop size: 1 holds, 1 is a tie, 1 fails, 1 is not tested."
    assert cells(row)[1:] == [words]
    assert row.td["colspan"] == "4"


def test_more_headlines_than_fit_are_counted(
    file: PaperFile, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary, "ON_FRONT", 1)
    (row,) = soup(summary.front_page([("tiny", file, record, [record])])).select("tbody tr")
    assert cells(row)[1] == "Title of C1 and 1 more"


def test_every_claim_is_listed_with_whose_it_is_and_its_rule_s_age(
    file: PaperFile, record: Record
) -> None:
    """Fails where a claim is left out, or where a rule that came after its rows is not called so."""
    listed = summary.all_claims([("tiny", file, record, [record])])
    assert listed.startswith("## Tiny\n")
    assert [cells(row) for row in soup(listed).select("tbody tr")] == [
        [
            "C1",
            "Title of C1",
            "headline",
            "laptop",
            "+1.75 ± 0.25 nats",
            "✓ holds",
            "before its result",
        ],
        ["C2", "Title of C2", "headline", "laptop", "-1.50 ± 0.25", "✗ fails", "after its result"],
        ["C3", "Title of C3", "paper’s", "laptop", "+0.25 ± 0.25", "≈ tie", "not known"],
        [
            "C4",
            "Title of C4",
            "ours",
            "laptop",
            "–",
            "– not tested not judged at this size",
            "–",
        ],
    ]


def test_a_chapter_opens_with_findings_regime_and_headlines(
    file: PaperFile, record: Record
) -> None:
    text = summary.first_screen(file, record, [record], True)
    assert text.index("- SSD *works*.\n- It is fast.") < text.index("test accuracy")
    regime, headlines = (soup(text).select_one(f".{k}") for k in ("regime", "headlines"))
    assert [cells(r) for r in regime.select("tr")] == [
        ["", "Here, laptop", "The paper"],
        ["test accuracy", "91 %", "94 %"],
    ]
    first, second = headlines.select("tbody tr")
    assert cells(first)[:4] == [
        "C1 Sentence of C1.",
        "0.15 <points>",
        "2.3 points margin +1.75 ± 0.25 nats",
        "✓ holds",
    ]
    assert cells(second)[3] == "✗ fails rule written after its result"


def test_a_record_from_before_findings_says_how_many_claims_hold(
    tiny: dict[str, Any], record: Record
) -> None:
    """Fails where a chapter that nobody rewrote has an empty first screen."""
    bare = record.model_copy(update={"findings": (), "regime": (), "profile": "ci"})
    text = summary.first_screen(PaperFile.model_validate(tiny), bare, [], False)
    assert "Of 4 claims, at ci size: 1 holds, 1 is a tie, 1 fails, 1 is not tested." in text
    assert soup(text).select_one("div.regime").get_text() == "Our size, ci. everything"
    assert "headlines" not in text


def test_a_claim_has_the_verdict_of_the_largest_size_that_judges_it(
    file: PaperFile, record: Record
) -> None:
    """Fails where a larger size that is not made yet hides what a smaller one says, or where a page does
    not say whose verdict it is."""
    larger = record.model_copy(
        update={
            "profile": "workstation",
            "verdicts": (
                verdict("C1", "not tested", reason="its rows are not made yet"),
                verdict("C2", "tie", 0.5, ours="4 points"),
                verdict("C4", "holds", 3.0),
            ),
        }
    )
    both = [larger, record]
    found = [(v.claim, v.verdict, r.profile) for v, r in summary.evidence(record, both)]
    assert found == [
        ("C1", "holds", "laptop"),
        ("C2", "tie", "workstation"),
        ("C3", "tie", "laptop"),
        ("C4", "holds", "workstation"),
    ]
    front = soup(summary.front_page([("tiny", file, record, both)])).select("tbody tr")
    assert cells(front[0])[3] == "2.3 points margin +1.75 ± 0.25 nats"
    assert cells(front[1])[2:] == ["4 points margin +0.50 ± 0.25 (workstation)", "≈ tie"]
    for of_all, said in ((True, "4 points margin"), (False, "margin -1.50 ± 0.25")):
        text = summary.first_screen(file, record, both, of_all)
        assert cells(soup(text).select(".headlines tbody tr")[1])[2].startswith(said)
    listed = soup(summary.all_claims([("tiny", file, record, both)])).select("tbody tr")
    assert [cells(row)[3] for row in listed] == [r for _, _, r in found]


def test_a_margin_that_judges_nothing_is_not_quoted(file: PaperFile, record: Record) -> None:
    """Fails where a number stands beside "not tested", as if it were a result."""
    why = "the original does not know the class"
    untested = verdict("C1", "not tested", 1.75, reason=why, age="younger")
    one = record.model_copy(update={"verdicts": (untested, *VERDICTS[1:])})
    first = soup(summary.front_page([("tiny", file, one, [one])])).select_one("tbody tr")
    assert cells(first)[3:] == ["–", f"– not tested {why}"]
    listed = soup(summary.all_claims([("tiny", file, one, [one])])).select_one("tbody tr")
    assert cells(listed)[4] == "–"


def test_a_margin_of_one_seed_says_so(file: PaperFile, record: Record) -> None:
    """Fails where the error of one seed's examples stands as that of several seeds."""
    alone = verdict("C1", "holds", 1.75, margins={4: Margin(value=1.75, stderr=0.25)})
    one = record.model_copy(update={"verdicts": (alone, *VERDICTS[1:])})
    for text in (
        summary.first_screen(file, one, [one], True),
        summary.front_page([("tiny", file, one, [one])]),
    ):
        assert "margin +1.75&nbsp;±&nbsp;0.25 nats, seed 4 alone" in text
        assert text.count("alone") == 1
    more = record.model_copy(update={"seeds": (0, 1, 2)})
    said = summary.front_page([("tiny", file, more, [more])])
    assert said.count("seeds 0, 1 alone") == 2, "a verdict of two seeds is no verdict of three"
    listed = [
        cells(row)[4]
        for row in soup(summary.all_claims([("tiny", file, one, [one])])).select("tbody tr")
    ]
    assert listed[:2] == ["+1.75 ± 0.25 nats, seed 4 alone", "-1.50 ± 0.25"]


class TestLadder:
    def test_from_the_smallest_size_to_the_paper(self, file: PaperFile, record: Record) -> None:
        """Fails where sizes are in the order of their publishing, or the paper's own is missing."""
        bigger = record.model_copy(
            update={"profile": "workstation", "verdicts": (verdict("C1", "tie", 0.125),)}
        )
        text = summary.first_screen(file, bigger, [bigger, record], True)
        (svg,) = soup(text).select(".headlines svg")
        assert svg["aria-label"] == (
            "C1, Title of C1: the margin is laptop +1.75 ± 0.25, holds; "
            "workstation +0.12 ± 0.25, tie; the paper +2.1."
        )
        labels = [t.get_text() for t in svg.select("text")]
        assert [w for w in labels if w[0].isalpha()] == ["laptop", "workstation", "paper’s own"]

    def test_higher_is_better(self) -> None:
        """Fails where the axis is upside down, or where a margin is not against zero."""
        steps = [
            ("laptop", verdict("C1", "holds", 1.0)),
            ("workstation", verdict("C1", "fails", -3.0)),
        ]
        text = ladder("C1", steps, None)
        height = {t.get_text(): float(t["y"]) for t in soup(text).select("text")}
        assert height["+1.0"] < height["0"] < height["-3.0"]  # from the top of the page

    def test_nothing_to_draw(self) -> None:
        assert ladder("C1", [("laptop", verdict("C1", "not tested"))], None) == ""


class TestForest:
    def test_a_line_a_claim(self, file: PaperFile) -> None:
        """Fails where a claim without a margin is left out, or a margin stands beside another claim."""
        page = soup(forest(file, VERDICTS).data)
        label = page.svg["aria-label"]
        assert label.endswith("C1 holds; C2 fails; C3 tie; C4 not tested.")
        words = [t.get_text() for t in page.select("text")]
        assert [w for w in words if w.startswith("C")] == [
            f"C{i} Title of C{i}" for i in range(1, 5)
        ]
        assert [w for w in words if "±" in w or w == "not tested"] == [
            "+1.75 ± 0.25 nats",
            "-1.50 ± 0.25",
            "+0.25 ± 0.25",
            "not tested",
        ]

    def test_none_where_nothing_was_judged(self, file: PaperFile) -> None:
        assert forest(file, VERDICTS[3:]) is None


def test_a_verdict_tells_what_it_presupposes_and_why_it_was_not_tested(file: PaperFile) -> None:
    """Fails where a reader is told of a precondition only when it is broken."""
    needs = [
        Presupposed(name="it memorises", seed=s, holds=s == 0, found=f"train {99 - s} %")
        for s in (0, 1)
    ]
    shown = [
        verdict("C1", "tie", 0.25, presupposes=needs[:1], age="younger"),
        verdict("C4", "not tested", reason="it does not memorise", presupposes=needs),
    ]
    first, second = soup(tables.verdicts_table(file, shown).data).select("tbody tr")
    assert "Presupposes: it memorises (✓ seed 0: train 99 %)" in cells(first)[1]
    assert "What might explain it." in cells(first)[1]
    assert cells(first)[2:] == [
        "+0.25 ± 0.25 nats seed 0: +0.25 ± 0.40 seed 1: +0.25 ± 0.40",
        "≈ tie rule written after its result",
    ]
    assert "Not tested: it does not memorise." in cells(second)[1]
    assert "(✓ seed 0: train 99 %; ✗ seed 1: train 98 %)" in cells(second)[1]
    assert cells(second)[2:] == ["–", "– not tested our claim"]


def test_the_front_page_says_why_a_headline_is_not_tested(file: PaperFile, record: Record) -> None:
    """Fails where what is not made, what this size does not judge and what is out of regime look alike."""
    missed = Presupposed(name="memorised", seed=0, holds=False, found="train accuracy 81.0 %")
    verdicts = (
        verdict("C1", "not tested", reason="its rows are not made yet"),
        verdict("C2", "not tested", reason="what it presupposes is not so", presupposes=(missed,)),
    )
    one = record.model_copy(update={"verdicts": verdicts})
    shown = [
        cells(r)[-1]
        for r in soup(summary.front_page([("tiny", file, one, [one])])).select("tbody tr")
    ]
    assert shown == [
        "– not tested its rows are not made yet",
        "– not tested a precondition does not hold",
    ]
