"""The numbers of the chapter's prose and its tables, read off the results."""

import numpy as np
import pandas as pd

from sparsebook.experiments.matching_pursuit_sae.arms import ARMS
from sparsebook.experiments.matching_pursuit_sae.figures import LABELS
from sparsebook.experiments.matching_pursuit_sae.real import best_rate, stores_title
from sparsebook.experiments.matching_pursuit_sae.scales import Config
from sparsebook.experiments.matching_pursuit_sae.toy import METHODS, NORMS
from sparsebook.experiments.matching_pursuit_sae.verdicts import (
    all_runs,
    gain,
    moderate,
    stores_of,
    sweep_of,
    values,
)
from sparsebook.experiments.matching_pursuit_sae.worlds import SUPERPOSED

APART = 0.005
"""Hierarchical MSE below which a run keeps the levels apart; the two kinds of runs lie far on both sides."""
LIVE = ("l0", "flat_mse", "hierarchical_mse")
"""What the live run is compared in."""


def answers(found: dict[str, pd.DataFrame], config: Config) -> dict[str, str]:
    """Every number of the chapter's text, written out."""
    text = _toy_answers(found, config) | _absorption_answers(found["absorption"], config)
    text |= _real_answers(found, config) | _world_answers(found)
    text |= {
        "steps": f"{config.steps:,}", "norm_steps": f"{config.norm_steps:,}", "n_seeds": str(config.seeds),
        "cell_seeds": str(config.cell_seeds), "real_seeds": str(config.real_seeds),
        "live_steps": f"{config.live_steps:,}", "joint_seeds": str(config.joint_seeds),
        "n_further": str(config.further_seeds), "n_cosines": str(len(config.cosines)),
        "batch": str(config.batch), "fixed_steps": f"{config.fixed_steps:,}",
        "real_steps": f"{config.real_steps:,}", "real_batch": str(config.real_batch),
        "latents": str(config.latents), "n_rates": str(len(config.rates)), "k_shown": str(config.k_shown),
        "world_seeds": str(config.world_seeds), "fixed_threshold": f"{config.fixed_threshold:g}",
    }  # fmt: skip
    return text


def _count(indicator: np.ndarray) -> str:
    return f"{round(indicator.sum())} of {len(indicator)}"


def _toy_answers(found: dict[str, pd.DataFrame], config: Config) -> dict[str, str]:
    toy, norms, fixed, high = found["toy"], found["norms"], found["fixed"], max(config.cosines)
    text, runs = {"high": f"{high:g}"}, all_runs(found)
    for method in METHODS[:4]:
        name = method
        for metric in ("absorption", "l0", "flat_mse", "hierarchical_mse"):
            text[f"{name}_{metric}"] = _short(np.median(values(toy, method, metric, cosine=0.0)))
        text[f"{name}_exact"] = _count(values(runs, method, "exact", cosine=0.0))
        text[f"{name}_exact_shown"] = _count(values(runs, method, "exact", cosine=config.shown))
        for metric in ("flat_mse", "hierarchical_mse"):
            text[f"{name}_{metric}_moderate"] = _short(
                np.median(moderate(toy, method, metric, config.moderate))
            )
        text[f"{name}_hierarchical_mse_high"] = _short(
            np.median(values(toy, method, "hierarchical_mse", cosine=high))
        )
    repaired = moderate(toy, METHODS[4], "flat_mse", config.moderate)
    text["repaired_flat_mse_moderate"] = _short(np.median(repaired))
    text["repaired_hierarchical_mse_moderate"] = _short(
        np.median(moderate(toy, METHODS[4], "hierarchical_mse", config.moderate))
    )
    levels = values(runs, "matryoshka", "hierarchical_mse", cosine=0.0)
    text["matryoshka_apart"], text["apart_below"] = _count(levels < APART), f"{APART:g}"
    text |= _exact_up_to(toy)
    text["mp_l0_high"] = f"{values(toy, 'mp', 'l0', cosine=high).mean():.1f}"
    text["mp_l0_shown"] = f"{values(toy, 'mp', 'l0', cosine=config.shown).mean():.2f}"
    text["codes_exact"] = _count(values(runs, "mp", "code_error", cosine=0.0) <= 0.01)
    text["norm_range"] = (
        f"{values(toy, 'mp', 'shortest', cosine=0.0).min():.2f} to "
        f"{values(toy, 'mp', 'longest', cosine=0.0).max():.2f}"
    )
    for norm, name in zip(NORMS, ("free", "back", "projected", "in_use"), strict=True):
        text[f"norm_{name}"] = _count(values(norms, norm, "exact", cosine=0.0))
        text[f"norm_{name}_shown"] = _count(values(norms, norm, "exact", cosine=config.norm_cosines[-1]))
    for method in ("varied", "fixed"):
        for name, threshold in (("", config.fixed_threshold), ("_low", config.threshold)):
            text[f"{method}_exact{name}"] = _count(values(fixed, method, "exact", threshold=threshold))
            merged = values(fixed, method, "merged", threshold=threshold).mean()
            text[f"{method}_merged{name}"] = f"{merged:.0%}"
    return text


