"""The four files of a new paper, with a method, an experiment and a claim that stand in for its own.

What is written runs and passes all tests; every sentence that begins with "TODO" is to be replaced.
"""

from __future__ import annotations

import json
import keyword
import re
from pathlib import Path
from string import Template

from .. import methods
from ..registry import ConfigError
from .papers import project_root

__all__ = ["new_paper"]

METHOD = '''\
r"""TODO: what $NAME is (authors, venue, year; arXiv number).

.. math:: \\theta \\leftarrow \\theta + \\eta\\, \\nabla_\\theta\\, \\ell(D_f).

TODO: the steps, the authors' file and commit, and what differs from them. Until then this is one step of
gradient ascent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..data import ForgetSplit, batches
from ..fields import Positive
from ..models import device_of, to
from .base import Method

__all__ = ["$NAME", "ascent"]


@torch.no_grad()
def ascent(parameters: list[nn.Parameter], gradients: list[Tensor], lr: float) -> None:
    """Move parameters along their gradients, of the same shapes, in place."""
    for p, g in zip(parameters, gradients, strict=True):
        p.add_(g, alpha=lr)


@dataclass(frozen=True)
class $NAME(Method):
    """TODO: what it does, in a sentence.

    Attributes
    ----------
    lr : :math:`\\\\eta`
    """

    name: ClassVar[str] = "$slug"
    needs: ClassVar[frozenset[str]] = frozenset({"forget"})
    draws: ClassVar[bool] = False

    lr: Positive = 0.1

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        model.eval()
        parameters = [p for p in model.parameters() if p.requires_grad]
        total = [torch.zeros_like(p) for p in parameters]
        for batch in batches(split.forget, 64):
            loss = split.task.loss(model, to(batch, device_of(model)))
            for t, g in zip(total, torch.autograd.grad(loss, parameters), strict=True):
                t.add_(g)
        ascent(parameters, total, self.lr)
        return model
'''

TEST = '''\
"""$NAME: TODO, what its values are checked against."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unlearn_core.data import ForgetSplit
from unlearn_core.methods import $NAME
from unlearn_core.methods.$slug import ascent


def test_the_step() -> None:
    """By hand: 1 + 0.5 * 2. Fails if it descends."""
    p = nn.Parameter(torch.tensor([1.0, -1.0]))
    ascent([p], [torch.tensor([2.0, 0.0])], lr=0.5)
    torch.testing.assert_close(p.detach(), torch.tensor([2.0, -1.0]), rtol=0, atol=0)


def test_the_loss_on_the_forget_set_rises(model: nn.Module, tiny_split: ForgetSplit) -> None:
    unlearned = $NAME(lr=0.01)(model, tiny_split)
    batch = tiny_split.forget.batch_of(range(len(tiny_split.forget)))
    before, after = (tiny_split.task.loss(m, batch).item() for m in (model.eval(), unlearned))
    assert after > before


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="lr must be positive"):
        $NAME(lr=0.0)
'''

