"""A decoder-only transformer small enough to be trained on a laptop, whose attention can be exchanged.

Pre-norm blocks with RMSNorm, rotary positions, grouped queries with normalised queries and keys, a GELU MLP
and one matrix for embedding and output: the plan of today's large models. One thing is not theirs. The keys
are *smeared*: each is mixed with the key of the token before it, in a proportion that every key head learns.
A head can then find "what followed this token" in one step, where a plain transformer needs a head in the
layer below that looks one token back and is found only after a long plateau of training. Attention functions
receive smeared, rotated keys and need not know.

>>> model = SmallTransformer(vocabulary=512, width=32, n_layers=2)
>>> logits = model(torch.tensor([[3, 20, 300, 3, 21, 301, 0, 20]]))
>>> logits.shape
torch.Size([1, 8, 512])
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import embedding, gelu, rms_norm, scaled_dot_product_attention

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""``attention(queries, keys, values, layer) -> outputs``; see :meth:`SmallTransformer.forward`."""

Rotation = tuple[Tensor, Tensor]

# Normalised queries and keys of 16 coordinates have dot products of at most 4 after scaling: too flat to
# single out one key of hundreds. Gains of 2 on both raise that to 16.
_GAIN = 2.0
_EPSILON = 1e-6


@dataclass(frozen=True)
class CapturedAttention:
    """What the attention of every layer saw, as it saw it: keys smeared, queries and keys rotated.

    Attributes
    ----------
    queries : per layer [batch, heads, tokens, head_dim]
    keys, values : per layer [batch, key_value_heads, tokens, head_dim]
    """

    queries: tuple[Float[Tensor, "batch heads tokens head_dim"], ...]
    keys: tuple[Float[Tensor, "batch kv_heads tokens head_dim"], ...]
    values: tuple[Float[Tensor, "batch kv_heads tokens head_dim"], ...]


@dataclass
class _LayerCache:
    """What one layer remembers of earlier tokens: rotated keys, values, the last key before smearing."""

    keys: Tensor | None = None
    values: Tensor | None = None
    last_key: Tensor | None = None


@dataclass
class _Cache:
    layers: list[_LayerCache]
    length: int = field(default=0)


def dense_attention(
    queries: Float[Tensor, "batch heads new head_dim"],
    keys: Float[Tensor, "batch kv_heads tokens head_dim"],
    values: Float[Tensor, "batch kv_heads tokens head_dim"],
    layer: int = 0,
) -> Float[Tensor, "batch heads new head_dim"]:
    """Causal softmax attention over all earlier tokens, the queries being those of the last `new` tokens."""
    new, tokens = queries.shape[2], keys.shape[2]
    if new == tokens:
        return scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)
    if new > tokens:
        raise ValueError(f"queries have {new} tokens and keys {tokens}: expected no more queries than keys")
    mask = torch.ones(new, tokens, dtype=torch.bool, device=queries.device).tril(tokens - new)
    return scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=True)


def rotate(x: Float[Tensor, "*batch tokens head_dim"], rotation: Rotation) -> Tensor:
    """Turn the pairs (i, i + head_dim / 2) of coordinates by their angles: rotary position embedding."""
    cosine, sine = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


class _Block(nn.Module):
    """One layer: attention, then MLP, each reading the normed residual stream and adding to it."""

    def __init__(self, model: "SmallTransformer", generator: torch.Generator) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = model.heads, model.key_value_heads, model.head_dim
        self.sizes = (self.heads, self.kv_heads, self.kv_heads)
        width, depth, inner = model.width, model.n_layers, self.heads * self.head_dim
        self.attention_norm = nn.Parameter(torch.ones(width))
        self.qkv = _linear(sum(self.sizes) * self.head_dim, width, 1, generator)
        self.query_norm = nn.Parameter(torch.full((model.head_dim,), _GAIN))
        self.key_norm = nn.Parameter(torch.full((model.head_dim,), _GAIN))
        self.smear = nn.Parameter(torch.zeros(model.key_value_heads, 1, 1)) if model.smear else None
        self.out = _linear(width, inner, 2 * depth, generator)
        self.mlp_norm = nn.Parameter(torch.ones(width))
        self.up = _linear(model.mlp_width, width, 1, generator)
        self.down = _linear(width, model.mlp_width, 2 * depth, generator)
        self._begin_by_copying(generator)

    @torch.no_grad()
    def _begin_by_copying(self, generator: torch.Generator) -> None:
        """Heads begin as look-ups: queries find equal keys, outputs are the values.

        Queries and keys of a group share one projection, an output matrix is the transpose of its values'
        (Trockman and Kolter, "Mimetic Initialization of Self-Attention Layers", 2023).
        """
        matching, copying = (self._orthogonal(generator) for _ in range(2))
        per_query_head = torch.arange(self.heads) // (self.heads // self.kv_heads)
        queries = matching[per_query_head]
        self.qkv.weight.copy_(torch.cat([queries, matching, copying]).flatten(0, 1))
        self.out.weight.copy_(copying[per_query_head].flatten(0, 1).T)

    def _orthogonal(self, generator: torch.Generator) -> Tensor:
        """A projection to the coordinates of each key head, all orthogonal: [kv_heads, head_dim, width]."""
        width = self.qkv.weight.shape[1]
        basis = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
        return basis[: self.kv_heads * self.head_dim].unflatten(0, (self.kv_heads, self.head_dim))

    def project(self, x: Tensor, rotation: Rotation, cache: _LayerCache | None) -> tuple[Tensor, ...]:
        h = self.qkv(_norm(x, self.attention_norm))
        heads = h.unflatten(-1, (sum(self.sizes), -1)).transpose(1, 2)
        queries, keys, values = heads.split(self.sizes, dim=1)
        keys = self._smeared(keys, cache)
        queries = rotate(_norm(queries, self.query_norm), rotation)
        keys = rotate(_norm(keys, self.key_norm), rotation)
        return queries, keys, values

    def _smeared(self, keys: Tensor, cache: _LayerCache | None) -> Tensor:
        """Mix every key with the one before it; the first one has none and is mixed with zero."""
        if self.smear is None:
            return keys
        before = None if cache is None else cache.last_key
        if before is None:
            before = torch.zeros_like(keys[:, :, :1])
        if cache is not None:
            cache.last_key = keys[:, :, -1:]
        previous = torch.cat([before, keys[:, :, :-1]], dim=2)
        return torch.lerp(keys, previous, self.smear.sigmoid())

    def feed(self, x: Tensor) -> Tensor:
        return self.down(gelu(self.up(_norm(x, self.mlp_norm)), approximate="tanh"))


