"""How much memory a decode and its gradients take, read off the process itself."""

import contextlib
import ctypes
import gc
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from sparsebook.evaluation.machine import set_threads
from sparsebook.experiments.selection_kernels.scales import Config
from sparsebook.experiments.selection_kernels.speed import decode_problem, decode_steps
from sparsebook.experiments.selection_kernels.tidy import Found, by_processes

METHODS = ("ours", "embedding_bag", "dense codes")
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def run_memory(config: Config) -> pd.DataFrame:
    """Peak memory of forward and backward beyond the inputs, each cell in a process of its own."""
    tasks = tuple(f"{method} @ {columns}" for columns in config.memory_columns for method in METHODS)
    one = Config(**(vars(config) | {"processes": min(1, config.processes)}))
    table = by_processes(one, "memory", memory_once, tasks)
    table["columns"] = table.task.str.partition(" @ ")[2].astype(int)
    return table


def memory_once(knobs: Mapping[str, Any], task: str) -> Found:
    """Bytes by which the process grows at most while one method runs once."""
    config = Config(**knobs)
    set_threads(config.threads)
    method, _, columns = task.partition(" @ ")
    small = Config(**(vars(config) | {"rows": 8, "width": 16}))
    decode_steps(*decode_problem(small, 32, 0))[method]()  # compiles
    step = decode_steps(*decode_problem(config, int(columns), config.seed))[method]
    _give_back()
    before = _peak(reset=True)
    kept = step()
    grown = _peak() - before
    del kept
    return {method: {"peak": float(max(grown, 1))}}


def least_bytes(config: Config, columns: int) -> int:
    """What must be there at the end: the result and both gradients."""
    return 4 * (config.rows * config.width + config.rows * config.k + columns * config.width)


def _give_back() -> None:
    """Return to the system what is free, so that using it again shows (with glibc)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _peak(reset: bool = False) -> int:
    """The largest resident memory of this process, in bytes; where Linux allows it, since the last reset."""
    if reset:
        with contextlib.suppress(OSError):  # not Linux, or not allowed: then since the process began
            _RESET.write_text("5")
    if _STATUS.exists():
        lines = _STATUS.read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
