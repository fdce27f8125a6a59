"""Questions about images (SEFE, SafeEraser): what a model that sees and answers learns from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .checks import check_numbers, check_texts

if TYPE_CHECKING:
    from .image_files import ImageFiles

__all__ = ["VisualSet"]

#: A question, its answer, and the image that it is about: (H, W, 3) uint8.
Triple = tuple[str, str, Tensor]


@dataclass(frozen=True)
class VisualSet(Dataset):
    """Questions about images, with their answers.

    Attributes
    ----------
    images : (M, H, W, 3) uint8, or files that are decoded when they are asked for
    which : (N,) int64, the image that each question is about; an image may have several questions
    questions, answers : N texts each, none of them empty

    Raises
    ------
    TypeError, ValueError
        One of them is something else.
    """

    images: Tensor | ImageFiles
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
        return replace(self, questions=tuple(questions))

    def with_answers(self, answers: Sequence[str]) -> VisualSet:
        return replace(self, answers=tuple(answers))

    def __add__(self, other: VisualSet) -> VisualSet:
        """The questions of both; images of one size."""
        files = not isinstance(self.images, Tensor)
        return VisualSet(
            self.images + other.images if files else torch.cat([self.images, other.images]),
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
