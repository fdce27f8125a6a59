"""Retraining without the forget set: the reference that unlearning approximates.

The SSD authors' own "retrain" (``src/forget_full_class_strategies.py``) resets only what has
``reset_parameters`` among the network's *direct* children, which in their ResNet-18 and ViT is
the last linear layer, and trains on at a learning rate of 0.01: the backbone keeps what it
learned from the forget set. ``mode="head_reset"`` is that, for comparing with their column; it
trains without augmentation, as all of their unlearning methods do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import nn

from ...data import ForgetSplit
from ...fields import Positive
from ...models import Recipe, shuffled_epochs, train
from ...seeding import derive_seed, seeded
from ..base import ANY, Method

__all__ = ["Retrain", "retrain_seed"]


def retrain_seed(seed: int) -> int:
    """The seed of the full retraining: a model made from ``seed`` has another initialisation."""
    return derive_seed(seed, "retrain")


@dataclass(frozen=True)
class Retrain(Method):
    """Train a fresh model on the retain set, with the recipe that made the original.

    Attributes
    ----------
    mode : "full", a new initialisation of every weight; or "head_reset" (see the module)
    head_reset_lr : the learning rate of "head_reset"
    """

    name: ClassVar[str] = "retrain"
    needs: ClassVar[frozenset[str]] = frozenset({"retain", "fresh_model"})
    draws: ClassVar[bool] = True
    works_on: ClassVar[frozenset[str]] = ANY

    recipe: Recipe
    mode: Literal["full", "head_reset"] = "full"
    head_reset_lr: Positive = 0.01

    @property
    def trains(self) -> bool:
        """Does it ask for what can be trained in the given model? For a new head it does."""
        return self.mode == "head_reset"

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        device = next(model.parameters()).device
        if self.mode == "full":
            own = retrain_seed(seed)
            return self.recipe.fit(
                split.retain, own, validation=split.validation, device=device, name="retrain"
            )
        with seeded(seed, "head_reset"):
            for child in model.children():
                if hasattr(child, "reset_parameters"):
                    child.reset_parameters()
        config = replace(self.recipe.train, lr=self.head_reset_lr, augment=())
        epochs = shuffled_epochs(split.retain, config, derive_seed(seed, "head_reset"))
        return train(model, epochs, split.task.loss, config, seed=seed, name="retrain (head reset)")
