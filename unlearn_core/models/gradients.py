"""Gradients of single examples, and gradients of gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["plain_attention", "sample_gradients"]


def plain_attention() -> AbstractContextManager[None]:
    """In the block attention is computed by matrix products alone. The fast kernels of PyTorch can't be
    differentiated twice, nor, on a CPU, be run over single examples in one pass.
    """
    return sdpa_kernel(SDPBackend.MATH)


def sample_gradients(
    model: nn.Module, loss: Callable[[Any, Any], Tensor], batch: tuple[Tensor, ...]
) -> Iterator[dict[str, Tensor]]:
    """The loss gradient of every example of ``batch``, chunk by chunk.

    Chunks hold at most 2**26 numbers (256 MB in float32).

    Parameters
    ----------
    model : in evaluation mode, for BatchNorm would mix the examples otherwise
    loss : (function from x to logits, batch of one example) -> scalar
    batch : tensors with the examples along the first dimension, where the model is

    Yields
    ------
    name of a trainable parameter -> (examples of the chunk, *the parameter's shape)
    """
    weights = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    others = {n: p.detach() for n, p in model.named_parameters() if not p.requires_grad}
    others |= dict(model.named_buffers())

    def loss_of_one(weights: dict[str, Tensor], sample: Any) -> Tensor:
        one = tuple(t.unsqueeze(0) for t in sample)
        return loss(lambda x: functional_call(model, {**weights, **others}, (x,)), one)

    chunk = max(1, 2**26 // sum(p.numel() for p in weights.values()))
    gradients = vmap(grad(loss_of_one), in_dims=(None, 0))
    for start in range(0, len(batch[0]), chunk):
        with plain_attention():
            found = gradients(weights, tuple(t[start : start + chunk] for t in batch))
        yield found
