"""What a run of the chapter does at each scale."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sparsebook.data.sparse_vectors import SparseCollection, TopicModel, read_vectors, topic_vectors

SCALES = ("smoke", "book", "full", "paper")
FRONT = (
    "seismic", "pyseismic", "term_at_a_time", "maxscore", "impact", "bmp", "hnsw", "splade_index",
    "pyseismic_scan",
)  # fmt: skip
"""Searches on the front; SciPy's product, hundreds of times slower, is in the benchmark only."""


@dataclass(frozen=True)
class Recipe:
    """Build parameters that both Seismic and its authors' package understand."""

    n_postings: int = 350
    centroid_fraction: float = 0.1
    summary_energy: float = 0.4
    max_fraction: float = 6.0
    doc_cut: int | None = 15

    def scaled(self, factor: float) -> "Recipe":
        """The same recipe for a collection `factor` times as large: lists grow with its square root."""
        return replace(self, n_postings=max(1, round(self.n_postings * factor**0.5)))


@dataclass(frozen=True)
class Config:
    """One run; make it with `Config.at`.

    Attributes
    ----------
    n_documents : size of the collection of the front, the ablations and the sweeps
    n_tuning, n_queries : queries that settings are chosen on, and queries that are reported
    n_timed : how many of the reported queries are timed
    collections : seeds of the collections for claims about randomness
    sizes : collection sizes of the growth experiment, ascending
    share_sizes : those of the part that is repeated over `collections`
    processes : processes for a timing; 0 repeats it `in_process` times in this one (for tests)
    methods : names of the searches on the front; None takes all that are installed
    repeats : interleaved rounds in a process
    recipes : build parameters tried for Seismic and for its authors' package alike
    query_cuts, heap_factors : search settings tried for both
    near_exact : the settings recommended for near-exact search (c, alpha, lambda as a share of n_documents)
    spreads, spread_collections : unevenness of the generator's weights in the comparison of clusters with
        chunks, and how many of the collections it is repeated over
    k : results per query
    model : the generator's knobs
    vectors : folder of the reader's own vectors, in place of the generator
    sabotaged : summaries handed to the wrong blocks (the negative control)
    """

    scale: str
    seed: int = 0
    threads: int = 2
    vectors: str | None = None
    n_documents: int = 20_000
    n_tuning: int = 500
    n_queries: int = 500
    n_timed: int = 250
    collections: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    sizes: tuple[int, ...] = (5_000, 10_000, 20_000, 50_000, 100_000, 200_000)
    share_sizes: tuple[int, ...] = (5_000, 10_000, 20_000, 50_000)
    processes: int = 5
    in_process: int = 5
    repeats: int = 15
    methods: tuple[str, ...] | None = FRONT
    recipes: tuple[Recipe, ...] = (
        Recipe(350, 0.1, 0.4),
        Recipe(350, 0.2, 0.5),
        Recipe(350, 0.05, 0.4),
        Recipe(200, 0.1, 0.4),
        Recipe(350, 0.1, 0.3),
    )
    query_cuts: tuple[int, ...] = (3, 4, 5, 6, 8, 10, 15)
    heap_factors: tuple[float, ...] = (0.7, 0.8, 0.9, 1.0)
    targets: tuple[float, ...] = (0.95, 0.97, 0.99)
    near_exact: Recipe = Recipe(350, 0.2, 0.5)
    spreads: tuple[float, ...] = (0.3, 0.5, 0.75, 1.0, 1.5)
    spread_collections: int = 3
    k: int = 10
    model: TopicModel = field(default_factory=TopicModel)
    sabotaged: bool = False
    _loaded: dict[str, SparseCollection] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def at(
        cls,
        scale: str,
        seed: int = 0,
        threads: int | None = None,
        vectors: str | None = None,
        **knobs: Any,
    ) -> "Config":
        """The run of a scale; `knobs` override single fields.

        Raises
        ------
        ValueError
            For an unknown scale, or scale "paper" without vectors.
        """
        if scale not in SCALES:
            raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
        if scale == "paper" and vectors is None:
            raise ValueError(
                "scale 'paper' needs vectors: a folder with the paper's embeddings (see the chapter)"
            )
        given = {"seed": seed, "threads": threads or 2, "vectors": vectors}
        return cls(scale=scale, **(given | dict(_PRESETS[scale]) | knobs))

    def collection(self, n: int | None = None, seed: int | None = None) -> SparseCollection:
        """Documents and `n_tuning + n_queries` queries: drawn, or the reader's own (then cut to `n`)."""
        n = self.n_documents if n is None else n
        wanted = self.n_tuning + self.n_queries
        if self.vectors is None:
            return topic_vectors(n, wanted, self.seed if seed is None else seed, self.model)
        own = self._loaded.get(self.vectors) or read_vectors(self.vectors)
        self._loaded[self.vectors] = own
        return own.first(min(n, own.size)).with_queries(wanted, self.seed if seed is None else seed)

    @property
    def settings(self) -> list[dict[str, Any]]:
        """The grid of search settings."""
        return [{"query_cut": c, "heap_factor": h} for c in self.query_cuts for h in self.heap_factors]

    def record(self) -> dict[str, Any]:
        """What a recorded table keeps of the configuration."""
        from dataclasses import asdict

        plain = asdict(self)
        del plain["_loaded"], plain["threads"]
        return plain


def config(scale: str = "book") -> Config:
    """The configuration of a scale with everything at its default."""
    return Config.at(scale)


_SMALL = TopicModel(
    vocabulary=600,
    topics=40,
    topic_size=30,
    document_coordinates=15,
    document_background=40,
    query_coordinates=6,
    query_background=5,
)

_PRESETS: dict[str, Mapping[str, Any]] = {
    "smoke": {
        "n_documents": 700,
        "n_tuning": 40,
        "n_queries": 40,
        "collections": (1, 2),
        "in_process": 2,
        "methods": ("seismic", "pyseismic", "term_at_a_time", "maxscore", "impact", "pyseismic_scan"),
        "sizes": (300, 700),
        "share_sizes": (300, 700),
        "processes": 0,
        "repeats": 2,
        "recipes": (Recipe(80, 0.1, 0.4),),
        "query_cuts": (3, 5, 8),
        "heap_factors": (0.8, 0.9, 1.0),
        "targets": (0.9, 0.95),
        "near_exact": Recipe(80, 0.2, 0.5),
        "spreads": (0.3, 1.5),
        "spread_collections": 1,
        "model": _SMALL,
    },
    "book": {"n_queries": 300},
    "full": {},
    # The paper's own parameters (MS MARCO) and its settings; one size, the collection's.
    "paper": {
        "n_documents": 10**9,
        "sizes": (10**6, 10**9),
        "share_sizes": (10**6, 10**9),
        "collections": (1, 2, 3, 4, 5, 6, 7, 8),
        "recipes": (Recipe(4_000, 0.1, 0.4, 1.5), Recipe(3_500, 0.15, 0.5, 1.5)),
        "query_cuts": (3, 4, 5, 6, 8, 10),
        "near_exact": Recipe(3_000, 0.2, 0.5, 6.0),
    },
}
