"""Whether everything that a paper's experiments name can be built: before hours of work, not after."""

from __future__ import annotations

from ...registry import ConfigError, did_you_mean, within
from ..papers import PaperFile, Profile, load_paper, rehearsed
from .plan import kind_of

__all__ = ["check"]


def check(paper: str, profile: str, *, rehearsal: bool = False) -> PaperFile:
    """The paper's YAML, with what the experiments of one profile name built, and nothing loaded or trained.

    Models, methods, data and all settings are looked up and their values checked; what nothing reads is
    refused. ``rehearsal`` also checks the profile as a rehearsal shrinks it.

    Raises
    ------
    ConfigError
        The first mistake, with its file, profile, experiment and key.
    """
    file = load_paper(paper)
    full = file.profile(profile)
    place = f"notebooks/{paper}.yaml: profiles.{profile}"
    _check(full, place)
    if rehearsal:
        with within(f"{place}.rehearsal"):
            _overrides_are_read(full)
        _check(rehearsed(full), f"{place}, rehearsed")
    return file


def _check(profile: Profile, place: str) -> None:
    for name, e in profile.experiments.items():
        with within(f"{place}.experiments.{name}"):
            kind_of(e).check(e, e.seeds or profile.seeds)


def _overrides_are_read(profile: Profile) -> None:
    """What a rehearsal changes by name is there: a misspelt name would shrink nothing."""
    experiments, over = profile.experiments.values(), profile.rehearsal
    used = {
        "data": {e.data["use"] for e in experiments},
        "models": {e.model["use"] for e in experiments},
        "methods": {
            m["use"] for e in experiments for m in (*e.methods.values(), *e.select.values())
        },
        "grid": {k for e in experiments for k in e.grid},
        "ask": {k for e in experiments for k in e.ask},
    }
    for key, names in used.items():
        for name in getattr(over, key):
            if name not in names:
                raise ConfigError(f"{key}: no experiment has {name!r}; {did_you_mean(name, names)}")
