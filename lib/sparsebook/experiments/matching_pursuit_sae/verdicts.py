"""From tables to the samples that the claims ask for; and the same samples from sabotaged twins."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pandas as pd

from sparsebook.claims import Ledger, Samples
from sparsebook.experiments.matching_pursuit_sae.arms import ARMS
from sparsebook.experiments.matching_pursuit_sae.recording import measure
from sparsebook.experiments.matching_pursuit_sae.scales import Config

SQUARED, COSINE, FRACTION = "squared cosine", "cosine", "fraction"
RIVALS = tuple(method for method in ARMS if method != "mp")

# Reading tables ------------------------------------------------------------------------------------------


def values(table: pd.DataFrame, method: str, metric: str, **at: object) -> np.ndarray:
    """A metric of a method, one value a seed, in the order of the seeds.

    Raises
    ------
    ValueError
        If the table has no such rows.
    """
    own = table[(table.method == method) & (table.metric == metric)]
    for column, value in at.items():
        own = own[own[column] == value]
    if own.empty:
        raise ValueError(
            f"method: no rows of {method!r}, {metric}, {at}; there are {sorted(set(table.method))}"
        )
    return own.sort_values("seed")["value"].to_numpy()


def moderate(toy: pd.DataFrame, method: str, metric: str, limit: float) -> np.ndarray:
    """A metric of the toy, one value a seed: the mean over all cosines up to `limit`."""
    own = toy[(toy.method == method) & (toy.metric == metric) & (toy.cosine <= limit)]
    return own.groupby("seed")["value"].mean().to_numpy()


def all_runs(found: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The toy's runs, and the further ones that some methods had."""
    return pd.concat([found["toy"], found["further"]], ignore_index=True)


def at_latents(real: pd.DataFrame, method: str, metric: str, wanted: np.ndarray, store: str) -> np.ndarray:
    """A metric at the number of latents that each seed's other model uses, linear in its logarithm.

    Beyond the trained numbers of latents the nearest one counts.
    """
    own = real[(real.store == store) & (real.method == method) & real.metric.isin(["l0", metric])]
    wide = own.pivot_table(index=["seed", "k"], columns="metric", values="value")
    out = []
    for target, (_, part) in zip(wanted, wide.groupby("seed"), strict=True):
        part = part.sort_values("l0")
        out.append(np.interp(np.log(target), np.log(part["l0"]), part[metric]))
    return np.array(out)


def stores_of(real: pd.DataFrame) -> list[str]:
    """The sources of activations, in their order."""
    return list(dict.fromkeys(real.store))


def rank_by_steps(real: pd.DataFrame, method: str, store: str) -> np.ndarray:
    """Effective rank, [seeds, numbers of latents]."""
    own = real[(real.store == store) & (real.method == method) & (real.metric == "effective_rank")]
    return own.pivot_table(index="seed", columns="k", values="value").to_numpy()


def sweep_of(sweep: pd.DataFrame, method: str, store: str) -> pd.DataFrame:
    """Normalised error, one row a seed, one column for each number of latents at inference."""
    own = sweep[(sweep.store == store) & (sweep.method == method)]
    return own.pivot_table(index="seed", columns="at", values="value")


# Claims --------------------------------------------------------------------------------------------------


def claim_samples(found: dict[str, pd.DataFrame], config: Config) -> dict[str, Samples]:
    """Samples of every claim that this run could test."""
    samples = _toy_samples(found["toy"], all_runs(found), config)
    samples |= _absorption_samples(found["absorption"], config)
    samples |= _fixed_samples(found["fixed"]) | _norm_samples(found["norms"])
    samples |= _property_samples(found["properties"])
    real, sweep = found["real"], found["sweep"]
    first, last = stores_of(real)[0], stores_of(real)[-1]
    if config.store is None:
        samples |= _real_samples(real, sweep, config, first, last)
    else:
        samples |= _own_store_samples(real, config)
    modal = _modality_sample(found["modalities"])
    samples["C9a" if config.embeddings is None else "C9"] = modal
    return samples | _superposed_samples(found["superposed"])


