"""Figures of the chapter, drawn from the tables."""

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from sparsebook.attention.anchor_attention import anchor_pattern
from sparsebook.experiments.anchor_attention.inputs import planted_heads
from sparsebook.experiments.anchor_attention.runs import times_computed
from sparsebook.experiments.anchor_attention.scales import Config
from sparsebook.experiments.anchor_attention.verdicts import (
    at_density,
    densities,
    needed_by_length,
    with_region,
)
from sparsebook.plotting import BLUE, GREEN, GREY, ORANGE, VERMILLION, color, marker

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS = {
    "anchor": "AnchorAttention",
    "block_topk": "block top-k",
    "flexprefill": "FlexPrefill",
    "vertical_slash": "vertical and slash",
    "streaming": "StreamingLLM",
    "sdpa": "dense (SDPA)",
    "dense kernel": "dense (the book's kernel)",
    "flex": "FlexAttention, best blocks",
}


def _subplots(
    n: int = 1, width: float = 6.8, height: float = 3.8, **options: Any
) -> "tuple[Figure, list[Axes]]":
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, n, figsize=(width, height), layout="constrained", squeeze=False, **options)
    return figure, list(axes[0])


def draw_pattern(config: Config) -> "Figure":
    """What is computed of one head: regions and stripes of planted heads."""
    heads = planted_heads(512, config.seed, heads=1)
    index = anchor_pattern(heads.q, heads.k, theta=4.0, block_size=16, step=4)
    regions = anchor_pattern(heads.q, heads.k, theta=-torch.inf, block_size=16, step=4)
    picture = index.dense_mask(512, 512, causal=True)[0, 0].int()
    picture = picture + regions.dense_mask(512, 512, causal=True)[0, 0].int()
    figure, (axes,) = _subplots(width=5.2, height=4.6)
    from matplotlib.colors import ListedColormap

    axes.imshow(picture, cmap=ListedColormap(["white", VERMILLION, BLUE]), interpolation="nearest")
    axes.set(xlabel="key", ylabel="query")
    axes.grid(False)
    for text, own in (("region", BLUE), ("stripes", VERMILLION)):
        axes.plot([], [], "s", color=own, label=text)
    axes.legend(loc="upper right")
    return figure


def draw_maxima(table: pd.DataFrame) -> "Figure":
    """Left: where the row maxima lie, layer by layer and head by head. Right: what the anchor misses."""
    figure, (left, right) = _subplots(2, width=8.0)
    heads = table[(table.method == "head") & (table.metric == "inside")]
    wide = heads.pivot_table(index="seed", columns=["layer", "head"], values="value")
    layers = sorted({layer for layer, _ in wide.columns})
    for place, layer in enumerate(layers):
        own = wide[layer]
        x = place + np.linspace(-0.27, 0.27, own.shape[1])
        left.plot(x, own.to_numpy().T, "o", ms=3, color=BLUE, alpha=0.45, mew=0)
        left.plot(x, own.mean(), "_", ms=11, mew=2, color=BLUE)
    chance = table[table.metric == "chance"].value.mean()
    left.axhline(chance, color=GREY, ls=":", lw=1.4)
    left.text(-0.45, chance + 0.02, "share of the keys", color=GREY, fontsize=8)
    left.set_xticks(range(len(layers)), [f"layer {place + 1}" for place in range(len(layers))])
    left.set(ylabel="rows with their maximum in the region", ylim=(0, 1.02), xlim=(-0.5, len(layers) - 0.5))
    left.set_title("by head (dots: texts)")
    bars = table[table.method == "histogram"].pivot_table(index="setting", columns="layer", values="value")
    shades = ("#9ecae1", "#4292c6", "#08519c", "#08306b")
    steps = np.arange(len(bars))
    for place, (shade, layer) in enumerate(zip(shades, bars.columns, strict=False)):
        right.bar(steps + 0.27 * (place - 1), bars[layer], 0.27, color=shade, label=f"layer {place + 1}")
    edges = [f"{edge:g}" for edge in bars.index[1:]]
    names = [
        "none",
        "< 0.5",
        *(f"{a} to {b}" for a, b in pairwise(edges[1:])),
        f"> {edges[-1]}",
    ]
    right.set_xticks(steps, names[: len(steps)], rotation=60, ha="right", fontsize=8)
    right.set(xlabel="largest logit less anchor, nats", ylabel="share of the rows")
    right.set_title("what the anchor misses")
    right.legend()
    return figure


