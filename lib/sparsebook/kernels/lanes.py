"""Vector instructions that the CPU kernels share.

Numba vectorises no loop that appends to a list or that keeps several sums in registers, so these few steps
are written in LLVM's vector type. A block is 64 floats: LLVM splits it into whatever registers the machine
has (four with AVX-512, eight with AVX, sixteen with NEON or SSE). `WIDTH` is one register's floats.
"""

from typing import Any, no_type_check

import llvmlite.binding
import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

BLOCK = 64


def _vector_width() -> int:
    """Floats in a register of the processor that Numba compiles for."""
    features = getattr(numba.config, "CPU_FEATURES", None)
    if features is None:
        features = llvmlite.binding.get_host_cpu_features().flatten()
    return 16 if "+avx512f" in features else 8 if "+avx," in f"{features}," else 4


WIDTH = _vector_width()

_float = ir.FloatType()
_i32 = ir.IntType(32)
_i64 = ir.IntType(64)
_FLOATS = ir.VectorType(_float, BLOCK)

# Pieces --------------------------------------------------------------------------------------------------


def element(context: Any, builder: Any, kind: Any, array: Any, offset: Any) -> Any:
    """Address of element `offset` of a contiguous array."""
    return builder.gep(arrayobj.make_array(kind)(context, builder, array).data, [offset])


def load(builder: Any, pointer: Any, vector: Any) -> Any:
    return builder.load(builder.bitcast(pointer, vector.as_pointer()), align=4)


def store(builder: Any, value: Any, pointer: Any) -> None:
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=4)


def broadcast(builder: Any, scalar: Any, vector: Any) -> Any:
    empty = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(empty, scalar, _i32(0))
    zeros = ir.Constant(ir.VectorType(_i32, vector.count), [0] * vector.count)
    return builder.shuffle_vector(first, empty, zeros)


def multiply_add(builder: Any, x: Any, y: Any, z: Any) -> Any:
    # `fmuladd` and not `fma`: without the instruction it is a product and a sum, not a call per lane.
    kind = ir.FunctionType(x.type, [x.type] * 3)
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{x.type.count}f32")
    return builder.call(function, [x, y, z])


def _bits(builder: Any, condition: Any) -> Any:
    """The 64 truth values of a block as the bits of an integer, the first as the lowest."""
    return builder.bitcast(condition, _i64)


# Selection -----------------------------------------------------------------------------------------------


@intrinsic
@no_type_check
def reaching(_context, x, at, limit):
    """Which of the 64 floats x[at], x[at + 1], ... are not below `limit`, as bits; NaN is among them."""

    def generate(context, builder, signature, arguments):
        block = load(builder, element(context, builder, signature.args[0], *arguments[:2]), _FLOATS)
        return _bits(builder, builder.fcmp_unordered(">=", block, broadcast(builder, arguments[2], _FLOATS)))

    return types.uint64(x, types.int64, types.float32), generate


@intrinsic
@no_type_check
def reaching_each(_context, x, at, limits, at_limits):
    """As `reaching`, with a limit for each of the 64."""

    def generate(context, builder, signature, arguments):
        kinds = signature.args
        block = load(builder, element(context, builder, kinds[0], *arguments[:2]), _FLOATS)
        limit = load(builder, element(context, builder, kinds[2], *arguments[2:]), _FLOATS)
        return _bits(builder, builder.fcmp_unordered(">=", block, limit))

    return types.uint64(x, types.int64, limits, types.int64), generate


@intrinsic
@no_type_check
def raise_to(_context, largest, at_largest, x, at):
    """largest = max(largest, x) for 64 floats; NaN in x is passed over."""

    def generate(context, builder, signature, arguments):
        kinds = signature.args
        cell = element(context, builder, kinds[0], *arguments[:2])
        block = load(builder, element(context, builder, kinds[2], *arguments[2:]), _FLOATS)
        best = load(builder, cell, _FLOATS)
        store(builder, builder.select(builder.fcmp_ordered(">", block, best), block, best), cell)
        return context.get_dummy_value()

    return types.void(largest, types.int64, x, types.int64), generate


@intrinsic
@no_type_check
def lowest_bit(_context, bits):
    """Number of the lowest bit that is set; `bits` is not 0."""

    def generate(_context, builder, _signature, arguments):
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return types.int64(types.uint64), generate


@intrinsic
@no_type_check
def count_bits(_context, bits):
    """Number of bits that are set."""

    def generate(_context, builder, _signature, arguments):
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate


# Threads -------------------------------------------------------------------------------------------------


@intrinsic
@no_type_check
def take_number(_context, counter):
    """Atomically counter[0]++."""

    def generate(context, builder, signature, arguments):
        pointer = element(context, builder, signature.args[0], arguments[0], _i64(0))
        return builder.atomic_rmw("add", pointer, _i64(1), "monotonic")

    return types.int64(counter), generate
