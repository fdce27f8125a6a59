r"""Influence approximation unlearning (Liu, Wu, Lian and Chen, 2025; arXiv 2507.23257).

To first order, deleting a point moves the minimiser as adding one with the opposite gradient
does. So forgetting is taken for incremental learning of the forget set's opposite, and the
inverse Hessian of influence functions is replaced by one step of the optimizer:

.. math::

    g = \underbrace{\nabla L_r(\theta)}_{\text{correction}}
        - \underbrace{\nabla L_f(\theta)}_{\text{approximation}},
    \qquad
    \theta \leftarrow \theta - \eta\,\frac{g}{|g| + 10^{-8}} \quad\text{(elementwise)},

with the mean losses :math:`L_r`, :math:`L_f` of the retain and the forget set. That is the first
step of a fresh Adam; ``update="sgd"`` is :math:`\theta - \eta g`. The third part, gradient
restriction, is a loss for the training before any request (`GradientRestriction`).

The body of the paper could not be read. Authors' code: github.com/Lolo1222/IAU,
``IAU_unlearn.py`` and ``train_model.py``, commit a45c8af.

Deviations: the gradients are taken in evaluation mode and in batches (the code never leaves
training mode and takes each set as one batch: ``mode="train"``). Without BatchNorm and dropout
the two are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..data import Classification, ForgetSplit, batches
from ..data.images import Batch
from ..fields import Count, NotNegative, Positive, check_fields
from ..models import (
    TrainConfig,
    TrainingError,
    device_of,
    learning,
    plain_attention,
    single_precision,
    to,
)
from ..seeding import generator
from .base import Method

__all__ = [
    "GradientRestriction",
    "IAU",
    "ShiftErrors",
    "leave_one_out_shifts",
    "mean_gradient",
]


def mean_gradient(
    model: nn.Module, data: Dataset, loss: Callable[[nn.Module, Any], Tensor], batch_size: int
) -> list[Tensor]:
    """Gradient of the mean loss over ``data``, in the mode that the model is in: one pass.

    Batches count by their sizes, so in evaluation mode ``batch_size`` makes no difference.

    Returns
    -------
    a tensor for every trainable parameter, in their order; 0 where it gets no gradient

    Raises
    ------
    TrainingError
        The loss is not finite.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = [
        torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in parameters
    ]
    device = device_of(model)
    for step, batch in enumerate(batches(data, batch_size), 1):
        value = loss(model, to(batch, device))
        if not torch.isfinite(value):
            raise TrainingError(f"mean gradient: the loss is {value.item()} at batch {step}")
        gradients = torch.autograd.grad(value, parameters, allow_unused=True)
        for t, g in zip(total, gradients, strict=True):
            if g is not None:
                t.add_(g, alpha=len(batch[0]) / len(data))
    return total


