"""The search, compiled: summaries of the opened lists, skipped blocks, exact scores of the rest.

Everything a query touches is laid out for the cache. A document is a run of *chunks*, each 32 coordinates
followed by their 32 float16 values, so that one address and one prefetch stream give all of it. The summaries
of a list are an inverted index in buckets of a few entries, found by a hashed coordinate.
"""

from typing import NamedTuple, no_type_check

import numpy as np
from numba import njit

from sparsebook.retrieval.seismic.construction import bits_for, permuted
from sparsebook.retrieval.seismic.lanes import fill_tables, has_lanes, prefetch, score_lanes

CHUNK = 32  # entries of a document that lie together
UNSCALE = np.float32(2.0**112)  # float16 bits shifted into a float32 are the value times 2 ** -112
COUNTS = ("documents", "chunks", "blocks_visited", "blocks_skipped", "postings", "summary_entries")


class Layout(NamedTuple):
    """The index as the search reads it."""

    rows: np.ndarray  # uint16 (uint32 above 65,536 dimensions) [chunks * 64]
    row_chunk: np.ndarray  # uint32 [documents + 1]: first chunk
    list_block: np.ndarray  # int64 [dim + 1]: first block
    block_posting: np.ndarray  # uint32 [blocks + 1]: first posting
    postings: np.ndarray  # uint32 [postings]: document ids, block by block
    scale: np.ndarray  # float32 [blocks, 2]: minimum and step of the summary
    list_bucket: np.ndarray  # int64 [dim + 1]
    list_entry: np.ndarray  # int64 [dim + 1]
    bucket: np.ndarray  # uint32 [buckets]
    entry: np.ndarray  # uint32 [entries]: rest of the key, block within the list, 8 bits of code
    value: np.ndarray  # float32 [entries] if summaries are not quantised, else none


class Scratch(NamedTuple):
    """One thread's working memory, clean between queries."""

    query: np.ndarray  # float32 [dim]: the query, dense
    seen: np.ndarray  # uint8 [documents]: the epoch in which a document was last scored
    epoch: np.ndarray  # uint8 [1]
    estimate: np.ndarray  # float32 [blocks of the longest list]
    order: np.ndarray  # uint64 [blocks of the longest list]
    heap: np.ndarray  # uint64 [k]
    tables: np.ndarray  # uint16 [MOST_GROUPS * GROUP_WORDS]: the query, hashed


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
@no_type_check
def _score_dense(rows, first, last, query):
    """Inner product of a document with the dense query, float32."""
    total = np.float32(0)
    for base in range(first * 64, last * 64, 64):
        for i in range(CHUNK):
            half = np.uint32(rows[base + CHUNK + i]) << np.uint32(13)
            total += np.uint32(half).view(np.float32) * query[rows[base + i]]
    return total


@njit(cache=True, nogil=True, forceinline=True)
@no_type_check
def _sink(heap, n, key):
    """Replace the root of a binary min-heap of n keys."""
    at = 0
    while True:
        child = 2 * at + 1
        if child >= n:
            break
        if child + 1 < n and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= key:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = key


@njit(cache=True, nogil=True, forceinline=True)
@no_type_check
def _rise(heap, n, key):
    """Append to a binary min-heap of n keys."""
    at = n
    while at > 0:
        parent = (at - 1) >> 1
        if heap[parent] <= key:
            break
        heap[at] = heap[parent]
        at = parent
    heap[at] = key


@njit(cache=True, nogil=True, forceinline=True)
@no_type_check
def _packed(score, document):
    """A key that orders by score, then by lower id; scores are not negative, so their bits order them."""
    low = np.uint64(0xFFFFFFFF) - np.uint64(document)
    return (np.uint64(np.float32(score).view(np.uint32)) << np.uint64(32)) | low


@njit(cache=True, nogil=True, forceinline=True)
@no_type_check
def _score_of(key):
    return np.uint32(key >> np.uint64(32)).view(np.float32)


@njit(cache=True, nogil=True)
@no_type_check
def _open_lists(layout, coords, values, query_cut, opened):
    """Positions of the query's heaviest terms that have a list, heaviest first; how many."""
    count = 0
    for _ in range(coords.size):
        best = -1
        for t in range(coords.size):
            if values[t] > 0 and layout.list_block[coords[t]] < layout.list_block[coords[t] + 1]:
                taken = False
                for i in range(count):
                    taken |= opened[i] == t
                if not taken and (best < 0 or values[t] > values[best]):
                    best = t
        if best < 0 or count == query_cut:
            break
        opened[count] = best
        count += 1
    return count


@njit(cache=True, nogil=True, forceinline=True)
@no_type_check
def _bucket_shift(layout, j, key_bits):
    return np.uint64(key_bits - bits_for(layout.list_bucket[j + 1] - layout.list_bucket[j] - 1))


