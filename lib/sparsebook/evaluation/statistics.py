"""Intervals and tests that decide whether a measured quantity lies where it was expected.

Everything here asks about the mean of independent samples through Student's t, along the last axis and
over any leading axes at once, so that the simulations which validate these functions call the very code
that judges a claim. A two-sided interval of level ``1 - a`` and the one-sided p-values agree exactly: the
interval lies wholly on one side of a border if and only if that side's p-value is at most ``a / 2``.

A region ``[low, high]`` (either end may be infinite) is asked two questions:

*inside*: can "the mean lies outside" be rejected? Every border must be cleared, so the p-value is the
largest of the borders' (an intersection-union test; with two finite borders this is Schuirmann's two
one-sided tests, 1987). *outside*: can "the mean lies inside" be rejected? One border is enough, so the
p-value is the smallest.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Real
from scipy import special

ALPHA = 0.05
"""Two-sided level at which a chapter's verdicts are decided, before Holm's adjustment."""

MINIMUM_FOR_BOOTSTRAP = 20

Number = float | int
Values = Real[np.ndarray, "*batch n"] | Sequence[float] | Sequence[int]


@dataclass(frozen=True)
class Interval:
    """A two-sided interval; ``low`` and ``high`` are floats, or arrays over the leading axes."""

    low: Any
    high: Any
    level: float | int

    def contains(self, value: Any) -> Any:
        """Whether ``value`` lies in the closed interval (elementwise over the leading axes)."""
        return (self.low <= value) & (value <= self.high)


@dataclass(frozen=True)
class RegionTest:
    """p-values of the two questions about a region; small ``inside`` means: the mean lies inside."""

    inside: Any
    outside: Any

    @property
    def two_sided(self) -> Any:
        """p-value of "no verdict": twice the smaller one, at most 1; this one enters Holm's procedure."""
        return np.minimum(1.0, 2 * np.minimum(self.inside, self.outside))


@dataclass(frozen=True)
class OrderTest(RegionTest):
    """`RegionTest` of "every step goes in the stated direction", with the steps' paired differences.

    ``steps`` has shape ``[..., n, levels - 1]``; a positive difference is a step in the stated direction.
    """

    steps: np.ndarray


def t_interval(values: Values, level: Number = 1 - ALPHA) -> Interval:
    """Student's t interval for the mean of independent samples.

    For paired measurements pass their differences (or the logarithms of their ratios).

    Parameters
    ----------
    values : array [..., n]
        At least two finite samples along the last axis.
    level : float
        Two-sided coverage, between 0 and 1.

    Notes
    -----
    Exact for normal samples. For one-sided, long-tailed ones it covers less: for an exponential
    distribution 88, 89 and 92 % instead of 95 with 5, 8 and 20 samples, where the bootstrap does no better
    (92 % with 20). Differences of pairs are symmetric and keep 95 %; take logarithms of ratios.

    Raises
    ------
    ValueError
        For fewer than two samples, NaN or infinity, or a level outside (0, 1).
    """
    sample = _samples(values)
    mean, error, freedom = _mean_and_error(sample)
    reach = _t_quantile(level, freedom) * error
    return Interval(mean - reach, mean + reach, level)


def paired_interval(treated: Values, control: Values, level: Number = 1 - ALPHA) -> Interval:
    """t interval for the mean difference ``treated - control`` of measurements made on the same units."""
    first, second = _samples(treated), _samples(control)
    if first.shape != second.shape:
        raise ValueError(
            f"treated and control must be paired: shapes {first.shape} and {second.shape} differ"
        )
    return t_interval(first - second, level)


def prediction_interval(values: Values, level: Number = 1 - ALPHA) -> Interval:
    """Interval in which one new sample of the same normal distribution falls with probability ``level``.

    Wider than the interval for the mean by ``sqrt(n + 1)``; this is what a re-run of one cell of a
    recorded table is compared with.
    """
    sample = _samples(values)
    mean, error, freedom = _mean_and_error(sample)
    reach = _t_quantile(level, freedom) * error * np.sqrt(freedom + 2)
    return Interval(mean - reach, mean + reach, level)


def bootstrap_interval(
    values: Values,
    statistic: Callable[..., Any] = np.mean,
    level: Number = 1 - ALPHA,
    resamples: int = 9999,
    seed: int = 0,
) -> Interval:
    """Bias-corrected and accelerated bootstrap interval (`scipy.stats.bootstrap`) of any statistic.

    For quantities that the t interval does not cover, such as medians or slopes.

    Parameters
    ----------
    values : array [..., n]
        At least 20 samples along the last axis: below that, the bootstrap covers too little.
    statistic : callable
        Vectorised: takes ``(array, axis=...)``.

    Raises
    ------
    ValueError
        For fewer than 20 samples, non-finite samples, or samples that are all equal.
    """
    sample = _samples(values)
    if sample.shape[-1] < MINIMUM_FOR_BOOTSTRAP:
        raise ValueError(
            f"values: the bootstrap needs at least {MINIMUM_FOR_BOOTSTRAP} samples, got {sample.shape[-1]}; "
            "use t_interval"
        )
    if np.any(np.ptp(sample, axis=-1) == 0):
        raise ValueError("values: all samples are equal, a bootstrap interval of them says nothing")
    from scipy.stats import bootstrap  # 0.5 s of import that only this function needs

    result = bootstrap(
        (sample,),
        statistic,
        axis=-1,
        vectorized=True,
        confidence_level=level,
        n_resamples=resamples,
        batch=100,
        method="BCa",
        rng=np.random.default_rng(seed),
    )
    return Interval(result.confidence_interval.low, result.confidence_interval.high, level)


