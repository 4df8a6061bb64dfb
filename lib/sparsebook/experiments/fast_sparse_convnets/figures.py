"""The chapter's figures, each drawn from tidy tables."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sparsebook.experiments.fast_sparse_convnets import speed
from sparsebook.experiments.fast_sparse_convnets.scales import Config
from sparsebook.experiments.fast_sparse_convnets.training import Arm
from sparsebook.experiments.fast_sparse_convnets.verdicts import (
    PRODUCT,
    Tables,
    accuracies,
    latency,
    product_ratio,
    seconds,
)
from sparsebook.plotting import BLACK, BLUE, GREEN, GREY, ORANGE, PALETTE, SKY, VERMILLION

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _subplots(columns: int, width: float = 6.8, height: float = 3.4, **kwargs: Any) -> tuple[Any, list[Any]]:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, columns, figsize=(width, height), squeeze=False, **kwargs)
    return figure, list(axes[0])


def _by_shape(times: pd.DataFrame) -> pd.DataFrame:
    """Median seconds over processes, [pixels, outputs, inputs, sparsity; method]."""
    return seconds(times, "products", PRODUCT).groupby(list(PRODUCT)).median()


def _name(shape: Any) -> str:
    pixels, outputs, inputs = (int(number) for number in shape)
    return f"{pixels:,} px, {inputs} to {outputs}"


def draw_rates(times: pd.DataFrame, config: Config) -> "Figure":
    """The kernel figure: effective rate against sparsity, a line a shape; dotted the dense product."""
    figure, (left, right) = _subplots(2, height=4.6, sharey=True)
    wide = _by_shape(times)
    for axes, small in ((left, False), (right, True)):
        own = [shape for shape in config.v1_shapes if (shape[0] < 4 * speed.MANY) == small]
        for shape, shade in zip(own, PALETTE, strict=False):
            part = wide.loc[shape]
            work = 2e-9 * float(np.prod(shape))
            axes.plot(part.index, work / part["ours"], marker="o", color=shade, label=_name(shape))
            axes.axhline(work / part["dense"].median(), color=shade, ls=":", lw=1.2)
        axes.set(xlabel="sparsity", yscale="log")
        axes.set_title("196 and 49 pixels" if small else "784 pixels and more")
        axes.legend(loc="upper left", fontsize=7.5)
    left.set_ylabel("GFLOP/s, zeros counted")
    left.plot([], [], color=GREY, ls=":", label="dense (MKL)")
    left.legend(loc="upper left", fontsize=7.5)
    return figure


def draw_speedups(times: pd.DataFrame, config: Config) -> "Figure":
    """Speed-up over the dense product by shape and sparsity."""
    wide = _by_shape(times)
    ratio = (wide["dense"] / wide["ours"]).unstack("sparsity")
    shapes = sorted({*config.v1_shapes, *config.v2_shapes}, key=lambda s: (-s[0], s[2] * s[1]))
    grid = ratio.loc[shapes]
    figure, (axes,) = _subplots(1, height=1.2 + 0.24 * len(grid))
    picture = axes.imshow(np.log2(grid), aspect="auto", cmap="RdBu", vmin=-4, vmax=4)
    for row in range(grid.shape[0]):
        for column in range(grid.shape[1]):
            value = grid.iat[row, column]
            shade = "white" if abs(np.log2(value)) > 2.6 else BLACK
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=8, color=shade)
    axes.set_yticks(range(len(grid)), [_name(shape) for shape in grid.index], fontsize=8)
    axes.set_xticks(range(grid.shape[1]), [f"{s:.0%}" for s in grid.columns])
    axes.set_xlabel("sparsity")
    axes.grid(False)
    bar = figure.colorbar(picture, ax=axes, label="dense time over ours", ticks=range(-4, 5, 2))
    bar.ax.set_yticklabels([f"{2.0**k:g}" for k in range(-4, 5, 2)])
    return figure


def draw_rivals(times: pd.DataFrame, config: Config) -> "Figure":
    """Rivals' times over ours against sparsity, large images and small ones."""
    figure, panels = _subplots(2, height=3.3, sharey=True)
    names = {
        "dense": ("dense (MKL)", BLACK),
        "mkl": ("sparse, MKL", VERMILLION),
        "scipy": ("sparse, SciPy", ORANGE),
    }
    for axes, (title, low, high) in zip(
        panels, (("196 pixels and more", speed.MANY, 10**9), ("49 pixels", 0, speed.FEW)), strict=True
    ):
        for method, (label, shade) in names.items():
            found = [product_ratio(times, method, "ours", (s,), low, high) for s in config.sparsities]
            axes.plot(config.sparsities, [np.exp(np.log(v).mean()) for v in found], color=shade, label=label)
            ends = [(v.min(), v.max()) for v in found]
            axes.fill_between(config.sparsities, *np.array(ends).T, color=shade, alpha=0.2, lw=0)
        axes.axhline(1, color=BLUE, lw=1.4)
        axes.set(xlabel="sparsity", yscale="log", title=title)
        axes.set_yticks([0.5, 1, 2, 4, 8, 16], ["0.5", "1", "2", "4", "8", "16"])
        axes.minorticks_off()
    panels[0].set_ylabel("time over ours")
    panels[0].legend()
    return figure


