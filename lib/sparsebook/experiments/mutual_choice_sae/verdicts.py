"""From tables to the samples that the claims ask for; and the same samples from a sabotaged twin."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from sparsebook.claims import Ledger, Samples
from sparsebook.data.activations import stream
from sparsebook.experiments.mutual_choice_sae.arms import PROBED
from sparsebook.experiments.mutual_choice_sae.measures import law_of_densities
from sparsebook.experiments.mutual_choice_sae.recording import tables
from sparsebook.experiments.mutual_choice_sae.scales import Config

LABELS = {
    "topk": "TopK",
    "topk+aux_k": "TopK + aux_k",
    "relu": "ReLU, resampled",
    "mutual": "Mutual",
    "mutual+aux_k": "Mutual + aux_k",
    "mutual+aux_zipf": "Mutual + aux_zipf",
    "uniform": "Feature, uniform",
    "uniform+aux_zipf": "Feature, uniform + aux_zipf",
    "zipf": "Feature, Zipf",
    "zipf+aux_zipf": "Feature, Zipf + aux_zipf",
}
MUTUAL, FEATURE, RIVAL = "mutual+aux_zipf", "zipf+aux_zipf", "topk+aux_k"


def per_seed(
    arms: pd.DataFrame, source: str, arm: str, metric: str, config: Config, rule: str = "own"
) -> np.ndarray:
    """One value a seed, in their order, at the source's main sparsity.

    Raises
    ------
    ValueError
        If it was not measured.
    """
    k = config.size(source).k
    chosen = arms[(arms.source == source) & (arms.k == k) & (arms.method == arm)]
    chosen = chosen[(chosen.metric == metric) & (chosen.rule == rule)].sort_values("seed")
    if chosen.empty:
        raise ValueError(f"{metric} of {arm} on {source} (k = {k}, {rule}) was not measured")
    return chosen["value"].to_numpy()


# Samples --------------------------------------------------------------------------------------------------


def claim_samples(found: dict[str, pd.DataFrame], config: Config) -> dict[str, Samples]:
    """Samples of every claim that this run could test."""
    arms = found["arms"]

    def value(source: str, arm: str, metric: str) -> np.ndarray:
        return per_seed(arms, source, arm, metric, config)

    def less(source: str, rival: str, arm: str, metric: str) -> Samples:
        return Samples(value(source, rival, metric) - value(source, arm, metric), unit="fraction")

    def ratio(source: str, rival: str, arm: str) -> Samples:
        return Samples(value(source, rival, "nmse") / value(source, arm, "nmse"), unit="ratio")

    def correlation(source: str, arm: str, metric: str) -> Samples:
        return Samples(value(source, arm, metric), unit="correlation")

    k = config.synthetic.k
    steady = [value("zipf", arm, "unsteady_threshold") for arm in (MUTUAL, FEATURE)]
    return _exact_samples(found["exact"]) | {
        "C1a": Samples(last_dead(found["progress"], FEATURE), unit="fraction"),
        "C1b": Samples(value("zipf", FEATURE, "dead"), unit="fraction"),
        "C1c": Samples(value("real", FEATURE, "dead"), unit="fraction"),
        "C2a": ratio("zipf", RIVAL, MUTUAL),
        "C2b": ratio("zipf", RIVAL, FEATURE),
        "C2c": ratio("real", RIVAL, MUTUAL),
        "C2d": ratio("real", RIVAL, FEATURE),
        "C3a": Samples(value("real", "topk", "zipf_r2"), unit="fraction"),
        "C3b": Samples(value("real", "topk", "tail_gap"), unit="nats"),
        "C3c": Samples(value("real", "topk", "power_over_exponential"), unit="fraction"),
        "C4a": less("zipf", "mutual", MUTUAL, "dead"),
        "C4b": less("zipf", "mutual", MUTUAL, "lacking"),
        "C4c": less("zipf", "mutual+aux_k", MUTUAL, "lacking"),
        "C4d": less("real", "mutual", MUTUAL, "lacking"),
        "C5a": correlation("zipf", MUTUAL, "with_truth"),
        "C5b": correlation("zipf", FEATURE, "with_truth"),
        "C5c": correlation("real", MUTUAL, "with_topk_error"),
        "C5d": correlation("real", FEATURE, "with_topk_error"),
        "C6a": correlation("real", MUTUAL, "removal"),
        "C6b": correlation("real", MUTUAL, "addition"),
        "H4": Samples(np.max(steady, axis=0), unit="fraction"),
        "H5": less("zipf", FEATURE, MUTUAL, "unsteady_batch"),
        "H6": ratio("zipf", "uniform+aux_zipf", FEATURE),
        "H7": ratio("uniform", FEATURE, "uniform+aux_zipf"),
        "H8": less("zipf", "topk", "mutual", "recovered"),
        "H9a": Samples(value("zipf", MUTUAL, "l0") / k, unit="ratio"),
        "H9b": Samples(value("zipf", FEATURE, "l0") / k, unit="ratio"),
    }


def last_dead(progress: pd.DataFrame, arm: str, source: str = "zipf") -> np.ndarray:
    """Share of latents that were silent at the end of training, one value a seed."""
    own = progress[(progress.method == arm) & (progress.source == source)]
    return own[own.step == own.step.max()].sort_values("seed")["value"].to_numpy()


def _exact_samples(exact: pd.DataFrame) -> dict[str, Samples]:
    units = {"H1": "affinity", "H2": "fraction", "H3": "fraction"}
    return {name: Samples(exact[exact.method == name]["value"], unit=unit) for name, unit in units.items()}


def check_claims(ledger: Ledger, found: dict[str, pd.DataFrame], config: Config) -> None:
    """Supply every claim's samples; the others are untested for the reason that they declare."""
    ledger.check_all(claim_samples(found, config))


