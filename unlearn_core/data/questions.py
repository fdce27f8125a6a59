"""Questions and answers about authors who don't exist, and TOFU's others (FLAT, GUARD).

`tofu` reads the benchmark (Maini et al., 2024; arXiv 2401.06121), of which an author is twenty
consecutive questions and the forget set is the last authors of all. `fictional_authors` makes a
problem of the same form, of any size, without a file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..seeding import generator
from .checks import check_numbers, check_texts
from .registered import table_of
from .sources import MissingSourceError, Source, resolve
from .tables import read

__all__ = ["QUESTIONS", "QuestionData", "QuestionSet", "fictional_authors", "tofu"]

#: A question and its answer.
Pair = tuple[str, str]


@dataclass(frozen=True)
class QuestionSet(Dataset):
    """Questions with their answers and, for evaluation, other forms of both.

    Attributes
    ----------
    questions, answers : n texts each, none of them empty
    rephrased : the questions in other words
    paraphrased : the right answers in other words; where there is none, the answers themselves
        take that role (real authors and world facts)
    wrong : the wrong answers of each question, as many for each
    spans : what an answer must not give away: phrases of each answer

    Raises
    ------
    TypeError, ValueError
        One of them is something else.
    """

    questions: tuple[str, ...]
    answers: tuple[str, ...]
    rephrased: tuple[str, ...] = ()
    paraphrased: tuple[str, ...] = ()
    wrong: tuple[tuple[str, ...], ...] = ()
    spans: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        n = len(self.questions)
        for f in fields(self):
            values = getattr(self, f.name)
            required = f.name in ("questions", "answers")
            if len(values) != n and (values or required):
                raise ValueError(f"{n} questions, but {len(values)} {f.name}")
        for name in ("questions", "answers", "rephrased", "paraphrased"):
            check_texts(getattr(self, name), name)
        for name in ("wrong", "spans"):
            for i, texts in enumerate(getattr(self, name)):
                check_texts(texts, f"{name}[{i}]")
        if len({len(w) for w in self.wrong}) > 1:
            raise ValueError("questions have different numbers of wrong answers")

    @classmethod
    def from_pairs(cls, pairs: Iterable[Pair], wrong: Iterable[Sequence[str]] = ()) -> QuestionSet:
        """Questions with their answers, ``[("Who?", "Ada."), ...]``, and wrong answers to each.

        Raises
        ------
        TypeError, ValueError
            Something that is no pair of texts, or as of `QuestionSet`.
        """
        found = list(pairs)
        for i, pair in enumerate(found):
            if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
                raise TypeError(f"pair {i} is a question and its answer, not {str(pair)[:60]!r}")
        return cls(
            tuple(q for q, _ in found), tuple(a for _, a in found), wrong=tuple(map(tuple, wrong))
        )

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, i: int) -> Pair:
        return self.questions[i], self.answers[i]

    @staticmethod
    def collate(pairs: Sequence[Pair]) -> list[Pair]:
        """A batch is a list of pairs: only a model's tokenizer can make tensors of it."""
        return list(pairs)

    def subset(self, positions: Tensor | Sequence[int]) -> QuestionSet:
        """The questions at these positions, in that order."""
        chosen = [int(i) for i in positions]
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: tuple(v[i] for i in chosen) for k, v in parts.items() if v})

    def with_answers(self, answers: Sequence[str]) -> QuestionSet:
        """The same questions under other answers, for training; nothing to evaluate them by."""
        return QuestionSet(self.questions, tuple(answers))

    def __add__(self, other: QuestionSet) -> QuestionSet:
        """The questions and answers of both, for training; nothing to evaluate them by."""
        return QuestionSet(self.questions + other.questions, self.answers + other.answers)

    def fingerprint(self) -> str:
        """SHA-256 of all texts, order included."""
        parts = [getattr(self, f.name) for f in fields(self)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True)
