"""The experiments: each returns a tidy table (experiment, method, seed, metric, value, unit, its knobs)."""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from sparsebook.experiments.random_pruning.inputs import TUNING
from sparsebook.experiments.random_pruning.scales import Config
from sparsebook.experiments.random_pruning.training import Arm, Family, first_losses, fit, tidy
from sparsebook.networks.random_pruning import RATIOS

Stages = dict[str, Callable[[], pd.DataFrame]]
DIGIT_RATIOS = ("uniform", "er", "snip", "grasp", "synflow")
AT_ONCE = 120
"""Networks in one stack at most."""


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


def families(config: Config) -> dict[str, Family]:
    """The networks that are tuned on: one of each kind."""
    return {
        "digits": Family("digits", config.digit_width),
        "patches": Family("patches", config.mlp_widths[2]),
        "resnet": Family("resnet", config.width, config.depths[0]),
    }


# Learning rates ------------------------------------------------------------------------------------------


def run_tuning(config: Config) -> pd.DataFrame:
    """Every method at every rate, at 90 % sparsity, on seeds (and patches) that serve for nothing else."""
    tuned = {
        "digits": (*DIGIT_RATIOS,),
        "patches": ("uniform", "er", "snip", "own_snip"),
        "resnet": (*RATIOS,),
    }
    stages: Stages = {}
    for name, family in families(config).items():
        arms = {
            "dense": [Arm("dense")],
            "small": [Arm("small_dense", 0.9)],
            "sparse": [Arm(method, 0.9) for method in tuned[name]],
        }
        for rate in config.rates if name == "resnet" else config.mlp_rates:
            for kind, own in arms.items():
                stages[f"{name} {kind} {rate:g}"] = partial(_tune, config, family, own, rate)
    return run(config, stages, "tuning")


def _tune(config: Config, family: Family, arms: list[Arm], rate: float) -> pd.DataFrame:
    _, found = fit(family, arms, config.tuning_seeds, rate, config, TUNING)
    kept = {name: found[name] for name in ("accuracy", "nll")}
    return pd.DataFrame(tidy("tuning", family, arms, config.tuning_seeds, kept, rate=rate))


def best_rate(tuning: pd.DataFrame, family: str, method: str) -> float:
    """The rate of the highest mean accuracy; the lowest of equals. Narrow networks take `small_dense`'s."""
    method = "small_dense" if method == "narrow" else method
    own = tuning[(tuning.family == family) & (tuning.method == method) & (tuning.metric == "accuracy")]
    return float(own.groupby("rate")["value"].mean().idxmax())


