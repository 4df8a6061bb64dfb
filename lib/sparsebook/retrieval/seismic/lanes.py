"""Vector instructions that Numba has no name for, as LLVM code; absent ones have a plain twin elsewhere.

A document is scored against a query of few terms by looking every coordinate of the document up in a table
that lives in vector registers. One group of at most ``GROUP_TERMS`` query terms is a cuckoo hash of two
tables of 64 slots; each term sits in one slot of one of them, keyed by its coordinate. 32 coordinates are
hashed (multiply, shift), looked up (``vpermi2w`` permutes a table of 64 sixteen-bit slots in one instruction)
and compared at once; where the key matches, the slot's query value (float32 in two halves) meets the
document's. A gather from a dense query needs one load per coordinate instead.
"""

from typing import no_type_check

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

GROUP_TERMS = 40
MOST_GROUPS = 8
_SLOTS = 64
_FACTORS = 6 * _SLOTS
GROUP_WORDS = _FACTORS + 2  # of both tables the keys and the values' high and low halves; two multipliers

_I16 = ir.IntType(16)
_WORDS = ir.VectorType(_I16, 32)
_LONGS = ir.VectorType(ir.IntType(32), 32)
_HALVES = ir.VectorType(ir.HalfType(), 32)
_FLOATS = ir.VectorType(ir.FloatType(), 32)


def _has_lanes(context, rows):
    """Whether the machine that the code is compiled for can permute 32 words, and ``rows`` are words."""
    return "+avx512bw" in context.codegen().magic_tuple()[2] and rows.dtype == types.uint16


def _pointer(context, builder, kind, array, position):
    """Address of ``array[position]`` along the first axis of a C-contiguous array."""
    view = context.make_array(kind)(context, builder, array)
    if kind.ndim > 1:
        position = builder.mul(position, builder.extract_value(view.shape, 1))
    return builder.gep(view.data, [position])


@intrinsic
def prefetch(typingctx, array, position):
    """Ask for the cache line of ``array[position]``; never faults, and is nothing where there is none."""

    def codegen(context, builder, signature, arguments):
        byte = ir.IntType(8).as_pointer()
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        at = _pointer(context, builder, signature.args[0], *arguments)
        builder.call(function, [builder.bitcast(at, byte), flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(array, types.int64), codegen


@intrinsic
def has_lanes(typingctx, rows):
    """Whether :func:`score_lanes` works for such rows on the machine at hand (a compile-time constant)."""

    def codegen(context, builder, signature, arguments):
        return ir.Constant(ir.IntType(1), int(_has_lanes(context, signature.args[0])))

    return types.boolean(rows), codegen


@intrinsic
def score_lanes(typingctx, rows, first, last, tables, group):
    """Inner product of the chunks ``first <= c < last`` with one group of query terms, float32."""

    def codegen(context, builder, signature, arguments):
        if not _has_lanes(context, signature.args[0]):
            return ir.Constant(ir.FloatType(), 0.0)
        return _score_chunks(context, builder, signature, arguments)

    return types.float32(rows, types.int64, types.int64, tables, types.int64), codegen


def _splat(builder, word):
    one = builder.insert_element(ir.Constant(_WORDS, ir.Undefined), word, ir.IntType(32)(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), 32), [0] * 32))


def _load(builder, pointer, kind, offset, align=2):
    at = builder.gep(pointer, [ir.IntType(64)(offset)])
    return builder.load(builder.bitcast(at, kind.as_pointer()), align=align)


def _score_chunks(context, builder, signature, arguments):
    rows, first, last, tables, group = arguments
    start = builder.mul(group, group.type(GROUP_WORDS))
    table = _pointer(context, builder, signature.args[3], tables, start)
    slots = [_load(builder, table, _WORDS, 32 * i) for i in range(12)]
    factors = [_splat(builder, _load(builder, table, _I16, _FACTORS + side)) for side in range(2)]
    permute = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_WORDS, [_WORDS] * 3), "llvm.x86.avx512.vpermi2var.hi.512"
    )
    multiply_add = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_FLOATS, [_FLOATS] * 3), "llvm.fmuladd.v32f32"
    )
    total = cgutils.alloca_once_value(builder, ir.Constant(_FLOATS, [0.0] * 32))
    ten, zero = ir.Constant(_WORDS, [10] * 32), ir.Constant(_WORDS, [0] * 32)
    with cgutils.for_range_slice(builder, first, last, first.type(1)) as (chunk, _):
        row = _pointer(context, builder, signature.args[0], rows, builder.mul(chunk, chunk.type(64)))
        coords = _load(builder, row, _WORDS, 0)
        halves = [zero, zero]
        for side, factor in enumerate(factors):
            slot = builder.lshr(builder.mul(coords, factor), ten)

            def look_up(part, slot=slot, side=side):
                at = 4 * part + 2 * side
                return builder.call(permute, [slots[at], slot, slots[at + 1]])

            same = builder.icmp_unsigned("==", look_up(0), coords)
            for half in range(2):  # a term is in one table, and an empty slot is zero: `or` joins the two
                found = builder.select(same, look_up(1 + half), zero)
                halves[half] = builder.or_(halves[half], found)
        high, low = (builder.zext(half, _LONGS) for half in halves)
        bits = builder.or_(builder.shl(high, ir.Constant(_LONGS, [16] * 32)), low)
        document = builder.fpext(_load(builder, row, _HALVES, 32), _FLOATS)
        query = builder.bitcast(bits, _FLOATS)
        builder.store(builder.call(multiply_add, [query, document, builder.load(total)]), total)
    kind = ir.FunctionType(ir.FloatType(), [ir.FloatType(), _FLOATS])
    reduce = cgutils.get_or_insert_function(builder.module, kind, "llvm.vector.reduce.fadd.v32f32")
    return builder.call(reduce, [ir.FloatType()(0.0), builder.load(total)], fastmath=("reassoc", "nsz"))


@njit(cache=True, nogil=True)
@no_type_check
def _place(table, coordinate, bits):
    """Insert a term into a group's tables, moving others to their second slot; whether all found one."""
    key, high, low = (
        np.uint16(coordinate),
        np.uint16(bits >> np.uint32(16)),
        np.uint16(bits & np.uint32(0xFFFF)),
    )
    side = 0
    for _ in range(64):
        slot = np.int64(np.uint16(key * table[_FACTORS + side])) >> 10
        at = side * _SLOTS + slot
        table[at], key = key, table[at]
        table[2 * _SLOTS + at], high = high, table[2 * _SLOTS + at]
        table[4 * _SLOTS + at], low = low, table[4 * _SLOTS + at]
        if high == 0 and low == 0:
            return True
        side = 1 - side
    return False


@njit(cache=True, nogil=True)
@no_type_check
def fill_tables(tables, coords, values):
    """Hash a query's terms; the number of groups, 0 if they do not fit."""
    groups = (coords.size + GROUP_TERMS - 1) // GROUP_TERMS
    if groups > MOST_GROUPS:
        return 0
    for g in range(groups):
        table = tables[g * GROUP_WORDS : (g + 1) * GROUP_WORDS]
        placed = False
        for attempt in range(16):
            table[:] = 0
            table[_FACTORS] = np.uint16((2 * attempt + 1) * 40503)
            table[_FACTORS + 1] = np.uint16((2 * attempt + 1) * 30011)
            placed = True
            for t in range(g * GROUP_TERMS, min(coords.size, (g + 1) * GROUP_TERMS)):
                if values[t] > 0 and placed:
                    placed = _place(table, coords[t], np.float32(values[t]).view(np.uint32))
            if placed:
                break
        if not placed:
            return 0
    return groups
