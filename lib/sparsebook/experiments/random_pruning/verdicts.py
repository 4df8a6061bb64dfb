"""From tables to the samples that the claims ask for; and the same samples from a sabotaged twin."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from sparsebook.claims import Ledger, Samples
from sparsebook.experiments.random_pruning import runs, training
from sparsebook.experiments.random_pruning.scales import Config
from sparsebook.experiments.random_pruning.timing import run_timing
from sparsebook.models.cifar_resnet import CifarResNet
from sparsebook.networks.counting import layer_macs
from sparsebook.networks.densities import layerwise_density
from sparsebook.networks.masks import prunable

FINGERPRINT = "sparsebook.experiments.random_pruning.runs:fingerprint"
RECORDED = ("tuning", "depths", "widths", "starts", "ratios", "digits", "timing")
TWINS = ("accuracy_redrawn", "nll_ten", "ece_ten", "ece_scaled_ten", "auroc_certain", "fgsm_128")
"""Metrics of sabotaged networks: controls measure them afresh, so the recorded tables are without them."""
Tables = dict[str, pd.DataFrame]

LABELS = {
    "dense": "dense",
    "small_dense": "dense, small",
    "narrow": "dense, narrow",
    "uniform": "uniform",
    "uniform_plus": "uniform+",
    "er": "ER",
    "er_scaled": "ER, scaled start",
    "erk": "ERK",
    "erk_plus": "ERK+",
    "snip": "SNIP's ratio",
    "grasp": "GraSP's ratio",
    "synflow": "SynFlow's ratio",
    "own_snip": "SNIP's own positions",
}


def tables(config: Config) -> Tables:
    """Every table of the chapter: recorded ones at scale `book`, measured ones otherwise."""
    if config.scale == "book" and config.cifar is None:
        from sparsebook.recorded import load

        return {name: load("random_pruning", name).table for name in RECORDED}
    return measured(config, RECORDED)


def measured(config: Config, names: Sequence[str], kept: Tables | None = None) -> Tables:
    """The tables asked for, and the tuning that they rest on unless it is `kept`."""
    found: Tables = dict(kept or {})
    if "tuning" not in found and set(names) - {"timing"}:
        found["tuning"] = runs.run_tuning(config)
    for name in names:
        if name not in ("tuning", "timing"):
            found[name] = runs.run_trials(config, found["tuning"], name)
    if "timing" in names:
        found["timing"] = run_timing(config)
    return found


def record(config: Config, only: Sequence[str] = RECORDED) -> None:
    """Run what is asked for at scale `full` and keep the tables with the book (resumable, stage by stage)."""
    from sparsebook.recorded import save

    found = _kept(config)
    for name in only:
        found |= measured(config, (name,), found)
        table = found[name][~found[name].metric.isin(TWINS)]
        save(
            "random_pruning", name, table, parameters=config.record(),
            seeds=sorted({int(seed) for seed in table.seed}), fingerprint_function=FINGERPRINT, rtol=1e-3,
        )  # fmt: skip


def _kept(config: Config) -> Tables:
    """Tuning that was recorded with this configuration, so that what rests on it need not repeat it."""
    from sparsebook.recorded import load

    try:
        recorded = load("random_pruning", "tuning")
    except FileNotFoundError:
        return {}
    same = recorded.info["parameters"] == json.loads(json.dumps(config.record()))
    return {"tuning": recorded.table} if same else {}


# Samples -------------------------------------------------------------------------------------------------


def claim_samples(found: Tables, config: Config, *, sabotaged: bool = False) -> dict[str, Samples]:
    """Samples of every claim that this run could test; with `sabotaged`, those of the declared controls."""
    return (
        depth_samples(found["depths"], config, sabotaged)
        | width_samples(found["widths"], config, sabotaged)
        | start_samples(found, config, sabotaged)
        | ratio_samples(found, config, sabotaged)
        | digit_samples(found["digits"], config, sabotaged)
        | trust_samples(found, config, sabotaged)
        | timing_samples(found["timing"], config, sabotaged)
    )


def values(table: pd.DataFrame, method: str, metric: str = "accuracy", **where: Any) -> pd.Series:
    """One value a seed.

    Raises
    ------
    ValueError
        If it was not measured.
    """
    own = table[(table.method == method) & (table.metric == metric)]
    for column, value in where.items():
        own = own[np.isclose(own[column], value)]
    if own.empty:
        raise ValueError(f"{metric} of {method} at {where} was not measured")
    return own.set_index("seed")["value"].sort_index()


def gap(table: pd.DataFrame, method: str, sparsity: float, redrawn: bool = False, **where: Any) -> pd.Series:
    """Dense less sparse accuracy by seed, over the seeds that both have."""
    metric = "accuracy_redrawn" if redrawn else "accuracy"
    sparse = values(table, method, metric, sparsity=sparsity, **where)
    return (values(table, "dense", **where) - sparse).dropna()


def depth_samples(table: pd.DataFrame, config: Config, sabotaged: bool = False) -> dict[str, Samples]:
    """Residual networks: gaps over depth."""
    shallow, *_, deep = config.depths
    gaps = {d: gap(table, "erk", 0.9, sabotaged and d == deep, depth=d) for d in config.depths}
    every = pd.concat(gaps.values(), axis=1).dropna()
    first, last = (gap(table, "erk", 0.9, depth=d) for d in (shallow, deep)[:: -1 if sabotaged else 1])
    return {
        "C1a": _points((first - last).dropna()),
        "C1b": _points(every),
        "C2a": _points(gap(table, "erk", 0.5, sabotaged, depth=deep)),
    }


def width_samples(table: pd.DataFrame, config: Config, sabotaged: bool = False) -> dict[str, Samples]:
    """Perceptrons on patches: gaps over width, equal numbers of weights, SNIP's positions."""
    narrow, wide, middle = config.mlp_widths[0], config.mlp_widths[-1], config.middle
    gaps = {w: gap(table, "er", 0.9, sabotaged and w == wide, width=w) for w in config.mlp_widths}
    half = gap(table, "er", 0.5, width=narrow)
    sparse = values(table, "er", _accuracy(sabotaged), sparsity=0.9, width=wide)
    own = values(table, "own_snip", _accuracy(sabotaged), width=middle)
    norms = {w: norm_ratio(table, w) for w in (narrow, wide)}
    first = norms[wide if sabotaged else narrow].abs()
    return {
        "C1c": _points(gaps[narrow] - gaps[wide]),
        "C1d": _points(pd.concat(gaps.values(), axis=1)),
        "C2b": _points(gap(table, "er", 0.5, sabotaged, width=wide)),
        "C2c": _points(gap(table, "uniform", 0.5, sabotaged, width=wide)),
        "C2d": _points(half * 0 if sabotaged else half),
        "C2e": _points(gap(table, "er", 0.8, sabotaged, width=wide)),
        "C6c": Samples(first - norms[wide].abs(), unit="log ratio"),
        "H5": _points(sparse - values(table, "small_dense", width=wide)),
        "H7": _points(own - values(table, "snip", width=middle)),
    }


