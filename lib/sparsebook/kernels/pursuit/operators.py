"""The operators `sparsebook::matching_pursuit` and `sparsebook::orthogonal_matching_pursuit` with gradients.

Both take x [groups, rows, dim], a dictionary [groups, atoms, dim] and perhaps its Gram matrix, and return
(coefficients, residual, indices). Picks are constant for the gradient, and none reaches the Gram matrix.
Nothing is checked here: the public functions do that.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparsebook.kernels.pursuit.cpu import (
    matching_pursuit_cpu,
    matching_pursuit_gradient_cpu,
    orthogonal_matching_pursuit_cpu,
)
from sparsebook.kernels.pursuit.gradient import (
    matching_pursuit_gradient,
    orthogonal_matching_pursuit_gradient,
)
from sparsebook.kernels.pursuit.reference import (
    Result,
    matching_pursuit_reference,
    orthogonal_matching_pursuit_reference,
)

# Matching pursuit ----------------------------------------------------------------------------------------


def _reference(x: Tensor, dictionary: Tensor, *options: Any) -> Result:
    exact = torch.promote_types(x.dtype, torch.float32)
    indices, coefficients, residual = matching_pursuit_reference(x.to(exact), dictionary.to(exact), *options)
    return indices, coefficients.to(x.dtype), residual.to(x.dtype)


def _pursuit_cpu(
    x: Tensor, dictionary: Tensor, gram: Tensor | None, n_steps: int, tolerance: float, rule: int,
    stop_on_repeat: bool, use_gram: bool,
) -> Result:  # fmt: skip
    if x.dtype == torch.float64:
        return _reference(x, dictionary, n_steps, tolerance, rule, stop_on_repeat)
    return matching_pursuit_cpu(
        x, dictionary, gram, n_steps, tolerance, rule, stop_on_repeat, use_gram
    )  # fmt: skip


def _pursuit_cuda(
    x: Tensor, dictionary: Tensor, gram: Tensor | None, n_steps: int, tolerance: float, rule: int,
    stop_on_repeat: bool, use_gram: bool,
) -> Result:  # fmt: skip
    from sparsebook.kernels.pursuit.cuda import MOST_ATOMS, matching_pursuit_cuda

    if x.dtype == torch.float64 or not use_gram or dictionary.shape[1] > MOST_ATOMS:
        return _reference(x, dictionary, n_steps, tolerance, rule, stop_on_repeat)
    return matching_pursuit_cuda(x, dictionary, gram, n_steps, tolerance, rule, stop_on_repeat)


def _pursuit_gradient(
    grad_coefficients: Tensor, grad_residual: Tensor, dictionary: Tensor, indices: Tensor,
    coefficients: Tensor, residual: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    arguments = (grad_coefficients, grad_residual, dictionary, indices, coefficients, residual)
    if dictionary.device.type == "cpu" and dictionary.dtype != torch.float64:
        return matching_pursuit_gradient_cpu(*arguments)
    return _in_float(matching_pursuit_gradient, arguments)


# Orthogonal matching pursuit -----------------------------------------------------------------------------


def _orthogonal_reference(x: Tensor, dictionary: Tensor, n_steps: int, tolerance: float) -> Result:
    exact = torch.promote_types(x.dtype, torch.float32)
    found = orthogonal_matching_pursuit_reference(x.to(exact), dictionary.to(exact), n_steps, tolerance)
    return found[0], found[1].to(x.dtype), found[2].to(x.dtype)


def _orthogonal_cpu(
    x: Tensor, dictionary: Tensor, gram: Tensor | None, n_steps: int, tolerance: float, use_gram: bool
) -> Result:
    if x.dtype == torch.float64:
        return _orthogonal_reference(x, dictionary, n_steps, tolerance)
    return orthogonal_matching_pursuit_cpu(x, dictionary, gram, n_steps, tolerance, use_gram)


def _orthogonal_cuda(
    x: Tensor, dictionary: Tensor, gram: Tensor | None, n_steps: int, tolerance: float, use_gram: bool
) -> Result:
    from sparsebook.kernels.pursuit import cuda

    fits = dictionary.shape[1] <= cuda.MOST_ATOMS and n_steps <= cuda.MOST_ORTHOGONAL_STEPS
    if x.dtype == torch.float64 or not use_gram or not fits:
        return _orthogonal_reference(x, dictionary, n_steps, tolerance)
    return cuda.orthogonal_matching_pursuit_cuda(x, dictionary, gram, n_steps, tolerance)


def _orthogonal_gradient(
    grad_coefficients: Tensor, grad_residual: Tensor, dictionary: Tensor, indices: Tensor,
    coefficients: Tensor, residual: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    arguments = (grad_coefficients, grad_residual, dictionary, indices, coefficients, residual)
    return _in_float(orthogonal_matching_pursuit_gradient, arguments)


# What both share -----------------------------------------------------------------------------------------


def _in_float(gradient: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Half-precision tensors are widened for the arithmetic."""
    kind = arguments[2].dtype
    exact = torch.promote_types(kind, torch.float32)
    grads = gradient(*(x.to(exact) if x.is_floating_point() else x for x in arguments))
    return grads[0].to(kind), grads[1].to(kind)


