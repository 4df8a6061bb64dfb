"""Compiled work on the threads that PyTorch already has.

A job is a Numba `cfunc` of one pointer: a block of integers with the addresses and sizes that it needs. Where
PyTorch computes with GNU OpenMP, the job runs in that very pool, whose threads still wait actively from the
last operation: handing work over takes about a microsecond, where waking a thread of Python's takes ten to
thirty, longer than many a small layer. Elsewhere (macOS, Windows) it runs in a pool of Python threads.
"""

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, no_type_check

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

Job = Any
"""A `numba.cfunc` of the signature `JOB`."""
JOB = types.void(types.CPointer(types.int64))


def thread_count(work: int, least: int) -> int:
    """How many of torch's threads to use when each should get at least `least` of `work` units."""
    # Not Numba's count as well: asking for it starts its threading layer, which resets torch's number.
    return max(1, min(torch.get_num_threads(), work // least))


def run_threads(work: Callable[..., None], threads: int, *arguments: Any) -> None:
    """Call `work(thread, *arguments)` on each of `threads` threads of Python's.

    Compiled work without a `cfunc` of its own: it must release the interpreter's lock.
    """
    others = [_pool(threads - 1).submit(work, thread, *arguments) for thread in range(1, threads)]
    try:
        work(0, *arguments)
    finally:
        for other in others:
            other.result()


def run_job(
    job: Job, threads: int, arguments: Sequence[int], first: Job | None = None
) -> tuple[int, int, int]:
    """Run a job on each of `threads` threads, with one block of arguments; returns when all are done.

    Parameters
    ----------
    job : numba.cfunc of signature `JOB`
        Divides the work by itself, for example by an atomic counter among its arguments.
    threads : int
    arguments : three integers at least
        Copied into a block of int64 that all threads share. Whoever calls keeps the memory behind addresses
        alive.
    first : numba.cfunc of signature `JOB`, optional
        Runs before, on one thread. Where it leaves a negative number at the head of the block, `job` does not
        run at all.

    Returns
    -------
    (int, int, int)
        The head of the block, as the jobs left it.
    """
    before = 0 if first is None else first.address
    parallel = _openmp() if threads > 1 else 0
    if threads == 1 or parallel:
        return _run(parallel, job.address, before, threads, tuple(arguments))
    block = (ctypes.c_int64 * len(arguments))(*arguments)
    if first is not None:
        first.ctypes(block)
    if first is None or block[0] >= 0:
        run_threads(lambda _: job.ctypes(block), threads)
    return block[0], block[1], block[2]


@njit(cache=True, nogil=True)
@no_type_check
def _run(parallel, job, before, threads, arguments):
    # In compiled code, because every call from Python into a C function costs a microsecond.
    block = np.empty(len(arguments), np.int64)
    for i in range(len(arguments)):
        block[i] = arguments[i]
    if before != 0:
        _call(before, block.ctypes.data)
    if before == 0 or block[0] >= 0:
        if threads == 1:
            _call(job, block.ctypes.data)
        else:
            _call_parallel(parallel, job, block.ctypes.data, threads)
    return block[0], block[1], block[2]


@lru_cache(1)
def _openmp() -> int:
    """Address of GNU OpenMP's entry into a parallel region, in the library that torch has loaded; or 0."""
    try:
        parallel = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return 0
    return ctypes.cast(parallel, ctypes.c_void_p).value or 0


@lru_cache(1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="sparsebook")


@intrinsic
@no_type_check
def _call(_context, job, block):
    """Call the job at an address with the block at another."""

    def generate(context, builder, _signature, arguments):
        kind = ir.FunctionType(ir.VoidType(), [arguments[1].type])
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
@no_type_check
def _call_parallel(_context, parallel, job, block, threads):
    """GOMP_parallel(job, block, threads, flags=0)."""

    def generate(context, builder, _signature, arguments):
        parallel, job, block, threads = arguments
        count = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [job.type, block.type, count, count])
        function = builder.inttoptr(parallel, kind.as_pointer())
        builder.call(function, [job, block, builder.trunc(threads, count), count(0)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), generate


@intrinsic
@no_type_check
def pointer_to(_context, address):
    """The pointer that an integer holds, for `numba.carray`."""

    def generate(_context, builder, _signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate
