"""Questions and answers: TOFU from the hub's files, and drawn authors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from unlearn_core.data import Answering, ForgetSplit, MissingSourceError, SplitError
from unlearn_core.data.questions import QuestionData, QuestionSet, fictional_authors, tofu
from unlearn_core.models import Chat


def question(author: int, i: int, forms: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"question": f"q{author}.{i}?", "answer": f"a{author}.{i} é"}
    if forms:
        row |= {
            "paraphrased_question": f"pq{author}.{i}",
            "paraphrased_answer": f"pa{author}.{i}",
            "perturbed_answer": [f"w{author}.{i}.{j}" for j in range(5)],
        }
    return row


@pytest.fixture
def tofu_files(hub: Path) -> Path:
    """TOFU's files, with 24 authors in the place of 200: forget10 has the last 3, forget01 one."""
    folder = hub / "locuslab" / "TOFU"
    folder.mkdir(parents=True)

    def write(name: str, authors: range, forms: bool = False) -> None:
        rows = [question(a, i, forms) for a in authors for i in range(20)]
        (folder / f"{name}.json").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    for level, n in (("10", 3), ("01", 1)):
        write(f"forget{level}", range(24 - n, 24))
        write(f"forget{level}_perturbed", range(24 - n, 24), forms=True)
        write(f"retain{100 - int(level)}", range(24 - n))
        write(f"holdout{level}", range(100, 100 + n))
    write("retain_perturbed", range(20), forms=True)
    for name in ("real_authors", "world_facts"):
        rows = [{"question": f"{name}?", "answer": "yes", "perturbed_answer": ["a", "b", "c"]}]
        (folder / f"{name}_perturbed.json").write_text("\n".join(map(json.dumps, rows)))
    return folder


