from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from unlearn_core.data import DATASETS, Classification
from unlearn_core.methods import METHODS
from unlearn_core.models import MODELS, Recipe, TrainConfig
from unlearn_core.registry import ConfigError, build
from unlearn_core.replication.papers import (
    Experiment,
    Profile,
    known_papers,
    load_paper,
    project_root,
    rehearsed,
)

ROOT = Path(__file__).resolve().parents[2]
PAPERS = sorted(f.stem for f in (ROOT / "notebooks").glob("*.yaml"))


def profiles() -> list[Any]:
    """Every profile of every paper of this project, and its rehearsal."""
    return [
        pytest.param(slug, name, change, id=f"{slug}-{name}{'-rehearsed' * (change is rehearsed)}")
        for slug in PAPERS
        for name in ("ci", "laptop", "paper")
        for change in (lambda profile: profile, rehearsed)
    ]


def train_config(spec: dict[str, Any]) -> TrainConfig:
    return build({"train": TrainConfig}, {"use": "train", **spec}, "training")


def methods_of(experiment: Experiment) -> dict[str, Any]:
    """The experiment's methods, built as `ClassificationTrial` builds them, without data."""
    spec = build(MODELS, experiment.model, "model", classes=10)
    recipe = Recipe(spec, Classification(10), train_config(experiment.train))
    out = {}
    for label, method in experiment.methods.items():
        nested = {k: train_config(v) if isinstance(v, dict) else v for k, v in method.items()}
        out[label] = build(METHODS, nested, "method", recipe=recipe)
    return out


def training_configs(value: Any) -> Iterator[TrainConfig]:
    """Every training configuration in a frozen dataclass, however deep."""
    if isinstance(value, TrainConfig):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from training_configs(getattr(value, field.name))


class TestProjectPapers:
    @pytest.mark.parametrize("slug", PAPERS)
    def test_loads(self, slug: str) -> None:
        assert slug in known_papers()
        assert load_paper(slug).paper.title

    @pytest.mark.parametrize("slug", PAPERS)
    def test_has_three_profiles_and_seeds_apart(self, slug: str) -> None:
        file = load_paper(slug)
        assert list(file.profiles) == ["ci", "laptop", "paper"]
        for profile in file.profiles.values():
            assert len(set(profile.seeds)) == len(profile.seeds)
        assert file.profiles["ci"].minutes <= 2

    @pytest.mark.parametrize(("slug", "name", "change"), profiles())
    def test_every_experiment_can_be_built(
        self, slug: str, name: str, change: Callable[[Profile], Profile]
    ) -> None:
        """Fails on a misspelt argument, which would end a run after hours, at its experiment."""
        profile = change(load_paper(slug).profile(name))
        for experiment in profile.experiments.values():
            data = dict(experiment.data)
            loader = DATASETS[data.pop("use")]
            inspect.signature(loader).bind(**data)
            assert methods_of(experiment).keys() == experiment.methods.keys()
            (kind,) = experiment.forget
            assert kind in ("class", "subclass", "fraction", "count")

    @pytest.mark.parametrize("slug", PAPERS)
    def test_no_text_is_empty(self, slug: str) -> None:
        file = load_paper(slug)
        assert file.targets
        texts = [v for t in file.targets for v in t.model_dump().values() if isinstance(v, str)]
        for part in (*file.claims.values(), *file.deviations.values(), file.notes, file.paper):
            texts += [v for v in part.model_dump().values() if isinstance(v, str)]
        assert all(text.strip() for text in texts)
        assert all(claim.judged_at for claim in file.claims.values())

    @pytest.mark.parametrize("slug", PAPERS)
    def test_two_or_three_claims_are_judged_at_ci_and_all_at_paper(self, slug: str) -> None:
        claims = load_paper(slug).claims
        assert sum("ci" in claim.judged_at for claim in claims.values()) in (2, 3)
        assert all("paper" in claim.judged_at for claim in claims.values())

    @pytest.mark.parametrize("slug", PAPERS)
    def test_every_claim_and_measured_deviation_is_in_the_notebook(self, slug: str) -> None:
        file = load_paper(slug)
        notebook = json.loads((ROOT / "notebooks" / f"{slug}.ipynb").read_text())
        source = "\n".join("".join(cell["source"]) for cell in notebook["cells"])
        for key in file.claims:
            assert source.count(f'@run.claim("{key}")') == 1, key
        for key, deviation in file.deviations.items():
            assert source.count(f'@run.effect("{key}")') == deviation.measured, key

    @pytest.mark.parametrize("slug", PAPERS)
    def test_the_citation_is_in_the_bibliography(self, slug: str) -> None:
        bib = (ROOT / "book" / "references.bib").read_text()
        assert f"{{{load_paper(slug).paper.cite}," in bib

    @pytest.mark.parametrize("slug", PAPERS)
    def test_every_requirement_can_be_rehearsed(self, slug: str) -> None:
        """Fails where an experiment would be skipped in every rehearsal: its path never runs."""
        from unlearn_core.replication.rehearsal import USER

        for experiment in load_paper(slug).profile("paper").experiments.values():
            assert experiment.requires is None or experiment.requires.env in USER


