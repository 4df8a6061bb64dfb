"""What the three selections mean: a stable sort, in plain PyTorch, for any float type and device."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

Entries = tuple[Tensor, Tensor, Tensor, Tensor]


def row_topk_reference(
    x: Float[Tensor, "rows columns"], k: int, ordered: bool = True
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """The k largest of each row and their columns: by value (of equals the lowest column) or by column."""
    indices = x.argsort(dim=1, descending=True, stable=True)[:, :k].contiguous()
    if not ordered:
        indices = indices.sort(1).values
    return x.gather(1, indices), indices


def column_topm_reference(x: Float[Tensor, "rows columns"], m: Int[Tensor, " columns"]) -> Entries:
    """The m[j] largest of each column j: values, rows, columns by row, and each row's first entry."""
    order = x.argsort(dim=0, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank.scatter_(0, order, torch.arange(x.shape[0], device=x.device)[:, None].expand_as(order).contiguous())
    return _entries(x, rank < m)


def global_topm_reference(x: Float[Tensor, "rows columns"], m: int) -> Entries:
    """The m largest of the matrix, of equals the first: values, rows, columns by row, and offsets."""
    chosen = x.flatten().argsort(descending=True, stable=True)[:m]
    mask = torch.zeros(x.numel(), dtype=torch.bool, device=x.device)
    mask[chosen] = True
    return _entries(x, mask.view(x.shape))


def _entries(x: Tensor, mask: Tensor) -> Entries:
    rows, columns = (part.clone() for part in mask.nonzero(as_tuple=True))
    offsets = torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0))
    return x[rows, columns], rows, columns, offsets
