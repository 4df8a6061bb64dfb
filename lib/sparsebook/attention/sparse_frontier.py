"""The Sparse Frontier (Nawrot et al., 2025): sparse attention methods made comparable, each behind one knob.

Six methods without training, three for prefilling and three for decoding, and baselines beside them. What
they share is fixed once (`Windows`), what is left is a budget: the share of the causal pairs (prefill) or
of the cached tokens (decode) that may be computed.

    method = VerticalSlash(Windows().scaled(2048 / 16_384))
    knob = fit_knob(method, [(q, k)], sparsity=0.9)               # on inputs set apart for this
    index = method.pattern(q, k, **knob)                          # for any other input
    out, recall = attend_prefill(q, k, v, index)

Decoding methods choose keys of the prompt for the queries that follow; the tokens generated so far are always
attended and counted on top, as the paper does.

    keep = EvictSnapKV(windows).keep(q, k, new_q, sparsity=0.9)       # bool [batch, heads, new, prompt]
    out, recall = attend_decode(new_q, keys, values, keep)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsebook.attention.patterns import (
    TOVA,
    AdaSnapKV,
    Kept,
    SnapKV,
    StreamingLLM,
    block_topk_pattern,
    flexprefill_pattern,
    page_bounds,
    page_scores,
    streaming_pattern,
    vertical_slash_pattern,
)
from sparsebook.kernels.block_attention import SpanIndex, span_state

Query = Float[Tensor, "batch heads tokens dim"]
Key = Float[Tensor, "batch kv_heads keys dim"]
Value = Float[Tensor, "batch kv_heads keys value_dim"]
New = Float[Tensor, "batch heads new dim"]
Keep = Bool[Tensor, "batch heads new prompt"]
Mask = Bool[Tensor, "batch heads queries keys"]
Heads = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Windows:
    """The parameters that the paper holds fixed, at its values for 16,384 tokens and more.

    Attributes
    ----------
    observed : the last queries, which judge keys (Vertical-Slash, FlexPrefill, SnapKV, Ada-SnapKV)
    n_sink : first tokens that are always kept
    slash_local, snap_local : nearest offsets (prefill) and last tokens (decode) that are always kept
    pool : width of the average over neighbours of SnapKV's importance
    block, page : tokens in a block of Block-Sparse and in a page of Quest
    rows : queries that share a list of lines
    floor : least number of lines of FlexPrefill's adaptive part
    ada_floor : least share of a head's uniform budget in Ada-SnapKV
    """

    observed: int = 256
    n_sink: int = 4
    slash_local: int = 64
    snap_local: int = 128
    pool: int = 21
    block: int = 16
    page: int = 16
    rows: int = 64
    floor: int = 512
    ada_floor: float = 0.2

    def scaled(self, factor: float | int, *, units: bool = False, least_observed: int = 16) -> "Windows":
        """The same for inputs `factor` times as long: what counts tokens of the input shrinks in proportion.

        Blocks, pages and pools, which group neighbours, shrink only if `units`; rows never below 16, unless
        they did before.
        """
        if not factor > 0:
            raise ValueError(f"factor must be positive, got {factor}")
        size = lambda value, least=1: max(least, round(value * factor))  # noqa: E731
        shrunk = replace(
            self,
            observed=size(self.observed, min(least_observed, self.observed)),
            slash_local=size(self.slash_local),
            snap_local=size(self.snap_local),
            rows=size(self.rows, min(16, self.rows)),
            floor=size(self.floor),
        )
        if not units:
            return shrunk
        return replace(shrunk, block=size(self.block), page=size(self.page), rows=size(self.rows))


@runtime_checkable
class PrefillMethod(Protocol):
    """What a prefilling method offers: a pattern whose density rises with one knob."""

    name: ClassVar[str]

    def knob(self, level: float | int, n_tokens: int) -> dict[str, Any]:
        """Parameters of a level from 0 (the least) to 1 (everything)."""

    def pattern(self, q: Query, k: Key, **knob: Any) -> SpanIndex:
        """What is computed for these queries and keys."""


@dataclass(frozen=True)
class VerticalSlash:
    """The keys and offsets that the last queries attend most, as many of each (`n` lines)."""

    windows: Windows
    name: ClassVar[str] = "vertical_slash"

    def knob(self, level: float | int, n_tokens: int) -> dict[str, Any]:
        """``n`` from 1 to all tokens, by equal factors."""
        return {"n": round(n_tokens**level)}

    def pattern(self, q: Query, k: Key, *, n: int) -> SpanIndex:
        """`vertical_slash_pattern` with `n` lines of either kind."""
        w = self.windows
        return vertical_slash_pattern(
            q, k, n_vertical=n, n_slash=n, window=w.observed, n_sink=w.n_sink, n_local=w.slash_local,
            block_size=w.rows,
        )  # fmt: skip


@dataclass(frozen=True)
class FlexPrefill:
    """Vertical-Slash with counts of each head's own: as many lines as hold a share `alpha` of the weights.

    As the paper uses it: up to `floor` lines the counts are fixed (``alpha = 0``, which is Vertical-Slash),
    beyond them `alpha` rises above that floor.
    """

    windows: Windows
    name: ClassVar[str] = "flexprefill"

    def knob(self, level: float | int, n_tokens: int) -> dict[str, Any]:
        """``alpha = 0`` and fewer lines than the floor for levels up to a half, then ``alpha`` up to 1."""
        floor = min(self.windows.floor, n_tokens)
        if level <= 0.5:
            return {"alpha": 0.0, "min_budget": round(floor ** (2 * level))}
        return {"alpha": 2 * level - 1, "min_budget": floor}

    def pattern(self, q: Query, k: Key, *, alpha: float, min_budget: int) -> SpanIndex:
        """`flexprefill_pattern`."""
        w = self.windows
        return flexprefill_pattern(
            q, k, alpha=alpha, min_budget=min_budget, window=w.observed, n_sink=w.n_sink,
            n_local=w.slash_local, block_size=w.rows,
        )  # fmt: skip


@dataclass(frozen=True)
class BlockSparse:
    """The `top_k` blocks of keys with the largest product of block means, for every block of queries."""

    windows: Windows
    name: ClassVar[str] = "block_sparse"

    def knob(self, level: float | int, n_tokens: int) -> dict[str, Any]:
        """``top_k`` from 3, the forced ones, to all blocks, by equal factors."""
        blocks = max(3, -(-n_tokens // self.windows.block))
        return {"top_k": round(3 * (blocks / 3) ** level)}

    def pattern(self, q: Query, k: Key, *, top_k: int) -> SpanIndex:
        """`block_topk_pattern`."""
        return block_topk_pattern(q, k, block_size=self.windows.block, top_k=top_k)


@dataclass(frozen=True)
class Streaming:
    """Baseline: the first tokens and the nearest ones, whatever they say (StreamingLLM)."""

    windows: Windows
    name: ClassVar[str] = "streaming"

    def knob(self, level: float | int, n_tokens: int) -> dict[str, Any]:
        """``n_local`` from 1 to all tokens, by equal factors."""
        return {"n_local": round(n_tokens**level)}

    def pattern(self, q: Query, k: Key, *, n_local: int) -> SpanIndex:
        """`streaming_pattern`, its window exact for every query."""
        w = self.windows
        return streaming_pattern(
            q.shape[2], n_sink=w.n_sink, n_local=n_local, block_size=w.rows, device=q.device
        )


PREFILL: tuple[type[Any], ...] = (VerticalSlash, FlexPrefill, BlockSparse, Streaming)
"""The three prefilling methods of the paper and a baseline."""


def fit_knob(
    method: PrefillMethod, heads: Heads, sparsity: float | int, *, slack: float = 1.1, steps: int = 10
) -> dict[str, Any] | None:
    """The knob whose mean density over `heads` is nearest to the budget ``1 - sparsity``, in proportion.

    Parameters
    ----------
    method : PrefillMethod
    heads : sequence of (q, k)
        Inputs set apart for this, all of one length: one knob serves every layer, head and input, as in the
        paper's Table 3.
    sparsity : float
        In [0, 1).
    slack : float
        A method's least density may exceed the budget by this factor; else it cannot be had.
    steps : int
        Halvings of the range.

    Returns
    -------
    dict or None
        None where even the least the method can do is above the budget.

    Raises
    ------
    ValueError
        If sparsity is out of range or there are no inputs, or of different lengths.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must lie in [0, 1), got {sparsity}")
    lengths = {q.shape[2] for q, _ in heads}
    if len(lengths) != 1:
        raise ValueError(f"heads must be inputs of one length, got lengths {sorted(lengths)}")
    (n_tokens,) = lengths
    budget = 1 - sparsity
    if _density(method, heads, method.knob(0.0, n_tokens)) > budget * slack:
        return None
    low, high = 0.0, 1.0
    for _ in range(steps):
        middle = (low + high) / 2
        fits = _density(method, heads, method.knob(middle, n_tokens)) <= budget
        low, high = (middle, high) if fits else (low, middle)
    knobs = [method.knob(level, n_tokens) for level in (low, high)]
    return min(knobs, key=lambda knob: abs(math.log(_density(method, heads, knob) / budget)))


