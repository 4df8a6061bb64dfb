"""All searches against brute force, on shapes chosen to hurt."""

import ast
import inspect

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsebook.kernels import inverted_index
from sparsebook.kernels.inverted_index import (
    InvertedIndex,
    cpu,
    exact_topk,
    exact_topk_reference,
    impact_topk,
    maxscore_topk,
)
from sparsebook.kernels.inverted_index.cuda import exact_topk_product

SEARCHES = {"exact": exact_topk, "maxscore": maxscore_topk, "impact": impact_topk}


def _matrix(seed, rows, columns, density, levels=8):
    """Small integers: sums are exact in float32, so ties are real and scores must be equal bit for bit."""
    generator = np.random.default_rng(seed)
    dense = generator.integers(1, levels, (rows, columns)) * (generator.random((rows, columns)) < density)
    return torch.from_numpy(dense.astype(np.float32))


def _brute(documents, queries, k):
    """Independent of the library: sort Python tuples."""
    scores = (queries.double() @ documents.double().T).numpy()
    ids = np.full((len(scores), k), -1)
    best = np.full((len(scores), k), -np.inf, np.float32)
    for q, row in enumerate(scores):
        found = sorted((-s, d) for d, s in enumerate(row) if s > 0)[:k]
        for i, (s, d) in enumerate(found):
            ids[q, i], best[q, i] = d, -s
    return torch.from_numpy(ids), torch.from_numpy(best)


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 200),
    columns=st.integers(1, 30),
    density=st.sampled_from([0.0, 0.02, 0.2, 1.0]),
    k=st.integers(1, 12),
)
def test_agrees_with_brute_force(search, seed, rows, columns, density, k):
    documents = _matrix(seed, rows, columns, density)
    queries = _matrix(seed + 1, 5, columns, 0.3)
    queries[0] = 0
    ids, scores = search(InvertedIndex.build(documents.to_sparse_csr()), queries.to_sparse_csr(), k)
    expected_ids, expected_scores = _brute(documents, queries, k)
    assert torch.equal(ids, expected_ids)
    assert torch.equal(scores, expected_scores)


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_several_ranges_of_documents(search):
    """More documents than one range of accumulators; ties must still go to the lower document."""
    documents = _matrix(3, 2 * cpu.RANGE + 77, 12, 0.2)
    queries = _matrix(4, 6, 12, 0.6)
    ids, scores = search(InvertedIndex.build(documents.to_sparse_csr()), queries.to_sparse_csr(), 25)
    expected_ids, expected_scores = _brute(documents, queries, 25)
    assert torch.equal(ids, expected_ids)
    assert torch.equal(scores, expected_scores)


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_real_values_to_rounding(search):
    generator = torch.Generator().manual_seed(0)
    documents = torch.rand(3000, 40, generator=generator) * (torch.rand(3000, 40, generator=generator) < 0.3)
    queries = torch.rand(30, 40, generator=generator)
    _, scores = search(InvertedIndex.build(documents.to_sparse_csr()), queries.to_sparse_csr(), 10)
    expected = (queries.double() @ documents.double().T).topk(10).values
    torch.testing.assert_close(scores.double(), expected, rtol=1e-5, atol=1e-5)


def test_reference_agrees_with_brute_force():
    documents, queries = _matrix(5, 300, 20, 0.2), _matrix(6, 9, 20, 0.4)
    for k in (1, 10, 400):
        ids, scores = exact_topk_reference(documents.to_sparse_csr(), queries.to_sparse_csr(), k)
        expected = _brute(documents, queries, k)
        assert torch.equal(ids, expected[0])
        assert torch.equal(scores, expected[1])


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU"))])  # fmt: skip
def test_product_for_the_gpu(device):
    documents, queries = _matrix(7, cpu.RANGE + 500, 15, 0.2), _matrix(8, 7, 15, 0.5)
    index = InvertedIndex.build(documents.to_sparse_csr())
    csr = queries.to_sparse_csr()
    parts = (index.segments, index.local, index.values)
    query = (csr.crow_indices(), csr.col_indices(), csr.values())
    ids, scores = exact_topk_product(
        *(p.to(device) for p in parts), index.n_documents, cpu.RANGE, *(p.to(device) for p in query), 10
    )
    expected = _brute(documents, queries, 10)
    assert torch.equal(ids.cpu(), expected[0])
    assert torch.equal(scores.cpu(), expected[1])


def test_threads_do_not_change_the_result():
    documents, queries = _matrix(9, 4000, 30, 0.3), _matrix(10, 40, 30, 0.3)
    index = InvertedIndex.build(documents.to_sparse_csr())
    one = exact_topk(index, queries.to_sparse_csr(), 10)
    two = exact_topk(index, queries.to_sparse_csr(), 10, n_threads=2)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_operator_is_well_formed():
    documents, queries = _matrix(11, 300, 20, 0.2), _matrix(12, 5, 20, 0.4).to_sparse_csr()
    index = InvertedIndex.build(documents.to_sparse_csr())
    arguments = (index.segments, index.local, index.values, index.n_documents)
    # Clones: a view into a sparse tensor is no tensor that the fake mode of the check accepts.
    query = [p.clone() for p in (queries.crow_indices(), queries.col_indices(), queries.values())]
    query = [torch.from_numpy(p.numpy()) for p in query]
    torch.library.opcheck(torch.ops.sparsebook.inverted_index_exact.default, (*arguments, *query, 10, 1))


