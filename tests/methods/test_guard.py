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
from unlearn_core.methods.guard import (
    TOO_NEAR,
    GuardedChat,
    Penalty,
    Spans,
    forbidden,
    key_phrases,
    said_as,
)
from unlearn_core.methods.inference_time import (
    FlaggedChat,
    Knows,
    PromptClassifier,
    prompt_embeddings,
)
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
        found = self.phrases("Who wrote it?", 'In 1921 Ada Moreau wrote "The Long Night."')
        assert found == ("The Long Night", "Ada Moreau", "1921", "Ada", "Moreau", "Long", "Night")

    def test_what_the_question_says_is_no_secret_unless_asked_for(self) -> None:
        """Fails where a possessive hides a name, or a part of a word counts as the word."""
        question, answer = "Where was Al-Kuwaiti born?", "Al-Kuwaiti's home is Kuwait."
        assert self.phrases(question, answer) == ("home", "Kuwait")
        every = key_phrases(question, answer, Counter(), 100, allow_asked=False)
        assert every == ("Al-Kuwaiti", "home", "Kuwait")

    def test_words_that_many_answers_hold_and_function_words_are_no_secret(self) -> None:
        assert self.phrases("What?", "Carved by the father") == ("Carved",)
        assert self.phrases("What?", "Also within its own genre") == ("genre",)


