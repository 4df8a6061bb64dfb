"""The book as data: where it is, what it holds, how its chapters are run, read back and rendered.

Nothing heavy is imported here: notebooks and the command line both start with this package.
"""

from importlib import import_module
from typing import Any

from sparsebook.book.layout import (
    Chapter,
    Paper,
    chapters,
    find_book,
    find_chapters,
    papers,
    unwritten,
)
from sparsebook.book.source import show_source
from sparsebook.book.verdicts import count_verdicts, ledger

_LATER = {
    "plan_chapters": "running",
    "run_chapters": "running",
    "store_chapter": "running",
    "build_html": "rendering",
    "build_run_html": "rendering",
}

__all__ = [
    "Chapter",
    "Paper",
    "build_html",
    "build_run_html",
    "chapters",
    "count_verdicts",
    "find_book",
    "find_chapters",
    "ledger",
    "papers",
    "plan_chapters",
    "run_chapters",
    "show_source",
    "store_chapter",
    "unwritten",
]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
