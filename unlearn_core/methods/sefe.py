r"""RegLoRA, the parameter side of SEFE (Chen et al., ICML 2025; arXiv 2505.02486).

After each task the :math:`M` largest per cent of :math:`|\Delta W| = |BA|` of every adapted linear
map are noted, and later tasks pay for moving these positions:

.. math::

    L_t = \ell(D_t) + \frac{\lambda}{N}\sum_{l=1}^{N} \frac{1}{|S^{(l)}|}
          \sum_{(i,j)\in S^{(l)}} \big|(B_t^{(l)} A_t^{(l)})_{ij}\big|, \qquad
    S^{(l)} = (K_{t-1}^{(l)}, \dots, K_1^{(l)}).

Of several tasks the newest positions come first, and a position that two tasks choose counts twice.
SEFE is RegLoRA on tasks whose answers are in several styles (answer style diversification).

Authors' code: github.com/jinpeng0528/SEFE, ``key_elements_identification.py`` and
``llava/model/language_model/modeling_llama.py``, commit 2f61efe. As there, :math:`\alpha/r` is left
out, :math:`|BA|` is ranked in single precision, and the projector is not regularised.

Deviations: N is the number of adapted maps, which the authors' code has as 224. How a penalty on A
and B together is reduced is not known; here it is the sum of both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..fields import NotNegative, Share
from ..models import Chat
from ..seeding import generator
from .adapters import LLAMA_LINEARS, Factors, linears
from .baselines.sequential import SequentialLoRA
from .continual import Memory, Stage

__all__ = ["RegLoRA", "key_elements", "penalty", "protected_movement"]

#: What can be regularised, and the matrices of a layer that it means.
REGULARISED = {"update": ("BA",), "a": ("A",), "b": ("B",), "factors": ("A", "B")}


def key_elements(update: Tensor, ratio: float) -> Tensor:
    """Positions of the largest absolute entries, the largest first.

    Parameters
    ----------
    update : of any shape
    ratio : the share of its entries

    Returns
    -------
    (k,) int32, positions in the flattened ``update``, with k = int((ratio * rows) * columns)

    Raises
    ------
    ValueError
        The share is less than one entry, or more than all; an entry is not a number.
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"a share is in (0, 1], not {ratio}")
    if update.isnan().any():
        raise ValueError("an update has entries that are not numbers")
    k = int(math.prod(update.shape, start=ratio))  # in the authors' order: rounding counts
    if k == 0:
        raise ValueError(f"a share of {ratio} is no entry of a {tuple(update.shape)} matrix")
    return update.float().abs().flatten().topk(k).indices.int()


def penalty(factors: Factors, protected: Mapping[tuple[str, str], Tensor]) -> Tensor:
    """The mean over layers of the mean absolute entry at the protected positions: a scalar.

    An update is made in whole, but of one layer at a time, and the backward pass keeps only its
    entries at the positions. (To gather rows of B and columns of A instead takes longer, even at
    two per cent.)

    Parameters
    ----------
    protected : (layer, "BA", "A" or "B") -> positions as of `key_elements`, with repetitions
    """
    means = [
        matrix(of, *factors[layer]).flatten().index_select(0, positions).abs().mean()
        for (layer, of), positions in protected.items()
    ]
    return torch.stack(means).sum() / len(factors)


def matrix(of: str, A: Tensor, B: Tensor) -> Tensor:
    return B @ A if of == "BA" else A if of == "A" else B


@torch.no_grad()
def protected_movement(
    models: Iterable[Chat], ratio: float = 0.02, targets: tuple[str, ...] = LLAMA_LINEARS
) -> list[tuple[float, float]]:
    r"""How far each task moves what it should leave alone, and how far the rest.

    Parameters
    ----------
    models : the model before the first task and after each; only two are held at a time
    ratio : the share of an update that is protected afterwards
    targets : as of `linears`

    Returns
    -------
    Of each task from the second on, the mean absolute change of the weights that former tasks
    protect and of all others, in units of the weights (:math:`\alpha/r` included). NaN where there
    are no such weights.
    """
    found = []
    before: dict[str, Tensor] = {}
    protected: dict[str, Tensor] = {}
    for model in models:
        weights = {name: m.weight.detach() for name, m in linears(model, targets).items()}
        inside, outside = torch.zeros(2).double(), torch.zeros(2).double()  # a sum and a number
        for name in before:
            update = (weights[name] - before[name]).flatten()
            if name in protected:
                for total, mask in ((inside, protected[name]), (outside, ~protected[name])):
                    total += torch.stack([update[mask].abs().sum(), mask.sum()]).cpu()
            else:
                protected[name] = torch.zeros_like(update, dtype=torch.bool)
            protected[name][key_elements(update.view_as(weights[name]), ratio)] = True
        if outside[1] + inside[1]:
            found.append(tuple((total[0] / total[1]).item() for total in (inside, outside)))
        before = weights
    return found


@dataclass(frozen=True)
class RegLoRA(SequentialLoRA):
    r"""Sequential adapters that pay for moving what former tasks moved most.

    Attributes
    ----------
    ratio : :math:`M`, the share of entries that each task protects
    weight : :math:`\lambda`; the authors' fits BA without :math:`\alpha/r`, at rank 128
    regularise : "update", BA; or, as controls, the factors "a", "b" or both ("factors"), of which
        then the largest entries are protected
    selection : "top", the largest entries; or, as a control, as many "random" ones
    """

    name: ClassVar[str] = "reglora"

    ratio: Share = 0.02
    weight: NotNegative = 2.5e3
    regularise: Literal["update", "a", "b", "factors"] = "update"
    selection: Literal["top", "random"] = "top"

    def regulariser(self, factors: Factors, memory: Memory) -> Tensor:
        return self.weight * penalty(factors, memory)

    def remember(
        self, model: Chat, stages: Sequence[Stage], factors: Factors, memory: Memory, seed: int
    ) -> None:
        g = generator(seed, "random positions", len(stages))
        for layer, (A, B) in factors.items():
            for of in REGULARISED[self.regularise]:
                scores = matrix(of, A, B)
                if self.selection == "random":
                    scores = torch.rand(scores.shape, generator=g).to(scores.device)
                new = key_elements(scores, self.ratio)
                former = memory.get((layer, of), new[:0])
                memory[layer, of] = torch.cat([new, former])
