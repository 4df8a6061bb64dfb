"""Speed of matching pursuit beside what can be installed, interleaved in one run.

    make bench                                       # with all of the others
    python tests/bench/bench_pursuit.py              # the same, alone

4,096 vectors of 384 over 4,096 atoms, 16 steps, two threads. "ours" is the public call with its checks, the
Gram matrix counted; "kernel" the operator alone; "Gram given" the public call without the Gram product. The
limit is the two matrix products at the machine's rate and one read of a Gram row a step at a copy's speed.
`overcomplete` is loaded without its package's imports (they need torchvision) if it is installed, or named by
PYTHONPATH; scikit-learn takes its signals one by one, so that it gets 32 of them.
"""

import importlib
import importlib.util
import statistics
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sparsebook.evaluation.machine import copy_bandwidth, gemm_rate, machine_name, set_threads
from sparsebook.evaluation.timing import compare, paired_median_ratio
from sparsebook.kernels.pursuit import matching_pursuit, orthogonal_matching_pursuit

ROWS, DIM, ATOMS, STEPS = 4096, 384, 4096, 16
FEW = 32


def problem() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, DIM, generator=generator)
    return x, normalize(torch.randn(ATOMS, DIM, generator=generator), dim=1)


def overcomplete_encoder(
    dictionary: Tensor, n_steps: int
) -> Callable[[Tensor], tuple[Tensor, Tensor]] | None:
    """`MpSAE.encode` -> (residual, dense codes), or None where the package is not to be found."""
    spec = importlib.util.find_spec("overcomplete")
    if spec is None:
        return None
    bare = types.ModuleType("overcomplete")
    bare.__path__, bare.__spec__ = list(spec.submodule_search_locations or []), spec
    sys.modules["overcomplete"] = bare
    sae = importlib.import_module("overcomplete.sae.mp_sae").MpSAE(DIM, len(dictionary), k=n_steps)
    with torch.no_grad():
        sae.dictionary._weights.copy_(dictionary)
    sae.eval()
    return sae.encode


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


def limits(rows: int, reads: float) -> tuple[float, float]:
    """Seconds of the two products, and of reading `reads` Gram rows a step (a copy's bytes count twice)."""
    products = 2 * ATOMS * DIM * (rows + ATOMS) / gemm_rate()
    return products, 4 * rows * STEPS * reads * ATOMS / copy_bandwidth()


def show(
    title: str, seconds: dict[str, list[float]], rows: dict[str, int], limit: tuple[float, float]
) -> None:
    print(f"\n{title}")
    for name, times in seconds.items():
        median, n = statistics.median(times), rows.get(name, ROWS)
        ratio = paired_median_ratio(seconds, name, "ours") if n == rows.get("ours", ROWS) else float("nan")
        print(f"{name:34s} {median * 1e3:10.1f} ms  {median / n * 1e6:9.1f} us a vector  {ratio:7.2f}x ours")
    parts = " + ".join(f"{part * 1e3:.1f}" for part in limit)
    print(f"{'limit: products + reading G':34s} {sum(limit) * 1e3:10.1f} ms  ({parts})")


def matching() -> float | None:
    """overcomplete's time over ours, or None without it; the results are compared first."""
    x, dictionary = problem()
    gram = dictionary @ dictionary.T
    operator = torch.ops.sparsebook.matching_pursuit
    functions: dict[str, Callable[[], object]] = {
        "ours": lambda: matching_pursuit(x, dictionary, n_steps=STEPS, nonnegative=False),
        "kernel": lambda: operator(x[None], dictionary[None], None, STEPS, 0.0, 1, False, True),
        "Gram given": lambda: matching_pursuit(
            x, dictionary, n_steps=STEPS, nonnegative=False, gram=gram
        ),
        "one product x D^T": lambda: x @ dictionary.T,
    }  # fmt: skip
    encode = overcomplete_encoder(dictionary, STEPS)
    if encode is not None:
        functions["overcomplete"] = lambda: _without_gradient(encode, x)
        residual, codes = _without_gradient(encode, x)
        mine = matching_pursuit(x, dictionary, n_steps=STEPS, nonnegative=False)
        same = ((mine.dense() != 0) == (codes != 0)).all(1)
        print(f"equal picks in {same.float().mean():.5f} of the vectors; largest difference there: "
              f"{(mine.residual - residual)[same].abs().max():.1e}")  # fmt: skip
        assert same.float().mean() > 0.99
    seconds = compare(functions, repeats=3, warmup=1)
    show(f"matching pursuit, {STEPS} steps", seconds, {}, limits(ROWS, 1))
    return paired_median_ratio(seconds, "overcomplete", "ours") if encode is not None else None


