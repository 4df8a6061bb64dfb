"""Figures of the chapter, drawn from the tables."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sparsebook.experiments.attention_kernels.inputs import random_blocks, random_columns
from sparsebook.kernels.block_attention import SpanIndex, vertical_slash_index
from sparsebook.kernels.block_attention.layout import block_spans
from sparsebook.plotting import color, marker

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS = {
    "dense": "dense (SDPA)",
    "flex": "FlexAttention, compiled",
    "gather": "gather blocks, SDPA",
    "block_sparse": "this kernel",
    "paged": "pages, this kernel",
    "inner products": "this kernel's products,\none tile in the first cache",
    "large product": "large matrix product (MKL)",
    "small products": "many products of\n128 × 64 and 64 × 128 (MKL)",
}
IDEAL = "dense × density"


def _subplots(n: int, width: float = 6.8, height: float = 3.4, **more: Any) -> "tuple[Figure, list[Axes]]":
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, n, figsize=(width, height), layout="constrained", squeeze=False, **more)
    return figure, list(axes[0])


def _written_out(*axes: Any, subs: tuple[float, ...] = (1.0, 2.0, 5.0)) -> None:
    """Logarithmic axes with ticks that are written as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for axis in axes:
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def _legend_below(figure: "Figure", axes: "Axes", columns: int) -> None:
    handles, names = axes.get_legend_handles_labels()
    figure.legend(
        handles, [LABELS.get(name, name) for name in names], loc="outside lower center", ncol=columns
    )


def draw_masks(tokens: int = 256) -> "Figure":
    """What the layouts can say: five small masks, queries downwards, keys to the right."""
    figure, axes = _subplots(5, height=1.9)
    for axis, (name, mask) in zip(axes, _example_masks(tokens).items(), strict=True):
        axis.imshow(mask, cmap="Blues", vmin=0, vmax=1.4, interpolation="nearest", aspect="auto")
        axis.set_title(name, fontsize=8.5, fontweight="normal")
        axis.set(xticks=[], yticks=[])
        axis.grid(visible=False)
    axes[0].set_ylabel("query")
    axes[2].set_xlabel("key")
    return figure


