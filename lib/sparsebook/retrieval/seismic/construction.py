"""Blocks and summaries of the lists, compiled: what :mod:`.method` says of one list, for a range of lists.

Every list is independent of the others and draws from a stream of its own, so any split over threads builds
the same index. The kernels release the interpreter's lock; plain Python threads run them side by side.
"""

from typing import NamedTuple, no_type_check

import numpy as np
from numba import njit

HASH = 0x9E3779B1  # odd, so that multiplying by it permutes the integers modulo any power of two
LOW = np.uint64(0xFFFFFFFF)
BUCKET_ENTRIES = 8  # summary entries in a bucket of the directory, on average


class Collection(NamedTuple):
    """A CSR matrix as three arrays."""

    indptr: np.ndarray  # int64 [rows + 1]
    coords: np.ndarray  # int32 [nnz]
    values: np.ndarray  # float32 [nnz]


class Recipe(NamedTuple):
    """How lists become blocks and blocks become summaries."""

    centroid_fraction: float
    min_cluster_size: int
    block_size: int  # 0: shallow k-means; else chunks of that many documents
    summary_energy: float
    summary_length: int  # 0: alpha-mass; else that many largest coordinates
    quantize: bool
    key_bits: int
    seed: int


class Growing(NamedTuple):
    """Output of unknown length: capacity doubles when a list would not fit."""

    block_end: np.ndarray  # int64 [blocks]: end of the block's postings
    scale: np.ndarray  # float32 [blocks, 2]: minimum and step of the block's summary
    bucket: np.ndarray  # uint32 [buckets]: start of the bucket's entries within those of its list
    entry: np.ndarray  # uint32 [entries]: low bits of the permuted coordinate, block within the list, code
    value: np.ndarray  # float32 [entries]: value (none when quantised)


@njit(cache=True, nogil=True, inline="always")
@no_type_check
def _mix(state):
    """SplitMix64's finaliser: 64 well mixed bits of a counter."""
    z = np.uint64(state)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(cache=True, nogil=True)
@no_type_check
def draw_positions(n, count, seed):
    """``count`` of the numbers below ``n`` without replacement: the first steps of a Fisher-Yates shuffle."""
    deck = np.arange(n)
    state = np.uint64(seed)
    for i in range(count):
        state += np.uint64(0x9E3779B97F4A7C15)
        j = i + np.int64(_mix(state) % np.uint64(n - i))
        deck[i], deck[j] = deck[j], deck[i]
    return deck[:count].copy()


@njit(cache=True, nogil=True)
@no_type_check
def list_seed(seed, coordinate):
    """The seed of one list's stream."""
    return np.int64(_mix(np.uint64(seed) + _mix(np.uint64(coordinate) + np.uint64(1))) >> np.uint64(1))


@njit(cache=True, nogil=True)
@no_type_check
def centroid_count(n, fraction):
    """``max(1, floor(fraction * n))`` of the paper's blocking."""
    return max(1, int(fraction * n))


@njit(cache=True, nogil=True)
@no_type_check
def _invert(documents, ids, centroids, start, touched):
    """Inverted index of the centroids: postings of coordinate c are ``[start[c] - count, start[c])``."""
    used = 0
    total = 0
    for b in range(centroids.size):
        for e in range(documents.indptr[ids[centroids[b]]], documents.indptr[ids[centroids[b]] + 1]):
            c = documents.coords[e]
            if start[c] == 0:
                touched[used] = c
                used += 1
            start[c] += 1
            total += 1
    member = np.empty(total, dtype=np.int32)
    weight = np.empty(total, dtype=np.float32)
    offset = 0
    for t in range(used):
        length = start[touched[t]]
        start[touched[t]] = offset
        offset += length
    for b in range(centroids.size):
        for e in range(documents.indptr[ids[centroids[b]]], documents.indptr[ids[centroids[b]] + 1]):
            c = documents.coords[e]
            member[start[c]] = b
            weight[start[c]] = documents.values[e]
            start[c] += 1
    # Now start[c] is the end of c's postings, and that of the coordinate touched before it their start.
    return member, weight, used


