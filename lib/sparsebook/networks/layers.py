"""Layers that store only the weights that are not zero: less memory, less work, trainable.

>>> import torch
>>> dense = torch.nn.Linear(300, 200)
>>> mask = random_mask((200, 300), 0.1, generator=torch.Generator().manual_seed(0))
>>> layer = SparseLinear.from_dense(dense, mask)
>>> layer.values.shape, layer(torch.ones(8, 300)).shape
(torch.Size([6000]), torch.Size([8, 200]))

Where the weights are does not change by training; an optimiser sees one vector of values. A `state_dict`
holds values, places and bias, and loads into a layer with another number of them.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import unfold

from sparsebook.kernels.sparse_matmul import spmm_csr
from sparsebook.networks.masks import random_mask

__all__ = ["SparseConv2d", "SparseLinear", "random_mask", "sparse_lists"]

_INF = float("inf")


def sparse_lists(
    weight: Float[Tensor, "rows columns"], mask: Bool[Tensor, "rows columns"] | None = None, block: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Values, columns and offsets of a matrix, as `spmm_csr` takes them.

    Parameters
    ----------
    weight : float [rows, columns]
    mask : bool [rows, columns], optional
        What is kept, zeros among it too; what is not zero if None.
    block : 1, 2 or 4
        So many neighbouring rows share their columns; where one of them has a weight, all are stored.

    Returns
    -------
    values [n] or [n, block], columns int32 [n], offsets int32 [rows / block + 1]

    Raises
    ------
    ValueError
        A mask of another shape or type, a block that does not divide the rows, or nothing to keep.
    """
    if weight.ndim != 2:
        raise ValueError(f"weight must have shape (rows, columns), got {tuple(weight.shape)}")
    kept = weight.detach() != 0 if mask is None else mask
    if kept.dtype != torch.bool or kept.shape != weight.shape:
        raise ValueError(
            f"mask must be torch.bool of shape {tuple(weight.shape)}, got {kept.dtype} of {tuple(kept.shape)}"
        )
    if block not in (1, 2, 4) or weight.shape[0] % block:
        raise ValueError(f"block must be 1, 2 or 4 and divide the {weight.shape[0]} rows, got {block}")
    if not bool(kept.any()):
        raise ValueError(f"weight of shape {tuple(weight.shape)} has nothing to keep: expected one weight")
    masked = torch.where(kept, weight.detach(), 0)
    groups, places = masked.unflatten(0, (-1, block)), kept.unflatten(0, (-1, block)).any(1)
    group, column = places.nonzero(as_tuple=True)
    values = groups[group, :, column]
    offsets = torch.zeros(len(places) + 1, dtype=torch.int32, device=weight.device)
    offsets[1:] = places.sum(1).cumsum(0)
    return (values[:, 0] if block == 1 else values).contiguous(), column.int(), offsets


class _SparseWeights(nn.Module):
    """Values, columns and offsets of a matrix [rows, columns], and a bias."""

    values: nn.Parameter
    columns: Tensor
    offsets: Tensor
    bias: nn.Parameter | None

    def __init__(self, rows: int, n_columns: int, lists: tuple[Tensor, ...], bias: Tensor | None) -> None:
        super().__init__()
        self.rows, self.n_columns = rows, n_columns
        self.values = nn.Parameter(lists[0].detach().clone())
        self.register_buffer("columns", lists[1])
        self.register_buffer("offsets", lists[2])
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    @property
    def block(self) -> int:
        """Rows that share their columns."""
        return self.values.shape[1] if self.values.ndim == 2 else 1

    @property
    def density(self) -> float:
        """Share of the matrix that is stored."""
        return self.values.numel() / (self.rows * self.n_columns)

    def matrix(self) -> Float[Tensor, "rows columns"]:
        """The weights as a dense matrix."""
        groups = self.rows // self.block
        group = torch.repeat_interleave(
            torch.arange(groups, device=self.columns.device), self.offsets.diff().long()
        )
        dense = self.values.new_zeros((groups, self.n_columns, self.block))
        dense[group, self.columns.long()] = self.values.detach().reshape(-1, self.block)
        return dense.transpose(1, 2).reshape(self.rows, self.n_columns)

    def product(
        self, x: Float[Tensor, "columns batch"], low: float | int = -_INF, high: float | int = _INF
    ) -> Float[Tensor, "rows batch"]:
        """clamp(weights @ x + bias)."""
        return spmm_csr(
            self.values, self.columns, self.offsets, x, self.bias, low=float(low), high=float(high)
        )

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        # Lists of another length: those of this layer give way, if what comes is complete.
        lists = {name: state_dict.get(prefix + name) for name in ("values", "columns", "offsets")}
        if all(isinstance(value, Tensor) for value in lists.values()):
            values, columns, offsets = (cast(Tensor, value) for value in lists.values())
            block = values.shape[1] if values.ndim == 2 else 1
            if (len(offsets) - 1) * block == self.rows and len(values) == len(columns):
                self.values = nn.Parameter(self.values.new_empty(values.shape))
                self.columns = self.columns.new_empty(columns.shape, dtype=columns.dtype)
                self.offsets = self.offsets.new_empty(offsets.shape, dtype=offsets.dtype)
        super()._load_from_state_dict(cast(dict, state_dict), prefix, *rest)