# Sabotage -------------------------------------------------------------------------------------------------


def sabotage_samples(config: Config) -> dict[str, Samples]:
    """The samples of twins that are broken where each claim's control says.

    Half of the latents without a budget, auxiliary losses without weight, thresholds halved, codes handed to
    other tokens and matches, other true features; densities that follow another law, or the law itself.
    """
    few: dict[str, Any] = {
        "arms": ("topk", RIVAL, "mutual", "mutual+aux_k", MUTUAL, "uniform+aux_zipf", FEATURE),
        "real_arms": (RIVAL, "topk", "mutual", MUTUAL, FEATURE),
        "equal_arms": ("uniform+aux_zipf",),
    }
    size = replace(config.synthetic, n_seeds=8)
    broken = replace(config, sabotaged=True, grid=(), synthetic=size, real=size, **few)
    found = tables(broken)
    arms = found["arms"]
    # Equal budgets on both sides are one training.
    alike = arms[(arms.source == "uniform") & (arms.method == "uniform+aux_zipf")].assign(method=FEATURE)
    samples = claim_samples(found | {"arms": pd.concat([arms, alike])}, broken)
    equal = per_seed(arms, "zipf", "uniform+aux_zipf", "nmse", broken)
    samples["H6"] = Samples(equal / equal, unit="ratio")
    read = [per_seed(arms, "zipf", arm, "unsteady_threshold", broken) for arm in (FEATURE, MUTUAL)]
    samples["H5"] = Samples(read[0] - read[1], unit="fraction")
    samples |= _other_laws(8)
    return {name: value for name, value in samples.items() if name not in ("H1", "H2", "H3", "H4")}


def _other_laws(n: int, n_latents: int = 1024, n_tokens: int = 16_000) -> dict[str, Samples]:
    """Densities of two levels, of the law itself, and of an exponential law; a little noise in each."""
    ranks = torch.arange(1, n_latents + 1, dtype=torch.float64)
    laws = {
        "C3a": torch.where(ranks <= n_latents // 2, 0.02, 0.002).double(),
        "C3b": 0.3 * (ranks + 3) ** -1,
        "C3c": 0.1 * (-ranks / 200).exp(),
    }
    metric = {"C3a": "zipf_r2", "C3b": "tail_gap", "C3c": "power_over_exponential"}
    found = {}
    for name, law in laws.items():
        noise = [torch.randn(n_latents, generator=stream(i, 9), dtype=torch.float64) for i in range(n)]
        values = [law_of_densities(law * (0.01 * e).exp(), n_tokens)[metric[name]] for e in noise]
        found[name] = Samples(values, unit="nats" if name == "C3b" else "fraction")
    return found


# For the notebook -----------------------------------------------------------------------------------------


def agreement(live: pd.DataFrame, found: dict[str, pd.DataFrame], config: Config) -> pd.DataFrame:
    """Whether the live world lies where the recorded ones predict one more; cells share one error rate."""
    from sparsebook.recorded import inside_prediction

    metrics = {"nmse": "error", "l0": "mean L0", "recovered": "true features found", "with_truth": "adaptive"}
    methods = list(dict.fromkeys(live.method))
    level, out = 1 - 0.01 / (len(metrics) * len(methods)), {}
    for method in methods:
        row = {}
        for metric, name in metrics.items():
            now = live[(live.method == method) & (live.metric == metric)]["value"].item()
            inside = inside_prediction(now, per_seed(found["arms"], "zipf", method, metric, config), level)
            row[name] = "inside the prediction" if inside else "OUTSIDE the prediction"
        out[LABELS[method]] = row
    return pd.DataFrame(out).T


_COLUMNS = {
    "nmse": ("error", "{:.3f}"),
    "l0": ("L0", "{:.2f}"),
    "dead": ("dead", "{:.1%}"),
    "underused": ("under-used", "{:.1%}"),
    "effective": ("effective latents", "{:.0f}"),
    "redundancy": ("nearest atom's cosine", "{:.2f}"),
    "recovered": ("true features found", "{:.1%}"),
}


def summary(found: dict[str, pd.DataFrame], config: Config, source: str) -> pd.DataFrame:
    """Means over the trainings of every arm of a source, read on held-out tokens one at a time."""
    arms = found["arms"]
    k = config.size(source).k
    own = arms[(arms.source == source) & (arms.k == k) & (arms.rule == "own")]
    rows = {}
    for arm in (name for name in LABELS if name in set(own.method)):
        mean = own[own.method == arm].groupby("metric")["value"].mean()
        shown = {name: form.format(mean[m]) for m, (name, form) in _COLUMNS.items() if m in mean}
        rows[LABELS[arm]] = shown
    return pd.DataFrame(rows).T


def rules_table(found: dict[str, pd.DataFrame], config: Config) -> pd.DataFrame:
    """The rule of training beside the stored thresholds: error, L0, and dependence on the batch."""
    rows = {}
    for arm in (RIVAL, MUTUAL, "uniform+aux_zipf", FEATURE):
        own = "batch" if arm == RIVAL else "threshold"
        for rule in ("batch", "threshold"):
            at = lambda m, arm=arm, rule=rule, own=own: per_seed(  # noqa: E731
                found["arms"], "zipf", arm, m, config, "own" if rule == own else rule
            ).mean()
            loose = per_seed(found["arms"], "zipf", arm, f"unsteady_{rule}", config).mean()
            rows[LABELS[arm], rule] = {
                "error": f"{at('nmse'):.3f}",
                "L0": f"{at('l0'):.2f}",
                "matches that depend on the batch": f"{loose:.1%}",
            }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["arm", "read by"])


