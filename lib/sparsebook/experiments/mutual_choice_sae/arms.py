"""The autoencoders that are compared, each with its training: one function for all arms."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparsebook.experiments.mutual_choice_sae.inputs import Tokens
from sparsebook.experiments.mutual_choice_sae.scales import ARMS, Config, Size
from sparsebook.features.mutual_choice_sae import AuxZipf, FeatureChoiceSAE, MutualChoiceSAE, ZipfBudgets
from sparsebook.features.sae import LinearEncoderSAE, ReLUSAE, SelectionSAE, TopKSAE
from sparsebook.features.trainer import (
    AdaptiveL1Controller,
    AuxK,
    ResampleDead,
    Step,
    Trainer,
    TrainingLog,
    TrainingOptions,
    TrainingRule,
)

PROBED = 8_192
"""Training tokens by which the input is centred and thresholds are stored."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained arm, all seeds at once."""

    sae: LinearEncoderSAE
    log: TrainingLog
    tokens: list[Tokens]


def build(
    arm: str, width: int, size: Size, seeds: Sequence[int], config: Config, source: str = "zipf"
) -> tuple[LinearEncoderSAE, list[TrainingRule]]:
    """An untrained arm and the rules of its training.

    Raises
    ------
    ValueError
        For an unknown arm.
    """
    if arm not in ARMS:
        raise ValueError(f"arm must be one of {', '.join(ARMS)}, got {arm!r}")
    selection, _, auxiliary = arm.partition("+")
    shape, k = (width, size.n_latents), size.k
    start = max(1, round(config.curriculum * size.n_steps))
    rules: list[TrainingRule] = []
    sae: LinearEncoderSAE
    if selection == "topk":
        sae = TopKSAE(*shape, k, seeds=seeds)
    elif selection == "mutual":
        sae = MutualChoiceSAE(*shape, k, seeds=seeds)
    elif selection == "relu":
        sae = ReLUSAE(*shape, 0.1, seeds=seeds)
        every, until = max(1, size.n_steps // 5), size.n_steps * 3 // 5
        rules = [AdaptiveL1Controller(k), ResampleDead(every, until)]
    else:
        sae = FeatureChoiceSAE(*shape, k, "zipf" if selection == "zipf" else "uniform", seeds=seeds)
        if selection == "zipf":
            broken = [EqualBudgets(half=source != "uniform")] if config.sabotaged else []
            rules = [ZipfBudgets(start, size.refit), *broken]
    coefficient = 0.0 if config.sabotaged else 1 / 32
    if auxiliary == "aux_k":
        rules.append(AuxK(size.k_aux, coefficient))
    elif auxiliary:
        rules.append(AuxZipf(size.k_aux, coefficient, every=size.refit))
    return sae, rules


class EqualBudgets(TrainingRule):
    """Sabotage: whatever budgets there are become equal, those of half of the latents 0 if `half`."""

    def __init__(self, half: bool) -> None:
        self.half = half

    def after_step(self, step: Step) -> None:
        sae = step.trainer.sae
        assert isinstance(sae, FeatureChoiceSAE)
        if sae.has_budgets:
            shares = torch.full_like(sae.shares, sae.k / sae.n_latents)
            if self.half:
                shares[..., ::2], shares[..., 1::2] = 0, 2 * sae.k / sae.n_latents
            sae.set_shares(shares)


def options_of(size: Size) -> TrainingOptions:
    """The same training for all arms: Adam, the rate falling over the last fifth."""
    return TrainingOptions(
        size.n_steps,
        learning_rate=size.learning_rate,
        decay=0.2,
        dead_after=size.dead_after,
        log_every=max(1, size.n_steps // 15),
    )


def trainer_of(
    config: Config, source: str, arm: str, k: int, tokens: list[Tokens], seeds: Sequence[int]
) -> Trainer:
    """The trainer of an arm before its first step, the input centred."""
    size = replace(config.size(source), k=k)
    first = torch.stack([own.first(PROBED) for own in tokens])
    sae, rules = build(arm, first.shape[-1], size, seeds, config, source)
    sae.to(config.device).centre_(first.to(config.device))
    return Trainer(sae, options_of(size), rules)


def train_arm(
    config: Config, source: str, arm: str, k: int, tokens: list[Tokens], seeds: Sequence[int]
) -> Trained:
    """Train an arm on all seeds and store its thresholds."""
    trainer = trainer_of(config, source, arm, k, tokens, seeds)
    sources = [own.batches(config.size(source).batch, seed) for own, seed in zip(tokens, seeds, strict=True)]
    log = trainer.run(lambda step: torch.stack([batches(step) for batches in sources]))
    sae = trainer.sae
    assert isinstance(sae, LinearEncoderSAE)
    if isinstance(sae, SelectionSAE):
        # One large batch: the thresholds keep exactly the budget of these tokens.
        probed = torch.stack([own.first(PROBED) for own in tokens])
        sae.calibrate_thresholds([probed.to(config.device)])
        if config.sabotaged:
            _halve(sae.threshold)
    return Trained(sae.eval(), log, tokens)


def _halve(threshold: Tensor) -> None:
    threshold.mul_(0.5)
