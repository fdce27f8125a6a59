"""Rows as one plan: what is found to be needed, what is made once, and what a fault costs."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from unlearn_core.registry import ConfigError
from unlearn_core.replication import engine
from unlearn_core.replication.__main__ import main
from unlearn_core.replication.cache import Cache
from unlearn_core.replication.engine import Graph, Local, OnRay, Report, carry_out
from unlearn_core.replication.records import Record, Row
from unlearn_core.replication.run import Replication
from unlearn_core.replication.trials.classifiers import ClassificationTrial
from unlearn_core.replication.trials.plan import Planned, make
from unlearn_core.replication.trials.tasks import Done, Task, Worker

ROOT = Path(__file__).resolve().parents[2]

#: What no two runs have in common.
MEASURED = {"seconds", "peak_memory"}

CELLS = (
    """
from unlearn_core.replication.run import Replication
from unlearn_core.replication.trials.plan import make

run = Replication(paper, profile, out)
make(run)
""",
    """
@run.claim("C1")
def it_works(rows, seed):
    return rows.measured("full_class", "Original", "test_accuracy", seed)


run.finish()
""",
)


class Here:
    """Does tasks in this process, one after the other."""

    at_once = 1

    def __init__(self) -> None:
        self.worker, self.done = Worker(), []
        self.began: list[Task] = []

    def begin(self, ready: Sequence[Task]) -> list[Task]:
        first = list(ready[:1])
        self.began += first
        self.done += [(task, self.worker(task)) for task in first]
        return first

    def ended(self, seconds: float) -> list[tuple[Task, Done]]:
        done, self.done = self.done, []
        return done

    def names(self, *kinds: str) -> list[str]:
        return [task.name for task in self.began if task.kind in kinds]


class Ran:
    """A plan that was carried out."""

    def __init__(self, root: Path, does: Any, *papers: str) -> None:
        (root / "build" / "ci").mkdir(parents=True, exist_ok=True)
        self.does, self.notebooks = does, []
        self.graph = Graph(Task(f"{p} / plan", "plan", p, p, "ci") for p in papers)
        self.report = Report(does, root / "build" / "ci")
        carry_out(self.graph, does, self.report, self.execute)
        self.table = self.report.table(self.graph)

    def execute(self, slug: str) -> Future[Any]:
        self.notebooks.append(slug)
        return Future()


def several(tiny: dict[str, Any]) -> dict[str, Any]:
    """Beside the one experiment: a search, what it chooses for, a forget set that a rule chooses, and
    an experiment of the same content under another name."""
    experiments = tiny["profiles"]["ci"]["experiments"]
    base = experiments["full_class"] | {"seeds": [0]}
    fine_tune = {k: base["methods"][k] for k in ("Retrain", "Fine-tune")}
    experiments["tuning"] = base | {
        "forget": {"class": ["solid ring"]},
        "search": {"Fine-tune": {"lr": [0.001, 0.01, 0.1]}},
        "choose": {"by": "gap", "widen": 1},
        "methods": fine_tune,
        "seeds": [7],
    }
    experiments["tuned"] = base | {"tuned": "tuning", "methods": fine_tune}
    experiments["chosen"] = base | {
        "forget": {"chosen": ["fitted"]},
        "select": {"fitted": {"use": "by_loss", "fraction": 0.1}},
        "methods": fine_tune,
    }
    experiments["again"] = deepcopy(base)
    return tiny


def rows_of(root: Path, cache: str = "build/cache") -> dict[str, Row]:
    """Key -> row, of all that a cache has."""
    here = Cache(root / cache)
    folders = (root / cache / "rows").glob("??/*/meta.json")
    return {f.parent.name: Row(**here.find("rows", f.parent.name)) for f in folders}


def values(rows: dict[str, Row]) -> dict[tuple[str, str], float]:
    return {
        (key, name): metric.value
        for key, row in rows.items()
        for name, metric in row.metrics.items()
        if name not in MEASURED
    }


@pytest.fixture
def alone(project: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, Row]]:
    """The rows of the paper "tiny" as a notebook makes them, in a cache of their own."""

    def made() -> dict[str, Row]:
        with monkeypatch.context() as patch:
            patch.setenv("UNLEARN_CACHE", "build/alone")
            make(Replication("tiny", "ci", "build/ci"))
        return rows_of(project.root, "build/alone")

    return made


class TestPlan:
    def test_the_same_rows_as_without_it(
        self, project: Any, tiny: dict[str, Any], alone: Callable[[], dict[str, Row]]
    ) -> None:
        """Fails where a row is left out, is made under another key, or sees another model."""
        project.paper("tiny", several(tiny))
        ran = Ran(project.root, Here(), "tiny")
        assert ran.notebooks == ["tiny"]
        assert {t.kind for t in ran.graph["done"]} == {"plan", "look", "search", "model", "row"}
        assert len(ran.graph["done"]) == len(ran.graph.tasks)
        expected = values(alone())
        assert len(expected) > 100
        assert values(rows_of(project.root)) == expected

    def test_a_search_goes_on_beyond_its_grid(self, project: Any, tiny: dict[str, Any]) -> None:
        """Fails where only the grid is made, or what it chose for is made before it has chosen."""
        project.paper("tiny", several(tiny))
        does = Ran(project.root, Here(), "tiny").does
        rates = [
            r.variant["lr"]
            for r in rows_of(project.root).values()
            if r.experiment == "tuning" and r.method == "Fine-tune"
        ]
        assert len(rates) == 4
        names = does.names("search", "row")
        searches = [i for i, n in enumerate(names) if n == "tiny: the search of tuning"]
        tuned = [i for i, n in enumerate(names) if n.startswith("tiny: tuned / Fine-tune")]
        assert len(searches) == 2
        assert tuned[0] > searches[-1]

    def test_what_papers_and_experiments_share_is_made_once(
        self, project: Any, tiny: dict[str, Any]
    ) -> None:
        """Fails where the original is trained for each, or a row is made for each that asks for it."""
        project.paper("tiny", several(tiny))
        project.paper("other", deepcopy(tiny))
        ran = Ran(project.root, Here(), "tiny", "other")
        assert ran.notebooks == ["tiny", "other"]
        # The original of seed 0 serves four experiments, the retrained model of "solid cross" three.
        models = [n.split(": ")[1] for n in ran.does.names("model")]
        assert len(models) == len(
            list((project.root / "build/cache/models").glob("??/*/meta.json"))
        )
        assert (
            sorted(m.rsplit(" of ", 1)[0] for m in models)
            == ["original"] * 3 + ["retrained model"] * 4
        )
        rows = ran.does.names("row")
        assert len(rows) == len(set(rows))
        assert all(n.startswith("tiny: ") for n in rows)
        # Alike but for the experiment's name: only what is no method's row is made for "again", too.
        assert [n for n in rows if ": again / " in n] == [
            "tiny: again / Original / forget solid cross / seed 0"
        ]

    def test_what_is_there_needs_no_model(
        self, project: Any, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails where an original is trained, or loaded, though all rows that it is for are there."""
        Ran(project.root, Here(), "tiny")
        monkeypatch.setattr(Cache, "model", None)
        ran = Ran(project.root, Here(), "tiny")
        assert ran.notebooks == ["tiny"]
        assert {t.kind for t in ran.does.began} == {"plan", "look"}
        assert ran.table.splitlines()[1].split() == ["tiny", "8", "0", "8", "0"]


