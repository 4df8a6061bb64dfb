"""A configuration for each scale."""

from dataclasses import dataclass

import pytest

from sparsebook.experiments.scales import SCALES, at_scale, choose_device


@dataclass(frozen=True)
class Run:
    scale: str
    seed: int
    threads: int
    device: str
    steps: int = 100
    folder: str | None = None


PRESETS = {"smoke": {"steps": 2}, "paper": {"steps": 10_000}}


@pytest.mark.parametrize(("scale", "steps"), zip(SCALES, (2, 100, 100, 10_000), strict=True))
def test_presets(scale: str, steps: int) -> None:
    run = at_scale(Run, PRESETS, scale, {}, brought={"folder": "here"}, device="cpu")
    assert run == Run(scale, 0, 2, "cpu", steps, "here")


def test_knobs_win() -> None:
    run = at_scale(Run, PRESETS, "smoke", {"steps": 7}, seed=3, threads=1)
    assert run == Run("smoke", 3, 1, "cpu", 7)


def test_a_device_is_only_taken_where_nothing_was_recorded() -> None:
    assert at_scale(Run, PRESETS, "book", {}, device="cuda").device == "cpu"
    assert at_scale(Run, PRESETS, "paper", {}, device="cuda").device == "cuda"
    assert choose_device("auto") in ("cpu", "cuda")


@pytest.mark.parametrize(
    ("scale", "given", "message"),
    [
        ("huge", {}, "scale must be one of smoke, book, full, paper, got 'huge'"),
        ("book", {"threads": 0}, "threads must be at least 1, got 0"),
        ("paper", {"brought": {"folder": None}, "wanted": "a folder"}, "needs folder: a folder"),
    ],
)
def test_bad_input(scale: str, given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        at_scale(Run, PRESETS, scale, {}, **given)
