"""Metrics of nothing, of numbers that are not finite, and of what doesn't belong together."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from unlearn_core.data import (
    Answering,
    ForgetSplit,
    QuestionData,
    fictional_authors,
    forget_questions,
)
from unlearn_core.metrics import (
    Estimate,
    accuracy,
    ask,
    attack_features,
    bleu,
    changed_weights,
    choice_probability,
    confidence_attack,
    denial_rate,
    deviation_score,
    entropy,
    entropy_attack,
    evaluate_chat,
    evaluate_classifier,
    exact_match,
    frechet_distance,
    gap_to_retrained,
    gradient_norms,
    holdout_auc,
    jensen_shannon,
    leak_rate,
    margins,
    mean,
    mean_final_accuracy,
    min_k,
    perplexity,
    privleak,
    refusal_rate,
    rouge_l,
    share,
    svc_attack,
    truth_ratio,
    truth_ratio_score,
    zrf,
    zrf_as_published,
)
from unlearn_core.metrics.shadow import shadow_features
from unlearn_core.metrics.tofu import answer_losses
from unlearn_core.models import Chat, NotFiniteError, SmallCNN

NAN, INF = math.nan, math.inf
LABELS = torch.tensor([0, 1, 2])
PAIRS = (("Who?", "Ada."), ("When?", "1921."))


def logits(bad: float = 0.5) -> Tensor:
    out = torch.arange(9.0).view(3, 3)
    out[1, 2] = bad
    return out


def numbers(bad: float) -> Tensor:
    return torch.tensor([0.5, bad, 0.25])


OF_LOGITS: dict[str, Callable[[Tensor], Any]] = {
    "accuracy": lambda x: accuracy(x, LABELS),
    "entropy": entropy,
    "attack_features": lambda x: attack_features(x, LABELS),
    "entropy_attack, members": lambda x: entropy_attack(x, logits(), logits()),
    "entropy_attack, forget": lambda x: entropy_attack(logits(), logits(), x),
    "confidence_attack": lambda x: confidence_attack((x, LABELS), (x, LABELS), (x, LABELS)),
    "jensen_shannon": lambda x: jensen_shannon(logits(), x),
    "zrf": lambda x: zrf(x, logits()),
    "zrf_as_published": lambda x: zrf_as_published(x, logits()),
    "shadow_features": lambda x: shadow_features(x, LABELS),
}

OF_NUMBERS: dict[str, Callable[[Tensor], Any]] = {
    "mean": mean,
    "svc_attack": lambda x: svc_attack(*[x[:, None]] * 3),
    "truth_ratio": lambda x: truth_ratio(x, torch.ones(3, 2)),
    "truth_ratio, wrong": lambda x: truth_ratio(torch.ones(3), x[:, None]),
    "choice_probability": lambda x: choice_probability(x, torch.ones(3, 2)),
    "min_k": lambda x: min_k([x, torch.ones(3)]),
    "perplexity": lambda x: perplexity([torch.ones(2), x]),
    "holdout_auc": lambda x: holdout_auc(torch.ones(2), x),
    "frechet_distance": lambda x: frechet_distance(torch.eye(3), x[:, None].expand(3, 3)),
}


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("name", OF_LOGITS)
def test_outputs_that_are_not_finite(name: str, bad: float) -> None:
    """Fails where a ruined model has the accuracy of one class's share, or scikit-learn's error."""
    OF_LOGITS[name](logits())
    with pytest.raises(NotFiniteError, match=r"1 of \d (predictions|logits) are not finite"):
        OF_LOGITS[name](logits(bad))


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("name", OF_NUMBERS)
def test_numbers_that_are_not_finite(name: str, bad: float) -> None:
    OF_NUMBERS[name](numbers(0.3))
    with pytest.raises(NotFiniteError, match=r"\d of \d .* are not finite"):
        OF_NUMBERS[name](numbers(bad))


def test_a_class_that_can_not_be_is_a_prediction() -> None:
    """Minus infinity takes a class out: the others are told apart all the same."""
    assert accuracy(logits(-INF), torch.tensor([2, 1, 2])).value == 100
    with pytest.raises(NotFiniteError, match="1 of 2 predictions"):
        accuracy(torch.tensor([[-INF, -INF], [0.0, 1.0]]), torch.tensor([0, 1]))


def test_a_truth_ratio_may_be_infinite_but_is_a_number() -> None:
    """A collapsed model's is infinite, and worth 0: fails where that is refused."""
    assert truth_ratio_score(torch.tensor([INF, 2.0]), True).tolist() == [0, 0.5]
    assert truth_ratio_score(torch.tensor([INF, 0.25]), False).tolist() == [0, 0.75]
    with pytest.raises(NotFiniteError, match="a truth ratio is not a number"):
        truth_ratio_score(torch.tensor([NAN]), True)


