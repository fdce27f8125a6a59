"""What SalUn adds to training, as ratios of things measured in one run; on one thread."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

from unlearn_core.data import Classification
from unlearn_core.methods.salun import frozen, random_mask, saliency_mask
from unlearn_core.models import ResNet18
from unlearn_core.seeding import generator

Report = Callable[..., None]
Timed = Callable[..., dict[str, float]]

loss = Classification(10).loss


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return ResNet18(10, 3, width=16).build(0)


@pytest.fixture(scope="module")
def loader() -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4, 64, 3, 32, 32, generator=g)
    y = torch.randint(0, 10, (4, 64), generator=g)
    return list(zip(x.unbind(), y.unbind(), strict=True))


def test_the_mask_against_a_plain_pass(
    benchmark: BenchmarkFixture, report: Report, interleaved: Timed, model: nn.Module, loader: list
) -> None:
    """One forward and backward pass over the forget set, and the ranking. Aim: at most 1.15."""

    def plain_pass() -> None:
        for batch in loader:
            loss(model, batch).backward()
            model.zero_grad()

    found = interleaved(5, mask=lambda: saliency_mask(model, loss, loader, 0.5), plain=plain_pass)
    report(mask_per_plain_pass=found["mask"] / found["plain"])
    benchmark.pedantic(saliency_mask, (model, loss, loader, 0.5), rounds=2)


@pytest.mark.parametrize("freeze", ["exact", "gradient"])
def test_a_masked_step_against_a_plain_one(
    benchmark: BenchmarkFixture,
    report: Report,
    interleaved: Timed,
    model: nn.Module,
    loader: list,
    freeze: str,
) -> None:
    """Aim: at most 1.05. What freezing adds does not depend on the batch, here of 64."""
    mask = random_mask(model, 0.5, generator(0))
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        loss(model, loader[0]).backward()
        optimizer.step()
        optimizer.zero_grad()

    def steps() -> None:
        for _ in range(2):
            step()

    def masked_steps() -> None:
        with frozen(model, mask, freeze):
            steps()

    found = interleaved(5, masked=masked_steps, plain=steps)
    report(**{f"masked_{freeze}_per_plain_step": found["masked"] / found["plain"]})
    benchmark.pedantic(masked_steps, rounds=2)
