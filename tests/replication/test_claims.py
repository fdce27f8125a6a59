"""The arithmetic of verdicts, and that every rule of the SSD chapter can hold and can fail."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from unlearn_core.methods import SSD
from unlearn_core.replication.claims import Rule, judge
from unlearn_core.replication.papers import load_paper
from unlearn_core.replication.records import MissingRowError, Row, Rows

MakeRow = Callable[..., Row]

EMPTY = Rows([])


def margins(*values: float) -> Rule:
    return lambda rows, seed: values[seed]


class TestJudge:
    @pytest.mark.parametrize(
        ("values", "verdict", "text"),
        [
            ((1.0, 0.0, 2.0), "holds", "holds"),
            ((1.0, -0.1, 0.0), "holds in part", "holds in 2 of 3 seeds"),
            ((-1.0, -0.1, -2.0), "fails", "fails"),
            ((0.0,), "holds", "holds"),
            ((-1e-9,), "fails", "fails"),
        ],
    )
    def test_arithmetic_over_seeds(
        self, values: tuple[float, ...], verdict: str, text: str
    ) -> None:
        """Fails where a mean decides, or where a margin of exactly 0 counts as a failure."""
        found = judge("C1", margins(*values), EMPTY, range(len(values)), "source")
        assert (found.claim, found.verdict, found.text) == ("C1", verdict, text)
        assert found.margins == dict(enumerate(values))
        assert found.rule == "source"

    def test_without_seeds_it_is_not_tested(self) -> None:
        """Fails where "all of nothing" counts as holding."""

        def rule(rows: Rows, seed: int) -> float:
            raise AssertionError("a claim that is not tested here was judged")

        assert judge("C1", rule, EMPTY, ()).verdict == "not tested at this scale"

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_a_margin_that_is_no_number_raises(self, bad: float) -> None:
        """Fails where NaN slips through: `nan >= 0` is False, a failure that nobody measured."""
        with pytest.raises(ValueError, match=r"claim C7: the margin of seeds \[1\] is not"):
            judge("C7", margins(1.0, bad), EMPTY, (0, 1))

    def test_a_missing_row_is_not_a_verdict(self) -> None:
        def rule(rows: Rows, seed: int) -> float:
            return rows.value("a", "SSD", "zrf", seed)

        with pytest.raises(MissingRowError):
            judge("C1", rule, EMPTY, (0,))


# The rules of notebooks/ssd.ipynb, on made-up rows.

TARGET = "cat"
ALPHAS, LAMS = [5.0, 10.0, 20.0], [0.1, 1.0, 5.0]
FISHERS = ["batch_sorted", "batch_shuffled", "per_sample"]
#: Of the stubbed trial: nothing may be selected by class-pure importances from 20 on.
TRAIN, FORGET = 400, 20


#: Of each experiment, what the rules look up.
EXPERIMENTS = {
    name: SimpleNamespace(forget={"class": [TARGET]}, seeds=(), grid={})
    for name in ("full_class", "sub_class", "random", "tradeoff", "ablation")
}
EXPERIMENTS["random"].forget = {"count": [83]}
EXPERIMENTS["tradeoff"].grid = {"alpha": ALPHAS, "lam": LAMS, "fisher": FISHERS}


class FakeTrial:
    def __init__(self, run: Any, experiment: str, seed: int, target: Any) -> None:
        self.methods = {"SSD": SSD(alpha=10.0, lam=1.0)}
        self.data = SimpleNamespace(train=range(TRAIN))
        self.split = SimpleNamespace(forget=range(FORGET))


@pytest.fixture
def run(rules_of: Callable[..., Any]) -> Any:
    """A run with the rules of the chapter."""
    return rules_of("ssd", EXPERIMENTS, (0,), FakeTrial)


@pytest.fixture
def rules(run: Any) -> dict[str, Rule]:
    return run.rules


#: {(experiment, method, metric or (metric, fisher, alpha, lam)): value}: a run in which every
#: claim holds. Each test of a failure changes as little as it can.
Values = dict[tuple[str, str, Any], float]


def selected(fisher: str, alpha: float) -> float:
    if fisher == "batch_shuffled":
        return 60 / alpha  # at alpha 10: 6, three times as many as the sorted ones
    return 0.0 if alpha >= 20 else 20 / alpha


def good() -> Values:
    values: Values = {}

    def put(experiment: str, method: str, **metrics: float) -> None:
        values.update({(experiment, method, k): v for k, v in metrics.items()})

    acc = {"test_retain_accuracy": 90.0, "test_accuracy": 85.0}
    put("full_class", "Original", **acc, test_forget_accuracy=80.0, entropy_mia=95.0)
    put("full_class", "Retrain", seconds=100.0, entropy_mia=20.0)
    put("full_class", "SSD", test_retain_accuracy=89.0, test_forget_accuracy=1.0)
    put("full_class", "SSD", entropy_mia=30.0, seconds=4.0, changed_weights=2.0, optimizer_steps=0)
    put("full_class", "SSD, known importances", seconds=0.5)
    put("sub_class", "Original", **acc, test_forget_accuracy=70.0)
    put("sub_class", "Retrain", test_forget_accuracy=20.0)
    put("sub_class", "SSD", test_retain_accuracy=89.0, test_forget_accuracy=10.0)
    put("ablation", "SSD", test_retain_accuracy=89.0, test_forget_accuracy=1.0)
    put("ablation", "Random selection", test_retain_accuracy=60.0, test_forget_accuracy=55.0)
    put("ablation", "Absolute importance", test_retain_accuracy=50.0, test_forget_accuracy=5.0)
    put("random", "Original", test_accuracy=85.0)
    put("random", "SSD", test_accuracy=84.5)
    for fisher in FISHERS:
        for alpha in ALPHAS:
            for lam in LAMS:
                at = (fisher, alpha, lam)
                values["tradeoff", "SSD", ("selected_weights", *at)] = selected(fisher, alpha)
                values["tradeoff", "SSD", ("test_retain_accuracy", *at)] = 80 + alpha / 4
                values["tradeoff", "SSD", ("test_forget_accuracy", *at)] = 10 + lam
    return values


def as_rows(values: Values, make_row: MakeRow) -> Rows:
    metrics: dict[tuple, dict[str, float]] = {}
    for (experiment, method, metric), value in values.items():
        name, at = (metric, ()) if isinstance(metric, str) else (metric[0], metric[1:])
        variant = {"forget": 83 if experiment == "random" else TARGET}
        variant |= dict(zip(("fisher", "alpha", "lam"), at, strict=False))
        metrics.setdefault((experiment, method, tuple(variant.items())), {})[name] = value
    return Rows([make_row(e, m, 0, dict(v), **found) for (e, m, v), found in metrics.items()])


def at(metric: str, fisher: str, alpha: float, lam: float = 1.0) -> tuple[str, str, Any]:
    return "tradeoff", "SSD", (metric, fisher, alpha, lam)


#: claim -> what makes it fail, one change at a time, and the margin that must come out.
FAILURES: dict[str, list[tuple[Values, float]]] = {
    "C1": [
        ({("full_class", "SSD", "test_forget_accuracy"): 5.0}, -3.0),
        ({("full_class", "SSD", "test_retain_accuracy"): 87.0}, -1.0),
        ({("full_class", "Original", "test_retain_accuracy"): 99.0}, -8.0),
    ],
    "C2a": [
        ({("full_class", "SSD", "changed_weights"): 11.0}, -1.0),
        ({("full_class", "SSD", "optimizer_steps"): 1.0}, -1.0),
    ],
    "C2b": [
        ({("full_class", "SSD", "seconds"): 8.0}, -3.0),
        ({("full_class", "SSD, known importances", "seconds"): 3.0}, -2.0),
        ({("full_class", "Retrain", "seconds"): 40.0}, -5.0),
    ],
    "C3": [
        # As far from the retrained model's 20 as the original is, and 10 points farther.
        ({("sub_class", "SSD", "test_forget_accuracy"): 80.0}, -11.0),
        # Nothing was done at all.
        ({("sub_class", "SSD", "test_forget_accuracy"): 70.0}, -1.0),
        ({("sub_class", "Retrain", "test_forget_accuracy"): 65.0}, -51.0),
        ({("sub_class", "SSD", "test_retain_accuracy"): 84.0}, -4.0),
    ],
    "C4": [
        ({("ablation", "Random selection", "test_forget_accuracy"): -38.0}, -11.0),
        ({("ablation", "Absolute importance", "test_retain_accuracy"): 95.0}, -3.0),
        ({("ablation", "SSD", "test_forget_accuracy"): 50.0}, -7.0),
        # No better than the better ablation.
        ({("ablation", "SSD", "test_forget_accuracy"): 44.0}, -1.0),
    ],
    "C5": [
        ({at("selected_weights", "batch_sorted", 10): 5.0}, -100.0),
        ({at("selected_weights", "per_sample", 10): 5.0}, -100.0),
        ({at("selected_weights", "per_sample", 20): 0.1}, -100.0),
        ({at("test_retain_accuracy", "batch_sorted", 20): 80.0}, -1.5),
        # Two falls below a point each, 1.5 points together.
        (
            {
                at("test_retain_accuracy", "per_sample", 10): 80.5,
                at("test_retain_accuracy", "per_sample", 20): 79.75,
            },
            -0.5,
        ),
        ({at("test_retain_accuracy", "per_sample", 10): 79.0}, -1.25),
        ({at("test_forget_accuracy", "batch_sorted", 10, 5.0): 8.0}, -2.0),
    ],
    "C6": [
        ({("full_class", "SSD", "entropy_mia"): 94.5}, -0.5),
        ({("full_class", "SSD", "entropy_mia"): 99.0}, -5.0),
        # The retrained model lies on the other side: the same move is then a move away.
        ({("full_class", "Retrain", "entropy_mia"): 97.0}, -66.0),
    ],
    "C7": [
        ({at("selected_weights", "batch_shuffled", 10): 3.0}, -0.5),
        ({at("selected_weights", "batch_sorted", 10): 6.0}, -1.0),
        (
            {
                at("selected_weights", "batch_sorted", 10): 0.0,
                at("selected_weights", "batch_shuffled", 10): 0.0,
            },
            -2.0,
        ),
    ],
    "C8": [
        ({("random", "SSD", "test_accuracy"): 83.0}, -1.0),
        ({("random", "SSD", "test_accuracy"): 88.0}, -2.0),
    ],
}

#: claim -> the margin in the good run.
HOLDS = {
    "C1": 1,
    "C2a": 8,
    "C2b": 0.5,
    "C3": 1,
    "C4": 42,
    "C5": 1,
    "C6": 64,
    "C7": 1,
    "C8": 0.5,
}


def failures() -> list[Any]:
    return [
        pytest.param(key, change, margin, id=f"{key}-{i}")
        for key, cases in FAILURES.items()
        for i, (change, margin) in enumerate(cases)
    ]


class TestSSDRules:
    def test_every_claim_has_a_rule_and_cases(self, rules: dict[str, Rule]) -> None:
        claims = list(load_paper("ssd").claims)
        assert list(rules) == claims == list(HOLDS) == list(FAILURES)

    @pytest.mark.parametrize("key", HOLDS)
    def test_holds(self, rules: dict[str, Rule], make_row: MakeRow, key: str) -> None:
        """Fails where a rule measures something else than its claim says, or its sign is wrong."""
        margin = rules[key](as_rows(good(), make_row), 0)
        assert margin == pytest.approx(HOLDS[key])

    @pytest.mark.parametrize(("key", "change", "margin"), failures())
    def test_fails(
        self, rules: dict[str, Rule], make_row: MakeRow, key: str, change: Values, margin: float
    ) -> None:
        """Fails where a rule can't fail on what its sentence excludes."""
        values = good()
        assert set(change) <= set(values), "the case changes something that no rule reads"
        assert rules[key](as_rows(values | change, make_row), 0) == pytest.approx(margin)
        assert margin < 0

    @pytest.mark.parametrize("key", HOLDS)
    def test_every_case_needs_its_rows(self, rules: dict[str, Rule], key: str) -> None:
        """Fails where a rule is satisfied by the absence of what it should look at."""
        with pytest.raises(MissingRowError):
            rules[key](Rows([]), 0)

    @pytest.mark.parametrize("key", HOLDS)
    def test_the_worst_target_counts(
        self, run: Any, make_row: MakeRow, key: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails where a rule looks at the first class only, or at a mean over the classes."""
        change, margin = FAILURES[key][0]
        rows = as_rows(good(), make_row)
        for row in as_rows(good() | change, make_row):
            variant = dict(row.variant) | {"forget": "dog"}
            rows.add(row.model_copy(update={"variant": variant}))
        first = run.targets
        monkeypatch.setattr(run, "targets", lambda e: [*first(e), "dog"])
        assert run.rules[key](rows, 0) == pytest.approx(margin)

    def test_selecting_nothing_when_sorted_counts_as_much_more(
        self, rules: dict[str, Rule], make_row: MakeRow
    ) -> None:
        """Fails with a division by zero."""
        values = good() | {at("selected_weights", "batch_sorted", 10): 0.0}
        assert rules["C7"](as_rows(values, make_row), 0) == 100
