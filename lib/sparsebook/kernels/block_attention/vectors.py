"""Vectors in LLVM through Numba's `intrinsic`: the two products, the softmax's step, a transposition.

Numba's loop vectoriser keeps no tile of accumulators in registers, so these four are written in LLVM's vector
type. The width follows the machine (16 floats with AVX-512, 8 with AVX, otherwise 4); LLVM splits what the
machine does not have. Everything works on flat float32 arrays and offsets counted in elements.
"""

import math
from typing import Any, no_type_check

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj


def _vector_width() -> int:
    """Floats in a register of the processor that Numba compiles for."""
    features = getattr(numba.config, "CPU_FEATURES", None)
    if features is None:
        features = llvmlite.binding.get_host_cpu_features().flatten()
    return 16 if "+avx512f" in features else 8 if "+avx," in f"{features}," else 4


WIDTH = _vector_width()
ROWS = 8  # accumulator rows of a product; with two vectors a row they fill half the registers

_i32, _i64 = ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(ir.FloatType(), WIDTH)
_INTEGERS = ir.VectorType(_i32, WIDTH)


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
    first = builder.insert_element(empty, scalar, ir.Constant(_i32, 0))
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


# Products ------------------------------------------------------------------------------------------------


def _accumulate(builder: Any, sums: list, steps: Any, left: Any, right: Any) -> list:
    """sums[r][c] + sum_t left(r, t) * right(t)[c], kept in registers: `left` scalars, `right` vectors."""
    kept = [[cgutils.alloca_once_value(builder, x) for x in row] for row in sums]
    with cgutils.for_range(builder, steps) as loop:
        vectors = right(loop.index)
        for row, scalar in zip(kept, left(loop.index), strict=True):
            factor = _broadcast(builder, scalar)
            for cell, vector in zip(row, vectors, strict=True):
                builder.store(_multiply_add(builder, factor, vector, builder.load(cell)), cell)
    return [[builder.load(cell) for cell in row] for row in kept]


def _row_of(builder: Any, array: Any, row: Any, number: Any) -> Any:
    return builder.gep(array, [builder.mul(row, builder.sext(number, _i64))])


def _vectors_at(builder: Any, pointer: Any, count: int) -> list:
    return [_load(builder, builder.gep(pointer, [_i64(c * WIDTH)])) for c in range(count)]


def _logits_product(vectors: int) -> Any:
    """An intrinsic: out[j, lanes] = sum_d keys[index[j], d] * queries[d, lanes], `ROWS` keys, `vectors` wide.

    Of the keys only single elements are read, each broadcast to a vector: scattered rows cost no more
    instructions than neighbours. The same holds for the values below.
    """

    @intrinsic
    @no_type_check
    def product(_context, out, at_out, keys, at_keys, row, index, at_index, queries, at_queries, lanes, dim):
        n = types.int64
        signature = types.void(out, n, keys, n, n, index, n, queries, n, n, n)

        def generate(context, builder, signature, arguments):
            row, lanes, dim = (arguments[i] for i in (4, 9, 10))
            out, keys, index, queries = (
                _at(context, builder, signature.args[i], arguments[i], arguments[i + 1]) for i in (0, 2, 5, 7)
            )
            numbers = [builder.load(builder.gep(index, [_i64(j)])) for j in range(ROWS)]
            rows = [_row_of(builder, keys, row, number) for number in numbers]
            sums = _accumulate(
                builder,
                [[_floats(0.0)] * vectors] * ROWS,
                dim,
                lambda d: [builder.load(builder.gep(row, [d])) for row in rows],
                lambda d: _vectors_at(builder, builder.gep(queries, [builder.mul(lanes, d)]), vectors),
            )
            for j, vectors_of_key in enumerate(sums):
                for c, x in enumerate(vectors_of_key):
                    at = builder.add(builder.mul(lanes, _i64(j)), _i64(c * WIDTH))
                    _store(builder, x, builder.gep(out, [at]))
            return context.get_dummy_value()

        return signature, generate

    return product


