"""What a model is trained to do: the loss of a batch, and what a wrong answer is."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from string import Formatter
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from ..fields import Rule, check_fields
from .checks import check_texts
from .images import Batch
from .labelled import Labelled

__all__ = [
    "IGNORED",
    "Answering",
    "Classification",
    "Concepts",
    "Denoising",
    "Task",
    "VisualAnswering",
    "logits_by",
    "logits_of",
]

#: The label of a token that is not part of an answer.
IGNORED = -100


def logits_of(found: Any) -> Tensor:
    """The logits in what a classifier returns.

    That is a tensor, or has ``logits``: a mapping or an attribute, as the outputs of Hugging Face's
    models, and of torchvision's that have auxiliary ones.

    Raises
    ------
    TypeError
        Something else.
    """
    if isinstance(found, Mapping) and "logits" in found:
        found = found["logits"]
    found = getattr(found, "logits", found)
    if not isinstance(found, Tensor):
        what = (
            f"a mapping of {', '.join(found)}"
            if isinstance(found, Mapping)
            else type(found).__name__
        )
        raise TypeError(
            f"the model returns {what}, in which there are no logits: wrap it in a module whose forward "
            "returns them, or take a Classification with logits(model, batch) of its own"
        )
    return found


def logits_by(task: Classification | None) -> Callable[[Any, Batch], Tensor]:
    """How (model, batch) become logits: as a task has them or, without one, as the model says."""
    return task.logits if task is not None else lambda model, batch: logits_of(_asked(model, batch))


def _asked(model: Callable[[Tensor], Any], batch: Batch) -> Any:
    """What a model returns for the inputs of a batch.

    Raises
    ------
    TypeError
        It fails, and none of its weights is of the inputs' precision.
    """
    x = batch[0]
    try:
        return model(x)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        # A function of the inputs has no weights to look at.
        own = {p.dtype for p in getattr(model, "parameters", tuple)() if p.is_floating_point()}
        if not own or x.dtype in own:
            raise
        kinds = " and ".join(sorted(map(str, own)))
        raise TypeError(
            f"the inputs are {x.dtype} and the model's weights {kinds} ({error}): give inputs of that "
            "precision, LabelledSet(data, transform=lambda x: x.to(...)), or a model of theirs"
        ) from error


@dataclass(frozen=True)
class Classification:
    """Learning one of ``classes`` labels, two at least, under the cross-entropy.

    A model that has another number of outputs is a ValueError at the first batch. What a model
    returns are logits, or has them (`logits_of`); for others, a subclass overrides `logits`, which
    everything here goes through.
    """

    modality: ClassVar[str] = "images"

    classes: Annotated[int, Rule("at least 2", lambda v: v >= 2)]

    def __post_init__(self) -> None:
        check_fields(self)

    def loss(self, model: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
        """Mean cross-entropy of the batch ``(x, y)``: a scalar."""
        return torch.nn.functional.cross_entropy(self.logits(model, batch), batch[1])

    def log_probs(self, model: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
        """The log-probability of each label: (n,)."""
        return -torch.nn.functional.cross_entropy(
            self.logits(model, batch), batch[1], reduction="none"
        )

    def logits(self, model: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
        """(n, classes).

        Raises
        ------
        TypeError
            The outputs have no logits, or the model can't take inputs of another precision than its own.
        ValueError
            The logits are not (n, classes).
        """
        found = logits_of(_asked(model, batch))
        if found.shape[1:] != (self.classes,):
            raise ValueError(
                f"the model's outputs for a batch have the shape {tuple(found.shape)}, and the task has "
                f"{self.classes} classes: give the model as many outputs, or Classification its classes"
            )
        return found

    def relabel(
        self, data: Labelled, generator: torch.Generator, *, wrong: bool = True
    ) -> Labelled:
        """Give every image a random label: uniform over the other classes, or over all of them.

        Called once, the labels are drawn once; called before each epoch, they are redrawn.
        """
        lowest = 1 if wrong else 0
        shift = torch.randint(lowest, self.classes, data.labels.shape, generator=generator)
        return data.with_labels((data.labels + shift) % self.classes)


@dataclass(frozen=True)
class Answering:
    """Learning to give an answer, token by token.

    A batch is a mapping of ``input_ids``, ``attention_mask`` and ``labels``, each (n, length); a
    label is -100 where a token is not part of an answer.

    Parameters
    ----------
    templates : answers that say nothing, to be learned instead of what is to be forgotten

    Raises
    ------
    TypeError, ValueError
        One template in the place of several, or one that is empty or no text.
    """

    modality: ClassVar[str] = "text"

    templates: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_texts(self.templates, "templates")
        object.__setattr__(self, "templates", tuple(self.templates))

    def loss(self, model: Callable[..., Tensor], batch: dict[str, Tensor]) -> Tensor:
        """Mean negative log-likelihood over all answer tokens of the batch: a scalar."""
        return -self.token_log_probs(model, batch)[0].mean()

    def log_probs(self, model: Callable[..., Tensor], batch: dict[str, Tensor]) -> Tensor:
        """The log-probability of each answer, summed over its tokens: (n,)."""
        scores, rows = self.token_log_probs(model, batch)
        total = scores.new_zeros(len(batch["labels"]))
        return total.index_add(0, rows, scores)

    def token_log_probs(
        self, model: Callable[..., Tensor], batch: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The log-probability of every answer token, (tokens,) float32, and the row it is in."""
        following = batch["labels"].roll(-1, dims=1)
        following[:, -1] = IGNORED
        said = following != IGNORED
        # Only positions that predict an answer: the vocabulary is wide.
        logits = self.logits(model, batch, said)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        scores = -torch.nn.functional.cross_entropy(logits, following[said], reduction="none")
        return scores, said.nonzero()[:, 0]

    def logits(
        self, model: Callable[..., Tensor], batch: dict[str, Tensor], at: Tensor | None = None
    ) -> Tensor:
        """(n, length, vocabulary); at a position, of the token at the next one.

        With ``at``, (n, length) bool, at those positions alone: (positions, vocabulary).
        """
        return model(batch["input_ids"], batch["attention_mask"], at=at)

    @staticmethod
    def answer_tokens(batch: dict[str, Tensor]) -> Tensor:
        """How many tokens each answer has, the end of sequence included: (n,)."""
        return (batch["labels"] != IGNORED).sum(dim=1)

    def relabel(self, data: Any, generator: torch.Generator) -> Any:
        """Give every question a template answer, drawn with replacement.

        Called once, the answers are drawn once; called before each epoch, they are redrawn.

        Raises
        ------
        ValueError
            There are no template answers, or they are withheld from the method that asks.
        """
        if not self.templates:
            raise ValueError("there are no template answers to draw from")
        drawn = torch.randint(len(self.templates), (len(data),), generator=generator)
        return data.with_answers([self.templates[i] for i in drawn.tolist()])


