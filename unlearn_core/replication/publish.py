"""Publishing: executed notebooks and their records, from a clean commit only."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..registry import ConfigError
from .papers import project_root
from .records import Record, git
from .runner import Outcome, chosen, run_folder

__all__ = ["LIMIT", "check_kept", "check_publishable", "machine_paths", "publish"]

#: Largest size of a published notebook, bytes.
LIMIT = 1_500_000

#: Where git looks for what it must keep.
_KEEPING = ("refs/heads", "refs/remotes", "refs/tags")

#: What names a place on a machine, by its form.
_PATHS = (
    re.compile(r"\bfile:/+[\w./@+-]+", re.IGNORECASE),
    # Two or more components from the root. What comes before tells a path from a URL, a date, a
    # fraction, a MIME type, "and/or", a relative path, a closing tag, and a formula.
    re.compile(r"(?<![\w./<)\]}\\^$*+~%&#?-])/[\w.@+-]*\w[\w.@+-]*(?:/[\w.@+-]+)+"),
    re.compile(r"(?<![\w./~])~(?:[A-Za-z_][\w-]+)?/[\w.@+-]+"),
)
_DRIVE = re.compile(r"(?<!\w)[A-Za-z]:\\{1,2}[\w.@+ -]*\w\\{1,2}[\w.@+-]+")
#: "f:\X\to\Y" has the form of a drive's path.
_FORMULA = re.compile(
    r"\$\$.*?\$\$|\$[^$\n]*\$|\\\(.*?\\\)|\\\[.*?\\\]|\\begin\{(\w+\*?)\}.*?\\end\{\1\}"
    r"|```\{math\}.*?```",
    re.DOTALL,
)
#: Colours of a terminal, and files that a page carries in itself.
_NOISE = re.compile(r"\x1b\[[\d;]*m|;base64,[\w+/=]+")
_BINARY = re.compile(r"(?:image|audio|video|font)/(?!svg)|application/pdf")


def _texts(node: Any) -> Iterator[str]:
    """All strings in JSON, keys included, except what is an image or the like."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, list):
        lines = [child for child in node if isinstance(child, str)]
        yield "\n".join(lines)  # a text of several lines, as notebooks keep it
        for child in node:
            if not isinstance(child, str):
                yield from _texts(child)
    elif isinstance(node, dict):
        for key, child in node.items():
            yield key
            if not _BINARY.match(key):
                yield from _texts(child)


def machine_paths(text: str) -> list[str]:
    """Absolute paths of some machine in a text, or in the strings of JSON."""
    try:
        texts = list(_texts(json.loads(text)))
    except ValueError:
        texts = [text]
    found: set[str] = set()
    for one in texts:
        plain = re.sub(r"\\[nrt](?=/)", " ", _NOISE.sub(" ", one))  # line ends may be escaped again
        for pattern in _PATHS:
            found.update(pattern.findall(plain))
            plain = pattern.sub(" ", plain)
        found.update(_DRIVE.findall(_FORMULA.sub(" ", plain)))
    return sorted(found)


def check_publishable(notebook: Path, record: Path) -> None:
    """Raise unless both files may be published.

    Raises
    ------
    ConfigError
        A row or the run was made with uncommitted changes, a path of this machine is in a file,
        the notebook is too large or has an error in it, or it is a rehearsal.
    """
    made = Record.read(record)
    if made.rehearsal:
        raise ConfigError(f"{record.name}: a rehearsal is not published")
    dirty = [r for r in made.rows if r.provenance.dirty]
    if made.dirty or dirty:
        raise ConfigError(f"{record.name}: {len(dirty)} rows were made with uncommitted changes")
    for file in (notebook, record):
        if paths := machine_paths(file.read_text(encoding="utf-8")):
            raise ConfigError(f"{file.name} names paths of this machine: {', '.join(paths[:3])}")
    if notebook.stat().st_size > LIMIT:
        raise ConfigError(f"{notebook.name} is {notebook.stat().st_size:,} bytes, over {LIMIT:,}")
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if any(o["output_type"] == "error" for o in cell.get("outputs", [])):
            raise ConfigError(f"{notebook.name} has a cell that failed")


