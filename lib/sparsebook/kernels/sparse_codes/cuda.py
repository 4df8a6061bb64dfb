"""Products of sparse codes and a dictionary on a GPU, in Triton: a program for a row and a slice of columns.

The dictionary's gradient is the same product with the lists turned round (a stable sort by atom): each atom
is summed by one program in a fixed order, without atomic additions.
"""

from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsebook.kernels.sparse_codes.reference import rows_of

_WIDEST = 512  # columns that a program sums


@triton.jit
def _sum_kernel(Out, Table, Indices, Weights, Offsets, dim, WIDE: tl.constexpr):
    """Row i of Out: the sum of Weights[e] * Table[Indices[e]] over its entries."""
    row = tl.program_id(0)
    column = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    total = tl.zeros([WIDE], tl.float32)
    for entry in range(tl.load(Offsets + row), tl.load(Offsets + row + 1)):
        source = Table + tl.load(Indices + entry).to(tl.int64) * dim
        x = tl.load(source + column, mask=column < dim, other=0.0)
        total += tl.load(Weights + entry).to(tl.float32) * x.to(tl.float32)
    target = Out + row.to(tl.int64) * dim + column
    tl.store(target, total.to(Out.dtype.element_ty), mask=column < dim)


@triton.jit
def _product_kernel(Out, X, Dictionary, Indices, Offsets, dim, WIDE: tl.constexpr):
    """Entry e of row i: the inner product of X[i] and Dictionary[Indices[e]]."""
    row = tl.program_id(0)
    own = X + row.to(tl.int64) * dim
    for entry in range(tl.load(Offsets + row), tl.load(Offsets + row + 1)):
        source = Dictionary + tl.load(Indices + entry).to(tl.int64) * dim
        total = tl.zeros([WIDE], tl.float32)
        for start in range(0, dim, WIDE):
            column = start + tl.arange(0, WIDE)
            left = tl.load(own + column, mask=column < dim, other=0.0).to(tl.float32)
            total += left * tl.load(source + column, mask=column < dim, other=0.0).to(tl.float32)
        tl.store(Out + entry, tl.sum(total).to(Out.dtype.element_ty))


def sparse_decode_cuda(values: Tensor, indices: Tensor, offsets: Tensor, dictionary: Tensor) -> Tensor:
    """Arguments and result as the operator `sparsebook::sparse_decode`; any float but float64."""
    return _sums(values, indices, offsets, dictionary)


def sparse_project_cuda(x: Tensor, indices: Tensor, offsets: Tensor, dictionary: Tensor) -> Tensor:
    """Arguments and result as the operator `sparsebook::sparse_project`; any float but float64."""
    x, indices, offsets, dictionary = (t.contiguous() for t in (x, indices, offsets, dictionary))
    out = x.new_empty(len(indices))
    if len(x):
        with _on(x):
            _product_kernel[(len(x),)](out, x, dictionary, indices, offsets, x.shape[1], WIDE=_wide(x))
    return out


def sparse_decode_backward_cuda(
    grad: Tensor, values: Tensor, indices: Tensor, offsets: Tensor, dictionary: Tensor,
    for_values: bool, for_dictionary: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Arguments and result as the operator `sparsebook::sparse_decode_backward`; any float but float64."""
    n_atoms, dim = dictionary.shape
    grad_values, grad_dictionary = dictionary.new_empty(0), dictionary.new_empty((0, dim))
    if for_values:
        grad_values = sparse_project_cuda(grad, indices, offsets, dictionary)
    if for_dictionary:
        atoms, order = indices.sort(stable=True)
        bounds = torch.arange(n_atoms + 1, device=indices.device, dtype=atoms.dtype)
        grad_dictionary = _sums(
            values[order], rows_of(offsets)[order], torch.searchsorted(atoms, bounds), grad
        )
    return grad_values, grad_dictionary


def _sums(weights: Tensor, indices: Tensor, offsets: Tensor, table: Tensor) -> Tensor:
    weights, indices, offsets, table = (t.contiguous() for t in (weights, indices, offsets, table))
    rows, dim = len(offsets) - 1, table.shape[1]
    out = table.new_empty((rows, dim))
    if rows and dim:
        wide = _wide(table)
        with _on(table):
            _sum_kernel[(rows, -(-dim // wide))](out, table, indices, weights, offsets, dim, WIDE=wide)
    return out


def _wide(table: Tensor) -> int:
    return min(_WIDEST, max(16, triton.next_power_of_2(table.shape[1])))


def _on(tensor: Tensor) -> Any:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
