"""From tables to the samples that the claims ask for; and the same samples from a sabotaged twin."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from sparsebook.claims import Ledger, Samples
from sparsebook.experiments.fast_sparse_convnets import runs, speed
from sparsebook.experiments.fast_sparse_convnets.scales import Config
from sparsebook.experiments.fast_sparse_convnets.training import Arm

FINGERPRINT = "sparsebook.experiments.fast_sparse_convnets.runs:fingerprint"
EXPERIMENTS: dict[str, Callable[[Config], pd.DataFrame]] = {
    "accuracy": runs.run_accuracy,
    "checks": runs.run_checks,
    "times": runs.run_times,
}
RECORDED = tuple(EXPERIMENTS)
OVER = 20
"""How often the control runs what a claim favours."""
Tables = dict[str, pd.DataFrame]


def tables(config: Config) -> Tables:
    """Every table of the chapter: recorded ones at scale `book`, measured ones otherwise."""
    if config.scale == "book" and config.imagenet is None:
        from sparsebook.recorded import load

        return {name: load(runs.SLUG, name).table for name in RECORDED}
    return {name: experiment(config) for name, experiment in EXPERIMENTS.items()}


def record(config: Config, only: Sequence[str] = RECORDED) -> None:
    """Run what is asked for at scale `full` and keep the tables with the book (resumable, stage by stage)."""
    from sparsebook.recorded import save

    for name in only:
        table = EXPERIMENTS[name](config)
        save(
            runs.SLUG, name, table, parameters=config.record(),
            seeds=sorted({int(seed) for seed in table.seed}), fingerprint_function=FINGERPRINT, rtol=1e-3,
        )  # fmt: skip


# Reading the tables --------------------------------------------------------------------------------------


def geometric(values: pd.Series) -> float:
    """Geometric mean."""
    return float(np.exp(np.log(values.to_numpy(dtype=float)).mean()))


def seconds(times: pd.DataFrame, experiment: str, keys: Sequence[str]) -> pd.DataFrame:
    """[keys and process, method] of an experiment's seconds."""
    own = times[times.experiment == experiment]
    return own.pivot_table(index=[*keys, "seed"], columns="method", values="value")


PRODUCT = ("pixels", "outputs", "inputs", "sparsity")


def product_ratio(
    times: pd.DataFrame, over: str, under: str, sparsities: Sequence[float], least: int = 0, most: int = 10**9
) -> pd.Series:
    """Each process's geometric mean of a ratio of times, over shapes of so many pixels and sparsities."""
    own = seconds(times, "products", PRODUCT).reset_index()
    own = own[own.pixels.between(least, most) & own.sparsity.isin(sparsities)]
    return (own[over] / own[under]).groupby(own.seed).agg(geometric)


def break_even(times: pd.DataFrame, config: Config, least: int = 0) -> pd.Series:
    """Each process's sparsity at which ours takes as long as the dense product; 1 if at none."""
    ratios = pd.DataFrame({s: product_ratio(times, "ours", "dense", (s,), least) for s in config.sparsities})
    return ratios.apply(lambda row: crossing(row.index.to_numpy(dtype=float), row.to_numpy()), axis=1)


def crossing(sparsities: np.ndarray, ratios: np.ndarray) -> float:
    """Where the ratio falls through 1, linear in its logarithm; the lowest sparsity if it starts below."""
    logs = np.log(ratios)
    if logs[0] <= 0:
        return float(sparsities[0])
    for i in range(1, len(logs)):
        if logs[i] <= 0:
            share = logs[i - 1] / (logs[i - 1] - logs[i])
            return float(sparsities[i - 1] + share * (sparsities[i] - sparsities[i - 1]))
    return 1.0


def accuracies(table: pd.DataFrame, arm: Arm, metric: str = "accuracy") -> pd.Series:
    """One value a seed.

    Raises
    ------
    ValueError
        If the arm was not trained.
    """
    own = table[(table.method == arm.name) & (table.metric == metric)]
    if own.empty:
        raise ValueError(f"{metric} of {arm.name} was not measured")
    return own.set_index("seed")["value"].sort_index()


def latency(times: pd.DataFrame, arm: Arm, images: int, way: str | None = None) -> float:
    """Seconds of a network, median over processes; of a dense one in its fastest way, unless one is named."""
    own = times[(times.experiment == "latency") & (times.method == arm.name) & (times.images == images)]
    medians = own.groupby("way")["value"].median()
    return float(medians.min() if way is None else medians[way])


def gained(
    found: Tables, config: Config, cost: Callable[[Arm], float], metric: str = "accuracy"
) -> np.ndarray:
    """Accuracy of the pruned networks less that of dense ones at equal cost, mean over widths; one a seed."""
    dense = [Arm(width) for width in config.widths]
    order = np.argsort([cost(arm) for arm in dense])
    costs = np.log([cost(dense[i]) for i in order])
    curves = np.stack([accuracies(found["accuracy"], dense[i]).to_numpy() for i in order])
    pruned = [Arm(width, config.sparsity) for width in config.sparse_widths]
    gains = [
        accuracies(found["accuracy"], arm, metric).to_numpy()
        - np.array([np.interp(math.log(cost(arm)), costs, curve) for curve in curves.T])
        for arm in pruned
    ]
    return np.mean(gains, axis=0)


