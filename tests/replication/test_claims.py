"""The arithmetic of verdicts, and that every rule of the SSD chapter can hold and can fail."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from uncertainties import UFloat, ufloat

from unlearn_core.methods import SSD
from unlearn_core.replication.claims import (
    Check,
    Rule,
    bootstrapped,
    exact,
    judge,
    mean_of,
    paired,
    rule_parts,
    verdict_of,
)
from unlearn_core.replication.papers import load_paper
from unlearn_core.replication.records import Margin, MissingRowError, Row, Rows, Verdict

MakeRow = Callable[..., Row]

EMPTY = Rows([])


def margins(*values: float) -> Rule:
    return lambda rows, seed: values[seed]


class TestVerdict:
    @pytest.mark.parametrize(
        ("margins", "verdict", "text"),
        [
            # Errors of the mean: sqrt(3) * 0.3 / 3 = 0.17 from the seeds' own, 0.58 from their scatter.
            (((1.0, 0.3), (2.0, 0.3), (3.0, 0.3)), "holds", "holds"),
            (((-1.0, 0.3), (-2.0, 0.3), (-3.0, 0.3)), "fails", "fails"),
            (((1.0, 0.3), (-1.0, 0.3), (2.0, 0.3)), "holds in part", "holds in 2 of 3 seeds"),
            # They disagree, but not beyond their errors.
            (((1.0, 0.6), (-1.0, 0.6), (2.0, 1.5)), "tie", "tie"),
            (((0.5, 0.3),), "tie", "tie"),
            (((0.7, 0.3),), "holds", "holds"),
            (((-0.7, 0.3),), "fails", "fails"),
            # Seeds that agree by chance have the errors of their examples still.
            (((0.5, 2.0), (0.5, 2.0), (0.5, 2.0)), "tie", "tie"),
            # Seeds that scatter more than their examples say.
            (((0.1, 0.01), (5.0, 0.01), (0.2, 0.01)), "tie", "tie"),
            # Exactly so.
            (((0.0, 0.0),), "holds", "holds"),
            # No error is known of any: the scatter speaks alone, and of one seed nothing does.
            (((1.0, None), (1.1, None)), "holds", "holds"),
            (((1.0, None), (-1.0, None)), "tie", "tie"),
            (((1.0, None),), "not tested", "not tested"),
        ],
    )
    def test_arithmetic(
        self, margins: tuple[tuple[float, float | None], ...], verdict: str, text: str
    ) -> None:
        found = {i: Margin(value=m, stderr=s) for i, (m, s) in enumerate(margins)}
        word, mean, stderr = verdict_of(found)
        assert word == verdict
        assert Verdict(claim="C1", verdict=word, margins=found).text == text
        assert mean == pytest.approx(sum(m for m, _ in margins) / len(margins))
        assert (stderr is None) == (verdict == "not tested")

    def test_the_larger_error_counts(self) -> None:
        of = {i: Margin(value=v, stderr=0.3) for i, v in enumerate((1.0, 2.0, 3.0))}
        assert verdict_of(of)[2] == pytest.approx(1 / 3**0.5)
        of = {i: Margin(value=v, stderr=3.0) for i, v in enumerate((1.0, 2.0, 3.0))}
        assert verdict_of(of)[2] == pytest.approx(3**0.5)


class TestJudge:
    def test_margins_and_their_mean(self) -> None:
        found, _ = judge("C1", margins(1.0, 2.0, 3.0), EMPTY, range(3), source="source")
        assert (found.claim, found.verdict, found.rule) == ("C1", "holds", "source")
        assert found.margins == {i: Margin(value=i + 1.0) for i in range(3)}
        assert found.mean == 2.0

    def test_a_margin_with_its_error(self) -> None:
        found, _ = judge("C1", lambda rows, seed: ufloat(1.0, 0.25), EMPTY, (7,))
        assert found.margins == {7: Margin(value=1.0, stderr=0.25)}
        assert (found.verdict, found.stderr) == ("holds", 0.25)

    def test_an_unknown_error_stays_unknown(self) -> None:
        """Fails where NaN is taken for an error, or for none: one seed then "holds"."""
        found, _ = judge("C1", lambda rows, seed: ufloat(1.0, math.nan), EMPTY, (7,))
        assert found.margins == {7: Margin(value=1.0)}
        assert found.verdict == "not tested"
        assert "the error of its margin is not known" in found.reason

    def test_without_seeds_it_is_not_tested(self) -> None:
        """Fails where "all of nothing" counts as holding."""

        def rule(rows: Rows, seed: int) -> float:
            raise AssertionError("a claim that is not tested here was judged")

        found, _ = judge("C1", rule, EMPTY, ())
        assert (found.verdict, found.reason) == ("not tested", "not judged at this size")

    def test_what_it_presupposes_comes_first(self) -> None:
        """Fails where a rule is asked about networks that know nothing, or a failed precondition
        reads as a failed claim."""

        def rule(rows: Rows, seed: int) -> float:
            raise AssertionError("judged where it says nothing")

        needs = {
            "the network memorises": lambda rows, seed: Check(seed == 0, f"train {90 + seed} %")
        }
        found, _ = judge("C1", rule, EMPTY, (0, 3), preconditions=needs)
        assert found.verdict == "not tested"
        assert found.reason == (
            "what it presupposes is not so: the network memorises (seed 3: train 93 %)"
        )
        assert [(p.seed, p.holds, p.found) for p in found.presupposes] == [
            (0, True, "train 90 %"),
            (3, False, "train 93 %"),
        ]

    def test_what_it_presupposes_is_kept_where_it_is_so(self) -> None:
        """Fails where a reader is told of a precondition only when it is broken."""
        needs = {"the network memorises": lambda rows, seed: Check(True, f"train {99 + seed} %")}
        found, _ = judge("C1", margins(1.0, 2.0), EMPTY, (0, 1), preconditions=needs)
        assert found.verdict == "holds"
        assert {(p.name, p.found) for p in found.presupposes} == {
            ("the network memorises", "train 99 %"),
            ("the network memorises", "train 100 %"),
        }

    def test_a_setting_at_an_edge_is_not_tested(self, make_row: MakeRow) -> None:
        rows = Rows([make_row(zrf=2.0)])

        def rule(rows: Rows, seed: int) -> UFloat:
            return rows.measured("full_class", "SSD", "zrf", seed)

        found, read = judge(
            "C1", rule, rows, (0,), unsettled=lambda keys: f"edge of {sorted(keys)}"
        )
        assert (found.verdict, found.reason) == ("not tested", "edge of ['k']")
        assert found.margins == {0: Margin(value=2.0, stderr=0.5)}  # still to be seen
        assert read == {"k"}

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, ufloat(1, math.inf)])
    def test_a_margin_that_is_no_number_raises(self, bad: Any) -> None:
        """Fails where NaN slips through: `nan >= 0` is False, a failure that nobody measured."""
        with pytest.raises(ValueError, match=r"claim C7: the margin of seed 1 is"):
            judge("C7", margins(1.0, bad), EMPTY, (0, 1))

    def test_a_missing_row_is_not_a_verdict(self) -> None:
        def rule(rows: Rows, seed: int) -> float:
            return rows.value("a", "SSD", "zrf", seed)

        with pytest.raises(MissingRowError):
            judge("C1", rule, EMPTY, (0,))


class TestErrors:
    def test_paired(self) -> None:
        """On 4 images 1 and 0 differ twice one way and once the other: 1/4, s = sqrt(11/12)."""
        found = paired([1, 1, 0, 1], [0, 0, 1, 1])
        assert found.nominal_value == 0.25
        assert found.std_dev == pytest.approx((11 / 12) ** 0.5 / 2)

    def test_paired_is_narrower_than_apart_where_examples_agree(self) -> None:
        a = [1] * 50 + [0] * 50
        assert paired([1, *a[1:]], [0, *a[1:]]).std_dev == pytest.approx(0.01)

    def test_bootstrapped_mean_has_the_closed_form_s_error(self) -> None:
        x = np.arange(100.0)
        found = bootstrapped(lambda v: float(np.mean(v)), x, resamples=2000)
        assert found.nominal_value == 49.5
        assert found.std_dev == pytest.approx(x.std() / 10, rel=0.05)
        again = bootstrapped(lambda v: float(np.mean(v)), x, resamples=2000)
        assert again.std_dev == found.std_dev

    def test_mean_of_carries_shared_errors(self) -> None:
        a, b = ufloat(1, 0.3), ufloat(3, 0.4)
        assert mean_of([a, b]).std_dev == pytest.approx(0.25)
        assert mean_of([a, a]).std_dev == pytest.approx(0.3)
        assert exact(2).std_dev == 0


CODE = """
import numpy as np
LIMIT, OTHER = 2, 3
UNUSED = 5
def helper(x):
    return x - LIMIT
@run.claim("C1")
def rule(rows, seed):
    return helper(rows.value("a", "b", "c", seed))
"""


def test_a_rule_s_parts_are_its_thresholds_too() -> None:
    """Fails where a threshold can be moved after the rows without the rule being called changed."""
    parts = rule_parts(CODE, "rule")
    assert parts == [
        "LIMIT, OTHER = 2, 3",
        "def helper(x):\n    return x - LIMIT",
        '@run.claim("C1")\ndef rule(rows, seed):\n    return helper(rows.value("a", "b", "c", seed))',
    ]


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
