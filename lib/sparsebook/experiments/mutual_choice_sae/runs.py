"""The experiments: each returns a tidy table (experiment, method, seed, metric, value, unit, its knobs)."""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from sparsebook.experiments.mutual_choice_sae import exact
from sparsebook.experiments.mutual_choice_sae.arms import Trained, train_arm, trainer_of
from sparsebook.experiments.mutual_choice_sae.inputs import tokens_of
from sparsebook.experiments.mutual_choice_sae.measures import (
    Law,
    Reading,
    evaluations,
    held_out,
    law_of,
    own_mode,
    ranks_of,
    read,
)
from sparsebook.experiments.mutual_choice_sae.scales import Config

Rows = list[dict[str, Any]]
EXPERIMENTS = ("arms", "densities", "progress")
REFERENCE = "topk+aux_k"

UNITS = {
    "effective": "latents",
    "l0": "latents",
    "tail_gap": "nats",
    "zipf_exponent": "exponent",
    "zipf_offset": "ranks",
    "removal": "correlation",
    "addition": "correlation",
    "with_truth": "correlation",
    "with_topk_error": "correlation",
}
"""Units of what is no fraction."""


def tidy(experiment: str, method: str, seed: int, values: Mapping[str, float], **knobs: Any) -> Rows:
    """Rows of one measurement."""
    head = {"experiment": experiment, "method": method, "seed": seed}
    return [
        head | {"metric": metric, "value": float(value), "unit": UNITS.get(metric, "fraction")} | knobs
        for metric, value in values.items()
    ]


def run_arms(config: Config) -> dict[str, pd.DataFrame]:
    """Every arm in every cell: trained on all seeds at once, then measured on held-out tokens.

    At full and paper scale each cell is kept, so that a run can be resumed.
    """
    stages = {
        f"{source} k={k} {arm}": partial(_cell, config, source, k, arm) for source, k, arm in config.cells
    }
    if config.scale in ("full", "paper"):
        from sparsebook.recorded import run_stages

        # What a cell gives does not depend on which others there are.
        own = replace(config, grid=(), arms=(), equal_arms=(), real_arms=()).record()
        table = run_stages("mutual_choice_sae", "arms", stages, parameters=own)
    else:
        table = pd.concat([compute() for compute in stages.values()], ignore_index=True)
    parts = {name: table[table.experiment == name].dropna(axis=1, how="all") for name in EXPERIMENTS}
    return {name: part.reset_index(drop=True) for name, part in parts.items()}


def _cell(config: Config, source: str, k: int, arm: str) -> pd.DataFrame:
    """One arm at one sparsity on one source."""
    seeds = range(config.size(source).n_seeds)
    if arm == REFERENCE:
        trained = _reference(config, source, k)[0]
    else:
        trained = train_arm(config, source, arm, k, tokens_of(config, source, seeds), list(seeds))
    return pd.DataFrame(rows_of(config, source, k, arm, trained))


@lru_cache(maxsize=2)
def _reference(config: Config, source: str, k: int) -> tuple[Trained, Reading]:
    """TopK + aux_k of a source and what it makes of the held-out tokens: others are compared with it."""
    seeds = range(config.size(source).n_seeds)
    trained = train_arm(config, source, REFERENCE, k, tokens_of(config, source, seeds), list(seeds))
    return trained, read(trained, held_out(trained), own_mode(trained.sae))


def rows_of(config: Config, source: str, k: int, arm: str, trained: Trained) -> Rows:
    """Everything that is measured of a trained arm."""
    seeds, knobs = trained.sae.seeds or (), {"source": source, "k": k}
    law, error = _yardstick(config, source, k)
    out: Rows = []
    for index, rule, values in evaluations(trained, config, law, error):
        out += tidy("arms", arm, seeds[index], values, **knobs, rule=rule)
    if k == config.size(source).k:
        out += _densities(trained, arm, knobs)
        for row in trained.log.rows:
            if row.metric == "dead":
                out += tidy("progress", arm, row.seed, {"dead": row.value}, **knobs, step=row.step)
    return out


def _yardstick(config: Config, source: str, k: int) -> tuple[Law, Tensor | None]:
    """The law that under-used latents are counted by, and TopK's error of each token (real tokens alone)."""
    if source != "real":
        return law_of(source), None
    reading = _reference(config, source, k)[1]
    return law_of(source, reading), reading.error


