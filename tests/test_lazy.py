"""Submodules that are attributes of their package."""

import subprocess
import sys

import pytest

import sparsebook
from sparsebook import data, models


@pytest.mark.parametrize(
    ("package", "names"),
    [
        (sparsebook, ("attention", "data", "kernels", "networks")),
        (data, ("ruler", "stories", "text")),
        (models, ("gemma", "small_transformer")),
    ],
)
def test_every_submodule_is_listed_and_found(package, names):
    assert set(names) <= set(dir(package))
    for name in names:
        assert getattr(package, name).__name__ == f"{package.__name__}.{name}"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = data.nothing


def test_importing_the_package_imports_no_submodule():
    watched = ("torch", "numba", "sparsebook.data")
    code = f"import sys, sparsebook.kernels; print([n for n in {watched} if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
