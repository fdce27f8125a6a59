"""The contract that every method passes, whoever wrote it."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

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


#: Where a module keeps what is called beside it.
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


class ContractError(AssertionError):
    """A method broke a promise that all methods make."""


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all weights and buffers, those too that are not saved."""
    return {k: v.detach().clone() for k, v in _tensors(model).items()}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a
    )


def _modules(model: nn.Module) -> list[tuple[str, str]]:
    return [(name, type(module).__name__) for name, module in model.named_modules()]


def _flags(model: nn.Module) -> tuple[dict[str, bool], dict[str, bool]]:
    """What may be trained, and which modules are in training mode."""
    free = {name: p.requires_grad for name, p in model.named_parameters()}
    return free, {name: module.training for name, module in model.named_modules()}


def _hooks(model: nn.Module) -> set[tuple[str, str, int]]:
    """What is called beside the modules, but for what transformers puts there when it is run."""
    return {
        (name, kind, key)
        for name, module in model.named_modules()
        for kind in HOOKS
        for key, hook in getattr(module, kind).items()
        if not (getattr(hook, "__module__", None) or "").startswith("transformers.")
    }


def _switches() -> dict[str, Any]:
    """The switches of the whole process, in words."""
    cudnn = torch.backends.cudnn
    return {
        "gradients are on": torch.is_grad_enabled(),
        "default precision": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "precision of matrix products": torch.get_float32_matmul_precision(),
        "anomaly detection": torch.is_anomaly_enabled(),
        "cuDNN": (cudnn.enabled, cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32),
    }


def _random_states() -> list[Any]:
    """The global states of torch, Python and NumPy, the place in each of them included."""
    drawn = np.random.get_state()
    return [torch.get_rng_state().tolist(), random.getstate(), drawn[1].tolist(), *drawn[2:]]


def _expect(condition: bool, method: Method, promise: str) -> None:
    if not condition:
        raise ContractError(f"{type(method).__name__}: {promise}")


def _fingerprints(split: ForgetSplit) -> dict[str, Any]:
    """What is in the split, where it can be read without a method's leave."""
    found: dict[str, Any] = {"task": repr(split.task)}
    for name in PARTS:
        part = getattr(split, name)
        if hasattr(part, "fingerprint"):
            found[name] = part.fingerprint()
        elif part is not None:  # somebody's own
            leaves = tree_leaves([part[i] for i in range(len(part))])
            found[name] = [x.tolist() if isinstance(x, Tensor) else repr(x) for x in leaves]
    return found


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

    - It ends without an error, and the result is a model in evaluation mode with finite weights and
      buffers, where the given one is.
    - The given model is unchanged: weights, buffers, modules, hooks, what is frozen and which mode it is
      in; so is the split.
    - What the result has in common with the given model has the same precision and, unless it makes a
      fresh model, is as free or frozen and has no new hook. One that trains the model keeps its modules.
    - The same seed gives the same weights, another one other weights exactly where the method says that
      it ``draws``; ``inplace=True`` gives the same result.
    - No random state, switch of PyTorch or ``.grad`` is left changed.

    Raises
    ------
    ContractError
        Names the method and the promise that it broke; it is an `AssertionError`.
    TypeError, ValueError, NotFiniteError
        What is given can't be checked: ``method`` is no instance of `Method`; of model and split there is
        one alone, or there is no stand-in of a modality; or as of `Method.check`, they are none that the
        method works on.
    """
    if not isinstance(method, Method):
        raise TypeError(f"a method is checked, such as SSD(), not {method!r}")
    if (model is None) != (split is None):
        raise ValueError("give both a model and a split, or neither")
    if model is None:
        _expect(bool(method.works_on), method, "it works on nothing")
        if unknown := sorted(set(method.works_on) - STAND_INS.keys()):
            raise ValueError(f"there is no stand-in of {unknown[0]}; give a model and a split")
        for modality in sorted(method.works_on):
            check_method(method, *STAND_INS[modality]())
        return
    method.check(model, split)
    before, data, switches = _state(model), _fingerprints(split), _switches()
    modules, flags, hooks = _modules(model), _flags(model), _hooks(model)
    states = _random_states()
    first = _run(method, model, split, 0)
    for what, was, now in (
        ("the given model was changed", before, _state(model)),
        ("the given model has other modules", modules, _modules(model)),
        ("the given model was left frozen, free or in another mode", flags, _flags(model)),
        ("hooks were left on the given model", hooks, _hooks(model)),
        ("the split was changed", data, _fingerprints(split)),
    ):
        same = _equal(was, now) if was is before else was == now
        _expect(same, method, what)
    left = [p.grad for m in (model, first) for p in m.parameters()]
    _expect(all(g is None for g in left), method, "gradients were left behind")
    _expect(states == _random_states(), method, "a global random state was changed")
    for switch, value in _switches().items():
        _expect(value == switches[switch], method, f"it left a switch changed: {switch}")
    _expect(not first.training, method, "the result is in training mode")
    own, fresh = _tensors(model), "fresh_model" in method.needs
    places = {t.device for t in _tensors(first).values()}
    _expect(places <= {t.device for t in own.values()}, method, "the result is on another device")
    if method.trains and not fresh and type(first) is type(model):
        _expect(_modules(first) == modules, method, "the result has other modules")
    for name, now in _tensors(first).items():
        if name in own:
            _expect(now.dtype == own[name].dtype, method, f"{name} has another precision")
            kept = fresh or now.requires_grad == own[name].requires_grad
            _expect(kept, method, f"{name} was left {'free' if now.requires_grad else 'frozen'}")
    if not fresh:
        there = {name for name, _ in modules}
        new = sorted(f"{k.strip('_')} of {n!r}" for n, k, _ in _hooks(first) - hooks if n in there)
        _expect(not new, method, f"it left a hook behind: {', '.join(new)}")
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
