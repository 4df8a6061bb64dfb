"""The operator `sparsebook::depthwise` and its gradients, which PyTorch's own convolution computes.

Arguments come unchecked: the public function checks them.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparsebook.kernels.depthwise.cpu import depthwise_cpu, like
from sparsebook.kernels.depthwise.reference import depthwise_reference


def _depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    sides: list[int],
    low: float | int,
    high: float | int,
) -> Tensor:
    if x.dtype == torch.float64:
        return depthwise_reference(x, weight, bias, stride, sides, low, high)
    if x.is_cuda:
        from sparsebook.kernels.depthwise.cuda import depthwise_cuda

        return depthwise_cuda(x, weight, bias, stride, sides, low, high)
    return depthwise_cpu(x, weight, bias, stride, sides, low, high)


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    sides: list[int],
    low: float | int,
    high: float | int,
) -> Tensor:
    height = (x.shape[2] + sides[2] + sides[3] - weight.shape[1]) // stride + 1
    width = (x.shape[3] + sides[0] + sides[1] - weight.shape[2]) // stride + 1
    return x.new_empty((*x.shape[:2], height, width)) if x.dtype == torch.float64 else like(x, height, width)


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, bias, stride, sides, low, high = inputs
    clamped = low > -torch.inf or high < torch.inf
    ctx.save_for_backward(x, weight, output if clamped else None)
    ctx.stride, ctx.sides, ctx.bounds = stride, sides, (low, high)
    ctx.bias_type = None if bias is None else bias.dtype


def _gradient(ctx: Any, grad: Tensor) -> tuple:
    x, weight, output = ctx.saved_tensors
    if output is not None:
        # As `hardtanh`: nothing passes where a bound was reached.
        grad = grad * ((output > ctx.bounds[0]) & (output < ctx.bounds[1]))
    wanted, (left, right, top, bottom) = ctx.needs_input_grad, ctx.sides
    around = pad(x, ctx.sides)
    to_x, to_weight, _ = torch.ops.aten.convolution_backward(
        grad, around, weight[:, None], None, [ctx.stride] * 2, [0, 0], [1, 1], False, [0, 0], x.shape[1],
        [wanted[0], wanted[1], False],
    )  # fmt: skip
    if to_x is not None:
        to_x = to_x[:, :, top : around.shape[2] - bottom, left : around.shape[3] - right]
    to_bias = grad.sum((0, 2, 3)).to(ctx.bias_type) if ctx.bias_type is not None and wanted[2] else None
    return to_x, None if to_weight is None else to_weight[:, 0], to_bias, None, None, None, None


_library = torch.library.Library("sparsebook", "FRAGMENT")
_library.define(
    "depthwise(Tensor x, Tensor weight, Tensor? bias, int stride, int[] sides, float low, float high)"
    " -> Tensor"
)
for _device in ("CPU", "CUDA"):
    _library.impl("depthwise", _depthwise, _device)
torch.library.register_fake("sparsebook::depthwise", _fake, lib=_library)
torch.library.register_autograd("sparsebook::depthwise", _gradient, setup_context=_keep, lib=_library)