def _toy_samples(toy: pd.DataFrame, more: pd.DataFrame, config: Config) -> dict[str, Samples]:
    limit, high, mp = config.moderate, max(config.cosines), "mp"
    hierarchical = lambda method: moderate(toy, method, "hierarchical_mse", limit)  # noqa: E731
    flat = lambda method: moderate(toy, method, "flat_mse", limit)  # noqa: E731
    levels = [moderate(more, method, "hierarchical_mse", limit) for method in ("relu", "matryoshka")]
    exact_error = values(more, mp, "code_error", cosine=0.0) <= 0.01
    apart = values(toy, "relu", "hierarchical_mse", cosine=high)
    return {
        "C1a": Samples(values(toy, "relu", "absorption", cosine=0.0), unit=COSINE),
        "C1b": Samples(values(toy, "batch_topk", "absorption", cosine=0.0), unit=COSINE),
        "C1c": Samples(levels[0] - levels[1], unit=SQUARED),
        "C1d": Samples(flat("matryoshka") - flat(mp), unit=SQUARED),
        "C1e": Samples(flat("matryoshka, sorted whole") - flat(mp), unit=SQUARED),
        "C1f": Samples(
            np.minimum(hierarchical("relu"), hierarchical("batch_topk")) - hierarchical(mp), unit=SQUARED
        ),
        "C1g": Samples(np.minimum(flat("relu"), flat("batch_topk")) - flat(mp), unit=SQUARED),
        "C2a": Samples(values(more, mp, "exact", cosine=0.0), unit=FRACTION),
        "C2b": Samples(values(more, mp, "exact", cosine=0.3), unit=FRACTION),
        "C2c": Samples(exact_error.astype(float), unit=FRACTION),
        "C2d": Samples(values(toy, mp, "l0", cosine=high), unit="latents"),
        "C2e": Samples(apart - values(toy, mp, "hierarchical_mse", cosine=high), unit=SQUARED),
    }


def _absorption_samples(table: pd.DataFrame, config: Config) -> dict[str, Samples]:
    strong, half, weak = (cell.name for cell in config.cells)
    score = lambda method, cell: Samples(values(table, method, "absorption", cell=cell), unit=COSINE)  # noqa: E731
    others = ("relu", "batch_topk", "matryoshka")
    silent = np.mean([values(table, method, "silent", cell=weak) for method in others], axis=0)
    return {
        "C3a": score("mp", strong), "C3b": score("matryoshka", strong), "C3c": score("relu", strong),
        "C3d": score("batch_topk", strong), "C3e": score("mp", half), "C3f": score("matryoshka", half),
        "C3g": score("relu", half), "C3h": score("batch_topk", half), "C3i": score("mp", weak),
        "C3j": Samples(silent, unit=FRACTION),
    }  # fmt: skip


def _fixed_samples(fixed: pd.DataFrame) -> dict[str, Samples]:
    low, high = sorted(set(fixed.threshold))
    less = {
        threshold: values(fixed, "varied", "exact", threshold=threshold)
        - values(fixed, "fixed", "exact", threshold=threshold)
        for threshold in (low, high)
    }
    return {
        "C4a": Samples(less[high], unit=FRACTION),
        "C4b": Samples(values(fixed, "fixed", "merged", threshold=high), unit=FRACTION),
        "C4c": Samples(less[low], unit=FRACTION),
    }


def _norm_samples(norms: pd.DataFrame) -> dict[str, Samples]:
    less = values(norms, "free", "exact", cosine=0.0) - values(norms, "scaled back", "exact", cosine=0.0)
    return {"H4": Samples(less, unit=FRACTION)}


def _property_samples(table: pd.DataFrame) -> dict[str, Samples]:
    deviations = table[table.metric == "deviation"]["value"].to_numpy()
    distances = table[table.metric == "distance"]["value"].to_numpy()
    more = values(table, "pursuit", "found") - values(table, "two largest", "found")
    return {
        "H1": Samples(deviations, unit="absolute deviation"),
        "H2": Samples(distances, unit="length"),
        "H3": Samples(more, unit=FRACTION),
    }


def gain(real: pd.DataFrame, config: Config, store: str) -> np.ndarray:
    """R2 of pursuit minus that of the best rival at as many latents as pursuit really uses."""
    ours, used = (values(real, "mp", m, store=store, k=config.k_shown) for m in ("r2", "l0"))
    return ours - np.max([at_latents(real, method, "r2", used, store) for method in RIVALS], axis=0)


