"""Figures of the chapter, drawn from the tables."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sparsebook.experiments.matching_pursuit_sae.arms import ARMS
from sparsebook.experiments.matching_pursuit_sae.real import stores_title
from sparsebook.experiments.matching_pursuit_sae.scales import Config
from sparsebook.experiments.matching_pursuit_sae.toy import METHODS, NORMS
from sparsebook.experiments.matching_pursuit_sae.verdicts import stores_of, sweep_of, values
from sparsebook.experiments.matching_pursuit_sae.worlds import SUPERPOSED
from sparsebook.plotting import GREY, color, marker

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS = {
    "mp": "matching pursuit",
    "relu": "ReLU",
    "topk": "TopK",
    "batch_topk": "BatchTopK",
    "matryoshka": "Matryoshka, as published",
    "matryoshka, sorted whole": "Matryoshka, repaired",
}
PRINTED = {
    "1, 1/4": {"mp": 0.0011, "matryoshka": 0.22, "relu": 0.47, "batch_topk": 0.42},
    "0.5, 1/400": {"mp": 0.073, "matryoshka": 0.048, "relu": 0.70, "batch_topk": 0.50},
    "0.1, 1/40": {"mp": 0.0043},
}
"""The paper's Table 1; of the last cell the middle of what it prints for several deviations."""


def _subplots(
    rows: int, columns: int, width: float | int = 8.0, height: float | int = 3.6, **more: Any
) -> Any:
    import matplotlib.pyplot as plt

    return plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **more)


def _below(figure: "Figure", axes: "Axes", columns: int = 3) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns)


