"""Compiled work on the threads that PyTorch already has.

A job is a Numba `cfunc` of one pointer: a block of integers with the addresses and sizes that it needs. Where
PyTorch computes with GNU OpenMP, the job runs in that very pool, whose threads still wait actively from the
last operation: handing work over takes about a microsecond, where waking a thread of Python's takes ten to
thirty, longer than many a small layer. Elsewhere (macOS, Windows) it runs in a pool of Python threads.
"""

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, no_type_check

import torch
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

Job = Any
"""A `numba.cfunc` of the signature `JOB`."""
JOB = types.void(types.CPointer(types.int64))


def thread_count(work: int, least: int) -> int:
    """How many of torch's threads to use when each should get at least `least` of `work` units."""
    return max(1, min(torch.get_num_threads(), work // least))


def run_job(job: Job, threads: int, arguments: list[int]) -> Any:
    """Run a job on each of `threads` threads, with one block of arguments; returns when all are done.

    Parameters
    ----------
    job : numba.cfunc of signature `JOB`
        Divides the work by itself, for example by an atomic counter among its arguments.
    threads : int
    arguments : list of int
        Copied into a block of int64 that all threads share. Whoever calls keeps the memory behind addresses
        alive.

    Returns
    -------
    ctypes array of int64
        The block, as the job left it.
    """
    block = (ctypes.c_int64 * len(arguments))(*arguments)
    if threads > 1 and (parallel := _openmp()):
        parallel(job.address, block, threads, 0)
        return block
    others = [_pool(threads - 1).submit(job.ctypes, block) for _ in range(threads - 1)]
    try:
        job.ctypes(block)
    finally:
        for other in others:
            other.result()
    return block


@lru_cache(1)
def _openmp() -> Callable[..., None] | None:
    """GNU OpenMP's entry into a parallel region, in the library that torch has loaded; None without it."""
    try:
        parallel = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel


@lru_cache(1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="sparsebook")


@intrinsic
@no_type_check
def pointer_to(_context, address):
    """The pointer that an integer holds, for `numba.carray`."""

    def generate(_context, builder, _signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate
