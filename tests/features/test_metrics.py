"""Closed forms of every metric."""

import itertools

import pytest
import torch
from torch.nn.functional import normalize

from sparsebook.features import metrics
from sparsebook.features.codes import DenseCodes


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_reconstruction_by_hand():
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 6.0]])
    guess = torch.tensor([[0.0, 1.0], [2.0, 0.0], [2.0, 6.0]])
    # Errors 1, 0, 4; deviations from the mean (2, 2): 8, 4, 20.
    assert float(metrics.squared_error(x, guess)) == pytest.approx(5 / 3)
    assert float(metrics.normalized_mse(x, guess)) == pytest.approx(5 / 32)
    assert float(metrics.r_squared(x, guess)) == pytest.approx(27 / 32)
    assert float(metrics.normalized_mse(x, x.mean(0).expand_as(x))) == pytest.approx(1)
    stack = metrics.normalized_mse(x, torch.stack([guess, x]))
    torch.testing.assert_close(stack, torch.tensor([5 / 32, 0.0]))


def test_use_of_latents_by_hand():
    codes = DenseCodes(torch.tensor([[1.0, 0, 0, 2], [0, 0, 0, 3], [1, 0, 0.5, 1], [0, 0, 0, 1]]))
    assert float(metrics.l0(codes)) == 7 / 4
    density = metrics.densities(codes)
    assert density.tolist() == [0.5, 0, 0.25, 1]
    assert float(metrics.dead_fraction(density)) == 0.25
    assert float(metrics.dead_fraction(density, 0.25)) == 0.5
    assert float(metrics.alive_fraction(density)) == 0.75
    expected = torch.tensor([0.5, 0.5, 0.75, 0.5])
    assert float(metrics.underused_fraction(density, expected)) == 0.25


def test_effective_features_and_gini():
    alike, alone = torch.full((8,), 0.3), torch.tensor([0.0, 0, 0, 0, 0, 0, 0, 0.2])
    assert float(metrics.effective_features(alike)) == pytest.approx(8)
    assert float(metrics.effective_features(alone)) == pytest.approx(1)
    assert float(metrics.gini(alike)) == pytest.approx(0, abs=1e-12)
    assert float(metrics.gini(alone)) == pytest.approx(7 / 8)
    values = torch.rand(20)
    mean_difference = (values[:, None] - values).abs().mean() / (2 * values.mean())
    assert float(metrics.gini(values)) == pytest.approx(float(mean_difference), rel=1e-5)
    # One half, one quarter, two eighths: an entropy of 7/4 bits.
    assert float(metrics.effective_features(torch.tensor([4.0, 2, 1, 1]))) == pytest.approx(2**1.75)
    assert metrics.gini(torch.stack([alike, alone])).shape == (2,)


def test_max_cosine_in_blocks_is_that_of_all_pairs():
    a, b = torch.randn(37, 6), torch.randn(23, 6)
    expected = (normalize(a, dim=1) @ normalize(b, dim=1).T).amax(1)
    for block in (1, 5, 23, 100):
        torch.testing.assert_close(metrics.max_cosine(a, b, block), expected)
    assert float(metrics.mean_max_cosine(a, a)) == pytest.approx(1)
    table = metrics.seed_consistency(torch.stack([a, a[torch.randperm(37)], -a]))
    assert float(table[0, 1]) == pytest.approx(1)
    assert float(table[0, 2]) < 1
    torch.testing.assert_close(table.diagonal(), torch.ones(3))


def test_recovery_ignores_order_and_positive_scale():
    features = normalize(torch.randn(10, 30), dim=1)
    dictionary = torch.cat([features[:6], torch.randn(20, 30)])
    shuffled = dictionary[torch.randperm(26)] * torch.rand(26, 1).add(0.1)
    for found in (dictionary, shuffled):
        assert float(metrics.feature_recovery_rate(found, features, 0.9)) == pytest.approx(0.6)
    assert float(metrics.feature_recovery_rate(-features, features)) == 0
    # An atom at a known angle is counted up to its cosine and not beyond.
    turned = torch.tensor([[0.85, (1 - 0.85**2) ** 0.5]])
    axis = torch.tensor([[1.0, 0.0]])
    assert [float(metrics.feature_recovery_rate(turned, axis, tau)) for tau in (0.8, 0.9)] == [1, 0]


