"""What the upper level of the worst-case search costs; nothing is asserted about time.

On one thread, as all tests run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from unlearn_core.data import ImageSet, batches
from unlearn_core.methods.worst_case import example_losses, project_capped_simplex, upper_step
from unlearn_core.models import ResNet18

Report = Callable[..., None]
Timed = Callable[..., dict[str, float]]

IMAGES, BATCH = 512, 256


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return ResNet18(10, 3, width=8).build(0)


@pytest.fixture(scope="module")
def images() -> ImageSet:
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (IMAGES, 32, 32, 3), dtype=torch.uint8, generator=g)
    labels = torch.randint(0, 10, (IMAGES,), generator=g)
    return ImageSet(pixels, labels, labels, (0.5,) * 3, (0.25,) * 3)


def upper_level(model: nn.Module, images: ImageSet) -> Tensor:
    """The losses, the step and the projection, as one iteration of the search takes them."""
    m = IMAGES // 10
    weights = torch.full((IMAGES,), m / IMAGES, dtype=torch.float64)
    return upper_step(weights, example_losses(model, images), m, alpha=100.0, gamma=1e-4)


@torch.no_grad()
def forward_pass(model: nn.Module, images: ImageSet) -> None:
    for x, _ in batches(images, BATCH):
        model(x)


def test_the_upper_level_against_a_forward_pass(
    benchmark: BenchmarkFixture,
    report: Report,
    interleaved: Timed,
    model: nn.Module,
    images: ImageSet,
) -> None:
    """Aim: at most 1.05, and less on a network of a real size."""
    found = interleaved(
        9, upper=lambda: upper_level(model, images), forward=lambda: forward_pass(model, images)
    )
    report(upper_level_per_forward_pass=found["upper"] / found["forward"])
    benchmark.pedantic(upper_level, (model, images), rounds=2)


def test_the_projection_at_a_real_size(benchmark: BenchmarkFixture, report: Report) -> None:
    """45,000 weights with a tenth to select, in seconds."""
    g = torch.Generator().manual_seed(0)
    a = -100 * torch.rand(45_000, generator=g, dtype=torch.float64).square()
    benchmark.pedantic(project_capped_simplex, (a, 4500), rounds=9)
    report(projection_seconds=benchmark.stats.stats.median)
