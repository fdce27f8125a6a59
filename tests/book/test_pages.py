"""The rendered pages, as files: links, outputs, alt texts, and that each shows what it must."""

from __future__ import annotations

import ast
import csv
import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup, Tag
from sphinx.search.en import SearchEnglish

from unlearn_core.methods import CONTINUAL, METHODS
from unlearn_core.metrics import METRICS
from unlearn_core.replication.pages.summary import ON_FRONT
from unlearn_core.replication.pages.tables import signed
from unlearn_core.replication.papers import PROFILES, load_paper
from unlearn_core.replication.publish import machine_paths
from unlearn_core.replication.run import source_hash

ROOT = Path(__file__).resolve().parents[2]
SLUGS = sorted(file.stem for file in (ROOT / "notebooks").glob("*.yaml"))

#: Headings of a chapter, in this order; experiments stand between them.
ANATOMY = [
    "What we found",
    "The paper",
    "The claims",
    "The method",
    "Setup, and what was shrunk",
    "The paper's numbers, and other people's",
    "Verdicts",
    "Deviations",
    "What was easy, what was hard, what we could not test",
    "How this was made",
    "Run it yourself",
]

SIGNS = {
    "holds": ("holds", "✓"),
    "holds in part": ("part", "◐"),
    "fails": ("fails", "✗"),
    "tie": ("tie", "≈"),
    "not tested": ("none", "–"),
}

#: Folders of a system that a page may name: where Debian's packages put their data.
SYSTEM = ("/usr/share/datasets/",)


def words(node: Tag) -> str:
    """The text of a node, in one line, with plain apostrophes and without links to headings."""
    text = " ".join(node.get_text(" ").replace("’", "'").split())
    return text.removesuffix("#").strip()


def cells_of(table: Tag) -> list[list[str]]:
    return [[words(c) for c in row.select("th, td")] for row in table.select("tbody tr")]


def section(page: BeautifulSoup, title: str) -> Tag:
    """The section under a heading of the second rank."""
    (heading,) = (h for h in page.select("article h2") if words(h) == title)
    parent = heading.parent
    assert parent is not None
    return parent


@pytest.fixture
def pages(site: Any) -> dict[str, BeautifulSoup]:
    return site.pages