def start_samples(found: Tables, config: Config, sabotaged: bool = False) -> dict[str, Samples]:
    """Initialisation scaled to the density, without and with normalisation."""
    where: dict[str, Any] = {"sparsity": 0.9, "width": config.middle}
    starts = found["starts"]

    def scaled(family: str) -> pd.Series:
        return values(starts[starts.family == family], "er_scaled", _accuracy(sabotaged), **where)

    plain = values(starts[starts.family == "plain"], "er", **where)
    return {
        "H11": _points(scaled("plain") - plain),
        "H12": _points(scaled("patches") - values(found["widths"], "er", **where)),
    }


def norm_ratio(table: pd.DataFrame, width: int) -> pd.Series:
    """Logarithm of ER's over uniform's gradient norm at 90 % sparsity, by seed.

    A network that pruning has cut through has the norm 0, which counts as 1e-12.
    """
    er, uniform = (
        np.log(values(table, method, "gradient_norm", sparsity=0.9, width=width).clip(lower=1e-12))
        for method in ("er", "uniform")
    )
    return er - uniform


def ratio_samples(found: Tables, config: Config, sabotaged: bool = False) -> dict[str, Samples]:
    """The shallowest residual network: ratios, equal work, equal numbers of weights."""
    table, deep = all_shallow(found, config), config.depths[-1]

    def best(method: str) -> pd.Series:
        return values(table, method, _accuracy(sabotaged), sparsity=0.9)

    uniform = values(table, "uniform", sparsity=0.9)
    lead = (best("erk") - uniform).dropna()
    later = values(found["depths"], "erk", sparsity=0.9, depth=deep)
    later = (later - values(found["depths"], "uniform", sparsity=0.9, depth=deep)).dropna()
    return {
        "C3a": _points(lead),
        "C3b": _points((best("erk") - values(table, "uniform_plus")).dropna()),
        "C3c": _points(best("snip") - uniform),
        "C3g": _points((lead - later).dropna()),
        "H4": _points((best("erk") - at_equal_weights(table, config)).dropna()),
        "H6": _points((best("erk") - at_equal_work(table)).dropna()),
        "H8": Samples([macs_of_erk()], unit="fraction"),
    }


