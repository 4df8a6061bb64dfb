"""Rendering: a run becomes a book of its own, with only what it executed."""

import json
from pathlib import Path

import pytest

from sparsebook.book import build_html, build_run_html
from sparsebook.book.rendering import copy_pages, cut_toc

CONFIG = """
title: A test
only_build_toc_files: true
execute: {execute_notebooks: "off"}
sphinx: {config: {extensions: [myst_nb, jupyter_book, sphinx_external_toc, sphinx_book_theme]}}
"""
TOC = """
format: jb-book
root: book/intro
parts:
  - caption: Retrieval
    chapters:
      - file: book/retrieval/good
      - file: book/retrieval/slow
  - caption: Networks
    chapters: [{file: book/networks/dass}]
"""
LEDGER = """import os
from sparsebook.book import find_book, ledger
rows = ledger(os.environ["SPARSEBOOK_STORED_BOOK"], run=find_book())
print([(row["slug"], row["id"], row["verdict"], row["stored_verdict"]) for row in rows])"""


@pytest.fixture
def book(fabricate):
    """A book that can be rendered, with a run of two of its chapters, one of which failed."""
    book = fabricate(good="print('as stored')", slow="1")
    (book.root / "_config.yml").write_text(CONFIG)
    (book.root / "_toc.yml").write_text(TOC + "  - chapters: [{file: book/ledger}]\n")
    (book.root / "book" / "intro.md").write_text("# Welcome\n")
    page = book.notebook(book.markdown("# Ledger"), book.code(LEDGER), mystnb={"execution_mode": "force"})
    (book.root / "book" / "ledger.ipynb").write_text(json.dumps(page))
    return book


@pytest.fixture
def run(book) -> Path:
    folder = book.root / "_build" / "runs" / "book"
    (folder / "book" / "retrieval").mkdir(parents=True)
    executed = book.chapter("good", "1")
    stream = {"output_type": "stream", "name": "stdout", "text": "as executed with my own data"}
    executed["cells"][2] |= {"execution_count": 2, "outputs": [stream]}
    row = {"slug": "good", "part": "retrieval", "id": "C1", "verdict": "inconclusive"}
    data = {"application/vnd.sparsebook.claims+json": {"claims": [row]}, "text/plain": "C1"}
    executed["cells"][3]["outputs"] = [{"output_type": "display_data", "data": data, "metadata": {}}]
    (folder / "book" / "retrieval" / "good.ipynb").write_text(json.dumps(executed))
    entry = {"part": "retrieval", "status": "done", "failure": None}
    (folder / "run.json").write_text(json.dumps({"chapters": {"good": entry}}))
    return folder


def test_a_toc_is_cut_to_what_ran() -> None:
    import yaml

    toc = yaml.safe_load(TOC)
    assert cut_toc(toc, {"book/retrieval/slow"})["parts"] == [
        {"caption": "Retrieval", "chapters": [{"file": "book/retrieval/slow"}]}
    ]
    assert cut_toc(toc, set())["parts"] == []
    nested = [{"file": "book/data", "sections": [{"file": "book/networks/dass"}]}, {"url": "https://a.org"}]
    assert cut_toc(nested, set()) == [{"file": "book/data"}, {"url": "https://a.org"}]


def test_pages_are_copied_and_executed_notebooks_are_not_overwritten(book, run: Path) -> None:
    copy_pages(book.root, run)
    assert (run / "book" / "intro.md").is_file()
    assert (run / "book" / "papers.yml").is_file()
    assert (run / "book" / "retrieval" / "good.claims.yml").is_file()
    assert not (run / "book" / "retrieval" / "slow.ipynb").exists()
    assert "my own data" in (run / "book" / "retrieval" / "good.ipynb").read_text()
    assert "slow" not in (run / "_toc.yml").read_text()


def test_a_run_is_rendered_with_its_own_ledger_beside_the_stored_one(book, run: Path) -> None:
    page = build_run_html(run, book.root)
    assert page == run / "html" / "index.html"
    chapter = (page.parent / "book" / "retrieval" / "good.html").read_text()
    assert "as executed with my own data" in chapter
    assert not (page.parent / "book" / "retrieval" / "slow.html").exists()
    ledger = (page.parent / "book" / "ledger.html").read_text().replace("&#39;", "'")
    assert "[('good', 'C1', 'inconclusive', 'untested')]" in ledger
    assert not list(run.glob(".rendering*"))


def test_a_failing_rendering_says_why_and_leaves_the_old_pages(book, tmp_path: Path) -> None:
    out = tmp_path / "html"
    out.mkdir()
    (out / "old.html").write_text("old")
    (book.root / "_toc.yml").write_text("format: jb-book\nroot: book/missing\n")
    with pytest.raises(RuntimeError, match="rendering failed"):
        build_html(book.root, out)
    assert (out / "old.html").read_text() == "old"


def test_no_run_is_one_sentence(book, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no run in"):
        build_run_html(tmp_path, book.root)
