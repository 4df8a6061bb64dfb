"""Figures of the chapter, drawn from the tables."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
from torch import Tensor

from sparsebook.experiments.selection_kernels.memory import METHODS, least_bytes
from sparsebook.experiments.selection_kernels.scales import Config
from sparsebook.experiments.selection_kernels.speed import TASKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS = {
    "ours": "ours",
    "torch.topk": "torch.topk",
    "embedding_bag": "F.embedding_bag, weighted",
    "dense codes": "dense codes, autograd",
    "limit": "limit",
}


def digits(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 99.5 else f"{value:.3g}"


def draw_allocations(found: Mapping[str, Tensor]) -> "Figure":
    """The affinities, and beside them what the three rules take."""
    import matplotlib.pyplot as plt

    titles = {"affinities": "affinities", "rows": "k of each row", "columns": "m of each column",
              "matrix": "M of all"}  # fmt: skip
    figure, axes = plt.subplots(2, 2, figsize=(6.8, 4.2), layout="constrained")
    for axis, (name, x) in zip(axes.flat, found.items(), strict=True):
        axis.imshow(x.numpy(), cmap="cividis" if name == "affinities" else "Blues", aspect="auto")
        taken = "" if name == "affinities" else f", {int(x.sum())} taken"
        axis.set_title(f"{titles[name]}{taken}")
        axis.set(xticks=[], yticks=[], xlabel="features", ylabel="tokens")
        axis.grid(False)
    return figure


def draw_histogram(found: Mapping[str, Any]) -> "Figure":
    """Values of the matrix on a logarithmic count, and the two values that matter."""
    import matplotlib.pyplot as plt

    from sparsebook.plotting import BLUE, GREY, ORANGE, VERMILLION

    figure, axes = plt.subplots(figsize=(6.8, 3.6), layout="constrained")
    edges, counts = found["edges"], found["counts"]
    middle = (edges[1:] + edges[:-1]) / 2
    parts = (
        (middle < found["limit"], GREY, "compared, 64 at a time, and dropped"),
        ((middle >= found["limit"]) & (middle < found["threshold"]), ORANGE, "listed, cut in the end"),
        (middle >= found["threshold"], BLUE, "selected"),
    )
    for which, color, label in parts:
        axes.bar(middle[which], counts[which], width=edges[1] - edges[0], color=color, label=label)
    for name, color in (("limit", ORANGE), ("threshold", BLUE)):
        axes.axvline(found[name], color=VERMILLION if name == "threshold" else color, lw=1.2)
    axes.set(yscale="log", xlabel="value", ylabel="elements of the matrix", ylim=(0.8, None))
    figure.legend(ncols=3, loc="outside lower center")
    return figure


def draw_speed(table: pd.DataFrame) -> "Figure":
    """Milliseconds of each method for each task, every process a point, and the limit as a line."""
    import matplotlib.pyplot as plt

    from sparsebook.plotting import BLACK, BLUE, GREY, ORANGE, VERMILLION

    colors = {"ours": BLUE, "torch.topk": VERMILLION, "embedding_bag": ORANGE, "dense codes": GREY}
    offsets = {"ours": -0.2, "torch.topk": 0.1, "embedding_bag": 0.1, "dense codes": 0.35}
    figure, axes = plt.subplots(figsize=(6.8, 4.4), layout="constrained")
    seconds = table[table.metric == "seconds"]
    for at, task in enumerate(TASKS):
        own = seconds[seconds.task == task]
        limit = own[own.method == "limit"].value.median() * 1e3
        axes.plot(
            [at - 0.42, at + 0.48], [limit, limit], color=BLACK, lw=1.6, label="limit" if at == 0 else None
        )
        for method, color in colors.items():
            times = own[own.method == method].value * 1e3
            if len(times):
                place = at + offsets[method]
                axes.bar(place, times.median(), width=0.24, color=color, alpha=0.85)
                axes.plot([place] * len(times), times, ".", color="#333333", ms=3)
                axes.annotate(digits(times.median()), (place, times.max()), xytext=(0, 3),
                              textcoords="offset points", ha="center", fontsize=8)  # fmt: skip
    handles: list[Any] = [plt.Rectangle((0, 0), 1, 1, color=color) for color in colors.values()]
    handles.append(plt.Line2D([], [], color=BLACK, lw=1.6))
    names = [*(LABELS[name] for name in colors), "limit: the bytes"]
    figure.legend(handles, names, ncols=3, loc="outside lower center")
    low = seconds.value.min() * 1e3
    axes.set(yscale="log", ylabel="milliseconds", xticks=range(len(TASKS)), ylim=(low / 2, None))
    axes.set_xticklabels(["rows", "columns", "uneven\ncolumns", "matrix", "decode,\nboth ways"])
    axes.margins(y=0.35)
    axes.grid(False, axis="x")
    return figure


def draw_sweep(table: pd.DataFrame) -> "Figure":
    """Milliseconds against k."""
    import matplotlib.pyplot as plt

    from sparsebook.plotting import BLACK, BLUE, VERMILLION

    figure, axes = plt.subplots(figsize=(6.8, 3.6), layout="constrained")
    styles = {
        "rows, ours": (BLUE, "o-"), "rows, torch.topk": (VERMILLION, "o-"),
        "matrix, ours": (BLUE, "s--"), "matrix, torch.topk": (VERMILLION, "s--"), "limit": (BLACK, "-"),
    }  # fmt: skip
    median = table.groupby(["method", "k"]).value.median() * 1e3
    for method, (color, style) in styles.items():
        own = median[method]
        axes.plot(own.index, own.values, style, color=color, label=method.replace("limit", "one read"))
    axes.set(xscale="log", yscale="log", xlabel="k", ylabel="milliseconds")
    axes.set_xticks(list(median["limit"].index), [str(k) for k in median["limit"].index])
    axes.minorticks_off()
    figure.legend(ncols=3, loc="outside lower center")
    return figure


PEERS = {
    "matching": {"overcomplete": "overcomplete", "ours": "ours", "Gram given": "ours, Gram matrix given"},
    "orthogonal": {"scikit-learn": "scikit-learn", "Gram form": "ours, Gram form", "ours": "ours"},
    "step": {
        "SAELens, sparse": "SAELens, sparse", "SAELens": "SAELens", "dense codes": "dense codes",
        "ours, BatchTopK": "ours, BatchTopK", "ours": "ours",
    },
}  # fmt: skip
"""Methods of each comparison with a peer, from above, and what they are called."""


def draw_peers(pursuit: pd.DataFrame, training: pd.DataFrame) -> "Figure":
    """Milliseconds of both pursuits and of a training step, every process a point, the limit a line."""
    import matplotlib.pyplot as plt

    titles = {"matching": "matching pursuit", "orthogonal": "orthogonal pursuit, few vectors",
              "step": "training step"}  # fmt: skip
    heights = [len(methods) for methods in PEERS.values()]
    figure, axes = plt.subplots(
        3, 1, figsize=(6.8, 4.6), layout="constrained", gridspec_kw={"height_ratios": heights}
    )
    for axis, (task, title) in zip(axes, titles.items(), strict=True):
        table = training if task == "step" else pursuit
        own = table[(table.metric == "seconds") & (table.task == task)]
        _bars(axis, own, PEERS[task])
        axis.set_title(title)
    axes[-1].set_xlabel("milliseconds (logarithmic; black: the limit)")
    return figure


def _bars(axis: "Axes", seconds: pd.DataFrame, methods: Mapping[str, str]) -> None:
    from sparsebook.plotting import BLACK, BLUE, VERMILLION

    shown = [name for name in methods if name in set(seconds.method)]
    for place, name in enumerate(reversed(shown)):
        times = seconds[seconds.method == name].value * 1e3
        ours = name.startswith(("ours", "Gram"))
        axis.barh(place, times.median(), height=0.62, color=BLUE if ours else VERMILLION, alpha=0.85)
        axis.plot(times, [place] * len(times), ".", color="#333333", ms=3)
        axis.annotate(digits(times.median()), (times.max(), place), xytext=(4, 0),
                      textcoords="offset points", va="center", fontsize=8.5)  # fmt: skip
    limit = seconds[seconds.method == "limit"].value * 1e3
    if len(limit):
        axis.axvline(limit.median(), color=BLACK, lw=1.6)
    axis.set_yticks(range(len(shown)), [methods[name] for name in reversed(shown)])
    low, high = seconds.value.min() * 1e3, seconds.value.max() * 1e3
    axis.set(xscale="log", xlim=(low / 2, high * 2.2))
    axis.grid(False, axis="y")


def draw_memory(table: pd.DataFrame, config: Config) -> "Figure":
    """Peak memory of a decode with its gradients against the number of latents."""
    import matplotlib.pyplot as plt

    from sparsebook.plotting import BLACK, BLUE, GREY, ORANGE, VERMILLION

    figure, axes = plt.subplots(figsize=(6.8, 3.8), layout="constrained")
    columns = sorted(table["columns"].unique().tolist())
    for method, color in zip(METHODS, (BLUE, ORANGE, VERMILLION), strict=True):
        own = table[table.method == method].sort_values("columns")
        axes.plot(own["columns"], own.value / 1e6, "o-", color=color, label=LABELS[method])
    dense = [4 * config.rows * n / 1e6 for n in columns]
    least = [least_bytes(config, n) / 1e6 for n in columns]
    axes.plot(columns, dense, "--", color=GREY, label="one matrix of tokens by latents")
    axes.plot(columns, least, ":", color=BLACK, label="result and gradients alone")
    axes.set(xscale="log", yscale="log", xlabel="latents", ylabel="megabytes beyond the inputs")
    axes.set_xticks(columns, [f"{n:,}" for n in columns])
    axes.minorticks_off()
    figure.legend(ncols=2, loc="outside lower center")
    return figure