def _values_product(vectors: int) -> Any:
    """An intrinsic for `ROWS` features d, `vectors` wide:

    out[d, lanes] = out[d, lanes] * shrink[lanes] + sum_j values[index[j], d] * weights[j, lanes].
    """

    @intrinsic
    @no_type_check
    def product(
        _context, out, at_out, values, at_values, row, index, at_index, weights, shrink, lane, lanes, n_keys
    ):  # fmt: skip
        n = types.int64
        signature = types.void(out, n, values, n, n, index, n, weights, shrink, n, n, n)

        def generate(context, builder, signature, arguments):
            kinds, (row, lane, lanes, n_keys) = signature.args, (arguments[i] for i in (4, 9, 10, 11))
            out, values, index = (
                _at(context, builder, kinds[i], arguments[i], arguments[i + 1]) for i in (0, 2, 5)
            )
            weights, shrink = (_at(context, builder, kinds[i], arguments[i], lane) for i in (7, 8))
            cells = [builder.gep(out, [builder.mul(lanes, _i64(d))]) for d in range(ROWS)]
            factors = _vectors_at(builder, shrink, vectors)
            old = [_vectors_at(builder, cell, vectors) for cell in cells]

            def features(j):
                value = _row_of(builder, values, row, builder.load(builder.gep(index, [j])))
                return [builder.load(builder.gep(value, [_i64(d)])) for d in range(ROWS)]

            sums = _accumulate(
                builder,
                [[builder.fmul(x, y) for x, y in zip(row, factors, strict=True)] for row in old],
                n_keys,
                features,
                lambda j: _vectors_at(builder, builder.gep(weights, [builder.mul(lanes, j)]), vectors),
            )
            for cell, row in zip(cells, sums, strict=True):
                for c, x in enumerate(row):
                    _store(builder, x, builder.gep(cell, [_i64(c * WIDTH)]))
            return context.get_dummy_value()

        return signature, generate

    return product


logits_of_2, logits_of_1 = _logits_product(2), _logits_product(1)
values_of_2, values_of_1 = _values_product(2), _values_product(1)


# Softmax -------------------------------------------------------------------------------------------------


@intrinsic
@no_type_check
def softmax_step(_context, logits, at, row, keys, maximum, total, shrink, lane):
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


# Transposition and counting ------------------------------------------------------------------------------


@intrinsic
@no_type_check
def transpose_square(_context, source, at_source, source_row, target, at_target, target_row):
    """target[i, j] = source[j, i] for a square of the vector's width."""
    integer = types.int64
    signature = types.void(source, integer, integer, target, integer, integer)

    def generate(context, builder, signature, arguments):
        kinds = signature.args
        source, target = (_at(context, builder, kinds[i], arguments[i], arguments[i + 1]) for i in (0, 3))
        rows = [
            _load(builder, builder.gep(source, [builder.mul(arguments[2], _i64(i))])) for i in range(WIDTH)
        ]
        # Squares of `step` across the diagonal change places, for step = 1, 2, 4, ...
        step = 1
        while step < WIDTH:
            low = [j + WIDTH - step if j & step else j for j in range(WIDTH)]
            high = [j + WIDTH if j & step else j + step for j in range(WIDTH)]
            low, high = (ir.Constant(_INTEGERS, numbers) for numbers in (low, high))
            for i in (i for i in range(WIDTH) if not i & step):
                pair = rows[i], rows[i + step]
                rows[i] = builder.shuffle_vector(*pair, low)
                rows[i + step] = builder.shuffle_vector(*pair, high)
            step *= 2
        for i, row in enumerate(rows):
            _store(builder, row, builder.gep(target, [builder.mul(arguments[5], _i64(i))]))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
@no_type_check
def take_number(_context, counter):
    """Atomically counter[0]++."""

    def generate(context, builder, signature, arguments):
        pointer = _at(context, builder, signature.args[0], arguments[0], _i64(0))
        return builder.atomic_rmw("add", pointer, _i64(1), "monotonic")

    return types.int64(counter), generate
