"""Figures of the chapter, drawn from the tables."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sparsebook.attention.patterns import pattern_mask
from sparsebook.attention.sparse_frontier import PREFILL
from sparsebook.data.sequence_tasks import TASKS
from sparsebook.experiments.sparse_frontier import runs
from sparsebook.experiments.sparse_frontier.scales import QWEN, Config
from sparsebook.experiments.sparse_frontier.skills import SIX, Scores, front_of
from sparsebook.experiments.sparse_frontier.verdicts import (
    CACHE_ENDS,
    DECODE_METHODS,
    FIFTH,
    HIGH,
    LABELS,
    PREFILL_METHODS,
    TENTH,
    decode_mean,
    per_text,
)
from sparsebook.plotting import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILLION, color, marker

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MODEL_COLORS = dict(zip(QWEN, (BLUE, GREEN, ORANGE, VERMILLION), strict=True))
BATCH_COLORS = {1: BLUE, 8: ORANGE, 64: VERMILLION}
PANELS = {
    "prefill": (*PREFILL_METHODS, "streaming", "random"),
    "decode": (*DECODE_METHODS, "tova", "streaming", "random"),
}


def _subplots(rows: int, columns: int, width: float = 8.0, height: float = 3.6, **more: Any) -> Any:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **more
    )
    return figure, axes


def _lengths(axes: "Axes", lengths: Any) -> None:
    """A logarithmic axis of lengths, every one written out."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(list(lengths)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda n, _: f"{n / 1024:.0f}k" if n >= 1024 else f"{n:.0f}")
    )


# Costs ---------------------------------------------------------------------------------------------------


def draw_prefill_costs(costs: pd.DataFrame) -> "Figure":
    """The paper's Figure 12: attention's share of the prefill FLOPs, and what a fifth of the scores saves."""
    figure, ((left, right),) = _subplots(1, 2)
    own = costs[costs.phase == "prefill"]
    for name in QWEN:
        wide = own[own.method == name].pivot_table(index="n_tokens", columns="metric", values="value")
        left.plot(wide.index, 100 * wide.share, color=MODEL_COLORS[name], label=name)
    mean = own.pivot_table(index="n_tokens", columns="metric", values="value")
    right.plot(mean.index, mean.gain, color=BLUE, marker="o", label="Eq. 3")
    shrunk = 1 / (1 - 0.8 * mean.share)
    right.plot(mean.index, shrunk, color=ORANGE, ls="--", marker="s", label="if projections shrank too")
    printed = {"color": PURPLE, "marker": "*", "s": 90, "zorder": 5, "label": "printed"}
    left.scatter(list(runs.SHARES), list(runs.SHARES.values()), **printed)
    right.scatter(list(runs.GAINS), list(runs.GAINS.values()), **printed)
    left.set(ylabel="attention, % of FLOPs", title="Share of attention", ylim=(0, 100))
    right.set(ylabel="times fewer FLOPs", title="Gain at a fifth of the scores", ylim=(1, 3))
    for axes in (left, right):
        _lengths(axes, runs.COST_LENGTHS)
        axes.set_xlabel("tokens")
        axes.legend()
    return figure


def draw_decode_costs(costs: pd.DataFrame) -> "Figure":
    """The paper's Figure 13: the share of keys and values in a decoding step's reads, and the gain."""
    figure, ((left, right),) = _subplots(1, 2)
    own = costs[(costs.phase == "decode") & costs.n_tokens.isin(runs.COST_LENGTHS)]
    for batch, shade in BATCH_COLORS.items():
        for weights, style in (("grouped", "-"), ("printed", ":")):
            shares = [100 * decode_mean(costs, "share", batch, n, weights) for n in runs.COST_LENGTHS]
            label = f"batch {batch}" if weights == "grouped" else None
            left.plot(runs.COST_LENGTHS, shares, style, color=shade, label=label)
        left.scatter(CACHE_ENDS, runs.CACHE_SHARES[batch], color=PURPLE, marker="*", s=90, zorder=5)
    left.scatter([], [], color=PURPLE, marker="*", s=90, label="printed")
    left.plot([], [], ":", color=GREY, label="with 4d² as printed")
    gains = own[(own.metric == "gain") & (own.batch == 64) & (own.projections == "grouped")]
    for name in QWEN:
        one = gains[gains.method == name]
        right.plot(one.n_tokens, one.value, color=MODEL_COLORS[name], label=name)
    mean = gains.groupby("n_tokens")["value"].mean()
    right.plot(mean.index, mean, color="#222222", ls="--", label="mean")
    right.scatter(CACHE_ENDS, runs.CACHE_GAINS, color=PURPLE, marker="*", s=90, zorder=5, label="printed")
    left.set(ylabel="keys and values, % of reads", title="Share of the cache", ylim=(0, 100))
    right.set(ylabel="times fewer reads", title="Gain at a fifth, batch 64", ylim=(1, 5))
    for axes in (left, right):
        _lengths(axes, runs.COST_LENGTHS)
        axes.set_xlabel("tokens")
    right.legend(fontsize=8)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    return figure


