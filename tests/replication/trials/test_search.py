"""How hyper-parameters are chosen, on scores that a table gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from unlearn_core.replication.papers import Choice
from unlearn_core.replication.records import NotMadeError, Value
from unlearn_core.replication.run import Replication
from unlearn_core.replication.trials.search import choose


def searched(
    score: Callable[..., float],
    grid: dict[str, list[Any]],
    *,
    retain: Callable[..., float] = lambda **at: 100.0,
    **rule: Any,
) -> tuple[dict[str, Any], Any]:
    """What is chosen for a method "M" whose gap and retain accuracy are these functions."""
    experiment = SimpleNamespace(search={"M": grid}, choose=Choice(**rule))
    run = SimpleNamespace(
        shared={},
        searches={},
        experiment=lambda name: experiment,
        seeds_of=lambda name: (99,),
        targets=lambda name: ["cat"],
    )

    class Trial:
        def __init__(self, run: Any, name: str, seed: int, target: str) -> None:
            self.run, self.name = run, name

        def measure_original(self) -> Any:
            return self.made(gap=50.0, retain_accuracy=100.0)

        def measure_method(self, label: str, **at: Any) -> Any:
            return self.made(gap=score(**at), retain_accuracy=retain(**at))

        def made(self, **metrics: float) -> Any:
            found = {k: Value(value=float(v)) for k, v in metrics.items()}
            return SimpleNamespace(metrics=found, experiment=self.name)

    chosen = choose(Trial, run, "tuning")["M"]
    return chosen, run.searches["tuning", "M"]


def valley(lr: float) -> float:
    """Least at 1e-3."""
    return abs(math.log10(lr) + 3)


def test_a_search_that_is_not_made_has_not_chosen() -> None:
    """Fails where nothing at all ends in an error of its own: what needs it is not made yet, either."""
    experiment = SimpleNamespace(search={"M": {"lr": [0.1]}}, choose=Choice())
    run: Any = SimpleNamespace(
        shared={}, experiment=lambda name: experiment, seeds_of=lambda name: (), targets=list
    )
    with pytest.raises(NotMadeError, match="tuning has not chosen yet"):
        choose(SimpleNamespace, run, "tuning")  # type: ignore[arg-type]


def test_a_grid_goes_on_until_the_best_lies_inside() -> None:
    """Fails where the end of a grid wins and nobody looks further: 0.1, then 0.01, 1e-3, 1e-4."""
    chosen, search = searched(valley, {"lr": [0.1, 1.0, 10.0]}, widen=5)
    assert chosen == {"lr": pytest.approx(1e-3)}
    assert [t[0] for t in search.tried] == pytest.approx([0.1, 1, 10, 1e-2, 1e-3, 1e-4])
    assert search.edges == ()


def test_a_grid_that_may_not_go_on_says_that_the_best_is_at_its_end() -> None:
    chosen, search = searched(valley, {"lr": [0.1, 1.0, 10.0]}, widen=1)
    assert chosen == {"lr": pytest.approx(0.01)}
    assert search.edges == ("lr",)
    _, descending = searched(valley, {"lr": [10.0, 1.0, 0.1]})
    assert descending.edges == ("lr",)


def test_two_values_and_words_have_no_ends() -> None:
    assert searched(valley, {"lr": [0.1, 1.0]})[1].edges == ()
    found = searched(lambda mask: len(mask), {"mask": ["a", "bb", "ccc"]}, widen=3)
    assert found[0] == {"mask": "a"}
    assert found[1].edges == ()


def test_the_best_among_those_that_keep_what_must_be_kept() -> None:
    """Fails where a setting that destroys the model wins because what it forgets looks right."""
    found = searched(
        valley,
        {"lr": [1e-5, 1e-4, 1e-3, 1e-2]},
        retain=lambda lr: 100.0 if lr < 1e-3 else 40.0,
        keep={"retain_accuracy": 5.0},
    )
    assert found[0] == {"lr": 1e-4}
    assert found[1].kept == (True, True, False, False)


def test_where_nothing_keeps_it_the_best_of_all_is_taken() -> None:
    chosen, search = searched(
        valley, {"lr": [1e-4, 1e-3, 1e-2]}, retain=lambda lr: 0.0, keep={"retain_accuracy": 5.0}
    )
    assert chosen == {"lr": 1e-3}
    assert not any(search.kept)


def test_a_metric_of_which_more_is_better() -> None:
    chosen, _ = searched(
        lambda lr: 0.0,
        {"lr": [1, 2, 3]},
        retain=lambda lr: {1: 10.0, 2: 30.0, 3: 20.0}[lr],
        by="retain_accuracy",
    )
    assert chosen == {"lr": 2}


def test_whole_numbers_stay_whole() -> None:
    _, search = searched(lambda epochs: -epochs, {"epochs": [1, 2, 4]}, widen=2)
    assert [t[0] for t in search.tried] == [1, 2, 4, 8, 16]


def test_both_of_two_grids_go_on() -> None:
    chosen, search = searched(
        lambda a, b: valley(a) + valley(b),
        {"a": [0.1, 1.0, 10.0], "b": [1e-6, 1e-5, 1e-4]},
        widen=4,
    )
    assert chosen == {"a": pytest.approx(1e-3), "b": pytest.approx(1e-3)}
    assert search.edges == ()


def test_an_edge_makes_what_reads_it_untested(
    project: Any, tiny: dict[str, Any], make_row: Any
) -> None:
    """Fails where a claim is judged on a setting that a wider grid would have changed."""
    experiments = tiny["profiles"]["ci"]["experiments"]
    experiments["tuning"] = {**experiments["full_class"], "search": {"SSD": {"alpha": [1, 2, 4]}}}
    experiments["full_class"]["tuned"] = "tuning"
    project.paper("tiny", tiny)
    run = Replication("tiny", "ci", "build/ci")
    for method in ("SSD", "Fine-tune"):
        run.rows.add(make_row(method=method, zrf=1.0).model_copy(update={"key": method}))
    assert run.unsettled({"SSD", "Fine-tune"}) == ""
    _, search = searched(lambda alpha: alpha, {"alpha": [1, 2, 4]})
    run.searches["tuning", "SSD"] = search.model_copy(update={"method": "SSD"})
    assert run.unsettled({"SSD"}) == "SSD's alpha was chosen at an edge of its grid"
    assert run.unsettled({"Fine-tune"}) == ""


def test_of_two_searches_the_later_one_chose(
    project: Any, tiny: dict[str, Any], make_row: Any
) -> None:
    """Fails where an edge in the search for another kind of request leaves a claim untested."""
    experiments = tiny["profiles"]["ci"]["experiments"]
    for name in ("tuning", "class_tuning"):
        experiments[name] = {**experiments["full_class"], "search": {"SSD": {"alpha": [1, 2, 4]}}}
    experiments["full_class"]["tuned"] = ["tuning", "class_tuning"]
    project.paper("tiny", tiny)
    run = Replication("tiny", "ci", "build/ci")
    run.rows.add(make_row(method="SSD", zrf=1.0).model_copy(update={"key": "SSD"}))
    _, edge = searched(lambda alpha: alpha, {"alpha": [1, 2, 4]})
    run.searches["tuning", "SSD"] = edge.model_copy(update={"method": "SSD"})
    assert run.unsettled({"SSD"}) == "SSD's alpha was chosen at an edge of its grid"
    run.searches["class_tuning", "SSD"] = edge.model_copy(update={"method": "SSD", "edges": ()})
    assert run.unsettled({"SSD"}) == ""
