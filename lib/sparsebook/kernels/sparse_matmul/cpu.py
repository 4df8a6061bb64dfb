"""Sparse matrix times dense matrix on a CPU, a strip of columns at a time.

The dense operand lies row by row, so that one non-zero multiplies a run of neighbouring columns. A strip is
as wide as the sums of one row (or block of rows) fit into registers; all rows are done for it before the
next, so that what the non-zeros pick from stays in the caches (Elsen et al. 2019, section 3).
Strips and ranges of rows are handed out by an atomic counter to `torch.get_num_threads()` threads.

The transposed product adds into its result instead of gathering: no transposed index is needed. Its strips
belong to one thread each, so every sum has a fixed order whatever the number of threads.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, no_type_check

import numpy as np
import torch
from numba import carray, cfunc, njit
from torch import Tensor

from sparsebook.kernels.selection.lanes import WIDTH, take_number
from sparsebook.kernels.sparse_matmul.registers import counts, gather, products, scatter
from sparsebook.kernels.threads import JOB, pointer_to, run_job, thread_count

_LEAST_WORK = 1 << 16  # multiplications that are worth a thread

# Work for one thread -------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
@no_type_check
def _share(offsets, part, parts):
    """First row of a part when the rows are divided by their non-zeros (and one for each row's own cost)."""
    rows = len(offsets) - 1
    goal = (offsets[rows] + rows) * part // parts
    low, high = 0, rows
    while low < high:
        middle = (low + high) // 2
        if offsets[middle] + middle < goal:
            low = middle + 1
        else:
            high = middle
    return low


# What a job finds in its block of arguments, one number each; a counter starts at zero.
_COUNTER, _PLAN, _STRIPS, _PARTS, _ROWS, _OFFSETS, _COLUMNS, _VALUES, _Y, _X, _STRIDE, _BIAS, _BOUNDS = range(
    13
)


@lru_cache
def _gather_job(block: tuple[int, ...], value: type, index: type) -> Any:
    """A job of `gather` for all strips and parts of the rows."""

    @cfunc(JOB, cache=True)
    @no_type_check
    def job(block_of_arguments):
        a = carray(block_of_arguments, 13)
        plan = carray(pointer_to(a[_PLAN]), (a[_STRIPS], 3), np.int64)
        offsets = carray(pointer_to(a[_OFFSETS]), a[_ROWS] + 1, index)
        columns = carray(pointer_to(a[_COLUMNS]), 1, index)
        values, y, x = (
            carray(pointer_to(a[_VALUES]), 1, value),
            carray(pointer_to(a[_Y]), 1, value),
            carray(pointer_to(a[_X]), 1, value),
        )
        bias, bounds = (
            carray(pointer_to(a[_BIAS]), 1, np.float32),
            carray(pointer_to(a[_BOUNDS]), 2, np.float32),
        )
        parts = a[_PARTS]
        while True:
            item = take_number(a)
            if item >= len(plan) * parts:
                return
            begin, end = _share(offsets, item % parts, parts), _share(offsets, item % parts + 1, parts)
            at, registers, tail = plan[item // parts]
            gather(
                registers, tail, begin, end, block, offsets, columns, values, y, x, at, a[_STRIDE], bias,
                bounds[0], bounds[1],
            )  # fmt: skip

    return job


@lru_cache
def _scatter_job(block: tuple[int, ...], value: type, index: type) -> Any:
    """A job of `scatter`: each strip is one thread's."""

    @cfunc(JOB, cache=True)
    @no_type_check
    def job(block_of_arguments):
        a = carray(block_of_arguments, 13)
        plan = carray(pointer_to(a[_PLAN]), (a[_STRIPS], 3), np.int64)
        offsets = carray(pointer_to(a[_OFFSETS]), a[_ROWS] + 1, index)
        columns = carray(pointer_to(a[_COLUMNS]), 1, index)
        values, y = carray(pointer_to(a[_VALUES]), 1, value), carray(pointer_to(a[_Y]), 1, value)
        x = carray(pointer_to(a[_X]), 1, np.float32)
        while True:
            strip = take_number(a)
            if strip >= len(plan):
                return
            at, registers, tail = plan[strip]
            scatter(registers, tail, 0, a[_ROWS], block, offsets, columns, values, y, x, at, a[_STRIDE])

    return job


@lru_cache
def _products_job(block: tuple[int, ...], value: type, index: type) -> Any:
    """A job of `products`: each part of the rows is one thread's, for all strips."""

    @cfunc(JOB, cache=True)
    @no_type_check
    def job(block_of_arguments):
        a = carray(block_of_arguments, 13)
        plan = carray(pointer_to(a[_PLAN]), (a[_STRIPS], 3), np.int64)
        offsets = carray(pointer_to(a[_OFFSETS]), a[_ROWS] + 1, index)
        columns = carray(pointer_to(a[_COLUMNS]), 1, index)
        out = carray(pointer_to(a[_VALUES]), 1, np.float32)
        y, x = carray(pointer_to(a[_Y]), 1, value), carray(pointer_to(a[_X]), 1, value)
        parts = a[_PARTS]
        while True:
            part = take_number(a)
            if part >= parts:
                return
            begin, end = _share(offsets, part, parts), _share(offsets, part + 1, parts)
            for strip in range(len(plan)):
                at, registers, tail = plan[strip]
                products(registers, tail, begin, end, block, offsets, columns, out, y, x, at, a[_STRIDE])

    return job


@lru_cache
def _look_job(index: type) -> Any:
    """A job that replaces its arguments (columns, entries, offsets, rows) by what `lists_fault` returns."""

    @cfunc(JOB, cache=True)
    @no_type_check
    def job(block_of_arguments):
        a = carray(block_of_arguments, 4)
        entries, rows = a[1], a[3]
        columns, offsets = carray(pointer_to(a[0]), entries, index), carray(pointer_to(a[2]), rows + 1, index)
        descends = (offsets[0] != 0) | (offsets[rows] != entries)
        for row in range(rows):
            descends |= offsets[row + 1] < offsets[row]
        low = high = columns[0] if entries else index(0)
        for column in columns:
            low, high = min(low, column), max(high, column)
        a[0], a[1], a[2] = descends, low, high

    return job


# Strips --------------------------------------------------------------------------------------------------


@lru_cache(256)
def overlapping_strips(columns: int, block: int) -> Tensor:
    """Strips of one width that cover the columns; the last reaches back over the one before.

    Returns
    -------
    int64 [strips, 3]
        First column, registers, lanes of the last register that count. The width is the one with the least
        work, where a strip also costs as much as two and a half of its registers (index, weight, loop).
    """
    vectors = math.ceil(columns / WIDTH)
    if vectors in counts(block):
        return torch.tensor([[0, vectors, columns - (vectors - 1) * WIDTH]])
    fitting = [count for count in counts(block) if count * WIDTH <= columns]
    count = min(reversed(fitting), key=lambda count: math.ceil(vectors / count) * (count + 2.5))
    width = count * WIDTH
    starts = [*range(0, columns - width, width), columns - width]
    return torch.tensor([[start, count, WIDTH] for start in starts])


@lru_cache(256)
def separate_strips(columns: int, block: int, least: int) -> Tensor:
    """At least `least` strips that cover every column once, where there are that many registers."""
    vectors, strips = math.ceil(columns / WIDTH), []
    widest = min(max(counts(block)), max(1, math.ceil(vectors / least)))
    at = 0
    while vectors:
        count = max(count for count in counts(block) if count <= min(widest, vectors))
        vectors -= count
        strips.append([at, count, WIDTH if vectors else columns - at - (count - 1) * WIDTH])
        at += count * WIDTH
    return torch.tensor(strips)


# Operators -----------------------------------------------------------------------------------------------

_NUMPY = {
    torch.float32: np.float32, torch.bfloat16: np.uint16, torch.int32: np.int32, torch.int64: np.int64,
}  # fmt: skip


@lru_cache(64)
def _bounds(low: float, high: float) -> Tensor:
    return torch.tensor([low, high])


@lru_cache(64)
def _no_bias(rows: int) -> Tensor:
    return torch.zeros(rows)


def _run(
    job: Callable[..., Any], threads: int, plan: Tensor, parts: int, values: Tensor, columns: Tensor,
    offsets: Tensor, y: Tensor, x: Tensor, bias: Tensor | None = None, bounds: Tensor | None = None,
) -> None:  # fmt: skip
    """Run a kind of job over lists and operands, all contiguous."""
    block = values.shape[1] if values.ndim == 2 else 1
    kinds = _NUMPY[y.dtype], _NUMPY[columns.dtype]
    run_job(
        job((0,) * block, *kinds), threads,
        [
            0, plan.data_ptr(), plan.shape[0], parts, offsets.shape[0] - 1, offsets.data_ptr(),
            columns.data_ptr(), values.data_ptr(), y.data_ptr(), x.data_ptr(), x.shape[1],
            0 if bias is None else bias.data_ptr(), 0 if bounds is None else bounds.data_ptr(),
        ],
    )  # fmt: skip


def lists_fault(columns: Tensor, offsets: Tensor) -> tuple[bool, int, int]:
    """Whether contiguous offsets fail to ascend from 0 to the entries; lowest and highest column."""
    arguments = [columns.data_ptr(), columns.shape[0], offsets.data_ptr(), offsets.shape[0] - 1]
    descends, low, high, _ = run_job(_look_job(_NUMPY[columns.dtype]), 1, arguments)
    return bool(descends), low, high if columns.shape[0] else -1


def spmm_cpu(
    values: Tensor, columns: Tensor, offsets: Tensor, x: Tensor, bias: Tensor | None, low: float, high: float
) -> Tensor:
    """Arguments and result as the operator `sparsebook::spmm`; float32 or bfloat16, contiguous."""
    block = values.shape[1] if values.ndim == 2 else 1
    rows, width = block * (offsets.shape[0] - 1), x.shape[1]
    y = x.new_empty((rows, width))
    if y.numel():
        plan = overlapping_strips(width, block)
        threads = thread_count(values.numel() * width, _LEAST_WORK)
        parts = 1 if threads == 1 or plan.shape[0] >= 8 * threads else 2 * threads
        biases = _no_bias(rows) if bias is None else bias.float()
        _run(_gather_job, threads, plan, parts, values, columns, offsets, y, x, biases, _bounds(low, high))
    return y


def spmm_t_cpu(values: Tensor, columns: Tensor, offsets: Tensor, y: Tensor, n_columns: int) -> Tensor:
    """Arguments and result as the operator `sparsebook::spmm_t`; float32 or bfloat16, contiguous."""
    block, width = values.shape[1] if values.ndim == 2 else 1, y.shape[1]
    # Sums are kept in float32: a half type would be rounded at every non-zero.
    x = torch.zeros((n_columns, width))
    if x.numel() and offsets.shape[0] > 1:
        threads = thread_count(values.numel() * width, _LEAST_WORK)
        plan = separate_strips(width, block, threads)
        _run(_scatter_job, threads, plan, 1, values, columns, offsets, y, x)
    return x.to(y.dtype)


def sddmm_cpu(columns: Tensor, offsets: Tensor, y: Tensor, x: Tensor, block: int) -> Tensor:
    """Arguments and result as the operator `sparsebook::sddmm`; float32 or bfloat16, contiguous."""
    out = torch.zeros((columns.shape[0], block) if block > 1 else (columns.shape[0],))
    if out.numel() and x.shape[1]:
        threads = thread_count(out.numel() * x.shape[1], _LEAST_WORK)
        plan = separate_strips(x.shape[1], block, 1)
        _run(_products_job, threads, plan, 4 * threads, out, columns, offsets, y, x)
    return out.to(x.dtype)
