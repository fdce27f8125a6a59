r"""Bad teaching (Chundawat, Tarun, Mandal and Kankanhalli, AAAI 2023), as the SSD paper runs it.

The student follows a randomly initialised teacher on the forget set and the original model on a
part of the retain set: :math:`\mathrm{KL}(\text{teacher}\,\Vert\,\text{student})`, averaged over
samples *and* classes (the element mean of ``src/unlearn.py``), temperature 1.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...data import ForgetSplit
from ...fields import Share
from ...models import Recipe, TrainConfig, device_of, shuffled_epochs, train
from ...seeding import derive_seed, generator
from ..base import Method

__all__ = ["BadTeacher"]


@dataclass(frozen=True)
class BadTeacher(Method):
    """Distil from an incompetent teacher where to forget, from the original where to keep.

    Attributes
    ----------
    retain_share : the random part of the retain set that is used
    """

    name: ClassVar[str] = "bad_teacher"
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "retain", "reference", "fresh_model"})
    draws: ClassVar[bool] = True

    recipe: Recipe
    train: TrainConfig = TrainConfig(epochs=1, lr=1e-4, batch_size=256, optimizer="adam")
    retain_share: Share = 0.3

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        original = copy.deepcopy(model).eval()
        incompetent = self.recipe.build(derive_seed(seed, "bad teacher")).to(device_of(model))
        order = torch.randperm(len(split.retain), generator=generator(seed, "retain share"))
        kept = split.retain.subset(order[: max(1, round(self.retain_share * len(order)))])
        # The label slot says which teacher an image follows.
        data = split.forget.with_labels(torch.ones_like(split.forget.labels))
        data = data + kept.with_labels(torch.zeros_like(kept.labels))

        def loss(student: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            logits, forget = split.task.logits, batch[1][:, None] == 1
            with torch.no_grad():
                teacher = torch.where(forget, logits(incompetent, batch), logits(original, batch))
            log_student = logits(student, batch).log_softmax(dim=1)
            divergence = nn.functional.kl_div(
                log_student, teacher.log_softmax(dim=1), reduction="none", log_target=True
            )
            return divergence.mean()

        epochs = shuffled_epochs(data, self.train, seed)
        return train(model, epochs, loss, self.train, seed=seed, name=self.name)
