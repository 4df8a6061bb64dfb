"""What a run of the chapter does at each scale."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sparsebook.experiments.scales import at_scale

SETS = ("madelon", "digits", "textures", "photographs", "faces", "films", "articles", "crops")


@dataclass(frozen=True)
class Config:
    """One run; make it with `Config.at`.

    Attributes
    ----------
    tables : folder with the paper's own data sets, in place of ours
    seeds : of data and networks
    trade_seeds, tuning_seed : of splits and networks when sets are compared; of the split rivals are tuned on
    live : the seed of what is trained as the page is read
    sets : data sets that are compared
    epochs : at which rankings are looked at; the last is the length of training
    quick : the epochs of the paper's quick setting
    tuning_epochs : of the networks that are tuned
    n_hidden, batch : of every network
    trees, clusterings : of an evaluation
    kept, kept_known : columns that are kept; of tables whose useful columns are known
    kept_sweep, sweep_sets, sweep_seeds : numbers of kept columns, and where they are varied
    rates, neighbours : what networks and graph methods may try
    madelon : training samples, test samples, columns
    canvas : side of the picture that a digit lies in
    noise_columns : beside the digits' pixels
    blocks, block_columns, block_table : sizes of blocks of correlated columns, columns of each size,
        samples and columns in all
    most_samples, words, patches, crops : sizes of the real tables; of digits three times as many samples
    timed_epochs, timed_repeats, processes : of measurements of time and memory
    scale_features, scale_samples, pair_features, memory_features, sparse_features : of the study of scale
    memory_limit : bytes that a training may take beyond its data there
    """

    scale: str
    seed: int = 0
    threads: int = 2
    device: str = "cpu"
    tables: str | None = None
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
    trade_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    tuning_seed: int = 100
    live: int = 50
    sets: tuple[str, ...] = SETS
    epochs: tuple[int, ...] = (1, 3, 10, 30, 100)
    quick: int = 10
    tuning_epochs: int = 20
    n_hidden: int = 1000
    batch: int = 100
    trees: int = 50
    clusterings: int = 10
    kept: int = 50
    kept_known: int = 20
    kept_sweep: tuple[int, ...] = (5, 10, 20, 50, 100)
    sweep_sets: tuple[str, ...] = ("digits", "articles")
    sweep_seeds: int = 1
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
    neighbours: tuple[int, ...] = (3, 5, 10, 20)
    madelon: tuple[int, int, int] = (2000, 600, 500)
    canvas: int = 28
    noise_columns: tuple[int, ...] = (0, 64, 448)
    blocks: tuple[int, ...] = (1, 2, 5, 10)
    block_columns: int = 20
    block_table: tuple[int, int] = (1000, 500)
    most_samples: int = 300
    words: int = 3289
    patches: int = 60
    crops: int = 30
    timed_epochs: int = 2
    timed_repeats: int = 3
    processes: int = 5
    scale_features: tuple[int, ...] = (500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000)
    scale_samples: int = 200
    pair_features: int = 5_000
    pair_samples: int = 500
    memory_features: int = 20_000
    sparse_features: int = 50_000
    memory_limit: int = 2 * 2**30

    @classmethod
    def at(
        cls,
        scale: str,
        seed: int = 0,
        threads: int | None = None,
        device: str = "auto",
        tables: str | None = None,
        **knobs: Any,
    ) -> "Config":
        """The run of a scale; `knobs` override single fields.

        Raises
        ------
        ValueError
            For an unknown scale, or scale "paper" without tables.
        """
        return at_scale(
            cls, _PRESETS, scale, knobs, seed=seed, threads=threads, device=device,
            brought={"tables": tables},
            wanted="a folder with the paper's data sets, such as COIL20.mat and PCMAC.mat (see the chapter)",
        )  # fmt: skip

    @property
    def length(self) -> int:
        """Epochs of a whole training."""
        return self.epochs[-1]

    def kept_of(self, name: str) -> int:
        """Columns that are kept of a set."""
        return self.kept_known if name.lower().startswith("madelon") else self.kept

    def record(self) -> dict[str, Any]:
        """What a recorded table keeps of the configuration."""
        plain = asdict(self)
        del plain["threads"], plain["device"]
        return plain


def config(scale: str = "book") -> Config:
    """The configuration of a scale with everything at its default."""
    return Config.at(scale)


_PRESETS: dict[str, Mapping[str, Any]] = {
    "smoke": {
        "epochs": (1, 3, 7),
        "quick": 3,
        "tuning_epochs": 2,
        "n_hidden": 30,
        "batch": 20,
        "trees": 1,
        "clusterings": 1,
        "kept": 8,
        "kept_known": 20,
        "kept_sweep": (8, 16),
        "sweep_seeds": 1,
        "rates": (1e-2,),
        "neighbours": (5,),
        "madelon": (120, 40, 50),
        "canvas": 20,
        "noise_columns": (0, 64),
        "block_columns": 10,
        "block_table": (200, 80),
        "most_samples": 40,
        "words": 60,
        "patches": 5,
        "crops": 5,
        "timed_epochs": 1,
        "timed_repeats": 1,
        "processes": 5,
        "scale_features": (100, 200),
        "scale_samples": 40,
        "pair_features": 200,
        "pair_samples": 40,
        "memory_features": 400,
        "sparse_features": 800,
    },
    "book": {},
    "full": {},
    # The paper's own tables; everything else is as released.
    "paper": {"sets": ()},
}
