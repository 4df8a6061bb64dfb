"""The intervals cover what they promise and the tests err as rarely as they say, found by simulation."""

import numpy as np
import pytest
from scipy import stats

from sparsebook.evaluation.statistics import (
    bootstrap_interval,
    cluster_means,
    detectable_effect,
    equivalence,
    holm,
    holm_levels,
    not_worse,
    order_test,
    paired_interval,
    prediction_interval,
    region_test,
    t_interval,
)

RUNS = 20_000
FOUR_SIGMA = 4 * np.sqrt(0.05 * 0.95 / RUNS)
# Coverage of the 95 % interval for samples of an exponential distribution, found with 100,000 runs.
EXPONENTIAL = {5: 0.883, 8: 0.893, 20: 0.919}


def generator() -> np.random.Generator:
    return np.random.default_rng(20)


# --- intervals -------------------------------------------------------------------------------------------


def test_t_interval_agrees_with_scipy() -> None:
    x = generator().normal(3, 2, 9)
    ours, theirs = t_interval(x, 0.9), stats.ttest_1samp(x, 0).confidence_interval(0.9)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-12)


@pytest.mark.parametrize("n", [5, 8, 20])
@pytest.mark.parametrize("level", [0.95, 0.99375])
def test_coverage_for_normal_samples(n: int, level: float) -> None:
    covered = t_interval(generator().normal(2, 3, (RUNS, n)), level).contains(2).mean()
    assert covered == pytest.approx(level, abs=FOUR_SIGMA)


@pytest.mark.parametrize("n", [5, 8, 20])
def test_coverage_for_paired_samples(n: int) -> None:
    """What the pairs share cancels: unpaired, the interval would be ten times as wide."""
    draw = generator()
    shared = draw.normal(0, 10, (RUNS, n))
    treated, control = shared + draw.normal(0.5, 1, (RUNS, n)), shared + draw.normal(0, 1, (RUNS, n))
    paired = paired_interval(treated, control)
    assert paired.contains(0.5).mean() == pytest.approx(0.95, abs=FOUR_SIGMA)
    alone = t_interval(treated)
    assert np.mean(paired.high - paired.low) < 0.25 * np.mean(alone.high - alone.low)


@pytest.mark.parametrize("n", [5, 8, 20])
def test_coverage_for_skewed_samples_is_what_the_documentation_admits(n: int) -> None:
    covered = t_interval(generator().exponential(1, (RUNS, n))).contains(1).mean()
    assert covered == pytest.approx(EXPONENTIAL[n], abs=2 * FOUR_SIGMA)


@pytest.mark.parametrize("n", [5, 8, 20])
def test_coverage_for_skewed_differences_of_pairs(n: int) -> None:
    """Differences of skewed pairs are symmetric: pairing repairs the coverage."""
    draw = generator()
    treated, control = draw.exponential(1, (2, RUNS, n))
    assert paired_interval(treated, control).contains(0).mean() >= 0.95 - FOUR_SIGMA


@pytest.mark.parametrize("n", [5, 8, 20])
def test_geometric_coverage_for_timing_ratios(n: int) -> None:
    ratios = generator().lognormal(np.log(0.8), 0.5, (RUNS, n))
    assert t_interval(np.log(ratios)).contains(np.log(0.8)).mean() == pytest.approx(0.95, abs=FOUR_SIGMA)


@pytest.mark.parametrize("n", [5, 8, 20])
def test_prediction_interval_covers_one_new_value(n: int) -> None:
    x = generator().normal(2, 3, (RUNS, n + 1))
    covered = prediction_interval(x[:, :n]).contains(x[:, n]).mean()
    assert covered == pytest.approx(0.95, abs=FOUR_SIGMA)


@pytest.mark.parametrize(("draw", "mean", "promised"), [("normal", 0, 0.93), ("exponential", 1, 0.92)])
def test_bootstrap_coverage_at_its_smallest_n(draw: str, mean: float, promised: float) -> None:
    x = getattr(generator(), draw)(size=(2000, 20))
    assert bootstrap_interval(x, resamples=999).contains(mean).mean() == pytest.approx(promised, abs=0.02)


def test_bootstrap_of_a_median_and_its_seed() -> None:
    x = generator().exponential(1, 40)
    first, second = (bootstrap_interval(x, np.median, seed=3) for _ in range(2))
    assert first == second
    assert first.low < np.median(x) < first.high


@pytest.mark.parametrize("n", [2, 8, 19])
def test_bootstrap_refuses_few_samples(n: int) -> None:
    with pytest.raises(ValueError, match=f"at least 20 samples, got {n}"):
        bootstrap_interval(np.arange(n, dtype=float))


def test_bootstrap_refuses_equal_samples() -> None:
    with pytest.raises(ValueError, match="all samples are equal"):
        bootstrap_interval(np.ones(30))


