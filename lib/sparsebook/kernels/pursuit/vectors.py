"""The inner loops of pursuit in LLVM's vector type. Arrays are flat, with offsets.

    subtract_and_find(row, at, gram, starts, weights, n_terms, length) -> position of the largest score
    dot(x, at_x, y, at_y, n) -> sum of products          add_scaled(target, at, weight, x, at_x, n)

Every element of ``row[at : at + length]`` gets ``sum_t weights[t] * gram[starts[t] + i]`` added in registers
and is compared in the same pass, so that a step of pursuit reads the correlations once. Four vectors run side
by side because a comparison and its selection depend on the vector before. The last elements of the other two
are one masked vector, because rows of 20 are as common as rows of 400. The width follows the machine (16
floats with AVX-512, 8 with AVX, otherwise 4); LLVM splits what the machine does not have.
"""

import math
from typing import Any, no_type_check

import llvmlite.binding
import numba
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
_SIDE_BY_SIDE = 4

_i32, _i64 = ir.IntType(32), ir.IntType(64)
_FLOATS = ir.VectorType(ir.FloatType(), WIDTH)
_INTEGERS = ir.VectorType(_i32, WIDTH)
_ZEROS = ir.Constant(_FLOATS, [0.0] * WIDTH)
_IOTA = ir.Constant(_INTEGERS, list(range(WIDTH)))


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    return builder.gep(arrayobj.make_array(array_type)(context, builder, array).data, [offset])


def _load(builder: Any, pointer: Any) -> Any:
    loaded = builder.load(builder.bitcast(pointer, _FLOATS.as_pointer()))
    loaded.align = 4
    return loaded


def _splat(builder: Any, scalar: Any, vector: Any) -> Any:
    empty = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(empty, scalar, ir.Constant(_i32, 0))
    return builder.shuffle_vector(first, empty, ir.Constant(_INTEGERS, [0] * WIDTH))


def _call(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    signature = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), arguments)


def _multiply_add(builder: Any, x: Any, y: Any, z: Any) -> Any:
    # `fmuladd` and not `fma`: without the instruction it is a product and a sum, not a call per lane.
    return _call(builder, f"llvm.fmuladd.v{WIDTH}f32", _FLOATS, [x, y, z])


class _Best:
    """Per lane the largest score so far and its position; the first of equals stays."""

    def __init__(self, builder: Any, absolute: bool) -> None:
        self.builder, self.absolute = builder, absolute
        self.score = cgutils.alloca_once(builder, _FLOATS)
        self.position = cgutils.alloca_once(builder, _INTEGERS)
        builder.store(ir.Constant(_FLOATS, [-math.inf] * WIDTH), self.score)
        builder.store(ir.Constant(_INTEGERS, [0] * WIDTH), self.position)

    def see(self, values: Any, first: Any) -> None:
        """`values` are the elements from `first` (int64) on."""
        builder = self.builder
        if self.absolute:
            values = _call(builder, f"llvm.fabs.v{WIDTH}f32", _FLOATS, [values])
        position = builder.add(_splat(builder, builder.trunc(first, _i32), _INTEGERS), _IOTA)
        better = builder.fcmp_ordered(">", values, builder.load(self.score))
        self._take(better, values, position)

    def merge(self, other: "_Best") -> None:
        builder = self.builder
        score, position = builder.load(other.score), builder.load(other.position)
        mine, at = builder.load(self.score), builder.load(self.position)
        earlier = builder.and_(
            builder.fcmp_ordered("==", score, mine), builder.icmp_unsigned("<", position, at)
        )
        self._take(builder.or_(builder.fcmp_ordered(">", score, mine), earlier), score, position)

    def winner(self) -> Any:
        """Position (int64) of the largest over the lanes, the lowest of equals."""
        builder = self.builder
        score = builder.load(self.score)
        largest = _call(builder, f"llvm.vector.reduce.fmax.v{WIDTH}f32", ir.FloatType(), [score])
        equal = builder.fcmp_ordered("==", score, _splat(builder, largest, _FLOATS))
        last = ir.Constant(_INTEGERS, [2**31 - 1] * WIDTH)
        candidates = builder.select(equal, builder.load(self.position), last)
        lowest = _call(builder, f"llvm.vector.reduce.umin.v{WIDTH}i32", _i32, [candidates])
        return builder.zext(lowest, _i64)

    def _take(self, better: Any, score: Any, position: Any) -> None:
        builder = self.builder
        builder.store(builder.select(better, score, builder.load(self.score)), self.score)
        builder.store(builder.select(better, position, builder.load(self.position)), self.position)


