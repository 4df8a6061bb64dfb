"""Queries, keys and values to attend with: real text in a language model, or planted structure."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sparsebook.models.gemma import Gemma

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]


@dataclass(frozen=True, eq=False)
class Heads:
    """Queries [layers, heads, tokens, dim] and keys and values [layers, kv_heads, tokens, dim] of a text."""

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float

    def first(self, n_tokens: int) -> "Heads":
        """The first tokens: attention is causal, so they are those of the shorter text."""
        q, k, v = (x[:, :, :n_tokens].contiguous() for x in (self.q, self.k, self.v))
        return Heads(q, k, v, self.scale)

    def layer(self, number: int) -> "Heads":
        """One layer alone."""
        q, k, v = (x[number : number + 1] for x in (self.q, self.k, self.v))
        return Heads(q, k, v, self.scale)

    def with_shuffled_keys(self, seed: int) -> "Heads":
        """The negative control of where maxima lie: keys (and values) at random positions."""
        order = torch.randperm(self.k.shape[2], generator=torch.Generator().manual_seed(seed))
        return Heads(self.q, self.k[:, :, order], self.v[:, :, order], self.scale)


# Planted structure ---------------------------------------------------------------------------------------

STRENGTH = 11.0
"""Logit, in nats, of a planted pair; all others scatter around zero."""


def planted_heads(n_tokens: int, seed: int, heads: int = 1, dim: int = 64, wanted: int = 4) -> Heads:
    """A sink, a window and stripes: what the method is made for, over a floor of noise.

    Every query has a logit of `STRENGTH` with the first key; a slowly drifting direction gives nearby tokens
    logits that fall with the distance; and runs of 64 queries share `wanted` earlier keys, to which each row
    points with 70 to 100 % of that strength. Heads differ in strength by a factor of up to 1.5.
    """
    draw = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=draw)  # noqa: E731
    length = (STRENGTH * dim**0.5) ** 0.5
    q, k, v = (
        0.5 * normal(1, heads, n_tokens, dim),
        normal(1, heads, n_tokens, dim),
        normal(1, heads, n_tokens, dim),
    )
    for h in range(heads):
        drift = torch.nn.functional.avg_pool1d(normal(1, dim, n_tokens + 16), 17, stride=1)[0].T
        drift = 0.9 * length * torch.nn.functional.normalize(drift, dim=-1)
        own = torch.nn.functional.normalize(normal(n_tokens, dim), dim=-1) * length
        q[0, h] += drift + own[0]
        k[0, h] += drift
        k[0, h, 0] = own[0]
        for start in range(64, n_tokens, 64):
            rows = slice(start, min(start + 64, n_tokens))
            wish = torch.randint(1, start, (wanted,), generator=draw)
            k[0, h, wish] = own[wish]
            weight = 0.7 + 0.3 * torch.rand(rows.stop - start, wanted, generator=draw)
            q[0, h, rows] += weight @ own[wish]
        q[0, h] *= 1 + 0.5 * h / max(1, heads - 1)
    return Heads(q, k, v, dim**-0.5)


class PlantedText:
    """Planted heads in the place of a language model, for runs of seconds: it names what it attends to.

    Every key carries one of 16 words; the prediction is the attention's share of each word, the right answer
    the word with the largest share under dense attention.
    """

    words = 16

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def heads(self, number: int, n_tokens: int) -> Heads:
        """Two heads, planted with the text's number."""
        return planted_heads(n_tokens, self.seed * 1000 + number, heads=2)

    def likelihoods(
        self, number: int, n_tokens: int, positions: Tensor, attention: Attention | None = None
    ) -> Tensor:
        """Negative log-likelihoods of the right words at `positions`."""
        heads = self.heads(number, n_tokens)
        draw = torch.Generator().manual_seed(number)
        words = torch.randint(self.words, (n_tokens,), generator=draw)
        v = torch.nn.functional.one_hot(words, self.words).float().expand(1, 2, -1, -1).contiguous()
        dense = scaled_dot_product_attention(heads.q, heads.k, v, is_causal=True, scale=heads.scale)
        shares = dense if attention is None else attention(heads.q, heads.k, v, 0)
        right = dense.mean(1)[0, positions].argmax(-1)
        floor = 1e-3
        said = (shares.mean(1)[0, positions] + floor) / (1 + floor * self.words)
        return -said.gather(-1, right[:, None])[:, 0].log()


# Text ----------------------------------------------------------------------------------------------------

LEAST_WORDS = 6_500
"""Of an article that becomes a text: more than 8,192 tokens."""


@cache
def texts() -> tuple[tuple[str, str], ...]:
    """Names and texts: long Wikipedia articles and strings of short news documents, taking turns."""
    from sparsebook.data.text import lee_corpus, wikipedia_passages

    passages = wikipedia_passages(words=1_000, stemmed=False)
    whole: dict[int, list[str]] = {}
    for text, article in zip(passages.texts, passages.article.tolist(), strict=True):
        whole.setdefault(article, []).append(text)
    articles = [
        (passages.titles[number], " ".join(parts))
        for number, parts in whole.items()
        if sum(len(part.split()) for part in parts) >= LEAST_WORDS
    ]
    documents, news = lee_corpus().background, []
    for start in range(0, len(documents), 25):
        news.append((f"news {start + 1} to {start + 25}", "\n".join(documents[start : start + 25])))
    return tuple(one for pair in zip(articles, news, strict=False) for one in pair)


