r"""UNSIR (Tarun, Chundawat, Mandal and Kankanhalli, TNNLS 2023), as the SSD paper runs it.

(1) Noise that the model finds unlike the class :math:`c_f`: minimise
:math:`-\mathrm{CE}(f(n), c_f) + 0.1\,\mathrm{mean}_b\sum n_b^2` over a batch of 32 images, by
Adam. (2) Impair: one epoch on copies of that batch, labelled :math:`c_f`, mixed with the first
images of every retained class. (3) Repair: one epoch on those images alone.
(``src/forget_full_class_strategies.py``.) Two things differ from there: the noise is made in
evaluation mode, so that it leaves BatchNorm's statistics alone, and "every retained class" means
every sub-class where there are any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ...data import Classification, ForgetSplit, Labelled, logits_by, redrawn
from ...fields import Count, Natural, NotNegative, Positive
from ...models import TrainConfig, TrainingError, device_of, evaluating, shuffled_epochs, train
from ...seeding import derive_seed, generator
from ..base import Method

__all__ = ["UNSIR"]


class _WithNoise(Dataset):
    """A set of images followed by ``copies`` of a batch of noise, all labelled ``label``."""

    def __init__(self, images: Labelled, noise: Tensor, copies: int, label: int) -> None:
        self.images, self.noise, self.copies, self.label = images, noise, copies, label

    def augmented(self, names: tuple[str, ...], draw: int = 0) -> _WithNoise:
        return _WithNoise(self.images.augmented(names, draw), self.noise, self.copies, self.label)

    def redrawn(self, draw: int) -> _WithNoise:
        return _WithNoise(redrawn(self.images, draw), self.noise, self.copies, self.label)

    def __len__(self) -> int:
        return len(self.images) + self.copies * len(self.noise)

    def batch_of(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        index = torch.as_tensor(indices)
        real = index < len(self.images)
        x, y = self.images.batch_of(index[real])
        noise = self.noise[(index[~real] - len(self.images)) % len(self.noise)]
        return torch.cat([x, noise]), torch.cat([y, y.new_full((len(noise),), self.label)])


@dataclass(frozen=True)
class UNSIR(Method):
    """Impair with error-maximising noise, then repair; for requests that name a (sub-)class.

    Attributes
    ----------
    steps : of the noise; 25 (full class) or 250 (sub-class) in the SSD paper
    noise_lr, noise_batch, penalty : of the noise's optimisation
    copies : of the noise batch in the impair epoch
    per_class : retained images of every (fine) class that impair and repair use
    """

    name: ClassVar[str] = "unsir"
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})
    draws: ClassVar[bool] = True

    steps: Natural = 25
    noise_lr: Positive = 0.1
    noise_batch: Count = 32
    penalty: NotNegative = 0.1
    copies: Count = 80
    per_class: Count = 500
    impair: TrainConfig = TrainConfig(epochs=1, lr=1e-4, batch_size=32, optimizer="adam")
    repair: TrainConfig = TrainConfig(epochs=1, lr=1e-4, batch_size=128, optimizer="adam")

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        label = int(split.forget.labels[0])
        if (split.forget.labels != label).any():
            raise ValueError("UNSIR forgets one class, but the forget set has several labels")
        shape = split.forget[0][0].shape
        noise = self.make_noise(model, label, shape, seed, split.task)
        fine = split.retain.subclasses
        kept = torch.cat([(fine == c).nonzero()[: self.per_class, 0] for c in fine.unique()])
        images = split.retain.subset(kept)
        mixed = _WithNoise(images, noise, self.copies, label)
        for stage, data, config in (
            ("impair", mixed, self.impair),
            ("repair", images, self.repair),
        ):
            epochs = shuffled_epochs(data, config, derive_seed(seed, stage))
            train(model, epochs, split.task.loss, config, seed=seed, name=f"unsir, {stage}")
        return model

    def make_noise(
        self,
        model: nn.Module,
        label: int,
        shape: Sequence[int],
        seed: int,
        task: Classification | None = None,
    ) -> Tensor:
        """Error-maximising noise for one class: ``(noise_batch, *shape)``, on the CPU.

        Raises
        ------
        TrainingError
            The loss is not finite.
        """
        device, logits = device_of(model), logits_by(task)
        dims = tuple(range(1, 1 + len(shape)))
        start = torch.randn(self.noise_batch, *shape, generator=generator(seed, "noise"))
        noise = start.to(device).requires_grad_()
        target = torch.full((self.noise_batch,), label, device=device)
        optimizer = torch.optim.Adam([noise], self.noise_lr)
        with evaluating(model):
            for step in range(self.steps):
                error = nn.functional.cross_entropy(logits(model, (noise, target)), target)
                loss = -error + self.penalty * noise.square().sum(dim=dims).mean()
                if not torch.isfinite(loss):
                    raise TrainingError(
                        f"unsir, noise: the loss is {loss.item()} at step {step + 1}"
                    )
                (noise.grad,) = torch.autograd.grad(loss, [noise])
                optimizer.step()
        return noise.detach().cpu()
