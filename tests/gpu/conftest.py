"""Where the smoke test of a GPU runs: on CUDA, or where ``UNLEARN_GPU_TESTS`` says (``cpu``)."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    named = os.environ.get("UNLEARN_GPU_TESTS", "cuda")
    if named == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU that CUDA knows; UNLEARN_GPU_TESTS=cpu runs the same on the processor")
    return torch.device(named)
