"""Choosing the largest scores, ties to the lowest index, and packing what was chosen into lists."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def largest(scores: Float[Tensor, "... n"], count: int) -> Bool[Tensor, "... n"]:
    """True at the `count` largest entries of each row (all, if there are fewer), ties to the lowest index."""
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    count = min(count, scores.shape[-1])
    threshold = scores.topk(count, sorted=False).values.amin(-1, keepdim=True)
    above, equal = scores > threshold, scores == threshold
    missing = count - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1, dtype=torch.int32) <= missing))


def largest_ragged(scores: Float[Tensor, "... n"], count: Int[Tensor, "..."]) -> Bool[Tensor, "... n"]:
    """`largest` with a count of its own for every row."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    chosen = torch.arange(scores.shape[-1], device=scores.device) < count[..., None]
    return torch.zeros_like(chosen).scatter_(-1, order, chosen)


def pack(values: Int[Tensor, "... n"], keep: Bool[Tensor, "... n"], fill: int) -> Int[Tensor, "... width"]:
    """The kept values of each row moved to its front, in order; `fill` behind them up to the longest row."""
    slot = keep.cumsum(-1, dtype=torch.int32)
    width = int(slot[..., -1].max()) if slot.numel() else 0
    packed = values.new_full((*keep.shape[:-1], width + 1), fill)
    # What is not kept goes to one slot more, which is cut off.
    return packed.scatter_(-1, torch.where(keep, slot - 1, width).long(), values)[..., :width]


def positions(keep: Bool[Tensor, "... n"], fill: int = -1) -> Int[Tensor, "... width"]:
    """Where each row is True, ascending, `fill` behind, int64."""
    index = torch.arange(keep.shape[-1], device=keep.device).expand(keep.shape)
    return pack(index, keep, fill)


def runs(keep: Bool[Tensor, "... n"]) -> Int[Tensor, "... runs 2"]:
    """Runs of True in each row as [start, stop), ascending, int64; [0, 0) behind the last."""
    before = torch.nn.functional.pad(keep[..., :-1], (1, 0))
    after = torch.nn.functional.pad(keep[..., 1:], (0, 1))
    index = torch.arange(keep.shape[-1], device=keep.device).expand(keep.shape)
    return torch.stack([pack(index, keep & ~before, 0), pack(index + 1, keep & ~after, 0)], -1)
