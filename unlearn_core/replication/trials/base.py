"""A method on trial: what the notebooks of every modality share.

A trial is one experiment, forget request and seed. It makes the original through the cache, runs a
method, and measures what that did and cost; how a model is evaluated is its subclass's business.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import nn
from torch.utils.data import Dataset

from ...data import ForgetSplit, Source
from ...methods import METHODS, Method, Retrain
from ...methods.baselines.retrain import retrain_seed
from ...metrics import METRICS, VERSION, Cost, Estimate, changed_weights, measure
from ...models import Checkpoint, Recipe, TrainConfig, default_device
from ...registry import (
    ConfigError,
    altered,
    bind,
    brief,
    build,
    describe,
    did_you_mean,
    named,
    within,
)
from ...seeding import derive_seed
from ..cache import digest
from ..papers import Choice, Experiment
from ..records import ORIGINAL, Row, now
from ..run import Replication, finite_values
from .search import choose

__all__ = ["ORIGINAL", "Costs", "OptimizerSteps", "Trial", "changed", "train_config"]


def train_config(spec: Mapping[str, Any]) -> TrainConfig:
    """A training configuration from a YAML's mapping; unknown keys and values of wrong types raise."""
    return build({"train": TrainConfig}, {"use": "train", **spec}, "training configuration")


