"""Sparse autoencoders: one small base, and the variants that other chapters are compared with.

A token's activation vector ``x`` is written as a few codes ``z`` over a dictionary of unit rows ``D``:
``x ~ z D + b``. Variants differ in how ``z`` is found and in what is penalised, and override just that:

==============================  =======================================================================
base class                      what a variant writes
==============================  =======================================================================
:class:`SparseAutoencoder`      :meth:`~SparseAutoencoder.codes_of`: tokens -> codes, any encoder
:class:`LinearEncoderSAE`       :meth:`~LinearEncoderSAE.activate`: affinities -> codes, differentiable
:class:`SelectionSAE`           :meth:`~SelectionSAE.select`: which affinities become codes
any of them                     :meth:`~SparseAutoencoder.loss_terms`, if its loss is another one
==============================  =======================================================================

A new variant is as long as its idea. This one lets every token use the latents whose affinity reaches a
share of its largest one:

>>> class ShareSAE(LinearEncoderSAE):
...     "Keeps what is at least `share` of a token's largest affinity."
...
...     def __init__(self, width, n_latents, share, **options):
...         super().__init__(width, n_latents, **options)
...         self.share = share
...         self.initialise()
...
...     def activate(self, affinities, mode="batch"):
...         positive = affinities.relu()
...         return DenseCodes(positive * (positive >= self.share * positive.amax(-1, keepdim=True)))
>>> sae = ShareSAE(16, 64, share=0.5, seeds=range(3))
>>> sae(torch.randn(100, 16)).reconstruction.shape
torch.Size([3, 100, 16])

**Seeds.** With ``seeds=range(10)`` every parameter has a leading axis: ten autoencoders, each drawn from its
own seed, are trained as one batched model and come out as if each had been trained alone. Without, there is
no such axis. The code is the same: everything before the last two axes is carried along.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sparsebook.features.codes import Codes, DenseCodes, RaggedCodes, TopCodes, join
from sparsebook.features.metrics import atom_norms, normalized_mse, squared_error
from sparsebook.kernels.selection import global_topm, row_topk

Mode = Literal["batch", "threshold"]
Autoencoder = TypeVar("Autoencoder", bound="SparseAutoencoder")


@dataclass(frozen=True, eq=False)
class SAEOutput:
    """What a forward pass gives.

    Attributes
    ----------
    reconstruction : codes times dictionary plus bias
    codes : which latents were used, how strongly
    pre_activations : what the encoder offered before any was chosen; None where that was not kept, and
        without gradient where only the chosen ones have one (:class:`SelectionSAE`)
    """

    reconstruction: Float[Tensor, "*seeds tokens width"]
    codes: Codes
    pre_activations: Float[Tensor, "*seeds tokens latents"] | None


class SparseAutoencoder(nn.Module, ABC):
    """A dictionary, a bias, and the verbs of every sparse autoencoder.

    Every parameter and buffer that a variant adds begins with the axes of :attr:`lead`. A parameter that is
    to stay as it is gets ``requires_grad_(False)``: the trainer leaves it alone.

    Parameters
    ----------
    width : size of an activation vector
    n_latents : size of the dictionary
    seeds : draws one model for each and stacks them along a leading axis
    seed : draws the model if there are no `seeds`
    dtype : of the parameters; float64 takes the plain reference path everywhere

    Attributes
    ----------
    decoder : dictionary, one unit row per latent, ``[*seeds, latents, width]``
    pre_bias : taken from the input and given back to the reconstruction, ``[*seeds, width]``, 0 at first
    couples_tokens : whether the rule of training looks at several tokens at once
    reads_pre_activations : whether the loss needs the output's pre-activations
    """

    couples_tokens = False
    reads_pre_activations = False

    def __init__(
        self,
        width: int,
        n_latents: int,
        *,
        seeds: Sequence[int] | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        for name, value in (("width", width), ("n_latents", n_latents)):
            if value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        if seeds is not None and not len(seeds):
            raise ValueError("seeds is empty: expected at least one seed, or None")
        self.width = width
        self.n_latents = n_latents
        self.seeds = None if seeds is None else tuple(seeds)
        self.seed = seed
        self.decoder = nn.Parameter(self._drawn(n_latents, width, dtype=dtype))
        self.pre_bias = nn.Parameter(torch.zeros(*self.lead, width, dtype=dtype))
        self.normalise_decoder_()

    @property
    def lead(self) -> tuple[int, ...]:
        """The leading axis of every parameter: ``(number of seeds,)``, or nothing."""
        return () if self.seeds is None else (len(self.seeds),)

    def _drawn(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Uniform in +-1/sqrt(last axis), as `torch.nn.Linear` starts; each seed's from its own generator."""
        seeds = (self.seed,) if self.seeds is None else self.seeds
        bound = shape[-1] ** -0.5
        drawn = [torch.rand(shape, generator=torch.Generator().manual_seed(s), dtype=dtype) for s in seeds]
        return ((2 * torch.stack(drawn) - 1) * bound).view(*self.lead, *shape)

    # --- what a variant writes --------------------------------------------------------------------------

    @abstractmethod
    def codes_of(
        self, x: Float[Tensor, "*batch tokens width"], mode: Mode, keep: bool
    ) -> tuple[Codes, Float[Tensor, "*seeds tokens latents"] | None]:
        """Codes and what the encoder offered (if `keep`, and if there is such a thing).

        Parameters
        ----------
        x : checked activations, with the models' leading axis or without any
        mode : as in :meth:`encode`
        keep : whether the pre-activations are wanted
        """

    def loss_terms(
        self,
        x: Float[Tensor, "*batch tokens width"],
        output: SAEOutput,
        generator: torch.Generator | None = None,
    ) -> dict[str, Float[Tensor, "*seeds"]]:
        """What training makes small: named terms, one number per seed, to be added up.

        Here: the squared error of a token, summed over the width, mean over the tokens.
        """
        return {"reconstruction": squared_error(x, output.reconstruction)}

    # --- what every variant has -------------------------------------------------------------------------

    def encode(self, x: Float[Tensor, "*batch tokens width"], mode: Mode = "batch") -> Codes:
        """Codes of a batch of tokens.

        Parameters
        ----------
        x : activations ``[tokens, width]``, or ``[seeds, tokens, width]`` for tokens of each seed's own
        mode : ``"batch"``, the rule of training, which may share a budget among the tokens of the batch; or
            ``"threshold"``, the stored thresholds, for which a token's codes depend on that token alone

        Raises
        ------
        ValueError : no token, NaN or infinite values, another width, dtype or number of seeds, a single token
            where the rule couples tokens, or thresholds that were never stored
        """
        return self.codes_of(self._checked(x, mode), mode, keep=False)[0]

    def decode(
        self, codes: Codes | Float[Tensor, "*seeds tokens latents"]
    ) -> Float[Tensor, "*seeds tokens width"]:
        """Codes times dictionary, plus the bias."""
        codes = DenseCodes(codes) if isinstance(codes, Tensor) else codes
        return codes.decode(self.decoder) + self.pre_bias[..., None, :]

    def forward(
        self, x: Float[Tensor, "*batch tokens width"], mode: Mode = "batch", keep: bool = True
    ) -> SAEOutput:
        """Encode and decode; parameters and errors as in :meth:`encode`.

        Parameters
        ----------
        keep : whether the output holds the pre-activations, ``tokens * latents`` numbers
        """
        codes, pre_activations = self.codes_of(self._checked(x, mode), mode, keep)
        return SAEOutput(self.decode(codes), codes, pre_activations)

    def calibrate_thresholds(self, batches: Iterable[Float[Tensor, "*batch tokens width"]]) -> None:
        """Store what ``mode="threshold"`` needs. Nothing here: rules of one token need no threshold."""

    def update_thresholds(self, output: SAEOutput, momentum: float = 0.9) -> None:
        """Let the stored thresholds follow a training batch, where that costs nothing."""

    def model(self: Autoencoder, index: int) -> Autoencoder:
        """One seed's autoencoder, a copy without the leading axis.

        Raises
        ------
        ValueError : there is no leading axis, or it is shorter
        """
        if self.seeds is None or not 0 <= index < len(self.seeds):
            raise ValueError(f"index={index}: expected 0 to {len(self.seeds or ()) - 1}, of several seeds")
        alone = copy.deepcopy(self)
        alone.seeds, alone.seed = None, self.seeds[index]
        for name, parameter in self.named_parameters(recurse=False):
            setattr(alone, name, nn.Parameter(parameter.detach()[index].clone()))
        for name, buffer in self.named_buffers(recurse=False):
            setattr(alone, name, buffer[index].clone())
        return alone

    # --- the dictionary ---------------------------------------------------------------------------------

    @torch.no_grad()
    def normalise_decoder_(self) -> None:
        """Scale every row of the dictionary to length 1.

        Raises
        ------
        ValueError : a row is zero, or not finite
        """
        self.decoder.div_(atom_norms(self.decoder, "decoder"))

    @torch.no_grad()
    def remove_parallel_gradient_(self) -> None:
        """Take from each decoder row's gradient what points along the row: it would only change its length.

        To be called between the backward pass and the optimiser's step; afterwards it has no effect.
        """
        if self.decoder.grad is not None:
            along = (self.decoder.grad * self.decoder).sum(-1, keepdim=True)
            norms = self.decoder.square().sum(-1, keepdim=True)
            self.decoder.grad.addcmul_(along / norms, self.decoder, value=-1)

    @torch.no_grad()
    def centre_(self, x: Float[Tensor, "*batch tokens width"]) -> None:
        """Start the bias at the mean of some activations."""
        self.pre_bias.copy_(self._checked(x, "threshold").mean(-2).expand(*self.lead, self.width))

    def _checked(self, x: Tensor, mode: str) -> Tensor:
        if mode not in ("batch", "threshold"):
            raise ValueError(f"mode={mode!r}: expected 'batch' or 'threshold'")
        shapes = [(*lead, "tokens", self.width) for lead in dict.fromkeys([(), self.lead])]
        expected = " or ".join(f"[{', '.join(map(str, shape))}]" for shape in shapes)
        if x.ndim < 2 or x.shape[-1] != self.width or x.shape[:-2] not in ((), self.lead):
            raise ValueError(f"x has shape {tuple(x.shape)}: expected {expected}")
        if x.shape[-2] == 0:
            raise ValueError("x is empty: expected at least one token")
        if x.dtype != self.decoder.dtype:
            raise ValueError(f"x has dtype {x.dtype}: expected the model's, {self.decoder.dtype}")
        if not bool(x.isfinite().all()):
            raise ValueError("x has NaN or infinite values: expected finite activations")
        if mode == "batch" and self.couples_tokens and x.shape[-2] == 1:
            raise ValueError(
                "x is a single token: the rule of training shares a budget among the tokens of a batch; "
                "expected several tokens, or mode='threshold'"
            )
        return x


