"""Masks: which weights a network keeps, drawn at random or by scores, and kept so while it trains.

>>> import torch
>>> model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.ReLU(), torch.nn.Linear(30, 2))
>>> shapes = {name: tuple(weight.shape) for name, weight in prunable(model).items()}
>>> masks = random_masks(shapes, layerwise_density(shapes, 0.2, "er"), seed=0)
>>> sparsity = SparsityMask(model, masks)
>>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
>>> sparsity.attach(optimizer)          # from now on no step revives a weight
>>> round(sparsity.density(), 3)
0.2
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsebook.networks.densities import layerwise_density

__all__ = [
    "SparsityMask",
    "block_mask",
    "layerwise_density",
    "mask_of_scores",
    "masks_of_scores",
    "n_of_m_mask",
    "prunable",
    "random_mask",
    "random_masks",
    "shuffle_mask",
]


def prunable(model: torch.nn.Module) -> dict[str, Tensor]:
    """The weights of linear and convolutional layers by name; biases and normalisations are no part of it."""
    kinds = (torch.nn.Linear, torch.nn.modules.conv._ConvNd)
    return {
        f"{name}.weight" if name else "weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    }


# --- patterns -----------------------------------------------------------------------------------------------


def random_mask(
    shape: tuple[int, ...], density: float | int, *, generator: torch.Generator, exact: bool = True
) -> Bool[Tensor, "*shape"]:
    """A mask drawn uniformly.

    Parameters
    ----------
    shape
        Of the weights.
    density : float in (0, 1]
    generator : torch.Generator
    exact : bool
        Keep ``round(density * size)`` weights, at least one; otherwise each by itself with that probability.

    Raises
    ------
    ValueError
        A density outside (0, 1] or a shape without elements.
    """
    size = _checked_size(shape, density)
    if not exact:
        return torch.rand(shape, generator=generator) < density
    kept = torch.zeros(size, dtype=torch.bool)
    kept[torch.randperm(size, generator=generator)[: max(1, round(density * size))]] = True
    return kept.view(shape)


def random_masks(
    shapes: Mapping[str, tuple[int, ...]], densities: Mapping[str, float], seed: int, *, exact: bool = True
) -> dict[str, Tensor]:
    """`random_mask` of every layer, from one seed; a layer at density 1 is kept whole.

    Raises
    ------
    ValueError
        Names that differ, or as `random_mask`.
    """
    if set(shapes) != set(densities):
        raise ValueError(f"densities name {sorted(densities)}: expected {sorted(shapes)}")
    generator = torch.Generator().manual_seed(seed)
    return {
        name: random_mask(shape, densities[name], generator=generator, exact=exact)
        for name, shape in shapes.items()
    }


def shuffle_mask(mask: Bool[Tensor, "*shape"], *, generator: torch.Generator) -> Bool[Tensor, "*shape"]:
    """As many weights of the same layer, at other places."""
    order = torch.randperm(mask.numel(), generator=generator).to(mask.device)
    return mask.flatten()[order].view(mask.shape)


def mask_of_scores(scores: Float[Tensor, "*shape"], density: float | int) -> Bool[Tensor, "*shape"]:
    """The ``round(density * size)`` weights with the largest scores, at least one; the first of equals.

    Raises
    ------
    ValueError
        NaN among the scores, or as `random_mask`.
    """
    size = _checked_size(tuple(scores.shape), density)
    if bool(scores.isnan().any()):
        raise ValueError("scores hold NaN: expected numbers")
    kept = torch.zeros(size, dtype=torch.bool, device=scores.device)
    order = scores.detach().flatten().argsort(descending=True, stable=True)
    kept[order[: max(1, round(density * size))]] = True
    return kept.view(scores.shape)


def masks_of_scores(
    scores: Mapping[str, Tensor], density: float | int, scope: Literal["global", "layer"] = "global"
) -> dict[str, Tensor]:
    """Masks by scores: the best of the whole network, or of each layer as many.

    Raises
    ------
    ValueError
        No scores, or as `mask_of_scores`.
    """
    if not scores:
        raise ValueError("scores is empty: expected at least one layer")
    if scope == "layer":
        return {name: mask_of_scores(s, density) for name, s in scores.items()}
    device = next(iter(scores.values())).device
    whole = mask_of_scores(torch.cat([s.flatten().to(device).float() for s in scores.values()]), density)
    parts = whole.split([s.numel() for s in scores.values()])
    return {
        name: part.view(s.shape).to(s.device) for (name, s), part in zip(scores.items(), parts, strict=True)
    }


def block_mask(
    scores: Float[Tensor, "rows columns"], density: float | int, block: tuple[int, int]
) -> Bool[Tensor, "rows columns"]:
    """Whole blocks of weights, those with the largest mean scores.

    Raises
    ------
    ValueError
        Blocks that do not divide the shape, or as `mask_of_scores`.
    """
    rows, columns = scores.shape
    high, wide = block
    if high < 1 or wide < 1 or rows % high or columns % wide:
        raise ValueError(f"block={block} does not divide the shape {tuple(scores.shape)}")
    means = scores.unflatten(1, (-1, wide)).unflatten(0, (-1, high)).mean((1, 3))
    kept = mask_of_scores(means, density)
    return kept.repeat_interleave(high, 0).repeat_interleave(wide, 1)


def n_of_m_mask(scores: Float[Tensor, "*shape"], n: int, m: int, dim: int = 1) -> Bool[Tensor, "*shape"]:
    """Of every m neighbours along `dim` (1: the inputs) the n with the largest scores; the first of equals.

    Raises
    ------
    ValueError
        Not 0 < n <= m, or a length that m does not divide.
    """
    if not 0 < n <= m:
        raise ValueError(f"n={n}, m={m}: expected 0 < n <= m")
    if scores.shape[dim] % m:
        raise ValueError(f"m={m} does not divide the {scores.shape[dim]} weights along dimension {dim}")
    groups = scores.detach().movedim(dim, -1).unflatten(-1, (-1, m))
    order = groups.sort(dim=-1, descending=True, stable=True).indices
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter(-1, order[..., :n], True)
    return kept.flatten(-2).movedim(-1, dim)


def _checked_size(shape: tuple[int, ...], density: float | int) -> int:
    if not 0 < density <= 1:
        raise ValueError(f"density={density}: expected more than 0 and at most 1")
    if math.prod(shape) < 1:
        raise ValueError(f"shape {shape} has no weights: expected at least one")
    return math.prod(shape)


# --- masks in training --------------------------------------------------------------------------------------


class SparsityMask:
    """Masks of a model's weights that hold through any PyTorch optimiser.

    Parameters
    ----------
    model : torch.nn.Module
    masks : name of the parameter -> bool tensor of its shape
        Weights outside become exactly zero at once.

    Raises
    ------
    ValueError
        A name that is no parameter, a mask of another shape or type, or one that keeps nothing.
    """

    def __init__(self, model: torch.nn.Module, masks: Mapping[str, Tensor]) -> None:
        parameters = dict(model.named_parameters())
        if unknown := set(masks) - set(parameters):
            raise ValueError(f"masks name {sorted(unknown)}: expected some of {sorted(parameters)}")
        self._weights: dict[str, Tensor] = {name: parameters[name] for name in masks}
        self._masks: dict[str, Tensor] = {}
        self.set(masks)

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The masked parameters by name."""
        return dict(self._weights)

    def set(self, masks: Mapping[str, Tensor]) -> None:
        """Replace masks, all or some; errors as at the beginning, before anything is changed."""
        for name, mask in masks.items():
            self._check(name, mask)
        for name, mask in masks.items():
            self._masks[name] = mask.detach().to(self._weights[name].device, copy=True)
        self.apply()

    def apply(self) -> None:
        """Write exact zeros outside the masks."""
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.masked_fill_(~self._masks[name], 0)

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep gradients, weights and every running average of the optimiser zero outside the masks.

        A weight that is masked later is forgotten by the averages, so that one that comes back starts anew.
        """

        def before(*_: Any) -> None:
            for name, weight in self._weights.items():
                if weight.grad is not None:
                    weight.grad.masked_fill_(~self._masks[name], 0)

        def after(*_: Any) -> None:
            self.apply()
            for name, weight in self._weights.items():
                for value in optimizer.state.get(weight, {}).values():
                    if isinstance(value, Tensor) and value.shape == weight.shape:
                        value.masked_fill_(~self._masks[name], 0)

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)

    def densities(self) -> dict[str, float]:
        """Share of the weights that each mask keeps."""
        return {name: float(mask.double().mean()) for name, mask in self._masks.items()}

    def density(self) -> float:
        """Share of all masked parameters' weights that are kept."""
        kept = sum(int(mask.sum()) for mask in self._masks.values())
        return kept / sum(mask.numel() for mask in self._masks.values())

    def state_dict(self) -> dict[str, Tensor]:
        """The masks by name."""
        return {name: mask.clone() for name, mask in self._masks.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take masks from a state; they must be those of the same parameters, errors as at the beginning."""
        if set(state) != set(self._masks):
            raise ValueError(f"state names {sorted(state)}: expected {sorted(self._masks)}")
        self.set(state)

    def _check(self, name: str, mask: Tensor) -> None:
        if name not in self._weights:
            raise ValueError(f"masks name {name}: expected some of {sorted(self._weights)}")
        expected = self._weights[name].shape
        if mask.dtype != torch.bool or mask.shape != expected:
            raise ValueError(
                f"mask of {name} is {mask.dtype} of shape {tuple(mask.shape)}: expected torch.bool of shape "
                f"{tuple(expected)}"
            )
        if not bool(mask.any()):
            raise ValueError(f"mask of {name} keeps no weight: expected at least one")
