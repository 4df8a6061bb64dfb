"""Texts as token ids: right-padded batches, with truncation never silent."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """A batch of texts.

    Attributes
    ----------
    ids : token ids, padded on the right with 0
    lengths : tokens of each text, special ones included
    truncated : which texts lost tokens at their end
    """

    ids: Int64[Tensor, "batch tokens"]
    lengths: Int64[Tensor, "batch"]
    truncated: Bool[Tensor, "batch"]

    @property
    def mask(self) -> Bool[Tensor, "batch tokens"]:
        """True where a token stands, False on padding."""
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.lengths[:, None]

    def to(self, device: str | torch.device) -> "Tokens":
        """The same batch on another device."""
        return Tokens(self.ids.to(device), self.lengths.to(device), self.truncated.to(device))

    def __len__(self) -> int:
        return len(self.lengths)


def as_texts(texts: str | Sequence[str]) -> list[str]:
    """One text or several as a list.

    Raises
    ------
    ValueError : no text, something that is no string, or a text without any visible character
    """
    listed = [texts] if isinstance(texts, str) else list(texts)
    if not listed:
        raise ValueError("texts is empty: expected one text or a sequence of at least one")
    for position, text in enumerate(listed):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(
                f"texts[{position}] is {text!r}: expected a text with at least one visible character"
            )
    return listed


def pad(rows: Sequence[Sequence[int]], truncated: Sequence[bool], device: Any = "cpu") -> Tokens:
    """Lists of token ids as one right-padded batch."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
    for row, target in zip(rows, ids, strict=True):
        target[: len(row)] = torch.tensor(row)
    return Tokens(ids, lengths, torch.tensor(list(truncated))).to(device)


def check_length(tokens: int, limit: int, argument: str, advice: str) -> None:
    """Raise the ValueError for a text that is too long."""
    if tokens > limit:
        raise ValueError(f"{argument} has {tokens} tokens: expected at most {limit}; {advice}")
