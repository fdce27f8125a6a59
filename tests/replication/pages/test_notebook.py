"""The pieces of a chapter that are made from records."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from bs4 import BeautifulSoup

from unlearn_core.replication.pages import notebook as nb
from unlearn_core.replication.pages.tables import targets_table
from unlearn_core.replication.papers import Target
from unlearn_core.replication.records import Row, Rows


def test_a_search_shows_every_value_what_was_chosen_and_whether_at_an_edge(
    make_row: Callable[..., Row],
) -> None:
    """Fails where one seed or one forget set stands for the mean, where another value than the
    chosen one is bold, or an end of the grid is not called so (of two values both are ends)."""
    grids = {
        "FT": {"lr": [0.1, 0.01, 0.2]},
        "SSD": {"alpha": [1, 2], "lam": [3, 4]},
        "IU": {"scale": [5.0, 10.0, 20.0]},
    }
    gaps = {
        "FT": {(0.1,): 6, (0.01,): 2, (0.2,): 9},
        "SSD": {(1, 3): 4, (1, 4): 2.5, (2, 3): 7, (2, 4): 3},
        "IU": {(5.0,): 3, (10.0,): 1, (20.0,): 8},
    }
    rows = [
        make_row(
            "tuning",
            method,
            seed,
            {"forget": target, **dict(zip(grids[method], values, strict=True))},
            gap=gap + seed + (target == "b"),
        )
        for method, found in gaps.items()
        for values, gap in found.items()
        for seed in (0, 2)
        for target in ("a", "b")
    ]
    experiment = SimpleNamespace(search=grids, title="The search")
    chosen = {"FT": {"lr": 0.01}, "SSD": {"alpha": 1, "lam": 4}, "IU": {"scale": 10.0}}
    run: Any = SimpleNamespace(
        experiment={"tuning": experiment}.__getitem__,
        seeds_of=lambda name: (0, 2),
        targets=lambda name: ["a", "b"],
        rows=Rows(rows),
        shared={"tuning": chosen},
        profile_name="ci",
    )
    page = BeautifulSoup(nb.search(run, "tuning").data, "html.parser")
    assert page.caption.text == "The search, seeds 0, 2 (ci)"
    lines = [[c.text for c in tr.select("th, td")] for tr in page.select("tbody tr")]
    assert lines == [  # the mean over seeds adds 1, that over targets 0.5
        ["FT", "lr", "0.1: 7.5; 0.01: 3.5; 0.2: 10.5", "yes"],
        ["SSD", "alpha, lam", "1, 3: 5.5; 1, 4: 4.0; 2, 3: 8.5; 2, 4: 4.5", ""],
        ["IU", "scale", "5: 4.5; 10: 2.5; 20: 9.5", ""],
    ]
    assert [b.text for b in page.select("b")] == ["0.01: 3.5", "1, 4: 4.0", "10: 2.5"]


def test_targets_are_a_table_a_setting_and_source_in_their_own_digits() -> None:
    """Fails where numbers of two sources, or of the paper and of others, stand in one table, where
    a value has the digits of our tables, or one that nobody gives is filled in."""

    def target(method: str, metric: str, value: float, **more: Any) -> Target:
        given = {"setting": "CIFAR-10", "kind": "read", "source": "Table 1"} | more
        return Target(method=method, metric=metric, value=value, **given)

    targets = [
        target("SalUn", "UA", 2.85, spread=0.43),
        target("SalUn", "gap", 1.15),
        target("FT", "gap", 3.784),
        target("SalUn", "gap", 1.6, kind="independent", source="a study"),
        target("SalUn", "gap", 2.65, setting="half <of> it"),
    ]
    page = BeautifulSoup(targets_table(targets).data, "html.parser")
    tables = {
        t.caption.text: [[c.text for c in tr.select("th, td")] for tr in t.select("tr")]
        for t in page.select("table")
    }
    assert tables == {
        "CIFAR-10: the paper’s own (Table 1)": [
            ["Method", "UA", "gap"],
            ["SalUn", "2.85 ± 0.43", "1.15"],
            ["FT", "", "3.784"],
        ],
        "CIFAR-10: independent (a study)": [["Method", "gap"], ["SalUn", "1.6"]],
        "half <of> it: the paper’s own (Table 1)": [["Method", "gap"], ["SalUn", "2.65"]],
    }
