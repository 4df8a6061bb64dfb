"""Verdicts follow from intervals: right words, right rates of error, and nothing from too few samples."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from sparsebook.claims import Claim, Judgement, Samples, judge, load_claims

Entry = Callable[..., dict[str, Any]]
Write = Callable[..., Path]
Declare = Callable[..., Claim]


@pytest.fixture
def declare(entry: Entry, write: Write) -> Declare:
    """A claim with the given fields."""
    return lambda **changes: load_claims(write(entry(**changes))).claims[0]


def verdict(claim: Claim, values: Any, **more: Any) -> Judgement:
    return judge([claim], {claim.id: Samples(values, unit=claim.unit, **more)})[claim.id]


EIGHT = np.array([-3.0, -2, -1, 0, 0, 1, 2, 3]) / 100  # mean 0, standard deviation 0.02


# --- samples ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        [1, 2],
        (1.0, 2.0),
        np.array([1, 2], dtype=np.int32),
        torch.tensor([1.0, 2.0], dtype=torch.bfloat16, requires_grad=True),
        pd.Series([1.0, 2.0]),
        [True, 2],
    ],
)
def test_what_samples_take(values: Any) -> None:
    samples = Samples(values, unit="ratio")
    np.testing.assert_array_equal(samples.values, [1, 2])
    with pytest.raises(ValueError, match="read-only"):
        samples.values[0] = 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": [1.0]}, "unit is missing"),
        ({"values": [1.0], "unit": ""}, "unit is missing"),
        ({"values": [], "unit": "s"}, "no values"),
        ({"values": np.zeros((0, 3)), "unit": "s"}, "no values"),
        ({"values": 1.0, "unit": "s"}, r"got shape \(\)"),
        ({"values": np.zeros((2, 2, 2)), "unit": "s"}, r"got shape \(2, 2, 2\)"),
        ({"values": [1.0, float("nan")], "unit": "s"}, "1 of 2 values are NaN"),
        ({"values": [float("inf"), 1.0], "unit": "s"}, "1 of 2 values are NaN or infinite"),
        ({"values": ["a", "b"], "unit": "s"}, "expected numbers"),
        ({"values": [1.0, None], "unit": "s"}, "expected numbers"),
        ({"values": [[1.0], [1.0, 2.0]], "unit": "s"}, "expected numbers"),
        ({"values": [1.0, 2.0], "unit": "s", "groups": ["a"]}, "1 groups for 2 values"),
    ],
)
def test_what_samples_refuse(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Samples(**arguments)


@pytest.mark.parametrize(
    ("expect", "values", "message"),
    [
        ({"rule": "at_least", "value": 0}, np.zeros((8, 2)), r"takes values \[n\]"),
        ({"rule": "ordered", "direction": "increasing"}, np.zeros(8), "takes values .n, levels"),
        ({"rule": "ordered", "direction": "increasing"}, np.zeros((8, 1)), "takes values .n, levels"),
    ],
)
def test_dimensions_have_to_fit_the_rule(declare: Declare, expect: dict, values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        verdict(declare(expect=expect), values)


def test_units_have_to_fit(declare: Declare) -> None:
    claim = declare()
    with pytest.raises(ValueError, match="samples are in 'percent', declared is 'recall'"):
        judge([claim], {"C1": Samples(EIGHT, unit="percent")})


def test_geometric_averages_take_positive_values(declare: Declare) -> None:
    claim = declare(kind="timing", unit="ratio", replication={"unit": "process", "n": 5})
    with pytest.raises(ValueError, match="positive values, the smallest is 0"):
        verdict(claim, [1.0, 1, 1, 1, 0])


# --- the three verdicts of every rule --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expect", "means"),
    [
        ({"rule": "at_least", "value": 1}, {"holds": 1.1, "inconclusive": 1.0, "fails": 0.9}),
        ({"rule": "at_most", "value": 1}, {"holds": 0.9, "inconclusive": 1.01, "fails": 1.1}),
        ({"rule": "greater_than", "value": 1}, {"holds": 1.1, "inconclusive": 1.01, "fails": 0.9}),
        ({"rule": "within", "low": 1, "high": 2}, {"holds": 1.5, "inconclusive": 1.01, "fails": 2.1}),
        (
            {"rule": "equivalent", "value": 0, "margin": 0.1},
            {"holds": 0.05, "inconclusive": 0.1, "fails": -0.2},
        ),
        (
            {"rule": "not_worse", "value": 1, "margin": 0.1, "better": "higher"},
            {"holds": 0.95, "inconclusive": 0.91, "fails": 0.8},
        ),
        (
            {"rule": "not_worse", "value": 1, "margin": 0.1, "better": "lower"},
            {"holds": 1.05, "inconclusive": 1.09, "fails": 1.2},
        ),
    ],
    ids=lambda value: value.get("rule", "") + value.get("better", ""),
)
@pytest.mark.parametrize("kind", ["random", "timing"])
def test_rules_on_means(declare: Declare, kind: str, expect: dict, means: dict[str, float]) -> None:
    claim = declare(kind=kind, expect=expect)
    for wanted, mean in means.items():
        result = verdict(claim, EIGHT + mean)
        assert result.verdict == wanted, (mean, result)
        assert result.measured == pytest.approx(mean)
        assert result.interval.low < mean < result.interval.high
        assert result.interval.level == 0.95


def test_absence_of_a_difference_is_no_equivalence(declare: Declare) -> None:
    """A difference that is far from significant, measured badly: not "no difference" but "not known"."""
    claim = declare(expect={"rule": "equivalent", "value": 0, "margin": 0.01})
    result = verdict(claim, EIGHT)
    assert result.verdict == "inconclusive"
    assert "too narrow" in result.why


@pytest.mark.parametrize(
    ("expect", "inside", "outside"),
    [
        ({"rule": "at_least", "value": 1}, [1, 2, 3], [1, 2, 0.999]),
        ({"rule": "greater_than", "value": 1}, [1.001, 2], [1, 2]),
        ({"rule": "at_most", "value": 1}, [1, 0], [1.001, 0]),
        ({"rule": "within", "low": 0, "high": 1}, [0, 1], [0, 1.001]),
        ({"rule": "equivalent", "value": 1, "margin": 0.5}, [0.5, 1.5], [0.4]),
        ({"rule": "not_worse", "value": 1, "margin": 0.5, "better": "higher"}, [0.5, 9], [0.4, 9]),
        ({"rule": "ordered", "direction": "increasing"}, [[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 5, 5]]),
        ({"rule": "ordered", "direction": "decreasing"}, [[3, 2, 1]], [[1, 2, 3]]),
    ],
    ids=lambda value: value["rule"] if isinstance(value, dict) else "",
)
def test_exact_claims_hold_for_all_samples(
    declare: Declare, expect: dict, inside: list, outside: list
) -> None:
    claim = declare(kind="exact", control=None, expect=expect, replication={"unit": "list", "n": 1})
    good, bad = verdict(claim, inside), verdict(claim, outside)
    assert (good.verdict, good.interval) == ("holds", None)
    assert (bad.verdict, bad.why) == ("fails", f"1 of {len(outside)} samples are outside")


def test_exact_claims_show_their_worst_sample(declare: Declare) -> None:
    claim = declare(
        kind="exact", expect={"rule": "within", "low": 0, "high": 1}, replication={"unit": "list", "n": 3}
    )
    assert verdict(claim, [0.5, 0.9, 0.4]).measured == 0.9
    assert verdict(claim, [0.5, 0.9, -4]).measured == -4
    few = verdict(claim, [0.5, 0.5])
    assert (few.verdict, few.why) == (
        "inconclusive",
        "n = 2 is below the 3 needed (unit of replication: query set)".replace("query set", "list"),
    )


# --- ordered ---------------------------------------------------------------------------------------------

ORDERED = {"rule": "ordered", "direction": "increasing"}


def levels(*means: float) -> np.ndarray:
    """Eight rows with these means; every step's difference has its own small spread."""
    shared = np.linspace(0, 5, 8)[:, None]
    noise = np.stack([np.roll(EIGHT, 3 * column) for column in range(len(means))], axis=1)
    return shared + noise + np.array(means)


