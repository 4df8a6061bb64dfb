"""What the products mean, in plain PyTorch, for any float type; memory is non-zeros x columns."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def rows_of(offsets: Int[Tensor, " rows_and_one"]) -> Int[Tensor, " n"]:
    """The row (of blocks) that each entry of the lists belongs to."""
    counts = offsets.diff().long()
    return torch.repeat_interleave(torch.arange(len(counts), device=offsets.device), counts)


def spmm_reference(
    values: Float[Tensor, "n *block"],
    columns: Int[Tensor, " n"],
    offsets: Int[Tensor, " rows_and_one"],
    x: Float[Tensor, "columns batch"],
    bias: Float[Tensor, " rows"] | None = None,
    low: float = -torch.inf,
    high: float = torch.inf,
) -> Float[Tensor, "rows batch"]:
    """clamp(A @ x + bias) for the matrix A that the lists describe; see `spmm_csr`."""
    blocks = values if values.ndim == 2 else values[:, None]
    terms = blocks[:, :, None] * x[columns.long()][:, None]
    y = x.new_zeros((len(offsets) - 1, blocks.shape[1], x.shape[1])).index_add(0, rows_of(offsets), terms)
    y = y.flatten(0, 1)
    return (y if bias is None else y + bias[:, None]).clamp(low, high)


def spmm_t_reference(
    values: Float[Tensor, "n *block"],
    columns: Int[Tensor, " n"],
    offsets: Int[Tensor, " rows_and_one"],
    y: Float[Tensor, "rows batch"],
    n_columns: int,
) -> Float[Tensor, "columns batch"]:
    """A.T @ y for the same matrix."""
    blocks = values if values.ndim == 2 else values[:, None]
    rows = y.reshape(len(offsets) - 1, blocks.shape[1], y.shape[1])
    terms = (blocks[:, :, None] * rows[rows_of(offsets)]).sum(1)
    return y.new_zeros((n_columns, y.shape[1])).index_add(0, columns.long(), terms)


def sddmm_reference(
    columns: Int[Tensor, " n"],
    offsets: Int[Tensor, " rows_and_one"],
    y: Float[Tensor, "rows batch"],
    x: Float[Tensor, "columns batch"],
    block: int = 1,
) -> Float[Tensor, "n *block"]:
    """The entries of y @ x.T that the lists name; [n] for single entries, [n, block] for blocks of rows."""
    rows = y.reshape(len(offsets) - 1, block, x.shape[1])
    found = (rows[rows_of(offsets)] * x[columns.long()][:, None]).sum(-1)
    return found if block > 1 else found[:, 0]
