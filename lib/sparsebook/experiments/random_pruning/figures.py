"""Figures of the chapter, drawn from the tables."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sparsebook.evaluation.statistics import t_interval
from sparsebook.experiments.random_pruning.runs import DIGIT_RATIOS
from sparsebook.experiments.random_pruning.scales import Config
from sparsebook.experiments.random_pruning.verdicts import (
    LABELS,
    Tables,
    all_shallow,
    gap,
    norm_ratio,
    trust_arms,
    values,
)
from sparsebook.plotting import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, color, marker

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAPER_DEPTHS = (20, 32, 44, 56, 110)
PAPER_GAPS = (4.6, 3.4, 2.65, 2.55, 1.4)
"""Dense less ERK at 90 % sparsity on CIFAR-10, read off the paper's figure by eye (about 0.1 off)."""


def _subplots(columns: int, width: float = 8.0, height: float = 3.4, **more: Any) -> Any:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, columns, figsize=(width, height), layout="constrained", squeeze=False, **more
    )
    return figure, axes[0]


def _interval(sample: Any) -> tuple[float, float, float]:
    """Mean and 95 % interval; without spread both ends are the mean."""
    array = np.asarray(sample, dtype=float)
    if len(array) < 2 or np.ptp(array) == 0:
        return float(array.mean()), float(array.mean()), float(array.mean())
    interval = t_interval(array)
    return float(array.mean()), float(interval.low), float(interval.high)


def _curve(axes: "Axes", x: Any, samples: list[Any], **style: Any) -> None:
    mean, low, high = np.array([_interval(sample) for sample in samples]).T
    axes.plot(x, mean, **style)
    axes.fill_between(x, low, high, color=style["color"], alpha=0.15, lw=0)


def draw_digits(table: pd.DataFrame, config: Config) -> "Figure":
    """The paper's panel: accuracy over sparsity by ratio, beside the dense network's band over seeds."""
    figure, (left, right) = _subplots(2, height=3.8, width_ratios=(1.5, 1))
    dense = values(table, "dense")
    for axes in (left, right):
        axes.axhspan(dense.mean() - dense.std(), dense.mean() + dense.std(), color=BLACK, alpha=0.12, lw=0)
    left.axhline(dense.mean(), color=BLACK, lw=1, label="dense, ± one deviation")
    for method in (*DIGIT_RATIOS, "small_dense"):
        samples = [values(table, method, sparsity=s) for s in config.digit_sparsities]
        style = {"color": color(method), "marker": marker(method), "label": LABELS[method]}
        style["ls"] = "--" if method == "small_dense" else "-"
        _curve(left, config.digit_sparsities, samples, **style)
    left.set(xlabel="sparsity", ylabel="test accuracy, %", title="Digits")
    high = [s for s in config.digit_sparsities if s <= 0.5]
    for place, method in enumerate(DIGIT_RATIOS):
        for s, filled in zip(high, (True, False), strict=False):
            mean, low, up = _interval(values(table, method, sparsity=s))
            shift = place + (0.15 if filled else -0.15)
            right.errorbar(
                shift, mean, [[mean - low], [up - mean]], marker="o", color=color(method),
                mfc=color(method) if filled else "white", ls="",
            )  # fmt: skip
    right.set_xticks(range(len(DIGIT_RATIOS)), [LABELS[m].split("'")[0] for m in DIGIT_RATIOS], rotation=30)
    right.set(title="Low sparsity (filled: lowest)")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def draw_sizes(found: Tables, config: Config) -> "Figure":
    """What random pruning costs, over width and over depth."""
    figure, (left, right) = _subplots(2, height=3.8)
    widths = found["widths"]
    for sparsity, shade in zip(config.mlp_sparsities, (SKY, BLUE, PURPLE, VERMILLION), strict=False):
        samples = [gap(widths, "er", sparsity, width=w) for w in config.mlp_widths]
        style = {"color": shade, "marker": "o", "label": f"ER, {sparsity:.0%}"}
        _curve(left, config.mlp_widths, samples, **style)
    samples = [gap(widths, "uniform", 0.9, width=w) for w in config.mlp_widths]
    _curve(left, config.mlp_widths, samples, color=ORANGE, marker="s", ls="--", label="uniform, 90%")
    left.set_xscale("log", base=2)
    left.set_xticks(config.mlp_widths, [str(w) for w in config.mlp_widths])
    left.set_yscale("symlog", linthresh=2, linscale=1.5)
    left.set_yticks((-2, -1, 0, 1, 2, 5, 10, 20), ("-2", "-1", "0", "1", "2", "5", "10", "20"))
    left.set(xlabel="width", ylabel="dense less sparse, points", title="Perceptrons")
    left.legend(fontsize=8)
    for axes in (left, right):
        axes.axhline(0, color=BLACK, lw=1)
        axes.axhspan(-1, 1, color=BLACK, alpha=0.08, lw=0)  # what counts as no difference
    depths = found["depths"]
    samples = [gap(depths, "erk", 0.9, depth=d) for d in config.depths]
    _curve(right, config.depths, samples, color=BLUE, marker="o", label="ERK, 90%, patches")
    ends = (config.depths[0], config.depths[-1])
    _curve(
        right, ends, [gap(depths, "erk", 0.5, depth=d) for d in ends], color=SKY, marker="o", label="ERK, 50%"
    )
    right.plot(PAPER_DEPTHS, PAPER_GAPS, "*--", color=PURPLE, ms=9, label="ERK, 90%, paper (CIFAR-10)")
    right.set_xscale("log", base=2)
    every = sorted({*config.depths, 32, 56, 110})
    right.set_xticks(every, [str(d) for d in every])
    right.minorticks_off()
    right.set(xlabel="depth", title="Residual networks")
    right.legend(fontsize=8)
    return figure


