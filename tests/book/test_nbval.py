"""What is compared when stored notebooks are executed again: verdicts and exact text, nothing measured."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
MIME = "application/vnd.sparsebook.claims+json"
SOURCE = """from IPython.display import display
import random
data = {"text/plain": "C1 exact holds here\\nC2 timing (not compared)", "text/html": str(random.random())}
data["application/vnd.sparsebook.claims+json"] = {"claims": [random.random()]}
display(data, raw=True)"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What nbval says about one notebook that only measures differently and one with another verdict."""
    root = tmp_path_factory.mktemp("nbval") / "book"
    (root / "retrieval").mkdir(parents=True)
    shutil.copyfile(CHECKOUT / "book" / "conftest.py", root / "conftest.py")
    for name, verdict in (("same", "holds here"), ("other", "fails here")):
        text = f"C1 exact {verdict}\nC2 timing (not compared)"
        (root / "retrieval" / f"{name}.ipynb").write_text(json.dumps(stored(text)))
    (root / "ledger.ipynb").write_text(json.dumps(stored("never executed here")))
    options = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=120", "-p", "no:cacheprovider"]
    options += [
        "--nbval-sanitize-with",
        str(CHECKOUT / "tests" / "nbval_sanitize.cfg"),
        "--rootdir",
        str(root),
    ]
    command = [sys.executable, "-m", "pytest", "-v", *options, str(root)]
    return subprocess.run(command, capture_output=True, text=True, cwd=root).stdout


def stored(text: str) -> dict:
    """A notebook whose stored output has this text, and measured values that cannot occur again."""
    data = {"text/plain": text, "text/html": "an old number", MIME: {"claims": ["an old number"]}}
    output = {"output_type": "display_data", "data": data, "metadata": {}}
    cell = {
        "id": "c1",
        "cell_type": "code",
        "execution_count": 1,
        "source": SOURCE,
        "metadata": {"tags": ["claims", "nbval-check-output"]},
        "outputs": [output],
    }
    kernel = {"name": "python3", "display_name": "Python 3"}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": [cell]}


def test_other_measurements_are_no_difference(outcome: str) -> None:
    assert re.search(r"same.*Cell 0 PASSED", outcome), outcome


def test_another_verdict_is_a_difference(outcome: str) -> None:
    assert re.search(r"other.*Cell 0 FAILED", outcome), outcome


def test_the_ledger_is_left_to_the_rendering(outcome: str) -> None:
    assert "ledger" not in outcome
    assert "1 failed, 1 passed" in outcome


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("<f at 0x7f3a2b1c>", "<f at ADDRESS>"),
        ("built in 1,203.5 ms", "built in SPAN"),
        ("on 2024-05-06 12:13:14", "on DATE"),
        ("recall 0.95, 3 blocks, 12 misses", "recall 0.95, 3 blocks, 12 misses"),
    ],
)
def test_only_what_differs_from_run_to_run_is_cleaned(text: str, cleaned: str) -> None:
    from nbval.plugin import get_sanitize_patterns

    patterns = get_sanitize_patterns((CHECKOUT / "tests" / "nbval_sanitize.cfg").read_text(encoding="utf-8"))
    for pattern, replacement in dict(patterns).items():
        text = re.sub(pattern, replacement, text)
    assert text == cleaned
