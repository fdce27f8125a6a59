"""CF-k and EU-k (Goel et al., 2022; arXiv 2201.06640), as the worst-case paper runs them.

Only the last k layers are trained, on the retain set: as they are ("catastrophic forgetting") or
re-initialised ("exact unlearning", of these layers alone). A layer is a module with parameters of
its own, counted backwards in the order in which the model registers them; k = 1 is the last
linear layer in every network here. As in github.com/OPTML-Group/Unlearn-WorstCase the whole model
is in training mode: BatchNorm's running statistics move in the frozen part too.

That code re-initialises at the start of *every* epoch, to a weight of N(0, 1) and a bias of 0, so
that only its last epoch counts. `EUk` does it once, by the layer's own ``reset_parameters``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ...data import ForgetSplit
from ...fields import Count
from ...models import TrainConfig, frozen_norms, shuffled_epochs, train
from ...seeding import seeded
from ..base import Method

__all__ = ["CFk", "EUk", "last_layers"]


def last_layers(model: nn.Module, k: int) -> list[nn.Module]:
    """The last ``k`` modules with parameters of their own that are trained; ValueError if fewer are."""
    layers = [
        m for m in model.modules() if any(p.requires_grad for p in m.parameters(recurse=False))
    ]
    if k > len(layers):
        raise ValueError(
            f"k = {k}, but the model has {len(layers)} layers with parameters to train"
        )
    return layers[-k:]


@dataclass(frozen=True)
class CFk(Method):
    """Go on training the last k layers on the retain set, the others frozen.

    Attributes
    ----------
    train : the paper chose ``lr`` on a grid of 1e-4 to 1e-1, with a random forget set
    k : the number of layers that change
    """

    name: ClassVar[str] = "cf_k"
    needs: ClassVar[frozenset[str]] = frozenset({"retain"})
    draws: ClassVar[bool] = True

    train: TrainConfig = TrainConfig(
        epochs=10, lr=0.01, batch_size=256, momentum=0.9, weight_decay=5e-4
    )
    k: Count = 1

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        layers = last_layers(model, self.k)
        trained = {p for layer in layers for p in layer.parameters(recurse=False)}
        # Before this freezes more: statistics of that part move, as in the authors' code.
        still = frozen_norms(model)
        frozen = [p for p in model.parameters() if p.requires_grad and p not in trained]
        for p in frozen:
            p.requires_grad_(False)
        try:
            epochs = shuffled_epochs(split.retain, self.train, seed)
            return train(
                model, epochs, split.task.loss, self.train, seed=seed, name=self.name, still=still
            )
        finally:
            for p in frozen:
                p.requires_grad_(True)


@dataclass(frozen=True)
class EUk(CFk):
    """Re-initialise the last k layers, then train them on the retain set, the others frozen."""

    name: ClassVar[str] = "eu_k"

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        layers = last_layers(model, self.k)
        for layer in layers:
            if not hasattr(layer, "reset_parameters"):
                raise ValueError(f"{type(layer).__name__} has no reset_parameters")
        with seeded(seed, "reset"):
            for layer in layers:
                layer.reset_parameters()
        return super().unlearn(model, split, seed)
