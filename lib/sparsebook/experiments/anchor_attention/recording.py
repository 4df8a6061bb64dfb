"""Which tables the chapter has, which run measures them, and how they are kept."""

from collections.abc import Callable

import pandas as pd

from sparsebook.experiments.anchor_attention import runs, speed, tasks
from sparsebook.experiments.anchor_attention.scales import Config

RUNS: dict[str, tuple[Callable[[Config], pd.DataFrame], tuple[str, ...]]] = {
    "texts": (runs.run_texts, ("maxima", "recall", "ablation", "growth")),
    "likelihood": (runs.run_likelihood, ("likelihood",)),
    "tasks": (tasks.run_tasks, ("tasks",)),
    "speed": (speed.run_speed, ("speed",)),
    "pooling": (runs.run_pooling, ("pooling",)),
    "released": (runs.run_released, ("released",)),
}
"""Each run with the tables that it fills."""

RECORDED = tuple(name for _, names in RUNS.values() for name in names)
_PACKAGE = "sparsebook.experiments.anchor_attention"
FINGERPRINTS = {"tasks": (f"{_PACKAGE}.tasks:fingerprint_tasks", 1e-2)}
"""Address and tolerance where they are not `FINGERPRINT`. A key at the edge of the tolerance may fall to the
other side on another machine; in a model that changes what all later layers read."""
FINGERPRINT = (f"{_PACKAGE}.runs:fingerprint", 1e-3)


def measure(config: Config) -> dict[str, pd.DataFrame]:
    """Every table, measured."""
    found: dict[str, pd.DataFrame] = {}
    for function, names in RUNS.values():
        found |= split(function(config), names)
    return found


def split(table: pd.DataFrame, names: tuple[str, ...]) -> dict[str, pd.DataFrame]:
    """A run's table by experiment, without the columns that a part does not use."""
    if len(names) > 1:
        parts = {name: table[table.experiment == name].dropna(axis=1, how="all") for name in names}
    else:
        parts = {names[0]: table}
    return {name: part.reset_index(drop=True) for name, part in parts.items()}


def tables(config: Config) -> dict[str, pd.DataFrame]:
    """Every table of the chapter: recorded ones at scale `book`, measured ones otherwise."""
    if config.scale == "book":
        from sparsebook.recorded import load

        return {name: load("anchor_attention", name).table for name in RECORDED}
    return measure(config)


def record(config: Config, only: tuple[str, ...] = tuple(RUNS)) -> None:
    """Run everything at scale `full` and keep the tables with the book (resumable, stage by stage)."""
    from sparsebook.recorded import save

    for run in only:
        function, names = RUNS[run]
        for name, table in split(function(config), names).items():
            address, rtol = FINGERPRINTS.get(name, FINGERPRINT)
            seeds = sorted({int(seed) for seed in table.seed})
            save(
                "anchor_attention", name, table, parameters=config.record(), seeds=seeds,
                fingerprint_function=address, rtol=rtol,
            )  # fmt: skip
