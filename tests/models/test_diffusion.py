"""Diffusion models: what noise is predicted from, and what is drawn."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from unlearn_core.data import Denoising, captioned_shapes
from unlearn_core.models import (
    ClassConditional,
    ClassToImage,
    Diffusion,
    Recipe,
    TextConditional,
    TextToImage,
    TrainConfig,
)
from unlearn_core.models.diffusion import Fold

TEXT = TextToImage(size=16, widths=(8, 16))
CLASS = ClassToImage(3, size=16, widths=(8, 16))


@pytest.fixture(scope="module")
def text() -> TextConditional:
    return TEXT.build(0)


@pytest.fixture(scope="module")
def classes() -> ClassConditional:
    return CLASS.build(0)


class TestFold:
    def test_exactly_invertible(self) -> None:
        x = torch.randn(2, 3, 8, 8)
        folded = Fold(2).encode(x)
        assert folded.shape == (2, 12, 4, 4)
        assert torch.equal(Fold(2).decode(folded), x)


class TestPrompts:
    def test_padding_is_zero_and_text_is_of_unit_scale(self, text: TextConditional) -> None:
        states = text.embed(["a photo of a disc", ""])
        _, mask = text.prompts.tokens(["a photo of a disc", ""])
        assert states.shape == (2, 12, 384)
        assert mask.sum(dim=1).tolist() == [7, 2]  # with the tokens that begin and end
        assert (states[mask == 0] == 0).all()
        assert 0.7 < states[mask == 1].std() < 1.3

    def test_a_prompt_is_read_once(self, text: TextConditional) -> None:
        seen = []
        handle = text.prompts.model.register_forward_hook(lambda m, a, o: seen.append(1))
        first = text.embed(["a very odd prompt", "a very odd prompt"])
        again = text.embed(["a very odd prompt"])
        handle.remove()
        assert len(seen) == 1
        assert torch.equal(first[0], first[1])
        assert torch.equal(first[0], again[0])

    def test_the_encoder_is_no_part_of_the_model(self, text: TextConditional) -> None:
        """Fails where 22 million frozen weights are copied, saved and masked with the UNet's."""
        assert all(name.startswith("unet.") for name in text.state_dict())
        assert copy.deepcopy(text).prompts is text.prompts


class TestConditions:
    def test_they_matter_and_keep_their_places(self, text: TextConditional) -> None:
        x, t = torch.randn(2, 4, 8, 8), torch.tensor([10, 500])
        with torch.no_grad():
            both = text(x, t, ["a disc", "a ring"])
            swapped = text(x, t, ["a ring", "a disc"])
            alone = text(x[1:], t[1:], ["a ring"])
        assert not torch.allclose(both, swapped)
        torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)

    def test_the_last_class_says_nothing(self, classes: ClassConditional) -> None:
        assert classes.classes == 3
        assert classes.nothing(2).tolist() == [3, 3]


