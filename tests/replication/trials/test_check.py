"""What an experiment says is read, and what it names can be built: else it is refused, with its place."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest
from pydantic import ValidationError

from unlearn_core.registry import ConfigError
from unlearn_core.replication.papers import Experiment, Profile, load_paper, rehearsed
from unlearn_core.replication.trials.base import Trial
from unlearn_core.replication.trials.check import check
from unlearn_core.replication.trials.plan import kind_of

#: paper, profile, experiment: one of every kind of trial.
KINDS = {
    "classes": ("ssd", "ci", "full_class"),
    "sweep": ("ssd", "ci", "tradeoff"),
    "shadow": ("iau", "ci", "lenet_tuning"),
    "chosen": ("worst_case", "ci", "worst_case"),
    "questions": ("flat", "ci", "tofu_main"),
    "passages": ("flat", "laptop", "book"),
    "drawing": ("realera", "ci", "erase_main"),
    "pretrained": ("realera", "paper", "erase_main"),
    "explicit": ("realera", "paper", "explicit"),
    "captions": ("realera", "paper", "coco"),
    "names": ("realera", "paper", "styles"),
    "classes drawn": ("salun", "ci", "ddpm_main"),
    "labelled": ("salun", "paper", "erase_imagenette"),
    "prompts": ("worst_case", "ci", "prompts"),
    "sequence": ("sefe", "ci", "orders"),
    "published sequence": ("sefe", "paper", "orders"),
    "symbols": ("safeeraser", "ci", "symbols"),
    "benchmark": ("safeeraser", "paper", "benchmark"),
}

EXPERIMENTS = {
    kind: load_paper(slug).profile(profile).experiments[name]
    for kind, (slug, profile, name) in KINDS.items()
}
SEEDS = {
    kind: EXPERIMENTS[kind].seeds or load_paper(slug).profile(profile).seeds
    for kind, (slug, profile, _) in KINDS.items()
}


def with_change(kind: str, path: tuple[str, ...], value: Any) -> Experiment:
    """That experiment with another value at ``path``; a key that is not there is added."""
    plain = copy.deepcopy(EXPERIMENTS[kind].model_dump())
    *above, last = path
    at = plain
    for key in above:
        at = at.setdefault(key, {})
    at[last] = value
    return Experiment.model_validate(plain)


def checked(experiment: Experiment, kind: str) -> type[Trial]:
    trial = kind_of(experiment)
    trial.check(experiment, SEEDS[kind])
    return trial


def test_every_kind_of_trial_is_here() -> None:
    """Fails where a new kind of trial is not tried below."""

    def below(cls: type[Trial]) -> set[type[Trial]]:
        return {cls}.union(*map(below, cls.__subclasses__()))

    tried = {checked(experiment, kind) for kind, experiment in EXPERIMENTS.items()}
    unused = {"ExplicitTrial"} - {t.__name__ for t in tried}
    assert not unused
    ours = {cls for cls in below(Trial) if cls.__module__.startswith("unlearn_core")}
    assert {cls.__name__ for cls in ours - tried} <= {"Trial", "PretrainedPromptSetTrial"}


MISTAKES: list[tuple[str, tuple[str, ...], Any, str]] = [
    # what nothing reads
    *(
        (kind, (key,), {"banana": 1}, rf"{key}: \w+ reads nothing of it")
        for kind, keys in {
            "classes": ("tower", "adapters", "judge"),
            "questions": ("tower", "adapters", "judge", "shadow"),
            "passages": ("relearn", "tower"),
            "drawing": ("tower", "adapters", "shadow", "relearn"),
            "pretrained": ("judge", "tower"),
            "sequence": ("adapters", "judge", "relearn"),
            "symbols": ("judge", "relearn", "shadow"),
            "benchmark": ("train", "tower"),
        }.items()
        for key in keys
    ),
    ("classes", ("shadow",), {"shadows": 2}, "shadow: the attack is 'entropy', which reads"),
    ("questions", ("judged_on",), "validation", "judged_on: AnsweringTrial reads nothing of it"),
    ("sequence", ("oracle",), "LoRA", "oracle: ContinualTrial reads nothing of it"),
    ("classes", ("choose",), {"widen": 2}, "choose: there is no search"),
    # data
    ("classes", ("data", "use"), "shapess", "unknown data set 'shapess'; did you mean 'shapes'"),
    ("classes", ("data", "per_clas"), 3, "data set 'shapes' has no argument 'per_clas'; did"),
    ("classes", ("data", "per_class"), "12", "data set 'shapes': per_class: .*integer, not '12'"),
    ("classes", ("data", "per_class"), True, "per_class: .*integer, not True"),
    ("sequence", ("data", "use"), "visual_tasksq", "unknown data set 'visual_tasksq'; did you"),
    ("sequence", ("data", "per_tsk"), 3, "no argument 'per_tsk'; did you mean 'per_task'"),
    ("sequence", ("data", "per_task"), -3, "per_task: .*greater than 0, not -3"),
    ("published sequence", ("data", "ratio"), 20, "data set 'coin' has no argument 'ratio'"),
    ("questions", ("data", "forget_authors"), 1, "data.forget_authors: forget says it"),
    ("symbols", ("data", "banana"), 1, "data set 'restricted_symbols' has no argument 'banana'"),
    # what is forgotten
    (
        "classes",
        ("forget",),
        {"klass": ["a"]},
        "forget: unknown kind 'klass'; did you mean 'class'",
    ),
    ("classes", ("forget",), {"class": [0.5]}, "forget.class: the name .* of a class, not 0.5"),
    ("classes", ("forget",), {"class": ["a", "a"]}, "forget.class: something comes twice"),
    ("classes", ("forget",), {"fraction": [1.5]}, "forget.fraction: a share .*, not 1.5"),
    ("classes", ("forget",), {"fraction": [1]}, "forget.fraction: a share .*, not 1"),
    ("classes", ("forget",), {"count": ["3"]}, "forget.count: a number of training im.*, not '3'"),
    ("chosen", ("select", "worst case", "by"), "class", "forget.chosen: the name of a rule"),
    ("chosen", ("select", "worst case", "fraction"), 3, "select.worst case: fraction: a share"),
    (
        "chosen",
        ("select", "worst case", "us"),
        3,
        "selection rule 'worst_case' has no argument 'us'",
    ),
    ("prompts", ("select", "worst", "count"), 0, "select.worst: count: a number of words, not 0"),
    ("questions", ("forget",), {"forget_author": [1]}, "no argument 'forget_author'; did you mean"),
    ("questions", ("forget",), {"forget_authors": ["x"]}, "forget_authors: .*integer, not 'x'"),
    ("symbols", ("forget",), {"families": [3]}, r"forget: \{families: \[restricted\]\}, not"),
    ("benchmark", ("forget",), {"families": ["restricted"]}, r"forget: \{families: \[harmful\]\}"),
    ("drawing", ("forget",), {"concepts": ["ring"]}, "forget: names under 'concept', not"),
    ("names", ("forget",), {"group": [1]}, "forget: names under 'group', not"),
    (
        "sequence",
        ("forget",),
        {"order": ["naming presnce"]},
        "unknown task 'presnce'; did you mean",
    ),
    ("sequence", ("forget",), {"order": ["naming naming"]}, "forget.order: a task comes twice"),
    (
        "sequence",
        ("forget",),
        {"order": ["naming", "presence"]},
        "forget.order: 2 orders for 1 seeds",
    ),
    ("sequence", ("train",), {}, "train: drawn tasks are for a model that is trained here"),
    # models, training, tasks
    ("classes", ("model", "use"), "smal_cnn", "unknown model 'smal_cnn'; did you mean 'small_cnn'"),
    ("classes", ("model", "width"), 2.5, "model 'small_cnn': width: .*integer"),
    ("classes", ("train", "learning_rate"), 0.1, "'train' has no argument 'learning_rate'"),
    ("classes", ("train", "epochs"), 6.5, "epochs: .*integer, not 6.5"),
    ("classes", ("train", "lr"), True, "lr: .*number, not True"),
    ("classes", ("train", "weight_decay"), "5e-4", "weight_decay: .*number, not '5e-4'"),
    ("classes", ("train", "patience"), 3, "say validation_per_class"),
    ("classes", ("train", "lr"), -3, "training configuration 'train': .*lr"),
    ("classes", ("task",), {"use": "answering"}, "unknown task 'answering'; known: classification"),
    ("symbols", ("task",), {"use": "classification"}, r"task: \{use: visual_answering\}, not"),
    ("sequence", ("tower", "epohs"), 3, "no argument 'epohs'; did you mean 'epochs'"),
    ("drawing", ("judge", "model", "use"), "x", "judge: unknown model 'x'"),
    ("drawing", ("judge", "classes"), 3, "judge: a model and its train, not"),
    ("benchmark", ("judge", "id"), 3, "judge 'causal_lm': id: .*string, not 3"),
    ("symbols", ("adapters", "rank"), "4", "adapters: adapters: rank: .*integer, not '4'"),
    ("symbols", ("adapters", "dropot"), 0.1, "no argument 'dropot'; did you mean 'dropout'"),
    ("symbols", ("adapters", "projector"), 3, "adapters: projector: the name of what is trained"),
    # methods
    ("classes", ("methods", "SSD", "use"), "sdd", "methods.SSD: unknown method 'sdd'; did you"),
    (
        "classes",
        ("methods", "SSD", "alhpa"),
        1,
        "methods.SSD: method 'ssd' has no argument 'alhpa'",
    ),
    ("classes", ("methods", "SSD", "alpha"), "ten", "methods.SSD: method 'ssd': alpha: .*number"),
    ("classes", ("methods", "SSD", "alpha"), [1], r"alpha: .*number, not \[1\]"),
    (
        "classes",
        ("methods", "Fine-tune", "train", "lr"),
        "x",
        "methods.Fine-tune: .*'train': lr: .*number",
    ),
    ("classes", ("methods", "PD"), {"use": "ssd", "method": "SSD"}, "no argument 'method'"),
    (
        "symbols",
        ("methods", "PD"),
        {"use": "prompt_decouple", "method": ["PO"]},
        "no method before",
    ),
    ("sequence", ("methods", "LoRA", "asd"), "1e-3", "methods.LoRA: asd: ratio: .*integer"),
    ("sequence", ("methods", "LoRA", "asd"), 101, "methods.LoRA: asd: .*0..100, not 101"),
    ("published sequence", ("methods", "LoRA", "asd"), 30, r"asd: one of \(0, 10, .* not 30"),
    # searches, sweeps, measures
    ("shadow", ("search", "IAU"), {"alpah": [1]}, "search.IAU: IAU has no hyper-parameter 'alpah'"),
    ("shadow", ("search", "IAU"), {"lr": ["x"]}, "search.IAU: .*lr: .*number, not 'x'"),
    ("shadow", ("choose",), {"by": "gapp"}, "choose: no metric 'gapp'; did you mean 'gap'"),
    ("shadow", ("choose",), {"keep": {"acc": 1}}, "choose: no metric 'acc'"),
    ("sweep", ("grid",), {"alpha": ["banana"]}, "grid.alpha: SSD: alpha: .*number, not 'banana'"),
    ("sweep", ("grid",), {"gamma": [1]}, "grid.gamma: no method of the experiment has such"),
    ("sweep", ("grid",), {"fisher": ["batch"]}, "grid.fisher: SSD: fisher: .*'batch_sorted'"),
    ("classes", ("measure",), ["metods"], "measure.0: nothing is called 'metods'; did you mean"),
    (
        "classes",
        ("measure",),
        [{"method": "SDS"}],
        "measure.0: method: of 'SDS'; did you mean 'SSD'",
    ),
    ("classes", ("measure",), [{"method": "SSD", "al": 1}], "SSD has no hyper-parameter 'al'"),
    (
        "classes",
        ("measure",),
        [{"method": "SSD", "seeds": [9]}],
        r"seeds: some of \[.*\], not \[9\]",
    ),
    (
        "sweep",
        ("measure",),
        [{"method": "SSD", "lamb": "grid"}],
        "method: lamb: grid, but there is no",
    ),
    (
        "chosen",
        ("measure",),
        [{"selection": "worst"}],
        "selection: of 'worst'; did you mean 'worst c",
    ),
    (
        "classes",
        ("measure",),
        [{"sequence": "SSD"}],
        "sequence: missing a required arg.*'requests'",
    ),
    (
        "classes",
        ("measure",),
        [{"sequence": "SSD", "requests": "x"}],
        "requests: .*integer, not 'x'",
    ),
    (
        "classes",
        ("measure",),
        [{"original": None, "only": True}],
        "original has no argument 'only'",
    ),
    ("classes", ("measure",), ["search"], "measure.0: nothing is called 'search'"),
    ("classes", ("measure",), [{}], "measure.0: nothing is called ''"),
    # what is asked, attacks
    ("classes", ("ask", "forget"), 5, "ask has no argument 'forget'; known: retain"),
    ("questions", ("ask", "retian"), 3, "ask has no argument 'retian'; did you mean 'retain'"),
    ("questions", ("ask", "retain"), "1e-3", "ask: retain: .*integer, not '1e-3'"),
    ("questions", ("ask", "forget"), -3, "ask: forget: .*greater than 0"),
    ("questions", ("ask", "wordings"), ["in Latin"], "ask: wordings: .*'as stored'"),
    ("questions", ("ask",), {}, "ask: missing a required argument: 'max_new_tokens'"),
    ("passages", ("ask", "retain"), 3, "ask has no argument 'retain'"),
    ("symbols", ("ask", "unsen"), 3, "ask has no argument 'unsen'; did you mean 'unseen'"),
    ("benchmark", ("ask", "held_out"), 3, "ask has no argument 'held_out'"),
    ("drawing", ("ask", "steps"), 0, "ask: steps: .*greater than 0"),
    ("drawing", ("ask", "search", "step"), 3, "ask: search has no argument 'step'; did you mean"),
    ("drawing", ("ask", "search", "examples"), "3", "ask: search: examples: a number of images"),
    ("drawing", ("ask", "relearn", "lr"), "x", "ask: relearn: lr: .*number, not 'x'"),
    ("classes drawn", ("ask", "synonyms"), 3, "ask has no argument 'synonyms'"),
    ("sequence", ("ask", "protected"), 2, "ask: protected: .*less than or equal to 1"),
    ("classes", ("relearn",), {"banana": 1}, "relearn has no argument 'banana'; known: examples"),
    ("classes", ("relearn",), {"steps": "x"}, "relearn: steps: .*integer, not 'x'"),
    ("questions", ("relearn",), {"step": 1}, "relearn has no argument 'step'; did you mean"),
    ("shadow", ("shadow", "shadow"), 1, "shadow: .*'train' has no argument 'shadow'"),
    ("shadow", ("shadow", "shadows"), "x", "shadow: the attack: shadows: .*integer"),
]


@pytest.mark.parametrize(("kind", "path", "value", "message"), MISTAKES)
def test_a_mistake_is_refused(kind: str, path: tuple[str, ...], value: Any, message: str) -> None:
    """Fails where a misspelt key is never read and its default is used without a word, or where a wrong
    value ends a run in its middle."""
    with pytest.raises(ConfigError, match=message):
        checked(with_change(kind, path, value), kind)


def test_the_error_names_its_place(project: Any, tiny: dict[str, Any]) -> None:
    """Fails where "unknown method 'rando_label'" leaves open in which experiment of which paper."""
    tiny["profiles"]["ci"]["experiments"]["full_class"]["methods"]["SSD"]["use"] = "sdd"
    project.paper("tiny", tiny)
    place = r"notebooks/tiny\.yaml: profiles\.ci\.experiments\.full_class: methods\.SSD: unknown"
    with pytest.raises(ConfigError, match=place):
        check("tiny", "ci")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data", {"shaps": {}}),
        ("models", {"resnet18": {}}),
        ("methods", {"sdd": {}}),
        ("grid", {"alpha": [1]}),
        ("ask", {"retain": 3}),
    ],
)
def test_what_a_rehearsal_changes_is_there(
    project: Any, tiny: dict[str, Any], key: str, value: Any
) -> None:
    """Fails on a misspelt name in the rehearsal block, which would shrink nothing."""
    tiny["profiles"]["ci"]["rehearsal"] = {key: value}
    project.paper("tiny", tiny)
    check("tiny", "ci")
    with pytest.raises(ConfigError, match=rf"ci\.rehearsal: {key}: no experiment has '"):
        check("tiny", "ci", rehearsal=True)


WRONG = (
    None,
    True,
    -3,
    0,
    10**30,
    1e300,
    "",
    "banana",
    "1e-3",
    [],
    ["banana"],
    [[1]],
    {},
    {"x": 1},
)


def slip(value: Any, draw: random.Random) -> None:
    """Change one place, somewhere in a mapping."""
    while True:
        key = draw.choice(list(value) or [""])
        inside = value.get(key)
        if not (isinstance(inside, dict) and inside) or draw.random() < 0.25:
            break
        value = inside
    kind = draw.choice(("value", "value", "value", "key", "delete", "add"))
    if kind == "value":
        value[key] = draw.choice(WRONG)
    elif kind == "add":
        value["banana"] = draw.choice(WRONG)
    elif key in value:
        removed = value.pop(key)
        if kind == "key":
            value[f"{key}s"] = removed


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_it_says_it_is_refused_or_can_be_built(kind: str) -> None:
    """Fails on any exception but the one that says what is wrong."""
    draw, refused = random.Random(f"mistakes of {kind}"), 0
    for _ in range(60):
        plain = json.loads(EXPERIMENTS[kind].model_dump_json(exclude_defaults=True))
        slip(plain, draw)
        try:
            checked(Experiment.model_validate_json(json.dumps(plain), strict=True), kind)
        except (ConfigError, ValidationError):
            refused += 1
    assert refused >= 20


def test_what_is_measured_in_many_ways_can_be(project: Any, tiny: dict[str, Any]) -> None:
    """Fails where the check refuses what `plan` makes rows of."""
    full = tiny["profiles"]["ci"]["experiments"]["full_class"]
    full["grid"] = {"lam": [1, 2]}
    full["select"] = {"easy": {"use": "by_loss", "fraction": 0.1}}
    full["measure"] = [
        {"original": None, "sides_only": True},
        "methods",
        {"method": ["SSD", "Fine-tune"], "seeds": [1]},
        {"method": "SSD", "alpha": [5, 10], "lam": "grid"},
        {"selection": "easy"},
        {"null": None, "again": [1, 2]},
        {"sequence": "Fine-tune", "requests": 4},
    ]
    project.paper("tiny", tiny)
    check("tiny", "ci")
    tiny["profiles"]["ci"]["rehearsal"] = {"seeds": [0]}
    project.paper("tiny", tiny)
    check("tiny", "ci", rehearsal=True)
    small = rehearsed(load_paper("tiny").profile("ci")).experiments["full_class"]
    assert small.measure[2] == {"method": ["SSD", "Fine-tune"]}


def test_a_rehearsal_asks_only_what_the_experiment_asks() -> None:
    """Fails where a rehearsal puts into an experiment what its trial never reads."""
    plain = EXPERIMENTS["questions"].model_dump()
    profile = Profile.model_validate(
        {
            **{"purpose": "x", "shrunk": "x", "minutes": 1, "memory_gb": 1, "hardware": "x"},
            "seeds": [0],
            "experiments": {"one": plain},
            "rehearsal": {"ask": {"retain": 2, "answer_tokens": 2}},
        }
    )
    asked = rehearsed(profile).experiments["one"].ask
    assert asked == plain["ask"] | {"retain": 2}


def test_a_sweep_may_name_the_grid_of_its_hyper_parameter(
    project: Any, tiny: dict[str, Any]
) -> None:
    """Fails where "grid" is taken for a value, or for a grid that is not there."""
    full = tiny["profiles"]["ci"]["experiments"]["full_class"]
    full |= {"grid": {"alpha": [1, 2]}, "measure": [{"method": "SSD", "alpha": "grid"}]}
    project.paper("tiny", tiny)
    check("tiny", "ci")
    full["measure"] = [{"method": "SSD", "lam": "grid"}]
    project.paper("tiny", tiny)
    with pytest.raises(ConfigError, match=r"measure.*lam: grid, but there is no such grid"):
        check("tiny", "ci")
    full |= {"grid": {"alpha": [1, 2], "lam": [-1]}, "measure": [{"method": "SSD", "lam": "grid"}]}
    project.paper("tiny", tiny)
    with pytest.raises(ConfigError, match="must be positive"):
        check("tiny", "ci")


def test_a_rehearsal_measures_what_only_some_seeds_do(project: Any, tiny: dict[str, Any]) -> None:
    """Fails where a row of a seed that the rehearsal lacks is left out, or ends it."""
    full = tiny["profiles"]["ci"]["experiments"]["full_class"]
    full["measure"] = ["original", {"method": "SSD", "seeds": [1]}]
    tiny["profiles"]["ci"]["rehearsal"] = {"seeds": [0]}
    project.paper("tiny", tiny)
    small = rehearsed(check("tiny", "ci", rehearsal=True).profile("ci"))
    assert small.experiments["full_class"].measure == ("original", {"method": "SSD"})
