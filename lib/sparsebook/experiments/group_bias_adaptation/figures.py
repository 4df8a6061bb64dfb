"""Figures of the chapter, drawn from the tables."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sparsebook.evaluation.statistics import t_interval
from sparsebook.experiments.group_bias_adaptation.runs import CURVE_RATIOS, RIVALS
from sparsebook.experiments.group_bias_adaptation.scales import Config
from sparsebook.experiments.group_bias_adaptation.verdicts import (
    label,
    least_width,
    per_seed,
    resonance_map,
)
from sparsebook.plotting import BLACK, BLUE, GREY, ORANGE, PURPLE, VERMILLION, color, marker

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WORLD_ARMS = ("gba", "topk", "batch_topk", "l1", "jumprelu", "ba", "gba_shift", "gba_wrong", "gba_high")
REAL_ARMS = ("gba", "topk", "batch_topk", "l1", "jumprelu", "ba", "gba_20", "gba_3", "gba_low")


def _subplots(columns: int, width: float = 8.0, height: float = 3.4, **more: Any) -> Any:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, columns, figsize=(width, height), layout="constrained", squeeze=False, **more
    )
    return figure, axes[0]


def _interval(values: Any) -> tuple[float, float, float]:
    """Mean and 95 % interval; without spread both ends are the mean."""
    array = np.asarray(values, dtype=float)
    if len(array) < 2 or np.ptp(array) == 0:
        return float(array.mean()), float(array.mean()), float(array.mean())
    interval = t_interval(array)
    return float(array.mean()), float(interval.low), float(interval.high)


def draw_resonance(table: pd.DataFrame, config: Config) -> "Figure":
    """The paper's heat map: recovery over the dimension and the target, in units of the feature's frequency.

    A ring marks each row's best target, the dashed line p = f.
    """
    figure, axes = _subplots(2, height=3.2, sharey=True)
    dims = [dim for i, dim in enumerate(config.resonance_dims) if i != 1]
    for one, tau in zip(axes, ("0.8", "0.9"), strict=True):
        rates = resonance_map(table, f"frr_{tau}").groupby("dim").mean().loc[dims]
        picture = one.imshow(rates.to_numpy(), vmin=0, vmax=1, aspect="auto", cmap="cividis", origin="lower")
        for row, values in enumerate(rates.to_numpy()):
            for column, value in enumerate(values):
                shade = "white" if value < 0.55 else "black"
                one.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=shade, fontsize=9)
            if values.max() > 0.005:
                best = int(values.argmax())
                one.scatter([best], [row], s=420, facecolors="none", edgecolors=VERMILLION, linewidths=2)
        ratios = list(rates.columns)
        one.axvline(ratios.index(1.0), color="white", ls="--", lw=1)
        one.set_xticks(range(len(ratios)), [f"{ratio:g}" for ratio in ratios])
        one.set_yticks(range(len(dims)), [str(dim) for dim in dims])
        one.set(xlabel="target over frequency, p / f", title=f"features found, τ = {tau}")
        one.grid(False)
    axes[0].set_ylabel("dimensions d")
    figure.colorbar(picture, ax=axes, label="FRR", shrink=0.9)
    return figure


def draw_world(table: pd.DataFrame, config: Config) -> "Figure":
    """The imbalanced world: what every method finds, and TopK over its K."""
    figure, (left, right) = _subplots(2, height=4.0, width_ratios=(1.45, 1))
    for row, name in enumerate(reversed(WORLD_ARMS)):
        for tau, filled in (("0.8", False), ("0.9", True)):
            mean, low, high = _interval(per_seed(table, name, f"frr_{tau}"))
            own = color(name)
            left.plot([low, high], [row, row], color=own, lw=1.5)
            left.plot(mean, row, marker="o", ms=7, color=own, mfc=own if filled else "white", ls="")
    left.set_yticks(range(len(WORLD_ARMS)), [label(name) for name in reversed(WORLD_ARMS)])
    left.set(xlim=(-0.03, 1.03), xlabel="share of features found (filled τ = 0.9, open 0.8)", title="Methods")
    for tau, style in (("0.8", "--"), ("0.9", "-")):
        found = [_interval(per_seed(table, f"topk_{k}", f"frr_{tau}")) for k in config.topk]
        mean, low, high = np.array(found).T
        right.plot(config.topk, mean, style, marker="s", color=color("topk"), label=f"τ = {tau}")
        right.fill_between(config.topk, low, high, color=color("topk"), alpha=0.2, lw=0)
    paper = [k for k in (20, 30, 50) if k in config.topk]
    printed = {20: 0.984, 30: 0.242, 50: 0.234}
    right.scatter(
        paper, [printed[k] for k in paper], marker="*", s=90, color=PURPLE, zorder=5, label="paper, 0.9"
    )
    right.set(xlabel="K", ylim=(-0.03, 1.03), title="TopK")
    right.legend()
    return figure


def draw_trace(trace: pd.DataFrame) -> "Figure":
    """How often the groups' neurons fire while they learn, against their targets."""
    figure, (axes,) = _subplots(1, width=6.8, height=3.6)
    groups = sorted(trace.group.unique())
    for place, group in enumerate(groups):
        own = trace[trace.group == group]
        shade = _shades(len(groups))[place]
        axes.plot(own.step, own.share.clip(lower=1e-5), color=shade)
        axes.axhline(float(own.target.iloc[0]), color=shade, ls=":", lw=1)
    axes.plot([], [], color=GREY, label="mean share of a group's neurons")
    axes.plot([], [], color=GREY, ls=":", label="its target")
    axes.set(yscale="log", ylim=(None, 0.6), xlabel="training step", ylabel="share of tokens")
    axes.legend(loc="upper right")
    return figure