def all_shallow(found: Tables, config: Config) -> pd.DataFrame:
    """Everything that was asked of the shallowest residual network."""
    depths = found["depths"]
    return pd.concat([depths[depths.depth == config.depths[0]], found["ratios"]], ignore_index=True)


def at_equal_work(table: pd.DataFrame) -> pd.Series:
    """Uniform's accuracy where it needs as many multiplications as ERK at 90 % sparsity, by seed."""
    work = values(table, "erk", "macs", sparsity=0.9)
    uniform = {s: values(table, "uniform", sparsity=s) for s in (0.9, 0.8, 0.5)}
    macs = {s: values(table, "uniform", "macs", sparsity=s) for s in uniform}
    out = {}
    for seed in uniform[0.9].index.intersection(work.index):
        x, y = [np.log(macs[s][seed]) for s in macs], [uniform[s][seed] for s in uniform]
        out[seed] = float(np.interp(np.log(work[seed]), x, y))
    return pd.Series(out)


def at_equal_weights(table: pd.DataFrame, config: Config) -> pd.Series:
    """The dense network's accuracy where it has as many weights as ERK at 90 % sparsity, by seed.

    Widths are whole numbers: a straight line over the logarithm of the weights joins those around.
    """
    arms: list[tuple[str, dict[str, Any]]] = [("small_dense", {})]
    arms += [("narrow", {"width": width}) for width in config.narrow]
    arms.sort(key=lambda arm: values(table, arm[0], "weights", **arm[1]).mean())
    weights = pd.concat([values(table, method, "weights", **where) for method, where in arms], axis=1)
    accuracy = pd.concat([values(table, method, **where) for method, where in arms], axis=1)
    wanted = values(table, "erk", "weights", sparsity=0.9).reindex(weights.index)
    rows = zip(weights.to_numpy(), accuracy.to_numpy(), wanted, strict=True)
    found = [np.interp(np.log(n), np.log(x), y) for x, y, n in rows]
    return pd.Series(found, index=weights.index)


def macs_of_erk(density: float = 0.1) -> float:
    """Share of ResNet-20's multiplications (16 filters, 32 x 32 pixels) that ERK leaves."""
    model = CifarResNet(20)
    shapes = {name: tuple(weight.shape) for name, weight in prunable(model).items()}
    kept, macs = layerwise_density(shapes, density, "erk"), layer_macs(model, (3, 32, 32))
    return sum(kept[name] * value for name, value in macs.items()) / sum(macs.values())


