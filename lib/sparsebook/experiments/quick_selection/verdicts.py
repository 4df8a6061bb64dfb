"""From tables to the samples that the claims ask for; and the same samples from a sabotaged twin."""

from typing import Any

import numpy as np
import pandas as pd

from sparsebook.claims import Ledger, Samples
from sparsebook.experiments.quick_selection import costs
from sparsebook.experiments.quick_selection.recording import RECORDED, Tables, measured
from sparsebook.experiments.quick_selection.scales import Config

RIVALS = ("laplacian", "mcfs", "dense_100", "masked_100")
"""Whom QuickSelection's trade-off is compared with."""


def claim_samples(found: Tables, config: Config, *, sabotaged: bool = False) -> dict[str, Samples]:
    """Samples of every claim that this run could test; with `sabotaged`, those of the declared controls."""
    groups: tuple[dict[str, Samples], ...] = (
        trade_samples(found["trade"], found["speed"], sabotaged),
        madelon_samples(found["madelon"], found["trade"], config, sabotaged),
        digit_samples(found["digits"], config, sabotaged),
        noise_samples(found["noise"], config, sabotaged),
        reason_samples(found["blocks"], found["independent"], sabotaged),
        cost_samples(found, config, sabotaged),
    )
    return {name: samples for group in groups for name, samples in group.items()}


def per_seed(table: pd.DataFrame, method: str, metric: str, **where: Any) -> pd.Series:
    """One value a seed.

    Raises
    ------
    ValueError
        If it was not measured.
    """
    own = table[(table.method == method) & (table.metric == metric)]
    for column, value in where.items():
        own = own[own[column] == value]
    if own.empty:
        raise ValueError(f"{metric} of {method} was not measured ({where})")
    return own.set_index("seed")["value"].sort_index()


# The trade-off -------------------------------------------------------------------------------------------


def accuracies(trade: pd.DataFrame, metric: str = "classification") -> pd.DataFrame:
    """[(set, seed), method] with the usual number of columns; masked SET is the same training as ours."""
    whole = trade[(trade.metric == metric)]
    usual = whole[whole.method == "qs_100"].groupby("set").kept.first()
    if metric == "classification":  # further numbers of columns were judged by it
        most = whole[whole.method == "qs_100"].groupby(["set", "kept"]).seed.nunique().reset_index()
        usual = most.sort_values("seed", kind="stable").groupby("set").kept.last()
    own = whole[(whole.kept == whole.set.map(usual)) | (whole.method == "all")]
    wide = own.pivot_table(index=["set", "seed"], columns="method", values="value", sort=False)
    return wide.assign(masked_100=wide["qs_100"])


def seconds(speed: pd.DataFrame) -> pd.DataFrame:
    """[set, method] median CPU seconds."""
    return speed[speed.metric == "cpu"].pivot_table(
        index="set", columns="method", values="value", aggfunc="median", sort=False
    )


def undominated(
    accuracy: pd.DataFrame, cpu: pd.DataFrame, method: str, slower: float | int = 1.0
) -> pd.Series:
    """By set and seed, whether no rival is both at least as accurate and at most as dear."""
    cost = cpu.loc[accuracy.index.get_level_values("set")].set_axis(accuracy.index)
    beaten = pd.concat(
        [(accuracy[rival] >= accuracy[method]) & (cost[rival] <= slower * cost[method]) for rival in RIVALS],
        axis=1,
    ).any(axis=1)
    return ~beaten


def trade_samples(trade: pd.DataFrame, speed: pd.DataFrame, sabotaged: bool = False) -> dict[str, Samples]:
    """Sets without a better rival, seed by seed; and differences of accuracy, set by set."""
    cpu, slower = seconds(speed), 20.0 if sabotaged else 1.0
    accuracy = accuracies(trade)
    asked = {
        "C1a": (accuracy, "qs_100"),
        "C1b": (accuracies(trade, "clustering"), "qs_100"),
        "C1c": (accuracy, "qs_10"),
    }
    counts = {
        name: Samples(
            undominated(table, cpu, method, slower).groupby("seed").sum().astype(float), unit="sets"
        )
        for name, (table, method) in asked.items()
    }
    means = accuracy.groupby("set").mean()
    lines = {"H12": "random", "H13": "variance", "H14": "all"}
    gains = {name: Samples(means["qs_100"] - means[line], unit="fraction") for name, line in lines.items()}
    return counts | gains


# Madelon -------------------------------------------------------------------------------------------------


def madelon_samples(
    table: pd.DataFrame, trade: pd.DataFrame, config: Config, sabotaged: bool = False
) -> dict[str, Samples]:
    """Precision after the whole training, paired by seed."""

    def precision(arm: str, metric: str = "precision") -> pd.Series:
        return per_seed(table, arm, metric, epoch=config.length)

    weakest = "precision_weakest" if sabotaged else "precision"
    own = precision("released")
    arms = ("epsilon_5", "epsilon_25", "zeta_0.4")
    worst = min(arms, key=lambda arm: precision(arm).mean())
    final = "precision_final_weakest" if sabotaged else "precision_final"
    dense = per_seed(trade, "dense_100", "precision", set="madelon")
    samples = {
        "H1": precision("released", weakest),
        "H2": precision("released", weakest) - precision("right_tanh"),
        "H3": own - precision("released", final),
        "H4": own - precision("inverted_dropout", weakest),
        "H5": own - precision("noise_every_batch", weakest),
        "H6": precision("released", weakest) - precision("zeta_0"),
        "H7": precision("released", weakest) - precision("released", "precision_degree"),
        "H8": precision("released", weakest) - laplacian_precision(table),
        "H9": per_seed(trade, "qs_100", weakest, set="madelon") - dense,
        "C5c": precision(worst, weakest) - own,
    }
    return {name: Samples(values, unit="fraction") for name, values in samples.items()}


