"""Training of sparse autoencoders: one loop for all of them, on one seed or on many at once.

>>> import torch
>>> from sparsebook.data.activations import shuffled
>>> from sparsebook.features.sae import TopKSAE
>>> x = torch.randn(1000, 16)
>>> sae = TopKSAE(16, 64, k=4, seeds=range(3))
>>> options = TrainingOptions(n_steps=20, learning_rate=3e-3)
>>> log = train(sae, shuffled(x, 100, seed=range(3)), options, [AuxK()])
>>> [row.metric for row in log.rows if row.step == 20 and row.seed == 0]
['loss', 'reconstruction', 'aux_k', 'normalized_mse', 'l0', 'dead']

What a variant needs beyond its own loss is a :class:`TrainingRule`: it may add a term to the loss, and act
after a step. Nothing is drawn from a state that could be lost: batches and random numbers are functions of
the step, so a training that was interrupted goes on from its checkpoint as if nothing had happened.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from sparsebook.data.activations import BatchSource, stream
from sparsebook.features.codes import Codes
from sparsebook.features.metrics import normalized_mse
from sparsebook.features.sae import LinearEncoderSAE, SAEOutput, SparseAutoencoder
from sparsebook.files import missing_package

_FORMAT = "sparsebook autoencoder training 1"


@dataclass(frozen=True)
class TrainingOptions:
    """How a training goes.

    Attributes
    ----------
    n_steps : optimiser steps
    learning_rate, betas, epsilon : of Adam. Rates of 1e-4 to 3e-4 are for 1e5 steps and more; short runs need
        about 3e-3
    warmup : steps over which the rate rises linearly from 0
    decay, floor : over this last share of the steps the rate falls linearly to this share of itself
    clip_norm : largest norm of each seed's gradient; None for no limit
    unit_norm : scale the dictionary's rows back to length 1 after every step
    remove_parallel : take from the rows' gradients what points along them, before the step
    dead_after : tokens without firing after which a latent counts as dead
    fires_above : size of a code above which its latent has fired (openai: 1e-3)
    density_decay : of the moving average of the firing densities, per step
    threshold_momentum : of the moving average of the thresholds, per step
    log_every : steps between two entries of the log
    seed : of what a step draws (prefixes, resampled tokens), not of models or data
    """

    n_steps: int
    learning_rate: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.99)
    epsilon: float = 1e-8
    warmup: int = 0
    decay: float = 0.0
    floor: float = 0.1
    clip_norm: float | None = None
    unit_norm: bool = True
    remove_parallel: bool = True
    dead_after: int = 20_000
    fires_above: float = 1e-3
    density_decay: float = 0.99
    threshold_momentum: float = 0.9
    log_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n_steps", "dead_after", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        for name in ("decay", "floor", "density_decay", "threshold_momentum"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected 0 to 1")
        if not self.learning_rate > 0 or (self.clip_norm is not None and not self.clip_norm > 0):
            raise ValueError(
                f"learning_rate={self.learning_rate}, clip_norm={self.clip_norm}: expected above 0"
            )

    def rate(self, step: int) -> float:
        """The learning rate of a step: linear rise, constant, linear fall."""
        falling = self.decay * self.n_steps
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        past = step + 1 - (self.n_steps - falling)
        fall = 1 - (1 - self.floor) * past / falling if falling and past > 0 else 1.0
        return self.learning_rate * min(rise, fall)


# --- which latents fire -------------------------------------------------------------------------------------


class FeatureDensityTracker:
    """Which share of the tokens each latent fires for, lately, and for how long it has been silent.

    Parameters
    ----------
    shape : of the latents, ``(latents,)`` or ``(seeds, latents)``
    decay : of the moving average, per batch; its start is corrected for, so that it is a mean from the first
        batch on
    fires_above : size of a code above which its latent fires
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        decay: float | int = 0.99,
        fires_above: float | int = 0.0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.decay, self.fires_above = decay, fires_above
        self.average = torch.zeros(shape, dtype=torch.float64, device=device)
        self.weight = 0.0
        self.silent = torch.zeros(shape, dtype=torch.int64, device=device)

    def observe(self, codes: Codes) -> None:
        """Take in the codes of a batch."""
        fired = codes.active_per_latent(self.fires_above)
        self.average.mul_(self.decay).add_(fired / codes.n_tokens, alpha=1 - self.decay)
        self.weight = self.decay * self.weight + 1 - self.decay
        self.silent.add_(codes.n_tokens).mul_(fired == 0)

    @property
    def density(self) -> Float[Tensor, "*seeds latents"]:
        """Share of the tokens that each latent fires for; 0 before any batch."""
        return self.average / self.weight if self.weight else self.average.clone()

    def dead_mask(self, tokens: int) -> Bool[Tensor, "*seeds latents"]:
        """The latents that were silent for at least so many tokens."""
        return self.silent >= tokens

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        weight = torch.tensor(self.weight, dtype=torch.float64)
        return {"average": self.average, "silent": self.silent, "weight": weight}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`."""
        self.average.copy_(state["average"])
        self.silent.copy_(state["silent"])
        self.weight = float(state["weight"])


# --- rules --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Step:
    """What a rule sees of a training step.

    Attributes
    ----------
    number : from 0
    x : the batch
    output : of the autoencoder
    trainer : the autoencoder, the optimiser, the options and the firing densities
    """

    number: int
    x: Float[Tensor, "*batch tokens width"]
    output: SAEOutput
    trainer: "Trainer"

    def generator(self, purpose: int) -> torch.Generator:
        """Random numbers of this step: a fresh generator at every call, another for each purpose."""
        return stream(self.trainer.options.seed, self.number, purpose)


class TrainingRule:
    """Something added to training; every method may be overridden, and none has to be.

    Attributes
    ----------
    keep : whether the rule reads ``output.pre_activations``
    """

    keep = False

    def loss_terms(self, step: Step) -> dict[str, Float[Tensor, "*seeds"]]:
        """Further terms of the loss. Codes of this batch have been counted already."""
        return {}

    def after_step(self, step: Step) -> None:
        """After the optimiser's step, the dictionary normalised."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of this rule."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`."""


def auxiliary_loss(
    sae: LinearEncoderSAE,
    x: Float[Tensor, "*batch tokens width"],
    output: SAEOutput,
    weights: Float[Tensor, "*seeds latents"],
    k_aux: int,
) -> Float[Tensor, "*seeds"]:
    """Error of rebuilding what is left over from latents that fire too little, over its variance.

    Of the latents with a weight above 0, each token takes the `k_aux` of largest weighted affinity; their
    positive parts, decoded without bias, should be the residual. With weight 1 for dead latents and 0 for
    others this is the `aux_k` loss of OpenAI's `sparse_autoencoder`. Gradients reach the candidates' rows of
    encoder and decoder only: residual and input bias are constants here.

    Returns
    -------
    squared error over the residual's squared deviation from its batch mean; 0 without candidates or residual

    Raises
    ------
    ValueError : `k_aux` below 1, or negative weights
    """
    if k_aux < 1:
        raise ValueError(f"k_aux={k_aux}: expected at least 1")
    if not bool((weights >= 0).all()):
        raise ValueError("weights has negative or NaN values: expected numbers of at least 0")
    residual = (x - output.reconstruction).detach()
    centred = x - sae.pre_bias.detach()[..., None, :]
    parts = (centred, residual, sae.encoder, sae.encoder_bias, sae.decoder, weights)
    seeds = [parts] if not sae.lead else list(zip(*parts, strict=True))
    found = [_one_auxiliary_loss(x, r, e, c, d, w, k_aux) for x, r, e, c, d, w in seeds]
    return torch.stack(found).view(sae.lead)


def _one_auxiliary_loss(
    centred: Float[Tensor, "tokens width"],
    residual: Float[Tensor, "tokens width"],
    encoder: Float[Tensor, "latents width"],
    bias: Float[Tensor, " latents"],
    decoder: Float[Tensor, "latents width"],
    weights: Float[Tensor, " latents"],
    k_aux: int,
) -> Float[Tensor, ""]:
    candidates = weights.nonzero().squeeze(1)
    if not len(candidates):
        return residual.new_zeros(())
    affinities = centred @ encoder[candidates].T + bias[candidates]
    offered = affinities.mul(weights[candidates]).relu()
    if len(candidates) > k_aux:
        kept = torch.zeros_like(offered).scatter(1, offered.topk(k_aux, dim=1, sorted=False).indices, 1)
        offered = offered * kept
    return normalized_mse(residual, offered @ decoder[candidates]).nan_to_num(0, 0, 0)


class AuxK(TrainingRule):
    """Dead latents learn from what the others leave over: :func:`auxiliary_loss` with the dead as candidates.

    Parameters
    ----------
    k_aux : candidates a token
    coefficient : weight in the loss

    Raises
    ------
    ValueError : when training starts, an autoencoder without a linear encoder
    """

    def __init__(self, k_aux: int = 256, coefficient: float = 1 / 32) -> None:
        self.k_aux, self.coefficient = k_aux, coefficient

    def loss_terms(self, step: Step) -> dict[str, Float[Tensor, "*seeds"]]:
        trainer = step.trainer
        sae = with_linear_encoder(trainer.sae, "AuxK")
        dead = trainer.tracker.dead_mask(trainer.options.dead_after).to(step.x.dtype)
        return {"aux_k": self.coefficient * auxiliary_loss(sae, step.x, step.output, dead, self.k_aux)}


class ResampleDead(TrainingRule):
    """Dead latents start again at tokens that are reconstructed badly (Anthropic 2023).

    Tokens are drawn with a probability proportional to their squared loss. A dead latent's atom becomes the
    token's direction from the bias, its encoder row the same at `scale` times the mean norm of the live rows,
    its bias 0, its Adam moments 0.

    Parameters
    ----------
    every : steps between two resamplings
    until : the last step at which one may happen; None for no end
    """

    _PURPOSE = 1

    def __init__(self, every: int, until: int | None = None, scale: float = 0.2) -> None:
        if every < 1:
            raise ValueError(f"every={every}: expected at least 1")
        self.every, self.until, self.scale = every, until, scale

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        done = step.number + 1
        if done % self.every or (self.until is not None and done > self.until):
            return
        trainer = step.trainer
        sae = with_linear_encoder(trainer.sae, "ResampleDead")
        dead = trainer.tracker.dead_mask(trainer.options.dead_after)
        losses = (step.x - step.output.reconstruction).square().sum(-1).square()
        for seed in range(sae.lead[0]) if sae.lead else [...]:
            chosen = dead[seed].nonzero().squeeze(1)
            if len(chosen) and bool(losses[seed].sum() > 0):
                x = step.x[seed] if step.x.ndim > 2 else step.x
                drawn = self._draw(losses[seed], len(chosen), step)
                self._restart(trainer, sae, seed, chosen, x[drawn], ~dead[seed])

    def _draw(self, losses: Float[Tensor, " tokens"], n: int, step: Step) -> Int64[Tensor, " n"]:
        weights = losses.double().cpu()
        drawn = torch.multinomial(weights, n, replacement=True, generator=step.generator(self._PURPOSE))
        return drawn.to(losses.device)

    def _restart(
        self, trainer: "Trainer", sae: LinearEncoderSAE, seed: Any, dead: Tensor, x: Tensor, alive: Tensor
    ) -> None:
        atoms = nn.functional.normalize(x - sae.pre_bias[seed], dim=-1)
        norms = sae.encoder[seed].norm(dim=-1)
        live = norms[alive].mean() if bool(alive.any()) else norms.mean()
        sae.decoder[seed][dead] = atoms
        sae.encoder[seed][dead] = atoms * (self.scale * live)
        sae.encoder_bias[seed][dead] = 0
        trainer.tracker.silent[seed][dead] = 0
        for parameter in (sae.decoder, sae.encoder, sae.encoder_bias):
            for name in ("exp_avg", "exp_avg_sq"):
                trainer.optimiser.state[parameter][name][seed][dead] = 0


class AdaptiveL1Controller(TrainingRule):
    """Steers the weight of a sparsity penalty until the batches have a given mean L0.

    After every step each seed's `sparsity` is multiplied by ``(l0 / target) ** gain``, the ratio held between
    a third and three. It is part of the autoencoder's state, so that a checkpoint has it.

    Parameters
    ----------
    target : mean number of active latents a token
    gain : exponent; 0.02 lets a penalty that is twice too small double in about fifty steps

    Raises
    ------
    ValueError : numbers not above 0; when training, an autoencoder without a `sparsity` above 0
    """

    def __init__(self, target: float | int, gain: float = 0.02) -> None:
        if not target > 0 or not gain > 0:
            raise ValueError(f"target={target}, gain={gain}: expected above 0")
        self.target, self.gain = target, gain

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        sparsity = getattr(step.trainer.sae, "sparsity", None)
        if not isinstance(sparsity, Tensor) or not bool((sparsity > 0).all()):
            kind = type(step.trainer.sae).__name__
            raise ValueError(f"sae is a {kind}: AdaptiveL1Controller expected one with a sparsity above 0")
        found = step.output.codes.active_per_token().to(sparsity.dtype).mean(-1)
        sparsity.mul_((found / self.target).clamp(1 / 3, 3) ** self.gain)


def with_linear_encoder(sae: SparseAutoencoder, rule: str) -> LinearEncoderSAE:
    """The autoencoder, if a rule that changes encoder rows can be used with it.

    Raises
    ------
    ValueError : it has no linear encoder
    """
    if not isinstance(sae, LinearEncoderSAE):
        raise ValueError(f"sae is a {type(sae).__name__}: {rule} expected one with a linear encoder")
    return sae


# --- the loop -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LogRow:
    """One number of the log.

    Attributes
    ----------
    step : optimiser steps done
    seed : the model's seed
    metric : ``"loss"`` and its terms, ``"normalized_mse"``, ``"l0"``, ``"dead"`` (share of latents)
    value : of the batch of that step, before the step
    """

    step: int
    seed: int
    metric: str
    value: float


@dataclass(frozen=True)
class TrainingLog:
    """What was logged, in order."""

    rows: tuple[LogRow, ...] = field(default_factory=tuple)

    def table(self) -> Any:
        """The rows as a pandas table with the columns step, seed, metric and value."""
        try:
            import pandas as pd
        except ImportError as error:
            raise missing_package("pandas") from error
        return pd.DataFrame([asdict(row) for row in self.rows], columns=["step", "seed", "metric", "value"])


class Trainer:
    """An autoencoder in training.

    Parameters
    ----------
    sae : changed in place
    options : see there
    rules : what is added, in this order

    Attributes
    ----------
    step_number : optimiser steps done
    optimiser : Adam over the autoencoder's parameters
    tracker : firing densities
    """

    def __init__(
        self, sae: SparseAutoencoder, options: TrainingOptions, rules: Sequence[TrainingRule] = ()
    ) -> None:
        self.sae, self.options, self.rules = sae, options, tuple(rules)
        self.optimiser = torch.optim.Adam(
            sae.parameters(), options.learning_rate, options.betas, options.epsilon, fused=True
        )
        shape = (*sae.lead, sae.n_latents)
        device = sae.decoder.device
        self.tracker = FeatureDensityTracker(shape, options.density_decay, options.fires_above, device)
        self.step_number = 0
        self.rows: list[LogRow] = []
        self._keep = sae.reads_pre_activations or any(rule.keep for rule in rules)

    def step(self, x: Float[Tensor, "*batch tokens width"]) -> Step:
        """One step on one batch; errors of :meth:`SparseAutoencoder.encode` leave everything as it was."""
        x = x.to(self.sae.decoder)
        output = self.sae(x, keep=self._keep)
        step = Step(self.step_number, x, output, self)
        self.tracker.observe(output.codes)
        terms = self.sae.loss_terms(x, output, step.generator(0))
        for rule in self.rules:
            terms |= rule.loss_terms(step)
        self.optimiser.zero_grad()
        loss = torch.stack(list(terms.values())).sum(0)
        # Seeds share no parameter, so the gradient of the sum is each seed's own.
        loss.sum().backward()
        self._update(output)
        for rule in self.rules:
            rule.after_step(step)
        self.step_number += 1
        if self.step_number % self.options.log_every == 0 or self.step_number == self.options.n_steps:
            self._log({"loss": loss, **terms}, step)
        return step

    @torch.no_grad()
    def _update(self, output: SAEOutput) -> None:
        if self.options.remove_parallel:
            self.sae.remove_parallel_gradient_()
        if self.options.clip_norm is not None:
            self._clip(self.options.clip_norm)
        for group in self.optimiser.param_groups:
            group["lr"] = self.options.rate(self.step_number)
        self.optimiser.step()
        if self.options.unit_norm:
            self.sae.normalise_decoder_()
        self.sae.update_thresholds(output, self.options.threshold_momentum)

    def _clip(self, largest: float) -> None:
        """Scale down each seed's gradient, all parameters together, to at most this norm."""
        n_lead = len(self.sae.lead)
        gradients = [p.grad for p in self.sae.parameters() if p.grad is not None]
        squares = [g.square().flatten(n_lead).sum(-1) if g.ndim > n_lead else g.square() for g in gradients]
        norm = torch.stack(squares).sum(0).sqrt()
        factor = (largest / (norm + 1e-6)).clamp(max=1)
        for g in gradients:
            g.mul_(factor.view(*factor.shape, *[1] * (g.ndim - n_lead)))

    @torch.no_grad()
    def _log(self, terms: dict[str, Tensor], step: Step) -> None:
        found = {
            **terms,
            "normalized_mse": normalized_mse(step.x, step.output.reconstruction),
            "l0": step.output.codes.active_per_token().double().mean(-1),
            "dead": self.tracker.dead_mask(self.options.dead_after).double().mean(-1),
        }
        for index, seed in enumerate(self.sae.seeds or (self.sae.seed,)):
            for metric, values in found.items():
                self.rows.append(LogRow(self.step_number, seed, metric, float(values.flatten()[index])))

    def run(
        self,
        batches: BatchSource,
        *,
        checkpoint: str | Path | None = None,
        checkpoint_every: int = 500,
        progress: bool = False,
    ) -> TrainingLog:
        """Train to the end.

        Parameters
        ----------
        batches : the batch of a step, by its number
        checkpoint : a file to go on from if it is there, and to write every `checkpoint_every` steps and
            at the end; None for none
        progress : show a bar

        Raises
        ------
        ValueError : the checkpoint is another training's (shapes, options, rules); nothing was changed then
        """
        if checkpoint_every < 1:
            raise ValueError(f"checkpoint_every={checkpoint_every}: expected at least 1")
        path = None if checkpoint is None else Path(checkpoint)
        if path is not None and path.exists():
            self.load(path)
        with _bar(progress, type(self.sae).__name__, self.step_number, self.options.n_steps) as advance:
            while self.step_number < self.options.n_steps:
                self.step(batches(self.step_number))
                advance(self.rows)
                done = self.step_number
                if path is not None and (done % checkpoint_every == 0 or done == self.options.n_steps):
                    self.save(path)
        return TrainingLog(tuple(self.rows))

    # --- checkpoints --------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write everything that :meth:`load` needs into a safetensors file, which is never half written."""
        save_file = _safetensors_package().torch.save_file
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self._tensors().items()}
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        os.close(handle)
        try:
            save_file(tensors, temporary, metadata=self._about())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def load(self, path: str | Path) -> None:
        """Go on from a checkpoint.

        Raises
        ------
        ValueError : no checkpoint of this kind, or another training's; nothing has been changed then
        """
        about, tensors = _read(Path(path))
        self._check(path, about, tensors)
        self.sae.load_state_dict(_below("model.", tensors))
        for index, parameter in enumerate(self.sae.parameters()):
            moments = _below(f"adam.{index}.", tensors)
            if moments:
                self.optimiser.state[parameter] = {
                    name: tensor.to(parameter.device) for name, tensor in moments.items()
                }
        self.tracker.restore(_below("tracker.", tensors))
        for index, rule in enumerate(self.rules):
            rule.restore(_below(f"rule.{index}.", tensors))
        self.step_number = int(about["step"])
        self.rows = [LogRow(*row) for row in json.loads(about["log"])]

    def _tensors(self) -> dict[str, Tensor]:
        named = {f"model.{name}": tensor for name, tensor in self.sae.state_dict().items()}
        for index, parameter in enumerate(self.sae.parameters()):
            for name, tensor in self.optimiser.state.get(parameter, {}).items():
                named[f"adam.{index}.{name}"] = tensor
        named |= {f"tracker.{name}": tensor for name, tensor in self.tracker.state().items()}
        for index, rule in enumerate(self.rules):
            named |= {f"rule.{index}.{name}": tensor for name, tensor in rule.state().items()}
        return named

    def _about(self) -> dict[str, str]:
        rows = [[row.step, row.seed, row.metric, row.value] for row in self.rows]
        return {
            "format": _FORMAT,
            "autoencoder": type(self.sae).__name__,
            "seeds": json.dumps(self.sae.seeds or [self.sae.seed]),
            "options": json.dumps(asdict(self.options)),
            "rules": json.dumps([type(rule).__name__ for rule in self.rules]),
            "step": str(self.step_number),
            "log": json.dumps(rows),
        }

    def _check(self, path: str | Path, about: dict[str, str], tensors: dict[str, Tensor]) -> None:
        """Refuse what is not this training's, before anything is changed."""
        mine = self._about()
        for name in ("format", "autoencoder", "seeds", "options", "rules"):
            if about.get(name) != mine[name]:
                raise ValueError(
                    f"checkpoint {path} has {name} {about.get(name)}: expected {mine[name]}, this training's"
                )
        expected = {f"model.{name}": tensor.shape for name, tensor in self.sae.state_dict().items()}
        found = {name: tensor.shape for name, tensor in tensors.items() if name.startswith("model.")}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                shapes = [None if s is None else tuple(s) for s in (found.get(name), expected.get(name))]
                raise ValueError(f"checkpoint {path} has {name} of shape {shapes[0]}: expected {shapes[1]}")


