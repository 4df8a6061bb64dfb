"""The operators `sparsebook::nm_matmul`, `::nm_matmul_t` and `::nm_sddmm`, each other's gradients."""

from typing import Any

import torch
from torch import Tensor

from sparsebook.kernels.nm import cpu, reference

_ops = torch.ops.sparsebook


def _nm_matmul(values: Tensor, positions: Tensor, x: Tensor, n: int, m: int) -> Tensor:
    if x.dtype == torch.float64:
        return reference.nm_matmul_reference(values, positions, x, n, m)
    if x.is_cuda:
        from sparsebook.kernels.nm.cuda import nm_matmul_cuda

        return nm_matmul_cuda(values, positions, x, n, m)
    return cpu.nm_matmul_cpu(values, positions, x, n, m)


def _nm_matmul_t(values: Tensor, positions: Tensor, y: Tensor, n: int, m: int) -> Tensor:
    if y.dtype == torch.float64:
        return reference.nm_matmul_t_reference(values, positions, y, n, m)
    if y.is_cuda:
        from sparsebook.kernels.nm.cuda import nm_matmul_t_cuda

        return nm_matmul_t_cuda(values, positions, y, n, m)
    return cpu.nm_matmul_t_cpu(values, positions, y, n, m)


def _nm_sddmm(positions: Tensor, y: Tensor, x: Tensor, n: int, m: int) -> Tensor:
    if x.dtype == torch.float64:
        return reference.nm_sddmm_reference(positions, y, x, n, m)
    if x.is_cuda:
        from sparsebook.kernels.nm.cuda import nm_sddmm_cuda

        return nm_sddmm_cuda(positions, y, x, n, m)
    return cpu.nm_sddmm_cpu(positions, y, x, n, m)


# Shapes without values -----------------------------------------------------------------------------------


def _fake_nm_matmul(values: Tensor, positions: Tensor, x: Tensor, n: int, m: int) -> Tensor:
    return x.new_empty((values.shape[0], x.shape[1]))


def _fake_nm_matmul_t(values: Tensor, positions: Tensor, y: Tensor, n: int, m: int) -> Tensor:
    return y.new_empty((values.shape[1] // n * m, y.shape[1]))


def _fake_nm_sddmm(positions: Tensor, y: Tensor, x: Tensor, n: int, m: int) -> Tensor:
    return x.new_empty((y.shape[0], x.shape[0] // m * n))


# Gradients -----------------------------------------------------------------------------------------------


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.n, ctx.m = inputs
    ctx.save_for_backward(*tensors)


def _nm_matmul_gradient(ctx: Any, grad: Tensor) -> tuple:
    values, positions, x = ctx.saved_tensors
    grad, wanted, pattern = grad.contiguous(), ctx.needs_input_grad, (ctx.n, ctx.m)
    return (
        _ops.nm_sddmm(positions, grad, x, *pattern) if wanted[0] else None, None,
        _ops.nm_matmul_t(values, positions, grad, *pattern) if wanted[2] else None, None, None,
    )  # fmt: skip


def _nm_matmul_t_gradient(ctx: Any, grad: Tensor) -> tuple:
    values, positions, y = ctx.saved_tensors
    grad, wanted, pattern = grad.contiguous(), ctx.needs_input_grad, (ctx.n, ctx.m)
    return (
        _ops.nm_sddmm(positions, y, grad, *pattern) if wanted[0] else None, None,
        _ops.nm_matmul(values, positions, grad, *pattern) if wanted[2] else None, None, None,
    )  # fmt: skip


def _nm_sddmm_gradient(ctx: Any, grad: Tensor) -> tuple:
    positions, y, x = ctx.saved_tensors
    grad, wanted, pattern = grad.contiguous(), ctx.needs_input_grad, (ctx.n, ctx.m)
    return (
        None, _ops.nm_matmul(grad, positions, x, *pattern) if wanted[1] else None,
        _ops.nm_matmul_t(grad, positions, y, *pattern) if wanted[2] else None, None, None,
    )  # fmt: skip


_library = torch.library.Library("sparsebook", "FRAGMENT")
_PATTERN = "int n, int m) -> Tensor"
_library.define(f"nm_matmul(Tensor values, Tensor positions, Tensor x, {_PATTERN}")
_library.define(f"nm_matmul_t(Tensor values, Tensor positions, Tensor y, {_PATTERN}")
_library.define(f"nm_sddmm(Tensor positions, Tensor y, Tensor x, {_PATTERN}")
for _name, _compute, _fake, _gradient in (
    ("nm_matmul", _nm_matmul, _fake_nm_matmul, _nm_matmul_gradient),
    ("nm_matmul_t", _nm_matmul_t, _fake_nm_matmul_t, _nm_matmul_t_gradient),
    ("nm_sddmm", _nm_sddmm, _fake_nm_sddmm, _nm_sddmm_gradient),
):
    for _device in ("CPU", "CUDA"):
        _library.impl(_name, _compute, _device)
    torch.library.register_fake(f"sparsebook::{_name}", _fake, lib=_library)
    torch.library.register_autograd(f"sparsebook::{_name}", _gradient, setup_context=_keep, lib=_library)
