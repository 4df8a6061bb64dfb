"""Collections of sparse vectors: a controlled generator, its negative control, and the reader's own vectors.

The generator makes vectors that look like learned ones: a document mixes a few topics, each a small set of
coordinates with log-normal weights, over a background of coordinates that every text shares in Zipf's
proportions. All of it is drawn from one seed, row by row, so that the first thousand documents of a large
collection are the documents of the small one.
"""

# ruff: noqa: NPY002 (compiled code has only the legacy generator, seeded here for every row)

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import no_type_check

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float
from numba import njit
from torch import Tensor


@dataclass(frozen=True)
class SparseCollection:
    """Documents and queries over one vocabulary.

    Attributes
    ----------
    documents, queries : sparse_csr float32 [n, vocabulary]
        Coordinates ascend within a row and appear once.
    tokens : tuple of str or None
        What each coordinate means, where the source says so.
    document_ids : tuple of str or None
        Names of the rows in the source.
    """

    documents: Float[Tensor, "documents vocabulary"]
    queries: Float[Tensor, "queries vocabulary"]
    tokens: tuple[str, ...] | None = None
    document_ids: tuple[str, ...] | None = None

    @property
    def size(self) -> int:
        """Number of documents."""
        return self.documents.shape[0]

    @property
    def vocabulary(self) -> int:
        """Number of coordinates."""
        return self.documents.shape[1]

    def first(self, n: int) -> "SparseCollection":
        """The first `n` documents with the same queries."""
        ids = None if self.document_ids is None else self.document_ids[:n]
        return SparseCollection(rows(self.documents, 0, n), self.queries, self.tokens, ids)

    def with_queries(self, n: int, seed: int = 0) -> "SparseCollection":
        """The same documents with `n` of the queries, drawn by `seed` (all of them, shuffled, if fewer)."""
        order = np.random.default_rng(seed).permutation(self.queries.shape[0])[:n]
        return SparseCollection(
            self.documents, from_scipy(to_scipy(self.queries)[order]), self.tokens, self.document_ids
        )

    def split_queries(self, n: int) -> tuple[Float[Tensor, "n vocabulary"], Float[Tensor, "rest vocabulary"]]:
        """Queries for tuning (the first `n`) and for reporting (the others)."""
        return rows(self.queries, 0, n), rows(self.queries, n, self.queries.shape[0])


