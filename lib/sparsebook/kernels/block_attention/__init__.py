"""Sparse attention: blocks, spans and single columns of keys, vertical and slash lines, pages of a cache.

    mask = BlockMask.from_kv_blocks(counts, blocks, BLOCK_SIZE=128)       # or create_block_mask(...)
    out = block_sparse_attention(q, k, v, mask, causal=True)              # [batch, heads, tokens, dim]

    state = span_state(q, k, v, SpanIndex.from_spans(region, 128))        # a pass over a region ...
    out = stripe_attention(q, k, v, columns, counts, group_size=2048, state=state)  # ... continued

Queries are [batch, heads, queries, dim]; keys and values may have fewer heads, which divide the queries'
(grouped queries, nothing is repeated). float32, bfloat16 and float16 run compiled on a CPU and as Triton on a
GPU, with float32 softmax; float64 takes the dense reference. A row that attends nothing is 0, its lse -inf.
A NaN in a query stays in its row; one in a key or a value reaches every row that attends it and, where a
causal mask cuts through a tile, may reach other rows of the tile, as it does in dense attention.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from sparsebook.kernels.block_attention import operators  # noqa: F401 (registers the operators)
from sparsebook.kernels.block_attention.layout import (
    SpanIndex,
    lines_index,
    raise_first,
    read_block_mask,
)
from sparsebook.kernels.block_attention.reference import attention_reference, span_attention_reference
from sparsebook.kernels.block_attention.softmax_state import OnlineSoftmaxState

__all__ = [
    "OnlineSoftmaxState",
    "SpanIndex",
    "attention_reference",
    "block_sparse_attention",
    "paged_attention",
    "span_attention",
    "span_attention_reference",
    "span_state",
    "stripe_attention",
    "vertical_slash_attention",
    "vertical_slash_index",
]

Query = Float[Tensor, "batch heads queries dim"]
Key = Float[Tensor, "batch kv_heads keys dim"]
Value = Float[Tensor, "batch kv_heads keys value_dim"]
Output = Float[Tensor, "batch heads queries value_dim"]
_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def block_sparse_attention(
    q: Query,
    k: Key,
    v: Value,
    block_mask: BlockMask,
    *,
    causal: bool = False,
    scale: float | None = None,
    return_lse: bool = False,
) -> Output | tuple[Output, Float[Tensor, "batch heads queries"]]:
    """Attention of each block of queries over its list of blocks of keys.

    Parameters
    ----------
    q : [batch, heads, queries, dim]
    k, v : [batch, kv_heads, keys, dim], [batch, kv_heads, keys, value_dim]
    block_mask : torch.nn.attention.flex_attention.BlockMask
        Batch and heads equal q's or 1; any block sizes; lengths need not be multiples of them. Its `mask_mod`
        must keep whole blocks, or be plain causal attention.
    causal : bool
        Leave out keys after the query within the listed blocks (query i sees keys up to i).
    scale : float, optional
        Factor of the logits, 1 / sqrt(dim) if not given.
    return_lse : bool
        Also return the natural logarithm of each row's sum of exponentials, float32.

    Raises
    ------
    ValueError
        If shapes, types, heads or the mask do not fit together, its lists are out of range, unsorted or
        repeated, or its `mask_mod` masks inside blocks in another way.

    Notes
    -----
    The operator is ``sparsebook::block_attention``; gradients reach q, k and v through out and lse.
    """
    scale = _check_tensors(q, k, v, scale)
    if not isinstance(block_mask, BlockMask):
        raise ValueError(f"block_mask must be a BlockMask of FlexAttention, got {type(block_mask).__name__}")
    shape = (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    lists = read_block_mask(block_mask, shape, causal)
    _check_device("block_mask", lists.counts, q)
    out, lse, _ = torch.ops.sparsebook.block_attention(
        q, k, v, lists.counts, lists.blocks, lists.full_counts, lists.full_blocks,
        lists.block_q, lists.block_k, lists.causal, scale,
    )  # fmt: skip
    return (out, lse) if return_lse else out


def span_attention(
    q: Query,
    k: Key,
    v: Value,
    index: SpanIndex,
    *,
    causal: bool = True,
    query_offset: int = 0,
    scale: float | None = None,
) -> Output:
    """Attention over the spans and the single columns of `index`.

    Parameters
    ----------
    q, k, v, scale : as in `block_sparse_attention`
    index : SpanIndex
    causal : bool
        Leave out keys after the query.
    query_offset : int
        Position of the first query among the keys, for queries that continue a sequence.

    Raises
    ------
    ValueError
        If shapes, types or heads do not fit together, or the index does not fit (see `SpanIndex.check`).
    """
    return _spans(q, k, v, index, causal, query_offset, scale)[0]


def span_state(
    q: Query,
    k: Key,
    v: Value,
    index: SpanIndex,
    *,
    causal: bool = True,
    query_offset: int = 0,
    scale: float | None = None,
) -> OnlineSoftmaxState:
    """The softmax's state after the keys of `index`: a pass over regions that others can continue.

    Parameters and errors as in `span_attention`. `m` is each row's largest scaled logit in natural-log units;
    no gradient reaches it, but those of merged outputs are exact.
    """
    out, lse, maximum = _spans(q, k, v, index, causal, query_offset, scale)
    l = torch.exp(lse - torch.where(maximum == -torch.inf, 0.0, maximum))  # noqa: E741
    return OnlineSoftmaxState(maximum, l, out.to(l.dtype) * l[..., None])


def stripe_attention(
    q: Query,
    k: Key,
    v: Value,
    columns: Int[Tensor, "..."],
    counts: Int[Tensor, "..."],
    *,
    group_size: int,
    state: OnlineSoftmaxState | None = None,
    causal: bool = True,
    scale: float | None = None,
) -> Output:
    """Attention over gathered columns ("stripes"), one list for every `group_size` queries.

    Parameters
    ----------
    q, k, v, causal, scale : as in `span_attention`
    columns : int [batch or 1, heads or 1, groups, longest list]
        Keys of each group, ascending.
    counts : int [batch or 1, heads or 1, groups]
        Length of each list.
    group_size : int
        Queries in a group; the last group may be shorter.
    state : OnlineSoftmaxState, optional
        Keys already seen, none of them among the columns.

    Raises
    ------
    ValueError
        As `span_attention`; also if `state` has another shape than the output.
    """
    index = SpanIndex.from_columns(columns, counts, group_size)
    if state is None:
        return span_attention(q, k, v, index, causal=causal, scale=scale)
    return state.merge(span_state(q, k, v, index, causal=causal, scale=scale)).output(q.dtype)


def vertical_slash_index(
    vertical: Int[Tensor, "batch heads verticals"],
    slash: Int[Tensor, "batch heads slashes"],
    n_tokens: int,
    *,
    block_size: int = 64,
) -> SpanIndex:
    """Vertical lines (keys) and slash lines (offsets query - key) as spans and columns per query block.

    Parameters
    ----------
    vertical, slash : int [batch or 1, heads or 1, count]
        In any order, each line once.
    n_tokens : int
    block_size : int
        Queries that share one list. A slash is swept over the block: the computed set holds every pair
        (i, i - offset) and every vertical, and some keys more; its density is `SpanIndex.density`.

    Raises
    ------
    ValueError
        If a line is out of [0, n_tokens) or repeated.

    Notes
    -----
    The index of MInference (Jiang et al., 2024) with exact spans: they are not padded to whole blocks, so
    offset 0 need not be among the slashes.
    """
    if n_tokens < 1 or block_size < 1:
        raise ValueError(f"n_tokens and block_size must be at least 1, got {n_tokens} and {block_size}")
    faults = []
    for name, lines in (("vertical", vertical), ("slash", slash)):
        if lines.ndim != 3 or lines.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"{name} must be integers of shape (batch, heads, count), got {lines.shape}")
        ordered = lines.sort(-1).values
        faults += [
            (((lines < 0) | (lines >= n_tokens)).any(), f"{name} must lie in [0, {n_tokens})"),
            ((ordered[..., 1:] == ordered[..., :-1]).any(), f"{name} must not repeat a line"),
        ]
    raise_first(faults)
    if vertical.shape[:2] != slash.shape[:2]:
        shape = torch.broadcast_shapes(vertical.shape[:2], slash.shape[:2])
        vertical, slash = (x.expand(*shape, -1) for x in (vertical, slash))
    return lines_index(vertical, slash, n_tokens, block_size)


def vertical_slash_attention(
    q: Query,
    k: Key,
    v: Value,
    vertical: Int[Tensor, "..."],
    slash: Int[Tensor, "..."],
    *,
    block_size: int = 64,
    scale: float | None = None,
) -> tuple[Output, float]:
    """Causal attention along vertical and slash lines, and the density of what was computed.

    Parameters and errors as in `vertical_slash_index` and `span_attention`; queries and keys are the same
    tokens. Density is (query, key) pairs computed over those of causal attention, mean over batch and heads.
    """
    if q.shape[2] != k.shape[2]:
        raise ValueError(f"q and k must have the same number of tokens, got {q.shape[2]} and {k.shape[2]}")
    index = vertical_slash_index(vertical, slash, q.shape[2], block_size=block_size)
    out = span_attention(q, k, v, index, causal=True, scale=scale)
    return out, index.density(q.shape[2], k.shape[2], causal=True)


def paged_attention(
    q: Query,
    k: Key,
    v: Value,
    pages: Int[Tensor, "page_batch page_heads pages"],
    *,
    page_size: int,
    length: int | None = None,
    scale: float | None = None,
) -> Output:
    """Decoding: the newest queries over chosen pages of a cache.

    Parameters
    ----------
    q : [batch, heads, new, dim]
        The last `new` tokens of the cache, usually one.
    k, v : [batch, kv_heads, capacity, dim]
        The cache, whose first `length` tokens are filled, the new ones included.
    pages : int [batch or 1, heads or kv_heads or 1, count]
        Chosen pages per head or, shared, per KV head, in any order; -1 is no page.
    page_size : int
        Tokens in a page; the last page ends at `length`.
    length : int, optional
        Filled tokens, all of the cache if not given.

    Raises
    ------
    ValueError
        If shapes or heads do not fit, a page is out of range or repeated.

    Notes
    -----
    Queries that share pages are handled as one block, and a step reads nothing but the pages.
    """
    scale = _check_tensors(q, k, v, scale)
    length = k.shape[2] if length is None else length
    new = q.shape[2]
    if page_size < 1 or not new <= length <= k.shape[2]:
        raise ValueError(
            f"page_size must be at least 1 and length in [{new}, {k.shape[2]}], got {page_size} and {length}"
        )
    spans = _page_spans(pages, q, k, page_size, length)
    folded = new == 1 and spans.shape[1] in (1, k.shape[1])
    if not folded:
        if spans.shape[1] == k.shape[1] != q.shape[1]:
            spans = spans.repeat_interleave(q.shape[1] // k.shape[1], 1)
        index = SpanIndex.from_spans(spans, new)
        return _call(q, k, v, index, True, length - new, scale)[0]
    # The queries of a group stand side by side as the rows of one block: they attend the same pages.
    rows = q.shape[1] // k.shape[1]
    grouped = q.reshape(q.shape[0], k.shape[1], rows, q.shape[3])
    out = _call(grouped, k, v, SpanIndex.from_spans(spans, rows), False, 0, scale)[0]
    return out.view(q.shape[0], q.shape[1], 1, v.shape[3])


def _page_spans(pages: Tensor, q: Tensor, k: Tensor, page_size: int, length: int) -> Tensor:
    heads = {1, q.shape[1], k.shape[1]}
    if pages.ndim != 3 or pages.shape[0] not in (1, q.shape[0]) or pages.shape[1] not in heads:
        raise ValueError(
            f"pages must have shape (1 or {q.shape[0]}, one of {sorted(heads)}, count), "
            f"got {tuple(pages.shape)}"
        )
    n_pages = -(-length // page_size)
    ordered = pages.sort(-1).values
    repeated = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)
    raise_first(
        [
            (((pages < -1) | (pages >= n_pages)).any(), f"pages must lie in [0, {n_pages}) or be -1"),
            (repeated.any(), "pages must not repeat a page"),
        ]
    )
    start = ordered.clamp(min=0) * page_size
    stop = torch.where(ordered < 0, start, (start + page_size).clamp(max=length))
    return torch.stack([start, stop], -1)[:, :, None].int()


# Checks --------------------------------------------------------------------------------------------------


def _spans(
    q: Tensor, k: Tensor, v: Tensor, index: SpanIndex, causal: bool, query_offset: int, scale: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    scale = _check_tensors(q, k, v, scale)
    if query_offset < 0:
        raise ValueError(f"query_offset must be at least 0, got {query_offset}")
    _check_device("index", index.spans, q)
    index.check(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    return _call(q, k, v, index, causal, query_offset, scale)


def _call(
    q: Tensor, k: Tensor, v: Tensor, index: SpanIndex, causal: bool, query_offset: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.sparsebook.span_attention(
        q, k, v, index.spans, index.columns, index.counts, index.block_size, index.group, causal,
        query_offset, scale,
    )  # fmt: skip


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> float:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4 or 0 in x.shape:
            raise ValueError(
                f"{name} must have shape (batch, heads, tokens, dim), none of them 0, got {tuple(x.shape)}"
            )
        if x.dtype not in _TYPES or x.dtype != q.dtype or x.device != q.device:
            raise ValueError(
                f"{name} must be float32, bfloat16, float16 or float64 like q ({q.dtype} on {q.device}), "
                f"got {x.dtype} on {x.device}"
            )
    if k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3]:
        raise ValueError(f"k must have batch {q.shape[0]} and dim {q.shape[3]} like q, got {tuple(k.shape)}")
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(f"v must have leading axes {tuple(k.shape[:3])} like k, got {tuple(v.shape[:3])}")
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"q must have a multiple of k's {k.shape[1]} heads, got {q.shape[1]}")
    scale = q.shape[3] ** -0.5 if scale is None else float(scale)
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale}")
    return scale


def _check_device(name: str, index: Tensor, q: Tensor) -> None:
    if index.device != q.device:
        raise ValueError(f"{name} must be on {q.device} like q, got {index.device}")
