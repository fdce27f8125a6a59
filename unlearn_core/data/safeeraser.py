"""SafeEraser's benchmark (Chen, Deng et al., Findings of ACL 2025), from a folder of the reader's.

It holds harmful images and texts, so nothing of it is part of this project, and no page shows any. Its
authors link an archive from github.com/yuu250/SafeEraser; unpacked it has ``all_train.json``,
``all_val.json``, ``prompt.json`` (refusals, under "idk") and ``img/``, a folder a category.

A record is a harmful image (``image_path``; where there is none, ``image_id``, which is a path as well)
with a safe one beside it (``SDImage_path``); four
``unsafe_pairs`` (``question``, what LLaVA answered about the harmful image, ``model_response``, and about
the safe one, ``sd_response``); and four harmless questions about the harmful image,
``UnharmPair_text1`` and so on, with LLaVA's answer as ``Prediction``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .image_files import decoded
from .image_questions import VisualSet
from .restricted_symbols import RestrictedPart
from .sources import MissingSourceError, Source, file_sha256, inside, json_file

__all__ = ["SafetyBenchmark", "safety_benchmark"]

FILES = {"train": "all_train.json", "val": "all_val.json"}
RETAIN = ("UnharmPair_text1", "UnharmPair_text2", "UnharmPair_image1", "UnharmPair_image2")


@dataclass(frozen=True)
class SafetyBenchmark:
    """The two parts of the benchmark; of both ``general`` is None.

    Attributes
    ----------
    refusals : to learn in the place of a harmful answer
    skipped : image files that could not be decoded, under their names in the folder; their records
        are left out
    """

    train: RestrictedPart
    val: RestrictedPart
    refusals: tuple[str, ...]
    skipped: tuple[str, ...]
    source: Source


def safety_benchmark(
    size: int = 336,
    skip_broken: bool = False,
    train_images: int | None = None,
    val_images: int | None = None,
) -> SafetyBenchmark:
    """The benchmark in the folder that ``$UNLEARN_SAFEERASER`` names.

    Parameters
    ----------
    size : images are shrunk to that side, and their middle is cut out, as LLaVA's processor does
    skip_broken : leave out records with an image that can't be decoded, instead of ending there
    train_images, val_images : the first so many records only

    Raises
    ------
    MissingSourceError
        The folder, a file or an image is not there.
    ValueError
        A record lacks something, or names an image outside the folder; an image can't be decoded.
    """
    root = Path(os.environ.get("UNLEARN_SAFEERASER", ""))
    files = [root / name for name in (*FILES.values(), "prompt.json")]
    if missing := [f.name for f in files if not f.is_file()]:
        raise MissingSourceError(
            f"$UNLEARN_SAFEERASER names no folder with {' and '.join(missing)}"
        )
    records = {k: json_file(root / f) for k, f in FILES.items()}
    records = {"train": records["train"][:train_images], "val": records["val"][:val_images]}
    skipped: dict[str, None] = {}
    parts = {k: _part(root, k, found, size, skipped) for k, found in records.items()}
    if skipped and not skip_broken:
        raise ValueError(
            f"{len(skipped)} images can't be decoded, the first is {next(iter(skipped))}; the "
            "profile may say skip_broken"
        )
    refusals = json_file(root / "prompt.json")["idk"]
    source = Source("SafeEraser", "user", file_sha256(files, root), root)
    texts = tuple(text.strip() for text in refusals)
    return SafetyBenchmark(parts["train"], parts["val"], texts, tuple(skipped), source)


def _file(root: Path, written: str) -> Path:
    """A record's path begins where the authors' scripts are started, beside the folder."""
    parts = Path(written).parts
    return inside(root, "/".join(parts[parts.index("img") :]) if "img" in parts else written)


def _image(file: Path, size: int) -> Tensor | None:
    """(size, size, 3) uint8; None if it can't be decoded."""
    from PIL import Image

    if not file.is_file():
        raise MissingSourceError(f"the benchmark's image {file.name} is not there")
    try:
        image = decoded(file)
    except ValueError:
        return None
    scale = size / min(image.size)
    width, height = (max(size, round(scale * n)) for n in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image.crop((left, top, left + size, top + size))))


def _part(
    root: Path, name: str, records: Iterable[dict[str, Any]], size: int, skipped: dict[str, None]
) -> RestrictedPart:
    """Records as three sets with the same order; names of what can't be decoded go to ``skipped``."""
    images: dict[Path, int] = {}
    pixels: list[Tensor] = []

    def seen(file: Path) -> bool:
        if file not in images:
            image = _image(file, size)
            if image is None:
                skipped[file.relative_to(root).as_posix()] = None
                return False
            images[file] = len(pixels)
            pixels.append(image)
        return True

    rows: dict[str, list[tuple[int, str, str]]] = {"forget": [], "retain": [], "decouple": []}
    for i, record in enumerate(records):
        try:
            harmful = _file(root, record.get("image_path") or record["image_id"])
            safe = _file(root, record["SDImage_path"])
            pairs = [
                (p["question"], p["model_response"], p["sd_response"])
                for p in record["unsafe_pairs"]
            ]
            kept = [(record[k]["Question"], record[k]["Prediction"]) for k in RETAIN]
        except (KeyError, TypeError) as error:
            raise ValueError(f"record {i} of {FILES[name]} lacks {error}") from error
        if not all([seen(harmful), seen(safe)]):
            continue
        for question, unsafe, normal in pairs:
            rows["forget"].append((images[harmful], question, unsafe))
            rows["decouple"].append((images[safe], question, normal))
        rows["retain"] += [(images[harmful], *pair) for pair in kept]
    if not pixels:
        raise ValueError(f"{FILES[name]} has no record with images that can be decoded")
    stacked = torch.stack(pixels)
    sets = {
        k: VisualSet(
            stacked,
            torch.tensor([w for w, _, _ in r]),
            *zip(*((q, a) for _, q, a in r), strict=True),
        )
        for k, r in rows.items()
    }
    return RestrictedPart(**sets)
