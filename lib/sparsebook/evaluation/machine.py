"""The machine a measurement was made on: what it is, how many threads are used, what it can reach."""

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("sparsebook", "torch", "numba", "numpy", "scipy")
_COPY_BYTES = 128 * 2**20  # far more than the last-level cache, so that memory is measured
_GEMM_SIDE = 1536
_MEASURING_SECONDS = 0.4


def available_threads() -> int:
    """Number of CPUs that this process may use (its affinity where the system tells, else all)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_threads(n: int | None = None) -> int:
    """Let torch (with MKL), Numba and, where threadpoolctl is installed, NumPy's BLAS use ``n`` threads.

    Parameters
    ----------
    n : int or None
        None means all CPUs of the process.

    Returns
    -------
    int
        The number that is now in use.

    Raises
    ------
    ValueError
        For less than one thread or more than there are CPUs: more would only measure the scheduler.
    """
    import numba
    import torch

    most = min(available_threads(), numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    n = most if n is None else n
    if not 1 <= n <= most:
        raise ValueError(f"threads: expected 1 to {most} on this machine, got {n}")
    torch.set_num_threads(n)
    numba.set_num_threads(n)
    _limit_blas(n)
    return n


@contextmanager
def threads(n: int | None) -> Iterator[int]:
    """Use ``n`` threads inside a ``with`` block and what was used before after it."""
    import numba
    import torch

    before = torch.get_num_threads(), numba.get_num_threads(), _blas_threads()
    try:
        yield set_threads(n)
    finally:
        torch.set_num_threads(before[0])
        numba.set_num_threads(before[1])
        if before[2] is not None:
            _limit_blas(before[2])


@cache
def instruction_set() -> str:
    """The widest vector instructions of the CPU that code here can use: AVX-512, AVX2, SVE, NEON or none."""
    from llvmlite.binding import get_host_cpu_features

    features = get_host_cpu_features()
    names = {"avx512f": "AVX-512", "avx2": "AVX2", "sve": "SVE", "neon": "NEON"}
    return next((name for feature, name in names.items() if features.get(feature)), "none")


def describe_machine() -> dict[str, Any]:
    """What a measurement depends on; imports neither torch nor CUDA.

    Returns
    -------
    dict
        ``cpu``, ``instruction_set``, ``cores`` (usable), ``memory_gib`` (None where unknown), ``system``,
        ``gpu`` (only known once torch is imported), and ``versions`` of Python and the packages.
    """
    return {
        "cpu": _cpu_name(),
        "instruction_set": instruction_set(),
        "cores": available_threads(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": _gpu_name(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
    }


def machine_name() -> str:
    """The machine in a few words, for tables."""
    machine = describe_machine()
    memory = "" if machine["memory_gib"] is None else f", {machine['memory_gib']} GiB"
    gpu = "" if machine["gpu"] is None else f", {machine['gpu']}"
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['instruction_set']}{memory}{gpu}"


def copy_bandwidth() -> float:
    """Bytes per second that a copy in memory reaches with the threads now set (read and written both count).

    The best of repeated copies of 128 MiB; measured once a process and number of threads.
    """
    import torch

    return _copy_bandwidth(torch.get_num_threads())


def gemm_rate() -> float:
    """Floating-point operations per second of a float32 matrix product with the threads now set.

    The best of repeated products of 1536 x 1536 matrices; measured once a process and number of threads.
    """
    import torch

    return _gemm_rate(torch.get_num_threads())


@cache
def _copy_bandwidth(n_threads: int) -> float:
    import torch

    source = torch.ones(_COPY_BYTES // 4, dtype=torch.float32)
    target = torch.zeros_like(source)
    return 2 * _COPY_BYTES / _fastest(lambda: target.copy_(source))


@cache
def _gemm_rate(n_threads: int) -> float:
    import torch

    left, right = torch.ones(_GEMM_SIDE, _GEMM_SIDE), torch.ones(_GEMM_SIDE, _GEMM_SIDE)
    out = torch.empty(_GEMM_SIDE, _GEMM_SIDE)
    return 2 * _GEMM_SIDE**3 / _fastest(lambda: torch.mm(left, right, out=out))


def _fastest(function: Callable[[], object]) -> float:
    """Seconds of the fastest call; a ceiling is what the machine reaches when nothing disturbs it."""
    function()
    best, stop = float("inf"), time.perf_counter() + _MEASURING_SECONDS
    while best == float("inf") or time.perf_counter() < stop:
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return best


def _limit_blas(n: int) -> None:
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return
    threadpool_limits(n, user_api="blas")


def _blas_threads() -> int | None:
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return None
    return max(
        (pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=None
    )


@cache
def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown"


def _memory_gib() -> int | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return None


def _gpu_name() -> str | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_name()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
