"""What each method computes of a text's attention, setting by setting, and its share of the softmax."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsebook.attention.anchor_attention import (
    anchor_regions,
    candidate_keys,
    pool_blocks,
    stripes_of,
)
from sparsebook.attention.metrics import output_recall
from sparsebook.attention.patterns import (
    block_maxima,
    block_table_pattern,
    block_topk_pattern,
    flexprefill_block_pattern,
    pooled_query_scores,
    streaming_pattern,
    vertical_slash_pattern,
)
from sparsebook.experiments.anchor_attention.inputs import Heads
from sparsebook.experiments.anchor_attention.scales import Config
from sparsebook.kernels.block_attention import OnlineSoftmaxState, SpanIndex, span_state

Found = dict[str, tuple[float, str]]


@dataclass(frozen=True)
class Choice:
    """What a method computes at a setting; `beside` the anchor region, or all by itself."""

    method: str
    setting: float
    index: SpanIndex
    beside: bool


def everything(n_tokens: int, block_size: int = 64) -> SpanIndex:
    """Plain causal attention as an index."""
    spans = torch.tensor([0, n_tokens], dtype=torch.int32).expand(1, 1, -(-n_tokens // block_size), 1, 2)
    return SpanIndex.from_spans(spans, block_size)


class Judge:
    """Dense attention of one text, and how far a choice comes.

    Parameters
    ----------
    heads : Heads
    block_size, step : int
        Layout of the anchor region that choices may stand beside.
    tolerance : float, optional
        Of an output element; if None, outputs are not computed and the mass alone is judged.
    """

    def __init__(self, heads: Heads, block_size: int, step: int, tolerance: float | None = None) -> None:
        self.heads, self.tolerance = heads, tolerance
        self.n_tokens = heads.q.shape[2]
        self.regions = anchor_regions(self.n_tokens, block_size=block_size, step=step, device=heads.q.device)
        self.dense = self.pass_over(everything(self.n_tokens))
        self.region = self.pass_over(self.regions)
        self.floor = self.regions.density(self.n_tokens, self.n_tokens, causal=True)

    def pass_over(self, index: SpanIndex) -> OnlineSoftmaxState:
        """The softmax's state after the keys of an index."""
        h = self.heads
        v = h.v if self.tolerance else h.k[..., :1].contiguous()  # one column where only sums are wanted
        return span_state(h.q, h.k, v, on_device_of(index, h.q), causal=True, scale=h.scale)

    def judge(self, choice: Choice) -> Found:
        """Density and recall, means over layers and heads."""
        state = self.pass_over(choice.index)
        density = choice.index.density(self.n_tokens, self.n_tokens, causal=True)
        if choice.beside:
            state, density = self.region.merge(state), density + self.floor
        mass = torch.exp(state.lse() - self.dense.lse()).clamp(max=1).mean().item()
        found = {"density": (density, "fraction"), "mass": (mass, "fraction")}
        if self.tolerance:
            recall = output_recall(self.dense.output(), state.output(), self.tolerance).mean().item()
            found["output"] = (recall, "fraction")
        return found


def on_device_of(index: SpanIndex, like: Tensor) -> SpanIndex:
    """An index where a tensor is."""
    if index.spans.device == like.device:
        return index
    spans, columns, counts = (x.to(like.device) for x in (index.spans, index.columns, index.counts))
    return SpanIndex(spans, columns, counts, index.block_size, index.group)


# Anchors and margins -------------------------------------------------------------------------------------


def row_maxima(heads: Heads, index: SpanIndex) -> Tensor:
    """Each row's largest logit among the keys of an index, [layers, heads, tokens]."""
    return span_state(
        heads.q, heads.k, heads.k[..., :1].contiguous(), index, causal=True, scale=heads.scale
    ).m


ANCHORS = ("both", "init only", "window only", "constant", "true maximum")