def answers(found: dict[str, pd.DataFrame], config: Config) -> dict[str, str]:
    """The numbers of the chapter's prose, written out; so that no number is typed into its text."""
    arms, text = found["arms"], {}
    forms = {
        "nmse": "{:.3f}", "l0": "{:.2f}", "dead": "{:.1%}", "underused": "{:.1%}", "lacking": "{:.1%}",
        "recovered": "{:.0%}", "redundancy": "{:.2f}", "effective": "{:.0f}", "zipf_r2": "{:.3f}",
        "zipf_exponent": "{:.2f}", "zipf_offset": "{:.0f}", "tail_gap": "{:.2f}", "with_truth": "{:.2f}",
        "with_topk_error": "{:.2f}", "removal": "{:.2f}", "addition": "{:.2f}", "unsteady_batch": "{:.0%}",
        "power_over_exponential": "{:+.3f}",
    }  # fmt: skip
    own = arms[arms.rule == "own"]
    for source in dict.fromkeys(own.source):
        part = own[(own.source == source) & (own.k == config.size(source).k)]
        means = part.groupby(["method", "metric"])["value"].mean()
        for (method, metric), value in means.items():
            if metric in forms:
                text[f"{source}_{_word(method)}_{metric}"] = forms[metric].format(value)
    samples = claim_samples(found, config)
    for name in ("C2a", "C2b", "C2c", "C2d", "H6", "H7"):
        text[name] = f"{np.exp(np.log(samples[name].values).mean()):.2f}"
    for name in ("C4a", "C4b", "C4c", "C4d"):
        text[name] = _points(samples[name].values)
    fresh = found["fresh"].assign(rule="own")

    def again(source: str, arm: str, metric: str) -> np.ndarray:
        return per_seed(fresh, source, arm, metric, config)

    text["more_dead"] = _points(-samples["C4a"].values)
    text["more_dead_fresh"] = _points(again("zipf", MUTUAL, "dead") - again("zipf", "mutual", "dead"))
    for arm in ("mutual", MUTUAL, "mutual+aux_k"):
        text[f"silent_{_word(arm)}"] = f"{last_dead(found['progress'], arm).mean():.0%}"
    ratio = again("uniform", FEATURE, "nmse") / again("uniform", "uniform+aux_zipf", "nmse")
    text["H7_fresh"] = f"{np.exp(np.log(ratio).mean()):.2f}"
    for source in ("zipf", "real"):
        for metric in ("nmse", "l0"):
            value = per_seed(arms, source, RIVAL, metric, config, "threshold").mean()
            text[f"{source}_topk_by_threshold_{metric}"] = forms[metric].format(value)
    text["dead_in_training"] = f"{samples['C1a'].values.mean():.1%}"
    sizes = {"synthetic": config.synthetic, "real": config.real}
    for name, size in sizes.items():
        text[f"{name}_latents"], text[f"{name}_k"] = f"{size.n_latents:,}", str(size.k)
        text[f"{name}_seeds"], text[f"{name}_steps"] = str(size.n_seeds), f"{size.n_steps:,}"
    text |= {"held_out": f"{config.held_out:,}", "n_features": str(config.n_features)}
    return text | {"probed": f"{min(PROBED, config.pool):,}"}


def _points(values: np.ndarray) -> str:
    """Mean and 95 % interval in percentage points."""
    mean, low, high = _interval(values)
    return f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}) percentage points"


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    from sparsebook.evaluation.statistics import t_interval

    found = t_interval(values)
    return float(values.mean()), float(found.low), float(found.high)


def _word(method: str) -> str:
    return method.replace("+", "_with_")
