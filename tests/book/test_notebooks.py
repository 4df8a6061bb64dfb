"""The contract of a chapter, kept by every stored notebook (the rules: ``sparsebook.book.contract``)."""

import json
from pathlib import Path

import pytest

from sparsebook.book import chapters, papers
from sparsebook.book.contract import Notebook, Rule, rules_for

ROOT = Path(__file__).parents[2]
CASES = [(chapter, rule) for chapter in chapters(ROOT) for rule in rules_for(chapter)]


@pytest.mark.parametrize(
    ("chapter", "rule"), CASES, ids=[f"{chapter.slug}-{rule.__name__}" for chapter, rule in CASES]
)
def test_chapter(chapter, rule: Rule) -> None:
    assert rule(Notebook(chapter, ROOT)) == []


def test_every_claims_file_belongs_to_a_paper() -> None:
    known = {f"{paper.part}/{paper.slug}" for paper in papers(ROOT)}
    files = (ROOT / "book").glob("*/*.claims.yml")
    assert {f"{path.parent.name}/{path.name.removesuffix('.claims.yml')}" for path in files} <= known


def test_the_ledger_is_never_stored_executed() -> None:
    pages = [json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "book").glob("*.ipynb")]
    code = [cell for page in pages for cell in page["cells"] if cell["cell_type"] == "code"]
    assert [cell for cell in code if cell["outputs"] or cell["execution_count"]] == []
