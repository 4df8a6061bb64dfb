"""N:M products on a GPU, in Triton: the positions become row lists for the kernels of `sparse_matmul`.

A GPU's matrix units know only 2:4 in half types (`torch.sparse.to_sparse_semi_structured`); these kernels
take every pattern and float32, and are for memory that goes with what is kept, not for those units' speed.
"""

import torch
from torch import Tensor

from sparsebook.kernels.nm.reference import unpack_columns
from sparsebook.kernels.sparse_matmul.cuda import sddmm_cuda, spmm_cuda, spmm_t_cuda


def nm_matmul_cuda(values: Tensor, positions: Tensor, x: Tensor, n: int, m: int) -> Tensor:
    """Arguments and result as the operator `sparsebook::nm_matmul`."""
    columns, offsets = _lists(positions, values.shape, n, m)
    return spmm_cuda(values.flatten(), columns, offsets, x, None, -torch.inf, torch.inf)


def nm_matmul_t_cuda(values: Tensor, positions: Tensor, y: Tensor, n: int, m: int) -> Tensor:
    """Arguments and result as the operator `sparsebook::nm_matmul_t`."""
    columns, offsets = _lists(positions, values.shape, n, m)
    return spmm_t_cuda(values.flatten(), columns, offsets, y, values.shape[1] // n * m)


def nm_sddmm_cuda(positions: Tensor, y: Tensor, x: Tensor, n: int, m: int) -> Tensor:
    """Arguments and result as the operator `sparsebook::nm_sddmm`."""
    shape = y.shape[0], x.shape[0] // m * n
    columns, offsets = _lists(positions, shape, n, m)
    return sddmm_cuda(columns, offsets, y, x, 1).reshape(shape)


def _lists(positions: Tensor, shape: tuple[int, ...], n: int, m: int) -> tuple[Tensor, Tensor]:
    columns = unpack_columns(positions, shape, n, m)
    return columns.flatten(), torch.arange(shape[0] + 1, device=positions.device) * shape[1]
