"""`Method.__call__`: what is given is checked before any work, and what is made after it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from small import make
from torch import nn

from unlearn_core.data import ForgetSplit, ImageData
from unlearn_core.methods import (
    IAU,
    ICUL,
    MACE,
    METHODS,
    SLD,
    SSD,
    UCE,
    CFk,
    FineTune,
    GradDiff,
    GradientAscent,
    Method,
    OutputFiltering,
    Prompting,
    Retrain,
    TaskVector,
)
from unlearn_core.methods.contract import STAND_INS
from unlearn_core.models import NotFiniteError, Recipe, TrainConfig, require_finite


@dataclass(frozen=True)
class Untouched(Method):
    """Notes what it was called with; nobody may call it with what is wrong."""

    name: ClassVar[str] = "untouched"
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})
    draws: ClassVar[bool] = False
    seen: ClassVar[list[Any]] = []

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        self.seen.append(seed)
        return model


@pytest.fixture
def method() -> Untouched:
    Untouched.seen.clear()
    return Untouched()


def stopped(method: Untouched, *given: Any, **options: Any) -> Any:
    """Nothing is copied and nothing runs before the arguments are known to be right."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copy, "deepcopy", lambda *_: pytest.fail("the model was copied"))
        try:
            return method(*given, **options)
        finally:
            assert not method.seen


