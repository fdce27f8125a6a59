"""Restricted symbols, on trial: what the notebook about safety unlearning uses."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from ..data import (
    REFUSALS,
    ForgetSplit,
    RestrictedSymbols,
    VisualAnswering,
    VisualSet,
    restricted_symbols,
)
from ..data.restricted import VOCABULARY
from ..methods import Method
from ..methods.adapters import adapters, submodule
from ..metrics import (
    Estimate,
    exact_match,
    forget_rates,
    judge_answers,
    safe_rates,
    vanilla_rouge,
)
from ..models import MULTIMODAL_MODELS, EncodedVisualSet, Recipe, VisionChat
from ..registry import build, describe
from ..seeding import derive_seed
from .cache import digest
from .records import Row
from .run import Replication
from .trial import Trial, train_config

__all__ = ["SafetyTrial"]

#: Of how many questions of a set a row keeps what was said.
SHOWN = 3


class SafetyTrial(Trial):
    """Forgetting the recipes of restricted symbols, with adapters on the language side.

    The targets of all sets are the original's own answers, as in SafeEraser. The profile's ``adapters``
    are the arguments of `adapters`, and ``projector``, what is trained in whole beside them.
    """

    def __init__(self, run: Replication, experiment: str, seed: int, target: Any) -> None:
        super().__init__(run, experiment, seed, target)
        e = self.experiment
        model = build(MULTIMODAL_MODELS, e.model, "model", vocabulary=VOCABULARY)
        task = VisualAnswering(REFUSALS)
        self.recipe = Recipe(model, task, train_config(e.train))

    # --- data -------------------------------------------------------------------------------------

    @cached_property
    def chat(self) -> VisionChat:
        """A model that turns texts and images into batches; its weights don't matter."""
        return self.recipe.build(0)

    @cached_property
    def data(self) -> RestrictedSymbols:
        spec = {k: v for k, v in self.experiment.data.items() if k != "use"}
        key = digest(["restricted symbols", spec])
        if key not in self.run.shared:
            self.run.shared[key] = restricted_symbols(**spec)
        return self.run.shared[key]

    @cached_property
    def trained_on(self) -> EncodedVisualSet:
        return self.chat.encoded(self.data.base)

    @property
    def sources(self) -> tuple[()]:
        return ()

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        return {"train": self.trained_on.fingerprint()}

    @cached_property
    def sets(self) -> dict[str, VisualSet]:
        """What is asked: of a restricted image for its recipe (seen and unseen), of an allowed one,
        and benign questions about both."""
        train, val = self.data.train, self.data.val
        return {
            "forget": train.forget,
            "unseen": val.forget,
            "safe": val.decouple,
            "held_out": self.data.held_out,
            "retain": val.retain,
            "general": val.general,
        }

    def evaluation(self) -> dict[str, Any]:
        parts = {
            **self.sets,
            "retained": self.data.train.retain,
            "paired": self.data.train.decouple,
        }
        asked = {k: s.fingerprint() for k, s in parts.items()}
        own = {"asked": digest(asked), "ask": self.experiment.ask}
        return {**own, "adapters": self.experiment.adapters}

    # --- what is unlearned ------------------------------------------------------------------------

    def answers(self, model: VisionChat, asked: VisualSet) -> list[str]:
        most = self.experiment.ask["max_new_tokens"]
        return model.answer(asked.questions, asked.images[asked.which], most, batch_size=64)

    @cached_property
    def before(self) -> dict[str, list[str]]:
        """The original's own answers: to what is trained on, and to what is kept."""
        train = self.data.train
        sets = {"forget": train.forget, "retain": train.retain, "decouple": train.decouple}
        sets["kept"] = self.data.val.retain
        key = digest(
            ["answers", self.identity, self.fingerprint, self.model_seed, self.evaluation()]
        )
        if key not in self.run.shared:
            found = {name: self.answers(self.original, asked) for name, asked in sets.items()}
            self.run.shared[key] = found
        return self.run.shared[key]

    def own(self, asked: VisualSet, said: Sequence[str]) -> EncodedVisualSet:
        """Questions under the original's own answers; the right one where its own is empty, or tokens
        that make no word (a model that was hardly trained says such things)."""
        answers = []
        for question, right, text in zip(asked.questions, asked.answers, said, strict=True):
            try:
                self.chat.encode(question, text)
            except ValueError:
                text = right
            answers.append(text)
        return self.chat.encoded(asked.with_answers(answers))

    @cached_property
    def split(self) -> ForgetSplit:
        train = self.data.train
        forget, retain, decouple = (
            self.own(getattr(train, name), self.before[name])
            for name in ("forget", "retain", "decouple")
        )
        return ForgetSplit(self.target, self.recipe.task, forget, retain, decouple=decouple)

    def apply(self, method: Method, original: VisionChat) -> tuple[VisionChat, dict[str, Any]]:
        """The method trains adapters, and the projector, in the place of all weights."""
        given = dict(self.experiment.adapters)
        projector = given.pop("projector")
        work = copy.deepcopy(original)
        with adapters(work, self.seed, "lora", **given):
            for p in submodule(work, projector).parameters():
                p.requires_grad_(True)
            work = method(work, self.split, self.seed, inplace=True)
        return work.eval(), {}

    # --- rows -------------------------------------------------------------------------------------

    def evaluate(self, model: VisionChat) -> tuple[dict[str, Estimate], dict[str, Any]]:
        ask, found = self.experiment.ask, {}
        said: dict[str, Sequence[Sequence[str]]] = {}
        for name in ("forget", "unseen"):
            asked, seed = self.sets[name], derive_seed(0, "asked", name)
            times, most = ask["times"], ask["max_new_tokens"]
            images = asked.images[asked.which]
            said[name] = model.sample(asked.questions, images, times, seed, most, batch_size=64)
            rates = forget_rates(judge_answers(asked, said[name]))
            found |= {k if name == "forget" else f"unseen_{k}": v for k, v in rates.items()}
        for name in ("safe", "held_out"):
            said[name] = [[text] for text in self.answers(model, self.sets[name])]
            rates = safe_rates(judge_answers(self.sets[name], said[name]))
            found |= {k if name == "safe" else f"held_out_{k}": v for k, v in rates.items()}
        kept, general = (self.answers(model, self.sets[name]) for name in ("retain", "general"))
        found["vanilla_rouge"] = vanilla_rouge(kept, self.before["kept"])
        found["general_exact"] = exact_match(general, self.sets["general"].answers)
        shown = [
            {"set": name, "question": asked.questions[i], "said": said[name][i][0]}
            for name, asked in self.sets.items()
            if name in said
            for i in range(SHOWN)
        ]
        return found, {"said": shown}

    def compare(self, row: Row, retrained: Row) -> dict[str, Estimate]:
        return {}

    def measure_decoupling(self, label: str) -> Row:
        """The control: benign prompts on the same allowed images in the place of the recipe prompts."""
        method = self.methods[label]

        def compute() -> tuple[dict[str, Estimate], dict[str, Any]]:
            general = self.data.train.general
            benign = self.own(general, self.answers(self.original, general))
            self.split = ForgetSplit(
                self.target,
                self.recipe.task,
                self.split.forget,
                self.split.retain,
                decouple=benign,
            )
            try:
                model, cost, detail = self.unlearn(method)
            finally:
                del self.split  # the next method has the request's own again
            metrics, more = self.evaluate(model)
            return metrics | cost, more | detail

        spec = {"method": describe(method), "decouple": "benign prompts"}
        return self.row(label, spec, compute, decouple="benign prompts")
