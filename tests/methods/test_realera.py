"""RealEra: its sampler, the rows of its closed form, and the loss of its low-rank stage."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from unlearn_core.data import Concepts, Denoising, ForgetSplit, captioned_shapes, forget_concepts
from unlearn_core.methods import UCE, RealEra, check_method
from unlearn_core.methods import realera as module
from unlearn_core.methods.baselines.mace import noised
from unlearn_core.methods.cross_attention import projections, shared_rows, solve, text_rows, whole
from unlearn_core.methods.realera import disturbed, mine
from unlearn_core.models import TextConditional, TextToImage, TrainConfig
from unlearn_core.seeding import generator, seeded

LORA = TrainConfig(epochs=2, lr=1e-3, batch_size=1, optimizer="adamw", max_steps=2)
SMALL: dict[str, Any] = {"train": LORA, "images": 2, "steps": 2, "step_near": 2, "step_beyond": 1}


@pytest.fixture(scope="module")
def model() -> TextConditional:
    return TextToImage(size=16, widths=(8, 16)).build(0)


@pytest.fixture(scope="module")
def split() -> ForgetSplit:
    concepts = Concepts(
        (("a ring", "a shape"),),
        ("", "a photo of a square", "a photo of a shape"),
        ("a photo of {}",),
    )
    return forget_concepts(captioned_shapes(4, 1), concepts)


def originals(model: TextConditional) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in projections(model).items()}


class TestSampler:
    def test_the_rates_are_the_sheet_s(self) -> None:
        """Of Stable Diffusion's 77 rows of 768, at its radius of 400: 0.27 near, 0.44 beyond. Fails
        where noise is drawn a row, or without its direction away from the concept."""
        e = torch.randn(77, 768, generator=torch.Generator().manual_seed(0))
        _, cosine = disturbed(e, 200, 1.16, torch.Generator().manual_seed(1))
        near = ((cosine >= 0.5) & (cosine < 0.9)).float().mean()
        assert near == pytest.approx(0.27, abs=0.06)
        assert (cosine < 0.5).float().mean() == pytest.approx(0.44, abs=0.07)

    def test_so_are_those_of_the_small_encoder(self, model: TextConditional) -> None:
        """Fails where rows that fill up count, or states are not of unit scale."""
        e = text_rows(model.prompts, "a photo of a ring")
        assert e.std() == pytest.approx(1, abs=0.15)
        _, cosine = disturbed(e, 1000, 1.16, torch.Generator().manual_seed(1))
        near = ((cosine >= 0.5) & (cosine < 0.9)).float().mean()
        assert 0.2 < near < 0.4

    def test_the_sample_lies_on_the_way_to_noise(self) -> None:
        """(1 - a) e + a v, a up to the radius. Fails where the radius is not in units of |v - e|."""
        e = torch.randn(40, 100, generator=torch.Generator().manual_seed(0)).double()
        found, _ = disturbed(e, 200, 0.8, torch.Generator().manual_seed(1))
        v = torch.randn(200, 4000, generator=torch.Generator().manual_seed(1)).double()
        away, moved = v - e.flatten(), found - e.flatten()
        a = moved.norm(dim=1) / away.norm(dim=1)
        torch.testing.assert_close(moved, a[:, None] * away, rtol=0, atol=1e-9)
        assert 0.75 < a.max() < 0.85
        assert a.min() < 0.05
        assert a.mean() == pytest.approx(0.4, abs=0.06)

    def test_what_is_accepted(self) -> None:
        e = torch.randn(12, 384, generator=torch.Generator().manual_seed(0))
        draw = torch.Generator().manual_seed(1)
        near = mine(e, 200, 0.5, 0.9, 1.16, draw)
        cosine = torch.cosine_similarity(near.flatten(1), e.flatten()[None])
        assert near.shape == (200, 12, 384)
        assert cosine.min() >= 0.5
        assert cosine.max() < 0.9
        far = mine(e, 50, -1.0, 0.5, 1.16, draw)
        assert torch.cosine_similarity(far.flatten(1), e.flatten()[None]).max() < 0.5

    def test_a_radius_that_reaches_nothing(self) -> None:
        """Fails where the sampler goes on for ever."""
        with pytest.raises(ValueError, match=r"a larger radius than 0\.01"):
            mine(torch.randn(3, 8), 2, 0.5, 0.9, 0.01, torch.Generator().manual_seed(0))

    def test_draws_are_seeded(self) -> None:
        e = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
        one, two = (mine(e, 4, 0.3, 0.9, 1.16, generator(5, "x")) for _ in range(2))
        assert torch.equal(one, two)


class TestClosedForm:
    def test_its_rows(
        self, model: TextConditional, split: ForgetSplit, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails where a neighbour has a target of its own, what lies beyond is moved, the number of
        samples sets the strength, or a term is weighted as another."""
        seen: dict[str, Any] = {}

        def keep(_: Any, rows: Tensor, instead: Tensor, scale: Tensor, ridge: float) -> None:
            seen.update(rows=rows, instead=instead, scale=scale, ridge=ridge)

        monkeypatch.setattr(module, "edit", keep)
        method = RealEra(
            near=4, beyond=2, near_weight=3.0, beyond_weight=5.0, keep_weight=7.0, ridge=0.2
        )
        method.closed_form(model, split, 0)
        prompt, other = "a photo of a ring", "a photo of a shape"
        here, there = shared_rows(model.prompts, prompt, "a ring", other, "a shape")
        e, wanted = text_rows(model.prompts, prompt)[here], text_rows(model.prompts, other)[there]
        n, kept = len(e), whole(model.prompts, split.task.concepts.keep)
        parts = [n, 4 * n, 2 * n, len(kept)]
        concept, near, beyond, last = seen["rows"].split(parts)
        assert torch.equal(concept, e)
        assert torch.equal(last, kept)
        assert not torch.equal(near[:n], near[n : 2 * n])
        targets = seen["instead"].split(parts)
        assert torch.equal(targets[0], wanted)
        assert torch.equal(targets[1], wanted.repeat(4, 1))
        assert torch.equal(targets[2], beyond)
        assert torch.equal(targets[3], kept)
        for part, each in zip(seen["scale"].split(parts), (1.0, 3 / 4, 5 / 2, 7.0), strict=True):
            assert (part == each).all()
        assert seen["ridge"] == 0.2

    def test_without_its_terms_it_is_a_plain_edit(
        self, model: TextConditional, split: ForgetSplit
    ) -> None:
        """With no neighbour, nothing beyond and the same weights, UCE's edit of the same rows."""
        alone = RealEra(stages="closed_form", near=0, beyond=0, ridge=0.5)(model, split)
        other = UCE(lam=0.5, keep_scale=1.0)(model, split)
        for (n, a), b in zip(projections(alone).items(), projections(other).values(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
            assert (a - projections(model)[n]).abs().max() > 1e-3

    def test_a_huge_ridge_changes_nothing(self, model: TextConditional, split: ForgetSplit) -> None:
        found = RealEra(stages="closed_form", ridge=1e9)(model, split)
        for a, b in zip(projections(found).values(), projections(model).values(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)

    def test_in_expectation_neighbours_shrink_and_beyond_is_a_ridge(self) -> None:
        """With many samples, the terms are what their means say: for (1 - a) e + a v the neighbour
        term is |(1-a) W'e - We*|^2 + a^2 |W'|^2 a row, the beyond term a ridge towards W."""
        draw = torch.Generator().manual_seed(0)
        w, e, wanted, v = (
            torch.randn(*shape, generator=draw).double()
            for shape in ((3, 5), (5,), (3,), (200_000, 5))
        )
        a, n, ridge = 0.6, len(v), 0.5
        near = (1 - a) * e + a * v
        rows, scale = torch.cat([near, near]), torch.full((2 * n,), 1 / n)
        values = torch.cat([wanted.expand(n, -1), near @ w.T])
        found = solve(w, rows, values, scale, ridge)
        # (1-a)^2 ee' + a^2 I in both terms' systems; of the values, v's mean leaves (1-a) alone.
        eye, mean = torch.eye(5).double(), (1 - a) * e
        moment = mean.outer(mean) + a**2 * eye
        system = 2 * moment + ridge * eye
        right = wanted.outer(mean) + w @ moment + ridge * w
        expected = right @ torch.linalg.inv(system)
        torch.testing.assert_close(found, expected, rtol=0, atol=0.02)


class TestAlignment:
    @pytest.mark.parametrize("focal", [False, True])
    @pytest.mark.parametrize("target", ["anchor", "negative_guidance"])
    def test_by_hand(
        self, model: TextConditional, split: ForgetSplit, target: Any, focal: bool
    ) -> None:
        """Fails where the edited model teaches, guidance is turned round, neighbours are summed or
        taught at themselves, what lies beyond is taught the anchor, or the images are mixed up."""
        method = RealEra(step_near=3, step_beyond=2, step_weight=0.7, target=target, focal=focal)
        work = copy.deepcopy(model)
        with torch.no_grad():
            for p in projections(work).values():
                p.mul_(1.4)
        pairs = [("a photo of a ring", "a photo of a shape"), ("see a ring", "see a shape")]
        x, which = torch.rand(2, 1, 16, 16), [1, 0]
        with seeded(3, "noise"):
            found = method.alignment(
                originals(model), pairs, generator(4, "n"), work, (x, torch.tensor(which))
            )
        with seeded(3, "noise"):
            x_t, t = noised(model, x, focal)
        draw, total = generator(4, "n"), torch.zeros(())
        for i, at in enumerate(which):
            e, anchor, empty = model.embed([*pairs[at], ""])
            n = int(model.prompts.tokens([pairs[at][0]])[1].sum())
            near, beyond = method.around(e[:n], 3, 2, draw)

            def epsilon(m: TextConditional, states: Tensor, i: int = i) -> Tensor:
                filled = torch.zeros_like(model.embed([""])[0])
                filled[: len(states)] = states
                return m.denoise(x_t[i : i + 1], t[i : i + 1], filled[None])

            aim = epsilon(model, anchor)
            if target == "negative_guidance":
                nothing = epsilon(model, empty)
                aim = nothing - (epsilon(model, e) - nothing)
            total = total + (epsilon(work, e) - aim).square().mean()
            for state in near:
                total = total + (epsilon(work, state) - aim).square().mean() / 3
            for state in beyond:
                away = epsilon(work, state) - epsilon(model, state)
                total = total + 0.7 * away.square().mean() / 2
        torch.testing.assert_close(found, total / 2, rtol=1e-4, atol=1e-6)

    def test_terms_can_be_left_out(self, model: TextConditional) -> None:
        """Against itself the original has no error beyond, and none at all for its own anchor."""
        x = torch.rand(1, 1, 16, 16), torch.tensor([0])
        same = [("a photo of a ring", "a photo of a ring")]

        def value(**counts: int) -> float:
            with seeded(0, "x"):
                method = RealEra(**counts)
                return method.alignment(originals(model), same, generator(0), model, x).item()

        assert value(step_near=0, step_beyond=0) == pytest.approx(0, abs=1e-9)
        assert value(step_near=0, step_beyond=2) == pytest.approx(0, abs=1e-9)
        assert value(step_near=2, step_beyond=0) > 1e-6

    def test_training_lowers_it(self, model: TextConditional, split: ForgetSplit) -> None:
        """Fails where the adapters get no gradient, or are not added in the end."""
        config = replace(LORA, epochs=15, lr=1e-2, max_steps=30)
        method = RealEra(**{**SMALL, "train": config, "stages": "lora"})
        found = method(model, split)
        pairs = split.task.concepts.pairs()
        draw = torch.Generator().manual_seed(0)
        x = torch.rand(8, 1, 16, 16, generator=draw), torch.zeros(8).long()

        def value(trained: TextConditional) -> float:
            with seeded(1, "x"), torch.no_grad():
                return method.alignment(originals(model), pairs, generator(1), trained, x).item()

        assert value(found) < 0.8 * value(model)


class TestMethod:
    def test_the_original_draws(
        self, model: TextConditional, split: ForgetSplit, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails where images are drawn after the closed form."""
        asked, draw = [], module.draw_images

        def checked(drawing: TextConditional, prompts: list[str], *rest: Any) -> Any:
            asked.extend(prompts)
            for n, p in projections(drawing).items():
                assert torch.equal(p, projections(model)[n])
            return draw(drawing, prompts, *rest)

        monkeypatch.setattr(module, "draw_images", checked)
        RealEra(**SMALL)(model, split)
        assert asked == ["a photo of a ring"]

    def test_only_keys_and_values_change(self, model: TextConditional, split: ForgetSplit) -> None:
        changed = RealEra(**SMALL)(model, split)
        names = {f"unet.{n}" for n in projections(model)}
        before = dict(model.named_parameters())
        assert {n for n, p in changed.named_parameters() if not torch.equal(p, before[n])} == names
        assert list(before) == [n for n, _ in changed.named_parameters()]
        assert all(p.requires_grad for p in changed.parameters())

    def test_what_one_concept_has_learned_is_added(
        self, model: TextConditional, split: ForgetSplit, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails where it acts on the concept's own prompts alone, and not on its neighbours."""
        added = {n: torch.ones_like(p) for n, p in projections(model).items()}
        monkeypatch.setattr(module, "low_rank", lambda *_: added)
        edited = RealEra(stages="closed_form")(model, split)
        found = RealEra(**SMALL)(model, split)
        for n, p in projections(found).items():
            torch.testing.assert_close(p, projections(edited)[n] + 1, rtol=0, atol=0)

    def test_two_concepts(self, model: TextConditional, split: ForgetSplit) -> None:
        """Fails where a second LoRA can't be put on."""
        concepts = Concepts((("a ring", "a shape"), ("a disc", "a square")), ("",))
        check_method(RealEra(**SMALL), model, replace(split, task=Denoising(concepts)))

    @pytest.mark.parametrize(
        "arguments",
        [
            {"low": 0.9, "high": 0.5},
            {"stages": "none"},
            {"target": "x"},
            {"near": -1},
            {"radius": 0.0},
            {"near_weight": -1.0},
            {"ridge": -1.0},
            {"rank": 0},
            {"images": 0},
        ],
    )
    def test_bad_settings(self, arguments: dict[str, Any]) -> None:
        with pytest.raises(
            ValueError, match=r"cosines|must be (positive|at least [01]|.*, not .(x|none))"
        ):
            RealEra(**arguments)

    def test_the_defaults_are_the_sheet_s(self) -> None:
        method = RealEra()
        assert (method.low, method.high, method.radius) == (0.5, 0.9, 1.16)
        assert (method.near, method.beyond, method.step_near, method.step_beyond) == (50, 30, 5, 3)
        weights = (method.near_weight, method.beyond_weight, method.keep_weight, method.ridge)
        assert weights == (1, 1, 1, 0.1)
        assert (method.rank, method.train.max_steps, method.train.lr) == (1, 50, 1e-4)
