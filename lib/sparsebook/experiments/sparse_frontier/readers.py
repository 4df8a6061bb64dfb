"""Models that read text with their attention exchanged: Gemma, any folder of Hugging Face's, a planted one.

A reader reads a text once, densely, and keeps what it saw (`Reading`). From there a prefilling method costs
the layers from the first exchanged one on, a decoding method those layers for the judged tokens alone.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from sparsebook.data.text import wikipedia_passages

Attend = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""``attend(q, k, v, layer) -> out``, [batch, heads, queries, dim]; keys may be more than queries."""


@dataclass(frozen=True)
class Reading:
    """What one dense pass over a text left behind.

    Attributes
    ----------
    n_tokens : tokens that were read
    heads : exchanged layer -> its q, k, v, scaled so that 1 / sqrt(dim) is the factor of the logits
    loss : negative log-likelihood of the judged tokens, mean, in nats
    """

    n_tokens: int
    heads: dict[int, tuple[Tensor, Tensor, Tensor]]
    loss: float
    targets: Tensor
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    entry: Tensor | None = None
    caches: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


@runtime_checkable
class Reader(Protocol):
    """A model whose attention can be exchanged.

    `judged` is the number of tokens at the end of a text whose likelihood is asked for.
    """

    judged: int

    def read(self, text: int, n_tokens: int) -> Reading:
        """Read a text of the collection densely."""

    def prefill_loss(self, reading: Reading, attend: Attend) -> float:
        """Loss of the judged tokens when the exchanged layers attend so at every token."""

    def decode_loss(self, reading: Reading, attend: Attend) -> float:
        """Loss of the judged tokens when only they attend so, after a dense prefill.

        `attend` gets the queries of the judged tokens, and all keys and values up to them.
        """


# --- text -----------------------------------------------------------------------------------------------


@cache
def long_articles(words: int) -> tuple[str, ...]:
    """Wikipedia articles of at least so many words, each as one text."""
    passages = wikipedia_passages(words=64, stemmed=False)
    whole: dict[int, list[str]] = {}
    for text, article in zip(passages.texts, passages.article.tolist(), strict=True):
        whole.setdefault(article, []).append(text)
    texts = (" ".join(pieces) for pieces in whole.values())
    return tuple(text for text in texts if len(text.split()) >= words)


LONGEST_KEPT, MOST_KEPT = 2048, 18
"""Readings that are kept for the next experiment: at most so long, so many (80 MB each at that length)."""

# --- networks of transformers ---------------------------------------------------------------------------


