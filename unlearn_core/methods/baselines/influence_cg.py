r"""Unlearning by influence functions (Koh and Liang, ICML 2017), which IAU approximates.

The forgotten points are removed to first order, with the Hessian :math:`H` of the mean loss over
the whole training set of :math:`n` images,

.. math::

    \theta \leftarrow \theta + \frac1n\sum_{z\in D_f} (H + \text{damping}\cdot I)^{-1}
    \nabla\ell(z;\theta),

solved by conjugate gradients: no Hessian is built, but every iteration takes a pass over the
training set with a second differentiation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ...data import ForgetSplit, batches
from ...fields import Count, NotNegative
from ...models import TrainingError, device_of, plain_attention, single_precision, to
from ...seeding import generator
from ..base import Method
from ..iau import mean_gradient

__all__ = ["InfluenceCG"]


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def _like(vector: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    pieces = vector.split([p.numel() for p in parameters])
    return [v.view(p.shape) for v, p in zip(pieces, parameters, strict=True)]


def hessian_product(
    model: nn.Module,
    data: Dataset,
    loss: Callable[[nn.Module, Any], Tensor],
    batch_size: int,
    vector: Tensor,
) -> Tensor:
    """``H v`` for the Hessian of the mean loss over ``data``; ``vector`` (weights,), trainable."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    v, total, device = _like(vector, parameters), torch.zeros_like(vector), device_of(model)
    for batch in batches(data, batch_size):
        with plain_attention():
            value = loss(model, to(batch, device))
        gradients = torch.autograd.grad(value, parameters, create_graph=True, allow_unused=True)
        along = sum((g * d).sum() for g, d in zip(gradients, v, strict=True) if g is not None)
        product = torch.autograd.grad(along, parameters, allow_unused=True, materialize_grads=True)
        total.add_(_flat(product), alpha=len(batch[0]) / len(data))
    return total


def conjugate_gradients(product: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """Solve ``A x = b`` for a symmetric ``A`` that ``product`` multiplies by.

    A network is at no minimum, so ``A`` need not be positive definite: at a direction without
    positive curvature the iteration ends with what it has (Steihaug's rule).

    Raises
    ------
    TrainingError
        That direction is the very first one, so there is no solution to return.
    """
    x, r = torch.zeros_like(b), b
    p, error = r, r @ r
    exact = 1e-20 * error
    for iteration in range(iterations):
        if error <= exact:
            break
        Ap = product(p)
        curvature = p @ Ap
        if not curvature > 0:
            if iteration == 0:
                raise TrainingError(
                    f"influence: the curvature along the gradient is {curvature.item():.3g}; "
                    "a larger damping makes it positive"
                )
            break
        step = error / curvature
        x, r = x + step * p, r - step * Ap
        last, error = error, r @ r
        p = r + (error / last) * p
    return x


@dataclass(frozen=True)
class InfluenceCG(Method):
    """Remove the forget set by its influence, the inverse Hessian by conjugate gradients.

    Attributes
    ----------
    iterations : of conjugate gradients, each a pass over the data with double differentiation
    damping : added to the Hessian's diagonal
    samples : how many training images, drawn at random, the Hessian is taken over; None for all
    batch_size : of all passes; a matter of memory alone
    """

    name: ClassVar[str] = "influence_cg"
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})

    iterations: Count = 20
    damping: NotNegative = 1e-2
    samples: Count | None = None
    batch_size: Count = 256

    @property
    def draws(self) -> bool:
        """Does the seed matter? Where a sample stands for all of the data."""
        return self.samples is not None

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        model.eval()
        loss, everyone = split.task.loss, split.retain + split.forget
        n, data = len(everyone), everyone
        if self.samples is not None:
            order = torch.randperm(n, generator=generator(seed, "influence"))
            data = everyone.subset(order[: self.samples])
        share = len(split.forget) / n
        b = share * _flat(mean_gradient(model, split.forget, loss, self.batch_size))

        def product(v: Tensor) -> Tensor:
            return hessian_product(model, data, loss, self.batch_size, v) + self.damping * v

        parameters = [p for p in model.parameters() if p.requires_grad]
        shift = conjugate_gradients(product, b, self.iterations)
        with torch.no_grad(), single_precision(parameters, self.name):
            for p, d in zip(parameters, _like(shift, parameters), strict=True):
                p.add_(d)
        return model
