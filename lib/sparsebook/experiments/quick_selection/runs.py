"""The experiments on quality, as tidy tables (experiment, method, seed, metric, value, unit, knobs)."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sparsebook.evaluation.machine import threads
from sparsebook.experiments.quick_selection.inputs import (
    Split,
    correlated_blocks,
    digit_canvas,
    digits_in_noise,
    folder_sets,
    independent,
    load_split,
    madelon,
    tuning_split,
)
from sparsebook.experiments.quick_selection.rivals import (
    Ranks,
    dense_ranks,
    graph_score,
    quick_ranks,
    sparse_dae,
)
from sparsebook.experiments.quick_selection.scales import Config
from sparsebook.networks.feature_selection import evaluate_selection, top_features
from sparsebook.networks.quick_selection import SparseNetwork

Stages = dict[str, Callable[[], pd.DataFrame]]
Found = Mapping[str, float]

ARMS: dict[str, dict[str, Any]] = {
    "released": {},
    "right_tanh": {"tanh_rule": "right"},
    "inverted_dropout": {"dropout_rule": "inverted"},
    "zeta_0": {"zeta": 0.0},
    "noise_every_batch": {"noise_rule": "batch"},
    "epsilon_5": {"epsilon": 5},
    "epsilon_25": {"epsilon": 25},
    "zeta_0.4": {"zeta": 0.4},
}
"""What is changed of the released method, on Madelon."""
TUNED = ("qs", "dense", "laplacian", "mcfs")
METHODS = ("qs_100", "qs_10", "dense_100", "dense_10", "laplacian", "mcfs", "variance", "random", "all")


def run(config: Config, stages: Stages, experiment: str) -> pd.DataFrame:
    """All stages of an experiment; at full and paper scale each is kept, so that a run can be resumed."""
    if config.scale in ("full", "paper"):
        from sparsebook.recorded import run_stages

        # A folder of the reader's own stands in the key by its checksum: a record names no machine's paths.
        folder = None if config.tables is None else str(Path(config.tables).resolve())
        own = None if folder is None else hashlib.sha256(folder.encode()).hexdigest()
        parameters = config.record() | {"tables": own}
        return run_stages("quick_selection", experiment, stages, parameters=parameters)
    return pd.concat([compute() for compute in stages.values()], ignore_index=True)


def tidy(
    experiment: str, method: str, seed: int, found: Found, unit: str = "fraction", **knobs: Any
) -> list[dict[str, Any]]:
    """One row a metric."""
    return [
        {"experiment": experiment, "method": method, "seed": seed, "metric": metric, "value": float(value),
         "unit": unit} | knobs
        for metric, value in found.items()
    ]  # fmt: skip


def share_useful(scores: np.ndarray, useful: np.ndarray, kept: int) -> float:
    """Share of the kept columns that are useful: precision."""
    return float(np.isin(top_features(scores, kept), useful).mean())


# Madelon -------------------------------------------------------------------------------------------------


def run_madelon(config: Config) -> pd.DataFrame:
    """Precision of every arm after some epochs, by each rule of ranking."""
    stages: Stages = {
        f"{arm} seed={seed}": partial(_madelon, config, arm, seed) for arm in ARMS for seed in config.seeds
    }
    return run(config, stages, "madelon")


def _madelon(config: Config, arm: str, seed: int) -> pd.DataFrame:
    split, out = madelon(seed, config), []
    kept = config.kept_known

    def watch(epoch: int, network: SparseNetwork) -> None:
        if epoch not in config.epochs:
            return
        layer = network.input if network.pruned is None else network.pruned
        rankings = {
            "precision": layer.strength(),
            "precision_final": network.input.strength(),
            "precision_degree": layer.degree(),
            "precision_weakest": -layer.strength(),
            "precision_final_weakest": -network.input.strength(),
        }
        found = {name: share_useful(scores, split.useful, kept) for name, scores in rankings.items()}
        out.extend(tidy("madelon", arm, seed, found, epoch=epoch))
        if arm == "released":
            found = _judged(config, split, top_features(layer.strength(), kept), seed)
            out.extend(tidy("madelon", arm, seed, found, epoch=epoch))

    sparse_dae(config, **({"output": "tanh", "seed": [seed, 11]} | ARMS[arm])).fit(split.train, watch=watch)
    if arm == "released":
        for neighbours in config.neighbours:
            scores = graph_score("laplacian", split, neighbours, kept)
            found = {"precision": share_useful(scores, split.useful, kept)}
            out += tidy("madelon", "laplacian", seed, found, epoch=0, neighbours=neighbours)
    return pd.DataFrame(out)


def _judged(config: Config, split: Split, columns: np.ndarray, seed: int) -> dict[str, float]:
    judged = evaluate_selection(
        split.train, split.test, split.train_labels, split.test_labels, columns, seed=seed,
        n_trees=config.trees, n_clusterings=config.clusterings,
    )  # fmt: skip
    return {"classification": judged.classification, "clustering": judged.clustering}


def run_profile(config: Config) -> pd.DataFrame:
    """Strength and degree of every column of one Madelon, and of every pixel, on the way."""
    stages: Stages = {
        "madelon": partial(_profile, config, "madelon"),
        "canvas": partial(_profile, config, "canvas"),
    }
    return run(config, stages, "profile")


def _profile(config: Config, name: str) -> pd.DataFrame:
    seed = config.seeds[0]
    split = madelon(seed, config) if name == "madelon" else digit_canvas(seed, config)
    output = "tanh" if name == "madelon" else "linear"
    return pd.DataFrame(column_profile(config, split, output, seed, name))


def column_profile(config: Config, split: Split, output: str, seed: int, name: str) -> list[dict[str, Any]]:
    """Strength and degree of every column before training and after some epochs, one row each."""
    out: list[dict[str, Any]] = []

    def note(epoch: int, network: SparseNetwork) -> None:
        if epoch not in (0, *config.epochs):
            return
        layer = network.input if network.pruned is None else network.pruned
        for metric, values in (("strength", layer.strength()), ("degree", layer.degree())):
            for column, value in enumerate(values):
                found = {metric: round(float(value), 4)}
                out.extend(tidy("profile", name, seed, found, "1", epoch=epoch, column=column))

    options = sparse_dae(config, output, [seed, 11])
    # The connections that the training starts from: the same draw.
    note(0, SparseNetwork(options, split.train.shape[1], np.random.default_rng([seed, 11])))
    options.fit(split.train, watch=note)
    return out


# Where the kept pixels lie -------------------------------------------------------------------------------


def run_digits(config: Config) -> pd.DataFrame:
    """Share of the kept pixels inside the digit's area over the epochs."""
    stages: Stages = {f"seed={seed}": partial(canvas_shares, config, seed) for seed in config.seeds}
    return run(config, stages, "digits")


