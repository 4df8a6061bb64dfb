"""Attention over spans and columns of keys on a CPU: one compiled loop in the style of FlashAttention.

Queries lie across the lanes of the vector registers. A tile of 64 queries is transposed once and the keys
that it attends are listed; then, 128 keys at a time, logits [key, query] are products of a broadcast key
element with a vector of queries, the softmax's maximum, sum and rescaling run down the keys without any step
across lanes, and the output [feature, query] is a product of a broadcast value element with a vector of
weights. Because keys and values enter as single elements, the products find their rows through the list:
spans, short blocks, pages and scattered columns are one case, nothing is packed, gathered or repeated, and
each tile stays in the first cache levels. Scattered rows are asked for one step ahead. Only half types (and
rows whose length is no multiple of 8) are copied, a tile at a time, as float32. Memory beyond the output is a
tile and a list of keys for each thread.

Work items (a head and a tile of queries) are handed out by an atomic counter to `torch.get_num_threads()`
threads that run without the interpreter's lock, so rows of unequal length balance themselves.
"""

import math
from typing import NamedTuple, no_type_check

import numpy as np
import torch
from numba import njit, types
from numba.extending import overload
from torch import Tensor

from sparsebook.kernels.block_attention.halves import bits_of, read, write
from sparsebook.kernels.block_attention.vectors import (
    ROWS,
    WIDTH,
    logits_of_1,
    logits_of_2,
    prefetch,
    softmax_of_1,
    softmax_of_4,
    transpose_square,
    values_of_1,
    values_of_2,
)
from sparsebook.kernels.lanes import take_number
from sparsebook.kernels.threads import run_threads, thread_count

QUERY_TILE = 64
KEY_TILE = 128
_PAIR = 2 * WIDTH
_LOG2E = math.log2(math.e)


class Shape(NamedTuple):
    """Sizes of a call."""

    batch: int
    heads: int
    kv_heads: int
    n_queries: int
    n_keys: int
    dim: int
    value_dim: int


class Tile(NamedTuple):
    """A thread's memory for one tile of queries, flat; the queries are the last axis, `QUERY_TILE` long."""

    queries: np.ndarray  # [dim, queries], scaled
    logits: np.ndarray  # [KEY_TILE, queries], then weights
    sums: np.ndarray  # [value_dim, queries]
    maximum: np.ndarray  # [queries]
    total: np.ndarray  # [queries]
    shrink: np.ndarray  # [queries]
    attended: np.ndarray  # [n_keys] the keys attended by any of the queries
    order: np.ndarray  # [KEY_TILE] 0, 1, 2, ...
    keys: np.ndarray  # [KEY_TILE, dim] copies, where the product cannot read the keys in place
    values: np.ndarray  # [KEY_TILE, value_dim] the same of values
    rows: np.ndarray  # [QUERY_TILE, dim or value_dim] before and after transposition


@njit(cache=True, nogil=True)
@no_type_check
def _whole(n):
    """The next multiple of the rows that a product takes at once."""
    return (n + ROWS - 1) // ROWS * ROWS


