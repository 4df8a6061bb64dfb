"""From tables to the samples that the claims ask for; and the same samples from a sabotaged twin."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from sparsebook.claims import Ledger, Samples
from sparsebook.experiments.anchor_attention.recording import measure
from sparsebook.experiments.anchor_attention.runs import LIVE_THETA
from sparsebook.experiments.anchor_attention.scales import Config

# Reading curves ------------------------------------------------------------------------------------------


def curve(table: pd.DataFrame, recall: str = "mass") -> tuple[np.ndarray, np.ndarray]:
    """Densities and recalls of one method on one text, ascending and without what costs more for less.

    Every curve ends at density 1 and recall 1, which every method reaches by computing everything.
    """
    wide = table.pivot_table(index="setting", columns="metric", values="value")
    density = np.append(wide["density"].to_numpy(), 1.0)
    reached = np.append(wide[recall].to_numpy(), 1.0)
    order = np.lexsort((-reached, density))
    density, reached = density[order], reached[order]
    best = np.maximum.accumulate(np.concatenate([[-1.0], reached[:-1]]))
    useful = reached > best
    return density[useful], reached[useful]


def density_at(table: pd.DataFrame, target: float, recall: str = "mass") -> float:
    """The density that a recall takes, linear between settings; the least one where that is above it."""
    density, reached = curve(table, recall)
    return float(np.interp(target, reached, density))


def densities(table: pd.DataFrame, method: str, target: float, recall: str = "mass") -> np.ndarray:
    """`density_at` of a method, one value per text.

    Raises
    ------
    ValueError
        If the table has no such method.
    """
    own = table[table.method == method]
    if own.empty:
        raise ValueError(f"method: no rows of {method!r}; there are {', '.join(sorted(set(table.method)))}")
    return np.array([density_at(part, target, recall) for _, part in own.groupby("seed")])


def with_region(table: pd.DataFrame) -> pd.DataFrame:
    """Methods beside the region begin where the region alone is: its point is added to their curves."""
    region = table[table.method == "region"]
    beside = [name for name in sorted(set(table.method)) if name.startswith(("anchor", "stripes", "tiles"))]
    copies = [region.assign(method=name, setting=-1e6) for name in beside]
    return pd.concat([table, *copies], ignore_index=True)


# Claims --------------------------------------------------------------------------------------------------


def claim_samples(found: dict[str, pd.DataFrame], config: Config) -> dict[str, Samples]:
    """Samples of every claim that this run could test."""
    ratio = lambda values: Samples(values, unit="ratio")  # noqa: E731
    recall, target = with_region(found["recall"]), config.target
    at = lambda method, by="mass": densities(recall, method, target, by)  # noqa: E731
    ours, ours_output = at("anchor"), at("anchor", "output")
    tiles = {
        by: np.minimum(at("tiles, best key", by), at("tiles, mean key", by)) for by in ("mass", "output")
    }
    ablation = found["ablation"]
    samples = {
        "C1b": ratio(at("flexprefill") / ours),
        "C2c": Samples(needed_by_length(found["growth"], target).to_numpy(), unit="fraction"),
        "C3a": ratio(tiles["mass"] / ours),
        "C3b": ratio(tiles["output"] / ours_output),
        "C4a": Samples(_value(found["maxima"], "anchor", "inside"), unit="fraction"),
        "C4b": Samples(_value(found["maxima"], "anchor", "gap"), unit="nats"),
        "C4c": Samples(_value(found["maxima"], "anchor", "worst head"), unit="fraction"),
        "C5a": ratio(at("oracle: difference") / at("oracle: top k")),
        "C5b": ratio(at("oracle: difference") / at("oracle: top mass")),
        "C5c": ratio(ours / at("stripes, top share")),
        "C5d": ratio(ours / at("stripes, top mass")),
        "C6b": Samples(_accuracy(found["tasks"], config, "anchor", "dense"), unit="accuracy"),
        "C6c": Samples(_accuracy(found["tasks"], config, "anchor", "block_topk + region"), unit="accuracy"),
        "C6d": Samples(_loss(found["likelihood"], "anchor", "dense"), unit="nats"),
        "C6e": Samples(_loss(found["likelihood"], "streaming", "anchor"), unit="nats"),
        "H1": Samples(_value(found["released"], "checked", "deviation"), unit="pairs"),
        "H5": ratio(densities(ablation, "anchor: constant", target) / densities(ablation, "anchor", target)),
    }
    return samples | _speed_samples(found["speed"])


def _speed_samples(speed: pd.DataFrame) -> dict[str, Samples]:
    planted, text = (_compared_length(speed, kind) for kind in ("planted", "text"))
    ratio = lambda kind, n, method: Samples(over_ours(speed, kind, n, method), unit="ratio")  # noqa: E731
    share = speed[(speed.metric == "identification") & (speed.kind == "text") & (speed.n == text)]
    return {
        "C1c": ratio("text", text, "flexprefill"),
        "C2b": ratio("text", text, "sdpa"),
        "H2": Samples(share.value.to_numpy(), unit="fraction"),
        "H3": ratio("planted", planted, "sdpa"),
        "H4": ratio("planted", planted, "flex"),
    }


def _compared_length(speed: pd.DataFrame, kind: str, wanted: int = 8192) -> int:
    """8,192 tokens, or the longest there is below."""
    lengths = sorted(set(speed[speed.kind == kind].n))
    return max([n for n in lengths if n <= wanted] or lengths[:1])


def over_ours(speed: pd.DataFrame, kind: str, n: int, method: str) -> np.ndarray:
    """Time of a method over that of AnchorAttention, one value per process."""
    own = speed[(speed.method == method) & (speed.kind == kind) & (speed.n == n)]
    return own[(own.experiment == "speed") & (own.metric == "over_ours")].value.to_numpy()


def needed_by_length(growth: pd.DataFrame, target: float) -> pd.DataFrame:
    """Density that the recall takes, [texts, lengths]."""
    return pd.DataFrame({n: densities(part, "anchor", target) for n, part in growth.groupby("n")})


def _value(table: pd.DataFrame, method: str, metric: str) -> np.ndarray:
    return table[(table.method == method) & (table.metric == metric)]["value"].to_numpy()


def _loss(likelihood: pd.DataFrame, method: str, over: str) -> np.ndarray:
    """Loss under a method minus that under another, one value per text."""
    wide = likelihood[likelihood.metric == "loss"].pivot_table(index="seed", columns="method", values="value")
    return (wide[method] - wide[over]).to_numpy()


def at_density(tasks: pd.DataFrame, density: float) -> pd.DataFrame:
    """Accuracies [training runs, methods] at one density; dense reading and the region alone beside it."""
    own = tasks[(tasks.metric == "accuracy") & tasks.target.isin((0.0, density, 1.0))]
    return own.pivot_table(index="seed", columns="method", values="value")


def _accuracy(tasks: pd.DataFrame, config: Config, method: str, less: str) -> np.ndarray:
    """Accuracy under a method minus that under another, one value per training run."""
    wide = at_density(tasks, config.density)
    return (wide[method] - wide[less]).to_numpy()


def check_claims(ledger: Ledger, found: dict[str, pd.DataFrame], config: Config) -> None:
    """Supply every claim's samples; say of the others why they were not tested."""
    ledger.check_all(claim_samples(found, config))


