"""N:M matrices: packing against known bytes, products and gradients against dense times mask, bad input."""

import inspect
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsebook.kernels import nm
from sparsebook.kernels.nm import NMMatrix, nm_matmul, pack
from sparsebook.kernels.nm import cpu as nm_cpu

PATTERNS = [(2, 4), (4, 8), (2, 3)]
TOLERANCE = {torch.float32: 3e-5, torch.bfloat16: 5e-2, torch.float64: 1e-11}


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def masked(seed: int, rows: int, groups: int, n: int, m: int) -> Tensor:
    """n of every m neighbours at random places."""
    score = torch.rand(rows * groups, m, generator=torch.Generator().manual_seed(seed))
    return (score.argsort(1).argsort(1) < n).reshape(rows, groups * m)


def close(actual: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000), rows=st.integers(0, 9), groups=st.integers(0, 9),
    batch=st.sampled_from([0, 1, 7, 16, 49, 100, 300]), pattern=st.sampled_from(PATTERNS),
    dtype=st.sampled_from(list(TOLERANCE)),
)  # fmt: skip
def test_products_and_gradients_are_those_of_dense_times_mask(
    seed, rows, groups, batch, pattern, dtype
) -> None:
    n, m = pattern if dtype != torch.bfloat16 else (2, 4)  # each pair is compiled for itself
    weights = normal(seed, rows, groups * m, dtype=dtype).requires_grad_()
    mask = masked(seed + 1, rows, groups, n, m)
    x, bias = normal(seed + 2, groups * m, batch, dtype=dtype).requires_grad_(), normal(seed + 3, rows)
    packed = pack(weights, n, m, mask)
    y = nm_matmul(packed, x, bias.to(dtype))
    grad = normal(seed + 4, rows, batch, dtype=dtype)
    y.backward(grad)

    dense, exact = (weights.detach() * mask).double(), x.detach().double()
    close(y, dense @ exact + bias.to(dtype).double()[:, None])
    close(x.grad, dense.T @ grad.double())
    close(weights.grad, (grad.double() @ exact.T) * mask)
    assert torch.equal(packed.to_dense(), dense.to(dtype))
    assert torch.equal(packed.mask(), mask)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("pattern", [(2, 4), (4, 8)])