def _mean_curve(
    table: pd.DataFrame, method: str, recall: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Recall against density: settings' means over texts, and the half width of their 95 % interval."""
    from sparsebook.evaluation.statistics import t_interval

    own = table[table.method == method]
    wide = own.pivot_table(index=["setting", "seed"], columns="metric", values="value").reset_index()
    points = []
    for _, part in wide.groupby("setting"):
        values = part[recall].to_numpy()
        low, high = (values.mean(),) * 2
        if len(values) > 1 and np.ptp(values) > 0:
            interval = t_interval(values)
            low, high = interval.low, interval.high
        points.append((part["density"].mean(), values.mean(), low, high))
    points.sort()
    return tuple(np.array(column) for column in zip(*points, strict=True))  # type: ignore[return-value]


def _draw_curve(axes: "Axes", table: pd.DataFrame, method: str, recall: str, **style: Any) -> None:
    density, mean, low, high = _mean_curve(table, method, recall)
    axes.plot(density, mean, **style)
    axes.fill_between(density, low, high, color=style["color"], alpha=0.13, lw=0)


def draw_recall(found: pd.DataFrame, recall: str = "mass") -> "Figure":
    """The main figure: recall against the whole density; rivals as published, and with the region forced."""
    table = with_region(found)
    figure, axes = _subplots(2, width=9.0, height=4.2, sharey=True)
    floor = found[found.method == "region"].pivot_table(index="seed", columns="metric", values="value").mean()
    rivals = ("block_topk", "flexprefill", "vertical_slash", "streaming")
    for ax, suffix, title in zip(
        axes, ("", " + region"), ("as published", "with the region forced"), strict=True
    ):
        for method in ("oracle: difference", "oracle: top k", "oracle: top mass"):
            line = {"oracle: difference": "-", "oracle: top k": "--", "oracle: top mass": ":"}[method]
            _draw_curve(ax, table, method, recall, color=GREY, ls=line, lw=1.3, label=method)
        for method in rivals:
            _draw_curve(ax, table, method + suffix, recall, color=color(method), marker=marker(method), ms=4,
                        lw=1.4, label=LABELS[method])  # fmt: skip
        _draw_curve(ax, table, "anchor", recall, color=color("anchor_attention"), marker="o", ms=5, lw=2.2,
                    label=LABELS["anchor"])  # fmt: skip
        ax.axvline(floor["density"], color=color("anchor_attention"), ls=":", lw=1.2)
        ax.axhline(0.95, color="0.75", lw=0.8, zorder=0)
        ax.set(xlabel="density, region included", xlim=(0, 1))
        ax.set_title(title)
    axes[0].set(ylim=(max(0.0, 0.9 * floor[recall] - 0.05), 1.005))
    axes[0].set_ylabel("share of the softmax's mass" if recall == "mass" else "share of outputs within 0.01")
    lowest = (floor["density"], axes[0].get_ylim()[0])
    own = color("anchor_attention")
    axes[0].annotate("region alone", lowest, xytext=(3, 4), textcoords="offset points", fontsize=8,
                     color=own, rotation=90)  # fmt: skip
    axes[1].legend(fontsize=8, loc="lower right")
    return figure


GRANULARITY = {
    "anchor": ("stripes, difference to the anchor", BLUE, "-"),
    "stripes, top share": ("stripes, top share", GREEN, "--"),
    "stripes, top mass": ("stripes, top mass", ORANGE, "--"),
    "tiles, best key": ("tiles, best key", VERMILLION, "-"),
    "tiles, mean key": ("tiles, mean key", "#CC79A7", "-"),
}


def draw_granularity(found: pd.DataFrame) -> "Figure":
    """The same scores and the same region: stripes or tiles, a difference or a sort."""
    table = with_region(found)
    figure, axes = _subplots(2, width=9.0, height=3.9)
    for ax, recall, text in zip(
        axes, ("mass", "output"), ("share of the softmax's mass", "share of outputs within 0.01"), strict=True
    ):
        for method, (label, own, line) in GRANULARITY.items():
            _draw_curve(ax, table, method, recall, color=own, ls=line, label=label)
        ax.axhline(0.95, color="0.75", lw=0.8, zorder=0)
        ax.set(xlabel="density, region included", ylabel=text, xlim=(0.1, 1))
    axes[0].legend(fontsize=8, loc="lower right")
    return figure


def draw_ablation(found: pd.DataFrame, target: float) -> "Figure":
    """Density at the recall of every variant, text by text."""
    figure, (left, right) = _subplots(2, width=9.0, height=4.0, gridspec_kw={"width_ratios": [2, 1.2]})
    variants = [name for name in dict.fromkeys(found.method) if not name.startswith("step")]
    names = {"anchor": "as described"}
    for place, method in enumerate(reversed(variants)):
        values = densities(found, method, target)
        own = BLUE if method == "anchor" else GREY
        left.plot(values, np.full(len(values), place), "o", ms=4, color=own, alpha=0.5, mew=0)
        left.plot(values.mean(), place, "|", ms=14, mew=2.5, color=own)
    left.set_yticks(range(len(variants)), [names.get(name, name) for name in reversed(variants)])
    left.set(xlabel=f"density at a recall of {target:.2f} (dots: texts)")
    steps = sorted({int(name.split()[1]) for name in found.method if name.startswith("step")})
    values = np.array([densities(found, f"step {step}", target) for step in steps])
    floors = [found[(found.method == f"step {step}") & (found.setting == -1)] for step in steps]
    floor = [table[table.metric == "density"].value.mean() for table in floors]
    right.plot(steps, values, "o", ms=4, color=BLUE, alpha=0.4, mew=0)
    right.plot(steps, values.mean(1), "-", color=BLUE, label="region and stripes")
    right.plot(steps, floor, ":", color=BLUE, label="region alone")
    right.set_xscale("log", base=2)
    right.set_xticks(steps, [str(step) for step in steps])
    right.set(xlabel="blocks in a group, s", ylabel=f"density at {target:.2f}", ylim=(0, None))
    right.legend(fontsize=8)
    return figure


def draw_growth(growth: pd.DataFrame, target: float) -> "Figure":
    """The density that the recall takes, against the length of the text."""
    figure, (axes,) = _subplots(width=5.6, height=3.4)
    wide = needed_by_length(growth, target)
    axes.plot(wide.columns, wide.T, color=BLUE, alpha=0.3, lw=1)
    axes.plot(wide.columns, wide.mean(), "o-", color=BLUE)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(wide.columns), [f"{int(n):,}" for n in wide.columns])
    axes.set(xlabel="tokens", ylabel=f"density at a recall of {target:.2f}", ylim=(0, 1))
    return figure


