"""The common ground: the page on which every method of several chapters meets the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from bs4 import BeautifulSoup, Tag

from unlearn_core.methods import SSD, FineTune
from unlearn_core.metrics import METRICS
from unlearn_core.replication.pages.book import ground
from unlearn_core.replication.pages.grounds import BASES, CLASSIFIER_DETAIL, classifier_tables
from unlearn_core.replication.papers import load_paper
from unlearn_core.replication.records import Record, Row

MakeRecord = Callable[..., Record]


@pytest.fixture
def row(make_row: Callable[..., Row]) -> Callable[..., Row]:
    """``row(experiment, method, seed, is_, **metrics)``: with a key of its own, and its method."""

    def make(
        experiment: str, method: str, seed: int = 0, is_: str | None = None, **metrics: float
    ) -> Row:
        made = make_row(experiment, method, seed, {"forget": 0.1}, retain_accuracy=99.0, **metrics)
        key = f"{experiment} / {method} / {seed} / {metrics}"
        return made.model_copy(
            update={"key": key, "spec": {"method": {"is": is_} if is_ else None}}
        )

    return make


def words(node: Tag) -> str:
    return " ".join(node.get_text(" ").split())


def bases(html: str) -> dict[str, BeautifulSoup]:
    """What stands below the heading of each base."""
    parts = html.split("<h2>")[1:]
    pairs = (part.split("</h2>") for part in parts)
    return {title: BeautifulSoup(rest, "html.parser") for title, rest in pairs}


def lines(table: Tag) -> dict[str, list[str]]:
    """First cell -> the others."""
    rows = [[words(c) for c in tr.select("th, td")] for tr in table.select("tr")]
    return {first: rest for first, *rest in rows}


FITTED, EARLY = BASES


class TestTables:
    def test_a_line_a_method_and_a_gap_a_request(
        self, make_record: MakeRecord, row: Callable[..., Row]
    ) -> None:
        """Fails where the gap of one request stands under another, or costs are those of another
        request than the head says."""
        cost = {"relearned_accuracy": 80.0, "seconds": 4.0, "peak_memory": 120.0}
        rows = (
            row("random", "Original"),
            row("random", "Fine-tune", is_="FineTune", gap=7.5),
            row("random", "SSD", is_="SSD", gap=2.5, **cost),
            row("class_wise", "SSD", is_="SSD", gap=5.5, seconds=99.0),
        )
        page = bases(classifier_tables([make_record(rows=rows)]))[FITTED]
        assert words(page.select_one("p")) == "Not run yet on this base: worst case."
        table = page.select_one("table")
        assert words(table.caption) == "Every method on this base (ci)"
        found = lines(table)
        assert found == {
            "Method": [
                "Gap, random, points ↓",
                "Gap, class, points ↓",
                "Relearned (random), % → retrained",
                "Time (random), s ↓",
                "Memory (random), MB ↓",
                "Needs",
            ],
            "Original": ["–"] * 6,
            "Fine-tune": ["7.5 n = 1", *["–"] * 4, ", ".join(sorted(FineTune.needs))],
            "SSD": [
                *("2.5 n = 1", "5.5 n = 1", "80.0 n = 1", "4.0 n = 1", "120 n = 1"),
                ", ".join(sorted(SSD.needs)),
            ],
        }

    def test_what_left_the_original_as_it_was_is_told(
        self, make_record: MakeRecord, row: Callable[..., Row]
    ) -> None:
        """Fails where a method that a search chose to do nothing looks like one that unlearns."""
        same = {"forget_accuracy": 99.0, "test_accuracy": 93.0, "confidence_mia": 5.0}
        rows = (
            row("random", "Original", **same),
            row("random", "SSD", is_="SSD", gap=2.5, **same),
            row("random", "Fine-tune", is_="FineTune", gap=2.0, **same | {"forget_accuracy": 97.0}),
        )
        page = bases(classifier_tables([make_record(rows=rows)]))[FITTED]
        _, told = page.select("p")
        assert words(told) == (
            "Forgetting, random: on every seed all four accuracies and rates of SSD are within 0.5 points of "
            "the original's."
        )

    def test_a_variant_is_no_seed(self, make_record: MakeRecord, row: Callable[..., Row]) -> None:
        """Fails where the forget set's other order counts as one more seed of the method."""
        other = row("worst_case", "RL", is_="RandomLabel", gap=1.0)
        variant = {"forget": 0.1, "order": "forget_first"}
        other = other.model_copy(update={"key": "other", "variant": variant})
        rows = (row("worst_case", "RL", is_="RandomLabel", gap=20.0), other)
        page = bases(classifier_tables([make_record(rows=rows)]))[FITTED]
        assert lines(page.select_one("table"))["RL"][0] == "20.0 n = 1"

    def test_a_base_that_was_not_run_says_so(
        self, make_record: MakeRecord, row: Callable[..., Row]
    ) -> None:
        """Fails where a base vanishes from the page, or rows of the other one stand below it."""
        rows = (row("early_worst_case", "SSD", gap=1.0), row("mask", "SalUn", gap=3.0))
        page = bases(classifier_tables([make_record(rows=rows)]))
        assert list(page) == [FITTED, EARLY]
        assert words(page[FITTED]) == "Not run yet on this base: random, class, worst case."
        assert words(page[EARLY].select_one("p")) == "Not run yet on this base: random, class."
        overview, detail = page[EARLY].select("table")
        assert list(lines(overview)) == ["Method", "SSD"]
        assert lines(overview)["SSD"][0] == "1.0 n = 1"
        assert list(lines(detail)) == ["Method", "SSD"]

    def test_both_bases_side_by_side(
        self, make_record: MakeRecord, row: Callable[..., Row]
    ) -> None:
        """Fails where a rank counts the original, the oracle or a method that one base lacks,
        where a seed stands for the mean, or a request of one base has a column."""
        gaps = {  # fitted: SSD 1 < FT 3 < GA 9; early: GA 2 < SSD 4 < FT 5
            "random": {"Original": 8.0, "GA": 9.0, "FT": 3.0, "SSD": 1.0, "IU": 0.5},
            "early_random": {"Original": 0.5, "GA": 2.0, "FT": 5.0, "SSD": 4.0},
        }
        known = {"Original": None, "SSD": "SSD"}
        rows = [
            row(name, method, seed, known.get(method, "FineTune"), gap=gap + shift)
            for name, methods in gaps.items()
            for method, gap in methods.items()
            for seed, shift in ((0, -0.5), (1, 0.5))
        ]
        rows += [row(name, "Oracle", 0, "Retrain", gap=0.0) for name in gaps]
        rows.append(row("worst_case", "SSD", 0, "SSD", gap=7.0))
        both, *rest = classifier_tables([make_record(rows=tuple(rows))]).split("<h2>")[1:]
        assert both.startswith("Both bases side by side</h2>")
        assert len(rest) == len(BASES)
        part = BeautifulSoup(both, "html.parser")
        assert lines(part.select_one("table")) == {
            "Method": ["random, fitted, points ↓", "random, early, points ↓"],
            "Original": ["8.0", "0.5"],
            "GA": ["9.0 (3)", "2.0 (1)"],
            "FT": ["3.0 (2)", "5.0 (3)"],
            "SSD": ["1.0 (1)", "4.0 (2)"],
            "IU": ["0.5", "–"],
        }
        # ranks (3, 2, 1) and (1, 3, 2): 1 - 6 (4 + 1 + 1) / (3 (9 - 1))
        order = "Spearman’s correlation of the two orders: random -0.50 (3 methods)."
        assert words(part.select_one("p")) == order

    def test_a_row_that_two_chapters_share_counts_once(
        self, make_record: MakeRecord, row: Callable[..., Row]
    ) -> None:
        """Fails where one seed is shown as two, by which the mean looks surer than it is."""
        shared = row("random", "SSD", 0, gap=2.0)
        one = make_record(paper="a", rows=(row("random", "SSD", 1, gap=4.0), shared))
        two = make_record(paper="b", rows=(shared, row("random", "SalUn", 0, gap=1.0)))
        page = bases(classifier_tables([one, two]))[FITTED]
        overview, detail = page.select("table")
        assert lines(overview)["SSD"][0] == "3.0 2.0 · 4.0", "in the order of the seeds"
        assert lines(overview)["SalUn"][0] == "1.0 n = 1"
        head = list(lines(detail)["Method"])
        gap = next(i for i, name in enumerate(head) if name.startswith(METRICS["gap"].label))
        assert sorted(lines(detail)["SSD"][gap].split(" ", 1)[1].split(" · ")) == ["2.0", "4.0"]

    def test_what_is_no_evaluation_of_a_model_is_left_out(
        self, make_record: MakeRecord, make_row: Callable[..., Row], row: Callable[..., Row]
    ) -> None:
        """Fails where the search for the forget set stands among the methods."""
        search = make_row("worst_case", "Selection", 0, {"forget": "x"}, seconds=9.0)
        rows = (search, row("worst_case", "SSD", gap=1.0))
        page = bases(classifier_tables([make_record(rows=rows)]))[FITTED]
        assert [list(lines(t)) for t in page.select("table")] == [["Method", "SSD"]] * 2

    def test_every_metric_of_every_request_is_behind_a_summary(
        self, make_record: MakeRecord, row: Callable[..., Row]
    ) -> None:
        rows = (row("random", "SSD", zrf=0.5), row("class_wise", "SSD", forget_accuracy=12.5))
        page = bases(classifier_tables([make_record(rows=rows)]))[FITTED]
        details = page.select("details")
        assert [words(d.summary) for d in details] == ["random: all metrics", "class: all metrics"]
        captions = ["Forgetting: random, one seed", "Forgetting: class, one seed"]
        assert [words(d.caption) for d in details] == captions
        for detail in details:
            head = lines(detail)["Method"]
            for name, metric in zip(head, CLASSIFIER_DETAIL, strict=True):
                assert name.startswith(METRICS[metric].label)
        assert lines(details[1])["SSD"][CLASSIFIER_DETAIL.index("forget_accuracy")] == "12.5"


