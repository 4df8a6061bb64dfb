"""Which tables the chapter has, and how they are kept."""

import json
from collections.abc import Callable, Sequence

import pandas as pd

from sparsebook.evaluation.machine import threads
from sparsebook.experiments.quick_selection import costs, runs
from sparsebook.experiments.quick_selection.scales import Config

FINGERPRINT = "sparsebook.experiments.quick_selection.runs:fingerprint"
RECORDED = (
    "madelon", "tuning", "trade", "digits", "noise", "blocks", "independent", "profile", "memory", "counted",
    "speed", "pair",
)  # fmt: skip
Tables = dict[str, pd.DataFrame]

_SIMPLE: dict[str, Callable[[Config], pd.DataFrame]] = {
    "madelon": runs.run_madelon,
    "tuning": runs.run_tuning,
    "digits": runs.run_digits,
    "noise": runs.run_noise,
    "blocks": runs.run_blocks,
    "independent": runs.run_independent,
    "profile": runs.run_profile,
    "memory": costs.run_memory,
    "counted": costs.run_counted,
    "pair": costs.run_pair,
}


def tables(config: Config) -> Tables:
    """Every table of the chapter: recorded ones at scale `book`, measured ones otherwise."""
    if config.scale == "book" and config.tables is None:
        from sparsebook.recorded import load

        return {name: load("quick_selection", name).table for name in RECORDED}
    return measured(config, RECORDED)


def measured(
    config: Config, names: Sequence[str], kept: Tables | None = None, sabotaged: bool = False
) -> Tables:
    """The tables asked for, and the tuning that they rest on unless it is `kept`; all on one thread."""
    found: Tables = dict(kept or {})
    with threads(1):
        for name in names:
            if name in _SIMPLE:
                found[name] = _SIMPLE[name](config)
        if {"trade", "speed"} & set(names) and "tuning" not in found:
            found["tuning"] = runs.run_tuning(config)
        if "trade" in names:
            found["trade"] = runs.run_trade(config, found["tuning"], sabotaged)
        if "speed" in names:
            found["speed"] = costs.run_speed(config, found["tuning"])
    return found


def record(config: Config, only: Sequence[str] = RECORDED) -> None:
    """Run what is asked for at scale `full` and keep the tables with the book (resumable, stage by stage)."""
    from sparsebook.recorded import save

    for name in only:
        table = measured(config, (name,), _kept(config))[name]
        save(
            "quick_selection", name, table, parameters=config.record(),
            seeds=sorted({int(seed) for seed in table.seed}), fingerprint_function=FINGERPRINT, rtol=1e-3,
        )  # fmt: skip


def _kept(config: Config) -> Tables:
    """Tuning that was recorded with this configuration, so that what rests on it need not repeat it."""
    from sparsebook.recorded import load

    try:
        recorded = load("quick_selection", "tuning")
    except FileNotFoundError:
        return {}
    same = recorded.info["parameters"] == json.loads(json.dumps(config.record()))
    return {"tuning": recorded.table} if same else {}
