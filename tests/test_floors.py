"""The floors of the house: imports go down only, and no part imports another."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[1] / "lib" / "sparsebook"
PARTS = ("networks", "features", "attention", "retrieval", "correspondence", "perception")
FLOOR = {
    **dict.fromkeys(("kernels", "files", "lazy"), 0),
    **dict.fromkeys(("data", "models", "evaluation"), 1),
    **dict.fromkeys(PARTS, 2),
    **dict.fromkeys(
        ("experiments", "claims", "recorded", "book", "plotting", "sphinx_ext", "cli", "__main__"), 3
    ),
}
# Floor 3 serves the notebooks: its modules may use one another. The others keep to what is below.
SOCIABLE = 3
FORBIDDEN_NAMES = {"utils", "common", "helpers", "misc"}


def unit_of(module: str) -> str | None:
    """The unit that a dotted module belongs to: ``sparsebook.data.text`` -> ``data``."""
    pieces = module.split(".")
    return pieces[1] if pieces[0] == "sparsebook" and len(pieces) > 1 else None


def imported_modules(path: Path, package: str) -> set[str]:
    """Every module of the library that ``path`` imports, inside functions too, relative imports resolved."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, base]).rstrip(".")
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return {name for name in found if name.split(".")[0] == "sparsebook"}


def violations(path: Path, library: Path = LIBRARY) -> list[str]:
    """What ``path`` imports although its floor forbids it."""
    relative = path.relative_to(library)
    here = relative.parts[0].removesuffix(".py")
    if here == "__init__":
        return []
    package = ".".join(["sparsebook", *relative.parts[:-1]])
    wrong = []
    for module in sorted(imported_modules(path, package)):
        there = unit_of(module)
        if there is None or there == here or there not in FLOOR:
            continue
        level = FLOOR[there] == FLOOR[here] and FLOOR[here] < SOCIABLE
        # A floor's own modules that are not parts (kernels and files) are one another's foundation.
        if FLOOR[there] > FLOOR[here] or (level and FLOOR[here] > 0):
            wrong.append(f"{relative} imports {module}")
    return wrong


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), ids=lambda p: str(p.relative_to(LIBRARY)))
def test_imports_go_down_only(path: Path) -> None:
    assert violations(path) == []


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("kernels/selection.py", "from sparsebook.data import text"),
        ("data/text.py", "from ..models.minilm import MiniLM"),
        ("retrieval/seismic.py", "import sparsebook.attention.patterns"),
        ("evaluation/timing.py", "def f():\n    from sparsebook import claims"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path: Path, where: str, line: str) -> None:
    path = tmp_path / where
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert violations(path, library=tmp_path)


def test_a_paper_imports_no_other_paper() -> None:
    """What two papers share is a building block: no paper is imported by its neighbour."""
    slugs = {path.stem for path in (LIBRARY / "experiments").glob("*.py")} - {"__init__"}
    wrong = []
    for part in PARTS:
        for path in (LIBRARY / part).rglob("*.py"):
            own = path.relative_to(LIBRARY / part).parts[0].removesuffix(".py")
            package = ".".join(["sparsebook", *path.relative_to(LIBRARY).parts[:-1]])
            others = {
                module.split(".")[2]
                for module in imported_modules(path, package)
                if unit_of(module) == part and len(module.split(".")) > 2
            }
            wrong += [f"{path.name} imports {slug}" for slug in (others & slugs) - {own}]
    assert wrong == []


def test_no_unit_is_missing_from_the_plan() -> None:
    units = {
        path.stem for path in LIBRARY.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert units - {"__init__"} <= FLOOR.keys()


def test_no_drawer_of_odds_and_ends() -> None:
    assert [path for path in LIBRARY.rglob("*") if path.stem in FORBIDDEN_NAMES] == []


def test_a_package_never_reexports_a_submodules_name() -> None:
    wrong = []
    for init in LIBRARY.rglob("__init__.py"):
        submodules = {path.stem for path in init.parent.iterdir()} - {"__init__"}
        for node in ast.parse(init.read_text()).body:
            if isinstance(node, ast.ImportFrom):
                package = ".".join(["sparsebook", *init.parent.relative_to(LIBRARY).parts])
                if node.module == package or (node.level == 1 and node.module is None):
                    continue  # the submodule itself
                names = {alias.asname or alias.name for alias in node.names}
                wrong += [f"{init.parent.name} re-exports {name}" for name in names & submodules]
    assert wrong == []


def test_njit_functions_are_left_alone_by_the_type_checker() -> None:
    """The run-time type checker wraps every function of the package; a compiled one must opt out."""
    wrong = []
    for path in LIBRARY.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
                compiled = any("njit" in name or "jit(" in name for name in decorators)
                if compiled and not decorators[-1].endswith("no_type_check"):
                    wrong.append(f"{path.relative_to(LIBRARY)}:{node.name}")
    assert wrong == []


def test_import_is_lazy_and_fast() -> None:
    script = (
        "import sys, time; t = time.perf_counter(); import sparsebook; t = time.perf_counter() - t;"
        "parts = set(m for m in sys.modules if m.startswith('sparsebook.')) - {'sparsebook.lazy'};"
        "assert not parts, parts; assert 'torch' not in sys.modules; assert t < 2, t;"
        "assert 'data' in dir(sparsebook); sparsebook.data"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_unknown_attribute_is_an_attribute_error() -> None:
    import sparsebook

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sparsebook.nothing  # noqa: B018
