"""What a process does of a plan, a task at a time; what comes of it lies in the cache.

A paper's plan is a look at each of its trials, and at each search after the trials that it is made
of. A look makes nothing: it asks for all rows of its trial, and of each that is not there it names
what is missing first (the row itself, or one that it is compared with or that chooses for it) and
the trained models behind that. These are tasks, and after them it looks again, until all is there.
So what a row needs is found by the code that will need it, and rows that are alike in two
experiments or papers, or models that are the same, have one key and are one task.
"""

from __future__ import annotations

import errno
import traceback
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..progress import planned_rows
from ..records import NotMadeError
from ..run import Replication
from ..runner import run_folder
from .base import Trial
from .plan import Planned, kind_of, plan, searches
from .search import SearchGoesOnError, choose

__all__ = ["Done", "Task", "Worker", "work"]


@dataclass(frozen=True)
class Task:
    """Something that a process can do by itself.

    Attributes
    ----------
    key : tasks of one key are one task
    name : what the reader is told
    at : experiment, seed and target of a trial; of a search, its experiment
    rows : those that a look asks for; of a row that is to be made, the one that asks for it
    needs : keys of tasks without whose results there is nothing to do
    whole : of a row that is to be made: its models are known, so what asks for it is made with it
    """

    key: str
    kind: Literal["plan", "look", "search", "model", "row"]
    name: str
    paper: str
    profile: str
    at: tuple[Any, ...] = ()
    rows: tuple[Planned, ...] = ()
    needs: tuple[str, ...] = ()
    whole: bool = True


@dataclass(frozen=True)
class Done:
    """How a task has ended.

    Attributes
    ----------
    more : tasks that were found; some may be known already
    missing : keys of rows after which this task is to be done again; none where it is finished
    unmade : how many of a look's rows are not there
    made, found : names of rows that were made here, with seconds, and of those that were there
    planned : of a plan, the rows that the paper will have, with seconds, where a record says it
    error : what was raised, in one line and in full
    full : it was raised as there was no room on the disk
    killed : how its process ended, where it could not say so itself
    """

    more: tuple[Task, ...] = ()
    missing: frozenset[str] = frozenset()
    unmade: int = 0
    made: dict[str, float] = field(default_factory=dict)
    found: frozenset[str] = frozenset()
    planned: dict[str, float | None] = field(default_factory=dict)
    error: tuple[str, str] | None = None
    full: bool = False
    killed: str = ""


