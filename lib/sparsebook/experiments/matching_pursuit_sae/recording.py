"""Which tables the chapter has, which run measures them, and how they are kept."""

from collections.abc import Callable
from contextlib import nullcontext

import pandas as pd
import torch

from sparsebook.evaluation.machine import threads
from sparsebook.experiments.matching_pursuit_sae import real, toy, worlds
from sparsebook.experiments.matching_pursuit_sae.arms import ARMS, trained
from sparsebook.experiments.matching_pursuit_sae.scales import Config

RUNS: dict[str, tuple[Callable[[Config], pd.DataFrame], tuple[str, ...]]] = {
    "properties": (worlds.run_properties, ("properties",)),
    "norms": (toy.run_norms, ("norms", "short")),
    "toy": (toy.run_toy, ("toy", "matrices")),
    "further": (toy.run_further, ("further",)),
    "fixed": (toy.run_fixed, ("fixed",)),
    "absorption": (toy.run_absorption, ("absorption",)),
    "real": (real.run_real, ("tuning", "real", "sweep")),
    "modalities": (worlds.run_modalities, ("modalities",)),
    "superposed": (worlds.run_superposed, ("superposed",)),
}
"""Each run with the tables that it fills."""

_TOY = ("seed", "batch", "seeds", "threshold", "k", "judged")
FIELDS: dict[str, tuple[str, ...]] = {
    "properties": ("seed", "judged", "threshold"),
    "norms": (*_TOY, "norm_steps", "norm_cosines", "live_steps"),
    "toy": (*_TOY, "steps", "cosines", "moderate", "shown"),
    "further": (*_TOY, "steps", "further_seeds", "moderate", "shown", "cosines"),
    "fixed": (*_TOY, "fixed_steps", "fixed_threshold"),
    "absorption": (*_TOY, "cells", "cell_seeds", "cell_steps"),
    "real": (
        "seed", "stores", "texts", "held_out", "latents", "expansion", "ks", "k_shown", "k_inference",
        "real_steps", "real_batch", "real_seeds", "rates",
    ),
    "modalities": ("seed", "judged", "joint_seeds", "joint_steps", "joint_batch"),
    "superposed": (
        "seed", "judged", "world_seeds", "world_steps", "world_batch", "world_features", "active",
    ),
}  # fmt: skip
"""What of the configuration each run depends on: kept with its tables."""

RECORDED = tuple(name for _, names in RUNS.values() for name in names)
FINGERPRINT = "sparsebook.experiments.matching_pursuit_sae.recording:fingerprint"


def measure(config: Config, only: tuple[str, ...] = tuple(RUNS)) -> dict[str, pd.DataFrame]:
    """Every table, measured; at scale smoke on one thread, since two would only wait for each other."""
    found: dict[str, pd.DataFrame] = {}
    with threads(1) if config.scale == "smoke" else nullcontext():
        for name in only:
            function, names = RUNS[name]
            found |= split(function(config), names)
    return found


def split(table: pd.DataFrame, names: tuple[str, ...]) -> dict[str, pd.DataFrame]:
    """A run's table by experiment, without the columns that a part does not use."""
    parts = {name: table[table.experiment == name].dropna(axis=1, how="all") for name in names}
    return {name: part.reset_index(drop=True) for name, part in parts.items()}


def tables(config: Config) -> dict[str, pd.DataFrame]:
    """Every table of the chapter: recorded ones at scale `book`, measured ones otherwise."""
    if config.scale == "book":
        from sparsebook.recorded import load

        return {name: load("matching_pursuit_sae", name).table for name in RECORDED}
    return measure(config)


def record(config: Config, only: tuple[str, ...] = tuple(RUNS)) -> None:
    """Run everything at scale `full` and keep the tables with the book (resumable, stage by stage)."""
    from sparsebook.recorded import save

    for run in only:
        function, names = RUNS[run]
        parameters = {field: value for field, value in config.record().items() if field in FIELDS[run]}
        for name, table in split(function(config), names).items():
            save(
                "matching_pursuit_sae", name, table, parameters=parameters,
                seeds=sorted({int(seed) for seed in table.seed}), fingerprint_function=FINGERPRINT, rtol=1e-2,
            )  # fmt: skip


def fingerprint(steps: int = 5) -> list[float]:
    """What the first steps of every training come to: errors of the toy's methods, then on planted rows."""
    config = Config.at("smoke", judged=200)
    out: list[float] = []
    for method in toy.METHODS:
        own = toy.toy_at(config, (0.3,), 2)
        sae = own.train(method, steps)
        x = own.batches(steps) * own.factor(method)
        with torch.no_grad():
            out += (x - sae(x).reconstruction).square().sum(-1).mean(-1).tolist()
    for method in ARMS:
        batches, x = real.sources(config, "planted", (0, 1))
        arm = trained(method, x.shape[1], 48, 4, (0, 1), batches, steps=steps, rate=3e-3)
        out += real.error_at(arm, x).tolist()
    return out
