from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from unlearn_core.data import Classification, ForgetSplit, ImageSet
from unlearn_core.methods import SSD, FineTune, Method, Retrain
from unlearn_core.methods.baselines.retrain import retrain_seed
from unlearn_core.methods.iau import GradientRestriction
from unlearn_core.methods.worst_case import ByLoss, WorstCase, example_losses
from unlearn_core.metrics import (
    ShadowAttack,
    accuracy,
    confidence_attack,
    cost,
    evaluate_classifier,
    klom,
    margins,
    relearned_accuracy,
    u_lira,
)
from unlearn_core.metrics.shadow import attack_network
from unlearn_core.models import (
    Checkpoint,
    CheckpointWarning,
    Recipe,
    TrainConfig,
    TrainingError,
    predict,
)
from unlearn_core.registry import ConfigError
from unlearn_core.replication.cache import digest
from unlearn_core.replication.outcomes import outcome
from unlearn_core.replication.records import ROW_SCHEMA, Row, Value
from unlearn_core.replication.run import InvariantError, Replication
from unlearn_core.replication.trials import classifiers as classification
from unlearn_core.replication.trials.base import Costs, OptimizerSteps, changed
from unlearn_core.replication.trials.check import check
from unlearn_core.replication.trials.classifiers import (
    ORIGINAL,
    ClassificationTrial,
    rounded,
    trials,
)
from unlearn_core.replication.trials.search import choose
from unlearn_core.seeding import derive_seed

ROOT = Path(__file__).resolve().parents[3]

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
            assert found[f"{ORIGINAL}, seed {seed}"]["gap"] > 0
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
        trial.check_split(SimpleNamespace(forget=whole, retain=whole))
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
from unlearn_core.models import Checkpoint
from unlearn_core.replication.trials.classifiers import ClassificationTrial
from unlearn_core.replication.trials.base import OptimizerSteps
from unlearn_core.replication.run import Replication

stop_at, mark = int(sys.argv[1]), Path(sys.argv[2])
save, saved = Checkpoint.save, []

def save_then_wait(checkpoint, state):
    save(checkpoint, state)
    saved.append(checkpoint)
    if len(saved) == stop_at:
        mark.write_text(checkpoint.file.name)
        time.sleep(600)

