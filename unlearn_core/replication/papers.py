"""The YAML beside each notebook: everything about a paper that is not code, validated."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..methods import CONTINUAL, METHODS
from ..methods.worst_case import SELECTORS
from ..methods.worst_prompts import PROMPT_SELECTORS
from ..models import TrainConfig
from ..registry import ConfigError, did_you_mean

__all__ = [
    "Claim",
    "Deviation",
    "Experiment",
    "PaperFile",
    "Profile",
    "Target",
    "TargetTable",
    "known_papers",
    "load_paper",
    "project_root",
    "rehearsed",
]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Code(Model):
    url: str
    commit: str
    licence: str


class Paper(Model):
    """The paper itself."""

    title: str
    short: str
    authors: str
    venue: str
    year: int
    modality: str
    cite: str = Field(description="key in book/references.bib")
    doi: str | None = None
    arxiv: str | None = None
    code: Code | None = None
    summary: str
    basis: str = Field(description="what of the paper and its code this replication could read")


class Target(Model):
    """A number to compare with, and where it was read."""

    setting: str
    method: str
    metric: str
    value: float
    spread: float | None = None
    kind: Literal["read", "read second-hand", "independent"]
    source: str


class TargetTable(Model):
    """A table of such numbers: a line a method, a number a metric; null where it has none."""

    setting: str
    kind: Literal["read", "read second-hand", "independent"]
    source: str
    metrics: tuple[str, ...]
    rows: dict[str, tuple[float | None, ...]]

    @model_validator(mode="after")
    def _lines_are_whole(self) -> TargetTable:
        for method, values in self.rows.items():
            if len(values) != len(self.metrics):
                raise ValueError(
                    f"{self.setting}: {method} has {len(values)} values for {len(self.metrics)} metrics"
                )
        return self

    def targets(self) -> Iterator[Target]:
        for method, values in self.rows.items():
            for metric, value in zip(self.metrics, values, strict=True):
                if value is not None:
                    yield Target(
                        setting=self.setting,
                        method=method,
                        metric=metric,
                        value=value,
                        kind=self.kind,
                        source=self.source,
                    )


class Claim(Model):
    """A sentence that a rule in the notebook judges."""

    title: str
    statement: str
    headline: bool = Field(False, description="one of the abstract's sentences")
    whose: Literal["paper", "ours"] = "paper"
    paper_value: str = Field("", description="the paper's number, in words")
    paper_margin: float | None = Field(None, description="the margin that the paper's number gives")
    needs: tuple[str, ...] = Field((), description="preconditions")
    where: str = Field(description="where the paper says it, or where it follows from")
    margin: str = Field(description="what the margin measures, with its unit")
    explanation: str = Field(description="what might explain a failure; shown beside one")
    judged_at: tuple[str, ...]


class Deviation(Model):
    """What differs between the text, the authors' code and this replication."""

    what: str
    paper: str
    code: str
    ours: str
    measured: bool = Field(False, description="the notebook measures the effect")


class Requirement(Model):
    """Something that only the reader can supply; without it the experiment is skipped."""

    env: str
    why: str


class Choice(Model):
    """The rule by which a search chooses."""

    by: str = Field("gap", description="the metric that is to be best")
    keep: dict[str, float] = Field(
        {}, description="metric -> how far below the original's a setting may fall and be chosen"
    )
    widen: int = Field(0, ge=0, description="how often a grid may go on beyond an end")


class Experiment(Model):
    """One experiment of a profile. The mappings are checked by whoever builds from them."""

    title: str
    data: dict[str, Any]
    model: dict[str, Any]
    train: dict[str, Any] = Field({}, description="nothing of a model that was trained elsewhere")
    forget: dict[str, Any]
    methods: dict[str, dict[str, Any]] = {}
    oracle: str | None = None
    grid: dict[str, list[Any]] = {}
    requires: Requirement | None = None
    seeds: tuple[int, ...] = Field((), description="instead of the profile's")
    original_seed: int | None = Field(
        None, description="all seeds share the original and the retrained model of this one"
    )
    originals_of: str | None = Field(
        None,
        description="the experiment whose original and oracle serve this one: all but its "
        "methods is the same",
    )
    task: dict[str, Any] = Field({"use": "classification"}, description="what is trained for")
    attack: Literal["entropy", "confidence", "shadow"] = Field(
        "entropy", description="the membership attack that is measured and that the gap reads"
    )
    shadow: dict[str, Any] = Field({}, description="arguments of the shadow-model attack")
    relearn: dict[str, Any] | None = Field(None, description="arguments of the relearning probe")
    select: dict[str, dict[str, Any]] = Field(
        {}, description="how the forget sets that 'chosen' names are chosen"
    )
    search: dict[str, dict[str, list[Any]]] = Field(
        {}, description="method -> hyper-parameter -> values to choose from"
    )
    choose: Choice = Choice()
    measure: tuple[str | dict[str, Any], ...] = Field(
        (), description="the rows, where they are more than the original and the methods"
    )
    tuned: str | None = Field(None, description="the experiment whose search chooses")
    judged_on: Literal["test", "validation"] = "test"
    templates: Literal["idk", "copyright"] | None = Field(
        None, description="the answers that say nothing, of questions"
    )
    ask: dict[str, Any] = Field(
        {},
        description="of questions: how many of each set are asked, and the longest answer; of what is "
        "drawn: how many images of each kind, and how",
    )
    adapters: dict[str, Any] = Field(
        {}, description="low-rank adapters that a method trains in the place of all weights"
    )
    judge: dict[str, Any] = Field(
        {},
        description="who judges: the classifier that names what is drawn, its model and its training; the "
        "language model that reads answers",
    )
    tower: dict[str, Any] = Field(
        {}, description="how a vision tower learns to see before its model learns to answer"
    )

    @model_validator(mode="after")
    def _oracle_is_a_method(self) -> Experiment:
        if self.oracle is not None and self.oracle not in self.methods:
            raise ValueError(f"the oracle {self.oracle!r} is not among the methods")
        unknown = set(self.search) - set(self.methods)
        if unknown:
            raise ValueError(f"a search for unknown methods {sorted(unknown)}")
        chosen = self.forget.get("chosen", [])
        if set(chosen) - set(self.select):
            raise ValueError(f"forget chooses {chosen}, select knows {sorted(self.select)}")
        return self


