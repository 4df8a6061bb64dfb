"""The tables: Madelon as generated, digits in noise, real pictures and texts, and the paper's own folder."""

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sparsebook.experiments.quick_selection.scales import Config

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "ihc", "retina", "china", "flower")
TEXTURES = ("brick", "grass", "gravel")
USEFUL = 20
"""Columns of Madelon that hold anything: five that decide the class and fifteen mixtures of them."""
MIN_MAX = ("films", "articles", "SMK_CAN_187", "PCMAC")
_DIGIT_SIDE = 16


@dataclass(frozen=True, eq=False)
class Split:
    """Samples to choose columns on and samples to judge on, scaled by what the first of them show.

    Attributes
    ----------
    train, test : float32 [samples, columns]
    train_labels, test_labels : class numbers
    variance : of the columns before scaling, on the training samples
    useful : numbers of the columns that are known to be useful, if any are
    """

    train: np.ndarray
    test: np.ndarray
    train_labels: np.ndarray
    test_labels: np.ndarray
    variance: np.ndarray
    useful: np.ndarray

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(np.unique(self.train_labels))


def load_split(name: str, seed: int, config: Config) -> Split:
    """A set by name: four fifths to train on, one fifth to judge on; Madelon is generated anew.

    Raises
    ------
    ValueError
        For an unknown name.
    """
    scaling = "min-max" if name in MIN_MAX else "standard"
    if config.tables is not None:
        return _split(*folder_table(config.tables, name), seed, scaling)
    if name == "madelon":
        return madelon(seed, config)
    if name == "digits":
        return digits_in_noise(seed, config.noise_columns[-1], 3 * config.most_samples)
    makers: dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]] = {
        "textures": _textures, "photographs": _photographs, "faces": _faces, "films": _films,
        "articles": _articles, "crops": _crops,
    }  # fmt: skip
    if name not in makers:
        raise ValueError(f"set {name!r}: expected madelon, digits or one of {', '.join(makers)}")
    sizes = (config.most_samples, config.words, config.patches, config.crops)
    x, labels = _made(makers[name], sizes)
    return _split(x, labels, seed, scaling)


@lru_cache(8)
def _made(maker: Callable[..., Any], sizes: tuple[int, ...]) -> Any:
    return maker(*sizes)


def tuning_split(split: Split, seed: int) -> Split:
    """The training samples alone, divided once more, three to one: the test samples play no part."""
    inner = np.random.default_rng([seed, 7]).permutation(len(split.train))
    cut = 3 * len(inner) // 4
    own, held = inner[:cut], inner[cut:]
    labels = split.train_labels
    return Split(split.train[own], split.train[held], labels[own], labels[held], split.variance, split.useful)


# Known answers -------------------------------------------------------------------------------------------


def madelon(seed: int, config: Config) -> Split:
    """Madelon's generator: 5 informative columns, 15 mixtures of them, else noise; 16 clusters a class."""
    n_train, n_test, columns = config.madelon
    x, labels = _generated(seed, n_train + n_test, columns)
    order = np.random.default_rng([seed, 1]).permutation(len(x))
    return _scaled(x, labels, order[:n_train], order[n_train:], "standard", np.arange(USEFUL))


