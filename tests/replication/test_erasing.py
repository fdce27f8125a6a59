"""Trials of models that draw, on the smallest problem that has all of their parts."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unlearn_core.metrics import METRICS
from unlearn_core.replication.erasing import ClassErasingTrial, ErasingTrial, picture
from unlearn_core.replication.run import Replication
from unlearn_core.replication.trial import ORIGINAL

TRAIN = {"epochs": 1, "lr": 1e-3, "batch_size": 16, "optimizer": "adamw"}


@pytest.fixture(params=["text_to_image", "class_to_image"])
def trial(project: Any, tiny: dict[str, Any], request: pytest.FixtureRequest) -> ErasingTrial:
    """A concept of four, two seeds."""
    by_class = request.param == "class_to_image"
    tiny["profiles"]["ci"]["experiments"] = {
        "erase": {
            "title": "One of four shapes",
            "data": {"use": "captioned_shapes", "per_class": 8, "test_per_class": 4, "nouns": 4},
            "model": {
                **{"use": request.param, "size": 16, "widths": [8, 16]},
                **({"classes": 4} if by_class else {}),
            },
            "train": TRAIN,
            "task": {"use": "denoising"},
            "forget": {"concept": ["a ring"]},
            "oracle": "Retrain",
            "original_seed": 0,
            "judge": {"model": {"use": "small_cnn", "width": 4}, "train": TRAIN},
            "ask": {
                **{"erased": 4, "synonyms": 2, "kept": 3, "relatives": 1, "shown": 2},
                **{"steps": 2, "guidance": 2.0, "search": {"steps": 2, "batch_size": 2}},
                "relearn": {"examples": 4, "at": [1, 2], "lr": 1e-3, "batch_size": 4},
            },
            "methods": {
                "Retrain": {"use": "retrain"},
                "FT": {"use": "fine_tune", "train": {**TRAIN, "max_steps": 2}},
            },
        }
    }
    project.paper("tiny", tiny)
    run = Replication("tiny", "ci", "build/ci")
    return (ClassErasingTrial if by_class else ErasingTrial)(run, "erase", 1, "a ring")


def test_rows(trial: ErasingTrial) -> None:
    original, changed = trial.measure_original(), trial.measure_method("FT")
    text = type(trial) is ErasingTrial
    assert original.metrics.keys() <= METRICS.keys()
    counts = {k: original.metrics[f"{k}_accuracy"].n for k in ("erased", "kept")}
    assert counts == {"erased": 4, "kept": 9}
    if text:
        assert original.metrics["general_accuracy"].n == 4  # two synonyms
        assert original.metrics["relative_accuracy"].n == 6
    # From the same noise, so the original differs from itself in nothing.
    assert original.metrics["changed_pixels"].value == 0
    assert changed.metrics["changed_pixels"].value > 0
    assert changed.metrics["optimizer_steps"].value == 2
    points = original.detail["points"]
    assert [p["group"] for p in points].count("kept") == 3
    assert points[0]["distance"] == 0
    accuracies = [100 * p["own"] for p in points if p["group"] == "kept"]
    assert original.metrics["kept_accuracy"].value == pytest.approx(sum(accuracies) / 3)
    shown = [p["prompt"] for p in points if "picture" in p]
    assert len(shown) == (6 if text else 4)  # the concept, its synonyms, two near, one far
    image = Image.open(io.BytesIO(base64.b64decode(points[0]["picture"])))
    assert image.size == (32, 16)


def test_what_no_method_is_told(trial: ErasingTrial) -> None:
    """Fails where a synonym of the concept, or of what is kept, is in the request."""
    if type(trial) is not ErasingTrial:
        assert trial.concepts.erased == ((1, 2),)
        assert trial.concepts.keep == (0, 2, 3)
        return
    request = repr(trial.concepts)
    told = {p.text: any(repr(p.text) in request for _ in [0]) for p in trial.prompts}
    for prompt in trial.prompts:
        assert told[prompt.text] == (prompt.group == "kept"), prompt
    assert trial.concepts.erased == (("a ring", "a shape"),)


def test_the_judge_is_named(trial: ErasingTrial) -> None:
    row = trial.measure_judge()
    assert row.method == "Judge"
    assert row.metrics["test_accuracy"].n == 16


def test_attacks(trial: ErasingTrial) -> None:
    relearned = trial.measure_relearning("FT")
    assert [p["step"] for p in relearned.detail["points"]] == [0, 1, 2]
    last = relearned.detail["points"][-1]["concept"]
    assert relearned.metrics["relearned_generation"].value == last
    if type(trial) is ErasingTrial:
        found = trial.measure_search(ORIGINAL)
        assert found.metrics["attacked_accuracy"].n == 4
        assert found.key != trial.measure_search("FT").key


def test_a_picture_is_what_was_drawn() -> None:
    images = torch.tensor([-1.0, 1.0, 0.0]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture(images)))))
    assert shown.tolist() == [[0, 0, 255, 255, 128, 128]] * 2
