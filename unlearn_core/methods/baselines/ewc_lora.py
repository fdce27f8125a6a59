r"""Elastic weight consolidation (Kirkpatrick et al., PNAS 2017) of what adapters do to the weights.

.. math::

    L_t = \ell(D_t) + \frac{\lambda}{2} \sum_l \sum_{ij} F_{ij}^{(l)}
          \Big(\tfrac{\alpha}{r} B_t^{(l)} A_t^{(l)}\Big)_{ij}^2, \qquad
    F = \sum_{s<t} \mathbb{E}_{D_s}\big[(\partial_W \ell)^2\big].

The Fisher information is that of the merged weights, not of the factors: factors of two tasks are
different coordinates of the same weights. As in its online form (Schwarz et al., 2018) every task
begins at its anchor, so that the new update is all that is paid for.

Deviations: gradients are of an answer's mean loss, not of its likelihood. One number for each weight
is kept, and a layer's update is held for the backward pass: for small models. Not in SEFE's tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...data import batches
from ...fields import Count, NotNegative
from ...models import Chat
from ...seeding import generator
from ..adapters import Factors, frozen, linears
from ..continual import Memory, Stage
from ..ssd import importances
from .sequential import SequentialLoRA

__all__ = ["EWCLoRA", "elastic_penalty"]


def elastic_penalty(factors: Factors, fisher: Mapping[str, Tensor], scale: float) -> Tensor:
    """Half the sum over all weights of the Fisher information times the squared update: a scalar.

    Parameters
    ----------
    fisher : layer -> (outputs, inputs)
    scale : of the update BA
    """
    moved = [(fisher[n] * (scale * B @ A).square()).sum() for n, (A, B) in factors.items()]
    return torch.stack(moved).sum() / 2


@dataclass(frozen=True)
class EWCLoRA(SequentialLoRA):
    r"""Sequential adapters that pay for moving weights that former tasks depend on.

    Attributes
    ----------
    weight : :math:`\lambda`; ours, to be tuned
    samples : how many examples of a task its Fisher information is taken from, at most
    """

    name: ClassVar[str] = "ewc_lora"

    weight: NotNegative = 1e3
    samples: Count = 256

    def regulariser(self, factors: Factors, memory: Memory) -> Tensor:
        return self.weight * elastic_penalty(factors, memory, self.alpha / self.rank)

    def remember(
        self, model: Chat, stages: Sequence[Stage], factors: Factors, memory: Memory, seed: int
    ) -> None:
        data = stages[-1].data
        chosen = torch.randperm(len(data), generator=generator(seed, "fisher", len(stages)))
        layers = linears(model, self.targets)
        with frozen(model):
            for layer in layers.values():
                layer.weight.requires_grad_(True)
            # Batches of one: the squared gradient of each example.
            single = batches(data.subset(chosen[: self.samples]), 1)
            fisher = importances(model, single, stages[-1].task.loss)
        names = {id(p): name for name, p in model.named_parameters()}
        for n, layer in layers.items():
            memory[n] = memory.get(n, 0) + fisher[names[id(layer.weight)]]
