"""Methods under one roof: how each is built, trained and measured, on worlds and on activations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from sparsebook.data.activations import ActivationStore, BatchSource, shuffled, stream
from sparsebook.data.superposition import SparseMixture, two_level_mixture
from sparsebook.experiments.group_bias_adaptation.scales import Config
from sparsebook.features.group_bias_adaptation import (
    GroupBiasRule,
    TiedJumpReLUSAE,
    geometric_targets,
    group_of,
)
from sparsebook.features.metrics import alive_fraction, densities, feature_recovery_rate, l0, normalized_mse
from sparsebook.features.sae import (
    BatchTopKSAE,
    JumpReLUSAE,
    ReLUSAE,
    SAEOutput,
    SparseAutoencoder,
    TopKSAE,
)
from sparsebook.features.trainer import AdaptiveL1Controller, AuxK, Step, TrainingOptions, TrainingRule, train

IN_MEMORY = 2**18
"""Rows of a store that is read as a whole; a larger one is streamed."""

Measured = dict[str, tuple[float, str]]
"""Values and units by metric."""

# --- inputs -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Inputs:
    """What methods are trained and judged on.

    Attributes
    ----------
    source : batches of training, for the given seeds
    start : tokens that biases are started from, ``[tokens, width]`` or ``[seeds, tokens, width]``
    test : held-out tokens, the same way
    worlds : of each seed, where there are any
    """

    source: Callable[[Sequence[int]], BatchSource]
    start: Tensor
    test: Tensor
    worlds: tuple[SparseMixture, ...] = ()

    @property
    def width(self) -> int:
        """Size of an activation vector."""
        return self.test.shape[-1]


def world_inputs(worlds: Sequence[SparseMixture], seeds: Sequence[int], config: Config) -> Inputs:
    """Tokens of a world for each seed, each token less the mean and of unit length."""
    trained, tested = [], []
    for world, seed in zip(worlds, seeds, strict=True):
        x = world.sample(config.tokens + config.test_tokens, stream(seed, 7)).x
        x = normalize(x - x[: config.tokens].mean(0), dim=1)
        trained.append(x[: config.tokens])
        tested.append(x[config.tokens :])

    def source(seeds: Sequence[int]) -> BatchSource:
        single = [shuffled(x, config.batch, seed) for x, seed in zip(trained, seeds, strict=True)]
        return lambda step: torch.stack([one(step) for one in single])

    return Inputs(source, torch.stack([x[:2048] for x in trained]), torch.stack(tested), tuple(worlds))


@lru_cache(maxsize=2)
def imbalanced(config: Config, seeds: tuple[int, ...]) -> Inputs:
    """The imbalanced world, one for each seed."""
    shape = (config.world_levels, config.world_features, config.world_dim)
    worlds = [two_level_mixture(*shape, seed) for seed in seeds]
    return world_inputs(worlds, seeds, config)


@lru_cache(maxsize=1)
def real_inputs(config: Config) -> Inputs:
    """Activations of MiniLM's layer 3, of a reader's folder, or (smoke) of one more world."""
    if config.activations is not None:
        store = folder_store(config.activations)
    elif config.scale == "smoke":
        x = two_level_mixture((2, 6), 48, 24, seed=9).sample(config.tokens, stream(9)).x
        return _table_inputs(x, config)
    else:
        from sparsebook.experiments.activations import minilm_activations, packaged_texts

        store = minilm_activations(packaged_texts()[: config.real_texts], layer=3)
    if len(store) <= IN_MEMORY:
        return _table_inputs(store.rows(), config)
    return _streamed_inputs(store, config)


def _streamed_inputs(store: ActivationStore, config: Config) -> Inputs:
    """The last table is held out, the others are trained on and never read as a whole."""
    if len(store.shards) < 2:
        raise ValueError(
            f"activations: one table of {len(store)} rows; expected several, the last is held out"
        )
    seen = ActivationStore(store.shards[:-1], store.sizes[:-1], store.width, store.scale)
    sample = seen.rows(0, min(len(seen), 2**16))
    test = torch.from_numpy(store.read(len(store.shards) - 1, 0, config.real_test_tokens))
    mean = sample.mean(0)

    def source(seeds: Sequence[int]) -> BatchSource:
        raw = shuffled(seen, config.batch, list(seeds))
        return lambda step: normalize(raw(step) - mean, dim=-1)

    start, held = (normalize(x - mean, dim=1) for x in (sample[:2048], test))
    return Inputs(source, start, held)


def _table_inputs(x: Float[Tensor, "tokens width"], config: Config) -> Inputs:
    """The last tokens are held out: they come from other texts."""
    held = min(config.real_test_tokens, len(x) // 4)
    x = normalize(x - x[:-held].mean(0), dim=1)
    rows = x[:-held]
    return Inputs(lambda seeds: shuffled(rows, config.batch, list(seeds)), rows[:2048], x[-held:])


def folder_store(folder: str | Path) -> ActivationStore:
    """A folder of ``.npy`` tables as a store; they are mapped, not read.

    Raises
    ------
    ValueError
        No such tables, or tables that are not two-dimensional or of different widths.
    """
    shards = tuple(sorted(Path(folder).glob("*.npy")))
    shapes = [np.load(path, mmap_mode="r").shape for path in shards]
    if not shapes or any(len(shape) != 2 or shape[1] != shapes[0][1] for shape in shapes):
        raise ValueError(f"activations={str(folder)!r}: expected .npy tables [tokens, width] of one width")
    return ActivationStore(shards, tuple(shape[0] for shape in shapes), shapes[0][1])


# --- methods ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """One method with its settings.

    Attributes
    ----------
    name : in tables
    method : what is trained
    rate : of learning
    high, low, groups : of the targets (Group Bias Adaptation)
    k : mean number of active neurons (all others)
    gate : as in `TiedJumpReLUSAE`
    """

    name: str
    method: str
    rate: float | int = 1e-2
    high: float = 0.1
    low: float = 0.001
    groups: int = 10
    k: float | int = 0.0
    gate: str = "threshold"

    @property
    def targets(self) -> Float[Tensor, " groups"]:
        """Target of each group."""
        return geometric_targets(self.high, self.low, self.groups)

    def at(self, rate: float | int) -> "Arm":
        """The same arm with another learning rate."""
        return replace(self, rate=rate)


def build(
    arm: Arm, inputs: Inputs, n_latents: int, seeds: Sequence[int], config: Config
) -> tuple[SparseAutoencoder, list[TrainingRule]]:
    """The autoencoder of an arm, one for each seed, and what its training adds."""
    shape: dict[str, Any] = {"width": inputs.width, "n_latents": n_latents, "seeds": tuple(seeds)}
    if arm.method == "gba":
        tied = TiedJumpReLUSAE(**shape, gate=arm.gate)
        tied.start_bias_(inputs.start, arm.targets)
        return tied, [GroupBiasRule(arm.targets, interval=config.interval)]
    if arm.method == "topk":
        return TopKSAE(**shape, k=max(1, round(arm.k))), [AuxK(k_aux=min(256, n_latents))]
    if arm.method == "batch_topk":
        return BatchTopKSAE(**shape, k=arm.k), [AuxK(k_aux=min(256, n_latents))]
    if arm.method == "l1":
        return ReLUSAE(**shape, sparsity=0.1), [AdaptiveL1Controller(arm.k)]
    return TargetedJumpReLUSAE(**shape, target=arm.k), []


class TargetedJumpReLUSAE(JumpReLUSAE):
    """JumpReLU with a penalty on the distance from a target L0, ``(L0 / target - 1)^2`` (arXiv 2407.14435).

    The kernel's width there is for a hundred thousand steps; here it is wider, for runs of some hundreds.
    """

    def __init__(self, width: int, n_latents: int, target: float | int, **options: Any) -> None:
        super().__init__(width, n_latents, 1.0, bandwidth=0.03, initial_threshold=0.03, **options)
        self.target = target

    def loss_terms(
        self, x: Tensor, output: SAEOutput, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """The squared error, and the squared relative distance of the batch's L0 from its target."""
        found = super().loss_terms(x, output, generator)
        return found | {"sparsity": (found["sparsity"] / self.target - 1).square()}


