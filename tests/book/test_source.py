"""Showing the code that runs."""

import ast
import functools

import numba
import pytest

from sparsebook.book import layout, show_source
from sparsebook.book.source import SOURCE_KEY, source_of


def documented(x: float) -> float:
    """Say a first thing.

    And many more.
    """
    return x + 1


@functools.wraps(documented)
def wrapper(x: float) -> float:
    return documented(x)


class Thing:
    """A thing.

    Of some length.
    """

    def method(self) -> int:
        """Return
        one.
        """
        return 1


@numba.njit
def compiled(x):
    return 2 * x


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list:
    calls: list = []
    monkeypatch.setattr("IPython.display.display", lambda data, **more: calls.append((data, more)))
    return calls


def test_nothing_is_stripped_and_the_markup_is_the_books(shown: list) -> None:
    show_source(documented, Thing.method)
    data, more = shown[0]
    assert "    And many more." in data["text/plain"]
    assert data["text/plain"].index("def documented") < data["text/plain"].index("def method")
    assert data["text/markdown"] == f"```python\n{data['text/plain']}```"
    assert '<div class="highlight"><pre>' in data["text/html"]
    assert '<span class="k">def</span>' in data["text/html"]
    assert more["metadata"][SOURCE_KEY]["objects"][0].endswith(":documented")


def test_wrapped_and_compiled_functions_are_shown_as_written() -> None:
    assert source_of(wrapper) == source_of(documented)
    assert "return 2 * x" in source_of(compiled)
    assert source_of(layout).startswith('"""Where the book is')


def test_docstrings_can_be_cut_to_their_first_line() -> None:
    for item in (documented, Thing, layout):
        short = source_of(item, docstrings=False)
        assert ast.unparse(_without_docstrings(short)) == ast.unparse(_without_docstrings(source_of(item)))
    assert '    """Say a first thing."""\n    return x + 1' in source_of(documented, docstrings=False)
    assert "Of some length" not in source_of(Thing, docstrings=False)


def _without_docstrings(source: str) -> ast.Module:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return tree


@pytest.mark.parametrize("item", [len, 3, "text"])
def test_what_has_no_source_is_refused(item: object) -> None:
    with pytest.raises(ValueError, match="has no Python source"):
        show_source(item)


def test_nothing_to_show_is_refused() -> None:
    with pytest.raises(ValueError, match="objects is empty"):
        show_source()
