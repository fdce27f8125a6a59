"""The rules of the SafeEraser chapter on made-up rows: each can hold, and fails on what it excludes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from rules import both_ways

from unlearn_core.replication.claims import judge
from unlearn_core.replication.papers import load_paper
from unlearn_core.replication.records import MissingRowError, Row, Rows

MakeRow = Callable[..., Row]
Values = dict[tuple[str, str], dict[str, float]]

TARGET = "restricted"
BASES = ("GA", "GD", "KL", "PO")
MAIN, CONTROLS, BENIGN = "symbols", "symbols_controls", "benign prompts"
EXPERIMENTS = {
    name: SimpleNamespace(
        forget={"set": [TARGET]},
        seeds=seeds,
        original_seed=0,
        drawn=False,
        oracle=None,
        methods=dict.fromkeys((*BASES, *(f"{m}+PD" for m in BASES))),
    )
    for name, seeds in ((MAIN, ()), (CONTROLS, (0,)))
}


@pytest.fixture
def run(rules_of: Callable[..., Any]) -> Any:
    return rules_of("safeeraser", EXPERIMENTS, (0, 1), lambda *_: None)


def sarr(seen: float, held_out: float) -> dict[str, float]:
    return {"safe_answer_refusal": seen, "held_out_safe_answer_refusal": held_out}


def good() -> Values:
    told = {"attack_success": 90.0, "unseen_attack_success": 70.0}
    values: Values = {(MAIN, "Original"): sarr(5, 15) | told}
    common = {"changed_weights": 30.0, "optimizer_steps": 60.0}
    for m in BASES:
        values[MAIN, m] = sarr(100, 90) | common
        values[MAIN, m] |= {"vanilla_rouge": 0.5, "general_exact": 70.0}
        values[MAIN, f"{m}+PD"] = sarr(5, 33) | common
        values[MAIN, f"{m}+PD"] |= {"attack_success": 10.0, "unseen_attack_success": 30.0}
        values[MAIN, f"{m}+PD"] |= {"vanilla_rouge": 0.6, "general_exact": 80.0}
    # Ascent keeps nothing: what it loses says nothing of utility.
    values[MAIN, "GA+PD"] |= {"vanilla_rouge": 0.0, "general_exact": 0.0}
    values[MAIN, "PO"] |= {"safe_refused": 90.0, "safe_meaningless": 10.0}
    values[MAIN, "GA"] |= {"safe_refused": 20.0, "safe_meaningless": 80.0}
    values[CONTROLS, "PO+PD"] = sarr(10, 0)
    values[CONTROLS, BENIGN] = sarr(90, 0)
    return values


def as_rows(values: Values, make_row: MakeRow) -> Rows:
    rows = []
    for (experiment, method), metrics in values.items():
        variant = {"forget": TARGET}
        if method == BENIGN:
            method, variant = "PO+PD", variant | {"decouple": BENIGN}
        for seed in (0,) if experiment == CONTROLS or method == "Original" else (0, 1):
            row = make_row(experiment, method, seed, variant, **metrics)
            own = {"key": f"{experiment}{method}{variant}{seed}", "detail": {"may_change": 40.0}}
            rows.append(row.model_copy(update=own))
    return Rows(rows)


def with_pd(**metrics: float) -> Values:
    """The good run's rows of all four losses with Prompt Decouple, with these metrics instead."""
    return {(MAIN, f"{m}+PD"): good()[MAIN, f"{m}+PD"] | metrics for m in BASES}


def one(method: str, experiment: str = MAIN, **metrics: float) -> Values:
    return {(experiment, method): good()[experiment, method] | metrics}


#: claim -> the margin in the good run, and what makes it fail, with the margin that must come out.
CASES: dict[str, tuple[float, Values, float]] = {
    # Seen and held-out families count alike: 95 after, 10 before.
    "C1": (85.0, one("Original", **sarr(100, 98)), -4.0),
    "C2": (80.0, with_pd(**sarr(100, 98)), 100 * (1 - 99 / 95)),
    "C3": (60.0, one("Original", attack_success=20.0, unseen_attack_success=10.0), -5.0),
    "C4": (0.1, one("PO+PD", vanilla_rouge=0.2), -0.1 / 3),
    "C5": (80.0, one(BENIGN, CONTROLS, safe_answer_refusal=4.0), -6.0),
    "C6": (60.0, one("PO", safe_refused=5.0), -5.0),
    "C7": (57.0, with_pd(**sarr(5, 92)), -2.0),
    "C8": (10.0, one("PO+PD", general_exact=20.0), -10.0),
    "C9": (1e-6, one("KL+PD", optimizer_steps=63.0), -3.0),
}


def test_every_claim_has_a_rule_and_a_case(run: Any) -> None:
    assert list(run.rules) == list(load_paper("safeeraser").claims) == list(CASES)


@pytest.mark.parametrize("key", CASES)
def test_holds_and_fails(run: Any, make_row: MakeRow, key: str) -> None:
    """Fails where a rule measures something else than its claim says, or its sign is wrong."""
    cases = both_ways(run.rules[key], CASES[key], good(), lambda found: as_rows(found, make_row))
    for margin, expected in cases:
        assert margin.nominal_value == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("key", CASES)
def test_without_rows_there_is_no_verdict(run: Any, key: str) -> None:
    with pytest.raises(MissingRowError):
        run.rules[key](Rows([]), 0)


def test_weights_that_may_not_change(run: Any, make_row: MakeRow) -> None:
    rows = as_rows(good() | one("GA", changed_weights=50.0), make_row)
    assert run.rules["C9"](rows, 0).nominal_value == pytest.approx(-10, abs=2e-6)


def test_a_control_is_judged_on_its_seed(run: Any) -> None:
    assert run.asked["C5"] == (0,)
    assert run.asked["C1"] == (0, 1)


@pytest.mark.parametrize(("families", "holds"), [(9, False), (10, True)])
def test_a_few_families_are_none(
    run: Any, make_row: MakeRow, monkeypatch: Any, families: int, holds: bool
) -> None:
    """Fails where a handful of drawn families passes for all of them."""
    check = run.preconditions["families"]
    monkeypatch.setitem(check.__globals__, "HELD_OUT_SYMBOLS", range(families))
    rows = as_rows(good(), make_row)
    assert check(rows, 0) == (holds, f"{families} families")
    verdict, _ = judge("C7", run.rules["C7"], rows, (0, 1), preconditions={"families": check})
    assert verdict.verdict == ("holds" if holds else "not tested")
