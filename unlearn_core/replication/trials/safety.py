"""What a model says about restricted and allowed images, on trial (SafeEraser)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from pydantic import PositiveInt

from ...data import (
    REFUSALS,
    SAFETY,
    ForgetSplit,
    RestrictedPart,
    RestrictedSymbols,
    SafetyBenchmark,
    Source,
    VisualAnswering,
    VisualSet,
    evenly_spaced,
    restricted_symbols,
    safety_benchmark,
)
from ...data.restricted_symbols import VOCABULARY
from ...methods import Method
from ...methods.adapters import adapters, linears, submodule
from ...metrics import (
    ChatJudge,
    Estimate,
    Judge,
    exact_match,
    forget_rates,
    judge_agreement,
    judge_answers,
    known_answers,
    rule_judge,
    safe_rates,
    vanilla_rouge,
)
from ...models import (
    LANGUAGE_MODELS,
    MULTIMODAL_MODELS,
    EncodedVisualSet,
    Recipe,
    SeeingRecipe,
    VisionChat,
)
from ...registry import ConfigError, bind, brief, build, describe, within
from ...seeding import derive_seed
from ..cache import digest
from ..papers import Experiment
from ..records import Row
from ..run import Replication
from .base import Trial, check_task, train_config

__all__ = [
    "JUDGE",
    "BenchmarkTrial",
    "SafetyTrial",
    "safety_kind",
    "safety_trials",
    "shown_positions",
]

#: The method column's word for who judges.
JUDGE = "Judge"

#: Of how many questions of a set a row keeps what was said.
SHOWN = 6

#: The sets that are asked for recipes, restricted images and safe ones.
RESTRICTED_SETS, SAFE_SETS = ("forget", "unseen"), ("safe", "held_out")


@dataclass(frozen=True, kw_only=True)
class BenchmarkAsked:
    """What ``ask`` holds.

    Attributes
    ----------
    max_new_tokens : the longest answer
    times : answers to a question about a restricted image
    batch_size : questions at a time
    known : answers of a known label that the judge reads
    forget, unseen, safe, retain : how many questions of each set; all where nothing is said
    """

    max_new_tokens: PositiveInt
    times: PositiveInt
    batch_size: PositiveInt
    known: PositiveInt
    forget: PositiveInt | None = None
    unseen: PositiveInt | None = None
    safe: PositiveInt | None = None
    retain: PositiveInt | None = None


@dataclass(frozen=True, kw_only=True)
class SymbolsAsked(BenchmarkAsked):
    """Also how many questions of two sets that the benchmark doesn't have."""

    held_out: PositiveInt | None = None
    general: PositiveInt | None = None


