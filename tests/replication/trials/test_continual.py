"""Tasks in a sequence on trial, on the smallest model that has all of its parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from unlearn_core.methods.adapters import submodule
from unlearn_core.methods.sefe import RegLoRA
from unlearn_core.metrics import METRICS
from unlearn_core.models import VisionChat
from unlearn_core.registry import ConfigError
from unlearn_core.replication.run import Replication
from unlearn_core.replication.trials.continual import BEFORE, ContinualTrial

TRAIN = {"epochs": 1, "lr": 1e-3, "batch_size": 8, "optimizer": "adamw", "max_steps": 2}
LORA = {"rank": 2, "alpha": 4, "dropout": 0.0, "projector": "multi_modal_projector", "train": TRAIN}


@pytest.fixture
def run(project: Any, tiny: dict[str, Any]) -> Replication:
    sizes = {"vision_hidden": 16, "vision_layers": 1, "vision_heads": 2}
    tiny["profiles"]["ci"]["experiments"] = {
        "orders": {
            "title": "Two orders",
            "data": {
                "use": "visual_tasks",
                "per_task": 10,
                "test_per_task": 4,
                "base": 12,
                "captions": 20,
            },
            "model": {
                "use": "tiny_llava",
                "patch": 16,
                "hidden": 16,
                "layers": 1,
                "heads": 2,
                **sizes,
            },
            "train": TRAIN,
            "tower": TRAIN,
            "task": {"use": "visual_answering"},
            "forget": {"order": ["presence reading", "reading presence"]},
            "original_seed": 0,
            "seeds": [0, 1],
            "ask": {"max_new_tokens": 3, "protected": 0.1},
            "methods": {
                "LoRA": {"use": "sequential_lora", **LORA},
                "SEFE": {"use": "reglora", "asd": 40, "ratio": 0.1, "weight": 1.0, **LORA},
                "Joint": {"use": "joint", **LORA},
            },
        }
    }
    project.paper("tiny", tiny)
    return Replication("tiny", "ci", "build/ci")


def test_rows_of_a_sequence(run: Replication) -> None:
    """Fails where a later task is asked too early, the aggregates are of another matrix, or the
    conversion of answers reaches the test sets."""
    trial, other = ContinualTrial.each(run, "orders")
    assert (trial.seed, trial.order) == (0, ("presence", "reading"))
    assert (other.seed, other.order) == (1, ("reading", "presence"))
    before = trial.measure_before()
    assert before.method == BEFORE
    assert len(before.detail["truth"]) == 2
    rows = {label: trial.measure_method(label) for label in ("LoRA", "SEFE")}
    for row in rows.values():
        assert row.metrics.keys() <= METRICS.keys()
        truth = row.detail["truth"]
        assert [len(line) for line in truth] == [1, 2]
        assert row.metrics["mfn"].value == pytest.approx(sum(truth[1]) / 2)
        assert row.metrics["mft"].value == pytest.approx((truth[0][0] + truth[1][1]) / 2)
        assert row.metrics["bwt"].value == pytest.approx((truth[1][0] - truth[0][0]) / 2)
        known, form = row.detail["knowledge"], row.detail["format_valid"]
        assert row.metrics["superficial_gap"].value == pytest.approx(known[1][0] - truth[1][0])
        assert row.metrics["format_valid"].value == pytest.approx(form[1][0])
        assert row.metrics["optimizer_steps"].value == 4
        assert row.metrics["moved_protected"].value > 0
        assert [s["task"] for s in row.detail["said"]] == ["presence"] * 3 + ["reading"] * 3
    plain, converted = trial.stages(0)[0].data.questions, trial.stages(40)[0].data.questions
    assert plain.questions == trial.tasks[0].train.questions != converted.questions
    again = other.measure_method("LoRA")
    assert again.variant == {}
    assert again.detail["order"] == ["reading", "presence"]
    assert again.key != rows["LoRA"].key
    assert {t.name: t.test.fingerprint() for t in other.tasks} == {
        t.name: t.test.fingerprint() for t in trial.tasks
    }


def test_every_seed_has_its_order(project: Any, tiny: dict[str, Any], run: Replication) -> None:
    tiny["profiles"]["ci"]["experiments"]["orders"]["seeds"] = [0]
    project.paper("tiny", tiny)
    with pytest.raises(ConfigError, match="2 orders for 1 seeds"):
        list(ContinualTrial.each(Replication("tiny", "ci", "build/ci"), "orders"))


def test_a_task_that_comes_twice(run: Replication) -> None:
    trial = ContinualTrial(run, "orders", 0, "presence presence")
    with pytest.raises((ConfigError, ValueError), match="comes twice"):
        trial.measure_method("LoRA")


def test_joint_training_is_asked_once(run: Replication, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where one model for all stages answers the same questions again at each."""
    trial, _ = ContinualTrial.each(run, "orders")
    asked, said = [], ContinualTrial.said
    monkeypatch.setattr(
        ContinualTrial, "said", lambda s, m, t: asked.append(t.name) or said(s, m, t)
    )
    truth = trial.measure_method("Joint").detail["truth"]
    assert asked == ["presence", "reading"]
    assert truth[0][0] == truth[1][0]
    asked.clear()
    trial.measure_method("LoRA")
    assert asked == ["presence", "presence", "reading"]


def test_a_tower_that_is_trained_is_seen(run: Replication, monkeypatch: pytest.MonkeyPatch) -> None:
    trial, _ = ContinualTrial.each(run, "orders")
    trial.measure_method("LoRA")

    def remember(self: RegLoRA, model: VisionChat, *rest: Any) -> None:
        with torch.no_grad():
            next(submodule(model, "vision_tower").parameters()).view(-1)[:3] += 1

    monkeypatch.setattr(RegLoRA, "remember", remember)
    monkeypatch.setattr(RegLoRA, "regulariser", lambda *_: 0)
    trial.measure_method("SEFE")
    own, trained = (i for i in run.invariants if i.name == "the vision tower is as it was")
    assert own.holds
    assert own.detail == "LoRA: 0 weights"
    assert not trained.holds
    assert trained.detail == "SEFE: 3 weights"
