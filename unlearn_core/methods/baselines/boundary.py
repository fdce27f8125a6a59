"""Boundary unlearning (Chen, Gao, Liu, Peng and Wang, CVPR 2023), as the SalUn paper runs it.

*Shrink* gives every forget image the label that the original model gives to an adversarial copy
of it, which lies across the nearest decision boundary. *Expand* trains the forget set towards a
class that does not exist. Both see the forget set only (github.com/OPTML-Group/Unlearn-Saliency,
``Classification/unlearn/boundary_sh.py`` and ``boundary_ex.py``: SGD, ten epochs).

One deviation: the authors evaluate the expanded model with its additional logit, which by
construction lowers the accuracy on the forget set. Here that logit is gone in the end.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...data import Classification, ForgetSplit, ImageSet, batches, logits_by
from ...fields import Share
from ...models import TrainConfig, device_of, evaluating, shuffled_epochs, train
from ...seeding import seeded
from ..base import Method

__all__ = ["BoundaryExpand", "BoundaryShrink", "adversarial", "output_layer"]


def adversarial(
    x: Tensor, gradient: Tensor, mean: Sequence[float], std: Sequence[float], step: float
) -> Tensor:
    """Normalised images after a step along the gradient's sign (FGSM, Goodfellow et al., 2015).

    ``step`` is in units of [0, 1] pixel values, where the result is clamped to that range and
    rounded to 8 bits.

    Parameters
    ----------
    x, gradient : (B, C, H, W), images normalised by ``mean`` and ``std``, and the loss's gradient
    """
    mean, std = (
        torch.tensor(v, dtype=x.dtype, device=x.device).view(-1, 1, 1) for v in (mean, std)
    )
    # Back on the 8-bit grid first: a step of 0.1 is 25.5 levels, so noise would decide the rounding.
    pixels = ((x * std + mean) * 255).round() / 255
    moved = (pixels + step * gradient.sign()).clamp(0, 1)
    return ((moved * 255).round() / 255 - mean) / std


@dataclass(frozen=True)
class BoundaryShrink(Method):
    """Learn, for every forget image, the class across its nearest boundary.

    Attributes
    ----------
    step : of the adversarial image, in units of [0, 1] pixel values; of inputs that are no `ImageSet`,
        in their own units, and without limits
    """

    name: ClassVar[str] = "boundary_shrink"
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "reference"})
    draws: ClassVar[bool] = True

    train: TrainConfig = TrainConfig(
        epochs=10, lr=1e-6, batch_size=256, momentum=0.9, weight_decay=5e-4
    )
    step: Share = 0.1

    def labels(self, original: nn.Module, split: ForgetSplit, batch: Any) -> Tensor:
        """What the original, in evaluation mode, sees in the adversarial images: (B,) int64."""
        x, y = batch
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(split.task.loss(original, (x, y)), [x])
        with torch.no_grad():
            if isinstance(split.forget, ImageSet):
                moved = adversarial(x, gradient, split.forget.mean, split.forget.std, self.step)
            else:
                moved = x + self.step * gradient.sign()
            return split.task.logits(original, (moved, y)).argmax(dim=1)

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        original = copy.deepcopy(model).eval().requires_grad_(False)

        def loss(model: nn.Module, batch: Any) -> Tensor:
            return split.task.loss(model, (batch[0], self.labels(original, split, batch)))

        epochs = shuffled_epochs(split.forget, self.train, seed)
        return train(model, epochs, loss, self.train, seed=seed, name=self.name)


@torch.no_grad()
def output_layer(model: nn.Module, x: Tensor, task: Classification | None = None) -> nn.Linear:
    """The linear layer whose output on the batch ``x`` is the model's: that which makes the logits.

    They are the ``task``'s logits; without one, what the model returns.

    Raises
    ------
    ValueError
        The model's output is not that of a linear layer.
    """
    seen: list[tuple[nn.Linear, Tensor]] = []
    handles = [
        module.register_forward_hook(lambda layer, _, out: seen.append((layer, out)))
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with evaluating(model):
            logits = logits_by(task)(model, (x, x.new_zeros(len(x), dtype=torch.long)))
    finally:
        for handle in handles:
            handle.remove()
    for layer, out in reversed(seen):
        if out is logits:
            return layer
    raise ValueError(f"the output of {type(model).__name__} does not come from a linear layer")


@dataclass(frozen=True)
class BoundaryExpand(Method):
    """Learn an additional class for the forget set, and drop it: the other logits have changed."""

    name: ClassVar[str] = "boundary_expand"
    needs: ClassVar[frozenset[str]] = frozenset({"forget"})
    draws: ClassVar[bool] = True

    train: TrainConfig = TrainConfig(
        epochs=10, lr=1e-6, batch_size=256, momentum=0.9, weight_decay=5e-4
    )

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        device = device_of(model)
        x, _ = next(iter(batches(split.forget, 1)))
        last = output_layer(model, x.to(device), split.task)
        with seeded(seed, "expand"):
            extra = nn.Linear(last.in_features, 1, last.bias is not None, dtype=last.weight.dtype)
        extra.to(device)

        task = replace(split.task, classes=last.out_features + 1)

        def loss(expanded: nn.ModuleList, batch: Any) -> Tensor:
            x, y = batch
            return task.loss(expanded[0], (x, torch.full_like(y, last.out_features)))

        # A row of its own beside the last layer's, which is the same as a longer last layer.
        handle = last.register_forward_hook(
            lambda _, features, logits: torch.cat([logits, extra(*features)], dim=-1)
        )
        try:
            epochs = shuffled_epochs(split.forget, self.train, seed)
            expanded = nn.ModuleList([model, extra])
            train(expanded, epochs, loss, self.train, seed=seed, name=self.name)
        finally:
            handle.remove()
        return model
