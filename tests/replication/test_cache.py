from __future__ import annotations

import contextlib
import errno
import json
import logging
import multiprocessing
import os
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from unlearn_core.replication import cache as module
from unlearn_core.replication.cache import Cache, CacheError, CacheWarning, digest

KEY = digest("an entry")
# The children of these tests run no PyTorch, so they may be forked (no second import of it).
fork = multiprocessing.get_context("fork")

Save = Callable[[Path], None]


def saves(text: str) -> Save:
    return lambda folder: (folder / "file.txt").write_text(text) and None


def files(root: Path) -> set[str]:
    """Everything in a cache except its locks, by name."""
    found = {f.relative_to(root).as_posix() for f in root.rglob("*") if f.is_file()}
    return {name for name in found if not name.endswith(".lock")}


def entry(cache: Cache, kind: str = "rows") -> Path:
    return cache.root / kind / KEY[:2] / KEY


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


class TestDigest:
    def test_order_of_mappings_does_not_matter(self) -> None:
        """Fails without sorted keys: the same spec, written in another order, runs again."""
        a = {"alpha": 1, "train": {"lr": 0.1, "epochs": 2}}
        b = {"train": {"epochs": 2, "lr": 0.1}, "alpha": 1}
        assert list(a) != list(b)
        assert digest(a) == digest(b)

    @pytest.mark.parametrize(
        "other",
        [{"a": [2, 1]}, {"a": [1, 2.5]}, {"a": ["1", 2]}, {"b": [1, 2]}, {"a": [1, 2], "b": None}],
    )
    def test_values_and_order_of_lists_do(self, other: Any) -> None:
        """Fails where a key leaves something out: another result would be taken for this one."""
        assert digest({"a": [1, 2]}) != digest(other)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), {1, 2}, Path("x")])
    def test_what_has_no_plain_form_is_refused(self, bad: Any) -> None:
        """Fails where NaN or an object's repr gets into a key: it never equals itself again."""
        with pytest.raises((ValueError, TypeError)):
            digest({"a": bad})