def _shades(n: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["cividis"](value) for value in np.linspace(0, 0.85, n)]


def draw_curves(table: pd.DataFrame, config: Config) -> "Figure":
    """Recovery of one tuning world while it is learned; dashed is where the other worlds are judged."""
    figure, (left, right) = _subplots(2, height=3.6, sharey=True)
    own = table[table.metric == "frr_0.9"]
    for name in ("gba", *RIVALS):
        curve = own[own.method == name]
        left.plot(curve.step, curve["value"], color=color(name), label=label(name))
    left.axvline(config.world_steps, color=GREY, ls="--", lw=1)
    single = table[table.method == "ba"]
    for ratio, shade in zip(CURVE_RATIOS, (BLUE, ORANGE, VERMILLION), strict=True):
        for metric, style in (("frr_0.8", ":"), ("frr_0.9", "-")):
            curve = single[(single.ratio == ratio) & (single.metric == metric)]
            named = f"p = {ratio:g} f" if metric == "frr_0.9" else None
            right.plot(curve.step, curve["value"], style, color=shade, label=named)
    right.axvline(config.resonance_steps, color=GREY, ls="--", lw=1)
    left.set(xlabel="training step", ylabel="features found", ylim=(-0.03, 1.03), title="Imbalanced world")
    right.set(xlabel="training step", title=f"Resonance, d = {config.resonance_dims[2]} (dotted: τ = 0.8)")
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    return figure


def draw_frontier(table: pd.DataFrame) -> "Figure":
    """The paper's frontier: error on held-out activations against the share of active neurons."""
    figure, (axes,) = _subplots(1, width=6.8, height=3.9)
    for name in REAL_ARMS:
        error, low, high = _interval(per_seed(table, name, "nmse"))
        active = per_seed(table, name, "l0").mean()
        drawn = {"marker": marker(name), "ms": 7, "color": color(name), "label": label(name), "ls": ""}
        axes.errorbar(active, error, [[error - low], [high - error]], **drawn)
    axes.set(xlabel="active neurons a token", ylabel="normalised error, held out")
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    return figure


def draw_consistency(table: pd.DataFrame) -> "Figure":
    """Agreement between two seeds' dictionaries: all neurons, and the most active tenth."""
    figure, axes = _subplots(2, height=2.9, sharex=True, sharey=True)
    methods = ("l1", "topk", "gba")
    for one, (metric, title) in zip(
        axes, (("mcs", "all neurons that fire"), ("mcs_top", "the most active tenth")), strict=True
    ):
        for row, name in enumerate(methods):
            values = per_seed(table, name, metric)
            mean, low, high = _interval(values)
            one.plot([low, high], [row, row], color=color(name))
            one.plot(values, [row] * len(values), marker="|", color=GREY, ls="", alpha=0.8)
            one.plot(mean, row, marker="o", ms=8, color=color(name))
        one.set(title=title, xlabel="share with a twin (cosine above 0.9)")
        one.set_yticks(range(len(methods)), [label(name) for name in methods])
        one.set_ylim(-0.5, len(methods) - 0.5)
    return figure


def draw_width(table: pd.DataFrame, config: Config) -> "Figure":
    """The limit of small scales: recovery over width, and the least width over s beside the theorem's."""
    figure, (left, right) = _subplots(2, height=3.4)
    own = table[(table.method == "small_scales") & (table.metric == "frr_0.8")]
    shades = (BLUE, ORANGE, VERMILLION)
    for s, shade in zip(config.width_sparsities, shades, strict=True):
        even = own[(own.s == s) & (own.imbalance == 1)]
        _widths(left, even, shade, "-", f"s = {s}")
    _widths(left, own[own.imbalance != 1], BLACK, "--", "s = 2, uneven")
    left.set(xscale="log", xlabel="neurons M", ylabel="FRR(0.8)", ylim=(-0.03, 1.03), title="Features found")
    left.set_xscale("log", base=2)
    left.legend(fontsize=8)
    n = config.width_features
    least = [_interval(least_width(table, s, 1.0)) for s in config.width_sparsities]
    mean, low, high = np.array(least).T
    spread = [mean - np.maximum(low, 1), high - mean]
    right.errorbar(
        config.width_sparsities, mean, spread, marker="o", color=BLUE, label="least width measured"
    )
    bounds = [
        (s, m)
        for s, m in zip(config.width_sparsities, mean, strict=True)
        if least_width(table, s, 1.0).max() > config.width_most
    ]
    if bounds:
        shown = {"marker": "^", "s": 90, "facecolors": "white", "edgecolors": BLUE, "zorder": 5}
        right.scatter(*zip(*bounds, strict=True), label="or more", **shown)
    theorem = [n * (n / s) ** s for s in config.width_sparsities]
    right.plot(
        config.width_sparsities,
        theorem,
        marker="*",
        ms=10,
        color=PURPLE,
        ls="--",
        label="n p^-s of the theorem",
    )
    right.set(xlabel="features a token, s", ylabel="neurons", yscale="log", title="Least width for 90 %")
    right.set_xticks(config.width_sparsities)
    right.legend(fontsize=8)
    return figure


def _widths(axes: "Axes", table: pd.DataFrame, shade: str, style: str, name: str) -> None:
    found = table.groupby("latents")["value"]
    points = [(width, *_interval(values)) for width, values in found]
    width, mean, low, high = np.array(points).T
    axes.plot(width, mean, style, color=shade, label=name)
    axes.fill_between(width, low, high, color=shade, alpha=0.15, lw=0)
