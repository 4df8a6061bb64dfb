"""Every search of the chapter behind one small interface, so that all are built, tuned and timed alike.

A searcher is made from documents (`build`) or from a file (`load`), turns queries into its own format once
(`prepare`, not timed), and answers them (`run`, timed). `ids` reads the answer.
"""

import contextlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sparsebook.data.sparse_vectors import rows, to_scipy
from sparsebook.experiments.seismic.scales import Recipe
from sparsebook.files import missing_package
from sparsebook.kernels.inverted_index import InvertedIndex, exact_topk, impact_topk, maxscore_topk
from sparsebook.retrieval.seismic import SeismicIndex

Setting = dict[str, Any]


class Searcher:
    """What all searches share; `run(prepared, k, **setting)` is what is timed."""

    name: ClassVar[str]
    exact: ClassVar[bool] = False

    @classmethod
    def build(cls, documents: Tensor, recipe: Recipe | None = None, n_threads: int = 1) -> "Searcher":
        """Index the documents."""
        raise NotImplementedError

    def save(self, path: Path) -> None:
        """Keep the index for other processes; the default keeps nothing and rebuilds in `load`."""

    @classmethod
    def load(cls, path: Path, documents: Tensor, recipe: Recipe | None = None) -> "Searcher":
        """The index in another process."""
        return cls.build(documents, recipe)

    def prepare(self, queries: Tensor) -> Any:
        """Queries in the searcher's own format."""
        return queries

    def one_by_one(self, queries: Tensor) -> list[Any]:
        """Each query prepared as a batch of one."""
        return [self.prepare(rows(queries, q, q + 1)) for q in range(queries.shape[0])]

    def run(self, prepared: Any, k: int, *args: Any, **setting: Any) -> Any:
        """Answer the queries, on one thread."""
        raise NotImplementedError

    def ids(self, answer: Any, n_queries: int, k: int) -> Tensor:
        """Documents found, int64 [queries, k], padded with -1."""
        return answer[0]

    def settings(self, grid: list[Setting], postings: int) -> list[Setting]:
        """Search settings to try: the grid if the method is ours or its authors', else its own."""
        return [{}]


def either_order(grid: list[Setting]) -> list[Setting]:
    """Each setting with the first list's blocks as stored, and by decreasing summary score.

    The order is a later addition of the authors' package, and its default; the paper knows the first only.
    """
    return [setting | {"sort_first": sort_first} for setting in grid for sort_first in (False, True)]


class Seismic(Searcher):
    """Ours."""

    name = "seismic"

    def __init__(self, index: SeismicIndex) -> None:
        self.index = index

    @classmethod
    def build(
        cls, documents: Tensor, recipe: Recipe | None = None, n_threads: int = 1, **more: Any
    ) -> "Seismic":
        r = recipe or Recipe()
        return cls(
            SeismicIndex.build(
                documents,
                n_postings=r.n_postings,
                max_fraction=r.max_fraction,
                centroid_fraction=r.centroid_fraction,
                summary_energy=r.summary_energy,
                doc_cut=r.doc_cut,
                n_threads=n_threads,
                **more,
            )
        )

    def sabotage(self, seed: int = 0) -> "Seismic":
        """The twin whose summaries belong to other blocks."""
        return Seismic(self.index.with_shuffled_summaries(seed))

    def save(self, path: Path) -> None:
        self.index.save(path)

    @classmethod
    def load(cls, path: Path, documents: Tensor, recipe: Recipe | None = None) -> "Seismic":
        return cls(SeismicIndex.load(path))

    def run(
        self, prepared: Any, k: int, query_cut: int = 5, heap_factor: float = 0.9, sort_first: bool = False
    ) -> Any:
        return self.index.batch_search(prepared, k, int(query_cut), heap_factor, sort_first)

    def touched(
        self, queries: Tensor, k: int, query_cut: int, heap_factor: float, sort_first: bool = False
    ) -> dict[str, np.ndarray]:
        """Documents evaluated and summary entries read, for every query."""
        found = self.index.batch_search(queries, k, int(query_cut), heap_factor, sort_first, statistics=True)
        counts = found[2].numpy()
        return {name: counts[:, i] for i, name in enumerate(SeismicIndex.STATISTICS)}

    def settings(self, grid: list[Setting], postings: int) -> list[Setting]:
        return either_order(grid)


