"""The index against the method in NumPy, the method against its definitions, all against exact search."""

import inspect
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from sparsebook.data.sparse_vectors import topic_vectors
from sparsebook.retrieval.seismic import (
    SeismicIndex,
    alpha_mass,
    block_summary,
    dequantize_u8,
    fixed_blocks,
    fixed_prune,
    global_threshold_prune,
    quantize_u8,
    reference_search,
    shallow_kmeans,
)
from sparsebook.retrieval.seismic.construction import centroid_count, draw_positions, list_seed
from sparsebook.retrieval.seismic.index import _check_parameters

VARIANTS = {
    "paper": {},
    "whole summaries": {"summary_energy": 1.0},
    "float summaries": {"quantize": False},
    "chunks": {"blocking": "fixed"},
    "fixed summaries": {"summary": "fixed", "summary_length": 40},
    "cut documents": {"doc_cut": 15},
    "fixed pruning": {"pruning": "fixed"},
}


def scipy_csr(tensor: torch.Tensor) -> sparse.csr_matrix:
    parts = (tensor.values(), tensor.col_indices(), tensor.crow_indices())
    return sparse.csr_matrix(tuple(part.numpy() for part in parts), shape=tuple(tensor.shape))


def exact(documents: sparse.csr_matrix, queries: sparse.csr_matrix, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = (queries @ documents.T).toarray()
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return ids, np.take_along_axis(scores, ids, axis=1)


@pytest.fixture(scope="module")
def collection():
    return topic_vectors(3000, 1000, seed=3)


@pytest.fixture(scope="module")
def queries(collection):
    return scipy_csr(collection.queries)


@pytest.fixture(scope="module")
def index(collection):
    return SeismicIndex.build(collection.documents, n_postings=100, max_fraction=6.0)


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda name: name.replace(" ", "_"))
def variant(request, collection):
    options = {"max_fraction": 6.0} | VARIANTS[request.param]
    return SeismicIndex.build(collection.documents, n_postings=100, **options), options


def recall(found: torch.Tensor, truth: np.ndarray) -> float:
    return float(
        np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), truth.tolist(), strict=True)])
    )


# Exact when nothing is left out ------------------------------------------------------------------------


@pytest.mark.slow
def test_equals_exact_search_when_nothing_is_pruned_cut_or_skipped(collection, queries):
    documents = scipy_csr(collection.documents)
    whole = SeismicIndex.build(collection.documents, n_postings=3000, max_fraction=3e3, summary_energy=1.0)
    ids, scores = whole.batch_search(collection.queries, k=10, query_cut=10_000, heap_factor=0.0)
    _, best = exact(documents, queries, 10)
    np.testing.assert_allclose(scores.numpy(), best, rtol=2e-3)
    rounded_ids, rounded_best = exact(whole.documents, queries, 10)
    np.testing.assert_allclose(scores.numpy(), rounded_best, rtol=1e-4)
    moved = ids.numpy() != rounded_ids  # only where the scores are equal to the precision of the sums
    achieved = np.take_along_axis((queries @ whole.documents.T).toarray(), ids.numpy(), axis=1)
    np.testing.assert_allclose(achieved[moved], rounded_best[moved], rtol=1e-4)
    assert moved.mean() < 0.005


def test_third_error_vanishes_with_whole_float_summaries(collection, queries):
    """Summaries that are true maxima never let a block with a better document be skipped at h = 1."""
    safe = SeismicIndex.build(collection.documents, 100, max_fraction=6.0, summary_energy=1.0, quantize=False)
    skipping = safe.batch_search(queries, 10, 5, 1.0, statistics=True)
    everything = safe.batch_search(queries, 10, 5, 0.0, statistics=True)
    assert skipping[2][:, 3].sum() > 0
    assert (skipping[0] == everything[0]).float().mean() > 0.998  # the rest are ties in float32


# The compiled index against the reference ---------------------------------------------------------------


@pytest.mark.slow
def test_search_agrees_with_the_reference(variant, queries):
    built, _ = variant
    for cut, h in [(1, 1.0), (3, 1.0), (8, 0.8), (100, 0.0)]:
        ids, scores = built.batch_search(queries[:25], 10, cut, h)
        for i in range(25):
            expected = reference_search(built, queries[i].indices, queries[i].data, 10, cut, h)
            found = ids[i][ids[i] >= 0].tolist()
            assert found == [document for _, document in expected]
            np.testing.assert_allclose(scores[i, : len(found)], [s for s, _ in expected], rtol=1e-4)


