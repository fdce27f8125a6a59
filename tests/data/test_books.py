"""Books cut into passages, and what of them is to be forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest

from unlearn_core.data import MissingSourceError, QuestionSet, forget_questions, gutenberg, own_text
from unlearn_core.data.books import ALICE, LOOKING_GLASS, chapters, passages


def words(name: str, n: int) -> str:
    return " ".join(f"{name}{i}" for i in range(n))


def book(name: str, count: int, n: int) -> str:
    return "\n\n".join(
        f"  CHAPTER {i}. Of {name}\n\n{words(f'{name}{i}x', n)}" for i in range(count)
    )


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "hub" / "gutenberg"
    folder.mkdir(parents=True)
    (folder / "11-alice.txt").write_text(book("a", 4, 30))
    (folder / "12-glass.txt").write_text(book("g", 3, 30))
    monkeypatch.setenv("UNLEARN_HUB", str(tmp_path / "hub"))
    return folder


def test_chapters_begin_at_their_headings() -> None:
    """Fails where a heading stays in the text, or what stands before the first one is a chapter."""
    text = "Preface\nCHAPTER I\n\nOne.\nThe CHAPTER goes on.\n      CHAPTER II. Two\nTwo.\n"
    assert chapters(text) == ["One.\nThe CHAPTER goes on.", "Two."]


def test_a_table_of_contents_is_no_book() -> None:
    """Fails where every chapter counts twice, the first time without a word."""
    text = "Contents\nCHAPTER I. One\nCHAPTER II. Two\n\nCHAPTER I. One\nText.\nCHAPTER II. Two\nMore.\n"
    with pytest.raises(ValueError, match="chapter 1 has no text: leave out a table of contents"):
        chapters(text)


def test_passages_follow_each_other_and_a_rest_is_dropped() -> None:
    found = passages("a b  c\nd e f g h", 2, 1)
    assert found.answers == ("c", "f")
    assert [q.split(": ")[1] for q in found.questions] == ["a b", "d e"]
    assert len(passages("a b", 2, 1)) == 0


class TestGutenberg:
    def test_three_parts_of_two_books(self, hub: Path) -> None:
        """Fails where a chapter is in two parts, or questions are on the wrong side."""
        data = gutenberg(forget_chapters=2, passages=4, prompt_words=6, answer_words=4)
        assert [len(p) for p in (data.ask_forget, data.ask_retain, data.holdout)] == [4, 4, 4]
        sides = {
            "forget": data.ask_forget.answers,
            "retain": data.ask_retain.answers,
            "holdout": data.holdout.answers,
        }
        starts = {k: {a.split()[0].split("x")[0] for a in v} for k, v in sides.items()}
        assert starts["forget"] == {"a0", "a1"}
        assert starts["holdout"] == {"a2", "a3"}
        assert starts["retain"] <= {"g0", "g1", "g2"}
        gone = data.train.subset(data.forget)
        assert gone.questions == data.ask_forget.questions + tuple(q for q, _ in ALICE)
        assert len(data.train) == 4 + 20 + 4 + 20
        assert data.questions_retain.questions == tuple(q for q, _ in LOOKING_GLASS)
        (source,) = data.sources
        assert (source.id, source.kind) == ("gutenberg", "hub-folder")

    def test_it_is_a_problem_like_others(self, hub: Path) -> None:
        data = gutenberg(2, 4, 6, 4)
        split = forget_questions(data, lambda q: q)
        assert isinstance(split.forget, QuestionSet)
        assert len(split.forget) + len(split.retain) == len(data.train)
        assert not set(split.forget.questions) & set(split.retain.questions)

    @pytest.mark.parametrize("count", [0, 4])
    def test_chapters_must_be_left(self, hub: Path, count: int) -> None:
        with pytest.raises(ValueError, match=f"of 4 chapters {count} can't be forgotten"):
            gutenberg(forget_chapters=count)

    def test_too_many_passages(self, hub: Path) -> None:
        match = "what is to be forgotten: there are 6 passages, 7 were asked for"
        with pytest.raises(ValueError, match=match):
            gutenberg(2, 7, 6, 4)

    def test_a_missing_book(self, hub: Path) -> None:
        (hub / "12-glass.txt").unlink()
        with pytest.raises(MissingSourceError, match="gutenberg: no book 12 in the hub-folder"):
            gutenberg(2)

    def test_two_copies_are_named(self, hub: Path) -> None:
        (hub / "11-zz.txt").write_text(book("z", 4, 30))
        with pytest.raises(ValueError, match=r"11-alice\.txt and 11-zz\.txt are both"):
            gutenberg(2)


class TestQuestions:
    @pytest.mark.parametrize("asked", [ALICE, LOOKING_GLASS])
    def test_twenty_of_each_all_different(self, asked: tuple[tuple[str, str], ...]) -> None:
        assert len({q for q, _ in asked}) == len(asked) == 20
        assert all(q.endswith("?") and a.endswith(".") for q, a in asked)


class TestOwnText:
    def test_a_reader_s_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "forget.txt").write_text(book("f", 3, 30))
        (tmp_path / "retain.txt").write_text(book("r", 2, 30))
        monkeypatch.setenv("UNLEARN_BOOK", str(tmp_path))
        data = own_text(2, passages=3, prompt_words=5, answer_words=5)
        assert {a[:2] for a in data.ask_forget.answers} == {"f0", "f1"}
        assert {a[:2] for a in data.holdout.answers} == {"f2"}
        assert len(data.questions_forget) == 0
        assert data.sources[0].kind == "user"

    def test_without_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("UNLEARN_BOOK", str(tmp_path))
        (tmp_path / "forget.txt").write_text("x")
        with pytest.raises(
            MissingSourceError, match=r"UNLEARN_BOOK names no folder with retain.txt"
        ):
            own_text(1)
