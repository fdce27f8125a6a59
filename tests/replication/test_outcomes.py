"""What is kept of every example."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from unlearn_core.replication.outcomes import (
    SHARES,
    STILL,
    gaps,
    left_alone,
    outcome,
    pack,
    shares,
    unpack,
)
from unlearn_core.replication.records import MissingRowError, Row


def test_bits_and_numbers_come_back() -> None:
    """Fails where the padding of the last byte becomes an example, or bits change their order."""
    bits = np.arange(13) % 3 == 0
    assert unpack(json.loads(json.dumps(pack(bits)))).tolist() == bits.astype(float).tolist()
    scores = [0.0, 0.5, -1.25, 1e-3]
    assert unpack(pack(scores)) == pytest.approx(scores, rel=2**-11)
    assert len(json.dumps(pack(np.arange(54_000) % 1000 != 0))) < 1000


@pytest.mark.parametrize("bad", [[1e6], [float("nan")], [[True], [False]]])
def test_what_cannot_be_kept_is_refused(bad: list) -> None:
    with pytest.raises(ValueError, match="outcome"):
        pack(bad)


def test_a_row_without_them_says_so(make_row: Callable[..., Row]) -> None:
    row = make_row(zrf=1.0)
    with pytest.raises(MissingRowError, match=r"SSD / seed 0 keeps no outcomes 'test'"):
        outcome(row, "test")
    kept = row.model_copy(update={"detail": {"outcomes": {"test": pack([True, False])}}})
    assert outcome(kept, "test").tolist() == [1.0, 0.0]


def classifier(make_row: Callable[..., Row], label: str, seed: int, **right: float) -> Row:
    """A row that keeps its outcomes on 400 images of each kind: so many of each are right."""
    rng = np.random.default_rng(seed)
    hits = {k: rng.permutation(np.arange(400) < round(4 * v)) for k, v in right.items()}
    found = {SHARES[k]: 100 * v.mean() for k, v in hits.items()}
    kept = {"outcomes": {k: pack(v) for k, v in hits.items()}}
    row = make_row("random", label, seed, **found)
    return row.model_copy(update={"detail": kept, "key": f"{label} {seed}"})


def test_gaps_are_those_of_the_metric_and_paired_over_the_images(
    make_row: Callable[..., Row],
) -> None:
    """Fails where a metric is left out, or the retrained model's own chance blurs a comparison."""
    aim = classifier(make_row, "Retrain", 0, retain=100, forget=90, attack=20, test=92)
    near = classifier(make_row, "SalUn", 1, retain=99, forget=94, attack=17, test=90)
    far = classifier(make_row, "FT", 2, retain=98, forget=100, attack=2, test=91)
    a, b, same = gaps([near, far, near], aim)
    assert (a.nominal_value, b.nominal_value) == pytest.approx((2.5, 7.75))
    assert (a - same).std_dev == pytest.approx(0, abs=1e-6)

    def values(row: Row) -> np.ndarray:
        return 100 * np.stack([outcome(row, k) for k in SHARES])

    # Both are below the aim in retain and test, and in the attack; both above in forget accuracy:
    # the difference is linear in what came out for each image, the forget set's two counted together.
    each = (values(far) - values(near)) * np.array([[-1], [1], [-1], [-1]]) / 4
    parts = each[0], each[1] + each[2], each[3]
    # "far" has all of the forget set right: 2 / (n + 4), in per cent, a quarter of it in the gap.
    all_right = (200 / 404 / 4) ** 2
    error = np.sqrt(sum(p.var(ddof=1) / len(p) for p in parts) + all_right)
    assert (b - a).nominal_value == pytest.approx(5.25)
    assert (b - a).std_dev == pytest.approx(error, rel=1e-6)


def test_what_comes_out_alike_for_all_images_has_an_error(make_row: Callable[..., Row]) -> None:
    """Fails where a model that has all 400 images right has as sure an accuracy as a count."""
    right = {"retain": 98, "forget": 0, "attack": 100}
    row = classifier(make_row, "GA", 0, test=100, **right)
    ((test,),) = shares([row], "test")
    assert (test.nominal_value, test.std_dev) == pytest.approx((100, 200 / 404))
    ((forget, attack),) = shares([row], "forget", "attack")
    assert (forget.std_dev, attack.std_dev) == pytest.approx((200 / 404,) * 2)
    assert (forget + attack).std_dev == pytest.approx(2**0.5 * 200 / 404)


def test_without_outcomes_errors_are_those_of_the_metrics(make_row: Callable[..., Row]) -> None:
    metrics = {name: 90.0 for name in SHARES.values()}
    aim = make_row("random", "Retrain", **metrics)
    (gap,) = gaps([make_row("random", "SalUn", **{k: 92.0 for k in metrics})], aim)
    # Four metrics, each with an error of 0.5 on either side.
    assert (gap.nominal_value, gap.std_dev) == pytest.approx((2.0, np.sqrt(8 * 0.25) / 4))
    ((test,), (other,)) = shares([aim, aim], "test")
    assert (test - other).std_dev == pytest.approx(np.sqrt(0.5))


def test_what_hardly_changed_the_original_is_named(make_row: Callable[..., Row]) -> None:
    """Fails where a mean hides a seed or a metric that moved, or one seed's original is another's."""

    def row(method: str, seed: int, *moved: float) -> Row:
        at = [90.0 + 5 * seed + m for m in (*moved, 0, 0, 0, 0)[:4]]
        return make_row("random", method, seed, **dict(zip(SHARES.values(), at, strict=True)))

    rows = [row("Original", s) for s in (0, 1)]
    rows += [row("SSD", 0, STILL), row("SSD", 1, 0, 0, 0, -STILL)]
    rows += [row("RL", 0), row("RL", 1, 0, 0, 0.6)]
    rows += [row("FT", 0), row("FT", 1), row("FT", 1, -0.6)]  # in another variant
    rows += [row("GA", 2)]  # its original is not there
    rows += [make_row("random", "Anatomy", 0, seconds=1.0)]
    assert left_alone(rows) == ["SSD"]
    assert left_alone([]) == []
