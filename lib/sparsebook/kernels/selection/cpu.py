"""Selection without sorting on a CPU: one pass appends what reaches a limit, and cuts its list when full.

All three rules work alike. A list holds candidates in ascending order of their position. What is not below
the list's limit is appended; a full list is cut to its best `m`, and the limit rises to just above the
smallest that was kept: whatever comes later and equals it would lose the tie. A good first limit makes cuts
rare:

- a row's is the k-th largest of the maxima of some hundred interleaved groups of the row, which at least k
  elements reach;
- the matrix's is read off a sample of it, a little lower than the sample says. If fewer than `m` reach it
  all the same, the pass is repeated from minus infinity;
- a column's is found as a row's, in the first quarter of the rows.

So every element is read once from memory (a row twice, the second time from the cache; a quarter of a column
twice), 64 of them are compared at a time, and only candidates, a fraction of a percent, are touched singly.
"""

import math
from typing import no_type_check

import numpy as np
import torch
from numba import njit
from torch import Tensor

from sparsebook.kernels.lanes import (
    BLOCK,
    count_bits,
    lowest_bit,
    raise_to,
    reaching,
    reaching_each,
    take_number,
)
from sparsebook.kernels.threads import run_threads, thread_count

FAULTLESS = -1
_CHUNK = 1 << 15  # elements of the matrix that a thread takes at a time
_SAMPLE = 1 << 15
_SLACK = BLOCK  # room of a list beyond twice what is kept of it
_RUN = 32  # elements that are ordered by insertion, before runs are merged
_EXACT, _ROUGH = 32, 18  # halvings of an interval of keys
_GROUPS = 64  # of rows, whose maxima give a column its first limit
_LEAST_WORK = 1 << 16  # elements that are worth a thread

# The m-th largest ----------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
@no_type_check
def order_key(value):
    """An integer in [0, 2^32) that is ordered as the float32 is; both zeros have the same."""
    bits = np.int64(np.float32(value + np.float32(0.0)).view(np.int32))
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)) + 0x80000000


