from __future__ import annotations

import math
import subprocess
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from unlearn_core.methods import SSD
from unlearn_core.metrics import Estimate
from unlearn_core.registry import ConfigError
from unlearn_core.replication.cache import Cache, CacheError, CacheWarning
from unlearn_core.replication.records import Margin, NotMadeError, Record, Row, Rows
from unlearn_core.replication.run import InvariantError, Replication

Computed = tuple[Mapping[str, Estimate], Mapping[str, Any]]


class Work:
    """A computation that counts how often it is done."""

    def __init__(self, **metrics: float) -> None:
        self.metrics = metrics or {"zrf": 0.5}
        self.done = 0

    def __call__(self) -> Computed:
        self.done += 1
        return {k: Estimate(v, 10, 0.1) for k, v in self.metrics.items()}, {"detail": self.done}


def replication() -> Replication:
    return Replication("tiny", "ci", "build/ci")


def row(
    run: Replication,
    work: Callable[[], Computed],
    *,
    experiment: str = "full_class",
    method: str = "SSD",
    seed: int = 0,
    spec: Mapping[str, Any] | None = None,
    variant: Mapping[str, Any] | None = None,
    alike: bool = False,
) -> Row:
    return run.row(
        experiment,
        method,
        seed,
        spec or {"alpha": 10.0},
        work,
        sources=({"id": "a/b", "kind": "embedded", "sha256": "00"},),
        device=torch.device("cpu"),
        variant=variant,
        alike=alike,
    )