def _density(method: PrefillMethod, heads: Heads, knob: dict[str, Any]) -> float:
    """Computed over causal pairs, mean over inputs and heads."""
    shares = [method.pattern(q, k, **knob).density(q.shape[2], q.shape[2], causal=True) for q, k in heads]
    return sum(shares) / len(shares)


# Decoding ------------------------------------------------------------------------------------------------


@runtime_checkable
class DecodeMethod(Protocol):
    """What a decoding method offers: which keys of the prompt the queries behind it attend."""

    name: ClassVar[str]

    def keep(self, q: Query, k: Key, new_q: New, *, sparsity: float | int) -> Mask:
        """True at the prompt's keys that each new query attends.

        Parameters
        ----------
        q, k : [batch, heads, prompt, dim], [batch, kv_heads, prompt, dim]
        new_q : [batch, heads, new, dim]
        sparsity : float
            Share of the prompt's keys that a query must do without.
        """


def capacity(n_prompt: int, sparsity: float | int, *, multiple: int = 1) -> int:
    """Tokens that a budget allows of a prompt, a multiple of `multiple`, at least one of it."""
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must lie in [0, 1), got {sparsity}")
    return max(1, math.floor((1 - sparsity) * n_prompt / multiple + 0.5)) * multiple


@dataclass(frozen=True)
class EvictSnapKV:
    """SnapKV: a KV head keeps the keys that the last queries attended, pooled over neighbours."""

    windows: Windows
    name: ClassVar[str] = "snapkv"

    def keep(self, q: Query, k: Key, new_q: New, *, sparsity: float | int) -> Mask:
        """See `DecodeMethod`."""
        w = self.windows
        size = capacity(k.shape[2], sparsity)
        local, sink = _forced(w, size)
        chosen = SnapKV(size, window=w.observed, pool=w.pool, n_local=local, n_sink=sink)
        return kept_mask(chosen.keep(q, k), k.shape[2], new_q)