@dataclass(frozen=True)
class TopicModel:
    """The controlled generator's knobs; the defaults give about 119 entries a document and 26 a query.

    A document takes `document_coordinates` of the `topic_size` coordinates of each of `document_topics`
    topics; a query takes fewer. Both add distinct background coordinates drawn by Zipf's law (probability
    proportional to 1/rank). A weight is log-normal with standard deviation `spread` in the logarithm, the
    background's multiplied by `background_weight`; what falls on one coordinate adds up; the stored value is
    log(1 + weight), as a Splade head computes it.
    """

    vocabulary: int = 8_000
    topics: int = 400
    topic_size: int = 60
    document_topics: int = 3
    document_coordinates: int = 20
    document_background: int = 60
    query_topics: int = 2
    query_coordinates: int = 8
    query_background: int = 10
    spread: float = 1.0
    background_weight: float = 0.4

    def __post_init__(self) -> None:
        for name in ("vocabulary", "topics", "topic_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.topic_size > self.vocabulary:
            raise ValueError(
                f"topic_size must be at most vocabulary={self.vocabulary}, got {self.topic_size}"
            )
        for side in ("document", "query"):
            if getattr(self, f"{side}_coordinates") > self.topic_size:
                raise ValueError(f"{side}_coordinates must be at most topic_size={self.topic_size}")
            if getattr(self, f"{side}_topics") > self.topics:
                raise ValueError(f"{side}_topics must be at most topics={self.topics}")
            if 2 * getattr(self, f"{side}_background") > self.vocabulary:
                raise ValueError(f"{side}_background must be at most half of vocabulary={self.vocabulary}")


def topic_vectors(
    n_documents: int, n_queries: int, seed: int = 0, model: TopicModel | None = None
) -> SparseCollection:
    """Learned-like vectors from the controlled generator.

    Parameters
    ----------
    n_documents, n_queries : int
        Sizes, at least 0.
    seed : int
        Topics, documents and queries follow from it; documents do not depend on `n_documents`.
    model : TopicModel, optional
        The generator's knobs.

    Returns
    -------
    SparseCollection
        Non-negative values, coordinates ascending.
    """
    _check_sizes(n_documents, n_queries)
    m = model or TopicModel()
    generator = np.random.default_rng([seed, 0])
    members = np.stack([generator.permutation(m.vocabulary)[: m.topic_size] for _ in range(m.topics)])
    ranked = generator.permutation(m.vocabulary)
    cumulative = np.cumsum(1.0 / np.arange(1, m.vocabulary + 1))
    world = (members, ranked, cumulative / cumulative[-1], m.spread, m.background_weight)
    documents = _draw_rows(
        n_documents,
        _stream(seed, 1),
        *world,
        m.document_topics,
        m.document_coordinates,
        m.document_background,
    )
    queries = _draw_rows(
        n_queries, _stream(seed, 2), *world, m.query_topics, m.query_coordinates, m.query_background
    )
    return SparseCollection(_csr(documents, m.vocabulary), _csr(queries, m.vocabulary))


def uniform_vectors(
    n_documents: int,
    n_queries: int,
    seed: int = 0,
    vocabulary: int = 8_000,
    document_entries: int = 119,
    query_entries: int = 26,
) -> SparseCollection:
    """The negative control: coordinates and values uniform at random, no structure for a block to catch."""
    _check_sizes(n_documents, n_queries)
    for name, entries in (("document_entries", document_entries), ("query_entries", query_entries)):
        if not 1 <= entries <= vocabulary:
            raise ValueError(f"{name} must lie in [1, vocabulary={vocabulary}], got {entries}")
    documents = _draw_uniform(n_documents, _stream(seed, 3), vocabulary, document_entries)
    queries = _draw_uniform(n_queries, _stream(seed, 4), vocabulary, query_entries)
    return SparseCollection(_csr(documents, vocabulary), _csr(queries, vocabulary))


def rows(matrix: Float[Tensor, "n vocabulary"], start: int, stop: int) -> Float[Tensor, "rows vocabulary"]:
    """Rows `start` to `stop` of a CSR matrix as a CSR matrix of their own."""
    crow, n = matrix.crow_indices(), matrix.shape[0]
    if not 0 <= start <= stop <= n:
        raise ValueError(f"start and stop must satisfy 0 <= start <= stop <= {n}, got {start} and {stop}")
    low, high = int(crow[start]), int(crow[stop])
    return torch.sparse_csr_tensor(
        crow[start : stop + 1] - low,
        matrix.col_indices()[low:high],
        matrix.values()[low:high],
        size=(stop - start, matrix.shape[1]),
        check_invariants=False,
    )


def to_scipy(matrix: Float[Tensor, "n vocabulary"]) -> scipy.sparse.csr_matrix:
    """The same matrix for SciPy (copies nothing)."""
    parts = (matrix.values().numpy(), matrix.col_indices().numpy(), matrix.crow_indices().numpy())
    return scipy.sparse.csr_matrix(parts, shape=tuple(matrix.shape))


def from_scipy(matrix: scipy.sparse.spmatrix) -> Float[Tensor, "n vocabulary"]:
    """A SciPy matrix as sparse_csr float32 with int64 indices, sorted, duplicates summed."""
    csr = scipy.sparse.csr_matrix(matrix, dtype=np.float32, copy=True)
    csr.sum_duplicates()
    return _csr((csr.indptr.astype(np.int64), csr.indices.astype(np.int64), csr.data), csr.shape[1])


# The reader's own vectors --------------------------------------------------------------------------------


def read_vectors(folder: str | Path) -> SparseCollection:
    """Vectors from a folder, in one of two layouts.

    ``documents.npz`` and ``queries.npz``
        as written by `scipy.sparse.save_npz`, with an optional ``tokens.txt`` (one token a line);
    ``documents.jsonl`` and ``queries.jsonl`` (or ``queries.tsv.jsonl``)
        the format of the Seismic package and of its published embeddings: one object a line with ``id``, an
        optional ``content``, and ``vector``, a dictionary from token to weight.

    Raises
    ------
    FileNotFoundError
        If neither layout is complete; the message lists what was looked for and what is there.
    ValueError
        If a file is malformed; the message names the file and the line.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"vectors: no folder {folder}")
    documents, queries = _find(folder, "documents"), _find(folder, "queries")
    if documents is None or queries is None:
        found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise FileNotFoundError(
            f"vectors: {folder} needs documents and queries as .npz or .jsonl, found {found}"
        )
    if documents.suffix == ".npz":
        return _read_npz(documents, queries, folder / "tokens.txt")
    return _read_jsonl(documents, queries)


def write_vectors(folder: str | Path, collection: SparseCollection) -> None:
    """Write a collection in the npz layout that `read_vectors` reads."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    scipy.sparse.save_npz(folder / "documents.npz", to_scipy(collection.documents))
    scipy.sparse.save_npz(folder / "queries.npz", to_scipy(collection.queries))
    if collection.tokens is not None:
        (folder / "tokens.txt").write_text("\n".join(collection.tokens), encoding="utf-8")


def _find(folder: Path, name: str) -> Path | None:
    candidates = [folder / f"{name}.npz", folder / f"{name}.jsonl"]
    return next((path for path in candidates if path.is_file()), None)


def _read_npz(documents: Path, queries: Path, tokens: Path) -> SparseCollection:
    if queries.suffix != ".npz":
        raise ValueError(f"{queries}: documents are .npz, so queries must be .npz too")
    loaded = []
    for path in (documents, queries):
        try:
            loaded.append(from_scipy(scipy.sparse.load_npz(path)))
        except (ValueError, KeyError, OSError) as error:
            raise ValueError(f"{path}: not a matrix written by scipy.sparse.save_npz ({error})") from error
    if loaded[0].shape[1] != loaded[1].shape[1]:
        raise ValueError(
            f"{queries}: {loaded[1].shape[1]} columns, but the documents have {loaded[0].shape[1]}"
        )
    for path, matrix in zip((documents, queries), loaded, strict=True):
        _check_values(path, matrix.values())
    words = tuple(tokens.read_text(encoding="utf-8").splitlines()) if tokens.is_file() else None
    if words is not None and len(words) != loaded[0].shape[1]:
        raise ValueError(f"{tokens}: {len(words)} tokens for {loaded[0].shape[1]} columns")
    return SparseCollection(loaded[0], loaded[1], words)


def _read_jsonl(documents: Path, queries: Path) -> SparseCollection:
    vocabulary: dict[str, int] = {}
    names, matrix = _parse(documents, _lines(documents), vocabulary, grow=True)
    _, query_matrix = _parse(queries, _lines(queries), vocabulary, grow=False)
    width = len(vocabulary)
    return SparseCollection(_csr(matrix, width), _csr(query_matrix, width), tuple(vocabulary), tuple(names))


def _lines(path: Path) -> Iterator[tuple[int, dict]]:
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error.msg})") from error
            if not isinstance(record, dict) or not isinstance(record.get("vector"), dict):
                raise ValueError(f"{path}, line {number}: expected an object with a dictionary 'vector'")
            yield number, record


