from __future__ import annotations

import pytest
import torch
from torch.utils.data import TensorDataset

from unlearn_core.data import Consecutive, ImageSet, batches, evenly_spaced


@pytest.fixture
def numbers() -> TensorDataset:
    return TensorDataset(torch.arange(10), torch.arange(10) * 2)


def first_column(loader: object) -> list[list[int]]:
    return [x.tolist() for x, _ in loader]


def test_the_given_order_with_a_short_last_batch(numbers: TensorDataset) -> None:
    loader = batches(numbers, 4)
    assert first_column(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(loader) == 3


def test_pairs_stay_together_when_shuffled(numbers: TensorDataset) -> None:
    for x, y in batches(numbers, 3, shuffle=True, generator=torch.Generator().manual_seed(0)):
        assert torch.equal(y, 2 * x)


def test_the_generator_decides_the_order(numbers: TensorDataset) -> None:
    def order(seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return first_column(batches(numbers, 10, shuffle=True, generator=generator))

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert sorted(order(0)[0]) == list(range(10))


def test_shuffling_needs_a_generator(numbers: TensorDataset) -> None:
    with pytest.raises(ValueError, match="shuffling needs a generator"):
        batches(numbers, 4, shuffle=True)


@pytest.mark.parametrize("shuffle", [False, True])
def test_nothing_is_drawn_from_the_global_state(numbers: TensorDataset, shuffle: bool) -> None:
    """Fails if the loader has no generator: it would draw a seed at every pass."""
    before = torch.get_rng_state()
    list(batches(numbers, 4, shuffle=shuffle, generator=torch.Generator() if shuffle else None))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_set_that_makes_whole_batches_is_asked_once_a_batch() -> None:
    asked = []

    class Counting(ImageSet):
        def batch_of(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
            asked.append(list(indices))
            return super().batch_of(indices)

    labels = torch.arange(5)
    data = Counting(torch.zeros(5, 2, 2, 1, dtype=torch.uint8), labels, labels, (0.5,), (0.5,))
    shapes = [x.shape for x, _ in batches(data, 3)]
    assert asked == [[0, 1, 2], [3, 4]]
    assert shapes == [(3, 1, 2, 2), (2, 1, 2, 2)]


def test_workers_give_the_same_batches(numbers: TensorDataset) -> None:
    assert first_column(batches(numbers, 4, workers=1)) == first_column(batches(numbers, 4))


class TestConsecutive:
    def test_every_batch_of_each_loader_in_turn(self, numbers: TensorDataset) -> None:
        """Fails if loaders take turns, or the second pass, which is the next epoch, is empty."""
        both = Consecutive(batches(numbers, 4), batches(numbers, 7))
        assert len(both) == 5
        expected = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [0, 1, 2, 3, 4, 5, 6], [7, 8, 9]]
        assert first_column(both) == first_column(both) == expected

    def test_one_loader_is_that_loader(self, numbers: TensorDataset) -> None:
        assert first_column(Consecutive(batches(numbers, 4))) == first_column(batches(numbers, 4))
        assert len(Consecutive(batches(numbers, 4))) == 3


@pytest.mark.parametrize(
    ("total", "n", "expected"),
    [
        (14, 5, [0, 2, 5, 8, 11]),
        (9, 3, [0, 3, 6]),
        (3, 3, [0, 1, 2]),
        (3, 7, [0, 1, 2]),
        (5, 1, [0]),
    ],
)
def test_positions_at_equal_distances(total: int, n: int, expected: list[int]) -> None:
    """Fails if they are the first ones, or one is there twice where fewer are left."""
    assert evenly_spaced(total, n).tolist() == expected