def nested(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments in which every mapping is a training configuration."""
    return {k: train_config(v) if isinstance(v, dict) else v for k, v in spec.items()}


#: What every trial reads of an experiment.
COMMON = frozenset(
    {
        *("title", "data", "model", "task", "forget", "methods", "grid", "measure"),
        *("requires", "seeds", "original_seed"),
    }
)


def check_task(e: Experiment, name: str) -> None:
    """Of a trial that knows one task: it is the one that the experiment names."""
    if e.task != {"use": name}:
        raise ConfigError(f"task: {{use: {name}}}, not {brief(e.task)}")


class Trial:
    """One experiment, forget request and seed; the original model is made when it is needed.

    ``target`` is one of ``run.targets(experiment)``. ``seed`` fixes the training of the original,
    the draw of a random forget set, the retrained model and the method's own randomness, each
    through a seed of its own (`derive_seed`), so that the retrained model starts elsewhere.

    Subclasses say what the recipe and the data are, and how a model is evaluated.
    """

    recipe: Recipe

    def __init__(self, run: Replication, experiment: str, seed: int, target: Any) -> None:
        self.run, self.name, self.seed, self.target = run, experiment, seed, target
        self.experiment = run.experiment(experiment)
        self.device = default_device()
        own = self.experiment.original_seed
        self.model_seed = seed if own is None else own
        self._unlearned: tuple[str | None, Any] = (None, None)

    @classmethod
    def each(cls, run: Replication, prefix: str) -> Iterator[Self]:
        """Every experiment whose name begins with ``prefix``, on each of its seeds and targets."""
        for name in run.experiments(prefix):
            for seed, target in cls.sites(run, name):
                yield cls(run, name, seed, target)

    @classmethod
    def sites(cls, run: Replication, name: str) -> Iterable[tuple[int, Any]]:
        """The seed and the target of each of an experiment's trials, after a `check` of what it says."""
        with within(f"{run.slug}, {run.profile_name}, {name}"):
            cls.check(run.experiment(name), run.seeds_of(name))
        return cls.pairs(run, name)

    @classmethod
    def pairs(cls, run: Replication, name: str) -> Iterable[tuple[int, Any]]:
        """The seeds of an experiment, and what is to be forgotten on each: everything, as a rule."""
        return itertools.product(run.seeds_of(name), run.targets(name))

    # --- what an experiment says --------------------------------------------------------------

    #: What it may say beside `COMMON`, as this trial reads it.
    reads: ClassVar[frozenset[str]] = frozenset(
        {"train", "oracle", "originals_of", "search", "choose", "tuned"}
    )

    #: What its ``data`` can name.
    problems: ClassVar[Mapping[str, Callable[..., Any]]]

    #: What its ``ask`` holds, as arguments.
    asks: ClassVar[type]

    @classmethod
    def check(cls, e: Experiment, seeds: Sequence[int]) -> None:
        """Build all that an experiment names, without data, and refuse what nothing reads.

        Raises
        ------
        ConfigError
            It says what no such trial reads, names what there is not, or gives what can't be.
        """
        for key, info in Experiment.model_fields.items():
            if key not in COMMON | cls.reads and getattr(e, key) != info.default:
                raise ConfigError(f"{key}: {cls.__name__} reads nothing of it")
        if "ask" in cls.reads:
            bind(cls.asks, e.ask, "ask")
        cls.check_problem(e)
        recipe = cls.recipe_of(e)
        cls.check_settings(e, cls.methods_of(e, recipe), seeds)

    @classmethod
    def check_problem(cls, e: Experiment) -> None:
        """The data, and what is to be forgotten of them."""
        problem, arguments = named(cls.problems, e.data, "data set")
        bind(problem, arguments, f"data set {e.data['use']!r}")
        cls.requests(e)

    @classmethod
    def check_settings(
        cls, e: Experiment, methods: Mapping[str, Any], seeds: Sequence[int]
    ) -> None:
        """The hyper-parameters of searches, sweeps and rows."""
        for label, grid in e.search.items():
            with within(f"search.{label}"):
                for name, values in grid.items():
                    for value in values:
                        changed(methods[label], {name: value})
        for metric in (e.choose.by, *e.choose.keep) if e.search else ():
            if metric not in METRICS:
                raise ConfigError(
                    f"choose: no metric {brief(metric)}; {did_you_mean(metric, METRICS)}"
                )
        if not e.search and e.choose != Choice():
            raise ConfigError("choose: there is no search")
        entries = [entry for entry in e.measure if isinstance(entry, Mapping)]
        measured = {k for entry in entries for k, values in entry.items() if values == "grid"}
        for name, values in e.grid.items():
            with within(f"grid.{name}"):
                having = [m for m in methods.values() if name in hyper_parameters(m)]
                if not having and name not in measured:
                    raise ConfigError("no method of the experiment has such a hyper-parameter")
                for value in values:
                    for method in having:
                        changed(method, {name: value})
        for i, entry in enumerate(e.measure):
            with within(f"measure.{i}"):
                cls.check_measure(entry, e, methods, seeds)

    @classmethod
    def check_measure(
        cls,
        entry: str | Mapping[str, Any],
        e: Experiment,
        methods: Mapping[str, Any],
        seeds: Sequence[int],
    ) -> None:
        """One entry of what is measured (see `plan`)."""
        whole = {entry: None} if isinstance(entry, str) else dict(entry)
        some = whole.pop("seeds", [])
        if not isinstance(some, list) or not set(map(str, some)) <= set(map(str, seeds)):
            raise ConfigError(f"seeds: some of {[*seeds]}, not {brief(some)}")
        if whole == {"methods": None} or (whole == {"search": None} and e.search):
            return
        measures = [n.removeprefix("measure_") for n in dir(cls) if n.startswith("measure_")]
        (measure, labels), *changes = whole.items() or [("", None)]
        if measure not in measures:
            raise ConfigError(
                f"nothing is called {brief(measure)}; {did_you_mean(measure, measures)}"
            )
        function = getattr(cls, f"measure_{measure}")
        taken = inspect.signature(function).parameters
        known = [*e.select] if measure == "selection" else [ORIGINAL, *methods]
        own: dict[str, list[Any]] = {}
        for label in labels if isinstance(labels, list) else [labels]:
            if label not in known and not (label is None and "label" not in taken):
                raise ConfigError(f"{measure}: of {brief(label)}; {did_you_mean(label, known)}")
            for name, wanted in changes:
                if wanted == "grid" and name not in e.grid:
                    raise ConfigError(f"{measure}: {name}: grid, but there is no such grid")
                values = e.grid[name] if wanted == "grid" else wanted
                values = values if isinstance(values, list) else [values]
                if name in taken or "changes" not in taken or label not in methods:
                    own[name] = values
                    continue
                for value in values:  # of a hyper-parameter
                    changed(methods[label], {name: value})
        stand_ins = {next(iter(taken)): None, "label": None}  # the trial, and what was looked up
        for at in itertools.product(*own.values()):
            bind(function, dict(zip(own, at, strict=True)), measure, **stand_ins)

    @classmethod
    def requests(cls, e: Experiment) -> tuple[str, list[Any]]:
        """The kind of what is to be forgotten, and its values; each once."""
        ((kind, wanted),) = e.forget.items()
        values = wanted if isinstance(wanted, list) else [wanted]
        if len(set(values)) < len(values):
            raise ConfigError(f"forget.{kind}: something comes twice in {brief(values)}")
        return kind, values

    @classmethod
    def recipe_of(cls, e: Experiment) -> Recipe:
        """How the original is made."""
        raise NotImplementedError

    @classmethod
    def methods_of(
        cls, e: Experiment, recipe: Recipe, chosen: Mapping[str, Mapping[str, Any]] | None = None
    ) -> dict[str, Method]:
        """The methods, with the hyper-parameters that a search has ``chosen`` for some."""
        out: dict[str, Method] = {}
        for label, spec in e.methods.items():
            with within(f"methods.{label}"):
                own = nested(spec)
                if "method" in spec:  # a method about another one, which it names
                    if not isinstance(spec["method"], str) or spec["method"] not in out:
                        raise ConfigError(
                            f"about {brief(spec['method'])}, no method before it; "
                            f"{did_you_mean(spec['method'], out)}"
                        )
                    own["method"] = out[spec["method"]]
                method = build(METHODS, own, "method", recipe=recipe)
                out[label] = changed(method, (chosen or {}).get(label, {}))
        return out

    # --- what a subclass says -----------------------------------------------------------------

    @cached_property
    def split(self) -> ForgetSplit:
        """What is to be forgotten and what is kept."""
        raise NotImplementedError

    @property
    def trained_on(self) -> Any:
        """All training data, the forget set included."""
        raise NotImplementedError

    @property
    def held_out(self) -> tuple[Dataset | None, dict[str, Any]]:
        """What early stopping goes by, and what identifies it."""
        return None, {}

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What identifies the data."""
        raise NotImplementedError

    #: What identifies the original's row beside its evaluation.
    original_spec: ClassVar[dict[str, Any]] = {"method": None}

    @property
    def sources(self) -> tuple[Source, ...]:
        """Where the data come from."""
        raise NotImplementedError

    def evaluate(self, model: nn.Module) -> tuple[dict[str, Estimate], dict[str, Any]]:
        """The metrics that the experiment asks for, and what else is kept of them."""
        raise NotImplementedError

    def evaluation(self) -> dict[str, Any]:
        """What determines a row besides the model and the method."""
        raise NotImplementedError

    def compare(self, row: Row, retrained: Row) -> dict[str, Estimate]:
        """What is derived from a row and the retrained model's."""
        raise NotImplementedError

    def inside(self, model: nn.Module) -> nn.Module:
        """The model whose weights are compared with the original's: what is not put around it."""
        return model

    def check_oracle(self, row: Row) -> None:
        """Record what must be true of a model that never saw the forget set."""

    def chosen(self) -> dict[str, dict[str, Any]]:
        """The hyper-parameters that the experiment's searches chose: method -> name -> value."""
        found = [choose(type(self), self.run, name) for name in self.experiment.tuned]
        return {label: values for each in found for label, values in each.items()}

    # --- models -------------------------------------------------------------------------------

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What determines a trained model besides its data and seed."""
        weights = [s.sha256 for s in self.recipe.model.sources()]
        return {"recipe": describe(self.recipe), **({"weights": weights} if weights else {})}

    @cached_property
    def original(self) -> nn.Module:
        """The model that learned all of the data."""
        return self.fit(self.trained_on, self.model_seed)[0]

    @cached_property
    def methods(self) -> dict[str, Method]:
        """The experiment's methods under the names that the chapter gives them.

        Where the experiment is tuned, with the hyper-parameters that the search chose.
        """
        chosen = self.chosen() if self.experiment.tuned else {}
        return self.methods_of(self.experiment, self.recipe, chosen)

    def unlearned(self, label: str) -> nn.Module:
        """What the method of that name makes of the original; the last one is kept."""
        if label == ORIGINAL:
            return self.original
        if self._unlearned[0] != label:
            self._unlearned = label, self.unlearn(self.methods[label])[0]
        return self._unlearned[1]

    def fit(self, data: Dataset, seed: int) -> tuple[nn.Module, dict[str, Any]]:
        """A model of the recipe through the cache, and where it comes from: its cost included.

        Where rows must come from clean commits, so must the models behind them.
        """
        return self.fit_recipe(self.recipe, self.identity, data, seed)

    def fit_recipe(
        self, recipe: Recipe, identity: Mapping[str, Any], data: Dataset, seed: int
    ) -> tuple[nn.Module, dict[str, Any]]:
        """A model of any recipe, as `fit`; ``identity`` is what determines it beside its data."""
        held, _ = self.held_out
        key = self.model_key(identity, data, seed)
        checkpoint = Checkpoint(self.run.cache.checkpoint(key))

        def fit() -> tuple[nn.Module, dict[str, Any]]:
            with self.costs() as costs:
                name = f"{self.name}, seed {seed}"
                model = recipe.fit(
                    data,
                    seed,
                    validation=held,
                    device=self.device,
                    name=name,
                    checkpoint=checkpoint,
                )
            return model, {
                "seconds": checkpoint.seconds + costs.cost.seconds,
                "peak_memory": costs.cost.peak_memory,
                "optimizer_steps": checkpoint.step + costs.optimizer_steps,
                "commit": self.run.commit,
                "dirty": self.run.dirty,
                "date": now(),
                "device": str(self.device),
                "threads": torch.get_num_threads(),
            }

        model, meta = self.run.cache.model(key, lambda: recipe.build(seed), fit, self.acceptable)
        return model.to(self.device), meta

    def model_key(self, identity: Mapping[str, Any], data: Dataset, seed: int) -> str:
        """What a trained model is kept under."""
        _, validated = self.held_out
        return digest({**identity, "data": data.fingerprint(), "seed": seed, **validated})

    def acceptable(self, meta: Mapping[str, Any]) -> bool:
        """Whether a model that is kept may be behind this run's rows."""
        return not (self.run.clean_only and meta["dirty"])

    def models(self) -> Iterator[tuple[str, str, Callable[[], Any]]]:
        """The trained models that several rows need: what each is called, its key, what makes it.

        Raises
        ------
        NotMadeError
            A row that chooses the forget set is not made yet.
        """
        if self.recipe.train is None:
            return
        key = self.model_key(self.identity, self.trained_on, self.model_seed)
        yield "original", key, lambda: self.original
        if self.experiment.oracle and retrains(self.methods[self.experiment.oracle]):
            key = self.model_key(self.identity, self.split.retain, retrain_seed(self.model_seed))
            yield "retrained model", key, self.retrained

    # --- rows ---------------------------------------------------------------------------------

    def row(
        self,
        label: str,
        spec: Mapping[str, Any],
        compute: Callable[[], tuple[Mapping[str, Estimate], Mapping[str, Any]]],
        alike: bool = False,
        **variant: Any,
    ) -> Row:
        """A row of this trial; ``spec`` adds to what the trial itself determines."""
        own = {**self.evaluation(), **spec}
        return self.bare_row(label, own, compute, alike=alike, forget=self.target, **variant)

    def bare_row(
        self,
        label: str,
        spec: Mapping[str, Any],
        compute: Callable[[], tuple[Mapping[str, Estimate], Mapping[str, Any]]],
        alike: bool = False,
        **variant: Any,
    ) -> Row:
        """A row about the original, whatever is forgotten and however that is evaluated."""
        own = {**self.identity, **self.fingerprint, "metrics": VERSION}
        return self.run.row(
            self.name,
            label,
            self.seed,
            {**own, **spec},
            compute,
            sources=tuple(s.record() for s in (*self.sources, *self.recipe.model.sources())),
            device=self.device,
            variant=variant,
            alike=alike,
        )

    @cached_property
    def first(self) -> Self:
        """The trial whose rows of the original and the retrained model this one shares: itself, as
        a rule. Of a forget set that the seed draws another seed's retrained model knows nothing."""
        name = self.experiment.originals_of or self.name
        seed = self.seed if self.experiment.drawn else self.model_seed
        if (name, seed) == (self.name, self.seed):
            return self
        return type(self)(self.run, name, seed, self.target)

    def measure_original(self) -> Row:
        """The row of the model before anything is unlearned."""
        if self.first is not self:
            return self.first.measure_original()

        def compute() -> tuple[dict[str, Estimate], dict[str, Any]]:
            metrics, detail = self.evaluate(self.original)
            return metrics, detail | {"model": self.fit(self.trained_on, self.model_seed)[1]}

        row = self.row(ORIGINAL, self.original_spec, compute)
        oracle = self.experiment.oracle
        return self.with_comparison(row, self.measure_method(oracle)) if oracle else row

    def measure_method(self, label: str, **changes: Any) -> Row:
        """Unlearn with the method of that name, and measure what it did and what it cost.

        ``changes`` are hyper-parameters to change for this row. It is compared with the
        experiment's oracle, which is measured first.
        """
        oracle = self.experiment.oracle
        if label == oracle and self.first is not self:
            return self.first.measure_method(label)
        method = changed(self.methods[label], changes)
        retrained = self.measure_method(oracle) if oracle and label != oracle else None

        def compute() -> tuple[dict[str, Estimate], dict[str, Any]]:
            model, cost, detail = self.unlearn(method)
            metrics, more = self.evaluate(model)
            return metrics | cost, more | detail

        row = self.row(label, {"method": describe(method)}, compute, alike=True, **changes)
        if oracle is not None:
            row = self.with_comparison(row, retrained or row)
        if label == oracle:
            self.check_oracle(row)
        return row

    def measure_null(self, again: int = 1) -> Row:
        """Another retrained model beside the oracle: how far chance alone takes one from the other.

        ``again`` numbers such models; each has a seed of its own.
        """
        oracle = self.experiment.oracle
        if oracle is None:
            raise ConfigError(f"{self.name}: without an oracle there is nothing to compare with")
        retrained = self.measure_method(oracle)
        seed = derive_seed(retrain_seed(self.model_seed), "again", again)

        def compute() -> tuple[dict[str, Estimate], dict[str, Any]]:
            model, meta = self.fit(self.split.retain, seed)
            metrics, detail = self.evaluate(model)
            return metrics, detail | {"model": meta}

        spec = {"method": describe(self.methods[oracle]), "again": again}
        row = self.row(f"{oracle}, again", spec, compute, again=again)
        return self.with_comparison(row, retrained)

    def with_comparison(self, row: Row, retrained: Row) -> Row:
        """The row with what compares it with the retrained model, in the place of the one without."""
        # Derived from two rows, so it is in neither of their keys: worked out every time.
        derived = finite_values(f"{self.name} / {row.method}", self.compare(row, retrained))
        row = row.model_copy(update={"metrics": {**row.metrics, **derived}})
        self.run.rows.add(row)
        return row

    def unlearn(
        self, method: Method
    ) -> tuple[nn.Module, dict[str, Estimate], dict[str, dict[str, Any]]]:
        """The unlearned model, its cost, and where a model comes from that the cache shares."""
        if retrains(method):
            model, meta = self.retrained()
            costs = Costs(Cost(meta["seconds"], meta["peak_memory"]), meta["optimizer_steps"])
            return model, costs.metrics(self.original, model), {"model": meta}
        original = self.original  # trained outside the measured block
        with self.costs() as costs:
            model, detail = self.apply(method, original)
        return model, costs.metrics(self.original, self.inside(model)), detail

    def retrained(self) -> tuple[nn.Module, dict[str, Any]]:
        """The model that never saw the forget set, through the cache as in `fit`."""
        return self.fit(self.split.retain, retrain_seed(self.model_seed))

    def apply(self, method: Method, original: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
        """What the method makes of the original, and what else there is to say about it."""
        return method(original, self.split, self.seed), {}

    @contextlib.contextmanager
    def costs(self) -> Iterator[Costs]:
        """Measure a block: time, memory and optimizer steps."""
        costs = Costs()
        with measure(self.device) as cost, OptimizerSteps() as steps:
            yield costs
        costs.cost, costs.optimizer_steps = cost, steps.count


def retrains(method: Any) -> bool:
    """Whether a method is training anew without the forget set, as `Trial.retrained` does."""
    return isinstance(method, Retrain) and method.mode == "full"


def changed(method: Method, changes: Mapping[str, Any]) -> Method:
    """The method with other hyper-parameters, its own or, failing that, those of its training."""
    for name, value in changes.items():
        known = hyper_parameters(method)
        what = type(method).__name__
        if name not in known:
            raise ConfigError(
                f"{what} has no hyper-parameter {brief(name)}; {did_you_mean(name, known)}"
            )
        if known[name]:
            method = altered(method, what, **{name: value})
        else:
            train = altered(method.train, f"{what}, train", **{name: value})
            method = altered(method, what, train=train)
    return method


def hyper_parameters(method: Any) -> dict[str, bool]:
    """What `changed` can change, and whether it is the method's own or else its training's."""
    own = {f.name: True for f in fields(method)}
    return {f.name: False for f in fields(TrainConfig) if "train" in own} | own


@dataclass
class Costs:
    """What a block cost; filled when it ends."""

    cost: Cost = field(default_factory=Cost)
    optimizer_steps: int = 0

    def metrics(self, before: nn.Module, after: nn.Module) -> dict[str, Estimate]:
        """The costs as a row's metrics, with the share of weights that changed."""
        out = {
            "seconds": Estimate(self.cost.seconds),
            "optimizer_steps": Estimate(self.optimizer_steps),
            "changed_weights": changed_weights(before, after),
        }
        if self.cost.peak_memory is not None:
            out["peak_memory"] = Estimate(self.cost.peak_memory)
        return out


class OptimizerSteps:
    """Counts every step of every PyTorch optimizer inside its block.

    ``after``, where given, is called with the count after each of them.
    """

    def __init__(self, after: Callable[[int], None] | None = None) -> None:
        self.count, self.after = 0, after

    def __enter__(self) -> OptimizerSteps:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self._handle = register_optimizer_step_post_hook(self._step)
        return self

    def _step(self, *_: object) -> None:
        self.count += 1
        if self.after is not None:
            self.after(self.count)

    def __exit__(self, *_: object) -> None:
        self._handle.remove()
