"""Tokens that stay in a cache, against choices made by loops, and attention over what stayed."""

import math
from collections.abc import Iterator
from typing import Any

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sparsebook.attention.patterns import TOVA, AdaSnapKV, Kept, SnapKV, StreamingLLM

Tensors = tuple[Tensor, Tensor, Tensor]
SMALL: dict[str, int] = {"window": 12, "pool": 5, "n_local": 6, "n_sink": 2}


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def inputs(
    length: int, heads: int = 4, kv_heads: int = 2, batch: int = 1, dim: int = 8, **kind: Any
) -> Tensors:
    sizes = ((0, heads), (1, kv_heads), (2, kv_heads))
    return tuple(normal(seed, batch, count, length, dim, **kind) for seed, count in sizes)  # type: ignore[return-value]


def dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    return scaled_dot_product_attention(q, k, v, attn_mask=mask)


def last_rows(q: Tensor, k: Tensor, window: int) -> Tensor:
    """Causal attention weights of the last queries."""
    logits = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT * q.shape[-1] ** -0.5
    future = torch.ones(q.shape[2], k.shape[2]).triu(1).bool()
    return logits.masked_fill(future, -math.inf).softmax(-1)[:, :, -window:]


def top(scores: list[float], count: int) -> list[int]:
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count])


