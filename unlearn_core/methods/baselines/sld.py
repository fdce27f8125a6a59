r"""SLD, Safe Latent Diffusion (Schramowski, Brack, Deiseroth and Kersting, CVPR 2023; arXiv 2211.05105).

The weights stay; each step of sampling is guided away from the concept :math:`S`, where the prompt
:math:`p` comes near it:

.. math::

    \mu &= \min(s_S\,|\epsilon_p - \epsilon_S|, 1), \quad
           0 \text{ where } \epsilon_p - \epsilon_S \ge \lambda, \\
    \gamma &= \mu\,(\epsilon_S - \epsilon_\varnothing) + s_m\,\nu, \qquad
           \nu \leftarrow \beta_m\,\nu + (1 - \beta_m)\,\gamma, \\
    \epsilon &= \epsilon_\varnothing + s_g\,(\epsilon_p - \epsilon_\varnothing - \gamma),

without :math:`\gamma` in the last line during the first steps. Code:
github.com/ml-research/safe-latent-diffusion, ``src/sld/sld_pipeline.py``. There :math:`S` is a list of
words for what is unsafe; here it is the names of the concepts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...data import ForgetSplit
from ...fields import Fraction, Natural, NotNegative
from ...models import TextConditional
from ...models.diffusion import Guide
from ..base import DIFFUSION, Method

__all__ = ["SLD", "STRONG", "GuidedAway"]


class GuidedAway(TextConditional):
    """The given model, whose samples are kept away from a concept.

    Parameters
    ----------
    model : its weights are shared
    concept : :math:`S`, a prompt
    setting : the hyper-parameters
    """

    def __init__(self, model: TextConditional, concept: str, setting: SLD) -> None:
        super().__init__(
            model.unet,
            model.scheduler,
            model.codec,
            model.prompts,
            model.drop,
            model.precision,
        )
        self.concept, self.setting = concept, setting

    @property
    def model(self) -> TextConditional:
        """What is kept away."""
        parts = (self.unet, self.scheduler, self.codec, self.prompts)
        return TextConditional(*parts, self.drop, self.precision)

    def guide(self, condition: Sequence[str], guidance: float) -> Guide:
        n, s = len(condition), self.setting
        three = torch.cat([self.embed(c) for c in (self.nothing(n), condition, [self.concept] * n)])
        momentum: Tensor | float = 0.0

        def epsilon(x_t: Tensor, t: Tensor, step: int) -> Tensor:
            nonlocal momentum
            found = self.denoise(torch.cat([x_t] * 3), t.expand(3 * n), three)
            empty, prompt, unsafe = found.chunk(3)
            scale = (s.scale * (prompt - unsafe).abs()).clamp(max=1)
            scale = scale.where(prompt - unsafe < s.threshold, 0)
            away = scale * (unsafe - empty) + s.momentum_scale * momentum
            momentum = s.momentum * momentum + (1 - s.momentum) * away
            return empty + guidance * (prompt - empty - (away if step >= s.warmup else 0))

        return epsilon


@dataclass(frozen=True)
class SLD(Method):
    """Guide every sample away from the concepts; the defaults are the authors' "medium".

    Attributes
    ----------
    scale : :math:`s_S`
    warmup : so many steps of the sampler are left as they are
    threshold : :math:`\\lambda`
    momentum_scale, momentum : :math:`s_m` and :math:`\\beta_m`
    """

    name: ClassVar[str] = "sld"
    needs: ClassVar[frozenset[str]] = frozenset({"concepts"})
    draws: ClassVar[bool] = False
    works_on: ClassVar[frozenset[str]] = DIFFUSION
    trains: ClassVar[bool] = False

    scale: NotNegative = 1000.0
    warmup: Natural = 10
    threshold: float = 0.01
    momentum_scale: NotNegative = 0.3
    momentum: Fraction = 0.4

    def unlearn(self, model: TextConditional, split: ForgetSplit, seed: int) -> GuidedAway:
        if not isinstance(model, TextConditional):
            raise ValueError("SLD needs a model of texts")
        names = ", ".join(name for name, _ in split.task.concepts.erased)
        return GuidedAway(model, names, self)


#: The authors' "strong".
STRONG = SLD(2000.0, 7, 0.025, 0.5, 0.7)
