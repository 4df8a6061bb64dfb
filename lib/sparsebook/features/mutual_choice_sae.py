"""Mutual Choice and Feature Choice: a batch's budget of matches between tokens and features.

"Adaptive Sparse Allocation with Mutual Choice & Feature Choice Sparse Autoencoders" (Ayonrinde 2024,
arXiv 2411.02124). A batch of B tokens may use M pairs of a token and a latent. Which ones is an allocation:

    max  sum S_ij Z'_ij   with  Z' = relu((X - b) E^T + c),  S_ij in {0, 1},  sum S_ij <= M   and

====================  ================================  ===============================================
rule                  also                              selection
====================  ================================  ===============================================
token (TopK)          ``sum_j S_ij <= k = M / B``       each token's k largest
feature               ``sum_i S_ij <= m_j``             each latent's m_j largest
mutual                nothing                           the M largest of the whole table
====================  ================================  ===============================================

Only the abstract and the reviews of the paper could be read. The budgets `m_j`, the fit of the Zipf law, the
curriculum, the deficits of `aux_zipf` and the thresholds are this library's own specification.

>>> import torch
>>> from sparsebook.data.activations import shuffled
>>> from sparsebook.features.trainer import TrainingOptions, train
>>> x = torch.randn(2000, 16)
>>> sae = FeatureChoiceSAE(16, 64, k=4, budgets="zipf")
>>> options = TrainingOptions(n_steps=60, learning_rate=3e-3)
>>> log = train(sae, shuffled(x, 200), options, [ZipfBudgets(start=12, every=20), AuxZipf(k_aux=8, every=20)])
>>> sae.calibrate_thresholds([x])
>>> codes = sae.encode(x[:1], mode="threshold")  # a token alone: no batch is needed
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsebook.features.codes import Codes, RaggedCodes
from sparsebook.features.sae import BatchTopKSAE, LinearEncoderSAE, SAEOutput
from sparsebook.features.trainer import Step, TrainingRule, auxiliary_loss, with_linear_encoder
from sparsebook.kernels.selection import Selected, column_topm, global_topm, row_topk

# --- the allocation -----------------------------------------------------------------------------------------


def allocate(
    affinity: Float[Tensor, "tokens latents"],
    budget: int,
    rule: Literal["token", "feature", "mutual"],
    per_feature: Int64[Tensor, " latents"] | None = None,
) -> RaggedCodes:
    """The matches of largest total affinity that a rule and a budget allow; zeros are no matches.

    Parameters
    ----------
    affinity : what each pair is worth; negative ones count as 0
    budget : matches of the batch, M
    rule : `token` takes ``budget / tokens`` of each row, `feature` takes `per_feature` of each column
    per_feature : budgets of the latents, which add up to `budget`; None for equal ones, the first latents
        getting one more where it does not divide

    Raises
    ------
    ValueError : NaN, an unknown rule, a budget out of range or (rule `token`) not a multiple of the tokens,
        or `per_feature` of another length, sum or range, or for another rule
    """
    n_tokens, n_latents = affinity.shape
    if not 0 <= budget <= n_tokens * n_latents:
        raise ValueError(f"budget={budget}: expected 0 to tokens * latents = {n_tokens * n_latents}")
    if per_feature is not None and rule != "feature":
        raise ValueError(f"per_feature is given, but rule={rule!r} has no budgets of latents: expected None")
    if rule == "mutual":
        return as_codes([global_topm(affinity, budget, positive_only=True)])
    if rule == "feature":
        if per_feature is None:
            order = torch.arange(n_latents, device=affinity.device)
            per_feature = budget // n_latents + (order < budget % n_latents).long()
        if per_feature.shape != (n_latents,) or int(per_feature.sum()) != budget:
            raise ValueError(
                f"per_feature has shape {tuple(per_feature.shape)} and sum {int(per_feature.sum())}: "
                f"expected one number for each of {n_latents} latents, budget={budget} in all"
            )
        return as_codes([column_topm(affinity, per_feature, positive_only=True)])
    if rule != "token":
        raise ValueError(f"rule={rule!r}: expected 'token', 'feature' or 'mutual'")
    if budget % n_tokens:
        raise ValueError(f"budget={budget}: expected a multiple of the number of tokens, {n_tokens}")
    values, columns = row_topk(affinity, budget // n_tokens, sorted=False)
    rows = torch.arange(n_tokens, device=affinity.device)[:, None].expand_as(columns)
    keep = values > 0
    return RaggedCodes(values[keep], rows[keep], columns[keep], (n_tokens, n_latents))


def as_codes(found: Sequence[Selected], lead: tuple[int, ...] = ()) -> RaggedCodes:
    """Selections of one table a seed as codes; `lead` is ``()`` or ``(number of seeds,)``."""
    n_tokens, n_latents = found[0].shape
    rows = torch.cat([selected.rows + i * n_tokens for i, selected in enumerate(found)])
    values = torch.cat([selected.values for selected in found])
    columns = torch.cat([selected.columns for selected in found])
    return RaggedCodes(values, rows, columns, (*lead, n_tokens, n_latents))


# --- Zipf's law ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ZipfFit:
    """``ln density = constant - exponent * ln(rank + offset)``; ranks begin with 1.

    Attributes
    ----------
    exponent, offset, constant : of the law
    r2 : share of the variance of ln density that it explains, over the ranks that were fitted
    n_ranks : how many those were
    """

    exponent: float
    offset: float
    constant: float
    r2: float
    n_ranks: int

    def density(self, n_features: int) -> Float[Tensor, " features"]:
        """The law at ranks 1 to `n_features`, float64."""
        ranks = torch.arange(1, n_features + 1, dtype=torch.float64)
        # On logarithms: a law that imitates an exponential one has an exponent in the hundreds.
        return (self.constant - self.exponent * (ranks + self.offset).log()).exp()


def fit_zipf(densities: Float[Tensor, " features"], fit_range: tuple[int, int] | None = None) -> ZipfFit:
    """Least squares of ln density over ranks: the offset searched in one dimension, the rest in closed form.

    Parameters
    ----------
    densities : in any order; the largest has rank 1
    fit_range : first and last rank; None for 1 to 0.8 times their number. Densities of 0 are left out

    Raises
    ------
    ValueError : negative or NaN densities, a range that is none, or fewer than 3 positive densities in it
    """
    from scipy.optimize import minimize_scalar

    n = len(densities)
    first, last = fit_range or (1, max(1, round(0.8 * n)))
    if not bool((densities >= 0).all()):
        raise ValueError("densities has negative or NaN values: expected numbers of at least 0")
    if not 1 <= first <= last <= n:
        raise ValueError(f"fit_range={fit_range}: expected 1 <= first <= last <= {n}")
    ordered = densities.double().cpu().sort(descending=True).values[first - 1 : last]
    ranks = torch.arange(first, last + 1, dtype=torch.float64)[ordered > 0]
    logs = ordered[ordered > 0].log()
    if len(logs) < 3:
        raise ValueError(f"densities has {len(logs)} positive values in ranks {first} to {last}: expected 3")

    def fitted(stretch: float) -> tuple[float, float, float]:
        x = (ranks + torch.tensor(stretch, dtype=torch.float64).expm1()).log()
        centred = x - x.mean()
        slope = float(centred @ logs / (centred @ centred))
        constant = float(logs.mean() - slope * x.mean())
        return float((logs - constant - slope * x).square().sum()), slope, constant

    # The error may have a shallow local minimum: a coarse grid first, then a search around its best point.
    grid = torch.linspace(0, float(torch.tensor(10.0 * n).log1p()), 97).tolist()
    best = min(range(97), key=lambda i: fitted(grid[i])[0])
    bounds = grid[max(0, best - 1)], grid[min(96, best + 1)]
    found = minimize_scalar(lambda s: fitted(s)[0], bounds=bounds, method="bounded", options={"xatol": 1e-10})
    stretch = min((float(found.x), grid[best]), key=lambda s: fitted(s)[0])
    error, slope, constant = fitted(stretch)
    total = float((logs - logs.mean()).square().sum())
    # Equal densities leave nothing to explain but rounding.
    r2 = 1 - error / total if total > 1e-24 * len(logs) else 1.0
    offset = float(torch.tensor(stretch, dtype=torch.float64).expm1())
    return ZipfFit(-slope, offset, constant, r2, len(logs))


def zipf_shares(
    n_features: int,
    budget: float | int,
    batch: int,
    exponent: float | int,
    offset: float | int,
    least: float | int | None = None,
) -> Float[Tensor, " features"]:
    """Real-valued budgets ``m_r`` that follow a Zipf law between `least` and the size of the batch.

    One scale is found for the whole law such that the clipped budgets add up: what the upper clip cuts goes
    to the ranks below, what the lower clip adds is taken from all that are not clipped.

    Parameters
    ----------
    n_features : ranks, 1 to this
    budget : what they add up to
    batch : tokens, the most that a feature can take
    exponent, offset : of the law
    least : the least budget; None for 1 if the budget is at least twice the number of features, else 0

    Raises
    ------
    ValueError : a law that increases or has no value at rank 1, or no budgets that add up
    """
    if not exponent >= 0 or not offset > -1:
        raise ValueError(f"exponent={exponent}, offset={offset}: expected at least 0, and above -1")
    least = (1.0 if budget >= 2 * n_features else 0.0) if least is None else float(least)
    if not 0 <= least * n_features <= budget <= n_features * batch:
        raise ValueError(
            f"budget={budget}: expected {least} to batch={batch} for each of n_features={n_features}"
        )
    logs = -exponent * (torch.arange(1, n_features + 1, dtype=torch.float64) + offset).log()
    if not budget:
        return torch.zeros_like(logs)
    # On logarithms, the scale too: a steep law spans hundreds of orders of magnitude.
    low, high = -float(logs[0]) - 50.0, math.log(batch) - float(logs[-1])
    for _ in range(200):
        middle = (low + high) / 2
        if float((logs + middle).clamp(max=math.log(batch)).exp().clamp(min=least).sum()) < budget:
            low = middle
        else:
            high = middle
    return (logs + high).clamp(max=math.log(batch)).exp().clamp(least, batch)


def whole_budgets(shares: Float[Tensor, "*seeds latents"], total: int) -> Int64[Tensor, "*seeds latents"]:
    """Whole numbers near real ones that add up to `total`: the largest remainders are rounded up.

    Raises
    ------
    ValueError : shares that do not add up to `total` within rounding
    """
    below = shares.floor()
    missing = total - below.sum(-1, keepdim=True)
    if bool((missing < 0).any()) or bool((missing > shares.shape[-1]).any()):
        raise ValueError(f"shares add up to {shares.sum(-1).tolist()}: expected about total={total}")
    order = (shares - below).argsort(dim=-1, descending=True, stable=True)
    place = order.argsort(-1)
    return (below + (place < missing)).long()


def zipf_allocation(
    n_features: int,
    budget: int,
    batch: int,
    exponent: float | int,
    offset: float | int,
    least: float | int | None = None,
) -> Int64[Tensor, " features"]:
    """Whole budgets by rank, never increasing, that add up to `budget`; parameters as in `zipf_shares`."""
    return whole_budgets(zipf_shares(n_features, budget, batch, exponent, offset, least), budget)


# --- the autoencoders ---------------------------------------------------------------------------------------


class MutualChoiceSAE(BatchTopKSAE):
    """The ``k B`` pairs of largest affinity of the whole batch: BatchTopK (arXiv 2412.06410) by another name.

    Nothing is added to :class:`BatchTopKSAE`; the rule, the gradient and the threshold are the same.
    """


class FeatureChoiceSAE(BatchTopKSAE):
    """Latent `j` takes the ``m_j`` tokens of the batch that it fits best; ``sum m_j = k B``.

    Parameters
    ----------
    k : mean number of latents a token; further parameters as in :class:`BatchTopKSAE`
    budgets : ``"uniform"``; ``"zipf"``, for which the :class:`ZipfBudgets` of the training sets them, Mutual
        Choice being the rule until then; or each latent's share of the tokens, ``[latents]``, summing to `k`

    Attributes
    ----------
    shares : budgets as shares of the tokens of a batch of any size, ``[*seeds, latents]``; NaN until set
    threshold : of each latent, ``[*seeds, latents]``; infinite where it never took a token

    Raises
    ------
    ValueError : other budgets
    """

    shares: Tensor

    def __init__(
        self,
        width: int,
        n_latents: int,
        k: float | int,
        budgets: Literal["uniform", "zipf"] | Float[Tensor, " latents"] = "uniform",
        **options: Any,
    ) -> None:
        super().__init__(width, n_latents, k, **options)
        shape = (*self.lead, n_latents)
        self.register_buffer("shares", torch.full(shape, torch.nan, dtype=torch.float64))
        self.register_buffer("threshold", self.decoder.new_full(shape, torch.nan))
        if isinstance(budgets, Tensor):
            self.set_shares(budgets.expand(shape))
        elif budgets == "uniform":
            self.set_shares(torch.full(shape, k / n_latents, dtype=torch.float64))
        elif budgets != "zipf":
            raise ValueError(f"budgets={budgets!r}: expected 'uniform', 'zipf' or a tensor")
        self.initialise()

    @property
    def has_budgets(self) -> bool:
        """Whether latents choose; before, Mutual Choice does."""
        # The base scales the encoder before there are any shares.
        return "shares" in self._buffers and not bool(self.shares.isnan().any())

    @torch.no_grad()
    def set_shares(self, shares: Float[Tensor, "*seeds latents"]) -> None:
        """Give every latent its budget.

        Raises
        ------
        ValueError : another shape, numbers outside 0 to 1, or another sum than `k`
        """
        if shares.shape != self.shares.shape:
            raise ValueError(f"shares has shape {tuple(shares.shape)}: expected {tuple(self.shares.shape)}")
        if not bool(((shares >= 0) & (shares <= 1)).all()):
            raise ValueError("shares: expected numbers from 0 to 1, no feature takes a token twice")
        if not bool(((shares.double().sum(-1) / self.k - 1).abs() < 1e-6).all()):
            raise ValueError(f"shares add up to {shares.sum(-1).tolist()}: expected k={self.k}")
        self.shares.copy_(shares)

    def budgets_of(self, n_tokens: int) -> Int64[Tensor, "*seeds latents"]:
        """Tokens that each latent takes of a batch of this size."""
        return whole_budgets(self.shares * n_tokens, round(self.k * n_tokens))

    def select(self, affinities: Float[Tensor, "*seeds tokens latents"]) -> RaggedCodes:
        if not self.has_budgets:
            return super().select(affinities)
        tables = affinities.reshape(-1, *affinities.shape[-2:])
        budgets = self.budgets_of(affinities.shape[-2]).view(-1, self.n_latents)
        found = [column_topm(x, m, positive_only=True) for x, m in zip(tables, budgets, strict=True)]
        return as_codes(found, self.lead)

    # --- thresholds ---------------------------------------------------------------------------------------

    def batch_threshold(
        self, affinities: Float[Tensor, "*seeds tokens latents"], codes: Codes
    ) -> Float[Tensor, "*shape"]:
        """The ``m_j``-th largest affinity of each latent, 0 if fewer are positive, infinite for no budget."""
        return self._thresholds(codes)

    def update_thresholds(self, output: SAEOutput, momentum: float = 0.9) -> None:
        """Moving average of the ``m_j``-th largest affinity of each latent."""
        observed = self._thresholds(output.codes)
        mixed = momentum * self.threshold + (1 - momentum) * observed
        keep = self.threshold.isfinite() & observed.isfinite()
        self.threshold.copy_(torch.where(keep, mixed, observed))

    @torch.no_grad()
    def _thresholds(self, codes: Codes) -> Float[Tensor, "*seeds latents"]:
        assert isinstance(codes, RaggedCodes)
        if not self.has_budgets:
            return self._smallest(codes)[..., None].expand_as(self.threshold)
        smallest = codes.values.new_full((self.threshold.numel(),), torch.inf)
        smallest = smallest.scatter_reduce(0, codes.flat_columns(), codes.values.detach(), "amin")
        budgets = self.budgets_of(codes.n_tokens)
        short = (codes.active_per_latent() < budgets) & (budgets > 0)
        return smallest.view(self.threshold.shape).masked_fill(short, 0)


# --- rules of training --------------------------------------------------------------------------------------


def expected_shares(
    densities: Float[Tensor, " latents"], k: float | int, batch: int, fit_share: float | int = 0.8
) -> Float[Tensor, " latents"]:
    """Share of the tokens that a Zipf law gives each latent, by its rank among the densities.

    The law is fitted to the densities themselves, ranks above `fit_share` of their number and densities of 0
    left out; its values are those of `zipf_shares`, before rounding, over the batch. Ties keep their order.
    """
    n = len(densities)
    fit = fit_zipf(densities, (1, max(3, round(fit_share * n))))
    # Sorted numbers never rise, so their law does not either, but for rounding.
    law = zipf_shares(n, k * batch, batch, max(0.0, fit.exponent), fit.offset) / batch
    return torch.empty_like(law).scatter(
        0, densities.argsort(descending=True, stable=True).to(law.device), law
    )


def _fitted_shares(step: Step, k: float | int, fit_share: float | int) -> Float[Tensor, "*seeds latents"]:
    """`expected_shares` of every seed, by the densities of the training so far; the dead count as silent."""
    tracker, options = step.trainer.tracker, step.trainer.options
    density = tracker.density.masked_fill(tracker.dead_mask(options.dead_after), 0).cpu()
    rows = density.view(-1, density.shape[-1])
    found = [expected_shares(row, k, step.x.shape[-2], fit_share) for row in rows]
    return torch.stack(found).view(density.shape).to(tracker.average.device)


class ZipfBudgets(TrainingRule):
    """Feature Choice after a phase of Mutual Choice, its budgets following a Zipf law that is fitted anew.

    Ranks come from a slow average of the densities and stay as they are between two fits.

    Parameters
    ----------
    start : steps of Mutual Choice, in which the densities form
    every : steps between two fits
    fit_share : ranks that are fitted

    Raises
    ------
    ValueError : steps below 1; when training, an autoencoder that is no :class:`FeatureChoiceSAE`
    """

    def __init__(self, start: int, every: int = 100, fit_share: float = 0.8) -> None:
        if start < 1 or every < 1:
            raise ValueError(f"start={start}, every={every}: expected at least 1")
        self.start, self.every, self.fit_share = start, every, fit_share

    def after_step(self, step: Step) -> None:
        done, sae = step.number + 1, step.trainer.sae
        if not isinstance(sae, FeatureChoiceSAE):
            raise ValueError(f"sae is a {type(sae).__name__}: ZipfBudgets expected a FeatureChoiceSAE")
        if done >= self.start and (done - self.start) % self.every == 0:
            sae.set_shares(_fitted_shares(step, sae.k, self.fit_share))


def deficits(
    density: Float[Tensor, "*seeds latents"], expected: Float[Tensor, "*seeds latents"]
) -> Float[Tensor, "*seeds latents"]:
    """How much of the expected share a latent lacks: 1 if it never fires, 0 if it fires at least as often."""
    return torch.where(expected > 0, 1 - density / expected, 0).clamp(min=0)


def aux_zipf_loss(
    sae: LinearEncoderSAE,
    x: Float[Tensor, "*batch tokens width"],
    output: SAEOutput,
    deficit: Float[Tensor, "*seeds latents"],
    k_aux: int,
    gamma: float = 0.5,
) -> Float[Tensor, "*seeds"]:
    """`aux_k` for all latents that fire less than `gamma` of their Zipf share, weighted by their deficits.

    The candidates' affinities are multiplied by the deficits before the `k_aux` largest of a token are taken,
    and in decoding. With deficit 1 for dead latents and 0 for all others this is `aux_k`; errors as there.
    """
    weights = torch.where(deficit > 1 - gamma, deficit, 0).to(x.dtype)
    return auxiliary_loss(sae, x, output, weights, k_aux)


class AuxZipf(TrainingRule):
    """Latents that fire less than their Zipf share learn from what the others leave over.

    What is expected of a latent is its budget in Feature Choice, else a Zipf law fitted to the densities.

    Parameters
    ----------
    k_aux : candidates a token
    coefficient : weight in the loss
    gamma : share of what is expected below which a latent is a candidate
    every : steps between two fits; before the first one there are no candidates
    k : mean number of latents a token that the law shares out; None for the autoencoder's own

    Raises
    ------
    ValueError : numbers out of range; when training starts, no linear encoder, or no `k`
    """

    def __init__(
        self,
        k_aux: int = 256,
        coefficient: float | int = 1 / 32,
        gamma: float = 0.5,
        every: int = 100,
        k: float | None = None,
    ) -> None:
        if every < 1 or not 0 < gamma <= 1:
            raise ValueError(f"every={every}, gamma={gamma}: expected at least 1, and above 0 up to 1")
        self.k_aux, self.coefficient, self.gamma, self.every, self.k = k_aux, coefficient, gamma, every, k
        self.expected: Tensor | None = None

    def loss_terms(self, step: Step) -> dict[str, Float[Tensor, "*seeds"]]:
        sae, density = with_linear_encoder(step.trainer.sae, "AuxZipf"), step.trainer.tracker.density
        own = sae.shares if isinstance(sae, FeatureChoiceSAE) and sae.has_budgets else self.expected
        lacking = torch.zeros_like(density) if own is None else deficits(density, own)
        loss = aux_zipf_loss(sae, step.x, step.output, lacking, self.k_aux, self.gamma)
        return {"aux_zipf": self.coefficient * loss}

    def after_step(self, step: Step) -> None:
        sae = step.trainer.sae
        if isinstance(sae, FeatureChoiceSAE) and sae.has_budgets:
            return
        if (step.number + 1) % self.every == 0:
            k = getattr(sae, "k", None) if self.k is None else self.k
            if k is None:
                raise ValueError(
                    f"k=None, and {type(sae).__name__} has none: expected a mean L0 to share out"
                )
            self.expected = _fitted_shares(step, k, 0.8)

    def state(self) -> dict[str, Tensor]:
        return {} if self.expected is None else {"expected": self.expected}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.expected = state.get("expected")
