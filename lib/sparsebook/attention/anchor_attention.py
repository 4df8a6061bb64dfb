"""AnchorAttention (Zhang et al., EMNLP 2025): keys chosen by their difference to an anchor, in stripes.

Prefilling in three steps. One pass over the first block of keys and the local window gives every row an
*anchor*, nearly the largest of all its logits, and a softmax that can be continued. Block-averaged queries
are compared with every other key; a key that comes within `theta` of the averaged anchor is kept as a
*stripe*: one column for all rows of a group of blocks. The softmax is continued over the gathered stripes.

    out, info = anchor_attention(q, k, v, theta=12.0, block_size=64, step=4, return_info=True)
    info.density  # what was computed of the causal pairs

Notation: block i holds `block_size` = b rows; group g holds `step` = s blocks, G = b s rows. The region of a
row r in group g is R(r) = [0, b) + [max(g G - b, 0), r]; stripes of group g are sought in [b, g G - b). The
released kernel differs from this description (see the chapter); nothing here is taken from it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparsebook.kernels.block_attention import (
    OnlineSoftmaxState,
    SpanIndex,
    attention_reference,
    span_state,
    stripe_attention,
)

__all__ = [
    "AnchorInfo",
    "StripeIndex",
    "anchor_attention",
    "anchor_attention_reference",
    "anchor_mask_reference",
    "anchor_pattern",
    "anchor_regions",
    "anchor_state",
    "candidate_keys",
    "pool_blocks",
    "stripe_select",
    "stripes_of",
]

Query = Float[Tensor, "batch heads tokens dim"]
Key = Float[Tensor, "batch kv_heads keys dim"]
Value = Float[Tensor, "batch kv_heads keys value_dim"]
Output = Float[Tensor, "batch heads tokens value_dim"]
Rows = Float[Tensor, "batch heads tokens"]

_SCORES = 2**24
"""Pooled scores held at once while keys are compared."""


@dataclass(frozen=True)
class StripeIndex:
    """The columns that each group of rows attends besides its region.

    Attributes
    ----------
    coords : int32 [batch, heads, groups, longest]
        Keys, ascending; what stands behind `counts` is ignored.
    counts : int32 [batch, heads, groups]
    """

    coords: Int[Tensor, "batch heads groups longest"]
    counts: Int[Tensor, "batch heads groups"]


@dataclass(frozen=True)
class AnchorInfo:
    """What a call computed.

    Attributes
    ----------
    density : (query, key) pairs computed, the regions included, over those of causal attention
    counts : stripes of each group
    pattern : regions and stripes as one index; `pattern.dense_mask` shows them
    """

    density: float
    counts: Int[Tensor, "batch heads groups"]
    pattern: SpanIndex


# Step 1: the anchor --------------------------------------------------------------------------------------


def anchor_regions(
    n_tokens: int,
    *,
    block_size: int = 128,
    step: int = 16,
    tail: str = "dense",
    device: torch.device | str | None = None,
) -> SpanIndex:
    """R(r) as spans of keys per block of queries: the first block, and from a block before the group on.

    Parameters
    ----------
    n_tokens : int
    block_size, step : int
        b, and blocks in a group.
    tail : "dense" or "sparse"
        Whether rows after the last whole group attend everything, as in the paper, or are a shorter group.

    Raises
    ------
    ValueError
        If a number is below 1 or `tail` is another word.
    """
    _check_layout(n_tokens, block_size, step, tail)
    block = torch.arange(-(-n_tokens // block_size), device=device)
    group = block // step
    window = (group * step - 1).clamp(min=1) * block_size
    if tail == "dense":
        window = torch.where(group < n_tokens // (block_size * step), window, block_size)
    first = torch.full_like(block, min(block_size, n_tokens))
    stop = ((block + 1) * block_size).clamp(max=n_tokens)
    spans = [
        torch.stack([torch.zeros_like(first), first], -1),
        torch.stack([window.clamp(max=stop), stop], -1),
    ]
    return SpanIndex.from_spans(torch.stack(spans, 1)[None, None].int(), block_size)


def anchor_state(
    q: Query,
    k: Key,
    v: Value,
    *,
    block_size: int = 128,
    step: int = 16,
    scale: float | None = None,
    tail: str = "dense",
) -> OnlineSoftmaxState:
    """Step 1: the online softmax over each row's region; its `m` is the anchor, in natural-log units.

    Parameters
    ----------
    q : [batch, heads, tokens, dim]
    k, v : [batch, kv_heads, tokens, dim], [batch, kv_heads, tokens, value_dim]
    block_size, step, tail : as in `anchor_regions`
    scale : float, optional
        Factor of the logits, 1 / sqrt(dim) if not given.

    Raises
    ------
    ValueError
        If shapes, types, heads or the layout do not fit together.
    """
    _check_prefill(q, k)
    regions = anchor_regions(q.shape[2], block_size=block_size, step=step, tail=tail, device=q.device)
    return span_state(q, k, v, regions, causal=True, scale=scale)


# Step 2: the stripes -------------------------------------------------------------------------------------


def stripe_select(
    q: Query,
    k: Key,
    m: Float[Tensor, "..."],
    *,
    theta: float = 12.0,
    block_size: int = 128,
    step: int = 16,
    scale: float | None = None,
    tail: str = "dense",
    decision: str = "any",
) -> StripeIndex:
    """Step 2: keys whose pooled logit comes within `theta` of the pooled anchor, per group of blocks.

    Key j in [b, g G - b) is kept for group g if scale * mean(q_i) . k_j + theta >= mean(m_i) for any of its
    blocks i.

    Parameters
    ----------
    q, k : [batch, heads, tokens, dim], [batch, kv_heads, tokens, dim]
    m : [batch, heads, tokens]
        The anchors in natural-log units; a row at -inf attended nothing and is left out of the means.
    theta : float
        Tolerance in nats; inf keeps everything, -inf nothing.
    block_size, step, tail, scale : as in `anchor_state`
    decision : "any" or "mean"
        Whether one block of the group is enough, or the blocks' mean margin decides.

    Raises
    ------
    ValueError
        If shapes do not fit, `theta` is NaN, or k or m holds NaN.
    """
    _check_select(q, k, m, theta, decision)
    _check_layout(q.shape[2], block_size, step, tail)
    n_groups = -(-q.shape[2] // (block_size * step))
    candidates = candidate_keys(q.shape[2], block_size=block_size, step=step, tail=tail, device=q.device)
    if math.isinf(theta):
        kept = (candidates if theta > 0 else torch.zeros_like(candidates)).expand(*q.shape[:2], -1, -1)
        return stripes_of(kept)
    pooled, anchors = pool_blocks(q, m, block_size, scale)
    kept = torch.zeros(*q.shape[:2], n_groups, q.shape[2], dtype=torch.bool, device=q.device)
    for groups, margins in _margins(pooled, anchors - theta, k, candidates, step):
        best = margins.amax(-2) if decision == "any" else margins.mean(-2)
        kept[:, :, groups, : best.shape[-1]] = (best >= 0) & candidates[groups, : best.shape[-1]]
    return stripes_of(kept)


def pool_blocks(
    q: Query, m: Rows, block_size: int, scale: float | None = None
) -> tuple[Float[Tensor, "batch heads blocks dim"], Float[Tensor, "batch heads blocks"]]:
    """Mean query (times `scale`) and mean anchor of each block of rows, in at least float32.

    Rows whose anchor is -inf do not count; a block of nothing else has the anchor inf, which nothing reaches.
    """
    exact = torch.promote_types(q.dtype, torch.float32)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    counted = m > -torch.inf
    rows, anchors = q.to(exact), m.to(exact)
    if not bool(counted.all()):
        rows = torch.where(counted[..., None], rows, 0)
        anchors = torch.where(counted, anchors, 0)
    number = _block_sums(counted, block_size)
    divisor = number.clamp(min=1)
    pooled = _block_sums(rows, block_size) * (scale / divisor)[..., None]
    return pooled, torch.where(number > 0, _block_sums(anchors, block_size) / divisor, torch.inf)


def _block_sums(x: Tensor, block_size: int) -> Tensor:
    """Sums over blocks of the third axis, the last of which may be shorter."""
    short = -x.shape[2] % block_size
    if short:
        x = torch.nn.functional.pad(x, (0, 0) * (x.ndim - 3) + (0, short))
    return x.unflatten(2, (-1, block_size)).sum(3)


def candidate_keys(
    n_tokens: int,
    *,
    block_size: int,
    step: int,
    tail: str = "dense",
    device: torch.device | str | None = None,
) -> Bool[Tensor, "groups keys"]:
    """Keys among which each group seeks its stripes: [b, g G - b)."""
    size = block_size * step
    group = torch.arange(-(-n_tokens // size), device=device)
    key = torch.arange(n_tokens, device=device)
    found = (key >= block_size) & (key < group[:, None] * size - block_size)
    return found & (group < n_tokens // size)[:, None] if tail == "dense" else found


def stripes_of(kept: Bool[Tensor, "batch heads groups keys"]) -> StripeIndex:
    """Compaction: the coordinates of what is True, list by list."""
    counts = kept.sum(-1)
    coords = torch.zeros(*counts.shape, int(counts.max()), dtype=torch.int32, device=kept.device)
    row, key = kept.flatten(0, 2).nonzero(as_tuple=True)
    start = counts.flatten().cumsum(0) - counts.flatten()
    slot = torch.arange(len(row), device=kept.device) - start[row]
    coords.flatten(0, 2)[row, slot] = key.int()
    return StripeIndex(coords, counts.int())


def _margins(
    pooled: Tensor, thresholds: Tensor, k: Tensor, candidates: Tensor, step: int
) -> Iterator[tuple[slice, Tensor]]:
    """Score less threshold, [batch, heads, groups, step, keys], in runs of groups up to their last candidate.

    One product serves all heads that share a key head and a few groups at a time: enough rows for a fast
    product, few keys that only later groups may keep.
    """
    batch, heads, n_blocks, dim = pooled.shape
    n_groups = candidates.shape[0]
    short = n_groups * step - n_blocks
    pad = torch.nn.functional.pad
    pooled = pad(pooled, (0, 0, 0, short)).view(batch, k.shape[1], heads // k.shape[1], n_groups, step, dim)
    thresholds = pad(thresholds, (0, short), value=torch.inf)
    thresholds = thresholds.view(batch, k.shape[1], -1, n_groups, step, 1)
    keys = k.to(pooled.dtype).transpose(-1, -2)
    last = (candidates * torch.arange(1, k.shape[2] + 1, device=k.device)).amax(-1).tolist()
    run = max(1, min(n_groups // 4, _SCORES // (batch * heads * step * k.shape[2])))
    for g in range(0, n_groups, run):
        n_keys = max(last[g : g + run])
        if n_keys:
            rows = pooled[:, :, :, g : g + run].flatten(2, 4)
            scores = (rows @ keys[..., :n_keys]).view(*thresholds[:, :, :, g : g + run, :, 0].shape, n_keys)
            yield slice(g, g + run), (scores - thresholds[:, :, :, g : g + run]).flatten(1, 2)


# Step 3, and the whole -----------------------------------------------------------------------------------


def anchor_attention(
    q: Query,
    k: Key,
    v: Value,
    *,
    theta: float = 12.0,
    block_size: int = 128,
    step: int = 16,
    scale: float | None = None,
    tail: str = "dense",
    return_info: bool = False,
) -> Output | tuple[Output, AnchorInfo]:
    """Causal attention over each row's region and its group's stripes.

    Parameters
    ----------
    q : [batch, heads, tokens, dim]
    k, v : [batch, kv_heads, tokens, dim], [batch, kv_heads, tokens, value_dim]
        float32, bfloat16, float16 or float64; heads a multiple of kv_heads; any number of tokens.
    theta : float
        Tolerance in nats. 12 is the paper's; the range of the logits, and so the right value, differs between
        models.
    block_size, step : int
        The paper's 128 and 16 suit tens of thousands of tokens: below 2,048 they compute everything.
    scale : float, optional
        Factor of the logits, 1 / sqrt(dim) if not given.
    tail : "dense" or "sparse"
        Rows after the last whole group: dense as in the paper, or a shorter group.
    return_info : bool
        Also return the density, the numbers of stripes and the pattern.

    Raises
    ------
    ValueError
        If shapes, types, heads or the layout do not fit together, or k or the anchors hold NaN.
    """
    state = anchor_state(q, k, v, block_size=block_size, step=step, scale=scale, tail=tail)
    m = state.m.detach()
    stripes = stripe_select(q, k, m, theta=theta, block_size=block_size, step=step, scale=scale, tail=tail)
    if stripes.coords.shape[3] == 0:
        out = state.output(q.dtype)
    else:
        out = stripe_attention(
            q, k, v, stripes.coords, stripes.counts, group_size=block_size * step, state=state, scale=scale
        )
    return (out, _info(stripes, q.shape[2], block_size, step, tail)) if return_info else out


def anchor_pattern(
    q: Query,
    k: Key,
    *,
    theta: float = 12.0,
    block_size: int = 128,
    step: int = 16,
    scale: float | None = None,
    tail: str = "dense",
) -> SpanIndex:
    """Regions and stripes as one index, without any values; arguments and errors as in `anchor_attention`."""
    m = anchor_state(q, k, k[..., :1], block_size=block_size, step=step, scale=scale, tail=tail).m.detach()
    stripes = stripe_select(q, k, m, theta=theta, block_size=block_size, step=step, scale=scale, tail=tail)
    return _info(stripes, q.shape[2], block_size, step, tail).pattern


def _info(stripes: StripeIndex, n_tokens: int, block_size: int, step: int, tail: str) -> AnchorInfo:
    device = stripes.coords.device
    regions = anchor_regions(n_tokens, block_size=block_size, step=step, tail=tail, device=device)
    pattern = SpanIndex(regions.spans, stripes.coords, stripes.counts, block_size, step)
    return AnchorInfo(pattern.density(n_tokens, n_tokens, causal=True), stripes.counts, pattern)


# The meaning ---------------------------------------------------------------------------------------------


def anchor_mask_reference(
    q: Query, k: Key, *, theta: float, block_size: int, step: int, scale: float, tail: str = "dense"
) -> Bool[Tensor, "batch heads tokens tokens"]:
    """R and S as a mask, built from the definition by loops; heads of q and k must be equally many."""
    n, size = q.shape[2], block_size * step
    row, key = torch.arange(n)[:, None], torch.arange(n)
    logits = scale * q @ k.transpose(-1, -2)
    start = (row // size * size - block_size).clamp(min=0)
    region = ((key < block_size) | (key >= start)) & (key <= row)
    m = torch.where(region, logits, -torch.inf).amax(-1)
    mask = region.expand_as(logits).clone()
    for g in range(-(-n // size)):
        rows = slice(g * size, min((g + 1) * size, n))
        if rows.stop - rows.start < size and tail == "dense":
            mask[:, :, rows] = key <= row[rows]
            continue
        for i in range(rows.start, rows.stop, block_size):
            block = slice(i, min(i + block_size, n))
            near = logits[:, :, block].mean(2) + theta >= m[:, :, block].mean(2)[..., None]
            near &= (key >= block_size) & (key < g * size - block_size)
            mask[:, :, rows] |= near[:, :, None]
    return mask


def anchor_attention_reference(
    q: Query,
    k: Key,
    v: Value,
    *,
    theta: float = 12.0,
    block_size: int = 128,
    step: int = 16,
    scale: float | None = None,
    tail: str = "dense",
) -> Output:
    """`anchor_attention` as dense attention under the mask of `anchor_mask_reference`."""
    scale = q.shape[3] ** -0.5 if scale is None else scale
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    mask = anchor_mask_reference(q, k, theta=theta, block_size=block_size, step=step, scale=scale, tail=tail)
    return attention_reference(q, k, v, mask, scale)[0]


# Checks --------------------------------------------------------------------------------------------------


def _check_layout(n_tokens: int, block_size: int, step: int, tail: str) -> None:
    for name, value in (("n_tokens", n_tokens), ("block_size", block_size), ("step", step)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if tail not in ("dense", "sparse"):
        raise ValueError(f"tail must be 'dense' or 'sparse', got {tail!r}")


def _check_prefill(q: Tensor, k: Tensor) -> None:
    if 0 in q.shape:
        raise ValueError(f"q must have four axes, none of them 0, got {tuple(q.shape)}")
    if q.shape[2] != k.shape[2]:
        raise ValueError(f"q and k must have the same number of tokens, got {q.shape[2]} and {k.shape[2]}")


def _check_select(q: Tensor, k: Tensor, m: Tensor, theta: float, decision: str) -> None:
    _check_prefill(q, k)
    if k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3] or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"k must have batch {q.shape[0]}, dim {q.shape[3]} and heads that divide {q.shape[1]} like q, "
            f"got {tuple(k.shape)}"
        )
    if m.shape != q.shape[:3]:
        raise ValueError(f"m must have the shape {tuple(q.shape[:3])}, got {tuple(m.shape)}")
    if math.isnan(theta):
        raise ValueError("theta must be a number of nats, got NaN")
    if decision not in ("any", "mean"):
        raise ValueError(f"decision must be 'any' or 'mean', got {decision!r}")
    if bool(m.isnan().any() | k.isnan().any()):
        raise ValueError("m and k must not hold NaN, which compares with nothing")