def _real_samples(
    real: pd.DataFrame, sweep: pd.DataFrame, config: Config, vision: str, language: str
) -> dict[str, Samples]:
    ranks = {method: rank_by_steps(real, method, vision) for method in ("mp", "topk")}
    growth = {method: table[:, -1] / table[:, 0] for method, table in ranks.items()}
    coherence = lambda metric, store: Samples(  # noqa: E731
        values(real, "mp", metric, store=store, k=config.k_shown)
        / values(real, "topk", metric, store=store, k=config.k_shown),
        unit="ratio",
    )
    past = {method: sweep_of(sweep, method, language) for method in ("mp", "topk", "batch_topk")}
    rise = {method: (table.iloc[:, -1] - table[config.k_shown]).to_numpy() for method, table in past.items()}
    error = "normalised MSE"
    return {
        "C5a": Samples(gain(real, config, vision), unit="R2"),
        "C5b": Samples(gain(real, config, language), unit="R2"),
        "C6a": Samples(ranks["mp"], unit="latents"),
        "C6b": Samples(growth["mp"] / growth["topk"], unit="ratio"),
        "C7a": coherence("babel", vision), "C7b": coherence("active_babel", vision),
        "C7c": coherence("babel", language), "C7d": coherence("active_babel", language),
        "C8a": Samples(past["mp"].to_numpy(), unit=error),
        "C8b": Samples(rise["topk"], unit=error), "C8c": Samples(rise["batch_topk"], unit=error),
    }  # fmt: skip


def _own_store_samples(real: pd.DataFrame, config: Config) -> dict[str, Samples]:
    """What only the paper's own models can answer: the reader's files, named after their models."""
    names = stores_of(real)
    vision = [name for name in names if name != "tinystories"]
    samples = {}
    if vision:
        samples["C5"] = Samples(np.min([gain(real, config, name) for name in vision], axis=0), unit="R2")
    if "tinystories" in names:
        ranks = rank_by_steps(real, "mp", "tinystories")
        samples["C6c"] = Samples(ranks.max(1) - ranks[:, -1], unit="latents")
    return samples


def _modality_sample(table: pd.DataFrame) -> Samples:
    best = np.max([values(table, method, "both") for method in RIVALS], axis=0)
    return Samples(values(table, "mp", "both") - best, unit=FRACTION)


def _superposed_samples(table: pd.DataFrame) -> dict[str, Samples]:
    more = values(table, "mp", "r2") - values(table, "topk", "r2")
    fewer = values(table, "topk", "recovered") - values(table, "mp", "recovered")
    return {"H5": Samples(more, unit="R2"), "H6": Samples(fewer, unit=FRACTION)}


def check_claims(ledger: Ledger, found: dict[str, pd.DataFrame], config: Config) -> None:
    """Supply every claim's samples; say of the others why they were not tested."""
    ledger.check_all(claim_samples(found, config), why="own activations or embeddings in its place")


# Sabotage ------------------------------------------------------------------------------------------------

CONTROLS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "one k": (ARMS, ("real",), ("C8b", "C8c")),
    "no residual": (
        ("mp",), ("real", "superposed", "properties"), ("C5a", "C5b", "C7b", "C7d", "C8a", "H3", "H5"),
    ),
    "four steps": (("mp", "topk"), ("real",), ("C6a", "C6b")),
    "untrained": (
        (), ("toy", "fixed"),
        ("C1d", "C1e", "C1f", "C1g", "C2a", "C2b", "C2c", "C2d", "C4b"),
    ),
    "same arms": ((), ("fixed", "norms"), ("C4a", "C4c", "H4")),
    "labels": ((), ("modalities",), ("C9a",)),
    "given": ((), ("superposed",), ("H6",)),
}  # fmt: skip
"""Each way to break the method: the autoencoders whose training on activations it changes, the runs that it
is measured in, and the claims that it is a control of."""


