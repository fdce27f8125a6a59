r"""Influence unlearning (Izzo et al., 2021; Jia et al., 2023), as the SalUn paper runs it.

One Newton-like step, :math:`\theta \leftarrow \theta + a F^{-1} v`, with

.. math::

    v = \frac1n\sum_{D_f}\nabla\ell - \frac{n_f}{n\,n_r}\sum_{D_r}\nabla\ell,
    \qquad n = n_f + n_r.

The inverse Fisher information is approximated by the rank-1 recursion of WoodFisher (Singh and
Alistarh, NeurIPS 2020), over single retain images with gradients :math:`g`:

.. math::

    k \leftarrow k - \frac{g^\top k}{N + g^\top o}\,o,
    \qquad
    o \leftarrow o - \frac{g^\top o}{N + g^\top o}\,o,

from :math:`k = v`, and :math:`o` the first image's gradient. Since :math:`o` never leaves that
direction, the recursion gives :math:`F^{-1}v` only where all the gradients are equal.

Authors' code: github.com/OPTML-Group/Unlearn-Saliency, ``Classification/unlearn/Wfisher.py``.
Two deviations: their loop visits 1,002 images (it ends two after the thousandth) where this one
visits ``samples``, and their images are augmented.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...data import ForgetSplit, Labelled, batches, evenly_spaced
from ...fields import Count, Positive
from ...models import TrainingError, device_of, to
from ..base import Method

__all__ = ["InfluenceUnlearning", "woodfisher"]


def woodfisher(v: Tensor, gradients: Iterator[Tensor], N: float) -> Tensor:
    """The recursion's estimate of the inverse Fisher information times ``v`` (parameters,)."""
    o = next(gradients).clone()
    k = v.clone()
    for g in gradients:
        go = g @ o
        k -= (g @ k) / (N + go) * o
        o -= go / (N + go) * o
    return k


@dataclass(frozen=True)
class InfluenceUnlearning(Method):
    """One step against the influence of the forget set, in evaluation mode.

    Attributes
    ----------
    scale : a; the SalUn paper's runs: 10 (CIFAR-10), 20 (CIFAR-100)
    samples : retain images that the recursion visits, at equal distances in the set
    damping : N, as if so many images were averaged, whatever ``samples``
    batch_size : of the two gradient sums, which do not depend on it
    """

    name: ClassVar[str] = "influence"
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})
    draws: ClassVar[bool] = False

    scale: Positive = 10.0
    samples: Count = 1000
    damping: Positive = 1000.0
    batch_size: Count = 256

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        parameters = [p for p in model.parameters() if p.requires_grad]
        device = device_of(model)
        model.eval()

        def gradients(data: Labelled, batch_size: int) -> Iterator[Tensor]:
            """Gradient of the loss summed over each batch, flat."""
            for batch in batches(data, batch_size):
                value = split.task.loss(model, to(batch, device)) * len(batch[1])
                if not torch.isfinite(value):
                    raise TrainingError(f"{self.name}: the loss is {value.item()}")
                found = torch.autograd.grad(value, parameters, materialize_grads=True)
                yield torch.cat([g.flatten() for g in found])

        n_f, n_r = len(split.forget), len(split.retain)
        v = sum(gradients(split.forget, self.batch_size)) / (n_f + n_r)
        v -= sum(gradients(split.retain, self.batch_size)) * (n_f / ((n_f + n_r) * n_r))
        few = split.retain.subset(evenly_spaced(n_r, self.samples))
        step = self.scale * woodfisher(v, gradients(few, 1), self.damping)
        if not step.isfinite().all():
            raise TrainingError(f"{self.name}: the step is not finite")
        pieces = step.split([p.numel() for p in parameters])
        with torch.no_grad():
            for p, piece in zip(parameters, pieces, strict=True):
                p += piece.view(p.shape)
        return model
