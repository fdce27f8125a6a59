"""What a method costs: time and peak memory."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ..models.training import clock

__all__ = ["Cost", "measure"]


@dataclass
class Cost:
    """Filled when the block ends; ``peak_memory`` is None where it can't be measured.

    ``seconds`` are the wall's or, where one thread computes on a CPU, the processor's: of this process
    and of the workers that it has waited for.
    """

    seconds: float = 0.0
    peak_memory: float | None = None  # MB above what was in use at the start


_STATUS = Path("/proc/self/status")


def _resident(field: str) -> int | None:
    """A field of Linux's /proc/self/status, in kB; sandboxes may hide it, or the whole file."""
    try:
        lines = _STATUS.read_text(encoding="utf-8").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith(field)), None)
    except (OSError, ValueError, IndexError):
        return None


@contextlib.contextmanager
def measure(device: torch.device) -> Iterator[Cost]:
    """Measure a block: ``with measure(device) as cost: ...``; no other thread should run beside it."""
    cost, now = Cost(), clock(device)
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    else:
        # Freed memory that the allocator keeps would hide what the block takes. Then "5" resets
        # the high-water mark; where the kernel doesn't allow it, no memory is given.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        before, peak = _resident("VmRSS:"), _resident("VmHWM:")
        if before is not None and (peak is None or peak > before * 1.02 + 1024):
            before = None
    start = now()
    yield cost
    if cuda:
        torch.cuda.synchronize(device)
    cost.seconds = now() - start
    if cuda:
        cost.peak_memory = (torch.cuda.max_memory_allocated(device) - before) / 1e6
    elif before is not None and (peak := _resident("VmHWM:")) is not None:
        cost.peak_memory = max(0, peak - before) * 1024 / 1e6
