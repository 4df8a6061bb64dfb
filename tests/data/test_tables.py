"""The tables are the well-known ones."""

import numpy as np
import pytest

from sparsebook import files
from sparsebook.data import tables

SHAPES = {
    "digits": (1797, 64, 10),
    "breast_cancer": (569, 30, 2),
    "wine": (178, 13, 3),
    "iris": (150, 4, 3),
    "diabetes": (442, 10, 0),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_types_and_terms(name):
    table = getattr(tables, name)()
    samples, columns, classes = SHAPES[name]
    assert table.features.shape == (samples, columns)
    assert table.features.dtype == np.float64
    assert len(table.feature_names) == columns
    assert len(table.target_names) == classes
    assert table.target.shape == (samples,)
    assert table.target.dtype == (np.int64 if classes else np.float64)
    assert table.source.name == name
    assert table.licence
    assert table.citation


def test_digits_are_grey_values_of_known_digits():
    table = tables.digits()
    assert table.features[0].sum() == 294
    assert (table.features.min(), table.features.max()) == (0, 16)
    assert table.target[:10].tolist() == list(range(10))
    assert np.bincount(table.target).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_known_values_of_the_other_tables():
    assert tables.iris().features[0].tolist() == [5.1, 3.5, 1.4, 0.2]
    assert tables.wine().features[0, 0] == 14.23
    assert np.bincount(tables.breast_cancer().target).tolist() == [212, 357]
    diabetes = tables.diabetes()
    assert diabetes.features[0, 0] == 59  # years: the columns are not scaled
    assert diabetes.target[0] == 151


def test_without_scikit_learn_one_sentence_names_the_extra(monkeypatch):
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    with pytest.raises(
        files.MissingInput, match=r'"scikit-learn" is needed here: pip install "sparsebook\[book\]"'
    ):
        tables.digits()
