"""Questions about images (SEFE, SafeEraser): what a model that sees and answers learns from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .checks import check_numbers, check_texts

if TYPE_CHECKING:
    from .image_files import ImageFiles

__all__ = ["ImageList", "VisualSet", "as_pixels"]

#: A question, its answer, and the image that it is about: (H, W, 3) uint8.
Triple = tuple[str, str, Tensor]


def as_pixels(image: Any, what: str = "the image") -> Tensor:
    """An image of PIL, an array, a tensor or a file as (H, W, 3) uint8.

    Raises
    ------
    TypeError
        It is something else.
    ValueError
        An array or tensor of another shape or dtype, or a file that can't be decoded.
    """
    from PIL import Image

    from .image_files import decoded

    if isinstance(image, str | Path):
        image = decoded(Path(image))
    if isinstance(image, Image.Image):
        return torch.from_numpy(np.array(image.convert("RGB")))
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(image)
    if not isinstance(image, Tensor):
        raise TypeError(
            f"{what} must be an image of PIL, an array, a tensor or a file, not of type "
            f"{type(image).__name__}"
        )
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != torch.uint8:
        raise ValueError(f"{what} must be (H, W, 3) uint8, not {tuple(image.shape)} {image.dtype}")
    return image


class ImageList:
    """Images of any size, each (H, W, 3) uint8, held in memory: as if (M, H, W, 3) uint8.

    Parameters
    ----------
    images : what `as_pixels` takes, each
    """

    dtype, ndim = torch.uint8, 4

    def __init__(self, images: Iterable[Any]) -> None:
        self.images = tuple(as_pixels(image, f"image {i}") for i, image in enumerate(images))

    @property
    def shape(self) -> tuple[int, int | None, int | None, int]:
        """None where the images differ."""
        sides = [{image.shape[d] for image in self.images} for d in (0, 1)]
        return len(self.images), *(s.pop() if len(s) == 1 else None for s in sides), 3

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor | Sequence[int]) -> Tensor | list[Tensor]:
        """One image for a number, or several."""
        index = torch.as_tensor(index)
        if index.ndim == 0:
            return self.images[int(index)]
        return [self.images[i] for i in index.tolist()]

    def __add__(self, other: ImageList) -> ImageList:
        return ImageList(self.images + other.images)

    def fingerprint(self, which: Tensor) -> str:
        """SHA-256 of the images at these positions, order included."""
        digest = hashlib.sha256()
        for i in which.tolist():
            digest.update(json.dumps(list(self.images[i].shape)).encode())
            digest.update(self.images[i].contiguous().numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class VisualSet(Dataset):
    """Questions about images, with their answers.

    Attributes
    ----------
    images : (M, H, W, 3) uint8; files that are decoded when they are asked for; or images of any
        size, as `from_images` takes them
    which : (N,) int64, the image that each question is about; an image may have several questions
    questions, answers : N texts each, none of them empty

    Raises
    ------
    TypeError, ValueError
        One of them is something else.
    """

    images: Tensor | ImageFiles | ImageList
    which: Tensor
    questions: tuple[str, ...]
    answers: tuple[str, ...]

    def __post_init__(self) -> None:
        n = len(self.questions)
        if not n == len(self.answers) == len(self.which):
            raise ValueError(
                f"{n} questions, {len(self.answers)} answers, {len(self.which)} images"
            )
        if self.images.ndim != 4 or self.images.shape[3] != 3 or self.images.dtype != torch.uint8:
            raise ValueError(
                f"images are (M, H, W, 3) uint8, not {tuple(self.images.shape)} {self.images.dtype}"
            )
        check_numbers(self.which, "which (the images that are asked about)", len(self.images))
        for name in ("questions", "answers"):
            check_texts(getattr(self, name), name)

    @classmethod
    def from_images(
        cls, images: Iterable[Any], questions: Sequence[str], answers: Sequence[str]
    ) -> VisualSet:
        """A question and an answer about each image: of PIL, an array, a tensor or a file, of any size.

        Raises
        ------
        TypeError, ValueError
            As of `VisualSet` and `as_pixels`.
        """
        found = ImageList(images)
        return cls(found, torch.arange(len(found)), tuple(questions), tuple(answers))

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, i: int) -> Triple:
        return self.questions[i], self.answers[i], self.images[self.which[i]]

    @staticmethod
    def collate(triples: Sequence[Triple]) -> list[Triple]:
        """A batch is a list: only a model's tokenizer can make tensors of it."""
        return list(triples)

    def subset(self, positions: Tensor | Sequence[int]) -> VisualSet:
        """The questions at these positions, in that order; all images stay."""
        chosen = torch.as_tensor([int(i) for i in positions], dtype=torch.int64)
        return replace(
            self,
            which=self.which[chosen],
            questions=tuple(self.questions[i] for i in chosen),
            answers=tuple(self.answers[i] for i in chosen),
        )

    def with_questions(self, questions: Sequence[str]) -> VisualSet:
        """The same images and answers under other questions, one an example."""
        return replace(self, questions=tuple(questions))

    def with_answers(self, answers: Sequence[str]) -> VisualSet:
        """The same images and questions with other answers, one an example."""
        return replace(self, answers=tuple(answers))

    def __add__(self, other: VisualSet) -> VisualSet:
        """The questions of both; images of one kind, and tensors of one size."""
        if type(self.images) is not type(other.images):
            kinds = type(self.images).__name__, type(other.images).__name__
            raise TypeError(f"images of different kinds can't be joined: {' and '.join(kinds)}")
        tensors = isinstance(self.images, Tensor)
        return VisualSet(
            torch.cat([self.images, other.images]) if tensors else self.images + other.images,
            torch.cat([self.which, other.which + len(self.images)]),
            self.questions + other.questions,
            self.answers + other.answers,
        )

    def fingerprint(self) -> str:
        """SHA-256 of the images that are asked about and of all texts, order included.

        Of images in files it is their names and sizes.
        """
        digest = hashlib.sha256(json.dumps([self.questions, self.answers]).encode())
        digest.update(json.dumps(list(self.images.shape[1:])).encode())
        if isinstance(self.images, Tensor):
            digest.update(self.images[self.which].contiguous().numpy().tobytes())
        else:
            digest.update(self.images.fingerprint(self.which).encode())
        return digest.hexdigest()