def digit_samples(table: pd.DataFrame, config: Config, sabotaged: bool = False) -> dict[str, Samples]:
    """The perceptron on digits: ratios at low and high sparsity, gradient norms."""
    low = config.digit_sparsities[0]

    def lead(method: str, sparsity: float) -> pd.Series:
        own = values(table, method, _accuracy(sabotaged), sparsity=sparsity)
        return own - values(table, "uniform", sparsity=sparsity)

    every = rank_correlations(table, config.digit_sparsities, sabotaged)
    single = [rank_correlations(table, (s,), sabotaged) for s in (0.9, 0.95)]
    return {
        "C3d": _points(lead("er", low)),
        "C3e": _points(lead("snip", low)),
        "C3f": _points(lead("er", 0.9)),
        "C6a": Samples(every, unit="correlation"),
        "C6b": Samples(np.mean(single, axis=0), unit="correlation"),
    }


def rank_correlations(table: pd.DataFrame, sparsities: Sequence[float], constant: bool = False) -> np.ndarray:
    """Spearman's correlation of gradient norm and accuracy over ratios and sparsities, one value a seed.

    It is 0 where all norms are the same (with `constant` they are made so).
    """
    own = table[table.method.isin(runs.DIGIT_RATIOS)]
    own = own[[bool(np.isclose(s, sparsities).any()) for s in own.sparsity]]
    out = []
    for _, rows in own.groupby("seed"):
        wide = rows.pivot_table(index=["method", "sparsity"], columns="metric", values="value")
        norms = wide.gradient_norm * 0 if constant else wide.gradient_norm
        out.append(0.0 if norms.nunique() < 2 else float(norms.rank().corr(wide.accuracy.rank())))
    return np.nan_to_num(np.array(out))


def trust_samples(found: Tables, config: Config, sabotaged: bool = False) -> dict[str, Samples]:
    """Calibration, strange inputs, attacks: against the dense parent, and at equal accuracy."""
    deep, table = config.depths[-1], found["depths"]

    def change(metric: str, broken: str) -> pd.Series:
        own = values(table, "erk", broken if sabotaged else metric, sparsity=0.5, depth=deep)
        return own - values(table, "dense", metric, depth=deep)

    ratios, width = all_shallow(found, config), matched_width(found, config)

    def at_equal(metric: str, broken: str) -> pd.Series:
        own = values(ratios, "erk", broken if sabotaged else metric, sparsity=0.9)
        return (own - values(ratios, "narrow", metric, width=width)).dropna()

    return {
        "C5a": Samples(change("auroc", "auroc_certain"), unit="AUROC"),
        "C5b": Samples(-change("ece", "ece_ten"), unit="fraction"),
        "C5c": _points(change("fgsm_2", "fgsm_128")),
        "C5d": Samples(-change("nll", "nll_ten"), unit="nats"),
        "H1": Samples(at_equal("auroc", "auroc_certain"), unit="AUROC"),
        "H2": Samples(-at_equal("ece_scaled", "ece_scaled_ten"), unit="fraction"),
        "H3": _points(at_equal("fgsm_2", "fgsm_128")),
    }


def matched_width(found: Tables, config: Config) -> int:
    """The narrow dense network whose mean accuracy is nearest to that of ERK at 90 % sparsity."""
    table = all_shallow(found, config)
    own = values(table, "erk", sparsity=0.9)[list(config.few)].mean()
    means = {width: values(table, "narrow", width=width).mean() for width in config.narrow}
    return min(means, key=lambda width: abs(means[width] - own))


def timing_samples(table: pd.DataFrame, config: Config, sabotaged: bool = False) -> dict[str, Samples]:
    """Dense over sparse steps of the large layer."""
    method = "sparse_twenty" if sabotaged else "sparse"
    ratios = {s: values(table, method, "dense_over", sparsity=s, size=config.layer) for s in (0.9, 0.98)}
    return {"H9": Samples(ratios[0.9], unit="ratio"), "H10": Samples(ratios[0.98], unit="ratio")}