class TestFaults:
    def test_a_row_that_raises_is_named_and_the_others_are_made(
        self, project: Any, tiny: dict[str, Any], alone: Callable[[], dict[str, Row]]
    ) -> None:
        """Fails where one bad row ends the plan, or is left out without a word."""
        project.paper("tiny", tiny)
        expected = values(alone())
        methods = tiny["profiles"]["ci"]["experiments"]["full_class"]["methods"]
        methods["Bad"] = deepcopy(methods["Fine-tune"])
        methods["Bad"]["train"]["lr"] = 1e30
        project.paper("tiny", tiny)
        ran = Ran(project.root, Here(), "tiny")
        assert ran.notebooks == []
        assert values(rows_of(project.root)) == expected
        assert ran.table.splitlines()[1].split() == ["tiny", "10", "8", "0", "2"]
        failed = [line for line in ran.table.splitlines() if line.startswith("failed: ")]
        assert [line.split(" / forget")[0] for line in failed] == [
            "failed: tiny: full_class / Bad"
        ] * 2
        assert "seed 0: NotFiniteError: fine_tune: the loss is nan" in failed[0]
        log = (project.root / "build/ci/tiny.rows.log").read_text()
        assert "Traceback" in log

    def test_what_needs_what_failed_is_not_made(
        self, project: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails where rows are begun without their original, or one seed's fault costs the other's."""
        original = ClassificationTrial.original.func

        def broken(trial: ClassificationTrial) -> Any:
            if trial.seed == 0:
                raise RuntimeError("no original\nfor this seed")
            return original(trial)

        monkeypatch.setattr(ClassificationTrial, "original", property(broken))
        ran = Ran(project.root, Here(), "tiny")
        assert {r.seed for r in rows_of(project.root).values()} == {1}
        assert ran.table.splitlines()[2:] == [
            "failed: tiny: original of full_class, seed 0: RuntimeError: no original for this seed",
            "not made: tiny: full_class / solid cross / seed 0: 4 of 4 rows",
        ]

    def test_a_full_disk_ends_it(self, project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Fails where hours of rows are made that can't be kept."""
        write = Cache.write

        def full(cache: Cache, kind: str, *rest: Any) -> None:
            if kind == "rows":
                try:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                except OSError as error:
                    raise cache.error(f"rows can't be written: {error}") from error
            write(cache, kind, *rest)

        monkeypatch.setattr(Cache, "write", full)
        ran = Ran(project.root, Here(), "tiny")
        assert ran.report.full
        assert len(ran.does.names("row")) == 1
        assert "No space left on device" in ran.table

    def test_a_cache_that_is_not_shared_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Fails where the same row is made again and again, or a look waits for it for ever."""
        look = Task("look", "look", "a look", "tiny", "ci")
        row = Task("row", "row", "a row", "tiny", "ci")
        graph = Graph([look])
        now = 1000.0
        monkeypatch.setattr(engine.time, "monotonic", lambda: now)
        asks = Done((row,), frozenset(["row"]), 1)
        graph.end(look, asks)
        assert graph.ready() == [row]
        graph.end(row, Done())
        assert graph.ready() == [look]
        graph.end(look, asks)
        assert graph.ready() == []  # another machine may see it a little later
        now += 2
        assert graph.ready() == [look]
        now += engine.SEEN
        graph.end(look, asks)
        assert "a row was made, but is not in the cache" in graph.why["look"][0]
        assert graph.paper("tiny") == "not made"

    def test_what_kills_its_process_is_given_up(self) -> None:
        row = Task("row", "row", "a row", "tiny", "ci")
        graph = Graph([row])
        for state in ("waiting", "waiting", "failed"):
            graph.end(row, Done(killed="its process was ended by SIGKILL"))
            assert graph.state["row"] == state
        assert graph.why["row"][0] == "killed 3 times: its process was ended by SIGKILL"


class TestReport:
    def test_what_a_paper_without_a_record_adds(self, tmp_path: Path) -> None:
        """Fails where its rows are not counted, or a time is told as if it took none."""
        papers = ("old", "new")
        plans = [Task(f"{p} / plan", "plan", p, p, "ci") for p in papers]
        graph, report = Graph(plans), Report(Here(), tmp_path)

        def told(task: Task, done: Done) -> str:
            report.note(task, graph.end(task, done))
            return report.line(graph)

        looks = [
            Task(f"{p} / look", "look", p, p, "ci", rows=(Planned("e", 0, "t", "original"),) * n)
            for p, n in (("old", 2), ("new", 3))
        ]
        known = {"old: a": 30.0, "old: b": 30.0}
        assert told(plans[0], Done((looks[0],), planned=known)) == "0 of 2 rows"
        assert told(plans[1], Done((looks[1],))) == "0 of 5 rows"
        found = frozenset(["old: a"])
        assert told(looks[0], Done(found=found)) == "1 of 5 rows (1 from the cache)"
        # Two of the three that were asked for are one and the same.
        last = told(looks[1], Done(made={"new: a": 1.0, "new: b": 1.0}))
        assert last == "3 of 4 rows (1 from the cache); about 30 s left"


class Deadly(Local):
    """Kills a process of each kind of task at once, and others a little later."""

    def __init__(self, root: Path) -> None:
        super().__init__(2, {"tiny": 1.0}, root / "build" / "ci")
        kinds = ("plan", "look", "search", "model", "row")
        self.left = [(kind, 0.0) for kind in kinds] + [("model", 0.1), ("row", 0.1)]

    def begin(self, ready: Sequence[Task]) -> list[Task]:
        begun = super().begin(ready)
        for slot in (s for s in self._busy if s.task in begun):
            after = next((a for kind, a in self.left if kind == slot.task.kind), None)
            if after is not None:
                self.left.remove((slot.task.kind, after))
                time.sleep(after)
                slot.process.kill()
        return begun


class TestProcesses:
    def test_whatever_is_killed_the_values_are_the_same(
        self, project: Any, tiny: dict[str, Any], alone: Callable[[], dict[str, Row]], capsys: Any
    ) -> None:
        """Fails where a killed process ends the plan, or its row is lost, or half-made and believed."""
        project.paper("tiny", several(tiny))
        does = Deadly(project.root)
        try:
            ran = Ran(project.root, does, "tiny")
        finally:
            does.close()
        assert ran.notebooks == ["tiny"], ran.table
        assert does.left == []
        # What was killed later may have come to its end before.
        assert capsys.readouterr().out.count("ended by SIGKILL; it is begun anew") in (5, 6, 7)
        rows = rows_of(project.root)

        def each(rows: dict[str, Row]) -> set[frozenset[tuple[str, float]]]:
            found: dict[str, set[tuple[str, float]]] = {}
            for (key, name), value in values(rows).items():
                found.setdefault(key, set()).add((name, value))
            return set(map(frozenset, found.values()))

        # Which of the names of rows that are alike has the row depends on what was killed when.
        expected = alone()
        assert len(rows) == len(expected)
        assert each(rows) == each(expected)
        assert {r.provenance.threads for r in rows.values()} == {1}

    @staticmethod
    def started(project: Any, **environment: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "unlearn_core.replication", "reproduce", "--no-book"]
        return subprocess.Popen(
            [*command, "--engine", "local", "--jobs", "1"],
            cwd=project.root,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.DEVNULL,
        )

    def test_a_driver_that_is_killed_takes_its_processes_along_and_is_started_again(
        self, project: Any, alone: Callable[[], dict[str, Row]], capsys: Any
    ) -> None:
        """Fails where a row goes on without its driver and holds the next run up, or where that run
        begins anew."""
        project.paper("tiny", None, *CELLS)
        driver = self.started(project)
        rows = project.root / "build/cache/rows"
        while not list(rows.glob("??/*/meta.json")):
            assert driver.poll() is None
            time.sleep(0.05)
        children = psutil.Process(driver.pid).children(recursive=True)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        assert psutil.wait_procs(children, timeout=60)[1] == []
        before = rows_of(project.root)
        assert 0 < len(before) < 8
        assert self.started(project).wait() == 0
        after = rows_of(project.root)
        assert values(after) == values(alone())
        assert all(after[key] == row for key, row in before.items())
        # And the notebook only reads.
        record = Record.read(project.root / "build/ci/tiny.json")
        assert {row.key: row for row in record.rows}.keys() == after.keys()
        assert all(row.provenance.date < record.started for row in record.rows)
        assert main(["reproduce", "--engine", "local", "--no-book"]) == 0
        assert capsys.readouterr().out.split() == [
            "paper",
            "state",
            "seconds",
            "tiny",
            "up",
            "to",
            "date",
            "0.0",
        ]

    def test_two_drivers_on_one_cache_make_every_row_once(self, project: Any) -> None:
        """Fails where both make a row, or one doesn't see what the other has made."""
        project.paper("tiny", None, *CELLS)
        drivers = [self.started(project, UNLEARN_BUILD=f"build/{i}") for i in range(2)]
        assert [driver.wait() for driver in drivers] == [0, 0]
        first, second = (
            Record.read(project.root / f"build/{i}/ci/tiny.json").rows for i in range(2)
        )
        assert len(first) == 8
        assert first == second  # the dates and times of their making, too


class Losing(OnRay):
    """Loses a machine while both are at work on rows."""

    def __init__(self, lose: Callable[[], None], address: str) -> None:
        super().__init__(None, {"tiny": 1.0}, address)
        self.lose: Callable[[], None] | None = lose

    def ended(self, seconds: float) -> list[tuple[Task, Done]]:
        running = [t.kind in ("model", "row") for t in self._running.values()]
        if self.lose and len(running) > 1 and all(running):
            lose, self.lose = self.lose, None
            lose()
        return super().ended(seconds)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        return one.getsockname()[1]


class TestRay:
    @pytest.fixture
    def cluster(self, project: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        """Two "machines" of one core each, and the head, which has none to give."""
        pytest.importorskip("ray", reason="Ray, the extra cluster, is not installed")
        from ray.cluster_utils import Cluster

        monkeypatch.setenv("PYTHONPATH", str(ROOT))  # as they are begun by the test
        made = Cluster()
        try:
            for cores in (0, 1, 1):
                # Ports that are given are not waited for, which takes long on a busy machine.
                names = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port")
                ports = {name: free_port() for name in names}
                made.add_node(num_cpus=cores, include_dashboard=False, **ports)
            yield made
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
            pytest.skip("Ray did not start in 30 seconds: this machine is too busy")
        finally:
            made.shutdown()

    def test_a_machine_that_is_lost_costs_its_rows_in_progress_alone(
        self,
        project: Any,
        tiny: dict[str, Any],
        alone: Callable[[], dict[str, Row]],
        cluster: Any,
    ) -> None:
        """Fails where rows of the lost machine are lost, or a value depends on where it was made."""
        project.paper("tiny", several(tiny))

        def lose() -> None:
            from ray._private.worker import global_worker

            # On one machine the driver is attached to any of them, and can't lose that one.
            own = global_worker.node._raylet_socket_name
            *_, lost = (n for n in cluster.worker_nodes if n._raylet_socket_name != own)
            cluster.remove_node(lost)

        does = Losing(lose, cluster.address)
        try:
            ran = Ran(project.root, does, "tiny")
        finally:
            does.close()
        assert ran.notebooks == ["tiny"], ran.table
        assert does.lose is None
        rows = rows_of(project.root)
        assert values(rows) == values(alone())
        assert {r.provenance.threads for r in rows.values()} == {1}

    def test_no_cluster_is_one_line(self, project: Any, capsys: pytest.CaptureFixture[str]) -> None:
        pytest.importorskip("ray", reason="Ray, the extra cluster, is not installed")
        address = f"127.0.0.1:{free_port()}"
        assert main(["reproduce", "--engine", "ray", "--address", address]) == 2
        assert f"error: no Ray cluster at {address}: " in capsys.readouterr().err


class NoCluster:
    """What `OnRay` asks of Ray, with nodes of these resources."""

    def __init__(self, *nodes: dict[str, float]) -> None:
        self.machines, self.asked = nodes, []
        self.address: str | None = "not asked"
        self.is_up = False

    def init(self, address: str | None, **_: Any) -> None:
        self.address, self.is_up = address, True

    def shutdown(self) -> None:
        self.is_up = False

    def nodes(self) -> list[dict[str, Any]]:
        lost = {"Alive": False, "Resources": {"CPU": 9.0, "memory": 1e15}}
        return [lost, *({"Alive": True, "Resources": n} for n in self.machines)]

    def cluster_resources(self) -> dict[str, float]:
        names = {k for n in self.machines for k in n}
        return {k: sum(n.get(k, 0.0) for n in self.machines) for k in names}

    def remote(self, **_: Any) -> Any:
        return lambda _: self

    def options(self, **needs: Any) -> Any:
        self.asked.append({k: v for k, v in needs.items() if k != "name"})
        return SimpleNamespace(remote=lambda _: object())


class TestAskedOfRay:
    KINDS = ("plan", "look", "search", "model", "row")

    def asked(self, monkeypatch: pytest.MonkeyPatch, ray: NoCluster, gb: float) -> list[Any]:
        monkeypatch.setitem(sys.modules, "ray", ray)
        OnRay(None, {"tiny": gb}, "").begin([Task(k, k, k, "tiny", "ci") for k in self.KINDS])
        return ray.asked

    def test_a_gpu_a_row_and_no_memory_of_the_host(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Fails where 80 GB of a GPU are asked of a machine of 64 GB, for which Ray waits for ever."""
        ray = NoCluster({"CPU": 8.0, "GPU": 1.0, "memory": 64e9})
        core, gpu = {"num_cpus": 1}, {"num_cpus": 0, "num_gpus": 1}
        assert self.asked(monkeypatch, ray, 80.0) == [core, core, core, gpu, gpu]

    def test_a_core_and_its_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ray = NoCluster({"CPU": 8.0, "memory": 64e9})
        one = {"num_cpus": 1, "memory": 64_000_000_000}
        assert self.asked(monkeypatch, ray, 64.0) == [one] * 5

    def test_what_no_node_can_hold_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A node that is gone, or without a core, holds nothing."""
        ray = NoCluster({"CPU": 8.0, "memory": 64e9}, {"CPU": 0.0, "memory": 512e9})
        said = (
            "a row of tiny needs 80 GB of memory, and the largest node of the Ray cluster has 64 GB"
        )
        with pytest.raises(ConfigError, match=said):
            self.asked(monkeypatch, ray, 80.0)
        assert ray.asked == []
        assert not ray.is_up

    @pytest.mark.parametrize(
        ("given", "variable", "expected"),
        [
            ("", "", "local"),
            ("", "10.0.0.1:6379", None),  # Ray reads the variable itself
            ("auto", "", "auto"),
        ],
    )
    def test_which_cluster(
        self, monkeypatch: pytest.MonkeyPatch, given: str, variable: str, expected: str | None
    ) -> None:
        """Fails where a run joins somebody's cluster that it was not told of."""
        monkeypatch.setenv("RAY_ADDRESS", variable)
        ray = NoCluster({"CPU": 8.0, "memory": 64e9})
        monkeypatch.setitem(sys.modules, "ray", ray)
        OnRay(None, {"tiny": 1.0}, given)
        assert ray.address == expected


def test_without_ray_it_is_named(
    project: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["reproduce", "--engine", "ray"]) == 2
    said = "error: ENGINE=ray needs Ray: pip install -e '.[cluster]'"
    assert capsys.readouterr().err.splitlines() == [said]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--launch", "env"], "an ENGINE shares out their rows"),
        (["--jobs", "0"], "jobs must be at least 1, not 0"),
    ],
)
def test_a_mistake_is_one_line(
    project: Any, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["reproduce", "--engine", "local", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