class PySeismic(Searcher):
    """The authors' own package, `pyseismic-lsr` (Rust)."""

    name = "pyseismic"

    def __init__(self, index: Any) -> None:
        self.index = index

    @classmethod
    def build(cls, documents: Tensor, recipe: Recipe | None = None, n_threads: int = 1) -> "PySeismic":
        return cls.from_dataset(cls.dataset(documents), recipe or Recipe(), n_threads)

    @staticmethod
    def dataset(documents: Tensor) -> Any:
        """The package's own collection (its conversion is not part of the build time)."""
        seismic = _import("seismic", "pyseismic-lsr")
        matrix, words = to_scipy(documents), _words(documents.shape[1])
        dataset = seismic.SeismicDataset()
        for i in range(matrix.shape[0]):
            entries = slice(matrix.indptr[i], matrix.indptr[i + 1])
            dataset.add_document(str(i), words[matrix.indices[entries]], matrix.data[entries])
        return dataset

    @classmethod
    def from_dataset(cls, dataset: Any, recipe: Recipe, n_threads: int) -> "PySeismic":
        """Build from the package's own collection."""
        seismic = _import("seismic", "pyseismic-lsr")
        with _quiet():
            index = seismic.SeismicIndex.build_from_dataset(
                dataset,
                n_postings=recipe.n_postings,
                centroid_fraction=recipe.centroid_fraction,
                summary_energy=recipe.summary_energy,
                max_fraction=recipe.max_fraction,
                doc_cut=recipe.doc_cut or 2**15,
                num_threads=n_threads,
            )
        return cls(index)

    def save(self, path: Path) -> None:
        with _quiet():
            self.index.save(str(path))

    @classmethod
    def load(cls, path: Path, documents: Tensor, recipe: Recipe | None = None) -> "PySeismic":
        seismic = _import("seismic", "pyseismic-lsr")
        with _quiet():
            return cls(seismic.SeismicIndex.load(str(next(path.parent.glob(f"{path.name}*")))))

    def prepare(self, queries: Tensor) -> Any:
        matrix, words = to_scipy(queries), _words(queries.shape[1])
        cuts = [slice(a, b) for a, b in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True)]
        names = np.array([str(i) for i in range(matrix.shape[0])], words.dtype)
        return names, [words[matrix.indices[c]] for c in cuts], [matrix.data[c] for c in cuts]

    def run(
        self, prepared: Any, k: int, query_cut: int = 5, heap_factor: float = 0.9, sort_first: bool = False
    ) -> Any:
        return self.index.batch_search(
            *prepared, k, int(query_cut), heap_factor, sorted=sort_first, num_threads=1
        )

    def ids(self, answer: Any, n_queries: int, k: int) -> Tensor:
        found = np.full((n_queries, k), -1, np.int64)
        for results in answer:  # not in the order of the queries
            for place, (query, _, document) in enumerate(results):
                found[int(query), place] = int(document)
        return torch.from_numpy(found)

    def settings(self, grid: list[Setting], postings: int) -> list[Setting]:
        return either_order(grid)

    def bytes(self) -> dict[str, int]:
        """Size of the index by part and in all, as the package itself prints it."""
        with _quiet() as said:
            self.index.print_space_usage_byte()
            text = said()
        lines = [line.split(":") for line in text.splitlines() if "Bytes" in line]
        sizes = {name.strip(" \t├─└"): int(rest.split()[0]) for name, rest in lines}
        return {part: sizes[name] for part, name in self.PARTS.items()}

    PARTS: ClassVar = {
        "forward": "Forward Index",
        "postings": "packed_postings",
        "blocks": "block_offsets",
        "summaries": "summaries",
        "total": "Total",
    }


class TermAtATime(Searcher):
    """Exact, term at a time (ours)."""

    name = "term_at_a_time"
    exact = True

    def __init__(self, index: InvertedIndex) -> None:
        self.index = index

    @classmethod
    def build(cls, documents: Tensor, recipe: Recipe | None = None, n_threads: int = 1) -> "TermAtATime":
        return cls(InvertedIndex.build(documents))

    def run(self, prepared: Any, k: int) -> Any:
        return exact_topk(self.index, prepared, k)


class MaxScore(TermAtATime):
    """Exact, MaxScore (ours)."""

    name = "maxscore"

    def run(self, prepared: Any, k: int) -> Any:
        return maxscore_topk(self.index, prepared, k)


class Impact(TermAtATime):
    """Anytime, by impact (ours, after IOQP)."""

    name = "impact"
    exact = False

    def run(self, prepared: Any, k: int, budget: int | None = None) -> Any:
        return impact_topk(self.index, prepared, k, budget)

    def settings(self, grid: list[Setting], postings: int) -> list[Setting]:
        shares = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
        return [{"budget": max(1, int(share * postings))} for share in shares]


