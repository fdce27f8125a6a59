"""Image classifiers on trial: what the classification notebooks share."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from ..data import Classification, ForgetSplit, ImageSet, forget_indices, make_split
from ..methods import METHODS, Method, Retrain
from ..methods.baselines.retrain import retrain_seed
from ..methods.iau import GradientRestriction
from ..methods.worst_case import SELECTORS, example_losses
from ..metrics import (
    VERSION,
    Cost,
    Estimate,
    ShadowAttack,
    accuracies_on_test,
    changed_weights,
    evaluate_classifier,
    gap_to_retrained,
    mean,
    measure,
    relearned_accuracy,
)
from ..models import MODELS, Recipe, TrainConfig, default_device, predict
from ..registry import ConfigError, build, describe, did_you_mean
from ..seeding import derive_seed
from .cache import CacheWarning, digest
from .records import Row, Value, now
from .run import Replication

__all__ = ["ORIGINAL", "ClassificationTrial", "choose", "trials"]

#: The method column's word for the model before unlearning.
ORIGINAL = "Original"

#: What a model can be trained for, by the name in a profile's ``task``.
TASKS = {"classification": Classification, "gradient_restriction": GradientRestriction}


def _train_config(spec: Mapping[str, Any]) -> TrainConfig:
    return build({"train": TrainConfig}, {"use": "train", **spec}, "training configuration")


def _progress(checkpoint: Path) -> dict[str, float]:
    """Seconds and steps of a training that was interrupted; a damaged checkpoint is removed."""
    none = {"seconds": 0.0, "step": 0}
    if not checkpoint.exists():
        return none
    try:
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")
        return {k: state[k] for k in none}
    except (OSError, RuntimeError, EOFError, ValueError, LookupError, UnpicklingError) as error:
        warnings.warn(
            f"the checkpoint {checkpoint.name[:12]} is damaged ({error}); its training starts again",
            CacheWarning,
            stacklevel=2,
        )
        checkpoint.unlink()
        return none


class ClassificationTrial:
    """One experiment, forget request and seed; the original model is made when it is needed.

    ``target`` is one of ``run.targets(experiment)``: a class, a size, or the name of a rule that
    chooses the forget set by the original model. ``seed`` fixes the training of the original,
    the draw of a random forget set, the retrained model and the method's own randomness, each
    through a seed of its own (`derive_seed`), so that the retrained model starts elsewhere.
    """

    def __init__(self, run: Replication, experiment: str, seed: int, target: Any) -> None:
        self.run, self.name, self.seed, self.target = run, experiment, seed, target
        self.experiment = run.experiment(experiment)
        self.data = run.data(experiment)
        classes = len(self.data.classes)
        spec = build(MODELS, self.experiment.model, "model", classes=classes)
        task = build(TASKS, self.experiment.task, "task", classes=classes)
        self.recipe = Recipe(spec, task, _train_config(self.experiment.train))
        self.device = default_device()

    @cached_property
    def split(self) -> ForgetSplit:
        (kind,) = self.experiment.forget
        if kind == "chosen":
            if self.experiment.select[self.target].get("by") == "class":
                raise ConfigError(f"{self.name}: {self.target!r} chooses classes, not a forget set")
            chosen = self.select(self.target).detail["index"]
            split = forget_indices(self.data, torch.tensor(chosen))
        else:
            split = make_split(self.data, {kind: self.target}, self.seed)
        if self.experiment.judged_on == "validation":
            if self.data.validation is None:
                raise ConfigError(f"{self.name} is judged on validation data, but has none")
            split = replace(split, test=self.data.validation, test_forget=None, test_retain=None)
        self.check_split(split)
        return split

    def select(self, name: str) -> Row:
        """What a rule of the experiment's ``select`` chooses, by the original model.

        The row's detail holds ``index``: positions in the training set or, for a rule about
        classes, their numbers.
        """
        rule = dict(self.experiment.select[name])
        classes = rule.get("by") == "class"
        among = len(self.data.classes) if classes else len(self.data.train)
        budget = round(rule.pop("fraction") * among)
        rule = {k: _train_config(v) if isinstance(v, dict) else v for k, v in rule.items()}
        selector = build(SELECTORS, rule, "selection rule")

        def compute() -> tuple[dict[str, Estimate], dict[str, Any]]:
            original, task = self.original, Classification(len(self.data.classes))
            with self.costs() as costs:
                selection = selector.select(
                    original, self.data.train, task, budget, self.seed, self.recipe
                )
            metrics = {"seconds": Estimate(costs.cost.seconds)}
            if not classes:
                losses = example_losses(original, self.data.train)[selection.index]
                metrics["selected_loss"] = mean(losses)
            if selection.log:
                last = selection.log[-1]
                metrics["overlap_initial"] = Estimate(100 * last["overlap_initial"], budget)
                metrics["binary_weights"] = Estimate(100 * last["binary_share"], budget)
            return metrics, {"index": selection.index.tolist(), "log": [*selection.log]}

        spec = {"select": describe(selector), "budget": budget}
        return self._row("Selection", spec, compute, forget=name)

    @cached_property
    def methods(self) -> dict[str, Method]:
        """The experiment's methods under the names that the chapter gives them.

        Where the experiment is tuned, with the hyper-parameters that the search chose.
        """
        out: dict[str, Method] = {}
        chosen = choose(self.run, self.experiment.tuned) if self.experiment.tuned else {}
        for label, spec in self.experiment.methods.items():
            nested = {k: _train_config(v) if isinstance(v, dict) else v for k, v in spec.items()}
            if "method" in spec:  # a method about another one, which it names
                if spec["method"] not in out:
                    raise ConfigError(
                        f"{label} is about {spec['method']!r}, no method before it; "
                        f"{did_you_mean(spec['method'], out)}"
                    )
                nested["method"] = out[spec["method"]]
            method = build(METHODS, nested, "method", recipe=self.recipe)
            out[label] = changed(method, chosen.get(label, {}))
        return out

    @cached_property
    def original(self) -> nn.Module:
        return self.fit(self.data.train, self.seed)[0]

    @cached_property
    def shadow(self) -> ShadowAttack:
        """The attack on models of this recipe and data, fitted once in a run: no seed changes it."""
        key = digest([self.identity, self.fingerprints[0], self.experiment.shadow])
        if key not in self.run.shared:
            self.run.shared[key] = ShadowAttack.fit(
                self.data.train,
                self.recipe,
                validation=self.data.validation,
                device=self.device,
                **self.experiment.shadow,
            )
        return self.run.shared[key]

    @cached_property
    def random_model(self) -> nn.Module:
        """What ZRF compares with: the same architecture, freshly initialised."""
        return self.recipe.build(derive_seed(self.seed, "zrf")).to(self.device)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What determines a trained model besides its data and seed."""
        weights = [s.sha256 for s in self.recipe.model.sources()]
        return {"recipe": describe(self.recipe), **({"weights": weights} if weights else {})}

    def fit(self, data: ImageSet, seed: int) -> tuple[nn.Module, dict[str, Any]]:
        """A model of the recipe through the cache, and where it comes from: its cost included.

        Where rows must come from clean commits, so must the models behind them.
        """
        held = self.data.validation if self.recipe.train.patience is not None else None
        validated = {} if held is None else {"validation": self.fingerprints[2]}
        key = digest({**self.identity, "data": data.fingerprint(), "seed": seed, **validated})
        checkpoint = self.run.cache.checkpoint(key)

        def fit() -> tuple[nn.Module, dict[str, Any]]:
            before = _progress(checkpoint)
            with self.costs() as costs:
                name = f"{self.name}, seed {seed}"
                model = self.recipe.fit(
                    data,
                    seed,
                    validation=held,
                    device=self.device,
                    name=name,
                    checkpoint=checkpoint,
                )
            return model, {
                "seconds": before["seconds"] + costs.cost.seconds,
                "peak_memory": costs.cost.peak_memory,
                "optimizer_steps": before["step"] + costs.optimizer_steps,
                "commit": self.run.commit,
                "dirty": self.run.dirty,
                "date": now(),
                "device": str(self.device),
                "threads": torch.get_num_threads(),
            }

        def acceptable(meta: dict[str, Any]) -> bool:
            return not (self.run.clean_only and meta["dirty"])

        model, meta = self.run.cache.model(key, lambda: self.recipe.build(seed), fit, acceptable)
        return model.to(self.device), meta

    def row(
        self,
        label: str,
        spec: Mapping[str, Any],
        compute: Callable[[], tuple[Mapping[str, Estimate], Mapping[str, Any]]],
        **variant: Any,
    ) -> Row:
        """A row of this trial; ``spec`` adds to what the trial itself determines."""
        index = self.split.forget.index.contiguous().numpy()
        own: dict[str, Any] = {"forget": hashlib.sha256(index).hexdigest()}
        e = self.experiment
        if e.attack != "entropy":
            own |= {"attack": e.attack, **({"shadow": e.shadow} if e.attack == "shadow" else {})}
        if e.relearn is not None:
            own["relearn"] = e.relearn
        return self._row(label, {**own, **spec}, compute, forget=self.target, **variant)

    def _row(
        self,
        label: str,
        spec: Mapping[str, Any],
        compute: Callable[[], tuple[Mapping[str, Estimate], Mapping[str, Any]]],
        **variant: Any,
    ) -> Row:
        validated = self.recipe.train.patience is not None
        own = {
            **self.identity,
            "train": self.fingerprints[0],
            "test": self.fingerprints[2 if self.experiment.judged_on == "validation" else 1],
            **({"validation": self.fingerprints[2]} if validated else {}),
            "metrics": VERSION,
        }
        return self.run.row(
            self.name,
            label,
            self.seed,
            {**own, **spec},
            compute,
            sources=tuple(s.record() for s in (*self.data.sources, *self.recipe.model.sources())),
            device=self.device,
            variant=variant,
        )

    @cached_property
    def fingerprints(self) -> tuple[str, str, str | None]:
        return self.run.fingerprints(self.name)

    def sides(self, model: nn.Module) -> dict[str, Estimate]:
        """Test accuracies alone, for sweeps; the training set is not looked at."""
        return accuracies_on_test(predict(model, self.split.test), self.split)

    def measure_original(self, *, sides_only: bool = False) -> Row:
        def compute() -> tuple[dict[str, Estimate], dict[str, Any]]:
            if sides_only:
                return self.sides(self.original), {}
            return self.evaluate(self.original), {"model": self.fit(self.data.train, self.seed)[1]}

        row = self.row(ORIGINAL, {"method": None, "sides_only": sides_only}, compute)
        oracle = self.experiment.oracle
        return row if sides_only or not oracle else self.with_gap(row, self.measure_method(oracle))

    def measure_method(self, label: str, **changes: Any) -> Row:
        """Unlearn with the method of that name, and measure what it did and what it cost.

        ``changes`` are hyper-parameters to change for this row. The gap compares with the
        experiment's oracle, which is measured first.
        """
        method = changed(self.methods[label], changes)
        oracle = self.experiment.oracle
        retrained = self.measure_method(oracle) if oracle and label != oracle else None

        def compute() -> tuple[dict[str, Estimate], dict[str, Any]]:
            model, cost, detail = self.unlearn(method)
            return self.evaluate(model) | cost, detail

        row = self.row(label, {"method": describe(method)}, compute, **changes)
        if oracle is not None:
            row = self.with_gap(row, retrained or row)
        if label == oracle:
            self.check_oracle(row)
        return row

    def with_gap(self, row: Row, retrained: Row) -> Row:
        """The row with its gap to the retrained model, in the place of the one without."""
        # Derived from two rows, so it is in neither of their keys: worked out every time.
        gap = Value(**gap_to_retrained(row.metrics, retrained.metrics)._asdict())
        row = row.model_copy(update={"metrics": {**row.metrics, "gap": gap}})
        self.run.rows.add(row)
        return row

    def evaluate(self, model: nn.Module) -> dict[str, Estimate]:
        """The metrics that the experiment asks for."""
        e = self.experiment
        if e.attack == "entropy":
            out = evaluate_classifier(model, self.split, random_model=self.random_model)
        else:
            shadow = self.shadow if e.attack == "shadow" else None
            out = evaluate_classifier(model, self.split, shadow=shadow)
        if e.relearn is not None:
            probe = relearned_accuracy(model, self.split, self.seed, **e.relearn)
            out["relearned_accuracy"] = probe
        return out

    def unlearn(
        self, method: Method
    ) -> tuple[nn.Module, dict[str, Estimate], dict[str, dict[str, Any]]]:
        """The unlearned model, its cost, and where a model comes from that the cache shares."""
        if isinstance(method, Retrain) and method.mode == "full":
            model, meta = self.fit(self.split.retain, retrain_seed(self.seed))
            costs = Costs(Cost(meta["seconds"], meta["peak_memory"]), meta["optimizer_steps"])
            return model, costs.metrics(self.original, model), {"model": meta}
        original = self.original  # trained outside the measured block
        with self.costs() as costs:
            model = method(original, self.split, self.seed)
        return model, costs.metrics(self.original, model), {}

    @contextlib.contextmanager
    def costs(self) -> Iterator[Costs]:
        """Measure a block: time, memory and optimizer steps."""
        costs = Costs()
        with measure(self.device) as cost, OptimizerSteps() as steps:
            yield costs
        costs.cost, costs.optimizer_steps = cost, steps.count

    def check_split(self, split: ForgetSplit) -> None:
        forget, retain = set(split.forget.index.tolist()), set(split.retain.index.tolist())
        self.run.invariant(
            "forget and retain are disjoint and complete",
            self.name,
            self.seed,
            not forget & retain and len(forget) + len(retain) == len(self.data.train),
            f"{len(forget)} + {len(retain)} of {len(self.data.train)}",
        )

    def check_oracle(self, row: Row) -> None:
        """What must be true of a model that never saw the forget set."""
        value = {k: m.value for k, m in row.metrics.items()}
        self.run.invariant(
            "the oracle's gap to itself is 0",
            self.name,
            self.seed,
            value["gap"] == 0,
            f"{value['gap']}",
        )
        if self.recipe.train.max_steps is not None:
            return  # a few steps teach nothing: the rest is true of a model that was trained
        (kind,) = self.experiment.forget
        if kind == "class" and self.experiment.judged_on == "test":
            self.run.invariant(
                "the retrained model's accuracy on the forgotten class is 0",
                self.name,
                self.seed,
                value["forget_accuracy"] == value["test_forget_accuracy"] == 0,
                f"{value['forget_accuracy']:.1f} % (train), {value['test_forget_accuracy']:.1f} % (test)",
            )
        if kind in ("fraction", "count"):
            # Both are held-out images to it: they may differ by their sampling noise only.
            forget, test = row.metrics["forget_accuracy"], row.metrics["test_accuracy"]
            p = test.value / 100
            noise = 100 * (p * (1 - p) * (1 / forget.n + 1 / test.n)) ** 0.5
            self.run.invariant(
                "the retrained model's forget accuracy is near its test accuracy (4 sigma)",
                self.name,
                self.seed,
                abs(forget.value - test.value) <= 4 * noise + 1e-9,
                f"{forget.value:.1f} % and {test.value:.1f} %, sigma {noise:.1f} points",
            )


