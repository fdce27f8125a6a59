"""What pages are made of may be damaged, read-only or hostile; the reader's own settings change nothing."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import pytest
import torch
from bs4 import BeautifulSoup
from IPython.display import HTML

from unlearn_core.methods import SSD
from unlearn_core.registry import ConfigError
from unlearn_core.replication.pages import book, continual, drawings, notebook, summary, tables
from unlearn_core.replication.pages.figures import COLOURS, MARKERS, figure, seed_dots, strip
from unlearn_core.replication.papers import load_paper
from unlearn_core.replication.records import ORIGINAL, Fact, Invariant, Record, Skip, Verdict
from unlearn_core.replication.trials.diffusion import picture

Published = Callable[..., Path]


@pytest.fixture
def published(project: Any, make_record: Callable[..., Record]) -> Published:
    """``published(**changes)``: a record and a notebook in the book; the record's file."""

    def of(**changes: Any) -> Path:
        folder = project.root / "book" / "published" / "ci"
        folder.mkdir(parents=True, exist_ok=True)
        make_record(**{"environment": {"cpu": "x", "accelerator": "none"}} | changes).write(
            folder / "tiny.json"
        )
        shutil.copy(project.root / "notebooks" / "tiny.ipynb", folder / "tiny.ipynb")
        return folder / "tiny.json"

    return of


