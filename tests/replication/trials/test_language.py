"""Trials of language models: the same rows and rules as the classifiers', on questions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from unlearn_core.data import IDK
from unlearn_core.metrics import METRICS, forget_quality
from unlearn_core.models import Chat, NotFiniteError, device_of
from unlearn_core.registry import ConfigError
from unlearn_core.replication.records import MissingRowError
from unlearn_core.replication.run import Replication
from unlearn_core.replication.trials import language as answering
from unlearn_core.replication.trials.base import ORIGINAL, OptimizerSteps
from unlearn_core.replication.trials.language import SHOWN, AnsweringTrial
from unlearn_core.replication.trials.settings import settings

TRAIN = {"epochs": 25, "lr": 3e-3, "batch_size": 8, "optimizer": "adamw"}
FORGET = {"epochs": 3, "lr": 1e-3, "batch_size": 4, "optimizer": "adamw"}


@pytest.fixture
def config(tiny: dict[str, Any]) -> dict[str, Any]:
    """A paper with one experiment on questions, two seeds."""
    tiny["profiles"]["ci"]["experiments"] = {
        "authors": {
            "title": "Two of four drawn authors",
            "data": {"use": "fictional_authors", "authors": 4, "holdout_authors": 1},
            "model": {"use": "tiny_llama", "hidden": 32, "layers": 1, "vocabulary": 600},
            "train": TRAIN,
            "task": {"use": "answering"},
            "forget": {"forget_authors": [2]},
            "oracle": "Retrain",
            "templates": "idk",
            "ask": {"retain": 5, "max_new_tokens": 6, "every": 5},
            "methods": {
                "Retrain": {"use": "retrain"},
                "FLAT": {"use": "flat", "divergence": "kl", "train": FORGET},
                "GA": {"use": "gradient_ascent", "train": FORGET},
            },
        }
    }
    return tiny


def own(config: dict[str, Any]) -> dict[str, Any]:
    return config["profiles"]["ci"]["experiments"]["authors"]


def run_of(project: Any, config: dict[str, Any]) -> Replication:
    project.paper("tiny", config)
    return Replication("tiny", "ci", "build/ci")


@pytest.fixture
def run(project: Any, config: dict[str, Any]) -> Replication:
    return run_of(project, config)


@pytest.fixture
def trial(run: Replication) -> AnsweringTrial:
    return AnsweringTrial(run, "authors", 0, 2)


class TestRows:
    def test_metrics_and_what_was_said(self, trial: AnsweringTrial) -> None:
        row = trial.measure_original()
        assert set(row.metrics) - {"forget_quality"} <= METRICS.keys()
        assert row.metrics["forget_rouge"].n == 16
        assert row.metrics["retain_rouge"].n == 5
        assert row.metrics["forget_token_probability"].value > 0.5, "the original knows its answers"
        said = row.detail["said"]
        assert {name: len(x) for name, x in said.items()} == {
            **{"forget": SHOWN, "retain": 5, "real_authors": 8, "world_facts": 10}
        }
        assert said["forget"][3]["answer"] == trial.data.ask_forget.answers[3]
        assert len(row.detail["log_truth_ratios"]) == 16
        assert row.variant == {"forget": 2}

    def test_forget_quality_compares_with_the_retrained_model(self, trial: AnsweringTrial) -> None:
        """Fails where a model is compared with itself, or with another one's questions."""
        row, retrained = trial.measure_original(), trial.measure_method("Retrain")
        ratios = [torch.tensor(r.detail["log_truth_ratios"]) for r in (row, retrained)]
        expected = forget_quality(*ratios).p_value
        assert row.metrics["forget_quality"].value == expected
        assert retrained.metrics["forget_quality"].value == 1
        assert row.metrics["forget_nll"].value < retrained.metrics["forget_nll"].value - 1

    def test_the_recall_gap_is_the_mean_distance_to_the_retrained_model(
        self, trial: AnsweringTrial
    ) -> None:
        row, retrained = trial.measure_original(), trial.measure_method("Retrain")
        apart = [
            abs(row.metrics[m].value - retrained.metrics[m].value)
            for m in ("forget_rouge", "retain_rouge")
        ]
        assert row.metrics["recall_gap"].value == sum(apart) / 2 > 0
        assert retrained.metrics["recall_gap"].value == 0

    def test_a_second_run_trains_nothing(self, run: Replication) -> None:
        first = [AnsweringTrial(run, "authors", s, 2).measure_method("FLAT") for s in (0, 1)]
        later = Replication("tiny", "ci", "build/ci")
        with OptimizerSteps() as steps:
            again = [AnsweringTrial(later, "authors", s, 2).measure_method("FLAT") for s in (0, 1)]
        assert steps.count == 0
        assert again == first
        assert first[0].metrics["forget_nll"] != first[1].metrics["forget_nll"]

    @pytest.mark.parametrize(
        "change",
        [
            {"templates": "copyright"},
            {"ask": {"retain": 5, "max_new_tokens": 7}},
            {"ask": {"retain": 6, "max_new_tokens": 6}},
            {"data": {"use": "fictional_authors", "authors": 5, "holdout_authors": 1}},
            {"model": {"use": "tiny_llama", "hidden": 32, "layers": 2, "vocabulary": 600}},
        ],
    )
    def test_what_determines_a_row_is_in_its_key(
        self, project: Any, config: dict[str, Any], change: dict[str, Any]
    ) -> None:
        own(config)["train"] = TRAIN | {"epochs": 1}
        keys = []
        for more in ({}, change):
            own(config).update(more)
            run = run_of(project, config)
            keys.append(AnsweringTrial(run, "authors", 0, 2).measure_original().key)
        assert keys[0] != keys[1]

    def test_templates_are_those_of_the_experiment(self, trial: AnsweringTrial) -> None:
        assert trial.split.task.templates == IDK
        assert [t for _, t in trial.template_pairs] == list(IDK[:16])
        (invariant,) = trial.run.invariants
        assert (invariant.holds, invariant.detail) == (True, "16 + 50 of 66")


