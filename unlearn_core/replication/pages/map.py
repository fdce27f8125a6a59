"""The map of the package: every file and what it is for, from the first line of its docstring."""

from __future__ import annotations

import ast
import html
from pathlib import Path

from ..papers import PaperFile
from . import tables

__all__ = ["first_line", "package_map"]

#: Folders in the order of imports, each with what comes before it.
FOLDERS = (
    "data",
    "models",
    "methods",
    "methods/baselines",
    "metrics",
    "replication",
    "replication/trials",
    "replication/sizes",
    "replication/pages",
)


def first_line(file: Path) -> str:
    """The first paragraph of a module's docstring, in one line."""
    found = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(found.split("\n\n")[0].split())


def package_map(package: Path, papers: dict[str, PaperFile]) -> str:
    """HTML: where each paper's parts are, then every file of each folder.

    Parameters
    ----------
    package : the folder ``unlearn_core``
    papers : slug -> its YAML
    """
    lines = {
        f.relative_to(package).as_posix(): first_line(f) for f in sorted(package.rglob("*.py"))
    }
    rows = []
    for slug, file in papers.items():
        short = file.paper.short
        named = [
            name
            for name, line in lines.items()
            if "baselines/" not in name and (Path(name).stem.startswith(slug) or short in line)
        ]
        parts = [
            ", ".join(f"<code>{n}</code>" for n in named if n.startswith(folder))
            for folder in ("data/", "methods/", "replication/")
        ]
        rows.append([html.escape(short), f"<code>notebooks/{slug}.ipynb</code>", *parts])
    head = [
        "Paper",
        "Notebook, beside it its YAML",
        "Its data",
        "Its method",
        "What runs and shows it",
    ]
    out = [tables.table(head, rows, kind="wide").data]
    for folder in FOLDERS:
        rows = [
            [f"<code>{Path(name).name}</code>", html.escape(line)]
            for name, line in lines.items()
            if Path(name).parent.as_posix() == folder and not name.endswith("__init__.py")
        ]
        intro = html.escape(lines[f"{folder}/__init__.py"])
        out.append(f"<h2><code>{folder}/</code></h2><p>{intro}</p>")
        out.append(tables.table(["File", "What it is for"], rows, kind="map").data)
    return "".join(out)