class TestRehearsed:
    @pytest.mark.parametrize("slug", PAPERS)
    def test_every_training_ends_after_two_steps(self, slug: str) -> None:
        """Fails where a method whose YAML names no training keeps its default five epochs."""
        profile = rehearsed(load_paper(slug).profile("paper"))
        found = 0
        for experiment in profile.experiments.values():
            built = [train_config(experiment.train), *methods_of(experiment).values()]
            for config in (c for part in built for c in training_configs(part)):
                assert config.max_steps == 2
                found += 1
        assert found > len(profile.experiments)

    @pytest.mark.parametrize("slug", PAPERS)
    def test_nothing_else_changes_but_what_it_names(self, slug: str) -> None:
        """Fails where a rehearsal runs fewer experiments or other methods than the profile."""
        before = load_paper(slug).profile("paper")
        kept = copy.deepcopy(before)
        after = rehearsed(before)
        assert before == kept, "the profile itself was changed"
        assert after.seeds == before.rehearsal.seeds
        assert list(after.experiments) == list(before.experiments)
        for name, small in after.experiments.items():
            full = before.experiments[name]
            assert small.data == full.data
            assert small.oracle == full.oracle
            assert list(small.methods) == list(full.methods)
            assert small.grid.keys() == full.grid.keys()
            for label, method in methods_of(full).items():
                assert type(methods_of(small)[label]) is type(method)

    @pytest.mark.parametrize("slug", PAPERS)
    def test_every_override_is_used(self, slug: str) -> None:
        """Fails on a misspelt name in the rehearsal block, which would shrink nothing."""
        profile = load_paper(slug).profile("paper")
        experiments = profile.experiments.values()
        over = profile.rehearsal
        assert set(over.models) <= {e.model["use"] for e in experiments}
        assert set(over.methods) <= {m["use"] for e in experiments for m in e.methods.values()}
        assert set(over.grid) <= {k for e in experiments for k in e.grid}

    def test_overrides(self, project: Any, tiny: dict[str, Any]) -> None:
        ci = tiny["profiles"]["ci"]
        ci["experiments"]["full_class"]["forget"] = {"class": ["solid disc", "solid ring"]}
        ci["experiments"]["full_class"]["grid"] = {"alpha": [1, 2, 3]}
        ci["experiments"]["every"] = ci["experiments"]["full_class"] | {"forget": {"class": "all"}}
        ci["rehearsal"] = {
            "seeds": [7],
            "targets": 1,
            "train": {"workers": 1},
            "models": {"small_cnn": {"width": 2}, "resnet18": {"width": 8}},
            "methods": {"ssd": {"alpha": 3}},
            "grid": {"alpha": [2], "lam": [1]},
        }
        project.paper("tiny", tiny)
        profile = rehearsed(load_paper("tiny").profile("ci"))
        small = profile.experiments["full_class"]
        assert profile.seeds == (7,)
        assert small.forget == {"class": ["solid disc"]}
        assert profile.experiments["every"].forget == {"class": "all"}
        assert small.train == {
            **{"epochs": 6, "lr": 0.1, "batch_size": 16, "momentum": 0.9},
            **{"workers": 1, "max_steps": 2},
        }
        assert small.model == {"use": "small_cnn", "width": 2}
        assert small.grid == {"alpha": [2]}
        assert small.methods["SSD"] == {"use": "ssd", "alpha": 3, "batch_size": 16}
        assert small.methods["Retrain"] == {"use": "retrain"}

    def test_without_overrides_only_the_steps_change(self, project: Any) -> None:
        before = load_paper("tiny").profile("ci")
        after = rehearsed(before)
        assert after.seeds == before.seeds
        plain = after.model_dump()
        for value in plain["experiments"].values():
            del value["train"]["max_steps"], value["methods"]["Fine-tune"]["train"]["max_steps"]
        assert plain == before.model_dump()


