r"""SalUn for diffusion models (Fan, Liu, Zhang, Wong, Wei and Liu, ICLR 2024; arXiv 2310.12508).

`ConceptRelabel` of the weights that matter most to the images to be forgotten; all others keep their
original values. Which they are tells the gradient of the training loss, of a guided prediction,

.. math:: \ell(\theta; D_f) = \mathbb E\big\Vert \epsilon - (1 + w)\,\epsilon_\theta(x_t, c)
          + w\,\epsilon_\theta(x_t, \varnothing) \big\Vert^2,

at the original weights, in evaluation mode: half of them, those with the largest magnitudes.

Code: github.com/OPTML-Group/Unlearn-Saliency, ``DDPM/runners/diffusion.py``, ``SD/train-scripts``, commit
a6e89fd. In the DDPM's code, where :math:`\ell` is summed over an image's elements, each batch's gradient is
clipped to norm 1 before they are summed; :math:`w` is 2 there, and 7.5 for Stable Diffusion, which clips
nothing. Deviations: those of `ConceptRelabel`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..data import Denoising, ForgetSplit
from ..fields import Positive, Share
from ..models import Diffusion, shuffled_epochs
from ..seeding import derive_seed, generator, seeded
from .baselines.concept_relabel import ConceptRelabel
from .salun import Mask, frozen, random_mask, saliency_mask

__all__ = ["SalUnGeneration"]


@dataclass(frozen=True)
class SalUnGeneration(ConceptRelabel):
    """Random labelling of the salient weights of a diffusion model.

    The mask sees the forget set once, in the batches that ``train`` asks for.

    Attributes
    ----------
    train, beta, reduction : of the random labelling, see `ConceptRelabel`
    keep : the share of all weights that may change
    w : :math:`w`
    mask_clip : the norm that each batch's gradient is clipped to for the mask; None for no clipping
    mask : "saliency"; or "random", the control, a random mask of the same size
    """

    name: ClassVar[str] = "salun_generation"

    keep: Share = 0.5
    w: float = 2.0
    mask_clip: Positive | None = 1.0
    mask: Literal["saliency", "random"] = "saliency"

    def guided_error(self, model: Diffusion, batch: tuple[Tensor, Any]) -> Tensor:
        """:math:`\\ell`, summed over an image's elements, of images and their conditions."""
        x, condition = batch
        latents, noise, t = Denoising.noised(model, x)
        x_t, nothing = model.add_noise(latents, noise, t), model.nothing(len(x))
        both = torch.cat([model.embed(nothing), model.embed(condition)])
        empty, full = model.denoise(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
        error = noise - (1 + self.w) * full + self.w * empty
        return error.square().sum(dim=(1, 2, 3)).mean()

    def mask_of(self, model: Diffusion, split: ForgetSplit, seed: int = 0) -> Mask:
        """The mask of the weights that may change."""
        if self.mask == "random":
            return random_mask(model, self.keep, generator(seed, "mask"))
        loader = shuffled_epochs(split.forget, self.train, derive_seed(seed, "mask"))(0)
        with seeded(seed, "mask"):
            return saliency_mask(model, self.guided_error, loader, self.keep, self.mask_clip)

    def unlearn(self, model: Diffusion, split: ForgetSplit, seed: int) -> Diffusion:
        with frozen(model, self.mask_of(model, split, seed)):
            return super().unlearn(model, split, seed)
