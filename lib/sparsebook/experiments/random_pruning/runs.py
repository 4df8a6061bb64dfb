"""The experiments: each returns a tidy table (experiment, method, seed, metric, value, unit, its knobs)."""

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from sparsebook.experiments.random_pruning.inputs import TEST, TUNING
from sparsebook.experiments.random_pruning.scales import Config
from sparsebook.experiments.random_pruning.training import Arm, Family, first_losses, fit, tidy
from sparsebook.networks.random_pruning import RATIOS

Stages = dict[str, Callable[[], pd.DataFrame]]
RateOf = Callable[[Family, Arm], float]
DIGIT_RATIOS = ("uniform", "er", "snip", "grasp", "synflow")


class Trial(NamedTuple):
    """A network, what is done to it, and how often."""

    family: Family
    arm: Arm
    seeds: Sequence[int]


def run(config: Config, stages: Stages, experiment: str) -> pd.DataFrame:
    """All stages of an experiment; at full and paper scale each is kept, so that a run can be resumed."""
    if config.scale in ("full", "paper"):
        from sparsebook.recorded import run_stages

        # A folder of the reader's own stands in the key by its checksum: a record names no machine's paths.
        folder = None if config.cifar is None else str(Path(config.cifar).resolve())
        own = None if folder is None else hashlib.sha256(folder.encode()).hexdigest()
        parameters = config.record() | {"cifar": own}
        return run_stages("random_pruning", experiment, stages, parameters=parameters)
    return pd.concat([compute() for compute in stages.values()], ignore_index=True)


# What is trained ------------------------------------------------------------------------------------------


def trials(config: Config) -> dict[str, list[Trial]]:
    """Everything that the experiments train, by experiment."""
    return {
        "depths": _depths(config),
        "ratios": _ratios(config),
        "widths": _widths(config),
        "starts": _starts(config),
        "digits": _digits(config),
    }


def _depths(config: Config) -> list[Trial]:
    """Dense and randomly pruned residual networks of several depths."""
    shallow, *middle, deep = config.depths
    ends = [Arm("dense"), Arm("erk", 0.9), Arm("erk", 0.5)]
    found = [Trial(_resnet(config, depth), arm, config.seeds) for depth in (shallow, deep) for arm in ends]
    found += [Trial(_resnet(config, depth), arm, config.few) for depth in middle for arm in ends[:2]]
    return [*found, Trial(_resnet(config, deep), Arm("uniform", 0.9), config.few)]


def _ratios(config: Config) -> list[Trial]:
    """The shallowest network with every ratio, SNIP's own positions, and narrow dense networks."""
    family = _resnet(config, config.depths[0])
    arms = [Arm(ratio, 0.9) for ratio in RATIOS if ratio != "erk"]
    arms += [Arm("uniform", 0.8), Arm("uniform", 0.5), Arm("erk", 0.8)]
    arms += [Arm("own_snip", 0.9), Arm("small_dense", 0.9)]
    narrow = [Family("resnet", width, config.depths[0]) for width in config.narrow]
    return [Trial(family, arm, config.few) for arm in arms] + [
        Trial(own, Arm("narrow"), config.few) for own in narrow
    ]


def _widths(config: Config) -> list[Trial]:
    """Perceptrons on patches: width, sparsity, ratio."""
    found = []
    for width in config.mlp_widths:
        arms = [Arm("dense"), *(Arm("er", sparsity) for sparsity in config.mlp_sparsities)]
        arms += [Arm("uniform", 0.5), Arm("uniform", 0.9), Arm("small_dense", 0.9)]
        if width == config.middle:
            arms += [Arm("snip", 0.9), Arm("own_snip", 0.9)]
        found += [Trial(Family("patches", width), arm, config.seeds) for arm in arms]
    return found


def _starts(config: Config) -> list[Trial]:
    """Initialisation scaled to the density or not, with and without normalisation."""
    plain, normalised = Family("plain", config.middle), Family("patches", config.middle)
    arms = [Arm("dense"), Arm("er", 0.9), Arm("er_scaled", 0.9)]
    return [*(Trial(plain, arm, config.seeds) for arm in arms), Trial(normalised, arms[-1], config.seeds)]


def _digits(config: Config) -> list[Trial]:
    """The perceptron on digits: every ratio at every sparsity."""
    family = Family("digits", config.digit_width)
    arms = [Arm(m, s) for m in (*DIGIT_RATIOS, "small_dense") for s in config.digit_sparsities]
    return [Trial(family, arm, config.seeds) for arm in (Arm("dense"), *arms)]


def _resnet(config: Config, depth: int) -> Family:
    return Family("resnet", config.width, depth)


# Learning rates ------------------------------------------------------------------------------------------