@njit(cache=True, nogil=True, forceinline=True)
@no_type_check
def _fetch_directory(layout, j, coords, key_bits):
    """Ask for the directory of list j where the query's terms will look; the loads overlap."""
    shift = _bucket_shift(layout, j, key_bits)
    for t in range(coords.size):
        prefetch(layout.bucket, layout.list_bucket[j] + np.int64(permuted(coords[t], key_bits) >> shift))
    for b in range(layout.list_block[j], layout.list_block[j + 1], 8):
        prefetch(layout.scale, b)
    for b in range(layout.list_block[j], layout.list_block[j + 1], 16):
        prefetch(layout.block_posting, b)


@njit(cache=True, nogil=True, forceinline=True)
@no_type_check
def _fetch_entries(layout, j, coords, key_bits, span):
    """Ask for the summary entries of list j that the query's terms will read, and note where they are."""
    shift = _bucket_shift(layout, j, key_bits)
    for t in range(coords.size):
        at = layout.list_bucket[j] + np.int64(permuted(coords[t], key_bits) >> shift)
        first = layout.list_entry[j] + layout.bucket[at]
        last = layout.list_entry[j] + layout.bucket[at + 1]
        span[t, 0], span[t, 1] = first, last
        prefetch(layout.entry, first)
        prefetch(layout.entry, last - 1)


@njit(cache=True, nogil=True, forceinline=True)
@no_type_check
def _estimate(layout, j, coords, values, key_bits, estimate, span):
    """Summary scores of list j with the whole query: one small sparse product; entries touched."""
    first_block = layout.list_block[j]
    blocks = layout.list_block[j + 1] - first_block
    estimate[:blocks] = 0.0
    kept = (np.uint64(1) << _bucket_shift(layout, j, key_bits)) - np.uint64(1)
    block_bits = np.uint32(bits_for(blocks))
    low = (np.uint32(1) << block_bits) - np.uint32(1)
    quantised = layout.value.size == 0
    touched = 0
    for t in range(coords.size):
        rest = np.uint32(permuted(coords[t], key_bits) & kept)
        touched += span[t, 1] - span[t, 0]
        for e in range(span[t, 0], span[t, 1]):
            entry = layout.entry[e]
            b = np.int64((entry >> np.uint32(8)) & low)
            if quantised:
                scale = first_block + b
                v = np.float32(entry & np.uint32(255)) * layout.scale[scale, 1] + layout.scale[scale, 0]
            else:
                v = layout.value[e]
            same = (entry >> np.uint32(8)) >> block_bits == rest
            estimate[b] += (values[t] if same else np.float32(0)) * v  # no branch: most are not the same
    return touched


@njit(cache=True, nogil=True, forceinline=True)
@no_type_check
def _fetch_block(layout, at, scratch):
    """Ask for the documents of block ``at`` that were not scored yet."""
    for p in range(np.int64(layout.block_posting[at]), np.int64(layout.block_posting[at + 1])):
        document = layout.postings[p]
        if scratch.seen[document] != scratch.epoch[0]:
            for c in range(np.int64(layout.row_chunk[document]), np.int64(layout.row_chunk[document + 1])):
                prefetch(layout.rows, c * 64)
                prefetch(layout.rows, c * 64 + CHUNK)


@njit(cache=True, nogil=True, forceinline=True)
@no_type_check
def _scan_block(layout, at, scratch, groups, k, found, counts):
    """Score the documents of block ``at`` that were not seen before and keep the best; heap size after it."""
    epoch = scratch.epoch[0]
    for p in range(np.int64(layout.block_posting[at]), np.int64(layout.block_posting[at + 1])):
        counts[4] += 1
        document = layout.postings[p]
        if scratch.seen[document] == epoch:
            continue
        scratch.seen[document] = epoch
        first = np.int64(layout.row_chunk[document])
        last = np.int64(layout.row_chunk[document + 1])
        counts[0] += 1
        counts[1] += last - first
        if groups > 0:
            score = np.float32(0)
            for g in range(groups):
                score += score_lanes(layout.rows, first, last, scratch.tables, g)
        else:
            score = _score_dense(layout.rows, first, last, scratch.query)
        key = _packed(score, document)
        if found < k:
            _rise(scratch.heap, found, key)
            found += 1
        elif key > scratch.heap[0]:
            _sink(scratch.heap, k, key)
    counts[2] += 1
    return found


@njit(cache=True, nogil=True, forceinline=True)
@no_type_check
def _next_block(b, blocks, scratch, k, heap_factor, found):
    """The first block from ``b`` on that the k-th best score so far does not rule out."""
    if found == k:
        threshold = heap_factor * _score_of(scratch.heap[0])
        while b < blocks and scratch.estimate[b] < threshold:
            b += 1
    return b


