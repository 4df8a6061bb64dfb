"""BM25 as sparse vectors: a passage's weight for each of its words, a query's count of each.

The inner product of the two is the BM25 score, so everything in this part that searches sparse vectors
searches text with it, no learning involved.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float
from torch import Tensor

from sparsebook.files import missing_package


@dataclass(frozen=True)
class BM25Vectors:
    """Passages and queries over the words of the passages.

    Attributes
    ----------
    documents : sparse_csr float32 [passages, words], non-negative
    queries : sparse_csr float32 [queries, words]; words that no passage has are left out
    tokens : the words, in the order of the columns
    """

    documents: Float[Tensor, "passages words"]
    queries: Float[Tensor, "queries words"]
    tokens: tuple[str, ...]


def bm25_vectors(
    passages: Sequence[str], queries: Sequence[str], k1: float = 1.5, b: float = 0.75
) -> BM25Vectors:
    """Weigh passages with BM25 (Lucene's variant, whose inverse document frequency is never negative).

    A word w that stands f times in a passage of length |d| weighs
    ``idf(w) * f / (f + k1 * (1 - b + b * |d| / mean length))``; a query weighs a word by its count. English
    stop words are left out. Tokenisation and weights are those of the package bm25s.

    Raises
    ------
    ValueError
        If there is no passage, none contains a word, k1 is negative or b lies outside [0, 1].
    MissingInput
        If bm25s is not installed.
    """
    if not len(passages):
        raise ValueError("passages: expected at least one, got none")
    if k1 < 0 or not 0 <= b <= 1:
        raise ValueError(f"k1 and b: expected k1 >= 0 and 0 <= b <= 1, got {k1} and {b}")
    try:
        import bm25s
    except ImportError as error:
        raise missing_package("bm25s") from error
    tokens = bm25s.tokenize(list(passages), stopwords="en", show_progress=False)
    words = {word: i for word, i in tokens.vocab.items() if word}
    if not words:
        raise ValueError("passages: expected words, but none has any beside stop words")
    engine = bm25s.BM25(method="lucene", k1=k1, b=b)
    engine.index(tokens, show_progress=False)
    scores = engine.scores
    shape = (len(passages), len(scores["indptr"]) - 1)
    columns = scipy.sparse.csc_matrix((scores["data"], scores["indices"], scores["indptr"]), shape=shape)
    names = [""] * shape[1]
    for word, column in words.items():
        names[column] = word
    return BM25Vectors(_csr(columns), _csr(_counts(queries, words, shape[1])), tuple(names))


def _counts(queries: Sequence[str], words: dict[str, int], width: int) -> scipy.sparse.csr_matrix:
    import bm25s

    split = bm25s.tokenize(list(queries), stopwords="en", return_ids=False, show_progress=False)
    known = [[words[word] for word in query if word in words] for query in split]
    rows = np.repeat(np.arange(len(known)), [len(query) for query in known])
    columns = np.array([column for query in known for column in query], np.int64)
    ones = np.ones(len(columns), np.float32)
    return scipy.sparse.csr_matrix((ones, (rows, columns)), shape=(len(known), width))


def _csr(matrix: scipy.sparse.spmatrix) -> Tensor:
    csr = scipy.sparse.csr_matrix(matrix, dtype=np.float32)
    csr.sum_duplicates()
    csr.eliminate_zeros()
    crow, col = (torch.from_numpy(part.astype(np.int64)) for part in (csr.indptr, csr.indices))
    values = torch.from_numpy(csr.data)
    return torch.sparse_csr_tensor(crow, col, values, size=csr.shape, check_invariants=False)
