r"""KL minimisation (Maini et al., 2024; arXiv 2401.06121): unlearn, and stay where the original was.

.. math:: L = -\ell(D_f) + \mathrm{KL}\big(p_{\theta_0}\,\Vert\,p_\theta\big)\ \text{on}\ D_r.

Authors' code: github.com/locuslab/tofu and github.com/UCSC-REAL/FLAT, ``dataloader.py``, loss ``KL``:
the divergence is a mean over all positions of the retain batch, prompts and padding included. GUARD
writes the divergence the other way round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...data import Task
from ...fields import NotNegative
from ...models import TrainConfig
from ..base import FORGET_TEXT, IMAGES, MULTIMODAL, TEXT, Method
from ..forget_pairs import Paired, frozen_copy

__all__ = ["KLMinimization", "kept_outputs"]


def kept_outputs(task: Task, reference: nn.Module, model: nn.Module, batch: Any) -> Tensor:
    """KL of the reference's outputs from the model's: a mean over all positions of the batch."""
    with torch.no_grad():
        before = task.logits(reference, batch)
    flat = [
        x.flatten(0, -2).to(torch.promote_types(x.dtype, torch.float32)).log_softmax(dim=-1)
        for x in (task.logits(model, batch), before)
    ]
    return nn.functional.kl_div(*flat, reduction="batchmean", log_target=True)


@dataclass(frozen=True)
class KLMinimization(Paired, Method):
    """Raise the loss on the forget set; keep the outputs on the retain set.

    Attributes
    ----------
    weight : of the divergence
    """

    name: ClassVar[str] = "kl_minimization"
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "retain", "reference"})
    draws: ClassVar[bool] = True
    works_on: ClassVar[frozenset[str]] = IMAGES | TEXT | MULTIMODAL

    train: TrainConfig = FORGET_TEXT
    weight: NotNegative = 1.0

    def loss(
        self, task: Task, reference: nn.Module, model: nn.Module, batch: dict[str, Any]
    ) -> Tensor:
        """Of a batch of pairs "forget" and "retain": a scalar."""
        kept = kept_outputs(task, reference, model, batch["retain"])
        return -task.loss(model, batch["forget"]) + self.weight * kept

    def objective(self, task: Task, model: nn.Module) -> Callable[[nn.Module, Any], Tensor]:
        return partial(self.loss, task, frozen_copy(model))
