"""Figures of the chapter, drawn from the tables."""

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sparsebook.experiments.seismic.verdicts import chunks_over_clusters, curve, growth_slopes
from sparsebook.plotting import color, draw_front, marker

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS = {
    "seismic": "Seismic (ours)",
    "pyseismic": "pyseismic-lsr",
    "term_at_a_time": "exact, term at a time",
    "maxscore": "exact, MaxScore",
    "impact": "by impact (after IOQP)",
    "bmp": "bmp",
    "hnsw": "HNSW graph (nmslib)",
    "splade_index": "splade-index",
    "pyseismic_scan": "pyseismic-lsr, exact scan",
    "scipy": "SciPy product",
    "fixed_blocks": "chunks, mass summaries",
    "fixed_summaries": "clusters, fixed summaries",
    "fixed_both": "chunks, fixed summaries",
}


def _subplots(n: int = 1, width: float = 6.8, height: float = 3.8) -> "tuple[Figure, list[Axes]]":
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, n, figsize=(width, height), layout="constrained", squeeze=False)
    return figure, list(axes[0])


def _plain_logarithmic(*axes: Any, subs: tuple[float, ...] = (1.0, 2.0, 5.0)) -> None:
    """Ticks at 1, 2 and 5 of every decade, written out; fewer on a narrow axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for axis in axes:
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def _relabel(axes: "Axes", **options: Any) -> None:
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles, [LABELS.get(name, name) for name in names], **options)


def draw_concentration(table: pd.DataFrame) -> "Figure":
    """Cumulative mass against the share of a vector's entries, heaviest first."""
    figure, (axes,) = _subplots()
    styles = {"generator": "-", "generator queries": "--", "bm25": "-", "uniform": ":"}
    names = {
        "generator": "generated documents",
        "generator queries": "generated queries",
        "bm25": "BM25, Wikipedia passages",
        "uniform": "uniform values",
    }
    colors = {"generator": color("seismic"), "generator queries": color("seismic"), "bm25": color("impact"),
              "uniform": color("random")}  # fmt: skip
    mass = table[table.metric == "mass"]
    for method, own in mass.groupby("method", sort=False):
        axes.plot(
            np.append(0, own.share), np.append(0, own.value), styles[method], color=colors[method],
            label=names[method],
        )  # fmt: skip
    axes.plot([0, 1], [0, 1], color="0.8", lw=1, zorder=0)
    axes.set(
        xlabel="share of the entries, heaviest first", ylabel="share of the L1 mass", xlim=(0, 1), ylim=(0, 1)
    )
    axes.legend(loc="lower right")
    return figure