def _without_gradient(function: Callable[[Tensor], Any], x: Tensor) -> Any:
    with torch.no_grad():
        return function(x)


def orthogonal() -> float:
    """scikit-learn's time over ours on as many vectors, both with the Gram product."""
    from sklearn.linear_model import orthogonal_mp_gram

    x, dictionary = problem()
    few = x[:FEW]

    def theirs() -> Any:
        gram, products = (dictionary @ other.T for other in (dictionary, few))
        return orthogonal_mp_gram(gram.numpy(), products.numpy(), n_nonzero_coefs=STEPS)

    codes = torch.from_numpy(theirs().T)
    mine = orthogonal_matching_pursuit(few, dictionary, n_steps=STEPS).dense()
    same = ((mine != 0) == (codes != 0)).all(1)
    print(
        f"equal picks in {same.float().mean():.3f}; largest difference {(mine - codes)[same].abs().max():.1e}"
    )
    functions: dict[str, Callable[[], object]] = {
        "ours": lambda: orthogonal_matching_pursuit(few, dictionary, n_steps=STEPS),
        "ours, Gram form": lambda: orthogonal_matching_pursuit(few, dictionary, n_steps=STEPS, use_gram=True),
        f"ours, {ROWS} vectors": lambda: orthogonal_matching_pursuit(x, dictionary, n_steps=STEPS),
        "scikit-learn": theirs,
    }
    seconds = compare(functions, repeats=3, warmup=1)
    rows = dict.fromkeys(functions, FEW) | {f"ours, {ROWS} vectors": ROWS}
    show(f"orthogonal matching pursuit, {STEPS} steps, {FEW} vectors", seconds, rows, limits(FEW, 1))
    return paired_median_ratio(seconds, "scikit-learn", "ours")


def memory() -> None:
    """What a backward pass keeps, for 512 vectors."""
    x, dictionary = problem()
    x, dictionary = x[:512], dictionary.requires_grad_()
    ours = saved_bytes(lambda: matching_pursuit(x, dictionary, n_steps=STEPS, nonnegative=False).residual)

    def loop() -> Tensor:
        """Picks without gradient, selected rows with: the leanest form that autograd allows."""
        residual = x
        for _ in range(STEPS):
            with torch.no_grad():
                pick = (residual @ dictionary.T).argmax(1)
            atom = dictionary[pick]
            residual = residual - (residual * atom).sum(-1, keepdim=True) * atom
        return residual

    print("\nkept for the backward pass of 512 vectors, MB")
    print(f"{'ours':34s} {ours / 1e6:10.1f}")
    print(f"{'selected rows through autograd':34s} {saved_bytes(loop) / 1e6:10.1f}")
    encode = overcomplete_encoder(dictionary.detach(), STEPS)
    if encode is not None:
        print(f"{'overcomplete':34s} {saved_bytes(lambda: encode(x)) / 1e6:10.1f}")


def toy() -> None:
    """90 autoencoders of 20 atoms in 20 dimensions, 200 vectors each: one step of the tree benchmark."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(90, 200, 20, generator=generator)
    dictionary = normalize(torch.randn(90, 20, 20, generator=generator), dim=-1).requires_grad_()

    def forwards() -> Tensor:
        return matching_pursuit(x, dictionary, tolerance=0.05, stop_on_repeat=True).residual

    functions: dict[str, Callable[[], object]] = {
        "forwards": lambda: _without_gradient(lambda _: forwards(), x),
        "forwards and backwards": lambda: forwards().square().sum().backward(),
    }
    seconds = compare(functions, repeats=10, warmup=2)
    print("\n90 dictionaries of 20 atoms in 20 dimensions, 200 vectors each, until nothing new is found")
    for name, times in seconds.items():
        print(f"{name:34s} {statistics.median(times) * 1e3:10.1f} ms")


def run(threads: int = 2) -> tuple[float | None, float]:
    set_threads(threads)
    print(f"{machine_name()}, {threads} threads; product {gemm_rate() / 1e9:.0f} GFLOP/s, "
          f"copy {copy_bandwidth() / 1e9:.1f} GB/s")  # fmt: skip
    ratios = matching(), orthogonal()
    memory()
    toy()
    return ratios


@pytest.mark.bench
@pytest.mark.filterwarnings("ignore")
def test_pursuit_is_faster_than_what_can_be_installed() -> None:
    over_overcomplete, over_sklearn = run()
    assert over_sklearn > 1
    assert over_overcomplete is None or over_overcomplete > 1


if __name__ == "__main__":
    run()
