"""Every layout against dense attention under an explicit mask, in float64."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsebook.experiments.attention_kernels.inputs import normal, random_blocks, random_columns
from sparsebook.kernels.block_attention import (
    SpanIndex,
    attention_reference,
    block_sparse_attention,
    paged_attention,
    span_attention,
    span_state,
    stripe_attention,
    vertical_slash_index,
)

if TYPE_CHECKING:
    import pandas as pd

TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
"""Largest difference allowed from float64 on normal inputs: rounding in float32, or once at the end."""
N, HEADS, KV_HEADS, DIM = 300, 4, 2, 64

Case = tuple[str, bool, Tensor, Tensor]  # layout, causal, out, the dense mask


def run_exact(types: tuple[torch.dtype, ...] = tuple(TOLERANCES)) -> "pd.DataFrame":
    """Layouts, types, densities and whether the kernel agrees with the reference within the tolerance."""
    import pandas as pd

    found = []
    for dtype in types:
        tolerance = TOLERANCES[dtype]
        q, k, v = normal(0, 2, HEADS, N, DIM, dtype=dtype)
        k, v = k[:, :KV_HEADS], v[:, :KV_HEADS]
        for layout, causal, out, mask in _cases(q, k, v):
            queries = q[:, :, N - mask.shape[2] :].double()
            exact = attention_reference(queries, k.double(), v.double(), mask, DIM**-0.5)[0]
            worst = (out.double() - exact).abs().max().item()
            found.append(
                {
                    "layout": layout,
                    "causal": causal,
                    "type": str(dtype).removeprefix("torch."),
                    "attended": f"{mask.double().mean():.1%}",
                    "tolerance": tolerance,
                    "agrees": worst <= tolerance,
                }
            )
    return pd.DataFrame(found)


def _cases(q: Tensor, k: Tensor, v: Tensor) -> Iterator[Case]:
    for causal in (False, True):
        blocks = random_blocks(HEADS, 320, 0.5, block=64, causal=causal)
        dense = _block_table(blocks.kv_num_blocks, blocks.kv_indices, 64, causal)
        out, _ = block_sparse_attention(q, k, v, blocks, causal=causal, return_lse=True)
        yield "blocks of 64", causal, out, dense
        spans = SpanIndex.from_spans(torch.tensor([[[[[0, 7], [90, 210]]] * 3]]), 100)
        yield "spans", causal, *_with_mask(q, k, v, spans, causal)
        columns = random_columns(HEADS, N, 100, 0.3)
        yield "columns", causal, *_with_mask(q, k, v, columns, causal)
    lines = torch.tensor([[[0, 33, 150]]]), torch.tensor([[[0, 1, 64, 200]]])
    yield "vertical and slash lines", True, *_with_mask(q, k, v, vertical_slash_index(*lines, N), True)
    yield "region, then stripes", True, *_continued(q, k, v)
    pages = torch.tensor([[[0, 5, 18], [2, 3, 17]]])
    mask = torch.zeros(1, KV_HEADS, N, dtype=torch.bool)
    for head, listed in enumerate(pages[0].tolist()):
        for page in listed:
            mask[0, head, page * 16 : page * 16 + 16] = True
    mask = mask.repeat_interleave(HEADS // KV_HEADS, 1)[:, :, None]
    yield "pages, one new token", True, paged_attention(q[:, :, -1:], k, v, pages, page_size=16), mask


def _with_mask(q: Tensor, k: Tensor, v: Tensor, index: SpanIndex, causal: bool) -> tuple[Tensor, Tensor]:
    mask = index.dense_mask(N, N, causal=causal)
    return span_attention(q, k, v, index, causal=causal), mask


def _continued(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The diagonal blocks as a region, its state continued over every seventh key before them."""
    starts = torch.arange(0, N, 100)
    region = SpanIndex.from_spans(torch.stack([starts, starts + 100], -1)[None, None, :, None], 100)
    columns = torch.arange(0, N, 7).expand(1, 1, 3, -1).contiguous()
    counts = torch.tensor([[[0, 15, 29]]])
    out = stripe_attention(q, k, v, columns, counts, group_size=100, state=span_state(q, k, v, region))
    both = SpanIndex(region.spans, columns, counts, 100)
    return out, both.dense_mask(N, N, causal=True)


def _block_table(counts: Tensor, blocks: Tensor, block: int, causal: bool) -> Tensor:
    rows = blocks.shape[2]
    kept = torch.zeros(1, HEADS, rows, rows, dtype=torch.bool)
    real = torch.arange(blocks.shape[3]) < counts[..., None]
    kept.scatter_(-1, blocks.long(), real)
    mask = kept.repeat_interleave(block, 2).repeat_interleave(block, 3)[:, :, :N, :N]
    return mask & torch.ones(N, N, dtype=torch.bool).tril() if causal else mask
