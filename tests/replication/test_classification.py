from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from unlearn_core.data import ForgetSplit
from unlearn_core.methods import Method
from unlearn_core.methods.baselines.retrain import retrain_seed
from unlearn_core.models import TrainingError
from unlearn_core.replication import classification
from unlearn_core.replication.cache import CacheWarning
from unlearn_core.replication.classification import (
    ORIGINAL,
    ClassificationTrial,
    Costs,
    OptimizerSteps,
)
from unlearn_core.replication.records import Row, Value
from unlearn_core.replication.run import InvariantError, Replication

ROOT = Path(__file__).resolve().parents[2]

#: These two are measured, so they differ from run to run.
MEASURED = {"seconds", "peak_memory"}

Numbers = dict[str, dict[str, float]]


def numbers(rows: list[Row]) -> Numbers:
    """Every metric of every row that must come out the same again."""
    return {
        f"{r.method}, seed {r.seed}": {
            k: v.value for k, v in r.metrics.items() if k not in MEASURED
        }
        for r in rows
    }


def replication(cache: Path | None = None, **environment: str) -> Replication:
    with pytest.MonkeyPatch.context() as patch:
        if cache is not None:
            patch.setenv("UNLEARN_CACHE", str(cache))
        for key, value in environment.items():
            patch.setenv(key, value)
        return Replication("tiny", "ci", "build/ci")


def measure_all(run: Replication) -> Numbers:
    for seed in run.seeds:
        trial = ClassificationTrial(run, "full_class", seed, "solid cross")
        trial.measure_original()
        for label in trial.methods:
            trial.measure_method(label)
    return numbers(list(run.rows))


def experiment(tiny: dict[str, Any]) -> dict[str, Any]:
    return tiny["profiles"]["ci"]["experiments"]["full_class"]


def trial_of(project: Any, tiny: dict[str, Any]) -> ClassificationTrial:
    """The first trial of the (changed) paper."""
    project.paper("tiny", tiny)
    run = replication()
    return ClassificationTrial(run, "full_class", 0, run.targets("full_class")[0])


