"""What is measured of a trained arm on tokens that no training saw."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsebook.data.activations import stream
from sparsebook.experiments.mutual_choice_sae.arms import Trained
from sparsebook.experiments.mutual_choice_sae.scales import Config
from sparsebook.features.codes import Codes
from sparsebook.features.metrics import feature_recovery_rate
from sparsebook.features.mutual_choice_sae import fit_zipf, zipf_shares
from sparsebook.features.sae import LinearEncoderSAE, Mode, SelectionSAE

_CHUNK = 4_096
_IMPORTANCE = 512
"""Tokens of which single matches are removed and added."""

Values = dict[str, float]


@dataclass(frozen=True, eq=False)
class Reading:
    """An arm's codes of the held-out tokens, added up.

    Attributes
    ----------
    nmse : squared error over the squared deviation from the tokens' mean
    density : share of the tokens that each latent fires for
    used : active latents of each of the first tokens
    error : squared error of each of the first tokens
    """

    nmse: Float[Tensor, " seeds"]
    density: Float[Tensor, "seeds latents"]
    used: Int64[Tensor, "seeds tokens"]
    error: Float[Tensor, "seeds tokens"]

    @property
    def l0(self) -> Float[Tensor, " seeds"]:
        """Mean number of active latents a token."""
        return self.density.sum(-1)


def own_mode(sae: LinearEncoderSAE) -> Mode:
    """How an arm reads one token: by stored thresholds where its rule of training needs a batch."""
    return "threshold" if sae.couples_tokens else "batch"


def held_out(trained: Trained) -> Float[Tensor, "seeds tokens width"]:
    """The held-out tokens of every seed."""
    first = trained.tokens[0].held_out
    if all(own.held_out is first for own in trained.tokens):
        return first.expand(len(trained.tokens), *first.shape)
    return torch.stack([own.held_out for own in trained.tokens])


@torch.no_grad()
def read(
    trained: Trained,
    x: Float[Tensor, "seeds tokens width"],
    mode: Mode,
    batch: int = _CHUNK,
    kept: int = 8_192,
    handed_on: bool = False,
) -> Reading:
    """Read tokens in batches of a size (which matters to the rules of training alone).

    Parameters
    ----------
    kept : tokens of which uses and errors are kept one by one
    handed_on : sabotage: every token gets the codes of another one of its batch
    """
    sae, n = trained.sae, x.shape[1] // batch * batch or x.shape[1]
    error = deviation = torch.zeros(len(x), dtype=torch.float64)
    fired = torch.zeros(len(x), sae.n_latents, dtype=torch.int64)
    mean, used, errors = x[:, :n].mean(1, keepdim=True), [], []
    for start in range(0, n, batch):
        part = x[:, start : min(start + batch, n)].to(sae.decoder)
        output = sae(part, mode, keep=False)
        rebuilt, count = output.reconstruction, output.codes.active_per_token()
        if handed_on:
            order = torch.randperm(part.shape[1], generator=stream(0, start)).to(part.device)
            rebuilt, count = rebuilt[:, order], count[:, order]
        each = (part - rebuilt).square().sum(-1).cpu()
        error = error + each.double().sum(1)
        deviation = deviation + (part.cpu() - mean).square().sum(-1).double().sum(1)
        fired += output.codes.active_per_latent().cpu()
        if start < kept:
            used.append(count.cpu())
            errors.append(each)
    return Reading(error / deviation, fired / n, torch.cat(used, 1)[:, :kept], torch.cat(errors, 1)[:, :kept])


# Densities and the law ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Law:
    """A Zipf law that a budget of `k` features a token is shared out by."""

    exponent: float
    offset: float

    def shares(self, n_latents: int, k: int, batch: int) -> Float[Tensor, " latents"]:
        """Expected density by rank."""
        return zipf_shares(n_latents, k * batch, batch, self.exponent, self.offset) / batch


def use_of_latents(density: Float[Tensor, " latents"], expected: Float[Tensor, " latents"]) -> Values:
    """Dead and under-used latents, concentration, and how well a Zipf law describes one seed's densities."""
    from sparsebook.features.metrics import dead_fraction, effective_features, gini, underused_fraction

    ordered = density.sort(descending=True).values
    dead, weak = float(dead_fraction(density)), float(underused_fraction(ordered, expected))
    return {
        "dead": dead,
        "underused": weak,
        "lacking": dead + weak,
        "gini": float(gini(density)),
        "effective": float(effective_features(density)),
    }


def law_of_densities(density: Float[Tensor, " latents"], n_tokens: int) -> Values:
    """The Zipf law of one seed's densities, its rivals, and the tail that it leaves out."""
    fit = fit_zipf(density)
    ordered = density.double().sort(descending=True).values
    n, last = len(ordered), round(0.8 * len(ordered))
    head = ordered[:last][ordered[:last] > 0].log().numpy()
    rank = np.arange(1, last + 1)[: len(head)]
    tail = ordered[last:].clamp(min=0.5 / n_tokens).log()
    gap = fit.density(n)[last:].log() - tail
    return {
        "zipf_r2": fit.r2,
        "zipf_exponent": fit.exponent,
        "zipf_offset": fit.offset,
        "tail_gap": float(gap.mean()),
        "power_over_exponential": _straight(np.log(rank), head) - _straight(rank, head),
    }


def _straight(x: np.ndarray, y: np.ndarray) -> float:
    """R2 of a straight line."""
    return float(np.corrcoef(x, y)[0, 1] ** 2)


def ranks_of(n: int, points: int = 48) -> list[int]:
    """About so many ranks, equally far apart on a logarithmic axis."""
    return sorted({int(r) for r in np.geomspace(1, n, points).round()})


