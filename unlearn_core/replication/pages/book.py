"""The book: its own pages, pages made from records, and the executed notebooks, rendered.

`build_book` assembles ``build/book`` (plain MyST sources) and renders it to ``build/site``. A
chapter is the notebook of the largest profile that was published, as long as a smaller one does not
judge more; that one and what the reader ran stand beside it, on pages of their own.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import yaml

from ...metrics import METRICS
from ...registry import ConfigError, brief, did_you_mean, within
from ..papers import (
    PROFILES,
    PaperFile,
    known_papers,
    load_paper,
    paper_sources,
    project_root,
    same_experiments,
)
from ..records import Record
from ..run import source_hash
from ..runner import build_folder, lock, stamped
from . import notebook, summary, tables
from .api import api_pages
from .grounds import classifier_tables, drawing_tables, language_tables
from .map import package_map
from .takes import sizes_table

__all__ = ["Chapter", "assemble", "build_book"]

#: Where a chapter says how long its rows took.
TIME_IN_ROWS = re.compile(r'(<th scope="row">Time in rows</th><td>)[^<]*')

#: The pages on which all methods of a modality meet.
GROUNDS = ("common_ground", "language_ground", "erasure_ground")


@dataclass(frozen=True)
class Edition:
    """One executed notebook and its record."""

    notebook: Path
    record: Record
    published: bool

    @property
    def label(self) -> str:
        whose = "published run" if self.published else "your own run"
        return f"{self.record.profile}, {whose}"


@dataclass(frozen=True)
class Chapter:
    """A paper, the edition that its chapter shows (`shown_first`), and the others."""

    slug: str
    file: PaperFile
    shown: Edition
    others: tuple[Edition, ...]

    @property
    def published(self) -> list[Record]:
        """Of every published size."""
        return [e.record for e in (self.shown, *self.others) if e.published]

    @property
    def stale(self) -> bool:
        """Was the notebook or its YAML changed after the run that the chapter shows?"""
        return self.shown.record.config != source_hash(self.slug)


def _edition(folder: Path, slug: str, file: PaperFile, published: bool) -> Edition | None:
    notebook, record = folder / f"{slug}.ipynb", folder / f"{slug}.json"
    # Of one's own runs only whole ones: both files as the run left them.
    if not (notebook.exists() and record.exists()) or not (published or stamped(folder, slug)):
        return None
    return Edition(notebook, showable(record, slug, file), published)


def showable(file: Path, slug: str, paper: PaperFile) -> Record:
    """A record all of whose values pages can show.

    Raises
    ------
    ConfigError
        It is damaged, another paper's or profile's, or has metrics that nobody defines.
    """
    record = Record.read(file).of(paper.claims, source_hash(slug))
    with within(f"{os.path.relpath(file, project_root())}: run the paper again"):
        if (record.paper, record.profile) != (slug, file.parent.name):
            raise ConfigError(f"this is {record.paper!r} at {record.profile!r}")
        for metric in {m for row in record.rows for m in row.metrics}:
            if metric not in METRICS:
                raise ConfigError(
                    f"unknown metric {brief(metric)}; {did_you_mean(metric, METRICS)}"
                )
    return record


def executed(file: Path) -> dict[str, Any]:
    """A notebook as a run left it.

    Raises
    ------
    ConfigError
        It is no notebook, or one without cells.
    """
    try:
        book = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(book, dict):
            raise ValueError("it is no mapping")
        nbformat.validate(book)
        if not book["cells"]:
            raise ValueError("it has no cells")
    except (ValueError, nbformat.ValidationError) as error:
        why = " ".join(str(getattr(error, "message", error)).split())[:200]
        raise ConfigError(
            f"{os.path.relpath(file, project_root())} is no notebook that can be read ({why}). Delete it "
            "with the record beside it and run the paper again, or take both from git again"
        ) from error
    return book


def find_chapters(root: Path) -> list[Chapter]:
    """A chapter for every paper that was run at all, published or here."""
    chapters = []
    for slug in known_papers():
        file = load_paper(slug)
        published = [_edition(root / "book" / "published" / p, slug, file, True) for p in PROFILES]
        own = [_edition(root / build_folder() / p, slug, file, False) for p in PROFILES]
        found = shown_first([e for e in published[::-1] if e]) + [e for e in own[::-1] if e]
        if found:
            chapters.append(Chapter(slug, file, found[0], tuple(found[1:])))
    return chapters


def shown_first(published: list[Edition]) -> list[Edition]:
    """Published editions, from the largest profile down, with the one that a chapter shows in front:
    the largest at which as many claims are judged as at any smaller one.

    A long measurement is published as it grows, and until it says as much it stands beside what is there.
    """

    def judged(edition: Edition) -> int:
        return sum(v.verdict != "not tested" for v in edition.record.verdicts)

    for i, edition in enumerate(published):
        if judged(edition) == max(map(judged, published[i:])):
            return [edition, *published[:i], *published[i + 1 :]]
    return published


def linked(text: str, chapters: Iterable[Chapter], folder: str) -> str:
    """MyST text whose links to chapters lead to ``folder``; to one that was not run yet there is none,
    and its words are left."""
    there = {c.slug for c in chapters}

    def mend(link: re.Match[str]) -> str:
        words, slug = link["words"], link["slug"]
        return f"[{words}]({folder}{slug}.ipynb)" if slug in there else words

    return re.sub(r"\[(?P<words>[^\]]+)\]\((papers/)?(?P<slug>\w+)\.ipynb\)", mend, text)


# --- pieces of pages -------------------------------------------------------------------------


def told(chapters: list[Chapter]) -> list[summary.Told]:
    """What the pages about all papers read of each chapter."""
    return [(c.slug, c.file, c.shown.record, c.published) for c in chapters]


def hardware(record: Record) -> str:
    accelerator = record.environment["accelerator"]
    return record.environment["cpu"] if accelerator == "none" else accelerator


def status(chapters: list[Chapter]) -> str:
    rows = []
    for c in chapters:
        for e in (c.shown, *c.others):
            r = e.record
            minutes = r.seconds_spent / 60
            state = "yes" if r.config == source_hash(c.slug) else "no"
            broken = sum(not i.holds for i in r.invariants)
            rows.append(
                [
                    f"{c.slug}, {e.label}",
                    html.escape(r.finished[:16].replace("T", " ")),
                    f"{len(r.rows)}",
                    f"{minutes:.1f} min",
                    f"<code>{html.escape((r.commit or 'none')[:10])}</code>"
                    f"{' with changes' if r.dirty else ''}",
                    state,
                    f"{len(r.invariants) - broken} of {len(r.invariants)}",
                    html.escape(r.environment["cpu"])
                    + (
                        ""
                        if (a := r.environment["accelerator"]) == "none"
                        else f", {html.escape(a)}"
                    ),
                ]
            )
    head = [
        "Notebook",
        "Finished",
        "Rows",
        "Time in rows",
        "Commit",
        "Notebook and YAML unchanged since",
        "Invariants",
        "Hardware",
    ]
    return tables.table(head, rows, kind="wide").data


def ground(
    chapters: list[Chapter],
    shared: str = "classifiers",
    tables_of: Callable[[Iterable[Record]], str] = classifier_tables,
) -> str:
    """A common ground's tables, of the largest profile that any chapter shows and those that are alike.

    Alike are profiles with the same ``shared`` experiments. Only of chapters that include these:
    others may use the same names.
    """
    including = [c for c in chapters if f"{shared}.yaml" in {f.name for f in paper_sources(c.slug)}]
    records = [c.shown.record for c in including]
    # A chapter may have been published before it included these experiments.
    for profile in sorted({r.profile for r in records}, key=PROFILES.index, reverse=True):
        alike = same_experiments(shared, profile)
        if shown := tables_of(r for r in records if r.profile in alike):
            return shown
    return "<p>No chapter with these experiments was run yet.</p>"


def skips(chapters: list[Chapter]) -> str:
    rows = [
        [f"{c.slug}, {e.label}", html.escape(s.experiment), html.escape(str(s))]
        for c in chapters
        for e in (c.shown, *c.others)
        for s in e.record.skips
    ]
    for c in chapters:
        made = {e.record.profile for e in (c.shown, *c.others)}
        for name, profile in c.file.profiles.items():
            if name not in made:
                reason = f"not run yet; it is meant for {profile.hardware}"
                rows.append([f"{c.slug}, {name}", "the whole profile", html.escape(reason)])
                for key, e in profile.experiments.items():
                    if e.requires is not None:
                        why = html.escape(f"needs {e.requires.env}: {e.requires.why}")
                        rows.append([f"{c.slug}, {name}", html.escape(key), why])
    if not rows:
        return "<p>Nothing was skipped.</p>"
    return tables.table(["Notebook", "What", "Why"], rows, kind="wide").data


def environment_table(chapters: list[Chapter]) -> str:
    rows = []
    for c in chapters:
        env = c.shown.record.environment
        rows += [[f"{c.slug}: {html.escape(k)}", html.escape(v)] for k, v in env.items()]
    return tables.table(["", ""], rows, kind="facts").data


def metrics_table() -> str:
    rows = [
        [
            f"<b>{html.escape(m.label)}</b><br><code>{name}</code>",
            html.escape(m.unit or "none"),
            {"higher": "higher", "lower": "lower", "retrained": "close to retrained", "none": "–"}[
                m.better
            ],
            html.escape(m.definition),
        ]
        for name, m in METRICS.items()
    ]
    return tables.table(["Metric", "Unit", "Better", "Definition"], rows, kind="wide").data


def needs_table() -> str:
    from ...methods import CONTINUAL, METHODS, NEEDS

    rows = []
    for cls in METHODS.values():
        cells = ["●" if need in cls.needs else "" for need in NEEDS]
        draws = (
            cls.draws if isinstance(cls.draws, bool) else "if it shuffles, or as the method inside"
        )
        works_on = ", ".join(sorted(cls.works_on))
        seed = {True: "yes", False: "no"}.get(draws, draws)
        rows.append([f"<code>{cls.__name__}</code>", works_on, *cells, seed])
    once = tables.table(["Method", "works on", *NEEDS, "seed matters"], rows, kind="wide").data
    sequence = [
        [f"<code>{cls.__name__}</code>", "●" if cls.mixes else ""] for cls in CONTINUAL.values()
    ]
    head = ["Method that learns tasks in a sequence", "data of other tasks"]
    return once + tables.table(head, sequence).data


def source_table(chapters: list[Chapter]) -> str:
    found: dict[str, set[tuple[str, str, str]]] = {}
    for c in chapters:
        for e in (c.shown, *c.others):
            for row in e.record.rows:
                for s in row.provenance.sources:
                    found.setdefault(s["id"], set()).add((c.slug, s["kind"], s["sha256"][:16]))
    rows = [
        [
            html.escape(id),
            "<br>".join(html.escape(f"{slug}: {kind}, {sha}…") for slug, kind, sha in sorted(uses)),
        ]
        for id, uses in sorted(found.items())
    ]
    return tables.table(["Source", "Used by, taken from, SHA-256"], rows, kind="wide").data


# --- pages -----------------------------------------------------------------------------------


def chapter_notebook(
    chapter: Chapter, edition: Edition, chapters: Iterable[Chapter]
) -> dict[str, Any]:
    """The executed notebook as a page: its first screen under the title, plumbing cells hidden.

    The time in rows is worked out again from the record, as by today's code.
    """
    book = executed(edition.notebook)
    took = html.escape(notebook.time_in_rows(edition.record))
    folder = "" if edition is chapter.shown else "../papers/"
    for cell in book["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = folded(linked("".join(cell["source"]), chapters, folder))
        for output in cell.get("outputs", ()):
            shown = output.get("data", {})
            if "text/html" in shown:
                text = "".join(shown["text/html"])
                shown["text/html"] = TIME_IN_ROWS.sub(lambda found: found[1] + took, text)
        tags = cell["metadata"].setdefault("tags", [])
        if "injected-parameters" in tags:
            tags.append("remove-cell")
        for key in ("papermill", "execution"):
            cell["metadata"].pop(key, None)
    book["metadata"].pop("papermill", None)
    of_all = edition is chapter.shown and edition.published
    top = summary.first_screen(chapter.file, edition.record, chapter.published, of_all)
    source = f"{which_run(chapter, edition)}\n\n{linked(top, chapters, folder)}"
    cell = {"cell_type": "markdown", "id": "first-screen", "metadata": {}, "source": source}
    if edition is not chapter.shown:
        book["cells"][0]["source"] = f"# {chapter.file.paper.short}, {edition.label}"
    book["cells"].insert(1, cell)
    return book


def folded(text: str) -> str:
    """MyST text whose includes of a method's source open when they are clicked."""
    source = r"^```\{literalinclude\} \S*?(?P<file>unlearn_core/\S+)\n(?:(?!```).*\n)*?```$"

    def fold(block: re.Match[str]) -> str:
        if ":class: method-source" not in block[0]:
            return block[0]
        # Tildes: what introduces a fence of backticks may hold none.
        return f"~~~~{{dropdown}} The source: `{block['file']}`\n{block[0]}\n~~~~"

    return re.sub(source, fold, text, flags=re.MULTILINE)


