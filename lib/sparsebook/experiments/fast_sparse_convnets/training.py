"""Small MobileNets that tell which photograph a patch comes from: data, training, pruning, accuracy."""

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparsebook.data.photographs import photograph
from sparsebook.experiments.fast_sparse_convnets.scales import Config
from sparsebook.networks.fast_sparse_convnets import MagnitudePruner, pointwise, small_mobilenet
from sparsebook.networks.schedules import Periodic, PolynomialSparsity

NAMES = (
    "china", "flower", "astronaut", "brick", "camera", "cell", "chelsea", "coffee", "coins", "grass",
    "gravel", "hubble_deep_field", "ihc", "moon", "retina", "rocket",
)  # fmt: skip
"""The classes: photographs that are large enough to be cut up."""
SIDE, TILE = 32, 48
"""Pixels of a patch, and of the tiles that belong to training or to testing as a whole."""
_TEST_SHARE = 0.3
_PATCHES_A_TILE = 4


@dataclass(frozen=True)
class Arm:
    """One way to train a network.

    Attributes
    ----------
    width : factor of the channels
    sparsity : of the 1 x 1 convolutions at the end; 0 is dense
    block : rows that share their columns
    """

    width: float
    sparsity: float = 0.0
    block: int = 1

    @property
    def name(self) -> str:
        """Address of the arm in tables."""
        kind = "dense" if self.sparsity == 0 else f"sparse {self.sparsity:g}"
        return f"{kind}, width {self.width:g}" + (f", blocks of {self.block}" if self.block > 1 else "")


# Patches -------------------------------------------------------------------------------------------------


