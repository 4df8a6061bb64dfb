"""Sparse codes times a dictionary, without ever forming the dense matrix of codes.

    recon = decode(values, indices, dictionary)                       # k codes for each row
    recon = decode_csr(values, indices, offsets, dictionary)          # as many as each row has
    values = project(x, indices, dictionary)                          # chosen inner products only

A row of the result gathers its atoms and sums them. Backward, the lists of atoms by row are turned into lists
of rows by atom (a counting sort), and each atom's gradient is summed by one thread: the result does not
depend on the number of threads. Memory is that of inputs, outputs and a copy of the lists.

float32, bfloat16 and float16 run compiled on a CPU (half types are widened) and as Triton on a GPU, with
float32 sums; float64 takes the reference. NaN and infinity propagate as in the dense product of the listed
entries.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparsebook.kernels.sparse_codes import operators  # noqa: F401 (registers the operators)
from sparsebook.kernels.sparse_codes.reference import decode_reference, project_reference

__all__ = ["decode", "decode_csr", "decode_reference", "project", "project_csr", "project_reference"]

Dictionary = Float[Tensor, "atoms dim"]
_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def decode(
    values: Float[Tensor, "batch k"], indices: Int[Tensor, "batch k"], dictionary: Dictionary
) -> Float[Tensor, "batch dim"]:
    """Row b is the sum of values[b, j] * dictionary[indices[b, j]] over j.

    Parameters
    ----------
    values : float [batch, k]
    indices : int [batch, k]
        Atoms, in any order; one that is listed twice counts twice.
    dictionary : float [atoms, dim]
        In the type of the values.

    Returns
    -------
    float [batch, dim]
        In the type of the dictionary. Gradients reach values and dictionary.

    Raises
    ------
    ValueError
        If shapes, types or devices do not fit together, or an index is out of range.

    Notes
    -----
    The operator is ``sparsebook::sparse_decode``.
    """
    offsets = _even_offsets("indices", indices)
    if values.shape != indices.shape:
        raise ValueError(
            f"values must have the shape of indices, {tuple(indices.shape)}, got {tuple(values.shape)}"
        )
    return decode_csr(values.flatten(), indices.flatten(), offsets, dictionary)


def decode_csr(
    values: Float[Tensor, " n"],
    indices: Int[Tensor, " n"],
    offsets: Int[Tensor, " batch_and_one"],
    dictionary: Dictionary,
) -> Float[Tensor, "batch dim"]:
    """As `decode` for rows of any length: row b has the entries offsets[b] to offsets[b + 1] - 1.

    Parameters
    ----------
    values : float [n]
    indices : int [n]
    offsets : int [batch + 1]
        Ascending from 0 to n.
    dictionary : float [atoms, dim]

    Raises
    ------
    ValueError
        As `decode`; also if the offsets do not ascend from 0 to n.
    """
    _check_lists(indices, offsets, dictionary)
    if values.shape != indices.shape or values.dtype != dictionary.dtype:
        raise ValueError(
            f"values must be {dictionary.dtype} of shape {tuple(indices.shape)} like dictionary and indices, "
            f"got {values.dtype} of shape {tuple(values.shape)}"
        )
    _check_device("values", values, dictionary)
    return torch.ops.sparsebook.sparse_decode(values, indices, offsets, dictionary)


def project(
    x: Float[Tensor, "batch dim"], indices: Int[Tensor, "batch k"], dictionary: Dictionary
) -> Float[Tensor, "batch k"]:
    """Element (b, j) is the inner product of x[b] and dictionary[indices[b, j]].

    The chosen entries of ``x @ dictionary.T`` and nothing else: an encoder's values at the latents that a
    selection without gradient has chosen, so that its backward pass is as sparse as the codes.

    Parameters
    ----------
    x : float [batch, dim]
    indices : int [batch, k]
    dictionary : float [atoms, dim]
        In the type of x.

    Returns
    -------
    float [batch, k]
        Gradients reach x and dictionary.

    Raises
    ------
    ValueError
        If shapes, types or devices do not fit together, or an index is out of range.

    Notes
    -----
    The operator is ``sparsebook::sparse_project``.
    """
    offsets = _even_offsets("indices", indices)
    return project_csr(x, indices.flatten(), offsets, dictionary).view(indices.shape)


def project_csr(
    x: Float[Tensor, "batch dim"],
    indices: Int[Tensor, " n"],
    offsets: Int[Tensor, " batch_and_one"],
    dictionary: Dictionary,
) -> Float[Tensor, " n"]:
    """As `project` for rows of any length: row b has the entries offsets[b] to offsets[b + 1] - 1.

    Parameters and errors as in `project` and `decode_csr`.
    """
    _check_lists(indices, offsets, dictionary)
    expected = (len(offsets) - 1, dictionary.shape[1])
    if x.shape != expected or x.dtype != dictionary.dtype:
        raise ValueError(
            f"x must be {dictionary.dtype} of shape {expected} like dictionary and the lists, "
            f"got {x.dtype} of shape {tuple(x.shape)}"
        )
    _check_device("x", x, dictionary)
    return torch.ops.sparsebook.sparse_project(x, indices, offsets, dictionary)


# Checks --------------------------------------------------------------------------------------------------


def _even_offsets(name: str, indices: Tensor) -> Tensor:
    if indices.ndim != 2:
        raise ValueError(f"{name} must have shape (batch, k), got {tuple(indices.shape)}")
    batch, k = indices.shape
    return torch.arange(batch + 1, device=indices.device) * k


def _check_lists(indices: Tensor, offsets: Tensor, dictionary: Tensor) -> None:
    if dictionary.ndim != 2 or dictionary.dtype not in _TYPES:
        raise ValueError(
            "dictionary must be float32, bfloat16, float16 or float64 of shape (atoms, dim), "
            f"got {dictionary.dtype} of shape {tuple(dictionary.shape)}"
        )
    for name, list_ in (("indices", indices), ("offsets", offsets)):
        if list_.ndim != 1 or list_.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"{name} must be a list of integers, got {list_.dtype} of shape {tuple(list_.shape)}"
            )
        _check_device(name, list_, dictionary)
    n, atoms = len(indices), len(dictionary)
    if len(offsets) < 1 or _faulty_offsets(offsets, n):
        raise ValueError(f"offsets must ascend from 0 to {n}, the number of indices")
    if n:
        low, high = (int(x) for x in torch.stack(indices.aminmax()))
        if low < 0 or high >= atoms:
            raise ValueError(f"indices must lie in [0, {atoms}), the atoms, got {low} to {high}")


def _faulty_offsets(offsets: Tensor, n: int) -> bool:
    inner = (offsets[1:] < offsets[:-1]).any()
    return bool(inner | (offsets[0] != 0) | (offsets[-1] != n))


def _check_device(name: str, tensor: Tensor, dictionary: Tensor) -> None:
    if tensor.device != dictionary.device:
        raise ValueError(f"{name} must be on {dictionary.device} like dictionary, got {tensor.device}")