class NetworkReader:
    """A causal language model of `transformers` whose chosen layers attend as asked.

    Parameters
    ----------
    network : the model; every ``self_attn`` has the attributes `observers` and `replacement` of
        `sparsebook.models.gemma`
    encode : text -> token ids
    layers : layers that are exchanged
    scale : factor of the logits in these layers
    judged : tokens at the end whose likelihood is asked for
    window : tokens that a local layer sees
    """

    def __init__(
        self,
        network: Any,
        encode: Callable[[str], list[int]],
        layers: tuple[int, ...],
        *,
        scale: float,
        judged: int = 64,
        window: int | None = None,
        least_words: int = 3_600,
    ) -> None:
        self.network, self.encode, self.layers = network, encode, layers
        self.scale, self.judged, self.window, self.least_words = scale, judged, window, least_words
        self.blocks = list(network.model.layers)
        self.first = layers[0]
        self.kept: dict[tuple[int, int], Reading] = {}

    @classmethod
    def gemma(cls, judged: int = 64) -> "NetworkReader":
        """Gemma 3 270M; its layers 5, 11 and 17, which see everything, are exchanged."""
        from sparsebook.models.gemma import Gemma

        model = Gemma.load()
        start = model.tokenizer.token_to_id("<bos>")
        encode = lambda text: [start, *model.tokenizer.encode(text, add_special_tokens=False).ids]  # noqa: E731
        layers, scale = model.global_layers, model.attention_scale
        return cls(model.network, encode, layers, scale=scale, judged=judged, window=model.window)

    @classmethod
    def folder(cls, path: str | Path, judged: int = 64, device: str = "cpu") -> "NetworkReader":
        """A model in a folder as Hugging Face publishes it (config.json, safetensors, tokenizer).

        Layers with full attention are exchanged. The paper's are Qwen2.5, Llama 3.1 and Gemma 3.

        Raises
        ------
        ValueError
            If the folder holds no config.json.
        """
        import transformers
        from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

        if not (Path(path) / "config.json").is_file():
            raise ValueError(f"model must be a folder with config.json, weights and a tokenizer, got {path}")
        transformers.AttentionInterface.register("sparsebook_reader", exchangeable_attention)
        AttentionMaskInterface.register("sparsebook_reader", sdpa_mask)
        network: Any = transformers.AutoModelForCausalLM.from_pretrained(
            path, attn_implementation="sparsebook_reader", local_files_only=True, dtype="auto"
        )
        network = network.to(device).eval().requires_grad_(False)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
        kinds = getattr(network.config, "layer_types", None)
        full = [i for i in range(len(network.model.layers)) if not kinds or kinds[i] == "full_attention"]
        for block in network.model.layers:
            block.self_attn.observers, block.self_attn.replacement = [], None
        scale = network.model.layers[0].self_attn.scaling
        window = getattr(network.config, "sliding_window", None)
        encode = lambda text: tokenizer(text)["input_ids"]  # noqa: E731
        return cls(network, encode, tuple(full), scale=scale, judged=judged, window=window)

    def ids(self, text: int, n_tokens: int) -> Tensor:
        """`n_tokens` + 1 token ids of an article, from its beginning."""
        articles = long_articles(self.least_words)
        if not 0 <= text < len(articles):
            raise ValueError(f"text must lie in [0, {len(articles)}), got {text}")
        ids = self.encode(articles[text])
        while len(ids) <= n_tokens:  # only beyond the length of the longest articles
            text = (text + 1) % len(articles)
            ids += self.encode(articles[text])
        return torch.tensor([ids[: n_tokens + 1]], device=self.network.lm_head.weight.device)

    def read(self, text: int, n_tokens: int) -> Reading:
        """See `Reader`; the latest readings that are not long are kept."""
        if (text, n_tokens) not in self.kept:
            reading = self._read(text, n_tokens)
            if n_tokens > LONGEST_KEPT:
                return reading
            self.kept[text, n_tokens] = reading
            if len(self.kept) > MOST_KEPT:
                del self.kept[next(iter(self.kept))]
        return self.kept[text, n_tokens]

    def _read(self, text: int, n_tokens: int) -> Reading:
        return self.read_ids(self.ids(text, n_tokens), self.judged)

    @torch.no_grad()
    def read_ids(self, ids: Tensor, judged: int) -> Reading:
        """Read these tokens [1, tokens + 1] densely; the loss is that of the last `judged`."""
        seen: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        calls: dict[int, dict[str, Any]] = {}
        entry: list[Tensor] = []
        with ExitStack() as hooks:
            for number in range(self.first, len(self.blocks)):
                hooks.enter_context(self._observing(number, seen, calls, entry))
            final = self.network.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        targets = ids[0, -judged:]
        heads = {n: (self._scaled(seen[n][0]), *seen[n][1:]) for n in self.layers}
        caches = {n: (k, v) for n, (_, k, v) in seen.items()}
        loss = self._loss(final, targets)
        return Reading(ids.shape[1] - 1, heads, loss, targets, calls, entry[0], caches)

    @contextmanager
    def _observing(self, number: int, seen: dict, calls: dict, entry: list[Tensor]) -> Iterator[None]:
        block = self.blocks[number]

        def keep_call(_: Any, arguments: tuple[Tensor, ...], more: dict[str, Any]) -> None:
            calls[number] = more
            if number == self.first:
                entry.append(arguments[0])

        def keep_heads(q: Tensor, k: Tensor, v: Tensor) -> None:
            seen[number] = (q, k, v)

        hook = block.register_forward_pre_hook(keep_call, with_kwargs=True)
        block.self_attn.observers.append(keep_heads)
        try:
            yield
        finally:
            hook.remove()
            block.self_attn.observers.remove(keep_heads)

    def _scaled(self, q: Tensor) -> Tensor:
        """Queries whose logits are to be divided by the root of their width, as everywhere here."""
        factor = self.scale * q.shape[-1] ** 0.5
        return q if abs(factor - 1) < 1e-6 else q * factor

    def _loss(self, final: Tensor, targets: Tensor) -> float:
        scores = self.network.lm_head(final[0, -len(targets) :]).float()
        return float(torch.nn.functional.cross_entropy(scores, targets))

    @torch.no_grad()
    def prefill_loss(self, reading: Reading, attend: Attend) -> float:
        """See `Reader`."""

        def sparse(q: Tensor, k: Tensor, v: Tensor, number: int) -> Tensor:
            return attend(self._scaled(q), k, v, number)

        def local(q: Tensor, k: Tensor, v: Tensor, number: int) -> Tensor:
            return windowed_attention(q, k, v, window=self.window or q.shape[2], scale=self.scale)

        functions = {n: sparse if n in self.layers else local for n in range(self.first, len(self.blocks))}
        with self._replacing(functions):
            final = self._replay(reading.entry, reading.calls)
        return self._loss(final, reading.targets)

    @torch.no_grad()
    def decode_loss(self, reading: Reading, attend: Attend) -> float:
        """See `Reader`."""
        prompt = reading.n_tokens - len(reading.targets)

        def sparse(q: Tensor, k: Tensor, v: Tensor, number: int) -> Tensor:
            return attend(self._scaled(q), *self._extended(reading, number, k, v), number)

        def local(q: Tensor, k: Tensor, v: Tensor, number: int) -> Tensor:
            keys, values = self._extended(reading, number, k, v)
            place = torch.arange(reading.n_tokens, device=q.device)
            query = place[prompt:, None]
            mask = (place <= query) & (place > query - (self.window or reading.n_tokens))
            return torch.nn.functional.scaled_dot_product_attention(
                q, keys, values, attn_mask=mask, scale=self.scale, enable_gqa=True
            )

        functions = {n: sparse if n in self.layers else local for n in range(self.first, len(self.blocks))}
        calls = {
            n: {name: _behind(value, prompt) for name, value in call.items()}
            for n, call in reading.calls.items()
        }
        assert reading.entry is not None
        with self._replacing(functions):
            final = self._replay(reading.entry[:, prompt:], calls)
        return self._loss(final, reading.targets)

    def _extended(self, reading: Reading, number: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The prompt's keys and values, from the dense pass, with the judged tokens' own behind them."""
        before = reading.n_tokens - len(reading.targets)
        keys, values = reading.caches[number]
        return torch.cat([keys[:, :, :before], k], 2), torch.cat([values[:, :, :before], v], 2)

    def _replay(self, hidden: Tensor | None, calls: Mapping[int, dict[str, Any]]) -> Tensor:
        """The pass from the first exchanged layer on, every layer called as it was in the dense pass."""
        for number in range(self.first, len(self.blocks)):
            out = self.blocks[number](hidden, **calls[number])
            hidden = out[0] if isinstance(out, tuple) else out
        return self.network.model.norm(hidden)

    @contextmanager
    def _replacing(self, functions: Mapping[int, Attend]) -> Iterator[None]:
        try:
            for number, function in functions.items():
                self.blocks[number].self_attn.replacement = function
            yield
        finally:
            for number in functions:
                self.blocks[number].self_attn.replacement = None


def _behind(value: Any, prompt: int) -> Any:
    """A layer's argument cut to the tokens behind the prompt; masks are not looked at by replacements."""
    if isinstance(value, tuple):
        return tuple(_behind(part, prompt) for part in value)
    if isinstance(value, Tensor) and value.ndim in (2, 3):  # position ids [batch, tokens], cos and sin
        return value[:, prompt:]
    return None if isinstance(value, Tensor) else value


def windowed_attention(
    q: Tensor, k: Tensor, v: Tensor, *, window: int, scale: float, chunk: int = 256
) -> Tensor:
    """Causal attention to the last `window` tokens, chunk by chunk, so that little more is computed."""
    out = []
    for start in range(0, q.shape[2], chunk):
        stop, low = min(start + chunk, q.shape[2]), max(0, start - window + 1)
        distance = torch.arange(start, stop)[:, None] - torch.arange(low, stop)
        mask = ((distance >= 0) & (distance < window)).to(q.device)
        part = q[:, :, start:stop], k[:, :, low:stop], v[:, :, low:stop]
        attend = torch.nn.functional.scaled_dot_product_attention
        out.append(attend(*part, attn_mask=mask, scale=scale, enable_gqa=True))
    return torch.cat(out, 2)


def exchangeable_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention for `transformers`: PyTorch's own, shown to the layer's observers, or its replacement."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    for observer in module.observers:
        observer(query, key, value)
    if module.replacement is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return module.replacement(query, key, value, module.layer_idx).transpose(1, 2).contiguous(), None


# --- a planted reader -----------------------------------------------------------------------------------


class PlantedReader:
    """One attention layer that was not learned but laid out, so that what it needs is known; for `smoke`.

    Every token's continuation stands at a key that its query points to: one of a few hot keys that all
    queries of a head share, a key at a fixed distance, or one of a run of neighbours. Every key stands for a
    token of its own, so the weight of the right key is the probability of the right token.
    """

    DIM = 32

    def __init__(self, judged: int = 16, strength: float = 9.0) -> None:
        self.judged, self.strength = judged, strength

    def read(self, text: int, n_tokens: int) -> Reading:
        """See `Reader`."""
        draw = np.random.default_rng([text, n_tokens])
        marks = torch.from_numpy(draw.standard_normal((n_tokens, self.DIM))).float()
        marks = marks / marks.norm(dim=1, keepdim=True) * self.DIM**0.5
        queries, wanted = [], []
        for head in range(2):
            goal = self._goals(draw, n_tokens, head)
            noise = torch.from_numpy(draw.standard_normal((n_tokens, self.DIM))).float()
            queries.append(self.strength / self.DIM**0.5 * marks[goal] + noise)
            wanted.append(goal)
        v = torch.eye(n_tokens)  # every key stands for a token of its own
        targets = torch.stack(wanted)
        heads = {0: (torch.stack(queries)[None], marks[None, None], v[None, None])}
        q, k, v = heads[0]
        mask = torch.ones(n_tokens, n_tokens, dtype=torch.bool).tril()
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        return Reading(n_tokens, heads, self._loss(out, targets), targets)

    @staticmethod
    def _goals(draw: np.random.Generator, n_tokens: int, head: int) -> Tensor:
        """The key that each query points to: hot keys and short distances, or runs for the second head."""
        place = np.arange(n_tokens)
        hot = draw.choice(n_tokens // 4, 3, replace=False)
        far = np.maximum(place - int(draw.integers(1, 5)), 0)
        goal = np.where(draw.random(n_tokens) < 0.5, hot[draw.integers(3, size=n_tokens)], far)
        if head == 1:
            runs = draw.integers(0, np.maximum(place // 8, 1)) * 8
            goal = np.where((place // 8) % 2 == 0, goal, np.minimum(runs + place % 8, place))
        return torch.from_numpy(np.minimum(goal, place))

    def _loss(self, out: Tensor, targets: Tensor) -> float:
        """Minus the logarithm of the mass at the right token, a little added."""
        last = out[0, :, -self.judged :]
        right = last.gather(-1, targets[:, -self.judged :, None])[..., 0]
        return float(-torch.log(right + 1e-4).mean())

    def prefill_loss(self, reading: Reading, attend: Attend) -> float:
        """See `Reader`."""
        return self._loss(attend(*reading.heads[0], 0), reading.targets)

    def decode_loss(self, reading: Reading, attend: Attend) -> float:
        """See `Reader`."""
        q, k, v = reading.heads[0]
        return self._loss(attend(q[:, :, -self.judged :], k, v, 0), reading.targets)
