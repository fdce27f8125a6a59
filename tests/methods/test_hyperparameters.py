"""Every hyper-parameter of every method is held to what it may be when the method is made."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import pickle
from typing import Any, get_type_hints

import pytest
import torch
from torch import nn

from unlearn_core.data import Classification, ForgetSplit
from unlearn_core.methods import (
    CONTINUAL,
    FLAT,
    METHODS,
    RMU,
    SSD,
    UCE,
    UNSIR,
    FineTune,
    GradientAscent,
    OutputFiltering,
    Retrain,
)
from unlearn_core.methods.worst_case import SELECTORS
from unlearn_core.methods.worst_prompts import PROMPT_SELECTORS
from unlearn_core.models import Recipe, SmallCNN, TrainConfig
from unlearn_core.registry import describe

RECIPE = Recipe(SmallCNN(10, 1, width=4), Classification(10), TrainConfig(1, 0.1))
#: What has to be given.
REQUIRED: dict[str, Any] = {"recipe": RECIPE, "layer": 1, "method": GradientAscent()}

TABLES = {**METHODS, **CONTINUAL, **SELECTORS, **PROMPT_SELECTORS}
FIELDS = [
    (cls, f.name)
    for cls in TABLES.values()
    for f in dataclasses.fields(cls)
    if get_type_hints(cls)[f.name] is not bool
]

#: Fields whose sign means something: a margin or an offset. All other numbers are at least 0.
SIGNED = {
    ("SimNPO", "delta"),  # of the log-probability at which the loss bends
    ("SLD", "threshold"),  # of a difference of noises
    ("RealEra", "low"),
    ("RealEra", "high"),  # cosines
    ("SalUnGeneration", "w"),  # w + 1 is the guidance
}


def make(cls: type, **given: Any) -> Any:
    needed = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
    return cls(**{k: v for k, v in REQUIRED.items() if k in needed} | given)


def name_of(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else str(value)


@pytest.mark.parametrize(("cls", "field"), FIELDS, ids=name_of)
def test_a_value_that_makes_no_sense(cls: type, field: str) -> None:
    """Fails where NaN, infinity, a bool, a list or an object is taken for a hyper-parameter."""
    for bad in (math.nan, math.inf, -math.inf, True, [], object(), nn.Linear(1, 1)):
        with pytest.raises((ValueError, TypeError), match=rf"{cls.__name__}\b|{field}"):
            make(cls, **{field: bad})


@pytest.mark.parametrize(("cls", "field"), FIELDS, ids=name_of)
def test_a_number_is_no_text_and_not_negative(cls: type, field: str) -> None:
    """Fails where another sign turns descent into ascent, or YAML's 5e-4, a text, is taken."""
    now = getattr(make(cls), field)
    if isinstance(now, int | float):
        with pytest.raises(ValueError, match=rf"{field} must be a (whole|finite) number"):
            make(cls, **{field: "5e-4"})
        if (cls.__name__, field) not in SIGNED:
            with pytest.raises(ValueError, match=rf"{field} must be .*, not -1"):
                make(cls, **{field: -1})
    elif isinstance(now, str) and now not in ("", getattr(cls, "instruction", None)):
        with pytest.raises(ValueError, match=rf"{field} must be .*, not 'banana'"):
            make(cls, **{field: "banana"})


def test_the_signed_ones_exist() -> None:
    known = {(cls.__name__, field) for cls, field in FIELDS}
    assert known >= SIGNED


@pytest.mark.parametrize("cls", TABLES.values(), ids=name_of)
def test_every_method_can_be_made_copied_and_pickled(cls: type) -> None:
    """Fails where the check on the way in stands in the way of a copy, or changes a value."""
    method = make(cls)
    assert pickle.loads(pickle.dumps(method)) == copy.deepcopy(method) == method
    assert dataclasses.replace(method) == method
    assert describe(dataclasses.replace(method)) == describe(method)
    assert list(inspect.signature(cls).parameters) == [f.name for f in dataclasses.fields(cls)]


def test_described_as_before() -> None:
    """Keys of published rows hang on this: an annotation is no part of a description."""
    assert describe(UCE(lam=1)) == {
        **{"is": "UCE", "version": 1, "release": "2023", "technique": "replace"},
        **{"lam": 1, "erase_scale": 1.0, "keep_scale": None},
    }


class TestWhatIsMeantInstead:
    """One sentence names the cure of the usual mistakes."""

    def test_the_class_is_called_with_a_model(self, tiny_split: ForgetSplit) -> None:
        model = nn.Linear(1, 1)
        for cls in (SSD, OutputFiltering, Retrain, FLAT):
            with pytest.raises(TypeError, match=rf"call.*: {cls.__name__}\(\.\.\.\)\(model, split"):
                cls(model, tiny_split)
        with pytest.raises(TypeError, match=r"SSD\(\.\.\.\)\(model, split\)"):
            SSD(alpha=model)

    @pytest.mark.parametrize("option", ["lr", "epochs", "batch_size"])
    def test_training_options(self, option: str) -> None:
        with pytest.raises(
            TypeError, match=rf"'{option}'; it is part of train=TrainConfig\(\.\.\.\)"
        ):
            FineTune(**{option: 1})

    def test_of_a_method_with_two_trainings(self) -> None:
        with pytest.raises(TypeError, match="it is part of impair=TrainConfig"):
            UNSIR(lr=0.1)

    def test_a_mapping_for_a_configuration(self) -> None:
        with pytest.raises(ValueError, match=r"train must be .*such as TrainConfig\(lr=0.1\)"):
            FineTune(train={"lr": 0.1})

    def test_a_slip_of_the_pen(self) -> None:
        with pytest.raises(TypeError, match="SSD has no hyper-parameter 'alhpa'; did you mean 'al"):
            SSD(alhpa=5)
        with pytest.raises(TypeError, match="has no hyper-parameter 'alpha'; it has none"):
            OutputFiltering(alpha=5)

    def test_what_must_be_given(self) -> None:
        with pytest.raises(TypeError, match="layer"):
            RMU()


def test_a_torch_number_is_none() -> None:
    with pytest.raises(ValueError, match=r"alpha must be a finite number, not tensor\(2.\)"):
        SSD(alpha=torch.tensor(2.0))
