"""What a run of the chapter measures at each scale."""

from dataclasses import asdict, dataclass
from typing import Any

SCALES = ("smoke", "book", "full")


@dataclass(frozen=True)
class Config:
    """One run; make it with `Config.at`.

    Attributes
    ----------
    tokens, heads, dim : the problem that most figures show
    block : queries and keys in a block
    densities : shares of the blocks that are attended
    shape_density : share of the blocks in the comparison of shapes and of layouts
    dims, shape_tokens : head dimensions compared, at so many tokens and `heads * dim` features in all
    lengths : numbers of tokens compared
    blocks, groups : block sizes, and queries that share a list of columns, compared at equal density
    cache_lengths, page_size, budgets : decoding: filled tokens, tokens in a page, shares of the pages read
    query_heads, kv_heads : heads of the decoding step
    live_tokens, live_density : the cell that is measured again at scale `book`
    processes, repeats : processes for that cell; interleaved rounds in a process
    flex : whether FlexAttention is compiled and measured too (a quarter of a minute)
    """

    scale: str
    seed: int = 0
    threads: int = 2
    tokens: int = 8192
    heads: int = 4
    dim: int = 64
    block: int = 128
    densities: tuple[float, ...] = (1.0, 0.5, 0.25, 0.1, 0.05)
    shape_density: float = 0.25
    dims: tuple[int, ...] = (16, 32, 64, 128, 256)
    shape_tokens: int = 4096
    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384)
    blocks: tuple[int, ...] = (128, 64, 32, 16)
    groups: tuple[int, ...] = (128, 1024)
    cache_lengths: tuple[int, ...] = (4096, 16384, 65536)
    page_size: int = 16
    budgets: tuple[float, ...] = (1.0, 0.25, 0.0625)
    query_heads: int = 16
    kv_heads: int = 4
    live_tokens: int = 2048
    live_density: float = 0.25
    processes: int = 8
    repeats: int = 7
    flex: bool = True

    @classmethod
    def at(cls, scale: str, seed: int = 0, threads: int | None = None, **knobs: Any) -> "Config":
        """The run of a scale; `knobs` override single fields.

        Raises
        ------
        ValueError
            For an unknown scale; a kernel has no paper whose scale could be asked for.
        """
        if scale not in SCALES:
            raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
        small: dict[str, Any] = {}
        if scale == "smoke":
            small = {
                "tokens": 512, "heads": 2, "densities": (1.0, 0.25), "dims": (32, 64), "shape_tokens": 512,
                "lengths": (256, 512), "blocks": (128, 32), "groups": (128,), "cache_lengths": (1024, 2048),
                "live_tokens": 512, "processes": 0, "repeats": 1, "flex": False,
            }  # fmt: skip
        return cls(scale=scale, **({"seed": seed, "threads": threads or 2} | small | knobs))

    def record(self) -> dict[str, Any]:
        """Every field, for the record."""
        return asdict(self)