def test_babel_by_enumeration():
    dictionary = torch.randn(6, 4)
    unit = normalize(dictionary, dim=1)
    gram = (unit @ unit.T).abs()
    expected = [
        max(
            sum(float(gram[i, j]) for j in others)
            for i in range(6)
            for others in itertools.combinations(set(range(6)) - {i}, r)
        )
        for r in range(1, 6)
    ]
    for block in (2, 4096):
        found = metrics.babel(dictionary, block=block)
        torch.testing.assert_close(found, torch.tensor(expected))
    torch.testing.assert_close(
        metrics.babel(dictionary, torch.tensor([3, 1])), torch.tensor(expected)[[2, 0]]
    )
    torch.testing.assert_close(metrics.babel(torch.eye(4)), torch.zeros(3))


def test_babel_of_the_atoms_that_a_token_uses():
    dictionary = torch.tensor([[1.0, 0], [0, 1], [0.6, 0.8]])
    codes = DenseCodes(torch.tensor([[1.0, 1, 0], [1, 0, 1], [1, 1, 1], [0, 0, 2]]))
    torch.testing.assert_close(
        metrics.active_babel(codes, dictionary), torch.tensor([0.0, 0.6, 0.6 + 0.8, 0.0])
    )


def test_effective_rank():
    q = torch.linalg.qr(torch.randn(20, 5))[0]
    assert float(metrics.effective_rank(q)) == pytest.approx(5)
    assert float(metrics.effective_rank(torch.ones(4, 7))) == pytest.approx(1)
    # Singular values with squares 4, 2, 1, 1.
    scaled = q[:, :4] * torch.tensor([2, 2**0.5, 1, 1])
    assert float(metrics.effective_rank(scaled)) == pytest.approx(2**1.75, rel=1e-5)
    assert float(metrics.effective_rank(scaled.T)) == pytest.approx(2**1.75, rel=1e-5)
    assert metrics.effective_rank(torch.stack([q, q])).shape == (2,)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: metrics.gini(torch.zeros(4)), "density"),
        (lambda: metrics.effective_features(torch.tensor([0.5, -0.1])), "density"),
        (lambda: metrics.effective_rank(torch.zeros(3, 3)), "matrix"),
        (lambda: metrics.max_cosine(torch.tensor([[1.0, 0], [0, 0]]), torch.eye(2)), r"atoms .*\[1\]"),
        (lambda: metrics.max_cosine(torch.eye(2), torch.zeros(0, 2)), "others is empty"),
        (lambda: metrics.babel(torch.zeros(3, 3)), "zero"),
        (lambda: metrics.babel(torch.eye(3), torch.tensor([3])), "sizes"),
        (lambda: metrics.babel(torch.eye(1)), "sizes"),
        (lambda: metrics.atom_norms(torch.tensor([[torch.nan, 1.0]])), "dictionary"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_modality_score_by_hand():
    codes = DenseCodes(torch.tensor([[1.0, 2, 0, 0], [0, 1, 0, 3], [0, 1, 0, 4.0]]))
    first = torch.tensor([True, False, False])
    found = metrics.modality_score(codes, first)
    assert found[:2].tolist() == pytest.approx([1, 4 / 6])
    assert found[3] == 0
    assert found[2].isnan()
    assert metrics.modality_score(codes, first, 0.2)[1] == pytest.approx(4 / 4.4)
    for wrong, scale in ((first[:2], 1), (torch.ones(3, dtype=torch.bool), 1), (first, 0)):
        with pytest.raises(ValueError, match="expected"):
            metrics.modality_score(codes, wrong, scale)
