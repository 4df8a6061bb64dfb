"""The experiments: each returns a tidy table (experiment, method, seed, metric, value, unit, its knobs)."""

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sparsebook.data.activations import stream
from sparsebook.data.superposition import SparseMixture
from sparsebook.experiments.group_bias_adaptation.scales import Config
from sparsebook.experiments.group_bias_adaptation.training import (
    Arm,
    Curve,
    Inputs,
    Measured,
    Trace,
    build,
    fit,
    imbalanced,
    measure,
    real_inputs,
    recovery,
    tidy,
    world_inputs,
)
from sparsebook.features.group_bias_adaptation import (
    BiasAdaptation,
    TiedJumpReLUSAE,
    geometric_targets,
    group_of,
    small_scale_ascent,
)
from sparsebook.features.metrics import densities, max_cosine
from sparsebook.features.sae import SparseAutoencoder
from sparsebook.features.trainer import Trainer, TrainingOptions

Stages = dict[str, Callable[[], pd.DataFrame]]
RIVALS = ("topk", "batch_topk", "l1", "jumprelu")
"""Methods that are given the L0 of Group Bias Adaptation."""
STEERED = ("l1", "jumprelu")
"""Those whose L0 is steered and not set: it may end beside the aim."""
CURVE_RATIOS = (0.25, 1.0, 4.0)
"""Targets over the features' frequency whose curves are kept."""
FULL_RANGE, WRONG_RANGE, HIGH_RANGE = (0.1, 0.001), (0.01, 0.001), (0.5, 0.001)
"""Targets, highest and lowest: ours for worlds, one without any target near the features' frequency, and the
paper's later one."""


def run(config: Config, stages: Stages, experiment: str) -> pd.DataFrame:
    """All stages of an experiment; at full and paper scale each is kept, so that a run can be resumed."""
    if config.scale in ("full", "paper"):
        from sparsebook.recorded import run_stages

        # A folder of the reader's own stands in the key by its checksum: a record names no machine's paths.
        folder = None if config.activations is None else str(Path(config.activations).resolve())
        own = None if folder is None else hashlib.sha256(folder.encode()).hexdigest()
        parameters = config.record() | {"activations": own}
        return run_stages("group_bias_adaptation", experiment, stages, parameters=parameters)
    return pd.concat([compute() for compute in stages.values()], ignore_index=True)


# The resonance map ---------------------------------------------------------------------------------------


def run_resonance(config: Config) -> pd.DataFrame:
    """Bias Adaptation with one target for all: recovery over dimensions and targets, and untrained.

    The dimensions between the first and the third are measured at p = f alone.
    """
    dims = config.resonance_dims
    stages: Stages = {}
    for dim in dims:
        ratios = (1.0,) if dim == dims[1] else config.resonance_ratios
        for ratio in ratios:
            stages[f"d={dim} ratio={ratio:g}"] = partial(_resonance, config, dim, ratio)
    for share in config.mixed_pairs:
        stages[f"pairs={share:g}"] = partial(_resonance, config, dims[2], 1.0, share)
    return run(config, stages, "resonance")


def _resonance(config: Config, dim: int, ratio: float, pairs: float = 0.0) -> pd.DataFrame:
    inputs, arm = _resonance_inputs(config, dim, pairs, config.seeds), _single(config, ratio)
    untrained, _ = build(arm, inputs, config.resonance_latents, config.seeds, config)
    sae = fit(arm, inputs, config.resonance_latents, config.resonance_steps, config.seeds, config)
    out = []
    for index, (seed, found) in enumerate(zip(config.seeds, measure(sae, inputs, arm), strict=True)):
        start = recovery(untrained.decoder[index], inputs.worlds[index])
        found |= {f"untrained_{name}": value for name, value in start.items()}
        out += tidy("resonance", "ba", seed, found, dim=dim, ratio=ratio, pairs=pairs)
    return pd.DataFrame(out)


def _single(config: Config, ratio: float) -> Arm:
    """Bias Adaptation with a target of so many times the features' frequency."""
    target = ratio * config.resonance_sparsity / config.resonance_features
    return Arm("ba", "gba", config.resonance_rate, high=target, low=target, groups=1)


@lru_cache(maxsize=1)
def _resonance_inputs(config: Config, dim: int, pairs: float, seeds: tuple[int, ...]) -> Inputs:
    n, s = config.resonance_features, config.resonance_sparsity
    worlds = [SparseMixture(n, dim, s, co_occurrence=pairs, seed=seed) for seed in seeds]
    return world_inputs(worlds, seeds, config)


# Tuning --------------------------------------------------------------------------------------------------