def test_blocks_and_summaries_agree_with_the_reference(variant):
    built, options = variant
    documents = built.documents
    if options.get("pruning") == "fixed":
        indptr, ids, _ = fixed_prune(documents, 100)
    else:
        indptr, ids, _ = global_threshold_prune(documents, 100, 6.0)
    assert np.array_equal(np.diff(indptr), built.stats()["list_lengths"])
    lists = np.flatnonzero(np.diff(indptr))
    chosen = np.concatenate([lists[::200], np.argsort(-np.diff(indptr))[:5]])
    for j in map(int, chosen):
        members = ids[indptr[j] : indptr[j + 1]]
        blocks, summaries = built.blocks(j)
        if options.get("blocking") == "fixed":
            label = fixed_blocks(len(members), 10)
        else:
            beta = centroid_count(len(members), 0.1)
            label = shallow_kmeans(documents, members, beta, 2, list_seed(0, j), options.get("doc_cut"))
        assert len(blocks) == label.max() + 1
        for b, block in enumerate(blocks):
            assert np.array_equal(block, members[label == b])
            check_summary(documents[block], summaries[b].tocsr(), options)


def check_summary(block: sparse.csr_matrix, summary: sparse.csr_matrix, options: dict) -> None:
    if "summary" in options:
        phi = block.max(axis=0).toarray().ravel()
        coords = np.sort(np.argsort(-phi, kind="stable")[: min(40, np.count_nonzero(phi))])
        values = phi[coords]
    else:
        coords, values = block_summary(block, options.get("summary_energy", 0.4))
    assert np.array_equal(summary.indices, coords)
    expected = values if options.get("quantize") is False else dequantize_u8(*quantize_u8(values))
    np.testing.assert_array_equal(summary.data, expected)


def test_portable_code_gives_the_same_results(tmp_path, index, collection, queries):
    """The same search compiled for a machine without vector permutations, in a process of its own."""
    index.save(tmp_path / "index")
    sparse.save_npz(tmp_path / "queries.npz", queries[:200])
    program = (
        "import sys, numpy, scipy.sparse\n"
        "from sparsebook.retrieval.seismic import SeismicIndex\n"
        "index = SeismicIndex.load(sys.argv[1] + '/index')\n"
        "ids, scores = index.batch_search(scipy.sparse.load_npz(sys.argv[1] + '/queries.npz'), 10, 5, 0.9)\n"
        "numpy.savez(sys.argv[1] + '/found.npz', ids=ids.numpy(), scores=scores.numpy())\n"
    )
    environment = os.environ | {"NUMBA_CPU_NAME": "generic"}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, env=environment, timeout=120)
    found = np.load(tmp_path / "found.npz")
    ids, scores = index.batch_search(queries[:200], 10, 5, 0.9)
    np.testing.assert_allclose(found["scores"], scores.numpy(), rtol=1e-4)
    assert (found["ids"] == ids.numpy()).mean() > 0.998


def test_queries_of_every_length_score_exactly():
    """Lengths on both sides of every group of the vector path, and too long for it."""
    rng = np.random.default_rng(0)
    documents = sparse.random(300, 3000, 0.1, "csr", np.float32, rng)
    documents.sort_indices()
    built = SeismicIndex.build(documents, 3000, max_fraction=3e3)
    for length in (1, 2, 39, 40, 41, 80, 81, 319, 320, 321, 1500):
        coords = np.sort(rng.choice(3000, length, replace=False))
        values = rng.random(length, dtype=np.float32) + np.float32(0.01)
        dense = np.zeros(3000, np.float32)
        dense[coords] = values
        ids, scores = built.search(coords, values, 10, length, 0.0)
        found = ids >= 0
        truth = built.documents @ dense
        np.testing.assert_allclose(scores[found].numpy(), truth[ids[found].numpy()], rtol=1e-4)
        np.testing.assert_allclose(scores[found].numpy(), np.sort(truth)[::-1][: int(found.sum())], rtol=1e-4)


