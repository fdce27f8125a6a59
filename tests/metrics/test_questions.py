"""What is asked of a language model, and what comes of it, on answers that are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from unlearn_core.data import (
    ForgetSplit,
    QuestionData,
    QuestionSet,
    fictional_authors,
    forget_questions,
)
from unlearn_core.metrics import (
    METRICS,
    Answers,
    LeftOutWarning,
    ask,
    evaluate_chat,
    evaluation_sets,
)
from unlearn_core.models import Chat


class Parrot:
    """Gives every answer the log-probabilities, and every question the words, that it was told."""

    def __init__(self, scores: dict[str, list[float]], words: dict[str, str]) -> None:
        self.scores, self.words = scores, words
        self.asked: list[tuple[str, str]] = []

    def log_probs(self, pairs: Sequence[tuple[str, str]], batch_size: int = 16) -> list[Tensor]:
        self.asked += pairs
        return [torch.tensor(self.scores[answer]) for _, answer in pairs]

    def answer(self, questions: Sequence[str], max_new_tokens: int) -> list[str]:
        return [self.words[q] for q in questions]

    def tokenizer(self, text: str, add_special_tokens: bool) -> dict[str, Any]:
        assert not add_special_tokens
        return {"input_ids": [ord(w[0]) for w in text.split()]}


def one(question: str, answer: str, **forms: Any) -> QuestionSet:
    return QuestionSet((question,), (answer,), **{k: (v,) for k, v in forms.items()})


LN2 = math.log(2)
SETS = {
    "forget": one(
        "f?", "red fox", paraphrased="fox, red", wrong=("a dog", "a cat"), spans=("fox",)
    ),
    "retain": one("r?", "blue bird", paraphrased="bird, blue", wrong=("a dog", "a cat")),
    "real_authors": one("a?", "Kafka", wrong=("Homer", "Dante")),
    "world_facts": one("w?", "Paris", wrong=("Rome", "Bern")),
}
SCORES = {
    "red fox": [-LN2, -3 * LN2],
    "fox, red": [-LN2],
    "blue bird": [0.0, 0.0],
    "bird, blue": [-LN2, -LN2],
    "a dog": [-2 * LN2],
    "a cat": [-2 * LN2, -2 * LN2, -2 * LN2],
    "Kafka": [-LN2],
    "Homer": [-2 * LN2],
    "Dante": [-2 * LN2],
    "Paris": [-LN2],
    "Rome": [-LN2],
    "Bern": [-LN2],
}
WORDS = {"f?": "a red dog dog", "r?": "blue bird", "a?": "Kafka", "w?": "it is Paris"}


@pytest.fixture
def parrot() -> Parrot:
    return Parrot(SCORES, WORDS)


class TestByHand:
    def test_what_was_asked(self, parrot: Parrot) -> None:
        """Fails where an answer is scored twice, or one that its question does not have."""
        answers = ask(parrot, SETS)
        assert len(parrot.asked) == len(set(parrot.asked)) == 4 + 4 + 3 + 3
        assert ("f?", "Homer") not in parrot.asked
        forget = answers["forget"]
        assert forget.losses.tolist() == pytest.approx([2 * LN2])
        assert forget.token_probability.tolist() == pytest.approx([(1 / 2 + 1 / 8) / 2])
        assert forget.paraphrased.tolist() == pytest.approx([LN2])
        assert forget.wrong.flatten().tolist() == pytest.approx([2 * LN2, 2 * LN2])
        assert forget.truth_ratios.tolist() == pytest.approx([1 / 2])
        assert forget.log_truth_ratios.tolist() == pytest.approx([-LN2])
        assert forget.said == ("a red dog dog",)
        assert answers["world_facts"].paraphrased.tolist() == pytest.approx([LN2])

    def test_metrics(self, parrot: Parrot) -> None:
        """The nine parts of utility: 1, 1, 1/2 (retained); 1/2, 1, 1/2 (authors); 1/3, 1, and 0."""
        sets = {k: v for k, v in SETS.items() if k != "world_facts"}
        sets["world_facts"] = one("a?", "Kafka", wrong=("Homer", "Dante"))
        found = evaluate_chat(parrot, ask(parrot, sets), templates=("a red cat dog",))
        assert found.keys() <= METRICS.keys()
        parts = [1, 1, 1 / 2, 1 / 2, 1, 1 / 2, 1 / 2, 1, 1 / 2]
        expected = 9 / sum(1 / p for p in parts)
        assert found["model_utility"].value == pytest.approx(expected)
        values = {k: found[k].value for k in found}
        assert values["forget_rouge"] == pytest.approx(1 / 2)
        assert values["retain_rouge"] == 1
        assert values["deviation_score"] == pytest.approx(50)
        assert values["forget_probability"] == pytest.approx(1 / 4)
        assert values["forget_truth_ratio"] == pytest.approx(1 / 2)
        assert values["forget_nll"] == pytest.approx(2 * LN2)
        assert values["retain_nll"] == 0
        assert values["distinct_tokens"] == pytest.approx(3 / 4)
        assert values["refusal_rate"] == 100
        assert values["retain_refusal_rate"] == 0

    def test_one_part_at_zero_is_no_utility(self, parrot: Parrot) -> None:
        """World facts' truth ratio is 1 here: the model can't tell Paris from Rome."""
        assert evaluate_chat(parrot, ask(parrot, SETS))["model_utility"].value == 0

    def test_what_is_no_set(self, parrot: Parrot) -> None:
        with pytest.raises(ValueError, match="bare: there is no question"):
            ask(parrot, {"bare": QuestionSet((), ())})
        with pytest.raises(
            TypeError, match=r"as QuestionSet\.from_pairs makes it, not of type list"
        ):
            ask(parrot, {"bare": [("f?", "red fox")]})


class TestOfOneSOwn:
    """Questions that are not TOFU's."""

    def test_without_wrong_answers(self, parrot: Parrot) -> None:
        """Fails where wrong answers are asked for, or a metric that needs none is left out."""
        sets = {"forget": one("f?", "red fox"), "retain": one("r?", "blue bird")}
        answers = ask(parrot, sets)
        assert parrot.asked == [("f?", "red fox"), ("r?", "blue bird")]
        with pytest.raises(ValueError, match="a truth ratio needs wrong answers"):
            _ = answers["forget"].truth_ratios
        with pytest.warns(LeftOutWarning) as told:
            found = evaluate_chat(parrot, answers)
        (warning,) = told
        assert str(warning.message) == (
            "left out: model_utility (no wrong answers to 'retain'); forget_truth_ratio (no wrong "
            "answers to 'forget')"
        )
        values = {k: e.value for k, e in found.items()}
        assert values == pytest.approx(
            {
                "forget_rouge": 1 / 2,
                "retain_rouge": 1,
                "deviation_score": 50,
                "forget_probability": 1 / 4,
                "forget_token_probability": 5 / 16,
                "forget_nll": 2 * LN2,
                "retain_nll": 0,
                "distinct_tokens": 3 / 4,
            }
        )

    def test_likelihoods_alone_of_one_set(self, parrot: Parrot) -> None:
        answers = ask(parrot, {"retain": SETS["retain"]}, max_new_tokens=None)
        with pytest.warns(
            LeftOutWarning, match=r"retain_rouge, .*\(nothing was said to 'retain'\)"
        ):
            found = evaluate_chat(parrot, answers, templates=("no",))
        assert found.keys() == {"retain_nll"}

    def test_from_pairs_to_metrics(self, learned: tuple[Chat, ForgetSplit]) -> None:
        """The whole way of a user who has pairs, and nothing else."""
        chat, split = learned
        forget, retain = ([*part.questions][:4] for part in (split.forget, split.retain))
        data = QuestionData.from_pairs(forget, retain)
        own = forget_questions(data, chat.encoded)
        assert [*own.forget.questions] == forget
        assert own.unrelated is None
        sets = evaluation_sets(data)
        assert list(sets) == ["forget", "retain"]
        with pytest.warns(LeftOutWarning):
            found = evaluate_chat(chat, ask(chat, sets, 12))
        assert found["forget_rouge"].value > 0.5
        assert all(e.stderr is not None for e in found.values())


