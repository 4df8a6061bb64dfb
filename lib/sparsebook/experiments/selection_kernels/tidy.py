"""Rows of the chapter's tidy tables, and experiments that run in processes and stages of their own."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import pandas as pd

from sparsebook.evaluation.timing import in_processes
from sparsebook.experiments.selection_kernels.scales import Config

Rows = list[dict[str, Any]]
Found = dict[str, dict[str, float]]
"""What one process finds: method -> metric -> value."""
UNITS = {
    "seconds": "s",
    "over ours": "ratio",
    "equal picks": "share",
    "largest difference": "1",
    "product rate": "FLOP/s",
    "copy rate": "B/s",
    "peak": "B",
    "vectors": "1",
}


def row(experiment: str, method: str, seed: int, metric: str, value: float, **knobs: Any) -> dict[str, Any]:
    """One line of a tidy table."""
    head = {"experiment": experiment, "method": method, "seed": seed, "metric": metric}
    return head | {"value": float(value), "unit": UNITS.get(metric, "ratio")} | knobs


def tidy(experiment: str, process: int, found: Mapping[str, Mapping[str, float]], **knobs: Any) -> Rows:
    """What one process found; its number stands in the column of the seeds."""
    return [
        row(experiment, method, process, metric, value, **knobs)
        for method, numbers in found.items()
        for metric, value in numbers.items()
    ]


def by_processes(
    config: Config, experiment: str, once: Callable[..., Found], tasks: tuple[str, ...]
) -> pd.DataFrame:
    """Task by task, `once(knobs, task)` in fresh processes; in this one where the scale asks for none."""
    stages = {task: partial(_task, config, experiment, once, task) for task in tasks}
    return staged(config, experiment, stages)


def _task(config: Config, experiment: str, once: Callable[..., Found], task: str) -> pd.DataFrame:
    arguments = {"knobs": asdict(config), "task": task}
    if config.processes:
        target = f"{once.__module__}:{once.__name__}"
        found = in_processes(target, arguments, config.processes, threads=config.threads)
    else:
        found = [once(**arguments)]
    rows = [line for process, methods in enumerate(found)
            for line in tidy(experiment, process, methods, task=task)]  # fmt: skip
    return pd.DataFrame(rows)


def staged(config: Config, name: str, stages: Mapping[str, Callable[[], pd.DataFrame]]) -> pd.DataFrame:
    """The stages' tables joined; at scale `full` each is kept, so that an interrupted run goes on."""
    if config.scale in ("full", "paper"):
        from sparsebook.recorded import run_stages

        return run_stages("selection_kernels", name, dict(stages), parameters=asdict(config))
    return pd.concat([compute() for compute in stages.values()], ignore_index=True)
