"""The rendered book in a real browser: complete, offline, legible, on a desk and on a phone."""

import functools
import http.server
import shutil
import sys
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


class Pages(http.server.SimpleHTTPRequestHandler):
    """Serves the pages without a word."""

    def log_message(self, *arguments: Any) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        # A page that is left before its last font has come hangs up; anything else is worth a word.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


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
    handler = functools.partial(Pages, directory=str(pages))
    with Server(("127.0.0.1", 0), handler) as server:
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
        self.page.on("requestfailed", self._failed)
        self.page.on("response", self._answered)

    def _heard(self, message: Any) -> None:
        if message.type == "error":
            self.trouble.append(f"{self.page.url}: {message.text}")

    def _failed(self, request: Any) -> None:
        if request.failure != "net::ERR_ABORTED":  # the page was left while it was still loading
            self.trouble.append(f"{request.failure}: {request.url}")

    def _answered(self, response: Any) -> None:
        if response.status >= 400:
            self.trouble.append(f"{response.status}: {response.url}")


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    visits: list[Visit] = []

    def start(viewport: dict[str, int], scheme: str = "light") -> Visit:
        visits.append(Visit(browser, viewport, scheme))
        return visits[-1]

    yield start
    for each in visits:
        each.context.close()


# What one visit to a page collects: anchors, links, pictures, formulas.
CONTENT = """
() => ({
  anchors: [...document.querySelectorAll('[id]')].map((e) => e.id),
  links: [...new Set([...document.querySelectorAll('a[href]')].map((a) => a.getAttribute('href')))],
  pictures: [...document.images].map((i) => [i.getAttribute('src'), i.alt.trim(), i.naturalWidth]),
  formulas: document.querySelectorAll('article .math').length,
  typeset: document.querySelectorAll('article .math mjx-container').length,
  // MathJax shows a macro that it does not know in red.
  misread: document.querySelectorAll('mjx-merror, mjx-container [style*="color: red"]').length,
})
"""

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
        || !element.checkVisibility() || style.visibility === 'hidden'
        || !numbers(style.color).length) continue;
    const [a, b] = [light(numbers(style.color)), light(ground(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) low.push(`${element.tagName}.${element.className}: ${ratio.toFixed(2)} `
      + element.textContent.trim().slice(0, 30));
  }
  return [...new Set(low)].slice(0, 10);
}
"""


@pytest.fixture(scope="module")
def survey(browser: Any, site: str, names: list[str]) -> Iterator[tuple[Visit, dict[str, dict[str, Any]]]]:
    """Every page visited once: what is on it, how it reads in both themes, how wide it is on a phone."""
    window = Visit(browser, DESK)
    seen = {}
    for name in names:
        window.page.set_viewport_size(DESK)
        window.page.goto(site + name, wait_until="load")
        if window.page.locator(".math").count():
            window.page.wait_for_function("window.MathJax && MathJax.startup && MathJax.startup.promise")
            window.page.evaluate("MathJax.startup.promise.then(() => true)")
        found = window.page.evaluate(CONTENT)
        for theme in ("light", "dark"):
            window.page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
            found[theme] = window.page.evaluate(CONTRAST)
        window.page.set_viewport_size(PHONE)
        found["width"] = window.page.evaluate("document.documentElement.scrollWidth")
        seen[name] = found
    yield window, seen
    window.context.close()


def test_no_page_fails_or_asks_another_host(survey: Any) -> None:
    window, seen = survey
    assert len(seen) >= 5
    assert window.trouble == []
    hosts = {urlsplit(url).hostname for url in window.asked} - {None}
    assert hosts == {"127.0.0.1"}


def test_pages_work_from_the_disk(visit: Any, pages: Path, names: list[str]) -> None:
    window = visit(DESK)
    for name in names:
        window.page.goto((pages / name).as_uri(), wait_until="load")
    assert window.trouble == []
    assert {urlsplit(url).scheme for url in window.asked} <= {"file", "data"}


def test_mathematics_is_typeset(survey: Any, names: list[str]) -> None:
    _, seen = survey
    assert {name: page["misread"] for name, page in seen.items() if page["misread"]} == {}
    raw = {name: page["formulas"] for name, page in seen.items() if page["typeset"] != page["formulas"]}
    assert raw == {}
    chapters = [name for name in names if name.count("/") == 2]
    assert all(seen[name]["formulas"] for name in chapters)


def test_every_picture_is_there_and_described(survey: Any) -> None:
    _, seen = survey
    poor = {name: [p for p in page["pictures"] if not (p[1] and p[2])] for name, page in seen.items()}
    assert {name: pictures for name, pictures in poor.items() if pictures} == {}
    assert all(page["pictures"] for page in seen.values())


def test_no_link_is_broken(survey: Any, pages: Path) -> None:
    _, seen = survey
    anchors = {name: set(page["anchors"]) for name, page in seen.items()}
    links = [(name, link) for name, page in seen.items() for link in page["links"]]
    assert len(links) > 50
    assert [(name, link) for name, link in links if _broken(name, link, pages, anchors)] == []


def _broken(name: str, link: str, pages: Path, anchors: dict[str, set[str]]) -> bool:
    if urlsplit(link).scheme or link.startswith("//"):
        return False
    address, fragment = urldefrag(urljoin(f"/{name}", link))
    target = unquote(urlsplit(address).path).lstrip("/") or name
    if not (pages / target).is_file():
        return True
    return bool(fragment) and target in anchors and unquote(fragment) not in anchors[target]


def test_no_page_scrolls_sideways_on_a_phone(survey: Any) -> None:
    _, seen = survey
    assert {name: page["width"] for name, page in seen.items() if page["width"] > PHONE["width"]} == {}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_is_legible_in_both_themes(survey: Any, theme: str) -> None:
    _, seen = survey
    assert {name: page[theme] for name, page in seen.items() if page[theme]} == {}


def test_the_theme_follows_the_readers_wish(visit: Any, site: str) -> None:
    for scheme in ("light", "dark"):
        window = visit(DESK, scheme)
        window.page.goto(site + "book/intro.html")
        window.page.wait_for_selector(f"html[data-theme={scheme}]")


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
    found = window.page.locator("#search-results li a").all()
    assert any("how_to_run" in str(link.get_attribute("href")) for link in found)
    assert window.trouble == []


def test_code_can_be_copied_and_pages_downloaded(visit: Any, site: str) -> None:
    window = visit(DESK)
    window.page.goto(site + "book/how_to_run.html")
    blocks = window.page.locator("article .highlight pre")
    assert blocks.count() > 0
    assert window.page.locator("article button.copybtn").count() == blocks.count()
    window.page.goto(site + "book/ledger.html")
    assert window.page.locator(".btn-download-source-button, .dropdown-download-buttons").count() >= 1
