from __future__ import annotations

import csv
import errno
import io
import json
import math
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from unlearn_core.metrics import MEANS, METRICS
from unlearn_core.registry import ConfigError
from unlearn_core.replication.claims import distance
from unlearn_core.replication.records import (
    SCHEMA,
    Margin,
    MissingRowError,
    Record,
    Row,
    Rows,
    Value,
    Verdict,
    environment,
    git_state,
)

MakeRow = Callable[..., Row]
MakeRecord = Callable[..., Record]


class TestJson:
    def test_round_trip(self, make_record: MakeRecord, tmp_path: Path) -> None:
        """Fails where JSON changes a value: seeds as keys become strings, tuples lists."""
        record = make_record()
        file = tmp_path / "deep" / "tiny.json"
        record.write(file)
        back = Record.read(file)
        assert back == record
        assert [m.value for m in back.verdicts[0].margins.values()] == [1.0, -0.5]
        assert back.rows[1].variant == {"forget": "ring", "alpha": 5}
        assert [f.name for f in file.parent.iterdir()] == ["tiny.json"]

    def test_a_training_counts_once(self, make_record: MakeRecord, make_row: MakeRow) -> None:
        """Fails where a model that three rows name counts three times, or one that was trained
        while a row was made counts beside it."""

        def named(method: str, model: str, seconds: float) -> Row:
            row = make_row("full_class", method)  # of 1.5 s
            detail = {"model": {"date": model, "seconds": seconds}}
            return row.model_copy(update={"spec": {"method": method}, "detail": detail})

        rows = [named("A", "apart", 100.0), named("B", "apart", 100.0), named("C", "within", 1.25)]
        alike = make_row("full_class", "E"), make_row("tradeoff", "E")  # made once, for both
        record = make_record(rows=(*rows, named("D", "within", 1.25), *alike))
        assert record.seconds_spent == 5 * 1.5 + 100

    def test_numbers_keep_every_digit(self, make_record: MakeRecord, tmp_path: Path) -> None:
        value = 0.1 + 0.2
        record = make_record()
        metrics = {"zrf": record.rows[0].metrics["zrf"].model_copy(update={"value": value})}
        row = record.rows[0].model_copy(update={"metrics": metrics})
        record.model_copy(update={"rows": (row,)}).write(tmp_path / "r.json")
        assert Record.read(tmp_path / "r.json").rows[0].metrics["zrf"].value == value

    @pytest.mark.parametrize("version", [SCHEMA + 1, 0, None])
    def test_another_schema_is_refused(
        self, make_record: MakeRecord, tmp_path: Path, version: int | None
    ) -> None:
        """Fails where an old file is read with the new layout: its numbers would be misread."""
        file = tmp_path / "tiny.json"
        make_record().write(file)
        data = json.loads(file.read_text())
        data["schema_version"] = version
        file.write_text(json.dumps(data))
        with pytest.raises(
            ConfigError, match=rf"tiny\.json .*it has schema {version}, .* reads {SCHEMA}"
        ):
            Record.read(file)

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            (lambda text: "", "Expecting value"),
            (lambda text: text[: len(text) // 2], "Unterminated|Expecting|delimiter"),
            (lambda text: "null", "it is no mapping"),
            (lambda text: "[]", "it is no mapping"),
            (lambda text: '"text"', "it is no mapping"),
            (lambda text: "[" * 100_000, "recursion"),
            (lambda text: text.encode().replace(b"tiny", b"t\xffny"), "can't decode"),
            (
                lambda text: text.replace('"paper"', '"papr"', 1),
                "paper: Field required.*papr: Extra",
            ),
            (lambda text: text.replace('"seeds": [', '"seeds": ["x", '), "seeds.0: .*integer"),
            (
                lambda text: text.replace('"rows": [', '"rows": [{}, '),
                "rows.0.experiment: Field req",
            ),
            # A model of NaN has no result, whoever wrote it down.
            (lambda text: text.replace("12.5", "NaN"), "NaN is no number"),
            (lambda text: text.replace("12.5", "-Infinity"), "-Infinity is no number"),
            (lambda text: text.replace("12.5", "1e999"), "finite number"),
            (lambda text: text.replace("12.5", "null"), "valid number"),
            (lambda text: text.replace('"schema_version": 2', '"schema_version": 1'), "margins"),
            (
                lambda text: text.replace('"schema_version": 2', '"schema_version": 1').replace(
                    '"verdicts"', '"verdict"'
                ),
                "it lacks 'verdicts'",
            ),
        ],
    )
    def test_what_is_no_record_is_said_in_one_sentence(
        self,
        make_record: MakeRecord,
        tmp_path: Path,
        change: Callable[[str], str | bytes],
        why: str,
    ) -> None:
        """Fails where one damaged file ends in a traceback that does not name it: there is no
        book, and nobody knows why."""
        file = tmp_path / "tiny.json"
        make_record().write(file)
        whole = file.read_text()
        damaged = change(whole)
        assert damaged != whole
        file.write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())
        with pytest.raises(ConfigError, match=rf"/tiny\.json is no record .*{why}") as caught:
            Record.read(file)
        assert "Delete it with the notebook beside it and run the paper again" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_verdict_of_a_claim_that_nobody_makes(self, make_record: MakeRecord) -> None:
        """Fails where it ends in a `KeyError`; or where a claim that is no longer made keeps the
        whole book from being rendered until its paper has run again."""
        record = make_record(config="made of this")
        assert record.of({"C1": ...}, "made of this") == record
        assert record.of({"C1": ...}, "another") == record
        assert record.of({"C2": ...}, "another").verdicts == ()
        with pytest.raises(
            ConfigError, match=r"the record of tiny at ci judges 'C1', which .*yaml"
        ):
            record.of({"C2": ...}, "made of this")

    def test_a_missing_file_is_one(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"tiny\.json"):
            Record.read(tmp_path / "tiny.json")

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_a_value_that_is_no_number_is_refused_when_made(self, bad: float) -> None:
        for fields in ({"value": bad}, {"value": 1.0, "stderr": bad}):
            with pytest.raises(ValidationError, match="finite number"):
                Value(**fields)

    def test_a_failed_write_leaves_the_old_record_and_names_the_file(
        self, make_record: MakeRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails where a record is written in place, or its half stays and holds the disk full."""
        file = tmp_path / "tiny.json"
        make_record().write(file)

        def full(handle: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: .*/tiny\.json'"):
            make_record(paper="other").write(file)
        assert Record.read(file).paper == "tiny"
        assert os.listdir(tmp_path) == ["tiny.json"]

    def test_what_killed_runs_left_goes_with_the_next_record(
        self, make_record: MakeRecord, tmp_path: Path
    ) -> None:
        """Fails where every kill while a record is written leaves a file for good; or where one
        that is being written goes."""
        old = [tmp_path / ".tiny.json-12345678", tmp_path / "tiny.13401"]
        young = tmp_path / ".tiny.json-87654321"
        others = [tmp_path / "tiny.ipynb", tmp_path / "tiny.stamp", tmp_path / ".other.json-1"]
        for file in (*old, young, *others):
            file.write_text("x")
        for file in (*old, *others):
            os.utime(file, (0, 0))
        make_record().write(tmp_path / "tiny.json")
        assert {f.name for f in tmp_path.iterdir()} == {
            *(f.name for f in others),
            "tiny.json",
            young.name,
        }


class TestCsv:
    def test_one_line_a_metric(self, make_record: MakeRecord) -> None:
        lines = list(csv.DictReader(io.StringIO(make_record().to_csv())))
        assert len(lines) == 3
        assert lines[0] == {
            "paper": "tiny",
            "profile": "ci",
            "experiment": "full_class",
            "method": "SSD",
            "seed": "0",
            "variant": "",
            "metric": "forget_accuracy",
            "value": "12.5",
            "n": "10",
            "stderr": "0.5",
            "commit": "c0ffee",
            "date": "2025-01-01T00:00:00+00:00",
        }
        assert [line["metric"] for line in lines] == ["forget_accuracy", "zrf", "forget_accuracy"]
        assert lines[2]["variant"] == "forget=ring;alpha=5"
        assert lines[2]["seed"] == "1"

    def test_commas_in_names_are_quoted(self, make_record: MakeRecord, make_row: MakeRow) -> None:
        record = make_record(rows=(make_row(method="SSD, known importances", zrf=1.0),))
        (line,) = csv.DictReader(io.StringIO(record.to_csv()))
        assert line["method"] == "SSD, known importances"
        assert line["value"] == "1.0"


class TestVerdict:
    @pytest.mark.parametrize(
        ("verdict", "margins", "text"),
        [
            ("holds", {0: 1.0}, "holds"),
            ("holds in part", {0: 1.0, 1: -1.0, 2: 0.0}, "holds in 2 of 3 seeds"),
            ("fails", {0: -1.0}, "fails"),
            ("tie", {0: -1.0}, "tie"),
            ("not tested", {}, "not tested"),
        ],
    )
    def test_text(self, verdict: str, margins: dict[int, float], text: str) -> None:
        found = {seed: Margin(value=m) for seed, m in margins.items()}
        assert Verdict(claim="C1", verdict=verdict, margins=found).text == text


class TestRows:
    def test_a_metric_of_a_row_is_one_variable(self, make_row: MakeRow) -> None:
        """Fails where what two differences share is counted twice: errors of 0.5 on a, b and c."""
        rows = Rows(
            [
                make_row(method=m, zrf=v).model_copy(update={"key": m})
                for m, v in zip("abc", (3.0, 1.0, 2.0), strict=True)
            ]
        )
        a, b, c = (rows.measured("full_class", m, "zrf", 0) for m in "abc")
        assert (a - c).std_dev == pytest.approx(0.5 * 2**0.5)
        # |a - c| - |b - c| = a - c + b - c: c counts twice, as one variable.
        found = distance(a, c) - distance(b, c)
        assert found.nominal_value == 0.0
        assert found.std_dev == pytest.approx((0.25 + 0.25 + 4 * 0.25) ** 0.5)
        again = rows.measured("full_class", "a", "zrf", 0)
        assert (a - again).std_dev == 0

    @pytest.mark.parametrize(
        ("metric", "value", "stderr", "error"),
        [
            # Of 96 cases the Wilson interval of two errors ends at 4 / 100.
            ("retain_accuracy", 0.0, 0.0, 2.0),
            ("retain_accuracy", 100.0, 0.0, 2.0),
            ("retain_accuracy", 50.0, 5.1, 5.1),
            # These are no shares of cases: of scores, and what was not measured on cases.
            ("forget_rouge", 0.0, 0.0, 0.0),
            ("changed_pixels", 0.0, 0.0, 0.0),
            ("knowmem", 100.0, 0.0, 0.0),
            ("changed_weights", 100.0, None, None),
        ],
    )
    def test_a_share_of_nothing_or_all_is_not_certain(
        self,
        make_row: MakeRow,
        metric: str,
        value: float,
        stderr: float | None,
        error: float | None,
    ) -> None:
        """Fails where no answer that leaks among forty passes for no answer that ever would."""
        found = {metric: Value(value=value, n=96, stderr=stderr)}
        rows = Rows([make_row().model_copy(update={"metrics": found})])
        measured = rows.measured("full_class", "SSD", metric, 0)
        assert measured.nominal_value == value
        assert measured.std_dev == pytest.approx(math.nan if error is None else error, nan_ok=True)
        assert rows.value("full_class", "SSD", metric, 0) == value

    def test_means_are_metrics_in_per_cent(self) -> None:
        """Fails where a metric that is no share loses its mark by being called otherwise."""
        assert {m for m in MEANS if METRICS[m].unit != "%"} == set()

    def test_a_metric_without_an_error_has_none(self, make_row: MakeRow) -> None:
        row = make_row(zrf=1.0)
        bare = row.model_copy(update={"metrics": {"zrf": Value(value=1.0)}})
        assert math.isnan(Rows([bare]).measured("full_class", "SSD", "zrf", 0).std_dev)

    def test_what_is_read_is_noted(self, make_row: MakeRow) -> None:
        """Fails where a verdict's age is told by rows that its rule never looked at."""
        rows = Rows([make_row(method=m, zrf=1.0).model_copy(update={"key": m}) for m in "abc"])
        with rows.reading() as outer:
            rows.value("full_class", "a", "zrf", 0)
            with rows.reading() as inner:
                rows.where("full_class", "b")
        rows.value("full_class", "c", "zrf", 0)
        assert (outer, inner) == ({"a", "b"}, {"b"})

    @pytest.fixture
    def rows(self, make_row: MakeRow) -> Rows:
        return Rows(
            [
                make_row("a", "SSD", 0, {"forget": "cat"}, zrf=1.0),
                make_row("a", "SSD", 1, {"forget": "cat"}, zrf=2.0),
                make_row("a", "SSD", 0, {"forget": "dog"}, zrf=3.0),
                make_row("a", "SSD", 0, {"forget": "cat", "alpha": 5}, zrf=4.0),
                make_row("a", "Retrain", 0, {"forget": "cat"}, zrf=5.0),
                make_row("b", "SSD", 0, {"forget": "cat"}, zrf=6.0),
            ]
        )

    def test_every_name_tells_rows_apart(self, rows: Rows) -> None:
        """Fails where a name is left out of the lookup: one row would hide another."""
        assert len(rows) == 6
        assert rows.value("a", "SSD", "zrf", 0, forget="cat") == 1
        assert rows.value("a", "SSD", "zrf", 1, forget="cat") == 2
        assert rows.value("a", "SSD", "zrf", 0, forget="dog") == 3
        assert rows.value("a", "SSD", "zrf", 0, alpha=5, forget="cat") == 4
        assert rows.value("a", "Retrain", "zrf", 0, forget="cat") == 5
        assert rows.value("b", "SSD", "zrf", 0, forget="cat") == 6

    @pytest.mark.parametrize(
        "missing",
        [
            ("c", "SSD", 0, {"forget": "cat"}),
            ("a", "SSd", 0, {"forget": "cat"}),
            ("a", "SSD", 2, {"forget": "cat"}),
            ("a", "SSD", 0, {"forget": "cat", "alpha": 6}),
        ],
    )
    def test_a_missing_row_is_named(
        self, rows: Rows, missing: tuple[str, str, int, dict[str, Any]]
    ) -> None:
        experiment, method, seed, variant = missing
        with pytest.raises(MissingRowError, match=rf"no row {experiment} / {method} / seed {seed}"):
            rows.row(experiment, method, seed, **variant)

    def test_the_only_row_that_has_the_variant_is_found(self, rows: Rows) -> None:
        """Fails where a rule has to spell out what there is one of."""
        assert rows.row("b", "SSD", 0).variant == {"forget": "cat"}
        assert rows.value("a", "SSD", "zrf", 0, alpha=5) == 4
        assert rows.value("a", "SSD", "zrf", 1) == 2

    def test_the_exact_row_goes_before_those_that_have_more(self, rows: Rows) -> None:
        """Fails where the default of a sweep is lost among its other points."""
        assert rows.row("a", "SSD", 0, forget="cat").variant == {"forget": "cat"}

    @pytest.mark.parametrize("variant", [{}, {"forget": "bird"}])
    def test_several_rows_are_none(
        self, rows: Rows, make_row: MakeRow, variant: dict[str, Any]
    ) -> None:
        """Fails where one of several is taken: the verdict would depend on their order."""
        for alpha in (1, 2):
            rows.add(make_row("a", "SSD", 0, {"forget": "bird", "alpha": alpha}))
        with pytest.raises(MissingRowError, match=r"several rows a / SSD / seed 0 / \{"):
            rows.row("a", "SSD", 0, **variant)

    def test_a_missing_metric_is_named(self, rows: Rows) -> None:
        with pytest.raises(MissingRowError, match=r"a / SSD has no metric 'gap'"):
            rows.value("a", "SSD", "gap", 0, forget="cat")

    def test_where_keeps_the_order(self, rows: Rows) -> None:
        assert [r.metrics["zrf"].value for r in rows.where("a", "SSD")] == [1, 2, 3, 4]
        assert [r.method for r in rows.where("a")] == ["SSD"] * 4 + ["Retrain"]
        assert rows.where("c") == []

    def test_a_row_added_again_replaces_the_first(self, rows: Rows, make_row: MakeRow) -> None:
        rows.add(make_row("b", "SSD", 0, {"forget": "cat"}, zrf=7.0))
        assert len(rows) == 6
        assert rows.value("b", "SSD", "zrf", 0, forget="cat") == 7


class Repository:
    """A repository with one commit, of one file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        self.git("init", "--quiet")
        (root / "a.py").write_text(root.name)
        self.git("add", "a.py")
        self.git("commit", "--quiet", "--no-verify", "-m", "one")
        self.head = self.git("rev-parse", "HEAD")

    def git(self, *args: str) -> str:
        who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        command = ["git", "-C", str(self.root), *who, *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


class TestGitState:
    def test_clean_and_dirty(self, repository: Repository) -> None:
        """Fails where only tracked changes count: a new, uncommitted module makes a row too."""
        root, head = repository.root, repository.head
        assert git_state(root) == (head, False)
        (root / "a.py").write_text("2")
        assert git_state(root) == (head, True)
        repository.git("checkout", "--quiet", "a.py")
        assert git_state(root) == (head, False)
        (root / "new.py").write_text("3")
        assert git_state(root) == (head, True)
        repository.git("config", "status.showUntrackedFiles", "no")
        assert git_state(root) == (head, True)

    def test_a_copy_inside_another_repository_is_none_of_it(self, repository: Repository) -> None:
        """Fails where git is asked without asking whose repository answers: a copy without
        ``.git`` would be a clean checkout of somebody else's commit."""
        (repository.root / ".gitignore").write_text("copies/\n")
        repository.git("add", ".gitignore")
        repository.git("commit", "--quiet", "--no-verify", "-m", "two")
        copy = repository.root / "copies" / "ours"
        copy.mkdir(parents=True)
        assert git_state(repository.root)[1] is False
        assert git_state(copy) == (None, True)

    @pytest.mark.parametrize("name", ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"])
    def test_what_a_hook_sets_is_not_asked(
        self,
        repository: Repository,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
    ) -> None:
        """Fails where the environment decides which repository answers: any git hook sets it."""
        other = Repository(tmp_path / "other")
        assert other.head != repository.head
        where = {"GIT_DIR": ".git", "GIT_WORK_TREE": ".", "GIT_INDEX_FILE": ".git/index"}[name]
        monkeypatch.setenv(name, str(other.root / where))
        assert git_state(repository.root) == (repository.head, False)
        assert git_state(tmp_path) == (None, True)

    def test_a_worktree_has_its_own_commit(self, repository: Repository, tmp_path: Path) -> None:
        """Fails where ``.git`` must be a folder: there is none in a worktree."""
        linked = tmp_path / "linked"
        repository.git("worktree", "add", "--quiet", "--detach", str(linked), "HEAD")
        (repository.root / "a.py").write_text("2")
        assert git_state(linked) == (repository.head, False)

    def test_without_git_nothing_is_clean(
        self, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert git_state(tmp_path) == (None, True)
        monkeypatch.setenv("PATH", "")
        assert git_state(repository.root) == (None, True)


def test_environment_names_no_path() -> None:
    words = environment()
    assert {"python", "torch", "system", "cpu", "accelerator"} <= set(words)
    assert all(value and "/home" not in value and "/root" not in value for value in words.values())
