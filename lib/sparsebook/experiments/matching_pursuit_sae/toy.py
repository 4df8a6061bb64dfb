"""The tree of concepts: who finds the dictionary, who absorbs, what norms and fixed magnitudes do."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sparsebook.data.activations import BatchSource, stream
from sparsebook.data.concept_tree import hierarchical_dictionary, published_tree, tree_batches
from sparsebook.evaluation.machine import threads
from sparsebook.experiments.matching_pursuit_sae.scales import Cell, Config
from sparsebook.experiments.matching_pursuit_sae.stages import Rows, Stages, row, rows, run
from sparsebook.features.matching_pursuit_sae import (
    HitL0,
    LowerK,
    MatchingPursuitSAE,
    SortLatents,
    ToyBatchTopKSAE,
    absorption_score,
    flat_mse,
    hierarchical_mse,
    match_latents,
    matched_atoms,
    toy_options,
)
from sparsebook.features.metrics import squared_error
from sparsebook.features.sae import LinearEncoderSAE, MatryoshkaSAE, Mode, ReLUSAE, SparseAutoencoder
from sparsebook.features.trainer import Trainer, TrainingRule

TREE = published_tree()
CHILDREN = [child for child, parent in enumerate(TREE.parents) if parent >= 0]
PARENTS = [TREE.parents[child] for child in CHILDREN]
METHODS = ("mp", "relu", "batch_topk", "matryoshka", "matryoshka, sorted whole")
NORMS = ("free", "scaled back", "scaled back, projected", "normalised in use")
"""Rows of the dictionary as they are; scaled to length 1 after every step; the same with the gradient along
them removed before; used through their normalisation."""
WIDTH, LATENTS, EXACT = 20, TREE.n_features, 0.99
PUBLISHED_STEPS = 15_000
"""The weight of a penalty moves faster in shorter runs, so that it gets as far."""
PARENT = (1.0, 0.25)
"""Mean and deviation of parents where children have others."""


def directions(cosine: float, seed: int) -> Tensor:
    """The true dictionary of a run."""
    return hierarchical_dictionary(TREE.sibling_groups, cosine, dim=WIDTH, generator=stream(seed, 7))


# The five autoencoders -----------------------------------------------------------------------------------


def autoencoder(
    method: str, seeds: Sequence[int], steps: int, config: Config
) -> tuple[SparseAutoencoder, list[TrainingRule]]:
    """An autoencoder of the benchmark, one model for each seed, and the rules that it is trained with."""
    if method == "mp":
        return MatchingPursuitSAE(WIDTH, LATENTS, threshold=config.threshold, seeds=seeds), []
    if method == "batch_topk":
        sae: LinearEncoderSAE = ToyBatchTopKSAE(WIDTH, LATENTS, 3, seeds=seeds)
        _start(sae, seeds, encoder=WIDTH**0.5, decoder=1.0)
        return sae, [LowerK(config.k, after=max(1, min(1000, steps // 3)))]
    rules: list[TrainingRule] = [
        HitL0(config.k, warmup=steps // 5, rate=min(0.05, 3e-4 * PUBLISHED_STEPS / steps))
    ]
    if method == "relu":
        sae = ReLUSAE(WIDTH, LATENTS, 0.0, seeds=seeds)
    else:
        sae = MatryoshkaSAE(WIDTH, LATENTS, 0.0, prefixes=5, seeds=seeds)
        rules.append(SortLatents(whole=method != "matryoshka"))
    _start(sae, seeds, encoder=1.0, decoder=0.1)
    return sae, rules


@torch.no_grad()
def _start(sae: LinearEncoderSAE, seeds: Sequence[int], encoder: float, decoder: float) -> None:
    """Random directions, the decoder's those of the encoder, of the published lengths."""
    drawn = torch.stack([torch.randn(LATENTS, WIDTH, generator=stream(seed, 8)) for seed in seeds])
    sae.encoder.copy_(drawn * (encoder / WIDTH**0.5))
    sae.decoder.copy_(decoder * normalize(drawn, dim=-1))
    sae.encoder_bias.zero_()


def _scaled(batches: BatchSource, factor: Tensor | float) -> BatchSource:
    return lambda step: batches(step) * factor