class SmallTransformer(nn.Module):
    """A decoder-only transformer with exchangeable attention.

    Parameters
    ----------
    vocabulary, width, n_layers : int
        Sizes of the embedding and the number of blocks.
    head_dim : int
        Coordinates of a head, even; the width divided by it is the number of query heads.
    group : int
        Query heads that share a key and value head.
    mlp_ratio : int
        Width of the MLP over that of the model.
    rotary_base : float
        The slowest pair of coordinates turns by about 1 / `rotary_base` radians a token, the fastest by 1.
    smear : bool
        Mix every key with the one before it (see the module's text); False gives the plain architecture.
    seed : int
        Of the initial weights.

    Attributes
    ----------
    heads, key_value_heads, mlp_width : the sizes that follow

    Raises
    ------
    ValueError
        Sizes below 1, an odd `head_dim`, or heads that do not divide.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        n_layers: int,
        head_dim: int = 16,
        group: int = 2,
        *,
        mlp_ratio: int = 2,
        rotary_base: float = 1e6,
        smear: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check(vocabulary=vocabulary, width=width, n_layers=n_layers, group=group, mlp_ratio=mlp_ratio)
        if head_dim < 2 or head_dim % 2 or width % (head_dim * group):
            raise ValueError(
                f"head_dim={head_dim}, group={group}, width={width}: expected an even head_dim whose product "
                "with group divides width"
            )
        self.vocabulary, self.width, self.n_layers = vocabulary, width, n_layers
        self.head_dim, self.group, self.smear, self.rotary_base = head_dim, group, smear, rotary_base
        self.heads, self.mlp_width = width // head_dim, mlp_ratio * width
        self.key_value_heads = self.heads // group
        generator = torch.Generator().manual_seed(seed)
        self.embedding = _matrix(vocabulary, width, 1, generator)
        self.blocks = nn.ModuleList(_Block(self, generator) for _ in range(n_layers))
        self.norm = nn.Parameter(torch.ones(width))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.device

    # --- forward --------------------------------------------------------------------------------------------

    def forward(
        self, tokens: Int[Tensor, "batch tokens"], attention: Attention | None = None
    ) -> Float[Tensor, "batch tokens vocabulary"]:
        """Next-token scores at every token.

        Parameters
        ----------
        tokens : int64 [batch, tokens]
        attention : callable, optional
            ``attention(queries, keys, values, layer) -> outputs`` with queries and outputs ``[batch, heads,
            tokens, head_dim]``, keys and values ``[batch, key_value_heads, tokens, head_dim]``; causality and
            the scale ``head_dim ** -0.5`` are the function's business. Dense attention if None.

        Raises
        ------
        ValueError
            Tokens that are not ids of the vocabulary or none at all; outputs of another shape.
        """
        return self._states(tokens, attention or dense_attention) @ self.embedding.T

    def capture(
        self, tokens: Int[Tensor, "batch tokens"], attention: Attention | None = None
    ) -> CapturedAttention:
        """Queries, keys and values of every layer in one pass; parameters as in :meth:`forward`."""
        seen: list[tuple[Tensor, Tensor, Tensor]] = []
        attend = attention or dense_attention

        def observed(queries: Tensor, keys: Tensor, values: Tensor, layer: int) -> Tensor:
            seen.append((queries, keys, values))
            return attend(queries, keys, values, layer)

        self._states(tokens, observed)
        return CapturedAttention(*(tuple(part) for part in zip(*seen, strict=True)))

    def teacher_forced(
        self, tokens: Int[Tensor, "batch tokens"], answer_start: int, attention: Attention | None = None
    ) -> Int[Tensor, "batch answers"]:
        """The likeliest token at each place of the answer, given the right tokens before it: one pass.

        Where several answers are right in any order, as the common words are, ask :meth:`greedy` instead: a
        right word that the given answer names later counts as a mistake here.

        Parameters
        ----------
        tokens : int64 [batch, tokens], the answer at the end
        answer_start : int
            Where it begins, at least 1.
        attention : as in :meth:`forward`
        """
        if not 1 <= answer_start < tokens.shape[1]:
            raise ValueError(f"answer_start={answer_start}: expected 1 to {tokens.shape[1] - 1}")
        states = self._states(tokens, attention or dense_attention)
        return (states[:, answer_start - 1 : -1] @ self.embedding.T).argmax(dim=-1)

    @torch.no_grad()
    def greedy(
        self, prompt: Int[Tensor, "batch prompt"], n_new: int, attention: Attention | None = None
    ) -> Int[Tensor, "batch n_new"]:
        """Continue every prompt by its likeliest token, `n_new` times, keeping keys and values.

        Parameters
        ----------
        prompt : int64 [batch, prompt]
        n_new : int
            Tokens to add, at least 1.
        attention : callable, optional
            As in :meth:`forward`, called once per layer with the prompt's queries (*prefill*) and then, for
            each new token but the last, with one query and all keys and values up to its own (*decoding*).

        Raises
        ------
        ValueError
            As :meth:`forward`, and for `n_new` below 1.
        """
        _check(n_new=n_new)
        attend = attention or dense_attention
        cache = _Cache([_LayerCache() for _ in range(self.n_layers)])
        new, made = prompt, []
        for _ in range(n_new):
            last = self._states(new, attend, cache)[:, -1:]
            new = (last @ self.embedding.T).argmax(dim=-1)
            made.append(new)
        return torch.cat(made, dim=1)

    def _states(self, tokens: Tensor, attention: Attention, cache: _Cache | None = None) -> Tensor:
        """The residual stream after the last norm."""
        self._check_tokens(tokens)
        start = 0 if cache is None else cache.length
        rotation = self._rotation(start, tokens.shape[1])
        x = embedding(tokens, self.embedding)
        x = rms_norm(x, (self.width,), eps=_EPSILON)
        for layer, block in enumerate(self._layers()):
            kept = None if cache is None else cache.layers[layer]
            queries, keys, values = block.project(x, rotation, kept)
            keys, values = _appended(kept, keys, values)
            attended = attention(queries, keys, values, layer)
            if attended.shape != queries.shape:
                raise ValueError(
                    f"attention returned shape {tuple(attended.shape)} in layer {layer}: expected that of "
                    f"the queries, {tuple(queries.shape)}"
                )
            x = x + block.out(attended.transpose(1, 2).flatten(2))
            x = x + block.feed(x)
        if cache is not None:
            cache.length += tokens.shape[1]
        return _norm(x, self.norm)

    def _layers(self) -> list[_Block]:
        return cast(list[_Block], list(self.blocks))

    def _rotation(self, start: int, length: int) -> Rotation:
        # In float64 and on the CPU whatever the model's own: angles of far tokens are large numbers.
        steps = torch.arange(self.head_dim // 2, dtype=torch.float64) / (self.head_dim // 2)
        places = torch.arange(start, start + length, dtype=torch.float64)
        angles = places[:, None] * self.rotary_base**-steps
        return angles.cos().to(self.embedding), angles.sin().to(self.embedding)

    def _check_tokens(self, tokens: Tensor) -> None:
        if tokens.ndim != 2 or tokens.dtype != torch.int64 or tokens.numel() == 0:
            raise ValueError(
                f"tokens has shape {tuple(tokens.shape)} and dtype {tokens.dtype}: expected int64 [batch, "
                "tokens], not empty"
            )
        least, most = (int(extreme) for extreme in tokens.aminmax())
        if least < 0 or most >= self.vocabulary:
            raise ValueError(f"tokens has ids {least} to {most}: expected 0 to {self.vocabulary - 1}")


def _matrix(rows: int, columns: int, share: int, generator: torch.Generator) -> nn.Parameter:
    """Gaussian weights whose product with a normed vector has variance 1 / `share`."""
    return nn.Parameter(torch.randn(rows, columns, generator=generator) * (columns * share) ** -0.5)


def _linear(rows: int, columns: int, share: int, generator: torch.Generator) -> nn.Linear:
    linear = nn.Linear(columns, rows, bias=False)
    linear.weight = _matrix(rows, columns, share, generator)
    return linear


def _norm(x: Tensor, gain: Tensor) -> Tensor:
    return rms_norm(x, x.shape[-1:], gain, _EPSILON)


def _appended(cache: _LayerCache | None, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """All keys and values so far, which the cache then holds."""
    if cache is None:
        return keys, values
    if cache.keys is not None and cache.values is not None:
        keys, values = torch.cat([cache.keys, keys], dim=2), torch.cat([cache.values, values], dim=2)
    cache.keys, cache.values = keys, values
    return keys, values


def _check(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name}={value}: expected at least 1")
