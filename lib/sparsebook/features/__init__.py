"""Sparse representations: autoencoders, pursuit, dictionaries.

=================  =========================================================================================
module             what it has
=================  =========================================================================================
`sae`              `SparseAutoencoder` and its variants: TopK, BatchTopK, ReLU, JumpReLU, Matryoshka
`codes`            what an autoencoder says about tokens: dense, k a token, or any number
`trainer`          training, one seed or many at once, with rules to add to it, checkpoints and a tidy log
`metrics`          errors, use of latents, dictionaries compared, coherence
=================  =========================================================================================
"""

from sparsebook.lazy import lazy_submodules

__getattr__, __dir__ = lazy_submodules(__name__, __path__)
