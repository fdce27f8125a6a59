"""Trials of models that draw, on the smallest problem that has all of their parts."""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unlearn_core.data import MissingSourceError, coco_captions
from unlearn_core.metrics import (
    INCEPTION,
    METRICS,
    ZeroShot,
    clip_score,
    eight_bit,
    frechet_distance,
    generation,
)
from unlearn_core.models import TrainingError
from unlearn_core.replication.pages.drawings import _small, each, pictures
from unlearn_core.replication.rehearsal import HUB, USER
from unlearn_core.replication.run import Replication
from unlearn_core.replication.trials import diffusion as erasing
from unlearn_core.replication.trials.base import ORIGINAL
from unlearn_core.replication.trials.diffusion import (
    ClassErasingTrial,
    CocoTrial,
    ErasingTrial,
    LabelledErasingTrial,
    NamesTrial,
    PretrainedErasingTrial,
    PretrainedPromptSetTrial,
    erasing_trials,
    picture,
)

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
                **{
                    "steps": 2,
                    "guidance": 2.0,
                    "search": {"examples": 4, "steps": 2, "batch_size": 2},
                },
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
        assert original.metrics["anchor_accuracy"].n == 4
    # From the same noise, so the original differs from itself in nothing.
    assert original.metrics["changed_pixels"].value == 0
    assert changed.metrics["changed_pixels"].value > 0
    assert changed.metrics["optimizer_steps"].value == 2
    if not text:
        assert original.metrics["erased_accuracy"].n == original.metrics["unlearning_accuracy"].n
        both = (original.metrics[f"{k}_accuracy"].value for k in ("erased", "unlearning"))
        assert sum(both) == pytest.approx(100)
    points = original.detail["points"]
    assert [p["prompt"] for p in points if not text] in (
        [],
        ["a ring", "a disc", "a square", "a frame"],
    )
    assert [p["group"] for p in points].count("kept") == 3
    assert points[0]["distance"] == 0
    accuracies = [100 * p["own"] for p in points if p["group"] == "kept"]
    assert original.metrics["kept_accuracy"].value == pytest.approx(sum(accuracies) / 3)
    shown = [p["prompt"] for p in points if "picture" in p]
    # The concept, its synonyms, the anchor; two near, one far.
    assert len(shown) == (7 if text else 4)
    image = Image.open(io.BytesIO(base64.b64decode(points[0]["picture"])))
    assert image.size == (32, 16)
    before, after = (dict(m.named_parameters()) for m in (trial.original, trial.unlearned("FT")))
    moved = {n: int((after[n] != p).sum()) for n, p in before.items()}
    own = sum(k for n, k in moved.items() if ".attn2.to_k." in n or ".attn2.to_v." in n)
    if text:
        assert original.detail["changed_elsewhere"] == 0
        assert own > 0
        assert changed.detail["changed_elsewhere"] == sum(moved.values()) - own > 0
    else:
        assert "changed_elsewhere" not in changed.detail