class TestRun:
    @pytest.fixture
    def run(self, project: Any) -> Replication:
        return replication()

    def test_the_oracle_and_the_invariants(self, run: Replication) -> None:
        """Fails where the oracle has seen what is to be forgotten, or is compared with another
        run of itself."""
        found = measure_all(run)
        assert list(found) == [
            f"{m}, seed {s}" for s in (0, 1) for m in (ORIGINAL, "Retrain", "Fine-tune", "SSD")
        ]
        for seed in (0, 1):
            assert found[f"Retrain, seed {seed}"]["gap"] == 0
            assert found[f"Retrain, seed {seed}"]["forget_accuracy"] == 0
            assert found[f"Retrain, seed {seed}"]["test_forget_accuracy"] == 0
            assert found[f"Fine-tune, seed {seed}"]["gap"] > 0
            assert "gap" not in found[f"{ORIGINAL}, seed {seed}"]
            # The original did learn the class, so that there is something to forget.
            assert found[f"{ORIGINAL}, seed {seed}"]["forget_accuracy"] > 50
        checked = [(i.seed, i.name) for i in run.invariants]
        names = (
            "forget and retain are disjoint and complete",
            "the oracle's gap to itself is 0",
            "the retrained model's accuracy on the forgotten class is 0",
        )
        assert checked == [(seed, name) for seed in (0, 1) for name in names]
        assert all(i.holds for i in run.invariants)
        assert run.invariants[0].detail == "8 + 72 of 80"

    def test_steps_are_those_of_the_training(self, run: Replication) -> None:
        found = measure_all(run)
        # 72 images: 5 batches of 16 for 6 epochs, 3 batches of 32 for 2 epochs.
        assert found["Retrain, seed 0"]["optimizer_steps"] == 30
        assert found["Fine-tune, seed 0"]["optimizer_steps"] == 6
        assert found["SSD, seed 0"]["optimizer_steps"] == 0
        assert found["Retrain, seed 0"]["changed_weights"] > 90
        assert 0 < found["SSD, seed 0"]["changed_weights"] < 90

    def test_the_same_numbers_from_two_caches(self, project: Any, tmp_path: Path) -> None:
        """Fails where something draws from a global random state, or depends on what ran first."""
        first = measure_all(replication(tmp_path / "one"))
        torch.manual_seed(123)
        run = replication(tmp_path / "two")
        for seed in reversed(run.seeds):
            trial = ClassificationTrial(run, "full_class", seed, "solid cross")
            for label in ("SSD", "Fine-tune", "Retrain"):
                trial.measure_method(label)
            trial.measure_original()
        assert numbers(list(run.rows)) == first

    def test_seeds_differ(self, run: Replication) -> None:
        found = measure_all(run)
        assert found[f"{ORIGINAL}, seed 0"] != found[f"{ORIGINAL}, seed 1"]

    def test_a_second_run_trains_nothing(
        self, project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = measure_all(replication(tmp_path / "cache"))
        with OptimizerSteps() as steps:
            assert measure_all(replication(tmp_path / "cache")) == first
        assert steps.count == 0


class TestOracle:
    def test_one_that_has_seen_the_class_breaks_an_invariant(
        self, project: Any, tiny: dict[str, Any]
    ) -> None:
        """Fails where the check of the oracle can't fail."""
        experiment(tiny)["oracle"] = "Fine-tune"
        trial = trial_of(project, tiny)
        trial.measure_method("Fine-tune")
        broken = [i.name for i in trial.run.invariants if not i.holds]
        assert broken == ["the retrained model's accuracy on the forgotten class is 0"]
        trial.run.claim("C1")(lambda rows, seed: 0.0)
        with pytest.raises(InvariantError, match="accuracy on the forgotten class is 0"):
            trial.run.finish()

    @pytest.mark.parametrize(
        ("forget", "test", "holds"),
        [(81.0, 80.0, True), (75.0, 80.0, True), (99.0, 80.0, False), (60.0, 80.0, False)],
    )
    def test_random_sets_are_held_out_images_to_it(
        self,
        project: Any,
        tiny: dict[str, Any],
        make_row: Callable[..., Row],
        forget: float,
        test: float,
        holds: bool,
    ) -> None:
        """Fails where an oracle that remembers a random forget set passes. With 1000 images each
        at 80 %, sigma is 1.8 points, so 4 sigma are 7.2."""
        experiment(tiny)["forget"] = {"count": [8]}
        trial = trial_of(project, tiny)
        metrics = {
            "forget_accuracy": Value(value=forget, n=1000),
            "test_accuracy": Value(value=test, n=1000),
            "gap": Value(value=0.0),
        }
        trial.check_oracle(make_row().model_copy(update={"metrics": metrics}))
        (found,) = (i for i in trial.run.invariants if "near its test accuracy" in i.name)
        assert found.holds is holds
        assert found.detail.endswith("sigma 1.8 points")

    def test_a_gap_to_itself_is_noticed(
        self, project: Any, tiny: dict[str, Any], make_row: Callable[..., Row]
    ) -> None:
        row = make_row(gap=0.5, forget_accuracy=0.0, test_forget_accuracy=0.0)
        trial = trial_of(project, tiny)
        trial.check_oracle(row)
        assert [i.name for i in trial.run.invariants if not i.holds] == [
            "the oracle's gap to itself is 0"
        ]

    def test_a_few_steps_are_not_held_to_what_training_teaches(self, project: Any) -> None:
        """Fails where a rehearsal depends on what two steps happen to learn."""
        run = replication(UNLEARN_REHEARSE="1")
        trial = ClassificationTrial(run, "full_class", 0, "solid cross")
        assert trial.measure_method("Retrain").metrics["optimizer_steps"].value == 2
        assert [i.name for i in run.invariants] == [
            "forget and retain are disjoint and complete",
            "the oracle's gap to itself is 0",
        ]

    def test_a_split_that_loses_an_image_is_noticed(
        self, project: Any, tiny: dict[str, Any]
    ) -> None:
        trial = trial_of(project, tiny)
        whole = trial.split.retain
        short = whole.subset(torch.arange(len(whole) - 1))
        trial.check_split(ForgetSplit(**vars(trial.split) | {"retain": short}))
        trial.check_split(ForgetSplit(**vars(trial.split) | {"forget": whole}))
        assert [(i.holds, i.detail) for i in trial.run.invariants] == [
            (True, "8 + 72 of 80"),
            (False, "8 + 71 of 80"),
            (False, "72 + 72 of 80"),
        ]


#: What a run does, and where it stops for its killer: "checkpoint n" after the n-th checkpoint.
SCRIPT = """
import json, sys, time
from pathlib import Path

import torch

torch.set_num_threads(1)
from unlearn_core.models import training
from unlearn_core.replication.classification import ClassificationTrial, OptimizerSteps
from unlearn_core.replication.run import Replication

stop_at, mark = int(sys.argv[1]), Path(sys.argv[2])
save, saved = training._save_checkpoint, []

def save_then_wait(file, *state):
    save(file, *state)
    saved.append(file)
    if len(saved) == stop_at:
        mark.write_text(file.name)
        time.sleep(600)

training._save_checkpoint = save_then_wait
run = Replication("tiny", "ci", "build/ci")
with OptimizerSteps() as steps:
    for seed in run.seeds:
        trial = ClassificationTrial(run, "full_class", seed, "solid cross")
        trial.measure_original()
        for label in trial.methods:
            trial.measure_method(label)
rows = [r.model_dump(mode="json") for r in run.rows]
mark.write_text(json.dumps({"rows": rows, "steps": steps.count}))
"""


class Child:
    """A run in a process of its own, which stops at its n-th checkpoint (0: nowhere)."""

    def __init__(self, tmp_path: Path, root: Path, stop_at: int) -> None:
        self.mark = tmp_path / f"mark-{time.monotonic_ns()}"
        script = tmp_path / "script.py"
        script.write_text(SCRIPT)
        environment = os.environ | {
            "UNLEARN_ROOT": str(root),
            "UNLEARN_CACHE": str(tmp_path / "cache"),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(stop_at), str(self.mark)], env=environment
        )

    def wait_for_mark(self) -> None:
        while not self.mark.exists():
            assert self.process.poll() is None, "the run ended before it reached its mark"
            time.sleep(0.05)

    def kill(self) -> None:
        self.wait_for_mark()
        os.kill(self.process.pid, signal.SIGKILL)
        assert self.process.wait(20) == -signal.SIGKILL

    def finish(self) -> dict[str, Any]:
        assert self.process.wait(300) == 0
        return json.loads(self.mark.read_text())