YAML = """\
# Everything about the paper that is not code. Checked by unlearn_core.replication.papers.

paper:
  title: "TODO: the paper's title"
  short: $NAME
  authors: "TODO: the authors"
  venue: "TODO"
  year: 2026
  modality: image classifiers
  cite: $slug
  summary: >-
    TODO: the paper in a paragraph.
  basis: >-
    TODO: what of the paper and of its code was read.

claims:
  C1:
    title: It forgets
    headline: true
    statement: >-
      TODO: a sentence of the abstract.
    where: abstract
    paper_value: not available
    margin: the fall of the accuracy on test images of the forgotten class, in points
    explanation: >-
      TODO: what might explain a failure.
    judged_at: [ci, laptop, paper]

profiles:
  ci:
    purpose: every push, and the first run on a fresh machine
    shrunk: >-
      TODO: what is smaller than in the paper.
    minutes: 1
    memory_gb: 1
    hardware: 2 CPU cores
    seeds: [0]
    experiments:
      full_class:
        title: Full-class forgetting, 10 drawn classes
        data: {use: shapes, per_class: 64, test_per_class: 20, fills: 1}
        model: {use: small_cnn, channels: 1, width: 8}
        train: {epochs: 4, lr: 0.1, batch_size: 32, momentum: 0.9, schedule: cosine}
        forget: {class: [solid ring]}
        oracle: Retrain
        methods:
          Retrain: {use: retrain}
          $NAME: {use: $slug}

  laptop:
    purpose: a night on a laptop
    shrunk: >-
      TODO: what is smaller than in the paper.
    minutes: 10
    memory_gb: 2
    hardware: 2 CPU cores
    seeds: [0]
    experiments:
      full_class:
        title: Full-class forgetting, Fashion-MNIST + CIFAR-10
        data: {use: fashion_cifar, per_class: 300, test_per_class: 100}
        model: {use: resnet18, width: 8}
        train: {epochs: 12, lr: 0.1, batch_size: 64, momentum: 0.9, schedule: cosine}
        forget: {class: [cat]}
        oracle: Retrain
        methods:
          Retrain: {use: retrain}
          $NAME: {use: $slug}

  paper:
    purpose: the paper's own models and data
    shrunk: Nothing.
    minutes: 600
    memory_gb: 16
    hardware: one 80 GB GPU
    seeds: [0]
    experiments:
      full_class:
        title: Full-class forgetting, CIFAR-10, ResNet-18
        data: {use: cifar10}
        model: {use: resnet18, width: 64}
        train: {epochs: 200, lr: 0.1, batch_size: 128, momentum: 0.9, weight_decay: 5.0e-4, schedule: cosine, augment: [crop, flip]}
        forget: {class: [cat]}
        oracle: Retrain
        methods:
          Retrain: {use: retrain}
          $NAME: {use: $slug}
    rehearsal:
      seeds: [1]
      models:
        resnet18: {width: 8}

targets_note: >-
  TODO: where the paper's numbers were read.

targets:
  - {setting: "TODO", method: $NAME, metric: "TODO", value: 0, kind: read, source: "TODO: table and page"}

notes:
  easy: >-
    TODO.
  hard: >-
    TODO.
  untested: >-
    TODO.
"""

#: Tags and source of every cell of a chapter that a test asks for.
CELLS: tuple[tuple[tuple[str, ...] | None, str], ...] = (
    (None, "# $NAME"),
    (
        ("remove-cell",),
        """\
# On Colab or Binder: install the package first. A no-op wherever it is installed already.
import importlib.util

if importlib.util.find_spec("unlearn_core") is None:
    raise SystemExit(
        "Install the package first: clone the repository, then pip install -e '.[book]'"
    )""",
    ),
    (("parameters", "remove-cell"), 'paper = "$slug"\nprofile = "ci"\nout = "build/ci"'),
    (
        ("remove-input",),
        """\
from unlearn_core.replication.pages import notebook as nb
from unlearn_core.replication.run import Replication
from unlearn_core.replication.trials.classifiers import ORIGINAL
from unlearn_core.replication.trials.plan import make

run = Replication(paper, profile, out)
nb.opening(run)""",
    ),
    (None, "## The claims\n\nTODO: which of the abstract's sentences are judged."),
    (("remove-input",), "nb.claims(run)"),
    (
        None,
        """\
## The method

TODO: what it does, with its formula. This is the file that the experiments below run:

```{literalinclude} ../unlearn_core/methods/$slug.py
:language: python
:class: method-source
```""",
    ),
    (None, "## Setup, and what was shrunk"),
    (("remove-input",), "nb.setup(run)"),
    (None, "## Full-class forgetting\n\nAll training images of one class are to be forgotten."),
    ((), 'make(run, "full_class")'),
    (
        ("remove-input",),
        'nb.results(run, "full_class", ["test_retain_accuracy", "test_forget_accuracy", "gap", "seconds"])',
    ),
    (None, "## The paper's numbers, and other people's"),
    (("remove-input",), "nb.targets(run)"),
    (None, "## Verdicts\n\nEach rule gives the margin by which its claim holds."),
    (
        ("claims", "hide-input"),
        """\
@run.claim("C1")
def forgets(rows, seed):
    (target,) = run.targets("full_class")

    def accuracy(method):
        return rows.measured("full_class", method, "test_forget_accuracy", seed, forget=target)

    return accuracy(ORIGINAL) - accuracy("$NAME")""",
    ),
    (("remove-input",), "nb.verdicts(run)"),
    (None, "## Deviations"),
    (("remove-input",), "nb.deviations(run)"),
    (None, "## What was easy, what was hard, what we could not test"),
    (("remove-input",), "nb.notes(run)"),
    (None, "## How this was made"),
    (("remove-input",), "record = run.finish()\nnb.provenance(record)"),
    (None, "## Run it yourself"),
    (("remove-input",), "nb.rerun(run)"),
)