# Tokens, matches, dictionaries ------------------------------------------------------------------------------


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's; 0 where one of them does not vary."""
    from scipy.stats import spearmanr

    if a.numel() < 2 or a.min() == a.max() or b.min() == b.max():
        return 0.0
    return float(spearmanr(a.numpy(), b.numpy()).statistic)


@torch.no_grad()
def importance(
    trained: Trained, x: Float[Tensor, "seeds tokens width"], shuffled: bool = False
) -> list[Values]:
    """How the size of a match goes with what its removal, or its addition, does to the squared error."""
    sae = trained.sae
    output = sae(x[:, :_IMPORTANCE].to(sae.decoder), own_mode(sae))
    assert output.pre_activations is not None
    codes, offered = output.codes.dense().cpu(), output.pre_activations.cpu()
    left = (x[:, :_IMPORTANCE] - output.reconstruction.cpu()) @ sae.decoder.mT.cpu()
    found = []
    for seed in range(len(codes)):
        z, a, p = codes[seed], offered[seed], left[seed]
        used, passed_over = z != 0, (z == 0) & (a > 0)
        sizes, others = z[used], a[passed_over]
        if shuffled:
            sizes, others = (v[torch.randperm(len(v), generator=stream(seed))] for v in (sizes, others))
        removal = (z.square() + 2 * z * p)[used]
        addition = p[passed_over].clamp(min=0).square()
        found.append(
            {"removal": rank_correlation(sizes, removal), "addition": rank_correlation(others, addition)}
        )
    return found


@torch.no_grad()
def unsteady(
    trained: Trained, x: Float[Tensor, "seeds tokens width"], mode: Mode, config: Config, batch: int
) -> Float[Tensor, " seeds"]:
    """Matches of the same tokens that are used in some random batches but not in all, over all used."""
    probes, rest = x[:, : config.probes], x[:, config.probes :]
    counts = torch.zeros(len(x), config.probes, trained.sae.n_latents)
    for number in range(config.batches):
        drawn = torch.randint(rest.shape[1], (batch - config.probes,), generator=stream(config.seed, number))
        whole = torch.cat([probes, rest[:, drawn]], 1).to(trained.sae.decoder)
        codes: Codes = trained.sae.encode(whole, mode)
        counts += (codes.dense()[:, : config.probes] != 0).cpu()
    ever, always = (counts > 0).sum((1, 2)), (counts == config.batches).sum((1, 2))
    return (ever - always) / ever.clamp(min=1)


def dictionary(trained: Trained, index: int, random: bool = False) -> Values:
    """How many true features a dictionary has, where they are known, and how alike its atoms are."""
    atoms, truth = trained.sae.decoder[index].detach().cpu(), trained.tokens[index].features
    cosines = (atoms @ atoms.T).fill_diagonal_(-1)
    found = {"redundancy": float(cosines.amax(1).mean())}
    if truth is not None:
        if random:
            truth = torch.randn(truth.shape, generator=stream(index, 1))
        found["recovered"] = float(feature_recovery_rate(atoms, truth))
    return found


def evaluations(
    trained: Trained, config: Config, law: Law, topk_error: Float[Tensor, "seeds tokens"] | None
) -> Iterator[tuple[int, str, Values]]:
    """(seed's number, rule of reading, values) of one arm; `topk_error` is TopK's of the same tokens."""
    sae, x = trained.sae, held_out(trained)
    source_size = config.synthetic if trained.tokens[0].features is not None else config.real
    batch, broken = source_size.batch, config.sabotaged
    reading = read(trained, x, own_mode(sae), handed_on=broken and sae.couples_tokens)
    k = getattr(sae, "k", source_size.k)
    expected = law.shares(sae.n_latents, k, batch)
    weights = importance(trained, x, shuffled=broken)
    steady: dict[Mode, Tensor] = {"batch": torch.zeros(len(x)), "threshold": torch.zeros(len(x))}
    if isinstance(sae, SelectionSAE):
        steady = {mode: unsteady(trained, x, mode, config, batch) for mode in steady}
    for index in range(len(x)):
        values = {"nmse": float(reading.nmse[index]), "l0": float(reading.l0[index])}
        values |= use_of_latents(reading.density[index], expected)
        values |= law_of_densities(reading.density[index], x.shape[1])
        values |= dictionary(trained, index, random=broken) | weights[index]
        values |= {f"unsteady_{mode}": float(steady[mode][index]) for mode in steady}
        active = trained.tokens[index].active
        if active is not None:
            used = reading.used[index]
            values["with_truth"] = rank_correlation(used, active[: len(used)])
        if topk_error is not None:
            values["with_topk_error"] = rank_correlation(reading.used[index], topk_error[index])
        yield index, "own", values
    other: Mode = "batch" if own_mode(sae) == "threshold" else "threshold"
    if isinstance(sae, SelectionSAE):
        again = read(trained, x[:, :8_192], other, batch)
        for index in range(len(x)):
            yield index, other, {"nmse": float(again.nmse[index]), "l0": float(again.l0[index])}


def law_of(source: str, reading: Reading | None = None) -> Law:
    """The law that under-used latents are counted by: the world's own, or one fitted to a reading.

    Raises
    ------
    ValueError
        For real activations without a reading.
    """
    if source == "zipf":
        return Law(1.0, 3.0)
    if source == "uniform":
        return Law(0.0, 0.0)
    if reading is None:
        raise ValueError("reading: expected that of TopK + aux_k on the real activations")
    fit = fit_zipf(reading.density.sort(-1, descending=True).values.mean(0))
    return Law(max(0.0, fit.exponent), fit.offset)
