"""What a run of the chapter does at each scale."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sparsebook.experiments.scales import at_scale

SABOTAGES = ("", "untrained", "no residual", "four steps", "one k", "same arms", "labels", "given")
"""How the controls of the claims break the method; "" is honest."""


@dataclass(frozen=True)
class Cell:
    """One cell of the paper's table of absorption: children's magnitudes (parents have N(1, 1/4))."""

    mean: float
    deviation: float

    @property
    def name(self) -> str:
        return f"{self.mean:g}, 1/{1 / self.deviation:g}"


@dataclass(frozen=True)
class Config:
    """One run; make it with `Config.at`.

    Attributes
    ----------
    steps, batch, seeds : of the toy; a seed draws directions, data and start
    cosines : of siblings, ascending
    further_seeds : runs beyond `seeds` where ten are too few to tell, see `toy.FURTHER`
    moderate : the cosines up to which siblings count as moderately correlated
    shown : the cosine at which dictionaries are drawn
    threshold, fixed_threshold : at which pursuit stops; the latter is the original benchmark's, where
        magnitudes are fixed
    k : active latents a sample that the baselines aim at
    cells, cell_seeds, cell_steps : of the comparison of absorption
    fixed_steps : of the comparison of varying with fixed magnitudes
    norm_steps, norm_cosines : of the comparison of norms
    live_steps : of the short training of its free arm that the live cell repeats
    judged : samples that a dictionary is judged on
    stores : where activations come from: "efficientnet", "minilm", "planted", or files of the folder `store`
    store : folder of the reader's own activations, one ``.npy`` file [tokens, width] a model
    embeddings : folder with the reader's own ``images.npy`` and ``texts.npy``
    texts, held_out : texts that MiniLM reads; rows kept for judging
    expansion : latents over the width of the activations; None for `latents`
    ks, k_shown, k_inference : steps (latents a token), the one that is looked at, those at inference
    arms : autoencoders that are trained on activations; a control may need only some
    real_steps, real_batch, real_seeds, rates : of the trainings on activations; rates are tuned
    joint_seeds, joint_steps, joint_batch : of the joint embedding
    world_seeds, world_steps, world_batch : of the superposed world
    world_features, active : of the superposed world, and features of one of its tokens
    sabotage : broken as the claims' controls say, see `SABOTAGES`
    """

    scale: str
    seed: int = 0
    threads: int = 2
    device: str = "cpu"
    store: str | None = None
    embeddings: str | None = None
    steps: int = 15_000
    batch: int = 200
    seeds: int = 10
    cosines: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    further_seeds: int = 10
    moderate: float = 0.3
    shown: float = 0.3
    threshold: float = 0.05
    fixed_threshold: float = 0.6
    k: float = 1.36
    cells: tuple[Cell, ...] = (Cell(1.0, 1 / 4), Cell(0.5, 1 / 400), Cell(0.1, 1 / 40))
    cell_seeds: int = 15
    cell_steps: int = 15_000
    fixed_steps: int = 15_000
    norm_steps: int = 15_000
    norm_cosines: tuple[float, ...] = (0.0, 0.3)
    live_steps: int = 1500
    judged: int = 2000
    stores: tuple[str, ...] = ("efficientnet", "minilm")
    texts: int = 256
    held_out: int = 2000
    latents: int = 512
    expansion: float | None = None
    ks: tuple[int, ...] = (4, 8, 16)
    k_shown: int = 8
    k_inference: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    arms: tuple[str, ...] = ("mp", "relu", "topk", "batch_topk")
    real_steps: int = 800
    real_batch: int = 256
    real_seeds: int = 8
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    joint_seeds: int = 24
    joint_steps: int = 300
    joint_batch: int = 128
    world_seeds: int = 8
    world_steps: int = 1500
    world_batch: int = 256
    world_features: int = 512
    active: int = 8
    sabotage: str = ""

    def __post_init__(self) -> None:
        if self.sabotage not in SABOTAGES:
            raise ValueError(f"sabotage={self.sabotage!r}: expected one of {', '.join(map(repr, SABOTAGES))}")

    @classmethod
    def at(
        cls,
        scale: str,
        seed: int = 0,
        device: str = "auto",
        threads: int | None = None,
        store: str | None = None,
        embeddings: str | None = None,
        **knobs: Any,
    ) -> "Config":
        """The run of a scale; `knobs` override single fields.

        Raises
        ------
        ValueError
            For an unknown scale, or scale "paper" without a store.
        """
        return at_scale(
            cls, _PRESETS, scale, {"embeddings": embeddings, **knobs}, seed=seed, threads=threads,
            device=device, brought={"store": store},
            wanted="a folder with one file of activations a model (see the chapter)",
        )  # fmt: skip

    def record(self) -> dict[str, Any]:
        """What a recorded table keeps of the configuration."""
        plain = asdict(self)
        del plain["threads"], plain["store"], plain["embeddings"], plain["device"]
        return plain


def config(scale: str = "book") -> Config:
    """The configuration of a scale with everything at its default."""
    return Config.at(scale)


_PRESETS: dict[str, Mapping[str, Any]] = {
    "smoke": {
        "steps": 20,
        "batch": 100,
        "seeds": 2,
        "cosines": (0.0, 0.3, 0.9),
        "cell_seeds": 2,
        "cell_steps": 20,
        "fixed_steps": 20,
        "norm_steps": 20,
        "live_steps": 20,
        "further_seeds": 2,
        "judged": 300,
        "stores": ("planted",),
        "held_out": 300,
        "latents": 48,
        "ks": (2, 4),
        "k_shown": 4,
        "k_inference": (1, 2, 4, 8),
        "real_steps": 20,
        "real_batch": 64,
        "real_seeds": 2,
        "rates": (1e-2,),
        "joint_seeds": 2,
        "joint_steps": 10,
        "joint_batch": 64,
        "world_seeds": 2,
        "world_steps": 15,
        "world_batch": 64,
        "world_features": 48,
    },
    "book": {},
    "full": {},
    # The paper's large runs: 25 times the width, batches of 8,000 tokens. The toy has its size already.
    "paper": {
        "stores": (),
        "held_out": 50_000,
        "expansion": 25.0,
        "ks": (4, 8, 16, 32),
        "k_shown": 16,
        "k_inference": (1, 2, 4, 8, 16, 32, 64),
        "real_steps": 50_000,
        "real_batch": 8000,
        "real_seeds": 8,
        "rates": (1e-4, 5e-4, 2e-3),
        "joint_seeds": 8,
        "joint_steps": 20_000,
        "joint_batch": 1024,
        "world_steps": 20_000,
        "world_batch": 1024,
    },
}
