"""Connections that move while a network trains: some are dropped, as many are grown elsewhere.

===================  =======================================================================================
method               drop, grow
===================  =======================================================================================
SET                  smallest of the positive and of the negative weights apart, random places: Mocanu et al.
                     2018 (arXiv 1707.04780)
RigL                 smallest magnitudes, largest gradients: Evci et al. 2020 (arXiv 1911.11134)
===================  =======================================================================================

The functions know no model; `Exchange` applies them to a `SparsityMask` on a schedule.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsebook.networks.masks import SparsityMask
from sparsebook.networks.schedules import Periodic, Schedule

Values = Float[Tensor, "*shape"]
Mask = Bool[Tensor, "*shape"]


def drop_smallest(weight: Values, mask: Mask, count: int) -> Mask:
    """The mask without its `count` weights of smallest magnitude, the first of equals.

    Raises
    ------
    ValueError
        More than the mask keeps, or fewer than none.
    """
    _check_count("count", count, int(mask.sum()))
    size = torch.where(mask, weight.detach().abs(), torch.inf).flatten()
    gone = size.argsort(stable=True)[:count]
    return mask.flatten().index_fill(0, gone, False).view(mask.shape)


def drop_signed(weight: Values, mask: Mask, share: float | int) -> Mask:
    """The mask without the smallest `share` of its positive weights and of its negative ones.

    As published with SET: thresholds are values of the sorted weights, and what equals them goes as well.

    Raises
    ------
    ValueError
        A share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share}: expected 0 to 1")
    values = weight.detach()[mask].sort().values
    if share == 0 or not len(values):
        return mask.clone()
    size, nearest = values.abs(), values.abs().min()
    first = int((size == nearest).nonzero()[0])
    after = int((size == nearest).nonzero()[-1]) + 1
    low = values[int((1 - share) * first)]
    high = values[min(len(values) - 1, int(after + share * (len(values) - after)))]
    return mask & ((weight.detach() > high) | (weight.detach() < low))


def grow_largest(gradient: Values, mask: Mask, count: int) -> Mask:
    """The mask with `count` further places, those of the largest gradients by magnitude; the first of equals.

    Raises
    ------
    ValueError
        More than there is room for, or fewer than none.
    """
    _check_count("count", count, mask.numel() - int(mask.sum()))
    size = torch.where(mask, -1.0, gradient.detach().abs()).flatten()
    new = size.argsort(descending=True, stable=True)[:count]
    return mask.flatten().index_fill(0, new, True).view(mask.shape)


def grow_random(mask: Mask, count: int, *, generator: torch.Generator) -> Mask:
    """The mask with `count` further places, drawn uniformly; errors as in `grow_largest`."""
    empty = (~mask).flatten().nonzero()[:, 0]
    _check_count("count", count, len(empty))
    order = torch.randperm(len(empty), generator=generator)[:count].to(mask.device)
    return mask.flatten().index_fill(0, empty[order], True).view(mask.shape)


def _check_count(name: str, count: int, most: int) -> None:
    if not 0 <= count <= most:
        raise ValueError(f"{name}={count}: expected 0 to {most}")


@dataclass
class Exchange:
    """Moves connections of every masked layer on a schedule; their number never changes.

    Attributes
    ----------
    sparsity : the masks
    share : of a layer's connections that move, by step
    when : the steps at which they do
    grow : by the gradients of the step (RigL), or at random
    drop : the smallest magnitudes, or by sign (SET)
    seed : of what is random
    """

    sparsity: SparsityMask
    share: Schedule
    when: Periodic
    grow: Literal["gradient", "random"] = "gradient"
    drop: Literal["magnitude", "signed"] = "magnitude"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.grow not in ("gradient", "random"):
            raise ValueError(f"grow={self.grow!r}: expected 'gradient' or 'random'")
        if self.drop not in ("magnitude", "signed"):
            raise ValueError(f"drop={self.drop!r}: expected 'magnitude' or 'signed'")
        self._generator = torch.Generator().manual_seed(self.seed)

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Exchange after the optimiser's steps that are due; the masks are attached as well.

        New weights start at zero, and the optimiser's averages of them, too. The gradients that decide are
        those of the step before the masks are applied to them.
        """
        dense: dict[str, Tensor] = {}
        step = 0

        def before(*_: Any) -> None:
            if self.grow == "gradient" and self.when.due(step):
                for name, weight in self.sparsity.weights.items():
                    if weight.grad is None:
                        raise ValueError(f"{name} has no gradient: expected one, connections grow by it")
                    dense[name] = weight.grad.clone()

        def after(*_: Any) -> None:
            nonlocal step
            if self.when.due(step):
                self.sparsity.set({name: self.moved(name, dense.get(name), step) for name in self.sparsity})
            step += 1

        optimizer.register_step_pre_hook(before)
        self.sparsity.attach(optimizer)
        optimizer.register_step_post_hook(after)

    def moved(self, name: str, gradient: Tensor | None, step: int) -> Tensor:
        """The mask of a layer after the exchange of a step."""
        weight, mask, share = self.sparsity.weights[name], self.sparsity[name], self.share(step)
        if self.drop == "signed":
            kept = drop_signed(weight, mask, share)
        else:
            kept = drop_smallest(weight, mask, int(share * int(mask.sum())))
        gone = int(mask.sum()) - int(kept.sum())
        if self.grow == "gradient":
            if gradient is None:
                raise ValueError(f"gradient of {name} is None: expected one, connections grow by it")
            return grow_largest(gradient, kept, gone)
        # Not where something was dropped a moment ago, unless there is no other room.
        room = int((~mask).sum())
        taken = grow_random(mask, min(gone, room), generator=self._generator) & ~mask
        return grow_random(kept | taken, gone - min(gone, room), generator=self._generator)
