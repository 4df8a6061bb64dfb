"""The inner loops of sparse products in LLVM's vector type: sums in registers along a strip of columns.

A strip is a few registers of neighbouring columns (`counts`). One non-zero costs a load of its index, a load
of its value and, for every register, a multiply-add with its operand read from memory: vector loads at full
width however scattered the non-zeros are. The last register of a strip is masked, so that any number of
columns will do. bfloat16 comes as uint16 and is widened as it is read.

What a product works on stands in a block of integers (`COUNTER` and what follows), shared by all threads.
"""

from collections.abc import Callable
from typing import Any, no_type_check

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from sparsebook.kernels.lanes import WIDTH, broadcast, element, load, multiply_add, store

(
    COUNTER, THREAD, PLAN, STRIPS, PARTS, ENTRIES, ROWS, SOURCES, OFFSETS, COLUMNS, VALUES, Y, X, STRIDE,
    BIAS, BOUNDS, TILE, TILE_SIZE, N_ARGUMENTS,
) = range(19)  # fmt: skip
"""What stands where in the block of a product's arguments.

Counters of items and of threads, both 0 at first; address and length of the plan, parts of the rows;
entries, row blocks, rows of x; addresses of the lists and of y and x, whose rows lie STRIDE apart; addresses
of bias and bounds; address of the threads' tiles and floats in each.
"""
COUNTS = (1, 2, 3, 4, 6, 7, 8, 10, 13, 16)
"""Registers that a strip may have; with AVX-512, 13 are an image of 14 x 14 pixels and 7 one half of it."""
_SUMS = 12 if WIDTH == 8 else 24
"""Registers for sums: three quarters of what the machine has (16 with AVX, 32 with AVX-512 and NEON)."""

_float, _i16, _i32, _i64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_FLOATS, _INTEGERS, _HALVES = (ir.VectorType(kind, WIDTH) for kind in (_float, _i32, _i16))
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

    def read_whole(self, pointer: Any) -> list[Any]:
        """Registers of floats, every lane of the last."""
        return [load(self.builder, cell, _FLOATS) for cell in self._cells(pointer)]

    def write_whole(self, registers: list[Any], pointer: Any) -> None:
        for register, cell in zip(registers, self._cells(pointer), strict=True):
            store(self.builder, register, cell)

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


def counts(block: int) -> tuple[int, ...]:
    """Registers that a strip may have when `block` rows are summed at once."""
    return tuple(count for count in COUNTS if count * block <= _SUMS)


