"""Selection by rows, by columns and over all: against stable sorts, brute force and PyTorch's own."""

import inspect
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsebook.kernels.selection import (
    Selected,
    column_topm,
    column_topm_reference,
    global_topm,
    global_topm_reference,
    row_topk,
    row_topk_reference,
)
from sparsebook.kernels.selection import cpu as compiled

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def matrix(seed: int, rows: int, columns: int, kind: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random matrices with few, many and only ties, and with infinities."""
    x = torch.randn(rows, columns, generator=generator(seed))
    if kind == "relu":
        x = x.relu()
    elif kind == "rounded":
        x = (2 * x).round()  # holds both zeros
    elif kind == "constant":
        x = torch.full_like(x, -0.5)
    elif kind == "infinite":
        x = torch.where(x > 1, torch.inf, torch.where(x < -1, -torch.inf, x))
    elif kind == "ascending":  # the worst order for running lists
        x = x.flatten().sort().values.view(rows, columns)
    elif kind == "scales":
        x = x.sign() * torch.exp2(20 * x)
    return x.to(dtype)


KINDS = ["normal", "relu", "rounded", "constant", "infinite", "ascending", "scales"]


def equal(found: Selected, expected: tuple[Tensor, ...]) -> None:
    actual = (found.values, found.rows, found.columns, found.offsets)
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


# Exactness -----------------------------------------------------------------------------------------------

SHAPES = {"rows": st.integers(1, 300), "columns": st.integers(1, 700), "seed": st.integers(0, 10_000)}
OPTIONS = {"kind": st.sampled_from(KINDS), "dtype": st.sampled_from(FLOATS), "share": st.floats(0, 1)}


@settings(max_examples=30, deadline=None)
@given(**SHAPES, **OPTIONS, ordered=st.booleans())
def test_rows_equal_a_stable_sort(rows, columns, seed, kind, dtype, share, ordered) -> None:
    x = matrix(seed, rows, columns, kind, dtype)
    k = round(share**3 * columns)
    values, indices = row_topk(x, k, sorted=ordered)
    expected = row_topk_reference(x, k, ordered)
    assert torch.equal(indices, expected[1])
    assert torch.equal(values, expected[0])
    assert values.dtype == dtype


@settings(max_examples=30, deadline=None)
@given(**SHAPES, **OPTIONS, spread=st.booleans())
def test_columns_equal_a_stable_sort(rows, columns, seed, kind, dtype, share, spread) -> None:
    x = matrix(seed, rows, columns, kind, dtype)
    draw = torch.rand(columns, generator=generator(seed)) if spread else torch.ones(columns)
    m = (draw**3 * share**2 * rows).round().long()
    equal(column_topm(x, m), column_topm_reference(x, m))


@settings(max_examples=30, deadline=None)
@given(**SHAPES, **OPTIONS)
def test_all_equals_a_stable_sort(rows, columns, seed, kind, dtype, share) -> None:
    x = matrix(seed, rows, columns, kind, dtype)
    m = round(share**3 * x.numel())
    equal(global_topm(x, m), global_topm_reference(x, m))


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_matrix_takes_the_fast_paths(kind: str) -> None:
    """Large enough for groups of a row, first limits of columns, the sample, several chunks and threads."""
    x = matrix(1, 520, 512, kind)
    values, indices = row_topk(x, 8)
    expected = row_topk_reference(x, 8)
    assert torch.equal(indices, expected[1])
    assert torch.equal(values, expected[0])
    m = torch.randint(0, 9, (512,), generator=generator(2))
    m[:3] = torch.tensor([520, 100, 65])
    equal(column_topm(x, m), column_topm_reference(x, m))
    for count in (1, 5000, x.numel() // 2):
        equal(global_topm(x, count), global_topm_reference(x, count))


def test_agrees_with_torch_topk() -> None:
    x = matrix(3, 50, 400, "normal")
    values, indices = row_topk(x, 20)
    theirs = x.topk(20)
    assert torch.equal(values, theirs.values)
    assert torch.equal(indices, theirs.indices)
    assert torch.equal(column_topm(x, 5).values.sort().values, x.topk(5, 0).values.flatten().sort().values)
    found = global_topm(x, 1000)
    assert torch.equal(found.values.sort().values, x.flatten().topk(1000).values.flip(0))
    assert found.threshold == x.flatten().topk(1000).values[-1]


def test_every_allocation_is_the_best_of_all_masks() -> None:
    """The three rules maximise the sum of what is taken, by brute force over all masks of small matrices."""
    masks = torch.tensor(list(itertools.product([0, 1], repeat=9))).view(-1, 3, 3)
    for seed, kind in itertools.product(range(4), ("normal", "rounded", "relu")):
        x = matrix(seed, 3, 3, kind).relu()
        totals = (masks * x).sum((1, 2))
        m = torch.randint(0, 4, (3,), generator=generator(seed))
        for k in range(4):
            best = totals[(masks.sum(2) <= k).all(1)].max()
            torch.testing.assert_close(row_topk(x, k).values.sum(), best)
            best = totals[masks.sum((1, 2)) <= 2 * k].max()
            torch.testing.assert_close(global_topm(x, 2 * k).values.sum(), best)
        best = totals[(masks.sum(1) <= m).all(1)].max()
        torch.testing.assert_close(column_topm(x, m).values.sum(), best)


def test_ties_go_to_the_first() -> None:
    x = torch.tensor([[0.0, 2.0, 2.0, 1.0], [2.0, -0.0, 1.0, 1.0]])
    assert row_topk(x, 3).indices.tolist() == [[1, 2, 3], [0, 2, 3]]
    assert row_topk(x, 4).indices.tolist() == [[1, 2, 3, 0], [0, 2, 3, 1]]
    assert global_topm(x, 4).positions.tolist() == [1, 2, 3, 4]
    assert column_topm(x.T.contiguous(), torch.tensor([3, 1])).rows.tolist() == [0, 1, 2, 3]
    zeros = torch.tensor([[-0.0, 0.0, -0.0, 0.0]])
    assert row_topk(zeros, 2).indices.tolist() == [[0, 1]]
    assert global_topm(zeros, 3).columns.tolist() == [0, 1, 2]


def test_permuted_rows_permute_what_is_selected() -> None:
    x = matrix(4, 40, 60, "normal")
    order = torch.randperm(40, generator=generator(5))
    for select in (lambda x: column_topm(x, 3), lambda x: global_topm(x, 200)):
        assert torch.equal(select(x).to_dense()[order], select(x[order]).to_dense())


def test_threads_do_not_change_the_result() -> None:
    x = matrix(6, 500, 1000, "rounded")
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            parts = [column_topm(x, 4), global_topm(x, 3000)]
            found.append([row_topk(x, 7).indices, *(part.positions for part in parts)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_a_limit_that_was_too_high_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    x = matrix(7, 100, 100, "normal")
    for limit in (2.0, 1e30, -np.inf):
        monkeypatch.setattr(compiled, "sampled_limit", lambda x, m, limit=limit: limit)
        equal(global_topm(x, 1000), global_topm_reference(x, 1000))


def test_the_sampled_limit_is_reached_by_enough_and_not_by_many_more() -> None:
    x = matrix(8, 1000, 1000, "normal").view(-1).numpy()
    for m in (1, 2000, 100_000):
        reached = int((x >= compiled.sampled_limit(x, m)).sum())
        assert m <= reached <= 1.6 * m + 2000


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 500), kind=st.sampled_from(KINDS), share=st.floats(0, 1))
def test_the_mth_largest_by_counting(seed: int, n: int, kind: str, share: float) -> None:
    values = matrix(seed, 1, n, kind)[0].numpy()
    m = max(1, round(share * n))
    assert compiled.mth_largest(values, 0, n, m) == np.sort(values)[n - m]
    low = compiled.mth_largest(values, 0, n, m, 18)
    assert (values >= low).sum() >= m
    assert low <= np.sort(values)[n - m]


def test_keys_are_ordered_as_floats_are() -> None:
    draw = torch.randint(-(2**31), 2**31, (2000,), generator=generator(9)).int().view(torch.float32)
    values = draw[~draw.isnan()].sort().values.tolist()
    keys = [compiled.order_key(np.float32(value)) for value in values]
    assert keys == sorted(keys)
    assert all(compiled.key_value(key) == value for key, value in zip(keys, values, strict=True))
    assert compiled.order_key(np.float32(-0.0)) == compiled.order_key(np.float32(0.0))


# What comes with a selection -----------------------------------------------------------------------------


def test_selected_parts() -> None:
    x = torch.tensor([[3.0, 0.0, 1.0], [0.0, 0.0, 2.0], [5.0, -1.0, 0.0]])
    m = torch.tensor([2, 2, 1])
    found = column_topm(x, m)
    assert found.positions.tolist() == [0, 1, 4, 5, 6]
    assert len(found) == 5
    assert found.offsets.tolist() == [0, 2, 4, 5]
    assert found.column_counts.tolist() == [2, 2, 1]
    assert found.column_thresholds.tolist() == [3.0, 0.0, 2.0]
    assert found.threshold == 0.0
    positive = column_topm(x, m, positive_only=True)
    assert positive.positions.tolist() == [0, 5, 6]
    assert positive.offsets.tolist() == [0, 1, 2, 3]
    assert positive.column_thresholds.tolist() == [3.0, torch.inf, 2.0]
    assert torch.equal(positive.to_dense(), torch.tensor([[3.0, 0, 0], [0, 0, 2], [5, 0, 0]]))
    assert global_topm(x, 9, positive_only=True).values.tolist() == [3.0, 1.0, 2.0, 5.0]
    assert global_topm(x, 2, positive_only=True).threshold == 3.0


@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_to_select(rows: int) -> None:
    x = torch.randn(rows, 5, generator=generator(10))
    assert row_topk(x, 0).values.shape == (rows, 0)
    assert row_topk(x[:0], 2).indices.shape == (0, 2)
    for found in (global_topm(x, 0), column_topm(x, 0), column_topm(x, torch.zeros(5, dtype=torch.int32))):
        assert len(found) == 0
        assert found.offsets.tolist() == [0] * (rows + 1)
        assert found.threshold == torch.inf
        assert found.positive() is found
    assert row_topk(x[:, :0], 0).values.shape == (rows, 0)
    assert len(column_topm(x[:, :0], torch.zeros(0, dtype=torch.int64))) == 0


def test_layouts_and_lazy_views() -> None:
    x = matrix(11, 70, 90, "normal")
    negative = torch.complex(x, -x).conj().imag  # a view that is negated only when it is read
    assert negative.is_neg()
    for view in (x.T, x[:, ::2], x[::3], negative):
        assert torch.equal(row_topk(view, 5).indices, view.contiguous().topk(5).indices)
        equal(global_topm(view, 99), global_topm_reference(view.contiguous(), 99))
        equal(column_topm(view, 3), column_topm_reference(view.contiguous(), torch.full((view.shape[1],), 3)))


# Gradients and operators ---------------------------------------------------------------------------------


def selections(x: Tensor) -> list[Tensor]:
    m = torch.arange(x.shape[1]) % (x.shape[0] + 1)
    return [row_topk(x, 3).values, column_topm(x, m).values, global_topm(x, 7).values]


def test_gradients() -> None:
    x = matrix(12, 4, 6, "normal", torch.float64).requires_grad_()
    for which in range(3):
        assert torch.autograd.gradcheck(lambda x, which=which: selections(x)[which], x)
    x = matrix(13, 50, 40, "normal").requires_grad_()
    for values in selections(x):
        weights = torch.randn(values.shape, generator=generator(14))
        (mine,) = torch.autograd.grad((values * weights).sum(), x)
        reference = x.detach().double().requires_grad_()
        twin = next(v for v in selections(reference) if v.shape == values.shape)
        (theirs,) = torch.autograd.grad((twin * weights).sum(), reference)
        torch.testing.assert_close(mine.double(), theirs)


def test_the_gradient_of_a_dense_form() -> None:
    x = matrix(15, 20, 30, "normal").requires_grad_()
    found = global_topm(x, 50)
    found.to_dense().square().sum().backward()
    assert torch.equal(x.grad != 0, found.to_dense() != 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype: torch.dtype) -> None:
    x = matrix(16, 9, 70, "normal", dtype).requires_grad_()
    ops = torch.ops.sparsebook
    m = torch.arange(70) % 4
    torch.library.opcheck(ops.row_topk.default, (x, 5, True))
    torch.library.opcheck(ops.column_topm.default, (x, m, int(m.sum())))
    torch.library.opcheck(ops.global_topm.default, (x, 33))


# Bad input -----------------------------------------------------------------------------------------------

X = torch.zeros(4, 6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: row_topk(X, 7), "k must lie between 0 and the number of columns, 6, got 7"),
        (lambda: row_topk(X, -1), "k must lie between 0"),
        (lambda: row_topk(X.int(), 2), "x must be a matrix of float32"),
        (lambda: row_topk(X[0], 2), "x must be a matrix"),
        (lambda: column_topm(X, 5), "m must lie between 0 and the number of rows, 4, got 5"),
        (lambda: column_topm(X, torch.tensor([0, 1, 2, 3, 4, 5])), "number of rows, 4, got 0 to 5"),
        (lambda: column_topm(X, torch.tensor([0, 1, 2, -3, 4, 3])), "got -3 to 4"),
        (lambda: column_topm(X, torch.ones(5, dtype=torch.int64)), r"shape \(6,\), one for each column"),
        (lambda: column_topm(X, torch.ones(6)), "m must be an int or integers"),
        (lambda: column_topm(X[:0], 1), "the number of rows, 0, got 1"),
        (lambda: global_topm(X, 25), "m must lie between 0 and the number of elements, 24, got 25"),
        (lambda: global_topm(X, -2), "m must lie between 0"),
        (lambda: global_topm(X[:0], 1), "the number of elements, 0, got 1"),
        (lambda: row_topk(X[:, :0], 1), "the number of columns, 0, got 1"),
        (lambda: global_topm(X[:, 0], 1), "x must be a matrix"),
    ],
)
def test_bad_input(call: Callable[[], object], message: str, unchecked_calls: None) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.fixture
def unchecked_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the run-time type checker, which would speak first where it is on."""
    for name in ("row_topk", "column_topm", "global_topm"):
        monkeypatch.setitem(globals(), name, inspect.unwrap(globals()[name]))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("shape", "place"), [((3, 5), 7), ((100, 1000), 0), ((100, 1000), -1)])
def test_nan_is_rejected(dtype: torch.dtype, shape: tuple[int, int], place: int) -> None:
    x = matrix(17, *shape, "normal").to(dtype)
    x.view(-1)[place] = torch.nan
    for call in (
        lambda: row_topk(x, 2),
        lambda: column_topm(x, 2),
        lambda: global_topm(x, 4),
        lambda: global_topm(x, x.numel()),
        lambda: row_topk(x, 0),
        lambda: column_topm(x, 0),
        lambda: global_topm(x, 0),
    ):
        with pytest.raises(ValueError, match="x must not hold NaN"):
            call()


def test_nan_is_located() -> None:
    x = matrix(18, 200, 1000, "normal")
    x[150, 30] = -torch.nan
    for call in (lambda: row_topk(x, 2), lambda: column_topm(x, 2), lambda: global_topm(x, 4)):
        with pytest.raises(ValueError, match="row 150, column 30"):
            call()
