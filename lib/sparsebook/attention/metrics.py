"""How close sparse attention comes to dense attention, and how much of it was computed."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsebook.attention.patterns.arguments import (
    Key,
    Query,
    check_finite,
    check_queries_keys,
    logit_scale,
    products,
)
from sparsebook.kernels.block_attention import SpanIndex, span_state

PerHead = Float[Tensor, "batch heads"]
Output = Float[Tensor, "batch heads tokens dim"]


def attention_weights(
    q: Query, k: Key, *, scale: float | None = None, causal: bool = True
) -> Float[Tensor, "batch heads queries keys"]:
    """Softmax weights of dense attention, at least float32: a queries x keys matrix per head.

    Raises
    ------
    ValueError
        If q and k do not fit together or are not finite.
    """
    check_queries_keys(q, k, aligned=causal)
    logits = products(q, k).mul_(logit_scale(scale, q.shape[3]))
    if causal:
        future = torch.ones(logits.shape[2:], dtype=torch.bool, device=q.device).triu(1)
        logits.masked_fill_(future, -torch.inf)
    return logits.softmax(-1)


def mass_recall(
    q: Query,
    k: Key,
    mask: Bool[Tensor, "mask_batch mask_heads queries keys"] | SpanIndex,
    *,
    scale: float | None = None,
    causal: bool = True,
) -> PerHead:
    """Share of dense attention's weights that falls on computed pairs, mean over the queries.

    Parameters
    ----------
    q, k : [batch, heads, queries, dim], [batch, kv_heads, keys, dim]
    mask : bool [batch or 1, heads or 1, queries, keys], or SpanIndex
        With an index, the sums of exponentials of the sparse and of the dense pass are compared: no queries x
        keys matrix is made (but in float64, whose passes are dense).

    Raises
    ------
    ValueError
        If q and k do not fit together or are not finite, or mask has another shape.
    """
    if isinstance(mask, SpanIndex):
        return _row_mass(q, k, mask, scale, causal).mean(-1)
    weights = attention_weights(q, k, scale=scale, causal=causal)
    _check_mask(mask, weights.shape)
    return torch.where(mask, weights, 0.0).sum(-1).mean(-1)


def _row_mass(q: Tensor, k: Tensor, index: SpanIndex, scale: float | None, causal: bool) -> Tensor:
    check_queries_keys(q, k, aligned=causal)
    block = 64
    everything = torch.tensor([0, k.shape[2]], dtype=torch.int32, device=q.device)
    dense = SpanIndex.from_spans(everything.expand(1, 1, -(-q.shape[2] // block), 1, 2), block)
    # Only the sums of exponentials are wanted: one column of keys stands for the values.
    lse = [
        span_state(q, k, k[..., :1].contiguous(), part, causal=causal, scale=scale).lse()
        for part in (index, dense)
    ]
    return torch.exp(lse[0] - lse[1]).clamp(max=1)


def _check_mask(mask: Tensor, shape: tuple[int, ...]) -> None:
    fits = mask.ndim == 4 and all(m in (1, s) for m, s in zip(mask.shape[:2], shape[:2], strict=True))
    if mask.dtype != torch.bool or not fits or mask.shape[2:] != shape[2:]:
        raise ValueError(
            f"mask must be boolean of shape (1 or {shape[0]}, 1 or {shape[1]}, {shape[2]}, {shape[3]}), "
            f"got {mask.dtype} {tuple(mask.shape)}"
        )


def output_recall(reference: Output, out: Output, tolerance: float = 0.01) -> PerHead:
    """Share of the output's elements that differ from the reference by less than `tolerance`, absolutely.

    The recall of AnchorAttention's study code, with 0.01 and 0.005.

    Raises
    ------
    ValueError
        If the two differ in shape, one is not finite, or tolerance is not positive.
    """
    _check_outputs(reference, out)
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, got {tolerance}")
    exact = torch.promote_types(reference.dtype, torch.float32)
    return ((reference.to(exact) - out.to(exact)).abs() < tolerance).to(exact).mean((-2, -1))


def output_error(reference: Output, out: Output) -> PerHead:
    """Norm of the difference over the norm of the reference, per head (Frobenius over tokens and features).

    Raises
    ------
    ValueError
        If the two differ in shape, one is not finite, or the reference of a head is all zeros.
    """
    _check_outputs(reference, out)
    exact = torch.promote_types(reference.dtype, torch.float32)
    size = reference.to(exact).flatten(2).norm(dim=-1)
    if bool((size == 0).any()):
        raise ValueError("reference must not be zero in a whole head: the error is relative to it")
    return (out.to(exact) - reference.to(exact)).flatten(2).norm(dim=-1) / size


def _check_outputs(reference: Tensor, out: Tensor) -> None:
    check_finite("reference", reference)
    check_finite("out", out)
    if reference.shape != out.shape:
        raise ValueError(
            f"out must have shape {tuple(reference.shape)} like reference, got {tuple(out.shape)}"
        )


def density(mask: Bool[Tensor, "batch heads queries keys"], *, causal: bool = True) -> PerHead:
    """Computed pairs over the pairs of dense attention.

    The denominator is L(L + 1)/2, the pairs of causal attention with the diagonal, or queries x keys if not
    `causal`. Everything computed counts, sinks, windows and anchor regions included.

    Raises
    ------
    ValueError
        If mask is not boolean with four axes none of which is 0, or, if `causal`, not square or True above
        the diagonal.
    """
    if mask.dtype != torch.bool or mask.ndim != 4 or 0 in mask.shape:
        raise ValueError(
            f"mask must be boolean of shape (batch, heads, queries, keys), none of them 0, "
            f"got {mask.dtype} {tuple(mask.shape)}"
        )
    n_queries, n_keys = mask.shape[2:]
    pairs = n_queries * n_keys
    if causal:
        if n_queries != n_keys or bool(mask.triu(1).any()):
            raise ValueError("mask must be square and False above the diagonal, or causal be False")
        pairs = n_queries * (n_queries + 1) // 2
    return mask.sum((-2, -1), dtype=torch.float64) / pairs
