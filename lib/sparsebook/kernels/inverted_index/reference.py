"""What the searches mean, in plain PyTorch: every score is computed and the best k positive ones are kept."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def exact_topk_reference(
    documents: Float[Tensor, "documents vocabulary"], queries: Float[Tensor, "queries vocabulary"], k: int
) -> tuple[Int[Tensor, "queries k"], Float[Tensor, "queries k"]]:
    """Brute force: `queries @ documents.T`, then `best_positive`.

    Parameters
    ----------
    documents, queries : dense or sparse_csr, non-negative
    k : int

    Returns
    -------
    ids : int64 [queries, k], padded with -1
    scores : float32 [queries, k], padded with -inf
    """
    dense = queries.to_dense().float()
    scores = (documents.float() @ dense.T.contiguous()).T
    return best_positive(scores, k)


def best_positive(
    scores: Float[Tensor, "queries documents"], k: int
) -> tuple[Int[Tensor, "queries k"], Float[Tensor, "queries k"]]:
    """The k largest positive scores of every row, best first, ties by ascending document.

    The bits of a positive float32 order like the integers they spell, so (bits, documents - id) packed in an
    int64 is a key without ties, and `topk` on it is deterministic on every device.
    """
    n_queries, n = scores.shape
    bits = scores.float().contiguous().view(torch.int32).long()
    rank = torch.arange(n, 0, -1, device=scores.device)
    keys = torch.where(scores > 0, (bits << 32) | rank, 0)
    best = keys.topk(min(k, n), dim=1).values
    found = best > 0
    ids = torch.where(found, n - (best & 0xFFFFFFFF), -1)
    values = (best >> 32).int().view(torch.float32)
    values = torch.where(found, values, -torch.inf)
    missing = k - best.shape[1]
    if missing:
        ids = torch.cat([ids, ids.new_full((n_queries, missing), -1)], 1)
        values = torch.cat([values, values.new_full((n_queries, missing), -torch.inf)], 1)
    return ids, values
