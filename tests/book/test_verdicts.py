"""Reading claims back: of the stored book and of a run."""

import json
from pathlib import Path

import pytest

from sparsebook.book import count_verdicts, ledger


@pytest.fixture
def book(fabricate):
    """A book with a chapter that was executed, one that was not, and a kernel's without claims."""
    book = fabricate(slow="1")
    content = book.chapter("good", "1")
    content["cells"][-1]["outputs"] = [output("good", "holds", "fails")]
    book.add("good", content)
    book.add("matmul", book.notebook(book.markdown("# Kernels")), part="kernels")
    return book


def output(slug: str, *verdicts: str) -> dict:
    rows = [
        {"slug": slug, "part": "retrieval", "id": f"C{number}", "verdict": verdict}
        for number, verdict in enumerate(verdicts, start=1)
    ]
    data = {"application/vnd.sparsebook.claims+json": {"claims": rows}, "text/plain": ""}
    return {"output_type": "display_data", "data": data, "metadata": {}}


def test_all_claims_of_all_chapters(book) -> None:
    rows = ledger(book.root)
    assert [(row["slug"], row["id"], row["verdict"]) for row in rows] == [
        ("good", "C1", "holds"),
        ("good", "C2", "fails"),
        ("slow", "C1", "untested"),
        ("slow", "C2", "untested"),
    ]
    assert rows[2]["why"] == "the notebook has not been executed to its end"
    assert rows[2]["statement"] == "C1 of slow"
    assert count_verdicts(rows) == {"holds": 1, "fails": 1, "untested": 2}


def test_a_run_beside_the_stored_book(book, tmp_path: Path) -> None:
    run = tmp_path / "run"
    content = book.chapter("good", "1")
    content["cells"][-1]["outputs"] = [output("good", "fails", "fails")]
    (run / "book" / "retrieval").mkdir(parents=True)
    (run / "book" / "retrieval" / "good.ipynb").write_text(json.dumps(content))
    failure = {"summary": "cell 3 (In [2]): KeyError: 'x'"}
    chapters = {
        "good": {"part": "retrieval", "status": "done", "failure": None},
        "slow": {"part": "retrieval", "status": "failed", "failure": failure},
    }
    (run / "run.json").write_text(json.dumps({"chapters": chapters}))
    rows = ledger(book.root, run)
    assert [(row["id"], row["verdict"], row["stored_verdict"]) for row in rows if row["slug"] == "good"] == [
        ("C1", "fails", "holds"),
        ("C2", "fails", "fails"),
    ]
    # A chapter that stopped before any notebook was kept still has its claims, untested.
    assert [row["verdict"] for row in rows if row["slug"] == "slow"] == ["untested", "untested"]
    assert rows[-1]["why"].startswith("the chapter stopped: cell 3")


def test_no_run_is_one_sentence(book, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no run in"):
        ledger(book.root, tmp_path)