def sabotage_samples(config: Config) -> dict[str, Samples]:
    """The same samples from a twin that is broken where each claim's control says."""
    broken = replace(config, sabotaged=True, n_texts=8, in_process=5, repeats=5, task_runs=tuple(range(8)))
    return claim_samples(measure(broken), broken)


# What the chapter shows ----------------------------------------------------------------------------------


def density_table(found: dict[str, pd.DataFrame], config: Config) -> pd.DataFrame:
    """Density at the target recall by both definitions, mean over texts and 95 % interval."""
    from sparsebook.evaluation.statistics import t_interval

    recall, out = with_region(found["recall"]), {}
    for method in dict.fromkeys(recall.method):
        if method == "region":
            continue
        row = {}
        for by, name in (("mass", "softmax mass"), ("output", "output elements")):
            values = densities(recall, method, config.target, by)
            interval = t_interval(values) if len(values) > 1 else None
            spread = f" ({interval.low:.2f} to {interval.high:.2f})" if interval else ""
            row[f"density at {config.target:.0%} of the {name}"] = f"{values.mean():.3f}{spread}"
        out[method] = row
    return pd.DataFrame.from_dict(out, orient="index")


def ablation_table(found: dict[str, pd.DataFrame], config: Config) -> pd.DataFrame:
    """Density at the target recall of every variant, and over that of the method, means over texts."""
    ablation = found["ablation"]
    ours, out = densities(ablation, "anchor", config.target), {}
    for method in dict.fromkeys(ablation.method):
        values = densities(ablation, method, config.target)
        out[method] = {
            "density": values.mean().round(3),
            "over the method's": (values / ours).mean().round(2),
        }
    return pd.DataFrame.from_dict(out, orient="index")