Checkpoint.save = save_then_wait
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
        saved = []

        def stop(checkpoint: Checkpoint, state: dict[str, Any]) -> None:
            save(checkpoint, state)
            saved.append(checkpoint.file)
            if len(saved) == 2:
                raise KeyboardInterrupt

        save = Checkpoint.save
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoint, "save", stop)
            with pytest.raises(KeyboardInterrupt):
                _ = trial.original
        return saved[0]

    def test_a_damaged_one_is_said_and_not_used(
        self, project: Any, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails where a damaged checkpoint ends every later run until somebody deletes it, or
        where its steps count although they were taken again."""
        trial = trial_of(project, tiny)
        file = self.leave_one(trial, monkeypatch)
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
        with pytest.warns(CheckpointWarning, match=rf"checkpoint {file.name} is of no use"):
            _, meta = trial.fit(trial.data.train, trial.seed)
        assert meta["optimizer_steps"] == 30
        assert not list(file.parent.glob(f"{file.name}*"))

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
class Busy(Method):
    """Takes ``steps`` optimizer steps at a learning rate of 0, which change nothing."""

    name: ClassVar[str] = "busy"
    needs: ClassVar[frozenset[str]] = frozenset()
    draws: ClassVar[bool] = False

    steps: int = 3

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        for _ in range(self.steps):
            optimizer.step()
        return model


class TestCost:
    def test_it_is_that_of_the_method_alone(
        self, project: Any, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails where the training of the original or the evaluation is inside the timer, as it
        is in the SSD authors' code."""
        now = [0.0]

        def compute(seconds: float) -> None:
            now[0] += seconds

        monkeypatch.setattr(cost, "clock", lambda device: lambda: now[0])
        experiment(tiny)["oracle"] = None  # measuring it would train the original first
        trial = trial_of(project, tiny)
        fit, evaluate = trial.fit, classification.evaluate_classifier

        def slow_fit(*args: Any) -> Any:
            compute(0.5)
            return fit(*args)

        def slow_evaluate(*args: Any, **more: Any) -> Any:
            compute(0.5)
            return evaluate(*args, **more)

        monkeypatch.setattr(trial, "fit", slow_fit)
        monkeypatch.setattr(classification, "evaluate_classifier", slow_evaluate)

        @dataclass(frozen=True)
        class Computing(Busy):
            def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
                compute(0.25)
                return super().unlearn(model, split, seed)

        trial.methods["Busy"] = Computing()
        assert "original" not in vars(trial), "it is not trained yet"
        found = trial.measure_method("Busy").metrics
        assert found["seconds"].value == 0.25
        assert now == [1.25], "the training and the evaluation took their time, too"
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


class TestOneOriginal:
    def test_forget_sets_that_seeds_draw_have_retrained_models_of_their_own(
        self, project: Any, tiny: dict[str, Any]
    ) -> None:
        """Fails where a seed is compared with the model that was retrained without another seed's
        forget set, or where each seed trains an original."""
        experiment(tiny).update(forget={"fraction": [0.1]}, original_seed=0)
        project.paper("tiny", tiny)
        run = replication()
        a, b = (ClassificationTrial(run, "full_class", seed, 0.1) for seed in (0, 1))
        assert not torch.equal(a.split.forget.index, b.split.forget.index)
        for x, y in zip(a.original.parameters(), b.original.parameters(), strict=True):
            assert torch.equal(x, y)
        for trial in (a, b):
            trial.measure_original()
        assert run.originals("full_class") == (0, 1)
        for method in (ORIGINAL, "Retrain"):
            rows = [run.rows.row("full_class", method, seed) for seed in (0, 1)]
            assert rows[0].spec["forget"] != rows[1].spec["forget"], method
        for trial in (a, b):
            seen = trial.fit(trial.split.retain, retrain_seed(0))[0]
            mine, other = trial.unlearned("Retrain"), (b if trial is a else a).unlearned("Retrain")
            parameters = list(zip(mine.parameters(), seen.parameters(), strict=True))
            assert all(torch.equal(x, y) for x, y in parameters)
            pairs = zip(mine.parameters(), other.parameters(), strict=True)
            assert not all(torch.equal(x, y) for x, y in pairs)

    def test_of_a_class_there_is_one_for_all(self, project: Any, tiny: dict[str, Any]) -> None:
        experiment(tiny)["original_seed"] = 0
        project.paper("tiny", tiny)
        run = replication()
        trial = ClassificationTrial(run, "full_class", 1, "solid cross")
        trial.measure_method("Retrain")
        assert run.originals("full_class") == (0,)
        assert [r.seed for r in run.rows.where("full_class", "Retrain")] == [0]


class TestExamples:
    def test_what_a_row_keeps_image_by_image(self, project: Any, tiny: dict[str, Any]) -> None:
        """Fails where the attack's calls are not those that its metric is the share of."""
        trial = trial_of(project, tiny)
        row = trial.measure_method("Fine-tune")
        kept = {name: outcome(row, name) for name in ("retain", "forget", "test", "attack")}
        assert {k: len(v) for k, v in kept.items()} == {
            "retain": 72,
            "forget": 8,
            "test": 40,
            "attack": 8,
        }
        for name in ("retain", "forget", "test"):
            assert row.metrics[f"{name}_accuracy"].value == pytest.approx(100 * kept[name].mean())
        assert row.metrics["entropy_mia"].value == pytest.approx(100 * kept["attack"].mean())

    def test_an_experiment_may_look_at_some_retain_images(
        self, project: Any, tiny: dict[str, Any]
    ) -> None:
        """Fails where all are looked at, or a row of some passes for a row of all."""
        experiment(tiny)["ask"] = {"retain": 20}
        row = trial_of(project, tiny).measure_method("Retrain")
        assert row.metrics["retain_accuracy"].n == 20
        assert row.spec["ask"] == {"retain": 20}
        del experiment(tiny)["ask"]
        assert "ask" not in trial_of(project, tiny).measure_method("Retrain").spec
        experiment(tiny)["ask"] = {"forget": 5}
        project.paper("tiny", tiny)
        with pytest.raises(ConfigError, match="ask has no argument 'forget'; known: retain"):
            check("tiny", "ci")


class TestControls:
    def test_what_forgetting_another_set_does(self, project: Any, tiny: dict[str, Any]) -> None:
        """Fails where this trial's forget set is forgotten all the same, or images of it are in the
        other set, or it is judged on the other one."""
        experiment(tiny)["methods"]["GA"] = {"use": "gradient_ascent"}
        experiment(tiny)["forget"] = {"fraction": [0.2]}
        trial = trial_of(project, tiny)
        seen = []

        @dataclass(frozen=True)
        class Seeing(Busy):
            needs: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})

            def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
                seen.append((split.forget.index, split.retain.index))
                return model

        trial.methods["GA"] = Seeing()
        row = trial.measure_elsewhere("GA")
        ((forget, retain),) = seen
        mine = set(trial.split.forget.index.tolist())
        assert len(forget) == len(mine)
        assert not mine & set(forget.tolist())
        assert mine <= set(retain.tolist())
        assert row.method == "GA, for another set"
        original = trial.measure_original()
        for metric in ("forget_accuracy", "entropy_mia", "gap"):
            assert row.metrics[metric].value == original.metrics[metric].value

    def test_requests_in_sequence(self, project: Any, tiny: dict[str, Any]) -> None:
        """Fails where a request sees an image that is forgotten already, starts from the original,
        or what a later one names is missing from its retain set."""
        experiment(tiny)["forget"] = {"fraction": [0.3]}
        trial = trial_of(project, tiny)
        seen = []

        @dataclass(frozen=True)
        class Counting(Busy):
            needs: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})

            def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
                with torch.no_grad():
                    next(model.parameters()).add_(1.0)
                seen.append((set(split.forget.index.tolist()), set(split.retain.index.tolist())))
                return model

        trial.methods["Count"] = Counting()
        row = trial.measure_sequence("Count", requests=3)
        gone = set(trial.split.forget.index.tolist())
        assert set.union(*(f for f, _ in seen)) == gone
        assert sum(len(f) for f, _ in seen) == len(gone) == 24
        everyone, before = set(range(80)), set()
        for forget, retain in seen:
            before |= forget
            assert retain == everyone - before
        assert (row.method, row.variant["requests"]) == ("Count, in sequence", 3)
        assert len(row.detail["test_accuracy_after"]) == 3
        assert row.detail["test_accuracy_after"][-1] == row.metrics["test_accuracy"].value
        moved = copy.deepcopy(trial.original)
        with torch.no_grad():
            next(moved.parameters()).add_(3.0)
        found = evaluate_classifier(moved, trial.split, random_model=trial.random_model)
        assert row.metrics["test_accuracy"].value == pytest.approx(found["test_accuracy"].value)


