"""A training step of a TopK autoencoder beside SAELens' at equal shapes, and beside dense codes of our own.

    python tests/bench/bench_sae.py                  # batch 4096, width 384, 8192 latents, k 32
    python tests/bench/bench_sae.py 4096 640 16384 32

One step is the public call on either side: forward, loss, counting of what fired, backward, clipping, Adam;
rounds are interleaved. SAELens (``pip install sae-lens``) is measured in both of its forms, dense and sparse
activations, with its own defaults. No latent is dead in so few steps: no side pays for an auxiliary loss.
"""

import sys
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest
import torch

from sparsebook.evaluation.timing import compare, paired_median_ratio
from sparsebook.features.codes import Codes, DenseCodes
from sparsebook.features.sae import BatchTopKSAE, LinearEncoderSAE, TopKSAE
from sparsebook.features.trainer import AuxK, Trainer, TrainingOptions

SHAPES = ((4096, 384, 8192, 32), (4096, 640, 16384, 32))


class DenseTopKSAE(LinearEncoderSAE):
    """What a knowing user would write: dense codes, PyTorch's top-k and its autograd."""

    def __init__(self, width: int, n_latents: int, k: int) -> None:
        super().__init__(width, n_latents)
        self.k = k
        self.initialise()

    def activate(self, affinities: Any, mode: str = "batch") -> Codes:
        found = affinities.topk(self.k, dim=-1, sorted=False)
        empty = torch.zeros_like(affinities)
        return DenseCodes(empty.scatter(-1, found.indices, found.values.relu()))


def our_step(sae: Any, x: torch.Tensor) -> Callable[[], object]:
    options = TrainingOptions(10_000, clip_norm=1.0, log_every=10_000)
    trainer = Trainer(sae, options, [AuxK()])
    return lambda: trainer.step(x)


def their_step(x: torch.Tensor, n_latents: int, k: int, sparse: bool) -> Callable[[], object]:
    """The calls of ``SAETrainer._train_step``."""
    from sae_lens.saes.sae import TrainStepInput
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(d_in=x.shape[1], d_sae=n_latents, k=k, use_sparse_activations=sparse)
    )
    optimiser = torch.optim.Adam(sae.parameters(), lr=3e-4, betas=(0.9, 0.99))
    silent, scores = torch.zeros(n_latents), torch.zeros(n_latents)

    def step() -> None:
        nonlocal silent, scores
        dead = silent > 1000
        output = sae.training_forward_pass(
            TrainStepInput(
                sae_in=x, dead_neuron_mask=dead, coefficients={}, n_training_steps=0, is_logging_step=False
            )
        )
        with torch.no_grad():
            fired = output.feature_acts.bool().float()
            did_fire = fired.sum(-2).bool()
            did_fire = did_fire.to_dense() if did_fire.is_sparse else did_fire
            silent += 1
            silent[did_fire] = 0
            scores += fired.sum(0)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()

    return step


def steps(batch: int, width: int, n_latents: int, k: int) -> dict[str, Callable[[], object]]:
    """Everything that can be measured here."""
    torch.manual_seed(0)
    x = torch.randn(batch, width)
    found = {
        "ours": our_step(TopKSAE(width, n_latents, k), x),
        "ours, BatchTopK": our_step(BatchTopKSAE(width, n_latents, k), x),
        "dense codes": our_step(DenseTopKSAE(width, n_latents, k), x),
    }
    for name, sparse in (("SAELens", False), ("SAELens, sparse", True)):
        try:
            step = their_step(x, n_latents, k, sparse)
            step()
            found[name] = step
        except ImportError:
            print(f"{name}: sae_lens is not installed")
        except NotImplementedError as error:
            print(f"{name}: {str(error).partition('.')[0]}")
    return found


def measure(batch: int, width: int, n_latents: int, k: int, repeats: int = 5) -> dict[str, list[float]]:
    """Seconds of a step of each, in interleaved rounds, printed with the ratio to ours."""
    seconds = compare(steps(batch, width, n_latents, k), repeats, warmup=2)
    print(f"batch {batch}, width {width}, latents {n_latents}, k {k}, {torch.get_num_threads()} threads")
    for name in seconds:
        ratio = paired_median_ratio(seconds, name, "ours")
        print(f"  {name:<16} {1e3 * median(seconds[name]):8.1f} ms  {ratio:5.2f} x ours")
    return seconds


@pytest.mark.bench
@pytest.mark.peer
def test_a_step_is_at_least_as_fast_as_saelens():
    pytest.importorskip("sae_lens")
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
