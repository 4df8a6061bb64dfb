"""Sparse matrix times dense matrix, its transpose, and the product at the non-zeros only; with gradients.

    y = spmm(weights, x, bias, low=0.0, high=6.0)     # clamp(weights @ x + bias)
    x = spmm_t(weights, y)                            # weights.T @ y
    values = sddmm(weights, y, x)                     # (y @ x.T) where weights has entries

`weights` is a `torch.sparse_csr` tensor, or `torch.sparse_bsr` with blocks of 2 x 1 or 4 x 1 (neighbouring
rows that share their columns). The dense operands lie ``[features, batch]``, contiguous along the batch: one
non-zero then multiplies a run of neighbouring numbers, and no index but the column's is needed. The functions
that end in ``_csr`` take the lists themselves, for weights that are trained.

float32 and bfloat16 run compiled on a CPU (bfloat16 is stored, sums are float32) and as Triton on a GPU;
float64 takes the reference. The entries of a row may come in any order; one that occurs twice counts twice.
NaN and infinity propagate along the listed entries only.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparsebook.kernels.sparse_matmul import operators
from sparsebook.kernels.sparse_matmul.cpu import Matrix, sddmm_cpu, spmm_cpu, spmm_t_cpu
from sparsebook.kernels.sparse_matmul.known import PLAIN, recall, remember
from sparsebook.kernels.sparse_matmul.reference import sddmm_reference, spmm_reference, spmm_t_reference

__all__ = [
    "sddmm", "sddmm_csr", "sddmm_reference", "spmm", "spmm_csr", "spmm_reference", "spmm_t", "spmm_t_csr",
    "spmm_t_reference",
]  # fmt: skip

BLOCKS = (1, 2, 4)
_TYPES = (torch.float32, torch.bfloat16, torch.float64)
_INF = torch.inf


def spmm(
    weights: Tensor,
    x: Float[Tensor, "columns batch"],
    bias: Float[Tensor, " rows"] | None = None,
    *,
    low: float | int = -_INF,
    high: float | int = _INF,
) -> Float[Tensor, "rows batch"]:
    """clamp(weights @ x + bias, low, high), in one pass.

    A 1 x 1 convolution of one image in channel-major layout is this product with x = image.flatten(1)
    (Elsen et al. 2019, arXiv 1911.09723, section 3).

    Parameters
    ----------
    weights : sparse_csr or sparse_bsr [rows, columns]
        Blocks, if any, are 2 x 1 or 4 x 1.
    x : float [columns, batch]
        In the type of the weights.
    bias : float [rows], optional
    low, high : float
        Bounds of the result. NaN passes them.

    Returns
    -------
    float [rows, batch]
        In the type of x. Gradients reach x, bias, and weights (as a sparse tensor of the same layout); a
        result at a bound passes none.

    Raises
    ------
    ValueError
        If layouts, shapes, types or devices do not fit together, a column is out of range, or the row offsets
        do not ascend from 0 to the number of entries.

    Notes
    -----
    The operator is ``sparsebook::spmm``.
    """
    if (known := recall(weights)) and low <= high and known.takes(x, bias):
        return known.matrix.times(x, bias, low, high)
    columns = _checked_shape(weights)[1]
    if x.ndim == 2 and x.shape[0] != columns:
        raise ValueError(f"x must have {columns} rows, the columns of weights, got {x.shape[0]}")
    lists = _lists_of(weights)
    y = spmm_csr(*lists, x, bias, low=low, high=high)
    remember(weights, lists)
    return y


def spmm_csr(
    values: Float[Tensor, "n *block"],
    columns: Int[Tensor, " n"],
    offsets: Int[Tensor, " rows_and_one"],
    x: Float[Tensor, "columns batch"],
    bias: Float[Tensor, " rows"] | None = None,
    *,
    low: float | int = -_INF,
    high: float | int = _INF,
) -> Float[Tensor, "rows batch"]:
    """As `spmm` for a matrix that comes as lists.

    Parameters
    ----------
    values : float [n], or [n, block] for blocks of 2 or 4 rows
    columns : int [n]
        int32 or int64, each in [0, number of rows of x).
    offsets : int [rows / block + 1]
        In the type of columns: entries offsets[r] to offsets[r + 1] - 1 belong to row (of blocks) r.
    x, bias, low, high
        As in `spmm`.

    Raises
    ------
    ValueError
        As `spmm`.
    """
    values, columns, offsets, x = _checked(values, columns, offsets, x, "x", x.shape[0] if x.ndim else 0)
    if bias is not None:
        rows = (offsets.shape[0] - 1) * (values.shape[1] if values.ndim == 2 else 1)
        if bias.shape != (rows,) or not bias.is_floating_point() or bias.device != x.device:
            raise ValueError(f"bias must be float of shape ({rows},) on {x.device}, got {_described(bias)}")
        bias = bias.contiguous()
    if not low <= high:
        raise ValueError(f"low must not be above high, got {low} and {high}")
    if _plain(x, values, bias):
        return spmm_cpu(values, columns, offsets, x, bias, low, high)
    if _direct(x, values, bias):
        return operators.Spmm.apply(values, columns, offsets, x, bias, low, high)
    return torch.ops.sparsebook.spmm(values, columns, offsets, x, bias, low, high)


def spmm_t(weights: Tensor, y: Float[Tensor, "rows batch"]) -> Float[Tensor, "columns batch"]:
    """weights.T @ y, without a transposed copy of the weights.

    Parameters and errors as in `spmm`, with y : float [rows, batch]. The operator is ``sparsebook::spmm_t``.
    """
    return spmm_t_csr(*_lists_of(weights), y, _checked_shape(weights)[1])


def spmm_t_csr(
    values: Float[Tensor, "n *block"],
    columns: Int[Tensor, " n"],
    offsets: Int[Tensor, " rows_and_one"],
    y: Float[Tensor, "rows batch"],
    n_columns: int,
) -> Float[Tensor, "columns batch"]:
    """As `spmm_t` for a matrix with `n_columns` columns that comes as lists; see `spmm_csr`."""
    values, columns, offsets, y = _checked(values, columns, offsets, y, "y", n_columns)
    _check_rows(values, offsets, y)
    if _plain(y, values, None):
        return spmm_t_cpu(values, columns, offsets, y, n_columns)
    return torch.ops.sparsebook.spmm_t(values, columns, offsets, y, n_columns)


def sddmm(pattern: Tensor, y: Float[Tensor, "rows batch"], x: Float[Tensor, "columns batch"]) -> Tensor:
    """y @ x.T at the entries of the pattern only ("sampled dense-dense"): the gradient of sparse weights.

    Parameters
    ----------
    pattern : sparse_csr or sparse_bsr [rows, columns]
        Its values are not read.
    y : float [rows, batch]
    x : float [columns, batch]

    Returns
    -------
    sparse tensor
        Of the pattern's layout and shape. Gradients reach y and x.

    Raises
    ------
    ValueError
        As `spmm`.

    Notes
    -----
    The operator is ``sparsebook::sddmm``.
    """
    rows, columns = _checked_shape(pattern)
    for name, operand, expected in (("y", y, rows), ("x", x, columns)):
        if operand.ndim == 2 and operand.shape[0] != expected:
            raise ValueError(f"{name} must have {expected} rows as the pattern asks, got {operand.shape[0]}")
    values, indices, offsets = _lists_of(pattern)
    block = values.shape[1] if values.ndim == 2 else 1
    found = sddmm_csr(indices, offsets, y, x, block)
    if pattern.layout == torch.sparse_csr:
        return torch.sparse_csr_tensor(offsets, indices, found, pattern.shape)
    return torch.sparse_bsr_tensor(offsets, indices, found.reshape(-1, block, 1), pattern.shape)


def sddmm_csr(
    columns: Int[Tensor, " n"],
    offsets: Int[Tensor, " rows_and_one"],
    y: Float[Tensor, "rows batch"],
    x: Float[Tensor, "columns batch"],
    block: int = 1,
) -> Float[Tensor, "n *block"]:
    """As `sddmm` for a pattern that comes as lists; values [n], or [n, block] for blocks of rows."""
    if block not in BLOCKS:
        raise ValueError(f"block must be one of {BLOCKS}, got {block}")
    values = x.new_empty((columns.shape[0], block) if block > 1 else (columns.shape[0],))
    values, columns, offsets, x = _checked(values, columns, offsets, x, "x", x.shape[0] if x.ndim else 0)
    y = y.contiguous()
    _check_rows(values, offsets, y)
    if y.dtype != x.dtype or y.shape[1:] != x.shape[1:] or y.device != x.device:
        raise ValueError(
            f"y and x must share type, batch and device, got {_described(y)} and {_described(x)}"
        )
    if _plain(x, y, None):
        return sddmm_cpu(columns, offsets, y, x, block)
    return torch.ops.sparsebook.sddmm(columns, offsets, y, x, block)


# Checks --------------------------------------------------------------------------------------------------


def _checked_shape(weights: Tensor) -> tuple[int, int]:
    if weights.layout not in (torch.sparse_csr, torch.sparse_bsr) or weights.ndim != 2:
        raise ValueError(
            "weights must be sparse_csr or sparse_bsr with two dimensions, got "
            f"{weights.layout} of shape {tuple(weights.shape)}; make it with `dense.to_sparse_csr()`"
        )
    return weights.shape[0], weights.shape[1]


def _lists_of(weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    values = weights.values()
    if weights.layout == torch.sparse_bsr:
        if values.shape[2] != 1:
            raise ValueError(
                f"weights must have blocks of 2 x 1 or 4 x 1, got {values.shape[1]} x {values.shape[2]}"
            )
        values = values.flatten(1)
        values = values.squeeze(1) if values.shape[1] == 1 else values
    return values, weights.col_indices(), weights.crow_indices()


def _checked(
    values: Tensor, columns: Tensor, offsets: Tensor, dense: Tensor, name: str, n_columns: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same, contiguous; raises where they do not fit together or point outside."""
    if dense.ndim != 2 or dense.dtype not in _TYPES:
        raise ValueError(
            f"{name} must be float32, bfloat16 or float64 of shape (features, batch), "
            f"got {dense.dtype} of shape {tuple(dense.shape)}"
        )
    if values.dtype != dense.dtype:
        raise ValueError(f"weights must be {dense.dtype} like {name}, got {values.dtype}")
    if (
        values.ndim > 2
        or values.shape[:1] != columns.shape
        or (values.ndim == 2 and values.shape[1] not in BLOCKS[1:])
    ):
        raise ValueError(
            "values must have shape (n,), or (n, 2) or (n, 4) for blocks, like columns of shape "
            f"{tuple(columns.shape)}, got {tuple(values.shape)}"
        )
    if (
        columns.ndim != 1
        or offsets.ndim != 1
        or not offsets.shape[0]
        or columns.dtype != offsets.dtype
        or (columns.dtype not in (torch.int32, torch.int64))
    ):
        raise ValueError(
            "columns and offsets must be lists of int32 or of int64, got "
            f"{_described(columns)} and {_described(offsets)}"
        )
    if not values.device == columns.device == offsets.device == dense.device:
        raise ValueError(f"weights must be on {dense.device} like {name}, got {values.device}")
    columns, offsets = columns.contiguous(), offsets.contiguous()
    _check_lists(values, columns, offsets, n_columns)
    return values.contiguous(), columns, offsets, dense.contiguous()


