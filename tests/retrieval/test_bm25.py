"""BM25 vectors against the formula and against the package's own retrieval."""

import math

import bm25s
import numpy as np
import pytest

from sparsebook.kernels.inverted_index import InvertedIndex, exact_topk
from sparsebook.retrieval.bm25 import bm25_vectors

TEXTS = ["red fish blue fish", "one red bird", "green ideas sleep furiously tonight", "blue bird blue sky"]


def test_formula():
    vectors = bm25_vectors(TEXTS, ["blue blue fish unheard"])
    column = vectors.tokens.index("fish")
    mean = np.mean([len(text.split()) for text in TEXTS])
    idf = math.log(1 + (4 - 1 + 0.5) / (1 + 0.5))
    weight = idf * 2 / (2 + 1.5 * (1 - 0.75 + 0.75 * 4 / mean))
    documents, queries = vectors.documents.to_dense(), vectors.queries.to_dense()
    assert documents[0, column].item() == pytest.approx(weight, rel=1e-5)
    assert documents[1:, column].tolist() == [0, 0, 0]
    assert queries[0, vectors.tokens.index("blue")] == 2
    assert queries[0].sum() == 3


def test_inner_products_are_the_packages_scores():
    queries = ["blue bird", "sleep red"]
    vectors = bm25_vectors(TEXTS, queries)
    ids, scores = exact_topk(InvertedIndex.build(vectors.documents), vectors.queries, 2)
    engine = bm25s.BM25(method="lucene")
    engine.index(bm25s.tokenize(TEXTS, stopwords="en", show_progress=False), show_progress=False)
    split = bm25s.tokenize(queries, stopwords="en", return_ids=False, show_progress=False)
    found, values = engine.retrieve(split, k=2, show_progress=False)
    assert np.array_equal(ids.numpy(), found)
    np.testing.assert_allclose(scores.numpy(), values, rtol=1e-5)


def test_stop_words_and_empty_queries():
    vectors = bm25_vectors(TEXTS, ["the of and", ""])
    assert "the" not in vectors.tokens
    assert vectors.queries.shape[0] == 2
    assert vectors.queries.values().numel() == 0


@pytest.mark.parametrize(
    ("passages", "knobs", "message"),
    [
        ([], {}, "passages: expected at least one"),
        (["the of"], {}, "passages: expected words"),
        (TEXTS, {"k1": -1.0}, "k1 and b"),
        (TEXTS, {"b": 1.5}, "k1 and b"),
    ],
)
def test_bad_arguments_are_named(passages, knobs, message):
    with pytest.raises(ValueError, match=message):
        bm25_vectors(passages, ["red"], **knobs)
