"""What a truly sparse training step costs: one layer, forward and both gradients, in processes of its own."""

import statistics
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from sparsebook.evaluation.timing import compare, in_processes, paired_median_ratio
from sparsebook.experiments.random_pruning.scales import Config
from sparsebook.kernels.sparse_matmul import sddmm, spmm, spmm_t
from sparsebook.networks.masks import random_mask
from sparsebook.recorded import COLUMNS

Call = Callable[[], object]
TARGET = "sparsebook.experiments.random_pruning.timing:steps_once"


def run_timing(config: Config) -> pd.DataFrame:
    """Seconds of a step, and dense over it, for every sparsity; the small layer at one."""
    cases = [(config.layer, config.layer_batch, s) for s in config.layer_sparsities]
    cases.append((config.small_layer, config.digit_batch, 0.9))
    arguments: dict[str, Any] = {"cases": cases, "repeats": config.repeats}
    if config.scale == "smoke":  # processes would take longer than the steps
        runs = [steps_once(**arguments) for _ in range(config.processes)]
    else:
        runs = in_processes(TARGET, arguments, config.processes, threads=config.threads)
    table = pd.DataFrame([row | {"seed": process} for process, found in enumerate(runs) for row in found])
    return table[[*COLUMNS, *(name for name in table if name not in COLUMNS)]]


def steps_once(cases: list[tuple[int, int, float]], repeats: int) -> list[dict[str, Any]]:
    """One process's measurements."""
    found: list[dict[str, Any]] = []
    for size, batch, sparsity in cases:
        functions = steps(size, batch, sparsity)
        seconds = compare(functions, repeats, warmup=3, number=1 if size > 100 else 10)
        for method, times in seconds.items():
            ratio = paired_median_ratio(seconds, "dense", method)
            for metric, value, unit in (
                ("seconds", statistics.median(times), "s"),
                ("dense_over", ratio, "ratio"),
            ):
                found.append(
                    {
                        "experiment": "timing", "method": method, "metric": metric, "value": float(value),
                        "unit": unit, "sparsity": sparsity, "size": size, "batch": batch,
                    }
                )  # fmt: skip
    return found


def steps(size: int, batch: int, sparsity: float) -> dict[str, Call]:
    """A training step's three products: dense, with a mask, with our kernels, and twenty times over."""
    chance = torch.Generator().manual_seed(size)
    mask = random_mask((size, size), 1 - sparsity, generator=chance)
    weight = torch.randn(size, size, generator=chance) * mask
    x, g = (torch.randn(size, batch, generator=chance) for _ in range(2))
    sparse = weight.to_sparse_csr()

    def dense() -> tuple[Tensor, ...]:
        return weight @ x, weight.T @ g, g @ x.T

    def masked() -> tuple[Tensor, ...]:
        own = weight * mask
        return own @ x, own.T @ g, (g @ x.T) * mask

    def ours() -> tuple[Tensor, ...]:
        return spmm(sparse, x), spmm_t(sparse, g), sddmm(sparse, g, x)

    def library() -> tuple[Tensor, ...]:
        product = torch.sparse.sampled_addmm(sparse, g, x.T, beta=0.0)
        return torch.mm(sparse, x), torch.mm(transposed, g), product

    transposed = weight.T.to_sparse_csr()
    for other in (masked(), ours(), library()):
        torch.testing.assert_close(other[0], dense()[0], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(other[1], dense()[1], rtol=1e-3, atol=1e-3)
        product = other[2].to_dense() if other[2].layout == torch.sparse_csr else other[2]
        torch.testing.assert_close(product, dense()[2] * mask, rtol=1e-3, atol=1e-3)
    return {
        "dense": dense,
        "masked": masked,
        "sparse": ours,
        "torch_sparse": library,
        "sparse_twenty": lambda: [ours() for _ in range(20)],
    }
