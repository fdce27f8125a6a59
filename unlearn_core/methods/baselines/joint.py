r"""Joint training: all tasks at once, what no order can make forget. The upper bound.

.. math:: L = \ell(D_1 \cup \dots \cup D_T)

The model is yielded once for each task, the same one, so that a table of accuracies after each task
has all its rows: they are equal, and nothing is forgotten. Not in SEFE's tables; others give the
last row.
"""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ...models import Chat
from ..base import told
from ..continual import Stage
from .sequential import SequentialLoRA

__all__ = ["Joint"]


@dataclass(frozen=True)
class Joint(SequentialLoRA):
    """One adapter for the data of all tasks."""

    name: ClassVar[str] = "joint"
    mixes: ClassVar[bool] = True

    def run(self, model: Chat, stages: Sequence[Stage], seed: int) -> Iterator[tuple[str, Chat]]:
        """Learn all tasks at once; after each, yield its name and the one model."""
        data = functools.reduce(operator.add, (s.data for s in stages))
        model = copy.deepcopy(model)
        self.adapt(model, [Stage("all", stages[0].task, data)], {}, seed)
        model.made_by = (*getattr(model, "made_by", ()), told(self, seed))
        for stage in stages:
            yield stage.name, model
