"""Publishing: executed notebooks and their records, from a clean commit only."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..registry import ConfigError
from .papers import project_root
from .records import Record
from .runner import Outcome, chosen, run_folder

__all__ = ["LIMIT", "check_publishable", "machine_paths", "publish"]

#: Largest size of a published notebook, bytes.
LIMIT = 1_500_000

_PATH = re.compile(
    r"(?<![\w./:>-])/(?:home|root|work|tmp|Users|mnt|data|opt|var|usr|content)/[\w./-]+"
)


def machine_paths(text: str) -> list[str]:
    """Absolute paths of some machine in a text (JSON, so line ends may be escaped)."""
    return sorted(set(_PATH.findall(re.sub(r"\\[nrt]", " ", text))))


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
        if paths := machine_paths(file.read_text()):
            raise ConfigError(f"{file.name} names paths of this machine: {', '.join(paths[:3])}")
    if notebook.stat().st_size > LIMIT:
        raise ConfigError(f"{notebook.name} is {notebook.stat().st_size:,} bytes, over {LIMIT:,}")
    for cell in json.loads(notebook.read_text())["cells"]:
        if any(o["output_type"] == "error" for o in cell.get("outputs", [])):
            raise ConfigError(f"{notebook.name} has a cell that failed")


@contextmanager
def worktree(root: Path) -> Iterator[Path]:
    """A temporary checkout of HEAD, so that the tree can be edited while it runs."""
    folder = Path(tempfile.mkdtemp(prefix="publish-", dir=root / "build"))
    git = ["git", "-C", str(root), "worktree"]
    try:
        subprocess.run([*git, "add", "--detach", "--force", str(folder), "HEAD"], check=True)
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def publish(profile: str, papers: Sequence[str] = ()) -> list[Outcome]:
    """Run the notebooks on a clean checkout of HEAD, and copy what they made into the book.

    The cache is shared: rows that a clean commit has made are taken from it, or else from what the
    book has published; the others are made.
    """
    root = project_root()
    (root / "build").mkdir(exist_ok=True)
    environment = dict(os.environ)
    environment["UNLEARN_CACHE"] = environment.get("UNLEARN_CACHE") or str(root / "build" / "cache")
    if hub := environment.get("UNLEARN_HUB"):
        environment["UNLEARN_HUB"] = str(Path(hub).resolve())
    environment["UNLEARN_CLEAN"] = "1"
    outcomes = []
    with worktree(root) as clean:
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
            except ConfigError as error:  # the other papers are still published
                log.write_text(f"{log.read_text()}\nnot published: {error}\n")
                outcomes.append(Outcome(slug, "failed", 0.0, log))
                continue
            target = root / "book" / "published" / profile
            target.mkdir(parents=True, exist_ok=True)
            for file in (notebook, record):
                shutil.copy(file, target / file.name)
            outcomes.append(Outcome(slug, "ran", 0.0, log))
    return outcomes