def run_tuning(config: Config) -> pd.DataFrame:
    """Every arm of every network at every rate, on seeds (and patches) that serve for nothing else.

    The two rates that did best meet once more, on more seeds: curves are flat on top.
    """
    arms = dict.fromkeys((family, arm) for own in trials(config).values() for family, arm, _ in own)
    tuned = {(family, arm): config.rates_of(family.name) for family, arm in arms}
    tuned = {each: rates for each, rates in tuned.items() if len(rates) > 1}
    first = run(config, _tuning(config, tuned, config.tuning_seeds, ""), "tuning")
    if not config.final_seeds:
        return first
    best = {each: finalists(rows_of(first, *each)) for each in tuned}
    final = run(config, _tuning(config, best, config.final_seeds, " again"), "tuning")
    return pd.concat([first, final], ignore_index=True)


def _tuning(
    config: Config, tried: Mapping[tuple[Family, Arm], Sequence[float]], seeds: Sequence[int], suffix: str
) -> Stages:
    """One stage for every network and rate."""
    stages: dict[str, list[Trial]] = {}
    rate_of: dict[str, float] = {}
    for (family, arm), rates in tried.items():
        for rate in rates:
            name = f"{_name(family)} {rate:g}{suffix}"
            rate_of[name] = rate
            stages.setdefault(name, []).append(Trial(family, arm, seeds))
    return {name: partial(_tune, config, own, rate_of[name]) for name, own in stages.items()}


def _tune(config: Config, own: list[Trial], rate: float) -> pd.DataFrame:
    return _trained(config, "tuning", own, lambda *_: rate, TUNING)


def rows_of(tuning: pd.DataFrame, family: Family, arm: Arm) -> pd.DataFrame:
    """What was tried for an arm of a network."""
    own = tuning[(tuning.family == family.name) & (tuning.width == family.width)]
    return own[(own.depth == family.depth) & (own.method == arm.method) & (own.sparsity == arm.sparsity)]


def finalists(own: pd.DataFrame, n: int = 2) -> list[float]:
    """The rates of the highest mean accuracy, the lower of equals first."""
    means = own.groupby("rate")["value"].mean().sort_index()
    return [float(rate) for rate in means.sort_values(ascending=False, kind="stable").index[:n]]


def best_of(own: pd.DataFrame) -> float:
    """The best of the rates that were tried most often: with finals, the better finalist."""
    runs = own.groupby("rate")["value"].transform("size")
    return finalists(own[runs == runs.max()], 1)[0]


def best_rate(config: Config, tuning: pd.DataFrame, family: Family, arm: Arm) -> float:
    """The rate at which an arm is trained."""
    rates = config.rates_of(family.name)
    return rates[0] if len(rates) == 1 else best_of(rows_of(tuning, family, arm))


# Training ------------------------------------------------------------------------------------------------


def run_trials(config: Config, tuning: pd.DataFrame, experiment: str) -> pd.DataFrame:
    """Train and measure all of an experiment's trials, each at its own best rate."""
    rate_of = partial(best_rate, config, tuning)
    stages: Stages = {
        _name(family): partial(_trained, config, experiment, own, rate_of)
        for family, own in _grouped(trials(config)[experiment], lambda trial: trial.family).items()
    }
    return run(config, stages, experiment)


def run_live(config: Config, tuning: pd.DataFrame) -> pd.DataFrame:
    """One more seed, trained now: perceptrons on patches, dense and randomly pruned."""
    family = Family("patches", config.middle)
    own = [Trial(family, arm, (config.live,)) for arm in (Arm("dense"), Arm("er", 0.9))]
    return _trained(config, "widths", own, partial(best_rate, config, tuning))


def fingerprint() -> list[float]:
    """Losses of the first five steps of the perceptron on patches, randomly pruned."""
    return first_losses(Family("patches", 64), Arm("er", 0.9), Config.at("full", norm_batches=1))


def _trained(
    config: Config, experiment: str, own: list[Trial], rate_of: RateOf, judged: int = TEST
) -> pd.DataFrame:
    """Trials in stacks of those that have the same architecture, seeds and rate."""

    def alike(trial: Trial) -> Hashable:
        family, arm, seeds = trial
        kind = arm if arm.method == "small_dense" else arm.method in ("dense", "narrow")
        return family, kind, tuple(seeds), rate_of(family, arm)

    rows = []
    for (family, _, seeds, rate), alikes in _grouped(own, alike).items():
        arms, size = [trial.arm for trial in alikes], max(1, config.at_once // len(seeds))
        for start in range(0, len(arms), size):
            chosen = arms[start : start + size]
            _, found = fit(family, chosen, seeds, rate, config, judged)
            rows += tidy(experiment, family, chosen, seeds, found, rate=rate)
    return pd.DataFrame(rows)


def _grouped(own: list[Trial], key: Callable[[Trial], Any]) -> dict[Any, list[Trial]]:
    groups: dict[Any, list[Trial]] = {}
    for trial in own:
        groups.setdefault(key(trial), []).append(trial)
    return groups


def _name(family: Family) -> str:
    return f"{family.name} depth={family.depth} width={family.width}"
