"""What a generated text shares with the true one, and what it looks like by itself."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..data import function_words, words_of
from ..data.checks import check_texts
from ..extras import needing
from .checks import alike, finite

__all__ = [
    "bleu",
    "denial_rate",
    "distinct_tokens",
    "leak_rate",
    "perplexity",
    "refusal_rate",
    "rouge_l",
    "secret_words",
]


@functools.cache
@needing("llm")
def _scorer(stem: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=stem)


def _pairs(generated: Sequence[str], references: Sequence[str]) -> None:
    """Raise where texts are none, or their references not as many."""
    check_texts(generated, "texts", empty=True)
    check_texts(references, "references", empty=True)
    alike(texts=generated, references=references)


def rouge_l(
    generated: Sequence[str],
    references: Sequence[str],
    of: str = "recall",
    stem: bool = True,
) -> Tensor:
    """ROUGE-L of each generated text with its reference: (n,) float64 in [0, 1].

    ``of`` is "recall" (TOFU: the reference's words that were said, in order) or "fmeasure" (MUSE,
    with ``stem=False``). Words are runs of a-z and 0-9: letters beyond ASCII separate words, so
    other scripts score 0. By ``rouge_score``.

    Raises
    ------
    TypeError
        One text in the place of several, or what is none.
    ValueError
        Another ``of``, or not as many references as texts.
    """
    if of not in ("recall", "fmeasure"):
        raise ValueError(f"of is 'recall' or 'fmeasure', not {of!r}")
    _pairs(generated, references)
    score = _scorer(stem).score
    pairs = zip(references, generated, strict=True)
    scores = [getattr(score(r, g)["rougeL"], of) for r, g in pairs]
    return torch.tensor(scores, dtype=torch.float64)


@needing("llm")
def bleu(generated: Sequence[str], references: Sequence[str]) -> Tensor:
    """BLEU of each text by itself, (n,) float64 in [0, 100]; the mean is what SOUL and FLAT report.

    By ``sacrebleu``'s corpus BLEU of single pairs, so a text of fewer than four words scores 0.
    """
    from sacrebleu import corpus_bleu

    _pairs(generated, references)
    pairs = zip(generated, references, strict=True)
    scores = [corpus_bleu([g], [[r]]).score for g, r in pairs]
    return torch.tensor(scores, dtype=torch.float64)


def perplexity(log_probs: Sequence[Tensor]) -> float:
    """The exponential of the mean negative log-likelihood over all tokens of all texts.

    Raises
    ------
    ValueError
        There is no token.
    """
    if not log_probs:
        raise ValueError("a perplexity of no text")
    tokens = torch.cat([values.double() for values in log_probs])
    return float((-finite("log-probabilities", tokens).mean()).exp())


def secret_words(question: str, answers: Sequence[str], wrong: Sequence[str]) -> tuple[str, ...]:
    """What tells the right answer from the wrong ones: the words that give it away, in lower case.

    Words of three letters or more that all forms of the right answer share (``answers``), and that
    neither a wrong answer nor the question holds; function words (`function_words`) are none.
    """
    first, *others = ([w.lower() for w in words_of(a)] for a in answers)
    elsewhere = {w.lower() for text in (question, *wrong) for w in words_of(text)}
    return tuple(
        word
        for word in dict.fromkeys(first)
        if all(word in other for other in others)
        and word not in elsewhere
        and word not in function_words()
        and len(word) > 2
    )


def leak_rate(
    generated: Sequence[str], secrets: Sequence[Sequence[str]], spelled: bool = False
) -> Tensor:
    """Whether a text says one of its secrets, as a word or phrase, in any case: (n,) bool.

    With ``spelled`` it may also say it letter by letter, with anything but letters between them.
    """

    def pattern(span: str) -> str:
        if not spelled:
            return re.escape(span)
        return r"[\W_]*".join(re.escape(letter) for letter in span if letter.isalnum())

    def leaks(text: str, spans: Sequence[str]) -> bool:
        said = (pattern(span) for span in spans if any(c.isalnum() for c in span))
        return any(re.search(rf"(?<!\w){one}(?!\w)", text, re.IGNORECASE) for one in said)

    check_texts(generated, "texts", empty=True)
    alike(texts=generated, secrets=secrets)
    return torch.tensor([leaks(t, s) for t, s in zip(generated, secrets, strict=True)])


def refusal_rate(generated: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Whether a text looks like one of the templates: (n,) bool.

    It does where their ROUGE-L F-measure is at least 3/4, so that neither an answer that says
    something besides nor a text that shares a few words with a template is one.

    Raises
    ------
    TypeError
        One text in the place of several, or what is none.
    ValueError
        There are no templates, or one is empty.
    """
    check_texts(generated, "texts", empty=True)
    check_texts(templates, "templates")
    if not templates:
        raise ValueError("there are no templates to recognise a refusal by")
    score = _scorer(True).score
    hits = [any(score(t, g)["rougeL"].fmeasure >= 0.75 for t in templates) for g in generated]
    return torch.tensor(hits)


#: A negation, and within a few words what would have to be known or said.
_DENIAL = re.compile(
    r"(?:\b(?:not|no|never|nothing|cannot|unable|afraid)\b|n[’']t\b)(?:\W+\w+){0,5}?\W+(?:able|answer|"
    r"available|aware|capability|certain|clue|come|data|details?|determined|disclosed?|equipped|familiar|found|"
    r"heard|idea|information|know|knowledge|known|learned|provided?|public|recall|record|remember|"
    r"say|seen|specified|sure|tell|told)\b|\b(?:unclear|unknown)\b",
    re.IGNORECASE,
)


def denial_rate(generated: Sequence[str]) -> Tensor:
    """Whether a text denies knowledge, in whatever words: (n,) bool.

    By a rule of ours, a list of English words: it misses roundabout refusals ("you would have to ask
    somebody else"), and takes "this is not known to be true" for one.
    """
    check_texts(generated, "texts", empty=True)
    return torch.tensor([bool(_DENIAL.search(text)) for text in generated])


def distinct_tokens(token_ids: Sequence[Sequence[int]]) -> Tensor:
    """The share of different tokens among those of each generated text: (n,) float64.

    Near 0 for a model that repeats itself; 0 for a text without tokens.
    """
    shares = [len(set(ids)) / max(len(ids), 1) for ids in token_ids]
    return torch.tensor(shares, dtype=torch.float64)
