"""Exact searches against each other, one interleaved run: ``python tests/bench/bench_inverted_index.py [N]``.

Prints microseconds per query (batch interface, one thread), the ratio over our term-at-a-time, and the
physical limit: the bytes of the query's postings over the machine's copy bandwidth.
"""

import sys

import numpy as np
import pytest

from sparsebook.data.sparse_vectors import topic_vectors
from sparsebook.evaluation.machine import copy_bandwidth, threads
from sparsebook.evaluation.timing import compare, paired_median_ratio
from sparsebook.experiments.seismic.runs import query_postings
from sparsebook.experiments.seismic.searchers import SEARCHERS, BlockMax, installed
from sparsebook.kernels.inverted_index import InvertedIndex, impact_topk

BYTES_PER_POSTING = 6


def measure(n: int = 20_000, n_queries: int = 200, repeats: int = 7) -> dict[str, tuple[float, float]]:
    """Microseconds per query and ratio over ours for every exact search that is installed."""
    collection = topic_vectors(n, n_queries)
    functions = {}
    for cls in SEARCHERS:
        if not (cls.exact or cls is BlockMax) or not installed(cls) or (cls.name == "scipy" and n > 20_000):
            continue
        engine = cls.build(collection.documents)
        prepared = engine.prepare(collection.queries)
        functions[cls.name] = lambda engine=engine, prepared=prepared: engine.run(prepared, 10)
    index = InvertedIndex.build(collection.documents)
    functions["impact, all postings"] = lambda: impact_topk(index, collection.queries, 10)
    postings = query_postings(index, collection.queries).mean()
    with threads(1):
        seconds = compare(functions, repeats, warmup=2)
        limit = postings * BYTES_PER_POSTING / copy_bandwidth()
    result = {
        name: (np.median(times) / n_queries * 1e6, paired_median_ratio(seconds, name, "term_at_a_time"))
        for name, times in seconds.items()
    }
    result["limit: reading the postings"] = (limit * 1e6, limit * 1e6 / result["term_at_a_time"][0])
    return result


@pytest.mark.bench
def test_exact_search_is_no_slower_than_what_can_be_installed():
    result = measure()
    rivals = [
        ratio
        for name, (_, ratio) in result.items()
        if name in ("splade_index", "pyseismic_scan", "scipy", "bmp")
    ]
    assert min(rivals, default=1.0) > 1 / 1.1


if __name__ == "__main__":
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    print(f"{size:,} documents, k = 10")
    for name, (micro, ratio) in sorted(measure(size).items(), key=lambda item: item[1]):
        print(f"{name:30s} {micro:10.1f} us  {ratio:7.2f}x")
