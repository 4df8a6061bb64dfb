"""The method of the paper in plain NumPy and SciPy: what the compiled index must agree with.

Documents are the rows of a SciPy CSR matrix of non-negative float32; a *list* is what the inverted index
keeps of one coordinate: document ids, heaviest value first.
"""

import heapq
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float32, Int64, Integer, UInt8
from scipy import sparse

from sparsebook.retrieval.seismic.construction import draw_positions

if TYPE_CHECKING:
    from sparsebook.retrieval.seismic.index import SeismicIndex

Lists = tuple[Int64[np.ndarray, " starts"], Int64[np.ndarray, " postings"], Float32[np.ndarray, " postings"]]


def global_threshold_prune(
    documents: sparse.csr_matrix, n_postings: int, max_fraction: int | float = 1.5
) -> Lists:
    """Keep the ``n_postings * dim`` largest values of the whole collection, then cap every list.

    Lists hold ``n_postings`` entries on average and at most ``floor(n_postings * max_fraction)``; among
    equal values the lower document id stays (the published builder's ``GlobalThreshold``).

    Returns
    -------
    indptr, ids, values
        List ``j`` is ``ids[indptr[j]:indptr[j + 1]]`` with its values, in decreasing order.
    """
    order = _heaviest_first(documents.data)[: n_postings * documents.shape[1]]
    return _capped_lists(documents, order, int(n_postings * max_fraction))


def fixed_prune(documents: sparse.csr_matrix, n_postings: int) -> Lists:
    """Keep the ``n_postings`` largest values of every list (the ablation ``FixedSize``); returns as above."""
    return _capped_lists(documents, _heaviest_first(documents.data), n_postings)


def _heaviest_first(values: np.ndarray) -> np.ndarray:
    half = values.astype(np.float16)
    if np.array_equal(half, values):  # bits of non-negative halves sort like the values, and by radix
        return np.argsort(np.uint16(0xFFFF) - half.view(np.uint16), kind="stable")
    return np.argsort(-values, kind="stable")


def _capped_lists(documents: sparse.csr_matrix, order: np.ndarray, cap: int) -> Lists:
    dim = documents.shape[1]
    narrow = documents.indices.astype(np.uint16 if dim <= 1 << 16 else np.int32)
    order = order[np.argsort(narrow[order], kind="stable")]  # list by list, each still heaviest first
    lengths = np.bincount(documents.indices[order], minlength=dim)
    rank = np.arange(len(order)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    order = order[rank < cap]
    ids = np.repeat(np.arange(documents.shape[0]), np.diff(documents.indptr))[order]
    indptr = np.concatenate([[0], np.cumsum(np.minimum(lengths, cap))])
    return indptr.astype(np.int64), ids.astype(np.int64), documents.data[order]


def alpha_mass(u: Float32[np.ndarray, " n"], alpha: int | float) -> Int64[np.ndarray, " kept"]:
    """Positions of the alpha-mass subvector: the shortest prefix of the entries in decreasing order of
    magnitude whose L1 mass reaches ``alpha * |u|_1``; the entry that crosses the threshold stays."""
    heaviest_first = np.argsort(-np.abs(u), kind="stable")
    mass = np.cumsum(np.abs(u[heaviest_first]), dtype=np.float64)
    kept = np.searchsorted(mass, alpha * mass[-1]) + 1 if len(u) else 0
    return np.sort(heaviest_first[:kept])


def shallow_kmeans(
    documents: sparse.csr_matrix,
    ids: Integer[np.ndarray, " n"],
    beta: int,
    min_size: int = 2,
    seed: int = 0,
    doc_cut: int | None = None,
) -> Int64[np.ndarray, " n"]:
    """Block number of each document of a list: one assignment to ``beta`` of the list's own documents.

    A document goes to the centroid with the largest inner product (the first one among equals); clusters of
    at most ``min_size`` documents are dissolved and theirs reassigned among the surviving centroids. If none
    survives the list is one block. Blocks are numbered in the order of their centroids in the list.
    """
    centroids = np.sort(draw_positions(len(ids), beta, seed))
    points = documents[ids] if doc_cut is None else heaviest_entries(documents[ids], doc_cut)
    products = (points @ documents[ids[centroids]].T).toarray()
    label = products.argmax(axis=1)
    survives = np.bincount(label, minlength=beta) > min_size
    if not survives.any():
        return np.zeros(len(ids), dtype=np.int64)
    orphan = ~survives[label]
    label[orphan] = np.where(survives, products[orphan], -1.0).argmax(axis=1)
    return (np.cumsum(survives) - 1)[label]


def fixed_blocks(n: int, size: int) -> Int64[np.ndarray, " n"]:
    """Block number of each document of a value-sorted list cut into chunks of ``size`` (the ablation).

    The last chunk takes the remainder; a list shorter than ``size`` is one block.
    """
    return np.minimum(np.arange(n) // size, max(1, n // size) - 1)


def heaviest_entries(documents: sparse.csr_matrix, count: int) -> sparse.csr_matrix:
    """The ``count`` largest entries of every row, in order of coordinate."""
    rows = np.repeat(np.arange(documents.shape[0]), np.diff(documents.indptr))
    order = np.lexsort((-documents.data, rows))
    rank = np.arange(documents.nnz) - documents.indptr[rows]
    kept = np.sort(order[rank < count])
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows[kept], minlength=documents.shape[0]))])
    return sparse.csr_matrix((documents.data[kept], documents.indices[kept], indptr), shape=documents.shape)