def _accuracy(redrawn: bool) -> str:
    return "accuracy_redrawn" if redrawn else "accuracy"


def _points(found: Any) -> Samples:
    return Samples(found, unit="points")


def check_claims(ledger: Ledger, found: Tables, config: Config) -> None:
    """Supply every claim's samples; the others are untested for the reason that they declare."""
    ledger.check_all(claim_samples(found, config))


def sabotage_samples(config: Config) -> dict[str, Samples]:
    """The samples of the declared controls: masks redrawn, logits times ten, ..."""
    samples = claim_samples(measured(config, RECORDED), config, sabotaged=True)
    del samples["H8"]  # exact, without a control
    return samples


# For the notebook ----------------------------------------------------------------------------------------


def agreement(live: pd.DataFrame, found: Tables, config: Config) -> pd.DataFrame:
    """Whether the live seed lies where the recorded ones predict one more."""
    from sparsebook.recorded import inside_prediction

    metrics = {"accuracy": "accuracy", "nll": "likelihood", "auroc": "AUROC"}
    rows: dict[str, dict[str, str]] = {}
    for method, sparsity in (("dense", 0.0), ("er", 0.9)):
        for metric, name in metrics.items():
            where = {"sparsity": sparsity, "width": config.middle}
            value = float(values(live, method, metric, **where).iloc[0])
            recorded = values(found["widths"], method, metric, **where).to_numpy()
            inside = bool(inside_prediction(value, recorded, 1 - 0.01 / 6))
            rows.setdefault(LABELS[method], {})[name] = "inside" if inside else "OUTSIDE"
    return pd.DataFrame(rows).T


def tuning_table(found: Tables, config: Config) -> pd.DataFrame:
    """Mean accuracy over the rates of one network of each kind, dense and at 90 %; the best is starred."""
    shown = {
        "digit MLP": ("digits", config.digit_width, 4, ("dense", "uniform", "er", "small_dense")),
        "patch MLP": ("patches", config.middle, 4, ("dense", "uniform", "er", "small_dense")),
        "patch MLP, plain": ("plain", config.middle, 4, ("dense", "er", "er_scaled")),
        "ResNet": ("resnet", config.width, config.depths[0], ("dense", "uniform", "erk", "small_dense")),
    }
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for name, (family, width, depth, methods) in shown.items():
        for method in methods if len(config.rates_of(family)) > 1 else ():
            arm = training.Arm(method, 0.0 if method == "dense" else 0.9)
            own = runs.rows_of(found["tuning"], training.Family(family, width, depth), arm)
            rows[name, LABELS[method]] = {
                f"rate {rate:g}": f"{value:.1f}{'*' if rate == runs.best_of(own) else ''}"
                for rate, value in own.groupby("rate")["value"].mean().items()
            }
    wide = pd.DataFrame.from_dict(rows, orient="index")
    return wide[sorted(wide.columns, key=lambda name: float(name.split()[1]))].fillna("")


def at_the_edge(tuning: pd.DataFrame) -> tuple[int, int]:
    """How many tuned arms did best at the lowest or highest rate that was tried; and how many there are."""
    arms = tuning.groupby(["family", "width", "depth", "method", "sparsity"])
    outer = [runs.best_of(own) in (own.rate.min(), own.rate.max()) for _, own in arms]
    return sum(outer), len(outer)