class TestAudits:
    def test_many_models_beside_many_retrained_ones(
        self, project: Any, tiny: dict[str, Any]
    ) -> None:
        """Fails where all are of one seed, where what is retrained has another forget set, or where
        the retrained ones are compared with themselves."""
        experiment(tiny)["forget"] = {"fraction": [0.2]}
        experiment(tiny)["methods"]["Again"] = {"use": "retrain"}
        trial = trial_of(project, tiny)
        found = {m: trial.measure_audit(m, models=6) for m in ("Retrain", "Again", ORIGINAL)}
        assert len([*(project.root / "build/cache").rglob("*.safetensors")]) == 12

        def pool(data: Any, own: Callable[[int], int], part: ImageSet) -> torch.Tensor:
            seeds = [derive_seed(0, "audit", k) for k in range(6)]
            outputs = [predict(trial.recipe.fit(data, own(s)), part) for s in seeds]
            right.append([accuracy(o.logits, o.labels).value for o in outputs])
            return torch.stack([margins(o.logits, o.labels) for o in outputs])

        right: list[list[float]] = []
        forget = trial.split.forget
        retrained = pool(trial.split.retain, retrain_seed, forget)
        original = pool(trial.data.train, lambda seed: seed, forget)
        for row, pools in (
            (found["Retrain"], (retrained[:3], retrained[3:])),
            (found["Again"], (retrained, retrained)),
            (found[ORIGINAL], (original, retrained)),
        ):
            assert row.metrics["klom_forget"].value == pytest.approx(klom(*pools).mean().item())
            assert row.metrics["u_lira"].value == pytest.approx(u_lira(*pools).mean().item())
        assert found["Again"].metrics["klom_retain"].value == 0
        for name in ("Again", "Retrain"):
            assert found[name].metrics["gap"].value == 0
        known = found[ORIGINAL].metrics["forget_accuracy"]
        assert (known.n, known.value) == (6, pytest.approx(sum(right[1]) / 6))

    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            ({"audit": "SSD", "models": 5}, "models: 6 at least, three to a half, not 5"),
            ({"quantised": "SSD", "bits": 16}, "bits: 2 to 8, not 16"),
        ],
    )
    def test_what_could_not_be_audited_is_refused_before_anything_is_trained(
        self, project: Any, tiny: dict[str, Any], entry: dict[str, Any], message: str
    ) -> None:
        experiment(tiny)["measure"] = [entry]
        project.paper("tiny", tiny)
        with pytest.raises(ConfigError, match=message):
            check("tiny", "ci")

    def test_an_audit_needs_an_oracle(self, project: Any, tiny: dict[str, Any]) -> None:
        experiment(tiny).update(measure=[{"audit": "SSD", "models": 6}], oracle=None)
        project.paper("tiny", tiny)
        with pytest.raises(ConfigError, match="audit: without an oracle"):
            check("tiny", "ci")

    def test_weights_are_rounded_by_output_channel(self) -> None:
        model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3))
        before = copy.deepcopy(model)
        found = rounded(model, 3)[0]
        for own, at in zip(found.weight, model[0].weight, strict=True):
            scale = at.abs().max() / 3
            assert torch.allclose(own, (at / scale).round() * scale, atol=1e-7)
            assert len(own.unique()) <= 7
        assert torch.equal(found.bias, model[0].bias)
        for a, b in zip(model.parameters(), before.parameters(), strict=True):
            assert torch.equal(a, b)
        with pytest.raises(ConfigError, match="bits: 2 to 8, not 1"):
            rounded(model, 1)

    def test_a_rounded_model_is_compared_with_the_rounded_retrained_one(
        self, project: Any, tiny: dict[str, Any]
    ) -> None:
        trial = trial_of(project, tiny)
        row = trial.measure_quantised("Fine-tune", bits=2)
        retrained = trial.measure_quantised("Retrain", bits=2)
        assert retrained.metrics["gap"].value == 0
        made = evaluate_classifier(
            rounded(trial.unlearned("Fine-tune"), 2), trial.split, random_model=trial.random_model
        )
        aim = evaluate_classifier(
            rounded(trial.unlearned("Retrain"), 2), trial.split, random_model=trial.random_model
        )
        names = ("retain_accuracy", "forget_accuracy", "test_accuracy", "entropy_mia")
        gap = sum(abs(made[n].value - aim[n].value) for n in names) / 4
        assert row.metrics["gap"].value == pytest.approx(gap)
        assert row.variant["bits"] == 2


class TestTrials:
    def test_every_seed_and_target_of_every_experiment(
        self, project: Any, tiny: dict[str, Any]
    ) -> None:
        """Fails where an experiment runs on the profile's seeds instead of its own, or one whose
        name only begins with another's runs along with it."""
        experiments = tiny["profiles"]["ci"]["experiments"]
        full = experiments["full_class"]
        experiments["random"] = full | {"forget": {"count": [4, 8]}, "seeds": [5]}
        experiments["random_half"] = full | {"forget": {"count": 40}}
        project.paper("tiny", tiny)

        def found(prefix: str) -> list[tuple[str, int, Any]]:
            return [(t.name, t.seed, t.target) for t in trials(replication(), prefix)]

        assert found("random") == [("random", 5, 4), ("random", 5, 8)]
        assert found("random_half") == [("random_half", seed, 40) for seed in (0, 1)]
        assert found("ran") == found("random") + found("random_half")
        assert found("sub") == []


