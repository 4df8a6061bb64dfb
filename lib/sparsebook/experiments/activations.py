"""Activations of the packaged models over the packaged inputs, written once to the user's cache.

>>> from sparsebook.experiments.activations import minilm_activations, packaged_texts
>>> store = minilm_activations(packaged_texts()[:64], layer=3)
>>> store.width
384

A shard is a group of 256 texts, or one photograph, and is named after a checksum of its texts. So a build
that is interrupted goes on where it was, and stores that begin with the same texts share their first shards.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from sparsebook.data.activations import ActivationStore, build_store, stream
from sparsebook.data.photographs import PHOTOGRAPHS, photograph

_VERSION = "1"
_TEXTS_A_SHARD = 256
_GEMMA_BATCH = 8
# Deep layers reach the largest number of float16: they are stored at a sixteenth, which loses nothing.
_GEMMA_SCALE = 16.0


@cache
def packaged_texts(seed: int = 0) -> tuple[str, ...]:
    """Docstrings of installed packages, critics' sentences on films, and passages of Wikipedia, shuffled.

    Parameters
    ----------
    seed : of the order, so that the first n texts are a sample of all

    Raises
    ------
    MissingInput : a package of the extra ``book`` is not installed
    """
    from sparsebook.data.docstrings import docstring_pairs
    from sparsebook.data.films import films
    from sparsebook.data.text import wikipedia_passages

    pairs = docstring_pairs()
    docstrings = [f"{q}\n\n{d}" for q, d in zip(pairs.queries, pairs.documents, strict=True)]
    sentences = [film.consensus for film in films().with_consensus()]
    # The stemmed articles are no prose: a model was never meant to read them.
    passages = wikipedia_passages(stemmed=False).texts
    texts = [*docstrings, *sentences, *passages]
    order = torch.randperm(len(texts), generator=stream(seed, 2)).tolist()
    return tuple(texts[i] for i in order)


def minilm_activations(
    texts: Sequence[str], layer: int = 3, *, max_tokens: int = 256, progress: bool = False
) -> ActivationStore:
    """Contextual token vectors (width 384) of all-MiniLM-L6-v2, the tokens of a text one after the other.

    The two special tokens of each text are left out.

    Parameters
    ----------
    texts : longer ones are cut
    layer : 0 (embeddings) to 6
    max_tokens : of a text, special ones included
    progress : show a bar while shards are missing

    Raises
    ------
    ValueError : no texts, an empty one, or a layer that there is not
    MissingInput : a package of the extra ``book`` is not installed
    """
    from sparsebook.models.minilm import MiniLM

    model = cache(MiniLM.load)
    if not 0 <= layer <= 6:
        raise ValueError(f"layer={layer}: expected 0 to 6")

    def rows(group: Sequence[str]) -> Tensor:
        found = model().token_states(group, layer, max_tokens)
        inner = torch.ones(len(found.states), dtype=torch.bool)
        inner[found.offsets[:-1]] = inner[found.offsets[1:] - 1] = False
        return found.states[inner]

    return _store("minilm", f"{layer}-{max_tokens}", texts, rows, progress)


def gemma_activations(
    texts: Sequence[str], layer: int = 9, *, max_tokens: int = 256, progress: bool = False
) -> ActivationStore:
    """Residual stream (width 640) of Gemma 3 270M, the tokens of a text one after the other.

    The first token, at which every text begins and whose norm is far from all others', is left out.

    Parameters
    ----------
    texts : longer ones are cut
    layer : after so many layers, 0 (scaled embeddings) to 18
    max_tokens : of a text, the first one included
    progress : show a bar while shards are missing

    Raises
    ------
    ValueError : no texts, an empty one, or a layer that there is not
    MissingInput : a package of the extra ``book`` is not installed
    """
    from sparsebook.models.gemma import Gemma

    model = cache(Gemma.load)
    if not 0 <= layer <= 18:
        raise ValueError(f"layer={layer}: expected 0 to 18")

    def rows(group: Sequence[str]) -> Tensor:
        found = []
        for start in range(0, len(group), _GEMMA_BATCH):
            tokens = model().tokenize(group[start : start + _GEMMA_BATCH], max_tokens)
            states = model()(tokens, logits="none", hidden_layers=[layer]).hidden[layer]
            found += [row[1:length] for row, length in zip(states, tokens.lengths.tolist(), strict=True)]
        return torch.cat(found)

    return _store("gemma", f"{layer}-{max_tokens}", texts, rows, progress, scale=_GEMMA_SCALE)


def efficientnet_activations(
    names: Sequence[str] = PHOTOGRAPHS, stride: int = 16, *, size: int | None = 448, progress: bool = False
) -> ActivationStore:
    """Channels of EfficientNet-Lite0's feature maps: one activation vector a cell, row by row.

    Parameters
    ----------
    names : packaged photographs, one shard each; grey ones have three equal channels
    stride : 2, 4, 8, 16 or 32 pixels a cell, with 16, 24, 40, 112 and 320 channels
    size : side of the square that a photograph is scaled to; None keeps its own size
    progress : show a bar while shards are missing

    Raises
    ------
    ValueError : no or unknown photographs, or another stride
    MissingInput : a package of the extra ``book`` is not installed
    """
    from sparsebook.models.efficientnet import BLOCK_AT_STRIDE, EfficientNetLite0

    if stride not in BLOCK_AT_STRIDE:
        raise ValueError(f"stride={stride}: expected one of {list(BLOCK_AT_STRIDE)}")
    if not names or not set(names) <= set(PHOTOGRAPHS):
        raise ValueError(f"names={list(names)}: expected some of {list(PHOTOGRAPHS)}")
    model = cache(EfficientNetLite0.load)

    def produce(index: int) -> Tensor:
        pixels = photograph(names[index]).pixels
        image = model().preprocess(pixels.repeat(3, 2) if pixels.shape[2] == 1 else pixels, size)
        return model().feature_maps(image, [stride])[stride][0].flatten(1).T

    folder = f"activations-efficientnet-{stride}-{size or 'own'}"
    return build_store(folder, [f"{_VERSION}-{name}" for name in names], produce, progress=progress)


def _store(
    model: str,
    setting: str,
    texts: Sequence[str],
    rows: Callable[[Sequence[str]], Float[Tensor, "tokens width"]],
    progress: bool,
    scale: float = 1.0,
) -> ActivationStore:
    """A store with a shard for each group of texts."""
    if isinstance(texts, str) or not texts or not all(text.strip() for text in texts):
        raise ValueError("texts: expected at least one text, and in each a visible character")
    groups = [texts[i : i + _TEXTS_A_SHARD] for i in range(0, len(texts), _TEXTS_A_SHARD)]
    # A group's checksum stands in its own folder's name: stores that begin with the same texts share shards.
    sums = [_checksum(group) for group in groups]
    return build_store(
        f"activations-{model}-{setting}",
        [f"{_VERSION}-{checksum}" for checksum in sums],
        lambda index: rows(groups[index]),
        scale=scale,
        progress=progress,
    )


def _checksum(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
