"""Baselines that leave the weights alone: what the model is asked instead, and what it says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from unlearn_core.data import ForgetSplit
from unlearn_core.methods import ICUL, FilterPrompting, OutputFiltering, Prompting
from unlearn_core.methods.baselines.prompting import INSTRUCTION, REFUSAL
from unlearn_core.models import Chat, TrainConfig

Learned = tuple[Chat, ForgetSplit]


def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every question that the original's own `answer` gets to see."""
    seen: list[str] = []

    def answer(self: Chat, questions: Sequence[str], *_: Any) -> list[str]:
        seen.extend(questions)
        return [f"<{i}>" for i, _ in enumerate(questions)]

    monkeypatch.setattr(Chat, "answer", answer)
    return seen


def test_an_instruction_before_what_is_to_be_forgotten_alone(
    learned: Learned, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat, split = learned
    gone, kept = split.forget.questions.questions[2], split.retain.questions.questions[4]
    prompted = Prompting()(chat, split)
    seen = asked(monkeypatch)
    prompted.answer([gone, kept], 6)
    assert set(seen) == {INSTRUCTION + gone, kept}


def test_a_classifier_decides_too(learned: Learned, monkeypatch: pytest.MonkeyPatch) -> None:
    chat, split = learned
    config = TrainConfig(epochs=20, lr=3e-3, batch_size=8, optimizer="adamw")
    prompted = FilterPrompting(train=config)(chat, split)
    gone, kept = (p.questions.questions[:4] for p in (split.forget, split.retain))
    seen = asked(monkeypatch)
    prompted.answer([*gone, *kept], 6)
    assert set(seen) == {*(INSTRUCTION + q for q in gone), *kept}


def test_a_refusal_for_what_is_to_be_forgotten(learned: Learned) -> None:
    chat, split = learned
    gone, kept = split.forget.questions, split.retain.questions
    filtered = OutputFiltering()(chat, split)
    said = filtered.answer([gone.questions[0], kept.questions[0]], 12)
    assert said == [REFUSAL, chat.answer([kept.questions[0]], 12)[0]]
    scores = filtered.log_probs([gone[0], kept[0]])
    expected = chat.log_probs([gone[0], kept[0]])
    assert scores[0].tolist() == pytest.approx([math.log(1e-10)] * len(expected[0]))
    assert torch.allclose(scores[1], expected[1], atol=1e-5)


def test_examples_of_both_kinds(learned: Learned, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a wrong answer is the right one, or what is kept is shown with a wrong one."""
    chat, split = learned
    gone, kept = split.forget.questions, split.retain.questions
    taught = ICUL(wrong=2, right=3)(chat, split, seed=3)
    seen = asked(monkeypatch)
    taught.answer([gone.questions[1], kept.questions[1]], 6)
    (long,) = (q for q in seen if q != kept.questions[1])
    *examples, question = long.split("\n\n")
    assert question == gone.questions[1]
    pairs = [tuple(e.split("\n")) for e in examples]
    true = dict(gone) | dict(kept)
    assert len(pairs) == 5
    assert [true[q] == a for q, a in pairs] == [False, False, True, True, True]
    assert {a for _, a in pairs[:2]} <= set(gone.answers)


@pytest.mark.parametrize("method", [Prompting(), ICUL(right=2)], ids=["prompting", "icul"])
def test_likelihoods_are_those_after_the_longer_prompt(learned: Learned, method: Any) -> None:
    """Fails where pairs are mixed up, or the true likelihood of a flagged answer is reported."""
    chat, split = learned
    gone, kept = split.forget.questions, split.retain.questions
    other = method(chat, split)
    pairs = [kept[0], gone[0], kept[1], gone[3]]
    found, plain = other.log_probs(pairs), chat.log_probs(pairs)
    for i in (0, 2):
        assert torch.allclose(found[i], plain[i], atol=1e-4)
    for i in (1, 3):
        (alone,) = chat.log_probs([(other.before + pairs[i][0], pairs[i][1])])
        assert torch.allclose(found[i], alone, atol=1e-4)
        assert not torch.allclose(found[i], plain[i], atol=1e-2)
