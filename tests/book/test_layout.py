"""Finding the book and what it holds."""

from pathlib import Path

import pytest

from sparsebook.book import chapters, find_book, find_chapters, papers, unwritten
from sparsebook.book.layout import PARTS

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARSEBOOK_BOOK", raising=False)


def test_the_book_is_found_from_every_folder_below_it(fabricate, monkeypatch: pytest.MonkeyPatch) -> None:
    book = fabricate(good="1")
    for folder in (book.root, book.root / "book", book.root / "book" / "retrieval"):
        monkeypatch.chdir(folder)
        assert find_book() == book.root
    monkeypatch.chdir("/")
    assert find_book(book.root / "book") == book.root


def test_no_book_is_one_sentence_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no book in .*give --book FOLDER"):
        find_book(tmp_path)


def test_the_variable_names_the_root_and_must_be_right(fabricate, monkeypatch: pytest.MonkeyPatch) -> None:
    book = fabricate(good="1")
    monkeypatch.setenv("SPARSEBOOK_BOOK", str(book.root))
    assert find_book() == book.root
    monkeypatch.setenv("SPARSEBOOK_BOOK", str(book.root / "book"))
    with pytest.raises(
        FileNotFoundError, match=r"SPARSEBOOK_BOOK is '.*' but there is no _toc.yml|SPARSEBOOK_BOOK is"
    ):
        find_book()


def test_from_inside_a_rendered_run_the_book_is_meant_and_not_the_run(
    fabricate, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = fabricate(good="1")
    run = book.root / "_build" / "runs" / "book"
    (run / "book").mkdir(parents=True)
    (run / "_toc.yml").write_text("root: book/intro")
    (run / "run.json").write_text("{}")
    monkeypatch.chdir(run / "book")
    assert find_book() == book.root
    assert find_book(run) == run


def test_chapters_come_in_the_order_of_the_papers(fabricate) -> None:
    book = fabricate(slow="1", good="1")
    book.add("matmul", book.chapter("matmul", "1"), part="kernels")
    (book.root / "book" / "retrieval" / ".hidden.ipynb").write_text("{}")
    found = chapters(book.root)
    assert [(chapter.slug, chapter.kind) for chapter in found] == [
        ("matmul", "kernels"), ("good", "paper"), ("slow", "paper"),
    ]  # fmt: skip
    assert found[1].claims_path.name == "good.claims.yml"
    assert [paper.slug for paper in unwritten(book.root)] == ["bad", "spark"]


def test_chapters_by_name_or_all(fabricate) -> None:
    book = fabricate(good="1", slow="1")
    assert [c.slug for c in find_chapters(["slow", "good", "slow"], book.root)] == ["slow", "good"]
    for everything in ([], ["all"]):
        assert [c.slug for c in find_chapters(everything, book.root)] == ["good", "slow"]


@pytest.mark.parametrize(
    ("slug", "sentence"),
    [("spark", "'spark' is not yet written"), ("goood", "did you mean 'good'"), ("xyz", "written are: good")],
)
def test_an_unknown_chapter_is_explained(fabricate, slug: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        find_chapters([slug], fabricate(good="1").root)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("papers: [", "is not valid YAML"),
        ("papers: 3", "must hold a list of papers"),
        ("- {slug: a, part: retrieval, title: T, year: 2024}", "'a' lacks authors"),
        (
            "[" + 2 * "{slug: a, part: retrieval, title: T, year: 2024, authors: B}," + "]",
            "lists a more than once",
        ),
    ],
)
def test_a_wrong_list_of_papers_is_refused(fabricate, text: str, sentence: str) -> None:
    book = fabricate()
    (book.root / "book" / "papers.yml").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        papers(book.root)


def test_the_books_own_list_has_forty_papers_in_known_parts() -> None:
    found = papers(CHECKOUT)
    assert len(found) == 40
    assert {paper.part for paper in found} == set(PARTS) - {"kernels"}
    assert all(len(paper.authors) >= 1 and 1990 < paper.year < 2030 for paper in found)
