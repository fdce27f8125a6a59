"""The book in a browser, from disk: formulas, dark mode, search, navigation, a narrow screen.

Without Chromium these are skipped; with UNLEARN_REQUIRE_BROWSER=1 (as in ``.ci/run``) they fail.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
LOCAL = ("file:", "data:", "blob:")

#: How MathJax shows what it can't read, and a macro that it does not know.
MISTAKES = "mjx-merror, mjx-container [data-mjx-error], mjx-container [style*='color: red']"

CHAPTER, FRONT, STATUS = "papers/ssd.html", "index.html", "reference/status.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or "/usr/bin/chromium"
    if not Path(chromium).exists():
        reason = "Chromium was not found; on Debian: apt-get install chromium"
        if os.environ.get("UNLEARN_REQUIRE_BROWSER") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield made
        made.close()


class Reader:
    """A fresh profile that looks at the book, without a network; notes requests and errors."""

    def __init__(self, page: Page, html: Path) -> None:
        self.page, self.html = page, html
        self.requests: list[str] = []
        self.errors: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(f"{page.url}: {error}"))
        page.on("console", self._note)

    def _note(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(f"{self.page.url}: {message.text}")

    def open(self, name: str) -> Page:
        self.page.goto(f"{self.html.as_uri()}/{name}")
        return self.page

    def theme(self, wanted: str) -> None:
        """Press the button until the page has that theme."""
        for _ in range(3):
            if self.page.locator("html").get_attribute("data-mode") == wanted:
                break
            self.page.locator("button.theme-switch-button").first.click()
        expect(self.page.locator("html")).to_have_attribute("data-theme", wanted)

    @property
    def remote(self) -> list[str]:
        return [url for url in self.requests if not url.startswith(LOCAL)]


@pytest.fixture
def reader(browser: Browser, site: Any) -> Iterator[Reader]:
    context = browser.new_context(
        viewport={"width": 1280, "height": 900}, offline=True, color_scheme="light"
    )
    context.set_default_timeout(60_000)
    yield Reader(context.new_page(), site.html)
    context.close()


def test_formulas_are_typeset_without_a_network(reader: Reader, site: Any) -> None:
    """Fails where MathJax or its fonts come from a server, or a formula has a mistake."""
    names = [name for name, page in site.pages.items() if page.select(".math")]
    assert {CHAPTER, "reference/metrics.html"} <= set(names)
    for name in names:
        page = reader.open(name)
        page.wait_for_function("window.MathJax && MathJax.startup && MathJax.startup.promise")
        page.evaluate("MathJax.startup.promise.then(() => true)")
        formulas = page.locator("article .math")
        assert formulas.count() == len(site.pages[name].select("article .math")) > 0
        bare = formulas.evaluate_all(
            "all => all.filter(e => !e.querySelector('mjx-container mjx-math')).length"
        )
        assert bare == 0, name
        assert page.locator(MISTAKES).count() == 0, name
        box = page.locator("mjx-container").first.bounding_box()
        assert box is not None
        assert min(box["width"], box["height"]) > 4, name
    assert any("/mathjax/" in url for url in reader.requests)
    assert reader.remote == []


def test_the_button_changes_the_theme_and_it_stays(reader: Reader) -> None:
    page = reader.open(FRONT)
    background = "getComputedStyle(document.body).backgroundColor"
    seen = {}
    for theme in ("dark", "light", "dark"):
        reader.theme(theme)
        seen[theme] = page.evaluate(background)
    assert seen["dark"] != seen["light"]
    page = reader.open(CHAPTER)
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    assert page.evaluate(background) == seen["dark"]


#: WCAG's contrast of the text in every visible element that a selector finds, against what is
#: painted behind it: half-transparent colours are laid over one another as the browser does.
CONTRAST = """selector => {
  const parse = text => {
    const n = text.match(/-?[\\d.]+(e-?\\d+)?/g).map(Number);
    const unit = text.startsWith('color(');
    const rgb = n.slice(0, 3).map(v => unit ? 255 * v : v);
    return {rgb, a: n.length > 3 ? n[3] : 1};
  };
  const over = (top, a, under) => top.map((v, i) => a * v + (1 - a) * under[i]);
  const light = rgb => {
    const [r, g, b] = rgb.map(v => {
      const c = v / 255;
      return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const out = [];
  for (const element of document.querySelectorAll(selector)) {
    const own = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own && element.tagName !== 'SPAN' || !element.getClientRects().length) continue;
    let opacity = 1, layers = [];
    for (let e = element; e; e = e.parentElement) {
      const style = getComputedStyle(e);
      opacity *= Number(style.opacity);
      layers.unshift(parse(style.backgroundColor));
    }
    const behind = layers.reduce((under, l) => over(l.rgb, l.a, under), [255, 255, 255]);
    const style = getComputedStyle(element);
    const svg = element instanceof SVGElement;
    const ink = parse(svg ? style.fill : style.color);
    const alpha = ink.a * opacity * (svg ? Number(style.fillOpacity) : 1);
    const [a, b] = [light(over(ink.rgb, alpha, behind)), light(behind)].sort((x, y) => y - x);
    out.push({text: element.textContent.trim().slice(0, 40), ratio: (a + 0.05) / (b + 0.05)});
  }
  return out;
}"""

#: Adds a badge of every kind, so that a verdict that no run gives today is looked at too.
BADGES = """() => {
  const cell = document.querySelector('.verdict').parentElement;
  for (const kind of ['holds', 'part', 'fails', 'none'])
    cell.insertAdjacentHTML('beforeend', `<span class="verdict ${kind}">? ${kind}</span>`);
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_in_both_themes(reader: Reader, theme: str) -> None:
    """Fails where a colour that was chosen on white is kept on a dark page, or an output's card
    stays white under light text."""
    wanted = {
        FRONT: (".verdict", ".unlearn-table th", ".unlearn-table td", ".muted"),
        CHAPTER: (
            ".verdict",
            "figure.unlearn-figure svg text",
            "figure.unlearn-figure figcaption",
            ".unlearn-table th",
            ".unlearn-table td",
            ".unlearn-table caption span",
            ".unlearn-table .seeds",
            ".unlearn-table .muted",
        ),
        STATUS: (".unlearn-table th", ".unlearn-table td"),
    }
    for name, selectors in wanted.items():
        page = reader.open(name)
        reader.theme(theme)
        if ".verdict" in selectors:
            page.evaluate(BADGES)
        for selector in selectors:
            found = page.evaluate(CONTRAST, selector)
            assert len(found) >= (4 if selector == ".verdict" else 1), f"{name}: {selector}"
            weak = [f for f in found if f["ratio"] < 4.5]
            assert weak == [], f"{name}, {theme}: {selector}"


def test_figures_take_the_colour_of_the_text(reader: Reader) -> None:
    """Fails where Matplotlib's black is in the SVG: it would be invisible on a dark page."""
    page = reader.open(CHAPTER)
    inks = {}
    for theme in ("light", "dark"):
        reader.theme(theme)
        inks[theme] = page.evaluate(
            """() => [...document.querySelectorAll('figure.unlearn-figure')].map(figure => [
                 getComputedStyle(figure).color,
                 ...new Set([...figure.querySelectorAll('svg text')].map(
                   t => getComputedStyle(t).fill))])"""
        )
        assert inks[theme]
        for of_page, *of_texts in inks[theme]:
            assert of_texts == [of_page], theme
    assert inks["light"][0] != inks["dark"][0]


def test_search_finds_the_chapter(reader: Reader) -> None:
    page = reader.open("search.html?q=dampening")
    hits = page.locator("#search-results ul.search a")
    expect(hits.first).to_be_visible()
    targets = hits.evaluate_all("all => all.map(a => a.getAttribute('href').split('?')[0])")
    assert CHAPTER in [target.split("#")[0] for target in targets]
    page.locator(f'#search-results a[href^="{CHAPTER}"]').first.click()
    expect(page.locator("article h1")).to_contain_text("Selective Synaptic Dampening")
    assert page.url.startswith(f"{reader.html.as_uri()}/{CHAPTER}")
    page = reader.open("search.html?q=xylophone")
    expect(page.locator("#search-results .search-summary")).to_contain_text("did not match any")
    assert reader.remote == []


def test_search_from_any_page(reader: Reader) -> None:
    """The reader's way: the button in the sidebar or above the page, a word, Enter."""
    page = reader.open(STATUS)
    page.locator("button.search-button-field:visible, button.search-button:visible").first.click()
    box = page.locator("input[name=q]:visible").first
    box.fill("dampening")
    box.press("Enter")
    expect(page.locator(f'#search-results a[href*="{CHAPTER}"]').first).to_be_visible()


def test_links_lead_where_they_say(reader: Reader) -> None:
    page = reader.open(FRONT)
    page.locator(f'article .front th a[href="{CHAPTER}"]').click()
    expect(page.locator("article h1")).to_contain_text("Selective Synaptic Dampening")
    page.locator(".bd-sidebar-primary a", has_text="Status").click()
    expect(page.locator("article h1")).to_contain_text("Status")
    assert page.url == f"{reader.html.as_uri()}/{STATUS}"


def test_a_narrow_screen_needs_no_sideways_scrolling(reader: Reader, site: Any) -> None:
    """Fails where a wide table, a line of code or a figure pushes the page beyond the screen."""
    reader.page.set_viewport_size({"width": 390, "height": 844})
    wide = 0
    names = [name for name in site.pages if name.split("/")[0] in ("papers", "runs", "guide")]
    for name in (FRONT, STATUS, "reference/metrics.html", "reference/methods.html", *names):
        page = reader.open(name)
        page.wait_for_function("!window.MathJax || MathJax.startup.promise")
        page.evaluate("window.MathJax && MathJax.startup.promise.then(() => true)")
        over = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert over <= 1, f"{name} is {over} px too wide"
        for box in page.locator(".unlearn-table").evaluate_all(
            """all => all.map(e => ({
                 inner: e.scrollWidth, outer: e.clientWidth, right: e.getBoundingClientRect().right,
                 scrolls: ['auto', 'scroll'].includes(getComputedStyle(e).overflowX)}))"""
        ):
            assert box["right"] <= 391, name
            if box["inner"] > box["outer"] + 1:
                wide += 1
                assert box["scrolls"], name
    assert wide > 0


def test_the_console_is_quiet(reader: Reader, site: Any) -> None:
    """Fails on a script that breaks, and with it perhaps search, copy buttons or dark mode."""
    names = [FRONT, CHAPTER, STATUS, "reference/metrics.html", "api/methods.html"]
    for name in (*names, "guide/use_unlearn_core.html"):
        reader.open(name).wait_for_load_state("load")
    assert reader.errors == []
    # From disk a browser may not fetch the pages that it found, so hits have no excerpt.
    page = reader.open("search.html?q=dampening")
    expect(page.locator("#search-results a").first).to_be_visible()
    excuses = ("blocked by CORS policy", "net::ERR_FAILED", "Failed to fetch")
    assert [e for e in reader.errors if not any(excuse in e for excuse in excuses)] == []
    assert reader.remote == []
