"""One run of what `make reproduce` runs, and the pages that it leaves.

It works in ``build/tests``: what the reader has made stays as it is. Shared are the cache, and
notebooks of profile ci that the reader has run and that are up to date, which are copied.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from unlearn_core.replication.papers import PROFILES, load_paper
from unlearn_core.replication.records import Record, Row
from unlearn_core.replication.runner import out_of_date, stamped

ROOT = Path(__file__).resolve().parents[2]
SLUGS = sorted(file.stem for file in (ROOT / "notebooks").glob("*.yaml"))

#: Of the tests, and of nobody else.
BUILD = Path("build/tests")

#: Seconds. `ci` has 75 s a modality of a notebook; a shared machine gets a multiple of that.
LIMIT = 20 * 60


@dataclass(frozen=True)
class Edition:
    """An executed notebook with its record, and the page that must show it."""

    slug: str
    page: str
    notebook: Path
    published: bool

    @cached_property
    def record(self) -> Record:
        return Record.read(self.notebook.with_suffix(".json"))

    @property
    def label(self) -> str:
        whose = "published run" if self.published else "your own run"
        return f"{self.record.profile}, {whose}"


def editions_of(slug: str) -> list[Edition]:
    """What was run of a paper; the first is the one that its chapter must show.

    That is the published one that judges most claims, the larger profile of two that judge as many; what
    was run here comes after what was published.
    """
    found: list[tuple[str, Path]] = []
    for whose, folder in (("published", ROOT / "book" / "published"), ("own", ROOT / BUILD)):
        for profile in PROFILES[::-1]:
            notebook = folder / profile / f"{slug}.ipynb"
            if (whose == "published" and notebook.exists()) or stamped(folder / profile, slug):
                found.append((whose, notebook))

    if not found:
        return []

    def judged(notebook: Path) -> int:
        verdicts = Record.read(notebook.with_suffix(".json")).verdicts
        return len([v for v in verdicts if v.verdict != "not tested"])

    shown = max(
        (e for e in found if e[0] == "published"), key=lambda e: judged(e[1]), default=found[0]
    )
    found = [shown, *(e for e in found if e != shown)]
    return [
        Edition(
            slug,
            f"runs/{slug}_{notebook.parent.name}_{whose}.html" if i else f"papers/{slug}.html",
            notebook,
            whose == "published",
        )
        for i, (whose, notebook) in enumerate(found)
    ]


@dataclass(frozen=True)
class Site:
    """The rendered book, and what the run printed."""

    html: Path
    output: str

    @cached_property
    def pages(self) -> dict[str, BeautifulSoup]:
        """Every page by its path; the theme's own fragments are not pages."""
        files = {f.relative_to(self.html).as_posix(): f for f in sorted(self.html.rglob("*.html"))}
        return {
            name: BeautifulSoup(file.read_text(), "html.parser")
            for name, file in files.items()
            if not name.startswith("_")
        }

    @cached_property
    def editions(self) -> dict[str, list[Edition]]:
        return {slug: editions_of(slug) for slug in SLUGS}

    @property
    def all_editions(self) -> list[Edition]:
        return [edition for found in self.editions.values() for edition in found]


Reproduce = Callable[..., str]


