"""Random pruning: Liu et al. 2022, "The Unreasonable Effectiveness of Random Pruning" (arXiv 2202.02643).

Choose how dense each layer is, draw which weights survive, freeze that, train the survivors.

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
>>> densities = ratio_densities(model, 0.1, "er")
>>> {name: round(value, 2) for name, value in densities.items()}
{'0.weight': 0.08, '2.weight': 0.22}
>>> masks = prune_at_random(model, densities, seed=0)
>>> sum(int(mask.sum()) for mask in masks.values())
740
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sparsebook.networks.densities import density_of_scores, layerwise_density
from sparsebook.networks.masks import SparsityMask, masks_of_scores, prunable, random_masks
from sparsebook.networks.scores import connection_sensitivity, grasp_scores, synflow_scores

SHAPE_RATIOS = ("uniform", "uniform_plus", "er", "erk", "erk_plus")
"""Ratios that look at shapes only."""
SCORE_RATIOS = ("snip", "grasp", "synflow")
"""Ratios of what a score would have kept."""
RATIOS = (*SHAPE_RATIOS, *SCORE_RATIOS)


def ratio_densities(
    model: nn.Module,
    density: float | int,
    ratio: str,
    x: Tensor | None = None,
    y: Tensor | None = None,
    *,
    seed: int = 0,
    rounds: int = 100,
) -> dict[str, float]:
    """How dense each layer is to be.

    Parameters
    ----------
    model
    density : float in (0, 1]
        Of all weights of linear and convolutional layers together.
    ratio
        One of `RATIOS`.
    x, y : a batch of inputs and classes
        For the ratios of SNIP and GraSP; SynFlow takes the shape of `x`.
    seed : int
        Of the weights that SNIP's ratio is measured on.
    rounds : int
        Of SynFlow's pruning.

    Returns
    -------
    dict
        Name of the weight -> density. A layer that a score would have emptied keeps one weight.

    Raises
    ------
    ValueError
        An unknown ratio, a missing batch, or as `layerwise_density`.
    """
    weights = prunable(model)
    if ratio in SHAPE_RATIOS:
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        method: Any = ratio
        return layerwise_density(shapes, density, method)
    found = density_of_scores(
        ratio_scores(model, ratio, x, y, density=density, seed=seed, rounds=rounds), density
    )
    return {name: max(value, 1 / weights[name].numel()) for name, value in found.items()}


def ratio_scores(
    model: nn.Module,
    ratio: str,
    x: Tensor | None,
    y: Tensor | None,
    *,
    density: float | int,
    seed: int = 0,
    redraw: bool = True,
    rounds: int = 100,
) -> dict[str, Tensor]:
    """The scores behind a ratio.

    Sections 3.1 and the repository: SNIP scores a copy with weights drawn anew (`redraw`), GraSP the actual
    weights on two halves of a batch that is sorted by class, SynFlow prunes in so many `rounds`.

    Raises
    ------
    ValueError
        As `ratio_densities`.
    """
    if ratio not in SCORE_RATIOS:
        raise ValueError(f"ratio={ratio!r}: expected one of {', '.join(RATIOS)}")
    if x is None or y is None:
        raise ValueError(f"ratio={ratio!r} needs a batch: give x and y")
    if ratio == "snip":
        fresh = torch.Generator(device=x.device).manual_seed(seed) if redraw else None
        return connection_sensitivity(model, cross_entropy, [(x, y)], redraw=fresh)
    if ratio == "grasp":
        order = y.argsort(stable=True)
        halves = [(x[part], y[part]) for part in order.chunk(2)]
        return grasp_scores(model, cross_entropy, halves)
    return synflow_scores(model, tuple(x.shape[1:]), density=density, rounds=rounds)


def prune_at_random(
    model: nn.Module, densities: Mapping[str, float], seed: int, *, rescale: bool = False
) -> dict[str, Tensor]:
    """Masks of the given densities at random places; the model's pruned weights become 0.

    Parameters
    ----------
    model
    densities : name of the weight -> density, as `ratio_densities` has them
    seed : int
    rescale : bool
        Divide the survivors by the square root of the density that their layer came to have, so that the
        inputs of the next layer keep their variance (the official code's "scaled" initialisation, variance
        2 / (density fan-in)). Otherwise they keep their ordinary values, as in the paper.

    Raises
    ------
    ValueError
        As `random_masks`.
    """
    weights = prunable(model)
    masks = random_masks({name: tuple(weight.shape) for name, weight in weights.items()}, densities, seed)
    SparsityMask(model, masks)
    if rescale:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.div_(masks[name].double().mean().sqrt())
    return masks


def own_positions(
    model: nn.Module, density: float | int, ratio: str, x: Tensor, y: Tensor
) -> dict[str, Tensor]:
    """The baseline that random pruning is held against: the very weights that the score keeps.

    The scores are those of the actual weights, as SNIP, GraSP and SynFlow were published.
    """
    return masks_of_scores(ratio_scores(model, ratio, x, y, density=density, redraw=False), density)


def width_of_equal_size(make: Callable[[int], nn.Module], n_weights: float | int, widest: int) -> int:
    """The width at which a dense network has most nearly so many weights, up to `widest`.

    Parameters
    ----------
    make : builds the network of a width
    n_weights : of linear and convolutional layers
    widest : int

    Raises
    ------
    ValueError
        No width to choose from.
    """
    if widest < 1:
        raise ValueError(f"widest={widest}: expected at least 1")
    sizes = {w: sum(p.numel() for p in prunable(make(w)).values()) for w in range(1, widest + 1)}
    return min(sizes, key=lambda width: abs(sizes[width] - n_weights))
