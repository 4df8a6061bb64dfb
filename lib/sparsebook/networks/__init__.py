"""Sparse networks: pruning, sparse training, sparse weights."""

from sparsebook.lazy import lazy_submodules

__getattr__, __dir__ = lazy_submodules(__name__, __path__)