def draw_ratios(found: Tables, config: Config) -> "Figure":
    """Which ratio: at equal weights, and over the multiplications that are left."""
    figure, (left, right) = _subplots(2, height=4.2, width_ratios=(1, 1.25))
    table = all_shallow(found, config)
    table = table[table.seed.isin(config.few)]
    shown = [m for m in LABELS if m not in ("dense", "narrow") and not table[table.method == m].empty]
    for row, method in enumerate(reversed(shown)):
        mean, low, high = _interval(values(table, method, sparsity=0.9))
        left.plot([low, high], [row, row], color=color(method))
        left.plot(mean, row, marker=marker(method), ms=7, color=color(method))
    dense = values(table, "dense")
    left.axvline(dense.mean(), color=BLACK, lw=1)
    left.axvspan(dense.mean() - dense.std(), dense.mean() + dense.std(), color=BLACK, alpha=0.12, lw=0)
    left.set_yticks(range(len(shown)), [LABELS[m] for m in reversed(shown)])
    left.set(xlabel="accuracy, %", title="90 % sparsity (bar: dense)")
    full = values(table, "dense", "macs").mean()
    for method, sparsities in (("erk", (0.9, 0.8, 0.5)), ("uniform", (0.9, 0.8, 0.5))):
        own = [values(table, method, sparsity=s) for s in sparsities]
        work = [values(table, method, "macs", sparsity=s).mean() / full for s in sparsities]
        _curve(right, work, own, color=color(method), marker=marker(method), label=LABELS[method])
    narrow = [(values(table, "narrow", "macs", width=w).mean() / full, w) for w in config.narrow]
    own = [values(table, "narrow", width=w) for _, w in narrow]
    _curve(
        right, [*(x for x, _ in narrow), 1.0], [*own, dense], color=GREY, marker="x", ls="--",
        label="dense, by width",
    )  # fmt: skip
    right.set(xscale="log", xlabel="multiplications over dense", title="At equal work")
    ticks = (0.1, 0.2, 0.5, 1.0)
    right.set_xticks(ticks, [str(tick) for tick in ticks])
    right.minorticks_off()
    right.legend()
    return figure