def region_test(
    values: Values, low: Number = -np.inf, high: Number = np.inf, *, strict: bool = False
) -> RegionTest:
    """Ask whether the mean lies inside or outside of ``[low, high]``; see the module's docstring.

    Parameters
    ----------
    values : array [..., n]
    low, high : float
        The region's borders; an infinite one is no border.
    strict : bool
        The borders themselves are outside. Matters only for samples without any spread, which are
        judged as the point that they are.

    Raises
    ------
    ValueError
        When ``low`` is not below or equal to ``high``, both are infinite, or the samples are bad.
    """
    if not low <= high or (np.isinf(low) and np.isinf(high)):
        raise ValueError(f"low, high: expected a region with at least one border, got [{low}, {high}]")
    sample = _samples(values)
    above_low, below_low = _one_sided(sample, low, strict) if np.isfinite(low) else (0.0, 1.0)
    below_high, above_high = _one_sided(-sample, -high, strict) if np.isfinite(high) else (0.0, 1.0)
    return RegionTest(np.maximum(above_low, below_high), np.minimum(below_low, above_high))


def equivalence(values: Values, value: Number, margin: Number) -> Any:
    """p-value of Schuirmann's two one-sided tests: small means the mean is within ``value ± margin``.

    One p-value for every set of samples along the leading axes of ``values`` [..., n].
    """
    _positive_margin(margin)
    return region_test(values, value - margin, value + margin).inside


def not_worse(values: Values, value: Number, margin: Number, better: Literal["higher", "lower"]) -> Any:
    """p-value of non-inferiority: small means the mean is not worse than ``value`` by ``margin`` or more.

    One p-value for every set of samples along the leading axes of ``values`` [..., n].
    """
    _positive_margin(margin)
    if better == "higher":
        return region_test(values, low=value - margin).inside
    if better == "lower":
        return region_test(values, high=value + margin).inside
    raise ValueError(f"better: expected 'higher' or 'lower', got {better!r}")


def order_test(
    values: Real[np.ndarray, "*batch n levels"],
    direction: Literal["increasing", "decreasing"],
) -> OrderTest:
    """Ask whether every step from one level to the next goes in the stated direction.

    The steps are paired differences, so what the units of replication share cancels. "All steps rise" is
    false as soon as one does not, and exactly that one has to be rejected for a false verdict: the
    largest of the steps' p-values is a valid test without any adjustment (intersection-union; Berger
    1982), and adjusting it would only cost power. "Some step falls" is a union over the steps, so there
    the smallest p-value is multiplied by the number of steps (Bonferroni).

    Raises
    ------
    ValueError
        For fewer than two levels or samples, non-finite values, or an unknown direction.
    """
    if direction not in ("increasing", "decreasing"):
        raise ValueError(f"direction: expected 'increasing' or 'decreasing', got {direction!r}")
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim < 2 or sample.shape[-1] < 2:
        raise ValueError(
            f"values: expected [..., n, levels] with at least 2 levels, got shape {sample.shape}"
        )
    steps = np.diff(sample, axis=-1) * (1 if direction == "increasing" else -1)
    each = region_test(np.moveaxis(steps, -1, -2), low=0.0, strict=True)
    inside = np.max(each.inside, axis=-1)
    outside = np.minimum(1.0, np.min(each.outside, axis=-1) * steps.shape[-1])
    return OrderTest(inside, outside, steps)


def holm(p_values: Float[np.ndarray, "*batch tests"]) -> Float[np.ndarray, "*batch tests"]:
    """Holm's step-down adjusted p-values along the last axis (Holm 1979).

    Rejecting where the adjusted value is at most ``alpha`` keeps the probability of any false rejection
    at or below ``alpha``, whatever the dependence.
    """
    order, sorted_p = _sorted(p_values)
    remaining = np.arange(sorted_p.shape[-1], 0, -1)
    adjusted = np.minimum(1.0, np.maximum.accumulate(sorted_p * remaining, axis=-1))
    return _unsorted(adjusted, order)


