"""Methods, metrics and data of others: registered, or found in an installed package."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from torch import nn

from unlearn_core import data, methods, metrics
from unlearn_core.data import DATASETS, QUESTIONS, ForgetSplit, ImageData, QuestionData, shapes
from unlearn_core.methods import CONTINUAL, METHODS, SSD, ContinualMethod, Method
from unlearn_core.metrics import METRICS, Estimate, Metric
from unlearn_core.registry import ConfigError, Table, build
from unlearn_core.replication.papers import Experiment, load_paper
from unlearn_core.replication.run import finite_values
from unlearn_core.replication.trials.base import changed
from unlearn_core.replication.trials.plan import kind_of

TABLES: tuple[Table[Any], ...] = (METHODS, CONTINUAL, METRICS, DATASETS, QUESTIONS)


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it, and packages are looked for again."""
    for table in TABLES:
        monkeypatch.setattr(table, "known", dict(table.known))
        monkeypatch.setattr(table.plugins, "loaded", False)


@dataclass(frozen=True)
class Mine(Method):
    name: ClassVar[str] = "mine"
    needs: ClassVar[frozenset[str]] = frozenset({"forget"})
    draws: ClassVar[bool] = False

    strength: float = 1.0

    def unlearn(self, model: nn.Module, split: ForgetSplit, seed: int) -> nn.Module:
        return model


class MyQuestions(QuestionData):
    pass


class TestMethods:
    def test_an_experiment_may_name_it(self) -> None:
        plain = load_paper("ssd").profile("ci").experiments["full_class"].model_dump()
        plain["methods"]["of my own"] = {"use": "mine", "strength": 0.5}
        experiment = Experiment.model_validate(plain)
        trial = kind_of(experiment)
        with pytest.raises(ConfigError, match="of my own: unknown method 'mine'"):
            trial.check(experiment, (0,))
        methods.register(Mine)
        trial.check(experiment, (0,))

    def test_a_registered_one_is_what_a_yaml_names(self) -> None:
        assert "mine" not in METHODS
        assert methods.register(Mine) is Mine
        made = build(METHODS, {"use": "mine", "strength": 0.5}, "method", recipe=None)
        assert made == Mine(0.5)
        assert changed(made, {"strength": 2.0}) == Mine(2.0)
        with pytest.raises(ConfigError, match="no argument 'strenght'; did you mean 'strength'"):
            build(METHODS, {"use": "mine", "strenght": 0.5}, "method")

    def test_a_continual_one_has_its_own_table(self) -> None:
        @methods.register
        class Sequential(ContinualMethod):
            name: ClassVar[str] = "mine_in_sequence"

        assert CONTINUAL["mine_in_sequence"] is Sequential
        assert "mine_in_sequence" not in METHODS

    def test_names_are_not_taken_over(self) -> None:
        """Fails where rows of one method would be read as another's."""
        for name in ("ssd", "another"):

            @dataclass(frozen=True)
            class SSD(Mine):
                pass

            SSD.name = name
            with pytest.raises(ValueError, match=r"there is a method 'ssd' already: .*ssd\.SSD"):
                methods.register(SSD)
        assert METHODS["ssd"] is methods.SSD

    @pytest.mark.parametrize("thing", [Mine(), Method, nn.Linear, "ssd"], ids=str)
    def test_what_is_no_method_is_refused(self, thing: Any) -> None:
        with pytest.raises(TypeError, match="a subclass of Method or ContinualMethod, not"):
            methods.register(thing)


class TestMetrics:
    def test_a_registered_one_may_stand_in_a_row(self) -> None:
        found = {"sharpness": Estimate(1.5)}
        with pytest.raises(ConfigError, match=r"unknown metrics \['sharpness'\]"):
            finite_values("mine", found)
        metrics.register("sharpness", Metric("Sharpness", "", "lower", "How sharp it is."))
        assert finite_values("mine", found)["sharpness"].value == 1.5

    def test_what_is_refused(self) -> None:
        with pytest.raises(TypeError, match="registered as 'sharpness' is a Metric, not 'lower'"):
            metrics.register("sharpness", "lower")
        with pytest.raises(ValueError, match="there is a metric 'zrf' already"):
            metrics.register("zrf", Metric("ZRF", "", "higher", "Another."))


class TestData:
    def test_a_registered_one_is_what_a_yaml_names(self) -> None:
        @data.register
        def my_shapes(per_class: int) -> ImageData:
            return shapes(per_class=per_class, test_per_class=2, fills=1)

        spec = {"use": "my_shapes", "per_class": 3}
        assert len(build(DATASETS, spec, "data set").train) == 30
        assert "my_shapes" not in QUESTIONS
        with pytest.raises(ConfigError, match=r"per_class: .*integer, not '3'"):
            build(DATASETS, spec | {"per_class": "3"}, "data set")

    def test_what_it_gives_says_its_annotation(self) -> None:
        @data.register
        def my_questions() -> MyQuestions:
            raise NotImplementedError

        assert QUESTIONS["my_questions"] is my_questions
        assert "my_questions" not in DATASETS

    @pytest.mark.parametrize("thing", [lambda: None, SSD, "digits"])
    def test_what_gives_no_data_is_refused(self, thing: Any) -> None:
        said = "must be annotated to give one of .*ImageData"
        with pytest.raises(TypeError, match=said):
            data.register(thing)


def test_an_installed_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where one of the three groups is read under another name, or never."""
    module = """
from dataclasses import dataclass
from typing import ClassVar
from unlearn_core.data import ImageData, digits
from unlearn_core.methods import Method
from unlearn_core.metrics import Metric

@dataclass(frozen=True)
class Theirs(Method):
    name: ClassVar[str] = "theirs"
    needs: ClassVar[frozenset[str]] = frozenset({"forget"})
    draws: ClassVar[bool] = False

def their_digits() -> ImageData:
    return digits()

distance = Metric("Distance", "", "lower", "How far it is.")
"""
    (tmp_path / "their_package.py").write_text(module)
    info = tmp_path / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their_package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[unlearn_core.methods]\ntheirs = their_package:Theirs\n"
        "[unlearn_core.metrics]\ntheir_distance = their_package:distance\n"
        "[unlearn_core.data]\ntheir_digits = their_package:their_digits\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "their_package", raising=False)
    assert METHODS["ssd"] is SSD
    assert "their_package" not in sys.modules
    assert METHODS["theirs"].__module__ == "their_package"
    assert METRICS["their_distance"].label == "Distance"
    assert len(build(DATASETS, {"use": "their_digits"}, "data set").classes) == 10
