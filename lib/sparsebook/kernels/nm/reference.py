"""What N:M matrices mean, in plain PyTorch, for any float type."""

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from sparsebook.kernels.sparse_matmul.registers import position_bits


def pack_positions(positions: Int[Tensor, "groups n"], m: int) -> UInt8[Tensor, " bytes"]:
    """Positions below m, one behind the other, in as many bits as `position_bits` says."""
    bits = position_bits(m)
    flat, per_byte = positions.flatten(), 8 // bits
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % per_byte)).reshape(-1, per_byte)
    shifts = torch.arange(per_byte, device=flat.device) * bits
    return (padded << shifts).sum(1).to(torch.uint8)


def unpack_columns(
    positions: UInt8[Tensor, " bytes"], shape: tuple[int, ...] | torch.Size, n: int, m: int
) -> Int[Tensor, "rows kept"]:
    """The column of every value.

    Raises
    ------
    ValueError
        If a position lies outside its group.
    """
    rows, kept = shape
    bits = position_bits(m)
    shifts = torch.arange(0, 8, bits, device=positions.device)
    inside = ((positions.long()[:, None] >> shifts) & (2**bits - 1)).flatten()[: rows * kept]
    if 2**bits > m and bool((inside >= m).any()):
        raise ValueError(f"positions of weights must lie in [0, {m}), got {int(inside.max())}")
    groups = torch.arange(kept, device=positions.device) // n * m
    return inside.reshape(rows, kept) + groups


def nm_matmul_reference(
    values: Float[Tensor, "rows kept"], positions: UInt8[Tensor, " bytes"], x: Float[Tensor, "columns batch"],
    n: int, m: int,
) -> Float[Tensor, "rows batch"]:  # fmt: skip
    """The dense product of the matrix that values and positions describe."""
    return dense(values, positions, x.shape[0], n, m) @ x


def nm_matmul_t_reference(
    values: Float[Tensor, "rows kept"], positions: UInt8[Tensor, " bytes"], y: Float[Tensor, "rows batch"],
    n: int, m: int,
) -> Float[Tensor, "columns batch"]:  # fmt: skip
    """Its transpose's."""
    return dense(values, positions, values.shape[1] // n * m, n, m).T @ y


def nm_sddmm_reference(
    positions: UInt8[Tensor, " bytes"], y: Float[Tensor, "rows batch"], x: Float[Tensor, "columns batch"],
    n: int, m: int,
) -> Float[Tensor, "rows kept"]:  # fmt: skip
    """y @ x.T where values are kept."""
    columns = unpack_columns(positions, (y.shape[0], x.shape[0] // m * n), n, m)
    return (y @ x.T).gather(1, columns)


def dense(
    values: Float[Tensor, "rows kept"], positions: UInt8[Tensor, " bytes"], columns: int, n: int, m: int
) -> Float[Tensor, "rows columns"]:
    """The matrix with its zeros."""
    at = unpack_columns(positions, values.shape, n, m)
    return values.new_zeros((values.shape[0], columns)).scatter(1, at, values)
