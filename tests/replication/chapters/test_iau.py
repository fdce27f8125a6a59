"""The rules of the IAU chapter on made-up rows: each can hold, and fails on what it excludes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from rules import both_ways

from unlearn_core.replication.papers import load_paper
from unlearn_core.replication.records import Row, Rows

MakeRow = Callable[..., Row]
Values = dict[tuple[str, str, str], float]

TARGET, STEP = 0.05, 3e-3
#: Parts of IAU and what only controls it are not ranked: no row of "IAU, random signs" is made up.
PARTS = ("IAU without correction", "Correction alone", "IAU, random signs")
METHODS = ("Retrain", "IAU", *PARTS, "FT", "GA")
EXPERIMENTS = {
    name: SimpleNamespace(
        forget={"fraction": [TARGET]}, seeds=(), grid={}, methods=dict.fromkeys(METHODS)
    )
    for name in ("lenet", "lenet_plain")
}


class FakeTrial:
    def __init__(self, run: Any, experiment: str, seed: int, target: Any) -> None:
        self.methods = {"IAU": SimpleNamespace(lr=STEP)}


@pytest.fixture
def run(rules_of: Callable[..., Any]) -> Any:
    return rules_of("iau", EXPERIMENTS, (0, 1), FakeTrial)


def good() -> Values:
    values: Values = {}

    def put(method: str, experiment: str = "lenet", **metrics: float) -> None:
        values.update({(experiment, method, k): v for k, v in metrics.items()})

    put("Original", test_accuracy=60.0, shadow_mia=90.0, retain_accuracy=80.0, forget_loss=0.5)
    put("Retrain", test_accuracy=59.0, shadow_mia=50.0, retain_accuracy=79.0, forget_loss=1.5)
    put("IAU", test_accuracy=58.5, shadow_mia=52.0, retain_accuracy=78.0, forget_loss=1.25)
    put("IAU", seconds=1.0)
    put("FT", test_accuracy=57.0, shadow_mia=80.0, seconds=4.0)
    put("GA", test_accuracy=52.0, shadow_mia=70.0, seconds=2.0)
    put("IAU without correction", retain_accuracy=70.0)
    put("Gradient norms", gradient_norm=9.0)
    put("Gradient norms", "lenet_plain", gradient_norm=10.0)
    values["convex", "Opposite point", "shift_cosine"] = 0.999
    return values


def as_rows(values: Values, make_row: MakeRow, **of_seed: Values) -> Rows:
    rows = Rows([])
    for seed in (0, 1):
        metrics: dict[tuple[str, str], dict[str, float]] = {}
        for (e, m, name), value in (values | of_seed.get(f"seed_{seed}", {})).items():
            metrics.setdefault((e, m), {})[name] = value
        for (e, m), found in metrics.items():
            variant: dict[str, Any] = {} if e == "convex" else {"forget": TARGET}
            if m == "IAU without correction":
                variant["lr"] = STEP
            row = make_row(e, m, seed, variant, **found)
            rows.add(row.model_copy(update={"key": f"{e} {m} {seed}"}))
    return rows


#: claim -> the margin in the good run, and what makes it fail, with the margin that must come out.
CASES: dict[str, tuple[float, Values, float]] = {
    # IAU is first in all three; FT second, third, third: 8/3; GA 3, 2, 2: 7/3.
    "C1": (
        4 / 3,
        {
            ("lenet", "IAU", k): v
            for k, v in {"test_accuracy": 40.0, "shadow_mia": 95.0, "seconds": 9.0}.items()
        },
        -5 / 3,
    ),
    "C2": (2.0, {("lenet", "IAU", "seconds"): 6.0}, -0.5),
    "C3": (4.0, {("lenet", "IAU", "test_accuracy"): 54.0}, -0.5),
    # From 1.0 to 0.25 away; beyond by 1.25 it is farther than before.
    "C4": (0.75, {("lenet", "IAU", "forget_loss"): 2.75}, -0.25),
    "C5": (8.0, {("lenet", "IAU", "retain_accuracy"): 69.0}, -1.0),
    "C6": (10.0, {("lenet", "Gradient norms", "gradient_norm"): 11.0}, -10.0),
    "C7": (0.009, {("convex", "Opposite point", "shift_cosine"): 0.9}, -0.09),
}


def test_every_claim_has_a_rule_and_a_case(run: Any) -> None:
    assert list(run.rules) == list(load_paper("iau").claims) == list(CASES)


@pytest.mark.parametrize("key", CASES)
def test_holds_and_fails(run: Any, make_row: MakeRow, key: str) -> None:
    """Fails where a rule measures something else than its claim says, or its sign is wrong."""
    cases = both_ways(run.rules[key], CASES[key], good(), lambda found: as_rows(found, make_row))
    for margin, expected in cases:
        assert margin.nominal_value == pytest.approx(expected)


def test_a_balance_is_judged_once_with_the_error_of_its_forget_sets(
    run: Any, make_row: MakeRow
) -> None:
    """Fails where one lucky forget set decides, or where five of them count as five verdicts."""
    assert run.asked["C1"] == (0,)
    same = run.rules["C1"](as_rows(good(), make_row), 0)
    assert same.std_dev == pytest.approx(0, abs=1e-9)
    worse = {("lenet", "IAU", "test_accuracy"): 30.0, ("lenet", "IAU", "shadow_mia"): 99.0}
    other = run.rules["C1"](as_rows(good(), make_row, seed_1=worse), 0)
    assert other.std_dev > 0.1


def test_a_reference_that_is_trained_otherwise_is_none(run: Any, make_row: MakeRow) -> None:
    check = run.preconditions["reference"]
    assert check(as_rows(good(), make_row), 0).holds
    noisy = {("lenet", "Retrain", "retain_accuracy"): 68.0}
    found = check(as_rows(good(), make_row, seed_1=noisy), 0)
    # 1 point on one forget set and 12 on the other.
    assert (found.holds, found.found) == (False, "6.5 points apart, 12.0 at most")
