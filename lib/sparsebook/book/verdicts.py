"""Read the claims of executed chapters back: of the stored book, or of a run."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sparsebook.book.layout import Chapter, chapters, find_book

VERDICTS = ("holds", "fails", "inconclusive", "untested")
RUN_FILE = "run.json"


def ledger(book: Path | str | None = None, run: Path | str | None = None) -> list[dict[str, Any]]:
    """All claims of all executed chapters.

    Parameters
    ----------
    book
        The book's root (found from the working directory by default). The folder of a run is a book too.
    run
        The folder of a run: its claims instead of the stored ones, each with the stored verdict of the
        same claim under ``stored_verdict`` (``None`` where the stored book has none).

    Returns
    -------
    list of dict
        Rows as the chapters' ledgers wrote them: slug, part, id, statement, verdict, measured and so on.
        A chapter that failed in a run contributes its declared claims as untested.
    """
    root = find_book() if book is None else Path(book)
    if run is None:
        return _rows(root, chapters_of(root))
    folder = run_folder(run)
    stored = {(row["slug"], row["id"]): row["verdict"] for row in _rows(root, chapters(root))}
    rows = _rows(folder, chapters_of(folder), declared_in=root)
    return [row | {"stored_verdict": stored.get((row["slug"], row["id"]))} for row in rows]


def count_verdicts(rows: Iterable[dict[str, Any]]) -> dict[str, int]:
    """How often each verdict occurs, in their usual order, those that do not occur left out."""
    counts = Counter(row["verdict"] for row in rows)
    return {verdict: counts[verdict] for verdict in VERDICTS if counts[verdict]}


def run_folder(run: Path | str) -> Path:
    """The folder of a run, checked.

    Raises
    ------
    FileNotFoundError
        If there is no run in it.
    """
    folder = Path(run).expanduser().resolve()
    if not (folder / RUN_FILE).is_file():
        raise FileNotFoundError(f"there is no run in {folder} (no {RUN_FILE})")
    return folder


def chapters_of(root: Path) -> list[Chapter]:
    """The chapters of a book; of a run, those that it executed, also before it has been rendered."""
    if not (root / RUN_FILE).is_file():
        return chapters(root)
    done = json.loads((root / RUN_FILE).read_text(encoding="utf-8"))["chapters"]
    paths = {slug: root / "book" / entry["part"] / f"{slug}.ipynb" for slug, entry in done.items()}
    return [
        Chapter(slug, path.parent.name, path, "kernels" if path.parent.name == "kernels" else "paper")
        for slug, path in paths.items()
    ]


def read_verdicts(chapter: Chapter) -> list[dict[str, Any]]:
    """The claims of one executed chapter; none for a kernel's chapter that declares none.

    Raises
    ------
    ValueError
        If the notebook does not hold the report that it should.
    """
    from sparsebook.claims import MIME, read_claims

    if chapter.kind == "kernels" and MIME not in chapter.path.read_text(encoding="utf-8"):
        return []
    return read_claims(chapter.path)


def _rows(root: Path, found: Iterable[Chapter], declared_in: Path | None = None) -> list[dict[str, Any]]:
    failures = _failures(root)
    rows: list[dict[str, Any]] = []
    for chapter in found:
        declared = (declared_in or root) / "book" / chapter.part / f"{chapter.slug}.claims.yml"
        if chapter.slug in failures:
            rows += _not_reached(declared, f"the chapter stopped: {failures[chapter.slug]['summary']}")
            continue
        try:
            rows += read_verdicts(chapter)
        except (ValueError, FileNotFoundError):
            rows += _not_reached(declared, "the notebook has not been executed to its end")
    return rows


def _failures(root: Path) -> dict[str, dict[str, Any]]:
    path = root / RUN_FILE
    if not path.is_file():
        return {}
    entries = json.loads(path.read_text(encoding="utf-8"))["chapters"]
    return {slug: entry["failure"] for slug, entry in entries.items() if entry["status"] == "failed"}


def _not_reached(declared: Path, why: str) -> list[dict[str, Any]]:
    """Every declared claim as untested."""
    from sparsebook.claims import Judgement, load_claims
    from sparsebook.claims.reports import row_of

    if not declared.is_file():
        return []
    declaration = load_claims(declared)
    return [
        row_of(declaration, claim, Judgement("untested", why), scale="", machine="")
        for claim in declaration.claims
    ]
