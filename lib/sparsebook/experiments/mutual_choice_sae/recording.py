"""Which tables the chapter has, and how they are kept."""

import json
from dataclasses import replace
from typing import Any

import pandas as pd

from sparsebook.evaluation.machine import threads
from sparsebook.experiments.mutual_choice_sae.runs import EXPERIMENTS, run_arms, run_exact, run_fresh
from sparsebook.experiments.mutual_choice_sae.scales import SOURCES, Config

FINGERPRINT = "sparsebook.experiments.mutual_choice_sae.runs:fingerprint"


def tables(config: Config) -> dict[str, pd.DataFrame]:
    """Every table of the chapter: recorded ones at scale `book`, measured ones otherwise.

    What is exact is computed at every scale.
    """
    if config.scale != "book":
        # Tables as small as those of smoke are slower on two threads than on one.
        with threads(1 if config.scale == "smoke" else config.threads):
            return run_arms(config) | {"fresh": run_fresh(config), "exact": run_exact(config)}
    from sparsebook.recorded import load

    found = {name: load("mutual_choice_sae", name).table for name in (*EXPERIMENTS, "fresh")}
    return found | {"exact": run_exact(config)}


def record(config: Config, source: str | None = None) -> None:
    """Run everything at scale `full` and keep the tables with the book (resumable, cell by cell).

    Parameters
    ----------
    source : run this source's cells alone and put them in the place of those recorded before; the others
        stay, if the code still computes what was recorded and their settings are the same

    Raises
    ------
    ValueError : an unknown source, or other settings of what stays
    StaleRecord : the code computes otherwise
    """
    from sparsebook.recorded import save

    found = _with_new(config, source) if source else run_arms(config) | {"fresh": run_fresh(config)}
    for name, table in found.items():
        seeds = sorted({int(seed) for seed in table.seed})
        save(
            "mutual_choice_sae", name, table, parameters=config.record(), seeds=seeds,
            fingerprint_function=FINGERPRINT, rtol=1e-3,
        )  # fmt: skip


def _with_new(config: Config, source: str) -> dict[str, pd.DataFrame]:
    """The recorded tables with the rows of one source measured anew; fresh worlds stay as they are."""
    from sparsebook.recorded import load

    if source not in SOURCES:
        raise ValueError(f"source={source!r}: expected one of {', '.join(SOURCES)}")
    kept = {name: load("mutual_choice_sae", name) for name in (*EXPERIMENTS, "fresh")}
    for name, recorded in kept.items():
        recorded.replay()
        was, now = (json.loads(json.dumps(info)) for info in (recorded.info["parameters"], config.record()))
        # Both worlds share their sizes, so that those can only change in both.
        other = [key for key in now if was.get(key) != now[key] and (key, source) != ("real", "real")]
        if other:
            raise ValueError(f"{name} was recorded with other settings: {', '.join(other)}")
    others: dict[str, Any] = {"arms": (), "equal_arms": (), "real_arms": (), "grid": ()}
    for own in {"zipf": ("arms", "grid"), "uniform": ("equal_arms",), "real": ("real_arms",)}[source]:
        del others[own]
    new = run_arms(replace(config, **others))
    out = {}
    for name in EXPERIMENTS:
        table = kept[name].table
        out[name] = pd.concat([table[table.source != source], new[name]], ignore_index=True)
    return out | {"fresh": kept["fresh"].table}