# Patterns on one text ------------------------------------------------------------------------------------


def draw_patterns(config: Config, knobs: pd.DataFrame) -> "Figure":
    """One head's attention on the live text, and what each prefilling method computes of it."""
    import torch

    n = config.lengths[0]
    heads = config.reader().read(config.live, n).heads
    layer = max(heads) if len(heads) < 3 else sorted(heads)[1]
    q, k, _ = heads[layer]
    fitted = runs.knobs_of(knobs, n)
    figure, axes = _subplots(1, 4, width=8.4, height=2.7, sharex=True, sharey=True)
    logits = (q[0, 0] @ k[0, 0].T) / q.shape[3] ** 0.5
    future = torch.ones(n, n, dtype=torch.bool).triu(1)
    weights = logits.masked_fill(future, -torch.inf).softmax(-1)
    _picture(axes[0, 0], _coarse(weights.sqrt()), "attention (root)", "cividis")
    for place, cls in enumerate(PREFILL[:3], start=1):
        method = cls(config.windows_for(n))
        knob = fitted.get((method.name, FIFTH))
        if knob is not None:
            mask = pattern_mask(method.pattern(q, k, **knob), n)
            _picture(axes[0, place], _coarse(mask[0, 0].float()), LABELS[method.name], "Greys")
    axes[0, 0].set_ylabel("query")
    for one in axes[0]:
        one.set_xlabel("key")
    return figure


