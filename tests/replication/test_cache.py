from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from unlearn_core.replication.cache import Cache, CacheWarning, digest

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
        with pytest.raises(OSError, match=r"No space left on device.*file\.txt") as caught:
            cache.write("rows", KEY, {"a": 2}, save)
        assert caught.value.errno == errno.ENOSPC
        assert cache.read("rows", KEY) == {"a": 1}

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


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a truncated file": truncate,
    "a flipped bit": flip,
    "a missing file": lambda folder: (folder / "file.txt").unlink(),
    "garbage instead of JSON": lambda folder: (folder / "meta.json").write_text("{nonsense"),
    "an empty record": lambda folder: (folder / "meta.json").write_text(""),
    "bytes that are no text": lambda folder: (folder / "meta.json").write_bytes(b"\xff\xfe\x00"),
    "other JSON": lambda folder: (folder / "meta.json").write_text("[1]"),
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
        with pytest.warns(CacheWarning, match=f"rows/{KEY[:12]} is damaged .* built again"):
            assert cache.read("rows", KEY) is None
        cache.write("rows", KEY, {"a": 1.5}, saves("hello"))
        assert cache.read("rows", KEY) == {"a": 1.5}

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


class TestModel:
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