def draw_front_of_methods(table: pd.DataFrame, low: float = 0.80) -> "Figure":
    """Time per query against recall, one thread: the paper's accuracy and latency figure."""
    figure, (axes,) = _subplots(height=4.4)
    front = table[table.experiment == "front"]
    exact = []
    for method, own in front.groupby("method", sort=False):
        wide = own.pivot_table(index=["recipe", "setting"], columns="metric", values="value")
        wide = wide[wide.recall >= low]
        if wide.empty:
            continue
        if len(wide) == 1 or method in ("term_at_a_time", "maxscore"):
            exact.append((method, wide.time.iloc[0]))
            continue
        draw_front(axes, wide.time.tolist(), wide.recall.tolist(), method)
    for method, micro in exact:
        axes.axhline(
            micro, color=color(method), ls="--" if method == "term_at_a_time" else ":", lw=1.4, label=method
        )
    axes.set(yscale="log", xlabel="recall@10 against exact search", ylabel="µs per query, one thread")
    axes.set_xlim(low, 1.002)
    _plain_logarithmic(axes.yaxis)
    _relabel(axes, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def draw_growth(growth: pd.DataFrame) -> "Figure":
    """Time per query against the number of documents; slopes in the legend; the factor beside it."""
    figure, (left, right) = _subplots(2, width=8.0)
    speed = growth[(growth.experiment == "growth_speed") & (growth.metric == "time")]
    for method in ("term_at_a_time", "maxscore", "impact", "seismic"):
        own = speed[speed.method == method]
        if own.empty:
            continue
        wide = own.pivot_table(index="process", columns="n", values="value")
        rise = np.median(growth_slopes(growth, method))
        left.plot(
            wide.columns, wide.median(), marker=marker(method), color=color(method),
            label=f"{LABELS[method]}: slope {rise:.2f}",
        )  # fmt: skip
        left.fill_between(wide.columns, wide.min(), wide.max(), color=color(method), alpha=0.15, lw=0)
    left.set(xscale="log", yscale="log", xlabel="documents", ylabel="µs per query, one thread")
    left.legend(fontsize=8)
    wide = speed.pivot_table(index=["process", "n"], columns="method", values="value")
    for method in ("term_at_a_time", "maxscore", "impact"):
        if method in wide and "seismic" in wide:
            factor = (wide[method] / wide.seismic).unstack("n")
            right.plot(factor.columns, factor.median(), marker=marker(method), color=color(method))
            right.fill_between(
                factor.columns, factor.min(), factor.max(), color=color(method), alpha=0.15, lw=0
            )
    right.axhline(1, color="0.6", lw=1)
    right.set(xscale="log", yscale="log", xlabel="documents", ylabel="times slower than Seismic")
    _plain_logarithmic(left.yaxis, right.yaxis)
    for side in (left, right):
        _plain_logarithmic(side.xaxis)
        side.tick_params(axis="x", rotation=45)
    return figure


def draw_ablation(table: pd.DataFrame) -> "Figure":
    """Documents evaluated against recall for the four combinations, mean curves over collections."""
    figure, (axes,) = _subplots()
    for method in ("seismic", "fixed_blocks", "fixed_summaries", "fixed_both"):
        curves = [curve(own[own.method == method]) for _, own in table.groupby("seed")]
        low, high = max(r[0] for r, _ in curves), min(r[-1] for r, _ in curves)
        grid = np.linspace(max(low, 0.85), high, 30)
        logs = np.array([np.interp(grid, r, np.log(d)) for r, d in curves])
        label = "clusters, mass summaries" if method == "seismic" else LABELS[method]
        style = "--" if method == "fixed_both" else "-"
        axes.plot(grid, np.exp(logs.mean(0)), style, color=color(method), label=label)
        axes.fill_between(
            grid, np.exp(logs.min(0)), np.exp(logs.max(0)), color=color(method), alpha=0.15, lw=0
        )
    axes.set(xlabel="recall@10", ylabel="documents evaluated per query", yscale="log")
    _plain_logarithmic(axes.yaxis)
    axes.legend()
    return figure


def draw_spread(table: pd.DataFrame) -> "Figure":
    """Documents that chunks need over those that clusters need, against the unevenness of the weights."""
    figure, (axes,) = _subplots(height=3.2)
    ratios = chunks_over_clusters(table)
    for collection in ratios:
        axes.plot(ratios.index, ratios[collection], "o", color=color("fixed_blocks"), alpha=0.6)
    middle = np.exp(np.log(ratios).mean(axis=1))
    axes.plot(ratios.index, middle, color=color("fixed_blocks"))
    axes.axhline(1, color="0.6", lw=1)
    axes.annotate("clusters win", (0.98, 0.95), xycoords="axes fraction", ha="right", va="top", color="0.35")
    axes.annotate("chunks win", (0.02, 0.05), xycoords="axes fraction", color="0.35")
    axes.set(
        xlabel="spread of the weights (standard deviation of the logarithm)",
        ylabel="documents: chunks over clusters",
        yscale="log",
    )
    _plain_logarithmic(axes.yaxis)
    return figure


def draw_errors(table: pd.DataFrame) -> "Figure":
    """Recall after each of the three approximations, and the sizes of blocks and of queries' work."""
    figure, (left, middle, right) = _subplots(3, width=9.0, height=3.4)
    steps = table[table.metric == "recall"].pivot_table(index="step", columns="query_cut", values="value")
    order = [
        "lists cut",
        "few lists opened",
        "blocks skipped, h=0.8",
        "blocks skipped, h=0.9",
        "blocks skipped, h=1.0",
    ]
    shades = ("#9ecae1", "#4292c6", "#08519c")
    for shade, cut in zip(shades, steps.columns, strict=False):
        left.plot(steps.loc[order, cut], range(len(order)), "o-", color=shade, label=f"{cut:.0f} lists")
    left.set_yticks(range(len(order)), order)
    left.invert_yaxis()
    lowest = steps.min().min()
    left.set(xlabel="recall@10", xlim=(lowest - 0.6 * (1 - lowest), 1.005))  # room for the legend
    left.legend(loc="lower left")
    for axes, metric, text in (
        (middle, "block_sizes", "documents in a block"),
        (right, "documents_of_queries", "documents per query"),
    ):
        own = table[table.metric == metric]
        axes.stairs(
            own.value, np.append(own.level, own.level.iloc[-1] * 1.2), fill=True, color=color("seismic")
        )
        axes.set(xscale="log", xlabel=text, ylabel="blocks" if metric == "block_sizes" else "queries")
        _plain_logarithmic(axes.xaxis, subs=(1.0,))
    return figure


def draw_sweeps(table: pd.DataFrame) -> "Figure":
    """What lambda, c and alpha buy: recall and documents evaluated."""
    figure, axes = _subplots(3, width=9.0, height=3.4)
    names = {
        "n_postings": "postings per list, λ",
        "centroid_fraction": "blocks per posting, c",
        "summary_energy": "mass kept in a summary, α",
    }
    shades = ("#9ecae1", "#4292c6", "#08519c")
    for ax, (knob, text) in zip(axes, names.items(), strict=True):
        own = table[table.knob == knob]
        for place, (shade, (_, part)) in enumerate(
            zip(shades, own.groupby("setting", sort=False), strict=False)
        ):
            wide = part.pivot_table(index="level", columns="metric", values="value")
            chosen = json.loads(part.setting.iloc[0])
            label = f"cut {chosen['query_cut']}, h = {chosen['heap_factor']}"
            ax.plot(wide.documents, wide.recall, "o-", color=shade, label=label)
            for level, row in wide.iterrows() if place == 0 else ():
                ax.annotate(f"{level:g}", (row.documents, row.recall), fontsize=7, xytext=(3, -8),
                            textcoords="offset points")  # fmt: skip
        ax.set(xlabel="documents evaluated", title=text, xscale="log")
        _plain_logarithmic(ax.xaxis)
    axes[0].set_ylabel("recall@10")
    axes[1].legend(fontsize=8, loc="lower right")
    return figure


def draw_limits(table: pd.DataFrame) -> "Figure":
    """Share of the collection that has to be evaluated for a recall: learned-like, uniform, BM25."""
    figure, (left, right) = _subplots(2, width=8.0)
    names = {"generator": "generator", "uniform": "uniform noise", "bm25": "BM25 on Wikipedia"}
    colors = {"generator": color("seismic"), "uniform": color("random"), "bm25": color("impact")}
    for method, own in table[table.setting.notna()].groupby("method", sort=False):
        wide = own.pivot_table(index="setting", columns="metric", values="value")
        left.scatter(wide.recall, wide.evaluated, s=14, color=colors[method], label=names[method])
        right.scatter(wide.recall, wide.skipped, s=14, color=colors[method])
    left.set(xlabel="recall@10", ylabel="share of the collection evaluated", yscale="log")
    right.set(xlabel="recall@10", ylabel="share of blocks skipped", ylim=(0, 1))
    _plain_logarithmic(left.yaxis)
    left.legend()
    return figure
