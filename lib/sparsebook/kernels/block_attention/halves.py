"""Half-precision numbers read and written one at a time on a CPU, where Numba has no type for them.

Tensors come as integers: the bits of bfloat16 as uint16, those of float16 as int16, and float32 as itself.
The integer arithmetic has no branches, so that LLVM makes vectors of loops over it.
"""

from typing import Any, no_type_check

import numpy as np
import torch
from numba import njit, types
from numba.extending import overload
from torch import Tensor

_u32 = np.uint32


def bits_of(x: Tensor) -> np.ndarray:
    """A contiguous tensor's numbers as a flat array that `read` and `write` understand; shares memory."""
    kind = {torch.bfloat16: torch.uint16, torch.float16: torch.int16}.get(x.dtype, x.dtype)
    return x.view(-1).view(kind).numpy()


@njit
@no_type_check
def _from_bfloat16(bits):
    return _u32(_u32(bits) << _u32(16)).view(np.float32)


@njit
@no_type_check
def _to_bfloat16(x):
    bits = np.float32(x).view(_u32)
    even = _u32(_u32(bits + _u32(0x7FFF) + _u32((bits >> _u32(16)) & _u32(1))) >> _u32(16))
    return np.uint16(0x7FC0) if x != x else np.uint16(even)


@njit
@no_type_check
def _from_float16(bits):
    unsigned = _u32(np.uint16(bits))
    shifted = _u32(_u32(unsigned & _u32(0x7FFF)) << _u32(13))
    # In float32 the exponent's bias is 112 more; the product is exact, for subnormal numbers too.
    magnitude = np.float32(shifted.view(np.float32) * np.float32(2.0**112)).view(_u32)
    if shifted >= _u32(0x7C00 << 13):
        magnitude = _u32(magnitude | _u32(0x7F800000))
    return _u32(magnitude | _u32(_u32(unsigned & _u32(0x8000)) << _u32(16))).view(np.float32)


@njit
@no_type_check
def _to_float16(x):
    bits = np.float32(x).view(_u32)
    magnitude = _u32(bits & _u32(0x7FFFFFFF))
    odd = _u32(_u32(magnitude >> _u32(13)) & _u32(1))
    result = _u32(_u32(magnitude - _u32(112 << 23) + _u32(0xFFF) + odd) >> _u32(13))
    if magnitude < _u32(0x38800000):
        # Subnormal: the sum with 1/2 is rounded to a multiple of 2^-24, which its low bits count.
        half = np.float32(magnitude.view(np.float32) + np.float32(0.5)).view(_u32)
        result = _u32(half - _u32(0x3F000000))
    if magnitude >= _u32(0x47800000):
        result = _u32(0x7C00)
    if magnitude > _u32(0x7F800000):
        result = _u32(0x7E00)
    return np.int16(np.uint16(result | _u32(_u32(bits >> _u32(16)) & _u32(0x8000))))


def read(array: Any, i: int) -> Any:
    """Element i as float32 (in compiled code only)."""
    raise NotImplementedError


def write(array: Any, i: int, value: Any) -> None:
    """Element i becomes the float32 `value`, rounded to nearest even (in compiled code only)."""
    raise NotImplementedError


@overload(read, inline="always")
@no_type_check
def _read(array, i):
    if array.dtype == types.uint16:
        return lambda array, i: _from_bfloat16(array[i])
    if array.dtype == types.int16:
        return lambda array, i: _from_float16(array[i])
    return lambda array, i: array[i]


@overload(write, inline="always")
@no_type_check
def _write(array, i, value):
    convert = {types.uint16: _to_bfloat16, types.int16: _to_float16}.get(array.dtype)
    if convert is None:

        def store(array, i, value):
            array[i] = value
    else:

        def store(array, i, value):
            array[i] = convert(value)

    return store
