"""What the machine can do: multiply-adds in registers, and with an operand from each level of memory."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import no_type_check

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from sparsebook.kernels.lanes import WIDTH, element, load, multiply_add

SUMS = 8
"""Registers that are summed into at once: two multiply-adds a cycle, each done after four cycles."""
_FLOATS = ir.VectorType(ir.FloatType(), WIDTH)
_i64 = ir.IntType(64)
Array = np.ndarray


def _chains(builder, start, step):
    """Sums that start at zero, `step(sum number, its value)` gives the next ones; their total at the end."""
    zero = ir.Constant(_FLOATS, [0.0] * WIDTH)
    sums = [cgutils.alloca_once_value(builder, zero) for _ in range(SUMS)]
    with cgutils.for_range_slice(builder, _i64(0), start, _i64(1)) as (i, _):
        for number, cell in enumerate(sums):
            builder.store(step(i, number, builder.load(cell)), cell)
    total = builder.load(sums[0])
    for cell in sums[1:]:
        total = builder.fadd(total, builder.load(cell))
    return builder.extract_element(total, ir.IntType(32)(0))


@intrinsic
@no_type_check
def _multiply(_context, rounds, x):
    """`rounds` times `SUMS` multiply-adds in registers."""

    def generate(context, builder, signature, arguments):
        factor = load(builder, element(context, builder, signature.args[1], arguments[1], _i64(0)), _FLOATS)
        return _chains(
            builder, arguments[0], lambda _i, _n, value: multiply_add(builder, factor, value, factor)
        )

    return types.float32(rounds, x), generate


@intrinsic
@no_type_check
def _multiply_read(_context, rounds, x):
    """The same with `SUMS` registers read from x in each round, one behind the other."""

    def generate(context, builder, signature, arguments):
        base = element(context, builder, signature.args[1], arguments[1], _i64(0))
        factor = load(builder, base, _FLOATS)

        def step(i, number, value):
            at = builder.add(builder.mul(i, _i64(SUMS * WIDTH)), _i64(number * WIDTH))
            return multiply_add(builder, factor, load(builder, builder.gep(base, [at]), _FLOATS), value)

        return _chains(builder, arguments[0], step)

    return types.float32(rounds, x), generate


@njit(cache=True, nogil=True)
@no_type_check
def _registers(times, rounds, x):
    total = np.float32(0)
    for _ in range(times):
        total += _multiply(rounds, x)
    return total


@njit(cache=True, nogil=True)
@no_type_check
def _reads(times, rounds, x):
    total = np.float32(0)
    for _ in range(times):
        total += _multiply_read(rounds, x)
    return total


def multiply_rate(threads: int, seconds: float) -> float:
    """Operations per second of all threads, operands in registers."""
    work = [_filled(SUMS * WIDTH) for _ in range(threads)]
    best = _fastest(lambda x: _registers(200, 5000, x), work, seconds)
    return threads * 200 * 5000 * SUMS * WIDTH * 2 / best


def read_rate(size: int, threads: int, seconds: float) -> float:
    """Bytes per second that all threads read and multiply, each from `size` bytes of its own."""
    rounds = size // (4 * SUMS * WIDTH)
    times = max(1, 2**28 // size)
    work = [_filled(rounds * SUMS * WIDTH) for _ in range(threads)]
    best = _fastest(lambda x: _reads(times, rounds, x), work, seconds)
    return threads * times * rounds * 4 * SUMS * WIDTH / best


def _filled(n: int) -> Array:
    """Floats that begin with a cache line, written to (pages that were not are all the same one)."""
    space = np.empty(n + 16, np.float32)
    start = -(space.ctypes.data // 4) % 16
    space[:] = 1e-3
    return space[start : start + n]


def _fastest(loop: Callable[[Array], object], work: list[Array], seconds: float) -> float:
    best, stop = np.inf, 0.0
    with ThreadPoolExecutor(len(work)) as pool:
        list(pool.map(loop, work))  # compiles
        stop = time.perf_counter() + seconds
        while best == np.inf or time.perf_counter() < stop:
            start = time.perf_counter()
            list(pool.map(loop, work))
            best = min(best, time.perf_counter() - start)
    return float(best)