def draw_pooling(table: pd.DataFrame) -> "Figure":
    """Whether a planted key is found, against the share of a block's rows that want it."""
    figure, (axes,) = _subplots(width=5.6, height=3.2)
    for (method, own), shade in zip(table.groupby("method", sort=False), (GREEN, ORANGE, BLUE), strict=False):
        axes.plot(own.setting, own.value, "o-", ms=4, color=shade, label=method)
    axes.set(xlabel="share of the block's rows that want the key", ylabel="key found", ylim=(-0.05, 1.05))
    axes.legend()
    return figure


def draw_released() -> "Figure":
    """How often each key is counted, group by group: as described, and in the released kernel."""
    from matplotlib.colors import ListedColormap

    figure, axes = _subplots(2, width=9.0, height=3.0, sharey=True)
    for ax, released, title in zip(axes, (False, True), ("as described", "released kernel"), strict=True):
        counts = times_computed(5, 128, 16, released).float()
        future = torch.arange(counts.shape[1]) >= (torch.arange(5)[:, None] + 1) * 2048
        picture = torch.where(future, -1.0, counts)
        colors = ListedColormap(["white", "black", "#9ecae1", VERMILLION])
        ax.imshow(picture, aspect="auto", cmap=colors, vmin=-1.5, vmax=2.5, interpolation="nearest",
                  extent=(0, counts.shape[1], 4.5, -0.5))  # fmt: skip
        ax.set(xlabel="key", yticks=range(5))
        ax.set_title(title)
        ax.grid(False)
    axes[0].set_ylabel("group of 2,048 queries")
    for text, own in (("once", "#9ecae1"), ("twice", VERMILLION), ("never", "black")):
        axes[0].plot([], [], "s", color=own, label=text)
    axes[0].legend(loc="upper right", fontsize=8)
    return figure


def draw_likelihood(table: pd.DataFrame) -> "Figure":
    """Rise of the loss over dense attention under each method, text by text, and the density computed."""
    figure, (axes,) = _subplots(width=6.4, height=3.2)
    loss = table[table.metric == "loss"].pivot_table(index="seed", columns="method", values="value")
    spent = table[table.metric == "density"].groupby("method").value.mean()
    order = ("anchor", "block_topk + region", "streaming", "region")
    names = {"block_topk + region": "block top-k and region", "region": "region alone"} | LABELS
    own = [method for method in order if method in loss]
    for place, method in enumerate(reversed(own)):
        rise = loss[method] - loss["dense"]
        shade = color("anchor_attention") if method == "anchor" else GREY
        axes.plot(rise, np.full(len(rise), place), "o", ms=4, color=shade, alpha=0.5, mew=0)
        axes.plot(rise.mean(), place, "|", ms=14, mew=2.5, color=shade)
    axes.set_yticks(range(len(own)), [f"{names[m]}\n(density {spent[m]:.2f})" for m in reversed(own)])
    axes.axvline(0, color="0.6", lw=0.8)
    axes.set(xlabel="rise of the loss over dense attention, nats per token (dots: texts)")
    return figure


