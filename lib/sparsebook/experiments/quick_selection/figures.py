"""Figures of the chapter, drawn from the tables."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sparsebook.evaluation.statistics import t_interval
from sparsebook.experiments.quick_selection.inputs import USEFUL
from sparsebook.experiments.quick_selection.prose import ARM_LABELS, LABELS, SET_LABELS
from sparsebook.experiments.quick_selection.runs import ARMS, strengths_at
from sparsebook.experiments.quick_selection.scales import Config
from sparsebook.experiments.quick_selection.verdicts import accuracies, by_kind, per_seed, seconds
from sparsebook.plotting import BLUE, GREY, ORANGE, VERMILLION, color, marker, pareto_front

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWN = ("qs_100", "qs_10", "masked_100", "dense_100", "dense_10", "laplacian", "mcfs", "variance")
SWEPT = ("qs_100", "qs_10", "dense_100", "laplacian", "mcfs", "variance", "random")


def _subplots(rows: int, columns: int, height: float, width: float = 8.0, **more: Any) -> Any:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **more
    )
    return figure, axes


def _interval(values: Any) -> tuple[float, float, float]:
    """Mean and 95 % interval; without spread both ends are the mean."""
    array = np.asarray(values, dtype=float)
    mean = float(array.mean())
    if len(array) < 2 or np.ptp(array) == 0:
        return mean, mean, mean
    interval = t_interval(array)
    return mean, float(interval.low), float(interval.high)


def draw_maps(profile: pd.DataFrame, config: Config) -> "Figure":
    """The figure of the released code: which pixels are strong, before training and on the way.

    Dark is weak, the square is the digit's area, dots are the kept pixels.
    """
    from matplotlib.patches import Rectangle

    epochs = [0, 1, config.quick, config.length]
    maps = strengths_at(profile, epochs, "canvas")
    side = config.canvas
    figure, axes = _subplots(1, len(epochs), 2.5)
    for one, (epoch, strength) in zip(axes[0], maps.items(), strict=True):
        one.imshow(strength.reshape(side, side), cmap="cividis")
        kept = np.argsort(-strength, kind="stable")[: min(config.kept, len(strength))]
        one.plot(kept % side, kept // side, ".", color=VERMILLION, ms=3.5)
        start = (side - 16) // 2 - 0.5
        one.add_patch(Rectangle((start, start), 16, 16, fill=False, edgecolor="white", lw=1.2))
        one.set(title=f"epoch {epoch}", xticks=[], yticks=[])
        one.grid(False)
    return figure


def draw_madelon(table: pd.DataFrame, config: Config) -> "Figure":
    """Precision over the epochs, and after the last one for every arm."""
    figure, axes = _subplots(1, 2, 3.6, width_ratios=(1, 1.25))
    left, right = axes[0]
    for metric, name, shade in (
        ("precision", "precision@20", BLUE),
        ("classification", "trees, accuracy", ORANGE),
        ("clustering", "k-means, accuracy", GREY),
    ):
        found = [_interval(per_seed(table, "released", metric, epoch=epoch)) for epoch in config.epochs]
        mean, low, high = np.array(found).T
        left.plot(config.epochs, mean, marker="o", color=shade, label=name)
        left.fill_between(config.epochs, low, high, color=shade, alpha=0.2, lw=0)
    left.set(xscale="log", xlabel="epochs", ylim=(-0.03, 1.03), title="Released")
    left.set_xticks(config.epochs, [str(epoch) for epoch in config.epochs])
    left.minorticks_off()
    left.legend(fontsize=8)
    rows = list(reversed(ARMS))
    for row, arm in enumerate(rows):
        mean, low, high = _interval(per_seed(table, arm, "precision", epoch=config.length))
        shade = BLUE if arm == "released" else GREY
        right.plot([low, high], [row, row], color=shade)
        right.plot(mean, row, marker="o", ms=6, color=shade)
    right.set_yticks(range(len(rows)), [ARM_LABELS[arm] for arm in rows])
    right.set(xlabel=f"precision@20 after {config.length} epochs", title="One change each")
    return figure


def draw_profile(profile: pd.DataFrame, config: Config) -> "Figure":
    """Strength and degree of useful columns and of noise before, during and after training."""
    epochs = [0, config.quick, config.length]
    figure, axes = _subplots(2, len(epochs), 4.0, sharey="row", sharex="row")
    own = profile[profile.method == "madelon"]
    for row, (metric, name) in enumerate((("strength", "strength"), ("degree", "connections"))):
        values = own[own.metric == metric]
        for column, epoch in enumerate(epochs):
            at = values[values.epoch == epoch]
            parts = at[at.column >= USEFUL]["value"], at[at.column < USEFUL]["value"]
            bins = np.linspace(0, values["value"].max(), 40)
            for part, shade, label in zip(parts, (GREY, VERMILLION), ("noise", "useful"), strict=True):
                axes[row, column].hist(part, bins=bins, color=shade, alpha=0.75, label=label, density=True)
            axes[row, column].set(xlabel=name, yticks=[])
            if row == 0:
                axes[row, column].set_title(f"epoch {epoch}")
    axes[0, 0].legend(fontsize=8)
    return figure


def draw_reasons(blocks: pd.DataFrame, noise: pd.DataFrame, config: Config) -> "Figure":
    """Strength against the size of a column's block; precision and accuracy against columns of noise."""
    figure, axes = _subplots(1, 2, 3.4)
    left, right = axes[0]
    own = blocks[blocks.method == "correlated"]
    found = [_interval(own[own.block == size]["value"]) for size in config.blocks]
    mean, low, high = np.array(found).T
    left.errorbar(config.blocks, mean, [mean - low, high - mean], marker="o", color=BLUE)
    left.axhline(1, color=GREY, ls="--", lw=1)
    left.set(xlabel="columns in a correlated block", ylabel="strength over that of noise", title="Why")
    left.set_xticks(config.blocks)
    for method in ("qs_100", "laplacian", "random"):
        for metric, style in (("classification", "-"), ("precision", ":")):
            found = [
                _interval(per_seed(noise, method, metric, noise_columns=columns))
                for columns in config.noise_columns
            ]
            label = LABELS[method] if metric == "classification" else None
            right.plot(
                config.noise_columns, [mean for mean, *_ in found], style, marker=marker(method),
                color=color(method), label=label,
            )  # fmt: skip
    right.plot([], [], ":", color=GREY, label="share of pixels kept")
    right.set(
        xlabel="columns of noise beside 64 pixels", ylabel="accuracy (trees)", title="Noise", ylim=(0, 1.03)
    )
    right.legend(fontsize=8)
    return figure