class TestErrors:
    """Standard errors of what is made of several means, by the spread over drawn questions."""

    def drawn(self, n: int, seed: int) -> dict[str, Answers]:
        g = torch.Generator().manual_seed(seed)

        def part() -> Answers:
            own = torch.rand(n, generator=g) + 0.2
            words = [" ".join(f"w{i}" for i in range(5))] * n
            said = [int(k) for k in torch.randint(1, 6, (n,), generator=g)]
            return Answers(
                QuestionSet(tuple(f"q{i}" for i in range(n)), tuple(words)),
                tuple(-row[None] for row in own),
                own.double() + 0.1 * torch.rand(n, generator=g).double(),
                own.double()[:, None] + torch.rand(n, 3, generator=g).double(),
                tuple(" ".join(f"w{i}" for i in range(k)) for k in said),
            )

        return {name: part() for name in ("forget", "retain", "real_authors", "world_facts")}

    @pytest.mark.parametrize("metric", ["model_utility", "deviation_score"])
    def test_as_large_as_the_spread(self, metric: str) -> None:
        """Fails where sets are weighed otherwise, or scores of one question taken as independent."""
        tokenizer = Parrot({}, {})
        found = [evaluate_chat(tokenizer, self.drawn(60, seed))[metric] for seed in range(100)]
        spread = torch.tensor([e.value for e in found]).std().item()
        told = torch.tensor([e.stderr for e in found]).mean().item()
        assert told == pytest.approx(spread, rel=0.25)

    def test_of_single_questions_there_is_none(self, parrot: Parrot) -> None:
        assert evaluate_chat(parrot, ask(parrot, SETS))["deviation_score"].stderr is None


class TestSets:
    def test_limits_take_questions_at_equal_distances(self) -> None:
        data = fictional_authors(6, 2, 1)
        sets = evaluation_sets(data, {"retain": 4, "world_facts": 2})
        assert list(sets) == ["forget", "retain", "real_authors", "world_facts"]
        assert [len(q) for q in sets.values()] == [16, 4, len(data.real_authors), 2]
        assert sets["retain"].questions == data.ask_retain.questions[::8]
        assert sets["retain"].wrong == data.ask_retain.wrong[::8]

    def test_an_unknown_set(self) -> None:
        with pytest.raises(ValueError, match=r"unknown sets \['retained'\]; known: forget, retain"):
            evaluation_sets(fictional_authors(6, 2, 1), {"retained": 4})


def test_on_a_model_that_knows_its_answers(learned: tuple[Chat, ForgetSplit]) -> None:
    """Fails where scores or words end up at another question than their own."""
    chat, _ = learned
    data = fictional_authors(authors=2, forget_authors=1, holdout_authors=1)
    answers = ask(chat, evaluation_sets(data), max_new_tokens=24, batch_size=5)
    for name, found in answers.items():
        expected = chat.log_probs(list(found.questions))
        for mine, alone in zip(found.log_probs, expected, strict=True):
            torch.testing.assert_close(mine, alone, rtol=1e-4, atol=1e-4)
        assert list(found.said) == chat.answer(found.questions.questions, 24), name
    assert answers["forget"].recall.mean() > 0.9
    assert answers["retain"].truth_ratios.median() < 1
