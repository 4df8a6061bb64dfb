"""Fabricated books: tiny, but with everything that the runner and the contract look at."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MIME = "application/vnd.sparsebook.claims+json"
PARAMETERS = 'scale = "book"\nseed = 0\ndevice = "auto"\nthreads = None\nmark_path = None\nk = 3'

Cell = dict[str, Any]


def code(source: str, *tags: str, count: int | None = None, outputs: list[Any] | None = None) -> Cell:
    """A code cell, executed if ``count`` is given."""
    return {
        "id": f"c{abs(hash((source, tags))) % 10**8}",
        "cell_type": "code",
        "execution_count": count,
        "metadata": {"tags": list(tags)} if tags else {},
        "outputs": outputs or [],
        "source": source.splitlines(keepends=True),
    }


def markdown(source: str) -> Cell:
    """A markdown cell."""
    return {
        "id": f"m{abs(hash(source)) % 10**8}",
        "cell_type": "markdown",
        "metadata": {},
        "source": source.splitlines(keepends=True),
    }


def notebook(*cells: Cell, **metadata: Any) -> dict[str, Any]:
    """A notebook of these cells."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": kernel, **metadata},
        "cells": list(cells),
    }


def claim_row(slug: str, name: str, verdict: str) -> dict[str, Any]:
    """A row as a chapter's ledger stores it, shortened to what the runner reads."""
    return {"slug": slug, "part": "retrieval", "id": name, "statement": f"{name} of {slug}", "kind": "exact",
            "measured": 1.0, "interval": None, "unit": "ratio", "verdict": verdict, "word": verdict,
            "why": "", "scale": "book", "machine": "a machine"}  # fmt: skip


def report(slug: str, *verdicts: str) -> str:
    """Code that displays a report of claims, written by hand."""
    rows = [claim_row(slug, f"C{number}", verdict) for number, verdict in enumerate(verdicts, start=1)]
    bundle = {MIME: {"claims": rows}, "text/plain": "verdicts"}
    return f"from IPython.display import display\ndisplay({bundle!r}, raw=True)"


def chapter(slug: str, body: str, *verdicts: str) -> dict[str, Any]:
    """A chapter of four cells that runs ``body`` and then reports its claims."""
    return notebook(
        markdown(f"# About {slug}\n"),
        code(PARAMETERS, "parameters"),
        code(body),
        code(report(slug, *verdicts), "claims"),
    )


class FabricatedBook:
    """A book in a temporary folder, and the means to write chapters."""

    code, markdown, notebook = staticmethod(code), staticmethod(markdown), staticmethod(notebook)
    report, chapter = staticmethod(report), staticmethod(chapter)

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "book").mkdir(parents=True)
        (root / "_toc.yml").write_text("format: jb-book\nroot: book/intro\n", encoding="utf-8")
        self.papers = ["good", "bad", "slow", "spark"]
        entries = [
            {
                "slug": s,
                "part": "retrieval",
                "title": f"On {s}",
                "authors": ["A. Author"],
                "year": 2024,
                "venue": "V",
            }
            for s in self.papers
        ]
        text = json.dumps({"parts": {"retrieval": "Retrieval"}, "papers": entries})
        (root / "book" / "papers.yml").write_text(text, encoding="utf-8")

    def add(self, slug: str, content: dict[str, Any], part: str = "retrieval") -> Path:
        """Write a chapter's notebook and claims."""
        path = self.root / "book" / part / f"{slug}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
        path.with_name(f"{slug}.claims.yml").write_text(claims_file(slug, 2), encoding="utf-8")
        return path


def claims_file(slug: str, count: int) -> str:
    """A valid declaration of ``count`` exact claims."""
    claims = [
        {"id": f"C{number}", "statement": f"C{number} of {slug}", "paper": None, "source": "read",
         "setting": "scaled", "kind": "exact", "quantity": "something", "unit": "ratio",
         "expect": {"rule": "at_least", "value": 1}, "because": "it is so",
         "replication": {"unit": "run", "n": 1}, "control": "the opposite", "needs": "more data",
         "revisions": []}
        for number in range(1, count + 1)
    ]  # fmt: skip
    return json.dumps({"slug": slug, "claims": claims})


@pytest.fixture
def fabricate(tmp_path: Path) -> Callable[..., FabricatedBook]:
    """Make a book of chapters given by name and body, each with one claim that holds and one that fails."""

    def make(**bodies: str) -> FabricatedBook:
        book = FabricatedBook(tmp_path / "a book")
        for slug, body in bodies.items():
            book.add(slug, chapter(slug, body, "holds", "fails"))
        return book

    return make
