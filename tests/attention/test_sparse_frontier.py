"""The study's own logic: one knob a method, exact budgets, attention over patterns and kept keys."""

import math

import pytest
import torch

from sparsebook.attention.patterns import pattern_mask
from sparsebook.attention.sparse_frontier import (
    DECODE,
    PREFILL,
    BlockSparse,
    EvictAdaSnapKV,
    FlexPrefill,
    Quest,
    VerticalSlash,
    Windows,
    attend_decode,
    attend_prefill,
    capacity,
    dense_pattern,
    fit_knob,
    random_decode_mask,
    random_prefill_mask,
)

SMALL = Windows(observed=16, slash_local=4, snap_local=4, pool=5, block=8, page=8, rows=8, floor=8)


def inputs(n=96, heads=4, kv_heads=2, dim=16, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    make = lambda h: torch.randn(2, h, n, dim, generator=generator, dtype=dtype)  # noqa: E731
    return 2 * make(heads), make(kv_heads), make(kv_heads)


def by_hand(q, k, v, mask):
    """Attention row by row over the keys that a mask names."""
    out = torch.zeros(*q.shape[:3], v.shape[3], dtype=q.dtype)
    for b, h, i in mask.any(-1).nonzero().tolist():
        keys = mask[b, h, i].nonzero().flatten()
        group = h * k.shape[1] // q.shape[1]
        weights = (q[b, h, i] @ k[b, group, keys].T / math.sqrt(q.shape[3])).softmax(0)
        out[b, h, i] = weights @ v[b, group, keys]
    return out


@pytest.mark.parametrize("cls", PREFILL, ids=lambda cls: cls.name)
@pytest.mark.parametrize("n", [96, 91, 5, 1])
def test_everything_is_dense_attention(cls, n):
    q, k, v = inputs(n)
    method = cls(SMALL)
    pattern = method.pattern(q, k, **method.knob(1.0, n))
    out, mass = attend_prefill(q, k, v, pattern)
    dense, total = attend_prefill(q, k, v, dense_pattern(n))
    reference = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(dense, reference, atol=1e-9, rtol=0)
    torch.testing.assert_close(out, reference, atol=1e-9, rtol=0)
    torch.testing.assert_close(mass, total, atol=1e-6, rtol=0)


@pytest.mark.parametrize("cls", PREFILL, ids=lambda cls: cls.name)
@pytest.mark.parametrize("n", [64, 53])
def test_a_pattern_is_attention_under_its_mask(cls, n):
    q, k, v = inputs(n)
    method = cls(SMALL)
    pattern = method.pattern(q, k, **method.knob(0.4, n))
    mask = pattern_mask(pattern, n).expand(2, 4, n, n)
    assert 0 < mask.double().mean() < 0.5
    torch.testing.assert_close(attend_prefill(q, k, v, pattern)[0], by_hand(q, k, v, mask), atol=1e-9, rtol=0)
    masked, lse = attend_prefill(q, k, v, mask)
    torch.testing.assert_close(masked, by_hand(q, k, v, mask), atol=1e-9, rtol=0)
    torch.testing.assert_close(lse, attend_prefill(q, k, v, pattern)[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cls", PREFILL, ids=lambda cls: cls.name)
def test_density_rises_with_the_level_and_budgets_are_kept(cls):
    q, k, _ = inputs(128, heads=2, kv_heads=1, dtype=torch.float32)
    method = cls(SMALL)
    levels = [0.0, 0.4, 0.7, 1.0]
    shares = [method.pattern(q, k, **method.knob(x, 128)).density(128, 128, causal=True) for x in levels]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    for sparsity in (0.5, 0.6):
        knob = fit_knob(method, [(q, k)], sparsity)
        share = method.pattern(q, k, **knob).density(128, 128, causal=True)
        assert share == pytest.approx(1 - sparsity, rel=0.15)


def test_a_budget_below_the_least_is_not_to_be_had():
    q, k, _ = inputs(64)
    assert fit_knob(BlockSparse(SMALL), [(q, k)], 0.9) is None  # three blocks of eight forced
    with pytest.raises(ValueError, match="sparsity must lie in"):
        fit_knob(BlockSparse(SMALL), [(q, k)], 1.0)
    with pytest.raises(ValueError, match="inputs of one length"):
        fit_knob(BlockSparse(SMALL), [(q, k), (q[:, :, :32], k[:, :, :32])], 0.5)


def test_flexprefill_without_alpha_is_vertical_slash():
    q, k, _ = inputs(128)
    for n in (2, 5, 8):
        lines = VerticalSlash(SMALL).pattern(q, k, n=n)
        flex = FlexPrefill(SMALL).pattern(q, k, alpha=0.0, min_budget=n)
        assert torch.equal(pattern_mask(lines, 128), pattern_mask(flex, 128))
    assert FlexPrefill(SMALL).knob(0.5, 128) == {"alpha": 0.0, "min_budget": 8}
    assert FlexPrefill(SMALL).knob(0.75, 128) == {"alpha": 0.5, "min_budget": 8}


@pytest.mark.parametrize("cls", DECODE, ids=lambda cls: cls.name)
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_decoding_keeps_its_budget_and_attends_what_it_kept(cls, sparsity):
    q, k, v = inputs(90)
    split = 80
    keep = cls(SMALL).keep(q[:, :, :split], k[:, :, :split], q[:, :, split:], sparsity=sparsity)
    assert keep.shape == (2, 4, 10, split)
    wanted = capacity(split, sparsity, multiple=8 if cls is Quest else 1)
    kept = keep.sum(-1).double()
    if cls is EvictAdaSnapKV:
        assert (kept.mean(1) == wanted).all()  # a layer's heads share one budget
    else:
        assert (kept == wanted).all()
    own = torch.ones(10, 10, dtype=torch.bool).tril().expand(2, 4, 10, 10)
    expected = by_hand(q[:, :, split:], k, v, torch.cat([keep, own], -1))
    torch.testing.assert_close(attend_decode(q[:, :, split:], k, v, keep)[0], expected, atol=1e-9, rtol=0)


def test_quest_finds_the_page_of_a_planted_key_and_eviction_cannot():
    q, k, _ = inputs(200, heads=2, kv_heads=1, seed=3)
    needle = 10 * torch.randn(16, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    k[:, :, 70] = needle
    new = needle.expand(2, 2, 4, 16).contiguous()
    assert Quest(SMALL).keep(q, k, new, sparsity=0.9)[..., 70].all()
    # Nothing in the prompt asked for it: whoever decides before the question cannot know.
    q = q - (q @ needle)[..., None] * needle / needle.square().sum() - needle / 20
    assert not EvictAdaSnapKV(SMALL).keep(q, k, new, sparsity=0.95)[..., 70].any()


def test_windows_shrink_with_the_input():
    half = Windows().scaled(0.5)
    assert (half.observed, half.slash_local, half.snap_local, half.floor) == (128, 32, 64, 256)
    assert (half.block, half.page, half.pool, half.n_sink) == (16, 16, 21, 4)
    assert Windows().scaled(1 / 16).rows == 16
    units = SMALL.scaled(0.25, units=True)
    assert (units.block, units.page, units.rows, units.observed) == (2, 2, 2, 16)
    with pytest.raises(ValueError, match="factor must be positive"):
        Windows().scaled(0)


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_random_masks_have_the_density_asked_for(density):
    q, _, _ = inputs(256)
    generator = torch.Generator().manual_seed(1)
    mask = random_prefill_mask(q, density, generator)
    assert not mask.triu(1).any()
    assert mask.diagonal(dim1=-2, dim2=-1).all()
    assert float(mask.double().sum((-2, -1)).mean()) / (256 * 257 / 2) == pytest.approx(density, rel=0.05)
    kept = random_decode_mask(q[:, :, :5], 100, 1 - density, generator)
    assert (kept.sum(-1) == capacity(100, 1 - density)).all()


def test_bad_budgets():
    with pytest.raises(ValueError, match="sparsity must lie in"):
        capacity(10, -0.1)
    assert capacity(10, 0.99) == 1
    q, k, v = inputs(20)
    with pytest.raises(ValueError, match="keep must cover the 15 tokens"):
        attend_decode(q[:, :, 15:], k, v, torch.ones(2, 4, 5, 14, dtype=torch.bool))


def test_nan_is_refused_by_every_method():
    q, k, _ = inputs(32)
    q[0, 0, 3, 0] = math.nan
    for cls in (VerticalSlash, FlexPrefill, BlockSparse):
        method = cls(SMALL)
        with pytest.raises(ValueError, match="finite"):
            method.pattern(q, k, **method.knob(0.5, 32))
