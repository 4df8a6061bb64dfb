"""The experiments: each returns a tidy table (experiment, method, seed, metric, value, unit, its knobs)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sparsebook.attention.anchor_attention import (
    anchor_pattern,
    anchor_regions,
    anchor_state,
    candidate_keys,
    stripe_select,
)
from sparsebook.attention.metrics import output_error
from sparsebook.attention.patterns import streaming_pattern
from sparsebook.experiments.anchor_attention import selections
from sparsebook.experiments.anchor_attention.inputs import (
    FolderText,
    GemmaText,
    Heads,
    PlantedText,
    planted_heads,
)
from sparsebook.experiments.anchor_attention.scales import Config
from sparsebook.experiments.anchor_attention.selections import Choice, Judge
from sparsebook.kernels.block_attention import SpanIndex, attention_reference, span_attention

Rows = list[dict[str, Any]]
Stages = dict[str, Callable[[], pd.DataFrame]]


def tidy(
    experiment: str, method: str, seed: int, metrics: Mapping[str, tuple[Any, str]], **knobs: Any
) -> Rows:
    """Rows of one measurement."""
    head = {"experiment": experiment, "method": method, "seed": seed}
    return [
        head | {"metric": metric, "value": float(value), "unit": unit} | knobs
        for metric, (value, unit) in metrics.items()
    ]


def run(config: Config, stages: Stages, experiment: str) -> pd.DataFrame:
    """All stages of an experiment; at full and paper scale each is kept, so that a run can be resumed."""
    if config.scale in ("full", "paper") and not config.sabotaged:
        from sparsebook.recorded import run_stages

        return run_stages("anchor_attention", experiment, stages, parameters=asdict(config))
    return pd.concat([compute() for compute in stages.values()], ignore_index=True)


# Sources -------------------------------------------------------------------------------------------------

_source: dict[Any, Any] = {}


def source(config: Config) -> Any:
    """The language model that reads the texts, loaded once, or what stands in for it at `smoke`."""
    key = (config.source, config.model, config.text, config.device, config.seed)
    if key not in _source:
        _source.clear()
        if config.source == "gemma":
            _source[key] = GemmaText()
        elif config.source == "folder":
            assert config.model is not None
            _source[key] = FolderText(config.model, config.text, config.device)
        else:
            _source[key] = PlantedText(config.seed)
    return _source[key]


def heads_of(config: Config, text: int, n_tokens: int) -> Heads:
    """Queries, keys and values of a text."""
    return source(config).heads(text, n_tokens)


# Curves: texts are the unit of replication ---------------------------------------------------------------


def run_texts(config: Config) -> pd.DataFrame:
    """Maxima, curves, ablations and lengths; one stage a text, because the capture is shared."""
    stages: Stages = {f"text {i}": partial(_text, config, i) for i in range(config.n_texts)}
    return run(config, stages, "texts")


def _text(config: Config, text: int) -> pd.DataFrame:
    longest = heads_of(config, text, max(*config.lengths, config.n_tokens))
    heads = longest.first(config.n_tokens)
    out = _maxima(config, heads.with_shuffled_keys(config.seed) if config.sabotaged else heads, text)
    out += _recall(config, heads, text)
    out += _ablation(config, heads, text)
    out += _growth(config, longest, text)
    return pd.DataFrame(out)


def _maxima(config: Config, heads: Heads, text: int) -> Rows:
    """Where each row's largest logit lies, and by how much the anchor misses it; the first group left out."""
    b, s, n = config.block_size, config.step, heads.q.shape[2]
    later = slice(config.group_size, n // config.group_size * config.group_size)
    largest = selections.anchors(heads, "true maximum", b, s)[:, :, later]
    whole, init, window = (
        selections.anchors(heads, kind, b, s)[:, :, later] for kind in ("both", "init only", "window only")
    )
    gap = (largest - whole).clamp(min=0)
    tiny = 1e-3  # two passes may add in different orders
    inside = gap <= tiny
    first = inside & (init >= window)
    keys = anchor_regions(n, block_size=b, step=s).attended(n, causal=True)[0, 0, later]
    chance = (keys / torch.arange(later.start + 1, later.stop + 1)).mean()
    per_head = inside.float().mean(-1)
    metrics = {
        "inside": (per_head.mean(), "fraction"),
        "init": (first.float().mean(), "fraction"),
        "window": ((inside & ~first).float().mean(), "fraction"),
        "elsewhere": ((~inside).float().mean(), "fraction"),
        "worst head": (per_head.min(), "fraction"),
        "gap": (gap.mean(), "nats"),
        "gap above theta": ((gap > 12).float().mean(), "fraction"),
        "chance": (chance, "fraction"),
    }
    out = tidy("maxima", "anchor", text, metrics)
    edges = torch.tensor([0, 1e-3, 0.5, 1, 2, 3, 4, 6, 8, 12, torch.inf])
    for layer in range(gap.shape[0]):
        for head in range(gap.shape[1]):
            value = {"inside": (per_head[layer, head], "fraction"), "gap": (gap[layer, head].mean(), "nats")}
            out += tidy("maxima", "head", text, value, layer=layer, head=head)
        share = torch.histogram(gap[layer].flatten().float(), edges).hist / gap[layer].numel()
        for low, value in zip(edges[:-1].tolist(), share, strict=True):
            out += tidy("maxima", "histogram", text, {"share": (value, "fraction")}, layer=layer, setting=low)
    return out


def _recall(config: Config, heads: Heads, text: int) -> Rows:
    judge = Judge(heads, config.block_size, config.step, config.tolerance)
    out = tidy(
        "recall", "region", text, judge.judge(Choice("region", 0.0, judge.regions, False)), setting=0.0
    )
    for choices in (selections.stripe_choices, selections.tile_choices, selections.sorting_choices):
        out += _judged("recall", judge, choices(heads, config), text)
    out += _judged("recall", judge, selections.rival_choices(heads, config), text)
    for method, setting, found in selections.oracle_rows(heads, config, judge):
        out += tidy("recall", method, text, found, setting=setting)
    return out


def _judged(experiment: str, judge: Judge, choices: Iterable[Choice], text: int, **knobs: Any) -> Rows:
    out: Rows = []
    for choice in choices:
        out += tidy(experiment, choice.method, text, judge.judge(choice), setting=choice.setting, **knobs)
    return out


def _ablation(config: Config, heads: Heads, text: int) -> Rows:
    plain = replace(config, sabotaged=False, thetas=config.ablation_thetas)
    judge = Judge(heads, config.block_size, config.step)
    anchored = selections.noisy_choices if config.sabotaged else selections.stripe_choices
    out = _judged("ablation", judge, anchored(heads, plain), text)
    out += _judged("ablation", judge, selections.ablation_choices(heads, plain), text)
    for step in config.steps:
        own = Judge(heads, config.block_size, step)
        floor = own.judge(Choice("", 0.0, own.regions, False))
        out += tidy("ablation", f"step {step}", text, floor, setting=-1.0)
        out += _judged("ablation", own, selections.step_choices(heads, plain, step), text)
    return out


def _growth(config: Config, longest: Heads, text: int) -> Rows:
    """The method's curve at several lengths; sabotaged, every stripe is kept."""
    out: Rows = []
    thetas = (torch.inf,) if config.sabotaged else config.thetas
    for n in config.lengths:
        heads = longest.first(n)
        judge = Judge(heads, config.block_size, config.step)
        plain = replace(config, thetas=thetas, sabotaged=False)
        for choice in selections.stripe_choices(heads, plain):
            found = judge.judge(choice)
            setting = -1.0 if config.sabotaged else choice.setting
            out += tidy("growth", "anchor", text, found, setting=setting, n=n)
    return out


# Likelihood under sparse attention -----------------------------------------------------------------------


def run_likelihood(config: Config) -> pd.DataFrame:
    """Negative log-likelihood of text when the global layers attend sparsely, at one density for all."""
    settings = _equal_density(config)
    stages: Stages = {f"text {i}": partial(_likelihood, config, settings, i) for i in range(config.n_texts)}
    return run(config, stages, "likelihood")


def patterns_at(config: Config, heads: Heads) -> dict[str, Callable[[float], Any]]:
    """Each method as a function from its budget to what is computed, which grows with it."""
    b, s, n = config.loss_block, config.step, heads.q.shape[2]
    regions = anchor_regions(n, block_size=b, step=s)
    return {
        "anchor": lambda x: anchor_pattern(
            heads.q, heads.k, theta=x, block_size=b, step=s, scale=heads.scale
        ),
        "block_topk + region": lambda x: selections.block_topk(heads, x, b, regions),
        "streaming": lambda x: streaming_pattern(n, n_sink=b, n_local=max(1, round(x * n)), block_size=b),
    }


RANGES = {
    "anchor": (-4.0, 40.0),
    "block_topk + region": (0.0, 1.0),
    "streaming": (0.0, 1.0),
}
"""Where the budget that gives a density is sought."""


def budget_for(
    pattern: Callable[[float], Any], n: int, density: float, low: float, high: float, steps: int = 12
) -> float:
    """The smallest budget whose density reaches `density`, by bisection."""
    for _ in range(steps):
        middle = (low + high) / 2
        if pattern(middle).density(n, n, causal=True) >= density:
            high = middle
        else:
            low = middle
    return high


def _equal_density(config: Config) -> dict[str, float]:
    """Budgets that give the density on the tuning text."""
    heads = heads_of(config, config.tuning_text, config.loss_tokens)
    return {
        method: budget_for(pattern, config.loss_tokens, config.density, *RANGES[method], steps=9)
        for method, pattern in patterns_at(config, heads).items()
    }


def _likelihood(config: Config, settings: Mapping[str, float], text: int) -> pd.DataFrame:
    model, n = source(config), config.loss_tokens
    count = min(config.n_positions, n // 2)
    positions = torch.linspace(n // 2, n - 2, count).long()
    out: Rows = []
    arms: list[tuple[str, float]] = [("dense", 0.0), ("region", -torch.inf), *settings.items()]
    for method, setting in arms:
        densities: list[float] = []
        attend = None if method == "dense" else _attending(config, method, setting, densities)
        loss = model.likelihoods(text, n, positions, attend).double().mean()
        metrics = {"loss": (loss, "nats"), "density": (np.mean(densities) if densities else 1.0, "fraction")}
        out += tidy("likelihood", method, text, metrics, setting=max(setting, -1e9))
    return pd.DataFrame(out)


def _attending(
    config: Config, method: str, setting: float, densities: list[float]
) -> Callable[[Tensor, Tensor, Tensor, int], Tensor]:
    """Attention by a method with a budget; what it computes of each call is noted in `densities`."""

    def attend(q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        scale = q.shape[3] ** -0.5  # Gemma's, too: its factor is that of heads of 256
        heads = Heads(q, k, v, scale)
        n = q.shape[2]
        if method in ("anchor", "region") and config.sabotaged:
            own = torch.arange(n, dtype=torch.int32)
            index = SpanIndex.from_spans(torch.stack([own, own + 1], -1)[None, None, :, None], 1)
        else:
            name = "anchor" if method == "region" else method
            index = patterns_at(config, heads)[name](setting)
        densities.append(index.density(n, n, causal=True))
        return span_attention(q, k, v, index, causal=True, scale=scale)

    return attend


# The pooling loss ----------------------------------------------------------------------------------------


def run_pooling(config: Config, n_tokens: int = 512) -> pd.DataFrame:
    """Planted: a key that some rows of a block want as much as their anchor; is it found?

    Every row has a logit of 10 with the first key, which is the anchor; in one block, a share of the rows has
    a logit of 14 with one far key. The tolerance is the paper's third: 4 nats.
    """
    out: Rows = []
    for block in (8, 32) if config.scale == "smoke" else (8, 32, 128):
        for wanting in sorted({max(1, round(share * block)) for share in np.linspace(0.05, 1, 13)}):
            found = []
            for seed in range(3):
                q, k = _wanted_key(n_tokens, block, wanting, seed)
                state = anchor_state(q, k, k, block_size=block, step=1)
                index = stripe_select(q, k, state.m, theta=4.0, block_size=block, step=1)
                group = (n_tokens - block) // block
                coords = index.coords[0, 0, group][: index.counts[0, 0, group]]
                found.append(float((coords == n_tokens // 3).any()))
            metrics = {"found": (np.mean(found), "fraction")}
            out += tidy("pooling", f"b = {block}", config.seed, metrics, setting=wanting / block)
    return pd.DataFrame(out)


def _wanted_key(n: int, block: int, wanting: int, seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    q, k = (0.05 * torch.randn(1, 1, n, 16, generator=draw) for _ in range(2))
    q[..., 0], k[0, 0, 0, 0] = 2.0, 20.0  # 2 * 20 / sqrt(16) = 10
    start = (n - block) // block * block
    rows = start + torch.randperm(block, generator=draw)[:wanting]
    q[0, 0, rows, 1], k[0, 0, n // 3, 1] = 2.0, 28.0
    return q, k


# The released kernel -------------------------------------------------------------------------------------


def times_computed(n_groups: int, block_size: int, step: int, released: bool) -> Tensor:
    """How often each key enters the softmax of each group's last row, all stripes kept, [groups, keys].

    The default path of the released code takes `block_size * step` first tokens where the description has
    `block_size`, and a window that starts at the group, not a block before; yet it seeks stripes in the same
    range. Ours is counted from the very indices that the kernels are given.
    """
    size, n = block_size * step, n_groups * block_size * step
    group, key = torch.arange(n_groups)[:, None], torch.arange(n)
    stripes = (key >= block_size) & (key < group * size - block_size)
    if released:
        region = (key < size) | (key >= group * size)
        return (region & (key < (group + 1) * size)).int() + stripes.int()
    regions = anchor_regions(n, block_size=block_size, step=step)
    start, stop = regions.spans[0, 0, step - 1 :: step].unbind(-1)  # of the block that each last row is in
    times = (key >= start[..., None]) & (key < stop[..., None])
    return times.sum(1).int() + candidate_keys(n, block_size=block_size, step=step).int()


def run_released(config: Config) -> pd.DataFrame:
    """The released kernel's regions, enumerated: keys counted twice, keys left out, and what it costs."""
    out: Rows = []
    for released, method in ((False, "described"), (True, "released")):
        counts = times_computed(5, 128, 16, released)
        for g in range(5):
            own = counts[g, : (g + 1) * 2048]
            metrics = {"double": ((own == 2).sum(), "keys"), "missing": ((own == 0).sum(), "keys")}
            out += tidy("released", method, config.seed, metrics, setting=g)
        if config.sabotaged != released:
            continue
        off = (counts - (torch.arange(5 * 2048) < (torch.arange(5)[:, None] + 1) * 2048).int()).abs().max()
        out += tidy("released", "checked", config.seed, {"deviation": (off, "pairs")})
    out += _released_error(config)
    return pd.DataFrame(out)


def _released_error(config: Config, block_size: int = 8, step: int = 4) -> Rows:
    """Relative error of the output with everything kept, on planted heads."""
    heads = planted_heads(16 * block_size * step, config.seed, heads=2)
    n = heads.q.shape[2]
    full = torch.ones(n, n, dtype=torch.bool).tril()
    dense = attention_reference(heads.q, heads.k, heads.v, full, heads.scale)[0]
    index = anchor_pattern(heads.q, heads.k, theta=torch.inf, block_size=block_size, step=step)
    ours = span_attention(heads.q, heads.k, heads.v, index, scale=heads.scale)
    out = tidy("released", "described", config.seed, {"error": (_error(dense, ours), "fraction")})
    counts = times_computed(n // (block_size * step), block_size, step, True)
    weight = counts.repeat_interleave(block_size * step, 0).tril()
    logits = heads.q @ heads.k.transpose(-1, -2) * heads.scale + weight.float().log()
    wrong = logits.softmax(-1) @ heads.v
    return out + tidy("released", "released", config.seed, {"error": (_error(dense, wrong), "fraction")})


def _error(reference: Tensor, out: Tensor) -> float:
    return output_error(reference, out).mean().item()


# One live cell, and the check of recorded tables ---------------------------------------------------------


def run_live(config: Config) -> pd.DataFrame:
    """One cell of the recorded curves, measured here and now: a text that was not recorded, at theta = 8."""
    text = config.tuning_text + 1
    heads = heads_of(config, text, config.n_tokens)
    judge = Judge(heads, config.block_size, config.step, config.tolerance)
    theta = LIVE_THETA
    one = replace(config, thetas=(theta,), sabotaged=False)
    (choice,) = selections.stripe_choices(heads, one)
    out = tidy("live", "anchor", text, judge.judge(choice), setting=theta)
    return pd.DataFrame(out + _maxima(config, heads, text)[:8])


LIVE_THETA = 8.0


def fingerprint(n_tokens: int = 256, seed: int = 0) -> list[float]:
    """Density and recall of the method and its rivals on planted heads: the first steps of a curve."""
    config = Config.at("smoke", seed=seed, n_tokens=n_tokens)
    heads = planted_heads(n_tokens, seed, heads=2)
    judge = Judge(heads, config.block_size, config.step, config.tolerance)
    out: list[float] = []
    for choices in (selections.stripe_choices, selections.tile_choices, selections.rival_choices):
        for choice in choices(heads, config):
            found = judge.judge(choice)
            out += [found["density"][0], found["mass"][0]]
    return out
