"""Sparse codes of tokens over a dictionary, in the three forms that occur, behind the same few verbs.

``DenseCodes`` holds every latent of every token, ``TopCodes`` the same number of latents for every token,
``RaggedCodes`` any number. All may have one leading axis, for several models at once (one per seed); a
dictionary then has it too.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsebook.kernels.sparse_codes import decode, decode_csr


class Codes(ABC):
    """What an autoencoder says about tokens: which latents are active, and how strongly.

    A latent is active where its code is not 0.
    """

    values: Tensor

    @property
    def n_tokens(self) -> int:
        """How many tokens (of each seed) the codes are of."""
        return self.values.shape[-2]

    @abstractmethod
    def dense(self) -> Float[Tensor, "*seeds tokens latents"]:
        """Every code, zeros included."""

    @abstractmethod
    def decode(
        self, dictionary: Float[Tensor, "*seeds latents width"]
    ) -> Float[Tensor, "*seeds tokens width"]:
        """Codes times dictionary, without any bias; differentiable in both."""

    @abstractmethod
    def with_values(self, values: Tensor) -> "Codes":
        """The same places with other values, of the shape of `values`."""

    @abstractmethod
    def spread(self, rows: Float[Tensor, "*seeds tokens width"]) -> Float[Tensor, "*seeds latents width"]:
        """Transposed codes times `rows`: each latent's weighted sum over its tokens. Without gradient."""

    @abstractmethod
    def sum_per_latent(self) -> Float[Tensor, "*seeds latents"]:
        """Sum of each latent's codes."""

    @abstractmethod
    def active_per_token(self) -> Int64[Tensor, "*seeds tokens"]:
        """How many latents each token uses: its L0."""

    @abstractmethod
    def active_per_latent(self, above: float | int = 0.0) -> Int64[Tensor, "*seeds latents"]:
        """How many tokens each latent is used by, codes of a size of at most `above` not counted."""


@dataclass(frozen=True, eq=False)
class DenseCodes(Codes):
    """Every latent of every token.

    Attributes
    ----------
    values : codes
    """

    values: Float[Tensor, "*seeds tokens latents"]

    def dense(self) -> Float[Tensor, "*seeds tokens latents"]:
        return self.values

    def decode(
        self, dictionary: Float[Tensor, "*seeds latents width"]
    ) -> Float[Tensor, "*seeds tokens width"]:
        return self.values @ dictionary

    def with_values(self, values: Tensor) -> "DenseCodes":
        return DenseCodes(values)

    @torch.no_grad()
    def spread(self, rows: Float[Tensor, "*seeds tokens width"]) -> Float[Tensor, "*seeds latents width"]:
        return self.values.mT @ rows

    def sum_per_latent(self) -> Float[Tensor, "*seeds latents"]:
        return self.values.sum(-2)

    def active_per_token(self) -> Int64[Tensor, "*seeds tokens"]:
        return (self.values != 0).sum(-1)

    def active_per_latent(self, above: float | int = 0.0) -> Int64[Tensor, "*seeds latents"]:
        return (self.values.abs() > above).sum(-2)


@dataclass(frozen=True, eq=False)
class TopCodes(Codes):
    """The same number of latents for every token; decoding gathers them and never forms the dense codes.

    Attributes
    ----------
    values : codes; 0 where a token uses fewer
    indices : the latents, each at most once a token wherever the value is not 0
    n_latents : size of the dictionary
    """

    values: Float[Tensor, "*seeds tokens k"]
    indices: Int64[Tensor, "*seeds tokens k"]
    n_latents: int

    def dense(self) -> Float[Tensor, "*seeds tokens latents"]:
        shape = (*self.values.shape[:-1], self.n_latents)
        return self.values.new_zeros(shape).scatter_add(-1, self.indices, self.values)

    def decode(
        self, dictionary: Float[Tensor, "*seeds latents width"]
    ) -> Float[Tensor, "*seeds tokens width"]:
        indices, values = self.flat_indices().flatten(0, -2), self.values.flatten(0, -2)
        return decode(values, indices, dictionary.flatten(0, -2)).unflatten(0, self.values.shape[:-1])

    def flat_indices(self) -> Int64[Tensor, "*seeds tokens k"]:
        """The latents numbered through all dictionaries, one after the other."""
        if self.indices.ndim == 2:
            return self.indices
        first = torch.arange(len(self.indices), device=self.indices.device) * self.n_latents
        return self.indices + first[:, None, None]

    def with_values(self, values: Tensor) -> "TopCodes":
        return TopCodes(values, self.indices, self.n_latents)

    @torch.no_grad()
    def spread(self, rows: Float[Tensor, "*seeds tokens width"]) -> Float[Tensor, "*seeds latents width"]:
        k = self.values.shape[-1]
        offsets = torch.arange(0, self.values.numel() + 1, k, device=rows.device)
        found = _spread(self.values.flatten(), self.flat_indices().flatten(), offsets, rows, self._total)
        return found.view(*self.values.shape[:-2], self.n_latents, -1)

    def sum_per_latent(self) -> Float[Tensor, "*seeds latents"]:
        flat = self.values.new_zeros(self._total)
        flat = flat.index_add(0, self.flat_indices().flatten(), self.values.flatten())
        return flat.view(*self.values.shape[:-2], self.n_latents)

    def active_per_token(self) -> Int64[Tensor, "*seeds tokens"]:
        return (self.values != 0).sum(-1)

    def active_per_latent(self, above: float | int = 0.0) -> Int64[Tensor, "*seeds latents"]:
        counts = self.indices.new_zeros(self._total)
        active = (self.values.abs() > above).long()
        counts.index_add_(0, self.flat_indices().flatten(), active.flatten())
        return counts.view(*self.values.shape[:-2], self.n_latents)

    @property
    def _total(self) -> int:
        return self.n_latents * (self.values.shape[0] if self.values.ndim == 3 else 1)