@pytest.mark.parametrize("batch", [1, 196, 1000])
def test_threads_share_the_work(pattern, batch: int, threads: int, monkeypatch) -> None:
    monkeypatch.setattr(nm_cpu, "_LEAST_WORK", 1)
    weights, x = normal(0, 48, 64), normal(1, 64, batch)
    mask = masked(2, 48, 64 // pattern[1], *pattern)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    y = nm_matmul(pack(weights, *pattern, mask), x)
    torch.set_num_threads(before)
    close(y, (weights * mask).double() @ x.double())


def test_bytes_that_are_known() -> None:
    weights = torch.tensor([[0.0, 5.0, 0.0, 6.0, 7.0, 0.0, 0.0, 8.0]])
    packed = pack(weights, 2, 4)
    assert packed.values.tolist() == [[5.0, 6.0, 7.0, 8.0]]
    # 1, 3, 0 and 3 in two bits each, the first in the lowest.
    assert packed.positions.tolist() == [1 | 3 << 2 | 0 << 4 | 3 << 6]
    assert packed.n_bytes == 4 * 4 + 1
    assert pack(torch.zeros(64, 64), 2, 4).n_bytes / (64 * 64 * 4) == 68 / 128
    assert pack(torch.zeros(64, 64), 1, 4).n_bytes / (64 * 64 * 4) == 34 / 128
    assert pack(torch.zeros(64, 64), 4, 8).n_bytes / (64 * 64 * 4) == 144 / 256
    assert pack(torch.zeros(64, 64).bfloat16(), 2, 4).n_bytes / (64 * 64 * 2) == 36 / 64


def test_groups_that_keep_fewer_are_filled_with_zeros_that_stay() -> None:
    weights = torch.tensor([[0.0, 0.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0]], requires_grad=True)
    packed = pack(weights, 2, 4)
    assert packed.values.tolist() == [[0.0, 3.0], [0.0, 0.0]]
    assert torch.equal(packed.to_dense(), weights)
    nm_matmul(packed, torch.ones(4, 3)).sum().backward()
    assert weights.grad is not None
    assert weights.grad.tolist() == [[0.0, 0.0, 3.0, 0.0], [0.0] * 4]


def test_pytorchs_own_checks() -> None:
    weights, x = normal(0, 6, 16, dtype=torch.float64), normal(1, 16, 5, dtype=torch.float64)
    packed = pack(weights, 2, 4, masked(2, 6, 4, 2, 4))
    values, positions = packed.values.requires_grad_(), packed.positions
    x.requires_grad_()
    ops, y = torch.ops.sparsebook, normal(3, 6, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda v, x: ops.nm_matmul(v, positions, x, 2, 4), (values, x))
    assert torch.autograd.gradcheck(lambda v, y: ops.nm_matmul_t(v, positions, y, 2, 4), (values, y))
    assert torch.autograd.gradcheck(lambda y, x: ops.nm_sddmm(positions, y, x, 2, 4), (y, x))
    single = [t.detach().float().requires_grad_() for t in (values, x, y)]
    torch.library.opcheck(ops.nm_matmul, (single[0], positions, single[1], 2, 4))
    torch.library.opcheck(ops.nm_matmul_t, (single[0], positions, single[2], 2, 4))
    torch.library.opcheck(ops.nm_sddmm, (positions, single[2], single[1], 2, 4))


def test_positions_outside_their_group_are_found() -> None:
    """Two bits can say 3, which is no position among three."""
    packed = NMMatrix(torch.ones(1, 2), torch.tensor([0b1100], dtype=torch.uint8), 2, 3)
    for act in (packed.to_dense, packed.mask, lambda: nm_matmul(packed, torch.ones(3, 2))):
        with pytest.raises(ValueError, match=r"positions of weights must lie in \[0, 3\), got 3"):
            act()


BAD = {
    "at most 2 of every 4": lambda: pack(torch.ones(2, 4), 2, 4),
    "a multiple of 4": lambda: pack(torch.ones(2, 6), 2, 4),
    "got torch.int64": lambda: pack(torch.ones(2, 4, dtype=torch.int64), 2, 4),
    "mask must be bool of shape": lambda: pack(torch.ones(2, 4), 2, 4, torch.ones(2, 4)),
    "1 <= n <= m": lambda: pack(torch.ones(2, 4), 5, 4),
    "2 <= m <= 256": lambda: pack(torch.ones(2, 512), 1, 512),
    "positions must be uint8": lambda: NMMatrix(torch.ones(2, 2), torch.zeros(2, dtype=torch.uint8), 2, 4),
    "groups * 2": lambda: NMMatrix(torch.ones(2, 3), torch.zeros(2, dtype=torch.uint8), 2, 4),
    "x must have shape (4, batch)": lambda: nm_matmul(pack(torch.zeros(2, 4), 2, 4), torch.ones(5, 1)),
    "x must be torch.float32": lambda: nm_matmul(pack(torch.zeros(2, 4), 2, 4), torch.ones(4, 1).double()),
    "bias must be float of shape (2,)": lambda: nm_matmul(
        pack(torch.zeros(2, 4), 2, 4), torch.ones(4, 1), torch.ones(3)
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message: str, monkeypatch) -> None:
    # Without the run-time types of the tests, which would answer first.
    for name in ("pack", "nm_matmul", "NMMatrix"):
        monkeypatch.setitem(globals(), name, _unchecked(getattr(nm, name)))
    with pytest.raises(ValueError, match=re.escape(message)):
        BAD[message]()


def _unchecked(thing):
    return inspect.unwrap(thing) if inspect.isfunction(thing) else thing
