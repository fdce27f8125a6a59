"""Cross-attention in the open, and the baselines that erase concepts: AC, FMN and SLD."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small import make
from torch import Tensor, nn

from unlearn_core.data import Concepts, Denoising, ForgetSplit, forget_class, shapes
from unlearn_core.methods import METHODS, SLD, AblatingConcepts, ForgetMeNot, Method, check_method
from unlearn_core.methods.baselines.ablating_concepts import draw_images
from unlearn_core.methods.baselines.sld import STRONG, GuidedAway
from unlearn_core.methods.contract import STAND_INS
from unlearn_core.methods.cross_attention_training import (
    attention_maps,
    concept_tokens,
    training_only,
)
from unlearn_core.models import ClassToImage, Recipe, TextConditional, TrainConfig

SMALL = TrainConfig(epochs=2, lr=1e-3, batch_size=2, optimizer="adamw")
FAST: dict[str, Any] = {"train": SMALL, "images": 4, "steps": 2, "guidance": 2.0}
Drawing = tuple[TextConditional, ForgetSplit]


@pytest.fixture(scope="module")
def drawing() -> Drawing:
    return STAND_INS["diffusion"]()


@pytest.fixture(scope="module")
def classes() -> tuple[nn.Module, ForgetSplit]:
    split = replace(forget_class(shapes(2, 1, fills=1), 3), task=Denoising(Concepts(((3, 4),))))
    return ClassToImage(10, size=16, widths=(8, 16)).build(0), split


def batch_of(n: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.rand(n, 1, 16, 16, generator=g) * 2 - 1, torch.tensor([1, 0, 1, 1][:n])


def changed(before: nn.Module, after: nn.Module) -> set[str]:
    pairs = zip(before.named_parameters(), after.parameters(), strict=True)
    return {name for (name, p), q in pairs if not torch.equal(p, q)}


class TestAttentionMaps:
    def test_by_hand(self, drawing: Drawing) -> None:
        """Fails where heads and images are mixed up, or self-attention is taken in."""
        model, _ = drawing
        inputs: dict[str, tuple[Tensor, Tensor]] = {}
        layers = {n: m for n, m in model.named_modules() if n.endswith(".attn2")}
        handles = [
            layer.register_forward_pre_hook(
                lambda m, args, kw, name=name: inputs.update(
                    {name: (args[0], kw["encoder_hidden_states"])}
                ),
                with_kwargs=True,
            )
            for name, layer in layers.items()
        ]
        x_t, t = torch.randn(3, 4, 8, 8), torch.tensor([3, 500, 900])
        prompts = ["a disc", "", "a photo of a ring"]
        with attention_maps(model) as maps:
            model(x_t, t, prompts)
        for handle in handles:
            handle.remove()
        assert maps.keys() == layers.keys()
        assert len(maps) == 4
        for name, found in maps.items():
            layer, (hidden, text) = layers[name], inputs[name]
            q, k = (f(v).unflatten(-1, (layer.heads, -1)) for f, v in
                    ((layer.to_q, hidden), (layer.to_k, text)))  # fmt: skip
            scores = torch.einsum("nphd,nthd->nhpt", q, k) / q.shape[-1] ** 0.5
            torch.testing.assert_close(found, scores.softmax(dim=-1), rtol=1e-4, atol=1e-6)

    def test_what_the_model_predicts_stays(self, drawing: Drawing) -> None:
        model, _ = drawing
        x_t, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 500])
        with torch.no_grad():
            plain = model(x_t, t, ["a disc", ""])
            with attention_maps(model.unet):
                seen = model(x_t, t, ["a disc", ""])
        torch.testing.assert_close(plain, seen, rtol=1e-4, atol=1e-5)

    def test_nothing_is_left_behind(self, drawing: Drawing) -> None:
        """Fails where a layer goes on recording, after an error too."""
        model, _ = drawing
        before = {name: type(p) for name, p in model.unet.attn_processors.items()}
        with pytest.raises(RuntimeError, match="stop"), attention_maps(model) as maps:
            raise RuntimeError("stop")
        assert {name: type(p) for name, p in model.unet.attn_processors.items()} == before
        model(torch.randn(1, 4, 8, 8), torch.tensor([3]), [""])
        assert not maps
        assert not any("get_attention_scores" in vars(m) for m in model.modules())

    def test_adapters_get_gradients(self, drawing: Drawing) -> None:
        """Fails where the projections that an adapter wraps are bypassed."""
        from peft import LoraConfig, inject_adapter_in_model

        model = copy.deepcopy(drawing[0])
        inject_adapter_in_model(LoraConfig(r=1, target_modules=["attn2.to_k"]), model.unet)
        with attention_maps(model) as maps:
            model(torch.randn(1, 4, 8, 8), torch.tensor([3]), ["a disc"])
        sum(m[..., 1].sum() for m in maps.values()).backward()
        ups = [p for n, p in model.named_parameters() if "lora_B" in n]
        assert len(ups) == 4
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in ups)

    def test_without_cross_attention(self, classes: tuple[nn.Module, Any]) -> None:
        with pytest.raises(ValueError, match="no cross-attention"), attention_maps(classes[0]):
            pass


class TestConceptTokens:
    def test_by_hand(self, drawing: Drawing) -> None:
        """Fails where the token that begins a text isn't counted, or the first place is taken alone."""
        prompts = ["a photo of a disc", "a disc on a disc", "a disc"]
        found = concept_tokens(drawing[0].prompts, prompts, ["a disc", "a disc", "disc"])
        assert found.shape == (3, 12)
        assert [row.nonzero()[:, 0].tolist() for row in found] == [[4, 5], [1, 2, 4, 5], [2]]
        ended = concept_tokens(drawing[0].prompts, prompts[:1], ["a disc"], ending=True)
        assert ended[0].nonzero()[:, 0].tolist() == [4, 5, 6]

    def test_padding_that_ends_a_text_is_taken_too(self) -> None:
        """As of Stable Diffusion 1: the text is padded with the token that ends it."""

        def tokenizer(text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": [7, 8]}

        tokenizer.eos_token_id = 9
        ids = torch.tensor([[1, 7, 8, 9, 9, 9]])
        encoder = SimpleNamespace(tokens=lambda _: (ids, ids), tokenizer=tokenizer)
        found = concept_tokens(encoder, ["a disc"], ["a disc"], ending=True)
        assert found.tolist() == [[False, True, True, True, True, True]]

    @pytest.mark.parametrize("prompt", ["a photo of a ring", "of " * 9 + "a disc", ""])
    def test_words_that_are_not_there(self, drawing: Drawing, prompt: str) -> None:
        with pytest.raises(ValueError, match="doesn't hold 'a disc' in whole"):
            concept_tokens(drawing[0].prompts, [prompt], ["a disc"])


def test_training_only_puts_back_what_was() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight.requires_grad_(False)
    with training_only(model, lambda name: name.startswith("1.")):
        assert [n for n, p in model.named_parameters() if p.requires_grad] == ["1.bias"]
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["1.weight"]
    with (
        pytest.raises(ValueError, match="none of the parameters"),
        training_only(model, lambda name: False),
    ):
        pass


class TestAblatingConcepts:
    def test_loss_and_gradient_by_hand(self, drawing: Drawing) -> None:
        """Fails where the target's gradient is let through, or the two prompts are swapped."""
        model, split = drawing
        pairs, batch = split.task.concepts.pairs(), batch_of(2)
        weight = model.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_v.weight
        torch.manual_seed(3)
        found = AblatingConcepts().loss(pairs, model, batch)
        torch.manual_seed(3)
        latents, noise, t = Denoising.noised(model, batch[0])
        x_t = model.add_noise(latents, noise, t)
        wanted = model(x_t, t, ["a shape", "a photo of a shape"]).detach()
        expected = (model(x_t, t, ["a disc", "a photo of a disc"]) - wanted).pow(2).mean()
        torch.testing.assert_close(found, expected)
        (g,), (h,) = (torch.autograd.grad(value, [weight]) for value in (found, expected))
        torch.testing.assert_close(g, h)

    def test_the_original_draws_the_anchors(
        self, drawing: Drawing, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails where the concept's own images are used, or they are drawn while the model changes."""
        asked: list[tuple[list[str], Any]] = []
        plain = TextConditional.sample

        def sample(self: TextConditional, prompts: list[str], *given: Any, **more: Any) -> Tensor:
            asked.append((prompts, copy.deepcopy(self.state_dict())))
            return plain(self, prompts, *given, **more)

        monkeypatch.setattr(TextConditional, "sample", sample)
        model, split = drawing
        AblatingConcepts(**FAST)(model, split)
        ((prompts, state),) = asked
        assert prompts == ["a photo of a shape", "a shape"] * 2
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())

    def test_images_come_with_their_prompts(self, drawing: Drawing) -> None:
        images, which = draw_images(drawing[0], ["a disc", "a ring"], 3, 0, 2, 2.0).tensors
        assert which.tolist() == [0, 1, 0]
        assert images.shape == (3, 1, 16, 16)
        assert not torch.allclose(images[0], images[2])  # not the same noise

    def test_keys_and_values_alone_are_trained(self, drawing: Drawing) -> None:
        model, split = drawing
        found = changed(model, AblatingConcepts(**FAST)(model, split))
        assert found == {
            n
            for n, _ in model.named_parameters()
            if n.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
        }

    def test_the_concept_comes_near_the_anchor(self, drawing: Drawing) -> None:
        model, split = drawing
        config = TrainConfig(epochs=20, lr=1e-3, batch_size=8, optimizer="adamw")
        found = AblatingConcepts(config, images=8, steps=2)(model, split)
        pairs = split.task.concepts.pairs()

        def error(trained: nn.Module) -> float:
            torch.manual_seed(0)
            return AblatingConcepts().loss(pairs, trained, batch_of(4)).item()

        assert error(found) < 0.5 * error(model)

    def test_contract(self, drawing: Drawing) -> None:
        check_method(AblatingConcepts(**FAST), *drawing)


class TestForgetMeNot:
    def test_loss_by_hand(self, drawing: Drawing) -> None:
        """Fails where norms of layers are summed, squares are, or other images' tokens are taken."""
        model, _ = drawing
        prompts, batch = ["a photo of a disc", "a disc"], batch_of(2)
        tokens = concept_tokens(model.prompts, prompts, ["a disc"] * 2)
        torch.manual_seed(3)
        found = ForgetMeNot().loss(prompts, tokens, model, batch)
        torch.manual_seed(3)
        latents, noise, t = Denoising.noised(model, batch[0])
        with attention_maps(model) as maps:
            model(model.add_noise(latents, noise, t), t, ["a disc", "a photo of a disc"])
        squares = sum(
            m[0, :, :, [1, 2]].pow(2).sum() + m[1, :, :, [4, 5]].pow(2).sum() for m in maps.values()
        )
        torch.testing.assert_close(found, squares.sqrt())

    def test_attention_goes_away_from_the_words(self, drawing: Drawing) -> None:
        model, split = drawing
        config = TrainConfig(epochs=10, lr=2e-3, batch_size=4, optimizer="adamw", clip=1.0)
        found = ForgetMeNot(config, images=4, steps=2)(model, split)
        latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))

        def attention(trained: TextConditional, tokens: list[int]) -> float:
            with torch.no_grad(), attention_maps(trained) as maps:
                trained(latents, torch.full((4,), 500), ["a photo of a disc"] * 4)
            return sum(m[..., tokens].mean().item() for m in maps.values())

        for tokens in ([4, 5], [6]):  # the words, and the end
            assert attention(found, tokens) < 0.5 * attention(model, tokens)
        kept = ForgetMeNot(config, images=4, steps=2, ending=False)(model, split)
        assert attention(kept, [4, 5]) < 0.5 * attention(model, [4, 5])
        assert attention(kept, [6]) > 1.2 * attention(found, [6])

    def test_what_is_trained(self, drawing: Drawing) -> None:
        model, split = drawing
        narrow = changed(model, ForgetMeNot(**FAST, cross_attention_only=True)(model, split))
        assert narrow
        assert all(".attn2." in n for n in narrow)
        assert any(".attn2." not in n for n in changed(model, ForgetMeNot(**FAST)(model, split)))

    @pytest.mark.parametrize("only", [True, False])
    def test_contract(self, only: bool, drawing: Drawing) -> None:
        check_method(ForgetMeNot(**FAST, cross_attention_only=only), *drawing)