@pytest.fixture(scope="session")
def run_reproduce() -> Reproduce:
    """``run_reproduce("--no-book")``: runs the command of `make reproduce`; returns its output.

    Of this project's variables only the cache's place is handed on: profile ci needs no hub, and
    nothing from the network.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("UNLEARN_")}
    if cache := os.environ.get("UNLEARN_CACHE"):
        environment["UNLEARN_CACHE"] = cache
    environment |= {"UNLEARN_BUILD": BUILD.as_posix(), "HF_HUB_OFFLINE": "1"}

    def run(*options: str) -> str:
        command = [sys.executable, "-m", "unlearn_core.replication", "reproduce"]
        command += ["--profile", "ci", *options]
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its children end with it
        ) as process:
            try:
                output, _ = process.communicate(timeout=LIMIT)
            except BaseException as error:
                os.killpg(process.pid, signal.SIGKILL)
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                pytest.fail(f"no end after {LIMIT} s:\n{process.communicate()[0]}", pytrace=False)
        if process.returncode:
            what = f"{' '.join(command[1:])} ended with {process.returncode}"
            pytest.fail(f"{what}:\n{output}", pytrace=False)
        return output

    return run


@pytest.fixture(scope="session")
def site(run_reproduce: Reproduce) -> Site:
    """Profile ci of every paper, run if it is out of date, and the book rendered."""
    theirs, ours = ROOT / "build" / "ci", ROOT / BUILD / "ci"
    ours.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNLEARN_ROOT", str(ROOT))
        for name in {k for k in os.environ if k.startswith("UNLEARN_")} - {"UNLEARN_ROOT"}:
            patch.delenv(name)
        current = [slug for slug in SLUGS if not out_of_date(slug, "ci")]
    for slug in current:
        if stamped(ours, slug) != stamped(theirs, slug):
            for suffix in ("ipynb", "json", "log", "stamp"):
                shutil.copy(theirs / f"{slug}.{suffix}", ours)
    before = readers_own()
    output = run_reproduce()
    assert readers_own() == before, "the tests have changed what the reader has made"
    return Site(ROOT / BUILD / "site" / "_build" / "html", output)


def readers_own() -> dict[Path, int]:
    """The time of every file below ``build`` that is not the tests'."""
    shared = {ROOT / "build" / "cache", ROOT / BUILD}
    return {
        file: file.stat().st_mtime_ns
        for folder in (ROOT / "build").iterdir()
        if folder not in shared
        for file in (folder, *folder.rglob("*"))
    }


@pytest.fixture(autouse=True)
def _this_project(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the tests are started, they look at the notebooks beside them."""
    monkeypatch.setenv("UNLEARN_ROOT", str(ROOT))


@pytest.fixture
def missing_rows() -> Callable[[Record], list[str]]:
    """``missing_rows(record)``: what its profile in the YAML names and the record has no row of."""

    def rows_of(record: Record, experiment: str, method: str | None = None) -> list[Row]:
        """Rows of a method and of its variants, which are called "SSD, known importances"."""
        return [
            row
            for row in record.rows
            if row.experiment == experiment
            and (method is None or row.method == method or row.method.startswith(f"{method}, "))
        ]

    def missing(record: Record) -> list[str]:
        out = []
        profile = load_paper(record.paper).profile(record.profile)
        skipped = {skip.experiment: set(skip.seeds) for skip in record.skips}
        for name, experiment in profile.experiments.items():
            if name in skipped and not skipped[name]:
                continue
            ((kind, wanted),) = experiment.forget.items()
            wanted = wanted if isinstance(wanted, list) or wanted == "all" else [wanted]
            if wanted == "all":
                requests = (r for r in rows_of(record, name) if r.method != "Selection")
                wanted = list({str(r.variant["forget"]): None for r in requests})
                if len(wanted) < 2:
                    out.append(f"{name}: all targets")
            methods = experiment.methods
            if experiment.search:  # that tunes what it searches, and measures nothing else
                methods = [m for m in methods if m in {*experiment.search, experiment.oracle}]
            for i, seed in enumerate(experiment.seeds or profile.seeds):
                if seed in skipped.get(name, ()):
                    continue
                # Every seed has an order of tasks of its own, but each of the other targets.
                own_targets = wanted[i : i + 1] if kind == "order" else wanted
                for method in methods:
                    where, own = name, seed
                    if (
                        method == experiment.oracle
                    ):  # it may be another experiment's, or one for all
                        where = experiment.originals_of or name
                        if experiment.original_seed is not None and not experiment.drawn:
                            own = experiment.original_seed
                    found = {
                        " ".join(r.detail["order"])
                        if kind == "order"
                        else str(r.variant.get("forget"))
                        for r in rows_of(record, where, method)
                        if r.seed == own
                    }
                    lost = [t for t in map(str, own_targets) if t not in found]
                    out += [f"{name} / {method} / seed {seed} / {t}" for t in lost]
                for key, values in experiment.grid.items():
                    have = [r.variant.get(key) for r in rows_of(record, name) if r.seed == seed]
                    out += [f"{name} / {key} = {v} / seed {seed}" for v in values if v not in have]
        return out

    return missing
