"""What each experiment's rows take: its methods run on a `Meter`, what is asked counted by arithmetic.

A method's own code runs, with the experiment's own model and hyper-parameters, on data of the experiment's
sizes. An evaluation runs one batch of what it asks, and the number of batches follows from the data. Two rows that
differ only in numbers which set no size (a learning rate, a weight) take the same.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import nn

from ...data import (
    TEMPLATES,
    Answering,
    Classification,
    Concepts,
    Denoising,
    ForgetSplit,
    ImageData,
    QuestionSet,
    forget_class,
    forget_concepts,
    forget_questions,
    make_split,
)
from ...methods import ICUL, SLD, SSD, FilterPrompting, Prompting, Stage
from ...methods.adapters import adapters, submodule
from ...methods.ssd import importances
from ...metrics import CLIP
from ...models import (
    LANGUAGE_MODELS,
    MODELS,
    Llava,
    Recipe,
    TrainConfig,
    predict,
    shuffled_epochs,
    training,
)
from ...registry import build, describe
from ..cache import digest
from ..papers import Experiment, Profile
from ..trials.base import ORIGINAL, changed
from ..trials.books import CompletionTrial
from ..trials.classifiers import ClassificationTrial, selection_rule
from ..trials.continual import ContinualTrial
from ..trials.diffusion import ErasingTrial, erasing_kind
from ..trials.language import AnsweringTrial
from ..trials.plan import kind_of, rows_of
from . import stand_ins
from .geometry import MODELS as GEOMETRIES
from .geometry import depth, layers_of
from .meter import Cost, Meter, bytes_of

__all__ = ["Size", "size_of", "work_of"]

#: Layers of a language model with which something is run, for a line through both.
LAYERS = (1, 2)

#: So many answers are generated at a time, beams counted.
BATCH = 48

#: Tokens of the line breaks in an example of `ICUL`.
BREAKS = 2

#: Models whose language side is layers that are alike, by the name in ``model``; and ids that go without saying.
LAYERED = ("causal_lm", "llava", "smollm2")
DEFAULT_IDS = {"llava": Llava().id, "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}


@dataclasses.dataclass
class Size:
    """What an experiment takes in all: how many rows, their cost, and the peak of the greediest one."""

    rows: int
    cost: Cost
    greediest: str


def size_of(profile: Profile, meter: Meter) -> Iterator[tuple[str, Size]]:
    """Each experiment's name and size; what two share is counted with the first of them."""
    made: set[str] = set()
    for name, e in profile.experiments.items():
        work = work_of(e)(meter, e)
        total, rows, greediest = Cost(), 0, ""
        for seed in e.seeds or profile.seeds:
            own = seed if e.original_seed is None else e.original_seed
            for target in work.targets(seed):
                for row in rows_of(e, name, seed, target):
                    for key, what, cost in work.row(row, target, seed, own):
                        content = digest([e.data, e.model, e.train, e.task, key])
                        if content in made:
                            continue
                        made.add(content)
                        found = cost()
                        if found.peak >= total.peak:
                            greediest = what
                        total += found
                    rows += 1
        yield name, Size(rows, total, greediest)


def work_of(e: Experiment) -> type[Work]:
    """What counts an experiment, by the trial that it goes through."""
    kind = kind_of(e)
    kinds = {
        ClassificationTrial: Classifying,
        CompletionTrial: Completing,
        AnsweringTrial: AnsweringWork,
        ContinualTrial: Tuning,
    }
    if kind in kinds:
        return kinds[kind]
    return Drawing if issubclass(kind, ErasingTrial) else Refusing


#: Of a method's description, what sets no size although it is no number with a point.
NO_SIZE = ("lr", "alpha", "lam", "scale", "divergence", "reduction", "order", "mean", "pairing")


def _shape(value: Any) -> Any:
    """What of a method's description sets a size: no number with a point."""
    if isinstance(value, Mapping):
        return {k: _shape(v) for k, v in value.items() if k not in NO_SIZE}
    if isinstance(value, list | tuple):
        return [_shape(v) for v in value]
    return None if isinstance(value, float) else value


#: Measures of a model that a method has made, and what is asked of it.
BY_METHOD = ("method", "at_step_of", "elsewhere", "sequence", "decoupling")