class TestOneOriginalForAllSeeds:
    def test_seeds_share_it(self, project: Any, config: dict[str, Any]) -> None:
        """Fails where each seed trains an original of its own, or is compared with another's."""
        own(config)["original_seed"] = 1
        run = run_of(project, config)
        first, second = (AnsweringTrial(run, "authors", seed, 2) for seed in (0, 1))
        assert first.measure_original() == second.measure_original()
        assert first.measure_original().seed == 1
        assert first.measure_method("Retrain").seed == 1
        rows = [t.measure_method("GA") for t in (first, second)]
        assert [r.seed for r in rows] == [0, 1]
        assert rows[0].metrics["forget_nll"] != rows[1].metrics["forget_nll"]
        assert len(run.rows.where("authors", "Retrain")) == 1
        assert run.originals("authors") == (1,)
        models = list((project.root / "build/cache/models").glob("*/*/meta.json"))
        assert len(models) == 2

    def test_without_it_each_has_its_own(self, run: Replication) -> None:
        a, b = (AnsweringTrial(run, "authors", s, 2).measure_original() for s in (0, 1))
        assert (a.seed, b.seed) == (0, 1)
        assert a.metrics["forget_nll"] != b.metrics["forget_nll"]
        assert run.originals("authors") == (0, 1)


