"""The Triton selections against the reference: on a GPU, or through Triton's interpreter."""

import os

import pytest
import torch
from torch import Tensor

from sparsebook.kernels.selection.reference import (
    column_topm_reference,
    global_topm_reference,
    row_topk_reference,
)

pytest.importorskip("triton", reason="Triton is not installed (the extra `triton`)", exc_type=ImportError)

GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if GPU else "cpu"
here = pytest.mark.skipif(not (GPU or INTERPRETED), reason="run by test_triton.py")


def matrix(rows: int, columns: int, kind: str, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))
    if kind == "rounded":  # ties, both zeros
        x = (2 * x).round()
    elif kind == "infinite":
        x = torch.where(x > 1, torch.inf, torch.where(x < -1, -torch.inf, x))
    return x.to(dtype).to(DEVICE)


def equal(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)


CASES = [
    ((3, 40, "normal", torch.float32), 0.1), ((1, 33, "rounded", torch.float32), 0.5),
    ((2, 20, "infinite", torch.float32), 0.3), ((1, 5000, "rounded", torch.bfloat16), 0.6),
    ((1, 1, "normal", torch.float16), 1.0),
]  # fmt: skip


@here
@pytest.mark.parametrize(("case", "share"), CASES, ids=str)
def test_rows(case: tuple, share: float) -> None:
    from sparsebook.kernels.selection.cuda import row_topk_cuda

    x = matrix(*case)
    k = max(1, round(share * x.shape[1]))
    equal(row_topk_cuda(x, k, True), row_topk_reference(x, k, True))


@here
def test_rows_by_column() -> None:
    from sparsebook.kernels.selection.cuda import row_topk_cuda

    x = matrix(2, 17, "rounded")
    equal(row_topk_cuda(x, 6, False), row_topk_reference(x, 6, False))


@here
@pytest.mark.parametrize("case", [(5, 6, "rounded"), (20, 3, "infinite")], ids=str)
def test_columns(case: tuple) -> None:
    from sparsebook.kernels.selection.cuda import column_topm_cuda

    x = matrix(*case)
    m = torch.arange(x.shape[1], device=DEVICE) % (x.shape[0] + 1)
    equal(column_topm_cuda(x, m, int(m.sum())), column_topm_reference(x, m))


@here
@pytest.mark.parametrize(("case", "share"), CASES, ids=str)
def test_all(case: tuple, share: float) -> None:
    from sparsebook.kernels.selection.cuda import global_topm_cuda

    x = matrix(*case)
    m = max(1, round(share * x.numel()))
    equal(global_topm_cuda(x, m), global_topm_reference(x, m))


@here
def test_all_with_a_sampled_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsebook.kernels.selection import cuda

    monkeypatch.setattr(cuda, "_SAMPLE", 64)
    x = matrix(30, 300, "normal")
    assert cuda._sampled_limit(x.flatten(), 100) > 0
    equal(cuda.global_topm_cuda(x, 100), global_topm_reference(x, 100))
    for limit in (1.0, 1e30):  # low enough, and too high
        monkeypatch.setattr(cuda, "_sampled_limit", lambda x, m, limit=limit: limit)
        equal(cuda.global_topm_cuda(x, 100), global_topm_reference(x, 100))


@here
def test_nan_is_rejected() -> None:
    from sparsebook.kernels.selection import cuda

    x = matrix(3, 20, "normal")
    x[1, 3] = torch.nan
    m = torch.ones(20, dtype=torch.int64, device=DEVICE)
    for call in (
        lambda: cuda.row_topk_cuda(x, 2, True),
        lambda: cuda.column_topm_cuda(x, m, 20),
        lambda: cuda.global_topm_cuda(x, 4),
    ):
        with pytest.raises(ValueError, match="x must not hold NaN"):
            call()


@here
@pytest.mark.skipif(not GPU, reason="needs a GPU")
def test_public_functions_on_a_gpu() -> None:
    """The dispatch, the checks and the gradients, against the CPU."""
    from sparsebook.kernels.selection import column_topm, global_topm, row_topk

    x = torch.randn(200, 3000, generator=torch.Generator().manual_seed(0))
    results = []
    for device in ("cpu", DEVICE):
        leaf = x.to(device).requires_grad_()
        parts = [row_topk(leaf, 9).values, column_topm(leaf, 3).values, global_topm(leaf, 999).values]
        sum(part.square().sum() for part in parts).backward()
        results.append([part.detach().cpu() for part in (*parts, leaf.grad)])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)
