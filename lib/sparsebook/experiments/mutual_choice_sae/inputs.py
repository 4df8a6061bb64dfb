"""Where activations come from: two synthetic worlds, a model's token states, a reader's folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsebook.data.activations import ActivationStore, BatchSource, shuffled, stream
from sparsebook.data.superposition import zipf_world
from sparsebook.experiments.mutual_choice_sae.scales import Config

_CHUNK = 16_384
_TRAIN, _HELD_OUT = 10, 11


@dataclass(frozen=True, eq=False)
class Tokens:
    """What one seed, or all of them, are trained and measured on.

    Attributes
    ----------
    train : activations, a table or a store
    held_out : activations that no training sees
    active : number of true features of each held-out token, where it is known
    features : the true directions, where they are known
    scale : what stored activations are multiplied with
    """

    train: Float[Tensor, "tokens width"] | ActivationStore
    held_out: Float[Tensor, "held width"]
    active: Int64[Tensor, " held"] | None = None
    features: Float[Tensor, "features width"] | None = None
    scale: float = 1.0

    def first(self, n: int) -> Float[Tensor, "n width"]:
        """The first training tokens, as many as there are up to `n`."""
        if isinstance(self.train, Tensor):
            return self.train[:n]
        return self.train.rows(0, min(n, len(self.train))) * self.scale

    def batches(self, batch: int, seed: int) -> BatchSource:
        """Shuffled batches for the training of one seed."""
        return shuffled(self.train, batch, seed, scale=self.scale)


def tokens_of(config: Config, source: str, seeds: Sequence[int]) -> list[Tokens]:
    """The tokens of each seed: worlds are drawn anew for each, a model's activations are the same for all."""
    if source == "real" and config.activations is not None:
        return [folder_tokens(config.activations, config.real.k)] * len(seeds)
    if source == "real" and config.scale != "smoke":
        return [minilm_tokens(config.texts, config.layer, config.real.k)] * len(seeds)
    # At smoke a further world stands in for the model.
    salt = 1_000 if source == "real" else 0
    shape = (config.n_features, config.width, config.mean_active, config.pool, config.held_out)
    return [world_tokens(source == "uniform", salt + seed, *shape) for seed in seeds]


@lru_cache(maxsize=24)
def world_tokens(
    uniform: bool, seed: int, n_features: int, width: int, mean_active: float, pool: int, held_out: int
) -> Tokens:
    """A world of its own for each seed."""
    world = zipf_world(n_features, width, mean_active=mean_active, uniform=uniform, seed=seed)
    train = [x for x, _ in _drawn(world, pool, seed, _TRAIN)]
    held = list(_drawn(world, held_out, seed, _HELD_OUT))
    active = torch.cat([count for _, count in held])
    return Tokens(torch.cat(train), torch.cat([x for x, _ in held]), active, world.features)


def _drawn(world, n: int, seed: int, purpose: int):  # type: ignore[no-untyped-def]
    for start in range(0, n, _CHUNK):
        drawn = world.sample(min(_CHUNK, n - start), stream(seed, purpose, start))
        yield drawn.x, drawn.active


@cache
def minilm_tokens(texts: int, layer: int, k: int) -> Tokens:
    """Token states of all-MiniLM-L6-v2 over the packaged texts, the last fifth held out."""
    from sparsebook.experiments.activations import minilm_activations, packaged_texts

    rows = minilm_activations(packaged_texts()[:texts], layer, progress=True).rows()
    rows = rows * _unit(rows, k)
    split = len(rows) * 4 // 5
    return Tokens(rows[:split], rows[split:])


def folder_tokens(folder: str, k: int) -> Tokens:
    """Tables ``[tokens, width]`` in .npy files, in the order of their names; the last file is held out.

    Raises
    ------
    ValueError
        If there are not at least two such tables of one width.
    """
    paths = sorted(Path(folder).glob("*.npy"))
    shapes = [np.load(path, mmap_mode="r").shape for path in paths]
    if len(paths) < 2 or any(len(shape) != 2 or shape[1] != shapes[0][1] for shape in shapes):
        raise ValueError(
            f"activations: expected a folder with at least two tables [tokens, width] of one width as .npy "
            f"files, found {len(paths)} files of shapes {sorted(set(shapes))}"
        )
    stores = [
        ActivationStore(tuple(part), tuple(s[0] for s in sizes), shapes[0][1])
        for part, sizes in ((paths[:-1], shapes[:-1]), (paths[-1:], shapes[-1:]))
    ]
    scale = _unit(stores[0].rows(0, min(100_000, len(stores[0]))), k)
    return Tokens(stores[0], stores[1].rows() * scale, scale=scale)


def _unit(rows: Float[Tensor, "rows width"], k: int) -> float:
    """What brings the mean squared deviation of a token to `k`: codes are then about 1."""
    return float((k / (rows - rows.mean(0)).square().sum(1).mean()).sqrt())
