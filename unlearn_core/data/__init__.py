"""Examples: where they come from, and how they are split into forget, retain and test."""

from .answer_styles import (
    STYLES,
    AnswerStyleDiversification,
    VisualItem,
    VisualTask,
    box_iou,
    format_valid,
    parse_box,
    style_of,
)
from .books import BOOKS, BookData, gutenberg, own_text
from .captions import (
    CAPTIONED,
    CaptionData,
    CaptionedSet,
    Noun,
    captioned_fashion,
    captioned_shapes,
    i2p_prompts,
    objects,
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
from .restricted import (
    RECIPES,
    REFUSALS,
    RESTRICTED,
    RestrictedPart,
    RestrictedSymbols,
    restricted_symbols,
)
from .safeeraser import SafetyBenchmark, safety_benchmark
from .scenes import VISUAL_TASKS, stage_zero, visual_tasks
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
from .tasks import IGNORED, Answering, Classification, Concepts, Denoising, Task, VisualAnswering
from .templates import COPYRIGHT_REFUSALS, IDK, TEMPLATES
from .visual import VisualSet
from .wordings import WORDINGS, reworded
from .words import function_words, words_of

#: Problems of what may be said about an image, by the name in a profile's ``data``.
SAFETY = {f.__name__: f for f in (restricted_symbols, safety_benchmark)}

__all__ = [
    "visual_tasks",
    "stage_zero",
    "style_of",
    "parse_box",
    "format_valid",
    "box_iou",
    "VisualTask",
    "VisualItem",
    "AnswerStyleDiversification",
    "VISUAL_TASKS",
    "STYLES",
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
    "RECIPES",
    "REFUSALS",
    "RESTRICTED",
    "RestrictedPart",
    "RestrictedSymbols",
    "SAFETY",
    "SafetyBenchmark",
    "Source",
    "SplitError",
    "Task",
    "VisualAnswering",
    "VisualSet",
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
    "i2p_prompts",
    "image_folder",
    "make_split",
    "objects",
    "own_text",
    "resolve",
    "restricted_symbols",
    "safety_benchmark",
    "reworded",
    "shapes",
    "tofu",
    "words_of",
]