class Toy:
    """Several runs of one autoencoder side by side.

    Parameters
    ----------
    seeds, truth : of each run
    batches : data ``[runs, batch, width]``
    """

    def __init__(self, config: Config, seeds: Sequence[int], truth: Tensor, batches: BatchSource) -> None:
        self.config, self.seeds, self.truth = config, tuple(seeds), truth
        self.batches = batches

    def train(
        self, method: str, steps: int, norms: str = "free", threshold: float | None = None
    ) -> SparseAutoencoder:
        """Train all runs; the dictionary of pursuit is scaled to length 1 once, at the end."""
        sae, rules = autoencoder(method, self.seeds, max(steps, 1), self.config)
        if isinstance(sae, MatchingPursuitSAE):
            sae.threshold = threshold or sae.threshold
            sae.unit_rows = norms == "normalised in use"
        options = toy_options(
            max(steps, 1), unit_norm=norms.startswith("scaled"), remove_parallel=norms.endswith("projected"),
            warmup=min(100, steps // 10), log_every=10**9,
        )  # fmt: skip
        trainer = Trainer(sae, options, rules)
        batches = _scaled(self.batches, self.factor(method))
        for step in range(steps):
            trainer.step(batches(step))
        if steps == 0 and isinstance(sae, ToyBatchTopKSAE):
            sae.calibrate_thresholds([batches(0)])
        return sae

    def factor(self, method: str) -> Tensor | float:
        """What the ReLU autoencoders' inputs are multiplied with: a mean length of sqrt(width) follows."""
        if method in ("mp", "batch_topk"):
            return 1.0
        lengths = torch.cat([self.batches(step) for step in range(10)], 1).norm(dim=-1).mean(1)
        return (WIDTH**0.5 / lengths)[:, None, None]

    @torch.no_grad()
    def judge(self, method: str, sae: SparseAutoencoder, matching: str = "") -> dict[str, Tensor]:
        """The measures of the benchmark, one number a run.

        Parameters
        ----------
        matching : "" for the Hungarian method; or a control: "random" latents, or children with their
            "parents'" latents
        """
        shape = {"longest": sae.decoder.norm(dim=-1).amax(-1), "shortest": sae.decoder.norm(dim=-1).amin(-1)}
        if isinstance(sae, MatchingPursuitSAE):
            sae.normalise_decoder_()
        factor, mode = self.factor(method), _mode(method)
        concepts = TREE.sample_active(1000, stream(self.config.seed, 5)).float()
        match = match_latents(sae.encode(concepts @ self.truth * factor, mode).dense(), concepts)
        match = _rematched(match, matching)
        atoms = matched_atoms(sae.decoder, match)
        return shape | self._geometry(atoms) | self._codes(sae, match, mode, factor)

    def _geometry(self, atoms: Tensor) -> dict[str, Tensor]:
        lowest = (atoms * self.truth).sum(-1).amin(-1)
        to_parents = (atoms[:, CHILDREN] * self.truth[:, PARENTS]).sum(-1)
        return {
            "flat_mse": flat_mse(atoms, self.truth, TREE.sibling_groups),
            "hierarchical_mse": hierarchical_mse(atoms, TREE.levels),
            "absorption": absorption_score(atoms, self.truth, TREE.parents),
            "merged": (to_parents >= 0.5).double().mean(-1),
            "lowest_cosine": lowest,
            "exact": (lowest >= EXACT).double(),
        }

    def _codes(
        self, sae: SparseAutoencoder, match: Tensor, mode: Mode, factor: Tensor | float
    ) -> dict[str, Tensor]:
        """On samples that were never trained on."""
        number = 10**7
        found = torch.cat(
            [self.batches(number + i) for i in range(self.config.judged // self.config.batch)], 1
        )
        codes = sae.encode(found * factor, mode)
        lengths = codes.dense() * sae.decoder.norm(dim=-1)[:, None] / factor
        ordered = lengths.gather(-1, match[:, None].expand(-1, lengths.shape[1], -1))
        true = found @ torch.linalg.inv(self.truth)
        return {
            "l0": codes.active_per_token().double().mean(-1),
            "code_error": squared_error(true, ordered) / true.square().sum(-1).mean(-1),
            "silent": (ordered.amax(1) <= 0).any(-1).double(),
        }


def _mode(method: str) -> Mode:
    """BatchTopK is judged with its stored threshold."""
    return "threshold" if method == "batch_topk" else "batch"


def _rematched(match: Tensor, matching: str) -> Tensor:
    if matching == "random":
        drawn = [torch.randperm(LATENTS, generator=stream(i, 9)) for i in range(len(match))]
        return torch.stack(drawn)
    if matching == "parents":
        match = match.clone()
        match[:, CHILDREN] = match[:, PARENTS]
    return match


# Runs ----------------------------------------------------------------------------------------------------


def toy_at(config: Config, cosines: Sequence[float], n_seeds: int, first: int = 0, **magnitudes: Any) -> Toy:
    """Runs at several cosines, all seeds at the first of them first."""
    seeds = [config.seed + first + i for i in range(n_seeds)] * len(cosines)
    truth = torch.stack([directions(c, s) for c, s in zip(_each(cosines, n_seeds), seeds, strict=True)])
    return Toy(config, seeds, truth, tree_batches(TREE, truth, config.batch, seeds=seeds, **magnitudes))


def _each(cosines: Sequence[float], n: int) -> list[float]:
    return [cosine for cosine in cosines for _ in range(n)]


def _by_cosine(
    experiment: str, method: str, toy: Toy, metrics: dict[str, Tensor], cosines: Sequence[float], **knobs: Any
) -> Rows:
    n, out = len(toy.seeds) // len(cosines), []
    for place, cosine in enumerate(cosines):
        part = slice(place * n, (place + 1) * n)
        own = {name: values[part] for name, values in metrics.items()}
        out += rows(experiment, method, toy.seeds[part], own, cosine=cosine, **knobs)
    return out


def matchings(config: Config) -> dict[str, str]:
    """What is added to a method's name for each matching: the controls' are made only when asked for."""
    return {"": "", ", random": "random", ", parents": "parents"} if config.sabotage else {"": ""}


def run_toy(config: Config) -> pd.DataFrame:
    """All methods at all cosines, and what their dictionaries look like at one."""
    stages: Stages = {method: partial(_toy, config, method) for method in METHODS}
    return run(config, stages, "toy")


def _toy(config: Config, method: str) -> Rows:
    cosines = config.cosines
    if method == "matryoshka, sorted whole":
        cosines = tuple(c for c in cosines if c <= config.moderate)
    toy = toy_at(config, cosines, config.seeds)
    sae = toy.train(method, 0 if config.sabotage and method == "mp" else config.steps)
    out: Rows = []
    for suffix, matching in matchings(config).items():
        out += _by_cosine("toy", method + suffix, toy, toy.judge(method, sae, matching), cosines)
    return out + _matrices(config, method, toy, sae, cosines)


@torch.no_grad()
def _matrices(
    config: Config, method: str, toy: Toy, sae: SparseAutoencoder, cosines: Sequence[float]
) -> Rows:
    """Cosines of the first seed's matched atoms with the true directions."""
    place = list(cosines).index(config.shown) * config.seeds
    factor, mode = toy.factor(method), _mode(method)
    concepts = TREE.sample_active(1000, stream(config.seed, 5)).float()
    match = match_latents(sae.encode(concepts @ toy.truth * factor, mode).dense(), concepts)
    table = matched_atoms(sae.decoder, match)[place] @ toy.truth[place].T
    out: Rows = []
    for i, line in enumerate(table.tolist()):
        for j, value in enumerate(line):
            value = round(value, 4)
            out += row("matrices", method, toy.seeds[place], "cosine", value, "cosine", atom=i, concept=j)
    return out


FURTHER = ("mp", "relu", "matryoshka")
"""Methods with claims that ten runs may not decide: shares of exact runs, and runs that are of two kinds."""


def run_further(config: Config) -> pd.DataFrame:
    """More runs of these at moderate cosines; of pursuit where its runs are counted."""
    return run(config, {method: partial(_further, config, method) for method in FURTHER}, "further")


def _further(config: Config, method: str) -> Rows:
    cosines = tuple(c for c in config.cosines if c <= config.moderate)
    if method == "mp":
        cosines = (cosines[0], config.shown)
    toy = toy_at(config, cosines, config.further_seeds, first=config.seeds)
    return _by_cosine("further", method, toy, toy.judge(method, toy.train(method, config.steps)), cosines)


def run_norms(config: Config) -> pd.DataFrame:
    """Pursuit with four ways to treat the length of the atoms; and a short training of the first."""
    if config.sabotage:  # its claim compares these two
        return run(config, {norms: partial(_norms, config, norms) for norms in NORMS[:2]}, "norms")
    stages: Stages = {norms: partial(_norms, config, norms) for norms in NORMS}
    return run(config, {**stages, "free, short": partial(_short, config)}, "norms")


def _short(config: Config) -> Rows:
    toy = toy_at(config, config.norm_cosines, config.seeds)
    sae = toy.train("mp", config.live_steps)
    return _by_cosine("short", "free", toy, toy.judge("mp", sae), config.norm_cosines)


def _norms(config: Config, norms: str) -> Rows:
    toy = toy_at(config, config.norm_cosines, config.seeds)
    arm = "free" if config.sabotage == "same arms" else norms
    sae = toy.train("mp", config.norm_steps, arm)
    return _by_cosine("norms", norms, toy, toy.judge("mp", sae), config.norm_cosines)


def run_fixed(config: Config) -> pd.DataFrame:
    """Pursuit with magnitudes that vary and with fixed ones, at the toy's and the original threshold."""
    thresholds = (config.threshold, config.fixed_threshold)
    return run(config, {f"threshold {t:g}": partial(_fixed, config, t) for t in thresholds}, "fixed")


def _fixed(config: Config, threshold: float) -> Rows:
    varied, fixed = (toy_at(config, (0.0,), config.seeds, deviation=d) for d in (0.25, 0.0))
    if config.sabotage:
        fixed = varied
    both = Toy(
        config, varied.seeds + fixed.seeds, torch.cat([varied.truth, fixed.truth]),
        lambda step: torch.cat([varied.batches(step), fixed.batches(step)]),
    )  # fmt: skip
    steps = 0 if config.sabotage == "untrained" else config.fixed_steps
    metrics, n = both.judge("mp", both.train("mp", steps, threshold=threshold)), config.seeds
    out: Rows = []
    for method, arm, part in (("varied", varied, slice(n)), ("fixed", fixed, slice(n, None))):
        own = {name: values[part] for name, values in metrics.items()}
        out += rows("fixed", method, arm.seeds, own, cosine=0.0, threshold=threshold)
    return out


def run_absorption(config: Config) -> pd.DataFrame:
    """The paper's Table 1: absorption where children are as strong as parents, weaker, and weak."""
    stages: Stages = {method: partial(_absorption, config, method) for method in METHODS[:4]}
    return run(config, stages, "absorption")


def _absorption(config: Config, method: str) -> Rows:
    n, seeds = config.cell_seeds, [config.seed + i for i in range(config.cell_seeds)]
    truth = torch.stack([directions(0.0, seed) for seed in seeds])
    toys = {
        cell: Toy(config, seeds, truth, _cell_batches(config, cell, seeds, truth)) for cell in config.cells
    }
    together = Toy(
        config, seeds * len(toys), torch.cat([truth] * len(toys)),
        lambda step: torch.cat([toy.batches(step) for toy in toys.values()]),
    )  # fmt: skip
    sae = together.train(method, 0 if config.sabotage == "untrained" else config.cell_steps)
    out: Rows = []
    for suffix, matching in ({"": ""} if config.sabotage == "untrained" else matchings(config)).items():
        metrics = together.judge(method, sae, matching)
        for place, cell in enumerate(toys):
            own = {name: values[place * n : (place + 1) * n] for name, values in metrics.items()}
            out += rows("absorption", method + suffix, seeds, own, cell=cell.name)
    return out


def _cell_batches(config: Config, cell: Cell, seeds: Sequence[int], truth: Tensor) -> BatchSource:
    return tree_batches(
        TREE, truth, config.batch, seeds=seeds, mean=(PARENT[0], cell.mean),
        deviation=(PARENT[1], cell.deviation),
    )  # fmt: skip


# One live run --------------------------------------------------------------------------------------------

LIVE_SEED = 100


def run_live(config: Config) -> pd.DataFrame:
    """A short training of pursuit with one more seed, measured here and now."""
    with threads(1):  # so small that a second one only waits
        toy = toy_at(config, config.norm_cosines, 1, first=LIVE_SEED)
        sae = toy.train("mp", config.live_steps)
        metrics = toy.judge("mp", sae)
    return pd.DataFrame(_by_cosine("live", "free", toy, metrics, config.norm_cosines))
