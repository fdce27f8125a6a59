r"""Who's Harry Potter (Eldan and Russinovich, 2023; arXiv 2310.02238), as MUSE runs it: while answering.

A copy of the model, trained on the forget set once more, shows what the forget set makes more likely;
at every token that much is taken off,

.. math:: v = v_0 - \alpha\,\mathrm{relu}(v_{\text{more}} - v_0),

:math:`v` being logits (github.com/jaechan-repo/muse_bench, ``baselines/baselines/whos_harry_potter.py``;
FLAT's paper writes probabilities). The weights stay as they are, and a second model is kept.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...data import ForgetSplit
from ...fields import NotNegative
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
        """Logits of the two models, (..., vocabulary) each, as one: what only the reinforced one says, less."""
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

    def complete(self, *args: Any, **kwargs: Any) -> list[str]:
        with self.together():
            return super().complete(*args, **kwargs)

    def generate(self, *args: Any, num_beams: int = 1, **options: Any) -> Tensor:
        """As of `Chat`, of both models together.

        Raises
        ------
        ValueError
            More than one beam.
        """
        if num_beams > 1:
            raise ValueError(
                "beams change the places of rows, and two caches don't follow: take one"
            )
        with self.together():
            return super().generate(*args, num_beams=1, **options)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Inside the block the model that generates has the logits of both.

        The other model reads what that one is given (tokens, mask and positions), with a cache of its
        own. For greedy decoding: the rows of a cache keep their places.
        """
        from transformers import Cache, DynamicCache

        theirs: Any = None  # the cache of the model that generates
        own: Any = None  # the other's, for the same batch

        def add(_: nn.Module, __: Any, given: dict[str, Any], out: Any) -> Any:
            nonlocal theirs, own
            held = {k: v for k, v in given.items() if isinstance(v, Cache)}
            for name, cache in held.items():
                if cache is not theirs:  # another batch
                    theirs, own = cache, DynamicCache()
                given = {**given, name: own}
            out.logits = self.combined(out.logits.float(), self.other(**given).logits.float())
            return out

        hook = self.model.register_forward_hook(add, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()


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
    alpha: NotNegative = 1.0

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        more = copy.deepcopy(model)
        epochs = shuffled_epochs(split.forget, self.train, seed)
        train(more, epochs, split.task.loss, self.train, seed=seed, name=self.name)
        return ContrastChat(model, more.model.requires_grad_(False).eval(), self.alpha)
