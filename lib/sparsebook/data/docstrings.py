"""Documentation search over Python: the first paragraph of a docstring looks for the rest of it.

The text is that of the standard library and of the packages that are installed, so it needs no download; the
number of pairs depends on their versions. Collecting imports hundreds of modules, which is done once, in a
process of its own, and kept in the cache.
"""

import hashlib
import importlib
import inspect
import json
import os
import pkgutil
import re
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
from jaxtyping import Int64

from sparsebook.data.catalogue import FromSource
from sparsebook.files import cached, missing_package

# Import name and the distribution that brings it; of each, its public modules one level down are read.
PACKAGES = {
    "numpy": "numpy",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "skimage": "scikit-image",
    "torch": "torch",
}
# 45 modules that are there in Python 3.11 to 3.13 on every system.
STANDARD_LIBRARY = (
    "argparse",
    "ast",
    "asyncio",
    "base64",
    "bisect",
    "calendar",
    "collections",
    "concurrent.futures",
    "configparser",
    "contextlib",
    "copy",
    "csv",
    "datetime",
    "decimal",
    "difflib",
    "email",
    "enum",
    "fractions",
    "functools",
    "glob",
    "gzip",
    "hashlib",
    "heapq",
    "inspect",
    "io",
    "itertools",
    "json",
    "logging",
    "math",
    "multiprocessing",
    "operator",
    "os",
    "pathlib",
    "pickle",
    "random",
    "re",
    "shutil",
    "socket",
    "statistics",
    "string",
    "subprocess",
    "tempfile",
    "threading",
    "typing",
    "zipfile",
)
_NOT_PUBLIC = {"conftest", "setup", "test", "testing", "tests"}
_VERSION = "1"
_SHARES = (("train", 0.7), ("validation", 0.1), ("test", 0.2))


@dataclass(frozen=True, eq=False)
class DocstringPairs(FromSource):
    """Queries and documents; query i belongs to document i.

    Attributes
    ----------
    queries : first paragraphs of docstrings without a signature line, 15 to 200 characters
    documents : what follows, more than 80 characters
    names : where each was found, for example ``"numpy.linalg.svd"``
    modules : the module it was found in, for example ``"numpy.linalg"``
    train, validation, test : numbers of the pairs in each part, about 70, 10 and 20 percent; the pairs of
        one module are in one part. Retrieval is over all documents.
    """

    source_name = "docstrings"

    queries: tuple[str, ...]
    documents: tuple[str, ...]
    names: tuple[str, ...]
    modules: tuple[str, ...]
    train: Int64[np.ndarray, " train"]
    validation: Int64[np.ndarray, " validation"]
    test: Int64[np.ndarray, " test"]


@cache
def docstring_pairs() -> DocstringPairs:
    """Pairs from numpy, scipy, scikit-learn, scikit-image, torch and 45 modules of the standard library.

    Classes, functions and methods of C types that a module offers publicly count, each docstring once.
    The definition is that of the corpus in our chapter on learned sparse retrieval.

    Raises
    ------
    MissingInput : one of the packages is not installed
    """
    folder = cached("docstrings", _build, _version())
    rows = json.loads((folder / "pairs.json").read_text(encoding="utf-8"))
    modules, names, queries, documents = (tuple(column) for column in zip(*rows, strict=True))
    parts = _split(modules)
    return DocstringPairs(queries, documents, names, modules, **parts)


def _split(modules: tuple[str, ...]) -> dict[str, Int64[np.ndarray, " pairs"]]:
    """Numbers of the pairs in each part; whole modules go where most is missing, in the order of a hash."""
    sizes = Counter(modules)
    missing = {part: share * len(modules) for part, share in _SHARES}
    part_of = {}
    for module in sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).digest()):
        part_of[module] = max(missing, key=missing.__getitem__)
        missing[part_of[module]] -= sizes[module]
    chosen = np.array([part_of[module] for module in modules])
    return {part: np.flatnonzero(chosen == part).astype(np.int64) for part, _ in _SHARES}


def _version() -> str:
    """Changes with the versions that the text depends on."""
    for package, distribution in PACKAGES.items():
        if find_spec(package) is None:
            raise missing_package(distribution)
    versions = [sys.version, *(metadata.version(distribution) for distribution in PACKAGES.values())]
    digest = hashlib.sha256("\n".join([_VERSION, *versions, *STANDARD_LIBRARY]).encode()).hexdigest()
    return f"{_VERSION}-{digest[:12]}"


def _build(folder: Path) -> None:
    # A process of its own: what it imports, and with which side effects, stays there; and what happens to be
    # imported here already cannot change the result.
    library = str(Path(__file__).resolve().parents[2])
    search = os.pathsep.join([library, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    command = [sys.executable, "-W", "ignore", "-m", "sparsebook.data.docstrings", str(folder / "pairs.json")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": search}, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"collecting the docstrings failed:\n{done.stderr[-2000:]}")


# --- collecting, in a process of its own -----------------------------------------------------------------


def collect() -> list[tuple[str, str, str, str]]:
    """Module, name, query and document of every pair, each query and each document once."""
    rows: list[tuple[str, str, str, str]] = []
    seen: set[str] = set()
    for module in _modules():
        for name, value in _public(module):
            pair = _pair(getattr(value, "__doc__", None))
            if pair is not None and not seen.intersection(pair):
                seen.update(pair)
                rows.append((module.__name__, f"{module.__name__}.{name}", *pair))
    return rows


def _modules() -> Iterator[ModuleType]:
    for package in PACKAGES:
        root = importlib.import_module(package)
        yield root
        below = sorted(module.name for module in pkgutil.iter_modules(root.__path__))
        for name in below:
            if not name.startswith("_") and name not in _NOT_PUBLIC:
                yield from _imported(f"{package}.{name}")
    for name in STANDARD_LIBRARY:
        yield from _imported(name)


def _imported(name: str) -> Iterator[ModuleType]:
    try:
        yield importlib.import_module(name)
    except (ImportError, AttributeError, RuntimeError, OSError):
        return  # a module for another system or for a package that is not installed


def _public(module: ModuleType) -> Iterator[tuple[str, object]]:
    names = getattr(module, "__all__", None) or [name for name in dir(module) if not name.startswith("_")]
    for name in sorted(names):
        try:
            value = getattr(module, name, None)
        except ImportError:
            continue  # scikit-learn's way to say that something is experimental
        if callable(value):
            yield name, value


_PARAGRAPHS = re.compile(r"\n\s*\n")


def _pair(docstring: object) -> tuple[str, str] | None:
    if not isinstance(docstring, str):
        return None
    text = _without_signature(inspect.cleandoc(docstring))
    first, *rest = _PARAGRAPHS.split(text)
    query, document = " ".join(first.split()), "\n\n".join(rest).strip()
    return (query, document) if 15 <= len(query) <= 200 and len(document) > 80 else None


def _without_signature(text: str) -> str:
    """Drop an opening like ``dot(a, b, out=None) -> array``: the lines that its brackets reach over."""
    if not re.match(r"[\w.]+\(", text):
        return text
    depth = 0
    lines = text.splitlines()
    for number, line in enumerate(lines):
        depth += line.count("(") - line.count(")")
        if depth <= 0:
            return "\n".join(lines[number + 1 :]).lstrip("\n")
    return text


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    Path(sys.argv[1]).write_text(json.dumps(collect(), ensure_ascii=False), encoding="utf-8")