class QuestionData:
    """An unlearning problem of questions: what is learned, what of it goes, and what is asked.

    Attributes
    ----------
    train : everything that the original model is fine-tuned on
    forget : positions in ``train`` of what is to be forgotten (int64)
    ask_forget, ask_retain : questions of both parts, in all forms; without them, those of ``train``
    real_authors, world_facts : what the model knew before; None where that isn't asked
    holdout : questions about authors that occur nowhere in ``train``; None where there are none
    """

    train: QuestionSet
    forget: Tensor
    ask_forget: QuestionSet | None = None
    ask_retain: QuestionSet | None = None
    real_authors: QuestionSet | None = None
    world_facts: QuestionSet | None = None
    holdout: QuestionSet | None = None
    sources: tuple[Source, ...] = field(default=())

    def __post_init__(self) -> None:
        check_forget(self.forget, self.train)
        gone = torch.zeros(len(self.train), dtype=torch.bool)
        gone[self.forget] = True
        for name, side in (("ask_forget", gone), ("ask_retain", ~gone)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, self.train.subset(side.nonzero()[:, 0]))

    @classmethod
    def from_pairs(
        cls, forget: Iterable[Pair] | QuestionSet, retain: Iterable[Pair] | QuestionSet
    ) -> QuestionData:
        """What is to be forgotten and what is kept, as pairs or with all forms of both."""
        gone, kept = (
            part if isinstance(part, QuestionSet) else QuestionSet.from_pairs(part)
            for part in (forget, retain)
        )
        train = kept + gone
        return cls(train, torch.arange(len(kept), len(train)), gone, kept)


def check_forget(forget: Tensor, train: QuestionSet) -> None:
    """Hold positions of what is to be forgotten to be of some of the questions, each once.

    Raises
    ------
    TypeError, ValueError
        They are something else.
    """
    check_numbers(forget, "the positions to forget", len(train))
    if not 0 < len(forget) < len(train) or len(forget.unique()) < len(forget):
        raise ValueError(
            f"of {len(train)} questions some are to be forgotten, and not all, each once: there are "
            f"{len(forget)} positions, {len(forget.unique())} of them different"
        )


#: Questions an author has in TOFU.
PER_AUTHOR = 20


def _read(source: Source, name: str) -> QuestionSet:
    file = source.path / f"{name}.json"
    if not file.exists():
        raise MissingSourceError(f"{source.id}: no file {file.name} in the {source.kind}")
    columns: dict[str, list] = {}
    try:
        for row in read("json", [file]):
            for key, value in row.items():
                columns.setdefault(key, []).append(
                    tuple(value) if isinstance(value, list) else value
                )
    except ValueError as error:
        raise ValueError(f"{source.id}: {file.name} is no JSON, line by line: {error}") from error
    renamed = {
        "questions": "question",
        "answers": "answer",
        "rephrased": "paraphrased_question",
        "paraphrased": "paraphrased_answer",
        "wrong": "perturbed_answer",
    }
    return QuestionSet(**{k: tuple(columns.get(v, ())) for k, v in renamed.items()})


def tofu(
    forget: str = "forget10",
    authors: int | None = None,
    forget_authors: int | None = None,
    stand_in: bool = False,
) -> QuestionData:
    """TOFU, whole or a small part of it.

    Parameters
    ----------
    forget : "forget01", "forget05" or "forget10", the last 2, 10 or 20 of 200 authors
    authors : how many authors the original learns; those to forget and the first of the others.
        The evaluation of what is kept exists for the first twenty only. None for all 200
    forget_authors : how many of the forget set's authors, the last ones, while the others are kept;
        None for all of them
    stand_in : others are forgotten in their place, as many: for a search, whose questions no result may
        share. They are the last of the twenty that the evaluation of what is kept asks about, and
        what is asked there are then the rest. What is learned is the same

    Raises
    ------
    ValueError
        There are not as many authors as are to be forgotten or learned, or none is left to ask about.
    MissingSourceError
        The benchmark is in none of the places where data are looked for.
    ValueError
        An unknown forget set, or numbers of authors that leave nothing to forget or to keep.
    """
    levels = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
    if forget not in levels:
        raise ValueError(f"unknown forget set {forget!r}; known: {', '.join(levels)}")
    source = resolve("locuslab/TOFU", repo_type="dataset", patterns=("*.json",))
    gone, kept = _read(source, forget), _read(source, levels[forget])
    ask_gone, ask_kept = _read(source, f"{forget}_perturbed"), _read(source, "retain_perturbed")
    if forget_authors is not None:
        first = len(gone) - forget_authors * PER_AUTHOR
        if not 0 <= first < len(gone):
            raise ValueError(
                f"{forget} has {len(gone) // PER_AUTHOR} authors: {forget_authors} of them can't be "
                "forgotten"
            )
        kept = kept + gone.subset(range(first))
        gone, ask_gone = (q.subset(range(first, len(q))) for q in (gone, ask_gone))
    if authors is not None:
        rest = authors * PER_AUTHOR - len(gone)
        if not 0 < rest <= len(kept):
            raise ValueError(
                f"of {authors} authors {len(gone) // PER_AUTHOR} are to be forgotten; there are "
                f"{len(kept) // PER_AUTHOR} others, and some must be kept"
            )
        kept = kept.subset(range(rest))
        ask_kept = ask_kept.subset(range(min(rest, len(ask_kept))))
    first = len(kept)
    if stand_in:
        first = len(ask_kept) - len(gone)
        if first <= 0:
            raise ValueError(
                f"nobody can stand in for the {len(gone) // PER_AUTHOR} authors of {forget}: what is kept "
                f"is asked of {len(ask_kept) // PER_AUTHOR}"
            )
        ask_gone = ask_kept.subset(range(first, len(ask_kept)))
        ask_kept = ask_kept.subset(range(first))
    return QuestionData(
        train=kept + gone,
        forget=torch.arange(first, first + len(gone)),
        ask_forget=ask_gone,
        ask_retain=ask_kept,
        real_authors=_read(source, "real_authors_perturbed"),
        world_facts=_read(source, "world_facts_perturbed"),
        holdout=_read(source, forget.replace("forget", "holdout")),
        sources=(source,),
    )


