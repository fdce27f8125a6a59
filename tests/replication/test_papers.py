from __future__ import annotations

import copy
import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from unlearn_core.data import objects, painters
from unlearn_core.data.captions import FASHION_NOUNS, IMAGENETTE, OBJECT_NOUNS, SHAPE_NOUNS, Noun
from unlearn_core.methods.worst_case import WorstCase
from unlearn_core.methods.worst_prompts import PROMPT_SELECTORS
from unlearn_core.models import TrainConfig
from unlearn_core.registry import ConfigError
from unlearn_core.replication.papers import (
    PROFILES,
    Experiment,
    known_papers,
    load_paper,
    paper_sources,
    project_root,
    rehearsed,
)
from unlearn_core.replication.run import source_hash
from unlearn_core.replication.trials import classifiers, diffusion
from unlearn_core.replication.trials.check import check
from unlearn_core.replication.trials.plan import kind_of

ROOT = Path(__file__).resolve().parents[2]
PAPERS = sorted(f.stem for f in (ROOT / "notebooks").glob("*.yaml"))


def profiles() -> list[Any]:
    """Every profile of every paper of this project."""
    return [
        pytest.param(slug, name, id=f"{slug}-{name}")
        for slug in PAPERS
        for name in profile_names(slug)
    ]


def profile_names(slug: str) -> list[str]:
    return list(yaml.safe_load((ROOT / "notebooks" / f"{slug}.yaml").read_text())["profiles"])


def methods_of(experiment: Experiment) -> dict[str, Any]:
    """The experiment's methods, built as a trial builds them, without data or search."""
    kind = kind_of(experiment)
    found = kind.methods_of(experiment, kind.recipe_of(experiment))
    return {k: m[0] if isinstance(m, tuple) else m for k, m in found.items()}