def which_run(chapter: Chapter, edition: Edition) -> str:
    """MyST: a line that says which run a page shows, where the others are, and its downloads."""
    r = edition.record
    words = [
        f"**{edition.label}**: {tables.count(len(r.seeds), 'seed')}, {html.escape(hardware(r))}, "
        f"{html.escape(r.finished[:10])}, commit `{html.escape((r.commit or 'none')[:10])}`"
        f"{' **with uncommitted changes**' if r.dirty else ''}."
    ]
    if edition is not chapter.shown:
        shown = f"[{chapter.shown.label}](../papers/{chapter.slug}.ipynb)"
        words.append(f"The chapter itself shows the {shown}.")
    else:
        if chapter.stale:
            words.append("The notebook or its YAML has changed since.")
        if chapter.others:
            links = ", ".join(f"[{e.label}]({run_page(chapter, e)}.ipynb)" for e in chapter.others)
            words.append(f"Beside it: {links}.")
    if older := notebook.superseded(r):
        words.append(f"**Rows to be made again**, of earlier versions of methods: {older}.")
    stem = f"../downloads/{r.profile}-{'published' if edition.published else 'own'}/{chapter.slug}"
    words.append(
        f"{{download}}`record <{stem}.json>`, {{download}}`rows (CSV) <{stem}.csv>`, "
        f"{{download}}`notebook <{stem}.ipynb>`"
    )
    return ":::{div} which-run\n" + " ".join(words) + "\n:::"


