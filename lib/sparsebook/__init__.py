"""Sparse, reproduced: methods, kernels and measurements of forty papers about sparsity.

Every part is an attribute that is imported only when it is asked for, so that ``import sparsebook``
costs milliseconds and pulls neither torch nor numba.
"""

from sparsebook.lazy import lazy_submodules

__version__ = "0.1.0"

__getattr__, __dir__ = lazy_submodules(__name__, __path__)
