from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from unlearn_core.models import Checkpoint, CheckpointError, CheckpointWarning


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return Checkpoint(tmp_path / "run.pt")


def state(value: float = 0.5) -> dict[str, Any]:
    return {"model": {"w": torch.full((40, 5), value)}, "step": [3, None], "best": (0.25, "x")}


def holds(checkpoint: Checkpoint, value: float = 0.5) -> bool:
    found = checkpoint.load()
    wanted = state(value)
    weights = found.pop("model"), wanted.pop("model")
    return found == wanted and torch.equal(weights[0]["w"], weights[1]["w"])


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """In the block no file may grow beyond 200 bytes: PyTorch meets an error of the system as it writes.

    No fixture, under which pytest would say how the test went, to a file of the reader's perhaps.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class TestSave:
    def test_what_is_saved_comes_back(self, checkpoint: Checkpoint) -> None:
        assert checkpoint.load() is None
        checkpoint.save(state(1.5))
        checkpoint.save(state())
        assert holds(checkpoint)
        assert os.listdir(checkpoint.file.parent) == ["run.pt"]

    def test_it_is_on_the_disk_before_it_has_its_name(
        self, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails without fsync: a power cut leaves the right name, the right length, and zeros."""
        done, sync, replace = [], os.fsync, Path.replace

        def replaced(path: Path, target: Path) -> Path:
            done.append("renamed")
            return replace(path, target)

        monkeypatch.setattr(os, "fsync", lambda handle: done.append("synced") or sync(handle))
        monkeypatch.setattr(Path, "replace", replaced)
        checkpoint.save(state())
        assert done == ["synced", "renamed"]

    def test_a_full_disk_is_named_and_loses_nothing(self, checkpoint: Checkpoint) -> None:
        """Fails where the half file stays (it holds the disk full for good), or where PyTorch's
        words reach the reader, which name neither disk nor file."""
        wanted = r"/run\.pt can't be written: File too large"
        with full_disk(), pytest.raises(CheckpointError, match=wanted):
            checkpoint.save(state())
        assert os.listdir(checkpoint.file.parent) == []

    def test_the_former_one_stays_where_saving_fails(
        self, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        checkpoint.save(state())

        def full(handle: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match=r"run\.pt can't be written: No space left"):
            checkpoint.save(state(7.0))
        assert holds(checkpoint)
        assert os.listdir(checkpoint.file.parent) == ["run.pt"]

    def test_what_a_kill_left_goes_with_the_next_one(
        self, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails where it has the process's number in its name: each kill would leave a file."""

        def save_and_be_killed(value: float) -> None:
            with monkeypatch.context() as patch:
                patch.setattr(Path, "unlink", lambda *_, **__: None)
                patch.setattr(os, "fsync", lambda _: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    checkpoint.save(state(value))

        for _ in range(2):
            save_and_be_killed(1.0)
            assert len(os.listdir(checkpoint.file.parent)) == 1
        checkpoint.save(state())
        assert holds(checkpoint)
        assert os.listdir(checkpoint.file.parent) == ["run.pt"]
        save_and_be_killed(2.0)
        assert len(os.listdir(checkpoint.file.parent)) == 2
        checkpoint.remove()
        assert os.listdir(checkpoint.file.parent) == []


def flipped(data: bytes, bit: int) -> bytes:
    out = bytearray(data)
    out[bit // 8] ^= 1 << bit % 8
    return bytes(out)


class TestLoad:
    @pytest.mark.parametrize(
        "damage",
        [
            lambda data: data[: len(data) // 2],
            lambda data: data[:-1],
            lambda data: data + b"x",
            lambda data: b"",
            lambda data: bytes(len(data)),
            lambda data: data[65:],  # as PyTorch alone writes it: an older version's
        ],
        ids=["half", "cut", "longer", "empty", "zeros", "without a hash"],
    )
    def test_a_damaged_one_is_said_and_removed(
        self, checkpoint: Checkpoint, damage: Callable[[bytes], bytes]
    ) -> None:
        checkpoint.save(state())
        checkpoint.file.write_bytes(damage(checkpoint.file.read_bytes()))
        with pytest.warns(CheckpointWarning, match=r"run\.pt is of no use .*hash.* starts again"):
            assert checkpoint.load() is None
        assert not checkpoint.file.exists()

    def test_a_flipped_bit_anywhere(self, checkpoint: Checkpoint) -> None:
        """Fails where PyTorch reads it unchecked: nearly every flipped bit of a weight is read as
        another weight, and what is made of it is then cached as sound."""
        checkpoint.save(state())
        whole = checkpoint.file.read_bytes()
        for bit in random.Random(0).sample(range(8 * len(whole)), 100):
            checkpoint.file.write_bytes(flipped(whole, bit))
            with pytest.warns(CheckpointWarning, match="does not match its hash"):
                assert checkpoint.load() is None

    @pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES])
    def test_a_read_that_fails_loses_nothing(
        self, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        """Fails where any error of the system counts as damage: hours of training are removed."""
        checkpoint.save(state())
        with monkeypatch.context() as patch:

            def fails(*_: object) -> None:
                raise OSError(number, os.strerror(number))

            patch.setattr(hashlib, "file_digest", fails)
            with pytest.raises(CheckpointError, match=rf"run\.pt can't be read: .*{number}"):
                checkpoint.load()
        assert holds(checkpoint)

    def test_too_little_memory_loses_nothing(
        self, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        checkpoint.save(state())
        with monkeypatch.context() as patch:

            def fails(*_: object, **__: object) -> None:
                raise RuntimeError("can't allocate memory")

            patch.setattr(torch, "load", fails)
            with pytest.raises(CheckpointError, match=r"run\.pt can't be read: can't allocate"):
                checkpoint.load()
        assert holds(checkpoint)

    def test_no_code_is_run(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        """Fails where a checkpoint is a pickle like any other: whoever may write it runs code."""

        class Touch:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (tmp_path / "run by the pickle",)

        checkpoint.save({"model": Touch()})
        with pytest.raises(CheckpointError, match="Weights only load failed"):
            checkpoint.load()
        assert not (tmp_path / "run by the pickle").exists()
