"""The YAML beside each notebook: everything about a paper that is not code, validated."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from ..registry import ConfigError, brief, did_you_mean
from .strict_yaml import read_yaml

__all__ = [
    "PROFILES",
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
    "same_experiments",
]


ProfileName = Literal["ci", "laptop", "workstation", "paper"]

#: The profiles, smallest to largest.
PROFILES: tuple[ProfileName, ...] = get_args(ProfileName)


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _once(values: Any) -> Any:
    for i, value in enumerate(values):
        if value in values[:i]:
            raise ValueError(f"{brief(value)} comes twice")
    return values


def _scalars(values: list[Any]) -> list[Any]:
    for value in values:
        if not isinstance(value, bool | int | float | str):
            raise ValueError(f"{brief(value)} is neither text nor a number")
    return values


def _several(names: Any) -> Any:
    # What comes from JSON is a list here, which a strict tuple would refuse.
    return (
        (names,) if isinstance(names, str) else tuple(names) if isinstance(names, list) else names
    )


def _named(spec: dict[str, Any]) -> dict[str, Any]:
    if "use" not in spec:
        raise ValueError("the key 'use' is missing")
    if not isinstance(spec["use"], str):
        raise ValueError(f"'use' must be a name, not {brief(spec['use'])}")
    return spec


def _request(wanted: Any) -> Any:
    values = wanted if isinstance(wanted, list) else [wanted]
    if not values:
        raise ValueError("names nothing")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError(f"{brief(value)} is neither text nor a number")
    return wanted


Seed = Annotated[int, Field(ge=0, lt=2**32)]
Seeds = Annotated[tuple[Seed, ...], AfterValidator(_once)]

#: What is built by the name under ``use``, from the other keys.
Spec = Annotated[dict[str, Any], AfterValidator(_named)]

#: Values of a sweep or a search.
Values = Annotated[list[Any], Field(min_length=1), AfterValidator(_scalars), AfterValidator(_once)]

#: One name, or several.
Names = Annotated[tuple[str, ...], BeforeValidator(_several), AfterValidator(_once)]

#: What is to be forgotten, one thing after the other: names, or numbers of things.
Requests = Annotated[Any, AfterValidator(_request)]


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
    spread: float | None = Field(None, ge=0)
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
        """Its numbers one by one; places without one are left out."""
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
    unit: str = Field("", description="of the margin, as it stands behind the number")
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
    data: Spec
    model: Spec
    train: dict[str, Any] = Field({}, description="nothing of a model that was trained elsewhere")
    forget: dict[str, Requests] = Field(min_length=1, max_length=1)
    methods: dict[str, Spec] = {}
    oracle: str | None = None
    grid: dict[str, Values] = Field({}, description="values that the notebook loops over")
    requires: Requirement | None = None
    seeds: Seeds = Field((), description="instead of the profile's")
    original_seed: Seed | None = Field(
        None,
        description="all seeds share the original of this one, and the retrained model unless the "
        "seed draws what is forgotten",
    )
    originals_of: str | None = Field(
        None,
        description="the experiment whose original and oracle serve this one: all but its "
        "methods, and what tunes them, is the same",
    )
    task: Spec = Field({"use": "classification"}, description="what is trained for")
    attack: Literal["entropy", "confidence", "shadow"] = Field(
        "entropy", description="the membership attack that is measured and that the gap reads"
    )
    shadow: dict[str, Any] = Field({}, description="arguments of the shadow-model attack")
    relearn: dict[str, Any] | None = Field(None, description="arguments of the relearning probe")
    select: dict[str, Spec] = Field(
        {}, description="how the forget sets that 'chosen' names are chosen"
    )
    search: dict[str, dict[str, Values]] = Field(
        {}, description="method -> hyper-parameter -> values to choose from"
    )
    choose: Choice = Choice()
    measure: tuple[str | dict[str, Any], ...] = Field(
        (), description="the rows, where they are more than the original and the methods"
    )
    tuned: Names = Field(
        (),
        description="the experiment whose search chooses, or several; of a method that two of them "
        "search, the later one's",
    )
    judged_on: Literal["test", "validation"] = "test"
    templates: Literal["idk", "copyright"] | None = Field(
        None, description="the answers that say nothing, of questions"
    )
    ask: dict[str, Any] = Field(
        {},
        description="of questions: how many of each set are asked, and the longest answer; of what is "
        "drawn: how many images of each kind, and how; of classifiers: how many retain images are "
        "looked at",
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

    @property
    def drawn(self) -> bool:
        """Whether what is forgotten differs from seed to seed, and the retrained model with it."""
        return bool({"fraction", "count", "chosen"} & set(self.forget))

    @model_validator(mode="after")
    def _oracle_is_a_method(self) -> Experiment:
        if self.oracle is not None and self.oracle not in self.methods:
            raise ValueError(f"the oracle {self.oracle!r} is not among the methods")
        unknown = set(self.search) - set(self.methods)
        if unknown:
            raise ValueError(f"a search for unknown methods {sorted(unknown)}")
        if "chosen" in self.forget:
            chosen = self.forget["chosen"]
            chosen = chosen if isinstance(chosen, list) else [chosen]
            if set(chosen) - set(self.select):
                raise ValueError(f"forget chooses {chosen}, select knows {sorted(self.select)}")
        return self


class Rehearsal(Model):
    """What a rehearsal of a profile shrinks, beside ending every training after two steps."""

    seeds: Seeds = ()
    targets: int | None = Field(None, ge=1, description="how many of the things that a list names")
    train: dict[str, Any] = Field({}, description="merged into every experiment's training")
    data: dict[str, dict[str, Any]] = Field({}, description='by what "use" names')
    models: dict[str, dict[str, Any]] = Field({}, description='by what "use" names')
    methods: dict[str, dict[str, Any]] = Field({}, description='by what "use" names')
    grid: dict[str, Values] = {}
    ask: dict[str, Any] = Field({}, description="in the place of what an experiment asks")


class Profile(Model):
    """One size of the same code path."""

    purpose: str
    shrunk: str
    minutes: float = Field(gt=0)
    memory_gb: float = Field(gt=0)
    hardware: str
    seeds: Seeds = Field(min_length=1)
    experiments: dict[str, Experiment] = Field(min_length=1)
    rehearsal: Rehearsal = Rehearsal()

    @model_validator(mode="after")
    def _originals_are_the_same(self) -> Profile:
        own = {"title", "methods", "seeds", "originals_of", "measure", "tuned"}
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
            for other in experiment.tuned:
                tuning = self.experiments.get(other)
                if tuning is None or not tuning.search:
                    raise ValueError(
                        f"{name} is tuned by {other!r}, which is no experiment here with a search"
                    )
                if tuning.choose.by == "gap" and not tuning.oracle:
                    raise ValueError(
                        f"{name} is tuned by {other!r}, which chooses by the gap and has no oracle"
                    )
        return self


class Notes(Model):
    easy: str
    hard: str
    untested: str


class PaperFile(Model):
    """All of ``notebooks/<slug>.yaml``, checked."""

    paper: Paper
    profiles: dict[ProfileName, Profile] = Field(min_length=1)
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
        """The profile of that name; a `ConfigError` says which there are."""
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
    name = f"notebooks/{slug}.yaml"
    profiles = _mapping(read_yaml(folder / f"{slug}.yaml", name).get("profiles"), name, "profiles")
    shared = {
        file: None
        for profile, plain in profiles.items()
        for file in _includes(plain, name, f"profiles.{profile}")
    }
    own = [folder / f"{slug}.{suffix}" for suffix in ("ipynb", "yaml")]
    return own + [folder / "shared" / f"{file}.yaml" for file in shared]


def same_experiments(shared: str, profile: str) -> set[str]:
    """The profiles, this one included, whose experiments ``notebooks/shared/<shared>.yaml`` defines alike."""
    name = f"notebooks/shared/{shared}.yaml"
    every = read_yaml(project_root() / "notebooks" / "shared" / f"{shared}.yaml", name)
    own = every.get(profile)
    return {profile, *(other for other, found in every.items() if found == own)}


def _mapping(value: Any, file: str, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{file}: {place}: must be a mapping of names, not {brief(value)}")
    return value


def _includes(profile: Any, file: str, place: str) -> dict[str, list[str]]:
    """Shared file -> the experiments that a profile includes from it."""
    found = _mapping(profile, file, place).get("include", {})
    place = f"{place}.include"
    for shared, names in _mapping(found, file, place).items():
        if not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
            raise ConfigError(
                f"{file}: {place}.{shared}: must be a list of experiments, not {brief(names)}"
            )
    return found


def _experiments(
    profile: str, plain: dict[str, Any], file: str, read: Callable[[Path, str], dict[str, Any]]
) -> dict[str, Any]:
    """A profile's experiments: those it includes from ``notebooks/shared``, then its own.

    An experiment that is ``like`` an earlier one, or one in a file that is included from, takes
    from it what it does not say itself.
    """
    known: dict[str, Any] = {}
    models: dict[str, Any] = {}
    place = f"profiles.{profile}"
    folder = project_root() / "notebooks" / "shared"
    for shared, names in _includes(plain, file, place).items():
        files = {f.stem: f for f in folder.glob("*.yaml")}
        if shared not in files:
            raise ConfigError(
                f"{file}: {place}.include: there is no shared/{shared}.yaml; "
                f"{did_you_mean(shared, files)}"
            )
        source = f"notebooks/shared/{shared}.yaml"
        every = read(files[shared], source)
        if unknown := [name for name in every if name not in PROFILES]:
            raise ConfigError(
                f"{source}: unknown profile {brief(unknown[0])}; {did_you_mean(unknown[0], PROFILES)}"
            )
        found = _mapping(every.get(profile, {}), source, profile)
        for name in names:
            if name not in found:
                raise ConfigError(
                    f"{file}: {place}.include: {source} has no {profile} experiment {brief(name)}; "
                    f"{did_you_mean(name, found)}"
                )
            known[name] = _mapping(found[name], source, f"{profile}.{name}")
        models |= found
    own = _mapping(plain.get("experiments", {}), file, f"{place}.experiments")
    for name, says in own.items():
        here = f"{place}.experiments.{name}"
        says = dict(_mapping(says, file, here))
        if "like" in says:
            like = says.pop("like")
            if not isinstance(like, str) or like not in models:
                raise ConfigError(
                    f"{file}: {here} is like {brief(like)}, which is no experiment before it; "
                    f"{did_you_mean(like, models)}"
                )
            says = {**_mapping(models[like], file, f"{here}, like {like}"), **says}
        known[name] = models[name] = says
    return known


def load_paper(slug: str) -> PaperFile:
    """Read and validate ``notebooks/<slug>.yaml``.

    What its experiments name (data, models, methods and their arguments) is not looked up: that is
    what `trials.check` does.

    Raises
    ------
    ConfigError
        An unknown paper; a file that is no such YAML; an unknown key, a value of the wrong type. It
        names the file, and the place in it.
    """
    if slug not in known_papers():
        raise ConfigError(f"unknown paper {brief(slug)}; {did_you_mean(slug, known_papers())}")
    name = f"notebooks/{slug}.yaml"
    plain = read_yaml(project_root() / "notebooks" / f"{slug}.yaml", name)
    read = functools.cache(read_yaml)  # several profiles include the same files
    if "profiles" in plain:
        profiles = _mapping(plain["profiles"], name, "profiles")
        plain["profiles"] = {
            profile: {
                k: v
                for k, v in _mapping(says, name, f"profiles.{profile}").items()
                if k != "include"
            }
            | {"experiments": _experiments(profile, says, name, read)}
            for profile, says in profiles.items()
        }
    try:
        # JSON, as only there "strict" takes a list for a tuple, and neither "5" nor true for a number.
        return PaperFile.model_validate_json(json.dumps(plain), strict=True)
    except ValidationError as error:
        raise ConfigError(f"{name}: {_words(error)}") from error


def _words(error: ValidationError) -> str:
    """What pydantic found wrong, place by place; the first few."""
    lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
    more = f"; and {len(lines) - 5} more" if len(lines) > 5 else ""
    return "; ".join(lines[:5]) + more


#: Optimizer steps of a training in a rehearsal: the second one meets the first one's state.
REHEARSAL_STEPS = 2


def _few_steps(value: Any) -> Any:
    """Every training configuration, the default one of a method too, ends after two steps."""
    # Imported here: whoever only lists papers needs no PyTorch.
    from ..methods import CONTINUAL, METHODS
    from ..methods.worst_case import SELECTORS
    from ..methods.worst_prompts import PROMPT_SELECTORS
    from ..models import TrainConfig

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
        experiment["ask"] |= {k: v for k, v in over.ask.items() if k in experiment["ask"]}
        experiment["data"] |= over.data.get(experiment["data"]["use"], {})
        experiment["model"] |= over.models.get(experiment["model"]["use"], {})
        for method in experiment["methods"].values():
            method |= over.methods.get(method["use"], {})
        if experiment["relearn"]:  # of the few images that are forgotten most are to judge by
            experiment["relearn"] |= {"steps": REHEARSAL_STEPS, "examples": 2}
        experiment["grid"] |= {k: v for k, v in over.grid.items() if k in experiment["grid"]}
        # What only some seeds measure is rehearsed on the one that there is.
        experiment["measure"] = [
            {k: v for k, v in entry.items() if k != "seeds"} if isinstance(entry, dict) else entry
            for entry in experiment["measure"]
        ]
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
