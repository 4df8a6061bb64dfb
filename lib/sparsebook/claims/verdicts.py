"""From samples to verdicts: intervals against expected regions, one error budget a chapter."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsebook.claims.declarations import Claim, Expectation, readable
from sparsebook.evaluation import statistics
from sparsebook.evaluation.statistics import ALPHA, Interval, OrderTest, RegionTest

_REGION_WORDS = {
    "holds": "the interval lies wholly inside",
    "fails": "the interval lies wholly outside",
    "inconclusive": "the interval reaches across the border",
}
_ORDERED_WORDS = {
    "holds": "every step's interval lies wholly in the expected direction",
    "fails": "a step's interval, widened for all steps, lies wholly in the wrong direction",
    "inconclusive": "the least certain step's interval, widened for all steps, has both directions",
}


@dataclass(frozen=True)
class Samples:
    """What a run measured for one claim.

    Parameters
    ----------
    values : array [n], or [n, levels] for the rule `ordered`
        One value per unit of replication, differences or ratios of paired measurements already taken.
        Lists, NumPy arrays, pandas columns and torch tensors are accepted.
    unit : str
        The unit of the values, the very one that the claim declares.
    groups : sequence [n], optional
        What each value belongs to (text, scene, training run). Values of one group are averaged and count
        once.

    Raises
    ------
    ValueError
        For no unit, no values, values that are not numbers, NaN or infinity, more than two dimensions, or
        groups of another length.
    """

    values: Any
    unit: str | None = None
    groups: Any = None

    def __post_init__(self) -> None:
        if not self.unit or not isinstance(self.unit, str):
            raise ValueError(
                f"Samples: unit is missing (got {self.unit!r}); say unit='...' as the claim declares"
            )
        values = _as_array(self.values)
        if values.ndim not in (1, 2):
            raise ValueError(f"Samples: expected values [n] or [n, levels], got shape {values.shape}")
        if values.size == 0:
            raise ValueError(f"Samples: no values (shape {values.shape})")
        bad = np.count_nonzero(~np.isfinite(values))
        if bad:
            raise ValueError(f"Samples: {bad} of {values.size} values are NaN or infinite")
        groups = None if self.groups is None else tuple(np.asarray(self.groups).tolist())
        if groups is not None and len(groups) != len(values):
            raise ValueError(
                f"Samples: {len(groups)} groups for {len(values)} values; expected one per value"
            )
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "groups", groups)


@dataclass(frozen=True)
class Judgement:
    """The verdict on one claim and what it rests on.

    For the rule `ordered`, ``measured`` and ``interval`` are those of the step that decided (positive in
    the stated direction) and ``steps`` holds the mean and the ends of the interval of every step.
    """

    verdict: str
    why: str
    measured: float | None = None
    interval: Interval | None = None
    n: int = 0
    detectable: float | None = None
    steps: tuple[tuple[float, float, float], ...] = ()


def judge(
    claims: Sequence[Claim], samples: Mapping[str, Samples], alpha: float = ALPHA
) -> dict[str, Judgement]:
    """The verdict on each claim; random and timing claims share the error budget ``alpha`` (Holm).

    Parameters
    ----------
    claims : sequence of Claim
    samples : mapping
        The samples of each claim by its id.
    alpha : float
        Two-sided level of the whole chapter.
    """
    for claim in claims:
        check_fits(claim, samples[claim.id])
    verdicts = {claim.id: _judge_exact(claim, samples[claim.id]) for claim in claims if claim.kind == "exact"}
    evidence = [_evidence(claim, samples[claim.id]) for claim in claims if claim.kind != "exact"]
    # Too few samples can give no verdict, so they take no share of the error budget. Their number is
    # known before the values are: leaving them out does not bias the rest.
    decidable = [item for item in evidence if item.enough]
    for kind in ("random", "timing"):
        family = [item for item in decidable if item.claim.kind == kind]
        # The kinds split the budget by their numbers of claims, so that no random verdict, which must be
        # the same on every machine, depends on how a timing came out.
        share = alpha * len(family) / max(1, len(decidable))
        levels = statistics.holm_levels(np.array([item.p for item in family], dtype=float), share)
        verdicts |= {
            item.claim.id: _judge_mean(item, float(level)) for item, level in zip(family, levels, strict=True)
        }
    verdicts |= {item.claim.id: _judge_few(item, alpha) for item in evidence if not item.enough}
    return {claim.id: verdicts[claim.id] for claim in claims}


@dataclass(frozen=True)
class _Evidence:
    """A random or timing claim's samples, one row per unit of replication, logarithms where geometric."""

    claim: Claim
    sample: np.ndarray
    test: RegionTest | None = None

    @property
    def n(self) -> int:
        return len(self.sample)

    @property
    def enough(self) -> bool:
        return self.n >= self.claim.least_samples

    @property
    def p(self) -> float:
        assert self.test is not None
        return float(self.test.two_sided)

    @property
    def region(self) -> tuple[float, float]:
        """The expected region on the scale of the sample."""
        low, high = self.claim.expect.low, self.claim.expect.high
        return (_log(low), _log(high)) if self.claim.geometric else (low, high)

    def shown(self, value: float) -> float:
        """A value of the sample's scale in the claim's unit."""
        return math.exp(value) if self.claim.geometric else float(value)


