"""Attention over blocks, spans and columns of keys on a GPU, in Triton.

One program computes a tile of queries of one head: it walks the lists of its block of queries and keeps the
softmax's maximum, sum and weighted values in registers. Query heads of a group read the same keys; nothing is
repeated. float32 products are made of three TF32 products each, which keeps float32's accuracy.
"""

import math
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOG2E = math.log2(math.e)


class Tiling(NamedTuple):
    """Rows of queries and keys that a program holds at a time, and how it is scheduled."""

    rows: int
    keys: int
    warps: int
    stages: int


def choose_tiling(dim: int, item_bytes: int, block_q: int, block_k: int, shared: int = 232_448) -> Tiling:
    """A tiling for heads of `dim` whose tiles fit into `shared` bytes of a multiprocessor."""
    rows = min(128, max(16, triton.next_power_of_2(block_q)))
    keys = min(128 if dim * item_bytes <= 128 else 64, max(16, triton.next_power_of_2(block_k)))
    while rows * dim * item_bytes > 32_768 and rows > 16:
        rows //= 2
    while keys * dim * item_bytes > 16_384 and keys > 16:
        keys //= 2
    stages = 3
    if item_bytes == 4:  # a product of three: more registers
        rows, keys, stages = min(rows, 64), min(keys, 32), 2
    # A third on top of the tiles themselves for what the compiler stages in between.
    while (rows + 2 * stages * keys) * dim * item_bytes * 4 // 3 > shared:
        if stages > 2:
            stages -= 1
        elif keys > 16:
            keys //= 2
        elif rows > 16:
            rows //= 2
        else:
            break
    return Tiling(rows, keys, 8 if rows >= 128 else 4, stages)


# Pieces of both kernels ----------------------------------------------------------------------------------


@triton.jit
def _load_rows(base, row, row_ok, DIM: tl.constexpr, WIDE: tl.constexpr, BOUNDED: tl.constexpr):
    """[rows, WIDE] of a matrix with DIM columns, zeros outside."""
    column = tl.arange(0, WIDE)
    pointers = base + row[:, None] * DIM + column[None, :]
    if DIM == WIDE:
        if BOUNDED:  # noqa: SIM108
            loaded = tl.load(pointers, mask=row_ok[:, None], other=0.0)
        else:
            loaded = tl.load(pointers)
    else:
        loaded = tl.load(pointers, mask=row_ok[:, None] & (column < DIM)[None, :], other=0.0)
    return loaded


