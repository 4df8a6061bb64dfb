"""The book's Sphinx extension: alternative text of figures, the ledger at a glance, the library's reference.

Nothing here runs a chapter: the pages are made from what the stored notebooks, ``papers.yml`` and the
library's docstrings say.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from sparsebook.sphinx_ext import ledger, reference

if TYPE_CHECKING:
    from sphinx.application import Sphinx

logger = logging.getLogger(__name__)


def figures(notebook: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Metadata (``alt``, ``name``) of every PNG in a notebook's outputs, by the SHA-256 of the picture.

    MyST-NB names the file that it writes for an output after this very digest, and drops the metadata.
    """
    found = {}
    for cell in notebook.get("cells", []):
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                picture = b64decode("".join(output["data"]["image/png"]))
                found[hashlib.sha256(picture).hexdigest()] = output.get("metadata", {}).get("image/png", {})
    return found


def describe_figures(app: Sphinx, doctree: nodes.document) -> None:
    """Give each figure of a notebook the alternative text and the anchor that `plotting.show` stored."""
    path = Path(app.env.doc2path(app.env.docname))
    if path.suffix != ".ipynb":
        return
    known = figures(json.loads(path.read_text(encoding="utf-8")))
    for image in doctree.findall(nodes.image):
        metadata = known.get(Path(image["uri"]).stem, {})
        if metadata.get("alt"):
            image["alt"] = metadata["alt"]
        if metadata.get("name"):
            image["ids"] = [*image.get("ids", []), f"figure-{metadata['name']}"]
        if not image.get("alt"):
            logger.warning(
                "a figure has no alternative text: show it with sparsebook.plotting.show(figure, alt=...)",
                location=app.env.docname,
                type="sparsebook",
                subtype="alt",
            )


class LedgerAtAGlance(SphinxDirective):
    """``{ledger-at-a-glance}``: one row a paper, one coloured and labelled cell a claim."""

    def run(self) -> list[nodes.Node]:
        # Always read again: a chapter that was executed anew changes this page and leaves its text alone.
        self.env.note_reread()
        state = ledger.read(Path(self.env.srcdir))
        return [nodes.raw("", ledger.glance(state), format="html")]


class LibraryReference(SphinxDirective):
    """``{library-reference}``: every public module with its functions and classes, from their docstrings."""

    def run(self) -> list[nodes.Node]:
        library = Path(__file__).parents[1]
        for path in reference.modules(library):
            self.env.note_dependency(str(path))
        self.env.note_reread()
        return reference.sections(library)


def write_ledger(app: Sphinx, exception: Exception | None) -> None:
    """Leave the ledger beside the pages as ``ledger.json``, for those who want the data."""
    if exception is None and app.builder.format == "html":
        state = ledger.read(Path(app.srcdir))
        text = json.dumps(state.claims, indent=1, ensure_ascii=False) + "\n"
        (Path(app.outdir) / "ledger.json").write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension (called by Sphinx)."""
    app.add_directive("ledger-at-a-glance", LedgerAtAGlance)
    app.add_directive("library-reference", LibraryReference)
    app.connect("doctree-read", describe_figures)
    app.connect("build-finished", write_ledger)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
