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
from numpy.polynomial import Chebyshev, Polynomial


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


# 2^r on [-1/2, 1/2], highest power first; the relative error of this degree is 8e-8.
_EXP2 = Chebyshev.interpolate(lambda r: 2.0**r, 5, domain=[-0.5, 0.5]).convert(kind=Polynomial).coef[::-1]
# Adding it rounds to an integer n and leaves n + 127, the exponent's bits of 2^n, in the sum's lowest bits.
_ROUNDER = 1.5 * 2.0**23 + 127


def _exp2(builder: Any, x: Any) -> Any:
    """2^x for x <= 0: below 2^-126 it becomes exactly zero; NaN stays NaN."""
    x = builder.select(builder.fcmp_ordered("<", x, _floats(-127.0)), _floats(-127.0), x)
    shifted = builder.fadd(x, _floats(_ROUNDER))
    rest = builder.fsub(x, builder.fsub(shifted, _floats(_ROUNDER)))
    power = _floats(_EXP2[0])
    for coefficient in _EXP2[1:]:
        power = _multiply_add(builder, power, rest, _floats(coefficient))
    scale = builder.shl(builder.bitcast(shifted, _INTEGERS), _integers(23))
    return builder.fmul(power, builder.bitcast(scale, _VECTOR))


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


def _softmax(vectors: int) -> Any:
    """An intrinsic for `vectors` of queries: logits (base 2) become weights, and the state goes on.

    It updates maximum and total and sets the factor by which old sums shrink. While a query has seen only
    -inf, its maximum is taken as 0, so that weights are 0 and not NaN. Several vectors at once keep the
    running maxima and totals from being one long chain of instructions that wait for each other.
    """

    @intrinsic
    @no_type_check
    def step(_context, logits, lane, lanes, n_keys, maximum, total, shrink):
        n = types.int64
        signature = types.void(logits, n, n, n, maximum, total, shrink)

        def generate(context, builder, signature, arguments):
            lane, lanes, n_keys = arguments[1:4]
            logits, maximum, total, shrink = (
                _at(context, builder, signature.args[i], arguments[i], lane) for i in (0, 4, 5, 6)
            )
            places = [
                builder.gep(x, [_i64(c * WIDTH)]) for x in (maximum, total, shrink) for c in range(vectors)
            ]
            maxima, totals, shrinks = (places[i * vectors : (i + 1) * vectors] for i in range(3))
            old = _vectors_at(builder, maximum, vectors)
            best = [cgutils.alloca_once_value(builder, x) for x in old]
            with cgutils.for_range(builder, n_keys) as loop:
                row = builder.gep(logits, [builder.mul(loop.index, lanes)])
                for x, largest in zip(_vectors_at(builder, row, vectors), best, strict=True):
                    y = builder.load(largest)
                    builder.store(builder.select(builder.fcmp_ordered(">", x, y), x, y), largest)
            best = [builder.load(x) for x in best]
            nothing = [builder.fcmp_ordered("==", x, _floats(-math.inf)) for x in best]
            base = [builder.select(x, _floats(0.0), y) for x, y in zip(nothing, best, strict=True)]
            factor = [_exp2(builder, builder.fsub(x, y)) for x, y in zip(old, base, strict=True)]
            sums = [
                cgutils.alloca_once_value(builder, builder.fmul(_load(builder, place), x))
                for place, x in zip(totals, factor, strict=True)
            ]
            with cgutils.for_range(builder, n_keys) as loop:
                row = builder.gep(logits, [builder.mul(loop.index, lanes)])
                for c, x in enumerate(_vectors_at(builder, row, vectors)):
                    weight = _exp2(builder, builder.fsub(x, base[c]))
                    _store(builder, weight, builder.gep(row, [_i64(c * WIDTH)]))
                    builder.store(builder.fadd(weight, builder.load(sums[c])), sums[c])
            for c in range(vectors):
                _store(builder, builder.load(sums[c]), totals[c])
                _store(builder, best[c], maxima[c])
                _store(builder, factor[c], shrinks[c])
            return context.get_dummy_value()

        return signature, generate

    return step


softmax_of_4, softmax_of_1 = _softmax(4), _softmax(1)


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
def prefetch(_context, array, at):
    """Ask for the cache line of an element that will soon be read."""
    signature = types.void(array, types.int64)

    def generate(context, builder, signature, arguments):
        pointer = _at(context, builder, signature.args[0], *arguments)
        pointer = builder.bitcast(pointer, ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, _i32, _i32, _i32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        read, soon, data = ir.Constant(_i32, 0), ir.Constant(_i32, 3), ir.Constant(_i32, 1)
        builder.call(function, [pointer, read, soon, data])
        return context.get_dummy_value()

    return signature, generate