# Samples -------------------------------------------------------------------------------------------------


def claim_samples(found: Tables, config: Config, *, sabotaged: bool = False) -> dict[str, Samples]:
    """Samples of every claim that this run could test; with `sabotaged`, accuracies of moved weights."""
    return (
        product_samples(found["times"], config)
        | network_samples(found["times"], config)
        | order_samples(found["times"])
        | accuracy_samples(found, config, "moved" if sabotaged else "accuracy")
        | ({} if sabotaged else check_samples(found))
    )


def product_samples(times: pd.DataFrame, config: Config) -> dict[str, Samples]:
    """Products against their rivals and with blocks."""
    chosen, one = config.claimed, (config.sparsity,)
    blocks = {
        few: product_ratio(times, "ours", "blocks of 4", one, low, high)
        for few, low, high in ((True, 0, speed.FEW), (False, 4 * speed.MANY, 10**9))
    }
    large = product_ratio(times, "dense", "ours", one, speed.MANY)
    ratios = {
        "C3a": product_ratio(times, "mkl", "ours", chosen),
        "H7": product_ratio(times, "scipy", "ours", chosen),
        "C6a": blocks[True],
        "C6b": blocks[True] / blocks[False],
        "H4": large / product_ratio(times, "dense", "ours", one, 0, speed.FEW),
    }
    found = {name: Samples(values, unit="ratio") for name, values in ratios.items()}
    return found | {"H1": Samples(break_even(times, config, speed.MANY), unit="fraction")}


def network_samples(times: pd.DataFrame, config: Config) -> dict[str, Samples]:
    """EfficientNet-Lite0 against its dense rivals."""
    wide = seconds(times, "network", ())
    ours = wide[f"sparse {config.prunings[0]:g}"]
    theirs = wide[["torch", "torch, folded", "channels last, folded"]].min(axis=1)
    return {
        "C1b": Samples(wide["dense products"] / ours, unit="ratio"),
        "C1c": Samples(theirs / ours, unit="ratio"),
    }


def order_samples(times: pd.DataFrame) -> dict[str, Samples]:
    """Layout, cache and order of loops: the paper's reasons."""
    wide = seconds(times, "orders", ("pixels", "outputs", "inputs"))
    process = wide.index.get_level_values("seed")
    cached = seconds(times, "cache", ("share",))["ours"].unstack("share")
    small, large = (cached.columns[np.abs(cached.columns - share).argmin()] for share in (0.5, 4.0))
    ratios = {
        "C5a": (wide["pixel by pixel"] / wide["ours"]).groupby(process).agg(geometric),
        "C5b": cached[large] / cached[small],
        "C5c": (wide["rows outside"] / wide["strips outside"]).groupby(process).agg(geometric),
    }
    return {name: Samples(values, unit="ratio") for name, values in ratios.items()}


def accuracy_samples(found: Tables, config: Config, metric: str) -> dict[str, Samples]:
    """Accuracy at equal cost, and what blocks cost."""
    table, times = found["accuracy"], found["times"]
    plain = accuracies(table, Arm(config.block_width, config.sparsity), metric)
    fractions = {
        "C1d": gained(found, config, lambda arm: latency(times, arm, config.images), metric),
        "H6": gained(found, config, lambda arm: float(accuracies(table, arm, "weights").mean()), metric),
        "C6c": plain - accuracies(table, Arm(config.block_width, config.sparsity, 4)),
        "C6d": plain - accuracies(table, Arm(config.block_width, config.sparsity, 2)),
    }
    return {name: Samples(values, unit="fraction") for name, values in fractions.items()}


def check_samples(found: Tables) -> dict[str, Samples]:
    """What is exact."""
    checks, table = found["checks"], found["accuracy"]
    values = checks.pivot(index="method", columns="metric", values="value")
    pruned = table[(table.metric == "same") & (table.sparsity > 0)]
    fractions = {"H2": [values["difference"].max()], "H5": [pruned["value"].min()]}
    if "whole" in values:
        jobs = values[values["whole"].notna()]
        # Code without any multiply-add multiplies one number at a time, too.
        fractions["H3"] = [(jobs["whole"] / (jobs["whole"] + jobs["less"])).fillna(0).min()]
    return {name: Samples(values, unit="fraction") for name, values in fractions.items()}


def check_claims(ledger: Ledger, found: Tables, config: Config) -> None:
    """Supply every claim's samples; the others are untested for the reason that they declare."""
    ledger.check_all(claim_samples(found, config), why=f"not measured at scale {config.scale}")


def sabotage_samples(config: Config) -> dict[str, Samples]:
    """The samples of the declared controls: ours twenty times over, weights at random places."""
    found = {"accuracy": runs.run_accuracy(config), "times": runs.run_times(config, OVER)}
    return claim_samples(found, config, sabotaged=True)


