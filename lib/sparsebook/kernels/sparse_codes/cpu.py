"""Products of sparse codes and a dictionary on a CPU: rows gathered a slice of the columns at a time.

Rows are gathered from a table that is larger than the caches, so the time is that of moving bytes. Taking a
slice of eight registers of the columns for all rows before the next slice shrinks what is gathered from to
what the caches hold, and the sums of a slice stay in registers while the list of the row runs by.

Backward, the lists are turned round once by a counting sort (lists of rows by atom). Then one gathered row of
the incoming gradient serves both gradients: its product with the atom is the gradient of the code, its
weighted sum that of the atom. Every sum has one thread and a fixed order.
"""

from typing import Any, no_type_check

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from sparsebook.kernels.lanes import (
    WIDTH,
    broadcast,
    element,
    load,
    multiply_add,
    store,
    take_number,
)
from sparsebook.kernels.threads import run_threads, thread_count

_VECTORS = 8
SLICE = _VECTORS * WIDTH
_LEAST_WORK = 1 << 15  # multiplications that are worth a thread
_ROWS = 64

_float = ir.FloatType()
_i64 = ir.IntType(64)
_vector = ir.VectorType(_float, WIDTH)
_zeros = ir.Constant(_vector, [0.0] * WIDTH)

# Vectors in LLVM -----------------------------------------------------------------------------------------


def _sum_lanes(builder: Any, vector: Any) -> Any:
    kind = ir.FunctionType(_float, [_float, _vector])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{WIDTH}f32")
    return builder.call(function, [_float(0.0), vector], fastmath=("reassoc",))


def _vectors_at(builder: Any, pointer: Any, count: int) -> list[Any]:
    return [builder.gep(pointer, [_i64(WIDTH * v)]) for v in range(count)]


def _weighted_sum(count: int) -> Any:
    """The intrinsic out[at:] = sum of weights[i] * table[indices[i], column:], for `count` vectors."""

    @intrinsic
    @no_type_check
    def tile(_context, out, at, table, column, stride, indices, weights, first, last):
        integer = types.int64
        signature = types.void(out, integer, table, integer, integer, indices, weights, integer, integer)

        def generate(context, builder, signature, arguments):
            kinds = signature.args
            target = element(context, builder, kinds[0], *arguments[:2])
            source = element(context, builder, kinds[2], *arguments[2:4])
            index, weight = (element(context, builder, kinds[i], arguments[i], _i64(0)) for i in (5, 6))
            sums = [cgutils.alloca_once_value(builder, _zeros) for _ in range(count)]
            with cgutils.for_range_slice(builder, *arguments[7:], _i64(1)) as (i, _):
                row = builder.mul(builder.load(builder.gep(index, [i])), arguments[4])
                scale = broadcast(builder, builder.load(builder.gep(weight, [i])), _vector)
                cells = _vectors_at(builder, builder.gep(source, [row]), count)
                for cell, total in zip(cells, sums, strict=True):
                    term = multiply_add(builder, scale, load(builder, cell, _vector), builder.load(total))
                    builder.store(term, total)
            for cell, total in zip(_vectors_at(builder, target, count), sums, strict=True):
                store(builder, builder.load(total), cell)
            return context.get_dummy_value()

        return signature, generate

    return tile


def _sum_and_products(count: int, with_sum: bool) -> Any:
    """The intrinsic of `_weighted_sum` that also adds <table[indices[i], column:], atoms[at:]> to
    products[i].

    Without `with_sum` it only does the latter.
    """

    @intrinsic
    @no_type_check
    def tile(_context, out, atoms, at, table, column, stride, indices, weights, products, first, last):
        integer = types.int64
        signature = types.void(
            out, atoms, integer, table, integer, integer, indices, weights, products, integer, integer
        )

        def generate(context, builder, signature, arguments):
            kinds = signature.args
            target, atom = (element(context, builder, kinds[i], arguments[i], arguments[2]) for i in (0, 1))
            source = element(context, builder, kinds[3], *arguments[3:5])
            index, weight, product = (
                element(context, builder, kinds[i], arguments[i], _i64(0)) for i in (6, 7, 8)
            )
            parts = [load(builder, cell, _vector) for cell in _vectors_at(builder, atom, count)]
            sums = [cgutils.alloca_once_value(builder, _zeros) for _ in range(count)]
            with cgutils.for_range_slice(builder, *arguments[9:], _i64(1)) as (i, _):
                row = builder.mul(builder.load(builder.gep(index, [i])), arguments[5])
                cells = _vectors_at(builder, builder.gep(source, [row]), count)
                vectors = [load(builder, cell, _vector) for cell in cells]
                if with_sum:
                    scale = broadcast(builder, builder.load(builder.gep(weight, [i])), _vector)
                    for vector, total in zip(vectors, sums, strict=True):
                        builder.store(multiply_add(builder, scale, vector, builder.load(total)), total)
                chains = [_zeros, _zeros]  # two, so that a product need not wait for the one before
                for v, (vector, part) in enumerate(zip(vectors, parts, strict=True)):
                    chains[v % 2] = multiply_add(builder, vector, part, chains[v % 2])
                inner = _sum_lanes(builder, builder.fadd(*chains))
                cell = builder.gep(product, [i])
                builder.store(builder.fadd(builder.load(cell), inner), cell)
            if with_sum:
                for cell, total in zip(_vectors_at(builder, target, count), sums, strict=True):
                    store(builder, builder.load(total), cell)
            return context.get_dummy_value()

        return signature, generate

    return tile


