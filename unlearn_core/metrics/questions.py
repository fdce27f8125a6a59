"""A language model on questions: what it finds probable, what it says, and what that is worth.

`ask` does the work once: one batched pass over every answer of every question, right and wrong ones,
and one greedy generation. `evaluate_chat` makes TOFU's metrics of it, of whatever sets there are.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import QuestionData, QuestionSet, evenly_spaced
from ..data.checks import check_texts
from ..models import Chat
from .catalogue import Estimate, mean, share
from .checks import finite
from .text import distinct_tokens, refusal_rate, rouge_l
from .tofu import (
    choice_probability,
    deviation_score,
    model_utility,
    truth_ratio,
    truth_ratio_score,
)

__all__ = ["Answers", "LeftOutWarning", "ask", "evaluate_chat", "evaluation_sets"]

#: What TOFU asks.
SETS = ("forget", "retain", "real_authors", "world_facts")


class LeftOutWarning(UserWarning):
    """Metrics that can't be had of the questions that were asked; it says which, and why."""


@dataclass(frozen=True)
class Answers:
    """What a model makes of a set of questions.

    Attributes
    ----------
    questions : the set
    log_probs : of the tokens of each question's answer, the end of sequence included
    paraphrased : (n,) length-normalised losses of the answers in other words
    wrong : (n, m) length-normalised losses of the wrong answers; None where the set has none
    said : what it says to each question, greedily; empty where only likelihoods were asked for
    """

    questions: QuestionSet
    log_probs: tuple[Tensor, ...]
    paraphrased: Tensor
    wrong: Tensor | None
    said: tuple[str, ...]

    @property
    def losses(self) -> Tensor:
        """(n,) length-normalised losses of the answers."""
        return torch.stack([-p.double().mean() for p in self.log_probs])

    @property
    def token_probability(self) -> Tensor:
        """(n,) mean probability of an answer's tokens: FLAT's estimate."""
        return torch.stack([p.double().exp().mean() for p in self.log_probs])

    @property
    def log_truth_ratios(self) -> Tensor:
        """(n,) of which a collapsed model's stay finite.

        Raises
        ------
        ValueError
            There are no wrong answers; as of `truth_ratios`.
        """
        return self.paraphrased - self._wrong().mean(dim=1)

    @property
    def truth_ratios(self) -> Tensor:
        """(n,) of the answers in other words with the wrong ones: `truth_ratio`."""
        return truth_ratio(self.paraphrased, self._wrong())

    def _wrong(self) -> Tensor:
        if self.wrong is None:
            raise ValueError("a truth ratio needs wrong answers: QuestionSet(..., wrong=...)")
        return self.wrong

    @property
    def recall(self) -> Tensor:
        """(n,) ROUGE-L recall of the answers in what was said.

        Raises
        ------
        ValueError
            Nothing was said: only likelihoods were asked for.
        """
        if not self.said:
            raise ValueError(
                "nothing was said: ask with max_new_tokens, to have answers to measure"
            )
        return rouge_l(self.said, self.questions.answers)