def start_table(found: Tables, config: Config) -> pd.DataFrame:
    """Accuracy and gradient norm at the start, scaled or not, with and without normalisation."""
    starts = found["starts"]
    plain, normalised = starts[starts.family == "plain"], starts[starts.family == "patches"]
    arms = {
        ("without normalisation", "dense"): (plain, "dense", 0.0),
        ("without normalisation", "ER, 90 %"): (plain, "er", 0.9),
        ("without normalisation", "ER, 90 %, scaled"): (plain, "er_scaled", 0.9),
        ("with normalisation", "dense"): (found["widths"], "dense", 0.0),
        ("with normalisation", "ER, 90 %"): (found["widths"], "er", 0.9),
        ("with normalisation", "ER, 90 %, scaled"): (normalised, "er_scaled", 0.9),
    }
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for name, (table, method, sparsity) in arms.items():
        where: dict[str, Any] = {"sparsity": sparsity, "width": config.middle}
        same = np.isclose(table.sparsity, sparsity) & np.isclose(table.width, config.middle)
        rows[name] = {
            "accuracy": f"{values(table, method, **where).mean():.1f}",
            "gradient norm": f"{values(table, method, 'gradient_norm', **where).median():.1e}",
            "rate": f"{table[same & (table.method == method)].rate.iloc[0]:g}",
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def ratio_table(found: Tables, config: Config) -> pd.DataFrame:
    """The shallowest residual network at 90 % sparsity: accuracy, work, dead filters, by ratio."""
    table = all_shallow(found, config)
    dense = values(table, "dense", "macs").mean()
    rows: dict[str, dict[str, str]] = {}
    for method in ("dense", "erk", *(m for m in LABELS if m not in ("dense", "erk", "er_scaled", "narrow"))):
        own = table[(table.method == method) & (np.isclose(table.sparsity, 0.9) | (method == "dense"))]
        wide = own[own.seed.isin(config.few)].groupby("metric")["value"].mean()
        dead = f"{100 * wide.dead:.1f} %" if "dead" in wide else ""
        rows[LABELS[method]] = {
            "accuracy": f"{wide.accuracy:.1f}", "weights": f"{wide.weights:,.0f}",
            "multiplications": f"{wide.macs / dense:.1%}", "dead filters": dead,
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")


def trust_arms(found: Tables, config: Config) -> dict[str, tuple[pd.DataFrame, str, dict[str, Any]]]:
    """Whose trust is compared: table, method and knobs of each network, deep ones first."""
    shallow, deep = config.depths[0], config.depths[-1]
    depths, ratios = found["depths"], found["ratios"]
    return {
        f"ResNet-{deep}, dense": (depths, "dense", {"depth": deep}),
        f"ResNet-{deep}, ERK at 50 %": (depths, "erk", {"depth": deep, "sparsity": 0.5}),
        f"ResNet-{deep}, ERK at 90 %": (depths, "erk", {"depth": deep, "sparsity": 0.9}),
        f"ResNet-{shallow}, dense": (depths, "dense", {"depth": shallow}),
        f"ResNet-{shallow}, ERK at 90 %": (depths, "erk", {"depth": shallow, "sparsity": 0.9}),
        f"ResNet-{shallow}, dense, equal accuracy": (
            ratios,
            "narrow",
            {"width": matched_width(found, config)},
        ),
        f"ResNet-{shallow}, dense, small": (ratios, "small_dense", {"sparsity": 0.9}),
    }


def trust_table(found: Tables, config: Config) -> pd.DataFrame:
    """Every measure of trust, means over seeds: deep networks, and shallow ones at equal accuracy."""
    metrics = {
        "accuracy": "accuracy", "nll": "likelihood, nats", "ece": "ECE", "ece_scaled": "ECE, scaled",
        "auroc": "AUROC", "fgsm_2": "FGSM 2/255", "fgsm_8": "FGSM 8/255",
    }  # fmt: skip
    rows = {
        name: {
            title: _rounded(metric, float(values(table, method, metric, **where).mean()))
            for metric, title in metrics.items()
        }
        for name, (table, method, where) in trust_arms(found, config).items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def _rounded(metric: str, value: float) -> str:
    return f"{value:.1f}" if metric == "accuracy" or metric.startswith("fgsm") else f"{value:.3f}"


def density_table(config: Config, density: float = 0.1) -> pd.DataFrame:
    """Densities of the layers of the shallowest residual network under the ratios of shapes."""
    shallow = training.Family("resnet", config.width, config.depths[0])
    weights = prunable(shallow.make(shallow.inputs(config), config))
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    found: dict[str, Any] = {"shape": {name: " x ".join(map(str, shape)) for name, shape in shapes.items()}}
    for method in ("uniform", "uniform_plus", "er", "erk", "erk_plus"):
        kept = layerwise_density(shapes, density, method)
        found[LABELS[method]] = {name: f"{value:.3f}" for name, value in kept.items()}
    return pd.DataFrame(found)


def answers(found: Tables, config: Config) -> dict[str, str]:
    """The numbers of the chapter's prose, written out; so that no number is typed into its text."""
    samples = {name: np.asarray(value.values) for name, value in claim_samples(found, config).items()}
    text = {}
    for name, own in samples.items():
        if own.ndim == 1:
            text[name] = f"{own.mean():+.3f}" if abs(own.mean()) < 0.1 else f"{own.mean():+.2f}"
    depths, widths, digits = found["depths"], found["widths"], found["digits"]
    for depth, name in zip(config.depths, ("shallow", "middle", "deep"), strict=False):
        text[f"gap_{name}"] = _tenths(gap(depths, "erk", 0.9, depth=depth).mean())
        text[f"dense_{name}"] = f"{values(depths, 'dense', depth=depth).mean():.1f}"
        text[f"depth_{name}"] = str(depth)
    for place, width in enumerate(config.mlp_widths):
        for sparsity in (0.5, 0.8, 0.9):
            mean = gap(widths, "er", sparsity, width=width).mean()
            text[f"gap_{100 * sparsity:.0f}_{place}"] = _tenths(mean)
        text[f"mlp_{place}"] = f"{values(widths, 'dense', width=width).mean():.1f}"
    text["digits_dense"] = f"{values(digits, 'dense').mean():.1f}"
    for method in (*runs.DIGIT_RATIOS, "small_dense"):
        text[f"digits_{method}"] = f"{values(digits, method, sparsity=0.9).mean():.1f}"
    text["H8"] = f"{100 * samples['H8'][0]:.1f} %"
    for name in ("H9", "H10"):
        text[name] = f"{np.exp(np.log(samples[name]).mean()):.1f}"
    text["matched_width"] = str(matched_width(found, config))
    text["n_edge"], text["n_tuned"] = map(str, at_the_edge(found["tuning"]))
    text["n_seeds"], text["n_few"] = str(depths.seed.nunique()), str(found["ratios"].seed.nunique())
    return text | _timing_answers(found["timing"], config)


def _tenths(value: float) -> str:
    """With one decimal, and without a sign before nothing."""
    return f"{round(value, 1) + 0.0:.1f}"


def _timing_answers(table: pd.DataFrame, config: Config) -> dict[str, str]:
    text = {}
    for method in ("sparse", "masked", "torch_sparse"):
        for sparsity in config.layer_sparsities:
            ratio = values(table, method, "dense_over", sparsity=sparsity, size=config.layer)
            text[f"{method}_{100 * sparsity:.0f}"] = f"{np.exp(np.log(ratio).mean()):.2f}"
    small = values(table, "sparse", "dense_over", sparsity=0.9, size=config.small_layer)
    text["sparse_small"] = f"{np.exp(np.log(small).mean()):.2f}"
    text["even"] = break_even(table, config)
    return text


def break_even(table: pd.DataFrame, config: Config) -> str:
    """The sparsity from which on the sparse step is no slower, between measured ones by a straight line."""
    logs = [
        float(np.log(values(table, "sparse", "dense_over", sparsity=s, size=config.layer)).mean())
        for s in config.layer_sparsities
    ]
    if logs[0] >= 0:
        return f"less than {config.layer_sparsities[0]:.0%}"
    if max(logs) < 0:
        return f"more than {config.layer_sparsities[-1]:.0%}"
    first = next(place for place, value in enumerate(logs) if value >= 0)
    s = config.layer_sparsities
    share = -logs[first - 1] / (logs[first] - logs[first - 1])
    return f"about {s[first - 1] + share * (s[first] - s[first - 1]):.0%}"
