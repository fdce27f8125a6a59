"""Examples: where they come from, and how they are split into forget, retain and test."""

from .books import BOOKS, BookData, gutenberg, own_text
from .captions import (
    CAPTIONED,
    CaptionData,
    CaptionedSet,
    Noun,
    captioned_fashion,
    captioned_shapes,
)
from .images import (
    DATASETS,
    ImageData,
    ImageSet,
    cifar10,
    cifar100,
    digits,
    fashion_cifar,
    fashion_mnist,
    image_folder,
    shapes,
)
from .loading import Consecutive, batches, evenly_spaced
from .questions import QUESTIONS, QuestionData, QuestionSet, fictional_authors, tofu
from .sources import MissingSourceError, Source, resolve
from .splits import (
    ForgetSplit,
    SplitError,
    WithheldDataError,
    forget_class,
    forget_concepts,
    forget_indices,
    forget_questions,
    forget_random,
    forget_subclass,
    make_split,
)
from .tasks import IGNORED, Answering, Classification, Concepts, Denoising, Task
from .templates import COPYRIGHT_REFUSALS, IDK, TEMPLATES
from .wordings import WORDINGS, reworded
from .words import function_words, words_of

__all__ = [
    "BOOKS",
    "CAPTIONED",
    "COPYRIGHT_REFUSALS",
    "DATASETS",
    "IDK",
    "IGNORED",
    "QUESTIONS",
    "TEMPLATES",
    "WORDINGS",
    "Answering",
    "BookData",
    "CaptionData",
    "CaptionedSet",
    "Classification",
    "Concepts",
    "Consecutive",
    "Denoising",
    "ForgetSplit",
    "ImageData",
    "ImageSet",
    "MissingSourceError",
    "Noun",
    "QuestionData",
    "QuestionSet",
    "Source",
    "SplitError",
    "Task",
    "WithheldDataError",
    "batches",
    "captioned_fashion",
    "captioned_shapes",
    "cifar10",
    "cifar100",
    "digits",
    "evenly_spaced",
    "fashion_cifar",
    "fashion_mnist",
    "fictional_authors",
    "forget_class",
    "forget_concepts",
    "forget_indices",
    "forget_questions",
    "forget_random",
    "forget_subclass",
    "function_words",
    "gutenberg",
    "image_folder",
    "make_split",
    "own_text",
    "resolve",
    "reworded",
    "shapes",
    "tofu",
    "words_of",
]