@dataclass(frozen=True)
class VisualAnswering(Answering):
    """Learning to answer questions about images.

    A batch also has ``pixel_values``, (n, 3, H, W).
    """

    modality: ClassVar[str] = "multimodal"

    def logits(
        self, model: Callable[..., Tensor], batch: dict[str, Tensor], at: Tensor | None = None
    ) -> Tensor:
        """As of `Answering`."""
        ids, mask, pixels = (batch[k] for k in ("input_ids", "attention_mask", "pixel_values"))
        return model(ids, mask, pixel_values=pixels, at=at)


@dataclass(frozen=True)
class Concepts:
    """What is to be erased from a model that draws, by name.

    A condition is a class, or words that stand in a prompt in the place of ``{}``.

    Parameters
    ----------
    erased : pairs (concept, what is to be drawn in its place)
    keep : whole prompts, or classes, that must be drawn as before
    templates : prompts with ``{}`` in the place of the words

    Raises
    ------
    TypeError
        One text in the place of several things to keep or of several templates.
    ValueError
        No concept, or one without what takes its place; a concept twice, in the place of another, or
        among what is kept; a template that has not one ``{}``.
    """

    erased: tuple[tuple[Any, Any], ...]
    keep: tuple[Any, ...] = ()
    templates: tuple[str, ...] = ("{}",)

    def __post_init__(self) -> None:
        if wrong := [p for p in self.erased if not isinstance(p, tuple | list) or len(p) != 2]:
            raise ValueError(
                f"erased holds pairs, such as (('a cat', 'a dog'),): of a concept, and of what takes "
                f"its place; not {wrong[0]!r}"
            )
        for pair in self.erased:
            named = all(isinstance(one, str) for one in pair) and pair[0].strip()
            if not named and not all(isinstance(one, Integral) for one in pair):
                raise ValueError(
                    "a concept and what takes its place are two texts, or the numbers of two classes, not "
                    f"{pair[0]!r} and {pair[1]!r}"
                )
        for name in ("keep", "templates"):
            if isinstance(getattr(self, name), str):
                raise TypeError(f"{name} is one text, not a sequence of texts")
        object.__setattr__(self, "erased", tuple(tuple(pair) for pair in self.erased))
        object.__setattr__(self, "keep", tuple(self.keep))
        object.__setattr__(self, "templates", tuple(self.templates))
        names = [name for name, _ in self.erased]
        if not names:
            raise ValueError("there is no concept to erase")
        if len(set(names)) < len(names):
            raise ValueError(f"a concept is to be erased twice: {names}")
        if both := set(names) & {anchor for _, anchor in self.erased}:
            raise ValueError(f"{min(both)!r} is to be erased, and to take a concept's place")
        for template in self.templates:
            fields = [name for _, name, *_ in Formatter().parse(template) if name is not None]
            if not fields:
                raise ValueError(f"the template {template!r} has no {{}}")
            if fields != [""]:
                raise ValueError(
                    f"the template {template!r} must have one {{}}, for the concept, and no other field"
                )
        gone = set(names) | {prompt for pair in self.pairs() for prompt in pair[:1]}
        if both := gone & set(self.keep):
            raise ValueError(f"{min(both)!r} is to be erased, and to be kept")

    def pairs(self) -> list[tuple[Any, Any]]:
        """Every concept and what takes its place, in every template; classes as they are."""
        return [
            (t.format(a), t.format(b)) if isinstance(a, str) else (a, b)
            for a, b in self.erased
            for t in (self.templates if isinstance(a, str) else ("",))
        ]

    def prompts(self) -> list[Any]:
        """The concepts in every template."""
        return [concept for concept, _ in self.pairs()]


