"""The plan of several papers as one graph of tasks, and what carries it out: processes here, or Ray.

`trials.tasks` says what the tasks are. A task begins when what it needs is there; a row that raises
is reported at the end with its name, what depends on it as not made, and all others are made. What
is made lies in the cache, so a run that ends at any moment costs the rows in progress alone. A
paper's notebook runs here, as soon as all rows of the paper are there: it only reads them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import connection
from pathlib import Path
from typing import Any, Protocol

from ..registry import ConfigError
from . import runner
from .papers import project_root
from .progress import Lines, Progress
from .runner import Outcome
from .trials.tasks import Done, Task

__all__ = ["Graph", "Local", "OnRay", "Report", "carry_out", "reproduce"]

#: How often a task is begun anew whose process was killed; it may be what kills it.
ATTEMPTS = 3

#: Seconds after which every machine of a cluster sees what one has written to a shared folder.
SEEN = 120.0


#: Tasks that ask for rows; each is a paper's own, as what they ask for may not be.
ASKING = ("plan", "look", "search")


class Graph:
    """Tasks, what they need, and where each stands."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self.tasks: dict[str, Task] = {}
        #: key -> "waiting", "running", "done", "failed" (it raised) or "not made"
        self.state: dict[str, str] = {}
        self.why: dict[str, tuple[str, str]] = {}  # of those that failed
        self.unmade: dict[str, int] = {}  # of looks, how many rows are not there
        self._after: dict[str, frozenset[str]] = {}
        self._ended: dict[str, float] = {}
        self._not_before: dict[str, float] = {}
        self._killed: Counter[str] = Counter()
        self.add(tasks)

    def add(self, tasks: Iterable[Task]) -> None:
        """Take in tasks; those that are known already stay as they are."""
        for task in tasks:
            if task.key not in self.tasks:
                self.tasks[task.key], self.state[task.key] = task, "waiting"
                if task.kind == "look":
                    self.unmade[task.key] = len(task.rows)

    def __getitem__(self, state: str) -> list[Task]:
        return [t for k, t in self.tasks.items() if self.state[k] == state]

    def _over(self, keys: Iterable[str]) -> bool:
        return all(self.state[k] not in ("waiting", "running") for k in keys)

    def ready(self) -> list[Task]:
        """What can begin, in the order in which it was planned."""
        found, now = [], time.monotonic()
        for task in self["waiting"]:
            if not self._over((*task.needs, *self._after.get(task.key, ()))):
                continue
            if any(self.state[k] != "done" for k in task.needs):
                self.state[task.key] = "not made"
            elif self._not_before.get(task.key, 0.0) <= now:
                found.append(task)
        return found

    def end(self, task: Task, done: Done) -> Done:
        """Note how a task has ended, and what it has found; a task that is given up has failed."""
        key, state = task.key, "done"
        self._ended[key] = time.monotonic()
        if done.killed:
            self._killed[key] += 1
            state = "waiting"
            if self._killed[key] == ATTEMPTS:
                text = f"killed {ATTEMPTS} times: {done.killed}"
                done = replace(done, killed="", error=(text, text))
        if done.error is not None:
            state, self.why[key] = "failed", done.error
        self.add(done.more)
        if task.kind == "look" and not done.error and not done.killed:
            self.unmade[key] = done.unmade
        if done.missing:
            made = [k for k in done.missing if self.state[k] == "done"]
            self._after[key] = frozenset(k for k in done.missing if not self._over([k]))
            if self._after[key]:
                state = "waiting"
            elif not made:
                state = "not made"
            elif self._ended[key] - max(self._ended[k] for k in made) < SEEN:
                state = "waiting"  # made meanwhile, on another machine maybe
                self._not_before[key] = self._ended[key] + 1
            else:
                text = (
                    f"{self.tasks[made[0]].name} was made, but is not in the cache that is seen "
                    "here; UNLEARN_CACHE must name one folder for all machines"
                )
                done = replace(done, error=(text, text))
                state, self.why[key] = "failed", (text, text)
        self.state[key] = state
        return done

    def paper(self, slug: str) -> str:
        """How a paper's rows stand: "waiting", "done" when all are there, or "not made"."""
        keys = [k for k, t in self.tasks.items() if t.paper == slug and t.kind in ASKING]
        if not self._over(keys):
            return "waiting"
        return "done" if all(self.state[k] == "done" for k in keys) else "not made"


