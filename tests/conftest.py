"""What the tests share: recorded numbers, a private hub folder and one tiny problem."""

from __future__ import annotations

import ast
import json
import os
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from torch import Tensor

from unlearn_core.data import (
    IDK,
    ForgetSplit,
    ImageData,
    fictional_authors,
    forget_class,
    forget_questions,
    shapes,
)
from unlearn_core.models import Chat, Recipe, SmallCNN, TinyLlama, TrainConfig

ROOT = Path(__file__).resolve().parents[1]
GOLDENS = ROOT / "tests" / "data_files" / "goldens"


# Threads that wait for one another on a busy machine make tiny tensors a hundred times slower.
torch.set_num_threads(1)


def _as_in_a_shell() -> None:
    """What a test starts must not know that it is tested: Jupyter's kernel, for one, doesn't catch what
    is printed below Python while PYTEST_CURRENT_TEST is set."""
    for name in [name for name in os.environ if name.startswith("PYTEST_")]:
        del os.environ[name]


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup() -> None:
    _as_in_a_shell()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call() -> None:
    _as_in_a_shell()


#: What begins first where tests are shared out to several processes: it takes longest.
FIRST = ("tests/replication/test_rehearsal.py", "tests/book/")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # a process of pytest-xdist
        items.sort(key=lambda item: [not item.nodeid.startswith(first) for first in FIRST])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests stay in one process, as its fixtures want it; so do those of the one book."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "book" if file.startswith("tests/book/") else file

    config.option.loadscopereorder = False
    return Scheduling(config, log)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, Tensor]]:
    """``golden("ssd/zrf")``: the arrays of one recorded case, as tensors; not the texts in it."""

    def load(name: str) -> dict[str, Tensor]:
        with np.load(GOLDENS / f"{name}.npz") as file:
            arrays = {k: np.asarray(file[k]) for k in file.files}
        return {k: torch.from_numpy(v) for k, v in arrays.items() if v.dtype.kind != "U"}

    return load