def draw_trade(trade: pd.DataFrame, speed: pd.DataFrame) -> "Figure":
    """Accuracy against CPU seconds on every set; who is joined by the line has no better rival."""
    accuracy, cpu = accuracies(trade).groupby("set", sort=False).mean(), seconds(speed)
    names = list(accuracy.index)
    rows = -(-len(names) // 4)
    figure, axes = _subplots(rows, min(4, len(names)), 2.3 * rows + 0.7)
    for place, one in enumerate(axes.ravel()):
        if place >= len(names):
            one.axis("off")
            continue
        name = names[place]
        methods = [method for method in DRAWN if method in cpu]
        costs = [float(cpu.loc[name, method]) for method in methods]
        quality = [
            float(accuracy.loc[name, m if m in accuracy else f"qs_{m.split('_')[1]}"]) for m in methods
        ]
        front = pareto_front(costs, quality)
        one.plot([costs[i] for i in front], [quality[i] for i in front], color="#BBBBBB", lw=1, zorder=1)
        for method, cost, value in zip(methods, costs, quality, strict=True):
            filled = "white" if method.endswith("_10") else color(method)
            one.plot(
                cost, value, marker=marker(method), ms=7, color=color(method), mfc=filled, ls="",
                label=LABELS[method] if place == 0 else None,
            )  # fmt: skip
        one.axhline(accuracy.loc[name, "all"], color="black", ls=":", lw=1)
        one.axhline(accuracy.loc[name, "random"], color=GREY, ls="--", lw=1)
        one.set_xscale("log")
        one.set_title(SET_LABELS.get(name, name), fontsize=9)
    for one in axes[-1]:
        one.set_xlabel("CPU seconds", fontsize=9)
    figure.supylabel("accuracy on held-out samples (trees)", fontsize=10)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    return figure


def draw_sweep(trade: pd.DataFrame, config: Config) -> "Figure":
    """Accuracy against the number of kept columns."""
    names = [name for name in config.sweep_sets if name in set(trade["set"])]
    figure, axes = _subplots(1, len(names), 3.6, sharey=False)
    seeds = config.trade_seeds[: config.sweep_seeds]
    own = trade[(trade.metric == "classification") & trade.seed.isin(seeds)]
    for one, name in zip(axes[0], names, strict=True):
        for method in SWEPT:
            curve = own[(own.set == name) & (own.method == method)].groupby("kept")["value"].mean()
            one.plot(
                curve.index, curve, marker=marker(method), color=color(method), ms=4.5,
                label=LABELS[method] if one is axes[0][0] else None,
                ls="--" if method == "qs_10" else "-",
            )  # fmt: skip
        one.set(xscale="log", xlabel="columns kept", title=SET_LABELS.get(name, name))
        one.set_xticks(config.kept_sweep, [str(kept) for kept in config.kept_sweep])
        one.minorticks_off()
    axes[0][0].set_ylabel("accuracy (trees)")
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    return figure


def draw_scale(memory: pd.DataFrame, config: Config) -> "Figure":
    """Memory and CPU seconds of an epoch against the number of columns; crosses did not fit."""
    figure, axes = _subplots(1, 2, 3.6)
    once = memory[memory.repeated == 1]
    for kind, name in (("sparse", "sparse"), ("dense", "dense"), ("masked", "masks")):
        own = once[once.method == kind].pivot_table(index="columns", columns="metric", values="value")
        fits = own[own.fits == 1]
        shade = color({"sparse": "qs_100", "dense": "dense_100", "masked": "masked_100"}[kind])
        axes[0, 0].plot(fits.index, fits.grown / 2**20, marker="o", color=shade, label=name)
        axes[0, 1].plot(fits.index, fits.cpu, marker="o", color=shade, label=name)
        for d in own.index[own.fits == 0]:
            axes[0, 0].plot(d, config.memory_limit / 2**20, marker="x", ms=8, color=shade, ls="")
    axes[0, 0].axhline(config.memory_limit / 2**20, color=GREY, ls="--", lw=1)
    axes[0, 0].set(ylabel="growth of the process, MiB", title="Memory")
    axes[0, 1].set(ylabel="CPU seconds of an epoch", title="Time")
    for one in axes[0]:
        one.set(xscale="log", yscale="log", xlabel="columns")
    axes[0, 0].legend(fontsize=8)
    return figure


def draw_energy(counted: pd.DataFrame) -> "Figure":
    """Counted joules of a training on every set."""
    figure, axes = _subplots(1, 1, 3.2, width=6.8)
    energy = by_kind(counted, "energy")
    places = np.arange(len(energy))
    for shift, (kind, method) in enumerate(
        (("sparse", "qs_100"), ("dense", "dense_100"), ("masked", "masked_100"))
    ):
        axes[0, 0].bar(
            places + 0.27 * (shift - 1), energy[kind], 0.25, color=color(method), label=LABELS[method]
        )
    axes[0, 0].set_xticks(
        places, [SET_LABELS.get(name, name) for name in energy.index], rotation=25, ha="right"
    )
    axes[0, 0].set(ylabel="joules, counted", yscale="log")
    axes[0, 0].legend(fontsize=8)
    return figure
