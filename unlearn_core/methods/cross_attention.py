r"""Editing the keys and values of a text-to-image model's cross-attention, in closed form and by LoRA.

All closed forms of this family are one weighted least-squares problem a matrix. With rows :math:`e_i` of
text states, what each is to give :math:`v_i`, and weights :math:`s_i`,

.. math:: W' = \Big(\lambda W + \sum_i s_i\, v_i e_i^\top\Big)
               \Big(\lambda I + \sum_i s_i\, e_i e_i^\top\Big)^{-1}.

Rows that are to be kept have :math:`v_i = W e_i`. UCE, MACE and RealEra differ in their rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..models import Diffusion, TextConditional, TrainConfig, train
from ..models.diffusion import PromptEncoder
from ..seeding import seeded
from .cross_attention_training import concept_tokens

__all__ = [
    "Weights",
    "edit",
    "fuse",
    "gain",
    "low_rank",
    "original_epsilon",
    "projections",
    "shared_rows",
    "solve",
    "spans",
    "text_rows",
    "whole",
]

#: Matrices or what is added to them, by the names of `projections`.
Weights = dict[str, Tensor]

#: The ridge of a system that can't be solved without one, as a share of its mean eigenvalue.
RIDGE = 1e-8


def projections(model: Diffusion) -> dict[str, nn.Parameter]:
    """The keys' and values' matrices of every cross-attention, (out, text dimensions) each.

    Raises
    ------
    ValueError
        The model has no cross-attention.
    """
    ends = ("attn2.to_k.weight", "attn2.to_v.weight")
    found = {n: p for n, p in model.unet.named_parameters() if n.endswith(ends)}
    if not found:
        raise ValueError("the model has no cross-attention (no layer is called attn2)")
    return found


def gain(rows: Tensor, scale: Tensor, ridge: float) -> Tensor:
    """:math:`R` of :math:`W' = W + \\sum_i (v_i - W e_i)\\,r_i^\\top`, in float64: (n, d).

    It is the same for every matrix, of whatever values. Of fewer rows than columns it comes from a
    system of the rows' size, :math:`R = (\\lambda I + S E E^\\top)^{-1} S E`.

    Parameters
    ----------
    rows : :math:`e_i`, (n, d)
    scale : :math:`s_i`, (n,)
    ridge : :math:`\\lambda`; where it is 0 and the rows do not determine the matrix, a small one is taken,
        and a warning says so
    """
    rows, scale = rows.double(), scale.double()
    n, d = rows.shape
    if not scale.any():
        return torch.zeros_like(rows)  # nothing is asked for
    weighted = scale[:, None] * rows
    if ridge == 0:
        system = weighted.T @ rows
        if torch.linalg.matrix_rank(system, hermitian=True) < d:
            ridge = RIDGE * system.trace().item() / d
            warnings.warn(
                f"{n} rows do not determine a matrix of {d} columns; it is kept by a ridge of "
                f"{ridge:.1e}",
                stacklevel=2,
            )
    if n < d:
        inner = weighted @ rows.T
        inner.diagonal().add_(ridge)
        return torch.linalg.solve(inner, weighted)
    system = weighted.T @ rows
    system.diagonal().add_(ridge)
    return torch.linalg.solve(system, weighted.T).T


def solve(weight: Tensor, rows: Tensor, values: Tensor, scale: Tensor, ridge: float) -> Tensor:
    """:math:`W'` of the problem above, in float64: (out, d).

    Parameters
    ----------
    weight : :math:`W`, (out, d)
    rows, values : :math:`e_i` (n, d) and :math:`v_i` (n, out)
    scale, ridge : as of `gain`
    """
    weight, rows = weight.double(), rows.double()
    return weight + (values.double() - rows @ weight.T).T @ gain(rows, scale, ridge)


@torch.no_grad()
def edit(
    model: Diffusion,
    rows: Tensor,
    instead: Tensor | Mapping[str, Tensor],
    scale: Tensor,
    ridge: float,
) -> None:
    """Solve for every projection, and put what is found in its place.

    Parameters
    ----------
    rows : (n, d)
    instead : the rows whose values these are to have (n, d); or the values themselves for each matrix
    scale : (n,)
    """
    weights = projections(model)
    device = next(iter(weights.values())).device
    rows = rows.double().to(device)
    shared = gain(rows, scale.to(device), ridge)
    for name, w in weights.items():
        before = w.double()
        if isinstance(instead, Mapping):
            errors = instead[name].double() - rows @ before.T
        else:
            errors = (instead.double().to(device) - rows) @ before.T
        w.copy_(before + errors.T @ shared)


def text_rows(encoder: PromptEncoder, prompt: str) -> Tensor:
    """The states of a prompt's tokens, without what a masked encoder fills up with: (rows, d)."""
    (states,) = encoder([prompt])
    return states[: _length(encoder, prompt)]


def _length(encoder: PromptEncoder, prompt: str) -> int:
    """How many rows count: those of the text, or all where padding counts as text."""
    return int(encoder.tokens([prompt])[1].sum()) if encoder.masked else encoder.length