@triton.jit
def _absorb(
    q, k_head, v_head, key, keep, key_ok, m, total, acc, scale,
    DIM: tl.constexpr, WIDE: tl.constexpr, VDIM: tl.constexpr, VWIDE: tl.constexpr,
    BOUNDED: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Fold one tile of keys into (m, total, acc); `keep` is [rows, keys], used where MASKED."""
    k = _load_rows(k_head, key, key_ok, DIM, WIDE, BOUNDED)
    logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    if MASKED:
        logits = tl.where(keep, logits, float("-inf"))
    largest = tl.maximum(m, tl.max(logits, 1))
    # A row that has seen only -inf: subtract 0, so that its weights are 0 and not NaN.
    base = tl.where(largest == float("-inf"), 0.0, largest)
    weights = tl.exp2(logits - base[:, None])
    shrink = tl.exp2(m - base)
    total = total * shrink + tl.sum(weights, 1)
    v = _load_rows(v_head, key, key_ok, VDIM, VWIDE, BOUNDED)
    acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
    return largest, total, acc


@triton.jit
def _store_result(
    Out, Lse, Largest, row, row_ok, m, total, acc, VDIM: tl.constexpr, VWIDE: tl.constexpr
):  # fmt: skip
    """Rows that attended nothing become 0 and -inf."""
    empty = total == 0.0
    out = acc / tl.where(empty, 1.0, total)[:, None]
    column = tl.arange(0, VWIDE)
    pointers = Out + row[:, None] * VDIM + column[None, :]
    tl.store(pointers, out.to(Out.dtype.element_ty), mask=row_ok[:, None] & (column < VDIM)[None, :])
    natural = m * 0.6931471805599453
    lse = tl.where(empty, float("-inf"), natural + tl.log(tl.where(empty, 1.0, total)))
    tl.store(Lse + row, lse, mask=row_ok)
    tl.store(Largest + row, tl.where(total != total, float("nan"), natural), mask=row_ok)


@triton.jit
def _count_below(list_, count, limit):
    """How many entries of an ascending list are smaller than `limit`."""
    low = count * 0
    high = count
    while low < high:
        middle = (low + high) // 2
        if tl.load(list_ + middle) < limit:
            low = middle + 1
        else:
            high = middle
    return low


# Blocks --------------------------------------------------------------------------------------------------


@triton.jit
def _walk_blocks(
    q, k_head, v_head, list_, first, last, query, n_keys, m, total, acc, scale,
    BLOCK_K: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr,
    VDIM: tl.constexpr, VWIDE: tl.constexpr, BOUNDED: tl.constexpr, CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Entries [first, last) of a list of blocks, tile by tile."""
    steps: tl.constexpr = (BLOCK_K + KEYS - 1) // KEYS
    for t in range(first * steps, last * steps):
        block = tl.load(list_ + t // steps)
        start = block * BLOCK_K + (t % steps) * KEYS
        key = start + tl.arange(0, KEYS)
        key_ok = key < tl.minimum(n_keys, (block + 1) * BLOCK_K)
        keep = key_ok[None, :]
        if CAUSAL:
            keep = keep & (key[None, :] <= query[:, None])
        m, total, acc = _absorb(
            q, k_head, v_head, key, keep, key_ok, m, total, acc, scale,
            DIM, WIDE, VDIM, VWIDE, BOUNDED, BOUNDED or CAUSAL, PRECISION,
        )  # fmt: skip
    return m, total, acc


@triton.jit
def _block_kernel(
    Q, K, V, Out, Lse, Largest, Counts, Blocks, FullCounts, FullBlocks,
    list_batch, list_head, list_length, full_batch, full_head, full_length,
    heads, repeats, n_queries, n_keys, per_block, scale,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    DIM: tl.constexpr, WIDE: tl.constexpr, VDIM: tl.constexpr, VWIDE: tl.constexpr,
    BOUNDED: tl.constexpr, CAUSAL: tl.constexpr, FULL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # The last tile first: under a causal mask it is the longest.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    block, part = tile // per_block, tile % per_block
    b, h = tl.program_id(1) // heads, tl.program_id(1) % heads
    first = block * BLOCK_Q + part * ROWS
    query = first + tl.arange(0, ROWS)
    end = tl.minimum(n_queries, (block + 1) * BLOCK_Q)
    row_ok = query < end
    row = tl.program_id(1).to(tl.int64) * n_queries + query
    head = (b * (heads // repeats) + h // repeats).to(tl.int64) * n_keys
    k_head, v_head = K + head * DIM, V + head * VDIM
    q = _load_rows(Q, row, row_ok, DIM, WIDE, True)
    m = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, VWIDE], tl.float32)
    for lists in tl.static_range(2 if FULL else 1):
        if lists == 0:
            at = b * list_batch + h * list_head + block
            count = tl.load(Counts + at)
            list_ = Blocks + at.to(tl.int64) * list_length
        else:
            at = b * full_batch + h * full_head + block
            count = tl.load(FullCounts + at)
            list_ = FullBlocks + at.to(tl.int64) * full_length
        free = count
        if CAUSAL:
            free = _count_below(list_, count, (first + 1) // BLOCK_K)
            count = _count_below(list_, count, (end - 1) // BLOCK_K + 1)
        m, total, acc = _walk_blocks(
            q, k_head, v_head, list_, 0, free, query, n_keys, m, total, acc, scale,
            BLOCK_K, KEYS, DIM, WIDE, VDIM, VWIDE, BOUNDED, False, PRECISION,
        )  # fmt: skip
        if CAUSAL:
            m, total, acc = _walk_blocks(
                q, k_head, v_head, list_, free, count, query, n_keys, m, total, acc, scale,
                BLOCK_K, KEYS, DIM, WIDE, VDIM, VWIDE, BOUNDED, True, PRECISION,
            )  # fmt: skip
    _store_result(Out, Lse, Largest, row, row_ok, m, total, acc, VDIM, VWIDE)


def block_attention_cuda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: tuple[Tensor, Tensor, Tensor, Tensor],
    block_q: int,
    block_k: int,
    causal: bool,
    scale: float,
    tiling: Tiling | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments and result as the operator `sparsebook::block_attention`; the lists must ascend."""
    counts, blocks, full_counts, full_blocks = (x.to(torch.int32).contiguous() for x in lists)
    tiling = tiling or _tiling(q, v, block_q, block_k)
    n_queries, n_keys = q.shape[2], k.shape[2]
    per_block = -(-block_q // tiling.rows)
    grid = (-(-n_queries // block_q) * per_block, q.shape[0] * q.shape[1])
    launch = _prepare(q, k, v, scale, tiling)
    with _on(q):
        _block_kernel[grid](
            *launch.tensors, counts, blocks, full_counts, full_blocks,
            *_steps(counts), blocks.shape[3], *_steps(full_counts), full_blocks.shape[3],
            *launch.sizes, per_block, launch.scale, BLOCK_Q=block_q, BLOCK_K=block_k,
            BOUNDED=n_keys % block_k != 0 or block_k % tiling.keys != 0, CAUSAL=causal,
            FULL=full_blocks.shape[3] > 0, **launch.options,
        )  # fmt: skip
    return launch.tensors[3], launch.tensors[4], launch.tensors[5]


# Spans and columns ---------------------------------------------------------------------------------------


@triton.jit
def _span_kernel(
    Q, K, V, Out, Lse, Largest, Spans, Columns, Counts,
    span_batch, span_head, n_spans, column_batch, column_head, column_length,
    heads, repeats, n_queries, n_keys, per_block, scale, block_q, group, offset,
    ROWS: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr,
    VDIM: tl.constexpr, VWIDE: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    block, part = tile // per_block, tile % per_block
    b, h = tl.program_id(1) // heads, tl.program_id(1) % heads
    query = block * block_q + part * ROWS + tl.arange(0, ROWS)
    end = tl.minimum(n_queries, (block + 1) * block_q)
    row_ok = query < end
    row = tl.program_id(1).to(tl.int64) * n_queries + query
    head = (b * (heads // repeats) + h // repeats).to(tl.int64) * n_keys
    k_head, v_head = K + head * DIM, V + head * VDIM
    q = _load_rows(Q, row, row_ok, DIM, WIDE, True)
    m = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, VWIDE], tl.float32)
    position = query + offset
    spans = Spans + (b * span_batch + h * span_head + block).to(tl.int64) * n_spans * 2
    for s in range(n_spans):
        start = tl.load(spans + 2 * s)
        stop = tl.load(spans + 2 * s + 1)
        if CAUSAL:
            stop = tl.minimum(stop, end + offset)
        for at in range(start, stop, KEYS):
            key = at + tl.arange(0, KEYS)
            key_ok = key < stop
            keep = key_ok[None, :]
            if CAUSAL:
                keep = keep & (key[None, :] <= position[:, None])
            m, total, acc = _absorb(
                q, k_head, v_head, key, keep, key_ok, m, total, acc, scale,
                DIM, WIDE, VDIM, VWIDE, True, True, PRECISION,
            )  # fmt: skip
    if column_length > 0:
        which = b * column_batch + h * column_head + block // group
        count = tl.load(Counts + which)
        columns = Columns + which.to(tl.int64) * column_length
        for at in range(0, count, KEYS):
            slot = at + tl.arange(0, KEYS)
            key_ok = slot < count
            key = tl.load(columns + slot, mask=key_ok, other=0)
            keep = key_ok[None, :]
            if CAUSAL:
                keep = keep & (key[None, :] <= position[:, None])
            m, total, acc = _absorb(
                q, k_head, v_head, key, keep, key_ok, m, total, acc, scale,
                DIM, WIDE, VDIM, VWIDE, True, True, PRECISION,
            )  # fmt: skip
    _store_result(Out, Lse, Largest, row, row_ok, m, total, acc, VDIM, VWIDE)


def span_attention_cuda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spans: Tensor,
    columns: Tensor,
    counts: Tensor,
    block: int,
    group: int,
    causal: bool,
    offset: int,
    scale: float,
    tiling: Tiling | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments and result as the operator `sparsebook::span_attention`."""
    spans, columns, counts = (x.to(torch.int32).contiguous() for x in (spans, columns, counts))
    tiling = tiling or _tiling(q, v, block, 128)
    per_block = -(-block // tiling.rows)
    grid = (-(-q.shape[2] // block) * per_block, q.shape[0] * q.shape[1])
    launch = _prepare(q, k, v, scale, tiling)
    with _on(q):
        _span_kernel[grid](
            *launch.tensors, spans, columns, counts, *_steps(spans),
            spans.shape[3], *_steps(counts), columns.shape[3], *launch.sizes, per_block, launch.scale,
            block, group, offset, CAUSAL=causal, **launch.options,
        )  # fmt: skip
    return launch.tensors[3], launch.tensors[4], launch.tensors[5]


# Launching -----------------------------------------------------------------------------------------------


class _Launch(NamedTuple):
    tensors: tuple[Tensor, ...]
    sizes: tuple[int, int, int, int]
    scale: float
    options: dict[str, Any]


def _tiling(q: Tensor, v: Tensor, block_q: int, block_k: int) -> Tiling:
    dim = triton.next_power_of_2(max(q.shape[3], v.shape[3]))
    if not q.is_cuda:
        return choose_tiling(dim, q.element_size(), block_q, block_k)
    return choose_tiling(dim, q.element_size(), block_q, block_k, _shared_memory(q.device.index or 0))


@lru_cache
def _shared_memory(device: int) -> int:
    """Bytes of shared memory that one program may ask for."""
    return int(triton.runtime.driver.active.utils.get_device_properties(device)["max_shared_mem"])


def _prepare(q: Tensor, k: Tensor, v: Tensor, scale: float, tiling: Tiling) -> _Launch:
    q, k, v = (x.contiguous() for x in (q, k, v))
    out = q.new_empty((*q.shape[:3], v.shape[3]))
    lse, largest = (q.new_empty(q.shape[:3], dtype=torch.float32) for _ in range(2))
    dim, value_dim = q.shape[3], v.shape[3]
    options = {
        "ROWS": tiling.rows, "KEYS": tiling.keys, "num_warps": tiling.warps, "num_stages": tiling.stages,
        "DIM": dim, "WIDE": max(16, triton.next_power_of_2(dim)),
        "VDIM": value_dim, "VWIDE": max(16, triton.next_power_of_2(value_dim)),
        "PRECISION": "tf32x3" if q.dtype == torch.float32 else "tf32",
    }  # fmt: skip
    sizes = (q.shape[1], q.shape[1] // k.shape[1], q.shape[2], k.shape[2])
    return _Launch((q, k, v, out, lse, largest), sizes, scale * _LOG2E, options)


def _steps(lists: Tensor) -> tuple[int, int]:
    """Steps along batch and heads of contiguous lists [batch, heads, rows, ...], in lists; 0 where shared."""
    batch, heads, rows = lists.shape[:3]
    return (heads * rows if batch > 1 else 0), (rows if heads > 1 else 0)


def _on(tensor: Tensor) -> Any:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