@lru_cache(8)  # every arm of a seed has the same
def _generated(seed: int, samples: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import make_classification

    return make_classification(
        samples, columns, n_informative=5, n_redundant=15, n_classes=2, n_clusters_per_class=16,
        shuffle=False, random_state=seed,
    )  # fmt: skip


def independent(seed: int, config: Config) -> Split:
    """As large as Madelon; the sign of the sum of twenty independent columns is the class."""
    n_train, n_test, columns = config.madelon
    rng = np.random.default_rng([seed, 2])
    x = rng.standard_normal((n_train + n_test, columns))
    labels = (x[:, :USEFUL].sum(axis=1) > 0).astype(np.int64)
    order = np.arange(len(x))
    return _scaled(x, labels, order[:n_train], order[n_train:], "standard", np.arange(USEFUL))


def digits_in_noise(seed: int, noise_columns: int, samples: int) -> Split:
    """The digits' 64 pixels, constant ones included, beside standard normal columns."""
    from sparsebook.data.tables import digits

    table, rng = digits(), np.random.default_rng([seed, 3])
    x = np.hstack([table.features, rng.standard_normal((len(table.features), noise_columns))])
    order = rng.permutation(len(x))[:samples]
    cut = 4 * len(order) // 5
    return _scaled(x, table.target, order[:cut], order[cut:], "standard", np.arange(64))


def digit_canvas(seed: int, config: Config) -> Split:
    """Digits enlarged to 16 x 16 in the middle of an empty picture; useful is the digit's area."""
    from sparsebook.data.tables import digits

    table, side = digits(), config.canvas
    start = (side - _DIGIT_SIDE) // 2
    large = table.features.reshape(-1, 8, 8).repeat(2, axis=1).repeat(2, axis=2)
    pictures = np.zeros((len(large), side, side))
    area = slice(start, start + _DIGIT_SIDE)
    pictures[:, area, area] = large
    inside = np.zeros((side, side), dtype=bool)
    inside[area, area] = True
    order = np.random.default_rng([seed, 4]).permutation(len(large))[: 3 * config.most_samples]
    cut = 4 * len(order) // 5
    x = pictures.reshape(len(large), -1)
    return _scaled(x, table.target, order[:cut], order[cut:], "standard", np.flatnonzero(inside))


def correlated_blocks(
    seed: int, config: Config, correlation: float | int = 0.8
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Standard normal columns, some of them in blocks whose members are correlated; columns by block size."""
    samples, columns = config.block_table
    rng = np.random.default_rng([seed, 5])
    x = rng.standard_normal((samples, columns))
    members, start = {}, 0
    for size in config.blocks:
        end = start + config.block_columns
        for first in range(start, end, size):
            shared = rng.standard_normal((samples, 1))
            block = x[:, first : first + size]
            x[:, first : first + size] = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * block
        members[size], start = np.arange(start, end), end
    return ((x - x.mean(axis=0)) / x.std(axis=0)).astype(np.float32), members


# Real tables ---------------------------------------------------------------------------------------------


def _textures(most: int, words: int, patches: int, crops: int) -> tuple[np.ndarray, np.ndarray]:
    """28 x 28 patches of three grey textures, on a grid."""
    return _patches(TEXTURES, 28, 2 * patches)


def _photographs(most: int, words: int, patches: int, crops: int) -> tuple[np.ndarray, np.ndarray]:
    """16 x 16 patches of eight colour photographs: which one is it?"""
    return _patches(PHOTOGRAPHS, 16, patches)


def _crops(most: int, words: int, patches: int, crops: int) -> tuple[np.ndarray, np.ndarray]:
    """As `_photographs`, 48 x 48 and few: thousands of columns."""
    return _patches(PHOTOGRAPHS, 48, crops)


def _patches(names: tuple[str, ...], side: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    from sparsebook.data.photographs import photograph

    rows, labels = [], []
    for label, name in enumerate(names):
        pixels = photograph(name).pixels.astype(np.float32)
        height, width = pixels.shape[0] // side, pixels.shape[1] // side
        grid = pixels[: height * side, : width * side].reshape(height, side, width, side, -1)
        grid = grid.swapaxes(1, 2).reshape(height * width, -1)
        chosen = np.random.default_rng([label, side]).permutation(len(grid))[:count]
        rows.append(grid[chosen])
        labels += [label] * len(chosen)
    return np.concatenate(rows), np.array(labels)


def _faces(most: int, words: int, patches: int, crops: int) -> tuple[np.ndarray, np.ndarray]:
    from sparsebook.data.photographs import lfw_subset

    faces = lfw_subset()
    return faces.pixels.reshape(len(faces.pixels), -1), faces.is_face.astype(np.int64)


def _films(most: int, words: int, patches: int, crops: int) -> tuple[np.ndarray, np.ndarray]:
    """Critics' sentences on comedies and on horror films (not both): which is it?"""
    from sparsebook.data.films import films

    texts: dict[bool, list[str]] = {True: [], False: []}
    for film in films().with_consensus():
        comedy, horror = "Comedy" in film.genres, "Horror" in film.genres
        if comedy != horror and len(texts[horror]) < most // 2:
            texts[horror].append(film.consensus)
    return _bag(texts[False] + texts[True], words), np.repeat([0, 1], [len(texts[False]), len(texts[True])])


def _articles(most: int, words: int, patches: int, crops: int) -> tuple[np.ndarray, np.ndarray]:
    """Passages of the ten longest articles of Wikipedia: which one is it from?"""
    from sparsebook.data.text import wikipedia_passages

    passages = wikipedia_passages(stemmed=False)
    longest = np.argsort(-np.bincount(passages.article), kind="stable")[:10]
    texts, labels = [], []
    for label, article in enumerate(longest):
        own = np.flatnonzero(passages.article == article)[: most // 10]
        texts += [passages.texts[i] for i in own]
        labels += [label] * len(own)
    return _bag(texts, words), np.array(labels)


def _bag(texts: list[str], words: int) -> np.ndarray:
    """How often each of the most frequent words occurs, stop words left out."""
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(max_features=words, stop_words="english")
    return counter.fit_transform(texts).toarray().astype(np.float32)


# The paper's own -----------------------------------------------------------------------------------------

_HAR = "UCI HAR Dataset"
_MNIST = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


def folder_sets(folder: str | Path) -> tuple[str, ...]:
    """Names of the sets in a folder: every .mat file's, and HAR and MNIST where their files are.

    Raises
    ------
    ValueError
        When there is none.
    """
    root = Path(folder)
    names = sorted(path.stem for path in root.glob("*.mat"))
    names += ["HAR"] if (root / _HAR).is_dir() else []
    names += ["MNIST"] if (root / _MNIST[0]).is_file() else []
    if not names:
        raise ValueError(
            "tables: expected .mat files with X and Y (COIL20.mat, Isolet.mat, madelon.mat, SMK_CAN_187.mat, "
            f"GLA_BRA_180.mat, PCMAC.mat), the folder '{_HAR}' or {_MNIST[0]}, and found none of them"
        )
    return tuple(names)


def folder_table(folder: str | Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Samples and classes of a set in the layout in which its publishers give it."""
    root = Path(folder)
    if name == "HAR":
        parts = [root / _HAR / part for part in ("train", "test")]
        x = np.concatenate([np.loadtxt(part / f"X_{part.name}.txt", ndmin=2) for part in parts])
        labels = np.concatenate([np.loadtxt(part / f"y_{part.name}.txt", ndmin=1) for part in parts])
    elif name == "MNIST":
        images, classes = (gzip.decompress((root / file).read_bytes()) for file in _MNIST)
        labels = np.frombuffer(classes, dtype=np.uint8, offset=8)
        x = np.frombuffer(images, dtype=np.uint8, offset=16).reshape(len(labels), -1)
    else:
        from scipy.io import loadmat

        content = loadmat(root / f"{name}.mat")
        x, labels = content["X"], content["Y"].ravel()
        x = x.toarray() if hasattr(x, "toarray") else x
    return np.asarray(x, dtype=np.float64), np.unique(labels, return_inverse=True)[1]


# Scaling -------------------------------------------------------------------------------------------------


def _split(x: np.ndarray, labels: np.ndarray, seed: int, scaling: str) -> Split:
    order = np.random.default_rng([seed, 6]).permutation(len(x))
    cut = 4 * len(x) // 5
    return _scaled(x, labels, order[:cut], order[cut:], scaling, np.array([], dtype=np.int64))


def _scaled(
    x: np.ndarray, labels: np.ndarray, train: np.ndarray, test: np.ndarray, scaling: str, useful: np.ndarray
) -> Split:
    """Mean 0 and deviation 1, or 0 to 1, as the training samples are; constant columns become 0."""
    own = x[train].astype(np.float64)
    if scaling == "standard":
        shift, width = own.mean(axis=0), own.std(axis=0)
    else:
        shift, width = own.min(axis=0), np.ptp(own, axis=0)
    width = np.where(width > 0, width, 1.0)
    whole = ((x - shift) / width).astype(np.float32)
    return Split(whole[train], whole[test], labels[train], labels[test], own.var(axis=0), useful)