def laplacian_precision(table: pd.DataFrame) -> pd.Series:
    """By seed, with the number of neighbours that is best in the mean: the rival at its best."""
    own = table[(table.method == "laplacian") & (table.metric == "precision")]
    best = own.groupby("neighbours")["value"].mean().idxmax()
    return per_seed(table, "laplacian", "precision", neighbours=best)


# Digits, noise, reasons ----------------------------------------------------------------------------------


def digit_samples(table: pd.DataFrame, config: Config, sabotaged: bool = False) -> dict[str, Samples]:
    """Where the kept pixels lie."""
    metric = "inside_elsewhere" if sabotaged else "inside"
    levels = [per_seed(table, "canvas", metric, epoch=epoch) for epoch in (0, 1, config.quick, config.length)]
    early = per_seed(table, "canvas", "inside_variance" if sabotaged else "inside", epoch=1)
    return {
        "C4a": Samples(early, unit="fraction"),
        "C4b": Samples(levels[2], unit="fraction"),
        "C4c": Samples(pd.concat(levels, axis=1).to_numpy(), unit="fraction"),
    }


def noise_samples(table: pd.DataFrame, config: Config, sabotaged: bool = False) -> dict[str, Samples]:
    """Digits with the most noise, and without any."""
    most, none = config.noise_columns[-1], config.noise_columns[0]
    found = per_seed(table, "elsewhere" if sabotaged else "qs_100", "precision", noise_columns=most)
    noisy = per_seed(table, "weakest" if sabotaged else "qs_100", "classification", noise_columns=most)
    lost = noisy - per_seed(table, "qs_100", "classification", noise_columns=none)
    return {"C5a": Samples(found, unit="fraction"), "C5b": Samples(lost, unit="fraction")}


def reason_samples(
    blocks: pd.DataFrame, independent: pd.DataFrame, sabotaged: bool = False
) -> dict[str, Samples]:
    """Strength over the sizes of blocks, and columns that stand alone."""
    own = blocks[blocks.method == ("alone" if sabotaged else "correlated")]
    wide = own.pivot_table(index="seed", columns="block", values="value").to_numpy()
    alone = per_seed(independent, "supervised" if sabotaged else "qs_100", "precision")
    return {
        "H10": Samples(wide[:, ::-1].copy() if sabotaged else wide, unit="ratio"),
        "H11": Samples(alone, unit="fraction"),
    }


# Costs ---------------------------------------------------------------------------------------------------


def cost_samples(found: Tables, config: Config, sabotaged: bool = False) -> dict[str, Samples]:
    """Time, memory, energy."""
    counted = costs.run_counted(config, full=True) if sabotaged else found["counted"]
    slower = 20.0 if sabotaged else 1.0
    size, energy = (by_kind(counted, metric) for metric in ("bytes", "energy"))
    pair = found["pair"].pivot_table(index="seed", columns="method", values="value")
    wide, most = config.memory_features, config.sparse_features
    ours = grown(found["memory"], "sparse", wide)
    masked = ours if sabotaged else grown(found["memory"], "masked", wide)
    megabytes = grown(found["memory"], "sparse", most) / 1e6
    if sabotaged:  # beside values, indices, momentum and gradients of either layer, as many dense arrays
        sizes = Config.at("full")
        megabytes = megabytes + 8 * 4 * sizes.sparse_features * sizes.n_hidden / 1e6
    ratios = {
        "C1d": size["sparse"] / size["dense"],
        "C2a": energy["sparse"] / energy[["dense", "masked"]].min(axis=1),
        "C2b": slower * pair["sparse"] / pair["dense"],
        "C3a": pair["masked"] / (slower * pair["sparse"]),
        "C3b": masked / ours,
    }
    samples = {name: Samples(values, unit="ratio") for name, values in ratios.items()}
    return samples | {"C3c": Samples(megabytes, unit="MB")}


def by_kind(counted: pd.DataFrame, metric: str) -> pd.DataFrame:
    """[set, kind] of what was counted."""
    own = counted[counted.metric == metric]
    return own.pivot_table(index="set", columns="method", values="value", sort=False)


def grown(memory: pd.DataFrame, kind: str, d: int) -> np.ndarray:
    """Bytes by which each of the repeated processes grew."""
    own = memory[(memory.method == kind) & (memory["columns"] == d) & (memory.metric == "grown")]
    own = own[own.repeated == own.repeated.max()]
    if own.empty:
        raise ValueError(f"memory of {kind} at {d} columns was not measured")
    return own["value"].to_numpy()


# ---------------------------------------------------------------------------------------------------------


def check_claims(ledger: Ledger, found: Tables, config: Config) -> None:
    """Supply every claim's samples; the others are untested for the reason that they declare."""
    ledger.check_all(claim_samples(found, config))


def sabotage_samples(config: Config) -> dict[str, Samples]:
    """The samples of the declared controls: weakest columns kept, labels shuffled, all connected, ..."""
    return claim_samples(measured(config, RECORDED, sabotaged=True), config, sabotaged=True)