class TestTofu:
    def test_whole(self, tofu_files: Path) -> None:
        data = tofu("forget10")
        assert (len(data.train), len(data.forget), len(data.ask_retain)) == (480, 60, 400)
        gone = data.train.subset(data.forget)
        assert gone.questions == data.ask_forget.questions
        assert gone.answers == data.ask_forget.answers
        assert gone[0] == ("q21.0?", "a21.0 é")
        assert data.ask_forget.wrong[7] == tuple(f"w21.7.{j}" for j in range(5))
        assert data.ask_forget.rephrased[7] == "pq21.7"
        assert data.ask_forget.paraphrased[7] == "pa21.7"
        assert data.real_authors.wrong == (("a", "b", "c"),)
        assert data.real_authors.paraphrased == ()
        assert data.holdout.questions[0] == "q100.0?"
        (source,) = data.sources
        assert (source.id, source.kind) == ("locuslab/TOFU", "hub-folder")

    def test_a_part_keeps_the_last_to_forget_and_the_first_of_the_rest(
        self, tofu_files: Path
    ) -> None:
        """Fails where the authors to forget aren't those of the smaller levels, or what is asked
        about is not what was learned."""
        data = tofu("forget10", authors=6, forget_authors=2)
        authors = list(dict.fromkeys(q[1:].split(".")[0] for q in data.train.questions))
        assert authors == ["0", "1", "2", "3", "22", "23"]
        assert data.forget.tolist() == list(range(80, 120))
        assert data.ask_retain.questions == data.train.questions[:80]
        assert data.ask_forget.questions == data.train.questions[80:]

    def test_what_is_kept_can_be_asked_about_the_first_twenty_authors(
        self, tofu_files: Path
    ) -> None:
        data = tofu("forget01", authors=23)
        assert len(data.train) == 23 * 20
        assert len(data.ask_retain) == 400

    def test_authors_that_are_not_forgotten_are_kept(self, tofu_files: Path) -> None:
        """Fails where they are left out of what the original learns."""
        whole, part = tofu("forget10"), tofu("forget10", forget_authors=2)
        assert part.train.questions == whole.train.questions
        assert part.forget.tolist() == whole.forget.tolist()[-40:]
        assert len(part.ask_forget) == 40

    def test_others_stand_in_for_a_search(self, tofu_files: Path) -> None:
        """Fails where a search sees a question that a result is about, or learns something else."""
        judged, searched = tofu("forget10"), tofu("forget10", stand_in=True)
        assert searched.train == judged.train
        assert searched.forget.tolist() == list(range(340, 400))  # authors 17 to 19
        assert searched.ask_forget == judged.ask_retain.subset(range(340, 400))
        assert searched.ask_forget.questions == searched.train.subset(searched.forget).questions
        assert searched.ask_retain == judged.ask_retain.subset(range(340))
        assert searched.holdout == judged.holdout

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                {"forget": "forget10", "authors": 6, "stand_in": True},
                "nobody can stand in for the 3",
            ),
            ({"forget": "forget02"}, "unknown forget set 'forget02'"),
            ({"forget": "forget10", "forget_authors": 4}, "forget10 has 3 authors"),
            ({"forget": "forget10", "forget_authors": 0}, "forget10 has 3 authors"),
            ({"forget": "forget10", "authors": 3}, "of 3 authors 3 are to be forgotten"),
            (
                {"forget": "forget10", "authors": 30},
                "of 30 authors 3 are to be forgotten; there are 21 others",
            ),
        ],
    )
    def test_what_there_is_not(
        self, tofu_files: Path, arguments: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            tofu(**arguments)

    def test_a_missing_file_and_a_damaged_one(self, tofu_files: Path) -> None:
        file = tofu_files / "forget01_perturbed.json"
        text = file.read_text()
        file.write_text(text[:-3])
        with pytest.raises(ValueError, match=r"forget01_perturbed\.json is no JSON, line by line"):
            tofu("forget01")
        file.unlink()
        with pytest.raises(MissingSourceError, match="no file forget01_perturbed"):
            tofu("forget01")

    def test_lines_end_where_json_lines_end(self, tofu_files: Path) -> None:
        """Fails where a separator of Unicode in an answer ends the line."""
        file = tofu_files / "forget01.json"
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        rows[3]["answer"] = answer = "one\u2028two\u2029three\x85four\x0cfive"
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        file.write_text("\n".join(lines), encoding="utf-8")
        data = tofu("forget01")
        assert data.train.subset(data.forget).answers[3] == answer

    def test_no_source(self, hub: Path) -> None:
        with pytest.raises(MissingSourceError, match="locuslab/TOFU was not found"):
            tofu()


class TestQuestionSet:
    def test_bad_input(self) -> None:
        with pytest.raises(ValueError, match="2 questions, but 1 answers"):
            QuestionSet(("a", "b"), ("c",))
        with pytest.raises(ValueError, match="text 1 of answers is empty"):
            QuestionSet(("a", "b"), ("c", " \n"))
        with pytest.raises(ValueError, match="2 questions, but 1 wrong"):
            QuestionSet(("a", "b"), ("c", "d"), wrong=(("e",),))
        with pytest.raises(ValueError, match="different numbers of wrong answers"):
            QuestionSet(("a", "b"), ("c", "d"), wrong=(("e",), ("f", "g")))
        with pytest.raises(TypeError, match="questions is one text"):
            QuestionSet("ab", ("c", "d"))
        with pytest.raises(TypeError, match="answers must be texts: number 1 is of type NoneType"):
            QuestionSet(("a", "b"), ("c", None))
        with pytest.raises(TypeError, match=r"wrong\[1\] is one text"):
            QuestionSet(("a", "b"), ("c", "d"), wrong=(("e",), "f"))
        with pytest.raises(ValueError, match=r"text 0 of spans\[1\] is empty"):
            QuestionSet(("a", "b"), ("c", "d"), spans=((), ("",)))

    @pytest.mark.parametrize(
        ("forget", "error", "says"),
        [
            ([0, 1], TypeError, "the positions to forget must be a tensor"),
            (torch.tensor([True, False]), TypeError, "must be int64, not torch.bool"),
            (torch.tensor([-1]), ValueError, "at least 0: one is -1"),
            (torch.tensor([40]), ValueError, "must be below 40"),
            (torch.tensor([3, 3]), ValueError, "2 positions, 1 of them different"),
            (
                torch.tensor([], dtype=torch.int64),
                ValueError,
                "of 40 questions some .* 0 positions",
            ),
            (torch.arange(40), ValueError, "and not all"),
        ],
    )
    def test_what_can_not_be_forgotten(
        self, forget: object, error: type[Exception], says: str
    ) -> None:
        """Fails where a position counts from the end, or another one is forgotten."""
        data = fictional_authors(2, 1, 1)
        with pytest.raises(error, match=says):
            replace(data, train=data.train.subset(range(40)), forget=forget)

    def test_right_to_left_and_other_scripts_are_texts(self) -> None:
        pair = QuestionSet(("מי כתב?",), ("夏目漱石",))
        assert pair[0] == ("מי כתב?", "夏目漱石")

    def test_subset_cuts_every_form(self) -> None:
        data = fictional_authors(4, 1, 1)
        part = data.ask_retain.subset(torch.tensor([9, 2]))
        for name in ("questions", "answers", "rephrased", "paraphrased", "wrong", "spans"):
            whole, cut = getattr(data.ask_retain, name), getattr(part, name)
            assert cut == (whole[9], whole[2])
        assert len(part.subset([])) == 0

    def test_joined_and_with_other_answers(self) -> None:
        """Fails where an answer is evaluated by the forms of the one that it replaced."""
        ask = fictional_authors(4, 1, 1).ask_forget
        other = ask.with_answers(["I don't know."] * len(ask))
        assert other.questions == ask.questions
        assert set(other.answers) == {"I don't know."}
        assert (other.paraphrased, other.wrong, other.spans) == ((), (), ())
        both = ask + other
        assert both.questions == ask.questions * 2
        assert both.answers == ask.answers + other.answers
        assert both.wrong == ()

    def test_fingerprint_sees_every_text_and_the_order(self) -> None:
        ask = fictional_authors(4, 1, 1).ask_forget
        backwards = ask.subset(range(len(ask) - 1, -1, -1))
        seen = {s.fingerprint() for s in (ask, backwards, ask.with_answers(ask.answers))}
        assert len(seen) == 3
        assert ask.fingerprint() == fictional_authors(4, 1, 1).ask_forget.fingerprint()


class TestFictionalAuthors:
    def test_what_is_asked_is_what_was_learned(self) -> None:
        data = fictional_authors(authors=6, forget_authors=2, holdout_authors=3)
        assert data.train.subset(data.forget)[5] == data.ask_forget[5]
        assert (len(data.ask_retain), len(data.ask_forget), len(data.holdout)) == (32, 16, 24)
        everything = data.train.questions
        assert len(set(everything)) == len(everything)
        assert {*data.ask_retain.questions, *data.real_authors.questions} < set(everything)
        assert not set(data.holdout.questions) & set(everything)
        assert set(data.ask_retain.rephrased) < set(everything)
        assert not set(data.ask_forget.rephrased) & set(everything)

    def test_forms_are_about_the_same_fact(self) -> None:
        """Fails where a wrong answer is right, the span is not in the answer, or names differ."""
        data = fictional_authors(authors=6, forget_authors=2)
        ask = data.ask_forget
        for i in range(len(ask)):
            (value,) = ask.spans[i]
            assert value in ask.answers[i].rstrip(".").split()
            assert value in ask.paraphrased[i]
            assert ask.paraphrased[i] not in ask.wrong[i]
            assert len(set(ask.wrong[i])) == 5
            assert all(value not in w.rstrip(".").split() for w in ask.wrong[i])
            name = " ".join(ask.answers[i // 8 * 8].split()[:2])
            for text in (ask.questions[i], ask.rephrased[i], ask.paraphrased[i], *ask.wrong[i]):
                assert name in text
            assert ask.rephrased[i] != ask.questions[i]

    def test_a_seed_draws_other_authors(self) -> None:
        one, two, again = (fictional_authors(seed=s) for s in (0, 1, 0))
        assert one.train.fingerprint() == again.train.fingerprint()
        assert one.train.fingerprint() != two.train.fingerprint()

    def test_bad_input(self) -> None:
        with pytest.raises(ValueError, match="cannot forget 4 of 4 authors"):
            fictional_authors(authors=4, forget_authors=4)
        with pytest.raises(ValueError, match="names for 320 authors"):
            fictional_authors(authors=320)


class TestPairs:
    def test_questions_and_answers(self) -> None:
        found = QuestionSet.from_pairs(
            [("Who?", "Ada."), ["When?", "1921."]], wrong=[["Bo."], ["1900."]]
        )
        assert found == QuestionSet(
            ("Who?", "When?"), ("Ada.", "1921."), wrong=(("Bo.",), ("1900.",))
        )

    @pytest.mark.parametrize("pair", ["ab", ("Who?",), ("Who?", "Ada.", "Bo."), 7])
    def test_what_is_no_pair(self, pair: object) -> None:
        with pytest.raises(TypeError, match="pair 1 is a question and its answer, not"):
            QuestionSet.from_pairs([("Who?", "Ada."), pair])

    def test_a_problem(self) -> None:
        """Fails where the two parts change places, or what is asked is not what was given."""
        wrong = QuestionSet.from_pairs([("Who?", "Ada.")], wrong=[["Bo."]])
        data = QuestionData.from_pairs(wrong, [("When?", "1921."), ("Where?", "Here.")])
        assert data.train.questions == ("When?", "Where?", "Who?")
        assert data.forget.tolist() == [2]
        assert data.ask_forget == wrong
        assert data.ask_retain.answers == ("1921.", "Here.")
        assert (data.real_authors, data.world_facts, data.holdout) == (None, None, None)

    def test_what_is_asked_is_what_was_learned(self) -> None:
        train = QuestionSet(("a?", "b?", "c?"), ("1", "2", "3"))
        data = QuestionData(train, torch.tensor([1]))
        assert data.ask_forget.questions == ("b?",)
        assert data.ask_retain.questions == ("a?", "c?")


class TestQuestionsInBoth:
    """Parts of questions that were cut by hand."""

    def test_the_same_pairs_are_refused(self, learned: tuple[Chat, ForgetSplit]) -> None:
        """Fails where what is to be forgotten is trained on as what is kept."""
        chat, _ = learned
        some = QuestionSet(("Who?", "When?", "Where?"), ("Ada.", "1921.", "Here."))
        gone, kept = some.subset([0, 1]), some.subset([1, 2])
        for encode in (lambda questions: questions, chat.encoded):
            with pytest.raises(SplitError, match="mine: forget and retain share 1 questions with"):
                ForgetSplit("mine", Answering(), encode(gone), encode(kept))
        other = kept.with_answers(["1900.", "Here."])
        assert len(ForgetSplit("mine", Answering(), chat.encoded(gone), chat.encoded(other)).retain)
