"""MACE: its steps, what it presses down, and what it leaves alone; its recorded numbers are in
``test_closed_form``."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from unlearn_core.data import Concepts, Denoising, ForgetSplit, captioned_shapes, forget_concepts
from unlearn_core.methods import MACE, UCE, check_method
from unlearn_core.methods.baselines import mace as module
from unlearn_core.methods.baselines.mace import focal_weights, noised
from unlearn_core.methods.cross_attention import projections, solve
from unlearn_core.methods.cross_attention_training import concept_tokens
from unlearn_core.models import ClassToImage, TextConditional, TextToImage, TrainConfig
from unlearn_core.seeding import seeded

LORA = TrainConfig(epochs=2, lr=1e-3, batch_size=1, optimizer="adamw", max_steps=2)
PROMPTS = ["a photo of a ring", "see a ring"]


@pytest.fixture(scope="module")
def model() -> TextConditional:
    return TextToImage(size=16, widths=(8, 16)).build(0)


@pytest.fixture(scope="module")
def split() -> ForgetSplit:
    concepts = Concepts((("a ring", "one shape"),), ("", "a photo of a square"), ("a photo of {}",))
    return forget_concepts(captioned_shapes(4, 1), concepts)


def looked_at(model: TextConditional, x_t: Tensor, t: Tensor, prompts: list[str]) -> list[Tensor]:
    """The attention probabilities, (n, heads, pixels, tokens) a layer, from queries and keys."""
    seen: dict[str, dict[str, Tensor]] = {}
    layers = {n: m for n, m in model.named_modules() if n.endswith("attn2")}
    hooks = []
    for name, layer in layers.items():
        seen[name] = {}
        for part in ("to_q", "to_k"):

            def keep(_: Any, __: Any, out: Tensor, name: str = name, part: str = part) -> None:
                seen[name][part] = out

            hooks.append(getattr(layer, part).register_forward_hook(keep))
    model(x_t, t, prompts)
    for hook in hooks:
        hook.remove()
    found = []
    for name, layer in layers.items():
        q, k = (seen[name][p].unflatten(2, (layer.heads, -1)) for p in ("to_q", "to_k"))
        scores = torch.einsum("nphd,nthd->nhpt", q, k) / q.shape[-1] ** 0.5
        found.append(scores.softmax(dim=-1))
    return found


class TestSteps:
    def test_they_are_focal(self, model: TextConditional) -> None:
        """Fails where steps are drawn uniformly, or around others than 200 and 400."""
        x = torch.zeros(4000, 1, 16, 16)
        with seeded(0, "steps"):
            x_t, t = noised(model, x, True)
            _, plain = noised(model, x, False)
        p = focal_weights(1000) / focal_weights(1000).sum()
        for first, last in ((150, 250), (250, 350), (350, 450)):
            share = ((t >= first) & (t < last)).float().mean()
            assert share == pytest.approx(p[first:last].sum().item(), abs=0.03)
        assert ((plain >= 200) & (plain < 400)).float().mean() == pytest.approx(0.2, abs=0.03)
        assert x_t.shape == (4000, 4, 8, 8)

    def test_the_noise_is_that_of_the_step(self, model: TextConditional) -> None:
        """Fails where images are noised at the steps that were drawn before."""
        with seeded(0, "steps"):
            x_t, t = noised(model, torch.ones(50, 1, 16, 16), True)
        kept = model.scheduler.alphas_cumprod[t]
        torch.testing.assert_close(x_t.mean((1, 2, 3)), kept.sqrt(), rtol=0, atol=0.35)
        spread = (x_t - kept.sqrt()[:, None, None, None]).std((1, 2, 3))
        torch.testing.assert_close(spread, (1 - kept).sqrt(), rtol=0, atol=0.15)


class TestSuppression:
    def test_by_hand(self, model: TextConditional) -> None:
        """Fails where the norm is squared, or taken over all layers at once, an image has another's
        words, or the token that ends a text is left out."""
        tokens = concept_tokens(model.prompts, PROMPTS, ["a ring"] * 2, ending=True)
        # [CLS] a photo of a ring [SEP] and [CLS] see a ring [SEP]
        assert [row.nonzero()[:, 0].tolist() for row in tokens] == [[4, 5, 6], [2, 3, 4]]
        x, which = torch.rand(2, 1, 16, 16), torch.tensor([1, 0])
        with seeded(2, "x"):
            found = MACE().suppression(PROMPTS, tokens, model, (x, which))
        with seeded(2, "x"):
            x_t, t = noised(model, x, True)
        expected = sum(
            torch.cat([a[0, :, :, 2:5].flatten(), a[1, :, :, 4:7].flatten()]).square().sum().sqrt()
            for a in looked_at(model, x_t, t, ["see a ring", "a photo of a ring"])
        )
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    def test_whose_attention_it_is(
        self, model: TextConditional, split: ForgetSplit, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails where the token that ends a text is spared, or the words around are not."""
        seen = []

        def keep(_: Any, __: Any, loss: Any, *___: Any) -> dict[str, Tensor]:
            seen.append(loss.args)
            return {n: torch.zeros_like(p) for n, p in projections(model).items()}

        monkeypatch.setattr(module, "low_rank", keep)
        MACE(images=2, steps=2)(model, split)
        ((prompts, tokens),) = seen
        assert prompts == ["a photo of a ring"]
        assert tokens.nonzero()[:, 1].tolist() == [4, 5, 6]

    def test_training_lowers_it(self, model: TextConditional, split: ForgetSplit) -> None:
        """Fails where the adapters get no gradient, or are not added."""
        config = replace(LORA, epochs=15, lr=5e-3, max_steps=30)
        closed = MACE(stages="closed_form")(model, split)
        found = MACE(train=config, images=2, steps=2)(model, split)
        x_t = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        t = torch.full((4,), 300)

        def share(m: TextConditional) -> float:
            with torch.no_grad():
                maps = looked_at(m, x_t, t, ["a photo of a ring"] * 4)
            return sum(a[..., 4:6].sum(-1).mean().item() for a in maps)

        assert share(found) < 0.75 * share(closed)


