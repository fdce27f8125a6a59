"""ESD: its target, the noisy images that it draws, and the weights that it trains."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from unlearn_core.data import Concepts, Denoising, ForgetSplit, forget_class, shapes
from unlearn_core.methods import ESD, check_method
from unlearn_core.methods.baselines.esd import esd_target
from unlearn_core.methods.contract import STAND_INS
from unlearn_core.models import ClassToImage, Diffusion, TextConditional, TrainConfig

Golden = Callable[[str], dict[str, Tensor]]
SMALL = TrainConfig(epochs=2, lr=1e-3, batch_size=2, optimizer="adam")


@pytest.fixture(scope="module")
def drawing() -> tuple[TextConditional, ForgetSplit]:
    return STAND_INS["diffusion"]()


def disturbed(model: Diffusion) -> Diffusion:
    """A copy with other weights."""
    other, g = copy.deepcopy(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in other.parameters():
            p += 0.02 * torch.randn(p.shape, generator=g)
    return other


@pytest.mark.parametrize("name", ["esd_1", "esd_2"])
def test_golden(golden: Golden, name: str) -> None:
    """Fails where the target starts from the concept, as in the rewrite of 2025, or is on the
    concept's side of nothing."""
    case = golden(f"realera/{name}")
    target = esd_target(case["in_eps_null"], case["in_eps_c"], case["hp_eta"].item())
    torch.testing.assert_close(target, case["out_paper_target"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["esd_1", "esd_2"])
def test_golden_loss_and_gradient(golden: Golden, name: str) -> None:
    """Fails where errors are summed, or images weigh otherwise: the loss runs on the recorded
    predictions of a model and of an original that are tables."""
    case = golden(f"realera/{name}")
    found = case["in_eps_model"].clone().requires_grad_()

    class Tables:
        def __init__(self, **epsilon: Tensor) -> None:
            self.epsilon = epsilon

        def __call__(self, x_t: Tensor, t: Tensor, condition: list[str]) -> Tensor:
            return self.epsilon[condition[0] or "nothing"]

        def nothing(self, n: int) -> list[str]:
            return [""] * n

    class Given(ESD):
        def drawn(self, model: Any, condition: list[Any]) -> tuple[Tensor, Tensor]:
            return torch.zeros(1), torch.zeros(1)

    original = Tables(nothing=case["in_eps_null"], c=case["in_eps_c"])
    method = Given(eta=case["hp_eta"].item())
    loss = method.loss(["c"], original, Tables(c=found), torch.zeros(len(found)).long())
    torch.testing.assert_close(loss, case["out_paper_loss"], rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(loss, found)
    torch.testing.assert_close(gradient, case["out_paper_grad"], rtol=0, atol=1e-12)


class TestDrawn:
    def test_the_noise_is_that_of_the_step(self, drawing: tuple[TextConditional, Any]) -> None:
        """Along the exact epsilon of one image every x_t is that image with the same noise, at the
        level of its step. Fails where t and x_t are taken from different steps, or t counts down."""
        model = copy.deepcopy(drawing[0])
        image, alphas = torch.rand(3, 4, 8, 8), model.scheduler.alphas_cumprod

        def knows(x_t: Tensor, t: Tensor, step: int) -> Tensor:
            return (x_t - alphas[t].sqrt() * image) / (1 - alphas[t]).sqrt()

        model.guide = lambda condition, guidance: knows  # type: ignore[method-assign]
        levels = set()
        for seed in range(12):
            torch.manual_seed(seed)
            x_t, t = ESD(steps=4).drawn(model, ["a disc"] * 3)
            torch.manual_seed(seed)
            torch.randint(4, ())
            noise = torch.randn(3, 4, 8, 8)
            low = int(t[0]) // 250 * 250
            assert ((low <= t) & (t < low + 250)).all()
            e = knows(noise, torch.tensor(750), 0)
            at = alphas[low].sqrt() * image + (1 - alphas[low]).sqrt() * e
            torch.testing.assert_close(x_t, noise if low == 750 else at, rtol=1e-4, atol=1e-4)
            levels.add(low)
        assert levels == {0, 250, 500, 750}

    def test_the_model_that_is_trained_draws_it(self, drawing: tuple[TextConditional, Any]) -> None:
        """Fails where the original draws, as in the rewrite, or without guidance of 3."""
        model = disturbed(drawing[0])
        torch.manual_seed(1)  # so that a step is done
        x_t, t = ESD(steps=2).drawn(model, ["a disc"])
        torch.manual_seed(1)
        assert int(torch.randint(2, ())) == 1
        noise = torch.randn(1, 4, 8, 8)
        with torch.no_grad():
            steps = model.denoising(noise, model.guide(["a disc"], 3.0), 2)
            expected = next(iter(steps))
        assert torch.equal(x_t, expected)
        assert 0 <= int(t) < 500
        assert not x_t.requires_grad


def test_the_loss_by_hand(drawing: tuple[TextConditional, Any]) -> None:
    """Fails where the model that is trained makes its own target, or sees no concept."""
    original, method = drawing[0], ESD(steps=2, eta=2.0)
    model = disturbed(original)
    prompts = ["a disc", "a photo of a disc"]
    torch.manual_seed(2)
    found = method.loss(prompts, original, model, torch.tensor([1, 0]))
    torch.manual_seed(2)
    condition = [prompts[1], prompts[0]]
    x_t, t = method.drawn(model, condition)
    with torch.no_grad():
        empty, full = original(x_t, t, ["", ""]), original(x_t, t, condition)
        expected = (model(x_t, t, condition) - (empty - 2 * (full - empty))).pow(2).mean()
    torch.testing.assert_close(found, expected)


def test_the_original_stays_beside(drawing: tuple[TextConditional, ForgetSplit]) -> None:
    """Fails where the target moves with the model that is trained."""
    seen: list[dict[str, Tensor]] = []

    class Spy(ESD):
        def loss(self, prompts: Any, original: Any, model: Any, batch: Tensor) -> Tensor:
            assert not original.training
            seen.append(copy.deepcopy(original.state_dict()))
            return super().loss(prompts, original, model, batch)

    model, split = drawing
    Spy(SMALL, steps=2)(model, split)
    assert len(seen) == 2
    for state in seen:
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


OUTSIDE = ("unet.time_embedding.", "unet.conv_norm_out.", "unet.conv_out.")


@pytest.mark.parametrize("which", ["x", "u"])
def test_what_is_trained(drawing: tuple[TextConditional, ForgetSplit], which: str) -> None:
    """Fails where x is keys and values alone, or u has the embedding of time or the output."""
    model, split = drawing
    found = ESD(SMALL, which, steps=2)(model, split)
    changed = {
        name
        for (name, p), q in zip(model.named_parameters(), found.parameters(), strict=True)
        if not torch.equal(p, q)
    }
    names = [name for name, _ in model.named_parameters()]
    if which == "x":
        assert changed == {n for n in names if "attn2" in n}
    else:
        assert changed == {n for n in names if "attn2" not in n and not n.startswith(OUTSIDE)}
    assert all(p.requires_grad for p in found.parameters())


def test_the_target_is_learned(drawing: tuple[TextConditional, ForgetSplit]) -> None:
    """Fails where a step goes up the loss."""
    model, split = drawing
    config = TrainConfig(epochs=40, lr=2e-3, batch_size=4, optimizer="adam")
    method = ESD(config, eta=3.0, steps=2)
    found = method(model, split)
    prompts, batch = split.task.concepts.prompts(), torch.arange(2).repeat(8)

    def error(trained: Diffusion) -> float:
        torch.manual_seed(0)
        return method.loss(prompts, model, trained, batch).item()

    assert error(found) < 0.8 * error(model)


def test_classes() -> None:
    """A model of classes has no cross-attention: everything else can be trained."""
    data = shapes(2, 1, fills=1)
    split = replace(forget_class(data, 3), task=Denoising(Concepts(((3, 4),))))
    model = ClassToImage(10, size=16, widths=(8, 16)).build(0)
    check_method(ESD(SMALL, "u", steps=2), model, split)
    with pytest.raises(ValueError, match="none of the parameters"):
        ESD(SMALL, "x", steps=2)(model, split)


@pytest.mark.parametrize("which", ["x", "u"])
def test_contract(which: str, drawing: tuple[TextConditional, ForgetSplit]) -> None:
    check_method(ESD(SMALL, which, steps=2), *drawing)


@pytest.mark.parametrize("bad", [{"which": "xattn"}, {"steps": 0}])
def test_hyperparameters_that_make_no_sense(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be ('x' or 'u'|at least 1), not"):
        ESD(**bad)
