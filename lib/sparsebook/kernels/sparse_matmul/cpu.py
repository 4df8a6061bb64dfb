"""Sparse matrix times dense matrix on a CPU, a strip of columns at a time.

The dense operand lies row by row, so that one non-zero multiplies a run of neighbouring columns. A strip is
as wide as the sums of one row (or block of rows) fit into registers; all rows are done for it before the
next, so that what the non-zeros pick from stays in the caches (Elsen et al. 2019, section 3). Where a row of
the operand is picked often enough, its strip is first copied together (a tile): loads that straddle two cache
lines, which cost double, and pages without end happen once instead of for every non-zero.
Strips and ranges of rows are handed out by an atomic counter to `torch.get_num_threads()` threads.

The transposed product adds into its result instead of gathering: no transposed index is needed. Its strips
belong to one thread each, so every sum has a fixed order whatever the number of threads.

Each call looks through the lists before it follows them, in the same compiled call: that is a hundredth of
the work, and no list can point outside whoever changed it and however.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, no_type_check

import numpy as np
import torch
from numba import carray, cfunc, njit
from torch import Tensor

from sparsebook.kernels.lanes import WIDTH, take_number
from sparsebook.kernels.sparse_matmul.registers import (
    COLUMNS,
    ENTRIES,
    N_ARGUMENTS,
    OFFSETS,
    PARTS,
    PLAN,
    ROWS,
    SOURCES,
    STRIPS,
    THREAD,
    TILE,
    TILE_SIZE,
    clear,
    counts,
    gather,
    pack,
    products,
    scatter,
    unpack,
)
from sparsebook.kernels.threads import JOB, pointer_to, run_job, thread_count

_LEAST_WORK = 1 << 16  # multiplications that are worth a thread
_TILE_REGISTERS = 8  # of a tile's row, at most
_TILE, _LARGEST_TILE = 1 << 18, 1 << 20  # bytes: what is aimed at; what one register a row may take
_PICKS = 24  # times that a row must be picked for its copy to pay; half of it where rows are not aligned

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


@njit(cache=True, nogil=True)
@no_type_check
def job_arguments(block):
    """The block as an array, and the plan: first column, registers and last lanes of each strip."""
    a = carray(block, N_ARGUMENTS)
    return a, carray(pointer_to(a[PLAN]), (a[STRIPS], 3), np.int64)


@lru_cache
def _gather_job(block: tuple[int, ...], value: type, index: type) -> Any:
    """A job of `gather` for all strips and parts of the rows."""

    @cfunc(JOB, cache=True)
    @no_type_check
    def job(block_of_arguments):
        a, plan = job_arguments(block_of_arguments)
        offsets, parts = carray(pointer_to(a[OFFSETS]), a[ROWS] + 1, index), a[PARTS]
        while True:
            item = take_number(a)
            if item >= len(plan) * parts:
                return
            begin, end = _share(offsets, item % parts, parts), _share(offsets, item % parts + 1, parts)
            at, registers, tail = plan[item // parts]
            gather(a, at, registers, tail, begin, end, None, block, value, index)

    return job


@lru_cache
def _packed_job(block: tuple[int, ...], value: type, index: type) -> Any:
    """A job of `gather` for all strips and parts of the rows, each thread with a tile of its own."""

    @cfunc(JOB, cache=True)
    @no_type_check
    def job(block_of_arguments):
        a, plan = job_arguments(block_of_arguments)
        offsets, parts = carray(pointer_to(a[OFFSETS]), a[ROWS] + 1, index), a[PARTS]
        tile, before = a[TILE] + 4 * a[TILE_SIZE] * take_number(a[THREAD:]), -1
        while True:
            item = take_number(a)
            if item >= len(plan) * parts:
                return
            begin, end = _share(offsets, item % parts, parts), _share(offsets, item % parts + 1, parts)
            at, registers, tail = plan[item // parts]
            if at != before:
                pack(a, at, registers, tail, 0, a[SOURCES], tile, block, value, index)
                before = at
            gather(a, at, registers, tail, begin, end, tile, block, value, index)

    return job


@lru_cache
def _scatter_job(block: tuple[int, ...], value: type, index: type) -> Any:
    """A job of `scatter`: each strip is one thread's."""

    @cfunc(JOB, cache=True)
    @no_type_check
    def job(block_of_arguments):
        a, plan = job_arguments(block_of_arguments)
        while True:
            strip = take_number(a)
            if strip >= len(plan):
                return
            at, registers, tail = plan[strip]
            scatter(a, at, registers, tail, 0, a[ROWS], None, block, value, index)

    return job