@njit(cache=True, nogil=True)
@no_type_check
def _nearest(points, document, begin, end, member, weight, products, survives):
    """The surviving centroid with the largest inner product, the first among equals."""
    products[:] = 0.0
    for e in range(points.indptr[document], points.indptr[document + 1]):
        c = points.coords[e]
        v = points.values[e]
        for t in range(begin[c], end[c]):
            products[member[t]] += v * weight[t]
    best = -1
    for b in range(products.size):
        if survives[b] and (best < 0 or products[b] > products[best]):
            best = b
    return best


@njit(cache=True, nogil=True)
@no_type_check
def _cluster(documents, points, ids, beta, min_size, seed, begin, end, touched):
    """:func:`.method.shallow_kmeans` through an inverted index of the centroids; label and block count."""
    label = np.zeros(ids.size, dtype=np.int64)
    if beta == 1:
        return label, 1
    centroids = np.sort(draw_positions(ids.size, beta, seed))
    member, weight, used = _invert(documents, ids, centroids, end, touched)
    for t in range(used):
        begin[touched[t]] = 0 if t == 0 else end[touched[t - 1]]
    products = np.empty(beta, dtype=np.float32)
    survives = np.ones(beta, dtype=np.bool_)
    size = np.zeros(beta, dtype=np.int64)
    for i in range(ids.size):
        label[i] = _nearest(points, ids[i], begin, end, member, weight, products, survives)
        size[label[i]] += 1
    blocks = 0
    for b in range(beta):
        survives[b] = size[b] > min_size
        blocks += survives[b]
    for i in range(ids.size):
        if blocks > 0 and not survives[label[i]]:
            label[i] = _nearest(points, ids[i], begin, end, member, weight, products, survives)
    number = np.cumsum(survives) - 1
    for i in range(ids.size):
        label[i] = number[label[i]] if blocks > 0 else 0
    for t in range(used):
        begin[touched[t]] = 0
        end[touched[t]] = 0
    return label, max(1, blocks)


@njit(cache=True, nogil=True)
@no_type_check
def _group(ids, label, blocks):
    """Documents block by block, in list order within each, and the blocks' ends."""
    ends = np.zeros(blocks, dtype=np.int64)
    for i in range(ids.size):
        ends[label[i]] += 1
    ends = np.cumsum(ends)
    place = ends.copy()
    grouped = np.empty_like(ids)
    for i in range(ids.size - 1, -1, -1):
        place[label[i]] -= 1
        grouped[place[label[i]]] = ids[i]
    return grouped, ends


@njit(cache=True, nogil=True)
@no_type_check
def _weight_of(key):
    return np.uint32(key >> np.uint64(32)).view(np.float32)


@njit(cache=True, nogil=True)
@no_type_check
def _coordinate_of(key):
    return LOW - (key & LOW)


@njit(cache=True, nogil=True)
@no_type_check
def _keep_mass(keys, n, alpha):
    """Move the alpha-mass prefix of ``keys[:n]`` (in decreasing order) to the front; its length.

    A quickselect that steers by mass instead of rank: linear time where a sort would be n log n.
    """
    total = 0.0
    for i in range(n):
        total += _weight_of(keys[i])
    wanted = alpha * total
    low, high, kept = 0, n, 0.0
    while high - low > 12:
        a, b, c = keys[low], keys[(low + high) >> 1], keys[high - 1]
        pivot = max(min(a, b), min(max(a, b), c))
        mass = 0.0
        split = low
        for i in range(low, high):
            key = keys[i]
            if key > pivot:
                mass += _weight_of(key)
                keys[i] = keys[split]
                keys[split] = key
                split += 1
        if kept + mass >= wanted:
            high = split
        elif split == low:  # the pivot is the largest: it alone moves to the front
            for i in range(low, high):
                if keys[i] == pivot:
                    keys[i] = keys[low]
                    keys[low] = pivot
            kept += _weight_of(pivot)
            low += 1
            if kept >= wanted:
                return low
        else:
            kept += mass
            low = split
    for i in range(low + 1, high):
        key = keys[i]
        t = i - 1
        while t >= low and keys[t] < key:
            keys[t + 1] = keys[t]
            t -= 1
        keys[t + 1] = key
    while low < high and (kept < wanted or low == 0):
        kept += _weight_of(keys[low])
        low += 1
    return low


