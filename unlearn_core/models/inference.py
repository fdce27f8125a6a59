"""Running a classifier over a data set."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..data import batches
from .training import device_of

__all__ = ["Outputs", "predict"]


@dataclass(frozen=True)
class Outputs:
    """What a classifier says of a data set, on the CPU: logits (N, classes) and labels (N,)."""

    logits: Tensor
    labels: Tensor


@torch.no_grad()
def predict(model: nn.Module, data: Dataset, batch_size: int = 256) -> Outputs:
    """Logits of the whole data set, in its order; the model is in evaluation mode meanwhile."""
    device, mode = device_of(model), model.training
    model.eval()
    try:
        out = [(model(x.to(device)).float().cpu(), y) for x, y in batches(data, batch_size)]
    finally:
        model.train(mode)
    return Outputs(torch.cat([x for x, _ in out]), torch.cat([y for _, y in out]))
