"""Half-precision numbers in compiled code: every code read, and numbers of every size written."""

from typing import Any, no_type_check

import numpy as np
import pytest
import torch
from numba import njit
from torch import Tensor

from sparsebook.kernels.block_attention.halves import bits_of, read, write

HALVES = [torch.bfloat16, torch.float16]


@njit
@no_type_check
def copy(source: Any, target: Any) -> None:
    for i in range(source.size):
        write(target, i, read(source, i))


def compiled(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What our own conversion makes of x."""
    converted = torch.empty_like(x, dtype=dtype)
    copy(bits_of(x), bits_of(converted))
    return converted


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_code_is_read(dtype: torch.dtype) -> None:
    codes = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    torch.testing.assert_close(compiled(codes, torch.float32), codes.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_numbers_are_rounded_to_nearest_even(dtype: torch.dtype) -> None:
    codes = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    # Besides numbers of every size: every half, its neighbours, and the ties between two halves.
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).float()
    ties = (halves[:-1] + halves[1:]) / 2
    exact = torch.cat([torch.from_numpy(codes.view(np.float32)), halves, ties])
    infinity = torch.tensor(torch.inf)
    x = torch.cat([exact, exact.nextafter(infinity), exact.nextafter(-infinity)])
    torch.testing.assert_close(compiled(x, dtype), x.to(dtype), rtol=0, atol=0, equal_nan=True)
