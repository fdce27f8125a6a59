"""Data of the right sizes without contents: as many images, questions and answers as an experiment has.

A text of a question is as many words as it has tokens. Of data that are drawn here, or come with the project's own
words, the real thing is built.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from inspect import signature
from typing import Any

import torch

from ...data import (
    BOOKS,
    CAPTIONED,
    DATASETS,
    QUESTIONS,
    BookData,
    CaptionData,
    ImageData,
    ImageSet,
    QuestionData,
    QuestionSet,
    VisualSet,
)
from ...data.books import ALICE, LOOKING_GLASS
from ...data.books import _data as book_of
from ...data.captions import (
    FASHION_NOUNS,
    IMAGENETTE,
    OBJECT_NOUNS,
    TEMPLATES,
    CaptionedSet,
    Noun,
    _captioned,
    _words_alone,
)
from ...data.images import CIFAR20, FASHION_CIFAR_GROUPS
from ...models import Chat, EncodedSet, EncodedVisualSet, Encoding, VisionChat
from ...registry import build

__all__ = [
    "books",
    "captions",
    "encoded",
    "encoded_visual",
    "images",
    "prompt_tokens",
    "questions",
    "visual",
]

#: Data set of the hub -> training and test images, side, channels, classes.
IMAGES = {
    "cifar10": (50_000, 10_000, 32, 3, 10),
    "cifar100": (50_000, 10_000, 32, 3, 100),
    "fashion_mnist": (60_000, 10_000, 28, 1, 10),
    "fashion_cifar": (110_000, 20_000, 32, 3, 20),
    # Pins Face Recognition: 17,534 faces of 105 people, a fifth of them held out.
    "image_folder": (14_027, 3_507, 32, 3, 105),
}

#: TOFU: tokens of questions and of answers, at ten equal steps of their distribution, as a byte-level BPE
#: of 49,152 tokens has them.
TOFU_QUESTIONS = (10, 12, 13, 14, 15, 16, 17, 19, 21, 26)
TOFU_ANSWERS = (15, 22, 27, 30, 33, 36, 39, 42, 47, 55)

#: Questions of TOFU's forget sets; of the others asked: retained, real authors, world facts.
TOFU_FORGET = {"forget01": 40, "forget05": 200, "forget10": 400}
TOFU_ASKED = (400, 100, 117)

#: Words of each chapter of Project Gutenberg's books 11 and 12, as `gutenberg` cuts them: of the files whose
#: sha256 begin with 2a044287 and 18c3359a. An edition with a table of contents would be cut otherwise.
ALICE_WORDS = (2181, 2098, 1701, 2616, 2185, 2594, 2286, 2485, 2271, 2028, 1877, 2104)
LOOKING_GLASS_WORDS = (3214, 2814, 2878, 2859, 3108, 2965, 2588, 4001, 4045, 55, 8, 688)

#: Tokens a word in running text.
TOKENS_PER_WORD = 1.35


def tokens_of(text: str) -> int:
    return max(len(text.split()), 1)


def _texts(lengths: Sequence[int], n: int, first: int = 0) -> tuple[str, ...]:
    """``n`` different texts, whose lengths in words take turns."""
    return tuple(f"{first + i}{' w' * (lengths[i % len(lengths)] - 1)}" for i in range(n))


# --- images --------------------------------------------------------------------------------------


def _blank(n: int, side: int, channels: int, classes: int) -> ImageSet:
    labels = torch.arange(n) % classes
    pixels = torch.zeros((1, side, side, channels), dtype=torch.uint8)
    pixels = pixels.expand(n, side, side, channels)
    return ImageSet(pixels, labels, labels, (0.5,) * channels, (0.5,) * channels)


def images(spec: Mapping[str, Any]) -> ImageData:
    """What ``data`` of a classifier's experiment says, blank where it lies on the hub."""
    spec = dict(spec)
    kind = spec.pop("use")
    if kind not in IMAGES:
        return build(DATASETS, {"use": kind, **spec}, "data set")
    train, test, side, channels, classes = IMAGES[kind]
    side = spec.get("size", side)
    train = min(train, classes * spec.get("per_class", train))
    test = min(test, classes * spec.get("test_per_class", test))
    groups = {"cifar100": CIFAR20, "fashion_cifar": FASHION_CIFAR_GROUPS}.get(kind)
    names = tuple(str(i) for i in range(classes))
    if groups:
        names = tuple(name for members in groups.values() for name in members)
    data = _paired((train, test, side, channels, classes), names)
    data = data.hold_out(spec.get("validation_per_class"))
    if spec.get("turned"):
        data = data.turned()
    return data.superclassed(groups) if spec.get("coarse") else data


