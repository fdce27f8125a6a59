"""Methods that act while a model answers: which prompts they act on, and the model that they return.

Their weights are the original's. A `FlaggedChat` answers a prompt that nobody has flagged as the
original does, and a flagged one in another way; who flags is a `PromptClassifier` on the frozen
model's own hidden states, or perfect knowledge (`Knows`), for baselines that are stated so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ..models import (
    Around,
    Chat,
    Saved,
    TrainConfig,
    device_of,
    evaluating,
    shuffled_epochs,
    train,
)
from ..models.inference import check_pair, several
from ..seeding import derive_seed, seeded

__all__ = ["EveryOne", "FlaggedChat", "Knows", "PromptClassifier", "prompt_embeddings"]


@torch.no_grad()
def prompt_embeddings(chat: Chat, questions: Sequence[str], batch_size: int = 16) -> Tensor:
    """The mean over a question's tokens of the penultimate layer's hidden states: (n, hidden).

    Float32, on the CPU. The question alone is read, not the form of the prompt.
    """
    rows = [chat.tokenizer(q)["input_ids"] for q in questions]
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    out: list[Tensor] = [torch.empty(0)] * len(rows)
    for start in range(0, len(rows), batch_size):
        chosen = order[start : start + batch_size]
        lengths = torch.tensor([len(rows[i]) for i in chosen])
        ids = nn.utils.rnn.pad_sequence(
            [torch.tensor(rows[i]) for i in chosen], batch_first=True, padding_value=chat.padding
        )
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long().to(device_of(chat))
        with evaluating(chat):
            states = chat.hidden_states(ids.to(device_of(chat)), mask)[-2].float()
        pooled = (states * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        for i, z in zip(chosen, pooled.cpu(), strict=True):
            out[i] = z
    return torch.stack(out)


class PromptClassifier(Saved, nn.Module):
    """Whether a prompt asks for what is to be forgotten: a small network on `prompt_embeddings`.

    Linear, ReLU, dropout, layer norm, linear; two classes.
    """

    def __init__(self, inputs: int, hidden: int = 256) -> None:
        super().__init__()
        self.inputs, self.hidden = inputs, hidden
        self.mean = nn.Buffer(torch.zeros(inputs))
        self.scale = nn.Buffer(torch.ones(inputs))
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.LayerNorm(hidden),
            nn.Linear(hidden, 2),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Embeddings (n, d) to logits (n, 2): not to be forgotten, to be forgotten."""
        return self.layers((z - self.mean) / self.scale)

    @classmethod
    def fit(
        cls,
        chat: Chat,
        forget: Sequence[str],
        others: Sequence[str],
        config: TrainConfig,
        seed: int,
        hidden: int = 256,
    ) -> PromptClassifier:
        """Train one on questions of both kinds; the loss weighs them by inverse frequency."""
        z = prompt_embeddings(chat, [*forget, *others])
        y = torch.tensor([1] * len(forget) + [0] * len(others))
        with seeded(seed, "classifier"):
            made = cls(z.shape[1], hidden)
        made.mean.copy_(z.mean(dim=0))
        made.scale.copy_(z.std(dim=0).clamp(min=1e-6))
        weight = len(y) / (2 * torch.bincount(y, minlength=2).float())

        def loss(model: nn.Module, batch: Any) -> Tensor:
            return nn.functional.cross_entropy(model(batch[0]), batch[1], weight=weight)

        epochs = shuffled_epochs(TensorDataset(z, y), config, derive_seed(seed, "classifier"))
        train(made, epochs, loss, config, seed=seed, name="prompt classifier")
        return made.requires_grad_(False)

    @torch.no_grad()
    def probability(self, chat: Chat, questions: Sequence[str]) -> Tensor:
        """Of each question, that it asks for what is to be forgotten: (n,)."""
        z = prompt_embeddings(chat, questions).to(self.mean.device)
        return self(z).softmax(dim=1)[:, 1].cpu()


#: Questions -> which of them are flagged: (n,) bool.
Flag = Callable[[Chat, Sequence[str]], Tensor]


@dataclass(frozen=True)
class Knows:
    """Perfect knowledge of what is to be forgotten, in these very words."""

    questions: tuple[str, ...]

    def __call__(self, chat: Chat, asked: Sequence[str]) -> Tensor:
        """Which of the questions are among the known ones: (n,) bool."""
        known = frozenset(self.questions)
        return torch.tensor([q in known for q in asked])


@dataclass(frozen=True)
class EveryOne:
    """No knowledge at all: every question is meant."""

    def __call__(self, chat: Chat, asked: Sequence[str]) -> Tensor:
        """True of every question: (n,) bool."""
        return torch.ones(len(asked), dtype=torch.bool)