@njit(cache=True, nogil=True)
@no_type_check
def _maximum(documents, block, phi, keys):
    """Coordinate-wise maximum of the block's documents as keys ``value bits : ~coordinate``."""
    used = 0
    for i in range(block.size):
        for e in range(documents.indptr[block[i]], documents.indptr[block[i] + 1]):
            c = documents.coords[e]
            if phi[c] == 0.0:
                keys[used] = np.uint64(c)
                used += 1
            phi[c] = max(phi[c], documents.values[e])
    for t in range(used):
        c = keys[t]
        bits = np.float32(phi[c]).view(np.uint32)
        phi[c] = 0.0
        keys[t] = (np.uint64(bits) << np.uint64(32)) | (LOW - c)
    return used


@njit(cache=True, nogil=True)
@no_type_check
def _grown(array, needed):
    if needed <= array.shape[0]:
        return array
    larger = np.empty((max(needed, 2 * array.shape[0]), *array.shape[1:]), dtype=array.dtype)
    larger[: array.shape[0]] = array
    return larger


@njit(cache=True, nogil=True)
@no_type_check
def _summarise(documents, grouped, ends, recipe, phi, keys, found):
    """Summaries of a list's blocks, one after another; returns their ends, growing ``found`` as needed."""
    stops = np.empty(ends.size, dtype=np.int64)
    n = 0
    first = 0
    for b in range(ends.size):
        used = _maximum(documents, grouped[first : ends[b]], phi, keys)
        first = ends[b]
        if recipe.summary_length > 0:
            kept = min(used, recipe.summary_length)
            keys[:used] = np.sort(keys[:used])[::-1]
        else:
            kept = _keep_mass(keys, used, recipe.summary_energy)
        found = _grown(found, n + kept)
        found[n : n + kept] = keys[:kept]
        n += kept
        stops[b] = n
    return stops, found


@njit(cache=True, nogil=True, forceinline=True)
@no_type_check
def bits_for(count):
    """Bits that hold the numbers below ``count``."""
    bits = 0
    while (1 << bits) < count:
        bits += 1
    return bits


@njit(cache=True, nogil=True)
@no_type_check
def _directory_bits(entries, blocks, key_bits):
    """Bits of the bucket number: small buckets, and a rest of the key that fits an entry.

    An entry is 32 bits: the rest of the key, the block, and 8 bits of code.
    """
    bits = max(0, key_bits + bits_for(blocks) - 24)
    while bits < key_bits and (entries >> bits) > BUCKET_ENTRIES:
        bits += 1
    return bits


@njit(cache=True, nogil=True, inline="always")
@no_type_check
def permuted(coordinate, key_bits):
    """The coordinate's key: a bijection of the numbers below ``2 ** key_bits`` that spreads them evenly."""
    return (np.uint64(coordinate) * np.uint64(HASH)) & ((np.uint64(1) << np.uint64(key_bits)) - np.uint64(1))


