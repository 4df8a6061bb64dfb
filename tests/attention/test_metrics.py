"""Recall, error and density against their definitions."""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

from sparsebook.attention.metrics import (
    attention_weights,
    density,
    mass_recall,
    output_error,
    output_recall,
)
from sparsebook.attention.patterns import (
    block_topk_pattern,
    pattern_mask,
    streaming_pattern,
    topcdf_mask,
    topk_mask,
    vertical_slash_pattern,
)
from sparsebook.kernels.block_attention import SpanIndex, span_attention


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


Q, K, V = normal(0, 2, 4, 50, 8), normal(1, 2, 2, 50, 8), normal(2, 2, 2, 50, 8)
CAUSAL = torch.ones(50, 50, dtype=torch.bool).tril()


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("causal", [True, False])
def test_weights_are_those_of_every_row(causal: bool) -> None:
    found = attention_weights(Q, K, causal=causal)
    for h in range(4):
        for i in range(50):
            seen = K[1, h // 2, : i + 1] if causal else K[1, h // 2]
            close(found[1, h, i, : len(seen)], (seen @ Q[1, h, i] * 8**-0.5).softmax(-1))
            assert not found[1, h, i, len(seen) :].any()
    close(attention_weights(Q, K, scale=0.0)[0, 0, 9, :10], torch.full((10,), 0.1, dtype=torch.float64))


def test_mass_recall_is_the_share_of_the_weights() -> None:
    mask = (normal(3, 2, 4, 50, 50) > 0.5) & CAUSAL
    found = mass_recall(Q, K, mask)
    weights = attention_weights(Q, K)
    for b in range(2):
        for h in range(4):
            rows = [float(weights[b, h, i][mask[b, h, i]].sum()) for i in range(50)]
            assert float(found[b, h]) == pytest.approx(sum(rows) / 50, rel=1e-9)
    close(mass_recall(Q, K, CAUSAL[None, None]), torch.ones(2, 4))
    close(mass_recall(Q, K, torch.zeros_like(mask)), torch.zeros(2, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_index_has_the_recall_of_its_mask(dtype: torch.dtype) -> None:
    q, k = Q.to(dtype), K.to(dtype)
    indices = (
        vertical_slash_pattern(q, k, n_vertical=5, n_slash=4, window=16, n_local=2, block_size=8),
        block_topk_pattern(q, k, block_size=8, top_k=3),
        streaming_pattern(50, n_sink=2, n_local=5),
        SpanIndex.from_columns(torch.zeros(1, 1, 1, 0, dtype=torch.int32), torch.zeros(1, 1, 1).int(), 64),
    )
    for index in indices:
        expected = mass_recall(q, k, pattern_mask(index, 50))
        close(mass_recall(q, k, index), expected, 1e-9 if dtype == torch.float64 else 1e-5)
    free = block_topk_pattern(q[:, :, :30], k, block_size=8, top_k=2, causal=False)
    mask = pattern_mask(free, 30, n_keys=50, causal=False)
    recall = mass_recall(q[:, :, :30], k, free, causal=False)
    close(recall, mass_recall(q[:, :, :30], k, mask, causal=False), 1e-5)


def test_recall_grows_with_the_budget() -> None:
    recall = [mass_recall(Q, K, topk_mask(Q, K, n)) for n in (1, 3, 9, 27, 50)]
    assert all(bool((a <= b + 1e-12).all()) for a, b in pairwise(recall))
    for p in (0.3, 0.9):
        assert float(mass_recall(Q, K, topcdf_mask(Q, K, p)).min()) >= p


def test_output_recall_counts_near_elements() -> None:
    reference = torch.zeros(1, 2, 4, 5)
    out = reference.clone()
    out[0, 0, 0, :3] = torch.tensor([0.009, -0.011, 0.01])  # at the tolerance is not below it
    close(output_recall(reference, out), torch.tensor([[18 / 20, 1.0]]))
    close(output_recall(reference, out, 0.005), torch.tensor([[17 / 20, 1.0]]))


def test_output_error_is_relative_per_head() -> None:
    reference, noise = normal(0, 2, 3, 7, 5), normal(1, 2, 3, 7, 5)
    found = output_error(reference, reference + 0.1 * noise)
    for b in range(2):
        for h in range(3):
            expected = 0.1 * float(noise[b, h].square().sum().sqrt() / reference[b, h].square().sum().sqrt())
            assert float(found[b, h]) == pytest.approx(expected, rel=1e-9)
    close(output_error(reference, 3 * reference), torch.full((2, 3), 2.0))


def test_a_full_pattern_has_no_error() -> None:
    q, k, v = (x.float() for x in (Q, K, V))
    index = block_topk_pattern(q, k, top_k=4)
    reference = torch.nn.functional.scaled_dot_product_attention(
        q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), is_causal=True
    )
    out = span_attention(q, k, v, index)
    assert float(output_error(reference, out).max()) < 1e-6
    close(output_recall(reference, out), torch.ones(2, 4))


def test_density_is_over_the_causal_pairs() -> None:
    mask = torch.eye(50, dtype=torch.bool).expand(1, 1, 50, 50)
    assert density(mask).item() == pytest.approx(50 / (50 * 51 / 2))
    assert density(mask, causal=False).item() == pytest.approx(1 / 50)
    assert density(CAUSAL[None, None]).item() == 1
    index = vertical_slash_pattern(Q, K, n_vertical=5, n_slash=4, window=16, n_local=2, block_size=8)
    assert float(density(pattern_mask(index, 50)).mean()) == pytest.approx(index.density(50, 50, causal=True))
    per_head = density(pattern_mask(index, 50))
    assert per_head.shape == (2, 4)


# Bad input -----------------------------------------------------------------------------------------------


@pytest.fixture
def plain() -> Iterator[None]:
    """No run-time type checker, which would speak before the library's own checks."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attention_weights(Q[:, :3], K), "q must have a multiple of k's 2 heads, got 3"),
        (lambda: attention_weights(Q, K * math.nan), "k must be finite"),
        (lambda: attention_weights(Q, K[:, :, :9]), "same number of tokens"),
        (lambda: attention_weights(Q, K, scale=math.inf), "scale must be finite"),
        (lambda: mass_recall(Q, K, CAUSAL), "mask must be boolean of shape"),
        (lambda: mass_recall(Q, K, CAUSAL[None, None].float()), "mask must be boolean of shape"),
        (lambda: mass_recall(Q, K, CAUSAL[None, None, :9]), "mask must be boolean of shape"),
        (lambda: mass_recall(Q, K, CAUSAL.expand(2, 3, 50, 50)), "mask must be boolean of shape"),
        (lambda: mass_recall(Q, K, streaming_pattern(300, n_sink=1, n_local=1)), "spans must have"),
        (lambda: output_recall(V, V[:, :1]), "out must have shape"),
        (lambda: output_recall(V, V * math.nan), "out must be finite"),
        (lambda: output_recall(V, V, 0.0), "tolerance must be positive, got 0.0"),
        (lambda: output_error(V * 0, V), "reference must not be zero"),
        (lambda: density(CAUSAL), "mask must be boolean of shape"),
        (lambda: density(CAUSAL[None, None, :, :0]), "mask must be boolean of shape"),
        (lambda: density(~CAUSAL[None, None]), "mask must be square and False above the diagonal"),
        (lambda: density(CAUSAL[None, None, :30]), "mask must be square"),
    ],
)
def test_values_out_of_range(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