class Worker:
    """A process's part; it keeps the run of one paper, and one trial with its models."""

    def __init__(self) -> None:
        self._run: Replication | None = None
        self._trial: Trial | None = None

    def __call__(self, task: Task) -> Done:
        """Do a task; what goes wrong is in what is returned."""
        try:
            run = self.run(task)
            made, found = set(run.progress.made), set(run.progress.cached)
            done = getattr(self, task.kind)(task, run)
        except Exception as error:
            self._run = self._trial = None  # whatever state they are in
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return Done(error=(said, traceback.format_exc()), full=_is_full(error))
        new = {k: v for k, v in run.progress.made.items() if k not in made}
        return replace(
            done,
            made={_called(task, k): v for k, v in new.items()},
            found=frozenset(_called(task, k) for k in run.progress.cached - found),
        )

    def run(self, task: Task) -> Replication:
        """The run of a task's paper, which makes no row yet."""
        run = self._run
        if run is None or (run.slug, run.profile_name) != (task.paper, task.profile):
            self._run = self._trial = None  # before the next one's data come
            run = Replication(task.paper, task.profile, run_folder(task.profile).as_posix())
            self._run = run
        run.only = ""
        return run

    def trial(self, task: Task, run: Replication) -> Trial:
        """The trial that a task is of; the last one is kept."""
        known = self._trial
        if known is None or (known.name, known.seed, known.target) != task.at:
            name, seed, target = task.at
            self._trial = None
            self._trial = kind_of(run.experiment(name))(run, name, seed, target)
        return self._trial

    def plan(self, task: Task, run: Replication) -> Done:
        """The tasks that a paper begins with."""
        names, trials = run.experiments(), {}
        for row in plan(run):
            trials.setdefault((row.experiment, row.seed, row.target), []).append(row)
        tuned = {t for n in names for t in run.experiment(n).tuned}
        searched = [n for n in names if n in tuned or searches(run.experiment(n))]
        looks = [
            replace(
                task,
                key=_key(task, *at),
                kind="look",
                name=_called(task, "{0} / {2} / seed {1}".format(*at)),
                at=at,
                rows=tuple(rows),
                needs=tuple(_key(task, t) for t in run.experiment(at[0]).tuned if t in searched),
            )
            for at, rows in trials.items()
        ]
        found = [
            replace(
                task,
                key=_key(task, name),
                kind="search",
                name=_called(task, f"the search of {name}"),
                at=(name,),
                needs=tuple(look.key for look in looks if look.at[0] == name),
            )
            for name in searched
        ]
        known = {
            _called(task, k): seconds
            for k, seconds in planned_rows(run).items()
            if k.split(" / ")[0] in names
        }
        return Done((*looks, *found), planned=known)

    def look(self, task: Task, run: Replication) -> Done:
        """Which of a trial's rows are not made yet."""
        trial, missing = self.trial(task, run), []
        for row in task.rows:
            try:
                row.make(trial)
            except NotMadeError as error:
                missing.append((row, error))
        models, whole = [], True
        try:
            for name, key, _ in trial.models() if missing else ():
                meta = run.cache.find("models", key)
                if meta is None or not trial.acceptable(meta):
                    called = _called(task, f"{name} of {trial.name}, seed {trial.seed}")
                    models.append(replace(task, key=key, kind="model", name=called, rows=()))
        except NotMadeError:  # what chooses the forget set comes before its other models
            whole = False
        done = _asked(task, missing, tuple(m.key for m in models), whole)
        return replace(done, more=(*models, *done.more))

    def search(self, task: Task, run: Replication) -> Done:
        """Choose by a search, or say which rows it asks for next."""
        (name,) = task.at
        try:
            choose(kind_of(run.experiment(name)), run, name)
        except SearchGoesOnError as error:
            asked = []
            for trial, label, settings, missing in error.rows:
                measure = "original" if label is None else "method"
                at = name, trial.seed, trial.target
                asked.append((Planned(*at, measure, label, settings), missing))
            return _asked(task, asked)
        return Done()

    def model(self, task: Task, run: Replication) -> Done:
        """Make a model that several rows need."""
        for _, key, make in self.trial(task, run).models():
            if key == task.key:
                make()
        return Done()

    def row(self, task: Task, run: Replication) -> Done:
        """Make one row."""
        (row,), trial = task.rows, self.trial(task, run)
        run.only = task.key
        try:
            row.make(trial)
        except NotMadeError:
            if task.whole:
                run.only = None
                row.make(trial)
        return Done()


def _key(task: Task, *what: Any) -> str:
    return " / ".join(map(str, (task.paper, *what)))


def _called(task: Task, name: str) -> str:
    """A name that tells papers apart."""
    return f"{task.paper}: {name}"


def _asked(
    task: Task,
    missing: list[tuple[Planned, NotMadeError]],
    models: tuple[str, ...] = (),
    whole: bool = True,
) -> Done:
    """The making of what is missing first of each row; it comes before this task is done again."""
    found: dict[str, Task] = {}
    for row, error in missing:
        found.setdefault(
            error.key,
            replace(
                task,
                key=error.key,
                kind="row",
                name=_called(task, error.row),
                at=(row.experiment, row.seed, row.target),
                rows=(row,),
                needs=models,
                whole=whole,
            ),
        )
    return Done(tuple(found.values()), frozenset(found), len(missing))


def _is_full(error: BaseException | None) -> bool:
    """Whether an error is, or comes from, a disk without room."""
    while error is not None and getattr(error, "errno", None) not in (errno.ENOSPC, errno.EDQUOT):
        error = error.__cause__ or error.__context__
    return error is not None


#: This process's.
work = Worker()