class SparseLinear(_SparseWeights):
    """A linear layer with sparse weights; make it with `from_dense` or from lists.

    Parameters
    ----------
    in_features, out_features : int
    lists : values, columns and offsets
        See `sparse_lists`.
    bias : float [out_features], optional
    """

    def __init__(
        self, in_features: int, out_features: int, lists: tuple[Tensor, ...], bias: Tensor | None = None
    ) -> None:
        super().__init__(out_features, in_features, lists, bias)
        self.in_features, self.out_features = in_features, out_features

    @classmethod
    def from_dense(cls, layer: nn.Linear, mask: Tensor | None = None, block: int = 1) -> "SparseLinear":
        """The layer with the weights that the mask keeps, or those that are not zero.

        Raises
        ------
        ValueError
            As `sparse_lists`.
        """
        lists = sparse_lists(layer.weight, mask, block)
        return cls(layer.in_features, layer.out_features, lists, layer.bias)

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch new_features"]:
        """x @ weights.T + bias."""
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(f"x must have {self.in_features} features last, got {tuple(x.shape)}")
        return self.product(x.reshape(-1, self.in_features).T).T.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, entries={len(self.values)}, block={self.block}"


class SparseConv2d(_SparseWeights):
    """A convolution with sparse weights, clamp included; make it with `from_dense`.

    Images lie channel by channel. Those of a batch are laid side by side, ``[channels, batch, ...]`` seen as
    ``[batch, channels, ...]``: the first layer copies, the next find what they need.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size, stride, padding, dilation : (rows, columns)
        Larger kernels than 1 x 1 copy what they see of every pixel (`torch.nn.functional.unfold`).
    lists : values, columns and offsets
        Of the weights ``[out_channels, in_channels * rows * columns]``; see `sparse_lists`.
    bias : float [out_channels], optional
    low, high : float
        Bounds of the result, such as 0 and 6 for ReLU6.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        lists: tuple[Tensor, ...],
        bias: Tensor | None = None,
        *,
        kernel_size: tuple[int, int] = (1, 1),
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        low: float | int = -_INF,
        high: float | int = _INF,
    ) -> None:
        super().__init__(out_channels, in_channels * kernel_size[0] * kernel_size[1], lists, bias)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        self.low, self.high = low, high

    @classmethod
    def from_dense(
        cls,
        layer: nn.Conv2d,
        mask: Tensor | None = None,
        block: int = 1,
        *,
        low: float | int = -_INF,
        high: float | int = _INF,
    ) -> "SparseConv2d":
        """The layer with the weights that the mask keeps, or those that are not zero.

        Raises
        ------
        ValueError
            Groups, padding by name or by anything but zeros, or as `sparse_lists`.
        """
        if layer.groups != 1:
            raise ValueError(f"layer must have one group, got {layer.groups}")
        if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
            raise ValueError(
                f"layer must pad with a number of zeros, got {layer.padding!r}, {layer.padding_mode!r}"
            )
        lists = sparse_lists(layer.weight.flatten(1), None if mask is None else mask.flatten(1), block)
        sizes: dict[str, Any] = {
            name: tuple(getattr(layer, name)) for name in ("kernel_size", "stride", "padding", "dilation")
        }
        return cls(layer.in_channels, layer.out_channels, lists, layer.bias, low=low, high=high, **sizes)

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch new_channels new_height new_width"]:
        """clamp(x * weights + bias)."""
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"x must have shape (batch, {self.in_channels}, height, width), got {tuple(x.shape)}"
            )
        batch, sizes = x.shape[0], self._sizes(x)
        if self.kernel_size == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0):
            seen = x.transpose(0, 1).reshape(self.in_channels, -1)
        else:
            seen = unfold(x, self.kernel_size, self.dilation, self.padding, self.stride)
            seen = seen.transpose(0, 1).reshape(self.n_columns, -1)
        y = self.product(seen, self.low, self.high)
        return y.view(self.out_channels, batch, *sizes).transpose(0, 1)

    def _sizes(self, x: Tensor) -> list[int]:
        given = zip(x.shape[2:], self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in given]

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"entries={len(self.values)}, block={self.block}"
        )
