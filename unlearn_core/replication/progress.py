"""How far a notebook is: rows done of rows planned, the row in progress, the time left.

Under the runner (`$UNLEARN_PROGRESS` names a file) the notebook keeps this in the file, which the
runner reads; in a notebook that somebody has opened it is a line that is written over; elsewhere
nobody is told.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .records import Record

__all__ = ["Lines", "Progress", "State", "planned_rows", "row_name"]


@dataclass(frozen=True)
class State:
    """Where a run of one notebook stands.

    Parameters
    ----------
    planned : number of rows, or None where nothing is known of them
    made, cached : rows that this run has made, and those that it has found made
    row : the row in progress
    since : when that row was begun (seconds, as ``time.time()``)
    left : seconds that were left then, or None
    """

    planned: int | None = None
    made: int = 0
    cached: int = 0
    row: str | None = None
    since: float = 0.0
    left: float | None = None

    @staticmethod
    def read(file: Path) -> State | None:
        """The state in a file; None where there is none yet."""
        try:
            return State(**json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def write(self, file: Path) -> None:
        """Write it to a file at once: no reader sees half of it."""
        aside = file.with_name(f".{file.name}")
        aside.write_text(json.dumps(asdict(self)), encoding="utf-8")
        aside.replace(file)

    def line(self, now: float) -> str:
        """What a reader is told at the time ``now``."""
        of = "" if self.planned is None else f" of {self.planned}"
        parts = [f"{self.made + self.cached}{of} rows"]
        if self.cached:
            parts[0] += f" ({self.cached} from the cache)"
        if self.row is not None:
            parts.append(f"{self.row} for {span(now - self.since)}")
        if self.left is not None:
            spent = now - self.since if self.row is not None else 0.0
            parts.append(f"about {span(max(0.0, self.left - spent))} left")
        return "; ".join(parts)


def span(seconds: float) -> str:
    """A time to read: "40 s", "12 min", "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def row_name(experiment: str, method: str, seed: int, variant: Mapping[str, Any]) -> str:
    """What a row is called, here and in what the reader sees."""
    more = [f"{k} {v if isinstance(v, str) else json.dumps(v)}" for k, v in variant.items()]
    return " / ".join([experiment, method, *more, f"seed {seed}"])


def planned_rows(run: Any) -> dict[str, float | None]:
    """The rows that a `Replication` is going to ask for: name -> seconds, None where not known.

    They are those of the last record of the same profile, the reader's own or the published one;
    nothing where there is none, or where it can't be read.
    """
    if run.rehearsal:
        return {}
    published = run.root / "book" / "published" / run.profile_name
    # The runner lets a notebook run in a folder beside what its last run has left.
    for folder in (run.out, run.out.parent, published):
        try:
            record = Record.read(folder / f"{run.slug}.json")
        except (OSError, ValueError):  # of another version, or damaged: a plan is no result
            continue
        return {
            row_name(r.experiment, r.method, r.seed, r.variant): r.provenance.seconds
            for r in record.rows
        }
    return {}


class Progress:
    """Counts rows as they come; see `State`."""

    def __init__(self, planned: Mapping[str, float | None]) -> None:
        self.planned = dict(planned)
        self.made: dict[str, float] = {}  # by this run: name -> seconds
        self.cached: set[str] = set()
        self._expected = 0
        self._begun: list[tuple[str, float]] = []  # a row may need another one first
        self._shown, self._width = 0.0, 0
        file = os.environ.get("UNLEARN_PROGRESS")
        self._file = Path(file) if file else None

    def expect(self, rows: int) -> None:
        """At least so many are to come, where no record tells which."""
        self._expected = rows

    @contextmanager
    def making(self, name: str) -> Iterator[None]:
        """The row is not there: it is made inside this block."""
        began = time.time()
        self._begun.append((name, began))
        self._show()
        try:
            yield
            self.made[name] = time.time() - began
        finally:
            self._begun.pop()
        self._show()

    def found(self, name: str) -> None:
        """The row was there."""
        if name not in self.made and name not in self.cached:
            self.cached.add(name)
            if time.time() - self._shown > 0.2:  # hundreds of them come in a second
                self._show()

    @property
    def state(self) -> State:
        """What is done, what is in progress and what is left, as of now."""
        done = self.made.keys() | self.cached
        planned = len(self.planned.keys() | done) if self.planned else None
        if planned is None and self._expected:
            planned = max(self._expected, len(done))
        row, since = self._begun[-1] if self._begun else (None, 0.0)
        return State(planned, len(self.made), len(self.cached), row, since, self._left(done))

    def _left(self, done: set[str]) -> float | None:
        known = {k: v for k, v in self.planned.items() if v is not None}
        if not known:
            return None
        # This machine's pace, as far as it can be seen: rows that were made here and in the plan.
        both = [k for k in self.made if k in known]
        before, here = sum(known[k] for k in both), sum(self.made[k] for k in both)
        pace = here / before if before > 1 else 1.0
        return pace * sum(v for k, v in known.items() if k not in done)

    def _show(self) -> None:
        self._shown = time.time()
        if self._file is not None:
            self.state.write(self._file)
        elif _in_notebook():
            line = self.state.line(self._shown)
            print(f"\r{line:{self._width}}", end="", file=sys.stderr, flush=True)
            self._width = len(line)


def _in_notebook() -> bool:
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return get_ipython() is not None


#: Seconds between two lines about a notebook where the output is no terminal.
EVERY = 60.0


class Lines:
    """What the runner says: in a terminal also a line a running notebook, kept up to date."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self._bars: dict[str, tqdm] = {}
        self._told: dict[str, float] = {}
        self._said: set[str] = set()

    def say(self, text: str) -> None:
        """Print a line above those that are kept up to date."""
        tqdm.write(text)  # above the lines that are kept up to date
        sys.stdout.flush()

    def once(self, text: str) -> None:
        """As `say`, unless it was said before."""
        if text not in self._said:
            self._said.add(text)
            self.say(text)

    def tell(self, slug: str, file: Path) -> None:
        """Say where a notebook stands, if it is time to."""

        def text() -> str:
            state = State.read(file)
            return f"{slug}: {state.line(time.time()) if state else 'no row yet'}"

        self.show(slug, text)

    def show(self, what: str, text: Callable[[], str]) -> None:
        """Say how far something is, if it is time to."""
        now = time.time()
        if now - self._told.setdefault(what, now) < (1.0 if self.live else EVERY):
            return
        self._told[what] = now
        if not self.live:
            self.say(text())
            return
        if what not in self._bars:
            self._bars[what] = tqdm(bar_format="{desc}", dynamic_ncols=True, leave=False)
        self._bars[what].set_description_str(text())

    def end(self, slug: str, text: str) -> None:
        """The notebook runs no longer."""
        if slug in self._bars:
            self._bars.pop(slug).close()
        self.say(text)