@njit(cache=True, nogil=True)
@no_type_check
def _store(found, stops, recipe, out, blocks, buckets, entries):
    """Quantise a list's summaries and store them as an inverted index: a counting sort by bucket."""
    total = stops[-1]
    bits = _directory_bits(total, stops.size, recipe.key_bits)
    shift = np.uint64(recipe.key_bits - bits)
    start = out.bucket[buckets : buckets + (1 << bits) + 1]
    start[:] = 0
    block_bits = np.uint64(bits_for(stops.size))
    for t in range(total):
        start[permuted(_coordinate_of(found[t]), recipe.key_bits) >> shift] += np.uint32(1)
    running = np.uint32(0)
    for s in range(start.size):
        running += start[s]
        start[s] = running
    for b in range(stops.size - 1, -1, -1):
        first = stops[b - 1] if b > 0 else 0
        low = _weight_of(found[first])
        high = low
        for t in range(first, stops[b]):
            low = min(low, _weight_of(found[t]))
            high = max(high, _weight_of(found[t]))
        step = np.float32((high - low) / np.float32(255))
        out.scale[blocks + b, 0] = low
        out.scale[blocks + b, 1] = step
        for t in range(stops[b] - 1, first - 1, -1):
            key = permuted(_coordinate_of(found[t]), recipe.key_bits)
            start[key >> shift] -= np.uint32(1)
            at = entries + start[key >> shift]
            rest = key & ((np.uint64(1) << shift) - np.uint64(1))
            value = _weight_of(found[t])
            code = np.uint64(0)
            if not recipe.quantize:
                out.value[at] = value
            elif step > 0:
                code = np.uint64((value - low) / step + np.float32(0.5))
            out.entry[at] = ((rest << block_bits | np.uint64(b)) << np.uint64(8)) | code


@njit(cache=True, nogil=True)
@no_type_check
def _blocks_of(documents, points, ids, coordinate, recipe, begin, end, touched):
    if recipe.block_size > 0:
        blocks = max(1, ids.size // recipe.block_size)
        return np.minimum(np.arange(ids.size) // recipe.block_size, blocks - 1), blocks
    beta = centroid_count(ids.size, recipe.centroid_fraction)
    seed = list_seed(recipe.seed, coordinate)
    return _cluster(documents, points, ids, beta, recipe.min_cluster_size, seed, begin, end, touched)


@njit(cache=True, nogil=True)
@no_type_check
def build_lists(documents, points, list_ptr, list_ids, first, last, dim, recipe, postings, counts):
    """Blocks and summaries of the lists ``first <= j < last``.

    Writes the postings in block order to ``postings`` and (blocks, buckets, entries) of list j to
    ``counts[j]``; returns the rest. ``points`` are the documents as the assignment to centroids sees them.
    """
    phi = np.zeros(dim, dtype=np.float32)
    keys = np.empty(dim, dtype=np.uint64)
    begin = np.zeros(dim, dtype=np.int64)
    end = np.zeros(dim, dtype=np.int64)
    touched = np.empty(dim, dtype=np.int64)
    found = np.empty(1024, dtype=np.uint64)
    out = Growing(
        np.empty(64, np.int64),
        np.empty((64, 2), np.float32),
        np.empty(1024, np.uint32),
        np.empty(1024, np.uint32),
        np.empty(0 if recipe.quantize else 1024, np.float32),
    )
    blocks = buckets = entries = 0
    for j in range(first, last):
        ids = list_ids[list_ptr[j] : list_ptr[j + 1]]
        if ids.size == 0:
            continue
        label, n = _blocks_of(documents, points, ids, j, recipe, begin, end, touched)
        grouped, ends = _group(ids, label, n)
        postings[list_ptr[j] : list_ptr[j + 1]] = grouped
        stops, found = _summarise(documents, grouped, ends, recipe, phi, keys, found)
        total = stops[-1]
        size = (1 << _directory_bits(total, n, recipe.key_bits)) + 1
        out = Growing(
            _grown(out.block_end, blocks + n),
            _grown(out.scale, blocks + n),
            _grown(out.bucket, buckets + size),
            _grown(out.entry, entries + total),
            out.value if recipe.quantize else _grown(out.value, entries + total),
        )
        out.block_end[blocks : blocks + n] = ends + list_ptr[j]
        _store(found, stops, recipe, out, blocks, buckets, entries)
        counts[j, 0] = n
        counts[j, 1] = size
        counts[j, 2] = total
        blocks += n
        buckets += size
        entries += total
    return Growing(
        out.block_end[:blocks].copy(),
        out.scale[:blocks].copy(),
        out.bucket[:buckets].copy(),
        out.entry[:entries].copy(),
        out.value[: 0 if recipe.quantize else entries].copy(),
    )
