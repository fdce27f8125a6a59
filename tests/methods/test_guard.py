"""GUARD's parts by hand, and on a tiny model that knows what it may not say."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from unlearn_core.data import ForgetSplit, fictional_authors
from unlearn_core.methods import GUARD
from unlearn_core.methods.flagged import FlaggedChat, PromptClassifier, knows, prompt_embeddings
from unlearn_core.methods.guard import GuardedChat, Penalty, key_phrases, said_as
from unlearn_core.metrics import leak_rate
from unlearn_core.models import Chat, SentenceEncoder, TrainConfig

FAST = TrainConfig(epochs=20, lr=3e-3, batch_size=8, optimizer="adamw", weight_decay=0.01)


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder()


class TestKeyPhrases:
    def phrases(self, question: str, answer: str) -> tuple[str, ...]:
        common = Counter({"the": 90, "father": 30, "of": 95, "is": 80, "by": 9})
        return key_phrases(question, answer, common, 100)

    def test_the_paper_s_example(self) -> None:
        """Its extractor, an outside service, finds "civil" and "engineer"."""
        found = self.phrases(
            "What does the father of Hsiao Yun-Hwa do?",
            "The father of Hsiao Yun-Hwa is a civil engineer.",
        )
        assert found == ("civil", "engineer")

    def test_names_titles_and_numbers(self) -> None:
        found = self.phrases("Who wrote it?", 'In 1921 Ada Moreau wrote "The Long Night".')
        assert {"The Long Night", "Ada Moreau", "1921", "wrote"} - {"wrote"} <= set(found)
        assert "wrote" not in found, "the question says it"

    def test_a_word_of_many_answers_is_no_secret(self) -> None:
        assert "by" not in self.phrases("What?", "Made by hand")


class TestPenalty:
    """On letters as tokens: a vocabulary of its own, and spans of one to three of them."""

    class Letters:
        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            assert not add_special_tokens
            return {"input_ids": [ord(c) for c in text.strip()]}

        def decode(self, ids: Sequence[int]) -> str:
            return "".join(map(chr, ids))

    def blocked(self, spans: Sequence[str], said: str, beta: int | None) -> str:
        penalty = Penalty(self.Letters(), [spans], 1, 0, beta, None, None)
        ids = torch.tensor([[ord(c) for c in said]]).long().reshape(1, -1)
        scores = penalty(ids, torch.zeros(1, 128))
        return "".join(chr(i) for i in range(128) if scores[0, i] == -torch.inf)

    def test_the_first_token_is_forbidden_as_in_the_paper(self) -> None:
        assert self.blocked(["cat"], "a ", 1) == "Cc"

    def test_whole_spans_only(self) -> None:
        """Fails where a match is not that of the last tokens, or the span is not ended."""
        assert self.blocked(["cat"], "a ", 9) == ""
        assert self.blocked(["cat"], "a ca", 9) == "t"
        assert self.blocked(["cat"], "ca n", 9) == ""
        assert self.blocked(["cat"], "CA", 9) == "T"

    def test_without_hard_matching_nothing_is(self) -> None:
        assert self.blocked(["cat"], "a ca", None) == ""

    def test_two_tokens(self) -> None:
        assert self.blocked(["cat"], "c", 2) == "a"
        assert self.blocked(["cat"], "", 2) == ""
        assert self.blocked(["x"], "", 2) == "Xx", "a span of one token is complete with it"

    def test_each_prompt_has_its_own_spans_and_beams(self) -> None:
        penalty = Penalty(self.Letters(), [["cat"], ["dog"]], 2, 0, 1, None, None)
        scores = penalty(torch.zeros(4, 0).long(), torch.zeros(4, 128))
        rows = ["".join(chr(i) for i in range(128) if r[i] == -torch.inf) for r in scores]
        assert rows == ["Cc", "Cc", "Dd", "Dd"]

    def test_what_was_asked_does_not_count(self) -> None:
        penalty = Penalty(self.Letters(), [["cat"]], 1, 2, 9, None, None)
        ids = torch.tensor([[ord("c"), ord("a")]])
        assert torch.isfinite(penalty(ids, torch.zeros(1, 128))).all()

    def test_a_word_that_is_near_may_not_end(self, encoder: SentenceEncoder) -> None:
        """Fails where the last word but one is looked at, or the limit is turned around."""
        closing = torch.tensor([ord(" "), ord(".")])

        def ends(said: str, delta: float) -> bool:
            penalty = Penalty(self.Letters(), [["physician"]], 1, 0, None, delta, encoder, closing)
            ids = torch.tensor([[ord(c) for c in said]])
            return bool(torch.isfinite(penalty(ids, torch.zeros(1, 128))[0, closing]).all())

        assert not ends("was a doctor", 0.5)
        assert ends("a doctor of stone", 0.5)
        assert ends("was a doctor", 0.95)
        assert ends("was a", 0.1), "short words are not judged"

    def test_forms(self) -> None:
        assert set(said_as("new York")) == {
            *("new York", " new York", "new york", " new york"),
            *("NEW YORK", " NEW YORK", "New York", " New York"),
        }


class TestEmbeddings:
    def test_padding_does_not_matter(self, learned: tuple[Chat, ForgetSplit]) -> None:
        """Fails where the mean is over the padded length, or the last layer's states are read."""
        chat, _ = learned
        questions = ["Who?", "In which city was Ada Moreau born, and in which year was that?"]
        together = prompt_embeddings(chat, questions)
        for question, z in zip(questions, together, strict=True):
            ids = torch.tensor([chat.tokenizer(question)["input_ids"]])
            with torch.no_grad():
                states = chat.model(ids, output_hidden_states=True).hidden_states[-2]
            torch.testing.assert_close(z, states[0].mean(dim=0), rtol=1e-4, atol=1e-5)

    def test_a_classifier_tells_authors_apart(self, learned: tuple[Chat, ForgetSplit]) -> None:
        chat, split = learned
        forget, retain = (p.questions.questions for p in (split.forget, split.retain))
        classifier = PromptClassifier.fit(chat, forget, retain, FAST, 0)
        assert (classifier.probability(chat, forget) > 0.5).all()
        assert (classifier.probability(chat, retain) < 0.5).all()


