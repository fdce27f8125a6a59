"""Tables and folders of images, read by Hugging Face `datasets` from files that are on this machine."""

from __future__ import annotations

import contextlib
import glob
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .sources import MissingSourceError, Source

if TYPE_CHECKING:
    from datasets import IterableDataset

__all__ = ["images_by_class", "parts", "read"]


@contextlib.contextmanager
def _apart() -> Iterator[str]:
    """A cache folder for `datasets` that is gone after the block, in which it counts no download.

    It would ask its server to count every file that is read, and without a network wait for the answer.
    """
    from datasets import config

    counts = config.HF_UPDATE_DOWNLOAD_COUNTS
    config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield folder
    finally:
        config.HF_UPDATE_DOWNLOAD_COUNTS = counts


def read(kind: str, files: Sequence[Path | str], **options: Any) -> IterableDataset:
    """Rows in the order of ``files`` and of their lines, read when they are asked for; none is cached.

    Parameters
    ----------
    kind : a format of ``datasets.load_dataset``: "parquet", "json", "csv", "imagefolder"
    files : paths, or glob patterns where they are texts
    options : of that format

    Raises
    ------
    FileNotFoundError
        A file is not there, or a pattern fits none.
    """
    from datasets import load_dataset

    patterns = [glob.escape(str(f.absolute())) if isinstance(f, Path) else f for f in files]
    with _apart() as cache:
        return load_dataset(
            kind, data_files=patterns, split="train", streaming=True, cache_dir=cache, **options
        )


def parts(source: Source, split: str) -> list[Path]:
    """The files of one split in the hub's layout, ``<split>-00000-of-00002.parquet`` and so on.

    Raises
    ------
    MissingSourceError
        There is none, or one of them is missing.
    ValueError
        A part is there twice: it is named with both folders.
    """
    found: dict[tuple[int, int], Path] = {}
    for file in sorted(source.path.glob(f"**/{split}-*.parquet")):
        number = re.fullmatch(rf"{split}-(\d+)-of-(\d+)(-.*)?\.parquet", file.name)
        if number is None:
            raise ValueError(
                f"{source.id}: {file.name} is no part of {split} as the hub names them"
            )
        part, of = int(number[1]), int(number[2])
        other = next((f for (p, n), f in found.items() if p == part or n != of), None)
        if other is not None:
            both = (f.relative_to(source.path).as_posix() for f in (other, file))
            raise ValueError(
                f"{source.id}: {' and '.join(both)} belong to two copies of {split}; remove one"
            )
        found[part, of] = file
    if not found:
        raise MissingSourceError(f"{source.id}: no file {split}-*.parquet in the {source.kind}")
    of = max(n for _, n in found)
    if missing := sorted(set(range(of)) - {p for p, _ in found}):
        raise MissingSourceError(
            f"{source.id}: of {of} parts of {split} number {missing[0]} is not in the {source.kind}"
        )
    return [found[key] for key in sorted(found)]


def images_by_class(root: Path) -> list[tuple[str, Path]]:
    """The images of a folder that has a folder a class, with their classes, in the order of both.

    What is hidden, or no image by its name, is passed over, and so is a class without an image.

    Raises
    ------
    ValueError
        Two classes are the same folder.
    """
    from datasets import Image

    # Resolved and one by one: a link to a folder of images is a class, too, and isn't followed else.
    folders: dict[Path, str] = {}
    for folder in sorted(root.iterdir()):
        if folder.name.startswith((".", "__")) or not folder.is_dir():
            continue
        other = folders.setdefault(folder.resolve(), folder.name)
        if other != folder.name:
            raise ValueError(f"the classes {other} and {folder.name} are one folder")
    patterns = [f"{glob.escape(str(f))}/**" for f in folders]
    if not patterns:
        return []
    rows = read("imagefolder", patterns, drop_labels=True, drop_metadata=True)
    paths = [Path(row["image"]["path"]) for row in rows.cast_column("image", Image(decode=False))]
    found: list[tuple[str, Path]] = []
    for path in paths:
        folder = next(p for p in path.parents if p in folders)
        found.append((folders[folder], root / folders[folder] / path.relative_to(folder)))
    return sorted(found, key=lambda pair: (pair[0], str(pair[1].parent), pair[1].name))
