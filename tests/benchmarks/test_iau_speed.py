"""What IAU costs, as ratios of things measured in one run; nothing is asserted about time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

from unlearn_core.data import Classification, ForgetSplit, ImageSet, batches
from unlearn_core.methods import IAU, FisherForgetting, InfluenceCG
from unlearn_core.methods.iau import GradientRestriction
from unlearn_core.models import LeNet

Report = Callable[..., None]
Timed = Callable[..., dict[str, float]]

FORGET, RETAIN, BATCH = 51, 973, 64
task = Classification(10)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return LeNet(10).build(0)


@pytest.fixture(scope="module")
def split() -> ForgetSplit:
    def images(n: int) -> ImageSet:
        g = torch.Generator().manual_seed(n)
        pixels = torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8, generator=g)
        labels = torch.randint(0, 10, (n,), generator=g)
        return ImageSet(pixels, labels, labels, (0.5,) * 3, (0.25,) * 3)

    return ForgetSplit("random", task, images(FORGET), images(RETAIN), images(1))


def plain_pass(model: nn.Module, split: ForgetSplit, loss: Callable = task.loss) -> None:
    """Forward and backward over the forget and the retain set, without a step."""
    for data in (split.forget, split.retain):
        for batch in batches(data, BATCH):
            loss(model, batch).backward()
            model.zero_grad()


def test_iau_against_a_plain_pass(
    benchmark: BenchmarkFixture,
    report: Report,
    interleaved: Timed,
    model: nn.Module,
    split: ForgetSplit,
) -> None:
    """Aim: at most 1 within noise, and for the forget set alone its share of the images."""
    iau, alone = IAU(batch_size=BATCH), IAU(batch_size=BATCH, correction=False)
    found = interleaved(
        9,
        iau=lambda: iau(model, split),
        alone=lambda: alone(model, split),
        plain=lambda: plain_pass(model, split),
    )
    report(
        iau_per_plain_pass=found["iau"] / found["plain"],
        without_correction_per_plain_pass=found["alone"] / found["plain"],
        forget_share=FORGET / (FORGET + RETAIN),
    )
    benchmark.pedantic(iau, (model, split), rounds=2)


def test_what_it_is_compared_with(
    benchmark: BenchmarkFixture,
    report: Report,
    interleaved: Timed,
    model: nn.Module,
    split: ForgetSplit,
) -> None:
    """The paper's claim is of a hundred times for Fisher forgetting; its way of taking the
    gradients of single images is not known. Ours takes them together."""
    iau, fisher = IAU(batch_size=BATCH), FisherForgetting(batch_size=BATCH)
    influence = InfluenceCG(iterations=2, damping=1.0, batch_size=BATCH)
    found = interleaved(
        3,
        iau=lambda: iau(model, split),
        fisher=lambda: fisher(model, split),
        influence=lambda: influence(model, split),
    )
    report(
        fisher_per_iau=found["fisher"] / found["iau"],
        influence_of_20_iterations_per_iau=10 * found["influence"] / found["iau"],
    )
    benchmark.pedantic(fisher, (model, split), rounds=1)


def test_training_with_gradient_restriction_against_plain_training(
    benchmark: BenchmarkFixture,
    report: Report,
    interleaved: Timed,
    model: nn.Module,
    split: ForgetSplit,
) -> None:
    restricted = GradientRestriction(10)
    found = interleaved(
        5,
        restricted=lambda: plain_pass(model, split, restricted.loss),
        plain=lambda: plain_pass(model, split),
    )
    report(restricted_per_plain_pass=found["restricted"] / found["plain"])
    benchmark.pedantic(plain_pass, (model, split, restricted.loss), rounds=1)
