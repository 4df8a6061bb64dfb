"""Which tokens of a cache stay after prefilling: SnapKV, Ada-SnapKV, TOVA, StreamingLLM.

    kept = SnapKV(capacity=1024).keep(q, k)               # q, k of the prompt
    cache = kept.compress(k, v)                           # [batch, kv_heads, longest, dim] and lengths
    out = cache.attend(q_new, k_new, v_new)               # what follows attends what was kept, and itself

Keys keep the phase of their rotary embedding. A prompt no longer than the capacity is kept whole.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparsebook.attention.patterns.arguments import (
    Key,
    Query,
    check_integer,
    check_queries_keys,
    check_share,
    window_statistics,
)
from sparsebook.attention.patterns.lines import key_sums
from sparsebook.attention.patterns.ranking import largest, positions
from sparsebook.kernels.block_attention import SpanIndex, span_attention

Importance = Float[Tensor, "batch kv_heads tokens"]


@dataclass(frozen=True)
class CompactCache:
    """Keys and values that were kept, padded to the longest head.

    Attributes
    ----------
    k, v : [batch, kv_heads, longest, dim]; zeros behind a head's last token
    lengths : int64 [batch, kv_heads]
    """

    k: Float[Tensor, "batch kv_heads kept dim"]
    v: Float[Tensor, "batch kv_heads kept value_dim"]
    lengths: Int[Tensor, "batch kv_heads"]

    def attend(
        self,
        q: Query,
        k_new: Float[Tensor, "batch kv_heads new dim"] | None = None,
        v_new: Float[Tensor, "batch kv_heads new value_dim"] | None = None,
        *,
        scale: float | None = None,
    ) -> Float[Tensor, "batch heads queries value_dim"]:
        """Attention of new queries over what was kept and, causally, over the new tokens.

        Parameters
        ----------
        q : [batch, heads, queries, dim]
            The last of the new tokens (all of them, if there are as many); without new tokens, any number.
        k_new, v_new : [batch, kv_heads, new, dim], optional
            Tokens after the prompt, those of the queries included.

        Raises
        ------
        ValueError
            If only one of k_new and v_new is given, there are fewer of them than queries, or shapes, heads
            or types do not fit (see `span_attention`).
        """
        if (k_new is None) != (v_new is None):
            raise ValueError("k_new and v_new must be given together")
        longest, n = self.k.shape[2], q.shape[2]
        keys, values, new = self.k, self.v, 0
        if k_new is not None and v_new is not None:
            new = k_new.shape[2]
            if new < n:
                raise ValueError(f"k_new must hold the {n} tokens of q at least, got {new}")
            keys, values = torch.cat([keys, k_new], 2), torch.cat([values, v_new], 2)
        lengths = self.lengths.repeat_interleave(q.shape[1] // self.k.shape[1], 1)
        zero, end = torch.zeros_like(lengths), torch.full_like(lengths, longest)
        spans = torch.stack([zero, lengths, end, end + new], -1).view(*lengths.shape, 1, 2, 2)
        index = SpanIndex.from_spans(spans.int(), n)
        # Without new tokens every query sees all that was kept.
        offset = longest + new - n if new else longest
        return span_attention(q, keys, values, index, causal=True, query_offset=offset, scale=scale)


@dataclass(frozen=True)
class Kept:
    """The tokens that stay, per KV head.

    Attributes
    ----------
    indices : int64 [batch, kv_heads, longest]
        Ascending, -1 behind a head's last.
    lengths : int64 [batch, kv_heads]
    """

    indices: Int[Tensor, "batch kv_heads kept"]
    lengths: Int[Tensor, "batch kv_heads"]

    @classmethod
    def from_mask(cls, mask: Bool[Tensor, "batch kv_heads tokens"]) -> "Kept":
        """The tokens where `mask` is True.

        Raises
        ------
        ValueError
            If a head would keep nothing.
        """
        lengths = mask.sum(-1)
        if not bool((lengths > 0).all()):
            raise ValueError("mask must keep at least one token per head")
        return cls(positions(mask), lengths)

    def mask(self, n_tokens: int) -> Bool[Tensor, "batch kv_heads tokens"]:
        """True where a token stays.

        Raises
        ------
        ValueError
            If an index is n_tokens or larger.
        """
        self._check(n_tokens)
        slots = torch.where(self.indices < 0, n_tokens, self.indices)
        mask = torch.zeros(*slots.shape[:2], n_tokens + 1, dtype=torch.bool, device=slots.device)
        return mask.scatter_(-1, slots, True)[..., :n_tokens]

    def density(self, n_tokens: int) -> Float[Tensor, "batch"]:
        """Tokens kept over tokens of the prompt, mean over the KV heads: what a decoding step reads."""
        return self.lengths.double().mean(-1) / n_tokens

    def compress(self, k: Key, v: Float[Tensor, "batch kv_heads keys value_dim"]) -> CompactCache:
        """Gather the kept keys and values.

        Raises
        ------
        ValueError
            If k or v has other batch or heads than the indices, or too few tokens.
        """
        for name, x in (("k", k), ("v", v)):
            if x.ndim != 4 or x.shape[:2] != self.indices.shape[:2]:
                batch, heads = self.indices.shape[:2]
                raise ValueError(
                    f"{name} must have shape ({batch}, {heads}, tokens, dim), got {tuple(x.shape)}"
                )
            self._check(x.shape[2], name)
        slots = self.indices.clamp(min=0)[..., None]
        missing = self.indices[..., None] < 0
        k_kept, v_kept = (
            x.gather(2, slots.expand(-1, -1, -1, x.shape[3])).masked_fill(missing, 0.0) for x in (k, v)
        )
        return CompactCache(k_kept, v_kept, self.lengths)

    def attend(
        self,
        q: Query,
        k: Key,
        v: Float[Tensor, "batch kv_heads keys value_dim"],
        k_new: Float[Tensor, "batch kv_heads new dim"] | None = None,
        v_new: Float[Tensor, "batch kv_heads new value_dim"] | None = None,
        *,
        scale: float | None = None,
    ) -> Float[Tensor, "batch heads queries value_dim"]:
        """`compress` the prompt's k and v, then `CompactCache.attend`."""
        return self.compress(k, v).attend(q, k_new, v_new, scale=scale)

    def _check(self, n_tokens: int, name: str = "n_tokens") -> None:
        if bool((self.indices >= n_tokens).any()):
            raise ValueError(f"{name} must reach the indices up to {int(self.indices.max())}, got {n_tokens}")