class Work:
    """One experiment; its parts are (key, label, function that gives the cost) each.

    A measure beside the original and `BY_METHOD` has a ``measure_...`` here as it has in its trial, or is
    among those that ``row`` itself takes apart.
    """

    trial: ClassVar[type]
    taken_apart: ClassVar[tuple[str, ...]] = ("original", *BY_METHOD)

    def __init__(self, meter: Meter, e: Experiment) -> None:
        self.meter, self.e = meter, e
        self.recipe = self.recipe_of()
        id = e.model.get("id", DEFAULT_IDS.get(e.model["use"]))
        #: The hub's id, where its layers are alike, and how many of them there are now.
        self.id = id if e.model["use"] in LAYERED else None
        self.layers = None if self.id is None else LAYERS[0]
        self._originals: dict[int | None, nn.Module] = {}

    def recipe_of(self) -> Recipe:
        return self.trial.recipe_of(self.e)

    @cached_property
    def methods(self) -> dict[str, Any]:
        return self.trial.methods_of(self.e, self.recipe)

    @property
    def original(self) -> nn.Module:
        if self.layers not in self._originals:
            with depth(self.layers):
                self._originals[self.layers] = self.recipe.build(0)
        return self._originals[self.layers]

    def targets(self, seed: int) -> list[Any]:
        ((_, wanted),) = self.e.forget.items()
        return wanted if isinstance(wanted, list) else [wanted]

    def once(self, key: Any, make: Callable[[], Cost]) -> Callable[[], Cost]:
        """The cost under a key, made when it is first needed; experiments alike in all else share it."""

        def find() -> Cost:
            k = digest([self.alike, key])
            if k not in self.meter.known:
                self.meter.known[k] = make()
            return self.meter.known[k]

        return find

    @cached_property
    def alike(self) -> str:
        """What of the experiment sets a cost beside its methods."""
        own = {"title", "methods", "seeds", "originals_of", "original_seed", "measure", "search"}
        own |= {"choose", "tuned", "requires", "grid", "oracle"}
        plain = self.e.model_dump(mode="json", exclude=own)
        return digest({**plain, "forget": list(self.e.forget)})

    def measured(self, running: Any, run: Callable[[], Any], alone: bool = False) -> Cost:
        """What a function takes; with few layers of a language model of the hub, and then with all.

        All layers of one are alike, so that whatever it takes is a line in their number. ``alone``: there
        is no original beside it.
        """
        if self.id is None:
            return self.at(None, running, run, alone)
        for self.layers in LAYERS:  # both are there, whichever is run
            _ = self.original
        few, more = (self.at(n, running, run, alone) for n in LAYERS)
        self.layers = LAYERS[0]
        return few.beyond(more, (layers_of(self.id) - LAYERS[0]) / (LAYERS[1] - LAYERS[0]))

    def at(
        self, layers: int | None, running: Any, run: Callable[[], Any], alone: bool = False
    ) -> Cost:
        gc.collect()  # what stands in a circle is alive until then
        self.layers = layers
        self.meter.running = digest([self.e.model, running, layers])
        _ = self.original  # made before anything is counted
        with self.meter.measure() as cost:
            run()
        others = bytes_of(*(m for n, m in self._originals.items() if alone or n != layers))
        part = "copies" if "copies" in cost.parts else "weights"
        parts = {**cost.parts, part: cost.parts[part] - others}
        return replace(cost, peak=cost.peak - others, parts=parts)

    def repeated(self, running: Any, run: Callable[[int], Callable[[], Any]], times: int) -> Cost:
        """What takes so many turns of a loop: the first and the second, which stands for all that follow."""
        one, two = (self.measured(running, run(n)) for n in (1, 2))
        second = replace(two, flops=two.flops - one.flops)
        return one + second * (times - 1)

    # --- the rows ---------------------------------------------------------------------------------

    def row(
        self, row: Any, target: Any, seed: int, own: int
    ) -> Iterator[tuple[Any, str, Callable[[], Cost]]]:
        """The parts of a planned row: what it makes itself, and what it shares with others."""
        split = self.size_key(target)
        trained = ("original", own)
        drawn = [target, seed if self.e.drawn else own]
        if self.e.train:
            yield trained, "Original", self.once(["fit", None], lambda: self.fit(None))
        if self.e.oracle and row.label != self.e.oracle:
            yield from self.retrained(drawn, split, target)
        ask = [self.e.ask, target]
        if row.measure == "original":
            yield ("asked", trained, ask), "Original", self.asked(split, target)
        elif row.measure in BY_METHOD:
            if row.label == self.e.oracle:
                yield from self.retrained(drawn, split, target)
                return
            changes = {k: v for k, v in row.changes.items() if k not in ("method", "requests")}
            method = self.changed(row.label, changes)
            times = row.changes.get("requests", 1)
            key = ["method", _shape(self.described(method)), split]

            def cost() -> Cost:
                return self.once(key, lambda: self.unlearn(method, target))() * times

            content = ("method", row.measure, self.described(method), drawn, seed, ask)
            yield content, row.label, cost
            yield ("asked", content), row.label, self.asked(split, target, method)
        else:
            of = getattr(self, f"measure_{row.measure}")
            method = self.methods.get(row.label)
            own_method = None if method is None else self.described(method)
            content = (row.measure, row.label, own_method, row.changes, drawn, seed, ask)
            what = f"{row.measure} {row.label or ''}".strip()
            key = ["other", row.measure, row.label, _shape(own_method), row.changes, split]
            yield content, what, self.once(key, lambda: of(row, target))

    def retrained(self, drawn: Any, split: Any, target: Any) -> Iterator[Any]:
        key = ("retrained", drawn)
        yield key, "Retrain", self.once(["fit", split], lambda: self.fit(target))
        yield ("asked", key, self.e.ask), "Retrain", self.asked(split, target)

    def asked(self, split: Any, target: Any, method: Any = None) -> Callable[[], Cost]:
        acting = [type(method).__name__, _shape(describe(method))] if self.acts(method) else None
        return self.once(["asked", split, acting], lambda: self.evaluate(target, method))

    def acts(self, method: Any) -> bool:
        """Whether a method takes part in what its model answers."""
        return False

    def changed(self, label: str, changes: Mapping[str, Any]) -> Any:
        return changed(self.methods[label], changes)

    def described(self, method: Any) -> Any:
        return describe(method)

    # --- what a modality says -----------------------------------------------------------------------

    def size_key(self, target: Any) -> Any:
        """What of a request sets a size."""
        raise NotImplementedError

    def fit(self, target: Any) -> Cost:
        """Training by the recipe: on everything, or on what a target leaves."""
        raise NotImplementedError

    def unlearn(self, method: Any, target: Any) -> Cost:
        raise NotImplementedError

    def evaluate(self, target: Any, method: Any = None) -> Cost:
        raise NotImplementedError

    def measure_null(self, row: Any, target: Any) -> Cost:
        split = self.size_key(target)
        fit = self.once(["fit", split], lambda: self.fit(target))
        return fit() + self.asked(split, target)()

    def trained(
        self, data: Any, name: str, config: TrainConfig | None = None, alone: bool = False
    ) -> Cost:
        """`Recipe.fit` without its start; ``alone``, of the original itself."""
        config = config or self.recipe.train

        def run() -> None:
            model = self.recipe.build(0)
            epochs = shuffled_epochs(data, config, 0)
            training.train(model, epochs, self.recipe.task.loss, config, name=name, **self.stop())

        return self.measured(name, run, alone)

    def stop(self) -> dict[str, Any]:
        return {}


