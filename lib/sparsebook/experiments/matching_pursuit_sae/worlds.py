"""Made-up worlds: two modalities with shared concepts, a superposed world, and pursuit's own properties."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sparsebook.data.activations import BatchSource, sampled, shuffled, stream
from sparsebook.data.concept_tree import published_tree
from sparsebook.data.superposition import SparseMixture
from sparsebook.experiments.matching_pursuit_sae.arms import ARMS, codes_at, error_at, trained
from sparsebook.experiments.matching_pursuit_sae.scales import Config
from sparsebook.experiments.matching_pursuit_sae.stages import Rows, Stages, row, rows, run
from sparsebook.experiments.matching_pursuit_sae.toy import directions
from sparsebook.features.matching_pursuit_sae import MatchingPursuitSAE
from sparsebook.features.metrics import feature_recovery_rate, l0, modality_score
from sparsebook.kernels.pursuit import matching_pursuit

RATE = 3e-3
"""Learning rate of all methods in the made-up worlds."""
SHARED = (0.25, 0.75)
"""A feature of both modalities has a modality score between these."""

# Two modalities ------------------------------------------------------------------------------------------


class JointEmbedding:
    """Pairs of embeddings: the same concepts, with magnitudes of their own, and an offset for each modality.

    Parameters
    ----------
    seed : draws concepts and offsets
    n_concepts, dim, active : concepts, width, and concepts of an item
    gap : length of the offsets over that of an item's concepts
    """

    def __init__(
        self, seed: int, n_concepts: int = 64, dim: int = 48, active: int = 4, gap: float = 1.0
    ) -> None:
        self.world = SparseMixture(n_concepts, dim, active, "varied", seed=seed)
        self.offsets = gap * normalize(torch.randn(2, dim, generator=stream(seed, 11)), dim=1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """`n` items, the first half images and the second texts."""
        x = self.world.sample(n, generator).x
        first = torch.arange(n) < n // 2
        return x + torch.where(first[:, None], self.offsets[0], self.offsets[1])


def run_modalities(config: Config) -> pd.DataFrame:
    """Which share of the features in use serves both modalities."""
    stages: Stages = {method: partial(_modalities, config, method) for method in ARMS}
    return run(config, stages, "modalities")


def _modalities(config: Config, method: str, k: int = 5) -> Rows:
    seeds = _seeds(config, config.joint_seeds)
    batches, x, first = _joint(config, seeds)
    n_latents = 96 if config.embeddings is None else config.latents
    sae = trained(
        method, x.shape[-1], n_latents, k, seeds, batches, steps=config.joint_steps, rate=RATE,
        device=config.device, sabotage=config.sabotage,
    )  # fmt: skip
    if config.sabotage == "labels":
        first = first[torch.randperm(len(first), generator=stream(config.seed, 12))]
    codes = codes_at(sae, x)
    score = modality_score(codes, first.to(x.device))
    used = codes.active_per_latent() > 0
    both = used & (score >= SHARED[0]) & (score <= SHARED[1])
    metrics = {
        "both": both.double().sum(-1) / used.sum(-1).clamp(min=1), "used": used.double().sum(-1),
        "r2": 1 - error_at(sae, x), "l0": l0(codes),
    }  # fmt: skip
    out = rows("modalities", method, seeds, metrics)
    edges = torch.linspace(0, 1, 11, dtype=torch.float64)
    share = torch.histogram(score[used].cpu(), edges).hist / used.sum().cpu()
    for low, value in zip(edges[:-1].tolist(), share.tolist(), strict=True):
        out += row("modalities", method, config.seed, "histogram", value, "fraction", level=low)
    return out


def _joint(config: Config, seeds: tuple[int, ...]) -> tuple[BatchSource, Tensor, Tensor]:
    """Batches, items to judge, and which of them are images."""
    if config.embeddings is not None:
        return _own_embeddings(config, seeds)
    worlds = [JointEmbedding(seed) for seed in seeds]
    sources = [sampled(w.sample, config.joint_batch, s) for w, s in zip(worlds, seeds, strict=True)]
    fresh = torch.stack([w.sample(config.judged, stream(s, 13)) for w, s in zip(worlds, seeds, strict=True)])
    first = torch.arange(config.judged) < config.judged // 2
    return lambda step: torch.stack([source(step) for source in sources]), fresh, first


def _own_embeddings(config: Config, seeds: tuple[int, ...]) -> tuple[BatchSource, Tensor, Tensor]:
    folder = Path(str(config.embeddings))
    parts = [
        torch.from_numpy(np.load(folder / f"{name}.npy").astype(np.float32)) for name in ("images", "texts")
    ]
    n_judged = min(config.judged, min(map(len, parts)) // 2)
    train = torch.cat([part[n_judged:] for part in parts]).to(config.device)
    fresh = torch.cat([part[:n_judged] for part in parts]).to(config.device)
    batch = min(config.joint_batch, len(train))
    return shuffled(train, batch, list(seeds)), fresh, torch.arange(2 * n_judged) < n_judged


def _seeds(config: Config, n: int) -> tuple[int, ...]:
    return tuple(config.seed + i for i in range(n))


SUPERPOSED = ("mp", "topk")

# A superposed world --------------------------------------------------------------------------------------


def run_superposed(config: Config) -> pd.DataFrame:
    """Explained variance and true features found, where many features share few dimensions."""
    stages: Stages = {method: partial(_superposed, config, method) for method in SUPERPOSED}
    return run(config, stages, "superposed")


def _tokens(world: SparseMixture, n: int, generator: torch.Generator) -> Tensor:
    return world.sample(n, generator).x


def _superposed(config: Config, method: str, dim: int = 64, k: int = 8) -> Rows:
    seeds, n = _seeds(config, config.world_seeds), config.world_features
    worlds = [SparseMixture(n, dim, config.active, "varied", seed=seed) for seed in seeds]
    sources = [
        sampled(partial(_tokens, world), config.world_batch, seed)
        for world, seed in zip(worlds, seeds, strict=True)
    ]
    batches = lambda step: torch.stack([source(step) for source in sources]).to(config.device)  # noqa: E731
    sae = trained(
        method, dim, n, k, seeds, batches,
        steps=config.world_steps, rate=RATE, device=config.device, sabotage=config.sabotage,
    )  # fmt: skip
    if config.sabotage == "given" and method == "mp":
        with torch.no_grad():
            sae.decoder.copy_(torch.stack([normalize(world.features, dim=1) for world in worlds]))
    x = torch.stack([w.sample(config.judged, stream(s, 13)).x for w, s in zip(worlds, seeds, strict=True)])
    x = x.to(config.device)
    pairs = zip(sae.decoder.detach().cpu(), worlds, strict=True)
    metrics = {
        "r2": 1 - error_at(sae, x), "l0": l0(codes_at(sae, x)),
        "recovered": torch.stack([feature_recovery_rate(atoms, world.features) for atoms, world in pairs]),
    }  # fmt: skip
    return rows("superposed", method, seeds, metrics)


# Pursuit itself ------------------------------------------------------------------------------------------


def run_properties(config: Config) -> pd.DataFrame:
    """Orthogonality, Pythagoras, the corner that the signed rule cannot leave, pursuit against one shot."""
    return run(config, {"all": partial(_properties, config)}, "properties")


@torch.no_grad()
def _properties(config: Config) -> Rows:
    draw = stream(config.seed, 14)
    atoms, x = (normalize(torch.randn(n, 32, generator=draw), dim=1) for n in (64, 2000))
    path = matching_pursuit(x, atoms, n_steps=16, nonnegative=False, return_path=True)
    assert path.path is not None
    after = path.path[:, 1:]
    products = (after * atoms[path.indices.clamp(min=0)]).sum(-1)[path.indices >= 0]
    squares = path.path.square().sum(-1)
    lost = squares[:, :-1] - squares[:, 1:] - path.coefficients.square()
    unit = "absolute deviation"
    out = row("properties", "orthogonal", config.seed, "deviation", products.abs().max(), unit)
    out += row("properties", "pythagoras", config.seed, "deviation", lost.abs().max(), unit)
    return out + _corner(config) + _with_true_dictionary(config)


def _corner(config: Config) -> Rows:
    """A unit vector 20 degrees from one of two atoms 60 degrees apart."""
    at = lambda degrees: torch.tensor([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])  # noqa: E731
    atoms, x, out = torch.stack([at(0), at(60)]), at(20)[None], []
    stuck = math.sin(math.radians(20)) * math.cos(math.radians(60))
    rules = {
        "toy": ({"nonnegative": True, "stop_on_repeat": True}, stuck),
        "overcomplete": ({"nonnegative": False, "n_steps": 40}, stuck),
        "magnitudes": ({"nonnegative": False, "absolute": True, "n_steps": 40}, 0.0),
    }
    for name, (rule, expected) in rules.items():
        left = matching_pursuit(x, atoms, **rule).residual.norm()  # type: ignore[arg-type]
        out += row("properties", name, config.seed, "residual", left, "length")
        out += row("properties", name, config.seed, "distance", abs(float(left) - expected), "length")
    return out


def _with_true_dictionary(config: Config, cosine: float = 0.3) -> Rows:
    tree, out = published_tree(), []
    for i in range(8):
        truth = directions(cosine, config.seed + i)
        concepts = tree.sample(config.judged, stream(config.seed + i, 15))
        x = concepts @ truth
        sae = MatchingPursuitSAE(20, 20, threshold=config.threshold)
        sae.decoder.copy_(truth)
        at_once = torch.zeros_like(concepts).scatter(-1, (x @ truth.T).topk(2).indices, 1.0)
        found = at_once if config.sabotage == "no residual" else sae.encode(x).dense()
        for method, codes in (("pursuit", found), ("two largest", at_once)):
            right = ((codes != 0) == (concepts != 0)).all(1).double().mean()
            out += row("properties", method, config.seed + i, "found", right, "fraction")
    return out
