"""Running notebooks: what is out of date, in parallel, each in its own process.

A notebook runs in ``running`` beside what its last run has left. Only when it has come to its end
do notebook and record take the places of the former ones, together, with a stamp that says what
they were made of; a lock a notebook keeps two runs from doing the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..registry import ConfigError, did_you_mean
from .cache import digest
from .papers import PaperFile, known_papers, load_paper, paper_sources, project_root
from .progress import Lines, span

__all__ = [
    "Outcome",
    "build_folder",
    "execute",
    "out_of_date",
    "parameters_of",
    "reproduce",
    "run_folder",
    "stamped",
]


#: glibc's allocator would return each large block and fault it in again at the next step: about a
#: tenth of the time of a language model's training on a CPU.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_TOP_PAD_": str(2**26),
}

#: Progress bars of libraries would be outputs of the page.
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}


@dataclass(frozen=True)
class Outcome:
    """How one notebook's run ended."""

    paper: str
    state: str  # "ran", "up to date", "failed" or "rows missing"
    seconds: float
    log: Path


@contextmanager
def with_variables(given: Mapping[str, str]) -> Iterator[None]:
    """In the block the environment has these, whatever else changes in it."""
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def build_folder() -> Path:
    """Where runs leave what they make, relative to the root: ``build``, or $UNLEARN_BUILD.

    The cache is not in the latter: tests share it with the reader, and nothing else.
    """
    folder = Path(os.environ.get("UNLEARN_BUILD") or "build")
    if folder.is_absolute() or ".." in folder.parts:
        raise ConfigError(f"UNLEARN_BUILD must be a folder inside the project, not {folder}")
    return folder


def run_folder(profile: str, rehearsal: bool = False) -> Path:
    """Where a run leaves its notebooks and records, relative to the root."""
    rehearsed = "rehearsal" if profile == "paper" else f"rehearsal-{profile}"
    return build_folder() / (rehearsed if rehearsal else profile)