class Classifying(Work):
    """Image classifiers."""

    trial = ClassificationTrial
    taken_apart = (*Work.taken_apart, "audit")

    def recipe_of(self) -> Recipe:
        return ClassificationTrial.recipe_of(self.e, len(self.data.classes))

    @cached_property
    def data(self) -> ImageData:
        return stand_ins.images(self.e.data)

    def targets(self, seed: int) -> list[Any]:
        ((kind, wanted),) = self.e.forget.items()
        if wanted == "all":
            return list(getattr(self.data, {"class": "classes", "subclass": "subclasses"}[kind]))
        return super().targets(seed)

    def split(self, target: Any) -> ForgetSplit:
        ((kind, _),) = self.e.forget.items()
        if kind == "chosen":
            _, share = selection_rule(target, self.e.select[target])
            return make_split(self.data, {"fraction": share}, 0)
        whole = target if kind in ("fraction", "count") else 0  # any class: they are alike
        return make_split(self.data, {kind: whole}, 0)

    def size_key(self, target: Any) -> Any:
        return len(self.split(target).forget)

    def stop(self) -> dict[str, Any]:
        if self.recipe.train.patience is None:
            return {}
        return {"validate": lambda model: predict(model, self.data.validation).logits.mean().item()}

    def fit(self, target: Any) -> Cost:
        if target is None:
            return self.trained(self.data.train, "fit", alone=True)
        return self.trained(self.split(target).retain, "fit")

    def unlearn(self, method: Any, target: Any) -> Cost:
        split = self.split(target)
        if self.e.judged_on == "validation":
            split = replace(split, test=self.data.validation, test_forget=None, test_retain=None)
        return self.measured(_shape(describe(method)), lambda: method(self.original, split, 0))

    @cached_property
    def one_batch(self) -> Cost:
        """Of 256 predictions."""
        part = self.data.test.subset(torch.arange(min(256, len(self.data.test))))
        found = self.measured("predict", lambda: predict(self.original, part))
        return found * (256 / len(part))

    def seen(self, images: float) -> Cost:
        return self.one_batch * (images / 256)

    def evaluate(self, target: Any, method: Any = None) -> Cost:
        split = self.split(target)
        forget = len(split.forget)
        retain = min(self.e.ask.get("retain", len(split.retain)), len(split.retain))
        cost = self.seen(forget + retain + len(self.data.test))
        if self.e.attack == "entropy":
            cost += self.seen(forget)  # what ZRF compares with
        if self.e.relearn is not None:
            steps, few = self.e.relearn.get("steps", 10), self.e.relearn.get("examples", 32)
            cost += self.seen(3 * steps * few + forget)
        return cost

    def looked(self, target: Any) -> Cost:
        """Both sides and the test set, without attack or relearning."""
        split = self.split(target)
        retain = min(self.e.ask.get("retain", len(split.retain)), len(split.retain))
        return self.seen(len(split.forget) + retain + len(self.data.test))

    def measure_known_importances(self, row: Any, target: Any) -> Cost:
        ssd, split = self.methods[row.label], self.split(target)
        part = self.measured("importances", lambda: self.importances(ssd, split))
        return part + self.seen(len(self.data.test))

    def measure_dampening(self, row: Any, target: Any) -> Cost:
        test = self.seen(len(self.data.test))
        if row.changes.get("alpha") or row.changes.get("lam"):
            return test  # importances are computed once for all
        return self.unlearn(changed(self.methods[row.label], row.changes), target) + test

    def measure_selection(self, row: Any, target: Any) -> Cost:
        (name,) = self.e.select
        return self.search(name)

    def measure_norms(self, row: Any, target: Any) -> Cost:
        return self.seen(3 * 500)

    def measure_one_pass(self, row: Any, target: Any) -> Cost:
        return self.seen(3 * len(self.data.train))

    def measure_anatomy(self, row: Any, target: Any) -> Cost:
        return self.seen(2 * len(self.data.train))

    def measure_quantised(self, row: Any, target: Any) -> Cost:
        method = None if row.label in (ORIGINAL, self.e.oracle) else self.methods[row.label]
        made = Cost() if method is None else self.unlearn(method, target)
        return made + self.evaluate(target)

    def importances(self, ssd: SSD, split: ForgetSplit) -> None:
        from ...data import batches

        importances(self.original, batches(split.forget, ssd.batch_size), split.task.loss)

    def search(self, name: str) -> Cost:
        """For the worst set: an inner training and all losses, as often as it iterates."""
        rule, _ = selection_rule(name, self.e.select[name])
        every = self.data.train
        if not hasattr(rule, "iterations"):
            return self.seen(len(every))
        inner = self.trained(every, f"search {name}", rule.train)
        return (inner + self.seen(len(every))) * rule.iterations

    def row(self, row: Any, target: Any, seed: int, own: int) -> Iterator[Any]:
        if row.measure == "original" and row.changes.get("sides_only"):
            yield ("original", own), "Original", self.once(["fit", None], lambda: self.fit(None))
            yield ("sides", own, target), "Original", lambda: self.seen(len(self.data.test))
            return
        if "chosen" in self.e.forget:
            yield from self.chosen(target, own)
        if self.e.attack == "shadow":
            count = self.e.shadow.get("shadows", 1)
            yield (
                ("shadows", self.e.shadow),
                "Shadow models",
                self.once(
                    ["shadows"], lambda: self.trained(_half(self.data.train), "fit") * (2 * count)
                ),
            )
        if row.measure == "known_importances":
            once = self.once(["known", row.label], lambda: self.whole(row.label))
            yield ("known", own, row.label), "SSD", once
        if row.measure == "audit":
            yield from self.audited(row, target, seed, own)
            return
        if row.measure == "quantised" and row.label == self.e.oracle:
            drawn = [target, seed if self.e.drawn else own]
            yield from self.retrained(drawn, self.size_key(target), target)
        yield from super().row(row, target, seed, own)

    def audited(self, row: Any, target: Any, seed: int, own: int) -> Iterator[Any]:
        """Retrained models, which all methods are compared with, and originals with the method on each."""
        n, split = row.changes["models"], self.size_key(target)
        content = ("audit", n, target, seed, own, self.e.ask)
        looked = self.once(["looked", split], lambda: self.looked(target))

        def retrained() -> Cost:
            return (self.once(["fit", split], lambda: self.fit(target))() + looked()) * n

        yield (*content, "retrained"), "Retrain", retrained
        if row.label == self.e.oracle:
            return
        method = None if row.label == ORIGINAL else self.methods[row.label]

        def unlearned() -> Cost:
            each = self.once(["fit", None], lambda: self.fit(None))() + looked()
            if method is None:
                return each * n
            key = ["method", _shape(describe(method)), split]
            return (each + self.once(key, lambda: self.unlearn(method, target))()) * n

        yield (*content, method and describe(method)), row.label, unlearned

    def whole(self, label: str) -> Cost:
        """The importances of the whole training set."""
        ssd = self.methods[label]
        every = SimpleNamespace(forget=self.data.train, task=Classification(len(self.data.classes)))
        return self.measured("importances", lambda: self.importances(ssd, every))

    def chosen(self, target: Any, own: int) -> Iterator[Any]:
        key = ("selection", self.e.select[target], own)
        yield key, "Selection", self.once(["selection", target], lambda: self.search(target))


