"""The Triton products of sparse matrices against the reference: on a GPU, or through Triton's interpreter."""

import math
import os

import pytest
import torch
from torch import Tensor

from sparsebook.kernels.sparse_matmul.reference import sddmm_reference, spmm_reference, spmm_t_reference

pytest.importorskip("triton", reason="Triton is not installed (the extra `triton`)", exc_type=ImportError)

GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if GPU else "cpu"
here = pytest.mark.skipif(not (GPU or INTERPRETED), reason="run by test_triton.py")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


def inputs(block: int, width: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Lists with an empty row and a repeated column, and both dense operands."""
    generator = torch.Generator().manual_seed(width)
    columns, offsets = torch.tensor([3, 0, 0, 6, 5, 3, 1, 2]), torch.tensor([0, 3, 3, 4, 8])
    shapes = {"values": (8, block) if block > 1 else (8,), "x": (7, width), "y": (4 * block, width)}
    floats = {name: torch.randn(*s, generator=generator).to(dtype) for name, s in shapes.items()}
    return {name: t.to(DEVICE) for name, t in (floats | {"columns": columns, "offsets": offsets}).items()}


def close(actual: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


@here
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("block", [1, 2, 4])
@pytest.mark.parametrize("width", [5, 700])
def test_every_kernel(block: int, width: int, dtype: torch.dtype) -> None:
    from sparsebook.kernels.sparse_matmul import cuda

    given = inputs(block, width, dtype)
    lists = given["values"], given["columns"], given["offsets"]
    bias = torch.linspace(-1, 1, 4 * block, device=DEVICE)
    for b, low, high in ((None, -math.inf, math.inf), (bias, -0.5, 1.0)):
        close(
            cuda.spmm_cuda(*lists, given["x"], b, low, high), spmm_reference(*lists, given["x"], b, low, high)
        )
    close(cuda.spmm_t_cuda(*lists, given["y"], 7), spmm_t_reference(*lists, given["y"], 7))
    found = cuda.sddmm_cuda(*lists[1:], given["y"], given["x"], block)
    close(found, sddmm_reference(*lists[1:], given["y"].float(), given["x"].float(), block).to(dtype))


@here
def test_nothing_is_an_answer() -> None:
    from sparsebook.kernels.sparse_matmul import cuda

    nothing = torch.zeros(0, device=DEVICE), torch.zeros(0, dtype=torch.int64, device=DEVICE)
    offsets = torch.zeros(4, dtype=torch.int64, device=DEVICE)
    y = cuda.spmm_cuda(*nothing, offsets, torch.ones(2, 3, device=DEVICE), None, -math.inf, math.inf)
    assert y.tolist() == [[0.0] * 3] * 3
    assert cuda.sddmm_cuda(nothing[1], offsets, y, torch.ones(2, 3, device=DEVICE), 1).shape == (0,)