def ask(
    chat: Chat,
    sets: Mapping[str, QuestionSet],
    max_new_tokens: int | None = 200,
    batch_size: int = 16,
) -> dict[str, Answers]:
    """Score every answer of every question, and let the model answer all of them.

    All sets share their batches, so that sequences of like length meet. Without ``max_new_tokens``
    nothing is generated. ``batch_size`` is that of `Chat.log_probs`.

    Raises
    ------
    TypeError
        The model is not wrapped in a `Chat`, the sets have no names, or one is no `QuestionSet`.
    ValueError
        No set, or an empty one.
    NotFiniteError
        The model's log-probabilities are not finite.
    """
    if isinstance(chat, torch.nn.Module) and not isinstance(chat, Chat):
        kind = type(chat).__name__
        raise TypeError(
            f"a {kind} is asked through a Chat: wrap it in Chat(model, tokenizer, template)"
        )
    if not isinstance(sets, Mapping):
        raise TypeError(
            f'sets have names, such as {{"forget": questions}}: not a {type(sets).__name__}'
        )
    if not sets:
        raise ValueError("there is no set of questions to ask")
    pairs: list[tuple[str, str]] = []
    for name, questions in sets.items():
        if not isinstance(questions, QuestionSet):
            raise TypeError(
                f"{name} is a QuestionSet, as QuestionSet.from_pairs makes it, not of type "
                f"{type(questions).__name__}"
            )
        if not len(questions):
            raise ValueError(f"{name}: there is no question")
        for i, (question, answer) in enumerate(questions):
            other = questions.paraphrased[i] if questions.paraphrased else answer
            wrong = questions.wrong[i] if questions.wrong else ()
            pairs += [(question, text) for text in (answer, other, *wrong)]
    # Without a paraphrase the answer takes its place: it is scored once.
    distinct = list(dict.fromkeys(pairs))
    found = chat.log_probs(distinct, batch_size)
    finite("log-probabilities of the answers' tokens", torch.cat(found))
    scores = dict(zip(distinct, found, strict=True))
    said: dict[str, str] = {}
    if max_new_tokens is not None:
        prompts = list(dict.fromkeys(q for questions in sets.values() for q in questions.questions))
        said = dict(zip(prompts, chat.answer(prompts, max_new_tokens), strict=True))

    def loss(question: str, answer: str) -> Tensor:
        return -scores[question, answer].double().mean()

    out = {}
    for name, q in sets.items():
        texts, paraphrased = q.questions, q.paraphrased or q.answers
        wrong = [
            torch.stack([loss(text, w) for w in ws])
            for text, ws in zip(texts, q.wrong, strict=bool(q.wrong))
        ]
        out[name] = Answers(
            questions=q,
            log_probs=tuple(scores[pair] for pair in q),
            paraphrased=torch.stack([loss(*p) for p in zip(texts, paraphrased, strict=True)]),
            wrong=torch.stack(wrong) if wrong else None,
            said=tuple(said[text] for text in texts) if said else (),
        )
    return out


def evaluation_sets(
    data: QuestionData, limits: Mapping[str, int] | None = None
) -> dict[str, QuestionSet]:
    """TOFU's four sets, "forget", "retain", "real_authors" and "world_facts"; those that ``data`` has.

    ``limits`` maps names to numbers of questions, which are taken at equal distances.

    Raises
    ------
    ValueError
        ``limits`` names a set that is not there.
    """
    parts = (data.ask_forget, data.ask_retain, data.real_authors, data.world_facts)
    sets = {name: q for name, q in zip(SETS, parts, strict=True) if q is not None}
    if unknown := set(limits or {}) - set(sets):
        raise ValueError(f"unknown sets {sorted(unknown)}; known: {', '.join(sets)}")
    return {
        name: q.subset(evenly_spaced(len(q), (limits or {}).get(name, len(q))))
        for name, q in sets.items()
    }


