"""Sparse times dense products beside the dense product, torch.sparse and SciPy, interleaved in one run.

    make bench                                               # with all of the others
    python tests/bench/bench_sparse_matmul.py [SPARSITY ...]     # alone: the layers' table at 0.9, ...

The 1 x 1 layers of MobileNet v1 and v2 and 512 x 512 x 3,136, float32, one thread and two, the public calls.
Means are geometric, over layers with at least 196 pixels; the 7 x 7 layers stand apart. XNNPACK's sparse path
is not here: it switches itself off on x86 processors with AVX.
"""

import math
import sys
from dataclasses import replace

import pandas as pd
import pytest

from sparsebook.evaluation.machine import machine_name
from sparsebook.experiments.sparse_matmul_kernels import Config, run_speed, run_step, speed_table
from sparsebook.experiments.sparse_matmul_kernels.figures import mean_ratios
from sparsebook.experiments.sparse_matmul_kernels.results import WANTED, WORST, step_ratio, worst

FULL = Config.at("full", repeats=10, slow_repeats=3)


def show(speed: pd.DataFrame) -> None:
    with pd.option_context("display.width", 200, "display.max_columns", None):
        print("\n", speed_table(speed), sep="", flush=True)


@pytest.fixture(scope="module")
def speed() -> pd.DataFrame:
    found = run_speed(FULL)
    show(found)
    return found


@pytest.mark.bench
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("sparsity", WANTED)
def test_against_the_dense_product(speed: pd.DataFrame, sparsity: float, threads: int) -> None:
    assert mean_ratios(speed, "dense")[threads, sparsity] >= WANTED[sparsity]


@pytest.mark.bench
@pytest.mark.parametrize("method", ["torch.sparse", "SciPy"])
def test_against_the_other_sparse_products(speed: pd.DataFrame, method: str) -> None:
    assert mean_ratios(speed, method).min() > 1
    assert worst(speed, method).value > 1 / WORST


@pytest.mark.bench
def test_a_training_step_is_far_ahead_of_masked_dense() -> None:
    found = {"step": run_step(replace(FULL, processes=0))}
    ratios = {n: step_ratio(found, n) for n in (1, 2)}
    print("\nmasked dense over ours, training step:", ratios)
    assert min(value for value in ratios.values() if not math.isnan(value)) > 10


if __name__ == "__main__":
    print(machine_name())
    wanted = tuple(float(value) for value in sys.argv[1:]) or FULL.sparsities
    show(run_speed(replace(FULL, sparsities=wanted)))
