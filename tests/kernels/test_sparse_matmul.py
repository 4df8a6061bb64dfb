"""Sparse times dense products: against the dense product, its gradients, PyTorch's checks, bad input."""

import gc
import inspect
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from sparsebook.kernels import threads
from sparsebook.kernels.sparse_matmul import (
    cpu,
    known,
    sddmm,
    sddmm_csr,
    spmm,
    spmm_csr,
    spmm_reference,
    spmm_t,
    spmm_t_csr,
)
from sparsebook.kernels.sparse_matmul.registers import WIDTH, counts

TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2e-2, torch.float64: 1e-12}
INF = math.inf


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def sparse(seed: int, rows: int, columns: int, density: float, block: int = 1, dtype=torch.float32) -> Tensor:
    """A random matrix whose blocks of rows share their columns, as CSR or BSR."""
    kept = torch.rand(rows // block, columns, generator=torch.Generator().manual_seed(seed)) < density
    dense = normal(seed + 1, rows, columns, dtype=dtype) * kept.repeat_interleave(block, 0)
    return dense.to_sparse_csr() if block == 1 else dense.to_sparse_bsr((block, 1))


def close(actual: Tensor, expected: Tensor, scale: float = 1.0) -> None:
    tolerance = TOLERANCE[actual.dtype] * scale
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


@pytest.fixture(params=[1, 2])
def torch_threads(request, monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(cpu, "_LEAST_WORK", 1)  # so that small cases use every thread
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


# Results -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000), lines=st.integers(0, 12), columns=st.integers(1, 40),
    batch=st.sampled_from([0, 1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 49, 100, 196, 300, 1000]),
    density=st.sampled_from([0.0, 0.05, 0.3, 1.0]), block=st.sampled_from([1, 2, 4]),
    dtype=st.sampled_from(list(TOLERANCE)), biased=st.booleans(),
    index=st.sampled_from([torch.int32, torch.int64]),
)  # fmt: skip
def test_results_and_gradients_equal_the_dense_products(
    seed, lines, columns, batch, density, block, dtype, biased, index
) -> None:
    weights = sparse(seed, lines * block, columns, density, block, dtype)
    values = weights.values().reshape(-1, *([block] if block > 1 else [])).clone().requires_grad_()
    index = index if block == 1 else torch.int64  # each pair is compiled for itself
    indices, offsets = weights.col_indices().to(index), weights.crow_indices().to(index)
    x = normal(seed + 2, columns, batch, dtype=dtype).requires_grad_()
    bias = normal(seed + 3, lines * block, dtype=dtype).requires_grad_() if biased else None
    grad = normal(seed + 4, lines * block, batch, dtype=dtype)

    y = spmm_csr(values, indices, offsets, x, bias, low=-1.0, high=2.0)
    y.backward(grad)

    dense, exact = weights.to_dense().double(), x.detach().double()
    exact_bias = bias.detach().double()[:, None] if biased else 0
    close(y, functional.hardtanh(dense @ exact + exact_bias, -1.0, 2.0), 10)
    # By hand: what rounding puts on a bound passes no gradient, in the exact product it might.
    passed = grad.double() * ((y > -1) & (y < 2))
    close(x.grad, dense.T @ passed, 40)
    rows = torch.arange(lines).repeat_interleave(offsets.diff().long())
    wanted = (passed @ exact.T).unflatten(0, (lines, block))[rows, :, indices.long()].reshape(values.shape)
    close(values.grad, wanted, 40)
    if biased:
        close(bias.grad, passed.sum(1), 40)


@pytest.mark.parametrize("picks", [0, math.inf])  # tiles always, never
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [1, 2, 4])
@pytest.mark.parametrize("batch", [1, 49, 196, 784, 1000])
def test_tiles_change_nothing(
    torch_threads, batch: int, block: int, dtype, picks: float, monkeypatch
) -> None:
    monkeypatch.setattr(cpu, "_PICKS", picks)
    weights, x = sparse(3, 48, 37, 0.2, block, dtype), normal(4, 37, batch, dtype=dtype)
    close(spmm(weights, x), weights.to_dense().double() @ x.double(), 10)


@pytest.mark.parametrize("block", [1, 2, 4])
@pytest.mark.parametrize("batch", [1, 49, 196, 784, 1000])
def test_unclamped_products_and_their_transposes(torch_threads, block: int, batch: int) -> None:
    weights = sparse(3, 48, 37, 0.2, block)
    x, y = normal(4, 37, batch), normal(5, 48, batch)
    dense = weights.to_dense()
    close(spmm(weights, x), dense.double() @ x.double(), 10)
    close(spmm_t(weights, y), dense.double().T @ y.double(), 10)
    found = sddmm(weights, y, x)
    assert found.layout == weights.layout
    close(found.to_dense(), (y.double() @ x.double().T) * (dense != 0), 100)


