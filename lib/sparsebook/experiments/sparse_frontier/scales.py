"""What a run of the chapter does at each scale."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

from sparsebook.attention.costs import ModelSizes
from sparsebook.attention.sparse_frontier import Windows
from sparsebook.experiments.sparse_frontier.readers import NetworkReader, PlantedReader, Reader

SCALES = ("smoke", "book", "full", "paper")
REFERENCE = 16_384
"""The shortest input of the paper: fixed windows are meant for it, shorter inputs get their share."""

QWEN = {
    "7B": ModelSizes(layers=28, hidden=3584, heads=28, kv_heads=4, mlp=18944, vocabulary=152_064),
    "14B": ModelSizes(layers=48, hidden=5120, heads=40, kv_heads=8, mlp=13824, vocabulary=152_064),
    "32B": ModelSizes(layers=64, hidden=5120, heads=40, kv_heads=8, mlp=27648, vocabulary=152_064),
    "72B": ModelSizes(layers=80, hidden=8192, heads=64, kv_heads=8, mlp=29568, vocabulary=152_064),
}
"""The paper's Qwen2.5 models."""

SKILL_WINDOWS = Windows(observed=16, slash_local=8, snap_local=16, pool=5, block=8, page=8, rows=8, floor=16)
"""Fixed windows of the skills at 512 tokens."""


@dataclass(frozen=True)
class Config:
    """One run; make it with `Config.at`.

    Attributes
    ----------
    model : folder of a language model in Hugging Face's layout, in place of Gemma
    lengths, sparsities : of the experiments with text
    texts : numbers of the texts that are reported; `calibration` texts set the knobs, `live` is read live
    fresh : further texts, which alone decide what the first left undecided
    likelihood_texts, likelihood_lengths, likelihood_sparsities : of the likelihood, which costs a pass for
        every method
    few_cells : measure the likelihood only where a claim asks for it (`CLAIMED`)
    random_lengths : lengths at which random masks are measured in prefilling, at `random_sparsities`
    judged : tokens at the end of a text whose likelihood is asked for
    ablation_length, ablation_texts : of the ablations
    stories, story_length : numbers of the stories that are asked about, tokens of their prompts
    widths, runs : sizes and training runs of the small transformers
    skill_lengths, skill_sparsities, skill_samples : of the skills
    """

    scale: str
    seed: int = 0
    threads: int = 2
    device: str = "cpu"
    model: str | None = None
    lengths: tuple[int, ...] = (512, 1024)
    sparsities: tuple[float, ...] = (0.5, 0.8, 0.9)
    calibration: tuple[int, ...] = (0,)
    live: int = 2
    texts: tuple[int, ...] = (3, 4, 5, 6, 7, 8, 9, 10)
    fresh: tuple[int, ...] = ()
    likelihood_texts: int = 8
    likelihood_lengths: tuple[int, ...] = (512, 1024)
    likelihood_sparsities: tuple[float, ...] = (0.8, 0.9)
    few_cells: bool = True
    random_lengths: tuple[int, ...] = ()
    random_sparsities: tuple[float, ...] = (0.5, 0.8, 0.9)
    judged: int = 64
    ablation_length: int = 1024
    ablation_texts: int = 8
    stories: tuple[int, ...] = tuple(range(1, 9))
    story_length: int = 1024
    widths: tuple[int, ...] = (32, 64, 128)
    runs: tuple[int, ...] = (0, 1, 2, 3, 4)
    skill_lengths: tuple[int, ...] = (128, 256, 512)
    skill_sparsities: tuple[float, ...] = (0.5, 0.67, 0.8, 0.9)
    skill_samples: int = 24
    windows: Windows = field(default_factory=Windows)

    @classmethod
    def at(
        cls,
        scale: str,
        seed: int = 0,
        threads: int | None = None,
        device: str = "auto",
        model: str | None = None,
        **knobs: Any,
    ) -> "Config":
        """The run of a scale; `knobs` override single fields.

        Raises
        ------
        ValueError
            For an unknown scale, or scale "paper" without a model.
        """
        if scale not in SCALES:
            raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
        if scale == "paper" and model is None:
            raise ValueError(
                "scale 'paper' needs model: a folder with a language model as Hugging Face publishes it, "
                "such as Qwen2.5-7B-Instruct (see the chapter)"
            )
        given: dict[str, Any] = {
            "seed": seed,
            "threads": threads or 2,
            "device": _device(device, scale),
            "model": model,
        }
        return cls(scale=scale, **(given | dict(_PRESETS[scale]) | knobs))

    @property
    def likelihood_sample(self) -> tuple[int, ...]:
        """The texts whose likelihood is measured."""
        return self.texts[: self.likelihood_texts]

    def reader(self) -> Reader:
        """What reads the texts; loaded once in a process."""
        return _reader(self.scale == "smoke" and self.model is None, self.model, self.judged, self.device)

    def windows_for(self, n_tokens: int) -> Windows:
        """The fixed windows of a text of this length."""
        if self.scale == "smoke" and self.model is None:
            return SKILL_WINDOWS.scaled(n_tokens / 512, units=True, least_observed=16)
        return self.windows.scaled(n_tokens / REFERENCE) if n_tokens < REFERENCE else self.windows

    def record(self) -> dict[str, Any]:
        """What a recorded table keeps of the configuration."""
        plain = asdict(self)
        del plain["threads"], plain["device"]
        return plain


def _device(device: str, scale: str) -> str:
    if device != "auto":
        return device
    import torch

    return "cuda" if scale == "paper" and torch.cuda.is_available() else "cpu"


@cache
def _reader(planted: bool, model: str | None, judged: int, device: str) -> Reader:
    if planted:
        return PlantedReader(judged)
    if model is not None:
        return NetworkReader.folder(model, judged, device)
    return NetworkReader.gemma(judged)


def config(scale: str = "book") -> Config:
    """The configuration of a scale with everything at its default."""
    return Config.at(scale)


_PRESETS: dict[str, Mapping[str, Any]] = {
    "smoke": {
        "texts": (3, 4, 5),
        "lengths": (96, 192),
        "sparsities": (0.8, 0.9),
        "likelihood_lengths": (96, 192),
        "few_cells": False,
        "random_lengths": (96, 192),
        "random_sparsities": (0.8, 0.9),
        "judged": 16,
        "ablation_length": 192,
        "widths": (32, 64, 128),
        "skill_lengths": (64, 128),
        "skill_samples": 4,
    },
    "book": {},
    "full": {"fresh": tuple(range(11, 35))},
    # The paper's lengths, windows and number of samples; the skills are those of this book.
    "paper": {
        "lengths": (16_384, 32_768, 65_536, 131_072),
        "sparsities": (0.5, 0.67, 0.8, 0.9, 0.95),
        "likelihood_sparsities": (0.5, 0.67, 0.8, 0.9, 0.95),
        "texts": tuple(range(3, 103)),
        "likelihood_texts": 100,
        "likelihood_lengths": (16_384, 32_768, 65_536, 131_072),
        "few_cells": False,
        "random_lengths": (),
        "story_length": 16_384,
        "ablation_length": 16_384,
        "ablation_texts": 100,
    },
}
