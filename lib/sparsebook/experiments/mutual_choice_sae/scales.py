"""What a run of the chapter does at each scale."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sparsebook.experiments.scales import at_scale

SOURCES = ("zipf", "uniform", "real")

ARMS = (
    "topk",
    "topk+aux_k",
    "relu",
    "mutual",
    "mutual+aux_k",
    "mutual+aux_zipf",
    "uniform",
    "uniform+aux_zipf",
    "zipf",
    "zipf+aux_zipf",
)
"""Selection rule and auxiliary loss: `uniform` and `zipf` are Feature Choice with such budgets."""
COMPARED = ("topk+aux_k", "mutual+aux_zipf", "uniform+aux_zipf", "zipf+aux_zipf")
"""Measured at other sparsities too, but for the uniform budgets."""


@dataclass(frozen=True)
class Size:
    """One autoencoder and its training.

    Attributes
    ----------
    n_latents, k, batch, n_steps, learning_rate : as in the trainer
    k_aux : candidates a token in an auxiliary loss
    n_seeds : trainings, batched as one model
    refit : steps between two fits of the Zipf law
    dead_after : tokens without firing after which a latent is dead in training
    """

    n_latents: int
    k: int
    batch: int
    n_steps: int
    learning_rate: float
    k_aux: int
    n_seeds: int
    refit: int = 100
    dead_after: int = 20_000


@dataclass(frozen=True)
class Config:
    """One run; make it with `Config.at`.

    Attributes
    ----------
    activations : folder with tables of a model's activations, in place of MiniLM's
    synthetic, real : sizes in the worlds and on a model's activations
    n_features, width, mean_active : of the worlds
    pool, held_out : tokens of a world that are trained on and measured on
    texts : read by MiniLM; the last fifth of their tokens is held out
    layer : of MiniLM
    grid : further sparsities, in the Zipf world
    arms, equal_arms, real_arms : what is trained in the Zipf world, in the world of equal frequencies, and on
        a model's activations
    batches : random batches in which the same `probes` tokens are read
    curriculum : share of the steps that is Mutual Choice before Zipf budgets are set
    live_seed : of the training that is repeated live
    sabotaged : train and measure the twins that the claims must not survive
    """

    scale: str
    seed: int = 0
    threads: int = 2
    device: str = "cpu"
    activations: str | None = None
    synthetic: Size = Size(256, 5, 256, 1200, 3e-3, 12, 8)
    real: Size = Size(512, 16, 256, 600, 1e-3, 128, 8)
    n_features: int = 128
    width: int = 32
    mean_active: float = 5.0
    pool: int = 65_536
    held_out: int = 65_536
    texts: int = 768
    layer: int = 3
    grid: tuple[int, ...] = (3, 8)
    arms: tuple[str, ...] = ARMS
    equal_arms: tuple[str, ...] = ("uniform+aux_zipf", "zipf+aux_zipf")
    real_arms: tuple[str, ...] = (
        "topk",
        "topk+aux_k",
        "mutual",
        "mutual+aux_zipf",
        "zipf+aux_zipf",
    )
    probes: int = 64
    batches: int = 20
    curriculum: float = 0.2
    live_seed: int = 100
    sabotaged: bool = False

    @classmethod
    def at(
        cls,
        scale: str,
        seed: int = 0,
        threads: int | None = None,
        device: str = "auto",
        activations: str | None = None,
        **knobs: Any,
    ) -> "Config":
        """The run of a scale; `knobs` override single fields.

        Raises
        ------
        ValueError
            For an unknown scale, or scale "paper" without activations.
        """
        return at_scale(
            cls, _PRESETS, scale, knobs, seed=seed, threads=threads, device=device,
            brought={"activations": activations},
            wanted="a folder with tables [tokens, width] as .npy files, such as the residual stream of GPT-2 "
            "small (see the chapter)",
        )  # fmt: skip

    def size(self, source: str) -> Size:
        """Of the autoencoders of a source."""
        return self.real if source == "real" else self.synthetic

    @property
    def cells(self) -> list[tuple[str, int, str]]:
        """(source, k, arm) of everything that is trained."""
        k, few = self.synthetic.k, (arm for arm in COMPARED if arm != "uniform+aux_zipf")
        # TopK first: it sets the law that under-used latents are counted by.
        real = sorted(self.real_arms, key=lambda arm: arm != "topk+aux_k")
        return [
            *(("zipf", k, arm) for arm in self.arms),
            *(("real", self.real.k, arm) for arm in real),
            *(("uniform", k, arm) for arm in self.equal_arms),
            *(("zipf", other, arm) for arm in few for other in self.grid),
        ]

    def record(self) -> dict[str, Any]:
        """What a recorded table keeps of the configuration."""
        plain = asdict(self)
        del plain["threads"], plain["device"]
        return plain


def config(scale: str = "book") -> Config:
    """The configuration of a scale with everything at its default."""
    return Config.at(scale)


_SMOKE = Size(48, 3, 64, 20, 1e-2, 6, 3, refit=5, dead_after=800)

_PRESETS: dict[str, Mapping[str, Any]] = {
    "smoke": {
        "synthetic": _SMOKE,
        "real": _SMOKE,
        "n_features": 24,
        "width": 12,
        "mean_active": 3.0,
        "pool": 1_024,
        "held_out": 1_024,
        "grid": (),
        "probes": 8,
        "batches": 3,
    },
    "book": {},
    "full": {},
    # Sizes that one GPU trains in an hour or two; the paper's own settings could not be read.
    "paper": {"real": Size(32_768, 32, 8_192, 2_500, 3e-4, 256, 1, dead_after=1_000_000)},
}