@njit(cache=True, nogil=True)
@no_type_check
def _floats(n):
    """An array that begins with a cache line: a vector across two lines takes two loads."""
    line = 64
    room = np.empty(n + line // 4, np.float32)
    begin = -room.ctypes.data % line // 4
    return room[begin : begin + n]


@njit(cache=True, nogil=True)
@no_type_check
def _new_tile(shape):
    dim, value_dim = _whole(shape.dim), _whole(shape.value_dim)
    return Tile(
        _floats(dim * QUERY_TILE), _floats(KEY_TILE * QUERY_TILE), _floats(value_dim * QUERY_TILE),
        _floats(QUERY_TILE), _floats(QUERY_TILE), _floats(QUERY_TILE),
        np.empty(shape.n_keys + ROWS, np.int32), np.arange(KEY_TILE).astype(np.int32),
        _floats(KEY_TILE * dim), _floats(KEY_TILE * value_dim), _floats(QUERY_TILE * max(dim, value_dim)),
    )  # fmt: skip


# Into and out of the lanes -------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
@no_type_check
def _transpose(source, source_row, rows, columns, target, target_row):
    """target[j, i] = source[i, j] for i < rows, j < columns."""
    for i in range(0, rows, WIDTH):
        for j in range(0, columns, WIDTH):
            if i + WIDTH <= rows and j + WIDTH <= columns:
                at, to = i * source_row + j, j * target_row + i
                transpose_square(source, at, source_row, target, to, target_row)
                continue
            for n in range(i, min(i + WIDTH, rows)):
                for m in range(j, min(j + WIDTH, columns)):
                    target[m * target_row + n] = source[n * source_row + m]


@njit(cache=True, nogil=True)
@no_type_check
def _copy(source, factor, target):
    # A loop over whole slices: indices that might be negative would keep LLVM from making vectors.
    for i in range(source.shape[0]):
        write(target, i, read(source, i) * np.float32(factor))


@njit(cache=True, nogil=True)
@no_type_check
def _begin(q, row, rows, lanes, dim, scale, tile):
    _copy(q[row * dim : (row + rows) * dim], scale, tile.rows)
    tile.rows[rows * dim : lanes * dim] = 0.0
    _transpose(tile.rows, dim, lanes, dim, tile.queries, QUERY_TILE)
    tile.sums[:] = 0.0
    tile.maximum[:] = -np.inf
    tile.total[:] = 0.0


@njit(cache=True, nogil=True)
@no_type_check
def _finish(out, lse, largest, row, rows, lanes, value_dim, tile):
    for r in range(rows):
        # A row that attends nothing keeps zeros and -inf; NaN passes both comparisons.
        nothing = tile.total[r] == 0.0
        natural = tile.maximum[r] * np.float32(math.log(2.0))
        tile.shrink[r] = np.float32(0.0) if nothing else np.float32(1.0) / tile.total[r]
        lse[row + r] = -np.inf if nothing else natural + np.log(tile.total[r])
        largest[row + r] = np.nan if np.isnan(tile.total[r]) else natural
    _transpose(tile.sums, QUERY_TILE, value_dim, lanes, tile.rows, value_dim)
    for r in range(rows):
        to = (row + r) * value_dim
        _copy(tile.rows[r * value_dim : (r + 1) * value_dim], tile.shrink[r], out[to : to + value_dim])


# Rows of keys and of values ------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
@no_type_check
def _copy_rows(source, at, row, index, first, count, copy, order):
    wide = _whole(row)
    for j in range(count):
        begin = at + index[first + j] * row
        _copy(source[begin : begin + row], 1.0, copy[j * wide : j * wide + row])
    return copy, 0, wide, order, 0


@njit(cache=True, nogil=True)
@no_type_check
def _rows_in_place(source, at, row, index, first, count, copy, order):
    if row % ROWS:
        return _copy_rows(source, at, row, index, first, count, copy, order)
    return source, at, row, index, first


@no_type_check
def _find_rows(source, at, row, index, first, count, copy, order):
    """Rows index[first : first + count] as a product takes them: array, offset, row length, index, offset."""
    raise NotImplementedError


@overload(_find_rows)
@no_type_check
def _choose_rows(source, at, row, index, first, count, copy, order):
    find = _rows_in_place if source.dtype == types.float32 else _copy_rows
    return lambda source, at, row, index, first, count, copy, order: find(
        source, at, row, index, first, count, copy, order
    )


# The loop ------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True, inline="never")
@no_type_check
def _logits(keys, at, row, index, first, count, dim, lanes, tile):
    """Behind `count`, up to a multiple of `ROWS`, stand logits of whatever keys the index names there."""
    logits, queries = tile.logits, tile.queries
    for j in range(0, count, ROWS):
        for c in range(0, lanes - _PAIR + 1, _PAIR):
            cell = j * QUERY_TILE + c
            logits_of_2(logits, cell, keys, at, row, index, first + j, queries, c, QUERY_TILE, dim)
        if lanes % _PAIR:
            c = lanes - WIDTH
            cell = j * QUERY_TILE + c
            logits_of_1(logits, cell, keys, at, row, index, first + j, queries, c, QUERY_TILE, dim)


@njit(cache=True, nogil=True)
@no_type_check
def _weigh(count, lanes, tile):
    whole = lanes - lanes % (4 * WIDTH)
    for c in range(0, whole, 4 * WIDTH):
        softmax_of_4(tile.logits, c, QUERY_TILE, count, tile.maximum, tile.total, tile.shrink)
    for c in range(whole, lanes, WIDTH):
        softmax_of_1(tile.logits, c, QUERY_TILE, count, tile.maximum, tile.total, tile.shrink)


@njit(cache=True, nogil=True, inline="never")
@no_type_check
def _add_values(values, at, row, index, first, count, value_dim, lanes, tile):
    """The sums shrink to the new maximum and grow by the weighted values."""
    sums, weights, shrink = tile.sums, tile.logits, tile.shrink
    for c in range(0, lanes - _PAIR + 1, _PAIR):
        for d in range(0, value_dim, ROWS):
            cell = d * QUERY_TILE + c
            values_of_2(sums, cell, values, at + d, row, index, first, weights, shrink, c, QUERY_TILE, count)
    if lanes % _PAIR:
        c = lanes - WIDTH
        for d in range(0, value_dim, ROWS):
            cell = d * QUERY_TILE + c
            values_of_1(sums, cell, values, at + d, row, index, first, weights, shrink, c, QUERY_TILE, count)


@njit(cache=True, nogil=True)
@no_type_check
def _list_keys(spans, columns, limit, attended):
    """Write the keys below `limit` and return how many; the last is repeated, so whole `ROWS` can be read."""
    count, room = 0, attended.shape[0] - ROWS
    for s in range(spans.shape[0]):
        # A valid index lists no key twice and always has room; one that nobody checked stays in its bounds.
        start = max(0, spans[s, 0])
        for key in range(start, min(spans[s, 1], limit, start + room - count)):
            attended[count] = key
            count += 1
    for key in columns:
        if key >= limit or count == room:
            break
        attended[count] = key
        count += 1
    attended[count : count + ROWS] = attended[count - 1] if count else 0
    return count


@njit(cache=True, nogil=True)
@no_type_check
def _mask(first, count, lanes, first_query, tile):
    """-inf where a key comes after the query."""
    for j in range(count):
        for r in range(min(lanes, tile.attended[first + j] - first_query)):
            tile.logits[j * QUERY_TILE + r] = -np.inf


@njit(cache=True, nogil=True)
@no_type_check
def _prefetch_rows(source, at, row, index, first, count):
    """Ask for scattered rows before they are read; neighbours the processor fetches by itself."""
    if count <= 0 or index[first + count - 1] - index[first] == count - 1:
        return
    line = 64 // source.itemsize
    for j in range(first, first + count):
        for d in range(0, row, line):
            prefetch(source, at + index[j] * row + d)


@njit(cache=True, nogil=True)
@no_type_check
def _attend(k, v, head, n_attended, shape, lanes, causal, first_query, tile):
    """Fold the listed keys into the state of one tile of queries."""
    dim, value_dim = shape.dim, shape.value_dim
    at_k, at_v = head * shape.n_keys * dim, head * shape.n_keys * value_dim
    for first in range(0, n_attended, KEY_TILE):
        count = min(KEY_TILE, n_attended - first)
        keys, at, row, index, begin = _find_rows(
            k, at_k, dim, tile.attended, first, count, tile.keys, tile.order
        )  # fmt: skip
        _logits(keys, at, row, index, begin, count, dim, lanes, tile)
        _prefetch_rows(v, at_v, value_dim, tile.attended, first, count)
        if causal:
            _mask(first, count, lanes, first_query, tile)
        _weigh(count, lanes, tile)
        following = min(KEY_TILE, n_attended - first - count)  # keys of the next round
        _prefetch_rows(k, at_k, dim, tile.attended, first + count, following)
        values, at, row, index, begin = _find_rows(
            v, at_v, value_dim, tile.attended, first, count, tile.values, tile.order
        )  # fmt: skip
        _add_values(values, at, row, index, begin, count, value_dim, lanes, tile)


@njit(cache=True, nogil=True)
@no_type_check
def _work(
    q, k, v, out, lse, largest, shape, spans, columns, counts, block, group, causal, offset, scale, counter
):  # fmt: skip
    """Take tiles of queries until none is left."""
    tile = _new_tile(shape)
    n_blocks = (shape.n_queries + block - 1) // block
    per_block = (block + QUERY_TILE - 1) // QUERY_TILE
    per_head = n_blocks * per_block
    while True:
        item = take_number(counter)
        if item >= shape.batch * shape.heads * per_head:
            break
        # The last block first: under a causal mask it is the longest.
        i = n_blocks - 1 - item % per_head // per_block
        first = i * block + item % per_block * QUERY_TILE
        rows = min(QUERY_TILE, min(shape.n_queries, (i + 1) * block) - first)
        if rows <= 0:
            continue
        b, h = item // per_head // shape.heads, item // per_head % shape.heads
        row = (b * shape.heads + h) * shape.n_queries + first
        head = b * shape.kv_heads + h // (shape.heads // shape.kv_heads)
        lanes = (rows + WIDTH - 1) // WIDTH * WIDTH
        mine = spans[min(b, spans.shape[0] - 1), min(h, spans.shape[1] - 1), i]
        cb, ch = min(b, columns.shape[0] - 1), min(h, columns.shape[1] - 1)
        chosen = columns[cb, ch, i // group][: counts[cb, ch, i // group]]
        limit = min(shape.n_keys, first + offset + rows) if causal else shape.n_keys
        n_attended = _list_keys(mine, chosen, limit, tile.attended)
        _begin(q, row, rows, lanes, shape.dim, scale, tile)
        _attend(k, v, head, n_attended, shape, lanes, causal, first + offset, tile)
        _finish(out, lse, largest, row, rows, lanes, shape.value_dim, tile)


def span_attention_cpu(
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments and result as the operator `sparsebook::span_attention`; any float but float64."""
    batch, heads, n_queries, dim = q.shape
    shape = Shape(batch, heads, k.shape[1], n_queries, k.shape[2], dim, v.shape[3])
    out = q.new_empty((batch, heads, n_queries, v.shape[3]))
    lse, largest = (q.new_empty((batch, heads, n_queries), dtype=torch.float32) for _ in range(2))
    inputs = [bits_of(x.detach().contiguous().resolve_neg()) for x in (q, k, v)]
    indices = [x.to(torch.int32).contiguous().numpy() for x in (spans, columns, counts)]
    arguments = (
        *inputs, bits_of(out), lse.view(-1).numpy(), largest.view(-1).numpy(), shape, *indices, block, group,
        causal, offset, np.float32(scale * _LOG2E), np.zeros(1, np.int64),
    )  # fmt: skip
    run_threads(lambda _: _work(*arguments), thread_count(batch * heads * n_queries, 16))
    return out, lse, largest
