"""The rules of the GUARD chapter on made-up rows: each can hold, and fails on what it excludes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from rules import both_ways

from unlearn_core.replication.outcomes import OUTCOMES, pack
from unlearn_core.replication.papers import load_paper
from unlearn_core.replication.records import MissingRowError, Row, Rows

MakeRow = Callable[..., Row]
#: (experiment, method) -> metrics; of a part what is recalled of each answer; of a wording, which is
#: behind the method, how many answers leak.
Values = dict[tuple[str, ...], Any]

TARGET = 2
GUARDED, TRAINED, PARTS, WORDINGS = "guard_main", "tofu_main", "parts", "wordings"
ASKED = ["as stored", "in other words", "letter by letter", "in German"]
METHODS = {GUARDED: ("Retrain", "GUARD"), TRAINED: ("Retrain", "GA", "NPO-RT", "FLAT (Pearson)")}
EXPERIMENTS = {
    name: SimpleNamespace(
        forget={"authors": [TARGET]},
        seeds=() if name == TRAINED else (0,),
        original_seed=None,
        drawn=False,
        oracle="Retrain",
        model={"use": "llama"},
        data={"authors": 20},
        ask={"wordings": ASKED} if name == WORDINGS else {},
        methods=dict.fromkeys(METHODS.get(name, ())),
    )
    for name in (GUARDED, TRAINED, PARTS, WORDINGS)
}


@pytest.fixture
def run(rules_of: Callable[..., Any]) -> Any:
    return rules_of("guard", EXPERIMENTS, (0, 1), lambda *_: None)


def good() -> Values:
    def answers(forget: float, retain: float, utility: float) -> dict[str, float]:
        return {"forget_rouge": forget, "retain_rouge": retain, "model_utility": utility}

    leaks = {
        "Original": (99.0, 60.0, 10.0, 40.0),
        "Retrain": (0.0, 10.0, 0.0, 6.0),
        "GUARD": (99.0, 4.0, 99.0, 2.0),
    }
    return {
        (TRAINED, "Original"): answers(0.9, 0.9, 0.6),
        (TRAINED, "Retrain"): answers(0.4, 0.9, 0.6) | {"leak_rate": 20.0, "other_leak_rate": 10.0},
        (TRAINED, "GA"): answers(0.0, 0.3, 0.2),
        (TRAINED, "NPO-RT"): answers(0.1, 0.5, 0.3),
        (TRAINED, "FLAT (Pearson)"): answers(0.6, 0.0, 0.1),
        (GUARDED, "GUARD"): answers(0.3, 0.8, 0.6)
        | {"leak_rate": 5.0, "other_leak_rate": 4.0}
        | {"flagged_rephrased": 95.0, "flagged_retain_rephrased": 10.0},
        (PARTS, "GUARD"): (0.25, 0.5),
        (PARTS, "Without hard matching"): (0.5, 0.75),
        (PARTS, "Without soft matching"): (0.25, 0.75),
        (PARTS, "Limit 0.3"): (0.25, 0.25),
        (PARTS, "3 beams"): (0.0, 0.5),
        (PARTS, "All words"): (0.0, 0.0),
        **{
            (WORDINGS, method, wording): {"leak_rate": rate}
            for method, rates in leaks.items()
            for wording, rate in zip(ASKED, rates, strict=True)
        },
    }


def as_rows(values: Values, make_row: MakeRow) -> Rows:
    rows = []
    for (experiment, method, *wording), says in values.items():
        variant = {"forget": TARGET} | ({"wording": wording[0]} if wording else {})
        metrics = says if isinstance(says, dict) else {}
        detail = {} if metrics else {OUTCOMES: {"forget_rouge": pack(says)}}
        for seed in (0, 1) if experiment == TRAINED else (0,):
            row = make_row(experiment, method, seed, variant, **metrics)
            key = f"{experiment}{method}{wording}{seed}"
            rows.append(row.model_copy(update={"key": key, "detail": detail}))
    # What two experiments share is in both.
    for method in ("Original", "Retrain"):
        shared = next(r for r in rows if (r.experiment, r.method) == (TRAINED, method))
        rows.append(shared.model_copy(update={"experiment": GUARDED}))
    return Rows(rows)


def one(experiment: str, method: str, **metrics: float) -> Values:
    return {(experiment, method): good()[experiment, method] | metrics}


#: claim -> the margin in the good run, and what makes it fail, with the margin that must come out.
CASES: dict[str, tuple[float, Values, float]] = {
    # 0.4, 0.3 and 0.2 from the retrained model's 0.4, of which the nearest counts; GUARD 0.1, then 0.4.
    "C1": (0.1, one(GUARDED, "GUARD", forget_rouge=0.0), -0.2),
    "C2": (0.4, one(GUARDED, "GUARD", model_utility=0.1), -0.1),
    "C3": (0.8 - 0.8 / 3, one(GUARDED, "GUARD", retain_rouge=0.2), 0.2 - 0.8 / 3),
    "C4": (15.0, one(GUARDED, "GUARD", leak_rate=30.0), -10.0),
    # Without hard matching 0.25 more is recalled, without soft 0.125: the smaller counts.
    "C5": (0.125, {(PARTS, "Without soft matching"): (0.25, 0.25)}, -0.125),
    "C6": (0.125, {(PARTS, "Limit 0.3"): (0.5, 0.5)}, -0.125),
    "C7": (0.125, {(PARTS, "3 beams"): (0.5, 0.75)}, -0.25),
    "C8": (0.375, {(PARTS, "All words"): (0.5, 0.5)}, -0.125),
    "C9": (85.0, one(GUARDED, "GUARD", flagged_rephrased=5.0), -5.0),
    "C10": (6.0, one(GUARDED, "GUARD", other_leak_rate=12.0), -2.0),
    # Not as stored, nor where the original itself leaks less than a fifth.
    "C11": (5.0, {(WORDINGS, "GUARD", "in other words"): {"leak_rate": 20.0}}, -3.0),
}


def test_every_claim_has_a_rule_and_a_case(run: Any) -> None:
    assert list(run.rules) == list(load_paper("guard").claims) == list(CASES)


@pytest.mark.parametrize("key", CASES)
def test_holds_and_fails(run: Any, make_row: MakeRow, key: str) -> None:
    """Fails where a rule measures something else than its claim says, or its sign is wrong."""
    cases = both_ways(run.rules[key], CASES[key], good(), lambda found: as_rows(found, make_row))
    for margin, expected in cases:
        assert margin.nominal_value == pytest.approx(expected)


@pytest.mark.parametrize("key", CASES)
def test_without_rows_there_is_no_verdict(run: Any, key: str) -> None:
    with pytest.raises(MissingRowError):
        run.rules[key](Rows([]), 0)


def test_the_error_of_parts_is_paired_over_the_questions(run: Any, make_row: MakeRow) -> None:
    """Fails where two answers to one question count as independent."""
    margin = run.rules["C6"](as_rows(good(), make_row), 0)
    # 0 of one question, 0.25 of the other: a deviation of 0.25 / sqrt(2), over sqrt(2).
    assert margin.std_dev == pytest.approx(0.125)
    alike = good() | {(PARTS, "Limit 0.3"): (0.0, 0.25)}
    assert run.rules["C6"](as_rows(alike, make_row), 0).std_dev == 0


def test_claims_are_judged_where_guard_ran(run: Any) -> None:
    assert set(run.asked.values()) == {(0,)}


@pytest.mark.parametrize(
    ("name", "change", "found"),
    [
        ("known", one(TRAINED, "Original", forget_rouge=0.59), "recall 0.59, retrained 0.40"),
        ("known", one(TRAINED, "Retrain", forget_rouge=0.6), "recall 0.90, retrained 0.60"),
        ("useful", one(TRAINED, "Original", model_utility=0.3), "utility 0.30"),
    ],
)
def test_what_is_presupposed(
    run: Any, make_row: MakeRow, name: str, change: Values, found: str
) -> None:
    check = run.preconditions[name]
    assert check(as_rows(good(), make_row), 0).holds
    assert check(as_rows(good() | change, make_row), 0) == (False, found)


def test_what_the_paper_measured_is_judged(run: Any, make_row: MakeRow) -> None:
    """Fails where a model of the paper's own tables does not count as one that knows the answers, or
    is nearer to the limit than two of the largest errors of a mean over forty answers."""
    asked = 40
    found = 0
    for table in load_paper("guard").target_tables:
        if "ROUGE-L, forget" not in table.metrics or "Original" not in table.rows:
            continue
        at = table.metrics.index("ROUGE-L, forget")
        original, retrained = table.rows["Original"][at], table.rows["Retained"][at]
        rooms = [2 * (r * (1 - r) / asked) ** 0.5 for r in (original, retrained)]
        change = one(TRAINED, "Original", forget_rouge=original - rooms[0])
        change |= one(TRAINED, "Retrain", forget_rouge=retrained + rooms[1])
        assert run.preconditions["known"](as_rows(good() | change, make_row), 0).holds, (
            table.setting
        )
        found += 1
    assert found == 12


def test_more_than_a_tenth_is_no_benchmark(
    run: Any, make_row: MakeRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = as_rows(good(), make_row)
    assert run.preconditions["share"](rows, 0) == (True, "10 %")
    monkeypatch.setitem(EXPERIMENTS[GUARDED].data, "authors", 10)
    assert run.preconditions["share"](rows, 0) == (False, "20 %")
