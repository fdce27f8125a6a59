r"""RMU, representation misdirection (Li et al., ICML 2024; arXiv 2403.03218).

With the activations :math:`h` after layer :math:`\ell`, a fixed random unit vector :math:`u` and the
original's activations :math:`h^0`,

.. math:: L = \mathbb E_{D_f}\big\Vert h_\theta(x) - c\,u\big\Vert^2
              + \alpha\,\mathbb E_{D_r}\big\Vert h_\theta(x) - h^0(x)\big\Vert^2,

means over tokens and dimensions; only the last linear map of the MLPs of layers :math:`\ell-2` to
:math:`\ell` moves. As github.com/centerforaisafety/wmdp, ``rmu/unlearn.py``; the entries of :math:`u` are
uniform in [0, 1) before it is scaled to length one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...data import ForgetSplit
from ...fields import Natural, NotNegative
from ...models import TrainConfig, device_of, train
from ...seeding import generator
from ..base import FORGET_TEXT, TEXT, Method
from ..forget_pairs import frozen_copy, paired_epochs

__all__ = ["RMU"]


@contextmanager
def recorded(layer: nn.Module) -> Iterator[list[Tensor]]:
    """The outputs of a layer, in the order in which it runs."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    handle = layer.register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


@dataclass(frozen=True)
class RMU(Method):
    """Scramble what a middle layer makes of the forget set; keep what it makes of the rest.

    Attributes
    ----------
    layer : :math:`\\ell`, counted from 0
    steering : :math:`c`, the length of the vector that activations are driven to
    alpha : :math:`\\alpha`
    """

    name: ClassVar[str] = "rmu"
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "retain", "reference"})
    draws: ClassVar[bool] = True
    works_on: ClassVar[frozenset[str]] = TEXT

    layer: Natural
    train: TrainConfig = FORGET_TEXT
    steering: NotNegative = 6.5
    alpha: NotNegative = 1200.0

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        layers, task = getattr(model.model.base_model, "layers", ()), split.task
        if not layers or not hasattr(layers[0].mlp, "down_proj"):
            raise TypeError(f"rmu knows models built like Llama, not {type(model.model).__name__}")
        if not 0 <= self.layer < len(layers):
            raise ValueError(f"there is no layer {self.layer}: the model has {len(layers)}")
        reference = frozen_copy(model)
        there = reference.model.base_model.layers[self.layer]
        u = torch.rand(model.model.config.hidden_size, generator=generator(seed, "direction"))
        aim = (self.steering * u / u.norm()).to(device_of(model))

        moving = {
            id(p)
            for layer in layers[max(self.layer - 2, 0) : self.layer + 1]
            for p in layer.mlp.down_proj.parameters()
        }
        asked = [(p, p.requires_grad) for p in model.parameters()]
        for p in model.parameters():
            p.requires_grad_(id(p) in moving)

        def loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
            with recorded(layers[self.layer]) as now, recorded(there) as before:
                for side in ("forget", "retain"):
                    task.logits(model, batch[side])
                with torch.no_grad():
                    task.logits(reference, batch["retain"])
            read = [batch[side]["attention_mask"].bool() for side in ("forget", "retain")]
            gone = (now[0] - aim)[read[0]].square().mean()
            kept = (now[1] - before[0])[read[1]].square().mean()
            return gone + self.alpha * kept

        epochs = paired_epochs(split, self.train, seed, retain=True)
        try:
            return train(model, epochs, loss, self.train, seed=seed, name=self.name)
        finally:
            for p, needed in asked:
                p.requires_grad_(needed)
