"""Print the peak memory of SSD's two importance passes, and what they must hold, as JSON.

A program of its own: in a process that has worked before, memory that was freed but not given
back hides the peak.
"""

from __future__ import annotations

import json

import torch
from torch import Tensor, nn

from unlearn_core.data import Classification
from unlearn_core.methods.ssd import importances
from unlearn_core.metrics import measure
from unlearn_core.models import ResNet18

loss = Classification(10).loss
Batch = tuple[Tensor, Tensor]


def batch_of(n: int) -> Batch:
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, 32, 32, generator=g), torch.randint(0, 10, (n,), generator=g)


def activation_bytes(model: nn.Module, batch: Batch) -> int:
    """What the forward pass keeps for the backward pass, weights left out, in bytes."""
    kept: dict[int, int] = {}
    own = {t.untyped_storage().data_ptr() for t in model.state_dict().values()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss(model, batch)
    return sum(kept.values())


def main() -> None:
    torch.set_num_threads(1)
    model, batches = ResNet18(10, 3, width=8).build(0), [batch_of(64)] * 2
    importances(model, [batch_of(2)], loss)  # loads the code, which takes memory too
    with measure(torch.device("cpu")) as cost:
        pair = importances(model, batches, loss), importances(model, batches, loss)
    del pair
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    activations = activation_bytes(model, batches[0])
    # The weights are there before the block begins; gradients and importances come with it.
    print(
        json.dumps(
            {
                "peak_memory_mb": cost.peak_memory,
                "weights_mb": weights / 1e6,
                "activations_mb": activations / 1e6,
            }
        )
    )


if __name__ == "__main__":
    main()