def test_ordered(declare: Declare) -> None:
    claim = declare(expect=ORDERED)
    held = verdict(claim, levels(0, 1, 1.2))
    assert (held.verdict, len(held.steps)) == ("holds", 2)
    assert held.measured == pytest.approx(0.2)  # the weakest step decides
    assert all(low > 0 for _, low, _ in held.steps)
    failed = verdict(claim, levels(0, 1, 0.8, 2))
    assert (failed.verdict, failed.interval.high < 0) == ("fails", True)
    assert failed.measured == pytest.approx(-0.2)
    assert failed.interval.level == pytest.approx(1 - 0.05 / 3)  # shared by the three steps
    flat = verdict(claim, levels(0, 1, 1.001))
    assert flat.verdict == "inconclusive"
    assert "points" not in flat.why
    assert flat.interval.low < 0 < flat.interval.high


def test_ordered_downwards(declare: Declare) -> None:
    claim = declare(expect={"rule": "ordered", "direction": "decreasing"})
    result = verdict(claim, levels(3, 2, 1))
    assert (result.verdict, result.measured) == ("holds", pytest.approx(1))


def test_ordered_ratios_step_by_factors(declare: Declare) -> None:
    claim = declare(kind="timing", unit="ratio", expect=ORDERED)
    result = verdict(claim, np.exp(levels(0, 1, 1.5)))
    assert (result.verdict, result.measured) == ("holds", pytest.approx(np.exp(0.5)))
    assert result.interval.low > 1
    np.testing.assert_allclose([mean for mean, _, _ in result.steps], np.exp([1, 0.5]))
    assert result.why == "every step's interval lies wholly in the expected direction"


