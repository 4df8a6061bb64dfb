"""What a run of the chapter measures at each scale."""

from dataclasses import asdict, dataclass
from typing import Any

from sparsebook.experiments.scales import at_scale

Shape = tuple[int, int, int]
"""Pixels, rows (output channels), columns (input channels)."""

MOBILENET_V1: tuple[Shape, ...] = (
    (12544, 64, 32), (3136, 128, 64), (3136, 128, 128), (784, 256, 128), (784, 256, 256), (196, 512, 256),
    (196, 512, 512), (49, 1024, 512), (49, 1024, 1024),
)  # fmt: skip
MOBILENET_V2: tuple[Shape, ...] = (
    (12544, 16, 32), (12544, 96, 16), (3136, 24, 96), (3136, 144, 24), (3136, 24, 144), (784, 32, 144),
    (784, 192, 32), (784, 32, 192), (196, 64, 192), (196, 384, 64), (196, 64, 384), (196, 96, 384),
    (196, 576, 96), (196, 96, 576), (49, 160, 576), (49, 960, 160), (49, 160, 960), (49, 320, 960),
    (49, 1280, 320),
)  # fmt: skip
"""The 1 x 1 convolutions of both networks for images of 224 x 224; equal ones once."""
SMALL: tuple[Shape, ...] = ((196, 64, 192), (49, 96, 64))
_SMOKE: dict[str, Any] = {
    "shapes": SMALL, "sparsities": (0.6, 0.9), "repeats": 2, "slow_repeats": 1, "calls": 1, "processes": 0,
    "picked_shapes": SMALL[:1], "strip_shapes": SMALL[:1], "step_size": 64, "step_batch": 20,
    "live_shape": SMALL[0], "patterns": ((2, 4), (4, 8)), "rate_seconds": 0.01,
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """One run; make it with `Config.at`.

    Attributes
    ----------
    shapes, sparsities : layers, and shares of zeros, that are timed against the other products
    repeats, slow_repeats, calls : rounds; rounds of SciPy's product; calls in a row for one reading
    picked_shapes, picked_sparsity : layers in the comparison of blocks, types and patterns
    strip_shapes : layers whose strips are varied
    step_size, step_batch, step_sparsity : the trained layer
    patterns : N:M
    live_shape, live_sparsity : what is measured again at scale `book`
    processes : that it was recorded in
    rate_seconds : time for each of the machine's limits
    """

    scale: str
    seed: int = 0
    threads: int = 2
    device: str = "cpu"
    shapes: tuple[Shape, ...] = (*MOBILENET_V1, *MOBILENET_V2, (3136, 512, 512))
    sparsities: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9, 0.95)
    repeats: int = 20
    slow_repeats: int = 7
    calls: int = 3
    picked_shapes: tuple[Shape, ...] = ((3136, 128, 128), (784, 256, 256), (196, 512, 512), (49, 1024, 1024))
    picked_sparsity: float = 0.9
    strip_shapes: tuple[Shape, ...] = ((3136, 128, 128), (784, 256, 256), (196, 512, 512))
    step_size: int = 1000
    step_batch: int = 100
    step_sparsity: float = 0.98
    patterns: tuple[tuple[int, int], ...] = ((4, 8), (2, 4), (1, 4))
    live_shape: Shape = (784, 256, 256)
    live_sparsity: float = 0.9
    processes: int = 8
    rate_seconds: float = 0.3

    @classmethod
    def at(cls, scale: str, seed: int = 0, threads: int | None = None, **knobs: Any) -> "Config":
        """The run of a scale; `knobs` override single fields.

        Raises
        ------
        ValueError
            For an unknown scale; a kernel has no paper whose scale could be asked for.
        """
        if scale == "paper":
            raise ValueError("scale must be smoke, book or full, got 'paper': a kernel has no paper's inputs")
        return at_scale(cls, {"smoke": _SMOKE}, scale, knobs, seed=seed, threads=threads)

    def record(self) -> dict[str, Any]:
        """Every field, for the record."""
        return asdict(self)
