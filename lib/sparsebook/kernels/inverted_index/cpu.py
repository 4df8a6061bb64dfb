"""Compiled searches over an inverted index, one query at a time.

Documents are visited in ranges of `RANGE`, so that the accumulators of a range stay in the first-level cache
(8,192 floats are 32 KiB) and a posting's document fits in 16 bits. Postings of a term are sorted by document;
`segments[term, range]` says where a range begins. A result is kept in a min-heap of k entries whose root is
the worst one: the lowest score and, among equal scores, the highest document.
"""

from typing import no_type_check

import numpy as np
from numba import njit, prange

RANGE = 8_192
"""Documents whose accumulators are held at a time."""

_GROUP = 64
# A bound is a sum of float32 products in another order than the score: allow for its rounding.
_SLACK = np.float32(1.0 + 1e-5)


# The heap of results -------------------------------------------------------------------------------------


@njit(cache=True, inline="always")
@no_type_check
def _worse(score_a, id_a, score_b, id_b):
    return score_a < score_b or (score_a == score_b and id_a > id_b)


@njit(cache=True)
@no_type_check
def heap_push(scores, ids, size, score, document):
    """Insert into the heap of `size` entries (capacity `len(ids)`), dropping the worst; returns the size."""
    if size < len(ids):
        child = size
        while child > 0:
            parent = (child - 1) >> 1
            if not _worse(score, document, scores[parent], ids[parent]):
                break
            scores[child], ids[child] = scores[parent], ids[parent]
            child = parent
        scores[child], ids[child] = score, document
        return size + 1
    if _worse(score, document, scores[0], ids[0]):
        return size
    _sift_down(scores, ids, size, score, document)
    return size


@njit(cache=True)
@no_type_check
def _sift_down(scores, ids, size, score, document):
    """Put an entry at the root of a heap and let it sink."""
    parent = 0
    while True:
        child = 2 * parent + 1
        if child >= size:
            break
        if child + 1 < size and _worse(scores[child + 1], ids[child + 1], scores[child], ids[child]):
            child += 1
        if _worse(score, document, scores[child], ids[child]):
            break
        scores[parent], ids[parent] = scores[child], ids[child]
        parent = child
    scores[parent], ids[parent] = score, document


@njit(cache=True)
@no_type_check
def heap_sort(scores, ids, size):
    """Turn the heap into a list, best first; the unused places become (-inf, -1)."""
    for last in range(size - 1, 0, -1):
        score, document = scores[last], ids[last]
        scores[last], ids[last] = scores[0], ids[0]
        _sift_down(scores, ids, last, score, document)
    for i in range(size, len(ids)):
        scores[i], ids[i] = -np.inf, -1


@njit(cache=True)
@no_type_check
def _collect(sums, size, first, scores, ids, filled):
    """Offer every positive sum of a range of documents to the heap; returns its size."""
    limit = scores[0] if filled == len(ids) else np.float32(0.0)
    groups = size // _GROUP
    for g in range(groups + 1):
        low, high = g * _GROUP, min(size, (g + 1) * _GROUP)
        above = 0
        for i in range(low, high):
            above += sums[i] > limit
        if above == 0:
            continue
        for i in range(low, high):
            if sums[i] > limit:
                filled = heap_push(scores, ids, filled, sums[i], first + i)
                if filled == len(ids):
                    limit = scores[0]
    return filled


# Exact, term at a time -----------------------------------------------------------------------------------


@njit(cache=True)
@no_type_check
def _exact_one(segments, local, values, n_documents, terms, weights, sums, scores, ids):
    filled = 0
    for block in range(segments.shape[1] - 1):
        first = block * RANGE
        size = min(RANGE, n_documents - first)
        sums[:size] = 0.0
        for t in range(len(terms)):
            low, high = segments[terms[t], block], segments[terms[t], block + 1]
            weight = weights[t]
            documents, impacts = local[low:high], values[low:high]
            for i in range(len(documents)):
                sums[documents[i]] += weight * impacts[i]
        filled = _collect(sums, size, first, scores, ids, filled)
    heap_sort(scores, ids, filled)