def run_page(chapter: Chapter, edition: Edition) -> str:
    whose = "published" if edition.published else "own"
    return f"../runs/{chapter.slug}_{edition.record.profile}_{whose}"


def example_output(script: Path, keep: Path) -> str:
    """What an example of the guide prints; run when it or the package changed."""
    root = project_root()
    files = [script, *sorted((root / "unlearn_core").rglob("*.py"))]
    key = hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()
    if keep.exists() and (kept := keep.read_text(encoding="utf-8")).startswith(key):
        return kept.split("\n", 1)[1]
    said = {"capture_output": True, "text": True, "encoding": "utf-8"}
    command = [sys.executable, "-X", "utf8", str(script)]
    done = subprocess.run(command, cwd=root, **said)
    if done.returncode:
        raise ConfigError(f"the guide's example {script.name} failed:\n{done.stderr[-2000:]}")
    keep.parent.mkdir(parents=True, exist_ok=True)
    keep.write_text(f"{key}\n{done.stdout}", encoding="utf-8")
    return done.stdout


def copied(source: Path, target: Path, but: set[str]) -> None:
    """Copy a folder's content and not its modes: what can't be written may still be rendered."""
    for file in source.rglob("*"):
        relative = file.relative_to(source)
        if but.isdisjoint(relative.parts) and file.is_file():
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / relative)


