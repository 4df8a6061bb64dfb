"""Render the stored book, or a run as a book of its own."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sparsebook.book.layout import BOOK_VARIABLE, PARTS, find_book, read_yaml
from sparsebook.book.verdicts import RUN_FILE, run_folder

STORED_BOOK_VARIABLE = "SPARSEBOOK_STORED_BOOK"
_JUPYTER_BOOK = "from jupyter_book.cli.main import main; main()"


def build_html(
    book: Path | str | None = None, out: Path | str | None = None, *, strict: bool = False
) -> Path:
    """Render the stored book with Jupyter Book.

    Parameters
    ----------
    book
        The book's root; found from the working directory by default.
    out
        The folder for the pages, replaced as a whole once rendering has succeeded; ``_build/html`` of the
        book by default.
    strict
        Treat every warning as an error.

    Returns
    -------
    Path
        The first page.

    Raises
    ------
    RuntimeError
        If rendering fails; carries the end of what Jupyter Book said.
    """
    root = find_book() if book is None else Path(book).resolve()
    target = root / "_build" / "html" if out is None else Path(out).resolve()
    return _build(root, target, {BOOK_VARIABLE: str(root)}, strict)


def build_run_html(run: Path | str, book: Path | str | None = None, *, strict: bool = False) -> Path:
    """Render the notebooks that a run executed, with its own ledger, as ``<run>/html``.

    The run's folder becomes a book: the stored book's pages around the executed notebooks. A chapter that
    failed is shown as far as it came, with a note below its title; chapters that did not run are left out.

    Returns
    -------
    Path
        The first page.

    Raises
    ------
    FileNotFoundError
        If there is no run in that folder.
    RuntimeError
        If rendering fails.
    """
    folder = run_folder(run)
    root = find_book() if book is None else Path(book).resolve()
    copy_pages(root, folder)
    variables = {BOOK_VARIABLE: str(folder), STORED_BOOK_VARIABLE: str(root)}
    return _build(folder, folder / "html", variables, strict)


def copy_pages(root: Path, folder: Path) -> None:
    """Put everything of a book but its chapters' notebooks into the folder of a run.

    The table of contents is cut to the chapters that the run holds.
    """
    for path in sorted(root.glob("_*.yml")) + [path for path in root.glob("*.md") if path.is_file()]:
        shutil.copyfile(path, folder / path.name)
    for path in _page_files(root / "book"):
        target = folder / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    entries = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))["chapters"]
    held = {f"book/{entry['part']}/{slug}" for slug, entry in entries.items()}
    held = {name for name in held if (folder / f"{name}.ipynb").is_file()}
    toc = cut_toc(read_yaml(root / "_toc.yml"), held)
    import yaml

    (folder / "_toc.yml").write_text(yaml.safe_dump(toc, sort_keys=False), encoding="utf-8")


def cut_toc(toc: Any, held: set[str]) -> Any:
    """A table of contents without the chapters that are not in ``held``, and without parts left empty."""
    if isinstance(toc, dict):
        cut = {key: cut_toc(value, held) for key, value in toc.items()}
        return cut
    if not isinstance(toc, list):
        return toc
    kept = []
    for entry in toc:
        name = entry.get("file", "") if isinstance(entry, dict) else ""
        if _is_chapter(name) and name.removesuffix(".ipynb") not in held:
            continue
        cut = cut_toc(entry, held)
        if not (isinstance(cut, dict) and any(cut.get(key) == [] for key in ("chapters", "sections"))):
            kept.append(cut)
        elif "file" in cut:
            kept.append({key: value for key, value in cut.items() if value != []})
    return kept


def _is_chapter(name: str) -> bool:
    pieces = name.split("/")
    return len(pieces) == 3 and pieces[0] == "book" and pieces[1] in PARTS


def _page_files(pages: Path) -> list[Path]:
    """The files of the book's folder but chapters, caches and hidden ones."""
    found = []
    for path in sorted(pages.rglob("*")):
        pieces = path.relative_to(pages).parts
        hidden = any(piece.startswith((".", "__pycache__")) for piece in pieces)
        chapter = path.suffix == ".ipynb" and pieces[0] in PARTS
        if path.is_file() and not hidden and not chapter:
            found.append(path)
    return found


def _build(source: Path, target: Path, variables: dict[str, str], strict: bool) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    # Rendered beside its place and moved there when complete: an interrupted run leaves the old pages.
    with tempfile.TemporaryDirectory(prefix=".rendering-", dir=target.parent) as folder:
        command = [sys.executable, "-c", _JUPYTER_BOOK, "build", str(source), "--path-output", folder]
        command += ["-W", "--keep-going"] if strict else []
        done = subprocess.run(
            command, env={**os.environ, **variables}, capture_output=True, text=True, cwd=source
        )
        pages = Path(folder) / "_build" / "html"
        if done.returncode != 0 or not (pages / "index.html").is_file():
            said = (done.stdout + done.stderr).strip().splitlines()[-25:]
            raise RuntimeError("rendering failed:\n" + "\n".join(said))
        if target.exists():
            shutil.rmtree(target)
        shutil.move(pages, target)
    return target / "index.html"
