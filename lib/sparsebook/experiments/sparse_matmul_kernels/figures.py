"""Figures of the chapter, drawn from the tables."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sparsebook.plotting import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS = {
    "ours": "ours", "dense": "dense (torch.mm, MKL)", "conv2d": "dense (conv2d, oneDNN)",
    "torch.sparse": "torch.sparse (MKL)", "SciPy": "SciPy (one thread)",
}  # fmt: skip
COLORS = {"dense": BLACK, "conv2d": GREY, "torch.sparse": VERMILLION, "SciPy": ORANGE, "ours": BLUE}
MARKERS = {"dense": "o", "conv2d": "s", "torch.sparse": "^", "SciPy": "v"}
DENSE = 196
"""Pixels from which a layer counts in the means; below, at 7 x 7, the call itself rules."""


def _panels(n: int, height: float, **more: Any) -> "tuple[Figure, list[Axes]]":
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, n, figsize=(6.8, height), layout="constrained", squeeze=False, **more)
    return figure, list(axes[0])


def threads_title(n: int) -> str:
    return f"{n} thread{'s' if n > 1 else ''}"


def _written_out(axis: Any, values: Any) -> None:
    """A logarithmic axis with plain numbers at these places."""
    axis.axis.minorticks_off() if hasattr(axis, "axis") else None
    axis.set_ticks(list(values), [f"{value:g}" for value in values], minor=False)
    axis.set_ticks([], minor=True)


def _legend_below(figure: "Figure", axes: "Axes", columns: int) -> None:
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=columns)


def mean_ratios(speed: pd.DataFrame, method: str, *, small: bool = False) -> pd.Series:
    """Geometric mean of a method's time over ours, by threads and sparsity, over the layers that count."""
    part = speed[(speed.method == method) & (speed.metric == "over_ours")]
    part = part[(part.pixels < DENSE) == small]
    logs = part.assign(value=np.log(part.value)).groupby(["threads", "sparsity"])["value"].mean()
    return logs.map(np.exp)


def draw_roofline(limits: pd.DataFrame, speed: pd.DataFrame, sparsity: float) -> "Figure":
    """Useful operations per second of every layer against its operations per byte, under the roofs."""
    threads = sorted(limits.threads.unique().tolist())
    figure, axes = _panels(len(threads), 4.2, sharey=True)
    rate = limits.set_index(["threads", "method"])["value"] / 1e9
    groups = ((12544, PURPLE), (3136, BLUE), (784, GREEN), (196, ORANGE), (49, VERMILLION))
    for axis, n in zip(axes, threads, strict=True):
        part = speed[(speed.threads == n) & (speed.method == "ours") & (speed.metric == "seconds")]
        part = part[part.sparsity == sparsity]
        intensity = part.flop / part.bytes
        ends = np.array([intensity.min() / 1.5, intensity.max() * 1.5])
        axis.plot(ends, np.minimum(ends * rate[n, "4 MiB"], rate[n, "registers"]), color=BLACK, lw=1.4,
                  label="third cache, registers")  # fmt: skip
        for level, style, name in (("16 KiB", "--", "first cache"), ("256 KiB", ":", "second cache")):
            axis.axhline(rate[n, level] / 2, color=GREY, ls=style, lw=1.4, label=f"reads from the {name}")
        axis.axhline(rate[n, "MKL"], color=SKY, lw=1, label="dense product (MKL)")
        for pixels, color in groups:
            at = part.pixels == pixels
            if at.any():
                axis.plot(intensity[at], part.flop[at] / part.value[at] / 1e9, "o", ms=4.5, color=color,
                          label=f"{pixels:,} pixels")  # fmt: skip
        axis.set(xscale="log", yscale="log", xlabel="useful operations per byte", title=threads_title(n))
        _written_out(axis.xaxis, (0.5, 1, 2, 5, 10, 20))
        _written_out(axis.yaxis, (5, 10, 20, 50, 100, 200, 500))
        axis.set_xlim(*ends)
    axes[0].set_ylabel("10⁹ useful operations per second")
    _legend_below(figure, axes[0], 3)
    return figure


def draw_speedup(speed: pd.DataFrame) -> "Figure":
    """Every other method's time over ours against sparsity, in the mean over the layers that count."""
    threads = sorted(speed.threads.unique().tolist())
    figure, axes = _panels(len(threads), 3.9, sharey=True)
    for axis, n in zip(axes, threads, strict=True):
        for method, color in COLORS.items():
            if method != "ours":
                line = mean_ratios(speed, method)[n]
                axis.plot(line.index * 100, line, color=color, marker=MARKERS[method], label=LABELS[method])
        axis.axhline(1.0, color=BLUE, lw=1.6, label="ours")
        axis.set(yscale="log", xlabel="zeros, per cent", title=threads_title(n))
        axis.set_xticks([value * 100 for value in sorted(speed.sparsity.unique())])
        _written_out(axis.yaxis, (0.5, 1, 2, 4, 8, 16, 32))
    axes[0].set_ylabel("time over ours")
    _legend_below(figure, axes[0], 3)
    return figure


