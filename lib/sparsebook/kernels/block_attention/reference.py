"""What every operation of the family means, in plain PyTorch with a dense mask."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsebook.kernels.block_attention.layout import SpanIndex

Result = tuple[Tensor, Tensor, Tensor]


def attention_reference(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "batch kv_heads keys dim"],
    v: Float[Tensor, "batch kv_heads keys value_dim"],
    mask: Bool[Tensor, "..."],
    scale: float,
) -> Result:
    """Softmax attention over the keys where `mask` (broadcast to [batch, heads, queries, keys]) is True.

    Returns
    -------
    out : [batch, heads, queries, value_dim] in q's type; zeros where a row attends nothing
    lse : [batch, heads, queries], float32 (float64 for float64 inputs); -inf where a row attends nothing
    maximum : [batch, heads, queries]
        Largest scaled logit.

    Notes
    -----
    NaN reaches exactly the rows that attend it: in a query its row, in a key or a value the rows whose mask
    holds it.
    """
    exact = torch.promote_types(q.dtype, torch.float32)
    repeats = q.shape[1] // k.shape[1]
    k, v = (x.to(exact).repeat_interleave(repeats, 1) for x in (k, v))
    mask = mask.expand(*q.shape[:3], k.shape[2])
    logits = torch.where(mask, q.to(exact) @ k.transpose(-1, -2) * scale, -torch.inf)
    maximum = logits.amax(-1)
    weights = torch.exp(logits - torch.where(maximum == -torch.inf, 0.0, maximum)[..., None])
    total = weights.sum(-1)
    finite = v.isfinite()
    sums = weights @ torch.where(finite, v, 0.0)
    if not finite.all():
        # Zero times NaN is NaN: only rows that attend the value may see it.
        touched = mask.to(exact) @ (~finite).to(exact) > 0
        sums = torch.where(touched, weights @ v, sums)
    out = sums / torch.where(total == 0, 1.0, total)[..., None]
    lse = torch.where(total == 0, -torch.inf, maximum + torch.log(total))
    return out.to(q.dtype), lse, maximum.detach()


def span_attention_reference(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "batch kv_heads keys dim"],
    v: Float[Tensor, "batch kv_heads keys value_dim"],
    index: SpanIndex,
    *,
    causal: bool,
    query_offset: int = 0,
    scale: float,
) -> Result:
    """Attention over the spans and columns of `index`, through its dense mask."""
    mask = index.dense_mask(q.shape[2], k.shape[2], causal=causal, query_offset=query_offset)
    return attention_reference(q, k, v, mask, scale)
