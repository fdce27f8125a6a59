"""Show what a docstring says about a parameter as words, and its type from the annotation.

``name : words`` is numpydoc's place of a type; here the annotation says that already.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

from sphinx.application import Sphinx

ENTRY = re.compile(r"(\*{0,2}\w[\w, *]*) : (.+)")


def setup(app: Sphinx) -> dict[str, bool]:
    # Before napoleon, which has no priority of its own: 500.
    app.connect("autodoc-process-docstring", reworded, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def reworded(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    out: list[str] = []
    section = ""
    for line, following in pairwise([*lines, ""]):
        if following and not following.strip("-"):
            section = line
        entry = ENTRY.fullmatch(line) if section in ("Parameters", "Attributes") else None
        out += [entry[1], f"    {entry[2]}"] if entry else [line]
    lines[:] = out
