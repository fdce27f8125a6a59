"""Text is UTF-8 wherever it is read and written, whatever the locale says."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "unlearn_core"


def without_encoding(source: str) -> list[int]:
    """Lines with a call that reads or writes text in the locale's encoding.

    Ruff's PLW1514 knows only those whose object it can tell to be a path.
    """
    found = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        given = {k.arg: k.value for k in call.keywords}
        function, arguments = call.func, list(call.args)
        if isinstance(function, ast.Attribute):
            name = function.attr
            if name == "open" and ast.unparse(function.value) in ("Image", "os"):
                continue
        else:
            name, arguments = ast.unparse(function), arguments[1:]
        text = name in ("read_text", "write_text")
        if name == "open":
            mode = given.get("mode", arguments[0] if arguments else ast.Constant("r"))
            text = "b" not in ast.literal_eval(mode)
        asked = given.get("text", ast.Constant(False))
        text = text or (isinstance(asked, ast.Constant) and asked.value is True)
        if text and "encoding" not in given:
            found.append(call.lineno)
    return sorted(found)


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("f.read_text()", [1]),
        ("f.write_text('x', encoding='utf-8')", []),
        ("open('x')\nf.open()\nf.open('w')\nopen('x', 'w')\nopen(file='x')", [1, 2, 3, 4, 5]),
        ("open('x', 'rb')\nf.open('wb')\nImage.open('x')\nopen('x', encoding='utf-8')", []),
        ("run(c, text=True)\nrun(c, text=True, encoding='utf-8')\nrun(c)", [1]),
    ],
)
def test_such_calls_are_found(source: str, lines: list[int]) -> None:
    assert without_encoding(source) == lines


def test_no_text_is_in_the_encoding_of_a_locale() -> None:
    """Fails under LC_ALL=de_DE.ISO-8859-1 first: what was written there is other text elsewhere."""
    files = sorted(PACKAGE.rglob("*.py"))
    found = {f: without_encoding(f.read_text(encoding="utf-8")) for f in files}
    assert len(files) > 100
    assert {f.relative_to(PACKAGE).as_posix(): lines for f, lines in found.items() if lines} == {}