@cache
def tiles(name: str) -> Float[Tensor, "tiles side side"]:
    """The tiles of a photograph, grey, 0 to 1, in reading order."""
    pixels = torch.from_numpy(photograph(name).pixels.astype(np.float32)).mean(-1) / 255
    rows, columns = (side // TILE for side in pixels.shape)
    return pixels[: rows * TILE, : columns * TILE].unfold(0, TILE, TILE).unfold(1, TILE, TILE).flatten(0, 1)


@cache
def split(seed: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Each class's tiles for training and for testing, drawn by the seed."""
    generator = torch.Generator().manual_seed(seed)
    train, test = [], []
    for name in NAMES:
        own = tiles(name)
        order = torch.randperm(len(own), generator=generator)
        cut = round(_TEST_SHARE * len(own))
        test.append(own[order[:cut]])
        train.append(own[order[cut:]])
    return tuple(train), tuple(test)


def batch(
    found: tuple[Tensor, ...], n: int, generator: torch.Generator
) -> tuple[Float[Tensor, "n 1 side side"], Int[Tensor, " n"]]:
    """Patches of random classes, tiles and places, mirrored or not; each of mean 0 and deviation 1."""
    labels = torch.randint(len(found), (n,), generator=generator)
    patches = torch.empty(n, 1, SIDE, SIDE)
    draws = torch.randint(1 << 30, (n, 4), generator=generator).tolist()
    for i, (label, (tile, top, left, mirrored)) in enumerate(zip(labels.tolist(), draws, strict=True)):
        top, left = top % (TILE - SIDE + 1), left % (TILE - SIDE + 1)
        patch = found[label][tile % len(found[label]), top : top + SIDE, left : left + SIDE]
        patches[i, 0] = patch.flip(-1) if mirrored % 2 else patch
    return normalised(patches), labels


@lru_cache(1)  # the networks of a seed are tested one after another
def test_patches(seed: int) -> tuple[Float[Tensor, "n 1 side side"], Int[Tensor, " n"]]:
    """The corners of every tile that is kept for testing."""
    patches, labels = [], []
    corners = [(0, 0), (0, TILE - SIDE), (TILE - SIDE, 0), (TILE - SIDE, TILE - SIDE)][:_PATCHES_A_TILE]
    for label, own in enumerate(split(seed)[1]):
        for top, left in corners:
            patches.append(own[:, None, top : top + SIDE, left : left + SIDE])
            labels.append(torch.full((len(own),), label))
    return normalised(torch.cat(patches)), torch.cat(labels)


def normalised(patches: Float[Tensor, "n 1 side side"]) -> Float[Tensor, "n 1 side side"]:
    """Brightness and contrast tell nothing: mean 0, deviation 1 (one grey level in 255 at least)."""
    centred = patches - patches.mean((2, 3), keepdim=True)
    return centred / centred.square().mean((2, 3), keepdim=True).sqrt().clamp_min(1 / 255)


@runtime_checkable
class Task(Protocol):
    """What networks are trained on."""

    @property
    def classes(self) -> int:
        """Their number."""

    def network(self, width: float) -> nn.Module:
        """An untrained network."""

    def batch(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images and labels for training."""

    def test(self) -> tuple[Tensor, Tensor]:
        """Images and labels kept for testing."""


@dataclass(frozen=True)
class Patches:
    """Which photograph a patch comes from.

    Attributes
    ----------
    seed : of the split into tiles for training and for testing
    most_tested : patches of the test, evenly chosen; None for all
    """

    seed: int
    most_tested: int | None = None
    classes: int = len(NAMES)

    def network(self, width: float) -> nn.Module:
        """See `Task`."""
        return small_mobilenet(width, self.classes)

    def batch(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See `Task`."""
        return batch(split(self.seed)[0], n, generator)

    def test(self) -> tuple[Tensor, Tensor]:
        """See `Task`."""
        patches, labels = test_patches(self.seed)
        step = 1 if self.most_tested is None else max(1, len(labels) // self.most_tested)
        return patches[::step], labels[::step]


# Training ------------------------------------------------------------------------------------------------


def train(arm: Arm, seed: int, config: Config, task: Task) -> nn.Module:
    """A network of the arm, pruned to its end if it is sparse; in inference mode.

    Stochastic gradient descent with Nesterov's momentum, a rate that falls as a cosine; pruning by magnitude
    on the cubic schedule between a fifth and three quarters of the steps.
    """
    torch.manual_seed(seed)
    model = task.network(arm.width).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.to(config.device)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=config.train_rate, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    falling = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.train_rate, total_steps=max(2, config.train_steps), pct_start=0.1
    )
    pruner = attached_pruner(arm, model, optimizer, config.train_steps)
    generator = torch.Generator().manual_seed(seed + 1)
    for _ in range(config.train_steps):
        images, labels = task.batch(config.train_batch, generator)
        images = images.to(config.device, memory_format=torch.channels_last)
        loss = nn.functional.cross_entropy(model(images), labels.to(config.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()
    if pruner is not None:
        pruner.finish()
    return model.cpu().eval()


def attached_pruner(
    arm: Arm, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int
) -> MagnitudePruner | None:
    """The pruner of an arm, at work after the optimiser's steps; None for a dense one."""
    if arm.sparsity == 0:
        return None
    first, last = steps // 5, max(steps // 5 + 1, 3 * steps // 4)
    schedule = PolynomialSparsity(0.0, arm.sparsity, first, last)
    when = Periodic(max(1, steps // 40), first, last + max(1, steps // 40))
    pruner = MagnitudePruner(model, schedule, when, arm.block)
    pruner.attach(optimizer)
    return pruner


@torch.inference_mode()
def answers_of(model: nn.Module, images: Tensor) -> Int[Tensor, " n"]:
    """The class that a network gives each image."""
    return torch.cat([model(part).argmax(1) for part in images.split(256)])


def accuracy(given: Int[Tensor, " n"], labels: Int[Tensor, " n"]) -> float:
    """Share of the answers that are right, every class counting the same."""
    right = (given == labels).double()
    return float(torch.stack([right[labels == label].mean() for label in labels.unique()]).mean())


def move_weights(model: nn.Module, seed: int) -> None:
    """The control: the 1 x 1 weights of each layer at other places, as many zeros as before."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in pointwise(model).values():
            order = torch.randperm(layer.weight.numel(), generator=generator)
            layer.weight.copy_(layer.weight.flatten()[order].view(layer.weight.shape))
