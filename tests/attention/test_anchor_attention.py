"""AnchorAttention against the explicit mask of its definition, closed forms and planted keys."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from sparsebook.attention.anchor_attention import (
    anchor_attention,
    anchor_attention_reference,
    anchor_mask_reference,
    anchor_pattern,
    anchor_regions,
    anchor_state,
    candidate_keys,
    pool_blocks,
    stripe_select,
    stripes_of,
)
from sparsebook.attention.metrics import mass_recall
from sparsebook.kernels.block_attention import OnlineSoftmaxState, SpanIndex, attention_reference, span_state

INF = math.inf
SMALL = {"block_size": 8, "step": 4}  # groups of 32


def normal(n, heads=2, kv_heads=None, dim=16, seed=0, dtype=torch.float64, size=1.5, batch=1):
    draw = torch.Generator().manual_seed(seed)
    shapes = [(batch, h, n, dim) for h in (heads, kv_heads or heads, kv_heads or heads)]
    q, k, v = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes)
    return (q * size).to(dtype), (k * size).to(dtype), v.to(dtype)


def causal(q, k, v):
    repeats = q.shape[1] // k.shape[1]
    return scaled_dot_product_attention(
        q, k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1), is_causal=True
    )


# Limits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", ["dense", "sparse"])
@pytest.mark.parametrize("n", [1, 5, 31, 32, 33, 64, 96, 101, 127])
def test_an_infinite_tolerance_is_causal_attention(n, tail):
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        q, k, v = normal(n, heads=4, kv_heads=2, dtype=dtype)
        out, info = anchor_attention(q, k, v, theta=INF, tail=tail, return_info=True, **SMALL)
        torch.testing.assert_close(out, causal(q, k, v), atol=tolerance, rtol=tolerance)
        assert info.density == 1.0


@pytest.mark.parametrize("n", [1, 32, 64, 101])
def test_no_tolerance_leaves_the_region(n):
    q, k, v = normal(n)
    row, key = torch.arange(n)[:, None], torch.arange(n)
    mask = ((key < 8) | (key >= row // 32 * 32 - 8)) & (key <= row)
    out, info = anchor_attention(q, k, v, theta=-INF, tail="sparse", return_info=True, **SMALL)
    torch.testing.assert_close(out, attention_reference(q, k, v, mask, 0.25)[0], atol=1e-12, rtol=0)
    assert info.density == pytest.approx(mask.sum().item() / (n * (n + 1) / 2))
    assert int(info.counts.sum()) == 0


def test_the_floors_of_the_density():
    """Counted exactly: 12.2 % at 2,048 with b = 32 and s = 4, 6.2 % at 4,096, 1.95 % at 128k."""
    known = ((2048, 32, 4, 12.2), (4096, 32, 4, 6.2), (2048, 16, 8, 9.2), (131072, 128, 16, 1.95))
    for n, block, step, percent in known:
        index = anchor_regions(n, block_size=block, step=step)
        assert 100 * index.density(n, n, causal=True) == pytest.approx(percent, abs=0.06)


def test_rows_after_the_last_whole_group_are_dense_as_in_the_paper():
    q, k, v = normal(101)
    out = anchor_attention(q, k, v, theta=-INF, **SMALL)
    torch.testing.assert_close(out[:, :, 96:], causal(q, k, v)[:, :, 96:])
    assert not torch.allclose(out[:, :, 90:96], causal(q, k, v)[:, :, 90:96])


# The mask of the definition ------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 90), block=st.integers(1, 20), step=st.integers(1, 6), theta=st.floats(-3, 8),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]), tail=st.sampled_from(["dense", "sparse"]),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_equals_dense_attention_under_the_mask_of_the_definition(n, block, step, theta, heads, tail, seed):
    q, k, v = normal(n, *heads, seed=seed)
    layout = {"theta": theta, "block_size": block, "step": step, "tail": tail}
    out = anchor_attention(q, k, v, **layout)
    torch.testing.assert_close(out, anchor_attention_reference(q, k, v, **layout), atol=1e-10, rtol=0)
    repeats = heads[0] // heads[1]
    mask = anchor_mask_reference(q, k.repeat_interleave(repeats, 1), scale=0.25, **layout)
    pattern = anchor_pattern(q, k, **layout)
    assert torch.equal(pattern.dense_mask(n, n, causal=True).expand_as(mask), mask)
    assert pattern.density(n, n, causal=True) == pytest.approx(
        mask.double().sum((-1, -2)).mean().item() / (n * (n + 1) / 2)
    )


def test_float32_equals_the_reference():
    q, k, v = normal(200, 4, 2, dtype=torch.float32)
    exact = anchor_attention_reference(q.double(), k.double(), v.double(), theta=3.0, **SMALL)
    torch.testing.assert_close(
        anchor_attention(q, k, v, theta=3.0, **SMALL).double(), exact, atol=1e-5, rtol=0
    )


def test_no_key_counts_twice_and_none_is_left_out():
    """Values that are one-hot in their position: the output is the row of weights itself."""
    n = 130
    q, k, _ = normal(n)
    one_hot = torch.eye(n, dtype=torch.float64).expand(1, 2, -1, -1)
    for theta in (-INF, 2.0, INF):
        weights = anchor_attention(q, k, one_hot, theta=theta, **SMALL)
        mask = anchor_mask_reference(q, k, theta=theta, scale=0.25, **SMALL)
        logits = torch.where(mask, q @ k.mT / 4, -INF)
        torch.testing.assert_close(weights, logits.softmax(-1), atol=1e-12, rtol=0)
        torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2, n, dtype=torch.float64))


def test_two_parts_of_the_region_merge_to_its_state():
    q, k, v = normal(128, dtype=torch.float32)
    whole = anchor_state(q, k, v, **SMALL)
    spans = anchor_regions(128, **SMALL).spans
    first, second = (span_state(q, k, v, SpanIndex.from_spans(spans[..., i : i + 1, :], 8)) for i in (0, 1))
    merged = first.merge(second)
    assert isinstance(merged, OnlineSoftmaxState)
    for name in ("m", "l", "acc"):
        torch.testing.assert_close(getattr(merged, name), getattr(whole, name), atol=1e-5, rtol=1e-5)
    logits = (q @ k.mT / 4)[0, 0]
    row = 70
    seen = [*range(8), *range(56, row + 1)]
    assert whole.m[0, 0, row].item() == pytest.approx(logits[row, seen].max().item(), abs=1e-5)


# What the selection depends on ---------------------------------------------------------------------------


def kept(q, k, m=None, theta=2.0, **layout):
    layout = SMALL | layout
    m = anchor_state(q, k, k, **layout).m if m is None else m
    index = stripe_select(q, k, m, theta=theta, **layout)
    mask = torch.zeros(*index.counts.shape, q.shape[2], dtype=torch.bool)
    for place in torch.cartesian_prod(*(torch.arange(size) for size in index.counts.shape)):
        where = tuple(place.tolist())
        mask[where][index.coords[where][: index.counts[where]].long()] = True
    return mask


def test_stripes_density_and_recall_grow_with_the_tolerance():
    q, k, _ = normal(160)
    before, densities, recalls = None, [], []
    for theta in (-INF, 1.0, 2.0, 3.0, 4.0, 5.0, INF):
        now = kept(q, k, theta=theta)
        assert before is None or bool((now | ~before).all())
        before = now
        pattern = anchor_pattern(q, k, theta=theta, **SMALL)
        densities.append(pattern.density(160, 160, causal=True))
        recalls.append(mass_recall(q, k, pattern).mean().item())
    assert densities == sorted(densities)
    assert recalls == pytest.approx(sorted(recalls), abs=1e-12)
    assert len(set(densities)) > 5
    assert (densities[-1], recalls[-1]) == pytest.approx((1.0, 1.0))


def test_a_shift_of_all_logits_of_a_row_changes_nothing():
    q, k, _ = normal(160)
    direction = torch.zeros(16, dtype=torch.float64)
    direction[0] = 5.0
    assert torch.equal(kept(q, k), kept(q, k + direction))


def test_scaled_inputs_are_a_scaled_tolerance():
    q, k, _ = normal(160)
    assert torch.equal(kept(1.5 * q, 1.5 * k, theta=4.5), kept(q, k, theta=2.0))
    assert not torch.equal(kept(1.5 * q, 1.5 * k, theta=2.0), kept(q, k, theta=2.0))


def test_a_planted_key_is_found_for_its_whole_group():
    q, k, _ = normal(256, heads=1, size=0.3)
    block = slice(160, 168)  # of group 5
    mean = q[0, 0, block].mean(0)
    k[0, 0, 50] = 80 * mean / mean.norm()
    found = kept(q, k, theta=0.5)[0, 0, :, 50]
    assert found[5]
    pattern = anchor_pattern(q, k, theta=0.5, **SMALL).dense_mask(256, 256, causal=True)
    assert pattern[0, 0, 160:192, 50].all()


def test_pooling_misses_a_key_that_one_row_of_many_wants():
    """One row of 128 that points at a key: lost in the mean of its block, found by blocks of one row."""
    n, row, key = 512, 300, 140
    q, k, _ = normal(n, heads=1, size=0.05)
    q[..., 2], k[0, 0, 0, 2] = 2.0, 20.0  # the first token is every row's anchor: 2 * 20 / 4 = 10
    q[0, 0, row, 1], k[0, 0, key, 1] = 8.0, 8.0  # and this pair has 16
    assert not kept(q, k, theta=2.0, block_size=128, step=1)[0, 0, :, key].any()
    found = kept(q, k, theta=2.0, block_size=1, step=1)[0, 0, :, key]
    assert found.nonzero().flatten().tolist() == [row]


def test_heads_keep_what_they_need_at_the_same_tolerance():
    q, k, v = normal(512, heads=2)
    q[:, 0] *= 0.01  # flat: every key is near the largest logit
    k[:, 1, 0] = 0
    k[:, 1, 0, 3] = 100.0  # peaked: the first token has it all
    q[:, 1, :, 3] = 3.0
    _, info = anchor_attention(q, k, v, theta=5.0, return_info=True, **SMALL)
    candidates = candidate_keys(512, **SMALL).sum(-1)
    assert (info.counts[0, 0] == candidates).all()
    assert (info.counts[0, 1] == 0).all()


def test_the_mean_of_the_blocks_decides_less_often_than_any():
    q, k, v = normal(256)
    m = anchor_state(q, k, v, **SMALL).m
    any_block = stripe_select(q, k, m, theta=1.0, **SMALL).counts
    mean = stripe_select(q, k, m, theta=1.0, decision="mean", **SMALL).counts
    assert (mean <= any_block).all()
    assert mean.sum() < any_block.sum()


def test_compaction():
    table = torch.rand(2, 3, 5, 70, generator=torch.Generator().manual_seed(0)) < 0.2
    table[0, 0, 0] = False
    index = stripes_of(table)
    assert torch.equal(index.counts, table.sum(-1).int())
    for b, h, g in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(5)).tolist():
        found = index.coords[b, h, g, : index.counts[b, h, g]]
        assert found.tolist() == table[b, h, g].nonzero().flatten().tolist()


# Precision and bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_with_logits_of_ten_thousand(dtype):
    q, k, v = normal(200, heads=4, kv_heads=2, dtype=dtype)
    for factor, theta in ((1.0, 2.0), (100.0, 500.0)):
        a, b = (q * factor**0.5).to(dtype), (k * factor**0.5).to(dtype)
        big = (a.double() @ b.double().repeat_interleave(2, 1).mT / 4).abs().max()
        assert big > (1000 if factor > 1 else 5)
        out = anchor_attention(a, b, v, theta=theta, **SMALL)
        exact = anchor_attention(a.double(), b.double(), v.double(), theta=theta, **SMALL)
        assert out.dtype == dtype
        assert out.isfinite().all()
        assert ((out.double() - exact).abs() < 0.02).double().mean() > 0.999
    a, b = (torch.full((1, 1, 96, 16), x, dtype=dtype) for x in (50.0, -50.0))  # every logit is -10,000
    out = anchor_attention(a, b, v[:1, :1, :96], theta=0.0, **SMALL)
    torch.testing.assert_close(out, causal(a, b, v[:1, :1, :96]), atol=0.02, rtol=0.02)


def test_rows_that_attended_nothing_do_not_count():
    q, k, v = normal(160)
    m = anchor_state(q, k, v, **SMALL).m
    padded = m.clone()
    padded[:, :, 100:] = -INF
    index = stripe_select(q, k, padded, theta=2.0, tail="sparse", **SMALL)
    assert (index.counts[:, :, 4] == 0).all()
    pooled, mean = pool_blocks(q, padded, 8)
    torch.testing.assert_close(mean[:, :, 12], m[:, :, 96:100].mean(-1))
    torch.testing.assert_close(pooled[:, :, 12], q[:, :, 96:100].mean(2) / 4)
    assert (mean[:, :, 13:] == INF).all()
    alone = stripe_select(q[:, :, :100], k[:, :, :100], m[:, :, :100], theta=2.0, tail="sparse", **SMALL)
    assert torch.equal(alone.counts[:, :, 3], index.counts[:, :, 3])


def test_grouped_heads_equal_repeated_ones():
    q, k, v = normal(140, heads=6, kv_heads=2, batch=2)
    repeated = [x.repeat_interleave(3, 1) for x in (k, v)]
    torch.testing.assert_close(
        anchor_attention(q, k, v, theta=2.0, **SMALL), anchor_attention(q, *repeated, theta=2.0, **SMALL)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_size": 0}, "block_size must be at least 1"),
        ({"step": 0}, "step must be at least 1"),
        ({"tail": "none"}, "tail must be"),
        ({"theta": math.nan}, "theta must be"),
    ],
)
def test_bad_options(change, message):
    q, k, v = normal(64)
    with pytest.raises(ValueError, match=message):
        anchor_attention(q, k, v, **(SMALL | change))


def test_bad_tensors():
    q, k, v = normal(64)
    with pytest.raises(ValueError, match="same number of tokens"):
        anchor_attention(q, k[:, :, :60], v[:, :, :60], **SMALL)
    with pytest.raises(ValueError, match="multiple of k's"):
        anchor_attention(q, k.repeat(1, 2, 1, 1)[:, :3], v.repeat(1, 2, 1, 1)[:, :3], **SMALL)
    with pytest.raises(ValueError, match="none of them 0"):
        anchor_attention(q[:, :, :0], k[:, :, :0], v[:, :, :0], **SMALL)
    m = anchor_state(q, k, v, **SMALL).m
    with pytest.raises(ValueError, match="m must have the shape"):
        stripe_select(q, k, m[:, :1], **SMALL)
    with pytest.raises(ValueError, match="decision must be"):
        stripe_select(q, k, m, decision="most", **SMALL)
    with pytest.raises(ValueError, match="heads that divide"):
        stripe_select(q, k.repeat(1, 2, 1, 1)[:, :3], m, **SMALL)
    k[0, 0, 20, 0] = math.nan
    with pytest.raises(ValueError, match="must not hold NaN"):
        anchor_attention(q, k, v, **SMALL)