class GemmaText:
    """Gemma 3 270M on the texts: its three global layers."""

    def __init__(self) -> None:
        self.model = Gemma.load()
        self.captured: dict[int, Heads] = {}

    def heads(self, number: int, n_tokens: int) -> Heads:
        """Text `number`, cut to `n_tokens`; what was captured last is kept for shorter ones."""
        kept = self.captured.get(number)
        if kept is None or kept.q.shape[2] < n_tokens:
            tokens = self.model.tokenize(texts()[number][1], max_tokens=n_tokens)
            layers = self.model.global_layers
            with torch.no_grad(), self.model.capture("queries", "keys", "values", layers=layers) as found:
                self.model(tokens, logits="none")
            names = ("queries", "keys", "values")
            q, k, v = (torch.cat([found[name][i] for i in layers]) for name in names)
            kept = Heads(q, k, v, self.model.attention_scale)
            self.captured = {number: kept}
        return kept.first(n_tokens)

    def likelihoods(
        self, number: int, n_tokens: int, positions: Tensor, attention: Attention | None = None
    ) -> Tensor:
        """Negative log-likelihoods of the tokens after `positions`, by the model or with other attention."""
        tokens = self.model.tokenize(texts()[number][1], max_tokens=n_tokens)
        with torch.no_grad(), self._attending(attention):
            final = self.model(tokens, logits="none").final[0, positions]
            scores = self.model.network.lm_head(final).float()
        return torch.nn.functional.cross_entropy(scores, tokens.ids[0, positions + 1], reduction="none")

    @contextmanager
    def _attending(self, attention: Attention | None) -> Iterator[None]:
        if attention is None:
            yield
        else:
            with self.model.replace_attention(attention):
                yield


class FolderText:
    """A causal language model in Hugging Face's layout (Llama, Qwen, ...) on a reader's own text.

    Parameters
    ----------
    folder : path
        What `save_pretrained` wrote, the tokenizer's files included.
    text : path, optional
        A file to read; the book's own texts if None.
    layers : sequence of int, optional
        Layers to look at; four spread over the depth if None.
    """

    def __init__(
        self,
        folder: str | Path,
        text: str | Path | None = None,
        device: str = "cpu",
        layers: Sequence[int] | None = None,
    ) -> None:
        import transformers

        transformers.AttentionInterface.register("sparsebook_anchor", self._attend)
        transformers.AttentionMaskInterface.register(
            "sparsebook_anchor", transformers.masking_utils.sdpa_mask
        )
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        network: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="sparsebook_anchor"
        )
        self.network = network.to(device)
        self.text = None if text is None else Path(text).read_text(encoding="utf-8")
        depth = self.network.config.num_hidden_layers
        self.layers = (
            tuple(layers) if layers is not None else tuple(sorted({i * depth // 4 for i in range(4)}))
        )
        self.found: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self.replacement: Attention | None = None

    def heads(self, number: int, n_tokens: int) -> Heads:
        """Part `number` of the text, `n_tokens` long."""
        self.found = {}
        with torch.no_grad():
            self.network.model(self._ids(number, n_tokens), use_cache=False)
        parts = [torch.cat([self.found[i][p] for i in self.layers]) for p in range(3)]
        return Heads(parts[0], parts[1], parts[2], parts[0].shape[3] ** -0.5)

    def likelihoods(
        self, number: int, n_tokens: int, positions: Tensor, attention: Attention | None = None
    ) -> Tensor:
        """Negative log-likelihoods of the tokens after `positions`, every layer attending by `attention`."""
        ids = self._ids(number, n_tokens)
        self.replacement = attention
        try:
            with torch.no_grad():
                final = self.network.model(ids, use_cache=False).last_hidden_state[0, positions]
                scores = self.network.lm_head(final).float()
        finally:
            self.replacement = None
        return torch.nn.functional.cross_entropy(scores, ids[0, positions + 1], reduction="none").cpu()

    def _ids(self, number: int, n_tokens: int) -> Tensor:
        text = texts()[number][1] if self.text is None else self.text
        ids = self.tokenizer(text, return_tensors="pt")["input_ids"]
        start = 0 if self.text is None else number * n_tokens
        if ids.shape[1] < start + n_tokens:
            raise ValueError(f"text: {ids.shape[1]} tokens, expected at least {start + n_tokens}")
        return ids[:, start : start + n_tokens].to(self.network.device)

    def _attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        if module.layer_idx in self.layers:
            self.found[module.layer_idx] = (query, key, value)
        if self.replacement is None:
            return sdpa_attention_forward(module, query, key, value, mask, **options)
        out = self.replacement(query, key, value, module.layer_idx)
        return out.transpose(1, 2).contiguous(), None
