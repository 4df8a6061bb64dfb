"""Speed of matching pursuit beside what can be installed, interleaved in one run.

    make bench                                       # with all of the others
    python tests/bench/bench_pursuit.py              # the same, alone

4,096 vectors of 384 over 4,096 atoms, 16 steps, two threads. "ours" is the public call with its checks, the
Gram matrix counted; "Gram given" the public call without the Gram product. The limit is the two matrix
products at the machine's rate and one read of a Gram row a step at a copy's speed. `overcomplete` is measured
if it is installed, or named by PYTHONPATH; scikit-learn takes its signals one by one, so that it gets 32.
"""

import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sparsebook.evaluation.machine import copy_bandwidth, gemm_rate, machine_name, set_threads
from sparsebook.evaluation.timing import compare
from sparsebook.experiments.selection_kernels import Config, peers
from sparsebook.experiments.selection_kernels.against import pursuit_once
from sparsebook.experiments.selection_kernels.choices import unit_problem
from sparsebook.kernels.pursuit import matching_pursuit

CONFIG = Config.at("full", repeats=3)


def saved_bytes(function: Callable[[], Any]) -> int:
    """Bytes that the backward pass of `function()` keeps, each storage once."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    del result
    return sum(kept.values())


def measure(task: str) -> dict[str, dict[str, float]]:
    """One pursuit beside its peer: seconds, ratios to ours, and the share of vectors with equal picks."""
    found = pursuit_once(vars(CONFIG), task)
    print(f"\n{task} pursuit, {CONFIG.pursuit_steps} steps")
    for method, numbers in found.items():
        if "seconds" in numbers:
            equal = f", equal picks {numbers['equal picks']:.5f}" if "equal picks" in numbers else ""
            print(
                f"{method:34s} {numbers['seconds'] * 1e3:10.1f} ms {numbers['over ours']:8.2f} x ours{equal}"
            )
    return found


def memory() -> None:
    """What a backward pass keeps, for 512 vectors."""
    x, dictionary = unit_problem(512, CONFIG.pursuit_dim, CONFIG.pursuit_atoms, seed=0)
    dictionary.requires_grad_()
    steps = CONFIG.pursuit_steps
    ours = saved_bytes(lambda: matching_pursuit(x, dictionary, n_steps=steps, nonnegative=False).residual)

    def loop() -> Tensor:
        """Picks without gradient, selected rows with: the leanest form that autograd allows."""
        residual = x
        for _ in range(steps):
            with torch.no_grad():
                pick = (residual @ dictionary.T).argmax(1)
            atom = dictionary[pick]
            residual = residual - (residual * atom).sum(-1, keepdim=True) * atom
        return residual

    print("\nkept for the backward pass of 512 vectors, MB")
    print(f"{'ours':34s} {ours / 1e6:10.1f}")
    print(f"{'selected rows through autograd':34s} {saved_bytes(loop) / 1e6:10.1f}")


def toy() -> None:
    """90 autoencoders of 20 atoms in 20 dimensions, 200 vectors each: one step of the tree benchmark."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(90, 200, 20, generator=generator)
    dictionary = normalize(torch.randn(90, 20, 20, generator=generator), dim=-1).requires_grad_()

    def forwards() -> Tensor:
        return matching_pursuit(x, dictionary, tolerance=0.05, stop_on_repeat=True).residual

    functions: dict[str, Callable[[], object]] = {
        "forwards": torch.no_grad()(forwards),
        "forwards and backwards": lambda: forwards().square().sum().backward(),
    }
    seconds = compare(functions, repeats=10, warmup=2)
    print("\n90 dictionaries of 20 atoms in 20 dimensions, 200 vectors each, until nothing new is found")
    for name, times in seconds.items():
        print(f"{name:34s} {statistics.median(times) * 1e3:10.1f} ms")


def machine(threads: int = 2) -> None:
    set_threads(threads)
    print(f"{machine_name()}, {threads} threads; product {gemm_rate() / 1e9:.0f} GFLOP/s, "
          f"copy {copy_bandwidth() / 1e9:.1f} GB/s")  # fmt: skip


@pytest.mark.bench
@pytest.mark.peer
def test_matching_pursuit_is_faster_than_overcompletes() -> None:
    if "overcomplete" in peers.missing("pursuit"):
        pytest.skip("overcomplete is not installed")
    peer = measure("matching")["overcomplete"]
    assert peer["equal picks"] > 0.99
    assert peer["over ours"] >= 5


@pytest.mark.bench
def test_orthogonal_pursuit_is_faster_than_scikit_learns() -> None:
    pytest.importorskip("sklearn")
    peer = measure("orthogonal")["scikit-learn"]
    assert peer["equal picks"] > 0.9
    assert peer["over ours"] >= 5


if __name__ == "__main__":
    machine()
    for pursuit in ("matching", "orthogonal"):
        measure(pursuit)
    memory()
    toy()
