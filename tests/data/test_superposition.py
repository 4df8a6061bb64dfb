"""The worlds have the frequencies, counts and moments that they promise."""

import pytest
import torch

from sparsebook.data.superposition import (
    SparseMixture,
    arrival_rates,
    choose,
    two_level_mixture,
    zipf_world,
)

N = 10_000


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def within(found, expected, n, sigmas=5.0):
    """Shares of n tokens, each within so many standard errors."""
    return bool(((found - expected).abs() < sigmas * (expected * (1 - expected) / n).sqrt()).all())


@pytest.mark.parametrize("uniform", [False, True])
def test_zipf_world_has_its_frequencies_and_counts(generator, uniform):
    world = zipf_world(256, 48, uniform=uniform)
    drawn = world.sample(N, generator)
    ranks = torch.arange(1, 257).double()
    law = torch.ones(256).double() if uniform else 1 / (ranks + 3)
    torch.testing.assert_close(world.densities, 8 * law / law.sum(), rtol=1e-6, atol=0)
    assert within((drawn.coefficients != 0).double().mean(0), world.densities, N)
    counts = drawn.active
    for s in (1, 2, 5, 12):
        assert within((counts == s).double().mean(), torch.tensor(0.125 * 0.875 ** (s - 1)), N)
    sizes = drawn.coefficients[drawn.coefficients != 0]
    assert float(sizes.min()) >= 1
    assert float(sizes.mean()) == pytest.approx(1 + 0.3 * (2 / torch.pi) ** 0.5, abs=0.005)
    torch.testing.assert_close(drawn.x, drawn.coefficients @ world.features)


def test_the_twin_differs_in_densities_only():
    world, twin = zipf_world(64, 16, mean_active=3), zipf_world(64, 16, mean_active=3, uniform=True)
    torch.testing.assert_close(world.features, twin.features, rtol=0, atol=0)
    assert float(world.densities.sum()) == pytest.approx(float(twin.densities.sum()))
    torch.testing.assert_close(world.features.norm(dim=1), torch.ones(64))
    assert zipf_world(64, 16, mean_active=3, seed=1).features.tolist() != world.features.tolist()


def test_draws_are_functions_of_the_generator():
    world = zipf_world(64, 16, mean_active=3)
    one, two = (world.sample(50, torch.Generator().manual_seed(s)).x for s in (4, 4))
    torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_a_law_that_no_world_has_is_refused():
    with pytest.raises(ValueError, match="densities"):
        zipf_world(64, 16, mean_active=20, exponent=2, offset=0)
    with pytest.raises(ValueError, match="add up"):
        arrival_rates(torch.tensor([0.5, 0.5, 0.5]), torch.tensor([1.0]))


def test_successive_sampling_by_enumeration(generator):
    """Two of three features with rates 3, 2, 1: all ordered draws enumerated."""
    rates = torch.tensor([3.0, 2.0, 1.0])
    drawn = choose(torch.full((N,), 2), rates, generator)
    absent = torch.zeros(3)
    for first in range(3):
        for second in {0, 1, 2} - {first}:
            left = ({0, 1, 2} - {first, second}).pop()
            absent[left] += rates[first] / 6 * rates[second] / (6 - rates[first])
    assert within(1 - drawn.double().mean(0), absent, N)
    assert drawn.sum(1).tolist() == [2] * N


def test_all_features_can_be_chosen_however_rare_some_are(generator):
    drawn = choose(torch.tensor([5, 4]), torch.tensor([1.0, 1e-9, 1e-12, 1.0, 1e-15]), generator)
    assert drawn.sum(1).tolist() == [5, 4]


@pytest.mark.parametrize("coefficients", ["constant", "varied"])
def test_sparse_mixture_has_exactly_s_features(generator, coefficients):
    world = SparseMixture(64, 24, 5, coefficients)
    drawn = world.sample(N, generator)
    assert drawn.active.unique().tolist() == [5]
    assert within((drawn.coefficients != 0).double().mean(0), world.densities, N)
    sizes = drawn.coefficients[drawn.coefficients != 0] * 5**0.5
    spread = {"constant": 0.0, "varied": 0.25}[coefficients]
    assert float(sizes.mean()) == pytest.approx(1, abs=0.005)
    assert float(sizes.std()) == pytest.approx(spread, abs=0.005)


def test_second_moment_of_the_mixture(generator):
    """``E[x x^T] = V^T E[h h^T] V``; ``E[h h^T]`` is 1/n on the diagonal, (s-1)/(n(n-1)) beside it."""
    n, s = 32, 4
    world = SparseMixture(n, 12, s)
    x = world.sample(8 * N, generator).x.double()
    moments = torch.full((n, n), (s - 1) / (n * (n - 1))).double().fill_diagonal_(1 / n)
    expected = world.features.T.double() @ moments @ world.features.double()
    torch.testing.assert_close(x.T @ x / len(x), expected, rtol=0, atol=0.003)
    assert float(world.features.square().sum(1).mean()) == pytest.approx(1, abs=0.2)


def test_two_levels(generator):
    world = two_level_mixture()
    drawn = world.sample(N, generator)
    levels, counts = drawn.active.unique(return_counts=True)
    assert levels.tolist() == [3, 20]
    assert within(counts[0] / N, torch.tensor(0.5), N)
    assert world.features.shape == (128, 42)
    assert float(world.densities[0]) == pytest.approx(11.5 / 128)
    norms = drawn.coefficients.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(N))


def test_frequencies_are_met(generator):
    relative = [1 / (1 + i) for i in range(40)]
    world = SparseMixture(40, 16, 3, frequencies=relative)
    drawn = world.sample(N, generator)
    expected = 3 * torch.tensor(relative).double() / sum(relative)
    torch.testing.assert_close(world.densities, expected)
    # The rates are an approximation for few features a token: within 3 percent here.
    found = (drawn.coefficients != 0).double().mean(0)
    assert bool(((found - expected).abs() < 0.03 * expected + 5 * (expected / N).sqrt()).all())


@pytest.mark.parametrize("chance", [0.3, 1.0])
def test_partners_occur_together(generator, chance):
    world = SparseMixture(64, 16, 4, co_occurrence=chance)
    drawn = world.sample(N, generator)
    present = drawn.coefficients != 0
    assert drawn.active.unique().tolist() == [4]
    assert within(present.double().mean(0), world.densities, N)
    pairs = (present[:, ::2] & present[:, 1::2]).sum(1).double().mean()
    alone = SparseMixture(64, 16, 4).sample(N, generator).coefficients != 0
    by_chance = (alone[:, ::2] & alone[:, 1::2]).sum(1).double().mean()
    assert float(pairs) == pytest.approx(2 * chance + (1 - chance) * float(by_chance), abs=0.06)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: zipf_world(mean_active=1), "mean_active=1"),
        (lambda: zipf_world(n_features=4, mean_active=8), "mean_active=8"),
        (lambda: zipf_world(dim=0), "dim=0"),
        (lambda: SparseMixture(8, 4, 9), "sparsity=9"),
        (lambda: SparseMixture(8, 4, ()), "sparsity"),
        (lambda: SparseMixture(8, 4, 2, "uniform"), "coefficients"),
        (lambda: SparseMixture(8, 4, 2, frequencies=[1.0]), "frequencies has 1"),
        (lambda: SparseMixture(7, 4, 2, co_occurrence=0.5), "co_occurrence"),
        (lambda: SparseMixture(8, 4, 2).sample(0, torch.Generator()), "n=0"),
    ],
)
def test_bad_input(make, match):
    # The type checker of the tests refuses wrong words before the library can.
    with pytest.raises(Exception, match=match):
        make()
