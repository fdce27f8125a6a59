from __future__ import annotations

import copy
import dataclasses
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from unlearn_core.data import (
    Answering,
    Denoising,
    ForgetSplit,
    ImageData,
    VisualAnswering,
    WithheldDataError,
    forget_random,
)
from unlearn_core.data.restricted_symbols import VOCABULARY
from unlearn_core.methods import (
    FLAT,
    IAU,
    METHODS,
    SSD,
    ContractError,
    GradDiff,
    GradientAscent,
    InfluenceCG,
    Method,
    Retrain,
    check_method,
)
from unlearn_core.methods.contract import STAND_INS
from unlearn_core.models import Recipe, SmallCNN, TextToImage, TinyLlama, TinyLlava, TrainConfig
from unlearn_core.seeding import generator

# Small and active: at alpha = 10 and one class in ten, nothing could be selected.
DRAWING = TrainConfig(epochs=2, lr=1e-3, batch_size=2, optimizer="adam")

SMALL: dict[str, dict[str, Any]] = {
    "ssd": {"alpha": 1.0, "batch_size": 8},
    "random_selection": {"alpha": 1.0, "batch_size": 8},
    "absolute_selection": {"alpha": 1.0, "batch_size": 8},
    "unsir": {"steps": 2, "noise_batch": 8, "copies": 2},
    # Batches of three: an order must matter, as it does not to a single batch.
    **{
        name: {"train": TrainConfig(epochs=2, lr=0.01, batch_size=3, momentum=0.9)}
        for name in (
            *("random_label", "gradient_ascent", "l1_sparse", "boundary_shrink"),
            *("boundary_expand", "salun", "salun_soft"),
        )
    },
    **{
        name: {"train": TrainConfig(epochs=3, lr=0.01, batch_size=3, momentum=0.9)}
        for name in ("scrub", "cf_k", "eu_k")
    },
    # A few questions in batches of three, with steps that are large enough to be seen.
    **{
        name: {"train": TrainConfig(epochs=2, lr=1e-3, batch_size=3, optimizer="adamw")}
        for name, cls in METHODS.items()
        if "text" in cls.works_on and "train" in {f.name for f in dataclasses.fields(cls)}
    },
    # Images that the model draws itself, in two steps.
    **{
        name: {"train": DRAWING}
        for name, cls in METHODS.items()
        if cls.works_on == {"diffusion"} and "train" in {f.name for f in dataclasses.fields(cls)}
    },
    "esd": {"train": DRAWING, "steps": 2},
    "ablating_concepts": {"train": DRAWING, "images": 4, "steps": 2},
    "forget_me_not": {"train": DRAWING, "images": 4, "steps": 2},
    "mace": {"train": DRAWING, "images": 2, "steps": 2},
    "realera": {"train": DRAWING, "images": 2, "steps": 2, "step_near": 2, "step_beyond": 1},
    "rmu": {
        "layer": 1,
        "train": TrainConfig(epochs=2, lr=1e-3, batch_size=3, optimizer="adamw"),
    },
    "influence": {"samples": 10},
    "prompt_decouple": {
        "method": GradientAscent(TrainConfig(epochs=2, lr=1e-3, batch_size=3, optimizer="adamw"))
    },
    "masked": {"method": GradientAscent(TrainConfig(epochs=2, lr=0.01, batch_size=3))},
}


def make(cls: type[Method], recipe: Recipe, **options: Any) -> Method:
    takes = {f.name for f in dataclasses.fields(cls)}
    given = {"recipe": recipe} if "recipe" in takes else {}
    return cls(**given, **SMALL.get(cls.name, {}), **options)


EVERYWHERE = [(name, m) for name, cls in METHODS.items() for m in sorted(cls.works_on)]


def stand_in(modality: str, recipe: Recipe) -> tuple[nn.Module, ForgetSplit, Recipe]:
    """A model and a split of that modality, and a recipe that makes such a model."""
    model, split = STAND_INS[modality]()
    if modality == "images":
        return model, split, recipe
    train = TrainConfig(epochs=1, lr=1e-3, batch_size=8, optimizer="adamw")
    if modality == "diffusion":
        return model, split, Recipe(TextToImage(size=16, widths=(8, 16)), Denoising(), train)
    if modality == "multimodal":
        sizes = {"vision_hidden": 16, "vision_layers": 1, "vision_heads": 2}
        sight = TinyLlava(VOCABULARY, patch=16, hidden=16, layers=1, heads=2, **sizes)
        return model, split, Recipe(sight, VisualAnswering(), train)
    spec = TinyLlama(hidden=16, layers=2, heads=2, vocabulary=400)
    return model, split, Recipe(spec, Answering(), train)