def assemble(root: Path, target: Path) -> list[Chapter]:
    """Write the book's sources to ``target``."""
    if target.exists():
        shutil.rmtree(target)
    copied(root / "book", target, but={"published", "_toc.yml"})
    # The chapters include the methods' source from where it is.
    methods = Path("unlearn_core") / "methods"
    copied(root / methods, target / methods, but={"__pycache__"})
    chapters = find_chapters(root)
    generated = target / "_generated"
    generated.mkdir()
    papers = {s: load_paper(s) for s in known_papers()}
    pieces = {
        "map": package_map(root / "unlearn_core", papers),
        "takes": sizes_table(papers),
        "front": summary.front_page(told(chapters)),
        "status": status(chapters),
        "ground": ground(chapters),
        "language_ground": ground(chapters, "language", language_tables),
        "erasure_ground": ground(chapters, "erasing", drawing_tables),
        "skips": skips(chapters),
        "environment": environment_table(chapters),
        "metrics": metrics_table(),
        "needs": needs_table(),
        "sources": source_table(chapters),
    }
    for name, text in pieces.items():
        (generated / f"{name}.html").write_text(text, encoding="utf-8")
    (generated / "claims.md").write_text(summary.all_claims(told(chapters)), encoding="utf-8")
    for name in GROUNDS:
        page = target / f"{name}.md"
        text = linked(page.read_text(encoding="utf-8"), chapters, "papers/")
        page.write_text(text, encoding="utf-8")
    for script in sorted((root / "book" / "guide").glob("*.py")):
        said = example_output(script, root / build_folder() / "examples" / f"{script.stem}.txt")
        (generated / f"{script.stem}.txt").write_text(said, encoding="utf-8")
    toc = yaml.safe_load((root / "book" / "_toc.yml").read_bytes())
    for part in toc["parts"]:
        if part["caption"] == "Papers":
            part["chapters"] += [write_chapter(c, target, chapters) for c in chapters]
            part["chapters"] += [{"file": name} for name in GROUNDS]
        if part["caption"] == "Reference":
            pages = api_pages()
            (target / "api").mkdir()
            for name, text in pages.items():
                (target / f"{name}.md").write_text(text, encoding="utf-8")
            sections = [{"file": name} for name in pages if name != "api/index"]
            part["chapters"].append({"file": "api/index", "sections": sections})
    toc["parts"] = [part for part in toc["parts"] if part["chapters"]]
    (target / "_toc.yml").write_text(yaml.safe_dump(toc, sort_keys=False), encoding="utf-8")
    return chapters