def _half(images: Any) -> Any:
    return images.subset(torch.arange(len(images) // 2))


class AnsweringWork(Work):
    """Language models that answer questions."""

    trial = AnsweringTrial

    def size_key(self, target: Any) -> Any:
        return target

    def data(self, target: Any) -> Any:
        ((argument, _),) = self.e.forget.items()
        return stand_ins.questions({**self.e.data, argument: target})

    @cached_property
    def scale(self) -> float:
        """Tokens of this model's tokenizer for one of a vocabulary of 49,152."""
        return 1.2 if self.config.vocab_size < 40_000 else 1.0

    @cached_property
    def config(self) -> Any:
        """Of the language model, with all its layers."""
        config = copy.deepcopy(self.chat.model.config.get_text_config())
        if self.id is not None:
            config.num_hidden_layers = layers_of(self.id)
        return config

    @cached_property
    def weights(self) -> float:
        """Bytes of the model, with all its layers."""
        if self.id is None:
            return bytes_of(self.original)
        few, more = (self._bytes(n) for n in LAYERS)
        return few + (layers_of(self.id) - LAYERS[0]) * (more - few) / (LAYERS[1] - LAYERS[0])

    def _bytes(self, layers: int) -> int:
        with depth(layers):
            return bytes_of(self.recipe.build(0))

    @property
    def chat(self) -> Any:
        return self.original

    def encoded(self, questions: Any) -> Any:
        return stand_ins.encoded(self.chat, questions, self.scale)

    def split(self, target: Any) -> ForgetSplit:
        templates = TEMPLATES[self.e.templates] if self.e.templates else ()
        return forget_questions(self.data(target), self.encoded, templates)

    def fit(self, target: Any) -> Cost:
        if target is None:
            every = self.encoded(self.data(self.targets(0)[0]).train)
            return self.trained(every, "fit", alone=True)
        return self.trained(self.split(target).retain, "fit")

    def acts(self, method: Any) -> bool:
        return type(method).__module__.rpartition(".")[2] in ("guard", "prompting", "whp")

    def unlearn(self, method: Any, target: Any) -> Cost:
        if self.acts(method) and not hasattr(method, "train"):
            return self.read(sum(len(i) for i in _ids(self.split(target).forget)))
        if type(method).__module__.endswith(("guard", "prompting")):
            # A classifier on hidden states; what it costs is the states of all questions.
            asked = self.encoded(self.data(target).train)
            return self.read(sum(len(i) for i in _ids(asked)))

        def run() -> None:
            method(copy.deepcopy(self.original), self.split(target), 0, inplace=True)

        return self.measured(_shape(describe(method)), run)

    def before(self, method: Any, target: Any) -> float:
        """Tokens that a method puts before a question on which it acts."""
        if isinstance(method, Prompting | FilterPrompting):
            return stand_ins.TOKENS_PER_WORD * len(method.instruction.split())
        if not isinstance(method, ICUL):
            return 0.0
        split = self.split(target)
        shown = (method.wrong, split.forget.questions), (method.right, split.retain.questions)
        return sum(n * (self.scale * _words(part) + BREAKS) for n, part in shown)

    # --- what is asked ----------------------------------------------------------------------------

    @cached_property
    def one_token(self) -> Cost:
        """Reading sixteen sequences of 64 tokens, a token of them."""
        model, n = self.chat, 16 * 64

        def run() -> None:
            ids = torch.zeros((16, 64), dtype=torch.int64)
            with torch.no_grad():
                model(ids, torch.ones_like(ids))

        return self.measured("read", run) * (1 / n)

    @cached_property
    def cache_bytes(self) -> float:
        """Of keys and values, a token."""
        c = self.config
        heads = getattr(c, "num_key_value_heads", None) or c.num_attention_heads
        half = self.chat.precision == "bf16" or self.chat.model.dtype.itemsize == 2
        return (
            2
            * c.num_hidden_layers
            * heads
            * (c.hidden_size / c.num_attention_heads)
            * (2 if half else 4)
        )

    def read(self, tokens: float) -> Cost:
        return self.one_token * tokens

    def write(
        self, answers: float, prompt: float, length: float, batch: int, beams: int = 1
    ) -> Cost:
        """Answers generated token by token, ``batch`` at a time."""
        together = math.ceil(answers / batch)
        weights = self.weights
        cache = min(answers, batch) * beams * (prompt + length) * self.cache_bytes
        cost = self.read(answers * (prompt + beams * length))
        cost.flops["launches"] = together * length * self.one_token.flops["launches"] * 16 * 64
        cost.read = together * length * (weights + cache / 2)
        logits = 4.0 * min(answers, batch) * beams * self.config.vocab_size
        cost.parts = {
            "weights": weights,
            "copies": self.kept(),
            "cache": cache,
            "activations": 2 * logits,
        }
        cost.peak = sum(cost.parts.values())
        return cost

    def kept(self) -> float:
        """What the trial holds beside the model that answers: the original."""
        return self.weights

    def tokens(self, questions: Any) -> tuple[float, float]:
        """Of a prompt and of an answer, the means."""
        found = self.encoded(questions)
        rows = [found[i].labels for i in range(min(len(found), 40))]
        said = sum(int((r != -100).sum()) for r in rows) / len(rows)
        return sum(map(len, rows)) / len(rows) - said, said

    def asked_of(self, target: Any) -> dict[str, Any]:
        data, ask = self.data(target), self.e.ask
        sets = {
            "forget": data.ask_forget,
            "retain": data.ask_retain,
            "real_authors": data.real_authors,
            "world_facts": data.world_facts,
        }
        return {k: s.subset(range(min(len(s), ask.get(k) or len(s)))) for k, s in sets.items()}

    def evaluate(self, target: Any, method: Any = None) -> Cost:
        cost, longest = Cost(), self.e.ask["max_new_tokens"]
        beams = getattr(method, "beams", 1)
        double = 2 if type(method).__name__ == "WHP" else 1
        before = self.before(method, target)
        for name, asked in self.asked_of(target).items():
            n = len(asked)
            plain, said = self.tokens(asked)
            acts = name == "forget" or getattr(method, "everywhere", False)
            prompt = plain + before if acts else plain
            # The right answer and the wrong ones behind one prompt.
            more = 2 + len(asked.wrong[0]) if asked.wrong else 1
            cost += self.read(n * (prompt + more * said)) * double
            wide = beams if acts else 1
            cost += self.write(n, prompt, longest, _together(wide), wide) * double
            if name == "forget":  # strangers' questions, templates, what was said
                strangers = prompt if getattr(method, "everywhere", False) else plain
                cost += self.read(n * (strangers + prompt + plain + 3 * said))
                if self.acts(method):  # the same, and strangers', of the model inside
                    cost += self.read(n * (2 * plain + (more + 1) * said))
        if self.e.relearn is not None:
            few = self.split(target).forget.subset(range(self.e.relearn["examples"]))
            steps = self.e.relearn["steps"]
            config = TrainConfig(epochs=steps, lr=1e-4, batch_size=len(few), optimizer="adamw")
            cost += self.relearned(few, config)
        return cost

    def relearned(self, few: Any, config: TrainConfig) -> Cost:
        def run() -> None:
            work = copy.deepcopy(self.original)
            training.train(work, shuffled_epochs(few, config, 0), Answering().loss, config)

        return self.measured("relearn", run)

    def measure_untouched(self, row: Any, target: Any) -> Cost:
        return self.evaluate(target)

    def measure_wordings(self, row: Any, target: Any) -> Cost:
        gone = self.asked_of(target)["forget"]
        method, longest = self.methods.get(row.label), self.e.ask["max_new_tokens"]
        prompt = self.tokens(gone)[0] + self.before(method, target)
        beams = getattr(method, "beams", 1)
        each = self.write(len(gone), prompt, longest, _together(beams), beams)
        return each * len(self.e.ask["wordings"])

    def measure_decoding(self, row: Any, target: Any) -> Cost:
        gone = self.asked_of(target)["forget"]
        prompt, _ = self.tokens(gone)
        beams, longest = self.methods[row.label].beams, self.e.ask["max_new_tokens"]
        each = [self.write(len(gone), prompt, longest, 1, b) for b in (1, beams, beams)]
        return each[0] + each[1] + each[2]

    def measure_trajectory(self, row: Any, target: Any) -> Cost:
        asked = self.asked_of(target)
        gone = asked["forget"]
        prompt, said = self.tokens(gone)
        method = changed(self.methods[row.label], row.changes)
        train = method.train
        steps = train.epochs * math.ceil(len(gone) / train.batch_size) // train.accumulate
        looks = steps // self.e.ask["every"] + 1
        pairs = 2 * len(gone) + len(asked["retain"])
        return self.unlearn(method, target) + self.read(looks * pairs * (prompt + said))


def _together(beams: int) -> int:
    """How many answers are generated at a time."""
    return max(BATCH // beams, 1)


def _words(questions: QuestionSet) -> float:
    """Of a question and its answer together, the mean."""
    return sum(stand_ins.tokens_of(f"{q} {a}") for q, a in questions) / len(questions)


def _ids(data: Any) -> list[Any]:
    return [data[i].input_ids for i in range(len(data))]


class Completing(AnsweringWork):
    """Language models that know a book."""

    trial = CompletionTrial

    @property
    def scale(self) -> float:  # type: ignore[override]
        return stand_ins.TOKENS_PER_WORD

    def data(self, target: Any) -> Any:
        ((argument, _),) = self.e.forget.items()
        return stand_ins.books({**self.e.data, argument: target})

    def evaluate(self, target: Any, method: Any = None) -> Cost:
        data = self.data(target)
        longest, short = (self.e.ask[k] for k in ("max_new_tokens", "answer_tokens"))
        plain, said = self.tokens(data.ask_forget)
        gone, kept, held = map(len, (data.ask_forget, data.ask_retain, data.holdout))
        double = 2 if type(method).__name__ == "WHP" else 1
        beams, everywhere = getattr(method, "beams", 1), getattr(method, "everywhere", False)
        before = self.before(method, target)
        prompt = plain + before
        others = prompt if everywhere else plain
        cost = self.read(gone * (prompt + said) + (kept + held) * (others + said))
        if self.acts(method):  # each kind of question apart
            cost += self.write(gone, prompt, longest, _together(beams), beams)
            cost += self.write(kept, others, longest, BATCH)
        else:
            cost += self.write(gone + kept, plain, longest, BATCH)
        for asked in (data.questions_forget, data.questions_retain):
            if len(asked):
                length = self.tokens(asked)[0] + (before if everywhere else 0)
                cost += self.write(len(asked), length, short, BATCH)
        cost *= double
        if self.acts(method):  # the likelihoods of the model inside
            cost += self.read((gone + kept + held) * (plain + said))
        return cost


class Drawing(Work):
    """Models that draw."""

    taken_apart = (*Work.taken_apart, "judge", "selection")

    def __init__(self, meter: Meter, e: Experiment) -> None:
        self.trial = erasing_kind(e)  # type: ignore[misc]
        super().__init__(meter, e)

    @cached_property
    def data(self) -> Any:
        return stand_ins.captions(self.e.data)

    def size_key(self, target: Any) -> Any:
        return None

    @cached_property
    def by_class(self) -> bool:
        return self.e.model["use"] == "class_to_image"

    def concepts(self, target: Any) -> Concepts:
        general, data = self.data.general, self.data
        first, *_ = data.templates
        if self.by_class:
            n = len(data.nouns)
            return Concepts(((0, 1),), range(1, n))
        if self.e.select:
            count = self.e.select[target]["count"]
            return Concepts(
                tuple((n.name, general) for n in data.nouns[:count]), (), data.templates
            )
        if "group" in self.e.forget:
            gone = data.groups[target]
            kept = [n.name for n in data.nouns if n.name not in gone]
            keep = ["", *(first.format(w) for w in (general, *kept))]
            return Concepts(tuple((name, general) for name in gone), keep, data.templates)
        if target == "nudity":
            names, anchor = self.trial.NAMES, self.trial.ANCHOR
            keep = ["", *(first.format(w) for w in (anchor, *(n.name for n in data.nouns)))]
            return Concepts(tuple((n, anchor) for n in names), keep, data.templates)
        others = [n.name for n in data.nouns if n.name != target]
        keep = ["", *(first.format(w) for w in (general, *others))]
        return Concepts(((target, general),), keep, data.templates)

    def split(self, target: Any) -> ForgetSplit:
        concepts = self.concepts(target)
        if self.by_class:
            names = tuple(n.name for n in self.data.nouns)
            images = ImageData(self.data.train.images, self.data.test, names, names)
            return replace(forget_class(images, 0), task=Denoising(concepts))
        if len(self.data.train) and not self.e.select:
            return forget_concepts(self.data, concepts)
        nothing = self.data.train.subset(torch.arange(0))
        return ForgetSplit(str(target), Denoising(concepts), nothing, nothing)

    def fit(self, target: Any) -> Cost:
        if target is None:
            images = self.data.train.images if self.by_class else self.data.train
            return self.trained(images, "fit", alone=True)
        return self.trained(self.split(target).retain, "fit")

    def unlearn(self, method: Any, target: Any) -> Cost:
        return self.measured(
            _shape(describe(method)), lambda: method(self.original, self.split(target), 0)
        )

    def acts(self, method: Any) -> bool:
        return isinstance(method, SLD)

    def drawn(self, model: nn.Module) -> Cost:
        """One image, of a batch of them."""
        ask = self.e.ask
        n = ask.get("batch_size", 64)
        asked = [0] * n if self.by_class else ["a picture"] * n
        how = {"steps": ask["steps"], "guidance": ask["guidance"], "batch_size": n}
        return self.measured("draw", lambda: model.sample(asked, 0, **how)) * (1 / n)

    @cached_property
    def one_image(self) -> Cost:
        return self.drawn(self.original)

    def draw(self, images: float) -> Cost:
        return self.one_image * images

    def images(self, target: Any) -> float:
        """How many are drawn of one model."""
        ask, data = self.e.ask, self.data
        if "prompts" in ask or "captions" in ask:
            return ask.get("prompts") or ask["captions"]
        nouns, n = data.nouns, len(data.nouns)
        if "group" in self.e.forget:
            gone = len(data.groups[target])
            return len(data.templates) * (gone * ask["erased"] + (n - gone) * ask["kept"])
        if self.e.select:
            count = self.e.select[target]["count"]
            words = sum(1 + len(noun.synonyms) for noun in nouns)
            return count * ask["erased"] + (words - count) * ask["kept"]
        total = ask["erased"] + (n - 1) * ask["kept"]
        if "synonyms" in ask:
            own = next(len(x.synonyms) for x in nouns if x.name == target)
            others = sum(len(x.synonyms) for x in nouns) - own
            total += own * ask["synonyms"] + others * ask["relatives"] + ask["erased"]
        return total

    def evaluate(self, target: Any, method: Any = None) -> Cost:
        images = self.images(target)
        if not self.acts(method):
            return self.draw(images) + self.judged(images)
        return self.drawn(method(self.original, self.split(target), 0)) * images + self.judged(
            images
        )

    @cached_property
    def look(self) -> Cost:
        """One image under the classifier that judges; CLIP's is 2 x 4.4 GFLOPs at 224 pixels."""
        if self.e.judge:
            model = build(MODELS, self.e.judge["model"], "model", classes=len(self.data.nouns))
            judge = model.build(0)
            part = self.data.test.subset(torch.arange(64))
            return self.measured("judge", lambda: predict(judge, part)) * (1 / 64)
        from transformers import CLIPConfig, CLIPModel

        _, values = GEOMETRIES[CLIP][""]
        with self.meter.mode:
            clip = CLIPModel(CLIPConfig(**values)).eval()

        def run() -> None:
            with torch.no_grad():
                clip.vision_model(pixel_values=torch.zeros(16, 3, 224, 224))

        return self.measured("judge", run) * (1 / 16)

    def judged(self, images: float) -> Cost:
        return self.look * images

    def row(self, row: Any, target: Any, seed: int, own: int) -> Iterator[Any]:
        if self.e.judge:
            yield ("judge", self.e.judge), "Judge", self.once(["judge"], self.learned_judge)
        if row.measure == "judge":
            return
        if self.e.select:
            key = ("selection", self.e.select[target], seed)
            yield key, "Selection", self.once(["selection", target], lambda: self.searched(target))
            for part in (0, 1):
                yield ("shown", part), "Images", self.once(["shown"], self.shown)
            if row.measure == "selection":
                return
        yield from super().row(row, target, seed, own)

    def learned_judge(self) -> Cost:
        recipe = self.trial.judge_recipe_of(self.e, len(self.data.nouns))
        images, config = self.data.train.images, recipe.train

        def run() -> None:
            model = recipe.build(0)
            training.train(
                model, shuffled_epochs(images, config, 0), recipe.task.loss, config, name="judge"
            )

        return self.measured("learn to judge", run)

    def shown(self) -> Cost:
        """What the original draws for the search, or for the verdict."""
        if self.e.train:
            return Cost()
        words = sum(1 + len(noun.synonyms) for noun in self.data.nouns)
        return self.draw(words * self.e.ask["images"])

    def searched(self, target: Any) -> Cost:
        from ..trials.diffusion import selection_rule as rule_of

        rule, _ = rule_of(target, self.e.select[target])
        prompts = [f"word {i}" for i in range(sum(1 + len(n.synonyms) for n in self.data.nouns))]
        looks = self.draw(10 / self.e.ask["steps"] * len(prompts) * self.e.ask["images"] / 2)
        if not hasattr(rule, "iterations"):
            return looks if type(rule).__name__ != "RandomPrompts" else Cost()
        weights = torch.ones(len(prompts))
        inner = self.measured(
            ["search", target],
            lambda: rule.erased(self.original, prompts, weights, 0, "worst_prompts"),
        )
        return (inner + looks) * rule.iterations

    def measure_embedding(self, row: Any, target: Any) -> Cost:
        from ...metrics import search_embedding

        given = self.e.ask["search"]
        x = torch.zeros((given["examples"], *self.image_shape))
        found = {k: v for k, v in given.items() if k not in ("examples", "steps")}

        def run(steps: int) -> Callable[[], Any]:
            return lambda: search_embedding(
                self.original, x, "a thing", seed=0, steps=steps, **found
            )

        self.original.embed(["a thing"])  # remembered, so that every step takes the same
        search = self.repeated("embedding", run, given.get("steps", 100))
        return search + self.draw(self.e.ask["erased"])

    def measure_relearning(self, row: Any, target: Any) -> Cost:
        given = self.e.ask["relearn"]
        size, steps = given.get("batch_size", 8), max(given["at"])
        config = TrainConfig(epochs=steps, lr=1e-5, batch_size=size, optimizer="adam")
        looks = (1 + len(given["at"])) * self.e.ask["erased"]
        data = self.split(target).forget
        if not len(data):
            none = torch.zeros(given["examples"], dtype=torch.int64)
            from ...data import CaptionedSet, ImageSet

            pixels = torch.zeros((1, 512, 512, 3), dtype=torch.uint8)
            pixels = pixels.expand(given["examples"], 512, 512, 3)
            own = ImageSet(pixels, none, none, (0.5,) * 3, (0.5,) * 3)
            data = CaptionedSet(own, ("a picture",) * given["examples"])
        data = data.subset(torch.arange(min(size, len(data))))

        def run() -> None:
            work = copy.deepcopy(self.original)
            epochs = shuffled_epochs(data, config, 0)
            training.train(work, epochs, Denoising().loss, config, name="relearn")

        return self.measured("relearn", run) + self.draw(looks) + self.judged(looks)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        if self.e.model["use"] == "stable_diffusion":
            return 3, 512, 512
        height, width, channels = self.data.train.images.image_shape
        return channels, height, width


class Tuning(AnsweringWork):
    """Models that learn tasks one after another."""

    trial = ContinualTrial
    taken_apart = ("before", "method")

    #: Tokens of a question and of an answer of CoIN's tasks, and of drawn ones.
    LENGTHS: ClassVar[dict[str, tuple[int, int]]] = {"coin": (50, 6), "visual_tasks": (20, 4)}

    def targets(self, seed: int) -> list[Any]:
        """A seed has one order of its own; all orders take the same."""
        return super().targets(seed)[:1]

    def row(self, row: Any, target: Any, seed: int, own: int) -> Iterator[Any]:
        tasks = target.split()
        if self.e.train:
            yield ("original", own), "Original", self.once(["fit"], lambda: self.fit(None))
        if row.measure == "before":
            yield ("before", seed), "Before", self.once(["b"], lambda: self.ask_all(len(tasks)))
            return
        method, ratio = self.methods[row.label]
        key = ["method", _shape(describe(method))]
        content = ("method", describe(method), ratio, seed, target)
        yield content, row.label, self.once(key, lambda: self.learned(method, tasks))
        asked = sum(range(1, len(tasks) + 1))
        yield ("asked", content), row.label, self.once(["a"], lambda: self.ask_all(asked))

    def visual(self, n: int) -> Any:
        asked, said = self.LENGTHS[self.e.data["use"]]
        side = 336 if self.e.data["use"] == "coin" else self.chat.transform.size
        data = stand_ins.visual(n, side, asked, said)
        return stand_ins.encoded_visual(self.chat, data)

    def fit(self, target: Any) -> Cost:
        return self.trained(self.visual(self.e.data["base"]), "fit", alone=True)

    def learned(self, method: Any, tasks: list[str]) -> Cost:
        """The first two tasks as they are, and the second for all that follow."""
        stages = [
            Stage(name, self.recipe.task, self.visual(self.e.data["per_task"])) for name in tasks
        ]

        def run(count: int) -> Callable[[], None]:
            def learn() -> None:
                learning = method.learn(self.original, stages, 0)
                models = [next(learning)[1] for _ in range(count)]
                del models

            return learn

        if type(method).__name__ == "Joint":
            return self.measured(_shape(describe(method)), run(1))
        return self.repeated(_shape(describe(method)), run, len(tasks))

    @cached_property
    def one_token(self) -> Cost:
        data = self.visual(16)
        batch = data.collate([data[i] for i in range(16)])
        tokens = batch["input_ids"].numel()
        given = {k: batch[k] for k in ("input_ids", "attention_mask", "pixel_values")}

        def run() -> None:
            with torch.no_grad():
                self.chat(**given)

        return self.measured("read", run) * (1 / tokens)

    def ask_all(self, tasks: int) -> Cost:
        asked, _ = self.LENGTHS[self.e.data["use"]]
        prompt = self.chat.image_tokens + stand_ins.prompt_tokens(self.chat.template) + asked
        longest = self.e.ask["max_new_tokens"]
        batch = self.e.ask.get("batch_size", 64)
        # An answer is one or two words; the longest of a batch, some of its limit.
        length = min(longest, 32)
        return self.write(tasks * self.e.data["test_per_task"], prompt, length, batch)


class Refusing(Tuning):
    """What a model says about restricted and allowed images."""

    taken_apart = (*Work.taken_apart, "judge")

    @property
    def trial(self) -> type:  # type: ignore[override]
        return kind_of(self.e)

    def recipe_of(self) -> Recipe:
        return kind_of(self.e).recipe_of(self.e)

    def targets(self, seed: int) -> list[Any]:
        return Work.targets(self, seed)

    def row(self, row: Any, target: Any, seed: int, own: int) -> Iterator[Any]:
        if row.measure == "judge":
            yield ("judge",), "Judge", self.once(["j"], lambda: self.judged(self.e.ask["known"]))
            return
        yield from Work.row(self, row, target, seed, own)

    def size_key(self, target: Any) -> Any:
        return None

    def acts(self, method: Any) -> bool:
        return False

    def described(self, method: Any) -> Any:
        return [describe(method), self.e.adapters]

    @cached_property
    def harmful(self) -> bool:
        return self.e.data["use"] == "safety_benchmark"

    @cached_property
    def counts(self) -> tuple[int, int]:
        """Prompts of the training part, of each set, and of validation: SafeEraser's 1,800 and 600 images have four each."""
        if self.harmful:
            return 7200, 2400
        return 4 * self.e.data["train_images"], 4 * self.e.data["val_images"]

    @cached_property
    def prompts(self) -> tuple[int, int]:
        return (30, 180) if self.harmful else (15, 12)

    def visual(self, n: int) -> Any:
        side = 336 if self.harmful else self.chat.transform.size
        data = stand_ins.visual(n, side, *self.prompts)
        return stand_ins.encoded_visual(self.chat, data)

    def fit(self, target: Any) -> Cost:
        return self.trained(self.visual(4 * self.e.data["base_images"]), "fit", alone=True)

    def split(self, target: Any) -> ForgetSplit:
        return self.request

    @cached_property
    def request(self) -> ForgetSplit:
        n, _ = self.counts
        sets = [self.visual(n) for _ in range(3)]
        for k, one in enumerate(sets):  # no question on two sides
            data = replace(
                one.questions, questions=tuple(f"{k} {q}" for q in one.questions.questions)
            )
            sets[k] = replace(one, questions=data)
        forget, retain, decouple = sets
        return ForgetSplit("harmful", self.recipe.task, forget, retain, decouple=decouple)

    def unlearn(self, method: Any, target: Any) -> Cost:
        given = dict(self.e.adapters)
        projector = given.pop("projector")

        def run() -> None:
            work = copy.deepcopy(self.original)
            with adapters(work, 0, "lora", **given):
                if projector is not None:
                    submodule(work, projector).requires_grad_(True)
                method(work, self.split(target), 0, inplace=True)

        held = self.judge_weights if self.harmful else 0
        found = self.measured(_shape(self.described(method)), run)
        parts = {**found.parts, "copies": found.parts.get("copies", 0) + held}
        return replace(found, peak=found.peak + held, parts=parts)

    def judge(self) -> nn.Module:
        return build(LANGUAGE_MODELS, self.e.judge, "judge").build(0)

    @cached_property
    def judge_weights(self) -> float:
        return bytes_of(self.judge())

    def kept(self) -> float:
        return self.weights + (self.judge_weights if self.harmful else 0)

    def evaluate(self, target: Any, method: Any = None) -> Cost:
        ask, (train, val) = self.e.ask, self.counts
        asked, said = self.prompts
        prompt = self.chat.image_tokens + stand_ins.prompt_tokens(self.chat.template) + asked
        sizes = {"forget": train, "unseen": val, "safe": val, "retain": val}
        if not self.harmful:
            sizes |= {"held_out": val, "general": val}
        n = {k: min(v, ask.get(k) or v) for k, v in sizes.items()}
        drawn = ask["times"] * (n["forget"] + n["unseen"])
        every = drawn + sum(v for k, v in n.items() if k not in ("forget", "unseen"))
        cost = self.write(every, prompt, ask["max_new_tokens"], ask["batch_size"])
        return cost + self.judged(drawn + n["safe"], said)

    def judged(self, answers: float, said: int = 180) -> Cost:
        """The judge reads a question and an answer, and says one word."""
        if not self.harmful:
            return Cost()
        n = 16 * 64

        def read() -> Cost:
            judge = self.judge()

            def run() -> None:
                ids = torch.zeros((16, 64), dtype=torch.int64)
                with torch.no_grad():
                    judge(ids, torch.ones_like(ids))

            with self.meter.measure() as cost:
                run()
            return replace(cost, peak=0.0)

        return self.once(["judge reads"], read)() * (answers * (said + 150) / n)
