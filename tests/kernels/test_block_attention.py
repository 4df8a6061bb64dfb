"""Sparse attention: every public function against dense attention under an explicit mask."""

import inspect
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from sparsebook.kernels.block_attention import (
    OnlineSoftmaxState,
    SpanIndex,
    attention_reference,
    block_sparse_attention,
    paged_attention,
    span_attention,
    span_state,
    stripe_attention,
    vertical_slash_attention,
    vertical_slash_index,
)

# Largest absolute difference allowed, by type: half types are rounded once, at the end.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def inputs(
    batch: int = 1,
    heads: int = 2,
    kv_heads: int = 2,
    queries: int = 70,
    keys: int = 70,
    dim: int = 16,
    **kind: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((batch, heads, queries, dim), (batch, kv_heads, keys, dim), (batch, kv_heads, keys, dim))
    return tuple(normal(seed, *shape, **kind) for seed, shape in enumerate(shapes))


def random_table(seed: int, *shape: int, density: float = 0.4) -> Tensor:
    """Boolean [batch, heads, query blocks, key blocks]; some rows are empty."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < density


def block_mask(table: Tensor, block: int | tuple[int, int], **more: Any) -> BlockMask:
    counts = table.sum(-1).int()
    blocks = table.int().argsort(dim=-1, descending=True, stable=True).int()
    return BlockMask.from_kv_blocks(counts, blocks, BLOCK_SIZE=block, **more)


def table_mask(table: Tensor, block: tuple[int, int], queries: int, keys: int, causal: bool) -> Tensor:
    """The dense mask, by loops over nothing but the definition."""
    mask = torch.zeros(*table.shape[:2], queries, keys, dtype=torch.bool)
    for b, h, i, j in table.nonzero().tolist():
        mask[b, h, i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]] = True
    return mask & torch.ones(queries, keys, dtype=torch.bool).tril() if causal else mask


def dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """PyTorch's own attention in float64, zeros where a row attends nothing."""
    repeats = q.shape[1] // k.shape[1]
    q, k, v = (x.double() for x in (q, k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)))
    mask = mask.expand(*q.shape[:3], k.shape[2])
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return torch.where(mask.any(-1, keepdim=True), out, 0.0)


def unchecked(function: Any) -> Any:
    """The function without the run-time type checker, which would speak first where it is on."""
    return inspect.unwrap(function)


def close(actual: Tensor, expected: Tensor, tolerance: float | None = None) -> None:
    tolerance = TOLERANCE[actual.dtype] if tolerance is None else tolerance
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


