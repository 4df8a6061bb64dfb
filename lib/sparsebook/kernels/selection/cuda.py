"""Selection on a GPU, in Triton: the m-th largest by halving an interval of keys, then one pass that writes.

A row, or a column of the transposed matrix, is one program: 32 counts over it find the smallest kept value
(it is read from memory once, and from the caches after that), one more pass writes what is kept. The whole
matrix is cut down first: what reaches a limit read off a sample is listed, and the list taken as one row.
"""

import math
from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_WIDEST = 4096  # elements that a program holds at a time
_SAMPLE = 1 << 15


@triton.jit
def _key_value(key):
    """The float32 at a place in the order of all of them; key is from -2^31 to 2^31 - 1."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _count_reaching(row, n, limit, WIDE: tl.constexpr):
    count = tl.full([], 0, tl.int32)
    for start in range(0, n, WIDE):
        at = start + tl.arange(0, WIDE)
        x = tl.load(row + at, mask=at < n, other=float("-inf"))
        count += tl.sum(((x >= limit) & (at < n)).to(tl.int32))
    return count


@triton.jit
def _select_kernel(X, Counts, Starts, Values, Indices, n, WIDE: tl.constexpr):
    """Row i of X: its Counts[i] largest in ascending order of index, from Starts[i] on."""
    program = tl.program_id(0)
    wanted = tl.load(Counts + program)
    if wanted > 0:
        row = X + program.to(tl.int64) * n
        # From minus infinity, which all reach, to what none does.
        low = tl.full([], -2139095041, tl.int64)
        high = tl.full([], 2139095041, tl.int64)
        for _ in range(32):
            middle = (low + high) >> 1
            reached = _count_reaching(row, n, _key_value(middle), WIDE) >= wanted
            low = tl.where(reached, middle, low)
            high = tl.where(reached, high, middle)
        smallest = _key_value(low)
        above = _key_value(low + 1)  # above infinity a NaN, which nothing reaches
        ties = wanted - _count_reaching(row, n, above, WIDE)
        at_out = tl.load(Starts + program)
        for start in range(0, n, WIDE):
            at = start + tl.arange(0, WIDE)
            x = tl.load(row + at, mask=at < n, other=float("-inf"))
            tied = ((x == smallest) & (at < n)).to(tl.int32)
            first = (tied == 1) & (tl.cumsum(tied) <= ties)
            keep = (((x >= above) & (at < n)) | first).to(tl.int32)
            target = at_out + tl.cumsum(keep) - 1
            tl.store(Values + target, x, mask=keep == 1)
            tl.store(Indices + target, at.to(tl.int64), mask=keep == 1)
            ties -= tl.sum(first.to(tl.int32))
            at_out += tl.sum(keep)


@triton.jit
def _count_kernel(X, Counts, Nan, n, limit, WIDE: tl.constexpr):
    """How many of each block of the matrix are not below the limit, and whether one is NaN."""
    program = tl.program_id(0)
    at = program.to(tl.int64) * WIDE + tl.arange(0, WIDE)
    x = tl.load(X + at, mask=at < n, other=float("-inf"))
    tl.store(Counts + program, tl.sum(((x >= limit) & (at < n)).to(tl.int64)))
    tl.store(Nan + program, tl.max((x != x).to(tl.int32)))


@triton.jit
def _list_kernel(X, Starts, Values, Positions, n, limit, WIDE: tl.constexpr):
    """Write what is not below the limit, in order."""
    program = tl.program_id(0)
    at = program.to(tl.int64) * WIDE + tl.arange(0, WIDE)
    x = tl.load(X + at, mask=at < n, other=float("-inf"))
    keep = ((x >= limit) & (at < n)).to(tl.int32)
    target = tl.load(Starts + program) + tl.cumsum(keep) - 1
    tl.store(Values + target, x, mask=keep == 1)
    tl.store(Positions + target, at, mask=keep == 1)


def row_topk_cuda(x: Tensor, k: int, ordered: bool) -> tuple[Tensor, Tensor]:
    """Arguments and result as the operator `sparsebook::row_topk`; any float but float64."""
    wide = _checked(x)
    counts = torch.full((x.shape[0],), k, dtype=torch.int32, device=x.device)
    values, indices = (part.view(-1, k) for part in _select(wide, counts, k * x.shape[0]))
    if ordered:
        values, order = values.sort(dim=1, descending=True, stable=True)
        indices = indices.gather(1, order)
    return values.to(x.dtype), indices


def column_topm_cuda(x: Tensor, m: Tensor, total: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Arguments and result as the operator `sparsebook::column_topm`; any float but float64."""
    values, rows = _select(_checked(x).T.contiguous(), m.to(torch.int32), total)
    columns = torch.repeat_interleave(torch.arange(x.shape[1], device=x.device), m)
    rows, order = rows.sort(stable=True)
    return values[order].to(x.dtype), rows, columns[order], _offsets(rows, x.shape[0])


