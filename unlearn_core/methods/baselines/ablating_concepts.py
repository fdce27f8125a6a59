r"""Ablating Concepts, model-based (Kumari, Zhang, Wang, Shechtman, Zhang and Zhu, ICCV 2023; arXiv 2303.13516).

For the concept :math:`c` the model learns to predict what it predicts for the anchor :math:`a` at the
same place,

.. math:: L = \big\Vert \epsilon_\theta(x_t, c) - \mathrm{sg}\,\epsilon_\theta(x_t, a) \big\Vert^2,

a mean over all elements; :math:`x_t` are noised images of the anchor, drawn by the original model. Only
the keys' and values' projections of cross-attention are trained.

Code: github.com/nupurkmr9/concept-ablation, ``compvis/src/model.py``, ``diffusers/train.py``; its learning
rate, 2e-6, is multiplied by the batch of 4 and by 2 GPUs. Deviations: no second batch (theirs is
optional), and the prompts are the request's templates, where the authors have a list written. Their
code lets no gradient through the keys and values of a prompt's first token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from ...data import Denoising, ForgetSplit
from ...fields import Count, NotNegative
from ...models import Diffusion, TrainConfig, shuffled_epochs, train
from ...seeding import derive_seed
from ..base import DIFFUSION, Method
from ..cross_attention_training import training_only

__all__ = ["AblatingConcepts", "draw_images"]


def draw_images(
    model: Diffusion, prompts: Sequence[Any], n: int, seed: int, steps: int, guidance: float
) -> TensorDataset:
    """``n`` images that the model draws of the prompts in turn, each with its prompt's position."""
    which = torch.arange(n) % len(prompts)
    asked = [prompts[i] for i in which.tolist()]
    found = model.sample(asked, derive_seed(seed, "images"), steps=steps, guidance=guidance)
    return TensorDataset(found, which)


@dataclass(frozen=True)
class AblatingConcepts(Method):
    """Draw the anchor where the concept is asked for.

    Attributes
    ----------
    images : how many the original draws of the anchors
    steps, guidance : of its sampler
    """

    name: ClassVar[str] = "ablating_concepts"
    needs: ClassVar[frozenset[str]] = frozenset({"concepts"})
    draws: ClassVar[bool] = True
    works_on: ClassVar[frozenset[str]] = DIFFUSION

    train: TrainConfig = TrainConfig(
        epochs=100, lr=1.6e-5, batch_size=8, optimizer="adamw", weight_decay=0.01, max_steps=100
    )
    images: Count = 200
    steps: Count = 50
    guidance: NotNegative = 7.5

    def loss(
        self, pairs: list[tuple[Any, Any]], model: Diffusion, batch: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Of images and their pairs' positions, of a concept's prompt and an anchor's: a scalar."""
        x, which = batch
        concepts, anchors = zip(*(pairs[i] for i in which.tolist()), strict=True)
        latents, noise, t = Denoising.noised(model, x)
        x_t = model.add_noise(latents, noise, t)
        with torch.no_grad():
            wanted = model(x_t, t, anchors)
        return torch.nn.functional.mse_loss(model(x_t, t, concepts), wanted)

    def unlearn(self, model: Diffusion, split: ForgetSplit, seed: int) -> Diffusion:
        pairs = split.task.concepts.pairs()
        chosen = ("attn2.to_k.weight", "attn2.to_v.weight")
        with training_only(model, lambda name: name.endswith(chosen)):
            anchors = [anchor for _, anchor in pairs]
            data = draw_images(model, anchors, self.images, seed, self.steps, self.guidance)
            epochs = shuffled_epochs(data, self.train, seed)
            loss = partial(self.loss, pairs)
            return train(model, epochs, loss, self.train, seed=seed, name=self.name)
