"""Image classifiers on trial: what the classification notebooks share."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from ..data import ForgetSplit, ImageSet, make_split
from ..methods import METHODS, Method, Retrain
from ..methods.baselines.retrain import retrain_seed
from ..metrics import (
    VERSION,
    Cost,
    Estimate,
    accuracies_on_test,
    changed_weights,
    evaluate_classifier,
    gap_to_retrained,
    measure,
)
from ..models import MODELS, Recipe, TrainConfig, default_device, predict
from ..registry import build, describe
from ..seeding import derive_seed
from .cache import CacheWarning, digest
from .records import Row, Value, now
from .run import Replication

__all__ = ["ORIGINAL", "ClassificationTrial"]

#: The method column's word for the model before unlearning.
ORIGINAL = "Original"


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

    ``target`` is one of ``run.targets(experiment)``. ``seed`` fixes the training of the original,
    the draw of a random forget set, the retrained model and the method's own randomness, each
    through a seed of its own (`derive_seed`), so that the retrained model starts elsewhere.
    """

    def __init__(self, run: Replication, experiment: str, seed: int, target: Any) -> None:
        self.run, self.name, self.seed, self.target = run, experiment, seed, target
        self.experiment = run.experiment(experiment)
        self.data = run.data(experiment)
        (kind,) = self.experiment.forget
        self.split = make_split(self.data, {kind: target}, seed)
        spec = build(MODELS, self.experiment.model, "model", classes=len(self.data.classes))
        self.recipe = Recipe(spec, self.split.task, _train_config(self.experiment.train))
        self.device = default_device()
        self.check_split(self.split)

    @cached_property
    def methods(self) -> dict[str, Method]:
        """The experiment's methods under the names that the chapter gives them."""
        out = {}
        for label, spec in self.experiment.methods.items():
            nested = {k: _train_config(v) if isinstance(v, dict) else v for k, v in spec.items()}
            out[label] = build(METHODS, nested, "method", recipe=self.recipe)
        return out

    @cached_property
    def original(self) -> nn.Module:
        return self.fit(self.data.train, self.seed)[0]

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
        key = digest({**self.identity, "data": data.fingerprint(), "seed": seed})
        checkpoint = self.run.cache.checkpoint(key)

        def fit() -> tuple[nn.Module, dict[str, Any]]:
            before = _progress(checkpoint)
            with self.costs() as costs:
                name = f"{self.name}, seed {seed}"
                model = self.recipe.fit(
                    data, seed, device=self.device, name=name, checkpoint=checkpoint
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
        own = {
            **self.identity,
            "train": self.fingerprints[0],
            "test": self.fingerprints[1],
            "forget": hashlib.sha256(index).hexdigest(),
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
            variant={"forget": self.target, **variant},
        )

    @cached_property
    def fingerprints(self) -> tuple[str, str]:
        return self.run.fingerprints(self.name)

    def sides(self, model: nn.Module) -> dict[str, Estimate]:
        """Test accuracies alone, for sweeps; the training set is not looked at."""
        return accuracies_on_test(predict(model, self.split.test), self.split)

    def measure_original(self, *, sides_only: bool = False) -> Row:
        def compute() -> tuple[dict[str, Estimate], dict[str, Any]]:
            if sides_only:
                return self.sides(self.original), {}
            metrics = evaluate_classifier(self.original, self.split, self.random_model)
            return metrics, {"model": self.fit(self.data.train, self.seed)[1]}

        return self.row(ORIGINAL, {"method": None, "sides_only": sides_only}, compute)

    def measure_method(self, label: str) -> Row:
        """Unlearn with the method of that name, and measure what it did and what it cost.

        The gap compares with the experiment's oracle, which is measured first.
        """
        method = self.methods[label]
        oracle = self.experiment.oracle
        retrained = self.measure_method(oracle) if oracle and label != oracle else None

        def compute() -> tuple[dict[str, Estimate], dict[str, Any]]:
            model, cost, detail = self.unlearn(method)
            return evaluate_classifier(model, self.split, self.random_model) | cost, detail

        row = self.row(label, {"method": describe(method)}, compute)
        if oracle is not None:
            # Derived from two rows, so it is in neither of their keys: worked out every time.
            reference = (retrained or row).metrics
            gap = Value(**gap_to_retrained(row.metrics, reference)._asdict())
            row = row.model_copy(update={"metrics": {**row.metrics, "gap": gap}})
            self.run.rows.add(row)
        if label == oracle:
            self.check_oracle(row)
        return row

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
        if kind == "class":
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