@njit(cache=True)
@no_type_check
def exact_serial(segments, local, values, n_documents, crow, col, weights, scores, ids):
    """Exact search of a batch on one thread; writes `scores` and `ids`, both [queries, k]."""
    sums = np.empty(RANGE, np.float32)
    for q in range(len(crow) - 1):
        s = slice(crow[q], crow[q + 1])
        _exact_one(segments, local, values, n_documents, col[s], weights[s], sums, scores[q], ids[q])


@njit(cache=True, parallel=True)
@no_type_check
def exact_parallel(segments, local, values, n_documents, crow, col, weights, scores, ids):
    """`exact_serial` with the queries spread over Numba's threads."""
    for q in prange(len(crow) - 1):
        sums = np.empty(RANGE, np.float32)
        s = slice(crow[q], crow[q + 1])
        _exact_one(segments, local, values, n_documents, col[s], weights[s], sums, scores[q], ids[q])


# Exact, MaxScore -----------------------------------------------------------------------------------------

# A probe of a list (gallop, bisect, mispredict) costs about as much as reading this many of its postings.
_PROBE = 8


@njit(cache=True)
@no_type_check
def _add_list(sums, documents, values, low, high, first, weight):
    for p in range(low, high):
        sums[np.uint32(documents[p] - first)] += weight * values[p]


@njit(cache=True)
@no_type_check
def _survivors(sums, size, needed):
    count = 0
    for d in range(size):
        count += sums[d] > needed
    return count


@njit(cache=True)
@no_type_check
def _probe_rest(
    segments, documents, values, block, first, size, terms, weights, order, below, rest, sums, cursor,
    scores, ids, filled,
):  # fmt: skip
    """Complete the documents that the first `rest` terms could still lift; returns heap size and probes."""
    limit = scores[0] if filled == len(ids) else np.float32(0.0)
    for i in range(rest):
        cursor[i] = segments[terms[order[i]], block]
    probes = 0
    for g in range(0, size, _GROUP):
        high = min(size, g + _GROUP)
        if _survivors(sums[g:high], high - g, max(limit - below[rest], np.float32(0.0))) == 0:
            continue
        for d in range(g, high):
            score = sums[d]
            if score <= 0.0 or score + below[rest] <= limit:
                continue
            for i in range(rest - 1, -1, -1):
                if score + below[i + 1] <= limit:
                    break
                stop = segments[terms[order[i]], block + 1]
                p = _advance(documents, cursor[i], stop, first + d)
                cursor[i] = p
                probes += 1
                if p < stop and documents[p] == first + d:
                    score += weights[order[i]] * values[p]
            if score > limit:
                filled = heap_push(scores, ids, filled, score, first + d)
                if filled == len(ids):
                    limit = scores[0]
    return filled, probes


@njit(cache=True)
@no_type_check
def _maxscore_one(
    segments, documents, values, largest, n_documents, terms, weights, sums, cursor, scores, ids
):
    """Documents in ascending ranges; terms whose bounds cannot lift a document over the threshold are probed.

    Terms are sorted by their largest contribution; `below[i]` bounds what the first i together can add. In a
    range, lists are accumulated from the strongest on as long as that is cheaper than looking the surviving
    documents up one by one; a document survives while its sum and the bound of what is left pass the
    threshold.
    """
    bounds = np.empty(len(terms), np.float32)
    for t in range(len(terms)):
        bounds[t] = weights[t] * largest[terms[t]]
    order = np.argsort(bounds)
    below = np.zeros(len(terms) + 1, np.float32)
    for i in range(len(terms)):
        below[i + 1] = below[i] + bounds[order[i]] * _SLACK
    filled, read = 0, 0
    for block in range(segments.shape[1] - 1):
        first = block * RANGE
        size = min(RANGE, n_documents - first)
        limit = scores[0] if filled == len(ids) else np.float32(0.0)
        if below[len(terms)] <= limit:
            break
        sums[:size] = 0.0
        rest = len(terms)
        while rest > 0:
            term = terms[order[rest - 1]]
            low, high = segments[term, block], segments[term, block + 1]
            # Documents that no list so far has touched can still win: this list is essential.
            essential = below[rest] > limit
            if not essential and _PROBE * _survivors(sums, size, limit - below[rest]) < high - low:
                break
            _add_list(sums, documents, values, low, high, first, weights[order[rest - 1]])
            read += high - low
            rest -= 1
        if rest == 0:
            filled = _collect(sums, size, first, scores, ids, filled)
        else:
            filled, probes = _probe_rest(
                segments, documents, values, block, first, size, terms, weights, order, below, rest, sums,
                cursor, scores, ids, filled,
            )  # fmt: skip
            read += probes
    heap_sort(scores, ids, filled)
    return read