def run_tuning(config: Config) -> pd.DataFrame:
    """Every method at every learning rate on worlds kept apart; the rivals at the L0 that GBA comes to."""
    return _tuned(config, "tuning", FULL_RANGE)


def run_real_tuning(config: Config) -> pd.DataFrame:
    """As `run_tuning`, on activations, with runs kept apart; and the target of Bias Adaptation."""
    found = _tuned(config, "real_tuning", HIGH_RANGE)
    stages: Stages = {"ba": partial(_tune_ba, config, best_rate(found, "gba"), common_l0(found))}
    return pd.concat([found, run(config, stages, "real_tuning")], ignore_index=True)


def _tuned(config: Config, experiment: str, targets: tuple[float, float]) -> pd.DataFrame:
    """GBA first; the rivals at its L0; then those whose L0 is only steered once more, aimed better."""
    own = Arm("gba", "gba", 0.0, *targets)
    found = run(config, {"gba": partial(_rates, config, own, experiment)}, experiment)
    k = common_l0(found)
    stages: Stages = {arm.name: partial(_rates, config, arm, experiment) for arm in rivals(k)}
    found = pd.concat([found, run(config, stages, experiment)], ignore_index=True)
    again: Stages = {}
    for name in STEERED:
        rate = best_rate(found, name)
        aimed = k * float(np.clip(k / max(_l0_at(found, name, rate), 1e-9), 0.5, 2))
        again[f"{name}_aim"] = partial(_aim, config, Arm(f"{name}_aim", name, rate, k=aimed), experiment)
    return pd.concat([found, run(config, again, experiment)], ignore_index=True)


def rivals(k: float) -> list[Arm]:
    """The other methods, with a mean of `k` active neurons a token."""
    return [Arm(name, name, k=k) for name in RIVALS]


def _setting(config: Config, experiment: str) -> tuple[Inputs, int, int, tuple[int, ...]]:
    """What is tuned on: tokens, neurons, steps, seeds."""
    if experiment == "tuning":
        seeds = config.tuning_seeds
        return imbalanced(config, seeds), config.world_latents, config.world_steps, seeds
    return real_inputs(config), config.real_latents, config.real_steps, config.real_tuning


def _rates(config: Config, arm: Arm, experiment: str) -> pd.DataFrame:
    rates = config.rates if experiment == "tuning" else config.real_rates
    return pd.DataFrame([row for rate in rates for row in _tried(config, arm.at(rate), experiment)])


def _aim(config: Config, arm: Arm, experiment: str) -> pd.DataFrame:
    rows = _tried(config, arm, experiment)
    rows += tidy(experiment, arm.name, rows[0]["seed"], {"aim": (arm.k, "neurons")}, rate=arm.rate)
    return pd.DataFrame(rows)


def _tune_ba(config: Config, rate: float, k: float) -> pd.DataFrame:
    """One group on activations: at GBA's rate and its neighbours, at several targets."""
    place = int(np.argmin([abs(own - rate) for own in config.real_rates]))
    out: list[dict[str, Any]] = []
    for own in config.real_rates[max(0, place - 1) : place + 2]:
        for multiple in config.ba_multiples:
            target = min(1.0, multiple * k / config.real_latents)
            arm = Arm("ba", "gba", own, target, target, 1)
            out += _tried(config, arm, "real_tuning", target=target)
    return pd.DataFrame(out)


def _tried(config: Config, arm: Arm, experiment: str, **knobs: Any) -> list[dict[str, Any]]:
    inputs, n_latents, n_steps, seeds = _setting(config, experiment)
    sae, out = fit(arm, inputs, n_latents, n_steps, seeds, config), []
    for seed, found in zip(seeds, measure(sae, inputs, arm), strict=True):
        out += tidy(experiment, arm.name, seed, found, rate=arm.rate, **knobs)
    return out


def best_rate(tuning: pd.DataFrame, method: str) -> float:
    """The learning rate of the lowest normalised error: what can be known without the true features.

    A rival's rate must bring it within a quarter of the common L0, else the comparison is none; where none
    does, the one that comes nearest is taken.
    """
    own = tuning[tuning.method == method].pivot_table(index="rate", columns="metric", values="value")
    if method != "gba":
        distance = (own.l0 / common_l0(tuning) - 1).abs()
        near = own[distance <= 0.25]
        own = near if len(near) else own.loc[[distance.idxmin()]]
    return float(own.nmse.idxmin())


def common_l0(tuning: pd.DataFrame) -> float:
    """The L0 of tuned GBA, to a tenth."""
    return round(_l0_at(tuning, "gba", best_rate(tuning, "gba")), 1)