def trials(run: Replication, prefix: str) -> Iterator[ClassificationTrial]:
    """Every experiment whose name begins with ``prefix``, on each of its seeds and targets."""
    for name in run.experiments(prefix):
        for seed in run.seeds_of(name):
            for target in run.targets(name):
                yield ClassificationTrial(run, name, seed, target)


def changed(method: Method, changes: Mapping[str, Any]) -> Method:
    """The method with other hyper-parameters, its own or, failing that, those of its training."""
    for name, value in changes.items():
        own = {f.name for f in fields(method)}
        if name in own:
            method = replace(method, **{name: value})
        elif "train" in own and name in {f.name for f in fields(TrainConfig)}:
            method = replace(method, train=replace(method.train, **{name: value}))
        else:
            raise ConfigError(f"{type(method).__name__} has no hyper-parameter {name!r}")
    return method


def choose(run: Replication, tuning: str) -> dict[str, dict[str, Any]]:
    """The hyper-parameters that an experiment's search chooses: method -> name -> value.

    Every value is tried on every seed and target of that experiment; the one with the smallest
    mean gap to the retrained model wins, the earlier one of equals.
    """
    if tuning not in run.shared:
        search = run.experiment(tuning).search
        gaps: dict[str, dict[tuple, float]] = {label: {} for label in search}
        for seed in run.seeds_of(tuning):
            for target in run.targets(tuning):
                trial = ClassificationTrial(run, tuning, seed, target)
                for label, grid in search.items():
                    for values in itertools.product(*grid.values()):
                        row = trial.measure_method(label, **dict(zip(grid, values, strict=True)))
                        gap = row.metrics["gap"].value
                        gaps[label][values] = gaps[label].get(values, 0.0) + gap
        run.shared[tuning] = {
            label: dict(zip(search[label], min(sums, key=sums.get), strict=True))
            for label, sums in gaps.items()
        }
    return run.shared[tuning]


@dataclass
class Costs:
    """What a block cost; filled when it ends."""

    cost: Cost = field(default_factory=Cost)
    optimizer_steps: int = 0

    def metrics(self, before: nn.Module, after: nn.Module) -> dict[str, Estimate]:
        out = {
            "seconds": Estimate(self.cost.seconds),
            "optimizer_steps": Estimate(self.optimizer_steps),
            "changed_weights": changed_weights(before, after),
        }
        if self.cost.peak_memory is not None:
            out["peak_memory"] = Estimate(self.cost.peak_memory)
        return out


class OptimizerSteps:
    """Counts every step of every PyTorch optimizer inside its block."""

    count = 0

    def __enter__(self) -> OptimizerSteps:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self._handle = register_optimizer_step_post_hook(self._step)
        return self

    def _step(self, *_: object) -> None:
        self.count += 1

    def __exit__(self, *_: object) -> None:
        self._handle.remove()
