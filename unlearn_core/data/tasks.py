"""What a model is trained to do: the loss of a batch, and what a wrong answer is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .images import Batch, ImageSet

__all__ = ["IGNORED", "Answering", "Classification", "Task"]

#: The label of a token that is not part of an answer.
IGNORED = -100


@dataclass(frozen=True)
class Classification:
    """Learning one of ``classes`` labels under the cross-entropy."""

    modality: ClassVar[str] = "images"

    classes: int

    def loss(self, model: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
        """Mean cross-entropy of the batch ``(x, y)``: a scalar."""
        return torch.nn.functional.cross_entropy(self.logits(model, batch), batch[1])

    def log_probs(self, model: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
        """The log-probability of each label: (n,)."""
        return -torch.nn.functional.cross_entropy(
            self.logits(model, batch), batch[1], reduction="none"
        )

    def logits(self, model: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
        """(n, classes)."""
        return model(batch[0])

    def relabel(
        self, data: ImageSet, generator: torch.Generator, *, wrong: bool = True
    ) -> ImageSet:
        """Give every image a random label: uniform over the other classes, or over all of them.

        Called once, the labels are drawn once; called before each epoch, they are redrawn.
        """
        lowest = 1 if wrong else 0
        shift = torch.randint(lowest, self.classes, data.labels.shape, generator=generator)
        return data.with_labels((data.labels + shift) % self.classes)


@dataclass(frozen=True)
class Answering:
    """Learning to give an answer, token by token.

    A batch is a mapping of ``input_ids``, ``attention_mask`` and ``labels``, each (n, length); a
    label is -100 where a token is not part of an answer.

    Parameters
    ----------
    templates : answers that say nothing, to be learned instead of what is to be forgotten
    """

    modality: ClassVar[str] = "text"

    templates: tuple[str, ...] = ()

    def loss(self, model: Callable[..., Tensor], batch: dict[str, Tensor]) -> Tensor:
        """Mean negative log-likelihood over all answer tokens of the batch: a scalar."""
        return -self.token_log_probs(model, batch)[0].mean()

    def log_probs(self, model: Callable[..., Tensor], batch: dict[str, Tensor]) -> Tensor:
        """The log-probability of each answer, summed over its tokens: (n,)."""
        scores, rows = self.token_log_probs(model, batch)
        total = scores.new_zeros(len(batch["labels"]))
        return total.index_add(0, rows, scores)

    def token_log_probs(
        self, model: Callable[..., Tensor], batch: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The log-probability of every answer token, (tokens,) float32, and the row it is in."""
        labels = batch["labels"][:, 1:]
        said = labels != IGNORED
        # Only positions that predict an answer: the vocabulary is wide.
        logits = self.logits(model, batch)[:, :-1][said]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        scores = -torch.nn.functional.cross_entropy(logits, labels[said], reduction="none")
        return scores, said.nonzero()[:, 0]

    def logits(self, model: Callable[..., Tensor], batch: dict[str, Tensor]) -> Tensor:
        """(n, length, vocabulary); at a position, of the token at the next one."""
        return model(batch["input_ids"], batch["attention_mask"])

    @staticmethod
    def answer_tokens(batch: dict[str, Tensor]) -> Tensor:
        """How many tokens each answer has, the end of sequence included: (n,)."""
        return (batch["labels"] != IGNORED).sum(dim=1)

    def relabel(self, data: Any, generator: torch.Generator) -> Any:
        """Give every question a template answer, drawn with replacement.

        Called once, the answers are drawn once; called before each epoch, they are redrawn.

        Raises
        ------
        ValueError
            There are no template answers, or they are withheld from the method that asks.
        """
        if not self.templates:
            raise ValueError("there are no template answers to draw from")
        drawn = torch.randint(len(self.templates), (len(data),), generator=generator)
        return data.with_answers([self.templates[i] for i in drawn.tolist()])


#: What the tasks share: ``modality``, ``loss``, ``log_probs`` and ``logits`` of (model, batch), and
#: ``relabel(data, generator)``.
Task = Classification | Answering
