"""From a data set to batches."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

__all__ = ["Consecutive", "batches", "evenly_spaced"]


class Consecutive:
    """Loaders one after the other, as one epoch."""

    def __init__(self, *loaders: DataLoader) -> None:
        self.loaders = loaders

    def __len__(self) -> int:
        return sum(map(len, self.loaders))

    def __iter__(self) -> Iterator[Any]:
        for loader in self.loaders:
            yield from loader


def evenly_spaced(total: int, n: int) -> torch.Tensor:
    """``n`` positions at equal distances among ``total`` (all, where there are fewer): int64.

    A sample without a draw that does justice to sets which are ordered by class, as ours are; their
    first ``n`` examples would be of a few classes only.
    """
    n = min(n, total)
    return torch.arange(n) * total // n


def batches(
    dataset: Dataset,
    batch_size: int,
    *,
    shuffle: bool = False,
    generator: torch.Generator | None = None,
    workers: int = 0,
) -> DataLoader:
    """Batches in the given order, or shuffled by ``generator``; the last one may be short.

    A data set that makes whole batches itself (``__getitems__``) brings its own ``collate``.

    Raises
    ------
    ValueError
        It is to shuffle, and there is no generator.
    """
    if shuffle and generator is None:
        raise ValueError("shuffling needs a generator: nothing draws from the global state")
    # A loader without a generator would draw a seed from the global state at every pass.
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        generator=generator or torch.Generator().manual_seed(0),
        # More workers than cores only wait for each other, and PyTorch warns of it.
        num_workers=min(workers, os.cpu_count() or 1),
        collate_fn=getattr(dataset, "collate", default_collate),
    )
