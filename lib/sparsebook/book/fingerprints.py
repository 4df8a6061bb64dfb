"""What a chapter's result depends on, as hashes: equal hashes mean that it need not run again."""

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from sparsebook.book.layout import Chapter, papers

LIBRARY = Path(__file__).resolve().parents[1]
# Modules that no result can depend on: the command line and the rendering.
_NO_INFLUENCE = ("__main__.py", "cli/", "sphinx_ext/", "book/rendering.py", "book/contract.py")
_ENGINES = ("torch", "numpy", "numba", "scipy")


def fingerprint(chapter: Chapter, root: Path, parameters: Mapping[str, Any]) -> dict[str, str]:
    """Hash everything that a chapter's result depends on, each kind apart so that a change can be named."""
    recorded = root / "book" / "recorded" / chapter.slug
    return {
        "notebook": _hash(notebook_source(chapter.path)),
        "library": library_hash(chapter, root),
        "claims": _hash_files(chapter.path.parent, [chapter.claims_path]),
        "recorded tables": _hash_files(recorded, recorded.rglob("*")),
        "files beside it": _hash_files(chapter.path.parent, chapter.path.parent.glob(f"{chapter.slug}.s*")),
        "parameters": _hash(json.dumps(dict(parameters), sort_keys=True)),
        "input data": _hash(json.dumps([_stamp(value) for _, value in sorted(parameters.items())])),
        "versions": _hash(json.dumps(versions())),
    }


def notebook_source(path: Path) -> str:
    """The cells of a notebook without outputs and counts: storing it again changes nothing here."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = [
        (cell["cell_type"], "".join(cell["source"]), cell["metadata"].get("tags", []))
        for cell in notebook["cells"]
        if "injected-parameters" not in cell["metadata"].get("tags", [])
    ]
    return json.dumps(cells)


def library_hash(chapter: Chapter, root: Path) -> str:
    """Hash of the library's sources, without the modules of other papers, which a paper may not import."""
    slugs = {paper.slug for paper in papers(root)} if chapter.kind == "paper" else set()
    return hash_library(frozenset(slugs - {chapter.slug}))


@cache
def hash_library(without: frozenset[str] = frozenset(), library: Path = LIBRARY) -> str:
    """Hash of every source file of the library except those of the papers in ``without``."""
    return _hash_files(library, (p for p in library.rglob("*.py") if not _left_out(p, library, without)))


def versions() -> dict[str, str]:
    """Python and the numerical packages whose version can change a result."""
    found = {"python": sys.version.split()[0]}
    for name in _ENGINES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def _left_out(path: Path, library: Path, without: frozenset[str]) -> bool:
    relative = path.relative_to(library)
    address = relative.with_suffix("").parts
    of_a_paper = len(address) > 1 and address[0] not in ("kernels", "data", "models", "evaluation", "book")
    return relative.as_posix().startswith(_NO_INFLUENCE) or (of_a_paper and address[1] in without)


def _stamp(value: Any) -> Any:
    """Size and time of the files that a parameter names: large data is not read to notice that it changed."""
    path = Path(value) if isinstance(value, str) and "/" in value.replace("\\", "/") else None
    if path is None or not path.exists():
        return None
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _hash_files(folder: Path, files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(files):
        if path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
