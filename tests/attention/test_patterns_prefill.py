"""Prefill patterns against masks built by loops from their definitions, and what must never happen."""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sparsebook.attention import patterns
from sparsebook.attention.patterns import (
    arguments,
    block_maxima,
    block_scores,
    block_table_pattern,
    block_topk_for_sparsity,
    block_topk_indices,
    block_topk_pattern,
    block_topk_sparsity,
    diagonal_sums,
    difference_mask,
    flexprefill_block_pattern,
    flexprefill_counts,
    flexprefill_divergence,
    flexprefill_indices,
    flexprefill_pattern,
    line_scores,
    pattern_mask,
    pooled_query_scores,
    streaming_pattern,
    stripes,
    topcdf_mask,
    topk_mask,
    union,
    vertical_slash_indices,
    vertical_slash_pattern,
)
from sparsebook.kernels.block_attention import SpanIndex, span_attention

Tensors = tuple[Tensor, Tensor, Tensor]
LENGTHS = (1, 2, 5, 31, 64, 70)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def inputs(
    length: int, heads: int = 4, kv_heads: int = 2, batch: int = 1, dim: int = 8, **kind: Any
) -> Tensors:
    sizes = ((0, heads), (1, kv_heads), (2, kv_heads))
    return tuple(normal(seed, batch, count, length, dim, **kind) for seed, count in sizes)  # type: ignore[return-value]


def dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """PyTorch's attention under a mask, or causal, with repeated keys and values."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    if mask is None:
        return scaled_dot_product_attention(q, k, v, is_causal=True)
    return scaled_dot_product_attention(q, k, v, attn_mask=mask.expand(*q.shape[:3], k.shape[2]))


def weights(q: Tensor, k: Tensor) -> Tensor:
    """Causal attention weights, head by head."""
    logits = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT * q.shape[-1] ** -0.5
    return logits.masked_fill(torch.ones(q.shape[2], k.shape[2]).triu(1).bool(), -math.inf).softmax(-1)


def top(scores: list[float], count: int) -> set[int]:
    """The largest entries, ties to the lowest index."""
    return set(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count])


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


def same_mask(index: SpanIndex, expected: Tensor, q: Tensor) -> None:
    assert torch.equal(pattern_mask(index, q.shape[2]).expand(*q.shape[:3], q.shape[2]), expected)


# By loops ------------------------------------------------------------------------------------------------


def swept(n: int, vertical: set[int], slash: set[int], block: int) -> Tensor:
    """Keys of each block of queries on a vertical, or on a slash of any row of the block."""
    mask = torch.zeros(n, n, dtype=torch.bool)
    for first in range(0, n, block):
        rows = range(first, min(first + block, n))
        keys = vertical | {row - offset for row in rows for offset in slash}
        for row in rows:
            for key in keys:
                if 0 <= key <= row:
                    mask[row, key] = True
    return mask


def window_sums(head: Tensor, window: int) -> tuple[list[float], list[float]]:
    """Sums of the last rows of a head's attention per key and per offset."""
    n = head.shape[0]
    vertical, slash = [0.0] * n, [0.0] * n
    for row in range(max(0, n - window), n):
        for key in range(row + 1):
            vertical[key] += float(head[row, key])
            slash[row - key] += float(head[row, key])
    return vertical, slash


def forced(scores: list[float], count: int) -> list[float]:
    return [math.inf] * min(count, len(scores)) + scores[count:]


def vertical_slash_by_loops(q: Tensor, k: Tensor, counts: Any, window: int, block: int) -> Tensor:
    """`counts(vertical, slash, window)` says how many of each; 2 sinks and 3 nearest offsets are forced."""
    mask = torch.zeros(*q.shape[:3], q.shape[2], dtype=torch.bool)
    attention = weights(q, k)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            vertical, slash = window_sums(attention[b, h], window)
            n_vertical, n_slash = counts(vertical, slash, min(window, q.shape[2]))
            chosen = top(forced(vertical, 2), n_vertical), top(forced(slash, 3), n_slash)
            mask[b, h] = swept(q.shape[2], *chosen, block)
    return mask