@pytest.mark.parametrize(("name", "modality"), EVERYWHERE)
def test_every_method_keeps_the_contract(name: str, modality: str, recipe: Recipe) -> None:
    """Fails if a method changes its input, leaks a state, or draws otherwise than it says."""
    model, split, own = stand_in(modality, recipe)
    check_method(make(METHODS[name], own), model, split)


def test_without_a_model_the_stand_ins_are_taken() -> None:
    """Fails if a method is checked on one modality of several, or on half of a problem."""
    seen = []

    class Spy(GradDiff):
        def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
            seen.append(split.task.modality)
            return super().unlearn(model, split, seed)

    check_method(Spy(**SMALL["grad_diff"]))
    assert set(seen) == {"diffusion", "images", "multimodal", "text"}
    with pytest.raises(ValueError, match="both a model and a split, or neither"):
        check_method(Spy(), SmallCNN(10, 1, width=4).build(0))


def test_another_modality_is_refused(tiny_split: ForgetSplit, recipe: Recipe) -> None:
    with pytest.raises(TypeError, match="FLAT works on text, not on images"):
        FLAT()(recipe.build(0), tiny_split)


@pytest.mark.parametrize("fisher", ["batch_sorted", "batch_shuffled", "per_sample"])
@pytest.mark.parametrize("name", ["ssd", "random_selection", "absolute_selection"])
def test_so_does_every_estimate_of_the_fisher(name: str, fisher: str, recipe: Recipe) -> None:
    """Fails if a shuffled estimate is drawn from the seed and the method denies it."""
    check_method(make(METHODS[name], recipe, fisher=fisher))


def test_so_does_resetting_the_head(recipe: Recipe) -> None:
    check_method(Retrain(recipe, mode="head_reset"))


@pytest.mark.parametrize(
    "method",
    [
        IAU(correction=False),
        IAU(approximation=False),
        IAU(update="sgd"),
        IAU(mode="train"),
        InfluenceCG(iterations=3, samples=20),
    ],
    ids=str,
)
def test_so_does_every_form_of_iau_and_of_what_it_approximates(method: Method) -> None:
    check_method(method)


@pytest.mark.parametrize(
    "name", sorted(n for n, c in METHODS.items() if "images" in c.works_on and n != "unsir")
)
def test_so_does_every_method_on_a_given_model_and_a_random_split(
    name: str, recipe: Recipe, tiny_data: ImageData
) -> None:
    split = forget_random(tiny_data, count=8)
    model = recipe.fit(tiny_data.train, 0, device=torch.device("cpu"))
    check_method(make(METHODS[name], recipe), model, split)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize(("name", "modality"), EVERYWHERE)
def test_every_method_works_where_the_model_is(name: str, modality: str, recipe: Recipe) -> None:
    """Fails if a tensor is made on the CPU that meets one on the GPU."""
    model, split, own = stand_in(modality, recipe)
    unlearned = make(METHODS[name], own)(model.cuda(), split)
    assert all(p.is_cuda and p.isfinite().all() for p in unlearned.parameters())


@dataclass(frozen=True)
class Noise(Method):
    """Keeps the contract: adds seeded noise to the head."""

    name: ClassVar[str] = "noise"
    needs: ClassVar[frozenset[str]] = frozenset({"forget"})
    draws: ClassVar[bool] = True

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        weight = model.head.weight
        with torch.no_grad():
            weight.add_(torch.randn(weight.shape, generator=generator(seed)))
        return model


def test_a_method_that_keeps_it_passes() -> None:
    check_method(Noise())


@dataclass(frozen=True)
class MutatesInput(Noise):
    def __call__(
        self, model: nn.Module, split: ForgetSplit, seed: int = 0, *, inplace: bool = False
    ) -> nn.Module:
        return super().__call__(model, split, seed, inplace=True)


@dataclass(frozen=True)
class LeavesGradients(Noise):
    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        split.task.loss(model, split.forget.__getitems__([0])).backward()
        return super().unlearn(model, split, seed)


