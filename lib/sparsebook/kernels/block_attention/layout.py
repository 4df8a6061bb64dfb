"""Which keys a block of queries attends: spans and single columns, read from block masks or from offsets.

Everything that the kernels compute is a `SpanIndex`: per block of queries some contiguous spans of keys, per
group of blocks some single columns. A block mask is spans of one block each; stripes are columns; vertical
and slash lines become both.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, noop_mask


@dataclass(frozen=True)
class SpanIndex:
    """Keys attended by blocks of queries, as spans and as single columns.

    Attributes
    ----------
    spans : int [batch or 1, heads or 1, query blocks, spans, 2]
        Keys [start, stop) of every query block, ascending and without overlap; start = stop is an empty span.
    columns : int [batch or 1, heads or 1, groups, columns]
        Single keys of every group, ascending, outside the spans of the group's blocks.
    counts : int [batch or 1, heads or 1, groups]
        How many of `columns` are meant; what stands behind them is ignored.
    block_size : int
        Queries in a block.
    group : int
        Consecutive query blocks that share one list of columns.
    """

    spans: Int[Tensor, "batch heads blocks spans 2"]
    columns: Int[Tensor, "cbatch cheads groups columns"]
    counts: Int[Tensor, "cbatch cheads groups"]
    block_size: int
    group: int = 1

    @classmethod
    def from_spans(cls, spans: Int[Tensor, "batch heads blocks spans 2"], block_size: int) -> "SpanIndex":
        """Spans alone: a pass restricted to regions."""
        n_blocks = spans.shape[2]
        columns = spans.new_zeros((1, 1, n_blocks, 0))
        return cls(spans, columns, spans.new_zeros((1, 1, n_blocks)), block_size)

    @classmethod
    def from_columns(
        cls,
        columns: Int[Tensor, "batch heads groups columns"],
        counts: Int[Tensor, "batch heads groups"],
        group_size: int,
    ) -> "SpanIndex":
        """Columns alone, one list for every `group_size` queries."""
        return cls(columns.new_zeros((1, 1, columns.shape[2], 0, 2)), columns, counts, group_size)

    def check(self, batch: int, heads: int, n_queries: int, n_keys: int) -> None:
        """Refuse what the kernels cannot read or would count twice.

        Raises
        ------
        ValueError
            Naming the field: wrong number of blocks or groups, indices out of range, unsorted, repeated, or
            a column inside a span of its group.
        """
        if self.block_size < 1 or self.group < 1:
            raise ValueError(
                f"block_size and group must be at least 1, got {self.block_size} and {self.group}"
            )
        n_blocks = -(-n_queries // self.block_size)
        n_groups = -(-n_blocks // self.group)
        check_axes("spans", self.spans, batch, heads, n_blocks, "query blocks")
        check_axes("columns", self.columns, batch, heads, n_groups, "groups")
        check_axes("counts", self.counts, batch, heads, n_groups, "groups")
        if self.columns.shape[:2] != self.counts.shape[:2]:
            raise ValueError(
                f"counts must have the leading axes of columns, {tuple(self.columns.shape[:3])}, "
                f"got {tuple(self.counts.shape)}"
            )
        raise_first([*_span_faults(self.spans, n_keys), *_column_faults(self.columns, self.counts, n_keys)])
        if self.columns.shape[3] and self.spans.shape[3]:
            raise_first([self._double_fault()])

    def _double_fault(self) -> tuple[Tensor, str]:
        """Whether a column lies inside a span of its group: found by bisection."""
        padded = self._sorted_columns()
        grouped = _by_group(self.spans, self.group)
        batch, heads = (max(padded.shape[i], grouped.shape[i]) for i in (0, 1))
        padded = padded.expand(batch, heads, -1, -1).contiguous()
        edges = grouped.expand(batch, heads, -1, -1, -1).flatten(-2).contiguous()
        below = torch.searchsorted(padded, edges)
        inside = below[..., 1::2] > below[..., 0::2]
        real = edges[..., 1::2] > edges[..., 0::2]
        return (inside & real).any(), "columns must lie outside the spans of their group, or keys count twice"

    def _sorted_columns(self) -> Tensor:
        position = torch.arange(self.columns.shape[3], device=self.columns.device)
        largest = torch.iinfo(self.columns.dtype).max
        return torch.where(position < self.counts[..., None], self.columns, largest)

    def dense_mask(
        self, n_queries: int, n_keys: int, *, causal: bool, query_offset: int = 0
    ) -> Bool[Tensor, "batch heads queries keys"]:
        """The mask that the index stands for, True where a query attends a key."""
        key = torch.arange(n_keys, device=self.spans.device)
        start, stop = self.spans[..., 0, None], self.spans[..., 1, None]
        blocks = ((key >= start) & (key < stop)).any(-2)
        grouped = torch.zeros(*self.columns.shape[:3], n_keys + 1, dtype=torch.bool, device=key.device)
        grouped.scatter_(-1, self._sorted_columns().long().clamp(max=n_keys), True)
        grouped = grouped[..., :n_keys].repeat_interleave(self.group, 2)[:, :, : blocks.shape[2]]
        mask = (blocks | grouped).repeat_interleave(self.block_size, 2)[:, :, :n_queries]
        if causal:
            query = torch.arange(n_queries, device=key.device) + query_offset
            mask = mask & (key <= query[:, None])
        return mask

    def attended(
        self, n_queries: int, *, causal: bool, query_offset: int = 0
    ) -> Int[Tensor, "batch heads queries"]:
        """Keys that every query attends: what density counts, without a dense mask."""
        query = torch.arange(n_queries, device=self.spans.device)
        block = query // self.block_size
        last = query + query_offset + 1 if causal else torch.full_like(query, torch.iinfo(torch.int32).max)
        start, stop = (self.spans[..., i][:, :, block] for i in (0, 1))
        spans = (torch.minimum(stop, last[:, None]) - start).clamp(min=0).sum(-1)
        if self.columns.shape[3] == 0:
            return spans
        padded = self._sorted_columns()
        groups = padded.shape[2]
        # Bisect in the group's list: the axis of rows is cut into groups, padded with repeats of the last.
        rows = self.block_size * self.group
        limit = torch.cat([last, last[-1:].expand(groups * rows - n_queries)]).view(groups, rows)
        limit = limit.to(padded.dtype).expand(*padded.shape[:2], -1, -1).contiguous()
        below = torch.searchsorted(padded.contiguous(), limit)
        below = torch.minimum(below, self.counts[..., None].long())
        return spans + below.flatten(2)[..., :n_queries]

    def density(self, n_queries: int, n_keys: int, *, causal: bool, query_offset: int = 0) -> float:
        """Pairs (query, key) computed over those of dense attention with the same `causal`."""
        attended = self.attended(n_queries, causal=causal, query_offset=query_offset).double().mean()
        if not causal:
            return float(attended) / n_keys
        query = torch.arange(n_queries, dtype=torch.float64)
        return float(attended / (query + query_offset + 1).clamp(0, n_keys).mean().to(attended.device))


def _by_group(spans: Tensor, group: int) -> Tensor:
    """Spans [.., groups, group * spans, 2]: all spans of a group side by side, short groups padded."""
    batch, heads, blocks, count, _ = spans.shape
    short = -blocks % group
    padded = torch.nn.functional.pad(spans, (0, 0, 0, 0, 0, short))
    return padded.view(batch, heads, (blocks + short) // group, group * count, 2)


# Checks --------------------------------------------------------------------------------------------------


def check_axes(name: str, index: Tensor, batch: int, heads: int, third: int, what: str) -> None:
    """Batch and heads match or are 1; the third axis counts what it should; the type is an integer."""
    if index.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name} must be int32 or int64, got {index.dtype}")
    if index.shape[0] not in (1, batch) or index.shape[1] not in (1, heads) or index.shape[2] != third:
        raise ValueError(
            f"{name} must have leading axes (1 or {batch}, 1 or {heads}, {third} {what}), "
            f"got {tuple(index.shape)}"
        )


def raise_first(faults: list[tuple[Tensor, str]]) -> None:
    """Raise ValueError with the first message whose tensor is True: one wait for the device, not one each."""
    if torch.compiler.is_compiling() or not faults:
        return
    found = torch.stack([fault for fault, _ in faults]).tolist()
    for bad, (_, message) in zip(found, faults, strict=True):
        if bad:
            raise ValueError(message)


def _span_faults(spans: Tensor, n_keys: int) -> list[tuple[Tensor, str]]:
    if spans.shape[3] == 0:
        return []
    start, stop = spans.unbind(-1)
    real = stop > start
    outside = ((start < 0) | (stop > n_keys)) & real | (stop < start)
    reached = torch.where(real, stop, 0).cummax(-1).values
    overlap = (start[..., 1:] < reached[..., :-1]) & real[..., 1:]
    return [
        (outside.any(), f"spans must satisfy 0 <= start <= stop <= {n_keys}"),
        (overlap.any(), "spans of a query block must ascend without overlap"),
    ]


def _column_faults(columns: Tensor, counts: Tensor, n_keys: int) -> list[tuple[Tensor, str]]:
    faults = [
        (
            ((counts < 0) | (counts > columns.shape[3])).any(),
            f"counts must lie in [0, {columns.shape[3]}], the length of a list of columns",
        )
    ]
    if columns.shape[3]:
        faults += _list_faults("columns", columns, counts, n_keys)
    return faults


def _list_faults(name: str, lists: Tensor, counts: Tensor, limit: int) -> list[tuple[Tensor, str]]:
    real = torch.arange(lists.shape[-1], device=lists.device) < counts[..., None]
    outside = ((lists < 0) | (lists >= limit)) & real
    unsorted = (lists[..., 1:] <= lists[..., :-1]) & real[..., 1:]
    return [
        (outside.any(), f"{name} must lie in [0, {limit})"),
        (unsorted.any(), f"{name} must ascend without repetition"),
    ]


# Block masks ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BlockLists:
    """The index tensors of a checked `BlockMask`: blocks to be masked, and blocks attended wholly.

    Attributes
    ----------
    counts, blocks : int32 [batch or 1, heads or 1, query blocks], [.., key blocks]
    full_counts, full_blocks : the same for blocks attended wholly
    block_q, block_k : int
    causal : bool
        Whether keys after the query are to be left out.
    """

    counts: Tensor
    blocks: Tensor
    full_counts: Tensor
    full_blocks: Tensor
    block_q: int
    block_k: int
    causal: bool


def read_block_mask(mask: BlockMask, shape: tuple[int, int, int, int], causal: bool) -> BlockLists:
    """The lists of a `BlockMask` for attention of `shape` = (batch, heads, queries, keys).

    Raises
    ------
    ValueError
        If the mask has another shape, its lists are out of range, unsorted or repeated, or its `mask_mod`
        is neither a pattern of whole blocks nor plain causal attention.
    """
    batch, heads, n_queries, n_keys = shape
    block_q, block_k = mask.BLOCK_SIZE
    n_rows, n_columns = -(-n_queries // block_q), -(-n_keys // block_k)
    _check_lengths(mask, n_queries, n_keys)
    counts, blocks = _four_axes(mask.kv_num_blocks, mask.kv_indices)
    if mask.full_kv_num_blocks is None or mask.full_kv_indices is None:
        full_counts, full_blocks = torch.zeros_like(counts), blocks[..., :0]
    else:
        full_counts, full_blocks = _four_axes(mask.full_kv_num_blocks, mask.full_kv_indices)
    check_axes("block_mask.kv_indices", blocks, batch, heads, n_rows, "query blocks")
    check_axes("block_mask.full_kv_indices", full_blocks, batch, heads, n_rows, "query blocks")
    lists = BlockLists(counts, blocks, full_counts, full_blocks, block_q, block_k, causal)
    _check_lists(lists, n_columns)
    masked = mask.mask_mod is not noop_mask and not _whole_blocks(mask, lists, n_queries, n_keys)
    return lists if not masked else BlockLists(*_fields(lists), True)


def _fields(lists: BlockLists) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int]:
    return (
        lists.counts, lists.blocks, lists.full_counts, lists.full_blocks, lists.block_q, lists.block_k
    )  # fmt: skip


def _check_lengths(mask: BlockMask, n_queries: int, n_keys: int) -> None:
    """A mask made by `from_kv_blocks` states lengths rounded up to whole blocks: those are accepted."""
    for name, stated, actual, block in zip(
        ("queries", "keys"), mask.seq_lengths, (n_queries, n_keys), mask.BLOCK_SIZE, strict=True
    ):
        if stated != actual and stated != -(-actual // block) * block:
            raise ValueError(f"block_mask must cover {actual} {name}, got a mask over {stated}")


def _four_axes(counts: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
    while blocks.ndim < 4:
        counts, blocks = counts[None], blocks[None]
    return counts, blocks


def _check_lists(lists: BlockLists, n_columns: int) -> None:
    faults: list[tuple[Tensor, str]] = []
    for name, counts, blocks in (
        ("kv", lists.counts, lists.blocks),
        ("full_kv", lists.full_counts, lists.full_blocks),
    ):
        if counts.shape != blocks.shape[:3]:
            raise ValueError(
                f"block_mask.{name}_num_blocks must have the shape {tuple(blocks.shape[:3])}, "
                f"got {tuple(counts.shape)}"
            )
        width = blocks.shape[3]
        faults.append(
            (
                ((counts < 0) | (counts > width)).any(),
                f"block_mask.{name}_num_blocks must lie in [0, {width}]",
            )
        )
        if width:
            faults += _list_faults(f"block_mask.{name}_indices", blocks, counts, n_columns)
    raise_first(faults)
    if lists.full_blocks.shape[3] and lists.blocks.shape[3]:
        raise_first([_repeated_block(lists, n_columns)])


def _repeated_block(lists: BlockLists, n_columns: int) -> tuple[Tensor, str]:
    partly = _block_table(lists.counts, lists.blocks, n_columns)
    wholly = _block_table(lists.full_counts, lists.full_blocks, n_columns)
    return (partly & wholly).any(), "block_mask must not hold a block in both kv_indices and full_kv_indices"


def _block_table(counts: Tensor, blocks: Tensor, n_columns: int) -> Bool[Tensor, "batch heads rows columns"]:
    real = torch.arange(blocks.shape[3], device=blocks.device) < counts[..., None]
    table = torch.zeros(*blocks.shape[:3], n_columns + 1, dtype=torch.bool, device=blocks.device)
    return table.scatter_(-1, torch.where(real, blocks, n_columns).long(), True)[..., :n_columns]


_known: "weakref.WeakKeyDictionary[Callable, dict]" = weakref.WeakKeyDictionary()


def _whole_blocks(mask: BlockMask, lists: BlockLists, n_queries: int, n_keys: int) -> bool:
    """True if `mask_mod` keeps whole every block it is asked about, False if it is causal; else ValueError.

    FlexAttention asks `mask_mod` only inside the blocks of `kv_indices`; so do we, element by element. The
    answer is kept for the mask's own tensors, because methods reuse one mask for many layers.
    """
    tensors = (mask.kv_num_blocks, mask.kv_indices, mask.full_kv_num_blocks, mask.full_kv_indices)
    key = (n_queries, n_keys, *((id(x), x._version) for x in tensors if x is not None))
    kept = _known.setdefault(mask.mask_mod, {})
    if kept.get("key") != key:
        kept.update(key=key, tensors=tensors)  # held, so that an id cannot come to mean another tensor
        kept["whole"], kept["causal"] = _ask(mask, lists, n_queries, n_keys)
    if kept["whole"]:
        return True
    if kept["causal"]:
        return False
    raise ValueError(
        "block_mask.mask_mod must keep whole blocks or be plain causal (query >= key): "
        "masks inside a block are not supported"
    )


def _ask(mask: BlockMask, lists: BlockLists, n_queries: int, n_keys: int) -> tuple[bool, bool]:
    """Whether `mask_mod` is True all over the listed blocks, and whether it equals the causal mask there."""
    counts, blocks = lists.counts, lists.blocks
    real = torch.arange(blocks.shape[3], device=blocks.device) < counts[..., None]
    b, h, row, slot = real.nonzero(as_tuple=True)
    column = blocks[b, h, row, slot].long()
    whole = causal = True
    step = max(1, 2**22 // (lists.block_q * lists.block_k))
    for i in range(0, len(b), step):
        part = slice(i, i + step)
        query = row[part, None, None] * lists.block_q + torch.arange(lists.block_q, device=b.device)[:, None]
        key = column[part, None, None] * lists.block_k + torch.arange(lists.block_k, device=b.device)
        inside = (query < n_queries) & (key < n_keys)
        query, key = query.clamp(max=n_queries - 1), key.clamp(max=n_keys - 1)
        kept = mask.mask_mod(b[part, None, None], h[part, None, None], query, key) | ~inside
        whole = whole and bool(kept.all())
        causal = causal and bool((kept == ((query >= key) | ~inside)).all())
    return whole, causal and _full_below(lists)


def _full_below(lists: BlockLists) -> bool:
    """Whether every wholly attended block lies on or below the diagonal, so that causal cuts none of it."""
    real = torch.arange(lists.full_blocks.shape[3], device=lists.counts.device) < lists.full_counts[..., None]
    row = torch.arange(lists.full_blocks.shape[2], device=lists.counts.device)[:, None]
    last_key = (lists.full_blocks + 1) * lists.block_k - 1
    return bool(((last_key <= row * lists.block_q) | ~real).all())


def block_spans(
    lists: tuple[Tensor, Tensor, Tensor, Tensor], block_k: int, n_keys: int
) -> Int[Tensor, "batch heads rows spans 2"]:
    """(counts, blocks, full counts, full blocks) as one span per block; slots not counted are empty."""
    spans = []
    for counts, blocks in (lists[:2], lists[2:]):
        blocks = blocks[..., : int(counts.max())]  # masks are stored as wide as all blocks
        real = torch.arange(blocks.shape[3], device=blocks.device) < counts[..., None]
        start = torch.where(real, blocks * block_k, 0)
        stop = torch.where(real, (start + block_k).clamp(max=n_keys), 0)
        spans.append(torch.stack([start, stop], -1))
    if spans[0].shape[3] == 0 or spans[1].shape[3] == 0:
        return spans[0] if spans[1].shape[3] == 0 else spans[1]
    shape = torch.broadcast_shapes(*(part.shape[:3] for part in spans))
    return torch.cat([part.expand(*shape, -1, -1) for part in spans], 3)


# Vertical and slash lines --------------------------------------------------------------------------------


def lines_index(
    vertical: Int[Tensor, "batch heads verticals"],
    slash: Int[Tensor, "batch heads slashes"],
    n_tokens: int,
    block_size: int,
) -> SpanIndex:
    """Spans that the slashes sweep through each block of queries, and the verticals outside them.

    A slash with offset s covers the keys [first - s, last - s] of a block of queries [first, last], the union
    of its rows. Overlapping sweeps are joined; verticals inside a span are dropped, so no key counts twice.
    """
    n_blocks = -(-n_tokens // block_size)
    first = torch.arange(n_blocks, device=slash.device) * block_size
    last = (first + block_size).clamp(max=n_tokens)[:, None]
    offset = slash.long().sort(-1, descending=True).values[:, :, None]
    start, stop = (first[:, None] - offset).clamp(min=0), (last - offset).clamp(min=0)
    spans = _join(start, stop)
    column = vertical.long().sort(-1).values[:, :, None].expand(-1, -1, n_blocks, -1).contiguous()
    # Spans ascend: the last one that starts at or before a column is the one that might hold it.
    bounds = torch.where(spans[..., 1] > spans[..., 0], spans[..., 0], n_tokens)
    holder = torch.searchsorted(bounds.contiguous(), column, right=True) - 1
    if spans.shape[3]:
        end = spans[..., 1].gather(-1, holder.clamp(min=0))
        free = (holder < 0) | (column >= end)
    else:
        free = torch.ones_like(column, dtype=torch.bool)
    free &= column < last
    columns = torch.where(free, column, n_tokens).sort(-1).values
    counts = free.sum(-1)
    return SpanIndex(spans.int(), columns[..., : int(counts.max())].int(), counts.int(), block_size)


def _join(start: Tensor, stop: Tensor) -> Int[Tensor, "batch heads blocks spans 2"]:
    """Join ascending intervals that touch or overlap; the rest of the slots are empty spans."""
    real = stop > start
    before = torch.nn.functional.pad(stop[..., :-1], (1, 0), value=-1)
    begins = real & (start > before)
    # Intervals cut off at key 0 are empty and come first; whatever follows them begins anew.
    begins |= real & ~torch.nn.functional.pad(real[..., :-1], (1, 0), value=False)
    run = (begins.long().cumsum(-1) - 1).clamp(min=0)
    starts = torch.zeros_like(start).scatter_reduce_(-1, run, torch.where(begins, start, 0), "amax")
    stops = torch.zeros_like(stop).scatter_reduce_(-1, run, torch.where(real, stop, 0), "amax")
    used = int(begins.sum(-1).max()) if begins.numel() else 0
    return torch.stack([starts, stops], -1)[..., :used, :]
