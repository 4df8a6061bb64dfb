"""The Triton products of sparse codes against the reference: on a GPU, or through Triton's interpreter."""

import os

import pytest
import torch
from torch import Tensor

from sparsebook.kernels.sparse_codes.operators import _reference_backward
from sparsebook.kernels.sparse_codes.reference import decode_reference, project_reference

pytest.importorskip("triton", reason="Triton is not installed (the extra `triton`)", exc_type=ImportError)

GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if GPU else "cpu"
here = pytest.mark.skipif(not (GPU or INTERPRETED), reason="run by test_triton.py")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 5e-3}


def inputs(dim: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """x or the incoming gradient, values, indices, offsets, dictionary; empty rows and a repeated atom."""
    generator = torch.Generator().manual_seed(dim)
    indices, offsets = torch.tensor([3, 0, 0, 6, 5, 3, 1, 2]), torch.tensor([0, 3, 3, 4, 8])
    floats = [torch.randn(*s, generator=generator).to(dtype) for s in ((4, dim), (8,), (7, dim))]
    return tuple(t.to(DEVICE) for t in (floats[0], floats[1], indices, offsets, floats[2]))


def close(actual: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


@here
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("dim", [40, 700])
def test_every_kernel(dim: int, dtype: torch.dtype) -> None:
    from sparsebook.kernels.sparse_codes import cuda

    x, *lists = inputs(dim, dtype)
    close(cuda.sparse_decode_cuda(*lists), decode_reference(*lists))
    close(cuda.sparse_project_cuda(x, *lists[1:]), project_reference(x, *lists[1:]))
    exact = [t.double() if t.is_floating_point() else t for t in (x, *lists)]
    for wanted in ((True, True), (True, False), (False, True)):
        found = cuda.sparse_decode_backward_cuda(x, *lists, *wanted)
        for mine, theirs in zip(found, _reference_backward(*exact, *wanted), strict=True):
            assert mine.dtype == dtype
            close(mine, theirs)


@here
def test_nothing_to_do() -> None:
    from sparsebook.kernels.sparse_codes import cuda

    x, values, indices, offsets, dictionary = inputs(40, torch.float32)
    none = (values[:0], indices[:0], offsets[:1], dictionary)
    assert cuda.sparse_decode_cuda(*none).shape == (0, 40)
    assert cuda.sparse_project_cuda(x[:0], *none[1:]).shape == (0,)
    assert not cuda.sparse_decode_backward_cuda(x[:0], *none, True, True)[1].any()


@here
@pytest.mark.skipif(not GPU, reason="needs a GPU")
def test_public_functions_on_a_gpu() -> None:
    """The dispatch, the checks and the gradients, against the CPU."""
    from sparsebook.kernels.sparse_codes import decode, project

    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(*s, generator=generator) for s in ((300, 9), (500, 200), (300, 200))]
    indices = torch.randint(0, 500, (300, 9), generator=generator)
    results = []
    for device in ("cpu", DEVICE):
        values, dictionary, x = (leaf.to(device).requires_grad_() for leaf in leaves)
        out = decode(values, indices.to(device), dictionary)
        inner = project(x, indices.to(device), dictionary)
        (out.square().sum() + inner.square().sum()).backward()
        parts = (out, inner, values.grad, dictionary.grad, x.grad)
        results.append([part.detach().cpu() for part in parts])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
