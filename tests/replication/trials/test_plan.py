"""What a run measures, listed before it is made."""

from __future__ import annotations

from typing import Any

import pytest

from unlearn_core.registry import ConfigError
from unlearn_core.replication.papers import known_papers, load_paper
from unlearn_core.replication.records import NotMadeError
from unlearn_core.replication.run import Replication
from unlearn_core.replication.trials.classifiers import ClassificationTrial
from unlearn_core.replication.trials.plan import kind_of, make, plan


def run_of(project: Any, tiny: dict[str, Any], **experiment: Any) -> Replication:
    tiny["profiles"]["ci"]["experiments"]["full_class"] |= experiment
    project.paper("tiny", tiny)
    return Replication("tiny", "ci", "build/ci")


def listed(run: Replication, seed: int = 0) -> list[tuple[Any, ...]]:
    return [(p.measure, p.label, p.changes) for p in plan(run) if p.seed == seed]


def test_the_original_and_the_methods_where_nothing_is_said(
    project: Any, tiny: dict[str, Any]
) -> None:
    run = run_of(project, tiny)
    methods = ("Retrain", "Fine-tune", "SSD")
    rows = [("original", None, {}), *(("method", m, {}) for m in methods)]
    assert listed(run, 0) == listed(run, 1) == rows
    assert str(plan(run)[-1]) == "full_class / solid cross / seed 1: method, SSD"


def test_lists_are_a_grid_and_seeds_restrict(project: Any, tiny: dict[str, Any]) -> None:
    """Fails where values are paired instead of crossed, or a row for one seed is made on all."""
    run = run_of(
        project,
        tiny,
        measure=[
            {"original": None, "sides_only": True},
            {"method": "SSD", "alpha": [5, 10], "lam": [1.0, 0.5]},
            {"method": ["SSD", "Fine-tune"], "seeds": [1]},
        ],
    )
    grid = [("method", "SSD", {"alpha": a, "lam": m}) for a in (5, 10) for m in (1.0, 0.5)]
    first = [("original", None, {"sides_only": True}), *grid]
    assert listed(run, 0) == first
    assert listed(run, 1) == [*first, ("method", "SSD", {}), ("method", "Fine-tune", {})]


def test_a_search_lists_its_grid(project: Any, tiny: dict[str, Any]) -> None:
    run = run_of(project, tiny, search={"SSD": {"alpha": [1, 2]}})
    assert listed(run) == [("method", "SSD", {"alpha": 1}), ("method", "SSD", {"alpha": 2})]


def test_a_search_that_was_asked_for_has_chosen(
    project: Any, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where the grid's rows are made and nobody chooses: its table would be missing."""
    asked = []
    monkeypatch.setattr(ClassificationTrial, "measure_method", lambda t, label, **at: None)
    monkeypatch.setattr(
        "unlearn_core.replication.trials.plan.choose", lambda *what: asked.append(what)
    )
    run = run_of(project, tiny, search={"SSD": {"alpha": [1, 2]}}, seeds=[0])
    make(run, "full_class")
    assert asked == [(ClassificationTrial, run, "full_class")]


def test_an_unknown_measure_is_named(project: Any, tiny: dict[str, Any]) -> None:
    run = run_of(project, tiny, measure=["originl"])
    with pytest.raises(
        ConfigError, match=r"full_class: measure\.0: nothing is called 'originl'; did"
    ):
        plan(run)


def test_made_as_it_was_planned(
    project: Any, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr(ClassificationTrial, "measure_original", lambda t: made.append((t.seed,)))
    monkeypatch.setattr(
        ClassificationTrial,
        "measure_method",
        lambda t, label, **changes: made.append((t.seed, label, changes)),
    )
    run = run_of(project, tiny, measure=["original", {"method": "SSD", "alpha": [5, 10]}])
    make(run, "full")
    assert made == [
        x for s in (0, 1) for x in ((s,), (s, "SSD", {"alpha": 5}), (s, "SSD", {"alpha": 10}))
    ]


@pytest.mark.parametrize("slug", known_papers())
def test_every_experiment_of_every_paper_has_a_plan(slug: str, monkeypatch: Any) -> None:
    """Fails where an experiment names a measure that its trial doesn't have, in any profile."""
    file = load_paper(slug)
    for profile in file.profiles:
        for name, experiment in file.profiles[profile].experiments.items():
            kind = kind_of(experiment)
            for entry in experiment.measure:
                measure = entry if isinstance(entry, str) else next(iter(entry))
                known = measure in ("methods", "search") or hasattr(kind, f"measure_{measure}")
                assert known, f"{slug}, {profile}, {name}: {measure}"


@pytest.mark.parametrize("whole", [[0], []])
def test_what_is_made_of_a_long_measurement(
    project: Any, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, whole: list[int]
) -> None:
    """Fails where a seed with half of its rows is judged or shown, and where the rest of it is lost."""
    asked = []

    def measured(trial: ClassificationTrial, label: str, **changes: Any) -> None:
        asked.append((trial.seed, label))
        if label == "SSD" and trial.seed not in whole:
            raise NotMadeError("SSD would be a new row")

    monkeypatch.setattr(ClassificationTrial, "measure_original", lambda t: None)
    monkeypatch.setattr(ClassificationTrial, "measure_method", measured)
    monkeypatch.setenv("UNLEARN_ROWS", "made")
    run = run_of(project, tiny, measure=["original", {"method": ["SSD", "Fine-tune"]}])
    assert run.seeds == (0, 1)
    make(run, "full")
    assert asked == [(s, m) for s in (0, 1) for m in ("SSD", "Fine-tune")]
    assert run.seeds == run.seeds_of("full_class") == tuple(whole)
    assert run.experiments("full") == (["full_class"] if whole else [])
    (skip,) = run.skips
    assert (skip.experiment, skip.seeds) == ("full_class", (1,) if whole else ())
    assert str(skip) == f"{'seed 1: ' if whole else ''}not all of its rows are made yet"
    monkeypatch.setenv("UNLEARN_ROWS", "published")
    with pytest.raises(NotMadeError):
        make(Replication("tiny", "ci", "build/ci"), "full")
