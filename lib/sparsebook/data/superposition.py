"""Synthetic worlds with known features: activations are sparse sums of more directions than dimensions.

:func:`zipf_world` has features whose frequencies follow a Zipf law and tokens of uneven difficulty, and a
twin in which all features are equally frequent; :class:`SparseMixture` is the statistical model ``X = H V``
with exactly ``s`` features a token, or a mixture of several ``s`` (:func:`two_level_mixture`).

>>> import torch
>>> world = zipf_world(n_features=256, dim=48)
>>> drawn = world.sample(1000, torch.Generator().manual_seed(0))
>>> drawn.x.shape, drawn.coefficients.shape
(torch.Size([1000, 48]), torch.Size([1000, 256]))
"""

# ruff: noqa: NPY002 (compiled code has only the legacy generator, seeded here for every token)

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, no_type_check

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from numba import njit
from torch import Tensor

from sparsebook.data.activations import stream


@dataclass(frozen=True, eq=False)
class Superposed:
    """Tokens and what they are made of: ``x = coefficients @ features``.

    Attributes
    ----------
    x : activations
    coefficients : of each feature, 0 where it is absent
    """

    x: Float[Tensor, "tokens width"]
    coefficients: Float[Tensor, "tokens features"]

    @property
    def active(self) -> Int64[Tensor, " tokens"]:
        """How many features each token has: its difficulty."""
        return (self.coefficients != 0).sum(1)


# --- which features occur together --------------------------------------------------------------------------


def choose(
    counts: Int64[Tensor, " tokens"], rates: Float[Tensor, " features"], generator: torch.Generator
) -> Bool[Tensor, "tokens features"]:
    """For each token a set of so many features, drawn one after another with chances proportional to `rates`.

    No feature is drawn twice (successive sampling). With equal rates all sets of a size are equally likely.
    """
    present = np.zeros((len(counts), len(rates)), np.bool_)
    seeds = torch.randint(2**32, (len(counts),), generator=generator).numpy()
    weights = rates.double().numpy()
    _choose(seeds, counts.numpy(), weights, weights.cumsum(), present)
    return torch.from_numpy(present)


@njit(cache=True, nogil=True)
@no_type_check
def _choose(seeds, counts, weights, cumulative, present):
    """Draw with replacement and drop repetitions; after 32 in a row, draw among what is left."""
    for token in range(len(counts)):
        np.random.seed(seeds[token])
        row, missing, repeated = present[token], counts[token], 0
        while missing:
            if repeated < 32:
                drawn = np.searchsorted(cumulative, np.random.random() * cumulative[-1], side="right")
            else:
                drawn = _among_absent(weights, row)
            drawn = min(drawn, len(weights) - 1)
            if row[drawn]:
                repeated += 1
            else:
                row[drawn] = True
                missing, repeated = missing - 1, 0


@njit(cache=True, nogil=True)
@no_type_check
def _among_absent(weights, row):
    left = 0.0
    for j in range(len(row)):
        if not row[j]:
            left += weights[j]
    goal, last = np.random.random() * left, -1
    for j in range(len(row)):
        if not row[j]:
            goal, last = goal - weights[j], j
            if goal < 0:
                return j
    return last


def arrival_rates(
    densities: Float[Tensor, " features"], count_shares: Float[Tensor, " counts"]
) -> Float[Tensor, " features"]:
    """Rates for :func:`choose` that give each feature its density, solved by fixed-point iteration.

    A token with `s` features has feature `j` with a chance of about ``1 - exp(-rate_j t_s)``, where ``t_s``
    is such that the chances add up to `s` (Rosén 1997, asymptotically exact).

    Parameters
    ----------
    densities : share of the tokens that should have each feature
    count_shares : share of the tokens that have 1, 2, ... features

    Raises
    ------
    ValueError : densities outside (0, 1), that do not add up to the mean count, or that no rates reach
    """
    count_shares, target = count_shares.double(), densities.double()
    counts = torch.arange(1, len(count_shares) + 1, dtype=torch.float64)
    mean = float(counts @ count_shares)
    if not bool(((target > 0) & (target < 1)).all()) or abs(float(target.sum()) / mean - 1) > 1e-6:
        raise ValueError(f"densities: expected numbers in (0, 1) that add up to {mean:g}, the mean count")
    counted = (count_shares > 1e-9).nonzero().squeeze(1)
    rates = target / target.sum()
    for _ in range(500):
        found = count_shares[counted] @ _chances(rates, counts[counted])
        if float((found / target - 1).abs().max()) < 1e-5:
            return rates
        rates = rates * target / found
        rates = rates / rates.sum()
    raise ValueError("densities: no rates give them (a token has no feature twice); lower the largest")