def test_more_than_65536_dimensions():
    rng = np.random.default_rng(1)
    narrow = sparse.random(400, 2000, 0.02, "csr", np.float32, rng)
    narrow.sort_indices()
    wide = sparse.csr_matrix((narrow.data, narrow.indices * 100, narrow.indptr), shape=(400, 200_000))
    few = sparse.csr_matrix((wide.data, wide.indices, wide.indptr), shape=wide.shape)[:50]
    built = SeismicIndex.build(wide, 400, max_fraction=400.0, summary_energy=1.0)
    ids, _ = built.batch_search(few, 5, 1000, 0.0)
    assert (ids[:, 0].numpy() == np.arange(50)).all()
    blocks, summaries = built.blocks(int(wide.indices[0]))
    assert sum(map(len, blocks)) == built.list_length(int(wide.indices[0]))
    assert np.isin(summaries.indices, wide.indices).all()


# The building blocks against their definitions ----------------------------------------------------------


@given(st.lists(st.floats(0.125, 100, width=16), max_size=40), st.floats(0.01, 1))
def test_alpha_mass_is_the_shortest_prefix_that_reaches_the_mass(values, alpha):
    u = np.array(values, dtype=np.float32)
    kept = alpha_mass(u, alpha)
    if not len(u):
        assert len(kept) == 0
        return
    total, mass = u.sum(dtype=np.float64), u[kept].sum(dtype=np.float64)
    assert mass >= alpha * total * (1 - 1e-12)
    assert mass - u[kept].min() < alpha * total
    assert np.delete(u, kept).max(initial=0) <= u[kept].min()


def test_alpha_mass_keeps_the_entry_that_crosses():
    assert alpha_mass(np.array([1, 4, 3, 2], np.float32), 0.4).tolist() == [1]  # 4 of 10 reach 0.4 exactly
    assert alpha_mass(np.array([1, 4, 3, 2], np.float32), 0.41).tolist() == [1, 2]


@given(st.lists(st.floats(0, 1000, width=16), min_size=1, max_size=30))
def test_quantisation_error(values):
    values = np.array(values, dtype=np.float32)
    slack = 1e-6 * max(1.0, float(values.max()))
    codes, minimum, step = quantize_u8(values)
    assert np.abs(dequantize_u8(codes, minimum, step) - values).max() <= step / 2 + slack
    codes, minimum, step = quantize_u8(values, rounding="floor")
    error = values - dequantize_u8(codes, minimum, step)
    assert error.min() >= -slack
    assert error.max() <= step + slack


def test_constant_vectors_decode_exactly():
    values = np.full(5, 3.25, np.float32)
    for rounding in ("nearest", "floor"):
        np.testing.assert_array_equal(dequantize_u8(*quantize_u8(values, rounding)), values)


def test_global_pruning_keeps_the_largest_values_and_caps_every_list(collection):
    documents = scipy_csr(collection.documents)
    indptr, ids, values = global_threshold_prune(documents, 20, max_fraction=2.0)
    assert np.diff(indptr).max() == 40
    uncapped, _, _ = global_threshold_prune(documents, 20, max_fraction=1e6)
    assert uncapped[-1] == 20 * documents.shape[1]
    columns = documents.tocsc()
    threshold = np.sort(documents.data)[-20 * documents.shape[1]]
    for j in np.flatnonzero(np.diff(indptr))[::97]:
        kept = values[indptr[j] : indptr[j + 1]]
        column = columns.data[columns.indptr[j] : columns.indptr[j + 1]]
        expected = np.sort(column[column >= threshold])[::-1][:40]
        np.testing.assert_array_equal(kept, expected)
        np.testing.assert_array_equal(documents[ids[indptr[j] : indptr[j + 1]], j].toarray().ravel(), kept)


def test_fixed_pruning_keeps_the_largest_of_each_list(collection):
    documents = scipy_csr(collection.documents)
    indptr, _, values = fixed_prune(documents, 30)
    columns = documents.tocsc()
    for j in range(0, documents.shape[1], 101):
        column = columns.data[columns.indptr[j] : columns.indptr[j + 1]]
        np.testing.assert_array_equal(values[indptr[j] : indptr[j + 1]], np.sort(column)[::-1][:30])


def test_every_document_of_a_list_is_in_one_block_and_small_blocks_are_dissolved(index):
    for j in range(0, index.dim, 37):
        blocks, summaries = index.blocks(j)
        members = np.concatenate(blocks) if blocks else np.empty(0)
        assert len(np.unique(members)) == len(members) == index.list_length(j)
        assert summaries.shape[0] == len(blocks)
        if len(blocks) > 1:
            assert min(map(len, blocks)) > 2


