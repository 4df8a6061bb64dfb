"""The measurements: tidy tables of times and rates."""

import math
import statistics
from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd
import torch

from sparsebook.evaluation.machine import copy_bandwidth, gemm_rate
from sparsebook.evaluation.machine import threads as using_threads
from sparsebook.evaluation.timing import compare, in_processes, paired_median_ratio
from sparsebook.experiments.sparse_matmul_kernels.problems import Call, Problem, calls, scipy_call
from sparsebook.experiments.sparse_matmul_kernels.rates import multiply_rate, read_rate
from sparsebook.experiments.sparse_matmul_kernels.scales import Config, Shape
from sparsebook.kernels.lanes import WIDTH
from sparsebook.kernels.nm import nm_matmul, pack
from sparsebook.kernels.sparse_matmul import cpu as kernel
from sparsebook.kernels.sparse_matmul import spmm, spmm_csr

Rows = list[dict[str, Any]]
LEVELS = {"16 KiB": 2**14, "256 KiB": 2**18, "4 MiB": 2**22, "64 MiB": 2**26}
"""Working sets: in the first-level cache, the second, the third, none."""


def tidy(
    experiment: str, method: str, seed: int, metrics: Mapping[str, tuple[float | int, str]], **where: Any
) -> Rows:
    """Rows of a tidy table: one for each metric, given as (value, unit)."""
    head = {"experiment": experiment, "method": method, "seed": seed}
    return [
        head | {"metric": name, "value": float(value), "unit": unit} | where
        for name, (value, unit) in metrics.items()
    ]


def timed(
    config: Config, experiment: str, functions: Mapping[str, Call], repeats: int, *, calls: int = 0,
    under: str = "ours", **where: Any,
) -> Rows:  # fmt: skip
    """Median seconds of each function, and the median of the rounds' ratios to the one called `under`."""
    seconds = compare(functions, repeats, warmup=2, number=calls or config.calls, seed=config.seed)
    found: Rows = []
    for method, times in seconds.items():
        ratio = paired_median_ratio(seconds, method, under)
        metrics = {"seconds": (statistics.median(times), "s"), f"over_{under}": (ratio, "ratio")}
        found += tidy(experiment, method, config.seed, metrics, **where)
    return found


def run_limits(config: Config) -> pd.DataFrame:
    """Multiply-adds and reads per second on one thread and on all; what dense products reach."""
    found: Rows = []
    for n in sorted({1, config.threads}):
        with using_threads(n):
            rates = {
                "registers": multiply_rate(n, config.rate_seconds),
                "MKL": gemm_rate(),
                "oneDNN": _conv_rate(),
            }
            reads = {name: read_rate(size, n, config.rate_seconds) for name, size in LEVELS.items()}
            reads["copy"] = copy_bandwidth()
        for name, value in rates.items():
            found += tidy("limits", name, config.seed, {"rate": (value, "FLOP/s")}, threads=n)
        for name, value in reads.items():
            found += tidy("limits", name, config.seed, {"bandwidth": (value, "B/s")}, threads=n)
    return pd.DataFrame(found)


def _conv_rate() -> float:
    problem = Problem((784, 256, 256), 0.0)
    times = compare({"conv2d": calls(problem)["conv2d"]}, 20, warmup=3)["conv2d"]
    return problem.dense_flop / min(times)


def run_speed(config: Config) -> pd.DataFrame:
    """Every layer at every sparsity: the public call, the bare kernel and the others, in one run."""
    found: Rows = []
    keep_memory()
    for n in sorted({1, config.threads}):
        for shape in config.shapes:
            for sparsity in config.sparsities:
                with using_threads(n):
                    found += _speed(config, Problem(shape, sparsity, config.seed), n)
    return pd.DataFrame(found)


