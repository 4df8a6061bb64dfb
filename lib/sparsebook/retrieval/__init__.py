"""Sparse retrieval: learned sparse vectors and the indexes that search them."""
