"""Attention over spans and columns of keys on a CPU: one compiled loop in the style of FlashAttention.

Queries lie across the lanes of the vector registers. A tile of 64 queries is transposed once; then logits
[key, query] are products of a broadcast key element with a vector of queries, the softmax's maximum, sum and
rescaling run down the keys without any step across lanes, and the output [feature, query] is a product of a
broadcast value element with a vector of weights. Neither K nor V is transposed, packed or repeated, and each
tile stays in the first cache levels: memory beyond the output does not grow with the number of tokens.

The two products and the exponential are written in LLVM's vector type through Numba's `intrinsic`, because
its loop vectoriser keeps no tile of accumulators in registers. The width follows the machine (16 floats with
AVX-512, 8 with AVX, otherwise 4); LLVM splits what the machine does not have.

Work items (a head and a tile of queries) are handed out by an atomic counter to `torch.get_num_threads()`
threads that run without the interpreter's lock, so rows of unequal length balance themselves.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, no_type_check

import llvmlite.binding
import numba
import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj
from torch import Tensor

QUERY_TILE = 64
KEY_TILE = 128
_ROWS = 8  # accumulator rows of the large product; with two vectors a row they fill half the registers


def _vector_width() -> int:
    """Floats in a register of the processor that Numba compiles for."""
    features = getattr(numba.config, "CPU_FEATURES", None)
    if features is None:
        features = llvmlite.binding.get_host_cpu_features().flatten()
    return 16 if "+avx512f" in features else 8 if "+avx," in f"{features}," else 4


WIDTH = _vector_width()
_PAIR = 2 * WIDTH
_LOG2E = math.log2(math.e)

# Vectors in LLVM -----------------------------------------------------------------------------------------

_i64 = ir.IntType(64)
_VECTOR = ir.VectorType(ir.FloatType(), WIDTH)
_INTEGERS = ir.VectorType(ir.IntType(32), WIDTH)


def _floats(value: float) -> Any:
    return ir.Constant(_VECTOR, [float(np.float32(value))] * WIDTH)


def _integers(value: int) -> Any:
    return ir.Constant(_INTEGERS, [value] * WIDTH)


def _at(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    return builder.gep(arrayobj.make_array(array_type)(context, builder, array).data, [offset])


def _load(builder: Any, pointer: Any) -> Any:
    loaded = builder.load(builder.bitcast(pointer, _VECTOR.as_pointer()))
    loaded.align = 4
    return loaded


def _store(builder: Any, vector: Any, pointer: Any) -> None:
    builder.store(vector, builder.bitcast(pointer, _VECTOR.as_pointer()), align=4)


def _broadcast(builder: Any, scalar: Any) -> Any:
    empty = ir.Constant(_VECTOR, ir.Undefined)
    first = builder.insert_element(empty, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, empty, _integers(0))


def _multiply_add(builder: Any, x: Any, y: Any, z: Any) -> Any:
    # `fmuladd` and not `fma`: without the instruction it is a product and a sum, not a call per lane.
    signature = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    function = cgutils.get_or_insert_function(builder.module, signature, f"llvm.fmuladd.v{WIDTH}f32")
    return builder.call(function, [x, y, z])


# Coefficients of 2^r on [-1/2, 1/2], highest power first: ln(2)^n / n!.
_EXP2 = [math.log(2) ** n / math.factorial(n) for n in range(6, -1, -1)]
_ROUNDER = 1.5 * 2.0**23  # adding it rounds to an integer, found in the sum's low bits


def _exp2(builder: Any, x: Any) -> Any:
    """2^x for x <= 0: below 2^-126 exactly zero; NaN stays NaN."""
    low = builder.fcmp_ordered("<", x, _floats(-126.0))
    x = builder.select(low, _floats(-126.0), x)
    shifted = builder.fadd(x, _floats(_ROUNDER))
    rest = builder.fsub(x, builder.fsub(shifted, _floats(_ROUNDER)))
    power = _floats(_EXP2[0])
    for coefficient in _EXP2[1:]:
        power = _multiply_add(builder, power, rest, _floats(coefficient))
    exponent = builder.shl(builder.bitcast(shifted, _INTEGERS), _integers(23))
    scale = builder.bitcast(builder.add(exponent, _integers(127 << 23)), _VECTOR)
    return builder.select(low, _floats(0.0), builder.fmul(power, scale))


def _product(rows: int, vectors: int) -> Any:
    """The intrinsic out[r, lanes] (+)= sum_t a[r, t] * b[t, lanes] for `rows` r and `vectors` of lanes."""

    @intrinsic
    @no_type_check
    def tile(_context, out, at_out, out_row, a, at_a, a_row, a_step, b, at_b, b_row, steps, add):
        integer = types.int64
        signature = types.void(
            out, integer, integer, a, integer, integer, integer, b, integer, integer, integer, types.boolean
        )

        def generate(context, builder, signature, arguments):
            kinds = signature.args
            _, _, out_row, _, _, a_row, a_step, _, _, b_row, steps, add = arguments
            out, a, b = (_at(context, builder, kinds[i], arguments[i], arguments[i + 1]) for i in (0, 3, 7))
            cells = [
                builder.gep(out, [builder.add(builder.mul(out_row, _i64(r)), _i64(c * WIDTH))])
                for r in range(rows)
                for c in range(vectors)
            ]
            sums = [cgutils.alloca_once(builder, _VECTOR) for _ in cells]
            with builder.if_else(add) as (then, otherwise):
                with then:
                    for cell, total in zip(cells, sums, strict=True):
                        builder.store(_load(builder, cell), total)
                with otherwise:
                    for total in sums:
                        builder.store(_floats(0.0), total)
            with cgutils.for_range(builder, steps) as loop:
                row = builder.gep(b, [builder.mul(loop.index, b_row)])
                right = [_load(builder, builder.gep(row, [_i64(c * WIDTH)])) for c in range(vectors)]
                column = builder.gep(a, [builder.mul(loop.index, a_step)])
                for r in range(rows):
                    left = builder.load(builder.gep(column, [builder.mul(a_row, _i64(r))]))
                    left = _broadcast(builder, left)
                    for c in range(vectors):
                        total = sums[r * vectors + c]
                        builder.store(_multiply_add(builder, left, right[c], builder.load(total)), total)
            for cell, total in zip(cells, sums, strict=True):
                _store(builder, builder.load(total), cell)
            return context.get_dummy_value()

        return signature, generate

    return tile


_product_8x2, _product_8x1 = _product(_ROWS, 2), _product(_ROWS, 1)
_product_1x2, _product_1x1 = _product(1, 2), _product(1, 1)


@intrinsic
@no_type_check
def _softmax_step(_context, logits, at, row, keys, maximum, total, shrink, lane):
    """One vector of queries: logits (base 2) become weights; maximum, total and the factor for the old sums.

    While a query has seen only -inf, its maximum is taken as 0, so that weights are 0 and not NaN.
    """
    integer = types.int64
    signature = types.void(logits, integer, integer, integer, maximum, total, shrink, integer)

    def generate(context, builder, signature, arguments):
        kinds = signature.args
        first = _at(context, builder, kinds[0], arguments[0], arguments[1])
        row, keys, lane = arguments[2], arguments[3], arguments[7]
        maximum, total, shrink = (_at(context, builder, kinds[i], arguments[i], lane) for i in (4, 5, 6))
        largest = cgutils.alloca_once(builder, _VECTOR)
        builder.store(_load(builder, maximum), largest)
        with cgutils.for_range(builder, keys) as loop:
            x = _load(builder, builder.gep(first, [builder.mul(loop.index, row)]))
            best = builder.load(largest)
            builder.store(builder.select(builder.fcmp_ordered(">", x, best), x, best), largest)
        best = builder.load(largest)
        nothing = builder.fcmp_ordered("==", best, _floats(-math.inf))
        base = builder.select(nothing, _floats(0.0), best)
        factor = _exp2(builder, builder.fsub(_load(builder, maximum), base))
        weights = cgutils.alloca_once(builder, _VECTOR)
        builder.store(builder.fmul(_load(builder, total), factor), weights)
        with cgutils.for_range(builder, keys) as loop:
            cell = builder.gep(first, [builder.mul(loop.index, row)])
            weight = _exp2(builder, builder.fsub(_load(builder, cell), base))
            _store(builder, weight, cell)
            builder.store(builder.fadd(weight, builder.load(weights)), weights)
        _store(builder, builder.load(weights), total)
        _store(builder, best, maximum)
        _store(builder, factor, shrink)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
@no_type_check
def _take_number(_context, counter):
    """Atomically counter[0]++."""

    def generate(context, builder, signature, arguments):
        pointer = _at(context, builder, signature.args[0], arguments[0], _i64(0))
        return builder.atomic_rmw("add", pointer, _i64(1), "monotonic")

    return types.int64(counter), generate


# The loop ------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True, inline="never")
@no_type_check
def _multiply(out, at_out, out_row, rows, a, at_a, a_row, a_step, b, b_row, lanes, steps, add):
    """out[r, lanes] (+)= sum_t a[r, t] * b[t, lanes]; `lanes` is a multiple of the vector width."""
    whole = rows - rows % _ROWS
    for c in range(0, lanes - _PAIR + 1, _PAIR):
        for r in range(0, whole, _ROWS):
            _product_8x2(
                out, at_out + r * out_row + c, out_row, a, at_a + r * a_row, a_row, a_step, b, c, b_row,
                steps, add,
            )  # fmt: skip
        for r in range(whole, rows):
            _product_1x2(
                out, at_out + r * out_row + c, out_row, a, at_a + r * a_row, a_row, a_step, b, c, b_row,
                steps, add,
            )  # fmt: skip
    if lanes % _PAIR:
        c = lanes - WIDTH
        for r in range(0, whole, _ROWS):
            _product_8x1(
                out, at_out + r * out_row + c, out_row, a, at_a + r * a_row, a_row, a_step, b, c, b_row,
                steps, add,
            )  # fmt: skip
        for r in range(whole, rows):
            _product_1x1(
                out, at_out + r * out_row + c, out_row, a, at_a + r * a_row, a_row, a_step, b, c, b_row,
                steps, add,
            )  # fmt: skip


@njit(cache=True, nogil=True)
@no_type_check
def _mask_span(logits, n_keys, lanes, first_key, first_query):
    """-inf where key `first_key + j` comes after query `first_query + r`."""
    for j in range(max(0, first_query - first_key), n_keys):
        for r in range(min(lanes, first_key + j - first_query)):
            logits[j * QUERY_TILE + r] = -np.inf


@njit(cache=True, nogil=True)
@no_type_check
def _logits(keys, at_keys, n_keys, dim, lanes, scratch):
    queries, logits = scratch[0], scratch[1]
    _multiply(logits, 0, QUERY_TILE, n_keys, keys, at_keys, dim, 1, queries, QUERY_TILE, lanes, dim, False)


@njit(cache=True, nogil=True)
@no_type_check
def _fold(values, at_values, n_keys, value_dim, lanes, scratch):
    logits, sums, maximum, total, shrink = scratch[1], scratch[2], scratch[3], scratch[4], scratch[5]
    for c in range(0, lanes, WIDTH):
        _softmax_step(logits, c, QUERY_TILE, n_keys, maximum, total, shrink, c)
    for d in range(value_dim):
        for r in range(lanes):
            sums[d * QUERY_TILE + r] *= shrink[r]
    _multiply(
        sums, 0, QUERY_TILE, value_dim, values, at_values, 1, value_dim, logits, QUERY_TILE, lanes,
        n_keys, True,
    )  # fmt: skip


@njit(cache=True, nogil=True)
@no_type_check
def _attend_spans(k, v, head, spans, n_keys, dims, lanes, causal, first_query, last_query, scratch):
    """Fold every span of keys [start, stop) into the state of one tile of queries."""
    dim, value_dim = dims
    for s in range(spans.shape[0]):
        stop = min(np.int64(spans[s, 1]), last_query + 1) if causal else np.int64(spans[s, 1])
        for start in range(np.int64(spans[s, 0]), stop, KEY_TILE):
            count = min(KEY_TILE, stop - start)
            row = head * n_keys + start
            _logits(k, row * dim, count, dim, lanes, scratch)
            if causal and start + count - 1 > first_query:
                _mask_span(scratch[1], count, lanes, start, first_query)
            _fold(v, row * value_dim, count, value_dim, lanes, scratch)


@njit(cache=True, nogil=True)
@no_type_check
def _attend_columns(k, v, head, columns, n_keys, dims, lanes, causal, first_query, last_query, scratch):
    """Fold single keys, gathered a tile at a time, into the state of one tile of queries."""
    dim, value_dim = dims
    keys, values = scratch[6], scratch[7]
    for start in range(0, columns.shape[0], KEY_TILE):
        count = min(KEY_TILE, columns.shape[0] - start)
        if causal and columns[start] > last_query:
            break
        for j in range(count):
            row = head * n_keys + columns[start + j]
            for d in range(dim):
                keys[j * dim + d] = k[row * dim + d]
            for d in range(value_dim):
                values[j * value_dim + d] = v[row * value_dim + d]
        _logits(keys, 0, count, dim, lanes, scratch)
        if causal and columns[start + count - 1] > first_query:
            for j in range(count):
                _mask_span(scratch[1][j * QUERY_TILE :], 1, lanes, columns[start + j], first_query)
        _fold(values, 0, count, value_dim, lanes, scratch)


@njit(cache=True, nogil=True)
@no_type_check
def _begin(q, row, rows, lanes, dims, scale, scratch):
    queries, sums, maximum, total = scratch[0], scratch[2], scratch[3], scratch[4]
    dim, value_dim = dims
    for d in range(dim):
        for r in range(rows):
            queries[d * QUERY_TILE + r] = q[(row + r) * dim + d] * scale
        for r in range(rows, lanes):
            queries[d * QUERY_TILE + r] = 0.0
    sums[: value_dim * QUERY_TILE] = 0.0
    maximum[:] = -np.inf
    total[:] = 0.0


@njit(cache=True, nogil=True)
@no_type_check
def _finish(out, lse, largest, row, rows, value_dim, scratch):
    sums, maximum, total = scratch[2], scratch[3], scratch[4]
    for r in range(rows):
        # A row that attends nothing keeps zeros and -inf; NaN passes both comparisons.
        inverse = np.float32(0.0) if total[r] == 0.0 else np.float32(1.0) / total[r]
        for d in range(value_dim):
            out[(row + r) * value_dim + d] = sums[d * QUERY_TILE + r] * inverse
        natural = maximum[r] * np.float32(math.log(2.0))
        lse[row + r] = -np.inf if total[r] == 0.0 else natural + np.log(total[r])
        largest[row + r] = np.nan if np.isnan(total[r]) else natural


@njit(cache=True, nogil=True)
@no_type_check
def _work(
    q, k, v, out, lse, largest, shape, spans, columns, counts, block, group, causal, offset, scale, counter
):  # fmt: skip
    """Take tiles of queries until none is left. `shape`: batch, heads, kv heads, queries, keys, dims."""
    batch, heads, kv_heads, n_queries, n_keys, dim, value_dim = shape
    dims = (dim, value_dim)
    scratch = (
        np.empty(dim * QUERY_TILE, np.float32), np.empty(KEY_TILE * QUERY_TILE, np.float32),
        np.empty(value_dim * QUERY_TILE, np.float32), np.empty(QUERY_TILE, np.float32),
        np.empty(QUERY_TILE, np.float32), np.empty(QUERY_TILE, np.float32),
        np.empty(KEY_TILE * dim, np.float32), np.empty(KEY_TILE * value_dim, np.float32),
    )  # fmt: skip
    n_blocks = (n_queries + block - 1) // block
    per_block = (block + QUERY_TILE - 1) // QUERY_TILE
    per_head = n_blocks * per_block
    while True:
        item = _take_number(counter)
        if item >= batch * heads * per_head:
            break
        # The last block first: under a causal mask it is the longest.
        i = n_blocks - 1 - item % per_head // per_block
        first = i * block + item % per_block * QUERY_TILE
        rows = min(QUERY_TILE, min(n_queries, (i + 1) * block) - first)
        if rows <= 0:
            continue
        b, h = item // per_head // heads, item // per_head % heads
        row = (b * heads + h) * n_queries + first
        head = b * kv_heads + h // (heads // kv_heads)
        lanes = (rows + WIDTH - 1) // WIDTH * WIDTH
        _begin(q, row, rows, lanes, dims, scale, scratch)
        mine = spans[min(b, spans.shape[0] - 1), min(h, spans.shape[1] - 1), i]
        queries = (first + offset, first + offset + rows - 1)
        _attend_spans(k, v, head, mine, n_keys, dims, lanes, causal, queries[0], queries[1], scratch)
        if columns.shape[3]:
            cb, ch = min(b, columns.shape[0] - 1), min(h, columns.shape[1] - 1)
            chosen = columns[cb, ch, i // group][: counts[cb, ch, i // group]]
            _attend_columns(k, v, head, chosen, n_keys, dims, lanes, causal, queries[0], queries[1], scratch)
        _finish(out, lse, largest, row, rows, value_dim, scratch)


@lru_cache(1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="block_attention")


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
    floats = [x.detach().float().contiguous().resolve_neg() for x in (q, k, v)]
    batch, heads, n_queries, dim = q.shape
    shape = (batch, heads, k.shape[1], n_queries, k.shape[2], dim, v.shape[3])
    out = q.new_empty((batch, heads, n_queries, v.shape[3]), dtype=torch.float32)
    lse, largest = (q.new_empty((batch, heads, n_queries), dtype=torch.float32) for _ in range(2))
    indices = [x.to(torch.int32).contiguous().numpy() for x in (spans, columns, counts)]
    counter = np.zeros(1, np.int64)
    flat = [x.view(-1).numpy() for x in (*floats, out, lse, largest)]
    arguments = (
        *flat, shape, *indices, block, group, causal, offset, np.float32(scale * _LOG2E), counter
    )  # fmt: skip
    threads = min(torch.get_num_threads(), numba.get_num_threads(), max(1, batch * heads * n_queries // 16))
    others = [_pool(threads - 1).submit(_work, *arguments) for _ in range(threads - 1)]
    _work(*arguments)
    for other in others:
        other.result()
    return out.to(q.dtype), lse, largest
