"""The training step of one sparse layer against the same layer as masked dense weights."""

import contextlib
import ctypes
import gc
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from sparsebook.evaluation.machine import threads as using_threads
from sparsebook.evaluation.timing import in_processes
from sparsebook.experiments.sparse_matmul_kernels.problems import Call, Problem
from sparsebook.experiments.sparse_matmul_kernels.runs import Rows, keep_memory, tidy, timed
from sparsebook.experiments.sparse_matmul_kernels.scales import Config
from sparsebook.kernels.sparse_matmul import spmm_csr

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def steps(problem: Problem) -> dict[str, Call]:
    """Forward and both gradients: lists of what is there, and dense weights times a mask."""
    weights, x = problem.weights, problem.x.clone().requires_grad_()
    values = weights.values().clone().requires_grad_()
    lists = values, weights.col_indices(), weights.crow_indices()
    grad = torch.ones(problem.shape[1], problem.shape[0])
    return {
        "ours": lambda: torch.autograd.grad(spmm_csr(*lists, x), (values, x), grad),
        "masked dense": masked_step(problem, x, grad),
    }


def masked_step(problem: Problem, x: torch.Tensor, grad: torch.Tensor) -> Call:
    """As pruning libraries do it: the weights times a mask of zeros and ones, then the dense product."""
    dense, mask = problem.dense.clone().requires_grad_(), (problem.dense != 0).float()
    return lambda: torch.autograd.grad((dense * mask) @ x, (dense, x), grad)


def run_step(config: Config) -> pd.DataFrame:
    """Seconds on one thread and on all, and how much a process grows."""
    found: Rows = []
    keep_memory()
    problem = _problem(config)
    functions = steps(problem)
    results: list[Any] = [function() for function in functions.values()]
    ours, masked = results
    at = problem.dense.nonzero(as_tuple=True)
    torch.testing.assert_close(ours[0], masked[0][at], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours[1], masked[1], rtol=1e-3, atol=1e-3)
    for n in sorted({1, config.threads}):
        with using_threads(n):
            found += timed(config, "step", functions, config.repeats, threads=n)
    for method in functions:
        grown = [grown_once(asdict(config), method)]
        if config.processes:
            target = f"{grown_once.__module__}:{grown_once.__name__}"
            grown = in_processes(
                target, {"knobs": asdict(config), "method": method}, 3, threads=config.threads
            )
        for process, size in enumerate(grown):
            found += tidy("step", method, process, {"peak": (size, "B")}, threads=config.threads)
    sizes = {
        "ours": problem.numbers * 12 + 8 * (config.step_size + 1),
        "masked dense": 8 * config.step_size**2,
    }
    for method, size in sizes.items():
        found += tidy("step", method, config.seed, {"weights": (size, "B")}, threads=config.threads)
    return pd.DataFrame(found)


def _problem(config: Config) -> Problem:
    return Problem((config.step_batch, config.step_size, config.step_size), config.step_sparsity, config.seed)


def grown_once(knobs: Mapping[str, Any], method: str) -> float:
    """Bytes by which this process grows at most while one step runs, weights and input being there."""
    config = Config(**knobs)
    steps(Problem((20, 64, 64), 0.5))[method]()  # compiles
    step = steps(_problem(config))[method]
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)  # with glibc: what is free and used again shall show
    before = _peak(reset=True)
    kept = step()
    grown = _peak() - before
    del kept
    return float(max(grown, 1))


def _peak(reset: bool = False) -> int:
    """The largest resident memory of this process in bytes, on Linux since the last reset."""
    if reset:
        with contextlib.suppress(OSError):  # not Linux, or not allowed: then since the process began
            _RESET.write_text("5")
    if _STATUS.exists():
        lines = _STATUS.read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
