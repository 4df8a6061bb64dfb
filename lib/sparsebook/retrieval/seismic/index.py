"""`SeismicIndex`: build, search, look inside, save."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, no_type_check

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numba import njit
from scipy import sparse
from torch import Tensor

from sparsebook.retrieval.seismic import method
from sparsebook.retrieval.seismic.checks import at_least, check_rows, one_of, rows_of
from sparsebook.retrieval.seismic.construction import HASH, Collection, Growing, Recipe, build_lists
from sparsebook.retrieval.seismic.lanes import GROUP_WORDS, MOST_GROUPS
from sparsebook.retrieval.seismic.scan import CHUNK, COUNTS, Layout, Scratch, search_many
from sparsebook.retrieval.seismic.storage import aligned_empty, read_arrays, write_arrays

MOST_BLOCKS = 65535  # in a list: block numbers are 16 bits


class SeismicIndex:
    """An inverted index of blocks with summaries, and the documents themselves.

    Made by :meth:`build` or :meth:`load`. Searching is safe from several threads at once.

    Attributes
    ----------
    n_documents, dim : int
        Shape of the collection.
    parameters : dict
        What :meth:`build` was asked for.
    """

    def __init__(self, layout: Layout, parameters: dict[str, Any]) -> None:
        self._layout = layout
        self.parameters = parameters
        self.n_documents = layout.row_chunk.size - 1
        self.dim = layout.list_block.size - 1
        self._key_bits = _key_bits(self.dim)
        self._spare: list[Scratch] = []  # popping and appending are atomic
        self._most_blocks = int(np.diff(layout.list_block).max(initial=0))

    @classmethod
    def build(
        cls,
        documents: Tensor | sparse.csr_matrix | sparse.csr_array,
        n_postings: int,
        max_fraction: int | float = 1.5,
        centroid_fraction: int | float = 0.1,
        min_cluster_size: int = 2,
        summary_energy: int | float = 0.4,
        pruning: Literal["global", "fixed"] = "global",
        blocking: Literal["kmeans", "fixed"] = "kmeans",
        summary: Literal["energy", "fixed"] = "energy",
        quantize: bool = True,
        doc_cut: int | None = None,
        summary_length: int | None = None,
        seed: int = 0,
        n_threads: int = 1,
    ) -> "SeismicIndex":
        """Index a collection of non-negative sparse vectors.

        Values are rounded to float16 once, before anything else; entries that round to zero are dropped.

        Parameters
        ----------
        documents : sparse_csr tensor or SciPy CSR matrix, [documents, dim], float32
        n_postings : postings per list on average (lambda)
        max_fraction : a list holds at most ``n_postings * max_fraction`` (pruning "global" only)
        centroid_fraction : blocks per posting before small clusters are dissolved (c); blocking "fixed" cuts
            chunks of ``round(1 / centroid_fraction)`` documents
        min_cluster_size : clusters of at most this size are dissolved
        summary_energy : fraction of a summary's L1 mass that is kept (alpha)
        summary : "energy", or "fixed" for the ``summary_length`` largest coordinates
        quantize : summaries in 8 bits, or float32
        doc_cut : the assignment to centroids sees only a document's ``doc_cut`` heaviest entries
        seed : of the centroids; every list has a stream of its own
        n_threads : of the build; does not change the result

        Raises
        ------
        ValueError
            An argument is out of range; a row has unsorted or repeated coordinates, NaN, negative values or
            values above 65,504; a list would have more than 65,535 blocks.
        """
        parameters = {name: value for name, value in locals().items() if name not in ("cls", "documents")}
        _check_parameters(**parameters)
        rows, dim = rows_of(documents, "documents")
        if dim < 1:
            raise ValueError(f"documents: {dim} columns; expected at least 1")
        matrix = _rounded(rows, dim)
        if pruning == "global":
            list_ptr, list_ids, _ = method.global_threshold_prune(matrix, n_postings, max_fraction)
        else:
            list_ptr, list_ids, _ = method.fixed_prune(matrix, n_postings)
        recipe = Recipe(
            centroid_fraction=float(centroid_fraction),
            min_cluster_size=int(min_cluster_size),
            block_size=round(1 / centroid_fraction) if blocking == "fixed" else 0,
            summary_energy=float(summary_energy),
            summary_length=int(summary_length or 0) if summary == "fixed" else 0,
            quantize=bool(quantize),
            key_bits=_key_bits(dim),
            seed=int(seed),
        )
        most = int(np.diff(list_ptr).max(initial=0) * centroid_fraction)
        if most > MOST_BLOCKS:
            raise ValueError(
                f"centroid_fraction: {centroid_fraction} makes a list of {most} blocks; "
                f"expected at most {MOST_BLOCKS}"
            )
        points = matrix if doc_cut is None else method.heaviest_entries(matrix, doc_cut)
        layout = _layout(matrix, points, list_ptr, list_ids, recipe, n_threads)
        del parameters["n_threads"]  # no property of the index
        return cls(layout, parameters)

    def search(
        self,
        coords: Tensor | np.ndarray,
        values: Tensor | np.ndarray,
        k: int,
        query_cut: int,
        heap_factor: int | float,
        sort_first: bool = False,
    ) -> tuple[Int64[Tensor, " k"], Float32[Tensor, " k"]]:
        """Documents with the largest inner product with one query: ``coords`` ascending, ``values`` positive.

        See :meth:`batch_search` for the parameters; returns one row of its result.
        """
        rows = Collection(
            np.array([0, len(coords)], dtype=np.int64),
            np.ascontiguousarray(coords, dtype=np.int32),
            np.ascontiguousarray(values, dtype=np.float32),
        )
        check_rows(rows, self.dim, "coords, values")
        ids, scores, _ = self._search(rows, k, query_cut, heap_factor, sort_first, 1)
        return torch.from_numpy(ids[0]), torch.from_numpy(scores[0])

    def batch_search(
        self,
        queries: Tensor | sparse.csr_matrix | sparse.csr_array,
        k: int,
        query_cut: int,
        heap_factor: int | float,
        sort_first: bool = False,
        n_threads: int = 1,
        statistics: bool = False,
    ) -> tuple[Tensor, ...]:
        """Documents with the largest inner product with each query.

        Parameters
        ----------
        queries : sparse_csr tensor or SciPy CSR matrix, [queries, dim], float32, non-negative
        k : results per query
        query_cut : lists opened, those of the query's largest entries; entries without a list do not count
        heap_factor : a block is skipped when its summary score is below ``heap_factor`` times the k-th best
            score so far (smaller: slower and more accurate)
        sort_first : visit the blocks of the first list by decreasing summary score
        n_threads : does not change the result
        statistics : also return what each query touched

        Returns
        -------
        ids : int64 [queries, k], best first, -1 where fewer documents were reached
        scores : float32 [queries, k], -inf there; float16 document values, float32 sums
        touched : int64 [queries, 7], the counts named by ``SeismicIndex.STATISTICS`` (only on request); the
            bytes are those of documents, summary entries, block headers and postings

        Raises
        ------
        ValueError
            ``queries`` has another dimension than the index or breaks a rule of :meth:`build`; ``k < 1``,
            ``query_cut < 1`` or ``heap_factor < 0``.
        """
        rows, dim = rows_of(queries, "queries")
        if dim != self.dim:
            raise ValueError(f"queries: {dim} columns; expected {self.dim}, the dimension of the index")
        found = self._search(rows, k, query_cut, heap_factor, sort_first, n_threads)
        return tuple(map(torch.from_numpy, found if statistics else found[:2]))

    STATISTICS = (*COUNTS, "bytes")

    def _search(
        self,
        rows: Collection,
        k: int,
        query_cut: int,
        heap_factor: int | float,
        sort_first: bool,
        n_threads: int,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at_least("k", k, 1)
        at_least("query_cut", query_cut, 1)
        at_least("heap_factor", heap_factor, 0)
        at_least("n_threads", n_threads, 1)
        count = rows.indptr.size - 1
        reach = min(k, self.n_documents)
        ids = np.full((count, k), -1, dtype=np.int64)
        scores = np.full((count, k), -np.inf, dtype=np.float32)
        touched = np.zeros((count, len(self.STATISTICS)), dtype=np.int64)

        def part(first: int, last: int) -> None:
            scratch = self._scratch(reach)
            search_many(
                self._layout, *rows, first, last, reach, int(query_cut), float(heap_factor), bool(sort_first),
                self._key_bits, scratch, (ids, scores, touched),
            )  # fmt: skip
            self._spare.append(scratch)

        if reach > 0 and n_threads == 1:
            part(0, count)
        elif reach > 0:
            _in_threads(part, np.unique(np.linspace(0, count, n_threads + 1).astype(int)), n_threads)
        touched[:, -1] = touched[:, :-1] @ self._count_bytes()
        return ids, scores, touched

    def _count_bytes(self) -> np.ndarray:
        """Bytes that one of each of the ``COUNTS`` reads."""
        layout = self._layout
        entry = layout.entry.itemsize + (layout.value.itemsize if layout.value.size else 0)
        header = layout.scale.itemsize * 2
        sizes = {
            "chunks": 2 * CHUNK * layout.rows.itemsize,
            "blocks_visited": header + layout.block_posting.itemsize,
            "blocks_skipped": header,
            "postings": layout.postings.itemsize,
            "summary_entries": entry,
        }
        return np.array([sizes.get(count, 0) for count in COUNTS], dtype=np.int64)

    def _scratch(self, k: int) -> Scratch:
        try:
            spare = self._spare.pop()
        except IndexError:
            spare = Scratch(
                query=np.zeros(self.dim, dtype=np.float32),
                seen=np.zeros(self.n_documents, dtype=np.uint8),
                epoch=np.zeros(1, dtype=np.uint8),
                estimate=np.empty(self._most_blocks, dtype=np.float32),
                order=np.empty(self._most_blocks, dtype=np.uint64),
                heap=np.empty(k, dtype=np.uint64),
                tables=np.empty(MOST_GROUPS * GROUP_WORDS, dtype=np.uint16),
            )
        return spare if spare.heap.size >= k else spare._replace(heap=np.empty(k, dtype=np.uint64))

    @cached_property
    def documents(self) -> sparse.csr_matrix:
        """The collection as the forward index stores it (float16 values), decoded."""
        layout = self._layout
        chunks = layout.rows.reshape(-1, 2, CHUNK)
        coords = chunks[:, 0].ravel().astype(np.int32)
        values = chunks[:, 1].ravel().astype(np.uint16).view(np.float16).astype(np.float32)
        indptr = layout.row_chunk.astype(np.int64) * CHUNK
        padded = sparse.csr_matrix((values, coords, indptr), shape=(self.n_documents, self.dim))
        rows = np.repeat(np.arange(self.n_documents), np.diff(indptr))[values > 0]
        ends = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=self.n_documents))])
        return sparse.csr_matrix((values[values > 0], coords[values > 0], ends), shape=padded.shape)

    def list_length(self, j: int) -> int:
        """Number of postings of coordinate ``j``."""
        layout = self._layout
        return int(layout.block_posting[layout.list_block[j + 1]]) - int(
            layout.block_posting[layout.list_block[j]]
        )

    def blocks(self, j: int) -> tuple[list[Int64[np.ndarray, " size"]], sparse.csr_matrix]:
        """Document ids of each block of list ``j``, and the blocks' summaries as the search sees them,
        float32 [blocks, dim]."""
        layout = self._layout
        first, last = layout.list_block[j : j + 2]
        ends = layout.block_posting[first : last + 1].astype(np.int64)
        ids = [layout.postings[a:b].astype(np.int64) for a, b in pairwise(ends)]
        coords, block, values = self._entries(j)
        summaries = sparse.coo_matrix((values, (block, coords)), shape=(last - first, self.dim)).tocsr()
        summaries.sort_indices()
        return ids, summaries

    def _entries(self, j: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Coordinates, blocks and values of the summary entries of list ``j``."""
        layout = self._layout
        starts = layout.bucket[slice(*layout.list_bucket[j : j + 2])].astype(np.int64)
        if not starts.size:
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
        shift = self._key_bits - (starts.size - 2).bit_length()
        high = np.repeat(np.arange(starts.size - 1), np.diff(starts)) << shift
        at = slice(*layout.list_entry[j : j + 2])
        entry = layout.entry[at].astype(np.int64)
        first, last = layout.list_block[j : j + 2]
        block_bits = int(last - first - 1).bit_length()
        block = (entry >> 8) & ((1 << block_bits) - 1)
        inverse = pow(HASH, -1, 1 << self._key_bits)  # undoes the permutation of the coordinates
        coords = ((high | (entry >> (8 + block_bits))) * inverse) % (1 << self._key_bits)
        if layout.value.size:
            return coords, block, np.asarray(layout.value[at])
        minimum, step = layout.scale[first + block].T
        return coords, block, method.dequantize_u8((entry & 255).astype(np.uint8), minimum, step)

    def stats(self) -> dict[str, Any]:
        """Counts, and ``bytes`` by part: forward (the documents), postings, blocks, summaries, total.

        ``list_lengths`` int64 [dim], ``block_counts`` int64 [dim], ``block_sizes`` int64 [blocks].
        """
        layout = self._layout
        ends = layout.block_posting.astype(np.int64)
        parts = {
            "forward": (layout.rows, layout.row_chunk),
            "postings": (layout.postings,),
            "blocks": (layout.block_posting, layout.list_block),
            "summaries": (
                layout.scale, layout.entry, layout.value,
                layout.bucket, layout.list_bucket, layout.list_entry,
            ),
        }  # fmt: skip
        size = {part: sum(array.nbytes for array in arrays) for part, arrays in parts.items()}
        return {
            "documents": self.n_documents,
            "dim": self.dim,
            "postings": layout.postings.size,
            "blocks": ends.size - 1,
            "summary_entries": layout.entry.size,
            "list_lengths": np.diff(ends[layout.list_block]),
            "block_counts": np.diff(layout.list_block),
            "block_sizes": np.diff(ends),
            "bytes": size | {"total": sum(size.values())},
        }

    def with_shuffled_summaries(self, seed: int = 0) -> "SeismicIndex":
        """A sabotaged twin: the summaries of each list change places among its blocks."""
        layout, rng = self._layout, np.random.default_rng(seed)
        entry, scale = layout.entry.copy(), layout.scale.copy()
        for j in np.flatnonzero(np.diff(layout.list_block) > 1):
            first, last = layout.list_block[j : j + 2]
            place = rng.permutation(last - first)
            entries = slice(*layout.list_entry[j : j + 2])
            mask = ((1 << int(last - first - 1).bit_length()) - 1) << 8
            moved = (place[(entry[entries] & np.uint32(mask)) >> 8] << 8).astype(np.uint32)
            entry[entries] = (entry[entries] & ~np.uint32(mask)) | moved
            scale[first + place] = layout.scale[first:last]
        return SeismicIndex(layout._replace(entry=entry, scale=scale), self.parameters | {"shuffled": seed})

    def save(self, path: str | os.PathLike) -> None:
        """Write the index to one file, atomically, with a version and a checksum."""
        write_arrays(path, self.parameters, self._layout._asdict())

    @classmethod
    def load(cls, path: str | os.PathLike, map_file: bool = False) -> "SeismicIndex":
        """Read an index that :meth:`save` wrote; ``map_file`` leaves its arrays in the file, where processes
        can share them.

        Raises
        ------
        ValueError
            The file is foreign, of another version, truncated or damaged.
        """
        parameters, arrays = read_arrays(path, map_file)
        return cls(Layout(**arrays), parameters)


