"""SSD with another choice of weights: what does *relative* importance add?

Both ablations dampen as many weights as SSD would, with the same multiset of factors; they
differ from it, and from each other, only in which weights get them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...data import ForgetSplit
from ...seeding import generator
from ..ssd import SSD, Importances, selected

__all__ = ["AbsoluteSelection", "RandomSelection"]


def _flat(importances: Importances) -> Tensor:
    return torch.cat([i.flatten() for i in importances.values()])


@dataclass(frozen=True)
class RandomSelection(SSD):
    """As many weights as SSD selects, chosen uniformly at random, in random order."""

    name: ClassVar[str] = "random_selection"
    draws: ClassVar[bool] = True

    def choose(self, imp_f: Tensor, n: int, seed: int) -> Tensor:
        """Which ``n`` of the weights are dampened: positions in ``imp_f``, the importances (weights,)."""
        order = torch.randperm(len(imp_f), generator=generator(seed, "selection"))
        return order[:n].to(imp_f.device)

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        return self.dampen_elsewhere(model, *self.importance_pair(model, split, seed), seed)

    @torch.no_grad()
    def dampen_elsewhere(
        self, model: nn.Module, imp_f: Importances, imp_D: Importances, seed: int
    ) -> nn.Module:
        """Put SSD's factors, the strongest first, on the weights that `choose` gives, in place."""
        parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        imp_f, imp_D = ({n: imp[n] for n in parameters} for imp in (imp_f, imp_D))
        flat_f, flat_D = _flat(imp_f), _flat(imp_D)
        mask = selected(flat_f, flat_D, self.alpha)
        beta = (self.lam * flat_D[mask] / flat_f[mask]).clamp(max=1).sort().values
        factor = torch.ones_like(flat_f)
        factor[self.choose(flat_f, int(mask.sum()), seed)] = beta
        sizes = [i.numel() for i in imp_f.values()]
        for name, piece in zip(imp_f, factor.split(sizes), strict=True):
            parameters[name].mul_(piece.view_as(parameters[name]))
        return model


@dataclass(frozen=True)
class AbsoluteSelection(RandomSelection):
    """As many weights as SSD selects, those with the largest importance to the forget set."""

    name: ClassVar[str] = "absolute_selection"

    @property
    def draws(self) -> bool:
        """Does the seed matter? As for SSD."""
        return SSD.draws.fget(self)

    def choose(self, imp_f: Tensor, n: int, seed: int) -> Tensor:
        """The ``n`` weights with the largest importances ``imp_f`` (weights,): their positions."""
        return imp_f.topk(n).indices