def holm_levels(
    p_values: Float[np.ndarray, "*batch tests"], alpha: Number = ALPHA
) -> Float[np.ndarray, "*batch tests"]:
    """The level at which Holm's procedure decided each test: ``p <= level`` exactly where it rejects.

    The r-th smallest of m is compared with ``alpha / (m - r + 1)``; once one is not rejected, neither are
    the larger ones, and that one's level stands for all of them. An interval printed at ``1 - level``
    therefore never contradicts its verdict.
    """
    order, sorted_p = _sorted(p_values)
    tests = sorted_p.shape[-1]
    if tests == 0:
        return sorted_p
    own = np.broadcast_to(alpha / np.arange(tests, 0, -1), sorted_p.shape)
    kept = np.logical_or.accumulate(sorted_p > own, axis=-1)
    stop = alpha / (tests - np.argmax(kept, axis=-1)[..., None])
    return _unsorted(np.where(kept, stop, own), order)


def detectable_effect(spread: Number, n: int, level: Number = 1 - ALPHA, power: Number = 0.8) -> float:
    """Distance of the mean from a border that ``n`` samples of this spread detect with this power.

    Parameters
    ----------
    spread : float
        Standard deviation of the samples, in their unit; the result has the same unit.
    n : int
        Number of independent samples, at least 2.
    level : float
        Two-sided level of the interval that has to clear the border.
    power : float
        Wanted probability that it does.
    """
    if n < 2:
        raise ValueError(f"n: expected at least 2 samples, got {n}")
    if not (np.isfinite(spread) and spread >= 0):
        raise ValueError(f"spread: expected a finite standard deviation, got {spread}")
    if not 0 < power < 1:
        raise ValueError(f"power: expected a probability, got {power}")
    threshold = _t_quantile(level, n - 1)
    noncentrality = special.nctdtrinc(n - 1, 1 - power, threshold)
    return float(noncentrality * spread / np.sqrt(n))


def cluster_means(values: Values, groups: Sequence[Hashable] | np.ndarray) -> np.ndarray:
    """Mean per group along the first axis: samples that share a text, scene or run count once.

    Parameters
    ----------
    values : array [n, ...]
    groups : sequence [n]
        The group of each sample.

    Returns
    -------
    array [groups, ...]
        In the order in which the groups first appear.
    """
    sample = np.asarray(values, dtype=np.float64)
    names = list(groups)
    if len(names) != len(sample):
        raise ValueError(f"groups: expected one per sample, got {len(names)} for {len(sample)} samples")
    position = {name: index for index, name in enumerate(dict.fromkeys(names))}
    index = np.array([position[name] for name in names], dtype=np.intp)
    total = np.zeros((len(position), *sample.shape[1:]))
    np.add.at(total, index, sample)
    size = np.bincount(index, minlength=len(position))
    return total / size.reshape(-1, *[1] * (sample.ndim - 1))


def _samples(values: Values) -> np.ndarray:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim < 1 or sample.shape[-1] < 2:
        raise ValueError(f"values: expected at least 2 samples along the last axis, got shape {sample.shape}")
    if not np.all(np.isfinite(sample)):
        raise ValueError(
            f"values: {np.count_nonzero(~np.isfinite(sample))} of {sample.size} are NaN or infinite"
        )
    return sample


def _mean_and_error(sample: np.ndarray) -> tuple[Any, Any, int]:
    """Mean, its standard error and the degrees of freedom; equal samples have no rounding in either."""
    n = sample.shape[-1]
    equal = np.ptp(sample, axis=-1) == 0
    mean = np.where(equal, sample[..., 0], np.mean(sample, axis=-1))[()]
    error = np.where(equal, 0.0, np.std(sample, axis=-1, ddof=1) / np.sqrt(n))[()]
    return mean, error, n - 1


def _one_sided(sample: np.ndarray, border: Number, strict: bool) -> tuple[Any, Any]:
    """p-values of "the mean is not above the border" and "the mean is not below it"."""
    mean, error, freedom = _mean_and_error(sample)
    # Without spread the samples are a point: it is on one side of the border, or on the border itself,
    # which belongs to the region unless `strict`.
    point = np.where(mean == border, -1.0 if strict else 1.0, mean - border) * np.inf
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(error == 0, point, (mean - border) / error)
    return special.stdtr(freedom, -t), special.stdtr(freedom, t)


def _t_quantile(level: Number, freedom: int) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level: expected a coverage between 0 and 1, got {level}")
    return float(special.stdtrit(freedom, (1 + level) / 2))


def _positive_margin(margin: Number) -> None:
    if not margin > 0:
        raise ValueError(f"margin: expected a positive number in the metric's unit, got {margin}")


def _sorted(p_values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p = np.asarray(p_values, dtype=np.float64)
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError("p_values: expected numbers between 0 and 1")
    order = np.argsort(p, axis=-1, kind="stable")
    return order, np.take_along_axis(p, order, axis=-1)


def _unsorted(values: np.ndarray, order: np.ndarray) -> np.ndarray:
    result = np.empty_like(values)
    np.put_along_axis(result, order, values, axis=-1)
    return result