def _l0_at(tuning: pd.DataFrame, method: str, rate: float) -> float:
    own = tuning[(tuning.method == method) & (tuning.metric == "l0") & (tuning.rate == rate)]
    return float(own["value"].mean())


def tuned_rival(tuning: pd.DataFrame, name: str) -> Arm:
    """A rival with its rate, and with the aim that came nearest to the common L0."""
    rate, k = best_rate(tuning, name), common_l0(tuning)
    again = tuning[tuning.method == f"{name}_aim"].groupby("metric")["value"].mean()
    if len(again) and abs(again.l0 - k) < abs(_l0_at(tuning, name, rate) - k):
        return Arm(name, name, rate, k=float(again.aim))
    return Arm(name, name, rate, k=k)


def matched_ba(tuning: pd.DataFrame) -> pd.DataFrame:
    """For each rate that Bias Adaptation tried, the target that gives the common L0 and the error there.

    Interpolated between the targets tried, all in logarithms; the nearest end where none brackets it.
    """
    own, goal, rows = tuning[tuning.method == "ba"], np.log(common_l0(tuning)), {}
    for rate, table in own.groupby("rate"):
        means = table.pivot_table(index="target", columns="metric", values="value").sort_values("l0")
        places = np.log(means.l0.clip(lower=1e-9))
        rows[rate] = {
            "target": float(np.exp(np.interp(goal, places, np.log(means.index)))),
            "nmse": float(np.exp(np.interp(goal, places, np.log(means.nmse)))),
        }
    return pd.DataFrame(rows).T


# The imbalanced world ------------------------------------------------------------------------------------


def world_arms(config: Config, tuning: pd.DataFrame) -> dict[str, Arm]:
    """Everything that the imbalanced world is asked of."""
    rate = best_rate(tuning, "gba")
    frequency = sum(config.world_levels) / 2 / config.world_features

    def gba(name: str, high: float, low: float, groups: int = 10, **more: Any) -> Arm:
        return Arm(name, "gba", rate, high, low, groups, **more)

    arms = [
        gba("gba", *FULL_RANGE),
        gba("gba_wrong", *WRONG_RANGE),
        gba("gba_high", *HIGH_RANGE),
        gba("ba", frequency, frequency, 1),
        gba("gba_shift", *FULL_RANGE, gate="shift"),
    ]
    arms += [tuned_rival(tuning, name) for name in RIVALS]
    arms += [Arm(f"topk_{k}", "topk", best_rate(tuning, "topk"), k=k) for k in config.topk]
    return {arm.name: arm for arm in arms}


def run_world(config: Config, tuning: pd.DataFrame) -> pd.DataFrame:
    """The imbalanced world: all arms, all seeds."""
    stages: Stages = {
        name: partial(_world, config, arm, config.seeds) for name, arm in world_arms(config, tuning).items()
    }
    return run(config, stages, "world")


def _world(config: Config, arm: Arm, seeds: tuple[int, ...]) -> pd.DataFrame:
    inputs = imbalanced(config, seeds)
    sae = fit(arm, inputs, config.world_latents, config.world_steps, seeds, config)
    out = []
    for seed, found in zip(seeds, measure(sae, inputs, arm), strict=True):
        out += tidy("world", arm.name, seed, found, rate=arm.rate)
    return pd.DataFrame(out)


def run_curves(config: Config, tuning: pd.DataFrame) -> pd.DataFrame:
    """Error and recovery while one tuning world is learned, for twice as many steps as are judged.

    The methods at equal sparsity in the imbalanced world; Bias Adaptation with three targets in the world of
    the resonance map. No claim rests on this: it shows whether training was long enough.
    """
    arms = world_arms(config, tuning)
    stages: Stages = {name: partial(_world_curve, config, arms[name]) for name in ("gba", *RIVALS)}
    for ratio in CURVE_RATIOS:
        stages[f"ratio={ratio:g}"] = partial(_resonance_curve, config, ratio)
    return run(config, stages, "curves")


def _world_curve(config: Config, arm: Arm) -> pd.DataFrame:
    inputs = imbalanced(config, config.tuning_seeds[:1])
    return _curve(config, arm, inputs, config.world_latents, 2 * config.world_steps)


def _resonance_curve(config: Config, ratio: float) -> pd.DataFrame:
    seeds = config.tuning_seeds[:1]
    inputs, arm = _resonance_inputs(config, config.resonance_dims[2], 0.0, seeds), _single(config, ratio)
    sizes = (config.resonance_latents, 2 * config.resonance_steps)
    return _curve(config, arm, inputs, *sizes, ratio=ratio)