def commit(root: Any) -> str:
    """Put a project under git, all of it committed."""

    def git(*args: str) -> str:
        who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        done = subprocess.run(
            ["git", "-C", str(root), *who, *args], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    (root / ".gitignore").write_text("build/\n")
    if not (root / ".git").exists():
        git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--no-verify", "--allow-empty", "-m", "all")
    return git("rev-parse", "HEAD")


@pytest.fixture
def run(project: Any) -> Replication:
    return replication()


class TestEnvironment:
    """What a variable of the environment changes in results, no row's key would say."""

    def test_matrices_are_multiplied_in_full_precision(self, project: Any) -> None:
        """Fails where TORCH_ALLOW_TF32_CUBLAS_OVERRIDE, which sets this at the start, has its way."""
        torch.set_float32_matmul_precision("high")
        replication()
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cuda.matmul.allow_tf32

    def test_what_can_not_be_undone_is_refused(
        self, project: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
        with pytest.raises(ConfigError, match=r"NVIDIA_TF32_OVERRIDE .* unset it"):
            replication()


class TestRows:
    def test_a_second_run_computes_nothing(self, run: Replication) -> None:
        """Fails where a row's key holds something of the run itself: the time, or the commit."""
        work = Work(zrf=0.25)
        first = row(run, work)
        later = replication()
        again = row(later, work)
        assert work.done == 1
        assert again == first
        assert len(later.rows) == 1
        assert later.rows.value("full_class", "SSD", "zrf", 0) == 0.25

    @pytest.mark.parametrize(
        "other",
        [
            {"experiment": "sub_class"},
            {"method": "Retrain"},
            {"seed": 1},
            {"spec": {"alpha": 5.0}},
            {"spec": {"alpha": 10.0, "more": None}},
            {"variant": {"forget": "cat"}},
        ],
    )
    def test_everything_that_names_a_row_is_in_its_key(
        self, run: Replication, other: dict[str, Any]
    ) -> None:
        """Fails where a name is left out of the key: two rows would share one result."""
        work = Work()
        a, b = row(run, work), row(run, work, **other)
        assert work.done == 2
        assert a.key != b.key

    def test_a_row_says_where_it_comes_from(self, project: Any) -> None:
        head = commit(project.root)
        found = row(replication(), Work(zrf=0.25)).provenance
        assert (found.commit, found.dirty) == (head, False)
        assert found.device == "cpu"
        assert found.threads == torch.get_num_threads()
        assert found.versions["torch"] == version("torch")
        assert found.seconds >= 0

    def test_estimates_keep_n_and_standard_error(self, run: Replication) -> None:
        value = row(run, Work(zrf=0.25)).metrics["zrf"]
        assert (value.value, value.n, value.stderr) == (0.25, 10, 0.1)

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_a_value_that_is_no_number_is_refused(self, run: Replication, bad: float) -> None:
        """Fails where NaN is kept: every table and margin made from it would be NaN too."""
        with pytest.raises(ValueError, match=f"full_class / SSD: zrf is {bad}"):
            row(run, Work(test_accuracy=1.0, zrf=bad))
        assert len(run.rows) == 0
        work = Work()
        row(run, work)
        assert work.done == 1, "the refused row was kept in the cache"

    def test_so_is_an_error_that_is_none(self, run: Replication) -> None:
        """Fails where it is found when the row is to be kept, in words that name no metric."""
        with pytest.raises(ValueError, match="full_class / SSD: zrf is nan"):
            row(run, lambda: ({"zrf": Estimate(1.0, 10, math.nan)}, {}))

    def test_a_row_of_a_newer_version_is_said(self, run: Replication) -> None:
        """Fails where pydantic's words reach the reader on every run, or where the newer version's
        row is made again and lost."""
        made = row(run, Work())
        newer = made.model_dump(mode="json") | {"more": 1}
        with run.cache.lock("rows", made.key):
            run.cache.write("rows", made.key, newer)
        with pytest.raises(CacheError, match=r"another version of this code.*UNLEARN_CACHE"):
            row(replication(), Work())
        assert run.cache.read("rows", made.key) == newer

    def test_a_row_in_another_one_s_place_is_made_again(self, run: Replication) -> None:
        """Fails where a row is believed whatever its key: the record would have the other's."""
        mine, other = row(run, Work(zrf=0.25)), row(run, Work(zrf=0.75), seed=1)
        folders = [run.cache.root / "rows" / r.key[:2] / r.key for r in (mine, other)]
        aside = folders[0].with_name("aside")
        for source, target in ((folders[0], aside), (folders[1], folders[0]), (aside, folders[1])):
            source.rename(target)
        with pytest.warns(CacheWarning, match=f"it is rows/{other.key}"):
            assert row(replication(), Work(zrf=0.25)).metrics["zrf"].value == 0.25

    def test_no_new_row_is_made_where_none_is_asked_for(
        self, run: Replication, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails where a chapter that is published again for its text gets a new number."""
        made = row(run, Work())
        monkeypatch.setenv("UNLEARN_ROWS", "published")
        later, work = replication(), Work()
        assert row(later, work) == made
        with pytest.raises(
            NotMadeError, match="full_class / SSD / forget cat / seed 1 would be a new row"
        ):
            row(later, work, seed=1, variant={"forget": "cat"})
        assert (work.done, len(later.rows)) == (0, 1)

    def test_what_is_there_takes_no_lock(
        self, run: Replication, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails where a cache that is complete, and may only be read, can't be used."""
        made, other = row(run, Work()), row(run, Work(), seed=1, alike=True)
        monkeypatch.setattr(Cache, "lock", lambda *_: pytest.fail("it was locked"))
        assert row(replication(), Work()) == made
        again = row(replication(), Work(), seed=1, experiment="tradeoff", alike=True)
        assert again.metrics == other.metrics

    def test_rows_alike_are_made_once(self, run: Replication) -> None:
        """Fails where a second experiment makes what the first one made, or takes what differs."""
        work = Work(zrf=0.25)
        first = row(run, work, alike=True)
        again = row(replication(), work, experiment="tradeoff", alike=True)
        assert (work.done, again.experiment, again.metrics) == (1, "tradeoff", first.metrics)
        assert again.key != first.key
        for other in ({"seed": 1}, {"spec": {"lr": 2}}, {"variant": {"forget": "cat"}}):
            work = Work(zrf=0.75)
            assert (
                row(run, work, experiment="tradeoff", alike=True, **other).metrics != again.metrics
            )
            assert work.done == 1, other

    def test_the_cache_is_where_the_project_is(
        self, project: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """Fails where a relative UNLEARN_CACHE means another folder from another folder."""
        monkeypatch.setenv("UNLEARN_CACHE", "build/mine")
        monkeypatch.chdir(tmp_path)
        assert replication().cache.root == project.root / "build" / "mine"
        monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "apart"))
        assert replication().cache.root == tmp_path / "apart"

    def test_what_killed_runs_left_goes_when_a_run_starts(self, run: Replication) -> None:
        litter = run.cache.root / "rows" / "ab" / f".{'ab' * 32}-12345678"
        litter.mkdir(parents=True)
        replication()
        assert not litter.exists()

    def test_an_unknown_metric_is_refused(self, run: Replication) -> None:
        with pytest.raises(ConfigError, match=r"full_class / SSD: unknown metrics \['zfr'\]"):
            row(run, Work(zfr=1.0))

    def test_a_computation_that_raises_leaves_nothing(self, run: Replication) -> None:
        def broken() -> Computed:
            raise RuntimeError("no")

        with pytest.raises(RuntimeError, match="no"):
            row(run, broken)
        work = Work()
        row(run, work)
        assert work.done == 1


class TestCleanOnly:
    def test_dirty_rows_are_made_again(self, project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Fails where a published page can hold a number from uncommitted code."""
        work = Work()
        head = commit(project.root)
        (project.root / "new.txt").write_text("uncommitted")
        assert row(replication(), work).provenance.dirty
        assert row(replication(), work).provenance.dirty
        assert work.done == 1

        (project.root / "new.txt").unlink()
        monkeypatch.setenv("UNLEARN_CLEAN", "1")
        found = row(replication(), work)
        assert work.done == 2
        assert (found.provenance.commit, found.provenance.dirty) == (head, False)
        assert found.detail == {"detail": 2}
        row(replication(), work)
        assert work.done == 2, "a clean row was made twice"

    def test_rows_of_another_clean_commit_are_taken(
        self, project: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails where a commit elsewhere makes every row stale."""
        monkeypatch.setenv("UNLEARN_CLEAN", "1")
        work = Work()
        first = commit(project.root)
        row(replication(), work)
        (project.root / "README").write_text("x")
        assert commit(project.root) != first
        assert row(replication(), work).provenance.commit == first
        assert work.done == 1

    def test_what_is_published_is_not_made_again(
        self, project: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails where a chapter's new row costs all others again on a machine without the cache, the
        same row at another size included, or where a run that does not publish takes its rows from
        the book."""
        commit(project.root)
        run, work = replication(), Work()
        made = row(run, work)
        run.claim("C1")(lambda rows, seed: 1.0)
        run.finish().write(project.root / "book" / "published" / "laptop" / "tiny.json")
        commit(project.root)
        monkeypatch.setenv("UNLEARN_CACHE", str(project.root / "build" / "another"))
        assert row(replication(), work).detail == {"detail": 2}, "it was not made here"

        monkeypatch.setenv("UNLEARN_CACHE", str(project.root / "build" / "a third"))
        monkeypatch.setenv("UNLEARN_CLEAN", "1")
        later = replication()
        assert row(later, work) == made
        assert row(later, work, seed=1).detail == {"detail": 3}
        assert work.done == 3

    def test_what_is_published_goes_before_a_dirty_row(
        self, project: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails where a row of uncommitted code in the cache hides the one that is published."""
        commit(project.root)
        run, work = replication(), Work()
        made = row(run, work)
        run.claim("C1")(lambda rows, seed: 1.0)
        run.finish().write(project.root / "book" / "published" / "ci" / "tiny.json")
        monkeypatch.setenv("UNLEARN_CACHE", str(project.root / "build" / "another"))
        assert row(replication(), work).provenance.dirty
        commit(project.root)
        monkeypatch.setenv("UNLEARN_CLEAN", "1")
        assert row(replication(), work) == made
        assert work.done == 2

    def test_what_an_earlier_version_made_stays_where_no_row_is_made(
        self, project: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails where a method's new version keeps a chapter from being published again for its text, where
        its former row passes for one of the new version, or judges a claim, or where another setting's
        row is taken for it."""

        def asked(run: Replication, version: int, alpha: float = 10.0, base: int = 1) -> Row:
            method = {"is": "SSD", "version": version, "alpha": alpha}
            recipe = {"is": "Recipe", "version": base}
            return row(run, work, spec={"recipe": recipe, "method": {"is": "Around", "of": method}})

        monkeypatch.setenv("UNLEARN_CLEAN", "1")
        commit(project.root)
        run, work = replication(), Work()
        made = asked(run, SSD.version)
        run.claim("C1")(lambda rows, seed: rows.value("full_class", "SSD", "zrf", 0))
        assert run.verdicts["C1"].verdict == "holds"
        run.finish().write(project.root / "book" / "published" / "ci" / "tiny.json")
        commit(project.root)

        monkeypatch.setattr(SSD, "version", SSD.version + 1)
        monkeypatch.setenv("UNLEARN_ROWS", "published")
        later = replication()
        assert asked(later, SSD.version) == made
        assert made.superseded == ("SSD",)
        later.claim("C1")(lambda rows, seed: rows.value("full_class", "SSD", "zrf", 0))
        found = later.verdicts["C1"]
        assert found.verdict == "not tested"
        assert found.reason == "a row of SSD was made by an earlier version of the method"
        for other in ({"alpha": 11.0}, {"base": 2}):
            with pytest.raises(NotMadeError):
                asked(later, SSD.version, **other)
        monkeypatch.delenv("UNLEARN_ROWS")
        again = asked(replication(), SSD.version)
        assert (work.done, again.superseded) == (2, ())

    def test_a_dirty_tree_is_refused_at_once(
        self, project: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        commit(project.root)
        (project.root / "new.txt").write_text("uncommitted")
        monkeypatch.setenv("UNLEARN_CLEAN", "1")
        with pytest.raises(ConfigError, match="asks for a clean commit, but the tree has changes"):
            replication()


class TestExperiments:
    @pytest.fixture
    def run(self, project: Any, tiny: dict[str, Any]) -> Replication:
        experiments = tiny["profiles"]["ci"]["experiments"]
        full = experiments["full_class"]
        experiments["full_class_faces"] = full | {
            "requires": {"env": "TINY_FACES", "why": "download it by hand"}
        }
        experiments["sub_class"] = full | {
            "data": full["data"] | {"fills": 2, "coarse": True},
            "forget": {"subclass": "all"},
            "grid": {"alpha": [1, 2], "lam": [3]},
        }
        experiments["every"] = full | {"forget": {"class": "all"}}
        experiments["random"] = full | {"forget": {"count": 8}}
        project.paper("tiny", tiny)
        return replication()

    def test_what_is_missing_is_skipped_and_said(self, run: Replication) -> None:
        """Fails where an experiment vanishes without a word, or the reason names no variable."""
        (skip,) = run.skips
        assert skip.experiment == "full_class_faces"
        assert skip.reason == "TINY_FACES is not set: download it by hand"
        assert run.experiments("full_class") == ["full_class"]
        assert run.experiments() == ["full_class", "sub_class", "every", "random"]

    def test_what_is_there_runs(self, run: Replication, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TINY_FACES", "/somewhere")
        assert replication().skips == ()
        assert replication().experiments("full") == ["full_class", "full_class_faces"]

    def test_a_name_means_the_experiment_of_that_name(
        self, run: Replication, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails where "random" brings "random_50" along, whose rows the chapter makes later; and
        where what is skipped runs when it is named, or its namesakes run in its place."""
        assert run.experiments("full_class_faces") == []
        assert run.experiments("e") == ["every"]
        assert run.experiments("x") == []
        monkeypatch.setenv("TINY_FACES", "/somewhere")
        assert replication().experiments("full_class") == ["full_class"]

    def test_the_seeds_of_an_experiment_are_its_own_or_the_profile_s(
        self, project: Any, tiny: dict[str, Any]
    ) -> None:
        experiments = tiny["profiles"]["ci"]["experiments"]
        experiments["tuning"] = experiments["full_class"] | {"seeds": [100, 7]}
        project.paper("tiny", tiny)
        run = replication()
        assert run.seeds == run.seeds_of("full_class") == (0, 1)
        assert run.seeds_of("tuning") == (100, 7)
        with pytest.raises(ConfigError, match="unknown experiment 'tunning'; did you mean"):
            run.seeds_of("tunning")

    def test_targets(self, run: Replication) -> None:
        assert run.targets("full_class") == ["solid cross"]
        assert len(run.targets("sub_class")) == 20
        assert "striped ring" in run.targets("sub_class")
        assert run.targets("every") == list(run.data("every").classes)
        assert run.targets("random") == [8]

    def test_experiments_share_their_data(self, run: Replication) -> None:
        assert run.data("full_class") is run.data("every")
        assert run.data("full_class") is not run.data("sub_class")
        assert run.fingerprints("full_class") == run.fingerprints("every")
        assert len({*run.fingerprints("full_class")[:2], *run.fingerprints("sub_class")[:2]}) == 4

    def test_the_grid_is_read_whole(self, run: Replication) -> None:
        """Fails where a value in the YAML is silently never run."""
        assert run.grid("sub_class", "lam", "alpha") == [[3], [1, 2]]
        with pytest.raises(ConfigError, match=r"sub_class: grid has \['alpha', 'lam'\]"):
            run.grid("sub_class", "alpha")

    def test_unknown_experiment(self, run: Replication) -> None:
        with pytest.raises(ConfigError, match="unknown experiment 'full_clas'; did you mean"):
            run.experiment("full_clas")


class TestStart:
    def test_unknown_paper_and_profile(self, project: Any) -> None:
        with pytest.raises(ConfigError, match="unknown paper 'tyny'"):
            Replication("tyny", "ci", "build/ci")
        with pytest.raises(ConfigError, match="unknown profile 'laptop'; known: ci"):
            Replication("tiny", "laptop", "build/ci")

    def test_a_rehearsal_is_one_in_its_record(
        self, project: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("UNLEARN_REHEARSE", "1")
        run = replication()
        assert run.profile.experiments["full_class"].train["max_steps"] == 2
        run.claim("C1")(always(1.0))
        assert run.finish().rehearsal


def always(margin: float) -> Callable[[Rows, int], float]:
    return lambda rows, seed: margin


class TestClaims:
    def test_judged_over_the_seeds_with_its_source(self, run: Replication) -> None:
        @run.claim("C1")
        def rule(rows: Rows, seed: int) -> float:
            return 1.0 - 2 * seed

        found = run.verdicts["C1"]
        assert found.verdict == "tie"  # no error is known but the scatter
        assert found.margins == {0: Margin(value=1.0), 1: Margin(value=-1.0)}
        assert found.rule.startswith('@run.claim("C1")\ndef rule(')
        assert "return 1.0 - 2 * seed" in found.rule

    @pytest.mark.parametrize("rows", ["", "made"])
    def test_not_judged_at_another_profile(
        self, project: Any, tiny: dict[str, Any], rows: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails where a claim of another size is called one whose rows are not made yet."""
        monkeypatch.setenv("UNLEARN_ROWS", rows)
        tiny["profiles"]["laptop"] = tiny["profiles"]["ci"]
        project.paper("tiny", tiny)
        run = Replication("tiny", "laptop", "build/laptop")

        @run.claim("C1")
        def rule(rows: Rows, seed: int) -> float:
            raise AssertionError("judged where it is not tested")

        assert run.verdicts["C1"].verdict == "not tested"
        assert run.verdicts["C1"].reason == "not judged at this size"

    def test_judged_over_the_seeds_that_it_asks_for(self, run: Replication) -> None:
        """Fails where a claim about an experiment with seeds of its own is judged on others."""
        asked = []

        @run.claim("C1", seeds=(100, 7))
        def rule(rows: Rows, seed: int) -> float:
            asked.append(seed)
            return seed - 50.0

        assert asked == [100, 7]
        assert run.verdicts["C1"].margins == {100: Margin(value=50.0), 7: Margin(value=-43.0)}

    def test_seeds_do_not_make_it_judged_where_it_is_not(
        self, project: Any, tiny: dict[str, Any]
    ) -> None:
        tiny["claims"]["C1"]["judged_at"] = []
        project.paper("tiny", tiny)
        run = replication()
        run.claim("C1", seeds=(100,))(always(1.0))
        assert run.verdicts["C1"].verdict == "not tested"
        assert run.verdicts["C1"].margins == {}

    def test_our_number_stands_with_the_verdict_and_is_no_part_of_the_rule(
        self, run: Replication, project: Any, tiny: dict[str, Any]
    ) -> None:
        """Fails where words about a number make a rule another one, or where they are asked of rows
        that a smaller size does not have."""
        with pytest.raises(ConfigError, match="no claim 'C1' was judged yet"):
            run.ours("C1")
        run.claim("C1")(always(1.0))
        before = run.verdicts["C1"]
        run.ours("C1")(lambda rows: "7.5 points")
        assert run.verdicts["C1"] == before.model_copy(update={"ours": "7.5 points"})
        tiny["claims"]["C1"]["judged_at"] = []
        project.paper("tiny", tiny)
        run = replication()
        run.claim("C1")(always(1.0))
        run.ours("C1")(lambda rows: str(rows.value("full_class", "SSD", "zrf", 0)))
        assert run.verdicts["C1"].ours == ""

    def test_unknown_claim(self, run: Replication) -> None:
        with pytest.raises(ConfigError, match="unknown claim 'C2'; known: C1"):
            run.claim("C2")


class TestFinish:
    def test_the_record_holds_the_run(self, run: Replication, project: Any) -> None:
        row(run, Work(zrf=0.25))
        run.claim("C1")(always(1.0))
        run.invariant("sane", "full_class", 0, True, "yes")
        record = run.finish()
        assert Record.read(project.root / "build" / "ci" / "tiny.json") == record
        assert (record.paper, record.profile, record.seeds) == ("tiny", "ci", (0, 1))
        assert not record.rehearsal
        assert [r.metrics["zrf"].value for r in record.rows] == [0.25]
        assert [v.claim for v in record.verdicts] == ["C1"]
        assert record.dirty, "there is no git here, so nothing is clean"

    def test_a_claim_left_out_raises(self, run: Replication, project: Any) -> None:
        """Fails where a chapter can drop a claim that does not hold."""
        with pytest.raises(ConfigError, match=r"never judged or measured \['C1'\]"):
            run.finish()
        assert not (project.root / "build" / "ci" / "tiny.json").exists()

    def test_a_measured_deviation_left_out_raises(self, project: Any, tiny: dict[str, Any]) -> None:
        words = dict.fromkeys(("what", "paper", "code", "ours"), "x")
        tiny["deviations"] = {"D1": words | {"measured": True}, "D2": words}
        project.paper("tiny", tiny)
        run = replication()
        run.claim("C1")(always(1.0))
        with pytest.raises(ConfigError, match=r"\['D1'\]"):
            run.finish()
        with pytest.raises(ConfigError, match="no deviation 'D2' is marked as measured"):
            run.effect("D2")
        run.effect("D1")(lambda rows: f"{len(rows)} rows")
        assert run.finish().effects == {"D1": "0 rows"}

    def test_a_broken_invariant_raises_after_the_record_is_written(
        self, run: Replication, project: Any
    ) -> None:
        """Fails where a broken oracle ends in a page, or where the evidence of it is lost."""
        run.claim("C1")(always(1.0))
        run.invariant("sane", "full_class", 0, True, "yes")
        run.invariant("sane", "full_class", 1, False, "12 of 13")
        with pytest.raises(InvariantError, match=r"full_class, seed 1: sane \(12 of 13\)"):
            run.finish()
        record = Record.read(project.root / "build" / "ci" / "tiny.json")
        assert [i.holds for i in record.invariants] == [True, False]

    def test_what_is_checked_again_counts_once_unless_it_changes(self, run: Replication) -> None:
        """Fails where repeating a check inflates "2 of 2", or hides that it broke later."""
        for holds in (True, True, False):
            run.invariant("sane", "full_class", 0, holds, "x")
        assert [i.holds for i in run.invariants] == [True, False]
