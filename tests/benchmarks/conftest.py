"""Benchmarks run by ``pytest tests/benchmarks``; the default run ignores this folder."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

Timed = Callable[..., dict[str, float]]


@pytest.fixture
def interleaved() -> Timed:
    """``interleaved(rounds, a=f, b=g)``: median seconds of each, run in turn.

    In turn, so that another load on the machine meets all of them alike and ratios stay stable.
    """

    def run(rounds: int, **functions: Callable[[], object]) -> dict[str, float]:
        seconds: dict[str, list[float]] = {name: [] for name in functions}
        for f in functions.values():
            f()
        for _ in range(rounds):
            for name, f in functions.items():
                start = time.perf_counter()
                f()
                seconds[name].append(time.perf_counter() - start)
        return {name: statistics.median(values) for name, values in seconds.items()}

    return run


@pytest.fixture
def report(benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture) -> Callable[..., None]:
    """Print numbers, and keep them in the benchmark's ``extra_info``."""

    def write(**numbers: float) -> None:
        benchmark.extra_info.update(numbers)
        with capsys.disabled():
            print()
            for name, value in numbers.items():
                print(f"  {name}: {value:.4g}")

    return write