def fit(
    arm: Arm,
    inputs: Inputs,
    n_latents: int,
    n_steps: int,
    seeds: Sequence[int],
    config: Config,
    more: Sequence[TrainingRule] = (),
) -> SparseAutoencoder:
    """Train an arm on all seeds at once."""
    sae, rules = build(arm, inputs, n_latents, seeds, config)
    sae.to(config.device)
    options = TrainingOptions(n_steps, arm.rate, decay=0.2, log_every=n_steps)
    train(sae, inputs.source(seeds), options, [*rules, *more])
    return sae


class Trace(TrainingRule):
    """Keeps, every few steps, each group's share of firing: the mean and the extremes over its neurons.

    Raises
    ------
    ValueError : `every` below 1
    """

    keep = True

    def __init__(self, n_groups: int, every: int = 10) -> None:
        if every < 1:
            raise ValueError(f"every={every}: expected at least 1")
        self.n_groups, self.every = n_groups, every
        self.fired: list[Tensor] = []
        self.rows: list[tuple[int, Tensor]] = []

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        assert step.output.pre_activations is not None
        self.fired.append((step.output.pre_activations[0] > 0).float().mean(0))
        if (step.number + 1) % self.every == 0:
            shares = torch.stack(self.fired).mean(0)
            groups = group_of(len(shares), self.n_groups)
            means = torch.stack([shares[groups == k].mean() for k in range(self.n_groups)])
            self.rows.append((step.number + 1, means))
            self.fired.clear()


