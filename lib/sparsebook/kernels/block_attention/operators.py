"""The operators `sparsebook::block_attention` and `sparsebook::span_attention` with their gradients.

Both return (out, lse, maximum): the attention, the natural logarithm of each row's sum of exponentials, and
the row's largest scaled logit, for which no gradient is defined. Indices are not checked here: the public
functions do that.
"""

from typing import Any

import torch
from torch import Tensor

from sparsebook.kernels.block_attention.cpu import span_attention_cpu
from sparsebook.kernels.block_attention.gradient import Layout, span_attention_gradient
from sparsebook.kernels.block_attention.layout import SpanIndex, block_spans
from sparsebook.kernels.block_attention.reference import Result, span_attention_reference

Indices = tuple[Tensor, Tensor, Tensor]

# Blocks --------------------------------------------------------------------------------------------------


def _block_cpu(
    q: Tensor, k: Tensor, v: Tensor, counts: Tensor, blocks: Tensor, full_counts: Tensor, full_blocks: Tensor,
    block_q: int, block_k: int, causal: bool, scale: float,
) -> Result:  # fmt: skip
    lists = (counts, blocks, full_counts, full_blocks)
    return _span_cpu(q, k, v, *_blocks_as_spans(lists, block_k, k.shape[2]), block_q, 1, causal, 0, scale)


def _blocks_as_spans(lists: tuple[Tensor, Tensor, Tensor, Tensor], block_k: int, n_keys: int) -> Indices:
    spans = block_spans(lists, block_k, n_keys)
    return spans, spans.new_zeros((1, 1, spans.shape[2], 0)), spans.new_zeros((1, 1, spans.shape[2]))


def _block_cuda(
    q: Tensor, k: Tensor, v: Tensor, counts: Tensor, blocks: Tensor, full_counts: Tensor, full_blocks: Tensor,
    block_q: int, block_k: int, causal: bool, scale: float,
) -> Result:  # fmt: skip
    lists = (counts, blocks, full_counts, full_blocks)
    if q.dtype == torch.float64:
        indices = _blocks_as_spans(lists, block_k, k.shape[2])
        return _span_reference(q, k, v, *indices, block_q, 1, causal, 0, scale)
    from sparsebook.kernels.block_attention.cuda import block_attention_cuda

    return block_attention_cuda(q, k, v, lists, block_q, block_k, causal, scale)


def _block_gradient(
    grad_out: Tensor, grad_lse: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    counts: Tensor, blocks: Tensor, full_counts: Tensor, full_blocks: Tensor,
    block_q: int, block_k: int, causal: bool, scale: float,
) -> Result:  # fmt: skip
    indices = _blocks_as_spans((counts, blocks, full_counts, full_blocks), block_k, k.shape[2])
    layout = Layout(*indices, block_q, 1, causal, 0, scale)
    return span_attention_gradient(grad_out, grad_lse, q, k, v, out, lse, layout)


# Spans and columns ---------------------------------------------------------------------------------------


def _span_reference(
    q: Tensor, k: Tensor, v: Tensor, spans: Tensor, columns: Tensor, counts: Tensor,
    block: int, group: int, causal: bool, offset: int, scale: float,
) -> Result:  # fmt: skip
    index = SpanIndex(spans, columns, counts, block, group)
    return span_attention_reference(q, k, v, index, causal=causal, query_offset=offset, scale=scale)


def _span_cpu(
    q: Tensor, k: Tensor, v: Tensor, spans: Tensor, columns: Tensor, counts: Tensor,
    block: int, group: int, causal: bool, offset: int, scale: float,
) -> Result:  # fmt: skip
    compute = _span_reference if q.dtype == torch.float64 else span_attention_cpu
    return compute(q, k, v, spans, columns, counts, block, group, causal, offset, scale)


def _span_cuda(
    q: Tensor, k: Tensor, v: Tensor, spans: Tensor, columns: Tensor, counts: Tensor,
    block: int, group: int, causal: bool, offset: int, scale: float,
) -> Result:  # fmt: skip
    if q.dtype == torch.float64:
        return _span_reference(q, k, v, spans, columns, counts, block, group, causal, offset, scale)
    from sparsebook.kernels.block_attention.cuda import span_attention_cuda

    return span_attention_cuda(q, k, v, spans, columns, counts, block, group, causal, offset, scale)


def _span_gradient(
    grad_out: Tensor, grad_lse: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    spans: Tensor, columns: Tensor, counts: Tensor,
    block: int, group: int, causal: bool, offset: int, scale: float,
) -> Result:  # fmt: skip
    layout = Layout(spans, columns, counts, block, group, causal, offset, scale)
    return span_attention_gradient(grad_out, grad_lse, q, k, v, out, lse, layout)


# What both share -----------------------------------------------------------------------------------------


def _fake(q: Tensor, k: Tensor, v: Tensor, *indices: Any) -> Result:
    exact = torch.promote_types(q.dtype, torch.float32)
    row = q.new_empty(q.shape[:3], dtype=exact)
    return q.new_empty((*q.shape[:3], v.shape[3])), row, torch.empty_like(row)


def _fake_gradient(grad_out: Tensor, grad_lse: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Result:
    return tuple(x.new_empty(x.shape) for x in (q, k, v))  # type: ignore[return-value]


def _keep(ctx: Any, inputs: tuple, output: Result) -> None:
    out, lse, maximum = output
    ctx.mark_non_differentiable(maximum)
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    ctx.numbers = [x for x in inputs if not isinstance(x, Tensor)]
    ctx.save_for_backward(*tensors, out, lse)


def _backward(operator: str) -> Any:
    def backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor, _: Tensor | None) -> tuple:
        q, k, v, *indices, out, lse = ctx.saved_tensors
        gradient = getattr(torch.ops.sparsebook, operator)
        grads = gradient(
            grad_out.contiguous(), grad_lse.contiguous(), q, k, v, out, lse, *indices, *ctx.numbers
        )
        return (*grads, *(None for _ in indices), *(None for _ in ctx.numbers))

    return backward


_QKV = "Tensor q, Tensor k, Tensor v, "
_SAVED = "Tensor grad_out, Tensor grad_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
_BLOCKS = (
    "Tensor kv_num_blocks, Tensor kv_indices, Tensor full_kv_num_blocks, Tensor full_kv_indices, "
    "int block_q, int block_k, bool causal, float scale"
)
_SPANS = (
    "Tensor spans, Tensor columns, Tensor column_counts, int block, int group, bool causal, "
    "int query_offset, float scale"
)

_library = torch.library.Library("sparsebook", "FRAGMENT")
for _name, _indices, _cpu, _cuda, _gradient in (
    ("block_attention", _BLOCKS, _block_cpu, _block_cuda, _block_gradient),
    ("span_attention", _SPANS, _span_cpu, _span_cuda, _span_gradient),
):
    _library.define(f"{_name}({_QKV}{_indices}) -> (Tensor, Tensor, Tensor)")
    _library.define(f"{_name}_backward({_SAVED}{_indices}) -> (Tensor, Tensor, Tensor)")
    _library.impl(_name, _cpu, "CPU")
    _library.impl(_name, _cuda, "CUDA")
    for _device in ("CPU", "CUDA"):
        _library.impl(f"{_name}_backward", _gradient, _device)
    torch.library.register_fake(f"sparsebook::{_name}", _fake, lib=_library)
    torch.library.register_fake(f"sparsebook::{_name}_backward", _fake_gradient, lib=_library)
    torch.library.register_autograd(
        f"sparsebook::{_name}", _backward(f"{_name}_backward"), setup_context=_keep, lib=_library
    )