class LinearEncoderSAE(SparseAutoencoder):
    """Affinities ``(x - pre_bias) E^T + c`` of tokens and latents, some of which become codes.

    A subclass writes :meth:`activate` and calls :meth:`initialise` at the end of its constructor.

    Attributes
    ----------
    encoder : one row per latent, ``[*seeds, latents, width]``
    encoder_bias : ``[*seeds, latents]``, 0 at first
    """

    def __init__(self, width: int, n_latents: int, **options: Any) -> None:
        super().__init__(width, n_latents, **options)
        self.encoder = nn.Parameter(self.decoder.detach().clone())
        self.encoder_bias = nn.Parameter(self.decoder.new_zeros(*self.lead, n_latents))

    @abstractmethod
    def activate(self, affinities: Float[Tensor, "*seeds tokens latents"], mode: Mode = "batch") -> Codes:
        """Turn affinities into codes; gradients flow through it as it is written."""

    @torch.no_grad()
    def initialise(self) -> None:
        """Decoder = encoder transposed; encoder scaled so that unit inputs come back with unit length.

        The start of OpenAI's `sparse_autoencoder` (``train.py``), which lowers the error before training.
        """
        self.encoder.copy_(self.decoder)
        probes = torch.randn(256, self.width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        probes = nn.functional.normalize(probes, dim=-1).to(self.decoder)
        found = self(probes + self.pre_bias[..., None, :]).reconstruction - self.pre_bias[..., None, :]
        norms = found.norm(dim=-1).mean(-1)
        # A dictionary that answers nothing to unit inputs (a high threshold) keeps its scale.
        self.encoder.div_(torch.where(norms > 0, norms, 1)[..., None, None])

    def affinities(self, x: Float[Tensor, "*batch tokens width"]) -> Float[Tensor, "*seeds tokens latents"]:
        """What the encoder offers: ``(x - pre_bias) E^T + c``."""
        return (x - self.pre_bias[..., None, :]) @ self.encoder.mT + self.encoder_bias[..., None, :]

    def codes_of(
        self, x: Float[Tensor, "*batch tokens width"], mode: Mode, keep: bool
    ) -> tuple[Codes, Float[Tensor, "*seeds tokens latents"] | None]:
        affinities = self.affinities(x)
        return self.activate(affinities, mode), affinities if keep else None


class SelectionSAE(LinearEncoderSAE):
    """Codes are a selection of the affinities; all others cost nothing, forwards or backwards.

    A subclass writes :meth:`select`. It is not differentiated: the selected affinities get exactly the
    gradient that dense codes would have, from sums over the selected pairs alone.

    Attributes
    ----------
    threshold : what ``mode="threshold"`` compares affinities with, ``[*seeds]``; NaN until stored
    """

    threshold: Tensor

    def __init__(self, width: int, n_latents: int, **options: Any) -> None:
        super().__init__(width, n_latents, **options)
        self.register_buffer("threshold", self.decoder.new_full(self.lead, torch.nan))

    @abstractmethod
    def select(self, affinities: Float[Tensor, "*seeds tokens latents"]) -> Codes:
        """The codes of a batch by the rule of training: positive affinities, chosen and unchanged."""

    def activate(self, affinities: Float[Tensor, "*seeds tokens latents"], mode: Mode = "batch") -> Codes:
        return self.select(affinities) if mode == "batch" else self.above_threshold(affinities)

    def above_threshold(self, affinities: Float[Tensor, "*seeds tokens latents"]) -> RaggedCodes:
        """Positive affinities that reach the stored threshold.

        Raises
        ------
        ValueError : no threshold was stored
        """
        if bool(self.threshold.isnan().any()):
            raise ValueError(
                "mode='threshold', but no thresholds are stored: train, or call calibrate_thresholds"
            )
        per_latent = self.threshold.ndim > len(self.lead)
        limit = self.threshold[..., None, :] if per_latent else self.threshold[..., None, None]
        return chosen(affinities, (affinities >= limit) & (affinities > 0))

    def codes_of(
        self, x: Float[Tensor, "*batch tokens width"], mode: Mode, keep: bool
    ) -> tuple[Codes, Float[Tensor, "*seeds tokens latents"] | None]:
        if x.device.type == "cpu" and not keep and mode == "batch" and not self.couples_tokens:
            return self.with_gradient(x, self._select_by_groups(x)), None
        with torch.no_grad():
            affinities = self.affinities(x)
            codes = self.activate(affinities, mode)
        return self.with_gradient(x, codes), affinities if keep else None

    @torch.no_grad()
    def _select_by_groups(self, x: Float[Tensor, "*batch tokens width"]) -> Codes:
        """The rule of training, a group of tokens at a time: their affinities stay in one small table.

        On a CPU that is faster than one table of all, which is fresh memory in every step.
        """
        centred = x - self.pre_bias[..., None, :]
        table = x.new_empty(min(x.shape[-2], max(1, _TABLE // self.n_latents)), self.n_latents)
        encoders = self.encoder.view(-1, self.n_latents, self.width)
        biases = self.encoder_bias.view(-1, self.n_latents)
        found = []
        for tokens, encoder, bias in zip(
            centred.view(-1, *centred.shape[-2:]), encoders, biases, strict=True
        ):
            for group in tokens.split(len(table)):
                affinities = torch.addmm(bias, group, encoder.T, out=table[: len(group)])
                found.append(self.select(affinities))
        return join(found, self.lead)

    def with_gradient(self, x: Float[Tensor, "*batch tokens width"], codes: Codes) -> Codes:
        """Codes that were selected without gradient, tied to the encoder's parameters and to `x`."""
        tied = _Selected.apply(codes.values, codes, x, self.encoder, self.encoder_bias, self.pre_bias)
        return codes.with_values(tied)

    def loss_terms(
        self,
        x: Float[Tensor, "*batch tokens width"],
        output: SAEOutput,
        generator: torch.Generator | None = None,
    ) -> dict[str, Float[Tensor, "*seeds"]]:
        """The squared error over the variance of the batch (OpenAI's form); `aux_k` is scaled so too."""
        return {"reconstruction": normalized_mse(x, output.reconstruction)}

    # --- thresholds ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def batch_threshold(
        self, affinities: Float[Tensor, "*seeds tokens latents"], codes: Codes
    ) -> Float[Tensor, "*shape"]:
        """The threshold that would let through as many pairs of this batch as the rule selected."""
        budgets = codes.active_per_token().sum(-1).view(-1).tolist()
        tables = affinities.reshape(len(budgets), -1)
        found = [
            table.kthvalue(table.numel() - budget + 1).values if budget else table.new_tensor(torch.nan)
            for table, budget in zip(tables, budgets, strict=True)
        ]
        return torch.stack(found).view(self.lead)

    @torch.no_grad()
    def calibrate_thresholds(self, batches: Iterable[Float[Tensor, "*batch tokens width"]]) -> None:
        """Store the mean over some batches of the threshold that keeps as much as the rule of training.

        Parameters
        ----------
        batches : batches of activations of the size used in training

        Raises
        ------
        ValueError : no batch, or none in which any latent was active
        """
        found = []
        for x in batches:
            affinities = self.affinities(self._checked(x, "batch"))
            found.append(self.batch_threshold(affinities, self.select(affinities)))
        thresholds = torch.stack(found).nanmean(0) if found else None
        if thresholds is None or bool(thresholds.isnan().any()):
            raise ValueError("batches: expected at least one batch in which latents are active")
        self.threshold.copy_(thresholds)

    @torch.no_grad()
    def _follow(self, observed: Float[Tensor, "*shape"], momentum: float) -> None:
        """Moving average of the thresholds of batches; one without any (NaN) changes nothing."""
        mixed = momentum * self.threshold + (1 - momentum) * observed
        mixed = torch.where(self.threshold.isnan(), observed, mixed)
        self.threshold.copy_(torch.where(observed.isnan(), self.threshold, mixed))


# Numbers in a table of affinities that is used again and again: 16 MB in float32.
_TABLE = 2**22


class _Selected(torch.autograd.Function):
    """Values of selected affinities with the gradient of just those pairs (OpenAI's ``EncWrapper``)."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, codes: Codes, x: Tensor, encoder: Tensor, bias: Tensor, pre_bias: Tensor
    ) -> Tensor:
        ctx.codes = codes
        ctx.save_for_backward(x, encoder, pre_bias)
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, encoder, pre_bias = ctx.saved_tensors
        weighted = ctx.codes.with_values(torch.where(ctx.codes.values != 0, gradient, 0))
        of_bias = weighted.sum_per_latent()
        of_encoder = weighted.spread(x - pre_bias[..., None, :])
        # The sum over tokens is taken before the product: a vector times a matrix instead of codes times one.
        of_pre_bias = -(of_bias[..., None, :] @ encoder)[..., 0, :]
        of_x = weighted.decode(encoder).sum_to_size(x.shape) if ctx.needs_input_grad[2] else None
        return None, None, of_x, of_encoder, of_bias, of_pre_bias


def chosen(
    affinities: Float[Tensor, "*seeds tokens latents"], mask: Bool[Tensor, "*seeds tokens latents"]
) -> RaggedCodes:
    """The affinities that a mask keeps, as codes."""
    places = mask.flatten().nonzero().squeeze(1)
    return at_places(affinities, places)


def at_places(affinities: Float[Tensor, "*seeds tokens latents"], places: Int64[Tensor, " n"]) -> RaggedCodes:
    """The affinities at ascending places of the flattened table, as codes."""
    n_latents = affinities.shape[-1]
    rows = places.div(n_latents, rounding_mode="floor")
    values = affinities.flatten()[places]
    return RaggedCodes(values, rows, places - rows * n_latents, tuple(affinities.shape))


# --- the variants -------------------------------------------------------------------------------------------


class TopKSAE(SelectionSAE):
    """Every token uses its `k` latents of largest positive affinity (Gao et al. 2024, arXiv 2406.04093).

    Parameters
    ----------
    k : latents a token; further parameters as in :class:`SparseAutoencoder`

    Raises
    ------
    ValueError : `k` below 1 or above the number of latents
    """

    def __init__(self, width: int, n_latents: int, k: int, **options: Any) -> None:
        super().__init__(width, n_latents, **options)
        _check_k(k, n_latents)
        self.k = k
        self.initialise()

    def select(self, affinities: Float[Tensor, "*seeds tokens latents"]) -> TopCodes:
        found = row_topk(affinities.flatten(0, -2), self.k, sorted=False)
        values, indices = (part.unflatten(0, affinities.shape[:-1]) for part in found)
        return TopCodes(values.relu(), indices, self.n_latents)


class BatchTopKSAE(SelectionSAE):
    """A batch of B tokens uses its ``k B`` pairs of largest positive affinity (arXiv 2412.06410).

    Parameters
    ----------
    k : mean number of latents a token, not necessarily whole; a smaller batch gets a smaller budget

    Raises
    ------
    ValueError : `k` not above 0, or above the number of latents
    """

    couples_tokens = True

    def __init__(self, width: int, n_latents: int, k: float | int, **options: Any) -> None:
        super().__init__(width, n_latents, **options)
        _check_k(k, n_latents)
        self.k = k
        self.initialise()

    def select(self, affinities: Float[Tensor, "*seeds tokens latents"]) -> RaggedCodes:
        n_tokens = affinities.shape[-2]
        tables = affinities.reshape(-1, *affinities.shape[-2:])
        budget = round(self.k * n_tokens)
        found = [global_topm(table, budget, positive_only=True) for table in tables]
        rows = torch.cat([selected.rows + i * n_tokens for i, selected in enumerate(found)])
        values = torch.cat([selected.values for selected in found])
        columns = torch.cat([selected.columns for selected in found])
        return RaggedCodes(values, rows, columns, tuple(affinities.shape))

    def batch_threshold(
        self, affinities: Float[Tensor, "*seeds tokens latents"], codes: Codes
    ) -> Float[Tensor, "*shape"]:
        """The smallest code of the batch."""
        return self._smallest(codes)

    def update_thresholds(self, output: SAEOutput, momentum: float = 0.9) -> None:
        """Moving average of the smallest code of each batch."""
        self._follow(self._smallest(output.codes), momentum)

    @torch.no_grad()
    def _smallest(self, codes: Codes) -> Float[Tensor, "*seeds"]:
        assert isinstance(codes, RaggedCodes)
        seed = codes.rows // codes.shape[-2]
        smallest = codes.values.new_full((max(1, len(self.lead) and self.lead[0]),), torch.inf)
        smallest = smallest.scatter_reduce(0, seed, codes.values, "amin")
        return torch.where(smallest.isinf(), torch.nan, smallest).view(self.lead)


class ReLUSAE(LinearEncoderSAE):
    """All positive affinities are codes; their sum, weighted by decoder norms, is penalised.

    Loss: squared error + `sparsity` times the mean over tokens of ``sum_j z_j |D_j|`` (Anthropic's form of
    2024, in which the length of a row cannot hide a penalty).

    Attributes
    ----------
    sparsity : weight of the penalty, ``[*seeds]``; a controller may change it while training
    """

    sparsity: Tensor

    def __init__(self, width: int, n_latents: int, sparsity: float | int, **options: Any) -> None:
        super().__init__(width, n_latents, **options)
        if not sparsity >= 0:
            raise ValueError(f"sparsity={sparsity}: expected at least 0")
        self.register_buffer("sparsity", self.decoder.new_full(self.lead, sparsity))
        self.initialise()

    def activate(self, affinities: Float[Tensor, "*seeds tokens latents"], mode: Mode = "batch") -> Codes:
        return DenseCodes(affinities.relu())

    def loss_terms(
        self,
        x: Float[Tensor, "*batch tokens width"],
        output: SAEOutput,
        generator: torch.Generator | None = None,
    ) -> dict[str, Float[Tensor, "*seeds"]]:
        penalty = (output.codes.sum_per_latent() * self.decoder.norm(dim=-1)).sum(-1) / x.shape[-2]
        return {
            "reconstruction": squared_error(x, output.reconstruction),
            "sparsity": self.sparsity * penalty,
        }


class MatryoshkaSAE(ReLUSAE):
    """Nested dictionaries: the first latents alone must reconstruct too (arXiv 2503.17547).

    Loss: the mean over prefixes of the dictionary of (squared error + weighted l1) of that prefix alone.

    Parameters
    ----------
    sparsity : as in :class:`ReLUSAE`
    prefixes : ascending sizes of the prefixes, the last one the whole dictionary; or how many to draw anew in
        every step, with P(m) proportional to ``sqrt(m) - sqrt(m - 1)``, without repetition, the whole one
        always among them (Nabeshima's `matryoshka-saes`)

    Raises
    ------
    ValueError : other prefixes
    """

    def __init__(
        self,
        width: int,
        n_latents: int,
        sparsity: float | int,
        prefixes: int | Sequence[int] = 5,
        **options: Any,
    ) -> None:
        super().__init__(width, n_latents, sparsity, **options)
        if isinstance(prefixes, int):
            if not 1 <= prefixes <= n_latents:
                raise ValueError(f"prefixes={prefixes}: expected 1 to {n_latents}")
            self.prefixes: int | tuple[int, ...] = prefixes
        else:
            self.prefixes = tuple(prefixes)
            ascending = list(self.prefixes) == sorted({*self.prefixes})
            if not ascending or not self.prefixes or self.prefixes[0] < 1 or self.prefixes[-1] != n_latents:
                raise ValueError(f"prefixes={list(prefixes)}: expected ascending sizes, the last {n_latents}")

    def sizes(self, generator: torch.Generator | None) -> list[int]:
        """The sizes of the prefixes of one step."""
        if not isinstance(self.prefixes, int):
            return list(self.prefixes)
        if self.prefixes == 1:
            return [self.n_latents]
        sizes = torch.arange(1, self.n_latents, dtype=torch.float64)
        drawn = torch.multinomial(sizes.sqrt() - (sizes - 1).sqrt(), self.prefixes - 1, generator=generator)
        return [*sorted((drawn + 1).tolist()), self.n_latents]

    def loss_terms(
        self,
        x: Float[Tensor, "*batch tokens width"],
        output: SAEOutput,
        generator: torch.Generator | None = None,
    ) -> dict[str, Float[Tensor, "*seeds"]]:
        codes, weights = output.codes.dense(), self.decoder.norm(dim=-1)
        penalties = (codes.sum(-2) * weights / x.shape[-2]).cumsum(-1)
        sizes = self.sizes(generator)
        errors, found, start = [], self.pre_bias[..., None, :], 0
        for stop in sizes:
            found = found + codes[..., start:stop] @ self.decoder[..., start:stop, :]
            errors.append(squared_error(x, found))
            start = stop
        last = torch.tensor(sizes, device=x.device) - 1
        return {
            "reconstruction": torch.stack(errors).mean(0),
            "sparsity": self.sparsity * penalties[..., last].mean(-1),
        }


class JumpReLUSAE(LinearEncoderSAE):
    """Affinities above a learned threshold of each latent are codes; their number is penalised (2407.14435).

    Loss: squared error + `sparsity` times the mean L0. Thresholds get straight-through gradients with a
    rectangular kernel of width `bandwidth` (equations 10 to 12 there).

    Attributes
    ----------
    log_threshold : logarithm of the thresholds, ``[*seeds, latents]``
    sparsity : weight of the penalty, ``[*seeds]``
    """

    reads_pre_activations = True
    sparsity: Tensor

    def __init__(
        self,
        width: int,
        n_latents: int,
        sparsity: float | int,
        *,
        bandwidth: float = 0.001,
        initial_threshold: float = 0.001,
        **options: Any,
    ) -> None:
        super().__init__(width, n_latents, **options)
        for name, value in (("bandwidth", bandwidth), ("initial_threshold", initial_threshold)):
            if not value > 0:
                raise ValueError(f"{name}={value}: expected above 0")
        if not sparsity >= 0:
            raise ValueError(f"sparsity={sparsity}: expected at least 0")
        self.bandwidth = bandwidth
        self.log_threshold = nn.Parameter(torch.full_like(self.encoder_bias, initial_threshold).log())
        self.register_buffer("sparsity", self.decoder.new_full(self.lead, sparsity))
        self.initialise()

    def activate(self, affinities: Float[Tensor, "*seeds tokens latents"], mode: Mode = "batch") -> Codes:
        limit = self.log_threshold.exp()[..., None, :]
        return DenseCodes(_JumpReLU.apply(affinities, limit, self.bandwidth))

    def loss_terms(
        self,
        x: Float[Tensor, "*batch tokens width"],
        output: SAEOutput,
        generator: torch.Generator | None = None,
    ) -> dict[str, Float[Tensor, "*seeds"]]:
        if output.pre_activations is None:
            raise ValueError("output has no pre_activations: expected those of forward(keep=True)")
        limit = self.log_threshold.exp()[..., None, :]
        used = _Step.apply(output.pre_activations, limit, self.bandwidth).sum(-1).mean(-1)
        return {
            "reconstruction": squared_error(x, output.reconstruction),
            "sparsity": self.sparsity * used,
        }


class _JumpReLU(torch.autograd.Function):
    """``z`` where ``z > threshold``, else 0."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return z * (z > threshold)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        z, threshold = ctx.saved_tensors
        near = ((z - threshold).abs() < ctx.bandwidth / 2) * gradient
        of_threshold = -(threshold / ctx.bandwidth) * near.sum(-2, keepdim=True)
        return gradient * (z > threshold), of_threshold, None


class _Step(torch.autograd.Function):
    """1 where ``z > threshold``, else 0."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return (z > threshold).to(z.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        z, threshold = ctx.saved_tensors
        near = ((z - threshold).abs() < ctx.bandwidth / 2) * gradient
        return None, -near.sum(-2, keepdim=True) / ctx.bandwidth, None


def _check_k(k: float | int, n_latents: int) -> None:
    if not 0 < k <= n_latents or (isinstance(k, int) and k < 1):
        raise ValueError(f"k={k}: expected above 0 and at most the number of latents, {n_latents}")