def _evidence(claim: Claim, samples: Samples) -> _Evidence:
    values = np.log(samples.values) if claim.geometric else samples.values
    if samples.groups is not None:
        values = statistics.cluster_means(values, samples.groups)
    evidence = _Evidence(claim, values)
    if len(values) < 2:
        return evidence
    if claim.expect.direction is not None:
        return _Evidence(claim, values, statistics.order_test(values, claim.expect.direction))
    low, high = evidence.region
    return _Evidence(claim, values, statistics.region_test(values, low, high, strict=claim.expect.strict))


def _judge_exact(claim: Claim, samples: Samples) -> Judgement:
    values, expect = samples.values, claim.expect
    if len(values) < claim.least_samples:
        return Judgement("inconclusive", _too_few(len(values), claim), n=len(values))
    if expect.direction is not None:
        # The smallest step is the worst; zero is no step.
        steps = np.diff(values, axis=1) * (1 if expect.direction == "increasing" else -1)
        worst, outside = steps.min(), np.count_nonzero((steps <= 0).any(axis=1))
    else:
        excess = _excess(values, expect)
        worst = values[np.argmax(excess)]
        beyond = (excess > 0) | ((excess == 0) & expect.strict)
        outside = np.count_nonzero(beyond)
    verdict = "fails" if outside else "holds"
    why = (
        f"{outside} of {len(values)} samples are outside"
        if outside
        else f"all {len(values)} samples are inside"
    )
    return Judgement(verdict, why, float(worst), n=len(values))


def _judge_few(evidence: _Evidence, alpha: float) -> Judgement:
    claim = evidence.claim
    why = _too_few(evidence.n, claim)
    if evidence.n < 2:
        measured = None if claim.expect.direction else evidence.shown(evidence.sample[0])
        return Judgement("inconclusive", why, measured, n=evidence.n)
    return _with_interval(evidence, "inconclusive", why, alpha)


def _judge_mean(evidence: _Evidence, level: float) -> Judgement:
    test = evidence.test
    assert test is not None
    words = _ORDERED_WORDS if isinstance(test, OrderTest) else _REGION_WORDS
    verdict = "inconclusive"
    if 2 * test.inside <= level:
        verdict = "holds"
    elif 2 * test.outside <= level:
        verdict = "fails"
    return _with_interval(evidence, verdict, words[verdict], level)


