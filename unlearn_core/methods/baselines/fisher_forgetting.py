r"""Fisher forgetting (Golatkar, Achille and Soatto, CVPR 2020), which IAU's cost is compared with.

Noise scrubs every weight, the more the less the retain set depends on it:

.. math::

    \theta \leftarrow \theta + (\lambda\sigma^2)^{1/4} F^{-1/4}\,\xi, \qquad \xi\sim\mathcal N(0, 1),

with the diagonal Fisher information :math:`F` of the retain set, which takes the gradient of
every single image. By its definition, and in Golatkar's code, that is an expectation over the
labels that the model gives: one gradient for every image *and* class (``labels="expected"``). The
empirical Fisher takes the true label alone, at the price of one class.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ...data import Classification, ForgetSplit, batches
from ...fields import Count, Positive
from ...models import device_of, single_precision, to
from ...registry import ADDED
from ...seeding import generator
from ..base import Method
from ..ssd import Importances, importances

__all__ = ["FisherForgetting", "expected_fisher"]


def expected_fisher(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    task: Classification,
) -> Importances:
    r"""The diagonal of :math:`\mathbb E_x\sum_c p_c\,(\nabla(-\log p_c))^2`, in evaluation mode.

    Parameters
    ----------
    batches : images and labels; the labels make no difference
    Returns
    -------
    name -> tensor of the parameter's shape
    """
    device = device_of(model)

    def under_every_label() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for batch in batches:
            x, y = to(batch, device)
            with torch.no_grad():
                roots = task.logits(model, (x, y)).softmax(dim=1).sqrt()
            for label in range(task.classes):
                yield x, torch.full_like(y, label), roots[:, label]

    def weighted(of: Any, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        x, y, root = batch
        return root.mean() * task.loss(of, (x, y))  # of one image: squared, the root is its weight

    fisher = importances(model, under_every_label(), weighted, per_sample=True)
    # A mean over images and labels, where it is a sum over labels.
    return {name: task.classes * value for name, value in fisher.items()}


@dataclass(frozen=True)
class FisherForgetting(Method):
    r"""Add noise that the retain set tolerates.

    Attributes
    ----------
    noise : :math:`\lambda\sigma^2`, to be tuned. The default, ours, costs a LeNet trained on
        Fashion-MNIST about a point of accuracy; ten times as much, some four points
    floor : smallest :math:`F`, which caps the noise where the retain set says nothing about a
        weight: its standard deviation is at most ``(noise / floor) ** 0.25``
    batch_size : how many images are loaded at a time; makes no difference to the result
    labels : "given", the empirical Fisher; "expected", the expectation over the model's labels, at
        ``classes`` times the cost
    """

    name: ClassVar[str] = "fisher_forgetting"
    needs: ClassVar[frozenset[str]] = frozenset({"retain"})
    draws: ClassVar[bool] = True

    noise: Positive = 1e-13
    floor: Positive = 1e-8
    batch_size: Count = 256
    labels: Literal["given", "expected"] = field(default="given", metadata=ADDED)

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        loader = batches(split.retain, self.batch_size)
        if self.labels == "expected":
            fisher = expected_fisher(model, loader, split.task)
        else:
            fisher = importances(model, loader, split.task.loss, per_sample=True)
        g = generator(seed, "fisher forgetting")
        moved = {name: p for name, p in model.named_parameters() if p.requires_grad}
        with torch.no_grad(), single_precision(moved.values(), self.name):
            for name, p in moved.items():
                scale = (self.noise / fisher[name].clamp(min=self.floor)) ** 0.25
                p.add_(scale * torch.randn(p.shape, generator=g).to(p))
        return model
