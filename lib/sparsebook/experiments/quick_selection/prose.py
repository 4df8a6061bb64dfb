"""What the chapter's text and tables say of the results, in words and figures."""

import numpy as np
import pandas as pd

from sparsebook.experiments.quick_selection.recording import Tables
from sparsebook.experiments.quick_selection.runs import ARMS, TUNED, best_setting
from sparsebook.experiments.quick_selection.scales import Config
from sparsebook.experiments.quick_selection.verdicts import (
    RIVALS,
    accuracies,
    by_kind,
    claim_samples,
    grown,
    laplacian_precision,
    per_seed,
    seconds,
    undominated,
)

LABELS = {
    "qs_100": "QuickSelection, 100",
    "qs_10": "QuickSelection, 10",
    "dense_100": "dense autoencoder, 100",
    "dense_10": "dense autoencoder, 10",
    "masked_100": "SET with masks, 100",
    "laplacian": "Laplacian score",
    "mcfs": "MCFS",
    "variance": "variance",
    "random": "random",
    "all": "all columns",
}
ARM_LABELS = {
    "released": "released",
    "right_tanh": "right derivative of tanh",
    "inverted_dropout": "inverted dropout",
    "zeta_0": "connections stay (ζ = 0)",
    "noise_every_batch": "noise for every batch",
    "epsilon_5": "ε = 5",
    "epsilon_25": "ε = 25",
    "zeta_0.4": "ζ = 0.4",
}
SET_LABELS = {
    "madelon": "Madelon",
    "digits": "digits in noise",
    "textures": "textures",
    "photographs": "photographs",
    "faces": "faces",
    "films": "films",
    "articles": "articles",
    "crops": "large crops",
}


def agreement(live: pd.DataFrame, found: Tables, config: Config) -> pd.DataFrame:
    """Whether the live networks lie where the recorded ones predict one more."""
    from sparsebook.recorded import inside_prediction

    asked = [
        (found["digits"], "canvas", "inside", 1, "pixels in the digit's area, epoch 1"),
        (found["digits"], "canvas", "inside", config.quick, "pixels in the area, quick setting"),
        (found["digits"], "canvas", "inside", config.length, "pixels in the area, end"),
        (found["madelon"], "released", "precision", config.quick, "Madelon, precision, quick setting"),
        (found["madelon"], "released", "precision", config.length, "Madelon, precision, end"),
    ]
    rows = {}
    for table, method, metric, epoch, name in asked:
        value = float(per_seed(live, method, metric, epoch=epoch).iloc[0])
        recorded = per_seed(table, method, metric, epoch=epoch).to_numpy()
        same = bool((recorded == value).all())  # no spread and no interval
        rows[name] = (
            "inside" if same or inside_prediction(value, recorded, 1 - 0.01 / len(asked)) else "OUTSIDE"
        )
    return pd.DataFrame({"live network": rows})


def tuning_table(found: Tables) -> pd.DataFrame:
    """The setting that each method chose on every set: rate, or number of neighbours."""
    table = found["tuning"]
    names = list(dict.fromkeys(table["set"]))
    return pd.DataFrame(
        {
            {"qs": "QuickSelection (not used)", "dense": "dense autoencoder"}.get(
                method, LABELS.get(method)
            ): {SET_LABELS.get(name, name): f"{best_setting(table, name, method):g}" for name in names}
            for method in TUNED
        }
    )


def accuracy_table(found: Tables, metric: str = "classification") -> pd.DataFrame:
    """Mean accuracy of every method on every set."""
    table = accuracies(found["trade"], metric).groupby("set", sort=False).mean()
    table = table[[name for name in LABELS if name in table and name != "masked_100"]]
    table.index = [SET_LABELS.get(name, name) for name in table.index]
    table.columns = [LABELS[name] for name in table.columns]
    return table.round(3)


def verdict_table(found: Tables) -> pd.DataFrame:
    """On how many seeds QuickSelection has no better rival, set by set, and whose seconds are how many."""
    accuracy, cpu = accuracies(found["trade"]), seconds(found["speed"])
    clusters = accuracies(found["trade"], "clustering")
    columns = {
        "100 epochs, trees": undominated(accuracy, cpu, "qs_100"),
        "100 epochs, k-means": undominated(clusters, cpu, "qs_100"),
        "10 epochs, trees": undominated(accuracy, cpu, "qs_10"),
    }
    table = pd.DataFrame(
        {
            name: won.groupby("set", sort=False).agg(lambda v: f"{v.sum()} of {len(v)}")
            for name, won in columns.items()
        }
    )
    for method in ("qs_100", "qs_10", *RIVALS):
        table[f"{LABELS[method]}: s"] = cpu[method].map("{:.2f}".format)
    table.index = [SET_LABELS.get(name, name) for name in table.index]
    return table