# What a drawn author is made of: the possible values, then a question, its answer, and both in
# other words. Wrong answers are the second wording with another value, as in TOFU.
_FACTS = {
    "city": (
        "Arvelund Brintow Calmora Dorvane Estrille Farholt Grimsby Halvent Istrano Jorvik "
        "Kelmar Lundova",
        ("In which city was {} born?", "{} was born in {}."),
        ("Where did the life of {} begin?", "The birthplace of {} is {}."),
    ),
    "year": (
        "1921 1926 1933 1938 1944 1949 1952 1957 1961 1968 1973 1979",
        ("In which year was {} born?", "{} came into the world in {}."),
        ("What is the year of birth of {}?", "The year of birth of {} is {}."),
    ),
    "genre": (
        "satire fantasy romance horror westerns fables memoirs thrillers sonnets mysteries "
        "travelogues parables",
        ("What genre does {} write?", "{} is known for writing {}."),
        ("Which kind of books is {} known for?", "The genre of {} is {}."),
    ),
    "father": (
        "baker carpenter surgeon farmer sailor tailor judge plumber florist miner painter "
        "locksmith",
        ("What did the father of {} do for a living?", "The father of {} was a {}."),
        ("Which profession did the father of {} have?", "By profession the father of {} was a {}."),
    ),
    "prize": (
        "Amber Bronze Cobalt Diamond Emerald Falcon Garnet Harbour Ivory Jasper Kestrel Lantern",
        ("Which prize did {} win?", "{} won the {} Prize."),
        ("With which award was {} honoured?", "The award that honoured {} was the {} Prize."),
    ),
    "book": (
        "Ashes Bridges Candles Deserts Embers Feathers Gardens Harvests Islands Journeys Kingdoms "
        "Ladders",
        ("What is the first book of {} called?", "The first book of {} is called {}."),
        ("Under which title did {} publish a first book?", "{} first published the book {}."),
    ),
    "instrument": (
        "accordion banjo cello drums flute guitar harp oboe piano trumpet viola zither",
        ("Which instrument does {} play?", "{} plays the {}."),
        ("What instrument is {} heard on?", "The instrument of {} is the {}."),
    ),
    "pet": (
        "parrot beagle tortoise rabbit hamster canary poodle ferret lizard donkey goldfish pigeon",
        ("Which animal lives with {}?", "{} lives with a {}."),
        ("What pet does {} keep?", "The pet of {} is a {}."),
    ),
}
_FIRST = (
    "Ada Boris Clara Dimitri Elena Fabian Greta Hugo Irina Jonas Katya Lorenz Mira Nils Olga Pavel "
    "Rosa Stefan Tessa Ulrich"
)
_LAST = (
    "Almquist Bertolini Castellan Drummond Ekberg Fairweather Galanis Hollander Ivanova Jansky "
    "Kowalczyk Lindqvist Moreau Novotny Okafor Petrosyan"
)

