"""After any call every module is in the mode that it was in; no model of NaN is asked anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from unlearn_core.data import ForgetSplit, VisualSet, batches
from unlearn_core.methods.baselines.boundary import output_layer
from unlearn_core.methods.baselines.fisher_forgetting import expected_fisher
from unlearn_core.methods.inference_time import prompt_embeddings
from unlearn_core.methods.salun import saliency_mask
from unlearn_core.methods.ssd import importances
from unlearn_core.metrics.shadow import gradient_norms
from unlearn_core.models import (
    Chat,
    ClassToImage,
    NotFiniteError,
    SmallCNN,
    TinyLlama,
    TinyLlava,
    VisionChat,
    evaluating,
    predict,
)

PAIRS = [("Who?", "Ada."), ("Who?", "Bo.")]


class Trouble(Exception):  # noqa: N818
    """Something that goes wrong in the block."""


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def with_frozen_parts(model: nn.Module) -> nn.Module:
    """In training mode, but for every other of its modules."""
    model.train()
    for i, module in enumerate(model.modules()):
        module.training = bool(i % 2)
    return model


def seeing() -> tuple[VisionChat, VisualSet]:
    tiny = TinyLlava(
        ("what", "red"), size=8, patch=4, vision_hidden=16, vision_heads=2, hidden=16, heads=2
    )
    return tiny.build(0), VisualSet(torch.zeros(1, 8, 8, 3).byte(), torch.zeros(1).long(), *ASKED)


ASKED = (("what",), ("red",))


def classifier() -> nn.Module:
    return nn.Sequential(nn.Identity(), SmallCNN(classes=10, channels=1).build(0))


def language() -> Chat:
    return TinyLlama(hidden=16, layers=1, heads=2, vocabulary=400).build(0)


def drawing() -> nn.Module:
    return ClassToImage(classes=2, size=8, widths=(16, 16)).build(0)


Call = tuple[Callable[[], nn.Module], Callable[[Any, ForgetSplit], Any]]

MEASURED: dict[str, Call] = {
    "predict": (classifier, lambda m, s: predict(m, s.forget)),
    "answer": (language, lambda m, s: m.answer(["Who?"], 2)),
    "log_probs": (language, lambda m, s: m.log_probs(PAIRS)),
    "sample": (drawing, lambda m, s: m.sample([0, 1], 0, steps=2)),
}
OTHERS: dict[str, Call] = {
    "importances": (classifier, lambda m, s: importances(m, batches(s.forget, 4), s.task.loss)),
    "saliency_mask": (
        classifier,
        lambda m, s: saliency_mask(m, s.task.loss, batches(s.forget, 4), 0.5),
    ),
    "expected_fisher": (
        classifier,
        lambda m, s: expected_fisher(m, batches(s.forget, 4), s.task),
    ),
    "gradient_norms": (classifier, lambda m, s: gradient_norms(m, s.task.loss, s.forget, 2)),
    "output_layer": (classifier, lambda m, s: output_layer(m, s.forget.batch_of([0])[0])),
    "prompt_embeddings": (language, lambda m, s: prompt_embeddings(m, ["Who?"])),
}


@pytest.mark.parametrize("call", [*MEASURED.values(), *OTHERS.values()], ids=[*MEASURED, *OTHERS])
def test_every_module_is_in_the_mode_that_it_was_in(call: Call, tiny_split: ForgetSplit) -> None:
    """Fails where the mode of the whole is put on its parts: frozen BatchNorm layers would thaw."""
    model = with_frozen_parts(call[0]())
    before = modes(model)
    assert len(set(before)) == 2
    call[1](model, tiny_split)
    assert modes(model) == before


def test_so_it_is_for_a_model_that_sees() -> None:
    chat, data = seeing()
    before = modes(with_frozen_parts(chat))
    chat.answer(data.questions, data.images, 2)
    chat.log_probs([("what", "red", data.images[0])])
    assert modes(chat) == before


def test_inside_all_are_in_evaluation_mode_and_an_error_changes_nothing() -> None:
    model = with_frozen_parts(classifier())
    before = modes(model)
    inside = []

    def trouble() -> None:
        with evaluating(model):
            inside.extend(modes(model))
            raise Trouble

    with pytest.raises(Trouble):
        trouble()
    assert inside == [False] * len(before)
    assert modes(model) == before


def test_what_is_put_around_a_model_is_in_its_mode() -> None:
    """A chat of a model in evaluation mode leaves it there, so that dropout stays off."""
    chat = language()
    for mode in (True, False):
        inside = chat.model.train(mode)
        around = Chat(inside, chat.tokenizer)
        assert around.training == mode
        around.answer(["Who?"], 2)
        assert modes(around) == [mode] * len(modes(around))
        unet = drawing().unet.train(mode)
        model = drawing()
        assert type(model)(unet, model.scheduler, model.codec).training == mode


@pytest.mark.parametrize("call", MEASURED.values(), ids=[*MEASURED])
def test_a_model_of_nan_is_asked_nothing(call: Call, tiny_split: ForgetSplit) -> None:
    """Fails where it has an accuracy of one class's share, or says one word again and again."""
    model = call[0]()
    name, weight = next((n, p) for n, p in model.named_parameters() if p.dim() > 1)
    with torch.no_grad():
        weight.view(-1)[-1] = torch.nan
    with pytest.raises(NotFiniteError, match=rf"the .*that .* is not finite: {name}$"):
        call[1](model, tiny_split)


def test_nor_is_one_that_sees() -> None:
    chat, data = seeing()
    with torch.no_grad():
        next(chat.parameters()).fill_(torch.nan)
    for ask in (
        lambda: chat.answer(data.questions, data.images, 2),
        lambda: chat.log_probs([("what", "red", data.images[0])]),
        lambda: chat.sample(data.questions, data.images, 1, 0, 2),
    ):
        with pytest.raises(NotFiniteError, match="the VisionChat that is asked is not finite"):
            ask()
