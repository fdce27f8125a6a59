"""What erasing costs, as ratios of things measured in one run; the model of the laptop profile, one thread."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from unlearn_core.data import Concepts, Denoising, ForgetSplit, captioned_fashion, forget_concepts
from unlearn_core.methods import UCE, RealEra
from unlearn_core.methods.cross_attention import low_rank, original_epsilon, projections
from unlearn_core.models import TextConditional, TextToImage, TrainConfig, train

Report = Callable[..., None]
Timed = Callable[..., dict[str, float]]

IMAGES = 640


@pytest.fixture(scope="module")
def model() -> TextConditional:
    return TextToImage().build(0)


@pytest.fixture(scope="module")
def split() -> ForgetSplit:
    data = captioned_fashion(per_class=IMAGES // 10, test_per_class=1)
    keep = ["", *(f"a photo of {noun.name}" for noun in data.nouns if noun.name != "a bag")]
    return forget_concepts(data, Concepts((("a bag", data.general),), keep, data.templates))


def test_closed_forms_against_an_epoch(
    benchmark: BenchmarkFixture,
    report: Report,
    interleaved: Timed,
    model: TextConditional,
    split: ForgetSplit,
) -> None:
    """UCE, and RealEra's closed form, against training on 640 images; an epoch of all of
    Fashion-MNIST is 94 times that. Aim: less than 1 % of an epoch."""
    config = TrainConfig(epochs=1, lr=1e-6, batch_size=64, optimizer="adamw")
    data = split.forget + split.retain
    batch = data.batch_of(list(range(64)))

    def epoch() -> None:
        train(model, lambda _: [batch] * (IMAGES // 64), Denoising().loss, config)

    uce, realera = UCE(), RealEra(stages="closed_form")
    found = interleaved(
        3,
        epoch=epoch,
        uce=lambda: uce(model, split),
        realera=lambda: realera(model, split),
    )
    whole = found["epoch"] * 60_000 / IMAGES
    report(uce_per_epoch=found["uce"] / whole, realera_per_epoch=found["realera"] / whole)
    benchmark.pedantic(lambda: realera(model, split), rounds=1)


def test_sampling_against_the_unet(
    benchmark: BenchmarkFixture, report: Report, interleaved: Timed, model: TextConditional
) -> None:
    """Images with guidance against as many passes of the UNet over as many noisy images at once.
    Aim: 0.9 or more of its throughput."""
    n, steps = 64, 5
    x, t = torch.randn(2 * n, *model.shape), torch.zeros(2 * n).long()
    states = model.embed(["a bag"] * (2 * n))

    @torch.no_grad()
    def raw() -> None:
        for _ in range(steps):
            model.unet(x, t, encoder_hidden_states=states)

    def sample() -> None:
        model.sample(["a bag"] * n, 0, steps=steps, guidance=3.0)

    found = interleaved(3, raw=raw, sample=sample)
    report(sampling_per_unet_throughput=found["raw"] / found["sample"])
    benchmark.pedantic(sample, rounds=1)


def test_no_second_unet(
    benchmark: BenchmarkFixture, report: Report, model: TextConditional
) -> None:
    """What the low-rank stage holds beside the model: the original's keys and values, and the
    adapters. A second UNet would be 1."""
    held: list[int] = []
    original = {n: p.detach().clone() for n, p in projections(model).items()}
    weights = sum(p.numel() for p in model.parameters())
    x, t = torch.randn(1, *model.shape), torch.zeros(1).long()
    states = model.embed(["a bag"])

    def loss(trained: TextConditional, batch: torch.Tensor) -> torch.Tensor:
        wanted = original_epsilon(trained, original, x, t, states)
        adapted = sum(p.numel() for p in trained.parameters()) - weights
        held.append(adapted + sum(w.numel() for w in original.values()))
        return (trained.denoise(x, t, states) - wanted).square().mean()

    config = TrainConfig(epochs=1, lr=1e-4, batch_size=1, optimizer="adamw")
    benchmark.pedantic(
        lambda: low_rank(model, lambda _: [x], loss, config, 1, 0, "benchmark"), rounds=1
    )
    report(held_beside_the_model=max(held) / weights)
