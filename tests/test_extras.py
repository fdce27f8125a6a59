"""What the extras of the installation bring, and what is said where they are missing."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from unlearn_core.data import Answering, ForgetSplit
from unlearn_core.extras import EXTRAS, needing
from unlearn_core.methods import GradDiff, Method
from unlearn_core.metrics import bleu, rouge_l
from unlearn_core.metrics.text import _scorer
from unlearn_core.models import Chat, TinyLlama, language

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_table_of_modules_is_the_installation_s(extra: str) -> None:
    """Fails where an extra gains a requirement, and errors would not name it."""
    owners = importlib.metadata.packages_distributions()
    named = {canonicalize_name(owners[module][0]) for module in EXTRAS[extra]}
    lines = PROJECT["optional-dependencies"][extra]
    assert named == {canonicalize_name(Requirement(line).name) for line in lines}


def missing(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)


def test_a_missing_metric_s_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _scorer.cache_clear()
    missing("rouge_score", monkeypatch)
    missing("sacrebleu", monkeypatch)
    for metric in (rouge_l, bleu):
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'unlearn-core\[llm\]' brings"):
            metric(["a"], ["a"])


def test_a_missing_model_s_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'tokenizers'", name="tokenizers")

    monkeypatch.setattr(language, "_tokenizer", fails)
    with pytest.raises(
        ModuleNotFoundError, match=r"'tokenizers'; pip install 'unlearn-core\[llm\]"
    ):
        TinyLlama(vocabulary=401).build(0)


def test_a_method_names_the_extra_of_what_it_works_on(
    learned: tuple[Chat, ForgetSplit], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'peft'", name="peft.tuners")

    monkeypatch.setattr(GradDiff, "unlearn", fails)
    model, split = learned
    assert isinstance(split.task, Answering)
    method: Method = GradDiff()
    with pytest.raises(ModuleNotFoundError, match=r"'peft'; pip install 'unlearn-core\[llm\]'"):
        method(model, split)


def test_what_no_extra_brings_is_not_promised() -> None:
    """Fails where a module of the reader's own is said to come with an installation."""
    with pytest.raises(ModuleNotFoundError) as caught, needing("llm"):
        importlib.import_module("no_such_module_of_mine")
    assert "pip" not in str(caught.value)
