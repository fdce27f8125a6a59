"""SafeEraser's files, made up and harmless: what is read, and what is said of what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from unlearn_core.data import MissingSourceError, safety_benchmark
from unlearn_core.replication.rehearsal import safeeraser


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    safeeraser(tmp_path)
    monkeypatch.setenv("UNLEARN_SAFEERASER", str(tmp_path))
    return tmp_path


def test_the_sets_of_each_part(folder: Path) -> None:
    """Fails where `Answer` is learned in the place of what the model said, or the safe image's answer
    stands beside the harmful one."""
    data = safety_benchmark(size=8)
    for part, first in ((data.train, 0), (data.val, 4)):
        assert part.general is None
        assert part.forget.questions == part.decouple.questions
        assert len(part.forget) == len(part.retain) == len(part.decouple) == 16
        assert part.forget[1][:2] == (f"How to do {first} 1?", f"So {first}.")
        assert part.decouple[1][:2] == (f"How to do {first} 1?", "Thus 1.")
        assert part.retain[5][:2] == ("What is text2?", f"It is {first + 1}.")
        # The safe image of the first record is that of the third, and none of the harmful ones.
        safe, harmful = part.decouple.which[::4], part.forget.which[::4]
        assert safe[0] == safe[2]
        assert not {*safe.tolist()} & {*harmful.tolist()}
        assert torch.equal(part.retain.which, part.forget.which)
        assert part.forget.images.shape[1:] == (8, 8, 3)
    assert data.refusals == ("I cannot say.", "Sorry, no.")
    assert data.skipped == ()
    assert data.source.kind == "user"


def test_records_that_name_their_image_by_id_alone(folder: Path) -> None:
    """As the public mirror of the files has them; fails where an image is looked for under one key."""
    found = safety_benchmark(size=8)
    records = json.loads((folder / "all_train.json").read_text())
    for record in records:
        del record["image_path"]
    (folder / "all_train.json").write_text(json.dumps(records))
    again = safety_benchmark(size=8)
    assert again.train.forget.fingerprint() == found.train.forget.fingerprint()
    del records[0]["image_id"]
    (folder / "all_train.json").write_text(json.dumps(records))
    with pytest.raises(ValueError, match=r"record 0 of all_train\.json lacks 'image_id'"):
        safety_benchmark(size=8)


def test_fewer_records(folder: Path) -> None:
    data = safety_benchmark(size=8, train_images=2, val_images=1)
    assert (len(data.train.forget), len(data.val.forget)) == (8, 4)


def test_an_image_that_cannot_be_decoded(folder: Path) -> None:
    """Fails where it ends a run that was told to go on, or is left out in silence."""
    (folder / "img/Weapon/1.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"the first is img/Weapon/1\.jpg"):
        safety_benchmark(size=8)
    data = safety_benchmark(size=8, skip_broken=True)
    assert data.skipped == ("img/Weapon/1.jpg",)
    assert len(data.train.forget) == 12
    assert "How to do 1 0?" not in data.train.forget.questions


@pytest.mark.parametrize("path", ["x/img/../../a.jpg", "../a.jpg", "/a.jpg"])
def test_an_image_outside_the_folder(folder: Path, path: str) -> None:
    """Fails where it is read, or where one that can't be decoded ends in a raw error of a path's."""
    records = json.loads((folder / "all_train.json").read_text())
    records[1]["SDImage_path"] = path
    (folder / "all_train.json").write_text(json.dumps(records))
    (folder.parent / "a.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=rf"a\.jpg' leads out of the folder {folder.name}"):
        safety_benchmark(size=8, skip_broken=True)


def test_the_middle_of_an_image_is_cut_out(folder: Path) -> None:
    from PIL import Image

    image = Image.new("RGB", (30, 10), "red")
    image.paste("blue", (10, 0, 20, 10))
    image.save(folder / "img/Violence/0.jpg", "PNG")
    *_, pixels = safety_benchmark(size=10).train.forget[0]
    assert pixels[5, 5].tolist() == [0, 0, 255]
    assert (pixels.float().mean(dim=(0, 1)) - torch.tensor([0.0, 0.0, 255.0])).abs().max() < 40


def test_what_is_missing_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = json.loads((folder / "all_val.json").read_text())
    del records[2]["UnharmPair_text2"]["Prediction"]
    (folder / "all_val.json").write_text(json.dumps(records))
    with pytest.raises(ValueError, match=r"record 2 of all_val\.json lacks 'Prediction'"):
        safety_benchmark(size=8)
    (folder / "img/Violence/0.jpg").unlink()
    with pytest.raises(MissingSourceError, match=r"image 0\.jpg is not there"):
        safety_benchmark(size=8)
    (folder / "prompt.json").unlink()
    with pytest.raises(MissingSourceError, match=r"no folder with prompt\.json"):
        safety_benchmark()
    monkeypatch.delenv("UNLEARN_SAFEERASER")
    with pytest.raises(MissingSourceError, match="UNLEARN_SAFEERASER"):
        safety_benchmark()