class _Work:
    """What the products have in common: typed addresses of lists and operands, and the loop over rows.

    The arguments of each begin with the block of arguments, the strip's first column, its registers and the
    lanes of its last, first and last row; they end with `block` (a tuple as long as a block has rows) and the
    types of values and of indices, for each combination of which there is code of its own.
    """

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        self.builder = builder
        self.numbers = element(context, builder, signature.args[0], arguments[0], _i64(0))
        self.at, self.registers, self.tail, self.begin, self.end = arguments[1:6]
        block, value, index = signature.args[-3:]
        self.block = len(block)
        self.value = _i16 if value.instance_type == types.uint16 else _float
        self.stride = self.number(STRIDE)
        self.open_index(index)

    def open_index(self, index: Any) -> None:
        """Make ready what `bounds` and `column` read."""
        kind = ir.IntType(index.instance_type.bitwidth)
        self.offsets, self.columns = self.pointer(OFFSETS, kind), self.pointer(COLUMNS, kind)

    def number(self, which: int) -> Any:
        return self.builder.load(self.builder.gep(self.numbers, [_i64(which)]))

    def pointer(self, which: int, kind: Any) -> Any:
        return self.builder.inttoptr(self.number(which), kind.as_pointer())

    def operand(self, which: int, kind: Any) -> Any:
        """A dense operand, from the strip's first column on."""
        return self.builder.gep(self.pointer(which, kind), [self.at])

    def bounds(self, row: Any) -> tuple[Any, Any]:
        """First entry of a row block and of the next; `column` is then asked for those between."""
        at = [self.builder.gep(self.offsets, [self.builder.add(row, _i64(i))]) for i in (0, 1)]
        first, last = (self.builder.sext(self.builder.load(cell), _i64) for cell in at)
        return first, last

    def column(self, entry: Any) -> Any:
        """The column that an entry names."""
        return self.builder.sext(self.builder.load(self.builder.gep(self.columns, [entry])), _i64)

    def line(self, base: Any, row: Any) -> Any:
        """Where a row of a dense operand begins."""
        return self.builder.gep(base, [self.builder.mul(row, self.stride)])

    def lines(self, base: Any, row: Any) -> list[Any]:
        """Where the rows of a row block begin."""
        first = self.builder.mul(row, _i64(self.block))
        return [self.line(base, self.builder.add(first, _i64(r))) for r in range(self.block)]

    def cells(self, base: Any, entry: Any) -> list[Any]:
        """Where the numbers of an entry or of a row block lie, one for every row of the block."""
        first = self.builder.gep(base, [self.builder.mul(entry, _i64(self.block))])
        return [self.builder.gep(first, [_i64(r)]) for r in range(self.block)]

    def weights(self, base: Any, entry: Any) -> list[Any]:
        """The numbers of an entry, each in every lane."""
        cells = self.cells(base, entry)
        return [broadcast(self.builder, _number(self.builder, cell), _FLOATS) for cell in cells]

    def for_counts(self, body: Callable[["_Strip"], None]) -> None:
        """`body(strip)`, with code of its own for every count of registers."""
        for count in counts(self.block):
            with self.builder.if_then(self.builder.icmp_signed("==", self.registers, _i64(count))):
                body(_Strip(self.builder, count, self.tail))

    def for_rows(
        self, body: Callable[["_Strip", Any], tuple[Callable[[Any], None], Callable[[], None] | None]]
    ) -> None:
        """`body(strip, row)` for the row blocks: it returns what is done for each entry, and at the end."""
        builder = self.builder

        def rows(strip: _Strip) -> None:
            with cgutils.for_range_slice(builder, self.begin, self.end, _i64(1)) as (row, _):
                first, last = self.bounds(row)
                each, finish = body(strip, row)
                with cgutils.for_range_slice(builder, first, last, _i64(1)) as (entry, _):
                    each(entry)
                if finish:
                    finish()

        self.for_counts(rows)


class _Groups(_Work):
    """N:M: each m neighbours in a row have n entries, whose positions are packed into bits (`kernels.nm`).

    In place of the type of indices stands the tuple (n zeros, m zeros).
    """

    def open_index(self, index: Any) -> None:
        self.n, self.m = (len(part) for part in index)
        self.bits = position_bits(self.m)
        self.positions = self.pointer(COLUMNS, ir.IntType(8))
        groups = self.builder.udiv(self.number(SOURCES), _i64(self.m))
        self.kept = self.builder.mul(groups, _i64(self.n))

    def bounds(self, row: Any) -> tuple[Any, Any]:
        self.before = self.builder.mul(row, self.number(SOURCES))
        first = self.builder.mul(row, self.kept)
        return first, self.builder.add(first, self.kept)

    def column(self, entry: Any) -> Any:
        builder, per_byte = self.builder, 8 // self.bits
        byte = builder.load(builder.gep(self.positions, [builder.udiv(entry, _i64(per_byte))]))
        shift = builder.mul(builder.urem(entry, _i64(per_byte)), _i64(self.bits))
        position = builder.and_(builder.lshr(builder.zext(byte, _i64), shift), _i64(2**self.bits - 1))
        group = builder.mul(builder.udiv(entry, _i64(self.n)), _i64(self.m))
        return builder.sub(builder.add(group, position), self.before)


def position_bits(m: int) -> int:
    """Bits of a position among m neighbours: 1, 2, 4 or 8, so that none lies across two bytes."""
    return next(bits for bits in (1, 2, 4, 8) if 2**bits >= m)