@dataclass(frozen=True, eq=False)
class RaggedCodes(Codes):
    """Any number of latents for each token, one token after the other (of all seeds, in their order).

    Attributes
    ----------
    values : codes
    rows : token that each code belongs to, ascending; seed `s` owns the tokens ``s * tokens`` onwards
    columns : latent that each code belongs to, from 0 within its own dictionary
    shape : ``(tokens, latents)`` or ``(seeds, tokens, latents)``
    """

    values: Float[Tensor, " codes"]
    rows: Int64[Tensor, " codes"]
    columns: Int64[Tensor, " codes"]
    shape: tuple[int, ...]

    def dense(self) -> Float[Tensor, "*seeds tokens latents"]:
        empty = self.values.new_zeros(self._n_rows * self.shape[-1])
        return empty.index_add(0, self.rows * self.shape[-1] + self.columns, self.values).view(self.shape)

    def decode(
        self, dictionary: Float[Tensor, "*seeds latents width"]
    ) -> Float[Tensor, "*seeds tokens width"]:
        found = decode_csr(self.values, self.flat_columns(), self.crow_indices(), dictionary.flatten(0, -2))
        return found.unflatten(0, self.shape[:-1])

    def crow_indices(self) -> Int64[Tensor, " ends"]:
        """Where each token's codes begin, and where the last ones end."""
        counts = torch.bincount(self.rows, minlength=self._n_rows)
        return torch.cat([counts.new_zeros(1), counts.cumsum(0)])

    def flat_columns(self) -> Int64[Tensor, " codes"]:
        """The latents numbered through all dictionaries, one after the other."""
        if len(self.shape) == 2:
            return self.columns
        return self.columns + self.rows // self.shape[-2] * self.shape[-1]

    def with_values(self, values: Tensor) -> "RaggedCodes":
        return RaggedCodes(values, self.rows, self.columns, self.shape)

    @torch.no_grad()
    def spread(self, rows: Float[Tensor, "*seeds tokens width"]) -> Float[Tensor, "*seeds latents width"]:
        found = _spread(self.values, self.flat_columns(), self.crow_indices(), rows, self._total)
        return found.view(*self._size, -1)

    def sum_per_latent(self) -> Float[Tensor, "*seeds latents"]:
        flat = self.values.new_zeros(self._total)
        return flat.index_add(0, self.flat_columns(), self.values).view(self._size)

    def active_per_token(self) -> Int64[Tensor, "*seeds tokens"]:
        active = self.rows[self.values != 0]
        return torch.bincount(active, minlength=self._n_rows).view(self.shape[:-1])

    def active_per_latent(self, above: float | int = 0.0) -> Int64[Tensor, "*seeds latents"]:
        active = self.flat_columns()[self.values.abs() > above]
        return torch.bincount(active, minlength=self._total).view(self._size)

    @property
    def n_tokens(self) -> int:
        return self.shape[-2]

    @property
    def _size(self) -> tuple[int, ...]:
        return (*self.shape[:-2], self.shape[-1])

    @property
    def _total(self) -> int:
        return math.prod(self._size)

    @property
    def _n_rows(self) -> int:
        return math.prod(self.shape[:-1])


def join(groups: Sequence[Codes], lead: tuple[int, ...] = ()) -> Codes:
    """Codes of groups of tokens, one after the other, as one; with a leading axis of seeds first if `lead`.

    Parameters
    ----------
    groups : codes without leading axis, all of one form; of the seeds in their order
    lead : ``()``, or the number of seeds
    """
    first = groups[0]
    values = torch.cat([codes.values for codes in groups])
    if isinstance(first, DenseCodes):
        return DenseCodes(values.view(*lead, -1, first.values.shape[-1]))
    if isinstance(first, TopCodes):
        indices = torch.cat([codes.indices for codes in groups if isinstance(codes, TopCodes)])
        shape = (*lead, -1, values.shape[-1])
        return TopCodes(values.view(shape), indices.view(shape), first.n_latents)
    ragged = [codes for codes in groups if isinstance(codes, RaggedCodes)]
    before = itertools.accumulate((codes.n_tokens for codes in ragged), initial=0)
    rows = torch.cat([codes.rows + start for codes, start in zip(ragged, before, strict=False)])
    tokens = sum(codes.n_tokens for codes in ragged) // math.prod(lead)
    columns = torch.cat([codes.columns for codes in ragged])
    return RaggedCodes(values, rows, columns, (*lead, tokens, ragged[0].shape[-1]))


def _spread(
    values: Float[Tensor, " codes"],
    columns: Int64[Tensor, " codes"],
    offsets: Int64[Tensor, " ends"],
    rows: Float[Tensor, "*seeds tokens width"],
    total: int,
) -> Float[Tensor, "latents width"]:
    """Transposed codes times rows: what decoding hands back to its dictionary."""
    unread = rows.new_empty(total, rows.shape[-1])  # the operator takes its shape only
    parts = (rows.flatten(0, -2).contiguous(), values, columns, offsets, unread)
    return torch.ops.sparsebook.sparse_decode_backward(*parts, False, True)[1]