class Curve(TrainingRule):
    """Keeps what the first seed's autoencoder comes to on held-out tokens, every few steps."""

    def __init__(self, inputs: Inputs, arm: Arm, every: int) -> None:
        self.inputs, self.arm, self.every = inputs, arm, every
        self.rows: list[tuple[int, Measured]] = []

    def after_step(self, step: Step) -> None:
        if (step.number + 1) % self.every == 0:
            found = measure(step.trainer.sae, self.inputs, self.arm)[0]
            kept = {name: found[name] for name in ("nmse", "l0", "frr_0.8", "frr_0.9")}
            self.rows.append((step.number + 1, kept))


# --- measures -----------------------------------------------------------------------------------------------


@torch.no_grad()
def measure(sae: SparseAutoencoder, inputs: Inputs, arm: Arm) -> list[Measured]:
    """What every seed's autoencoder comes to on held-out tokens, sabotaged twins beside it."""
    x = inputs.test.to(sae.decoder)
    output = sae(x, keep=False)
    reconstruction = output.reconstruction
    density = densities(output.codes)
    found: dict[str, Tensor] = {
        "l0": l0(output.codes),
        "nmse": normalized_mse(x, reconstruction),
        "nmse_handed": normalized_mse(x, reconstruction.roll(1, -2)),
        "alive": alive_fraction(density),
    }
    if arm.method == "gba":
        target = arm.targets[group_of(sae.n_latents, arm.groups)].to(density)
        found["near_target"] = (density <= 1.5 * target).double().mean(-1)
        found["near_reversed"] = (density <= 1.5 * target.flip(-1)).double().mean(-1)
        # Half of the groups silenced.
        found["alive_silenced"] = alive_fraction(density * group_of(sae.n_latents, 2).to(density))
    out = []
    for index in range(len(sae.seeds or ())):
        out.append({name: (float(values[index]), _UNITS[name]) for name, values in found.items()})
        if inputs.worlds:
            out[-1] |= recovery(sae.decoder[index].cpu(), inputs.worlds[index])
    return out


_UNITS = {
    "l0": "neurons",
    "nmse": "ratio",
    "nmse_handed": "ratio",
    "alive": "fraction",
    "near_target": "fraction",
    "near_reversed": "fraction",
    "alive_silenced": "fraction",
}


def recovery(dictionary: Float[Tensor, "latents width"], world: SparseMixture) -> Measured:
    """Share of the true features that are found, and of as many random directions."""
    dictionary = dictionary.detach()
    false = torch.randn(world.features.shape, generator=stream(world.seed, 13))
    named = {"frr": world.features, "frr_random": false}
    return {
        f"{name}_{tau}": (float(feature_recovery_rate(dictionary, truth, tau)), "fraction")
        for name, truth in named.items()
        for tau in (0.8, 0.9)
    }


def tidy(
    experiment: str, method: str, seed: int, metrics: Mapping[str, Any], **knobs: Any
) -> list[dict[str, Any]]:
    """Rows of one measurement."""
    head = {"experiment": experiment, "method": method, "seed": seed}
    return [
        head | {"metric": metric, "value": float(value), "unit": unit} | knobs
        for metric, (value, unit) in metrics.items()
    ]
