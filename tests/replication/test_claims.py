"""The arithmetic of verdicts, and that every rule of the SSD chapter can hold and can fail."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from uncertainties import UFloat, ufloat

from unlearn_core.replication.claims import (
    Check,
    Rule,
    bootstrapped,
    exact,
    judge,
    largest,
    mean_of,
    paired,
    rule_parts,
    smallest,
    verdict_of,
)
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
            # Exactly nothing, and exactly something.
            (((0.0, 0.0),), "tie", "tie"),
            (((0.5, 0.0),), "holds", "holds"),
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

    def test_seeds_whose_rows_are_not_made_yet(self) -> None:
        """Fails where a half of a long measurement is called a fault, or is judged as the whole."""

        def only(*there: int) -> Rule:
            def rule(rows: Rows, seed: int) -> Any:
                if seed not in there:
                    raise MissingRowError("not made")
                return ufloat(1.0, 0.1)

            return rule

        def holds(rows: Rows, seed: int) -> Check:
            only(0, 1)(rows, seed)
            return Check(True, "so")

        verdict, _ = judge(
            "C1", only(1, 2), EMPTY, (0, 1, 2), preconditions={"it": holds}, partial=True
        )
        assert list(verdict.margins) == [1]
        assert [c.seed for c in verdict.presupposes] == [1]
        for seeds in ((0, 1), ()):  # the latter of an experiment of which no seed is whole
            verdict, _ = judge("C1", only(), EMPTY, seeds, partial=True)
            assert (verdict.verdict, verdict.reason) == ("not tested", "its rows are not made yet")

    def test_nothing_to_compare(self) -> None:
        """Fails where a rule about rivals, none of which ran, ends the run or finds a number."""
        for empty in (mean_of, largest, smallest):
            verdict, _ = judge("C1", lambda rows, seed, empty=empty: empty([]), EMPTY, (0,))
            assert (verdict.verdict, verdict.reason) == (
                "not tested",
                "there is nothing to compare",
            )

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
