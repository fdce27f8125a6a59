r"""Learning one task after another with nothing against forgetting: adapters ("LoRA") or all weights
("FFT"), as SEFE is compared with (Chen et al., ICML 2025; arXiv 2505.02486).

To every linear map of the language model but its head a fresh low-rank adapter is attached, trained
on the new task, and merged,

.. math:: W_t = W_{t-1} + \tfrac{\alpha}{r} B_t A_t, \qquad B_t = 0 \text{ before the first step.}

Full fine-tuning trains the language model with its embeddings and its head instead.

Authors' code: github.com/jinpeng0528/SEFE, ``scripts/Train``, commit 2f61efe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...fields import Count, Fraction, Positive, Share
from ...models import Chat, TrainConfig, single_precision
from ..adapters import LLAMA_LINEARS, Factors, adapters, frozen, linears
from ..continual import SEFE_TRAIN, ContinualMethod, Memory, Stage

__all__ = ["SequentialFullTuning", "SequentialLoRA"]


@dataclass(frozen=True)
class SequentialLoRA(ContinualMethod):
    r"""A fresh adapter for each task, merged after it; nothing is done against forgetting.

    Attributes
    ----------
    rank, alpha, dropout : of the adapters; :math:`\alpha/r` scales their product
    targets : names, or ends of names, of the linear maps that get one
    projector_rate : the projector's learning rate as a share of ``train.lr``; authors: 2e-5 of 2e-4
    """

    name: ClassVar[str] = "sequential_lora"

    rank: Count = 128
    alpha: Positive = 256
    dropout: Fraction = 0.05
    targets: tuple[str, ...] = LLAMA_LINEARS
    projector_rate: Share = 0.1

    def __post_init__(self) -> None:
        if isinstance(self.targets, list):
            object.__setattr__(self, "targets", tuple(self.targets))
        super().__post_init__()
        if not self.targets:
            raise ValueError("targets: name at least one linear map")

    def check(self, model: Chat, stages: Sequence[Stage]) -> None:
        super().check(model, stages)
        linears(model, self.targets)

    def regulariser(self, factors: Factors, memory: Memory) -> Tensor:
        """What is added to the loss of a task, once there is something in the memory."""
        raise NotImplementedError

    def remember(
        self, model: Chat, stages: Sequence[Stage], factors: Factors, memory: Memory, seed: int
    ) -> None:
        """Note in the memory what to protect of the last stage; the adapters are merged."""

    def adapt(self, model: Chat, stages: Sequence[Stage], memory: Memory, seed: int) -> None:
        lora = {"rank": self.rank, "alpha": self.alpha, "dropout": self.dropout}
        with adapters(model, seed, "lora", len(stages), targets=self.targets, **lora) as factors:
            beside = self.beside(model)
            for p in beside:
                p.requires_grad_(True)

            def loss(model: nn.Module, batch: Any) -> Tensor:
                value = stages[-1].task.loss(model, batch)
                return value + self.regulariser(factors, memory) if memory else value

            def shorten(model: nn.Module, step: int) -> None:
                # The loop has one learning rate. All its optimizers move a weight in proportion to
                # it, so a part of the move is the move at that part of the rate.
                with torch.no_grad():
                    for p, before in zip(beside, held, strict=True):
                        before.lerp_(p, self.projector_rate)
                        p.copy_(before)

            with single_precision(beside, self.name):
                held = [p.detach().clone() for p in beside]
                self.fit(model, stages, seed, loss, shorten if beside else None)
        learned = {n: (A.detach(), B.detach()) for n, (A, B) in factors.items()}
        self.remember(model, stages, learned, memory, seed)


@dataclass(frozen=True)
class SequentialFullTuning(ContinualMethod):
    """Train the whole language model on each task; nothing is done against forgetting."""

    name: ClassVar[str] = "sequential_full_tuning"

    train: TrainConfig = replace(SEFE_TRAIN, lr=2e-5)

    def trained(self, model: Chat) -> list[nn.Parameter]:
        """What is trained; weights that embeddings and head share come once."""
        whole = nn.ModuleList([model.model.get_decoder(), model.model.get_output_embeddings()])
        return [*whole.parameters(), *self.beside(model)]

    def adapt(
        self,
        model: Chat,
        stages: Sequence[Stage],
        memory: Memory,
        seed: int,
        after_step: Callable[[nn.Module, int], None] | None = None,
    ) -> None:
        with frozen(model):
            for p in self.trained(model):
                p.requires_grad_(True)
            self.fit(model, stages, seed, stages[-1].task.loss, after_step)
