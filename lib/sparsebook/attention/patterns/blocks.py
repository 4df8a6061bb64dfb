"""Blocks of keys for blocks of queries, ranked by the products of their means."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparsebook.attention.patterns.arguments import (
    Key,
    Query,
    check_integer,
    check_queries_keys,
    logit_scale,
    products,
)
from sparsebook.attention.patterns.ranking import largest, positions
from sparsebook.attention.patterns.regions import block_table_pattern
from sparsebook.kernels.block_attention import SpanIndex

BlockScores = Float[Tensor, "batch heads query_blocks key_blocks"]
_FORCED = 3  # column 0, the block before the diagonal, the diagonal


def block_means(
    x: Float[Tensor, "batch heads tokens dim"], block_size: int, *, partial: bool = False
) -> Float[Tensor, "batch heads blocks dim"]:
    """Means over blocks of tokens, at least float32.

    A short last block is padded with zeros, as in the official code, unless `partial`: then the mean is over
    the tokens it has.
    """
    check_integer("block_size", block_size)
    exact = torch.promote_types(x.dtype, torch.float32)
    batch, heads, tokens, dim = x.shape
    short = -tokens % block_size
    padded = torch.nn.functional.pad(x.to(exact), (0, 0, 0, short))
    means = padded.view(batch, heads, -1, block_size, dim).mean(3)
    if partial and short:
        means[:, :, -1] *= block_size / (block_size - short)
    return means


def block_scores(q: Query, k: Key, *, block_size: int = 16) -> BlockScores:
    """Products of mean queries and mean keys, unscaled: ranks are all that is asked of them."""
    check_queries_keys(q, k, aligned=False)
    return products(block_means(q, block_size), block_means(k, block_size))


def pooled_query_scores(
    q: Query, k: Key, *, block_size: int, scale: float | None = None
) -> Float[Tensor, "batch heads query_blocks keys"]:
    """Logits of each block's mean query with every single key.

    What stripes are judged by. `block_maxima` makes of them scores of blocks, for a comparison in which only
    the granularity differs. Memory is tokens x tokens / block_size per head.

    Raises
    ------
    ValueError
        If q and k do not fit together or are not finite, or block_size is below 1.
    """
    check_queries_keys(q, k, aligned=False)
    means = block_means(q, block_size, partial=True) * logit_scale(scale, q.shape[3])
    return products(means.to(torch.promote_types(q.dtype, torch.float32)), k.to(means.dtype))


def block_maxima(scores: Float[Tensor, "batch heads query_blocks keys"], block_size: int) -> BlockScores:
    """The largest score in each block of keys."""
    check_integer("block_size", block_size)
    padded = torch.nn.functional.pad(scores, (0, -scores.shape[3] % block_size), value=-torch.inf)
    return padded.unflatten(3, (-1, block_size)).amax(-1)


def block_topk_table(
    q: Query,
    k: Key,
    *,
    block_size: int = 16,
    top_k: int,
    causal: bool = True,
    scores: BlockScores | None = None,
) -> Bool[Tensor, "batch heads query_blocks key_blocks"]:
    """True at the blocks that `block_topk_indices` lists; its parameters and errors."""
    check_integer("top_k", top_k, _FORCED if causal else 1)
    check_integer("block_size", block_size)
    check_queries_keys(q, k, aligned=causal)
    shape = (q.shape[0], q.shape[1], -(-q.shape[2] // block_size), -(-k.shape[2] // block_size))
    if scores is None:
        scores = products(block_means(q, block_size), block_means(k, block_size))
    elif scores.shape != shape or bool(scores.isnan().any()):
        raise ValueError(f"scores must have shape {shape} and no NaN, got {tuple(scores.shape)}")
    if not causal:
        return largest(scores, top_k)
    row = torch.arange(shape[2], device=q.device)[:, None]
    column = row.T
    forced = (column == 0) | (column == row) | (column == row - 1)
    scores = scores.masked_fill(forced, torch.inf).masked_fill(column > row, -torch.inf)
    return largest(scores, top_k) & (column <= row)


def block_topk_indices(
    q: Query,
    k: Key,
    *,
    block_size: int = 16,
    top_k: int,
    causal: bool = True,
    scores: BlockScores | None = None,
) -> Int[Tensor, "batch heads query_blocks blocks"]:
    """The `top_k` blocks of keys for every block of queries, per query head.

    Parameters
    ----------
    q, k : [batch, heads, queries, dim], [batch, kv_heads, keys, dim]
        The same tokens if `causal`.
    block_size : int
        Tokens in a block, of queries and of keys. The last block may be shorter.
    top_k : int
        At least 3 if `causal`, because the diagonal, the block before it and the first block are always
        among them. More than there are blocks means all of them.
    causal : bool
        Rank only blocks up to the diagonal. If False, every block is ranked and none is forced.
    scores : [batch, heads, query blocks, key blocks], optional
        Ranks by these instead of the product of the blocks' means.

    Returns
    -------
    int64 [batch, heads, query blocks, min(top_k, key blocks)]
        Ascending, -1 behind the last; of equal scores the lowest index.

    Raises
    ------
    ValueError
        If q and k do not fit together or are not finite, block_size or top_k is too small, or the scores
        have another shape or NaN.

    Notes
    -----
    Block-Sparse of The Sparse Frontier (2025): means are over zero-padded blocks, no scale, no softmax.
    """
    return positions(block_topk_table(q, k, block_size=block_size, top_k=top_k, causal=causal, scores=scores))


def block_topk_pattern(
    q: Query,
    k: Key,
    *,
    block_size: int = 16,
    top_k: int,
    causal: bool = True,
    scores: BlockScores | None = None,
    forced: SpanIndex | None = None,
) -> SpanIndex:
    """The blocks of `block_topk_indices` as spans; its parameters and errors.

    `forced` are keys attended besides: blocks inside them still count among the `top_k`.
    """
    table = block_topk_table(q, k, block_size=block_size, top_k=top_k, causal=causal, scores=scores)
    return block_table_pattern(table, k.shape[2], block_size=block_size, n_queries=q.shape[2], forced=forced)


def block_topk_sparsity(n_tokens: int, block_size: int, top_k: int) -> float:
    """Share of the causal blocks, diagonal included, that `top_k` blocks per row leave out.

    Raises
    ------
    ValueError
        If n_tokens or block_size is below 1 or top_k below 3.
    """
    for name, value, least in (("n_tokens", n_tokens, 1), ("block_size", block_size, 1), ("top_k", top_k, 3)):
        check_integer(name, value, least)
    n = -(-n_tokens // block_size)
    k = min(top_k, n)
    return 1 - (k * (k + 1) / 2 + (n - k) * k) / (n * (n + 1) / 2)


def block_topk_for_sparsity(n_tokens: int, block_size: int, sparsity: float) -> int:
    """The `top_k` whose `block_topk_sparsity` is nearest to `sparsity`, the larger of two as near.

    Raises
    ------
    ValueError
        If n_tokens or block_size is below 1, sparsity lies outside [0, 1), or not even 3 blocks per row are
        as sparse as that (by more than the step from 3 to 4).
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must lie in [0, 1), got {sparsity}")
    most = block_topk_sparsity(n_tokens, block_size, _FORCED)
    if sparsity > most + (most - block_topk_sparsity(n_tokens, block_size, _FORCED + 1)) / 2:
        raise ValueError(
            f"sparsity must be at most {most:.4f}, that of 3 blocks of {block_size} among {n_tokens} tokens, "
            f"got {sparsity}"
        )
    low, high = _FORCED, max(_FORCED, -(-n_tokens // block_size))
    while low < high:  # the largest k that is at least as sparse
        middle = (low + high + 1) // 2
        if block_topk_sparsity(n_tokens, block_size, middle) >= sparsity:
            low = middle
        else:
            high = middle - 1
    miss = [abs(block_topk_sparsity(n_tokens, block_size, k) - sparsity) for k in (low, low + 1)]
    return low + 1 if miss[1] < miss[0] else low
