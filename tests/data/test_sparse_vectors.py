"""The generator's distribution and independence of size, and readers that say what is wrong."""

import json

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch

from sparsebook.data.sparse_vectors import (
    SparseCollection,
    TopicModel,
    from_scipy,
    read_vectors,
    rows,
    to_scipy,
    topic_vectors,
    uniform_vectors,
    write_vectors,
)


def test_shape_of_the_controlled_collection():
    collection = topic_vectors(3000, 300, seed=0)
    documents, queries = to_scipy(collection.documents), to_scipy(collection.queries)
    assert documents.shape == (3000, 8000)
    assert 117 < documents.getnnz(1).mean() <= 120
    assert 25.5 < queries.getnnz(1).mean() <= 26
    assert documents.data.min() > 0
    for matrix in (documents, queries):
        assert matrix.has_canonical_format


def test_documents_have_near_neighbours_and_the_control_has_none():
    def nearest(collection):
        x = to_scipy(collection.documents)
        x = scipy.sparse.diags(1 / scipy.sparse.linalg.norm(x, axis=1)) @ x
        cosine = (x[:200] @ x.T).toarray()
        cosine[np.arange(200), np.arange(200)] = 0
        return np.median(cosine.max(1))

    assert nearest(topic_vectors(3000, 1)) > 2 * nearest(uniform_vectors(3000, 1))


def test_rows_do_not_depend_on_the_size():
    large, small = topic_vectors(500, 40, seed=3), topic_vectors(100, 10, seed=3)
    for a, b in ((large.first(100).documents, small.documents), (rows(large.queries, 0, 10), small.queries)):
        assert torch.equal(a.crow_indices(), b.crow_indices())
        assert torch.equal(a.col_indices(), b.col_indices())
        assert torch.equal(a.values(), b.values())


def test_seed_matters_and_repeats():
    a, b, c = topic_vectors(50, 5, 1), topic_vectors(50, 5, 1), topic_vectors(50, 5, 2)
    assert torch.equal(a.documents.values(), b.documents.values())
    assert not torch.equal(a.documents.col_indices()[:100], c.documents.col_indices()[:100])


def test_background_follows_zipf():
    model = TopicModel(topics=1, topic_size=1, document_topics=1, document_coordinates=1, query_topics=1,
                       query_coordinates=1, document_background=1, vocabulary=1000)  # fmt: skip
    counts = np.sort(to_scipy(topic_vectors(20_000, 1, model=model).documents).getnnz(0))[::-1]
    # Rank 2 has half of rank 1's probability, rank 10 a tenth (the topic's coordinate is in every document).
    assert counts[1] / counts[2] == pytest.approx(2, rel=0.15)
    assert counts[1] / counts[10] == pytest.approx(10, rel=0.3)


def test_uniform_control():
    collection = uniform_vectors(2000, 20, vocabulary=500, document_entries=30, query_entries=7)
    documents = to_scipy(collection.documents)
    assert (documents.getnnz(1) == 30).all()
    assert documents.data.min() > 0
    assert documents.data.max() <= 1
    share = documents.getnnz(0) / 2000
    assert abs(share - 0.06).max() < 0.03


def test_split_and_first():
    collection = topic_vectors(30, 10)
    tuning, reporting = collection.split_queries(4)
    assert (tuning.shape[0], reporting.shape[0]) == (4, 6)
    assert collection.first(7).size == 7
    with pytest.raises(ValueError, match="start and stop"):
        collection.first(31)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"vocabulary": 0}, "vocabulary"),
        ({"topic_size": 9000}, "topic_size"),
        ({"document_coordinates": 61}, "document_coordinates"),
        ({"query_topics": 401}, "query_topics"),
        ({"document_background": 4001}, "document_background"),
    ],
)
def test_impossible_models_are_refused(knobs, message):
    with pytest.raises(ValueError, match=message):
        TopicModel(**knobs)


def test_negative_sizes_are_refused():
    with pytest.raises(ValueError, match="n_documents must be at least 0, got -1"):
        topic_vectors(-1, 1)
    with pytest.raises(ValueError, match="query_entries"):
        uniform_vectors(1, 1, vocabulary=5, document_entries=2, query_entries=6)