def parameters_of(notebook: dict[str, Any]) -> list[str]:
    """Names that the cell tagged "parameters" assigns, each a literal on a line of its own."""
    for cell in notebook["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            lines = "".join(cell["source"]).splitlines()
            return [line.split("=")[0].strip() for line in lines if line.strip()]
    raise ConfigError("the notebook has no cell tagged 'parameters'")


# --- one notebook ----------------------------------------------------------------------------


def execute(paper: str, profile: str) -> None:
    """Execute one notebook in this process's environment, unless another run has just done so.

    Names and values are checked first: papermill itself only warns of an unknown parameter.
    """
    root, rehearsal = project_root(), os.environ.get("UNLEARN_REHEARSE") == "1"
    load_paper(paper).profile(profile)
    source = Path("notebooks") / f"{paper}.ipynb"
    folder = run_folder(profile, rehearsal)
    running = folder / "running"
    wanted = {"paper": paper, "profile": profile, "out": running.as_posix()}
    names = parameters_of(json.loads((root / source).read_text(encoding="utf-8")))
    for name in wanted:
        if name not in names:
            raise ConfigError(f"{source} has no parameter {name!r}; {did_you_mean(name, names)}")
    with lock(root / folder, paper):
        if not out_of_date(paper, profile, rehearsal):
            return
        before = fingerprint(paper, profile, rehearsal)
        (root / running).mkdir(exist_ok=True)
        for file in pair(root / running, paper):
            file.unlink(missing_ok=True)
        _papermill(source, running / f"{paper}.ipynb", wanted)
        settle(root / folder, paper, before)


def _papermill(source: Path, target: Path, parameters: Mapping[str, str]) -> None:
    """Both relative to the root, so that the executed notebook carries no path of this machine."""
    import papermill

    root = project_root()
    os.environ.update(QUIET | os.environ)  # the kernel inherits it; the reader's word counts
    os.environ["UNLEARN_PROGRESS"] = str(root / target.parents[1] / f"{target.stem}.progress")
    os.environ.pop("PYTHONSTARTUP", None)
    os.chdir(root)
    with tempfile.TemporaryDirectory() as settings:
        # What the reader has IPython do at its start is not part of the notebook.
        os.environ["IPYTHONDIR"] = settings
        papermill.execute_notebook(
            source.as_posix(),
            target.as_posix(),
            parameters=dict(parameters),
            kernel_name="python3",
            kernel_manager_class=own_kernel(),
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
        )
    notebook = json.loads((root / target).read_text(encoding="utf-8"))
    strip_streams(notebook)
    text = json.dumps(notebook, indent=1, ensure_ascii=False)
    (root / target).write_text(f"{text}\n", encoding="utf-8")


def own_kernel() -> type:
    """A kernel of this interpreter: which "python3" is, the machine decides (JUPYTER_PATH)."""
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec

    class OwnKernel(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(**get_kernel_dict())

    return OwnKernel


def strip_streams(notebook: dict[str, Any]) -> None:
    """Take out what was printed and warned beside the results; it stands in the log.

    A page shows what its notebook displays. Anything may print: libraries, their progress bars,
    code below Python; and name paths of this machine.
    """
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = [o for o in cell["outputs"] if o["output_type"] != "stream"]


def pair(folder: Path, paper: str) -> tuple[Path, Path]:
    """An executed notebook and its record."""
    return folder / f"{paper}.ipynb", folder / f"{paper}.json"


def lock(folder: Path, paper: str) -> FileLock:
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{paper}.lock")


def settle(folder: Path, paper: str, made_of: str) -> None:
    """Put what has run in ``running`` in the place of what was there, and stamp it.

    A kill in between leaves an old record alone or a new one, never two that are not a pair.
    """
    stamp, (notebook, record) = folder / f"{paper}.stamp", pair(folder, paper)
    stamp.unlink(missing_ok=True)
    notebook.unlink(missing_ok=True)
    new_notebook, new_record = pair(folder / "running", paper)
    new_record.replace(record)
    new_notebook.replace(notebook)
    text = json.dumps({"made of": made_of, "sha256": _sha256(pair(folder, paper))})
    aside = stamp.with_name(f".{stamp.name}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(stamp)
    (folder / f"{paper}.progress").unlink(missing_ok=True)


def _sha256(files: Sequence[Path]) -> list[str]:
    return [hashlib.sha256(f.read_bytes()).hexdigest() for f in files]


def stamped(folder: Path, paper: str) -> str | None:
    """The `fingerprint` of what a run's notebook and record were made of.

    None where no run has come to its end, or where one of the two is not as that run left it.
    """
    try:
        stamp = json.loads((folder / f"{paper}.stamp").read_bytes())
        whole = stamp["sha256"] == _sha256(pair(folder, paper))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return stamp["made of"] if whole else None


def fingerprint(
    paper: str, profile: str, rehearsal: bool, environment: Mapping[str, str] | None = None
) -> str:
    """A hash of everything that a notebook's output depends on; the environment is this process's."""
    root = project_root()
    files = [*paper_sources(paper), root / "book" / "references.bib"]
    files += sorted((root / "unlearn_core").rglob("*.py"))
    contents = [[f.relative_to(root).as_posix() for f in files], _sha256(files)]
    # What the reader supplies (a hub, a folder of images) lifts skips.
    elsewhere = (
        *("UNLEARN_BUILD", "UNLEARN_CACHE", "UNLEARN_ROOT", "UNLEARN_REQUIRE_BROWSER"),
        *("UNLEARN_ROWS", "UNLEARN_PROGRESS", "UNLEARN_REHEARSE"),
    )
    variables = {
        k: v
        for k, v in (os.environ if environment is None else environment).items()
        if k.startswith("UNLEARN_") and k not in elsewhere
    }
    return digest([profile, rehearsal, variables, contents])


def out_of_date(
    paper: str,
    profile: str,
    rehearsal: bool = False,
    environment: Mapping[str, str] | None = None,
) -> bool:
    """Must the notebook run again, by what it and the package are now?"""
    folder = project_root() / run_folder(profile, rehearsal)
    return stamped(folder, paper) != fingerprint(paper, profile, rehearsal, environment)


# --- many ------------------------------------------------------------------------------------


def chosen(papers: Sequence[str], profile: str) -> dict[str, PaperFile]:
    """The papers to run (where none is named all that have the profile), validated."""
    files = {slug: load_paper(slug) for slug in papers or known_papers()}
    having = {slug: file for slug, file in files.items() if profile in file.profiles}
    files = files if papers else having or files
    for file in files.values():
        file.profile(profile)
    return files


def reproduce(
    profile: str,
    papers: Sequence[str] = (),
    *,
    jobs: int | None = None,
    launch: str = "",
    rehearsal: bool = False,
    variables: Mapping[str, str] | None = None,
) -> list[Outcome]:
    """Run what is out of date; one failure does not stop the others.

    ``jobs`` notebooks run at a time, the longest first; without a number as many as this machine
    has cores, and memory for. ``launch`` is a command put before each notebook's
    (``srun --gres=gpu:1``). Each notebook gets its share of this machine's cores, unless a
    launcher decides, and ``variables`` in its environment.
    """
    if jobs is not None and jobs < 1:
        raise ConfigError(f"jobs must be at least 1, not {jobs}")
    prefix = launcher(launch)
    root, files = project_root(), chosen(papers, profile)
    profiles = {slug: file.profile(profile) for slug, file in files.items()}
    # A rehearsal takes what small models and PyTorch itself take, whatever the profile says.
    needs = {slug: 1.5 if rehearsal else p.memory_gb for slug, p in profiles.items()}
    memory = float("inf")
    if jobs is None:
        jobs = 1 if prefix or has_accelerator() else max(1, min(cores(), len(files)))
        memory = available_memory()
    folder = root / run_folder(profile, rehearsal)
    environment = {**os.environ, **(variables or {}), "UNLEARN_ROOT": str(root)}
    environment.pop("UNLEARN_REHEARSE", None)
    if rehearsal:
        environment["UNLEARN_REHEARSE"] = "1"
    if not prefix:
        threads = str(max(1, cores() // jobs))
        environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads} | environment
        # Threads that wait by spinning slow each other down five-fold when cores are shared.
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **KEEP_MEMORY} | environment
    command = [*prefix, sys.executable, "-m", "unlearn_core.replication", "execute"]

    waiting = sorted(files, key=lambda slug: -profiles[slug].minutes)
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    ended: dict[str, Outcome] = {}
    lines = Lines()
    try:
        while waiting or running:
            for slug in list(waiting):
                in_use = sum(needs[other] for other in running)
                if len(running) >= jobs or (running and in_use + needs[slug] > memory):
                    continue
                if locked(folder, slug):
                    lines.once(f"{slug}: another run is at it; waiting for its end")
                    continue
                waiting.remove(slug)
                log = folder / f"{slug}.log"
                if not out_of_date(slug, profile, rehearsal, environment):
                    ended[slug] = Outcome(slug, "up to date", 0.0, log)
                    continue
                lines.say(f"{slug}: running (profile {profile}); log in {log.relative_to(root)}")
                (folder / f"{slug}.progress").unlink(missing_ok=True)
                with log.open("w", encoding="utf-8") as output:
                    process = subprocess.Popen(
                        [*command, slug, "--profile", profile],
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        env=environment,
                        cwd=root,
                    )
                running[slug] = process, time.perf_counter()
            for slug, (process, began) in list(running.items()):
                if process.poll() is None:
                    lines.tell(slug, folder / f"{slug}.progress")
                    continue
                del running[slug]
                if process.returncode < 0:  # it could not say so itself
                    with (folder / f"{slug}.log").open("a", encoding="utf-8") as log_end:
                        log_end.write(f"ended by {signal.Signals(-process.returncode).name}\n")
                state = "failed" if process.returncode else "ran"
                seconds = time.perf_counter() - began
                lines.end(slug, f"{slug}: {state} after {span(seconds)}")
                ended[slug] = Outcome(slug, state, seconds, folder / f"{slug}.log")
            if waiting or running:
                time.sleep(0.1)
    except BaseException:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.wait()
        raise
    return [ended[slug] for slug in files]


def launcher(text: str) -> list[str]:
    """The words of a command that stands before each notebook's; none where there is none."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"the command to launch with is not whole: {text} ({error})") from error
    if words and shutil.which(words[0]) is None:
        raise ConfigError(f"the command to launch with was not found: {words[0]}")
    return words


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def has_accelerator() -> bool:
    """Notebooks would share it, and its memory."""
    from ..models.training import default_device

    return default_device().type != "cpu"


def available_memory() -> float:
    """Main memory that is not in use, GB: of the machine, or of the container where that has less."""
    import psutil

    free = psutil.virtual_memory().available
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (most := limit.read_text(encoding="utf-8").strip()) != "max":
        used = int(limit.with_name("memory.current").read_text(encoding="utf-8"))
        free = min(free, int(most) - used)
    return free / 1e9


def locked(folder: Path, paper: str) -> bool:
    """Is another run at this notebook?"""
    try:
        with lock(folder, paper).acquire(blocking=False):
            return False
    except Timeout:
        return True


def summary(outcomes: Sequence[Outcome]) -> str:
    """A table of how the run ended, and the end of the log of whatever failed."""
    lines = [f"{'paper':16} {'state':12} {'seconds':>8}"]
    lines += [f"{o.paper:16} {o.state:12} {o.seconds:8.1f}" for o in outcomes]
    for o in outcomes:
        if o.state == "failed":
            text = o.log.read_text(encoding="utf-8", errors="replace")
            lines += ["", f"--- {o.paper} failed; the end of its log:"]
            lines += text.strip().splitlines()[-25:]
    return "\n".join(lines)
