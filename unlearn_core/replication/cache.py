"""A content-addressed cache of models and rows, safe under parallel runs and under a kill.

An entry's key is a hash of everything that determines it. It is written aside and renamed, so
a reader sees the whole entry or none; its content is hashed, so a damaged one is noticed, said
and built again. A lock a key keeps two runs from doing the same work; the operating system
releases it when a process dies.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Cache", "CacheWarning", "digest"]

log = logging.getLogger(__name__)


class CacheWarning(UserWarning):
    """A damaged entry was found; it is built again."""


def digest(spec: Any) -> str:
    """SHA-256 of plain data, independent of the order of mappings."""
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


class Cache:
    """A folder of ``<kind>/<key>`` entries, each a folder with ``meta.json`` and its files."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def _folder(self, kind: str, key: str) -> Path:
        return self.root / kind / key[:2] / key

    @contextlib.contextmanager
    def lock(self, kind: str, key: str) -> Iterator[None]:
        folder = self._folder(kind, key)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(folder) + ".lock"):
            yield

    def checkpoint(self, key: str) -> Path:
        """Where a training run that will become the model ``key`` keeps its checkpoint."""
        folder = self._folder("models", key)
        folder.parent.mkdir(parents=True, exist_ok=True)
        return Path(str(folder) + ".checkpoint")

    def read(self, kind: str, key: str) -> dict[str, Any] | None:
        """The entry's ``meta`` (its files are intact), or None; a damaged entry is removed."""
        folder = self._folder(kind, key)
        if not folder.exists():
            return None
        try:
            outer = json.loads((folder / "meta.json").read_text())
            meta = outer["meta"]
            if outer["sha256"] != digest(meta):
                raise ValueError("its record does not match its hash")
            for name, sha256 in outer["files"].items():
                if _sha256(folder / name) != sha256:
                    raise ValueError(f"{name} does not match its hash")
        except (OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(
                f"cache entry {kind}/{key[:12]} is damaged ({error}); it is built again",
                CacheWarning,
                stacklevel=2,
            )
            shutil.rmtree(folder)
            return None
        return meta

    def write(
        self, kind: str, key: str, meta: dict[str, Any], save: Callable[[Path], None] | None = None
    ) -> None:
        """Write an entry; ``save`` puts its files into the folder that it is given.

        The caller holds the key's lock.

        Raises
        ------
        OSError
            The disk is full, say. Nothing half-written is left, an older entry stays.
        """
        folder = self._folder(kind, key)
        folder.parent.mkdir(parents=True, exist_ok=True)
        for litter in folder.parent.glob(f".{key[:12]}-*"):  # of a run that was killed here
            shutil.rmtree(litter, ignore_errors=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{key[:12]}-", dir=folder.parent))
        try:
            if save is not None:
                save(aside)
            files = {f.name: _sha256(f) for f in sorted(aside.iterdir())}
            outer = {"meta": meta, "sha256": digest(meta), "files": files}
            with (aside / "meta.json").open("w") as handle:
                json.dump(outer, handle, allow_nan=False)
                handle.flush()
                os.fsync(handle.fileno())
            if folder.exists():
                shutil.rmtree(folder)
            aside.replace(folder)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise

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
        """
        from safetensors.torch import load_model, save_model

        with self.lock("models", key):
            meta = self.read("models", key)
            if meta is not None and acceptable(meta):
                model = build()
                load_model(model, self._folder("models", key) / "model.safetensors")
                return model.eval(), meta
            model, meta = fit()
            self.write(
                "models",
                key,
                meta,
                lambda folder: save_model(model, str(folder / "model.safetensors")),
            )
            return model, meta
