"""The Triton kernels against the reference: on a GPU, or through Triton's interpreter."""

import os

import pytest
import torch
from torch import Tensor

from sparsebook.kernels.block_attention.layout import SpanIndex
from sparsebook.kernels.block_attention.operators import _blocks_as_spans
from sparsebook.kernels.block_attention.reference import span_attention_reference

pytest.importorskip("triton", reason="Triton is not installed (the extra `triton`)", exc_type=ImportError)

GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if GPU else "cpu"
here = pytest.mark.skipif(not (GPU or INTERPRETED), reason="run by test_triton.py")
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def inputs(
    batch: int, heads: int, kv_heads: int, queries: int, keys: int, dim: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(queries)
    shapes = ((batch, heads, queries, dim), (batch, kv_heads, keys, dim), (batch, kv_heads, keys, dim))
    return tuple(torch.randn(*shape, generator=generator).to(dtype).to(DEVICE) for shape in shapes)


def lists(table: Tensor) -> tuple[Tensor, Tensor]:
    blocks = table.int().argsort(dim=-1, descending=True, stable=True).int()
    return table.sum(-1).int().to(DEVICE), blocks.to(DEVICE)


def skip_if_unknown(dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and not GPU:
        pytest.skip("the interpreter's tl.dot multiplies the bit patterns of bfloat16")


def close(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    tolerance = TOLERANCE[actual[0].dtype]
    torch.testing.assert_close(actual[0].float(), expected[0].float(), rtol=tolerance, atol=tolerance)
    for mine, theirs in zip(actual[1:], expected[1:], strict=True):
        torch.testing.assert_close(mine, theirs.float(), rtol=1e-4, atol=1e-4, equal_nan=True)


@here
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("shape", "block", "dtype"),
    [
        ((1, 2, 2, 256, 256, 64), (128, 128), torch.float32),
        ((2, 4, 2, 150, 300, 64), (128, 128), torch.bfloat16),
        ((2, 4, 2, 150, 300, 64), (128, 128), torch.float16),
        ((1, 3, 1, 70, 90, 24), (16, 32), torch.float32),
        ((1, 2, 1, 33, 50, 128), (7, 5), torch.float16),
        ((1, 1, 1, 1, 1, 8), (64, 64), torch.float32),
    ],
)
def test_blocks(shape: tuple, block: tuple[int, int], dtype: torch.dtype, causal: bool) -> None:
    from sparsebook.kernels.block_attention.cuda import block_attention_cuda

    skip_if_unknown(dtype)
    q, k, v = inputs(*shape, dtype)
    n = -(-shape[3] // block[0]), -(-shape[4] // block[1])
    draw = torch.rand(shape[0], shape[1], *n, generator=torch.Generator().manual_seed(1))
    both = (*lists(draw < 0.4), *lists(draw > 0.7))
    spans, columns, counts = _blocks_as_spans(both, block[1], shape[4])
    index = SpanIndex(spans, columns, counts, block[0])
    expected = span_attention_reference(q, k, v, index, causal=causal, scale=0.3)
    close(block_attention_cuda(q, k, v, both, *block, causal, 0.3), expected)


@here
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_spans_and_columns(causal: bool, dtype: torch.dtype) -> None:
    from sparsebook.kernels.block_attention.cuda import span_attention_cuda

    skip_if_unknown(dtype)
    q, k, v = inputs(1, 4, 2, 100, 150, 40, dtype)
    spans = torch.tensor([[(0, 5), (60, 100)], [(0, 0), (30, 90)], [(7, 8), (0, 0)], [(0, 0), (0, 0)]])
    columns = torch.tensor([[6, 20, 101, 149], [0, 9, 0, 0]])
    counts = torch.tensor([4, 2])
    index = SpanIndex(spans[None, None], columns[None, None], counts[None, None], block_size=32, group=2)
    parts = [x.int().to(DEVICE) for x in (index.spans, index.columns, index.counts)]
    index = SpanIndex(*parts, block_size=32, group=2)
    expected = span_attention_reference(q, k, v, index, causal=causal, query_offset=3, scale=0.2)
    close(span_attention_cuda(q, k, v, *parts, 32, 2, causal, 3, 0.2), expected)


@here
def test_tilings_fit_the_shared_memory() -> None:
    from sparsebook.kernels.block_attention.cuda import choose_tiling

    for dim in (16, 64, 128, 256, 512):
        for item_bytes in (2, 4):
            for shared in (101_376, 232_448):
                tiling = choose_tiling(dim, item_bytes, 128, 128, shared)
                tiles = (tiling.rows + 2 * tiling.stages * tiling.keys) * dim * item_bytes
                assert tiles <= shared or tiling == (16, 16, 4, 2)
    assert choose_tiling(64, 2, 5, 7)[:2] == (16, 16)


@here
def test_lists_per_batch_and_head() -> None:
    from sparsebook.kernels.block_attention.cuda import span_attention_cuda

    q, k, v = inputs(2, 2, 1, 20, 30, 16, torch.float32)
    start = torch.arange(4).view(2, 2, 1, 1).expand(2, 2, 2, 1)
    spans = torch.stack([start, start + 5], -1).int().to(DEVICE)
    columns = (torch.arange(8).view(2, 2, 2, 1) + 10).int().to(DEVICE)
    index = SpanIndex(spans, columns, torch.ones_like(columns[..., 0]), block_size=10)
    expected = span_attention_reference(q, k, v, index, causal=False, scale=1.0)
    close(span_attention_cuda(q, k, v, spans, columns, index.counts, 10, 1, False, 0, 1.0), expected)


@here
@pytest.mark.skipif(not GPU, reason="needs a GPU")
def test_public_functions_on_a_gpu() -> None:
    """The dispatch, the checks and the gradients, against the CPU."""
    from torch.nn.attention.flex_attention import BlockMask

    from sparsebook.kernels.block_attention import (
        block_sparse_attention,
        paged_attention,
        vertical_slash_attention,
    )

    q, k, v = inputs(1, 4, 2, 500, 500, 64, torch.float32)
    table = torch.rand(1, 4, 4, 4, generator=torch.Generator().manual_seed(2)) < 0.5
    results = []
    for device in ("cpu", DEVICE):
        counts, blocks = (x.to(device) for x in lists(table))
        mask = BlockMask.from_kv_blocks(counts, blocks, BLOCK_SIZE=128)
        x = [t.detach().to(device).requires_grad_() for t in (q, k, v)]
        out = block_sparse_attention(*x, mask, causal=True)
        out.square().sum().backward()
        lines = torch.tensor([[[0, 3, 99]]], device=device), torch.tensor([[[0, 50]]], device=device)
        with torch.no_grad():
            more = [
                vertical_slash_attention(*x, *lines)[0],
                paged_attention(x[0][:, :, :1], x[1], x[2], lines[0] % 31, page_size=16),
            ]
        results.append([t.cpu() for t in (out.detach(), *(t.grad for t in x), *more)])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
