"""Sparse attention: which pairs of query and key are computed, and the methods that choose them.

`patterns` holds what several methods choose by (lines, blocks, pages, tokens that stay in a cache) and the
oracles that see every logit; `metrics` says how close the result comes to dense attention, `costs` what it
costs. Every paper has a module of its own. What attends is in `sparsebook.kernels.block_attention`.
"""

from sparsebook.lazy import lazy_submodules

__getattr__, __dir__ = lazy_submodules(__name__, __path__)