class TestWrite:
    def test_an_entry_comes_back(self, cache: Cache) -> None:
        cache.write("rows", KEY, {"a": 1.5}, saves("hello"))
        assert cache.read("rows", KEY) == {"a": 1.5}
        assert (entry(cache) / "file.txt").read_text() == "hello"
        assert cache.read("rows", digest("another")) is None

    def test_a_second_write_replaces_the_first(self, cache: Cache) -> None:
        cache.write("rows", KEY, {"a": 1}, saves("one"))
        cache.write("rows", KEY, {"a": 2})
        assert cache.read("rows", KEY) == {"a": 2}
        assert files(cache.root) == {f"rows/{KEY[:2]}/{KEY}/meta.json"}

    @pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
    def test_a_save_that_raises_leaves_the_old_entry_and_no_litter(
        self, cache: Cache, error: BaseException
    ) -> None:
        """Fails where an entry is written in place, or where only `Exception` is cleaned up."""

        def save(folder: Path) -> None:
            (folder / "file.txt").write_text("half")
            raise error

        cache.write("rows", KEY, {"a": 1}, saves("old"))
        before = files(cache.root)
        with pytest.raises(type(error)):
            cache.write("rows", KEY, {"a": 2}, save)
        assert files(cache.root) == before
        assert cache.read("rows", KEY) == {"a": 1}
        assert (entry(cache) / "file.txt").read_text() == "old"

    def test_a_full_disk_is_named_and_loses_nothing(self, cache: Cache) -> None:
        """Fails where the error is swallowed, or the old entry is removed before the new one."""

        def save(folder: Path) -> None:
            (folder / "file.txt").write_text("ha")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "file.txt"))

        cache.write("rows", KEY, {"a": 1}, saves("old"))
        before = files(cache.root)
        with pytest.raises(CacheError, match=r"No space left on device.*file\.txt.*UNLEARN_CACHE"):
            cache.write("rows", KEY, {"a": 2}, save)
        assert files(cache.root) == before
        assert cache.read("rows", KEY) == {"a": 1}

    @pytest.mark.parametrize("fails", ["aside", "former"])
    def test_an_entry_that_can_not_be_replaced_stays(
        self, cache: Cache, monkeypatch: pytest.MonkeyPatch, fails: str
    ) -> None:
        """Fails where the old entry is removed first: a kill, or an error, would lose it."""
        cache.write("rows", KEY, {"a": 1}, saves("old"))
        before, rename = files(cache.root), Path.rename

        def once(path: Path, target: Path) -> Path:
            monkeypatch.setattr(Path, "rename", rename)
            if fails == "former":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            moved = rename(path, target)
            monkeypatch.setattr(Path, "rename", fail)
            return moved

        def fail(path: Path, target: Path) -> Path:
            monkeypatch.setattr(Path, "rename", rename)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(Path, "rename", once)
        with pytest.raises(CacheError, match="Input/output error"):
            cache.write("rows", KEY, {"a": 2})
        assert files(cache.root) == before
        assert cache.read("rows", KEY) == {"a": 1}

    def test_it_is_on_the_disk_before_it_has_its_name(
        self, cache: Cache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails where only the record is brought there: after a power cut the weights are zeros."""
        done: list[str] = []
        sync, rename = os.fsync, Path.rename

        def synced(handle: int) -> None:
            done.append(Path(f"/proc/self/fd/{handle}").resolve().name)
            sync(handle)

        def renamed(path: Path, target: Path) -> Path:
            done.append("renamed")
            return rename(path, target)

        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(Path, "rename", renamed)
        cache.write("rows", KEY, {"a": 1}, saves("hello"))
        assert sorted(done[:-1]) == ["file.txt", "meta.json"]
        assert done[-1] == "renamed"

    def test_meta_that_is_not_json_is_refused(self, cache: Cache) -> None:
        with pytest.raises(ValueError, match="not JSON compliant"):
            cache.write("rows", KEY, {"a": float("nan")})
        assert files(cache.root) == set()


def truncate(folder: Path) -> None:
    file = folder / "file.txt"
    file.write_bytes(file.read_bytes()[:-1])


def flip(folder: Path) -> None:
    file = folder / "file.txt"
    data = bytearray(file.read_bytes())
    data[0] ^= 1
    file.write_bytes(data)


def rewrite(folder: Path, **changes: Any) -> None:
    outer = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(outer | changes))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a truncated file": truncate,
    "a flipped bit": flip,
    "a missing file": lambda folder: (folder / "file.txt").unlink(),
    "garbage instead of JSON": lambda folder: (folder / "meta.json").write_text("{nonsense"),
    "an empty record": lambda folder: (folder / "meta.json").write_text(""),
    "bytes that are no text": lambda folder: (folder / "meta.json").write_bytes(b"\xff\xfe\x00"),
    "other JSON": lambda folder: (folder / "meta.json").write_text("[1]"),
    "JSON that is nested deep": lambda folder: (folder / "meta.json").write_text("[" * 100_000),
    "a folder for a file": lambda folder: (
        (folder / "file.txt").unlink(),
        (folder / "file.txt").mkdir(),
    ),
    "a file for the entry": lambda folder: (shutil.rmtree(folder), folder.write_text("x")),
    "a link to nowhere": lambda folder: (shutil.rmtree(folder), folder.symlink_to("nowhere")),
    "files that are not named": lambda folder: rewrite(folder, files={}),
    "another key": lambda folder: rewrite(folder, key=digest("another")),
    "another kind": lambda folder: rewrite(folder, kind="models"),
    "no record": lambda folder: (folder / "meta.json").unlink(),
    "a changed number": lambda folder: (folder / "meta.json").write_text(
        (folder / "meta.json").read_text().replace("1.5", "2.5")
    ),
}


class TestDamage:
    @pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
    def test_a_damaged_entry_is_said_and_built_again(
        self, cache: Cache, damage: Callable[[Path], object]
    ) -> None:
        """Fails where a file is trusted because it is there, or its damage ends the run."""
        cache.write("rows", KEY, {"a": 1.5}, saves("hello"))
        damage(entry(cache))
        there = files(cache.root)
        assert cache.find("rows", KEY) is None
        assert files(cache.root) == there, "a damaged entry was removed without its lock"
        with pytest.warns(CacheWarning, match=f"rows/{KEY[:12]} is damaged .* built again"):
            assert cache.read("rows", KEY) is None
        cache.write("rows", KEY, {"a": 1.5}, saves("hello"))
        assert cache.read("rows", KEY) == {"a": 1.5}

    def test_a_sound_entry_in_another_one_s_place(self, cache: Cache) -> None:
        """Fails where an entry is believed whatever its key: after a botched merge of two caches a
        row would be another row's."""
        other = digest("another")
        cache.write("rows", other, {"a": 77.0})
        entry(cache).parent.mkdir(parents=True)
        (cache.root / "rows" / other[:2] / other).rename(entry(cache))
        with pytest.warns(CacheWarning, match=rf"is damaged \(it is rows/{other}\)"):
            assert cache.read("rows", KEY) is None

    @pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES])
    @pytest.mark.parametrize("what", ["meta.json", "file.txt"])
    def test_a_read_that_fails_loses_nothing(
        self, cache: Cache, monkeypatch: pytest.MonkeyPatch, number: int, what: str
    ) -> None:
        """Fails where any error of the system counts as damage: a sound entry is removed."""
        cache.write("rows", KEY, {"a": 1.5}, saves("hello"))
        opened = Path.open

        def fails(path: Path, *args: Any, **options: Any) -> Any:
            if path.name == what:
                raise OSError(number, os.strerror(number), str(path))
            return opened(path, *args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", fails)
            patch.setattr(Path, "read_bytes", lambda path: fails(path, "rb").read())
            for read in (cache.find, cache.read):
                with pytest.raises(
                    CacheError, match=rf"can't be read: .*{os.strerror(number)}.*UNLEARN_CACHE"
                ):
                    read("rows", KEY)
        assert cache.read("rows", KEY) == {"a": 1.5}
        assert (entry(cache) / "file.txt").read_text() == "hello"


def old_entry(cache: Cache, kind: str, meta: dict[str, Any], **contents: str) -> Path:
    """An entry as it was written before entries named themselves."""
    folder = entry(cache, kind)
    folder.mkdir(parents=True)
    for name, text in contents.items():
        (folder / name).write_text(text)
    named = {name: module._sha256(folder / name) for name in contents}
    outer = {"meta": meta, "sha256": digest(meta), "files": named}
    (folder / "meta.json").write_text(json.dumps(outer))
    return folder


@pytest.mark.filterwarnings("error::unlearn_core.replication.cache.CacheWarning")
class TestOldEntries:
    def test_they_are_still_read(self, cache: Cache) -> None:
        """Fails where a night's rows are made again because entries look otherwise now."""
        old_entry(cache, "rows", {"a": 1.5, "key": KEY}, file="hello")
        old_entry(cache, "models", {"seconds": 2.0}, weights="w")
        assert cache.find("rows", KEY) == cache.read("rows", KEY) == {"a": 1.5, "key": KEY}
        assert cache.read("models", KEY) == {"seconds": 2.0}

    @pytest.mark.parametrize("kind", ["rows", "models"])
    def test_they_too_name_their_files(self, cache: Cache, kind: str) -> None:
        rewrite(old_entry(cache, kind, {"key": KEY}, file="hello"), files={})
        with pytest.warns(CacheWarning, match="does not name its files"):
            assert cache.read(kind, KEY) is None

    def test_a_row_said_which_it_is(self, cache: Cache) -> None:
        old_entry(cache, "rows", {"a": 77.0, "key": "000"})
        with pytest.warns(CacheWarning, match="it is rows/000"):
            assert cache.read("rows", KEY) is None


class TestModel:
    def test_a_flipped_byte_of_a_model(self, cache: Cache) -> None:
        """Fails where weights are loaded unchecked: safetensors reads damaged numbers gladly."""
        made = []

        def build() -> nn.Module:
            return nn.Linear(4, 4)

        def fit() -> tuple[nn.Module, dict[str, Any]]:
            model = build()
            nn.init.constant_(model.weight, 0.5)
            made.append(model)
            return model, {"seconds": 1.0}

        cache.model(KEY, build, fit)
        file = entry(cache, "models") / "model.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        with pytest.warns(CacheWarning, match="damaged"):
            model, meta = cache.model(KEY, build, fit)
        assert len(made) == 2
        assert meta == {"seconds": 1.0}
        assert torch.equal(model.weight, torch.full((4, 4), 0.5))

    def test_a_model_is_fitted_once_and_comes_back_bit_for_bit(self, cache: Cache) -> None:
        """Fails where buffers are left out, or a model comes back in training mode."""

        def build() -> nn.Module:
            return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

        def fit() -> tuple[nn.Module, dict[str, Any]]:
            model = build().to(memory_format=torch.channels_last)
            model(torch.randn(2, 3, 8, 8))  # moves BatchNorm's running statistics
            return model, {"seconds": 2.5}

        def again() -> tuple[nn.Module, dict[str, Any]]:
            raise AssertionError("it was fitted twice")

        first, _ = cache.model(KEY, build, fit)
        second, meta = cache.model(KEY, build, again)
        assert meta == {"seconds": 2.5}
        assert not second.training
        for (name, a), b in zip(
            first.state_dict().items(), second.state_dict().values(), strict=True
        ):
            assert torch.equal(a, b), name

    def test_one_that_is_there_takes_no_lock(
        self, cache: Cache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails where a cache that is complete, and may only be read, can't be used."""
        made, _ = cache.model(KEY, lambda: nn.Linear(2, 2), lambda: (nn.Linear(2, 2), {}))
        monkeypatch.setattr(Cache, "lock", lambda *_: pytest.fail("it was locked"))
        found, _ = cache.model(KEY, lambda: nn.Linear(2, 2), lambda: pytest.fail("made again"))
        assert torch.equal(found.weight, made.weight)

    def test_one_that_is_not_what_is_built_is_said(self, cache: Cache) -> None:
        """Fails where PyTorch's words reach the reader, which name neither cache nor entry."""
        cache.model(KEY, lambda: nn.Linear(2, 2), lambda: (nn.Linear(2, 2), {}))
        with pytest.raises(CacheError, match=rf"models/{KEY[:12]} is not the model that is built"):
            cache.model(KEY, lambda: nn.Linear(3, 3), lambda: (nn.Linear(3, 3), {}))
        assert cache.read("models", KEY) == {}

    def test_one_that_is_not_acceptable_is_made_again(self, cache: Cache) -> None:
        def fit(dirty: bool) -> Callable[[], tuple[nn.Module, dict[str, Any]]]:
            return lambda: (nn.Linear(2, 2), {"dirty": dirty})

        cache.model(KEY, lambda: nn.Linear(2, 2), fit(True))
        for _ in range(2):
            _, meta = cache.model(
                KEY, lambda: nn.Linear(2, 2), fit(False), lambda meta: not meta["dirty"]
            )
            assert meta == {"dirty": False}


class TestProcesses:
    def test_two_at_once_do_the_work_once(self, cache: Cache, tmp_path: Path) -> None:
        """Fails without the lock: both find nothing, and both do the work."""
        log = tmp_path / "log"

        def work() -> None:
            with cache.lock("rows", KEY):
                if cache.read("rows", KEY) is None:
                    with log.open("a") as handle:
                        handle.write("worked\n")
                    time.sleep(0.3)
                    cache.write("rows", KEY, {"a": 1})

        workers = [fork.Process(target=work) for _ in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(20)
            assert worker.exitcode == 0
        assert log.read_text() == "worked\n"

    def test_other_keys_do_not_wait(self, cache: Cache) -> None:
        """Fails with one lock for the whole cache: a long training would stop every other run."""
        other = digest("another entry")

        def work() -> None:
            with cache.lock("rows", other):
                cache.write("rows", other, {"b": 2})

        with cache.lock("rows", KEY):
            worker = fork.Process(target=work)
            worker.start()
            worker.join(20)
            assert worker.exitcode == 0

    def test_a_killed_holder_of_the_lock_lets_go(self, cache: Cache, tmp_path: Path) -> None:
        """Fails where a lock is a file that must be removed: everybody waits for a dead process."""
        held = tmp_path / "held"

        def hold() -> None:
            with cache.lock("rows", KEY):
                held.touch()
                time.sleep(60)

        worker = fork.Process(target=hold)
        worker.start()
        until(held.exists)
        os.kill(worker.pid, signal.SIGKILL)
        worker.join(20)
        began = time.monotonic()
        with cache.lock("rows", KEY):
            cache.write("rows", KEY, {"a": 1})
        assert time.monotonic() - began < 10
        assert cache.read("rows", KEY) == {"a": 1}

    @pytest.mark.filterwarnings("error::unlearn_core.replication.cache.CacheWarning")
    def test_a_kill_half_way_through_writing(self, cache: Cache, tmp_path: Path) -> None:
        """Fails where an entry is written in place: a reader would meet half of it. And where
        what the dead process left beside it stays for ever."""
        begun = tmp_path / "begun"

        def save(folder: Path) -> None:
            (folder / "file.txt").write_text("half")
            begun.touch()
            time.sleep(60)

        def write() -> None:
            with cache.lock("rows", KEY):
                cache.write("rows", KEY, {"a": 2}, save)

        cache.write("rows", KEY, {"a": 1}, saves("old"))
        worker = fork.Process(target=write)
        worker.start()
        until(begun.exists)
        os.kill(worker.pid, signal.SIGKILL)
        worker.join(20)
        assert worker.exitcode == -signal.SIGKILL
        assert any("half" in f.read_text() for f in cache.root.rglob("file.txt"))
        with cache.lock("rows", KEY):
            assert cache.read("rows", KEY) == {"a": 1}
            assert (entry(cache) / "file.txt").read_text() == "old"
            cache.write("rows", KEY, {"a": 3}, saves("new"))
        assert cache.read("rows", KEY) == {"a": 3}
        assert files(cache.root) == {f"rows/{KEY[:2]}/{KEY}/{n}" for n in ("meta.json", "file.txt")}

    def test_what_killed_runs_left_is_swept(self, cache: Cache) -> None:
        """Fails where litter goes with the next write of the same key only: of most keys there is
        none. And where what a living run is writing goes too."""
        other, shard = digest("another entry"), cache.root / "models" / KEY[:2]
        shard.mkdir(parents=True)
        names = [f".{KEY}-12345678", f".{KEY[:12]}-ab_cd0x9", f".{KEY}-12345678_former"]
        for name in names:
            (shard / name).mkdir()
            (shard / name / "half").write_text("half")
        for name in (f"{KEY}.checkpoint.part", f"{KEY}.13401", f"{KEY}.checkpoint", f"{KEY}.lock"):
            (shard / name).write_text("x")
        cache.write("rows", other, {"b": 2}, saves("kept"))
        kept = files(cache.root / "rows")

        with cache.lock("models", KEY):
            before = files(cache.root)
            cache.sweep()
            assert files(cache.root) == before
        cache.sweep()
        assert {f.name for f in shard.iterdir()} == {f"{KEY}.checkpoint", f"{KEY}.lock"}
        assert files(cache.root / "rows") == kept

    def test_who_waits_says_so(
        self, cache: Cache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Fails where a run that waits for another one looks as if it hung."""
        monkeypatch.setattr(module, "WAIT", (0.05, 0.4))
        go, held = multiprocessing.Event(), multiprocessing.Event()

        def hold() -> None:
            with cache.lock("rows", KEY):
                held.set()
                go.wait(60)

        worker = fork.Process(target=hold)
        worker.start()
        assert held.wait(20)
        said: list[str] = []

        class Release(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                said.append(record.getMessage())
                if len(said) == 2:
                    go.set()

        handler = Release()
        module.log.addHandler(handler)
        try:
            with cache.lock("rows", KEY), caplog.at_level(logging.WARNING):
                pass
        finally:
            module.log.removeHandler(handler)
        worker.join(20)
        assert said == [f"another run is making rows/{KEY[:12]}; waiting for it"] * 2
        with cache.lock("rows", KEY):
            pass
        assert len(said) == 2, "a lock that is free was waited for"


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user of this machine may enter."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def as_user(user: int, group: int, umask: int, work: Callable[[], object]) -> None:
    """Do it in a process of that user, where this one may (it is root); else in one of this user."""

    def child() -> None:
        if os.getuid() == 0:
            os.setgroups([group])
            os.setgid(user)
            os.setuid(user)
        os.umask(umask)
        work()

    process = fork.Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 0, "see what it printed"


def modes(root: Path) -> dict[str, str]:
    """Kind of file -> its mode, of everything in a cache."""

    def kind(path: Path) -> str:
        return "folder" if path.is_dir() else "lock" if path.suffix == ".lock" else "file"

    found: dict[str, set[str]] = {}
    for path in root.rglob("*"):
        found.setdefault(kind(path), set()).add(oct(stat.S_IMODE(path.stat().st_mode)))
    return {name: ", ".join(sorted(those)) for name, those in found.items()}


GROUP = 54321


class TestUsers:
    @pytest.mark.parametrize(
        ("root", "umask", "folder", "file", "lock"),
        [
            (0o755, 0o022, "0o755", "0o644", "0o644"),
            (0o775, 0o002, "0o775", "0o664", "0o664"),
            (0o700, 0o077, "0o700", "0o600", "0o600"),
            (0o2775, 0o002, "0o2775", "0o664", "0o660"),
            (0o2775, 0o022, "0o2775", "0o664", "0o660"),
            (0o2770, 0o077, "0o2770", "0o660", "0o660"),
            (0o2755, 0o022, "0o2755", "0o644", "0o644"),  # its group may only read
        ],
    )
    def test_modes_follow_the_umask_and_the_folder(
        self, cache: Cache, root: int, umask: int, folder: str, file: str, lock: str
    ) -> None:
        """Fails where an entry is the owner's alone whatever the umask: `mkdtemp` makes it so, and
        safetensors its file."""
        cache.root.mkdir()
        cache.root.chmod(root)
        before = os.umask(umask)
        try:
            with cache.lock("models", KEY):
                cache.write(
                    "models",
                    KEY,
                    {},
                    lambda f: save_file({"w": torch.ones(1)}, f / "w.safetensors"),
                )
        finally:
            os.umask(before)
        assert modes(cache.root) == {"folder": folder, "file": file, "lock": lock}

    @pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
    def test_two_users_of_a_group_share_one(self, place: Path, umask: int) -> None:
        """Fails where the second user is told that an entry is damaged, or can't take a lock."""
        if os.getuid():
            pytest.skip("only root can be two users")
        cache = Cache(place / "cache")
        cache.root.mkdir()
        os.chown(cache.root, 0, GROUP)
        cache.root.chmod(0o2770)
        other = KEY[:2] + digest("another in the same folder")[2:]

        def first() -> None:
            with cache.lock("rows", KEY):
                cache.write("rows", KEY, {"a": 1}, saves("first"))

        def second() -> None:
            assert cache.find("rows", KEY) == {"a": 1}
            with cache.lock("rows", KEY):
                cache.write("rows", KEY, {"a": 2}, saves("second"))
            with cache.lock("rows", other):
                cache.write("rows", other, {"b": 3})

        def first_again() -> None:
            assert (cache.find("rows", KEY), cache.find("rows", other)) == ({"a": 2}, {"b": 3})
            with cache.lock("rows", other):
                cache.write("rows", other, {"b": 4})

        for user, work in ((54322, first), (54323, second), (54322, first_again)):
            as_user(user, GROUP, umask, work)
        assert cache.read("rows", other) == {"b": 4}


@contextlib.contextmanager
def read_only(root: Path) -> Iterator[None]:
    """Nobody may write in it, but root."""
    found = [root, *root.rglob("*")]
    for path in found:
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield
    for path in found:
        path.chmod(0o755 if path.is_dir() else 0o644)


class TestReadOnly:
    def test_what_is_there_is_used(self, place: Path) -> None:
        """Fails where reading takes a lock: a cache that is complete could not be read."""
        cache = Cache(place / "cache")
        cache.write("rows", KEY, {"a": 1})
        cache.write("models", KEY, {"seconds": 2.0}, saves("weights"))

        def work() -> None:
            cache.sweep()
            cache.checkpoint(KEY)
            assert cache.find("rows", KEY) == {"a": 1}
            assert cache.find("models", KEY) == {"seconds": 2.0}

        with read_only(cache.root):
            as_user(54322, 54322, 0o022, work)

    def test_what_is_not_there_is_said_before_it_is_made(self, place: Path) -> None:
        """Fails where that comes out when hours of work are to be kept, or names no variable."""
        cache = Cache(place / "cache")
        cache.write("rows", KEY, {"a": 1})
        other = KEY[:2] + digest("another in the same folder")[2:]

        def work() -> None:
            for key in (other, digest("another")):
                with (
                    pytest.raises(
                        CacheError, match=r"is to be made, but the cache can't be written.*UNLEARN"
                    ),
                    cache.lock("rows", key),
                ):
                    raise AssertionError("it was made")

        with read_only(cache.root):
            as_user(54322, 54322, 0o022, work)


class TestOddCaches:
    @pytest.mark.parametrize("odd", ["a file", "a device", "a link to nowhere", "a name too long"])
    def test_a_root_that_is_no_folder(self, tmp_path: Path, odd: str) -> None:
        """Fails where the error of the system alone is shown: it does not say UNLEARN_CACHE."""
        root = tmp_path / "cache"
        if odd == "a file":
            root.write_text("x")
        elif odd == "a device":
            root = Path("/dev/null")
        elif odd == "a link to nowhere":
            root.symlink_to(tmp_path / "nowhere")
        else:
            root = tmp_path / ("x" * 300)
        cache = Cache(root)

        def use() -> None:
            cache.sweep()
            with cache.lock("rows", KEY):
                pass

        with pytest.raises(CacheError, match=rf"UNLEARN_CACHE is {root}"):
            use()

    def test_a_lock_that_is_a_folder(self, cache: Cache) -> None:
        entry(cache).with_name(f"{KEY}.lock").mkdir(parents=True)
        with (
            pytest.raises(CacheError, match=r"Is a directory.*\.lock.*UNLEARN_CACHE"),
            cache.lock("rows", KEY),
        ):
            pass