def test_summary_bounds_the_documents_of_its_block(collection):
    built = SeismicIndex.build(collection.documents, 100, max_fraction=6.0, quantize=False)
    documents = built.documents
    for j in np.argsort(-built.stats()["list_lengths"])[:20]:
        for block, summary in zip(*built.blocks(int(j)), strict=True):
            row = summary.tocsr()
            largest = documents[block].max(axis=0).toarray().ravel()
            np.testing.assert_array_equal(row.data, largest[row.indices])
            mass = row.data.sum(dtype=np.float64)
            assert mass >= 0.4 * largest.sum(dtype=np.float64) * (1 - 1e-9)
            assert mass - row.data.min() < 0.4 * largest.sum(dtype=np.float64)


def test_fixed_blocks_give_a_short_list_one_block():
    assert fixed_blocks(4, 10).tolist() == [0] * 4
    assert np.bincount(fixed_blocks(37, 10)).tolist() == [10, 10, 17]


def test_a_list_whose_clusters_are_all_small_is_one_block():
    documents = sparse.csr_matrix(np.eye(6, dtype=np.float32) + np.float32(0.0))
    assert shallow_kmeans(documents, np.arange(6), 6, 2, 0).tolist() == [0] * 6


@given(st.integers(1, 60), st.integers(0, 2**40), st.data())
def test_centroids_are_drawn_without_replacement(n, seed, data):
    count = data.draw(st.integers(1, n))
    drawn = draw_positions(n, count, seed)
    assert len(set(drawn.tolist())) == count
    assert 0 <= drawn.min() <= drawn.max() < n
    np.testing.assert_array_equal(drawn, draw_positions(n, count, seed))


def test_centroids_are_drawn_evenly():
    counts = np.bincount(np.concatenate([draw_positions(20, 5, seed) for seed in range(4000)]), minlength=20)
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000 * 0.75)


# What the knobs do --------------------------------------------------------------------------------------


def test_work_falls_with_the_heap_factor_and_grows_with_the_cut(index, collection, queries):
    truth, _ = exact(index.documents, queries, 10)

    def measure(cut, h):
        ids, _, touched = index.batch_search(collection.queries, 10, cut, h, statistics=True)
        return touched[:, 0].float().mean().item(), recall(ids, truth)

    by_factor = [measure(5, h) for h in (0.0, 0.6, 0.8, 1.0, 1.3)]
    by_cut = [measure(cut, 0.9) for cut in (1, 2, 4, 8, 16)]
    for a, b in pairwise(by_factor):
        assert b[0] <= a[0]
        assert b[1] <= a[1] + 0.002
    for a, b in pairwise(by_cut):
        assert b[0] >= a[0]
        assert b[1] >= a[1] - 0.002
    assert by_factor[-1][0] < 0.5 * by_factor[0][0]
    assert by_cut[-1][1] > 0.98


def test_visiting_the_best_blocks_first_needs_fewer_documents(index, collection, queries):
    truth, _ = exact(index.documents, queries, 10)
    stored = index.batch_search(collection.queries, 10, 5, 0.9, statistics=True)
    ordered = index.batch_search(collection.queries, 10, 5, 0.9, sort_first=True, statistics=True)
    assert ordered[2][:, 0].sum() < stored[2][:, 0].sum()
    assert abs(recall(ordered[0], truth) - recall(stored[0], truth)) < 0.01
    assert torch.equal(ordered[2][:, 2:4].sum(1), stored[2][:, 2:4].sum(1))  # all blocks are accounted for
    every = index.batch_search(collection.queries, 10, 5, 0.0)
    assert torch.equal(index.batch_search(collection.queries, 10, 5, 0.0, sort_first=True)[0], every[0])


def test_statistics_count_what_is_touched(index, queries):
    _, _, touched = index.batch_search(queries[:50], 10, 4, 0.0, statistics=True)
    counts = dict(zip(SeismicIndex.STATISTICS, touched.T.numpy(), strict=True))
    for i in range(50):
        opened = queries[i].indices[np.argsort(-queries[i].data, kind="stable")]
        opened = [j for j in opened if index.list_length(int(j))][:4]
        blocks = [block for j in opened for block in index.blocks(int(j))[0]]
        assert counts["blocks_visited"][i] == len(blocks)
        assert counts["postings"][i] == sum(map(len, blocks))
        assert counts["documents"][i] == len(np.unique(np.concatenate(blocks)))
    assert counts["blocks_skipped"].sum() == 0
    assert (counts["chunks"] >= counts["documents"]).all()
    assert (counts["bytes"] >= 128 * counts["chunks"] + 4 * counts["summary_entries"]).all()


