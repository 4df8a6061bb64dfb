"""What every chapter's notebook must keep to, each rule as a function that returns what breaks it.

``sparsebook check SLUG`` prints the findings; the tests demand that there are none.
"""

import ast
import importlib
import inspect
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sparsebook.book.layout import Chapter
from sparsebook.book.parameters import SCALES, assigned
from sparsebook.book.prose import typed_numbers
from sparsebook.book.source import SOURCE_KEY, source_of

LARGEST_NOTEBOOK = 1_500_000
LONGEST_FUNCTION = 10
LONGEST_RUN = 75.0
PARAMETERS = {"scale": "book", "seed": 0, "device": "auto", "threads": None}
SECTIONS = ("At the paper's scale", "In your own code", "What differs from the paper")
_MACHINE_PATH = re.compile(
    r"(?<![\w.:/])/(?:home|Users|root|work|tmp|mnt|opt|private|var/folders)/[\w.@+-]+"
    r"|\b[A-Za-z]:\\+Users\\+\w+|\bfile:///\w+"
)
_LEAST_ALTERNATIVE = 20  # characters that say what a figure shows


@dataclass(frozen=True)
class Notebook:
    """A stored notebook with what lies beside it."""

    chapter: Chapter
    root: Path

    @cached_property
    def content(self) -> dict[str, Any]:
        """The parsed file."""
        return json.loads(self.chapter.path.read_text(encoding="utf-8"))

    @cached_property
    def cells(self) -> list[dict[str, Any]]:
        """All cells, their source as one string."""
        return [cell | {"source": "".join(cell["source"])} for cell in self.content["cells"]]

    @property
    def code(self) -> list[tuple[int, dict[str, Any]]]:
        """The code cells with their number, counted from 1 among all cells."""
        return [pair for pair in enumerate(self.cells, start=1) if pair[1]["cell_type"] == "code"]

    @property
    def outputs(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """All outputs with the number of their cell."""
        for number, cell in self.code:
            for output in cell.get("outputs", ()):
                yield number, output

    def tagged(self, tag: str) -> list[tuple[int, dict[str, Any]]]:
        """The cells with a tag, and their numbers."""
        return [
            (number, cell)
            for number, cell in enumerate(self.cells, start=1)
            if tag in cell["metadata"].get("tags", ())
        ]


Rule = Callable[[Notebook], list[str]]


def problems(chapter: Chapter, root: Path) -> list[str]:
    """Everything that a chapter's notebook breaks, in the order of the rules."""
    notebook = Notebook(chapter, root)
    return [problem for rule in rules_for(chapter) for problem in rule(notebook)]


def rules_for(chapter: Chapter) -> tuple[Rule, ...]:
    """The rules that apply: a kernel's chapter has no paper, so none of a paper's claims and settings."""
    return (*GENERAL_RULES, *PAPER_RULES) if chapter.kind == "paper" else GENERAL_RULES


def title(notebook: Notebook) -> list[str]:
    """The first cell is markdown and starts with the one first-level heading."""
    if not notebook.cells or notebook.cells[0]["cell_type"] != "markdown":
        return ["the first cell must be markdown: title, citation, the answer in three sentences"]
    first = notebook.cells[0]["source"]
    return [] if first.startswith("# ") else ["the first cell must start with the title: '# ...'"]


def citation(notebook: Notebook) -> list[str]:
    """The first cell cites the paper."""
    if notebook.cells and re.search(r"\{cite[\w:]*\}`[^`]+`", notebook.cells[0]["source"]):
        return []
    return [f"the first cell must cite the paper: {{cite:t}}`{notebook.chapter.slug}`"]


def sections(notebook: Notebook) -> list[str]:
    """The sections that a reader looks for in every chapter are there."""
    text = "\n".join(cell["source"] for cell in notebook.cells if cell["cell_type"] == "markdown")
    heads = re.findall(r"^#+\s+(.*)", text.replace("’", "'"), flags=re.MULTILINE)
    missing = [name for name in SECTIONS if not any(name.lower() in head.lower() for head in heads)]
    return [f"the section {name!r} is missing" for name in missing]


def parameters_cell(notebook: Notebook) -> list[str]:
    """One cell tagged ``parameters``, the first code cell, with scale, seed, device and threads."""
    tagged = notebook.tagged("parameters")
    if len(tagged) != 1:
        return [f"{len(tagged)} cells are tagged parameters; expected one"]
    number, cell = tagged[0]
    if not notebook.code or notebook.code[0][0] != number:
        return [f"cell {number} (tagged parameters) must be the first code cell"]
    try:
        found = assigned(cell["source"])
    except SyntaxError as error:
        return [f"cell {number} (tagged parameters) is no valid Python: {error.msg}"]
    missing = [name for name in PARAMETERS if name not in found]
    if missing:
        return [f"cell {number} (tagged parameters) lacks {', '.join(missing)}"]
    other = [name for name, value in PARAMETERS.items() if found[name] != value]
    return [f"parameter {name} is {found[name]!r}; expected {PARAMETERS[name]!r}" for name in other]


def claims_cell(notebook: Notebook) -> list[str]:
    """One cell tagged ``claims``, the last code cell, ending in the report and compared by the tests."""
    tagged = notebook.tagged("claims")
    if len(tagged) != 1:
        return [f"{len(tagged)} cells are tagged claims; expected one"]
    number, cell = tagged[0]
    if notebook.code[-1][0] != number:
        return [f"cell {number} (tagged claims) must be the last code cell"]
    wrong = []
    lines = [line for line in cell["source"].splitlines() if line.strip()]
    if not lines or not re.search(r"\.report\(\)\s*$", lines[-1]):
        wrong.append(f"cell {number} (tagged claims) must end with ledger.report()")
    if "nbval-check-output" not in cell["metadata"]["tags"]:
        wrong.append(f"cell {number} (tagged claims) must be tagged nbval-check-output too")
    return wrong


def claims_complete(notebook: Notebook) -> list[str]:
    """The claims file is valid, and every declared claim has one row in the stored report."""
    from sparsebook.claims import load_claims, read_claims

    path = notebook.chapter.claims_path
    if not path.is_file():
        return [f"the claims file {path.name} is missing"]
    try:
        declaration = load_claims(path)
        rows = read_claims(notebook.chapter.path)
    except ValueError as error:
        return [str(error)]
    wrong = [] if declaration.slug == notebook.chapter.slug else [f"{path.name} is of {declaration.slug!r}"]
    declared, stored = [claim.id for claim in declaration.claims], [row["id"] for row in rows]
    wrong += [f"claim {name} has no row in the stored report" for name in declared if name not in stored]
    wrong += [
        f"the stored report has a claim {name} that is not declared"
        for name in stored
        if name not in declared
    ]
    wrong += [
        f"claim {name} stands twice in the stored report" for name in set(stored) if stored.count(name) > 1
    ]
    testable = {claim.id for claim in declaration.claims if claim.needs is None}
    wrong += [
        f"claim {row['id']} was stored untested, but it declares that it can be tested here (needs: null)"
        for row in rows
        if row["verdict"] == "untested" and row["id"] in testable
    ]
    return wrong + [
        f"claim {row['id']} was stored at scale {row['scale']!r}; expected 'book'"
        for row in rows
        if row["scale"] != "book"
    ]


def definitions(notebook: Notebook) -> list[str]:
    """No class and no function of more than ten lines is defined: code lives in the library."""
    wrong = []
    for number, cell in notebook.code:
        try:
            tree = ast.parse(_without_magics(cell["source"]))
        except SyntaxError as error:
            wrong.append(f"cell {number} is no valid Python: {error.msg}")
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                wrong.append(f"cell {number} defines the class {node.name}: move it into the library")
            elif (
                isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and _length(node) > LONGEST_FUNCTION
            ):
                wrong.append(
                    f"cell {number} defines {node.name} with {_length(node)} lines, at most "
                    f"{LONGEST_FUNCTION} are allowed: move it into the library"
                )
    return wrong


def no_typed_numbers(notebook: Notebook) -> list[str]:
    """No measured number is typed into the text (the rule: ``sparsebook.book.prose``)."""
    markdown = [
        (n, c["source"]) for n, c in enumerate(notebook.cells, start=1) if c["cell_type"] == "markdown"
    ]
    return [
        f"cell {markdown[index][0]}: the number {number!r} is typed into the text ({_shortened(line)}); "
        "glue it from its result, or, if the paper states it, cite the paper on that line or mark the line "
        "with <!-- paper -->"
        for index, number, line in typed_numbers([source for _, source in markdown])
    ]


def executed(notebook: Notebook) -> list[str]:
    """Every code cell was executed, from top to bottom in one go."""
    filled = [(number, cell) for number, cell in notebook.code if cell["source"].strip()]
    counts = [cell.get("execution_count") for _, cell in filled]
    if not counts:
        return ["there is no code cell"]
    missing = [str(number) for number, cell in filled if cell.get("execution_count") is None]
    if missing:
        return [f"not executed: cell {', '.join(missing)}"]
    if counts != list(range(1, len(counts) + 1)):
        return [f"the cells were not executed from top to bottom in one go (their counts are {counts})"]
    return []


def no_error(notebook: Notebook) -> list[str]:
    """No output is an error."""
    return [
        f"cell {number} holds an error: {output.get('ename')}: {output.get('evalue')}"
        for number, output in notebook.outputs
        if output["output_type"] == "error"
    ]


def size(notebook: Notebook) -> list[str]:
    """The file is small enough for a repository with forty of them."""
    found = notebook.chapter.path.stat().st_size
    if found <= LARGEST_NOTEBOOK:
        return []
    return [f"the notebook has {found / 1e6:.2f} MB; at most {LARGEST_NOTEBOOK / 1e6:.1f} MB are allowed"]


def time(notebook: Notebook) -> list[str]:
    """The stored run took no longer than a chapter may, where it was timed."""
    seconds = notebook.content["metadata"].get("sparsebook", {}).get("seconds")
    if seconds is None or seconds <= LONGEST_RUN:
        return []
    return [f"the stored run took {seconds:.0f} s; at most {LONGEST_RUN:.0f} s are allowed"]


def figure(notebook: Notebook) -> list[str]:
    """There is at least one figure."""
    found = any("image/png" in output.get("data", {}) for _, output in notebook.outputs)
    return [] if found else ["there is no figure (no output of type image/png)"]


def alternative_text(notebook: Notebook) -> list[str]:
    """Every figure says in words what it shows."""
    wrong = []
    for number, output in notebook.outputs:
        data, metadata = output.get("data", {}), output.get("metadata", {})
        if "image/png" in data:
            texts = [(metadata.get("image/png") or {}).get("alt") or ""]
        else:
            pictures = re.findall(r"<img\b[^>]*>", "".join(data.get("text/html", "")))
            texts = [_alternative(picture) for picture in pictures]
        wrong += [
            f"cell {number}: a figure has no alternative text that says what it shows (found {text!r}): "
            "use plotting.show(figure, alt=...)"
            for text in texts
            if len(text.strip()) < _LEAST_ALTERNATIVE
        ]
    return wrong


def compared_cell(notebook: Notebook) -> list[str]:
    """At least one cell's output is compared when the notebook is executed again, and none is empty."""
    tagged = notebook.tagged("nbval-check-output")
    if not tagged:
        return ["no cell is tagged nbval-check-output"]
    return [
        f"cell {number} is tagged nbval-check-output but has no output with text to compare"
        for number, cell in tagged
        if not any(_comparable(output) for output in cell.get("outputs", ()))
    ]


def kernel(notebook: Notebook) -> list[str]:
    """The notebook names the kernel ``python3``, without which papermill cannot run it."""
    found = notebook.content["metadata"].get("kernelspec", {}).get("name")
    return [] if found == "python3" else [f"the kernelspec is {found!r}; expected 'python3'"]


def no_machine_path(notebook: Notebook) -> list[str]:
    """Neither code nor outputs name a folder of somebody's machine."""
    texts = [(number, cell["source"]) for number, cell in notebook.code]
    texts += [(number, _text(output)) for number, output in notebook.outputs]
    found = dict.fromkeys((number, match) for number, text in texts for match in _MACHINE_PATH.findall(text))
    return [f"cell {number} names the path {match!r} of one machine" for number, match in found]


def shown_source(notebook: Notebook) -> list[str]:
    """Listings made by ``show_source`` equal the library's present source."""
    wrong = []
    for number, output in notebook.outputs:
        shown = output.get("metadata", {}).get(SOURCE_KEY)
        if shown is None:
            continue
        parts = [source_of(_import(name), docstrings=shown["docstrings"]) for name in shown["objects"]]
        present = "\n\n".join(part.rstrip("\n") for part in parts) + "\n"
        if "".join(output["data"]["text/plain"]) != present:
            wrong.append(
                f"cell {number} shows {', '.join(shown['objects'])} as it no longer is: execute again"
            )
    return wrong


def modules_exist(notebook: Notebook) -> list[str]:
    """Method, experiments and tests of the chapter stand where its slug says."""
    slug, part = notebook.chapter.slug, notebook.chapter.part
    expected = {
        "method's module": (f"lib/sparsebook/{part}/{slug}.py", f"lib/sparsebook/{part}/{slug}/__init__.py"),
        "experiments' module": (
            f"lib/sparsebook/experiments/{slug}.py",
            f"lib/sparsebook/experiments/{slug}/__init__.py",
        ),
        "method's test module": (f"tests/{part}/test_{slug}.py", f"tests/{part}/{slug}"),
    }
    return [
        f"the {what} is missing: {paths[0]}"
        for what, paths in expected.items()
        if not any((notebook.root / path).exists() for path in paths)
    ]


def scales_construct(notebook: Notebook) -> list[str]:
    """``Config.at(scale)`` of the chapter's experiments makes a frozen configuration for every scale.

    At scale ``paper`` every argument that is ``None`` by default gets a path: the data that a reader brings.
    """
    name = f"sparsebook.experiments.{notebook.chapter.slug}"
    try:
        config = importlib.import_module(name).Config
    except ModuleNotFoundError as error:
        return [f"{name} cannot be imported: {error}"]
    except AttributeError:
        return [f"{name} lacks the class Config"]
    frozen = is_dataclass(config) and getattr(config, "__dataclass_params__").frozen  # noqa: B009
    if not (frozen and hasattr(config, "at")):
        return [f"{name}.Config must be a frozen dataclass with a class method at(scale, ...)"]
    wrong = []
    for scale in SCALES:
        data = _data_arguments(config.at, notebook.chapter.path.parent) if scale == "paper" else {}
        try:
            config.at(scale, **data)
        except Exception as error:
            wrong.append(f"{name}.Config.at({scale!r}) raises {type(error).__name__}: {error}")
    return wrong


GENERAL_RULES: tuple[Rule, ...] = (
    title,
    parameters_cell,
    definitions,
    no_typed_numbers,
    executed,
    no_error,
    size,
    time,
    figure,
    alternative_text,
    compared_cell,
    kernel,
    no_machine_path,
    shown_source,
)
PAPER_RULES: tuple[Rule, ...] = (
    citation,
    sections,
    claims_cell,
    claims_complete,
    modules_exist,
    scales_construct,
)


def _without_magics(source: str) -> str:
    lines = source.splitlines()
    return "\n".join("pass" if line.startswith(("%", "!")) else line for line in lines)


def _length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _shortened(line: str) -> str:
    return line if len(line) <= 60 else f"{line[:57]}..."


def _alternative(picture: str) -> str:
    match = re.search(r"""\balt\s*=\s*(["'])(.*?)\1""", picture)
    return match[2] if match else ""


def _comparable(output: dict[str, Any]) -> bool:
    if output["output_type"] == "stream":
        return bool("".join(output["text"]).strip())
    return bool("".join(output.get("data", {}).get("text/plain", "")).strip())


def _text(output: dict[str, Any]) -> str:
    """All that is text in an output, pictures left out."""
    texts = ["".join(output.get("text", "")), *output.get("traceback", ())]
    for kind, value in output.get("data", {}).items():
        if not kind.startswith("image/"):
            texts.append(json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else "".join(value))
    return "\n".join(texts)


def _data_arguments(function: Callable[..., Any], folder: Path) -> dict[str, str]:
    arguments = inspect.signature(function).parameters.values()
    return {a.name: str(folder) for a in arguments if a.default is None and a.name not in PARAMETERS}


def _import(address: str) -> Any:
    module, _, name = address.partition(":")
    found: Any = importlib.import_module(module)
    for piece in name.split(".") if name else ():
        found = getattr(found, piece)
    return found
