from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from unlearn_core.registry import ConfigError
from unlearn_core.replication.strict_yaml import read_yaml

ROOT = Path(__file__).resolve().parents[2]

Read = Callable[[str | bytes], dict[str, Any]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """``read(content)``: what a file "x.yaml" of that content holds."""

    def of(content: str | bytes) -> dict[str, Any]:
        file = tmp_path / "some.yaml"
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_yaml(file, "x.yaml")

    return of


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-4", 0.0005),
        ("1E3", 1000.0),
        ("-2.5e+1", -25.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-7", -7),
        ("010", 10),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("'5e-4'", "5e-4"),
        ("ü", "ü"),
        ("[1, [a]]", [1, ["a"]]),
    ],
)
def test_values(read: Read, text: str, value: Any) -> None:
    """Fails where a rate without a dot is text (``weight_decay: 5e-4``), which stops a training in its
    middle; or where plain words become times, dates or numbers of another base."""
    found = read(f"a: {text}")["a"]
    assert (found, type(found)) == (value, type(value))


def test_merged_keys_may_be_overridden(read: Read) -> None:
    """Fails with PyYAML 6.0.4's own merging: ``c`` had the ``y`` of ``a``, not that of ``b``."""
    text = "a: &a {x: 1, y: 2}\nb: &b {<<: *a, y: 3}\nc: {<<: *b, x: 4}\nd: {<<: [*b, *a]}"
    found = read(text)
    assert found["b"] == {"x": 1, "y": 3}
    assert found["c"] == {"x": 4, "y": 3}
    assert found["d"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 1\nb:\n  SSD: {alpha: 10}\n  SSD: {alpha: 50}", "line 4: the key 'SSD' .* line 3 alr"),
        ("a: {x: 1, x: 2}", "line 1: the key 'x' stands in line 1 already"),
        ("a: {<<: {b: 1}, <<: {c: 1}}", "line 1: the key '<<' stands"),
        ("a: {<<: 3}", "line 1: what is merged is no mapping"),
        ("a: {<<: [{b: 1}, 3]}", "line 1: what is merged is no mapping"),
        ("a: 1\n1: 2", "line 2: the key 1 is no text; write it in quotes"),
        ("a: 1\nnull: 2", "line 2: the key null is no text"),
        ("? [a]\n: 1", "line 1: a key is a list or a mapping"),
        ("a: 1\nb: .nan", r"line 2: '\.nan' is no finite number"),
        ("a: -.inf", r"line 1: '-\.inf' is no finite number"),
        ("a: 1e999", "line 1: '1e999' is no finite number; text stands in quotes"),
        ("a: !!int x", "line 1: 'x' is no finite number"),
        ("a: !!bool x", "line 1: 'x' is neither true nor false"),
        ("a: !!set {b}", "line 1: could not determine a constructor for the tag .*set"),
        ("a: !!python/object/apply:os.system [ls]", "line 1: could not determine a constructor"),
        ("a: 1\nb: &x {c: *x}", "line 2: this holds itself"),
        ("a: " + 60 * "[" + 60 * "]", "line 1: nested too deeply"),
        ("a: 1\nb: c: d", "line 2: mapping values are not allowed"),
        ("a: {b: 1", "line 2: while parsing a flow mapping, did not find expected ',' or '}'"),
        ("a: *b", "line 1: found undefined alias"),
        ("a: 1\nb: \x07", "line 2: control characters are not allowed"),
        ("a: 1\n---\nb: 1", "line 2: expected a single document"),
        (b"a: 1\nb: \xff", "line 2: not UTF-8"),
        ("", "the file is empty"),
        ("# nothing", "the file is empty"),
        ("[1]", r"not a mapping of names, but \[1\]"),
        ("word " * 999, "not a mapping of names, but 'word .{0,60}…$"),
    ],
)
def test_an_error_names_the_file_and_the_line(
    read: Read, content: str | bytes, message: str
) -> None:
    """Fails on a raw traceback of PyYAML's, which calls every file "<unicode string>"; and where of two
    equal keys the last one wins without a word."""
    with pytest.raises(ConfigError, match=rf"^x\.yaml(, |: ){message}"):
        read(content)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"x\.yaml: Is a directory"):
        read_yaml(tmp_path, "x.yaml")
    with pytest.raises(ConfigError, match=r"x\.yaml: No such file"):
        read_yaml(tmp_path / "none.yaml", "x.yaml")


@pytest.mark.parametrize("file", sorted((ROOT / "notebooks").rglob("*.yaml")), ids=lambda f: f.stem)
def test_the_papers_files_say_the_same_to_any_reader(file: Path) -> None:
    """Fails where one of our files means something else in YAML 1.1, as most tools read it."""
    assert read_yaml(file, file.name) == yaml.safe_load(file.read_text())
