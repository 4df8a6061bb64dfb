"""The rendered book in a real browser: complete, offline, legible, on a desk and on a phone."""

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest

from sparsebook.book import find_book

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ROOT = find_book(__file__)
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: the rendered pages are not looked at"),
]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The book, rendered as `make book` does it; a warning is an error."""
    pytest.importorskip("jupyter_book")
    from sparsebook.book import build_html

    return build_html(ROOT, tmp_path_factory.mktemp("book") / "html", strict=True).parent


@pytest.fixture(scope="session")
def names(pages: Path) -> list[str]:
    """Every page of the book, as a path below its root."""
    found = sorted(str(path.relative_to(pages)) for path in pages.glob("book/**/*.html"))
    assert len(found) >= 5
    return found


@pytest.fixture(scope="session")
def site(pages: Path) -> Iterator[str]:
    """The book served on the loopback interface."""
    handler = functools.partial(Quiet, directory=str(pages))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing")
    with playwright.sync_playwright() as run:
        # --no-sandbox: Chromium refuses to sandbox itself for root, as in a container.
        started = run.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Visit:
    """A window that notes everything that goes wrong, and every address that it asks for."""

    def __init__(self, browser: Any, viewport: dict[str, int], scheme: str = "light") -> None:
        self.context = browser.new_context(viewport=viewport, color_scheme=scheme)
        self.page = self.context.new_page()
        self.trouble: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.trouble.append(f"{self.page.url}: {error}"))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("requestfailed", lambda request: self.trouble.append(f"failed: {request.url}"))
        self.page.on("response", self._answered)

    def _heard(self, message: Any) -> None:
        if message.type == "error":
            self.trouble.append(f"{self.page.url}: {message.text}")

    def _answered(self, response: Any) -> None:
        if response.status >= 400:
            self.trouble.append(f"{response.status}: {response.url}")

    def foreign(self) -> list[str]:
        """The addresses asked for that are not on this machine."""
        hosts = {url: urlsplit(url).hostname for url in self.asked}
        return [url for url, host in hosts.items() if host not in (None, "127.0.0.1")]


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    visits: list[Visit] = []

    def start(viewport: dict[str, int], scheme: str = "light") -> Visit:
        visits.append(Visit(browser, viewport, scheme))
        return visits[-1]

    yield start
    for each in visits:
        each.context.close()


def test_no_page_fails_or_asks_another_host(visit: Any, site: str, names: list[str]) -> None:
    window = visit(DESK)
    for name in ["index.html", "genindex.html", *names]:
        window.page.goto(site + name, wait_until="load")
        if window.page.locator(".math").count():
            window.page.wait_for_selector("mjx-container")
    assert window.trouble == []
    assert window.foreign() == []


def test_pages_work_from_the_disk(visit: Any, pages: Path, names: list[str]) -> None:
    window = visit(DESK)
    for name in names:
        window.page.goto((pages / name).as_uri(), wait_until="load")
    assert window.trouble == []
    assert {urlsplit(url).scheme for url in window.asked} <= {"file", "data"}


def test_mathematics_is_typeset(visit: Any, site: str, names: list[str]) -> None:
    window = visit(DESK)
    for name in names:
        window.page.goto(site + name, wait_until="load")
        formulas = window.page.locator("article .math").count()
        if formulas:
            window.page.wait_for_selector("mjx-container")
            done = window.page.evaluate("MathJax.startup.promise.then(() => true)")
            assert done
            assert window.page.locator("article .math mjx-container").count() == formulas, name
            assert window.page.locator("mjx-merror").count() == 0, name


def test_no_link_or_picture_is_broken(visit: Any, site: str, names: list[str], pages: Path) -> None:
    window = visit(DESK)
    anchors: dict[str, set[str]] = {}
    links: list[tuple[str, str]] = []
    every = "[...document.querySelectorAll('a[href]')].map(e => e.getAttribute('href'))"
    for name in names:
        window.page.goto(site + name, wait_until="load")
        anchors[name] = set(window.page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)"))
        found = window.page.evaluate(
            "[...document.querySelectorAll('a[href]')].map(e => e.getAttribute('href'))"
        )
        links += [(name, link) for link in set(found)]
        pictures = window.page.evaluate(
            "[...document.images].map(i => [i.getAttribute('src'), i.alt.trim(), i.naturalWidth])"
        )
        assert [src for src, alt, width in pictures if not alt or not width] == [], name
    broken = [(name, link) for name, link in links if _broken(name, link, pages, anchors)]
    assert broken == []


def _broken(name: str, link: str, pages: Path, anchors: dict[str, set[str]]) -> bool:
    if urlsplit(link).scheme or link.startswith(("//", "javascript:")):
        return False
    address, fragment = urldefrag(urljoin(f"/{name}", link))
    target = unquote(urlsplit(address).path).lstrip("/") or name
    if not (pages / target).is_file():
        return True
    return bool(fragment) and target in anchors and unquote(fragment) not in anchors[target]


def test_the_first_page_opens_with_every_paper(visit: Any, site: str) -> None:
    window = visit(DESK)
    window.page.goto(site + "index.html")
    window.page.wait_for_url("**/book/intro.html")
    rows = window.page.locator("table.glance tr.paper")
    assert rows.count() == 40
    # The ledger stands before every section of the page.
    assert window.page.evaluate(
        "document.querySelector('.ledger-glance')"
        ".compareDocumentPosition(document.querySelector('article h2')) & Node.DOCUMENT_POSITION_FOLLOWING"
    )
    for row in rows.all():
        cells = row.locator(".chip")
        assert cells.count() >= 1
        assert all(text.strip() for text in cells.all_inner_texts())


def test_the_ledger_has_every_paper_and_filters(visit: Any, site: str) -> None:
    window = visit(DESK)
    window.page.goto(site + "book/ledger.html")
    papers = window.page.locator(".ledger-paper")
    assert papers.count() == 40
    assert "Expected false verdicts by chance" in window.page.inner_text("article")
    data = window.page.request.get(site + "ledger.json").json()
    assert window.page.locator("table.claims tbody tr").count() == len(data)
    window.page.fill("form.ledger-filter [name=words]", "lottery tickets")
    assert window.page.locator(".ledger-paper:visible").count() == 1
    window.page.fill("form.ledger-filter [name=words]", "no such words anywhere")
    assert window.page.locator(".ledger-paper:visible").count() == 0
    assert window.page.locator(".ledger-empty").is_visible()
    window.page.fill("form.ledger-filter [name=words]", "")
    assert window.page.locator(".ledger-paper:visible").count() == 40
    assert window.trouble == []


@pytest.mark.parametrize("where", ["served", "disk"])
def test_search_finds(visit: Any, site: str, pages: Path, where: str) -> None:
    window = visit(DESK)
    base = site if where == "served" else pages.as_uri() + "/"
    window.page.goto(base + "search.html?q=papermill")
    window.page.wait_for_selector("#search-results li a")
    assert "how_to_run" in window.page.locator("#search-results li a").first.get_attribute("href")
    assert window.trouble == []


def test_no_page_scrolls_sideways_on_a_phone(visit: Any, site: str, names: list[str]) -> None:
    window = visit(PHONE)
    wide = {}
    for name in names:
        window.page.goto(site + name, wait_until="load")
        if window.page.locator(".math").count():
            window.page.wait_for_selector("mjx-container")
        widths = window.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        if widths[0] > widths[1]:
            wide[name] = widths
    assert wide == {}


# The contrast of each text with the nearest opaque ground behind it (WCAG 2.2, relative luminance).
CONTRAST = """
() => {
  const numbers = (color) => (color.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const back = numbers(getComputedStyle(e).backgroundColor);
      if (back.length === 3 || back[3] > 0.9) return back;
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const element of document.querySelectorAll('article *')) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    const style = getComputedStyle(element);
    if (!own || element.closest('mjx-container, .headerlink, .sb-hidden, button')
        || !element.checkVisibility() || style.visibility === 'hidden' || !numbers(style.color).length) continue;
    const [a, b] = [light(numbers(style.color)), light(ground(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) low.push(`${element.tagName}.${element.className}: ${ratio.toFixed(2)} `
      + element.textContent.trim().slice(0, 30));
  }
  return [...new Set(low)].slice(0, 10);
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_both_themes(visit: Any, site: str, names: list[str], scheme: str) -> None:
    window = visit(DESK, scheme)
    faint = {}
    for name in names:
        window.page.goto(site + name, wait_until="load")
        window.page.wait_for_selector(f"html[data-theme={scheme}]")
        if low := window.page.evaluate(CONTRAST):
            faint[name] = low
    assert faint == {}


def test_code_can_be_copied_and_pages_downloaded(visit: Any, site: str) -> None:
    window = visit(DESK)
    window.page.goto(site + "book/how_to_run.html")
    blocks = window.page.locator("article .highlight pre")
    assert blocks.count() > 0
    assert window.page.locator("article button.copybtn").count() == blocks.count()
    window.page.goto(site + "book/ledger.html")
    assert window.page.locator(".btn-download-source-button, .dropdown-download-buttons").count() >= 1