def _densities(trained: Trained, arm: str, knobs: Mapping[str, Any]) -> Rows:
    reading = read(trained, held_out(trained), own_mode(trained.sae))
    out: Rows = []
    for seed, density in zip(trained.sae.seeds or (), reading.density, strict=True):
        ordered = density.sort(descending=True).values
        for rank in ranks_of(len(ordered)):
            out += tidy("densities", arm, seed, {"density": float(ordered[rank - 1])}, **knobs, rank=rank)
    return out


FRESH = (
    ("zipf", "mutual"),
    ("zipf", "mutual+aux_zipf"),
    ("uniform", "uniform+aux_zipf"),
    ("uniform", "zipf+aux_zipf"),
)
"""What the claims that failed rest on: trained once more, in worlds that no other table has seen."""


def run_fresh(config: Config) -> pd.DataFrame:
    """As many fresh worlds again, for the claims that failed."""
    k = config.synthetic.k
    stages = {f"{s} k={k} {arm}": partial(_fresh, config, s, k, arm) for s, arm in FRESH}
    if config.scale in ("full", "paper"):
        from sparsebook.recorded import run_stages

        own = replace(config, grid=(), arms=(), equal_arms=(), real_arms=()).record()
        return run_stages("mutual_choice_sae", "fresh", stages, parameters=own)
    return pd.concat([compute() for compute in stages.values()], ignore_index=True)


def _fresh(config: Config, source: str, k: int, arm: str) -> pd.DataFrame:
    n = config.synthetic.n_seeds
    seeds = list(range(n, 2 * n))
    trained = train_arm(config, source, arm, k, tokens_of(config, source, seeds), seeds)
    table = pd.DataFrame(rows_of(config, source, k, arm, trained))
    table = table[(table.experiment == "arms") & (table.rule == "own")]
    kept = table[table.metric.isin(("nmse", "l0", "dead", "lacking", "recovered"))]
    return kept.dropna(axis=1, how="all").assign(experiment="fresh").reset_index(drop=True)


# One live training ------------------------------------------------------------------------------------------

LIVE_ARMS = ("zipf+aux_zipf",)


def run_live(config: Config) -> pd.DataFrame:
    """Feature Choice in one more Zipf world that is in no table."""
    seeds, k = [config.live_seed], config.synthetic.k
    tokens, out = tokens_of(config, "zipf", seeds), []
    for arm in LIVE_ARMS:
        trained = train_arm(config, "zipf", arm, k, tokens, seeds)
        out += rows_of(config, "zipf", k, arm, trained)
    table = pd.DataFrame(out)
    return table[(table.experiment == "arms") & (table.rule == "own")].assign(experiment="live")


def run_exact(config: Config) -> pd.DataFrame:
    """Statements that hold or do not: the optimum, Mutual Choice and BatchTopK, aux_zipf and aux_k."""
    few = config.scale == "smoke"
    values = (
        exact.optimality(10 if few else 100),
        exact.against_batchtopk(n_steps=3 if few else 25),
        exact.against_aux_k(),
    )
    names, out = ("H1", "H2", "H3"), []
    for name, found in zip(names, values, strict=True):
        for number, value in enumerate(found):
            out += tidy("exact", name, number, {"difference": value})
    return pd.DataFrame(out)


def fingerprint(n_steps: int = 5) -> list[float]:
    """Losses of the first steps of every rule, in small, budgets set on the way."""
    config = Config.at("smoke")
    small = replace(config.synthetic, n_steps=n_steps, n_seeds=2, refit=2)
    config = replace(config, synthetic=small)
    seeds = list(range(small.n_seeds))
    tokens, found = tokens_of(config, "zipf", seeds), []
    for arm in ("topk+aux_k", "mutual+aux_zipf", "uniform", "zipf+aux_zipf"):
        trainer = trainer_of(config, "zipf", arm, small.k, tokens, seeds)
        sources = [own.batches(small.batch, seed) for own, seed in zip(tokens, seeds, strict=True)]
        for number in range(n_steps):
            step = trainer.step(torch.stack([batches(number) for batches in sources]))
            error = (step.x - step.output.reconstruction).detach().square().mean((1, 2))
            found += error.tolist()
    return found
