from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from small import SMALL, make, stand_in
from torch import nn
from torch.utils.data import TensorDataset

from unlearn_core.data import (
    Classification,
    ForgetSplit,
    ImageData,
    forget_random,
)
from unlearn_core.methods import (
    FLAT,
    IAU,
    METHODS,
    SSD,
    ContractError,
    GradDiff,
    InfluenceCG,
    Method,
    Retrain,
    check_method,
)
from unlearn_core.models import Recipe, SmallCNN
from unlearn_core.seeding import generator

EVERYWHERE = [(name, m) for name, cls in METHODS.items() for m in sorted(cls.works_on)]


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
        split.task.loss(model, split.forget.batch_of([0])).backward()
        return super().unlearn(model, split, seed)


@dataclass(frozen=True)
class LeavesGradientsOnTheInput(Noise):
    def __call__(
        self, model: nn.Module, split: ForgetSplit, seed: int = 0, *, inplace: bool = False
    ) -> nn.Module:
        split.task.loss(model, split.forget.batch_of([0])).backward()
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
class GivesNaNInABuffer(Noise):
    def __call__(
        self, model: nn.Module, split: ForgetSplit, seed: int = 0, *, inplace: bool = False
    ) -> nn.Module:
        found = super().__call__(model, split, seed, inplace=inplace)
        found.mean = nn.Buffer(torch.tensor([float("nan")]))
        return found


@dataclass(frozen=True)
class GivesNothing(Noise):
    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> None:
        super().unlearn(model, split, seed)


@dataclass(frozen=True)
class GivesNothingAtAll(Noise):
    def __call__(self, *given: object, **options: object) -> None:
        return None


@dataclass(frozen=True)
class ReadsRetain(Noise):
    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        split.retain.batch_of([0])
        return model


@dataclass(frozen=True)
class Fails(Noise):
    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        raise KeyError("momentum")


@dataclass(frozen=True)
class ChangesTheSplit(Noise):
    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        split.forget.labels.zero_()
        return super().unlearn(model, split, seed)


@dataclass(frozen=True)
class HalvesThePrecision(Noise):
    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        return super().unlearn(model, split, seed).half()


@dataclass(frozen=True)
class LeavesWeightsFrozen(Noise):
    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        return super().unlearn(model, split, seed).requires_grad_(False)


@dataclass(frozen=True)
class SetsTheDefaultPrecision(Noise):
    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        torch.set_default_dtype(torch.float64)
        return super().unlearn(model, split, seed)


@dataclass(frozen=True)
class MovesAway(Noise):
    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        return super().unlearn(model, split, seed).to("meta")


@dataclass(frozen=True)
class AllowsDeterministicOnly(Noise):
    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        torch.use_deterministic_algorithms(True)
        return super().unlearn(model, split, seed)


@dataclass(frozen=True)
class LeavesAHook(Noise):
    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        model.head.register_forward_hook(lambda *_: None)
        return super().unlearn(model, split, seed)


@dataclass(frozen=True)
class LeavesAHookOnTheInput(Noise):
    def __call__(
        self, model: nn.Module, split: ForgetSplit, seed: int = 0, *, inplace: bool = False
    ) -> nn.Module:
        found = super().__call__(model, split, seed, inplace=inplace)
        model.head.register_forward_pre_hook(lambda *_: None)
        return found


@dataclass(frozen=True)
class FreezesTheInput(Noise):
    def __call__(
        self, model: nn.Module, split: ForgetSplit, seed: int = 0, *, inplace: bool = False
    ) -> nn.Module:
        found = super().__call__(model, split, seed, inplace=inplace)
        model.head.requires_grad_(False)
        return found


@dataclass(frozen=True)
class ReplacesAModule(Noise):
    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        super().unlearn(model, split, seed)
        model.head = nn.Sequential(model.head, nn.Identity())
        return model


