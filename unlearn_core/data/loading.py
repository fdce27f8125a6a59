"""From a data set to batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

__all__ = ["Consecutive", "batch_of", "batches", "evenly_spaced", "redrawn"]


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


def batch_of(dataset: Any, indices: Sequence[int]) -> Any:
    """The batch of these examples: what `batches` would give of them."""
    if hasattr(dataset, "batch_of"):
        return dataset.batch_of(indices)
    return _collate(dataset)([dataset[i] for i in indices])


def redrawn(dataset: Any, draw: int) -> Any:
    """The data set under other draws of its random transforms, where it has any."""
    return dataset.redrawn(draw) if hasattr(dataset, "redrawn") else dataset


def _collate(dataset: Any) -> Callable[[list[Any]], Any]:
    return getattr(dataset, "collate", default_collate)


class _Whole(Dataset):
    """A data set of which a loader gets a whole batch at once, as the data set makes it."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: Sequence[int]) -> Any:
        return self.dataset.batch_of(indices)

    @staticmethod
    def collate(batch: Any) -> Any:
        return batch


def batches(
    dataset: Dataset,
    batch_size: int,
    *,
    shuffle: bool = False,
    generator: torch.Generator | None = None,
    workers: int = 0,
) -> DataLoader:
    """Batches in the given order, or shuffled by ``generator``; the last one may be short.

    A data set may have a ``collate`` of its own, from a list of samples to a batch, or make whole
    batches itself: ``batch_of``, from positions to a batch. What it has of torch's
    ``__getitems__`` gives a list of samples, here as in any loader.

    Raises
    ------
    ValueError
        It is to shuffle, and there is no generator.
    """
    if shuffle and generator is None:
        raise ValueError("shuffling needs a generator: nothing draws from the global state")
    if hasattr(dataset, "batch_of"):
        dataset = _Whole(dataset)
    # A loader without a generator would draw a seed from the global state at every pass.
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        generator=generator or torch.Generator().manual_seed(0),
        # More workers than cores only wait for each other, and PyTorch warns of it.
        num_workers=min(workers, os.cpu_count() or 1),
        collate_fn=_collate(dataset),
    )