class Rehearsal(Model):
    """What a rehearsal of a profile shrinks, beside ending every training after two steps."""

    seeds: tuple[int, ...] = ()
    targets: int | None = Field(None, description="how many of the things that a list names")
    train: dict[str, Any] = Field({}, description="merged into every experiment's training")
    data: dict[str, dict[str, Any]] = Field({}, description='by what "use" names')
    models: dict[str, dict[str, Any]] = Field({}, description='by what "use" names')
    methods: dict[str, dict[str, Any]] = Field({}, description='by what "use" names')
    grid: dict[str, list[Any]] = {}
    ask: dict[str, Any] = {}


class Profile(Model):
    """One size of the same code path."""

    purpose: str
    shrunk: str
    minutes: float
    memory_gb: float
    hardware: str
    seeds: tuple[int, ...] = Field(min_length=1)
    experiments: dict[str, Experiment] = Field(min_length=1)
    rehearsal: Rehearsal = Rehearsal()

    @model_validator(mode="after")
    def _originals_are_the_same(self) -> Profile:
        own = {"title", "methods", "seeds", "originals_of", "measure"}
        for name, experiment in self.experiments.items():
            if experiment.originals_of is None:
                continue
            other = self.experiments.get(experiment.originals_of)
            if other is None:
                raise ValueError(
                    f"{name} has its original of {experiment.originals_of!r}, which is no experiment here"
                )
            a, b = (e.model_dump(exclude=own) for e in (experiment, other))
            if apart := [k for k in a if a[k] != b[k]]:
                raise ValueError(
                    f"{name} has its original of {experiment.originals_of}, but differs in {apart}"
                )
            if experiment.methods.get(experiment.oracle) != other.methods.get(other.oracle):
                raise ValueError(
                    f"{name} has its original of {experiment.originals_of}, but another oracle"
                )
        return self

    @model_validator(mode="after")
    def _tuning_exists(self) -> Profile:
        for name, experiment in self.experiments.items():
            tuning = self.experiments.get(experiment.tuned) if experiment.tuned else None
            if experiment.tuned and (tuning is None or not tuning.search or not tuning.oracle):
                raise ValueError(
                    f"{name} is tuned by {experiment.tuned!r}, which is no experiment here with a "
                    "search and an oracle"
                )
        return self


class Notes(Model):
    easy: str
    hard: str
    untested: str


class PaperFile(Model):
    paper: Paper
    profiles: dict[Literal["ci", "laptop", "paper"], Profile]
    claims: dict[str, Claim]
    preconditions: dict[str, str] = Field({}, description="name -> what is presupposed, in words")
    targets: tuple[Target, ...] = ()
    target_tables: tuple[TargetTable, ...] = ()
    targets_note: str = ""
    deviations: dict[str, Deviation] = {}
    notes: Notes

    @model_validator(mode="after")
    def _claims_name_profiles(self) -> PaperFile:
        for key, claim in self.claims.items():
            unknown = set(claim.judged_at) - set(self.profiles)
            if unknown:
                raise ValueError(f"claim {key} is judged at unknown profiles {sorted(unknown)}")
            if unknown := set(claim.needs) - set(self.preconditions):
                raise ValueError(f"claim {key} needs unknown preconditions {sorted(unknown)}")
        return self

    @property
    def all_targets(self) -> tuple[Target, ...]:
        """Those that stand alone and those of the tables."""
        return self.targets + tuple(t for table in self.target_tables for t in table.targets())

    def profile(self, name: str) -> Profile:
        if name not in self.profiles:
            raise ConfigError(f"unknown profile {name!r}; {did_you_mean(name, self.profiles)}")
        return self.profiles[name]


