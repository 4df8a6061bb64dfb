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
    cifar : folder with CIFAR-10 in its binary version, in place of the patches for the residual networks
    seeds, few : of what carries the main claims, and of what is compared beside it
    tuning_seeds, final_seeds : of runs that serve for choosing learning rates alone: all rates, and once
        more the two that did best
    live : the seed that is trained as the page is read
    rates, mlp_rates, plain_rates, digit_rates : learning rates that every arm may try: residual networks,
        perceptrons on patches, the same without normalisation, the perceptron on digits; where there is one
        rate, all take it and nothing is tuned
    digit_* : the perceptron on digits: width, sparsities, epochs, batch
    mlp_* : the perceptrons on patches: widths, sparsities of ER, epochs, batch
    patches : how many to train and to test on, and (third, else 16) their side
    depths, width, stem_stride, resnet_epochs, resnet_batch : the residual networks
    narrow : widths of dense residual networks beside them
    attacked : test samples that are attacked
    norm_batches : batches over which a gradient norm is averaged
    layer, layer_batch, layer_sparsities, small_layer : the layers whose training step is timed
    repeats, processes : of the timing
    at_once : networks in one stack at most; larger stacks of larger networks leave the caches
    """

    scale: str
    seed: int = 0
    threads: int = 2
    device: str = "cpu"
    cifar: str | None = None
    seeds: tuple[int, ...] = tuple(range(100, 140))  # up to 20 served to find out how many are needed
    few: tuple[int, ...] = tuple(range(100, 120))
    tuning_seeds: tuple[int, ...] = (1000, 1001, 1002)
    final_seeds: tuple[int, ...] = (1003, 1004, 1005, 1006, 1007)
    live: int = 50
    rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    mlp_rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    plain_rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    digit_rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    digit_width: int = 64
    digit_sparsities: tuple[float, ...] = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
    digit_epochs: int = 30
    digit_batch: int = 64
    mlp_widths: tuple[int, ...] = (16, 32, 64, 128)
    mlp_sparsities: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95)
    mlp_epochs: int = 15
    mlp_batch: int = 128
    patches: tuple[int, ...] = (4_000, 2_000)
    depths: tuple[int, ...] = (8, 14, 20)
    width: int = 8
    stem_stride: int = 2
    resnet_epochs: int = 15
    resnet_batch: int = 64
    narrow: tuple[int, ...] = (3, 4, 5, 6)
    attacked: int = 500
    norm_batches: int = 10
    layer: int = 1_000
    layer_batch: int = 100
    layer_sparsities: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95, 0.98)
    small_layer: int = 64
    repeats: int = 20
    processes: int = 5
    at_once: int = 60

    @classmethod
    def at(
        cls,
        scale: str,
        seed: int = 0,
        threads: int | None = None,
        device: str = "auto",
        cifar: str | None = None,
        **knobs: Any,
    ) -> "Config":
        """The run of a scale; `knobs` override single fields.

        Raises
        ------
        ValueError
            For an unknown scale, or scale "paper" without CIFAR-10.
        """
        return at_scale(
            cls, _PRESETS, scale, knobs, seed=seed, threads=threads, device=device, brought={"cifar": cifar},
            wanted="the folder cifar-10-batches-bin of CIFAR-10's binary version",
        )  # fmt: skip

    @property
    def middle(self) -> int:
        """The width of the perceptron that stands for all where one has to."""
        return self.mlp_widths[2]

    def rates_of(self, family: str) -> tuple[float, ...]:
        """The learning rates from which networks of this kind may choose."""
        return {
            "resnet": self.rates,
            "patches": self.mlp_rates,
            "plain": self.plain_rates,
            "digits": self.digit_rates,
        }[family]

    def record(self) -> dict[str, Any]:
        """What a recorded table keeps of the configuration."""
        plain = asdict(self)
        del plain["threads"], plain["device"], plain["at_once"]
        return plain


def config(scale: str = "book") -> Config:
    """The configuration of a scale with everything at its default."""
    return Config.at(scale)


_PRESETS: dict[str, Mapping[str, Any]] = {
    "smoke": {
        "seeds": tuple(range(20)),
        "few": tuple(range(8)),
        "tuning_seeds": (1000,),
        "final_seeds": (),
        "rates": (0.1,),
        "mlp_rates": (0.1,),
        "plain_rates": (0.03, 0.1),
        "digit_rates": (0.1,),
        "digit_width": 32,
        "digit_sparsities": (0.3, 0.9, 0.95),
        "digit_epochs": 2,
        "digit_batch": 256,
        "mlp_widths": (16, 24, 32, 48),
        "mlp_sparsities": (0.5, 0.8, 0.9),
        "mlp_epochs": 3,
        "patches": (240, 120, 8),
        "mlp_batch": 32,
        "width": 3,
        "resnet_epochs": 2,
        "resnet_batch": 32,
        "narrow": (1, 2),
        "attacked": 30,
        "norm_batches": 2,
        "layer": 256,
        "layer_batch": 32,
        "layer_sparsities": (0.9, 0.98),
        "repeats": 3,
        "at_once": 400,
    },
    "book": {},
    "full": {},
    # The paper's depths on CIFAR-10; perceptrons and digits stay those of this book.
    "paper": {
        "seeds": tuple(range(20)),
        "few": tuple(range(8)),
        "rates": (0.1,),
        "depths": (20, 32, 56, 110),
        "width": 16,
        "narrow": (4, 6, 8, 12),
        "stem_stride": 1,
        "resnet_epochs": 160,
        "resnet_batch": 128,
        "attacked": 10_000,
    },
}
