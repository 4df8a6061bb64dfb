"""Sparse and semi-dense matching, localisation and pose."""
