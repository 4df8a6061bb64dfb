"""Vertical and slash lines: a window of the last queries tells which keys and which offsets matter."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparsebook.attention.patterns.arguments import (
    Key,
    Query,
    check_integer,
    check_queries_keys,
    window_statistics,
)
from sparsebook.attention.patterns.ranking import largest, positions
from sparsebook.attention.patterns.regions import with_forced
from sparsebook.kernels.block_attention import SpanIndex, vertical_slash_index


def key_sums(weights: Float[Tensor, "batch heads window keys"]) -> Float[Tensor, "batch heads keys"]:
    """Sums of weights over the queries of the window."""
    return weights.sum(-2)


def diagonal_sums(
    weights: Float[Tensor, "batch heads window keys"],
) -> Float[Tensor, "batch heads keys"]:
    """Sums of weights over the offsets 0, 1, .. keys - 1 of query and key; offset 0 is the main diagonal.

    Query i of the window stands at position keys - window + i. Offsets that do not reach back to every query
    of the window have fewer terms. Weights of later keys (above the diagonal) are not summed.
    """
    *_, n, length = weights.shape
    weights = weights.contiguous()
    # Row i of this view starts at column i: its columns are whole diagonals. Only the offsets beyond
    # length - n lack terms; their corner is padded on its left, so that the missing terms are zeros.
    whole = _skewed(weights, length - n + 1).sum(-2)
    corner = torch.nn.functional.pad(weights[..., : n - 1], (n, 0))
    partial = _skewed(corner, n)[..., 1:].sum(-2)
    return torch.cat([partial, whole], -1).flip(-1)


def _skewed(x: Tensor, width: int) -> Tensor:
    """The view y[.., i, c] = x[.., i, i + c]."""
    row = x.shape[-1]
    return x.as_strided((*x.shape[:-1], width), (*x.stride()[:-2], row + 1, 1))


def line_scores(
    q: Query, k: Key, *, window: int = 256, scale: float | None = None
) -> tuple[Float[Tensor, "batch heads tokens"], Float[Tensor, "batch heads tokens"]]:
    """What the last `window` queries attend, summed per key (vertical) and per offset (slash).

    Every score is a sum over the queries of the window, min(window, tokens) of them: the scores of a head
    sum to that number. Memory is a few times window x tokens, not times the heads.

    Raises
    ------
    ValueError
        If q and k do not fit together (see `check_queries_keys`) or window is below 1.
    """
    check_integer("window", window)
    check_queries_keys(q, k)
    vertical, slash = window_statistics(q, k, window, scale, key_sums, diagonal_sums)
    return vertical, slash


def vertical_slash_indices(
    q: Query,
    k: Key,
    *,
    n_vertical: int,
    n_slash: int,
    window: int = 256,
    n_sink: int = 4,
    n_local: int = 64,
    scale: float | None = None,
) -> tuple[Int[Tensor, "batch heads verticals"], Int[Tensor, "batch heads slashes"]]:
    """The keys and the offsets that the last queries attend most, per head.

    Parameters
    ----------
    q, k : [batch, heads, tokens, dim], [batch, kv_heads, tokens, dim]
    n_vertical, n_slash : int
        How many lines; more than there are tokens means all of them.
    window : int
        Queries that vote; all, if there are fewer tokens.
    n_sink, n_local : int
        The first keys and the nearest offsets, chosen before all others.
    scale : float, optional
        Factor of the logits, 1 / sqrt(dim) if not given.

    Returns
    -------
    vertical, slash : int64 [batch, heads, min(n, tokens)]
        Keys and offsets (query - key), ascending; of equal scores the lowest.

    Raises
    ------
    ValueError
        If q and k do not fit together or are not finite, a count or the window is below 1, or n_sink or
        n_local below 0.

    Notes
    -----
    Vertical-Slash of MInference (Jiang et al., 2024) with the parameters of The Sparse Frontier (2025).
    """
    check_integer("n_vertical", n_vertical)
    check_integer("n_slash", n_slash)
    vertical, slash = forced_line_scores(q, k, window=window, n_sink=n_sink, n_local=n_local, scale=scale)[2:]
    return positions(largest(vertical, n_vertical)), positions(largest(slash, n_slash))


def forced_line_scores(
    q: Query, k: Key, *, window: int, n_sink: int, n_local: int, scale: float | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`line_scores`, and the same with +inf at the first `n_sink` keys and `n_local` offsets."""
    check_integer("n_sink", n_sink, 0)
    check_integer("n_local", n_local, 0)
    vertical, slash = line_scores(q, k, window=window, scale=scale)
    forced_vertical, forced_slash = vertical.clone(), slash.clone()
    forced_vertical[..., :n_sink] = torch.inf
    forced_slash[..., :n_local] = torch.inf
    return vertical, slash, forced_vertical, forced_slash


def vertical_slash_pattern(
    q: Query,
    k: Key,
    *,
    n_vertical: int,
    n_slash: int,
    window: int = 256,
    n_sink: int = 4,
    n_local: int = 64,
    scale: float | None = None,
    block_size: int = 64,
    forced: SpanIndex | None = None,
) -> SpanIndex:
    """The keys that blocks of `block_size` queries attend along vertical and slash lines.

    Parameters and errors as in `vertical_slash_indices`; `forced` are keys attended besides. The lines are
    swept over each block of queries (see `vertical_slash_index`), so somewhat more is computed than the lines
    alone; `SpanIndex.density` counts what is computed.
    """
    vertical, slash = vertical_slash_indices(
        q,
        k,
        n_vertical=n_vertical,
        n_slash=n_slash,
        window=window,
        n_sink=n_sink,
        n_local=n_local,
        scale=scale,
    )
    index = vertical_slash_index(vertical, slash, q.shape[2], block_size=block_size)
    return with_forced(index, forced, q.shape[2])
