"""What attention costs without regard to an implementation: FLOPs of prefilling, elements read by decoding.

Equations 3 and 8 of Nawrot et al., *The Sparse Frontier* (2025), term by term, so that a share can be taken
of any of them. Density scales the scores (prefill) and the cached keys and values (decode), nothing else.

>>> from sparsebook.attention.costs import ModelSizes, attention_cost
>>> qwen7b = ModelSizes(layers=28, hidden=3584, heads=28, kv_heads=4, mlp=18944, vocabulary=152064)
>>> dense = attention_cost(qwen7b, 65_536)
>>> round(dense.attention_share, 2), round(dense.total / attention_cost(qwen7b, 65_536, density=0.2).total, 1)
(0.67, 2.0)
"""

import math
from dataclasses import dataclass
from typing import Literal

Phase = Literal["prefill", "decode"]
Projections = Literal["grouped", "printed"]


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a decoder-only transformer that its cost depends on.

    Attributes
    ----------
    layers, hidden, heads, kv_heads, mlp, vocabulary : N, d, h, n_kv, d_m and |V| of the paper
    head_width : d_h; `hidden / heads` if None
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int
    head_width: int | None = None

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "heads", "kv_heads", "mlp", "vocabulary"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads must be a multiple of kv_heads={self.kv_heads}, got {self.heads}")
        if self.head_width is None and self.hidden % self.heads:
            raise ValueError(f"hidden must be a multiple of heads={self.heads}, got {self.hidden}")

    @property
    def dim(self) -> int:
        """Width of a head, d_h."""
        return self.hidden // self.heads if self.head_width is None else self.head_width


@dataclass(frozen=True)
class Cost:
    """A cost by its parts: FLOPs of prefilling a batch, or elements read by one step of decoding it.

    Attributes
    ----------
    embedding, projections, mlp, output : of the tokens, of Q, K, V and O, of the MLPs, of the vocabulary
    attention : what density scales: scores and weighted sums (prefill), keys and values read (decode)
    index : what finding the pattern costs
    """

    embedding: float | int
    projections: float | int
    attention: float | int
    mlp: float | int
    output: float | int
    index: float | int

    @property
    def total(self) -> float | int:
        """All parts."""
        return self.embedding + self.projections + self.attention + self.mlp + self.output + self.index

    @property
    def attention_share(self) -> float:
        """Share of attention with its projections, as the paper's Figure 12 counts it."""
        return (self.projections + self.attention + self.index) / self.total

    @property
    def cache_share(self) -> float:
        """Share of what density scales; in decoding the keys and values, as in Figure 13."""
        return self.attention / self.total


def attention_cost(
    model: ModelSizes,
    n_tokens: int,
    *,
    density: float | int = 1.0,
    batch: int = 1,
    phase: Phase = "prefill",
    index: float | int = 0.0,
    projections: Projections = "grouped",
) -> Cost:
    """Cost of prefilling `n_tokens` (FLOPs), or of one decoding step after them (elements read).

    Parameters
    ----------
    model : ModelSizes
    n_tokens : int
        Length L of the input.
    density : float
        Share of the causal pairs (prefill) or of the cache (decode) that is used, from 0 to 1.
    batch : int
        Inputs handled together; decoding reads the weights once for all of them.
    phase : "prefill" or "decode"
    index : float
        Cost of finding the pattern, from `vertical_slash_index_cost` or `quest_index_cost`.
    projections : "grouped" or "printed"
        Weights of Q, K, V and O in decoding: ``2d² + 2·d·d_h·n_kv``, as grouped queries have them, or
        ``4d²``, as Equation 8 prints.

    Raises
    ------
    ValueError
        If a number is out of range or a name is none of these.
    """
    if phase not in ("prefill", "decode"):
        raise ValueError(f"phase must be 'prefill' or 'decode', got {phase!r}")
    if projections not in ("grouped", "printed"):
        raise ValueError(f"projections must be 'grouped' or 'printed', got {projections!r}")
    if n_tokens < 1 or batch < 1:
        raise ValueError(f"n_tokens and batch must be at least 1, got {n_tokens} and {batch}")
    if not 0 <= density <= 1:
        raise ValueError(f"density must lie between 0 and 1, got {density}")
    if not (math.isfinite(index) and index >= 0):
        raise ValueError(f"index must be a finite cost of at least 0, got {index}")
    if phase == "prefill":
        return _prefill(model, n_tokens, density, batch, index)
    return _decode(model, n_tokens, density, batch, index, projections == "printed")


def _prefill(m: ModelSizes, length: int, density: float | int, batch: int, index: float | int) -> Cost:
    """Equation 3."""
    tokens = batch * length
    return Cost(
        embedding=2 * tokens * m.hidden,
        projections=m.layers * 2 * tokens * m.hidden * (2 * m.hidden + 2 * m.dim * m.kv_heads),
        attention=m.layers * density * tokens * length * m.heads * (4 * m.dim + 3),
        mlp=m.layers * tokens * m.mlp * (6 * m.hidden + 2),
        output=2 * tokens * m.hidden * m.vocabulary,
        index=index,
    )


def _decode(
    m: ModelSizes, length: int, density: float | int, batch: int, index: float | int, printed: bool
) -> Cost:
    """Equation 8."""
    grouped = 2 * m.hidden**2 + 2 * m.hidden * m.dim * m.kv_heads
    return Cost(
        embedding=m.hidden,
        projections=m.layers * (4 * m.hidden**2 if printed else grouped),
        attention=batch * 2 * m.layers * length * m.dim * m.kv_heads * density,
        mlp=m.layers * 3 * m.hidden * m.mlp,
        output=m.hidden * m.vocabulary,
        index=index,
    )


def vertical_slash_index_cost(
    model: ModelSizes, n_tokens: int, *, window: int, n_vertical: int, n_slash: int, batch: int = 1
) -> float:
    """FLOPs that Vertical-Slash spends on finding its lines: scores of the last `window` queries, two sorts.

    The paper prints ``2d`` per score and sums over heads; a head's share of it, its width, is meant.
    """
    per_head = (
        (2 * model.dim + 5) * n_tokens * window
        + 2 * n_tokens * math.log2(max(n_tokens, 2))
        + n_tokens / 64 * (n_vertical + n_slash)
    )
    return batch * model.layers * model.heads * per_head


def quest_index_cost(model: ModelSizes, n_tokens: int, *, page_size: int = 16, batch: int = 1) -> float:
    """Elements that Quest reads to rank its pages: two bounds a page, layer and key-value head."""
    return batch * model.layers * model.kv_heads * 2 * model.dim * n_tokens / page_size


def block_index_cost(model: ModelSizes, n_tokens: int, *, block_size: int = 16, batch: int = 1) -> float:
    """FLOPs that Block-Sparse spends on its blocks: means of queries and keys, products of the means.

    The paper has no formula for it. Keys are counted once a query head, as the paper's code repeats them.
    """
    blocks = math.ceil(n_tokens / block_size)
    return float(batch * model.layers * model.heads * 2 * model.dim * (n_tokens + blocks**2))