def test_losses_of_answers() -> None:
    outputs = torch.zeros(1, 3, 4)
    outputs[0, 1, 0] = NAN
    with pytest.raises(NotFiniteError, match="1 of 1 losses of answers are not finite"):
        answer_losses(outputs, torch.tensor([[-100, 1, 2]]))


@pytest.mark.parametrize("bad", [NAN, -0.1, 1.1, INF])
def test_numbers_out_of_their_range(bad: float) -> None:
    for metric in (
        lambda: deviation_score(bad, 0.5),
        lambda: privleak(bad),
        lambda: privleak(0.5, bad),
    ):
        with pytest.raises(ValueError, match=r"is .*, not in [\[(]0, 1\]"):
            metric()


def test_an_infinite_accuracy_is_missing() -> None:
    with pytest.raises(ValueError, match="the accuracy on task 1 after task 2 is missing"):
        mean_final_accuracy(torch.tensor([[1.0, 0.0], [INF, 1.0]]))


class TestNothing:
    def test_a_share_and_a_mean(self) -> None:
        for of in (share, mean):
            with pytest.raises(ValueError, match="of nothing"):
                of(torch.empty(0))

    @pytest.mark.parametrize(("i", "name"), [*enumerate(("members", "non-members", "targets"))])
    def test_an_attack(self, i: int, name: str) -> None:
        sides = [torch.rand(3, 1) for _ in range(3)]
        sides[i] = torch.empty(0, 1)
        with pytest.raises(ValueError, match=f"an attack needs {name}, and there are none"):
            svc_attack(*sides)

    def test_texts(self) -> None:
        with pytest.raises(ValueError, match="a perplexity of no text"):
            perplexity([])
        with pytest.raises(ValueError, match="0 texts to forget beside 2 that were held out"):
            holdout_auc(torch.empty(0), torch.ones(2))


class TestWhatDoesNotBelongTogether:
    def test_labels(self) -> None:
        for metric in (accuracy, attack_features, shadow_features):
            with pytest.raises(
                ValueError, match="3 predictions and 2 labels don't belong together"
            ):
                metric(logits(), LABELS[:2])

    def test_texts(self) -> None:
        for metric in (rouge_l, bleu):
            with pytest.raises(ValueError, match="1 texts and 2 references don't belong together"):
                metric(["a"], ["a", "b"])
        with pytest.raises(ValueError, match="1 answers and 2 right_answers don't belong together"):
            exact_match(["a"], ["a", "b"])

    @pytest.mark.parametrize("metric", [accuracy, attack_features, shadow_features, margins])
    def test_labels_that_are_no_class(self, metric: Callable[..., Any]) -> None:
        """Fails where an accuracy is 0 as the labels count from 1, say."""
        with pytest.raises(ValueError, match=r"the labels must be below 3, .* one is 3"):
            metric(logits(), LABELS + 1)
        with pytest.raises(ValueError, match="the labels must be at least 0"):
            metric(logits(), LABELS - 1)
        with pytest.raises(TypeError, match=r"the labels must be int64, not torch\.float32"):
            metric(logits(), LABELS.float())
        with pytest.raises(TypeError, match="logits must be a tensor, not of type list"):
            metric(logits().tolist(), LABELS)


class TestOneTextForSeveral:
    """Fails where its letters are what is measured."""

    @pytest.mark.parametrize("metric", [rouge_l, bleu, exact_match])
    def test_pairs(self, metric: Callable[..., Any]) -> None:
        for pair in (("abc", "abc"), (["abc"], "a"), ("a", ["abc"])):
            with pytest.raises(TypeError, match="is one text, not a sequence of texts"):
                metric(*pair)
        with pytest.raises(TypeError, match="must be texts: number 0 is of type NoneType"):
            metric([None], ["a"])
        assert len(torch.as_tensor(metric([""], ["abc"])[:1])) == 1  # nothing was said

    def test_refusals(self) -> None:
        with pytest.raises(TypeError, match="texts is one text"):
            refusal_rate("I can't say.", ["I can't say."])
        with pytest.raises(TypeError, match="templates is one text"):
            refusal_rate(["I can't say."], "I can't say.")
        for rate in (denial_rate, lambda said: leak_rate(said, [["a"]])):
            with pytest.raises(TypeError, match="texts is one text"):
                rate("I can't say.")

    def test_template_answers(self, learned: tuple[Chat, ForgetSplit]) -> None:
        chat, _ = learned
        for make in (
            Answering,
            lambda t: forget_questions(
                QuestionData.from_pairs(PAIRS[:1], PAIRS[1:]), chat.encoded, t
            ),
            lambda t: evaluate_chat(chat, {"forget": None}, t),  # type: ignore[dict-item]
        ):
            with pytest.raises(TypeError, match="templates is one text, not a sequence"):
                make("I don't know.")
        assert Answering(["I don't know."]) == Answering(("I don't know.",))

    def test_answers(self) -> None:
        for metric in (truth_ratio, choice_probability):
            with pytest.raises(ValueError, match=r"2 \w+( answers)? and 3 sets of wrong answers"):
                metric(torch.ones(2), torch.ones(3, 2))

    def test_outputs(self) -> None:
        with pytest.raises(ValueError, match=r"outputs of \(3, 3\) and of \(2, 3\)"):
            zrf(logits(), logits()[:2])

    def test_models(self) -> None:
        with pytest.raises(ValueError, match="not of one architecture"):
            changed_weights(nn.Linear(2, 3), nn.Linear(3, 2))
        assert changed_weights(nn.Linear(2, 3), nn.Linear(2, 3)).n == 9