def project_root() -> Path:
    """The folder that holds ``notebooks/``: $UNLEARN_ROOT, the working folder or one above it."""
    here = Path(os.environ.get("UNLEARN_ROOT") or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "notebooks").is_dir() and (folder / "unlearn_core").is_dir():
            return folder
    raise ConfigError("run this inside a clone of the project, or set UNLEARN_ROOT to one")


def known_papers() -> list[str]:
    """Slugs of the notebooks that have a YAML."""
    folder = project_root() / "notebooks"
    return sorted(f.stem for f in folder.glob("*.yaml") if f.with_suffix(".ipynb").exists())


def paper_sources(slug: str) -> list[Path]:
    """The notebook, its YAML and the shared experiments that it includes."""
    folder = project_root() / "notebooks"
    plain = yaml.safe_load((folder / f"{slug}.yaml").read_text())
    shared = {name: None for p in plain["profiles"].values() for name in p.get("include", {})}
    own = [folder / f"{slug}.{suffix}" for suffix in ("ipynb", "yaml")]
    return own + [folder / "shared" / f"{name}.yaml" for name in shared]


def _experiments(profile: str, plain: dict[str, Any]) -> dict[str, Any]:
    """A profile's experiments: those it includes from ``notebooks/shared``, then its own.

    An experiment that is ``like`` an earlier one, or one in a file that is included from, takes
    from it what it does not say itself.
    """
    known: dict[str, Any] = {}
    models: dict[str, Any] = {}
    for file, names in plain.pop("include", {}).items():
        path = project_root() / "notebooks" / "shared" / f"{file}.yaml"
        if not path.exists():
            raise ConfigError(f"{profile} includes {file!r}, but there is no {path.name}")
        shared = yaml.safe_load(path.read_text()).get(profile, {})
        for name in names:
            if name not in shared:
                raise ConfigError(f"shared/{path.name}, {profile}: {did_you_mean(name, shared)}")
            known[name] = shared[name]
        models |= shared
    for name, own in plain.get("experiments", {}).items():
        like = own.pop("like", None)
        if like is not None and like not in models:
            raise ConfigError(f"{name} is like {like!r}; {did_you_mean(like, models)}")
        known[name] = models[name] = {**models.get(like, {}), **own}
    return known


def load_paper(slug: str) -> PaperFile:
    """Read and validate ``notebooks/<slug>.yaml``.

    Raises
    ------
    ConfigError
        An unknown paper, an unknown key, a value of the wrong type.
    """
    if slug not in known_papers():
        raise ConfigError(f"unknown paper {slug!r}; {did_you_mean(slug, known_papers())}")
    file = project_root() / "notebooks" / f"{slug}.yaml"
    try:
        plain = yaml.safe_load(file.read_text())
        for name, profile in plain["profiles"].items():
            profile["experiments"] = _experiments(name, profile)
        return PaperFile.model_validate(plain)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ConfigError(f"notebooks/{file.name}: " + "; ".join(lines)) from error


#: Optimizer steps of a training in a rehearsal: the second one meets the first one's state.
REHEARSAL_STEPS = 2


def _few_steps(value: Any) -> Any:
    """Every training configuration, the default one of a method too, ends after two steps."""
    if isinstance(value, TrainConfig):
        value = dataclasses.asdict(value)
    if not isinstance(value, dict):
        return value
    table = {**METHODS, **CONTINUAL, **SELECTORS, **PROMPT_SELECTORS}
    if value.get("use") in table:
        defaults = {f.name: f.default for f in dataclasses.fields(table[value["use"]])}
        value = {k: v for k, v in defaults.items() if isinstance(v, TrainConfig)} | value
    short = {"max_steps": REHEARSAL_STEPS} if "epochs" in value else {}
    return {k: _few_steps(v) for k, v in value.items()} | short


def rehearsed(profile: Profile) -> Profile:
    """The same profile for a few steps: its ``rehearsal`` overrides, and two steps a training."""
    over, plain = profile.rehearsal, profile.model_dump()
    plain["seeds"] = over.seeds or profile.seeds
    for experiment in plain["experiments"].values():
        experiment["train"] |= over.train if experiment["train"] else {}
        experiment["ask"] |= over.ask if experiment["ask"] else {}
        experiment["data"] |= over.data.get(experiment["data"]["use"], {})
        experiment["model"] |= over.models.get(experiment["model"]["use"], {})
        for method in experiment["methods"].values():
            method |= over.methods.get(method["use"], {})
        experiment["grid"] |= {k: v for k, v in over.grid.items() if k in experiment["grid"]}
        for selector in experiment["select"].values():
            selector |= over.methods.get(selector["use"], {})
        experiment["search"] = {
            method: {k: values[:1] for k, values in search.items()}
            for method, search in experiment["search"].items()
        }
        experiment["forget"] = {
            kind: wanted[: over.targets] if isinstance(wanted, list) else wanted
            for kind, wanted in experiment["forget"].items()
        }
    plain["experiments"] = _few_steps(plain["experiments"])
    return Profile.model_validate(plain)