def _described(x: Tensor) -> str:
    return f"{x.dtype} of shape {tuple(x.shape)} on {x.device}"


def _check_lists(values: Tensor, columns: Tensor, offsets: Tensor, n_columns: int) -> None:
    """Where the lists point; on a CPU the compiled products themselves look before they follow them."""
    if torch.compiler.is_compiling() or type(columns) not in PLAIN:
        return
    if columns.is_cpu:
        if values.dtype == torch.float64:
            Matrix(values, columns, offsets, n_columns).check()
        return
    if bool((offsets.diff() < 0).any() | (offsets[0] != 0) | (offsets[-1] != columns.shape[0])):
        raise ValueError(f"the row offsets of weights must ascend from 0 to {columns.shape[0]}, its entries")
    low, high = (int(v) for v in columns.aminmax()) if columns.shape[0] else (0, -1)
    if low < 0 or high >= n_columns:
        raise ValueError(f"the columns of weights must lie in [0, {n_columns}), got {low} to {high}")


def _check_rows(values: Tensor, offsets: Tensor, y: Tensor) -> None:
    rows = (offsets.shape[0] - 1) * (values.shape[1] if values.ndim == 2 else 1)
    if y.ndim != 2 or y.shape[0] != rows:
        raise ValueError(f"y must have shape ({rows}, batch), the rows of weights, got {tuple(y.shape)}")


def _direct(dense: Tensor, other: Tensor, bias: Tensor | None) -> bool:
    """Whether compiled code may be called past PyTorch's dispatcher (some ten microseconds)."""
    if not dense.is_cpu or dense.dtype == torch.float64 or torch.compiler.is_compiling():
        return False
    if type(dense) not in PLAIN or type(other) not in PLAIN or not (bias is None or type(bias) in PLAIN):
        return False
    return not torch._C._are_functorch_transforms_active()


def _plain(dense: Tensor, other: Tensor, bias: Tensor | None) -> bool:
    """Whether that may be done with no thought of gradients."""
    if torch.is_grad_enabled() and (
        dense.requires_grad or other.requires_grad or (bias is not None and bias.requires_grad)
    ):
        return False
    return _direct(dense, other, bias)
