"""What a depthwise convolution means, by PyTorch's own."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d, pad


def depthwise_reference(
    x: Float[Tensor, "batch channels height width"],
    weight: Float[Tensor, "channels rows columns"],
    bias: Float[Tensor, " channels"] | None = None,
    stride: int = 1,
    sides: Sequence[int] = (0, 0, 0, 0),
    low: float | int = -torch.inf,
    high: float | int = torch.inf,
) -> Float[Tensor, "batch channels new_height new_width"]:
    """As `depthwise_conv2d`; `sides` are the zeros at the left, right, top and bottom."""
    around = pad(x, list(sides))
    bias = None if bias is None else bias.to(x.dtype)
    return conv2d(around, weight[:, None], bias, stride, groups=weight.shape[0]).clamp(low, high)
