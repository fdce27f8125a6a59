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
last word. With the paper's :math:`\beta=1` the first token of a span is already forbidden.

No authors' code was found; this follows the paper's description (version 1, read whole). What it leaves
open is chosen here: no cost below the two limits, cumulative beam scores, phrases by rules of our own
(`key_phrases`) in four casings, as they follow a space and as they begin a text. Phrases that the question
itself contains are allowed (``allow_asked``), since a model that never saw the answer repeats them too.
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

from ..data import IGNORED, ForgetSplit, QuestionSet, function_words, words_of
from ..fields import Count, Share
from ..models import Chat, SentenceEncoder, TrainConfig
from .base import TEXT, Method
from .inference_time import FlaggedChat, PromptClassifier

__all__ = ["GUARD", "GuardedChat", "Penalty", "key_phrases", "key_phrases_of", "said_as"]

#: The probability of what is forbidden, where a likelihood is asked for.
EPSILON = 1e-10


def said_as(phrase: str) -> list[str]:
    """The forms of a phrase that are forbidden with it: four casings."""
    return list(dict.fromkeys((phrase, phrase.lower(), phrase.upper(), phrase.title())))


def inside(phrase: str, text: str) -> bool:
    """Whether the phrase's words follow each other in the text, in any case."""
    mine, all_words = ([w.lower() for w in words_of(t)] for t in (phrase, text))
    n = len(mine)
    return any(all_words[i : i + n] == mine for i in range(len(all_words) - n + 1))


def key_phrases(
    question: str,
    answer: str,
    common: Counter[str],
    documents: int,
    share: float = 0.02,
    allow_asked: bool = True,
) -> tuple[str, ...]:
    """What an answer gives away: names of several words, what is quoted, and rare words and numbers.

    Parameters
    ----------
    common : in how many of the retain answers a word occurs, by its lower-case form
    documents : how many retain answers there are
    share : words that occur in a larger share of them are not rare; function words never are
    allow_asked : what the question says is no secret
    """
    quoted = re.findall(r"[\"“]([^\"“”]+)[\"”]", answer)
    names = re.findall(r"\b[A-Z][\w’'-]+(?:\s+[A-Z][\w’'-]+)+", answer)
    rare = [
        word
        for word in words_of(answer)
        if common[word.lower()] <= share * documents
        and word.lower() not in function_words()
        and len(word) > 2
    ]
    ends = ".,;:!?'’ "
    found = [re.sub(r"['’]s$", "", p.strip(ends)) for p in (*quoted, *names)] + rare
    return tuple(
        p for p in dict.fromkeys(found) if words_of(p) and not (allow_asked and inside(p, question))
    )


def key_phrases_of(
    stored: QuestionSet, kept: Sequence[str], allow_asked: bool = True
) -> list[tuple[str, ...]]:
    """`key_phrases` of every answer, ``kept`` being the answers that say which words are common."""
    common = Counter(w for a in kept for w in {x.lower() for x in words_of(a)})
    return [key_phrases(q, a, common, len(kept), allow_asked=allow_asked) for q, a in stored]


@dataclass(frozen=True)
class Spans:
    """The forms of some phrases as tokens, by where they can begin.

    Attributes
    ----------
    spaced : as they follow a space, which is part of the first token
    bare : as they follow a space that is not, begin a text, or follow a quotation mark or a bracket
    """

    spaced: tuple[tuple[int, ...], ...]
    bare: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tokenizer: Any, phrases: Sequence[str]) -> Spans:
        spaced, bare = set(), set()
        for form in {form for phrase in phrases for form in said_as(phrase)}:
            for text in (f" {form}", form):
                ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
                whole = ids
                while ids and not tokenizer.decode([ids[0]]).strip():
                    ids = ids[1:]  # a token of white space alone would forbid everything
                if ids:
                    (spaced if text[0] == " " and ids == whole else bare).add(ids)
        return cls(tuple(sorted(spaced)), tuple(sorted(bare - spaced)))

    def first(self, beta: float) -> set[int]:
        """The tokens with which none of them may begin, where ``beta`` tokens of a beginning are too many."""
        return {span[0] for span in (*self.spaced, *self.bare) if min(beta, len(span)) <= 1}


def forbidden(said: Sequence[int], spans: Spans, beta: float, apart: bool) -> set[int]:
    r"""The tokens that would complete a span, or match :math:`\beta` tokens of its beginning.

    ``apart``: what has been said ends where a word may begin with these tokens alone.
    """
    found = set()
    for span in (*spans.spaced, *spans.bare):
        for k in range(len(span)):
            matches = (apart or span not in spans.bare) if k == 0 else tuple(said[-k:]) == span[:k]
            if matches and k + 1 >= min(beta, len(span)):
                found.add(span[k])
    return found


