"""Layers with random weights, and everything that multiplies them."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sparsebook.experiments.sparse_matmul_kernels.scales import Shape
from sparsebook.kernels.sparse_matmul import spmm
from sparsebook.kernels.sparse_matmul.cpu import Matrix

Call = Callable[[], object]


@dataclass(frozen=True)
class Problem:
    """A 1 x 1 convolution: weights with zeros at random places, one image channel by channel."""

    shape: Shape
    sparsity: float
    seed: int = 0
    block: int = 1
    dtype: torch.dtype = torch.float32

    @cached_property
    def dense(self) -> Tensor:
        _, rows, columns = self.shape
        generator = torch.Generator().manual_seed(self.seed)
        kept = torch.rand(rows // self.block, columns, generator=generator) >= self.sparsity
        weights = torch.randn(rows, columns, generator=generator) / math.sqrt(columns)
        return (weights * kept.repeat_interleave(self.block, 0)).to(self.dtype)

    @cached_property
    def weights(self) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "sparse CSR is in beta"
            return (
                self.dense.to_sparse_csr() if self.block == 1 else self.dense.to_sparse_bsr((self.block, 1))
            )

    @cached_property
    def x(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + 1)
        return torch.randn(self.shape[2], self.shape[0], generator=generator).to(self.dtype)

    @property
    def numbers(self) -> int:
        """Stored weights, the zeros inside blocks among them."""
        return self.weights.values().numel()

    @property
    def flop(self) -> int:
        """Operations of the stored weights: a product and a sum each, for every pixel."""
        return 2 * self.numbers * self.shape[0]

    @property
    def dense_flop(self) -> int:
        return 2 * math.prod(self.shape)

    @property
    def least_bytes(self) -> int:
        """What must be moved once: the image, the result, values and indices."""
        pixels, rows, columns = self.shape
        size = self.x.element_size()
        entries = self.numbers // self.block
        return size * pixels * (rows + columns) + size * self.numbers + 8 * (entries + rows // self.block + 1)


def calls(problem: Problem) -> dict[str, Call]:
    """The public call, the bare kernel, and the products that anybody could use instead.

    The image of `conv2d` lies pixel by pixel (channels last), as oneDNN likes it best; the layout is made
    beforehand.
    """
    weights, x, dense = problem.weights, problem.x, problem.dense
    pixels, rows, columns = problem.shape
    side = math.isqrt(pixels)
    image = x.reshape(1, columns, side, pixels // side).contiguous(memory_format=torch.channels_last)
    kernel = dense.reshape(rows, columns, 1, 1).contiguous(memory_format=torch.channels_last)
    return {
        "ours": partial(spmm, weights, x),
        "bare": bare(problem),
        "dense": partial(torch.mm, dense, x),
        "conv2d": partial(functional.conv2d, image, kernel),
        "torch.sparse": partial(torch.mm, weights, x),
    }


def bare(problem: Problem) -> Call:
    """The compiled product alone, without the public function's questions."""
    weights = problem.weights
    values = weights.values().flatten(1) if problem.block > 1 else weights.values()
    lists = values, weights.col_indices(), weights.crow_indices()
    matrix = Matrix(*lists, weights.shape[1])

    def product(kept: tuple[Tensor, ...] = lists) -> Tensor:  # keeps the lists' memory
        return matrix.times(problem.x, None, -math.inf, math.inf)

    return product


def scipy_call(problem: Problem) -> Call:
    """SciPy's product; it knows one thread."""
    from scipy.sparse import csr_array

    weights = problem.weights
    lists: list[Any] = [weights.values(), weights.col_indices().int(), weights.crow_indices().int()]
    matrix = csr_array(tuple(part.numpy() for part in lists), shape=tuple(weights.shape))
    x = problem.x.numpy()
    return lambda: matrix @ x