def check_kept(root: Path, commits: Iterable[str]) -> None:
    """Raise where git may lose one of these commits, since no branch or tag holds it.

    A record names the commits that its numbers come from. On a detached HEAD, or after a rebase, one is
    there until git clears up, and nobody who clones the repository gets it.

    Raises
    ------
    ConfigError
        Names the commits, and what keeps them.
    """
    lost = []
    for commit in sorted(set(commits)):
        try:
            held = git(root, "for-each-ref", "--count=1", f"--contains={commit}", *_KEEPING)
        except OSError:  # git knows no such commit
            held = ""
        if not held:
            lost.append(commit)
    if lost:
        raise ConfigError(
            f"no branch or tag holds {', '.join(lost)}, where numbers to be published come from: put "
            f"them on a branch (git branch kept {lost[0]}), or make what they made again on one"
        )


@contextmanager
def worktree(root: Path) -> Iterator[Path]:
    """A temporary checkout of HEAD, so that the tree can be edited while it runs."""
    folder = Path(tempfile.mkdtemp(prefix="publish-", dir=root / "build"))
    try:
        git(root, "worktree", "add", "--detach", "--force", str(folder), "HEAD")
    except OSError as error:
        folder.rmdir()
        raise ConfigError(f"HEAD can't be checked out to publish it: {error}") from error
    try:
        yield folder
    finally:
        with suppress(OSError):  # what git does not remove is removed without it
            git(root, "worktree", "remove", "--force", str(folder))
        shutil.rmtree(folder, ignore_errors=True)


def publish(profile: str, papers: Sequence[str] = (), *, rows: str = "") -> list[Outcome]:
    """Run the notebooks on a clean checkout of HEAD, and copy what they made into the book.

    The cache is shared: rows that a clean commit has made are taken from it, or else from what the
    book has published; the others are made. With ``rows="published"`` none is, and a chapter that
    lacks one is not published: for a change of text or rules alone. What an earlier version of a
    method has made stays, and is marked. With ``rows="made"`` what is made of a chapter is published,
    and what is not made yet is said to be so.

    Raises
    ------
    ConfigError
        HEAD can't be checked out, or no branch holds it. (A chapter that may not be published is an
        outcome, with the reason in its log.)
    """
    root = project_root()
    (root / "build").mkdir(exist_ok=True)
    environment = dict(os.environ)
    # The notebooks run in the checkout, from where a relative path leads elsewhere; a cache there
    # would go with it. What they make is to be there, though.
    for name, value in os.environ.items():
        supplied = name.startswith("UNLEARN_") and name != "UNLEARN_BUILD" and value
        if supplied and (root / value).exists():
            environment[name] = str((root / value).resolve())
    cache = root / (os.environ.get("UNLEARN_CACHE") or "build/cache")
    environment |= {"UNLEARN_CACHE": str(cache.resolve()), "UNLEARN_CLEAN": "1"}
    if rows:
        environment["UNLEARN_ROWS"] = rows
    outcomes = []
    with worktree(root) as clean:
        check_kept(root, [git(root, "rev-parse", "HEAD")])
        environment |= {"PYTHONPATH": str(clean), "UNLEARN_ROOT": str(clean)}
        for slug in chosen(papers, profile):
            command = [sys.executable, "-m", "unlearn_core.replication", "reproduce"]
            command += ["--profile", profile, "--papers", slug, "--no-book"]
            done = subprocess.run(command, cwd=clean, env=environment)
            made = clean / run_folder(profile)
            log = root / "build" / f"publish-{slug}.log"
            if (made / f"{slug}.log").exists():
                shutil.copy(made / f"{slug}.log", log)
            if done.returncode:
                outcomes.append(Outcome(slug, "failed", 0.0, log))
                continue
            notebook, record = made / f"{slug}.ipynb", made / f"{slug}.json"
            try:
                check_publishable(notebook, record)
                found = Record.read(record)
                check_kept(root, [found.commit, *(r.provenance.commit for r in found.rows)])
            except ConfigError as error:  # the other papers are still published
                with log.open("a", encoding="utf-8") as end:
                    end.write(f"\nnot published: {error}\n")
                outcomes.append(Outcome(slug, "failed", 0.0, log))
                continue
            target = root / "book" / "published" / profile
            target.mkdir(parents=True, exist_ok=True)
            for file in (notebook, record):
                shutil.copy(file, target / file.name)
            outcomes.append(Outcome(slug, "ran", 0.0, log))
    return outcomes