@pytest.fixture
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> NoReturn:
        raise ConnectionError("the tests do not download")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_download: None) -> Path:
    """An empty ``$UNLEARN_HUB``; nothing can be downloaded beside it."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setenv("UNLEARN_HUB", str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny_data() -> ImageData:
    return shapes(per_class=8, test_per_class=4, fills=1, size=12)


@pytest.fixture(scope="session")
def tiny_split(tiny_data: ImageData) -> ForgetSplit:
    """Forget class 3 of ten; 8 of 80 training images."""
    return forget_class(tiny_data, 3)


@pytest.fixture(scope="session")
def recipe(tiny_split: ForgetSplit) -> Recipe:
    train = TrainConfig(epochs=2, lr=0.05, momentum=0.9, batch_size=16)
    return Recipe(SmallCNN(10, 1, width=4), tiny_split.task, train)


@pytest.fixture
def model(recipe: Recipe) -> torch.nn.Module:
    return recipe.build(0)


@pytest.fixture(scope="session")
def learned() -> tuple[Chat, ForgetSplit]:
    """A tiny language model that knows the answers of two drawn authors, and what it is to forget."""
    data = fictional_authors(authors=2, forget_authors=1, holdout_authors=1)
    spec = TinyLlama(hidden=32, layers=2, heads=2, vocabulary=600)
    config = TrainConfig(epochs=60, lr=3e-3, batch_size=8, optimizer="adamw")
    split = forget_questions(data, spec.build(0).encoded, IDK[:6])
    recipe = Recipe(spec, split.task, config)
    model = recipe.fit(split.forget + split.retain, 0, device=torch.device("cpu"))
    return model, split


class RulesRun:
    """Of a `Replication`, what the rules of claims use; it keeps the rules instead of judging them.

    Parameters
    ----------
    experiments : name -> what an `Experiment` says
    rows : `Rows`, for what a chapter looks up before its rules
    unmade : experiments whose rows are not all made yet -> the seeds of which (all, where none is named)
    """

    def __init__(
        self,
        experiments: Mapping[str, Any],
        seeds: tuple[int, ...],
        rows: Iterable[Any],
        unmade: Mapping[str, Collection[int]] = types.MappingProxyType({}),
    ) -> None:
        self.known, self.seeds, self.rows = experiments, seeds, rows
        self.whole = {
            name: tuple(s for s in experiments[name].seeds or seeds if left and s not in left)
            for name, left in unmade.items()
        }
        self.profile = SimpleNamespace(experiments=experiments)
        self.shared: dict[str, Any] = {}
        self.searches: dict[Any, Any] = {}
        self.preconditions: dict[str, Callable[..., Any]] = {}
        self.rules: dict[str, Callable[..., float]] = {}
        #: claim -> the seeds that it is asked for
        self.asked: dict[str, tuple[int, ...]] = {}

    def claim(self, key: str, seeds: tuple[int, ...] | None = None) -> Callable[..., Any]:
        def keep(rule: Callable[..., float]) -> Callable[..., float]:
            assert key not in self.rules
            self.rules[key] = rule
            self.asked[key] = self.seeds if seeds is None else seeds
            return rule

        return keep

    def ours(self, key: str) -> Callable[..., Any]:
        return lambda number: number

    def precondition(self, key: str) -> Callable[..., Any]:
        def keep(rule: Callable[..., Any]) -> Callable[..., Any]:
            self.preconditions[key] = rule
            return rule

        return keep

    def experiment(self, name: str) -> Any:
        return self.known[name]

    def experiments(self, prefix: str = "") -> list[str]:
        wanted = [prefix] if prefix in self.known else self.known
        return [n for n in wanted if n.startswith(prefix) and self.whole.get(n, True)]

    def seeds_of(self, name: str) -> tuple[int, ...]:
        return self.whole.get(name, self.known[name].seeds or self.seeds)

    def originals(self, name: str) -> tuple[int, ...]:
        own = self.known[name]
        shared = own.original_seed is not None and not own.drawn
        return (own.original_seed,) if shared else self.seeds_of(name)

    def targets(self, name: str) -> list[Any]:
        ((_, wanted),) = self.known[name].forget.items()
        if wanted == "all":
            rows = (r for r in self.rows if r.experiment == name and r.method != "Selection")
            return list(dict.fromkeys(r.variant.get("forget") for r in rows))
        return wanted if isinstance(wanted, list) else [wanted]

    def data(self, name: str) -> Any:
        """The classes, of an experiment that forgets all of them."""
        assert self.known[name].forget == {"class": "all"}
        return SimpleNamespace(classes=self.targets(name))

    def grid(self, name: str, *keys: str) -> list[list[Any]]:
        grid = self.known[name].grid
        assert set(grid) == set(keys)
        return [grid[key] for key in keys]


def _definitions(cells: list[str], wanted: set[str], given: set[str]) -> list[ast.stmt]:
    """The statements at the top of ``cells`` that define the names, and what these need in turn."""
    statements = [s for cell in cells for s in ast.parse(cell).body]
    defined: dict[str, ast.stmt] = {}
    for s in statements:
        if isinstance(s, ast.FunctionDef | ast.ClassDef):
            defined[s.name] = s
        elif isinstance(s, ast.Assign):
            defined.update(
                {n.id: s for t in s.targets for n in ast.walk(t) if isinstance(n, ast.Name)}
            )
        elif isinstance(s, ast.Import | ast.ImportFrom):
            defined.update({(a.asname or a.name): s for a in s.names})
    todo, needed = set(wanted), []
    while todo:
        s = defined.get(name := todo.pop())
        if name not in given and s is not None and s not in needed:
            needed.append(s)
            todo |= {n.id for n in ast.walk(s) if isinstance(n, ast.Name)}
    return [s for s in statements if s in needed]


@pytest.fixture(scope="session")
def rules_of() -> Callable[..., RulesRun]:
    """``rules_of(slug, experiments, seeds, trial, rows, unmade)``: a run with the rules of a chapter.

    They are those of the cell that is tagged "claims", with what it takes from the cells before
    it. ``trial(run, experiment, seed, target)`` stands for `ClassificationTrial`; nothing is
    computed.
    """

    def load(
        slug: str,
        experiments: Mapping[str, Any],
        seeds: tuple[int, ...],
        trial: Callable[..., Any],
        rows: Iterable[Any] = (),
        unmade: Mapping[str, Collection[int]] = types.MappingProxyType({}),
    ) -> RulesRun:
        notebook = json.loads((ROOT / "notebooks" / f"{slug}.ipynb").read_text())
        code = [c for c in notebook["cells"] if c["cell_type"] == "code"]
        (last,) = (i for i, c in enumerate(code) if "claims" in c["metadata"].get("tags", []))
        *before, claims = ("".join(c["source"]) for c in code[: last + 1])
        run = RulesRun(experiments, seeds, rows, unmade)
        given = {"run": run, "ORIGINAL": "Original", "ClassificationTrial": trial}
        used = {n.id for n in ast.walk(ast.parse(claims)) if isinstance(n, ast.Name)}
        names: dict[str, Any] = dict(given)
        for statement in _definitions(before, used, set(given)):
            exec(compile(ast.Module([statement], []), slug, "exec"), names)
            names.update(given)  # an import may have brought the real ones
        exec(compile(claims, slug, "exec"), names)
        return run

    return load