def _search(write: bool, absolute: bool) -> Any:
    """The intrinsic; with `write` the sums replace `row`, else they live in registers only."""

    @intrinsic
    @no_type_check
    def search(_context, row, at, gram, starts, weights, n_terms, length):
        integer = types.int64
        signature = types.int64(row, integer, gram, starts, weights, integer, integer)

        def generate(context, builder, signature, arguments):
            kinds, zero = signature.args, _i64(0)
            row = _pointer(context, builder, kinds[0], arguments[0], arguments[1])
            gram, starts, weights = (
                _pointer(context, builder, kinds[i], arguments[i], zero) for i in (2, 3, 4)
            )
            n_terms, length = arguments[5], arguments[6]
            bests = [_Best(builder, absolute) for _ in range(_SIDE_BY_SIDE)]

            def pass_over(first, bests):
                cells = [builder.gep(row, [builder.add(first, _i64(v * WIDTH))]) for v in range(len(bests))]
                sums = [cgutils.alloca_once(builder, _FLOATS) for _ in bests]
                for cell, total in zip(cells, sums, strict=True):
                    builder.store(_load(builder, cell), total)
                with cgutils.for_range(builder, n_terms) as term:
                    start = builder.load(builder.gep(starts, [term.index]))
                    weight = builder.load(builder.gep(weights, [term.index]))
                    weight = _splat(builder, weight, _FLOATS)
                    line = builder.gep(gram, [builder.add(start, first)])
                    for v, total in enumerate(sums):
                        values = _load(builder, builder.gep(line, [_i64(v * WIDTH)]))
                        builder.store(_multiply_add(builder, weight, values, builder.load(total)), total)
                for v, (cell, total, best) in enumerate(zip(cells, sums, bests, strict=True)):
                    if write:
                        where = builder.bitcast(cell, _FLOATS.as_pointer())
                        builder.store(builder.load(total), where, align=4)
                    best.see(builder.load(total), builder.add(first, _i64(v * WIDTH)))

            together = _i64(_SIDE_BY_SIDE * WIDTH)
            blocks = builder.sdiv(length, together)
            with cgutils.for_range(builder, blocks) as block:
                pass_over(builder.mul(block.index, together), bests)
            done = builder.mul(blocks, together)
            rest = builder.sdiv(builder.sub(length, done), _i64(WIDTH))
            with cgutils.for_range(builder, rest) as vector:
                pass_over(builder.add(done, builder.mul(vector.index, _i64(WIDTH))), bests[:1])
            with builder.if_then(builder.icmp_signed(">", blocks, zero)):
                for other in bests[1:]:
                    bests[0].merge(other)
            return bests[0].winner()

        return signature, generate

    return search


subtract_and_find, subtract_and_find_absolute = _search(True, False), _search(True, True)
find_absolute = _search(False, True)


def _for_vectors(builder: Any, n: Any, body: Any) -> None:
    """`body(offset, load, store)` for every whole vector of n elements, then masked for the rest."""
    whole = builder.sdiv(n, _i64(WIDTH))
    with cgutils.for_range(builder, whole) as loop:
        body(
            builder.mul(loop.index, _i64(WIDTH)),
            lambda pointer: _load(builder, pointer),
            lambda value, pointer: builder.store(
                value, builder.bitcast(pointer, _FLOATS.as_pointer()), align=4
            ),
        )
    done = builder.mul(whole, _i64(WIDTH))
    rest = builder.trunc(builder.sub(n, done), _i32)
    with builder.if_then(builder.icmp_signed(">", rest, ir.Constant(_i32, 0))):
        mask = builder.icmp_unsigned("<", _IOTA, _splat(builder, rest, _INTEGERS))
        align, kind = ir.Constant(_i32, 4), f"v{WIDTH}f32.p0"

        def load(pointer: Any) -> Any:
            arguments = [builder.bitcast(pointer, _FLOATS.as_pointer()), align, mask, _ZEROS]
            return _call(builder, f"llvm.masked.load.{kind}", _FLOATS, arguments)

        def store(value: Any, pointer: Any) -> None:
            arguments = [value, builder.bitcast(pointer, _FLOATS.as_pointer()), align, mask]
            _call(builder, f"llvm.masked.store.{kind}", ir.VoidType(), arguments)

        body(done, load, store)


@intrinsic
@no_type_check
def dot(_context, x, at_x, y, at_y, n):
    """sum(x[at_x : at_x + n] * y[at_y : at_y + n]), the sums of the lanes kept apart."""
    integer = types.int64
    signature = types.float32(x, integer, y, integer, integer)

    def generate(context, builder, signature, arguments):
        kinds = signature.args
        x, y = (_pointer(context, builder, kinds[i], arguments[i], arguments[i + 1]) for i in (0, 2))
        total = cgutils.alloca_once(builder, _FLOATS)
        builder.store(_ZEROS, total)

        def body(offset, load, _):
            left, right = load(builder.gep(x, [offset])), load(builder.gep(y, [offset]))
            builder.store(_multiply_add(builder, left, right, builder.load(total)), total)

        _for_vectors(builder, arguments[4], body)
        start = ir.Constant(ir.FloatType(), 0.0)
        reduced = _call(
            builder, f"llvm.vector.reduce.fadd.v{WIDTH}f32", ir.FloatType(), [start, builder.load(total)]
        )
        reduced.fastmath.add("reassoc")
        return reduced

    return signature, generate


@intrinsic
@no_type_check
def add_scaled(_context, target, at, weight, x, at_x, n):
    """target[at : at + n] += weight * x[at_x : at_x + n]"""
    integer = types.int64
    signature = types.void(target, integer, types.float32, x, integer, integer)

    def generate(context, builder, signature, arguments):
        kinds = signature.args
        target, x = (_pointer(context, builder, kinds[i], arguments[i], arguments[i + 1]) for i in (0, 3))
        weight = _splat(builder, arguments[2], _FLOATS)

        def body(offset, load, store):
            cell = builder.gep(target, [offset])
            store(_multiply_add(builder, weight, load(builder.gep(x, [offset])), load(cell)), cell)

        _for_vectors(builder, arguments[5], body)
        return context.get_dummy_value()

    return signature, generate
