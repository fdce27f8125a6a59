"""The contract that every method passes, whoever wrote it."""

from __future__ import annotations

import copy
import random
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from ..data import (
    IDK,
    REFUSALS,
    Concepts,
    ForgetSplit,
    VisualAnswering,
    captioned_shapes,
    fictional_authors,
    forget_class,
    forget_concepts,
    forget_questions,
    restricted_symbols,
    shapes,
)
from ..data.restricted_symbols import VOCABULARY
from ..models import (
    NotFiniteError,
    SmallCNN,
    TextToImage,
    TinyLlama,
    TinyLlava,
    require_finite,
)
from .base import PARTS, Method

__all__ = ["STAND_INS", "ContractError", "check_method"]


class ContractError(AssertionError):
    """A method broke a promise that all methods make."""


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def _equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def _expect(condition: bool, method: Method, promise: str) -> None:
    if not condition:
        raise ContractError(f"{type(method).__name__}: {promise}")


def _fingerprints(split: ForgetSplit) -> dict[str, str]:
    parts = {name: getattr(split, name) for name in PARTS}
    return {n: part.fingerprint() for n, part in parts.items() if hasattr(part, "fingerprint")}


def _run(
    method: Method, model: nn.Module, split: ForgetSplit, seed: int, **options: bool
) -> nn.Module:
    try:
        made = method(model, split, seed, **options)
    except Exception as error:
        name = type(method).__name__
        raise ContractError(f"{name}: it ends in a {type(error).__name__}: {error}") from error
    _expect(isinstance(made, nn.Module), method, f"it returns {made!r:.60}, which is no model")
    try:
        require_finite(made, "the result")
    except NotFiniteError as error:
        raise ContractError(f"{type(method).__name__}: {error}") from error
    return made


def _images() -> tuple[nn.Module, ForgetSplit]:
    split = forget_class(shapes(per_class=8, test_per_class=2, fills=1), 3)
    return SmallCNN(split.task.classes, 1, width=4).build(0), split


def _questions() -> tuple[nn.Module, ForgetSplit]:
    model = TinyLlama(hidden=16, layers=2, heads=2, vocabulary=400).build(0)
    data = fictional_authors(authors=2, forget_authors=1, holdout_authors=1)
    split = forget_questions(data, model.encoded, IDK[:5])
    as_many = split.retain.subset(range(len(split.forget)))
    return model, replace(
        split, retain=as_many, decouple=split.forget.with_answers(IDK[:1] * len(as_many))
    )


def _sights() -> tuple[nn.Module, ForgetSplit]:
    sizes = {"vision_hidden": 16, "vision_layers": 1, "vision_heads": 2}
    model = TinyLlava(VOCABULARY, patch=16, hidden=16, layers=1, heads=2, **sizes).build(0)
    part = restricted_symbols(base_images=12, train_images=12, val_images=12).train
    sets = (part.forget, part.retain, part.decouple)
    forget, retain, decouple = (model.encoded(one.subset(range(8))) for one in sets)
    return model, ForgetSplit(
        "symbols", VisualAnswering(REFUSALS[:3]), forget, retain, decouple=decouple
    )


def _drawings() -> tuple[nn.Module, ForgetSplit]:
    model = TextToImage(size=16, widths=(8, 16)).build(0)
    concepts = Concepts((("a disc", "a shape"),), ("a square", ""), ("a photo of {}", "{}"))
    return model, forget_concepts(captioned_shapes(4, 1), concepts)


#: A model and a split of each modality, as small as they can be.
STAND_INS = {
    "diffusion": _drawings,
    "images": _images,
    "multimodal": _sights,
    "text": _questions,
}


def check_method(
    method: Method, model: nn.Module | None = None, split: ForgetSplit | None = None
) -> None:
    """Run ``method`` four times and hold it to its promises, on the given model and split.

    Without them, on a stand-in of each modality that it works on. The promises:

    it ends without an error; the model that it was given is unchanged, and so is the split; the
    result is a model in evaluation mode with finite weights and buffers, where the given one is; the
    weights that it has in common with the given one have the same precision and, unless it makes a
    fresh model, are as free or frozen; the same seed gives the same weights; another seed gives
    other weights exactly where the method says that it ``draws``; ``inplace=True`` gives the same
    result; no random state, gradient switch, default precision or ``.grad`` is left changed.

    Raises
    ------
    ContractError
        Names the method and the promise that it broke.
    TypeError, ValueError, NotFiniteError
        As of `Method.check`: the given model and split are none that the method works on.
    """
    if (model is None) != (split is None):
        raise ValueError("give both a model and a split, or neither")
    if model is None:
        for modality in sorted(method.works_on):
            check_method(method, *STAND_INS[modality]())
        return
    method.check(model, split)
    before, data = _state(model), _fingerprints(split)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    precision = torch.get_default_dtype()
    first = _run(method, model, split, 0)
    _expect(_equal(before, _state(model)), method, "the given model was changed")
    _expect(data == _fingerprints(split), method, "the split was changed")
    left = [p.grad for m in (model, first) for p in m.parameters()]
    _expect(all(g is None for g in left), method, "gradients were left behind")
    _expect(
        torch.equal(states[0], torch.get_rng_state())
        and states[1] == random.getstate()
        and (states[2] == np.random.get_state()[1]).all(),
        method,
        "a global random state was changed",
    )
    _expect(torch.is_grad_enabled(), method, "gradients were left switched off")
    _expect(precision == torch.get_default_dtype(), method, "the default precision was changed")
    _expect(not first.training, method, "the result is in training mode")
    here = next(model.parameters()).device
    _expect(next(first.parameters()).device == here, method, "the result is on another device")
    own = dict(model.named_parameters())
    for name, p in first.named_parameters():
        if name in own:
            _expect(p.dtype == own[name].dtype, method, f"{name} has another precision")
            kept = p.requires_grad == own[name].requires_grad or "fresh_model" in method.needs
            _expect(kept, method, f"{name} was left {'free' if p.requires_grad else 'frozen'}")
    same, other = _run(method, model, split, 0), _run(method, model, split, 1)
    _expect(_equal(_state(first), _state(same)), method, "the same seed gave other weights")
    _expect(
        _equal(_state(first), _state(other)) != method.draws,
        method,
        "another seed gave the same weights, but it says that it draws"
        if method.draws
        else "another seed gave other weights, but it says that it does not draw",
    )
    consumed = _run(method, copy.deepcopy(model), split, 0, inplace=True)
    _expect(_equal(_state(first), _state(consumed)), method, "inplace=True gave another result")