def _chances(rates: Float[Tensor, " n"], counts: Float[Tensor, " s"]) -> Float[Tensor, "s n"]:
    """``1 - exp(-rate_j t_s)`` with rows that add up to the counts; Newton's method from the left."""
    times = counts.clone()  # too short, since the rates add up to 1; and the sum of chances is concave
    for _ in range(100):
        late = torch.exp(-rates * times[:, None])
        change = (counts - (1 - late).sum(1)) / (late @ rates)
        times = times + change
        if bool((change < 1e-7 * times).all()):
            break
    return 1 - torch.exp(-rates * times[:, None])


# --- a world with Zipf's frequencies ------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ZipfWorld:
    """Unit features of given densities; tokens with a geometric number of them.

    Attributes
    ----------
    features : unit directions
    densities : share of the tokens that have each feature; they add up to `mean_active`
    mean_active : mean number of features of a token (at least one)
    rates : what :func:`choose` needs to give the densities
    """

    features: Float[Tensor, "features width"]
    densities: Float[Tensor, " features"]
    mean_active: float | int
    rates: Float[Tensor, " features"]

    def sample(self, n: int, generator: torch.Generator) -> Superposed:
        """Draw `n` tokens; a feature that is present has the coefficient ``1 + |N(0, 0.3)|``.

        Parameters
        ----------
        generator : on the CPU; the tokens are on the features' device and in their dtype
        """
        _at_least("n", n, 1)
        uniform = torch.rand(n, dtype=torch.float64, generator=generator).clamp(min=1e-300)
        counts = (uniform.log() / torch.tensor(1 - 1 / self.mean_active).double().log()).ceil().long()
        present = choose(counts.clamp(1, len(self.features)), self.rates, generator)
        sizes = 1 + 0.3 * torch.randn(int(present.sum()), generator=generator).abs()
        return _superposed(present, sizes, self.features)


def zipf_world(
    n_features: int = 512,
    dim: int = 64,
    *,
    mean_active: float | int = 8,
    exponent: float | int = 1.0,
    offset: float | int = 3.0,
    uniform: bool = False,
    seed: int = 0,
) -> ZipfWorld:
    """A world in which feature `r` has a density proportional to ``(r + offset) ** -exponent``.

    Parameters
    ----------
    n_features, dim : true features, and dimensions they are superposed in
    mean_active : mean of the geometric number of features of a token
    exponent, offset : of the law; ranks begin with 1
    uniform : the twin with the same features, counts and coefficients, but equal densities
    seed : draws the features

    Raises
    ------
    ValueError : sizes below 1, `mean_active` not above 1 or not below `n_features`, or a top density that no
        world of this kind has
    """
    _at_least("n_features", n_features, 2)
    _at_least("dim", dim, 1)
    if not 1 < mean_active < n_features:
        raise ValueError(f"mean_active={mean_active}: expected above 1 and below n_features={n_features}")
    ranks = torch.arange(1, n_features + 1, dtype=torch.float64)
    law = torch.ones_like(ranks) if uniform else (ranks + offset) ** -exponent
    densities = law / law.sum() * mean_active
    shares = (1 - 1 / mean_active) ** (ranks - 1) / mean_active
    shares[-1] += 1 - shares.sum()  # counts beyond the number of features are cut to it
    densities = densities * float(ranks @ shares) / mean_active
    directions = torch.randn(n_features, dim, generator=stream(seed, 0))
    features = directions / directions.norm(dim=1, keepdim=True)
    rates = torch.ones_like(ranks) if uniform else arrival_rates(densities, shares)
    return ZipfWorld(features, densities, mean_active, rates)


