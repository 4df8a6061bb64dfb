"""Sparse primitives: reference, CPU and CUDA implementations. They know no paper."""