def block_topk_by_loops(q: Tensor, k: Tensor, size: int, count: int) -> Tensor:
    mask = torch.zeros(*q.shape[:3], q.shape[2], dtype=torch.bool)
    n = -(-q.shape[2] // size)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            keys = k[b, h // (q.shape[1] // k.shape[1])]
            for i in range(n):
                mean = q[b, h, i * size : (i + 1) * size].sum(0) / size
                scores = [float(mean @ (keys[j * size : (j + 1) * size].sum(0) / size)) for j in range(i + 1)]
                for j in {0, max(i - 1, 0), i}:
                    scores[j] = math.inf
                for j in top(scores, count):
                    mask[b, h, i * size : (i + 1) * size, j * size : (j + 1) * size] = True
    return mask.tril()


def covering(shares: list[float], target: float) -> int:
    total, count = 0.0, 0
    for share in sorted(shares, reverse=True):
        total += share
        count += total <= target
    return count + 1


# Equality with the definitions ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_vertical_slash_is_its_definition(length: int, kv_heads: int) -> None:
    q, k, v = inputs(length, kv_heads=kv_heads)
    index = vertical_slash_pattern(
        q, k, n_vertical=5, n_slash=6, window=16, n_sink=2, n_local=3, block_size=8
    )
    mask = vertical_slash_by_loops(q, k, lambda *_: (5, 6), 16, 8)
    same_mask(index, mask, q)
    close(span_attention(q, k, v, index), dense(q, k, v, mask))
    fast = span_attention(q.float(), k.float(), v.float(), index)
    close(fast, dense(q, k, v, mask), 1e-5)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.8, 1.0])
def test_flexprefill_is_its_definition(length: int, alpha: float) -> None:
    q, k, v = inputs(length)

    def counts(vertical: list[float], slash: list[float], window: int) -> tuple[int, int]:
        if alpha == 1:
            return length, length
        found = [covering([x / window for x in scores], alpha) for scores in (vertical, slash)]
        return max(4, found[0]), max(4, found[1])

    index = flexprefill_pattern(q, k, alpha=alpha, min_budget=4, window=16, n_sink=2, n_local=3, block_size=8)
    mask = vertical_slash_by_loops(q, k, counts, 16, 8)
    same_mask(index, mask, q)
    close(span_attention(q, k, v, index), dense(q, k, v, mask))


@pytest.mark.parametrize("length", LENGTHS)
def test_block_topk_is_its_definition(length: int) -> None:
    q, k, v = inputs(length)
    index = block_topk_pattern(q, k, block_size=8, top_k=4)
    mask = block_topk_by_loops(q, k, 8, 4)
    same_mask(index, mask, q)
    close(span_attention(q, k, v, index), dense(q, k, v, mask))
    close(span_attention(q.float(), k.float(), v.float(), index), dense(q, k, v, mask), 1e-5)


