"""Sparse codes times a dictionary: against the dense product, its gradients, and PyTorch's embedding bag."""

import inspect
import tracemalloc
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from sparsebook.kernels.selection import column_topm, global_topm, row_topk
from sparsebook.kernels.sparse_codes import (
    decode,
    decode_csr,
    decode_reference,
    project,
    project_csr,
    project_reference,
)
from sparsebook.kernels.sparse_codes.cpu import turn_lists
from sparsebook.kernels.sparse_codes.reference import rows_of

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3, torch.float64: 1e-12}


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def ragged(seed: int, batch: int, atoms: int, longest: int) -> tuple[Tensor, Tensor]:
    """Indices and offsets of random lists, some of them empty, some with an atom twice."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, longest + 1, (batch,), generator=generator)
    offsets = functional.pad(lengths.cumsum(0), (1, 0))
    return torch.randint(0, atoms, (int(offsets[-1]),), generator=generator), offsets


def dense(values: Tensor, indices: Tensor, offsets: Tensor, atoms: int) -> Tensor:
    """The matrix of codes, by its definition."""
    codes = values.new_zeros(len(offsets) - 1, atoms)
    return codes.index_put((rows_of(offsets), indices), values, accumulate=True)


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype, scale: float = 1.0) -> None:
    assert actual.dtype == dtype
    tolerance = TOLERANCE[dtype] * scale
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


# Results -------------------------------------------------------------------------------------------------

SHAPES = {
    "seed": st.integers(0, 10_000), "batch": st.integers(1, 90), "atoms": st.integers(1, 120),
    "dim": st.sampled_from([1, 3, 8, 16, 17, 63, 64, 130, 200, 300]), "longest": st.integers(0, 9),
    "dtype": st.sampled_from(list(TOLERANCE)),
}  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(**SHAPES)
def test_results_and_gradients_equal_the_dense_product(seed, batch, atoms, dim, longest, dtype) -> None:
    indices, offsets = ragged(seed, batch, atoms, longest)
    leaves = [normal(seed + 1, len(indices), dtype=dtype), normal(seed + 2, atoms, dim, dtype=dtype)]
    weights = normal(seed + 3, batch, dim, dtype=dtype)
    values, dictionary = (x.clone().requires_grad_() for x in leaves)
    out = decode_csr(values, indices, offsets, dictionary)
    out.backward(weights)
    exact = [x.double().requires_grad_() for x in leaves]
    expected = dense(exact[0], indices, offsets, atoms) @ exact[1]
    expected.backward(weights.double())
    close(out, expected, dtype, 10)
    close(values.grad, exact[0].grad, dtype, 40)
    close(dictionary.grad, exact[1].grad, dtype, 40)


@settings(max_examples=30, deadline=None)
@given(**SHAPES)
def test_chosen_products_equal_the_dense_product(seed, batch, atoms, dim, longest, dtype) -> None:
    indices, offsets = ragged(seed, batch, atoms, longest)
    leaves = [normal(seed + 1, batch, dim, dtype=dtype), normal(seed + 2, atoms, dim, dtype=dtype)]
    weights = normal(seed + 3, len(indices), dtype=dtype)
    x, dictionary = (leaf.clone().requires_grad_() for leaf in leaves)
    out = project_csr(x, indices, offsets, dictionary)
    out.backward(weights)
    exact = [leaf.double().requires_grad_() for leaf in leaves]
    expected = (exact[0] @ exact[1].T)[rows_of(offsets), indices]
    expected.backward(weights.double())
    close(out, expected, dtype, 40)
    close(x.grad, exact[0].grad, dtype, 10)
    close(dictionary.grad, exact[1].grad, dtype, 40)


def test_equals_the_embedding_bag() -> None:
    values, dictionary = normal(1, 300, 12).requires_grad_(), normal(2, 500, 200).requires_grad_()
    indices = torch.randint(0, 500, (300, 12), generator=torch.Generator().manual_seed(3))
    weights = normal(4, 300, 200)
    out = decode(values, indices, dictionary)
    mine = torch.autograd.grad(out, (values, dictionary), weights)
    bag = functional.embedding_bag(indices, dictionary, per_sample_weights=values, mode="sum")
    theirs = torch.autograd.grad(bag, (values, dictionary), weights)
    for ours, other in zip((out, *mine), (bag, *theirs), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-5, atol=2e-5)


def test_what_selections_give_fits_in() -> None:
    x, dictionary = normal(5, 40, 100), normal(6, 100, 24)
    for found in (column_topm(x, 3), global_topm(x, 200, positive_only=True)):
        out = decode_csr(found.values, found.columns, found.offsets, dictionary)
        torch.testing.assert_close(out, found.to_dense() @ dictionary, rtol=1e-5, atol=1e-5)
    values, indices = row_topk(x, 7)
    out = decode(values, indices, dictionary)
    codes = torch.zeros_like(x).scatter(1, indices, values)
    torch.testing.assert_close(out, codes @ dictionary, rtol=1e-5, atol=1e-5)


def test_an_encoder_with_a_sparse_backward_pass() -> None:
    """Choose without gradient, compute the chosen again with it: the gradients of the dense encoder."""
    x, encoder = normal(7, 30, 20).requires_grad_(), normal(8, 60, 20).requires_grad_()
    with torch.no_grad():
        chosen = row_topk(x @ encoder.T, 5, sorted=False).indices
    sparse = torch.autograd.grad(project(x, chosen, encoder).square().sum(), (x, encoder))
    thick = torch.autograd.grad(row_topk(x @ encoder.T, 5).values.square().sum(), (x, encoder))
    for mine, theirs in zip(sparse, thick, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_lists_turned_round() -> None:
    indices, offsets = ragged(9, 50, 20, 6)
    begins, rows, places = turn_lists(indices.numpy(), offsets.numpy(), 20)
    order = indices.argsort(stable=True)
    assert places.tolist() == order.tolist()
    assert rows.tolist() == rows_of(offsets)[order].tolist()
    assert begins.tolist() == [0, *torch.bincount(indices, minlength=20).cumsum(0).tolist()]


def test_the_result_does_not_depend_on_the_threads() -> None:
    indices, offsets = ragged(10, 800, 300, 20)
    values, dictionary = normal(11, len(indices)).requires_grad_(), normal(12, 300, 150).requires_grad_()
    weights = normal(13, 800, 150)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            out = decode_csr(values, indices, offsets, dictionary)
            found.append([out, *torch.autograd.grad(out, (values, dictionary), weights)])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(*pair) for pair in zip(found[0], other, strict=True))


def test_half_of_the_gradients() -> None:
    indices, offsets = ragged(14, 20, 30, 5)
    values, dictionary = normal(15, len(indices)), normal(16, 30, 70)
    whole = [values.clone().requires_grad_(), dictionary.clone().requires_grad_()]
    both = torch.autograd.grad(decode_csr(whole[0], indices, offsets, whole[1]).square().sum(), whole)
    for which, leaf in enumerate(whole):
        arguments = [values, dictionary]
        arguments[which] = leaf
        out = decode_csr(arguments[0], indices, offsets, arguments[1])
        (alone,) = torch.autograd.grad(out.square().sum(), leaf)
        torch.testing.assert_close(alone, both[which], rtol=1e-5, atol=1e-5)


def test_no_dense_matrix_is_made() -> None:
    """The largest single piece of memory, of torch or of NumPy, is far below batch times latents."""
    batch, atoms = 3000, 20_000
    dictionary, values = normal(30, atoms, 4).requires_grad_(), normal(31, batch, 2).requires_grad_()
    x = normal(32, batch, 4).requires_grad_()
    indices = torch.randint(atoms, (batch, 2), generator=torch.Generator().manual_seed(33))

    def step() -> None:
        (decode(values, indices, dictionary).sum() + project(x, indices, dictionary).sum()).backward()

    step()  # what is compiled now is not counted
    tracemalloc.start()
    with torch.profiler.profile(
        profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]
    ) as seen:
        step()
    largest = tracemalloc.get_traced_memory()[1], max(event.cpu_memory_usage for event in seen.events())
    tracemalloc.stop()
    assert 0 < max(largest) < batch * atoms  # bytes: a quarter of the dense codes


def test_nothing_to_decode() -> None:
    dictionary = normal(17, 4, 5).requires_grad_()
    empty = torch.zeros(0, 3, dtype=torch.int64)
    assert decode(torch.zeros(0, 3), empty, dictionary).shape == (0, 5)
    assert project(torch.zeros(0, 5), empty, dictionary).shape == (0, 3)
    none = torch.zeros(3, 0, dtype=torch.int64)
    out = decode(torch.zeros(3, 0), none, dictionary)
    assert torch.equal(out, torch.zeros(3, 5))
    out.sum().backward()
    assert torch.equal(dictionary.grad, torch.zeros(4, 5))
    assert project(normal(18, 3, 5), none, dictionary).shape == (3, 0)


def test_int32_lists_and_layouts() -> None:
    dictionary, values = normal(19, 33, 50), normal(20, 6, 40).T
    indices = torch.randint(0, 50, (6, 40), generator=torch.Generator().manual_seed(21)).T
    expected = decode_reference(
        values.flatten(), indices.flatten(), torch.arange(41) * 6, dictionary.T.contiguous()
    )
    torch.testing.assert_close(decode(values, indices, dictionary.T), expected)
    torch.testing.assert_close(decode(values, indices.int(), dictionary.T), expected)
    x = normal(22, 33, 40).T
    expected = project_reference(x, indices.flatten(), torch.arange(41) * 6, dictionary.T)
    torch.testing.assert_close(project(x, indices, dictionary.T).flatten(), expected, rtol=1e-5, atol=1e-5)


def test_nan_and_infinity_propagate_to_the_rows_that_use_them() -> None:
    dictionary = torch.ones(4, 20)
    dictionary[1], dictionary[2] = torch.nan, torch.inf
    out = decode(torch.tensor([[1.0], [1.0], [1.0], [0.0]]), torch.tensor([[0], [1], [2], [2]]), dictionary)
    assert out[0].eq(1).all()
    assert out[1].isnan().all()
    assert out[2].isposinf().all()
    assert out[3].isnan().all()


# Gradients and operators ---------------------------------------------------------------------------------


def test_gradcheck() -> None:
    indices, offsets = ragged(23, 4, 5, 3)
    values = normal(24, len(indices), dtype=torch.float64).requires_grad_()
    dictionary = normal(25, 5, 3, dtype=torch.float64).requires_grad_()
    x = normal(26, 4, 3, dtype=torch.float64).requires_grad_()
    check = torch.autograd.gradcheck
    assert check(lambda v, d: decode_csr(v, indices, offsets, d), (values, dictionary))
    assert check(lambda x, d: project_csr(x, indices, offsets, d), (x, dictionary))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype: torch.dtype) -> None:
    indices, offsets = ragged(27, 6, 9, 4)
    values, dictionary = (normal(28, *s, dtype=dtype).requires_grad_() for s in ((len(indices),), (9, 40)))
    x = normal(29, 6, 40, dtype=dtype).requires_grad_()
    ops, lists = torch.ops.sparsebook, (indices, offsets, dictionary)
    torch.library.opcheck(ops.sparse_decode.default, (values, *lists))
    torch.library.opcheck(ops.sparse_project.default, (x, *lists))
    fixed = [t.detach() for t in (x, values, *lists)]
    quick = ("test_schema", "test_faketensor")
    for wanted in ((True, True), (True, False), (False, True), (False, False)):
        torch.library.opcheck(ops.sparse_decode_backward.default, (*fixed, *wanted), test_utils=quick)


# Bad input -----------------------------------------------------------------------------------------------

D, V, I, O = torch.zeros(5, 3), torch.zeros(4, 2), torch.ones(4, 2, dtype=torch.int64), torch.arange(5) * 2  # noqa: E741


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: decode(V, I * 5, D), r"indices must lie in \[0, 5\), the atoms, got 5 to 5"),
        (lambda: decode(V, -I, D), r"indices must lie in \[0, 5\)"),
        (lambda: decode(V[:3], I, D), r"values must have the shape of indices, \(4, 2\), got \(3, 2\)"),
        (lambda: decode(V, I.flatten(), D), r"indices must have shape \(batch, k\)"),
        (lambda: decode(V.double(), I, D), "values must be torch.float32"),
        (lambda: decode(V, I.float(), D), "indices must be a list of integers"),
        (lambda: decode(V, I, D.int()), "dictionary must be float32"),
        (lambda: decode(V, I, D[0]), r"dictionary must be float32.*\(atoms, dim\)"),
        (lambda: decode(V, I, D[:0]), r"indices must lie in \[0, 0\)"),
        (lambda: decode_csr(V.flatten(), I.flatten(), O[:-1], D), "offsets must ascend from 0 to 8"),
        (lambda: decode_csr(V.flatten(), I.flatten(), O.flip(0), D), "offsets must ascend"),
        (lambda: decode_csr(V.flatten(), I.flatten(), O[:0], D), "offsets must ascend"),
        (lambda: decode_csr(V.flatten(), I.flatten(), O.float(), D), "offsets must be a list of integers"),
        (lambda: decode_csr(V.flatten()[1:], I.flatten(), O, D), r"values must be torch.float32 of shape"),
        (lambda: project(V, I, D), r"x must be torch.float32 of shape \(4, 3\)"),
        (lambda: project(torch.zeros(3, 3), I, D), r"x must be torch.float32 of shape \(4, 3\)"),
        (lambda: project(torch.zeros(4, 3).half(), I, D), "x must be torch.float32"),
        (lambda: decode(V.to("meta"), I, D), "values must be on cpu like dictionary, got meta"),
        (lambda: project(torch.zeros(4, 3), I.to("meta"), D), "indices must be on cpu"),
    ],
)
def test_bad_input(call: Callable[[], object], message: str, unchecked_calls: None) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.fixture
def unchecked_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the run-time type checker, which would speak first where it is on."""
    import sparsebook.kernels.sparse_codes as family

    for name in ("decode", "decode_csr", "project", "project_csr"):
        bare = inspect.unwrap(globals()[name])
        monkeypatch.setitem(globals(), name, bare)
        monkeypatch.setattr(family, name, bare)
