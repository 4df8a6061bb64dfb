"""Gradients of attention over spans and columns: the weights of each block of queries computed again.

Blocks of queries are taken a few at a time; their keys and values are gathered, and dense products give the
gradients, which are added back where the keys came from. Work and memory are proportional to what is
attended, on any device and in any float type.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_ELEMENTS = {"cpu": 1 << 24, "cuda": 1 << 27}


class Layout(NamedTuple):
    """The index arguments of the operator `sparsebook::span_attention`."""

    spans: Tensor
    columns: Tensor
    counts: Tensor
    block: int
    group: int
    causal: bool
    offset: int
    scale: float


class _Saved(NamedTuple):
    """Tensors by query block: [batch * heads * blocks, block, ...], keys and values flat over everything."""

    q: Tensor
    k: Tensor
    v: Tensor
    grad_out: Tensor
    lse: Tensor
    slack: Tensor  # rowwise grad_lse - sum(grad_out * out)


def span_attention_gradient(
    grad_out: Tensor, grad_lse: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    layout: Layout,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk, dv of out and lse, accumulated in float32 (float64 for float64) and returned in their types."""
    exact = torch.promote_types(q.dtype, torch.float32)
    batch, heads, n_queries, _ = q.shape
    n_blocks = -(-n_queries // layout.block)
    slack = grad_lse.to(exact) - (grad_out.to(exact) * out.to(exact)).sum(-1)
    rows = [_by_block(x.to(exact), layout.block, n_blocks) for x in (q, grad_out, lse, slack)]
    flat = [x.to(exact).reshape(-1, x.shape[-1]) for x in (k, v)]
    saved = _Saved(rows[0], flat[0], flat[1], rows[1], rows[2], rows[3])
    dq, dk, dv = (torch.zeros_like(x) for x in (saved.q, saved.k, saved.v))
    shape = (batch, heads, n_blocks)
    widest = _longest_list(layout)
    size = layout.block * (q.shape[-1] + 2 * widest) + widest * (k.shape[-1] + v.shape[-1])
    step = max(1, _ELEMENTS.get(q.device.type, 1 << 24) // max(1, size))
    for first in range(0, len(saved.q), step):
        items = torch.arange(first, min(first + step, len(saved.q)), device=q.device)
        _add_gradients(items, shape, (k.shape[1], k.shape[2]), n_queries, layout, saved, (dq, dk, dv))
    dq = dq.view(batch, heads, n_blocks * layout.block, -1)[:, :, :n_queries]
    return dq.to(q.dtype).contiguous(), dk.view(k.shape).to(k.dtype), dv.view(v.shape).to(v.dtype)


def _by_block(x: Tensor, block: int, n_blocks: int) -> Tensor:
    """[batch, heads, queries, ...] -> [batch * heads * blocks, block, ...], padded with zeros."""
    short = n_blocks * block - x.shape[2]
    pad = (0, 0) * (x.ndim - 3) + (0, short)
    return torch.nn.functional.pad(x, pad).reshape(-1, block, *x.shape[3:])


def _longest_list(layout: Layout) -> int:
    spans = (layout.spans[..., 1] - layout.spans[..., 0]).sum(-1)
    longest = int(spans.max()) if spans.numel() else 0
    return longest + layout.columns.shape[3]


def _add_gradients(
    items: Tensor,
    shape: tuple[int, int, int],
    kv_shape: tuple[int, int],
    n_queries: int,
    layout: Layout,
    saved: _Saved,
    gradients: tuple[Tensor, Tensor, Tensor],
) -> None:
    heads, n_blocks = shape[1:]
    b, h, i = items // (heads * n_blocks), items // n_blocks % heads, items % n_blocks
    index, real = _keys_of(b, h, i, layout)
    query = i[:, None] * layout.block + torch.arange(layout.block, device=items.device)
    keep = real[:, None, :] & (query < n_queries)[:, :, None]
    if layout.causal:
        keep = keep & (index[:, None, :] <= query[:, :, None] + layout.offset)
    kv_heads, n_keys = kv_shape
    flat = index + ((b * kv_heads + h // (heads // kv_heads)) * n_keys)[:, None]
    q, grad_out = saved.q[items], saved.grad_out[items]
    keys, values = saved.k[flat], saved.v[flat]
    lse = saved.lse[items]
    base = torch.where(lse == -torch.inf, 0.0, lse)[..., None]
    logits = torch.where(keep, q @ keys.mT * layout.scale, -torch.inf)
    weights = torch.exp(logits - base)
    slopes = weights * (grad_out @ values.mT + saved.slack[items][..., None]) * layout.scale
    gradients[0][items] = slopes @ keys
    gradients[1].index_add_(0, flat.flatten(), (slopes.mT @ q).flatten(0, 1))
    gradients[2].index_add_(0, flat.flatten(), (weights.mT @ grad_out).flatten(0, 1))


def _keys_of(b: Tensor, h: Tensor, i: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Keys of some query blocks, [items, longest list] with 0 where the second result is False."""
    spans = layout.spans[b.clamp(max=layout.spans.shape[0] - 1), h.clamp(max=layout.spans.shape[1] - 1), i]
    start, length = spans[..., 0].long(), (spans[..., 1] - spans[..., 0]).long()
    ends = length.cumsum(-1)
    widest = int(ends[:, -1].max()) if ends.numel() else 0
    slot = torch.arange(widest, device=b.device).expand(len(b), -1).contiguous()
    if widest:
        which = torch.searchsorted(ends, slot, right=True).clamp(max=ends.shape[1] - 1)
        index = start.gather(1, which) + slot - (ends - length).gather(1, which)
        real = slot < ends[:, -1:]
    else:
        index, real = slot, slot.bool()
    c = (b.clamp(max=layout.counts.shape[0] - 1), h.clamp(max=layout.counts.shape[1] - 1), i // layout.group)
    counted = torch.arange(layout.columns.shape[3], device=b.device) < layout.counts[c][:, None]
    index, real = torch.cat([index, layout.columns[c].long()], 1), torch.cat([real, counted], 1)
    return torch.where(real, index, 0), real