def _curve(
    config: Config, arm: Arm, inputs: Inputs, n_latents: int, n_steps: int, **knobs: Any
) -> pd.DataFrame:
    curve, seed = Curve(inputs, arm, config.curve_every), config.tuning_seeds[:1]
    fit(arm, inputs, n_latents, n_steps, seed, config, [curve])
    rows: list[dict[str, Any]] = []
    for step, found in curve.rows:
        rows += tidy("curves", arm.name, seed[0], found, rate=arm.rate, step=step, **knobs)
    return pd.DataFrame(rows)


def run_live(config: Config, tuning: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One more world, trained now: GBA and TopK; and the shares of firing of GBA's groups on the way."""
    seeds, arms, tables = (config.live,), world_arms(config, tuning), []
    trace = Trace(arms["gba"].groups)
    inputs = imbalanced(config, seeds)
    for name in ("gba", "topk"):
        more = [trace] if name == "gba" else []
        sae = fit(arms[name], inputs, config.world_latents, config.world_steps, seeds, config, more)
        found = measure(sae, inputs, arms[name])[0]
        tables.append(pd.DataFrame(tidy("world", name, config.live, found, rate=arms[name].rate)))
    steps = [
        {"step": step, "group": group, "target": float(arms["gba"].targets[group]), "share": float(share)}
        for step, means in trace.rows
        for group, share in enumerate(means)
    ]
    return pd.concat(tables, ignore_index=True), pd.DataFrame(steps)


def run_clamps(config: Config) -> pd.DataFrame:
    """The controller alone, on frozen random weights, with the clamps either way."""
    return run(config, {"all": partial(_clamps, config)}, "clamps")


@torch.no_grad()
def _clamps(config: Config) -> pd.DataFrame:
    inputs, targets, out = imbalanced(config, config.seeds), geometric_targets(*FULL_RANGE, 10), []
    n_latents, source = config.world_latents, inputs.source(config.seeds)
    groups = group_of(n_latents, len(targets))
    for clamps in ("ordered", "printed"):
        sae = TiedJumpReLUSAE(inputs.width, n_latents, seeds=config.seeds)
        sae.start_bias_(inputs.start, targets)
        control = BiasAdaptation(groups, targets, clamps=clamps)
        for update in range(config.clamp_updates):
            for step in range(config.interval):
                v = sae.projections(source(update * config.interval + step))
                control.observe(v + sae.bias[:, None])
            sae.bias.copy_(control.update(sae.bias))
        shares = densities(sae.encode(inputs.test))
        held = ((shares > 0) & (shares <= 1.25 * control.target)).double().mean(-1)
        for seed, value in zip(config.seeds, held.tolist(), strict=True):
            out += tidy("clamps", clamps, seed, {"held": (value, "fraction")})
    return pd.DataFrame(out)


# The limit of small scales -------------------------------------------------------------------------------


def run_width(config: Config) -> pd.DataFrame:
    """Recovery by the first 2^k of neurons that learn alone, for several s, and with uneven frequencies."""
    stages: Stages = {f"s={s}": partial(_width, config, s, 1.0) for s in config.width_sparsities}
    stages["uneven"] = partial(_width, config, 2, 4.0)
    stages["bound"] = partial(_bound, config, False)
    stages["bound, unit features"] = partial(_bound, config, True)
    return run(config, stages, "width")


def _width(config: Config, s: int, imbalance: float) -> pd.DataFrame:
    n, out = config.width_features, []
    frequencies = None if imbalance == 1 else [imbalance] * (n // 2) + [1.0] * (n - n // 2)
    for seed in config.seeds:
        world = SparseMixture(n, config.width_dim, s, frequencies=frequencies, seed=seed)
        w = _ascend(config, world, config.width_most, s / n)
        size = 16
        while size <= config.width_most:
            found = recovery(w[:size], world)
            out += tidy("width", "small_scales", seed, found, s=s, imbalance=imbalance, latents=size)
            size *= 2
    return pd.DataFrame(out)


def _bound(config: Config, unit: bool) -> pd.DataFrame:
    """At the width n p^-s with p = 1/n and s = 2; with the world's features, or all of them of length 1."""
    out = []
    for seed in config.seeds:
        world = SparseMixture(config.bound_features, config.bound_dim, 2, seed=seed)
        w = _ascend(config, world, config.bound_latents, 1 / config.bound_features, unit)
        found = recovery(w, world)
        knobs = {"s": 2, "imbalance": 1.0, "latents": config.bound_latents}
        out += tidy("width", "bound_unit" if unit else "bound", seed, found, **knobs)
    return pd.DataFrame(out)


def _ascend(
    config: Config, world: SparseMixture, n_neurons: int, target: float, unit: bool = False
) -> Tensor:
    drawn = world.sample(config.width_tokens, stream(world.seed, 17))
    x = drawn.coefficients @ normalize(world.features, dim=1) if unit else drawn.x
    return small_scale_ascent(x, n_neurons, target, config.width_steps, stream(world.seed, 19))


# Activations ---------------------------------------------------------------------------------------------


def real_arms(config: Config, tuning: pd.DataFrame) -> dict[str, tuple[Arm, tuple[int, ...]]]:
    """Everything that activations are asked of, with the runs of each."""
    rate = best_rate(tuning, "gba")
    single = matched_ba(tuning)
    ba_rate = float(single.nmse.idxmin())
    target = float(single.target[ba_rate])
    many, few = config.real_runs, config.real_few_runs
    arms = {"gba": (Arm("gba", "gba", rate, *HIGH_RANGE, 10), many)}
    for name in RIVALS:
        arms[name] = (tuned_rival(tuning, name), many if name in ("topk", "l1") else few)
    arms["ba"] = (Arm("ba", "gba", ba_rate, target, target, 1), few)
    arms["gba_20"] = (Arm("gba_20", "gba", rate, *HIGH_RANGE, 20), few)
    arms["gba_3"] = (Arm("gba_3", "gba", rate, *HIGH_RANGE, 3), few)
    arms["gba_low"] = (Arm("gba_low", "gba", rate, 0.05, 0.001, 10), few)
    return arms


def run_real(config: Config, tuning: pd.DataFrame) -> pd.DataFrame:
    """Held-out error and L0 of every arm on activations, and agreement between pairs of runs."""
    stages: Stages = {
        name: partial(_real, config, arm, runs) for name, (arm, runs) in real_arms(config, tuning).items()
    }
    return run(config, stages, "real")


def _real(config: Config, arm: Arm, seeds: Sequence[int]) -> pd.DataFrame:
    inputs = real_inputs(config)
    sae = fit(arm, inputs, config.real_latents, config.real_steps, seeds, config)
    out = []
    for seed, found in zip(seeds, measure(sae, inputs, arm), strict=True):
        out += tidy("real", arm.name, seed, found, rate=arm.rate)
    if len(seeds) == len(config.real_runs):
        for first in range(0, len(seeds) - 1, 2):
            found = agreement_of_pair(sae, inputs.test, first, first + 1)
            out += tidy("real", arm.name, seeds[first], found, rate=arm.rate)
    return pd.DataFrame(out)


@torch.no_grad()
def agreement_of_pair(sae: SparseAutoencoder, x: Tensor, first: int, second: int) -> Measured:
    """Share of one run's neurons with a cosine above 0.9 in the other's, both ways, mean; and a random other.

    Over all neurons that fire, and over the tenth with the largest mean code.
    """
    found: dict[str, list[float]] = {"mcs": [], "mcs_top": [], "mcs_random": [], "mcs_top_random": []}
    for own, other in ((first, second), (second, first)):
        codes, others = (sae.model(run).encode(x.to(sae.decoder)).sum_per_latent() for run in (own, other))
        alive = codes != 0
        top = codes >= codes.sort(descending=True).values[max(0, sae.n_latents // 10 - 1)]
        rows, rival = sae.decoder[own], sae.decoder[other][others != 0]
        false = torch.randn(rows.shape, generator=stream(own, 23)).to(rows)
        for suffix, dictionary in (("", rival), ("_random", false)):
            agree = (max_cosine(rows, dictionary) > 0.9).double()
            found[f"mcs{suffix}"].append(float(agree[alive].mean()))
            found[f"mcs_top{suffix}"].append(float(agree[top & alive].mean()))
    return {name: (sum(values) / 2, "fraction") for name, values in found.items()}


# -----------------------------------------------------------------------------------------------------------


def fingerprint() -> list[float]:
    """Losses of the first five steps of GBA in the imbalanced world, and the mean bias after them."""
    config = Config.at("full", tokens=2_000, test_tokens=100)
    arm, seeds = Arm("gba", "gba"), (0,)
    inputs = imbalanced(config, seeds)
    sae, rules = build(arm, inputs, config.world_latents, seeds, config)
    trainer = Trainer(sae, TrainingOptions(5, arm.rate, log_every=1), rules)
    log = trainer.run(inputs.source(seeds))
    losses = [row.value for row in log.rows if row.metric == "loss"]
    assert isinstance(sae, TiedJumpReLUSAE)
    return [*losses, float(sae.bias.mean())]
