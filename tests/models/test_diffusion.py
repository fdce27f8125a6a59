"""Diffusion models: what noise is predicted from, and what is drawn."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

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
from unlearn_core.models.diffusion import Autoencoder, Fold

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


class TestAutoencoder:
    def test_no_more_than_eight_are_decoded_at_a_time(self) -> None:
        sizes = []

        class Doubles(nn.Module):
            dtype, config = torch.float64, SimpleNamespace(scaling_factor=0.5)

            def decode(self, latents: Tensor) -> Any:
                sizes.append(len(latents))
                return SimpleNamespace(sample=latents)

        latents = torch.randn(18, 4, 2, 2)
        found = Autoencoder(Doubles()).decode(latents)
        assert sizes == [8, 8, 2]
        assert torch.equal(found, 2 * latents)


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
        x, _ = captioned_shapes(1, 1).train.batch_of([0, 1])
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
        batch = data.batch_of(list(range(len(data))))
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


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A Stable Diffusion of 16 by 16 pixels, drawn; its weights are large, so that prompts matter."""
    from diffusers import StableDiffusionPipeline

    from unlearn_core.replication.rehearsal import stable_diffusion

    folder = tmp_path_factory.mktemp("pipeline")
    stable_diffusion(folder)
    made = StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, feature_extractor=None, image_encoder=None
    )
    with torch.no_grad():
        for p in made.unet.parameters():
            p *= 1.5
    made.set_progress_bar_config(disable=True)
    return made


#: Schedules that draw one image of its noise; those of `DRAWN` draw more noise on the way.
SCHEDULES = {
    "DDIMScheduler": {},
    "DDIMScheduler, clipped": {"clip_sample": True},
    "PNDMScheduler": {"skip_prk_steps": True},
    "EulerDiscreteScheduler": {},
    "LMSDiscreteScheduler": {},
    "HeunDiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {},
    "UniPCMultistepScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "DDPMScheduler": {"clip_sample": False},
}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def with_schedule(pipeline: Any, name: str, **options: Any) -> Any:
    import diffusers

    scheduler = getattr(diffusers, name.partition(",")[0])(**BETAS, **options)
    made = type(pipeline)(**{**pipeline.components, "scheduler": scheduler})
    made.set_progress_bar_config(disable=True)
    return made


PROMPTS = ["a cat", "a photo of a dog", ""]


def drawn_by(pipeline: Any, noise: Tensor, seed: int, steps: int) -> Tensor:
    """What a pipeline draws from the noise, and from what the model draws on the way."""
    from unlearn_core.seeding import derive_seed

    draws = [
        torch.Generator().manual_seed(derive_seed(seed, "steps", i)) for i in range(len(PROMPTS))
    ]
    said = pipeline(
        PROMPTS,
        num_inference_steps=steps,
        guidance_scale=3.0,
        latents=noise.to(pipeline.unet.dtype),
        generator=draws,
        output_type="pt",
    )
    return 2 * said.images.float() - 1


class TestPipelines:
    @pytest.mark.parametrize("schedule", SCHEDULES)
    def test_it_draws_what_the_pipeline_draws(self, pipeline: Any, schedule: str) -> None:
        """Fails where another schedule draws, latents are clipped, or noise is scaled otherwise."""
        own = with_schedule(pipeline, schedule, **SCHEDULES[schedule])
        model = TextConditional.from_pipeline(own)
        found = model.sample(PROMPTS, seed=5, steps=6, guidance=3.0, batch_size=2)
        assert found.shape == (3, 3, 16, 16)
        assert not torch.allclose(found[0], found[1], atol=1e-2)
        expected = drawn_by(own, model.noise(3, 5), 5, 6)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_in_half_precision(self, pipeline: Any, dtype: torch.dtype) -> None:
        own = copy.deepcopy(with_schedule(pipeline, "DDIMScheduler", clip_sample=False)).to(dtype)
        own.set_progress_bar_config(disable=True)
        model = TextConditional.from_pipeline(own)
        found = model.sample(PROMPTS, seed=5, steps=3, guidance=3.0)
        assert {p.dtype for p in model.parameters()} == {dtype}
        expected = drawn_by(own, model.noise(3, 5), 5, 3)
        assert (found - expected).abs().mean() < 0.02
        assert found.dtype == torch.float32

    @pytest.mark.parametrize("schedule", SCHEDULES)
    def test_noise_is_added_as_in_training(self, pipeline: Any, schedule: str) -> None:
        """Fails where Euler's own, which counts in sigmas, is taken."""
        model = TextConditional.from_pipeline(
            with_schedule(pipeline, schedule, **SCHEDULES[schedule])
        )
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        kept = (1 - betas).cumprod(0)[[10, 999]].view(2, 1, 1, 1)
        x, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
        found = model.add_noise(x, noise, torch.tensor([10, 999]))
        torch.testing.assert_close(found, kept.sqrt() * x + (1 - kept).sqrt() * noise)

    def test_what_a_training_draws_clips_nothing(self, pipeline: Any) -> None:
        """Fails where DDIM's own default, to clip latents to [-1, 1], takes the place of a word that
        Euler's configuration doesn't say."""
        model = TextConditional.from_pipeline(with_schedule(pipeline, "EulerDiscreteScheduler"))
        assert not model._ddim.config.clip_sample
        target, kept = torch.full((1, 4, 8, 8), 3.0), model._ddim.alphas_cumprod

        def guide(x_t: Tensor, t: Tensor, step: int) -> Tensor:
            return (x_t - kept[int(t)].sqrt() * target) / (1 - kept[int(t)]).sqrt()

        *_, last = model.denoising(torch.randn(1, 4, 8, 8), guide, 20)
        assert last.mean() > 2.5

    def test_there_and_back(self, pipeline: Any) -> None:
        model = TextConditional.from_pipeline(pipeline)
        back = model.to_pipeline()
        back.set_progress_bar_config(disable=True)
        assert type(back) is type(pipeline)
        noise = model.noise(3, 1)
        assert torch.equal(drawn_by(back, noise, 0, 3), drawn_by(pipeline, noise, 0, 3))
        assert back.scheduler is not pipeline.scheduler

    def test_a_method_in_between(self, pipeline: Any, tmp_path: Any) -> None:
        """Fails where the pipeline that was given is changed, or the one that is made is not."""
        from diffusers import StableDiffusionPipeline

        from unlearn_core.data import Concepts, ForgetSplit
        from unlearn_core.methods import UCE

        before = {k: v.clone() for k, v in pipeline.unet.state_dict().items()}
        model = TextConditional.from_pipeline(pipeline)
        request = Concepts((("cat", "dog"),), keep=("",), templates=("a {}",))
        made = UCE()(model, ForgetSplit("cat", Denoising(request), (), ()))
        assert all(torch.equal(v, before[k]) for k, v in pipeline.unet.state_dict().items())
        made.to_pipeline().save_pretrained(tmp_path)
        loaded = StableDiffusionPipeline.from_pretrained(tmp_path)
        loaded.set_progress_bar_config(disable=True)
        found = drawn_by(loaded, model.noise(3, 2), 2, 4)
        expected = made.sample(PROMPTS, seed=2, steps=4, guidance=3.0)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
        plain = model.sample(PROMPTS, seed=2, steps=4, guidance=3.0)
        assert not torch.allclose(expected[0], plain[0], atol=1e-3)

    def test_a_training_in_half_precision(self, pipeline: Any) -> None:
        own = copy.deepcopy(pipeline.unet).to(torch.bfloat16)
        parts = {**pipeline.components, "unet": own}
        model = TextConditional.from_pipeline(type(pipeline)(**parts))
        loss = Denoising().loss(model, (torch.rand(2, 3, 16, 16), ["a cat", "a dog"]))
        loss.backward()
        assert loss.dtype == torch.float32
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


