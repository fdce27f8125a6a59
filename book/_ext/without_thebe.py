"""Leave out the scripts of sphinx-thebe.

Jupyter Book writes them twice, which is an error in the console, and they name a remote address;
this book has no live cells.
"""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", drop, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def drop(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    scripts = context["script_files"]
    scripts[:] = [s for s in scripts if "thebe" not in f"{s.filename}{s.attributes}".lower()]