def test_a_run_that_is_killed_goes_on_where_it_was(project: Any, tmp_path: Path) -> None:
    """Fails where a kill costs more than an epoch, or leaves a trace in the numbers: a resumed
    training that sees other batches, or whose cost counts its last part only."""
    # In the original's training: its third checkpoint, of six epochs.
    Child(tmp_path, project.root, stop_at=3).kill()
    cache = tmp_path / "cache"
    assert len(list(cache.rglob("*.checkpoint"))) == 1
    assert not list(cache.rglob("meta.json"))
    # Three more end that training; the second one of the retraining is the fifth.
    Child(tmp_path, project.root, stop_at=5).kill()
    assert [f.parents[2].name for f in cache.rglob("meta.json")].count("rows") == 1
    done = Child(tmp_path, project.root, stop_at=0).finish()
    # 20 of the retraining's 30, 6 of fine-tuning; then seed 1 whole: 30 + 30 + 6.
    assert done["steps"] == 20 + 6 + 66
    assert not list(cache.rglob("*.checkpoint"))

    uninterrupted = measure_all(replication(tmp_path / "another cache"))
    rows = [Row.model_validate(r) for r in done["rows"]]
    assert numbers(rows) == uninterrupted
    assert uninterrupted["Retrain, seed 0"]["optimizer_steps"] == 30


