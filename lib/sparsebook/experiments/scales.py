"""The scales at which every chapter runs, and how a configuration is made for one."""

from collections.abc import Mapping
from typing import Any, TypeVar

SCALES = ("smoke", "book", "full", "paper")
"""Seconds for a test; the stored chapter; what is recorded; the paper's own inputs, brought by the reader."""

Config = TypeVar("Config")


def at_scale(
    config: type[Config],
    presets: Mapping[str, Mapping[str, Any]],
    scale: str,
    knobs: Mapping[str, Any],
    *,
    seed: int = 0,
    threads: int | None = None,
    device: str = "auto",
    brought: Mapping[str, Any] | None = None,
    wanted: str = "",
) -> Config:
    """A chapter's configuration at a scale: its preset, overridden by the reader's knobs.

    Parameters
    ----------
    config : dataclass with the fields `scale`, `seed`, `threads` and `device`
    presets : fields by scale; a scale that is missing has every field at its default
    knobs : single fields that win over the preset
    threads : None for two
    device : "auto" takes a GPU at scale "paper" where there is one; the other scales always run on the CPU,
        where their tables were recorded
    brought : what only the reader has (folders, files), by field; all of it is needed at scale "paper"
    wanted : what these are, for the error

    Raises
    ------
    ValueError
        For an unknown scale, fewer than one thread, or scale "paper" without what the reader must bring.
    """
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    brought = dict(brought or {})
    missing = [name for name, value in brought.items() if value is None]
    if scale == "paper" and missing:
        raise ValueError(f"scale 'paper' needs {' and '.join(missing)}: {wanted or 'see the chapter'}")
    given = {"seed": seed, "threads": threads or 2, **brought}
    given["device"] = choose_device(device) if scale == "paper" else "cpu"
    return config(**{"scale": scale, **given, **presets.get(scale, {}), **knobs})


def choose_device(device: str) -> str:
    """`device` itself, or for "auto" a GPU where there is one."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
