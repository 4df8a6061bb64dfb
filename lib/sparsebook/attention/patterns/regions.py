"""Patterns that no score decides: sinks and windows, given tables and stripes, unions, dense masks."""

import math

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sparsebook.attention.patterns.arguments import check_integer
from sparsebook.attention.patterns.ranking import pack, positions, runs
from sparsebook.kernels.block_attention import SpanIndex

# Shorter runs of keys are gathered as single columns: a kernel's step over a span has a fixed cost.
_SHORTEST_SPAN = 16


def streaming_pattern(
    n_tokens: int,
    *,
    n_sink: int,
    n_local: int,
    block_size: int = 64,
    causal: bool = True,
    forced: SpanIndex | None = None,
    device: torch.device | str | None = None,
) -> SpanIndex:
    """The first `n_sink` keys and the `n_local` nearest, the query's own included.

    Parameters
    ----------
    n_tokens, n_sink, n_local : int
        n_sink may be 0.
    block_size : int
        Queries that share a list: the window is swept over the block, as slashes 0 to n_local - 1 would be.
        With 1 every query has exactly its own window.
    causal : bool
        If False, the window reaches `n_local - 1` keys to both sides.
    forced : SpanIndex, optional
        Keys attended besides.

    Raises
    ------
    ValueError
        If n_tokens, n_local or block_size is below 1, or n_sink below 0.

    Notes
    -----
    Xiao et al., Efficient Streaming Language Models with Attention Sinks (2024), as a prefill mask.
    """
    for name, value, least in (("n_tokens", n_tokens, 1), ("n_sink", n_sink, 0), ("n_local", n_local, 1)):
        check_integer(name, value, least)
    check_integer("block_size", block_size)
    first = torch.arange(0, n_tokens, block_size, device=device)
    last = (first + block_size).clamp(max=n_tokens)
    start = (first - n_local + 1).clamp(min=0)
    stop = last if causal else (last + n_local - 1).clamp(max=n_tokens)
    n_sink = min(n_sink, n_tokens)
    joined = start <= n_sink  # sinks and window touch: one span instead of two
    sink = torch.where(joined, 0, n_sink)
    spans = torch.stack(
        [
            sink.new_zeros(sink.shape),
            sink,
            start.masked_fill(joined, 0),
            torch.where(joined, stop.clamp(min=n_sink), stop),
        ],
        -1,
    ).unflatten(-1, (2, 2))
    return with_forced(SpanIndex.from_spans(spans[None, None].int(), block_size), forced, n_tokens)


