"""SalUn of diffusion models, and random labelling, which it is without its mask."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unlearn_core.data import Concepts, Denoising, ForgetSplit, forget_class, shapes
from unlearn_core.methods import ConceptRelabel, Method, SalUnGeneration, check_method
from unlearn_core.methods.contract import STAND_INS
from unlearn_core.methods.salun import saliency_mask
from unlearn_core.models import ClassToImage, Diffusion, TrainConfig, shuffled_epochs
from unlearn_core.seeding import derive_seed, seeded

SMALL = TrainConfig(epochs=2, lr=1e-3, batch_size=2, optimizer="adam", clip=1.0)
Problem = tuple[Diffusion, ForgetSplit]


def _classes() -> Problem:
    split = forget_class(shapes(4, 1, fills=1), 3)
    model = ClassToImage(10, size=16, widths=(8, 16)).build(0)
    return model, replace(split, task=Denoising(Concepts(((3, 4),))))


@pytest.fixture(scope="module", params=["text", "classes"])
def problem(request: pytest.FixtureRequest) -> Problem:
    """Images to be forgotten are of "a disc" or of class 3; "a shape" or class 4 takes its place."""
    return STAND_INS["diffusion"]() if request.param == "text" else _classes()


def batch_of(split: ForgetSplit) -> dict[str, Any]:
    instead = split.task.relabel(split.forget)
    rows = [0, 1, 2]
    return {
        "forget": split.forget.batch_of(rows),
        "template": instead.batch_of(rows),
        "retain": split.retain.batch_of([0, 5, 20]),
    }


class TestConceptRelabel:
    @pytest.mark.parametrize(("reduction", "weight"), [("mean", 0.3), ("sum", 0.3 * 16 * 16)])
    def test_loss_and_gradient_by_hand(
        self, problem: Problem, reduction: str, weight: float
    ) -> None:
        """Fails where the target's gradient is let through, the concepts are swapped, the two x_t
        differ, or the first term is summed too."""
        (model, split), batch = problem, batch_of(problem[1])
        torch.manual_seed(1)
        found = ConceptRelabel(SMALL, 0.3, reduction).loss(split.task, model, batch)
        torch.manual_seed(1)
        x, concept = batch["forget"]
        latents, noise, t = Denoising.noised(model, x)
        x_t = model.add_noise(latents, noise, t)
        wanted = model(x_t, t, batch["template"][1]).detach()
        gone = (model(x_t, t, concept) - wanted).pow(2).mean()
        expected = gone + weight * split.task.loss(model, batch["retain"])
        torch.testing.assert_close(found, expected)
        some = [p for n, p in model.named_parameters() if "down_blocks.1.resnets.0.conv" in n]
        for g, h in zip(
            torch.autograd.grad(found, some), torch.autograd.grad(expected, some), strict=True
        ):
            torch.testing.assert_close(g, h, rtol=1e-4, atol=1e-6)

    def test_what_nothing_takes_the_place_of(self, problem: Problem) -> None:
        """Fails where such an image is trained to stay as it is."""
        model, split = problem
        forget = split.forget
        if hasattr(forget, "captions"):
            other = forget.with_captions(["a hoop"] * len(forget))
        else:
            other = forget.with_labels(torch.zeros_like(forget.labels))
        with pytest.raises(ValueError, match="nothing takes the place of"):
            ConceptRelabel(SMALL)(model, replace(split, forget=other))

    def test_what_a_step_sees(self, problem: Problem) -> None:
        """Fails where forget and retain images mix, or the other concept isn't the request's."""
        model, split = problem
        seen: list[dict[str, Any]] = []

        class Spy(ConceptRelabel):
            def loss(self, task: Any, model: Any, batch: dict[str, Any]) -> Tensor:
                seen.append(batch)
                return super().loss(task, model, batch)

        config = replace(SMALL, batch_size=3, epochs=1)
        Spy(config)(model, split)
        assert [len(b["forget"][0]) for b in seen] == [3, 1]
        for batch in seen:
            concept, other, kept = (list(batch[k][1]) for k in ("forget", "template", "retain"))
            assert len(kept) == len(concept)
            if isinstance(concept[0], str):
                assert all("a disc" in c for c in concept)
                assert other == [c.replace("a disc", "a shape") for c in concept]
                assert not any("a disc" in c for c in kept)
            else:
                assert all(c == 3 for c in concept)
                assert all(c == 4 for c in other)
                assert all(c != 3 for c in kept)
        images = torch.cat([b["forget"][0] for b in seen])
        every = split.forget.batch_of(range(4))[0]
        assert sorted(images.flatten(1).sum(dim=1).tolist()) == pytest.approx(
            sorted(every.flatten(1).sum(dim=1).tolist())
        )

    def test_each_prediction_leaves_out_its_own(self, problem: Problem) -> None:
        """Fails where the target, or the retain loss, always sees its condition."""
        model, split = copy.deepcopy(problem[0]).train(), problem[1]
        model.drop = 1.0
        seen, empty = [], model.embed(model.nothing(3))
        plain = model.denoise

        def denoise(x_t: Tensor, t: Tensor, given: Tensor) -> Tensor:
            seen.append(given)
            return plain(x_t, t, given)

        model.denoise = denoise  # type: ignore[method-assign]
        ConceptRelabel().loss(split.task, model, batch_of(split))
        assert len(seen) == 3
        assert all(torch.equal(given, empty) for given in seen)

    def test_the_concept_comes_near_what_takes_its_place(self, problem: Problem) -> None:
        model, split = copy.deepcopy(problem[0]), problem[1]
        model.drop = 0.0
        config = replace(SMALL, epochs=10, batch_size=4, lr=2e-3)
        found = ConceptRelabel(config, beta=0.1, reduction="mean")(model, split)
        batch = batch_of(split)

        def distance(trained: Diffusion) -> float:
            torch.manual_seed(0)
            return ConceptRelabel(beta=0.0).loss(split.task, trained, batch).item()

        assert distance(found) < 0.5 * distance(model)

    def test_no_concept_is_named(self, problem: Problem) -> None:
        model, split = problem
        with pytest.raises(ValueError, match="the split's task names nothing"):
            ConceptRelabel(SMALL)(model, replace(split, task=Denoising()))

    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_contract(self, problem: Problem, reduction: str) -> None:
        check_method(ConceptRelabel(SMALL, 0.1, reduction), *problem)


class TestClip:
    @pytest.mark.parametrize(
        ("steps", "clip", "kept"),
        [
            ([[10.0, 0.0], [-0.9, 0.3]], None, 0),
            ([[10.0, 0.0], [-0.9, 0.3]], 1.0, 1),
            ([[3.0, 0.0], [-0.2, 0.5]], 1.0, 0),
        ],
    )
    def test_by_hand(self, steps: list[list[float]], clip: float | None, kept: int) -> None:
        """Sums [9.1, 0.3], [0.1, 0.3] and [0.8, 0.5]. Fails where the sum is clipped and not its
        terms, and where a small gradient is made larger."""
        model = nn.Module()
        model.theta = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        batches = [torch.tensor([row], dtype=torch.float64) for row in steps]
        mask = saliency_mask(model, lambda m, x: (x @ m.theta).mean(), batches, 0.5, clip)
        assert mask["theta"].tolist() == [kept == 0, kept == 1]


class TestSalUn:
    def test_the_guided_error_by_hand(self, problem: Problem) -> None:
        """Fails in the other convention of guidance, and in one that is a mean over elements."""
        model, split = problem
        batch = split.forget.batch_of([0, 1, 2])
        torch.manual_seed(1)
        found = SalUnGeneration(w=2.0).guided_error(model, batch)
        torch.manual_seed(1)
        latents, noise, t = Denoising.noised(model, batch[0])
        x_t = model.add_noise(latents, noise, t)
        guided = 3 * model(x_t, t, batch[1]) - 2 * model(x_t, t, model.nothing(3))
        expected = (guided - noise).pow(2).flatten(1).sum(dim=1).mean()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("clip", [1.0, None])
    def test_the_mask_by_hand(self, problem: Problem, clip: float | None) -> None:
        """Fails where magnitudes are summed, dropout or left out conditions disturb the gradient,
        a batch isn't clipped by itself, or other images are seen."""
        model, split = problem
        method = SalUnGeneration(SMALL, keep=0.3, mask_clip=clip)
        mask = method.mask_of(model, split, 5)
        work = copy.deepcopy(model).eval()
        total = [torch.zeros_like(p) for p in work.parameters()]
        with seeded(5, "mask"):
            for batch in shuffled_epochs(split.forget, SMALL, derive_seed(5, "mask"))(0):
                work.zero_grad()
                method.guided_error(work, batch).backward()
                if clip is not None:
                    norm = nn.utils.clip_grad_norm_(work.parameters(), clip)
                    assert norm > clip
                total = [s + p.grad for s, p in zip(total, work.parameters(), strict=True)]
        saliency = torch.cat([g.flatten() for g in total]).abs()
        found = torch.cat([mask[n].flatten() for n, _ in model.named_parameters()])
        count = int(len(saliency) * 0.3)
        assert found.sum() == count
        expected = torch.zeros_like(found).index_fill(0, saliency.topk(count).indices, True)
        assert (found == expected).float().mean() > 0.999  # but for rounding at the threshold

    @pytest.mark.parametrize("kind", ["saliency", "random"])
    def test_what_is_masked_out_stays(self, problem: Problem, kind: str) -> None:
        """Fails where the mask is turned round, or a masked-out weight moves at all."""
        model, split = problem
        method = SalUnGeneration(SMALL, mask=kind)
        mask = method.mask_of(model, split, 0)
        after = dict(method(model, split, 0).named_parameters())
        moved = 0
        for name, p in model.named_parameters():
            assert torch.equal(after[name][~mask[name]], p[~mask[name]]), name
            moved += int((after[name] != p).sum())
        kept = sum(int(m.sum()) for m in mask.values())
        assert kept == int(sum(p.numel() for p in model.parameters()) * 0.5)
        assert moved > 0.8 * kept

    def test_all_weights_are_random_labelling(self, problem: Problem) -> None:
        model, split = problem
        whole = SalUnGeneration(SMALL, keep=1.0)(model, split, 3)
        plain = ConceptRelabel(SMALL)(model, split, 3)
        for p, q in zip(whole.parameters(), plain.parameters(), strict=True):
            assert torch.equal(p, q)

    @pytest.mark.parametrize("kind", ["saliency", "random"])
    def test_contract(self, problem: Problem, kind: str) -> None:
        check_method(SalUnGeneration(SMALL, mask=kind), *problem)


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (ConceptRelabel, {"beta": -1.0}),
        (ConceptRelabel, {"reduction": "none"}),
        (SalUnGeneration, {"keep": 0.0}),
        (SalUnGeneration, {"mask_clip": 0.0}),
        (SalUnGeneration, {"mask": "magnitude"}),
        (SalUnGeneration, {"beta": -1.0}),
        (ConceptRelabel, {"beta": float("nan")}),
        (ConceptRelabel, {"beta": float("inf")}),
        (SalUnGeneration, {"w": float("nan")}),
    ],
)
def test_hyperparameters_that_make_no_sense(kind: type[Method], bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        kind(**bad)


def test_the_defaults_are_the_authors_ddpm() -> None:
    method = SalUnGeneration()
    assert (method.beta, method.reduction, method.keep) == (1e-3, "sum", 0.5)
    assert (method.w, method.mask_clip) == (2.0, 1.0)
    assert (method.train.max_steps, method.train.lr, method.train.batch_size) == (1000, 1e-4, 128)