@dataclass(frozen=True)
class Both(Busy):
    """Has a hyper-parameter that its training has too."""

    lr: float = 1.0
    train: TrainConfig = TrainConfig(3, 0.5)


class TestChanged:
    def test_a_field_of_the_method(self) -> None:
        ssd = SSD(alpha=10.0, lam=1.0)
        assert changed(ssd, {"alpha": 3.0}) == SSD(alpha=3.0, lam=1.0)
        assert changed(ssd, {}) == ssd == SSD(alpha=10.0, lam=1.0)

    def test_a_field_of_its_training(self) -> None:
        """Fails where the rest of the training goes back to its defaults."""
        method = FineTune(TrainConfig(2, 0.01, momentum=0.9))
        expected = FineTune(TrainConfig(4, 0.3, momentum=0.9))
        assert changed(method, {"lr": 0.3, "epochs": 4}) == expected

    def test_the_method_s_own_field_goes_first(self) -> None:
        assert changed(Both(), {"lr": 7.0, "epochs": 4}) == Both(lr=7.0, train=TrainConfig(4, 0.5))

    @pytest.mark.parametrize(
        ("method", "name"), [(SSD(1.0), "lr"), (FineTune(TrainConfig(1, 0.1)), "alpha")]
    )
    def test_what_it_does_not_have_is_named(self, method: Method, name: str) -> None:
        """Fails where a misspelt hyper-parameter is searched over: every value would be the same."""
        message = f"{type(method).__name__} has no hyper-parameter '{name}'"
        with pytest.raises(ConfigError, match=message):
            changed(method, {name: 1.0})


def tuned(tiny: dict[str, Any]) -> dict[str, Any]:
    """The experiment "tuning", with two searches; the first experiment is tuned by it."""
    full = experiment(tiny)
    search = {
        "Fine-tune": {"lr": [0.1, 0.2, 0.3]},
        "SSD": {"alpha": [1.0, 2.0], "lam": [3.0, 4.0]},
    }
    forget = {"class": ["solid cross", "solid ring"]}
    made = deepcopy(full) | {"search": search, "seeds": [100, 7], "forget": forget}
    tiny["profiles"]["ci"]["experiments"]["tuning"] = made
    full["tuned"] = "tuning"
    full["methods"]["FT + mask"] = {"use": "masked", "method": "Fine-tune", "keep": 0.25}
    return made


#: Gaps by seed and value. The smallest mean is that of 0.2, which is never the smallest.
RATES = {100: {0.1: 0, 0.2: 5, 0.3: 9}, 7: {0.1: 20, 0.2: 5, 0.3: 4}}
#: By alpha and lambda; two are equal.
SETTINGS = {(1.0, 3.0): 4, (1.0, 4.0): 2, (2.0, 3.0): 2, (2.0, 4.0): 3}


class TestChoose:
    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
        """Nothing is measured: the gaps are those above. What was asked for is kept."""
        asked = []

        def measure(trial: ClassificationTrial, label: str, **changes: float) -> Any:
            if trial.name == "class_tuning":
                return SimpleNamespace(metrics={"gap": Value(value=-changes["alpha"])})
            assert trial.name == "tuning"
            asked.append((trial.seed, trial.target, label, *changes.values()))
            if label == "Fine-tune":
                gap = RATES[trial.seed][changes["lr"]]
            else:
                gap = SETTINGS[changes["alpha"], changes["lam"]]
            worse = {"solid cross": 0, "solid ring": 1}[trial.target]
            return SimpleNamespace(metrics={"gap": Value(value=float(gap + worse))})

        monkeypatch.setattr(ClassificationTrial, "measure_method", measure)
        return asked

    def test_the_smallest_mean_gap_and_the_first_of_equals(
        self, project: Any, tiny: dict[str, Any], asked: list[Any]
    ) -> None:
        """Fails where the largest gap wins, the last seed or target decides, or a value of one
        hyper-parameter is tried with one value of the other only."""
        tuned(tiny)
        project.paper("tiny", tiny)
        run = replication()
        found = choose(ClassificationTrial, run, "tuning")
        assert found == {"Fine-tune": {"lr": 0.2}, "SSD": {"alpha": 1.0, "lam": 4.0}}
        tried = [("Fine-tune", lr) for lr in (0.1, 0.2, 0.3)] + [("SSD", *s) for s in SETTINGS]
        targets = ("solid cross", "solid ring")
        assert asked == [(s, t, *what) for what in tried for s in (100, 7) for t in targets]
        # The mean over both targets is half a point above the gaps of the table.
        search = run.searches["tuning", "SSD"]
        assert search.names == ("alpha", "lam")
        assert search.chosen == (1.0, 4.0)
        assert dict(zip(search.tried, search.scores, strict=True)) == {
            at: gap + 0.5 for at, gap in SETTINGS.items()
        }
        assert all(search.kept)
        assert choose(ClassificationTrial, run, "tuning") is found
        assert len(asked) == 28, "the search was done twice"

    def test_methods_of_a_tuned_experiment_have_what_was_chosen(
        self, project: Any, tiny: dict[str, Any], asked: list[Any]
    ) -> None:
        """Fails where a search is done and its outcome not used, or where the method that another
        one names is the one before the search."""
        tuned(tiny)
        methods = trial_of(project, tiny).methods
        assert list(methods) == ["Retrain", "Fine-tune", "SSD", "FT + mask"]
        before = TrainConfig(epochs=2, lr=0.01, batch_size=32)
        assert methods["Fine-tune"] == FineTune(replace(before, lr=0.2))
        assert methods["SSD"] == SSD(alpha=1.0, lam=4.0, batch_size=16)
        assert methods["FT + mask"].method == methods["Fine-tune"]
        assert methods["FT + mask"].keep == 0.25
        assert methods["Retrain"] == Retrain(methods["Retrain"].recipe)

    def test_a_later_search_has_the_last_word(
        self, project: Any, tiny: dict[str, Any], asked: list[Any]
    ) -> None:
        """Fails where one search's choices are lost, or the former one's stand."""
        first = tuned(tiny)
        second = deepcopy(first) | {"search": {"SSD": {"alpha": [3.0, 7.0]}}}
        tiny["profiles"]["ci"]["experiments"]["class_tuning"] = second
        experiment(tiny)["tuned"] = ["tuning", "class_tuning"]
        methods = trial_of(project, tiny).methods
        assert methods["SSD"] == SSD(alpha=7.0, batch_size=16)
        assert methods["Fine-tune"].train.lr == 0.2

    def test_the_tuning_experiment_keeps_its_own(
        self, project: Any, tiny: dict[str, Any], asked: list[Any]
    ) -> None:
        tuned(tiny)
        project.paper("tiny", tiny)
        trial = ClassificationTrial(replication(), "tuning", 100, "solid ring")
        assert trial.methods["SSD"] == SSD(alpha=5, batch_size=16)
        assert asked == []


