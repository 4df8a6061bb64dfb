"""Quest's pages against loops over them, step by step and all at once."""

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

from sparsebook.attention.patterns import QuestCache, page_bounds, page_scores, quest_pattern
from sparsebook.kernels.block_attention import span_attention

Tensors = tuple[Tensor, Tensor, Tensor]


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


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


def pages_by_loops(q: Tensor, k: Tensor, budget: int, size: int, share: bool) -> list[list[list[int]]]:
    """[batch][page head] lists of pages for one query, q [batch, heads, dim], the newest of the keys k."""
    group = q.shape[1] // k.shape[1]
    current = (k.shape[2] - 1) // size
    found = []
    for b in range(q.shape[0]):
        found.append([])
        scores = []
        for h in range(q.shape[1]):
            row = []
            for page in range(current):
                keys = k[b, h // group, page * size : (page + 1) * size]
                bounds = zip(q[b, h].tolist(), keys.amin(0).tolist(), keys.amax(0).tolist(), strict=True)
                row.append(sum(max(x * low, x * high) for x, low, high in bounds))
            scores.append(row)
        if share:
            scores = [
                [sum(column) for column in zip(*scores[i : i + group], strict=True)]
                for i in range(0, len(scores), group)
            ]
        for row in scores:
            best = sorted(range(current), key=lambda page: (-row[page], page))[: budget // size]
            found[-1].append([*sorted(best), current])
    return found


def page_mask(pages: list[list[list[int]]], length: int, size: int, heads: int) -> Tensor:
    mask = torch.zeros(len(pages), heads, length, dtype=torch.bool)
    for b, rows in enumerate(pages):
        for h in range(heads):
            for page in rows[h * len(rows) // heads]:
                mask[b, h, page * size : (page + 1) * size] = True
    return mask


@pytest.fixture
def plain() -> Iterator[None]:
    """No run-time type checker, which would speak before the library's own checks."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_steps_read_the_pages_of_the_definition(share: bool, kv_heads: int) -> None:
    q, k, v = inputs(60, kv_heads=kv_heads, batch=2)
    cache = QuestCache(token_budget=8, page_size=4, share_pages=share)
    cache.prefill(k[:, :, :50], v[:, :, :50])
    for n in range(51, 61):
        cache.append(k[:, :, n - 1 : n], v[:, :, n - 1 : n])
        pages = pages_by_loops(q[:, :, n - 1], k[:, :, :n], 8, 4, share)
        assert cache.select(q[:, :, n - 1 : n]).tolist() == pages
        mask = page_mask(pages, n, 4, 4)[:, :, None]
        close(cache.attend(q[:, :, n - 1 : n]), dense(q[:, :, n - 1 : n], k[:, :, :n], v[:, :, :n], mask))


@settings(max_examples=10, deadline=None)
@given(
    length=st.integers(1, 90),
    new=st.integers(1, 12),
    size=st.sampled_from([1, 3, 8, 16]),
    budget=st.integers(1, 6),
    share=st.booleans(),
)
def test_one_pass_equals_the_steps(length, new, size, budget, share) -> None:
    new = min(new, length)
    q, k, v = inputs(length, dtype=torch.float32)
    options: dict[str, Any] = {"token_budget": budget * size, "page_size": size, "share_pages": share}
    index = quest_pattern(q[:, :, length - new :], k, **options)
    together = span_attention(q[:, :, length - new :], k, v, index, query_offset=length - new)
    cache = QuestCache(**options)
    for n in range(length - new + 1, length + 1):
        if n == length - new + 1:
            cache.prefill(k[:, :, :n], v[:, :, :n])
        else:
            cache.append(k[:, :, n - 1 : n], v[:, :, n - 1 : n])
        pages = cache.select(q[:, :, n - 1 : n])
        current = (n - 1) // size
        assert pages.shape[-1] == min(budget, current) + 1
        assert bool((pages[..., -1] == current).all())  # always read, never ranked
        assert bool((pages.diff(dim=-1) > 0).all())  # ascending: none twice
        step = cache.attend(q[:, :, n - 1 : n])
        close(step, together[:, :, n - 1 - length + new][:, :, None], 1e-5)


@settings(max_examples=15, deadline=None)
@given(length=st.integers(1, 70), size=st.sampled_from([1, 4, 16]), seed=st.integers(0, 2**31))
def test_a_score_bounds_the_products_of_its_page(length: int, size: int, seed: int) -> None:
    q, k = normal(seed, 1, 4, 3, 8), normal(seed + 1, 1, 2, length, 8)
    scores = page_scores(q, *page_bounds(k, size), share_pages=False)
    products = q @ k.repeat_interleave(2, 1).mT
    for page in range(-(-length // size)):
        largest = products[..., page * size : (page + 1) * size].amax(-1)
        assert bool((scores[..., page] >= largest - 1e-12).all())
    shared = page_scores(q, *page_bounds(k, size))
    close(shared, scores.view(1, 2, 2, 3, -1).sum(2))
    if size == 1:
        close(scores, products)  # a page of one key is bounded by itself


def test_bounds_follow_what_is_appended() -> None:
    _, k, v = inputs(40)
    cache = QuestCache(token_budget=4, page_size=4)
    cache.prefill(k[:, :, :5], v[:, :, :5])
    for step in (1, 1, 3, 11, 1, 18):  # single tokens, several, across pages, beyond the reserve
        n = cache.length + step
        cache.append(k[:, :, cache.length : n], v[:, :, cache.length : n])
        low, high = cache.bounds
        assert low.shape[2] == -(-n // 4)
        for page in range(low.shape[2]):
            keys = k[:, :, page * 4 : min((page + 1) * 4, n)]
            assert torch.equal(low[:, :, page], keys.amin(2))
            assert torch.equal(high[:, :, page], keys.amax(2))
    cache.prefill(k[:, :, :3], v[:, :, :3])
    assert cache.length == 3


@pytest.mark.parametrize("length", [1, 15, 16, 17, 64, 80])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_short_contexts_are_dense(length: int, dtype: torch.dtype) -> None:
    q, k, v = inputs(length, batch=2, dtype=dtype)
    cache = QuestCache(token_budget=64)
    cache.prefill(k, v)
    expected = dense(q[:, :, -1:].double(), k.double(), v.double())
    close(cache.attend(q[:, :, -1:]), expected, 2e-2 if dtype == torch.bfloat16 else 1e-5)


def test_the_planted_key_is_found_and_exact() -> None:
    """One page holds all the mass: a budget of one page gives dense attention. Unplanted, it does not."""
    q, k, v = inputs(330, heads=2, kv_heads=1, dim=32)
    cache = QuestCache(token_budget=16)
    cache.prefill(k, v)
    error = (cache.attend(q[:, :, -1:]) - dense(q[:, :, -1:], k, v)).norm()
    assert float(error) > 0.1
    q = q * 0.1 + 20 * torch.nn.functional.normalize(normal(7, 32), dim=-1)
    k[:, :, 133] += 20 * torch.nn.functional.normalize(normal(7, 32), dim=-1)
    cache.prefill(k, v)
    assert cache.select(q[:, :, -1:]).tolist() == [[[133 // 16, 329 // 16]]]
    close(cache.attend(q[:, :, -1:]), dense(q[:, :, -1:], k, v), 1e-6)


def test_equal_scores_go_to_the_first_pages() -> None:
    _, k, v = inputs(100)
    cache = QuestCache(token_budget=32)
    cache.prefill(torch.zeros_like(k), v)
    assert cache.select(torch.zeros(1, 4, 1, 8, dtype=k.dtype)).tolist() == [[[0, 1, 6]] * 2]


# Bad input -----------------------------------------------------------------------------------------------

Q, K, V = inputs(40)


def filled() -> QuestCache:
    cache = QuestCache(token_budget=32)
    cache.prefill(K, V)
    return cache


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: QuestCache(token_budget=40), "token_budget must be a multiple of page_size 16, got 40"),
        (lambda: QuestCache(token_budget=0), "token_budget must be an integer of at least 1"),
        (lambda: QuestCache(token_budget=16, page_size=0), "page_size must be"),
        (lambda: QuestCache(token_budget=16).select(Q[:, :, :1]), "the cache must hold a token"),
        (lambda: QuestCache(token_budget=16).prefill(K[:, :, :0], V[:, :, :0]), "k must be floats of shape"),
        (lambda: filled().append(K, V[:, :, :3]), "v must have leading axes"),
        (lambda: filled().append(K * math.nan, V), "k must be finite"),
        (lambda: filled().append(K, V * math.inf), "v must be finite"),
        (lambda: filled().append(K[:, :1], V[:, :1]), "k must match the cached"),
        (lambda: filled().append(K, V[..., :3]), "v must match the cached"),
        (lambda: filled().append(K.float(), V), "k must match the cached"),
        (lambda: filled().select(Q), "q must hold one query, got 40"),
        (lambda: filled().select(Q[:, :3, :1]), "q must have a multiple of k's 2 heads, got 3"),
        (lambda: filled().select(Q[:, :, :1] * math.nan), "q must be finite"),
        (lambda: quest_pattern(Q, K, token_budget=24), "token_budget must be a multiple"),
        (lambda: quest_pattern(Q, K[:, :, :39], token_budget=16), "q must hold the last tokens of k"),
        (lambda: quest_pattern(Q, K * math.nan, token_budget=16), "k must be finite"),
    ],
)
def test_values_out_of_range(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
