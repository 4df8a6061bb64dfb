"""Arms under one roof: how each is built, trained and measured, all seeds of an arm at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sparsebook.experiments.random_pruning.inputs import (
    TEST,
    TUNING,
    Inputs,
    cifar_inputs,
    digit_inputs,
    patch_inputs,
    shifted_and_mirrored,
)
from sparsebook.experiments.random_pruning.scales import Config
from sparsebook.models.cifar_resnet import CifarResNet
from sparsebook.networks import trust
from sparsebook.networks.counting import layer_macs
from sparsebook.networks.masks import prunable, shuffle_mask
from sparsebook.networks.random_pruning import (
    own_positions,
    prune_at_random,
    ratio_densities,
    width_of_equal_size,
)
from sparsebook.networks.stacked import (
    SGDOptions,
    Stacked,
    stacked_logits,
    stacked_loss,
    stacked_masks,
    train_stacked,
)

Measured = dict[str, tuple[Tensor, str]]
DENSE = ("dense", "small_dense", "narrow")


@dataclass(frozen=True)
class Family:
    """Networks of one kind on one kind of input.

    Attributes
    ----------
    name : "digits" and "patches" (perceptrons), "plain" (perceptrons without normalisation) or "resnet"
    depth, width : of the network; perceptrons have one depth
    """

    name: str
    width: int
    depth: int = 4

    def make(self, inputs: Inputs, config: Config, width: int | None = None) -> nn.Module:
        """An untrained network, by default of the family's width."""
        width = self.width if width is None else width
        if self.name == "resnet":
            channels = inputs.x.shape[1]
            return CifarResNet(self.depth, width, inputs.n_classes, channels, config.stem_stride)
        layers: list[nn.Module] = []
        for n in (inputs.x.shape[1], width, width):
            if self.name == "plain":
                layers += [nn.Linear(n, width), nn.ReLU()]
            else:
                layers += [nn.Linear(n, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(width, inputs.n_classes))

    def inputs(self, config: Config, judged: int = TEST) -> Inputs:
        """What the family is trained on; digits are split anew by every seed, whatever is judged."""
        if self.name == "digits":
            return digit_inputs()
        if self.name in ("patches", "plain"):
            return patch_inputs(*config.patches, judged=judged).flat()
        if config.cifar is not None:
            return cifar_inputs(config.cifar, judged=judged)
        return patch_inputs(*config.patches, judged=judged)

    def options(self, config: Config, rate: float | int) -> SGDOptions:
        """How it is trained."""
        if self.name == "digits":
            return SGDOptions(config.digit_epochs, config.digit_batch, rate)
        if self.name in ("patches", "plain"):
            return SGDOptions(config.mlp_epochs, config.mlp_batch, rate)
        return SGDOptions(config.resnet_epochs, config.resnet_batch, rate)


@dataclass(frozen=True)
class Arm:
    """What is done to a network before it is trained.

    Attributes
    ----------
    method : "dense", "small_dense" (as many weights as the sparse one would have), "narrow" (dense, of the
        family's width), a ratio, the same and "_scaled" (initialisation scaled to the density), or "own_"
        and a score: its own positions
    sparsity : share of the weights that is pruned
    """

    method: str
    sparsity: float = 0.0


@dataclass(eq=False)
class Trained:
    """An arm's networks, one for each seed, side by side."""

    stack: Stacked
    masks: dict[str, Tensor] | None
    seeds: Sequence[int]
    norms: Tensor
    macs: Tensor


def build(
    family: Family, arms: Sequence[Arm], seeds: Sequence[int], config: Config, inputs: Inputs
) -> Trained:
    """Networks of all arms and seeds (arm by arm), pruned, with their gradient norms at initialisation.

    The same seed has the same first weights in every arm of the same architecture.
    """
    width = _width(family, arms[0], config, inputs)
    models, masks, macs = [], [], []
    rows, _ = inputs.rows(seeds)
    shape = tuple(inputs.x.shape[1:])
    per_layer = layer_macs(family.make(inputs, config, width), shape)
    for arm in arms:
        for index, seed in enumerate(seeds):
            model = initialised(family.make(inputs, config, width), seed)
            own = pruned(model, arm, inputs, rows[index], seed, 3 if config.scale == "smoke" else 100)
            models.append(model)
            masks.append(own)
            macs.append(sum(value * float(own[name].double().mean()) for name, value in per_layer.items()))
    every = list(seeds) * len(arms)
    stack, dense = Stacked(models).to(config.device), arms[0].method in DENSE
    stacked = {name: mask.to(config.device) for name, mask in stacked_masks(masks).items()}
    norms = gradient_norms(stack, stacked, inputs, rows.repeat(len(arms), 1), config)
    total = torch.tensor(macs, dtype=torch.float64)
    return Trained(stack, None if dense else stacked, every, norms, total)


def _width(family: Family, arm: Arm, config: Config, inputs: Inputs) -> int:
    if arm.method != "small_dense":
        return family.width
    n = sum(weight.numel() for weight in prunable(family.make(inputs, config)).values())

    def make(width: int) -> nn.Module:
        return family.make(inputs, config, width)

    return width_of_equal_size(make, (1 - arm.sparsity) * n, family.width)


def initialised(model: nn.Module, seed: int) -> nn.Module:
    """Kaiming's normal initialisation (fan-in, gain of ReLU), biases 0; from one seed alone."""
    chance = torch.Generator().manual_seed(seed)
    for weight in prunable(model).values():
        nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=chance)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    return model


