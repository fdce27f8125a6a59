"""From a rule and a run's rows to a verdict: margins with their errors, and what they say.

A rule gives, for one seed, the margin by which its claim holds: a number with its standard error
(``uncertainties``), which `Rows.measured` starts and arithmetic carries on. Over the seeds the
verdict is arithmetic:

- the error of the mean margin is the larger of what its seeds' own errors give and of what the
  margins scatter: each sees something that the other may miss (a handful of seeds can agree by
  chance; the error of one seed's examples knows nothing of training again);
- *holds* and *fails*: the mean is more than two errors from zero; *tie*: it isn't;
- *holds in k of n seeds*: at least one seed lies more than two of its own errors above zero, and
  at least one as far below;
- *not tested*, with the reason: a precondition does not hold, a setting that a row was made with
  lies at an edge of its search, one seed has no known error, or this size does not judge the claim.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
from uncertainties import UFloat, nominal_value, std_dev

from .records import Margin, MissingRowError, Presupposed, Rows, Verdict, with_error

__all__ = [
    "Check",
    "NothingToCompareError",
    "Precondition",
    "Rule",
    "bootstrapped",
    "distance",
    "exact",
    "judge",
    "largest",
    "mean_of",
    "paired",
    "rule_parts",
    "smallest",
    "verdict_of",
]

#: (rows, seed) -> the margin by which the claim holds. A plain number has no known error.
Rule = Callable[[Rows, int], "UFloat | float"]


class Check(NamedTuple):
    """Whether what a claim presupposes is so, and what was found, in words."""

    holds: bool
    found: str


class NothingToCompareError(ValueError):
    """A rule compares what is not there: no rival ran, say, or no question is answered."""


#: (rows, seed) -> whether what a claim presupposes is true of that seed.
Precondition = Callable[[Rows, int], Check]


# --- margins ---------------------------------------------------------------------------------


def exact(value: float) -> UFloat:
    """A margin without error: a count, a bound that follows from arithmetic."""
    return with_error(value, 0.0)


def distance(a: UFloat, b: UFloat) -> UFloat:
    """The absolute difference, errors carried along: how far a value is from the retrained one's."""
    apart = a - b
    return apart if apart.nominal_value >= 0 else -apart


def largest(values: Iterable[UFloat]) -> UFloat:
    """The one with the largest value: the best of several rivals, with its own error."""
    return max(_some(values), key=nominal_value)


def smallest(values: Iterable[UFloat]) -> UFloat:
    """The one with the smallest value, with its own error."""
    return min(_some(values), key=nominal_value)


def mean_of(margins: Iterable[UFloat]) -> UFloat:
    """The mean of margins, whose errors are carried along (shared variables included)."""
    found = _some(margins)
    return sum(found) / len(found)


def _some(values: Iterable[UFloat]) -> list[UFloat]:
    found = list(values)
    if not found:
        raise NothingToCompareError("there is nothing to compare")
    return found


def paired(a: Sequence[float], b: Sequence[float]) -> UFloat:
    """The mean of ``a - b`` over the same examples, with its standard error.

    Parameters
    ----------
    a, b : one outcome an example (0 or 1, a score), in the same order, at least two
    """
    difference = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    if len(difference) < 2:
        raise ValueError("a paired difference needs at least two examples")
    return with_error(
        float(difference.mean()), float(difference.std(ddof=1)) / math.sqrt(len(difference))
    )