class TestSLD:
    @pytest.mark.parametrize("setting", [SLD(warmup=2), STRONG])
    def test_against_diffusers(self, drawing: Drawing, setting: SLD) -> None:
        """The authors' code lives on in diffusers. Fails with another sign, threshold, clamp,
        momentum or warm-up, or the three predictions in another order."""
        from diffusers import StableDiffusionPipelineSafe as Theirs

        model = GuidedAway(drawing[0], "a ring", setting)
        g = torch.Generator().manual_seed(0)
        table = torch.randn(9, 3, 2, 4, 8, 8, generator=g) * 0.02  # step, kind, image
        asked: list[Tensor] = []

        def denoise(x_t: Tensor, t: Tensor, embedded: Tensor) -> Tensor:
            asked.append(embedded)
            return table[len(asked) - 1].flatten(0, 1)

        model.denoise = denoise  # type: ignore[method-assign]
        guide, momentum = model.guide(["a disc", "a bar"], 7.5), None
        step_of_theirs = Theirs.perform_safety_guidance
        for step, (empty, prompt, unsafe) in enumerate(table):
            found = guide(torch.zeros(2, 4, 8, 8), torch.tensor(500), step)
            guidance, momentum = step_of_theirs(
                None,
                True,
                momentum,
                prompt - empty,
                [prompt, empty, unsafe],
                step,
                setting.scale,
                setting.warmup,
                setting.threshold,
                setting.momentum_scale,
                setting.momentum,
            )
            torch.testing.assert_close(found, empty + 7.5 * guidance)
        expected = model.embed(["", "", "a disc", "a bar", "a ring", "a ring"])
        assert all(torch.equal(a, expected) for a in asked)

    def test_an_image_does_not_depend_on_its_batch(self, drawing: Drawing) -> None:
        """Fails where momentum is carried from one batch to the next."""
        model = SLD(warmup=0)(*drawing)
        prompts = ["a disc", "a ring", "a disc"]
        whole = model.sample(prompts, 7, steps=3, guidance=2.0)
        split = model.sample(prompts, 7, steps=3, guidance=2.0, batch_size=1)
        torch.testing.assert_close(whole, split, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(whole, drawing[0].sample(prompts, 7, steps=3, guidance=2.0))

    def test_before_the_warm_up_it_is_the_original(self, drawing: Drawing) -> None:
        model = SLD(warmup=3)(*drawing)
        found = model.sample(["a disc"], 7, steps=3, guidance=2.0)
        torch.testing.assert_close(
            found, drawing[0].sample(["a disc"], 7, steps=3, guidance=2.0), rtol=1e-3, atol=1e-4
        )
        assert not changed(drawing[0], model)

    def test_the_names_of_all_concepts(self, drawing: Drawing) -> None:
        model, split = drawing
        two = Concepts((("a disc", ""), ("a ring", "a shape")), templates=("a photo of {}",))
        assert SLD()(model, replace(split, task=Denoising(two))).concept == "a disc, a ring"

    def test_contract(self, drawing: Drawing) -> None:
        check_method(SLD(), *drawing)


@pytest.mark.parametrize("method", [AblatingConcepts(**FAST), ForgetMeNot(**FAST), SLD()])
def test_a_model_of_classes(method: Method, classes: tuple[nn.Module, ForgetSplit]) -> None:
    with pytest.raises(ValueError, match=r"none of the parameters|model of texts"):
        method(*classes)


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (AblatingConcepts, {"images": 0}),
        (ForgetMeNot, {"steps": 0}),
        (SLD, {"warmup": -1}),
        (SLD, {"momentum": 1.0}),
    ],
)
def test_hyperparameters_that_make_no_sense(kind: type[Method], bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be (at least [01]|in \[0, 1\)), not"):
        kind(**bad)


@pytest.mark.filterwarnings("ignore::unlearn_core.models.PrecisionWarning")
@pytest.mark.parametrize(
    "name",
    [
        name
        for name, cls in METHODS.items()
        if "diffusion" in cls.works_on and "fresh_model" not in cls.needs
    ],
)
def test_weights_in_half_precision(name: str, recipe: Recipe) -> None:
    """Fails where what a method hands to the UNet is in another precision than the UNet."""
    model, split = STAND_INS["diffusion"]()
    model.unet.to(torch.bfloat16)
    made = make(METHODS[name], recipe)(model, split)
    assert {p.dtype for p in made.unet.parameters()} == {torch.bfloat16}
    assert made.sample(["a disc"], seed=0, steps=2).isfinite().all()