@dataclass(frozen=True)
class Denoising:
    """Learning to predict the noise in an image, given a condition.

    A batch is ``x`` (n, C, H, W) and n conditions: classes (a tensor) or captions.

    Parameters
    ----------
    concepts : what is to be erased

    Raises
    ------
    ValueError
        Something else than `Concepts`.
    """

    modality: ClassVar[str] = "diffusion"

    concepts: Concepts | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def loss(self, model: Any, batch: tuple[Tensor, Any]) -> Tensor:
        """Mean squared error of epsilon at steps drawn uniformly: a scalar.

        While the model trains, a share of the conditions is left out (``model.drop``).
        """
        x, condition = batch
        latents, noise, t = self.noised(model, x)
        x_t = model.add_noise(latents, noise, t)
        found = model.denoise(x_t, t, model.embed_dropping(condition))
        return torch.nn.functional.mse_loss(found, noise)

    @staticmethod
    def noised(model: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents of images, noise for them, and a step for each, drawn from the global state.

        Raises
        ------
        ValueError
            Images that are not floating point, or not in [-1, 1] but for rounding.
        """
        if not x.is_floating_point() or (len(x) and x.abs().max().item() > 1.01):
            raise ValueError(
                "images that are drawn have pixels in [-1, 1], in floating point, as CaptionedSet gives them: "
                "those from 0 to 255 become so by x / 127.5 - 1"
            )
        latents = model.codec.encode(x)
        noise = torch.randn_like(latents)
        return latents, noise, torch.randint(model.steps, (len(x),), device=latents.device)

    def relabel(self, data: Any, generator: torch.Generator | None = None) -> Any:
        """The images under what takes their concept's place; nothing is drawn.

        Raises
        ------
        ValueError
            No concept is named, or they are withheld from the method that asks.
        """
        if self.concepts is None:
            raise ValueError("no concept is named, so nothing takes its place")
        return self.renamed(data, dict(self.concepts.erased))

    @staticmethod
    def renamed(data: Any, others: dict[Any, Any]) -> Any:
        """Captioned images, or images under classes, with each concept replaced by another."""
        if not hasattr(data, "captions"):
            labels = data.labels.clone()
            for old, new in others.items():
                labels[data.labels == old] = new
            return data.with_labels(labels)
        # Whole words, the longest first, and what took a concept's place isn't renamed again.
        names = sorted(others, key=len, reverse=True)
        known = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, names))})(?!\w)")
        return data.with_captions([known.sub(lambda m: others[m[0]], c) for c in data.captions])


#: What the tasks share: ``modality``, ``loss`` of (model, batch), and ``relabel(data, generator)``.
#: `Classification` and `Answering` also have ``log_probs`` and ``logits``.
Task = Classification | Answering | Denoising