class TestJudgedOnValidation:
    def search(
        self, project: Any, tiny: dict[str, Any], cache: Path, tests: int, judged_on: str
    ) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
        """What a real search chooses, and its rows' numbers by key."""
        e = experiment(tiny)
        e["data"] |= {"per_class": 10, "test_per_class": tests, "validation_per_class": 2}
        e["train"]["epochs"] = 2
        e["methods"].pop("SSD", None)
        e |= {"judged_on": judged_on, "attack": "confidence", "forget": {"count": [8]}}
        e |= {"search": {"Fine-tune": {"lr": [0.01, 0.3]}}, "seeds": [3]}
        project.paper("tiny", tiny)
        run = replication(cache)
        chosen = choose(ClassificationTrial, run, "full_class")
        rows = {
            r.key: {k: v.value for k, v in r.metrics.items() if k not in MEASURED} for r in run.rows
        }
        assert len(rows) == 3
        return chosen, rows

    def test_nothing_of_a_search_depends_on_the_test_set(
        self, project: Any, tiny: dict[str, Any], tmp_path: Path
    ) -> None:
        """Fails where a search looks at the test set, by which every later number on it would be
        too good. (With another size it has other images.)"""
        first, second = (
            self.search(project, tiny, tmp_path / str(n), n, "validation") for n in (4, 6)
        )
        assert first == second
        gaps = [row["gap"] for row in first[1].values() if row["gap"] > 0]
        assert len(set(gaps)) == 2, "both values have the same gap: nothing was chosen"
        judged_on_test = self.search(project, tiny, tmp_path / "test", 4, "test")
        assert not judged_on_test[1].keys() & first[1].keys()

    def test_the_validation_images_stand_for_the_test_set(
        self, project: Any, tiny: dict[str, Any]
    ) -> None:
        e = experiment(tiny)
        e["data"] |= {"validation_per_class": 2}
        e |= {"judged_on": "validation", "attack": "confidence"}
        trial = trial_of(project, tiny)
        split = trial.split
        assert split.test is trial.data.validation
        assert (split.test_forget, split.test_retain) == (None, None)
        assert (len(split.forget), len(split.retain)) == (6, 54)
        row = trial.bare_row("Original", {}, lambda: trial.evaluate(trial.original))
        out = predict(trial.original, trial.data.validation)
        right = (out.logits.argmax(dim=1) == out.labels).double().mean().item()
        assert row.metrics["test_accuracy"].value == pytest.approx(100 * right)
        assert row.metrics["test_accuracy"].n == 20
        assert row.spec["test"] == trial.data.validation.fingerprint()
        # The attack's non-members are held-out images too.
        retain, forget = (predict(trial.original, d) for d in (split.retain, split.forget))
        attack = confidence_attack(*((o.logits, o.labels) for o in (retain, out, forget)))
        assert row.metrics["confidence_mia"].value == attack.value

    def test_without_validation_images_it_is_an_error(
        self, project: Any, tiny: dict[str, Any]
    ) -> None:
        experiment(tiny)["judged_on"] = "validation"
        trial = trial_of(project, tiny)
        with pytest.raises(ConfigError, match="full_class is judged on validation data, but has"):
            _ = trial.split


