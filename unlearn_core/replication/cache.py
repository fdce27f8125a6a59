"""A content-addressed cache of models and rows, safe under parallel runs and under a kill.

An entry's key is a hash of everything that determines it. It is written aside, brought to the disk
and renamed, so a reader sees the whole entry or none; it is hashed, so a damaged one is noticed,
said and built again. A lock a key keeps two runs from doing the same work; the operating system
releases it when a process dies.

Users and machines may share a cache. What is made in it has the modes that the umask gives, and in
a folder that is its group's (group-writable and setgid) the group may do what the owner may. A
cache that can't be written serves what it has.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
import re
import secrets
import shutil
import stat
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Cache", "CacheError", "CacheWarning", "digest"]

log = logging.getLogger(__name__)

#: Seconds after which a run says that it waits for another one's lock, and says so again.
WAIT = (10.0, 1800.0)

#: Names of what is written beside the entries, and stays there after a kill (the second and third:
#: checkpoints, as they are saved now and as they were).
LITTER = re.compile(r"\.([0-9a-f]{12,64})-\w+|([0-9a-f]{64})\.checkpoint\.part|([0-9a-f]{64})\.\d+")


class CacheError(RuntimeError):
    """The cache can't be read or written; the message names UNLEARN_CACHE and what is wrong."""


class CacheWarning(UserWarning):
    """A damaged entry was found; it is built again."""


class _DamageError(ValueError):
    """An entry that is not what was written there."""


def digest(spec: Any) -> str:
    """SHA-256 of plain data, independent of the order of mappings."""
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _remove(path: Path) -> None:
    """Remove a folder, a file, or a link whatever it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _is_shared(folder: Path) -> bool:
    mode = folder.stat().st_mode
    return bool(mode & stat.S_ISGID and mode & stat.S_IWGRP)


def _make(folder: Path) -> None:
    """Make a folder and those that it is in; in one that is its group's it is the group's too."""
    if folder.is_dir():
        return
    _make(folder.parent)
    try:
        folder.mkdir()
    except FileExistsError:
        if not folder.is_dir():  # else another run has made it at this moment
            raise
        return
    if _is_shared(folder.parent):
        folder.chmod(stat.S_IMODE(folder.stat().st_mode) | stat.S_IRWXG)


def _finish(folder: Path, written_here: Path) -> None:
    """Give an entry's files the mode that the umask gives one, and bring them to the disk."""
    mode = stat.S_IMODE(written_here.stat().st_mode)
    if _is_shared(folder):
        mode |= stat.S_IRGRP | stat.S_IWGRP
    for file in folder.iterdir():
        file.chmod(mode)  # safetensors lets the owner alone read what it writes
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