def draw_reasons(times: pd.DataFrame, config: Config) -> "Figure":
    """The three reasons: time for a weight against the size of the strip; other orders over ours."""
    figure, (left, right) = _subplots(2, height=3.4, width_ratios=(1.2, 1))
    cached = seconds(times, "cache", ("share",))["ours"].unstack("share")
    each = 1e9 * cached / (config.cache_rows * config.cache_entries)
    left.plot(each.columns, each.median(), marker="o", color=BLUE)
    left.fill_between(each.columns, each.min(), each.max(), color=BLUE, alpha=0.2, lw=0)
    left.axvline(1, color=GREY, ls=":", label="first-level cache")
    left.set(xscale="log", xlabel="strip over first-level cache", ylabel="ns for a weight", title="Cache")
    left.set_xscale("log", base=2)
    left.set_ylim(0)
    left.legend(loc="lower right")
    wide = seconds(times, "orders", ("pixels", "outputs", "inputs"))
    wide = wide.groupby(["pixels", "outputs", "inputs"]).median()
    rows = np.arange(len(wide))
    for shift, (over, under, name, shade) in enumerate(
        (
            ("pixel by pixel", "ours", "pixel by pixel", VERMILLION),
            ("rows outside", "strips outside", "channels outside", SKY),
        )
    ):
        right.barh(rows + 0.38 * shift, wide[over] / wide[under], height=0.36, color=shade, label=name)
    right.axvline(1, color=BLACK, lw=1)
    right.set_yticks(rows + 0.19, [_name(shape) for shape in wide.index], fontsize=8)
    right.set(xlabel="time over the paper's order", title="Layout and order", xscale="log")
    right.set_xticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    right.minorticks_off()
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    return figure


def draw_frontier(found: Tables, config: Config) -> "Figure":
    """The paper's main figure in small: accuracy against measured latency, and against weights."""
    figure, panels = _subplots(2, height=4.2, sharey=True)
    groups = (
        ("dense", [Arm(width) for width in config.widths], BLACK, "o"),
        (f"{config.sparsity:.0%} zeros", [Arm(w, config.sparsity) for w in config.sparse_widths], BLUE, "s"),
        *(
            (
                f"{config.sparsity:.0%}, blocks of {b}",
                [Arm(config.block_width, config.sparsity, b)],
                shade,
                "D",
            )
            for b, shade in ((2, ORANGE), (4, VERMILLION))
        ),
    )
    table = found["accuracy"]
    for label, arms, shade, sign in groups:
        means = [accuracies(table, arm).mean() for arm in arms]
        errors = [2 * accuracies(table, arm).sem() for arm in arms]
        for axes, costs in (
            (panels[0], [1e3 * latency(found["times"], arm, config.images) for arm in arms]),
            (panels[1], [accuracies(table, arm, "weights").mean() for arm in arms]),
        ):
            axes.errorbar(costs, means, errors, marker=sign, color=shade, label=label)
    panels[0].set(xscale="log", xlabel=f"ms for {config.images} images, one thread", ylabel="accuracy")
    panels[1].set(xscale="log", xlabel="1 x 1 weights that are not zero")
    panels[0].set_xticks([2, 3, 5, 10], ["2", "3", "5", "10"])
    panels[1].set_xticks([1e4, 3e4, 1e5, 3e5], ["10,000", "30,000", "100,000", "300,000"], fontsize=8)
    for axes in panels:
        axes.minorticks_off()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    return figure


def draw_parts(times: pd.DataFrame, config: Config) -> "Figure":
    """EfficientNet-Lite0: where the time goes, dense and pruned; PyTorch's ways beside it."""
    figure, (axes,) = _subplots(1, height=3.4)
    parts = 1e3 * seconds(times, "parts", ("sparsity",)).groupby("sparsity").median()
    whole = 1e3 * seconds(times, "network", ()).median()
    rows = ["torch", "torch, folded", "channels last, folded"]
    names = ["PyTorch as published", "PyTorch, folded", "PyTorch, channels last"]
    axes.barh(range(len(rows)), whole[rows], color=GREY, label="PyTorch, whole")
    start = np.zeros(len(parts))
    places = len(rows) + np.arange(len(parts))
    for kind, shade in (("1 x 1", BLUE), ("depthwise", GREEN), ("other", ORANGE)):
        axes.barh(places, parts[kind], left=start, color=shade, label=kind)
        start += parts[kind].to_numpy()
    names += ["dense products" if s == 0 else f"{s:.0%} zeros" for s in parts.index]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("ms for an image, one thread")
    axes.legend(fontsize=8)
    return figure


def draw_blocks(found: Tables, config: Config) -> "Figure":
    """What blocks gain in time, by pixels, and what they cost in accuracy."""
    figure, (left, right) = _subplots(2, height=3.4)
    pixels = sorted({shape[0] for shape in (*config.v1_shapes, *config.v2_shapes)})
    for block, shade in ((2, ORANGE), (4, VERMILLION)):
        ratios = [
            product_ratio(found["times"], "ours", f"blocks of {block}", (config.sparsity,), n, n)
            for n in pixels
        ]
        left.plot(pixels, [np.median(v) for v in ratios], marker="D", color=shade, label=f"blocks of {block}")
        left.fill_between(
            pixels, [v.min() for v in ratios], [v.max() for v in ratios], color=shade, alpha=0.2, lw=0
        )
    left.axhline(1, color=BLACK, lw=1)
    left.set(xscale="log", xlabel="pixels", ylabel="unstructured time over blocks'", title="Time")
    left.set_xticks(pixels, [f"{n:,}" for n in pixels], fontsize=8)
    left.minorticks_off()
    left.legend()
    for place, (block, shade) in enumerate(((1, BLUE), (2, ORANGE), (4, VERMILLION))):
        values = accuracies(found["accuracy"], Arm(config.block_width, config.sparsity, block))
        right.plot([place] * len(values), values, marker="_", ls="", color=GREY)
        right.errorbar(place, values.mean(), 2 * values.sem(), marker="D", color=shade)
    right.set_xticks(range(3), ["none", "of 2", "of 4"])
    right.set(xlabel="blocks", ylabel="accuracy", title="Accuracy", xlim=(-0.5, 2.5))
    return figure
