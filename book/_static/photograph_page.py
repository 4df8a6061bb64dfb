"""Photograph a rendered page for the README.

Run it as ``python book/_static/photograph_page.py _build/html/book/retrieval/seismic.html '#claims'`` after
``make book``: it writes ``page.png`` beside itself, at most 200 KB, scrolled to the element named last (a CSS
selector; the top of the page without one).
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

LARGEST = 200_000


def photograph(page_file: Path, selector: str | None) -> bytes:
    """A picture of the page, 1280 by 860 pixels, in the light theme."""
    with sync_playwright() as run:
        browser = run.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 860}, color_scheme="light")
        page.goto(page_file.resolve().as_uri())
        page.wait_for_timeout(1500)  # mathematics and fonts
        if selector:
            page.evaluate("s => document.querySelector(s).scrollIntoView({block: 'start'})", selector)
            page.wait_for_timeout(300)
        picture = page.screenshot()
        browser.close()
    return picture


def shrunk(picture: bytes) -> bytes:
    """The picture with as many colours as fit the size allowed."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    for colors in (256, 128, 64, 32):
        buffer = io.BytesIO()
        image.quantize(colors, dither=Image.Dither.NONE).save(buffer, format="PNG", optimize=True)
        if buffer.tell() <= LARGEST:
            return buffer.getvalue()
    raise ValueError(f"the page does not fit {LARGEST} bytes, even with 32 colours")


if __name__ == "__main__":
    picture = photograph(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
    (Path(__file__).parent / "page.png").write_bytes(shrunk(picture))
