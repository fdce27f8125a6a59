"""Language models that answer questions, on trial (FLAT, GUARD)."""

from __future__ import annotations

import copy
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveInt

from ...data import (
    QUESTIONS,
    TEMPLATES,
    WORDINGS,
    Answering,
    ForgetSplit,
    QuestionData,
    Source,
    evenly_spaced,
    forget_questions,
    reworded,
)
from ...methods import Method
from ...methods.guard import GuardedChat
from ...methods.inference_time import FlaggedChat
from ...metrics import (
    Answers,
    Estimate,
    ask,
    changed_weights,
    denial_rate,
    evaluate_chat,
    evaluation_sets,
    forget_quality,
    holdout_auc,
    leak_rate,
    mean,
    min_k,
    perplexity,
    privleak,
    relearned_probability,
    rouge_l,
    secret_words,
    share,
)
from ...models import LANGUAGE_MODELS, Chat, EncodedSet, NotFiniteError, Recipe
from ...registry import ConfigError, bind, build, describe, named
from ..cache import digest
from ..outcomes import OUTCOMES, pack
from ..papers import Experiment
from ..records import Row
from ..run import Replication
from .base import ORIGINAL, OptimizerSteps, Trial, changed, train_config

__all__ = ["AnsweringTrial"]

log = logging.getLogger(__name__)

#: How many answers of each set a row keeps, for the reader.
SHOWN = 12

#: What an experiment's ``ask`` holds beside limits of its sets.
NO_SETS = ("max_new_tokens", "every", "wordings")


@dataclass(frozen=True, kw_only=True)
class QuestionsAsked:
    """What ``ask`` holds.

    Attributes
    ----------
    max_new_tokens : the longest answer
    forget, retain, real_authors, world_facts : how many questions of each set; all where nothing is said
    every : optimizer steps between two looks at a training
    wordings : other ways to ask
    """

    max_new_tokens: PositiveInt
    forget: PositiveInt | None = None
    retain: PositiveInt | None = None
    real_authors: PositiveInt | None = None
    world_facts: PositiveInt | None = None
    every: PositiveInt | None = None
    wordings: tuple[Literal[tuple(WORDINGS)], ...] = ()  # type: ignore[valid-type]


