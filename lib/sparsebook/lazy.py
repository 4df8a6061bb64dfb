"""Submodules that are imported when they are first asked for."""

import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType


def lazy_submodules(
    package: str, path: Iterable[str]
) -> tuple[Callable[[str], ModuleType], Callable[[], list[str]]]:
    """A package's ``__getattr__`` and ``__dir__``, by which all its submodules are attributes.

    >>> __getattr__, __dir__ = lazy_submodules(__name__, __path__)                     # doctest: +SKIP

    Parameters
    ----------
    package, path
        The package's ``__name__`` and ``__path__``.
    """
    names = sorted(module.name for module in iter_modules(path) if not module.name.startswith("_"))

    def submodule(name: str) -> ModuleType:
        if name in names:
            return import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *names})

    return submodule, listed
