"""How speed is measured: interleaved, warmed up, paired, in processes of their own.

One process is one sample. Inside a process `compare` runs the candidates in turn, so that a change of the
machine's speed meets all of them alike, and `paired_median_ratio` reduces the rounds to one number: the
median of the ratios of neighbours in time. `in_processes` repeats this in fresh processes, one after
another, because memory layout, caches and the JIT differ more between processes than between rounds. The
list of their medians is what a `timing` claim takes as samples::

    # lib/sparsebook/experiments/seismic.py
    def speed_once(n: int) -> float:
        seconds = compare({"ours": search, "peer": search_peer}, repeats=30)
        return paired_median_ratio(seconds, "ours", "peer")

    ratios = in_processes("sparsebook.experiments.seismic:speed_once", {"n": 20_000}, processes=5, threads=1)
"""

import gc
import importlib
import os
import pickle
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
)
_CHILD = "import sys; from sparsebook.evaluation.timing import _child; _child(sys.argv[1])"


class ProcessFailed(RuntimeError):  # noqa: N818 - says what happened
    """A measuring process raised or died; the message holds its own traceback or its last output."""


def compare(
    functions: Mapping[str, Callable[[], object]],
    repeats: int = 30,
    warmup: int = 3,
    *,
    number: int = 1,
    seed: int = 0,
    synchronize: Callable[[], object] | None = None,
) -> dict[str, list[float]]:
    """Time functions against each other in interleaved rounds.

    Every round calls each function once, in an order drawn anew, with the garbage collector off.

    Parameters
    ----------
    functions : mapping
        Named functions without arguments.
    repeats, warmup : int
        Rounds that are timed, and rounds before them that are not (JIT, caches, clock speed).
    number : int
        Calls per timing, for functions so short that the clock would matter (below 20 µs).
    seed : int
        Of the order within the rounds.
    synchronize : callable, optional
        Called before each reading of the clock, e.g. ``torch.cuda.synchronize``.

    Returns
    -------
    dict
        Seconds per call of each round; the i-th values of all functions are neighbours in time.
    """
    if not functions:
        raise ValueError("functions: expected at least one")
    for name, value, least in (("repeats", repeats, 1), ("warmup", warmup, 0), ("number", number, 1)):
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    order, draw = list(functions), random.Random(seed)
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    was_enabled = gc.isenabled()
    gc.disable()  # without a collection first: it takes a quarter of a second in a process with many objects
    try:
        for turn in range(warmup + repeats):
            draw.shuffle(order)
            for name in order:
                duration = _seconds(functions[name], number, synchronize)
                if turn >= warmup:
                    seconds[name].append(duration)
    finally:
        if was_enabled:
            gc.enable()
    return seconds


def paired_ratios(seconds: Mapping[str, Sequence[float]], numerator: str, denominator: str) -> np.ndarray:
    """Ratio of the times of two functions in every round of `compare`, shape [repeats]."""
    for name in (numerator, denominator):
        if name not in seconds:
            raise ValueError(f"no timings of {name!r}; there are {', '.join(seconds)}")
    over, under = np.asarray(seconds[numerator]), np.asarray(seconds[denominator])
    if over.shape != under.shape or over.size == 0:
        raise ValueError(
            f"timings must be paired: {over.size} of {numerator!r}, {under.size} of {denominator!r}"
        )
    return over / under


def paired_median_ratio(seconds: Mapping[str, Sequence[float]], numerator: str, denominator: str) -> float:
    """Median of `paired_ratios`: one process's sample; below 1 the numerator is the faster one."""
    return float(np.median(paired_ratios(seconds, numerator, denominator)))


def in_processes(
    target: str,
    arguments: Mapping[str, Any] | None = None,
    processes: int = 5,
    *,
    threads: int | None = None,
    timeout: float | int = 600.0,
) -> list[Any]:
    """Call a function once in each of several fresh processes, one after another.

    The processes are started anew (never forked: torch and Numba do not survive a fork) and do not import
    the caller's main module, so this works from notebooks and scripts alike.

    Parameters
    ----------
    target : str
        ``"module:function"``, importable in the child.
    arguments : mapping, optional
        Keyword arguments, pickled.
    processes : int
        Number of processes.
    threads : int, optional
        Threads that torch, MKL, OpenBLAS and Numba may use in the child, set before they start.
    timeout : float
        Seconds after which a process is stopped.

    Returns
    -------
    list
        What the function returned in each process, pickled.

    Raises
    ------
    ProcessFailed
        When a process raises (with its whole traceback), dies or takes too long.
    """
    module, colon, function = target.partition(":")
    if not (module and colon and function) or module == "__main__":
        raise ValueError(f"target: expected 'module:function' of an importable module, got {target!r}")
    if processes < 1:
        raise ValueError(f"processes: expected at least 1, got {processes}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads: expected at least 1, got {threads}")
    return [_in_process(target, dict(arguments or {}), threads, timeout) for _ in range(processes)]


def _seconds(function: Callable[[], object], number: int, synchronize: Callable[[], object] | None) -> float:
    if synchronize is not None:
        synchronize()
    start = time.perf_counter()
    for _ in range(number):
        function()
    if synchronize is not None:
        synchronize()
    return (time.perf_counter() - start) / number


def _in_process(target: str, arguments: dict[str, Any], threads: int | None, timeout: float | int) -> Any:
    limits = {} if threads is None else dict.fromkeys(_THREAD_VARIABLES, str(threads))
    with tempfile.TemporaryDirectory(prefix="sparsebook-timing-") as folder:
        order, answer = Path(folder, "order"), Path(folder, "answer")
        order.write_bytes(pickle.dumps((sys.path, target)) + pickle.dumps(arguments))
        # The child finds this very package, wherever the caller's came from.
        library = str(Path(__file__).parents[2])
        path = os.pathsep.join([library, *filter(None, [os.environ.get("PYTHONPATH")])])
        try:
            done = subprocess.run(
                [sys.executable, "-c", _CHILD, folder],
                env=os.environ | limits | {"PYTHONPATH": path},
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ProcessFailed(f"{target} took longer than {timeout:g} s in a process of its own") from error
        if not answer.exists():
            output = (done.stdout + done.stderr).strip()[-2000:]
            raise ProcessFailed(f"the process of {target} ended with status {done.returncode}: {output}")
        succeeded, result = pickle.loads(answer.read_bytes())
    if not succeeded:
        raise ProcessFailed(f"{target} raised in a process of its own:\n{result}")
    return result


def _child(folder: str) -> None:
    """Run one order in this process and leave the answer; only `_in_process` starts it."""
    try:
        with Path(folder, "order").open("rb") as order:
            sys.path[:], target = pickle.load(order)
            arguments = pickle.load(order)
        module, _, function = target.partition(":")
        result = getattr(importlib.import_module(module), function)(**arguments)
        answer = pickle.dumps((True, result))
    except BaseException:
        answer = pickle.dumps((False, traceback.format_exc()))
    unfinished = Path(folder, "unfinished")
    unfinished.write_bytes(answer)
    unfinished.rename(Path(folder, "answer"))