def _absorption_answers(table: pd.DataFrame, config: Config) -> dict[str, str]:
    text = {}
    for name, cell in zip(("strong", "half", "weak"), config.cells, strict=True):
        text[f"{name}_exact"] = _count(values(table, "mp", "exact", cell=cell.name))
        for method in METHODS[:4]:
            score = values(table, method, "absorption", cell=cell.name)
            text[f"{name}_{method}"] = f"{score.mean():.3f}"
            text[f"{name}_{method}_silent"] = _count(values(table, method, "silent", cell=cell.name))
    return text


def _exact_up_to(toy: pd.DataFrame) -> dict[str, str]:
    """The cosine up to which more than half of pursuit's runs are exact, and what the next one gives."""
    cosines = sorted(set(toy.cosine))
    shares = [values(toy, "mp", "exact", cosine=cosine) for cosine in cosines]
    lost = next((i for i, share in enumerate(shares) if share.mean() <= 0.5), len(cosines) - 1)
    return {
        "mp_exact_to": f"{cosines[lost - 1]:g}" if lost else "none", "mp_lost_at": f"{cosines[lost]:g}",
        "mp_exact_lost": _count(shares[lost]),
    }  # fmt: skip


def _real_answers(found: dict[str, pd.DataFrame], config: Config) -> dict[str, str]:
    real, sweep, text = found["real"], found["sweep"], {}
    for name, store in zip(("vision", "language"), (stores_of(real)[0], stores_of(real)[-1]), strict=True):
        text[f"{name}_gain"] = f"{gain(real, config, store).mean():+.3f}"
        for method in ARMS:
            at = {"store": store, "k": config.k_shown}
            text[f"{name}_{method}_r2"] = f"{values(real, method, 'r2', **at).mean():.3f}"
            text[f"{name}_{method}_l0"] = f"{values(real, method, 'l0', **at).mean():.2f}"
            text[f"{name}_{method}_dead"] = f"{values(real, method, 'dead', **at).mean():.0%}"
            text[f"{name}_{method}_babel"] = f"{values(real, method, 'babel', **at).mean():.2f}"
            text[f"{name}_{method}_own"] = f"{values(real, method, 'active_babel', **at).mean():.2f}"
            own = real[(real.store == store) & (real.method == method) & (real.metric == "effective_rank")]
            ranks = own.groupby("k")["value"].mean()
            text[f"{name}_{method}_rank_first"] = f"{ranks.iloc[0]:.0f}"
            text[f"{name}_{method}_rank_last"] = f"{ranks.iloc[-1]:.0f}"
            errors = sweep_of(sweep, method, store).mean()
            text[f"{name}_{method}_error_trained"] = f"{errors[config.k_shown]:.3f}"
            text[f"{name}_{method}_error_most"] = f"{errors.iloc[-1]:.3f}"
    text["k_first"], text["k_last"] = str(config.ks[0]), str(config.ks[-1])
    text["k_most"] = str(config.k_inference[-1])
    return text


def _world_answers(found: dict[str, pd.DataFrame]) -> dict[str, str]:
    text = {}
    for method in ARMS:
        text[f"both_{method}"] = f"{values(found['modalities'], method, 'both').mean():.0%}"
    for method in SUPERPOSED:
        text[f"world_{method}_r2"] = f"{values(found['superposed'], method, 'r2').mean():.3f}"
        text[f"world_{method}_found"] = f"{values(found['superposed'], method, 'recovered').mean():.0%}"
        text[f"world_{method}_l0"] = f"{values(found['superposed'], method, 'l0').mean():.1f}"
    properties = found["properties"]
    for name, method in (("pursuit", "pursuit"), ("one_shot", "two largest")):
        text[f"found_{name}"] = f"{values(properties, method, 'found').mean():.1%}"
    text["stuck"] = f"{values(properties, 'toy', 'residual')[0]:.3f}"
    return text