class TestArguments:
    def test_swapped(self, method: Untouched, model: nn.Module, tiny_split: ForgetSplit) -> None:
        with pytest.raises(TypeError, match="Untouched: the model comes first, then the split"):
            stopped(method, tiny_split, model)

    @pytest.mark.parametrize("split", [None, {1, 2}, "class 3"])
    def test_no_split(self, method: Untouched, model: nn.Module, split: Any) -> None:
        with pytest.raises(TypeError, match="is a ForgetSplit, as forget_class and its like make"):
            stopped(method, model, split)

    def test_a_data_set_for_a_split(
        self, method: Untouched, model: nn.Module, tiny_data: ImageData
    ) -> None:
        with pytest.raises(TypeError, match="not of type ImageData"):
            stopped(method, model, tiny_data)

    @pytest.mark.parametrize("model", [None, "resnet", lambda x: x])
    def test_no_model(self, method: Untouched, tiny_split: ForgetSplit, model: Any) -> None:
        with pytest.raises(TypeError, match=r"must be a torch.nn.Module from images to logits"):
            stopped(method, model, tiny_split)

    @pytest.mark.parametrize(
        ("modality", "inside", "cure"),
        [
            ("text", "model", r"of type LlamaFor.*wrap it in Chat\(model, tokenizer, template\)"),
            ("multimodal", "model", r"of type LlavaFor.*wrap it in VisionChat"),
            ("diffusion", "unet", r"of type UNet.*TextConditional.from_pipeline"),
        ],
    )
    def test_a_bare_model(self, modality: str, inside: str, cure: str) -> None:
        model, split = STAND_INS[modality]()
        with pytest.raises(TypeError, match=f"GradDiff: the model is {cure}"):
            GradDiff()(getattr(model, inside), split)

    @pytest.mark.parametrize("seed", ["0", 1.7, True, None, torch.tensor(1)])
    def test_a_seed_that_is_none(
        self, method: Untouched, model: nn.Module, tiny_split: ForgetSplit, seed: Any
    ) -> None:
        with pytest.raises(TypeError, match="Untouched: the seed is a whole number, not"):
            stopped(method, model, tiny_split, seed)

    def test_a_negative_seed(
        self, method: Untouched, model: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        with pytest.raises(ValueError, match="the seed is at least 0, not -1"):
            stopped(method, model, tiny_split, -1)
        assert method(model, tiny_split, 2**70) is not model  # any size will do


class TestParts:
    @pytest.mark.parametrize("part", ["forget", "retain"])
    def test_missing(
        self, method: Untouched, model: nn.Module, tiny_split: ForgetSplit, part: str
    ) -> None:
        with pytest.raises(ValueError, match=f"needs the split's {part} set, which is missing"):
            stopped(method, model, replace(tiny_split, **{part: None}))

    @pytest.mark.parametrize("part", ["forget", "retain"])
    def test_empty(
        self, method: Untouched, model: nn.Module, tiny_split: ForgetSplit, part: str
    ) -> None:
        empty = getattr(tiny_split, part).subset([])
        with pytest.raises(ValueError, match=rf"(the split's|the) {part} set(, which)? is empty"):
            stopped(method, model, replace(tiny_split, **{part: empty}))

    def test_what_is_not_needed_may_be_missing(
        self, model: nn.Module, tiny_split: ForgetSplit
    ) -> None:
        train = TrainConfig(1, 0.01)
        FineTune(train)(model, replace(tiny_split, forget=None))
        GradientAscent(train)(model, replace(tiny_split, retain=None))
        IAU(correction=False)(model, replace(tiny_split, retain=None))

    def test_every_method_says_so(self, recipe: Recipe) -> None:
        """Fails where a method answers a missing part with a traceback of its own."""
        for modality, stand_in in STAND_INS.items():
            model, split = stand_in()
            for name, cls in METHODS.items():
                needed = cls.needs & {"forget", "retain", "decouple", "unrelated"}
                if modality not in cls.works_on:
                    continue
                for part in needed:
                    with pytest.raises(ValueError, match=f"needs the split's {part} set"):
                        make(METHODS[name], recipe)(model, replace(split, **{part: None}))


class TestFrozen:
    def test_one_sentence(self, model: nn.Module, tiny_split: ForgetSplit) -> None:
        model.requires_grad_(False)
        for method in (FineTune(), SSD(), IAU(), CFk(), TaskVector()):
            with pytest.raises(ValueError, match=r"all weights of the model are frozen; thaw"):
                method(model, tiny_split)

    def test_one_free_weight_is_enough(self, model: nn.Module, tiny_split: ForgetSplit) -> None:
        model.requires_grad_(False).head.bias.requires_grad_(True)
        found = FineTune(TrainConfig(1, 0.1))(model, tiny_split)
        changed = {
            n
            for n, p in found.named_parameters()
            if not torch.equal(p, dict(model.named_parameters())[n])
        }
        assert changed == {"head.bias"}

    def test_what_trains_nothing_of_it_works(self, tiny_split: ForgetSplit, recipe: Recipe) -> None:
        """A closed form, what acts while a model answers, and what builds another one."""
        chat, questions = STAND_INS["text"]()
        for method in (Prompting(), OutputFiltering(), ICUL()):
            method(chat.requires_grad_(False), questions)
        drawing, concepts = STAND_INS["diffusion"]()
        for method in (UCE(), SLD(), MACE(stages="closed_form")):
            method(drawing.requires_grad_(False), concepts)
        model = recipe.build(0).requires_grad_(False)
        assert any(p.requires_grad for p in Retrain(recipe)(model, tiny_split).parameters())
        with pytest.raises(ValueError, match="frozen"):
            Retrain(recipe, mode="head_reset")(model, tiny_split)


def spoilt(model: nn.Module, bad: float) -> nn.Module:
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = bad
    return model


class TestFinite:
    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
    def test_a_model_that_computes_nothing(
        self, method: Untouched, model: nn.Module, tiny_split: ForgetSplit, bad: float
    ) -> None:
        with pytest.raises(NotFiniteError, match="untouched: the given model is not finite: "):
            stopped(method, spoilt(model, bad), tiny_split)

    @pytest.mark.parametrize("modality", STAND_INS)
    def test_no_method_takes_it(self, modality: str, recipe: Recipe) -> None:
        """Fails where closed forms, or what acts while a model answers, hand NaN on."""
        model, split = STAND_INS[modality]()
        spoilt(model, float("nan"))
        for name, cls in METHODS.items():
            if modality in cls.works_on:
                with pytest.raises(NotFiniteError, match=f"{name}: the given model is not finite"):
                    make(cls, recipe)(model, split)

    def test_a_statistic(self, method: Untouched, tiny_split: ForgetSplit) -> None:
        """BatchNorm's are buffers: infinite, they make every output 0 and no error."""
        for bad in (float("nan"), float("inf")):
            model = nn.Sequential(
                nn.Flatten(), nn.LazyLinear(4), nn.BatchNorm1d(4), nn.Linear(4, 10)
            )
            model(tiny_split.forget[0][0][None].repeat(2, 1, 1, 1))
            model[2].running_var[1] = bad
            with pytest.raises(NotFiniteError, match=r"is not finite: 2\.running_var"):
                stopped(method, model, tiny_split)

    def test_a_mask_of_minus_infinity_is_none(self) -> None:
        model = nn.Linear(2, 2)
        model.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1))
        require_finite(model, "it")
        model.mask[0, 0] = float("nan")
        with pytest.raises(NotFiniteError, match="it is not finite: mask"):
            require_finite(model, "it")

    def test_what_is_made(self, model: nn.Module, tiny_split: ForgetSplit) -> None:
        """An overflow in a closed form: the numbers that are given are all finite."""
        with pytest.raises(NotFiniteError, match="task_vector: the unlearned model is not finite"):
            TaskVector(TrainConfig(1, 0.1), alpha=1e300)(model, tiny_split)
        drawing, concepts = STAND_INS["diffusion"]()
        with pytest.raises(NotFiniteError, match="uce: the unlearned model is not finite"):
            UCE(erase_scale=1e308, lam=1e308)(drawing, concepts)

    def test_a_method_that_returns_nothing(self, model: nn.Module, tiny_split: ForgetSplit) -> None:
        class Nothing(Untouched):
            def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> None:
                return None

        with pytest.raises(TypeError, match="untouched: unlearn returns a model, not None"):
            Nothing()(model, tiny_split)


class TestDeclarations:
    def test_needs_are_declared(self) -> None:
        with pytest.raises(TypeError, match="Bare doesn't declare needs and draws"):

            class Bare(Method):
                name: ClassVar[str] = "bare"

    def test_hyper_parameters_of_no_dataclass(self) -> None:
        """Fails where they look like some, and neither the call nor a search can give them."""

        class Bare(Untouched):
            alpha: float = 1.0
            name = "bare"
            seen: ClassVar[list[Any]] = []

        with pytest.raises(TypeError, match=r"Bare: alpha can't .* with @dataclass\(frozen=True\)"):
            Bare()
        assert dataclass(frozen=True)(Bare)(alpha=2.0).alpha == 2.0

    def test_needs_are_several(self) -> None:
        with pytest.raises(TypeError, match=r"Text\.needs is a set of names, not 'forget'"):

            class Text(Untouched):
                needs: ClassVar[Any] = "forget"
