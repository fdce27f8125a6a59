"""What the profiles take: the page of the computed sizes."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from typing import Any

from ..papers import PaperFile
from ..sizes.table import CARDS, hours, pflops, read
from . import tables

__all__ = ["sizes_table"]


def sizes_table(papers: Mapping[str, PaperFile], profile: str = "paper") -> str:
    """HTML: what each experiment of a profile takes, a paper's sum after its experiments; and the papers
    that nothing is computed of.
    """
    known, out = read(profile), []
    for slug, file in papers.items():
        if slug not in known:
            continue
        found = known[slug]["experiments"]
        rows = [_line(html.escape(name), size) for name, size in found.items()]
        total = _line("all", _sum(found.values()))
        total[2] = ""  # rows of a paper are too unlike for a mean
        # Not of the sum: what takes longest, computing or starting kernels, differs between experiments.
        total[-len(CARDS) :] = [f"{sum(hours(s, c) for s in found.values()):.3g}" for c in CARDS]
        rows.append([f"<b>{cell}</b>" for cell in total])
        head = ["Experiment", "Rows", "PFLOPs a row", "PFLOPs", "Peak, GB", "of which, GB"]
        out.append(f"<h3>{html.escape(file.paper.short)}</h3>")
        out.append(tables.table([*head, *(f"{c}, h" for c in CARDS)], rows, kind="wide").data)
    if missing := [html.escape(f.paper.short) for slug, f in papers.items() if slug not in known]:
        out.append(
            f"<p>Not computed yet: {', '.join(missing)}. The minutes and gigabytes in their YAML are "
            "estimates.</p>"
        )
    return "\n".join(out)


def _sum(sizes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What all experiments of a paper take, one after the other."""
    sizes = [*sizes]
    kinds = {k for size in sizes for k in size["flops"]}
    return {
        "rows": sum(s["rows"] for s in sizes),
        "flops": {k: sum(s["flops"].get(k, 0.0) for s in sizes) for k in kinds},
        "read": sum(s["read"] for s in sizes),
        "peak_gb": max(s["peak_gb"] for s in sizes),
    }


def _line(name: str, size: Mapping[str, Any]) -> list[str]:
    parts = "<br>".join(f"{k} {v:.3g}" for k, v in size.get("parts_gb", {}).items())
    total = pflops(size)
    return [
        name,
        f"{size['rows']}",
        f"{total / size['rows']:.3g}" if size["rows"] else "",
        f"{total:.4g}",
        f"{size['peak_gb']:.3g}",
        parts,
        *(f"{hours(size, c):.3g}" for c in CARDS),
    ]