class Cache:
    """A folder of ``<kind>/<key>`` entries, each a folder with ``meta.json`` and its files."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def _folder(self, kind: str, key: str) -> Path:
        return self.root / kind / key[:2] / key

    def error(self, what: str) -> CacheError:
        """An error about an entry, which says where the cache is."""
        return CacheError(f"{what} (UNLEARN_CACHE is {self.root})")

    @contextlib.contextmanager
    def lock(self, kind: str, key: str) -> Iterator[None]:
        """Hold a key, to make its entry; says so where it waits for another run that does.

        Raises
        ------
        CacheError
            The cache can't be written.
        """
        folder = self._folder(kind, key)
        try:
            _make(folder.parent)
            # Every user of the group must be able to open it for writing.
            mode = {"mode": 0o660} if _is_shared(folder.parent) else {}
            lock = FileLock(f"{folder}.lock", **mode)
            for seconds in itertools.chain(WAIT[:1], itertools.repeat(WAIT[1])):
                try:
                    lock.acquire(timeout=seconds)
                    break
                except Timeout:
                    log.warning("another run is making %s/%s; waiting for it", kind, key[:12])
        except OSError as error:
            raise self.error(
                f"{kind}/{key[:12]} is to be made, but the cache can't be written: {error}"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def checkpoint(self, key: str) -> Path:
        """Where a training run that will become the model ``key`` keeps its checkpoint.

        It is written by whoever holds that key.
        """
        return Path(f"{self._folder('models', key)}.checkpoint")

    def _verified(self, kind: str, key: str) -> dict[str, Any] | None:
        folder = self._folder(kind, key)
        try:
            try:
                folder.lstat()
            except FileNotFoundError:
                return None
            outer = json.loads((folder / "meta.json").read_bytes())
            meta, files, own = outer["meta"], outer["files"], outer.pop("sha256")
            if "key" in outer:
                found = f"{outer['kind']}/{outer['key']}"
            else:  # written before entries said what they are; rows did in their meta
                found = f"{kind}/{meta.get('key', key)}"
                there = {f.name for f in folder.iterdir() if not f.name.startswith(".")}
                if there - {"meta.json", *files}:
                    raise ValueError("it does not name its files")
            if own != digest(outer if "key" in outer else meta):
                raise ValueError("its record does not match its hash")
            if found != f"{kind}/{key}":
                raise ValueError(f"it is {found}")
            for name, sha256 in files.items():
                if _sha256(folder / name) != sha256:
                    raise ValueError(f"{name} does not match its hash")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise _DamageError(error) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _DamageError(error) from error
        except OSError as error:  # says nothing against what is there
            raise self.error(f"{kind}/{key[:12]} can't be read: {error}") from error
        return meta

    def find(self, kind: str, key: str) -> dict[str, Any] | None:
        """The entry's ``meta`` (its files are intact), or None. Needs no lock, changes nothing.

        Raises
        ------
        CacheError
            The entry could not be read.
        """
        try:
            return self._verified(kind, key)
        except _DamageError:
            return None

    def read(self, kind: str, key: str) -> dict[str, Any] | None:
        """As `find`, but a damaged entry is removed, with a warning. The caller holds the key.

        Raises
        ------
        CacheError
            The entry could not be read, or a damaged one not be removed.
        """
        try:
            return self._verified(kind, key)
        except _DamageError as damage:
            warnings.warn(
                f"cache entry {kind}/{key[:12]} is damaged ({damage}); it is built again",
                CacheWarning,
                stacklevel=2,
            )
        try:
            _remove(self._folder(kind, key))
        except OSError as error:
            raise self.error(
                f"{kind}/{key[:12]} is damaged and can't be removed: {error}"
            ) from error
        return None

    def write(
        self, kind: str, key: str, meta: dict[str, Any], save: Callable[[Path], None] | None = None
    ) -> None:
        """Write an entry; ``save`` puts its files into the folder that it is given.

        The caller holds the key.

        Raises
        ------
        CacheError
            The disk is full, say. Nothing half-written is left, an older entry stays.
        """
        folder = self._folder(kind, key)
        token = secrets.token_hex(4)
        aside = folder.with_name(f".{key}-{token}")
        former = folder.with_name(f".{key}-{token}_former")
        try:
            for litter in folder.parent.glob(f".{key[:12]}*-*"):  # of a run that was killed here
                _remove(litter)
            _make(aside)
            try:
                if save is not None:
                    save(aside)
                files = {f.name: _sha256(f) for f in sorted(aside.iterdir())}
                outer = {"kind": kind, "key": key, "meta": meta, "files": files}
                record = aside / "meta.json"
                record.write_text(json.dumps(outer | {"sha256": digest(outer)}), encoding="utf-8")
                _finish(aside, record)
                if os.path.lexists(folder):
                    folder.rename(former)  # removing it would take longer than a kill does
                aside.rename(folder)
            except BaseException:
                shutil.rmtree(aside, ignore_errors=True)
                if os.path.lexists(former):
                    former.rename(folder)
                raise
            if os.path.lexists(former):
                _remove(former)
        except (OSError, SafetensorError) as error:
            raise self.error(f"{kind}/{key[:12]} can't be written: {error}") from error

    def sweep(self) -> None:
        """Remove what runs that were killed left beside the entries, whatever they were making.

        Raises
        ------
        CacheError
            The cache can't be read.
        """
        try:
            found = [(f, m) for f in self.root.glob("*/*/*") if (m := LITTER.fullmatch(f.name))]
        except OSError as error:
            raise self.error(f"the cache can't be read: {error}") from error
        for litter, match in found:
            # Whoever writes here holds the key, whose lock was there before.
            prefix = next(group for group in match.groups() if group)
            locks = [FileLock(f, blocking=False) for f in litter.parent.glob(f"{prefix}*.lock")]
            # Somebody is writing it, or another user's run left it.
            with contextlib.suppress(Timeout, OSError), contextlib.ExitStack() as held:
                for lock in locks:
                    held.enter_context(lock)
                _remove(litter)

    def model(
        self,
        key: str,
        build: Callable[[], nn.Module],
        fit: Callable[[], tuple[nn.Module, dict[str, Any]]],
        acceptable: Callable[[dict[str, Any]], bool] = lambda meta: True,
    ) -> tuple[nn.Module, dict[str, Any]]:
        """The model ``key``: loaded into ``build()``, or made by ``fit()`` and kept.

        A model whose ``meta`` is not ``acceptable`` is made again. Returns the model and what
        ``fit`` said of it.

        Raises
        ------
        CacheError
            The cache can't be read or, where the model is to be made, written; or what is kept
            there does not fit what is built.
        """
        from safetensors.torch import load_model, save_model

        meta = self.find("models", key)
        if meta is None or not acceptable(meta):
            with self.lock("models", key):
                meta = self.read("models", key)
                if meta is None or not acceptable(meta):
                    model, meta = fit()
                    self.write(
                        "models",
                        key,
                        meta,
                        lambda folder: save_model(model, str(folder / "model.safetensors")),
                    )
                    return model, meta
        model = build()
        try:
            load_model(model, self._folder("models", key) / "model.safetensors")
        except (OSError, RuntimeError, SafetensorError) as error:
            raise self.error(
                f"models/{key[:12]} is not the model that is built here; was it made by another "
                f"version of this code? {error}"
            ) from error
        return model.eval(), meta