class Engine(Protocol):
    """What does tasks somewhere."""

    @property
    def at_once(self) -> int:
        """How many tasks, about."""

    def begin(self, ready: Sequence[Task]) -> list[Task]:
        """Begin some of these, as many as there is room for; those that were begun."""

    def ended(self, seconds: float) -> list[tuple[Task, Done]]:
        """What has ended, after a wait of so many seconds at most."""

    def close(self) -> None:
        """End at once what is running."""


@dataclass
class Slot:
    """Room for one task at a time, in a process that is kept for the next one."""

    environment: dict[str, str]
    log: Path
    process: Any = None
    pipe: Any = None
    task: Task | None = None
    last: tuple[Any, ...] = "", ()  # the paper and the trial that it has at hand

    def begin(self, task: Task) -> None:
        if self.process is None or not self.process.is_alive():
            spawn = multiprocessing.get_context("spawn")
            self.pipe, theirs = spawn.Pipe()
            self.process = spawn.Process(target=serve, args=(theirs, self.log))
            with runner.with_variables(self.environment):  # it is read when a process begins
                self.process.start()
            theirs.close()
        self.task, self.last = task, (task.paper, task.at)
        with suppress(OSError):  # it was killed at this moment, which `end` finds
            self.pipe.send(task)

    def end(self) -> Done | None:
        """How its task has ended, if it has."""
        try:
            if self.pipe.poll():
                return self.pipe.recv()
        except (EOFError, OSError):
            pass
        else:
            if self.process.is_alive():
                return None
        self.process.join()
        code, self.process = self.process.exitcode, None
        by = signal.Signals(-code).name if code < 0 else f"status {code}"
        return Done(killed=f"its process was ended by {by}")


