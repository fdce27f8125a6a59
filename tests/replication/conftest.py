from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from unlearn_core.replication.records import (
    Invariant,
    Margin,
    Provenance,
    Record,
    Row,
    Value,
    Verdict,
)

ROOT = Path(__file__).resolve().parents[2]

#: A whole YAML of a paper, as small as it can be: 80 drawn images and a three-layer CNN.
TINY: dict[str, Any] = {
    "paper": {
        "title": "A tiny paper",
        "short": "Tiny",
        "authors": "A. Nobody",
        "venue": "nowhere",
        "year": 2024,
        "modality": "image classifiers",
        "cite": "nobody2024tiny",
        "summary": "Nothing.",
        "basis": "Nothing.",
    },
    "profiles": {
        "ci": {
            "purpose": "tests",
            "shrunk": "everything",
            "minutes": 0.1,
            "memory_gb": 1,
            "hardware": "any",
            "seeds": [0, 1],
            "experiments": {
                "full_class": {
                    "title": "Full class",
                    "data": {
                        "use": "shapes",
                        "per_class": 8,
                        "test_per_class": 4,
                        "fills": 1,
                        "size": 12,
                    },
                    "model": {"use": "small_cnn", "width": 8},
                    "train": {"epochs": 6, "lr": 0.1, "batch_size": 16, "momentum": 0.9},
                    "forget": {"class": ["solid cross"]},
                    "oracle": "Retrain",
                    "methods": {
                        "Retrain": {"use": "retrain"},
                        "Fine-tune": {
                            "use": "fine_tune",
                            "train": {"epochs": 2, "lr": 0.01, "batch_size": 32},
                        },
                        "SSD": {"use": "ssd", "alpha": 5, "batch_size": 16},
                    },
                },
            },
        }
    },
    "claims": {
        "C1": {
            "title": "It works",
            "statement": "It works.",
            "where": "page 1",
            "margin": "points",
            "explanation": "Nothing.",
            "judged_at": ["ci"],
        }
    },
    "notes": {"easy": "All.", "hard": "Nothing.", "untested": "Much."},
}


def code_cell(source: str, *tags: str) -> dict[str, Any]:
    return {
        "cell_type": "code",
        "id": f"c{abs(hash(source)) % 10**8}",
        "metadata": {"tags": list(tags)},
        "source": source,
        "outputs": [],
        "execution_count": None,
    }


class Project:
    """A project in a folder of its own, with this package, without git and with made-up papers."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "notebooks").mkdir(parents=True)
        (root / "book").mkdir()
        (root / "book" / "references.bib").write_text("@misc{nobody2024tiny, title = {A}}\n")
        (root / "unlearn_core").symlink_to(ROOT / "unlearn_core")

    def paper(self, slug: str, config: dict[str, Any] | None = None, *cells: str) -> None:
        """A paper of that name: ``cells`` follow the parameters in its notebook."""
        notebooks = self.root / "notebooks"
        (notebooks / f"{slug}.yaml").write_text(yaml.safe_dump(config or TINY, sort_keys=False))
        parameters = f'paper = "{slug}"\nprofile = "ci"\nout = "build/ci"'
        content = {
            "cells": [code_cell(parameters, "parameters"), *map(code_cell, cells)],
            "metadata": {
                "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}
            },
            "nbformat": 4,
            "nbformat_minor": 5,
        }
        (notebooks / f"{slug}.ipynb").write_text(json.dumps(content))


@pytest.fixture(autouse=True)
def _this_project(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the tests are started, they look at the notebooks beside them."""
    monkeypatch.setenv("UNLEARN_ROOT", str(ROOT))


@pytest.fixture
def tiny() -> dict[str, Any]:
    """The configuration of the paper "tiny", free to be changed."""
    return deepcopy(TINY)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with the paper "tiny"; it is what `project_root` finds."""
    made = Project(tmp_path / "project")
    made.paper("tiny")
    monkeypatch.setenv("UNLEARN_ROOT", str(made.root))
    for name in ("UNLEARN_BUILD", "UNLEARN_CACHE", "UNLEARN_CLEAN", "UNLEARN_REHEARSE"):
        monkeypatch.delenv(name, raising=False)
    return made


MakeRow = Callable[..., Row]


@pytest.fixture
def make_row() -> MakeRow:
    """``make_row(experiment, method, seed, variant, dirty=..., **metrics)``."""

    def make(
        experiment: str = "full_class",
        method: str = "SSD",
        seed: int = 0,
        variant: dict[str, Any] | None = None,
        *,
        dirty: bool = False,
        **metrics: float,
    ) -> Row:
        provenance = Provenance(
            commit="c0ffee",
            dirty=dirty,
            date="2025-01-01T00:00:00+00:00",
            device="cpu",
            threads=1,
            versions={"torch": "2"},
            sources=({"id": "a/b", "kind": "embedded", "sha256": "00"},),
            seconds=1.5,
        )
        return Row(
            experiment=experiment,
            method=method,
            seed=seed,
            variant=variant or {},
            key="k",
            spec={"alpha": 10.0},
            metrics={k: Value(value=v, n=10, stderr=0.5) for k, v in metrics.items()},
            provenance=provenance,
        )

    return make


@pytest.fixture
def make_record(make_row: MakeRow) -> Callable[..., Record]:
    """A record that may be published; keywords change its fields."""

    def make(**changes: Any) -> Record:
        fields: dict[str, Any] = {
            "paper": "tiny",
            "profile": "ci",
            "config": "00",
            "commit": "c0ffee",
            "dirty": False,
            "started": "2025-01-01T00:00:00+00:00",
            "finished": "2025-01-01T00:01:00+00:00",
            "seconds": 60.0,
            "environment": {"python": "3.11"},
            "seeds": (0, 1),
            "rows": (
                make_row(seed=0, forget_accuracy=12.5, zrf=0.75),
                make_row(seed=1, variant={"forget": "ring", "alpha": 5}, forget_accuracy=0.0),
            ),
            "verdicts": (
                Verdict(
                    claim="C1",
                    verdict="holds in part",
                    margins={0: Margin(value=1.0), 1: Margin(value=-0.5)},
                ),
            ),
            "invariants": (
                Invariant(name="disjoint", experiment="full_class", seed=0, holds=True, detail=""),
            ),
        }
        return Record(**fields | changes)

    return make