def test_budget_is_kept_and_buys_agreement():
    generator = torch.Generator().manual_seed(1)
    documents = torch.rand(2000, 60, generator=generator) ** 4 * (
        torch.rand(2000, 60, generator=generator) < 0.3
    )
    queries = torch.rand(50, 60, generator=generator) * (torch.rand(50, 60, generator=generator) < 0.2)
    index, csr = InvertedIndex.build(documents.to_sparse_csr()), queries.to_sparse_csr()
    exact = exact_topk(index, csr, 10)[0]
    agreement = []
    for budget in (10, 200, 1000, None):
        read = np.zeros(50, np.int64)
        ids, _ = impact_topk(index, csr, 10, budget, read)
        assert budget is None or read.max() <= budget
        same = (ids[:, :, None] == exact[:, None]) & (exact >= 0)[:, None]
        agreement.append(float(same.any(1).float().mean()))
    assert agreement == sorted(agreement)
    assert agreement[0] < 0.6
    assert agreement[-1] == 1.0


def test_maxscore_reads_less_when_bounds_differ():
    """A rare strong term and a weak common one: once ten strong documents are known the weak list is idle."""
    documents = torch.zeros(6 * cpu.RANGE, 2)
    documents[:, 0] = 0.01
    documents[:40, 1] = 5.0
    index = InvertedIndex.build(documents.to_sparse_csr())
    read = np.zeros(1, np.int64)
    ids, _ = maxscore_topk(index, torch.ones(1, 2).to_sparse_csr(), 10, read)
    assert ids[0].tolist() == list(range(10))
    assert read[0] < index.values.numel() / 4


def test_from_scipy_and_explicit_zeros():
    matrix = scipy.sparse.csr_matrix(
        (np.array([0.0, 2.0, 1.0], np.float32), np.array([0, 1, 1]), np.array([0, 2, 3])), shape=(2, 3)
    )
    index = InvertedIndex.from_scipy(matrix)
    assert index.stats()["postings"] == 2
    assert index.documents.tolist() == [0, 1]
    assert index.largest.tolist() == [0.0, 2.0, 0.0]
    ids, scores = exact_topk(index, torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]).to_sparse_csr(), 2)
    assert ids.tolist() == [[-1, -1], [0, 1]]
    assert scores.tolist() == [[-torch.inf, -torch.inf], [2.0, 1.0]]


def test_no_documents_and_no_queries():
    index = InvertedIndex.build(torch.zeros(0, 4).to_sparse_csr())
    for search in SEARCHES.values():
        ids, _ = search(index, torch.ones(2, 4).to_sparse_csr(), 3)
        assert ids.tolist() == [[-1] * 3] * 2
        assert search(index, torch.ones(0, 4).to_sparse_csr(), 3)[0].shape == (0, 3)


def _csr(crow, col, values, shape):
    return torch.sparse_csr_tensor(
        torch.tensor(crow), torch.tensor(col), torch.tensor(values), size=shape, check_invariants=False
    )


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (_csr([0, 2], [1, 0], [1.0, 1.0], (1, 3)), "ascending coordinates"),
        (_csr([0, 2], [1, 1], [1.0, 1.0], (1, 3)), "without repetition"),
        (_csr([0, 1], [3], [1.0], (1, 3)), r"\[0, 3\)"),
        (_csr([0, 1], [-1], [1.0], (1, 3)), r"\[0, 3\)"),
        (_csr([0, 1], [0], [-1.0], (1, 3)), "non-negative finite"),
        (_csr([0, 1], [0], [float("nan")], (1, 3)), "non-negative finite"),
        (_csr([0, 1], [0], [float("inf")], (1, 3)), "non-negative finite"),
        (_csr([0, 2], [0], [1.0], (1, 3)), "row starts"),
        (torch.ones(2, 3), "sparse_csr"),
    ],
)
def test_bad_documents_are_named(matrix, message):
    with pytest.raises(ValueError, match=f"documents must.*{message}"):
        InvertedIndex.build(matrix)


def test_bad_arguments_are_named():
    index = InvertedIndex.build(torch.ones(2, 3).to_sparse_csr())
    query = torch.ones(1, 3).to_sparse_csr()
    for search in SEARCHES.values():
        with pytest.raises(ValueError, match="k must be at least 1, got 0"):
            search(index, query, 0)
        with pytest.raises(ValueError, match="queries must have 3 columns"):
            search(index, torch.ones(1, 4).to_sparse_csr(), 1)
        with pytest.raises(ValueError, match="queries must have non-negative finite"):
            search(index, (-torch.ones(1, 3)).to_sparse_csr(), 1)
    with pytest.raises(ValueError, match="budget must be at least 1"):
        impact_topk(index, query, 1, budget=0)
    with pytest.raises(ValueError, match="n_threads must be at least 1"):
        exact_topk(index, query, 1, n_threads=0)
    with pytest.raises(ValueError, match="read must be int64"):
        maxscore_topk(index, query, 1, read=np.zeros(2, np.int64))


def test_compiled_functions_are_not_type_checked():
    """Run-time type checkers decorate what they see; a compiled function must be hidden from them."""
    for node in ast.walk(ast.parse(inspect.getsource(inverted_index.cpu))):
        if isinstance(node, ast.FunctionDef):
            assert "no_type_check" in [ast.unparse(d) for d in node.decorator_list], node.name