class Local:
    """Processes of this machine, of one thread each or with one of its GPUs."""

    def __init__(self, jobs: int | None, memory: Mapping[str, float], folder: Path) -> None:
        import torch

        gpus = torch.cuda.device_count()
        accelerated = runner.has_accelerator()
        self.at_once = jobs or gpus or (1 if accelerated else runner.cores())
        # What a profile needs where there are GPUs is memory of theirs.
        self._memory = memory
        self._all = float("inf") if jobs or accelerated else runner.available_memory()
        threads = max(1, runner.cores() // self.at_once) if accelerated else 1
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
        cards = visible.split(",")
        self._slots = [
            Slot(
                environment(threads) | ({"CUDA_VISIBLE_DEVICES": cards[i % gpus]} if gpus else {}),
                folder / f"process-{i}.log",
            )
            for i in range(self.at_once)
        ]

    @property
    def _busy(self) -> list[Slot]:
        return [slot for slot in self._slots if slot.task is not None]

    def begin(self, ready: Sequence[Task]) -> list[Task]:
        """Begin as many of these as processes and memory allow; returns those begun."""
        left, begun = list(ready), []
        for slot in (s for s in self._slots if s.task is None):
            used = sum(self._memory[s.task.paper] for s in self._busy)
            fit = [t for t in left if not used or used + self._memory[t.paper] <= self._all]
            if not fit:
                break
            # What is at hand need not be loaded again; of equals the one that was planned first.
            task = max(
                fit,
                key=lambda t: sum(a == b for a, b in zip((t.paper, t.at), slot.last, strict=True)),
            )
            slot.begin(task)
            left.remove(task)
            begun.append(task)
        return begun

    def ended(self, seconds: float) -> list[tuple[Task, Done]]:
        """The tasks that have ended, waiting for one for so many seconds."""
        busy = self._busy
        if not busy:
            time.sleep(seconds)
        connection.wait([w for s in busy for w in (s.pipe, s.process.sentinel)], seconds)
        found = [(slot, slot.task, slot.end()) for slot in busy]
        for slot, _, done in found:
            slot.task = slot.task if done is None else None
        return [(task, done) for _, task, done in found if done is not None]

    def close(self) -> None:
        """End every process."""
        for slot in self._slots:
            if slot.process is not None:
                slot.pipe.close()
                if slot.task is not None:
                    slot.process.terminate()
        for slot in self._slots:
            if slot.process is not None:
                slot.process.join()


class OnRay:
    """Tasks of Ray, here or on a cluster: of one GPU each where it has some, else of one core.

    Ray puts them on machines, and takes those in that come and go.
    """

    def __init__(self, jobs: int | None, memory: Mapping[str, float], address: str) -> None:
        try:
            import ray
        except ModuleNotFoundError as error:
            raise ConfigError("ENGINE=ray needs Ray: pip install -e '.[cluster]'") from error
        self._ray, self._jobs, self._memory = ray, jobs, memory
        own = {k: v for k, v in os.environ.items() if k.startswith("UNLEARN_")}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if address not in ("", "auto", "local"):
            host, _, port = address.removeprefix("ray://").rpartition(":")
            try:  # Ray itself would try for a minute
                socket.create_connection((host, int(port)), timeout=10).close()
            except (OSError, ValueError) as error:
                raise ConfigError(f"no Ray cluster at {address}: {error}") from error
        if not address and not os.environ.get("RAY_ADDRESS"):
            address = "local"  # without it Ray joins what was last started on this machine
        ray.init(
            address or None, runtime_env={"env_vars": own | environment(1)}, log_to_driver=False
        )
        try:
            self._check_memory()
        except ConfigError:
            ray.shutdown()
            raise
        self._work = ray.remote(max_retries=0)(on_ray)  # a Graph begins anew what was killed
        self._running: dict[Any, Task] = {}

    @property
    def _has_gpus(self) -> bool:
        return self._ray.cluster_resources().get("GPU", 0) > 0

    def _check_memory(self) -> None:
        """Ray waits without a word for a node that could hold a task."""
        if self._has_gpus:  # what a profile needs is memory of theirs, then
            return
        nodes = [n["Resources"] for n in self._ray.nodes() if n["Alive"]]
        largest = max((n.get("memory", 0.0) for n in nodes if n.get("CPU", 0) >= 1), default=0.0)
        for slug, needed in self._memory.items():
            if 1e9 * needed > largest:
                raise ConfigError(
                    f"a row of {slug} needs {needed:g} GB of memory, and the largest node of the "
                    f"Ray cluster has {largest / 1e9:.3g} GB: add a larger one, or one with a GPU"
                )

    @property
    def at_once(self) -> int:
        """How many tasks run at a time: one a GPU of the cluster, or one a core."""
        there = self._ray.cluster_resources()
        slots = int(there.get("GPU", 0) or there.get("CPU", 1))
        return min(slots, self._jobs or slots)

    def begin(self, ready: Sequence[Task]) -> list[Task]:
        """Begin as many of these as the cluster has room for; returns those begun."""
        gpus = self._has_gpus
        room = len(ready) if self._jobs is None else self._jobs - len(self._running)
        begun = list(ready[: max(0, room)])
        for task in begun:
            needs: dict[str, Any] = {"num_cpus": 1}
            if not gpus:
                needs["memory"] = int(1e9 * self._memory[task.paper])
            elif task.kind in ("model", "row"):
                needs = {"num_cpus": 0, "num_gpus": 1}
            self._running[self._work.options(name=task.name, **needs).remote(task)] = task
        return begun

    def ended(self, seconds: float) -> list[tuple[Task, Done]]:
        """The tasks that have ended, waiting for one for so many seconds."""
        if not self._running:
            time.sleep(seconds)
            return []
        refs, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        return [(self._running.pop(ref), self._done(ref)) for ref in refs]

    def _done(self, ref: Any) -> Done:
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:  # the machine lacks this package, say
            return Done(error=(str(error).strip().splitlines()[-1], str(error)))
        except self._ray.exceptions.RayError as error:
            return Done(killed=f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")

    def close(self) -> None:
        """Take back what is still running."""
        self._ray.shutdown()


def on_ray(task: Task) -> Done:
    """What a process of Ray does."""
    from .trials.tasks import work

    return work(task)


def environment(threads: int) -> dict[str, str]:
    """What a process that makes rows finds in its environment; the reader's word counts."""
    own = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    own |= {"OMP_WAIT_POLICY": "PASSIVE", **runner.KEEP_MEMORY, **runner.QUIET}
    own = {name: os.environ.get(name, value) for name, value in own.items()}
    return own | {"UNLEARN_ROOT": str(project_root())}


def serve(pipe: connection.Connection, log: Path) -> None:
    """What a process of `Local` does until its driver ends, however that ends."""
    from .trials.tasks import work

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver gets it, too, and ends this one
    threading.Thread(target=_end_with_driver, daemon=True).start()
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    with suppress(EOFError):  # the driver wants no more
        while True:
            pipe.send(work(pipe.recv()))


def _end_with_driver() -> None:
    # A row that went on alone would hold its memory, and its GPU, against the next run's.
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def reproduce(
    profile: str, papers: Sequence[str] = (), *, engine: str, jobs: int | None, address: str = ""
) -> tuple[list[Outcome], str]:
    """Make the rows of what is out of date, all papers' as one plan, and run the notebooks.

    Returns how each paper has ended, "rows missing" where its notebook could not run, and a table
    of the rows.

    Parameters
    ----------
    engine : "local", processes of this machine, or "ray"
    jobs : tasks at a time; as many as there are GPUs, or else cores and memory for, where nothing
        is said; with Ray as many as it finds room for
    address : of a Ray cluster, or "auto" for the one that was last started on this machine; without
        it $RAY_ADDRESS counts, or Ray is started here

    Raises
    ------
    ConfigError
        A mistake in what was asked for; Ray is not installed, or not there, or no node of its cluster
        has the memory.
    """
    if jobs is not None and jobs < 1:
        raise ConfigError(f"jobs must be at least 1, not {jobs}")
    files = runner.chosen(papers, profile)
    folder = project_root() / runner.run_folder(profile)
    folder.mkdir(parents=True, exist_ok=True)
    stale = [slug for slug in files if runner.out_of_date(slug, profile)]
    outcomes = {
        slug: Outcome(
            slug, "rows missing" if slug in stale else "up to date", 0.0, folder / f"{slug}.log"
        )
        for slug in files
    }
    if not stale:
        return list(outcomes.values()), ""
    graph = Graph(Task(f"{s} / plan", "plan", f"the plan of {s}", s, profile) for s in stale)
    memory = {slug: files[slug].profile(profile).memory_gb for slug in stale}
    does: Engine
    does = OnRay(jobs, memory, address) if engine == "ray" else Local(jobs, memory, folder)
    report, notebooks = Report(does, folder), ThreadPoolExecutor(max_workers=1)

    def execute(slug: str) -> Future[list[Outcome]]:
        return notebooks.submit(runner.reproduce, profile, [slug], jobs=runner.cores())

    try:
        for slug, ran in carry_out(graph, does, report, execute).items():
            (outcomes[slug],) = ran.result()
    finally:
        does.close()
        notebooks.shutdown(cancel_futures=True)
    return list(outcomes.values()), report.table(graph)


def carry_out(
    graph: Graph, engine: Engine, report: Report, execute: Callable[[str], Future[list[Outcome]]]
) -> dict[str, Future[list[Outcome]]]:
    """Do all of a graph that can be done; the notebooks of the papers whose rows are all there."""
    papers = dict.fromkeys(task.paper for task in graph.tasks.values())
    notebooks: dict[str, Future[list[Outcome]]] = {}
    while graph["running"] or (graph["waiting"] and not report.full):
        for task in () if report.full else engine.begin(graph.ready()):
            graph.state[task.key] = "running"
        for task, done in engine.ended(0.5):
            report.note(task, graph.end(task, done))
        for slug in papers:
            if slug not in notebooks and graph.paper(slug) == "done":
                notebooks[slug] = execute(slug)
        report.tell(graph)
    report.lines.end("rows", f"the plan: {report.line(graph)}")
    return notebooks


class Report:
    """What the reader is told of a plan, while it is carried out and at the end."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.lines, self.progress = Lines(), Progress({})
        self.full = False  # the disk: nothing more is begun
        self._engine, self._folder = engine, folder

    def note(self, task: Task, done: Done) -> None:
        """Take in what a task has done."""
        self.progress.planned |= done.planned
        self.progress.made |= done.made
        for name in done.found:
            self.progress.found(name)
        if done.killed:
            self.lines.say(f"{task.name}: {done.killed}; it is begun anew")
        if done.error is not None:
            log = self._folder / f"{task.paper}.rows.log"
            with log.open("a", encoding="utf-8") as file:
                file.write(f"{task.name}\n{done.error[1]}\n")
            self.lines.say(f"{task.name}: failed; see {os.path.relpath(log)}")
        if done.full and not self.full:
            self.full = True
            self.lines.say("the disk is full: nothing more is begun")

    def line(self, graph: Graph) -> str:
        """How far the plan is, in a line."""
        state, planned, timed = self.progress.state, 0, True
        for slug in dict.fromkeys(t.paper for t in graph.tasks.values()):
            looks = [t for t in graph.tasks.values() if t.paper == slug and t.kind == "look"]
            known = {k for k in self.progress.planned if k.startswith(f"{slug}: ")}
            done = self.progress.made.keys() | self.progress.cached
            rows = len(known | {k for k in done if k.startswith(f"{slug}: ")})
            if graph.paper(slug) == "waiting":  # some of those that are asked for may be the same
                rows = max(rows, sum(len(t.rows) for t in looks))
                timed &= any(self.progress.planned[k] is not None for k in known)
            planned += rows
        # A time without the rows of a paper that has never been run would be too short.
        timed &= state.left is not None
        left = state.left / max(1, self._engine.at_once) if timed else None
        at = [task.name for task in graph["running"]]
        more = [f"and {len(at) - 3} more"] if len(at) > 3 else []
        doing = ["given out: " + ", ".join(at[:3] + more)] if at else []
        return "; ".join(
            [replace(state, planned=planned or None, left=left).line(time.time()), *doing]
        )

    def tell(self, graph: Graph) -> None:
        """Keep that line up to date where progress is shown."""
        self.lines.show("rows", lambda: f"the plan: {self.line(graph)}")

    def table(self, graph: Graph) -> str:
        """How every paper's rows have ended, and what has failed, with its reason."""
        lines = [f"{'paper':16} {'rows':>6} {'made':>6} {'found':>6} {'not made':>9}"]
        looks = [t for t in graph.tasks.values() if t.kind == "look"]
        for slug in dict.fromkeys(t.paper for t in graph.tasks.values()):
            own = [t for t in looks if t.paper == slug]
            made, found = (
                sum(name.startswith(f"{slug}: ") for name in names)
                for names in (self.progress.made, self.progress.cached)
            )
            missing = sum(graph.unmade[t.key] for t in own)
            lines.append(f"{slug:16} {made + found + missing:6} {made:6} {found:6} {missing:9}")
        for key, (why, _) in graph.why.items():
            lines.append(f"failed: {graph.tasks[key].name}: {why}")
        for task in (t for t in looks if graph.unmade[t.key]):
            lines.append(
                f"not made: {task.name}: {graph.unmade[task.key]} of {len(task.rows)} rows"
            )
        return "\n".join(lines)