@njit(cache=True)
@no_type_check
def _advance(documents, position, stop, target):
    """First place from `position` on that holds `target` or more: galloping, then bisection."""
    if position >= stop or documents[position] >= target:
        return position
    step = 1
    while position + step < stop and documents[position + step] < target:
        position += step
        step *= 2
    low, high = position + 1, min(position + step, stop)
    while low < high:
        middle = (low + high) >> 1
        if documents[middle] < target:
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True)
@no_type_check
def maxscore_serial(segments, documents, values, largest, n_documents, crow, col, weights, scores, ids, read):
    """MaxScore for a batch on one thread; `read` [queries] counts postings read."""
    sums = np.empty(RANGE, np.float32)
    cursor = np.empty(np.max(np.diff(crow)) if len(crow) > 1 else 0, np.int64)
    for q in range(len(crow) - 1):
        s = slice(crow[q], crow[q + 1])
        read[q] = _maxscore_one(
            segments, documents, values, largest, n_documents, col[s], weights[s], sums, cursor, scores[q],
            ids[q],
        )  # fmt: skip


# Anytime, impact by impact -------------------------------------------------------------------------------


@njit(cache=True)
@no_type_check
def impact_segments(starts, values, step):
    """Group every term's postings by 8-bit impact, highest first.

    Returns the posting order, the first segment of each term, and for each segment its impact and its first
    posting. Postings within a segment keep ascending documents.
    """
    n_terms = len(starts) - 1
    order = np.empty(len(values), np.int64)
    term_segments = np.zeros(n_terms + 1, np.int64)
    counts = np.zeros(257, np.int64)
    total = 0
    for term in range(n_terms):
        counts[:] = 0
        for p in range(starts[term], starts[term + 1]):
            counts[_impact(values[p], step)] += 1
        for level in range(1, 256):
            total += counts[level] > 0
        term_segments[term + 1] = total
    impact, first = np.empty(total, np.int64), np.empty(total + 1, np.int64)
    segment = 0
    place = np.zeros(257, np.int64)
    for term in range(n_terms):
        counts[:] = 0
        for p in range(starts[term], starts[term + 1]):
            counts[_impact(values[p], step)] += 1
        at = starts[term]
        for level in range(255, 0, -1):
            place[level] = at
            if counts[level] > 0:
                impact[segment], first[segment] = level, at
                segment += 1
            at += counts[level]
        for p in range(starts[term], starts[term + 1]):
            level = _impact(values[p], step)
            order[place[level]] = p
            place[level] += 1
    first[total] = len(values)
    return order, term_segments, impact, first


@njit(cache=True, inline="always")
@no_type_check
def _impact(value, step):
    """1 to 255, so that a stored posting never has impact 0."""
    return max(1, min(255, int(np.ceil(value / step - 1e-6))))


# Segments are ordered by their gain in this many buckets, a counting sort, instead of one by one.
_BUCKETS = 1_024