@dataclass(frozen=True)
class LeavesGradientsOnTheInput(Noise):
    def __call__(
        self, model: nn.Module, split: ForgetSplit, seed: int = 0, *, inplace: bool = False
    ) -> nn.Module:
        split.task.loss(model, split.forget.__getitems__([0])).backward()
        return super().__call__(model, split, seed, inplace=inplace)


@dataclass(frozen=True)
class DrawsFromTorch(Noise):
    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        torch.rand(1)
        return super().unlearn(model, split, seed)


@dataclass(frozen=True)
class SeedsTorch(Noise):
    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return super().unlearn(model, split, seed)


@dataclass(frozen=True)
class DrawsFromNumpy(Noise):
    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        np.random.rand()
        return super().unlearn(model, split, seed)


@dataclass(frozen=True)
class DrawsFromPython(Noise):
    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        random.random()
        return super().unlearn(model, split, seed)


@dataclass(frozen=True)
class SwitchesGradientsOff(Noise):
    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        torch.set_grad_enabled(False)
        return super().unlearn(model, split, seed)


@dataclass(frozen=True)
class DeniesItsDraws(Noise):
    draws: ClassVar[bool] = False


@dataclass(frozen=True)
class ClaimsToDraw(Noise):
    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        return super().unlearn(model, split, 0)


@dataclass(frozen=True)
class IgnoresTheSeed(Noise):
    calls: Iterator[int] = field(default_factory=itertools.count)

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        return super().unlearn(model, split, next(self.calls))


@dataclass(frozen=True)
class LeavesTrainingMode(Noise):
    def __call__(
        self, model: nn.Module, split: ForgetSplit, seed: int = 0, *, inplace: bool = False
    ) -> nn.Module:
        return super().__call__(model, split, seed, inplace=inplace).train()


@dataclass(frozen=True)
class GivesNaN(Noise):
    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        super().unlearn(model, split, seed).head.bias.data[0] = float("nan")
        return model


@dataclass(frozen=True)
class MovesAway(Noise):
    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        return super().unlearn(model, split, seed).to("meta")


@dataclass(frozen=True)
class DiffersInPlace(Noise):
    def __call__(
        self, model: nn.Module, split: ForgetSplit, seed: int = 0, *, inplace: bool = False
    ) -> nn.Module:
        return copy.deepcopy(model) if inplace else super().__call__(model, split, seed)


@pytest.mark.parametrize(
    ("method", "promise"),
    [
        (MutatesInput, "the given model was changed"),
        (LeavesGradients, "gradients were left behind"),
        (LeavesGradientsOnTheInput, "gradients were left behind"),
        (DrawsFromTorch, "a global random state was changed"),
        (SeedsTorch, "a global random state was changed"),
        (DrawsFromNumpy, "a global random state was changed"),
        (DrawsFromPython, "a global random state was changed"),
        (SwitchesGradientsOff, "gradients were left switched off"),
        (DeniesItsDraws, "other weights, but it says that it does not draw"),
        (ClaimsToDraw, "the same weights, but it says that it draws"),
        (IgnoresTheSeed, "the same seed gave other weights"),
        (LeavesTrainingMode, "the result is in training mode"),
        (GivesNaN, "weights that are not finite"),
        (MovesAway, "the result is on another device"),
        (DiffersInPlace, "inplace=True gave another result"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_broken_promise_is_found_and_named(method: type[Method], promise: str) -> None:
    """Fails if the check for that promise is missing, or can't fail."""
    try:
        with pytest.raises(ContractError, match=f"{method.__name__}: .*{promise}"):
            check_method(method())
    finally:
        torch.set_grad_enabled(True)


def test_undeclared_data_are_found() -> None:
    @dataclass(frozen=True)
    class ReadsRetain(Noise):
        def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
            split.retain.__getitems__([0])
            return model

    with pytest.raises(WithheldDataError, match="ReadsRetain does not declare 'retain'"):
        check_method(ReadsRetain())


def test_the_given_model_is_checked() -> None:
    class Odd(SSD):
        def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
            assert model.head.out_features == 3
            return super().unlearn(model, split, seed)

    with pytest.raises(AssertionError, match=r"assert 10 == 3"):
        check_method(Odd())