def canvas_shares(config: Config, seed: int) -> pd.DataFrame:
    """The shares of one network, before training (epoch 0) and after some epochs."""
    split = digit_canvas(seed, config)
    profile = pd.DataFrame(column_profile(config, split, "linear", seed, "canvas"))
    return pd.DataFrame(shares_of(profile, split, config, seed))


def shares_of(profile: pd.DataFrame, split: Split, config: Config, seed: int) -> list[dict[str, Any]]:
    """The same from strengths that are there; also with strengths that belong to other pixels."""
    rng, out = np.random.default_rng([seed, 13]), []
    kept = min(config.kept, split.train.shape[1])
    for epoch, own in profile[profile.metric == "strength"].groupby("epoch"):
        scores = own.sort_values("column")["value"].to_numpy()
        found = {
            "inside": share_useful(scores, split.useful, kept),
            "inside_elsewhere": share_useful(rng.permutation(scores), split.useful, kept),
            "inside_variance": share_useful(split.variance, split.useful, kept),
        }
        out += tidy("digits", "canvas", seed, found, epoch=int(epoch))  # type: ignore[call-overload]
    return out


# Robustness ----------------------------------------------------------------------------------------------


def run_noise(config: Config) -> pd.DataFrame:
    """Digits beside more and more columns of noise."""
    stages: Stages = {
        f"noise={columns} seed={seed}": partial(_noise, config, columns, seed)
        for columns in config.noise_columns
        for seed in config.seeds
    }
    return run(config, stages, "noise")


def _noise(config: Config, columns: int, seed: int) -> pd.DataFrame:
    split = digits_in_noise(seed, columns, 3 * config.most_samples)
    rng, out = np.random.default_rng([seed, 17]), []
    strength = quick_ranks(sparse_dae(config, "linear", [seed, 11]), split.train, (config.length,))[
        config.length
    ]
    rankings = {
        "qs_100": strength,
        "weakest": -strength,
        "elsewhere": rng.permutation(strength),
        "laplacian": graph_score("laplacian", split, 5, config.kept_known),
        "random": rng.random(len(strength)),
    }
    for method, scores in rankings.items():
        found = {"precision": share_useful(scores, split.useful, config.kept_known)}
        found |= _judged(config, split, top_features(scores, config.kept_known), seed)
        out += tidy("noise", method, seed, found, noise_columns=columns)
    return pd.DataFrame(out)


