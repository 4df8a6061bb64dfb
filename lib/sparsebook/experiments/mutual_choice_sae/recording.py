"""Which tables the chapter has, and how they are kept."""

import pandas as pd

from sparsebook.evaluation.machine import threads
from sparsebook.experiments.mutual_choice_sae.runs import EXPERIMENTS, run_arms, run_exact, run_fresh
from sparsebook.experiments.mutual_choice_sae.scales import Config

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


def record(config: Config) -> None:
    """Run everything at scale `full` and keep the tables with the book (resumable, cell by cell)."""
    from sparsebook.recorded import save

    for name, table in (run_arms(config) | {"fresh": run_fresh(config)}).items():
        seeds = sorted({int(seed) for seed in table.seed})
        save(
            "mutual_choice_sae", name, table, parameters=config.record(), seeds=seeds,
            fingerprint_function=FINGERPRINT, rtol=1e-3,
        )  # fmt: skip