class TestAttack:
    def test_confidence(self, project: Any, tiny: dict[str, Any]) -> None:
        """Fails where the entropy attack is measured all the same, or the gap reads another one."""
        experiment(tiny)["attack"] = "confidence"
        trial = trial_of(project, tiny)
        row, oracle = trial.measure_method("Fine-tune"), trial.measure_method("Retrain")
        sides = {
            f"{s}_accuracy" for s in ("retain", "forget", "test", "test_retain", "test_forget")
        }
        cost = {"seconds", "peak_memory", "optimizer_steps", "changed_weights", "gap"}
        assert row.metrics.keys() - cost == sides | {"confidence_mia", "forget_loss"}
        assert row.spec["attack"] == "confidence"
        assert "shadow" not in row.spec
        names = ("retain_accuracy", "forget_accuracy", "test_accuracy", "confidence_mia")
        gaps = [abs(row.metrics[n].value - oracle.metrics[n].value) for n in names]
        assert row.metrics["gap"].value == pytest.approx(sum(gaps) / 4)
        assert gaps[3] > 0

    @pytest.fixture
    def fits(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[ImageSet, Recipe, dict]]:
        """No shadow model is trained; what would have been is kept."""
        fits = []

        def fit(pool: ImageSet, recipe: Recipe, **options: Any) -> ShadowAttack:
            fits.append((pool, recipe, options))
            return ShadowAttack(attack_network(10))

        monkeypatch.setattr(ShadowAttack, "fit", fit)
        return fits

    def test_shadow(
        self, project: Any, tiny: dict[str, Any], fits: list[tuple[ImageSet, Recipe, dict]]
    ) -> None:
        experiment(tiny).update(attack="shadow", shadow={"shadows": 2, "epochs": 5})
        trial = trial_of(project, tiny)
        row = trial.measure_original()
        assert "gap" in row.metrics
        assert not {"confidence_mia", "entropy_mia", "zrf"} & row.metrics.keys()
        expected = evaluate_classifier(trial.original, trial.split, shadow=trial.shadow)
        assert row.metrics["shadow_mia"].value == expected["shadow_mia"].value
        assert row.spec["attack"] == "shadow"
        assert row.spec["shadow"] == {"shadows": 2, "epochs": 5}
        ((pool, recipe, options),) = fits
        assert pool is trial.data.train
        assert recipe == trial.recipe
        assert options == {"validation": None, "device": trial.device, "shadows": 2, "epochs": 5}

    def test_one_attack_serves_every_trial_on_such_models(
        self, project: Any, tiny: dict[str, Any], fits: list[tuple[ImageSet, Recipe, dict]]
    ) -> None:
        """Fails where shadow models are trained for every seed and request, or where those of one
        recipe, or of fewer models, judge another."""
        experiments, full = tiny["profiles"]["ci"]["experiments"], experiment(tiny)
        full |= {"attack": "shadow", "shadow": {"shadows": 2}}
        full["data"]["validation_per_class"] = 2
        experiments["again"] = full | {"forget": {"count": [8]}, "title": "Again"}
        experiments["more"] = full | {"shadow": {"shadows": 3}}
        experiments["longer"] = full | {"train": full["train"] | {"epochs": 7}}
        experiments["early"] = full | {"train": full["train"] | {"patience": 1}}
        project.paper("tiny", tiny)
        run = replication()

        def shadow(name: str, seed: int = 0) -> ShadowAttack:
            return ClassificationTrial(run, name, seed, run.targets(name)[0]).shadow

        first = shadow("full_class")
        assert first is shadow("full_class", 1) is shadow("again")
        others = [shadow(name) for name in ("more", "longer", "early")]
        assert len({id(a) for a in (first, *others)}) == len(fits) == 4
        # Shadow models are made as the one under attack is, early stopping included.
        assert [recipe.train.epochs for _, recipe, _ in fits] == [6, 6, 7, 6]
        assert [recipe.train.patience for _, recipe, _ in fits] == [None, None, None, 1]
        held = run.data("early").validation.fingerprint()
        assert {options["validation"].fingerprint() for *_, options in fits} == {held}
        # Another run, or another process of this one, takes it from the cache.
        run, logits = replication(), torch.randn(6, 10)
        known = shadow("full_class")
        labels = torch.arange(6)
        assert torch.equal(known.probability(logits, labels), first.probability(logits, labels))
        assert len(fits) == 4
        trial = ClassificationTrial(run, "full_class", 0, run.targets("full_class")[0])
        assert [name for name, _, _ in trial.models()] == [
            "original",
            "retrained model",
            "shadow attack",
        ]


class TestRelearn:
    def test_the_probe_is_asked_for(self, project: Any, tiny: dict[str, Any]) -> None:
        """Fails where its arguments are not the experiment's, or its key does not hold them."""
        asked = {"steps": 4, "examples": 3, "lr": 0.1}
        experiment(tiny).update(relearn=asked, oracle=None)
        trial = trial_of(project, tiny)
        row = trial.measure_original()
        expected = relearned_accuracy(trial.original, trial.split, 0, **asked)
        assert row.metrics["relearned_accuracy"].value == expected.value
        assert row.metrics["relearned_accuracy"].n == 5
        assert row.spec["relearn"] == asked


