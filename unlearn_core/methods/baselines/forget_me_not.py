r"""Forget-Me-Not (Zhang, Wang, Xu, Wang and Shi, CVPR workshops 2024; arXiv 2303.17591): attention re-steering.

On noised images of the concept, the model learns not to look at the concept's words. With the
probabilities :math:`A_\ell` of the cross-attention layers, over heads, pixels and tokens,

.. math:: L = \Big(\sum_\ell \sum_{h, p} \sum_{k \in c} A_\ell[h, p, k]^2\Big)^{1/2} .

Code: github.com/SHI-Labs/Forget-Me-Not, ``src/train_attn.py``, ``configs/attn.yaml``, commit 2767849.
Deviations: the images of the concept are drawn by the original model; the concept keeps its own words
(the authors first learn new tokens for it by textual inversion).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from ...data import Denoising, ForgetSplit
from ...fields import Count, NotNegative
from ...models import TextConditional, TrainConfig, shuffled_epochs, train
from ..base import DIFFUSION, Method
from ..cross_attention_training import attention_maps, concept_tokens, training_only
from .ablating_concepts import draw_images

__all__ = ["ForgetMeNot"]


@dataclass(frozen=True)
class ForgetMeNot(Method):
    """Take the attention off the concepts' words.

    Attributes
    ----------
    images : how many the original draws of the concepts
    steps, guidance : of its sampler
    cross_attention_only : train cross-attention, not the whole UNet
    ending : take the attention off the token that ends a prompt, too
    """

    name: ClassVar[str] = "forget_me_not"
    needs: ClassVar[frozenset[str]] = frozenset({"concepts"})
    draws: ClassVar[bool] = True
    works_on: ClassVar[frozenset[str]] = DIFFUSION

    train: TrainConfig = TrainConfig(
        epochs=35,
        lr=2e-6,
        batch_size=1,
        optimizer="adamw",
        weight_decay=0.01,
        clip=1.0,
        max_steps=35,
    )
    images: Count = 8
    steps: Count = 50
    guidance: NotNegative = 7.5
    cross_attention_only: bool = False
    ending: bool = True

    def loss(
        self,
        prompts: list[str],
        tokens: Tensor,
        model: TextConditional,
        batch: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Of images and their prompts' positions, given each prompt's ``tokens`` (bool): a scalar."""
        x, which = batch
        latents, noise, t = Denoising.noised(model, x)
        with attention_maps(model) as maps:
            model(model.add_noise(latents, noise, t), t, [prompts[i] for i in which.tolist()])
        chosen = tokens.to(x.device)[which][:, None, None]
        return torch.cat([m.float()[chosen.expand_as(m)] for m in maps.values()]).norm()

    def unlearn(self, model: TextConditional, split: ForgetSplit, seed: int) -> TextConditional:
        if not isinstance(model, TextConditional):
            raise ValueError("Forget-Me-Not needs a model of texts: a class has no words")
        concepts = split.task.concepts
        prompts = concepts.prompts()
        words = [name for name, _ in concepts.erased for _ in concepts.templates]
        tokens = concept_tokens(model.prompts, prompts, words, self.ending)
        data = draw_images(model, prompts, self.images, seed, self.steps, self.guidance)
        epochs = shuffled_epochs(data, self.train, seed)
        loss = partial(self.loss, prompts, tokens)
        with training_only(model, lambda n: ".attn2." in n or not self.cross_attention_only):
            return train(model, epochs, loss, self.train, seed=seed, name=self.name)