# --- the statistical model X = H V --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SparseMixture:
    """``X = H V``: Gaussian features, exactly ``s`` of them in a token, ``s`` drawn from `sparsity`.

    Parameters
    ----------
    n_features, dim : rows ``n`` and columns ``d`` of ``V``, whose entries are ``N(0, 1/d)``
    sparsity : ``s``, or several of which each token has one, all equally likely
    coefficients : ``"constant"``: ``1/sqrt(s)``; ``"varied"``: ``|N(1, 0.25)| / sqrt(s)``, 0.25 the standard
        deviation
    frequencies : how often each feature occurs relative to the others; None for equally often
    co_occurrence : chance that the features of a token come in the fixed pairs (0, 1), (2, 3), ...: of every
        two features drawn the second becomes the first one's partner, unless it is there already
    seed : draws the features

    Attributes
    ----------
    features : ``V``
    densities : share of the tokens that have each feature
    rates : what :func:`choose` needs to give the densities

    Raises
    ------
    ValueError : sizes below 1, `sparsity` above the number of features, frequencies of another length or that
        cannot be reached, or `co_occurrence` outside [0, 1], or with frequencies or an odd `n_features`
    """

    n_features: int
    dim: int
    sparsity: int | tuple[int, ...]
    coefficients: Literal["constant", "varied"] = "constant"
    frequencies: Sequence[float] | None = None
    co_occurrence: float | int = 0.0
    seed: int = 0
    features: Float[Tensor, "features width"] = field(init=False, repr=False)
    densities: Float[Tensor, " features"] = field(init=False, repr=False)
    rates: Float[Tensor, " features"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _at_least("n_features", self.n_features, 1)
        _at_least("dim", self.dim, 1)
        if not self.levels or not all(1 <= s <= self.n_features for s in self.levels):
            raise ValueError(f"sparsity={self.sparsity}: expected 1 to n_features={self.n_features}")
        if self.coefficients not in ("constant", "varied"):
            raise ValueError(f"coefficients={self.coefficients!r}: expected 'constant' or 'varied'")
        pairs = self.co_occurrence == 0 or (self.frequencies is None and self.n_features % 2 == 0)
        if not 0 <= self.co_occurrence <= 1 or not pairs:
            raise ValueError(
                f"co_occurrence={self.co_occurrence}: expected 0 to 1, 0 with frequencies or odd n_features"
            )
        features = torch.randn(self.n_features, self.dim, generator=stream(self.seed, 1)) / self.dim**0.5
        mean = sum(self.levels) / len(self.levels)
        densities = torch.full((self.n_features,), mean / self.n_features, dtype=torch.float64)
        rates = torch.ones_like(densities)
        if self.frequencies is not None:
            if len(self.frequencies) != self.n_features:
                raise ValueError(
                    f"frequencies has {len(self.frequencies)} numbers: expected n_features={self.n_features}"
                )
            relative = torch.tensor(self.frequencies, dtype=torch.float64)
            densities = relative / relative.sum() * mean
            shares = torch.zeros(max(self.levels), dtype=torch.float64)
            for s in self.levels:
                shares[s - 1] += 1 / len(self.levels)
            rates = arrival_rates(densities, shares)
        for name, value in (("features", features), ("densities", densities), ("rates", rates)):
            object.__setattr__(self, name, value)

    @property
    def levels(self) -> tuple[int, ...]:
        """The values of ``s``."""
        return (self.sparsity,) if isinstance(self.sparsity, int) else tuple(self.sparsity)

    def sample(self, n: int, generator: torch.Generator) -> Superposed:
        """Draw `n` tokens; parameters as in :meth:`ZipfWorld.sample`."""
        _at_least("n", n, 1)
        levels = torch.tensor(self.levels)
        counts = levels[torch.randint(len(levels), (n,), generator=generator)]
        present = choose(counts, self.rates, generator)
        if self.co_occurrence:
            present = self._paired(present, generator)
        sizes = counts.repeat_interleave(counts).double().rsqrt()
        if self.coefficients == "varied":
            sizes = sizes * (1 + 0.25 * torch.randn(len(sizes), generator=generator)).abs()
        return _superposed(present, sizes, self.features)

    def _paired(
        self, present: Bool[Tensor, "tokens features"], generator: torch.Generator
    ) -> Bool[Tensor, "tokens features"]:
        """Of every two features of a token, in random order, the second becomes the first one's partner."""
        order = torch.rand(present.shape, generator=generator).masked_fill(~present, 2).argsort(1)
        counts, rows = present.sum(1), torch.arange(len(present))
        swaps = torch.rand(len(present), int(counts.max()) // 2, generator=generator) < self.co_occurrence
        present = present.clone()
        for pair in range(swaps.shape[1]):
            first, second = order[:, 2 * pair], order[:, 2 * pair + 1]
            partner = first ^ 1
            swap = swaps[:, pair] & (2 * pair + 1 < counts) & ~present[rows, partner]
            # The first may have become a partner that another swap took away: then there is no pair to make.
            swap &= present[rows, first] & present[rows, second]
            present[rows[swap], second[swap]] = False
            present[rows[swap], partner[swap]] = True
        return present


def two_level_mixture(
    sparsity: tuple[int, ...] = (3, 20), n_features: int = 128, dim: int = 42, seed: int = 0
) -> SparseMixture:
    """The imbalanced monosemantic world: half of the tokens have 3 features, half have 20."""
    return SparseMixture(n_features, dim, sparsity, seed=seed)


def _superposed(present: Tensor, sizes: Tensor, features: Tensor) -> Superposed:
    coefficients = torch.zeros(present.shape).masked_scatter_(present, sizes.float()).to(features)
    return Superposed(coefficients @ features, coefficients)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name}={value}: expected at least {least}")
