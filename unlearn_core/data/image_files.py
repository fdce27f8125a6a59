"""Images in files that a reader supplies: too many to hold, or of any size."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ImageFiles", "decoded"]

#: CLIP's mean colour, with which LLaVA-1.5's authors fill an image up to a square.
MEAN = (122, 116, 104)


def decoded(file: Path) -> Image:
    """The image in a file, in colour.

    Raises
    ------
    ValueError
        The file can't be decoded; it is named.
    """
    from PIL import Image

    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except Exception as error:  # decoders raise what they like at damaged bytes
        raise ValueError(f"{file.name} in {file.parent.name} is no image: {error}") from error


class ImageFiles:
    """Images of any size as squares, decoded when they are asked for: as if (M, size, size, 3) uint8."""

    dtype, ndim = torch.uint8, 4

    def __init__(self, files: Sequence[Path], size: int) -> None:
        self.files, self.size = tuple(files), size

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, size, size, 3), as that of an array of pixels."""
        return len(self.files), self.size, self.size, 3

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Tensor) -> Tensor:
        """One image for a number, or several."""
        if index.ndim == 0:
            return self.read(self.files[int(index)])
        return torch.stack([self.read(self.files[i]) for i in index.tolist()])

    def __add__(self, other: ImageFiles) -> ImageFiles:
        return ImageFiles(self.files + other.files, self.size)

    def read(self, file: Path) -> Tensor:
        """(size, size, 3) uint8, filled up with the mean colour.

        Raises
        ------
        ValueError
            The file can't be decoded; it is named.
        """
        from PIL import Image, ImageOps

        whole = decoded(file)
        side = (self.size, self.size)
        square = ImageOps.pad(whole, side, Image.Resampling.BICUBIC, color=MEAN)
        return torch.from_numpy(np.array(square))

    def fingerprint(self, which: Tensor) -> str:
        """Names and sizes of files, not what is in them: there are too many to read at every start."""
        files = [self.files[i] for i in which.tolist()]
        return json.dumps([[f.parent.name, f.name, f.stat().st_size] for f in files])
