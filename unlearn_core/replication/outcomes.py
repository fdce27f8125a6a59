"""What came out for every example, small enough to be kept in a row: paired errors need it.

Right or wrong is a bit an example, a score a half-precision number; packed, compressed and written
as text. A retain set of 54,000 images that are nearly all right takes less than a kilobyte.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from uncertainties import UFloat, correlated_values

from .records import ORIGINAL, MissingRowError, Row, error_of_none, error_to_judge_by, with_error

__all__ = [
    "OUTCOMES",
    "SHARES",
    "STILL",
    "gaps",
    "left_alone",
    "outcome",
    "pack",
    "shares",
    "unpack",
]

#: Where a row's detail keeps them.
OUTCOMES = "outcomes"


def pack(values: Sequence[bool] | Sequence[float] | np.ndarray) -> dict[str, Any]:
    """Outcomes as plain data: bools to a bit each, numbers to half precision (2^-11 of their size)."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"outcomes are one value an example, not of shape {array.shape}")
    kind = "bits" if array.dtype == bool else "halves"
    with np.errstate(over="ignore"):  # what is too large is refused below
        raw = np.packbits(array) if kind == "bits" else array.astype("<f2")
    if kind == "halves" and not np.isfinite(raw).all():
        raise ValueError("an outcome is not finite, or too large for half precision")
    text = base64.b64encode(zlib.compress(raw.tobytes(), 9)).decode()
    return {"n": len(array), "kind": kind, "data": text}


def unpack(packed: Mapping[str, Any]) -> np.ndarray:
    """The outcomes, (n,) float64: right is 1 and wrong 0."""
    raw = zlib.decompress(base64.b64decode(packed["data"]))
    if packed["kind"] == "bits":
        return np.unpackbits(np.frombuffer(raw, np.uint8), count=packed["n"]).astype(float)
    return np.frombuffer(raw, "<f2").astype(float)


def outcome(row: Row, name: str) -> np.ndarray:
    """A row's outcomes of that name, (n,).

    Raises
    ------
    MissingRowError
        The row keeps none: it was made before they were kept.
    """
    found = row.detail.get(OUTCOMES, {})
    if name not in found:
        where = f"{row.experiment} / {row.method} / seed {row.seed}"
        raise MissingRowError(f"{where} keeps no outcomes {name!r}; it has {sorted(found)}")
    return unpack(found[name])


#: Of a classifier's rows: outcome -> the metric that is its share, in per cent.
SHARES = {
    "retain": "retain_accuracy",
    "forget": "forget_accuracy",
    "attack": "confidence_mia",
    "test": "test_accuracy",
}


def shares(rows: Sequence[Row], *names: str) -> list[tuple[UFloat, ...]]:
    """The `SHARES` of several models that were asked about the same images, in per cent.

    Their errors go together as the outcomes on these images do, so that a difference of two of them
    has the error of a paired one; where all outcomes of a model are alike, theirs is
    `error_of_none`'s, for itself. Where a row keeps no outcomes, errors are those of the metrics, each
    for itself.

    Parameters
    ----------
    names : outcomes over the same images: one of "retain" and "test", or "forget", "attack" or both

    Returns
    -------
    a tuple a row, in the order of ``names``
    """
    if all(OUTCOMES in row.detail for row in rows):
        each = np.stack([100 * outcome(row, name) for row in rows for name in names])
        covariance = np.atleast_2d(np.cov(each)) / each.shape[1]
        alike = np.ptp(each, axis=1) == 0
        covariance[alike, alike] = (100 * error_of_none(each.shape[1])) ** 2
        found = correlated_values(each.mean(axis=1), covariance)
    else:
        metrics = ((SHARES[name], row.metrics[SHARES[name]]) for row in rows for name in names)
        found = [with_error(m.value, error_to_judge_by(name, m)) for name, m in metrics]
    return [tuple(found[i : i + len(names)]) for i in range(0, len(found), len(names))]


def gaps(rows: Sequence[Row], retrained: Row) -> list[UFloat]:
    """Each classifier's gap to one retrained model, in points, as `metrics.gap_to_retrained` has it.

    Their errors go together as in `shares`: what two methods share, the retrained model and the
    images, does not blur which of them is closer to it.
    """
    every = (retrained, *rows)
    parts = [shares(every, *names) for names in (("retain",), ("forget", "attack"), ("test",))]
    aim, *found = ([value for part in each for value in part] for each in zip(*parts, strict=True))
    apart = ([a - b for a, b in zip(own, aim, strict=True)] for own in found)
    return [sum(d if d.nominal_value >= 0 else -d for d in own) / len(aim) for own in apart]


#: Points within which a classifier is what it was.
STILL = 0.5


def left_alone(rows: Iterable[Row]) -> list[str]:
    """Which methods hardly changed the original, of the rows of one experiment and forget set.

    Theirs are all `SHARES` within `STILL` points of the original's, in every variant and on every seed.
    Where retraining changes little a search may well choose that: it comes closer than what goes too far.
    """
    by_method: dict[str, list[Row]] = {}
    for row in rows:
        if all(name in row.metrics for name in SHARES.values()):
            by_method.setdefault(row.method, []).append(row)
    before = {row.seed: row for row in by_method.pop(ORIGINAL, [])}

    def is_still(row: Row) -> bool:
        if row.seed not in before:
            return False
        was = before[row.seed].metrics
        return all(abs(row.metrics[m].value - was[m].value) <= STILL for m in SHARES.values())

    return [method for method, made in by_method.items() if all(map(is_still, made))]
