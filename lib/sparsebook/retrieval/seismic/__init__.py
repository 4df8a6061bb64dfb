"""Seismic: approximate maximum inner product search over learned sparse vectors.

Bruch, Nardini, Rulli and Venturini, *Efficient Inverted Indexes for Approximate Retrieval over Learned
Sparse Representations*, SIGIR 2024. The method stands in :mod:`.method` in plain NumPy, beside the paper's
equations; :mod:`.construction` and :mod:`.scan` are the same method compiled, tested against it.

>>> index = SeismicIndex.build(documents, n_postings=350)                               # doctest: +SKIP
>>> ids, scores = index.batch_search(queries, k=10, query_cut=5, heap_factor=0.9)       # doctest: +SKIP
"""

from sparsebook.retrieval.seismic.index import SeismicIndex
from sparsebook.retrieval.seismic.method import (
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

__all__ = [
    "SeismicIndex",
    "alpha_mass",
    "block_summary",
    "dequantize_u8",
    "fixed_blocks",
    "fixed_prune",
    "global_threshold_prune",
    "quantize_u8",
    "reference_search",
    "shallow_kmeans",
]