@lru_cache
def _packed_scatter_job(block: tuple[int, ...], value: type, index: type) -> Any:
    """A job of `scatter`, each thread into a tile of its own that is copied to the result at the end."""

    @cfunc(JOB, cache=True)
    @no_type_check
    def job(block_of_arguments):
        a, plan = job_arguments(block_of_arguments)
        tile, sources = a[TILE] + 4 * a[TILE_SIZE] * take_number(a[THREAD:]), a[SOURCES]
        while True:
            strip = take_number(a)
            if strip >= len(plan):
                return
            at, registers, tail = plan[strip]
            clear(a, at, registers, tail, 0, sources, tile, block, value, index)
            scatter(a, at, registers, tail, 0, a[ROWS], tile, block, value, index)
            unpack(a, at, registers, tail, 0, sources, tile, block, value, index)

    return job


@lru_cache
def _products_job(block: tuple[int, ...], value: type, index: type) -> Any:
    """A job of `products`: each part of the rows is one thread's, for all strips."""

    @cfunc(JOB, cache=True)
    @no_type_check
    def job(block_of_arguments):
        a, plan = job_arguments(block_of_arguments)
        offsets, parts = carray(pointer_to(a[OFFSETS]), a[ROWS] + 1, index), a[PARTS]
        while True:
            part = take_number(a)
            if part >= parts:
                return
            begin, end = _share(offsets, part, parts), _share(offsets, part + 1, parts)
            for strip in range(len(plan)):
                at, registers, tail = plan[strip]
                products(a, at, registers, tail, begin, end, block, value, index)

    return job


@lru_cache
def _look_job(index: type) -> Any:
    """A job that leaves -1 or -2, lowest and highest column at the head of lists that cannot be followed."""

    @cfunc(JOB, cache=True)
    @no_type_check
    def job(block_of_arguments):
        a = carray(block_of_arguments, N_ARGUMENTS)
        entries, rows = a[ENTRIES], a[ROWS]
        columns = carray(pointer_to(a[COLUMNS]), entries, index)
        offsets = carray(pointer_to(a[OFFSETS]), rows + 1, index)
        descends = (offsets[0] != 0) | (offsets[rows] != entries)
        for row in range(rows):
            descends |= offsets[row + 1] < offsets[row]
        low = high = columns[0] if entries else index(0)
        for column in columns:
            low, high = min(low, column), max(high, column)
        if descends:
            a[0] = -1
        elif entries and (low < 0 or high >= a[SOURCES]):
            a[0], a[1], a[2] = -2, low, high

    return job


# Strips --------------------------------------------------------------------------------------------------


class Strips(NamedTuple):
    """Strips of columns, as a job reads them."""

    table: Tensor
    """int64 [strips, 3]: first column, registers, lanes of the last register that count."""
    address: int
    number: int
    widest: int

    @classmethod
    def of(cls, lines: list[list[int]]) -> "Strips":
        table = torch.tensor(lines, dtype=torch.int64).reshape(-1, 3)
        return cls(table, table.data_ptr(), len(lines), max((line[1] for line in lines), default=0))


@lru_cache(256)
def overlapping_strips(columns: int, block: int) -> Strips:
    """Strips of one width that cover the columns; the last reaches back over the one before.

    The width is the one with the least work, where a strip also costs as much as two and a half of its
    registers (index, weight, loop).
    """
    vectors = math.ceil(columns / WIDTH)
    if vectors in counts(block):
        return Strips.of([[0, vectors, columns - (vectors - 1) * WIDTH]])
    fitting = [count for count in counts(block) if count * WIDTH <= columns]
    count = min(reversed(fitting), key=lambda count: math.ceil(vectors / count) * (count + 2.5))
    width = count * WIDTH
    starts = [*range(0, columns - width, width), columns - width]
    return Strips.of([[start, count, WIDTH] for start in starts])


