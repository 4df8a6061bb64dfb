"""The Triton kernels without a GPU: the tests of the files beside this one, through Triton's interpreter."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed (the extra `triton`)", exc_type=ImportError)

FILES = sorted(Path(__file__).parent.glob("test_*_triton.py"))


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run in the files' own tests")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="they run through the interpreter")
def test_through_the_interpreter() -> None:
    """Triton must be told before it is imported: all files in one other process.

    Without the run-time type checker: the interpreter rewrites kernels and cannot see through its wrappers.
    """
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    options = ["-q", "-rp", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib"]
    command = [sys.executable, "-m", "pytest", *options, *map(str, FILES)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    passed = re.findall(r"^PASSED \S*?(test_\w+\.py)::", done.stdout, re.MULTILINE)
    assert set(passed) == {path.name for path in FILES}
