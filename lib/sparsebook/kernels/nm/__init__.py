"""N:M sparsity: of every m neighbours in a row at most n are not zero; packed, and times a dense matrix.

    packed = pack(weights, 2, 4)            # values, and two bits for where each of them stands
    y = nm_matmul(packed, x)                # weights @ x
    packed.to_dense(), packed.mask(), packed.n_bytes

What is kept is n values for each group of m, zeros among them where a group has fewer, and each value's
position in its group in 1, 2, 4 or 8 bits: 2:4 in float32 takes 68 bits for every 128. Operands lie
``[features, batch]`` as in `kernels.sparse_matmul`, whose inner loops these products use with another index.

float32 and bfloat16 run compiled on a CPU and as Triton on a GPU; float64 takes the reference.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from sparsebook.kernels.nm import operators  # noqa: F401 (registers the operators)
from sparsebook.kernels.nm.reference import nm_matmul_reference, pack_positions, unpack_columns
from sparsebook.kernels.sparse_matmul.registers import position_bits

__all__ = ["NMMatrix", "nm_matmul", "nm_matmul_reference", "pack"]

MOST = 256
"""The largest m: a position fits into a byte."""
_TYPES = (torch.float32, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class NMMatrix:
    """A matrix with n values in every m neighbours of a row; make it with `pack`.

    Attributes
    ----------
    values : float [rows, columns / m * n]
        May require gradients.
    positions : uint8 [ceil(numbers * bits / 8)]
        Of the values in their groups, ascending within each, the first in the lowest bits of the first byte.
    n, m : int
    """

    values: Float[Tensor, "rows kept"]
    positions: UInt8[Tensor, " bytes"]
    n: int
    m: int

    def __post_init__(self) -> None:
        check_pattern(self.n, self.m)
        if self.values.ndim != 2 or self.values.shape[1] % self.n or self.values.dtype not in _TYPES:
            raise ValueError(
                f"values must be float32, bfloat16 or float64 of shape (rows, groups * {self.n}), "
                f"got {self.values.dtype} of shape {tuple(self.values.shape)}"
            )
        size = -(-self.values.numel() * position_bits(self.m) // 8)
        if self.positions.dtype != torch.uint8 or self.positions.shape != (size,):
            raise ValueError(
                f"positions must be uint8 of shape ({size},), "
                f"got {self.positions.dtype} of shape {tuple(self.positions.shape)}"
            )
        if self.positions.device != self.values.device:
            raise ValueError(f"positions must be on {self.values.device}, got {self.positions.device}")

    @property
    def shape(self) -> tuple[int, int]:
        """Of the dense matrix."""
        return self.values.shape[0], self.values.shape[1] // self.n * self.m

    @property
    def n_bytes(self) -> int:
        """Bytes of values and positions."""
        return self.values.numel() * self.values.element_size() + self.positions.numel()

    def to_dense(self) -> Float[Tensor, "rows columns"]:
        """The matrix with its zeros; gradients reach the values."""
        columns = self._columns()
        return self.values.new_zeros(self.shape).scatter(1, columns, self.values)

    def mask(self) -> Bool[Tensor, "rows columns"]:
        """True where a value is kept, also where it is zero."""
        kept = torch.zeros(self.shape, dtype=torch.bool, device=self.values.device)
        return kept.scatter(1, self._columns(), True)

    def _columns(self) -> Tensor:
        return unpack_columns(self.positions, self.values.shape, self.n, self.m)


def pack(
    weights: Float[Tensor, "rows columns"], n: int, m: int, mask: Bool[Tensor, "rows columns"] | None = None
) -> NMMatrix:
    """Keep n of every m neighbours in a row.

    Parameters
    ----------
    weights : float32, bfloat16 or float64 [rows, columns]
        Columns in a multiple of m.
    n, m : int
        1 <= n <= m <= 256, m at least 2.
    mask : bool [rows, columns], optional
        What to keep, at most n in a group. None keeps what is not zero.

    Returns
    -------
    NMMatrix
        A group that keeps fewer than n is filled with zeros at its first free positions. Gradients reach the
        weights.

    Raises
    ------
    ValueError
        If a group keeps more than n, or shapes, types or n and m do not fit.
    """
    check_pattern(n, m)
    if weights.ndim != 2 or weights.dtype not in _TYPES or weights.shape[1] % m:
        raise ValueError(
            f"weights must be float32, bfloat16 or float64 of shape (rows, a multiple of {m}), "
            f"got {weights.dtype} of shape {tuple(weights.shape)}"
        )
    kept = weights.detach() != 0 if mask is None else mask
    if kept.dtype != torch.bool or kept.shape != weights.shape or kept.device != weights.device:
        raise ValueError(
            f"mask must be bool of shape {tuple(weights.shape)} on {weights.device}, "
            f"got {kept.dtype} of shape {tuple(kept.shape)} on {kept.device}"
        )
    groups = kept.reshape(-1, m)
    if groups.shape[0] and int(most := groups.sum(1).max()) > n:
        raise ValueError(f"weights must keep at most {n} of every {m} neighbours in a row, got {int(most)}")
    first = (~groups).to(torch.uint8).argsort(dim=1, stable=True)[:, :n].sort(dim=1).values
    places = first + torch.arange(groups.shape[0], device=weights.device)[:, None] * m
    # Masked before they are taken: what fills a group gets no gradient.
    values = torch.where(kept, weights, 0).flatten()[places]
    values = values.reshape(weights.shape[0], weights.shape[1] // m * n)
    return NMMatrix(values, pack_positions(first, m), n, m)


def nm_matmul(
    weights: NMMatrix, x: Float[Tensor, "columns batch"], bias: Float[Tensor, " rows"] | None = None
) -> Float[Tensor, "rows batch"]:
    """weights @ x + bias.

    Parameters
    ----------
    weights : NMMatrix [rows, columns]
    x : float [columns, batch]
        In the type of the weights.
    bias : float [rows], optional

    Returns
    -------
    float [rows, batch]
        In the type of x. Gradients reach x, bias, and the values of the weights.

    Raises
    ------
    ValueError
        If types, shapes or devices do not fit, or a position lies outside its group.

    Notes
    -----
    The operator is ``sparsebook::nm_matmul``.
    """
    rows, columns = weights.shape
    if x.ndim != 2 or x.shape[0] != columns:
        raise ValueError(f"x must have shape ({columns}, batch), got {tuple(x.shape)}")
    if x.dtype != weights.values.dtype or x.device != weights.values.device:
        raise ValueError(
            f"x must be {weights.values.dtype} on {weights.values.device} like the weights, "
            f"got {x.dtype} on {x.device}"
        )
    if bias is not None and (
        bias.shape != (rows,) or not bias.is_floating_point() or bias.device != x.device
    ):
        raise ValueError(
            f"bias must be float of shape ({rows},) on {x.device}, "
            f"got {bias.dtype} of shape {tuple(bias.shape)} on {bias.device}"
        )
    values, positions = weights.values.contiguous(), weights.positions.contiguous()
    y = torch.ops.sparsebook.nm_matmul(values, positions, x.contiguous(), weights.n, weights.m)
    return y if bias is None else y + bias[:, None].to(y.dtype)


def check_pattern(n: int, m: int) -> None:
    """Raise ValueError where n of m is no pattern."""
    if not 1 <= n <= m or not 2 <= m <= MOST:
        raise ValueError(f"n and m must satisfy 1 <= n <= m and 2 <= m <= {MOST}, got {n} and {m}")