def flexprefill_block_by_loops(
    q: Tensor, k: Tensor, gamma: float, tau: float, fewest: int, size: int
) -> Tensor:
    """The block-level original, one head at a time, for lengths that are a multiple of the block."""
    length, n = q.shape[2], q.shape[2] // size
    mask = torch.zeros(*q.shape[:3], length, dtype=torch.bool)
    attention = weights(q, k)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            keys = k[b, h // (q.shape[1] // k.shape[1])]
            lines = [[x / size for x in scores] for scores in window_sums(attention[b, h], size)]
            pooled = [[sum(line[j * size : (j + 1) * size]) for j in range(n)] for line in lines]
            means = [x.view(n, size, -1).mean(1) for x in (q[b, h], keys)]
            logits = means[0] @ means[1].T * q.shape[3] ** -0.5
            guess, truth = logits[-1].softmax(-1), torch.tensor(pooled[0], dtype=torch.float64)
            middle = (guess + truth) / 2
            divergence = sum((p * (p / middle).log()).sum() / 2 for p in (guess, truth)).sqrt()
            counts = [max(fewest, covering(line, gamma) // size + 1) for line in lines]
            table = torch.zeros(n, n, dtype=torch.bool)
            if divergence < tau:
                counts = [fewest, fewest]
                rows = logits.masked_fill(torch.ones(n, n).triu(1).bool(), -math.inf).softmax(-1).flatten()
                total = 0.0
                for entry in sorted(range(n * n), key=lambda i: (-float(rows[i]), i)):
                    total += float(rows[entry])
                    if total > gamma * n:
                        break
                    table[entry // n, entry % n] = True
            chosen = [top([math.inf, *line[1:]], count) for line, count in zip(pooled, counts, strict=True)]
            for i in range(n):
                for j in range(i + 1):
                    table[i, j] |= j in chosen[0] or i - j in chosen[1]
            mask[b, h] = table.repeat_interleave(size, 0).repeat_interleave(size, 1)
    return mask.tril()


@pytest.mark.parametrize("gamma", [0.2, 0.6, 0.95])
@pytest.mark.parametrize("tau", [0.0, 0.2, 9.0])
def test_flexprefill_by_blocks_is_its_definition(gamma: float, tau: float) -> None:
    q, k, v = inputs(72, batch=2)
    # Flat heads agree with their pooled scores, peaked ones do not.
    q = q * torch.tensor([0.5, 3.0, 5.0, 8.0], dtype=q.dtype)[:, None, None]
    index = flexprefill_block_pattern(q, k, gamma=gamma, tau_js=tau, min_budget=15, block_size=8)
    mask = flexprefill_block_by_loops(q, k, gamma, tau, 2, 8)
    same_mask(index, mask, q)
    close(span_attention(q, k, v, index), dense(q, k, v, mask))
    aware = flexprefill_divergence(q, k, block_size=8) < 0.2
    assert 0 < int(aware.sum()) < 8  # both kinds of head are met at 0.2


@pytest.mark.parametrize("length", [17, 23, 70])
def test_flexprefill_by_blocks_takes_any_length(length: int) -> None:
    q, k, v = inputs(length)
    index = flexprefill_block_pattern(q, k, gamma=0.5, tau_js=0.2, min_budget=8, block_size=8)
    close(span_attention(q, k, v, index), dense(q, k, v, pattern_mask(index, length)))
    mask = pattern_mask(index, length)
    for i in range(0, length, 8):  # the first block and the diagonal's are always there
        assert mask[:, :, i, 0].all()
        assert mask[:, :, min(i + 7, length - 1), i].all()


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("causal", [True, False])
def test_streaming_is_its_definition(length: int, causal: bool) -> None:
    for n_sink, n_local, block in ((0, 1, 1), (3, 4, 1), (2, 5, 8), (9, 2, 4), (100, 1, 8), (2, 100, 8)):
        index = streaming_pattern(length, n_sink=n_sink, n_local=n_local, block_size=block, causal=causal)
        expected = torch.zeros(length, length, dtype=torch.bool)
        for i in range(length):
            rows = range(i - i % block, min(i - i % block + block, length))
            for j in range(length):
                near = any(0 <= row - j < n_local or (not causal and abs(row - j) < n_local) for row in rows)
                expected[i, j] = (j < n_sink or near) and (j <= i or not causal)
        assert torch.equal(pattern_mask(index, length, causal=causal)[0, 0], expected)


@settings(max_examples=15, deadline=None)
@given(
    length=st.integers(1, 90),
    group=st.integers(1, 40),
    share=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    block=st.sampled_from([1, 4, 6, 16]),
    n_sink=st.integers(0, 20),
    n_local=st.integers(1, 30),
)
def test_a_union_holds_what_either_holds(length, group, share, block, n_sink, n_local) -> None:
    chance = torch.rand(2, 3, -(-length // group), length, generator=torch.Generator().manual_seed(length))
    first = stripes(chance < share, group_size=group)
    second = streaming_pattern(length, n_sink=n_sink, n_local=n_local, block_size=block)
    table = chance[:1, :, :, :1].new_zeros(1, 3, -(-length // block), -(-length // block)) == 0
    third = block_table_pattern(table.tril(-2), length, block_size=block)
    for a, b in ((first, second), (union(second, first, length), third)):
        both = union(a, b, length)
        both.check(2, 3, length, length)
        expected = pattern_mask(a, length, causal=False) | pattern_mask(b, length, causal=False)
        assert torch.equal(pattern_mask(both, length, causal=False), expected)
    assert torch.equal(pattern_mask(first, length), first.dense_mask(length, length, causal=True))


def test_forced_regions_reach_every_pattern() -> None:
    q, k, v = inputs(70)
    region = streaming_pattern(70, n_sink=11, n_local=9, block_size=16)
    made = {
        "vertical_slash": lambda **more: vertical_slash_pattern(
            q, k, n_vertical=5, n_slash=6, n_local=2, **more
        ),
        "block_topk": lambda **more: block_topk_pattern(q, k, block_size=8, top_k=3, **more),
        "flexprefill": lambda **more: flexprefill_pattern(q, k, alpha=0.2, min_budget=3, n_local=2, **more),
        "flexprefill_block": lambda **more: flexprefill_block_pattern(
            q, k, gamma=0.4, min_budget=1, block_size=8, **more
        ),
        "streaming": lambda **more: streaming_pattern(70, n_sink=1, n_local=3, block_size=8, **more),
        "stripes": lambda **more: stripes(normal(3, 1, 4, 5, 70) > 1, group_size=16, **more),
        "table": lambda **more: block_table_pattern(normal(3, 1, 4, 9, 9) > 1, 70, block_size=8, **more),
    }
    for make in made.values():
        index = make(forced=region)
        expected = pattern_mask(make(), 70) | pattern_mask(region, 70)
        same_mask(index, expected.expand(1, 4, 70, 70), q)
        close(span_attention(q, k, v, index), dense(q, k, v, expected))


# Budgets -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 3, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_full_budget_is_dense_attention(length: int, dtype: torch.dtype) -> None:
    q, k, v = inputs(length, batch=2, dtype=dtype)
    full = {
        "verticals": vertical_slash_pattern(q, k, n_vertical=length, n_slash=1, window=16),
        "slashes": vertical_slash_pattern(q, k, n_vertical=1, n_slash=length + 7, window=500),
        "blocks": block_topk_pattern(q, k, top_k=max(3, -(-length // 16))),
        "flexprefill": flexprefill_pattern(q, k, alpha=1.0, min_budget=1),
        "flexprefill budget": flexprefill_pattern(q, k, alpha=0.0, min_budget=length, window=16),
        "flexprefill blocks": flexprefill_block_pattern(q, k, gamma=1.0, min_budget=1, block_size=16),
        "flexprefill block budget": flexprefill_block_pattern(
            q, k, gamma=0.1, min_budget=length, block_size=16
        ),
        "streaming": streaming_pattern(length, n_sink=0, n_local=length),
        "stripes": stripes(torch.ones(1, 1, 1, length, dtype=torch.bool), group_size=length),
    }
    expected = dense(q.double(), k.double(), v.double())
    for name, index in full.items():
        assert index.density(length, length, causal=True) == pytest.approx(1, abs=1e-12), name
        out = span_attention(q, k, v, index)
        close(out, expected, 2e-2 if dtype == torch.bfloat16 else 1e-5)


def test_alpha_zero_is_vertical_slash() -> None:
    q, k, _ = inputs(120, batch=2)
    lines = flexprefill_indices(q, k, alpha=0.0, min_budget=9, window=32, n_local=4)
    expected = vertical_slash_indices(q, k, n_vertical=9, n_slash=9, window=32, n_local=4)
    for actual, wanted in zip(lines, expected, strict=True):
        assert torch.equal(actual, wanted)


def test_more_coverage_never_selects_fewer() -> None:
    q, k, _ = inputs(120, batch=2)
    counts = [
        torch.stack(flexprefill_counts(q, k, alpha=alpha, min_budget=9, window=32))
        for alpha in (0.0, 0.2, 0.5, 0.8, 0.99, 1.0)
    ]
    assert all(bool((before <= after).all()) for before, after in pairwise(counts))
    assert counts[0].unique().tolist() == [9]
    assert counts[-1].unique().tolist() == [120]
    density = [
        flexprefill_block_pattern(q, k, gamma=gamma, tau_js=0.2, min_budget=9, block_size=8).density(
            120, 120, causal=True
        )
        for gamma in (0.1, 0.5, 0.9, 0.99)
    ]
    assert density == sorted(density)


def test_ragged_counts_pad_with_minus_one() -> None:
    q, k, _ = inputs(120)
    q = q * torch.tensor([0.1, 1.0, 3.0, 9.0], dtype=q.dtype)[:, None, None]
    options = {"alpha": 0.7, "min_budget": 5, "window": 32}
    counts = flexprefill_counts(q, k, **options)
    lines = flexprefill_indices(q, k, **options, n_local=4)
    assert counts[0].unique().numel() > 1
    for count, line in zip(counts, lines, strict=True):
        assert torch.equal((line >= 0).sum(-1), count)
        assert line.shape[-1] == int(count.max())


@pytest.mark.parametrize(
    ("top_k", "sparsity"),
    [(26, 0.950), (35, 0.933), (53, 0.899), (71, 0.866), (108, 0.800), (188, 0.667), (300, 0.500)],
)
def test_sparsity_of_blocks_as_printed(top_k: int, sparsity: float) -> None:
    assert block_topk_sparsity(16384, 16, top_k) == pytest.approx(sparsity, abs=5e-4)
    assert block_topk_for_sparsity(16384, 16, sparsity) == top_k


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 3000), block=st.integers(1, 64), top_k=st.integers(3, 60))
def test_sparsity_of_blocks_counts_blocks(length: int, block: int, top_k: int) -> None:
    n = -(-length // block)
    blocks = sum(min(i + 1, top_k) for i in range(n))
    sparsity = block_topk_sparsity(length, block, top_k)
    assert sparsity == pytest.approx(1 - blocks / (n * (n + 1) / 2), abs=1e-12)
    if top_k <= n:
        assert block_topk_for_sparsity(length, block, sparsity) == top_k


@settings(max_examples=10, deadline=None)
@given(
    length=st.integers(1, 150),
    heads=st.sampled_from([(1, 1), (3, 1), (4, 2)]),
    n_vertical=st.integers(1, 40),
    n_slash=st.integers(1, 40),
    top_k=st.integers(3, 20),
    window=st.integers(1, 200),
    block=st.integers(1, 70),
    alpha=st.floats(0, 1),
)
def test_every_pattern_is_valid_and_keeps_its_own_token(
    length, heads, n_vertical, n_slash, top_k, window, block, alpha
) -> None:
    q, k, _ = inputs(length, *heads, dtype=torch.float32)
    lines = {"n_sink": 1, "n_local": 1, "window": window, "block_size": block}
    found = [
        vertical_slash_pattern(q, k, n_vertical=n_vertical, n_slash=n_slash, **lines),
        flexprefill_pattern(q, k, alpha=alpha, min_budget=n_vertical, **lines),
        block_topk_pattern(q, k, block_size=block, top_k=top_k),
        flexprefill_block_pattern(q, k, gamma=max(alpha, 0.01), min_budget=n_slash, block_size=block),
    ]
    for index in found:
        index.check(1, heads[0], length, length)
        mask = pattern_mask(index, length)
        assert mask.diagonal(dim1=-2, dim2=-1).all()
        assert mask[..., 0].all()
        pairs = mask.expand(1, heads[0], length, length).double().sum((-2, -1)).mean()
        assert index.density(length, length, causal=True) == pytest.approx(
            float(pairs) / (length * (length + 1) / 2), rel=1e-9
        )


# What is found -------------------------------------------------------------------------------------------

COLUMN, OFFSET = 37, 129


def planted(seed: int, column: bool = True, offset: bool = True) -> tuple[Tensor, Tensor]:
    """Queries that match the key OFFSET before them, and keys of which one, COLUMN, matches every query."""
    length, dim = 400, 64
    code = torch.nn.functional.normalize(normal(seed, 1, 1, length, dim), dim=-1)
    common = torch.nn.functional.normalize(normal(seed + 100, dim), dim=-1)
    q = normal(seed + 200, 1, 1, length, dim) * 2 + (40 * common if column else 0)
    if offset:
        q[:, :, OFFSET:] += 40 * code[:, :, :-OFFSET]
    k = code.clone()
    if column:
        k[:, :, COLUMN] += common
    return q, k


@pytest.mark.parametrize("structure", ["both", "column", "offset", "none"])
def test_vertical_slash_finds_what_is_planted_and_no_more(structure: str) -> None:
    wanted = {"column": structure in ("both", "column"), "offset": structure in ("both", "offset")}
    found = {"column": 0, "offset": 0}
    for seed in range(8):
        q, k = planted(seed, **wanted)
        vertical, slash = vertical_slash_indices(q, k, n_vertical=6, n_slash=20, window=64, n_local=16)
        found["column"] += COLUMN in vertical.flatten().tolist()
        found["offset"] += OFFSET in slash.flatten().tolist()
    for line, there in wanted.items():
        # Unplanted, a line is one of 400 competing for 2 or 4 places.
        assert found[line] == 8 if there else found[line] <= 2


def test_vertical_slash_is_blind_before_its_window() -> None:
    """The column is planted for early queries only: the window of the last ones cannot see it."""
    q, k = planted(0, column=False, offset=False)
    common = torch.nn.functional.normalize(normal(100, 64), dim=-1)
    q[:, :, :300] += 40 * common
    k[:, :, COLUMN] += common
    vertical, _ = vertical_slash_indices(q, k, n_vertical=6, n_slash=20, window=64, n_local=16)
    assert COLUMN not in vertical.flatten().tolist()
    vertical, _ = vertical_slash_indices(q, k, n_vertical=6, n_slash=20, window=400, n_local=16)
    assert COLUMN in vertical.flatten().tolist()


def test_block_topk_finds_planted_blocks() -> None:
    q, k, _ = inputs(256, heads=2, kv_heads=1, dim=32)
    direction = torch.nn.functional.normalize(normal(9, 4, 32), dim=-1)
    pairs = {9: 3, 12: 7, 15: 2}  # query block: key block
    for number, (i, j) in enumerate(pairs.items()):
        q[:, :, i * 16 : (i + 1) * 16] += 20 * direction[number]
        k[:, :, j * 16 : (j + 1) * 16] += 20 * direction[number]
    found = block_topk_indices(q, k, block_size=16, top_k=4)
    assert all(j in found[0, h, i].tolist() for i, j in pairs.items() for h in range(2))
    plain = block_topk_indices(*inputs(256, heads=2, kv_heads=1, dim=32)[:2], block_size=16, top_k=4)
    assert sum(j in plain[0, h, i].tolist() for i, j in pairs.items() for h in range(2)) <= 2


def test_block_topk_forces_the_diagonal_its_neighbour_and_the_first() -> None:
    q, k, _ = inputs(200)
    found = block_topk_indices(q, k, top_k=5)
    assert found.shape == (1, 4, 13, 5)
    for i in range(13):
        for h in range(4):
            row = [j for j in found[0, h, i].tolist() if j >= 0]
            assert row == sorted(set(row))
            assert len(row) == min(5, i + 1)
            assert {0, max(i - 1, 0), i} <= set(row)


def test_blocks_without_causality_are_ranked_freely() -> None:
    q, k, _ = inputs(64)
    more = normal(5, 1, 2, 40, 8)
    k = torch.cat([k, more], 2)
    scores = block_scores(q, k, block_size=8)
    assert scores.shape == (1, 4, 8, 13)
    found = block_topk_indices(q, k, block_size=8, top_k=2, causal=False)
    for h in range(4):
        for i in range(8):
            assert set(found[0, h, i].tolist()) == top(scores[0, h, i].tolist(), 2)
    index = block_topk_pattern(q, k, block_size=8, top_k=2, causal=False)
    assert index.density(64, 104, causal=False) == pytest.approx(2 / 13)


def test_blocks_can_be_ranked_by_single_keys() -> None:
    """The same pooled queries as stripes have: the block that holds the best key is found."""
    q, k, _ = inputs(70)
    logits = pooled_query_scores(q, k, block_size=8)
    means = [q[:, :, i : i + 8].mean(2) for i in range(0, 70, 8)]  # the short block: its own mean
    expected = torch.stack(means, 2) @ k.repeat_interleave(2, 1).mT * 8**-0.5
    close(logits, expected)
    maxima = block_maxima(logits, 8)
    close(maxima, torch.stack([logits[..., j : j + 8].amax(-1) for j in range(0, 70, 8)], -1))
    found = block_topk_indices(q, k, block_size=8, top_k=4, scores=maxima)
    best = maxima[0, :, 8, 1:7].argmax(-1) + 1
    assert all(int(best[h]) in found[0, h, 8].tolist() for h in range(4))


def test_equal_scores_go_to_the_lowest_index() -> None:
    q, k = torch.zeros(1, 2, 64, 8), torch.zeros(1, 1, 64, 8)
    assert block_topk_indices(q, k, block_size=8, top_k=5)[0, 0, 7].tolist() == [0, 1, 2, 6, 7]
    assert topk_mask(q, k, 3)[0, 0, 50].nonzero().flatten().tolist() == [0, 1, 2]
    assert topcdf_mask(q, k, 0.1)[0, 0, 9].nonzero().flatten().tolist() == [0]
    found = vertical_slash_indices(q, k, n_vertical=6, n_slash=6, window=1, n_sink=2, n_local=2)
    for lines, kept in zip(found, ([0, 1], [0, 1]), strict=True):  # one query: every key has the same weight
        assert lines[0, 0].tolist() == [*kept, 2, 3, 4, 5]
    q, k, _ = inputs(90)
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            *(vertical_slash_indices(q, k, n_vertical=9, n_slash=9) for _ in range(2)), strict=True
        )
    )


def test_heads_taken_part_by_part_give_the_same_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, _ = inputs(90, batch=3, kv_heads=2)
    together = line_scores(q, k, window=32)
    monkeypatch.setitem(arguments._HELD, "cpu", 1)
    for part, whole in zip(line_scores(q, k, window=32), together, strict=True):
        close(part, whole, 1e-12)
        close(whole.sum(-1), torch.full((3, 4), 32.0))


def test_long_offsets_have_fewer_terms() -> None:
    scores = diagonal_sums(torch.ones(1, 1, 4, 10).tril(6))
    assert scores[0, 0].tolist() == [4.0] * 7 + [3.0, 2.0, 1.0]
    scores = diagonal_sums(torch.ones(1, 1, 1, 5))
    assert scores[0, 0].tolist() == [1.0] * 5


# Oracles -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 33])
def test_oracles_are_their_definitions(length: int) -> None:
    q, k, _ = inputs(length, batch=2)
    attention = weights(q, k)
    logits = q @ k.repeat_interleave(2, 1).mT * 8**-0.5
    topk, cdf, near = topk_mask(q, k, 4), topcdf_mask(q, k, 0.7), difference_mask(q, k, 1.5)
    for b in range(2):
        for h in range(4):
            for i in range(length):
                row = attention[b, h, i, : i + 1].tolist()
                assert set(topk[b, h, i].nonzero().flatten().tolist()) == top(row, 4)
                fewest = next(n for n in range(1, i + 2) if sum(sorted(row)[-n:]) >= 0.7)
                assert set(cdf[b, h, i].nonzero().flatten().tolist()) == top(row, fewest)
                seen = logits[b, h, i, : i + 1]
                expected = (seen >= seen.max() - 1.5).nonzero().flatten().tolist()
                assert near[b, h, i].nonzero().flatten().tolist() == expected


def test_oracles_reach_from_one_key_to_all() -> None:
    q, k, _ = inputs(40)
    causal = torch.ones(40, 40).tril().bool().expand(1, 4, 40, 40)
    for everything in (topk_mask(q, k, 40), topcdf_mask(q, k, 1.0), difference_mask(q, k, math.inf)):
        assert torch.equal(everything, causal)
    for single in (topk_mask(q, k, 1), topcdf_mask(q, k, 1e-9), difference_mask(q, k, 0.0)):
        assert bool((single.sum(-1) == 1).all())
        assert torch.equal(single, topk_mask(q, k, 1))
    assert topk_mask(q, k[:, :, :30], 5, causal=False).sum(-1).unique().tolist() == [5]


# Bad input -----------------------------------------------------------------------------------------------

Q, K, _ = inputs(40)
NAN = K.clone()
NAN[0, 1, 7, 3] = math.nan
CALLS = {
    "vertical_slash": lambda q, k: vertical_slash_indices(q, k, n_vertical=3, n_slash=3),
    "flexprefill": lambda q, k: flexprefill_pattern(q, k, alpha=0.5, min_budget=3),
    "flexprefill_block": lambda q, k: flexprefill_block_pattern(q, k, gamma=0.5, min_budget=3),
    "block_topk": lambda q, k: block_topk_pattern(q, k, top_k=3),
    "pooled": lambda q, k: pooled_query_scores(q, k, block_size=8),
    "topk": lambda q, k: topk_mask(q, k, 3),
    "topcdf": lambda q, k: topcdf_mask(q, k, 0.5),
    "difference": lambda q, k: difference_mask(q, k, 1.0),
}


@pytest.fixture
def plain() -> Iterator[None]:
    """No run-time type checker, which would speak before the library's own checks."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("q", "k", "message"),
    [
        (Q, NAN, "k must be finite"),
        (Q * math.inf, K, "q must be finite"),
        (Q[:, :, :0], K[:, :, :0], "q must be floats of shape"),
        (Q[:, :3], K, "q must have a multiple of k's 2 heads, got 3"),
        (Q, K[..., :4], "k must have batch 1 and dim 8 like q"),
        (Q, K.float(), "k must be torch.float64 on cpu like q"),
        (Q.long(), K, "q must be floats"),
        (Q[0], K, "q must be floats of shape"),
    ],
)
def test_tensors_that_do_not_fit(name: str, q: Tensor, k: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CALLS[name](q, k)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("name", sorted(set(CALLS) - {"pooled"}))
def test_causal_patterns_want_the_same_tokens(name: str) -> None:
    with pytest.raises(ValueError, match="q and k must have the same number of tokens, got 40 and 39"):
        CALLS[name](Q, K[:, :, :39])


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: patterns.block_topk_indices(Q, K, top_k=2), "top_k must be an integer of at least 3, got 2"),
        (lambda: patterns.block_topk_indices(Q, K, top_k=0, causal=False), "top_k must be"),
        (lambda: patterns.block_topk_indices(Q, K, top_k=3.5), "top_k must be"),
        (lambda: patterns.block_topk_indices(Q, K, top_k=3, block_size=0), "block_size must be"),
        (lambda: patterns.block_topk_indices(Q, K, top_k=3, scores=Q), "scores must have shape"),
        (lambda: patterns.block_topk_sparsity(40, 8, 2), "top_k must be"),
        (lambda: patterns.block_topk_for_sparsity(40, 8, 1.0), "sparsity must lie in"),
        (lambda: patterns.block_topk_for_sparsity(40, 8, 0.9), "sparsity must be at most"),
        (lambda: patterns.vertical_slash_indices(Q, K, n_vertical=0, n_slash=1), "n_vertical must be"),
        (lambda: patterns.vertical_slash_indices(Q, K, n_vertical=1, n_slash=0), "n_slash must be"),
        (lambda: patterns.vertical_slash_indices(Q, K, n_vertical=1, n_slash=1, window=0), "window must be"),
        (lambda: patterns.vertical_slash_indices(Q, K, n_vertical=1, n_slash=1, n_sink=-1), "n_sink must be"),
        (lambda: patterns.vertical_slash_indices(Q, K, n_vertical=1, n_slash=1, n_local=-1), "n_local must"),
        (
            lambda: patterns.vertical_slash_indices(Q, K, n_vertical=1, n_slash=1, scale=math.nan),
            "scale must",
        ),
        (lambda: patterns.flexprefill_counts(Q, K, alpha=1.5), "alpha must lie in"),
        (lambda: patterns.flexprefill_counts(Q, K, alpha=math.nan), "alpha must lie in"),
        (lambda: patterns.flexprefill_pattern(Q, K, alpha=0.5, min_budget=0), "min_budget must be"),
        (lambda: patterns.flexprefill_block_pattern(Q, K, gamma=0.0), "gamma must lie in"),
        (lambda: patterns.flexprefill_block_pattern(Q, K, gamma=0.5, tau_js=-1.0), "tau_js must be"),
        (
            lambda: patterns.flexprefill_block_pattern(Q, K, gamma=0.5, min_budget=8, max_budget=4),
            "max_budget",
        ),
        (lambda: patterns.streaming_pattern(0, n_sink=1, n_local=1), "n_tokens must be"),
        (lambda: patterns.streaming_pattern(9, n_sink=-1, n_local=1), "n_sink must be"),
        (lambda: patterns.streaming_pattern(9, n_sink=1, n_local=0), "n_local must be"),
        (lambda: patterns.stripes(Q > 0, group_size=0), "group_size must be"),
        (lambda: patterns.stripes(Q, group_size=4), "keep must be boolean"),
        (lambda: patterns.block_table_pattern(Q > 0, 40, block_size=8), "table must be boolean of shape"),
        (lambda: patterns.topk_mask(Q, K, 0), "n must be an integer of at least 1"),
        (lambda: patterns.topcdf_mask(Q, K, 0.0), "p must lie in"),
        (lambda: patterns.difference_mask(Q, K, -1.0), "theta must be at least 0"),
        (lambda: patterns.difference_mask(Q, K, math.nan), "theta must be at least 0"),
        (lambda: patterns.pattern_mask(streaming_pattern(40, n_sink=1, n_local=1), 200), "spans must have"),
        (
            lambda: patterns.union(
                streaming_pattern(40, n_sink=1, n_local=1), streaming_pattern(300, n_sink=1, n_local=1), 40
            ),
            "second must have 1 blocks of 64 queries for 40 queries, got 5",
        ),
    ],
)
def test_values_out_of_range(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_large_logits_in_half_precision_stay_finite() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        q, k, v = inputs(100, dtype=dtype)
        q, k = q * 100, k * 100
        for index in (
            vertical_slash_pattern(q, k, n_vertical=9, n_slash=9, window=32),
            block_topk_pattern(q, k, top_k=3),
            flexprefill_pattern(q, k, alpha=0.5, min_budget=4),
            flexprefill_block_pattern(q, k, gamma=0.5, min_budget=4, block_size=16),
        ):
            assert bool(span_attention(q, k, v, index).isfinite().all())
