"""Times of selection and of decoding, each against one pass over the bytes that it cannot avoid."""

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from sparsebook.evaluation.machine import set_threads
from sparsebook.evaluation.timing import compare, paired_median_ratio
from sparsebook.experiments.selection_kernels.choices import affinities, uneven_counts
from sparsebook.experiments.selection_kernels.scales import Config
from sparsebook.experiments.selection_kernels.tidy import Found, Rows, by_processes, row, tidy
from sparsebook.kernels import sparse_codes
from sparsebook.kernels.selection import column_topm, global_topm, row_topk

TASKS = ("rows", "columns", "uneven columns", "matrix", "decode")
Functions = dict[str, Callable[[], object]]


def selection_functions(config: Config, x: Tensor) -> dict[str, tuple[Functions, Functions]]:
    """For each task the methods, and those that take seconds; "limit" is one read of the matrix."""
    k, m = config.k, config.rows * config.k
    even = torch.full((config.columns,), m // config.columns or 1)
    uneven = uneven_counts(config.columns, m, config.rows)
    read: Functions = {"limit": x.sum}
    return {
        "rows": (
            read
            | {
                "ours": lambda: row_topk(x, k),
                "unsorted": lambda: row_topk(x, k, sorted=False),
                "torch.topk": lambda: x.topk(k),
            },
            {},
        ),
        "columns": (
            read | {"ours": lambda: column_topm(x, even), "torch.topk": lambda: x.topk(int(even[0]), 0)},
            {},
        ),
        # torch.topk knows one count for all columns: it has to take the largest.
        "uneven columns": (
            read | {"ours": lambda: column_topm(x, uneven)},
            {"torch.topk": lambda: x.topk(int(uneven.max()), 0)},
        ),
        "matrix": (
            read | {"ours": lambda: global_topm(x, m)},
            {"torch.topk": lambda: x.flatten().topk(m)},
        ),
    }


def decode_functions(config: Config, seed: int) -> tuple[Functions, Functions]:
    """Forward and backward of codes times dictionary; "limit" copies all that must be read or written."""
    values, indices, dictionary, grad = decode_problem(config, config.columns, seed)
    source = torch.empty(decode_bytes(config) // 8)
    target = torch.zeros_like(source)
    steps = decode_steps(values, indices, dictionary, grad)
    fast: Functions = {"limit": lambda: target.copy_(source)} | steps
    return fast, {"dense codes": fast.pop("dense codes")}


def decode_problem(config: Config, atoms: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values and indices of the codes, dictionary, and the gradient that comes back."""
    generator = torch.Generator().manual_seed(seed)
    dictionary = torch.randn(atoms, config.width, generator=generator).requires_grad_()
    values = torch.rand(config.rows, config.k, generator=generator).requires_grad_()
    indices = torch.randint(0, atoms, (config.rows, config.k), generator=generator)
    return values, indices, dictionary, torch.randn(config.rows, config.width, generator=generator)


def decode_steps(values: Tensor, indices: Tensor, dictionary: Tensor, grad: Tensor) -> Functions:
    """Three ways to the product and both of its gradients: ours, the embedding bag, dense codes."""
    bag = functional.embedding_bag

    def dense() -> Tensor:
        codes = torch.zeros(len(values), len(dictionary)).scatter(1, indices, values)
        return codes @ dictionary

    products: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: sparse_codes.decode(values, indices, dictionary),
        "embedding_bag": lambda: bag(indices, dictionary, per_sample_weights=values, mode="sum"),
        "dense codes": dense,
    }
    return {
        name: partial(_both_ways, product, (values, dictionary), grad) for name, product in products.items()
    }


def _both_ways(product: Callable[[], Tensor], leaves: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(product(), leaves, grad)


def decode_bytes(config: Config) -> int:
    """Bytes that forward and backward must move at the least, everything once and in float32.

    Read: the dictionary twice, the incoming gradient. Written: the result, the dictionary's gradient.
    """
    atoms, rows = config.columns * config.width, config.rows * config.width
    return 4 * (2 * atoms + rows + rows + atoms)


def speed_once(knobs: Mapping[str, Any], task: str) -> Found:
    """One task, timed in this process: for each method seconds and the paired ratio to ours."""
    config = Config(**knobs)
    set_threads(config.threads)
    if task == "decode":
        fast, slow = decode_functions(config, config.seed)
    else:
        x = affinities(config.rows, config.columns, config.seed)
        fast, slow = selection_functions(config, x)[task]
    return timed(config, fast, slow)


def timed(config: Config, fast: Functions, slow: Functions, warmup: int = 0) -> Found:
    """All methods in turn, and then those that take seconds beside ours, for fewer rounds."""
    found = reduced(compare(fast, config.repeats, warmup=2), fast)
    if slow:
        found |= reduced(compare({"ours": fast["ours"]} | slow, config.slow_repeats, warmup=warmup), slow)
    return found


def reduced(seconds: Mapping[str, list[float]], methods: Iterable[str]) -> Found:
    """Median seconds, and the median of the rounds' ratios to ours."""
    return {
        name: {
            "seconds": statistics.median(seconds[name]),
            "over ours": paired_median_ratio(seconds, name, "ours"),
        }
        for name in methods
    }


def run_speed(config: Config) -> pd.DataFrame:
    """Seconds of every method and its ratio to ours, task by task, each in processes of its own."""
    return by_processes(config, "speed", speed_once, TASKS)


def run_sweep(config: Config) -> pd.DataFrame:
    """Seconds of row and matrix selection against k, in this process."""
    x = affinities(config.sweep_rows, config.columns, config.seed)
    out: Rows = []
    for k in config.sweep:
        m = k * config.sweep_rows
        functions: Functions = {
            "limit": x.sum,
            "rows, ours": partial(row_topk, x, k),
            "rows, torch.topk": partial(x.topk, k),
            "matrix, ours": partial(global_topm, x, m),
            "matrix, torch.topk": partial(x.flatten().topk, m),
        }
        for method, times in compare(functions, max(3, config.slow_repeats), warmup=1).items():
            out += [row("sweep", method, i, "seconds", value, k=k) for i, value in enumerate(times)]
    return pd.DataFrame(out)


def live_ratios(config: Config) -> pd.DataFrame:
    """Times of a quarter of the batch, measured now in this process."""
    small = asdict(config) | {
        "rows": max(256, config.rows // 4),
        "repeats": min(5, config.repeats),
        "slow_repeats": 1,
    }
    tasks = ("rows", "matrix", "decode")
    return pd.DataFrame(
        [line for task in tasks for line in tidy("live", 0, speed_once(small, task), task=task)]
    )
