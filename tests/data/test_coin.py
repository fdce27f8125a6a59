"""CoIN as its authors lay it out, in a made-up folder of the same schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from unlearn_core.data import AnswerStyleDiversification, MissingSourceError, coin, coin_source
from unlearn_core.data.coin import COIN_TASKS
from unlearn_core.data.image_files import MEAN, ImageFiles
from unlearn_core.metrics import score_answers
from unlearn_core.replication.rehearsal import coin as build


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    build(tmp_path / "coin")
    monkeypatch.setenv("UNLEARN_COIN", str(tmp_path / "coin"))
    return tmp_path / "coin"


@pytest.mark.parametrize("name", COIN_TASKS)
def test_right_answers_are_right(folder: Path, name: str) -> None:
    """Fails where right answers are read from another place than the authors' scorers read."""
    task, left_out = coin(name, 10, 3, size=8, skip_broken=True)
    assert (task.name, task.style) == (name, COIN_TASKS[name])
    assert (len(task.train), len(task.test)) == (9 if name == "VizWiz" else 10, 3)
    scores = score_answers(task, task.test.answers)
    assert all(s.all() for s in scores)
    assert task.train.images.shape[1:] == (8, 8, 3)
    assert "<image>" not in "".join((*task.train.questions, *task.test.questions))
    reasons = {"VizWiz": "image can't be decoded", "ScienceQA": "no image"}
    assert {*left_out} <= {reasons.get(name)}
    if name == "ScienceQA":
        assert task.test.questions[0].endswith("from the given choices directly.")
        assert not score_answers(task, ["A"] * 3).knowledge.any()
        assert score_answers(task, ["The dog."] * 3).knowledge.all()


def test_converted_answers_are_those_published(folder: Path) -> None:
    plain, converted = (coin("GQA", 10, 2, ratio=r, size=8).task.train for r in (0, 20))
    assert plain.questions == tuple(q.replace("x20", "ori") for q in converted.questions)
    assert all("x20" in q for q in converted.questions)
    assert plain.images.files == converted.images.files
    assert plain.fingerprint() != converted.fingerprint()
    with pytest.raises(ValueError, match="nothing but questions and answers is known"):
        AnswerStyleDiversification(20)(coin("GQA", 2, 2, size=8).task)


def test_a_damaged_image_is_named(folder: Path) -> None:
    """It is left out only where that is asked for, and then counted."""
    task, left_out = coin("VizWiz", 10, 4, size=8)
    assert not left_out
    with pytest.raises(ValueError, match=r"vizwiz0\.png in images is no image"):
        task.train.images[task.train.which]
    task, left_out = coin("VizWiz", 10, 4, size=8, skip_broken=True)
    assert left_out == {"image can't be decoded": 2}  # once to learn from, once to be asked
    assert task.train.images[task.train.which].shape == (9, 8, 8, 3)


@pytest.mark.parametrize("skip_broken", [False, True])
@pytest.mark.parametrize("image", ["../other/a.png", "/other/a.png", "images/../../a.png", 7])
def test_an_image_outside_the_folder(folder: Path, image: object, skip_broken: bool) -> None:
    """Fails where what a list names is read wherever it lies, or is passed over as one that can't be
    decoded."""
    lines = [{"id": "x", "image": image, "conversations": [{"value": "<image>?"}, {"value": "a"}]}]
    (folder / "annotations/GQA/train_ori.json").write_text(json.dumps(lines))
    says = r"a\.png' leads out of the folder coin" if image != 7 else "path from coin, not by 7"
    with pytest.raises(ValueError, match=says):
        coin("GQA", 1, 1, skip_broken=skip_broken)


def test_annotations_that_are_no_json(folder: Path) -> None:
    for text in (b'[{"id": ', b'["\xff"]', b"[" * 100_000):
        (folder / "annotations/GQA/test.json").write_bytes(text)
        with pytest.raises(ValueError, match=r"test\.json in GQA is no JSON: "):
            coin("GQA", 1, 1)


def test_images_become_squares(tmp_path: Path) -> None:
    """Fails where an image is cut or stretched: a box would be somewhere else."""
    file = tmp_path / "wide.png"
    Image.new("RGB", (40, 20), (255, 0, 0)).save(file)
    image = ImageFiles([file], 8)[torch.tensor(0)]
    assert image[:2].unique(dim=0).tolist()[0][0] == list(MEAN)
    assert (image[3:5] == torch.tensor([255, 0, 0], dtype=torch.uint8)).all()


def test_two_sets_become_one(folder: Path) -> None:
    a, b = (coin(name, 3, 1, size=8).task.train for name in ("GQA", "VQAv2"))
    both = a + b
    assert both.questions == a.questions + b.questions
    assert torch.equal(both[4][2], b[1][2])


def test_what_is_missing_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert coin_source(["GQA"]).kind == "user"
    with pytest.raises(ValueError, match="unknown task 'GQ'"):
        coin("GQ", 1, 1)
    with pytest.raises(MissingSourceError, match=r"GQA/train_x30\.json is not in"):
        coin("GQA", 1, 1, ratio=30)
    (folder / "annotations/GQA/train_ori.json").write_text(
        json.dumps([{"id": "x", "image": "a.png", "conversations": [{"value": "no token"}] * 2}])
    )
    with pytest.raises(ValueError, match="'x' has 2 turns and 0 image tokens"):
        coin("GQA", 1, 1)
    monkeypatch.delenv("UNLEARN_COIN")
    with pytest.raises(MissingSourceError, match="not set"):
        coin("GQA", 1, 1)