@njit(cache=True)
@no_type_check
def _impact_one(
    term_segments,
    impact,
    first,
    documents,
    values,
    n_documents,
    terms,
    weights,
    budget,
    sums,
    dirty,
    scores,
    ids,
):
    """Segments of all terms by decreasing weight * impact until `budget` postings have been read."""
    top = np.float32(0.0)
    total = 0
    for t in range(len(terms)):
        low, high = term_segments[terms[t]], term_segments[terms[t] + 1]
        if low < high:
            top = max(top, weights[t] * impact[low])
            total += high - low
    scale = np.float32(_BUCKETS - 1) / top if top > 0.0 else np.float32(0.0)
    place = np.zeros(_BUCKETS + 1, np.int64)
    for t in range(len(terms)):
        for s in range(term_segments[terms[t]], term_segments[terms[t] + 1]):
            place[_BUCKETS - int(weights[t] * impact[s] * scale)] += 1
    for b in range(_BUCKETS):
        place[b + 1] += place[b]
    queue, owner = np.empty(total, np.int64), np.empty(total, np.int32)
    for t in range(len(terms)):
        for s in range(term_segments[terms[t]], term_segments[terms[t] + 1]):
            b = _BUCKETS - 1 - int(weights[t] * impact[s] * scale)
            queue[place[b]], owner[place[b]] = s, t
            place[b] += 1
    read = 0
    for i in range(total):
        if read >= budget:
            break
        low, high = first[queue[i]], first[queue[i] + 1]
        if high - low > budget - read:
            high = low + budget - read
        weight = weights[owner[i]]
        if weight == 0.0:
            break
        for p in range(low, high):
            d = np.uint32(documents[p])
            sums[d] += weight * values[p]
            dirty[d >> np.uint32(6)] = 1
        read += high - low
    filled = 0
    for g in range(len(dirty)):
        if dirty[g]:
            dirty[g] = 0
            low, high = g * _GROUP, min(n_documents, (g + 1) * _GROUP)
            filled = _collect(sums[low:high], high - low, low, scores, ids, filled)
            sums[low:high] = 0.0
    heap_sort(scores, ids, filled)
    return read


@njit(cache=True)
@no_type_check
def impact_serial(
    term_segments,
    impact,
    first,
    documents,
    values,
    n_documents,
    crow,
    col,
    weights,
    budget,
    scores,
    ids,
    read,
):
    """Anytime search of a batch on one thread; `read` [queries] counts postings read."""
    sums = np.zeros(n_documents, np.float32)
    dirty = np.zeros(n_documents // _GROUP + 1, np.uint8)
    for q in range(len(crow) - 1):
        s = slice(crow[q], crow[q + 1])
        read[q] = _impact_one(
            term_segments, impact, first, documents, values, n_documents, col[s], weights[s], budget, sums,
            dirty, scores[q], ids[q],
        )  # fmt: skip


# Building and checking -----------------------------------------------------------------------------------


@njit(cache=True)
@no_type_check
def count_segments(starts, documents, n_ranges):
    """Postings of every list in every range, [terms, ranges]."""
    counts = np.zeros((len(starts) - 1, n_ranges), np.int64)
    for term in range(len(starts) - 1):
        for p in range(starts[term], starts[term + 1]):
            counts[term, documents[p] // RANGE] += 1
    return counts


@njit(cache=True)
@no_type_check
def find_fault(crow, col, values, width, ordered):
    """0 if the CSR arrays are sound, else what is wrong first: 1 starts, 2 range, 3 values, 4 order."""
    if crow[0] != 0 or crow[-1] != len(col) or len(col) != len(values):
        return 1
    for row in range(len(crow) - 1):
        if crow[row + 1] < crow[row]:
            return 1
    for row in range(len(crow) - 1):
        previous = -1
        for p in range(crow[row], crow[row + 1]):
            if col[p] < 0 or col[p] >= width:
                return 2
            if not (values[p] >= 0.0 and values[p] < np.inf):
                return 3
            if ordered and col[p] <= previous:
                return 4
            previous = col[p]
    return 0