@njit(cache=True, nogil=True, forceinline=True)
@no_type_check
def _scan_list(layout, j, scratch, groups, k, heap_factor, found, counts):
    """Visit the blocks of list j in the order they are stored.

    While one block is scored, the documents of the next one are on their way.
    """
    blocks = layout.list_block[j + 1] - layout.list_block[j]
    visited = counts[2]
    b = _next_block(0, blocks, scratch, k, heap_factor, found)
    while b < blocks:
        following = _next_block(b + 1, blocks, scratch, k, heap_factor, found)
        if following < blocks:
            _fetch_block(layout, layout.list_block[j] + following, scratch)
        found = _scan_block(layout, layout.list_block[j] + b, scratch, groups, k, found, counts)
        b = _next_block(following, blocks, scratch, k, heap_factor, found)
    counts[3] += blocks - (counts[2] - visited)
    return found


@njit(cache=True, nogil=True, forceinline=True)
@no_type_check
def _scan_sorted(layout, j, scratch, groups, k, heap_factor, found, counts):
    """Visit the blocks of list j by decreasing estimate; the first to be skipped ends the list."""
    blocks = layout.list_block[j + 1] - layout.list_block[j]
    order = scratch.order
    for b in range(blocks):  # a min-heap of the complement pops the largest estimate, the lower block first
        _rise(order, b, ~_packed(scratch.estimate[b], b))
    for n in range(blocks, 0, -1):
        b = np.int64(np.uint64(0xFFFFFFFF) - (~order[0] & np.uint64(0xFFFFFFFF)))
        if found == k and scratch.estimate[b] < heap_factor * _score_of(scratch.heap[0]):
            counts[3] += n
            break
        _sink(order, n - 1, order[n - 1])
        if n > 1:
            following = np.int64(np.uint64(0xFFFFFFFF) - (~order[0] & np.uint64(0xFFFFFFFF)))
            _fetch_block(layout, layout.list_block[j] + following, scratch)
        found = _scan_block(layout, layout.list_block[j] + b, scratch, groups, k, found, counts)
    return found


@njit(cache=True, nogil=True, forceinline=True)
@no_type_check
def _search_one(layout, coords, values, k, query_cut, heap_factor, sort_first, key_bits, scratch, counts):
    """Leave the best documents in the heap; how many there are."""
    if scratch.epoch[0] == 255:
        scratch.seen[:] = 0
        scratch.epoch[0] = 0
    scratch.epoch[0] += np.uint8(1)
    groups = 0
    if has_lanes(layout.rows):
        groups = fill_tables(scratch.tables, coords, values)
    if groups == 0:
        for t in range(coords.size):
            scratch.query[coords[t]] = values[t] * UNSCALE
    opened = np.empty(min(query_cut, coords.size), dtype=np.int64)
    found = 0
    lists = _open_lists(layout, coords, values, query_cut, opened)
    span = np.empty((2, coords.size, 2), dtype=np.int64)
    for i in range(lists):
        _fetch_directory(layout, coords[opened[i]], coords, key_bits)
    if lists > 0:
        _fetch_entries(layout, coords[opened[0]], coords, key_bits, span[0])
    for i in range(lists):
        j = coords[opened[i]]
        if i + 1 < lists:
            _fetch_entries(layout, coords[opened[i + 1]], coords, key_bits, span[(i + 1) & 1])
        counts[5] += _estimate(layout, j, coords, values, key_bits, scratch.estimate, span[i & 1])
        if sort_first and i == 0:
            found = _scan_sorted(layout, j, scratch, groups, k, heap_factor, found, counts)
        else:
            found = _scan_list(layout, j, scratch, groups, k, heap_factor, found, counts)
    if groups == 0:
        for t in range(coords.size):
            scratch.query[coords[t]] = 0.0
    return found


@njit(cache=True, nogil=True)
@no_type_check
def search_many(
    layout, indptr, coords, values, first, last, k, query_cut, heap_factor, sort_first, key_bits, scratch, out
):
    """Queries ``first <= i < last`` of a CSR matrix; ids, scores and statistics go to ``out``."""
    ids, scores, statistics = out
    heap = scratch.heap
    for i in range(first, last):
        begin, end = indptr[i], indptr[i + 1]
        counts = statistics[i]
        found = _search_one(
            layout, coords[begin:end], values[begin:end], k, query_cut, heap_factor, sort_first, key_bits,
            scratch, counts,
        )  # fmt: skip
        for place in range(found - 1, -1, -1):
            ids[i, place] = np.int64(np.uint64(0xFFFFFFFF) - (heap[0] & np.uint64(0xFFFFFFFF)))
            scores[i, place] = _score_of(heap[0])
            _sink(heap, place, heap[place])
