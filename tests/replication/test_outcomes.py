"""What is kept of every example."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from unlearn_core.replication.outcomes import outcome, pack, unpack
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
