"""How dense each layer of a sparse network is, for a given density of the whole.

=============  ==========================================================================================
method         density of a layer
=============  ==========================================================================================
uniform        the same everywhere
uniform_plus   first layer dense, last at least 20 %, the same everywhere else
er             proportional to (inputs + outputs) / (inputs x outputs): Erdos and Renyi's random graphs,
               Mocanu et al. 2018 (arXiv 1707.04780)
erk            the same with the kernel's sides in sum and product: Evci et al. 2020 (arXiv 1911.11134)
erk_plus       the last layer as prescribed, `erk` in the others: Liu et al. 2022 (arXiv 2202.02643)
=============  ==========================================================================================

They look at shapes only. What looks at weights or gradients is in `scores`; `density_of_scores` makes
densities of it. All keep the number of weights exactly: ``sum(density * size) = density * sum(size)``.
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Literal

import torch
from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]
Method = Literal["uniform", "uniform_plus", "er", "erk", "erk_plus"]

_LEAST_LAST = 0.2


def layerwise_density(
    shapes: Shapes,
    density: float | int,
    method: Method = "erk",
    *,
    power: float | int = 1.0,
    keep_dense: Collection[str] = (),
    last_density: float | int = 1.0,
) -> dict[str, float]:
    """Density of each layer.

    Parameters
    ----------
    shapes : name -> shape
        Of the weights, in the order of the network: (outputs, inputs) or (outputs, inputs, height, width).
    density : float in (0, 1]
        Share of all weights that are kept.
    method
        See the module.
    power : float
        The exponent of `er` and `erk`.
    keep_dense : names
        Layers at density 1, whatever the method; the others make up for it.
    last_density : float
        Of the last layer in `erk_plus`.

    Returns
    -------
    dict
        Name -> density in (0, 1], in the order of `shapes`.

    Raises
    ------
    ValueError
        No shapes, a density outside (0, 1], an unknown method or name, an empty shape, or densities that
        cannot be reached because the layers that are prescribed hold too much or too little.

    Examples
    --------
    >>> found = layerwise_density({"a": (100, 10), "b": (100, 100), "c": (10, 100)}, 0.1)
    >>> {name: round(value, 3) for name, value in found.items()}
    {'a': 0.314, 'b': 0.057, 'c': 0.314}
    """
    sizes = _sizes(shapes, density)
    if unknown := set(keep_dense) - set(shapes):
        raise ValueError(f"keep_dense names {sorted(unknown)}: expected some of {list(shapes)}")
    if density == 1:
        return dict.fromkeys(shapes, 1.0)
    names = list(shapes)
    given: dict[str, float] = dict.fromkeys(keep_dense, 1.0)
    if method == "uniform_plus":
        given = {names[0]: 1.0, names[-1]: max(density, _LEAST_LAST)} | given
    elif method == "erk_plus":
        given = {names[-1]: _checked("last_density", last_density)} | given
    raw = _raw_densities(shapes, method, power)
    free = [name for name in names if name not in given]
    budget = density * sum(sizes.values()) - sum(value * sizes[name] for name, value in given.items())
    if not 0 < budget <= sum(sizes[name] for name in free):
        raise ValueError(
            f"density={density}: the prescribed layers {given} leave {budget:.0f} weights to the others, "
            f"which have {sum(sizes[name] for name in free)}"
        )
    solved = _scaled({name: raw[name] for name in free}, sizes, budget) | given
    return {name: solved[name] for name in names}


def density_of_scores(scores: Mapping[str, Tensor], density: float | int) -> dict[str, float]:
    """Share of each layer among the weights with the largest scores of the whole network.

    With the scores of SNIP or GraSP these are the "SNIP ratio" and the "GraSP ratio" of Liu et al. 2022: how
    much each layer keeps is learned from the scores, which weights those are is not.

    Parameters
    ----------
    scores : name -> tensor of the shape of the weights
        Larger is more worth keeping.
    density : float in (0, 1]

    Returns
    -------
    dict
        Name -> density; 0 where a layer loses all. ``floor(density * sum(size))`` weights are kept in all,
        the first of equals.

    Raises
    ------
    ValueError
        No scores, NaN among them, or a density outside (0, 1].
    """
    sizes = _sizes({name: tuple(s.shape) for name, s in scores.items()}, density)
    flat = torch.cat([s.detach().flatten().double() for s in scores.values()])
    if bool(flat.isnan().any()):
        raise ValueError("scores hold NaN: expected numbers")
    kept = torch.zeros(len(flat), dtype=torch.bool)
    kept[flat.argsort(descending=True, stable=True)[: math.floor(density * len(flat))].cpu()] = True
    parts = kept.split(list(sizes.values()))
    return {name: float(part.double().mean()) for name, part in zip(scores, parts, strict=True)}


def _raw_densities(shapes: Shapes, method: str, power: float | int) -> dict[str, float]:
    ratios: dict[str, Callable[[tuple[int, ...]], float]] = {
        "uniform": lambda shape: 1.0,
        "uniform_plus": lambda shape: 1.0,
        "er": lambda shape: _sum_over_product(shape[:2]),
        "erk": _sum_over_product,
        "erk_plus": _sum_over_product,
    }
    if method not in ratios:
        raise ValueError(f"method={method!r}: expected one of {', '.join(ratios)}")
    return {name: ratios[method](shape) ** power for name, shape in shapes.items()}


def _sum_over_product(shape: tuple[int, ...]) -> float:
    return sum(shape) / math.prod(shape)


def _scaled(raw: dict[str, float], sizes: Mapping[str, int], budget: float) -> dict[str, float]:
    """min(1, scale * raw) such that the budget is met; what exceeds 1 goes to the other layers."""
    dense: set[str] = set()
    while free := [name for name in raw if name not in dense]:
        left = budget - sum(sizes[name] for name in dense)
        scale = left / sum(raw[name] * sizes[name] for name in free)
        largest = max(raw[name] for name in free)
        if scale * largest <= 1:
            return {name: 1.0 if name in dense else scale * raw[name] for name in raw}
        dense.update(name for name in free if raw[name] == largest)
    return dict.fromkeys(raw, 1.0)


def _sizes(shapes: Shapes, density: float | int) -> dict[str, int]:
    _checked("density", density)
    if not shapes:
        raise ValueError("shapes is empty: expected at least one layer")
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    if empty := [name for name, size in sizes.items() if size < 1 or len(shapes[name]) < 2]:
        raise ValueError(f"layers {empty} have no weights or fewer than two dimensions: {dict(shapes)}")
    return sizes


def _checked(name: str, density: float | int) -> float | int:
    if not 0 < density <= 1:
        raise ValueError(f"{name}={density}: expected more than 0 and at most 1")
    return density
