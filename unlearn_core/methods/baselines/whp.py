r"""Who's Harry Potter (Eldan and Russinovich, 2023; arXiv 2310.02238), as MUSE runs it: while answering.

A copy of the model, trained on the forget set once more, shows what the forget set makes more likely;
at every token that much is taken off,

.. math:: v = v_0 - \alpha\,\mathrm{relu}(v_{\text{more}} - v_0),

:math:`v` being logits (github.com/jaechan-repo/muse_bench, ``baselines/baselines/whos_harry_potter.py``;
FLAT's paper writes probabilities). The weights stay as they are, and a second model is kept.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...data import ForgetSplit
from ...models import Around, Chat, TrainConfig, shuffled_epochs, train
from ...models.chat import head_at
from ..base import FORGET_TEXT, TEXT, Method

__all__ = ["WHP", "ContrastChat"]


class ContrastChat(Around):
    """The original, whose every token is made less likely where another model finds it likelier.

    Parameters
    ----------
    chat : the original
    other : a model of the same kind
    alpha : :math:`\\alpha`
    """

    def __init__(self, chat: Chat, other: nn.Module, alpha: float) -> None:
        super().__init__(chat)
        self.other, self.alpha = other, alpha

    def combined(self, own: Tensor, others: Tensor) -> Tensor:
        return own - self.alpha * torch.relu(others - own)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        own = super().forward(input_ids, attention_mask, position_ids, at)
        with self._autocast(), head_at(self.other, at):
            others = self.other(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids
            ).logits
        return self.combined(own, others)

    def answer(
        self, questions: Sequence[str], max_new_tokens: int = 200, batch_size: int = 48
    ) -> list[str]:
        prompts = [self.prompt(q) for q in questions]

        def options(chosen: list[int], length: int) -> dict[str, Any]:
            return {"logits_processor": [Alongside(self)]}

        return self.complete(prompts, max_new_tokens, batch_size, options)


class Alongside:
    """A logits processor that runs the other model on what has been said, with a cache of its own.

    For greedy decoding: rows keep their places.
    """

    def __init__(self, chat: ContrastChat) -> None:
        self.chat = chat
        self.mask: Tensor | None = None
        self.past: Any = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.mask is None:  # padding is on the left, before the first token that is none
            self.mask = (input_ids != self.chat.padding).cumsum(dim=1).clamp(max=1)
            new = input_ids
        else:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(input_ids), 1)], dim=1)
            new = input_ids[:, -1:]
        # Positions that count from each row's first token, as `generate` has them.
        positions = (self.mask.cumsum(dim=1) - 1).clamp(min=0)[:, -new.shape[1] :]
        out = self.chat.other(
            input_ids=new,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.past,
            use_cache=True,
        )
        self.past = out.past_key_values
        return self.chat.combined(scores, out.logits[:, -1].to(scores.dtype))


@dataclass(frozen=True)
class WHP(Method):
    """Take off, at every token, what training on the forget set once more would add.

    Attributes
    ----------
    alpha : :math:`\\alpha`
    train : of the copy
    """

    name: ClassVar[str] = "whp"
    needs: ClassVar[frozenset[str]] = frozenset({"forget"})
    draws: ClassVar[bool] = True
    works_on: ClassVar[frozenset[str]] = TEXT

    train: TrainConfig = FORGET_TEXT
    alpha: float = 1.0

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        more = copy.deepcopy(model)
        epochs = shuffled_epochs(split.forget, self.train, seed)
        train(more, epochs, split.task.loss, self.train, seed=seed, name=self.name)
        return ContrastChat(model, more.model.requires_grad_(False).eval(), self.alpha)
