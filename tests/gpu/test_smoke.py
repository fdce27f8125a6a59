"""Five minutes on a new card: every method of every modality ends, and what it makes answers, draws or names.

Values are the business of the other tests; here it is devices and precisions.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from small import make, stand_in
from torch import nn

from unlearn_core.data import Answering, VisualAnswering, fictional_authors, restricted_symbols
from unlearn_core.data.restricted_symbols import VOCABULARY
from unlearn_core.methods import CONTINUAL, METHODS, Method, Stage
from unlearn_core.models import Recipe, TinyLlama, TinyLlava, TrainConfig, predict

PRECISIONS = ("float32", "bfloat16")


def trains(cls: type[Method]) -> bool:
    return "train" in {f.name for f in fields(cls)}


#: A classifier's half precision is that of its training: what does not train has none.
EVERYWHERE = [
    (name, modality, precision)
    for name, cls in METHODS.items()
    for modality in sorted(cls.works_on)
    for precision in PRECISIONS
    if (modality, precision) != ("images", "bfloat16") or trains(cls)
]

TRAIN = TrainConfig(epochs=1, lr=3e-3, batch_size=8, optimizer="adamw")
CONTINUED: dict[str, dict[str, Any]] = {
    "sequential_full_tuning": {},
    "lota": {},
    "ewc_lora": {"rank": 2, "alpha": 6, "samples": 2},
    "reglora": {"rank": 2, "alpha": 6, "ratio": 0.1},
}


def halved(model: nn.Module, modality: str) -> None:
    """Language models have their weights in it; what draws runs under autocast."""
    if modality in ("text", "multimodal"):
        model.model.to(torch.bfloat16)
    elif modality == "diffusion":
        model.precision = "bf16"


def check(made: nn.Module, modality: str, split: Any, device: torch.device) -> None:
    """It is where it should be, finite, and does what such a model does."""
    for name, p in made.named_parameters():
        assert p.device.type == device.type, f"{name} is on {p.device}"
        assert p.isfinite().all(), f"{name} is not finite"
    if modality == "images":
        assert predict(made, split.test).logits.isfinite().all()
    elif modality == "text":
        questions = split.forget.questions
        assert len(made.answer(questions.questions[:3], 4)) == 3
        assert all(s.isfinite().all() for s in made.log_probs([questions[0], questions[1]]))
    elif modality == "multimodal":
        shown = split.forget.questions
        images = shown.images[shown.which[:2]]
        assert len(made.answer(shown.questions[:2], images, 4)) == 2
    else:
        drawn = made.sample(split.forget.captions[:2], 0, steps=2, guidance=3, batch_size=2)
        assert drawn.isfinite().all()


@pytest.mark.parametrize(("name", "modality", "precision"), EVERYWHERE)
def test_a_method(
    name: str, modality: str, precision: str, recipe: Recipe, device: torch.device
) -> None:
    model, split, own = stand_in(modality, recipe)
    model.to(device)
    if modality == "text":  # what a method puts before a question is long
        model.model.config.max_position_embeddings = 512
    method = make(METHODS[name], own)
    if precision == "bfloat16":
        halved(model, modality)
        if modality == "images":
            method = replace(method, train=replace(method.train, precision="bf16"))
    kinds = {n: p.dtype for n, p in model.named_parameters()}
    made = method(model, split, 0)
    check(made, modality, split, device)
    if "fresh_model" not in method.needs:
        assert all(p.dtype == kinds.get(n, p.dtype) for n, p in made.named_parameters())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("modality", ["text", "multimodal"])
@pytest.mark.parametrize("name", sorted(CONTINUAL))
def test_a_continual_method(name: str, modality: str, precision: str, device: torch.device) -> None:
    if modality == "text":
        model = TinyLlama(hidden=16, layers=1, heads=2, vocabulary=400).build(0)
        data, task = fictional_authors(3, 1, 1).train, Answering()
    else:
        sizes = {"vision_hidden": 16, "vision_layers": 1, "vision_heads": 2}
        model = TinyLlava(VOCABULARY, patch=16, hidden=16, layers=1, heads=2, **sizes).build(0)
        data, task = restricted_symbols(12, 12, 12).train.forget, VisualAnswering()
    model.to(device)
    options = CONTINUED.get(name, {"rank": 2, "alpha": 6})
    if modality == "multimodal":
        options = {**options, "projector": "multi_modal_projector"}
    method = CONTINUAL[name](train=TRAIN, **options)
    stages = [
        Stage(str(i), task, model.encoded(data.subset(range(8 * i, 8 * i + 8)))) for i in range(2)
    ]
    if precision == "bfloat16":
        halved(model, modality)
    for _, learned in method.learn(model, stages, 0):
        for n, p in learned.named_parameters():
            assert p.device.type == device.type, f"{n} is on {p.device}"
            assert p.isfinite().all(), f"{n} is not finite"
