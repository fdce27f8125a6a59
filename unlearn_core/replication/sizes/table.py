"""What the profiles take, as a table: computed by `make size`, kept beside the book, shown on a page of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..cache import digest
from ..papers import Profile, known_papers, load_paper, project_root

__all__ = [
    "CARDS",
    "UTILISATION",
    "compute",
    "file_of",
    "hours",
    "made_of",
    "pflops",
    "printed",
    "read",
]

#: Card -> peak operations a second, by kind (dense, as its maker states them), and bytes read a second.
CARDS: dict[str, dict[str, float]] = {
    "A100": {
        "matmul, half": 312e12,
        "conv, half": 312e12,
        "matmul, single": 19.5e12,
        "conv, single": 156e12,
        "read": 2.0e12,
    },
    "H100": {
        "matmul, half": 989e12,
        "conv, half": 989e12,
        "matmul, single": 67e12,
        "conv, single": 495e12,
        "read": 3.35e12,
    },
}

#: The share of a peak that is reached. Matrices in half precision as in published fine-tunings of models of 7B;
#: convolutions as a ResNet-18 on CIFAR and Stable Diffusion's UNet reach it; matrices in single precision are
#: never rounded here ("highest").
UTILISATION: dict[str, float] = {
    "matmul, half": 0.4,
    "conv, half": 0.2,
    "matmul, single": 0.6,
    "conv, single": 0.1,
    "read": 0.6,
}

#: Seconds that a processor needs to start a kernel, while the card waits: what small models are bound by.
LAUNCH = 8e-6


def hours(size: Mapping[str, Any], card: str) -> float:
    """Of an experiment on one card: computing and reading, or starting kernels, whichever takes longer."""
    rates = {k: v * UTILISATION[k] for k, v in CARDS[card].items()}
    flops = size["flops"]
    computing = sum(v / rates[k] for k, v in flops.items() if k != "launches")
    seconds = max(computing + size["read"] / rates["read"], LAUNCH * flops.get("launches", 0.0))
    return seconds / 3600


def pflops(size: Mapping[str, Any]) -> float:
    """Of an experiment, 1e15 operations."""
    return sum(v for k, v in size["flops"].items() if k != "launches") / 1e15


def file_of(profile: str) -> Path:
    """Where the sizes of a profile are kept."""
    return project_root() / "book" / "sizes" / f"{profile}.json"


def made_of(profile: Profile) -> str:
    """What of a profile its size follows from."""
    plain = profile.model_dump(mode="json", exclude={"rehearsal"})
    for name in ("purpose", "shrunk", "minutes", "memory_gb", "hardware"):
        del plain[name]
    for experiment in plain["experiments"].values():
        del experiment["title"], experiment["requires"]
    return digest(plain)


def compute(profile_name: str, papers: Iterable[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Compute the sizes of these papers' experiments, and keep them paper by paper.

    Yields
    ------
    paper, experiment, its size: ``rows``; ``flops`` and bytes ``read`` of all, as of `Cost`; ``peak_gb`` and its
    ``parts_gb``; the ``greediest`` row
    """
    from .geometry import built_from_geometry
    from .meter import Meter
    from .work import size_of

    with built_from_geometry(), Meter() as meter:
        for slug in papers:
            profile = load_paper(slug).profile(profile_name)
            found: dict[str, Any] = {}
            for name, size in size_of(profile, meter):
                cost = size.cost
                found[name] = {
                    "rows": size.rows,
                    "flops": {k: _short(v) for k, v in sorted(cost.flops.items())},
                    "read": _short(cost.read),
                    "peak_gb": _short(cost.peak / 1e9),
                    "parts_gb": {k: _short(v / 1e9) for k, v in cost.parts.items() if v > 5e7},
                    "greediest": size.greediest,
                }
                yield slug, name, found[name]
            known = read(profile_name)
            known[slug] = {"made_of": made_of(profile), "experiments": found}
            file = file_of(profile_name)
            file.parent.mkdir(exist_ok=True)
            ordered = {k: known[k] for k in known_papers() if k in known}
            file.write_text(f"{json.dumps(ordered, indent=1)}\n", encoding="utf-8")


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def read(profile: str) -> dict[str, Any]:
    """What was computed before: paper -> ``made_of`` and ``experiments``."""
    file = file_of(profile)
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def printed(slug: str, name: str, size: Mapping[str, Any]) -> str:
    """A line of the table that `make size` prints."""
    times = ", ".join(f"{hours(size, c):.3g} h on one {c}" for c in CARDS)
    parts = ", ".join(f"{k} {v:g}" for k, v in size["parts_gb"].items())
    total = pflops(size)
    row = total / size["rows"] if size["rows"] else 0.0
    return (
        f"{slug:11} {name:30} {size['rows']:4} rows, {row:.3g} PFLOPs a row, {total:.4g} in all; "
        f"{times}; peak {size['peak_gb']:g} GB in {size['greediest']} ({parts})"
    )
