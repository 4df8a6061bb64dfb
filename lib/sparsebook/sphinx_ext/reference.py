"""The library's reference page, made from docstrings without importing a module.

Reading the source instead of importing it keeps the page fast, independent of optional packages, and free of
what a decorator does to a signature.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

TITLES = {
    "kernels": "Kernels: sparse primitives",
    "data": "Data: real inputs and task generators",
    "models": "Models: shared networks",
    "evaluation": "Evaluation: statistics, timing, metrics",
    "networks": "Sparse networks",
    "features": "Sparse representations",
    "attention": "Sparse attention",
    "retrieval": "Sparse retrieval and metrics",
    "correspondence": "Sparse and semi-dense matching, localisation",
    "perception": "Sparse supervision and convolution",
    "experiments": "Experiments: what the chapters run",
    "": "The book's machinery",
}
"""Order and titles of the page's sections: the packages of the library, then the modules at its root."""

# What serves the command line and the pages, not an importer.
_NOT_FOR_IMPORT = {"__main__", "cli", "sphinx_ext"}
# A kernel's implementations stand behind the public functions of its package.
_BACKENDS = {"cpu", "cuda", "reference"}


def modules(library: Path) -> list[Path]:
    """The public modules of the library, ordered by name."""
    found = []
    for path in sorted(library.rglob("*.py")):
        pieces = path.relative_to(library).with_suffix("").parts
        private = any(piece.startswith("_") and piece != "__init__" for piece in pieces)
        backend = pieces[0] == "kernels" and pieces[-1] in _BACKENDS
        if not private and not backend and pieces[0] not in _NOT_FOR_IMPORT:
            found.append(path)
    return found


def module_name(path: Path, library: Path) -> str:
    """``lib/sparsebook/data/text.py`` -> ``sparsebook.data.text``."""
    pieces = path.relative_to(library).with_suffix("").parts
    return ".".join(["sparsebook", *(piece for piece in pieces if piece != "__init__")])


def definitions(tree: ast.Module) -> Iterator[Definition]:
    """Public functions and classes of a module that have a docstring, in the order written."""
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if not node.name.startswith("_") and ast.get_docstring(node):
            yield node


def signature(node: Definition) -> str:
    """``name(parameters)`` as it is called: names and defaults; a class shows its fields or ``__init__``."""
    if isinstance(node, ast.ClassDef):
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                return f"{node.name}({', '.join(_parameters(method))})"
        fields = [
            _with_default(item.target.id, item.value)
            for item in node.body
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
        ]
        dataclass = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
        return f"{node.name}({', '.join(fields)})" if dataclass else node.name
    decorators = {ast.unparse(decorator).split(".")[-1] for decorator in node.decorator_list}
    if decorators & {"property", "cached_property"}:
        return node.name
    return f"{node.name}({', '.join(_parameters(node))})"


def _with_default(name: str, value: ast.expr | None) -> str:
    return name if value is None else f"{name}={ast.unparse(value)}"


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    arguments = node.args
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults: list[Any] = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults)
    found = [_with_default(a.arg, d) for a, d in zip(plain, defaults, strict=True)]
    if arguments.vararg:
        found.append(f"*{arguments.vararg.arg}")
    elif arguments.kwonlyargs:
        found.append("*")
    found += [
        _with_default(a.arg, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    if arguments.kwarg:
        found.append(f"**{arguments.kwarg.arg}")
    return found[1:] if found[:1] in (["self"], ["cls"]) else found


def first_paragraph(docstring: str) -> str:
    """The opening sentence or sentences of a docstring, on one line."""
    return " ".join(docstring.split("\n\n")[0].split())


def inline(text: str) -> list[nodes.Node]:
    """Text in which ``double`` and `single` back-quotes become code."""
    found: list[nodes.Node] = []
    for number, piece in enumerate(text.replace("``", "`").split("`")):
        if piece:
            found.append(nodes.literal(piece, piece) if number % 2 else nodes.Text(piece))
    return found


def sections(library: Path) -> list[nodes.Node]:
    """The page: a section for each package, in it a section for each module with something to import."""
    grouped: dict[str, list[Path]] = {}
    for path in modules(library):
        pieces = path.relative_to(library).parts
        package = pieces[0] if len(pieces) > 1 and pieces[0] in TITLES else ""
        grouped.setdefault(package, []).append(path)
    page: list[nodes.Node] = []
    for package, title in TITLES.items():
        inside = [part for path in grouped.get(package, []) if (part := _module(path, library))]
        if inside:
            name = nodes.make_id(f"library-{package or 'machinery'}")
            section = nodes.section("", nodes.title(title, title), *inside, ids=[name], names=[title])
            page.append(section)
    return page


def _module(path: Path, library: Path) -> nodes.section | None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    entries = [_entry(node) for node in definitions(tree)]
    if not entries:
        return None
    name = module_name(path, library)
    docstring = ast.get_docstring(tree) or ""
    return nodes.section(
        "",
        nodes.title(name, "", nodes.literal(name, name)),
        nodes.paragraph("", "", *inline(first_paragraph(docstring))),
        nodes.definition_list("", *entries, classes=["library"]),
        ids=[nodes.make_id(name)],
        names=[name],
    )


def _entry(node: Definition) -> nodes.definition_list_item:
    docstring = ast.get_docstring(node) or ""
    summary, _, rest = docstring.partition("\n\n")
    body: list[nodes.Node] = [nodes.paragraph("", "", *inline(" ".join(summary.split())))]
    if rest.strip():
        body += [
            nodes.raw("", "<details><summary>Details</summary>", format="html"),
            nodes.literal_block(rest, rest, language="none"),
            nodes.raw("", "</details>", format="html"),
        ]
    methods = [
        nodes.list_item(
            "", nodes.paragraph("", "", _code(signature(method)), nodes.Text(": "), *_opening(method))
        )
        for method in (node.body if isinstance(node, ast.ClassDef) else [])
        if isinstance(method, ast.FunctionDef)
        and not method.name.startswith("_")
        and ast.get_docstring(method)
    ]
    if methods:
        body.append(nodes.bullet_list("", *methods))
    return nodes.definition_list_item(
        "", nodes.term("", "", _code(signature(node))), nodes.definition("", *body)
    )


def _code(text: str) -> nodes.literal:
    return nodes.literal(text, text)


def _opening(method: ast.FunctionDef) -> list[nodes.Node]:
    return inline(first_paragraph(ast.get_docstring(method) or ""))