@dataclass(frozen=True)
class MovesABufferThatIsNotSaved(Noise):
    """...of the given model: the copy is made, and the original is written to."""

    def __call__(
        self, model: nn.Module, split: ForgetSplit, seed: int = 0, *, inplace: bool = False
    ) -> nn.Module:
        found = super().__call__(model, split, seed, inplace=inplace)
        model.calls.add_(1)
        return found


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
        (SwitchesGradientsOff, "it left a switch changed: gradients are on"),
        (DeniesItsDraws, "other weights, but it says that it does not draw"),
        (ClaimsToDraw, "the same weights, but it says that it draws"),
        (IgnoresTheSeed, "the same seed gave other weights"),
        (LeavesTrainingMode, "the result is in training mode"),
        (GivesNaN, r"NotFiniteError: noise: the unlearned model is not finite: head\.bias"),
        (GivesNaNInABuffer, "the result is not finite: mean"),
        (GivesNothing, "ends in a TypeError: noise: unlearn returns a model, not None"),
        (GivesNothingAtAll, "returns None, which is no model"),
        (ReadsRetain, "WithheldDataError: ReadsRetain does not declare 'retain' in `needs`"),
        (Fails, "ends in a KeyError: 'momentum'"),
        (ChangesTheSplit, "the split was changed"),
        (HalvesThePrecision, "has another precision"),
        (LeavesWeightsFrozen, "was left frozen"),
        (SetsTheDefaultPrecision, "it left a switch changed: default precision"),
        (AllowsDeterministicOnly, "it left a switch changed: deterministic algorithms"),
        (LeavesAHook, "it left a hook behind: forward_hooks of 'head'"),
        (LeavesAHookOnTheInput, "hooks were left on the given model"),
        (FreezesTheInput, "the given model was left frozen, free or in another mode"),
        (ReplacesAModule, "the result has other modules"),
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
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)


def test_buffers_that_are_not_saved_count(tiny_split: ForgetSplit, model: nn.Module) -> None:
    model = copy.deepcopy(model)
    model.register_buffer("calls", torch.zeros(1), persistent=False)
    check_method(Noise(), model, tiny_split)
    with pytest.raises(ContractError, match="the given model was changed"):
        check_method(MovesABufferThatIsNotSaved(), model, tiny_split)


def test_a_split_of_somebody_else_s_data_is_watched_too(model: nn.Module) -> None:
    """Fails where only sets that have a fingerprint are compared."""

    @dataclass(frozen=True)
    class ZeroesInputs(Noise):
        def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
            split.forget.dataset.tensors[0].zero_()
            return super().unlearn(model, split, seed)

    @dataclass(frozen=True)
    class ZeroesLabels(Noise):
        needs: ClassVar[frozenset[str]] = frozenset({"unrelated"})

        def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
            split.unrelated.tensors[1].zero_()
            return super().unlearn(model, split, seed)

    g = generator(0)
    sets = [TensorDataset(torch.rand(4, 1, 12, 12, generator=g), torch.arange(4)) for _ in range(3)]
    split = ForgetSplit("mine", Classification(10), *sets[:2], unrelated=sets[2])
    check_method(Noise(), model, split)
    for method in (ZeroesInputs(), ZeroesLabels()):
        with pytest.raises(ContractError, match=f"{type(method).__name__}: the split was changed"):
            check_method(method, model, split)


def test_what_can_not_be_checked_is_said() -> None:
    @dataclass(frozen=True)
    class OfSounds(Noise):
        works_on: ClassVar[frozenset[str]] = frozenset({"sounds"})

    @dataclass(frozen=True)
    class OfNothing(Noise):
        works_on: ClassVar[frozenset[str]] = frozenset()

    with pytest.raises(TypeError, match=r"a method is checked, such as SSD\(\), not <class"):
        check_method(Noise)
    with pytest.raises(ValueError, match="no stand-in of sounds; give a model and a split"):
        check_method(OfSounds())
    with pytest.raises(ContractError, match="OfNothing: it works on nothing"):
        check_method(OfNothing())


def test_what_it_is_given_is_not_the_method_s_fault(
    model: nn.Module, tiny_split: ForgetSplit
) -> None:
    with pytest.raises(ValueError, match="Noise needs the split's forget set, which is missing"):
        check_method(Noise(), model, replace(tiny_split, forget=None))


def test_the_given_model_is_checked() -> None:
    class Odd(SSD):
        def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
            assert model.head.out_features == 3
            return super().unlearn(model, split, seed)

    with pytest.raises(AssertionError, match=r"assert 10 == 3"):
        check_method(Odd())
