"""What the tests share: recorded numbers, a private hub folder and one tiny problem."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from torch import Tensor

from unlearn_core.data import ForgetSplit, ImageData, forget_class, shapes
from unlearn_core.models import Recipe, SmallCNN, TrainConfig

GOLDENS = Path(__file__).parent / "data_files" / "goldens"


# Threads that wait for one another on a busy machine make tiny tensors a hundred times slower.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, Tensor]]:
    """``golden("ssd/zrf")``: the arrays of one recorded case, as tensors."""

    def load(name: str) -> dict[str, Tensor]:
        with np.load(GOLDENS / f"{name}.npz") as arrays:
            return {k: torch.from_numpy(np.asarray(arrays[k])) for k in arrays.files}

    return load


@pytest.fixture
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> NoReturn:
        raise ConnectionError("the tests do not download")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_download: None) -> Path:
    """An empty ``$UNLEARN_HUB``; nothing can be downloaded beside it."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setenv("UNLEARN_HUB", str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny_data() -> ImageData:
    return shapes(per_class=8, test_per_class=4, fills=1, size=12)


@pytest.fixture(scope="session")
def tiny_split(tiny_data: ImageData) -> ForgetSplit:
    """Forget class 3 of ten; 8 of 80 training images."""
    return forget_class(tiny_data, 3)


@pytest.fixture(scope="session")
def recipe(tiny_split: ForgetSplit) -> Recipe:
    train = TrainConfig(epochs=2, lr=0.05, momentum=0.9, batch_size=16)
    return Recipe(SmallCNN(10, 1, width=4), tiny_split.task, train)


@pytest.fixture
def model(recipe: Recipe) -> torch.nn.Module:
    return recipe.build(0)
