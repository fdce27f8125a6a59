r"""GUARD (Deng et al., 2025; arXiv 2505.13312): forget while answering; the weights stay as they are.

A small classifier on the frozen model's hidden states decides whether a prompt asks for what is to be
forgotten. If so, the nearest stored forget question is looked up and the key phrases :math:`F` of its
answer become forbidden. Beam search of width :math:`B` then ranks what it may say by log-probability
minus a penalty,

.. math::

    P = P_{\text{tok}} + P_{\text{sbert}},\qquad
    P_{\text{tok}} = \infty \text{ where a span of } F \text{ is completed or } L_{\text{match}}\ge\beta,\qquad
    P_{\text{sbert}} = \infty \text{ where } \max_{f\in F}\cos(\phi(w),\phi(f))\ge\delta,

:math:`L_{\text{match}}` tokens at the end having matched the beginning of a span, and :math:`w` being the
last whole word. With the paper's :math:`\beta=1` the first token of a span is already forbidden.

There is no authors' code; this follows the paper's description (version 1, read whole). What it leaves
open is chosen here: no cost below the two limits, cumulative beam scores, phrases by rules of our own
(`key_phrases`), variants of a phrase with and without a leading space in three casings, and phrases that
the question itself contains are allowed.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..data import IGNORED, ForgetSplit, QuestionSet
from ..models import Chat, SentenceEncoder, TrainConfig
from .base import TEXT, Method
from .flagged import FlaggedChat, PromptClassifier

__all__ = ["GUARD", "GuardedChat", "Penalty", "key_phrases", "key_phrases_of", "said_as"]

#: The probability of what is forbidden, where a likelihood is asked for.
EPSILON = 1e-10

EXTRACTORS = ("oracle", "key_phrases", "all_words", "first_half")


def said_as(phrase: str) -> list[str]:
    """The forms of a phrase that are forbidden with it."""
    cased = dict.fromkeys((phrase, phrase.lower(), phrase.upper(), phrase.title()))
    return [f"{space}{form}" for form in cased for space in (" ", "")]


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+(?:['’-]\w+)*", text)


def key_phrases(
    question: str, answer: str, common: Counter[str], documents: int, share: float = 0.02
) -> tuple[str, ...]:
    """What an answer gives away: names of several words, what is quoted, and rare words and numbers.

    Parameters
    ----------
    common : in how many of the retain answers a word occurs, by its lower-case form
    documents : how many retain answers there are
    share : words that occur in a larger share of them are not rare

    What the question says is no secret.
    """
    quoted = re.findall(r"[\"“]([^\"“”]+)[\"”]", answer)
    names = re.findall(r"\b[A-Z][\w'’-]+(?:\s+[A-Z][\w'’-]+)+", answer)
    rare = [w for w in words_of(answer) if common[w.lower()] <= share * documents and len(w) > 2]
    asked = question.lower()
    found = dict.fromkeys(p.strip() for p in (*quoted, *names, *rare))
    return tuple(p for p in found if p and p.lower() not in asked)


def key_phrases_of(stored: QuestionSet, kept: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """`key_phrases` of every answer, ``kept`` being the answers that say which words are common."""
    common = Counter(w for a in kept for w in {x.lower() for x in words_of(a)})
    return tuple(key_phrases(q, a, common, len(kept)) for q, a in stored)


def token_sequences(tokenizer: Any, phrases: Sequence[str]) -> list[tuple[int, ...]]:
    """The forms of the phrases as tokens."""
    forms = {form for phrase in phrases for form in said_as(phrase)}
    return sorted({tuple(tokenizer(f, add_special_tokens=False)["input_ids"]) for f in forms})


def forbidden(said: Sequence[int], sequences: Sequence[tuple[int, ...]], beta: float) -> set[int]:
    r"""The tokens that would complete a span, or match :math:`\beta` tokens of its beginning."""
    found = set()
    for span in sequences:
        for k in range(len(span)):
            matches = k == 0 or tuple(said[-k:]) == span[:k]
            if matches and k + 1 >= min(beta, len(span)):
                found.add(span[k])
    return found


class Penalty:
    """A logits processor: what a row of the beams may not say gets minus infinity.

    Parameters
    ----------
    tokenizer : of the model
    spans : of each prompt of the batch, its forbidden phrases
    beams : rows a prompt
    start : where the generated tokens begin
    beta : so many tokens of the beginning of a span are forbidden; None for no hard matching
    delta : words this near to a span are forbidden; None for no such limit
    encoder : :math:`\\phi`
    """

    def __init__(
        self,
        tokenizer: Any,
        spans: Sequence[Sequence[str]],
        beams: int,
        start: int,
        beta: int | None,
        delta: float | None,
        encoder: SentenceEncoder | None,
        closing: Tensor | None = None,
    ) -> None:
        self.tokenizer, self.spans, self.beams, self.start = tokenizer, spans, beams, start
        self.beta, self.delta, self.encoder, self.closing = beta, delta, encoder, closing
        self.sequences = [token_sequences(tokenizer, phrases) for phrases in spans]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        out = scores.clone()
        said = [row[self.start :].tolist() for row in input_ids]
        for row, tokens in enumerate(said):
            sequences = self.sequences[row // self.beams]
            if self.beta is not None and (found := forbidden(tokens, sequences, self.beta)):
                out[row, list(found)] = -torch.inf
        if self.delta is not None:
            closing = self.closing.to(out.device)
            for row in self.too_near(said):
                out[row, closing] = -torch.inf  # its last word may not end here
        return out

    def too_near(self, said: Sequence[Sequence[int]]) -> list[int]:
        """The rows whose last word is too near to a span in meaning."""
        last = {}
        for row, tokens in enumerate(said):
            words = words_of(self.tokenizer.decode(tokens)) if self.spans[row // self.beams] else []
            if words and len(words[-1]) >= 3:
                last[row] = words[-1]
        if not last:
            return []
        near = zip(last, self.encoder(list(last.values())), strict=True)  # all rows at once
        return [
            row
            for row, word in near
            if (self.encoder(self.spans[row // self.beams]) @ word).max() >= self.delta
        ]


class GuardedChat(FlaggedChat):
    """The original with its answers to flagged questions kept from saying what is forbidden.

    Parameters
    ----------
    questions, spans : the stored forget questions, and the forbidden phrases of each one's answer
    beams, beta, delta, encoder : see `GUARD` and `Penalty`
    """

    def __init__(
        self,
        chat: Chat,
        classifier: PromptClassifier,
        questions: Sequence[str],
        spans: Sequence[Sequence[str]],
        beams: int,
        beta: int | None,
        delta: float | None,
        encoder: SentenceEncoder,
    ) -> None:
        super().__init__(chat, classifier)
        self.questions, self.spans = tuple(questions), tuple(tuple(s) for s in spans)
        self.beams, self.beta, self.delta, self.encoder = beams, beta, delta, encoder

    def retrieved(self, questions: Sequence[str]) -> Tensor:
        """Which stored question is nearest to each: (n,) positions."""
        return (self.encoder(questions) @ self.encoder(self.questions).T).argmax(dim=1)

    @cached_property
    def closing(self) -> Tensor:
        """The tokens with which a word ends: those that begin with no letter or digit, (tokens,)."""
        texts = self.tokenizer.batch_decode([[i] for i in range(len(self.tokenizer))])
        return torch.tensor([i for i, t in enumerate(texts) if not t or not t[0].isalnum()])

    def log_probs_flagged(self, pairs: Sequence[tuple[str, str]], batch_size: int) -> list[Tensor]:
        """The original's, with `EPSILON` for a token that would complete a forbidden span.

        Nothing is renormalised: it is the likelihood under the constraint of hard matching alone,
        of which the paper does not say how it reports it.
        """
        plain = Chat.log_probs(self, pairs, batch_size)
        if self.beta is None:
            return plain
        stored = self.retrieved([q for q, _ in pairs]).tolist()
        for (question, answer), scores, i in zip(pairs, plain, stored, strict=True):
            labels = self.encode(question, answer).labels
            said = labels[labels != IGNORED].tolist()
            sequences = token_sequences(self.tokenizer, self.spans[i])
            for t, token in enumerate(said):
                if token in forbidden(said[:t], sequences, math.inf):
                    scores[t] = math.log(EPSILON)
        return plain

    def answer_flagged(
        self, questions: Sequence[str], max_new_tokens: int, batch_size: int
    ) -> list[str]:
        spans = [self.spans[i] for i in self.retrieved(questions).tolist()]

        def options(chosen: list[int], length: int) -> dict[str, Any]:
            penalty = Penalty(
                self.tokenizer,
                [spans[i] for i in chosen],
                self.beams,
                length,
                self.beta,
                self.delta,
                self.encoder,
                self.closing,
            )
            return {"num_beams": self.beams, "logits_processor": [penalty]}

        prompts = [self.prompt(q) for q in questions]
        return self.complete(prompts, max_new_tokens, max(batch_size // self.beams, 1), options)


@dataclass(frozen=True)
class GUARD(Method):
    """Restrict what is said to prompts about the forget set.

    Attributes
    ----------
    beams : :math:`B`
    beta : :math:`\\beta`, in tokens; a phrase of fewer may be begun, but not completed. None switches
        hard matching off
    delta : :math:`\\delta`; None switches soft matching off
    extractor : where forbidden phrases come from: "oracle", those that the data names;
        "key_phrases"; "all_words" of the answer, or the "first_half" of them
    hidden : width of the classifier
    train : its training
    """

    name: ClassVar[str] = "guard"
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})
    draws: ClassVar[bool] = True
    works_on: ClassVar[frozenset[str]] = TEXT

    beams: int = 7
    beta: int | None = 1
    delta: float | None = 0.5
    extractor: Literal["oracle", "key_phrases", "all_words", "first_half"] = "key_phrases"
    hidden: int = 256
    train: TrainConfig = TrainConfig(
        epochs=50, lr=1e-3, batch_size=32, optimizer="adamw", weight_decay=0.01, schedule="cosine"
    )

    def __post_init__(self) -> None:
        if self.extractor not in EXTRACTORS:
            raise ValueError(
                f"unknown extractor {self.extractor!r}; known: {', '.join(EXTRACTORS)}"
            )
        if self.beams < 1 or (self.beta is not None and self.beta < 1):
            raise ValueError("beams and beta must be at least 1")
        if self.delta is not None and not 0 < self.delta <= 1:
            raise ValueError(f"delta must be in (0, 1], not {self.delta}")

    def spans(self, split: ForgetSplit) -> list[tuple[str, ...]]:
        """:math:`F` of every stored answer."""
        stored = split.forget.questions
        if self.extractor == "oracle":
            if not stored.spans:
                raise ValueError("the data names no phrases of the answers; use another extractor")
            return list(stored.spans)
        if self.extractor == "key_phrases":
            return list(key_phrases_of(stored, split.retain.questions.answers))
        words = [words_of(a) for a in stored.answers]
        if self.extractor == "first_half":
            words = [w[: (len(w) + 1) // 2] for w in words]
        asked = [q.lower() for q in stored.questions]
        return [
            tuple(dict.fromkeys(w for w in ws if w.lower() not in q))
            for ws, q in zip(words, asked, strict=True)
        ]

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        spans = self.spans(split)
        forget, retain = (part.questions.questions for part in (split.forget, split.retain))
        classifier = PromptClassifier.fit(model, forget, retain, self.train, seed, self.hidden)
        return GuardedChat(
            model, classifier, forget, spans, self.beams, self.beta, self.delta, SentenceEncoder()
        )
