"""Every method as small and as active as it can be, and what it can be called on."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from unlearn_core.data import Answering, Denoising, ForgetSplit, VisualAnswering
from unlearn_core.data.restricted_symbols import VOCABULARY
from unlearn_core.methods import METHODS, GradientAscent, Method
from unlearn_core.methods.contract import STAND_INS
from unlearn_core.models import Recipe, TextToImage, TinyLlama, TinyLlava, TrainConfig

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