class TestRefinement:
    def test_it_is_the_least_squares_of_the_words_around(
        self, model: TextConditional, split: ForgetSplit
    ) -> None:
        """Fails where the concept's own rows are edited, or kept rows have another weight."""
        found = MACE(stages="closed_form", ridge=0.3, keep_scale=0.2)(model, split)
        states = model.prompts(["a photo of a ring", "a photo of one shape", ""])
        kept = model.prompts(["a photo of a square"])[0]
        around = [0, 1, 2, 3, 6]  # [CLS] a photo of | a ring | [SEP]
        rows = torch.cat([states[0][around], states[2][:2], kept[:7]])
        instead = torch.cat([states[1][around], states[2][:2], kept[:7]])
        scale = torch.tensor([1.0] * 5 + [0.2] * 9).double()
        for n, w in projections(model).items():
            expected = solve(w.detach(), rows, instead.double() @ w.double().T, scale, 0.3)
            torch.testing.assert_close(
                projections(found)[n].double(), expected.detach(), rtol=0, atol=1e-5
            )

    def test_the_concept_s_words_are_left_alone(
        self, model: TextConditional, split: ForgetSplit
    ) -> None:
        """Nearer to what they gave than what UCE makes of them."""
        e = model.prompts(["a photo of a ring"])[0][4:6]

        def moved(changed: TextConditional) -> float:
            pairs = zip(projections(changed).values(), projections(model).values(), strict=True)
            return sum((e @ (a - b).T).norm().item() for a, b in pairs)

        refined = MACE(stages="closed_form", ridge=0.5, keep_scale=1.0)(model, split)
        assert moved(refined) < 0.75 * moved(UCE(keep_scale=1.0)(model, split))


class TestFusion:
    def test_of_one_concept(
        self, model: TextConditional, split: ForgetSplit, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails where the LoRA is added to all text, or the fusion starts from another matrix than
        the refined one."""
        draw = torch.Generator().manual_seed(0)
        added = {
            n: 0.1 * torch.randn(p.shape, generator=draw) for n, p in projections(model).items()
        }
        monkeypatch.setattr(module, "low_rank", lambda *_: added)
        refined = MACE(stages="closed_form", ridge=0.3, keep_scale=0.2)(model, split)
        found = MACE(ridge=0.3, keep_scale=0.2, images=2, steps=2)(model, split)
        states = model.prompts(["a photo of a ring", "a photo of a square", ""]).double()
        e, kept = states[0][:7], torch.cat([states[1][:7], states[2][:2]])
        for n, p in projections(found).items():
            w, before = (projections(m)[n].detach().double() for m in (model, refined))
            system = 0.3 * torch.eye(w.shape[1]).double()
            aims = 0.3 * before
            for row in e:
                system += torch.outer(row, row)
                aims += torch.outer((before + added[n].double()) @ row, row)
            for row in kept:
                system += 0.2 * torch.outer(row, row)
                aims += 0.2 * torch.outer(w @ row, row)
            expected = aims @ torch.linalg.inv(system)
            torch.testing.assert_close(p.double(), expected, rtol=0, atol=1e-5)


def test_the_original_draws(
    model: TextConditional, split: ForgetSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where images are drawn after the refinement."""
    asked, draw = [], module.draw_images

    def checked(drawing: TextConditional, prompts: list[str], *rest: Any) -> Any:
        asked.extend(prompts)
        for n, p in projections(drawing).items():
            assert torch.equal(p, projections(model)[n])
        return draw(drawing, prompts, *rest)

    monkeypatch.setattr(module, "draw_images", checked)
    MACE(train=LORA, images=2, steps=2)(model, split)
    assert asked == ["a photo of a ring"]


def test_two_concepts(model: TextConditional, split: ForgetSplit) -> None:
    """Fails where a second LoRA can't be put on."""
    concepts = Concepts((("a ring", "a shape"), ("a disc", "a square")), ("",))
    method = MACE(train=LORA, images=2, steps=2, keep_scale=1.0)
    check_method(method, model, replace(split, task=Denoising(concepts)))


@pytest.mark.parametrize("method", [MACE(), UCE()], ids=lambda m: m.name)
def test_a_model_of_classes(method: Any, split: ForgetSplit) -> None:
    classes = ClassToImage(10, size=16, widths=(8, 16)).build(0)
    with pytest.raises(ValueError, match="no cross-attention"):
        method(copy.deepcopy(classes), split)


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (MACE, {"stages": "lora"}),
        (MACE, {"ridge": -1.0}),
        (MACE, {"rank": 0}),
        (MACE, {"images": 0}),
        (UCE, {"release": "2024"}),
        (UCE, {"technique": "both"}),
        (UCE, {"lam": -1.0}),
    ],
)
def test_bad_settings(kind: Any, bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        kind(**bad)