class TestGap:
    VALUES: ClassVar = {
        n: Estimate(50.0) for n in ("retain_accuracy", "forget_accuracy", "test_accuracy")
    }

    def test_two_attacks(self) -> None:
        with pytest.raises(
            ValueError,
            match="attack on both: the model's is confidence_mia, the retrained one's is entropy_mia",
        ):
            gap_to_retrained(
                {**self.VALUES, "confidence_mia": Estimate(1.0)},
                {**self.VALUES, "entropy_mia": Estimate(1.0)},
            )

    def test_no_attack(self) -> None:
        with pytest.raises(ValueError, match="the model's is none, the retrained one's is none"):
            gap_to_retrained(self.VALUES, self.VALUES)

    def test_an_accuracy_is_missing(self) -> None:
        whole = {**self.VALUES, "shadow_mia": Estimate(1.0)}
        less = {k: v for k, v in whole.items() if k != "test_accuracy"}
        assert gap_to_retrained(whole, whole).value == 0
        with pytest.raises(ValueError, match="no gap without the test_accuracy of the model"):
            gap_to_retrained(less, whole)
        with pytest.raises(ValueError, match="test_accuracy of the retrained one"):
            gap_to_retrained(whole, less)


class TestClassifier:
    @pytest.mark.parametrize("part", ["test", "retain", "forget"])
    def test_a_part_is_missing(self, model: nn.Module, tiny_split: ForgetSplit, part: str) -> None:
        with pytest.raises(ValueError, match=f"split's {part} set, which is missing"):
            evaluate_classifier(model, replace(tiny_split, **{part: None}))

    def test_a_model_that_computes_nothing(self, model: nn.Module, tiny_split: ForgetSplit) -> None:
        with torch.no_grad():
            model.head.weight[0, 0] = NAN
        for random_model in (None, SmallCNN(10, 1, width=4).build(1)):
            with pytest.raises(NotFiniteError, match="not finite"):
                evaluate_classifier(model, tiny_split, random_model=random_model)

    def test_gradients(self, model: nn.Module, tiny_split: ForgetSplit) -> None:
        with torch.no_grad():
            model.head.weight[0, 0] = NAN
        with pytest.raises(NotFiniteError, match="2 of 2 gradient norms are not finite"):
            gradient_norms(model, tiny_split.task.loss, tiny_split.forget, 2)


class TestChat:
    def test_what_is_asked_has_names(self, learned: tuple[Chat, ForgetSplit]) -> None:
        chat, split = learned
        for sets in (split.forget.questions, [("forget", split.forget.questions)]):
            with pytest.raises(
                TypeError, match=r"sets have names, such as \{\"forget\": questions"
            ):
                ask(chat, sets)
        with pytest.raises(
            TypeError, match=r"answers are what ask\(chat, sets\) returns, not a Chat"
        ):
            evaluate_chat({}, chat)  # type: ignore[arg-type]

    def test_a_model_that_computes_nothing(self, learned: tuple[Chat, ForgetSplit]) -> None:
        class Ruined(Chat):
            def log_probs(self, pairs: Any, batch_size: int = 16) -> list[Tensor]:
                return [torch.tensor([-1.0, NAN]) for _ in pairs]

        chat = learned[0]
        sets = {"forget": fictional_authors(2, 1, 1).ask_forget}
        with pytest.raises(
            NotFiniteError, match="log-probabilities of the answers' tokens are not"
        ):
            ask(Ruined(chat.model, chat.tokenizer, chat.template), sets, None)

    def test_a_set_is_missing(self, learned: tuple[Chat, ForgetSplit]) -> None:
        asked = ask(learned[0], {"forget": fictional_authors(2, 1, 1).ask_forget}, None)
        with pytest.raises(
            ValueError, match="no answers to 'forget' and none to 'retain'; known: others"
        ):
            evaluate_chat(learned[0], {"others": asked["forget"]})
        with pytest.raises(ValueError, match="nothing was said: ask with max_new_tokens"):
            _ = asked["forget"].recall
        with pytest.raises(ValueError, match="there is no set of questions to ask"):
            ask(learned[0], {})