def _check_parameters(**given: Any) -> None:
    for name in ("n_postings", "n_threads"):
        at_least(name, given[name], 1)
    for name in ("max_fraction", "min_cluster_size", "seed"):
        at_least(name, given[name], 0)
    for name in ("centroid_fraction", "summary_energy"):
        if not 0 < given[name] <= 1:
            raise ValueError(f"{name}: {given[name]}; expected a fraction above 0 and at most 1")
    for name in ("doc_cut", "summary_length"):
        if given[name] is not None:
            at_least(name, given[name], 1)
    one_of("pruning", given["pruning"], ("global", "fixed"))
    one_of("blocking", given["blocking"], ("kmeans", "fixed"))
    one_of("summary", given["summary"], ("energy", "fixed"))
    if (given["summary"] == "fixed") != (given["summary_length"] is not None):
        raise ValueError(
            f"summary_length: {given['summary_length']} with summary {given['summary']!r}; "
            "expected a length with summary 'fixed' and None with 'energy'"
        )


def _key_bits(dim: int) -> int:
    return max(16, (dim - 1).bit_length())


def _rounded(rows: Collection, dim: int) -> sparse.csr_matrix:
    """The collection in float16 precision, without the entries that are zero in it."""
    values = rows.values.astype(np.float16).astype(np.float32)
    kept = values > 0
    before = np.concatenate([[0], np.cumsum(kept)])
    arrays = (values[kept], rows.coords[kept], before[rows.indptr])
    return sparse.csr_matrix(arrays, shape=(rows.indptr.size - 1, dim))