class TestTask:
    def test_it_is_what_originals_are_trained_for_and_nothing_else(
        self, project: Any, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails where unlearning is restricted as the training was, or retraining is not."""
        experiment(tiny)["task"] = {"use": "gradient_restriction", "alpha": 0.01}
        trial = trial_of(project, tiny)
        assert trial.recipe.task == GradientRestriction(10, alpha=0.01)
        assert type(trial.split.task) is Classification
        calls, loss = [], GradientRestriction.loss

        def counted(task: GradientRestriction, model: nn.Module, batch: Any) -> torch.Tensor:
            calls.append(task)
            return loss(task, model, batch)

        monkeypatch.setattr(GradientRestriction, "loss", counted)
        _ = trial.original
        assert len(calls) == 30
        trial.unlearn(trial.methods["Fine-tune"])
        trial.unlearn(trial.methods["SSD"])
        assert len(calls) == 30
        trial.unlearn(trial.methods["Retrain"])
        assert len(calls) == 60

    def test_its_models_are_not_those_of_the_plain_loss(
        self, project: Any, tiny: dict[str, Any]
    ) -> None:
        """Fails where the cache hands out a model of another loss."""
        plain = trial_of(project, tiny)
        experiment(tiny)["task"] = {"use": "gradient_restriction", "alpha": 0.5}
        restricted = trial_of(project, tiny)
        a, b = (
            torch.cat([p.detach().flatten() for p in t.original.parameters()])
            for t in (plain, restricted)
        )
        assert (a - b).norm() > 0.01 * a.norm()

    def test_an_unknown_one_is_named(self, project: Any, tiny: dict[str, Any]) -> None:
        experiment(tiny)["task"] = {"use": "gradient_restrictions"}
        with pytest.raises(ConfigError, match="unknown task 'gradient_restrictions'; did you mean"):
            trial_of(project, tiny)


SEARCH = {
    "use": "worst_case",
    "iterations": 2,
    "train": {"epochs": 1, "lr": 1e-3, "batch_size": 40},
}


class TestSelect:
    def test_the_split_is_what_a_rule_chooses(
        self, project: Any, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails where the rule sees another model or other images, or where positions are taken
        for something else. Chosen once, the set comes from the cache."""
        select = {"easy": {"use": "by_loss", "fraction": 0.1}}
        experiment(tiny).update(forget={"chosen": ["easy"]}, select=select)
        trial = trial_of(project, tiny)
        losses = example_losses(trial.original, trial.data.train)
        wanted = losses.topk(8, largest=False).indices.sort().values
        assert torch.equal(trial.split.forget.index, wanted)
        assert len(trial.split.retain) == 72
        row = trial.run.rows.row("full_class", "Selection", 0)
        assert row.variant == {"forget": "easy"}
        assert row.detail == {"index": wanted.tolist(), "log": []}
        assert row.spec["select"] == {"is": "ByLoss", "version": 1, "highest": False}
        assert row.spec["budget"] == 8
        assert row.metrics.keys() == {"seconds", "selected_loss"}
        assert row.metrics["selected_loss"].value == pytest.approx(losses[wanted].mean().item())
        assert row.metrics["selected_loss"].n == 8

        trial.measure_method("Retrain")
        assert [i.name for i in trial.run.invariants] == [
            "forget and retain are disjoint and complete",
            "the oracle's gap to itself is 0",
        ], "a chosen set need not be forgotten like a random one"

        def refuse(*_: object) -> None:
            raise AssertionError("the set was chosen again")

        monkeypatch.setattr(ByLoss, "select", refuse)
        again = ClassificationTrial(trial.run, "full_class", 0, "easy")
        assert torch.equal(again.split.forget.index, wanted)

    def test_the_anatomy_of_a_set_is_that_of_its_own_images(
        self, project: Any, tiny: dict[str, Any]
    ) -> None:
        """Fails where another class's image counts as the nearest, or positions in the forget set are
        taken for those in the training set."""
        select = {"easy": {"use": "by_loss", "fraction": 0.1}}
        experiment(tiny).update(forget={"chosen": ["easy"]}, select=select)
        trial = trial_of(project, tiny)
        row = trial.measure_anatomy()
        train, chosen = trial.data.train, trial.split.forget.index
        losses = example_losses(trial.original, train)
        assert row.metrics["selected_loss"].value == pytest.approx(losses[chosen].mean().item())
        assert losses[row.detail["fitted_best"]].tolist() == sorted(losses[chosen].tolist())
        assert sorted(row.detail["fitted_best"]) == chosen.tolist()
        outside = sorted(set(range(80)) - set(chosen.tolist()), key=lambda i: -losses[i].item())
        assert row.detail["fitted_worst"] == outside[:8]
        pixels = train.pixels.flatten(1).double() / 255
        nearest = [
            min(
                (pixels[i] - pixels[j]).norm().item()
                for j in outside
                if train.labels[j] == train.labels[i]
            )
            for i in chosen.tolist()
        ]
        assert row.metrics["selected_distance"].value == pytest.approx(sum(nearest) / 8, rel=1e-4)

    def test_a_search_is_that_of_the_trial(self, project: Any, tiny: dict[str, Any]) -> None:
        """Fails where the search's seed, training or size is not what the experiment says."""
        select = {"hard": SEARCH | {"fraction": 0.15}}
        experiment(tiny).update(forget={"chosen": ["hard"]}, select=select)
        project.paper("tiny", tiny)
        trial = ClassificationTrial(replication(), "full_class", 1, "hard")
        rule = WorstCase(iterations=2, train=TrainConfig(1, 1e-3, batch_size=40))
        by_hand = rule.select(trial.original, trial.data.train, Classification(10), 12, 1)
        row = trial.select("hard")
        assert row.detail["index"] == by_hand.index.tolist()
        assert row.detail["log"] == list(by_hand.log)
        last = by_hand.log[-1]
        found = [row.metrics[m] for m in ("overlap_initial", "overlap_previous", "binary_weights")]
        assert [m.value for m in found] == [
            100 * last["overlap_initial"],
            100 * last["overlap_previous"],
            100 * last["binary_share"],
        ]
        assert [m.n for m in found] == [12, 12, 80]
        assert trial.experiment.select == select, "the rule was changed by its use"
        assert trial.select("hard") == row

    def test_a_rule_about_classes_gives_their_numbers(
        self, project: Any, tiny: dict[str, Any]
    ) -> None:
        """Fails where a fifth of the images is chosen for a fifth of the classes."""
        experiment(tiny)["select"] = {"classes": SEARCH | {"by": "class", "fraction": 0.2}}
        trial = trial_of(project, tiny)
        row = trial.select("classes")
        assert len(set(row.detail["index"])) == row.spec["budget"] == 2
        assert set(row.detail["index"]) <= set(range(10))
        assert row.spec["select"]["by"] == "class"
        assert "selected_loss" not in row.metrics
        assert (row.method, row.variant) == ("Selection", {"forget": "classes"})

    def test_an_unknown_rule_is_named(self, project: Any, tiny: dict[str, Any]) -> None:
        select = {"hard": {"use": "worst", "fraction": 0.1}}
        experiment(tiny).update(forget={"chosen": ["hard"]}, select=select)
        trial = trial_of(project, tiny)
        with pytest.raises(ConfigError, match="unknown selection rule 'worst'; did you mean"):
            _ = trial.split


class TestEarlyStopping:
    def test_the_original_is_the_recipe_s_with_the_validation_images(
        self, project: Any, tiny: dict[str, Any]
    ) -> None:
        """Fails where the test set, or the training set, decides when to stop."""
        e = experiment(tiny)
        e["data"] |= {"per_class": 10, "validation_per_class": 2}
        e["train"]["patience"] = 1
        trial = trial_of(project, tiny)
        model = trial.recipe.fit(
            trial.data.train, 0, validation=trial.data.validation, device=trial.device
        )
        for a, b in zip(trial.original.parameters(), model.parameters(), strict=True):
            assert torch.equal(a, b)
        row = trial.measure_original(sides_only=True)
        assert row.spec["validation"] == trial.data.validation.fingerprint()
        assert row.spec["recipe"]["train"]["patience"] == 1
        assert row.spec["test"] == trial.data.test.fingerprint()

    def test_without_it_validation_images_are_no_part_of_a_row(
        self, project: Any, tiny: dict[str, Any]
    ) -> None:
        experiment(tiny)["data"]["validation_per_class"] = 2
        row = trial_of(project, tiny).measure_original(sides_only=True)
        assert "validation" not in row.spec


def outline(value: Any) -> Any:
    """The keys of a nested mapping."""
    return {k: outline(v) for k, v in value.items()} if isinstance(value, dict) else None


@pytest.fixture(scope="module")
def published() -> list[dict[str, Any]]:
    """Rows of experiments that have none of the newer fields."""
    file = ROOT / "book" / "published" / "laptop" / "ssd.json"
    return json.loads(file.read_text())["rows"]


class TestIdentity:
    def test_a_key_is_what_it_was(self, published: list[dict[str, Any]]) -> None:
        """Fails where the way of making keys changes: every cached row would be made again."""
        names = ("experiment", "method", "seed", "variant", "spec")
        for row in published:
            key = digest({"schema": ROW_SCHEMA, **{name: row[name] for name in names}})
            assert key == row["key"], (row["experiment"], row["method"])

    @pytest.mark.parametrize("label", [ORIGINAL, "Retrain", "Fine-tune", "SSD"])
    def test_what_an_experiment_does_not_use_is_no_part_of_its_rows(
        self, project: Any, tiny: dict[str, Any], published: list[dict[str, Any]], label: str
    ) -> None:
        """Fails where a new field enters the keys of experiments that do not use it."""
        experiment(tiny)["oracle"] = None
        trial = trial_of(project, tiny)
        row = trial.measure_original() if label == ORIGINAL else trial.measure_method(label)
        before = next(
            r for r in published if (r["experiment"], r["method"]) == ("full_class", label)
        )
        assert outline(row.spec) == outline(before["spec"])
        assert row.variant.keys() == before["variant"].keys()
        spec = {"schema": ROW_SCHEMA, "spec": row.spec, "variant": row.variant}
        names = {"experiment": "full_class", "method": label, "seed": 0}
        assert row.key == digest(spec | names)

    def test_a_method_names_another(self, project: Any, tiny: dict[str, Any]) -> None:
        """Fails where a copy of the other method is made from defaults."""
        methods = experiment(tiny)["methods"]
        methods["SSD + mask"] = {"use": "masked", "method": "SSD", "keep": 0.25}
        trial = trial_of(project, tiny)
        made = trial.methods["SSD + mask"]
        assert made.method is trial.methods["SSD"]
        assert (made.method.alpha, made.keep) == (5, 0.25)
        row = trial.measure_method("SSD + mask")
        inner = row.spec["method"]["method"]
        assert (inner["is"], inner["alpha"]) == ("SSD", 5)
        assert 0 < row.metrics["changed_weights"].value <= 25