def anchors(heads: Heads, kind: str, block_size: int, step: int) -> Tensor:
    """The row's anchor: of the whole region, of half of it, a constant, or the largest of all logits."""
    n = heads.q.shape[2]
    if kind == "constant":
        return heads.q.new_zeros(heads.q.shape[:3])
    if kind == "true maximum":
        return row_maxima(heads, on_device_of(everything(n), heads.q))
    regions = anchor_regions(n, block_size=block_size, step=step, device=heads.q.device)
    if kind == "both":
        return row_maxima(heads, regions)
    half = regions.spans[..., :1, :] if kind == "init only" else regions.spans[..., 1:, :]
    if kind == "window only":  # the first block's rows have no other window
        half = torch.where(half[..., 1:] > half[..., :1], half, regions.spans[..., :1, :])
    return row_maxima(heads, SpanIndex.from_spans(half.contiguous(), block_size))


def margins(heads: Heads, m: Tensor, block_size: int) -> Tensor:
    """Pooled score less pooled anchor, [layers, heads, blocks, keys]: kept is what lies above -theta."""
    scores = pooled_query_scores(heads.q, heads.k, block_size=block_size, scale=heads.scale)
    return scores - pool_blocks(heads.q, m, block_size)[1][..., None]


def by_group(x: Tensor, step: int, fill: float = -torch.inf) -> Tensor:
    """Blocks [.., blocks, keys] as [.., groups, step, keys]."""
    short = -x.shape[2] % step
    return torch.nn.functional.pad(x, (0, 0, 0, short), value=fill).unflatten(2, (-1, step))


def stripe_pattern(kept: Tensor, group_size: int) -> SpanIndex:
    """Columns alone; the region is beside them."""
    stripes = stripes_of(kept)
    return SpanIndex.from_columns(stripes.coords, stripes.counts, group_size)


def shuffled(kept: Tensor, candidates: Tensor, seed: int) -> Tensor:
    """As many columns as were kept for each group, anywhere among its candidates: the negative control."""
    draw = torch.Generator().manual_seed(seed)
    order = torch.rand(kept.shape, generator=draw).masked_fill(~candidates, 2.0).argsort(-1).argsort(-1)
    return order < kept.sum(-1, keepdim=True)


# AnchorAttention and its rivals --------------------------------------------------------------------------


def stripe_choices(heads: Heads, config: Config, name: str = "anchor") -> Iterator[Choice]:
    """The method over its tolerances; sabotaged, its stripes stand in random columns."""
    b, s = config.block_size, config.step
    found = margins(heads, anchors(heads, "both", b, s), b)
    best = by_group(found, s).amax(3)
    yield from _by_tolerance(heads, config, best, s, name)


def _by_tolerance(heads: Heads, config: Config, best: Tensor, step: int, name: str) -> Iterator[Choice]:
    size = config.block_size * step
    candidates = candidate_keys(heads.q.shape[2], block_size=config.block_size, step=step)
    for theta in config.thetas:
        kept = (best >= -theta) & candidates
        if config.sabotaged:
            kept = shuffled(kept, candidates, config.seed)
        yield Choice(name, theta, stripe_pattern(kept, size), True)


def tile_choices(heads: Heads, config: Config) -> Iterator[Choice]:
    """Tiles of b x b with the method's own margins: a tile counts as much as its best, or its mean, key."""
    b, s = config.block_size, config.step
    found = margins(heads, anchors(heads, "both", b, s), b)
    candidates = candidate_keys(heads.q.shape[2], block_size=b, step=s)[:, ::b]
    allowed = candidates.repeat_interleave(s, 0)[: found.shape[2]]
    for theta in config.thetas:
        table = (block_maxima(found, b) >= -theta) & allowed
        yield Choice("tiles, best key", theta, _table(table, heads, b), True)
    mean = torch.nn.functional.avg_pool1d(found.flatten(0, 2)[:, None], b, ceil_mode=True)[:, 0]
    mean = mean.unflatten(0, found.shape[:3])
    scores = mean[allowed.expand_as(mean)]
    for share in config.tile_shares:  # means lie lower than maxima: thresholds that meet the same densities
        threshold = scores.kthvalue(max(1, round((1 - share) * scores.numel()))).values
        yield Choice("tiles, mean key", share, _table((mean >= threshold) & allowed, heads, b), True)