def _arms(
    config: Config,
    tuning: pd.DataFrame,
    experiment: str,
    family: Family,
    arms: Sequence[Arm],
    seeds: Sequence[int],
) -> pd.DataFrame:
    """Arms of one method, as many in one stack as are allowed."""
    rate, rows = best_rate(tuning, family.name, arms[0].method), []
    size = 1 if arms[0].method == "small_dense" else max(1, AT_ONCE // len(seeds))
    for start in range(0, len(arms), size):
        own = arms[start : start + size]
        _, found = fit(family, own, seeds, rate, config)
        rows += tidy(experiment, family, own, seeds, found, rate=rate)
    return pd.DataFrame(rows)


# Residual networks ---------------------------------------------------------------------------------------


def run_depths(config: Config, tuning: pd.DataFrame) -> pd.DataFrame:
    """Dense and randomly pruned networks of several depths."""
    shallow, *middle, deep = config.depths
    stages: Stages = {}

    def add(depth: int, method: str, sparsity: float, seeds: Sequence[int]) -> None:
        family, arm = Family("resnet", config.width, depth), Arm(method, sparsity)
        stages[f"depth={depth} {method} {sparsity:g}"] = partial(
            _arms, config, tuning, "depths", family, [arm], seeds
        )

    for depth in (shallow, deep):
        for method, sparsity in (("dense", 0.0), ("erk", 0.9), ("erk", 0.5)):
            add(depth, method, sparsity, config.seeds)
    for depth in middle:
        for method, sparsity in (("dense", 0.0), ("erk", 0.9)):
            add(depth, method, sparsity, config.few)
    add(deep, "uniform", 0.9, config.few)
    return run(config, stages, "depths")


def run_ratios(config: Config, tuning: pd.DataFrame) -> pd.DataFrame:
    """The shallowest network with every ratio, SNIP's own positions, and narrow dense networks."""
    family = Family("resnet", config.width, config.depths[0])
    stages: Stages = {}
    for method in ("uniform", *(ratio for ratio in RATIOS if ratio not in ("uniform", "erk")), "own_snip"):
        arms = [Arm(method, sparsity) for sparsity in ((0.9, 0.8, 0.5) if method == "uniform" else (0.9,))]
        stages[method] = partial(_ratio, config, tuning, family, arms)
    stages["erk"] = partial(_ratio, config, tuning, family, [Arm("erk", 0.8)])
    stages["small_dense"] = partial(_ratio, config, tuning, family, [Arm("small_dense", 0.9)])
    for width in config.narrow:
        narrow = Family("resnet", width, config.depths[0])
        stages[f"width={width}"] = partial(_ratio, config, tuning, narrow, [Arm("narrow")])
    return run(config, stages, "ratios")


def _ratio(config: Config, tuning: pd.DataFrame, family: Family, arms: Sequence[Arm]) -> pd.DataFrame:
    if arms[0].method == "own_snip":  # as many tuning runs as any other: those of SNIP's ratio
        tuning = tuning.assign(method=tuning.method.replace({"snip": "own_snip"}))
    return _arms(config, tuning, "ratios", family, arms, config.few)


# Perceptrons ---------------------------------------------------------------------------------------------


def run_widths(config: Config, tuning: pd.DataFrame) -> pd.DataFrame:
    """Perceptrons on patches: width, sparsity, ratio."""
    stages: Stages = {}
    for width in config.mlp_widths:
        arms = {
            "dense": [Arm("dense")],
            "er": [Arm("er", sparsity) for sparsity in config.mlp_sparsities],
            "uniform": [Arm("uniform", 0.5), Arm("uniform", 0.9)],
            "small_dense": [Arm("small_dense", 0.9)],
        }
        if width == config.mlp_widths[2]:
            arms |= {method: [Arm(method, 0.9)] for method in ("snip", "own_snip")}
        for method, own in arms.items():
            stages[f"width={width} {method}"] = partial(
                _arms, config, tuning, "widths", Family("patches", width), own, config.seeds
            )
    return run(config, stages, "widths")


def run_digits(config: Config, tuning: pd.DataFrame) -> pd.DataFrame:
    """The perceptron on digits: every ratio at every sparsity."""
    family = Family("digits", config.digit_width)
    stages: Stages = {"dense": partial(_arms, config, tuning, "digits", family, [Arm("dense")], config.seeds)}
    for method in (*DIGIT_RATIOS, "small_dense"):
        arms = [Arm(method, sparsity) for sparsity in config.digit_sparsities]
        stages[method] = partial(_arms, config, tuning, "digits", family, arms, config.seeds)
    return run(config, stages, "digits")


def run_live(config: Config, tuning: pd.DataFrame) -> pd.DataFrame:
    """One more seed, trained now: perceptrons on patches, dense and randomly pruned."""
    family = Family("patches", config.mlp_widths[2])
    tables = [
        _arms(config, tuning, "widths", family, [arm], (config.live,))
        for arm in (Arm("dense"), Arm("er", 0.9))
    ]
    return pd.concat(tables, ignore_index=True)


def fingerprint() -> list[float]:
    """Losses of the first five steps of the perceptron on patches, randomly pruned."""
    return first_losses(Family("patches", 64), Arm("er", 0.9), Config.at("full", norm_batches=1))