@dataclass(frozen=True)
class IAU(Method):
    r"""One step of the influence approximation, with or without each of its two parts.

    Attributes
    ----------
    lr : :math:`\eta`; with Adam, how far nearly every weight moves. Authors' code: 1e-3
    update : "adam", the first step of a fresh one (the code); "sgd", a plain gradient step; or
        "random", a control: every weight moves by ``lr`` with a sign that is drawn, as far as Adam
        goes, and no image is read
    approximation : the part that unlearns, :math:`-\nabla L_f`; without it no forget image is read
    correction : gradient correction, :math:`+\nabla L_r`; without it no retain image is read
    mode : "eval"; or "train", as the authors' script: both sets as one batch each, the retain set
        first, and both move BatchNorm's running statistics (for networks without dropout)
    batch_size : of the two gradients in mode "eval"; a matter of memory alone
    """

    name: ClassVar[str] = "iau"
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})

    lr: Positive = 1e-3
    update: Literal["adam", "sgd", "random"] = "adam"
    approximation: bool = True
    correction: bool = True
    mode: Literal["eval", "train"] = "eval"
    batch_size: Count = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.approximation or self.correction):
            raise ValueError("without approximation and correction there is no step to take")
        parts = {"forget": self.approximation, "retain": self.correction}
        read = {n for n, used in parts.items() if used and self.update != "random"}
        object.__setattr__(self, "needs", frozenset(read))

    @property
    def draws(self) -> bool:
        """Does the seed matter? For random signs, which are an ablation."""
        return self.update == "random"

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        if self.update == "random":
            g = generator(seed, "random signs")
            moved = [p for p in model.parameters() if p.requires_grad]
            with torch.no_grad(), single_precision(moved, self.name):
                for p in moved:
                    signs = torch.randint(0, 2, p.shape, generator=g) * 2 - 1
                    p.add_(signs.to(p), alpha=self.lr)
            return model
        whole = self.mode == "train"
        if whole:
            learning(model)
        else:
            model.eval()
        parameters = [p for p in model.parameters() if p.requires_grad]
        step = [
            torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32))
            for p in parameters
        ]
        parts = ((split.retain, self.correction, 1), (split.forget, self.approximation, -1))
        for data, used, sign in parts:
            if not used:
                continue
            size = len(data) if whole else self.batch_size
            gradient = mean_gradient(model, data, split.task.loss, size)
            for total, g in zip(step, gradient, strict=True):
                total.add_(g, alpha=sign)
        with single_precision(parameters, self.name):
            for p, total in zip(parameters, step, strict=True):
                p.grad = total
            optimizer = TrainConfig(1, self.lr, optimizer=self.update).make_optimizer(parameters)
            optimizer.step()
            optimizer.zero_grad()
        return model