# Why it works --------------------------------------------------------------------------------------------


def run_blocks(config: Config) -> pd.DataFrame:
    """Strength of columns in correlated blocks, over that of noise; and of the same without correlation."""
    stages: Stages = {f"seed={seed}": partial(_blocks, config, seed) for seed in config.seeds}
    return run(config, stages, "blocks")


def _blocks(config: Config, seed: int) -> pd.DataFrame:
    out = []
    arms = (
        (("correlated", 0.8),) if config.scale in ("full", "paper") else (("correlated", 0.8), ("alone", 0.0))
    )
    for method, correlation in arms:
        x, members = correlated_blocks(seed, config, correlation)
        strength = quick_ranks(sparse_dae(config, "linear", [seed, 11]), x, (config.length,))[config.length]
        planted = np.concatenate(list(members.values()))
        noise = np.delete(strength, planted).mean()
        for size, columns in members.items():
            found = {"strength": strength[columns].mean() / noise}
            out += tidy("blocks", method, seed, found, "ratio", block=size)
    return pd.DataFrame(out)


def run_independent(config: Config) -> pd.DataFrame:
    """Twenty columns that decide the class and are correlated with nothing."""
    stages: Stages = {f"seed={seed}": partial(_independent, config, seed) for seed in config.seeds}
    return run(config, stages, "independent")


def _independent(config: Config, seed: int) -> pd.DataFrame:
    split, kept = independent(seed, config), config.kept_known
    strength = quick_ranks(sparse_dae(config, "linear", [seed, 11]), split.train, (config.length,))[
        config.length
    ]
    use = np.abs(split.train.T @ (split.train_labels - split.train_labels.mean()))
    rankings = {"qs_100": strength, "supervised": use}
    rows = [
        tidy("independent", name, seed, {"precision": share_useful(scores, split.useful, kept)})
        for name, scores in rankings.items()
    ]
    return pd.DataFrame([row for group in rows for row in group])


# The trade-off -------------------------------------------------------------------------------------------


def set_names(config: Config) -> tuple[str, ...]:
    """The sets that are compared: ours, or those of the reader's folder."""
    return config.sets if config.tables is None else folder_sets(config.tables)


def output_of(name: str) -> str:
    """Madelon has the tanh output, as released; the others are linear."""
    return "tanh" if name.lower().startswith("madelon") else "linear"


def run_tuning(config: Config) -> pd.DataFrame:
    """Every method that has a setting, at as many settings, on training samples held out."""
    stages: Stages = {
        f"{name} {method}": partial(_tune, config, name, method)
        for name in set_names(config)
        for method in TUNED
    }
    return run(config, stages, "tuning")


def _tune(config: Config, name: str, method: str) -> pd.DataFrame:
    seed = config.tuning_seed
    split, kept = tuning_split(load_split(name, seed, config), seed), config.kept_of(name)
    out = []
    for setting in config.rates if method in ("qs", "dense") else config.neighbours:
        scores = _scored(config, name, method, split, setting, config.tuning_epochs, seed)
        if np.isfinite(scores).any():
            found = _judged(config, split, top_features(scores, min(kept, len(scores))), seed)
        else:
            found = {"classification": 0.0, "clustering": 0.0}  # diverged
        out += tidy("tuning", method, seed, found, set=name, setting=setting)
    return pd.DataFrame(out)


def _scored(
    config: Config, name: str, method: str, split: Split, setting: float | int, epochs: int, seed: int
) -> np.ndarray:
    if method not in ("qs", "dense"):
        return graph_score(method, split, int(setting), min(config.kept_of(name), split.train.shape[1]))
    ranks = quick_ranks if method == "qs" else dense_ranks
    options = sparse_dae(config, output_of(name), [seed, 11], lr=setting, epochs=epochs)
    try:
        scores = ranks(options, split.train, (epochs,))[epochs]
    except ValueError:  # diverged
        return np.full(split.train.shape[1], -np.inf)
    return np.where(np.isfinite(scores), scores, -np.inf)


def best_setting(tuning: pd.DataFrame, name: str, method: str) -> float:
    """The setting of the highest accuracy, the smallest of equals."""
    own = tuning[(tuning.set == name) & (tuning.method == method) & (tuning.metric == "classification")]
    return float(own.sort_values("setting").set_index("setting")["value"].idxmax())