def _example_masks(tokens: int) -> dict[str, Tensor]:
    blocks = random_blocks(1, tokens, 0.4, block=tokens // 8, causal=True)
    lists = (blocks.kv_num_blocks, blocks.kv_indices, blocks.kv_num_blocks * 0, blocks.kv_indices[..., :0])
    start = (torch.arange(16) * (tokens // 16) - tokens // 8).clamp(min=tokens // 32)
    window = torch.stack([start, torch.arange(1, 17) * (tokens // 16)], -1)
    first = torch.tensor([0, tokens // 32]).expand(16, 2)
    stripes = random_columns(1, tokens, tokens // 4, 0.12, seed=3)
    vertical, slash = (3, 60, 61, 130), (0, 1, 2, 40, 150)  # of 256 tokens
    lines = [torch.tensor([[[n * tokens // 256 for n in at]]]) for at in (vertical, slash)]
    indices = {
        "blocks": SpanIndex.from_spans(block_spans(lists, tokens // 8, tokens), tokens // 8),
        "spans": SpanIndex.from_spans(torch.stack([first, window], 1)[None, None], tokens // 16),
        "stripes": stripes,
        "vertical, slash": vertical_slash_index(lines[0], lines[1], tokens, block_size=8),
    }
    masks = {name: index.dense_mask(tokens, tokens, causal=True)[0, 0] for name, index in indices.items()}
    pages = torch.zeros(tokens, dtype=torch.bool)
    for page in (0, 3, 4, 9, 15):
        pages[page * tokens // 16 : (page + 1) * tokens // 16] = True
    newest = torch.zeros(tokens, tokens)
    newest[-tokens // 12 :] = pages.float()
    return {name: mask.float() for name, mask in masks.items()} | {"pages (decoding)": newest}


def draw_limit(table: pd.DataFrame) -> "Figure":
    """Rates that bound the kernel and those that it and its rivals reach, on one thread and on all."""
    figure, (axes,) = _subplots(1, height=3.3)
    rates = table[table.metric == "rate"].pivot_table(index="method", columns="threads", values="value") / 1e9
    order = ["inner products", "block_sparse", "dense", "large product", "small products"]
    place = np.arange(len(order))[::-1]
    height = 0.8 / len(rates.columns)
    for number, (threads, column) in enumerate(rates.items()):
        at = place + 0.4 - height * (number + 0.5)
        bars = axes.barh(
            at, column[order], height * 0.9, color=color("block_sparse"), alpha=1 if threads > 1 else 0.45,
            label=f"{threads} thread{'s' if threads > 1 else ''}",
        )  # fmt: skip
        axes.bar_label(bars, fmt="{:.0f}", padding=3, fontsize=8.5)
    names = [LABELS[name] + (", all blocks" if name == "block_sparse" else "") for name in order]
    axes.set_yticks(place, names)
    axes.set_xlabel("10⁹ FLOP/s (softmax's exponentials not counted)")
    axes.grid(visible=False, axis="y")
    axes.legend(loc="lower right")
    return figure


def draw_density(table: pd.DataFrame) -> "Figure":
    """Time over dense attention's against density, causal and not; the ideal is the diagonal."""
    figure, axes = _subplots(2, height=3.9, sharey=True)
    for axis, causal in zip(axes, (False, True), strict=True):
        part = table[(table.metric == "over_dense") & (table.causal == causal)]
        ends = np.array([part.density.min(), 1.0])
        axis.plot(ends, ends, color=color("dense"), linestyle="--", linewidth=1.2, label=IDEAL)
        for method in ("gather", "flex", "block_sparse"):
            line = part[part.method == method].sort_values("density")
            if len(line):
                axis.plot(line.density, line.value, color=color(method), marker=marker(method), label=method)
        axis.axhline(1.0, color=color("dense"), linewidth=1)
        axis.set(xscale="log", yscale="log", title="causal" if causal else "not causal", xlabel="density")
        _written_out(axis.xaxis, axis.yaxis)
    axes[0].set_ylabel("time over dense attention's")
    _legend_below(figure, axes[0], 2)
    return figure


def draw_shapes(table: pd.DataFrame) -> "Figure":
    """Ours over the ideal: by head dimension in two types, and by number of tokens."""
    figure, axes = _subplots(2, height=3.3, sharey=True)
    part = table[(table.metric == "over_ideal") & (table.method == "block_sparse")]
    for dtype, style in (("float32", "-"), ("bfloat16", "--")):
        line = part[(part.series == "dim") & (part.dtype == dtype)].sort_values("dim")
        axes[0].plot(line.dim, line.value, style, color=color("block_sparse"), marker="o", label=dtype)
    line = part[part.series == "length"].sort_values("tokens")
    axes[1].plot(line.tokens, line.value, color=color("block_sparse"), marker="o", label="float32")
    for axis, name in zip(axes, ("head dimension", "tokens"), strict=True):
        axis.axhline(1.0, color=color("dense"), linestyle="--", linewidth=1.2, label=IDEAL)
        axis.set(xscale="log", xlabel=name)
        _written_out(axis.xaxis)
        values = line.tokens if name == "tokens" else part[part.series == "dim"].dim.unique()
        axis.set_xticks(list(values), [f"{value:,}" for value in values], rotation=30)
        axis.legend()
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel(f"time over {IDEAL}")
    return figure


def draw_layouts(table: pd.DataFrame) -> "Figure":
    """The same number of keys in different layouts: time over the ideal."""
    figure, (axes,) = _subplots(1, height=3.0)
    part = table[(table.metric == "over_ideal") & (table.method != "dense")].iloc[::-1]
    own = [color("gather" if name == "gathered copy" else "block_sparse") for name in part.method]
    bars = axes.barh(part.method, part.value, color=own)
    axes.bar_label(bars, fmt="{:.2f}", padding=3, fontsize=8.5)
    axes.axvline(1.0, color=color("dense"), linestyle="--", linewidth=1.2)
    axes.set_xlabel(f"time over {IDEAL} (dashed)")
    axes.grid(visible=False, axis="y")
    return figure


def draw_decode(table: pd.DataFrame) -> "Figure":
    """Time of one decoding step against the length of the cache, dense and over a share of its pages."""
    figure, axes = _subplots(2, height=3.9, sharey=True)
    part = table[table.metric == "seconds"]
    shares = sorted(part.density.unique(), reverse=True)
    for axis, dtype in zip(axes, ("float32", "bfloat16"), strict=True):
        of_type = part[part.dtype == dtype]
        dense = of_type[of_type.method == "dense"].sort_values("tokens")
        axis.plot(dense.tokens, dense.value * 1e3, color=color("dense"), marker="o", label="dense")
        for number, share in enumerate(shares):
            line = of_type[(of_type.method == "paged") & (of_type.density == share)].sort_values("tokens")
            name = "all pages" if share == 1 else f"1/{1 / share:.0f} of them"
            style = ("-", "--", ":")[number % 3] + "s"
            axis.plot(line.tokens, line.value * 1e3, style, color=color("quest"), label=name)
        axis.set(xscale="log", yscale="log", title=dtype, xlabel="tokens in the cache")
        _written_out(axis.xaxis, axis.yaxis)
        axis.set_xticks(list(dense.tokens), [f"{value:,}" for value in dense.tokens])
    axes[0].set_ylabel("milliseconds per token")
    _legend_below(figure, axes[0], 2)
    return figure