def write_chapter(chapter: Chapter, target: Path, chapters: Iterable[Chapter]) -> dict[str, Any]:
    """The pages and downloads of one chapter; returns its entry in the table of contents."""
    sections = []
    for edition in (chapter.shown, *chapter.others):
        page = f"papers/{chapter.slug}"
        if edition is not chapter.shown:
            page = run_page(chapter, edition).removeprefix("../")
            sections.append({"file": page})
        file = target / f"{page}.ipynb"
        file.parent.mkdir(exist_ok=True)
        text = json.dumps(chapter_notebook(chapter, edition, chapters))
        file.write_text(text, encoding="utf-8")
        whose = "published" if edition.published else "own"
        downloads = target / "downloads" / f"{edition.record.profile}-{whose}"
        downloads.mkdir(parents=True, exist_ok=True)
        for file in (edition.notebook, edition.notebook.with_suffix(".json")):
            shutil.copyfile(file, downloads / file.name)
        (downloads / f"{chapter.slug}.csv").write_text(edition.record.to_csv(), encoding="utf-8")
    return {"file": f"papers/{chapter.slug}", **({"sections": sections} if sections else {})}


def build_book() -> Path:
    """Assemble and render the book; every warning is an error. Returns its first page."""
    root = project_root()
    build = root / build_folder()
    with lock(build, "book"):  # two would write over each other
        return _build_book(root, build)


def _build_book(root: Path, build: Path) -> Path:
    source, site = build / "book", build / "site"
    assemble(root, source)
    if site.exists():
        shutil.rmtree(site)
    run_it = "import sys; from jupyter_book.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", run_it, "build", str(source)]
    command += ["--path-output", str(site), "-W", "-n", "--keep-going", "-q"]
    log = build / "book.log"
    with log.open("w", encoding="utf-8") as handle:
        environment = {**os.environ, "PYTHONPATH": str(root)}
        done = subprocess.run(
            command, cwd=root, env=environment, stdout=handle, stderr=subprocess.STDOUT
        )
    if done.returncode:
        text = log.read_text(encoding="utf-8", errors="replace")
        text = re.sub(r"\x1b\[[0-9;]*m", "", text)
        where = log.relative_to(root)
        raise ConfigError(f"the book did not build; the end of {where}:\n{text[-3000:]}")
    return site / "_build" / "html" / "index.html"
