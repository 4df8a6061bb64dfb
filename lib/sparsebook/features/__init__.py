"""Sparse representations: autoencoders, pursuit, dictionaries."""