@dataclass(frozen=True)
class GradientRestriction(Classification):
    r"""The cross-entropy and a penalty on its gradient: what IAU trains a model with.

    :math:`L_B + \alpha\,\lVert\nabla_\theta L_B\rVert` of a batch's mean cross-entropy
    :math:`L_B`, differentiated through the gradient. Taken as a `Recipe`'s task; forgetting has
    the plain cross-entropy.

    Attributes
    ----------
    alpha : weight of the penalty; 0.005 in the authors' code
    norm : "per_tensor", the sum of the 2-norms of every parameter tensor's gradient, which the
        code computes; "global", the 2-norm of the whole gradient. (The authors' README has the
        whole gradient of a single sample; neither takes samples apart.)
    """

    alpha: NotNegative = 0.005
    norm: Literal["per_tensor", "global"] = "per_tensor"

    def __post_init__(self) -> None:
        check_fields(self)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The penalised loss of the batch ``(x, y)``: a scalar to differentiate by autograd.

        A gradient that is exactly 0 adds nothing to the derivative, and neither does a parameter
        that the model does not use.
        """
        with plain_attention():
            value = super().loss(model, batch)
        parameters = [p for p in model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(value, parameters, create_graph=True, allow_unused=True)
        # vector_norm has the derivative 0 at 0, where the square root of a sum would give NaN.
        norm = torch.linalg.vector_norm
        norms = torch.stack([norm(g) for g in gradients if g is not None])
        return value + self.alpha * (norms.sum() if self.norm == "per_tensor" else norm(norms))


class ShiftErrors(NamedTuple):
    """How an approximation of shifts compares with the exact ones, point by point: (k,) each.

    ``cosine`` of the angle between the two; ``relative_error``, the 2-norm of their difference
    over that of the exact one.
    """

    cosine: Tensor
    relative_error: Tensor


def leave_one_out_shifts(
    x: Tensor, y: Tensor, points: Tensor, penalty: float = 1e-2
) -> dict[str, ShiftErrors]:
    r"""The premise of IAU where it can be checked exactly: logistic regression.

    With :math:`\theta^*` the minimiser of :math:`L(\theta) = \frac1n\sum_i\ell_i(\theta) +
    \frac{\text{penalty}}2\lVert\theta\rVert^2` and :math:`H` its Hessian there, the exact shift
    is how far the minimiser moves when the term :math:`\ell_i/n` is deleted. It is compared with

    - "influence": :math:`\frac1n H^{-1}\nabla\ell_i(\theta^*)`, the influence function;
    - "opposite_point": how far the minimiser moves when, instead, a point is added whose gradient
      is :math:`-\nabla\ell_i(\theta^*)` everywhere: unlearning as incremental learning;
    - "gradient": :math:`\nabla\ell_i(\theta^*)`, what a plain step of that learning follows, and
      "sign": its signs, what Adam's first step follows. They are directions: of these two only the
      cosine means something.

    Everything is solved to rounding, in float64.

    Parameters
    ----------
    x : (n, d), with a column of ones where an intercept is wanted; n d^2 numbers are held
    y : (n,), 0 or 1
    points : (k,) int64, the rows to delete, one at a time
    penalty : of the weights, an intercept included; positive

    Raises
    ------
    ValueError
        A label that is neither 0 nor 1, or a penalty that is not positive.
    TrainingError
        Newton's method does not converge; a larger penalty helps.
    """
    if not ((y == 0) | (y == 1)).all():
        raise ValueError("the labels must be 0 or 1")
    if not penalty > 0:
        raise ValueError(f"penalty must be positive, not {penalty}")
    problem = _Logistic(x.double(), y.double(), penalty)
    (n, d), k = x.shape, len(points)
    everyone, nothing = problem.x.new_ones(1, n), problem.x.new_zeros(1, d)
    theta = problem.minimise(everyone, nothing, start=nothing)
    deleted = problem.x[points]
    gradients = (torch.sigmoid(deleted @ theta[0]) - problem.y[points])[:, None] * deleted
    others = everyone.repeat(k, 1)
    others[torch.arange(k), points] = 0
    start = theta.expand(k, d)
    exact = problem.minimise(others, nothing, start) - theta
    hessian = problem.derivatives(everyone, nothing, theta)[1]
    shifts = {
        "influence": torch.linalg.solve(hessian, gradients[:, :, None])[:, :, 0] / n,
        "opposite_point": problem.minimise(everyone, -gradients / n, start) - theta,
        "gradient": gradients,
        "sign": gradients.sign(),
    }
    return {
        name: ShiftErrors(
            nn.functional.cosine_similarity(shift, exact, dim=1, eps=0),
            (shift - exact).norm(dim=1) / exact.norm(dim=1),
        )
        for name, shift in shifts.items()
    }


class _Logistic(NamedTuple):
    """Penalised logistic regressions on one set of points, several at a time."""

    x: Tensor
    y: Tensor
    penalty: float

    def derivatives(self, weights: Tensor, linear: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient (k, d) and Hessian (k, d, d) of k problems at ``theta`` (k, d).

        ``weights`` (k, n) are those of the points' losses, ``linear`` (k, d) the gradient of a
        term that is added.
        """
        n, d = self.x.shape
        p = torch.sigmoid(theta @ self.x.T)
        gradient = (weights * (p - self.y)) @ self.x / n + self.penalty * theta + linear
        outer = (self.x[:, :, None] * self.x[:, None, :]).flatten(1)
        curvature = ((weights * p * (1 - p)) @ outer / n).view(-1, d, d)
        return gradient, curvature + self.penalty * torch.eye(d).to(self.x)

    def minimise(self, weights: Tensor, linear: Tensor, start: Tensor) -> Tensor:
        """The minimisers (k, d), by Newton's method."""
        theta = start
        for _ in range(50):
            gradient, hessian = self.derivatives(weights, linear, theta)
            if gradient.abs().max() < 1e-13 * self.x.abs().max():
                return theta
            theta = theta - torch.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        raise TrainingError("logistic regression: Newton's method does not converge")