@dataclass(frozen=True)
class EvictAdaSnapKV:
    """Ada-SnapKV: the layer's budget goes to the largest importances wherever they are, above a floor."""

    windows: Windows
    name: ClassVar[str] = "ada_snapkv"

    def keep(self, q: Query, k: Key, new_q: New, *, sparsity: float | int) -> Mask:
        """See `DecodeMethod`."""
        w = self.windows
        size = capacity(k.shape[2], sparsity)
        local, sink = _forced(w, size)
        chosen = AdaSnapKV(
            size, window=w.observed, pool=w.pool, n_local=local, n_sink=sink, min_ratio=w.ada_floor
        )
        return kept_mask(chosen.keep(q, k), k.shape[2], new_q)


def _forced(windows: Windows, size: int) -> tuple[int, int]:
    """Local and first tokens that are always kept; no more than half of a small budget is given away so."""
    sink = min(windows.n_sink, size // 4)
    return min(windows.snap_local, size // 2 - sink if size > 1 else 0), sink


@dataclass(frozen=True)
class EvictTOVA:
    """Baseline: the keys that the very last query attended (TOVA)."""

    windows: Windows
    name: ClassVar[str] = "tova"

    def keep(self, q: Query, k: Key, new_q: New, *, sparsity: float | int) -> Mask:
        """See `DecodeMethod`."""
        return kept_mask(TOVA(capacity(k.shape[2], sparsity)).keep(q, k), k.shape[2], new_q)


@dataclass(frozen=True)
class KeepRecent:
    """Baseline: the first tokens and the last ones (StreamingLLM)."""

    windows: Windows
    name: ClassVar[str] = "streaming"

    def keep(self, q: Query, k: Key, new_q: New, *, sparsity: float | int) -> Mask:
        """See `DecodeMethod`."""
        size = capacity(k.shape[2], sparsity)
        sink = min(self.windows.n_sink, size // 4)
        return kept_mask(StreamingLLM(sink, size - sink).keep(q, k), k.shape[2], new_q)


@dataclass(frozen=True)
class Quest:
    """Quest: nothing is evicted; each query takes the pages whose bounds promise the largest product.

    Heads that share keys share their pages. Only the prompt has pages here: tokens generated since are
    attended anyway, so that every method gets the same number of the prompt's tokens.
    """

    windows: Windows
    name: ClassVar[str] = "quest"

    def keep(self, q: Query, k: Key, new_q: New, *, sparsity: float | int) -> Mask:
        """See `DecodeMethod`."""
        page, n = self.windows.page, k.shape[2]
        scores = page_scores(new_q, *page_bounds(k, page))
        count = min(capacity(n, sparsity, multiple=page) // page, scores.shape[-1])
        pages = torch.zeros_like(scores, dtype=torch.bool)
        pages.scatter_(-1, scores.topk(count, sorted=False).indices, True)
        shared = pages.repeat_interleave(new_q.shape[1] // k.shape[1], 1)
        return shared.repeat_interleave(page, 3)[..., :n]


DECODE: tuple[type[Any], ...] = (EvictSnapKV, EvictAdaSnapKV, Quest, EvictTOVA, KeepRecent)
"""The three decoding methods of the paper and two baselines."""


def kept_mask(kept: Kept, n_keys: int, new_q: New) -> Mask:
    """Lists of kept keys per KV head as a mask for every new query of the heads that share them."""
    mask = kept.mask(n_keys).repeat_interleave(new_q.shape[1] // kept.indices.shape[1], 1)
    return mask[:, :, None].expand(-1, -1, new_q.shape[2], -1)


# Chance --------------------------------------------------------------------------------------------------


def random_prefill_mask(like: Query, density: float | int, generator: torch.Generator) -> Mask:
    """A causal mask of about this density without any reason; every query attends itself."""
    *shape, n, _ = like.shape
    off_diagonal = max(density * (n + 1) - 2, 0) / max(n - 1, 1)
    mask = torch.rand(*shape, n, n, generator=generator) < off_diagonal
    return (mask.tril(-1) | torch.eye(n, dtype=torch.bool)).to(like.device)


def random_decode_mask(new_q: New, n_prompt: int, sparsity: float | int, generator: torch.Generator) -> Mask:
    """Keys of the prompt drawn at random for every new query, as many as the budget allows."""
    draw = torch.rand(*new_q.shape[:3], n_prompt, generator=generator)
    chosen = draw.topk(capacity(n_prompt, sparsity), sorted=False).indices
    return torch.zeros(draw.shape, dtype=torch.bool).scatter_(-1, chosen, True).to(new_q.device)


# Attending -----------------------------------------------------------------------------------------------


def attend_prefill(
    q: Query, k: Key, v: Value, pattern: SpanIndex | Mask, *, scale: float | None = None
) -> tuple[Float[Tensor, "batch heads tokens value_dim"], Float[Tensor, "batch heads tokens"]]:
    """Causal attention over a pattern, and the logarithm of each query's sum of exponentials.

    The difference of that logarithm to the dense one is the logarithm of the attention mass that the pattern
    holds.
    """
    if isinstance(pattern, SpanIndex):
        state = span_state(q, k, v, pattern, causal=True, scale=scale)
        return state.output(q.dtype), state.lse()
    return _attend_masked(q, k, v, pattern, scale)


def dense_pattern(n_tokens: int, *, block_size: int = 64) -> SpanIndex:
    """The pattern that leaves nothing out."""
    everything = torch.tensor([0, n_tokens], dtype=torch.int32)
    return SpanIndex.from_spans(everything.expand(1, 1, -(-n_tokens // block_size), 1, 2), block_size)


def attend_decode(
    new_q: New, k: Key, v: Value, keep: Keep, *, scale: float | None = None
) -> tuple[Float[Tensor, "batch heads new value_dim"], Float[Tensor, "batch heads new"]]:
    """Attention of the new queries over what `keep` leaves of the prompt, and over the new tokens so far.

    Parameters
    ----------
    new_q : [batch, heads, new, dim]
    k, v : [batch, kv_heads, prompt + new, dim]
        The prompt's keys and values with those of the new tokens behind them.
    keep : bool [batch, heads, new, prompt]

    Returns
    -------
    outputs, and the logarithm of each query's sum of exponentials
    """
    new = new_q.shape[2]
    if keep.shape[3] + new != k.shape[2]:
        raise ValueError(f"keep must cover the {k.shape[2] - new} tokens of the prompt, got {keep.shape[3]}")
    own = torch.ones(new, new, dtype=torch.bool, device=k.device).tril()
    mask = torch.cat([keep, own.expand(*keep.shape[:3], new)], -1)
    return _attend_masked(new_q, k, v, mask, scale)


def _attend_masked(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float | None
) -> tuple[Tensor, Tensor]:
    """The plain meaning: logits, mask, softmax."""
    group = q.shape[1] // k.shape[1]
    grouped = q.unflatten(1, (k.shape[1], group)) * (q.shape[3] ** -0.5 if scale is None else scale)
    logits = torch.einsum("bhgqd,bhkd->bhgqk", grouped, k).flatten(1, 2)
    logits = logits.masked_fill_(~mask, -torch.inf)
    lse = logits.logsumexp(-1)
    weights = torch.exp(logits - lse[..., None]).unflatten(1, (k.shape[1], group))
    return torch.einsum("bhgqk,bhkd->bhgqd", weights, v).flatten(1, 2), lse
