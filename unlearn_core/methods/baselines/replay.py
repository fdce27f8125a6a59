r"""Replay: a share of every former task's data is mixed into the new task's.

.. math:: L_t = \ell\Big(D_t \cup \bigcup_{s<t} R_s\Big), \qquad R_s \subset D_s,\ |R_s| = \rho |D_s|.

:math:`R_s` is drawn once, when its task is over, and kept. Not in SEFE's tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.utils.data import Dataset

from ...fields import Share
from ...seeding import generator
from ..continual import Stage
from .sequential import SequentialLoRA

__all__ = ["Replay"]


@dataclass(frozen=True)
class Replay(SequentialLoRA):
    r"""Sequential adapters that see a part of the former data again.

    Attributes
    ----------
    share : :math:`\rho`, of each former task's data; one example at least
    """

    name: ClassVar[str] = "replay"
    mixes: ClassVar[bool] = True

    share: Share = 0.1

    def data(self, stages: Sequence[Stage], seed: int) -> Dataset:
        mixed = stages[-1].data
        for s in stages[:-1]:
            order = torch.randperm(len(s.data), generator=generator(seed, "replay", s.name))
            mixed = mixed + s.data.subset(order[: max(1, round(self.share * len(s.data)))])
        return mixed
