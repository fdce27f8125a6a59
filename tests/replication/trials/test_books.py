"""Trials on a book."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from unlearn_core.data import QuestionSet
from unlearn_core.metrics import METRICS
from unlearn_core.replication.run import Replication
from unlearn_core.replication.trials.base import ORIGINAL
from unlearn_core.replication.trials.books import UNTOUCHED, CompletionTrial, verbatim

NAMES = [
    "Ada",
    "Boris",
    "Clara",
    "Dimitri",
    "Elena",
    "Fabian",
    "Greta",
    "Hugo",
    "Irina",
    "Jonas",
    "Katya",
    "Lorenz",
]
VERBS = ["paints", "counts", "hides", "breaks", "carries", "forgets", "sells", "mends"]
THINGS = ["lamps", "keys", "apples", "maps", "shoes", "coins", "letters", "clocks"]


def prose(offset: int, n: int) -> str:
    """Sentences that follow no rule that a model could learn in place of the words."""
    return " ".join(
        f"{NAMES[(7 * i + offset) % 12]} {VERBS[(5 * i + 3 * offset) % 8]} "
        f"{THINGS[(3 * i * i + offset) % 8]}."
        for i in range(n)
    )


@pytest.fixture
def trial(project: Any, tiny: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> CompletionTrial:
    folder = tmp_path / "hub" / "gutenberg"
    folder.mkdir(parents=True)
    for number, first in (("11", 0), ("12", 5)):
        text = "\n".join(f"CHAPTER {i}\n{prose(first + i, 20)}\n" for i in range(2))
        (folder / f"{number}-book.txt").write_text(text)
    monkeypatch.setenv("UNLEARN_HUB", str(tmp_path / "hub"))
    tiny["profiles"]["ci"]["experiments"] = {
        "book": {
            "title": "A book",
            "data": {"use": "gutenberg", "passages": 6, "prompt_words": 5, "answer_words": 4},
            "model": {"use": "tiny_llama", "hidden": 48, "layers": 2, "vocabulary": 700},
            "train": {"epochs": 60, "lr": 3e-3, "batch_size": 8, "optimizer": "adamw"},
            "task": {"use": "answering"},
            "forget": {"forget_chapters": [1]},
            "oracle": "Retrain",
            "templates": "copyright",
            "ask": {"max_new_tokens": 16, "answer_tokens": 12},
            "methods": {
                "Retrain": {"use": "retrain"},
                "GA": {
                    "use": "gradient_ascent",
                    "train": {"epochs": 4, "lr": 1e-3, "batch_size": 8, "optimizer": "adamw"},
                },
                "Filter": {"use": "output_filtering"},
            },
        }
    }
    project.paper("tiny", tiny)
    return CompletionTrial(Replication("tiny", "ci", "build/ci"), "book", 0, 1)


def values(row: Any) -> dict[str, float]:
    return {k: v.value for k, v in row.metrics.items()}


def test_what_a_model_knows_of_a_book(trial: CompletionTrial) -> None:
    """Fails where sides are mixed up, or the attack looks at passages that were learned."""
    before = values(trial.measure_untouched())
    original = values(trial.measure_original())
    retrained = values(trial.measure_method("Retrain"))
    assert {*original} <= METRICS.keys()
    assert before["verbmem"] < 20
    assert min(original["verbmem"], original["retain_verbmem"], retrained["retain_verbmem"]) > 80
    assert retrained["verbmem"] < 60
    assert original["knowmem"] > retrained["knowmem"] + 20
    assert original["forget_perplexity"] < 2 < retrained["forget_perplexity"]
    assert original["holdout_perplexity"] > 2
    assert original["privleak"] < -80
    assert retrained["privleak"] == 0 == retrained["completion_gap"]
    gap = sum(abs(original[m] - retrained[m]) for m in ("completion_bleu", "completion_rouge"))
    assert original["completion_gap"] == pytest.approx(gap)
    assert trial.run.rows.where("book", UNTOUCHED)


def test_methods_are_measured_alike(trial: CompletionTrial) -> None:
    original, ga = values(trial.measure_original()), values(trial.measure_method("GA"))
    assert ga["forget_perplexity"] > 2 * original["forget_perplexity"]
    row = trial.measure_method("Filter")
    filtered = values(row)
    assert filtered["verbmem"] < 5
    assert filtered["bare_forget_perplexity"] == pytest.approx(
        original["forget_perplexity"], rel=1e-4
    )
    assert filtered["bare_privleak"] == pytest.approx(original["privleak"])
    assert filtered["changed_weights"] == 0
    shown = row.detail["said"]["retain_questions"][0]
    assert shown["question"] == trial.data.questions_retain.questions[0]


def test_the_key_tells_what_is_asked(trial: CompletionTrial) -> None:
    evaluation = trial.evaluation()
    assert {"forget", "retain", "holdout", "questions", "retain_questions"} == {
        *evaluation["asked"]
    }
    assert (evaluation["max_new_tokens"], evaluation["answer_tokens"]) == (16, 12)
    assert trial.measure_original().method == ORIGINAL


def test_verbatim_by_hand() -> None:
    """ROUGE-L F: 2 of 4 words in order, 2 of 3; no stemmer."""
    found = verbatim(
        ["one two six", "cats"], QuestionSet(("a", "b"), ("one two three four", "cat"))
    )
    assert found.value == pytest.approx(100 * (2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2) + 0) / 2)
