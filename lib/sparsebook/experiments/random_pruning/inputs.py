"""What networks are trained on: digits, and patches of photographs whose class is the photograph."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from sparsebook.data.photographs import photograph
from sparsebook.data.tables import digits

CLASSES = (
    "astronaut", "brick", "camera", "chelsea", "china", "coffee", "coins", "grass", "hubble_deep_field",
    "moon", "retina", "rocket",
)  # fmt: skip
HELD_BACK = ("flower", "gravel", "ihc", "page")
"""Photographs that no network has seen: patches out of the distribution."""

TILE = 48
"""Photographs are cut into tiles of so many pixels a side, of four kinds."""
TEST, TUNING, TRAINING, ALL = 0, 1, (2, 3), (0, 1, 2, 3)


@dataclass(frozen=True, eq=False)
class Inputs:
    """A pool of samples, and which of them each seed trains and is judged on.

    Attributes
    ----------
    x, y : the pool and its classes
    train, test : rows of the pool to train and to judge on; every seed mixes them anew unless `fixed`
    strange : samples from elsewhere
    low, high : the units of `x` that black and white have
    augmented : whether training samples are shifted and mirrored
    """

    x: Float[Tensor, "pool *shape"]
    y: Int64[Tensor, " pool"]
    train: Int64[Tensor, " train"]
    test: Int64[Tensor, " test"]
    strange: Float[Tensor, "strange *shape"]
    low: float
    high: float
    fixed: bool = True
    augmented: bool = False

    def rows(self, seeds: Sequence[int]) -> tuple[Int64[Tensor, "seeds train"], Int64[Tensor, "seeds test"]]:
        """Training and test rows of each seed."""
        if self.fixed:
            return self.train.expand(len(seeds), -1), self.test.expand(len(seeds), -1)
        pool = torch.cat([self.train, self.test])
        drawn = {
            seed: pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(7_919 * seed + 1))]
            for seed in set(seeds)
        }
        both = torch.stack([drawn[seed] for seed in seeds])
        return both[:, : len(self.train)], both[:, len(self.train) :]

    def flat(self) -> "Inputs":
        """Every sample as one vector."""
        return replace(self, x=self.x.flatten(1), strange=self.strange.flatten(1))

    @property
    def pixel(self) -> float:
        """One of 255 steps from black to white."""
        return (self.high - self.low) / 255

    @property
    def n_classes(self) -> int:
        """How many classes there are."""
        return int(self.y.max()) + 1


@lru_cache(maxsize=2)
def digit_inputs(n_test: int = 600) -> Inputs:
    """The 1,797 digits, mean 0 and variance 1 over all pixels; every seed splits them anew."""
    table = digits()
    raw = torch.from_numpy(table.features).float()
    mean, scale = float(raw.mean()), float(raw.std())
    x, rows = (raw - mean) / scale, torch.arange(len(raw))
    y, ends = torch.from_numpy(table.target), ((0 - mean) / scale, (16 - mean) / scale)
    return Inputs(x, y, rows[:-n_test], rows[-n_test:], x[:0], *ends, fixed=False)


@lru_cache(maxsize=4)
def patch_inputs(n_train: int, n_test: int, side: int = 16, *, judged: int = TEST) -> Inputs:
    """Grey patches of twelve photographs, and strange ones of four others.

    Training patches, those for tuning and those for the test share no pixel.

    Parameters
    ----------
    n_train, n_test : how many, a multiple of the number of classes at most
    side : pixels
    judged : the kind of tile that `test` is cut from, `TEST` or `TUNING`

    Raises
    ------
    ValueError
        Fewer samples than one of every class.
    """
    if min(n_train, n_test) < len(CLASSES):
        raise ValueError(f"n_train={n_train}, n_test={n_test}: expected at least {len(CLASSES)} each")
    draw = np.random.default_rng([20220205, judged])
    train = [_patches(grey(name), TRAINING, n_train // len(CLASSES), side, draw) for name in CLASSES]
    test = [_patches(grey(name), (judged,), n_test // len(CLASSES), side, draw) for name in CLASSES]
    odd = [_patches(grey(name), ALL, n_test // len(CLASSES), side, draw) for name in HELD_BACK]
    seen, unseen, strange = (torch.from_numpy(np.concatenate(part)).float() for part in (train, test, odd))
    mean, scale = float(seen.mean()), float(seen.std())
    classes = torch.arange(len(CLASSES))
    labels = [classes.repeat_interleave(len(part[0])) for part in (train, test)]
    rows = torch.arange(len(seen) + len(unseen))
    x = ((torch.cat([seen, unseen]) - mean) / scale)[:, None]
    strange = ((strange - mean) / scale)[:, None]
    ends = ((0 - mean) / scale, (1 - mean) / scale)
    return Inputs(x, torch.cat(labels), rows[: len(seen)], rows[len(seen) :], strange, *ends)


def grey(name: str) -> Float[np.ndarray, "height width"]:
    """A photograph's brightness, 0 to 1 (ITU-R BT.601 weights)."""
    pixels = photograph(name).pixels.astype(np.float64) / 255
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels @ np.array([0.299, 0.587, 0.114])


