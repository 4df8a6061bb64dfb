"""What a run of the chapter does at each scale."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sparsebook.experiments.scales import at_scale


@dataclass(frozen=True)
class Config:
    """One run; make it with `Config.at`.

    Attributes
    ----------
    activations : folder of ``.npy`` tables ``[tokens, width]``, in place of MiniLM
    seeds : of the worlds, each with its own features, tokens and training run
    tuning_seeds : of worlds and runs that are used for tuning alone
    live : the seed of the world trained as the page is read
    rates, real_rates : learning rates that every method may try in the world, and on activations
    batch : tokens a step
    interval : steps between two updates of the biases
    resonance_* : the resonance map: features `n`, features a token `s`, dimensions, targets over `f`
    mixed_pairs : shares of co-occurrence of the last experiment on that world
    world_* : the imbalanced world
    curve_every : steps between two points of the curves, which are twice as long as what is judged
    topk : values of K there
    width_* : the limit of small scales: world, largest width, tokens, steps
    bound_* : the same at the theorem's width
    real_* : activations: runs of the three methods whose consistency is asked for, runs of the others
    ba_multiples : targets that Bias Adaptation may try there, over the mean density of tuned GBA
    """

    scale: str
    seed: int = 0
    threads: int = 2
    device: str = "cpu"
    activations: str | None = None
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
    tuning_seeds: tuple[int, ...] = (100,)
    live: int = 50
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    batch: int = 128
    interval: int = 5
    tokens: int = 8_000
    test_tokens: int = 4_000
    resonance_features: int = 256
    resonance_sparsity: int = 3
    resonance_dims: tuple[int, ...] = (12, 20, 32, 64)
    resonance_ratios: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    resonance_latents: int = 512
    resonance_steps: int = 1800
    resonance_rate: float = 1e-2
    mixed_pairs: tuple[float, ...] = (1 / 64, 1.0)
    world_features: int = 128
    world_dim: int = 42
    world_levels: tuple[int, int] = (3, 20)
    world_latents: int = 512
    world_steps: int = 2400
    curve_every: int = 300
    topk: tuple[int, ...] = (5, 10, 20, 30, 50)
    clamp_updates: int = 200
    width_features: int = 64
    width_dim: int = 48
    width_sparsities: tuple[int, ...] = (1, 2, 3)
    width_most: int = 16_384
    width_tokens: int = 1024
    width_steps: int = 5
    bound_features: int = 32
    bound_dim: int = 24
    bound_latents: int = 32_768
    real_texts: int = 1024
    real_test_tokens: int = 8_000
    real_latents: int = 512
    real_steps: int = 1500
    real_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    ba_multiples: tuple[float, ...] = (1.0, 2.0, 4.0)
    real_runs: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
    real_few_runs: tuple[int, ...] = (0, 1, 2, 3, 4)
    real_tuning: tuple[int, ...] = (100,)

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
            wanted="a folder of .npy tables [tokens, width], such as layer 13 of Qwen2.5-1.5B over the Pile "
            "(see the chapter)",
        )  # fmt: skip

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
        "tuning_seeds": (100,),
        "rates": (1e-2,),
        "real_rates": (1e-2,),
        "ba_multiples": (1.0, 2.0),
        "curve_every": 4,
        "batch": 64,
        "tokens": 600,
        "test_tokens": 300,
        "resonance_features": 48,
        "resonance_ratios": (0.25, 1.0, 4.0),
        "resonance_latents": 96,
        "resonance_steps": 4,
        "world_features": 32,
        "world_dim": 20,
        "world_levels": (2, 6),
        "world_latents": 96,
        "world_steps": 10,
        "topk": (2, 5, 20, 30, 50),
        "clamp_updates": 30,
        "width_features": 16,
        "width_dim": 12,
        "width_most": 256,
        "width_tokens": 512,
        "width_steps": 4,
        "bound_features": 8,
        "bound_dim": 6,
        "bound_latents": 512,
        "real_test_tokens": 300,
        "real_latents": 96,
        "real_steps": 5,
    },
    "book": {},
    "full": {},
    # Qwen2.5-1.5B, 100 million tokens, some 66,000 neurons: the worlds stay those of this book.
    "paper": {
        "interval": 50,
        "batch": 512,
        "real_latents": 65_536,
        "real_steps": 195_000,
        "real_test_tokens": 2_000,
        "real_rates": (1e-4, 3e-4, 1e-3),
    },
}
