"""What QuickSelection is compared with: a dense autoencoder, SET with masks, methods without a network."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsebook.experiments.quick_selection.inputs import Split
from sparsebook.experiments.quick_selection.scales import Config
from sparsebook.networks.feature_selection import heat_graph, laplacian_score, mcfs
from sparsebook.networks.quick_selection import (
    Connections,
    SparseDAE,
    SparseNetwork,
    erdos_renyi,
    set_evolve,
)

Ranks = dict[int, np.ndarray]
"""Scores of all columns by epoch."""


def sparse_dae(config: Config, output: str, seed: Any, **more: Any) -> SparseDAE:
    """The method as released, at the run's sizes."""
    given = {"n_hidden": config.n_hidden, "batch_size": config.batch, "epochs": config.length}
    return SparseDAE(output=output, random_state=seed, **(given | more))  # type: ignore[arg-type]


@dataclass
class DenseDAE:
    """The same autoencoder with dense weights (Glorot), or with dense weights under masks that SET moves.

    Written for speed: momentum is updated by the very product that makes the gradient, so that no gradient
    is stored, and everything else is done in place. Data as torch likes them, [batch, features].

    Parameters
    ----------
    options : SparseDAE
        Rates, noise, dropout (as released), epochs.
    masked : bool
        Whether masks keep the weights sparse.
    """

    options: SparseDAE
    masked: bool = False

    def fit(self, x: np.ndarray, watch: Callable[[int, "DenseDAE"], object] | None = None) -> "DenseDAE":
        """Train on the rows of x."""
        rng = np.random.default_rng(self.options.random_state)
        target, noisy = self.start(x, rng)
        for epoch in range(self.options.epochs):
            self.epoch(target, noisy, rng)
            if watch is not None:
                watch(epoch + 1, self)
            if self.masked and epoch + 1 < self.options.epochs:
                self.evolve(rng)
        return self

    def start(self, x: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draw weights and noise; returns the data and their noisy copy."""
        self._draw(x.shape[1], rng)
        target = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
        noise = np.float32(self.options.noise) * rng.standard_normal(x.shape, dtype=np.float32)
        return target, target + torch.from_numpy(noise)

    def epoch(self, target: Tensor, noisy: Tensor, rng: np.random.Generator) -> None:
        """Train on all samples once, in random order."""
        batch = min(self.options.batch_size, len(target))
        order = torch.from_numpy(rng.permutation(len(target)))
        for start in range(0, len(target) - batch + 1, batch):
            own = order[start : start + batch]
            self._step(noisy[own], target[own], rng)

    def strength(self) -> np.ndarray:
        """Sum of the absolute weights that leave each input."""
        return self.weights[0].abs().sum(dim=1).numpy()

    def _draw(self, d: int, rng: np.random.Generator) -> None:
        n = self.options.n_hidden
        shapes = ((d, n), (n, d))
        self.biases = [torch.zeros(n), torch.zeros(d)]
        self.bias_speeds = [torch.zeros(n), torch.zeros(d)]
        self.speeds = [torch.zeros(shape) for shape in shapes]
        if self.masked:
            self.lists = [erdos_renyi(*shape, self.options.epsilon, rng) for shape in shapes]
            self.weights = [_dense(own) for own in self.lists]
            self.masks = [weights.ne(0).float() for weights in self.weights]
        else:
            limit = float(np.sqrt(6 / (d + n)))
            self.weights = [
                torch.from_numpy(limit * (2 * rng.random(shape, dtype=np.float32) - 1)) for shape in shapes
            ]

    def _step(self, x: Tensor, target: Tensor, rng: np.random.Generator) -> None:
        options, batch = self.options, len(x)
        active = torch.addmm(self.biases[0], x, self.weights[0]).sigmoid_()
        keep = torch.from_numpy(_kept((active.shape[1], batch), 1 - options.dropout, rng)).T
        hidden = active * keep
        error = torch.addmm(self.biases[1], hidden, self.weights[1])
        if options.output == "tanh":
            out = error.tanh_()
            error = (out - target).mul_(1 - torch.tanh(out).square_())
        else:
            error -= target
        back = (error @ self.weights[1].T).mul_(active).mul_(active.neg_().add_(1))
        rate, inertia = options.lr / batch, options.momentum
        steps = ((0, x, back), (1, hidden, error))
        for layer, inputs, gradient in steps:
            speed = self.speeds[layer]
            torch.addmm(speed, inputs.T, gradient, beta=inertia, alpha=-rate, out=speed)
            self.bias_speeds[layer].mul_(inertia).sub_(gradient.sum(dim=0), alpha=rate)
        for layer in (0, 1):
            if self.masked:
                self.speeds[layer].mul_(self.masks[layer])
            self.weights[layer].mul_(1 - options.weight_decay).add_(self.speeds[layer])
            self.biases[layer].mul_(1 - options.weight_decay).add_(self.bias_speeds[layer])

    def evolve(self, rng: np.random.Generator) -> None:
        """SET on the lists of connections, as in the sparse version; a map of all places would cost more."""
        for layer, old in enumerate(self.lists):
            places = torch.from_numpy(old.keys())
            weights, speed = self.weights[layer].T.flatten()[places], self.speeds[layer].T.flatten()[places]
            moved = set_evolve(replace(old, values=weights), speed, self.options.zeta, rng)
            self.lists[layer] = moved.weights
            self.weights[layer] = _dense(moved.weights)
            self.speeds[layer] = _dense(replace(moved.weights, values=moved.momentum))
            ones = torch.ones_like(moved.momentum)
            self.masks[layer] = _dense(replace(moved.weights, values=ones))


def _dense(lists: Connections) -> Tensor:
    """[n_in, n_out], from connections that are stored by output."""
    whole = torch.zeros(lists.n_in, lists.n_out)
    rows = torch.repeat_interleave(torch.arange(lists.n_out), lists.offsets.diff().long())
    whole[lists.columns.long(), rows] = lists.values
    return whole


def _kept(shape: Any, keep: float, rng: np.random.Generator) -> np.ndarray:
    words = rng.integers(0, 2**64, -(-shape[0] * shape[1] // 4), dtype=np.uint64).view(np.uint16)
    below = round(keep * (1 << 16))
    return (words[: shape[0] * shape[1]].reshape(tuple(shape)) < below).astype(np.float32)


# Scores --------------------------------------------------------------------------------------------------


def quick_ranks(
    options: SparseDAE, x: np.ndarray, epochs: tuple[int, ...], snapshot: str = "pruned"
) -> Ranks:
    """Strengths after some of the epochs; before anything was removed, those of the present weights."""
    found: Ranks = {}

    def watch(epoch: int, network: SparseNetwork) -> None:
        if epoch in epochs:
            early = snapshot == "final" or network.pruned is None
            found[epoch] = (network.input if early else network.pruned).strength()  # type: ignore[union-attr]

    options.fit(x, watch=watch)
    return found


def dense_ranks(options: SparseDAE, x: np.ndarray, epochs: tuple[int, ...]) -> Ranks:
    """As `quick_ranks` for the dense autoencoder."""
    found: Ranks = {}

    def watch(epoch: int, network: DenseDAE) -> None:
        if epoch in epochs:
            found[epoch] = network.strength()

    DenseDAE(options).fit(x, watch)
    return found


def graph_score(method: str, split: Split, neighbours: int, kept: int) -> np.ndarray:
    """Scores of "laplacian" or "mcfs", large being good."""
    graph = heat_graph(split.train, min(neighbours, len(split.train) - 1))
    if method == "laplacian":
        return -laplacian_score(split.train, graph)
    return mcfs(split.train, kept, split.classes, graph)