class TestPenalty:
    """On letters as tokens: a vocabulary of its own, and spans of one to three of them."""

    class Letters:
        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            assert not add_special_tokens
            return {"input_ids": [ord(c) for c in text]}

        def decode(self, ids: Sequence[int]) -> str:
            return "".join(map(chr, ids))

    def blocked(self, spans: Sequence[str], said: str, beta: int | None) -> str:
        penalty = Penalty(self.Letters(), [spans], 1, 0, beta, None, None)  # a space is a token
        ids = torch.tensor([[ord(c) for c in said]]).long().reshape(1, -1)
        scores = penalty(ids, torch.zeros(1, 128))
        return "".join(chr(i) for i in range(128) if scores[0, i] == -torch.inf)

    def test_the_first_token_is_forbidden_as_in_the_paper(self) -> None:
        assert self.blocked(["cat"], "a ", 1) == "Cc"
        assert self.blocked(["cat"], "", 1) == "Cc"
        assert self.blocked(["cat"], "(", 1) == "Cc"

    def test_a_word_has_to_begin_there(self) -> None:
        """Fails where a letter is forbidden in the middle of every other word."""
        assert self.blocked(["cat"], "s", 1) == ""
        assert self.blocked(["cat"], "9", 1) == ""

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

    def test_a_token_that_brings_its_space_is_forbidden_anywhere(
        self, learned: tuple[Chat, ForgetSplit]
    ) -> None:
        """On a byte-level tokenizer, where a word after a space is another token."""
        tokenizer = learned[0].tokenizer
        spans = Spans.of(tokenizer, ["Paris"])
        for span in (*spans.spaced, *spans.bare):
            assert tokenizer.decode(list(span)).strip().lower() == "paris"
            assert tokenizer.decode([span[0]]).strip()
        (spaced,) = {s for s in spans.spaced if tokenizer.decode(list(s)) == " Paris"}
        assert spaced[0] in forbidden([5], spans, 1, apart=False)
        bare = {s[0] for s in spans.bare} - {s[0] for s in spans.spaced}
        assert not bare & forbidden([5], spans, 1, apart=False)
        assert bare <= forbidden([5], spans, 1, apart=True)

    def test_a_tokenizer_whose_spaces_are_marks(self) -> None:
        """As sentencepiece has it: a lone mark is no beginning of a phrase."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        pieces = ["<unk>", "▁", "▁Paris", "▁paris", "P", "▁PARIS", "A", "R", "I", "S", "▁8", "8"]
        made = Tokenizer(models.WordLevel({p: i for i, p in enumerate(pieces)}, "<unk>"))
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
        spans = Spans.of(tokenizer, ["Paris"])
        assert spans.first(1) == {2, 3, 5}

    def test_words_may_begin_where_only_whole_phrases_are_forbidden(self) -> None:
        spans = Spans.of(self.Letters(), ["cat", "x"])
        assert spans.first(1) == {ord(c) for c in "cCxX"}
        assert spans.first(2) == {ord(c) for c in "xX"}

    def test_each_prompt_has_its_own_spans_and_beams(self) -> None:
        penalty = Penalty(self.Letters(), [["cat"], ["dog"]], 2, 0, 1, None, None)
        scores = penalty(torch.zeros(4, 0).long(), torch.zeros(4, 128))
        rows = ["".join(chr(i) for i in range(128) if r[i] == -torch.inf) for r in scores]
        assert rows == ["Cc", "Cc", "Dd", "Dd"]

    def test_what_was_asked_does_not_count(self) -> None:
        penalty = Penalty(self.Letters(), [["cat"]], 1, 2, 9, None, None)
        ids = torch.tensor([[ord("c"), ord("a")]])
        assert torch.isfinite(penalty(ids, torch.zeros(1, 128))).all()

    def test_a_row_whose_word_is_near_loses(self, encoder: SentenceEncoder) -> None:
        """Fails where the last word but one is looked at, the limit is turned around, another row pays,
        or the word may go on as another one."""

        def costs(said: Sequence[str], delta: float) -> list[bool]:
            spans = [["physician"], ["banana"]]
            penalty = Penalty(self.Letters(), spans, len(said) // 2, 0, None, delta, encoder)
            longest = max(map(len, said))
            ids = torch.tensor([[ord(c) for c in t.rjust(longest)] for t in said])
            scores = penalty(ids, torch.zeros(len(said), 128))
            assert ((scores == 0) | (scores == -TOO_NEAR)).all()
            return [bool((row < 0).all()) for row in scores]

        assert costs(["was a doctor", "a doctor of stone", "was a doctor", "bananas"], 0.5) == [
            *(True, False, False, True)
        ]
        assert costs(["was a doctor", "was a doctor"], 0.95) == [False, False]
        assert costs(["was a", "was a"], 0.1) == [False, False], "short words are not judged"

    def test_where_all_are_near_the_likeliest_is_left(self, encoder: SentenceEncoder) -> None:
        penalty = Penalty(self.Letters(), [["physician"]], 1, 0, None, 0.5, encoder)
        ids = torch.tensor([[ord(c) for c in "doctor"]])
        scores = torch.randn(1, 128, generator=torch.Generator().manual_seed(0))
        assert penalty(ids, scores).argmax() == scores.argmax()

    def test_forms(self) -> None:
        assert said_as("new York") == ["new York", "new york", "NEW YORK", "New York"]


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

    def test_dropout_does_not_matter_either(self, learned: tuple[Chat, ForgetSplit]) -> None:
        """Fails where a model is read in training mode, or left in another mode than before."""
        chat, split = learned
        before = prompt_embeddings(chat, split.forget.questions.questions[:2])
        noisy = copy.deepcopy(chat)
        noisy.model.model.embed_tokens = torch.nn.Sequential(
            noisy.model.model.embed_tokens, torch.nn.Dropout(0.5)
        )
        noisy.train()
        found = prompt_embeddings(noisy, split.forget.questions.questions[:2])
        torch.testing.assert_close(found, before)
        assert noisy.model.training


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
        said = self.Shout(chat, flag=Knows(tuple(forget))).answer(asked, 6)
        assert [said[1], said[3]] == [forget[1].upper(), forget[0].upper()]
        assert [said[0], said[2]] == chat.answer([retain[0], retain[2]], 6)

    def test_looking_inside_changes_no_mode(self, learned: tuple[Chat, ForgetSplit]) -> None:
        flagged = self.Shout(learned[0], flag=Knows(())).eval()
        flagged.bare.log_probs([("a?", "b")])
        assert not flagged.model.training
        assert not flagged.bare.training

    def test_nothing_asked(self, learned: tuple[Chat, ForgetSplit]) -> None:
        assert self.Shout(learned[0], flag=Knows(())).answer([]) == []

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

    def test_tokens_are_forbidden_by_hard_matching_alone(self, guarded: GuardedChat) -> None:
        firsts = [len(Spans.of(guarded.tokenizer, p).first(1)) for p in guarded.spans]
        assert guarded.forbidden_tokens == sum(firsts) / 8 > 1
        soft = copy.copy(guarded)
        soft.__dict__.pop("forbidden_tokens")
        soft.beta = None
        assert soft.forbidden_tokens == 0

    def test_copies_are_apart(self, guarded: GuardedChat) -> None:
        other = copy.deepcopy(guarded)
        assert other.model is not guarded.model
        assert other.classifier is not guarded.classifier
        assert other.encoder is guarded.encoder


class TestExtractors:
    @pytest.mark.parametrize("extractor", ["oracle", "key_phrases", "all_words"])
    def test_every_answer_has_secrets_that_its_question_does_not_tell(
        self, learned: tuple[Chat, ForgetSplit], extractor: str
    ) -> None:
        _, split = learned
        spans = GUARD(extractor=extractor).spans(split)
        assert len(spans) == 8
        for phrases, (question, _) in zip(spans, split.forget.questions, strict=True):
            assert phrases
            asked = {w.strip("?.,").lower() for w in question.split()}
            assert not {p.lower() for p in phrases} & asked

    def test_every_word_whatever_the_question_says(self, learned: tuple[Chat, ForgetSplit]) -> None:
        split = learned[1]
        spans = GUARD(extractor="all_words", allow_asked=False).spans(split)
        for phrases, (_, answer) in zip(spans, split.forget.questions, strict=True):
            assert set(phrases) == {w.strip(".") for w in answer.split()}

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
        ({"extractor": "ner"}, "extractor must be 'oracle' or .*, not 'ner'"),
        ({"beams": 0}, "beams must be at least 1, not 0"),
        ({"beta": 0}, "beta must be at least 1 or None, not 0"),
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
