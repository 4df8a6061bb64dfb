"""The inner loops of sparse products in LLVM's vector type: sums in registers along a strip of columns.

A strip is a few registers of neighbouring columns (`counts`). One non-zero costs a load of its index, a load
of its value and, for every register, a multiply-add with its operand read from memory: vector loads at full
width however scattered the non-zeros are. The last register of a strip is masked, so that any number of
columns will do. Arrays are flat, with offsets; bfloat16 comes as uint16 and is widened as it is read.
"""

from collections.abc import Callable
from typing import Any, no_type_check

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from sparsebook.kernels.selection.lanes import WIDTH, broadcast, element, load, multiply_add, store

COUNTS = (1, 2, 3, 4, 6, 8, 10, 13, 16)
"""Registers that a strip may have; 13 are a row of 14 x 14 pixels with AVX-512."""
_SUMS = 12 if WIDTH == 8 else 24
"""Registers for sums: three quarters of what the machine has (16 with AVX, 32 with AVX-512 and NEON)."""

_float, _i16, _i32, _i64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_FLOATS, _INTEGERS, _HALVES = (ir.VectorType(kind, WIDTH) for kind in (_float, _i32, _i16))
_TRUTHS = ir.VectorType(ir.IntType(1), WIDTH)
_IOTA = ir.Constant(_INTEGERS, list(range(WIDTH)))


def _floats(value: float) -> Any:
    return ir.Constant(_FLOATS, [value] * WIDTH)


def _integers(value: int) -> Any:
    return ir.Constant(_INTEGERS, [value] * WIDTH)


def _call(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    signature = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), arguments)