def draw_speed(speed: pd.DataFrame) -> "Figure":
    """Left: time against length on planted heads. Right: where AnchorAttention's time goes."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    figure, (left, right) = _subplots(2, width=9.0, height=3.8)
    timed = speed[(speed.experiment == "speed") & (speed.metric == "time")]
    for method in ("sdpa", "dense kernel", "flex", "flexprefill", "block_topk", "anchor"):
        own = timed[(timed.method == method) & (timed.kind == "planted")]
        if own.empty:
            continue
        wide = own.pivot_table(index="process", columns="n", values="value")
        key = {"anchor": "anchor_attention", "sdpa": "dense", "dense kernel": "random"}.get(method, method)
        left.plot(wide.columns, wide.median(), marker=marker(key), color=color(key), label=LABELS[method])
        left.fill_between(wide.columns, wide.min(), wide.max(), color=color(key), alpha=0.15, lw=0)
    lengths = sorted(set(timed[timed.kind == "planted"].n))
    left.set(xscale="log", yscale="log", xlabel="tokens", ylabel="ms, two threads")
    left.set_xticks(lengths, [f"{n:,}" for n in lengths])
    left.minorticks_off()
    left.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    left.set_title("planted heads, equal recall")
    left.legend(fontsize=7, loc="upper left")
    left.set_ylim(None, left.get_ylim()[1] * 3)  # room for the legend
    bars = []
    for (kind, n), own in timed.groupby(["kind", "n"]):
        parts = own.groupby("method").value.median()
        bars.append((f"{kind}\n{int(n):,}", [parts[f"anchor: {name}"] for name in PARTS]))
    bottom = np.zeros(len(bars))
    shares = np.array([np.array(values) / sum(values) for _, values in bars])
    for part, shade, values in zip(PARTS, (BLUE, ORANGE, VERMILLION), shares.T, strict=True):
        right.bar(range(len(bars)), values, bottom=bottom, color=shade, label=part, width=0.65)
        bottom += values
    right.set_xticks(range(len(bars)), [name for name, _ in bars], fontsize=8)
    right.set(ylabel="share of the time", ylim=(0, 1))
    right.set_title("parts of AnchorAttention")
    right.legend(fontsize=8, loc="lower right", frameon=True)
    return figure


PARTS = ("region", "identification", "stripes")


TASK_CURVES = {
    "anchor": ("AnchorAttention", "anchor_attention", "o-"),
    "anchor: rows not pooled": ("the same, blocks of one row", "anchor_attention", "D"),
    "block_topk + region": ("block top-k and region", "block_topk", "s-"),
    "streaming": ("StreamingLLM", "streaming", "^-"),
}
TASK_ARMS = {
    "dense": "dense",
    "anchor": "AnchorAttention",
    "block_topk + region": "block top-k and region",
    "streaming": "StreamingLLM",
    "anchor: rows not pooled": "blocks of one row",
    "anchor: last rows dense": "last rows dense",
    "anchor: random stripes": "random stripes",
    "region": "region alone",
}


def draw_tasks(tasks: pd.DataFrame, density: float) -> "Figure":
    """Left: accuracy against density, mean over training runs. Right: one density, run by run."""
    figure, (left, right) = _subplots(2, width=9.0, height=3.8)
    accuracy = tasks[tasks.metric == "accuracy"]
    spent = tasks[tasks.metric == "density"].groupby(["method", "target"]).value.mean()
    for method, (label, key, style) in TASK_CURVES.items():
        own = accuracy[accuracy.method == method].pivot_table(index="seed", columns="target", values="value")
        x = [spent[method, target] for target in own.columns]
        left.plot(x, own.mean(), style, ms=5, color=color(key), label=label)
        left.fill_between(x, own.min(), own.max(), color=color(key), alpha=0.12, lw=0)
    dense = accuracy[accuracy.method == "dense"].value.mean()
    left.axhline(dense, color=color("dense"), lw=1)
    left.annotate("dense", (1, dense), xytext=(-2, -3), textcoords="offset points", ha="right", va="top",
                  fontsize=8)  # fmt: skip
    left.set(xlabel="density, region included", ylabel="accuracy", xlim=(0, 1), ylim=(-0.03, 1.05))
    left.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, 0.93))
    wide = at_density(tasks, density)
    own_arms = [name for name in TASK_ARMS if name in wide]
    for place, method in enumerate(reversed(own_arms)):
        shade = BLUE if method == "anchor" else GREY
        right.plot(wide[method], np.full(len(wide), place), "o", ms=4, color=shade, alpha=0.5, mew=0)
        right.plot(wide[method].mean(), place, "|", ms=14, mew=2.5, color=shade)
    right.set_yticks(range(len(own_arms)), [TASK_ARMS[name] for name in reversed(own_arms)])
    right.set(xlabel="accuracy (dots: training runs)", xlim=(-0.03, 1.05))
    right.set_title(f"at a density of {density:g}")
    return figure
