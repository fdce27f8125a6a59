from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from unlearn_core.data import ForgetSplit, ImageData, forget_class, forget_random, shapes
from unlearn_core.methods import Retrain
from unlearn_core.metrics.relearn import relearned_accuracy
from unlearn_core.models import Recipe, SmallCNN, TrainConfig, TrainingError, predict
from unlearn_core.seeding import generator


@pytest.fixture(scope="module")
def data() -> ImageData:
    """Ten classes of 20 images."""
    return shapes(per_class=20, test_per_class=2, fills=1, size=12)


@pytest.fixture(scope="module")
def split(data: ImageData) -> ForgetSplit:
    return forget_class(data, 2)


@pytest.fixture(scope="module")
def mixed(data: ImageData) -> ForgetSplit:
    """Forget 40 images of any class."""
    return forget_random(data, count=40)


@pytest.fixture(scope="module")
def retrained(split: ForgetSplit) -> nn.Module:
    train = TrainConfig(epochs=3, lr=0.05, momentum=0.9, batch_size=32)
    recipe = Recipe(SmallCNN(10, 1, width=4), split.task, train)
    return Retrain(recipe)(recipe.build(0), split, 0)


@pytest.mark.parametrize("seed", [0, 2])
def test_it_is_momentum_on_a_few_images_judged_by_the_others(
    retrained: nn.Module, mixed: ForgetSplit, seed: int
) -> None:
    """Written out. Fails if a shown image is judged, a step is one too many or short of a batch,
    or the labels or the mode are others."""
    order = torch.randperm(40, generator=generator(seed, "relearn"))
    shown, others = order[:8], order[8:]
    model = copy.deepcopy(retrained)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    x, y = mixed.forget.batch_of(shown)
    shares = []
    for steps in range(1, 7):
        model.train()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        out = predict(model, mixed.forget.subset(others))
        right = (out.logits.argmax(1) == out.labels).double().mean().item()
        found = relearned_accuracy(retrained, mixed, seed, steps=steps, examples=8, lr=0.05)
        assert found.value == pytest.approx(100 * right)
        assert found.n == 32
        assert found.stderr == pytest.approx(100 * math.sqrt(right * (1 - right) / 32))
        shares.append(right)
    assert len(set(shares)) >= 3


def test_retain_images_may_be_shown_and_all_forget_images_judged(
    retrained: nn.Module, mixed: ForgetSplit
) -> None:
    order = torch.randperm(len(mixed.retain), generator=generator(0, "relearn"))
    model = copy.deepcopy(retrained).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    x, y = mixed.retain.batch_of(order[:8])
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    out = predict(model, mixed.forget)
    found = relearned_accuracy(retrained, mixed, 0, steps=3, examples=8, lr=0.05, of="retain")
    assert found.n == 40
    assert found.value == pytest.approx(
        100 * (out.logits.argmax(1) == out.labels).double().mean().item()
    )


def test_an_unknown_class_comes_back_with_the_steps(
    retrained: nn.Module, split: ForgetSplit
) -> None:
    """Fails if the copy is not trained, or on the wrong labels."""
    out = predict(retrained, split.forget)
    assert (out.logits.argmax(1) == 2).sum() == 0
    few, many = (
        relearned_accuracy(retrained, split, 0, steps=steps, examples=10, lr=0.02).value
        for steps in (1, 15)
    )
    assert few == 0
    assert many > 50


def test_the_model_is_left_alone(retrained: nn.Module, split: ForgetSplit) -> None:
    before, random = copy.deepcopy(retrained.state_dict()), torch.get_rng_state()
    relearned_accuracy(retrained, split, 0, steps=2, examples=4)
    assert all(torch.equal(before[k], v) for k, v in retrained.state_dict().items())
    assert all(p.grad is None for p in retrained.parameters())
    assert not retrained.training
    assert torch.equal(random, torch.get_rng_state())


def test_the_seed_draws_the_images(retrained: nn.Module, mixed: ForgetSplit) -> None:
    values = [
        relearned_accuracy(retrained, mixed, seed, steps=6, examples=8, lr=0.02).value
        for seed in (0, 0, 1, 2, 3)
    ]
    assert values[0] == values[1]
    assert len(set(values)) > 1


@pytest.mark.parametrize("examples", [20, 32])
def test_an_image_must_be_left_to_judge_by(
    retrained: nn.Module, split: ForgetSplit, examples: int
) -> None:
    with pytest.raises(ValueError, match=f"from {examples} examples leaves none of 20 to judge by"):
        relearned_accuracy(retrained, split, 0, examples=examples)


def test_a_loss_that_is_not_finite_is_named(retrained: nn.Module, split: ForgetSplit) -> None:
    model = copy.deepcopy(retrained)
    model.head.bias.data[0] = math.nan
    with pytest.raises(TrainingError, match="relearning: the loss is nan at step 1"):
        relearned_accuracy(model, split, 0, examples=4)