@njit(cache=True, nogil=True)
@no_type_check
def key_value(key):
    """The float32 whose `order_key` this is."""
    bits = key - 0x80000000
    return np.int32(bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(np.float32)


@njit(cache=True, nogil=True)
@no_type_check
def _lowest_bits(n):
    return (np.uint64(1) << np.uint64(n)) - np.uint64(1)


@njit(cache=True, nogil=True)
@no_type_check
def count_reaching(values, first, n, limit):
    """How many of values[first:first + n] are not below the limit."""
    count, last = 0, first + n
    while first + BLOCK <= last:
        count += count_bits(reaching(values, first, limit))
        first += BLOCK
    if first < last and first + BLOCK <= values.size:  # more is read than the list holds, and masked
        return count + count_bits(reaching(values, first, limit) & _lowest_bits(last - first))
    for i in range(first, last):
        count += values[i] >= limit
    return count


@njit(cache=True, nogil=True)
@no_type_check
def mth_largest(values, first, n, m, halvings=_EXACT):
    """The m-th largest of values[first:first + n]: the interval of all keys is halved again and again.

    A key is reached by m values or it is not; 32 counts find the largest that is. After fewer halvings
    the result is a value that at least m reach, and that may lie a little low.
    """
    low, high = order_key(np.float32(-np.inf)), order_key(np.float32(np.inf)) + 1
    for _ in range(halvings):
        middle = (low + high) >> 1
        if count_reaching(values, first, n, key_value(middle)) >= m:
            low = middle
        else:
            high = middle
    return key_value(low)


# Lists ---------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
@no_type_check
def kept_values(values, first, n, m):
    """The smallest value that is kept when n are cut to m, the next float above it, and how many equal it."""
    smallest = mth_largest(values, first, n, m)
    above = np.nextafter(smallest, np.float32(np.inf))
    larger = count_reaching(values, first, n, above) if above > smallest else 0  # nothing is above infinity
    return smallest, above, m - larger


@njit(cache=True, nogil=True)
@no_type_check
def cut(values, positions, first, n, m):
    """Keep the m largest of a list of n > m > 0 in order, of equals the first; the limit from then on."""
    smallest, above, ties = kept_values(values, first, n, m)
    kept = first
    for i in range(first, first + n):
        if values[i] > smallest or (values[i] == smallest and ties > 0):
            ties -= values[i] == smallest
            values[kept], positions[kept] = values[i], positions[i]
            kept += 1
    return above


@njit(cache=True, nogil=True)
@no_type_check
def gather(x, first, last, limit, m, values, positions, n):
    """Append the elements of x[first:last] that are not below the limit to a list of n.

    The list is cut to m when it is full. Returns its length, the limit, and where a NaN was met or -1.
    """
    at = first
    while at < last:
        bits = np.uint64(0)
        if at + BLOCK <= last:
            bits = reaching(x, at, limit)
        else:
            for i in range(at, last):
                if not x[i] < limit:
                    bits |= np.uint64(1) << np.uint64(i - at)
        while bits != np.uint64(0):
            i = at + lowest_bit(bits)
            bits &= bits - np.uint64(1)
            value = x[i]
            if value != value:
                return n, limit, i
            if value < limit:  # the limit rose within this block
                continue
            if n == values.size:
                limit = cut(values, positions, 0, n, m)
                n = m
                if value < limit:
                    continue
            values[n], positions[n] = value, i
            n += 1
        at += BLOCK
    return n, limit, FAULTLESS


# Rows ----------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
@no_type_check
def row_limit(x, first, columns, k, maxima):
    """A value that at least k elements of a row reach: about the k-th largest of the maxima of its groups.

    Element i belongs to group i modulo the number of groups, `maxima.size`, a multiple of 64.
    """
    groups = maxima.size
    maxima[:] = -np.inf
    whole = columns - columns % groups
    for start in range(first, first + whole, groups):
        for group in range(0, groups, BLOCK):
            raise_to(maxima, group, x, start + group)
    return mth_largest(maxima, 0, groups, k, _ROUGH)


@njit(cache=True, nogil=True)
@no_type_check
def _insert(values, positions, first, last):
    """Order a short run in place, largest first, equals as they stood."""
    for i in range(first + 1, last):
        value, position, at = values[i], positions[i], i
        while at > first and values[at - 1] < value:
            values[at], positions[at] = values[at - 1], positions[at - 1]
            at -= 1
        values[at], positions[at] = value, position


@njit(cache=True, nogil=True)
@no_type_check
def _merge(values, positions, first, middle, last, spare):
    """Merge two ordered runs in place; the first is moved to the room from `spare` on before."""
    n = middle - first
    for i in range(n):
        values[spare + i], positions[spare + i] = values[first + i], positions[first + i]
    left, right = 0, middle
    for at in range(first, last):
        if left == n:
            return
        if right < last and values[right] > values[spare + left]:
            values[at], positions[at] = values[right], positions[right]
            right += 1
        else:
            values[at], positions[at] = values[spare + left], positions[spare + left]
            left += 1


@njit(cache=True, nogil=True)
@no_type_check
def _by_value(values, positions, k):
    """Order the first k elements, largest first, equals as they stood; there is room for as many behind."""
    for first in range(0, k, _RUN):
        _insert(values, positions, first, min(k, first + _RUN))
    width = _RUN
    while width < k:
        for first in range(0, k - width, 2 * width):
            _merge(values, positions, first, first + width, min(k, first + 2 * width), k)
        width *= 2


@njit(cache=True, nogil=True)
@no_type_check
def _work_rows(thread, x, rows, columns, k, groups, ordered, out_values, out_indices, counter, faults):
    room = 2 * k + _SLACK
    values, positions = np.empty(room, np.float32), np.empty(room, np.int64)
    maxima = np.empty(groups, np.float32)
    step = max(1, _CHUNK // columns)
    while True:
        start = take_number(counter) * step
        if start >= rows:
            return
        for row in range(start, min(rows, start + step)):
            first = row * columns
            limit = row_limit(x, first, columns, k, maxima) if groups else np.float32(-np.inf)
            n, limit, fault = gather(x, first, first + columns, limit, k, values, positions, 0)
            if fault != FAULTLESS:
                faults[thread] = fault
                return
            if n > k:
                cut(values, positions, 0, n, k)
            if ordered:
                _by_value(values, positions, k)
            for i in range(k):
                out_values[row * k + i], out_indices[row * k + i] = values[i], positions[i] - first


def row_topk_cpu(x: Tensor, k: int, ordered: bool) -> tuple[Tensor, Tensor]:
    """Arguments and result as the operator `sparsebook::row_topk`; any float but float64."""
    flat = _flat(x)
    rows, columns = x.shape
    values, indices = (x.new_empty((rows, k), dtype=kind) for kind in (torch.float32, torch.int64))
    groups = BLOCK * math.ceil(4 * k / BLOCK)
    if 4 * groups > columns:
        groups = 0
    threads = thread_count(x.numel(), _LEAST_WORK)
    faults = np.full(threads, FAULTLESS)
    run_threads(
        _work_rows, threads, flat, rows, columns, k, groups, ordered, values.view(-1).numpy(),
        indices.view(-1).numpy(), np.zeros(1, np.int64), faults,
    )  # fmt: skip
    _raise_nan(faults, columns)
    return values.to(x.dtype), indices


# Columns -------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
@no_type_check
def _first_limits(x, rows, columns, c, width, m, limits, maxima):
    """For each column of a tile a value that at least m[j] elements of its first rows reach.

    As `row_limit`, for 64 columns at a time, from a quarter of the rows: row i belongs to group i modulo 64.
    """
    for j in range(width):
        limits[j] = -np.inf if m[c + j] else np.inf
    if rows < 8 * _GROUPS:
        return
    maxima[:] = -np.inf
    for row in range(rows // 4 // _GROUPS * _GROUPS):
        group = row % _GROUPS * width
        for j in range(0, width - width % BLOCK, BLOCK):
            raise_to(maxima, group + j, x, row * columns + c + j)
    values = np.empty(_GROUPS, np.float32)
    for j in range(width - width % BLOCK):
        if 0 < m[c + j] <= _GROUPS:
            for group in range(_GROUPS):
                values[group] = maxima[group * width + j]
            limits[j] = mth_largest(values, 0, _GROUPS, m[c + j], _ROUGH)


@njit(cache=True, nogil=True)
@no_type_check
def _gather_columns(x, rows, columns, c, width, m, values, positions, starts, lengths, limits):
    """The lists of the columns c, ..., c + width - 1; where a NaN was met or -1."""
    for row in range(rows):
        first = row * columns + c
        for j in range(0, width, BLOCK):
            bits = np.uint64(0)
            if j + BLOCK <= width:
                bits = reaching_each(x, first + j, limits, j)
            else:
                for i in range(j, width):
                    if not x[first + i] < limits[i]:
                        bits |= np.uint64(1) << np.uint64(i - j)
            while bits != np.uint64(0):
                i = j + lowest_bit(bits)
                bits &= bits - np.uint64(1)
                value = x[first + i]
                if value != value:
                    return first + i
                if m[c + i] == 0:
                    continue
                start, n = starts[i], lengths[i]
                if start + n == starts[i + 1]:
                    n = m[c + i]
                    limits[i] = cut(values, positions, start, lengths[i], n)
                    lengths[i] = n
                    if value < limits[i]:
                        continue
                values[start + n], positions[start + n] = value, row
                lengths[i] = n + 1
    return FAULTLESS


@njit(cache=True, nogil=True)
@no_type_check
def _work_columns(thread, x, rows, columns, m, ends, width, out_values, out_rows, counter, faults):
    limits, lengths = np.empty(width, np.float32), np.empty(width, np.int64)
    starts, maxima = np.empty(width + 1, np.int64), np.empty(_GROUPS * width, np.float32)
    while True:
        c = take_number(counter) * width
        if c >= columns:
            return
        here = min(width, columns - c)
        starts[0] = 0
        for j in range(here):
            lengths[j] = 0
            starts[j + 1] = starts[j] + min(rows, 2 * m[c + j] + _SLACK)
        _first_limits(x, rows, columns, c, here, m, limits, maxima)
        values, positions = np.empty(starts[here], np.float32), np.empty(starts[here], np.int64)
        fault = _gather_columns(x, rows, columns, c, here, m, values, positions, starts, lengths, limits)
        if fault != FAULTLESS:
            faults[thread] = fault
            return
        for j in range(here):
            first, kept = starts[j], m[c + j]
            if lengths[j] > kept > 0:
                cut(values, positions, first, lengths[j], kept)
            at = ends[c + j] - kept
            for i in range(kept):
                out_values[at + i], out_rows[at + i] = values[first + i], positions[first + i]


@njit(cache=True, nogil=True)
@no_type_check
def _columns_to_rows(values, rows, m, offsets, out_values, out_rows, out_columns):
    """From lists by column to lists by row, by counting; `offsets` is filled, too."""
    offsets[:] = 0
    for i in range(rows.size):
        offsets[rows[i] + 1] += 1
    for row in range(offsets.size - 1):
        offsets[row + 1] += offsets[row]
    free = offsets[:-1].copy()
    i = 0
    for column in range(m.size):
        for _ in range(m[column]):
            at = free[rows[i]]
            free[rows[i]] += 1
            out_values[at], out_rows[at], out_columns[at] = values[i], rows[i], column
            i += 1


def column_topm_cpu(x: Tensor, m: Tensor, total: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Arguments and result as the operator `sparsebook::column_topm`; any float but float64."""
    flat, (rows, columns) = _flat(x), x.shape
    threads = thread_count(x.numel(), _LEAST_WORK)
    # A tile as wide as a page, but at least a few tiles for each thread.
    width = BLOCK * max(1, min(1024, columns // (4 * threads)) // BLOCK)
    wanted = m.to(torch.int64).contiguous().numpy()
    by_column = np.empty(total, np.float32), np.empty(total, np.int64)
    faults = np.full(threads, FAULTLESS)
    run_threads(
        _work_columns, threads, flat, rows, columns, wanted, np.cumsum(wanted), width, *by_column,
        np.zeros(1, np.int64), faults,
    )  # fmt: skip
    _raise_nan(faults, columns)
    found = _empty_result(x, total)
    _columns_to_rows(*by_column, wanted, found[3].numpy(), *(part.numpy() for part in found[:3]))
    return found[0].to(x.dtype), *found[1:]


# The whole matrix ----------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
@no_type_check
def sample(x, n):
    """n elements, one of each of n equal parts of x, at a place in it that a hash of its number gives."""
    out = np.empty(n, np.float32)
    part = x.size // n
    state = np.uint64(0x9E3779B97F4A7C15)
    for i in range(n):
        state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
        out[i] = x[i * part + np.int64((state >> np.uint64(33)) % np.uint64(part))]
    return out


def sampled_limit(x: np.ndarray, m: int, n: int = _SAMPLE) -> float:
    """A value that at least m of x reach, almost surely, and not many more.

    Of n sampled elements about n m / size are among the m largest; four standard deviations are added.
    """
    if x.size < 4 * n:
        return -math.inf
    share = m / x.size
    rank = math.ceil(n * share + 4 * math.sqrt(n * share * (1 - share)) + 4)
    if rank >= n:
        return -math.inf
    drawn = sample(x, n)
    limit = float(np.partition(drawn, n - rank)[n - rank])
    return -math.inf if math.isnan(limit) else limit


@njit(cache=True, nogil=True)
@no_type_check
def _work_matrix(thread, x, m, limit, values, positions, lengths, owner, counter, faults):
    n = 0
    while True:
        chunk = take_number(counter)
        first = chunk * _CHUNK
        if first >= x.size:
            lengths[thread] = n
            return
        owner[chunk] = thread
        last = min(x.size, first + _CHUNK)
        n, limit, fault = gather(x, first, last, limit, m, values[thread], positions[thread], n)
        if fault != FAULTLESS:
            faults[thread] = fault
            return


@njit(cache=True, nogil=True)
@no_type_check
def _put_matrix(
    values, positions, lengths, owner, smallest, ties, columns, out_values, out_rows, out_columns, offsets
):  # fmt: skip
    """Write the chosen entries in ascending order: chunk by chunk from the list of the thread that had it."""
    heads = np.zeros(lengths.size, np.int64)
    n, row, start = 0, 0, 0
    offsets[0] = 0
    for chunk in range(owner.size):
        t = owner[chunk]
        at = heads[t]
        while at < lengths[t] and positions[t, at] < (chunk + 1) * _CHUNK:
            value, position = values[t, at], positions[t, at]
            at += 1
            if value > smallest or (value == smallest and ties > 0):
                ties -= value == smallest
                while position >= start + columns:
                    row, start = row + 1, start + columns
                    offsets[row] = n
                out_values[n], out_rows[n], out_columns[n] = value, row, position - start
                n += 1
        heads[t] = at
    offsets[row + 1 :] = n


def global_topm_cpu(x: Tensor, m: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Arguments and result as the operator `sparsebook::global_topm`; any float but float64."""
    flat, columns = _flat(x), x.shape[1]
    lists = _candidates(flat, m, sampled_limit(flat, m), columns)
    if lists[2].sum() < m:
        lists = _candidates(flat, m, -math.inf, columns)
    joined = np.concatenate([values[:n] for values, n in zip(lists[0], lists[2], strict=True)])
    smallest, _, ties = kept_values(joined, 0, joined.size, m)
    found = _empty_result(x, m)
    _put_matrix(*lists, np.float32(smallest), ties, columns, *(part.numpy() for part in found))
    return found[0].to(x.dtype), *found[1:]


def _candidates(x: np.ndarray, m: int, limit: float, columns: int) -> tuple[np.ndarray, ...]:
    """Each thread's list: values, positions (ascending) and lengths; and which thread had which chunk.

    The m largest are among them, unless they are fewer than m: then the limit was too high.
    """
    threads = thread_count(x.size, _LEAST_WORK)
    room = min(x.size, 2 * m + _CHUNK)
    values, positions = np.empty((threads, room), np.float32), np.empty((threads, room), np.int64)
    lengths, faults = np.zeros(threads, np.int64), np.full(threads, FAULTLESS)
    owner = np.empty(-(-x.size // _CHUNK), np.int64)
    run_threads(
        _work_matrix, threads, x, m, np.float32(limit), values, positions, lengths, owner,
        np.zeros(1, np.int64), faults,
    )  # fmt: skip
    _raise_nan(faults, columns)
    return values, positions, lengths, owner


# What all share ------------------------------------------------------------------------------------------


def _flat(x: Tensor) -> np.ndarray:
    return x.detach().float().contiguous().resolve_neg().view(-1).numpy()


def _empty_result(x: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, columns = (x.new_empty(n, dtype=torch.int64) for _ in range(2))
    offsets = x.new_empty(x.shape[0] + 1, dtype=torch.int64)
    return x.new_empty(n, dtype=torch.float32), rows, columns, offsets


def _raise_nan(faults: np.ndarray, columns: int) -> None:
    if (faults >= 0).any():
        row, column = divmod(int(faults[faults >= 0].min()), columns)
        raise ValueError(f"x must not hold NaN, found one in row {row}, column {column}")