def _patches(
    image: Float[np.ndarray, "height width"],
    kinds: tuple[int, ...],
    n: int,
    side: int,
    draw: np.random.Generator,
) -> Float[np.ndarray, "n side side"]:
    """Patches at random places inside random tiles of the given kinds, (row + 2 column) modulo 4."""
    rows, columns = (length // TILE for length in image.shape)
    tiles = [(r, c) for r in range(rows) for c in range(columns) if (r + 2 * c) % 4 in kinds]
    chosen = draw.integers(0, len(tiles), n)
    corners = TILE * np.array(tiles)[chosen] + draw.integers(0, TILE - side + 1, (n, 2))
    return np.stack([image[r : r + side, c : c + side] for r, c in corners])


# --- the paper's own data -----------------------------------------------------------------------------------

_RECORD = 1 + 3 * 32 * 32


@lru_cache(maxsize=1)
def cifar_inputs(folder: str, *, judged: int = TEST) -> Inputs:
    """CIFAR-10 in its binary version; for tuning, the fifth training file takes the test's place.

    Strange pictures are pieces of photographs, grey in all three colours.

    Raises
    ------
    ValueError
        A file that is missing or is not made of records of 3,073 bytes.
    """
    names = [f"data_batch_{i}.bin" for i in range(1, 6)]
    names, last = (names, "test_batch.bin") if judged == TEST else (names[:-1], names[-1])
    parts = [_records(Path(folder) / name) for name in (*names, last)]
    raw = torch.from_numpy(np.concatenate(parts))
    y, pictures = raw[:, 0].long(), raw[:, 1:].view(-1, 3, 32, 32).float() / 255
    rows, n = torch.arange(len(raw)), len(raw) - len(parts[-1])
    mean, scale = float(pictures[:n].mean()), float(pictures[:n].std())
    draw = np.random.default_rng(20220205)
    odd = np.concatenate([_patches(grey(name), ALL, 500, 32, draw) for name in HELD_BACK])
    strange = ((torch.from_numpy(odd).float() - mean) / scale)[:, None].expand(-1, 3, -1, -1)
    ends = ((0 - mean) / scale, (1 - mean) / scale)
    return Inputs((pictures - mean) / scale, y, rows[:n], rows[n:], strange, *ends, augmented=True)


def _records(path: Path) -> UInt8[np.ndarray, "pictures record"]:
    if not path.is_file():
        raise ValueError(f"cifar: {path.name} is missing; expected the folder cifar-10-batches-bin")
    raw = np.fromfile(path, dtype=np.uint8)
    if not len(raw) or len(raw) % _RECORD:
        raise ValueError(f"cifar: {path.name} has {len(raw)} bytes, no multiple of {_RECORD}")
    return raw.reshape(-1, _RECORD)


def shifted_and_mirrored(x: Tensor, chance: torch.Generator) -> Tensor:
    """The paper's augmentation: four pixels of reflection around, a random window, half of them mirrored.

    ``x`` is [networks, batch, channels, height, width]; picture i of every network is moved alike.
    """
    height, width = x.shape[-2:]
    padded = torch.nn.functional.pad(x.flatten(0, 1), (4, 4, 4, 4), mode="reflect").unflatten(0, x.shape[:2])
    corners = torch.randint(0, 9, (x.shape[1], 2), generator=chance).tolist()
    flips = (torch.rand(x.shape[1], generator=chance) < 0.5).tolist()
    moved = [
        padded[:, i, :, top : top + height, left : left + width].flip(-1)
        if flip
        else padded[:, i, :, top : top + height, left : left + width]
        for i, ((top, left), flip) in enumerate(zip(corners, flips, strict=True))
    ]
    return torch.stack(moved, dim=1)