@lru_cache(256)
def separate_strips(columns: int, block: int, number: int) -> Strips:
    """At least `number` strips that cover every column once, as even as the counts of registers allow."""
    vectors, allowed, lines, at = math.ceil(columns / WIDTH), counts(block), [], 0
    left = max(number, math.ceil(vectors / max(allowed)))
    while vectors:
        fitting = [count for count in allowed if count <= vectors]
        count = min((count for count in fitting if count * left >= vectors), default=fitting[-1])
        vectors, left = vectors - count, max(1, left - 1)
        lines.append([at, count, WIDTH if vectors else columns - at - (count - 1) * WIDTH])
        at += count * WIDTH
    return Strips.of(lines)


@lru_cache(256)
def tile_strips(columns: int, block: int, rows: int, threads: int) -> Strips:
    """Strips for tiles of `rows` rows, the same number for each of the threads where there are that many."""
    widest = max(1, min(_TILE_REGISTERS, max(counts(block)), _TILE // (4 * WIDTH * rows)))
    number = math.ceil(columns / WIDTH / widest)
    return separate_strips(columns, block, math.ceil(number / threads) * threads)


# Operators -----------------------------------------------------------------------------------------------

_NUMPY = {
    torch.float32: np.float32, torch.bfloat16: np.uint16, torch.int32: np.int32, torch.int64: np.int64,
}  # fmt: skip
FAST = (torch.float32, torch.bfloat16)
_NOTHING = Strips.of([])


@lru_cache(64)
def _bounds(low: float | int, high: float | int) -> Tensor:
    return torch.tensor([low, high], dtype=torch.float32)  # whole numbers would make integers of it


@lru_cache(64)
def _no_bias(rows: int) -> Tensor:
    return torch.zeros(rows)


class Plan(NamedTuple):
    """How a matrix is multiplied with operands of one width."""

    job: Any
    look: Any
    arguments: tuple[int, ...]
    """The first of a job's arguments, up to the values' address."""
    tile: int
    """Floats of a thread's tile, 0 without."""


class Matrix:
    """Lists on a CPU, contiguous, as addresses and sizes; whoever makes one keeps their memory alive."""

    def __init__(self, values: Tensor, columns: Tensor, offsets: Tensor, sources: int) -> None:
        self.dtype, self.index = values.dtype, _NUMPY[columns.dtype]
        self.block = values.shape[1] if values.ndim == 2 else 1
        self.entries, self.row_blocks, self.sources = columns.shape[0], offsets.shape[0] - 1, sources
        self.rows, self.numbers = self.row_blocks * self.block, self.entries * self.block
        self.addresses = offsets.data_ptr(), columns.data_ptr(), values.data_ptr()
        self._plans: dict[tuple[int, int], Plan] = {}

    def plan(self, width: int, threads: int) -> Plan:
        """For a product with an operand of `width` columns."""
        found = self._plans.get((width, threads))
        if found is None:
            if len(self._plans) > 64:
                self._plans.clear()
            found = self._plans[width, threads] = self._new_plan(width, threads)
        return found

    def _new_plan(self, width: int, threads: int) -> Plan:
        aligned = width % WIDTH == 0
        # Unless rows are aligned, threads side by side would write to the same cache lines: then each has
        # rows of its own, and a tile of each strip.
        picks = self.entries if aligned else 2 * self.entries // threads
        if picks < _PICKS * self.sources or 4 * WIDTH * self.sources > _LARGEST_TILE:
            strips = overlapping_strips(width, self.block)
            parts = 1 if threads == 1 or strips.number >= 8 * threads else 2 * threads
            return self.arguments(_gather_job, strips, parts)
        strips = tile_strips(width, self.block, self.sources, threads if aligned else 1)
        parts = 1 if aligned and strips.number % threads == 0 else threads
        return self.arguments(_packed_job, strips, parts, self.sources * strips.widest * WIDTH)

    def arguments(self, job: Callable[..., Any], strips: Strips, parts: int, tile: int = 0) -> Plan:
        """Those for a kind of job."""
        sizes = self.entries, self.row_blocks, self.sources
        return Plan(
            job((0,) * self.block, _NUMPY.get(self.dtype), self.index), _look_job(self.index),
            (0, 0, strips.address, strips.number, parts, *sizes, *self.addresses), tile,
        )  # fmt: skip

    def check(self) -> None:
        """Raise ValueError where offsets do not ascend from 0 to the entries or a column is out of range."""
        look = self.arguments(lambda _block, _value, index: _look_job(index), _NOTHING, 1)
        self.run(look, 1, (0,) * 7)

    def run(self, plan: Plan, threads: int, operands: tuple[int, ...]) -> None:
        """Look through the lists and do a job; `operands` are its last arguments, from Y on."""
        head = run_job(plan.job, threads, plan.arguments + operands, plan.look)
        if head[0] == -1:
            raise ValueError(f"the row offsets of weights must ascend from 0 to {self.entries}, its entries")
        if head[0] == -2:
            raise ValueError(
                f"the columns of weights must lie in [0, {self.sources}), got {head[1]} to {head[2]}"
            )

    def times(self, x: Tensor, bias: Tensor | None, low: float | int, high: float | int) -> Tensor:
        """The product with x, contiguous, plus bias, clamped."""
        width = x.shape[1]
        y = torch.empty(self.rows, width, dtype=self.dtype)
        if not self.rows or not width:
            self.check()
            return y
        threads = thread_count(self.numbers * width, _LEAST_WORK)
        plan = self.plan(width, threads)
        tiles = torch.empty(threads * plan.tile) if plan.tile else y
        if bias is None:
            bias = _no_bias(self.rows)
        elif bias.dtype is not torch.float32:
            bias = bias.float()
        operands = y.data_ptr(), x.data_ptr(), width, bias.data_ptr(), _bounds(low, high).data_ptr()
        self.run(plan, threads, (*operands, tiles.data_ptr(), plan.tile))
        return y


def spmm_cpu(
    values: Tensor,
    columns: Tensor,
    offsets: Tensor,
    x: Tensor,
    bias: Tensor | None,
    low: float | int,
    high: float | int,
) -> Tensor:
    """Arguments and result as the operator `sparsebook::spmm`; float32 or bfloat16, contiguous."""
    return Matrix(values, columns, offsets, x.shape[0]).times(x, bias, low, high)


def spmm_t_cpu(values: Tensor, columns: Tensor, offsets: Tensor, y: Tensor, n_columns: int) -> Tensor:
    """Arguments and result as the operator `sparsebook::spmm_t`; float32 or bfloat16, contiguous."""
    matrix, width = Matrix(values, columns, offsets, n_columns), y.shape[1]
    threads = thread_count(matrix.numbers * width, _LEAST_WORK)
    if width and n_columns and 4 * WIDTH * n_columns <= _LARGEST_TILE:
        x = torch.empty(n_columns, width, dtype=y.dtype)
        strips = tile_strips(width, matrix.block, n_columns, threads)
        tile = n_columns * strips.widest * WIDTH
        tiles = torch.empty(threads * tile)
        plan = matrix.arguments(_packed_scatter_job, strips, 1)
        matrix.run(plan, threads, (y.data_ptr(), x.data_ptr(), width, 0, 0, tiles.data_ptr(), tile))
        return x
    # Sums are kept in float32: a half type would be rounded at every non-zero.
    x = torch.zeros(n_columns, width)
    strips = separate_strips(width, matrix.block, threads) if width else _NOTHING
    matrix.run(
        matrix.arguments(_scatter_job, strips, 1), threads, (y.data_ptr(), x.data_ptr(), width, 0, 0, 0, 0)
    )
    return x.to(y.dtype)


def sddmm_cpu(columns: Tensor, offsets: Tensor, y: Tensor, x: Tensor, block: int) -> Tensor:
    """Arguments and result as the operator `sparsebook::sddmm`; float32 or bfloat16, contiguous."""
    out = torch.zeros((columns.shape[0], block) if block > 1 else (columns.shape[0],))
    (sources, width) = x.shape
    matrix = Matrix(out, columns, offsets, sources)
    matrix.dtype = x.dtype
    threads = thread_count(matrix.numbers * width, _LEAST_WORK)
    strips = separate_strips(width, block, 1) if width else _NOTHING
    plan = matrix.arguments(_products_job, strips, 4 * threads)
    matrix.run(plan, threads, (y.data_ptr(), x.data_ptr(), width, 0, 0, 0, 0))
    return out.to(x.dtype)
