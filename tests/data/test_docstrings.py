"""Docstring pairs: what counts as one, and how they are divided."""

import numpy as np
import pytest

from sparsebook import files
from sparsebook.data import docstrings
from sparsebook.data.docstrings import STANDARD_LIBRARY, _pair, _split, docstring_pairs


@pytest.fixture(scope="module")
def pairs():
    return docstring_pairs()


def test_counts_and_lengths(pairs):
    assert len(STANDARD_LIBRARY) == 45
    assert 3800 < len(pairs.queries) < 4700  # depends on the installed versions
    assert len(pairs.queries) == len(pairs.documents) == len(pairs.names) == len(pairs.modules)
    assert all(15 <= len(query) <= 200 for query in pairs.queries)
    assert all(len(document) > 80 for document in pairs.documents)
    assert len(set(pairs.queries)) == len(set(pairs.documents)) == len(pairs.queries)
    assert {module.split(".")[0] for module in pairs.modules} > set(docstrings.PACKAGES)


def test_a_known_pair(pairs):
    number = pairs.names.index("numpy.cumsum")
    assert pairs.queries[number] == "Return the cumulative sum of the elements along a given axis."
    assert pairs.documents[number].startswith("Parameters")
    assert pairs.modules[number] == "numpy"


def test_parts_divide_by_module_in_the_asked_shares(pairs):
    parts = [pairs.train, pairs.validation, pairs.test]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(pairs.queries)))
    shares = [len(part) / len(pairs.queries) for part in parts]
    np.testing.assert_allclose(shares, [0.7, 0.1, 0.2], atol=0.03)
    modules = [{pairs.modules[number] for number in part} for part in parts]
    assert sum(map(len, modules)) == len(set(pairs.modules))


def test_the_division_does_not_depend_on_the_order():
    names = tuple(np.repeat([f"m{number}" for number in range(40)], 5))
    turned = names[::-1]
    for part in ("train", "validation", "test"):
        chosen = {names[number] for number in _split(names)[part]}
        assert chosen == {turned[number] for number in _split(turned)[part]}


BODY = "Parameters\n----------\n" + "x : a long description of what x is and does. " * 3


def test_what_is_a_pair():
    assert _pair("Adds two numbers at once.\n\n" + BODY) == ("Adds two numbers at once.", BODY.strip())
    assert _pair("add(x,\n    y=(1, 2)) -> z\n\nAdds two numbers.\n\n" + BODY)[0] == "Adds two numbers."
    assert _pair("add(x)\nAdds two\nnumbers at once.\n\n" + BODY)[0] == "Adds two numbers at once."


@pytest.mark.parametrize(
    "docstring",
    [None, 3, "", "Too short.\n\n" + BODY, "x" * 201 + "\n\n" + BODY, "A query without a body.", "f(x\n\n"],
)
def test_what_is_no_pair(docstring):
    assert _pair(docstring) is None


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(docstrings, "find_spec", lambda name: None if name == "skimage" else object())
    docstring_pairs.cache_clear()
    with pytest.raises(files.MissingInput, match=r'"scikit-image" is needed here'):
        docstring_pairs()
