"""Sparse retrieval: learned sparse vectors and the indexes that search them."""

from sparsebook.lazy import lazy_submodules

__getattr__, __dir__ = lazy_submodules(__name__, __path__)
