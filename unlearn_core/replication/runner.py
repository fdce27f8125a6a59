"""Running notebooks: what is out of date, in parallel, each in its own process."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..registry import ConfigError, did_you_mean
from .cache import digest
from .papers import PaperFile, known_papers, load_paper, project_root

__all__ = ["Outcome", "execute", "out_of_date", "parameters_of", "reproduce", "run_folder"]


#: glibc's allocator would return each large block and fault it in again at the next step: about a
#: tenth of the time of a language model's training on a CPU.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_TOP_PAD_": str(2**26),
}

#: What libraries say beside the results names paths of this machine, which a page may not.
QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    # FutureWarning is how libraries speak of each other's old names.
    "PYTHONWARNINGS": "ignore:IProgress not found,ignore::FutureWarning",
    "TRANSFORMERS_VERBOSITY": "error",
}


@dataclass(frozen=True)
class Outcome:
    """How one notebook's run ended."""

    paper: str
    state: str  # "ran", "up to date" or "failed"
    seconds: float
    log: Path


def run_folder(profile: str, rehearsal: bool = False) -> Path:
    """Where a run leaves its notebooks and records, relative to the root."""
    return Path("build") / ("rehearsal" if rehearsal else profile)


def parameters_of(notebook: dict[str, Any]) -> list[str]:
    """Names that the cell tagged "parameters" assigns, each a literal on a line of its own."""
    for cell in notebook["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            lines = "".join(cell["source"]).splitlines()
            return [line.split("=")[0].strip() for line in lines if line.strip()]
    raise ConfigError("the notebook has no cell tagged 'parameters'")


def execute(paper: str, profile: str, out: Path) -> None:
    """Execute one notebook in this process's environment; ``out`` is relative to the root.

    Names and values are checked first: papermill itself only warns of an unknown parameter.
    """
    import papermill

    root = project_root()
    load_paper(paper).profile(profile)
    source = Path("notebooks") / f"{paper}.ipynb"
    wanted = {"paper": paper, "profile": profile, "out": out.as_posix()}
    names = parameters_of(json.loads((root / source).read_text()))
    for name in wanted:
        if name not in names:
            raise ConfigError(f"{source} has no parameter {name!r}; {did_you_mean(name, names)}")
    (root / out).mkdir(parents=True, exist_ok=True)
    os.environ.update(QUIET | os.environ)  # the kernel inherits it; the reader's word counts
    os.chdir(root)  # relative paths: an executed notebook carries no path of this machine
    papermill.execute_notebook(
        source.as_posix(),
        (out / f"{paper}.ipynb").as_posix(),
        parameters=wanted,
        kernel_name="python3",
        progress_bar=False,
        log_output=False,
    )


def fingerprint(paper: str, profile: str, rehearsal: bool) -> str:
    """A hash of everything that a notebook's output depends on."""
    root = project_root()
    files = [root / "notebooks" / f"{paper}.{suffix}" for suffix in ("ipynb", "yaml")]
    files += [root / "book" / "references.bib"]
    files += sorted((root / "unlearn_core").rglob("*.py"))
    contents = [[f.relative_to(root).as_posix(), f.read_text()] for f in files]
    # What the reader supplies (a hub, a folder of images) lifts skips.
    elsewhere = ("UNLEARN_CACHE", "UNLEARN_ROOT", "UNLEARN_REQUIRE_BROWSER")
    variables = {
        k: v for k, v in os.environ.items() if k.startswith("UNLEARN_") and k not in elsewhere
    }
    return digest([profile, rehearsal, variables, contents])


def out_of_date(paper: str, profile: str, rehearsal: bool = False) -> bool:
    folder = project_root() / run_folder(profile, rehearsal)
    stamp = folder / f"{paper}.stamp"
    made = all((folder / f"{paper}.{suffix}").exists() for suffix in ("ipynb", "json"))
    return not (
        made and stamp.exists() and stamp.read_text() == fingerprint(paper, profile, rehearsal)
    )


def chosen(papers: Sequence[str], profile: str) -> dict[str, PaperFile]:
    """The papers to run (all where none is named), validated."""
    slugs = list(papers) or known_papers()
    files = {slug: load_paper(slug) for slug in slugs}
    for file in files.values():
        file.profile(profile)
    return files


def reproduce(
    profile: str,
    papers: Sequence[str] = (),
    *,
    jobs: int = 1,
    launch: str = "",
    rehearsal: bool = False,
    variables: Mapping[str, str] | None = None,
) -> list[Outcome]:
    """Run what is out of date; one failure does not stop the others.

    ``launch`` is a command put before each notebook's (``srun --gres=gpu:1``). Each notebook
    gets its share of this machine's cores, unless a launcher decides, and ``variables`` in its
    environment.
    """
    if jobs < 1:
        raise ConfigError(f"jobs must be at least 1, not {jobs}")
    root, slugs = project_root(), list(chosen(papers, profile))
    folder = run_folder(profile, rehearsal)
    (root / folder).mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **(variables or {}), "UNLEARN_ROOT": str(root)}
    environment.pop("UNLEARN_REHEARSE", None)
    if rehearsal:
        environment["UNLEARN_REHEARSE"] = "1"
    if not launch:
        threads = str(max(1, (os.cpu_count() or 1) // jobs))
        environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads} | environment
        # Threads that wait by spinning slow each other down five-fold when cores are shared.
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **KEEP_MEMORY} | environment

    def run(slug: str) -> Outcome:
        log = root / folder / f"{slug}.log"
        if not out_of_date(slug, profile, rehearsal):
            return Outcome(slug, "up to date", 0.0, log)
        stamp = root / folder / f"{slug}.stamp"
        stamp.unlink(missing_ok=True)
        before = fingerprint(slug, profile, rehearsal)
        command = [*shlex.split(launch), sys.executable, "-m", "unlearn_core.replication"]
        command += ["execute", slug, "--profile", profile, "--out", folder.as_posix()]
        print(f"{slug}: running (profile {profile}); log in {log.relative_to(root)}", flush=True)
        began = time.perf_counter()
        with log.open("w") as handle:
            done = subprocess.run(
                command, stdout=handle, stderr=subprocess.STDOUT, env=environment, cwd=root
            )
        seconds = time.perf_counter() - began
        if done.returncode:
            return Outcome(slug, "failed", seconds, log)
        stamp.write_text(before)
        return Outcome(slug, "ran", seconds, log)

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(run, slugs))


def summary(outcomes: Sequence[Outcome]) -> str:
    """A table of how the run ended, and the end of the log of whatever failed."""
    lines = [f"{'paper':16} {'state':12} {'seconds':>8}"]
    lines += [f"{o.paper:16} {o.state:12} {o.seconds:8.1f}" for o in outcomes]
    for o in outcomes:
        if o.state == "failed":
            tail = o.log.read_text(errors="replace").strip().splitlines()[-25:]
            lines += ["", f"--- {o.paper} failed; the end of its log:", *tail]
    return "\n".join(lines)
