"""Exact search as one sparse-by-dense product per chunk of queries: ground truth for large batches on a GPU.

Plain PyTorch, so the tests run the same lines on a CPU. Every score of a chunk is formed, which is far more
arithmetic than a search needs and far more than a GPU minds.
"""

import torch
from torch import Tensor

from sparsebook.kernels.inverted_index.reference import best_positive

_SCORES = 64 * 1024 * 1024
"""Scores held at a time (0.25 GB as float32; the integer keys of `best_positive` take twice that)."""


def exact_topk_product(
    segments: Tensor,
    local: Tensor,
    values: Tensor,
    n_documents: int,
    range_size: int,
    query_starts: Tensor,
    query_terms: Tensor,
    query_weights: Tensor,
    k: int,
) -> tuple[Tensor, Tensor]:
    """Arguments as the operator `sparsebook::inverted_index_exact` takes them; see `InvertedIndex`."""
    n_terms = segments.shape[0]
    documents = _documents_by_row(segments, local, values, n_documents, range_size)
    n_queries = query_starts.numel() - 1
    chunk = max(1, _SCORES // max(n_documents, 1))
    ids = torch.full((n_queries, k), -1, dtype=torch.int64, device=values.device)
    scores = torch.full((n_queries, k), -torch.inf, dtype=torch.float32, device=values.device)
    for start in range(0, n_queries, chunk):
        stop = min(n_queries, start + chunk)
        low, high = int(query_starts[start]), int(query_starts[stop])
        counts = query_starts[start + 1 : stop + 1] - query_starts[start:stop]
        dense = torch.zeros((n_terms, stop - start), device=values.device)
        column = torch.repeat_interleave(torch.arange(stop - start, device=values.device), counts)
        dense.index_put_((query_terms[low:high], column), query_weights[low:high], accumulate=True)
        ids[start:stop], scores[start:stop] = best_positive((documents @ dense).T, k)
    return ids, scores


def _documents_by_row(
    segments: Tensor, local: Tensor, values: Tensor, n_documents: int, range_size: int
) -> Tensor:
    """The collection as sparse_csr [documents, terms], from postings grouped by term and range."""
    n_terms, n_ranges = segments.shape[0], segments.shape[1] - 1
    counts = (segments[:, 1:] - segments[:, :-1]).flatten()
    cell = torch.repeat_interleave(torch.arange(n_terms * n_ranges, device=values.device), counts)
    document = (cell % max(n_ranges, 1)) * range_size + local.long()
    term = cell // max(n_ranges, 1)
    order = torch.argsort(document, stable=True)
    crow = torch.zeros(n_documents + 1, dtype=torch.int64, device=values.device)
    crow[1:] = torch.cumsum(torch.bincount(document, minlength=n_documents), 0)
    return torch.sparse_csr_tensor(
        crow, term[order], values[order], size=(n_documents, n_terms), check_invariants=False
    )
