"""The search for the prompts that are hardest to erase."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from unlearn_core.data import captioned_shapes
from unlearn_core.methods import worst_prompts
from unlearn_core.methods.worst_prompts import (
    LOOKS,
    LowestLossPrompts,
    RandomPrompts,
    WorstPrompts,
    prompt_losses,
)
from unlearn_core.models import TextToImage, TrainConfig
from unlearn_core.seeding import derive_seed, generator

PROMPTS = ("a disc", "a ring", "a square")


@pytest.fixture(scope="module")
def model() -> Any:
    return TextToImage(size=16, widths=(8, 16)).build(0)


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    data = captioned_shapes(per_class=2, test_per_class=1, nouns=3).train
    x = data.images.batch_of(range(len(data)))[0]
    return [x[data.images.labels == k] for k in range(3)]


SMALL = WorstPrompts(iterations=2, steps=2, train=TrainConfig(epochs=3, lr=1e-3, batch_size=1))


def test_losses_of_prompts(model: Any, images: list[Tensor]) -> None:
    """Against loops. Fails where prompts meet the images of others, or the authors' mistakes come
    in: noise over a thousand, or one step of diffusion for all."""
    found = prompt_losses(model, PROMPTS, images, seed=3)
    model.eval()
    for prompt, own, value in zip(PROMPTS, images, found, strict=True):
        draw, total = generator(3, "noise", prompt), 0.0
        for t in LOOKS:
            latents = model.codec.encode(own)
            noise = torch.randn(latents.shape, generator=draw)
            at = torch.full((len(own),), t)
            with torch.no_grad():
                error = model(model.add_noise(latents, noise, at), at, [prompt] * len(own)) - noise
            total += error.square().mean().item()
        assert value.item() == pytest.approx(total / 10, rel=1e-5)
    assert LOOKS == (0, 100, 200, 300, 400, 500, 600, 700, 800, 900)


def test_only_what_weighs_is_erased(model: Any) -> None:
    """Fails where the lower level takes 1 - w, or moves more than cross-attention."""
    before = copy.deepcopy(model.state_dict())
    none = SMALL.erased(model, PROMPTS, torch.zeros(3), 0, "x")
    assert all(torch.equal(v, before[k]) for k, v in none.state_dict().items())
    one = SMALL.erased(model, PROMPTS, torch.tensor([0.0, 1.0, 0.0]), 0, "x")
    moved = {k for k, v in one.state_dict().items() if not torch.equal(v, before[k])}
    assert moved
    assert all(".attn2." in k for k in moved)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_each_prompt_is_erased_as_much_as_it_weighs(model: Any) -> None:
    """One step of SGD is w times that of a weight of one. Fails with sign steps, which know no weight."""
    one = replace(SMALL, train=TrainConfig(epochs=1, lr=1.0, batch_size=1))
    before = copy.deepcopy(model.state_dict())

    def moves(how: WorstPrompts, *weights: float) -> dict[str, Tensor]:
        after = how.erased(model, PROMPTS, torch.tensor(weights), 0, "x").state_dict()
        return {k: v - before[k] for k, v in after.items() if ".attn2." in k}

    whole, half = moves(one, 1, 1, 1), moves(one, 0.5, 1, 1)
    assert max(v.abs().max().item() for v in whole.values()) > 1e-4
    for k, v in whole.items():
        torch.testing.assert_close(half[k], v / 2, rtol=1e-3, atol=1e-6)
    unequal, equal = moves(SMALL, 0.9, 0.01, 0.003), moves(SMALL, 0.5, 0.5, 0.5)
    sizes = [sum(v.norm().item() ** 2 for v in m.values()) for m in (unequal, equal)]
    assert sizes[0] != pytest.approx(sizes[1], rel=0.1)


@pytest.mark.parametrize(("direction", "expected"), [("worst", [1]), ("easiest", [2])])
def test_the_set_is_what_stays_known(
    model: Any, images: list[Tensor], monkeypatch: pytest.MonkeyPatch, direction: Any, expected: Any
) -> None:
    """Worst is what the model still predicts best after erasing. Fails with the sign turned round."""
    losses = torch.tensor([0.5, 0.1, 0.9], dtype=torch.float64)
    before = torch.tensor([0.3, 0.2, 0.6], dtype=torch.float64)
    told = iter([before, losses, losses])
    monkeypatch.setattr(worst_prompts, "prompt_losses", lambda *a: next(told))
    found = replace(SMALL, direction=direction).select(model, PROMPTS, images, 1, seed=0)
    assert found.index.tolist() == expected
    assert found.weights.sum().item() == pytest.approx(1)
    assert len(found.log) == 2
    assert found.log[1]["objective"] == pytest.approx(losses[expected].item())
    assert found.log[1]["objective_before"] == pytest.approx(before[expected].item())


def test_the_seed_decides(model: Any, images: list[Tensor]) -> None:
    state = torch.get_rng_state()
    runs = [SMALL.select(model, PROMPTS, images, 2, seed=s) for s in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(runs[0].weights, runs[1].weights)
    assert runs[0].log[0]["objective"] != runs[2].log[0]["objective"]


def test_bad_input(model: Any, images: list[Tensor]) -> None:
    with pytest.raises(ValueError, match="cannot select 3 of 3 prompts"):
        SMALL.select(model, PROMPTS, images, 3, seed=0)
    with pytest.raises(ValueError, match="a prompt stands twice"):
        SMALL.select(model, ("a disc", "a disc", "a ring"), images, 1, seed=0)
    with pytest.raises(ValueError, match="no image of 'a ring'"):
        SMALL.select(model, PROMPTS, [images[0], images[1][:0], images[2]], 1, seed=0)
    with pytest.raises(ValueError, match="direction must be 'worst' or 'easiest', not 'best'"):
        replace(SMALL, direction="best")
    with pytest.raises(ValueError, match="takes SGD"):
        replace(SMALL, train=TrainConfig(epochs=1, lr=1e-3, optimizer="adam"))
    for wrong in ({"steps": 0}, {"alpha": float("inf")}, {"alpha": float("nan")}, {"gamma": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            replace(SMALL, **wrong)


def test_the_smallest_losses_need_no_search(
    model: Any, images: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = torch.tensor([0.5, 0.9, 0.1], dtype=torch.float64)
    seen = []
    monkeypatch.setattr(worst_prompts, "prompt_losses", lambda *a: seen.append(a) or losses)
    found = LowestLossPrompts().select(model, PROMPTS, images, 2, seed=4)
    assert found.index.tolist() == [0, 2]
    assert found.weights.tolist() == [1, 0, 1]
    assert found.log == ()
    assert seen[0][3] == derive_seed(4, "look")  # the search's noise
    with pytest.raises(ValueError, match="cannot select 3 of 3 prompts"):
        LowestLossPrompts().select(model, PROMPTS, images, 3, seed=0)


def test_a_model_stays_in_its_mode(model: Any, images: list[Tensor]) -> None:
    """Even where something is wrong. Fails where evaluation mode is left behind."""
    model.train()
    with pytest.raises(RuntimeError):
        prompt_losses(model, PROMPTS, [x[:, :, :3, :3] for x in images], 0)
    assert model.training


def test_a_random_set(model: Any, images: list[Tensor]) -> None:
    draws = [RandomPrompts().select(model, PROMPTS, images, 2, seed=s) for s in (0, 0, 1, 2, 3)]
    assert draws[0].index.tolist() == draws[1].index.tolist()
    assert len({tuple(d.index.tolist()) for d in draws}) > 1
    assert draws[0].weights.sum() == 2
    with pytest.raises(ValueError, match="cannot select 0 of 3 prompts"):
        RandomPrompts().select(model, PROMPTS, images, 0, seed=0)
