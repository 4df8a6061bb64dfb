"""FlexPrefill: budgets that follow how much of the attention the lines or blocks cover.

Two methods carry the name. The token-level one, as re-implemented for The Sparse Frontier (2025), chooses
vertical and slash lines by the statistics of `vertical_slash_indices` and lets only their number follow the
coverage. The original (Lai et al., FlexPrefill, 2025) works on blocks of 128 and sends heads whose pooled
scores agree with the true ones, by their Jensen-Shannon divergence, to a search over all pairs of blocks.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparsebook.attention.patterns.arguments import (
    Key,
    Query,
    check_integer,
    check_queries_keys,
    check_share,
    logit_scale,
    products,
    window_statistics,
)
from sparsebook.attention.patterns.blocks import block_means
from sparsebook.attention.patterns.lines import forced_line_scores, key_sums, line_scores
from sparsebook.attention.patterns.ranking import largest_ragged, positions
from sparsebook.attention.patterns.regions import block_table_pattern, with_forced
from sparsebook.kernels.block_attention import SpanIndex
from sparsebook.kernels.block_attention.layout import lines_index

Counts = Int[Tensor, "batch heads"]

# Tokens ------------------------------------------------------------------------------------------------


def flexprefill_counts(
    q: Query,
    k: Key,
    *,
    alpha: float,
    min_budget: int = 512,
    window: int = 512,
    scale: float | None = None,
) -> tuple[Counts, Counts]:
    """How many vertical and how many slash lines each head gets: enough to cover a share `alpha`.

    Parameters
    ----------
    q, k : [batch, heads, tokens, dim], [batch, kv_heads, tokens, dim]
    alpha : float
        Share of the window's attention, in [0, 1]. The count is one more than the number of largest lines
        whose sum stays within it; with 1 it is all of them.
    min_budget : int
        Fewest lines of each kind.
    window : int
        Queries that vote; all, if there are fewer tokens.

    Returns
    -------
    vertical, slash : int64 [batch, heads], at most the number of tokens

    Raises
    ------
    ValueError
        If q and k do not fit together or are not finite, alpha lies outside [0, 1], or min_budget or window
        is below 1.
    """
    _check_budget(alpha, min_budget)
    vertical, slash = line_scores(q, k, window=window, scale=scale)
    return _line_counts(vertical, slash, alpha, min_budget, min(window, q.shape[2]))


def _check_budget(alpha: float, min_budget: int) -> None:
    check_share("alpha", alpha)
    check_integer("min_budget", min_budget)


def _line_counts(
    vertical: Tensor, slash: Tensor, alpha: float, min_budget: int, window: int
) -> tuple[Counts, Counts]:
    n_tokens = vertical.shape[-1]
    counts = [covering(scores / window, alpha).clamp(min_budget, None) for scores in (vertical, slash)]
    return counts[0].clamp(max=n_tokens), counts[1].clamp(max=n_tokens)


def covering(shares: Float[Tensor, "batch heads n"], target: float) -> Counts:
    """One more than the number of largest shares whose sum stays within `target`; n if that is everything."""
    if target >= 1:
        return torch.full(shares.shape[:-1], shares.shape[-1], device=shares.device)
    ordered = shares.sort(dim=-1, descending=True).values
    return (ordered.cumsum(-1, dtype=torch.float64) <= target).sum(-1) + 1


def flexprefill_indices(
    q: Query,
    k: Key,
    *,
    alpha: float,
    min_budget: int = 512,
    window: int = 512,
    n_sink: int = 4,
    n_local: int = 64,
    scale: float | None = None,
) -> tuple[Int[Tensor, "batch heads verticals"], Int[Tensor, "batch heads slashes"]]:
    """The vertical and slash lines of each head, as many as `flexprefill_counts` says.

    Parameters, errors and forced lines as in `flexprefill_counts` and `vertical_slash_indices`. With alpha 0
    the lines are those of `vertical_slash_indices` with `min_budget` of each kind and the same window.

    Returns
    -------
    vertical, slash : int64 [batch, heads, longest list]
        Ascending, -1 behind the last.
    """
    _check_budget(alpha, min_budget)
    scores = forced_line_scores(q, k, window=window, n_sink=n_sink, n_local=n_local, scale=scale)
    counts = _line_counts(scores[0], scores[1], alpha, min_budget, min(window, q.shape[2]))
    vertical, slash = (largest_ragged(scores[2 + i], counts[i]) for i in (0, 1))
    return positions(vertical), positions(slash)


def flexprefill_pattern(
    q: Query,
    k: Key,
    *,
    alpha: float,
    min_budget: int = 512,
    window: int = 512,
    n_sink: int = 4,
    n_local: int = 64,
    scale: float | None = None,
    block_size: int = 64,
    forced: SpanIndex | None = None,
) -> SpanIndex:
    """The keys that blocks of `block_size` queries attend along the lines of `flexprefill_indices`.

    Parameters and errors as there; `forced` are keys attended besides. The lines are swept over each block
    of queries, as in `vertical_slash_pattern`.
    """
    check_integer("block_size", block_size)
    vertical, slash = flexprefill_indices(
        q,
        k,
        alpha=alpha,
        min_budget=min_budget,
        window=window,
        n_sink=n_sink,
        n_local=n_local,
        scale=scale,
    )
    n_tokens = q.shape[2]
    # A vertical or a slash at n_tokens touches no query: it fills the lists of heads that have fewer.
    vertical, slash = (torch.where(lines < 0, n_tokens, lines) for lines in (vertical, slash))
    return with_forced(lines_index(vertical, slash, n_tokens, block_size), forced, n_tokens)


# Blocks ------------------------------------------------------------------------------------------------


def flexprefill_block_pattern(
    q: Query,
    k: Key,
    *,
    gamma: float,
    tau_js: float = 0.1,
    min_budget: int = 1024,
    max_budget: int | None = None,
    block_size: int = 128,
    scale: float | None = None,
    forced: SpanIndex | None = None,
) -> SpanIndex:
    """The original FlexPrefill: whole blocks, vertical and slash or free, per head.

    Parameters
    ----------
    q, k : [batch, heads, tokens, dim], [batch, kv_heads, tokens, dim]
    gamma : float
        Share of the attention to cover, in (0, 1]; with 1 all blocks.
    tau_js : float
        Heads with a divergence (`flexprefill_divergence`) below it choose single blocks; 0 for none.
    min_budget, max_budget : int
        Fewest and most tokens' worth of vertical, and of slash, blocks, rounded up to blocks.
    block_size : int
        Tokens in a block, of queries and of keys.
    forced : SpanIndex, optional
        Keys attended besides.

    Raises
    ------
    ValueError
        If q and k do not fit together or are not finite, gamma lies outside (0, 1], tau_js is negative, a
        budget or the block size is below 1, or max_budget is below min_budget.

    Notes
    -----
    Inputs no longer than two blocks or than the minimal budget are dense, as in the official code. Counts of
    lines become counts of blocks by `block_size`; the official code divides by 128 whatever the block size.
    A block without weight enters the divergence as its limit; there it makes NaN and a vertical-slash head.
    """
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma must lie in (0, 1], got {gamma}")
    if not tau_js >= 0:
        raise ValueError(f"tau_js must be at least 0, got {tau_js}")
    check_integer("min_budget", min_budget)
    check_integer("max_budget", min_budget if max_budget is None else max_budget, min_budget)
    check_integer("block_size", block_size)
    check_queries_keys(q, k)
    n = -(-q.shape[2] // block_size)
    fewest = -(-min_budget // block_size)
    most = n if max_budget is None else min(n, -(-max_budget // block_size))
    if n <= max(2, fewest) or gamma == 1:
        table = torch.ones(1, 1, n, n, dtype=torch.bool, device=q.device)
    else:
        table = _block_table(q, k, gamma, tau_js, fewest, most, block_size, logit_scale(scale, q.shape[3]))
    return block_table_pattern(table.tril(), q.shape[2], block_size=block_size, forced=forced)


def _block_table(
    q: Tensor, k: Tensor, gamma: float, tau_js: float, fewest: int, most: int, block_size: int, scale: float
) -> Bool[Tensor, "batch heads blocks blocks"]:
    shares = [part / block_size for part in line_scores(q, k, window=block_size, scale=scale)]
    vertical = _pool(shares[0], block_size)
    # Pooled from the farthest offset on, as in the official code: a short block lies at the diagonal.
    slash = _pool(shares[1].flip(-1), block_size).flip(-1)
    aware = _divergence(q, k, vertical, block_size, scale) < tau_js
    counts = [(covering(part, gamma) // block_size + 1).clamp(fewest, most) for part in shares]
    counts = [torch.where(aware, fewest, count) for count in counts]
    vertical[..., 0] = slash[..., 0] = torch.inf
    table = _lines_table(largest_ragged(vertical, counts[0]), largest_ragged(slash, counts[1]))
    if bool(aware.any()):
        table[aware] |= _free_blocks(q, k, aware, gamma, block_size, scale)
    return table


def _pool(shares: Tensor, block_size: int) -> Float[Tensor, "batch heads blocks"]:
    padded = torch.nn.functional.pad(shares, (0, -shares.shape[-1] % block_size))
    return padded.unflatten(-1, (-1, block_size)).sum(-1)


def _lines_table(
    vertical: Bool[Tensor, "batch heads blocks"], slash: Bool[Tensor, "batch heads blocks"]
) -> Bool[Tensor, "batch heads blocks blocks"]:
    """Blocks (i, j) with j among the verticals or i - j among the slashes."""
    index = torch.arange(vertical.shape[-1], device=vertical.device)
    distance = index[:, None] - index
    return vertical[:, :, None] | (slash[..., distance.clamp(min=0)] & (distance >= 0))


def _free_blocks(
    q: Tensor, k: Tensor, aware: Bool[Tensor, "batch heads"], gamma: float, block_size: int, scale: float
) -> Bool[Tensor, "aware blocks blocks"]:
    """The largest entries of the pooled causal attention map whose sum stays within gamma times its rows."""
    queries = block_means(q, block_size, partial=True)[aware] * scale
    keys = block_means(k, block_size, partial=True).repeat_interleave(q.shape[1] // k.shape[1], 1)[aware]
    logits = queries @ keys.transpose(-1, -2)
    n = logits.shape[-1]
    future = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
    flat = logits.masked_fill_(future, -torch.inf).softmax(-1).flatten(1)
    ordered, order = flat.sort(dim=-1, descending=True, stable=True)
    within = ordered.cumsum(-1, dtype=torch.float64) <= gamma * n
    return torch.zeros_like(within).scatter_(-1, order, within).unflatten(1, (n, n))


def flexprefill_divergence(
    q: Query, k: Key, *, block_size: int = 128, scale: float | None = None
) -> Float[Tensor, "batch heads"]:
    """Square root of the Jensen-Shannon divergence of true and pooled attention of the last block.

    Over blocks of keys, in natural-log units: the last `block_size` queries' attention, averaged and summed
    per block, against the softmax of their mean with every block's mean key.

    Raises
    ------
    ValueError
        If q and k do not fit together or are not finite, or block_size is below 1.
    """
    check_integer("block_size", block_size)
    check_queries_keys(q, k)
    scale = logit_scale(scale, q.shape[3])
    (sums,) = window_statistics(q, k, block_size, scale, key_sums)
    true = _pool(sums / min(block_size, q.shape[2]), block_size)
    return _divergence(q, k, true, block_size, scale)


def _divergence(
    q: Tensor, k: Tensor, true: Tensor, block_size: int, scale: float
) -> Float[Tensor, "batch heads"]:
    keys = block_means(k, block_size, partial=True)
    query = q[:, :, -block_size:].to(keys.dtype).mean(2, keepdim=True) * scale
    pooled = products(query, keys)[:, :, 0].softmax(-1)
    middle = (true + pooled) / 2
    # x log(x / m) as xlogy(x, x) - xlogy(x, m): its limit 0 where x is 0.
    halves = [(torch.xlogy(part, part) - torch.xlogy(part, middle)).sum(-1) for part in (true, pooled)]
    return ((halves[0] + halves[1]) / 2).clamp(min=0).sqrt()