def _coarse(square: Any, side: int = 128) -> np.ndarray:
    """The largest value of every tile, so that single lines stay visible."""
    n = square.shape[0]
    tile = max(1, n // side)
    cut = square[: n // tile * tile, : n // tile * tile]
    return cut.reshape(n // tile, tile, n // tile, tile).amax((1, 3)).numpy()


def _picture(axes: "Axes", values: np.ndarray, title: str, colours: str) -> None:
    axes.imshow(values, cmap=colours, interpolation="nearest", aspect="equal", vmin=0)
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)


# Text ----------------------------------------------------------------------------------------------------


def _band(axes: "Axes", x: Any, wide: pd.DataFrame, method: str, **more: Any) -> None:
    """Mean over the texts with its 95 % interval."""
    from sparsebook.evaluation.statistics import t_interval

    interval = t_interval(wide.to_numpy().T)
    options = {"color": color(method), "marker": marker(method), "label": LABELS[method]} | more
    axes.plot(x, wide.mean(), **options)
    axes.fill_between(x, interval.low, interval.high, color=options["color"], alpha=0.15, lw=0)


def draw_recall(table: pd.DataFrame, n_tokens: int | None = None) -> "Figure":
    """Attention mass held against the density computed, on real text."""
    n = int(table.n_tokens.max()) if n_tokens is None else n_tokens
    figure, axes = _subplots(1, 2, sharey=True)
    for one, (phase, methods) in zip(axes[0], PANELS.items(), strict=True):
        for method in methods:
            own = table[(table.phase == phase) & (table.method == method) & (table.n_tokens == n)]
            recall = own[own.metric == "recall"].pivot_table(index="seed", columns="sparsity", values="value")
            share = own[own.metric == "density"].pivot_table(index="seed", columns="sparsity", values="value")
            if recall.shape[1] > 1:
                _band(one, share.mean(), recall, method, ls=":" if method == "random" else "-")
        one.set(xlabel="density computed", title={"prefill": "Prefilling", "decode": "Decoding"}[phase])
        one.set_xscale("log")
        one.set_xticks([0.05, 0.1, 0.2, 0.5], ["0.05", "0.1", "0.2", "0.5"])
        one.minorticks_off()
        one.set_xlim(0.8 * (1 - table.sparsity.max()), 0.65)
        one.legend(fontsize=8, loc="lower right")
    axes[0, 0].set(ylabel="attention mass held", ylim=(None, 1.0))
    return figure


def draw_likelihood(added: pd.DataFrame) -> "Figure":
    """Loss added by every method at the longest inputs: mean over the texts with its 95 % interval."""
    from sparsebook.evaluation.statistics import t_interval

    figure, axes = _subplots(1, 2, height=3.0)
    for one, (phase, methods) in zip(axes[0], PANELS.items(), strict=True):
        own = added[added.phase == phase]
        names = [m for m in methods if m != "random" and (own.method == m).any()]
        for place, method in enumerate(names):
            part = own[(own.method == method) & (own.sparsity >= HIGH[0])]
            wide = part.pivot_table(index="seed", columns="sparsity", values="value")
            for sparsity, filled in zip(wide.columns, (False, True), strict=False):
                interval = t_interval(wide[sparsity].to_numpy())
                at = place + (-0.12 if filled else 0.12)
                one.plot([interval.low, interval.high], [at, at], color=color(method), lw=1.5)
                face = color(method) if filled else "white"
                one.plot(wide[sparsity].mean(), at, marker(method), color=color(method), markerfacecolor=face)
        one.axvline(0, color="#222222", lw=1)
        one.locator_params(axis="x", nbins=5)
        one.set_yticks(range(len(names)), [LABELS[name] for name in names])
        one.invert_yaxis()
        one.set(
            xlabel="loss added, nats per token", title={"prefill": "Prefilling", "decode": "Decoding"}[phase]
        )
    for sparsity, face in zip(HIGH, ("white", GREY), strict=True):
        axes[0, 1].plot([], [], "o", color=GREY, markerfacecolor=face, label=f"sparsity {sparsity}")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return figure


def draw_lengths(recall: pd.DataFrame, likelihood: pd.DataFrame) -> "Figure":
    """After the paper's Figure 3: what a fifth of the budget loses, against the length of the input."""
    figure, ((left, right),) = _subplots(1, 2)
    lengths = sorted(map(int, recall.n_tokens.unique()))
    dense = likelihood[likelihood.method == "dense"].pivot_table(
        index="seed", columns="n_tokens", values="value"
    )
    missing, added = [], []
    for phase, method in SIX:
        style = {"color": color(method), "marker": marker(method), "ls": "-" if phase == "prefill" else "--"}
        held = {n: per_text(recall, "recall", method, phase, n, [FIFTH]) for n in lengths}
        missing.append(1 - pd.DataFrame(held))
        loss = {
            n: per_text(likelihood, "loss", method, phase, n, [FIFTH]) - dense[n] for n in map(int, dense)
        }
        added.append(pd.DataFrame(loss))
        left.plot(lengths, missing[-1].mean(), label=LABELS[method], **style)
        right.plot(list(loss), added[-1].mean(), **style)
    for axes, tables in ((left, missing), (right, added)):
        mean = sum(tables[1:], tables[0]) / len(tables)
        _band(axes, list(mean), mean, "dense", color="#222222", marker="", lw=2.5, label="mean of the six")
    left.set(ylabel="attention mass left out", title="A fifth of the pairs")
    right.set(ylabel="loss added, nats per token", title="The same in likelihood")
    for axes, known in ((left, lengths), (right, list(dense.columns))):
        _lengths(axes, known)
        axes.set_xlabel("tokens")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return figure


def draw_ablation(table: pd.DataFrame) -> "Figure":
    """Attention mass held while one parameter moves, the paper's choice marked."""
    names = {
        "block": ("Block-Sparse:\nblock", 16, "block_sparse"),
        "page": ("Quest:\npage", 16, "quest"),
        "window": ("SnapKV:\nwindow, × paper's", 1, "snapkv"),
        "pool": ("SnapKV:\npool", 21, "snapkv"),
        "floor": ("FlexPrefill:\nfloor, × paper's", 1, "flexprefill"),
    }
    figure, axes = _subplots(1, 5, width=8.6, height=2.9)
    recall = table[table.metric == "recall"]
    for one, (knob, (title, chosen, method)) in zip(axes[0], names.items(), strict=True):
        wide = recall[recall.method == knob].pivot_table(index="seed", columns="level", values="value")
        if wide.empty:
            continue
        place = np.arange(wide.shape[1])
        _band(one, place, wide, method)
        if chosen in wide:
            one.axvline(list(wide.columns).index(chosen), color=PURPLE, lw=1, ls=":")
        one.set_xticks(place, [f"{level:g}" for level in wide.columns])
        one.set_title(title, fontsize=8, weight="normal")
        one.tick_params(labelsize=8)
    axes[0, 0].set_ylabel("attention mass held")
    return figure


# Skills --------------------------------------------------------------------------------------------------


def draw_isocost(table: pd.DataFrame) -> "Figure":
    """The paper's Figure 1: score against cost, every size and sparsity, and the Pareto line."""
    from matplotlib.ticker import NullFormatter

    scores = Scores(table)
    figure, axes = _subplots(1, 2, height=4.1, sharey=True)
    shades = dict(zip(scores.widths, (BLUE, ORANGE, VERMILLION), strict=False))
    cells = ["width", "method", "sparsity"]
    for one, phase in zip(axes[0], ("prefill", "decode"), strict=True):
        mean = scores.configurations(phase).groupby(cells)[["score", "cost"]].mean().reset_index()
        for (width, method), own in mean.groupby(["width", "method"]):
            look = {"s": 100, "marker": "*", "zorder": 5} if method == "dense" else {"marker": marker(method)}
            one.scatter(own.cost, own.score, color=shades[width], edgecolor="#222222", lw=0.4, **look)
        front = front_of(mean)
        one.plot(front.cost, front.score, color="#222222", lw=1, zorder=0)
        what = {"prefill": "FLOPs of prefilling", "decode": "elements read a step"}[phase]
        one.set(xscale="log", xlabel=what, title={"prefill": "Prefilling", "decode": "Decoding"}[phase])
        one.xaxis.set_minor_formatter(NullFormatter())
    axes[0, 0].set(ylabel="score, mean over the skills", ylim=(0, 1.03))
    entry = axes[0, 0].scatter
    for width in scores.widths:
        entry([], [], color=shades[width], label=f"width {width}")
    entry([], [], s=100, color="white", marker="*", edgecolor="#222222", label="dense")
    for _, method in SIX:
        entry([], [], color="white", marker=marker(method), edgecolor="#222222", label=LABELS[method])
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    return figure


def draw_skills(table: pd.DataFrame) -> "Figure":
    """The paper's Figure 2: score against sparsity, skill by skill, largest model, all lengths."""
    scores = Scores(table)
    figure, axes = _subplots(2, len(TASKS), width=8.6, height=5.6, sharex=True, sharey=True)
    widest = scores.score[scores.score.width == scores.widest]
    for row, (phase, methods) in zip(axes, PANELS.items(), strict=True):
        for one, task in zip(row, TASKS, strict=True):
            own = widest[widest.task == task]
            for method in methods:
                part = own[(own.phase == phase) & (own.method == method)]
                wide = part.pivot_table(index="seed", columns="sparsity", values="value")
                if len(wide):
                    style = {"color": color(method), "marker": marker(method), "label": LABELS[method]}
                    one.plot(wide.columns, wide.mean(), ls=":" if method == "random" else "-", **style)
                    one.fill_between(
                        wide.columns, wide.min(), wide.max(), color=color(method), alpha=0.12, lw=0
                    )
            one.axhline(own[own.method == "dense"]["value"].mean(), color="#222222", lw=1)
            one.set_title(f"{task}, {'prefilling' if phase == 'prefill' else 'decoding'}", fontsize=9)
        row[0].set(ylabel="score", ylim=(0, 1.04))
    for one in axes[-1]:
        one.set_xlabel("sparsity")
        one.set_xticks([0.5, 0.67, 0.8, 0.9], ["0.5", "0.67", "0.8", "0.9"])
    handles = {
        label: handle
        for one in axes[:, 0]
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, fontsize=8)
    return figure


def draw_budgets(table: pd.DataFrame) -> "Figure":
    """The paper's Figures 3 and 21: relative error against budget per length, loss against model size."""
    scores = Scores(table)
    figure, ((left, right),) = _subplots(1, 2)
    sparsities = sorted(s for s in table.sparsity.unique() if s > 0)
    lengths = sorted(map(int, table.n_tokens.unique()))
    losses = {s: scores.loss_by_length(s) for s in sparsities}
    for place, (n, shade) in enumerate(zip(lengths, (BLUE, ORANGE, VERMILLION), strict=False)):
        own = pd.DataFrame({1 / (1 - s): losses[s][:, place] for s in sparsities})
        _band(left, list(own), own, "dense", color=shade, marker="o", label=f"{n} tokens")
    left.set(xscale="log", xlabel="1 / budget", ylabel="relative error", title="By length")
    left.set_xticks([2, 3, 5, 10], ["2", "3", "5", "10"])
    left.minorticks_off()
    for task, shade in zip(TASKS, (GREEN, VERMILLION, BLUE), strict=True):
        known = [width for width in scores.widths if len(scores.runs([task], [width])) > 1]
        lost = {
            width: scores.absolute(task, TENTH, width, scores.complete([task], TENTH, [width])).mean(axis=1)
            for width in known
        }
        wide = pd.DataFrame(lost).dropna()
        spots = [scores.widths.index(width) for width in known]
        _band(right, spots, wide, "dense", color=shade, marker="s", label=task)
    right.set_xticks(range(len(scores.widths)), [str(w) for w in scores.widths])
    right.set(xlabel="width of the model", ylabel="score lost at a tenth", title="By size")
    for axes in (left, right):
        axes.set_ylim(0, None)
        axes.legend(fontsize=8)
    return figure
