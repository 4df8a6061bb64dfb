"""When a network becomes sparse, and how much of its connections move: numbers by step.

>>> schedule = PolynomialSparsity(0.0, 0.9, first=0, last=100)
>>> [round(schedule(step), 4) for step in (0, 25, 50, 75, 100)]
[0.0, 0.5203, 0.7875, 0.8859, 0.9]
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[int], float]
"""A sparsity, or a share of the connections, for every step."""


@dataclass(frozen=True)
class ConstantSparsity:
    """The same at every step; `one-shot` pruning when it is asked once.

    Attributes
    ----------
    value : in [0, 1)
    first : step from which on it holds; 0 before
    """

    value: float
    first: int = 0

    def __post_init__(self) -> None:
        _check_sparsity("value", self.value)

    def __call__(self, step: int) -> float:
        return self.value if step >= self.first else 0.0


@dataclass(frozen=True)
class PolynomialSparsity:
    """From one sparsity to another, fast at first: Zhu and Gupta 2017 (arXiv 1710.01878), Equation 1.

    ``final + (initial - final) * (1 - clip((step - first) / (last - first))) ** power``

    Attributes
    ----------
    initial, final : sparsities in [0, 1)
    first, last : steps between which it moves
    power : 3 is the cubic schedule
    """

    initial: float
    final: float
    first: int
    last: int
    power: float | int = 3.0

    def __post_init__(self) -> None:
        _check_sparsity("initial", self.initial)
        _check_sparsity("final", self.final)
        if not self.first < self.last:
            raise ValueError(f"first={self.first} must come before last={self.last}")

    def __call__(self, step: int) -> float:
        done = min(1.0, max(0.0, (step - self.first) / (self.last - self.first)))
        return self.final + (self.initial - self.final) * (1 - done) ** self.power


@dataclass(frozen=True)
class CosineShare:
    """Share of the connections that move at a step: from `initial` down to `least` at `n_steps`.

    ``least + (initial - least) / 2 * (1 + cos(pi * step / n_steps))``, and `least` afterwards: Evci et al.
    2020 (arXiv 1911.11134), section 3, with least = 0.

    Attributes
    ----------
    initial, least : shares in [0, 1]
    n_steps : length
    """

    initial: float
    least: float
    n_steps: int

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.initial <= 1:
            raise ValueError(f"expected 0 <= least <= initial <= 1, got {self.least} and {self.initial}")
        if self.n_steps < 1:
            raise ValueError(f"n_steps={self.n_steps}: expected at least 1")

    def __call__(self, step: int) -> float:
        done = min(1.0, max(0.0, step / self.n_steps))
        return self.least + (self.initial - self.least) / 2 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Periodic:
    """The steps at which something is done: every so many, between two steps.

    Attributes
    ----------
    every : steps from one to the next
    first, last : first step at which it may be done, and the step before which it ends (None: never)
    """

    every: int
    first: int = 0
    last: int | None = None

    def __post_init__(self) -> None:
        if self.every < 1 or (self.last is not None and self.last < self.first):
            raise ValueError(
                f"expected every >= 1 and first <= last, got {self.every}, {self.first}, {self.last}"
            )

    def due(self, step: int) -> bool:
        """Whether it is done at this step."""
        ended = self.last is not None and step >= self.last
        return step >= self.first and not ended and (step - self.first) % self.every == 0


def _check_sparsity(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name}={value}: expected a sparsity of at least 0 and less than 1")
