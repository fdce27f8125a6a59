"""The cross-attention of a text-to-image model: what it looks at, and training it alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ..models.diffusion import PromptEncoder

__all__ = ["attention_maps", "concept_tokens", "training_only"]


@contextlib.contextmanager
def attention_maps(unet: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collect the probabilities of every cross-attention (``attn2``), with their gradients.

    While the block runs, these layers compute them in the open; a fused attention hides them.

    Parameters
    ----------
    unet : of diffusers, or a module around it; adapters on the projections are seen

    Yields
    ------
    name of the layer -> (n, heads, pixels, tokens), of the layer's last forward

    Raises
    ------
    ValueError
        There is no cross-attention.
    """
    from diffusers.models.attention_processor import AttnProcessor

    maps: dict[str, Tensor] = {}
    layers = {n: m for n, m in unet.named_modules() if n.rpartition(".")[2] == "attn2"}
    if not layers:
        raise ValueError("the model has no cross-attention (no layer is called attn2)")
    former = {name: layer.processor for name, layer in layers.items()}

    def recorded(name: str, layer: nn.Module) -> Callable[..., Tensor]:
        plain = layer.get_attention_scores

        def scores(*given: Tensor | None) -> Tensor:
            found = plain(*given)
            maps[name] = found.unflatten(0, (-1, layer.heads))
            return found

        return scores

    try:
        for name, layer in layers.items():
            layer.set_processor(AttnProcessor())
            layer.get_attention_scores = recorded(name, layer)
        yield maps
    finally:
        for name, layer in layers.items():
            layer.set_processor(former[name])
            vars(layer).pop("get_attention_scores", None)  # the class has its own


def concept_tokens(
    encoder: PromptEncoder, prompts: Sequence[str], words: Sequence[str], ending: bool = False
) -> Tensor:
    """Which tokens of each prompt are its concept's words: (n, length) bool.

    Parameters
    ----------
    words : one concept for each prompt, as it stands in it
    ending : also the token that ends a text, and padding where that is the same token (the CLIP of
        Stable Diffusion 1)

    Raises
    ------
    ValueError
        A prompt doesn't hold its words, or is cut before they end.
    """
    tokenizer = encoder.tokenizer
    ids = encoder.tokens(prompts)[0]
    found = torch.zeros_like(ids, dtype=torch.bool)
    for row, prompt, concept, chosen in zip(ids.tolist(), prompts, words, found, strict=True):
        wanted = tokenizer(concept, add_special_tokens=False)["input_ids"]
        n = len(wanted)
        starts = [s for s in range(len(row)) if n and row[s : s + n] == wanted]
        if not starts:
            raise ValueError(f"the prompt {prompt!r} doesn't hold {concept!r} in whole")
        for start in starts:
            chosen[start : start + n] = True
    if ending:
        last = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        found |= ids == last
    return found


@contextlib.contextmanager
def training_only(model: nn.Module, chosen: Callable[[str], bool]) -> Iterator[None]:
    """While the block runs, only the parameters with a chosen name can be trained.

    Raises
    ------
    ValueError
        No parameter has such a name.
    """
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    if not any(map(chosen, before)):
        raise ValueError("the model has none of the parameters that are to be trained")
    try:
        for name, p in model.named_parameters():
            p.requires_grad_(before[name] and chosen(name))
        yield
    finally:
        for name, p in model.named_parameters():
            p.requires_grad_(before[name])