def _work(context: Any, builder: Any, signature: Any, arguments: Any) -> _Work:
    grouped = isinstance(signature.args[-1], types.BaseTuple)
    return (_Groups if grouped else _Work)(context, builder, signature, arguments)


@intrinsic
@no_type_check
def pack(_context, a, at, registers, tail, begin, end, tile, block, value, index):
    """Copy rows `begin` to `end` of a strip of x to the address `tile`, in whole registers of floats."""
    n = types.int64
    signature = types.void(a, n, n, n, n, n, n, block, value, index)

    def generate(context, builder, signature, arguments):
        work = _work(context, builder, signature, arguments)
        x, tile = work.operand(X, work.value), builder.inttoptr(arguments[6], _float.as_pointer())

        def rows(strip):
            with cgutils.for_range_slice(builder, work.begin, work.end, _i64(1)) as (row, _):
                target = builder.gep(tile, [builder.mul(row, _i64(strip.count * WIDTH))])
                strip.write_whole(strip.read(work.line(x, row)), target)

        work.for_counts(rows)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
@no_type_check
def gather(_context, a, at, registers, tail, begin, end, tile, block, value, index):
    """For the rows of row blocks `begin` to `end`, in the strip of `registers` that starts at column `at`:

    y[row] = clamp(bias[row] + sum over t of values[t, row] * x[columns[t]]),  offsets[] <= t < offsets[+ 1]

    `tile` is the address to which `pack` has copied the strip of x, or None: then x itself is read. `tail`
    lanes of the last register count. NaN passes the clamp.
    """
    n = types.int64
    signature = types.void(a, n, n, n, n, n, tile, block, value, index)

    def generate(context, builder, signature, arguments):
        work = _work(context, builder, signature, arguments)
        packed = not isinstance(signature.args[6], types.NoneType)
        x = builder.inttoptr(arguments[6], _float.as_pointer()) if packed else work.operand(X, work.value)
        y, values = work.operand(Y, work.value), work.pointer(VALUES, work.value)
        bias, bounds = work.pointer(BIAS, _float), work.pointer(BOUNDS, _float)
        lowest, highest = (
            broadcast(builder, builder.load(builder.gep(bounds, [_i64(i)])), _FLOATS) for i in (0, 1)
        )

        def clamped(value):
            value = builder.select(builder.fcmp_ordered("<", value, lowest), lowest, value)
            return builder.select(builder.fcmp_ordered(">", value, highest), highest, value)

        def read(strip, column):
            if not packed:
                return strip.read(work.line(x, column))
            return strip.read_whole(builder.gep(x, [builder.mul(column, _i64(strip.count * WIDTH))]))

        def row_sums(strip, row):
            sums = []
            for cell in work.cells(bias, row):
                start = broadcast(builder, builder.load(cell), _FLOATS)
                sums.append([cgutils.alloca_once_value(builder, start) for _ in range(strip.count)])

            def add(entry):
                sources = read(strip, work.column(entry))
                for weight, own in zip(work.weights(values, entry), sums, strict=True):
                    for source, total in zip(sources, own, strict=True):
                        builder.store(multiply_add(builder, weight, source, builder.load(total)), total)

            def write():
                for own, target in zip(sums, work.lines(y, row), strict=True):
                    strip.write([clamped(builder.load(total)) for total in own], target)

            return add, write

        work.for_rows(row_sums)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
@no_type_check
def clear(_context, a, at, registers, tail, begin, end, tile, block, value, index):
    """Fill rows `begin` to `end` of the tile at an address with zeros."""
    n = types.int64
    signature = types.void(a, n, n, n, n, n, n, block, value, index)

    def generate(context, builder, signature, arguments):
        work = _work(context, builder, signature, arguments)
        tile = builder.inttoptr(arguments[6], _float.as_pointer())

        def rows(strip):
            with cgutils.for_range_slice(builder, work.begin, work.end, _i64(1)) as (row, _):
                target = builder.gep(tile, [builder.mul(row, _i64(strip.count * WIDTH))])
                strip.write_whole([_floats(0.0)] * strip.count, target)

        work.for_counts(rows)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
