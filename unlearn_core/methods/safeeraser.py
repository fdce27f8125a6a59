r"""Prompt Decouple (Chen, Deng et al., Findings of ACL 2025; arXiv 2502.12520), SafeEraser's loss.

To forget what a model says about some images is to learn not to answer a small family of prompts, and
then it answers them about no image. So safe images come under the *same prompts* with the answers that
they should have, :math:`D_{pd}`, and their loss is added to that of any method:

.. math:: L = L_{\text{method}} + \lambda\,\ell(D_{pd}).

As the authors combine them, with :math:`\ell` the mean over answer tokens:

.. math::

    L_{GA+PD} &= -\ell(D_f) + \tfrac12\ell(D_{pd}), &
    L_{GD+PD} &= -\ell(D_f) + \tfrac12\ell(D_r) + \tfrac12\ell(D_{pd}),\\
    L_{KL+PD} &= -\ell(D_f) + \mathrm{KL}(D_r) + \ell(D_{pd}), &
    L_{PO+PD} &= \ell(D_f^{\text{refuse}} \cup D_r) + \ell(D_{pd}).

Their PO is cross-entropy on refusals (``PreferenceOptimization(mean="joint")``), not DPO.

Authors' code: github.com/yuu250/SafeEraser, ``forget.py`` and ``data_loader.py``, commit 9e96612. What
it does, and the paper's text was not read for:

- The index of the forget example is overwritten by the one that is drawn for the retain example, and
  the decoupling example is taken there: it rarely has the prompt of the forget example beside it
  (``pairing="retain"``). The prompts would meet in a step with ``pairing="forget"``.
- The weights differ by method, and gradient difference's retain weight is halved (`WEIGHTS`).

Deviations: each epoch is shuffled, where the authors keep the order of the file; and a step is a batch
whose answer tokens share one mean, where theirs are single examples that are accumulated (which
``batch_size=1`` with ``accumulate`` does).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from ..data import ForgetSplit, Task
from ..fields import NotNegative
from ..models import TrainConfig
from .base import MULTIMODAL, TEXT, Method
from .baselines.grad_diff import GradDiff
from .baselines.gradient_ascent import GradientAscent
from .baselines.kl_minimization import KLMinimization
from .baselines.preference_optimization import PreferenceOptimization
from .forget_pairs import Paired

__all__ = ["WEIGHTS", "PromptDecouple"]

#: The authors' weight of the decoupling loss beside each method.
WEIGHTS: dict[type[Paired], float] = {
    GradientAscent: 0.5,
    GradDiff: 0.5,
    KLMinimization: 1.0,
    PreferenceOptimization: 1.0,
}


@dataclass(frozen=True)
class PromptDecouple(Paired, Method):
    r"""Another method, beside which what is safe is learned under the prompts of what is to go.

    Weights that are None are filled in when it is made, so ``dataclasses.replace`` keeps them.

    Attributes
    ----------
    method : the other method, any that is `Paired`; its ``train`` is what the two train with
    weight : :math:`\lambda`; None for the authors' (`WEIGHTS`), where they have tried the method
    retain_weight : of the method's term on the retain set; None for half of gradient difference's
        and for the divergence's own, as the authors have it. The other methods have no such weight
    pairing : the decoupling example of a step is that of its "retain" example, or of its "forget"
        example, whose prompt it shares
    """

    name: ClassVar[str] = "prompt_decouple"
    # Of the added loss alone; an instance also needs what its method needs, and works where it does.
    needs: ClassVar[frozenset[str]] = frozenset({"decouple"})
    draws: ClassVar[bool] = True
    works_on: ClassVar[frozenset[str]] = TEXT | MULTIMODAL

    method: Paired
    weight: NotNegative | None = None
    retain_weight: NotNegative | None = None
    pairing: Literal["retain", "forget"] = "retain"

    def __post_init__(self) -> None:
        kind = type(self.method)
        if not isinstance(self.method, Paired):
            raise ValueError(
                f"PromptDecouple: {kind.__name__} can't be decoupled: it is no method of pairs "
                "(unlearn_core.methods.Paired)"
            )
        super().__post_init__()
        if self.weight is None:
            known = [weight for cls, weight in WEIGHTS.items() if isinstance(self.method, cls)]
            if not known:
                raise ValueError(
                    f"PromptDecouple: the authors have no weight beside {kind.__name__}; give weight"
                )
            object.__setattr__(self, "weight", known[0])
        if isinstance(self.method, GradDiff | KLMinimization):
            if self.retain_weight is None:
                share = 0.5 if isinstance(self.method, GradDiff) else 1.0
                object.__setattr__(self, "retain_weight", share * self.method.weight)
        elif self.retain_weight is not None:
            raise ValueError(f"{kind.__name__} has no weight of the retain set's term")
        object.__setattr__(self, "needs", type(self).needs | self.method.needs)
        object.__setattr__(self, "works_on", type(self).works_on & self.method.works_on)

    @property
    def train(self) -> TrainConfig:
        """How the two train: as the method says."""
        return self.method.train

    def objective(self, task: Task, model: nn.Module) -> Callable[[nn.Module, Any], Tensor]:
        method = self.method
        if self.retain_weight is not None:
            method = replace(method, weight=self.retain_weight)
        base = method.objective(task, model)

        def loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
            return base(model, batch) + self.weight * task.loss(model, batch["decouple"])

        return loss

    def epochs(
        self, model: nn.Module, split: ForgetSplit, seed: int, **beside: Any
    ) -> Callable[[int], Iterable[dict[str, Any]]]:
        if self.pairing == "forget" or "retain" in self.needs:
            n, other = len(split.decouple), len(getattr(split, self.pairing))
            if n != other:
                raise ValueError(
                    f"{self.name}: {n} decoupling examples beside {other} of the {self.pairing} set"
                )
        return self.method.epochs(model, split, seed, decouple=self.pairing, **beside)
