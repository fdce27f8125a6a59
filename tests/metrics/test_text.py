"""What a generated text shares with the true one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from unlearn_core.metrics.text import (
    bleu,
    denial_rate,
    distinct_tokens,
    leak_rate,
    perplexity,
    rouge_l,
    secret_words,
)

GOLDENS = Path(__file__).parents[1] / "data_files" / "goldens" / "_llm_metrics"


def test_rouge_recorded() -> None:
    items = json.loads((GOLDENS / "tofu_rouge_1.json").read_text())["items"]
    said, true = ([item[k] for item in items] for k in ("generation", "reference"))
    for of, name in (("recall", "rougeL_recall"), ("fmeasure", "rougeL_f1")):
        expected = [item[name] for item in items]
        assert rouge_l(said, true, of=of).tolist() == pytest.approx(expected, abs=1e-9)


def test_recall_does_not_mind_more_words() -> None:
    true, more = ["The tide turned"], ["Some say the tide turned early"]
    assert rouge_l(more, true).item() == 1
    assert rouge_l(more, true, of="fmeasure").item() == pytest.approx(2 * 3 / 9)
    assert rouge_l(true, more).item() == pytest.approx(3 / 6)


def test_stems() -> None:
    assert rouge_l(["writing"], ["writes"]).item() == 1
    assert rouge_l(["writing"], ["writes"], stem=False).item() == 0


def test_another_script_scores_zero() -> None:
    assert rouge_l(["שלום עולם"], ["שלום עולם"]).item() == 0


def test_another_part_of_rouge() -> None:
    with pytest.raises(ValueError, match="'recall' or 'fmeasure', not 'precision'"):
        rouge_l(["a"], ["a"], of="precision")


def test_bleu_is_of_each_text() -> None:
    """By hand: 4 of 5 words, 3 of 4 pairs, 2 of 3 triples, 1 of 2 fours; as long as the reference."""
    found = bleu(["one two three four six", "x y z"], ["one two three four five", "x y z"])
    by_hand = 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert found[0].item() == pytest.approx(by_hand)
    assert found[1].item() == 0, "fewer than four words"


def test_perplexity_counts_tokens_not_texts() -> None:
    two = [torch.log(torch.tensor([0.5, 0.5, 0.5])), torch.log(torch.tensor([0.125]))]
    assert perplexity(two) == pytest.approx(math.exp((3 * math.log(2) + math.log(8)) / 4))


def test_leaks_are_whole_words_in_any_case() -> None:
    said = ["She wrote DUNE in June.", "undune", "A (civil engineer)!", "", "C++ it is", "é1987"]
    spans = [["Dune"], ["dune"], ["poet", "civil engineer"], ["x"], ["C++"], ["1987"]]
    assert leak_rate(said, spans).tolist() == [True, False, True, False, True, False]


def test_leaks_may_be_spelled() -> None:
    """Fails where letters of several words make one, or a phrase without a letter is always said."""
    said = ["P a r i s", "P-A-R-I-S!", "spar is", "Paris", "New  Y.o.r.k", "anything", ""]
    spans = [["Paris"], ["paris"], ["Paris"], ["Paris"], ["New York"], ["..."], ["…"]]
    assert leak_rate(said, spans, spelled=True).tolist() == [
        *(True, True, False, True, True, False, False)
    ]
    assert leak_rate(said, spans).tolist() == [False, False, False, True, False, False, False]


class TestSecretWords:
    def secrets(self, question: str, answers: list[str], wrong: list[str]) -> tuple[str, ...]:
        return secret_words(question, answers, wrong)

    def test_what_tells_the_right_answer_from_the_wrong_ones(self) -> None:
        """Fails where a word of a wrong answer, of the question or of one wording alone counts."""
        found = self.secrets(
            "What did the father of Ada do?",
            ["Ada's father was a skilled florist in Rome.", "A florist in Rome her father was."],
            ["Ada's father was a baker in Rome.", "A judge."],
        )
        assert found == ("florist",)

    def test_function_words_and_short_ones_are_none(self) -> None:
        assert self.secrets("Who?", ["It is also an ox."], ["He was."]) == ()

    def test_a_possessive_is_the_word(self) -> None:
        assert self.secrets("Who?", ["Ada’s cat", "The cat of Ada"], ["A dog"]) == ("ada", "cat")


def test_distinct_tokens() -> None:
    found = distinct_tokens([[1, 1, 1, 1], [1, 2, 3], []])
    assert found.tolist() == pytest.approx([0.25, 1, 0])


def test_denials_in_whatever_words() -> None:
    """Fails where a bare negation is a denial, or only the templates' own words are."""
    denied = [
        "The information is not available.",
        "In his French literature, I'm afraid to disclose.",
        "I don’t have the capability to provide that information.",
        "Author is not known.",
        "Unknown.",
    ]
    answered = [
        "He is not a doctor.",
        "He never married.",
        "No, she was born in Lima.",
        "",
    ]
    assert denial_rate(denied).all()
    assert not denial_rate(answered).any()