def raw(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


@pytest.mark.parametrize("content", [b"", b'{"schema_version": 2', b"null", b"[]", b"\xff\xfe"])
def test_a_damaged_record_is_named(project: Any, published: Published, content: bytes) -> None:
    """Fails on "Expecting value: line 1 column 1 (char 0)", which of some twenty files it doesn't say."""
    published().write_bytes(content)
    with pytest.raises(
        ConfigError, match=r"book/published/ci/tiny\.json is no record .* Delete it"
    ):
        book.find_chapters(project.root)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["rows"][0]["metrics"]["zrf"].update(value=float("nan")), "NaN is no number"),
        (
            lambda d: d["rows"][0]["metrics"]["zrf"].update(value=float("inf")),
            "Infinity is no number",
        ),
        (
            lambda d: d["rows"][0]["metrics"].update(zrff={"value": 1}),
            "unknown metric 'zrff'; did you mean 'zrf'",
        ),
        (lambda d: d.update(paper="other"), "this is 'other' at 'ci'"),
        (lambda d: d.update(profile="laptop"), "this is 'tiny' at 'laptop'"),
        (lambda d: d["rows"][0].pop("seed"), "seed"),
    ],
)
def test_a_value_that_no_page_could_show_is_an_error(
    project: Any, published: Published, change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    """Fails where a row of NaN is rendered without a word."""
    raw(published(), change)
    with pytest.raises(ConfigError, match=rf"book/published/ci/tiny\.json.*{words}"):
        book.find_chapters(project.root)


@pytest.mark.parametrize(
    "content", ["", '{"cells": [', "[]", '{"nbformat": 4}', '{"cells": [{}]}', "no cells"]
)
def test_a_damaged_notebook_is_named(project: Any, published: Published, content: str) -> None:
    file = published().with_suffix(".ipynb")
    if content == "no cells":
        content = json.dumps(json.loads(file.read_text()) | {"cells": []})
    (chapter,) = book.find_chapters(project.root)
    file.write_text(content)
    with pytest.raises(
        ConfigError, match=r"^book/published/ci/tiny\.ipynb is no notebook .* Delete"
    ):
        book.chapter_notebook(chapter, chapter.shown, [chapter])


def test_the_time_in_rows_is_the_records(project: Any, published: Published) -> None:
    """Fails where a page prints what the code no longer computes: the notebook's own output is older."""
    file = published().with_suffix(".ipynb")
    old = tables.table(["", ""], [["Time in rows", "93.2 minutes"], ["Threads", "1"]]).data
    raw(
        file,
        lambda d: d["cells"][0].update(
            outputs=[{"output_type": "display_data", "metadata": {}, "data": {"text/html": [old]}}]
        ),
    )
    (chapter,) = book.find_chapters(project.root)
    made = json.dumps(book.chapter_notebook(chapter, chapter.shown, [chapter]))
    assert "93.2" not in made
    assert f"{chapter.shown.record.seconds_spent / 60:.1f} minutes (the sum" in made
    assert html.escape(notebook.time_in_rows(chapter.shown.record)) in made


def test_a_row_of_an_earlier_version_is_marked(
    project: Any, published: Published, make_row: Callable[..., Any]
) -> None:
    """Fails where a method has changed, and the page shows what it did before as if nothing were."""
    specs = {
        "SSD": {"method": {"is": "SSD", "version": SSD.version}},
        "Old & gone": {"method": {"is": "Masked", "version": 1, "of": {"is": "SSD", "version": 0}}},
        ORIGINAL: {"recipe": {"is": "Recipe", "version": 1}, "method": None},
        "Unknown": {"method": {"is": "Elsewhere", "version": 3}},
    }
    rows = [make_row(method=m, zrf=0.5).model_copy(update={"spec": s}) for m, s in specs.items()]
    published(rows=rows)
    (chapter,) = book.find_chapters(project.root)
    line = book.which_run(chapter, chapter.shown)
    assert "of earlier versions of methods: Old &amp; gone." in line
    page = BeautifulSoup(tables.results_table(rows, ["zrf"], "").data, "html.parser")
    marked = {th.next: "by an earlier version" in th.text for th in page.select("tbody th")}
    assert marked == {m: m == "Old & gone" for m in specs}
    assert "Of an earlier version" in notebook.provenance(chapter.shown.record).data

    published(rows=rows[:1])
    (chapter,) = book.find_chapters(project.root)
    assert "made again" not in book.which_run(chapter, chapter.shown)
    assert "earlier version" not in notebook.provenance(chapter.shown.record).data


def test_read_only_sources_can_be_copied(tmp_path: Path) -> None:
    """Fails where the copy is as read-only as the book's sources: nothing can be written beside it, and
    the next attempt can't even remove it."""
    source, target = tmp_path / "source", tmp_path / "target"
    for name in ("page.md", "inside/style.css", "published/row.json"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
        (source / name).chmod(0o444)
        (source / name).parent.chmod(0o555)
    try:
        book.copied(source, target, but={"published"})
    finally:
        for folder in (source, source / "inside", source / "published"):
            folder.chmod(0o755)
    files = {f.relative_to(target).as_posix() for f in target.rglob("*") if f.is_file()}
    assert files == {"page.md", "inside/style.css"}
    for path in (target, target / "inside", target / "page.md"):
        assert path.stat().st_mode & 0o200, path


def test_figures_are_the_same_whatever_the_readers_settings() -> None:
    """Fails where ``text.usetex`` of the reader's matplotlibrc asks for LaTeX, or other keys change a
    published figure."""

    def drawn() -> str:
        with figure("A line.", "A line that goes up.") as (axes, shown):
            axes[0].plot([0, 1], [0, 1], label="up")
            axes[0].legend()
        return shown.data

    plain = drawn()
    own = {"text.usetex": True, "lines.linewidth": 9, "axes.grid": False, "figure.dpi": 30}
    with mpl.rc_context(own):
        assert drawn() == plain
        assert mpl.rcParams["lines.linewidth"] == 9, "the reader's settings were changed"


def test_a_name_in_a_figure_is_no_mathematics(make_row: Callable[..., Any]) -> None:
    """Fails where a method called A$B$ stands in a figure as an A and a slanted B."""
    names = ["A$B$", "5 $", r"\$\alpha$ & more"]
    rows = [make_row("tuning", name, 0, {}, gap=1.0 + i) for i, name in enumerate(names)]
    with figure("Two.", "A line and a strip.", columns=2) as (axes, shown):
        strip(axes[0], rows, "gap", "own")
        for i, name in enumerate(names):
            seed_dots(axes[1], [0, 1], [[i], [i + 1]], name, COLOURS[i], MARKERS[i])
        axes[1].legend()
    page = BeautifulSoup(shown.data, "html.parser")
    said = [t.text for t in page.select("text")]
    assert [t for t in said if t in names] == names * 2


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


def hostile(value: Any) -> Any:
    """The same with every text, keys included, replaced."""
    if isinstance(value, str):
        return value + HOSTILE
    if isinstance(value, dict):
        return {k + HOSTILE: hostile(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [hostile(v) for v in value]
    return value


def test_nothing_of_a_record_reaches_a_page_unescaped(
    project: Any, tiny: dict[str, Any], published: Published, make_row: Callable[..., Any]
) -> None:
    """Fails where a model's answer, a class's name or a claim's id is HTML on the page."""
    claim = tiny["claims"]["C1"] | {"headline": True, "paper_value": HOSTILE, "title": HOSTILE}
    tiny["claims"] = {f"C1{HOSTILE}": claim}
    tiny["deviations"] = {"D1": dict.fromkeys(("what", "paper", "code", "ours"), "x")}
    project.paper("tiny", tiny)
    rows = [
        make_row(HOSTILE, HOSTILE, s, hostile({"k": v}), zrf=0.5) for s, v in ((0, "x"), (1, "y"))
    ]
    rows = [
        r.model_copy(
            update={
                "detail": hostile({"collapsed": "NaN"}) | {"collapsed": HOSTILE},
                "spec": hostile(r.spec),
                "provenance": r.provenance.model_copy(
                    update={
                        "commit": HOSTILE,
                        "date": HOSTILE,
                        "device": HOSTILE,
                        "versions": hostile(r.provenance.versions),
                        "sources": ({"id": HOSTILE, "kind": HOSTILE, "sha256": HOSTILE},),
                    }
                ),
            }
        )
        for r in rows
    ]
    file = published(
        rows=tuple(rows),
        verdicts=(
            Verdict(claim=f"C1{HOSTILE}", verdict="not tested", rule=HOSTILE, reason=HOSTILE),
        ),
        invariants=(
            Invariant(name=HOSTILE, experiment=HOSTILE, seed=0, holds=True, detail=HOSTILE),
        ),
        effects={"D1": HOSTILE},
        findings=(HOSTILE,),
        regime=(Fact(name=HOSTILE, ours=HOSTILE, paper=HOSTILE),),
        skips=(Skip(experiment=HOSTILE, reason=HOSTILE),),
        environment={"cpu": HOSTILE, "accelerator": HOSTILE, "system": HOSTILE},
        commit=HOSTILE,
        started=HOSTILE,
        finished=HOSTILE,
        config=HOSTILE,
    )
    (chapter,) = book.find_chapters(project.root)
    record, paper = chapter.shown.record, load_paper("tiny")
    assert record == Record.read(file)
    made = {
        "claims": tables.claims_table(paper),
        "verdicts": tables.verdicts_table(paper, record.verdicts),
        "results": tables.results_table(record.rows, ["zrf"], HOSTILE),
        "deviations": tables.deviations_table(paper, record.effects),
        "invariants": tables.invariants_table(record),
        "provenance": notebook.provenance(record),
        "front page": summary.front_page(book.told([chapter])),
        "all claims": summary.all_claims(book.told([chapter])),
        "first screen": summary.first_screen(paper, record, [record], True),
        "status": book.status([chapter]),
        "skips": book.skips([chapter]),
        "environment": book.environment_table([chapter]),
        "sources": book.source_table([chapter]),
        "banner": "".join(
            book.chapter_notebook(chapter, chapter.shown, [chapter])["cells"][1]["source"]
        ),
    }
    texts = {name: v.data if isinstance(v, HTML) else v for name, v in made.items()}
    assert [name for name, text in texts.items() if "&lt;script" not in text] == []
    found = {name: re.findall(r"<script|<img", text) for name, text in texts.items()}
    assert {name: tags for name, tags in found.items() if tags} == {}
    quoted = [text for text in texts.values() if re.search(r'(title|alt)="[^"]*"\'&', text)]
    assert quoted == []


def test_nothing_that_data_or_a_model_say_reaches_a_page_unescaped() -> None:
    """Fails where a question, a prompt or an answer is HTML on the page."""
    asked = {"question": HOSTILE, "answer": HOSTILE, "said": HOSTILE}
    point = {"prompt": HOSTILE, "group": "erased", "own": 0.5, "n": 2, "distance": 0.0}
    point["picture"] = picture(torch.zeros(1, 1, 8, 8))
    detail = {"said": {"forget": [asked]}, "points": [point, point | {"group": "anchor"}]}
    rows = [
        SimpleNamespace(method=m, seed=0, variant={"forget": HOSTILE}, detail=detail)
        for m in (ORIGINAL, HOSTILE)
    ]
    run = SimpleNamespace(
        profile_name="ci",
        rows=[
            SimpleNamespace(method=HOSTILE, seed=0, detail={"said": [asked | {"task": HOSTILE}]})
        ],
        rows_of=lambda experiment: rows,
        originals=lambda experiment: (0,),
        experiment=lambda experiment: SimpleNamespace(title=HOSTILE, methods=(HOSTILE,)),
    )
    image = torch.zeros(8, 8, 3, dtype=torch.uint8)
    task = SimpleNamespace(name=HOSTILE, style="choice", test=[(HOSTILE, HOSTILE, image)])
    trial = SimpleNamespace(tasks=[task], seed=0, run=run)
    before = SimpleNamespace(detail={"truth": [0.0], "format_valid": [0.0]})
    made = {
        "said": notebook.said(run, "x", HOSTILE, 0),
        "answers": continual.answers(run, [HOSTILE], 0),
        "tasks": continual.tasks(trial, before),
        "nouns": drawings.nouns(run, "x"),
        "each": drawings.each(run, ["x"], HOSTILE),
        "pictures": drawings.pictures(run, ["x"], HOSTILE),
    }
    assert [name for name, shown in made.items() if "&lt;script" not in shown.data] == []
    found = {name: re.findall(r"<script|<img src", shown.data) for name, shown in made.items()}
    assert {name: tags for name, tags in found.items() if tags} == {}
    assert [n for n, s in made.items() if re.search(r'(title|alt)="[^"]*"\'&', s.data)] == []
