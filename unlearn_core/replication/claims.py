"""From a rule and a run's rows to a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from .records import Rows, Verdict

__all__ = ["Rule", "judge"]

#: (rows, seed) -> the margin by which the claim holds; 0 or more holds.
Rule = Callable[[Rows, int], float]


def judge(key: str, rule: Rule, rows: Rows, seeds: Sequence[int], source: str = "") -> Verdict:
    """Apply the rule to every seed. Without seeds the claim is not tested at this scale.

    Raises
    ------
    ValueError
        A margin is not a finite number.
    """
    margins = {seed: float(rule(rows, seed)) for seed in seeds}
    bad = [seed for seed, margin in margins.items() if not math.isfinite(margin)]
    if bad:
        raise ValueError(f"claim {key}: the margin of seeds {bad} is not a finite number")
    held = sum(margin >= 0 for margin in margins.values())
    if not margins:
        verdict = "not tested at this scale"
    elif held == len(margins):
        verdict = "holds"
    elif held == 0:
        verdict = "fails"
    else:
        verdict = "holds in part"
    return Verdict(claim=key, verdict=verdict, margins=margins, rule=source)
