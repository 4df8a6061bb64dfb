"""Where the book is, which papers it is about and which chapters are written.

The book's root is the folder with ``_toc.yml``; its pages lie in ``book/`` below it, a chapter at
``book/<part>/<slug>.ipynb``.
"""

import difflib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

PARTS = ("kernels", "networks", "features", "attention", "retrieval", "correspondence", "perception")
BOOK_VARIABLE = "SPARSEBOOK_BOOK"


@dataclass(frozen=True)
class Paper:
    """One of the papers that the book is about, written up or not."""

    slug: str
    part: str
    title: str
    authors: tuple[str, ...]
    year: int
    venue: str
    arxiv: str | None = None
    repository: str | None = None


@dataclass(frozen=True)
class Chapter:
    """A chapter that exists: its notebook has been written."""

    slug: str
    part: str
    path: Path
    kind: Literal["paper", "kernels"]

    @property
    def claims_path(self) -> Path:
        """The declared claims beside the notebook."""
        return self.path.with_name(f"{self.slug}.claims.yml")


def find_book(start: Path | str | None = None) -> Path:
    """Find the book's root: the folder that holds ``_toc.yml``.

    Parameters
    ----------
    start
        Where to look, itself and then every folder above it. By default ``$SPARSEBOOK_BOOK`` if that is
        set (then it must be the root itself), else the working directory.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    named = os.environ.get(BOOK_VARIABLE)
    if start is None and named:
        root = Path(named).expanduser().resolve()
        if not (root / "_toc.yml").is_file():
            raise FileNotFoundError(f"{BOOK_VARIABLE} is {named!r}, but there is no _toc.yml in that folder")
        return root
    here = Path(start if start is not None else Path.cwd()).expanduser().resolve()
    for folder in (here, *here.parents):
        # An executed run is rendered as a book of its own, but the book it was made from is meant.
        if (folder / "_toc.yml").is_file() and (start is not None or not (folder / "run.json").exists()):
            return folder
    raise FileNotFoundError(
        f"no book in {here} or above it (a folder with _toc.yml): go into the checkout, "
        f"give --book FOLDER or set {BOOK_VARIABLE}"
    )


def read_yaml(path: Path) -> Any:
    """Parse a YAML file of the book.

    Raises
    ------
    ValueError
        If it is no valid YAML; the file is named.
    """
    try:
        import yaml
    except ImportError as error:
        raise ImportError("reading the book needs pyyaml: pip install 'sparsebook[book]'") from error
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it was compiled
    try:
        return yaml.load(path.read_text(encoding="utf-8"), loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error


def papers(book: Path | str | None = None) -> list[Paper]:
    """All papers of the book in the order of ``book/papers.yml``, written up or not."""
    path = _root(book) / "book" / "papers.yml"
    entries = read_yaml(path)
    if isinstance(entries, dict):
        entries = entries.get("papers")
    if not isinstance(entries, list):
        raise ValueError(f"{path} must hold a list of papers")
    found = [_paper(entry, path) for entry in entries]
    twice = {paper.slug for paper in found if sum(other.slug == paper.slug for other in found) > 1}
    if twice:
        raise ValueError(f"{path} lists {', '.join(sorted(twice))} more than once")
    return found


def chapters(book: Path | str | None = None) -> list[Chapter]:
    """The chapters that are written, part by part, a part's papers in the order of ``book/papers.yml``."""
    root = _root(book)
    order = {paper.slug: number for number, paper in enumerate(papers(root))}
    found = [_chapter(path) for part in PARTS for path in (root / "book" / part).glob("*.ipynb")]
    found = [chapter for chapter in found if not chapter.slug.startswith(".")]
    return sorted(found, key=lambda c: (PARTS.index(c.part), order.get(c.slug, len(order)), c.slug))


def find_chapters(slugs: Iterable[str], book: Path | str | None = None) -> list[Chapter]:
    """The named chapters in the order given; all that are written if none is named, or by ``all``.

    Raises
    ------
    ValueError
        If a slug is not that of a written chapter; says whether the paper is known.
    """
    slugs = list(slugs)
    written = {chapter.slug: chapter for chapter in chapters(book)}
    if not slugs or slugs == ["all"]:
        return list(written.values())
    for slug in slugs:
        if slug not in written:
            raise ValueError(_unknown(slug, list(written), unwritten(book)))
    return [written[slug] for slug in dict.fromkeys(slugs)]


def unwritten(book: Path | str | None = None) -> list[Paper]:
    """The papers that have no chapter yet."""
    written = {chapter.slug for chapter in chapters(book)}
    return [paper for paper in papers(book) if paper.slug not in written]


def _unknown(slug: str, written: Sequence[str], missing: Sequence[Paper]) -> str:
    if slug in {paper.slug for paper in missing}:
        return f"the chapter {slug!r} is not yet written"
    close = difflib.get_close_matches(slug, [*written, *(paper.slug for paper in missing)], n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"written are: {', '.join(written) or 'none'}"
    return f"there is no chapter {slug!r}; {hint}"


def _root(book: Path | str | None) -> Path:
    return find_book() if book is None else Path(book)


def _chapter(path: Path) -> Chapter:
    part = path.parent.name
    return Chapter(path.stem, part, path, "kernels" if part == "kernels" else "paper")


def _paper(entry: dict[str, Any], path: Path) -> Paper:
    missing = [key for key in ("slug", "part", "title", "authors", "year") if not entry.get(key)]
    if missing:
        raise ValueError(f"{path}: the paper {entry.get('slug', entry)!r} lacks {', '.join(missing)}")
    authors = entry["authors"]
    return Paper(
        slug=str(entry["slug"]),
        part=str(entry["part"]),
        title=str(entry["title"]),
        authors=(authors,) if isinstance(authors, str) else tuple(map(str, authors)),
        year=int(entry["year"]),
        venue=str(entry.get("venue") or ""),
        arxiv=str(entry["arxiv"]) if entry.get("arxiv") else None,
        repository=str(entry["repository"]) if entry.get("repository") else None,
    )
