"""Figures of the chapter; those after a figure of the paper say so."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from sparsebook.experiments.mutual_choice_sae.measures import Law
from sparsebook.experiments.mutual_choice_sae.scales import ARMS, Config
from sparsebook.experiments.mutual_choice_sae.verdicts import FEATURE, LABELS, MUTUAL, RIVAL, per_seed
from sparsebook.features.mutual_choice_sae import allocate, fit_zipf, zipf_allocation
from sparsebook.plotting import GREY, color, marker

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOR = {
    "topk": "topk",
    "relu": "relu",
    "mutual": "mutual_choice",
    "uniform": "feature_choice_uniform",
    "zipf": "feature_choice",
}
_FILL = {"": "none", "aux_k": "left", "aux_zipf": "full"}
"""How a marker is filled: no auxiliary loss, aux_k, aux_zipf."""


def _style(arm: str) -> dict[str, Any]:
    selection, _, auxiliary = arm.partition("+")
    method = _COLOR[selection]
    return {"color": color(method), "marker": marker(method), "fillstyle": _FILL[auxiliary]}


def _subplots(columns: int, width: float = 6.8, height: float = 3.4, **more: Any) -> "tuple[Figure, Any]":
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, columns, figsize=(width, height), squeeze=False, **more)
    return figure, axes[0]


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    from sparsebook.evaluation.statistics import t_interval

    if len(values) < 2:
        return float(values[0]), float(values[0]), float(values[0])
    found = t_interval(values)
    return float(values.mean()), float(found.low), float(found.high)


def draw_allocation(seed: int = 0) -> "Figure":
    """After the paper's Figure 1: the same affinities and the same budget, shared out by four rules."""
    generator = torch.Generator().manual_seed(seed)
    law = (torch.arange(1, 17) + 1.0) ** -0.5
    hardness = torch.linspace(0.5, 1.8, 12)[:, None]
    affinity = hardness * law * 4 * torch.rand(12, 16, generator=generator)
    panels = {
        "TopK": allocate(affinity, 36, "token"),
        "Feature, uniform": allocate(affinity, 36, "feature"),
        "Feature, Zipf": allocate(affinity, 36, "feature", zipf_allocation(16, 36, 12, 1.0, 1.0)),
        "Mutual": allocate(affinity, 36, "mutual"),
    }
    figure, axes = _subplots(4, height=2.9, sharex=True, sharey=True)
    for one, (title, codes) in zip(axes, panels.items(), strict=True):
        one.imshow(codes.dense().numpy(), cmap="Blues", vmin=0, vmax=float(affinity.max()), aspect="auto")
        one.set_title(title, fontsize=9)
        one.set_xticks([])
        one.set_yticks([])
        one.grid(False)
        one.set_xlabel("latents, rare to the right", fontsize=8)
        for side in ("top", "right"):
            one.spines[side].set_visible(True)
    axes[0].set_ylabel("tokens, hard ones below")
    return figure


def draw_error(found: dict[str, pd.DataFrame], config: Config) -> "Figure":
    """After the paper's Figure 4: error at equal sparsity, in a world and on a model's activations.

    With several sparsities (`Config.grid`) the world's panel shows the error against the realised L0.
    """
    arms = found["arms"]
    own = arms[arms.rule == "own"]
    figure, panels = _subplots(2, width=7.4, height=3.4)
    for one, source, title in zip(panels, ("zipf", "real"), ("Zipf world", "MiniLM"), strict=True):
        part = own[own.source == source]
        if part.k.nunique() > 1:
            _curves(one, part)
            one.set_title(title)
            continue
        _dots(one, arms, [arm for arm in ARMS if arm in set(part.method)], source, "nmse", config)
        one.set(xlabel="normalised error")
        one.set_title(f"{title}, k = {config.size(source).k}")
    return figure


def _curves(axes: "Axes", own: pd.DataFrame) -> None:
    """Error against realised sparsity, mean over the trainings with its 95 % interval."""
    for arm in (RIVAL, MUTUAL, FEATURE):
        part = own[own.method == arm]
        error = part[part.metric == "nmse"].pivot_table(index="seed", columns="k", values="value")
        l0 = part[part.metric == "l0"].pivot_table(index="seed", columns="k", values="value").mean()
        ends = np.array([_interval(error[k].to_numpy()) for k in error]).T
        axes.plot(l0, ends[0], label=LABELS[arm], **_style(arm))
        axes.fill_between(l0, ends[1], ends[2], color=_style(arm)["color"], alpha=0.15, lw=0)
    axes.set(xlabel="mean L0, held-out", ylabel="normalised error")
    axes.legend(fontsize=8)


def _dots(
    axes: "Axes", arms: pd.DataFrame, names: list[str], source: str, metric: str, config: Config
) -> None:
    """One line an arm: mean over the trainings with its 95 % interval; none where it was not trained."""
    there = set(arms[(arms.source == source) & (arms.metric == metric)].method)
    for place, arm in enumerate(names):
        if arm not in there:
            continue
        mean, low, high = _interval(per_seed(arms, source, arm, metric, config))
        style = _style(arm)
        axes.plot([low, high], [place, place], color=style["color"], lw=1.5)
        axes.plot([mean], [place], ls="", **style)
    axes.set_yticks(range(len(names)), [LABELS[arm] for arm in names], fontsize=8)
    axes.invert_yaxis()


