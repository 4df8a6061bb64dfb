"""What a run of the chapter does at each scale."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sparsebook.experiments.scales import at_scale

Shape = tuple[int, int, int]

V1_SHAPES: tuple[Shape, ...] = (
    (12544, 64, 32), (3136, 128, 64), (3136, 128, 128), (784, 256, 128), (784, 256, 256), (196, 512, 256),
    (196, 512, 512), (49, 1024, 512), (49, 1024, 1024),
)  # fmt: skip
"""Pixels, output and input channels of MobileNet v1's 1 x 1 convolutions at 224 pixels."""
V2_SHAPES: tuple[Shape, ...] = (
    (12544, 16, 32), (12544, 96, 16), (3136, 24, 96), (3136, 144, 24), (3136, 24, 144), (784, 32, 144),
    (784, 192, 32), (784, 32, 192), (196, 64, 192), (196, 384, 64), (196, 64, 384), (196, 96, 384),
    (196, 576, 96), (196, 96, 576), (49, 160, 576), (49, 960, 160), (49, 160, 960), (49, 320, 960),
    (49, 1280, 320),
)  # fmt: skip
"""The same of MobileNet v2."""


@dataclass(frozen=True)
class Config:
    """One run; make it with `Config.at`.

    Attributes
    ----------
    imagenet : folder with train/<class>/*.JPEG and val/<class>/*.JPEG, in place of patches of photographs
    v1_shapes, v2_shapes : products that are timed: pixels, output and input channels
    sparsities : of these products
    claimed : the sparsities over which a claim about the paper's range averages
    cache_rows, cache_entries : the products of the sweep over the cache: output channels, and weights of each
    cache_shares : size of a strip of the input over the first-level cache
    prunings : sparsities of EfficientNet-Lite0; the first is that of the claims
    pixels : side of its image
    images : of a batch whose latency is measured for the small networks
    widths : of dense networks
    sparse_widths : of networks pruned to `sparsity`
    sparsity : of their 1 x 1 convolutions
    block_width : of the networks with blocks of 2 and 4
    seeds : of weights, batches and the split of the photographs
    live : the seed of the networks trained as the page is read
    most_tested : patches on which a network is tested; None for all
    train_steps, train_batch, train_rate : of every training
    processes : for times; 0 measures in this one
    repeats, warmup : rounds in a process, and rounds before them
    """

    scale: str
    seed: int = 0
    threads: int = 2
    device: str = "cpu"
    imagenet: str | None = None
    v1_shapes: tuple[Shape, ...] = V1_SHAPES
    v2_shapes: tuple[Shape, ...] = V2_SHAPES
    sparsities: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
    claimed: tuple[float, ...] = (0.7, 0.8, 0.9, 0.95)
    cache_rows: int = 512
    cache_entries: int = 32
    cache_shares: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
    prunings: tuple[float, ...] = (0.8, 0.85, 0.9)
    pixels: int = 224
    images: int = 64
    widths: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
    sparse_widths: tuple[float, ...] = (1.0, 1.5, 2.0)
    sparsity: float = 0.9
    block_width: float = 1.5
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
    live: int = 50
    most_tested: int | None = None
    train_steps: int = 300
    train_batch: int = 64
    train_rate: float = 0.1
    processes: int = 5
    repeats: int = 9
    warmup: int = 2

    @classmethod
    def at(
        cls,
        scale: str,
        seed: int = 0,
        threads: int | None = None,
        device: str = "auto",
        imagenet: str | None = None,
        **knobs: Any,
    ) -> "Config":
        """The run of a scale; `knobs` override single fields.

        Raises
        ------
        ValueError
            For an unknown scale, or scale "paper" without ImageNet.
        """
        return at_scale(
            cls, _PRESETS, scale, knobs, seed=seed, threads=threads, device=device,
            brought={"imagenet": imagenet},
            wanted="the folder of ImageNet, with train/<class>/*.JPEG and val/<class>/*.JPEG",
        )  # fmt: skip

    def record(self) -> dict[str, Any]:
        """What a recorded table keeps of the configuration."""
        plain = asdict(self)
        del plain["threads"], plain["device"], plain["imagenet"]
        return plain


def config(scale: str = "book") -> Config:
    """The configuration of a scale with everything at its default."""
    return Config.at(scale, imagenet="imagenet" if scale == "paper" else None)


_PRESETS: dict[str, Mapping[str, Any]] = {
    "smoke": {
        "v1_shapes": ((784, 32, 32), (196, 64, 64), (49, 64, 64)),
        "v2_shapes": (),
        "sparsities": (0.6, 0.7, 0.8, 0.9, 0.95),
        "cache_rows": 16,
        "cache_entries": 16,
        "cache_shares": (0.5, 4.0),
        "prunings": (0.8,),
        "pixels": 64,
        "images": 2,
        "widths": (0.25, 0.5),
        "sparse_widths": (0.5,),
        "block_width": 0.5,
        "most_tested": 96,
        "train_steps": 4,
        "train_batch": 8,
        "processes": 0,
        "repeats": 1,
        "warmup": 1,
    },
    "book": {},
    "full": {},
    # The published pruned networks of MobileNet v1: one image, 90 epochs or so.
    "paper": {
        "widths": (0.5, 0.75, 1.0),
        "sparse_widths": (0.75, 1.0, 1.4),
        "block_width": 1.0,
        "images": 1,
        "train_steps": 450_000,
        "train_batch": 256,
    },
}