def bootstrapped(
    statistic: Callable[..., float], *samples: Sequence[float], resamples: int = 1000
) -> UFloat:
    """A statistic of paired samples with its bootstrap error; for what has no closed form.

    The same examples are drawn from every sample. The draws are seeded, so a verdict is the same
    whenever it is computed.
    """
    arrays = [np.asarray(s, dtype=float) for s in samples]
    found = stats.bootstrap(
        arrays,
        statistic,
        paired=True,
        vectorized=False,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return with_error(statistic(*arrays), float(found.standard_error))


# --- verdicts --------------------------------------------------------------------------------


def _margin(key: str, seed: int, found: Any) -> Margin:
    value, stderr = float(nominal_value(found)), float(std_dev(found))
    if not math.isfinite(value) or math.isinf(stderr):
        raise ValueError(f"claim {key}: the margin of seed {seed} is {found}, no finite number")
    known = isinstance(found, UFloat) and not math.isnan(stderr)
    return Margin(value=value, stderr=stderr if known else None)


def verdict_of(margins: Mapping[int, Margin]) -> tuple[str, float, float | None]:
    """The verdict, the mean margin and its standard error (None: not known)."""
    found = list(margins.values())
    n = len(found)
    mean = sum(m.value for m in found) / n
    errors = []
    if all(m.stderr is not None for m in found):
        errors.append(math.sqrt(sum(m.stderr**2 for m in found)) / n)
    if n > 1:
        errors.append(float(np.std([m.value for m in found], ddof=1)) / math.sqrt(n))
    if not errors:
        return "not tested", mean, None
    stderr = max(errors)
    own = [m for m in found if m.stderr is not None]
    above = any(m.value > 2 * m.stderr for m in own)
    below = any(m.value < -2 * m.stderr for m in own)
    if above and below:
        return "holds in part", mean, stderr
    if abs(mean) > 2 * stderr:
        return ("holds" if mean > 0 else "fails"), mean, stderr
    return "tie", mean, stderr


def judge(
    key: str,
    rule: Rule,
    rows: Rows,
    seeds: Sequence[int],
    *,
    preconditions: Mapping[str, Precondition] | None = None,
    unsettled: Callable[[set[str]], str] = lambda keys: "",
    partial: bool = False,
    source: str = "",
) -> tuple[Verdict, set[str]]:
    """Apply the rule to every seed; also the keys of the rows that it and its preconditions read.

    Parameters
    ----------
    preconditions : name -> what the claim presupposes; where one does not hold on a seed, the
        claim is not tested, and the reason says what was found
    unsettled : why rows of these keys can't be judged ("" where they can): a setting at an edge
    partial : leave out the seeds on which a row is not made yet (where no seed is left, or asked for,
        none is)

    Raises
    ------
    ValueError
        A margin is not a finite number.
    MissingRowError
        A row is not there: that is a fault of the rule or the profile, and no verdict.
    """

    def untested(reason: str, **more: Any) -> Verdict:
        return Verdict(claim=key, verdict="not tested", reason=reason, rule=source, **more)

    if not (seeds or partial):
        return untested("not judged at this size"), set()
    if partial:
        seeds = [
            s for s in seeds if _made(rule, *(preconditions or {}).values(), rows=rows, seed=s)
        ]
        if not seeds:
            return untested("its rows are not made yet"), set()
    with rows.reading() as read:
        checks = tuple(
            Presupposed(name=name, seed=seed, holds=check.holds, found=check.found)
            for name, holds in (preconditions or {}).items()
            for seed in seeds
            for check in (holds(rows, seed),)
        )
        if wrong := [c for c in checks if not c.holds]:
            found = f"{wrong[0].name} (seed {wrong[0].seed}: {wrong[0].found})"
            reason = f"what it presupposes is not so: {found}"
            return untested(reason, presupposes=checks, rows=len(read)), read
        try:
            margins = {seed: _margin(key, seed, rule(rows, seed)) for seed in seeds}
        except NothingToCompareError as error:
            return untested(str(error), presupposes=checks, rows=len(read)), read
    word, mean, stderr = verdict_of(margins)
    known = {"margins": margins, "mean": mean, "stderr": stderr, "rows": len(read)}
    known["presupposes"] = checks
    if reason := unsettled(read):
        return untested(reason, **known), read
    if word == "not tested":
        return untested("one seed, and the error of its margin is not known", **known), read
    return Verdict(claim=key, verdict=word, rule=source, **known), read


def _made(*rules: Callable[[Rows, int], Any], rows: Rows, seed: int) -> bool:
    """Are all rows there that these read on a seed?"""
    try:
        for rule in rules:
            rule(rows, seed)
    except MissingRowError:
        return False
    return True


def rule_parts(code: str, *names: str) -> list[str]:
    """The statements of a notebook's code that make up what ``names`` are, thresholds included.

    Those that define the names, and whatever of the notebook these refer to, in their order. What
    is imported is no part: it has versions of its own.
    """
    tree = ast.parse(code)
    defines: dict[str, list[ast.stmt]] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defines.setdefault(node.name, []).append(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for name in (n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)):
                defines.setdefault(name, []).append(node)
    wanted, found = list(names), []
    while wanted:
        for node in defines.pop(wanted.pop(), []):
            if node not in found:
                found.append(node)
                wanted += [n.id for n in ast.walk(node) if isinstance(n, ast.Name)]
    found.sort(key=lambda node: node.lineno)
    return [_source(code, node) for node in found]


def _source(code: str, node: ast.stmt) -> str:
    """A statement's text, with its decorators."""
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
    return "\n".join(code.splitlines()[first - 1 : node.end_lineno])