def block_summary(
    block: sparse.csr_matrix, alpha: int | float
) -> tuple[Int64[np.ndarray, " kept"], Float32[np.ndarray, " kept"]]:
    """Coordinates and values of a block's summary: the alpha-mass part of the coordinate-wise maximum,
    ``phi(B)_j = max over x in B of x_j``, in order of coordinate. The block's documents are the rows."""
    phi = block.max(axis=0).toarray().ravel()
    support = np.flatnonzero(phi)
    support = support[alpha_mass(phi[support], alpha)]
    return support, phi[support]


def quantize_u8(
    values: Float32[np.ndarray, " n"], rounding: Literal["nearest", "floor"] = "nearest"
) -> tuple[UInt8[np.ndarray, " n"], np.float32, np.float32]:
    """Codes, minimum and step of a summary: ``code = round((v - min) / step)``, ``step = (max - min) / 255``.

    ``"floor"`` is the paper's first code (256 steps, saturating): it never over-estimates a value.
    """
    minimum, spread = values.min(), values.max() - values.min()
    step = np.float32(spread / np.float32(255 if rounding == "nearest" else 256))
    if step == 0:
        return np.zeros(len(values), dtype=np.uint8), minimum, step
    offset = np.float32(0.5 if rounding == "nearest" else 0.0)
    return np.minimum((values - minimum) / step + offset, 255).astype(np.uint8), minimum, step


def dequantize_u8(
    codes: UInt8[np.ndarray, " n"],
    minimum: np.float32 | Float32[np.ndarray, " n"],
    step: np.float32 | Float32[np.ndarray, " n"],
) -> Float32[np.ndarray, " n"]:
    """Values of the codes: ``code * step + min`` (of one summary, or of each code's own)."""
    return codes.astype(np.float32) * step + minimum


def reference_search(
    index: "SeismicIndex",
    coords: Integer[np.ndarray, " nnz"],
    values: Float32[np.ndarray, " nnz"],
    k: int,
    query_cut: int,
    heap_factor: int | float,
) -> list[tuple[float, int]]:
    """The search of the paper, readable: at most ``k`` pairs (score, id), best first, and lower ids first
    among equal scores. ``index.documents`` and ``index.blocks(j)`` decode what the index stores."""
    query = np.zeros(index.dim, dtype=np.float32)
    query[coords] = values
    heap: list[tuple[float, int]] = []  # of (score, -id): the root is the k-th best
    visited: set[int] = set()
    opened = [j for j in coords[np.argsort(-values, kind="stable")] if index.list_length(int(j))][:query_cut]
    for j in opened:
        blocks, summaries = index.blocks(int(j))
        estimates = summaries @ query  # with the whole query, not only the terms opened
        for block, estimate in zip(blocks, estimates, strict=True):
            if len(heap) == k and estimate < heap_factor * heap[0][0]:
                continue
            _push_new(heap, visited, block, index.documents[block] @ query, k)
    return sorted(((score, -negated) for score, negated in heap), key=lambda found: (-found[0], found[1]))


def _push_new(heap: list, visited: set[int], block: np.ndarray, scores: np.ndarray, k: int) -> None:
    for document, score in zip(block.tolist(), scores.tolist(), strict=True):
        if document in visited:
            continue
        visited.add(document)
        heapq.heappush(heap, (score, -document))
        if len(heap) > k:
            heapq.heappop(heap)