def global_topm_cuda(x: Tensor, m: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Arguments and result as the operator `sparsebook::global_topm`; any float but float64."""
    flat = x.float().contiguous().view(-1)
    values, positions = _candidates(flat, _sampled_limit(flat, m))
    if len(values) < m:
        values, positions = _candidates(flat, -math.inf)
    counts = torch.full((1,), m, dtype=torch.int32, device=x.device)
    values, chosen = _select(values[None], counts, m)
    positions = positions[chosen]
    rows = positions // x.shape[1]
    return values.to(x.dtype), rows, positions - rows * x.shape[1], _offsets(rows, x.shape[0])


def _select(x: Tensor, counts: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """counts[i] elements of each row of a contiguous float32 matrix, row after row."""
    rows, n = x.shape
    starts = counts.cumsum(0, dtype=torch.int64) - counts
    values, indices = x.new_empty(total), x.new_empty(total, dtype=torch.int64)
    wide = min(_WIDEST, max(16, triton.next_power_of_2(n)))
    with _on(x):
        _select_kernel[(rows,)](x, counts, starts, values, indices, n, WIDE=wide)
    return values, indices


def _candidates(x: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    blocks = -(-len(x) // _WIDEST)
    counts, nan = (torch.empty(blocks, dtype=kind, device=x.device) for kind in (torch.int64, torch.int32))
    with _on(x):
        _count_kernel[(blocks,)](x, counts, nan, len(x), limit, WIDE=_WIDEST)
        if bool(nan.any()):
            raise ValueError("x must not hold NaN")
        ends = counts.cumsum(0)
        n = int(ends[-1])
        values, positions = x.new_empty(n), x.new_empty(n, dtype=torch.int64)
        _list_kernel[(blocks,)](x, ends - counts, values, positions, len(x), limit, WIDE=_WIDEST)
    return values, positions


def _sampled_limit(x: Tensor, m: int) -> float:
    """As `sparsebook.kernels.selection.cpu.sampled_limit`, with another hash for the places."""
    n, share = _SAMPLE, m / len(x)
    rank = math.ceil(n * share + 4 * math.sqrt(n * share * (1 - share)) + 4)
    if len(x) < 4 * n or rank >= n:
        return -math.inf
    part = len(x) // n
    number = torch.arange(n, device=x.device)
    place = number * part + (number * 2654435761 % 4294967291) % part
    limit = float(x[place].nan_to_num(nan=-math.inf).topk(rank).values[-1])
    return limit


def _checked(x: Tensor) -> Tensor:
    if bool(x.isnan().any()):
        raise ValueError("x must not hold NaN")
    return x.float().contiguous()


def _offsets(rows: Tensor, n_rows: int) -> Tensor:
    return torch.searchsorted(rows, torch.arange(n_rows + 1, device=rows.device))


def _on(tensor: Tensor) -> Any:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