_sum_8, _sum_1 = _weighted_sum(_VECTORS), _weighted_sum(1)
_both_8, _both_1 = _sum_and_products(_VECTORS, True), _sum_and_products(1, True)
_products_8, _products_1 = _sum_and_products(_VECTORS, False), _sum_and_products(1, False)

# Loops ---------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
@no_type_check
def _slice_width(column, dim):
    """Columns to take from `column` on: a slice of eight registers, of one, or a single column."""
    left = dim - column
    return SLICE if left >= SLICE else WIDTH if left >= WIDTH else 1


@njit(cache=True, nogil=True)
@no_type_check
def _sum_rows(out, row, column, width, table, dim, indices, weights, first, last):
    """One slice of one row of the result."""
    at = row * dim + column
    if width == SLICE:
        _sum_8(out, at, table, column, dim, indices, weights, first, last)
    elif width == WIDTH:
        _sum_1(out, at, table, column, dim, indices, weights, first, last)
    else:
        total = np.float32(0.0)
        for i in range(first, last):
            total += weights[i] * table[indices[i] * dim + column]
        out[at] = total


@njit(cache=True, nogil=True)
@no_type_check
def _work_sums(_thread, out, table, dim, indices, weights, offsets, columns, counter):
    """Take a slice of the columns of some rows until none is left: a slice of all rows before the next."""
    rows = offsets.size - 1
    parts = (rows + _ROWS - 1) // _ROWS
    while True:
        item = take_number(counter)
        if item >= parts * (columns.size - 1):
            return
        column, width = columns[item // parts], columns[item // parts + 1] - columns[item // parts]
        start = item % parts * _ROWS
        for row in range(start, min(rows, start + _ROWS)):
            _sum_rows(out, row, column, width, table, dim, indices, weights, offsets[row], offsets[row + 1])


@njit(cache=True, nogil=True)
@no_type_check
def _sum_and_multiply(
    out, atoms, atom, column, width, table, dim, rows, weights, products, first, last, both
):
    """One slice of one atom: its weighted sum of rows if `both`, and its products with them."""
    at = atom * dim + column
    if width == SLICE:
        if both:
            _both_8(out, atoms, at, table, column, dim, rows, weights, products, first, last)
        else:
            _products_8(out, atoms, at, table, column, dim, rows, weights, products, first, last)
    elif width == WIDTH:
        if both:
            _both_1(out, atoms, at, table, column, dim, rows, weights, products, first, last)
        else:
            _products_1(out, atoms, at, table, column, dim, rows, weights, products, first, last)
    else:
        for i in range(first, last):
            products[i] += table[rows[i] * dim + column] * atoms[at]
        if both:
            _sum_rows(out, atom, column, width, table, dim, rows, weights, first, last)


@njit(cache=True, nogil=True)
@no_type_check
def _work_atoms(
    _thread, out, atoms, table, dim, rows, weights, products, offsets, columns, bounds, both, counter
):  # fmt: skip
    """Take a run of atoms until none is left; all slices of an atom while its rows are in the cache."""
    while True:
        item = take_number(counter)
        if item >= bounds.size - 1:
            return
        for atom in range(bounds[item], bounds[item + 1]):
            for c in range(columns.size - 1):
                _sum_and_multiply(
                    out, atoms, atom, columns[c], columns[c + 1] - columns[c], table, dim, rows, weights,
                    products, offsets[atom], offsets[atom + 1], both,
                )  # fmt: skip


@njit(cache=True, nogil=True)
@no_type_check
def turn_lists(indices, offsets, n_atoms):
    """Lists of atoms by row as lists of rows by atom, by counting.

    Returns where each atom's list begins, and for each entry in the new order its row and its old place.
    """
    begins = np.zeros(n_atoms + 1, np.int64)
    for i in range(indices.size):
        begins[indices[i] + 1] += 1
    for atom in range(n_atoms):
        begins[atom + 1] += begins[atom]
    free = begins[:-1].copy()
    rows, places = np.empty(indices.size, np.int64), np.empty(indices.size, np.int64)
    for row in range(offsets.size - 1):
        for i in range(offsets[row], offsets[row + 1]):
            at = free[indices[i]]
            free[indices[i]] = at + 1
            rows[at], places[at] = row, i
    return begins, rows, places


# Operators -----------------------------------------------------------------------------------------------


def sparse_decode_cpu(values: Tensor, indices: Tensor, offsets: Tensor, dictionary: Tensor) -> Tensor:
    """Arguments and result as the operator `sparsebook::sparse_decode`; any float but float64."""
    dim = dictionary.shape[1]
    out = _empty(len(offsets) - 1, dim)
    _sums(_floats(out), _floats(dictionary), dim, _integers(indices), _floats(values), _integers(offsets))
    return out.to(dictionary.dtype)


def sparse_project_cpu(x: Tensor, indices: Tensor, offsets: Tensor, dictionary: Tensor) -> Tensor:
    """Arguments and result as the operator `sparsebook::sparse_project`; any float but float64."""
    unused = x.new_empty(0)
    return sparse_decode_backward_cpu(x, unused, indices, offsets, dictionary, True, False)[0].to(x.dtype)


def sparse_decode_backward_cpu(
    grad: Tensor, values: Tensor, indices: Tensor, offsets: Tensor, dictionary: Tensor,
    for_values: bool, for_dictionary: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Arguments and result as the operator `sparsebook::sparse_decode_backward`; any float but float64."""
    n_atoms, dim = dictionary.shape
    begins, rows, places = turn_lists(_integers(indices), _integers(offsets), n_atoms)
    weights = _floats(values)[places] if for_dictionary else np.empty(0, np.float32)
    table, n = _floats(grad), len(rows)
    grad_values, grad_dictionary = (
        _empty(n if for_values else 0),
        _empty(n_atoms if for_dictionary else 0, dim),
    )
    if for_values:
        products = np.zeros(n, np.float32)
        threads = thread_count(n * dim, _LEAST_WORK)
        # Runs of atoms with about the same number of entries, a few for each thread.
        bounds = np.searchsorted(begins, np.linspace(0, n, 8 * threads + 1))
        bounds[0], bounds[-1] = 0, n_atoms
        run_threads(
            _work_atoms, threads, _floats(grad_dictionary), _floats(dictionary), table, dim, rows, weights,
            products, begins, _columns(dim), bounds, for_dictionary, np.zeros(1, np.int64),
        )  # fmt: skip
        grad_values.numpy()[places] = products
    elif for_dictionary:
        _sums(_floats(grad_dictionary), table, dim, rows, weights, begins)
    return grad_values.to(dictionary.dtype), grad_dictionary.to(dictionary.dtype)


def _sums(
    out: np.ndarray,
    table: np.ndarray,
    dim: int,
    indices: np.ndarray,
    weights: np.ndarray,
    offsets: np.ndarray,
) -> None:
    """Rows of out, each the weighted sum of a list of rows of the table."""
    threads = thread_count(len(indices) * dim, _LEAST_WORK)
    counter = np.zeros(1, np.int64)
    run_threads(_work_sums, threads, out, table, dim, indices, weights, offsets, _columns(dim), counter)


def _columns(dim: int) -> np.ndarray:
    """Where the slices of the columns begin, and the end."""
    bounds = [0]
    while bounds[-1] < dim:
        bounds.append(bounds[-1] + int(_slice_width(bounds[-1], dim)))
    return np.array(bounds)


def _empty(*shape: int) -> Tensor:
    """Float32 in memory of NumPy's, which asks for huge pages: to touch 40 MB first costs 4 ms, not 17."""
    return torch.from_numpy(np.empty(shape, np.float32))


def _floats(x: Tensor) -> np.ndarray:
    return x.detach().float().contiguous().resolve_neg().view(-1).numpy()


def _integers(x: Tensor) -> np.ndarray:
    return x.to(torch.int64).contiguous().numpy()
