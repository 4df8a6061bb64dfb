"""Show in a chapter the very code that it runs."""

import ast
import html
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

# Marks an output as shown source, so that a stored listing that no longer equals the library is found.
SOURCE_KEY = "sparsebook_source"


def show_source(*objects: Any, docstrings: bool = True) -> None:
    """Display the highlighted source of functions, methods, classes or modules of the library.

    Parameters
    ----------
    objects
        What to show, in this order. Wrapped and Numba-compiled functions are shown as they were written.
    docstrings
        ``False`` cuts every docstring to its first line, where the chapter's text already explains.

    Raises
    ------
    ValueError
        If nothing is given, or something that has no Python source.
    """
    if not objects:
        raise ValueError("objects is empty: give at least one function, class or module to show")
    from IPython.display import display

    source = "\n\n".join(source_of(item, docstrings=docstrings).rstrip("\n") for item in objects) + "\n"
    names = [_address(item) for item in objects]
    bundle = {
        "text/html": _as_html(source, names),
        "text/markdown": f"```python\n{source}```",
        "text/plain": source,
    }
    display(bundle, raw=True, metadata={SOURCE_KEY: {"objects": names, "docstrings": docstrings}})


def source_of(item: Any, *, docstrings: bool = True) -> str:
    """The source text of one function, class or module, indented from the left margin.

    Raises
    ------
    ValueError
        If there is none to be had.
    """
    try:
        source = textwrap.dedent(inspect.getsource(_written(item)))
    except (TypeError, OSError) as error:
        raise ValueError(
            f"objects: {item!r} has no Python source to show; expected a function, class or module"
        ) from error
    return source if docstrings else _first_lines_of_docstrings(source)


def _written(item: Any) -> Any:
    """What the author wrote beneath Numba's dispatcher and decorators."""
    written: Callable[..., Any] = getattr(item, "py_func", item)
    return inspect.unwrap(written) if callable(written) else written


def _address(item: Any) -> str:
    written = _written(item)
    if inspect.ismodule(written):
        return written.__name__
    return f"{written.__module__}:{written.__qualname__}"


def _first_lines_of_docstrings(source: str) -> str:
    lines = source.splitlines(keepends=True)
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, holders)]
    documented = [node.body[0] for node in nodes if ast.get_docstring(node, clean=False)]
    for statement in sorted(documented, key=lambda node: -node.lineno):
        last = statement.end_lineno or statement.lineno
        if last > statement.lineno:
            first = lines[statement.lineno - 1].rstrip()
            quotes = "'''" if first.lstrip(" rRuU").startswith("'''") else '"""'
            lines[statement.lineno - 1 : last] = [f"{first}{quotes}\n"]
    return "".join(lines)


def _as_html(source: str, names: list[str]) -> str:
    """Source in the markup of the rendered book, whose own style sheet (light and dark) colours it."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    # Jupyter has no style sheet for these classes: one is brought along that only applies there.
    style = HtmlFormatter(style="default").get_style_defs(".jp-RenderedHTML .highlight")
    code = highlight(source, PythonLexer(), HtmlFormatter(cssclass="highlight"))
    caption = html.escape(", ".join(name.replace(":", ".") for name in names))
    group = f'<div class="highlight-python notranslate" role="group" aria-label="Source of {caption}">'
    return f"<style>{style}</style>{group}{code}</div>"
