"""Metrics that several parts share; what torchmetrics or ir-measures already offer is used from there."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

PADDING = -1


def overlap_at_k(
    found_ids: Int[Tensor, "queries k"], exact_ids: Int[Tensor, "queries k"]
) -> Float[Tensor, "queries"]:
    """Agreement with exact search: the share of each query's exact top k that was found.

    ``|found ∩ exact| / |exact|`` per query, in float32 on the device of the ids. The order within the top
    k does not count; an id that was found twice counts once. Where several documents tie at the k-th
    place, the exact search's own choice among them is what has to be found.

    Parameters
    ----------
    found_ids, exact_ids : tensor [queries, k]
        Ids of documents, padded with -1 where fewer than k were found or exist. A query without any exact
        result has nothing to miss and gets 1.

    Raises
    ------
    ValueError
        For other shapes, ids that are no integers, ids below -1, or exact ids that name a document twice.
    """
    for name, ids in (("found_ids", found_ids), ("exact_ids", exact_ids)):
        _check_ids(name, ids)
    if found_ids.shape != exact_ids.shape:
        raise ValueError(
            f"found_ids {tuple(found_ids.shape)} and exact_ids {tuple(exact_ids.shape)} differ in shape"
        )
    found, exact = found_ids.long().sort(dim=1).values, exact_ids.long().sort(dim=1).values
    wanted = exact != PADDING
    if bool(((exact[:, 1:] == exact[:, :-1]) & wanted[:, 1:]).any()):
        raise ValueError("exact_ids: a query names the same document twice")
    # Both are sorted, so the only place where an exact id can stand among the found ones is searched for.
    place = torch.searchsorted(found, exact).clamp(max=found.shape[1] - 1)
    hits = (found.gather(1, place) == exact) & wanted
    size = wanted.sum(dim=1)
    return torch.where(size == 0, 1.0, hits.sum(dim=1) / size.clamp(min=1))


def _check_ids(name: str, ids: Tensor) -> None:
    if ids.ndim != 2 or ids.shape[1] == 0:
        raise ValueError(f"{name}: expected shape [queries, k] with k >= 1, got {tuple(ids.shape)}")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"{name}: expected integers, got {ids.dtype}")
    if bool((ids < PADDING).any()):
        raise ValueError(f"{name}: expected ids >= 0 or the padding -1, got {int(ids.min())}")