def whole(encoder: PromptEncoder, prompts: Iterable[str]) -> Tensor:
    """All rows of several prompts, (n, d)."""
    found = [text_rows(encoder, p) for p in prompts]
    return torch.cat(found) if found else torch.empty(0, encoder.dimensions)


def spans(
    encoder: PromptEncoder, prompt: str, words: str, other: str, instead: str
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where the words begin and end (the position after) in a prompt, and those that stand
    ``instead`` in the ``other`` one: where the words begin, if these are none."""

    def span(text: str, part: str) -> tuple[int, int]:
        chosen = concept_tokens(encoder, [text], [part])[0].nonzero()[:, 0]
        return int(chosen.min()), int(chosen.max()) + 1

    found = span(prompt, words)
    return found, span(other, instead) if instead.strip() else (found[0], found[0])


def shared_rows(
    encoder: PromptEncoder, prompt: str, words: str, other: str, instead: str
) -> tuple[list[int], list[int]]:
    """Which rows of ``other`` each row of ``prompt`` corresponds to: two lists of positions.

    What stands before the words, to what stands before; every token of the words, to the last token
    of those that stand ``instead``, or before them where these are none; what stands behind, to
    what stands behind, as far as both go.
    """
    (start, end), (begin, stop) = spans(encoder, prompt, words, other, instead)
    before = min(start, begin)
    behind = min(_length(encoder, prompt) - end, _length(encoder, other) - stop)
    mine = [*range(before), *range(start, end), *(end + k for k in range(behind))]
    theirs = [
        *range(before),
        *[stop - 1] * (end - start),  # a token begins every text, so there is one
        *(stop + k for k in range(behind)),
    ]
    return mine, theirs


def low_rank(
    model: TextConditional,
    batches: Callable[[int], Iterable[Any]],
    loss: Callable[[nn.Module, Any], Tensor],
    config: TrainConfig,
    rank: int,
    seed: int,
    name: str,
) -> Weights:
    """Train a LoRA on all projections, take it off again, and return what it adds to each.

    It begins as MACE's does (diffusers' ``LoRALinearLayer``), from a Gaussian of deviation 1/rank:
    peft's own default is far smaller, and the same steps and learning rate would move far less.
    ``model`` ends as it was.
    """
    from peft import LoraConfig

    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    names = list(projections(model))
    targets = [n.removesuffix(".weight") for n in names]
    config_of_lora = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=targets, init_lora_weights="gaussian"
    )
    with seeded(seed, "lora"):
        model.unet.add_adapter(config_of_lora)
    try:
        train(model, batches, loss, config, seed=seed, name=name)
        layers = dict(model.unet.named_modules())
        return {
            n: layers[t].get_delta_weight("default").detach()
            for n, t in zip(names, targets, strict=True)
        }
    finally:
        model.unet.unload_lora()
        for n, p in model.named_parameters():
            p.requires_grad_(flags[n])


def original_epsilon(
    model: TextConditional, original: Weights, x_t: Tensor, t: Tensor, states: Tensor
) -> Tensor:
    """What the original predicts; of it, only its ``original`` projections are held.

    Adapters of ``model`` are left out.
    """
    layers = {n.removesuffix(".weight"): n for n in original}
    known = dict(model.unet.named_parameters())
    swapped = {}
    for layer, name in layers.items():
        inside = f"{layer}.base_layer.weight"
        swapped[inside if inside in known else name] = original[name]
    adapted = any(".base_layer." in n for n in swapped)
    if adapted:
        model.unet.disable_adapters()
    try:
        own = next(model.unet.parameters()).dtype
        with torch.no_grad(), model.autocast():
            out = torch.func.functional_call(
                model.unet, swapped, (x_t.to(own), t), {"encoder_hidden_states": states.to(own)}
            )
        return out.sample.float()
    finally:
        if adapted:
            model.unet.enable_adapters()


@torch.no_grad()
def fuse(
    model: TextConditional,
    original: Weights,
    added: Sequence[Weights],
    requests: Sequence[Sequence[tuple[str, str]]],
    keep: Sequence[str],
    keep_weight: float,
    ridge: float,
) -> None:
    """Put the concepts' LoRAs into the projections, in place: MACE's closed-form fusion.

    Every matrix is to give each concept's rows what it would give with that concept's LoRA alone, and
    what is to be kept what the original gave; the ridge pulls to the matrix as it is. So a LoRA acts on
    its concept's rows, also where there is one alone.
    """
    encoder = model.prompts
    parts = [whole(encoder, [prompt for prompt, _ in pairs]) for pairs in requests]
    kept = whole(encoder, keep)
    rows = torch.cat([*parts, kept])
    scale = torch.ones(len(rows), dtype=torch.float64)
    scale[len(rows) - len(kept) :] = keep_weight
    values = {}
    for name, w in projections(model).items():
        at = w.detach().double()
        own = [
            part.to(at) @ (at + more[name].double()).T
            for part, more in zip(parts, added, strict=True)
        ]
        values[name] = torch.cat([*own, kept.to(at) @ original[name].double().T])
    edit(model, rows, values, scale, ridge)