def block_table_pattern(
    table: Bool[Tensor, "batch heads query_blocks key_blocks"],
    n_keys: int,
    *,
    block_size: int,
    n_queries: int | None = None,
    forced: SpanIndex | None = None,
) -> SpanIndex:
    """The blocks of keys that are True for each block of queries, neighbours joined.

    Parameters
    ----------
    table : bool [batch or 1, heads or 1, query blocks, key blocks]
    n_keys : int
    block_size : int
        Tokens in a block, of queries and of keys; the last ones may be shorter.
    n_queries : int, optional
        If not as many as keys: asked for where `forced` is given.
    forced : SpanIndex, optional
        Keys attended besides.

    Raises
    ------
    ValueError
        If the table is not boolean with four axes, does not have ceil(n_keys / block_size) blocks of keys, or
        covers other queries than `forced`.
    """
    check_integer("n_keys", n_keys)
    check_integer("block_size", block_size)
    _check_table("table", table, -(-n_keys // block_size))
    spans = (runs(table) * block_size).clamp(max=n_keys)
    return with_forced(SpanIndex.from_spans(spans.int(), block_size), forced, n_keys, n_queries)


def stripes(
    keep: Bool[Tensor, "batch heads groups keys"],
    *,
    group_size: int,
    n_queries: int | None = None,
    forced: SpanIndex | None = None,
) -> SpanIndex:
    """Single keys ("stripes") kept for groups of `group_size` consecutive queries.

    Parameters
    ----------
    keep : bool [batch or 1, heads or 1, groups, keys]
    group_size : int
        The last group of queries may be shorter.
    n_queries : int, optional
        If not as many as keys: asked for where `forced` is given.
    forced : SpanIndex, optional
        Keys attended besides; keys that are in both count once.

    Raises
    ------
    ValueError
        If `keep` is not boolean with four axes, group_size is below 1, or `keep` and `forced` cover other
        queries.
    """
    check_integer("group_size", group_size)
    _check_table("keep", keep, keep.shape[-1])
    index = SpanIndex.from_columns(positions(keep, 0).int(), keep.sum(-1, dtype=torch.int32), group_size)
    return with_forced(index, forced, keep.shape[-1], n_queries)


def _check_table(name: str, table: Tensor, columns: int) -> None:
    if table.ndim != 4 or table.dtype != torch.bool or 0 in table.shape or table.shape[3] != columns:
        raise ValueError(
            f"{name} must be boolean of shape (batch, heads, rows, {columns}), got {table.dtype} "
            f"{tuple(table.shape)}"
        )


def pattern_mask(
    index: SpanIndex, n_tokens: int, *, n_keys: int | None = None, causal: bool = True
) -> Bool[Tensor, "batch heads queries keys"]:
    """The dense mask of what `index` computes, True where a query attends a key: for tests and pictures.

    Parameters
    ----------
    index : SpanIndex
    n_tokens : int
        Queries; also keys, unless `n_keys` says otherwise.
    causal : bool
        Leave out keys after the query.

    Raises
    ------
    ValueError
        If the index does not fit (see `SpanIndex.check`).

    Notes
    -----
    Takes n_tokens x n_keys bytes per head.
    """
    check_integer("n_tokens", n_tokens)
    n_keys = n_tokens if n_keys is None else n_keys
    shape = [max(index.spans.shape[i], index.columns.shape[i]) for i in (0, 1)]
    index.check(shape[0], shape[1], n_tokens, n_keys)
    start, stop = index.spans.long().clamp(max=n_keys).unbind(-1)
    edges = torch.zeros(*start.shape[:3], n_keys + 1, dtype=torch.int32, device=start.device)
    one = torch.ones_like(start, dtype=torch.int32)
    edges.scatter_add_(-1, start, one).scatter_add_(-1, stop, -one)
    blocks = edges.cumsum(-1)[..., :-1] > 0
    columns = torch.where(_real(index), index.columns.long(), n_keys)
    single = torch.zeros(*columns.shape[:3], n_keys + 1, dtype=torch.bool, device=start.device)
    single = single.scatter_(-1, columns, True)[..., :-1].repeat_interleave(index.group, 2)
    mask = (blocks | single[:, :, : blocks.shape[2]]).repeat_interleave(index.block_size, 2)[:, :, :n_tokens]
    return mask.tril() if causal else mask


def _real(index: SpanIndex) -> Bool[Tensor, "batch heads groups columns"]:
    position = torch.arange(index.columns.shape[3], device=index.columns.device)
    return position < index.counts[..., None]


# Unions --------------------------------------------------------------------------------------------------


def with_forced(
    index: SpanIndex, forced: SpanIndex | None, n_keys: int, n_queries: int | None = None
) -> SpanIndex:
    """`index`, or its union with a region that is attended in any case."""
    return index if forced is None else union(index, forced, n_keys, n_queries=n_queries)


def union(first: SpanIndex, second: SpanIndex, n_keys: int, *, n_queries: int | None = None) -> SpanIndex:
    """Keys that either index attends, each once.

    Parameters
    ----------
    first, second : SpanIndex
        Over the same queries and keys; block sizes and groups may differ.
    n_keys : int
    n_queries : int, optional
        As many as keys if not given.

    Returns
    -------
    SpanIndex
        With blocks of the greatest common divisor of both block sizes, and columns block by block. Runs of
        fewer than 16 keys are columns, longer ones spans.

    Raises
    ------
    ValueError
        If `first` or `second` does not have the blocks of `n_queries` queries, or their batch or heads do not
        fit together.
    """
    n_queries = n_keys if n_queries is None else n_queries
    for name, index in (("first", first), ("second", second)):
        blocks = -(-n_queries // index.block_size)
        if index.spans.shape[2] != blocks:
            raise ValueError(
                f"{name} must have {blocks} blocks of {index.block_size} queries for {n_queries} queries, "
                f"got {index.spans.shape[2]}"
            )
    size = math.gcd(first.block_size, second.block_size)
    n_blocks = -(-n_queries // size)
    lists = [_intervals(index, size, n_blocks, n_keys) for index in (first, second)]
    shape = _broadcast(*(part.shape[:3] for part in lists))
    together = torch.cat([part.expand(*shape, -1, -1) for part in lists], 3)
    start, order = together[..., 0].sort(dim=-1, stable=True)
    return _from_intervals(start, together[..., 1].gather(-1, order), size, n_keys)


def _broadcast(*shapes: torch.Size) -> torch.Size:
    try:
        return torch.broadcast_shapes(*shapes)
    except RuntimeError:
        raise ValueError(f"second must have batch and heads of first or 1, got {shapes}") from None


def _intervals(
    index: SpanIndex, size: int, n_blocks: int, n_keys: int
) -> Int[Tensor, "batch heads blocks intervals 2"]:
    """Spans and columns of every `size` queries as intervals; empty ones are [n_keys, n_keys)."""
    spans = index.spans.long().repeat_interleave(index.block_size // size, 2)[:, :, :n_blocks]
    spans = torch.where(spans[..., 1:] > spans[..., :1], spans, n_keys)
    rows = index.group * index.block_size // size
    start = torch.where(_real(index), index.columns.long(), n_keys)
    start = start.repeat_interleave(rows, 2)[:, :, :n_blocks]
    columns = torch.stack([start, (start + 1).clamp(max=n_keys)], -1)
    shape = torch.broadcast_shapes(spans.shape[:3], columns.shape[:3])
    return torch.cat([spans.expand(*shape, -1, -1), columns.expand(*shape, -1, -1)], 3)


def _from_intervals(start: Tensor, stop: Tensor, size: int, n_keys: int) -> SpanIndex:
    """Join intervals sorted by their start, then part short runs (columns) from long ones (spans)."""
    real = start < n_keys
    reached = torch.where(real, stop, 0).cummax(-1).values
    begins = real & (start > torch.nn.functional.pad(reached[..., :-1], (1, 0), value=-1))
    goes_on = torch.nn.functional.pad((real & ~begins)[..., 1:], (0, 1))
    starts, stops = pack(start, begins, 0), pack(reached, real & ~goes_on, 0)
    long = stops - starts >= _SHORTEST_SPAN
    spans = torch.stack([pack(starts, long, 0), pack(stops, long, 0)], -1)
    key = starts[..., None] + torch.arange(_SHORTEST_SPAN - 1, device=start.device)
    single = (key < stops[..., None]) & ~long[..., None]
    columns = pack(key.flatten(-2), single.flatten(-2), 0)
    counts = single.flatten(-2).sum(-1, dtype=torch.int32)
    return SpanIndex(spans.int(), columns.int(), counts, size)
