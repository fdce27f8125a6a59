"""Randomness that comes in as a seed and leaves no trace."""

from __future__ import annotations

import contextlib
import hashlib
import operator
import random
from collections.abc import Iterator

import torch

__all__ = ["derive_seed", "generator", "importing", "seeded"]


def derive_seed(seed: int, *names: object) -> int:
    """A 63-bit seed for one purpose: the same names give the same seed, others an unrelated one.

    Two consumers of ``seed`` (the weight init and the batch order, say) must not share a stream:
    equal streams would correlate them.

    Raises
    ------
    TypeError
        The seed is no whole number: one that is rounded to it would be the same seed twice.
    """
    text = repr((operator.index(seed), *map(str, names))).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def generator(seed: int, *names: object) -> torch.Generator:
    """A CPU generator seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, *names))


@contextlib.contextmanager
def seeded(seed: int, *names: object) -> Iterator[None]:
    """Run a block under a seeded global PyTorch state, and put the former state back after it.

    For code that can only draw from the global state: module initialisers, dropout and
    torchvision's transforms. The CPU state and that of every CUDA device are restored.
    """
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, *names))
        yield


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Put Python's random state back after a block that imports: a dependency of scikit-learn's and of
    sentence-transformers' draws numbers while it is imported."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)
