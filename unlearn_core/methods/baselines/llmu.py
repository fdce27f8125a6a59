r"""LLMU (Yao, Xu and Liu, 2023; arXiv 2310.10683): unlearn, learn another answer, stay near the original.

.. math:: L = -\epsilon_1\,\ell(x_f, y_f) + \epsilon_2\,\ell(x_f, y_e)
              + \epsilon_3\,\mathrm{KL}\big(p_{\theta_0}\Vert p_\theta\big)\ \text{on}\ D_r.

Code: github.com/UCSC-REAL/FLAT, ``dataloader.py``, loss ``LLMU``, with :math:`\epsilon_1 = 0.5` and the
others 1 (GUARD tries :math:`\epsilon_1` of 0.1 to 2); :math:`y_e` is a template answer there, an answer to
another question in LLMU's own code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from ...data import Task
from ...fields import NotNegative
from ...models import TrainConfig
from ..base import FORGET_TEXT, TEXT, Method
from ..forget_pairs import Paired, frozen_copy
from .kl_minimization import kept_outputs

__all__ = ["LLMU"]


@dataclass(frozen=True)
class LLMU(Paired, Method):
    """Three terms, one step: the true answer, a template answer, and the retain set's outputs.

    Attributes
    ----------
    eps1, eps2, eps3 : weights of unlearning, of the template and of the divergence
    """

    name: ClassVar[str] = "llmu"
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "retain", "templates", "reference"})
    draws: ClassVar[bool] = True
    works_on: ClassVar[frozenset[str]] = TEXT

    train: TrainConfig = FORGET_TEXT
    eps1: NotNegative = 0.5
    eps2: NotNegative = 1.0
    eps3: NotNegative = 1.0

    def loss(
        self, task: Task, reference: nn.Module, model: nn.Module, batch: dict[str, Any]
    ) -> Tensor:
        """Of a batch of "forget", "template" and "retain": a scalar."""
        kept = kept_outputs(task, reference, model, batch["retain"])
        gone, other = (task.loss(model, batch[k]) for k in ("forget", "template"))
        return -self.eps1 * gone + self.eps2 * other + self.eps3 * kept

    def objective(self, task: Task, model: nn.Module) -> Callable[[nn.Module, Any], Tensor]:
        return partial(self.loss, task, frozen_copy(model))