def evaluate_chat(
    chat: Chat, answers: Mapping[str, Answers], templates: Sequence[str] = ()
) -> dict[str, Estimate]:
    """The metrics of `METRICS` that TOFU, FLAT and GUARD report, but for forget quality.

    Forget quality compares two models: `forget_quality` of their truth ratios on "forget".
    ``templates`` are what a refusal is recognised by. What a metric needs and there is not - a set,
    wrong answers, something said - leaves that metric out, with a `LeftOutWarning`. Standard errors are
    over the questions; that of a function of several means is by the delta method.

    Raises
    ------
    TypeError
        What is given is not what `ask` returns, or one template stands for several.
    ValueError
        There are answers neither to "forget" nor to "retain".
    """
    if not isinstance(answers, Mapping):
        raise TypeError(f"answers are what ask(chat, sets) returns, not a {type(answers).__name__}")
    check_texts(templates, "templates")
    gone, kept = answers.get("forget"), answers.get("retain")
    if gone is None and kept is None:
        known = ", ".join(answers) or "none"
        raise ValueError(f"there are no answers to 'forget' and none to 'retain'; known: {known}")
    left_out: dict[str, list[str]] = {}

    def has(metric: str, *names: str, wrong: bool = False, said: bool = False) -> bool:
        """Whether a metric can be had of these sets."""
        for name in names:
            a = answers.get(name)
            lacks = (
                f"no answers to {name!r}"
                if a is None
                else f"no wrong answers to {name!r}"
                if wrong and a.wrong is None
                else f"nothing was said to {name!r}"
                if said and not a.said
                else None
            )
            if lacks is not None:
                left_out.setdefault(lacks, []).append(metric)
                return False
        return True

    out: dict[str, Estimate] = {}
    if has("model_utility", *SETS[1:], wrong=True, said=True):
        out["model_utility"] = _utility({name: answers[name] for name in SETS[1:]})
    if has("forget_rouge", "forget", said=True):
        out["forget_rouge"] = mean(gone.recall)
    if has("retain_rouge", "retain", said=True):
        out["retain_rouge"] = mean(kept.recall)
    if has("deviation_score", "forget", "retain", said=True):
        out["deviation_score"] = _deviation(gone.recall, kept.recall)
    if has("forget_probability, forget_token_probability, forget_nll", "forget"):
        out["forget_probability"] = mean((-gone.losses).exp())
        out["forget_token_probability"] = mean(gone.token_probability)
    if has("forget_truth_ratio", "forget", wrong=True):
        out["forget_truth_ratio"] = mean(truth_ratio_score(gone.truth_ratios, True))
    if gone is not None:
        out["forget_nll"] = mean(gone.losses)
    if has("retain_nll", "retain"):
        out["retain_nll"] = mean(kept.losses)
    if has("distinct_tokens", "forget", said=True):
        said = [chat.tokenizer(text, add_special_tokens=False)["input_ids"] for text in gone.said]
        out["distinct_tokens"] = mean(distinct_tokens(said))
    if templates and has("refusal_rate", "forget", said=True):
        out["refusal_rate"] = share(refusal_rate(gone.said, templates))
    if templates and has("retain_refusal_rate", "retain", said=True):
        out["retain_refusal_rate"] = share(refusal_rate(kept.said, templates))
    if left_out:
        parts = [f"{', '.join(metrics)} ({why})" for why, metrics in left_out.items()]
        warnings.warn(f"left out: {'; '.join(parts)}", LeftOutWarning, stacklevel=2)
    return out


def _delta(*parts: tuple[Tensor, Sequence[float]]) -> float | None:
    """The standard error of a function of means over independent sets of questions.

    Each part is a set's scores, (questions, means), and the derivatives by their means.
    """
    if any(len(scores) < 2 for scores, _ in parts):
        return None
    slopes = [
        (scores.double() @ torch.tensor(by, dtype=torch.float64), len(scores))
        for scores, by in parts
    ]
    return float(sum(influence.var() / n for influence, n in slopes) ** 0.5)


def _utility(answers: Mapping[str, Answers]) -> Estimate:
    """Model utility; the harmonic mean U of k means has the derivatives U² / (k m²)."""
    scores: dict[str, dict[str, Tensor]] = {}
    for name, a in answers.items():
        own = (-a.losses).exp() if name == "retain" else choice_probability(a.losses, a.wrong)
        scores[name] = {
            f"{name} probability": own,
            f"{name} ROUGE-L": a.recall,
            f"{name} truth ratio": truth_ratio_score(a.truth_ratios, False),
        }
    means = {k: v.mean().item() for part in scores.values() for k, v in part.items()}
    found = model_utility(means)
    if not found:
        return Estimate(found)  # a mean of 0: there is no derivative
    by = {k: found**2 / (len(means) * m**2) for k, m in means.items()}
    parts = [(torch.stack([*p.values()], dim=1), [by[k] for k in p]) for p in scores.values()]
    return Estimate(found, stderr=_delta(*parts))


def _deviation(forget: Tensor, retain: Tensor) -> Estimate:
    """The deviation score of two recalls, (n,) each."""
    f, r = forget.mean().item(), retain.mean().item()
    found = deviation_score(f, r)
    if not found:
        return Estimate(found)
    by = [1e4 * f / found], [1e4 * (r - 1) / found]
    parts = ((scores[:, None], slope) for scores, slope in zip((forget, retain), by, strict=True))
    return Estimate(found, stderr=_delta(*parts))
