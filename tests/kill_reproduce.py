"""Kill `make reproduce` at random moments, and compare what it leaves with a run that was left alone.

``python tests/kill_reproduce.py --kills 100 --papers "ssd iau"``

A run that was killed is started again, until one comes to its end; that one's records must have the
uninterrupted run's rows and numbers, and nothing half-written may be left in the cache. Then the next
begins with an empty cache, until there were so many kills. Everything is made in build/kills, the
cache included. The exit status is 1 where a number differs; build/kills is kept then.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from unlearn_core.replication.cache import LITTER
from unlearn_core.replication.papers import known_papers, project_root
from unlearn_core.replication.records import Record

FOLDER = Path("build") / "kills"

#: Metrics that two runs never have in common.
MEASURED = {"seconds", "answer_seconds", "peak_memory"}

#: A run that takes so many times as long as the uninterrupted one hangs.
PATIENCE = 20


class Runs:
    """One run after the other in a folder and a cache of their own."""

    def __init__(self, name: str, papers: Sequence[str]) -> None:
        self.root, self.papers, self.own = project_root(), papers, FOLDER / name
        self.folder = self.root / self.own

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def run(self, seconds: float | None = None, kernels: bool = False) -> int | None:
        """The exit status of one run; None where it was killed after so many seconds."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("UNLEARN_")}
        environment |= {
            "UNLEARN_ROOT": str(self.root),
            "UNLEARN_BUILD": self.own.as_posix(),
            "UNLEARN_CACHE": (self.own / "cache").as_posix(),
            "HF_HUB_OFFLINE": "1",
            # With another number of threads it is another run, with other numbers.
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "unlearn_core.replication", "reproduce"]
        command += ["--profile", "ci", "--papers", " ".join(self.papers), "--no-book"]
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.root,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            kill(process, kernels)
            return None
        except BaseException:
            kill(process, kernels=True)
            raise

    def metrics(self) -> dict[tuple[str, str, str], float]:
        """(paper, row's key, metric) -> value, of all that another run must find again.

        Raises
        ------
        OSError, ValueError
            A record is not there, or damaged.
        """
        return {
            (paper, row.key, name): found.value
            for paper in self.papers
            for row in Record.read(self.folder / "ci" / f"{paper}.json").rows
            for name, found in row.metrics.items()
            if name not in MEASURED
        }

    def litter(self) -> list[str]:
        """What killed runs have left in the cache, which the one that came to its end should remove."""
        cache = self.folder / "cache"
        return sorted(f.name for f in cache.glob("*/*/*") if LITTER.fullmatch(f.name))


def kill(process: subprocess.Popen[bytes], kernels: bool) -> None:
    """SIGKILL to a run's process group; Jupyter's kernels, in sessions of their own, outlive that by a
    second unless they get it too."""
    others = psutil.Process(process.pid).children(recursive=True) if kernels else []
    os.killpg(process.pid, signal.SIGKILL)
    for other in others:
        with contextlib.suppress(psutil.NoSuchProcess):
            other.kill()
    process.wait()


def faults_of(runs: Runs, expected: dict[tuple[str, str, str], float], code: int) -> list[str]:
    """What is wrong after a run has come to its end."""
    if code:
        return [f"the run ended with {code}; see {runs.own / 'log'}"]
    try:
        found = runs.metrics()
    except (OSError, ValueError) as error:
        return [f"a record can't be read: {error}"]
    faults = [f"{name} is left in the cache" for name in runs.litter()]
    for at in sorted(expected.keys() | found.keys()):
        if expected.get(at) != found.get(at):
            faults.append(f"{' '.join(at)}: {found.get(at)} in the place of {expected.get(at)}")
    return faults


def campaign(kills: int, papers: Sequence[str], seed: int = 0) -> list[str]:
    """Kill so many runs; what was found to be wrong, which ends it."""
    draw = random.Random(seed)
    whole, killed = Runs("whole", papers), Runs("killed", papers)
    for runs in (whole, killed):
        runs.clear()
    began = time.monotonic()
    if code := whole.run():
        return [f"the uninterrupted run ended with {code}; see {whole.own / 'log'}"]
    seconds, expected = time.monotonic() - began, whole.metrics()
    print(f"uninterrupted: {seconds:.0f} s, {len(expected)} metrics", flush=True)
    done, ends = 0, 0
    while True:
        last = done == kills
        moment = PATIENCE * seconds if last else draw.uniform(0, seconds)
        code = killed.run(moment, kernels=draw.random() < 0.5)
        if code is None:
            if last:
                return [f"a run has not ended after {moment:.0f} s; see {killed.own / 'log'}"]
            done += 1
            print(f"kill {done} of {kills}, after {moment:.1f} s", flush=True)
            continue
        if faults := faults_of(killed, expected, code):
            return faults
        ends += 1
        print(f"a run has come to its end: {len(expected)} metrics are as they were", flush=True)
        if last:
            print(f"{kills} kills, {ends} runs to the end, no difference", flush=True)
            return []
        killed.clear()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--papers", default="", help="slugs, separated by spaces; default all")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    faults = campaign(options.kills, options.papers.split() or known_papers(), options.seed)
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    if not faults:
        shutil.rmtree(project_root() / FOLDER)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
