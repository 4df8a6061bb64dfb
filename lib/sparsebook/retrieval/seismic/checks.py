"""What may enter the index: sparse rows of non-negative numbers, coordinates in order."""

from typing import Any, no_type_check

import numpy as np
import torch
from numba import njit

from sparsebook.retrieval.seismic.construction import Collection

LARGEST = 65504.0  # of float16, which the forward index stores

_FAULTS = {
    1: "coordinates strictly increasing within a row (sorted, none twice)",
    2: "coordinates from 0 to dim - 1",
    3: "no NaN",
    4: "no negative values",
    5: f"values of at most {LARGEST:g} (the index stores float16)",
    6: "row pointers that start at 0, never decrease and end at the number of entries",
}


@njit(cache=True, nogil=True)
@no_type_check
def _first_fault(indptr, coords, values, dim):
    """Kind of the first fault (0: none) and the row it is in."""
    if indptr[0] != 0 or indptr[-1] != coords.size or coords.size != values.size:
        return 6, 0
    for row in range(indptr.size - 1):
        if indptr[row] > indptr[row + 1]:
            return 6, row
    for row in range(indptr.size - 1):
        previous = -1
        for e in range(indptr[row], indptr[row + 1]):
            if coords[e] < 0 or coords[e] >= dim:
                return 2, row
            if coords[e] <= previous:
                return 1, row
            previous = coords[e]
            if np.isnan(values[e]):
                return 3, row
            if values[e] < 0:
                return 4, row
            if values[e] > 65504.0:
                return 5, row
    return 0, 0


def check_rows(rows: Collection, dim: int, name: str) -> None:
    """Raise ``ValueError`` naming the argument, the row and the rule that it breaks."""
    fault, row = _first_fault(rows.indptr, rows.coords, rows.values, dim)
    if fault:
        raise ValueError(f"{name}: row {row} breaks a rule; expected {_FAULTS[fault]}")


def rows_of(matrix: Any, name: str) -> tuple[Collection, int]:
    """The arrays of a ``torch.sparse_csr`` tensor or SciPy CSR matrix, checked, and its number of columns."""
    if isinstance(matrix, torch.Tensor):
        if matrix.layout is not torch.sparse_csr or matrix.ndim != 2:
            raise ValueError(
                f"{name}: a {matrix.ndim}-d tensor of layout {matrix.layout}; expected 2-d sparse_csr"
            )
        parts = (matrix.crow_indices(), matrix.col_indices(), matrix.values())
        indptr, coords, values = (part.detach().cpu().numpy() for part in parts)
    elif getattr(matrix, "format", None) == "csr":
        indptr, coords, values = matrix.indptr, matrix.indices, matrix.data
    else:
        raise ValueError(
            f"{name}: a {type(matrix).__name__}; expected a torch.sparse_csr tensor or SciPy CSR matrix"
        )
    if values.dtype != np.float32:
        raise ValueError(f"{name}: values of type {values.dtype}; expected float32")
    rows = Collection(
        np.ascontiguousarray(indptr, dtype=np.int64),
        np.ascontiguousarray(coords, dtype=np.int32),
        np.ascontiguousarray(values),
    )
    dim = int(matrix.shape[1])
    check_rows(rows, dim, name)
    return rows, dim


def at_least(name: str, value: int | float, minimum: int | float) -> None:
    """Raise ``ValueError`` unless ``value >= minimum`` (NaN is refused)."""
    if not value >= minimum:
        raise ValueError(f"{name}: {value}; expected at least {minimum}")


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name}: {value!r}; expected one of {', '.join(map(repr, choices))}")
