"""Quest: the whole cache stays; each step of decoding reads the pages whose keys could match best.

Tang et al., Quest (2024), as in The Sparse Frontier (2025): a page's score is the largest inner product that
a key within the page's bounds could have with the query.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparsebook.attention.patterns.arguments import (
    Key,
    Query,
    check_finite,
    check_integer,
    check_queries_keys,
    products,
)
from sparsebook.attention.patterns.ranking import largest, positions, runs
from sparsebook.kernels.block_attention import SpanIndex, paged_attention

Bounds = Float[Tensor, "batch kv_heads pages dim"]


def page_bounds(k: Key, page_size: int) -> tuple[Bounds, Bounds]:
    """Element-wise minimum and maximum of the keys of each page; the last page may be short."""
    check_integer("page_size", page_size)
    short = -k.shape[2] % page_size
    # The last key again leaves the bounds as they are.
    padded = torch.cat([k, k[:, :, -1:].expand(-1, -1, short, -1)], 2) if short else k
    paged = padded.unflatten(2, (-1, page_size))
    return paged.amin(3), paged.amax(3)


def page_scores(
    q: Query, low: Bounds, high: Bounds, *, share_pages: bool = True
) -> Float[Tensor, "batch page_heads queries pages"]:
    """Sum over features of max(q * low, q * high): no key of the page has a larger product with the query.

    With `share_pages` the scores are summed over the query heads of a group, [batch, kv_heads, ..], otherwise
    [batch, heads, ..]. Products are unscaled.
    """
    # max(q a, q b) with a <= b is q b for positive q and q a for negative q.
    scores = products(q.clamp(min=0), high) + products(q.clamp(max=0), low)
    if share_pages:
        scores = scores.unflatten(1, (low.shape[1], -1)).sum(2)
    return scores


def _check_pages(token_budget: int, page_size: int) -> None:
    check_integer("page_size", page_size)
    check_integer("token_budget", token_budget)
    if token_budget % page_size:
        raise ValueError(f"token_budget must be a multiple of page_size {page_size}, got {token_budget}")


def quest_pattern(
    q: Query, k: Key, *, token_budget: int, page_size: int = 16, share_pages: bool = True
) -> SpanIndex:
    """What the last queries would attend if they came one by one: Quest's steps in one pass.

    Parameters
    ----------
    q : [batch, heads, queries, dim]
        The last tokens of `k`.
    k : [batch, kv_heads, keys, dim]
        Keys of the prompt and of the queries.
    token_budget, page_size, share_pages : as in `QuestCache`

    Returns
    -------
    SpanIndex
        With blocks of one query, for ``span_attention(q, k, v, index, causal=True, query_offset=keys -
        queries)``. Every query ranks the pages before its own, which it always attends.

    Raises
    ------
    ValueError
        If q and k do not fit together or are not finite, q is longer than k, or token_budget is not a
        positive multiple of page_size.
    """
    _check_pages(token_budget, page_size)
    check_queries_keys(q, k, aligned=False)
    n, n_keys = q.shape[2], k.shape[2]
    if n > n_keys:
        raise ValueError(f"q must hold the last tokens of k, got {n} queries and {n_keys} keys")
    scores = page_scores(q, *page_bounds(k, page_size), share_pages=share_pages)
    page = torch.arange(scores.shape[-1], device=q.device)
    own = ((torch.arange(n, device=q.device) + n_keys - n) // page_size)[:, None]
    before = page < own
    table = largest(scores.masked_fill(~before, -torch.inf), token_budget // page_size) & before
    spans = (runs(table | (page == own)) * page_size).clamp(max=n_keys)
    if share_pages:
        spans = spans.repeat_interleave(q.shape[1] // k.shape[1], 1)
    return SpanIndex.from_spans(spans.int(), 1)


class QuestCache:
    """A cache that is kept whole and read by pages.

    Parameters
    ----------
    token_budget : int
        Tokens of ranked pages that a step reads, a multiple of `page_size`; the current page comes on top.
    page_size : int
        Tokens in a page.
    share_pages : bool
        Query heads of a group rank pages together.

    Raises
    ------
    ValueError
        If token_budget is not a positive multiple of page_size.

    Notes
    -----
    While there are no more pages than the budget has, all are read: the step is dense. What is cached carries
    no gradient.
    """

    def __init__(self, *, token_budget: int, page_size: int = 16, share_pages: bool = True) -> None:
        _check_pages(token_budget, page_size)
        self.token_budget = token_budget
        self.page_size = page_size
        self.share_pages = share_pages
        self.length = 0
        self._tensors: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    @property
    def bounds(self) -> tuple[Bounds, Bounds]:
        """Element-wise minimum and maximum of the keys of each page, the current one included."""
        pages = -(-self.length // self.page_size)
        _, _, low, high = self._filled()
        return low[:, :, :pages], high[:, :, :pages]

    def _filled(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if self._tensors is None:
            raise ValueError("the cache must hold a token: call prefill or append first")
        return self._tensors

    def prefill(self, k: Key, v: Float[Tensor, "batch kv_heads keys value_dim"]) -> None:
        """Start anew with the prompt's keys and values; errors as in `append`."""
        self._tensors, self.length = None, 0
        self.append(k, v)

    def append(self, k: Key, v: Float[Tensor, "batch kv_heads keys value_dim"]) -> None:
        """Add tokens, one or several, and update the bounds of the pages that they touch.

        Raises
        ------
        ValueError
            If k or v is empty, not finite, or does not fit to the other or to what is cached.
        """
        check_finite("k", k)
        check_finite("v", v)
        if v.shape[:3] != k.shape[:3]:
            raise ValueError(
                f"v must have leading axes {tuple(k.shape[:3])} like k, got {tuple(v.shape[:3])}"
            )
        k, v = k.detach(), v.detach()
        length = self.length + k.shape[2]
        keys, values, low, high = self._reserve(k, v, length)
        keys[:, :, self.length : length] = k
        values[:, :, self.length : length] = v
        first = self.length // self.page_size
        last = -(-length // self.page_size)
        low[:, :, first:last], high[:, :, first:last] = page_bounds(
            keys[:, :, first * self.page_size : length], self.page_size
        )
        self.length = length

    def _reserve(self, k: Tensor, v: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Room for `length` tokens, doubled when it runs out, so that appending stays cheap."""
        old = self._tensors
        if old is not None:
            for name, x, cached in (("k", k, old[0]), ("v", v, old[1])):
                kind = (x.shape[:2], x.shape[3], x.dtype, x.device)
                if kind != (cached.shape[:2], cached.shape[3], cached.dtype, cached.device):
                    raise ValueError(
                        f"{name} must match the cached (batch, heads) {tuple(cached.shape[:2])}, "
                        f"dim {cached.shape[3]}, {cached.dtype} and {cached.device}, "
                        f"got {tuple(x.shape)}, {x.dtype} and {x.device}"
                    )
            if length <= old[0].shape[2]:
                return old
        pages = -(-length // self.page_size) * 2
        rooms = [(x, pages * self.page_size) for x in (k, v)] + [(k, pages)] * 2
        new = [x.new_zeros(*x.shape[:2], room, x.shape[3]) for x, room in rooms]
        for source, target in zip(old or (), new, strict=bool(old)):
            target[:, :, : source.shape[2]] = source
        self._tensors = (new[0], new[1], new[2], new[3])
        return self._tensors

    def select(self, q: Query) -> Int[Tensor, "batch page_heads pages"]:
        """The pages that the newest token's query reads, ascending; the last is the current page.

        Parameters
        ----------
        q : [batch, heads, 1, dim]

        Returns
        -------
        int64 [batch, kv_heads if pages are shared else heads, pages]
            token_budget / page_size pages (all, if there are fewer) before the current one, and that one.

        Raises
        ------
        ValueError
            If the cache is empty, or q does not fit to it, holds several queries or is not finite.
        """
        low, high = self.bounds
        check_queries_keys(q, low, aligned=False)
        if q.shape[2] != 1:
            raise ValueError(f"q must hold one query, got {q.shape[2]}")
        current = low.shape[2] - 1
        heads = low.shape[1] if self.share_pages else q.shape[1]
        newest = torch.full((q.shape[0], heads, 1), current, device=q.device)
        if current == 0:
            return newest
        scores = page_scores(q, low[:, :, :-1], high[:, :, :-1], share_pages=self.share_pages)
        ranked = positions(largest(scores[:, :, 0], self.token_budget // self.page_size))
        return torch.cat([ranked, newest], -1)

    def attend(self, q: Query, *, scale: float | None = None) -> Float[Tensor, "batch heads 1 value_dim"]:
        """Attention of the newest token's query over its pages; errors as in `select`."""
        pages = self.select(q)
        keys, values, _, _ = self._filled()
        return paged_attention(
            q, keys, values, pages, page_size=self.page_size, length=self.length, scale=scale
        )
