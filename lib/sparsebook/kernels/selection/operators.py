"""The operators of the three selections, with their gradients: a gradient goes to what was selected.

`row_topk` returns values and columns; `column_topm` and `global_topm` return entries ordered by row (values,
rows, columns) and each row's first entry. Sizes are not checked here, NaN is: the public functions
do the rest.
"""

from typing import Any

import torch
from torch import Tensor

from sparsebook.kernels.selection.cpu import column_topm_cpu, global_topm_cpu, row_topk_cpu
from sparsebook.kernels.selection.reference import (
    Entries,
    column_topm_reference,
    global_topm_reference,
    row_topk_reference,
)


def _row_topk(x: Tensor, k: int, ordered: bool) -> tuple[Tensor, Tensor]:
    if _plain(x, k):
        return row_topk_reference(x, k, ordered)
    if x.is_cuda:
        from sparsebook.kernels.selection.cuda import row_topk_cuda

        return row_topk_cuda(x, k, ordered)
    return row_topk_cpu(x, k, ordered)


def _column_topm(x: Tensor, m: Tensor, total: int) -> Entries:
    if _plain(x, total):
        return column_topm_reference(x, m)
    if x.is_cuda:
        from sparsebook.kernels.selection.cuda import column_topm_cuda

        return column_topm_cuda(x, m, total)
    return column_topm_cpu(x, m, total)


def _global_topm(x: Tensor, m: int) -> Entries:
    if _plain(x, m):
        return global_topm_reference(x, m)
    if x.is_cuda:
        from sparsebook.kernels.selection.cuda import global_topm_cuda

        return global_topm_cuda(x, m)
    return global_topm_cpu(x, m)


def _plain(x: Tensor, count: int) -> bool:
    """Whether the reference does it: float64, or nothing to select. Looks for NaN as the kernels do."""
    if x.dtype != torch.float64 and count > 0 and x.numel() > 0:
        return False
    if bool(x.isnan().any()):
        raise ValueError("x must not hold NaN")
    return True


def _fake_rows(x: Tensor, k: int, ordered: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty((x.shape[0], k)), x.new_empty((x.shape[0], k), dtype=torch.int64)


def _fake_entries(x: Tensor, n: int) -> Entries:
    rows, columns = (x.new_empty(n, dtype=torch.int64) for _ in range(2))
    return x.new_empty(n), rows, columns, x.new_empty(x.shape[0] + 1, dtype=torch.int64)


def _keep(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.shape = inputs[0].shape
    ctx.save_for_backward(*output[1:3])


def _backward_rows(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple:
    if grad is None:
        return None, None, None
    (indices,) = ctx.saved_tensors
    return grad.new_zeros(ctx.shape).scatter(1, indices, grad), None, None


def _backward_entries(arguments: int) -> Any:
    def backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple:
        none = (None,) * arguments
        if grad is None:
            return None, *none
        rows, columns = ctx.saved_tensors
        return grad.new_zeros(ctx.shape).index_put((rows, columns), grad), *none

    return backward


_library = torch.library.Library("sparsebook", "FRAGMENT")
_library.define("row_topk(Tensor x, int k, bool ordered) -> (Tensor, Tensor)")
_library.define("column_topm(Tensor x, Tensor m, int total) -> (Tensor, Tensor, Tensor, Tensor)")
_library.define("global_topm(Tensor x, int m) -> (Tensor, Tensor, Tensor, Tensor)")
for _name, _compute, _fake, _backward in (
    ("row_topk", _row_topk, _fake_rows, _backward_rows),
    ("column_topm", _column_topm, lambda x, m, total: _fake_entries(x, total), _backward_entries(2)),
    ("global_topm", _global_topm, _fake_entries, _backward_entries(1)),
):
    for _device in ("CPU", "CUDA"):
        _library.impl(_name, _compute, _device)
    torch.library.register_fake(f"sparsebook::{_name}", _fake, lib=_library)
    torch.library.register_autograd(f"sparsebook::{_name}", _backward, setup_context=_keep, lib=_library)