class SafetyTrial(Trial):
    """Forgetting the recipes of restricted symbols, with adapters on the language side.

    The targets of all sets are the original's own answers, as in SafeEraser. The profile's ``adapters``
    are the arguments of `adapters`, and ``projector``, what is trained in whole beside them (or null).
    """

    problems: ClassVar[Mapping[str, Callable[..., Any]]] = {
        "restricted_symbols": restricted_symbols
    }
    reads = Trial.reads | {"ask", "adapters", "tower"}
    asks: ClassVar[type] = SymbolsAsked

    #: The word for all that is forgotten.
    families: ClassVar[str] = "restricted"

    def __init__(self, run: Replication, experiment: str, seed: int, target: Any) -> None:
        super().__init__(run, experiment, seed, target)
        self.recipe = self.recipe_of(self.experiment)

    @classmethod
    def recipe_of(cls, e: Experiment) -> Recipe:
        check_task(e, "visual_answering")
        model = build(MULTIMODAL_MODELS, e.model, "model", vocabulary=VOCABULARY)
        task = VisualAnswering(REFUSALS)
        return SeeingRecipe(model, task, train_config(e.train), train_config(e.tower))

    @classmethod
    def check_problem(cls, e: Experiment) -> None:
        super().check_problem(e)
        if e.forget != {"families": [cls.families]}:
            raise ConfigError(f"forget: {{families: [{cls.families}]}}, not {brief(e.forget)}")
        given = dict(e.adapters)
        with within("adapters"):
            if not isinstance(given.pop("projector", 0), str | None):
                raise ConfigError("projector: the name of what is trained in whole, or null")
            bind(adapters, given, "adapters", model=None, seed=0)

    # --- data -------------------------------------------------------------------------------------

    @cached_property
    def chat(self) -> VisionChat:
        """A model that turns texts and images into batches; its weights don't matter."""
        return self.recipe.build(0)

    @property
    def data(self) -> RestrictedSymbols:
        """The problem's data; experiments with the same share it."""
        key = digest(["safety", self.experiment.data])
        if key not in self.run.shared:
            self.run.shared[key] = build(SAFETY, self.experiment.data, "data set")
        return self.run.shared[key]

    @cached_property
    def trained_on(self) -> EncodedVisualSet:
        return self.chat.encoded(self.data.base)

    @property
    def sources(self) -> tuple[Source, ...]:
        return ()

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        return {"train": self.trained_on.fingerprint()}

    @cached_property
    def sets(self) -> dict[str, VisualSet]:
        """What is asked: of a restricted image for its recipe (seen and unseen), of an allowed one,
        and benign questions about both. "unseen" and "safe" have the same prompts in the same order."""
        train, val = self.data.train, self.data.val
        return {
            "forget": train.forget,
            "unseen": val.forget,
            "safe": val.decouple,
            "held_out": self.data.held_out,
            "retain": val.retain,
            "general": val.general,
        }

    @cached_property
    def asked(self) -> dict[str, VisualSet]:
        """As many questions of each set as the profile says, or all of them."""
        few = self.experiment.ask
        return {
            k: s.subset(evenly_spaced(len(s), few.get(k, len(s)))) for k, s in self.sets.items()
        }

    def evaluation(self) -> dict[str, Any]:
        train = self.data.train
        parts = {**self.asked, "retained": train.retain, "paired": train.decouple}
        asked = {k: s.fingerprint() for k, s in parts.items()}
        own = {"asked": digest(asked), "ask": self.experiment.ask, "judge": self.experiment.judge}
        return {**own, "adapters": self.experiment.adapters}

    # --- what is unlearned ------------------------------------------------------------------------

    def answers(self, model: VisionChat, asked: VisualSet) -> list[str]:
        """What a model answers, greedily, to each question about its image."""
        ask = self.experiment.ask
        images = asked.images[asked.which]
        return model.answer(asked.questions, images, ask["max_new_tokens"], ask["batch_size"])

    @cached_property
    def before(self) -> dict[str, list[str]]:
        """The original's own answers: to what is trained on, and to what is kept."""
        train = self.data.train
        sets = {"forget": train.forget, "retain": train.retain, "decouple": train.decouple}
        sets["kept"] = self.asked["retain"]
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
            if projector is not None:
                submodule(work, projector).requires_grad_(True)
            work = method(work, self.split, self.seed, inplace=True)
        return work.eval(), {}

    def may_change(self, model: VisionChat) -> float:
        """Share of all weights that adapters, once merged, and the projector can change, in per cent."""
        own = sum(m.weight.numel() for m in linears(model).values())
        if self.experiment.adapters["projector"] is not None:
            part = submodule(model, self.experiment.adapters["projector"])
            own += sum(p.numel() for p in part.parameters())
        return 100 * own / sum(p.numel() for p in model.parameters())

    # --- who judges -------------------------------------------------------------------------------

    def judge(self, restricted: bool) -> Judge:
        """Who reads answers about restricted images, or about safe ones."""
        return rule_judge

    def measure_judge(self) -> Row:
        """How often the judge is right where the label is known."""
        known = known_answers(
            self.data.train, self.recipe.task.templates, self.experiment.ask["known"]
        )

        def compute() -> tuple[dict[str, Estimate], dict[str, Any]]:
            return {"judge_agreement": judge_agreement(self.judge, known)}, {}

        spec = {"judge": self.experiment.judge, "known": digest([list(k) for k in known])}
        return self.run.row(
            self.name,
            JUDGE,
            self.run.originals(self.name)[0],
            spec,
            compute,
            sources=tuple(s.record() for s in self.sources),
            device=self.device,
        )

    # --- rows -------------------------------------------------------------------------------------

    def evaluate(self, model: VisionChat) -> tuple[dict[str, Estimate], dict[str, Any]]:
        ask, found = self.experiment.ask, {}
        said: dict[str, Sequence[Sequence[str]]] = {}
        for name in RESTRICTED_SETS:
            asked, seed = self.asked[name], derive_seed(0, "asked", name)
            images = asked.images[asked.which]
            limits = ask["times"], seed, ask["max_new_tokens"], ask["batch_size"]
            said[name] = model.sample(asked.questions, images, *limits)
            rates = forget_rates(judge_answers(asked, said[name], self.judge(restricted=True)))
            found |= {k if name == "forget" else f"unseen_{k}": v for k, v in rates.items()}
        for name in SAFE_SETS:
            if name in self.asked:
                asked = self.asked[name]
                said[name] = [[text] for text in self.answers(model, asked)]
                rates = safe_rates(judge_answers(asked, said[name], self.judge(restricted=False)))
                found |= {k if name == "safe" else f"held_out_{k}": v for k, v in rates.items()}
        kept = self.answers(model, self.asked["retain"])
        found["vanilla_rouge"] = vanilla_rouge(kept, self.before["kept"])
        said["retain"] = [[text] for text in kept]
        if "general" in self.asked:
            general = self.answers(model, self.asked["general"])
            found["general_exact"] = exact_match(general, self.asked["general"].answers)
            said["general"] = [[text] for text in general]
        return found, {"may_change": self.may_change(model), **self.shown(said)}

    def shown(self, said: dict[str, Sequence[Sequence[str]]]) -> dict[str, Any]:
        """What a page may print: the first answer to a few questions of each set."""
        out = {}
        for name, texts in said.items():
            asked = self.asked[name]
            out[name] = [
                {"question": asked.questions[i], "answer": asked.answers[i], "said": texts[i][0]}
                for i in shown_positions(asked)
            ]
        return {"said": out}

    def compare(self, row: Row, retrained: Row) -> dict[str, Estimate]:
        return {}

    def measure_original(self) -> Row:
        self.check_structure()
        return super().measure_original()

    def check_structure(self) -> None:
        """The benchmark's two by two, and that validation shows other images."""
        for name in ("train", "val"):
            part: RestrictedPart = getattr(self.data, name)
            same = part.forget.questions == part.decouple.questions
            what = f"{len(part.forget)} prompts ({name})"
            self.run.invariant(
                "safe images have the forget prompts", self.name, self.seed, same, what
            )
        train, val = (self._images(p) for p in (self.data.train, self.data.val))
        self.run.invariant(
            "no image is in training and validation",
            self.name,
            self.seed,
            not train & val,
            f"{len(train)} and {len(val)} images",
        )

    def _images(self, part: RestrictedPart) -> set[bytes]:
        own = [s.images[s.which.unique()] for s in (part.forget, part.decouple)]
        return {image.numpy().tobytes() for images in own for image in images}

    def measure_decoupling(self, label: str) -> Row:
        """The control: benign prompts on the same allowed images in the place of the recipe prompts."""
        method = self.methods[label]

        def compute() -> tuple[dict[str, Estimate], dict[str, Any]]:
            train = self.data.train
            # The benchmark asks nothing benign of safe images: there, what it asks of harmful ones.
            general = train.general or train.decouple.with_questions(train.retain.questions)
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


