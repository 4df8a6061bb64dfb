"""Sparse supervision, sparse convolution and detection."""
