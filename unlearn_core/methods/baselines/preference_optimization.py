r"""Learn something else to say: template answers (PO), or answers to other questions (Mismatch).

.. math:: L = \ell(x_f, y') + \ell(D_r).

PO (Maini et al., 2024, as "IDK"): :math:`y'` is a template answer, drawn anew at every visit. FLAT's
text has the sum of the two means; its code (github.com/UCSC-REAL/FLAT, ``dataloader.py``, loss ``PO``)
one mean over the tokens of both, so that long retain answers outweigh short refusals:
``mean="joint"``. Mismatch (in SOUL and FLAT): :math:`y'` is an unrelated text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ...data import Answering, ForgetSplit
from ...models import TrainConfig
from ...seeding import generator
from ..base import FORGET_TEXT, MULTIMODAL, TEXT, Method
from ..forget_pairs import Paired

__all__ = ["Mismatch", "PreferenceOptimization"]


@dataclass(frozen=True)
class PreferenceOptimization(Paired, Method):
    """Learn template answers to the questions of the forget set beside the retain set.

    Attributes
    ----------
    mean : "separate", of each part; or "joint", over the answer tokens of both
    """

    name: ClassVar[str] = "preference_optimization"
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "retain", "templates"})
    draws: ClassVar[bool] = True
    works_on: ClassVar[frozenset[str]] = TEXT | MULTIMODAL

    train: TrainConfig = FORGET_TEXT
    mean: Literal["separate", "joint"] = "separate"

    def loss(self, task: Answering, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """Of a batch of pairs "template" and "retain": a scalar."""
        parts = [task.token_log_probs(model, batch[k])[0] for k in ("template", "retain")]
        if self.mean == "joint":
            return -torch.cat(parts).mean()
        return -sum(p.mean() for p in parts)


@dataclass(frozen=True)
class Mismatch(PreferenceOptimization):
    """Learn the answers of unrelated questions instead, drawn anew in every epoch."""

    name: ClassVar[str] = "mismatch"
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "retain", "unrelated"})
    works_on: ClassVar[frozenset[str]] = TEXT

    def epochs(
        self, model: nn.Module, split: ForgetSplit, seed: int, **beside: Any
    ) -> Callable[[int], Iterable[dict[str, Any]]]:
        texts = split.unrelated.questions.answers

        def draw(epoch: int) -> Dataset:
            g = generator(seed, "unrelated", epoch)
            chosen = torch.randint(len(texts), (len(split.forget),), generator=g)
            return split.forget.with_answers([texts[i] for i in chosen.tolist()])

        return super().epochs(model, split, seed, template=draw, **beside)