class TestPage:
    @pytest.fixture
    def chapter(
        self,
        project: Any,
        tiny: dict[str, Any],
        make_record: MakeRecord,
        row: Callable[..., Row],
    ) -> Callable[..., Any]:
        """``chapter(slug, profile, gap)``: one that measured SSD on "random".

        Of the papers "one" and "two" include the shared experiments; "tiny" has its own "random".
        """
        ci = tiny["profiles"]["ci"]
        full = ci["experiments"]["full_class"]
        shared = project.root / "notebooks" / "shared"
        shared.mkdir()
        (shared / "classifiers.yaml").write_text(yaml.safe_dump({"ci": {"random": full}}))
        (shared / "others.yaml").write_text(yaml.safe_dump({"ci": {"random": full}}))
        ci["experiments"]["random"] = full
        ci["include"] = {"others": ["random"]}
        project.paper("tiny", tiny)
        ci["include"] = {"classifiers": ["random"]}
        for slug in ("one", "two"):
            project.paper(slug, tiny)

        def make(slug: str, profile: str, gap: float, experiment: str = "random") -> Any:
            assert "random" in load_paper(slug).profile("ci").experiments
            rows = (row(experiment, "SSD", gap=gap),)
            record = make_record(paper=slug, profile=profile, rows=rows)
            return SimpleNamespace(slug=slug, shown=SimpleNamespace(record=record))

        return make

    def test_of_the_largest_profile_alone(self, chapter: Callable[..., Any]) -> None:
        """Fails where sizes are mixed: a gap on ten drawn shapes beside one on CIFAR-10."""
        chapters = [chapter("one", "ci", 1.0), chapter("two", "laptop", 9.0)]
        for order in (chapters, chapters[::-1]):
            table = bases(ground(order))[FITTED].select_one("table")
            assert words(table.caption) == "Every method on this base (laptop)"
            assert lines(table)["SSD"][0] == "9.0 n = 1"

    @pytest.mark.parametrize(
        ("change", "caption", "gaps"),
        [
            ({}, "Every method on this base (ci and laptop)", ["1.0 n = 1", "9.0 n = 1"]),
            ({"relearn": {"steps": 3}}, "Every method on this base (laptop)", ["9.0 n = 1"]),
        ],
    )
    def test_profiles_with_the_same_experiments_stand_together(
        self,
        chapter: Callable[..., Any],
        project: Any,
        tiny: dict[str, Any],
        change: dict[str, Any],
        caption: str,
        gaps: list[str],
    ) -> None:
        """Fails where a page leaves out the rows of a smaller profile that is the same, mixes in those of
        one that is not, or names a profile that no chapter shows."""
        full = tiny["profiles"]["ci"]["experiments"]["full_class"]
        says = {
            "ci": {"random": full},
            "laptop": {"random": full | change},
            "workstation": {"random": full},
        }
        file = project.root / "notebooks" / "shared" / "classifiers.yaml"
        chapters = [chapter("one", "ci", 1.0), chapter("two", "laptop", 9.0, "class_wise")]
        file.write_text(yaml.safe_dump(says))
        for order in (chapters, chapters[::-1]):
            table = bases(ground(order))[FITTED].select_one("table")
            assert words(table.caption) == caption
            assert lines(table)["SSD"][: len(gaps)] == gaps

    def test_chapters_of_one_profile_stand_together(self, chapter: Callable[..., Any]) -> None:
        chapters = [chapter("one", "ci", 1.0), chapter("two", "ci", 9.0, "class_wise")]
        table = bases(ground(chapters))[FITTED].select_one("table")
        assert lines(table)["SSD"][:2] == ["1.0 n = 1", "9.0 n = 1"]

    def test_a_chapter_with_another_experiment_of_that_name_is_not_on_it(
        self, chapter: Callable[..., Any]
    ) -> None:
        """Fails where SSD's own random forgetting, on other data and with another attack, stands
        among the shared rows, or its profile decides which of these are shown."""
        other = chapter("tiny", "paper", 5.0)
        table = bases(ground([other, chapter("one", "ci", 1.0)]))[FITTED].select_one("table")
        assert words(table.caption) == "Every method on this base (ci)"
        assert lines(table)["SSD"][0] == "1.0 n = 1"
        assert ground([other]) == ground([])

    def test_a_chapter_that_has_none_of_the_rows_does_not_decide_the_profile(
        self, chapter: Callable[..., Any]
    ) -> None:
        """Fails where a page stays empty because a chapter was published, at a larger size, before it
        included the experiments."""
        chapters = [chapter("one", "ci", 1.0, "mine"), chapter("two", "laptop", 9.0)]

        def shown(records: Iterable[Record]) -> str:
            rows = [r for record in records for r in record.rows if r.experiment == "mine"]
            return "".join(f"{r.metrics['gap'].value}" for r in rows)

        assert ground(chapters, tables_of=shown) == "1.0"
        assert ground(chapters[1:], tables_of=shown) == ground([])

    def test_before_anything_was_run(self, project: Any) -> None:
        assert ground([]) == "<p>No chapter with these experiments was run yet.</p>"
