"""The cost model: the paper's numbers to the digit, its terms by hand, and what it refuses."""

import numpy as np
import pytest

from sparsebook.attention.costs import (
    ModelSizes,
    attention_cost,
    block_index_cost,
    quest_index_cost,
    vertical_slash_index_cost,
)
from sparsebook.experiments.sparse_frontier import QWEN

TINY = ModelSizes(layers=2, hidden=8, heads=4, kv_heads=2, mlp=6, vocabulary=10)


@pytest.mark.parametrize(
    ("n_tokens", "share", "gain"), [(16_384, 0.402, 1.31), (65_536, 0.677, 2.00), (128_000, 0.795, 2.56)]
)
def test_prefill_shares_and_gains_of_the_four_qwen_models(n_tokens, share, gain):
    dense = [attention_cost(model, n_tokens) for model in QWEN.values()]
    sparse = [attention_cost(model, n_tokens, density=0.2) for model in QWEN.values()]
    assert np.mean([cost.attention_share for cost in dense]) == pytest.approx(share, abs=5e-4)
    gains = [a.total / b.total for a, b in zip(dense, sparse, strict=True)]
    assert np.mean(gains) == pytest.approx(gain, abs=5e-3)


@pytest.mark.parametrize(
    ("projections", "expected"),
    [
        ("printed", [[6.0, 32.9], [32.9, 78.5], [78.5, 96.6]]),
        ("grouped", [[6.6, 35.2], [35.2, 80.2], [80.2, 96.9]]),
    ],
)
def test_the_printed_four_d_squared_misses_the_printed_shares(projections, expected):
    for batch, ends in zip((1, 8, 64), expected, strict=True):
        for n_tokens, share in zip((16_384, 131_072), ends, strict=True):
            costs = [
                attention_cost(model, n_tokens, batch=batch, phase="decode", projections=projections)
                for model in QWEN.values()
            ]
            assert 100 * np.mean([cost.cache_share for cost in costs]) == pytest.approx(share, abs=0.06)


def test_every_term_by_hand():
    length, batch, d, dh, n, h, kv, m, v = 5, 3, 8, 2, 2, 4, 2, 6, 10
    cost = attention_cost(TINY, length, density=0.5, batch=batch, index=7)
    assert cost.embedding == batch * 2 * length * d
    assert cost.projections == batch * n * 2 * length * d * (2 * d + 2 * dh * kv)
    assert cost.attention == batch * n * 0.5 * (4 * h * length**2 * dh + 3 * h * length**2)
    assert cost.mlp == batch * n * (6 * length * d * m + 2 * length * m)
    assert cost.output == batch * 2 * length * d * v
    assert cost.total == cost.embedding + cost.projections + cost.attention + cost.mlp + cost.output + 7
    reads = attention_cost(TINY, length, density=0.5, batch=batch, phase="decode", projections="printed")
    assert reads.total == n * (4 * d * d + 3 * d * m) + d * v + d + batch * 2 * n * length * dh * kv * 0.5


def test_what_finding_the_pattern_costs():
    lines = vertical_slash_index_cost(TINY, 64, window=4, n_vertical=3, n_slash=5, batch=2)
    assert lines == 2 * 2 * 4 * ((2 * 2 + 5) * 64 * 4 + 2 * 64 * 6 + 64 / 64 * 8)
    assert quest_index_cost(TINY, 64, page_size=16, batch=3) == 3 * 2 * 2 * 2 * 2 * 4
    assert block_index_cost(TINY, 40, block_size=16, batch=3) == 3 * 2 * 4 * 2 * 2 * (40 + 3**2)


def test_half_the_density_halves_only_what_it_scales():
    dense, half = (attention_cost(TINY, 100, density=x, phase="decode") for x in (1.0, 0.5))
    assert half.attention == dense.attention / 2
    assert half.projections == dense.projections
    assert half.mlp == dense.mlp


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"density": 1.5}, "density must lie between 0 and 1, got 1.5"),
        ({"batch": 0}, "n_tokens and batch must be at least 1"),
        ({"index": float("nan")}, "index must be a finite cost"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        attention_cost(TINY, 10, **arguments)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({"heads": 3}, "heads must be a multiple of kv_heads=2"), ({"layers": 0}, "layers must be at least 1")],
)
def test_bad_sizes(sizes, message):
    given = {"layers": 2, "hidden": 8, "heads": 4, "kv_heads": 2, "mlp": 6, "vocabulary": 10} | sizes
    with pytest.raises(ValueError, match=message):
        ModelSizes(**given)
