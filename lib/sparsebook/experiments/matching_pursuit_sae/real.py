"""Activations of real models: explained variance, effective rank, coherence, steps at inference."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sparsebook.data.activations import BatchSource, shuffled, stream
from sparsebook.data.superposition import SparseMixture
from sparsebook.experiments.matching_pursuit_sae.arms import codes_at, error_at, trained
from sparsebook.experiments.matching_pursuit_sae.scales import Config
from sparsebook.experiments.matching_pursuit_sae.stages import Rows, Stages, rows, run
from sparsebook.features.codes import Codes, DenseCodes
from sparsebook.features.metrics import active_babel, babel, densities, effective_rank, l0
from sparsebook.features.sae import SparseAutoencoder

_COHERENT = 400
"""Tokens whose own atoms are compared with each other: a small table for each."""


def stores(config: Config) -> tuple[str, ...]:
    """The names of the sources: the packaged ones, or the files of the reader's folder.

    Raises
    ------
    ValueError
        For a folder without activations.
    """
    if config.store is None:
        return config.stores
    found = tuple(sorted(path.stem for path in Path(config.store).glob("*.npy")))
    if not found:
        raise ValueError(f"store={config.store!r}: expected a folder with files NAME.npy [tokens, width]")
    return found


_read: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}


def activations(config: Config, store: str) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows kept for judging, centred on the former's mean, of mean squared length 1.

    Raises
    ------
    ValueError
        For a file of the wrong shape, or with too few rows.
    """
    key = (store, config.store, config.texts, config.held_out, config.seed)
    if key not in _read:
        table = _table(config, store)
        if table.ndim != 2 or len(table) < 2 * config.held_out:
            raise ValueError(
                f"store {store} has shape {tuple(table.shape)}: expected [tokens, width] with at least "
                f"{2 * config.held_out} tokens, twice those kept for judging"
            )
        kept = table[: len(table) - config.held_out]
        mean = kept.mean(0)
        length = (kept - mean).square().sum(1).mean().sqrt()
        whole = (table - mean) / length
        _read[key] = whole[: len(kept)], whole[len(kept) :]
    return _read[key]


def _table(config: Config, store: str) -> Tensor:
    if config.store is not None:
        return torch.from_numpy(np.load(Path(config.store) / f"{store}.npy").astype(np.float32))
    if store == "planted":
        world = SparseMixture(96, 24, 3, "varied", seed=config.seed)
        return world.sample(1500, stream(config.seed, 3)).x
    from sparsebook.experiments.activations import (
        efficientnet_activations,
        minilm_activations,
        packaged_texts,
    )

    if store == "minilm":
        found = minilm_activations(packaged_texts()[: config.texts], layer=3)
    else:
        found = efficientnet_activations(stride=16)
    return found.rows()


def sources(config: Config, store: str, seeds: tuple[int, ...]) -> tuple[BatchSource, Tensor]:
    train, held_out = (part.to(config.device) for part in activations(config, store))
    return shuffled(train, config.real_batch, list(seeds)), held_out


def seeds_of(config: Config) -> tuple[int, ...]:
    return tuple(config.seed + i for i in range(config.real_seeds))


def run_tuning(config: Config) -> pd.DataFrame:
    """Every method with every learning rate, on a seed that is not reported."""
    stages: Stages = {
        f"{store}, {method}": partial(_tuning, config, store, method)
        for store in stores(config)
        for method in config.arms
    }
    return run(config, stages, "tuning")


def _tuning(config: Config, store: str, method: str) -> Rows:
    seeds, out = (config.seed + 1000,), []
    batches, held_out = sources(config, store, seeds)
    for rate in config.rates:
        sae = _trained(config, method, config.k_shown, seeds, batches, held_out, rate)
        metrics = {"r2": 1 - error_at(sae, held_out), "l0": l0(codes_at(sae, held_out))}
        out += rows("tuning", method, seeds, metrics, store=store, rate=rate)
    return out


def best_rate(tuning: pd.DataFrame, store: str, method: str) -> float:
    """The rate that explained most."""
    own = tuning[(tuning.store == store) & (tuning.method == method) & (tuning.metric == "r2")]
    return float(own.loc[own.value.idxmax(), "rate"])


def run_real(config: Config) -> pd.DataFrame:
    """Tuning, then every method at every number of latents a token; one model of each is swept."""
    tuning = pd.DataFrame() if config.sabotage else run_tuning(config)  # controls take the first rate
    rate = lambda store, method: (  # noqa: E731
        config.rates[0] if tuning.empty else best_rate(tuning, store, method)
    )
    stages: Stages = {
        f"{store}, {method}, k={k}": partial(_real, config, store, method, k, rate(store, method))
        for store in stores(config)
        for method in config.arms
        for k in config.ks
    }
    return pd.concat([tuning, run(config, stages, "real")], ignore_index=True)


def _trained(
    config: Config, method: str, k: int, seeds: tuple[int, ...], batches: BatchSource, x: Tensor, rate: float
) -> SparseAutoencoder:
    width = x.shape[-1]
    n_latents = config.latents if config.expansion is None else round(config.expansion * width)
    return trained(
        method, width, n_latents, k, seeds, batches, steps=config.real_steps, rate=rate,
        device=config.device, sabotage=config.sabotage,
    )  # fmt: skip


def _real(config: Config, store: str, method: str, k: int, rate: float) -> Rows:
    seeds = seeds_of(config)
    batches, held_out = sources(config, store, seeds)
    trained_k = 4 if config.sabotage == "four steps" else k
    sae = _trained(config, method, trained_k, seeds, batches, held_out, rate)
    metrics = judged(sae, held_out, config.k_shown if k == config.k_shown else None)
    out = rows("real", method, seeds, metrics, store=store, k=k)
    if k == config.k_shown:
        for at in config.k_inference:
            asked = min(at, k) if config.sabotage == "one k" else at
            error = {"normalized_mse": error_at(sae, held_out, asked)}
            out += rows("sweep", method, seeds, error, store=store, k=k, at=at)
    return out


@torch.no_grad()
def judged(sae: SparseAutoencoder, x: Tensor, coherence: int | None = None) -> dict[str, Tensor]:
    """Measures on held-out tokens, one number a model.

    Parameters
    ----------
    coherence : also the Babel function at so many atoms, and that of tokens' own atoms
    """
    codes = codes_at(sae, x)
    found = {
        "r2": 1 - error_at(sae, x),
        "l0": l0(codes),
        "dead": (densities(codes) == 0).double().mean(-1),
        "effective_rank": effective_rank(codes.dense()),
    }
    if coherence is not None:
        size = torch.tensor([coherence], device=x.device)
        found["babel"] = torch.stack([babel(atoms, size)[0] for atoms in sae.decoder])
        found["active_babel"] = _own_coherence(sae, codes)
    return found


def _own_coherence(sae: SparseAutoencoder, codes: Codes) -> Tensor:
    """Babel function of tokens' own atoms over their number less one: how alike an atom's company is."""
    dense, means = codes.dense()[:, :_COHERENT], []
    for own, atoms in zip(dense, sae.decoder, strict=True):
        some = own[(own != 0).sum(1) > 1]
        others = (some != 0).sum(1) - 1
        means.append(
            (active_babel(DenseCodes(some), atoms) / others).mean() if len(some) else atoms.new_zeros(())
        )
    return torch.stack(means)


TITLES = {
    "efficientnet": "EfficientNet-Lite0, stride 16",
    "minilm": "MiniLM, layer 3",
    "planted": "planted features",
}


def stores_title(store: str) -> str:
    """A source's name as a figure shows it."""
    return TITLES.get(store, store)