# --- questions about a region ----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [5, 8, 20])
@pytest.mark.parametrize(("low", "high"), [(0, np.inf), (-np.inf, 0), (0, 100), (-100, 0)])
def test_false_verdicts_on_a_border(n: int, low: float, high: float) -> None:
    """With the true mean on the border, each of the two verdicts comes out at most 2.5 % of the time."""
    test = region_test(generator().normal(0, 1, (RUNS, n)), low, high)
    for p in (test.inside, test.outside):
        assert np.mean(2 * p <= 0.05) == pytest.approx(0.025, abs=FOUR_SIGMA)


@pytest.mark.parametrize("n", [5, 8, 20])
def test_false_equivalence(n: int) -> None:
    x = generator().normal(0.5, 1, (RUNS, n))
    assert np.mean(2 * equivalence(x, 0, 0.5) <= 0.05) <= 0.025 + FOUR_SIGMA
    assert np.mean(2 * equivalence(x, 0.5, 3) <= 0.05) > 0.9  # and it can be shown


def test_a_narrow_region_is_left_by_either_border() -> None:
    """The worst case of two borders: "fails" comes out wrongly up to 5 % of the time, "holds" never."""
    test = region_test(generator().normal(0, 1, (RUNS, 8)), -1e-9, 1e-9)
    assert np.mean(2 * test.outside <= 0.05) == pytest.approx(0.05, abs=FOUR_SIGMA)
    assert np.mean(2 * test.inside <= 0.05) == 0


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_false_not_worse(better: str) -> None:
    worse = -0.5 if better == "higher" else 0.5
    x = generator().normal(worse, 1, (RUNS, 8))
    assert np.mean(2 * not_worse(x, 0, 0.5, better) <= 0.05) == pytest.approx(0.025, abs=FOUR_SIGMA)
    assert np.mean(2 * not_worse(x - 4 * worse, 0, 0.5, better) <= 0.05) > 0.9


@pytest.mark.parametrize("seed", range(5))
def test_intervals_and_p_values_say_the_same(seed: int) -> None:
    x = np.random.default_rng(seed).normal(0.7, 1, (2000, 8))
    for level in (0.95, 0.99):
        interval, test = t_interval(x, level), region_test(x, -2, 1.5)
        inside = (interval.low >= -2) & (interval.high <= 1.5)
        outside = (interval.high < -2) | (interval.low > 1.5)
        np.testing.assert_array_equal(inside, 2 * test.inside <= 1 - level)
        np.testing.assert_array_equal(outside, 2 * test.outside <= 1 - level)


@pytest.mark.parametrize(
    ("strict", "inside", "outside"), [(False, 0.0, 1.0), (True, 1.0, 0.0)], ids=["closed", "open"]
)
def test_samples_without_spread_are_a_point(strict: bool, inside: float, outside: float) -> None:
    test = region_test(np.full(8, 0.1), low=0.1, strict=strict)
    assert (test.inside, test.outside) == (inside, outside)
    assert t_interval(np.full(8, 0.1)).contains(0.1)  # no rounding: eight times 0.1 is not 0.8


@pytest.mark.parametrize(("low", "high"), [(2, 1), (-np.inf, np.inf), (np.nan, 1)])
def test_region_without_border_or_meaning(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="low, high"):
        region_test([1.0, 2.0], low, high)


@pytest.mark.parametrize("values", [[1.0], [1.0, np.nan], [np.inf, 1.0]])
def test_bad_samples(values: list[float]) -> None:
    with pytest.raises(ValueError, match="values"):
        t_interval(values)


def test_bad_parameters() -> None:
    with pytest.raises(ValueError, match=r"margin.*got 0"):
        equivalence([1.0, 2.0], 1, 0)
    with pytest.raises(ValueError, match=r"level.*got 95"):
        t_interval([1.0, 2.0], 95)
    with pytest.raises(ValueError, match="must be paired"):
        paired_interval([1.0, 2.0, 3.0], [1.0, 2.0])


# --- order -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [5, 8, 20])
def test_false_order(n: int) -> None:
    """One flat step among steep ones is the worst case of "every step rises"."""
    draw = generator()
    shared = draw.normal(0, 5, (RUNS, n, 1))
    flat = order_test(draw.normal([0, 9, 9, 18], 1, (RUNS, n, 4)) + shared, "increasing")
    assert np.mean(2 * flat.inside <= 0.05) == pytest.approx(0.025, abs=FOUR_SIGMA)


@pytest.mark.parametrize("levels", [2, 4, 8])
def test_false_disorder(levels: int) -> None:
    """All steps flat is the worst case of "some step falls"; without the factor it would be 8 times."""
    test = order_test(generator().normal(0, 1, (RUNS, 8, levels)), "increasing")
    rate = np.mean(2 * test.outside <= 0.05)
    assert 0.015 < rate <= 0.025 + FOUR_SIGMA