def test_shuffled_summaries_cost_recall(index, collection, queries):
    twin = index.with_shuffled_summaries(seed=1)
    truth, _ = exact(index.documents, queries, 10)
    honest = recall(index.batch_search(collection.queries, 10, 10, 0.9)[0], truth)
    assert recall(twin.batch_search(collection.queries, 10, 10, 0.9)[0], truth) < honest - 0.05
    same = torch.equal(
        twin.batch_search(collection.queries, 10, 10, 0.0)[0],
        index.batch_search(collection.queries, 10, 10, 0.0)[0],
    )
    assert same  # nothing but the summaries moved
    j = int(np.argmax(index.stats()["block_counts"]))
    before, after = (np.sort(i.blocks(j)[1].sum(axis=1).A1) for i in (index, twin))
    np.testing.assert_allclose(before, after, rtol=1e-6)


def test_results_are_sorted_distinct_and_padded(index, collection):
    ids, scores = index.batch_search(collection.queries, 2000, 2, 0.9)
    for row, values in zip(ids.numpy(), scores.numpy(), strict=True):
        found = row[row >= 0]
        assert 0 < len(found) == len(set(found)) < 2000
        assert (row[len(found) :] == -1).all()
        assert np.isneginf(values[len(found) :]).all()
        assert (np.diff(values[: len(found)]) <= 0).all()
    assert ids.dtype == torch.int64
    assert scores.dtype == torch.float32


def test_empty_documents_and_unknown_terms():
    dense = np.zeros((6, 5), np.float32)
    dense[0, 1], dense[2, 1], dense[4, 3] = 1.0, 2.0, 1e-9  # the last rounds to zero in float16
    built = SeismicIndex.build(sparse.csr_matrix(dense), 10)
    ids, scores = built.search(np.array([0, 1, 4]), np.array([9, 1, 8], np.float32), 5, 1, 0.9)
    assert ids.tolist() == [2, 0, -1, -1, -1]  # coordinates 0 and 4 have no list and use up no cut
    assert scores[:2].tolist() == [2.0, 1.0]
    ids, _ = built.search(np.array([3]), np.array([1], np.float32), 5, 1, 0.9)
    assert ids.tolist() == [-1] * 5
    ids, _ = built.search(np.empty(0, np.int64), np.empty(0, np.float32), 2, 1, 0.9)
    assert ids.tolist() == [-1, -1]


def test_one_query_and_many_agree(index, queries):
    ids, scores = index.batch_search(queries[:20], 7, 5, 0.9, sort_first=True)
    for i in range(20):
        one = index.search(torch.from_numpy(queries[i].indices), queries[i].data, 7, 5, 0.9, sort_first=True)
        assert torch.equal(one[0], ids[i])
        assert torch.equal(one[1], scores[i])


# Threads, seeds, files ----------------------------------------------------------------------------------


def arrays(index: SeismicIndex) -> dict[str, np.ndarray]:
    return index._layout._asdict()


def same_arrays(a: SeismicIndex, b: SeismicIndex) -> bool:
    return all(np.array_equal(x, arrays(b)[name]) for name, x in arrays(a).items())


def test_threads_change_nothing_and_seeds_do(index, collection):
    options = {"n_postings": 100, "max_fraction": 6.0}
    assert same_arrays(index, SeismicIndex.build(collection.documents, n_threads=2, **options))
    assert not same_arrays(index, SeismicIndex.build(collection.documents, seed=1, **options))
    one = index.batch_search(collection.queries, 10, 5, 0.9, statistics=True)
    two = index.batch_search(collection.queries, 10, 5, 0.9, statistics=True, n_threads=2)
    assert all(map(torch.equal, one, two))


def test_epochs_of_the_visited_set_wrap_around(index, collection):
    """More than 255 queries on one thread; the last equals the first asked alone."""
    ids, _ = index.batch_search(collection.queries, 10, 5, 0.9)
    again, _ = index.batch_search(scipy_csr(collection.queries)[-40:], 10, 5, 0.9)
    assert torch.equal(ids[-40:], again)


