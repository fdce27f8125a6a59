"""Restricted symbols on trial, on the smallest model that has all of its parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bs4 import BeautifulSoup

from unlearn_core.metrics import METRICS
from unlearn_core.replication.pages import safety as pages
from unlearn_core.replication.run import Replication
from unlearn_core.replication.trials.base import ORIGINAL
from unlearn_core.replication.trials.safety import SHOWN, SafetyTrial

TRAIN = {"epochs": 1, "lr": 1e-3, "batch_size": 16, "optimizer": "adamw", "max_steps": 2}


@pytest.fixture
def trial(project: Any, tiny: dict[str, Any]) -> SafetyTrial:
    sizes = {"vision_hidden": 16, "vision_layers": 1, "vision_heads": 2}
    tiny["profiles"]["ci"]["experiments"] = {
        "symbols": {
            "title": "Restricted symbols",
            "data": {
                **{"use": "restricted_symbols", "base_images": 12},
                **{"train_images": 12, "val_images": 12},
            },
            "model": {
                "use": "tiny_llava",
                "patch": 16,
                "hidden": 16,
                "layers": 1,
                "heads": 2,
                **sizes,
            },
            "train": TRAIN,
            "tower": TRAIN,
            "task": {"use": "visual_answering"},
            "forget": {"families": ["restricted"]},
            "original_seed": 0,
            "seeds": [1],
            "adapters": {"rank": 2, "alpha": 16, "projector": "multi_modal_projector"},
            "ask": {"max_new_tokens": 4, "times": 2, "batch_size": 16, "known": 2},
            "methods": {
                "PO": {"use": "preference_optimization", "mean": "joint", "train": TRAIN},
                "PO+PD": {"use": "prompt_decouple", "method": "PO"},
            },
        }
    }
    project.paper("tiny", tiny)
    return SafetyTrial(Replication("tiny", "ci", "build/ci"), "symbols", 1, "restricted")


def test_rows(trial: SafetyTrial) -> None:
    """Fails where a set is asked in another's place, or what must stay frozen moves."""
    original = trial.measure_original()
    assert original.metrics.keys() <= METRICS.keys()
    assert original.metrics["attack_success"].n == len(trial.data.train.forget)
    assert original.metrics["unseen_refusal_tone"].n == len(trial.data.val.forget)
    assert original.metrics["vanilla_rouge"].value == pytest.approx(100)  # against itself
    parts = [original.metrics[f"safe_{k}"].value for k in ("refused", "meaningless")]
    assert original.metrics["safe_answer_refusal"].value == pytest.approx(sum(parts))
    before = {k: v.clone() for k, v in trial.original.state_dict().items()}
    row = trial.measure_method("PO+PD")
    assert row.metrics["optimizer_steps"].value == 2
    unlearned = trial.unlearned("PO+PD")
    assert {*unlearned.state_dict()} == {*before}  # adapters are merged and gone
    moved = {k for k, v in unlearned.state_dict().items() if not torch.equal(v, before[k])}
    assert moved
    assert all("vision_tower" not in k and "embed_tokens" not in k for k in moved)
    assert any("multi_modal_projector" in k for k in moved)
    assert any("q_proj" in k for k in moved)
    assert all(torch.equal(v, before[k]) for k, v in trial.original.state_dict().items())


def test_targets_are_the_originals_own_answers(trial: SafetyTrial) -> None:
    """Fails where the gold recipes are unlearned, or an answer that can't be read ends the run."""
    asked = trial.data.train.forget
    said = trial.answers(trial.original, asked)
    for question, gold, own, learned in zip(
        asked.questions, asked.answers, said, trial.split.forget.questions.answers, strict=True
    ):
        try:
            trial.chat.encode(question, own)
        except ValueError:
            assert learned == gold
        else:
            assert learned == own
    assert len(trial.split.forget) == len(trial.split.retain) == len(trial.split.decouple)


