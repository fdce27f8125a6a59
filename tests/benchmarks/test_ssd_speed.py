"""What SSD costs, as ratios of things measured in one run; nothing is asserted about time.

On one thread, as all tests run."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn
from torch.utils.data import DataLoader

from unlearn_core.data import Classification, ImageSet, batches
from unlearn_core.methods.ssd import dampen, importances
from unlearn_core.models import ResNet18

Report = Callable[..., None]
Timed = Callable[..., dict[str, float]]

IMAGES, BATCH = 256, 64
loss = Classification(10).loss


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return ResNet18(10, 3, width=8).build(0)


@pytest.fixture(scope="module")
def images() -> ImageSet:
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (IMAGES, 32, 32, 3), dtype=torch.uint8, generator=g)
    labels = torch.randint(0, 10, (IMAGES,), generator=g)
    return ImageSet(pixels, labels, labels, (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def loader(images: ImageSet) -> DataLoader:
    return batches(images, BATCH)


def plain_pass(model: nn.Module, loader: DataLoader) -> None:
    """Forward and backward over the loader, as training does it, without a step."""
    for batch in loader:
        loss(model, batch).backward()
        model.zero_grad()


def test_the_importance_pass_against_a_plain_pass(
    benchmark: BenchmarkFixture,
    report: Report,
    interleaved: Timed,
    model: nn.Module,
    loader: DataLoader,
) -> None:
    """Aim: at most 1.15."""
    found = interleaved(
        9,
        importances=lambda: importances(model, loader, loss),
        plain=lambda: plain_pass(model, loader),
    )
    report(importances_per_plain_pass=found["importances"] / found["plain"])
    benchmark.pedantic(importances, (model, loader, loss), rounds=2)


def test_per_sample_against_a_loop_over_single_samples(
    benchmark: BenchmarkFixture,
    report: Report,
    interleaved: Timed,
    model: nn.Module,
    images: ImageSet,
) -> None:
    few = images.subset(torch.arange(64))
    together, alone = batches(few, BATCH), batches(few, 1)
    found = interleaved(
        5,
        vmapped=lambda: importances(model, together, loss, per_sample=True),
        loop=lambda: importances(model, alone, loss),
    )
    report(vmapped_per_loop=found["vmapped"] / found["loop"])
    benchmark.pedantic(importances, (model, together, loss), {"per_sample": True}, rounds=2)


def test_dampening_against_the_importance_pass(
    benchmark: BenchmarkFixture,
    report: Report,
    interleaved: Timed,
    model: nn.Module,
    loader: DataLoader,
) -> None:
    """Aim: below 1 %; on a data set of a real size the share is smaller still."""
    imp_D = importances(model, loader, loss)
    imp_f = {name: 2 * value for name, value in imp_D.items()}

    def select_and_dampen() -> None:
        dampen(model, imp_f, imp_D, alpha=10.0, lam=1.0)

    found = interleaved(
        9, importances=lambda: importances(model, loader, loss), dampen=select_and_dampen
    )
    share = found["dampen"] / found["importances"]
    report(
        dampening_percent_of_a_pass=100 * share,
        dampening_percent_of_a_pass_over_50000_images=100 * share * IMAGES / 50_000,
    )
    benchmark.pedantic(select_and_dampen, rounds=5)


def test_peak_memory_against_what_must_be_held(benchmark: BenchmarkFixture, report: Report) -> None:
    """Weights, one set of gradients, two sets of importances and one batch's activations."""
    # Every large tensor gets, and gives back, memory of its own.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}

    def run() -> dict[str, float | None]:
        command = [sys.executable, str(Path(__file__).with_name("peak_memory.py"))]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    found = benchmark.pedantic(run, rounds=1)
    if found["peak_memory_mb"] is None:
        pytest.skip("this kernel does not let a process reset its memory high-water mark")
    held = 4 * found["weights_mb"] + found["activations_mb"]
    report(
        **found, held_mb=held, peak_per_held=(found["peak_memory_mb"] + found["weights_mb"]) / held
    )


def import_seconds(statement: str) -> float:
    code = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(run.stdout)


@pytest.mark.parametrize("module", ["unlearn_core", "unlearn_core.methods"])
def test_import_time(benchmark: BenchmarkFixture, report: Report, module: str) -> None:
    """In seconds and, since torch is most of it, relative to importing torch alone."""
    ours, torch_alone = [], []
    for _ in range(3):
        ours.append(import_seconds(f"import {module}"))
        torch_alone.append(import_seconds("import torch"))
    seconds = statistics.median(ours)
    report(
        **{
            f"import_{module}_seconds": seconds,
            f"import_{module}_per_torch": seconds / statistics.median(torch_alone),
        }
    )
    benchmark.pedantic(import_seconds, (f"import {module}",), rounds=1)