def delete(config: dict[str, Any], *path: str) -> None:
    for key in path[:-1]:
        config = config[key]
    del config[path[-1]]


def change(config: dict[str, Any], value: Any, *path: str) -> None:
    for key in path[:-1]:
        config = config[key]
    config[path[-1]] = value


EXPERIMENT = ("profiles", "ci", "experiments", "full_class")


class TestErrors:
    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            (("papr",), {}, r"tiny\.yaml: papr: Extra inputs"),
            (("paper", "titel"), "x", r"paper\.titel: Extra inputs"),
            (("profiles", "ci", "seed"), [1], r"profiles\.ci\.seed: Extra inputs"),
            (("profiles", "big"), {}, r"profiles\.big\.\[key\]: Input should be 'ci'"),
            (("profiles", "ci", "seeds"), [], r"profiles\.ci\.seeds: Tuple should have at least 1"),
            (("profiles", "ci", "seeds"), ["one"], r"profiles\.ci\.seeds\.0: .*valid integer"),
            (("profiles", "ci", "minutes"), "long", r"profiles\.ci\.minutes: .*valid number"),
            (("profiles", "ci", "rehearsal"), {"seed": [1]}, r"rehearsal\.seed: Extra inputs"),
            ((*EXPERIMENT, "oracle"), "Retrained", r"full_class: .*oracle 'Retrained' is not"),
            ((*EXPERIMENT, "methods"), ["SSD"], r"full_class\.methods: .*valid dictionary"),
            ((*EXPERIMENT, "forgets"), {}, r"full_class\.forgets: Extra inputs"),
            (("claims", "C1", "judged_at"), ["ci", "laptob"], r"C1 .*unknown .*\['laptob'\]"),
            (("targets",), [{"setting": "x", "kind": "guess"}], r"targets\.0\.kind: .*'read'"),
        ],
    )
    def test_a_mistake_is_named(
        self,
        project: Any,
        tiny: dict[str, Any],
        path: tuple[str, ...],
        value: Any,
        message: str,
    ) -> None:
        """Fails where a misspelt key is ignored: the run would use a default and say nothing."""
        change(tiny, value, *path)
        project.paper("tiny", tiny)
        with pytest.raises(ConfigError, match=message):
            load_paper("tiny")

    @pytest.mark.parametrize(
        "path", [("paper", "basis"), ("notes",), ("claims", "C1", "where"), (*EXPERIMENT, "forget")]
    )
    def test_what_is_missing_is_named(
        self, project: Any, tiny: dict[str, Any], path: tuple[str, ...]
    ) -> None:
        delete(tiny, *path)
        project.paper("tiny", tiny)
        with pytest.raises(ConfigError, match=rf"{path[-1]}: Field required"):
            load_paper("tiny")

    def test_unknown_paper(self, project: Any) -> None:
        with pytest.raises(ConfigError, match="unknown paper 'tyny'; did you mean 'tiny'"):
            load_paper("tyny")

    def test_a_yaml_without_a_notebook_is_no_paper(self, project: Any) -> None:
        (project.root / "notebooks" / "half.yaml").write_text(yaml.safe_dump({}))
        assert known_papers() == ["tiny"]
        with pytest.raises(ConfigError, match="unknown paper 'half'; known: tiny"):
            load_paper("half")

    def test_unknown_profile(self, project: Any) -> None:
        with pytest.raises(ConfigError, match="unknown profile 'cii'; did you mean 'ci'"):
            load_paper("tiny").profile("cii")


class TestProjectRoot:
    def test_found_from_below(self, project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("UNLEARN_ROOT")
        monkeypatch.chdir(project.root / "notebooks")
        assert project_root() == project.root.resolve()

    def test_outside_it_says_what_to_do(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("UNLEARN_ROOT", str(tmp_path))
        with pytest.raises(ConfigError, match="inside a clone of the project, or set UNLEARN_ROOT"):
            project_root()
