"""The Triton products of N:M matrices against the reference: on a GPU, or through Triton's interpreter."""

import os

import pytest
import torch

from sparsebook.kernels.nm import reference

pytest.importorskip("triton", reason="Triton is not installed (the extra `triton`)", exc_type=ImportError)

GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if GPU else "cpu"
here = pytest.mark.skipif(not (GPU or INTERPRETED), reason="run by test_triton.py")


@here
@pytest.mark.parametrize("pattern", [(2, 4), (4, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_product(pattern, dtype) -> None:
    from sparsebook.kernels.nm import cuda

    n, m = pattern
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(3 * 2, m, generator=generator).argsort(1)[:, :n].sort(1).values
    values, x, y = (
        torch.randn(*shape, generator=generator).to(DEVICE, dtype)
        for shape in ((3, 2 * n), (2 * m, 9), (3, 9))
    )
    positions = reference.pack_positions(places, m).to(DEVICE)
    tolerance = {"rtol": 3e-2, "atol": 5e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    for found, exact in (
        (cuda.nm_matmul_cuda(values, positions, x, n, m), reference.nm_matmul_reference),
        (cuda.nm_matmul_t_cuda(values, positions, y, n, m), reference.nm_matmul_t_reference),
    ):
        operand = x if exact is reference.nm_matmul_reference else y
        expected = exact(values.double(), positions, operand.double(), n, m)
        torch.testing.assert_close(found.double(), expected, **tolerance)
    found = cuda.nm_sddmm_cuda(positions, y, x, n, m)
    expected = reference.nm_sddmm_reference(positions, y.double(), x.double(), n, m)
    torch.testing.assert_close(found.double(), expected, **tolerance)