CITATION = """
@misc{$slug,
  title  = {TODO: the paper's title},
  author = {TODO},
  year   = {2026}
}
"""

ROW = "| TODO: the paper's title | `$slug` | image classifiers | here |\n"


def notebook_of(words: dict[str, str]) -> str:
    """The notebook, as nbstripout writes it."""
    cells = []
    for i, (tags, source) in enumerate(CELLS):
        code = tags is not None
        cell = {
            "cell_type": "code" if code else "markdown",
            **({"execution_count": None} if code else {}),
            "id": f"cell-{i:02}",
            "metadata": {"tags": [*tags]} if tags else {},
            **({"outputs": []} if code else {}),
            "source": Template(source).substitute(words).splitlines(keepends=True),
        }
        cells.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    whole = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def exported(text: str, slug: str, name: str) -> str:
    """The source of ``unlearn_core.methods`` with one more import and export, each at its place."""
    lines = text.splitlines(keepends=True)
    imports = [
        (m[1], i) for i, line in enumerate(lines) if (m := re.match(r"from \.(\w[\w.]*) ", line))
    ]
    names = [(m[1], i) for i, line in enumerate(lines) if (m := re.match(r'    "(\w+)",$', line))]
    end = next(i for i in range(names[-1][1], len(lines)) if lines[i].startswith("]"))
    at = next((i for known, i in names if known > name), end)
    lines.insert(at, f'    "{name}",\n')
    at = next((i for module, i in imports if module > slug), imports[-1][1] + 1)
    lines.insert(at, f"from .{slug} import {name}\n")
    return "".join(lines)


def new_paper(slug: str) -> list[Path]:
    """Write the files of a paper, and its lines in lists; returns what was written or changed.

    Raises
    ------
    ConfigError
        ``slug`` is no name for a Python module, or a method, a class, a module or one of the files has
        it already.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", slug):
        raise ConfigError(
            f"a slug is of small letters and digits with single underscores, like my_paper, not {slug!r}"
        )
    if keyword.iskeyword(slug):
        raise ConfigError(f"{slug} is a word of Python's: take another slug")
    root = project_root()
    words = {"slug": slug, "NAME": "".join(part.capitalize() for part in slug.split("_"))}
    new = {
        root / "unlearn_core" / "methods" / f"{slug}.py": Template(METHOD).substitute(words),
        root / "notebooks" / f"{slug}.yaml": Template(YAML).substitute(words),
        root / "notebooks" / f"{slug}.ipynb": notebook_of(words),
        root / "tests" / "methods" / f"test_{slug}.py": Template(TEST).substitute(words),
    }
    folder = root / "unlearn_core" / "methods" / slug
    if there := [file for file in (folder, *new) if file.exists()]:
        raise ConfigError(f"there is a {there[0].relative_to(root)} already")
    if slug in {**methods.METHODS, **methods.CONTINUAL}:
        raise ConfigError(f"there is a method {slug!r} already: take another slug")
    if taken := [name for name in (words["NAME"], slug) if hasattr(methods, name)]:
        raise ConfigError(f"unlearn_core.methods has a {taken[0]} already: take another slug")
    package = root / "unlearn_core" / "methods" / "__init__.py"
    citations, readme = root / "book" / "references.bib", root / "README.md"
    new[package] = exported(package.read_text(encoding="utf-8"), slug, words["NAME"])
    new[citations] = citations.read_text(encoding="utf-8") + Template(CITATION).substitute(words)
    text = readme.read_text(encoding="utf-8")
    last = [*re.finditer(r"^\|[^|\n]+\| `\w+` \|[^|\n]+\| \w+ \|\n", text, flags=re.M)][-1]
    new[readme] = text[: last.end()] + Template(ROW).substitute(words) + text[last.end() :]
    for file, content in new.items():
        file.write_text(content, encoding="utf-8")
    return list(new)