def test_order_is_found_in_its_direction() -> None:
    x = generator().normal([0, 2, 4], 0.5, (RUNS, 8, 3))
    up, down = order_test(x, "increasing"), order_test(x, "decreasing")
    assert np.mean(2 * up.inside <= 0.05) > 0.99
    assert np.mean(2 * down.outside <= 0.05) > 0.99
    np.testing.assert_allclose(order_test(-x, "decreasing").inside, up.inside)


def test_bad_order() -> None:
    with pytest.raises(ValueError, match="at least 2 levels"):
        order_test(np.ones((8, 1)), "increasing")


# --- several tests at once -------------------------------------------------------------------------------


def test_holm_by_hand() -> None:
    p = np.array([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(holm(p), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm_levels(p), [0.05 / 3, 0.05 / 2, 0.05 / 2, 0.05 / 4])
    assert holm_levels(np.zeros(0)).shape == (0,)


def test_holm_levels_decide_as_adjusted_p_values_do() -> None:
    p = generator().uniform(0, 1, (RUNS, 6)) ** 4
    np.testing.assert_array_equal(p <= holm_levels(p), holm(p) <= 0.05)


@pytest.mark.parametrize(("correlation", "expected"), [(0.0, 0.025), (0.7, 0.03), (0.99, 0.035)])
def test_family_wise_errors_under_holm(correlation: float, expected: float) -> None:
    """Eight claims just outside of their regions, sharing seeds or not: "holds" is always false."""
    draw = generator()
    shared = draw.normal(0, 1, (RUNS, 1, 8))
    x = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * draw.normal(0, 1, (RUNS, 8, 8))
    test = region_test(x, low=1e-9)
    levels = holm_levels(test.two_sided)
    false = 2 * test.inside <= levels
    assert false.any(axis=1).mean() <= 0.025 + FOUR_SIGMA
    assert false.sum(axis=1).mean() == pytest.approx(expected, abs=0.006)
    assert (test.two_sided <= levels).any(axis=1).mean() <= 0.05 + FOUR_SIGMA
    assert (2 * test.inside <= 0.05).any(axis=1).mean() > 0.03  # unadjusted, it would be more


def test_family_wise_errors_when_some_claims_are_true() -> None:
    means = np.array([0.0] * 4 + [3.0] * 4)[:, None]
    x = generator().normal(means, 1, (RUNS, 8, 8))
    p = region_test(x, low=0).two_sided
    found = p <= holm_levels(p)
    assert found[:, :4].any(axis=1).mean() <= 0.05 + FOUR_SIGMA
    assert found[:, 4:].mean() > 0.95


@pytest.mark.parametrize("p", [[-0.1], [1.1], [np.nan]])
def test_holm_refuses_what_is_no_probability(p: list[float]) -> None:
    with pytest.raises(ValueError, match="p_values"):
        holm(np.array(p))


# --- detectable effects and clusters ---------------------------------------------------------------------


@pytest.mark.parametrize("n", [5, 8, 20])
@pytest.mark.parametrize("level", [0.95, 0.99375])
def test_detectable_effect_is_detected_four_times_of_five(n: int, level: float) -> None:
    effect = detectable_effect(2.0, n, level)
    test = region_test(generator().normal(effect, 2, (RUNS, n)), low=0)
    assert np.mean(2 * test.inside <= 1 - level) == pytest.approx(0.8, abs=4 * np.sqrt(0.16 / RUNS))


def test_detectable_effect_scales_with_the_spread_and_refuses_nonsense() -> None:
    assert detectable_effect(3.0, 8) == pytest.approx(3 * detectable_effect(1.0, 8))
    assert detectable_effect(0.0, 8) == 0
    for bad in ({"spread": 1.0, "n": 1}, {"spread": np.nan, "n": 8}, {"spread": 1.0, "n": 8, "power": 1.0}):
        with pytest.raises(ValueError, match="expected"):
            detectable_effect(**bad)


def test_cluster_means_weigh_groups_and_keep_their_order() -> None:
    means = cluster_means([1.0, 2.0, 3.0, 10.0], ["b", "a", "b", "a"])
    np.testing.assert_array_equal(means, [2, 6])
    levels = cluster_means(np.array([[1.0, 2.0], [3.0, 4.0]]), [7, 7])
    np.testing.assert_array_equal(levels, [[2, 3]])
    with pytest.raises(ValueError, match="one per sample, got 1 for 2"):
        cluster_means([1.0, 2.0], ["a"])


def test_clusters_keep_the_coverage_that_their_members_would_lose() -> None:
    draw = generator()
    x = draw.normal(0, 1, (2000, 8, 1)) + draw.normal(0, 0.5, (2000, 8, 10))
    members = t_interval(x.reshape(2000, 80)).contains(0).mean()
    groups = np.repeat(np.arange(8), 10)
    clusters = np.stack([cluster_means(row, groups) for row in x.reshape(2000, 80)])
    assert members < 0.7
    assert t_interval(clusters).contains(0).mean() == pytest.approx(0.95, abs=0.02)
