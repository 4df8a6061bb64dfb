"""The parameters of a chapter: which ones its notebook has, and what a reader passes for them."""

import ast
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sparsebook.book.layout import Chapter

SCALES = ("smoke", "book", "full", "paper")


def declared_parameters(notebook: Path) -> dict[str, Any]:
    """Names and default values of a notebook's parameters, read from its cell tagged ``parameters``.

    A default that is no literal is given as its source text.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    return assigned("".join(tagged[0]["source"])) if tagged else {}


def assigned(source: str) -> dict[str, Any]:
    """The names that a piece of code assigns at its top level, with their values."""
    found: dict[str, Any] = {}
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign):
            targets: list[ast.expr] = statement.targets
        elif isinstance(statement, ast.AnnAssign):
            targets = [statement.target]
        else:
            continue
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        if statement.value is not None:
            found |= dict.fromkeys(names, _literal(statement.value))
    return found


def parse_value(text: str) -> Any:
    """A value typed on the command line: ``None``/``null``, booleans, numbers, lists, otherwise text.

    >>> [parse_value(text) for text in ("12", "1e-3", "true", "null", "[1, 2]", "data/vectors.npz")]
    [12, 0.001, True, None, [1, 2], 'data/vectors.npz']
    """
    for read in (ast.literal_eval, json.loads):
        try:
            return json.loads(json.dumps(read(text)))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return text


def as_given(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """Parameters as they are recorded and passed on: JSON values, paths as text.

    Raises
    ------
    ValueError
        If a value cannot be written as JSON; a notebook could not be given it.
    """
    found = {}
    for name, value in (parameters or {}).items():
        try:
            found[name] = json.loads(json.dumps(str(value) if isinstance(value, Path) else value))
        except TypeError as error:
            raise ValueError(
                f"parameter {name} is {value!r}; expected text, a number, a boolean, None or a list of these"
            ) from error
    return found


def parameters_for(chapter: Chapter, given: Mapping[str, Any], scale: str | None) -> dict[str, Any]:
    """What is passed to a chapter: the reader's parameters and the scale, checked by name.

    What equals the notebook's own default is left out, so that the notebook stays as it is.

    Raises
    ------
    ValueError
        If the chapter has no parameter of that name; papermill itself would only warn.
    """
    known = declared_parameters(chapter.path)
    if scale is not None and "scale" in given:
        raise ValueError(f"scale is given twice: --scale {scale} and -p scale {given['scale']}")
    wanted = {**given} | ({"scale": scale} if scale is not None else {})
    if wanted.get("scale") not in (None, *SCALES):
        raise ValueError(f"scale is {wanted['scale']!r}; expected one of {', '.join(SCALES)}")
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(
            f"{chapter.slug} has no parameter {unknown[0]!r}; it has {', '.join(known) or 'none'}"
        )
    resolved = {name: _located(name, value, known[name]) for name, value in wanted.items()}
    return {name: value for name, value in resolved.items() if not _same(value, known[name])}


def _located(name: str, value: Any, default: Any) -> Any:
    """Make a path absolute: the chapter runs in a folder of its own."""
    if not isinstance(value, str):
        return value
    path = Path(value).expanduser().resolve()
    is_path = name.split("_")[-1] in ("path", "folder", "file", "dir", "directory")
    if is_path and not path.exists():
        raise ValueError(f"{name} is {value!r}, but there is no such file or folder ({path})")
    # Data that a chapter brings along is `None` by default: text given instead that exists is a path.
    return str(path) if path.exists() and (is_path or default is None) else value


def _same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and value == default


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def as_text(parameters: Mapping[str, Any]) -> str:
    """Parameters in one line, for people."""
    return ", ".join(f"{name}={value!r}" for name, value in _sorted(parameters.items()))


def _sorted(items: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    return sorted(items, key=lambda item: (item[0] != "scale", item[0]))