# Methods -----------------------------------------------------------------------------------------------


def _kept(importance: Importance, capacity: int) -> Kept:
    return Kept.from_mask(largest(importance, capacity))


def _per_group(x: Float[Tensor, "batch heads tokens"], kv_heads: int) -> Tensor:
    """[batch, kv_heads, group, tokens]: the query heads of a group share their keys."""
    return x.unflatten(1, (kv_heads, x.shape[1] // kv_heads))


def key_maxima(weights: Float[Tensor, "batch heads window keys"]) -> Float[Tensor, "batch heads keys"]:
    """The largest weight that a query of the window gives each key."""
    return weights.amax(-2)


def _smooth(importance: Importance, pool: int) -> Importance:
    """Mean over `pool` neighbours; beyond the ends stand zeros that count, so that edges weigh less."""
    return torch.nn.functional.avg_pool1d(importance, pool, stride=1, padding=pool // 2)


@dataclass(frozen=True)
class SnapKV:
    """Per KV head, the tokens that the last queries attend most, with the first and the last tokens.

    Attributes
    ----------
    capacity : int
        Tokens kept per KV head.
    window : int
        Queries at the end of the prompt that vote.
    pool : int
        Odd width of the mean that smooths the votes along the tokens.
    n_local, n_sink : int
        Last and first tokens, always kept.
    scale : float, optional
        Factor of the logits, 1 / sqrt(dim) if not given.

    Raises
    ------
    ValueError
        If capacity is below n_local + n_sink or 1, window below 1, pool even, or n_local or n_sink negative.

    Notes
    -----
    Li et al., SnapKV (2024), with the parameters of The Sparse Frontier (2025): mean over the query heads of
    a group, sum over the queries.
    """

    capacity: int
    window: int = 256
    pool: int = 21
    n_local: int = 128
    n_sink: int = 4
    scale: float | None = None

    def __post_init__(self) -> None:
        check_integer("n_local", self.n_local, 0)
        check_integer("n_sink", self.n_sink, 0)
        check_integer("capacity", self.capacity, max(1, self.n_local + self.n_sink))
        check_integer("window", self.window)
        check_integer("pool", self.pool)
        if self.pool % 2 == 0:
            raise ValueError(f"pool must be odd, got {self.pool}")

    def importance(self, q: Query, k: Key) -> Importance:
        """Smoothed votes per KV head, before any token is forced.

        `q` are the prompt's last queries: all of them or, at least `window`, some.
        """
        check_queries_keys(q, k, aligned=False)
        if min(self.window, k.shape[2]) > q.shape[2]:
            raise ValueError(f"q must hold the last {self.window} tokens of k at least, got {q.shape[2]}")
        return _smooth(self._votes(q, k), self.pool)

    def keep(self, q: Query, k: Key) -> Kept:
        """Choose by the prompt's queries and keys.

        Raises
        ------
        ValueError
            If q and k do not fit together or are not finite.
        """
        return _kept(self._forced(q, k), self.capacity)

    def _votes(self, q: Query, k: Key) -> Importance:
        (votes,) = window_statistics(q, k, self.window, self.scale, key_sums)
        return _per_group(votes, k.shape[1]).mean(2)

    def _forced(self, q: Query, k: Key) -> Importance:
        importance = self.importance(q, k)
        importance[..., : self.n_sink] = torch.inf
        importance[..., max(0, k.shape[2] - self.n_local) :] = torch.inf
        return importance


@dataclass(frozen=True)
class AdaSnapKV(SnapKV):
    """SnapKV whose KV heads share one budget of ``capacity * kv_heads`` tokens; every head has a floor.

    A token's vote is the largest weight that any query of the window, in any head of the group, gives it.
    Each head keeps its top ``max(floor(min_ratio * capacity), n_local + n_sink)``; the rest of the budget
    goes to the largest votes of all heads.

    Attributes
    ----------
    min_ratio : float
        Share of the capacity that every head keeps, in [0, 1].

    Notes
    -----
    Feng et al., Ada-KV (2024), as re-implemented for The Sparse Frontier (2025).
    """

    min_ratio: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("min_ratio", self.min_ratio)

    @property
    def floor(self) -> int:
        """Tokens that every head keeps."""
        return max(int(self.min_ratio * self.capacity), self.n_local + self.n_sink)

    def keep(self, q: Query, k: Key) -> Kept:
        """As `SnapKV.keep`; the lengths of heads differ, their sum is the budget exactly."""
        importance = self._forced(q, k)
        kv_heads, n_tokens = importance.shape[1:]
        if n_tokens <= self.capacity:
            return _kept(importance, n_tokens)
        mask = largest(importance, self.floor)
        rest = importance.masked_fill(mask, -torch.inf).flatten(1)
        return Kept.from_mask(
            mask | largest(rest, (self.capacity - self.floor) * kv_heads).view_as(mask)
        )  # fmt: skip

    def _votes(self, q: Query, k: Key) -> Importance:
        (votes,) = window_statistics(q, k, self.window, self.scale, key_maxima)
        return _per_group(votes, k.shape[1]).amax(2)


@dataclass(frozen=True)
class TOVA:
    """The tokens that the last query attends most, mean over all heads of the layer; the last one included.

    Attributes
    ----------
    capacity : int
        Tokens kept, the same ones in every KV head.
    scale : float, optional

    Notes
    -----
    Oren et al., Transformers are Multi-State RNNs (2024), once after the prompt; there it is applied at each
    step of decoding, and the last token is not forced.
    """

    capacity: int
    scale: float | None = None

    def __post_init__(self) -> None:
        check_integer("capacity", self.capacity)

    def keep(self, q: Query, k: Key) -> Kept:
        """Choose by the prompt's last query and its keys.

        Raises
        ------
        ValueError
            If q and k do not fit together or are not finite.
        """
        check_queries_keys(q, k, aligned=False)
        (votes,) = window_statistics(q, k, 1, self.scale, key_sums)
        weights = votes.mean(1, keepdim=True)
        weights[..., -1] = torch.inf
        return _kept(weights.expand(-1, k.shape[1], -1), self.capacity)


@dataclass(frozen=True)
class StreamingLLM:
    """The first `n_sink` and the last `n_local` tokens, whatever they are.

    Notes
    -----
    Xiao et al., Efficient Streaming Language Models with Attention Sinks (2024); keys keep their positions.
    """

    n_sink: int
    n_local: int

    def __post_init__(self) -> None:
        check_integer("n_sink", self.n_sink, 0)
        check_integer("n_local", self.n_local)

    def keep(self, q: Query, k: Key) -> Kept:
        """The same tokens for every head; only the shape of `k` is looked at."""
        check_queries_keys(q, k, aligned=False)
        token = torch.arange(k.shape[2], device=k.device)
        mask = (token < self.n_sink) | (token >= k.shape[2] - self.n_local)
        return Kept.from_mask(mask.expand(k.shape[0], k.shape[1], -1))