def selectors_of(experiment: Experiment) -> dict[str, Any]:
    """The rules that choose its forget sets."""
    return {
        name: (diffusion if rule["use"] in PROMPT_SELECTORS else classifiers).selection_rule(
            name, rule
        )[0]
        for name, rule in experiment.select.items()
    }


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
    def test_has_three_profiles_or_four(self, slug: str) -> None:
        file = load_paper(slug)
        assert list(file.profiles) == [name for name in PROFILES if name in file.profiles]
        assert {*file.profiles} >= {"ci", "laptop", "paper"}
        assert file.profiles["ci"].minutes <= 2

    @pytest.mark.parametrize(("slug", "name"), profiles())
    def test_everything_can_be_built(self, slug: str, name: str) -> None:
        """Fails on a misspelt argument, which would end a run after hours, at its experiment."""
        check(slug, name, rehearsal=True)

    @pytest.mark.parametrize(("slug", "name"), profiles())
    def test_every_concept_can_be_drawn(self, slug: str, name: str) -> None:
        """Fails where a model is to forget what its data don't have, which only they tell."""
        nouns = {
            "captioned_shapes": SHAPE_NOUNS,
            "captioned_fashion": FASHION_NOUNS,
            "captioned_cifar10": OBJECT_NOUNS,
            "objects": objects().nouns,
            "imagenette": [Noun(name) for name in IMAGENETTE.values()],
        }
        for experiment in load_paper(slug).profile(name).experiments.values():
            asked, data = experiment.forget.get("concept", []), experiment.data["use"]
            assert {*asked} <= {noun.name for noun in nouns.get(data, [])} | {"nudity"}
            if "group" in experiment.forget and data == "painters":
                assert {*experiment.forget["group"]} <= painters().groups.keys()

    @pytest.mark.parametrize("slug", PAPERS)
    def test_no_text_is_empty(self, slug: str) -> None:
        file = load_paper(slug)
        assert file.all_targets
        texts = [v for t in file.all_targets for v in t.model_dump().values() if isinstance(v, str)]
        for part in (*file.claims.values(), *file.deviations.values(), file.notes, file.paper):
            said = part.model_dump(exclude_unset=True)
            texts += [v for v in said.values() if isinstance(v, str)]
        assert all(text.strip() for text in texts)
        assert all(claim.judged_at for claim in file.claims.values())

    @pytest.mark.parametrize("slug", PAPERS)
    def test_one_to_three_claims_are_judged_at_ci_and_the_paper_s_at_paper(self, slug: str) -> None:
        claims = load_paper(slug).claims
        assert sum("ci" in claim.judged_at for claim in claims.values()) in (1, 2, 3)
        # What is asked of drawn symbols alone is no question to the paper's own data.
        assert all("paper" in c.judged_at for c in claims.values() if c.whose == "paper")

    @pytest.mark.parametrize("slug", PAPERS)
    def test_every_claim_and_measured_deviation_is_in_the_notebook(self, slug: str) -> None:
        file = load_paper(slug)
        notebook = json.loads((ROOT / "notebooks" / f"{slug}.ipynb").read_text())
        source = "\n".join("".join(cell["source"]) for cell in notebook["cells"])
        for key in file.claims:
            assert source.count(f'@run.claim("{key}"') == 1, key
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
            built = [*methods_of(experiment).values()]
            built += [kind_of(experiment).recipe_of(experiment)]
            built += selectors_of(experiment).values()
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
            assert small.data == full.data | before.rehearsal.data.get(full.data["use"], {})
            over = {k: v for k, v in before.rehearsal.ask.items() if k in full.ask}
            assert small.ask == full.ask | over
            assert small.oracle == full.oracle
            assert bool(small.train) == bool(full.train), "a model that was trained elsewhere"
            assert list(small.methods) == list(full.methods)
            assert small.grid.keys() == full.grid.keys()
            for label, method in methods_of(full).items():
                assert type(methods_of(small)[label]) is type(method)

    def test_overrides(self, project: Any, tiny: dict[str, Any]) -> None:
        ci = tiny["profiles"]["ci"]
        ci["experiments"]["full_class"]["forget"] = {"class": ["solid disc", "solid ring"]}
        ci["experiments"]["full_class"]["grid"] = {"alpha": [1, 2, 3]}
        ci["experiments"]["every"] = ci["experiments"]["full_class"] | {"forget": {"class": "all"}}
        ci["rehearsal"] = {
            "seeds": [7],
            "targets": 1,
            "train": {"workers": 1},
            "data": {"shapes": {"per_class": 3}, "cifar10": {"per_class": 1}},
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
        assert small.data == ci["experiments"]["full_class"]["data"] | {"per_class": 3}
        assert small.model == {"use": "small_cnn", "width": 2}
        assert small.grid == {"alpha": [2]}
        assert small.methods["SSD"] == {"use": "ssd", "alpha": 3, "batch_size": 16}
        assert small.methods["Retrain"] == {"use": "retrain"}

    def test_searches_and_selection_rules_are_shortened(
        self, project: Any, tiny: dict[str, Any]
    ) -> None:
        """Fails where a rehearsal tries every value, or searches for the forget set in full: the
        rule's own training, of which the YAML need not speak, must end after two steps too."""
        ci = tiny["profiles"]["ci"]
        full = ci["experiments"]["full_class"]
        full["search"] = {
            "SSD": {"alpha": [5, 10, 20], "lam": [1, 2]},
            "Fine-tune": {"lr": [0.01, 0.1]},
        }
        full["select"] = {
            "named": {"use": "worst_case", "fraction": 0.1, "train": {"epochs": 9, "lr": 0.1}},
            "default": {"use": "worst_case", "fraction": 0.1, "iterations": 9},
            "loss": {"use": "by_loss", "fraction": 0.1},
            "prompts": {"use": "worst_prompts", "count": 2},
        }
        ci["rehearsal"] = {"methods": {"worst_case": {"iterations": 2}}}
        full["relearn"] = {"steps": 10, "examples": 32, "lr": 0.01}
        project.paper("tiny", tiny)
        small = rehearsed(load_paper("tiny").profile("ci")).experiments["full_class"]
        assert small.search == {"SSD": {"alpha": [5], "lam": [1]}, "Fine-tune": {"lr": [0.01]}}
        assert small.relearn == {"steps": 2, "examples": 2, "lr": 0.01}
        assert small.select["named"]["train"] == {"epochs": 9, "lr": 0.1, "max_steps": 2}
        assert small.select["loss"] == {"use": "by_loss", "fraction": 0.1}
        built = selectors_of(small)
        assert built["named"].iterations == built["default"].iterations == 2
        shortened = replace(WorstCase().train, max_steps=2)
        assert built["default"].train == shortened
        assert built["prompts"].train.max_steps == 2
        assert load_paper("tiny").profile("ci").experiments["full_class"].search == full["search"]

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


TARGET = {"setting": "x", "method": "y", "metric": "z", "value": 1, "kind": "read", "source": "w"}
EXPERIMENT = ("profiles", "ci", "experiments", "full_class")


class TestErrors:
    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            (("papr",), {}, r"tiny\.yaml: papr: Extra inputs"),
            (("paper", "titel"), "x", r"paper\.titel: Extra inputs"),
            (("profiles", "ci", "seed"), [1], r"profiles\.ci\.seed: Extra inputs"),
            (("profiles", "big"), {}, r"profiles\.big\.\[key\]: .* 'workstation' or 'paper'"),
            (("profiles", "ci", "seeds"), [], r"profiles\.ci\.seeds: Tuple should have at least 1"),
            (
                ("profiles", "ci", "experiments"),
                {},
                r"ci\.experiments: Dictionary should have at l",
            ),
            (("profiles", "ci", "seeds"), ["one"], r"profiles\.ci\.seeds\.0: .*valid integer"),
            (("profiles", "ci", "seeds"), ["1"], r"profiles\.ci\.seeds\.0: .*valid integer"),
            (("profiles", "ci", "seeds"), [True], r"profiles\.ci\.seeds\.0: .*valid integer"),
            (("profiles", "ci", "seeds"), [0, 1, 0], r"profiles\.ci\.seeds: .*0 comes twice"),
            (("profiles", "ci", "seeds"), [-1], r"profiles\.ci\.seeds\.0: .*greater than or eq"),
            (("profiles", "ci", "seeds"), [10**30], r"profiles\.ci\.seeds\.0: .*less than 42949"),
            (("profiles", "ci", "seeds"), 3, r"profiles\.ci\.seeds: .*valid array"),
            (("profiles", "ci", "minutes"), 0, r"profiles\.ci\.minutes: .*greater than 0"),
            (("profiles", "ci", "minutes"), True, r"profiles\.ci\.minutes: .*valid number"),
            (("profiles", "ci", "memory_gb"), -2, r"profiles\.ci\.memory_gb: .*greater than 0"),
            (("profiles",), "ci", r"tiny\.yaml: profiles: must be a mapping of names, not 'ci'"),
            (("profiles",), None, r"tiny\.yaml: profiles: must be a mapping of names, not None"),
            (("profiles",), {}, r"tiny\.yaml: profiles: .*at least 1 item"),
            (("profiles", "ci"), [1], r"profiles\.ci: must be a mapping of names, not \[1\]"),
            (("profiles", "ci", "include"), ["x"], r"ci\.include: must be a mapping of names"),
            (("profiles", "ci", "include"), {"x": 7}, r"ci\.include\.x: must be a list of exp"),
            (("profiles", "ci", "include"), {"x": [7]}, r"ci\.include\.x: must be a list of exp"),
            (EXPERIMENT[:-1], "all", r"ci\.experiments: must be a mapping of names, not 'all'"),
            (EXPERIMENT, None, r"experiments\.full_class: must be a mapping of names, not None"),
            ((*EXPERIMENT, "like"), True, r"full_class is like True, which is no experiment"),
            ((*EXPERIMENT, "like"), ["x"], r"full_class is like \['x'\], which is no experiment"),
            ((*EXPERIMENT, "seeds"), [3, 3], r"full_class\.seeds: .*3 comes twice"),
            ((*EXPERIMENT, "original_seed"), -1, r"full_class\.original_seed: .*greater than"),
            ((*EXPERIMENT, "forget"), {}, r"full_class\.forget: .*at least 1 item"),
            (
                (*EXPERIMENT, "forget"),
                {"class": ["a"], "count": 3},
                r"full_class\.forget: .*at most 1 item",
            ),
            ((*EXPERIMENT, "forget"), {"class": []}, r"full_class\.forget\.class: .*names nothing"),
            (
                (*EXPERIMENT, "forget"),
                {"fraction": [0.1, True]},
                r"full_class\.forget\.fraction: .*True is neither text nor",
            ),
            (
                (*EXPERIMENT, "forget"),
                {"chosen": [["hardest"]]},
                r"forget\.chosen: .*\['hardest'\] is neither",
            ),
            ((*EXPERIMENT, "grid"), {"alpha": []}, r"full_class\.grid\.alpha: .*at least 1 item"),
            ((*EXPERIMENT, "grid"), {"alpha": 3}, r"full_class\.grid\.alpha: .*valid array"),
            ((*EXPERIMENT, "grid"), {"alpha": [2, 2]}, r"full_class\.grid\.alpha: .*2 comes twice"),
            ((*EXPERIMENT, "grid"), {"alpha": [{}]}, r"full_class\.grid\.alpha: .*\{\} is neither"),
            ((*EXPERIMENT, "methods"), {"SSD": "ssd"}, r"methods\.SSD: .*an object"),
            (("targets",), [TARGET | {"value": "much"}], r"targets\.0\.value: .*valid number"),
            (
                ("targets",),
                [TARGET | {"spread": -3}],
                r"targets\.0\.spread: .*greater than or equal to 0",
            ),
            (
                ("target_tables",),
                [{"rows": {"SSD": [True]}}],
                r"target_tables\.0\.rows\.SSD\.0: .*valid number",
            ),
            (("profiles", "ci", "minutes"), "long", r"profiles\.ci\.minutes: .*valid number"),
            (("profiles", "ci", "rehearsal"), {"seed": [1]}, r"rehearsal\.seed: Extra inputs"),
            ((*EXPERIMENT, "oracle"), "Retrained", r"full_class: .*oracle 'Retrained' is not"),
            ((*EXPERIMENT, "methods"), ["SSD"], r"full_class\.methods: .*an object"),
            ((*EXPERIMENT, "forgets"), {}, r"full_class\.forgets: Extra inputs"),
            ((*EXPERIMENT, "attack"), "entropie", r"full_class\.attack: .*'entropy', 'conf"),
            ((*EXPERIMENT, "judged_on"), "train", r"full_class\.judged_on: .*'test' or 'valid"),
            (
                (*EXPERIMENT, "search"),
                {"SSD": {"alpha": [1]}, "SDS": {"alpha": [1]}},
                r"full_class: .*a search for unknown methods \['SDS'\]",
            ),
            (
                (*EXPERIMENT, "forget"),
                {"chosen": ["hardest", "easy"]},
                r"full_class: .*forget chooses \['hardest', 'easy'\], select knows \[\]",
            ),
            ((*EXPERIMENT, "tuned"), "tuning", r"full_class is tuned by 'tuning', which is no exp"),
            ((*EXPERIMENT, "tuned"), "full_class", r"full_class is tuned by .* with a search"),
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

    def test_reading_needs_no_pytorch(self) -> None:
        """Fails where `make list` waits for imports of which it needs nothing."""
        code = "import sys; from unlearn_core.replication import papers; papers.load_paper('ssd');"
        code += "sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0

    def test_a_yaml_without_a_notebook_is_no_paper(self, project: Any) -> None:
        (project.root / "notebooks" / "half.yaml").write_text(yaml.safe_dump({}))
        assert known_papers() == ["tiny"]
        with pytest.raises(ConfigError, match="unknown paper 'half'; known: tiny"):
            load_paper("half")

    def test_unknown_profile(self, project: Any) -> None:
        with pytest.raises(ConfigError, match="unknown profile 'cii'; did you mean 'ci'"):
            load_paper("tiny").profile("cii")


class TestTuned:
    @pytest.mark.parametrize("lost", ["search", "oracle"])
    def test_what_tunes_needs_a_search_and_an_oracle(
        self, project: Any, tiny: dict[str, Any], lost: str
    ) -> None:
        """Fails where an experiment that chooses nothing passes for one that does: every method
        would silently keep the values that it was written with."""
        experiments = tiny["profiles"]["ci"]["experiments"]
        experiments["tuning"] = experiments["full_class"] | {"search": {"SSD": {"alpha": [1, 2]}}}
        experiments["full_class"] = experiments["full_class"] | {"tuned": "tuning"}
        project.paper("tiny", tiny)
        assert load_paper("tiny").profile("ci").experiments["full_class"].tuned == ("tuning",)
        del experiments["tuning"][lost]
        project.paper("tiny", tiny)
        why = {"search": "is no experiment here with a", "oracle": "chooses by the gap and has no"}
        with pytest.raises(
            ConfigError, match=f"full_class is tuned by 'tuning', which {why[lost]} {lost}"
        ):
            load_paper("tiny")
        experiments["tuning"] |= {"search": {"SSD": {"alpha": [1]}}, "choose": {"by": "zrf"}}
        project.paper("tiny", tiny)
        assert load_paper("tiny").profile("ci").experiments["full_class"].tuned == ("tuning",)

    def test_what_shares_an_original_may_be_tuned_by_another_search(
        self, project: Any, tiny: dict[str, Any]
    ) -> None:
        experiments = tiny["profiles"]["ci"]["experiments"]
        full = experiments["full_class"]
        experiments["tuning"] = full | {"search": {"SSD": {"alpha": [1, 2]}}}
        experiments["tuned"] = full | {"tuned": "tuning", "originals_of": "full_class"}
        project.paper("tiny", tiny)
        tuned = load_paper("tiny").profile("ci").experiments["tuned"]
        assert (tuned.tuned, tuned.originals_of) == (("tuning",), "full_class")


class TestShared:
    """Experiments that a chapter takes from ``notebooks/shared``."""

    @pytest.fixture
    def full(self, tiny: dict[str, Any]) -> dict[str, Any]:
        return tiny["profiles"]["ci"]["experiments"]["full_class"]

    @pytest.fixture
    def load(
        self, project: Any, tiny: dict[str, Any], full: dict[str, Any]
    ) -> Callable[..., dict[str, Experiment]]:
        """``load(include, **own)``: the profile's experiments. "common" has three for ci."""
        folder = project.root / "notebooks" / "shared"
        folder.mkdir()
        three = {n: full | {"title": f"Shared {n}"} for n in ("first", "second", "third")}
        (folder / "common.yaml").write_text(yaml.safe_dump({"ci": three}))

        def made(include: dict[str, list[str]], **own: Any) -> dict[str, Experiment]:
            tiny["profiles"]["ci"] |= {"include": include, "experiments": own}
            project.paper("tiny", tiny)
            return load_paper("tiny").profile("ci").experiments

        return made

    def test_those_that_are_named_come_before_the_own(
        self, load: Callable[..., dict[str, Experiment]], full: dict[str, Any]
    ) -> None:
        """Fails where the whole file is run, or in the file's order."""
        found = load({"common": ["third", "first"]}, own=full)
        assert list(found) == ["third", "first", "own"]
        assert [e.title for e in found.values()] == ["Shared third", "Shared first", "Full class"]
        assert found["first"] == Experiment.model_validate(full | {"title": "Shared first"})

    def test_a_profile_may_have_no_others(
        self, project: Any, tiny: dict[str, Any], load: Callable[..., dict[str, Experiment]]
    ) -> None:
        tiny["profiles"]["ci"]["include"] = {"common": ["second"]}
        del tiny["profiles"]["ci"]["experiments"]
        project.paper("tiny", tiny)
        assert list(load_paper("tiny").profile("ci").experiments) == ["second"]

    def test_like_takes_what_is_not_said(
        self, load: Callable[..., dict[str, Experiment]], full: dict[str, Any]
    ) -> None:
        """Fails where a mapping is merged in depth: a method that is left out would still run."""
        methods = {"Retrain": {"use": "retrain"}}
        found = load(
            {"common": ["first"]},
            own={"like": "second", "methods": methods, "seeds": [5]},
            again={"like": "own", "title": "Again"},
        )
        assert list(found) == ["first", "own", "again"]
        own = full | {"title": "Shared second", "methods": methods, "seeds": [5]}
        assert found["own"] == Experiment.model_validate(own)
        assert found["again"] == Experiment.model_validate(own | {"title": "Again"})
        assert found["first"].seeds == ()

    @pytest.mark.parametrize("like", ["own", "later", "full_class"])
    def test_what_it_is_like_must_come_before_it(
        self, load: Callable[..., dict[str, Experiment]], full: dict[str, Any], like: str
    ) -> None:
        words = f"own is like '{like}', which is no experiment before it; (did you mean|known: )"
        with pytest.raises(ConfigError, match=words):
            load({"common": ["first"]}, own={"like": like}, later=full)

    def test_two_names_of_one_mapping_are_both_like_what_it_says(
        self, load: Callable[..., dict[str, Experiment]]
    ) -> None:
        """Fails where reading changes what an alias shares: the second would be like nothing."""
        says = {"like": "first", "title": "Twice"}  # the YAML has an anchor and an alias
        found = load({"common": ["first"]}, one=says, two=says)
        assert found["one"] == found["two"]

    def test_an_unknown_file_is_named(
        self, load: Callable[..., dict[str, Experiment]], full: dict[str, Any]
    ) -> None:
        with pytest.raises(ConfigError, match=r"no shared/comon\.yaml; did you mean 'common'"):
            load({"comon": ["first"]}, own=full)

    def test_an_unknown_name_is_named(
        self, load: Callable[..., dict[str, Experiment]], full: dict[str, Any]
    ) -> None:
        with pytest.raises(ConfigError, match=r"common\.yaml has no ci experiment 'frist'; did"):
            load({"common": ["frist"]}, own=full)

    def test_the_sources_of_a_paper(
        self, project: Any, load: Callable[..., dict[str, Experiment]], full: dict[str, Any]
    ) -> None:
        """Fails where a record is called up to date after the experiments that it took changed."""
        notebooks = project.root / "notebooks"
        own = [notebooks / "tiny.ipynb", notebooks / "tiny.yaml"]
        assert paper_sources("tiny") == own
        load({"common": ["first"]}, own=full)
        common = notebooks / "shared" / "common.yaml"
        assert paper_sources("tiny") == [*own, common]
        before = source_hash("tiny")
        common.write_text(common.read_text() + "# more\n")
        assert source_hash("tiny") != before

    def test_two_profiles_that_include_a_file_have_one_source(
        self, project: Any, tiny: dict[str, Any]
    ) -> None:
        tiny["profiles"]["ci"]["include"] = {"common": [], "other": []}
        tiny["profiles"]["laptop"] = tiny["profiles"]["ci"] | {"include": {"common": []}}
        project.paper("tiny", tiny)
        assert [f.name for f in paper_sources("tiny")[2:]] == ["common.yaml", "other.yaml"]

    def test_a_shared_file_is_no_paper(
        self, project: Any, load: Callable[..., dict[str, Experiment]]
    ) -> None:
        assert known_papers() == ["tiny"]


def including() -> dict[str, dict[str, Any]]:
    """The papers that take experiments from ``notebooks/shared``: slug -> the profiles' YAML."""
    found = {}
    for slug in PAPERS:
        plain = yaml.safe_load((ROOT / "notebooks" / f"{slug}.yaml").read_text())["profiles"]
        if any("include" in profile for profile in plain.values()):
            found[slug] = plain
    return found


class TestCommonGround:
    def test_there_are_chapters_on_it(self) -> None:
        assert {"salun", "worst_case"} <= set(including())

    @pytest.mark.parametrize("profile", PROFILES)
    def test_a_name_means_the_same_in_every_chapter(self, profile: str) -> None:
        """Fails where a chapter changes, under the same name, what it included (or the seeds that
        the profile gives it): the page of the common ground would mix rows of two experiments."""
        found: dict[str, set[str]] = {}
        for slug, plain in including().items():
            if profile not in plain:
                continue
            loaded = load_paper(slug).profile(profile)
            for file, names in plain[profile].get("include", {}).items():
                source = ROOT / "notebooks" / "shared" / f"{file}.yaml"
                shared = yaml.safe_load(source.read_text())[profile]
                for name in names:
                    # Which of its rows a chapter makes is the chapter's business.
                    own, said = loaded.experiments[name], Experiment.model_validate(shared[name])
                    experiment, said = (e.model_copy(update={"measure": ()}) for e in (own, said))
                    assert experiment == said, (slug, name)
                    seeds = experiment.seeds or loaded.seeds
                    found.setdefault(name, set()).add(f"{seeds} {experiment.model_dump()}")
        assert profile == "workstation" or {"tuning", "random"} <= set(found)
        assert {name: len(meanings) for name, meanings in found.items()} == dict.fromkeys(found, 1)


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


#: What a hand that slips may leave in the place of a value.
WRONG = (
    "",
    "~",
    "true",
    "-3",
    "0",
    "1e300",
    ".nan",
    "5e-4",
    "banana",
    "[]",
    "[[x]]",
    "{}",
    "{x: 1}",
)
WRONG += (
    "'1'",
    "!!set {a}",
    "*nowhere",
    "&a [*a]",
    "[1, 1]",
    "{a: 1, a: 2}",
    '"\\0"',
    "{",
    "]",
    "\t",
)


def slip(lines: list[str], draw: random.Random) -> list[str]:
    """The lines of a YAML file with one mistake in them."""
    lines, at = list(lines), draw.randrange(len(lines))
    line = lines[at]
    kind = draw.choice(
        ("value", "value", "value", "key", "delete", "twice", "indent", "cut", "swap")
    )
    if kind == "value" and (found := list(re.finditer(r"(?<=: )[^\s,{}\[\]][^,{}\[\]\n]*", line))):
        value = draw.choice(found)
        lines[at] = line[: value.start()] + draw.choice(WRONG) + line[value.end() :]
    elif kind == "key" and (found := list(re.finditer(r"[\w-]+(?=:)", line))):
        key = draw.choice(found)
        new = draw.choice((f"{key[0]}s", "7", "null", "use", "[x]", "like", "include"))
        lines[at] = line[: key.start()] + new + line[key.end() :]
    elif kind == "delete":
        del lines[at : at + draw.choice((1, 1, 5, 50))]
    elif kind == "twice":
        lines.insert(at, line)
    elif kind == "indent":
        lines[at] = draw.choice((" " + line, "  " + line, line[1:], line.lstrip()))
    elif kind == "cut":
        lines = [*lines[:at], line[: len(line) // 2]]
    else:
        lines[at] = line.replace(
            draw.choice(line or " "), draw.choice(":{}[]\"'&*#\x07\udcff -"), 1
        )
    return lines


class TestMistakes:
    """Whatever a file holds, it is valid or one `ConfigError` says where it is not."""

    FILES = sorted((ROOT / "notebooks").rglob("*.yaml"))

    @pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
    def test_one_error_that_names_the_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: Path
    ) -> None:
        """Fails on any other exception: a traceback that names neither file nor place."""
        shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
        (tmp_path / "unlearn_core").mkdir()
        monkeypatch.setenv("UNLEARN_ROOT", str(tmp_path))
        slug = file.stem if file.stem in PAPERS else {"language": "flat"}.get(file.stem, "salun")
        if file.stem == "erasing":
            slug = "realera"
        copied = tmp_path / file.relative_to(ROOT)
        lines = file.read_text().splitlines()
        draw, refused = random.Random(f"mistakes in {file.stem}"), []
        for _ in range(30):
            text = "\n".join(slip(lines, draw))
            copied.write_bytes(text.encode("utf-8", "surrogateescape"))
            try:
                load_paper(slug)
            except ConfigError as error:
                refused.append(str(error))
        assert len(refused) >= 8
        for words in refused:
            assert re.match(r"notebooks/(shared/)?\w+\.yaml(, line \d+)?: \S", words)
            assert len(words) < 2000
