"""Sparse primitives: reference, CPU and CUDA implementations. They know no paper."""

from sparsebook.lazy import lazy_submodules

__getattr__, __dir__ = lazy_submodules(__name__, __path__)
