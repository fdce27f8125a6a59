"""Two public-domain books in passages to complete, and questions about them (FLAT, GUARD).

They stand in for the copyrighted texts of MUSE (Shi et al., 2024; arXiv 2407.06460) and of the Harry Potter
task of FLAT: the first chapters of *Alice's Adventures in Wonderland* are to be forgotten, the others of its
chapters are never learned, and *Through the Looking-Glass* is kept. A passage is its beginning, to be
completed, and its continuation; the questions were written for this project.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .loading import evenly_spaced
from .questions import QuestionSet, check_forget
from .registered import table_of
from .sources import MissingSourceError, Source, file_sha256, resolve

__all__ = [
    "ALICE",
    "BOOKS",
    "LOOKING_GLASS",
    "BookData",
    "chapters",
    "gutenberg",
    "own_text",
    "passages",
]

INSTRUCTION = "Complete this text: {}"

#: About chapters 1 to 6 of Alice's Adventures in Wonderland.
ALICE = (
    ("Where does the White Rabbit take his watch from?", "Out of his waistcoat-pocket."),
    ("What is written on the label of the jar that Alice takes from a shelf?", "Orange marmalade."),
    ("What is Alice's cat called?", "Dinah."),
    ("What lies on the three-legged table of glass?", "A tiny golden key."),
    ("What do the words on the little bottle say?", "Drink me."),
    ("With what is 'Eat me' written on the small cake?", "With currants."),
    ("What does the White Rabbit carry besides his fan?", "A pair of white kid gloves."),
    ("What does Alice swim in when she has become small?", "In the pool of her own tears."),
    ("Which animal swims beside Alice in the pool?", "A mouse."),
    ("Who proposes the caucus-race?", "The Dodo."),
    ("Who wins the caucus-race?", "Everybody has won, and all must have prizes."),
    ("What prize does Alice get after the caucus-race?", "Her own thimble."),
    ("For whom does the White Rabbit take Alice?", "For his housemaid, Mary Ann."),
    ("Which lizard is sent down the chimney?", "Bill."),
    ("What do the pebbles that are thrown at Alice turn into?", "Little cakes."),
    ("What does the Caterpillar sit on?", "On a mushroom."),
    ("What does the Caterpillar smoke?", "A long hookah."),
    ("For what does the Pigeon take Alice?", "For a serpent."),
    ("Into what does the Duchess's baby turn?", "Into a pig."),
    ("What is the last of the Cheshire Cat to vanish?", "Its grin."),
)

#: About Through the Looking-Glass.
LOOKING_GLASS = (
    ("Which kitten is to blame for the mischief?", "The black kitten."),
    ("What is the black kitten called?", "Kitty."),
    ("Which poem can only be read in a looking-glass?", "Jabberwocky."),
    ("Which flower is the first to speak to Alice?", "The Tiger-lily."),
    ("What does the Red Queen give Alice to quench her thirst?", "A biscuit."),
    ("What does the ground that Alice sees from the hill look like?", "Like a large chess-board."),
    ("What insect talks to Alice in the wood?", "A Gnat, about the size of a chicken."),
    ("What is forgotten in the wood where Alice meets the Fawn?", "The names of things."),
    ("What do Tweedledum and Tweedledee fight about?", "About a new rattle."),
    ("Who eats all the oysters?", "The Walrus and the Carpenter."),
    ("Whose dream is Alice part of, as Tweedledee says?", "The Red King's."),
    ("In which way does the White Queen live?", "Backwards."),
    ("Into what does the White Queen turn in the shop?", "Into a Sheep that knits."),
    ("What does Humpty Dumpty sit on?", "On a high, narrow wall."),
    ("What kind of present did Humpty Dumpty get?", "An un-birthday present."),
    ("What do the Lion and the Unicorn fight for?", "For the crown."),
    (
        "What must be done with the Looking-Glass cake first?",
        "It must be handed round, and cut afterwards.",
    ),
    ("Who keeps falling off his horse?", "The White Knight."),
    ("What is on Alice's head when she has crossed the last brook?", "A golden crown."),
    ("Into what does Alice shake the Red Queen?", "Into a kitten."),
)


@dataclass(frozen=True)
class BookData:
    """An unlearning problem of books.

    Attributes
    ----------
    train : passages and questions of both books; those of what is kept come first
    forget : positions in ``train`` of what is to be forgotten (int64)
    ask_forget, ask_retain : the passages of both
    questions_forget, questions_retain : the questions about both
    holdout : passages of chapters that nobody learns
    """

    train: QuestionSet
    forget: Tensor
    ask_forget: QuestionSet
    ask_retain: QuestionSet
    questions_forget: QuestionSet
    questions_retain: QuestionSet
    holdout: QuestionSet
    sources: tuple[Source, ...] = ()

    def __post_init__(self) -> None:
        check_forget(self.forget, self.train)


def chapters(text: str) -> list[str]:
    """The chapters of a text, whose headings are lines that begin with CHAPTER.

    Raises
    ------
    ValueError
        One has no text, as in a table of contents.
    """
    parts = [part.strip() for part in re.split(r"(?m)^[ \t]*CHAPTER\b[^\n]*\n", text)[1:]]
    if "" in parts:
        raise ValueError(
            f"chapter {parts.index('') + 1} has no text: leave out a table of contents, whose lines begin "
            "with CHAPTER too"
        )
    return parts


def passages(text: str, prompt_words: int, answer_words: int) -> QuestionSet:
    """A text as passages one after the other: so many words to complete, and so many that follow.

    What is left at the end is too short for a passage and is dropped.
    """
    words = text.split()
    size = prompt_words + answer_words
    starts = range(0, len(words) - size + 1, size)
    return QuestionSet(
        tuple(INSTRUCTION.format(" ".join(words[i : i + prompt_words])) for i in starts),
        tuple(" ".join(words[i + prompt_words : i + size]) for i in starts),
    )


def _some(found: list[QuestionSet], count: int, what: str) -> QuestionSet:
    """So many of the passages of some chapters, at equal distances."""
    every = QuestionSet((), ())
    for part in found:
        every = every + part
    if not 0 < count <= len(every):
        raise ValueError(f"{what}: there are {len(every)} passages, {count} were asked for")
    return every.subset(evenly_spaced(len(every), count))


def _data(
    gone: list[str],
    kept: list[str],
    unseen: list[str],
    count: int,
    words: tuple[int, int],
    questions: tuple[QuestionSet, QuestionSet],
    source: Source,
) -> BookData:
    cut = [[passages(text, *words) for text in part] for part in (gone, kept, unseen)]
    names = ("what is to be forgotten", "what is kept", "what nobody learns")
    forget, retain, holdout = (_some(p, count, n) for p, n in zip(cut, names, strict=True))
    ask_gone, ask_kept = questions
    train = retain + ask_kept + forget + ask_gone
    first = len(retain) + len(ask_kept)
    return BookData(
        train=train,
        forget=torch.arange(first, len(train)),
        ask_forget=forget,
        ask_retain=retain,
        questions_forget=ask_gone,
        questions_retain=ask_kept,
        holdout=holdout,
        sources=(source,),
    )


def gutenberg(
    forget_chapters: int = 6,
    passages: int = 40,
    prompt_words: int = 40,
    answer_words: int = 40,
) -> BookData:
    """The first chapters of *Alice* to forget, *Through the Looking-Glass* to keep.

    Parameters
    ----------
    forget_chapters : how many of Alice's twelve chapters are to be forgotten; the others are never
        learned. The questions are about the first six
    passages : how many of each of the three parts, at equal distances
    prompt_words, answer_words : of a passage

    Raises
    ------
    MissingSourceError
        The books are in none of the places where data are looked for.
    ValueError
        As many chapters, or more, are to be forgotten as the book has.
    """
    source = resolve("gutenberg", repo_type="dataset", patterns=("*.txt",))
    texts = {}
    for number in ("11", "12"):
        found = sorted(source.path.glob(f"{number}-*.txt"))
        if not found:
            raise MissingSourceError(f"gutenberg: no book {number} in the {source.kind}")
        if len(found) > 1:
            names = " and ".join(f.name for f in found)
            raise ValueError(f"gutenberg: {names} are both book {number}; leave one")
        texts[number] = chapters(found[0].read_text(encoding="utf-8"))
    alice, other = texts["11"], texts["12"]
    if not 0 < forget_chapters < len(alice):
        raise ValueError(f"of {len(alice)} chapters {forget_chapters} can't be forgotten")
    sets = tuple(QuestionSet(*map(tuple, zip(*q, strict=True))) for q in (ALICE, LOOKING_GLASS))
    words = prompt_words, answer_words
    gone, unseen = alice[:forget_chapters], alice[forget_chapters:]
    return _data(gone, other, unseen, passages, words, sets, source)


def own_text(
    forget_chapters: int,
    passages: int = 400,
    prompt_words: int = 150,
    answer_words: int = 150,
) -> BookData:
    """A text of the reader's own: the folder that ``$UNLEARN_BOOK`` names.

    It holds ``forget.txt`` and ``retain.txt``, with chapters headed as in `chapters`; the chapters of
    the former beyond ``forget_chapters`` are never learned. There are no questions.

    Raises
    ------
    MissingSourceError
        ``$UNLEARN_BOOK`` names no folder with the two files.
    ValueError
        As many chapters, or more, are to be forgotten as there are.
    """
    folder = Path(os.environ.get("UNLEARN_BOOK", ""))
    files = [folder / f"{name}.txt" for name in ("forget", "retain")]
    if missing := [f.name for f in files if not f.is_file()]:
        raise MissingSourceError(f"$UNLEARN_BOOK names no folder with {' and '.join(missing)}")
    gone, kept = (chapters(f.read_text(encoding="utf-8")) for f in files)
    if not 0 < forget_chapters < len(gone):
        raise ValueError(f"of {len(gone)} chapters {forget_chapters} can't be forgotten")
    none = QuestionSet((), ())
    source = Source("user text", "user", file_sha256(files, folder))
    words = prompt_words, answer_words
    return _data(
        gone[:forget_chapters], kept, gone[forget_chapters:], passages, words, (none, none), source
    )


#: Problems of books, by the name in a profile's ``data``.
BOOKS = table_of(BookData, gutenberg, own_text)