def run_trade(config: Config, tuning: pd.DataFrame, sabotaged: bool = False) -> pd.DataFrame:
    """Accuracy of every method on every set; rivals as tuned, QuickSelection as released."""
    stages: Stages = {
        f"{name} seed={seed}": partial(_trade, config, tuning, name, seed, sabotaged)
        for seed in config.trade_seeds
        for name in set_names(config)
    }
    return run(config, stages, "trade")


def _trade(config: Config, tuning: pd.DataFrame, name: str, seed: int, sabotaged: bool) -> pd.DataFrame:
    split, out = load_split(name, seed, config), []
    swept = name in config.sweep_sets and seed in config.trade_seeds[: config.sweep_seeds]
    for method, scores in all_scores(config, tuning, name, split, seed).items():
        most = len(scores)
        kept = most if method == "all" else min(config.kept_of(name), most)
        labels = _other_labels(split, seed) if sabotaged and method.startswith("qs") else split
        found = _judged(config, labels, top_features(scores, kept), seed)
        if len(split.useful) and method != "all":
            found["precision"] = share_useful(scores, split.useful, kept)
            found["precision_weakest"] = share_useful(-scores, split.useful, kept)
        out += tidy("trade", method, seed, found, set=name, kept=kept)
        if swept and method != "all":
            for other in (k for k in config.kept_sweep if k != kept and k <= most):
                judged = _judged(config, split, top_features(scores, other), seed)
                found = {"classification": judged["classification"]}
                out += tidy("trade", method, seed, found, set=name, kept=other)
    return pd.DataFrame(out)


def all_scores(
    config: Config, tuning: pd.DataFrame, name: str, split: Split, seed: int
) -> dict[str, np.ndarray]:
    """Every method's scores of the columns, large being good."""
    epochs, output = (config.quick, config.length), output_of(name)
    kept = min(config.kept_of(name), split.train.shape[1])
    sparse = quick_ranks(sparse_dae(config, output, [seed, 11]), split.train, epochs)
    rate = best_setting(tuning, name, "dense")
    dense = dense_ranks(sparse_dae(config, output, [seed, 11], lr=rate), split.train, epochs)
    graphs = {
        method: graph_score(method, split, int(best_setting(tuning, name, method)), kept)
        for method in ("laplacian", "mcfs")
    }
    columns = split.train.shape[1]
    lines: dict[str, np.ndarray] = {
        "variance": split.variance,
        "random": np.random.default_rng([seed, 19]).random((columns,)),
        "all": np.ones(columns),
    }
    return _by_epoch("qs", sparse, config) | _by_epoch("dense", dense, config) | graphs | lines


def _by_epoch(method: str, ranks: Ranks, config: Config) -> dict[str, np.ndarray]:
    """The two settings; what diverged ranks last."""
    scores = {f"{method}_10": ranks[config.quick], f"{method}_100": ranks[config.length]}
    return {name: np.where(np.isfinite(own), own, -np.inf) for name, own in scores.items()}


def _other_labels(split: Split, seed: int) -> Split:
    """The same samples with labels dealt out at random, by which nothing can be right but by chance."""
    rng = np.random.default_rng([seed, 23])
    train, test = rng.permutation(split.train_labels), rng.permutation(split.test_labels)
    return Split(split.train, split.test, train, test, split.variance, split.useful)


# -----------------------------------------------------------------------------------------------------------


def run_live(config: Config) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One more canvas and one more Madelon, trained now; and the canvas's strengths on the way."""
    split = digit_canvas(config.live, config)
    with threads(1):  # as recorded; the products of a step are too small for more
        profile = pd.DataFrame(column_profile(config, split, "linear", config.live, "canvas"))
        known = _madelon(config, "released", config.live)
    shares = pd.DataFrame(shares_of(profile, split, config, config.live))
    return pd.concat([shares, known], ignore_index=True), profile


def fingerprint() -> list[float]:
    """Losses of the first five epochs on a small Madelon, and what its strengths add up to."""
    config = Config.at("full", epochs=(5,), madelon=(240, 60, 100), n_hidden=40, batch=20)
    split = madelon(0, config)
    options = sparse_dae(config, "tanh", 0)
    strength = quick_ranks(options, split.train, (5,))[5]
    return [*options.losses_.tolist(), float(strength.sum()), float(strength[0])]


def strengths_at(profile: pd.DataFrame, epochs: Iterable[int], method: str) -> dict[int, np.ndarray]:
    """Strengths of all columns by epoch, off a profile."""
    own = profile[(profile.method == method) & (profile.metric == "strength")]
    return {epoch: own[own.epoch == epoch].sort_values("column")["value"].to_numpy() for epoch in epochs}