class TestCheckpoint:
    def leave_one(self, trial: ClassificationTrial, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The checkpoint of a training that was stopped after its second epoch."""
        from unlearn_core.models import training

        save, saved = training._save_checkpoint, []

        def stop(file: Path, *state: Any) -> None:
            save(file, *state)
            saved.append(file)
            if len(saved) == 2:
                raise KeyboardInterrupt

        monkeypatch.setattr(training, "_save_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            _ = trial.original
        monkeypatch.setattr(training, "_save_checkpoint", save)
        return saved[0]

    @pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b""])
    def test_a_damaged_one_is_said_and_not_used(
        self,
        project: Any,
        tiny: dict[str, Any],
        monkeypatch: pytest.MonkeyPatch,
        damage: Callable[[bytes], bytes],
    ) -> None:
        """Fails where a damaged checkpoint ends every later run until somebody deletes it."""
        trial = trial_of(project, tiny)
        file = self.leave_one(trial, monkeypatch)
        file.write_bytes(damage(file.read_bytes()))
        with pytest.warns(CacheWarning, match="checkpoint .* is damaged"), OptimizerSteps() as n:
            _ = trial.original
        assert n.count == 30
        assert not file.exists()

    def test_a_whole_one_is_used(
        self, project: Any, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trial = trial_of(project, tiny)
        self.leave_one(trial, monkeypatch)
        with OptimizerSteps() as steps:
            _, meta = trial.fit(trial.data.train, trial.seed)
        assert steps.count == 20
        assert meta["optimizer_steps"] == 30


class TestNaN:
    def test_a_method_that_diverges_is_named(self, project: Any, tiny: dict[str, Any]) -> None:
        """Fails where NaN weights are measured: they predict one class, a plausible accuracy."""
        experiment(tiny)["methods"]["Fine-tune"]["train"]["lr"] = 1e30
        trial = trial_of(project, tiny)
        with pytest.raises(TrainingError, match=r"fine_tune: the loss is (nan|inf) at step \d"):
            trial.measure_method("Fine-tune")
        assert [r.method for r in trial.run.rows] == ["Retrain"]

    def test_an_original_that_diverges_is_named(self, project: Any, tiny: dict[str, Any]) -> None:
        experiment(tiny)["train"]["lr"] = 1e30
        trial = trial_of(project, tiny)
        with pytest.raises(TrainingError, match=r"full_class, seed 0: the loss is .* at step \d"):
            trial.measure_original()
        assert len(trial.run.rows) == 0


@dataclass(frozen=True)
class Sleep(Method):
    """Does nothing, for a while; takes ``steps`` optimizer steps at a learning rate of 0."""

    name: ClassVar[str] = "sleep"
    needs: ClassVar[frozenset[str]] = frozenset()
    draws: ClassVar[bool] = False

    seconds: float = 0.05
    steps: int = 3

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        for _ in range(self.steps):
            optimizer.step()
        time.sleep(self.seconds)
        return model


class TestCost:
    def test_it_is_that_of_the_method_alone(
        self, project: Any, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails where the training of the original or the evaluation is inside the timer, as it
        is in the SSD authors' code."""
        experiment(tiny)["oracle"] = None  # measuring it would train the original first
        trial = trial_of(project, tiny)
        fit, evaluate = trial.fit, classification.evaluate_classifier

        def slow_fit(*args: Any) -> Any:
            time.sleep(1)
            return fit(*args)

        def slow_evaluate(*args: Any) -> Any:
            time.sleep(1)
            return evaluate(*args)

        monkeypatch.setattr(trial, "fit", slow_fit)
        monkeypatch.setattr(classification, "evaluate_classifier", slow_evaluate)
        trial.methods["Sleep"] = Sleep()
        assert "original" not in vars(trial), "it is not trained yet"
        found = trial.measure_method("Sleep").metrics
        assert 0.05 <= found["seconds"].value < 0.8
        assert found["optimizer_steps"].value == 3
        assert found["changed_weights"].value == 0

    def test_a_retraining_from_the_cache_costs_what_it_cost(
        self, project: Any, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails where the time of a file's reading is taken for that of a training."""
        trial = trial_of(project, tiny)
        _, meta = trial.fit(trial.split.retain, retrain_seed(trial.seed))
        row = trial.measure_method("Retrain")
        found = row.metrics
        assert row.detail["model"] == meta
        assert row.seconds_spent == row.provenance.seconds + meta["seconds"]
        assert found["seconds"].value == meta["seconds"]
        assert found["optimizer_steps"].value == meta["optimizer_steps"] == 30

    def test_sides_of_a_sweep_are_those_of_the_whole_evaluation(
        self, project: Any, tiny: dict[str, Any]
    ) -> None:
        trial = trial_of(project, tiny)
        whole = trial.measure_original().metrics
        sides = trial.measure_original(sides_only=True).metrics
        assert sides.keys() == {"test_accuracy", "test_retain_accuracy", "test_forget_accuracy"}
        assert all(sides[k] == whole[k] for k in sides)

    def test_memory_that_can_not_be_measured_is_left_out(self) -> None:
        model = nn.Linear(2, 2)
        costs = Costs()
        assert "peak_memory" not in costs.metrics(model, deepcopy(model))


class TestOptimizerSteps:
    @pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
    def test_counts_every_step_inside_its_block(
        self, optimizer: type[torch.optim.Optimizer]
    ) -> None:
        """Fails where steps before or after the block count, or one kind of optimizer doesn't."""
        weight = nn.Parameter(torch.zeros(2))
        weight.grad = torch.ones(2)
        before, inside = optimizer([weight], lr=0.1), optimizer([weight], lr=0.1)
        before.step()
        with OptimizerSteps() as steps:
            before.step()
            for _ in range(3):
                inside.step()
        inside.step()
        assert steps.count == 4

    def test_an_error_ends_the_count(self) -> None:
        """Fails where the hook stays: it would count, and cost, for the rest of the run."""
        weight = nn.Parameter(torch.zeros(2))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        steps = OptimizerSteps()
        with pytest.raises(RuntimeError, match="no"), steps:
            raise RuntimeError("no")
        optimizer.step()
        assert steps.count == 0


class TestModelsBehindRows:
    def test_a_model_of_a_dirty_tree_is_made_again_for_clean_rows(
        self, project: Any, tiny: dict[str, Any]
    ) -> None:
        """Fails where `publish` builds clean rows on a model that nobody can account for."""
        trial = trial_of(project, tiny)
        trial.run.dirty = True
        _, first = trial.fit(trial.data.train, 0)
        assert first["dirty"]
        assert trial.fit(trial.data.train, 0)[1] == first
        trial.run.dirty, trial.run.clean_only = False, True
        _, clean = trial.fit(trial.data.train, 0)
        assert not clean["dirty"]
        assert trial.fit(trial.data.train, 0)[1] == clean

    def test_the_gap_follows_the_oracle(self, project: Any, tiny: dict[str, Any]) -> None:
        """Fails where the gap comes from the cache: it depends on another row than its own."""
        trial = trial_of(project, tiny)
        label = next(m for m in trial.methods if m != "Retrain")
        before = trial.measure_method(label).metrics["gap"].value
        object.__setattr__(trial.experiment, "oracle", label)
        assert trial.measure_method(label).metrics["gap"].value == 0
        assert before > 0
