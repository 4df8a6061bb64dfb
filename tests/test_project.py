"""The project's files agree with one another and say nothing about any one machine."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Not part of the environment that the book is made in: a reader with a GPU asks for it.
OPTIONAL = {"triton"}

packaging_requirements = pytest.importorskip("packaging.requirements")
yaml = pytest.importorskip("yaml")


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    return {canonical(name): version for name, version in (line.split("==") for line in lines)}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements() -> list[str]:
    extras = PROJECT["optional-dependencies"]
    return PROJECT["dependencies"] + [r for name in extras if name not in OPTIONAL for r in extras[name]]


@pytest.mark.parametrize("line", requirements())
def test_every_requirement_is_pinned_within_its_range(line: str) -> None:
    requirement = packaging_requirements.Requirement(line)
    pinned = pins()
    assert canonical(requirement.name) in pinned
    assert pinned[canonical(requirement.name)] in requirement.specifier


def test_constraints_are_exact_and_name_no_place() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert not re.search(r"://| @ |^-|file:|\+cpu", text, re.MULTILINE)
    assert pins()["torch"] == "2.13.0"
    assert not [name for name in pins() if name.startswith("nvidia-")]


def test_conda_environment_installs_what_make_installs() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python = next(item for item in environment["dependencies"] if str(item).startswith("python="))
    assert f">={python.removeprefix('python=')}" in PROJECT["requires-python"]
    pip = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    extras = re.search(r"^EXTRAS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1)
    assert pip == ["-c constraints.txt", f"-e .[{extras}]"]
    assert set(extras.split(",")) == PROJECT["optional-dependencies"].keys() - OPTIONAL


def test_version_and_licence_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    source = (ROOT / "lib/sparsebook/__init__.py").read_text()
    assert f'__version__ = "{PROJECT["version"]}"' in source
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def tracked_files() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.split("\0") if name]


def test_tracked_files_are_small_and_name_no_place() -> None:
    private = re.compile(rb"/(?:home|root|work|Users)/[A-Za-z.]|" + re.escape(bytes(ROOT)))
    allowed = {"tests/test_project.py", "tests/book/test_contract.py"}  # they fabricate such places
    wrong, total = [], 0
    for name in tracked_files():
        content = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b""
        total += len(content)
        if len(content) > 4_200_000:
            wrong.append(f"{name} is too large")
        if name not in allowed and private.search(content):
            wrong.append(f"{name} names a private place")
    assert wrong == []
    assert total < 100_000_000


def test_make_lists_its_targets() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("prepare", "book", "reproduce", "test", "bench", "lock"):
        assert f"make {target}" in listed


def test_the_library_installs_without_the_book() -> None:
    """The core asks for torch, numpy, numba and little else, and imports without all the rest."""
    core = {canonical(packaging_requirements.Requirement(line).name) for line in PROJECT["dependencies"]}
    assert core == {
        "torch", "numpy", "numba", "scipy", "jaxtyping", "filelock", "platformdirs", "rich", "typer",
    }  # fmt: skip
    blocked = ("matplotlib", "pandas", "yaml", "transformers", "sklearn", "papermill", "nbformat", "beartype")
    script = (
        "import sys\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"
        "import sparsebook.cli, sparsebook.files, sparsebook.book, sparsebook.claims, sparsebook.recorded\n"
        "import sparsebook.evaluation.statistics, sparsebook.data, sparsebook.models\n"
        "import sparsebook.retrieval.seismic\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
