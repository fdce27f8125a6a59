"""Baselines that act on the prompt or on the answer; the weights stay as they are.

As GUARD's authors (arXiv 2505.13312) compare with them, in their idealised form: they act on the very
questions that are to be forgotten and on nothing else. With ``everywhere`` prompting and ICUL act on
every question, as where nobody knows which is which. `FilterPrompting` has a classifier decide
instead (as in DRAGON, arXiv 2511.05784, whose classifier is a RoBERTa; ours reads the model's own
hidden states, as GUARD's does).

- Prompt: an instruction before the question, without names.
- Output filtering (Thaker et al., 2024; arXiv 2403.03329): a refusal in the place of every answer.
- In-context unlearning (ICUL; Pawelczyk et al., 2024; arXiv 2310.07579): before the question, some of
  what is to be forgotten with wrong answers and some of the rest with right ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...data import IGNORED, ForgetSplit
from ...fields import Natural
from ...models import Chat, TrainConfig
from ...seeding import generator
from ..base import TEXT, Method
from ..inference_time import EveryOne, Flag, FlaggedChat, Knows, PromptClassifier

__all__ = ["ICUL", "FilterPrompting", "OutputFiltering", "Prompting"]

INSTRUCTION = (
    "The following question touches on a sensitive topic. Do not give any knowledge about it, say that "
    "you can't answer, and do not repeat earlier answers. "
)
REFUSAL = "I'm not sure."
CLASSIFIER = TrainConfig(
    epochs=50, lr=1e-3, batch_size=32, optimizer="adamw", weight_decay=0.01, schedule="cosine"
)


class Prefixed(FlaggedChat):
    """Flagged questions are asked with something before them.

    Parameters
    ----------
    before : what stands there
    shown : (n,) int64, which examples that is, where it was drawn
    """

    def __init__(
        self,
        chat: Chat,
        before: str,
        classifier: PromptClassifier | None = None,
        flag: Flag | None = None,
        shown: Tensor | None = None,
    ) -> None:
        super().__init__(chat, classifier, flag)
        self.before = before
        self.shown = None if shown is None else nn.Buffer(shown)  # part of its state

    def answer_flagged(
        self, questions: Sequence[str], max_new_tokens: int, batch_size: int
    ) -> list[str]:
        asked = [self.before + q for q in questions]
        return Chat.answer(self, asked, max_new_tokens, batch_size)

    def log_probs_flagged(self, pairs: Sequence[tuple[str, str]], batch_size: int) -> list[Tensor]:
        return Chat.log_probs(self, [(self.before + q, a) for q, a in pairs], batch_size)


class Refusing(FlaggedChat):
    """Flagged questions are answered by one sentence; nothing else has a probability."""

    def answer_flagged(
        self, questions: Sequence[str], max_new_tokens: int, batch_size: int
    ) -> list[str]:
        return [REFUSAL] * len(questions)

    def log_probs_flagged(self, pairs: Sequence[tuple[str, str]], batch_size: int) -> list[Tensor]:
        out = []
        for question, answer in pairs:
            tokens = int((self.encode(question, answer).labels != IGNORED).sum())
            out.append(torch.full((tokens,), 0.0 if answer == REFUSAL else math.log(1e-10)))
        return out


@dataclass(frozen=True)
class Prompting(Method):
    """An instruction before every question that is to be forgotten.

    Attributes
    ----------
    everywhere : before every other question too
    """

    name: ClassVar[str] = "prompting"
    needs: ClassVar[frozenset[str]] = frozenset({"forget"})
    draws: ClassVar[bool] = False
    works_on: ClassVar[frozenset[str]] = TEXT
    trains: ClassVar[bool] = False

    instruction: str = INSTRUCTION
    everywhere: bool = False

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        flag = EveryOne() if self.everywhere else Knows(split.forget.questions.questions)
        return Prefixed(model, self.instruction, flag=flag)


@dataclass(frozen=True)
class FilterPrompting(Method):
    """An instruction before every question that a classifier flags.

    Attributes
    ----------
    train : the classifier's training
    """

    name: ClassVar[str] = "filter_prompting"
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})
    draws: ClassVar[bool] = True
    works_on: ClassVar[frozenset[str]] = TEXT
    trains: ClassVar[bool] = False

    instruction: str = INSTRUCTION
    train: TrainConfig = CLASSIFIER

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        forget, retain = (p.questions.questions for p in (split.forget, split.retain))
        classifier = PromptClassifier.fit(model, forget, retain, self.train, seed)
        return Prefixed(model, self.instruction, classifier)


@dataclass(frozen=True)
class OutputFiltering(Method):
    """A refusal in the place of every answer that is to be forgotten."""

    name: ClassVar[str] = "output_filtering"
    needs: ClassVar[frozenset[str]] = frozenset({"forget"})
    draws: ClassVar[bool] = False
    works_on: ClassVar[frozenset[str]] = TEXT
    trains: ClassVar[bool] = False

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        return Refusing(model, flag=Knows(split.forget.questions.questions))


@dataclass(frozen=True)
class ICUL(Method):
    """Examples before every question that is to be forgotten, of which some are wrong.

    Attributes
    ----------
    wrong : forget questions, each with the answer to another one
    right : retain questions with their answers
    everywhere : before every other question too
    """

    name: ClassVar[str] = "icul"
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})
    draws: ClassVar[bool] = True
    works_on: ClassVar[frozenset[str]] = TEXT
    trains: ClassVar[bool] = False

    wrong: Natural = 1
    right: Natural = 6
    everywhere: bool = False

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        gone, kept = split.forget.questions, split.retain.questions
        g = generator(seed, "examples")
        order = torch.randperm(len(gone), generator=g)
        others = torch.randperm(len(kept), generator=g)[: self.right]
        wrong = zip(order[: self.wrong].tolist(), order.roll(-1).tolist(), strict=False)
        shown = [(gone.questions[i], gone.answers[j]) for i, j in wrong]
        shown += [kept[i] for i in others.tolist()]
        context = "".join(f"{q}\n{a}\n\n" for q, a in shown)
        flag = EveryOne() if self.everywhere else Knows(gone.questions)
        return Prefixed(model, context, flag=flag, shown=torch.cat([order[: self.wrong], others]))
