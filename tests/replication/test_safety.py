"""Restricted symbols on trial, on the smallest model that has all of its parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from unlearn_core.metrics import METRICS
from unlearn_core.replication.run import Replication
from unlearn_core.replication.safety import SafetyTrial

TRAIN = {"epochs": 1, "lr": 1e-3, "batch_size": 16, "optimizer": "adamw", "max_steps": 2}


@pytest.fixture
def trial(project: Any, tiny: dict[str, Any]) -> SafetyTrial:
    sizes = {"vision_hidden": 16, "vision_layers": 1, "vision_heads": 2}
    tiny["profiles"]["ci"]["experiments"] = {
        "symbols": {
            "title": "Restricted symbols",
            "data": {
                **{"use": "restricted_symbols", "base_images": 12},
                **{"train_images": 12, "val_images": 12},
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
            "forget": {"families": ["restricted"]},
            "original_seed": 0,
            "adapters": {"rank": 2, "alpha": 16, "projector": "multi_modal_projector"},
            "ask": {"max_new_tokens": 4, "times": 2, "batch_size": 16, "known": 2},
            "methods": {
                "PO": {"use": "preference_optimization", "mean": "joint", "train": TRAIN},
                "PO+PD": {"use": "prompt_decouple", "method": "PO"},
            },
        }
    }
    project.paper("tiny", tiny)
    return SafetyTrial(Replication("tiny", "ci", "build/ci"), "symbols", 1, "restricted")


def test_rows(trial: SafetyTrial) -> None:
    """Fails where a set is asked in another's place, or what must stay frozen moves."""
    original = trial.measure_original()
    assert original.metrics.keys() <= METRICS.keys()
    assert original.metrics["attack_success"].n == len(trial.data.train.forget)
    assert original.metrics["unseen_refusal_tone"].n == len(trial.data.val.forget)
    assert original.metrics["vanilla_rouge"].value == pytest.approx(100)  # against itself
    parts = [original.metrics[f"safe_{k}"].value for k in ("refused", "meaningless")]
    assert original.metrics["safe_answer_refusal"].value == pytest.approx(sum(parts))
    before = {k: v.clone() for k, v in trial.original.state_dict().items()}
    row = trial.measure_method("PO+PD")
    assert row.metrics["optimizer_steps"].value == 2
    unlearned = trial.unlearned("PO+PD")
    assert {*unlearned.state_dict()} == {*before}  # adapters are merged and gone
    moved = {k for k, v in unlearned.state_dict().items() if not torch.equal(v, before[k])}
    assert moved
    assert all("vision_tower" not in k and "embed_tokens" not in k for k in moved)
    assert any("multi_modal_projector" in k for k in moved)
    assert any("q_proj" in k for k in moved)
    assert all(torch.equal(v, before[k]) for k, v in trial.original.state_dict().items())


def test_targets_are_the_originals_own_answers(trial: SafetyTrial) -> None:
    """Fails where the gold recipes are unlearned, or an answer that can't be read ends the run."""
    asked = trial.data.train.forget
    said = trial.answers(trial.original, asked)
    for question, gold, own, learned in zip(
        asked.questions, asked.answers, said, trial.split.forget.questions.answers, strict=True
    ):
        try:
            trial.chat.encode(question, own)
        except ValueError:
            assert learned == gold
        else:
            assert learned == own
    assert len(trial.split.forget) == len(trial.split.retain) == len(trial.split.decouple)


def test_the_control_is_a_row_of_its_own(trial: SafetyTrial) -> None:
    """Fails where the control's prompts stay in place for the next method."""
    own = trial.split.decouple.questions.questions
    row = trial.measure_decoupling("PO+PD")
    assert row.variant["decouple"] == "benign prompts"
    assert row.key != trial.measure_method("PO+PD").key
    assert trial.split.decouple.questions.questions == own
