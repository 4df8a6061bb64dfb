"""From tables to the samples that the claims ask for; and the same samples from a sabotaged twin."""

import json
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from sparsebook.claims import Ledger, Samples
from sparsebook.experiments.group_bias_adaptation import runs
from sparsebook.experiments.group_bias_adaptation.scales import Config

FINGERPRINT = "sparsebook.experiments.group_bias_adaptation.runs:fingerprint"
RECORDED = ("real_tuning", "tuning", "real", "resonance", "world", "clamps", "width", "curves")
Tables = dict[str, pd.DataFrame]

LABELS = {
    "gba": "GBA",
    "gba_wrong": "GBA, wrong range",
    "gba_high": "GBA from 0.5",
    "gba_shift": "GBA, shifting bias",
    "gba_20": "GBA, 20 groups",
    "gba_3": "GBA, 3 groups",
    "gba_low": "GBA from 0.05",
    "ba": "BA (one group)",
    "topk": "TopK",
    "batch_topk": "BatchTopK",
    "l1": "L1",
    "jumprelu": "JumpReLU",
}


def tables(config: Config) -> Tables:
    """Every table of the chapter: recorded ones at scale `book`, measured ones otherwise."""
    if config.scale == "book" and config.activations is None:
        from sparsebook.recorded import load

        return {name: load("group_bias_adaptation", name).table for name in RECORDED}
    return measured(config, RECORDED)


def measured(config: Config, names: Sequence[str], kept: Tables | None = None) -> Tables:
    """The tables asked for, and those that they rest on, unless those are `kept`."""
    found: Tables = dict(kept or {})
    simple: dict[str, Callable[[Config], pd.DataFrame]] = {
        "resonance": runs.run_resonance,
        "clamps": runs.run_clamps,
        "width": runs.run_width,
    }
    for name in names:
        if name in simple:
            found[name] = simple[name](config)
    if {"tuning", "world", "curves"} & set(names) and "tuning" not in found:
        found["tuning"] = runs.run_tuning(config)
    if "world" in names:
        found["world"] = runs.run_world(config, found["tuning"])
    if "curves" in names:
        found["curves"] = runs.run_curves(config, found["tuning"])
    if {"real_tuning", "real"} & set(names) and "real_tuning" not in found:
        found["real_tuning"] = runs.run_real_tuning(config)
    if "real" in names:
        found["real"] = runs.run_real(config, found["real_tuning"])
    return found


def record(config: Config, only: Sequence[str] = RECORDED) -> None:
    """Run what is asked for at scale `full` and keep the tables with the book (resumable, stage by stage)."""
    from sparsebook.recorded import save

    found: Tables = {}
    for name in only:
        if name not in found:
            found |= measured(config, (name,), found | _kept(config))
        table = found[name]
        save(
            "group_bias_adaptation", name, table, parameters=config.record(),
            seeds=sorted({int(seed) for seed in table.seed}), fingerprint_function=FINGERPRINT, rtol=1e-3,
        )  # fmt: skip


def _kept(config: Config) -> Tables:
    """Tuning that was recorded with this configuration, so that what rests on it need not repeat it."""
    from sparsebook.recorded import load

    kept: Tables = {}
    for name in ("tuning", "real_tuning"):
        try:
            recorded = load("group_bias_adaptation", name)
        except FileNotFoundError:
            continue
        if recorded.info["parameters"] == json.loads(json.dumps(config.record())):
            kept[name] = recorded.table
    return kept


# Samples -------------------------------------------------------------------------------------------------


def claim_samples(found: Tables, config: Config, *, sabotaged: bool = False) -> dict[str, Samples]:
    """Samples of every claim that this run could test; with `sabotaged`, those of the declared controls."""
    return (
        resonance_samples(found["resonance"], config, sabotaged)
        | world_samples(found["world"], config, sabotaged)
        | clamp_samples(found["clamps"], sabotaged)
        | width_samples(found["width"], config, sabotaged)
        | real_samples(found["real"], sabotaged)
    )


def per_seed(table: pd.DataFrame, method: str, metric: str) -> pd.Series:
    """One value a seed.

    Raises
    ------
    ValueError
        If it was not measured.
    """
    own = table[(table.method == method) & (table.metric == metric)]
    if own.empty:
        raise ValueError(f"{metric} of {method} was not measured")
    return own.set_index("seed")["value"].sort_index()