def keep_memory() -> None:
    """Have the allocator (glibc's) keep what is freed, as in a network that runs again and again.

    It gives large pieces back to the system until it has once freed one of up to 32 MiB; then each result
    would first be filled with pages anew, at a cost like the product's.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8).fill_(0)


def _speed(config: Config, problem: Problem, threads: int) -> Rows:
    functions = calls(problem)
    if threads == 1 and problem.sparsity == config.sparsities[0]:
        _agree(problem, functions)
    where = {"threads": threads} | describe(problem)
    found = timed(config, "speed", functions, config.repeats, **where)
    few: dict[str, Call] = {"ours": functions["ours"], "SciPy": scipy_call(problem)}
    # Apart and for fewer rounds, because it is the slowest by far.
    slow = timed(config, "speed", few, config.slow_repeats, calls=1, **where)
    return found + [row for row in slow if row["method"] == "SciPy"]


def _agree(problem: Problem, functions: Mapping[str, Any]) -> None:
    exact = problem.dense.double() @ problem.x.double()
    for name, function in functions.items():
        found = function()
        found = found[0].flatten(1) if name == "conv2d" else found
        torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-3)


def describe(problem: Problem) -> dict[str, Any]:
    """Where a measurement belongs, and what it had to do."""
    pixels, rows, columns = problem.shape
    return {
        "pixels": pixels, "rows": rows, "columns": columns, "sparsity": problem.sparsity,
        "flop": problem.flop, "dense_flop": problem.dense_flop, "bytes": problem.least_bytes,
    }  # fmt: skip


def run_forms(config: Config) -> pd.DataFrame:
    """Blocks of rows and types of storage at one sparsity, against single entries in float32."""
    found: Rows = []
    for shape in config.picked_shapes:
        for n in sorted({1, config.threads}):
            functions: dict[str, Call] = {}
            for dtype in (torch.float32, torch.bfloat16):
                for block in (1, 2, 4):
                    problem = Problem(shape, config.picked_sparsity, config.seed, block, dtype)
                    name = f"{'bfloat16' if dtype == torch.bfloat16 else 'float32'}, {block} x 1"
                    functions[name] = partial(spmm, problem.weights, problem.x)
            functions["dense"] = calls(Problem(shape, config.picked_sparsity, config.seed))["dense"]
            with using_threads(n):
                found += timed(
                    config, "forms", functions, config.repeats, under="float32, 1 x 1", threads=n,
                    pixels=shape[0], rows=shape[1], columns=shape[2],
                )  # fmt: skip
    return pd.DataFrame(found)


def run_strips(config: Config) -> pd.DataFrame:
    """One thread: strips of every width, read where the image lies and from tiles."""
    found: Rows = []
    for shape in config.strip_shapes:
        problem = Problem(shape, config.picked_sparsity, config.seed)
        where = describe(problem)
        for count in kernel.counts(1):
            if count * WIDTH > shape[0]:
                continue
            functions = {
                "in place": _stripped(problem, count, packed=False),
                "tile": _stripped(problem, count, packed=True),
            }
            with using_threads(1):
                rows = timed(config, "strips", functions, config.repeats, under="tile", **where)
            found += [row | {"registers": count} for row in rows]
    return pd.DataFrame(found)


def _stripped(problem: Problem, count: int, *, packed: bool) -> Call:
    """The kernel on one thread with strips of so many registers, the last reaching back."""
    lists = problem.weights.values(), problem.weights.col_indices(), problem.weights.crow_indices()
    matrix, x, width = kernel.Matrix(*lists, problem.shape[2]), problem.x, count * WIDTH
    starts = [*range(0, problem.shape[0] - width, width), problem.shape[0] - width]
    strips = kernel.Strips.of([[start, count, WIDTH] for start in starts])
    job = kernel._packed_job if packed else kernel._gather_job
    tile = problem.shape[2] * width
    plan = matrix.arguments(job, strips, 1, tile)
    y, tiles = torch.empty(problem.shape[1], problem.shape[0]), torch.empty(tile)
    bias, bounds = torch.zeros(problem.shape[1]), torch.tensor([-math.inf, math.inf])
    operands = (y, x), (bias, bounds, tiles)

    def product(kept: Any = (lists, operands, strips)) -> None:  # keeps their memory
        places = [tensor.data_ptr() for tensor in (y, x)]
        more = [tensor.data_ptr() for tensor in (bias, bounds, tiles)]
        matrix.run(plan, 1, (*places, problem.shape[0], *more, tile))

    return product


def run_patterns(config: Config) -> pd.DataFrame:
    """N:M against the dense product and against single entries of equal number; bytes of the weights."""
    found: Rows = []
    for shape in config.picked_shapes:
        for n, m in config.patterns:
            for threads in sorted({1, config.threads}):
                with using_threads(threads):
                    found += _pattern(config, shape, n, m, threads)
    return pd.DataFrame(found)


def _pattern(config: Config, shape: Shape, n: int, m: int, threads: int) -> Rows:
    free, x = Problem(shape, 1 - n / m, config.seed), Problem(shape, 0.0, config.seed).x
    dense = Problem(shape, 0.0, config.seed).dense
    places = dense.abs().reshape(-1, m).argsort(1).argsort(1) >= m - n
    packed = pack(dense, n, m, places.reshape(dense.shape))
    torch.testing.assert_close(nm_matmul(packed, x), packed.to_dense() @ x, rtol=1e-3, atol=1e-3)
    functions: dict[str, Call] = {
        "ours": partial(nm_matmul, packed, x), "dense": partial(torch.mm, dense, x),
        "single entries": partial(spmm, free.weights, x),
    }  # fmt: skip
    where: dict[str, Any] = {
        "pattern": f"{n}:{m}",
        "threads": threads,
        "pixels": shape[0],
        "rows": shape[1],
        "columns": shape[2],
    }
    found = timed(config, "patterns", functions, config.repeats, **where)
    sizes = {"ours": packed.n_bytes, "dense": dense.numel() * 4, "single entries": free.numbers * 12}
    for method, size in sizes.items():
        found += tidy("patterns", method, config.seed, {"bytes": (size, "B")}, **where)
    return found


def run_processes(config: Config) -> pd.DataFrame:
    """The live ratio in processes of its own, each a sample."""
    arguments: dict[str, Any] = {
        "shape": config.live_shape,
        "sparsity": config.live_sparsity,
        "repeats": config.repeats,
    }
    if config.processes:
        target = "sparsebook.experiments.sparse_matmul_kernels.runs:live_ratio"
        ratios = in_processes(target, arguments, config.processes, threads=config.threads)
    else:
        ratios = [live_ratio(**arguments), live_ratio(**arguments)]
    rows = [
        row
        for process, ratio in enumerate(ratios)
        for row in tidy("processes", "ours", process, {"over_dense": (ratio, "ratio")})
    ]
    return pd.DataFrame(rows)


def live_ratio(shape: Shape, sparsity: float, repeats: int) -> float:
    """Time of the public call over that of the dense product."""
    functions = calls(Problem(shape, sparsity))
    pair = {name: functions[name] for name in ("ours", "dense")}
    return paired_median_ratio(compare(pair, repeats, warmup=5, number=3), "ours", "dense")


def fingerprint() -> list[float]:
    """Products of one small layer in every form, and their gradients."""
    found = []
    for block in (1, 2, 4):
        problem = Problem((100, 32, 24), 0.7, 3, block)
        weights = problem.weights
        values = weights.values().reshape(-1, *([block] if block > 1 else [])).clone().requires_grad_()
        x = problem.x.clone().requires_grad_()
        y = spmm_csr(values, weights.col_indices(), weights.crow_indices(), x, low=-0.5, high=0.5)
        grads = torch.autograd.grad(y.square().sum(), (values, x))
        found += [y.abs().sum(), *(grad.abs().sum() for grad in grads)]
    places = Problem((100, 32, 24), 0.0, 4).dense
    packed = pack(places, 2, 4, places.abs().reshape(-1, 4).argsort(1).argsort(1).reshape(places.shape) >= 2)
    found.append(nm_matmul(packed, Problem((100, 32, 24), 0.0, 4).x).abs().sum())
    return [float(part.detach()) for part in found]