def test_the_control_is_a_row_of_its_own(trial: SafetyTrial) -> None:
    """Fails where the control's prompts stay in place for the next method."""
    own = trial.split.decouple.questions.questions
    row = trial.measure_decoupling("PO+PD")
    assert row.variant["decouple"] == "benign prompts"
    assert row.key != trial.measure_method("PO+PD").key
    assert trial.split.decouple.questions.questions == own


def test_the_judge_is_measured_where_the_label_is_known(trial: SafetyTrial) -> None:
    """Fails where the judge of safe images reads answers about restricted ones."""
    row = trial.measure_judge()
    assert row.metrics["judge_agreement"].value == 100
    assert row.metrics["judge_agreement"].n == 2 * 2 * 3


def test_the_structure_is_an_invariant(trial: SafetyTrial) -> None:
    trial.measure_original()
    assert all(i.holds for i in trial.run.invariants)
    names = [i.name for i in trial.run.invariants if i.seed == trial.seed]
    assert names.count("safe images have the forget prompts") == 2
    assert names.count("no image is in training and validation") == 1


def test_only_what_is_adapted_may_change(trial: SafetyTrial) -> None:
    row = trial.measure_original()
    changed = trial.measure_method("PO+PD").metrics["changed_weights"].value
    assert 0 < changed <= row.detail["may_change"] + 1e-9


@pytest.fixture
def measured(trial: SafetyTrial) -> SafetyTrial:
    trial.measure_original()
    for label in trial.methods:
        trial.measure_method(label)
    return trial


def cells(table: Any) -> list[list[str]]:
    page = BeautifulSoup(table.data, "html.parser")
    return [[c.get_text(" ") for c in tr.select("th, td")] for tr in page.select("tr")]


def test_every_family_has_a_picture(trial: SafetyTrial) -> None:
    page = BeautifulSoup(pages.families(trial.run, "symbols").data, "html.parser")
    names = [[c.get_text() for c in tr.select("figcaption")] for tr in page.select("tbody tr")]
    assert names[0] == ["zorb", "quill", "mirk"]
    assert [len(n) for n in names] == [3, 6, 3]
    assert len({img["src"] for img in page.select("img")}) == 12
    assert all(img["alt"] for img in page.select("img"))


def test_the_two_by_two_has_the_same_prompts_in_a_row(trial: SafetyTrial) -> None:
    """Fails where a cell shows another set's question or image."""
    _, recipe, benign = cells(pages.two_by_two(trial.run, "symbols"))
    part = trial.data.train
    for row, both in (
        (recipe, (part.forget, part.decouple)),
        (benign, (part.retain, part.general)),
    ):
        for cell, asked in zip(row[1:], both, strict=True):
            assert asked.questions[0] in cell
            assert asked.answers[0] in cell


def test_beside(measured: SafetyTrial) -> None:
    """Fails where what is said of one image stands under the other, or an answer has a label of
    another: a refusal about an allowed image is over-forgetting, one about a restricted image is not."""
    row = measured.run.rows.row("symbols", "PO", 1, forget="restricted")
    for key in ("unseen", "safe"):
        for k, one in enumerate(row.detail["said"][key][:2]):
            one["said"] = "I cannot answer this question." if k else one["answer"]
    table = pages.beside(measured.run, "symbols", 1, (ORIGINAL, "PO"), pairs=2)
    head, _, po = cells(table)
    asked = measured.asked
    positions = [0, len(asked["safe"]) // SHOWN]
    for k, i in enumerate(positions):
        for j, key in enumerate(("unseen", "safe")):
            assert asked[key].questions[i] in head[1 + 2 * k + j]
    assert [c.split()[-1] for c in po[1:]] == ["unsafe", "normal", "refusal", "refusal"]


def test_an_arrow_from_each_method_to_itself_with_decoupling(measured: SafetyTrial) -> None:
    shown = pages.refusals_and_losses(measured.run, "symbols", ("PO",))
    assert "PO" in shown.data
    assert "SARR" in shown.data
