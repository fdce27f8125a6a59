"""The file from which an interrupted training goes on."""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

__all__ = ["Checkpoint", "CheckpointError", "CheckpointWarning"]


class CheckpointError(RuntimeError):
    """A checkpoint that can't be read or written; the message names the file."""


class CheckpointWarning(UserWarning):
    """A checkpoint was of no use and was removed; its training starts again."""


class Checkpoint:
    """What a training needs to go on after a kill, in a file.

    The file's first line is the SHA-256 of the rest, so that damage is noticed before anything is
    read from it. It is written aside, brought to the disk and renamed: a kill or a power cut
    leaves the former one or the new one. One training at a time may use it.

    Attributes
    ----------
    seconds, step : what lay behind the training when it went on; 0 where it began anew
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.seconds, self.step = 0.0, 0

    @property
    def _aside(self) -> Path:
        # The same name each time: the next training of this model overwrites what a kill left.
        return self.file.with_name(f"{self.file.name}.part")

    def save(self, state: dict[str, Any]) -> None:
        """Replace what the file holds.

        Raises
        ------
        CheckpointError
            The disk is full, say. Nothing half-written is left, and the former checkpoint stays.
        """
        try:
            with self._aside.open("w+b") as handle:
                handle.write(b"0" * 64 + b"\n")  # the hash's place
                torch.save(state, handle)
                handle.seek(65)
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
                handle.seek(0)
                handle.write(digest.encode())
                handle.flush()
                os.fsync(handle.fileno())
            self._aside.replace(self.file)
        except BaseException as error:
            self._aside.unlink(missing_ok=True)
            # PyTorch has its own words for a disk that is full; the reason is behind them.
            reason = error if isinstance(error, OSError) else error.__context__
            if isinstance(reason, OSError):
                raise CheckpointError(
                    f"the checkpoint {self.file} can't be written: {reason.strerror}"
                ) from error
            raise

    def load(self) -> dict[str, Any] | None:
        """What was saved, on the CPU, or None: there is nothing, or it was damaged and is removed.

        Raises
        ------
        CheckpointError
            The file could not be read, which says nothing against what is in it.
        """
        try:
            with self.file.open("rb") as handle:
                line = handle.read(65)
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
                if line != digest.encode() + b"\n":
                    self.discard("it does not match its hash")
                    return None
                handle.seek(65)
                return torch.load(handle, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError, UnpicklingError) as error:
            raise CheckpointError(f"the checkpoint {self.file} can't be read: {error}") from error

    def discard(self, why: str) -> None:
        """Remove the file, with a warning that says why its training starts again."""
        warnings.warn(
            f"the checkpoint {self.file.name} is of no use ({why}); its training starts again",
            CheckpointWarning,
            stacklevel=2,
        )
        self.remove()

    def remove(self) -> None:
        """Remove the file, and what a kill may have left beside it."""
        self.file.unlink(missing_ok=True)
        self._aside.unlink(missing_ok=True)
