"""What a run of the chapter measures at each scale."""

from dataclasses import dataclass
from typing import Any

SCALES = ("smoke", "book", "full", "paper")


@dataclass(frozen=True)
class Config:
    """One run; make it with `Config.at`.

    Attributes
    ----------
    rows, columns : a batch of affinities, tokens by latents
    k : selected per row on average; the matrix gives rows * k, the columns together as many
    width : of an atom in the decode
    processes : for each timing; 0 measures once, in this process
    repeats, slow_repeats : interleaved rounds in a process, and those beside methods that take seconds
    sweep_rows, sweep : rows and values of k of the sweep
    seeds : matrices whose candidates are counted
    memory_columns : latents of the decodes whose memory is measured
    pursuit_rows, pursuit_dim, pursuit_atoms, pursuit_steps : the problem of both pursuits
    few : vectors of orthogonal pursuit beside a peer that takes them one by one
    step_rows, step_width, step_latents, step_k : the autoencoder whose training step is timed
    """

    scale: str
    seed: int = 0
    threads: int = 2
    rows: int = 4096
    columns: int = 16_384
    k: int = 32
    width: int = 640
    processes: int = 5
    repeats: int = 7
    slow_repeats: int = 2
    sweep_rows: int = 1024
    sweep: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256)
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    memory_columns: tuple[int, ...] = (4096, 16_384, 65_536)
    pursuit_rows: int = 4096
    pursuit_dim: int = 384
    pursuit_atoms: int = 4096
    pursuit_steps: int = 16
    few: int = 128
    step_rows: int = 4096
    step_width: int = 384
    step_latents: int = 8192
    step_k: int = 32

    @classmethod
    def at(cls, scale: str, seed: int = 0, threads: int | None = None, **knobs: Any) -> "Config":
        """The run of a scale; `knobs` override single fields.

        Raises
        ------
        ValueError
            For an unknown scale.
        """
        if scale not in SCALES:
            raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
        small: dict[str, Any] = {
            "rows": 256, "columns": 2048, "k": 8, "width": 96, "processes": 0, "repeats": 2,
            "slow_repeats": 1, "sweep_rows": 128, "sweep": (4, 16), "seeds": (1, 2, 3),
            "memory_columns": (1024, 4096), "pursuit_rows": 128, "pursuit_dim": 48, "pursuit_atoms": 256,
            "pursuit_steps": 6, "few": 8, "step_rows": 128, "step_width": 48, "step_latents": 512,
            "step_k": 8,
        }  # fmt: skip
        preset = small if scale == "smoke" else {}
        return cls(scale=scale, seed=seed, threads=threads or 2, **(preset | knobs))
