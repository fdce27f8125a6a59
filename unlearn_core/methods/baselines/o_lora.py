r"""O-LoRA (Wang et al., Findings of EMNLP 2023; arXiv 2310.14152), which SEFE is compared with.

A new adapter should read the input in directions that no former adapter reads:

.. math:: L_t = \ell(D_t) + \lambda_1 \sum_{s<t} \sum_l \sum_{ij} \big|A_s^{(l)} A_t^{(l)\top}\big|_{ij}.

Authors' code: github.com/cmnfriend/O-LoRA.

Deviations: former adapters are merged and not kept beside the weights. The model is the same, but
no dropout acts on them while the next one is trained. The authors' second term, an L2 norm of the
new factors, has weight 0 in their Llama scripts and is left out. What weight SEFE's authors took is
not known; 0.5 is O-LoRA's for Llama.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...fields import NotNegative
from ...models import Chat
from ..adapters import Factors
from ..continual import Memory, Stage
from .sequential import SequentialLoRA

__all__ = ["OLoRA", "overlap"]


def overlap(factors: Factors, former: Mapping[str, Tensor]) -> Tensor:
    """The sum over layers of all absolute products of a row of A and a former row: a scalar.

    Parameters
    ----------
    former : layer -> (rows, inputs), the A of all former adapters, one below the other
    """
    return torch.stack([(former[n] @ A.T).abs().sum() for n, (A, _) in factors.items()]).sum()


@dataclass(frozen=True)
class OLoRA(SequentialLoRA):
    r"""Sequential adapters, each orthogonal to all former ones.

    Attributes
    ----------
    weight : :math:`\lambda_1`
    """

    name: ClassVar[str] = "o_lora"

    weight: NotNegative = 0.5

    def regulariser(self, factors: Factors, memory: Memory) -> Tensor:
        return self.weight * overlap(factors, memory)

    def remember(
        self, model: Chat, stages: Sequence[Stage], factors: Factors, memory: Memory, seed: int
    ) -> None:
        for layer, (A, _) in factors.items():
            memory[layer] = torch.cat([memory.get(layer, A[:0]), A])
