"""The forty papers: one list, and a bibliography that agrees with it."""

import re
from collections import Counter

import pytest
import yaml

from sparsebook.book import find_book, papers

BOOK = find_book(__file__)
CONTENT = yaml.safe_load((BOOK / "book" / "papers.yml").read_text(encoding="utf-8"))
PAPERS = CONTENT["papers"]
COUNTS = {"networks": 11, "features": 8, "attention": 5, "retrieval": 5, "correspondence": 6, "perception": 5}


@pytest.fixture(scope="module")
def bibliography():
    database = pytest.importorskip("pybtex.database")
    return database.parse_file(str(BOOK / "book" / "references.bib")).entries


def test_forty_papers_part_by_part() -> None:
    assert Counter(paper["part"] for paper in PAPERS) == COUNTS
    assert list(CONTENT["parts"]) == list(COUNTS)
    assert len({paper["slug"] for paper in PAPERS}) == 40
    # A part's papers stand together, so that the list reads as the table of contents.
    order = [paper["part"] for paper in PAPERS]
    assert order == sorted(order, key=list(COUNTS).index)


@pytest.mark.parametrize("paper", PAPERS, ids=[paper["slug"] for paper in PAPERS])
def test_entry_is_complete(paper: dict) -> None:
    keys = ["slug", "part", "title", "authors", "year", "venue", "arxiv", "repository", "summary"]
    assert list(paper) == keys
    assert re.fullmatch(r"[a-z][a-z0-9_]*", paper["slug"])
    assert all(isinstance(author, str) and " " in author for author in paper["authors"])
    assert re.fullmatch(r"\d{4}\.\d{5}", paper["arxiv"])
    # A paper is not published before it was first put online.
    assert int(paper["arxiv"][:2]) + 2000 <= paper["year"] <= 2026
    assert paper["repository"] is None or paper["repository"].startswith("https://github.com/")
    assert paper["summary"].endswith(".")


@pytest.mark.parametrize("paper", PAPERS, ids=[paper["slug"] for paper in PAPERS])
def test_bibliography_agrees(paper: dict, bibliography) -> None:
    entry = bibliography[paper["slug"]]
    fields = entry.fields
    assert fields["title"].strip("{}").replace(r"\&", "&") == paper["title"]
    assert [str(person) for person in entry.persons["author"]] == [
        str(person) for person in map(_person, paper["authors"])
    ]
    assert int(fields["year"]) == paper["year"]
    assert fields["eprint"] == paper["arxiv"]
    place = fields.get("journal") or fields.get("booktitle") or fields.get("howpublished")
    assert place == paper["venue"]


def _person(name: str):
    from pybtex.database import Person

    return Person(name)


def test_the_library_reads_the_same_list() -> None:
    assert [paper.slug for paper in papers(BOOK)] == [paper["slug"] for paper in PAPERS]


def test_the_table_of_contents_names_no_page_that_is_missing() -> None:
    text = (BOOK / "_toc.yml").read_text(encoding="utf-8")
    names = re.findall(r"(?:file|root): (\S+)", text)
    missing = [
        name for name in names if not any((BOOK / f"{name}{end}").is_file() for end in (".md", ".ipynb"))
    ]
    assert missing == []


def test_every_chapter_is_in_the_table_of_contents() -> None:
    from sparsebook.book import chapters

    text = (BOOK / "_toc.yml").read_text(encoding="utf-8")
    absent = [chapter.slug for chapter in chapters(BOOK) if f"book/{chapter.part}/{chapter.slug}" not in text]
    assert absent == []
