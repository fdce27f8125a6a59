"""Low-rank adapters of peft on a chat's language model, for the length of a block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from ..extras import needing
from ..models import Chat, tell_what_rounds_away
from ..seeding import seeded

__all__ = ["LLAMA_LINEARS", "Factors", "adapters", "frozen", "linears", "submodule"]

#: The linear maps of a Llama's layers.
LLAMA_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

#: Layer -> its A (rank, inputs) and B (outputs, rank).
Factors = Mapping[str, tuple[Tensor, Tensor]]


def linears(model: Chat, targets: Iterable[str] = LLAMA_LINEARS) -> dict[str, nn.Linear]:
    """The language model's linear maps under these names or ends of names, its head left out.

    Raises
    ------
    ValueError
        A target that is not there, or has an adapter.
    """
    modules = model.model.get_decoder().named_modules()
    every = {name: m for name, m in modules if isinstance(m, nn.Linear)}
    found: set[str] = set()
    for target in targets:
        here = [n for n in every if f".{n}".endswith(f".{target}")]
        if not here and any(f".{target}.base_layer" in f".{n}" for n in every):
            raise ValueError(
                f"the language model has adapters on {target!r} already: merge them first "
                "(chat.model = chat.model.merge_and_unload())"
            )
        if not here:
            known = ", ".join(sorted({n.rpartition(".")[2] for n in every}))
            raise ValueError(f"the language model has no linear map {target!r}; known: {known}")
        found.update(here)
    return {n: m for n, m in every.items() if n in found}


def submodule(model: nn.Module, name: str) -> nn.Module:
    """The module of that name, or whose name ends so.

    Raises
    ------
    ValueError
        There is none.
    """
    for full, module in model.named_modules():
        if f".{full}".endswith(f".{name}"):
            return module
    parts = {n.rpartition(".")[2] for n, _ in model.named_modules() if n.count(".") <= 2} - {""}
    raise ValueError(f"no module is called {name!r}; known: {', '.join(sorted(parts))}")


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """While the block runs, only parameters that it chooses can be trained."""
    flags = [(p, p.requires_grad) for p in model.parameters()]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)


@contextlib.contextmanager
@needing("llm")
def adapters(
    model: Chat,
    seed: int,
    *names: object,
    rank: int,
    alpha: float,
    dropout: float = 0.05,
    targets: tuple[str, ...] = LLAMA_LINEARS,
) -> Iterator[Factors]:
    """Fresh adapters, the only thing that can be trained in the block; merged at its end.

    ``model`` is changed in place. A, which is drawn, depends on ``seed`` and ``names``.

    Warns
    -----
    PrecisionWarning
        As of `tell_what_rounds_away`, where the model's weights are of half precision.
    """
    from peft import LoraConfig, LoraModel

    decoder, layers_of = model.model.get_decoder(), [*linears(model, targets)]
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=layers_of)
    with frozen(model):
        with seeded(seed, *names):
            attached = LoraModel(decoder, config, "default")  # changes the layers in place
        layers = {n: decoder.get_submodule(n) for n in layers_of}
        for layer in layers.values():
            # A half-precision model still has adapters in single precision.
            for part in (layer.lora_A, layer.lora_B):
                part.to(torch.promote_types(layer.weight.dtype, torch.float32))
        yield {
            n: (m.lora_A["default"].weight, m.lora_B["default"].weight) for n, m in layers.items()
        }
        moved = {n: _moved(m) for n, m in layers.items() if m.weight.dtype.itemsize < 4}
        attached.merge_and_unload()
        rounded = ((*pair, _rows(decoder.get_submodule(n).weight)) for n, pair in moved.items())
        tell_what_rounds_away("adapters", rounded)


def _rows(weight: Tensor) -> Tensor:
    """A few rows, evenly spaced, which stand for all."""
    return weight.detach()[:: max(1, len(weight) // 16)]


def _moved(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Some weights of a layer with adapters, and what they would be with them."""
    before = _rows(layer.weight).clone()
    A, B = (part["default"].weight.detach() for part in (layer.lora_A, layer.lora_B))
    return before, before.float() + layer.scaling["default"] * (_rows(B) @ A)