# --- replication -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["random", "timing"])
@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_too_few_samples_decide_nothing(declare: Declare, kind: str, n: int) -> None:
    result = verdict(declare(kind=kind), 5 + EIGHT[:n])
    assert result.verdict == "inconclusive"
    assert f"n = {n} is below the 8 needed" in result.why
    assert result.n == n
    assert (result.interval is None) == (n == 1)


def test_members_of_a_group_count_once(declare: Declare) -> None:
    claim = declare()
    result = verdict(claim, np.repeat(1 + EIGHT[:4], 10), groups=np.repeat(list("abcd"), 10))
    assert (result.verdict, result.n) == ("inconclusive", 4)
    result = verdict(claim, np.repeat(1 + EIGHT, 10), groups=np.repeat(list("abcdefgh"), 10))
    assert (result.verdict, result.n) == ("holds", 8)
    assert result.interval == verdict(claim, 1 + EIGHT).interval


def test_groups_of_levels(declare: Declare) -> None:
    rows = levels(0, 1, 2)
    grouped = verdict(declare(expect=ORDERED), np.repeat(rows, 3, axis=0), groups=np.repeat(np.arange(8), 3))
    alone = verdict(declare(expect=ORDERED), rows)
    assert (grouped.verdict, grouped.n) == (alone.verdict, alone.n) == ("holds", 8)
    np.testing.assert_allclose(grouped.steps, alone.steps)


def test_equal_samples_are_said_to_be(declare: Declare) -> None:
    claim = declare(expect={"rule": "at_least", "value": 1})
    result = verdict(claim, np.ones(8))
    assert result.verdict == "holds"
    assert "all samples are equal" in result.why
    strict = verdict(declare(expect={"rule": "greater_than", "value": 1}), np.ones(8))
    assert strict.verdict == "fails"


# --- timing ----------------------------------------------------------------------------------------------


def test_ratios_are_averaged_geometrically(declare: Declare) -> None:
    """Half the time in one process and twice in another is no difference."""
    replication = {"unit": "process", "n": 5}
    claim = declare(
        kind="timing", unit="ratio", replication=replication, expect={"rule": "at_most", "value": 1}
    )
    result = verdict(claim, [0.5, 2, 0.5, 2, 1])
    assert result.measured == pytest.approx(1)
    assert result.interval.low == pytest.approx(1 / result.interval.high)
    assert "a factor of" in result.why
    assert result.detectable > 1
    inverse = declare(
        kind="timing", unit="ratio", replication=replication, expect={"rule": "at_least", "value": 1}
    )
    fast = np.array([0.8, 0.82, 0.79, 0.81, 0.8])
    assert (verdict(claim, fast).verdict, verdict(inverse, 1 / fast).verdict) == ("holds", "holds")
    assert (verdict(inverse, fast).verdict, verdict(claim, 1 / fast).verdict) == ("fails", "fails")


def test_a_margin_below_zero_is_no_border_of_a_ratio(declare: Declare) -> None:
    expect = {"rule": "equivalent", "value": 1, "margin": 1.5}
    claim = declare(kind="timing", unit="ratio", expect=expect)
    assert verdict(claim, np.exp(EIGHT)).verdict == "holds"


# --- one error budget ------------------------------------------------------------------------------------