def _in_threads(work: Callable[[int, int], Any], cuts: np.ndarray, n_threads: int) -> list[Any]:
    """``work(first, last)`` for every interval between cuts; results in order."""
    bounds = list(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True))
    if n_threads == 1 or len(bounds) == 1:
        return [work(*bound) for bound in bounds]
    with ThreadPoolExecutor(n_threads) as pool:
        return list(pool.map(lambda bound: work(*bound), bounds))


def _layout(
    matrix: sparse.csr_matrix,
    points: sparse.csr_matrix,
    list_ptr: np.ndarray,
    list_ids: np.ndarray,
    recipe: Recipe,
    n_threads: int,
) -> Layout:
    if list_ids.size >= 1 << 32:
        raise ValueError(f"n_postings: keeps {list_ids.size} postings; expected fewer than 2**32")
    dim = matrix.shape[1]
    documents, seen = _collection(matrix), _collection(points)
    postings = np.empty(list_ids.size, dtype=np.int64)
    counts = np.zeros((dim, 3), dtype=np.int64)

    def part(first: int, last: int) -> Growing:
        return build_lists(documents, seen, list_ptr, list_ids, first, last, dim, recipe, postings, counts)

    shares = np.linspace(0, list_ids.size, 16 * n_threads + 1)  # of equal postings
    cuts = np.unique(np.concatenate([[0], np.searchsorted(list_ptr, shares[1:-1]), [dim]]))
    built = [np.concatenate(arrays) for arrays in zip(*_in_threads(part, cuts, n_threads), strict=True)]
    out = Growing(*built)
    ends = np.concatenate([np.zeros((1, 3), dtype=np.int64), np.cumsum(counts, axis=0)])
    rows, row_chunk = _pack(matrix)
    return Layout(
        rows=rows,
        row_chunk=row_chunk,
        list_block=np.ascontiguousarray(ends[:, 0]),
        block_posting=np.concatenate([[0], out.block_end]).astype(np.uint32),
        postings=postings.astype(np.uint32),
        scale=out.scale,
        list_bucket=np.ascontiguousarray(ends[:, 1]),
        list_entry=np.ascontiguousarray(ends[:, 2]),
        bucket=out.bucket,
        entry=out.entry,
        value=out.value,
    )


def _collection(matrix: sparse.csr_matrix) -> Collection:
    return Collection(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data)


def _pack(matrix: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Rows as chunks: 32 coordinates, then the bits of their 32 float16 values, padded with zeros."""
    lengths = np.diff(matrix.indptr)
    row_chunk = np.concatenate([[0], np.cumsum(-(-lengths // CHUNK))])
    rows = aligned_empty(
        int(row_chunk[-1]) * 2 * CHUNK, np.uint16 if matrix.shape[1] <= 1 << 16 else np.uint32
    )
    _fill(_collection(matrix), matrix.data.astype(np.float16).view(np.uint16), row_chunk, rows)
    return rows, row_chunk.astype(np.uint32)


@njit(cache=True, nogil=True)
@no_type_check
def _fill(documents, bits, row_chunk, rows):
    rows[:] = 0
    for i in range(row_chunk.size - 1):
        for e in range(documents.indptr[i + 1] - documents.indptr[i]):
            at = (row_chunk[i] + e // 32) * 64 + e % 32
            rows[at] = documents.coords[documents.indptr[i] + e]
            rows[at + 32] = bits[documents.indptr[i] + e]