class BlockMax(Searcher):
    """Block-max pruning, package `bmp` (Rust), 8-bit impacts; alpha = beta = 1 is its exact mode."""

    name = "bmp"

    def __init__(self, folder: tempfile.TemporaryDirectory) -> None:
        self.folder = folder  # the index's file lives as long as the searcher
        self.searcher = _import("bmp").Searcher(str(Path(folder.name, "index")))

    @classmethod
    def build(cls, documents: Tensor, recipe: Recipe | None = None, n_threads: int = 1) -> "BlockMax":
        folder = tempfile.TemporaryDirectory(prefix="sparsebook-bmp-")
        path = Path(folder.name, "index")
        indexer = _import("bmp").Indexer(str(path), bsize=32, compress_range=False)
        matrix = to_scipy(documents)
        codes = np.maximum(1, np.rint(matrix.data * (255 / max(matrix.data.max(initial=0), 1e-9)))).astype(
            int
        )
        for i in range(matrix.shape[0]):
            entries = slice(matrix.indptr[i], matrix.indptr[i + 1])
            indexer.add_document(
                str(i), dict(zip(map(str, matrix.indices[entries]), codes[entries].tolist(), strict=True))
            )
        indexer.finish()
        return cls(folder)

    def prepare(self, queries: Tensor) -> Any:
        matrix = to_scipy(queries)
        cuts = [slice(a, b) for a, b in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True)]
        # Query weights are cut to integers inside the package, so they are given room.
        return [
            dict(zip(map(str, matrix.indices[c]), (matrix.data[c] * 100).tolist(), strict=True)) for c in cuts
        ]

    def run(self, prepared: Any, k: int, alpha: float = 1.0, beta: float = 1.0) -> Any:
        return [self.searcher.search(query, k, alpha, beta) if query else ([], []) for query in prepared]

    def ids(self, answer: Any, n_queries: int, k: int) -> Tensor:
        return _padded([list(map(int, documents)) for documents, _ in answer], k)

    def settings(self, grid: list[Setting], postings: int) -> list[Setting]:
        return [{"alpha": a, "beta": b} for a in (1.0, 0.9, 0.8, 0.7) for b in (1.0, 0.8, 0.6)]


class Graph(Searcher):
    """A navigable small-world graph (HNSW) under sparse inner product, package `nmslib-metabrainz` (C++)."""

    name = "hnsw"

    def __init__(self, index: Any) -> None:
        self.index = index

    @staticmethod
    def _empty() -> Any:
        nmslib = _import("nmslib", "nmslib-metabrainz")
        return nmslib.init(
            method="hnsw", space="negdotprod_sparse_fast", data_type=nmslib.DataType.SPARSE_VECTOR
        )

    @classmethod
    def build(cls, documents: Tensor, recipe: Recipe | None = None, n_threads: int = 1) -> "Graph":
        index = cls._empty()
        index.addDataPointBatch(to_scipy(documents))
        with _quiet():
            index.createIndex({"M": 16, "efConstruction": 200, "indexThreadQty": n_threads, "post": 0})
        return cls(index)

    def save(self, path: Path) -> None:
        self.index.saveIndex(str(path), save_data=True)

    @classmethod
    def load(cls, path: Path, documents: Tensor, recipe: Recipe | None = None) -> "Graph":
        index = cls._empty()
        index.loadIndex(str(path), load_data=True)
        return cls(index)

    def prepare(self, queries: Tensor) -> Any:
        return to_scipy(queries)

    def run(self, prepared: Any, k: int, ef: int = 100) -> Any:
        self.index.setQueryTimeParams({"efSearch": int(ef)})
        return self.index.knnQueryBatch(prepared, k=k, num_threads=1)

    def ids(self, answer: Any, n_queries: int, k: int) -> Tensor:
        return _padded([documents.tolist() for documents, _ in answer], k)

    def settings(self, grid: list[Setting], postings: int) -> list[Setting]:
        return [{"ef": ef} for ef in (10, 20, 40, 80, 120, 160, 240, 320, 480, 640, 960)]


