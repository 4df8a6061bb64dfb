"""Selection without sorting: the k largest of each row, the m largest of each column, the M largest of all.

    values, indices = row_topk(x, 32)              # each token takes k features
    entries = column_topm(x, m)                    # feature j takes the m[j] tokens that fit it best
    entries = global_topm(x, 32 * len(x))          # the M best pairs of the whole batch
    recon = decode_csr(entries.values, entries.columns, entries.offsets, dictionary)

Of equal elements the first is taken (lowest column, lowest row, lowest position in the flattened matrix). NaN
is refused; infinities are ordered as numbers. float32, bfloat16 and float16 run compiled on a CPU (half types
are widened) and as Triton on a GPU; float64 takes the reference, a stable sort. Gradients reach x through
the values.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparsebook.kernels.selection import operators  # noqa: F401 (registers the operators)
from sparsebook.kernels.selection.reference import (
    column_topm_reference,
    global_topm_reference,
    row_topk_reference,
)

__all__ = [
    "Selected",
    "TopK",
    "column_topm",
    "column_topm_reference",
    "global_topm",
    "global_topm_reference",
    "row_topk",
    "row_topk_reference",
]

Matrix = Float[Tensor, "rows columns"]
_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class TopK(NamedTuple):
    """The largest elements of each row."""

    values: Float[Tensor, "rows k"]
    indices: Int[Tensor, "rows k"]


@dataclass(frozen=True)
class Selected:
    """Selected elements of a matrix, ordered by row and within a row by column (the layout of CSR).

    Attributes
    ----------
    values : float [n]
        They carry gradients to the matrix.
    rows, columns : int64 [n]
    offsets : int64 [number of rows + 1]
        The entries of row i are those from offsets[i] up to offsets[i + 1].
    shape : (rows, columns) of the matrix
    """

    values: Float[Tensor, " n"]
    rows: Int[Tensor, " n"]
    columns: Int[Tensor, " n"]
    offsets: Int[Tensor, " rows_and_one"]
    shape: tuple[int, int]

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def positions(self) -> Int[Tensor, " n"]:
        """Places in the flattened matrix, ascending."""
        return self.rows * self.shape[1] + self.columns

    @cached_property
    def threshold(self) -> Float[Tensor, ""]:
        """The smallest selected value; infinity if nothing is selected."""
        return self.values.detach().amin() if len(self) else self.values.new_tensor(torch.inf)

    @cached_property
    def column_thresholds(self) -> Float[Tensor, " columns"]:
        """The smallest selected value of each column; infinity where nothing is selected."""
        out = self.values.new_full((self.shape[1],), torch.inf)
        return out.scatter_reduce(0, self.columns, self.values.detach(), "amin")

    @cached_property
    def column_counts(self) -> Int[Tensor, " columns"]:
        """How many elements of each column are selected."""
        return torch.bincount(self.columns, minlength=self.shape[1])

    def to_dense(self) -> Matrix:
        """The matrix with zeros where nothing is selected; carries gradients. For tests and small shapes."""
        return self.values.new_zeros(self.shape).index_put((self.rows, self.columns), self.values)

    def positive(self) -> "Selected":
        """The entries above zero: padding with zeros is no match."""
        keep = self.values > 0
        if bool(keep.all()):
            return self
        before = torch.nn.functional.pad(keep.cumsum(0), (1, 0))
        return Selected(
            self.values[keep], self.rows[keep], self.columns[keep], before[self.offsets], self.shape
        )


def row_topk(x: Matrix, k: int, *, sorted: bool = True) -> TopK:
    """The k largest elements of each row.

    Parameters
    ----------
    x : float [rows, columns]
    k : int
        0 to the number of columns.
    sorted : bool
        Largest first, of equals the lowest column; otherwise by ascending column, which is faster.

    Returns
    -------
    TopK
        values [rows, k] in x's type and indices [rows, k], int64.

    Raises
    ------
    ValueError
        If x is not a float matrix or holds NaN, or k is out of range.

    Notes
    -----
    As `torch.topk(x, k)`, whose choice among equals is not defined. The operator is ``sparsebook::row_topk``.
    """
    _check_matrix(x)
    _check_count("k", k, x.shape[1], "the number of columns")
    return TopK(*torch.ops.sparsebook.row_topk(x, k, sorted))


def column_topm(x: Matrix, m: Int[Tensor, " columns"] | int, *, positive_only: bool = False) -> Selected:
    """The m[j] largest elements of each column j.

    Parameters
    ----------
    x : float [rows, columns]
    m : int [columns], or one int for all
        Each 0 to the number of rows.
    positive_only : bool
        Leave out what is not above zero: a column may then give fewer than m[j].

    Returns
    -------
    Selected
        Of equals the lowest row is selected; ordered by row.

    Raises
    ------
    ValueError
        If x is not a float matrix or holds NaN, or m does not fit.
    """
    _check_matrix(x)
    rows, columns = x.shape
    if isinstance(m, int):
        _check_count("m", m, rows, "the number of rows")
        m = torch.full((columns,), m, device=x.device)
    if m.shape != (columns,) or m.dtype not in (torch.int32, torch.int64) or m.device != x.device:
        raise ValueError(
            f"m must be an int or integers of shape ({columns},), one for each column, on {x.device}, "
            f"got {m.dtype} of shape {tuple(m.shape)} on {m.device}"
        )
    if columns and not bool(((m >= 0) & (m <= rows)).all()):
        raise ValueError(
            f"m must lie between 0 and the number of rows, {rows}, got {int(m.min())} to {int(m.max())}"
        )
    found = torch.ops.sparsebook.column_topm(x, m, int(m.sum()))
    return _selected(found, x, positive_only)


def global_topm(x: Matrix, m: int, *, positive_only: bool = False) -> Selected:
    """The m largest elements of the whole matrix, found without sorting it.

    Parameters
    ----------
    x : float [rows, columns]
    m : int
        0 to the number of elements.
    positive_only : bool
        Leave out what is not above zero: there may then be fewer than m.

    Returns
    -------
    Selected
        Of equals the first of the flattened matrix is selected; ordered by row. `threshold` is the smallest.

    Raises
    ------
    ValueError
        If x is not a float matrix or holds NaN, or m is out of range.

    Notes
    -----
    As `torch.topk(x.flatten(), m)`. The operator is ``sparsebook::global_topm``.
    """
    _check_matrix(x)
    _check_count("m", m, x.numel(), "the number of elements")
    return _selected(torch.ops.sparsebook.global_topm(x, m), x, positive_only)


def _selected(found: tuple[Tensor, Tensor, Tensor, Tensor], x: Tensor, positive_only: bool) -> Selected:
    values, rows, columns, offsets = found
    selected = Selected(values, rows, columns, offsets, (x.shape[0], x.shape[1]))
    return selected.positive() if positive_only else selected


def _check_matrix(x: Tensor) -> None:
    if x.ndim != 2 or x.dtype not in _TYPES:
        raise ValueError(
            "x must be a matrix of float32, bfloat16, float16 or float64, "
            f"got {x.dtype} of shape {tuple(x.shape)}"
        )


def _check_count(name: str, count: int, most: int, what: str) -> None:
    if not isinstance(count, int) or not 0 <= count <= most:
        raise ValueError(f"{name} must lie between 0 and {what}, {most}, got {count}")