def draw_layers(speed: pd.DataFrame, method: str = "dense") -> "Figure":
    """Speed-up of every layer at every sparsity, as a map."""
    threads = sorted(speed.threads.unique().tolist())
    part = speed[(speed.method == method) & (speed.metric == "over_ours")]
    names = part.apply(lambda row: f"{row.pixels} · {row['rows']} × {row['columns']}", axis=1)
    part = part.assign(layer=names)
    order = part.drop_duplicates("layer").sort_values(["pixels", "rows", "columns"], ascending=False).layer
    figure, axes = _panels(len(threads), 1.4 + 0.21 * len(order), sharey=True)
    for axis, n in zip(axes, threads, strict=True):
        grid = (
            part[part.threads == n].pivot_table(index="layer", columns="sparsity", values="value").loc[order]
        )
        image = axis.imshow(np.log2(grid), cmap="PuOr_r", vmin=-3.5, vmax=3.5, aspect="auto")
        for i, row in enumerate(grid.to_numpy()):
            for j, value in enumerate(row):
                strong = abs(np.log2(value)) > 2.2
                axis.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=7.5,
                          color="white" if strong else "black")  # fmt: skip
        axis.set_xticks(range(grid.shape[1]), [f"{value:.0%}" for value in grid.columns])
        axis.set_title(threads_title(n))
        axis.grid(False)
        del image
    axes[0].set_yticks(range(len(order)), order, fontsize=8)
    axes[0].set_ylabel("pixels · rows × columns")
    return figure


def draw_strips(strips: pd.DataFrame) -> "Figure":
    """Useful rate of one thread against the width of a strip, in place and from a tile."""
    shapes = strips[["pixels", "rows", "columns"]].drop_duplicates().to_numpy().tolist()
    figure, axes = _panels(len(shapes), 3.3, sharey=True)
    for axis, (pixels, rows, columns) in zip(axes, shapes, strict=True):
        part = strips[(strips.pixels == pixels) & (strips["rows"] == rows) & (strips.metric == "seconds")]
        for method, color, sign in (("in place", VERMILLION, "o"), ("tile", BLUE, "s")):
            line = part[part.method == method].sort_values("registers")
            label = "read where it lies" if method == "in place" else "copied together first"
            axis.plot(line.registers, line.flop / line.value / 1e9, color=color, marker=sign, label=label)
        axis.set(xscale="log", title=f"{pixels:,} · {rows} × {columns}", xlabel="registers", ylim=(0, None))
        _written_out(axis.xaxis, (1, 2, 4, 8, 16))
    axes[0].set_ylabel("10⁹ useful operations\nper second")
    _legend_below(figure, axes[0], 2)
    return figure


def draw_forms(forms: pd.DataFrame, threads: int) -> "Figure":
    """Time of blocks and types over that of single entries in float32, layer by layer."""
    figure, (axis,) = _panels(1, 3.3)
    part = forms[(forms.threads == threads) & (forms.metric == "over_float32, 1 x 1")]
    shapes = part[["pixels", "rows", "columns"]].drop_duplicates().to_numpy().tolist()
    styles = {
        "float32, 1 x 1": (BLUE, ""), "float32, 2 x 1": (GREEN, ""), "float32, 4 x 1": (SKY, ""),
        "bfloat16, 1 x 1": (BLUE, "//"), "bfloat16, 2 x 1": (GREEN, "//"), "bfloat16, 4 x 1": (SKY, "//"),
    }  # fmt: skip
    for number, (method, (color, hatch)) in enumerate(styles.items()):
        values = [
            float(part[(part.method == method) & (part.pixels == shape[0])].value.iloc[0]) for shape in shapes
        ]
        at = np.arange(len(shapes)) + (number - 2.5) * 0.14
        axis.bar(
            at, values, 0.13, color=color, hatch=hatch, edgecolor="white", label=method.replace(" x ", " × ")
        )
    axis.axhline(1.0, color=BLACK, lw=1)
    axis.set_xticks(range(len(shapes)), [f"{p:,} · {r} × {c}" for p, r, c in shapes])
    axis.set_ylabel("time over float32, 1 × 1")
    axis.grid(False, axis="x")
    _legend_below(figure, axis, 3)
    return figure