def many(declare: Declare, count: int, **changes: Any) -> list[Claim]:
    return [declare(id=f"C{number}", **changes) for number in range(count)]


def test_intervals_are_printed_at_the_level_that_decided(declare: Declare) -> None:
    claims = many(declare, 4, expect={"rule": "greater_than", "value": 0})
    means = [0.5, 0.02, 0.019, -0.4]
    samples = {c.id: Samples(EIGHT + mean, unit="recall") for c, mean in zip(claims, means, strict=True)}
    results = judge(claims, samples)
    assert [result.verdict for result in results.values()] == [
        "holds",
        "inconclusive",
        "inconclusive",
        "fails",
    ]
    found = [1 - result.interval.level for result in results.values()]
    np.testing.assert_allclose(sorted(found), [0.05 / 4, 0.05 / 3, 0.05 / 2, 0.05 / 2])
    alone = judge(claims[1:2], samples)["C1"]
    assert alone.verdict == "holds"  # what would hold alone is not enough among four


@pytest.mark.parametrize("timing_mean", [0.0, 1.0])
def test_no_random_verdict_depends_on_a_timing(declare: Declare, timing_mean: float) -> None:
    expect = {"rule": "greater_than", "value": 0}
    claims = [*many(declare, 3, expect=expect), declare(id="T", kind="timing", unit="s", expect=expect)]
    samples = {claim.id: Samples(EIGHT + 0.019, unit=claim.unit) for claim in claims[:3]}
    results = judge(claims, samples | {"T": Samples(EIGHT + timing_mean, unit="s")})
    assert [1 - results[f"C{i}"].interval.level for i in range(3)] == pytest.approx([0.05 / 4] * 3)


def test_claims_without_enough_samples_take_no_share(declare: Declare) -> None:
    claims = many(declare, 2, expect={"rule": "greater_than", "value": 0})
    samples = {"C0": Samples(EIGHT + 1, unit="recall"), "C1": Samples(EIGHT[:3], unit="recall")}
    assert judge(claims, samples)["C0"].interval.level == 0.95


RULES = {
    "at_least": ({"rule": "at_least", "value": 0}, -1e-9),
    "at_most": ({"rule": "at_most", "value": 0}, 1e-9),
    "greater_than": ({"rule": "greater_than", "value": 0}, 0.0),
    "within": ({"rule": "within", "low": 0, "high": 2}, -1e-9),
    "equivalent": ({"rule": "equivalent", "value": 1, "margin": 1}, -1e-9),
    "not_worse": ({"rule": "not_worse", "value": 1, "margin": 1, "better": "higher"}, -1e-9),
    "ordered": (ORDERED, 0.0),
}


@pytest.mark.parametrize("rule", RULES)
def test_false_verdicts_of_whole_judgements(declare: Declare, rule: str) -> None:
    """The means lie just outside: "holds" is false, and comes out at most 2.5 % of the time."""
    expect, mean = RULES[rule]
    claim, draw, runs = declare(expect=expect), np.random.default_rng(5), 1000
    shape, means = ((8, 3), [0, 5, 5]) if rule == "ordered" else ((8,), mean)
    found = [verdict(claim, draw.normal(means, 0.5, shape)) for _ in range(runs)]
    assert sum(result.verdict == "holds" for result in found) <= runs * (0.025 + 4 * np.sqrt(0.025 / runs))
    for result in found:
        low, high = (0, np.inf) if rule == "ordered" else (claim.expect.low, claim.expect.high)
        inside = result.interval.low >= low and result.interval.high <= high
        outside = result.interval.high < low or result.interval.low > high
        assert result.verdict == ("holds" if inside else "fails" if outside else "inconclusive")


def test_a_whole_chapter_errs_as_rarely_as_one_claim(declare: Declare) -> None:
    claims = [
        *many(declare, 5, expect={"rule": "greater_than", "value": 0}),
        *(declare(id=f"T{i}", kind="timing", expect={"rule": "greater_than", "value": 0}) for i in range(3)),
    ]
    draw, runs, wrong = np.random.default_rng(6), 500, 0
    for _ in range(runs):
        samples = {claim.id: Samples(draw.normal(0, 1, 8), unit="recall") for claim in claims}
        wrong += any(result.verdict == "holds" for result in judge(claims, samples).values())
    assert wrong <= runs * (0.025 + 4 * np.sqrt(0.025 / runs))
    assert wrong >= runs * 0.01  # nor is it so careful that nothing could ever hold
