"""Times beside other people's packages: both pursuits, and the training step of an autoencoder."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from sparsebook.evaluation.machine import copy_bandwidth, gemm_rate, set_threads
from sparsebook.experiments.selection_kernels import peers
from sparsebook.experiments.selection_kernels.choices import unit_problem
from sparsebook.experiments.selection_kernels.scales import Config
from sparsebook.experiments.selection_kernels.speed import Functions, timed
from sparsebook.experiments.selection_kernels.tidy import Found, by_processes
from sparsebook.features.codes import Codes, DenseCodes
from sparsebook.features.sae import BatchTopKSAE, LinearEncoderSAE, TopKSAE
from sparsebook.features.trainer import AuxK, Trainer, TrainingOptions
from sparsebook.kernels.pursuit import matching_pursuit, orthogonal_matching_pursuit

PURSUITS = ("matching", "orthogonal")
STEP = "step"
Encoder = Callable[[Tensor], tuple[Tensor, Tensor]]

# Pursuits ------------------------------------------------------------------------------------------------


def run_pursuit(config: Config) -> pd.DataFrame:
    """Both pursuits beside a peer each: seconds, ratios, and the share of vectors with equal picks."""
    return by_processes(config, "pursuit", pursuit_once, PURSUITS)


def pursuit_once(knobs: Mapping[str, Any], task: str) -> Found:
    """One pursuit in this process, its limit from the machine's rates as they are now."""
    config = Config(**knobs)
    set_threads(config.threads)
    problem = unit_problem(config.pursuit_rows, config.pursuit_dim, config.pursuit_atoms, config.seed)
    make = matching_functions if task == "matching" else orthogonal_functions
    fast, slow, equal = make(config, *problem)
    found = timed(config, fast, slow)
    for name, numbers in equal.items():
        found[name] |= numbers
    if task == "matching":
        seconds = pursuit_limit(config, gemm_rate(), copy_bandwidth())
        found["limit"] = {"seconds": seconds, "over ours": seconds / found["ours"]["seconds"]}
        found["machine"] = {"product rate": gemm_rate(), "copy rate": copy_bandwidth()}
    return found


def pursuit_work(config: Config) -> tuple[int, int]:
    """Operations of the products X D^T and D D^T, and bytes of one row of D D^T for every step."""
    rows, atoms = config.pursuit_rows, config.pursuit_atoms
    return 2 * atoms * config.pursuit_dim * (rows + atoms), 4 * rows * config.pursuit_steps * atoms


def pursuit_limit(config: Config, product_rate: float, copy_rate: float) -> float:
    """Seconds of the two matrix products, and then of the reads."""
    operations, read = pursuit_work(config)
    return operations / product_rate + read / copy_rate


def matching_functions(config: Config, x: Tensor, dictionary: Tensor) -> tuple[Functions, Functions, Found]:
    """Ours with and without the Gram product, the peer, and how far the two agree."""
    pursue = partial(matching_pursuit, x, dictionary, n_steps=config.pursuit_steps, nonnegative=False)
    gram = dictionary @ dictionary.T
    fast: Functions = {"ours": pursue, "Gram given": partial(pursue, gram=gram)}
    if "overcomplete" in peers.missing("pursuit"):
        return fast, {}, {}
    encode = peers.overcomplete_encoder(dictionary, config.pursuit_steps)
    mine, theirs = pursue().dense(), encode(x)[1]
    equal = agreement_of_codes(mine, theirs)
    rest = ((mine != 0) != (theirs != 0)).any(1)
    if bool(rest.any()):
        equal["gap of the rest"] = float(closest_choice(x[rest], dictionary, config.pursuit_steps).max())
    return fast, {"overcomplete": lambda: encode(x)}, {"overcomplete": equal}


def orthogonal_functions(config: Config, x: Tensor, dictionary: Tensor) -> tuple[Functions, Functions, Found]:
    """A few vectors in ours and in the peer, both with their Gram product; and all vectors in ours."""
    few, steps = x[: config.few], config.pursuit_steps
    pursue = partial(orthogonal_matching_pursuit, dictionary=dictionary, n_steps=steps)
    fast: Functions = {"ours": partial(pursue, few), "Gram form": partial(pursue, few, use_gram=True)}
    slow: Functions = {"all vectors": partial(pursue, x)}
    if "scikit-learn" in peers.missing("pursuit"):
        return fast, slow, {}
    from sklearn.linear_model import orthogonal_mp_gram

    def theirs() -> Any:
        gram, products = (dictionary @ other.T for other in (dictionary, few))
        return orthogonal_mp_gram(gram.numpy(), products.numpy(), n_nonzero_coefs=steps)

    equal = agreement_of_codes(pursue(few).dense(), torch.from_numpy(theirs().T))
    return fast, slow | {"scikit-learn": theirs}, {"scikit-learn": equal | {"vectors": float(len(few))}}


