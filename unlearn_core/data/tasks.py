"""What a model is trained to do: the loss of a batch, and what a wrong label is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .images import Batch, ImageSet

__all__ = ["Classification"]


@dataclass(frozen=True)
class Classification:
    """Learning one of ``classes`` labels under the cross-entropy."""

    classes: int

    def loss(self, model: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
        """Mean cross-entropy of the batch ``(x, y)``: a scalar."""
        x, y = batch
        return torch.nn.functional.cross_entropy(model(x), y)

    def relabel(
        self, data: ImageSet, generator: torch.Generator, *, wrong: bool = True
    ) -> ImageSet:
        """Give every image a random label: uniform over the other classes, or over all of them.

        Called once, the labels are drawn once; called before each epoch, they are redrawn.
        """
        lowest = 1 if wrong else 0
        shift = torch.randint(lowest, self.classes, data.labels.shape, generator=generator)
        return data.with_labels((data.labels + shift) % self.classes)
