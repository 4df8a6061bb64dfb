"""A training step of a TopK autoencoder beside SAELens' at equal shapes, and beside dense codes of our own.

    python tests/bench/bench_sae.py                  # batch 4096, width 384, 8192 latents, k 32
    python tests/bench/bench_sae.py 4096 640 16384 32

One step is the public call on either side: forward, loss, counting of what fired, backward, clipping, Adam;
rounds are interleaved. SAELens (``pip install sae-lens``) is measured in both of its forms, dense and sparse
activations. No latent is dead in so few steps: no side pays for an auxiliary loss.
"""

import sys
from statistics import median

import pytest
import torch

from sparsebook.evaluation.timing import compare, paired_median_ratio
from sparsebook.experiments.selection_kernels import peers
from sparsebook.experiments.selection_kernels.against import training_steps

SHAPES = ((4096, 384, 8192, 32), (4096, 640, 16384, 32))


def measure(batch: int, width: int, n_latents: int, k: int, repeats: int = 5) -> dict[str, list[float]]:
    """Seconds of a step of each, in interleaved rounds, printed with the ratio to ours."""
    seconds = compare(training_steps(batch, width, n_latents, k), repeats, warmup=2)
    print(f"\nbatch {batch}, width {width}, latents {n_latents}, k {k}, {torch.get_num_threads()} threads")
    for name in seconds:
        ratio = paired_median_ratio(seconds, name, "ours")
        print(f"  {name:<16} {1e3 * median(seconds[name]):8.1f} ms  {ratio:5.2f} x ours")
    for name in peers.missing("training"):
        print(f"  {name} is not installed")
    return seconds


@pytest.mark.bench
@pytest.mark.peer
def test_a_step_is_at_least_as_fast_as_saelens():
    if peers.missing("training"):
        pytest.skip("sae-lens is not installed")
    seconds = measure(*SHAPES[0])
    theirs = [name for name in seconds if name.startswith("SAELens")]
    fastest = min(theirs, key=lambda name: median(seconds[name]))
    assert paired_median_ratio(seconds, "ours", fastest) <= 1


@pytest.mark.bench
def test_a_step_is_faster_than_dense_codes():
    seconds = measure(*SHAPES[0])
    assert paired_median_ratio(seconds, "ours", "dense codes") < 1


if __name__ == "__main__":
    given = tuple(int(word) for word in sys.argv[1:])
    for shape in [given] if given else SHAPES:
        measure(*shape)