def _short(value: float) -> str:
    """Two digits that mean something."""
    return f"{value:.2g}" if abs(value) >= 1e-4 else f"{value:.0e}"


# Tables --------------------------------------------------------------------------------------------------


def toy_table(found: dict[str, pd.DataFrame], config: Config) -> pd.DataFrame:
    """Medians at three cosines, and how many runs were exact: the median hides the others."""
    toy, out = found["toy"], {}
    for cosine in (0.0, config.shown, max(config.cosines)):
        for method in METHODS:
            if not len(toy[(toy.method == method) & (toy.cosine == cosine)]):
                continue  # the repaired one ran at moderate cosines alone
            at = lambda metric: values(toy, method, metric, cosine=cosine)  # noqa: B023, E731
            out[f"{cosine:g}", LABELS[method]] = {
                "exact runs": _count(at("exact")),
                "lowest cosine": f"{np.median(at('lowest_cosine')):.3f}",
                "flat MSE": _short(np.median(at("flat_mse"))),
                "hierarchical MSE": _short(np.median(at("hierarchical_mse"))),
                "absorption": f"{np.median(at('absorption')):.3f}",
                "latents": f"{np.median(at('l0')):.2f}",
            }
    table = pd.DataFrame.from_dict(out, orient="index")
    table.index.names = ["siblings", "method"]
    return table


def absorption_table(found: dict[str, pd.DataFrame], config: Config) -> pd.DataFrame:
    """Mean absorption score and its spread; runs in which a concept's latent never fires; runs exact."""
    table, out = found["absorption"], {}
    for cell in dict.fromkeys(table.cell):
        for method in METHODS[:4]:
            score = values(table, method, "absorption", cell=cell)
            out[cell, LABELS[method]] = {
                "absorption": f"{score.mean():.3f} ± {score.std(ddof=1) if len(score) > 1 else 0:.3f}",
                "runs with a silent latent": _count(values(table, method, "silent", cell=cell)),
                "exact runs": _count(values(table, method, "exact", cell=cell)),
            }
    shown = pd.DataFrame.from_dict(out, orient="index")
    shown.index.names = ["children", "method"]
    return shown


def tuning_table(found: dict[str, pd.DataFrame], config: Config) -> pd.DataFrame:
    """The budget of every method, what it chose, and how it came out at the shown number of latents."""
    tuning, real, out = found["tuning"], found["real"], {}
    for store in stores_of(real):
        for method in ARMS:
            own = tuning[(tuning.store == store) & (tuning.method == method) & (tuning.metric == "r2")]
            at = {"store": store, "k": config.k_shown}
            out[stores_title(store), LABELS[method]] = {
                "rates tried": len(own),
                "chosen": f"{best_rate(tuning, store, method):g}",
                "R² at its neighbours": _neighbours(own),
                "latents": f"{values(real, method, 'l0', **at).mean():.2f}",
                "R²": f"{values(real, method, 'r2', **at).mean():.3f}",
                "dead": f"{values(real, method, 'dead', **at).mean():.1%}",
            }
    return pd.DataFrame.from_dict(out, orient="index")


def _neighbours(own: pd.DataFrame) -> str:
    """What the next lower and the next higher rate lose; "edge" where none was tried."""
    r2 = own.sort_values("rate")["value"].to_numpy()
    best = int(r2.argmax())
    sides = (
        r2[best - 1] - r2[best] if best else None,
        r2[best + 1] - r2[best] if best + 1 < len(r2) else None,
    )
    return ", ".join("edge" if side is None else f"{side:+.3f}" for side in sides)


def agreement(live: pd.DataFrame, found: dict[str, pd.DataFrame], config: Config) -> pd.DataFrame:
    """Whether the live run lies where the recorded ones predict one more."""
    from sparsebook.recorded import inside_prediction

    out = {}
    for metric in LIVE:
        row = {}
        for cosine in config.norm_cosines:
            recorded = values(found["short"], "free", metric, cosine=cosine)
            now = values(live, "free", metric, cosine=cosine)[0]
            inside = inside_prediction(float(now), recorded)
            row[f"siblings at {cosine:g}"] = "inside the prediction" if inside else "OUTSIDE the prediction"
        out[metric.replace("_", " ")] = row
    return pd.DataFrame.from_dict(out, orient="index")
