"""Depthwise convolution on a CPU, a band of rows of one plane at a time.

A band's input is laid out once with its zeros around it, for a stride of s as s x s planes of every s-th
row and column. Then each tap of the kernel is the same run of neighbouring numbers at another shift, over the
ends of rows: full registers even where an image is seven pixels wide, and no case for borders or strides in
the inner loop. What the run gives between two rows is not copied to the result.
"""

from functools import lru_cache
from typing import Any, no_type_check

import numpy as np
import torch
from numba import carray, cfunc, njit
from torch import Tensor

from sparsebook.kernels.depthwise.registers import COUNTS, clear, copy, correlate, part
from sparsebook.kernels.lanes import WIDTH, take_number
from sparsebook.kernels.threads import JOB, pointer_to, run_job, thread_count

_LEAST_WORK = 1 << 16  # multiplications that are worth a thread
_BAND = 6144  # floats of a band's input: half of a first-level cache of 48 KiB
_MOST = COUNTS[-1]
_SLACK = _MOST * WIDTH  # what a run may read and write past its end


@njit(cache=True, nogil=True)
@no_type_check
def _columns(across, step, width, left, pitch):
    """First and end of the columns of a plane that hold the image: column * step + across - left is there."""
    begin = min(pitch, max(0, (left - across + step - 1) // step))
    return begin, max(begin, min(pitch, (width - 1 + left - across) // step + 1))


@njit(cache=True, nogil=True)
@no_type_check
def _lay_out(x, plane, height, width, first, rows, pitch, step, left, top, apart, band, at, whole):
    """Fill the step x step planes, `apart` from each other, of `rows` rows that a band needs.

    Columns of zeros are there already; so are rows of zeros if every band is the whole of a plane.
    """
    for down in range(step):
        for across in range(step):
            if step == 2 and across != left % 2:
                continue  # done with its neighbours
            begin, end = _columns(across, step, width, left, pitch)
            other_begin, other_end = _columns(1 - across, step, width, left, pitch) if step == 2 else (0, 0)
            other = at + (down * step + 1 - across) * apart + other_begin
            target = at + (down * step + across) * apart + begin
            row = first * step + down - top
            for _ in range(rows):
                start = plane + row * width
                if row < 0 or row >= height:
                    if not whole:
                        clear(band, target, end - begin)
                        clear(band, other, other_end - other_begin)
                elif step == 1:
                    copy(band, target, x, start + begin - left, end - begin)
                elif step == 2:
                    part(band, target, end - begin, other, other_end - other_begin, x, start, width)
                else:
                    for i in range(end - begin):
                        band[target + i] = x[start + (begin + i) * step + across - left]
                row += step
                target += pitch
                other += pitch


@njit(cache=True, nogil=True)
@no_type_check
def _sum_up(out, band, at_out, at, vectors, shifts, weights, first, taps, bias, low, high):
    """The whole run, in pieces of about as many registers each."""
    while vectors > 0:
        count = min(vectors, _MOST) if vectors <= _MOST or vectors >= 2 * _MOST else (vectors + 1) // 2
        correlate(count, out, at_out, band, at, shifts, weights, first, taps, bias, low, high)
        vectors -= count
        at_out += count * WIDTH
        at += count * WIDTH


# What a job finds in its block of arguments, one number each; two counters start at zero.
(
    _ITEM, _THREAD, _X, _Y, _WEIGHT, _BIAS, _BOUNDS, _SHIFTS, _SPACE, _BATCH, _CHANNELS, _HEIGHT, _WIDTH,
    _X_BATCH, _X_CHANNEL, _Y_BATCH, _Y_CHANNEL, _NEW_HEIGHT, _NEW_WIDTH, _STEP, _LEFT, _TOP, _TAPS, _NEW_ROWS,
    _ROWS, _PITCH, _SIZE, _ROOM, _BANDS, _TOGETHER, _BY_CHANNEL, _ARGUMENTS,
) = range(32)  # fmt: skip


@njit(cache=True, nogil=True)
@no_type_check
def _place(number, bands, channels, batch, new_rows, by_channel):
    """Image, channel and first row of the result of a band; without divisions where one will do."""
    whole, band = (number, 0) if bands == 1 else (number // bands, number % bands)
    if batch == 1:
        return 0, whole, band * new_rows
    if by_channel:
        return whole % batch, whole // batch, band * new_rows
    return whole // channels, whole % channels, band * new_rows


@lru_cache(1)
def _job() -> Any:
    """A job for all planes and bands."""

    @cfunc(JOB, cache=True)
    @no_type_check
    def job(block_of_arguments):
        a = carray(block_of_arguments, _ARGUMENTS)
        batch, channels, height, width = a[_BATCH], a[_CHANNELS], a[_HEIGHT], a[_WIDTH]
        new_height, new_width, step, taps = a[_NEW_HEIGHT], a[_NEW_WIDTH], a[_STEP], a[_TAPS]
        new_rows, rows, pitch, size, room = a[_NEW_ROWS], a[_ROWS], a[_PITCH], a[_SIZE], a[_ROOM]
        bands, together, by_channel = a[_BANDS], a[_TOGETHER], a[_BY_CHANNEL]
        x, y = carray(pointer_to(a[_X]), 1, np.float32), carray(pointer_to(a[_Y]), 1, np.float32)
        weights = carray(pointer_to(a[_WEIGHT]), 1, np.float32)
        bias = carray(pointer_to(a[_BIAS]), 1, np.float32)
        bounds = carray(pointer_to(a[_BOUNDS]), 2, np.float32)
        shifts = carray(pointer_to(a[_SHIFTS]), 1, np.int64)
        own = carray(pointer_to(a[_SPACE] + 4 * room * take_number(a[_THREAD:])), room, np.float32)
        between = (room - together * (step * step + 1) * size) // 2
        out = own[together * step * step * size + between :]
        while True:
            item = take_number(a) * together
            if item >= batch * channels * bands:
                return
            # All planes of an item step by step: what was written a moment ago is slow to read. Neighbours of
            # one channel are one run.
            end = min(item + together, batch * channels * bands)
            for number in range(item, end):
                image, channel, first = _place(number, bands, channels, batch, new_rows, by_channel)
                plane = image * a[_X_BATCH] + channel * a[_X_CHANNEL]
                _lay_out(
                    x, plane, height, width, first, rows, pitch, step, a[_LEFT], a[_TOP], together * size,
                    own, (number - item) * size, bands == 1,
                )  # fmt: skip
            number = item
            while number < end:
                _, channel, first = _place(number, bands, channels, batch, new_rows, by_channel)
                planes = min(end - number, batch - number % batch) if by_channel and bands == 1 else 1
                run = (planes - 1) * size + min(new_rows, new_height - first) * pitch
                at = (number - item) * size
                _sum_up(
                    out, own, at, at, (run + WIDTH - 1) // WIDTH, shifts, weights, channel * taps, taps,
                    bias[channel], bounds[0], bounds[1],
                )  # fmt: skip
                number += planes
            for number in range(item, end):
                image, channel, first = _place(number, bands, channels, batch, new_rows, by_channel)
                target = image * a[_Y_BATCH] + channel * a[_Y_CHANNEL] + first * new_width
                source = (number - item) * size
                for row in range(min(new_rows, new_height - first)):
                    copy(y, target + row * new_width, out, source + row * pitch, new_width)

    return job


@lru_cache(256)
def _geometry(
    height: int, width: int, kernel: tuple[int, int], stride: int, sides: tuple[int, ...]
) -> tuple[list[int], Tensor, int]:
    """Sizes from `new_height` on, the shift of every tap, and the floats that a thread needs."""
    high, wide = kernel
    new_height = (height + sides[2] + sides[3] - high) // stride + 1
    new_width = (width + sides[0] + sides[1] - wide) // stride + 1
    pitch = new_width + (wide - 1) // stride
    more = (high - 1) // stride  # rows of a band's input beyond those of its result
    most = max(1, _BAND // (stride * stride * pitch) - more)
    bands = -(-new_height // most)
    rows = -(-new_height // bands)
    size = (rows + more) * pitch
    together = max(1, _BAND // ((stride * stride + 1) * size)) if bands == 1 else 1
    taps = [
        ((ky % stride) * stride + kx % stride) * together * size + (ky // stride) * pitch + kx // stride
        for ky in range(high)
        for kx in range(wide)
    ]
    space = together * (stride * stride + 1) * size + 2 * (_SLACK + more * pitch + WIDTH)
    sizes = [
        new_height, new_width, stride, sides[0], sides[2], high * wide, rows, rows + more, pitch, size, space,
        bands, together,
    ]  # fmt: skip
    return sizes, torch.tensor(taps), space


@lru_cache(64)
def _bounds(low: float | int, high: float | int) -> Tensor:
    return torch.tensor([low, high], dtype=torch.float32)


@lru_cache(64)
def _no_bias(channels: int) -> Tensor:
    return torch.zeros(channels)


def depthwise_cpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    sides: list[int],
    low: float | int,
    high: float | int,
) -> Tensor:
    """Arguments and result as the operator `sparsebook::depthwise`; float32 or bfloat16."""
    dtype, x = x.dtype, x.float()
    batch, channels, height, width = x.shape
    if x.stride()[2:] != (width, 1):
        x = x.contiguous()
    sizes, shifts, space = _geometry(height, width, tuple(weight.shape[1:]), stride, tuple(sides))
    y = like(x, sizes[0], sizes[1])
    if y.numel():
        threads = thread_count(y.numel() * shifts.shape[0], _LEAST_WORK)
        biases = _no_bias(channels) if bias is None else bias.float()
        weights, bounds, room = weight.float(), _bounds(low, high), torch.zeros(threads * space)
        pointers = [tensor.data_ptr() for tensor in (x, y, weights, biases, bounds, shifts, room)]
        strides = [*x.stride()[:2], *y.stride()[:2]]
        by_channel = int(batch > 1 and x.stride(0) < x.stride(1))
        given = [batch, channels, height, width, *strides, *sizes, by_channel]
        run_job(_job(), threads, [0, 0, *pointers, *given])
    return y.to(dtype)


def like(x: Tensor, height: int | torch.SymInt, width: int | torch.SymInt) -> Tensor:
    """An empty result whose planes lie in the order of the input's."""
    batch, channels = x.shape[:2]
    if batch > 1 and x.stride(0) < x.stride(1):
        return x.new_empty((channels, batch, height, width)).transpose(0, 1)
    return x.new_empty((batch, channels, height, width))
