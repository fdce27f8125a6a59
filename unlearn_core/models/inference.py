"""Running a model without training it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..data import Classification, batches, labelled, logits_by
from .training import device_of, require_finite

__all__ = ["Outputs", "check_pair", "evaluating", "precision_of", "predict", "several"]


def several(values: Any, what: str) -> None:
    """Raise where one text stands for several: its letters would.

    Raises
    ------
    TypeError
        Says how several are written.
    """
    if isinstance(values, str):
        raise TypeError(f"{what} are several: [{values[:40]!r}], not {values[:40]!r}")


def check_pair(pair: Any) -> None:
    """Raise where what is to be a question and its answer is none: a mapping's names would be.

    Raises
    ------
    TypeError
        Says what a pair is.
    """
    several(pair, "a question and its answer")
    if isinstance(pair, Mapping) or len(pair) != 2:
        raise TypeError(f"a pair is (question, answer), not {pair!r:.60}")


def precision_of(precision: Any) -> str:
    """What a model runs in: "no" for that of its weights, or "bf16" for autocast.

    Raises
    ------
    ValueError
        Anything else.
    """
    if precision not in ("no", "bf16"):
        raise ValueError(f"precision is 'no' or 'bf16', not {precision!r}")
    return precision


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; after it every module is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@dataclass(frozen=True)
class Outputs:
    """What a classifier says of a data set, on the CPU: logits (N, classes) and labels (N,)."""

    logits: Tensor
    labels: Tensor


@torch.no_grad()
def predict(
    model: nn.Module,
    data: Dataset,
    batch_size: int = 256,
    *,
    task: Classification | None = None,
) -> Outputs:
    """Logits of the whole data set, in its order; the model is in evaluation mode meanwhile.

    Parameters
    ----------
    data : any data set that `LabelledSet` takes
    task : has the logits of the model; without one they are what the model returns, or its ``logits``

    Raises
    ------
    NotFiniteError
        Its weights are not finite: all it says is one class.
    ValueError
        Nothing it gives is negative, and every row sums to one, but for 1e-4, or 1e-2 in half
        precision: probabilities, or exact one-hot scores. Losses, entropies and attacks would take them
        for logits.
    """
    require_finite(model, f"the {type(model).__name__} that is asked")
    device, logits = device_of(model), logits_by(task)
    with evaluating(model):
        out = [
            (logits(model, (x.to(device), y.to(device))).cpu(), y)
            for x, y in batches(labelled(data), batch_size)
        ]
    given = torch.cat([x for x, _ in out])
    found = Outputs(given.float(), torch.cat([y for _, y in out]))
    rounding = 1e-4 if given.dtype.itemsize >= 4 else 1e-2
    if (found.logits >= 0).all() and ((found.logits.sum(dim=1) - 1).abs() < rounding).all():
        raise ValueError(
            f"the {type(model).__name__} that is asked gives probabilities, each row of which sums to "
            "one, and not logits: leave its last softmax out"
        )
    return found
