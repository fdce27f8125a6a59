"""Language models that know a book, on trial (FLAT, GUARD): what they continue and know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from pydantic import PositiveInt

from ...data import BOOKS, BookData, QuestionSet
from ...metrics import (
    Estimate,
    bleu,
    cut_answer,
    distinct_tokens,
    holdout_auc,
    mean,
    min_k,
    perplexity,
    privleak,
    refusal_rate,
    rouge_l,
    share,
)
from ...models import Chat
from ..cache import digest
from ..records import Row
from .language import SHOWN, AnsweringTrial

__all__ = ["UNTOUCHED", "CompletionTrial"]

#: The method column's word for the model before it was fine-tuned on the books.
UNTOUCHED = "Before fine-tuning"


@dataclass(frozen=True, kw_only=True)
class PassagesAsked:
    """What ``ask`` holds: how long continuations and answers may be, in tokens."""

    max_new_tokens: PositiveInt
    answer_tokens: PositiveInt


class CompletionTrial(AnsweringTrial):
    """A trial on passages to complete and questions about them, as MUSE and FLAT's Harry Potter task."""

    problems: ClassVar[Mapping[str, Callable[..., BookData]]] = BOOKS
    reads = AnsweringTrial.reads - {"relearn"}
    asks = PassagesAsked
    data: BookData

    @cached_property
    def sets(self) -> dict[str, QuestionSet]:
        return {
            "forget": self.data.ask_forget,
            "retain": self.data.ask_retain,
            "holdout": self.data.holdout,
        }

    @cached_property
    def asked(self) -> dict[str, QuestionSet]:
        """The questions about both books, where there are any."""
        both = {"": self.data.questions_forget, "retain_": self.data.questions_retain}
        return {prefix: q for prefix, q in both.items() if len(q)}

    def evaluation(self) -> dict[str, Any]:
        sets = {**self.sets, **{f"{k}questions": q for k, q in self.asked.items()}}
        return {
            "forget": self.split.forget.fingerprint(),
            "asked": {name: q.fingerprint() for name, q in sets.items()},
            **{k: self.experiment.ask[k] for k in ("max_new_tokens", "answer_tokens")},
            "templates": digest(self.templates),
        }

    def measure_untouched(self) -> Row:
        """The model as it comes: it may have seen a public book before."""
        return self.row(UNTOUCHED, {"method": "untouched"}, lambda: self.evaluate(self.chat))

    def evaluate(self, model: Chat) -> tuple[dict[str, Estimate], dict[str, Any]]:
        longest, short = (self.experiment.ask[k] for k in ("max_new_tokens", "answer_tokens"))
        gone, kept = self.sets["forget"], self.sets["retain"]
        both = model.answer([*gone.questions, *kept.questions], longest)
        said = {"forget": both[: len(gone)], "retain": both[len(gone) :]}
        tokens = [
            self.chat.tokenizer(t, add_special_tokens=False)["input_ids"] for t in said["forget"]
        ]
        metrics = {
            "verbmem": verbatim(said["forget"], gone),
            "retain_verbmem": verbatim(said["retain"], kept),
            "completion_bleu": mean(bleu(said["forget"], gone.answers)),
            "completion_rouge": mean(rouge_l(said["forget"], gone.answers)),
            "distinct_tokens": mean(distinct_tokens(tokens)),
        }
        if self.templates:
            metrics["refusal_rate"] = share(refusal_rate(said["forget"], self.templates))
        for prefix, questions in self.asked.items():
            answers = [cut_answer(a) for a in model.answer(questions.questions, short)]
            metrics[f"{prefix}knowmem"] = verbatim(answers, questions)
            said[f"{prefix}questions"] = answers
        metrics |= self.likelihoods(model, "")
        if (bare := self.inside(model)) is not model:
            metrics |= self.likelihoods(bare, "bare_")
        asked = {**self.sets, **{f"{k}questions": q for k, q in self.asked.items()}}
        return metrics, {
            "said": {
                name: [
                    {"question": q, "answer": a, "said": s}
                    for (q, a), s in zip(asked[name], texts, strict=True)
                ][:SHOWN]
                for name, texts in said.items()
            }
        }

    def likelihoods(self, model: Chat, prefix: str) -> dict[str, Estimate]:
        """Of the true continuations; the attack's AUC."""
        scores = {name: model.log_probs(list(q)) for name, q in self.sets.items()}
        out = {
            f"{prefix}{name}_perplexity": Estimate(perplexity(s), len(s))
            for name, s in scores.items()
        }
        gone, held = (min_k(scores[name]) for name in ("forget", "holdout"))
        out[f"{prefix}holdout_auc"] = Estimate(holdout_auc(gone, held), len(held))
        return out

    def compare(self, row: Row, retrained: Row) -> dict[str, Estimate]:
        gap = sum(
            abs(row.metrics[m].value - retrained.metrics[m].value)
            for m in ("completion_bleu", "completion_rouge")
        )
        out = {"completion_gap": Estimate(gap)}
        level = retrained.metrics["holdout_auc"].value
        for form in ("", "bare_"):
            if level > 0 and f"{form}holdout_auc" in row.metrics:
                leak = privleak(row.metrics[f"{form}holdout_auc"].value, level)
                out[f"{form}privleak"] = Estimate(leak)
        return out


def verbatim(said: list[str], questions: QuestionSet) -> Estimate:
    """MUSE's measure of VerbMem and KnowMem: ROUGE-L F-measure without a stemmer, in per cent."""
    return mean(100 * rouge_l(said, questions.answers, of="fmeasure", stem=False))