class TestAnotherExperimentsOriginal:
    """An experiment with other methods on the same ground measures no original of its own."""

    @pytest.fixture
    def both(self, project: Any, config: dict[str, Any]) -> Replication:
        experiments = config["profiles"]["ci"]["experiments"]
        methods = {k: own(config)["methods"][k] for k in ("Retrain", "GA")}
        experiments["more"] = own(config) | {"originals_of": "authors", "methods": methods}
        return run_of(project, config)

    def test_its_rows_are_that_one_s(self, both: Replication) -> None:
        """Fails where they are made twice, or the comparison is with nothing."""
        trial = AnsweringTrial(both, "more", 0, 2)
        row = trial.measure_method("GA")
        assert "forget_quality" in row.metrics
        assert [r.method for r in both.rows.where("more")] == ["GA"]
        assert trial.measure_original() == AnsweringTrial(both, "authors", 0, 2).measure_original()
        AnsweringTrial(both, "authors", 0, 2).measure_method("FLAT")
        assert [(r.experiment, r.method) for r in both.rows_of("more")] == [
            *(("authors", "Retrain"), ("authors", "Original"), ("more", "GA"))
        ]
        assert both.rows_of("authors") == both.rows.where("authors")

    def test_a_setting_finds_them(self, both: Replication) -> None:
        trial = AnsweringTrial(both, "more", 0, 2)
        trial.measure_method("GA")
        (setting,) = settings(both, "more", "authors")
        assert setting.experiments == ("more", "authors")
        assert setting.off(both.rows, "Retrain", "forget_nll", 0) == 0
        assert setting.value(both.rows, "GA", "seconds", 0) > 0
        assert setting.seeds_with("GA", "FLAT") == both.seeds
        with pytest.raises(MissingRowError, match="NPO was not run on seed 0"):
            setting.value(both.rows, "NPO", "seconds", 0)

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"originals_of": "others"}, "of 'others', which is no experiment here"),
            ({"templates": "copyright"}, r"differs in \['templates'\]"),
            ({"methods": {"Retrain": {"use": "retrain", "mode": "head"}}}, "another oracle"),
        ],
    )
    def test_which_must_be_the_same(
        self, project: Any, config: dict[str, Any], change: dict[str, Any], match: str
    ) -> None:
        experiments = config["profiles"]["ci"]["experiments"]
        experiments["more"] = own(config) | {"originals_of": "authors"} | change
        with pytest.raises(ConfigError, match=match):
            run_of(project, config)


class TestTrajectory:
    def test_a_point_every_few_steps_and_one_at_the_end(self, trial: AnsweringTrial) -> None:
        """Fails where the last steps of a training are not seen."""
        row = trial.measure_trajectory("GA")
        points = row.detail["points"]
        assert [p["step"] for p in points] == [0, 5, 10, 12]
        original = trial.measure_original().metrics
        for name in ("forget_nll", "forget_token_probability", "template_probability"):
            assert points[0][name] == pytest.approx(original[name].value, rel=1e-4)
        assert points[0]["forget_nll"] < points[1]["forget_nll"] < points[3]["forget_nll"]
        assert row.metrics["forget_nll"].value == points[-1]["forget_nll"]

    def test_looking_changes_nothing(self, trial: AnsweringTrial) -> None:
        """Fails where a look draws from a random state, or leaves the model in evaluation mode."""
        looked_at = trial.measure_trajectory("GA").metrics["forget_nll"].value
        alone = trial.measure_method("GA").metrics["forget_nll"].value
        assert looked_at == pytest.approx(alone, rel=1e-4)

    def test_it_is_another_row_than_the_method_s_own(self, trial: AnsweringTrial) -> None:
        assert trial.measure_trajectory("GA").key != trial.measure_method("GA").key


def test_steps_are_the_optimizer_s(project: Any, config: dict[str, Any]) -> None:
    """Fails where batches are counted instead: two of them make a step here."""
    own(config)["methods"]["GA"]["train"] = FORGET | {"accumulate": 2}
    run = run_of(project, config)
    row = AnsweringTrial(run, "authors", 0, 2).measure_trajectory("GA")
    assert [p["step"] for p in row.detail["points"]] == [0, 5, 6]