class TestFlagged:
    class Shout(FlaggedChat):
        def answer_flagged(self, questions: Sequence[str], *_: Any) -> list[str]:
            return [q.upper() for q in questions]

    def test_only_what_is_flagged_is_answered_otherwise(
        self, learned: tuple[Chat, ForgetSplit]
    ) -> None:
        """Fails where answers end up at other questions than their own."""
        chat, split = learned
        forget, retain = (p.questions.questions for p in (split.forget, split.retain))
        asked = [retain[0], forget[1], retain[2], forget[0]]
        said = self.Shout(chat, flag=knows(forget)).answer(asked, 6)
        assert [said[1], said[3]] == [forget[1].upper(), forget[0].upper()]
        assert [said[0], said[2]] == chat.answer([retain[0], retain[2]], 6)

    def test_nothing_asked(self, learned: tuple[Chat, ForgetSplit]) -> None:
        assert self.Shout(learned[0], flag=knows([])).answer([]) == []

    def test_either_a_classifier_or_a_flag(self, learned: tuple[Chat, ForgetSplit]) -> None:
        with pytest.raises(ValueError, match="either a classifier or a flag"):
            FlaggedChat(learned[0])


@pytest.fixture(scope="module")
def guarded(learned: tuple[Chat, ForgetSplit]) -> GuardedChat:
    return GUARD(beams=3, extractor="oracle", train=FAST)(*learned)


