from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from unlearn_core.data import IGNORED, Answering, Classification, ForgetSplit, ImageSet
from unlearn_core.data.objectives import VisualAnswering


def images(labels: list[int]) -> ImageSet:
    y = torch.tensor(labels)
    return ImageSet(torch.zeros(len(y), 1, 1, 1, dtype=torch.uint8), y, y, (0.5,), (0.5,))


def test_the_loss_is_the_mean_cross_entropy() -> None:
    """Fails if the loss is summed, or is over all classes: SSD's importances would scale."""
    x = torch.tensor([[0.0, math.log(3)], [math.log(4), 0.0]])
    loss = Classification(2).loss(nn.Identity(), (x, torch.tensor([1, 1])))
    assert loss.item() == pytest.approx((-math.log(3 / 4) - math.log(1 / 5)) / 2)


@pytest.mark.parametrize("classes", [1, 0, -3, 2.5, True, "10"])
def test_a_number_of_classes_that_makes_no_sense(classes: object) -> None:
    with pytest.raises(ValueError, match=r"classes must be (at least 2|a whole number), not"):
        Classification(classes)


@pytest.mark.parametrize("outputs", [1, 9, 11])
def test_a_model_of_other_classes_than_the_task_s(outputs: int) -> None:
    """Fails where more outputs than classes train without a word, or fewer end in a raw IndexError."""
    batch = torch.zeros(4, 3), torch.arange(4)
    for function in (Classification(10).loss, Classification(10).log_probs):
        with pytest.raises(ValueError, match=rf"shape \(4, {outputs}\), .* has 10 classes: give"):
            function(nn.Linear(3, outputs), batch)
    with pytest.raises(ValueError, match=r"shape \(4, 10, 1\)"):
        Classification(10).loss(lambda x: torch.zeros(4, 10, 1), batch)


def test_relabelled_images_are_all_wrong_and_uniform_over_the_rest() -> None:
    """Fails if the shift may be 0 (some labels stay right) or never reaches a class."""
    data = images([0, 1, 2, 3] * 500)
    wrong = Classification(4).relabel(data, torch.Generator().manual_seed(0)).labels
    assert not (wrong == data.labels).any()
    assert wrong.min() == 0
    assert wrong.max() == 3
    for label in range(4):
        counts = wrong[data.labels == label].bincount(minlength=4)
        others = counts[torch.arange(4) != label]
        assert counts[label] == 0
        assert (others - 500 / 3).abs().max() < 5 * (500 * 2 / 9) ** 0.5


def test_two_classes_are_swapped() -> None:
    wrong = Classification(2).relabel(images([0, 1, 1]), torch.Generator().manual_seed(0))
    assert wrong.labels.tolist() == [1, 0, 0]


def test_the_generator_decides_and_the_data_stay() -> None:
    data, task = images([0, 1, 2] * 10), Classification(3)
    a, b, c = (task.relabel(data, torch.Generator().manual_seed(s)).labels for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert data.labels.tolist() == [0, 1, 2] * 10


def test_every_call_draws_anew() -> None:
    generator, task = torch.Generator().manual_seed(0), Classification(3)
    first, second = (task.relabel(images([0] * 30), generator).labels for _ in range(2))
    assert not torch.equal(first, second)


def test_random_labels_that_may_be_right_are_uniform_over_all_classes() -> None:
    """Fails if the true label can't occur, or occurs more often than another."""
    data = images([0, 1, 2, 3] * 500)
    drawn = Classification(4).relabel(data, torch.Generator().manual_seed(0), wrong=False).labels
    for label in range(4):
        counts = drawn[data.labels == label].bincount(minlength=4)
        assert len(counts) == 4
        assert (counts - 125).abs().max() < 5 * (500 * 3 / 16) ** 0.5
    assert data.labels.tolist() == [0, 1, 2, 3] * 500


def test_answers_about_images_are_found_from_the_images() -> None:
    """Fails where the images are not passed on, or the loss is another than that of answers."""
    batch = {
        "input_ids": torch.tensor([[4, 0, 1], [4, 1, 1]]),
        "attention_mask": torch.ones(2, 3, dtype=torch.int64),
        "labels": torch.tensor([[IGNORED, 0, 1], [IGNORED, IGNORED, 1]]),
        "pixel_values": torch.tensor([0.0, math.log(3)])[:, None, None, None].expand(2, 3, 1, 1),
    }

    def model(
        ids: torch.Tensor, mask: torch.Tensor, pixel_values: torch.Tensor, at: torch.Tensor
    ) -> torch.Tensor:
        assert ids is batch["input_ids"]
        assert mask is batch["attention_mask"]
        one = pixel_values[:, 0, 0, :1, None].expand(2, 3, 1)
        return torch.cat([torch.zeros_like(one), one], dim=2)[at]

    task = VisualAnswering(("I see nothing.",))
    expected = torch.tensor([2 * math.log(1 / 2), math.log(3 / 4)])
    torch.testing.assert_close(task.log_probs(model, batch), expected)
    assert task.loss(model, batch).item() == pytest.approx(-expected.sum().item() / 3)
    assert task.modality == "multimodal" != Answering.modality
    assert task.answer_tokens(batch).tolist() == [2, 1]


def test_a_view_of_what_is_asked_of_images_stays_one() -> None:
    """Fails where a split that withholds the templates makes a task of texts of it."""
    split = ForgetSplit("two", VisualAnswering(("No.",)), [1], [2])
    assert split.only(frozenset({"forget"}), "it").task == VisualAnswering()
    assert split.only(frozenset({"templates"}), "it").task is split.task