def _table(table: Tensor, heads: Heads, block_size: int) -> SpanIndex:
    return block_table_pattern(table, heads.q.shape[2], block_size=block_size)


def sorting_choices(heads: Heads, config: Config) -> Iterator[Choice]:
    """Stripes by the same pooled scores, chosen by sorting: a share of the columns, or a softmax's mass."""
    b, s, n = config.block_size, config.step, heads.q.shape[2]
    found = margins(heads, anchors(heads, "both", b, s), b)
    candidates = candidate_keys(n, block_size=b, step=s)
    best = by_group(found, s).amax(3).masked_fill(~candidates, -torch.inf)
    rank = best.argsort(-1, descending=True).argsort(-1)
    for share in config.shares:
        kept = rank < (share * candidates.sum(-1)).round()[:, None]
        yield Choice("stripes, top share", share, stripe_pattern(kept & candidates, config.group_size), True)
    rows = torch.arange(found.shape[2])
    seen = torch.arange(n) < ((rows + 1) * b)[:, None]
    weights = found.masked_fill(~seen, -torch.inf).softmax(-1)
    far = candidates.repeat_interleave(s, 0)[: len(rows)]
    near = torch.where(far, 0.0, weights).sum(-1, keepdim=True)
    ordered, order = torch.where(far, weights, 0.0).sort(-1, descending=True)
    before = near + ordered.cumsum(-1) - ordered
    for mass in config.masses:
        block = torch.zeros_like(far.expand_as(weights)).scatter(-1, order, before < mass) & far
        kept = by_group(block.float(), s, 0.0).amax(3) > 0
        yield Choice("stripes, top mass", mass, stripe_pattern(kept, config.group_size), True)


def rival_choices(heads: Heads, config: Config) -> Iterator[Choice]:
    """Published rivals over their budgets, as they are and with the anchor region forced on them."""
    regions = anchor_regions(heads.q.shape[2], block_size=config.block_size, step=config.step)
    for forced, suffix in ((None, ""), (regions, " + region")):
        for method, setting, index in _rivals(heads, config, forced):
            yield Choice(method + suffix, setting, index, False)


def _rivals(heads: Heads, config: Config, forced: SpanIndex | None) -> Iterator[tuple[str, float, SpanIndex]]:
    n = heads.q.shape[2]
    for share in config.tile_shares:
        yield "block_topk", share, block_topk(heads, share, config.block_size, forced)
    for gamma in config.gammas:
        yield "flexprefill", gamma, flexprefill(heads, gamma, config.block_size, forced)
    for share in config.lines:
        yield "vertical_slash", share, vertical_slash(heads, share, config.block_size, forced)
    for share in config.windows:
        window = max(1, round(share * n))
        index = streaming_pattern(
            n, n_sink=config.block_size, n_local=window, block_size=config.block_size, forced=forced
        )
        yield "streaming", share, index