# For the notebook ----------------------------------------------------------------------------------------


def agreement(live: pd.DataFrame, found: Tables) -> pd.DataFrame:
    """Whether the live networks lie where the recorded ones predict one more."""
    from sparsebook.recorded import inside_prediction

    rows = {}
    for method in dict.fromkeys(live.method):
        given = live[(live.method == method) & (live.metric == "accuracy")]["value"].iloc[0]
        own = found["accuracy"]
        recorded = own[(own.method == method) & (own.metric == "accuracy")]["value"].to_numpy()
        inside = bool((recorded == given).all()) or bool(inside_prediction(float(given), recorded, 0.995))
        rows[method] = {"accuracy": "inside" if inside else "OUTSIDE"}
    return pd.DataFrame(rows).T


def network_table(found: Tables, config: Config) -> pd.DataFrame:
    """Milliseconds of EfficientNet-Lite0 in every way, and how much faster than dense products."""
    wide = seconds(found["times"], "network", ())
    names = ["torch", "torch, folded", "channels last, folded", "dense products"]
    names += [f"sparse {sparsity:g}" for sparsity in config.prunings]
    table = pd.DataFrame({
        "milliseconds": (wide[names].median() * 1e3).round(1),
        "speed-up over dense products": wide[names].rdiv(wide["dense products"], axis=0).median().round(2),
    })  # fmt: skip
    table.index.name = None
    return table.rename(index=_WORDS)


_WORDS = {
    "torch": "PyTorch as published", "torch, folded": "PyTorch, folded",
    "channels last, folded": "PyTorch, folded, channels last",
    "dense products": "this pipeline, dense products (MKL)",
}  # fmt: skip


def small_table(found: Tables, config: Config) -> pd.DataFrame:
    """Accuracy, weights and milliseconds of every small network."""
    rows = {}
    for arm in speed.arms(config):
        table, times = found["accuracy"], found["times"]
        own = accuracies(table, arm)
        rows[arm.name] = {
            "accuracy": f"{own.mean():.3f}",
            "± over seeds": f"{own.std():.3f}",
            "1 x 1 weights": f"{accuracies(table, arm, 'weights').mean():,.0f}",
            f"ms, {config.images} images": f"{latency(times, arm, config.images) * 1e3:.2f}",
            "ms, 1 image": f"{latency(times, arm, 1) * 1e3:.2f}",
        }
    return pd.DataFrame(rows).T


def answers(found: Tables, config: Config) -> dict[str, str]:
    """The numbers of the chapter's prose, written out; so that no number is typed into its text."""
    times, samples = found["times"], claim_samples(found, config)
    texts = {}
    for name, sample in samples.items():
        values = np.asarray(sample.values, dtype=float)
        if sample.unit == "ratio":
            texts[name] = f"{math.exp(np.log(values).mean()):.2f}"
        elif name in ("H1", "H3", "H5"):
            texts[name] = f"{values.mean():.1%}"
        elif name == "H2":
            texts[name] = f"{values.mean():.0e}"
        else:
            texts[name] = f"{100 * values.mean():+.1f}"
    for sparsity in config.sparsities:
        for name, low, high in (("large", speed.MANY, 10**9), ("few", 0, speed.FEW)):
            ratio = geometric(product_ratio(times, "dense", "ours", (sparsity,), low, high))
            texts[f"{name}_{sparsity:g}"] = f"{ratio:.2f}"
    wide = seconds(times, "network", ())
    for name in wide.columns:
        texts[f"ms_{name.replace(', ', '_').replace(' ', '_')}"] = f"{wide[name].median() * 1e3:.1f}"
        ratio = geometric(wide["dense products"] / wide[name])
        texts[f"gain_{name.replace(', ', '_').replace(' ', '_')}"] = f"{ratio:.2f}"
    texts |= _parts_texts(times, config) | _block_texts(found, config)
    texts["cache"] = f"{speed.first_level_cache() // 1024}"
    texts["n_seeds"] = str(len(config.seeds))
    texts["n_images"] = str(config.images)
    texts["n_processes"] = str(times.seed.nunique())
    return texts


def _parts_texts(times: pd.DataFrame, config: Config) -> dict[str, str]:
    texts = {}
    wide = seconds(times, "parts", ("sparsity",)).groupby("sparsity").median()
    for sparsity, row in wide.iterrows():
        for kind, value in row.items():
            texts[f"part_{sparsity:g}_{str(kind).replace(' ', '')}"] = f"{value / row.sum():.0%}"
    return texts


def _block_texts(found: Tables, config: Config) -> dict[str, str]:
    texts = {}
    for block in (2, 4):
        for name, low, high in (("few", 0, speed.FEW), ("large", 4 * speed.MANY, 10**9)):
            ratio = product_ratio(found["times"], "ours", f"blocks of {block}", (config.sparsity,), low, high)
            texts[f"block_{block}_{name}"] = f"{geometric(ratio):.2f}"
    return texts