def begins_a_word(text: str) -> bool:
    """Whether a word could begin at the end of a text with no further space."""
    return not text or not (text[-1].isalnum() or text[-1] == "\ufffd")


#: What a word costs that is too near to a span: more than any text, and the same for all, so that
#: among words that are all too near the likeliest is left.
TOO_NEAR = 1e4


class Penalty:
    """A logits processor: what a row of the beams may not say gets minus infinity.

    A row whose last word is too near to a span costs `TOO_NEAR` wherever it goes on. It is judged as
    soon as the word stands there, whole or not, at the token that follows it.

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
        beta: float | None,
        delta: float | None,
        encoder: SentenceEncoder | None,
    ) -> None:
        self.tokenizer, self.phrases, self.beams, self.start = tokenizer, spans, beams, start
        self.beta, self.delta, self.encoder = beta, delta, encoder
        self.spans = [Spans.of(tokenizer, phrases) for phrases in spans]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (rows, vocabulary) of the next token, with what may not be said at minus infinity or lowered."""
        out = scores.clone()
        said = [row[self.start :].tolist() for row in input_ids]
        texts = [self.tokenizer.decode(tokens) for tokens in said]
        if self.beta is not None:
            for row, (tokens, text) in enumerate(zip(said, texts, strict=True)):
                spans = self.spans[row // self.beams]
                if found := forbidden(tokens, spans, self.beta, begins_a_word(text)):
                    out[row, list(found)] = -torch.inf
        if self.delta is not None:
            out[self.too_near(texts)] -= TOO_NEAR
        return out

    def too_near(self, texts: Sequence[str]) -> list[int]:
        """The rows whose last word is too near to a span in meaning."""
        last = {}
        for row, text in enumerate(texts):
            words = words_of(text)
            if self.phrases[row // self.beams] and words and len(words[-1]) >= 3:
                last[row] = words[-1]
        if not last:
            return []
        near = zip(last, self.encoder(list(last.values())), strict=True)  # all rows at once
        return [
            row
            for row, word in near
            if (self.encoder(self.phrases[row // self.beams]) @ word).max() >= self.delta
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
    def forbidden_tokens(self) -> float:
        """With how many different tokens a word may not begin: the mean over stored questions."""
        if self.beta is None:
            return 0.0
        counts = [len(Spans.of(self.tokenizer, phrases).first(self.beta)) for phrases in self.spans]
        return sum(counts) / len(counts)

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
            spans = Spans.of(self.tokenizer, self.spans[i])
            for t, token in enumerate(said):
                apart = begins_a_word(self.tokenizer.decode(said[:t]))
                if token in forbidden(said[:t], spans, math.inf, apart):
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
    allow_asked : what the question says may be said, unless the data names the phrases
    hidden : width of the classifier
    train : its training
    """

    name: ClassVar[str] = "guard"
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})
    draws: ClassVar[bool] = True
    works_on: ClassVar[frozenset[str]] = TEXT
    trains: ClassVar[bool] = False

    beams: Count = 7
    beta: Count | None = 1
    delta: Share | None = 0.5
    extractor: Literal["oracle", "key_phrases", "all_words", "first_half"] = "key_phrases"
    allow_asked: bool = True
    hidden: Count = 256
    train: TrainConfig = TrainConfig(
        epochs=50, lr=1e-3, batch_size=32, optimizer="adamw", weight_decay=0.01, schedule="cosine"
    )

    def spans(self, split: ForgetSplit) -> list[tuple[str, ...]]:
        """:math:`F` of every stored answer.

        Raises
        ------
        ValueError
            The phrases are to come from the data, which name none.
        """
        stored = split.forget.questions
        if self.extractor == "oracle":
            if not stored.spans:
                raise ValueError("the data names no phrases of the answers; use another extractor")
            return list(stored.spans)
        if self.extractor == "key_phrases":
            return key_phrases_of(stored, split.retain.questions.answers, self.allow_asked)
        words = [words_of(a) for a in stored.answers]
        if self.extractor == "first_half":
            words = [w[: (len(w) + 1) // 2] for w in words]
        return [
            tuple(w for w in dict.fromkeys(ws) if not (self.allow_asked and inside(w, q)))
            for ws, q in zip(words, stored.questions, strict=True)
        ]

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        spans = self.spans(split)
        forget, retain = (part.questions.questions for part in (split.forget, split.retain))
        classifier = PromptClassifier.fit(model, forget, retain, self.train, seed, self.hidden)
        return GuardedChat(
            model, classifier, forget, spans, self.beams, self.beta, self.delta, SentenceEncoder()
        )
