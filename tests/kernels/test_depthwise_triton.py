"""The Triton depthwise convolution against the reference: on a GPU, or through Triton's interpreter."""

import math
import os

import pytest
import torch

from sparsebook.kernels.depthwise.reference import depthwise_reference

pytest.importorskip("triton", reason="Triton is not installed (the extra `triton`)", exc_type=ImportError)

GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if GPU else "cpu"
here = pytest.mark.skipif(not (GPU or INTERPRETED), reason="run by test_triton.py")


@here
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("size", "stride", "sides"), [(3, 1, [1, 1, 1, 1]), (5, 2, [1, 2, 0, 2]), (2, 3, [0] * 4)]
)
def test_the_kernel(size: int, stride: int, sides: list[int], dtype: torch.dtype) -> None:
    from sparsebook.kernels.depthwise.cuda import depthwise_cuda

    generator = torch.Generator().manual_seed(size)
    shapes = (2, 3, 25, 26), (3, size, size), (3,)
    x, weight, bias = (torch.randn(*s, generator=generator).to(DEVICE, dtype) for s in shapes)
    turned = x.transpose(0, 1).contiguous().transpose(0, 1)
    for images in (x, turned):
        for b, low, high in ((None, -math.inf, math.inf), (bias, -0.5, 1.0)):
            y = depthwise_cuda(images, weight, b, stride, sides, low, high)
            exact = depthwise_reference(
                x.double(), weight.double(), None if b is None else b.double(), stride, sides, low, high
            )
            tolerance = 1e-5 if dtype == torch.float32 else 3e-2
            torch.testing.assert_close(y.double(), exact, rtol=tolerance, atol=tolerance)
            assert y.stride(0) == (images.stride(0) // 26 // 25 * y.shape[2] * y.shape[3])
