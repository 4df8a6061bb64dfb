"""The small tabular sets that scikit-learn carries: digits, breast cancer, wine, iris, diabetes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from sparsebook.data.catalogue import FromSource, source
from sparsebook.files import missing_package, packaged_file


@dataclass(frozen=True, eq=False)
class Table(FromSource):
    """A table of measurements with something to predict.

    Attributes
    ----------
    features : one row per sample, in the units of the source
    target : class numbers from 0 (int64), or a quantity (float64) where `target_names` is empty
    feature_names : one name per column
    target_names : one name per class, empty for a quantity
    source_name : the name in the catalogue
    """

    features: Float[np.ndarray, "samples features"]
    target: Shaped[np.ndarray, " samples"]
    feature_names: tuple[str, ...]
    target_names: tuple[str, ...]
    source_name: str


def digits() -> Table:
    """1,797 handwritten digits: 64 grey values from 0 to 16 a row (8 x 8, row by row), ten classes.

    Raises
    ------
    MissingInput : scikit-learn is not installed
    """
    return _load("digits")


def breast_cancer() -> Table:
    """569 tumours: 30 measurements of cell nuclei; class 0 is malignant, class 1 benign.

    Raises
    ------
    MissingInput : scikit-learn is not installed
    """
    return _load("breast_cancer")


def wine() -> Table:
    """178 Italian wines: 13 chemical measurements, three cultivars.

    Raises
    ------
    MissingInput : scikit-learn is not installed
    """
    return _load("wine")


def iris() -> Table:
    """150 iris flowers: four lengths in centimetres, three species.

    Raises
    ------
    MissingInput : scikit-learn is not installed
    """
    return _load("iris")


def diabetes() -> Table:
    """442 patients: ten measurements in their own units; the target is the progression after a year.

    Raises
    ------
    MissingInput : scikit-learn is not installed
    """
    return _load("diabetes", scaled=False)


def _load(name: str, **options: Any) -> Table:
    for path in source(name).files:
        packaged_file("sklearn", path)  # checked here, read by scikit-learn's own loader
    bunch = _loader(name)(**options)
    target = np.asarray(bunch.target)
    names = bunch.get("target_names", [])
    return Table(
        features=np.asarray(bunch.data, dtype=np.float64),
        target=target.astype(np.int64 if len(names) else np.float64),
        feature_names=tuple(str(column) for column in bunch.feature_names),
        target_names=tuple(str(label) for label in names),
        source_name=name,
    )


def _loader(name: str) -> Callable[..., Any]:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise missing_package("scikit-learn") from error
    return getattr(datasets, f"load_{name}")
