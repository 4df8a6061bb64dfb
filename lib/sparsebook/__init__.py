"""Sparse, reproduced: methods, kernels and measurements of forty papers about sparsity.

Every part is an attribute that is imported only when it is asked for, so that ``import sparsebook``
costs milliseconds and pulls neither torch nor numba.
"""

from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"

_PARTS = (
    "attention",
    "book",
    "claims",
    "correspondence",
    "data",
    "evaluation",
    "experiments",
    "features",
    "files",
    "kernels",
    "models",
    "networks",
    "perception",
    "plotting",
    "recorded",
    "retrieval",
)


def __getattr__(name: str) -> ModuleType:
    if name in _PARTS:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PARTS])
