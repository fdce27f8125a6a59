from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

import unlearn_core.methods as methods
from unlearn_core.data import ForgetSplit, WithheldDataError
from unlearn_core.methods import METHODS, NEEDS, SSD, Method


@dataclass(frozen=True)
class Halve(Method):
    name: ClassVar[str] = "halve"
    needs: ClassVar[frozenset[str]] = frozenset({"forget"})
    draws: ClassVar[bool] = False

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        len(split.forget)
        with torch.no_grad():
            model.head.weight.mul_(0.5)
        return model.train()


def test_a_call_works_on_a_copy(model: nn.Module, tiny_split: ForgetSplit) -> None:
    before = model.head.weight.detach().clone()
    unlearned = Halve()(model, tiny_split)
    assert torch.equal(model.head.weight, before)
    assert torch.equal(unlearned.head.weight, before / 2)
    assert not unlearned.training


def test_in_place_uses_the_model_up(model: nn.Module, tiny_split: ForgetSplit) -> None:
    before = model.head.weight.detach().clone()
    assert Halve()(model, tiny_split, inplace=True) is model
    assert torch.equal(model.head.weight, before / 2)


def test_a_method_sees_what_it_declares_only(model: nn.Module, tiny_split: ForgetSplit) -> None:
    @dataclass(frozen=True)
    class Peeks(Halve):
        def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
            len(split.retain)
            return model

    with pytest.raises(WithheldDataError, match="Peeks does not declare 'retain'"):
        Peeks()(model, tiny_split)


def test_an_unknown_need_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Greedy.needs: unknown \['everything'\]; known:"):

        class Greedy(Halve):
            needs: ClassVar[frozenset[str]] = frozenset({"everything"})


def test_hyperparameters_are_frozen_and_known() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SSD().alpha = 3.0
    with pytest.raises(TypeError, match="alpa"):
        SSD(alpa=3.0)


def test_the_table_holds_every_method_under_its_name() -> None:
    expected = {
        *("ssd", "retrain", "fine_tune", "amnesiac", "bad_teacher", "unsir"),
        *("random_selection", "absolute_selection"),
    }
    assert expected <= METHODS.keys()
    assert "halve" not in METHODS
    for name, cls in METHODS.items():
        assert cls.name == name
        assert getattr(methods, cls.__name__) is cls
        assert cls.__name__ in methods.__all__
        assert cls.needs <= NEEDS.keys()
        assert dataclasses.is_dataclass(cls)
        assert hash(cls.version)
