"""What our training loop adds to forward and backward alone, as ratios of things measured in one run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from unlearn_core.data import Classification
from unlearn_core.data.images import ImageSet
from unlearn_core.models import ResNet18, TrainConfig, shuffled_epochs, train

Report = Callable[..., None]
Timed = Callable[..., dict[str, float]]

BATCH, BATCHES = 128, 8

loss = Classification(10).loss


@pytest.fixture(scope="module")
def images() -> ImageSet:
    """As CIFAR-10 is."""
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (BATCH * BATCHES, 32, 32, 3), generator=g, dtype=torch.uint8)
    labels = torch.randint(0, 10, (len(pixels),), generator=g)
    return ImageSet(pixels, labels, labels, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("augment", [(), ("crop", "flip"), ("crop", "flip", "rotate")])
def test_an_epoch_against_forward_and_backward(
    benchmark: BenchmarkFixture,
    report: Report,
    interleaved: Timed,
    images: ImageSet,
    augment: tuple[str, ...],
    precision: str,
) -> None:
    """Batches, augmentation, accelerate's loop, checks and steps are inside. Aim: at most 1.1."""
    config = TrainConfig(
        epochs=1, lr=1e-3, batch_size=BATCH, momentum=0.9, augment=augment, precision=precision
    )
    model = ResNet18(10, 3, width=16).build(0)
    held = list(shuffled_epochs(images, TrainConfig(epochs=1, lr=1, batch_size=BATCH), 0)(0))

    def epoch() -> None:
        train(model, shuffled_epochs(images, config, 0), loss, config)

    def passes() -> None:
        model.train()
        for batch in held:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                value = loss(model, batch)
            value.backward()
            model.zero_grad()

    found = interleaved(3, epoch=epoch, passes=passes)
    name = "_".join(("epoch", *augment, precision))
    report(**{f"{name}_per_forward_and_backward": found["epoch"] / found["passes"]})
    benchmark.pedantic(epoch, rounds=1)