def test_npz_round_trip(tmp_path):
    collection = topic_vectors(20, 5)
    named = SparseCollection(collection.documents, collection.queries, tuple(f"t{i}" for i in range(8000)))
    write_vectors(tmp_path / "v", named)
    again = read_vectors(tmp_path / "v")
    assert torch.equal(again.documents.values(), collection.documents.values())
    assert torch.equal(again.queries.col_indices(), collection.queries.col_indices())
    assert again.tokens == named.tokens


def _jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def test_published_layout(tmp_path):
    """The layout of the published embeddings: id, content, and a dictionary from token to weight."""
    _jsonl(
        tmp_path / "documents.jsonl",
        [
            {"id": 7, "content": "a cat", "vector": {"cat": 2.5, "a": 0.25}},
            {"id": 8, "content": "", "vector": {}},
            {"id": 9, "vector": {"a": 1, "dog": 3.0}},
        ],
    )
    _jsonl(tmp_path / "queries.jsonl", [{"id": 0, "vector": {"dog": 1.0, "unseen": 9.0}}])
    collection = read_vectors(tmp_path)
    assert collection.tokens == ("cat", "a", "dog")
    assert collection.document_ids == ("7", "8", "9")
    assert collection.documents.to_dense().tolist() == [[2.5, 0.25, 0], [0, 0, 0], [0, 1, 3]]
    assert collection.queries.to_dense().tolist() == [[0, 0, 1]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ('{"id": 1}', "line 2: expected an object with a dictionary 'vector'"),
        ('{"id": 1, "vector": {"a": -1}}', "line 2: weight of 'a' must be finite and >= 0, got -1"),
        ('{"id": 1, "vector": {"a": NaN}}', "line 2: weight of 'a'"),
        ('{"id": 1, "vector": {"a": "x"}}', "line 2: weight of 'a'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    (tmp_path / "documents.jsonl").write_text('{"id": 0, "vector": {"a": 1}}\n' + line + "\n")
    _jsonl(tmp_path / "queries.jsonl", [])
    with pytest.raises(ValueError, match=message):
        read_vectors(tmp_path)


def test_incomplete_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        read_vectors(tmp_path / "missing")
    (tmp_path / "documents.jsonl").write_text("")
    with pytest.raises(FileNotFoundError, match=r"needs documents and queries.*found documents.jsonl"):
        read_vectors(tmp_path)


def test_unsound_npz_is_named(tmp_path):
    scipy.sparse.save_npz(tmp_path / "documents.npz", scipy.sparse.csr_matrix([[1.0, 0.0]]))
    scipy.sparse.save_npz(tmp_path / "queries.npz", scipy.sparse.csr_matrix([[1.0, 0.0, 0.0]]))
    with pytest.raises(ValueError, match="3 columns, but the documents have 2"):
        read_vectors(tmp_path)
    scipy.sparse.save_npz(tmp_path / "queries.npz", scipy.sparse.csr_matrix([[1.0, -1.0]]))
    with pytest.raises(ValueError, match=r"queries.npz: values must be finite and >= 0"):
        read_vectors(tmp_path)
    (tmp_path / "queries.npz").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="not a matrix"):
        read_vectors(tmp_path)


def test_from_scipy_sorts_and_sums():
    matrix = scipy.sparse.csr_matrix(
        (np.array([1.0, 2.0, 3.0]), np.array([2, 0, 2]), np.array([0, 3])), shape=(1, 3)
    )
    assert from_scipy(matrix).to_dense().tolist() == [[2.0, 0.0, 4.0]]


def test_with_queries_draws_from_them():
    collection = topic_vectors(5, 20)
    drawn, again = collection.with_queries(6, seed=1), collection.with_queries(6, seed=1)
    assert drawn.documents is collection.documents
    assert torch.equal(drawn.queries.values(), again.queries.values())
    rows_of = {tuple(row.tolist()) for row in collection.queries.to_dense()}
    assert all(tuple(row.tolist()) in rows_of for row in drawn.queries.to_dense())
    assert collection.with_queries(99).queries.shape[0] == 20