def pruned(
    model: nn.Module, arm: Arm, inputs: Inputs, rows: Tensor, seed: int, rounds: int = 100
) -> dict[str, Tensor]:
    """The arm's masks; the model's pruned weights become 0."""
    if arm.method in DENSE:
        return {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable(model).items()}
    chosen = score_rows(inputs, rows, arm.method)
    x, y = inputs.x[chosen], inputs.y[chosen]
    if arm.method.startswith("own_"):
        masks = own_positions(model, 1 - arm.sparsity, arm.method.removeprefix("own_"), x, y)
        return _not_empty(masks)
    ratio = arm.method.removesuffix("_scaled")
    densities = ratio_densities(model, 1 - arm.sparsity, ratio, x, y, seed=seed, rounds=rounds)
    return prune_at_random(model, densities, seed, rescale=ratio != arm.method)


def _not_empty(masks: dict[str, Tensor]) -> dict[str, Tensor]:
    for mask in masks.values():
        if not bool(mask.any()):
            mask.view(-1)[0] = True
    return masks


def score_rows(inputs: Inputs, rows: Tensor, method: str) -> Tensor:
    """The samples that a score is taken on: GraSP's 25 of every class, one batch of 128 otherwise."""
    if "grasp" not in method:
        return rows[torch.arange(len(rows))[:: max(1, len(rows) // 128)][:128]]
    labels = inputs.y[rows]
    return torch.cat([rows[labels == label][:25] for label in range(inputs.n_classes)])


def gradient_norms(
    stack: Stacked, masks: Mapping[str, Tensor], inputs: Inputs, rows: Tensor, config: Config
) -> Tensor:
    """Squared norm of the kept weights' gradient, mean over batches, one value a network."""
    kept = {name: value.clone() for name, value in stack.state_dict().items()}
    weights, found = stack.prunable(), torch.zeros(stack.n_models, dtype=torch.float64)
    stack.train()
    for name, weight in weights.items():
        weight.data.masked_fill_(~masks[name], 0)
    kept |= {f"network.{name}": weight.detach().clone() for name, weight in weights.items()}
    # One of every so many samples: training samples lie class by class.
    order = torch.randperm(rows.shape[1], generator=torch.Generator().manual_seed(11))
    for batch in order[: 64 * config.norm_batches].split(64):
        chosen = rows[:, batch]
        x, y = inputs.x[chosen].to(config.device), inputs.y[chosen].to(config.device)
        loss = stacked_loss(stack(x), y).sum()
        for name, g in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            found += (g * masks[name]).double().flatten(1).square().sum(1).cpu() / config.norm_batches
    stack.load_state_dict(kept)
    return found


def fit(
    family: Family,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    rate: float | int,
    config: Config,
    judged: int = TEST,
) -> tuple[Trained, Measured]:
    """Build, train and measure; the values lie arm by arm. For tuning only the accuracy is measured."""
    inputs = family.inputs(config, judged)
    trained = build(family, arms, seeds, config, inputs)
    train, test = inputs.rows(trained.seeds)
    moved = shifted_and_mirrored if inputs.augmented else None
    x, y = inputs.x.to(config.device), inputs.y.to(config.device)
    train_stacked(
        trained.stack, x, y, train, family.options(config, rate), trained.seeds, trained.masks, augment=moved
    )
    if judged == TUNING:
        hits = trust.accuracy(answers(trained.stack, x[test.to(config.device)]), y[test.to(config.device)])
        return trained, {"accuracy": (100 * hits.cpu(), "points")}
    return trained, measure(trained, inputs, test, config)


# --- measures -----------------------------------------------------------------------------------------------


@torch.no_grad()
def measure(trained: Trained, inputs: Inputs, test: Tensor, config: Config) -> Measured:
    """What the networks come to on their test samples, sabotaged twins beside it."""
    stack = trained.stack
    x, labels = inputs.x[test].to(config.device), inputs.y[test].to(config.device)
    logits = answers(stack, x)
    first, second = slice(0, None, 2), slice(1, None, 2)
    temperature = trust.fit_temperature(logits[:, first], labels[:, first])[:, None, None]
    scaled = logits[:, second].double() / temperature
    found: Measured = {
        "accuracy": (100 * trust.accuracy(logits, labels), "points"),
        "nll": (trust.negative_log_likelihood(logits, labels), "nats"),
        "nll_ten": (trust.negative_log_likelihood(10 * logits, labels), "nats"),
        "ece": (trust.calibration_error(logits, labels), "fraction"),
        "ece_ten": (trust.calibration_error(10 * logits, labels), "fraction"),
        "ece_scaled": (trust.calibration_error(scaled, labels[:, second]), "fraction"),
        "ece_scaled_ten": (trust.calibration_error(10 * scaled, labels[:, second]), "fraction"),
        "temperature": (temperature.flatten(), "ratio"),
        "gradient_norm": (trained.norms, "squared norm"),
        "macs": (trained.macs, "multiplications"),
    }
    weights = stack.prunable()
    kept = sum(weight.flatten(1).ne(0).sum(1) for weight in weights.values())
    found["weights"] = (torch.as_tensor(kept).double(), "weights")
    if trained.masks is not None:
        dead = [mask.flatten(2).any(2).logical_not().double().mean(1) for mask in trained.masks.values()]
        found["dead"] = (torch.stack(dead).mean(0), "fraction")
        found["accuracy_redrawn"] = (100 * redrawn_accuracy(trained, x, labels), "points")
    if len(inputs.strange):
        found |= _elsewhere(stack, logits, inputs, config)
        stride = max(1, x.shape[1] // config.attacked)
        found |= _attacked(stack, x[:, ::stride], labels[:, ::stride], inputs)
    return {name: (values.detach().cpu().double(), unit) for name, (values, unit) in found.items()}


def answers(stack: Stacked, x: Tensor) -> Tensor:
    """Logits; a network that has diverged says nothing, so its NaN count as 0 for every class."""
    return stacked_logits(stack, x).nan_to_num(0.0, 0.0, 0.0)


def redrawn_accuracy(trained: Trained, x: Tensor, labels: Tensor) -> Tensor:
    """Accuracy with other random masks of the same densities over the trained weights."""
    assert trained.masks is not None
    weights = trained.stack.prunable()
    kept = {name: weight.detach().clone() for name, weight in weights.items()}
    chance = torch.Generator().manual_seed(500_009)
    with torch.no_grad():
        for name, mask in trained.masks.items():
            other = torch.stack([shuffle_mask(own, generator=chance) for own in mask])
            weights[name].masked_fill_(~other, 0)
        found = trust.accuracy(answers(trained.stack, x), labels)
        for name, weight in weights.items():
            weight.copy_(kept[name])
    return found


def _elsewhere(stack: Stacked, logits: Tensor, inputs: Inputs, config: Config) -> Measured:
    strange = inputs.strange.to(config.device).expand(stack.n_models, *inputs.strange.shape)
    outside = trust.largest_probability(answers(stack, strange))
    certain = trust.auroc(trust.largest_probability(logits), torch.ones_like(outside))
    return {
        "auroc": (trust.auroc(trust.largest_probability(logits), outside), "AUROC"),
        "auroc_certain": (certain, "AUROC"),
    }


def _attacked(stack: Stacked, x: Tensor, labels: Tensor, inputs: Inputs) -> Measured:
    found: Measured = {}
    for steps in (2, 8, 128):
        hit = []
        for part, truth in zip(x.split(250, dim=1), labels.split(250, dim=1), strict=True):
            with torch.enable_grad():
                bounds = {"low": inputs.low, "high": inputs.high}
                moved = trust.fgsm(stack, part, truth, steps * inputs.pixel, **bounds)
            hit.append(stack(moved).argmax(-1) == truth)
        found[f"fgsm_{steps}"] = (100 * torch.cat(hit, dim=1).double().mean(1), "points")
    return found


def tidy(
    experiment: str, family: Family, arms: Sequence[Arm], seeds: Sequence[int], found: Measured, **more: Any
) -> list[dict[str, Any]]:
    """Rows of a tidy table."""
    rows = []
    for metric, (values, unit) in found.items():
        for place, value in enumerate(values.tolist()):
            arm = arms[place // len(seeds)]
            rows.append(
                {
                    "experiment": experiment, "method": arm.method, "seed": seeds[place % len(seeds)],
                    "metric": metric, "value": float(value), "unit": unit, "sparsity": arm.sparsity,
                    "family": family.name, "width": family.width, "depth": family.depth,
                }
                | more
            )  # fmt: skip
    return rows


def first_losses(family: Family, arm: Arm, config: Config, n_steps: int = 5) -> list[float]:
    """Loss over the test samples after each of the first steps of one network."""
    inputs, found = family.inputs(config), []
    for steps in range(1, n_steps + 1):
        trained = build(family, [arm], [0], config, inputs)
        train, test = inputs.rows([0])
        options = family.options(config, 0.1)
        train_stacked(trained.stack, inputs.x, inputs.y, train, options, [0], trained.masks, n_steps=steps)
        with torch.no_grad():
            logits = stacked_logits(trained.stack, inputs.x[test[:, ::7]])
        found.append(float(cross_entropy(logits[0], inputs.y[test[0, ::7]])))
    return found