def _indices_last(pursue: Callable[..., Result]) -> Callable[..., Result]:
    """What has gradients comes first."""

    def reordered(*arguments: Any) -> Result:
        indices, coefficients, residual = pursue(*arguments)
        return coefficients, residual, indices

    return reordered


def _fake(x: Tensor, dictionary: Tensor, gram: Tensor | None, n_steps: int, *options: Any) -> Result:
    shape = (x.shape[0], x.shape[1], n_steps)
    return x.new_empty(shape), x.new_empty(x.shape), x.new_empty(shape, dtype=torch.int64)


def _fake_gradient(
    grad_coefficients: Tensor, grad_residual: Tensor, dictionary: Tensor, *rest: Tensor
) -> tuple[Tensor, Tensor]:
    return grad_residual.new_empty(grad_residual.shape), dictionary.new_empty(dictionary.shape)


def _keep(ctx: Any, inputs: tuple, output: Result) -> None:
    ctx.mark_non_differentiable(output[2])
    ctx.n_others = len(inputs) - 2
    ctx.save_for_backward(inputs[1], output[2], output[0], output[1])


def _backward(operator: str) -> Any:
    def backward(ctx: Any, grad_coefficients: Tensor, grad_residual: Tensor, _: Tensor | None) -> tuple:
        gradient = getattr(torch.ops.sparsebook, operator)
        grads = gradient(grad_coefficients.contiguous(), grad_residual.contiguous(), *ctx.saved_tensors)
        return (*grads, *(None for _ in range(ctx.n_others)))

    return backward


_RESULT = " -> (Tensor, Tensor, Tensor)"
_INPUTS = "Tensor x, Tensor dictionary, Tensor? gram, int n_steps, float tolerance, "
_SAVED = (
    "Tensor grad_coefficients, Tensor grad_residual, Tensor dictionary, Tensor indices, Tensor coefficients, "
    "Tensor residual"
)

_library = torch.library.Library("sparsebook", "FRAGMENT")
for _name, _options, _cpu, _cuda, _gradient in (
    (
        "matching_pursuit", "int rule, bool stop_on_repeat, bool use_gram",
        _pursuit_cpu, _pursuit_cuda, _pursuit_gradient,
    ),
    (
        "orthogonal_matching_pursuit", "bool use_gram",
        _orthogonal_cpu, _orthogonal_cuda, _orthogonal_gradient,
    ),
):  # fmt: skip
    _library.define(f"{_name}({_INPUTS}{_options}){_RESULT}")
    _library.define(f"{_name}_backward({_SAVED}) -> (Tensor, Tensor)")
    _library.impl(_name, _indices_last(_cpu), "CPU")
    _library.impl(_name, _indices_last(_cuda), "CUDA")
    for _device in ("CPU", "CUDA"):
        _library.impl(f"{_name}_backward", _gradient, _device)
    torch.library.register_fake(f"sparsebook::{_name}", _fake, lib=_library)
    torch.library.register_fake(f"sparsebook::{_name}_backward", _fake_gradient, lib=_library)
    torch.library.register_autograd(
        f"sparsebook::{_name}", _backward(f"{_name}_backward"), setup_context=_keep, lib=_library
    )