def resonance_map(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """[(dimension, seed), ratio] of a metric, features never paired."""
    own = table[(table.metric == metric) & (table.pairs == 0)]
    return own.pivot_table(index=["dim", "seed"], columns="ratio", values="value")


def best_octave(rates: pd.DataFrame) -> np.ndarray:
    """log2 of the ratio of each seed's largest recovery: the mean of equals; the lowest if none is found."""
    octaves, values = np.log2(rates.columns.to_numpy(dtype=float)), rates.to_numpy()
    best = (values == values.max(axis=1, keepdims=True)) & (values > 0)
    means = (best * octaves).sum(axis=1) / best.sum(axis=1).clip(min=1)
    return np.where(best.any(axis=1), means, octaves.min())


def band(gained: pd.DataFrame) -> np.ndarray:
    """How many ratios reach half of a seed's largest gain over untrained weights; 0 without any gain."""
    values = gained.to_numpy()
    most = values.max(axis=1, keepdims=True)
    return ((values >= most / 2) & (most > 0)).sum(axis=1).astype(float)


def resonance_samples(table: pd.DataFrame, config: Config, sabotaged: bool = False) -> dict[str, Samples]:
    """The map: where its optimum lies, how wide it is, what dimensions do."""
    name = "frr_random_0.8" if sabotaged else "frr_0.8"
    rates = resonance_map(table, name)
    gained = rates - resonance_map(table, f"untrained_{name}")
    low, middle, main, high = config.resonance_dims
    at_f = {dim: gained.loc[dim][1.0] for dim in (low, middle, main)}
    step = (at_f[middle] - at_f[low]) - (at_f[main] - at_f[middle])
    own = rates.loc[main]
    strict = resonance_map(table, "frr_random_0.9" if sabotaged else "frr_0.9").loc[main]
    octave = best_octave(own)
    wide = band(gained.loc[high].dropna(axis=1)) - band(gained.loc[low].dropna(axis=1))
    paired = table[(table.metric == name) & (table.pairs > 0)]
    paired = paired.pivot_table(index="seed", columns="pairs", values="value")
    return {
        "C1a": Samples(octave, unit="octaves"),
        "C1b": Samples(own[1.0] - own[4.0], unit="fraction"),
        "C1c": Samples(own[1.0] - own[0.25], unit="fraction"),
        "C1d": Samples(wide, unit="octaves"),
        "C1e": Samples(step, unit="fraction"),
        "C8c": Samples(paired[config.mixed_pairs[0]] - paired[config.mixed_pairs[1]], unit="fraction"),
        "H1": Samples(octave, unit="octaves"),
        "H14": Samples(strict[1.0] - strict[0.25], unit="fraction"),
        "H15": Samples(strict[1.0] - strict[4.0], unit="fraction"),
    }


def world_samples(table: pd.DataFrame, config: Config, sabotaged: bool = False) -> dict[str, Samples]:
    """Recovery in the imbalanced world, paired by world."""
    metric = "frr_random_0.9" if sabotaged else "frr_0.9"

    def frr(method: str, favoured: bool = False) -> pd.Series:
        return per_seed(table, method, metric if favoured else "frr_0.9")

    own = frr("gba", favoured=True)
    last = f"topk_{config.topk[-1]}"
    falling = pd.concat([frr(f"topk_{k}", favoured=True) for k in config.topk[-3:]], axis=1)
    best = pd.concat([frr(f"topk_{k}") for k in config.topk], axis=1).max(axis=1)
    samples = {
        "C2a": frr(f"topk_{config.topk[-3]}", favoured=True),
        "C2b": falling.to_numpy(),
        "C2c": frr(last) * 0 + 1 if sabotaged else frr(last),
        "C2d": own,
        "C2e": own - frr("gba_wrong"),
        "C2f": own - frr("topk"),
        "C2g": own - frr("ba"),
        "C5d": frr("gba_high", favoured=True) - (1 if sabotaged else frr("gba")),
        "H2": own - best,
        "H3": own - frr("l1"),
        "H4": own - frr("batch_topk"),
        "H5": own - frr("jumprelu"),
        "H9": own - frr("gba_shift"),
        "H12": per_seed(table, "gba", "near_reversed" if sabotaged else "near_target"),
    }
    return {name: Samples(values, unit="fraction") for name, values in samples.items()}


def clamp_samples(table: pd.DataFrame, sabotaged: bool = False) -> dict[str, Samples]:
    """The controller alone, clamps either way."""
    either = {"H10": ("printed", "ordered"), "H11": ("ordered", "printed")}
    return {
        name: Samples(per_seed(table, pair[sabotaged], "held"), unit="fraction")
        for name, pair in either.items()
    }


def least_width(table: pd.DataFrame, s: int, imbalance: float, share: float = 0.9) -> pd.Series:
    """Each world's least width that finds `share` of its features; twice the largest tried if none does."""
    own = table[(table.method == "small_scales") & (table.metric == "frr_0.8")]
    own = own[(own.s == s) & (own.imbalance == imbalance)]
    never = 2 * own.latents.max()
    reached = own[own["value"] >= share].groupby("seed").latents.min()
    return reached.reindex(sorted(own.seed.unique())).fillna(never).astype(float)


def width_samples(table: pd.DataFrame, config: Config, sabotaged: bool = False) -> dict[str, Samples]:
    """The limit of small scales: least widths in octaves."""
    octaves = pd.concat([np.log2(least_width(table, s, 1.0)) for s in config.width_sparsities], axis=1)
    uneven = np.log2(least_width(table, 2, 4.0)) - np.log2(least_width(table, 2, 1.0))
    theorem = config.width_features * (config.width_features / 2) ** 2
    loose = least_width(table, 2, 1.0) / theorem
    strict = "frr_random_0.9" if sabotaged else "frr_0.9"
    grown = octaves.to_numpy()
    return {
        "C6a": Samples(per_seed(table, "bound", strict), unit="fraction"),
        "C6b": Samples(grown[:, ::-1].copy() if sabotaged else grown, unit="octaves"),
        "C8b": Samples(-uneven if sabotaged else uneven, unit="octaves"),
        "H13": Samples(loose * 0 + 1 if sabotaged else loose, unit="ratio"),
        "H16": Samples(per_seed(table, "bound_unit", strict), unit="fraction"),
    }


def real_samples(table: pd.DataFrame, sabotaged: bool = False) -> dict[str, Samples]:
    """Activations: ratios of held-out errors, paired by run, and agreement, one value a pair of runs."""
    few = sorted(table[table.method == "ba"].seed.unique())

    def error(method: str, favoured: bool = False) -> pd.Series:
        metric = "nmse_handed" if sabotaged and favoured else "nmse"
        return per_seed(table, method, metric)[few]

    def agree(method: str, selection: str, favoured: bool = False) -> pd.Series:
        return per_seed(table, method, f"{selection}_random" if sabotaged and favoured else selection)

    own, l0 = error("gba", favoured=True), per_seed(table, "gba_3", "l0") / per_seed(table, "gba", "l0")[few]
    ratios = {
        "C3a": own / error("topk"),
        "C3b": error("l1") / own,
        "C3c": error("ba") / own,
        "C5a": error("gba_20") / own,
        "C5b": error("gba_low") / own,
        "C5c": l0 / 2 if sabotaged else l0,
        "H6": own / error("batch_topk"),
        "H7": own / error("jumprelu"),
    }
    fractions = {
        "C4a": agree("gba", "mcs", favoured=True) - agree("topk", "mcs"),
        "C4b": agree("gba", "mcs_top", favoured=True) - agree("l1", "mcs_top"),
        "C7c": per_seed(table, "gba", "alive_silenced" if sabotaged else "alive")[few],
        "H8": agree("l1", "mcs", favoured=True) - agree("gba", "mcs"),
    }
    samples = {name: Samples(values, unit="ratio") for name, values in ratios.items()}
    return samples | {name: Samples(values, unit="fraction") for name, values in fractions.items()}


def check_claims(ledger: Ledger, found: Tables, config: Config) -> None:
    """Supply every claim's samples; the others are untested for the reason that they declare."""
    ledger.check_all(claim_samples(found, config))


def sabotage_samples(config: Config) -> dict[str, Samples]:
    """The samples of the declared controls: random directions for features, codes of other tokens, ..."""
    return claim_samples(measured(config, RECORDED), config, sabotaged=True)


# For the notebook ----------------------------------------------------------------------------------------


def agreement(live: pd.DataFrame, found: Tables) -> pd.DataFrame:
    """Whether the live world lies where the recorded ones predict one more."""
    from sparsebook.recorded import inside_prediction

    metrics = {"frr_0.8": "FRR(0.8)", "frr_0.9": "FRR(0.9)", "nmse": "normalised error"}
    rows: dict[str, dict[str, str]] = {}
    methods = list(dict.fromkeys(live.method))
    level = 1 - 0.01 / (len(methods) * len(metrics))
    for method in methods:
        for metric, name in metrics.items():
            value = float(per_seed(live, method, metric).iloc[0])
            recorded = per_seed(found["world"], method, metric).to_numpy()
            same = bool((recorded == value).all())  # no spread and no interval
            inside = same or bool(inside_prediction(value, recorded, level))
            rows.setdefault(LABELS[method], {})[name] = "inside" if inside else "OUTSIDE"
    return pd.DataFrame(rows).T


def tuning_table(found: Tables, name: str = "tuning") -> pd.DataFrame:
    """What every learning rate came to; the chosen one, of the lowest normalised error, is starred.

    The last column is the L0 at that rate, for L1 and JumpReLU after they were aimed once more. Bias
    Adaptation is read at the common L0, between its targets.
    """
    table, rows = found[name], {}
    k = runs.common_l0(table)
    for method in (name for name in ("gba", *runs.RIVALS) if name in set(table.method)):
        own = table[table.method == method].pivot_table(index="rate", columns="metric", values="value")
        best = runs.best_rate(table, method)
        again = table[(table.method == f"{method}_aim") & (table.metric == "l0")]["value"]
        aimed = len(again) and runs.tuned_rival(table, method).k != k
        rows[LABELS[method]] = _tried(own.nmse, best) | {
            "L0": f"{again.mean() if aimed else own.l0[best]:.1f}"
        }
    if "ba" in set(table.method):
        single = runs.matched_ba(table).nmse
        rows[LABELS["ba"]] = _tried(single, float(single.idxmin())) | {"L0": f"{k:.1f}"}
    return pd.DataFrame(rows).T.fillna("not tried")


def _tried(errors: pd.Series, best: float) -> dict[str, str]:
    return {f"rate {rate:g}": f"{error:.3f}{'*' if rate == best else ''}" for rate, error in errors.items()}


def world_table(found: Tables) -> pd.DataFrame:
    """Recovery, error and L0 of every arm in the imbalanced world, means over worlds."""
    table = found["world"]
    wide = table.pivot_table(index="method", columns="metric", values="value", sort=False)
    wide = wide[["frr_0.8", "frr_0.9", "nmse", "l0", "alive"]]
    wide.index = [label(name) for name in wide.index]
    wide.columns = ["FRR(0.8)", "FRR(0.9)", "normalised error", "L0", "alive"]
    return wide.round(3)


def label(name: str) -> str:
    """A method's name for readers."""
    return f"TopK, K = {name.removeprefix('topk_')}" if name.startswith("topk_") else LABELS[name]


def real_table(found: Tables) -> pd.DataFrame:
    """Error, L0, alive neurons and agreement between runs on activations, means over runs."""
    table = found["real"]
    wide = table.pivot_table(index="method", columns="metric", values="value", sort=False)
    wide = wide[["nmse", "l0", "alive", "mcs", "mcs_top"]]
    wide.index = [label(name) for name in wide.index]
    wide.columns = ["normalised error", "L0", "alive", "agreement", "agreement, most active tenth"]
    return wide.round(3).astype(object).where(wide.notna(), "not asked")


def answers(found: Tables, config: Config) -> dict[str, str]:
    """The numbers of the chapter's prose, written out; so that no number is typed into its text."""
    samples = {name: np.asarray(value.values) for name, value in claim_samples(found, config).items()}
    text = {name: f"{values.mean():+.2f}" for name, values in samples.items() if values.ndim == 1}
    world, real = found["world"], found["real"]
    for name in ("world", "real"):
        others = [per_seed(found[name], method, "l0").mean() for method in _equals(name)]
        gap = np.abs(np.array(others) / per_seed(found[name], "gba", "l0").mean() - 1).max()
        text[f"{name}_apart"] = f"{100 * gap:.0f} %"
    single = runs.matched_ba(found["real_tuning"])
    target = single.target[single.nmse.idxmin()]
    text["ba_target"] = f"{target * config.real_latents / runs.common_l0(found['real_tuning']):.1f}"
    for method in dict.fromkeys(world.method):
        for tau in ("0.8", "0.9"):
            mean = per_seed(world, method, f"frr_{tau}").mean()
            text[f"world_{method}_{tau[-1]}"] = f"{100 * mean:.0f} %"
        text[f"world_l0_{method}"] = f"{per_seed(world, method, 'l0').mean():.1f}"
    for method in dict.fromkeys(real.method):
        text[f"real_{method}"] = f"{per_seed(real, method, 'nmse').mean():.3f}"
        text[f"real_l0_{method}"] = f"{per_seed(real, method, 'l0').mean():.0f}"
    text["real_near"] = f"{100 * per_seed(real, 'gba', 'near_target').mean():.0f} %"
    asked = sum(runs.geometric_targets(*runs.HIGH_RANGE, 10).tolist()) / 10 * config.real_latents
    text["real_asked"] = f"{asked:.0f}"
    text["shift_l0"] = f"{per_seed(world, 'gba_shift', 'l0').mean():.0f}"
    for method in ("gba", "topk", "l1"):
        for metric in ("mcs", "mcs_top"):
            text[f"{metric}_{method}"] = f"{100 * per_seed(real, method, metric).mean():.0f} %"
    for name in ("C3a", "C3b", "C3c", "C5a", "C5b", "C5c", "H6", "H7"):
        text[name] = f"{np.exp(np.log(samples[name]).mean()):.2f}"
    return text | _map_answers(found, config, samples) | _curve_answers(found, config)


def _equals(name: str) -> tuple[str, ...]:
    """What is compared with GBA at equal sparsity."""
    return (*runs.RIVALS, "ba") if name == "real" else runs.RIVALS


def _curve_answers(found: Tables, config: Config) -> dict[str, str]:
    """Recovery of one tuning world after a run of the judged length, and after one twice as long."""
    curves, tuning = found["curves"], found["tuning"]
    text: dict[str, str] = {}
    for name in ("gba", *runs.RIVALS):
        own = curves[(curves.method == name) & (curves.metric == "frr_0.9")].set_index("step")["value"]
        tried = tuning[(tuning.method == name) & (tuning.metric == "frr_0.9")]
        usual = tried[tried.rate == runs.best_rate(tuning, name)]["value"].mean()
        text[f"curve_{name}"] = f"{100 * usual:.0f} %"
        text[f"curve_{name}_end"] = f"{100 * own.iloc[-1]:.0f} %"
    return text


def _map_answers(found: Tables, config: Config, samples: dict[str, np.ndarray]) -> dict[str, str]:
    rates = resonance_map(found["resonance"], "frr_0.8").groupby("dim").mean()
    strict = resonance_map(found["resonance"], "frr_0.9").groupby("dim").mean()
    text: dict[str, str] = {}
    for name, table in (("map", rates), ("strict", strict)):
        text |= {f"{name}_{ratio:g}": "(not measured)" for ratio in Config.resonance_ratios}
        own = table.loc[config.resonance_dims[2]]
        text |= {f"{name}_{ratio:g}": f"{100 * value:.0f} %" for ratio, value in own.items()}
    untrained = resonance_map(found["resonance"], "untrained_frr_0.8").groupby("dim").mean()
    text["untrained_low"] = f"{100 * untrained.loc[config.resonance_dims[0]].mean():.0f} %"
    text["trained_low"] = f"{100 * rates.loc[config.resonance_dims[0]].max():.0f} %"
    widths = 2 ** samples["C6b"].mean(axis=0)
    for s, width, most in zip(config.width_sparsities, widths, 2 ** samples["C6b"].max(axis=0), strict=True):
        text[f"width_{s}"] = f"{'at least ' if most > config.width_most else ''}{width:,.0f}"
    uneven = least_width(found["width"], 2, 4.0)
    text["uneven_never"] = f"{int((uneven > config.width_most).sum())} of {len(uneven)}"
    text["width_most"] = f"{config.width_most:,}"
    theorem = [config.width_features * (config.width_features / s) ** s for s in config.width_sparsities]
    text["theorem_widths"] = " / ".join(f"{width:,.0f}" for width in theorem)
    text["H16"] = f"{100 * samples['H16'].mean():.1f} %"
    for name in ("C6a", "H10", "H11", "H12", "C7c"):
        text[name] = f"{100 * samples[name].mean():.0f} %"
    text["C8b"] = f"{samples['C8b'].mean():+.1f}"
    text["H13"] = f"{np.exp(np.log(samples['H13']).mean()):.4f}"
    text["n_worlds"] = str(found["world"].seed.nunique())
    text["n_runs"] = str(len(config.real_few_runs))
    text["n_pairs"] = str(len(config.real_runs) // 2)
    return text