def sabotage_samples(config: Config) -> dict[str, Samples]:
    """The samples of each claim from a method that is broken as the claim's control says.

    As many runs as the claims ask for. The first control leaves the trainings on activations as they are: the
    autoencoders that another does not change are taken from there.
    """
    enough = replace(
        config, seeds=20, cell_seeds=15, real_seeds=8, world_seeds=8, joint_seeds=24, cell_steps=10,
        norm_steps=10, joint_steps=6,
    )  # fmt: skip
    samples: dict[str, Samples] = {}
    honest: dict[str, pd.DataFrame] = {}
    for sabotage, (arms, runs, claims) in CONTROLS.items():
        broken = replace(enough, sabotage=sabotage, arms=arms)
        found = measure(broken, runs)
        honest = honest or found
        if "real" in found:
            found |= {name: _beside(found[name], honest[name]) for name in ("real", "sweep")}
        samples |= {claim: sample for claim, sample in _of_runs(found, broken).items() if claim in claims}
        if sabotage == "untrained":
            absorption = measure(broken, ("absorption",))["absorption"]
            samples |= _mismatched(found["toy"], absorption, broken)
    return samples | _same_dictionaries(honest["real"], enough) | _parents_latents(enough)


def _beside(broken: pd.DataFrame, honest: pd.DataFrame) -> pd.DataFrame:
    """Autoencoders that a control changes, and the others as they were."""
    return pd.concat([broken, honest[~honest.method.isin(set(broken.method))]], ignore_index=True)


def _same_dictionaries(real: pd.DataFrame, config: Config) -> dict[str, Samples]:
    """TopK's dictionary in the place of pursuit's."""
    store = stores_of(real)[0]
    whole = values(real, "topk", "babel", store=store, k=config.k_shown)
    return {claim: Samples(whole / whole, unit="ratio") for claim in ("C7a", "C7c")}


def _of_runs(found: dict[str, pd.DataFrame], config: Config) -> dict[str, Samples]:
    """The samples that some of the tables give."""
    samples: dict[str, Samples] = {}
    if "toy" in found:
        samples |= _toy_samples(found["toy"], found["toy"], config)
    for name, read in (
        ("fixed", _fixed_samples), ("norms", _norm_samples), ("properties", _property_samples),
        ("superposed", _superposed_samples),
    ):  # fmt: skip
        if name in found:
            samples |= read(found[name])
    if "real" in found:
        only = stores_of(found["real"])[0]
        samples |= _real_samples(found["real"], found["sweep"], config, only, only)
    if "modalities" in found:
        samples["C9a"] = _modality_sample(found["modalities"])
    return samples


def _renamed(table: pd.DataFrame, suffix: str, methods: Iterable[str]) -> pd.DataFrame:
    """A control's rows under the methods' own names."""
    own = table[table.method.isin([method + suffix for method in methods])]
    return own.assign(method=own.method.str.removesuffix(suffix))


def _mismatched(toy: pd.DataFrame, absorption: pd.DataFrame, config: Config) -> dict[str, Samples]:
    """Concepts with latents at random, children with their parents', and autoencoders as they were drawn."""
    every = ("mp", "relu", "batch_topk", "matryoshka", "matryoshka, sorted whole")
    drawn = _renamed(toy, ", random", every)
    samples = _toy_samples(drawn, drawn, config)
    untrained = _absorption_samples(absorption, config)
    high = max(config.cosines)
    merged = values(toy, "mp, parents", "hierarchical_mse", cosine=high)
    apart = values(toy, "relu", "hierarchical_mse", cosine=high)
    return {claim: samples[claim] for claim in ("C1a", "C1b", "C1c")} | {
        "C2e": Samples(apart - merged, unit=SQUARED),
        "C3j": untrained["C3j"],
    }


def _parents_latents(config: Config) -> dict[str, Samples]:
    """Children with their parents' latents; where that is no control, latents at random."""
    table = measure(replace(config, sabotage="labels"), ("absorption",))["absorption"]
    every = ("mp", "relu", "batch_topk", "matryoshka")
    parents = _absorption_samples(_renamed(table, ", parents", every), config)
    drawn = _absorption_samples(_renamed(table, ", random", every), config)
    return {claim: parents[claim] for claim in ("C3a", "C3b", "C3e", "C3f", "C3i")} | {
        claim: drawn[claim] for claim in ("C3c", "C3d", "C3g", "C3h")
    }
