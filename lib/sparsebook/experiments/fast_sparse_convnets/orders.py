"""The same product in other orders: output channels outside, and images that lie pixel by pixel.

Both orders of loops share one inner loop, that of the depthwise kernel: a sum over weights of a run of
neighbouring numbers at another place for each.
"""

from typing import no_type_check

import numpy as np
from numba import njit

from sparsebook.kernels.depthwise.registers import correlate
from sparsebook.kernels.lanes import WIDTH

_REGISTERS = 4


@njit(cache=True, nogil=True)
@no_type_check
def _row(y, x, shifts, values, offsets, row, start, pixels):
    first, last = offsets[row], offsets[row + 1]
    zero, infinite = np.float32(0), np.float32(np.inf)
    correlate(
        _REGISTERS, y, row * pixels + start, x, start, shifts[first:], values, first, last - first, zero,
        -infinite, infinite,
    )  # fmt: skip


@njit(cache=True, nogil=True)
@no_type_check
def strips_outside(y, x, shifts, values, offsets, pixels):
    """y = weights @ x, all output channels for a strip of pixels before the next strip.

    All arrays are flat; shifts are columns * pixels. There are at least as many pixels as a strip has.
    """
    width = _REGISTERS * WIDTH
    for strip in range((pixels + width - 1) // width):
        start = min(strip * width, pixels - width)
        for row in range(len(offsets) - 1):
            _row(y, x, shifts, values, offsets, row, start, pixels)


@njit(cache=True, nogil=True)
@no_type_check
def rows_outside(y, x, shifts, values, offsets, pixels):
    """The same, all pixels of an output channel before the next channel."""
    width = _REGISTERS * WIDTH
    for row in range(len(offsets) - 1):
        for strip in range((pixels + width - 1) // width):
            start = min(strip * width, pixels - width)
            _row(y, x, shifts, values, offsets, row, start, pixels)


@njit(cache=True, nogil=True, fastmath=True)
@no_type_check
def pixel_by_pixel(y, x, columns, values, offsets):
    """y = x @ weights.T for x [pixels, channels]: numbers are gathered, one for every weight."""
    for pixel in range(x.shape[0]):
        for row in range(len(offsets) - 1):
            total = np.float32(0)
            for t in range(offsets[row], offsets[row + 1]):
                total += values[t] * x[pixel, columns[t]]
            y[pixel, row] = total