def spans_of(*rows: list[tuple[int, int]]) -> Tensor:
    """One head's spans, the rows padded with empty ones."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[[*row, *[(0, 0)] * (longest - len(row))] for row in rows]], dtype=torch.int32)[None]


# Blocks --------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 2),
    heads=st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)]),
    queries=st.integers(1, 150),
    keys=st.integers(1, 300),
    dim=st.sampled_from([1, 7, 16, 40, 64]),
    block=st.sampled_from([(128, 128), (64, 32), (16, 16), (40, 80), (7, 5)]),
    shared=st.booleans(),
    causal=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCE)),
)
def test_blocks_equal_dense_attention(batch, heads, queries, keys, dim, block, shared, causal, dtype) -> None:
    q, k, v = inputs(batch, *heads, queries, keys, dim, dtype=dtype)
    lead = (1, 1) if shared else (batch, heads[0])
    table = random_table(queries, *lead, -(-queries // block[0]), -(-keys // block[1]))
    mask = table_mask(table, block, queries, keys, causal)
    out, lse = block_sparse_attention(q, k, v, block_mask(table, block), causal=causal, return_lse=True)
    close(out, dense(q, k, v, mask))
    expected = attention_reference(q, k, v, mask, dim**-0.5)
    close(lse, expected[1], 1e-4)
    close(out, expected[0])


def test_all_blocks_equal_plain_attention() -> None:
    q, k, v = inputs(2, 4, 4, 300, 300, 64)
    mask = block_mask(torch.ones(1, 1, 3, 3, dtype=torch.bool), 128)
    close(block_sparse_attention(q, k, v, mask), functional.scaled_dot_product_attention(q, k, v), 2e-6)
    causal = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    close(block_sparse_attention(q, k, v, mask, causal=True), causal, 2e-6)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("dim", [80, 128, 250, 256])
def test_wide_heads(dim: int, dtype: torch.dtype) -> None:
    """Several tiles of queries and of keys, the last ones cut; 250 is no multiple of a vector."""
    q, k, v = inputs(1, 2, 1, 140, 270, dim, dtype=dtype)
    table = random_table(dim, 1, 2, 2, 3, density=0.8)
    out = block_sparse_attention(q, k, v, block_mask(table, (128, 100)), causal=True)
    close(out, dense(q, k, v, table_mask(table, (128, 100), 140, 270, True)))


def test_only_attended_keys_are_read() -> None:
    """Poison everywhere else, so that a tile may not reach beyond its list of keys."""
    q, k, v = inputs(1, 2, 2, 100, 400, 24)
    columns = torch.arange(1, 400, 3)[None, None, None]
    index = SpanIndex.from_columns(columns, torch.tensor([[[columns.shape[3]]]]), 100)
    expected = dense(q, k, v, index.dense_mask(100, 400, causal=False))
    poison = torch.ones(400, dtype=torch.bool)
    poison[columns.flatten()] = False
    for x in (k, v):
        x[:, :, poison] = torch.nan
    close(span_attention(q, k, v, index, causal=False), expected)


def test_a_values_own_width_and_layout() -> None:
    q, k, _ = inputs(2, 4, 2, 90, 110, 24)
    v = normal(5, 2, 110, 2, 72).transpose(1, 2)
    q = q.transpose(2, 3).contiguous().transpose(2, 3)
    table = random_table(1, 2, 4, 2, 2)
    out = block_sparse_attention(q, k, v, block_mask(table, 64))
    close(out, dense_of_width(q, k, v, table_mask(table, (64, 64), 90, 110, False)))


def dense_of_width(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return torch.cat([dense(q, k, part, mask) for part in v.split(q.shape[3], -1)], -1)


def test_masks_made_by_flex_attention() -> None:
    """Its causal masks become the flag; whole blocks are taken whole, ragged ends included."""
    q, k, v = inputs(queries=300, keys=300)
    causal = create_block_mask(lambda b, h, i, j: i >= j, 1, 1, 300, 300, device="cpu")
    close(
        block_sparse_attention(q, k, v, causal),
        functional.scaled_dot_product_attention(q, k, v, is_causal=True),
    )
    near = create_block_mask(lambda b, h, i, j: abs(i // 64 - j // 64) <= h, 1, 2, 300, 300, "cpu", 64)
    table = torch.stack([(torch.arange(5)[:, None] - torch.arange(5)).abs() <= h for h in range(2)])[None]
    expected = dense(q, k, v, table_mask(table, (64, 64), 300, 300, False))
    close(block_sparse_attention(q, k, v, near), expected)
    close(block_sparse_attention(q, k, v, near), expected)  # the answer about its mask_mod is kept


def test_masks_inside_blocks_are_refused() -> None:
    q, k, v = inputs(queries=128, keys=128)
    window = create_block_mask(lambda b, h, i, j: abs(i - j) < 40, 1, 1, 128, 128, "cpu", 64)
    with pytest.raises(ValueError, match=r"mask_mod must keep whole blocks or be plain causal"):
        block_sparse_attention(q, k, v, window)
    # Causal in the listed blocks, but a whole block stands above the diagonal.
    table, full = torch.eye(2, dtype=torch.bool)[None, None], torch.tensor([[[[1, 0], [0, 1]]]]).int()
    mixed = block_mask(table, 64)
    above = torch.tensor([[[1, 0]]]).int()
    lists = (mixed.kv_num_blocks, mixed.kv_indices, above, full)
    mixed = BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=64, mask_mod=lambda b, h, i, j: i >= j)
    with pytest.raises(ValueError, match="mask_mod must keep whole blocks"):
        block_sparse_attention(q, k, v, mixed)


def test_whole_and_partial_lists_together() -> None:
    q, k, v = inputs(queries=192, keys=192)
    table, whole = random_table(3, 1, 2, 3, 3, density=0.5), random_table(4, 1, 2, 3, 3, density=0.5)
    whole &= ~table
    both = block_mask(table, 64)
    full = block_mask(whole, 64)
    mask = BlockMask.from_kv_blocks(
        both.kv_num_blocks, both.kv_indices, full.kv_num_blocks, full.kv_indices, BLOCK_SIZE=64
    )
    expected = dense(q, k, v, table_mask(table | whole, (64, 64), 192, 192, False))
    close(block_sparse_attention(q, k, v, mask), expected)
    small = BlockMask.from_kv_blocks(
        both.kv_num_blocks, both.kv_indices, full.kv_num_blocks, full.kv_indices, BLOCK_SIZE=16
    )
    parts = [x[:, :, :48] for x in (q, k, v)]
    expected = dense(*parts, table_mask(table | whole, (16, 16), 48, 48, True))
    close(block_sparse_attention(*parts, small, causal=True), expected)


# Spans, columns, regions ---------------------------------------------------------------------------------


@st.composite
def span_indices(draw: Any, n_queries: int, n_keys: int) -> SpanIndex:
    """Any valid index: disjoint spans per block, columns outside the spans of their group."""
    block, group = draw(st.sampled_from([1, 8, 33, 64, 100])), draw(st.integers(1, 3))
    seed = draw(st.integers(0, 10_000))
    generator = torch.Generator().manual_seed(seed)
    n_blocks = -(-n_queries // block)
    n_groups = -(-n_blocks // group)
    edges = torch.randint(0, n_keys + 1, (1, 2, n_blocks, 6), generator=generator).sort(-1).values
    spans = edges.view(1, 2, n_blocks, 3, 2).int()
    bare = SpanIndex.from_spans(spans, block).dense_mask(n_blocks * block, n_keys, causal=False)
    taken = functional.pad(bare[:, :, ::block], (0, 0, 0, n_groups * group - n_blocks))
    taken = taken.view(1, 2, n_groups, group, n_keys).any(3)
    chosen = ~taken & (torch.rand(taken.shape, generator=generator) < draw(st.sampled_from([0.0, 0.3, 0.9])))
    counts = chosen.sum(-1).int()
    columns = (
        chosen.int().argsort(dim=-1, descending=True, stable=True)[..., : max(1, int(counts.max()))].int()
    )
    return SpanIndex(spans, columns, counts, block, group)


@settings(max_examples=30, deadline=None)
@given(
    data=st.data(),
    queries=st.integers(1, 140),
    keys=st.integers(1, 200),
    causal=st.booleans(),
    offset=st.integers(0, 60),
)
def test_spans_and_columns_equal_dense_attention(data, queries, keys, causal, offset) -> None:  # fmt: skip
    q, k, v = inputs(queries=queries, keys=keys)
    index = data.draw(span_indices(queries, keys))
    mask = index.dense_mask(queries, keys, causal=causal, query_offset=offset)
    close(span_attention(q, k, v, index, causal=causal, query_offset=offset), dense(q, k, v, mask))
    state = span_state(q, k, v, index, causal=causal, query_offset=offset)
    out, lse, maximum = attention_reference(q, k, v, mask, 0.25)
    close(state.output(), out)
    close(state.lse(), lse, 1e-5)
    close(state.m, maximum, 1e-5)
    assert torch.equal(
        index.attended(queries, causal=causal, query_offset=offset).expand(1, 2, -1), mask.sum(-1)
    )


def test_the_dense_mask_of_an_index_by_loops() -> None:
    index = SpanIndex(
        spans_of([(0, 2)], [(1, 4), (6, 7)], [(0, 0)]),
        torch.tensor([[[4, 5, 0], [9, 0, 0]]])[None].view(1, 1, 2, 3).int(),
        torch.tensor([[[2, 1]]]).int(),
        block_size=2,
        group=2,
    )
    kept = [{0, 1, 4, 5}, {1, 2, 3, 6, 4, 5}, {9}]
    for causal in (False, True):
        mask = index.dense_mask(5, 10, causal=causal, query_offset=3)
        for row in range(5):
            expected = {j for j in kept[row // 2] if not causal or j <= row + 3}
            assert set(mask[0, 0, row].nonzero().flatten().tolist()) == expected


def test_no_key_is_counted_twice_or_missed() -> None:
    """With values that are unit vectors, an output row is the softmax itself."""
    q, k, _ = inputs(1, 1, 1, 96, 96, 8)
    v = torch.eye(96)[None, None]
    index = SpanIndex(
        spans_of([(0, 32)], [(0, 8), (32, 64)], [(0, 8), (32, 96)]),
        torch.tensor([[[0, 0], [8, 31], [9, 10]]])[None].view(1, 1, 3, 2).int(),
        torch.tensor([[[0, 2, 2]]]).int(),
        block_size=32,
    )
    out = span_attention(q, k, v, index)
    mask = index.dense_mask(96, 96, causal=True)[0, 0]
    assert torch.equal(out[0, 0] > 0, mask)
    close(out.sum(-1), torch.ones(1, 1, 96))
    logits = (q[0, 0] @ k[0, 0].T) * 8**-0.5
    close(out[0, 0], logits.masked_fill(~mask, -torch.inf).softmax(-1))


def test_stripes_continue_a_region() -> None:
    q, k, v = inputs(2, 4, 2, 256, 256, 32)
    region = SpanIndex.from_spans(
        spans_of(*[[(0, 16), (max(16, 64 * i), 64 * i + 64)] for i in range(4)]), 64
    )
    columns = torch.stack([torch.arange(16, 60, 4), torch.arange(17, 61, 4)])[None, None].int()
    counts = torch.tensor([[[0, 11]]]).int()
    state = span_state(q, k, v, region)
    out = stripe_attention(q, k, v, columns, counts, group_size=128, state=state)
    both = SpanIndex(region.spans, columns, counts, 64, group=2)
    close(out, span_attention(q, k, v, both), 2e-6)
    close(out, dense(q, k, v, both.dense_mask(256, 256, causal=True)))
    alone = stripe_attention(q, k, v, columns, counts, group_size=128)
    close(
        alone, dense(q, k, v, SpanIndex.from_columns(columns, counts, 128).dense_mask(256, 256, causal=True))
    )
    assert (alone[:, :, :128] == 0).all()


def test_density_counts_what_is_computed() -> None:
    index = SpanIndex(
        spans_of([(0, 4)], [(4, 8)]), torch.tensor([[[[0], [1]]]]), torch.tensor([[[0, 1]]]), block_size=4
    )
    assert index.density(8, 8, causal=True) == pytest.approx((1 + 2 + 3 + 4 + 2 + 3 + 4 + 5) / 36)
    assert index.density(8, 8, causal=False) == pytest.approx((16 + 20) / 64)


# Vertical and slash lines --------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 200),
    block=st.sampled_from([1, 8, 64]),
    lines=st.tuples(st.integers(0, 12), st.integers(0, 12)),
    seed=st.integers(0, 999),
)
def test_vertical_and_slash_lines_are_covered(tokens, block, lines, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    vertical, slash = (
        torch.rand(1, 2, tokens, generator=generator).argsort(-1)[..., : min(n, tokens)] for n in lines
    )
    index = vertical_slash_index(vertical, slash, tokens, block_size=block)
    index.check(1, 2, tokens, tokens)  # disjoint, sorted, in range
    mask = index.dense_mask(tokens, tokens, causal=True)
    position = torch.arange(tokens)
    for head in range(2):
        kept = torch.zeros(tokens, tokens, dtype=torch.bool)
        kept[:, vertical[0, head]] = True
        offset = position[:, None] - position
        kept |= torch.isin(offset, slash[0, head])
        kept = kept.tril()
        assert bool((mask[0, head] >= kept).all())
        # Nothing else than the sweep of a slash over its block of queries.
        first = position // block * block
        last = (first + block - 1).clamp(max=tokens - 1)
        swept = [(first - s)[:, None] <= position for s in slash[0, head].tolist()]
        swept = [
            a & (position <= (last - s)[:, None]) for a, s in zip(swept, slash[0, head].tolist(), strict=True)
        ]
        allowed = kept | (torch.stack(swept).any(0).tril() if swept else False)
        assert torch.equal(mask[0, head], allowed)


def test_vertical_slash_attention_equals_dense_under_its_mask() -> None:
    q, k, v = inputs(1, 4, 2, 300, 300, 32)
    vertical = torch.tensor([[[3, 0, 200, 131]]])
    slash = torch.tensor([[[0, 1, 2, 100, 250]]])
    out, density = vertical_slash_attention(q, k, v, vertical, slash)
    mask = vertical_slash_index(vertical, slash, 300).dense_mask(300, 300, causal=True)
    close(out, dense(q, k, v, mask))
    assert density == pytest.approx(mask.sum().item() / (300 * 301 / 2))
    everything = torch.arange(300)[None, None]
    out, density = vertical_slash_attention(q, k, v, everything, everything[..., :1])
    close(out, dense(q, k, v, torch.ones(300, 300, dtype=torch.bool).tril()))
    assert density == 1.0


# Pages ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("page_heads", [1, 2, 4])
@pytest.mark.parametrize("new", [1, 3])
def test_pages_equal_dense_attention(dtype: torch.dtype, page_heads: int, new: int) -> None:
    q, k, v = inputs(2, 4, 2, new, 100, 32, dtype=dtype)
    length, size = 83, 16
    pages = torch.stack([torch.tensor([5, h % 4, 4, -1]) for h in range(page_heads)])[None]
    mask = torch.zeros(1, 4, new, 100, dtype=torch.bool)
    for head in range(4):
        for page in pages[0, head * page_heads // 4].tolist():
            if page >= 0:
                mask[0, head, :, page * size : min(length, page * size + size)] = True
    for row in range(new):
        mask[:, :, row, length - new + row + 1 :] = False
    out = paged_attention(q, k, v, pages, page_size=size, length=length)
    close(out, dense(q, k, v, mask))


def test_all_pages_equal_plain_decoding() -> None:
    q, k, v = inputs(1, 4, 1, 1, 65, 64)
    out = paged_attention(q, k, v, torch.arange(5).flip(0)[None, None], page_size=16)
    close(out, functional.scaled_dot_product_attention(q, k, v, enable_gqa=True), 2e-6)


# The state -----------------------------------------------------------------------------------------------


def test_merging_parts_gives_the_whole() -> None:
    q, k, v = inputs(1, 2, 2, 64, 96, 16)
    parts = [
        span_state(q, k, v, SpanIndex.from_spans(spans_of([s]), 64), causal=False)
        for s in ((0, 40), (40, 96))
    ]
    whole = span_state(q, k, v, SpanIndex.from_spans(spans_of([(0, 96)]), 64), causal=False)
    for merged in (parts[0].merge(parts[1]), parts[1].merge(parts[0])):
        for name in ("m", "l", "acc"):
            close(getattr(merged, name), getattr(whole, name), 1e-5)
    close(whole.output(), functional.scaled_dot_product_attention(q, k, v), 2e-6)
    close(whole.m, (q @ k.mT / 4).amax(-1), 1e-5)


def test_the_empty_state_is_neutral() -> None:
    q, k, v = inputs(1, 2, 2, 10, 10, 16)
    state = span_state(q, k, v, SpanIndex.from_spans(spans_of([(0, 10)]), 10), causal=False)
    empty = OnlineSoftmaxState.empty(1, 2, 10, 16)
    for merged in (state.merge(empty), empty.merge(state)):
        for name in ("m", "l", "acc"):
            assert torch.equal(getattr(merged, name), getattr(state, name))
    nothing = empty.merge(empty)
    assert torch.equal(nothing.output(), torch.zeros(1, 2, 10, 16))
    assert torch.equal(nothing.lse(), torch.full((1, 2, 10), -torch.inf))
    with pytest.raises(ValueError, match=r"other must have the shape \(1, 2, 10, 16\)"):
        state.merge(OnlineSoftmaxState.empty(1, 2, 11, 16))


def test_rows_that_attend_nothing_are_zero() -> None:
    q, k, v = inputs(queries=100, keys=100)
    table = torch.tensor([[[[True, True], [False, False]]]])
    out, lse = block_sparse_attention(q, k, v, block_mask(table, 64), return_lse=True)
    assert (out[:, :, 64:] == 0).all()
    assert (lse[:, :, 64:] == -torch.inf).all()
    assert lse[:, :, :64].isfinite().all()
    # Above the diagonal only: the flag leaves nothing.
    above = torch.tensor([[[[False, True], [False, True]]]])
    out, lse = block_sparse_attention(q, k, v, block_mask(above, 64), causal=True, return_lse=True)
    assert (out[:, :, :64] == 0).all()
    assert (lse[:, :, :64] == -torch.inf).all()
    assert out[:, :, 64:].isfinite().all()


# Gradients and the operators -----------------------------------------------------------------------------


def index_with_everything() -> SpanIndex:
    return SpanIndex(
        spans_of([(0, 3)], [(0, 2), (3, 8)], [(0, 0)]).expand(1, 2, -1, -1, -1).contiguous(),
        torch.tensor([[[3, 4, 0], [1, 5, 8]]])[:, :, None].view(1, 1, 2, 3).int(),
        torch.tensor([[[0, 3]]]).int(),
        block_size=4,
        group=2,
    )


def test_gradients_in_double_precision() -> None:
    q, k, v = (x.double().requires_grad_() for x in inputs(1, 2, 1, 10, 10, 3))
    table = torch.tensor([[[[1, 0, 1], [0, 0, 0], [1, 1, 1]]]]).bool()
    mask = block_mask(table, 4)
    assert torch.autograd.gradcheck(
        lambda *x: block_sparse_attention(*x, mask, causal=True, return_lse=False), (q, k, v)
    )
    full = block_mask(table | torch.eye(3, dtype=torch.bool), 4)
    assert torch.autograd.gradcheck(lambda *x: block_sparse_attention(*x, full, return_lse=True), (q, k, v))
    index = index_with_everything()
    assert torch.autograd.gradcheck(lambda *x: span_attention(*x, index, causal=True), (q, k, v))
    other = SpanIndex.from_spans(spans_of([(3, 4)], [(8, 9)], [(2, 5)]), 4)

    def merged(*x: Tensor) -> Tensor:
        first, second = (span_state(*x, i, causal=False) for i in (index, other))
        return first.merge(second).output()

    assert torch.autograd.gradcheck(merged, (q, k, v))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("block", [64, 16])
def test_gradients_equal_those_of_dense_attention(dtype: torch.dtype, block: int) -> None:
    q, k, v = inputs(2, 4, 2, 150, 130, 24, dtype=dtype)
    n = (-(-150 // block), -(-130 // block))
    table = random_table(7, 2, 4, *n)
    weight = normal(9, 2, 4, 150, 24)
    mine = [x.clone().requires_grad_() for x in (q, k, v)]
    (block_sparse_attention(*mine, block_mask(table, block), causal=True).float() * weight).sum().backward()
    theirs = [x.double().requires_grad_() for x in (q, k, v)]
    dense_mask = table_mask(table, (block, block), 150, 130, True)
    (attention_reference(*theirs, dense_mask, 24**-0.5)[0] * weight).sum().backward()
    for x, y in zip(mine, theirs, strict=True):
        close(x.grad, y.grad, {torch.float32: 2e-5, torch.float16: 1e-2}.get(dtype, 8e-2))


def test_operators_keep_their_contract() -> None:
    for dtype in (torch.float32, torch.float64):
        q, k, v = (x.to(dtype).requires_grad_() for x in inputs(1, 2, 1, 10, 10, 8))
        mask = block_mask(torch.tensor([[[[1, 0, 1], [0, 0, 0], [1, 1, 1]]]]).bool(), 4)
        lists = (mask.kv_num_blocks, mask.kv_indices, mask.kv_num_blocks * 0, mask.kv_indices[..., :0])
        block = torch.ops.sparsebook.block_attention.default
        torch.library.opcheck(block, (q, k, v, *lists, 4, 4, True, 0.3))
        index = index_with_everything()
        span = torch.ops.sparsebook.span_attention.default
        torch.library.opcheck(span, (q, k, v, index.spans, index.columns, index.counts, 4, 2, False, 0, 0.3))


# Hard numbers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_logits_of_ten_thousand(dtype: torch.dtype) -> None:
    q, k, v = inputs(1, 1, 1, 128, 256, 16)
    q = (q * 1e4 / (q @ k.mT).abs().amax(-1, keepdim=True)).to(dtype)
    k, v = k.to(dtype), v.to(dtype)
    assert (q.float() @ k.float().mT).abs().max() > 5e3
    table = random_table(0, 1, 1, 2, 4, density=0.7)
    out, lse = block_sparse_attention(q, k, v, block_mask(table, 64), scale=1.0, return_lse=True)
    mask = table_mask(table, (64, 64), 128, 256, False)
    expected = attention_reference(q.double(), k.double(), v.double(), mask, 1.0)
    close(out, expected[0], max(5e-3, TOLERANCE[dtype]))
    close(lse, expected[1], 1e-5)


def test_logits_of_any_size_stay_finite() -> None:
    q, k, v = inputs(1, 1, 1, 64, 64, 16)
    mask = block_mask(torch.ones(1, 1, 1, 1, dtype=torch.bool), 64)
    for scale in (0.0, 1e-30, 1e4, -1e4, 1e30):
        assert block_sparse_attention(q, k, v, mask, scale=scale).isfinite().all()
    close(block_sparse_attention(q, k, v, mask, scale=0.0), v.mean(2, keepdim=True).expand_as(q))


@pytest.mark.parametrize("block", [64, 16])
def test_nan_goes_where_it_is_attended(block: int) -> None:
    table = torch.tensor([[[[1, 1, 0], [0, 1, 1], [1, 0, 1]]]]).bool()
    mask = table_mask(table, (block, block), 3 * block, 3 * block, False)
    for which in range(3):
        tensors = [x.clone() for x in inputs(1, 2, 2, 3 * block, 3 * block, 16)]
        tensors[which][0, 1, 5, 3] = torch.nan
        out, lse = block_sparse_attention(*tensors, block_mask(table, block), return_lse=True)
        expected, expected_lse, _ = attention_reference(*tensors, mask, 0.25)
        assert torch.equal(out.isnan(), expected.isnan())
        assert torch.equal(lse.isnan(), expected_lse.isnan())
        assert not out[:, 0].isnan().any()
        touched = out[0, 1].isnan().any(-1)
        rows = torch.arange(3 * block) == 5 if which == 0 else mask[0, 0, :, 5]
        assert torch.equal(touched, rows)


# Bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v: (q[:, :, :0], k, v), r"q must have shape .*none of them 0, got \(1, 4, 0, 16\)"),
        (lambda q, k, v: (q, k[:, :, :0], v[:, :, :0]), "k must have shape"),
        (lambda q, k, v: (q[:, :3], k, v), "q must have a multiple of k's 2 heads, got 3"),
        (lambda q, k, v: (q, k[..., :8], v), "k must have batch 1 and dim 16"),
        (lambda q, k, v: (q, k, v[:, :, :5]), "v must have leading axes"),
        (lambda q, k, v: (q, k.half(), v), "k must be float32"),
        (lambda q, k, v: (q.long(), k.long(), v.long()), "q must be float32"),
    ],
)
def test_tensors_that_do_not_fit(change: Any, message: str) -> None:
    mask = block_mask(torch.ones(1, 1, 2, 2, dtype=torch.bool), 64)
    with pytest.raises(ValueError, match=message):
        unchecked(block_sparse_attention)(*change(*inputs(1, 4, 2, 100, 100)), mask)


def with_lists(counts: list[int], blocks: list[list[int]], *full: Any) -> BlockMask:
    mask = block_mask(torch.ones(1, 1, 2, 2, dtype=torch.bool), 64)
    mask.kv_num_blocks, mask.kv_indices = torch.tensor([[counts]]).int(), torch.tensor([[blocks]]).int()
    if full:
        mask.full_kv_num_blocks, mask.full_kv_indices = (torch.tensor([[x]]).int() for x in full)
    return mask


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (with_lists([2, 2], [[0, 2], [0, 1]]), r"kv_indices must lie in \[0, 2\)"),
        (with_lists([2, 2], [[0, -1], [0, 1]]), r"kv_indices must lie in \[0, 2\)"),
        (with_lists([2, 2], [[1, 0], [0, 1]]), "kv_indices must ascend without repetition"),
        (with_lists([2, 2], [[1, 1], [0, 1]]), "kv_indices must ascend without repetition"),
        (with_lists([3, 2], [[0, 1], [0, 1]]), r"kv_num_blocks must lie in \[0, 2\]"),
        (with_lists([-1, 2], [[0, 1], [0, 1]]), r"kv_num_blocks must lie in \[0, 2\]"),
        (with_lists([1, 1], [[0, 1], [0, 1]], [1, 0], [[0, 1], [0, 1]]), "must not hold a block in both"),
        (with_lists([1, 1, 1], [[0, 1]] * 3), "kv_indices must have leading axes"),
        (block_mask(torch.ones(1, 3, 2, 2, dtype=torch.bool), 64), "kv_indices must have leading axes"),
        (block_mask(torch.ones(1, 1, 3, 2, dtype=torch.bool), 64), "block_mask must cover 100 queries"),
        (block_mask(torch.ones(1, 1, 2, 3, dtype=torch.bool), 64), "block_mask must cover 100 keys"),
    ],
)
def test_masks_that_do_not_fit(mask: BlockMask, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        block_sparse_attention(*inputs(1, 2, 2, 100, 100), mask)


def test_what_stands_behind_a_count_is_ignored() -> None:
    q, k, v = inputs(1, 2, 2, 100, 100)
    out = block_sparse_attention(q, k, v, with_lists([1, 0], [[1, 99], [-7, 1]]))
    table = torch.tensor([[[[False, True], [False, False]]]])
    close(out, dense(q, k, v, table_mask(table, (64, 64), 100, 100, False)))


NO_SPAN = [(0, 0)]


@pytest.mark.parametrize(
    ("spans", "columns", "counts", "message"),
    [
        ([[(0, 101)], NO_SPAN], [[0], [0]], [0, 0], "spans must satisfy 0 <= start <= stop <= 100"),
        ([[(-1, 4)], NO_SPAN], [[0], [0]], [0, 0], "spans must satisfy"),
        ([[(5, 4)], NO_SPAN], [[0], [0]], [0, 0], "spans must satisfy"),
        ([[(5, 9), (0, 4)], NO_SPAN], [[0], [0]], [0, 0], "must ascend without overlap"),
        ([[(0, 9), (8, 14)], NO_SPAN], [[0], [0]], [0, 0], "must ascend without overlap"),
        ([[(0, 9), (0, 0), (8, 14)], NO_SPAN], [[0], [0]], [0, 0], "must ascend without overlap"),
        ([NO_SPAN, NO_SPAN], [[100], [0]], [1, 0], r"columns must lie in \[0, 100\)"),
        ([NO_SPAN, NO_SPAN], [[-1], [0]], [1, 0], r"columns must lie in \[0, 100\)"),
        ([NO_SPAN, NO_SPAN], [[2, 1], [0, 0]], [2, 0], "columns must ascend without repetition"),
        ([NO_SPAN, NO_SPAN], [[2, 2], [0, 0]], [2, 0], "columns must ascend without repetition"),
        ([NO_SPAN, NO_SPAN], [[2, 3], [0, 0]], [3, 0], r"counts must lie in \[0, 2\]"),
        ([[(0, 9)], NO_SPAN], [[8], [0]], [1, 0], "columns must lie outside the spans"),
        ([NO_SPAN], [[0], [0]], [0, 0], "spans must have leading axes"),
        ([NO_SPAN, NO_SPAN], [[0]], [0], "columns must have leading axes"),
    ],
)
def test_indices_that_do_not_fit(spans: Any, columns: Any, counts: Any, message: str) -> None:
    index = SpanIndex(
        spans_of(*spans), torch.tensor([[columns]]).int(), torch.tensor([[counts]]).int(), block_size=64
    )
    with pytest.raises(ValueError, match=message):
        span_attention(*inputs(1, 2, 2, 100, 100), index)


def test_other_arguments_that_do_not_fit() -> None:
    q, k, v = inputs(1, 2, 2, 100, 100)
    index = SpanIndex.from_spans(spans_of([(0, 4)], [(0, 4)]), 64)
    with pytest.raises(ValueError, match="query_offset must be at least 0, got -1"):
        span_attention(q, k, v, index, query_offset=-1)
    with pytest.raises(ValueError, match="scale must be finite"):
        span_attention(q, k, v, index, scale=math.nan)
    with pytest.raises(ValueError, match="block_size and group must be at least 1"):
        span_attention(q, k, v, SpanIndex.from_spans(index.spans, 0))
    with pytest.raises(ValueError, match="spans must be int32 or int64"):
        span_attention(q, k, v, SpanIndex.from_spans(index.spans.to(torch.int16), 64))
    with pytest.raises(ValueError, match=r"vertical must lie in \[0, 100\)"):
        vertical_slash_attention(q, k, v, torch.tensor([[[100]]]), torch.tensor([[[0]]]))
    with pytest.raises(ValueError, match="slash must not repeat"):
        vertical_slash_attention(q, k, v, torch.tensor([[[0]]]), torch.tensor([[[4, 0, 4]]]))
    with pytest.raises(ValueError, match="same number of tokens"):
        vertical_slash_attention(q[:, :, :50], k, v, torch.tensor([[[0]]]), torch.tensor([[[0]]]))
    with pytest.raises(ValueError, match=r"pages must lie in \[0, 7\) or be -1"):
        paged_attention(q[:, :, :1], k, v, torch.tensor([[[7]]]), page_size=16)
    with pytest.raises(ValueError, match="pages must not repeat"):
        paged_attention(q[:, :, :1], k, v, torch.tensor([[[1, 2, 1]]]), page_size=16)
    with pytest.raises(ValueError, match=r"length in \[1, 100\]"):
        paged_attention(q[:, :, :1], k, v, torch.tensor([[[1]]]), page_size=16, length=101)
    with pytest.raises(ValueError, match="pages must have shape"):
        paged_attention(q[:, :, :1], k, v, torch.zeros(1, 3, 1, dtype=torch.int64), page_size=16)
    with pytest.raises(ValueError, match="must be a BlockMask"):
        unchecked(block_sparse_attention)(q, k, v, index)


@pytest.mark.slow
def test_a_processor_without_wide_vectors(tmp_path: Path) -> None:
    """The code that other machines compile: nothing beyond what every 64-bit processor has."""
    script = (
        "import torch\n"
        "from sparsebook.kernels.block_attention import SpanIndex, cpu, span_attention\n"
        "from torch.nn.functional import scaled_dot_product_attention\n"
        "assert cpu.WIDTH == 4\n"
        "q, k, v = torch.randn(3, 1, 2, 70, 20)\n"
        "index = SpanIndex.from_spans(torch.tensor([[[[[0, 70]]]]]), 70)\n"
        "expected = scaled_dot_product_attention(q, k, v, is_causal=True)\n"
        "torch.testing.assert_close(span_attention(q, k, v, index), expected)\n"
    )
    target = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    target |= {"NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_OPT": "1"}  # a quick compilation
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | target)


def test_a_number_of_threads_that_was_set_stays() -> None:
    """In a process of its own: Numba's pool sets OpenMP's threads, and so torch's, when it is first asked."""
    script = (
        "import torch\n"
        "torch.set_num_threads(1)\n"
        "from sparsebook.kernels.block_attention import SpanIndex, span_attention\n"
        "q = torch.randn(1, 1, 8, 16)\n"
        "span_attention(q, q, q, SpanIndex.from_spans(torch.tensor([[[[[0, 8]]]]]), 8))\n"
        "assert torch.get_num_threads() == 1\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_an_unchecked_index_stays_in_its_bounds() -> None:
    """The operator checks nothing: keys listed more often than there are keys must not write beyond."""
    q, k, v = inputs(queries=8, keys=8)
    spans = torch.tensor([-5, 99]).expand(1, 1, 1, 50, 2).contiguous()
    columns = torch.arange(8).repeat(50)[None, None, None].int()
    counts = torch.tensor([[[400]]])
    out, _, _ = torch.ops.sparsebook.span_attention(q, k, v, spans, columns, counts, 8, 1, False, 0, 0.25)
    close(out, functional.scaled_dot_product_attention(q, k, v, scale=0.25), 2e-6)


def test_the_same_result_for_any_number_of_threads() -> None:
    q, k, v = inputs(2, 4, 2, 500, 500, 32)
    mask = block_mask(random_table(2, 2, 4, 8, 8), 64)
    before = torch.get_num_threads()
    try:
        outs = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            outs.append(block_sparse_attention(q, k, v, mask, causal=True))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*outs)
