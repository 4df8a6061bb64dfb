"""Inverted index: exact search term at a time, exact search with MaxScore, an impact-ordered anytime scan.

All three return the k documents with the largest positive inner product, best first, ties by ascending
document, padded with -1 and -inf. Vectors are non-negative and sparse. One thread is the default: the
latency of one query is what these searches are judged by.

    index = InvertedIndex.build(documents)              # torch.sparse_csr [documents, vocabulary]
    ids, scores = exact_topk(index, queries, k=10)      # torch.sparse_csr [queries, vocabulary]
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from sparsebook.kernels.inverted_index import cpu
from sparsebook.kernels.inverted_index.cuda import exact_topk_product
from sparsebook.kernels.inverted_index.reference import exact_topk_reference

__all__ = ["InvertedIndex", "exact_topk", "exact_topk_reference", "impact_topk", "maxscore_topk"]

Found = tuple[Int[Tensor, "queries k"], Float[Tensor, "queries k"]]


@dataclass(frozen=True)
class InvertedIndex:
    """Postings of every coordinate, sorted by document and cut into ranges of 8,192 documents.

    Attributes
    ----------
    n_documents : int
    segments : int64 [vocabulary, ranges + 1]
        ``segments[t, r]`` is the first posting of coordinate t in range r; the last column ends the list.
    local : int16 [postings]
        Document of a posting, counted from the start of its range.
    values : float32 [postings]
    """

    n_documents: int
    segments: Int[Tensor, "vocabulary bounds"]
    local: Int[Tensor, "postings"]
    values: Float[Tensor, "postings"]

    @classmethod
    def build(cls, documents: Float[Tensor, "documents vocabulary"]) -> "InvertedIndex":
        """Index a sparse_csr matrix of documents.

        Raises
        ------
        ValueError
            If the matrix is not sparse_csr, a value is negative, infinite or NaN, or the coordinates of a row
            are unsorted, repeated or out of range.
        """
        crow, col, values = csr_parts(documents, "documents", ordered=True)
        matrix = scipy.sparse.csr_matrix((values, col, crow), shape=tuple(documents.shape))
        if (values == 0).any():
            matrix = matrix.copy()
            matrix.eliminate_zeros()
        return cls._from_columns(matrix.tocsc())

    @classmethod
    def from_scipy(cls, documents: scipy.sparse.spmatrix) -> "InvertedIndex":
        """Index any SciPy sparse matrix of documents."""
        csr = scipy.sparse.csr_matrix(documents, dtype=np.float32)
        crow, col = (torch.from_numpy(part.astype(np.int64)) for part in (csr.indptr, csr.indices))
        values = torch.from_numpy(np.ascontiguousarray(csr.data))
        return cls.build(torch.sparse_csr_tensor(crow, col, values, size=csr.shape, check_invariants=False))

    @classmethod
    def _from_columns(cls, columns: scipy.sparse.csc_matrix) -> "InvertedIndex":
        n_documents, n_terms = columns.shape
        n_ranges = -(-n_documents // cpu.RANGE)
        counts = cpu.count_segments(columns.indptr.astype(np.int64), columns.indices, n_ranges)
        segments = np.empty((n_terms, n_ranges + 1), np.int64)
        segments[:, 0] = columns.indptr[:-1]
        segments[:, 1:] = columns.indptr[:-1, None] + np.cumsum(counts, 1)
        return cls(
            n_documents,
            torch.from_numpy(segments),
            torch.from_numpy((columns.indices % cpu.RANGE).astype(np.int16)),
            torch.from_numpy(np.ascontiguousarray(columns.data, np.float32)),
        )

    @property
    def vocabulary(self) -> int:
        """Number of coordinates."""
        return self.segments.shape[0]

    @cached_property
    def documents(self) -> Int[Tensor, "postings"]:
        """Document of every posting, int32 (made when first asked for)."""
        n_ranges = self.segments.shape[1] - 1
        counts = (self.segments[:, 1:] - self.segments[:, :-1]).flatten()
        first = torch.arange(n_ranges, dtype=torch.int32).mul_(cpu.RANGE).repeat(self.vocabulary)
        return torch.repeat_interleave(first, counts) + self.local.int()

    @cached_property
    def largest(self) -> Float[Tensor, "vocabulary"]:
        """Largest value of every list, 0 where it is empty."""
        result = torch.zeros(self.vocabulary)
        lengths = self.segments[:, -1] - self.segments[:, 0]
        term = torch.repeat_interleave(torch.arange(self.vocabulary), lengths)
        return result.scatter_reduce_(0, term, self.values, "amax")

    @cached_property
    def impacts(self) -> "ImpactOrder":
        """The same postings sorted by 8-bit impact (made when first asked for)."""
        return ImpactOrder.build(self)

    def stats(self) -> dict[str, int]:
        """Sizes: documents, vocabulary, postings, the longest list, and bytes by part."""
        lengths = self.segments[:, -1] - self.segments[:, 0]
        return {
            "documents": self.n_documents,
            "vocabulary": self.vocabulary,
            "postings": self.values.numel(),
            "longest_list": int(lengths.max()) if self.vocabulary else 0,
            "bytes_segments": self.segments.nbytes,
            "bytes_documents": self.local.nbytes,
            "bytes_values": self.values.nbytes,
        }


@dataclass(frozen=True)
class ImpactOrder:
    """Postings of every coordinate by decreasing 8-bit impact, in segments of equal impact.

    Attributes
    ----------
    step : float
        Impact i stands for values in ((i - 1) * step, i * step].
    term_segments : int64 [vocabulary + 1]
        First segment of a coordinate.
    impact, first : int64 [segments], [segments + 1]
        Impact of a segment, its first posting.
    documents, values : int32, float32 [postings]
    """

    step: float
    term_segments: NDArray[np.int64]
    impact: NDArray[np.int64]
    first: NDArray[np.int64]
    documents: NDArray[np.int32]
    values: NDArray[np.float32]

    @classmethod
    def build(cls, index: InvertedIndex) -> "ImpactOrder":
        """Sort the postings of an index by impact."""
        values = index.values.numpy()
        step = float(values.max()) / 255 if values.size else 1.0
        starts = np.append(index.segments[:, 0].numpy(), values.size)
        order, term_segments, impact, first = cpu.impact_segments(starts, values, step)
        return cls(step, term_segments, impact, first, index.documents.numpy()[order], values[order])


def exact_topk(
    index: InvertedIndex, queries: Float[Tensor, "queries vocabulary"], k: int, n_threads: int = 1
) -> Found:
    """Exact search, term at a time: every posting of every query term is read once.

    Parameters
    ----------
    index : InvertedIndex
    queries : sparse_csr [queries, vocabulary], non-negative
    k : int
        Results per query, at least 1.
    n_threads : int
        Numba threads; more than one pays for batches only.

    Returns
    -------
    ids : int64 [queries, k], padded with -1
    scores : float32 [queries, k], padded with -inf

    Raises
    ------
    ValueError
        If `queries` is not a valid matrix over the index's vocabulary, or k or n_threads is below 1.

    Notes
    -----
    Runs as the operator ``sparsebook::inverted_index_exact``; on a GPU as a sparse-by-dense product.
    """
    crow, col, weights = _query_tensors(index, queries, k)
    if n_threads < 1:
        raise ValueError(f"n_threads must be at least 1, got {n_threads}")
    return torch.ops.sparsebook.inverted_index_exact(
        index.segments, index.local, index.values, index.n_documents, crow, col, weights, k, n_threads
    )


def maxscore_topk(
    index: InvertedIndex,
    queries: Float[Tensor, "queries vocabulary"],
    k: int,
    read: NDArray[np.int64] | None = None,
) -> Found:
    """Exact search with MaxScore: terms too weak to lift a document into the result are only probed.

    Documents go by in ascending order, range by range; parameters, result and errors as for `exact_topk`. If
    `read` (int64 [queries]) is given, the number of postings read for each query is written into it. One
    thread.

    Notes
    -----
    Turtle and Flood, "Query evaluation: strategies and optimizations", 1995, in the bulk form that search
    engines use: the essential lists of a range are accumulated before the others are probed.
    """
    crow, col, weights = (part.numpy() for part in _query_tensors(index, queries, k))
    ids, scores = _empty(len(crow) - 1, k)
    read = _counter(read, len(crow) - 1)
    cpu.maxscore_serial(
        index.segments.numpy(), index.documents.numpy(), index.values.numpy(), index.largest.numpy(),
        index.n_documents, crow, col, weights, scores, ids, read,
    )  # fmt: skip
    return torch.from_numpy(ids), torch.from_numpy(scores)


def impact_topk(
    index: InvertedIndex,
    queries: Float[Tensor, "queries vocabulary"],
    k: int,
    budget: int | None = None,
    read: NDArray[np.int64] | None = None,
) -> Found:
    """Anytime search: postings by decreasing query weight times 8-bit impact, until `budget` are read.

    Parameters as for `exact_topk`, and

    budget : int or None
        Postings to read for a query; None reads them all and is exact.
    read : int64 [queries], optional
        Receives the number of postings read.

    Notes
    -----
    After Mackenzie, Petri and Gallagher, "IOQP: a simple impact-ordered query processor written in Rust",
    2022. Eight bits decide the order only; contributions are added at full precision, so that an unlimited
    budget gives the exact result.
    """
    if budget is not None and budget < 1:
        raise ValueError(f"budget must be at least 1 or None, got {budget}")
    crow, col, weights = (part.numpy() for part in _query_tensors(index, queries, k))
    ids, scores = _empty(len(crow) - 1, k)
    read = _counter(read, len(crow) - 1)
    order = index.impacts
    cpu.impact_serial(
        order.term_segments, order.impact, order.first, order.documents, order.values, index.n_documents,
        crow, col, weights, np.iinfo(np.int64).max if budget is None else budget, scores, ids, read,
    )  # fmt: skip
    return torch.from_numpy(ids), torch.from_numpy(scores)


# Checks --------------------------------------------------------------------------------------------------


def csr_parts(matrix: Tensor, name: str, ordered: bool) -> tuple[NDArray, NDArray, NDArray]:
    """Row starts, columns (int64) and values (float32) of a checked sparse_csr matrix.

    Raises
    ------
    ValueError
        Naming `name`: not sparse_csr, negative or non-finite values, columns out of range, or (with
        `ordered`) unsorted or repeated within a row.
    """
    if matrix.layout != torch.sparse_csr:
        raise ValueError(f"{name} must be a torch.sparse_csr matrix, got layout {matrix.layout}")
    crow = matrix.crow_indices().cpu().contiguous().long().numpy()
    col = matrix.col_indices().cpu().contiguous().long().numpy()
    values = matrix.values().detach().cpu().contiguous().float().numpy()
    fault = cpu.find_fault(crow, col, values, matrix.shape[1], ordered)
    if fault == 0:
        return crow, col, values
    raise ValueError(
        {
            1: f"{name} must have row starts that ascend from 0 to the number of entries",
            2: f"{name} must have coordinates in [0, {matrix.shape[1]})",
            3: f"{name} must have non-negative finite values",
            4: f"{name} must have ascending coordinates without repetition in every row",
        }[fault]
    )


def _query_tensors(index: InvertedIndex, queries: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    if queries.ndim != 2 or queries.shape[1] != index.vocabulary:
        raise ValueError(
            f"queries must have {index.vocabulary} columns like the index, got shape {tuple(queries.shape)}"
        )
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    device = index.values.device
    crow, col, weights = (torch.from_numpy(part) for part in csr_parts(queries, "queries", ordered=False))
    return crow.to(device), col.to(device), weights.to(device)


def _empty(n_queries: int, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    return np.full((n_queries, k), -1, np.int64), np.full((n_queries, k), -np.inf, np.float32)


def _counter(read: NDArray[np.int64] | None, n_queries: int) -> NDArray[np.int64]:
    if read is None:
        return np.zeros(n_queries, np.int64)
    if read.shape != (n_queries,) or read.dtype != np.int64:
        raise ValueError(f"read must be int64 of shape ({n_queries},), got {read.dtype} {read.shape}")
    return read


# The operator --------------------------------------------------------------------------------------------


@contextmanager
def _numba_threads(n: int) -> Iterator[None]:
    import numba

    before = numba.get_num_threads()
    most = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    numba.set_num_threads(min(n, most))
    try:
        yield
    finally:
        numba.set_num_threads(before)


def _exact_cpu(
    segments: Tensor,
    local: Tensor,
    values: Tensor,
    n_documents: int,
    crow: Tensor,
    col: Tensor,
    weights: Tensor,
    k: int,
    n_threads: int,
) -> tuple[Tensor, Tensor]:
    ids = torch.empty((crow.numel() - 1, k), dtype=torch.int64)
    scores = torch.empty((crow.numel() - 1, k), dtype=torch.float32)
    arguments: list[Any] = [segments.numpy(), local.numpy().view(np.uint16), values.numpy(), n_documents]
    arguments += [crow.numpy(), col.numpy(), weights.numpy(), scores.numpy(), ids.numpy()]
    if n_threads == 1:
        cpu.exact_serial(*arguments)
    else:
        with _numba_threads(n_threads):
            cpu.exact_parallel(*arguments)
    return ids, scores


def _exact_cuda(
    segments: Tensor,
    local: Tensor,
    values: Tensor,
    n_documents: int,
    crow: Tensor,
    col: Tensor,
    weights: Tensor,
    k: int,
    n_threads: int,
) -> tuple[Tensor, Tensor]:
    return exact_topk_product(segments, local, values, n_documents, cpu.RANGE, crow, col, weights, k)


def _exact_fake(
    segments: Tensor,
    local: Tensor,
    values: Tensor,
    n_documents: int,
    crow: Tensor,
    col: Tensor,
    weights: Tensor,
    k: int,
    n_threads: int,
) -> tuple[Tensor, Tensor]:
    shape = (crow.shape[0] - 1, k)
    return values.new_empty(shape, dtype=torch.int64), values.new_empty(shape)


_library = torch.library.Library("sparsebook", "FRAGMENT")
_library.define(
    "inverted_index_exact(Tensor segments, Tensor local, Tensor values, int n_documents, Tensor query_starts,"
    " Tensor query_terms, Tensor query_weights, int k, int n_threads) -> (Tensor, Tensor)"
)
_library.impl("inverted_index_exact", _exact_cpu, "CPU")
_library.impl("inverted_index_exact", _exact_cuda, "CUDA")
torch.library.register_fake("sparsebook::inverted_index_exact", _exact_fake, lib=_library)
