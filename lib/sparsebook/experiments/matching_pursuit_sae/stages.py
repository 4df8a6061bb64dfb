"""Rows of the chapter's tables, and runs that are kept stage by stage."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

import pandas as pd
from torch import Tensor

from sparsebook.experiments.matching_pursuit_sae.scales import Config

Rows = list[dict[str, Any]]
Stages = Mapping[str, Callable[[], Rows]]

UNITS = {
    "flat_mse": "squared cosine",
    "hierarchical_mse": "squared cosine",
    "absorption": "cosine",
    "lowest_cosine": "cosine",
    "merged": "fraction",
    "exact": "fraction",
    "silent": "fraction",
    "l0": "latents",
    "code_error": "fraction",
    "longest": "length",
    "shortest": "length",
    "r2": "R2",
    "dead": "fraction",
    "effective_rank": "latents",
    "babel": "cosine",
    "active_babel": "cosine",
    "normalized_mse": "normalised MSE",
    "recovered": "fraction",
    "both": "fraction",
    "used": "latents",
}
"""The unit of every metric that is measured for several models at once."""


def rows(
    experiment: str, method: str, seeds: Iterable[int], metrics: Mapping[str, Tensor], **knobs: Any
) -> Rows:
    """One row for each metric and model."""
    return [
        {"experiment": experiment, "method": method, "seed": seed, "metric": metric}
        | {"value": float(value), "unit": UNITS[metric]}
        | knobs
        for metric, values in metrics.items()
        for seed, value in zip(seeds, values.tolist(), strict=True)
    ]


def row(experiment: str, method: str, seed: int, metric: str, value: Any, unit: str, **knobs: Any) -> Rows:
    """A single one."""
    head = {"experiment": experiment, "method": method, "seed": seed, "metric": metric}
    return [head | {"value": float(value), "unit": unit} | knobs]


def run(config: Config, stages: Stages, experiment: str) -> pd.DataFrame:
    """All stages of a run; at full and paper scale each is kept, so that a run can be resumed."""
    tables = {key: (lambda compute=compute: pd.DataFrame(compute())) for key, compute in stages.items()}
    if config.scale in ("full", "paper") and not config.sabotage:
        from sparsebook.recorded import run_stages

        return run_stages("matching_pursuit_sae", experiment, tables, parameters=asdict(config))
    return pd.concat([table() for table in tables.values()], ignore_index=True)
