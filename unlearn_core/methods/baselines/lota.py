r"""Lottery Ticket Adaptation (Panda et al., 2024; arXiv 2406.16797), which SEFE is compared with.

Each task is learned twice: once in whole, to find the entries that move most, and once more from the
start with these entries only,

.. math:: \theta_t = \theta_{t-1} + m_t \odot \Delta, \qquad
          m_t = \mathrm{Top}_s\big\{|\theta'_t - \theta_{t-1}|_i : i \notin m_1 \cup \dots \cup m_{t-1}\big\}.

Entries that a former task has taken are not free any more (the authors' LoTTO).

Authors' code: github.com/kiddyboots216/lottery-ticket-adaptation.

Deviations: the paper on SEFE says no more than that training has two stages. That a tenth of the
entries is taken, of every parameter tensor, and that both runs see the same batches, is ours. Where
gradients are clipped, their norm is that of all entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ...fields import Share
from ...models import Chat, single_precision
from ..continual import Memory, Stage
from ..sefe import key_elements
from .sequential import SequentialFullTuning

__all__ = ["LoTA"]


@dataclass(frozen=True)
class LoTA(SequentialFullTuning):
    """Full fine-tuning of a few entries for each task, different ones for different tasks.

    Attributes
    ----------
    share : of the entries of every tensor, which a task may change
    """

    name: ClassVar[str] = "lota"

    share: Share = 0.1

    def adapt(self, model: Chat, stages: Sequence[Stage], memory: Memory, seed: int) -> None:
        parameters = self.trained(model)
        # What moves most is not what rounds to the most.
        with single_precision(parameters, self.name):
            before = [p.detach().clone() for p in parameters]
            super().adapt(model, stages, memory, seed)
            masks = []
            for i, (p, start) in enumerate(zip(parameters, before, strict=True)):
                taken = memory.setdefault(i, torch.zeros_like(p, dtype=torch.bool))
                moved = (p.detach() - start).masked_fill(taken, 0)
                p.data.copy_(start)
                mask = torch.zeros_like(taken)
                mask.view(-1)[key_elements(moved, self.share)] = True
                masks.append(
                    mask & ~taken
                )  # where few entries are free, taken ones come in as well
                taken |= mask

            @torch.no_grad()
            def restore(model: nn.Module, step: int) -> None:
                for p, start, mask in zip(parameters, before, masks, strict=True):
                    p.copy_(torch.where(mask, p, start))

            super().adapt(model, stages, memory, seed, restore)