def votes_by_loops(q: Tensor, k: Tensor, window: int, pool: int, greatest: bool) -> list[list[list[float]]]:
    """[batch][kv head] lists of smoothed votes."""
    rows = last_rows(q, k, window)
    group = q.shape[1] // k.shape[1]
    found = []
    for b in range(q.shape[0]):
        found.append([])
        for kv in range(k.shape[1]):
            seen = rows[b, kv * group : (kv + 1) * group]
            votes = (seen.amax((0, 1)) if greatest else seen.mean(0).sum(0)).tolist()
            smooth = [sum(votes[max(0, j - pool // 2) : j + pool // 2 + 1]) / pool for j in range(len(votes))]
            found[-1].append(smooth)
    return found


def forced(votes: list[float], n_sink: int, n_local: int) -> list[float]:
    kept = (*range(n_sink), *range(max(0, len(votes) - n_local), len(votes)))
    return [math.inf if j in kept else vote for j, vote in enumerate(votes)]


def lists(kept: Kept) -> list[list[list[int]]]:
    """[batch][kv head] lists of kept tokens."""
    return [
        [row[:n].tolist() for row, n in zip(rows, lengths, strict=True)]
        for rows, lengths in zip(kept.indices, kept.lengths.tolist(), strict=True)
    ]


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


@pytest.fixture
def plain() -> Iterator[None]:
    """No run-time type checker, which would speak before the library's own checks."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


# Choices -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_snapkv_is_its_definition(kv_heads: int) -> None:
    q, k, _ = inputs(60, kv_heads=kv_heads, batch=2)
    votes = votes_by_loops(q, k, 12, 5, greatest=False)
    method = SnapKV(20, **SMALL)
    close(method.importance(q, k), torch.tensor(votes, dtype=torch.float64))
    expected = [[top(forced(head, 2, 6), 20) for head in heads] for heads in votes]
    assert lists(method.keep(q, k)) == expected
    assert lists(method.keep(q[:, :, -12:], k)) == expected  # the window's queries are all it needs


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("min_ratio", [0.0, 0.6, 1.0])
def test_ada_snapkv_is_its_definition(kv_heads: int, min_ratio: float) -> None:
    q, k, _ = inputs(60, kv_heads=kv_heads, batch=2)
    votes = votes_by_loops(q, k, 12, 5, greatest=True)
    floor = max(int(20 * min_ratio), 8)
    expected = []
    for heads in votes:
        scores = [forced(head, 2, 6) for head in heads]
        chosen = {(h, j) for h, head in enumerate(scores) for j in top(head, floor)}
        rest = [(h, j) for h in range(kv_heads) for j in range(60) if (h, j) not in chosen]
        rest.sort(key=lambda place: (-scores[place[0]][place[1]], place))
        chosen |= set(rest[: (20 - floor) * kv_heads])
        expected.append([sorted(j for h, j in chosen if h == head) for head in range(kv_heads)])
    method = AdaSnapKV(20, **SMALL, min_ratio=min_ratio)
    assert method.floor == floor
    assert lists(method.keep(q, k)) == expected


@settings(max_examples=12, deadline=None)
@given(
    length=st.integers(1, 120),
    heads=st.sampled_from([(1, 1), (4, 1), (4, 2), (6, 3)]),
    capacity=st.integers(8, 60),
    window=st.integers(1, 80),
    pool=st.sampled_from([1, 3, 21]),
    ratio=st.floats(0, 1),
)
def test_budgets_are_exact_and_forced_tokens_stay(length, heads, capacity, window, pool, ratio) -> None:
    q, k, _ = inputs(length, *heads, batch=2, dtype=torch.float32)
    options = {"window": window, "pool": pool, "n_local": 6, "n_sink": 2}
    for method in (SnapKV(capacity, **options), AdaSnapKV(capacity, **options, min_ratio=ratio)):
        kept = method.keep(q, k)
        mask = kept.mask(length)
        assert torch.equal(mask.sum(-1), kept.lengths)
        assert bool((kept.lengths.sum(-1) == min(capacity, length) * heads[1]).all())
        assert bool(mask[..., :2].all())
        assert bool(mask[..., max(0, length - 6) :].all())
        assert kept.density(length).tolist() == [min(capacity, length) / length] * 2
    assert int(kept.lengths.min()) >= min(length, max(int(ratio * capacity), 8))


def test_heads_with_more_to_see_get_more() -> None:
    """Head 0 looks at one token, head 1 at many: the shared budget goes to head 1, above the floor."""
    q, k, _ = inputs(200, heads=2, kv_heads=2, dim=32)
    q, k = q * 0.01, k * 0.01
    direction = torch.nn.functional.normalize(normal(5, 32), dim=-1)
    q += 10 * direction
    k[0, 0, 50] += 10 * direction
    k[0, 1, 40:80] += 10 * direction
    options: dict[str, Any] = {"window": 16, "pool": 1, "n_local": 4, "n_sink": 2}
    kept = AdaSnapKV(30, **options).keep(q, k)
    assert kept.lengths.tolist()[0][0] < 30 < kept.lengths.tolist()[0][1]
    assert 50 in lists(kept)[0][0]
    assert set(range(40, 80)) <= set(lists(kept)[0][1])
    assert SnapKV(30, **options).keep(q, k).lengths.tolist() == [[30, 30]]


def test_defaults_keep_132_tokens_whatever_they_are() -> None:
    q, k = torch.zeros(1, 4, 400, 8), torch.zeros(1, 2, 400, 8)
    for method in (SnapKV(132), AdaSnapKV(132)):
        assert lists(method.keep(q, k)) == [[[*range(4), *range(272, 400)]] * 2]
    assert AdaSnapKV(1000).floor == 200
    assert AdaSnapKV(600).floor == 132


def test_equal_votes_are_broken_the_same_way_each_time() -> None:
    q, k = torch.zeros(1, 4, 200, 8), torch.zeros(1, 2, 200, 8)
    for method in (SnapKV(50, **SMALL), AdaSnapKV(50, **SMALL), TOVA(50)):
        first = method.keep(q, k)
        assert torch.equal(first.indices, method.keep(q, k).indices)
    # One query gives every key the same weight: the lowest stay, and the last, which is forced.
    assert lists(TOVA(5).keep(q, k)) == [[[0, 1, 2, 3, 199]] * 2]


def test_pooling_weighs_edges_less_and_keeps_neighbours() -> None:
    """One loud key carries its neighbours in; at the edge, zeros beyond the end count."""
    q, k, _ = inputs(100, heads=1, kv_heads=1, dim=16)
    direction = torch.nn.functional.normalize(normal(5, 16), dim=-1)
    q, k = q * 0.01 + 20 * direction, k * 0.01
    k[0, 0, 40] += 20 * direction
    options: dict[str, Any] = {"window": 8, "n_local": 0, "n_sink": 0}
    assert lists(SnapKV(5, **options, pool=5).keep(q, k)) == [[[38, 39, 40, 41, 42]]]
    flat = SnapKV(5, **options, pool=5).importance(torch.zeros_like(q), torch.zeros_like(k))[0, 0]
    assert float(flat[0] / flat[50]) == pytest.approx(3 / 5, rel=1e-6)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_tova_is_its_definition(kv_heads: int) -> None:
    q, k, _ = inputs(60, kv_heads=kv_heads, batch=2)
    row = last_rows(q, k, 1)[:, :, 0].mean(1).tolist()
    expected = [[top([*votes[:-1], math.inf], 9)] * kv_heads for votes in row]
    assert lists(TOVA(9).keep(q, k)) == expected


@pytest.mark.parametrize("length", [1, 3, 20])
def test_streaming_keeps_the_ends(length: int) -> None:
    q, k, _ = inputs(length, batch=2)
    expected = sorted({*range(min(2, length)), *range(max(0, length - 5), length)})
    assert lists(StreamingLLM(2, 5).keep(q, k)) == [[expected] * 2] * 2


# Attention over what stayed ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", [SnapKV(20, **SMALL), AdaSnapKV(20, **SMALL), TOVA(20), StreamingLLM(2, 7)]
)
@pytest.mark.parametrize("new", [1, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_new_queries_attend_what_stayed_and_themselves(method: Any, new: int, dtype: torch.dtype) -> None:
    q, k, v = inputs(60 + new, batch=2)
    old = slice(0, 60)
    kept = method.keep(q[:, :, old], k[:, :, old])
    mask = torch.zeros(2, 4, new, 60 + new, dtype=torch.bool)
    for b, heads in enumerate(lists(kept)):
        for h in range(4):
            for i in range(new):
                mask[b, h, i, heads[h // 2]] = True
                mask[b, h, i, 60 : 60 + i + 1] = True
    expected = dense(q[:, :, 60:], k, v, mask)
    q, k, v = (x.to(dtype) for x in (q, k, v))
    out = kept.attend(q[:, :, 60:], k[:, :, old], v[:, :, old], k[:, :, 60:], v[:, :, 60:])
    close(out, expected, 1e-9 if dtype == torch.float64 else 1e-5)
    # A cache compressed once serves the steps one by one.
    cache = kept.compress(k[:, :, old], v[:, :, old])
    last = cache.attend(q[:, :, -1:], k[:, :, 60:], v[:, :, 60:])
    close(last, expected[:, :, -1:], 1e-9 if dtype == torch.float64 else 1e-5)
    assert cache.k.shape[2] == int(kept.lengths.max())


def test_queries_without_new_tokens_see_all_that_stayed() -> None:
    q, k, v = inputs(60)
    kept = AdaSnapKV(20, **SMALL).keep(q, k)
    mask = kept.mask(60).repeat_interleave(2, 1)[:, :, None].expand(-1, -1, 3, -1)
    close(kept.attend(q[:, :, -3:], k, v), dense(q[:, :, -3:], k, v, mask))


@pytest.mark.parametrize(
    "method", [SnapKV(64, **SMALL), AdaSnapKV(64, **SMALL), TOVA(64), StreamingLLM(0, 64)]
)
def test_a_capacity_of_everything_is_dense_attention(method: Any) -> None:
    q, k, v = inputs(61, batch=2, dtype=torch.float32)
    kept = method.keep(q[:, :, :60], k[:, :, :60])
    out = kept.attend(q[:, :, 60:], k[:, :, :60], v[:, :, :60], k[:, :, 60:], v[:, :, 60:])
    close(out, dense(q[:, :, 60:].double(), k.double(), v.double()), 1e-5)


# Bad input -----------------------------------------------------------------------------------------------

Q, K, V = inputs(40)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SnapKV(131), "capacity must be an integer of at least 132, got 131"),
        (lambda: AdaSnapKV(0, n_local=0, n_sink=0), "capacity must be"),
        (lambda: SnapKV(200, pool=4), "pool must be odd, got 4"),
        (lambda: SnapKV(200, window=0), "window must be"),
        (lambda: SnapKV(200, n_local=-1), "n_local must be"),
        (lambda: AdaSnapKV(200, min_ratio=1.2), "min_ratio must lie in"),
        (lambda: TOVA(0), "capacity must be"),
        (lambda: StreamingLLM(-1, 4), "n_sink must be"),
        (lambda: StreamingLLM(4, 0), "n_local must be"),
        (lambda: SnapKV(20, **SMALL).keep(Q[:, :3], K), "q must have a multiple of k's 2 heads, got 3"),
        (lambda: SnapKV(20, **SMALL).keep(Q[:, :, -11:], K), "q must hold the last 12 tokens of k at least"),
        (lambda: SnapKV(20, **SMALL).keep(Q, K * math.nan), "k must be finite"),
        (lambda: TOVA(20).keep(Q * math.inf, K), "q must be finite"),
        (lambda: TOVA(20).keep(Q[:, :, :0], K[:, :, :0]), "q must be floats of shape"),
        (lambda: Kept.from_mask(torch.zeros(1, 2, 5, dtype=torch.bool)), "mask must keep at least one"),
        (lambda: TOVA(20).keep(Q, K).mask(9), "n_tokens must reach the indices up to 39, got 9"),
        (lambda: TOVA(20).keep(Q, K).compress(K[:, :, :9], V), "k must reach the indices up to 39, got 9"),
        (lambda: TOVA(20).keep(Q, K).compress(K, V[:, :1]), "v must have shape"),
        (lambda: TOVA(20).keep(Q, K).attend(Q, K, V, K), "k_new and v_new must be given together"),
        (lambda: TOVA(20).keep(Q, K).attend(Q, K, V, K[:, :, :3], V[:, :, :3]), "k_new must hold the 40"),
        (lambda: TOVA(20).keep(Q, K).attend(Q[:, :3], K, V), "q must have a multiple of k's 2 heads"),
    ],
)
def test_values_out_of_range(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