def draw_found(found: dict[str, pd.DataFrame], config: Config) -> "Figure":
    """Error against the share of true features found: every training of every arm in the Zipf world."""
    arms = found["arms"]
    figure, (one,) = _subplots(1, height=3.6)
    for arm in (name for name in ARMS if name in set(arms[arms.source == "zipf"].method)):
        x, y = (per_seed(arms, "zipf", arm, metric, config) for metric in ("recovered", "nmse"))
        one.plot(x, y, ls="", label=LABELS[arm], alpha=0.9, **_style(arm))
    one.set(xlabel="share of true features found", ylabel="normalised error", xlim=(-0.03, 1.03))
    figure.legend(*one.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return figure


def draw_dead(found: dict[str, pd.DataFrame], config: Config) -> "Figure":
    """After the paper's Table 1: latents dead in training, and dead or under-used on held-out tokens."""
    figure, (left, right) = _subplots(2, height=3.8)
    progress, arms = found["progress"], found["arms"]
    for arm in ARMS:
        own = progress[(progress.source == "zipf") & (progress.method == arm)]
        if len(own):
            mean = own.groupby("step")["value"].mean()
            # Those that lose hardly any need no name: they lie on the axis.
            label = LABELS[arm] if mean.iloc[-1] > 0.02 else None
            left.plot(mean.index, mean, label=label, markersize=4, lw=1.2, **_style(arm))
    if left.get_legend_handles_labels()[0]:
        left.legend(fontsize=8)
    left.set(xlabel="steps", ylabel="share of latents", title="Dead in training", ylim=(-0.02, None))
    names = [arm for arm in ARMS if arm in set(arms[arms.source == "zipf"].method)]
    for place, arm in enumerate(names):
        dead, weak = (per_seed(arms, "zipf", arm, m, config).mean() for m in ("dead", "underused"))
        shade = _style(arm)["color"]
        right.barh(place, dead, color=shade, height=0.65)
        right.barh(place, weak, left=dead, color=shade, alpha=0.35, height=0.65)
    for label, alpha in (("dead", 1.0), ("under-used", 0.35)):
        right.fill_between([], [], color=GREY, alpha=alpha, lw=0, label=label)
    right.set_yticks(range(len(names)), [LABELS[arm] for arm in names], fontsize=8)
    right.invert_yaxis()
    right.set(xlabel="share of latents", title="On held-out tokens")
    right.legend(fontsize=8, loc="lower right")
    return figure


def draw_zipf(found: dict[str, pd.DataFrame], config: Config) -> "Figure":
    """After the paper's Figure 2: density against rank, the fitted law, the tail that the fit leaves out."""
    densities = found["densities"]
    figure, (left, right) = _subplots(2, height=3.5)
    for one, source, names in (
        (left, "zipf", ("topk", "mutual", MUTUAL, FEATURE)),
        (right, "real", ("topk", "mutual", MUTUAL, FEATURE)),
    ):
        own = densities[densities.source == source]
        for arm in (name for name in names if name in set(own.method)):
            wide = own[own.method == arm].pivot_table(index="rank", columns="seed", values="value")
            mean = wide.mean(axis=1)
            style = _style(arm) | {"markersize": 3, "lw": 1.2}
            one.plot(mean.index, mean.where(mean > 0), label=LABELS[arm], **style)
        one.set(xscale="log", yscale="log", xlabel="rank")
    n, k = config.synthetic.n_latents, config.synthetic.k
    law = Law(1.0, 3.0).shares(n, k, config.synthetic.batch)
    left.plot(range(1, n + 1), law, color="#222222", ls="--", lw=1, label="the world's law")
    _fitted_line(right, densities, config)
    left.set(ylabel="density", title="Zipf world")
    right.set(title="MiniLM")
    left.legend(fontsize=7, loc="lower left")
    right.legend(fontsize=7, loc="lower left")
    return figure


def _fitted_line(axes: "Axes", densities: pd.DataFrame, config: Config) -> None:
    """The law of TopK's densities, dotted where it was not fitted."""
    own = densities[(densities.source == "real") & (densities.method == "topk")]
    mean = own.pivot_table(index="rank", columns="seed", values="value").mean(axis=1)
    n, last = config.real.n_latents, round(0.8 * config.real.n_latents)
    # The table has some ranks; those between are filled in on logarithms.
    ranks = np.arange(1, n + 1)
    logs = np.interp(np.log(ranks), np.log(mean.index), np.log(np.maximum(mean, 1e-9)))
    law = fit_zipf(torch.from_numpy(np.exp(logs))).density(n).numpy()
    axes.plot(ranks[:last], law[:last], color="#222222", ls="--", lw=1, label="law fitted to TopK")
    axes.plot(ranks[last:], law[last:], color="#222222", ls=":", lw=1)
    axes.axvspan(last, n, color=GREY, alpha=0.15, lw=0)


def draw_adaptive(found: dict[str, pd.DataFrame], config: Config) -> "Figure":
    """How the number of latents a token uses goes with what it needs; and how it hangs on the batch."""
    arms = found["arms"]
    figure, axes = _subplots(3, width=7.4, height=2.6, sharey=True)
    names = [MUTUAL, "uniform+aux_zipf", FEATURE]
    panels = (
        ("zipf", "with_truth", "with true features"),
        ("real", "with_topk_error", "with TopK's error"),
        ("zipf", "unsteady_batch", "matches by batch"),
    )
    for one, (source, metric, title) in zip(axes, panels, strict=True):
        _dots(one, arms, names, source, metric, config)
        one.set_title(title, fontsize=9)
        one.set_xlim(0, 1)
    axes[0].set_xlabel("rank correlation")
    axes[1].set_xlabel("rank correlation")
    axes[2].set_xlabel("share")
    # Three shared axes were turned over three times.
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    return figure