def train(
    sae: SparseAutoencoder,
    batches: BatchSource,
    options: TrainingOptions,
    rules: Sequence[TrainingRule] = (),
    **running: Any,
) -> TrainingLog:
    """Train an autoencoder in place: a :class:`Trainer`, run to its end.

    Parameters
    ----------
    running : as in :meth:`Trainer.run`: checkpoint, checkpoint_every, progress
    """
    return Trainer(sae, options, rules).run(batches, **running)


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    package = _safetensors_package()
    try:
        with package.safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            return about, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except package.SafetensorError as error:
        raise ValueError(f"checkpoint {path} is damaged or no safetensors file: {error}") from error


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _safetensors_package() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise missing_package("safetensors") from error
    return safetensors


def _bar(progress: bool, what: str, done: int, total: int) -> Any:
    """A context whose value is called after every step."""
    if not progress:
        return nullcontext(lambda rows: None)
    return _Bar(what, done, total)


class _Bar:
    """A bar of rich with the last logged loss beside it."""

    def __init__(self, what: str, done: int, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        name, loss = TextColumn("{task.description}"), TextColumn("{task.fields[loss]}")
        self.progress = Progress(name, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), loss)
        self.task = self.progress.add_task(what, completed=done, total=total, loss="")

    def __enter__(self) -> Any:
        self.progress.start()
        return self.advance

    def advance(self, rows: list[LogRow]) -> None:
        last = next((row for row in reversed(rows) if row.metric == "loss"), None)
        loss = "" if last is None else f"loss {last.value:.4g}"
        self.progress.update(self.task, advance=1, loss=loss)

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