class TestGuarded:
    def test_the_weights_are_the_original_s(
        self, learned: tuple[Chat, ForgetSplit], guarded: GuardedChat
    ) -> None:
        for a, b in zip(learned[0].model.parameters(), guarded.model.parameters(), strict=True):
            assert torch.equal(a, b)

    def test_no_secret_is_said_and_the_rest_is_as_before(
        self, learned: tuple[Chat, ForgetSplit], guarded: GuardedChat
    ) -> None:
        """The original tells nearly all of them."""
        chat, split = learned
        gone, kept = split.forget.questions, split.retain.questions.questions
        before, after = (m.answer(gone.questions, 24) for m in (chat, guarded))
        assert leak_rate(before, gone.spans).float().mean() > 0.7
        assert not leak_rate(after, gone.spans).any()
        assert all(text.strip() for text in after)
        assert guarded.answer(kept, 24) == chat.answer(kept, 24)

    def test_the_nearest_question_is_found_in_other_words(self, guarded: GuardedChat) -> None:
        asked = fictional_authors(authors=2, forget_authors=1, holdout_authors=1).ask_forget
        found = guarded.retrieved(asked.rephrased)
        assert (found == torch.arange(8)).float().mean() >= 0.75

    def test_a_batch_is_answered_as_one_by_one(self, guarded: GuardedChat) -> None:
        """Fails where beams of one prompt meet the spans of another."""
        together = guarded.answer(guarded.questions, 12)
        assert together == [guarded.answer([q], 12)[0] for q in guarded.questions]

    def test_words_are_embedded_once(self, guarded: GuardedChat) -> None:
        guarded.answer(guarded.questions[:2], 12)
        before = guarded.encoder.encoded
        guarded.answer(guarded.questions[:2], 12)
        assert guarded.encoder.encoded == before

    def test_the_likelihood_of_a_secret_is_next_to_nothing(
        self, learned: tuple[Chat, ForgetSplit], guarded: GuardedChat
    ) -> None:
        """One token of each answer completes its secret; the others are the original's."""
        chat, split = learned
        pairs = [split.forget.questions[i] for i in range(8)] + [split.retain.questions[0]]
        found, plain = guarded.log_probs(pairs), chat.log_probs(pairs)
        for mine, own in zip(found[:8], plain[:8], strict=True):
            assert ((mine - own).abs() > 1).sum() == 1
            assert mine.min().item() == pytest.approx(math.log(1e-10))
        torch.testing.assert_close(found[8], plain[8], rtol=1e-4, atol=1e-4)

    def test_copies_are_apart(self, guarded: GuardedChat) -> None:
        other = copy.deepcopy(guarded)
        assert other.model is not guarded.model
        assert other.classifier is not guarded.classifier
        assert other.encoder is guarded.encoder


class TestExtractors:
    @pytest.mark.parametrize(
        ("extractor", "count"), [("oracle", 1), ("key_phrases", 1), ("all_words", 1)]
    )
    def test_every_answer_has_secrets(
        self, learned: tuple[Chat, ForgetSplit], extractor: str, count: int
    ) -> None:
        _, split = learned
        spans = GUARD(extractor=extractor).spans(split)
        assert len(spans) == 8
        assert all(len(s) >= count for s in spans)
        for phrases, (question, _) in zip(spans, split.forget.questions, strict=True):
            assert not any(p.lower() in question.lower() for p in phrases)

    def test_half_of_the_words(self, learned: tuple[Chat, ForgetSplit]) -> None:
        whole, half = (GUARD(extractor=e).spans(learned[1]) for e in ("all_words", "first_half"))
        assert all(h == w[: len(h)] for h, w in zip(half, whole, strict=True))
        assert sum(map(len, half)) < sum(map(len, whole))

    def test_the_key_phrases_hold_the_secret(self, learned: tuple[Chat, ForgetSplit]) -> None:
        split = learned[1]
        for mine, (secret,) in zip(GUARD().spans(split), split.forget.questions.spans, strict=True):
            assert any(secret in p for p in mine)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"extractor": "ner"}, "unknown extractor 'ner'; known: oracle, key_phrases"),
        ({"beams": 0}, "beams and beta must be at least 1"),
        ({"beta": 0}, "beams and beta must be at least 1"),
        ({"delta": 0.0}, r"delta must be in \(0, 1\]"),
    ],
)
def test_bad_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        GUARD(**options)


def test_embeddings_are_of_length_one(encoder: SentenceEncoder) -> None:
    found: Tensor = encoder(["a physician", "a doctor", "a stone"])
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    near, far = found[0] @ found[1], found[0] @ found[2]
    assert near > far + 0.2