def _with_interval(evidence: _Evidence, verdict: str, why: str, alpha: float) -> Judgement:
    sample, steps = _deciding_sample(evidence, verdict, alpha)
    level = 1 - (alpha if verdict == "holds" or not steps else alpha / len(steps))
    interval = statistics.t_interval(sample, level)
    shown = Interval(evidence.shown(interval.low), evidence.shown(interval.high), level)
    detectable = None
    if verdict == "inconclusive":
        detectable, effect = _detectable(evidence, sample, level)
        why = f"{why}; {effect}"
    if np.ptp(sample) == 0:
        why += "; all samples are equal, so the interval is a point"
    mean = evidence.shown(float(np.mean(sample)))
    return Judgement(verdict, why, mean, shown, evidence.n, detectable, steps)


def _deciding_sample(
    evidence: _Evidence, verdict: str, alpha: float
) -> tuple[np.ndarray, tuple[tuple[float, float, float], ...]]:
    """The sample whose interval decided, and every step's mean and interval for the rule `ordered`.

    "Every step" is decided by the weakest one at the full level, "some step goes the wrong way" by the
    worst one at a level shared by all steps; see `statistics.order_test`.
    """
    if not isinstance(evidence.test, OrderTest):
        return evidence.sample, ()
    steps = evidence.test.steps
    level = 1 - (alpha if verdict == "holds" else alpha / steps.shape[1])
    interval = statistics.t_interval(steps.T, level)
    each = statistics.region_test(steps.T, low=0.0, strict=True)
    decider = int(np.argmin(each.outside) if verdict == "fails" else np.argmax(each.inside))
    ends = zip(steps.mean(axis=0), interval.low, interval.high, strict=True)
    show = evidence.shown
    return steps[:, decider], tuple((show(mean), show(low), show(high)) for mean, low, high in ends)


def _detectable(evidence: _Evidence, sample: np.ndarray, level: float) -> tuple[float, str]:
    claim = evidence.claim
    effect = statistics.detectable_effect(float(np.std(sample, ddof=1)), len(sample), level)
    shown = evidence.shown(effect)
    amount = f"a factor of {readable(shown)}" if claim.geometric else f"{readable(shown)} {claim.unit}"
    words = f"with n = {evidence.n} and this spread, a mean {amount} off the border is detected 4 times of 5"
    low, high = evidence.region
    if high - low < 2 * effect:
        words += "; the expected region is too narrow for that"
    return shown, words


def _too_few(n: int, claim: Claim) -> str:
    return (
        f"n = {n} is below the {claim.least_samples} needed (unit of replication: {claim.replication.unit})"
    )


def _excess(values: np.ndarray, expect: Expectation) -> np.ndarray:
    """How far each value lies outside of the region; negative inside."""
    return np.maximum(expect.low - values, values - expect.high)


def _log(border: float) -> float:
    return math.log(border) if border > 0 else -math.inf


def check_fits(claim: Claim, samples: Samples) -> None:
    values = samples.values
    if samples.unit != claim.unit:
        raise ValueError(f"claim {claim.id}: samples are in {samples.unit!r}, declared is {claim.unit!r}")
    if claim.expect.direction is None and values.ndim != 1:
        raise ValueError(
            f"claim {claim.id}: rule {claim.expect.rule} takes values [n], got shape {values.shape}"
        )
    if claim.expect.direction is not None and (values.ndim != 2 or values.shape[1] < 2):
        raise ValueError(
            f"claim {claim.id}: rule ordered takes values [n, levels >= 2], got shape {values.shape}"
        )
    if claim.geometric and values.min() <= 0:
        raise ValueError(
            f"claim {claim.id}: a geometric average takes positive values, the smallest is {values.min()}"
        )


def _as_array(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):  # a torch tensor, of any device and storage type
        values = values.detach().cpu().double().numpy()
    try:
        array = np.array(values)
        if array.dtype.kind not in "iufb":
            raise TypeError(f"values of type {array.dtype}")
        array = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Samples: expected numbers of shape [n] or [n, levels] ({error})") from error
    array.setflags(write=False)
    return array