def _powers(axis: Any, ticks: Iterable[Any]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


# The toy -------------------------------------------------------------------------------------------------


def draw_curves(toy: pd.DataFrame) -> "Figure":
    """The paper's Figure 4: both errors of the dictionary against the siblings' cosine, with quartiles."""
    figure, axes = _subplots(2, 2, height=5.8, sharex=True)
    panels = {
        "hierarchical_mse": "Hierarchical MSE",
        "flat_mse": "Flat MSE",
        "exact": "Exact runs",
        "l0": "Latents a sample",
    }
    for ax, (metric, title) in zip(axes.flat, panels.items(), strict=True):
        for method in METHODS:
            _quartiles(ax, toy, method, metric)
        ax.set_title(title)
    for ax in axes[0]:
        ax.set_yscale("log")
        ax.set_ylim(bottom=1e-6)
        ax.set_ylabel("squared cosine")
    axes[1, 0].set(ylabel="share of the runs", xlabel="cosine of siblings", ylim=(-0.03, 1.03))
    axes[1, 1].set(ylabel="mean number", xlabel="cosine of siblings", ylim=(0, None))
    axes[1, 1].axhline(1.36, color=GREY, ls=":", lw=1.2, label="active concepts")
    _below(figure, axes[1, 1])
    return figure


def _quartiles(ax: "Axes", toy: pd.DataFrame, method: str, metric: str) -> None:
    own = toy[(toy.method == method) & (toy.metric == metric)]
    wide = own.pivot_table(index="seed", columns="cosine", values="value")
    middle = wide.mean() if metric in ("exact", "l0") else wide.median()
    low, high = (wide.quantile(q).clip(lower=1e-7) for q in (0.25, 0.75))
    ax.plot(
        wide.columns, middle.clip(lower=1e-7 if metric.endswith("mse") else 0), color=color(method),
        marker=marker(method), label=LABELS[method],
    )  # fmt: skip
    if metric.endswith("mse"):
        ax.fill_between(wide.columns, low, high, color=color(method), alpha=0.18, lw=0)


def draw_matrices(matrices: pd.DataFrame) -> "Figure":
    """Cosines of learned atoms with true directions, one run."""
    figure, axes = _subplots(2, 3, height=5.9, sharex=True, sharey=True)
    for ax, method in zip(axes.flat, METHODS, strict=False):
        own = matrices[matrices.method == method]
        table = own.pivot_table(index="atom", columns="concept", values="value")
        picture = ax.imshow(table, cmap="RdBu_r", vmin=-1, vmax=1)
        ax.set_title(LABELS[method], fontsize=10)
        ax.grid(False)
    axes[1, 2].set_axis_off()
    figure.colorbar(picture, cax=axes[1, 2].inset_axes((0.1, 0.05, 0.08, 0.9)), label="cosine")
    axes[0, 0].set(xticks=range(0, 20, 5), yticks=range(0, 20, 5))
    for ax in axes[:, 0]:
        ax.set_ylabel("atom matched to concept")
    for ax in axes[1, :2]:
        ax.set_xlabel("true direction of concept")
    axes[0, 2].set_xlabel("true direction of concept")
    axes[0, 2].tick_params(labelbottom=True)
    return figure


def draw_absorption(table: pd.DataFrame) -> "Figure":
    """The paper's Table 1 as dots, the printed numbers as stars."""
    cells = list(dict.fromkeys(table.cell))
    figure, axes = _subplots(1, len(cells), height=3.2, sharey=True)
    methods = METHODS[:4]
    for ax, cell in zip(axes[0], cells, strict=True):
        for place, method in enumerate(methods):
            own = values(table, method, "absorption", cell=cell)
            ax.scatter(own, _spread(place, len(own)), color=color(method), s=18, alpha=0.8)
            printed = PRINTED.get(cell, {}).get(method)
            if printed is not None:
                ax.scatter([printed], [place], marker="*", s=130, color=color("paper"), zorder=5)
        ax.axvline(0, color=GREY, lw=0.8)
        ax.set(title=f"children N({cell.split(', ')[0]}, {cell.split(', ')[1]})", xlabel="cosine with parent")
    axes[0, 0].set_yticks(range(len(methods)), [LABELS[method].split(",")[0] for method in methods])
    axes[0, 0].invert_yaxis()
    axes[0, -1].scatter([], [], marker="*", s=110, color=color("paper"), label="printed in the paper")
    _below(figure, axes[0, -1])
    return figure


def _spread(place: float | int, n: int) -> np.ndarray:
    return place + np.linspace(-0.22, 0.22, n) if n > 1 else np.array([place])


def draw_norms(norms: pd.DataFrame) -> "Figure":
    """The lowest matched cosine of every run for four ways to treat the length of the atoms."""
    cosines = sorted(set(norms.cosine))
    figure, axes = _subplots(1, len(cosines), height=2.9, sharey=True, sharex=True)
    for ax, cosine in zip(axes[0], cosines, strict=True):
        for place, norm in enumerate(NORMS):
            own = values(norms, norm, "lowest_cosine", cosine=cosine)
            shade = color("mp") if norm == "free" else color("relu")
            ax.scatter(own, _spread(place, len(own)), color=shade, s=18, alpha=0.8)
        ax.axvline(0.99, color=GREY, ls=":", lw=1.2)
        ax.set(title=f"siblings at {cosine:g}", xlabel="lowest cosine of a run")
    axes[0, 0].set_yticks(range(len(NORMS)), NORMS)
    axes[0, 0].invert_yaxis()
    return figure


def draw_fixed(fixed: pd.DataFrame) -> "Figure":
    """Magnitudes that vary against fixed ones: the lowest matched cosine, and children merged."""
    thresholds = sorted(set(fixed.threshold))
    arms = [(threshold, method) for threshold in thresholds for method in ("varied", "fixed")]
    figure, axes = _subplots(1, 2, height=2.9, sharey=True)
    panels = {"lowest_cosine": "lowest cosine of a run", "merged": "share of children merged"}
    for ax, (metric, label) in zip(axes[0], panels.items(), strict=True):
        for place, (threshold, method) in enumerate(arms):
            own = values(fixed, method, metric, threshold=threshold)
            shade = color("mp" if method == "varied" else "relu")
            ax.scatter(own, _spread(place, len(own)), color=shade, s=18, alpha=0.8)
        ax.set_xlabel(label)
    names = [f"{method}, threshold {threshold:g}" for threshold, method in arms]
    axes[0, 0].set_yticks(range(len(arms)), names)
    axes[0, 0].set_ylim(len(arms) - 0.5, -0.5)
    return figure


# Activations ---------------------------------------------------------------------------------------------


def draw_explained(real: pd.DataFrame) -> "Figure":
    """The paper's Figure 5: R2 on held-out tokens against the latents that are really used."""
    names = stores_of(real)
    figure, axes = _subplots(1, len(names), height=3.5)
    for ax, store in zip(axes[0], names, strict=True):
        for method in ARMS:
            own = real[(real.store == store) & (real.method == method)]
            wide = own.pivot_table(index=["k", "seed"], columns="metric", values="value")
            mean, spread = wide.groupby("k").mean(), wide.groupby("k").std().fillna(0)
            ax.errorbar(
                mean["l0"], mean["r2"], yerr=spread["r2"], xerr=spread["l0"], color=color(method),
                marker=marker(method), label=LABELS[method],
            )  # fmt: skip
        ax.set(title=stores_title(store), xlabel="latents a token", xscale="log")
        _powers(ax.xaxis, [4, 8, 16, 32])
    axes[0, 0].set_ylabel("R² on held-out rows")
    _below(figure, axes[0, 0], 4)
    return figure


def draw_coherence(real: pd.DataFrame, config: Config) -> "Figure":
    """Effective rank against latents a token; coherence of dictionaries and of what is selected together."""
    names = stores_of(real)
    figure, axes = _subplots(2, len(names), height=5.6)
    for column, store in enumerate(names):
        top, bottom = axes[0, column], axes[1, column]
        for method in ARMS:
            own = real[(real.store == store) & (real.method == method) & (real.metric == "effective_rank")]
            wide = own.pivot_table(index="seed", columns="k", values="value")
            top.errorbar(
                wide.columns, wide.mean(), yerr=wide.std().fillna(0), color=color(method),
                marker=marker(method), label=LABELS[method],
            )  # fmt: skip
            whole, own_atoms = (
                values(real, method, metric, store=store, k=config.k_shown)
                for metric in ("babel", "active_babel")
            )
            bottom.scatter(whole, own_atoms, color=color(method), marker=marker(method), s=30)
        top.set(title=stores_title(store), xlabel="steps, or latents a token aimed at", xscale="log")
        _powers(top.xaxis, sorted(set(real[real.store == store].k)))
        bottom.set(xlabel=f"Babel function of the dictionary at {config.k_shown}")
    axes[0, 0].set_ylabel("effective rank of the codes")
    axes[1, 0].set_ylabel("mean |cosine| of a\ntoken's own atoms, at most")
    _below(figure, axes[0, 0], 4)
    return figure


def draw_sweep(sweep: pd.DataFrame, config: Config) -> "Figure":
    """The paper's Figure 8: error of one trained model against the latents allowed at inference."""
    names = stores_of(sweep)
    figure, axes = _subplots(1, len(names), height=3.5)
    for ax, store in zip(axes[0], names, strict=True):
        for method in ARMS:
            wide = sweep_of(sweep, method, store)
            ax.plot(
                wide.columns, wide.mean(), color=color(method), marker=marker(method), label=LABELS[method]
            )
            ax.fill_between(wide.columns, wide.min(), wide.max(), color=color(method), alpha=0.18, lw=0)
        ax.axvline(config.k_shown, color=GREY, ls=":", lw=1.2)
        ax.set(title=stores_title(store), xlabel="latents allowed at inference", xscale="log", yscale="log")
        _powers(ax.xaxis, wide.columns)
        low, high = ax.get_ylim()
        _powers(ax.yaxis, [t for t in (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1, 2, 5) if low <= t <= high])
    axes[0, 0].set_ylabel("normalised error")
    _below(figure, axes[0, 0], 4)
    return figure


# Made-up worlds ------------------------------------------------------------------------------------------


def draw_modalities(table: pd.DataFrame) -> "Figure":
    """Histograms of the modality score over the features in use."""
    figure, axes = _subplots(1, len(ARMS), width=8.4, height=2.7, sharey=True)
    for ax, method in zip(axes[0], ARMS, strict=True):
        own = table[(table.method == method) & (table.metric == "histogram")].sort_values("level")
        ax.bar(own.level + 0.05, own.value, width=0.095, color=color(method))
        ax.set(title=LABELS[method], xlabel="modality score", xticks=(0, 0.5, 1))
    axes[0, 0].set_ylabel("share of the features")
    return figure


def draw_superposed(table: pd.DataFrame) -> "Figure":
    """Explained variance against true features found."""
    figure, ((ax,),) = _subplots(1, 1, width=5.2, height=3.3)
    for method in SUPERPOSED:
        found, explained = (values(table, method, metric) for metric in ("recovered", "r2"))
        ax.scatter(found, explained, color=color(method), marker=marker(method), s=34, label=LABELS[method])
    ax.set(xlabel="true features found (cosine of at least 0.9)", ylabel="R² on fresh samples")
    ax.legend()
    return figure
