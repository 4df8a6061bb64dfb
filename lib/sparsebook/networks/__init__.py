"""Sparse networks: pruning, sparse training, sparse weights."""