def answers(found: Tables, config: Config) -> dict[str, str]:
    """The numbers of the chapter's prose, written out; so that no number is typed into its text."""
    samples = {name: np.asarray(value.values) for name, value in claim_samples(found, config).items()}
    text = {name: f"{values.mean():+.2f}" for name, values in samples.items() if values.ndim == 1}
    for name in ("C1a", "C1b", "C1c"):
        text[name] = f"{samples[name].mean():.1f}"
    for name in ("C1d", "C2a"):
        text[name] = f"{samples[name].max():.3f}"
    for name in ("C2b", "C3a"):
        text[name] = f"{np.exp(np.log(samples[name]).mean()):.2g}"
    text["C3b"], text["C3c"] = f"{samples['C3b'].min():.1f}", f"{samples['C3c'].max():.0f} MB"
    for name in ("H12", "H13", "H14", "C5b"):
        text[name] = f"{100 * samples[name].mean():+.1f}"
    for place, size in enumerate(config.blocks):
        text[f"block_{size}"] = f"{samples['H10'][:, place].mean():.2f}"
    text["n_sets"] = str(found["trade"]["set"].nunique())
    return (
        text | _madelon_answers(found, config) | _cost_answers(found, config) | _digit_answers(found, config)
    )


def _madelon_answers(found: Tables, config: Config) -> dict[str, str]:
    table, last = found["madelon"], config.length
    text = {f"madelon_{arm}": f"{per_seed(table, arm, 'precision', epoch=last).mean():.2f}" for arm in ARMS}
    for epoch, name in ((config.epochs[0], "first"), (config.quick, "quick"), (last, "last")):
        for metric in ("precision", "classification", "clustering"):
            text[f"{metric}_{name}"] = f"{per_seed(table, 'released', metric, epoch=epoch).mean():.2f}"
    for metric in ("final", "degree"):
        text[f"madelon_{metric}"] = (
            f"{per_seed(table, 'released', f'precision_{metric}', epoch=last).mean():.2f}"
        )
    text["madelon_laplacian"] = f"{laplacian_precision(table).mean():.2f}"
    for method in ("dense_100", "dense_10", "mcfs", "qs_100", "variance"):
        own = per_seed(found["trade"], method, "precision", set="madelon")
        text[f"trade_precision_{method}"] = f"{own.mean():.2f}"
    text["independent"] = f"{per_seed(found['independent'], 'qs_100', 'precision').mean():.2f}"
    text["n_seeds"] = str(table.seed.nunique())
    return text


def _digit_answers(found: Tables, config: Config) -> dict[str, str]:
    text = {}
    for epoch, name in ((0, "start"), (1, "first"), (config.quick, "quick"), (config.length, "last")):
        text[f"inside_{name}"] = (
            f"{100 * per_seed(found['digits'], 'canvas', 'inside', epoch=epoch).mean():.0f} %"
        )
    most = config.noise_columns[-1]
    for method in ("qs_100", "laplacian", "random"):
        own = per_seed(found["noise"], method, "classification", noise_columns=most).mean()
        text[f"noise_{method}"] = f"{100 * own:.0f} %"
    found_pixels = per_seed(found["noise"], "qs_100", "precision", noise_columns=most).mean()
    text["noise_precision"] = f"{100 * found_pixels:.0f} %"
    for method in ("qs_100", "random", "weakest"):
        none = per_seed(found["noise"], method, "classification", noise_columns=config.noise_columns[0])
        text[f"none_{method}"] = f"{100 * none.mean():.0f} %"
    accuracy = accuracies(found["trade"]).groupby("set").mean()
    for name in ("articles", "films", "digits", "crops"):
        for method in ("qs_100", "dense_10", "dense_100", "random", "laplacian", "mcfs"):
            known = name in accuracy.index
            value = f"{100 * accuracy.loc[name, method]:.0f} %" if known else "(not measured)"
            text[f"{name}_{method}"] = value
    return text


def _cost_answers(found: Tables, config: Config) -> dict[str, str]:
    memory = found["memory"]
    wide = config.memory_features
    text = {
        f"memory_{kind}": f"{grown(memory, kind, wide).mean() / 1e6:.0f} MB" for kind in ("sparse", "masked")
    }
    once = memory[(memory.repeated == 1) & (memory.metric == "fits")]
    for kind in ("sparse", "dense", "masked"):
        own = once[(once.method == kind) & (once["value"] == 1)]
        text[f"most_{kind}"] = f"{own['columns'].max():,}"
    energy = by_kind(found["counted"], "energy")
    ratio = energy["sparse"] / energy["dense"]
    text["energy_least"], text["energy_most"] = f"{ratio.min():.3f}", f"{ratio.max():.3f}"
    pair = found["pair"].groupby("method")["value"].median()
    for kind, value in pair.items():
        text[f"pair_{kind}"] = f"{1e3 * value:.0f} ms"
    cpu = seconds(found["speed"])
    for method in ("qs_100", "qs_10", "dense_100", "masked_100", "laplacian", "mcfs"):
        text[f"cpu_{method}"] = f"{np.exp(np.log(cpu[method]).mean()):.2g} s"
    return text
