"""What came out for every example, small enough to be kept in a row: paired errors need it.

Right or wrong is a bit an example, a score a half-precision number; packed, compressed and written
as text. A retain set of 54,000 images that are nearly all right takes less than a kilobyte.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .records import MissingRowError, Row

__all__ = ["OUTCOMES", "outcome", "pack", "unpack"]

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