def _parse(
    path: Path, lines: Iterable[tuple[int, dict]], vocabulary: dict[str, int], grow: bool
) -> tuple[list[str], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows of a jsonl file; a query's token that no document has can match nothing and is left out."""
    names: list[str] = []
    starts, columns, values = [0], list[int](), list[float]()
    for number, record in lines:
        entries = []
        for token, weight in record["vector"].items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < np.inf:
                raise ValueError(
                    f"{path}, line {number}: weight of {token!r} must be finite and >= 0, got {weight!r}"
                )
            column = vocabulary.setdefault(token, len(vocabulary)) if grow else vocabulary.get(token)
            if column is not None and weight > 0:
                entries.append((column, weight))
        entries.sort()
        columns.extend(column for column, _ in entries)
        values.extend(weight for _, weight in entries)
        starts.append(len(columns))
        names.append(str(record.get("id", number - 1)))
    csr = np.array(starts, np.int64), np.array(columns, np.int64), np.array(values, np.float32)
    return names, csr


def _check_values(path: Path, values: Tensor) -> None:
    if values.numel() and not bool(torch.isfinite(values).all() and (values >= 0).all()):
        raise ValueError(f"{path}: values must be finite and >= 0")


# Drawing -------------------------------------------------------------------------------------------------


def _check_sizes(n_documents: int, n_queries: int) -> None:
    for name, value in (("n_documents", n_documents), ("n_queries", n_queries)):
        if value < 0:
            raise ValueError(f"{name} must be at least 0, got {value}")


def _stream(seed: int, part: int) -> int:
    """A 32-bit base seed for the compiled generators, well separated between parts."""
    return int(np.random.SeedSequence([seed, part]).generate_state(1)[0])


def _csr(parts: tuple[np.ndarray, np.ndarray, np.ndarray], width: int) -> Tensor:
    """Row starts, columns and values as a sparse_csr tensor."""
    crow, col, values = (torch.from_numpy(part) for part in parts)
    return torch.sparse_csr_tensor(crow, col, values, size=(len(crow) - 1, width), check_invariants=False)


@njit(cache=True)
@no_type_check
def _distinct(population, count, chosen):
    """`count` distinct numbers below `population` into `chosen` (Floyd's algorithm)."""
    for i in range(count):
        j = population - count + i
        draw = np.random.randint(0, j + 1)
        for previous in range(i):
            if chosen[previous] == draw:
                draw = j
                break
        chosen[i] = draw


@njit(cache=True)
@no_type_check
def _draw_rows(
    n, base, members, ranked, cumulative, spread, background_weight, n_topics, n_coordinates, n_background
):
    """CSR arrays of `n` rows; every row has its own seed, so that rows do not depend on `n`."""
    width = n_topics * n_coordinates + n_background
    crow = np.zeros(n + 1, np.int64)
    col = np.empty(n * width, np.int64)
    values = np.empty(n * width, np.float32)
    weight = np.zeros(len(ranked), np.float64)
    seen = np.full(len(ranked), -1, np.int64)
    topics, picks = np.empty(n_topics, np.int64), np.empty(max(n_coordinates, 1), np.int64)
    row_columns = np.empty(width, np.int64)
    end = 0
    for row in range(n):
        np.random.seed((base + row * 2654435761) % 4294967296)
        count = 0
        _distinct(len(members), n_topics, topics)
        for t in range(n_topics):
            _distinct(members.shape[1], n_coordinates, picks)
            for p in range(n_coordinates):
                c = members[topics[t], picks[p]]
                if weight[c] == 0.0:
                    row_columns[count] = c
                    count += 1
                weight[c] += np.exp(spread * np.random.normal())
        drawn = 0
        while drawn < n_background:
            c = ranked[min(np.searchsorted(cumulative, np.random.random()), len(ranked) - 1)]
            if seen[c] == row:
                continue
            seen[c] = row
            drawn += 1
            if weight[c] == 0.0:
                row_columns[count] = c
                count += 1
            weight[c] += background_weight * np.exp(spread * np.random.normal())
        ordered = np.sort(row_columns[:count])
        for c in ordered:
            col[end] = c
            values[end] = np.log1p(weight[c])
            weight[c] = 0.0
            end += 1
        crow[row + 1] = end
    return crow, col[:end].copy(), values[:end].copy()


@njit(cache=True)
@no_type_check
def _draw_uniform(n, base, vocabulary, entries):
    crow = np.arange(n + 1) * entries
    col = np.empty(n * entries, np.int64)
    values = np.empty(n * entries, np.float32)
    picks = np.empty(entries, np.int64)
    for row in range(n):
        np.random.seed((base + row * 2654435761) % 4294967296)
        _distinct(vocabulary, entries, picks)
        for e, c in enumerate(np.sort(picks)):
            col[row * entries + e] = c
            values[row * entries + e] = 1.0 - np.random.random()
    return crow, col, values
