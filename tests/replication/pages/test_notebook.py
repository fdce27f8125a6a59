"""The pieces of a chapter that are made from records."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from bs4 import BeautifulSoup

from unlearn_core.replication.pages import notebook as nb
from unlearn_core.replication.pages.tables import seed_cell, targets_table
from unlearn_core.replication.papers import Target
from unlearn_core.replication.records import Row, Search, Skip


def searched(method: str, names: tuple[str, ...], found: dict[tuple, float], **more: Any) -> Search:
    """A search whose first setting is the chosen one."""
    known = {"kept": (True,) * len(found), "chosen": next(iter(found))} | more
    return Search(
        experiment="tuning",
        method=method,
        names=names,
        tried=tuple(found),
        scores=tuple(found.values()),
        **known,
    )


def test_a_search_shows_what_was_tried_kept_and_chosen_and_how_flat_its_optimum_is(
    make_row: Callable[..., Row],
) -> None:
    """Fails where a setting that loses too much counts as the next best, where another value than
    the chosen one is bold, where an edge is not called so, or what the original scores is not said."""
    rows = [make_row("tuning", "Original", s, {}, gap=2.0 + s) for s in (0, 2)]
    rows += [make_row("tuning", "FT", 0, {}, gap=9.0)]
    searches = [
        searched("FT", ("lr",), {(0.01,): 2, (0.1,): 6, (0.2,): 2.1}, kept=(True, True, False)),
        searched("SSD", ("alpha", "lam"), {(1, 4): 2.5, (1, 3): 4, (2, 3): 7}, edges=("alpha",)),
        searched("IU", ("scale",), {(5.0,): 3.0}, kept=(False,)),
        searched("GA", ("lr",), {(float(i),): 1.0 + i for i in range(12)}),
    ]
    rule = SimpleNamespace(by="gap")
    wanted = {s.method: {} for s in searches}
    experiment = SimpleNamespace(search=wanted, choose=rule, title="The search")
    run: Any = SimpleNamespace(
        experiment={"tuning": experiment}.__getitem__,
        seeds_of=lambda name: (0, 2),
        rows_of={"tuning": rows}.__getitem__,
        searches={("tuning", s.method): s for s in searches},
        profile_name="ci",
    )
    page = BeautifulSoup(nb.search(run, "tuning").data, "html.parser")
    assert page.caption.text == "The search, seeds 0, 2 (ci)"
    lines = [[c.text for c in tr.select("th, td")] for tr in page.select("tbody tr")]
    assert lines[:3] == [
        ["FT", "lr 0.01", "2.0", "+4", "0.01: 2.0; 0.1: 6.0; (0.2: 2.1)", "–"],
        ["SSD", "alpha 1, lam 4", "2.5", "+1.5", "1, 4: 2.5; 1, 3: 4.0; 2, 3: 7.0", "alpha"],
        ["IU", "scale 5", "3.0, none is kept", "–", "(5: 3.0)", "–"],
    ]
    assert lines[4:] == [["Original, nothing done", "–", "3.0", "–", "–", "–"]]
    assert page.select_one("details summary").text == "12 settings"
    assert [b.text for b in page.select("b")] == ["0.01: 2.0", "1, 4: 2.5", "(5: 3.0)", "0: 1.0"]


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (
            (None, None),
            "retrained model's, a random forget set's draw and the method's own randomness. Hard",
        ),
        ((0, 0), "the original and the retrained model are the same for all of them."),
        ((None, 0), "own randomness. One original serves all seeds of: What draws. Hardware"),
    ],
)
def test_what_a_seed_fixes(own: tuple[int | None, int | None], said: str) -> None:
    """Fails where one experiment with a shared original speaks for those without."""
    experiments = {
        title: SimpleNamespace(
            title=title,
            data={},
            model={},
            train={},
            forget={"fraction": [0.1]},
            methods={},
            original_seed=seed,
        )
        for title, seed in zip(("Classifiers", "What draws"), own, strict=True)
    }
    profile = SimpleNamespace(
        experiments=experiments, purpose="", shrunk="", hardware="", memory_gb=1, minutes=1
    )
    run: Any = SimpleNamespace(
        profile=profile, skips=(), seeds=(0, 1), rehearsal=False, profile_name="ci"
    )
    assert said in nb.setup(run).data


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ((), "skipped: not all of its rows are made yet"),
        ((2,), "SSD; seed 2: not all of its rows are made yet"),
    ],
)
def test_a_seed_that_is_not_made_is_named(seeds: tuple[int, ...], said: str) -> None:
    experiment = SimpleNamespace(
        title="Classes",
        data={},
        model={},
        train={},
        forget={"class": ["3"]},
        methods={"SSD": {}},
        original_seed=None,
    )
    profile = SimpleNamespace(
        experiments={"classes": experiment},
        purpose="",
        shrunk="",
        hardware="",
        memory_gb=1,
        minutes=1,
    )
    skip = Skip(experiment="classes", reason="not all of its rows are made yet", seeds=seeds)
    run: Any = SimpleNamespace(
        profile=profile, skips=(skip,), seeds=(0, 1), rehearsal=False, profile_name="ci"
    )
    page = BeautifulSoup(nb.setup(run).data, "html.parser")
    assert page.select("tbody tr")[-1].select("td")[-1].text == said


class TestResults:
    @pytest.fixture
    def run(self, make_row: Callable[..., Row]) -> Any:
        names = ("Original", "FT", "SSD", "SSD, known importances", "SSDX", "SSD (shuffled)")
        rows = [
            make_row("full", m, s, {}, gap=float(i + s))
            for i, m in enumerate(names)
            for s in (0, 2)
        ]
        return SimpleNamespace(
            experiments=lambda prefix: ["full"] if "full".startswith(prefix) else [],
            rows_of=lambda name: rows,
            experiment=lambda name: SimpleNamespace(title="Full class"),
            profile=SimpleNamespace(experiments=["full"]),
            profile_name="ci",
            skips=[],
        )

    def test_the_methods_that_are_asked_for_in_their_order(self, run: Any) -> None:
        """Fails where another method whose name begins alike is taken for a variant."""
        page = BeautifulSoup(
            nb.results(run, "full", ["gap"], methods=["SSD", "FT"]).data, "html.parser"
        )
        assert [th.text for th in page.select("tbody th")] == [
            "SSD",
            "SSD, known importances",
            "SSD (shuffled)",
            "FT",
        ]

    def test_what_there_is_to_see_stands_below(self, run: Any) -> None:
        page = BeautifulSoup(nb.results(run, "full", ["gap"], says="2 < 3.").data, "html.parser")
        (note,) = page.select("p.says")
        assert note.text == "2 < 3."
        assert page.find_all(True)[-1] is note
        assert "says" not in nb.results(run, "sub", ["gap"], says="2 < 3.").data


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ("random", "<p>Random &lt;10 %&gt;: not made.</p>"),  # and not random_50, of another name
        ("ddpm_", "<p>Trousers: no hub; More: not made.</p>"),
        ("mask", None),
    ],
)
def test_what_is_left_out_is_told(prefix: str, said: str | None) -> None:
    """Fails where a page is silent about rows that are not made yet, or says that there is no such experiment."""
    titles = {
        "random": "Random <10 %>",
        "random_50": "Half",
        "ddpm_a": "Trousers",
        "ddpm_b": "More",
    }
    reasons = dict.fromkeys(titles, "not made") | {"ddpm_a": "no hub"}
    run: Any = SimpleNamespace(
        profile=SimpleNamespace(experiments=titles),
        experiments=lambda prefix: [],
        experiment=lambda name: SimpleNamespace(title=titles[name]),
        skips=[Skip(experiment=name, reason=reason) for name, reason in reasons.items()],
    )
    for shown in (
        nb.first(run, prefix, lambda name: pytest.fail(name)),
        nb.strips(run, prefix, ["gap"], caption="c", alt="a"),
    ):
        assert (shown and shown.data) == said
    table = nb.results(run, prefix, ["gap"]).data
    assert table == (said or "<p>This profile has no such experiment.</p>")


def test_values_of_a_cell_have_the_same_digits() -> None:
    """Fails where 1.0 stands beside 0.919, or where a small value loses what tells it apart."""

    def cell(*values: float) -> str:
        return " ".join(BeautifulSoup(seed_cell(values), "html.parser").get_text(" ").split())

    assert cell(1.0, 0.919) == "0.96 1.00 · 0.92"
    assert cell(9.1, 8.8) == "8.9 9.1 · 8.8"
    assert cell(98.13, 100.0) == "99.1 98.1 · 100"
    assert cell(0.0312, 0.0046) == "0.0179 0.0312 · 0.0046"
    assert cell(0.0, 0.0) == "0 0 · 0"
    assert cell(0.919) == "0.919 n = 1"


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