def speed_table(speed: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds (medians over processes), how many times ours, density and recall reached."""
    timed = speed[speed.experiment == "speed"]
    reached = speed[speed.experiment == "reached"].pivot_table(
        index=["kind", "n", "method"], columns="metric", values="value"
    )
    rows = []
    for (kind, n, method), own in timed.groupby(["kind", "n", "method"], sort=False):
        wide = own.groupby("metric").value.median()
        row: dict[str, Any] = {
            "heads": kind,
            "tokens": n,
            "method": method,
            "ms": _milliseconds(wide["time"]),
        }
        row["over ours"] = f"{wide['over_ours']:.2f}"
        if (kind, n, method) in reached.index:
            row |= {
                "density": f"{reached.loc[(kind, n, method), 'density']:.3f}",
                "recall": f"{reached.loc[(kind, n, method), 'mass']:.3f}",
            }
        rows.append(row)
    return pd.DataFrame(rows).fillna("").set_index(["heads", "tokens", "method"])


def _milliseconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


TASK_NAMES = {
    "dense": "dense",
    "anchor": "anchor",
    "block_topk + region": "blocks",
    "streaming": "streaming",
    "region": "region",
    "anchor: random stripes": "random",
    "anchor: rows not pooled": "unpooled",
    "anchor: last rows dense": "tail",
}
"""Arms of the small models, and what they are called in the chapter's text."""


def answers(found: dict[str, pd.DataFrame], config: Config) -> dict[str, str]:
    """The numbers of the chapter's prose, written out; so that no number is typed into its text."""
    samples = {name: value.values for name, value in claim_samples(found, config).items()}
    recall, maxima, released = with_region(found["recall"]), found["maxima"], found["released"]
    at = lambda method, by="mass": densities(recall, method, config.target, by).mean()  # noqa: E731
    region = found["recall"][found["recall"].method == "region"].groupby("metric").value.mean()
    ablation = found["ablation"]
    loss = found["likelihood"].pivot_table(index="seed", columns=["metric", "method"], values="value")
    text = {
        "target": f"{config.target:.2f}",
        "n_texts": str(config.n_texts),
        "n_tokens": f"{config.n_tokens:,}",
        "block": str(config.block_size),
        "step": str(config.step),
        "group": str(config.group_size),
        "floor_density": f"{region['density']:.1%}",
        "floor_mass": f"{region['mass']:.2f}",
        "inside": f"{samples['C4a'].mean():.0%}",
        "inside_lowest": f"{samples['C4a'].min():.0%}",
        "inside_highest": f"{samples['C4a'].max():.0%}",
        "init": f"{_value(maxima, 'anchor', 'init').mean():.0%}",
        "window": f"{_value(maxima, 'anchor', 'window').mean():.0%}",
        "elsewhere": f"{_value(maxima, 'anchor', 'elsewhere').mean():.0%}",
        "chance": f"{_value(maxima, 'anchor', 'chance').mean():.0%}",
        "worst_head": f"{samples['C4c'].mean():.0%}",
        "gap": f"{samples['C4b'].mean():.2f}",
        "gap_above": f"{_value(maxima, 'anchor', 'gap above theta').mean():.2%}",
        "density_ours": f"{at('anchor'):.2f}",
        "density_flexprefill": f"{at('flexprefill'):.2f}",
        "density_flexprefill_region": f"{at('flexprefill + region'):.2f}",
        "density_topk_blocks": f"{at('block_topk + region'):.2f}",
        "density_lines": f"{at('vertical_slash'):.2f}",
        "density_streaming": f"{at('streaming'):.2f}",
        "density_difference": f"{at('oracle: difference'):.2f}",
        "density_top_k": f"{at('oracle: top k'):.2f}",
        "density_top_mass": f"{at('oracle: top mass'):.2f}",
        "tiles_ratio": f"{samples['C3a'].mean():.2f}",
        "tiles_ratio_output": f"{samples['C3b'].mean():.2f}",
        "flexprefill_ratio": f"{samples['C1b'].mean():.2f}",
        "share_ratio": f"{samples['C5c'].mean():.2f}",
        "mass_ratio": f"{samples['C5d'].mean():.2f}",
        "oracle_ratio": f"{samples['C5a'].mean():.2f}",
        "oracle_mass_ratio": f"{samples['C5b'].mean():.2f}",
        "constant_ratio": f"{samples['H5'].mean():.2f}",
        "shortest": f"{min(config.lengths):,}",
        "longest": f"{max(config.lengths):,}",
        "density_shortest": f"{samples['C2c'][:, 0].mean():.2f}",
        "density_longest": f"{samples['C2c'][:, -1].mean():.2f}",
        "loss_dense": f"{loss['loss', 'dense'].mean():.3f}",
        "loss_rise": f"{samples['C6d'].mean():+.4f}",
        "loss_rise_region": f"{(loss['loss', 'region'] - loss['loss', 'dense']).mean():+.4f}",
        "loss_rise_streaming": f"{(loss['loss', 'streaming'] - loss['loss', 'dense']).mean():+.4f}",
        "loss_rise_blocks": f"{(loss['loss', 'block_topk + region'] - loss['loss', 'dense']).mean():+.4f}",
        "loss_tokens": f"{config.loss_tokens:,}",
        "loss_density": f"{loss['density', 'anchor'].mean():.2f}",
        "double_first": f"{_kept(released, 'double', 1):,.0f}",
        "double_later": f"{_kept(released, 'double', 2):,.0f}",
        "missing_later": f"{_kept(released, 'missing', 2):,.0f}",
        "released_error": f"{_value(released, 'released', 'error')[0]:.0%}",
        "described_error": f"{_value(released, 'described', 'error')[0]:.0e}",
        "live_theta": f"{LIVE_THETA:g}",
        "processes": str(found["speed"].process.nunique()),
    }
    for method, name in (
        ("anchor: init only", "init_ratio"), ("anchor: window only", "window_ratio"),
        ("anchor: true maximum", "true_ratio"), ("decision: mean of the blocks", "mean_decision_ratio"),
        ("rows: not pooled", "unpooled_ratio"),
    ):  # fmt: skip
        values = densities(ablation, method, config.target) / densities(ablation, "anchor", config.target)
        text[name] = f"{values.mean():.2f}"
    return text | _task_answers(found["tasks"], config) | _speed_answers(found["speed"])


def _task_answers(tasks: pd.DataFrame, config: Config) -> dict[str, str]:
    accuracy = at_density(tasks, config.density)
    spent = tasks[(tasks.metric == "density") & (tasks.target == config.density)]
    densities_spent = spent.groupby("method").value.mean()
    text = {
        "task_runs": str(len(config.task_runs)),
        "task_width": str(config.task_width),
        "task_tokens": str(config.task_tokens),
        "task_block": str(config.task_block),
        "task_density": f"{config.density:g}",
        "task_tail_density": f"{densities_spent['anchor: last rows dense']:.2f}",
        "task_unpooled_density": f"{densities_spent['anchor: rows not pooled']:.2f}",
    }
    for method, name in TASK_NAMES.items():
        text[f"task_{name}"] = f"{accuracy[method].mean():.2f}"
    return text


def _kept(released: pd.DataFrame, metric: str, group: int) -> float:
    own = released[(released.method == "released") & (released.metric == metric)]
    return float(own[own.setting == group].value.iloc[0])


def _speed_answers(speed: pd.DataFrame) -> dict[str, str]:
    text = {}
    for kind in ("planted", "text"):
        n = _compared_length(speed, kind)
        text[f"n_{kind}"] = f"{n:,}"
        for method in ("sdpa", "dense kernel", "flex", "flexprefill", "block_topk"):
            values = over_ours(speed, kind, n, method)
            answer = f"{np.median(values):.2f}" if len(values) else "(not measured)"
            text[f"{kind}_{method}".replace(" ", "_")] = answer
        share = speed[(speed.metric == "identification") & (speed.kind == kind) & (speed.n == n)]
        text[f"{kind}_identification"] = f"{share.value.median():.0%}"
        reached = speed[(speed.experiment == "reached") & (speed.kind == kind) & (speed.n == n)]
        wide = reached.pivot_table(index="method", columns="metric", values="value")
        for method in ("anchor", "flex", "flexprefill", "block_topk"):
            text[f"{kind}_{method}_density"] = f"{wide.loc[method, 'density']:.2f}"
            text[f"{kind}_{method}_recall"] = f"{wide.loc[method, 'mass']:.3f}"
    return text


def agreement(live: pd.Series, found: dict[str, pd.DataFrame], config: Config) -> pd.DataFrame:
    """Whether the live cell lies where the recorded texts predict one more."""
    from sparsebook.recorded import inside_prediction

    recall, maxima = found["recall"], found["maxima"]
    cell = recall[(recall.method == "anchor") & (recall.setting == LIVE_THETA)]
    out = {}
    for metric in ("density", "mass", "output", "inside", "gap"):
        table = maxima[maxima.method == "anchor"] if metric in ("inside", "gap") else cell
        recorded = table[table.metric == metric]["value"].to_numpy()
        inside = inside_prediction(float(live[metric]), recorded)
        out[metric] = "inside the prediction" if inside else "OUTSIDE the prediction"
    return pd.DataFrame({"one more text against the recorded ones": out})
