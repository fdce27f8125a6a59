"""A language model on TOFU's questions: what it finds probable, what it says, and what that is worth.

`ask` does the work once: one batched pass over every answer of every question, right and wrong ones,
and one greedy generation. `evaluate_chat` makes metrics of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import QuestionData, QuestionSet, evenly_spaced
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

__all__ = ["Answers", "ask", "evaluate_chat", "evaluation_sets"]

#: What TOFU asks.
SETS = ("forget", "retain", "real_authors", "world_facts")


@dataclass(frozen=True)
class Answers:
    """What a model makes of a set of questions.

    Attributes
    ----------
    questions : the set
    log_probs : of the tokens of each question's answer, the end of sequence included
    paraphrased : (n,) length-normalised losses of the answers in other words
    wrong : (n, m) length-normalised losses of the wrong answers
    said : what it says to each question, greedily; empty where only likelihoods were asked for
    """

    questions: QuestionSet
    log_probs: tuple[Tensor, ...]
    paraphrased: Tensor
    wrong: Tensor
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
        """(n,) of which a collapsed model's stay finite."""
        return self.paraphrased - self.wrong.mean(dim=1)

    @property
    def truth_ratios(self) -> Tensor:
        return truth_ratio(self.paraphrased, self.wrong)

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
    ValueError
        No set; one without wrong answers, or an empty one.
    NotFiniteError
        The model's log-probabilities are not finite.
    """
    if not sets:
        raise ValueError("there is no set of questions to ask")
    pairs: list[tuple[str, str]] = []
    for name, questions in sets.items():
        if not len(questions) or not questions.wrong:
            raise ValueError(f"{name}: no question, or no wrong answers")
        for i, (question, answer) in enumerate(questions):
            other = questions.paraphrased[i] if questions.paraphrased else answer
            pairs += [(question, text) for text in (answer, other, *questions.wrong[i])]
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
            for text, ws in zip(texts, q.wrong, strict=True)
        ]
        out[name] = Answers(
            questions=q,
            log_probs=tuple(scores[pair] for pair in q),
            paraphrased=torch.stack([loss(*p) for p in zip(texts, paraphrased, strict=True)]),
            wrong=torch.stack(wrong),
            said=tuple(said[text] for text in texts) if said else (),
        )
    return out


def evaluation_sets(
    data: QuestionData, limits: Mapping[str, int] | None = None
) -> dict[str, QuestionSet]:
    """TOFU's four sets, "forget", "retain", "real_authors" and "world_facts".

    ``limits`` maps names to numbers of questions, which are taken at equal distances.
    """
    parts = (data.ask_forget, data.ask_retain, data.real_authors, data.world_facts)
    sets = dict(zip(SETS, parts, strict=True))
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
    ``templates`` are what a refusal is recognised by.

    Raises
    ------
    ValueError
        One of TOFU's four sets is missing, or nothing was said to it.
    """
    if missing := [name for name in SETS if name not in answers]:
        raise ValueError(
            f"the answers to {' and '.join(missing)} are missing: model utility needs them"
        )
    gone, kept = answers["forget"], answers["retain"]
    utility: dict[str, float] = {}
    for name in ("retain", "real_authors", "world_facts"):
        a = answers[name]
        own = (-a.losses).exp() if name == "retain" else choice_probability(a.losses, a.wrong)
        utility |= {
            f"{name} probability": own.mean().item(),
            f"{name} ROUGE-L": a.recall.mean().item(),
            f"{name} truth ratio": truth_ratio_score(a.truth_ratios, False).mean().item(),
        }
    recall = gone.recall.mean().item(), kept.recall.mean().item()
    tokens = [chat.tokenizer(text, add_special_tokens=False)["input_ids"] for text in gone.said]
    out = {
        "model_utility": Estimate(model_utility(utility)),
        "forget_rouge": mean(gone.recall),
        "retain_rouge": mean(kept.recall),
        "deviation_score": Estimate(deviation_score(*recall)),
        "forget_probability": mean((-gone.losses).exp()),
        "forget_token_probability": mean(gone.token_probability),
        "forget_truth_ratio": mean(truth_ratio_score(gone.truth_ratios, True)),
        "forget_nll": mean(gone.losses),
        "retain_nll": mean(kept.losses),
        "distinct_tokens": mean(distinct_tokens(tokens)),
    }
    if templates:
        out["refusal_rate"] = share(refusal_rate(gone.said, templates))
        out["retain_refusal_rate"] = share(refusal_rate(kept.said, templates))
    return out