def test_the_floor(trial: ErasingTrial, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where real images are compared with themselves, or in the order of the data set."""
    monkeypatch.setattr(erasing, "classifier_fid", lambda _, *parts: parts)
    some, others = trial.floor()
    both = torch.cat([some, others]).flatten(1)
    # As many as are drawn of three kept nouns, 9; but half of the real ones at most.
    assert len(some) == min(9, len(both) // 2) > 1
    assert not torch.equal(both, trial.real.flatten(1))
    assert sorted(both.tolist()) == sorted(trial.real.flatten(1).tolist())


def test_what_no_method_is_told(trial: ErasingTrial) -> None:
    """Fails where a synonym of the concept, or of what is kept, is in the request."""
    if type(trial) is not ErasingTrial:
        assert trial.concepts.erased == ((1, 2),)
        assert trial.concepts.keep == (0, 2, 3)
        return
    request = repr(trial.concepts)
    told = {p.text: repr(p.text) in request for p in trial.prompts}
    for prompt in trial.prompts:
        assert told[prompt.text] == (prompt.group in ("kept", "anchor")), prompt
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
        found = trial.measure_embedding(ORIGINAL)
        assert found.metrics["attacked_accuracy"].n == 4
        assert found.key != trial.measure_embedding("FT").key


def test_what_a_reader_sees(trial: ErasingTrial) -> None:
    """Fails where a class is shown by its number, or prompts that have no picture pass for all."""
    trial.measure_original()
    trial.measure_method("FT")
    shown = pictures(trial.run, ["erase"], "a ring", "the ring").data
    assert "What is drawn where the ring is to be erased" in shown
    some = type(trial) is ErasingTrial
    assert ("the two nearest to the concept" in shown) == some
    assert shown.count("<img") == 3 * (7 if some else 4)  # Retrain, too
    table = each(trial.run, ["erase"], "a ring").data
    assert table.count("<tr>") == 4
    own = trial.measure_original().detail["points"][1]
    assert f"{own['prompt']}<br><i>{own['group']}, {own['n']} images</i>" in table
    assert f"<td>{100 * own['own']:.0f}</td>" in table


def test_as_many_whole_images_as_there_is_room_for() -> None:
    """Fails where a strip is cut through an image, or is as wide as all of them."""
    strip = picture(torch.rand(4, 3, 28, 28) * 2 - 1)
    for count, width in ((1, 28), (3, 84), (8, 112)):
        shown = Image.open(io.BytesIO(base64.b64decode(_small(strip, count))))
        assert shown.size == (width, 28)


def test_a_picture_is_what_was_drawn() -> None:
    images = torch.tensor([-1.0, 1.0, 0.0]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture(images)))))
    assert shown.tolist() == [[0, 0, 255, 255, 128, 128]] * 2


@pytest.fixture
def stable(project: Any, tiny: dict[str, Any], hub: Path) -> Iterator[Replication]:
    """Objects and explicit content, of a tiny pipeline in the hub folder."""
    for id in ("CompVis/stable-diffusion-v1-4", "openai/clip-vit-base-patch32", "AIML-TUDA/i2p"):
        HUB[id](hub / id)
    common: dict[str, Any] = {
        "data": {"use": "objects"},
        "model": {"use": "stable_diffusion", "precision": "no"},
        "task": {"use": "denoising"},
    }
    tiny["profiles"]["ci"]["experiments"] = {
        "objects": {
            **common,
            "title": "Objects",
            "forget": {"concept": ["cat"]},
            "ask": {
                **{"erased": 3, "synonyms": 1, "kept": 2, "relatives": 1, "shown": 1},
                **{
                    "steps": 1,
                    "guidance": 2.0,
                    "search": {"examples": 2, "steps": 1, "batch_size": 2},
                },
            },
            "methods": {"UCE": {"use": "uce"}, "Retrain": {"use": "retrain"}},
        },
        "explicit": {
            **common,
            "title": "Explicit content",
            "forget": {"concept": ["nudity"]},
            "ask": {"prompts": 2, "steps": 1, "guidance": 2.0},
            "methods": {"UCE": {"use": "uce"}},
        },
    }
    project.paper("tiny", tiny)
    generation._clip.cache_clear()
    yield Replication("tiny", "ci", "build/ci")
    generation._clip.cache_clear()


def test_a_model_that_was_trained_elsewhere(stable: Replication) -> None:
    (trial, *_) = erasing_trials(stable, "objects")
    assert type(trial) is PretrainedErasingTrial
    original, edited = trial.measure_original(), trial.measure_method("UCE")
    assert original.metrics.keys() - edited.metrics.keys() == set()
    assert "classifier_fid" not in original.metrics
    assert original.metrics["clip_score"].n == 18  # nine others, twice
    assert original.metrics["general_accuracy"].n == 3
    assert edited.metrics["changed_pixels"].value > 0
    assert 0 < edited.metrics["changed_weights"].value < 50  # cross-attention alone
    # The judge's classes are in the order of the nouns.
    assert trial.judge.texts[trial.data.label("cat")] == "a photo of the cat"
    assert trial.measure_embedding("UCE").metrics["attacked_accuracy"].n == 3
    with pytest.raises(TrainingError, match="trained elsewhere"):
        trial.measure_method("Retrain")


def test_real_images_of_ten_classes(stable: Replication, tmp_path: Path) -> None:
    """Fails where another class than the next takes the concept's place, or images are lost."""
    USER["UNLEARN_IMAGENETTE"](tmp_path / "imagenette")
    e = stable.experiment("objects")
    changed = {
        "data": {"use": "imagenette", "path": str(tmp_path / "imagenette"), "size": 16},
        "forget": {"concept": ["parachute"]},
        # Real classes are asked for by name alone.
        "ask": {k: v for k, v in e.ask.items() if k not in ("synonyms", "relatives", "search")},
        "methods": {
            "SalUn": {
                "use": "salun_generation",
                "train": {"epochs": 1, "lr": 1e-5, "batch_size": 2, "optimizer": "adam"},
            }
        },
    }
    stable.profile.experiments["objects"] = e.model_copy(update=changed)
    (trial,) = [t for t in erasing_trials(stable, "objects") if t.seed == 0]
    assert type(trial) is LabelledErasingTrial
    assert trial.concepts.erased == (("parachute", "tench"),)
    assert "an image of a tench" in trial.concepts.keep
    assert (len(trial.split.forget), len(trial.split.retain)) == (4, 36)
    assert trial.split.task.relabel(trial.split.forget).captions == ("an image of a tench",) * 4
    assert [p.group for p in trial.prompts] == ["erased"] + ["kept"] * 9
    row = trial.measure_method("SalUn")
    assert row.metrics["optimizer_steps"].value == 2
    assert 0 < row.metrics["changed_weights"].value <= 50
    assert "clip_score" in row.metrics
    assert all(i.holds for i in stable.invariants)


def test_prompts_of_a_model_that_was_trained_elsewhere(stable: Replication) -> None:
    """Fails where prompts share their images, or these are drawn anew for each set and seed."""
    e = stable.experiment("objects")
    few = {"epochs": 2, "lr": 1e-3, "batch_size": 1}
    changed = {
        "data": {"use": "paintings"},
        "forget": {"chosen": ["worst"]},
        "select": {
            "worst": {
                **{"use": "worst_prompts", "iterations": 1, "steps": 1, "count": 3},
                "train": few,
            }
        },
        "ask": {
            **{"erased": 2, "kept": 1, "images": 2, "shown": 1},
            **{"steps": 1, "guidance": 2.0},
        },
        "methods": {"ESD": {"use": "esd", "steps": 1, "train": {**few, "optimizer": "adam"}}},
    }
    stable.profile.experiments["objects"] = e.model_copy(update=changed)
    trial, *_ = erasing_trials(stable, "objects")
    assert type(trial) is PretrainedPromptSetTrial
    prompts, images = trial.candidates
    assert len(prompts) == len(images) == 100
    assert images[0].shape == (2, 3, 16, 16)
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[0], trial.shown(1)[0])
    again, *_ = erasing_trials(stable, "objects")
    again.draw = lambda *_: pytest.fail("they are drawn a second time")  # type: ignore[method-assign]
    assert torch.equal(torch.stack(images), torch.stack(again.candidates[1]))
    row = trial.measure_method("ESD")
    assert row.metrics["erased_accuracy"].n == 6
    assert row.metrics["kept_accuracy"].n == 97
    assert trial.measure_judge() is None
    assert trial.judge.texts[0] == "A painting of a Statues in Crayon Style."


