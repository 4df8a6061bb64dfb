"""What a method could choose if it saw every logit. All take a tokens x tokens matrix per head."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsebook.attention.patterns.arguments import (
    Key,
    Query,
    check_integer,
    check_queries_keys,
    logit_scale,
    products,
)
from sparsebook.attention.patterns.ranking import largest

Mask = Bool[Tensor, "batch heads queries keys"]


def topk_mask(q: Query, k: Key, n: int, *, causal: bool = True) -> Mask:
    """The `n` keys of each query with the largest logits, ties to the lowest index; all if there are fewer.

    Raises
    ------
    ValueError
        If q and k do not fit together or are not finite, or n is below 1.
    """
    check_integer("n", n)
    logits, seen = _logits(q, k, 1.0, causal)
    return largest(logits, n) & seen


def topcdf_mask(q: Query, k: Key, p: float, *, scale: float | None = None, causal: bool = True) -> Mask:
    """The fewest keys of each query whose softmax weights sum to at least `p`, ties to the lowest index.

    Raises
    ------
    ValueError
        If q and k do not fit together or are not finite, or p lies outside (0, 1].
    """
    if not 0 < p <= 1:
        raise ValueError(f"p must lie in (0, 1], got {p}")
    logits, seen = _logits(q, k, scale, causal)
    if p == 1:
        return seen.expand(logits.shape).clone()
    mask = torch.empty(logits.shape, dtype=torch.bool, device=logits.device)
    for target, head in zip(
        mask.flatten(0, 1), logits.flatten(0, 1), strict=True
    ):  # a sort per head at a time
        ordered, order = head.softmax(-1).sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        target.scatter_(-1, order, before < p)
    return mask & seen


def difference_mask(
    q: Query, k: Key, theta: float, *, scale: float | None = None, causal: bool = True
) -> Mask:
    """Keys whose scaled logit is at least the query's largest less `theta`, in natural-log units.

    Raises
    ------
    ValueError
        If q and k do not fit together or are not finite, or theta is negative or NaN.
    """
    if not theta >= 0:
        raise ValueError(f"theta must be at least 0, got {theta}")
    logits, seen = _logits(q, k, scale, causal)
    if math.isinf(theta):
        return seen.expand(logits.shape).clone()
    return (logits + theta >= logits.amax(-1, keepdim=True)) & seen


def _logits(
    q: Query, k: Key, scale: float | None, causal: bool
) -> tuple[Float[Tensor, "batch heads queries keys"], Bool[Tensor, "queries keys"]]:
    """Logits, -inf where a query does not see a key, and where it does."""
    check_queries_keys(q, k, aligned=causal)
    logits = products(q, k).mul_(logit_scale(scale, q.shape[3]))
    seen = torch.ones(logits.shape[2:], dtype=torch.bool, device=q.device)
    if causal:
        seen = seen.tril()
        logits.masked_fill_(~seen, -torch.inf)
    return logits, seen