def block_topk(heads: Heads, share: float, block_size: int, forced: SpanIndex | None = None) -> SpanIndex:
    """The given share of all blocks of keys, at least three, for each block of queries."""
    top_k = max(3, round(share * -(-heads.q.shape[2] // block_size)))
    return block_topk_pattern(heads.q, heads.k, block_size=block_size, top_k=top_k, forced=forced)


def flexprefill(heads: Heads, gamma: float, block_size: int, forced: SpanIndex | None = None) -> SpanIndex:
    """The block-level original; its least budget, 1,024 tokens at 128k, is one block here."""
    return flexprefill_block_pattern(
        heads.q, heads.k, gamma=gamma, min_budget=block_size, block_size=block_size, scale=heads.scale,
        forced=forced,
    )  # fmt: skip


def vertical_slash(heads: Heads, share: float, block_size: int, forced: SpanIndex | None = None) -> SpanIndex:
    """As many verticals as slashes, the given share of the length."""
    count = max(block_size, round(share * heads.q.shape[2]))
    return vertical_slash_pattern(
        heads.q, heads.k, n_vertical=count, n_slash=count, window=min(256, heads.q.shape[2]),
        n_local=block_size, scale=heads.scale, block_size=block_size, forced=forced,
    )  # fmt: skip


# Ablations -----------------------------------------------------------------------------------------------


def ablation_choices(heads: Heads, config: Config) -> Iterator[Choice]:
    """Other anchors, another decision, scores that are not pooled, or pooled twice."""
    b, s = config.block_size, config.step
    for kind in ANCHORS[1:]:
        best = by_group(margins(heads, anchors(heads, kind, b, s), b), s).amax(3)
        if kind == "constant":
            yield from _constants(heads, config, best)
        else:
            yield from _by_tolerance(heads, config, best, s, f"anchor: {kind}")
    m = anchors(heads, "both", b, s)
    found = margins(heads, m, b)
    short = -found.shape[2] % s
    grouped = by_group(found, s, 0.0).sum(3)
    counts = torch.full((grouped.shape[2], 1), float(s))
    counts[-1] -= short
    yield from _by_tolerance(heads, config, grouped / counts, s, "decision: mean of the blocks")
    yield from _by_tolerance(heads, config, unpooled(heads, m, config.group_size), s, "rows: not pooled")
    twice = torch.maximum(found, _keys_pooled(heads, m, b))
    yield from _by_tolerance(heads, config, by_group(twice, s).amax(3), s, "queries and keys pooled")


def _constants(heads: Heads, config: Config, best: Tensor) -> Iterator[Choice]:
    """One threshold for all layers, heads and rows: a quantile of the scores."""
    candidates = candidate_keys(heads.q.shape[2], block_size=config.block_size, step=config.step)
    scores = best[candidates.expand_as(best)]
    for share in config.shares:
        threshold = scores.kthvalue(max(1, round((1 - share) * scores.numel()))).values
        kept = (best >= threshold) & candidates
        yield Choice("anchor: constant", share, stripe_pattern(kept, config.group_size), True)


def noisy_choices(heads: Heads, config: Config) -> Iterator[Choice]:
    """The method with each block's anchor replaced by noise of the anchors' mean and spread."""
    b, s = config.block_size, config.step
    m = anchors(heads, "both", b, s)
    scores = pooled_query_scores(heads.q, heads.k, block_size=b, scale=heads.scale)
    means = pool_blocks(heads.q, m, b)[1]
    noise = torch.randn(means.shape, generator=torch.Generator().manual_seed(config.seed))
    found = scores - (means.mean() + 3 * means.std() * noise)[..., None]
    candidates = candidate_keys(heads.q.shape[2], block_size=b, step=s)
    best = by_group(found, s).amax(3)
    for theta in config.thetas:
        yield Choice("anchor", theta, stripe_pattern((best >= -theta) & candidates, config.group_size), True)


def unpooled(heads: Heads, m: Tensor, group_size: int) -> Tensor:
    """The largest margin of any single row of a group, [layers, heads, groups, keys]: no means at all."""
    out = []
    n = heads.q.shape[2]
    for start in range(0, n, group_size):
        rows = slice(start, min(start + group_size, n))
        logits = grouped_logits(heads, rows)
        out.append((logits - m[:, :, rows, None]).amax(2))
    return torch.stack(out, 2)


def grouped_logits(heads: Heads, rows: slice) -> Tensor:
    """Logits of some rows with all keys, [layers, heads, rows, keys]."""
    q = heads.q[:, :, rows] * heads.scale
    layers, n_heads, count, dim = q.shape
    folded = q.reshape(layers, heads.k.shape[1], -1, dim)
    return (folded @ heads.k.transpose(-1, -2)).view(layers, n_heads, count, -1)


def _keys_pooled(heads: Heads, m: Tensor, block_size: int) -> Tensor:
    """The largest margin of a block's rows with the mean key of a block of keys, repeated to its keys."""
    n = heads.q.shape[2]
    short = -n % block_size
    keys = torch.nn.functional.pad(heads.k, (0, 0, 0, short)).unflatten(2, (-1, block_size)).mean(3)
    rows = Heads(heads.q, keys, keys, heads.scale)
    logits = grouped_logits(rows, slice(0, n)) - m[..., None]
    best = torch.nn.functional.pad(logits, (0, 0, 0, short), value=-torch.inf)
    best = best.unflatten(2, (-1, block_size)).amax(3)
    return best.repeat_interleave(block_size, -1)[..., :n]


def step_choices(heads: Heads, config: Config, step: int) -> Iterator[Choice]:
    """The method with another number of blocks in a group."""
    found = margins(heads, anchors(heads, "both", config.block_size, step), config.block_size)
    yield from _by_tolerance(heads, config, by_group(found, step).amax(3), step, f"step {step}")


# Oracles -------------------------------------------------------------------------------------------------


def oracle_rows(heads: Heads, config: Config, judge: Judge) -> Iterator[tuple[str, float, Found]]:
    """The three oracles, which read every logit: density, mass and output recall of each setting.

    Layer by layer, from one sort of the dense weights. Each keeps the largest weights of a row: the top k
    (a share of the length), the fewest with a given mass, or those within a difference of the largest.
    Sabotaged, the difference is taken from the largest logit of another row.
    """
    plans = [("oracle: top k", share) for share in config.oracle_shares]
    plans += [("oracle: top mass", mass) for mass in config.oracle_masses]
    plans += [("oracle: difference", theta) for theta in config.oracle_thetas]
    found: dict[tuple[str, float], list[tuple[float, float, float]]] = {plan: [] for plan in plans}
    for layer in range(heads.q.shape[0]):
        sorted_layer = _SortedLayer(heads.layer(layer), judge, layer, config)
        for method, setting in plans:
            found[method, setting].append(sorted_layer.measure(method, setting))
    for (method, setting), values in found.items():
        means = (sum(column) / len(values) for column in zip(*values, strict=True))
        named = zip(("density", "mass", "output"), means, strict=True)
        yield method, setting, {name: (value, "fraction") for name, value in named}


class _SortedLayer:
    """Dense weights of one layer, each row sorted once for all settings."""

    def __init__(self, heads: Heads, judge: Judge, layer: int, config: Config) -> None:
        part = slice(layer, layer + 1)
        self.tolerance, self.n = config.tolerance, heads.q.shape[2]
        self.dense, lse = judge.dense.output()[part], judge.dense.lse()[part]
        self.v = heads.v.repeat_interleave(heads.q.shape[1] // heads.v.shape[1], 1)
        self.weights = torch.exp(grouped_logits(heads, slice(0, self.n)) - lse[..., None]).tril_()
        self.ordered = self.weights.sort(-1, descending=True).values
        self.total = self.ordered.cumsum(-1)
        self.largest = self.ordered[..., 0]
        if config.sabotaged:
            draw = torch.Generator().manual_seed(config.seed)
            self.largest = torch.exp(judge.dense.m[part][:, :, torch.randperm(self.n, generator=draw)] - lse)

    def measure(self, method: str, setting: float) -> tuple[float, float, float]:
        """Density, share of the mass and share of the output elements."""
        seen = torch.arange(self.n) + 1
        if method == "oracle: top k":
            number = seen.clamp(max=max(1, round(setting * self.n))).expand_as(self.largest)
        elif method == "oracle: top mass":
            number = ((self.total < setting).sum(-1) + 1).minimum(seen)
        else:
            edge = self.largest * math.exp(-setting)
            number = (self.ordered >= edge[..., None]).sum(-1).minimum(seen)
        last, some = (number - 1).clamp(min=0)[..., None], number > 0
        mass = torch.where(some, self.total.gather(-1, last)[..., 0], 0.0)
        edge = torch.where(some, self.ordered.gather(-1, last)[..., 0], torch.inf)
        kept = torch.where(self.weights >= edge[..., None], self.weights, 0.0)
        out = kept @ self.v / kept.sum(-1, keepdim=True).clamp(min=1e-30)
        near = output_recall(self.dense, out, self.tolerance).mean().item()
        return number.double().mean().item() / seen.double().mean().item(), mass.mean().item(), near