@pytest.mark.parametrize("map_file", [False, True])
def test_save_and_load(tmp_path, variant, collection, map_file):
    built, _ = variant
    path = tmp_path / "an index"
    built.save(path)
    loaded = SeismicIndex.load(path, map_file=map_file)
    assert same_arrays(built, loaded)
    assert loaded.parameters == built.parameters
    found = loaded.batch_search(collection.queries, 10, 5, 0.9)
    assert all(map(torch.equal, found, built.batch_search(collection.queries, 10, 5, 0.9)))
    assert [p.name for p in tmp_path.iterdir()] == ["an index"]


@pytest.mark.parametrize("map_file", [False, True])
def test_damaged_truncated_and_foreign_files_are_refused(tmp_path, index, map_file):
    path = tmp_path / "index"
    index.save(path)
    good = path.read_bytes()
    position = np.random.default_rng(0).integers(100, len(good), 20)
    damaged = [good[:p] + bytes([good[p] ^ 1]) + good[p + 1 :] for p in position]
    truncated = [b"", good[:20], good[:200], good[: len(good) // 2], good[:-1], good + b"\0"]
    other_version = good.replace(b"index 1\n", b"index 9\n", 1)
    for content in [*damaged, *truncated, other_version, b"PK" + bytes(500)]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="path"):
            SeismicIndex.load(path, map_file=map_file)
    with pytest.raises(FileNotFoundError):
        SeismicIndex.load(tmp_path / "nothing")


def test_a_failed_write_leaves_the_old_file(tmp_path, index, monkeypatch):
    path = tmp_path / "index"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        index.save(path)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


# Bad input ----------------------------------------------------------------------------------------------


def matrix(coords, values, indptr=None, shape=(1, 10)) -> torch.Tensor:
    indptr = [0, len(coords)] if indptr is None else indptr
    parts = (torch.tensor(indptr), torch.tensor(coords), torch.tensor(values, dtype=torch.float32))
    return torch.sparse_csr_tensor(*parts, size=shape, check_invariants=False)


BAD_ROWS = {
    "strictly increasing": matrix([3, 1], [1, 1]),
    "none twice": matrix([3, 3], [1, 1]),
    "from 0 to dim": matrix([3, 10], [1, 1]),
    "no negative": matrix([1, 2], [1, -1]),
    "no NaN": matrix([1, 2], [1, np.nan]),
    "at most 65504": matrix([1, 2], [1, np.inf]),
    "row pointers": matrix([1, 2], [1, 1], indptr=[0, 1]),
    "2-d sparse_csr": torch.zeros(2, 10),
    "float32": matrix([1], [1]).to(torch.float64),
}


@pytest.mark.parametrize("rule", BAD_ROWS)
def test_rows_that_break_a_rule_are_refused(rule):
    with pytest.raises(ValueError, match=f"documents.*{rule}"):
        SeismicIndex.build(BAD_ROWS[rule], 5)
    built = SeismicIndex.build(matrix([1, 2], [1, 1]), 5)
    with pytest.raises(ValueError, match=f"queries.*{rule}"):
        built.batch_search(BAD_ROWS[rule], 1, 1, 1.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_postings", 0),
        ("centroid_fraction", 0.0),
        ("summary_energy", 1.5),
        ("summary_energy", float("nan")),
        ("max_fraction", -1.0),
        ("doc_cut", 0),
        ("pruning", "none"),
        ("blocking", "none"),
        ("summary", "none"),
        ("summary", "fixed"),
        ("summary_length", 3),
        ("n_threads", 0),
    ],
)
def test_parameters_out_of_range_are_named(name, value):
    defaults = {
        parameter.name: parameter.default
        for parameter in inspect.signature(SeismicIndex.build).parameters.values()
        if parameter.name != "documents"
    }
    expected = "summary_length" if (name, value) == ("summary", "fixed") else name
    with pytest.raises(ValueError, match=f"^{expected}: .*expected"):  # what the type checker lets through
        _check_parameters(**(defaults | {"n_postings": 5, name: value}))


