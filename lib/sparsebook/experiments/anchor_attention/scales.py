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
    source : where queries, keys and values come from: "gemma", "planted" or "folder" (`model`)
    model, text : folder of a language model in Hugging Face's layout, and a file for it to read
    n_texts : texts that are reported; the texts behind them are for tuning
    n_tokens : length of a text in the curves and the ablations
    lengths : lengths at which the needed density is measured, ascending
    block_size, step : b, and blocks in a group
    steps : steps of the ablation
    thetas, ablation_thetas : tolerances in nats
    shares, masses : share of the candidate columns kept, softmax mass kept: the rules that sort
    tile_shares, windows, lines, gammas : budgets of block top-k, StreamingLLM and vertical-slash as shares of
        the length, and FlexPrefill's mass
    oracle_masses, oracle_shares : budgets of the oracles that sort
    target : the recall at which densities and times are compared
    tolerance : difference of an output element that counts as none
    density : share of the pairs computed where methods are compared by what a model then does
    loss_tokens, loss_block, n_positions : length of the texts there, block size, and predicted tokens of each
    task_runs, task_width : training runs and width of the small models that retrieve
    task_tokens, task_block, task_samples : length of their questions, block size, and questions of each run
    task_densities : densities at which they read; `density` is one of them
    speed_planted, speed_text : lengths that are timed on planted heads and on a text
    speed_block, speed_step, flex_block : layout of the timed method, and the blocks of its rivals
    processes : processes for a timing; 0 repeats it `in_process` times in this one (for tests)
    repeats : interleaved rounds in a process
    sabotaged : broken as the claims' controls say
    """

    scale: str
    seed: int = 0
    threads: int = 2
    device: str = "cpu"
    source: str = "gemma"
    model: str | None = None
    text: str | None = None
    n_texts: int = 8
    n_tokens: int = 2048
    lengths: tuple[int, ...] = (256, 512, 1024, 2048)
    block_size: int = 32
    step: int = 4
    steps: tuple[int, ...] = (1, 2, 4, 8, 16)
    thetas: tuple[float, ...] = (2.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 12.0, 16.0)
    ablation_thetas: tuple[float, ...] = (4.0, 6.0, 7.0, 8.0, 10.0, 12.0)
    shares: tuple[float, ...] = (0.03, 0.1, 0.2, 0.3, 0.45, 0.65)
    masses: tuple[float, ...] = (0.7, 0.8, 0.87, 0.92, 0.96, 0.985)
    tile_shares: tuple[float, ...] = (0.06, 0.15, 0.3, 0.45, 0.65)
    windows: tuple[float, ...] = (0.05, 0.15, 0.35, 0.6)
    lines: tuple[float, ...] = (0.02, 0.06, 0.15, 0.35)
    gammas: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95, 0.99)
    oracle_masses: tuple[float, ...] = (0.8, 0.9, 0.95, 0.98)
    oracle_shares: tuple[float, ...] = (0.02, 0.05, 0.1, 0.25)
    oracle_thetas: tuple[float, ...] = (4.0, 6.0, 7.0, 9.0)
    target: float = 0.95
    tolerance: float = 0.01
    density: float = 0.25
    loss_tokens: int = 1024
    loss_block: int = 16
    n_positions: int = 256
    task_runs: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
    task_width: int = 64
    task_tokens: int = 512
    task_block: int = 8
    task_samples: int = 128
    task_densities: tuple[float, ...] = (0.15, 0.25, 0.4, 0.6, 0.8)
    speed_planted: tuple[int, ...] = (4096, 8192, 16384)
    speed_text: tuple[int, ...] = (8192,)
    speed_block: int = 64
    speed_step: int = 4
    flex_block: int = 128
    processes: int = 5
    in_process: int = 5
    repeats: int = 2
    sabotaged: bool = False

    @classmethod
    def at(
        cls,
        scale: str,
        seed: int = 0,
        device: str = "auto",
        threads: int | None = None,
        model: str | None = None,
        text: str | None = None,
        **knobs: Any,
    ) -> "Config":
        """The run of a scale; `knobs` override single fields.

        Raises
        ------
        ValueError
            For an unknown scale, or scale "paper" without a model.
        """
        return at_scale(
            cls, _PRESETS, scale, {"text": text, **knobs}, seed=seed, threads=threads, device=device,
            brought={"model": model}, wanted="a folder with a language model in Hugging Face's layout",
        )  # fmt: skip

    @property
    def group_size(self) -> int:
        """Rows that share their stripes."""
        return self.block_size * self.step

    @property
    def tuning_text(self) -> int:
        """A text that is not reported: settings are chosen on it."""
        return self.n_texts

    def record(self) -> dict[str, Any]:
        """What a recorded table keeps of the configuration."""
        plain = asdict(self)
        del plain["threads"], plain["model"], plain["text"]
        return plain


def config(scale: str = "book") -> Config:
    """The configuration of a scale with everything at its default."""
    return Config.at(scale)


_PRESETS: dict[str, Mapping[str, Any]] = {
    "smoke": {
        "source": "planted",
        "n_texts": 2,
        "n_tokens": 256,
        "lengths": (128, 256),
        "block_size": 8,
        "steps": (1, 4),
        "thetas": (0.0, 2.0, 4.0, 6.0, 8.0, 12.0),
        "ablation_thetas": (0.0, 4.0, 8.0),
        "shares": (0.03, 0.12, 0.3),
        "masses": (0.8, 0.92, 0.99),
        "tile_shares": (0.12, 0.3, 0.65),
        "windows": (0.12, 0.4),
        "lines": (0.05, 0.2),
        "gammas": (0.7, 0.95),
        "oracle_masses": (0.8, 0.98),
        "oracle_shares": (0.02, 0.1, 0.3),
        "oracle_thetas": (1.0, 4.0, 8.0),
        "loss_tokens": 256,
        "loss_block": 8,
        "n_positions": 32,
        "task_runs": (0,),
        "task_tokens": 128,
        "task_block": 2,
        "task_samples": 8,
        "task_densities": (0.25,),
        "speed_planted": (256,),
        "speed_text": (256,),
        "speed_block": 16,
        "flex_block": 16,
        "processes": 0,
        "in_process": 2,
        "repeats": 1,
    },
    "book": {},
    "full": {},
    # The paper's layout and lengths; text or needles are the reader's.
    "paper": {
        "source": "folder",
        "n_tokens": 32_768,
        "lengths": (16_384, 32_768, 65_536, 131_072),
        "loss_tokens": 32_768,
        "loss_block": 128,
        "block_size": 128,
        "step": 16,
        "steps": (4, 16),
        "thetas": (6.0, 9.0, 12.0, 15.0, 18.0),
        "ablation_thetas": (9.0, 12.0, 15.0),
        "speed_planted": (32_768, 131_072),
        "speed_text": (16_384, 65_536, 131_072),
        "speed_block": 128,
        "speed_step": 16,
        "repeats": 10,
    },
}
