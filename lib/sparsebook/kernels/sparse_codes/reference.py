"""What the products with sparse codes mean: gather the atoms, weigh, sum; for any float type and device."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def decode_reference(
    values: Float[Tensor, " n"],
    indices: Int[Tensor, " n"],
    offsets: Int[Tensor, " batch_and_one"],
    dictionary: Float[Tensor, "atoms dim"],
) -> Float[Tensor, "batch dim"]:
    """Row b is the sum of values[i] * dictionary[indices[i]] over offsets[b] <= i < offsets[b + 1]."""
    exact = torch.promote_types(dictionary.dtype, torch.float32)
    terms = values.to(exact)[:, None] * dictionary.to(exact)[indices]
    out = terms.new_zeros((len(offsets) - 1, dictionary.shape[1]))
    return out.index_add(0, rows_of(offsets), terms).to(dictionary.dtype)


def project_reference(
    x: Float[Tensor, "batch dim"],
    indices: Int[Tensor, " n"],
    offsets: Int[Tensor, " batch_and_one"],
    dictionary: Float[Tensor, "atoms dim"],
) -> Float[Tensor, " n"]:
    """Element i of row b is the inner product of x[b] and dictionary[indices[i]]."""
    exact = torch.promote_types(dictionary.dtype, torch.float32)
    return (x.to(exact)[rows_of(offsets)] * dictionary.to(exact)[indices]).sum(1).to(x.dtype)


def rows_of(offsets: Int[Tensor, " batch_and_one"]) -> Int[Tensor, " n"]:
    """The row of each entry."""
    lengths = offsets[1:] - offsets[:-1]
    return torch.repeat_interleave(torch.arange(len(lengths), device=offsets.device), lengths)
