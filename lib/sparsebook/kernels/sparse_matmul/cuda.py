"""Sparse products on a GPU, in Triton: a program for a row (of blocks) and a slice of columns.

The transposed product is the same product with the lists turned round (a stable sort by column): each row of
the result is summed by one program in a fixed order, without atomic additions.
"""

from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsebook.kernels.sparse_matmul.reference import rows_of

_WIDEST = 512  # columns that a program sums


@triton.jit
def _gather_kernel(
    Y, X, Values, Columns, Offsets, Bias, width, low, high, BLOCK: tl.constexpr, BIASED: tl.constexpr,
    CLAMPED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Row `row` of block row `program_id(0) // BLOCK`: the clamped sum of Values[e, row] * X[Columns[e]]."""
    row = tl.program_id(0)
    column = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    inside = column < width
    total = tl.zeros([WIDE], tl.float32)
    if BIASED:
        total += tl.load(Bias + row)
    for entry in range(tl.load(Offsets + row // BLOCK), tl.load(Offsets + row // BLOCK + 1)):
        source = X + tl.load(Columns + entry).to(tl.int64) * width
        x = tl.load(source + column, mask=inside, other=0.0)
        total += tl.load(Values + entry * BLOCK + row % BLOCK).to(tl.float32) * x.to(tl.float32)
    if CLAMPED:
        total = tl.where(total < low, low, total)
        total = tl.where(total > high, high, total)
    tl.store(Y + row.to(tl.int64) * width + column, total.to(Y.dtype.element_ty), mask=inside)


@triton.jit
def _product_kernel(Out, Y, X, Columns, Offsets, width, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """Entry e of the row's block: the inner product of Y[row] and X[Columns[e]]."""
    row = tl.program_id(0)
    own = Y + row.to(tl.int64) * width
    for entry in range(tl.load(Offsets + row // BLOCK), tl.load(Offsets + row // BLOCK + 1)):
        source = X + tl.load(Columns + entry).to(tl.int64) * width
        total = tl.zeros([WIDE], tl.float32)
        for start in range(0, width, WIDE):
            column = start + tl.arange(0, WIDE)
            left = tl.load(own + column, mask=column < width, other=0.0).to(tl.float32)
            total += left * tl.load(source + column, mask=column < width, other=0.0).to(tl.float32)
        tl.store(Out + entry * BLOCK + row % BLOCK, tl.sum(total).to(Out.dtype.element_ty))


def spmm_cuda(
    values: Tensor, columns: Tensor, offsets: Tensor, x: Tensor, bias: Tensor | None, low: float, high: float
) -> Tensor:
    """Arguments and result as the operator `sparsebook::spmm`; float32 or bfloat16."""
    block = values.shape[1] if values.ndim == 2 else 1
    rows, width = block * (offsets.shape[0] - 1), x.shape[1]
    y = x.new_empty((rows, width))
    if y.numel():
        wide = _wide(width)
        clamped = low > -torch.inf or high < torch.inf
        biases = values if bias is None else bias.float()
        with _on(x):
            _gather_kernel[(rows, -(-width // wide))](
                y, x, values, columns, offsets, biases, width, low, high, BLOCK=block,
                BIASED=bias is not None, CLAMPED=clamped, WIDE=wide,
            )  # fmt: skip
    return y


def spmm_t_cuda(values: Tensor, columns: Tensor, offsets: Tensor, y: Tensor, n_columns: int) -> Tensor:
    """Arguments and result as the operator `sparsebook::spmm_t`; float32 or bfloat16."""
    block = values.shape[1] if values.ndim == 2 else 1
    rows = (rows_of(offsets)[:, None] * block + torch.arange(block, device=y.device)).flatten()
    by_column, order = columns.repeat_interleave(block).sort(stable=True)
    bounds = torch.arange(n_columns + 1, device=y.device, dtype=by_column.dtype)
    starts = torch.searchsorted(by_column, bounds)
    return spmm_cuda(values.flatten()[order], rows[order], starts, y, None, -torch.inf, torch.inf)


def sddmm_cuda(columns: Tensor, offsets: Tensor, y: Tensor, x: Tensor, block: int) -> Tensor:
    """Arguments and result as the operator `sparsebook::sddmm`; float32 or bfloat16."""
    out = x.new_zeros((columns.shape[0], block) if block > 1 else (columns.shape[0],))
    if out.numel() and x.shape[1]:
        with _on(x):
            _product_kernel[(y.shape[0],)](
                out, y, x, columns, offsets, x.shape[1], BLOCK=block, WIDE=_wide(x.shape[1])
            )
    return out


def _wide(width: int) -> int:
    return min(_WIDEST, max(16, triton.next_power_of_2(width)))


def _on(tensor: Tensor) -> Any:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