@pytest.mark.parametrize(
    ("name", "value"), [("k", 0), ("query_cut", 0), ("heap_factor", -0.1), ("n_threads", 0)]
)
def test_search_parameters_out_of_range_are_named(index, queries, name, value):
    arguments = {"k": 10, "query_cut": 3, "heap_factor": 0.9} | {name: value}
    with pytest.raises(ValueError, match=f"^{name}: .*expected"):
        index.batch_search(queries, **arguments)


def test_another_dimension_is_refused(index):
    with pytest.raises(ValueError, match="queries: 10 columns; expected 8000"):
        index.batch_search(matrix([1], [1]), 1, 1, 1.0)
    with pytest.raises(ValueError, match="coords, values"):
        index.search(np.array([8000]), np.array([1.0], np.float32), 1, 1, 1.0)


def test_a_collection_without_columns_is_refused():
    with pytest.raises(ValueError, match="documents: 0 columns"):
        SeismicIndex.build(sparse.csr_matrix((3, 0), dtype=np.float32), 5)


def test_too_many_blocks_in_a_list_are_refused():
    n = 70_000
    documents = sparse.csr_matrix(
        (np.ones(n, np.float32), np.zeros(n, np.int32), np.arange(n + 1)), shape=(n, 1)
    )
    with pytest.raises(ValueError, match=r"centroid_fraction.*70000 blocks; expected at most 65535"):
        SeismicIndex.build(documents, n, centroid_fraction=1.0)


# Any shape ----------------------------------------------------------------------------------------------


@st.composite
def small_collections(draw):
    rows, columns = draw(st.integers(0, 12)), draw(st.integers(1, 9))
    values = st.sampled_from([0.0, 0.0, 0.0, 0.125, 0.5, 1.0, 2.75])
    dense = np.array(draw(st.lists(values, min_size=rows * columns, max_size=rows * columns)), np.float32)
    return sparse.csr_matrix(dense.reshape(rows, columns))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(small_collections(), st.integers(1, 20), st.integers(1, 12), st.floats(0, 1.2), st.booleans())
def test_any_small_collection_agrees_with_the_reference(documents, k, cut, h, whole):
    options = {"summary_energy": 1.0, "min_cluster_size": 0} if whole else {}
    built = SeismicIndex.build(documents, 8, max_fraction=8.0, centroid_fraction=0.4, **options)
    assert (built.documents != documents).nnz == 0
    ids, scores = built.batch_search(documents, min(k, 15), cut, h)
    for i in range(documents.shape[0]):
        row = documents[i]
        expected = reference_search(built, row.indices.astype(np.int64), row.data, min(k, 15), cut, h)
        found = ids[i] >= 0
        np.testing.assert_allclose(scores[i][found].numpy(), [s for s, _ in expected], rtol=1e-4)
        achieved = (documents @ row.T).toarray().ravel()[ids[i][found].numpy()]
        np.testing.assert_allclose(achieved, [s for s, _ in expected], rtol=1e-4)


# The package of the paper's authors ---------------------------------------------------------------------


@pytest.mark.peer
def test_pruned_lists_equal_those_of_the_authors(tmp_path, collection):
    """As sets, above the float16 value at the global threshold, where ties are broken either way."""
    seismic = pytest.importorskip("seismic")
    documents = scipy_csr(collection.documents)
    dataset = seismic.SeismicDataset(dim=documents.shape[1])
    dataset.add_documents_by_id(
        [str(i) for i in range(documents.shape[0])],
        documents.indices.astype(np.int64),
        documents.data,
        documents.indptr.astype(np.int64),
    )
    theirs = seismic.SeismicIndex.build_from_dataset(dataset, n_postings=20, max_fraction=6.0, num_threads=1)
    ours = SeismicIndex.build(documents, 20, max_fraction=6.0)
    rounded = ours.documents
    threshold = np.sort(rounded.data)[-20 * documents.shape[1]]
    lists = np.argsort(-ours.stats()["list_lengths"])[10:2010:10]  # below the cap, where ties are cut too
    compared = 0
    for j in map(int, lists):
        if ours.list_length(j) >= 120:
            continue
        column = rounded[:, [j]].toarray().ravel()
        above = set(np.flatnonzero(column > threshold).tolist())
        mine = set(np.concatenate(ours.blocks(j)[0]).tolist())
        assert above <= mine
        assert set(theirs.get_doc_ids_in_postings(j)) & above == above
        assert {d for d in theirs.get_doc_ids_in_postings(j) if column[d] < threshold} == set()
        compared += 1
    assert compared > 100