def agreement_of_codes(mine: Tensor, theirs: Tensor) -> dict[str, float]:
    """Share of the vectors whose codes have the same support, and the largest difference among these."""
    same = ((mine != 0) == (theirs != 0)).all(1)
    largest = float((mine - theirs)[same].abs().max()) if bool(same.any()) else float("inf")
    return {"equal picks": float(same.float().mean()), "largest difference": largest}


def closest_choice(
    x: Float[Tensor, "rows dim"], dictionary: Float[Tensor, "atoms dim"], n_steps: int
) -> Float[Tensor, " rows"]:
    """How close the second best correlation comes to the best, over all steps in float64, relative to it."""
    residual, atoms = x.double(), dictionary.double()
    closest = residual.new_full((len(x),), torch.inf)
    for _ in range(n_steps):
        best = (residual @ atoms.T).topk(2)
        value, pick = best.values[:, 0], best.indices[:, 0]
        closest = torch.minimum(closest, (value - best.values[:, 1]) / value)
        residual = residual - value[:, None] * atoms[pick]
    return closest


# The training step ---------------------------------------------------------------------------------------


def run_training(config: Config) -> pd.DataFrame:
    """One step of a TopK autoencoder: forward, loss, counting of what fired, backward, clipping, Adam."""
    return by_processes(config, "training", training_once, (STEP,))


def training_once(knobs: Mapping[str, Any], task: str) -> Found:
    """One step of each, in this process, and the limit: the encoder's product and the optimiser's bytes."""
    config = Config(**knobs)
    set_threads(config.threads)
    fast = training_steps(config.step_rows, config.step_width, config.step_latents, config.step_k)
    slow = {name: fast.pop(name) for name in list(fast) if name.startswith(("SAELens", "dense"))}
    found = timed(config, fast, slow, warmup=1)
    operations, moved = training_work(config)
    seconds = operations / gemm_rate() + moved / copy_bandwidth()
    found["limit"] = {"seconds": seconds, "over ours": seconds / found["ours"]["seconds"]}
    return found


def training_work(config: Config) -> tuple[int, int]:
    """Operations of the encoder's product; bytes of Adam: four numbers read and three written a parameter."""
    parameters = 2 * config.step_latents * config.step_width
    return 2 * config.step_rows * config.step_latents * config.step_width, 4 * 7 * parameters


def training_steps(rows: int, width: int, n_latents: int, k: int) -> Functions:
    """A step of everything that can be measured here, on one batch."""
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(0))
    found: Functions = {
        "ours": our_step(TopKSAE(width, n_latents, k), x),
        "ours, BatchTopK": our_step(BatchTopKSAE(width, n_latents, k), x),
        "dense codes": our_step(DenseTopKSAE(width, n_latents, k), x),
    }
    if peers.missing("training"):
        return found
    for name, sparse in (("SAELens", False), ("SAELens, sparse", True)):
        found[name] = peers.sae_lens_step(x, n_latents, k, sparse)
    return found


def our_step(sae: LinearEncoderSAE, x: Tensor) -> Callable[[], object]:
    """The trainer's own step."""
    options = TrainingOptions(10_000, clip_norm=1.0, log_every=10_000)
    trainer = Trainer(sae, options, [AuxK()])
    return lambda: trainer.step(x)


class DenseTopKSAE(LinearEncoderSAE):
    """What a knowing user would write: dense codes, PyTorch's top-k and its autograd."""

    def __init__(self, width: int, n_latents: int, k: int) -> None:
        super().__init__(width, n_latents)
        self.k = k
        self.initialise()

    def activate(self, affinities: Tensor, mode: str = "batch") -> Codes:
        found = affinities.topk(self.k, dim=-1, sorted=False)
        empty = torch.zeros_like(affinities)
        return DenseCodes(empty.scatter(-1, found.indices, found.values.relu()))