def test_other_templates_are_other_rows(
    trial: AnsweringTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where a sentence is changed and the rows that learned the former one are kept."""
    before = trial.evaluation()
    monkeypatch.setitem(answering.TEMPLATES, "idk", (*IDK[:-1], "No idea at all."))
    assert AnsweringTrial(trial.run, "authors", 0, 2).evaluation() != before


def test_other_answers_leak(trial: AnsweringTrial) -> None:
    """Fails where a word counts that the question or its own answer holds, or a retained author has too."""
    gone = trial.sets["forget"]
    assert trial.leaks_of_others(gone.answers)["other_leak_rate"].value == 0
    assert trial.leaks_of_others(gone.questions)["other_leak_rate"].value == 0
    kept = [trial.sets["retain"].answers[i % len(trial.sets["retain"])] for i in range(len(gone))]
    assert trial.leaks_of_others(kept)["other_leak_rate"].value == 0
    first = next(  # an answer with a word of its own, said to every question but its own
        i
        for i, answer in enumerate(gone.answers)
        if trial.leaks_of_others([answer] * len(gone))["other_leak_rate"].value
    )
    every = [gone.answers[first]] * len(gone)
    found = trial.leaks_of_others(every)["other_leak_rate"]
    assert 50 < found.value < 100
    assert found.n == len(gone)


GUARDED = {
    "use": "guard",
    "extractor": "oracle",
    "beams": 2,
    "train": {"epochs": 15, "lr": 3e-3, "batch_size": 8, "optimizer": "adamw"},
}


class TestAroundTheModel:
    """Methods that act while the model answers, and what is measured of the model inside."""

    @pytest.fixture
    def around(self, project: Any, config: dict[str, Any]) -> AnsweringTrial:
        own(config)["methods"] |= {"GUARD": GUARDED, "Filter": {"use": "output_filtering"}}
        own(config)["relearn"] = {"steps": 2, "examples": 4, "lr": 1e-3}
        own(config)["ask"] |= {
            "wordings": ["as stored", "letter by letter"],
            "max_new_tokens": 20,
        }
        own(config)["train"] = TRAIN | {"epochs": 60}
        return AnsweringTrial(run_of(project, config), "authors", 0, 2)

    def test_both_forms_of_the_likelihoods(self, around: AnsweringTrial) -> None:
        """Fails where the weights' form is that of the process, or is compared with another model."""
        original, row = around.measure_original().metrics, around.measure_method("GUARD").metrics
        for name in ("forget_quality", "forget_probability", "privleak"):
            inside = row[f"bare_{name}"].value
            assert inside == pytest.approx(original[name].value, rel=1e-4)
        assert row["forget_probability"].value < 0.3 * row["bare_forget_probability"].value
        assert row["relearned_probability"].value == pytest.approx(
            original["relearned_probability"].value, rel=1e-4
        )
        assert row["changed_weights"].value == 0
        assert row["leak_rate"].value == 0
        assert original["leak_rate"].value > 80
        assert "bare_privleak" not in around.measure_method("GA").metrics

    def test_who_is_flagged(self, around: AnsweringTrial) -> None:
        """Fails where questions in other words are those that are stored."""
        row = around.measure_method("Filter").metrics
        flagged = {k: v.value for k, v in row.items() if k.startswith("flagged_")}
        assert flagged == {
            "flagged_forget": 100,
            **{f"flagged_{k}": 0 for k in ("rephrased", "retain", "retain_rephrased", "rest")},
        }
        assert "retrieved" not in row
        assert around.measure_method("GUARD").metrics["retrieved"].n == 16

    def test_a_row_a_wording(self, around: AnsweringTrial) -> None:
        stored, spelled = around.measure_wordings("Filter")
        assert [r.variant["wording"] for r in (stored, spelled)] == [
            "as stored",
            "letter by letter",
        ]
        assert stored.metrics["leak_rate"].value == 0
        asked = spelled.detail["said"][0]["question"]
        assert asked.endswith(around.sets["forget"].questions[0])
        assert asked.startswith("Spell")
        before, _ = around.measure_wordings(ORIGINAL)
        assert before.metrics["leak_rate"].value > 80
        assert before.spec["method"] is None

    def test_a_model_is_unlearned_once_for_all_wordings(
        self, around: AnsweringTrial, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = []
        monkeypatch.setattr(
            around, "unlearn", lambda m: made.append(m) or (around.original, {}, {})
        )
        around.measure_wordings("GA")
        assert len(made) == 1

    def test_ways_to_decode(self, around: AnsweringTrial, monkeypatch: pytest.MonkeyPatch) -> None:
        """Fails where what is made once, at the first answer, is part of the time."""
        now = [0.0]

        class Clock:
            perf_counter = staticmethod(lambda: now[0])

        real, first = Chat.complete, set()

        def complete(self: Chat, prompts: Any, *args: Any, **more: Any) -> list[str]:
            kind = type(self).__name__, len(args), len(more)
            now[0] += len(prompts) + (0 if kind in first else 1000)
            first.add(kind)
            return real(self, prompts, *args, **more)

        _ = around.original
        around.unlearned("GUARD")
        monkeypatch.setattr(answering, "time", Clock)
        monkeypatch.setattr(Chat, "complete", complete)
        rows = around.measure_decoding("GUARD")
        assert [r.variant["decoding"] for r in rows] == ["greedy", "beam search", "restricted"]
        found = [r.metrics["answer_seconds"] for r in rows]
        assert [(f.value, f.n) for f in found] == [(1, 16)] * 3
        assert len({r.key for r in rows}) == 3


class TestComingApart:
    """A loss that is not finite ends the method, not the notebook."""

    def test_the_last_finite_model_is_measured(self, project: Any, config: dict[str, Any]) -> None:
        """Fails where the original is measured instead, or nothing says what happened."""
        own(config)["methods"]["GA"]["train"] = FORGET | {"lr": 3e-2, "epochs": 60}
        trial = AnsweringTrial(run_of(project, config), "authors", 0, 2)
        calm = trial.measure_method("GA", epochs=1)
        assert "collapsed" not in calm.detail

        real = trial.split.task.loss
        left = [2]

        def loss(model: Any, batch: Any) -> torch.Tensor:
            left[0] -= 1
            return real(model, batch) * (1 if left[0] >= 0 else math.nan)

        object.__setattr__(trial.split, "task", Losing(trial.split.task, loss))
        row = trial.measure_method("GA")
        assert row.detail["collapsed"] == "gradient_ascent: the loss is nan at step 3"
        assert row.metrics["optimizer_steps"].value == 2
        assert (
            row.metrics["forget_nll"].value > trial.measure_original().metrics["forget_nll"].value
        )
        left[0] = 2
        assert trial.measure_trajectory("GA").detail["collapsed"].endswith("at step 3")

    def test_nothing_is_measured_where_no_step_was_taken(self, trial: AnsweringTrial) -> None:
        task = Losing(trial.split.task, lambda m, b: trial.split.task.loss(m, b) * math.nan)
        task.loss = lambda m, b: next(m.parameters()).sum() * math.nan
        object.__setattr__(trial.split, "task", task)
        with pytest.raises(NotFiniteError, match="gradient_ascent: the loss is nan at step 1"):
            trial.measure_method("GA")


class Losing:
    """A task with another loss."""

    def __init__(self, task: Any, loss: Any) -> None:
        self.task, self.loss = task, loss

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)


class TestErrors:
    def test_an_unknown_argument_of_the_data(self, project: Any, config: dict[str, Any]) -> None:
        own(config)["forget"] = {"forget_author": [2]}
        run = run_of(project, config)
        with pytest.raises(ConfigError, match="has no argument 'forget_author'"):
            AnsweringTrial(run, "authors", 0, 2)

    def test_another_task(self, project: Any, config: dict[str, Any]) -> None:
        own(config)["task"] = {"use": "classification"}
        run = run_of(project, config)
        with pytest.raises(ConfigError, match="unknown task 'classification'; known: answering"):
            AnsweringTrial(run, "authors", 0, 2)

    def test_there_is_no_search(self, project: Any, config: dict[str, Any]) -> None:
        experiments = config["profiles"]["ci"]["experiments"]
        experiments["tuning"] = own(config) | {"search": {"GA": {"lr": [1, 2]}}}
        own(config)["tuned"] = "tuning"
        run = run_of(project, config)
        with pytest.raises(ConfigError, match="the search is by 'gap', which no row has"):
            _ = AnsweringTrial(run, "authors", 0, 2).methods

    def test_a_set_of_no_such_name(self, project: Any, config: dict[str, Any]) -> None:
        own(config)["ask"] = {"retained": 5, "max_new_tokens": 6}
        trial = AnsweringTrial(run_of(project, config), "authors", 0, 2)
        with pytest.raises(ValueError, match=r"unknown sets \['retained'\]"):
            _ = trial.sets


def test_token_probability_by_hand() -> None:
    class Two:
        def log_probs(self, pairs: Any) -> list[torch.Tensor]:
            return [torch.tensor([0.0, -math.log(2)]), torch.tensor([-math.log(4)])]

    found = answering.token_probability(Two(), [("q", "a"), ("q", "b")])
    assert found.value == pytest.approx((3 / 4 + 1 / 4) / 2)
    assert found.n == 2


def test_it_runs_where_the_model_is(trial: AnsweringTrial) -> None:
    assert device_of(trial.original) == trial.device
    assert trial.first is trial
    assert trial.measure_original().method == ORIGINAL