@pytest.fixture(params=SLUGS)
def slug(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def chapter(pages: dict[str, BeautifulSoup], slug: str) -> BeautifulSoup:
    return pages[f"papers/{slug}.html"]


# --- every page ------------------------------------------------------------------------------


class Nesting(HTMLParser):
    """Finds what a lenient parser repairs: end tags that close nothing, and tags left open."""

    VOID = frozenset(
        [
            "area",
            "base",
            "br",
            "col",
            "embed",
            "hr",
            "img",
            "input",
            "link",
            "meta",
            "source",
            "track",
            "wbr",
        ]  # have no end tag
    )

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.problems: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag in self.VOID:
            return
        if self.open and self.open[-1] == tag:
            self.open.pop()
            return
        inside = self.open[-1] if self.open else "nothing"
        self.problems.append(f"line {self.getpos()[0]}: </{tag}> inside {inside}")
        while tag in self.open and self.open.pop() != tag:
            pass


def test_every_page_parses(site: Any, pages: dict[str, BeautifulSoup]) -> None:
    """Fails where a table or a figure made from a record leaves a tag open, or escapes nothing."""
    assert {"index.html", "search.html", "reference/status.html", "api/methods.html"} <= set(pages)
    problems = []
    for name, page in pages.items():
        parser = Nesting()
        parser.feed((site.html / name).read_text())
        parser.close()
        problems += [f"{name}: {p}" for p in (*parser.problems, *parser.open)]
        if not (page.title and words(page.title)) or page.html is None or not page.html.get("lang"):
            problems.append(f"{name}: no title or language")
    assert problems == []


#: Attributes that make a browser load something, beside those of <link>.
LOADING = {
    "audio": ("src",),
    "embed": ("src",),
    "iframe": ("src",),
    "image": ("href", "xlink:href"),
    "img": ("src", "srcset"),
    "input": ("src",),
    "object": ("data",),
    "script": ("src",),
    "source": ("src", "srcset"),
    "track": ("src",),
    "use": ("href", "xlink:href"),
    "video": ("src", "poster"),
}
LINKED = {"stylesheet", "icon", "preload", "modulepreload", "prefetch", "preconnect", "manifest"}
LINKED |= {"dns-prefetch", "apple-touch-icon", "mask-icon"}

_CSS = re.compile(
    r"""url\(\s*("[^"]*"|'[^']*'|[^)]*?)\s*\)|@import\s+("[^"]*"|'[^']*')""", re.IGNORECASE
)


def css_urls(text: str) -> list[str]:
    found = [(a or b).strip("\"'") for a, b in _CSS.findall(text)]
    return [url for url in found if not url.startswith("data:")]


def loaded(page: BeautifulSoup) -> Iterator[str]:
    """Addresses that a browser loads, by itself, when it shows a page."""
    for tag in page.find_all(list(LOADING)):
        for attribute in LOADING[tag.name]:
            if value := tag.get(attribute):
                yield from (
                    [x.split()[0] for x in value.split(",")] if "srcset" in attribute else [value]
                )
    for tag in page.find_all("link"):
        if set(tag.get("rel", [])) & LINKED:
            yield tag.get("href", "")
    for tag in page.find_all(style=True):
        yield from css_urls(tag["style"])
    for tag in page.find_all("style"):
        yield from css_urls(tag.get_text())


def remote(url: str) -> bool:
    return url.startswith("//") or urlsplit(url).scheme not in ("", "data")


def test_nothing_remote_is_loaded(site: Any, pages: dict[str, BeautifulSoup]) -> None:
    """Fails on a font, script or badge of another host: the book is read without a network."""
    found = [f"{name}: {url}" for name, page in pages.items() for url in loaded(page)]
    assert len(found) > len(pages), "no page loads anything: this test looks at the wrong places"
    sheets = list(site.html.rglob("*.css"))
    assert site.html / "_static" / "unlearn.css" in sheets
    found += [f"{f.name}: {url}" for f in sheets for url in css_urls(f.read_text())]
    assert [line for line in found if remote(line.split(": ", 1)[1])] == []


def broken(html: Path, name: str, url: str, anchors: dict[str, set[str]]) -> str:
    """What is wrong with an address on a page, or nothing."""
    parts = urlsplit(url)
    if parts.scheme in ("http", "https", "mailto", "data"):
        return ""
    if parts.scheme or parts.netloc or url.startswith("/"):
        return "neither relative nor on the web"
    target = name
    if parts.path:
        target = os.path.normpath(os.path.join(os.path.dirname(name), unquote(parts.path)))
        if target.startswith(".."):
            return "outside the book"
        if not (html / target).is_file():
            return "no such file"
    if (
        parts.fragment
        and target.endswith(".html")
        and unquote(parts.fragment) not in anchors[target]
    ):
        return "no such anchor"
    return ""


def test_no_link_is_broken(site: Any, pages: dict[str, BeautifulSoup]) -> None:
    """Fails on a moved page, a heading that was renamed, a download that was not copied."""
    anchors = {
        name: {tag["id"] for tag in page.find_all(id=True)}
        | {tag["name"] for tag in page.find_all("a", attrs={"name": True})}
        for name, page in pages.items()
    }
    links = {
        (name, url)
        for name, page in pages.items()
        for url in (*(a["href"] for a in page.find_all(["a", "link"], href=True)), *loaded(page))
    }
    assert len([url for _, url in links if not urlsplit(url).scheme]) > 100
    found = {f"{name}: {url}": broken(site.html, name, url, anchors) for name, url in links}
    assert {link: what for link, what in found.items() if what} == {}


def test_every_image_has_an_alt_text(pages: dict[str, BeautifulSoup]) -> None:
    images = [(name, img) for name, page in pages.items() for img in page.find_all("img")]
    assert [(name, img.get("src")) for name, img in images if not img.get("alt", "").strip()] == []


def test_every_figure_has_alt_text_and_caption(site: Any, pages: dict[str, BeautifulSoup]) -> None:
    for edition in site.all_editions:
        figures = pages[edition.page].select("figure.unlearn-figure")
        assert figures, edition.page
        for figure in figures:
            (svg,) = figure.find_all("svg")
            assert svg["role"] == "img"
            assert svg["aria-label"].strip(), edition.page
            (caption,) = figure.find_all("figcaption")
            assert words(caption), edition.page
            assert svg.find("text"), "the text of a figure was drawn as paths: nobody can search it"
    shown = sum(len(p.select("figure.unlearn-figure svg, .headlines svg")) for p in pages.values())
    assert sum(len(p.select("svg[aria-label]")) for p in pages.values()) == shown


def test_ids_of_figures_are_their_own(pages: dict[str, BeautifulSoup]) -> None:
    """Fails where two figures share a clip path's id: the second is cut by the first one's box."""
    seen = 0
    for name, page in pages.items():
        counts = Counter(tag["id"] for tag in page.find_all(id=True))
        for svg in page.select("figure svg"):
            own = {tag["id"] for tag in svg.find_all(id=True)}
            seen += len(own)
            assert {i for i in own if counts[i] > 1} == set(), name
            used = set(re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", svg.decode()))
            assert {a or b for a, b in used} <= own, name
    assert seen > 0


def test_no_page_names_a_path_of_a_machine(site: Any, pages: dict[str, BeautifulSoup]) -> None:
    """Fails where an output, a warning or a docstring carries the folder that it was made in."""
    texts = {}
    for name, page in pages.items():
        values = [v for tag in page.find_all(True) for v in tag.attrs.values()]
        plain = [v if isinstance(v, str) else " ".join(v) for v in values]
        texts[name] = "\n".join([page.get_text(), *plain])
    for file in (site.html / "_downloads").rglob("*.*"):
        texts[file.relative_to(site.html).as_posix()] = file.read_text()
    found = {
        name: [p for p in machine_paths(text) if not p.startswith(SYSTEM)]
        for name, text in texts.items()
    }
    assert {name: paths for name, paths in found.items() if paths} == {}
    assert any(name.startswith("_downloads") for name in texts)


def test_the_search_index_knows_the_words(site: Any) -> None:
    """Sphinx keeps stems; the browser looks for the stem of what is typed."""
    text = (site.html / "searchindex.js").read_text()
    index = json.loads(text.removeprefix("Search.setIndex(").removesuffix(")"))

    def found(word: str) -> set[str]:
        stem = SearchEnglish({}).stem(word)
        at = [index[kind].get(stem, []) for kind in ("terms", "titleterms")]
        numbers = [n for x in at for n in ([x] if isinstance(x, int) else x)]
        return {index["docnames"][n] for n in numbers}

    assert "papers/ssd" in found("dampening")
    assert found("xylophone") == set()


# --- chapters --------------------------------------------------------------------------------


def test_a_chapter_shows_the_largest_published_run(site: Any, slug: str) -> None:
    """Fails where what the reader ran takes the place of what was published."""
    for edition in site.editions[slug]:
        page = site.pages[edition.page]
        (line,) = page.select("article .which-run")
        assert words(line).startswith(f"{edition.label} :")
        assert edition.record.finished[:10] in words(line)
        hrefs = {
            Path(edition.page).parent.joinpath(a["href"]).as_posix() for a in line.select("a[href]")
        }
        if edition is site.editions[slug][0]:
            others = {f"papers/../{e.page}" for e in site.editions[slug][1:]}
            assert others <= hrefs
            stale = edition.record.config != source_hash(slug)
            assert ("has changed since" in words(line)) == stale
            assert edition.published or not stale, "what was run here a moment ago is called old"
        else:
            assert f"runs/../papers/{slug}.html" in hrefs


def test_a_chapter_opens_with_what_was_found(site: Any, slug: str) -> None:
    """Fails where a page shows another run's findings, or where a headline's verdict is left out."""
    headlines = [k for k, claim in load_paper(slug).claims.items() if claim.headline]
    for edition in site.editions[slug]:
        found = section(site.pages[edition.page], "What we found")
        items = found.select(".first-screen .found li")
        assert len(items) == len(edition.record.findings)
        facts = [row[0] for row in cells_of(found)] if edition.record.regime else []
        assert facts[: len(edition.record.regime)] == [f.name for f in edition.record.regime]
        shown = [words(tr.find("th")).split()[0] for tr in found.select(".headlines tbody tr")]
        assert shown == [v.claim for v in edition.record.verdicts if v.claim in headlines]


def test_the_anatomy_of_a_chapter(site: Any, pages: dict[str, BeautifulSoup]) -> None:
    assert site.all_editions
    for edition in site.all_editions:
        page = pages[edition.page]
        assert len(page.select("article h1")) == 1, edition.page
        headings = [words(h) for h in page.select("article h2")]
        assert [h for h in headings if h in ANATOMY] == ANATOMY, edition.page
        first = headings.index("Setup, and what was shrunk")
        last = headings.index("The paper's numbers, and other people's")
        assert last - first > 1, f"{edition.page}: no experiment stands between"


def test_the_opening_names_and_cites_the_paper(chapter: BeautifulSoup, slug: str) -> None:
    paper = load_paper(slug).paper
    text = words(chapter.select_one("article") or chapter)
    for part in (paper.title, paper.authors, paper.summary, paper.basis):
        assert " ".join(part.replace("’", "'").split()) in text
    bibtex = chapter.select_one(".highlight-bibtex")
    assert bibtex is not None
    assert f"{{{paper.cite}," in bibtex.get_text()
    (cited,) = re.findall(
        rf"(@\w+{{{paper.cite},.*?\n}})", (ROOT / "book" / "references.bib").read_text(), re.S
    )
    assert bibtex.get_text().strip() == cited


def test_a_verdict_for_every_claim(site: Any, slug: str) -> None:
    """Fails where a claim is left out, or where the sign and the words disagree."""
    for edition in site.editions[slug]:
        page = section(site.pages[edition.page], "Verdicts")
        rows = {words(tr.find("th")): tr for tr in page.select(".unlearn-table tbody tr")}
        assert list(rows) == [v.claim for v in edition.record.verdicts]
        for verdict in edition.record.verdicts:
            row = rows[verdict.claim]
            (badge,) = row.select(".verdict")
            kind, sign = SIGNS[verdict.verdict]
            assert words(badge) == f"{sign} {verdict.text}"
            assert badge["class"] == ["verdict", kind]
            margins = dict(re.findall(r"seed (\d+): ([+-][\d.]+)", words(row)))
            if len(verdict.margins) > 1:
                assert {int(s): float(m) for s, m in margins.items()} == {
                    s: pytest.approx(m.value, rel=0.06, abs=max(0.006, 0.051 * (m.stderr or 0)))
                    for s, m in verdict.margins.items()
                }
            (rule,) = row.select("details pre")
            assert rule.get_text().strip() == verdict.rule.strip()
    claims = list(load_paper(slug).claims)
    assert [v.claim for v in site.editions[slug][0].record.verdicts] == claims


def test_every_deviation_is_told(site: Any, slug: str) -> None:
    """Fails where a measured effect is dropped: the record has it, the page must show it."""
    for edition in site.editions[slug]:
        page = section(site.pages[edition.page], "Deviations")
        blocks = {}
        for body in page.select(".deviations tbody"):
            title, *lines = ([words(c) for c in tr.select("th, td")] for tr in body.select("tr"))
            blocks[title[0].split(".")[0]] = dict(lines)
        assert list(blocks) == list(load_paper(slug).deviations)
        for key, lines in blocks.items():
            assert list(lines) == ["Paper", "Authors' code", "Here", "Measured effect"]
            assert all(lines.values()), key
            effect = edition.record.effects.get(key, "not measured")
            assert lines["Measured effect"] == " ".join(effect.replace("’", "'").split())


def test_the_source_is_the_one_that_runs(site: Any, slug: str) -> None:
    """Fails where a chapter shows pasted code: it would part from the method's file."""
    source = (ROOT / "unlearn_core" / "methods" / f"{slug}.py").read_text()
    for edition in site.editions[slug]:
        page = section(site.pages[edition.page], "The method")
        shown = [block.get_text().strip() for block in page.select("details .method-source pre")]
        assert source.strip() in shown
        assert page.select(".math"), "no formula stands beside the source"
        if slug == "ssd":
            function = source[source.index("def dampen(") :].split("\n\n\n")[0]
            assert function.count("\n") > 5
            assert any(function in text for text in shown)


def test_downloads_are_those_of_the_run(site: Any) -> None:
    """Fails where two editions' files share a name and one page hands out the other's numbers."""
    for edition in site.all_editions:
        at = (site.html / edition.page).parent
        links = site.pages[edition.page].select("a.download[href]")
        files = {Path(a["href"]).suffix: at / a["href"] for a in links}
        assert set(files) == {".json", ".csv", ".ipynb"}, edition.page
        for suffix in (".json", ".ipynb"):
            assert files[suffix].read_bytes() == edition.notebook.with_suffix(suffix).read_bytes()
        with files[".csv"].open() as handle:
            lines = list(csv.DictReader(handle))
        rows = edition.record.rows
        assert len(lines) == sum(len(row.metrics) for row in rows)
        assert [line["value"] for line in lines] == [
            str(value.value) for row in rows for value in row.metrics.values()
        ]


def shown_cells(notebook: Path) -> list[dict[str, Any]]:
    """The code cells of an executed notebook that a page shows."""
    hidden = {"remove-cell", "injected-parameters"}
    return [
        c
        for c in json.loads(notebook.read_text())["cells"]
        if c["cell_type"] == "code" and not hidden & set(c["metadata"].get("tags", []))
    ]


def page_cells(page: BeautifulSoup) -> list[Tag]:
    return page.select("article div.cell")


def is_of_another_size(expression: str, edition: Any) -> bool:
    """Is it ``nb.first(run, "x", ...)`` of an experiment that the run's profile does not have?"""
    named = re.match(r"nb\.first\(run, '(\w+)'", expression)
    profile = load_paper(edition.slug).profile(edition.record.profile)
    return bool(named) and not any(name.startswith(named[1]) for name in profile.experiments)


def test_no_output_is_missing(site: Any) -> None:
    """Every output of a notebook is on its page, and every cell that ends in a value has one.

    Rows are made without a word, and an experiment that a size does not have shows nothing there.
    """
    for edition in site.all_editions:
        cells, boxes = shown_cells(edition.notebook), page_cells(site.pages[edition.page])
        assert len(cells) == len(boxes) > 0, edition.page
        for cell, box in zip(cells, boxes, strict=True):
            source = "".join(cell["source"])
            where = f"{edition.page}: {source[-80:]!r}"
            ends = ast.parse(source).body
            ends_in_value = bool(ends) and isinstance(ends[-1], ast.Expr)
            if "remove-input" in cell["metadata"].get("tags", []) or ends_in_value:
                last = ast.unparse(ends[-1]) if ends else ""
                may_be_empty = last.startswith("make(") or is_of_another_size(last, edition)
                assert cell["outputs"] or may_be_empty, f"{where} shows nothing"
            outputs = box.select(".cell_output")
            assert len(outputs) == bool(cell["outputs"]), where
            for output in cell["outputs"]:
                assert words(outputs[0]), where
                if html := output.get("data", {}).get("text/html"):
                    made = BeautifulSoup("".join(html), "html.parser")
                    assert words(made) in words(outputs[0]), where
                    for kind in ("table", "svg", "tr"):
                        assert len(made.find_all(kind)) <= len(outputs[0].find_all(kind)), where


def test_no_output_is_an_error_or_a_warning(site: Any) -> None:
    for edition in site.all_editions:
        for output in site.pages[edition.page].select(".cell_output"):
            text = output.get_text()
            assert "Traceback (most recent call last)" not in text, edition.page
            assert "Warning" not in text, edition.page
            assert not output.select(".stderr, .traceback, .error"), edition.page


# --- the other pages -------------------------------------------------------------------------


def test_the_front_page_has_every_paper(site: Any, slug: str) -> None:
    front = site.pages["index.html"]
    (table,) = front.select(".unlearn-table.front")
    bodies = table.select("tbody")
    assert len(bodies) == len(SLUGS)
    (body,) = (b for b in bodies if b.select(f'a[href="papers/{slug}.html"]'))
    file, record = load_paper(slug), site.editions[slug][0].record
    assert file.paper.short in words(body.find("th"))
    assert f"{record.profile}, {len(record.seeds)} seed" in words(body.find("th"))
    titles = [claim.title for claim in file.claims.values() if claim.headline]
    if not titles:
        assert f"Of {len(record.verdicts)} claims, at {record.profile} size:" in words(body)
    for title in titles[:ON_FRONT]:
        assert title.replace("’", "'") in words(body)


def test_every_claim_is_listed(site: Any, slug: str) -> None:
    file = load_paper(slug)
    (table,) = section(site.pages["claims.html"], file.paper.short).select(".unlearn-table")
    rows = {row[0]: row for row in cells_of(table)}
    shown, *others = (e for e in site.editions[slug] if e.published)
    for own in shown.record.verdicts:
        _, title, _, size, margin, said, _ = rows[own.claim]
        assert title == file.claims[own.claim].title.replace("’", "'")
        judging = {
            e.record.profile: v
            for e in (shown, *others)
            for v in e.record.verdicts
            if v.claim == own.claim and v.verdict != "not tested"
        }
        largest = max(judging, key=PROFILES.index, default=shown.record.profile)
        verdict = judging.get(largest, own)
        assert size == largest
        assert said.startswith(f"{SIGNS[verdict.verdict][1]} {verdict.text}")
        told = "–"
        if verdict.mean is not None and verdict.verdict != "not tested":
            told = signed(verdict.mean, verdict.stderr, file.claims[own.claim].unit)
        assert margin.split(",")[0] == told


def test_the_status_page_names_every_run(site: Any) -> None:
    table = site.pages["reference/status.html"].select(".unlearn-table")[0]
    rows = {row[0]: row for row in cells_of(table)}
    assert set(rows) == {f"{e.slug}, {e.label}" for e in site.all_editions}
    for edition in site.all_editions:
        record, row = edition.record, rows[f"{edition.slug}, {edition.label}"]
        assert record.finished[:16].replace("T", " ") in row
        assert str(len(record.rows)) in row
        assert (record.commit or "none")[:10] in " ".join(row)
        assert (" with changes" in " ".join(row)) == record.dirty


def test_the_status_page_gives_a_reason_for_every_skip(site: Any) -> None:
    """Fails where an experiment that nobody ran is not mentioned at all."""
    tables = section(site.pages["reference/status.html"], "Not run, and why").select("table")
    rows = [row for table in tables for row in cells_of(table)]
    assert all(len(row) == 3 and all(row) for row in rows)
    wanted = set()
    for slug in SLUGS:
        for edition in site.editions[slug]:
            named = f"{slug}, {edition.label}"
            wanted |= {(named, skip.experiment) for skip in edition.record.skips}
        made = {e.record.profile for e in site.editions[slug]}
        for name, profile in load_paper(slug).profiles.items():
            if name not in made:
                wanted.add((f"{slug}, {name}", "the whole profile"))
                needy = {k: e.requires for k, e in profile.experiments.items() if e.requires}
                wanted |= {(f"{slug}, {name}", key) for key in needy}
                for key, requirement in needy.items():
                    (why,) = (r[2] for r in rows if r[:2] == [f"{slug}, {name}", key])
                    assert requirement.env in why
    assert {(row[0], row[1]) for row in rows} == wanted


@pytest.mark.parametrize("cls", METHODS.values(), ids=list(METHODS))
def test_the_reference_describes_every_method(site: Any, cls: type) -> None:
    """Fails where a new method has no docstring, or one that leaves a hyper-parameter out."""
    page = site.pages["api/methods.html"]
    heading = page.find(id=f"unlearn_core.methods.{cls.__qualname__}")
    assert heading is not None
    entry = heading.parent.find("dd")
    assert entry is not None
    assert words(entry.find("p"))
    named = {words(code) for code in entry.select("strong, code, .sig-name, em")}
    text = words(entry)
    for field in dataclasses.fields(cls):
        assert field.name in named or re.search(rf"\b{field.name}\b", text), field.name


@pytest.mark.parametrize(
    ("page", "path", "said"),
    [
        ("methods", "methods.Method.__call__", "model ( Module ) – of the split's modality:"),
        ("models", "models.Recipe.fit", "data ( Dataset ) – training examples of the task's kind;"),
        ("models", "models.train", "seed ( int ) – of what the model itself draws"),
    ],
)
def test_the_reference_describes_what_every_script_calls(
    site: Any, page: str, path: str, said: str
) -> None:
    """Fails where a call is left out, or where words on a parameter are taken for its type."""
    heading = site.pages[f"api/{page}.html"].find(id=f"unlearn_core.{path}")
    assert said in words(heading.parent)


def test_links_of_the_reference_lead_somewhere(site: Any) -> None:
    """Types and names, also where another page has them, and under no path but the short one."""
    pages = {name: page for name, page in site.pages.items() if name.startswith("api/")}
    ids = {name: {tag["id"] for tag in page.select("[id]")} for name, page in pages.items()}
    targets = set()
    for name, page in pages.items():
        for link in page.select("a.reference.internal[href*='#unlearn_core']"):
            file, anchor = link["href"].split("#")
            assert anchor in ids[f"api/{file}" if file else name], link["href"]
            targets.add((name, anchor))
    # Of an annotation, of a docstring, and of a module's words.
    assert ("api/methods.html", "unlearn_core.data.ForgetSplit") in targets
    assert ("api/models.html", "unlearn_core.models.Recipe.fit") in targets
    assert ("api/methods.html", "unlearn_core.models.TrainConfig") in targets


def test_the_page_of_needs_lists_every_method(site: Any) -> None:
    table, sequence = site.pages["reference/methods.html"].select(".unlearn-table")
    head = [words(th) for th in table.select("thead th")]
    rows = {row[0]: dict(zip(head, row, strict=True)) for row in cells_of(table)}
    assert set(rows) == {cls.__name__ for cls in METHODS.values()}
    for cls in METHODS.values():
        assert {need for need in head if rows[cls.__name__][need] == "●"} == set(cls.needs)
    mixing = {row[0]: row[1] == "●" for row in cells_of(sequence)}
    assert mixing == {cls.__name__: cls.mixes for cls in CONTINUAL.values()}
    assert mixing["Replay"] != mixing["RegLoRA"]


def test_every_metric_is_defined(site: Any) -> None:
    (table,) = site.pages["reference/metrics.html"].select(".unlearn-table")
    rows = {row[0]: row for row in cells_of(table)}
    goals = {"higher": "higher", "lower": "lower", "retrained": "close to retrained", "none": "–"}
    wanted = {
        f"{m.label} {name}".replace("’", "'"): [
            m.unit or "none",
            goals[m.better],
            " ".join(m.definition.replace("’", "'").split()),
        ]
        for name, m in METRICS.items()
    }
    assert {name: row[1:] for name, row in rows.items()} == wanted
