r"""Fisher forgetting (Golatkar, Achille and Soatto, CVPR 2020), which IAU's cost is compared with.

Noise scrubs every weight, the more the less the retain set depends on it:

.. math::

    \theta \leftarrow \theta + (\lambda\sigma^2)^{1/4} F^{-1/4}\,\xi, \qquad \xi\sim\mathcal N(0, 1),

with the diagonal empirical Fisher information :math:`F` of the retain set, which takes the
gradient of every single image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ...data import ForgetSplit, batches
from ...seeding import generator
from ..base import Method
from ..ssd import importances

__all__ = ["FisherForgetting"]


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
    """

    name: ClassVar[str] = "fisher_forgetting"
    needs: ClassVar[frozenset[str]] = frozenset({"retain"})
    draws: ClassVar[bool] = True

    noise: float = 1e-13
    floor: float = 1e-8
    batch_size: int = 256

    def __post_init__(self) -> None:
        if not (self.noise > 0 and self.floor > 0):
            raise ValueError(f"noise and floor must be positive, not {self.noise} and {self.floor}")

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        loader = batches(split.retain, self.batch_size)
        fisher = importances(model, loader, split.task.loss, per_sample=True)
        g = generator(seed, "fisher forgetting")
        with torch.no_grad():
            for name, p in model.named_parameters():
                if p.requires_grad:
                    scale = (self.noise / fisher[name].clamp(min=self.floor)) ** 0.25
                    p.add_(scale * torch.randn(p.shape, generator=g).to(p))
        return model