class BenchmarkTrial(SafetyTrial):
    """The benchmark itself on a pretrained model, whose answers it brings.

    It is harmful: a row has rates and counts, and nothing of what was asked or said.
    """

    problems: ClassVar[Mapping[str, Callable[..., Any]]] = {"safety_benchmark": safety_benchmark}
    reads = Trial.reads - {"train"} | {"ask", "adapters", "judge"}
    asks = BenchmarkAsked
    families = "harmful"

    def __init__(self, run: Replication, experiment: str, seed: int, target: Any) -> None:
        Trial.__init__(self, run, experiment, seed, target)
        self.recipe = self.recipe_of(self.experiment, self.data.refusals)

    @classmethod
    def recipe_of(cls, e: Experiment, refusals: Sequence[str] = REFUSALS) -> Recipe:
        """The benchmark brings its refusals; others stand in for them where the data are not at hand."""
        check_task(e, "visual_answering")
        return Recipe(build(MULTIMODAL_MODELS, e.model, "model"), VisualAnswering(refusals), None)

    @classmethod
    def check(cls, e: Experiment, seeds: Sequence[int]) -> None:
        super().check(e, seeds)
        build(LANGUAGE_MODELS, e.judge, "judge")

    @property
    def data(self) -> SafetyBenchmark:  # type: ignore[override]
        return super().data  # type: ignore[return-value]

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.data.source, *self.judge_model.sources())

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        return {"data": self.data.source.sha256, "skipped": list(self.data.skipped)}

    @cached_property
    def sets(self) -> dict[str, VisualSet]:
        train, val = self.data.train, self.data.val
        return {
            "forget": train.forget,
            "unseen": val.forget,
            "safe": val.decouple,
            "retain": val.retain,
        }

    @property
    def before(self) -> dict[str, list[str]]:  # type: ignore[override]
        """What the benchmark says that the original answered."""
        train = self.data.train
        sets = {"forget": train.forget, "retain": train.retain, "decouple": train.decouple}
        sets["kept"] = self.asked["retain"]
        return {name: list(asked.answers) for name, asked in sets.items()}

    @property
    def trained_on(self) -> None:  # type: ignore[override]
        return None

    def fit(self, data: Any, seed: int) -> tuple[VisionChat, dict[str, Any]]:
        """The model as it is, for all seeds."""
        key = digest(self.identity)
        if key not in self.run.shared:
            self.run.shared[key] = self.recipe.build(seed).to(self.device)
        return self.run.shared[key], {}

    @cached_property
    def judge_model(self) -> Any:
        """The spec of the language model that judges."""
        return build(LANGUAGE_MODELS, self.experiment.judge, "judge")

    def judge(self, restricted: bool) -> Judge:
        key = digest(["judge", self.experiment.judge])
        if key not in self.run.shared:
            self.run.shared[key] = self.judge_model.build(0).to(self.device).eval()
        return ChatJudge(self.run.shared[key], restricted)

    def shown(self, said: dict[str, Sequence[Sequence[str]]]) -> dict[str, Any]:
        """How many answers were read, and how many images could not be."""
        counts = {name: sum(map(len, texts)) for name, texts in said.items()}
        return {"answers": counts, "skipped_images": list(self.data.skipped)}


def shown_positions(asked: VisualSet) -> list[int]:
    """Of which questions of a set a row keeps what was said."""
    return evenly_spaced(len(asked), SHOWN).tolist()


def safety_kind(e: Experiment) -> type[SafetyTrial]:
    """The trial that an experiment goes through."""
    return SafetyTrial if e.data["use"] == "restricted_symbols" else BenchmarkTrial


def safety_trials(run: Replication, prefix: str) -> Iterator[SafetyTrial]:
    """Every experiment whose name begins with ``prefix``, on each of its seeds and targets."""
    for name in run.experiments(prefix):
        yield from safety_kind(run.experiment(name)).each(run, name)
