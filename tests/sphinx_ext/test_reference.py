"""The library's reference is read from the source and says what can be called."""

import ast
from pathlib import Path

import pytest

from sparsebook.sphinx_ext import reference

LIBRARY = Path(reference.__file__).parents[1]


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("def f(a, b=1, *rest, c, d='x', **more): ...", "f(a, b=1, *rest, c, d='x', **more)"),
        ("def f(a, /, *, b): ...", "f(a, *, b)"),
        ("class C:\n    def __init__(self, a, b=2): ...", "C(a, b=2)"),
        ("@dataclass(frozen=True)\nclass C:\n    a: int\n    b: int = 2", "C(a, b=2)"),
        ("class C(ValueError): ...", "C"),
        ("@property\ndef f(self): ...", "f"),
        ("@classmethod\ndef f(cls, a): ...", "f(a)"),
    ],
)
def test_signature(source: str, shown: str) -> None:
    (node,) = ast.parse(source).body
    assert reference.signature(node) == shown


def test_only_documented_public_names_are_listed() -> None:
    tree = ast.parse('def f():\n    "Doc."\ndef _g():\n    "Doc."\ndef h(): ...\nclass C:\n    "Doc."')
    assert [node.name for node in reference.definitions(tree)] == ["f", "C"]


def test_modules_are_those_to_import() -> None:
    names = {reference.module_name(path, LIBRARY) for path in reference.modules(LIBRARY)}
    assert {"sparsebook.plotting", "sparsebook.files", "sparsebook.kernels"} <= names
    assert not {name for name in names if name.endswith((".cpu", ".cuda", ".__main__"))}


def test_back_quotes_become_code() -> None:
    pieces = reference.inline("Give ``alpha`` or `beta` now.")
    assert [(type(piece).__name__, piece.astext()) for piece in pieces] == [
        ("Text", "Give "),
        ("literal", "alpha"),
        ("Text", " or "),
        ("literal", "beta"),
        ("Text", " now."),
    ]


def test_the_page_has_a_section_for_this_very_module() -> None:
    text = "\n".join(section.astext() for section in reference.sections(LIBRARY))
    assert "sparsebook.plotting" in text
    assert "draw_front(axes, cost, quality, method)" in text