class TestPipelinesOutOfScope:
    def changed(self, pipeline: Any, **parts: Any) -> Any:
        return type(pipeline)(**{**pipeline.components, **parts})

    def test_no_pipeline(self, pipeline: Any) -> None:
        with pytest.raises(
            TypeError, match="a pipeline of diffusers is needed, not one of type UNet"
        ):
            TextConditional.from_pipeline(pipeline.unet)

    def test_another_prediction(self, pipeline: Any) -> None:
        own = with_schedule(pipeline, "DDIMScheduler", prediction_type="v_prediction")
        with pytest.raises(ValueError, match="epsilon is predicted, not 'v_prediction'"):
            TextConditional.from_pipeline(own)

    def test_flow_matching(self, text: TextConditional) -> None:
        from diffusers import FlowMatchEulerDiscreteScheduler

        with pytest.raises(ValueError, match=r"FlowMatch.* has no betas: flow matching is out"):
            Diffusion(text.unet, FlowMatchEulerDiscreteScheduler(), Fold(2))

    def test_two_text_encoders(self, pipeline: Any) -> None:
        from diffusers import StableDiffusionXLPipeline
        from transformers import CLIPTextModelWithProjection

        second = CLIPTextModelWithProjection(pipeline.text_encoder.config)
        own = {
            k: pipeline.components[k]
            for k in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
        }
        xl = StableDiffusionXLPipeline(
            **own, text_encoder_2=second, tokenizer_2=pipeline.tokenizer, add_watermarker=False
        )
        with pytest.raises(
            TypeError, match=r"XLPipeline has a second text encoder \(text_encoder_2"
        ):
            TextConditional.from_pipeline(xl)

    def test_no_unet(self, pipeline: Any) -> None:
        from diffusers import DDIMPipeline

        own = DDIMPipeline(pipeline.unet, pipeline.scheduler)
        with pytest.raises(TypeError, match="DDIMPipeline has no vae and no text_encoder"):
            TextConditional.from_pipeline(own)

    def test_a_unet_that_sees_more(self, pipeline: Any) -> None:
        from diffusers import UNet2DConditionModel

        config = {k: v for k, v in pipeline.unet.config.items() if not k.startswith("_")}
        more = UNet2DConditionModel(**{**config, "class_embed_type": "timestep"})
        with pytest.raises(TypeError, match=r"more than an image, a step and a text \(class_embed"):
            TextConditional.from_pipeline(self.changed(pipeline, unet=more))
        wide = UNet2DConditionModel(**{**config, "in_channels": 9})
        with pytest.raises(TypeError, match="takes 9 channels, and the VAE gives 4: it draws from"):
            TextConditional.from_pipeline(self.changed(pipeline, unet=wide))

    def test_no_way_back(self, text: TextConditional, pipeline: Any) -> None:
        from unlearn_core.methods.baselines.sld import STRONG, GuidedAway

        with pytest.raises(TypeError, match="a pipeline has a VAE"):
            text.to_pipeline()
        guided = GuidedAway(TextConditional.from_pipeline(pipeline), "a cat", STRONG)
        with pytest.raises(TypeError, match="GuidedAway draws as it does by more than its weights"):
            guided.to_pipeline()