class TestGuidance:
    @pytest.mark.parametrize("kind", ["text", "classes"])
    def test_by_hand(self, kind: str, request: pytest.FixtureRequest) -> None:
        """Fails in the other convention, (1 + w) eps_c - w eps_0, and with the halves swapped."""
        model: Diffusion = request.getfixturevalue(kind)
        condition: Any = ["a disc", "a ring"] if kind == "text" else [0, 2]
        x, t = torch.randn(2, 4, 8, 8), torch.tensor(300)
        with torch.no_grad():
            full = model(x, t.expand(2), condition)
            empty = model(x, t.expand(2), model.nothing(2))
            one, three = (model.guide(condition, s)(x, t, 0) for s in (1.0, 3.0))
        torch.testing.assert_close(one, full, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(three, empty + 3 * (full - empty), rtol=1e-4, atol=1e-5)


class TestSampling:
    def test_an_image_does_not_depend_on_its_batch(self, text: TextConditional) -> None:
        prompts = ["a disc", "a ring", "a bar"]
        whole = text.sample(prompts, 7, steps=3, guidance=2.0)
        split = text.sample(prompts, 7, steps=3, guidance=2.0, batch_size=2)
        assert whole.shape == (3, 1, 16, 16)
        assert whole.abs().max() <= 1
        torch.testing.assert_close(whole, split, rtol=1e-3, atol=1e-4)
        fewer = text.sample(prompts[:2], 7, steps=3, guidance=2.0)
        torch.testing.assert_close(whole[:2], fewer, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(whole, text.sample(prompts, 8, steps=3, guidance=2.0))

    @pytest.mark.parametrize("size", [2, 14, 16])
    def test_the_noise_of_an_image_is_a_matter_of_its_number_alone(self, size: int) -> None:
        """Fails where all images' numbers are drawn as one: where they are no multiple of 16, or fewer
        than 16, the last ones change with the number of images."""
        model = ClassToImage(3, size=size, fold=2, widths=(16,)).build(0)
        whole = model.noise(5, 7)
        assert whole.shape == (5, *model.shape)
        for n in range(5):
            assert torch.equal(model.noise(n, 7), whole[:n])
        assert whole.unique().numel() == whole.numel()
        assert abs(float(model.noise(2000, 7).std()) - 1) < 0.05

    def test_noise_in_whole_blocks_is_what_pytorch_draws(self, classes: ClassConditional) -> None:
        """Fails where images that were drawn before would come from other noise."""
        draw = torch.Generator().manual_seed(7)
        expected = torch.randn((3, *classes.shape), generator=draw)
        assert torch.equal(classes.noise(3, 7), expected)

    def test_nothing_is_drawn_from_the_global_state(self, classes: ClassConditional) -> None:
        before = torch.get_rng_state()
        classes.sample([0, 1], 0, steps=2, guidance=1.0)
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_model_that_knows_the_noise_gets_the_image_back(
        self, classes: ClassConditional
    ) -> None:
        """DDIM follows the exact epsilon of one image to that image."""
        target = torch.rand(1, 1, 16, 16) * 2 - 1
        latents = classes.codec.encode(target)
        alphas = classes.scheduler.alphas_cumprod

        def knows(x_t: Tensor, t: Tensor, step: int) -> Tensor:
            a = alphas[t]
            return (x_t - a.sqrt() * latents) / (1 - a).sqrt()

        *_, last = classes.denoising(torch.randn(1, 4, 8, 8), knows, 20)
        torch.testing.assert_close(classes.codec.decode(last), target, rtol=1e-3, atol=1e-3)

    def test_no_image(self, text: TextConditional) -> None:
        assert len(text.sample([], 0, steps=2)) == 0


class TestLearning:
    def test_the_loss_is_that_of_the_noise(self, text: TextConditional) -> None:
        """By hand; fails where the image, or the noise of another step, is predicted."""
        x, _ = captioned_shapes(1, 1).train.__getitems__([0, 1])
        torch.manual_seed(3)
        found = Denoising().loss(text, (x, ["a disc", "a ring"]))
        torch.manual_seed(3)
        latents, noise, t = Denoising.noised(text, x)
        a = text.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        x_t = a.sqrt() * latents + (1 - a).sqrt() * noise
        expected = (text(x_t, t, ["a disc", "a ring"]) - noise).pow(2).mean()
        torch.testing.assert_close(found, expected)

    @pytest.mark.parametrize("kind", ["text", "classes"])
    def test_conditions_are_left_out_in_training_alone(
        self, kind: str, request: pytest.FixtureRequest
    ) -> None:
        """Fails where all conditions of a batch are left out together, or in evaluation."""
        model = copy.deepcopy(request.getfixturevalue(kind))
        model.drop = 0.5
        condition: Any = ["a ring"] * 60 if kind == "text" else [1] * 60
        full, empty = model.embed(condition), model.embed(model.nothing(60))
        assert torch.equal(model.eval().embed_dropping(condition), full)
        torch.manual_seed(0)
        found = model.train().embed_dropping(condition)
        out = torch.tensor([torch.equal(a, b) for a, b in zip(found, empty, strict=True)])
        assert 15 < out.sum() < 45
        assert torch.equal(found[~out], full[~out])

    def test_a_recipe_learns(self) -> None:
        data = captioned_shapes(per_class=8, test_per_class=1).train
        config = TrainConfig(epochs=6, lr=2e-3, batch_size=16, optimizer="adamw")
        model = Recipe(TEXT, Denoising(), config).fit(data, 0)
        batch = data.__getitems__(list(range(len(data))))
        torch.manual_seed(0)
        before = Denoising().loss(TEXT.build(0), batch)
        torch.manual_seed(0)
        after = Denoising().loss(model, batch)
        assert after < 0.8 * before


@pytest.mark.parametrize("spec", [TextToImage, lambda **k: ClassToImage(2, **k)])
def test_a_size_that_does_not_fold(spec: Any) -> None:
    with pytest.raises(ValueError, match="can't be folded"):
        spec(size=30, fold=2, widths=(8, 8))


def test_only_epsilon(text: TextConditional) -> None:
    from diffusers import DDIMScheduler

    with pytest.raises(ValueError, match="epsilon is predicted"):
        Diffusion(text.unet, DDIMScheduler(prediction_type="v_prediction"), Fold(2))
