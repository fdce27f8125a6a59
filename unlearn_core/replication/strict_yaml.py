"""YAML as plain data: mappings with text as keys, each once; lists, text, finite numbers.

PyYAML reads YAML 1.1, takes the last of two equal keys and leaves ``5e-4`` as text. What is read
here follows YAML 1.2's core schema (without octal and hexadecimal numbers), and every error names
the file and the line.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, ClassVar

import yaml
from yaml.constructor import ConstructorError, SafeConstructor
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from ..registry import ConfigError, brief

__all__ = ["read_yaml"]

#: Mappings and lists inside one another.
DEEPEST = 50

TEXT = "tag:yaml.org,2002:str"
MERGE = "tag:yaml.org,2002:merge"


def _fault(what: str, node: Node) -> ConstructorError:
    return ConstructorError(None, None, what, node.start_mark)


class _Loader(yaml.CSafeLoader):
    """Knows no tag but those of plain data, and no other way to write a number than YAML 1.2's."""

    yaml_implicit_resolvers: ClassVar[dict] = {}
    yaml_constructors: ClassVar[dict] = {}

    def flatten_mapping(self, node: MappingNode) -> None:
        """Put what is merged (``<<``) before a mapping's own pairs, which win; of several, the first.

        PyYAML 6.0.4 tells keys apart by where they lie in memory: merged once more, a mapping lost
        what it had itself put in the place of a key of one letter.
        """
        pairs: dict[str, tuple[Node, Node]] = {}
        for key, value in node.value:
            if key.tag == MERGE:
                for part in value.value if isinstance(value, SequenceNode) else [value]:
                    if not isinstance(part, MappingNode):
                        raise _fault("what is merged is no mapping", part)
                    self.flatten_mapping(part)
                    for pair in part.value:
                        pairs.setdefault(pair[0].value, pair)
        pairs |= {pair[0].value: pair for pair in node.value if pair[0].tag != MERGE}
        node.value = list(pairs.values())

    def boolean(self, node: ScalarNode) -> bool:
        text = self.construct_scalar(node)
        if text.lower() not in ("true", "false"):
            raise _fault(f"{brief(text)} is neither true nor false", node)
        return text.lower() == "true"

    def number(self, node: ScalarNode) -> int | float:
        text = self.construct_scalar(node)
        try:
            value = int(text) if node.tag.endswith(":int") else float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise _fault(f"{brief(text)} is no finite number; text stands in quotes", node)
        return value


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", [*"~nN", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", r"[-+]?[0-9]+", [*"-+0123456789"]),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", [*"-+.0123456789"]),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", [*"-+."]),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first
    )
for _tag, _construct in (
    ("null", SafeConstructor.construct_yaml_null),
    ("bool", _Loader.boolean),
    ("int", _Loader.number),
    ("float", _Loader.number),
    ("str", SafeConstructor.construct_yaml_str),
    ("seq", SafeConstructor.construct_yaml_seq),
    ("map", SafeConstructor.construct_yaml_map),
):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _construct)
_Loader.add_constructor(None, SafeConstructor.construct_undefined)


def _check_keys(node: Node, above: tuple[Node, ...] = (), seen: set[int] | None = None) -> None:
    """Refuse keys that come twice or are no text, and what holds itself, below a node."""
    seen = set() if seen is None else seen
    if node in above:
        raise _fault("this holds itself", node)
    if len(above) > DEEPEST:
        raise _fault("nested too deeply", node)
    if id(node) in seen:  # an alias: the same node once more
        return
    seen.add(id(node))
    children: list[Node] = []
    if isinstance(node, SequenceNode):
        children = node.value
    elif isinstance(node, MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                raise _fault("a key is a list or a mapping", key)
            if key.tag not in (TEXT, MERGE):
                raise _fault(f"the key {key.value} is no text; write it in quotes", key)
            if key.value in lines:
                first = lines[key.value]
                raise _fault(f"the key {brief(key.value)} stands in line {first} already", key)
            lines[key.value] = key.start_mark.line + 1
            children.append(value)
    for child in children:
        _check_keys(child, (*above, node), seen)


def _line(error: yaml.YAMLError, text: str) -> int | None:
    """The line that a parser complains about, from 1."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is not None:
        return mark.line + 1
    position = getattr(error, "position", None)  # of a character that YAML doesn't allow
    return None if position is None else text.count("\n", 0, position) + 1


def read_yaml(file: Path, name: str) -> dict[str, Any]:
    """The mapping that a YAML file holds; ``name`` is what error messages call the file.

    Raises
    ------
    ConfigError
        The file can't be read, is not UTF-8, no valid YAML, empty or no mapping; a key comes twice
        or is no text; a number is not finite; something is no plain data.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{name}, line {line}: not UTF-8 ({error.reason})") from error
    try:
        loader = _Loader(text)  # looks at the first characters already
        try:
            node = loader.get_single_node()
            if node is not None:
                _check_keys(node)
            value = None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        line = _line(error, text)
        parts = (getattr(error, "context", None), getattr(error, "problem", None))
        what = ", ".join(p for p in parts if p) or getattr(error, "reason", str(error))
        raise ConfigError(f"{name}{f', line {line}' * (line is not None)}: {what}") from error
    if value is None:
        raise ConfigError(f"{name}: the file is empty")
    if not isinstance(value, dict):
        raise ConfigError(f"{name}: not a mapping of names, but {brief(value)}")
    return value
