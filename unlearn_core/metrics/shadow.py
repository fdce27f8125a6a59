"""Shadow-model membership inference, and per-sample gradient norms (the IAU paper's measures)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..data import batches, evenly_spaced, labelled
from ..models import (
    Recipe,
    TrainConfig,
    device_of,
    evaluating,
    predict,
    sample_gradients,
    shuffled_epochs,
    to,
    train,
)
from ..registry import did_you_mean
from ..seeding import derive_seed, generator, seeded
from .catalogue import Estimate, share
from .checks import finite, told_apart

__all__ = ["ATTACK_TRAINING", "ShadowAttack", "shadow_features", "attack_network", "gradient_norms"]

#: How the IAU authors train the attack network (``train_mia.py``).
ATTACK_TRAINING = TrainConfig(epochs=50, lr=0.01, batch_size=8192, optimizer="adam")


def shadow_features(logits: Tensor, labels: Tensor) -> Tensor:
    """What the attack sees of a prediction: softmax minus one-hot label, then the label itself.

    ``logits`` (n, classes) and ``labels`` (n,) give (n, 2 * classes).
    """
    told_apart(logits, labels)
    one_hot = nn.functional.one_hot(labels, logits.shape[1]).to(logits)
    return torch.cat([logits.softmax(dim=1) - one_hot, one_hot], dim=1)


def attack_network(classes: int) -> nn.Sequential:
    """Features (n, 2 * classes) to the logit (n,) of being a member; dropout in training only."""
    layers: list[nn.Module] = []
    for inside, outside in pairwise((2 * classes, 256, 128, 32)):
        layers += [nn.Linear(inside, outside), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(32, 1), nn.Flatten(0))


class _Rows(Dataset):
    """Features and their targets, a whole batch at once."""

    def __init__(self, *columns: Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[0])

    def batch_of(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        return tuple(c[torch.as_tensor(indices)] for c in self.columns)


@dataclass(frozen=True)
class ShadowAttack:
    """A fitted attack, which judges any model of the task by its outputs.

    Source: the IAU authors' ``generate_mia_data.py`` and ``train_mia.py``. Theirs takes the
    shadow models' outputs in training mode and the victim's in evaluation mode; here all are in
    evaluation mode.
    """

    network: nn.Module

    def __post_init__(self) -> None:
        self.network.eval()

    @classmethod
    def fit(
        cls,
        pool: Dataset,
        recipe: Recipe,
        *,
        validation: Dataset | None = None,
        shadows: int = 3,
        seed: int = 0,
        device: torch.device | None = None,
        **training: Any,
    ) -> ShadowAttack:
        """Fit the attack on ``shadows`` models, each trained on a random half of ``pool``.

        The half that a shadow model saw are its members, the other half its non-members.

        Parameters
        ----------
        pool : images that the attacker has, at least two: any data set that `LabelledSet` takes
        recipe : how a shadow model is made
        validation : images that none of them sees, for a recipe that stops early
        device : where the models are trained; by default, the default device
        training : what differs from `ATTACK_TRAINING`, by `TrainConfig`'s fields

        Raises
        ------
        ValueError
            No shadow model is asked for, or there are less than two images.
        TypeError
            ``training`` names no field of `TrainConfig`.
        """
        if unknown := sorted(training.keys() - {f.name for f in fields(TrainConfig)}):
            cure = did_you_mean(unknown[0], ["shadows", *(f.name for f in fields(TrainConfig))])
            raise TypeError(f"ShadowAttack.fit has no argument {unknown[0]!r}; {cure}")
        pool = labelled(pool)
        if shadows < 1 or len(pool) < 2:
            raise ValueError("the attack needs a shadow model and two images at least")
        config = replace(ATTACK_TRAINING, **training)
        features, members = [], []
        for shadow in range(shadows):
            order = torch.randperm(len(pool), generator=generator(seed, "halves", shadow))
            half = len(pool) // 2
            sides = pool.subset(order[:half]), pool.subset(order[half : 2 * half])
            model = recipe.fit(
                sides[0],
                derive_seed(seed, "shadow", shadow),
                validation=validation,
                device=device,
                name="shadow model",
            )
            for data, member in zip(sides, (1.0, 0.0), strict=True):
                out = predict(model, data, task=recipe.task)
                features.append(shadow_features(out.logits, out.labels))
                members.append(torch.full((half,), member))
        with seeded(seed, "attack"):
            network = attack_network(recipe.task.classes).to(device_of(model))

        def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            x, member = batch
            return nn.functional.binary_cross_entropy_with_logits(network(x), member)

        rows = _Rows(torch.cat(features), torch.cat(members))
        epochs = shuffled_epochs(rows, config, derive_seed(seed, "attack"))
        return cls(train(network, epochs, loss, config, seed=seed, name="shadow attack"))

    @torch.no_grad()
    def probability(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The attack's probability that each image was a member: (n,), on the CPU.

        ``logits`` (n, classes) and ``labels`` (n,) are a model's, as `predict` gives them.
        """
        weights = next(self.network.parameters())
        return self.network(shadow_features(logits, labels).to(weights)).sigmoid().cpu()

    def members(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Which images the attack calls members: (n,) bool."""
        return self.probability(logits, labels) > 0.5

    def member_rate(self, logits: Tensor, labels: Tensor) -> Estimate:
        """Share of the images that the attack calls members, in per cent."""
        return share(self.members(logits, labels))


def gradient_norms(
    model: nn.Module, loss: Callable[[Any, Any], Tensor], data: Dataset, limit: int
) -> Tensor:
    """2-norm of the loss gradient of single images, over all trainable weights: (n,), on the CPU.

    In evaluation mode, of at most ``limit`` images, which are taken at equal distances.

    Parameters
    ----------
    loss : (function from x to logits, batch) -> scalar
    """
    data = labelled(data)
    few = data.subset(evenly_spaced(len(data), limit))
    device = device_of(model)
    with evaluating(model):
        squares = [
            sum(g.square().flatten(1).sum(dim=1) for g in gradients.values())
            for batch in batches(few, 256)
            for gradients in sample_gradients(model, loss, to(batch, device))
        ]
    return finite("gradient norms", torch.cat(squares).sqrt().cpu())
