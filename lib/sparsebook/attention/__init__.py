"""Sparse attention: patterns, identification, methods."""