@no_type_check
def unpack(_context, a, at, registers, tail, begin, end, tile, block, value, index):
    """Copy rows `begin` to `end` of the tile at an address to the strip of x, in the type of values."""
    n = types.int64
    signature = types.void(a, n, n, n, n, n, n, block, value, index)

    def generate(context, builder, signature, arguments):
        work = _work(context, builder, signature, arguments)
        x, tile = work.operand(X, work.value), builder.inttoptr(arguments[6], _float.as_pointer())

        def rows(strip):
            with cgutils.for_range_slice(builder, work.begin, work.end, _i64(1)) as (row, _):
                source = builder.gep(tile, [builder.mul(row, _i64(strip.count * WIDTH))])
                strip.write(strip.read_whole(source), work.line(x, row))

        work.for_counts(rows)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
@no_type_check
def scatter(_context, a, at, registers, tail, begin, end, tile, block, value, index):
    """For the same rows and strip: x[columns[t]] += sum over the block's rows of values[t, row] * y[row].

    x is the tile at an address, or with None for it the float32 matrix itself.
    """
    n = types.int64
    signature = types.void(a, n, n, n, n, n, tile, block, value, index)

    def generate(context, builder, signature, arguments):
        work = _work(context, builder, signature, arguments)
        packed = not isinstance(signature.args[6], types.NoneType)
        x = builder.inttoptr(arguments[6], _float.as_pointer()) if packed else work.operand(X, _float)
        y, values = work.operand(Y, work.value), work.pointer(VALUES, work.value)

        def row_terms(strip, row):
            own = [strip.read(source) for source in work.lines(y, row)]

            def add(entry):
                column = work.column(entry)
                if packed:
                    line = builder.gep(x, [builder.mul(column, _i64(strip.count * WIDTH))])
                else:
                    line = work.line(x, column)
                sums = strip.read_whole(line) if packed else strip.read(line)
                for weight, sources in zip(work.weights(values, entry), own, strict=True):
                    sums = [multiply_add(builder, weight, a, b) for a, b in zip(sources, sums, strict=True)]
                (strip.write_whole if packed else strip.write)(sums, line)

            return add, None

        work.for_rows(row_terms)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
@no_type_check
def products(_context, a, at, registers, tail, begin, end, block, value, index):
    """For the same rows and strip: values[t, row] += <y[row], x[columns[t]]>, in float32."""
    n = types.int64
    signature = types.void(a, n, n, n, n, n, block, value, index)

    def generate(context, builder, signature, arguments):
        work = _work(context, builder, signature, arguments)
        y, x, out = work.operand(Y, work.value), work.operand(X, work.value), work.pointer(VALUES, _float)

        def row_products(strip, row):
            own = [strip.read(source) for source in work.lines(y, row)]

            def add(entry):
                others = strip.read(work.line(x, work.column(entry)))
                for cell, sources in zip(work.cells(out, entry), own, strict=True):
                    total = _inner_product(builder, sources, others)
                    builder.store(builder.fadd(builder.load(cell), total), cell)

            return add, None

        work.for_rows(row_products)
        return context.get_dummy_value()

    return signature, generate


def _inner_product(builder: Any, first: list[Any], second: list[Any]) -> Any:
    chains = [_floats(0.0), _floats(0.0)]  # two, so that a product need not wait for the one before
    for v, (a, b) in enumerate(zip(first, second, strict=True)):
        chains[v % 2] = multiply_add(builder, a, b, chains[v % 2])
    kind = ir.FunctionType(_float, [_float, _FLOATS])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{WIDTH}f32")
    return builder.call(function, [_float(0.0), builder.fadd(*chains)], fastmath=("reassoc",))