class SpladeIndex(Searcher):
    """Exact, package `splade-index` (its compiled scan, called below its text encoder)."""

    name = "splade_index"
    exact = True

    def __init__(self, scores: dict[str, Any]) -> None:
        self.scores = scores

    @classmethod
    def build(cls, documents: Tensor, recipe: Recipe | None = None, n_threads: int = 1) -> "SpladeIndex":
        columns = to_scipy(documents).tocsc()
        scores = {"data": columns.data, "indptr": columns.indptr.astype(np.int32)}
        return cls(scores | {"indices": columns.indices.astype(np.int32), "num_docs": documents.shape[0]})

    def prepare(self, queries: Tensor) -> Any:
        matrix = to_scipy(queries)
        cuts = [slice(a, b) for a, b in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True)]
        return [matrix.indices[c].astype(np.int32) for c in cuts], [matrix.data[c] for c in cuts]

    def run(self, prepared: Any, k: int) -> Any:
        retrieve = _import("splade_index.numba.retrieve_utils", "splade-index")._retrieve_numba_functional
        return retrieve(*prepared, self.scores, k=k, return_as="tuple", show_progress=False, n_threads=1)

    def ids(self, answer: Any, n_queries: int, k: int) -> Tensor:
        return torch.from_numpy(np.asarray(answer[0]).astype(np.int64))


class PySeismicScan(Searcher):
    """Exact, the forward scan of `pyseismic-lsr`."""

    name = "pyseismic_scan"
    exact = True

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    @classmethod
    def build(cls, documents: Tensor, recipe: Recipe | None = None, n_threads: int = 1) -> "PySeismicScan":
        return cls(PySeismic.dataset(documents))

    def prepare(self, queries: Tensor) -> Any:
        return PySeismic(None).prepare(queries)

    def run(self, prepared: Any, k: int) -> Any:
        return self.dataset.batch_search(*prepared, k, num_threads=1)

    def ids(self, answer: Any, n_queries: int, k: int) -> Tensor:
        return PySeismic(None).ids(answer, n_queries, k)


class SciPyProduct(Searcher):
    """Exact, SciPy's sparse product and a partial sort."""

    name = "scipy"
    exact = True

    def __init__(self, transposed: Any) -> None:
        self.transposed = transposed

    @classmethod
    def build(cls, documents: Tensor, recipe: Recipe | None = None, n_threads: int = 1) -> "SciPyProduct":
        return cls(to_scipy(documents).T.tocsr())

    def prepare(self, queries: Tensor) -> Any:
        return to_scipy(queries)

    def run(self, prepared: Any, k: int) -> Any:
        scores = (prepared @ self.transposed).toarray()
        best = np.argpartition(-scores, k, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable")
        return (torch.from_numpy(np.take_along_axis(best, order, 1)),)


SEARCHERS: tuple[type[Searcher], ...] = (
    Seismic, PySeismic, TermAtATime, MaxScore, Impact, BlockMax, Graph, SpladeIndex, PySeismicScan,
    SciPyProduct,
)  # fmt: skip


def searcher(name: str) -> type[Searcher]:
    """The class of a searcher by the name it has in tables."""
    return next(cls for cls in SEARCHERS if cls.name == name)


def installed(cls: type[Searcher]) -> bool:
    """Whether the package behind a searcher is there."""
    from importlib.util import find_spec

    packages = {"pyseismic": "seismic", "pyseismic_scan": "seismic", "bmp": "bmp", "hnsw": "nmslib"}
    package = packages.get(cls.name, "splade_index" if cls is SpladeIndex else None)
    return package is None or find_spec(package) is not None


def _import(module: str, distribution: str | None = None) -> Any:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        raise missing_package(distribution or module, "peers") from error


def _words(n: int) -> np.ndarray:
    """Coordinates as the package's fixed-width tokens."""
    return np.array(
        [str(i) for i in range(n)], dtype=_import("seismic", "pyseismic-lsr").get_seismic_string()
    )


def _padded(found: list[list[int]], k: int) -> Tensor:
    ids = np.full((len(found), k), -1, np.int64)
    for row, documents in zip(ids, found, strict=True):
        row[: len(documents)] = documents[:k]
    return torch.from_numpy(ids)


@contextlib.contextmanager
def _quiet() -> Iterator[Callable[[], str]]:
    """Compiled packages print past Python; keep it out of notebooks. Call the result for what was said."""
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryFile() as sink:
        kept = [(fd, os.dup(fd)) for fd in (1, 2)]
        try:
            for fd, _ in kept:
                os.dup2(sink.fileno(), fd)
            yield lambda: os.pread(sink.fileno(), 1 << 20, 0).decode()
        finally:
            for fd, copy in kept:
                os.dup2(copy, fd)
                os.close(copy)