class FlaggedChat(Around):
    """A chat that answers flagged questions otherwise; subclasses say how.

    Parameters
    ----------
    chat : the original, whose weights stay as they are
    classifier : flags where its probability is at least ``threshold``; None where ``flag`` does
    flag : perfect knowledge, say
    """

    def __init__(
        self,
        chat: Chat,
        classifier: PromptClassifier | None = None,
        flag: Flag | None = None,
        threshold: float = 0.5,
    ) -> None:
        if (classifier is None) == (flag is None):
            raise ValueError("give either a classifier or a flag")
        super().__init__(chat)
        self.classifier, self.flag, self.threshold = classifier, flag, threshold

    def flagged(self, questions: Sequence[str]) -> Tensor:
        """Which questions are answered otherwise: (n,) bool."""
        if not questions:
            return torch.zeros(0, dtype=torch.bool)
        if self.flag is not None:
            return self.flag(self, questions)
        return self.classifier.probability(self, questions) >= self.threshold

    def answer(
        self, questions: Sequence[str], max_new_tokens: int = 200, batch_size: int = 48
    ) -> list[str]:
        def plain(chosen: list[str]) -> list[str]:
            return super(FlaggedChat, self).answer(chosen, max_new_tokens, batch_size)

        def other(chosen: list[str]) -> list[str]:
            return self.answer_flagged(chosen, max_new_tokens, batch_size)

        return self._apart(questions, questions, plain, other)

    def log_probs(self, pairs: Sequence[tuple[str, str]], batch_size: int = 16) -> list[Tensor]:
        """As the original's, but for pairs whose question is flagged."""

        def plain(chosen: list[tuple[str, str]]) -> list[Tensor]:
            return super(FlaggedChat, self).log_probs(chosen, batch_size)

        def other(chosen: list[tuple[str, str]]) -> list[Tensor]:
            return self.log_probs_flagged(chosen, batch_size)

        for pair in pairs:
            check_pair(pair)
        return self._apart([q for q, _ in pairs], pairs, plain, other)

    def generate(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        """As of `Chat`; a prompt whose question is flagged is followed by what `answer` says to it.

        Raises
        ------
        ValueError
            Such a prompt, and other options than ``max_new_tokens``; a text that is no prompt.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        texts = [
            self.tokenizer.decode(row[seen.bool()], clean_up_tokenization_spaces=False)
            for row, seen in zip(input_ids, mask, strict=True)
        ]
        questions = [self.question_of(text) for text in texts]
        flags = self.flagged(questions)
        if flags.any() and (other := sorted(options.keys() - {"max_new_tokens"})):
            raise ValueError(f"of a question that is flagged {other[0]!r} can't be asked")
        rows: list[Tensor] = [torch.empty(0)] * len(questions)
        plain = (~flags).nonzero()[:, 0].tolist()
        if plain:
            chosen = torch.tensor(plain, device=input_ids.device)
            found = super().generate(input_ids[chosen], mask[chosen], **options)
            for i, row in zip(plain, found[:, input_ids.shape[1] :], strict=True):
                rows[i] = row
        limit = options.get("max_new_tokens", 200)
        other = flags.nonzero()[:, 0].tolist()
        said = self.answer([questions[i] for i in other], limit) if other else []
        for i, text in zip(other, said, strict=True):
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            ends = [self.tokenizer.eos_token_id] * (len(ids) < limit)
            rows[i] = torch.tensor([*ids, *ends], device=input_ids.device)
        new = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.padding)
        return torch.cat([input_ids, new], dim=1)

    def _apart(
        self,
        questions: Sequence[str],
        items: Sequence[Any],
        plain: Callable[[list[Any]], list[Any]],
        other: Callable[[list[Any]], list[Any]],
    ) -> list[Any]:
        """``plain`` of the items whose question is not flagged, ``other`` of the rest, in order."""
        several(questions, "questions")
        if not all(isinstance(q, str) for q in questions):
            raise TypeError(f"a {type(self).__name__} takes questions as texts, not as messages")
        distinct = list(dict.fromkeys(questions))
        flags = dict(zip(distinct, self.flagged(distinct).tolist(), strict=True))
        out: list[Any] = [None] * len(items)
        for find, wanted in ((plain, False), (other, True)):
            chosen = [i for i, q in enumerate(questions) if flags[q] == wanted]
            found = find([items[i] for i in chosen]) if chosen else []
            for i, value in zip(chosen, found, strict=True):
                out[i] = value
        return out

    def answer_flagged(
        self, questions: Sequence[str], max_new_tokens: int, batch_size: int
    ) -> list[str]:
        """What is said to questions that are flagged."""
        raise NotImplementedError

    def log_probs_flagged(self, pairs: Sequence[tuple[str, str]], batch_size: int) -> list[Tensor]:
        """Log-probabilities of the answers' tokens to questions that are flagged."""
        raise NotImplementedError
