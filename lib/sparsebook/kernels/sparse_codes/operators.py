"""The operators `sparsebook::sparse_decode` and `sparsebook::sparse_project`, each the other's gradient.

Lists come as indices and offsets (the layout of CSR) and are not checked here: the public functions do that.
"""

from typing import Any

import torch
from torch import Tensor

from sparsebook.kernels.sparse_codes.cpu import (
    sparse_decode_backward_cpu,
    sparse_decode_cpu,
    sparse_project_cpu,
)
from sparsebook.kernels.sparse_codes.reference import decode_reference, project_reference, rows_of

Pair = tuple[Tensor, Tensor]


def _decode(values: Tensor, indices: Tensor, offsets: Tensor, dictionary: Tensor) -> Tensor:
    if dictionary.dtype == torch.float64:
        return decode_reference(values, indices, offsets, dictionary)
    if dictionary.is_cuda:
        from sparsebook.kernels.sparse_codes.cuda import sparse_decode_cuda

        return sparse_decode_cuda(values, indices, offsets, dictionary)
    return sparse_decode_cpu(values, indices, offsets, dictionary)


def _project(x: Tensor, indices: Tensor, offsets: Tensor, dictionary: Tensor) -> Tensor:
    if dictionary.dtype == torch.float64:
        return project_reference(x, indices, offsets, dictionary)
    if dictionary.is_cuda:
        from sparsebook.kernels.sparse_codes.cuda import sparse_project_cuda

        return sparse_project_cuda(x, indices, offsets, dictionary)
    return sparse_project_cpu(x, indices, offsets, dictionary)


def _decode_backward(
    grad: Tensor, values: Tensor, indices: Tensor, offsets: Tensor, dictionary: Tensor,
    for_values: bool, for_dictionary: bool,
) -> Pair:  # fmt: skip
    if dictionary.dtype == torch.float64:
        return _reference_backward(grad, values, indices, offsets, dictionary, for_values, for_dictionary)
    if dictionary.is_cuda:
        from sparsebook.kernels.sparse_codes.cuda import sparse_decode_backward_cuda

        compute = sparse_decode_backward_cuda
    else:
        compute = sparse_decode_backward_cpu
    return compute(grad, values, indices, offsets, dictionary, for_values, for_dictionary)


def _reference_backward(
    grad: Tensor, values: Tensor, indices: Tensor, offsets: Tensor, dictionary: Tensor,
    for_values: bool, for_dictionary: bool,
) -> Pair:  # fmt: skip
    grad_values, grad_dictionary = values.new_empty(0), dictionary.new_empty((0, dictionary.shape[1]))
    if for_values:
        grad_values = project_reference(grad, indices, offsets, dictionary)
    if for_dictionary:
        terms = values[:, None] * grad[rows_of(offsets)]
        grad_dictionary = torch.zeros_like(dictionary).index_add(0, indices, terms)
    return grad_values, grad_dictionary


# Shapes without values -----------------------------------------------------------------------------------


def _fake_decode(values: Tensor, indices: Tensor, offsets: Tensor, dictionary: Tensor) -> Tensor:
    return dictionary.new_empty((offsets.shape[0] - 1, dictionary.shape[1]))


def _fake_project(x: Tensor, indices: Tensor, offsets: Tensor, dictionary: Tensor) -> Tensor:
    return x.new_empty(indices.shape)


def _fake_backward(
    grad: Tensor, values: Tensor, indices: Tensor, offsets: Tensor, dictionary: Tensor,
    for_values: bool, for_dictionary: bool,
) -> Pair:  # fmt: skip
    atoms, dim = dictionary.shape
    return (
        dictionary.new_empty(indices.shape if for_values else (0,)),
        dictionary.new_empty((atoms if for_dictionary else 0, dim)),
    )


# Gradients -----------------------------------------------------------------------------------------------


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _decode_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor | None]:
    wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[3]
    grads = torch.ops.sparsebook.sparse_decode_backward(grad.contiguous(), *ctx.saved_tensors, *wanted)
    return grads[0] if wanted[0] else None, None, None, grads[1] if wanted[1] else None


def _project_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor | None]:
    x, indices, offsets, dictionary = ctx.saved_tensors
    grad, grad_x, grad_dictionary = grad.contiguous(), None, None
    if ctx.needs_input_grad[0]:
        grad_x = torch.ops.sparsebook.sparse_decode(grad, indices, offsets, dictionary)
    if ctx.needs_input_grad[3]:
        lists = (grad, indices, offsets, dictionary)
        grad_dictionary = torch.ops.sparsebook.sparse_decode_backward(x, *lists, False, True)[1]
    return grad_x, None, None, grad_dictionary


_LISTS = "Tensor indices, Tensor offsets, Tensor dictionary"

_library = torch.library.Library("sparsebook", "FRAGMENT")
_library.define(f"sparse_decode(Tensor values, {_LISTS}) -> Tensor")
_library.define(f"sparse_project(Tensor x, {_LISTS}) -> Tensor")
_library.define(
    f"sparse_decode_backward(Tensor grad, Tensor values, {_LISTS}, bool for_values, bool for_dictionary) "
    "-> (Tensor, Tensor)"
)
for _name, _compute, _fake in (
    ("sparse_decode", _decode, _fake_decode),
    ("sparse_project", _project, _fake_project),
    ("sparse_decode_backward", _decode_backward, _fake_backward),
):
    for _device in ("CPU", "CUDA"):
        _library.impl(_name, _compute, _device)
    torch.library.register_fake(f"sparsebook::{_name}", _fake, lib=_library)
for _name, _gradient in (("sparse_decode", _decode_gradient), ("sparse_project", _project_gradient)):
    torch.library.register_autograd(f"sparsebook::{_name}", _gradient, setup_context=_keep, lib=_library)
