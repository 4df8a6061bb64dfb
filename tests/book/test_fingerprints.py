"""What makes a chapter run again, and what does not."""

import ast
import json
from pathlib import Path

import pytest

from sparsebook.book import find_chapters, papers
from sparsebook.book.fingerprints import LIBRARY, fingerprint, hash_library, notebook_source

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def hashed(fabricate):
    book = fabricate(good="1")
    chapter = find_chapters(["good"], book.root)[0]
    return book, chapter, lambda **parameters: fingerprint(chapter, book.root, parameters)


def changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return [kind for kind in before if before[kind] != after[kind]]


def test_nothing_changed_is_nothing_to_do(hashed) -> None:
    _, chapter, hashes = hashed
    before = hashes(k=4)
    content = json.loads(chapter.path.read_text())
    content["cells"][2] |= {
        "execution_count": 7,
        "outputs": [{"output_type": "stream", "name": "stdout", "text": "x"}],
    }
    content["metadata"]["sparsebook"] = {"seconds": 3}
    chapter.path.write_text(json.dumps(content, indent=4))
    assert changed(before, hashes(k=4)) == []


def test_every_kind_of_change_is_named(hashed, tmp_path: Path) -> None:
    book, chapter, hashes = hashed
    before = hashes(k=4)
    assert changed(before, hashes(k=5)) == ["parameters"]
    chapter.claims_path.write_text("slug: good")
    assert changed(before, hashes(k=4)) == ["claims"]
    recorded = book.root / "book" / "recorded" / "good" / "growth.csv"
    recorded.parent.mkdir(parents=True)
    recorded.write_text("a,b")
    assert changed(before, hashes(k=4)) == ["claims", "recorded tables"]
    chapter.path.write_text(chapter.path.read_text().replace("k = 3", "k = 2"))
    assert changed(before, hashes(k=4)) == ["notebook", "claims", "recorded tables"]


def test_changed_data_behind_a_path_is_noticed(hashed, tmp_path: Path) -> None:
    _, _, hashes = hashed
    folder = tmp_path / "vectors"
    folder.mkdir()
    before = hashes(mark_path=str(folder))
    (folder / "part.npz").write_bytes(b"123")
    assert changed(before, hashes(mark_path=str(folder))) == ["input data"]


def test_the_library_counts_without_other_papers(tmp_path: Path) -> None:
    for name in (
        "cli/x.py",
        "retrieval/seismic.py",
        "retrieval/blocks.py",
        "experiments/gssf.py",
        "kernels/k.py",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")

    def after(name: str) -> bool:
        hash_library.cache_clear()
        before = hash_library(frozenset({"gssf", "k"}), tmp_path)
        (tmp_path / name).write_text((tmp_path / name).read_text() + "2")
        hash_library.cache_clear()
        return before != hash_library(frozenset({"gssf", "k"}), tmp_path)

    assert [after(name) for name in ("retrieval/seismic.py", "retrieval/blocks.py", "kernels/k.py")] == [
        True
    ] * 3
    assert [after(name) for name in ("cli/x.py", "experiments/gssf.py")] == [False] * 2


def test_no_module_that_counts_imports_one_of_another_paper() -> None:
    """The assumption behind leaving other papers' modules out of a chapter's hash."""
    slugs = {paper.slug for paper in papers(CHECKOUT)}
    wrong = []
    for path in LIBRARY.rglob("*.py"):
        own = {piece.removesuffix(".py") for piece in path.relative_to(LIBRARY).parts}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sparsebook."):
                names = {*node.module.split("."), *(alias.name for alias in node.names)}
            elif isinstance(node, ast.Import):
                names = {
                    p
                    for alias in node.names
                    if alias.name.startswith("sparsebook.")
                    for p in alias.name.split(".")
                }
            else:
                continue
            wrong += [f"{path.relative_to(LIBRARY)} imports {slug}" for slug in (names & slugs) - own]
    assert wrong == []


def test_the_injected_cell_of_an_executed_notebook_is_not_its_source(fabricate, tmp_path: Path) -> None:
    book = fabricate()
    cells = [
        book.markdown("# T"),
        book.code("k = 3", "parameters"),
        book.code("k = 4", "injected-parameters"),
    ]
    (tmp_path / "a.ipynb").write_text(json.dumps(book.notebook(*cells)))
    (tmp_path / "b.ipynb").write_text(json.dumps(book.notebook(*cells[:2])))
    assert notebook_source(tmp_path / "a.ipynb") == notebook_source(tmp_path / "b.ipynb")