def test_explicit_content_is_counted(
    stable: Replication, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where a prompt is left out or asked twice, or a picture is kept."""
    found = [{"class": "FEET_EXPOSED", "score": 0.7}, {"class": "BELLY_EXPOSED", "score": 0.5}]
    package = tmp_path / "nudenet" / "__init__.py"
    package.parent.mkdir()
    package.write_text("version 3")
    detector = SimpleNamespace(detect=lambda image: found)
    module = SimpleNamespace(NudeDetector=lambda: detector, __file__=str(package))
    monkeypatch.setitem(sys.modules, "nudenet", module)
    generation._nudenet.cache_clear()
    (trial, *_) = erasing_trials(stable, "explicit")
    row = trial.measure_method("UCE")
    assert row.metrics["nudity_count"].value == 2  # two prompts; the belly's score is too low
    assert row.metrics["nudity_count"].n == 2
    assert row.detail["counts"]["FEET_EXPOSED"] == 2
    assert row.metrics["clip_score"].n == 2
    assert "points" not in row.detail
    assert [s["id"] for s in row.provenance.sources][:2] == ["AIML-TUDA/i2p", "NudeNet"]
    package.write_text("version 4")
    again, *_ = erasing_trials(stable, "explicit")
    assert again.evaluation() != trial.evaluation(), "another detector counts otherwise"
    generation._nudenet.cache_clear()


def test_captions_of_coco(
    stable: Replication, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where a part of the prompts is left out, the images are other captions', or the models are
    not those without explicit content."""
    USER["UNLEARN_COCO"](tmp_path / "coco")
    monkeypatch.setenv("UNLEARN_COCO", str(tmp_path / "coco"))
    monkeypatch.setattr(erasing, "PART", 2)
    monkeypatch.setattr(erasing, "inception_features", lambda images, weights: grey(images))
    e = stable.experiment("explicit")
    asked = {"captions": 5000, "steps": 1, "guidance": 2.0}
    stable.profile.experiments["coco"] = e.model_copy(update={"ask": asked})
    trial, *_ = erasing_trials(stable, "coco")
    assert type(trial) is CocoTrial
    assert trial.concepts.erased[0] == ("nudity", "a person wearing clothes")
    assert trial.concepts.templates == ("a photo of {}", "a picture of {}", "{}")
    kept = [f"a photo of the {noun.name}" for noun in trial.data.nouns]
    assert trial.concepts.keep == ("", "a photo of a person wearing clothes", *kept)
    captions, files, _ = coco_captions(3)
    assert captions[0].startswith(f"Thing {int(files[0].stem[-12:])},")
    real = [np.array(Image.open(file)).mean((0, 1)) for file in files]
    assert trial.real.numpy() == pytest.approx(np.array(real), rel=1e-5)
    row = trial.measure_method("UCE")
    drawn = [
        trial.draw(trial.unlearned("UCE"), captions[i : i + 2], f"prompts {i}") for i in (0, 2)
    ]
    expected = frechet_distance(grey(eight_bit(torch.cat(drawn))), trial.real)
    assert row.metrics["inception_fid"].value == pytest.approx(expected, rel=1e-6)
    assert row.metrics["inception_fid"].n == 3
    score = clip_score(torch.cat(drawn), captions)
    assert row.metrics["clip_score"].value == pytest.approx(score.value, abs=1e-4)
    assert "nudity_count" not in row.metrics
    sources = [s["id"] for s in row.provenance.sources]
    assert sources[:2] == ["COCO captions 2014", "Inception v3"]
    (tmp_path / "coco" / INCEPTION).unlink()
    again, *_ = erasing_trials(stable, "coco")
    with pytest.raises(MissingSourceError, match=f"has no {INCEPTION}"):
        again.measure_original()


def grey(images: Any) -> torch.Tensor:
    """Three features: the mean of each channel."""
    return torch.stack([x.float().mean((1, 2)) for x in images])


def test_names_that_are_erased_together(
    stable: Replication, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand, of the images that are drawn. Fails where a name is in the wrong group, a score is of the
    other's prompts, or what is kept is not told."""
    USER["UNLEARN_CELEBRITIES"](tmp_path / "list")
    monkeypatch.setenv("UNLEARN_CELEBRITIES", str(tmp_path / "list"))
    e = stable.experiment("objects")
    changed = {
        "data": {"use": "people"},
        "forget": {"group": ["the names to erase"]},
        "ask": {"erased": 2, "kept": 1, "steps": 1, "guidance": 2.0},
    }
    stable.profile.experiments["people"] = e.model_copy(update=changed)
    trial, *_ = erasing_trials(stable, "people")
    assert type(trial) is NamesTrial
    assert trial.concepts.erased == (("Ann Example", "a person"), ("Cy Other", "a person"))
    kept = ("", "a portrait of a person", "a portrait of Bob Example", "a portrait of Di Other")
    assert trial.concepts.keep == kept
    assert len(trial.concepts.templates) == 5
    original, row = trial.measure_original(), trial.measure_method("UCE")
    assert original.metrics["changed_pixels"].value == 0
    assert row.metrics["changed_pixels"].value > 0

    prompts = [t.format(n) for n in ("Ann Example", "Cy Other") for t in trial.data.templates]
    asked = [p.text for p in trial.prompts for _ in range(p.count)]
    gone = [text in prompts for text in asked]
    assert (sum(gone), len(gone)) == (20, 30)
    images = trial.draw(trial.unlearned("UCE"), asked)
    names = ["Ann Example", "Bob Example", "Cy Other", "Di Other"]
    named = ZeroShot([f"a portrait of {n}" for n in names])(images).argmax(dim=1)
    right = [names[k] in text for k, text in zip(named.tolist(), asked, strict=True)]
    for which, accuracy, score in (
        (True, "erased_accuracy", "erased_clip_score"),
        (False, "kept_accuracy", "clip_score"),
    ):
        own = [i for i, g in enumerate(gone) if g == which]
        expected = clip_score(images[own], [asked[i] for i in own])
        assert row.metrics[score].value == pytest.approx(expected.value, abs=1e-4)
        share = 100 * sum(right[i] for i in own) / len(own)
        assert row.metrics[accuracy].value == pytest.approx(share)
        assert row.metrics[accuracy].n == len(own)
    gap = row.metrics["clip_score"].value - row.metrics["erased_clip_score"].value
    assert row.metrics["clip_gap"].value == pytest.approx(gap)
    assert "points" not in row.detail  # no picture of a person is kept
    assert "people" in [s["id"] for s in row.provenance.sources]


def test_sets_of_prompts(project: Any, tiny: dict[str, Any]) -> None:
    """Fails where a chosen word is measured as kept, a synonym is no candidate, or both sets share
    a row."""
    search = {"use": "worst_prompts", "iterations": 1, "steps": 1, "count": 2}
    tiny["profiles"]["ci"]["experiments"] = {
        "prompts": {
            "title": "Two of six words",
            "data": {"use": "captioned_shapes", "per_class": 8, "test_per_class": 4, "nouns": 2},
            "model": {"use": "text_to_image", "size": 16, "widths": [8, 16]},
            "train": TRAIN,
            "task": {"use": "denoising"},
            "forget": {"chosen": ["worst", "random"]},
            "select": {
                "worst": {**search, "train": {"epochs": 2, "lr": 1e-3, "batch_size": 1}},
                "random": {"use": "random_prompts", "count": 2},
            },
            "original_seed": 0,
            "judge": {"model": {"use": "small_cnn", "width": 4}, "train": TRAIN},
            "ask": {
                **{"erased": 3, "kept": 2, "images": 2, "shown": 1},
                **{"steps": 1, "guidance": 2.0},
            },
            "methods": {
                "ESD": {
                    "use": "esd",
                    "steps": 1,
                    "train": {"epochs": 1, "lr": 1e-3, "batch_size": 1},
                }
            },
        }
    }
    project.paper("tiny", tiny)
    run = Replication("tiny", "ci", "build/ci")
    worst, random, *_ = erasing_trials(run, "prompts")
    assert [w for w, _ in worst.words] == [
        "a disc",
        "a circle",
        "a dot",
        "a ring",
        "a hoop",
        "a loop",
    ]
    selections = [t.measure_selection() for t in (worst, random)]
    assert selections[0].key != selections[1].key
    assert len(selections[0].detail["log"]) == 1
    assert selections[1].detail["log"] == []
    overlap = 100 * selections[0].detail["log"][0]["overlap_initial"]
    assert selections[0].metrics["overlap_initial"].value == overlap
    assert "overlap_initial" not in selections[1].metrics
    for trial, row in zip((worst, random), selections, strict=True):
        chosen = row.detail["words"]
        assert len(chosen) == 2
        assert [p.text for p in trial.prompts[:2]] == [f"a photo of {word}" for word in chosen]
        original, erased = trial.measure_original(), trial.measure_method("ESD")
        assert original.metrics["erased_accuracy"].n == 6  # two words, three times
        assert original.metrics["kept_accuracy"].n == 8
        assert original.metrics["erased_loss"].n == 2
        assert original.metrics["changed_pixels"].value == 0
        assert erased.metrics["changed_pixels"].value > 0
        points = erased.detail["points"]
        assert [p["prompt"] for p in points] == [f"a photo of {word}" for word in chosen]
        losses = [p["loss"] for p in points]
        assert erased.metrics["erased_loss"].value == pytest.approx(sum(losses) / 2)
        assert all(p["picture"] for p in points)
    # The verdict looks at images that the search has not seen.
    for searched, judged in zip(worst.shown(0), worst.shown(1), strict=True):
        assert len(searched) == len(judged) == 2
        assert not any(torch.equal(a, b) for a in searched for b in judged)
    # Another seed chooses for itself, so it asks the original for other words.
    other = next(t for t in erasing_trials(run, "prompts") if t.seed != worst.seed)
    assert other.measure_original().seed == other.seed
    assert all(i.holds for i in run.invariants)
    assert {i.experiment for i in run.invariants} == {"prompts"}