def draw_norms(found: Tables, config: Config) -> "Figure":
    """Gradient norm at initialisation against accuracy, and the difference of ratios over width."""
    figure, (left, right) = _subplots(2, height=3.6, width_ratios=(1.4, 1))
    digits = found["digits"]
    for method in DIGIT_RATIOS:
        for place, s in enumerate(config.digit_sparsities):
            norm = values(digits, method, "gradient_norm", sparsity=s).mean()
            mean = values(digits, method, sparsity=s).mean()
            size = 3 + 7 * (1 - s)
            left.plot(
                norm, mean, marker=marker(method), ms=size, color=color(method), ls="",
                label=LABELS[method] if not place else None,
            )  # fmt: skip
    dense = values(digits, "dense", "gradient_norm").mean()
    left.plot(dense, values(digits, "dense").mean(), marker="*", ms=12, color=BLACK, ls="", label="dense")
    left.set(xscale="log", xlabel="squared gradient norm at the start", ylabel="accuracy, %", title="Digits")
    left.legend(fontsize=8)
    samples = [norm_ratio(found["widths"], w) for w in config.mlp_widths]
    _curve(right, config.mlp_widths, samples, color=BLUE, marker="o")
    right.axhline(0, color=BLACK, lw=1)
    right.set_xscale("log", base=2)
    right.set_xticks(config.mlp_widths, [str(w) for w in config.mlp_widths])
    right.set(xlabel="width", ylabel="log norm, ER over uniform", title="Patches, 90 %")
    return figure


def draw_trust(found: Tables, config: Config) -> "Figure":
    """Calibration, strange inputs, attack: each arm's mean with its interval."""
    metrics = {
        "auroc": "AUROC of strange\npatches (higher: better)",
        "ece": "calibration error\n(lower: better)",
        "ece_scaled": "the same, temperature\nscaled",
        "fgsm_2": "accuracy under FGSM\n2/255, %",
    }
    figure, axes = _subplots(4, width=9.0, height=3.0, sharey=True)
    arms = trust_arms(found, config)
    shades = {"dense": BLACK, "erk": BLUE}
    for one, (metric, title) in zip(axes, metrics.items(), strict=True):
        for row, (table, method, where) in enumerate(reversed(arms.values())):
            shade = shades.get(method, GREY)
            mean, low, high = _interval(values(table, method, metric, **where))
            one.plot([low, high], [row, row], color=shade)
            one.plot(mean, row, marker="o", color=shade)
        one.axhline(3.5, color=GREY, lw=0.7, ls=":")  # deep ones above, shallow ones below
        one.set_xlabel(title)
        one.set_ylim(-0.5, len(arms) - 0.5)
    axes[0].set_yticks(range(len(arms)), [name.replace("ResNet-", "") for name in reversed(arms)])
    return figure


def draw_timing(table: pd.DataFrame, config: Config) -> "Figure":
    """Dense over sparse training steps, by sparsity; above 1 the sparse one is faster."""
    figure, (axes,) = _subplots(1, width=6.8, height=3.6)
    shown = {
        "sparse": ("this book's kernels", BLUE, "o"),
        "torch_sparse": ("torch.sparse (MKL)", GREEN, "^"),
        "masked": ("dense with a mask", GREY, "s"),
    }
    places = [1 - s for s in config.layer_sparsities]
    for method, (name, shade, mark) in shown.items():
        samples = [
            np.log(values(table, method, "dense_over", sparsity=s, size=config.layer))
            for s in config.layer_sparsities
        ]
        mean, low, high = np.exp(np.array([_interval(sample) for sample in samples])).T
        axes.plot(places, mean, color=shade, marker=mark, label=name)
        axes.fill_between(places, low, high, color=shade, alpha=0.15, lw=0)
    axes.axhline(1, color=BLACK, lw=1, label="dense")
    axes.set(xscale="log", yscale="log", xlabel="sparsity", ylabel="time of a dense step over it")
    axes.invert_xaxis()
    axes.set_xticks(places, [f"{s:.0%}" for s in config.layer_sparsities])
    ticks = (0.1, 0.2, 0.5, 1, 2, 5, 10)
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.legend()
    return figure
