"""The operators `sparsebook::spmm`, `::spmm_t` and `::sddmm`, each other's gradients.

Lists come as values, columns and offsets, unchecked: the public functions check them.
"""

from typing import Any

import torch
from torch import Tensor

from sparsebook.kernels.sparse_matmul.cpu import sddmm_cpu, spmm_cpu, spmm_t_cpu
from sparsebook.kernels.sparse_matmul.reference import sddmm_reference, spmm_reference, spmm_t_reference


def _spmm(
    values: Tensor, columns: Tensor, offsets: Tensor, x: Tensor, bias: Tensor | None, low: float, high: float
) -> Tensor:
    if x.dtype == torch.float64:
        return spmm_reference(values, columns, offsets, x, bias, low, high)
    if x.is_cuda:
        from sparsebook.kernels.sparse_matmul.cuda import spmm_cuda

        return spmm_cuda(values, columns, offsets, x, bias, low, high)
    return spmm_cpu(values, columns, offsets, x, bias, low, high)


def _spmm_t(values: Tensor, columns: Tensor, offsets: Tensor, y: Tensor, n_columns: int) -> Tensor:
    if y.dtype == torch.float64:
        return spmm_t_reference(values, columns, offsets, y, n_columns)
    if y.is_cuda:
        from sparsebook.kernels.sparse_matmul.cuda import spmm_t_cuda

        return spmm_t_cuda(values, columns, offsets, y, n_columns)
    return spmm_t_cpu(values, columns, offsets, y, n_columns)


def _sddmm(columns: Tensor, offsets: Tensor, y: Tensor, x: Tensor, block: int) -> Tensor:
    if x.dtype == torch.float64:
        return sddmm_reference(columns, offsets, y, x, block)
    if x.is_cuda:
        from sparsebook.kernels.sparse_matmul.cuda import sddmm_cuda

        return sddmm_cuda(columns, offsets, y, x, block)
    return sddmm_cpu(columns, offsets, y, x, block)


# Shapes without values -----------------------------------------------------------------------------------


def _block(values: Tensor) -> int:
    return values.shape[1] if values.ndim == 2 else 1


def _fake_spmm(
    values: Tensor, columns: Tensor, offsets: Tensor, x: Tensor, bias: Tensor | None, low: float, high: float
) -> Tensor:
    return x.new_empty(((offsets.shape[0] - 1) * _block(values), x.shape[1]))


def _fake_spmm_t(
    values: Tensor, columns: Tensor, offsets: Tensor, y: Tensor, n_columns: int | torch.SymInt
) -> Tensor:
    return y.new_empty((n_columns, y.shape[1]))


def _fake_sddmm(columns: Tensor, offsets: Tensor, y: Tensor, x: Tensor, block: int) -> Tensor:
    return x.new_empty((columns.shape[0], block) if block > 1 else (columns.shape[0],))


# Gradients -----------------------------------------------------------------------------------------------

_ops = torch.ops.sparsebook


def _keep_spmm(ctx: Any, inputs: tuple, output: Tensor) -> None:
    values, columns, offsets, x, bias, low, high = inputs
    clamped = low > -torch.inf or high < torch.inf
    ctx.save_for_backward(values, columns, offsets, x, output if clamped else None)
    ctx.bounds, ctx.has_bias = (low, high), bias is not None


def _spmm_gradient(ctx: Any, grad: Tensor, sddmm: Any = None, spmm_t: Any = None) -> tuple:
    sddmm, spmm_t = sddmm or _ops.sddmm, spmm_t or _ops.spmm_t
    values, columns, offsets, x, output = ctx.saved_tensors
    if output is not None:
        # As `hardtanh`: nothing passes where a bound was reached.
        grad = grad * ((output > ctx.bounds[0]) & (output < ctx.bounds[1]))
    grad, wanted = grad.contiguous(), ctx.needs_input_grad
    return (
        sddmm(columns, offsets, grad, x, _block(values)) if wanted[0] else None, None, None,
        spmm_t(values, columns, offsets, grad, x.shape[0]) if wanted[3] else None,
        grad.sum(1) if ctx.has_bias and wanted[4] else None, None, None,
    )  # fmt: skip


class Spmm(torch.autograd.Function):
    """`sparsebook::spmm` with its gradient on a CPU, past the dispatcher (tens of microseconds)."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, columns: Tensor, offsets: Tensor, x: Tensor, bias: Tensor | None,
        low: float | int, high: float | int,
    ) -> Tensor:  # fmt: skip
        y = spmm_cpu(values, columns, offsets, x, bias, low, high)
        _keep_spmm(ctx, (values, columns, offsets, x, bias, low, high), y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:  # type: ignore[override]
        if torch.is_grad_enabled():  # somebody wants to differentiate the gradient
            return _spmm_gradient(ctx, grad)
        return _spmm_gradient(ctx, grad, sddmm_cpu, spmm_t_cpu)


def _keep_spmm_t(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])


def _spmm_t_gradient(ctx: Any, grad: Tensor) -> tuple:
    values, columns, offsets, y = ctx.saved_tensors
    grad, wanted = grad.contiguous(), ctx.needs_input_grad
    return (
        _ops.sddmm(columns, offsets, y, grad, _block(values)) if wanted[0] else None, None, None,
        _ops.spmm(values, columns, offsets, grad, None, -torch.inf, torch.inf) if wanted[3] else None, None,
    )  # fmt: skip


def _keep_sddmm(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])


def _sddmm_gradient(ctx: Any, grad: Tensor) -> tuple:
    columns, offsets, y, x = ctx.saved_tensors
    grad, wanted = grad.contiguous(), ctx.needs_input_grad
    return (
        None, None,
        _ops.spmm(grad, columns, offsets, x, None, -torch.inf, torch.inf) if wanted[2] else None,
        _ops.spmm_t(grad, columns, offsets, y, x.shape[0]) if wanted[3] else None, None,
    )  # fmt: skip


_LISTS = "Tensor columns, Tensor offsets"

_library = torch.library.Library("sparsebook", "FRAGMENT")
_library.define(f"spmm(Tensor values, {_LISTS}, Tensor x, Tensor? bias, float low, float high) -> Tensor")
_library.define(f"spmm_t(Tensor values, {_LISTS}, Tensor y, SymInt n_columns) -> Tensor")
_library.define(f"sddmm({_LISTS}, Tensor y, Tensor x, int block) -> Tensor")
for _name, _compute, _fake, _gradient, _keep in (
    ("spmm", _spmm, _fake_spmm, _spmm_gradient, _keep_spmm),
    ("spmm_t", _spmm_t, _fake_spmm_t, _spmm_t_gradient, _keep_spmm_t),
    ("sddmm", _sddmm, _fake_sddmm, _sddmm_gradient, _keep_sddmm),
):
    for _device in ("CPU", "CUDA"):
        _library.impl(_name, _compute, _device)
    torch.library.register_fake(f"sparsebook::{_name}", _fake, lib=_library)
    torch.library.register_autograd(f"sparsebook::{_name}", _gradient, setup_context=_keep, lib=_library)
