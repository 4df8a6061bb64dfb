"""Depthwise convolution: a small kernel of its own for every channel, of images stored channel by channel.

    y = depthwise_conv2d(x, weight, bias, stride=2, padding=1, low=0.0, high=6.0)
    y = average_pool2d(x, 3, stride=2)

Between two products of sparse weights (`sparsebook.kernels.sparse_matmul`) images lie channel by channel,
each a plane of neighbouring pixels. This is the convolution of MobileNets for that layout; bias and clamp are
part of it. Planes may lie anywhere: ``[channels, batch, ...]`` seen as ``[batch, channels, ...]`` is not
copied, and the result lies as the input does.

float32 and bfloat16 run compiled on a CPU (bfloat16 is stored, sums are float32) and as Triton on a GPU;
float64 takes the reference. What lies outside an image counts as zeros, as in PyTorch.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sparsebook.kernels.depthwise import operators  # noqa: F401 (registers the operator)
from sparsebook.kernels.depthwise.cpu import depthwise_cpu
from sparsebook.kernels.depthwise.reference import depthwise_reference

__all__ = ["average_pool2d", "depthwise_conv2d", "depthwise_reference"]

_TYPES = (torch.float32, torch.bfloat16, torch.float64)
_WITH_NUMBERS = (Tensor, torch.nn.Parameter)
Padding = int | Sequence[int]


def depthwise_conv2d(
    x: Float[Tensor, "batch channels height width"],
    weight: Float[Tensor, "channels *one rows columns"],
    bias: Float[Tensor, " channels"] | None = None,
    *,
    stride: int = 1,
    padding: Padding = 0,
    low: float | int = -torch.inf,
    high: float | int = torch.inf,
) -> Float[Tensor, "batch channels new_height new_width"]:
    """clamp(x * weight + bias, low, high), one kernel a channel.

    Parameters
    ----------
    x : float [batch, channels, height, width]
        Each plane contiguous, or it is copied.
    weight : float [channels, rows, columns] or [channels, 1, rows, columns]
        In the type of x. Not flipped, as in `torch.nn.functional.conv2d`.
    bias : float [channels], optional
    stride : int
    padding : int, (rows, columns) or (left, right, top, bottom)
        Zeros around an image; four numbers as in `torch.nn.functional.pad`, which TensorFlow's "same" needs.
    low, high : float
        Bounds of the result; a result at a bound passes no gradient. NaN passes them.

    Raises
    ------
    ValueError
        If shapes, types or devices do not fit together, a stride below 1, a padding below 0, or an image that
        is smaller than the kernel.

    Notes
    -----
    The operator is ``sparsebook::depthwise``.
    """
    if x.ndim != 4 or x.dtype not in _TYPES:
        raise ValueError(
            "x must be float32, bfloat16 or float64 of shape (batch, channels, height, width), "
            f"got {x.dtype} of shape {tuple(x.shape)}"
        )
    if weight.ndim == 4 and weight.shape[1] == 1:
        weight = weight[:, 0]
    if weight.ndim != 3 or weight.shape[0] != x.shape[1] or not weight.shape[1:].numel():
        raise ValueError(
            f"weight must have shape ({x.shape[1]}, rows, columns), the channels of x, "
            f"got {tuple(weight.shape)}"
        )
    if weight.dtype != x.dtype or weight.device != x.device:
        raise ValueError(
            f"weight must be {x.dtype} on {x.device} like x, got {weight.dtype} on {weight.device}"
        )
    if bias is not None and (
        bias.shape != x.shape[1:2] or not bias.is_floating_point() or bias.device != x.device
    ):
        raise ValueError(
            f"bias must be float of shape ({x.shape[1]},) on {x.device}, got {bias.dtype} of shape "
            f"{tuple(bias.shape)} on {bias.device}"
        )
    if not low <= high:
        raise ValueError(f"low must not be above high, got {low} and {high}")
    sides = _checked_sides(x, weight, stride, padding)
    weight = weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    if _plain(x, weight, bias):
        return depthwise_cpu(x, weight, bias, stride, sides, low, high)
    return torch.ops.sparsebook.depthwise(x, weight, bias, stride, sides, low, high)


def average_pool2d(
    x: Float[Tensor, "batch channels height width"],
    size: int,
    *,
    stride: int | None = None,
    padding: Padding = 0,
) -> Float[Tensor, "batch channels new_height new_width"]:
    """Means of squares of `size` pixels a side, zeros of the padding included, as `torch`'s by default.

    `stride` is `size` if None; the other parameters, and errors, are those of `depthwise_conv2d`.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    weight = x.new_full((x.shape[1], size, size), 1 / size**2)
    return depthwise_conv2d(x, weight, stride=stride or size, padding=padding)


def _checked_sides(x: Tensor, weight: Tensor, stride: int, padding: Padding) -> list[int]:
    """Padding at the left, right, top and bottom."""
    given = [padding] * 2 if isinstance(padding, int) else list(padding)
    sides = [given[1], given[1], given[0], given[0]] if len(given) == 2 else given
    if len(sides) != 4 or any(side < 0 for side in sides):
        raise ValueError(f"padding must be one, two or four numbers of at least 0, got {padding}")
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")
    height, width = x.shape[2] + sides[2] + sides[3], x.shape[3] + sides[0] + sides[1]
    if height < weight.shape[1] or width < weight.shape[2]:
        raise ValueError(
            f"weight of {weight.shape[1]} x {weight.shape[2]} is larger than the padded image, "
            f"{height} x {width}"
        )
    return sides


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the compiled code may be called at once, past PyTorch's dispatcher."""
    if x.device.type != "cpu" or x.dtype == torch.float64 or torch.compiler.is_compiling():
        return False
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    return all(type(tensor) in _WITH_NUMBERS for tensor in tensors)
