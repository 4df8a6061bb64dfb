"""The loops of a depthwise convolution in LLVM's vector type: sums in registers along a run of pixels."""

from collections.abc import Callable
from typing import Any, no_type_check

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from sparsebook.kernels.lanes import WIDTH, broadcast, element, load, multiply_add, store

COUNTS = (1, 2, 3, 4, 5, 6, 7, 8)
"""Registers that a piece of a run may have; eight hide the time that a multiply-add takes."""

_i32, _i64 = ir.IntType(32), ir.IntType(64)
_FLOATS, _INTEGERS = ir.VectorType(ir.FloatType(), WIDTH), ir.VectorType(_i32, WIDTH)
_IOTA = ir.Constant(_INTEGERS, list(range(WIDTH)))
_NOTHING = ir.Constant(_FLOATS, [0.0] * WIDTH)


@intrinsic
@no_type_check
def correlate(_context, registers, y, at, x, start, shifts, weights, first, taps, bias, low, high):
    """y[at + i] = clamp(bias + sum over t < taps of weights[first + t] * x[start + i + shifts[t]], low, high)

    for i = 0 to registers * WIDTH - 1, `registers` one of `COUNTS`. Arrays are flat. NaN passes the clamp.
    """
    n, f = types.int64, types.float32
    signature = types.void(n, y, n, x, n, shifts, weights, n, n, f, f, f)

    def generate(context, builder, signature, arguments):
        kinds, taps = signature.args, arguments[8]
        y, x = (element(context, builder, kinds[i], arguments[i], arguments[i + 1]) for i in (1, 3))
        shifts = element(context, builder, kinds[5], arguments[5], _i64(0))
        weights = element(context, builder, kinds[6], arguments[6], arguments[7])
        bias, low, high = (broadcast(builder, value, _FLOATS) for value in arguments[9:])

        def clamped(value):
            value = builder.select(builder.fcmp_ordered("<", value, low), low, value)
            return builder.select(builder.fcmp_ordered(">", value, high), high, value)

        for count in COUNTS:
            with builder.if_then(builder.icmp_signed("==", arguments[0], _i64(count))):
                sums = [cgutils.alloca_once_value(builder, bias) for _ in range(count)]
                with cgutils.for_range_slice(builder, _i64(0), taps, _i64(1)) as (t, _):
                    shift = builder.load(builder.gep(shifts, [t]))
                    weight = broadcast(builder, builder.load(builder.gep(weights, [t])), _FLOATS)
                    for v, total in enumerate(sums):
                        source = builder.gep(x, [builder.add(shift, _i64(v * WIDTH))])
                        product = multiply_add(
                            builder, weight, load(builder, source, _FLOATS), builder.load(total)
                        )
                        builder.store(product, total)
                for v, total in enumerate(sums):
                    store(builder, clamped(builder.load(total)), builder.gep(y, [_i64(v * WIDTH)]))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
@no_type_check
def copy(_context, y, at, x, start, n):
    """y[at + i] = x[start + i] for i = 0 to n - 1; reads and writes nothing else."""

    def generate(context, builder, signature, arguments):
        target = element(context, builder, signature.args[0], *arguments[:2])
        source = element(context, builder, signature.args[2], *arguments[2:4])

        def step(i, left):
            piece = _masked_load(builder, builder.gep(source, [i]), left)
            _masked_store(builder, piece, builder.gep(target, [i]), left)

        _by_steps(builder, arguments[4], WIDTH, step)
        return context.get_dummy_value()

    return types.void(y, types.int64, x, types.int64, types.int64), generate


@intrinsic
@no_type_check
def part(_context, y, at_even, n_even, at_odd, n_odd, x, start, n):
    """Numbers 0, 2, 4, ... of the n from x[start] on to y[at_even], the others to y[at_odd].

    No more than `n_even` and `n_odd` of them are written.
    """
    i64 = types.int64
    signature = types.void(y, i64, i64, i64, i64, x, i64, i64)

    def generate(context, builder, signature, arguments):
        kinds, n = signature.args, arguments[7]
        targets = [element(context, builder, kinds[0], arguments[0], arguments[i]) for i in (1, 3)]
        source = element(context, builder, kinds[5], *arguments[5:7])

        def step(i, left):
            half = builder.lshr(i, _i64(1))
            halves = [
                _masked_load(
                    builder, builder.gep(source, [builder.add(i, offset)]), builder.sub(left, offset)
                )
                for offset in (_i64(0), _i64(WIDTH))
            ]
            for parity, (target, room) in enumerate(zip(targets, (arguments[2], arguments[4]), strict=True)):
                lanes = ir.Constant(_INTEGERS, list(range(parity, 2 * WIDTH, 2)))
                piece = builder.shuffle_vector(*halves, lanes)
                _masked_store(builder, piece, builder.gep(target, [half]), builder.sub(room, half))

        _by_steps(builder, n, 2 * WIDTH, step)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
@no_type_check
def clear(_context, y, at, n):
    """y[at + i] = 0 for i = 0 to n - 1."""

    def generate(context, builder, signature, arguments):
        target = element(context, builder, signature.args[0], *arguments[:2])
        with cgutils.for_range_slice(builder, _i64(0), arguments[2], _i64(WIDTH)) as (i, _):
            _masked_store(builder, _NOTHING, builder.gep(target, [i]), builder.sub(arguments[2], i))
        return context.get_dummy_value()

    return types.void(y, types.int64, types.int64), generate


def _by_steps(builder: Any, n: Any, width: int, step: Callable[[Any, Any], None]) -> None:
    """`step(i, n - i)` for i = 0, width, ... below n; a single one's masks can leave the loops around."""
    with builder.if_else(builder.icmp_signed("<=", n, _i64(width))) as (short, long):
        with short:
            step(_i64(0), n)
        with long, cgutils.for_range_slice(builder, _i64(0), n, _i64(width)) as (i, _):
            step(i, builder.sub(n, i))


def _first_lanes(builder: Any, count: Any) -> Any:
    """A mask of the first `count` lanes, an int64; none if it is negative."""
    most = builder.select(builder.icmp_signed("<", count, _i64(WIDTH)), count, _i64(WIDTH))
    limits = broadcast(builder, builder.trunc(most, _i32), _INTEGERS)
    return builder.icmp_signed("<", _IOTA, limits)


def _masked_load(builder: Any, pointer: Any, count: Any) -> Any:
    cell = builder.bitcast(pointer, _FLOATS.as_pointer())
    values = [cell, _i32(4), _first_lanes(builder, count), _NOTHING]
    return _call(builder, f"llvm.masked.load.v{WIDTH}f32.p0", _FLOATS, values)


def _masked_store(builder: Any, register: Any, pointer: Any, count: Any) -> None:
    cell = builder.bitcast(pointer, _FLOATS.as_pointer())
    values = [register, cell, _i32(4), _first_lanes(builder, count)]
    _call(builder, f"llvm.masked.store.v{WIDTH}f32.p0", ir.VoidType(), values)


def _call(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)