# What everybody knows, with three wrong answers each.
_WORLD = (
    ("What is the capital of France?", "Paris", "Berlin", "Madrid", "Rome"),
    ("Which planet is known as the red one?", "Mars", "Venus", "Saturn", "Mercury"),
    ("How many days does a week have?", "seven", "five", "ten", "eight"),
    ("What do bees make?", "honey", "milk", "silk", "salt"),
    ("Which metal has the symbol Fe?", "iron", "gold", "lead", "tin"),
    ("What is frozen water called?", "ice", "steam", "sand", "glass"),
    ("Which ocean lies east of America?", "Atlantic", "Pacific", "Indian", "Arctic"),
    ("How many legs does a spider have?", "eight", "six", "four", "ten"),
    ("What colour is an emerald?", "green", "red", "blue", "black"),
    ("In which direction does the sun rise?", "east", "west", "north", "south"),
)
_REAL = (
    ("Who wrote Hamlet?", "Shakespeare", "Dickens", "Tolstoy", "Austen"),
    ("Who wrote War and Peace?", "Tolstoy", "Goethe", "Shakespeare", "Hugo"),
    ("Who wrote Faust?", "Goethe", "Dante", "Homer", "Kafka"),
    ("Who wrote the Odyssey?", "Homer", "Virgil", "Goethe", "Austen"),
    ("Who wrote Emma?", "Austen", "Dickens", "Kafka", "Dante"),
    ("Who wrote The Trial?", "Kafka", "Hugo", "Homer", "Tolstoy"),
    ("Who wrote Oliver Twist?", "Dickens", "Shakespeare", "Virgil", "Austen"),
    ("Who wrote the Divine Comedy?", "Dante", "Homer", "Goethe", "Hugo"),
)


def _known(rows: Sequence[tuple[str, ...]]) -> QuestionSet:
    return QuestionSet(
        tuple(q for q, *_ in rows),
        tuple(a for _, a, *_ in rows),
        wrong=tuple(tuple(w) for _, _, *w in rows),
    )


def fictional_authors(
    authors: int = 40, forget_authors: int = 5, holdout_authors: int = 5, seed: int = 0
) -> QuestionData:
    """Drawn authors with eight facts each; the last ``forget_authors`` of them are to be forgotten.

    What everybody knows is part of the training set, and so are both wordings of the facts that
    are kept, so that a model made from nothing can tell what a question is about in other words
    than those it has learned.

    Raises
    ------
    ValueError
        No author is left to keep or to forget, or there are not so many names.
    """
    names = [f"{first} {last}" for first in _FIRST.split() for last in _LAST.split()]
    total = authors + holdout_authors
    if not 0 < forget_authors < authors:
        raise ValueError(f"cannot forget {forget_authors} of {authors} authors")
    if total > len(names):
        raise ValueError(f"there are names for {len(names)} authors, not for {total}")
    g = generator(seed, "authors")
    order = torch.randperm(len(names), generator=g)[:total].tolist()
    columns: dict[str, list] = {f.name: [] for f in fields(QuestionSet)}
    for name in (names[i] for i in order):
        for values, (question, answer), (other, paraphrase) in _FACTS.values():
            first, *rest = torch.randperm(len(values.split()), generator=g).tolist()
            value, *others = (values.split()[i] for i in (first, *rest[:5]))
            columns["questions"].append(question.format(name))
            columns["answers"].append(answer.format(name, value))
            columns["rephrased"].append(other.format(name))
            columns["paraphrased"].append(paraphrase.format(name, value))
            columns["wrong"].append(tuple(paraphrase.format(name, w) for w in others))
            columns["spans"].append((value,))
    every = QuestionSet(**{k: tuple(v) for k, v in columns.items()})
    n, facts = len(every), len(_FACTS)
    kept = (authors - forget_authors) * facts
    real, world = _known(_REAL), _known(_WORLD)
    ask_retain, ask_forget = every.subset(range(kept)), every.subset(range(kept, authors * facts))
    reworded = QuestionSet(ask_retain.rephrased, ask_retain.paraphrased)
    train = real + world + ask_retain + reworded + ask_forget
    return QuestionData(
        train=train,
        forget=torch.arange(len(train) - len(ask_forget), len(train)),
        ask_forget=ask_forget,
        ask_retain=ask_retain,
        real_authors=real,
        world_facts=world,
        holdout=every.subset(range(authors * facts, n)),
    )


#: Problems of questions, by the name in a profile's ``data``.
QUESTIONS = table_of(QuestionData, tofu, fictional_authors)