class AnsweringTrial(Trial):
    """A trial on questions; its target is a value of the argument of the data that ``forget`` names.

    ``forget: {forget_authors: [5]}`` is the problem of the experiment's data with
    ``forget_authors=5``.
    """

    problems: ClassVar[Mapping[str, Callable[..., Any]]] = QUESTIONS
    reads = Trial.reads | {"templates", "ask", "relearn"}
    asks = QuestionsAsked
    data: QuestionData

    def __init__(self, run: Replication, experiment: str, seed: int, target: Any) -> None:
        super().__init__(run, experiment, seed, target)
        e = self.experiment
        (argument,) = e.forget
        spec = {**e.data, argument: target}
        known = run.shared.setdefault("questions", {})
        if digest(spec) not in known:
            known[digest(spec)] = build(self.problems, spec, "data set")
        self.data = known[digest(spec)]
        self.recipe = self.recipe_of(e)

    @classmethod
    def recipe_of(cls, e: Experiment) -> Recipe:
        model = build(LANGUAGE_MODELS, e.model, "model")
        task = build({"answering": Answering}, e.task, "task")
        return Recipe(model, task, train_config(e.train))

    @classmethod
    def check(cls, e: Experiment, seeds: Sequence[int]) -> None:
        super().check(e, seeds)
        if e.relearn is not None:
            bind(relearned_probability, e.relearn, "relearn", chat=None, split=None, seed=0)

    @classmethod
    def check_problem(cls, e: Experiment) -> None:
        argument, wanted = cls.requests(e)
        if argument in e.data:
            raise ConfigError(f"data.{argument}: forget says it")
        problem, arguments = named(cls.problems, e.data, "data set")
        for value in wanted:
            bind(problem, arguments | {argument: value}, f"data set {e.data['use']!r}")

    @cached_property
    def templates(self) -> tuple[str, ...]:
        """The template answers that the experiment names; none where it names none."""
        return TEMPLATES[self.experiment.templates] if self.experiment.templates else ()

    @property
    def chat(self) -> Chat:
        """A model that nothing has been taught yet, for its tokenizer and the form of its prompts.

        One for all trials on that model: it may be large.
        """
        known = self.run.shared.setdefault("chats", {})
        key = digest(describe(self.recipe.model))
        if key not in known:
            known[key] = self.recipe.build(0)
        return known[key]

    @cached_property
    def split(self) -> ForgetSplit:
        split = forget_questions(self.data, self.chat.encoded, self.templates)
        self.run.invariant(
            "forget and retain are disjoint and complete",
            self.name,
            self.seed,
            len(split.forget) + len(split.retain) == len(self.data.train),
            f"{len(split.forget)} + {len(split.retain)} of {len(self.data.train)}",
        )
        return split

    @property
    def trained_on(self) -> EncodedSet:
        return self.chat.encoded(self.data.train)

    @property
    def sources(self) -> tuple[Source, ...]:
        return self.data.sources

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        return {"train": self.data.train.fingerprint()}

    @cached_property
    def sets(self) -> dict[str, Any]:
        """What is asked."""
        limits = {k: v for k, v in self.experiment.ask.items() if k not in NO_SETS}
        return evaluation_sets(self.data, limits)

    @cached_property
    def secrets(self) -> tuple[tuple[str, ...], ...]:
        """What gives each forget answer away: what the data names, or `secret_words`."""
        gone = self.sets["forget"]
        if gone.spans:
            return gone.spans
        return tuple(
            secret_words(q, (a, p), w)
            for (q, a), p, w in zip(gone, gone.paraphrased, gone.wrong, strict=True)
        )

    def leaks(
        self, said: Sequence[str], positions: Sequence[int] | None = None, spelled: bool = False
    ) -> dict[str, Estimate]:
        """The leak rate of what was said to the forget questions, or to those at some positions.

        Of those that have a secret; none where no question has one.
        """
        chosen = range(len(self.secrets)) if positions is None else positions
        found = [(t, self.secrets[i]) for t, i in zip(said, chosen, strict=True) if self.secrets[i]]
        if not found:
            return {}
        texts, secrets = zip(*found, strict=True)
        return {"leak_rate": share(leak_rate(texts, secrets, spelled))}

    def leaks_of_others(self, said: Sequence[str]) -> dict[str, Estimate]:
        """How often an answer to a forget question gives another one's away.

        By a secret that neither the question nor its own answer holds, nor anything that is retained.
        """
        gone = set(self.data.forget.tolist())
        retained = [pair for i, pair in enumerate(self.data.train) if i not in gone]
        known = _words(" ".join(text for pair in retained for text in pair))
        own = [_words(f"{q} {a}") for q, a in self.sets["forget"]]
        secrets = {s for secret in self.secrets for s in secret if not _words(s) <= known}
        if not secrets:
            return {}
        others = [[s for s in sorted(secrets) if not _words(s) <= mine] for mine in own]
        return {"other_leak_rate": share(leak_rate(said, others))}

    @cached_property
    def never_seen(self) -> list[tuple[str, str]]:
        """As many questions about authors whom no model has seen as forget questions are asked."""
        held = self.data.holdout
        return list(held.subset(evenly_spaced(len(held), min(len(held), len(self.sets["forget"])))))

    def evaluation(self) -> dict[str, Any]:
        return {
            "forget": self.split.forget.fingerprint(),
            "asked": {name: q.fingerprint() for name, q in self.sets.items()},
            "never_seen": digest(self.never_seen),
            "max_new_tokens": self.experiment.ask["max_new_tokens"],
            "templates": digest(self.templates),
            "relearn": self.experiment.relearn,
        }

    @cached_property
    def template_pairs(self) -> list[tuple[str, str]]:
        """Every forget question with one template, which take turns."""
        texts = self.sets["forget"].questions
        return [(q, self.templates[i % len(self.templates)]) for i, q in enumerate(texts)]

    def evaluate(self, model: Chat) -> tuple[dict[str, Estimate], dict[str, Any]]:
        answers = ask(model, self.sets, self.experiment.ask["max_new_tokens"])
        metrics = evaluate_chat(model, answers, self.templates)
        gone = answers["forget"]
        metrics["holdout_auc"] = self.seems_new(model, gone)
        if self.templates:
            metrics["template_probability"] = token_probability(model, self.template_pairs)
        pairs = [(q, said) for q, said in zip(gone.questions.questions, gone.said, strict=True)]
        if spoken := [pair for pair in pairs if pair[1]]:
            scores = [p[:-1] for p in self.original.log_probs(spoken)]  # it may have been cut off
            metrics["said_perplexity"] = Estimate(perplexity(scores), len(spoken))
        said = {
            name: [
                {"question": q, "answer": a, "said": s}
                for (q, a), s in zip(found.questions, found.said, strict=True)
            ][:SHOWN]
            for name, found in answers.items()
        }
        detail = {
            "said": said,
            "said_forget": list(gone.said),  # all of it: leaks are looked for in what was said
            "log_truth_ratios": gone.log_truth_ratios.tolist(),
        }
        bare = self.inside(model)
        if bare is not model:
            inside = ask(bare, {"forget": self.sets["forget"]}, None)["forget"]
            detail["bare_log_truth_ratios"] = inside.log_truth_ratios.tolist()
            metrics["bare_forget_probability"] = mean((-inside.losses).exp())
            metrics["bare_holdout_auc"] = self.seems_new(bare, inside)
        if isinstance(model, FlaggedChat):
            metrics |= self.flags(model)
        if self.experiment.relearn is not None:
            probe = relearned_probability(bare, self.split, self.seed, **self.experiment.relearn)
            metrics["relearned_probability"] = probe
        return metrics, detail

    def inside(self, model: Chat) -> Chat:
        return model.bare

    def apply(self, method: Method, original: Chat) -> tuple[Chat, dict[str, Any]]:
        """As every trial's; a model that comes apart is measured as it was at its last step.

        Its row's detail says so. One whose weights are not finite, or that no step has changed, is
        no model to measure: the error is raised.
        """
        work = copy.deepcopy(original)
        try:
            return method(work, self.split, self.seed, inplace=True), {}
        except NotFiniteError as error:
            finite = all(p.isfinite().all() for p in work.parameters())
            if not finite or not changed_weights(original, work).value:
                raise
            log.warning("%s; it is measured as it was then", error)
            return work.eval(), {"collapsed": str(error)}

    def seems_new(self, model: Chat, gone: Answers) -> Estimate:
        """How often what was never seen looks more trained on than what is to be forgotten."""
        held = min_k(model.log_probs(self.never_seen))
        return Estimate(holdout_auc(min_k(gone.log_probs), held), len(held))

    def flags(self, model: FlaggedChat) -> dict[str, Estimate]:
        """Which questions a method acts on, and whether it looks up the right answer."""
        gone = self.sets["forget"]
        rest = [q for name in ("real_authors", "world_facts") for q in self.sets[name].questions]
        asked = {
            "flagged_forget": gone.questions,
            "flagged_rephrased": gone.rephrased,
            "flagged_retain": self.sets["retain"].questions,
            "flagged_retain_rephrased": self.sets["retain"].rephrased,
            "flagged_rest": rest,
        }
        out = {name: share(model.flagged(questions)) for name, questions in asked.items()}
        if isinstance(model, GuardedChat):
            own = torch.tensor([model.questions.index(q) for q in gone.questions])
            out["retrieved"] = share(model.retrieved(gone.rephrased) == own)
            out["forbidden_tokens"] = Estimate(model.forbidden_tokens, len(model.questions))
        return out

    def measure_trajectory(self, label: str, **changes: Any) -> Row:
        """What happens while the method trains: how probable answers are.

        Looked at after every so many optimizer steps as the experiment's ``ask`` says, and at the
        end. The row's detail holds ``points``, the first of which is the original.
        """
        method = changed(self.methods[label], changes)
        every = self.experiment.ask["every"]

        def compute() -> tuple[dict[str, Estimate], dict[str, Any]]:
            work = copy.deepcopy(self.original)
            points = [{"step": 0, **self.probabilities(work)}]

            def look(step: int) -> None:
                if step % every == 0:
                    points.append({"step": step, **self.probabilities(work)})

            detail = {"points": points}
            with OptimizerSteps(look) as steps:
                try:
                    method(work, self.split, self.seed, inplace=True)
                except NotFiniteError as error:  # the path ends where the model came apart
                    detail["collapsed"] = str(error)
            if points[-1]["step"] != steps.count:
                points.append({"step": steps.count, **self.probabilities(work)})
            last = {k: Estimate(v) for k, v in points[-1].items() if k != "step"}
            return last, detail

        spec = {"method": describe(method), "every": every}
        return self.row(label, spec, compute, **changes)

    def measure_wordings(self, label: str) -> list[Row]:
        """What the model gives away when the forget questions are asked in other ways: a row each.

        A leak may be spelled. ``label`` is a method's or the original's.
        """
        gone, longest = self.sets["forget"], self.experiment.ask["max_new_tokens"]
        rows = []
        for wording in self.experiment.ask["wordings"]:
            positions, asked = reworded(gone, wording)

            def compute(
                positions: list[int] = positions, asked: list[str] = asked
            ) -> tuple[dict[str, Estimate], dict[str, Any]]:
                said = self.unlearned(label).answer(asked, longest)
                own = gone.subset(positions)
                metrics = self.leaks(said, positions, spelled=True)
                metrics["forget_rouge"] = mean(rouge_l(said, own.answers))
                texts = zip(asked, own.answers, said, strict=True)
                return metrics, {
                    "said": [{"question": q, "answer": a, "said": s} for q, a, s in texts][:SHOWN]
                }

            method = None if label == ORIGINAL else describe(self.methods[label])
            spec = {"method": method, "wording": digest([asked, self.secrets])}
            rows.append(self.row(label, spec, compute, wording=wording))
        return rows

    def measure_decoding(self, label: str) -> list[Row]:
        """How long the answer to a forget question takes, one at a time: a row for each way to decode.

        Greedily and by beam search as wide as the method's, with the original; and as the method
        answers, its classifier included.
        """
        method = self.methods[label]
        asked = list(self.sets["forget"].questions)
        longest = self.experiment.ask["max_new_tokens"]

        def beams(questions: list[str]) -> None:
            prompts = [self.chat.prompt(q) for q in questions]
            wide = {"num_beams": method.beams}
            self.original.complete(prompts, longest, 1, lambda *_: wide)

        ways: dict[str, Callable[[list[str]], object]] = {
            "greedy": lambda questions: self.original.answer(questions, longest, 1),
            "beam search": beams,
            "restricted": lambda questions: self.unlearned(label).answer(questions, longest, 1),
        }
        rows = []
        for way, answer in ways.items():

            def compute(
                answer: Callable[[list[str]], object] = answer,
            ) -> tuple[dict[str, Estimate], dict[str, Any]]:
                answer(asked[:1])  # what is made once, when it is first needed, is no part of it
                started = time.perf_counter()
                answer(asked)
                seconds = (time.perf_counter() - started) / len(asked)
                return {"answer_seconds": Estimate(seconds, len(asked))}, {}

            spec = {"method": describe(method), "decoding": way}
            rows.append(self.row(label, spec, compute, decoding=way))
        return rows

    def probabilities(self, model: Chat) -> dict[str, float]:
        """A part of `evaluate` that takes one pass over the right answers and the templates."""
        gone, kept = self.sets["forget"], self.sets["retain"]
        pairs = [*gone, *kept, *self.template_pairs]
        found = [p.double() for p in model.log_probs(pairs)]
        n = len(gone)
        losses = [-p.mean().item() for p in found]
        probabilities = [p.exp().mean().item() for p in found]
        template = probabilities[n + len(kept) :]
        return {
            "forget_nll": sum(losses[:n]) / n,
            "retain_nll": sum(losses[n : n + len(kept)]) / len(kept),
            "forget_token_probability": sum(probabilities[:n]) / n,
            "template_probability": sum(template) / len(template),
        }

    def with_comparison(self, row: Row, retrained: Row) -> Row:
        """Also what is recalled of every forget answer, which paired errors need."""
        row = super().with_comparison(row, retrained)
        if said := row.detail.get("said_forget"):
            recall = rouge_l(said, self.sets["forget"].answers)
            kept = {OUTCOMES: {"forget_rouge": pack(recall.numpy())}}
            row = row.model_copy(update={"detail": {**row.detail, **kept}})
            self.run.rows.add(row)
        return row

    def compare(self, row: Row, retrained: Row) -> dict[str, Estimate]:
        other = torch.tensor(retrained.detail["log_truth_ratios"])
        level = retrained.metrics["holdout_auc"].value
        gone, said = row.detail["said_forget"], row.detail["said"]
        rest = [one["said"] for name in ("real_authors", "world_facts") for one in said[name]]
        recalls = ("forget_rouge", "retain_rouge")
        apart = [abs(row.metrics[m].value - retrained.metrics[m].value) for m in recalls]
        out = {
            "recall_gap": Estimate(sum(apart) / len(apart)),
            **self.leaks(gone),
            **self.leaks_of_others(gone),
            "denial_rate": share(denial_rate(gone)),
            "retain_denial_rate": share(denial_rate([one["said"] for one in said["retain"]])),
            "rest_denial_rate": share(denial_rate(rest)),
        }
        for form in ("", "bare_"):
            if f"{form}holdout_auc" not in row.metrics:
                continue
            mine = torch.tensor(row.detail[f"{form}log_truth_ratios"])
            quality = Estimate(forget_quality(mine, other).p_value, len(mine))
            out[f"{form}forget_quality"] = quality
            if level > 0:  # else nothing is a share of it
                leak = privleak(row.metrics[f"{form}holdout_auc"].value, level)
                out[f"{form}privleak"] = Estimate(leak)
        return out


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def token_probability(model: Chat, pairs: Sequence[tuple[str, str]]) -> Estimate:
    """The mean over pairs of the mean probability of an answer's tokens."""
    return mean(torch.stack([p.double().exp().mean() for p in model.log_probs(pairs)]))