def captions(spec: Mapping[str, Any]) -> CaptionData:
    """What ``data`` of a drawing experiment says; of people, whom a reader lists, ten to erase and ten to keep."""
    kind = spec["use"]
    if kind == "people":
        nouns = tuple(Noun(f"person {i}") for i in range(20))
        templates = tuple(f"{'a ' * i}portrait of {{}}" for i in range(5))
        groups = {"the names to erase": tuple(n.name for n in nouns[:10])}
        return replace(_words_alone(nouns, templates, "a person"), groups=groups)
    if kind == "imagenette":
        data = _paired((9_469, 0, spec.get("size", 512), 3, 10), tuple(IMAGENETTE))
        nouns = tuple(Noun(name) for name in IMAGENETTE.values())
        template = "an image of a {}"
        said = tuple(template.format(nouns[k].name) for k in data.train.labels.tolist())
        return CaptionData(CaptionedSet(data.train, said), data.test, nouns, (template,), "object")
    drawn = {
        "captioned_fashion": ("fashion_mnist", FASHION_NOUNS, "a fashion item"),
        "captioned_cifar10": ("cifar10", OBJECT_NOUNS, "the object"),
    }
    if kind not in drawn:
        return build(CAPTIONED, spec, "data set")
    of, nouns, general = drawn[kind]
    train, test, side, channels, classes = IMAGES[of]
    train = min(train, classes * spec.get("per_class", train))
    test = min(test, classes * spec.get("test_per_class", test))
    data = _paired((train, test, side, channels, classes), tuple(n.name for n in nouns))
    return _captioned(data, nouns, TEMPLATES, general, 0)


def _paired(sizes: tuple[int, int, int, int, int], names: tuple[str, ...]) -> ImageData:
    train, test, *shape = sizes
    return ImageData(*(_blank(n, *shape) for n in (train, test)), names, names)


# --- questions -----------------------------------------------------------------------------------


def questions(spec: Mapping[str, Any]) -> QuestionData:
    """Questions as many as a YAML's ``data`` asks for; TOFU's without its text."""
    if spec["use"] != "tofu":
        return build(QUESTIONS, spec, "data set")
    gone = TOFU_FORGET[spec.get("forget", "forget10")]
    if (authors := spec.get("forget_authors")) is not None:
        gone = 20 * authors
    total = 20 * (spec.get("authors") or 200)

    def some(n: int, first: int, wrong: int = 0) -> QuestionSet:
        asked, said = _texts(TOFU_QUESTIONS, n, first), _texts(TOFU_ANSWERS, n, first)
        if not wrong:
            return QuestionSet(asked, said)
        return QuestionSet(asked, said, asked, said, tuple((a,) * wrong for a in said))

    retain, real, facts = TOFU_ASKED
    known = total - gone
    return QuestionData(
        train=some(total, 0),
        forget=torch.arange(known, total),
        ask_forget=some(gone, known, 5),
        ask_retain=some(min(retain, known), 0, 5),
        real_authors=some(real, 10_000, 3),
        world_facts=some(facts, 20_000, 3),
        holdout=some(gone, 30_000),
    )


def books(spec: Mapping[str, Any]) -> BookData:
    """Books as long as the real ones; a text of the reader's own as long as its passages need, and no longer."""
    spec = dict(spec)
    kind = spec.pop("use")
    asked = signature(BOOKS[kind]).bind(**spec)
    asked.apply_defaults()
    given = asked.arguments
    count, first = given["passages"], given["forget_chapters"]
    size = given["prompt_words"], given["answer_words"]
    if kind == "own_text":
        enough = [count * sum(size)]
        lengths = [math.ceil(count / first) * sum(size)] * first, enough, enough
        about = ((), ())
    else:
        lengths = ALICE_WORDS[:first], LOOKING_GLASS_WORDS, ALICE_WORDS[first:]
        about = ALICE, LOOKING_GLASS
    gone, kept, unseen = (
        [" ".join(f"{part}.{i}.{k}" for k in range(n)) for i, n in enumerate(chapters)]
        for part, chapters in enumerate(lengths)
    )
    sets = tuple(QuestionSet(tuple(q for q, _ in qs), tuple(a for _, a in qs)) for qs in about)
    return book_of(gone, kept, unseen, count, size, sets, None)


def prompt_tokens(template: str) -> int:
    """Of a prompt beside its question."""
    return round(TOKENS_PER_WORD * len(template.replace("{question}", " ").split())) + 1


def encoded(chat: Chat, data: QuestionSet, scale: float = 1.0) -> EncodedSet:
    """As `Chat.encoded`, of texts whose words are tokens; ``scale`` tokens each."""
    extra = prompt_tokens(chat.template)

    def encode(question: str, answer: str) -> Encoding:
        asked = extra + round(scale * tokens_of(question))
        said = round(scale * tokens_of(answer)) + 1
        ids = torch.zeros(asked + said, dtype=torch.int64)
        return Encoding(ids, ids.where(torch.arange(len(ids)) >= asked, -100))

    return EncodedSet(data, encode, 0)


def visual(n: int, side: int, asked: int, said: int, first: int = 0) -> VisualSet:
    """``n`` questions of so many tokens, one blank image for all."""
    blank = torch.zeros((1, side, side, 3), dtype=torch.uint8)
    which = torch.zeros(n, dtype=torch.int64)
    return VisualSet(blank, which, _texts([asked], n, first), _texts([said], n, first))


def encoded_visual(chat: VisionChat, data: VisualSet) -> EncodedVisualSet:
    """The examples as tokens of which the number alone is right."""
    extra = prompt_tokens(chat.template)
    image = torch.full((chat.image_tokens,), chat.model.config.image_token_index)

    def encode(question: str, answer: str) -> Encoding:
        asked, said = extra + tokens_of(question), tokens_of(answer) + 1
        ids = torch.cat([image, torch.zeros(asked + said, dtype=torch.int64)])
        labels = ids.where(torch.arange(len(ids)) >= len(image) + asked, -100)
        return Encoding(ids, labels)

    return EncodedVisualSet(data, encode, 0, chat.transform)
