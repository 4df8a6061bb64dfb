"""The Triton depthwise convolution against the reference: on a GPU, or through Triton's interpreter."""

import math
import os
import subprocess
import sys

import pytest
import torch

from sparsebook.kernels.depthwise.reference import depthwise_reference

pytest.importorskip("triton", reason="Triton is not installed (the extra `triton`)", exc_type=ImportError)

GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if GPU else "cpu"
here = pytest.mark.skipif(not (GPU or INTERPRETED), reason="run by test_through_the_interpreter")


@pytest.mark.skipif(GPU or INTERPRETED, reason="the kernel runs in this very process")
def test_through_the_interpreter() -> None:
    """Triton must be told before it is imported: this file again, in a process of its own."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    options = ["-q", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib"]
    command = [sys.executable, "-m", "pytest", *options, __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout


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