def test_the_number_of_threads_changes_no_bit() -> None:
    weights, x, y = sparse(6, 300, 200, 0.1), normal(7, 200, 500), normal(8, 300, 500)
    before = torch.get_num_threads()
    found = []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        found.append((spmm(weights, x), spmm_t(weights, y), sddmm(weights, y, x).values()))
    torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_python_threads_stand_in_for_openmp(monkeypatch) -> None:
    weights, x = sparse(6, 300, 200, 0.1), normal(7, 200, 500)
    expected = spmm(weights, x)
    monkeypatch.setattr(threads, "_openmp", lambda: 0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    assert torch.equal(spmm(weights, x), expected)
    torch.set_num_threads(before)


def test_gradients_of_gradients_free_functions() -> None:
    weights = sparse(9, 6, 5, 0.5, dtype=torch.float64)
    lists = weights.values().clone().requires_grad_(), weights.col_indices(), weights.crow_indices()
    x, y = (normal(10 + i, n, 3, dtype=torch.float64).requires_grad_() for i, n in ((0, 5), (1, 6)))
    assert torch.autograd.gradcheck(lambda v, x: spmm_csr(v, *lists[1:], x), (lists[0], x))
    assert torch.autograd.gradcheck(lambda v, y: spmm_t_csr(v, *lists[1:], y, 5), (lists[0], y))
    assert torch.autograd.gradcheck(lambda y, x: sddmm_csr(*lists[1:], y, x), (y, x))


def test_gradients_can_be_differentiated_again() -> None:
    """float32 takes another way through autograd than float64: both, twice."""
    found = []
    for dtype in (torch.float32, torch.float64):
        weights = sparse(9, 6, 5, 0.5, dtype=dtype)
        values, x = weights.values().clone().requires_grad_(), normal(10, 5, 3, dtype=dtype).requires_grad_()
        y = spmm_csr(values, weights.col_indices(), weights.crow_indices(), x)
        grads = torch.autograd.grad(y.pow(3).sum(), (values, x), create_graph=True)
        found.append(torch.autograd.grad(sum(grad.square().sum() for grad in grads), (values, x)))
    for single, double in zip(*found, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transposes_without_a_tile(block: int, dtype: torch.dtype, torch_threads, monkeypatch) -> None:
    monkeypatch.setattr(cpu, "_LARGEST_TILE", 0)
    weights, y = sparse(3, 48, 37, 0.2, block, dtype), normal(5, 48, 100, dtype=dtype)
    close(spmm_t(weights, y), weights.to_dense().double().T @ y.double(), 10)


def test_weights_get_a_sparse_gradient() -> None:
    weights = sparse(11, 8, 9, 0.4).requires_grad_()
    spmm(weights, normal(12, 9, 20)).square().sum().backward()
    assert weights.grad is not None
    assert weights.grad.layout == torch.sparse_csr
    assert torch.equal(weights.grad.col_indices(), weights.col_indices())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operators_pass_pytorchs_own_checks(dtype: torch.dtype) -> None:
    weights = sparse(13, 6, 5, 0.5, dtype=dtype)
    # Made anew: the lists of a sparse tensor are views of it, which the tracing checks cannot follow.
    lists = weights.values(), weights.col_indices(), weights.crow_indices()
    values, indices, offsets = (torch.tensor(x.tolist(), dtype=x.dtype) for x in lists)
    values.requires_grad_()
    x, y = (normal(14 + i, n, 20, dtype=dtype).requires_grad_() for i, n in ((0, 5), (1, 6)))
    ops, bias = torch.ops.sparsebook, normal(16, 6, dtype=dtype).requires_grad_()
    torch.library.opcheck(ops.spmm, (values, indices, offsets, x, bias, -1.0, 1.0))
    torch.library.opcheck(ops.spmm_t, (values, indices, offsets, y, 5))
    torch.library.opcheck(ops.sddmm, (indices, offsets, y, x, 1))


# What is remembered between calls ------------------------------------------------------------------------


def test_a_remembered_tensor_is_the_one_that_it_is_now() -> None:
    weights, x = sparse(1, 20, 30, 0.3), normal(2, 30, 40)
    for change in (
        lambda: weights.values().mul_(2),
        lambda: weights.col_indices().copy_(weights.col_indices().flip(0)),
        lambda: setattr(weights, "data", sparse(3, 20, 30, 0.5)),
        lambda: weights.values().numpy().fill(3.0),
    ):
        spmm(weights, x)
        change()
        y = spmm(weights, x)
        lists = weights.values(), weights.col_indices(), weights.crow_indices()
        close(y, spmm_reference(*lists, x), 10)


def test_lists_that_change_behind_pytorchs_back_are_looked_at_again() -> None:
    weights, x = sparse(1, 20, 30, 0.3), normal(2, 30, 40)
    spmm(weights, x)
    weights.col_indices().numpy()[5] = 30
    with pytest.raises(ValueError, match=r"must lie in \[0, 30\), got 0 to 30"):
        spmm(weights, x)
    weights.col_indices().numpy()[5] = 0
    weights.crow_indices().numpy()[3] = 10**6
    with pytest.raises(ValueError, match="row offsets"):
        spmm(weights, x)


def test_a_remembered_tensor_still_wants_operands_that_fit() -> None:
    weights, x = sparse(1, 6, 5, 0.5), torch.ones(5, 2)
    spmm(weights, x)
    for wrong, message in (
        ((torch.ones(6, 2),), "x must have 5 rows"),
        ((x.double(),), "weights must be torch.float64"),
        ((x, torch.ones(5)), "bias must be float of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            inspect.unwrap(spmm)(weights, *wrong)
    with pytest.raises(ValueError, match="low must not be above high"):
        spmm(weights, x, low=1.0, high=0.0)
    assert spmm(weights, x.clone().requires_grad_()).requires_grad
    assert torch.equal(spmm(weights, torch.ones(2, 5).T), spmm(weights, x))


def test_what_is_remembered_goes_with_the_tensor() -> None:
    weights = sparse(1, 6, 5, 0.5)
    spmm(weights, torch.ones(5, 2))
    key = id(weights)
    assert key in known._known
    del weights
    gc.collect()
    assert key not in known._known


# Edges ---------------------------------------------------------------------------------------------------


def test_rows_without_entries_are_their_clamped_bias() -> None:
    weights = torch.zeros(3, 4).to_sparse_csr()
    y = spmm(weights, normal(0, 4, 5), torch.tensor([-9.0, 0.5, 9.0]), low=0.0, high=6.0)
    assert torch.equal(y, torch.tensor([0.0, 0.5, 6.0])[:, None].expand(3, 5))


def test_entries_in_any_order_and_twice() -> None:
    columns, offsets = torch.tensor([2, 0, 2]), torch.tensor([0, 3])
    y = spmm_csr(torch.tensor([1.0, 10.0, 100.0]), columns, offsets, torch.eye(3))
    assert y.tolist() == [[10.0, 0.0, 101.0]]


def test_operands_need_not_be_contiguous() -> None:
    weights, x = sparse(1, 10, 12, 0.4), normal(2, 33, 12).T
    close(spmm(weights, x), weights.to_dense() @ x, 10)
    assert torch.equal(spmm(weights, x), spmm(weights, x.contiguous()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_and_infinity_go_where_an_entry_leads(dtype: torch.dtype) -> None:
    weights = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, -1.0]]).to(dtype).to_sparse_csr()
    x = torch.tensor([[math.nan] * 20, [1.0] * 20, [INF] * 20]).to(dtype)
    y = spmm(weights, x, low=-2.0, high=6.0)
    assert y[0].isnan().all()
    assert (y[1] == 1).all()
    assert (y[2] == -2).all()


def test_bfloat16_is_rounded_to_nearest_even_for_every_number() -> None:
    codes = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    y = spmm(torch.eye(1).bfloat16().to_sparse_csr(), codes[None])[0]
    same = (y == codes) | (y.isnan() & codes.isnan())
    assert bool(same.all())


@pytest.mark.parametrize("block", [1, 2, 4])
def test_strips_cover_every_column(block: int) -> None:
    for columns in [*range(1, 40), 49, 196, 300, 784, 3136, 12_544]:
        for strips, once in (
            (cpu.overlapping_strips(columns, block), False),
            (cpu.separate_strips(columns, block, 2), True),
            (cpu.tile_strips(columns, block, 100, 2), True),
        ):
            covered = np.zeros(columns, int)
            for at, registers, tail in strips.table.tolist():
                assert registers in counts(block)
                covered[at : at + (registers - 1) * WIDTH + tail] += 1
                assert at + (registers - 1) * WIDTH + tail <= columns
            assert strips.widest == strips.table[:, 1].max()
            assert covered.min() == 1
            assert not once or covered.max() == 1


def test_the_inner_loops_multiply_vectors(tmp_path) -> None:
    """Every count of registers has its multiply-adds, of whole registers with an operand from memory."""
    if WIDTH == 4:
        pytest.skip("the names of registers are those of x86")
    code = (
        "import numpy as np; from sparsebook.kernels.sparse_matmul import cpu;"
        "jobs = [job((0,), np.float32, np.int64) for job in (cpu._gather_job, cpu._packed_job)];"
        "print('NEXT'.join(job._library.get_asm_str() for job in jobs))"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}  # what comes from a cache has no assembly
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    register = "zmm" if WIDTH == 16 else "ymm"
    for assembly in done.stdout.split("NEXT"):
        found = re.findall(rf"vfmadd231ps\s+-?\d*\(%r.*%{register}\d+$", assembly, re.MULTILINE)
        assert len(found) >= sum(counts(1)) - len(counts(1)), done.stderr


# Bad input -----------------------------------------------------------------------------------------------

GOOD = {
    "values": torch.ones(2),
    "columns": torch.tensor([0, 1]),
    "offsets": torch.tensor([0, 1, 2]),
    "x": torch.ones(3, 4),
}
BAD = {
    "columns of weights must lie in": {"columns": torch.tensor([0, 3])},
    "got -1 to": {"columns": torch.tensor([-1, 0])},
    "row offsets": {"offsets": torch.tensor([0, 2, 1])},
    "ascend from 0 to 2": {"offsets": torch.tensor([0, 1, 3])},
    "weights must be torch.float64": {"x": torch.ones(3, 4, dtype=torch.float64)},
    "got torch.int64": {"x": torch.ones(3, 4, dtype=torch.int64)},
    "float16": {"x": torch.ones(3, 4).half(), "values": torch.ones(2).half()},
    "values must have shape": {"values": torch.ones(3)},
    "for blocks": {"values": torch.ones(2, 3)},
    "lists of int32": {"columns": torch.tensor([0.0, 1.0])},
    r"\(features, batch\)": {"x": torch.ones(3)},
    "bias must be float of shape": {"bias": torch.ones(3)},
    "low must not be above high": {"low": 1.0, "high": 0.0},
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_lists_that_do_not_fit_are_named(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        # Without the run-time types of the tests, which would answer first.
        inspect.unwrap(spmm_csr)(**(GOOD | BAD[message]))


def test_the_other_functions_check_as_well() -> None:
    weights = sparse(1, 6, 5, 0.5)
    with pytest.raises(ValueError, match="x must have 5 rows"):
        spmm(weights, torch.ones(6, 2))
    with pytest.raises(ValueError, match=r"y must have shape \(6, batch\)"):
        spmm_t(weights, torch.ones(5, 2))
    with pytest.raises(ValueError, match="y must have 6 rows"):
        sddmm(weights, torch.ones(5, 2), torch.ones(5, 2))
    with pytest.raises(ValueError, match="share type, batch and device"):
        inspect.unwrap(sddmm_csr)(
            weights.col_indices(), weights.crow_indices(), torch.ones(6, 3), torch.ones(5, 2)
        )
    with pytest.raises(ValueError, match="sparse_csr or sparse_bsr"):
        spmm(weights.to_dense(), torch.ones(5, 2))
    with pytest.raises(ValueError, match="blocks of 2 x 1 or 4 x 1"):
        spmm(torch.ones(4, 4).to_sparse_bsr((2, 2)), torch.ones(4, 2))


def test_the_reference_needs_no_compiled_code() -> None:
    weights, x = sparse(1, 6, 5, 0.5, 2), normal(2, 5, 3)
    lists = weights.values().flatten(1), weights.col_indices(), weights.crow_indices()
    close(spmm_reference(*lists, x), weights.to_dense() @ x)


def test_memory_goes_with_the_entries() -> None:
    """A million rows and columns, a thousand entries: a dense matrix would take four terabytes."""
    generator = torch.Generator().manual_seed(0)
    n, rows = 1000, 1_000_000
    offsets = torch.bucketize(
        torch.arange(rows + 1), torch.randint(1, rows, (n,), generator=generator).sort()[0]
    )
    offsets[-1] = n
    columns = torch.randint(0, rows, (n,), generator=generator)
    y = spmm_csr(torch.ones(n), columns, offsets, torch.ones(rows, 1))
    assert y.sum() == n
    assert spmm_t_csr(torch.ones(n), columns, offsets, torch.ones(rows, 1), rows).sum() == n


def test_bounds_may_be_whole_numbers() -> None:
    values, operand = torch.tensor([1.0, -2.0, 5.0]), torch.tensor([[1.0, 2.0]])
    columns, offsets = torch.zeros(3, dtype=torch.int32), torch.arange(4, dtype=torch.int32)
    y = spmm_csr(values, columns, offsets, operand, low=0, high=6)
    assert torch.equal(y, torch.tensor([[1.0, 2.0], [0.0, 0.0], [5.0, 6.0]]))
