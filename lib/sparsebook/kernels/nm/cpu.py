"""N:M products on a CPU: the loops of `sparse_matmul` over strips of columns, with positions for an index.

Rows are equally long, so they are divided evenly. Every row of the dense operand is picked often: its strip
is always copied together first (a tile).
"""

from functools import lru_cache
from typing import Any, no_type_check

import numpy as np
import torch
from numba import carray, cfunc
from torch import Tensor

from sparsebook.kernels.lanes import WIDTH, take_number
from sparsebook.kernels.sparse_matmul.cpu import Strips, job_arguments, separate_strips, tile_strips
from sparsebook.kernels.sparse_matmul.registers import (
    COLUMNS,
    ENTRIES,
    N_ARGUMENTS,
    PARTS,
    ROWS,
    SOURCES,
    THREAD,
    TILE,
    TILE_SIZE,
    gather,
    pack,
    position_bits,
    products,
    scatter,
)
from sparsebook.kernels.threads import JOB, pointer_to, run_job, thread_count

_LEAST_WORK = 1 << 16  # multiplications that are worth a thread
_NUMPY = {torch.float32: np.float32, torch.bfloat16: np.uint16}
_SINGLE = (0,)  # no blocks of rows
Pattern = tuple[tuple[int, ...], tuple[int, ...]]
"""n zeros and m zeros: their numbers are part of a type, each pattern is compiled for itself."""


@lru_cache
def _gather_job(value: type, pattern: Pattern) -> Any:
    """A job of `gather` for all strips and parts of the rows, each thread with a tile of its own."""

    @cfunc(JOB, cache=True)
    @no_type_check
    def job(block_of_arguments):
        a, plan = job_arguments(block_of_arguments)
        tile, before, parts, rows = (
            a[TILE] + 4 * a[TILE_SIZE] * take_number(a[THREAD:]),
            -1,
            a[PARTS],
            a[ROWS],
        )
        while True:
            item = take_number(a)
            if item >= len(plan) * parts:
                return
            begin, end = rows * (item % parts) // parts, rows * (item % parts + 1) // parts
            at, registers, tail = plan[item // parts]
            if at != before:
                pack(a, at, registers, tail, 0, a[SOURCES], tile, _SINGLE, value, pattern)
                before = at
            gather(a, at, registers, tail, begin, end, tile, _SINGLE, value, pattern)

    return job


@lru_cache
def _scatter_job(value: type, pattern: Pattern) -> Any:
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
            scatter(a, at, registers, tail, 0, a[ROWS], None, _SINGLE, value, pattern)

    return job


@lru_cache
def _products_job(value: type, pattern: Pattern) -> Any:
    """A job of `products`: each part of the rows is one thread's, for all strips."""

    @cfunc(JOB, cache=True)
    @no_type_check
    def job(block_of_arguments):
        a, plan = job_arguments(block_of_arguments)
        parts, rows = a[PARTS], a[ROWS]
        while True:
            part = take_number(a)
            if part >= parts:
                return
            for strip in range(len(plan)):
                at, registers, tail = plan[strip]
                begin, end = rows * part // parts, rows * (part + 1) // parts
                products(a, at, registers, tail, begin, end, _SINGLE, value, pattern)

    return job


@lru_cache
def _look_job(m: int, bits: int) -> Any:
    """A job that leaves -1 and the highest position at the head if one lies outside its group."""

    @cfunc(JOB, cache=True)
    @no_type_check
    def job(block_of_arguments):
        a = carray(block_of_arguments, N_ARGUMENTS)
        per_byte, highest = 8 // bits, 0
        packed = carray(pointer_to(a[COLUMNS]), (a[ENTRIES] + per_byte - 1) // per_byte, np.uint8)
        for entry in range(a[ENTRIES]):
            position = (packed[entry // per_byte] >> (bits * (entry % per_byte))) & ((1 << bits) - 1)
            highest = max(highest, position)
        if highest >= m:
            a[0], a[1] = -1, highest

    return job


def _run(
    job: Any, threads: int, strips: Strips, parts: int, values: Tensor, positions: Tensor, y: Tensor,
    x: Tensor, n: int, m: int, more: tuple[int, ...] = (0, 0, 0, 0),
) -> None:  # fmt: skip
    """Look through the positions and do a kind of job."""
    bits = position_bits(m)
    head = run_job(
        job(_NUMPY[y.dtype], ((0,) * n, (0,) * m)), threads,
        (
            0, 0, strips.address, strips.number, parts, values.numel(), y.shape[0], x.shape[0], 0,
            positions.data_ptr(), values.data_ptr(), y.data_ptr(), x.data_ptr(), x.shape[1], *more,
        ),
        _look_job(m, bits) if 2**bits > m else None,
    )  # fmt: skip
    if head[0] < 0:
        raise ValueError(f"positions of weights must lie in [0, {m}), got {head[1]}")


def nm_matmul_cpu(values: Tensor, positions: Tensor, x: Tensor, n: int, m: int) -> Tensor:
    """Arguments and result as the operator `sparsebook::nm_matmul`; float32 or bfloat16, contiguous."""
    (rows, _), (sources, width) = values.shape, x.shape
    y = torch.empty(rows, width, dtype=x.dtype)
    if not y.numel() or not sources:
        return y.zero_()
    threads = thread_count(values.numel() * width, _LEAST_WORK)
    aligned = width % WIDTH == 0  # else threads side by side would write to the same cache lines
    strips = tile_strips(width, 1, sources, threads if aligned else 1)
    parts = 1 if aligned and strips.number % threads == 0 else threads
    tile = sources * strips.widest * WIDTH
    tiles, bias, bounds = (
        torch.empty(threads * tile),
        torch.zeros(rows),
        torch.tensor([-torch.inf, torch.inf]),
    )
    more = bias.data_ptr(), bounds.data_ptr(), tiles.data_ptr(), tile
    _run(_gather_job, threads, strips, parts, values, positions, y, x, n, m, more)
    return y


def nm_matmul_t_cpu(values: Tensor, positions: Tensor, y: Tensor, n: int, m: int) -> Tensor:
    """Arguments and result as the operator `sparsebook::nm_matmul_t`; float32 or bfloat16, contiguous."""
    x = torch.zeros(values.shape[1] // n * m, y.shape[1])
    if x.numel():
        threads = thread_count(values.numel() * y.shape[1], _LEAST_WORK)
        strips = separate_strips(y.shape[1], 1, threads)
        _run(_scatter_job, threads, strips, 1, values, positions, y, x, n, m)
    return x.to(y.dtype)


def nm_sddmm_cpu(positions: Tensor, y: Tensor, x: Tensor, n: int, m: int) -> Tensor:
    """Arguments and result as the operator `sparsebook::nm_sddmm`; float32 or bfloat16, contiguous."""
    out = torch.zeros(y.shape[0], x.shape[0] // m * n)
    if out.numel() and x.shape[1]:
        threads = thread_count(out.numel() * x.shape[1], _LEAST_WORK)
        strips = separate_strips(x.shape[1], 1, 1)
        _run(_products_job, threads, strips, 4 * threads, out, positions, y, x, n, m)
    return out.to(x.dtype)