class _Strip:
    """Reads and writes `count` registers of neighbouring numbers, of the last only its first `tail` lanes."""

    def __init__(self, builder: Any, count: int, tail: Any) -> None:
        self.builder, self.count = builder, count
        limits = broadcast(builder, builder.trunc(tail, _i32), _INTEGERS)
        self.mask = builder.icmp_signed("<", _IOTA, limits)

    def read(self, pointer: Any) -> list[Any]:
        """Registers of floats."""
        kind = _HALVES if pointer.type.pointee == _i16 else _FLOATS
        cells = self._cells(pointer)
        registers = [load(self.builder, cell, kind) for cell in cells[:-1]]
        return [self._widened(x) for x in [*registers, self._masked_load(cells[-1], kind)]]

    def write(self, registers: list[Any], pointer: Any) -> None:
        if pointer.type.pointee == _i16:
            registers = [self._rounded(x) for x in registers]
        cells = self._cells(pointer)
        for x, cell in zip(registers[:-1], cells, strict=False):
            store(self.builder, x, cell)
        last = registers[-1]
        cell = self.builder.bitcast(cells[-1], last.type.as_pointer())
        arguments = [last, cell, _i32(last.type.element.width // 8 if last.type == _HALVES else 4), self.mask]
        _call(self.builder, f"llvm.masked.store.{_suffix(last.type)}.p0", ir.VoidType(), arguments)

    def _cells(self, pointer: Any) -> list[Any]:
        return [self.builder.gep(pointer, [_i64(v * WIDTH)]) for v in range(self.count)]

    def _masked_load(self, cell: Any, kind: Any) -> Any:
        align = _i32(2 if kind == _HALVES else 4)
        nothing = ir.Constant(kind, [0] * WIDTH) if kind == _HALVES else _floats(0.0)
        arguments = [self.builder.bitcast(cell, kind.as_pointer()), align, self.mask, nothing]
        return _call(self.builder, f"llvm.masked.load.{_suffix(kind)}.p0", kind, arguments)

    def _widened(self, register: Any) -> Any:
        return register if register.type == _FLOATS else from_bfloat16(self.builder, register, _INTEGERS)

    def _rounded(self, register: Any) -> Any:
        builder = self.builder
        bits = builder.bitcast(register, _INTEGERS)
        odd = builder.and_(builder.lshr(bits, _integers(16)), _integers(1))
        even = builder.lshr(builder.add(bits, builder.add(odd, _integers(0x7FFF))), _integers(16))
        unordered = builder.fcmp_unordered("uno", register, register)
        return builder.trunc(builder.select(unordered, _integers(0x7FC0), even), _HALVES)


def _suffix(kind: Any) -> str:
    return f"v{WIDTH}i16" if kind == _HALVES else f"v{WIDTH}f32"


def from_bfloat16(builder: Any, bits: Any, integers: Any) -> Any:
    """The float32 of bfloat16 bits, a number or a register of them."""
    wide = builder.zext(bits, integers)
    sixteen = _integers(16) if integers == _INTEGERS else _i32(16)
    return builder.bitcast(builder.shl(wide, sixteen), _FLOATS if integers == _INTEGERS else _float)


def _number(builder: Any, pointer: Any) -> Any:
    """One number as float32."""
    value = builder.load(pointer)
    return from_bfloat16(builder, value, _i32) if value.type == _i16 else value


def _line(builder: Any, base: Any, columns: Any, at: Any, stride: Any) -> Any:
    """Where the row begins that column index `at` names."""
    column = builder.load(builder.gep(columns, [at]))
    return builder.gep(base, [builder.mul(builder.sext(column, _i64), stride)])


def counts(block: int) -> tuple[int, ...]:
    """Registers that a strip may have when `block` rows are summed at once."""
    return tuple(count for count in COUNTS if count * block <= _SUMS)


def _for_rows(context: Any, builder: Any, signature: Any, arguments: Any, body: Callable[..., None]) -> None:
    """`body(strip, row, first, last)` for the rows, with code of its own for every count of registers."""
    kinds, (registers, tail, begin, end) = signature.args, arguments[:4]
    block = len(kinds[4])
    offsets = element(context, builder, kinds[5], arguments[5], _i64(0))
    for count in counts(block):
        with builder.if_then(builder.icmp_signed("==", registers, _i64(count))):
            strip = _Strip(builder, count, tail)
            with cgutils.for_range_slice(builder, begin, end, _i64(1)) as (row, _):
                first, last = (
                    builder.load(builder.gep(offsets, [builder.add(row, _i64(i))])) for i in (0, 1)
                )
                body(strip, row, builder.sext(first, _i64), builder.sext(last, _i64))


def _at(builder: Any, base: Any, row: Any, block: int, stride: Any) -> list[Any]:
    """Where the `block` rows of row block `row` begin."""
    first = builder.mul(row, _i64(block))
    return [builder.gep(base, [builder.mul(builder.add(first, _i64(r)), stride)]) for r in range(block)]


@intrinsic
@no_type_check
def gather(
    _context, registers, tail, begin, end, block, offsets, columns, values, y, x, at, stride, bias, low, high
):
    """For the rows of row blocks `begin` to `end`, in the strip of `registers` that starts at column `at`:

    y[row] = clamp(bias[row] + sum over t of values[t, row] * x[columns[t]]),  offsets[] <= t < offsets[+ 1]

    `block` is a tuple as long as a block has rows: so it is part of the type, each is compiled for itself.
    Rows of x and y lie `stride` apart; `tail` lanes of the last register count. NaN passes the clamp.
    """
    n, f = types.int64, types.float32
    signature = types.void(n, n, n, n, block, offsets, columns, values, y, x, n, n, bias, f, f)

    def generate(context, builder, signature, arguments):
        kinds, block = signature.args, len(signature.args[4])
        at, stride, low, high = (arguments[i] for i in (10, 11, 13, 14))
        y, x = (element(context, builder, kinds[i], arguments[i], at) for i in (8, 9))
        columns, values, bias = (
            element(context, builder, kinds[i], arguments[i], _i64(0)) for i in (6, 7, 12)
        )
        lowest, highest = broadcast(builder, low, _FLOATS), broadcast(builder, high, _FLOATS)

        def clamped(value):
            value = builder.select(builder.fcmp_ordered("<", value, lowest), lowest, value)
            return builder.select(builder.fcmp_ordered(">", value, highest), highest, value)

        def rows(strip, row, first, last):
            sums = []
            for start in _at(builder, bias, row, block, _i64(1)):
                start = broadcast(builder, builder.load(start), _FLOATS)
                sums.append([cgutils.alloca_once_value(builder, start) for _ in range(strip.count)])
            with cgutils.for_range_slice(builder, first, last, _i64(1)) as (t, _):
                sources = strip.read(_line(builder, x, columns, t, stride))
                cells = builder.gep(values, [builder.mul(t, _i64(block))])
                for r, own in enumerate(sums):
                    weight = broadcast(builder, _number(builder, builder.gep(cells, [_i64(r)])), _FLOATS)
                    for source, total in zip(sources, own, strict=True):
                        builder.store(multiply_add(builder, weight, source, builder.load(total)), total)
            for own, target in zip(sums, _at(builder, y, row, block, stride), strict=True):
                strip.write([clamped(builder.load(total)) for total in own], target)

        _for_rows(context, builder, signature, arguments, rows)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
@no_type_check
def scatter(_context, registers, tail, begin, end, block, offsets, columns, values, y, x, at, stride):
    """For the same rows and strip: x[columns[t]] += sum over the block's rows of values[t, row] * y[row]."""
    n = types.int64
    signature = types.void(n, n, n, n, block, offsets, columns, values, y, x, n, n)

    def generate(context, builder, signature, arguments):
        kinds, block, (at, stride) = signature.args, len(signature.args[4]), arguments[10:]
        y, x = (element(context, builder, kinds[i], arguments[i], at) for i in (8, 9))
        columns, values = (element(context, builder, kinds[i], arguments[i], _i64(0)) for i in (6, 7))

        def rows(strip, row, first, last):
            own = [strip.read(source) for source in _at(builder, y, row, block, stride)]
            with cgutils.for_range_slice(builder, first, last, _i64(1)) as (t, _):
                line = _line(builder, x, columns, t, stride)
                sums = strip.read(line)
                cells = builder.gep(values, [builder.mul(t, _i64(block))])
                for r, sources in enumerate(own):
                    weight = broadcast(builder, _number(builder, builder.gep(cells, [_i64(r)])), _FLOATS)
                    sums = [multiply_add(builder, weight, a, b) for a, b in zip(sources, sums, strict=True)]
                strip.write(sums, line)

        _for_rows(context, builder, signature, arguments, rows)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
@no_type_check
def products(_context, registers, tail, begin, end, block, offsets, columns, out, y, x, at, stride):
    """For the same rows and strip: out[t, row] += <y[row], x[columns[t]]>."""
    n = types.int64
    signature = types.void(n, n, n, n, block, offsets, columns, out, y, x, n, n)

    def generate(context, builder, signature, arguments):
        kinds, block, (at, stride) = signature.args, len(signature.args[4]), arguments[10:]
        y, x = (element(context, builder, kinds[i], arguments[i], at) for i in (8, 9))
        columns, out = (element(context, builder, kinds[i], arguments[i], _i64(0)) for i in (6, 7))

        def rows(strip, row, first, last):
            own = [strip.read(source) for source in _at(builder, y, row, block, stride)]
            with cgutils.for_range_slice(builder, first, last, _i64(1)) as (t, _):
                others = strip.read(_line(builder, x, columns, t, stride))
                cells = builder.gep(out, [builder.mul(t, _i64(block))])
                for r, sources in enumerate(own):
                    cell = builder.gep(cells, [_i64(r)])
                    total = _inner_product(builder, sources, others)
                    builder.store(builder.fadd(builder.load(cell), total), cell)

        _for_rows(context, builder, signature, arguments, rows)
        return context.get_dummy_value()

    return signature, generate


def _inner_product(builder: Any, first: list[Any], second: list[Any]) -> Any:
    chains = [_floats(0.0), _floats(0.0)]  # two, so that a product need not wait for the one before
    for v, (a, b) in enumerate(zip(first, second, strict=True)):
        chains[v % 2] = multiply_add(builder, a, b, chains[v % 2])
    kind = ir.FunctionType(_float, [_float, _FLOATS])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{WIDTH}f32")
    return builder.call(function, [_float(0.0), builder.fadd(*chains)], fastmath=("reassoc",))
