"""The small networks of the recorded cases (see the goldens' README)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

Arrays = dict[str, Tensor]


def part(case: Arrays, prefix: str) -> Arrays:
    """The arrays whose names begin so, without the prefix."""
    return {k.removeprefix(prefix): v for k, v in case.items() if k.startswith(prefix)}


class Spatial(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


def network(theta: Arrays, buffers: Arrays | None = None) -> nn.Module:
    """The mlp or convbn with these weights, in float64; sizes and biases are the arrays'."""
    layers: dict[str, nn.Module] = {}
    if "fc1.weight" in theta:
        (hidden, inside), outside = theta["fc1.weight"].shape, len(theta["fc2.bias"])
        layers["flatten"] = nn.Flatten()
        layers |= {"fc1": nn.Linear(inside, hidden), "relu": nn.ReLU()}
        layers["fc2"] = nn.Linear(hidden, outside)
    else:
        for i, stride in ((1, 1), (2, 2)):
            outside, inside = theta[f"conv{i}.weight"].shape[:2]
            bias = f"conv{i}.bias" in theta
            layers[f"conv{i}"] = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=bias)
            layers |= {f"bn{i}": nn.BatchNorm2d(outside), f"relu{i}": nn.ReLU()}
        layers |= {"mean": Spatial(), "fc": nn.Linear(*theta["fc.weight"].shape[::-1])}
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    model.double().load_state_dict(theta | (buffers or {}))
    return model


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Of a model of any number of classes."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


class LogitTables:
    """A "model" that looks up a batch's logits by its name, which stands where token ids would."""

    def __init__(self, tables: Mapping[str, Tensor]) -> None:
        self.tables = {k: v.clone().requires_grad_() for k, v in tables.items()}

    def __call__(self, name: Any, attention_mask: Any, at: Tensor | None = None) -> Tensor:
        return self.tables[name] if at is None else self.tables[name][at]


def batch_of(name: str, labels: Tensor) -> dict[str, Any]:
    return {"input_ids": name, "attention_mask": None, "labels": labels}
