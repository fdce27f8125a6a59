"""What `datasets` reads for us: in which order, at which price, and what it is not given."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import config
from PIL import Image

from unlearn_core.data import MissingSourceError, Source
from unlearn_core.data.tables import images_by_class, parts, read


def write_lines(file: Path, first: int, n: int) -> Path:
    file.write_text("".join(json.dumps({"n": i}) + "\n" for i in range(first, first + n)))
    return file


def part(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()


def image(file: Path, grey: int = 0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((2, 2, 3), grey, np.uint8)).save(file)
    return file


class TestRead:
    def test_rows_come_in_the_order_of_the_files_and_their_lines(self, tmp_path: Path) -> None:
        """Fails where files are sorted, or a part is read by several threads."""
        late, early = write_lines(tmp_path / "b.json", 0, 3), write_lines(tmp_path / "a.json", 3, 2)
        rows = read("json", [late, early])
        assert [row["n"] for row in rows] == [0, 1, 2, 3, 4]
        assert [row["n"] for row in rows] == [0, 1, 2, 3, 4]

    def test_a_path_is_no_pattern(self, tmp_path: Path) -> None:
        folder = tmp_path / "a [b] *" / ".hidden"
        folder.mkdir(parents=True)
        (tmp_path / "a b x").mkdir()
        assert [r["n"] for r in read("json", [write_lines(folder / "x?.json", 7, 1)])] == [7]

    def test_it_leaves_no_cache_asks_no_server_and_prints_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
    ) -> None:
        """Fails where bytes are copied to the reader's home, or a download is counted."""
        asked: list[str] = []
        monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
        monkeypatch.setattr(config, "HF_UPDATE_DOWNLOAD_COUNTS", True)
        monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr("datasets.load.get_session", lambda: asked.append("session"))
        assert len(list(read("json", [write_lines(tmp_path / "a.json", 0, 4)]))) == 4
        assert [f.name for f in tmp_path.iterdir()] == ["a.json"]
        assert asked == []
        assert capfd.readouterr() == ("", "")
        assert config.HF_UPDATE_DOWNLOAD_COUNTS is True

    def test_it_is_loaded_when_something_is_read(self) -> None:
        """Fails where importing the data takes the seconds of `datasets` and pandas."""
        code = "import sys, unlearn_core.data; print({'datasets', 'pandas'} & {*sys.modules})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout.strip() == "set()", done.stderr


class TestParts:
    def source(self, folder: Path) -> Source:
        return Source("someone/some", "hub-folder", "0", folder)

    def test_they_come_in_order_whatever_folder_they_are_in(self, tmp_path: Path) -> None:
        for i in (2, 0, 1):
            part(tmp_path / "plain_text", f"train-0000{i}-of-00003-0a{i}.parquet")
        part(tmp_path / "plain_text", "test-00000-of-00001.parquet")
        names = [f.name[:14] for f in parts(self.source(tmp_path), "train")]
        assert names == ["train-00000-of", "train-00001-of", "train-00002-of"]

    @pytest.mark.parametrize(
        "second",
        [
            "train-00000-of-00002.parquet",
            "plain_text/train-00000-of-00002-0a1b.parquet",
            "train-00001-of-00003.parquet",
        ],
    )
    def test_two_copies_are_named(self, tmp_path: Path, second: str) -> None:
        """Fails where the same images are read twice: what is forgotten would be retained, too."""
        for i in range(2):
            part(tmp_path / "plain_text", f"train-0000{i}-of-00002.parquet")
        part((tmp_path / second).parent, Path(second).name)
        with pytest.raises(ValueError, match="belong to two copies of train") as caught:
            parts(self.source(tmp_path), "train")
        assert second in str(caught.value)
        assert "plain_text/train-0000" in str(caught.value)

    def test_a_part_that_is_missing_is_named(self, tmp_path: Path) -> None:
        part(tmp_path, "train-00001-of-00003.parquet")
        part(tmp_path, "train-00000-of-00003.parquet")
        with pytest.raises(MissingSourceError, match="of 3 parts of train number 2 is not in"):
            parts(self.source(tmp_path), "train")

    def test_a_file_of_another_name_is_not_guessed_at(self, tmp_path: Path) -> None:
        part(tmp_path, "train-00000-of-00001 (1).parquet")
        with pytest.raises(ValueError, match=r"train-00000-of-00001 \(1\).parquet is no part"):
            parts(self.source(tmp_path), "train")


class TestImagesByClass:
    def test_what_is_hidden_or_empty_is_no_class(self, tmp_path: Path) -> None:
        """Fails where a notebook's checkpoints are a class, or an empty folder stops everything."""
        for name in ("bob/2.png", "bob/10.JPG", "ann/1.bmp", ".ipynb_checkpoints/1.png"):
            image(tmp_path / name)
        for name in ("__MACOSX/1.png", "bob/.thumbs/2.png", "bob/._2.png"):
            image(tmp_path / name)
        (tmp_path / "carl").mkdir()
        (tmp_path / "bob" / "metadata.csv").write_text("file_name,x\n2.png,1\n")
        found = images_by_class(tmp_path)
        assert [(c, f.name) for c, f in found] == [
            ("ann", "1.bmp"),
            ("bob", "10.JPG"),
            ("bob", "2.png"),
        ]
        assert images_by_class(tmp_path / "carl") == []

    def test_a_link_to_a_folder_is_a_class(self, tmp_path: Path) -> None:
        kept = image(tmp_path / "elsewhere" / "sub" / "1.png").parent.parent
        root = image(tmp_path / "faces" / "bob" / "2.png").parents[1]
        (root / "ann").symlink_to(kept)
        assert images_by_class(root) == [
            ("ann", root / "ann" / "sub" / "1.png"),
            ("bob", root / "bob" / "2.png"),
        ]
        (root / "eve").symlink_to(kept)
        with pytest.raises(ValueError, match="the classes ann and eve are one folder"):
            images_by_class(root)
