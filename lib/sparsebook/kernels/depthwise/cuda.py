"""Depthwise convolution on a GPU, in Triton: a program for a slice of one plane's pixels."""

from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsebook.kernels.depthwise.cpu import like

_WIDEST = 512  # pixels that a program computes


@triton.jit
def _kernel(
    Y, X, Weight, Bias, channels, height, width, new_height, new_width, x_batch, x_channel, y_batch,
    y_channel, left, top, low, high, STEP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    BIASED: tl.constexpr, CLAMPED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Pixels of plane `program_id(0)`: the clamped sum over taps of Weight[channel, tap] * X[shifted]."""
    image, channel = tl.program_id(0) // channels, tl.program_id(0) % channels
    pixel = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    inside = pixel < new_height * new_width
    row, column = pixel // new_width * STEP - top, pixel % new_width * STEP - left
    plane = X + image.to(tl.int64) * x_batch + channel.to(tl.int64) * x_channel
    total = tl.zeros([WIDE], tl.float32)
    if BIASED:
        total += tl.load(Bias + channel)
    for tap in range(ROWS * COLUMNS):
        y, x = row + tap // COLUMNS, column + tap % COLUMNS
        there = inside & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        source = tl.load(plane + y * width + x, mask=there, other=0.0)
        total += tl.load(Weight + channel * ROWS * COLUMNS + tap).to(tl.float32) * source.to(tl.float32)
    if CLAMPED:
        total = tl.where(total < low, low, total)
        total = tl.where(total > high, high, total)
    target = Y + image.to(tl.int64) * y_batch + channel.to(tl.int64) * y_channel + pixel
    tl.store(target, total.to(Y.dtype.element_ty), mask=inside)


def depthwise_cuda(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    sides: list[int],
    low: float | int,
    high: float | int,
) -> Tensor:
    """Arguments and result as the operator `sparsebook::depthwise`; float32 or bfloat16."""
    batch, channels, height, width = x.shape
    if x.stride()[2:] != (width, 1):
        x = x.contiguous()
    rows, columns = weight.shape[1:]
    new_height = (height + sides[2] + sides[3] - rows) // stride + 1
    new_width = (width + sides[0] + sides[1] - columns) // stride + 1
    y = like(x, new_height, new_width)
    if y.numel():
        wide = min(_WIDEST, max(16, triton.next_power_of_2(new_height * new_width)))
        with _on(x):
            _kernel[(batch * channels, -(-new_height * new_width // wide))](
                y, x, weight, weight if bias is None else bias.float(), channels, height, width, new_height,
                new_width, x.stride(0), x.stride(1), y.stride(0), y.stride(1), sides[0], sides[2], low, high,
                STEP=stride, ROWS=rows, COLUMNS=columns, BIASED=bias is not None,
                CLAMPED=low > -torch.inf or high < torch.inf, WIDE=wide,
            )  # fmt: skip
    return y


def _on(tensor: Tensor) -> Any:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
