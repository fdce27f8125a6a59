"""Every name that the reference shows is described."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Collection, Iterator
from types import ModuleType

import pytest
from sphinx.pycode import ModuleAnalyzer

import unlearn_core

PACKAGES = ("data", "models", "methods", "metrics", "replication")


def public_modules() -> Iterator[str]:
    for module in pkgutil.walk_packages(unlearn_core.__path__, "unlearn_core."):
        if not module.name.endswith("__main__"):
            yield module.name


def assigned(module: ModuleType) -> set[str]:
    """The names that a module gives a value, not those that it imports."""
    found: set[str] = set()
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
    return found


def undocumented(name: str) -> Iterator[str]:
    """What of a module's ``__all__`` no docstring, or comment (``#:``), describes."""
    module = importlib.import_module(name)
    comments = ModuleAnalyzer.for_module(name).find_attr_docs()
    for own in getattr(module, "__all__", ()):
        thing = getattr(module, own)
        if not (inspect.isclass(thing) or inspect.isroutine(thing)):
            if ("", own) not in comments and own in assigned(module):
                yield own
            continue
        if getattr(thing, "__module__", name) != name:
            continue  # described where it is defined
        generated = inspect.isclass(thing) and (thing.__doc__ or "").startswith(f"{own}(")
        if not inspect.getdoc(thing) or generated:
            yield own
        if inspect.isclass(thing):
            yield from (f"{own}.{member}" for member in silent_members(thing))


def silent_members(cls: type) -> Iterator[str]:
    """Public methods and properties that neither a class nor one above it describes."""
    for name, member in vars(cls).items():
        if name.startswith("_") and name != "__call__":
            continue
        function = getattr(member, "func", None) or getattr(member, "__func__", member)
        if inspect.isfunction(function) or isinstance(member, property) or hasattr(member, "func"):
            above = (getattr(c, name, None) for c in cls.__mro__ if name in vars(c))
            if not any(inspect.getdoc(one) for one in above):
                yield name


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_documented(package: str) -> None:
    """Fails where a name would be left out of the reference, or stand there without a word."""
    importlib.import_module(f"unlearn_core.{package}")
    modules = [m for m in public_modules() if m.split(".")[1] == package]
    assert modules
    assert [f"{m}: {name}" for m in modules for name in undocumented(m)] == []


@pytest.mark.parametrize("module", ["extras", "fields", "registry", "seeding"])
def test_so_is_what_belongs_to_no_package(module: str) -> None:
    assert [*undocumented(f"unlearn_core.{module}")] == []


def no_attributes(cls: type) -> list[str]:
    """What stands as an attribute in a class's own docstring, and the class does not have."""
    doc = inspect.cleandoc(vars(cls).get("__doc__") or "")
    section = re.search(r"^Attributes\n-+\n(.*?)(?=^[^\n]+\n-{3,}$|\Z)", doc, flags=re.M | re.S)
    if section is None:
        return []
    lines = [line for line in section[1].splitlines() if line and not line.startswith(" ")]
    names = [name for line in lines for name in line.partition(" : ")[0].split(", ")]
    fields = getattr(cls, "__dataclass_fields__", {})
    return [name for name in names if name not in fields and not hasattr(cls, name)]


def test_attributes_of_methods_are_theirs() -> None:
    """Fails where prose, or a field that went, is shown among a method's attributes."""
    found, sections = [], 0
    for name in (m for m in public_modules() if m.split(".")[1] == "methods"):
        module = importlib.import_module(name)
        for own, cls in vars(module).items():
            if inspect.isclass(cls) and cls.__module__ == name:
                sections += "\nAttributes\n" in inspect.cleandoc(cls.__doc__ or "")
                found += [f"{name}.{own}: {attribute}" for attribute in no_attributes(cls)]
    assert sections > 40
    assert found == []


def test_prose_among_attributes_is_found() -> None:
    class Method:
        """One.

        Attributes
        ----------
        lr, epochs : of the training
            of both
        keep : a share

        More of the keep.

        Raises
        ------
        ValueError
        """

        lr = epochs = 1

    assert no_attributes(Method) == ["keep", "More of the keep."]


def unnamed_errors(tree: ast.Module, public: Collection[str]) -> Iterator[str]:
    """What public functions raise themselves, and their docstrings don't name."""
    functions = [(f.name, f) for f in tree.body if isinstance(f, ast.FunctionDef)]
    for cls in (c for c in tree.body if isinstance(c, ast.ClassDef) and c.name in public):
        functions += [(cls.name, f) for f in cls.body if isinstance(f, ast.FunctionDef)]
    for owner, function in functions:
        said = ast.get_docstring(function)
        if owner not in public or function.name.startswith("_") or said is None:
            continue  # where a class says nothing itself, the docstring above it is about all
        for node in ast.walk(function):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                error = ast.unparse(node.exc.func).split(".")[-1]
                if error not in said:
                    yield f"{function.name} raises {error}"


@pytest.mark.parametrize("package", PACKAGES[:-1])
def test_errors_are_named(package: str) -> None:
    """Fails where a function refuses something and its docstring does not say so."""
    found = []
    for name in (m for m in public_modules() if m.split(".")[1] == package):
        module = importlib.import_module(name)
        tree = ast.parse(inspect.getsource(module))
        found += [f"{name}: {e}" for e in unnamed_errors(tree, getattr(module, "__all__", ()))]
    assert found == []


def test_an_error_that_is_not_named_is_found() -> None:
    code = """
def one(x):
    'Of x.'
    raise ValueError("no")

class Two:
    def method(self):
        'Raises TypeError.'
        raise TypeError("no")

    def other(self):
        'Fails.'
        raise module.OwnError("no")
"""
    tree = ast.parse(code)
    assert [*unnamed_errors(tree, {"one", "Two"})] == [
        "one raises ValueError",
        "other raises OwnError",
    ]
    assert [*unnamed_errors(tree, {"Two"})] == ["other raises OwnError"]


def test_what_is_not_described_is_found() -> None:
    class Above:
        def known(self) -> None:
            """Described."""

    class Below(Above):
        def known(self) -> None:
            pass

        def silent(self) -> None:
            pass

        @property
        def shown(self) -> int:
            return 1

        @staticmethod
        def still() -> None:
            pass

        def __call__(self) -> None:
            pass

    assert [*silent_members(Below)] == ["silent", "shown", "still", "__call__"]
