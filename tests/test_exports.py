"""What editors and type checkers see of the package, and what importing it costs."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import unlearn_core
from unlearn_core import methods
from unlearn_core.methods import CONTINUAL, METHODS, ContinualMethod, Method
from unlearn_core.methods.worst_case import SELECTORS
from unlearn_core.methods.worst_prompts import PROMPT_SELECTORS

ROOT = Path(__file__).parents[1]
PACKAGES = ("data", "models", "methods", "metrics")


def bound(tree: ast.Module) -> set[str]:
    """The names that a module binds by statements that every tool understands."""
    found: set[str] = set()
    for node in tree.body:
        match node:
            case ast.ImportFrom(names=names) | ast.Import(names=names):
                found |= {alias.asname or alias.name for alias in names}
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Assign(targets=targets):
                found |= {t.id for t in targets if isinstance(t, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_exports_are_written_out(package: str) -> None:
    """Fails where a name is made while the package is imported: no editor would complete it."""
    tree = ast.parse((ROOT / "unlearn_core" / package / "__init__.py").read_text())
    (listed,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    assert len(listed) == len(set(listed))
    assert set(listed) <= bound(tree)
    assert set(listed) == set(importlib.import_module(f"unlearn_core.{package}").__all__)


def test_every_method_is_exported() -> None:
    """Fails where a module of methods was added, and its line in the package was not."""
    own = {"METHODS": METHODS, "CONTINUAL": CONTINUAL}
    known = {cls for table in own.values() for cls in table.values()}
    found = set()
    for module in pkgutil.walk_packages(methods.__path__, "unlearn_core.methods."):
        for cls in vars(importlib.import_module(module.name)).values():
            ours = inspect.isclass(cls) and issubclass(cls, Method | ContinualMethod)
            if ours and cls.__module__ == module.name and hasattr(cls, "name"):
                found.add(cls)
    missing = [c.__name__ for c in found if getattr(methods, c.__name__, None) is not c]
    assert missing == [], "these want a line in unlearn_core/methods/__init__.py"
    assert known == found
    for cls in (*SELECTORS.values(), *PROMPT_SELECTORS.values()):
        assert getattr(methods, cls.__name__) is cls
    assert {c.__name__ for c in known} < set(methods.__all__)


def test_the_types_are_shipped() -> None:
    """Without the file, type checkers take an installed package's names for Any."""
    assert (ROOT / "unlearn_core" / "py.typed").exists()
    assert re.search(
        r'package-data\]\nunlearn_core = \["py.typed"\]', (ROOT / "pyproject.toml").read_text()
    )


# -- Imports --------------------------------------------------------------------------------------


def loaded(statement: str) -> set[str]:
    """The top-level modules that a statement imports, in an interpreter of its own."""
    code = f"import sys\n{statement}\nprint(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


#: What takes seconds to import, and is wanted by some functions alone.
HEAVY = {
    "datasets",
    "diffusers",
    "gguf",
    "pandas",
    "peft",
    "pyarrow",
    "scipy",
    "sklearn",
    "transformers",
}


def test_the_package_alone_imports_nothing() -> None:
    assert not {"torch", "numpy", "pydantic"} & loaded("import unlearn_core; dir(unlearn_core)")


def test_what_is_slow_is_imported_where_it_is_used() -> None:
    """`metrics` imports all before it; `data` has no use for what models are fetched with either."""
    assert not HEAVY & loaded("import unlearn_core.metrics")
    more = loaded("import unlearn_core.data") - loaded("import numpy, torch.utils.data")
    assert more - sys.stdlib_module_names == {"unlearn_core"}


def test_subpackages_are_imported_when_they_are_named() -> None:
    """Fails where ``import unlearn_core`` does not lead to everything, as `dir` promises."""
    code = "import unlearn_core; print(unlearn_core.methods.SSD.name, unlearn_core.replication)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ssd <module")
    public = {name for name in dir(unlearn_core) if not name.startswith("__")}
    assert public == {*PACKAGES, "replication"}
    with pytest.raises(AttributeError, match="module 'unlearn_core' has no attribute 'SSD'"):
        unlearn_core.SSD  # noqa: B018


# -- Type checkers --------------------------------------------------------------------------------


def checked(tmp_path: Path, *files: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache")]
    return subprocess.run([*command, *map(str, files)], cwd=ROOT, capture_output=True, text=True)


def test_mypy_accepts_the_examples(tmp_path: Path) -> None:
    """...of the README and of the guide, strictly; and finds what is wrong in another."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    readme = tmp_path / "readme.py"
    readme.write_text(code)
    scripts = sorted((ROOT / "book" / "guide").glob("*.py"))
    assert scripts
    done = checked(tmp_path, readme, *scripts)
    assert done.returncode == 0, done.stdout

    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import unlearn_core\n"
        "from unlearn_core.methods import SSD, WorstCase\n"
        "SSD(alhpa=5)\n"
        "unlearn_core.methods.Scrub(msteps='2')\n"
    )
    done = checked(tmp_path, wrong)
    assert 'wrong.py:3: error: Unexpected keyword argument "alhpa" for "SSD"' in done.stdout
    assert 'wrong.py:4: error: Unexpected keyword argument "msteps" for "Scrub"' in done.stdout
    assert "Found 2 errors" in done.stdout
