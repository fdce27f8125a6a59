"""The reference names what there is by the paths that users import."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections import Counter

import pytest

import unlearn_core
from unlearn_core.replication.pages.api import api_pages

PAGES = api_pages()


def names_on(page: str) -> list[str]:
    """The paths of what a page describes, in its order."""
    text = PAGES[f"api/{page}"]
    found = re.findall(r"^\.\. auto(?:class|exception|function):: (\S+)$", text, flags=re.M)
    data = re.findall(r"^\.\. py:data:: (\S+)\n   :module: (\S+)$", text, flags=re.M)
    return found + [f"{module}.{name}" for name, module in data]


@pytest.mark.parametrize("package", ["data", "models", "methods", "metrics"])
def test_what_is_exported_stands_under_the_package(package: str) -> None:
    """Fails where a reader is shown a path to import from that is longer than it has to be."""
    module = importlib.import_module(f"unlearn_core.{package}")
    named = Counter(names_on(package))
    assert max(named.values()) == 1
    assert {f"unlearn_core.{package}.{name}" for name in module.__all__} <= named.keys()
    exported = {id(getattr(module, name)) for name in module.__all__}
    for path in named:
        place, _, name = path.rpartition(".")
        thing = getattr(importlib.import_module(place), name)
        assert (place == module.__name__) == (id(thing) in exported), path


def test_what_is_not_exported_stands_under_its_module() -> None:
    assert "unlearn_core.methods.ssd.dampen" in names_on("methods")
    assert "unlearn_core.replication.run.Replication" in names_on("replication")


def test_every_part_has_a_page() -> None:
    """Fails where a module that belongs to no subpackage is left out: its names are imported, too."""
    parts = {m.name for m in pkgutil.iter_modules(unlearn_core.__path__)}
    assert PAGES.keys() == {f"api/{name}" for name in {"index", *parts}}
    assert "unlearn_core.fields.Positive" in names_on("fields")
    assert "unlearn_core.seeding.derive_seed" in names_on("seeding")


def test_data_keep_their_words() -> None:
    assert "   Every method, by its ``name``." in PAGES["api/methods"].splitlines()
    assert (
        ".. py:data:: DATASETS\n   :module: unlearn_core.data\n\n   Problems of images, by"
        in (PAGES["api/data"])
    )
